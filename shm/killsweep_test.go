//go:build linux && amd64

package shm_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// The kill sweep: what if a process is killed at any instruction?
//
// A child, this test binary again, is single-stepped through one operation by ptrace(2). After k instructions the shared memory is what
// survivors would find had it been killed there: a traced process has no stores under way. So a copy of the memory is
// taken at every k, the survivors' code runs on the copy, with a process that is really dead in the child's place, and what it finds must be
// exactly what holds if the operation happened or exactly what holds if it did not. To prove that argument too, at every 37th instruction of
// another child it is really killed, and the survivors run on the memory itself.
//
// The child stops all its other threads first (SIGSTOP to the group, from which the tracer lets only the stepped thread go on) and tells
// where it is by a word in the memory: 1 during the operation, 2 after it. Memory that did not change since the last instruction
// is not judged again.

const (
	phaseAt   = 0
	sweepTail = 2048
	sweepHead = 2056
	sweepRing = 4096
	sweepSize = sweepRing + 256
	killEvery = 37
	maxSteps  = 400_000
)

// sweep is one operation and what must hold after it.
type sweep struct {
	name string
	// prepare brings the memory into the state before the operation; in the test.
	prepare func(t testing.TB, s *shm.Segment)
	// ready returns the operation; in the child.
	ready func(s *shm.Segment) func()
	// judge runs the survivors on mem, in the test. happened says whether they found that the operation was committed.
	judge func(t testing.TB, s *shm.Segment, mem []byte) (happened bool, err error)
	// meanwhile, if not nil, is what we do after each instruction of the child.
	meanwhile func(s *shm.Segment)
	// lock: count the points where the child holds it.
	lock bool
}

func ringIn(mem []byte) (tail, head *uint64, data []byte) {
	return u64(mem, sweepTail), u64(mem, sweepHead), mem[sweepRing:sweepSize]
}

// fillRing leaves messages "0", "1", ... in a ring that begins at byte at.
func fillRing(at, messages int) func(testing.TB, *shm.Segment) {
	return func(t testing.TB, s *shm.Segment) {
		tail, head, data := ringIn(s.Bytes())
		*tail, *head = uint64(at), uint64(at)
		p, err := shm.NewProducer(tail, head, data)
		require.NoError(t, err)
		for i := range messages {
			require.True(t, p.Put(1, 0, []byte(strconv.Itoa(i))))
		}
	}
}

// readRing reads all there is, and tries whether the ring goes on working.
func readRing(mem []byte) (found []string, err error) {
	c, err := shm.NewConsumer(ringIn(mem))
	if err != nil {
		return nil, err
	}
	read := func() (found []string, err error) {
		for {
			r, ok, err := c.Next()
			if err != nil || !ok {
				c.Release()
				return found, err
			}
			found = append(found, string(r.Body))
		}
	}
	if found, err = read(); err != nil {
		return nil, err
	}
	p, err := shm.NewProducer(ringIn(mem))
	if err != nil {
		return nil, err
	}
	for range 3 { // around the end
		if !p.Put(1, 0, make([]byte, p.Max())) {
			return nil, errors.New("no room in an empty ring")
		}
		if more, err := read(); err != nil || len(more) != 1 || len(more[0]) != p.Max() {
			return nil, fmt.Errorf("after the recovery: %d messages, %w", len(more), err)
		}
	}
	return found, nil
}

func expect(before, after []string) func(testing.TB, *shm.Segment, []byte) (bool, error) {
	return func(_ testing.TB, _ *shm.Segment, mem []byte) (bool, error) {
		found, err := readRing(mem)
		switch {
		case err != nil:
			return false, err
		case slices.Equal(found, before):
			return false, nil
		case slices.Equal(found, after):
			return true, nil
		default:
			return false, fmt.Errorf("found %q", found)
		}
	}
}

var corpse int // as long as the sweep runs; the kernel gives ids again only after a full round

// bury puts the dead process into the places of members that are not this process.
func bury(mem []byte) {
	for i := range slots {
		word := u64(mem, membersAt+shm.MembersHead+8*i)
		if pid := *word >> shm.PidShift; pid != 0 && pid != uint64(os.Getpid()) {
			*word = *word&(1<<shm.PidShift-1) | uint64(corpse)<<shm.PidShift
		}
	}
}

// judgeAccount has a survivor, which is us in slot 0, take the lock, check all the books and go on; then reaps the dead.
func judgeAccount(before uint64) func(testing.TB, *shm.Segment, []byte) (bool, error) {
	return func(_ testing.TB, s *shm.Segment, mem []byte) (bool, error) {
		bury(mem)
		a, err := openAccount(s, mem, survivor)
		if err != nil {
			return false, err
		}
		if a.lock.Owner() != survivor { // else we held it when the child died
			if _, err = acquire(a.lock, patience); err != nil {
				return false, err
			}
		}
		if err = a.check(); err != nil {
			return false, err
		}
		number := *a.number
		a.grow(nowhere)
		a.lock.Release()
		a.member.Reap(a.lock.Sweep)
		left := 0
		a.member.Each(func(shm.Owner, int) { left++ })
		if err = a.check(); err != nil || left != 1 || a.lock.Owner() != 0 || number-before > 1 {
			return false, fmt.Errorf("number %d after %d, %d members, owner %#x, %w", number, before, left, a.lock.Owner(), err)
		}
		return number == before+1, nil
	}
}

var survivor shm.Owner

// openBooks makes us the first member.
func openBooks(t testing.TB, s *shm.Segment) {
	a, err := openAccount(s, s.Bytes(), 0)
	require.NoError(t, err)
	survivor = a.me
	require.Zero(t, survivor.Slot())
}

// dieHolding has a process that is dead hold the lock, and its operation reach a point.
func dieHolding(point int) func(testing.TB, *shm.Segment) {
	return func(t testing.TB, s *shm.Segment) {
		openBooks(t, s)
		mem := s.Bytes()
		a, err := openAccount(s, mem, 0)
		require.NoError(t, err)
		require.True(t, a.lock.TryAcquire())
		func() {
			type done struct{}
			defer func() { _ = recover().(done) }()
			a.grow(func(at int) {
				if at == point {
					panic(done{})
				}
			})
		}()
		word := u64(mem, membersAt+shm.MembersHead+8*a.me.Slot())
		*word = *word&(1<<shm.PidShift-1) | uint64(corpse)<<shm.PidShift
	}
}

// growOnce returns acquire, grow, release by a new member; sleepers says whether somebody seems to sleep on the lock.
func growOnce(sleepers bool) func(*shm.Segment) func() {
	return func(s *shm.Segment) func() {
		a, err := openAccount(s, s.Bytes(), 0)
		must(err)
		word := u32(s.Bytes(), lockAt)
		return func() {
			if _, err := acquire(a.lock, patience); err != nil {
				must(err)
			}
			if sleepers {
				atomic.OrUint32(word, shm.LockSleepers)
			}
			a.grow(nowhere)
			a.lock.Release()
		}
	}
}

func producing(f func(p *shm.Producer)) func(*shm.Segment) func() {
	return func(s *shm.Segment) func() {
		p, err := shm.NewProducer(ringIn(s.Bytes()))
		must(err)
		return func() { f(p) }
	}
}

func consume(s *shm.Segment) func() {
	c, err := shm.NewConsumer(ringIn(s.Bytes()))
	must(err)
	return func() {
		if _, ok, err := c.Next(); !ok || err != nil {
			must(fmt.Errorf("nothing to read: %w", err))
		}
		c.Release()
	}
}

func putOne(p *shm.Producer) {
	if !p.Put(1, 0, []byte("ne"), []byte("w")) {
		must(errors.New("no room"))
	}
}

func sweeps() []sweep {
	return []sweep{
		{name: "ring put", prepare: fillRing(0, 2), ready: producing(putOne),
			judge: expect([]string{"0", "1"}, []string{"0", "1", "new"})},
		{name: "ring put, wraps", prepare: fillRing(256-40, 2), ready: producing(func(p *shm.Producer) {
			p.Put(1, 0, []byte("a new one"))
		}), judge: expect([]string{"0", "1"}, []string{"0", "1", "a new one"})},
		{name: "ring put, batch that wraps", prepare: fillRing(256-56, 2), ready: producing(func(p *shm.Producer) {
			for _, m := range []string{"new 1", "new 2 does not fit", "new 3"} {
				b, _, ok := p.Stage(1, 0, len(m))
				if !ok {
					must(errors.New("no room"))
				}
				copy(b, m)
			}
			p.Publish()
		}), judge: expect([]string{"0", "1"}, []string{"0", "1", "new 1", "new 2 does not fit", "new 3"})},
		{name: "ring next and release", prepare: fillRing(0, 3), ready: consume,
			judge: expect([]string{"0", "1", "2"}, []string{"1", "2"})},
		{name: "ring next and release, wraps", prepare: func(t testing.TB, s *shm.Segment) {
			fillRing(256-8, 0)(t, s)
			p, err := shm.NewProducer(ringIn(s.Bytes()))
			require.NoError(t, err)
			require.True(t, p.Put(1, 0, []byte("0")))
			require.True(t, p.Put(1, 0, []byte("1")))
		}, ready: consume, judge: expect([]string{"0", "1"}, []string{"1"})},
		{name: "lock", prepare: openBooks, ready: growOnce(false), judge: judgeAccount(0), lock: true},
		{name: "lock with sleepers", prepare: openBooks, ready: growOnce(true), judge: judgeAccount(0), lock: true},
		{name: "lock of the dead, not committed", prepare: dieHolding(2), ready: growOnce(false), judge: judgeAccount(0), lock: true},
		{name: "lock of the dead, committed", prepare: dieHolding(3), ready: growOnce(false), judge: judgeAccount(1), lock: true},
		{name: "lock of the living", prepare: func(t testing.TB, s *shm.Segment) {
			openBooks(t, s)
			atomic.StoreUint32(u32(s.Bytes(), lockAt), uint32(survivor))
		}, ready: growOnce(false), meanwhile: func(s *shm.Segment) {
			// We give it up as soon as the child is about to sleep.
			word := u32(s.Bytes(), lockAt)
			atomic.CompareAndSwapUint32(word, uint32(survivor)|shm.LockSleepers, 0)
		}, judge: judgeAccount(0), lock: true},
		{name: "sweep of the dead, join and leave", prepare: dieHolding(3), ready: func(s *shm.Segment) func() {
			a, err := openAccount(s, s.Bytes(), 1<<12|1) // as the survivor: a sweeper needs no slot of its own
			must(err)
			dead := a.lock.Owner()
			return func() {
				a.lock.Sweep(dead)
				me, err := a.member.Join(nil)
				must(err)
				a.member.Leave(me)
			}
		}, judge: judgeAccount(1), lock: true},
	}
}

func init() {
	roles["swept"] = func(s *shm.Segment, args []string) {
		debug.SetGCPercent(-1)
		i, err := strconv.Atoi(args[0])
		must(err)
		restore := shm.SetLockSlice(50 * time.Microsecond)
		defer restore()
		op := sweeps()[i].ready(s)
		phase := u32(s.Bytes(), phaseAt)
		// Raw: the scheduler would take the processor away from a thread that is stopped in a system call.
		_, _, e := unix.RawSyscall(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(unix.Gettid()), uintptr(unix.SIGSTOP))
		if e != 0 {
			must(e)
		}
		atomic.StoreUint32(phase, 1)
		op()
		atomic.StoreUint32(phase, 2)
	}
}

// traced is a child that the calling thread single-steps.
type traced struct {
	pid   int
	phase *uint32
	// In the moment between its own stop and that of its other threads, the Go scheduler may decide to run the stepped goroutine
	// later; it then sleeps for ever, since the thread that would wake it is stopped. Such a child is ended and tried again.
	watch *time.Timer
}

const stuck = 3 * time.Second

// trace starts the child and brings it to the operation's first instruction; nil: it got stuck. The calling goroutine must be locked
// to its thread.
func trace(t *testing.T, s *shm.Segment, index int) *traced {
	t.Helper()
	cmd := command("swept", s, strconv.Itoa(index))
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	require.NoError(t, cmd.Start())
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
	pid := cmd.Process.Pid
	require.NoError(t, cmd.Process.Release()) // collected here, by wait
	c := &traced{pid, u32(s.Bytes(), phaseAt), time.AfterFunc(stuck, func() { _ = unix.Kill(pid, unix.SIGKILL) })}
	for sig := c.wait(t); sig != unix.SIGSTOP; sig = c.wait(t) {
		if sig == 0 {
			c.watch.Stop()
			return nil
		}
		_ = unix.PtraceSetOptions(pid, unix.PTRACE_O_EXITKILL) // it must not stay stopped when this test is killed
		_ = unix.PtraceCont(pid, 0)                            // it can only fail because the child was killed, which wait tells
	}
	// Delivered, it stops the whole process; only the thread that we step leaves the stop.
	_ = unix.PtraceCont(pid, int(unix.SIGSTOP))
	if c.wait(t) == 0 {
		c.watch.Stop()
		return nil
	}
	for atomic.LoadUint32(c.phase) == 0 {
		if c.step(t) == lost {
			return nil
		}
	}
	return c
}

// wait returns the signal that the child stopped with, 0 if it ended.
func (c *traced) wait(t *testing.T) unix.Signal {
	t.Helper()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(c.pid, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		require.NoError(t, err)
		if !status.Stopped() {
			return 0
		}
		return status.StopSignal()
	}
}

type progress int

const (
	within progress = iota // the operation
	over                   // it is complete
	lost                   // the child got stuck and is gone
)

// step runs one instruction of the operation, a whole system call at most.
func (c *traced) step(t *testing.T) progress {
	t.Helper()
	c.watch.Reset(stuck)
	for {
		_ = unix.PtraceSingleStep(c.pid)
		switch sig := c.wait(t); sig {
		case 0:
			c.watch.Stop()
			return lost
		case unix.SIGTRAP:
			if atomic.LoadUint32(c.phase) == 2 {
				return over
			}
			return within
		case unix.SIGURG, unix.SIGSTOP, unix.SIGCONT: // not delivered, and no instruction was run
		default:
			require.Failf(t, "the child did not survive", "signal %v", sig)
		}
	}
}

func (c *traced) kill(t *testing.T) {
	t.Helper()
	c.watch.Stop()
	require.NoError(t, unix.Kill(c.pid, unix.SIGKILL))
	for c.wait(t) != 0 {
	}
}

// swept is what one sweep saw.
type swept struct{ points, held, states, kills int }

// copies judges a copy of the memory at every instruction; false: the child got stuck.
func (w *sweep) copies(t *testing.T, s *shm.Segment, index int) (seen swept, ok bool) {
	child := trace(t, s, index)
	if child == nil {
		return seen, false
	}
	before := *u64(s.Bytes(), numberAt)
	judge := func() bool {
		happened, err := w.judge(t, s, aligned(s.Bytes()))
		require.NoErrorf(t, err, "%s: the copy after %d instructions", w.name, seen.points)
		return happened
	}
	var last []byte
	happened := false
	for {
		require.Less(t, seen.points, maxSteps, w.name)
		if owner := shm.Owner(*u32(s.Bytes(), lockAt) &^ shm.LockSleepers); w.lock && owner != 0 && owner != survivor {
			seen.held++ // by the child, or by the dead
		}
		if !bytes.Equal(last, s.Bytes()) {
			last = bytes.Clone(s.Bytes())
			now := judge()
			require.Falsef(t, happened && !now, "%s: undone after %d instructions", w.name, seen.points)
			happened = now
			seen.states++
		}
		switch child.step(t) {
		case lost:
			return seen, false
		case over:
			require.Equal(t, before != *u64(s.Bytes(), numberAt) || !w.lock, judge(), w.name)
			child.kill(t)
			return seen, true
		}
		seen.points++
		if w.meanwhile != nil {
			w.meanwhile(s)
		}
	}
}

// kills has children killed after some numbers of instructions below points, and judges the memory itself.
func (w *sweep) kills(t *testing.T, s *shm.Segment, index, points int, initial []byte) (kills int) {
	for at := 0; at < points; at += max(killEvery, points/12/killEvery*killEvery) {
		copy(s.Bytes(), initial)
		if child := trace(t, s, index); child != nil {
			how := within
			for n := 0; n < at && how == within; n++ {
				if how = child.step(t); w.meanwhile != nil {
					w.meanwhile(s)
				}
			}
			if how != lost {
				child.kill(t)
			}
		}
		// One that got stuck was killed as well.
		_, err := w.judge(t, s, s.Bytes())
		require.NoErrorf(t, err, "%s: the kill after %d instructions", w.name, at)
		kills++
	}
	return kills
}

func TestKillSweep(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's instructions are not those that are shipped")
	}
	runtime.LockOSThread() // ptrace is a matter of threads
	defer runtime.UnlockOSThread()
	defer shm.SetLockSlice(50 * time.Microsecond)()
	corpse = deadPid()
	begin := time.Now()
	var sum swept
	for i, w := range sweeps() {
		s := create(t, sweepSize)
		w.prepare(t, s)
		initial := bytes.Clone(s.Bytes())
		seen, ok := w.copies(t, s, i)
		for tries := 1; !ok; tries++ {
			require.Less(t, tries, 5, "children get stuck")
			copy(s.Bytes(), initial)
			seen, ok = w.copies(t, s, i)
		}
		seen.kills = w.kills(t, s, i, seen.points, initial)
		t.Logf("%-34s %6d kill points, %5d with the lock held, %3d states of memory, %2d real kills",
			w.name, seen.points, seen.held, seen.states, seen.kills)
		require.NotZero(t, seen.points)
		require.Greater(t, seen.states, 1, w.name)
		require.NotZero(t, seen.kills)
		require.Equal(t, w.lock, seen.held > 0)
		sum.points, sum.held, sum.kills = sum.points+seen.points, sum.held+seen.held, sum.kills+seen.kills
		if w.lock {
			copy(s.Bytes(), initial)
			a, err := openAccount(s, s.Bytes(), survivor)
			require.NoError(t, err)
			a.member.Leave(survivor)
		}
	}
	t.Logf("%d kill points, %d of them with the lock held, %d real kills, %v",
		sum.points, sum.held, sum.kills, time.Since(begin).Round(time.Millisecond))
	require.NotZero(t, sum.points)
	require.NotZero(t, sum.held)
	require.NotZero(t, sum.kills)
}

// aligned returns the bytes at an address that atomics can use.
func aligned(b []byte) []byte {
	c := bytesOf(make([]uint64, (len(b)+7)/8))[:len(b)]
	copy(c, b)
	return c
}
