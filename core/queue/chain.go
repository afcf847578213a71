package queue

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm/mem"
)

// cursor is a position, taken apart, and its chunk.
type cursor struct {
	items     uint32
	crossings uint32
	offset    uint32
	size      uint32 // of the chunk
	ref       ref    // the chunk, 0: before the first
	chunk     *chunk
}

// enter moves to the chunk that r names.
func (v *view) enter(c *cursor, r ref, offset uint32) status {
	p := (*chunk)(v.within(r.off(), uint64(r.chunkSize())))
	if p == nil || mem.Load64(&p.self) != uint64(r) {
		return v.corrupt("the reference of a chunk", uint64(r))
	}
	c.chunk = p
	c.ref = r
	c.size = r.chunkSize()
	c.offset = offset
	if offset < chunkHead || offset > c.size {
		return v.corrupt("an offset", uint64(offset))
	}
	return statusOK
}

// cursorAt makes c the position at, in one of two chunks.
func (v *view) cursorAt(c *cursor, at position, chunks *[2]uint64) status {
	*c = cursor{items: at.items(), crossings: at.crossings()}
	r := ref(mem.LoadRelaxed64(&chunks[c.crossings&1]))
	if r == 0 {
		return statusOK
	}
	return v.enter(c, r, at.offset())
}

func (c *cursor) position() position { return positionOf(c.items, c.crossings, c.offset) }

// link is where the reference of the chunk behind the cursor's stands.
func (v *view) link(c *cursor) *uint64 {
	if c.chunk == nil {
		return &v.q.first
	}
	return &c.chunk.next
}

// record is the head of the record at the cursor, which is so far from the chunk's end.
func (c *cursor) record() *uint64 { return (*uint64)(unsafe.Add(unsafe.Pointer(c.chunk), c.offset)) }

// body is what lies behind the head of the record at the cursor.
func (c *cursor) body() unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(c.chunk), c.offset+recordHead)
}

// ---- how many

// inChain returns how many messages the chain has, at one moment.
func (q *head) inChain() uint32 {
	for {
		at := position(mem.Load64(&q.head))
		tail := position(mem.Load64(&q.tail))
		if mem.Load64(&q.head) == uint64(at) {
			return tail.items() - at.items()
		}
	}
}

// most is how many messages the queue may hold.
func (q *head) most() uint32 {
	n := mem.LoadRelaxed64(&q.maxsize)
	if n == 0 || n > itemsMost {
		return itemsMost
	}
	return uint32(n)
}

func (q *head) full() bool {
	most := q.most()
	return q.inChain() >= most
}

func (q *head) isClosed() bool { return mem.Load32(&q.closed) != 0 }
func (q *head) canPut() bool   { return !q.full() || q.isClosed() }
func (q *head) canGet() bool {
	return q.inChain() != 0 || mem.Load32(&q.returned) != 0 || q.isClosed()
}

// unfinished is how many messages were put and not reported done.
func (q *head) unfinished() uint32 {
	done := mem.Load32(&q.done)
	return position(mem.Load64(&q.tail)).items() - done
}

func (q *head) finished() bool { return q.unfinished() == 0 }

// taskDone reports one message done. statusState: there is none that is not.
func (q *head) taskDone() status {
	for {
		done := mem.Load32(&q.done)
		if done == position(mem.Load64(&q.tail)).items() {
			return statusState
		}
		if mem.CAS32(&q.done, done, done+1) {
			return statusOK
		}
	}
}

// ---- putting; the caller holds putLock

// room makes c where the next message goes, and free how many more there may be, at least one. statusFull, statusClosed, or corruption.
func (v *view) room(c *cursor, free *uint32) status {
	q := v.q
	most := q.most()
	tail := position(mem.LoadRelaxed64(&q.tail))
	there := tail.items() - position(mem.LoadRelaxed64(&q.seenHead)).items()
	if there >= most {
		at := position(mem.Load64(&q.head))
		mem.StoreRelaxed64(&q.seenHead, uint64(at))
		there = tail.items() - at.items()
	}
	if mem.LoadRelaxed32(&q.closed) != 0 {
		return statusClosed
	}
	if there > itemsMost {
		return v.corrupt("the number of messages", uint64(there))
	}
	if there >= most {
		return statusFull
	}
	*free = most - there
	return v.cursorAt(c, tail, &q.tailChunk)
}

// reuse takes the spare chunk, if it is large enough, under a new tag. 0: there is none.
func (v *view) reuse(need uint64) ref {
	if mem.Load64(&v.q.spare) == 0 {
		return 0
	}
	r := ref(mem.Swap64(&v.q.spare, 0))
	if r == 0 {
		return 0
	}
	if need > uint64(r.chunkSize()) || v.within(r.off(), uint64(r.chunkSize())) == nil {
		v.freeBlock(r)
		return 0
	}
	return v.retag(r)
}

// grow moves the cursor to a chunk with need bytes behind its head. Nothing that a getter sees changes. from: the crossings of tail.
func (v *view) grow(c *cursor, need uint64, from uint32) status {
	link := v.link(c)
	left := ref(mem.Load64(link)) // by a producer that died, and what follows it
	whole := need + chunkHead
	to := *c
	to.crossings = (from + 1) & 0xffff
	r := left
	unfit := ref(0)
	next := uint64(0)
	if left != 0 {
		s := v.enter(&to, left, chunkHead)
		if s != statusOK {
			return s
		}
		if whole > uint64(to.size) {
			r = 0
			unfit = left
			next = mem.Load64(&to.chunk.next)
		}
	}
	if r == 0 {
		s := v.newChunk(&r, c, whole)
		if s != statusOK {
			return s
		}
		p := (*chunk)(v.within(r.off(), sizeChunk))
		if p == nil {
			return v.corrupt("the reference of a chunk", uint64(r))
		}
		mem.StoreRelaxed64(&p.next, next)
		mem.StoreRelaxed64(&p.self, uint64(r))
		mem.Store64(link, uint64(r))
		v.freeBlock(unfit)
		s = v.enter(&to, r, chunkHead)
		if s != statusOK {
			return s
		}
	}
	if c.chunk != nil && c.offset+recordHead <= c.size {
		mem.StoreRelaxed64(c.record(), uint64(recordWordOf(0, kindNext, 0)))
	}
	mem.Store64(&v.q.tailChunk[to.crossings&1], uint64(r))
	*c = to
	return statusOK
}

// newChunk makes r a chunk of at least whole bytes, larger than the cursor's: the spare one, or a new one.
func (v *view) newChunk(r *ref, c *cursor, whole uint64) status {
	*r = v.reuse(whole)
	if *r != 0 {
		return statusOK
	}
	class := uint32(0)
	if c.chunk != nil {
		class = c.ref.class() + 1
	}
	if class >= classes {
		class = classes - 1
	}
	for class < classes-1 && uint64(classSize(class)) < whole {
		class++
	}
	return v.alloc(uint64(classSize(class)), class, r)
}

// place finds the place of a record of size bytes behind the cursor: the caller writes them to c.body() and calls seal.
func (v *view) place(c *cursor, size, from uint32) status {
	need := recordHead + padded(uint64(size))
	if c.chunk == nil || need > uint64(c.size-c.offset) {
		return v.grow(c, need, from)
	}
	return statusOK
}

// seal ends the record at the cursor, which goes behind it. The commit is what publishes it.
func (c *cursor) seal(size, kind, codec uint32) {
	mem.StoreRelaxed64(c.record(), uint64(recordWordOf(size, kind, codec)))
	c.offset += recordHead + uint32(padded(uint64(size)))
	c.items++
}

// commitPut is the one store after which the messages are in the queue.
func (v *view) commitPut(c *cursor) { mem.StoreRelease64(&v.q.tail, uint64(c.position())) }

// commitHeld commits the message of a cell that is HELD by this process, to which the record before the cursor refers.
func (v *view) commitHeld(c *cursor, b *block) {
	mem.StoreRelaxed32(&b.cell.seq, c.items)
	b.become(cellPutting)
	v.commitPut(c)
	b.cell.set(0, cellFree)
}

// ---- getting; the caller holds getLock

// found is a message in the chain, before it is taken.
type found struct {
	at    cursor // behind it
	old   ref    // the chunk left on the way, 0: none
	data  unsafe.Pointer
	size  uint64
	ref   ref // of a bulk message
	codec uint32
	left  uint32 // messages after it
}

// find looks at the next message. statusEmpty, or corruption.
func (v *view) find(f *found) status {
	q := v.q
	at := position(mem.LoadRelaxed64(&q.head))
	there := position(mem.LoadRelaxed64(&q.seenTail)).items() - at.items()
	if there == 0 || there > itemsMost {
		tail := position(mem.Load64(&q.tail))
		mem.StoreRelaxed64(&q.seenTail, uint64(tail))
		there = tail.items() - at.items()
		if there == 0 {
			return statusEmpty
		}
		if there > itemsMost {
			return v.corrupt("the number of messages", uint64(there))
		}
	}
	c := &f.at
	s := v.cursorAt(c, at, &q.headChunk)
	if s != statusOK {
		return s
	}
	f.old = 0
	f.left = there - 1
	word := recordWord(0)
	goOn := c.chunk == nil || c.offset+recordHead > c.size
	if !goOn {
		word = recordWord(mem.LoadRelaxed64(c.record()))
		goOn = word.kind() == kindNext
	}
	if goOn {
		f.old = c.ref
		crossings := (c.crossings + 1) & 0xffff
		link := v.link(c)
		s = v.enter(c, ref(mem.Load64(link)), chunkHead)
		if s != statusOK {
			return s
		}
		c.crossings = crossings
		word = recordWord(mem.LoadRelaxed64(c.record()))
	}
	need := recordHead + padded(uint64(word.size()))
	if need > uint64(c.size-c.offset) || word.kind() != kindInline && word.kind() != kindBulk {
		return v.corrupt("the head of a record", uint64(word))
	}
	f.codec = word.codec()
	if word.kind() == kindBulk {
		if uint64(word.size()) != sizeBulk {
			return v.corrupt("the head of a record", uint64(word))
		}
		b := (*bulk)(c.body())
		f.ref = ref(mem.LoadRelaxed64(&b.ref))
		f.size = mem.LoadRelaxed64(&b.size)
		f.data = v.within(f.ref.off(), f.size)
		if f.data == nil || f.ref == 0 {
			return v.corrupt("the reference of a message", uint64(f.ref))
		}
	} else {
		if word.size() > inlineMost {
			return v.corrupt("the length of a message", uint64(word.size()))
		}
		f.ref = 0
		f.size = uint64(word.size())
		f.data = c.body()
	}
	c.offset += uint32(need)
	c.items++
	return statusOK
}

// commitGet takes what was found: one store. False: the chunk that was left is no block any more, so the chain is corrupt.
func (v *view) commitGet(f *found) bool {
	q := v.q
	chunk := &q.headChunk[f.at.crossings&1]
	if mem.LoadRelaxed64(chunk) != uint64(f.at.ref) { // a crossing
		mem.StoreRelaxed64(&q.old, uint64(f.old))
		mem.Store64(chunk, uint64(f.at.ref))
	}
	mem.StoreRelease64(&q.head, uint64(f.at.position()))
	if f.old == 0 {
		return true
	}
	well := true
	if mem.Load64(&q.spare) != 0 || !mem.CAS64(&q.spare, 0, uint64(f.old)) {
		well = v.freeBlock(f.old)
	}
	mem.Store64(&q.old, 0)
	return well
}

// take takes what was found by way of a cell, which is HELD or LEASED then: a message that lies in a block of its own, or a lease, for which
// an inline message is copied to a block.
func (v *view) take(f *found, lease bool, b *block) status {
	s := v.claim(b)
	if s != statusOK {
		return s
	}
	b.data = f.data
	b.size = f.size
	b.ref = f.ref
	b.codec = f.codec
	state := uint32(cellTaking)
	if lease {
		state = cellLeasing
	}
	if f.ref == 0 {
		size := f.size
		if size == 0 {
			size = 1
		}
		s = v.alloc(size, 0, &b.ref)
		if s != statusOK {
			b.cell.set(0, cellFree)
			return s
		}
		b.cell.fill(b.ref, b.size, b.codec, f.at.items)
		b.become(cellHeld) // from here on the block is not lost with this process
		b.data = v.within(b.ref.off(), size)
		if b.data == nil {
			v.freeCell(b.cell, b.ref)
			return v.corrupt("a block", uint64(b.ref))
		}
		mem.Copy(b.data, f.data, f.size)
		state = cellCopying
	} else {
		b.cell.fill(b.ref, b.size, b.codec, f.at.items)
	}
	b.become(state)
	v.commitGet(f)
	if lease {
		b.become(cellLeased)
	} else {
		b.become(cellHeld)
	}
	return statusOK
}

// ---- the end

// destroy frees what hangs on a queue that nobody has any more, with what its messages refer to. What is corrupt stays.
func (v *view) destroy() {
	q := v.q
	f := found{}
	for v.find(&f) == statusOK {
		if f.ref == 0 {
			v.forget(f.data, f.size)
		} else {
			v.forgetBlock(f.ref, f.size)
			v.freeBlock(f.ref)
		}
		if !v.commitGet(&f) { // a chain that runs in a circle ends where a chunk is to be freed a second time
			break
		}
	}
	c := cursor{}
	r := ref(0)
	if v.cursorAt(&c, position(mem.Load64(&q.head)), &q.headChunk) == statusOK {
		r = c.ref
		if r == 0 {
			r = ref(mem.Load64(&q.first))
		}
	}
	for r != 0 && v.enter(&c, r, chunkHead) == statusOK { // the last, and those that the dead have left behind it
		next := ref(mem.Load64(&c.chunk.next))
		if !v.freeBlock(r) {
			break
		}
		r = next
	}
	v.freeBlock(ref(mem.Load64(&q.spare)))
	v.freeBlock(ref(mem.Load64(&q.old)))
	for w := v.first(); w.cell != nil; v.next(&w) {
		state := w.cell.load().state()
		held := ref(mem.Load64(&w.cell.ref))
		if state == cellLeased || state == cellReturned {
			v.forgetBlock(held, mem.Load64(&w.cell.size))
		}
		if state > cellClaimed {
			v.freeBlock(held)
		}
	}
	t := v.tableAt(ref(mem.Load64(&q.cells)))
	for t != nil {
		self := ref(mem.Load64(&t.self))
		next := ref(mem.Load64(&t.next))
		if !v.freeBlock(self) {
			break
		}
		t = v.tableAt(next)
	}
}
