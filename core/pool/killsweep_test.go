//go:build linux && amd64

package pool

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

// The death of a worker at any instruction of its work: take, run, send, release, tell.
//
// The worker's thread that serves is single-stepped by ptrace(2) from its sleep through a few tasks, and after k instructions the process
// is really killed. Each task must have exactly one outcome, at most one may be lost, and each must have run as often as its
// outcome says: once if it has a result, at most once if it is lost. How often they ran is counted in a file that all workers map.
//
// A death takes the time of a new worker and some microseconds for each instruction, of which there are thousands, so k is sampled, for
// a few seconds or POLYPROC_SWEEP_SECONDS, spread evenly however many there are. The deaths between any two stores to shared memory,
// of which there are few, are all tried: see TestWorkerDiesAfterEveryStore.

const (
	sweepTasks = 3
	sweepBytes = 70_000 // argument and result lie in blocks
)

var sweepCounts []uint32

// initSweep maps the file that runs are counted in, and fixes the loop to one thread.
var initSweep = RegisterInitializer("sweep", func(name string) error {
	runtime.LockOSThread()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sweepCounts, err = mapCounts(f)
	return err
})

var (
	sweepRun = Register("sweep run", func(_ context.Context, b []byte) ([]byte, error) {
		atomic.AddUint32(&sweepCounts[b[0]], 1)
		return b, nil
	})
	sweepThread = Register("sweep thread", func(context.Context, struct{}) (int, error) { return unix.Gettid(), nil })
)

func mapCounts(f *os.File) ([]uint32, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4), nil
}

func TestWorkerKillSweep(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector, which -short goes with, makes ten instructions of each")
	}
	length := 3 * time.Second
	if n, err := strconv.Atoi(os.Getenv("POLYPROC_SWEEP_SECONDS")); err == nil {
		length = time.Duration(n) * time.Second
	}
	t.Run("small", func(t *testing.T) { sweepWorker(t, -1, length) })
	if length >= 10*time.Second { // its copies are most of many instructions
		t.Run("large", func(t *testing.T) { sweepWorker(t, 1, length/2) })
	}
}

// sweepWorker kills workers; big is the task whose bytes lie in blocks, or -1.
func sweepWorker(t *testing.T, big int, length time.Duration) {
	runtime.LockOSThread() // ptrace(2) is per thread
	defer runtime.UnlockOSThread()
	name := filepath.Join(t.TempDir(), "counts")
	f, err := os.Create(name)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	require.NoError(t, f.Truncate(int64(os.Getpagesize())))
	counts, err := mapCounts(f)
	require.NoError(t, err)
	defer func() {
		_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(counts))), 4*len(counts)))
	}()

	p := opened(t, Options{Workers: 1, Initializer: initSweep(name), Env: append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOGC=off")})
	s := &sweeper{t: t, p: p, counts: counts, big: big}
	whole, lost := s.round(1 << 30) // to the end, to know how long it is
	require.Greater(t, whole, 500)
	require.Zero(t, lost)
	const golden = 0.6180339887498949 // multiples of it, modulo 1, are spread evenly at every time
	deaths, losses := 0, 0
	for at, end := rand.Float64(), time.Now().Add(length); time.Now().Before(end); deaths++ {
		_, at = math.Modf(at + golden)
		_, lost := s.round(int(at * float64(whole)))
		losses += lost
	}
	t.Logf("%d instructions, %d deaths, %d of them lost a task", whole, deaths, losses)
	healthy(t, p)
}

type sweeper struct {
	t      *testing.T
	p      *Pool
	counts []uint32
	big    int
}

// round has the worker do its tasks for k instructions, kills it, and says how many of these there were and how many tasks were lost.
func (s *sweeper) round(k int) (steps, lost int) {
	t, p := s.t, s.p
	eventually(t, func() bool { return readyWorkers(p) == 1 })
	tids, err := Map(within(t), p, sweepThread, []struct{}{{}})
	require.NoError(t, err)
	// What happens only the first time is not what is looked at.
	warm := make([][]byte, 20)
	for i := range warm {
		warm[i] = make([]byte, 16)
	}
	if s.big >= 0 {
		warm = append(warm, make([]byte, sweepBytes))
	}
	_, err = Map(within(t), p, sweepRun, warm)
	require.NoError(t, err)
	clear(s.counts)
	pid, tid := p.PIDs()[0], tids[0]
	require.NoError(t, unix.PtraceSeize(tid))
	require.NoError(t, unix.PtraceInterrupt(tid))
	require.NotZero(t, await(t, tid), "it stops")

	p.mu.Lock()
	p.meanNS = 1000 // all go to the one lane at once
	ln := p.laneOf(pid)
	p.mu.Unlock()
	var data []byte
	var sizes []uint64
	for i := range byte(sweepTasks) {
		n := 16
		if int(i) == s.big {
			n = sweepBytes
		}
		b := make([]byte, n)
		b[0] = i
		data, sizes = append(data, b...), append(sizes, uint64(n))
	}
	_, err = p.SubmitBytes(sweepRun.ID(), data, sizes, 0)
	require.NoError(t, err)

	// The step that ends in the next sleep is never begun: tasks are done when the last one's space was given back, and some
	// instructions later the parent has been told.
	const telling = 400
	after := 0
	for ; steps < k && after < telling; steps++ {
		if atomic.LoadUint64(&ln.head.taskHead) == atomic.LoadUint64(&ln.head.taskTail) {
			after++
			if atSleep(tid) {
				break
			}
		}
		if !step(t, tid) {
			break
		}
	}
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	if tid != pid { // the supervisor collects the process, which does not end before its traced threads are collected
		for await(t, tid) != 0 {
		}
	}
	seen := make([]int, sweepTasks)
	for got := 0; got < sweepTasks; {
		n, err := p.Collect(sweepTasks, enough, func(r Result) {
			seen[r.Cookie]++
			runs := atomic.LoadUint32(&s.counts[r.Cookie])
			switch r.Outcome {
			case OK:
				require.Equal(t, uint32(1), runs, "task %d, killed after %d", r.Cookie, steps)
				require.Equal(t, int(sizes[r.Cookie]), len(r.Data))
				require.Equal(t, byte(r.Cookie), r.Data[0])
			case Lost:
				require.LessOrEqual(t, runs, uint32(1), "task %d, killed after %d", r.Cookie, steps)
				require.Equal(t, pid, r.PID)
				lost++
			default:
				require.Failf(t, "outcome", "%d of task %d, killed after %d", r.Outcome, r.Cookie, steps)
			}
		})
		require.NoError(t, err, "killed after %d instructions: %+v", steps, p.State())
		got += n
	}
	for i, n := range seen {
		require.Equal(t, 1, n, "outcomes of task %d, killed after %d", i, steps)
	}
	require.LessOrEqual(t, lost, 1, "killed after %d", steps)
	eventually(t, func() bool { return !contains(p.PIDs(), pid) })
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Zero(t, p.open)
	require.Zero(t, p.blocks)
	return steps, lost
}

func (p *Pool) laneOf(pid int) *lane {
	for _, ln := range p.lanes {
		if ln != nil && ln.proc != nil && ln.proc.PID() == pid {
			return ln
		}
	}
	panic(fmt.Sprintf("no lane has process %d", pid))
}

// await returns the signal that a traced thread stopped with, 0 if it has ended.
func await(t *testing.T, tid int) unix.Signal {
	t.Helper()
	var status uint32
	for {
		// Raw: the Go scheduler would do more work at each of the two than the kernel.
		_, _, e := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(tid), uintptr(unsafe.Pointer(&status)), unix.WALL, 0, 0, 0)
		switch w := unix.WaitStatus(status); {
		case e == unix.EINTR:
		case e == unix.ECHILD, e == 0 && !w.Stopped():
			return 0
		case e == 0:
			return w.StopSignal()
		default:
			require.NoError(t, e)
		}
	}
}

// step runs one instruction, a whole system call at most; false: the thread has ended.
func step(t *testing.T, tid int) bool {
	t.Helper()
	for sig := unix.Signal(0); ; {
		if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SINGLESTEP, uintptr(tid), 0, uintptr(sig), 0, 0); e != 0 {
			return false
		}
		switch sig = await(t, tid); sig {
		case 0:
			return false
		case unix.SIGTRAP:
			return true
		case unix.SIGURG:
			sig = 0 // asks for what is switched off
		}
	}
}

// atSleep reports whether the thread's next instruction is its futex wait.
func atSleep(tid int) bool {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) != nil || regs.Rax != unix.SYS_FUTEX || regs.Rsi != 0 {
		return false
	}
	var code [2]byte
	n, err := unix.PtracePeekText(tid, uintptr(regs.Rip), code[:])
	return err == nil && n == 2 && code == [2]byte{0x0f, 0x05}
}

// ---- after every store --------------------------------------------------------------------------------------------

// dying is a worker that does what worker.go does, and dies at the point that the test asks for: after each store to shared memory there
// is one. It is this test binary again, caught before TestMain.
const envDying = "POOL_TEST_DYING"

// Words of the file that test and workers share, before the counts of runs.
const (
	wordArmed = iota // 1: somebody is to die; who does it takes it down
	wordPoint        // where
	wordPassed
	wordCounts
)

func init() {
	if name, value := os.Getenv(envDying), os.Getenv(EnvWorker); name != "" && value != "" {
		fmt.Fprintln(os.Stderr, beDying(name, value))
		os.Exit(1)
	}
}

func beDying(name, value string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	words, err := mapCounts(f)
	if err != nil {
		return err
	}
	a, err := parseAssignment(value)
	if err != nil {
		return err
	}
	if err := start.WatchParent(a.parent); err != nil {
		return err
	}
	h, err := attach(a)
	if err != nil {
		return err
	}
	point := func() {
		if atomic.LoadUint32(&words[wordArmed]) == 1 && atomic.AddUint32(&words[wordPassed], 1)-1 == atomic.LoadUint32(&words[wordPoint]) &&
			atomic.CompareAndSwapUint32(&words[wordArmed], 1, 0) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	ring := func(b *bell) {
		if b.waiters.Load() != 0 && b.waiters.Swap(0) != 0 {
			point()
			b.seq.Add(1)
			point()
			shm.FutexWake(b.addr(), math.MaxInt32)
			point()
		}
	}
	if err := h.send(kindReady, nil, nil); err != nil {
		return err
	}
	h.ringParent()
	for {
		rec, err := h.next() // its last store takes the task
		if err != nil {
			return err
		}
		if rec.Body == nil {
			os.Exit(0)
		}
		point()
		in, err := h.input(rec)
		if err != nil {
			return err
		}
		atomic.AddUint32(&words[wordCounts+int(in[0])], 1)
		point()
		size, flags := sizeResultHead+len(in), uint16(0)
		var ref bulkRef
		if size > h.results.Max() {
			block, slot, err := h.block(len(in))
			if err != nil {
				return err
			}
			point()
			copy(block.Bytes, in[:len(in)/2])
			point()
			copy(block.Bytes, in)
			point()
			ref = bulkRef{off: uint64(block.Off), size: uint64(len(in)), slot: uint32(slot)}
			size, flags = sizeResultHead+sizeBulkRef, flagBulk
		}
		var buf []byte
		h.wait(&h.head.spaceBell, func() (ok bool) {
			buf, _, ok = h.results.Stage(kindResult, flags, size)
			return ok
		})
		point()
		*at[resultHead](buf) = resultHead{number: at[taskHead](rec.Body).number, runNS: 1000}
		point()
		if flags != 0 {
			*at[bulkRef](buf[sizeResultHead:]) = ref
		} else {
			copy(buf[sizeResultHead:], in)
		}
		point()
		h.results.Publish()
		point()
		if flags != 0 {
			h.large.Done(in)
		}
		h.tasks.ReleaseTo(rec.End)
		point()
		h.board.ready[h.slot/64].Or(1 << (h.slot % 64))
		point()
		if h.board.fore.waiters.Load() != 0 {
			ring(&h.board.fore)
		} else {
			ring(&h.board.back)
		}
	}
}

func TestWorkerDiesAfterEveryStore(t *testing.T) {
	name := filepath.Join(t.TempDir(), "words")
	f, err := os.Create(name)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	require.NoError(t, f.Truncate(int64(os.Getpagesize())))
	words, err := mapCounts(f)
	require.NoError(t, err)
	defer func() { _ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 4*len(words))) }()
	for _, workers := range []int{1, 3} {
		for how, wait := range map[string]bool{"waiting": true, "nobody waits": false} {
			t.Run(fmt.Sprintf("%d workers, %s", workers, how), func(t *testing.T) {
				p := opened(t, Options{Workers: workers, Env: append(os.Environ(), envDying+"="+name)})
				points, lost := 0, 0
				for ; ; points++ {
					n, died := dieAt(t, p, words, points, wait)
					if !died {
						break
					}
					lost += n
				}
				require.Greater(t, points, 30)
				require.Greater(t, lost, 15)
				t.Logf("%d points, %d of them lost a task", points, lost)
				clear(words)
			})
		}
	}
}

// dieAt gives the pool four tasks, and the worker that comes to the point dies.
func dieAt(t *testing.T, p *Pool, words []uint32, point int, wait bool) (lost int, died bool) {
	const tasks, big = 4, 2
	eventually(t, func() bool { return readyWorkers(p) == p.opt.Workers })
	clear(words)
	words[wordPoint] = uint32(point)
	atomic.StoreUint32(&words[wordArmed], 1)
	var data []byte
	var sizes []uint64
	for i := range byte(tasks) {
		b := make([]byte, 16)
		if i == big {
			b = make([]byte, sweepBytes)
		}
		b[0] = i
		data, sizes = append(data, b...), append(sizes, uint64(len(b)))
	}
	p.mu.Lock()
	p.meanNS = 1000
	if point%2 == 1 {
		p.meanNS = float64(time.Second) // one at a time: without a ring there is no next
	}
	p.mu.Unlock()
	_, err := p.SubmitBytes(1, data, sizes, 0)
	require.NoError(t, err)
	if !wait {
		eventually(t, func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.open == 0
		})
	}
	var seen [tasks]int
	for got := 0; got < tasks; {
		n, err := p.Collect(tasks, enough, func(r Result) {
			seen[r.Cookie]++
			runs := atomic.LoadUint32(&words[wordCounts+r.Cookie])
			switch r.Outcome {
			case OK:
				require.Equal(t, uint32(1), runs, "task %d, point %d", r.Cookie, point)
				require.Equal(t, int(sizes[r.Cookie]), len(r.Data))
				require.Equal(t, byte(r.Cookie), r.Data[0])
			case Lost:
				require.LessOrEqual(t, runs, uint32(1), "task %d, point %d", r.Cookie, point)
				lost++
			default:
				require.Failf(t, "outcome", "%d of task %d, point %d", r.Outcome, r.Cookie, point)
			}
		})
		require.NoError(t, err, "point %d: %+v", point, p.State())
		got += n
	}
	require.Equal(t, [tasks]int{1, 1, 1, 1}, seen, "point %d", point)
	// Only who comes to a point dies; the last ones are behind the last result.
	died = atomic.LoadUint32(&words[wordArmed]) == 0
	atomic.StoreUint32(&words[wordArmed], 0)
	died = died || atomic.LoadUint32(&words[wordPassed]) > uint32(point)
	if !died {
		require.Zero(t, lost, "point %d", point)
	}
	require.LessOrEqual(t, lost, 1, "point %d", point)
	eventually(t, func() bool { return readyWorkers(p) == p.opt.Workers })
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Zero(t, p.open)
	require.Zero(t, p.blocks)
	return lost, died
}
