//go:build linux

package shm_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// account is what the lock tests protect: a number that only grows, and beside it, for every member's slot, how often its holders
// have made it grow. Exactly as often must the sum of the slots have grown as the number, whoever is killed and wherever.
//
// A slot's word is count<<32 | claim. To grow, a holder claims number+1 in its slot, stores the number (the commit), and
// turns the claim into count+1. Whoever resolves a dead holder does the last step for it, if the number says that it was committed.
type account struct {
	lock   *shm.Lock
	me     shm.Owner
	mem    []byte
	number *uint64
	member *shm.Members
}

const (
	lockAt    = 64
	numberAt  = 128
	shadowAt  = 192
	takenOver = 256
	deathsAt  = 264
	membersAt = 512 // 12 slots
	slots     = 12
	ledgerAt  = 1024
	accountLn = 4096
)

// open returns a side of the account in mem, of segment s. It is a member already, or joins.
func openAccount(s *shm.Segment, mem []byte, me shm.Owner) (*account, error) {
	a := &account{mem: mem, number: u64(mem, numberAt), me: me}
	var err error
	if a.member, err = shm.NewMembers(s, mem[membersAt:membersAt+shm.MembersSize(slots)]); err != nil {
		return nil, err
	}
	a.lock = shm.NewLock(u32(mem, lockAt), a.member, me, a.resolve)
	if me == 0 {
		if a.me, err = a.member.Join(a.lock.Sweep); err != nil {
			return nil, err
		}
		a.lock = shm.NewLock(u32(mem, lockAt), a.member, a.me, a.resolve)
	}
	return a, nil
}

func (a *account) slot(o shm.Owner) *uint64 { return u64(a.mem, ledgerAt+8*o.Slot()) }

func (a *account) resolve(dead shm.Owner) {
	slot := a.slot(dead)
	word := atomic.LoadUint64(slot)
	claim := word & 0xffffffff
	committed := atomic.LoadUint64(a.number) >= claim
	if claim == 0 || a.lock.Owner() != dead { // nothing to do, or no longer ours to judge
		return
	}
	settled := word - claim
	if committed {
		settled += 1 << 32
	}
	atomic.CompareAndSwapUint64(slot, word, settled)
}

// grow is what a holder does. at is called at every point of interest.
func (a *account) grow(at func(point int)) {
	slot := a.slot(a.me)
	n := atomic.LoadUint64(a.number) + 1
	at(0)
	atomic.AddUint64(slot, n)
	at(1)
	atomic.StoreUint64(u64(a.mem, shadowAt), n)
	at(2)
	atomic.StoreUint64(a.number, n)
	at(3)
	atomic.AddUint64(slot, 1<<32-n)
	at(4)
}

func nowhere(int) {}

// check looks at the sum; the caller holds the lock.
func (a *account) check() error {
	sum := uint64(0)
	for i := range slots {
		word := *u64(a.mem, ledgerAt+8*i)
		if word&0xffffffff != 0 {
			return fmt.Errorf("slot %d has a claim that nobody settled: %#x", i, word)
		}
		sum += word >> 32
	}
	if n := *a.number; n != sum {
		return fmt.Errorf("the number is %d, its parts are %d", n, sum)
	}
	return nil
}

func acquire(l *shm.Lock, timeout time.Duration) (bool, error) {
	for {
		recovered, err := l.Acquire(timeout)
		if err != shm.ErrInterrupted {
			return recovered, err
		}
	}
}

func init() {
	// Grows for ever, and kills itself sometimes.
	roles["grow"] = func(s *shm.Segment, args []string) {
		mem := s.Bytes()
		a, err := openAccount(s, mem, 0)
		must(err)
		seed, err := strconv.ParseUint(args[0], 10, 64)
		must(err)
		random := rand.New(rand.NewPCG(seed, 7))
		deadly := random.IntN(5)
		for range random.IntN(20_000) {
			recovered, err := acquire(a.lock, patience)
			must(err)
			if recovered {
				atomic.AddUint64(u64(mem, takenOver), 1)
			}
			must(a.check())
			a.grow(nowhere)
			a.lock.Release()
		}
		_, err = acquire(a.lock, patience)
		must(err)
		a.grow(func(point int) {
			if point == deadly {
				atomic.AddUint64(u64(mem, deathsAt), 1)
				must(unix.Kill(os.Getpid(), unix.SIGKILL))
				select {}
			}
		})
	}
	// Holds the lock until told otherwise.
	roles["hold"] = func(s *shm.Segment, _ []string) {
		a, err := openAccount(s, s.Bytes(), 0)
		must(err)
		_, err = acquire(a.lock, patience)
		must(err)
		fmt.Println("held")
		hear()
		a.lock.Release()
		fmt.Println("released")
		hear()
		a.member.Leave(a.me)
	}
	// Holds the lock and becomes another program, which attaches the segment as well if args[0] is "attach".
	roles["execute"] = func(s *shm.Segment, args []string) {
		a, err := openAccount(s, s.Bytes(), 0)
		must(err)
		_, err = acquire(a.lock, patience)
		must(err)
		atomic.AddUint64(a.slot(a.me), 1) // a claim to number 1
		next := command("idle", nil)
		if args[0] == "attach" {
			next = command("hold", s)
			_, err = unix.FcntlInt(uintptr(s.FD()), unix.F_SETFD, 0) // it is 3 already
			must(err)
		}
		must(syscall.Exec("/proc/self/exe", next.Args, next.Env))
	}
}

// Processes grow the number as fast as they can, and are killed at random, by themselves with the lock held and by us anywhere.
func TestLockHammer(t *testing.T) {
	duration := 4 * time.Second
	if raceEnabled || testing.Short() {
		duration = 2 * time.Second
	}
	s := create(t, accountLn)
	mem := s.Bytes()
	a, err := openAccount(s, mem, 0)
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	var killed int
	type end struct {
		pid int
		err error
	}
	ended := make(chan end)
	running := map[int]*os.Process{}
	begin := time.Now()
	seed := random.Uint64N(1 << 40)
	t.Logf("seed %d", seed)
	spawn := func() {
		seed++
		cmd := command("grow", s, strconv.FormatUint(seed, 10))
		require.NoError(t, cmd.Start())
		for _, f := range cmd.ExtraFiles {
			_ = f.Close()
		}
		running[cmd.Process.Pid] = cmd.Process
		go func() {
			err := cmd.Wait()
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
				err = nil
			}
			if err != nil {
				err = fmt.Errorf("process %d: %w", cmd.Process.Pid, err)
			}
			ended <- end{cmd.Process.Pid, err}
		}()
	}
	const workers = 4
	for range workers {
		spawn()
	}
	for alive := workers; alive > 0; {
		select {
		case e := <-ended:
			require.NoError(t, e.err)
			delete(running, e.pid)
			if time.Since(begin) < duration {
				spawn()
			} else {
				alive--
			}
		case <-time.After(time.Duration(random.IntN(20)) * time.Millisecond):
			for pid, p := range running { // random order
				if p.Kill() == nil {
					killed++
				}
				delete(running, pid)
				if killed%2 == 0 { // one or two at a time
					break
				}
			}
		}
	}
	_, err = acquire(a.lock, patience)
	require.NoError(t, err)
	require.NoError(t, a.check())
	a.lock.Release()
	a.member.Reap(a.lock.Sweep)
	left := 0
	a.member.Each(func(shm.Owner, int) { left++ })
	require.Equal(t, 1, left, "only we are left")
	a.member.Leave(a.me)
	t.Logf("%d times grown, %d killed, %d killed themselves with the lock held, %d takeovers by those who waited",
		*a.number, killed, *u64(mem, deathsAt), *u64(mem, takenOver))
	require.NotZero(t, *a.number)
	require.NotZero(t, killed)
	require.NotZero(t, *u64(mem, deathsAt))
}

// openPair returns our side of an account, and a child that holds its lock.
func openPair(t *testing.T, role string, args ...string) (*account, *process) {
	s := create(t, accountLn)
	a, err := openAccount(s, s.Bytes(), 0)
	require.NoError(t, err)
	t.Cleanup(func() { a.member.Leave(a.me) })
	return a, start(t, role, s, args...)
}

func TestLockOfStoppedProcess(t *testing.T) {
	a, child := openPair(t, "hold")
	require.Equal(t, "held", child.line())
	require.False(t, a.lock.TryAcquire())
	child.signal(unix.SIGSTOP)
	var status unix.WaitStatus
	_, err := unix.Wait4(child.pid(), &status, unix.WUNTRACED, nil)
	require.NoError(t, err)
	require.True(t, status.Stopped())
	holder := a.lock.Owner()
	_, err = acquire(a.lock, 400*time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Equal(t, holder, a.lock.Owner())
	require.False(t, a.member.Gone(holder))
	require.Zero(t, a.member.Reap(a.lock.Sweep))
	child.signal(unix.SIGCONT)
	child.tell("release")
	recovered, err := acquire(a.lock, patience)
	require.NoError(t, err)
	require.False(t, recovered)
	a.lock.Release()
	child.tell("leave")
	child.finish()
	require.True(t, a.member.Gone(holder), "it left")
}

func TestLockOfZombie(t *testing.T) {
	a, child := openPair(t, "hold")
	require.Equal(t, "held", child.line())
	holder := a.lock.Owner()
	child.signal(unix.SIGKILL)
	recovered, err := acquire(a.lock, patience)
	require.NoError(t, err)
	require.True(t, recovered)
	require.Equal(t, a.me, a.lock.Owner())
	a.lock.Release()
	require.Equal(t, 1, a.member.Reap(a.lock.Sweep))
	require.True(t, a.member.Gone(holder))
}

// After execve process id, start time and pidfd are the same; the memory is not mapped.
func TestLockOfExecutedProcess(t *testing.T) {
	a, child := openPair(t, "execute", "away")
	require.Equal(t, "idle", child.line())
	recovered, err := acquire(a.lock, patience)
	require.NoError(t, err)
	require.True(t, recovered)
	require.NoError(t, a.check(), "the claim was settled")
	a.lock.Release()
}

// The same, and the new program maps the memory again: only it can tell that the old one is gone, and does when it joins.
func TestLockOfExecutedProcessThatComesBack(t *testing.T) {
	a, child := openPair(t, "execute", "attach")
	require.Equal(t, "held", child.line())
	members := 0
	a.member.Each(func(o shm.Owner, pid int) {
		members++
		if pid == child.pid() {
			require.Equal(t, a.lock.Owner(), o)
		}
	})
	require.Equal(t, 2, members)
	child.tell("release")
	require.Equal(t, "released", child.line())
	_, err := acquire(a.lock, patience)
	require.NoError(t, err)
	require.NoError(t, a.check(), "the claim was settled")
	a.lock.Release()
}

func TestLock(t *testing.T) {
	a, err := openAccount(create(t, accountLn), make([]byte, accountLn), 0)
	require.NoError(t, err)
	defer a.member.Leave(a.me)
	require.Panics(t, func() { a.lock.Release() })
	nobody := shm.NewLock(u32(make([]byte, 8), 0), a.member, 0, nil)
	require.False(t, nobody.TryAcquire())
	require.Panics(t, func() { _, _ = nobody.Acquire(0) })
	require.True(t, a.lock.TryAcquire())
	require.False(t, a.lock.TryAcquire(), "not recursive")
	_, err = acquire(a.lock, 30*time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = acquire(a.lock, 0)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	a.lock.Sweep(a.me)
	require.Equal(t, a.me, a.lock.Owner(), "nobody sweeps up behind the living")
	a.lock.Release()

	// Goroutines of one member exclude each other.
	n := 0
	done := make(chan error)
	for range 4 {
		go func() {
			for range 5_000 {
				if _, err := acquire(a.lock, patience); err != nil {
					done <- err
					return
				}
				n++
				a.lock.Release()
			}
			done <- nil
		}()
	}
	for range 4 {
		require.NoError(t, <-done)
	}
	require.Equal(t, 20_000, n)
}

func TestMembers(t *testing.T) {
	s := create(t, 4096)
	_, err := shm.NewMembers(s, s.Bytes()[:64])
	require.ErrorIs(t, err, shm.ErrInvalid)
	m, err := shm.NewMembers(s, s.Bytes()[:shm.MembersSize(3)])
	require.NoError(t, err)
	var all []shm.Owner
	for i := range 3 {
		o, err := m.Join(nil)
		require.NoError(t, err)
		require.Equal(t, i, o.Slot())
		require.EqualValues(t, 1, o.Generation())
		all = append(all, o)
	}
	_, err = m.Join(nil)
	require.ErrorIs(t, err, shm.ErrNoMemory)
	m.Leave(all[1])
	m.Leave(all[1])
	require.True(t, m.Gone(all[1]))
	require.True(t, m.Gone(0))
	again, err := m.Join(nil)
	require.NoError(t, err)
	require.Equal(t, 1, again.Slot())
	require.EqualValues(t, 2, again.Generation())
	require.False(t, m.Gone(again))
	require.True(t, m.Gone(all[1]))
	for _, o := range []shm.Owner{all[0], again, all[2]} {
		m.Leave(o)
	}

	*u64(s.Bytes(), 0)++ // another pid namespace
	_, err = shm.NewMembers(s, s.Bytes()[:shm.MembersSize(3)])
	require.ErrorIs(t, err, shm.ErrUnsupported)
}

func init() { roles["nothing"] = func(*shm.Segment, []string) {} }

// deadPid returns the id of a process that has ended and was collected.
func deadPid() int {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=nothing")
	cmd.Args = append(cmd.Args, "none")
	must(cmd.Run())
	return cmd.Process.Pid
}

// A child whose parent took a slot for it and has died does not come to it once the sweep behind the parent has begun.
func TestSlotOfAChildThatComesLate(t *testing.T) {
	s := create(t, 4096)
	m, err := shm.NewMembers(s, s.Bytes()[:shm.MembersSize(3)])
	require.NoError(t, err)
	slot := u64(s.Bytes(), shm.MembersHead)
	parent := uint64(deadPid())<<shm.PidShift | 1<<2 | 1
	child := uint64(os.Getpid())<<shm.PidShift | 1<<2 | 1
	*slot = parent
	swept := 0
	require.Equal(t, 1, m.Reap(func(shm.Owner) {
		swept++
		require.False(t, atomic.CompareAndSwapUint64(slot, parent, child))
	}))
	require.Equal(t, 1, swept)

	// Who dies while he sweeps leaves the slot to the next.
	*slot = 1<<2 | 1
	m.Each(func(o shm.Owner, pid int) { require.True(t, m.Gone(o) && pid == 0) })
	require.Equal(t, 1, m.Reap(nil))
	require.Equal(t, uint64(1<<2), *slot)
}

// Whatever the table holds, it is read without a fault, and the dead are reaped to the last.
func FuzzMembers(f *testing.F) {
	f.Add([]byte{}, uint32(0))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 4, 0, 0}, uint32(1<<12|1))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255}, ^uint32(0))
	s := create(f, 4096)
	f.Fuzz(func(t *testing.T, data []byte, owner uint32) {
		const n = 4
		mem := bytesOf(make([]uint64, shm.MembersSize(n)/8))
		copy(mem[shm.MembersHead:], data)
		m, err := shm.NewMembers(s, mem)
		require.NoError(t, err)
		m.Gone(shm.Owner(owner))
		m.Reap(func(dead shm.Owner) {
			require.GreaterOrEqual(t, dead.Slot(), 0)
			require.Less(t, dead.Slot(), n)
		})
		m.Each(func(o shm.Owner, _ int) { require.False(t, m.Gone(o)) })
		if o, err := m.Join(nil); err == nil {
			require.False(t, m.Gone(o))
			m.Leave(o)
		}
		m.Leave(shm.Owner(owner))
	})
}

func BenchmarkLock(b *testing.B) {
	a, err := openAccount(create(b, accountLn), make([]byte, accountLn), 0)
	require.NoError(b, err)
	defer a.member.Leave(a.me)
	for b.Loop() {
		if _, err := a.lock.Acquire(-1); err != nil {
			b.Fatal(err)
		}
		a.lock.Release()
	}
}
