package ipcsync

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/polyproc/polyproc/shm"
)

// Condition is a place where processes wait until another says that something has changed. It knows no lock: each call of Wait says which. Who waits first is notified
// first; a notification is given to one who lives, and if that one dies before it got it, to the next. The methods may be called
// from several goroutines at once; each that waits takes a thread.
type Condition struct{ base }

// NewCondition makes a condition. h and errors as for [NewLock].
func NewCondition(h *shm.Heap) (*Condition, error) {
	c := &Condition{}
	if err := c.make(h, shm.KindCondition, sizeCondition, 0, nil); err != nil {
		return nil, err
	}
	return c, nil
}

// UnmarshalBinary receives a reference, as [Lock.UnmarshalBinary] does.
func (c *Condition) UnmarshalBinary(data []byte) error {
	return c.receive(data, shm.KindCondition, 0, 0)
}

// Wait gives up the lock, all levels of it, waits to be notified, and takes the lock back as it was: whatever it returns but [ErrNotHeld], [ErrOwnerDied], [ErrClosed] and
// [shm.ErrCorrupt], the lock is held again, however long that took. As always with conditions, look again whether what was
// waited for is so. Errors: [ErrNotHeld] (this process, or this Holder, does not have the lock), the context's (not
// notified), [ErrOwnerDied] (a holder has died meanwhile: the lock is not held and must not be released; Recover acquires it, with
// one level), [ErrClosed], [shm.ErrNoMemory], [shm.ErrCorrupt].
func (c *Condition) Wait(ctx context.Context, lock Held) error {
	s, err := c.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	l, thread, err := lock.held()
	if err != nil {
		return err
	}
	defer l.leave()
	levels := l.levels(thread)
	if levels == 0 {
		return ErrNotHeld
	}
	cell, waiting, err := s.enterCondition()
	if err != nil {
		return err
	}
	if err = l.openLock(); err != nil {
		s.leaveCondition(cell, waiting)
		return err
	}
	err = s.sleepInCell(ctx, cell, waiting)
	if err != nil {
		s.leaveCondition(cell, waiting)
	}
	if again := l.take(context.Background(), taking{thread: thread, levels: levels}); again != nil {
		return again
	}
	return err
}

// WaitFor waits, with the lock held, until ready says so. Errors as Wait's.
func (c *Condition) WaitFor(ctx context.Context, lock Held, ready func() bool) error {
	for !ready() {
		if err := c.Wait(ctx, lock); err != nil {
			if ended(err) && ready() {
				return nil
			}
			return err
		}
	}
	return nil
}

// Notify wakes the n that have waited longest. The caller need not hold the lock, but what it has changed must be changed under it.
func (c *Condition) Notify(n int) error { return c.notify(uint64(max(n, 0))) }

// NotifyAll wakes all who wait.
func (c *Condition) NotifyAll() error { return c.notify(1 << 63) }

func (c *Condition) notify(n uint64) error {
	s, err := c.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	if _, err = s.heap.Join(); err != nil { // a notification that is passed on needs a name
		return fmt.Errorf("ipcsync: %w", err)
	}
	s.notify(n)
	return nil
}

// Waiting returns how many wait at this moment. Errors: [ErrClosed].
func (c *Condition) Waiting() (int, error) {
	s, err := c.enter()
	if err != nil {
		return 0, err
	}
	defer s.leave()
	n := 0
	s.cells(func(cell *uint64) bool {
		if v := atomic.LoadUint64(cell); v != 0 && v&notified == 0 {
			n++
		}
		return true
	})
	return n, nil
}

func (s *shared) condition() *conditionHead { return (*conditionHead)(s.object.Pointer()) }

// cells calls f for each cell until it returns false. If it has called it for all, more is where the offset of the next block of cells would be, and what is
// there: 0, or what cannot be.
func (s *shared) cells(f func(cell *uint64) bool) (more *uint64, is uint64, blocks int) {
	h := s.condition()
	cells, more := h.cells[:], &h.more
	for {
		for i := range cells {
			if !f(&cells[i]) {
				return nil, 0, blocks
			}
		}
		off := atomic.LoadUint64(more)
		block := moreAt(s.heap, off)
		if block == nil || blocks == moreMost {
			return more, off, blocks
		}
		blocks++
		cells, more = block.cells[:], &block.more
	}
}

func moreAt(h *shm.Heap, off uint64) *moreCells {
	if off == 0 || off%128 != 0 {
		return nil
	}
	return (*moreCells)(h.Within(off, sizeMore))
}

// enterCondition takes a cell; waiting is what it holds until it is notified.
func (s *shared) enterCondition() (cell *uint64, waiting uint64, err error) {
	h := s.condition()
	me, err := s.heap.Join()
	if err != nil {
		return nil, 0, fmt.Errorf("ipcsync: %w", err)
	}
	ticket := (atomic.AddUint32(&h.tickets, 1) - 1) & ticketMask
	waiting = uint64(me)<<32 | uint64(ticket)<<1
	for swept := false; ; swept = true {
		more, is, blocks := s.cells(func(c *uint64) bool {
			if atomic.LoadUint64(c) == 0 && atomic.CompareAndSwapUint64(c, 0, waiting) {
				cell = c
			}
			return cell == nil
		})
		switch {
		case cell != nil:
			return cell, waiting, nil
		case blocks == moreMost:
			return nil, 0, fmt.Errorf("ipcsync: %w: too many wait for a condition", shm.ErrNoMemory)
		case is != 0:
			return nil, 0, s.corrupt("condition", is)
		case !swept:
			s.sweepCondition(true)
		default:
			off, _, err := s.heap.Alloc(sizeMore, h.object.generation)
			if err != nil {
				return nil, 0, fmt.Errorf("ipcsync: %w", err)
			}
			*moreAt(s.heap, off) = moreCells{}
			if !atomic.CompareAndSwapUint64(more, 0, off) {
				s.heap.Free(off, h.object.generation)
			}
		}
	}
}

func (s *shared) sleepInCell(ctx context.Context, cell *uint64, waiting uint64) error {
	p := s.pace(ctx, nil)
	p.own = true
	defer p.end()
	for {
		switch v := atomic.LoadUint64(cell); v {
		case waiting | notified:
			atomic.StoreUint64(cell, 0)
			return nil
		case waiting:
		default:
			return s.corrupt("condition", v)
		}
		late, err := p.sleep(low(cell), uint32(waiting))
		if late && err == nil {
			s.sweepCondition(false)
		}
		if ended(err) && !atomic.CompareAndSwapUint64(cell, waiting, 0) {
			continue // it was notified after all
		}
		if err != nil {
			return err
		}
	}
}

// leaveCondition gives the place up, if that was not done; a notification that came to it goes on to the next.
func (s *shared) leaveCondition(cell *uint64, waiting uint64) {
	if atomic.CompareAndSwapUint64(cell, waiting, 0) || atomic.LoadUint64(cell) != waiting|notified {
		return
	}
	s.notify(1)
	atomic.StoreUint64(cell, 0)
}

// sweepCondition passes on the notifications that the dead did not live to take; all: it frees their waiting cells too, which costs a long look at every
// waiter's process, and is nothing for waiters: each would look at all others.
func (s *shared) sweepCondition(all bool) {
	known := verdicts{}
	s.cells(func(cell *uint64) bool {
		v := atomic.LoadUint64(cell)
		if v == 0 || (!all && v&notified == 0) || !known.gone(s.heap, ownerOf(v)) {
			return true
		}
		if v&notified == 0 {
			atomic.CompareAndSwapUint64(cell, v, 0)
		} else if atomic.CompareAndSwapUint64(cell, v, uint64(s.heap.Me())<<32|v&0xffffffff) {
			s.notify(1)
			atomic.StoreUint64(cell, 0)
		}
		return true
	})
}

// notify wakes the n that have waited longest.
func (s *shared) notify(n uint64) {
	alive := s.heap.Me()
	one := func(cell *uint64, v uint64) bool {
		if owner := ownerOf(v); owner != s.heap.Me() && owner != alive {
			if departed(s.heap, owner) {
				atomic.CompareAndSwapUint64(cell, v, 0)
				return false
			}
			alive = owner
		}
		if !atomic.CompareAndSwapUint64(cell, v, v|notified) {
			return false
		}
		shm.FutexWake(low(cell), 1)
		return true
	}
	if n >= valueMost {
		s.cells(func(cell *uint64) bool {
			if v := atomic.LoadUint64(cell); v != 0 && v&notified == 0 {
				one(cell, v)
			}
			return true
		})
		return
	}
	end := atomic.LoadUint32(&s.condition().tickets)
	for n > 0 {
		var oldest *uint64
		var found uint64
		var age uint32
		s.cells(func(cell *uint64) bool {
			v := atomic.LoadUint64(cell)
			its := (end - uint32(v)>>1) & ticketMask
			// age 0 is a ticket that was drawn after the look at tickets, or no ticket.
			if v != 0 && v&notified == 0 && its > age && its <= ticketMask/2 {
				oldest, found, age = cell, v, its
			}
			return true
		})
		if oldest == nil {
			return
		}
		if one(oldest, found) {
			n--
		}
	}
}

func destroyCondition(h *shm.Heap, off uint64) {
	c := (*conditionHead)(h.Within(off, sizeCondition))
	if c == nil {
		return
	}
	next := atomic.LoadUint64(&c.more)
	for range moreMost {
		block := moreAt(h, next)
		if block == nil {
			return
		}
		here := next
		next = atomic.LoadUint64(&block.more)
		if !h.Free(here, c.object.generation) {
			return
		}
	}
}
