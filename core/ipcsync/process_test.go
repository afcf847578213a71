//go:build linux

package ipcsync_test

import (
	"context"
	"errors"
	"os"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/ipcsync"
	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

func init() {
	roles["count"] = count
	roles["hold"] = hold
	roles["recover"] = recoverLocks
	roles["wait-condition"] = waitCondition
	roles["barrier"] = func(ctx context.Context, args []string) error {
		var b ipcsync.Barrier
		if err := received(args, &b); err != nil {
			return err
		}
		_, err := b.Wait(ctx)
		return err
	}
	roles["permit"] = func(ctx context.Context, args []string) error {
		var m ipcsync.Semaphore
		var e ipcsync.Event
		if err := received(args, &m, &e); err != nil {
			return err
		}
		if err := errors.Join(m.Acquire(ctx), m.Acquire(ctx), e.Set()); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

const rounds = 3000

// count adds to a number in shared memory, which only the lock keeps from going wrong.
func count(ctx context.Context, args []string) error {
	var l ipcsync.Lock
	if err := received(args, &l); err != nil {
		return err
	}
	h, err := shm.Family()
	if err != nil {
		return err
	}
	off, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	n := (*int)(h.Within(off, 8))
	for range rounds {
		if err := l.Acquire(ctx); err != nil {
			return err
		}
		*n++
		if err := l.Release(); err != nil {
			return err
		}
	}
	return nil
}

func TestLockExcludesProcesses(t *testing.T) {
	h, err := shm.Family()
	require.NoError(t, err)
	tag := h.Tag()
	off, _, err := h.Alloc(8, tag)
	require.NoError(t, err)
	defer h.Free(off, tag)
	n := (*int)(h.Within(off, uint64(unsafe.Sizeof(0))))
	*n = 0
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	var children []*start.Process
	for range 3 {
		children = append(children, spawn(t, "count", sent(t, l), strconv.FormatUint(off, 10)))
	}
	for _, p := range children {
		ended(t, p)
	}
	require.Equal(t, 3*rounds, *n)
}

// hold takes a lock, says so, and keeps it.
func hold(ctx context.Context, args []string) error {
	var l ipcsync.Lock
	var r ipcsync.RLock
	var e ipcsync.Event
	if err := received(args, &l, &r, &e); err != nil {
		return err
	}
	h := r.Holder()
	if err := errors.Join(l.Acquire(ctx), h.Acquire(ctx), h.Acquire(ctx), e.Set()); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestDeathOfAHolderIsToldUntilRecovered(t *testing.T) {
	ctx := patient(t)
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	r := must[*ipcsync.RLock](t)(ipcsync.NewRLock(nil))
	e := must[*ipcsync.Event](t)(ipcsync.NewEvent(nil))
	for range 3 {
		require.NoError(t, e.Clear())
		p := spawn(t, "hold", sent(t, l), sent(t, r), sent(t, e))
		require.NoError(t, e.Wait(ctx))
		require.Equal(t, p.PID(), state(t, l).PID)
		require.Equal(t, ipcsync.LockState{Held: true, PID: p.PID(), Levels: 2}, state(t, r))
		const waiters = 4
		told := make(chan bool, 2*waiters)
		for range waiters {
			for _, o := range []interface {
				Acquire(context.Context) error
				Release() error
			}{l, r.Holder()} {
				go func() {
					told <- o.Acquire(ctx) == ipcsync.ErrOwnerDied && o.Release() == ipcsync.ErrOwnerDied
				}()
			}
		}
		eventually(t, "two wait", asleep(2))
		killed(t, p)
		n := 0
		for range 2 * waiters {
			if <-told {
				n++
			}
		}
		require.Equal(t, 2*waiters, n, "all are told")
		_, err := l.TryAcquire()
		require.ErrorIs(t, err, ipcsync.ErrOwnerDied)
		require.Equal(t, ipcsync.LockState{Poisoned: true}, state(t, l))
		require.Equal(t, ipcsync.LockState{Poisoned: true}, state(t, r))
		// One after the other recovers them; the first makes them whole.
		for range 2 {
			h := r.Holder()
			require.NoError(t, errors.Join(l.Recover(ctx), h.Recover(ctx)))
			require.Equal(t, ipcsync.LockState{Held: true, Mine: true, PID: os.Getpid(), Levels: 1}, state(t, r))
			require.NoError(t, errors.Join(l.Release(), h.Release()))
		}
		h := r.Holder()
		require.NoError(t, errors.Join(l.Acquire(ctx), h.Acquire(ctx), l.Release(), h.Release()))
	}
	// Also to one who only tries.
	require.NoError(t, e.Clear())
	p := spawn(t, "hold", sent(t, l), sent(t, r), sent(t, e))
	require.NoError(t, e.Wait(ctx))
	killed(t, p)
	var err error
	eventually(t, "told", func() bool {
		var got bool
		got, err = l.TryAcquire()
		return got || err != nil
	})
	require.ErrorIs(t, err, ipcsync.ErrOwnerDied)
	require.NoError(t, l.Recover(ctx))
	require.PanicsWithValue(t, ipcsync.ErrOwnerDied, r.Holder().Locker().Lock)
}

// A process that dies while it recovers leaves the lock poisoned, and one whose wait at a condition ends is told too.
func TestRecovererDies(t *testing.T) {
	ctx := patient(t)
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	r := must[*ipcsync.RLock](t)(ipcsync.NewRLock(nil))
	e := must[*ipcsync.Event](t)(ipcsync.NewEvent(nil))
	c := must[*ipcsync.Condition](t)(ipcsync.NewCondition(nil))
	waiter := r.Holder()
	require.NoError(t, errors.Join(waiter.Acquire(ctx), waiter.Acquire(ctx)))
	result := run(1, func() error { return c.Wait(ctx, waiter) })
	eventually(t, "waits", func() bool { return waiting(t, c) == 1 })
	for range 3 {
		require.NoError(t, e.Clear())
		p := spawn(t, "recover", sent(t, l), sent(t, r), sent(t, e))
		require.NoError(t, e.Wait(ctx))
		killed(t, p)
		require.ErrorIs(t, l.Acquire(ctx), ipcsync.ErrOwnerDied)
		require.ErrorIs(t, r.Holder().Acquire(ctx), ipcsync.ErrOwnerDied)
	}
	require.NoError(t, c.Notify(1))
	require.ErrorIs(t, <-result, ipcsync.ErrOwnerDied)
	require.ErrorIs(t, waiter.Release(), ipcsync.ErrOwnerDied)
	require.NoError(t, waiter.Recover(ctx))
	require.Equal(t, 1, levels(t, waiter))
}

func recoverLocks(ctx context.Context, args []string) error {
	var l ipcsync.Lock
	var r ipcsync.RLock
	var e ipcsync.Event
	if err := received(args, &l, &r, &e); err != nil {
		return err
	}
	if err := errors.Join(l.Recover(ctx), r.Holder().Recover(ctx), e.Set()); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestRecoverableLock(t *testing.T) {
	ctx := patient(t)
	l := must[*ipcsync.Lock](t)(ipcsync.NewRecoverableLock(nil))
	r := must[*ipcsync.RLock](t)(ipcsync.NewRecoverableRLock(nil))
	e := must[*ipcsync.Event](t)(ipcsync.NewEvent(nil))
	p := spawn(t, "hold", sent(t, l), sent(t, r), sent(t, e))
	require.NoError(t, e.Wait(ctx))
	h := r.Holder()
	results := run(2, func() error { return errors.Join(l.Acquire(ctx), l.Release()) })
	killed(t, p)
	require.NoError(t, errors.Join(<-results, <-results))
	h.Locker().Lock()
	require.Equal(t, 1, levels(t, h))
	eventually(t, "free", func() bool { got, err := l.TryAcquire(); return got && err == nil })
}

func TestPermitsOfTheDeadComeBack(t *testing.T) {
	ctx := patient(t)
	m := must[*ipcsync.Semaphore](t)(ipcsync.NewRecoverableSemaphore(nil, 3))
	e := must[*ipcsync.Event](t)(ipcsync.NewEvent(nil))
	p := spawn(t, "permit", sent(t, m), sent(t, e))
	require.NoError(t, e.Wait(ctx))
	require.NoError(t, m.Acquire(ctx))
	results := run(2, func() error { return m.Acquire(ctx) })
	eventually(t, "one sleeps", asleep(1))
	killed(t, p)
	require.NoError(t, errors.Join(<-results, <-results))
	n, err := m.Value()
	require.NoError(t, err)
	require.Zero(t, n)
}

func waitCondition(ctx context.Context, args []string) error {
	var c ipcsync.Condition
	var l ipcsync.Lock
	if err := received(args, &c, &l); err != nil {
		return err
	}
	if err := l.Acquire(ctx); err != nil {
		return err
	}
	if err := c.Wait(ctx, &l); err != nil {
		return err
	}
	return l.Release()
}

func TestDeadWaitersSwallowNothing(t *testing.T) {
	c := must[*ipcsync.Condition](t)(ipcsync.NewCondition(nil))
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	var children []*start.Process
	for i := range 3 {
		children = append(children, spawn(t, "wait-condition", sent(t, c), sent(t, l)))
		eventually(t, "waits", func() bool { return waiting(t, c) == i+1 })
	}
	killed(t, children[0])
	require.NoError(t, l.Acquire(patient(t)))
	require.ErrorIs(t, c.Wait(soon(t, 100), l), context.DeadlineExceeded) // for some slices
	require.NoError(t, l.Release())
	require.Equal(t, 3, waiting(t, c), "waiters look at all others")
	require.NoError(t, c.Notify(1))
	ended(t, children[1])
	require.Equal(t, 1, waiting(t, c))
	require.NoError(t, c.Notify(1))
	ended(t, children[2])
}

func TestNotificationOfWhoDiedGoesOn(t *testing.T) {
	ctx := patient(t)
	c := must[*ipcsync.Condition](t)(ipcsync.NewCondition(nil))
	l := must[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	p := spawn(t, "wait-condition", sent(t, c), sent(t, l))
	eventually(t, "waits", func() bool { return waiting(t, c) == 1 })
	require.NoError(t, l.Acquire(ctx)) // the process has given it up, so it is stopped without it
	require.NoError(t, p.Signal(stop))
	eventually(t, "stopped", func() bool { return stopped(p.PID()) })
	result := run(1, func() error { return c.Wait(ctx, l) })
	eventually(t, "both wait", func() bool { return waiting(t, c) == 2 })
	require.NoError(t, c.Notify(1)) // it is the stopped one's
	require.Equal(t, 1, waiting(t, c))
	killed(t, p)
	require.NoError(t, <-result)
	require.NoError(t, l.Release())
}

func TestDeathBreaksABarrier(t *testing.T) {
	ctx := patient(t)
	b := must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(nil, 3, nil))
	p := spawn(t, "barrier", sent(t, b))
	eventually(t, "it waits", func() bool { s, err := b.State(); return err == nil && s.Waiting == 1 })
	result := run(1, func() error { _, err := b.Wait(ctx); return err })
	eventually(t, "two wait", func() bool { s, err := b.State(); return err == nil && s.Waiting == 2 })
	begin := time.Now()
	killed(t, p)
	require.ErrorIs(t, <-result, ipcsync.ErrBroken)
	require.Less(t, time.Since(begin), time.Minute)
	require.NoError(t, b.Reset())
	p, q := spawn(t, "barrier", sent(t, b)), spawn(t, "barrier", sent(t, b))
	_, err := b.Wait(ctx)
	require.NoError(t, err)
	ended(t, p)
	ended(t, q)

	// Nobody was there to see it: the last to arrive looks.
	two := must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(nil, 2, nil))
	p = spawn(t, "barrier", sent(t, two))
	eventually(t, "it waits", func() bool { s, err := two.State(); return err == nil && s.Waiting == 1 })
	killed(t, p)
	_, err = two.Wait(ctx)
	require.ErrorIs(t, err, ipcsync.ErrBroken)
}
