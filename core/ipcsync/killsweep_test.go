//go:build linux && amd64 && !race

package ipcsync_test

import (
	"bytes"
	"context"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/internal/stepper"
	"github.com/polyproc/polyproc/core/ipcsync"
	"github.com/polyproc/polyproc/shm"
)

// The kill sweep: what if a process is killed at any instruction of an operation? What survivors find is what lies in shared memory, so the instructions that count are those that change
// the object: a child is single-stepped through the operation, and killed after the first change, another one after the second, and so on, the last after the operation. Each time we
// go on with the object, and must find what holds if the operation has happened, or what holds if it has not.

var over = func() context.Context { // ends before it begins: nothing waits
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// things is an object of each kind.
type things struct {
	l *ipcsync.Lock
	r *ipcsync.RLock
	m *ipcsync.Semaphore
	n *ipcsync.Semaphore // recoverable
	c *ipcsync.Condition
	e *ipcsync.Event
	b *ipcsync.Barrier // two parties
	a *ipcsync.Barrier // one
}

type step struct {
	name string
	what int                       // which of the things is looked at
	mine func(o *things) error     // before it, in the test
	its  func(o *things) error     // before it, in the child
	op   func(o *things) error     // in the child
	then func(*testing.T, *things) // in the test
}

func lockWorks(t *testing.T, o *things) {
	ctx := patient(t)
	held := state(t, o.l).Held || state(t, o.l).Poisoned
	for range 3 {
		err := o.l.Acquire(ctx)
		require.Equal(t, held, err == ipcsync.ErrOwnerDied, "told of a death, each time, and only then: %v", err)
		if err == nil {
			require.NoError(t, o.l.Release())
		}
	}
	require.NoError(t, o.l.Recover(ctx))
	require.NoError(t, o.l.Release())
	require.NoError(t, o.l.Acquire(ctx))
	require.NoError(t, o.l.Release())
}

func rlockWorks(t *testing.T, o *things) {
	ctx := patient(t)
	held, h := state(t, o.r).Held || state(t, o.r).Poisoned, o.r.Holder()
	if held {
		require.ErrorIs(t, h.Acquire(ctx), ipcsync.ErrOwnerDied)
		require.ErrorIs(t, h.Release(), ipcsync.ErrOwnerDied)
		require.ErrorIs(t, o.r.Holder().Acquire(ctx), ipcsync.ErrOwnerDied)
		require.NoError(t, h.Recover(ctx))
	} else {
		require.NoError(t, h.Acquire(ctx))
	}
	require.Equal(t, 1, levels(t, h))
	require.NoError(t, h.Release())
}

func value(t *testing.T, m *ipcsync.Semaphore) int {
	n, err := m.Value()
	require.NoError(t, err)
	return n
}

func conditionWorks(t *testing.T, o *things) {
	before := waiting(t, o.c) // the dead one may be there
	ctx := patient(t)
	result := run(1, func() error {
		if err := o.l.Acquire(ctx); err != nil {
			return err
		}
		return errors.Join(o.c.Wait(ctx, o.l), o.l.Release())
	})
	eventually(t, "waits", func() bool { return waiting(t, o.c) == before+1 })
	require.NoError(t, o.c.Notify(1))
	require.NoError(t, <-result)
}

var steps = []step{
	{name: "lock acquire", what: 0, op: func(o *things) error { return o.l.Acquire(over) }, then: lockWorks},
	{name: "lock release", what: 0, its: func(o *things) error { return o.l.Acquire(over) }, op: func(o *things) error { return o.l.Release() }, then: lockWorks},
	{name: "lock in vain", what: 0, mine: func(o *things) error { return o.l.Acquire(over) }, op: func(o *things) error { _ = o.l.Acquire(over); return nil },
		then: func(t *testing.T, o *things) {
			require.NoError(t, o.l.Release())
			lockWorks(t, o)
		}},
	{name: "rlock", what: 1, op: func(o *things) error {
		h := o.r.Holder()
		return errors.Join(h.Acquire(over), h.Acquire(over), h.Release(), h.Release())
	}, then: rlockWorks},
	{name: "lock recover", what: 0, mine: func(o *things) error { ipcsync.Poison(o.l); return nil },
		op: func(o *things) error { return errors.Join(o.l.Recover(over), o.l.Release()) }, then: lockWorks},
	{name: "rlock recover", what: 1, mine: func(o *things) error { ipcsync.Poison(o.r); return nil },
		op: func(o *things) error {
			h := o.r.Holder()
			return errors.Join(h.Recover(over), h.Recover(over), h.Release(), h.Release())
		}, then: rlockWorks},
	{name: "lock of the dead", what: 0, mine: func(o *things) error { ipcsync.HoldDead(o.l); return nil },
		op: func(o *things) error { _ = o.l.Acquire(context.Background()); return nil }, then: lockWorks},
	{name: "lock of the dead, recover", what: 0, mine: func(o *things) error { ipcsync.HoldDead(o.l); return nil },
		op: func(o *things) error { return o.l.Recover(context.Background()) }, then: lockWorks},
	{name: "lock poisoned", what: 0, mine: func(o *things) error { ipcsync.Poison(o.l); return nil },
		op:   func(o *things) error { _, _ = o.l.Acquire(over), o.l.Release(); return nil },
		then: func(t *testing.T, o *things) { require.True(t, state(t, o.l).Poisoned); lockWorks(t, o) }},
	{name: "semaphore acquire", what: 2, op: func(o *things) error { return o.m.Acquire(over) },
		then: func(t *testing.T, o *things) { require.Contains(t, []int{2, 3}, value(t, o.m)) }},
	{name: "semaphore release", what: 2, its: func(o *things) error { return o.m.Acquire(over) }, op: func(o *things) error { return o.m.Release() },
		then: func(t *testing.T, o *things) { require.Contains(t, []int{2, 3}, value(t, o.m)) }},
	{name: "recoverable semaphore", what: 3, op: func(o *things) error { return errors.Join(o.n.Acquire(over), o.n.Acquire(over), o.n.Release()) },
		then: func(t *testing.T, o *things) {
			for range 3 { // whatever it had comes back
				require.NoError(t, o.n.Acquire(patient(t)))
			}
			require.Zero(t, value(t, o.n))
		}},
	{name: "condition wait", what: 4, its: func(o *things) error { return o.l.Acquire(over) }, op: func(o *things) error { _ = o.c.Wait(over, o.l); return nil },
		then: func(t *testing.T, o *things) {
			lockWorks(t, o)
			conditionWorks(t, o)
		}},
	{name: "condition notify", what: 4, op: func(o *things) error { return o.c.Notify(1) }, then: conditionWorks},
	{name: "event", what: 5, op: func(o *things) error { return errors.Join(o.e.Set(), o.e.Clear(), o.e.Set()) },
		then: func(t *testing.T, o *things) {
			require.NoError(t, o.e.Clear())
			result := run(1, func() error { return o.e.Wait(patient(t)) })
			eventually(t, "waits", asleep(1))
			require.NoError(t, o.e.Set())
			require.NoError(t, <-result)
		}},
	{name: "barrier, all are there", what: 7, op: func(o *things) error { _, err := o.a.Wait(over); return err },
		then: func(t *testing.T, o *things) {
			_, err := o.a.Wait(patient(t))
			if err != nil { // it had a cell, and had not come
				require.ErrorIs(t, err, ipcsync.ErrBroken)
				require.NoError(t, o.a.Reset())
				_, err = o.a.Wait(patient(t))
			}
			require.NoError(t, err)
		}},
	{name: "barrier, broken", what: 6, op: func(o *things) error { _, _ = o.b.Wait(over); return nil },
		then: func(t *testing.T, o *things) {
			ctx := patient(t)
			both := func() error {
				results := run(2, func() error { _, err := o.b.Wait(ctx); return err })
				return errors.Join(<-results, <-results)
			}
			state, err := o.b.State()
			require.NoError(t, err)
			if state.Broken || state.Waiting == 1 { // it had come before it died: the last to come notices
				_, err = o.b.Wait(ctx)
				require.ErrorIs(t, err, ipcsync.ErrBroken)
			}
			require.NoError(t, o.b.Reset())
			require.NoError(t, both())
		}},
}

func init() {
	if os.Getenv(roleVar) == "step" {
		runtime.LockOSThread()
	}
	roles["step"] = func(_ context.Context, args []string) error {
		o := &things{&ipcsync.Lock{}, &ipcsync.RLock{}, &ipcsync.Semaphore{}, &ipcsync.Semaphore{}, &ipcsync.Condition{}, &ipcsync.Event{}, &ipcsync.Barrier{}, &ipcsync.Barrier{}}
		if err := received(args[2:], o.l, o.r, o.m, o.n, o.c, o.e, o.b, o.a); err != nil {
			return err
		}
		n, err1 := strconv.Atoi(args[0])
		off, err2 := strconv.ParseUint(args[1], 10, 64)
		h, err3 := shm.Family()
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		phase := (*uint32)(h.Within(off, 8))
		s := steps[n]
		if s.its != nil {
			if err := s.its(o); err != nil {
				return err
			}
		}
		if err := stepper.Ready(); err != nil {
			return err
		}
		atomic.StoreUint32(phase, 1)
		err := s.op(o)
		atomic.StoreUint32(phase, 2)
		return err
	}
}

func TestKillSweep(t *testing.T) {
	if testing.Short() {
		t.Skip("single-steps children: seconds")
	}
	h, err := shm.Family()
	require.NoError(t, err)
	tag := h.Tag()
	off, _, err := h.Alloc(8, tag)
	require.NoError(t, err)
	defer h.Free(off, tag)
	phase := (*uint32)(h.Within(off, 8))
	for i, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			last, kills, retries := false, 0, 0
			for n := 0; !last; {
				o := &things{
					must[*ipcsync.Lock](t)(ipcsync.NewLock(nil)), must[*ipcsync.RLock](t)(ipcsync.NewRLock(nil)),
					must[*ipcsync.Semaphore](t)(ipcsync.NewBoundedSemaphore(nil, 3)), must[*ipcsync.Semaphore](t)(ipcsync.NewRecoverableSemaphore(nil, 3)),
					must[*ipcsync.Condition](t)(ipcsync.NewCondition(nil)), must[*ipcsync.Event](t)(ipcsync.NewEvent(nil)),
					must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(nil, 2, nil)), must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(nil, 1, nil)),
				}
				if s.mine != nil {
					require.NoError(t, s.mine(o))
				}
				args := []string{strconv.Itoa(i), strconv.FormatUint(off, 10)}
				for _, x := range []encoding.BinaryMarshaler{o.l, o.r, o.m, o.n, o.c, o.e, o.b, o.a} {
					args = append(args, sent(t, x))
				}
				ref, err := hex.DecodeString(args[2+s.what])
				require.NoError(t, err)
				object, ok := h.At(binary.LittleEndian.Uint64(ref[8:])+16, 512) // behind the count of references
				require.True(t, ok)
				// The lock beside a condition changes too.
				lockRef, err := hex.DecodeString(args[2])
				require.NoError(t, err)
				lock, ok := h.At(binary.LittleEndian.Uint64(lockRef[8:])+16, 112)
				require.True(t, ok)
				atomic.StoreUint32(phase, 0)
				cmd := exec.Command("/proc/self/exe", args...)
				cmd.Env = append(os.Environ(), roleVar+"=step")
				cmd.Stderr = os.Stderr
				require.NoError(t, stepper.InFamily(cmd))
				last, err = until(cmd, phase, n, func() []byte { return append(bytes.Clone(object), lock...) })
				if errors.Is(err, stepper.ErrLost) && retries < 20 {
					retries++
					last = false
					continue
				}
				require.NoError(t, err)
				s.then(t, o)
				n++
				kills++
			}
			t.Logf("killed in %d states", kills)
			require.Greater(t, kills, 1, "nothing was changed")
		})
	}
}

// until steps a child until what look returns has changed n times in its operation, and kills it. over: the operation has ended before.
func until(cmd *exec.Cmd, phase *uint32, n int, look func() []byte) (over bool, err error) {
	c, err := stepper.Start(cmd)
	if err != nil {
		return false, err
	}
	var seen []byte
	for changes := 0; ; {
		if err = c.Step(); err != nil {
			if !errors.Is(err, stepper.ErrLost) {
				c.Kill()
			}
			return false, err
		}
		switch atomic.LoadUint32(phase) {
		case 0:
			continue
		case 2:
			over = true
		}
		if is := look(); !bytes.Equal(seen, is) {
			if seen != nil {
				changes++
			}
			seen = is
		}
		if over || changes == n {
			c.Kill()
			return over, nil
		}
	}
}
