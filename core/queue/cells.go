package queue

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
	"github.com/polyproc/polyproc/shm/mem"
)

// status is what a step returns.
//
//c:extern int32_t
type status int32

const (
	statusOK       status = 0   //c:extern PP_OK
	statusCorrupt  status = -16 //c:extern PP_ERR_CORRUPT
	statusEmpty    status = -23 //c:extern PP_ERR_EMPTY
	statusFull     status = -24 //c:extern PP_ERR_FULL
	statusClosed   status = -6  //c:extern PP_ERR_CLOSED
	statusTooBig   status = -15 //c:extern PP_ERR_TOO_BIG
	statusState    status = -7  //c:extern PP_ERR_STATE
	statusNoMemory status = -3  //c:extern PP_ERR_NOMEM
)

// walk goes over all cells: first, then next until cell is nil. A chain that is corrupt ends.
type walk struct {
	table  *table
	cell   *cell
	number uint32 // of the cell
}

// block is a message in the block of a cell that is this process's: what was read and checked, as the memory
// may have changed since.
type block struct {
	data   unsafe.Pointer
	size   uint64
	ref    ref
	codec  uint32
	number uint32 // of the cell
	cell   *cell
	word   cellWord // of the cell
}

func (c *cell) load() cellWord { return cellWord(mem.Load64(&c.word)) }

func (c *cell) cas(from, to cellWord) bool { return mem.CAS64(&c.word, uint64(from), uint64(to)) }

// set changes a cell that is this process's.
func (c *cell) set(owner shm.Owner, state uint32) {
	mem.Store64(&c.word, uint64(c.load().with(owner, state)))
}

func (c *cell) fill(r ref, size uint64, codec, seq uint32) {
	mem.StoreRelaxed64(&c.ref, uint64(r))
	mem.StoreRelaxed64(&c.size, size)
	mem.StoreRelaxed32(&c.codec, codec)
	mem.StoreRelaxed32(&c.seq, seq)
}

// ---- all cells

func (q *head) hasCells() bool { return mem.Load64(&q.cells) != 0 }

// tableAt checks a reference to a table: nil if there is none behind it.
func (v *view) tableAt(r ref) *table {
	if r == 0 {
		return nil
	}
	t := (*table)(v.within(r.off(), sizeTable))
	if t == nil || mem.Load64(&t.self) != uint64(r) {
		return nil
	}
	return t
}

func (v *view) first() walk {
	w := walk{table: v.tableAt(ref(mem.Load64(&v.q.cells)))}
	if w.table != nil {
		w.cell = &w.table.cells[0]
	}
	return w
}

func (v *view) next(w *walk) {
	w.number++
	if w.number%tableCells == 0 {
		t := ref(mem.Load64(&w.table.next))
		if w.number/tableCells >= tablesMost {
			t = 0
		}
		w.table = v.tableAt(t)
		if w.table == nil {
			w.cell = nil
			return
		}
	}
	w.cell = &w.table.cells[w.number%tableCells]
}

// count counts the cells in a state.
func (v *view) count(state uint32) uint32 {
	n := uint32(0)
	for w := v.first(); w.cell != nil; v.next(&w) {
		if w.cell.load().state() == state {
			n++
		}
	}
	return n
}

// inUse reports whether any cell is.
func (v *view) inUse() bool {
	for w := v.first(); w.cell != nil; v.next(&w) {
		if w.cell.load().state() != cellFree {
			return true
		}
	}
	return false
}

// ---- cells of this process

// freeCell gives up the block of a cell that is this process's, and the cell.
func (v *view) freeCell(c *cell, block ref) {
	v.freeBlock(block)
	c.set(0, cellFree)
}

// moreCells puts another table at the end of the chain, unless somebody else does.
func (v *view) moreCells() status {
	r := ref(0)
	s := v.alloc(sizeTable, 0, &r)
	if s != statusOK {
		return s
	}
	t := (*table)(v.within(r.off(), sizeTable))
	if t == nil {
		return v.corrupt("the reference of a table", uint64(r))
	}
	mem.Zero(unsafe.Pointer(t), sizeTable)
	mem.Store64(&t.self, uint64(r))
	link := &v.q.cells
	for range uint32(tablesMost) {
		if mem.CAS64(link, 0, uint64(r)) {
			return statusOK
		}
		there := v.tableAt(ref(mem.Load64(link)))
		if there == nil {
			break
		}
		link = &there.next
	}
	v.freeBlock(r)
	return v.corrupt("a table of cells", mem.Load64(link))
}

// claim makes b a cell of this process, in state CLAIMED.
func (v *view) claim(b *block) status {
	me := shm.Owner(0)
	s := v.join(&me)
	if s != statusOK {
		return s
	}
	swept := false
	for {
		for w := v.first(); w.cell != nil; v.next(&w) {
			word := w.cell.load()
			claimed := cellWordOf(me, cellClaimed, word.generation()+1)
			if word.state() == cellFree && w.cell.cas(word, claimed) {
				b.cell = w.cell
				b.number = w.number
				b.word = claimed
				return statusOK
			}
		}
		if !swept && v.sweepNowAndThen() {
			swept = true
			continue
		}
		s = v.moreCells()
		if s != statusOK {
			return s
		}
	}
}

// become changes the state of a block's cell.
func (b *block) become(state uint32) {
	b.word = b.word.with(b.word.owner(), state)
	mem.Store64(&b.cell.word, uint64(b.word))
}

// hold makes b a new block of this process, in state HELD: the caller writes the message there.
func (v *view) hold(b *block, size uint64, codec uint32) status {
	s := v.claim(b)
	if s != statusOK {
		return s
	}
	b.size = size
	b.codec = codec
	s = v.alloc(size, 0, &b.ref)
	if s != statusOK {
		b.cell.set(0, cellFree)
		return s
	}
	b.cell.fill(b.ref, size, codec, 0)
	b.become(cellHeld) // from here on the block is not lost with this process
	b.data = v.within(b.ref.off(), size)
	if b.data == nil {
		v.freeCell(b.cell, b.ref)
		return v.corrupt("a block", uint64(b.ref))
	}
	return statusOK
}

// takeReturned takes a message of at most `most` bytes that was leased to a process which did not acknowledge it, as LEASED
// or HELD. statusEmpty: there is none. statusTooBig: b.size says how large it is.
func (v *view) takeReturned(b *block, most uint64, state uint32) status {
	me := shm.Owner(0)
	s := v.join(&me)
	if s != statusOK {
		return s
	}
	for again := range uint32(2) {
		for w := v.first(); w.cell != nil; v.next(&w) {
			c := w.cell
			word := c.load()
			if word.state() != cellReturned {
				continue
			}
			if again != 0 { // came in after the count was cleared, and there may be more
				mem.Add32(&v.q.returned, 1)
			}
			b.size = mem.Load64(&c.size)
			b.ref = ref(mem.Load64(&c.ref))
			b.codec = mem.Load32(&c.codec)
			b.data = v.within(b.ref.off(), b.size)
			if c.load() != word { // they may not be of one message
				continue
			}
			if b.data == nil {
				return v.corrupt("the reference of a message", uint64(b.ref))
			}
			if b.size > most {
				return statusTooBig
			}
			b.word = word.with(me, state)
			if c.cas(word, b.word) {
				b.cell = c
				b.number = w.number
				return statusOK
			}
		}
		if again == 0 {
			mem.Store32(&v.q.returned, 0)
		}
	}
	return statusEmpty
}

// ---- cells of the dead

// sweepCells does what is left to do for the dead, and reports whether something was. It adds to returned how many cells became RETURNED.
func (v *view) sweepCells(me shm.Owner, returned *uint32) bool {
	known := shm.Owner(0) // the last owner that was looked at
	gone := false
	did := false
	for w := v.first(); w.cell != nil; v.next(&w) {
		word := w.cell.load()
		owner, state := word.owner(), word.state()
		if state == cellReturned && mem.Load32(&v.q.returned) == 0 {
			*returned++ // its process died before it could say so
		}
		if owner == 0 || owner == me || state != cellClaimed && state != cellHeld && state != cellLeased {
			continue
		}
		if owner != known {
			known = owner
			gone = v.gone(owner)
		}
		if !gone {
			continue
		}
		did = true
		switch state {
		case cellClaimed:
			w.cell.cas(word, word.with(0, cellFree))
		case cellLeased:
			if w.cell.cas(word, word.with(0, cellReturned)) {
				*returned++
			}
		case cellHeld:
			if me != 0 && w.cell.cas(word, word.with(me, cellHeld)) {
				v.freeCell(w.cell, ref(mem.Load64(&w.cell.ref)))
			}
		}
	}
	return did
}

// settled is what becomes of a cell of a dead holder of a lock.
func settled(state uint32, committed bool) uint32 {
	switch state {
	case cellPutting:
		if committed {
			return cellFree
		}
		return cellHeld
	case cellTaking:
		if committed {
			return cellHeld
		}
		return cellFree
	case cellLeasing:
		if committed {
			return cellLeased
		}
		return cellFree
	}
	if committed { // cellCopying
		return cellLeased
	}
	return cellHeld
}

func heldBy(lock *uint32, owner shm.Owner) bool {
	return shm.Owner(mem.Load32(lock)&0x7fffffff) == owner
}

// resolve settles the cells of a dead holder of a lock, whose commits are stores of at.
func (v *view) resolve(lock *uint32, at *uint64, putting bool, dead shm.Owner) {
	for w := v.first(); w.cell != nil; v.next(&w) {
		word := w.cell.load()
		state := word.state()
		if word.owner() != dead || state < cellPutting || state > cellCopying || (state == cellPutting) != putting {
			continue
		}
		seq := mem.LoadRelaxed32(&w.cell.seq)
		committed := int32(position(mem.Load64(at)).items()-seq) >= 0
		// Only now is it known that the position was read while it stood still.
		if !heldBy(lock, dead) {
			return
		}
		to := settled(state, committed)
		owner := dead
		if to == cellFree {
			owner = 0
		}
		w.cell.cas(word, word.with(owner, to))
	}
}

func (v *view) resolvePut(dead shm.Owner) { v.resolve(&v.q.putLock, &v.q.tail, true, dead) }

func (v *view) resolveGet(dead shm.Owner) {
	q := v.q
	at := position(mem.Load64(&q.head))
	old := ref(mem.Load64(&q.old))
	now := ref(mem.Load64(&q.headChunk[at.crossings()&1]))
	if !heldBy(&q.getLock, dead) {
		return
	}
	if old != 0 && old != now {
		v.freeBlock(old)
	}
	v.resolve(&q.getLock, &q.head, false, dead)
}
