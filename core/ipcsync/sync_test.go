//go:build linux

package ipcsync_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/ipcsync"
	"github.com/polyproc/polyproc/shm"
)

func TestLockExcludesGoroutines(t *testing.T) {
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(newHeap(t)))
	ctx := patient(t)
	const each, goroutines = 2000, 8
	count := 0
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range each {
				if err := l.Acquire(ctx); err != nil {
					t.Error(err)
					return
				}
				count++
				if err := l.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, each*goroutines, count)
	require.Equal(t, ipcsync.LockState{}, state(t, l))
}

func TestLock(t *testing.T) {
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(newHeap(t)))
	ctx := patient(t)
	require.ErrorIs(t, l.Release(), ipcsync.ErrNotHeld)
	require.NoError(t, l.Acquire(ctx))
	require.Equal(t, ipcsync.LockState{Held: true, Mine: true, PID: os.Getpid(), Levels: 1}, state(t, l))
	got, err := l.TryAcquire()
	require.NoError(t, err)
	require.False(t, got)
	require.ErrorIs(t, l.Acquire(soon(t, 20)), context.DeadlineExceeded)
	canceled, cancel := context.WithCancel(ctx)
	result := make(chan error, 1)
	go func() { result <- l.Acquire(canceled) }()
	eventually(t, "asleep", asleep(1))
	cancel()
	require.ErrorIs(t, <-result, context.Canceled)
	go func() { result <- l.Acquire(ctx) }()
	require.NoError(t, l.Release())
	require.NoError(t, <-result)
	require.NoError(t, l.Release())
	got, err = l.TryAcquire()
	require.NoError(t, err)
	require.True(t, got)
	locker := l.Locker()
	locker.Unlock()
	locker.Lock()
	require.True(t, state(t, l).Held)
	locker.Unlock()
	require.PanicsWithError(t, ipcsync.ErrNotHeld.Error(), locker.Unlock)
}

func TestHolders(t *testing.T) {
	l := must[*ipcsync.RLock](t)(ipcsync.NewRLock(newHeap(t)))
	ctx := patient(t)
	a, b := l.Holder(), l.Holder()
	for i := range 3 {
		require.NoError(t, a.Acquire(ctx))
		require.Equal(t, i+1, levels(t, a))
	}
	require.Equal(t, 3, state(t, l).Levels)
	require.Zero(t, levels(t, b))
	got, err := b.TryAcquire()
	require.NoError(t, err)
	require.False(t, got)
	require.ErrorIs(t, b.Release(), ipcsync.ErrNotHeld)
	for range 3 {
		require.NoError(t, a.Release())
	}
	require.ErrorIs(t, a.Release(), ipcsync.ErrNotHeld)
	got, err = b.TryAcquire()
	require.NoError(t, err)
	require.True(t, got)
	b.Locker().Unlock()
}

func TestReferencesSayWhatTheyAre(t *testing.T) {
	h := newHeap(t)
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(h))
	ref, err := l.MarshalBinary()
	require.NoError(t, err)
	var r ipcsync.RLock
	require.ErrorIs(t, r.UnmarshalBinary(ref), shm.ErrInvalid)
	require.ErrorIs(t, new(ipcsync.Event).UnmarshalBinary(ref), shm.ErrInvalid)
	require.ErrorIs(t, new(ipcsync.Lock).UnmarshalBinary(ref[1:]), shm.ErrInvalid)
	var same ipcsync.Lock
	require.NoError(t, same.UnmarshalBinary(ref))
	require.NoError(t, l.Acquire(patient(t)))
	require.NoError(t, same.Release())
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Release(), ipcsync.ErrClosed)
	require.ErrorIs(t, l.Release(), os.ErrClosed)
	require.NoError(t, same.Acquire(patient(t)), "another has it still")
	require.ErrorIs(t, new(ipcsync.Lock).Acquire(patient(t)), ipcsync.ErrClosed, "the zero value is no lock")
	require.NoError(t, same.Close())
	require.NoError(t, same.Close())
	blocks, _ := h.InUse()
	require.Zero(t, blocks)
}

func TestSemaphore(t *testing.T) {
	h := newHeap(t)
	ctx := patient(t)
	value := func(m *ipcsync.Semaphore) int {
		n, err := m.Value()
		require.NoError(t, err)
		return n
	}
	for name, make := range map[string]func(*shm.Heap, int) (*ipcsync.Semaphore, error){
		"plain": ipcsync.NewSemaphore, "bounded": ipcsync.NewBoundedSemaphore, "recoverable": ipcsync.NewRecoverableSemaphore,
	} {
		t.Run(name, func(t *testing.T) {
			m := must[*ipcsync.Semaphore](t)(make(h, 3))
			require.Equal(t, 3, value(m))
			for range 3 {
				require.NoError(t, m.Acquire(ctx))
			}
			require.Zero(t, value(m))
			got, err := m.TryAcquire()
			require.NoError(t, err)
			require.False(t, got)
			require.ErrorIs(t, m.Acquire(soon(t, 20)), context.DeadlineExceeded)
			results := run(5, func() error { return m.Acquire(ctx) })
			for range 5 {
				require.NoError(t, m.Release())
				require.NoError(t, <-results)
			}
			for range 3 {
				require.NoError(t, m.Release())
			}
			if name == "plain" {
				require.NoError(t, m.Release())
				require.Equal(t, 4, value(m))
			} else {
				require.ErrorIs(t, m.Release(), ipcsync.ErrTooMany)
				require.Equal(t, 3, value(m))
			}
			_, err = make(h, -1)
			require.ErrorIs(t, err, shm.ErrInvalid)
		})
	}
}

// run starts n goroutines, and returns what they have returned.
func run(n int, f func() error) <-chan error {
	results := make(chan error, n)
	for range n {
		go func() { results <- f() }()
	}
	return results
}

func TestEvent(t *testing.T) {
	e := must[*ipcsync.Event](t)(ipcsync.NewEvent(newHeap(t)))
	ctx := patient(t)
	set, err := e.IsSet()
	require.NoError(t, err)
	require.False(t, set)
	require.ErrorIs(t, e.Wait(soon(t, 20)), context.DeadlineExceeded)
	results := run(10, func() error { return e.Wait(ctx) })
	eventually(t, "ten wait", asleep(10))
	require.NoError(t, e.Set())
	require.NoError(t, e.Clear())
	for range 10 {
		require.NoError(t, <-results, "who waited before the set goes, whatever comes after")
	}
	require.ErrorIs(t, e.Wait(soon(t, 20)), context.DeadlineExceeded)
	require.NoError(t, e.Set())
	require.NoError(t, e.Set())
	set, err = e.IsSet()
	require.NoError(t, err)
	require.True(t, set)
	require.NoError(t, e.Wait(ctx))
}

func TestConditionIsFirstInFirstOut(t *testing.T) {
	h := newHeap(t)
	c := must[*ipcsync.Condition](t)(ipcsync.NewCondition(h))
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(h))
	ctx := patient(t)
	require.ErrorIs(t, c.Wait(ctx, l), ipcsync.ErrNotHeld)
	const waiters = 20
	order := make(chan int, waiters)
	for i := range waiters {
		go func() {
			_ = l.Acquire(ctx)
			if err := c.Wait(ctx, l); err != nil {
				t.Error(err)
			}
			order <- i
			_ = l.Release()
		}()
		eventually(t, fmt.Sprint(i, " waits"), func() bool { return waiting(t, c) == i+1 })
	}
	for i := range waiters / 2 {
		require.NoError(t, c.Notify(1))
		require.Equal(t, i, <-order)
	}
	require.NoError(t, c.Notify(0))
	require.Equal(t, waiters/2, waiting(t, c))
	require.NoError(t, c.NotifyAll())
	for range waiters / 2 {
		<-order
	}
	require.NoError(t, c.Notify(5), "nobody is there")
	require.NoError(t, l.Acquire(ctx))
	require.ErrorIs(t, c.Wait(soon(t, 20), l), context.DeadlineExceeded)
	require.NoError(t, l.Release(), "held again")
}

func TestConditionWithManyWaiters(t *testing.T) {
	h := newHeap(t)
	c := must[*ipcsync.Condition](t)(ipcsync.NewCondition(h))
	r := must[*ipcsync.RLock](t)(ipcsync.NewRLock(h))
	ctx := patient(t)
	const waiters = 150 // more than the object has cells
	ready := false
	results := run(waiters, func() error {
		held := r.Holder()
		for range 2 {
			if err := held.Acquire(ctx); err != nil {
				return err
			}
		}
		if err := c.WaitFor(ctx, held, func() bool { return ready }); err != nil {
			return err
		}
		if n, err := held.Levels(); n != 2 || err != nil {
			return errors.New("not all levels came back")
		}
		return errors.Join(held.Release(), held.Release())
	})
	eventually(t, "all wait", func() bool { return waiting(t, c) == waiters })
	locker := r.Holder().Locker()
	locker.Lock()
	ready = true
	require.NoError(t, c.NotifyAll())
	locker.Unlock()
	for range waiters {
		require.NoError(t, <-results)
	}
	require.NoError(t, c.Close())
	require.NoError(t, r.Close())
	blocks, _ := h.InUse()
	require.Zero(t, blocks)
}

func TestBarrier(t *testing.T) {
	const parties, rounds = 5, 40
	runs := 0
	b := must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(newHeap(t), parties, func() error { runs++; return nil }))
	ctx := patient(t)
	seen := make([][parties]int, rounds)
	results := make(chan error, parties)
	for range parties {
		go func() {
			for round := range rounds {
				i, err := b.Wait(ctx)
				if err != nil {
					results <- err
					return
				}
				seen[round][i]++
				if runs < round+1 {
					results <- errors.New("the action was not run before")
					return
				}
			}
			results <- nil
		}()
	}
	for range parties {
		require.NoError(t, <-results)
	}
	require.Equal(t, rounds, runs)
	for _, round := range seen {
		require.Equal(t, [parties]int{1, 1, 1, 1, 1}, round)
	}
}

func TestBarrierBreaks(t *testing.T) {
	h := newHeap(t)
	ctx := patient(t)
	b := must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(h, 3, nil))
	wait := func() error { _, err := b.Wait(ctx); return err }
	waiting := func(n int) func() bool {
		return func() bool {
			s, err := b.State()
			return err == nil && s.Waiting == n
		}
	}
	results := run(1, wait)
	eventually(t, "one waits", waiting(1))
	_, err := b.Wait(soon(t, 20))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, <-results, ipcsync.ErrBroken)
	require.ErrorIs(t, wait(), ipcsync.ErrBroken)
	require.NoError(t, b.Reset())
	results = run(2, wait)
	eventually(t, "two wait", waiting(2))
	require.NoError(t, b.Reset())
	for range 2 {
		require.ErrorIs(t, <-results, ipcsync.ErrBroken)
	}
	results = run(2, wait)
	eventually(t, "two wait", waiting(2))
	require.NoError(t, b.Abort())
	s, err := b.State()
	require.NoError(t, err)
	require.Equal(t, ipcsync.BarrierState{Parties: 3, Broken: true}, s)
	for range 2 {
		require.ErrorIs(t, <-results, ipcsync.ErrBroken)
	}
	failed := errors.New("no")
	bad := must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(h, 2, func() error { return failed }))
	results = run(2, func() error { _, err := bad.Wait(ctx); return err })
	require.ErrorIs(t, errors.Join(<-results, <-results), failed)
	s, err = bad.State()
	require.NoError(t, err)
	require.True(t, s.Broken)
	_, err = ipcsync.NewBarrier(h, 0, nil)
	require.ErrorIs(t, err, shm.ErrInvalid)
}

func TestFreeEndsWhoWaits(t *testing.T) {
	h := newHeap(t)
	ctx := patient(t)
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(h))
	m := must[*ipcsync.Semaphore](t)(ipcsync.NewRecoverableSemaphore(h, 1))
	e := must[*ipcsync.Event](t)(ipcsync.NewEvent(h))
	b := must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(h, 2, nil))
	c := must[*ipcsync.Condition](t)(ipcsync.NewCondition(h))
	other := must[*ipcsync.Lock](t)(ipcsync.NewLock(h))
	require.NoError(t, l.Acquire(ctx))
	require.NoError(t, m.Acquire(ctx))
	require.NoError(t, other.Acquire(ctx))
	for name, o := range map[string]struct {
		wait func() error
		free func() error
	}{
		"lock":      {func() error { return l.Acquire(ctx) }, l.Close},
		"semaphore": {func() error { return m.Acquire(ctx) }, m.Close},
		"event":     {func() error { return e.Wait(ctx) }, e.Close},
		"barrier":   {func() error { _, err := b.Wait(ctx); return err }, b.Close},
		"condition": {func() error { return c.Wait(ctx, other) }, c.Close},
	} {
		t.Run(name, func(t *testing.T) {
			results := run(1, o.wait)
			eventually(t, "asleep", asleep(1))
			begin := time.Now()
			require.NoError(t, o.free())
			require.ErrorIs(t, <-results, ipcsync.ErrClosed)
			require.Less(t, time.Since(begin), time.Minute)
		})
	}
	require.NoError(t, other.Release())
}

func TestTenThousand(t *testing.T) {
	h := newHeap(t)
	before := descriptors(t)
	var handles []io.Closer
	for range 5000 {
		l, err := ipcsync.NewLock(h)
		require.NoError(t, err)
		e, err := ipcsync.NewEvent(h)
		require.NoError(t, err)
		handles = append(handles, l, e)
	}
	require.Equal(t, before, descriptors(t))
	for _, h := range handles {
		require.NoError(t, h.Close())
	}
	blocks, _ := h.InUse()
	require.Zero(t, blocks)
}

func descriptors(t *testing.T) int {
	names, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(names)
}

func BenchmarkLock(b *testing.B) {
	l := must[*ipcsync.Lock](b)(ipcsync.NewLock(newHeap(b)))
	ctx := context.Background()
	for b.Loop() {
		_ = l.Acquire(ctx)
		_ = l.Release()
	}
}

func state(t testing.TB, l interface {
	State() (ipcsync.LockState, error)
}) ipcsync.LockState {
	t.Helper()
	s, err := l.State()
	require.NoError(t, err)
	return s
}

func levels(t testing.TB, h *ipcsync.Holder) int {
	t.Helper()
	n, err := h.Levels()
	require.NoError(t, err)
	return n
}

func waiting(t testing.TB, c *ipcsync.Condition) int {
	t.Helper()
	n, err := c.Waiting()
	require.NoError(t, err)
	return n
}

func TestSemaphoreThatNobodyCanHave(t *testing.T) {
	_, err := ipcsync.NewBoundedSemaphore(nil, 0)
	require.ErrorIs(t, err, shm.ErrInvalid)
}
