package queue

import (
	"sync/atomic"
	"unsafe"
)

// cursor is a position, taken apart, and its chunk.
type cursor struct {
	items, crossings, offset uint32
	size                     uint32 // of the chunk
	ref                      ref    // the chunk, 0: before the first
	chunk                    *chunk
}

// enter moves to the chunk that r names.
func (v *view) enter(c *cursor, r ref, offset uint32) error {
	p := (*chunk)(v.heap.Within(r.off(), uint64(r.chunkSize())))
	if p == nil || atomic.LoadUint64(&p.self) != uint64(r) {
		return corrupt("the reference of a chunk", uint64(r))
	}
	c.chunk, c.ref, c.size, c.offset = p, r, r.chunkSize(), offset
	if offset < chunkHead || offset > c.size {
		return corrupt("an offset", uint64(offset))
	}
	return nil
}

// cursorAt makes c the position at.
func (v *view) cursorAt(c *cursor, at position, chunks *[2]uint64) error {
	*c = cursor{items: at.items(), crossings: at.crossings()}
	if r := ref(atomic.LoadUint64(&chunks[c.crossings&1])); r != 0 {
		return v.enter(c, r, at.offset())
	}
	return nil
}

func (c *cursor) position() position { return positionOf(c.items, c.crossings, c.offset) }

func (v *view) link(c *cursor) *uint64 {
	if c.chunk == nil {
		return &v.q.first
	}
	return &c.chunk.next
}

// record is the head of the record at the cursor, which is so far from the chunk's end.
func (c *cursor) record() *uint64 { return (*uint64)(unsafe.Add(unsafe.Pointer(c.chunk), c.offset)) }

// body is n bytes behind the head of the record at the cursor.
func (c *cursor) body(n uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(c.chunk), c.offset+recordHead)), n)
}

func recordWord(size, kind, codec uint32) uint64 {
	return uint64(size) | uint64(kind)<<32 | uint64(codec)<<48
}

func padded(n uint64) uint64 { return (n + 7) &^ 7 }

// inChain returns how many messages the chain has, at one moment.
func (q *head) inChain() uint32 {
	for {
		at := atomic.LoadUint64(&q.head)
		tail := position(atomic.LoadUint64(&q.tail))
		if atomic.LoadUint64(&q.head) == at {
			return tail.items() - position(at).items()
		}
	}
}

func (q *head) most() uint32 {
	if n := atomic.LoadUint64(&q.maxsize); n != 0 && n <= itemsMost {
		return uint32(n)
	}
	return itemsMost
}

func (q *head) isClosed() bool { return atomic.LoadUint32(&q.closed) != 0 }
func (q *head) full() bool     { return q.inChain() >= q.most() }
func (q *head) canPut() bool   { return !q.full() || q.isClosed() }
func (q *head) canGet() bool {
	return q.inChain() != 0 || atomic.LoadUint32(&q.returned) != 0 || q.isClosed()
}
func (q *head) finished() bool {
	done := atomic.LoadUint32(&q.done)
	return done == position(atomic.LoadUint64(&q.tail)).items()
}

// ---- putting; the caller holds putLock

// room makes c where the next message goes and returns how many more there may be, at least one. Errors: ErrFull, ErrShutdown, corruption.
func (v *view) room(c *cursor) (uint32, error) {
	q := v.q
	tail, most := position(atomic.LoadUint64(&q.tail)), q.most()
	there := tail.items() - position(atomic.LoadUint64(&q.seenHead)).items()
	if there >= most {
		at := atomic.LoadUint64(&q.head)
		atomic.StoreUint64(&q.seenHead, at)
		there = tail.items() - position(at).items()
	}
	switch {
	case q.isClosed():
		return 0, ErrShutdown
	case there > itemsMost:
		return 0, corrupt("the number of messages", uint64(there))
	case there >= most:
		return 0, ErrFull
	}
	return most - there, v.cursorAt(c, tail, &q.tailChunk)
}

// reuse takes the spare chunk, if it is large enough, under a new tag.
func (v *view) reuse(need uint64) ref {
	if atomic.LoadUint64(&v.q.spare) == 0 {
		return 0
	}
	r := ref(atomic.SwapUint64(&v.q.spare, 0))
	if r == 0 {
		return 0
	}
	if need > uint64(r.chunkSize()) || v.heap.Within(r.off(), uint64(r.chunkSize())) == nil {
		v.free(r)
		return 0
	}
	tag := v.heap.Tag()
	if !v.heap.Retag(r.off(), r.tag(), tag) {
		return 0
	}
	return refOf(r.off(), r.class(), tag)
}

// grow moves the cursor to a chunk with need bytes behind its head. Nothing that a getter sees changes. from: the crossings of tail.
func (v *view) grow(c *cursor, need uint64, from uint32) error {
	link := v.link(c)
	left := ref(atomic.LoadUint64(link)) // by a producer that died, and what follows it
	need += chunkHead
	to := *c
	to.crossings = (from + 1) & 0xffff
	r, unfit, next := left, ref(0), uint64(0)
	if left != 0 {
		if err := v.enter(&to, left, chunkHead); err != nil {
			return err
		}
		if need > uint64(to.size) {
			r, unfit, next = 0, left, atomic.LoadUint64(&to.chunk.next)
		}
	}
	if r == 0 {
		if r = v.reuse(need); r == 0 {
			class := uint32(0)
			if c.chunk != nil {
				class = min(c.ref.class()+1, classes-1)
			}
			for chunkLeast<<(2*class) < need {
				class++
			}
			var err error
			if r, err = v.alloc(chunkLeast<<(2*class), class); err != nil {
				return err
			}
		}
		p := (*chunk)(v.heap.Within(r.off(), sizeChunk))
		if p == nil {
			return corrupt("the reference of a chunk", uint64(r))
		}
		atomic.StoreUint64(&p.next, next)
		atomic.StoreUint64(&p.self, uint64(r))
		atomic.StoreUint64(link, uint64(r))
		v.free(unfit)
		if err := v.enter(&to, r, chunkHead); err != nil {
			return err
		}
	}
	if c.chunk != nil && c.offset+recordHead <= c.size {
		atomic.StoreUint64(c.record(), recordWord(0, kindNext, 0))
	}
	atomic.StoreUint64(&v.q.tailChunk[to.crossings&1], uint64(r))
	*c = to
	return nil
}

// place writes a record behind the cursor.
func (v *view) place(c *cursor, data []byte, kind, codec, from uint32) error {
	need := recordHead + padded(uint64(len(data)))
	if c.chunk == nil || need > uint64(c.size-c.offset) {
		if err := v.grow(c, need, from); err != nil {
			return err
		}
	}
	copy(c.body(uint32(len(data))), data)
	atomic.StoreUint64(c.record(), recordWord(uint32(len(data)), kind, codec)) // the commit is what publishes it
	c.offset += uint32(need)
	c.items++
	return nil
}

// commitPut is the one store after which the messages are in the queue.
func (v *view) commitPut(c *cursor) { atomic.StoreUint64(&v.q.tail, uint64(c.position())) }

// ---- getting; the caller holds getLock

// found is a message in the chain, before it is taken.
type found struct {
	at    cursor // behind it
	old   ref    // the chunk left on the way, 0: none
	data  []byte
	ref   ref // of a bulk message
	codec uint32
	left  uint32 // messages after it
}

// find looks at the next message. Errors: ErrEmpty, corruption.
func (v *view) find(f *found) error {
	q := v.q
	at := position(atomic.LoadUint64(&q.head))
	there := position(atomic.LoadUint64(&q.seenTail)).items() - at.items()
	if there == 0 || there > itemsMost {
		tail := atomic.LoadUint64(&q.tail)
		atomic.StoreUint64(&q.seenTail, tail)
		there = position(tail).items() - at.items()
		if there == 0 {
			return ErrEmpty
		}
		if there > itemsMost {
			return corrupt("the number of messages", uint64(there))
		}
	}
	c := &f.at
	if err := v.cursorAt(c, at, &q.headChunk); err != nil {
		return err
	}
	f.old, f.left = 0, there-1
	var word uint64
	goOn := c.chunk == nil || c.offset+recordHead > c.size
	if !goOn {
		word = atomic.LoadUint64(c.record())
		goOn = uint16(word>>32) == kindNext
	}
	if goOn {
		f.old = c.ref
		crossings := (c.crossings + 1) & 0xffff
		if err := v.enter(c, ref(atomic.LoadUint64(v.link(c))), chunkHead); err != nil {
			return err
		}
		c.crossings = crossings
		word = atomic.LoadUint64(c.record())
	}
	size, kind := uint32(word), uint32(uint16(word>>32))
	need := recordHead + padded(uint64(size))
	if need > uint64(c.size-c.offset) || (kind != kindInline && kind != kindBulk) {
		return corrupt("the head of a record", word)
	}
	f.codec, f.ref = uint32(word>>48), 0
	switch {
	case kind == kindBulk:
		if uint64(size) != sizeBulk {
			return corrupt("the head of a record", word)
		}
		b := (*bulk)(unsafe.Pointer(unsafe.SliceData(c.body(size))))
		f.ref = ref(atomic.LoadUint64(&b.ref))
		var ok bool
		if f.data, ok = v.heap.At(f.ref.off(), atomic.LoadUint64(&b.size)); !ok || f.ref == 0 {
			return corrupt("the reference of a message", uint64(f.ref))
		}
	case size > inlineMost:
		return corrupt("the length of a message", uint64(size))
	default:
		f.data = c.body(size)
	}
	c.offset += uint32(need)
	c.items++
	return nil
}

// commitGet takes what was found: one store. False: the chunk that was left is no block any more, so the chain is corrupt.
func (v *view) commitGet(f *found) bool {
	q := v.q
	if uint64(f.at.ref) != atomic.LoadUint64(&q.headChunk[f.at.crossings&1]) { // a crossing
		atomic.StoreUint64(&q.old, uint64(f.old))
		atomic.StoreUint64(&q.headChunk[f.at.crossings&1], uint64(f.at.ref))
	}
	atomic.StoreUint64(&q.head, uint64(f.at.position()))
	if f.old == 0 {
		return true
	}
	well := true
	if atomic.LoadUint64(&q.spare) != 0 || !atomic.CompareAndSwapUint64(&q.spare, 0, uint64(f.old)) {
		well = v.free(f.old)
	}
	atomic.StoreUint64(&q.old, 0)
	return well
}

// destroy frees what hangs on a queue that nobody has any more. What is corrupt stays.
func (v *view) destroy() {
	q := v.q
	var f found
	for v.find(&f) == nil {
		if f.ref == 0 {
			v.heap.ForgetIn(f.data)
		} else {
			v.heap.ForgetInBlock(f.ref.off(), f.ref.tag(), uint64(len(f.data)))
			v.free(f.ref)
		}
		if !v.commitGet(&f) { // a chain that runs in a circle ends where a chunk is to be freed a second time
			break
		}
	}
	var c cursor
	if v.cursorAt(&c, position(atomic.LoadUint64(&q.head)), &q.headChunk) == nil {
		r := c.ref
		if r == 0 {
			r = ref(atomic.LoadUint64(&q.first))
		}
		for r != 0 && v.enter(&c, r, chunkHead) == nil { // the last, and those that the dead have left behind it
			next := ref(atomic.LoadUint64(&c.chunk.next))
			if !v.free(r) {
				break
			}
			r = next
		}
	}
	v.free(ref(atomic.LoadUint64(&q.spare)))
	v.free(ref(atomic.LoadUint64(&q.old)))
	v.each(func(c *cell) bool {
		state, block := c.load().state(), c.block()
		if state == cellLeased || state == cellReturned {
			v.heap.ForgetInBlock(block.off(), block.tag(), atomic.LoadUint64(&c.size))
		}
		if state > cellClaimed {
			v.free(block)
		}
		return true
	})
	for t := v.tableAt(atomic.LoadUint64(&q.cells)); t != nil; {
		self, next := ref(atomic.LoadUint64(&t.self)), atomic.LoadUint64(&t.next)
		if !v.free(self) {
			break
		}
		t = v.tableAt(next)
	}
}
