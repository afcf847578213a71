package shm

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// A ring carries records from one process to one other. It is three things in shared memory: tail, head, and cap bytes of data, cap a
// power of two. tail and head count bytes and only grow; position p lies at data[p%cap]. A record is
//
//	{ len uint32; kind, flags uint16 } payload[len] padding to 8
//
// and never wraps: what would cross the end is preceded by a record of kind pad up to the end. The producer writes records and then
// stores tail, the consumer reads up to tail and stores head. capi/front/lane.h states the same for C.
const (
	recordHead = 8
	kindPad    = 0xffff
	ringMin    = 64
)

// Record is one record, read in place.
type Record struct {
	Kind, Flags uint16
	Body        []byte // in shared memory: valid until it is released
	Pos, End    uint64 // positions of the record and of what follows it
}

// Producer is the writing side of a ring. It is not safe for several goroutines at once.
type Producer struct {
	data   []byte
	tail   *uint64 // ours
	head   *uint64 // the consumer's
	mask   uint64
	staged uint64 // where the next record goes
	public uint64 // = *tail
	limit  uint64 // = last valid *head + cap
	bad    bool
}

// NewProducer returns the writing side of a ring; its first producer finds zeros, a later one goes on where tail is. Errors:
// [ErrInvalid] (data is no power of two, or not aligned to 8), [ErrCorrupt] (impossible positions).
func NewProducer(tail, head *uint64, data []byte) (*Producer, error) {
	t, h, err := checkRing(tail, head, data)
	if err != nil {
		return nil, err
	}
	n := uint64(len(data))
	return &Producer{data: data, tail: tail, head: head, mask: n - 1, staged: t, public: t, limit: h + n}, nil
}

// Max returns the size of the largest payload: half of the ring less 8 bytes, which fits as soon as the ring is empty.
func (p *Producer) Max() int { return len(p.data)/2 - recordHead }

// Stage makes room for a record with n bytes of payload after all that is staged, and returns the payload to be filled and the
// position after the record; false: there is no room now. Nobody sees it before Publish. It panics if n is negative or more than Max.
func (p *Producer) Stage(kind, flags uint16, n int) ([]byte, uint64, bool) {
	if uint(n) > uint(p.Max()) {
		panic("shm: record is larger than the ring's Max")
	}
	total := recordSize(uint64(n))
	off := p.staged & p.mask
	pad := uint64(0)
	if rest := uint64(len(p.data)) - off; total > rest {
		pad = rest
	}
	if end := p.staged + pad + total; end > p.limit {
		p.refresh()
		if end > p.limit {
			return nil, 0, false
		}
	}
	base := addressOf(p.data)
	if pad != 0 {
		writeHead(unsafe.Add(base, off), pad-recordHead, kindPad, 0)
		p.staged += pad
		off = 0
	}
	writeHead(unsafe.Add(base, off), uint64(n), kind, flags)
	p.staged += total
	at := off + recordHead
	return p.data[at : at+uint64(n) : at+uint64(n)], p.staged, true
}

// Publish shows all staged records to the consumer, by one atomic store.
func (p *Producer) Publish() {
	if p.staged != p.public {
		p.public = p.staged
		atomic.StoreUint64(p.tail, p.staged)
	}
}

// Put stages a record whose payload is the parts one after the other, and publishes it; false: there is no room now.
func (p *Producer) Put(kind, flags uint16, parts ...[]byte) bool {
	n := 0
	for _, part := range parts {
		n += len(part)
	}
	b, _, ok := p.Stage(kind, flags, n)
	if !ok {
		return false
	}
	for _, part := range parts {
		b = b[copy(b, part):]
	}
	p.Publish()
	return true
}

// Head returns how far the consumer has given space back. What it cannot have given is ignored, see Err.
func (p *Producer) Head() uint64 {
	p.refresh()
	return p.limit - uint64(len(p.data))
}

// Tail returns the position up to which records are published.
func (p *Producer) Tail() uint64 { return p.public }

// Err returns [ErrCorrupt] once the consumer's position has been seen to be impossible: the ring then only fills up.
func (p *Producer) Err() error {
	if p.bad {
		return fmt.Errorf("%w: head of a ring", ErrCorrupt)
	}
	return nil
}

// refresh takes over the consumer's position if it lies between the last one and what is published.
func (p *Producer) refresh() {
	head := atomic.LoadUint64(p.head)
	n := uint64(len(p.data))
	if p.public-head > p.public-(p.limit-n) || head%8 != 0 {
		p.bad = true
		return
	}
	p.limit = head + n
}

// Consumer is the reading side of a ring. It is not safe for several goroutines at once.
type Consumer struct {
	data  []byte
	tail  *uint64 // the producer's
	head  *uint64 // ours
	mask  uint64
	next  uint64 // the next record to read
	freed uint64 // = *head
	known uint64 // last valid *tail
}

// NewConsumer returns the reading side of a ring, which begins at head. Errors as [NewProducer].
func NewConsumer(tail, head *uint64, data []byte) (*Consumer, error) {
	t, h, err := checkRing(tail, head, data)
	if err != nil {
		return nil, err
	}
	return &Consumer{data: data, tail: tail, head: head, mask: uint64(len(data)) - 1, next: h, freed: h, known: t}, nil
}

// Next returns the next record that was not read yet; false: there is none now. Its body stays where it is until it is released.
// Errors: [ErrCorrupt] if the producer's position or the record's header is impossible; it stays so.
func (c *Consumer) Next() (Record, bool, error) {
	for {
		if c.next == c.known {
			tail := atomic.LoadUint64(c.tail)
			if tail == c.next {
				return Record{}, false, nil
			}
			// Neither backwards nor past what was given back.
			if tail-c.freed > uint64(len(c.data)) || tail-c.freed < c.next-c.freed || tail%8 != 0 {
				return Record{}, false, fmt.Errorf("%w: tail %d of a ring of %d at %d", ErrCorrupt, tail, len(c.data), c.next)
			}
			c.known = tail
		}
		off := c.next & c.mask
		n, kind, flags := readHead(unsafe.Add(addressOf(c.data), off)) // read once: the other side may change it
		total := recordSize(n)
		rest := uint64(len(c.data)) - off
		if total > c.known-c.next || total > rest {
			return Record{}, false, fmt.Errorf("%w: record of %d bytes at %d of a ring of %d", ErrCorrupt, n, c.next, len(c.data))
		}
		pos := c.next
		if kind == kindPad {
			if total != rest {
				return Record{}, false, fmt.Errorf("%w: pad of %d bytes at %d of a ring of %d", ErrCorrupt, n, pos, len(c.data))
			}
			c.next += total
			continue
		}
		if n > uint64(len(c.data)/2-recordHead) {
			return Record{}, false, fmt.Errorf("%w: record of %d bytes at %d of a ring of %d", ErrCorrupt, n, pos, len(c.data))
		}
		c.next += total
		at := off + recordHead
		return Record{kind, flags, c.data[at : at+n : at+n], pos, c.next}, true, nil
	}
}

// Release gives back the space of everything read so far, by one atomic store. Bodies of records are no longer valid.
func (c *Consumer) Release() { c.ReleaseTo(c.next) }

// ReleaseTo gives back everything up to end, a Record's End; what was given back already, or not read yet, changes nothing.
func (c *Consumer) ReleaseTo(end uint64) {
	if end-c.freed-1 < c.next-c.freed { // freed < end <= next
		c.freed = end
		atomic.StoreUint64(c.head, end)
	}
}

// Empty reports whether nothing is left to read now.
func (c *Consumer) Empty() bool { return c.next == c.known && atomic.LoadUint64(c.tail) == c.next }

// Pos returns the position up to which records were read.
func (c *Consumer) Pos() uint64 { return c.next }

func checkRing(tail, head *uint64, data []byte) (uint64, uint64, error) {
	n := uint64(len(data))
	if n < ringMin || bits.OnesCount64(n) != 1 || n > 1<<31 || uintptr(addressOf(data))%8 != 0 ||
		uintptr(unsafe.Pointer(tail))%8 != 0 || uintptr(unsafe.Pointer(head))%8 != 0 {
		return 0, 0, fmt.Errorf("%w: ring of %d bytes", ErrInvalid, n)
	}
	t, h := atomic.LoadUint64(tail), atomic.LoadUint64(head)
	if t-h > n || t%8 != 0 || h%8 != 0 {
		return 0, 0, fmt.Errorf("%w: ring of %d bytes with tail %d and head %d", ErrCorrupt, n, t, h)
	}
	return t, h, nil
}

func recordSize(n uint64) uint64 { return recordHead + (n+7)&^7 }

type recordHeader struct {
	len         uint32
	kind, flags uint16
}

func writeHead(at unsafe.Pointer, n uint64, kind, flags uint16) {
	*(*recordHeader)(at) = recordHeader{uint32(n), kind, flags}
}

func readHead(at unsafe.Pointer) (n uint64, kind, flags uint16) {
	h := *(*recordHeader)(at)
	return uint64(h.len), h.kind, h.flags
}
