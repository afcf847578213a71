package pipe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// The rings: what is done under the locks. capi/front/pipe.h has the rules.

func corrupt(what string, value uint64) error {
	return fmt.Errorf("pipe: %w: %s %#x", shm.ErrCorrupt, what, value)
}

// errNoRoom and errNothing do not leave the package.
var errNoRoom, errNothing = errors.New("no room"), errors.New("nothing")

// A word of a way is read once, atomically, and its checked copy is used: another process may change it at any time.

// bytes returns the ring, errNothing if there is none yet.
func (w *way) bytes(h *shm.Heap) ([]byte, error) {
	off := atomic.LoadUint64(&w.ring)
	if off == 0 {
		return nil, errNothing
	}
	if ring, ok := h.At(off, ringCap); ok && off%128 == 0 {
		return ring, nil
	}
	return nil, corrupt("the offset of a ring is", off)
}

func padded(n uint64) uint64 { return recordHead + (n+7)&^7 }

// reserve finds room for a record of size bytes: where its payload goes, and the position behind it. errNoRoom: there is none now.
func (w *way) reserve(h *shm.Heap, kind uint16, size uint32) (payload []byte, end uint64, err error) {
	ring, err := w.bytes(h)
	if err == errNothing {
		tag := h.Tag()
		off, _, err := h.Alloc(ringCap, tag)
		if err != nil {
			return nil, 0, fmt.Errorf("pipe: %w", err)
		}
		atomic.StoreUint32(&w.ringTag, tag)
		atomic.StoreUint64(&w.ring, off)
		ring, _ = h.At(off, ringCap)
	} else if err != nil {
		return nil, 0, err
	}
	tail, need := atomic.LoadUint64(&w.tail), padded(uint64(size))
	at := tail % ringCap
	pad := uint64(0)
	if need > ringCap-at {
		pad = ringCap - at
	}
	if tail%8 != 0 {
		return nil, 0, corrupt("the end of a ring is", tail)
	}
	if used := tail - atomic.LoadUint64(&w.seenHead); used > ringCap || ringCap-used < pad+need {
		begin := atomic.LoadUint64(&w.head)
		if used = tail - begin; used > ringCap || begin%8 != 0 {
			return nil, 0, corrupt("the begin of a ring is", begin)
		}
		atomic.StoreUint64(&w.seenHead, begin)
		if ringCap-used < pad+need {
			return nil, 0, errNoRoom
		}
	}
	if pad != 0 {
		record(ring[at:], kindPad, uint32(pad-recordHead))
		tail += pad
		at = 0
	}
	record(ring[at:], kind, size)
	return ring[at+recordHead : at+recordHead+uint64(size)], tail + need, nil
}

// record writes the head of a record: { u32 len; u16 kind; u16 codec; }.
func record(b []byte, kind uint16, size uint32) {
	binary.LittleEndian.PutUint64(b, uint64(kind)<<32|uint64(size))
}

// found is the oldest record of a ring.
type found struct {
	payload []byte
	end     uint64 // the position behind it
	kind    uint16
}

// first finds the oldest record from begin on, errNothing if there is none.
func (w *way) first(h *shm.Heap, begin uint64) (f found, err error) {
	tail := atomic.LoadUint64(&w.tail)
	if tail == begin {
		return f, errNothing
	}
	ring, err := w.bytes(h)
	if err != nil || tail-begin > ringCap || (tail|begin)%8 != 0 {
		return f, corrupt("a ring ends at", tail)
	}
	for {
		at := begin % ringCap
		words := atomic.LoadUint64((*uint64)(unsafe.Pointer(&ring[at])))
		size := uint64(uint32(words))
		need := padded(size)
		if need > tail-begin || need > ringCap-at {
			return f, corrupt("the size of a message is", size)
		}
		begin += need
		if kind := uint16(words >> 32); kind != kindPad {
			return found{ring[at+recordHead : at+recordHead+size], begin, kind}, nil
		}
		if tail == begin {
			return f, corrupt("nothing comes before", tail)
		}
	}
}

// bulk returns where a big message is.
func (f found) bulk(h *shm.Heap) (b bulk, data []byte, err error) {
	if uint64(len(f.payload)) < sizeBulk {
		return b, nil, corrupt("the size of a reference is", uint64(len(f.payload)))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&b)), sizeBulk), f.payload)
	room, ok := h.BlockRoom(b.off, b.tag)
	if ok && b.size <= room {
		if data, ok = h.At(b.off, b.size); ok {
			return b, data, nil
		}
	}
	return b, nil, corrupt("a reference to a message is", b.off)
}

// name returns the name of a descriptor.
func (f found) name() (n name, err error) {
	if uint64(len(f.payload)) < sizeName {
		return n, corrupt("the size of a name is", uint64(len(f.payload)))
	}
	copy(n.bytes(), f.payload)
	return n, nil
}

func (n *name) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(n)), sizeName) }

// lease names a block that is about to be taken, nil if there is no place. The caller holds recvLock.
func (w *way) lease(h *shm.Heap, b bulk, end uint64) *lease {
	me := uint32(h.Me())
	for _, again := range []bool{false, true} {
		for i := range w.leases {
			l := &w.leases[i]
			if !atomic.CompareAndSwapUint32(&l.owner, 0, me) {
				continue
			}
			atomic.StoreUint64(&l.end, end) // first: with an old end, whoever resolves would take the block for one that was taken
			atomic.StoreUint32(&l.tag, b.tag)
			atomic.StoreUint64(&l.off, b.off)
			return l
		}
		for i := range w.leases {
			l := &w.leases[i]
			owner := atomic.LoadUint32(&l.owner)
			if again || owner == 0 || owner == me || !h.Gone(shm.Owner(owner)) {
				continue
			}
			h.Free(atomic.LoadUint64(&l.off), atomic.LoadUint32(&l.tag))
			atomic.CompareAndSwapUint32(&l.owner, owner, 0)
		}
	}
	return nil
}

func (l *lease) over(h *shm.Heap, b bulk) {
	h.Free(b.off, b.tag)
	if l != nil {
		atomic.CompareAndSwapUint32(&l.owner, uint32(h.Me()), 0)
	}
}

// resolve puts the leases of one who died with recvLock in order.
func (w *way) resolve(h *shm.Heap, dead shm.Owner) {
	begin := atomic.LoadUint64(&w.head)
	for i := range w.leases {
		l := &w.leases[i]
		if atomic.LoadUint32(&l.owner) != uint32(dead) {
			continue
		}
		if int64(atomic.LoadUint64(&l.end)-begin) <= 0 {
			h.Free(atomic.LoadUint64(&l.off), atomic.LoadUint32(&l.tag))
		}
		atomic.CompareAndSwapUint32(&l.owner, uint32(dead), 0)
	}
}

// destroy frees what a pipe has that nobody holds any more. It may be done again.
func destroy(h *shm.Heap, off uint64) {
	p := (*head)(h.Within(off, sizePipe))
	if p == nil {
		return
	}
	for i := range p.way {
		w := &p.way[i]
		at := atomic.LoadUint64(&w.head)
		for range ringCap / recordHead { // as many as fit, whatever is written there
			f, err := w.first(h, at)
			if err != nil {
				break
			}
			switch f.kind {
			case kindBulk:
				if b, data, err := f.bulk(h); err == nil {
					h.ForgetIn(data)
					h.Free(b.off, b.tag)
				}
			case kindInline:
				h.ForgetIn(f.payload)
			case kindFD:
				if n, err := f.name(); err == nil {
					forgetFile(n)
				}
			}
			at = f.end
		}
		// Who lives and reads a block holds the pipe; these are of the dead.
		for k := range w.leases {
			if l := &w.leases[k]; atomic.LoadUint32(&l.owner) != 0 {
				h.Free(atomic.LoadUint64(&l.off), atomic.LoadUint32(&l.tag))
			}
		}
		if ring := atomic.LoadUint64(&w.ring); ring != 0 {
			h.Free(ring, atomic.LoadUint32(&w.ringTag))
		}
	}
}

func init() {
	shm.RegisterKind(shm.KindPipe, sizePipe, destroy)
	shm.RegisterDescriptors(func(ref []byte) {
		var n name
		copy(n.bytes(), ref)
		forgetFile(n)
	})
}
