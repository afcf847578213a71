package queue

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/polyproc/polyproc/shm"
)

// view is a queue in its heap. A word of it is read once, atomically, and its checked copy is used: another process may change it at any time.
type view struct {
	heap  *shm.Heap
	q     *head
	swept atomic.Int64
}

func corrupt(what string, value uint64) error {
	return fmt.Errorf("queue: %s is %#x: %w", what, value, shm.ErrCorrupt)
}

func (v *view) free(r ref) bool { return r != 0 && v.heap.Free(r.off(), r.tag()) }

func (c *cell) load() cellWord { return cellWord(atomic.LoadUint64(&c.word)) }

func (c *cell) cas(from, to cellWord) bool {
	return atomic.CompareAndSwapUint64(&c.word, uint64(from), uint64(to))
}

// set changes a cell that is this process's.
func (c *cell) set(owner shm.Owner, state uint32) {
	atomic.StoreUint64(&c.word, uint64(c.load().with(owner, state)))
}

func (c *cell) block() ref { return ref(atomic.LoadUint64(&c.ref)) }

func (c *cell) fill(r ref, size uint64, codec, seq uint32) {
	atomic.StoreUint64(&c.ref, uint64(r))
	atomic.StoreUint64(&c.size, size)
	atomic.StoreUint32(&c.codec, codec)
	atomic.StoreUint32(&c.seq, seq)
}

// tableAt checks a reference to a table: nil if there is none behind it.
func (v *view) tableAt(word uint64) *table {
	if word == 0 {
		return nil
	}
	t := (*table)(v.heap.Within(ref(word).off(), sizeTable))
	if t == nil || atomic.LoadUint64(&t.self) != word {
		return nil
	}
	return t
}

// each calls f for every cell until that returns false. A chain that is corrupt ends.
func (v *view) each(f func(c *cell) bool) {
	t := v.tableAt(atomic.LoadUint64(&v.q.cells))
	for n := 0; t != nil && n < tablesMost; n++ {
		for i := range t.cells {
			if !f(&t.cells[i]) {
				return
			}
		}
		t = v.tableAt(atomic.LoadUint64(&t.next))
	}
}

// count counts the cells in a state.
func (v *view) count(state uint32) (n int) {
	v.each(func(c *cell) bool {
		if c.load().state() == state {
			n++
		}
		return true
	})
	return n
}

// inUse reports whether any cell is.
func (v *view) inUse() (any bool) {
	v.each(func(c *cell) bool {
		any = c.load().state() != cellFree
		return !any
	})
	return any
}

// freeCell gives up the block of a cell that is this process's, and the cell.
func (v *view) freeCell(c *cell, block ref) {
	v.free(block)
	c.set(0, cellFree)
}

// sweepNowAndThen sweeps unless that was done a moment ago.
func (v *view) sweepNowAndThen() bool {
	return atomic.LoadUint64(&v.q.cells) != 0 && time.Now().UnixNano()-v.swept.Load() >= int64(sweepPause) && v.sweep()
}

// sweep does what is left to do for the dead. Reports whether something was.
func (v *view) sweep() (did bool) {
	v.swept.Store(time.Now().UnixNano())
	me := v.heap.Me()
	gone := map[shm.Owner]bool{}
	returned := 0
	v.each(func(c *cell) bool {
		word := c.load()
		owner, state := word.owner(), word.state()
		if state == cellReturned && atomic.LoadUint32(&v.q.returned) == 0 {
			returned++ // by one who died before he could say so
		}
		if owner == 0 || owner == me || (state != cellClaimed && state != cellHeld && state != cellLeased) {
			return true
		}
		dead, known := gone[owner]
		if !known {
			dead = v.heap.Gone(owner)
			gone[owner] = dead
		}
		if !dead {
			return true
		}
		did = true
		switch state {
		case cellClaimed:
			c.cas(word, word.with(0, cellFree))
		case cellLeased:
			if c.cas(word, word.with(0, cellReturned)) {
				returned++
			}
		case cellHeld:
			if me != 0 && c.cas(word, word.with(me, cellHeld)) {
				v.freeCell(c, c.block())
			}
		}
		return true
	})
	if returned > 0 {
		v.returned(returned)
	}
	return did
}

// returned tells that n cells have become RETURNED.
func (v *view) returned(n int) {
	atomic.AddUint32(&v.q.returned, 1)
	v.q.notEmpty.chime().Ring(n)
}

// alloc returns a block of at least size bytes.
func (v *view) alloc(size uint64, class uint32) (ref, error) {
	tag := v.heap.Tag()
	off, _, err := v.heap.Alloc(size, tag)
	if errors.Is(err, shm.ErrNoMemory) && v.sweep() { // what the dead have held
		off, _, err = v.heap.Alloc(size, tag)
	}
	if err != nil {
		return 0, fmt.Errorf("queue: %w", err)
	}
	return refOf(off, class, tag), nil
}

// moreCells puts another table at the end of the chain, unless somebody else does.
func (v *view) moreCells() error {
	r, err := v.alloc(sizeTable, 0)
	if err != nil {
		return err
	}
	t := (*table)(v.heap.Within(r.off(), sizeTable))
	*t = table{self: uint64(r)}
	link := &v.q.cells
	for range tablesMost {
		if atomic.CompareAndSwapUint64(link, 0, uint64(r)) {
			return nil
		}
		there := v.tableAt(atomic.LoadUint64(link))
		if there == nil {
			break
		}
		link = &there.next
	}
	v.free(r)
	return corrupt("a table of cells", atomic.LoadUint64(link))
}

// claim returns a cell of this process, in state CLAIMED.
func (v *view) claim() (*cell, error) {
	me, err := v.heap.Join()
	if err != nil {
		return nil, err
	}
	for swept := false; ; {
		var found *cell
		v.each(func(c *cell) bool {
			word := c.load()
			if word.state() == cellFree && c.cas(word, cellWordOf(me, cellClaimed, word.generation()+1)) {
				found = c
			}
			return found == nil
		})
		if found != nil {
			return found, nil
		}
		if !swept && v.sweepNowAndThen() {
			swept = true
			continue
		}
		if err := v.moreCells(); err != nil {
			return nil, err
		}
	}
}

// What becomes of the cells of a dead holder of a lock: not committed, committed.
var settled = map[uint32][2]uint32{
	cellPutting: {cellHeld, cellFree},
	cellTaking:  {cellFree, cellHeld},
	cellLeasing: {cellFree, cellLeased},
	cellCopying: {cellHeld, cellLeased},
}

// resolve settles the cells of a dead holder of the lock in word, whose commits are stores of at.
func (v *view) resolve(word *uint32, at *uint64, putting bool, dead shm.Owner) {
	v.each(func(c *cell) bool {
		is := c.load()
		to, ok := settled[is.state()]
		if is.owner() != dead || !ok || (is.state() == cellPutting) != putting {
			return true
		}
		committed := int32(position(atomic.LoadUint64(at)).items()-atomic.LoadUint32(&c.seq)) >= 0
		// Only now is it known that the position was read while it stood still.
		if !heldBy(word, dead) {
			return false
		}
		state := to[0]
		if committed {
			state = to[1]
		}
		owner := dead
		if state == cellFree {
			owner = 0
		}
		c.cas(is, is.with(owner, state))
		return true
	})
}

func heldBy(word *uint32, o shm.Owner) bool {
	return shm.Owner(atomic.LoadUint32(word)&0x7fffffff) == o
}

func (v *view) resolvePut(dead shm.Owner) { v.resolve(&v.q.putLock, &v.q.tail, true, dead) }

func (v *view) resolveGet(dead shm.Owner) {
	q := v.q
	at, old := position(atomic.LoadUint64(&q.head)), ref(atomic.LoadUint64(&q.old))
	now := ref(atomic.LoadUint64(&q.headChunk[at.crossings()&1]))
	if !heldBy(&q.getLock, dead) {
		return
	}
	if old != 0 && old != now {
		v.free(old)
	}
	v.resolve(&q.getLock, &q.head, false, dead)
}

const (
	sweepPause   = 100 * time.Millisecond
	leaseSlice   = 100 * time.Millisecond
	slice        = sliceMillis * time.Millisecond
	lockPatience = 50 * time.Millisecond
	closePatient = 5 * time.Second
	getsPerSweep = 256
)
