package shm

import (
	"context"
	"errors"
	"math"
	"os"
	"sync/atomic"
	"time"
)

// Mutex is a [Lock] in a heap: the same word, whose holder is this process, not a goroutine of it. Of the goroutines that wait for it here only
// one sleeps in the kernel.
type Mutex struct {
	word    *uint32
	heap    *Heap
	resolve func(dead Owner)
	gate    chan struct{}
}

// NewMutex returns this process's side of the lock in word; resolve as for [NewLock].
func (h *Heap) NewMutex(word *uint32, resolve func(dead Owner)) *Mutex {
	return &Mutex{word, h, resolve, make(chan struct{}, 1)}
}

// Owner returns who holds the lock, 0 if nobody does.
func (m *Mutex) Owner() Owner { return Owner(atomic.LoadUint32(m.word) &^ lockSleepers) }

// Lock takes the lock, from the dead if need be. patience, unless < 0, ends the wait too. Errors: the context's; [os.ErrDeadlineExceeded];
// [ErrNoMemory] (this process cannot be a member).
func (m *Mutex) Lock(ctx context.Context, patience time.Duration) error {
	if me := m.heap.me.Load(); me != 0 && atomic.CompareAndSwapUint32(m.word, 0, me) {
		return nil
	}
	return m.slow(ctx, patience)
}

func (m *Mutex) slow(ctx context.Context, patience time.Duration) error {
	me, err := m.heap.Join()
	if err != nil {
		return err
	}
	for range lockSpins {
		if atomic.LoadUint32(m.word) == 0 && atomic.CompareAndSwapUint32(m.word, 0, uint32(me)) {
			return nil
		}
	}
	var late <-chan time.Time
	begin := time.Now()
	if patience >= 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case m.gate <- struct{}{}:
		defer func() { <-m.gate }()
	case <-ctx.Done():
		return ctx.Err()
	case <-late:
		return os.ErrDeadlineExceeded
	}
	l := Lock{m.word, m.heap.members, me, m.resolve}
	for slice := sliceMin; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		most := slice
		if patience >= 0 {
			most = min(most, max(0, patience-time.Since(begin)))
		}
		_, err := l.wait(most, &slice)
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, ErrInterrupted) {
			return err
		}
		if patience >= 0 && time.Since(begin) >= patience {
			return os.ErrDeadlineExceeded
		}
	}
}

// Unlock gives the lock up.
func (m *Mutex) Unlock() {
	if atomic.SwapUint32(m.word, 0)&lockSleepers != 0 {
		FutexWake(m.word, 1)
	}
}

// Chime is the bell of an object with many sleepers: {seq, waiters uint32} in shared memory, waiters a flag. Unlike a [Bell] it wakes n, and counts
// nobody: a sleeper that dies costs one useless system call. capi/front/heap.h has the rules.
//
//	sleeper                                  ringer
//	seq := c.Enter()                         publish what there is
//	look; if nothing: c.Wait(seq, slice)     c.Ring(n)
//
// A wake-up that dies with its receiver is made up for by bounded sleeps, and by receivers that ring on if they leave something.
type Chime struct{ seq, waiters *uint32 }

// NewChime returns the chime of two words in shared memory; zeros are a new one.
func NewChime(seq, waiters *uint32) Chime { return Chime{seq, waiters} }

// Enter announces a sleeper and returns what to give to Wait.
func (c Chime) Enter() uint32 {
	for {
		atomic.StoreUint32(c.waiters, 1)
		seq := atomic.LoadUint32(c.seq)
		if atomic.LoadUint32(c.waiters) == 1 {
			return seq
		}
	}
}

// Wait sleeps while the chime has not been rung since Enter, at most timeout. It reports whether it was woken; false promises nothing.
func (c Chime) Wait(seq uint32, timeout time.Duration) bool {
	return !errors.Is(FutexWait(c.seq, seq, timeout), os.ErrDeadlineExceeded)
}

// Ring wakes n sleepers, if there are so many.
func (c Chime) Ring(n int) {
	if atomic.LoadUint32(c.waiters) != 0 && atomic.SwapUint32(c.waiters, 0) != 0 {
		atomic.AddUint32(c.seq, 1)
		if FutexWake(c.seq, n) >= n {
			atomic.StoreUint32(c.waiters, 1) // there may be more
		}
	}
}

// RingAll wakes all.
func (c Chime) RingAll() { c.Ring(math.MaxInt32) }

// Line is the goroutines of this process that wait for one chime: only the first sleeps in the kernel, the others behind it.
type Line struct {
	chime    Chime
	gate     chan struct{}
	patience Patience
}

// NewLine returns an empty line.
func NewLine(c Chime) *Line { return &Line{chime: c, gate: make(chan struct{}, 1)} }

// Chime returns what the line waits for.
func (l *Line) Chime() Chime { return l.chime }

// Wait returns when ready says so, and after each slice of waiting in vain, with late set, so that the caller can look after the dead; the caller looks again
// in either case. Errors: the context's.
func (l *Line) Wait(ctx context.Context, slice time.Duration, ready func() bool) (late bool, err error) {
	select {
	case l.gate <- struct{}{}:
		defer func() { <-l.gate }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	came, began := l.patience.Spin(ready)
	if came {
		return false, nil
	}
	if ctx.Done() != nil {
		// The end of the context is a ring that nobody else needs.
		rung := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(rung)
			atomic.AddUint32(l.chime.seq, 1)
			FutexWake(l.chime.seq, math.MaxInt32)
		})
		defer func() {
			if !stop() {
				<-rung // afterwards the memory may be gone
			}
		}()
	}
	for {
		seq := l.chime.Enter()
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if ready() {
			return false, nil
		}
		if !l.chime.Wait(seq, slice) {
			return true, nil
		}
		l.patience.Slept(began)
	}
}
