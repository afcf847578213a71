//go:build linux

package pool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

// What a pool must bear: workers that write nonsense, callers that come after the end, deaths at the worst moment, and large numbers.

const enough = 30 * time.Second // bounds every wait: reaching it is a hang

var (
	quick = Register("quick", func(_ context.Context, n int) (int, error) { return n, nil })
	// touch makes a file: what it does is seen without a call to the pool.
	touch = Register("touch", func(_ context.Context, name string) (int, error) { return os.Getpid(), os.WriteFile(name, nil, 0o600) })
	nap   = Register("nap", func(_ context.Context, ms int) (int, error) {
		time.Sleep(time.Duration(ms) * time.Millisecond)
		return os.Getpid(), nil
	})
	// fill returns so many bytes and then, at the next task, dies.
	fill = Register("fill", func(_ context.Context, n int) ([]byte, error) {
		if n < 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return make([]byte, n), nil
	})
)

func opened(t testing.TB, opt Options) *Pool {
	t.Helper()
	p, err := Open(opt)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), enough)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(enough); !cond(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(end), "hang")
	}
}

// healthy maps 500 items.
func healthy(t testing.TB, p *Pool) {
	t.Helper()
	in := make([]int, 500)
	for i := range in {
		in[i] = i
	}
	out, err := Map(within(t), p, quick, in)
	require.NoError(t, err)
	require.Equal(t, in, out)
}

// stopped is the one worker of a pool, held by SIGSTOP until the test lets it go or kills it.
func stopped(t testing.TB, p *Pool) (pid int) {
	t.Helper()
	pids := p.PIDs()
	require.Len(t, pids, 1)
	pid = pids[0]
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.NoError(t, err)
		return len(stat) > 0 && statusLetter(stat) == 'T'
	})
	return pid
}

func statusLetter(stat []byte) byte {
	for i := len(stat) - 1; i > 0; i-- {
		if stat[i] == ')' {
			return stat[i+2]
		}
	}
	return 0
}

func words(ns ...int) (data []byte, sizes []uint64) {
	for _, n := range ns {
		data = binary.LittleEndian.AppendUint64(data, uint64(n))
		sizes = append(sizes, 8)
	}
	return data, sizes
}

// ---- after the end ------------------------------------------------------------------------------------------------

// The end of a context comes after the pool was closed: nothing may reach for the memory that is gone.
func TestContextEndsAfterClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 5 {
		p := opened(t, Options{Workers: 1})
		ctx, cancel := context.WithCancel(context.Background())
		for range 10 {
			_, err := Submit(ctx, p, quick, 1)
			require.NoError(t, err)
		}
		late, err := Submit(ctx, p, nap, 600_000)
		require.NoError(t, err)
		require.NoError(t, p.Close())
		cancel()
		_, err = late.Wait(within(t))
		require.Error(t, err)
		require.False(t, late.Cancel())
	}
	eventually(t, func() bool { return runtime.NumGoroutine() <= before })
}

func TestCallsAfterClose(t *testing.T) {
	p := opened(t, Options{Workers: 1})
	done, err := Submit(within(t), p, quick, 1)
	require.NoError(t, err)
	_, err = done.Wait(within(t))
	require.NoError(t, err)
	require.NoError(t, p.Close())

	_, err = done.Wait(within(t))
	require.NoError(t, err, "it has its result")
	require.Zero(t, p.State().Alive)
	require.Empty(t, p.PIDs())
	p.Drain()
	p.Terminate()
	p.Wake()
	require.NoError(t, p.Close())
	require.NoError(t, p.Shutdown(within(t)))
	_ = p.Join(0)
	_, err = p.Collect(1, time.Second, func(Result) {})
	require.ErrorIs(t, err, ErrClosed)
	_, err = p.WaitTask(1, time.Second)
	require.Error(t, err)
	require.Error(t, p.Cancel(1))
	_, err = p.SubmitBytes(quick.ID(), nil, []uint64{0}, 0)
	require.ErrorIs(t, err, ErrClosed)
	_, err = p.Vacancy(0)
	require.ErrorIs(t, err, ErrClosed)
	require.Error(t, p.Fill(Vacancy{}, nil))
	require.Error(t, p.Decline(Vacancy{}, nil))
	_, err = p.FunctionNumber(Module{}, 1)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, p.MapBytes(&Array{N: 1}), ErrClosed)
	_, err = Map(within(t), p, quick, []int{1})
	require.ErrorIs(t, err, ErrClosed)
	_, err = Submit(within(t), p, quick, 1)
	require.ErrorIs(t, err, ErrClosed)
	for _, err := range Stream(within(t), p, quick, func(yield func(int) bool) { yield(1) }) {
		require.ErrorIs(t, err, ErrClosed)
	}
}

// Free comes while other threads are in every call, as a host in a hurry does it.
func TestFreeWhileCalled(t *testing.T) {
	for range 15 {
		p := opened(t, Options{Workers: 2})
		var wg sync.WaitGroup
		started := make(chan struct{}, 16)
		for _, call := range []func() error{
			func() error { _, err := p.Collect(10, -1, func(Result) {}); return err },
			func() error { _, err := p.Collect(10, time.Millisecond, func(Result) {}); return err },
			func() error { _, err := Map(context.Background(), p, quick, make([]int, 100)); return err },
			func() error {
				first, err := p.SubmitBytes(quick.ID(), make([]byte, 16), []uint64{8, 8}, 0)
				if err == nil {
					_, err = p.WaitTask(first, -1)
				}
				return err
			},
			func() error { p.State(); p.PIDs(); p.Wake(); return p.Join(0) },
			func() error {
				for _, err := range StreamUnordered(context.Background(), p, quick, func(yield func(int) bool) {
					for yield(1) {
					}
				}) {
					if err != nil {
						return err
					}
				}
				return nil
			},
		} {
			wg.Go(func() {
				started <- struct{}{}
				for end := time.Now().Add(enough); time.Now().Before(end); {
					if err := call(); errors.Is(err, ErrClosed) || err == nil && p.State().Started == 0 {
						return
					}
					p.mu.Lock()
					over := p.freed
					p.mu.Unlock()
					if over {
						return
					}
				}
				t.Error("hang")
			})
			<-started
		}
		require.NoError(t, p.Close())
		wg.Wait()
	}
}

// ---- lost wake-ups ------------------------------------------------------------------------------------------------

// A worker dies after it took down the flag of the bell and before it woke the sleeper. Nobody waits in a call: the pool's own goroutine must
// get on all the same.
func TestRingDiesWithRinger(t *testing.T) {
	p := opened(t, Options{Workers: 1})
	healthy(t, p)
	sleeping := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.resting && p.board.back.waiters.Load() == 1
	}
	eventually(t, sleeping)
	p.mu.Lock()
	p.board.back.waiters.Store(0)   // what the worker did last
	p.meanNS = float64(time.Second) // one task to a lane at a time: the pool must look again and again
	p.mu.Unlock()
	require.NoError(t, syscall.Kill(p.PIDs()[0], syscall.SIGKILL))
	dir := t.TempDir()
	var data []byte
	var sizes []uint64
	for i := range 20 {
		name := filepath.Join(dir, fmt.Sprint(i))
		data, sizes = append(data, name...), append(sizes, uint64(len(name)))
	}
	_, err := p.SubmitBytes(touch.ID(), data, sizes, 0)
	require.NoError(t, err)
	eventually(t, func() bool {
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		return len(files) == 20
	})
}

// Tasks wait behind a long one while other workers are idle, and nobody waits in a call.
func TestTasksMoveWhenNobodyWaits(t *testing.T) {
	p := opened(t, Options{Workers: 4})
	healthy(t, p)
	eventually(t, func() bool { return p.State().Alive == 4 && readyWorkers(p) == 4 })
	p.mu.Lock()
	p.meanNS = 1000 // short: few lanes, filled deeply
	p.mu.Unlock()
	data, sizes := words(600_000, 600_000)
	_, err := p.SubmitBytes(nap.ID(), data, sizes, 0)
	require.NoError(t, err)
	dir := t.TempDir()
	data, sizes = nil, nil
	for i := range 20 {
		name := filepath.Join(dir, fmt.Sprint(i))
		data, sizes = append(data, name...), append(sizes, uint64(len(name)))
	}
	_, err = p.SubmitBytes(touch.ID(), data, sizes, 0)
	require.NoError(t, err)
	eventually(t, func() bool {
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		return len(files) == 20
	})
}

func readyWorkers(p *Pool) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ln := range p.lanes {
		if ln != nil && ln.state == laneStateReady {
			n++
		}
	}
	return n
}

// ---- races --------------------------------------------------------------------------------------------------------

// A worker that was given its last task, which is then taken back, must end: it holds a place that its replacement's replacement needs.
func TestLastTaskTakenBack(t *testing.T) {
	p := opened(t, Options{Workers: 1, MaxTasks: 5})
	_, err := Map(within(t), p, quick, []int{1, 2, 3})
	require.NoError(t, err)
	for range 3 {
		eventually(t, func() bool { return readyWorkers(p) == 1 && len(p.PIDs()) == 1 })
		pid := stopped(t, p)
		p.mu.Lock()
		p.meanNS = 1000
		p.mu.Unlock()
		data, sizes := words(1, 2, 3, 4, 5)
		first, err := p.SubmitBytes(quick.ID(), data, sizes, 0)
		require.NoError(t, err)
		for i := range uint64(5) {
			_ = p.Cancel(first + i) // the replacement may have been quicker
			_, err := p.WaitTask(first+i, enough)
			require.NoError(t, err)
		}
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
		eventually(t, func() bool { return p.State().Alive == 1 && !contains(p.PIDs(), pid) })
	}
}

func contains(list []int, x int) bool {
	for _, v := range list {
		if v == x {
			return true
		}
	}
	return false
}

func TestTerminatedWhileRunning(t *testing.T) {
	p := opened(t, Options{Workers: 2})
	data, sizes := words(600_000, 600_000, 600_000)
	first, err := p.SubmitBytes(nap.ID(), data, sizes, 0)
	require.NoError(t, err)
	eventually(t, func() bool { return p.State().Running == 2 })
	p.Terminate()
	for i := range uint64(3) {
		r, err := p.WaitTask(first+i, enough)
		require.NoError(t, err)
		require.Equal(t, Closed, r.Outcome, "task %d", i)
	}
	require.Zero(t, p.State().Lost)
}

// A start that is put off must not put off the end.
func TestEndDoesNotWaitForRespawn(t *testing.T) {
	for name, end := range map[string]func(*Pool){"Terminate": (*Pool).Terminate, "Drain": (*Pool).Drain} {
		t.Run(name, func(t *testing.T) {
			p := opened(t, Options{Workers: 2})
			healthy(t, p)
			p.mu.Lock()
			p.opt.Workers = 3
			p.ensure(time.Hour)
			require.Equal(t, 1, p.respawns)
			p.mu.Unlock()
			end(p)
			require.NoError(t, p.Join(enough))
		})
	}
}

// ---- hostile workers ----------------------------------------------------------------------------------------------

// forbidden is work whose caller has gone: its memory must not be looked at.
type forbidden struct{ gone, touched bool }

func (f *forbidden) size(uint64) int { f.touched = f.touched || f.gone; return 8 }
func (f *forbidden) put(_ uint64, b []byte) {
	f.touched = f.touched || f.gone
	binary.LittleEndian.PutUint64(b, 600_000)
}
func (f *forbidden) finish(uint64, *Result) { f.touched = f.touched || f.gone }

// The caller of a job has gone, and a worker makes a task that it runs look as if it had not started, and dies.
func TestDroppedTaskIsNotStartedAgain(t *testing.T) {
	p := opened(t, Options{Workers: 2})
	f := &forbidden{}
	j := &job{work: f, n: 2, fn: nap.ID()}
	p.mu.Lock()
	require.NoError(t, p.add(j))
	p.mu.Unlock()
	eventually(t, func() bool { return p.State().Running == 2 })
	p.mu.Lock()
	p.drop(j, false)
	f.gone = true
	require.Equal(t, uint64(2), j.open)
	var pids []int
	for _, ln := range p.lanes {
		if ln != nil && ln.pending.len() > 0 {
			ln.pending.at(0).head.state.Store(taskReady)
			pids = append(pids, ln.proc.PID())
		}
	}
	p.takeBack()
	p.takeBack()
	p.mu.Unlock()
	for _, pid := range pids {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	eventually(t, func() bool { p.mu.Lock(); defer p.mu.Unlock(); return j.open == 0 })
	healthy(t, p)
	require.False(t, f.touched)
	require.Zero(t, p.open)
}

// A task ring whose reader says nonsense about how far it is never has room again.
func TestTaskRingSpoilt(t *testing.T) {
	for _, head := range []uint64{1, 8, 1 << 40, 1 << 62} {
		p := opened(t, Options{Workers: 1})
		healthy(t, p)
		stopped(t, p)
		p.mu.Lock()
		p.lanes[0].head.taskHead += head
		p.meanNS = 1000 // short: the lane is filled deeply
		p.mu.Unlock()
		var data []byte
		var sizes []uint64
		for range 50 {
			data, sizes = append(data, make([]byte, 30_000)...), append(sizes, 30_000)
		}
		_, err := p.SubmitBytes(fill.ID()+1, data, sizes, 0) // no such function: each is answered by an error
		require.NoError(t, err)
		got := 0
		for got < 50 {
			n, err := p.Collect(50, enough, func(r Result) { require.Contains(t, []Outcome{Failed, Lost}, r.Outcome) })
			require.NoError(t, err)
			got += n
		}
		healthy(t, p)
	}
}

// Each kind of nonsense in a result ring costs the worker its life, and the pool nothing else.
func TestResultRingSpoilt(t *testing.T) {
	for name, spoil := range map[string]func(ln *lane){
		"tail back":       func(ln *lane) { ln.head.resultTail -= 8 },
		"tail far":        func(ln *lane) { ln.head.resultTail += 1 << 40 },
		"tail odd":        func(ln *lane) { ln.head.resultTail++ },
		"garbage":         func(ln *lane) { ln.head.resultTail += 4096; spoilFrom(ln, 0xff) },
		"zeros":           func(ln *lane) { ln.head.resultTail += 64; spoilFrom(ln, 0) },
		"never given":     func(ln *lane) { forge(ln, kindResult, 0, &resultHead{number: 1 << 40}) },
		"given long ago":  func(ln *lane) { forge(ln, kindResult, 0, &resultHead{number: 1}) },
		"too short":       func(ln *lane) { forge[bulkRef](ln, kindResult, 0, nil) },
		"unknown kind":    func(ln *lane) { forge(ln, 99, 0, &resultHead{}) },
		"block elsewhere": func(ln *lane) { forge(ln, kindInitFailed, flagBulk, &bulkRef{off: 0, size: 100}) },
		"block too long": func(ln *lane) {
			forge(ln, kindInitFailed, flagBulk, &bulkRef{off: uint64(ln.p.geo.resultOff), size: math.MaxUint64})
		},
		"slot": func(ln *lane) {
			forge(ln, kindInitFailed, flagBulk, &bulkRef{off: uint64(ln.p.geo.resultOff), size: 1, slot: maxSlots})
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := opened(t, Options{Workers: 1})
			healthy(t, p)
			pid := stopped(t, p)
			p.mu.Lock()
			ln := p.lanes[0]
			spoil(ln)
			p.board.ready[0].Or(1)
			p.board.ready[17].Store(math.MaxUint64) // lanes that there are not
			p.mu.Unlock()
			eventually(t, func() bool { p.State(); return !contains(p.PIDs(), pid) })
			healthy(t, p)
		})
	}
}

func spoilFrom(ln *lane, b byte) {
	ring := ln.mem[laneHead+ln.p.ringCap:]
	for i := range ring {
		ring[i] = b
	}
}

// forge publishes a record in a lane's result ring, as its worker would.
func forge[T any](ln *lane, kind, flags uint16, head *T, rest ...byte) {
	w, err := shm.NewProducer(&ln.head.resultTail, &ln.head.resultHead, ln.mem[laneHead+ln.p.ringCap:])
	if err != nil {
		panic(err)
	}
	n := len(rest)
	if head != nil {
		n += int(unsafe.Sizeof(*head))
	}
	buf, _, ok := w.Stage(kind, flags, n)
	if !ok {
		panic("the ring is full")
	}
	if head != nil {
		*at[T](buf) = *head
		buf = buf[unsafe.Sizeof(*head):]
	}
	copy(buf, rest)
	w.Publish()
}

// bare is a pool with lanes that have no processes, for what workers may write.
func bare(t testing.TB, lanes int) *Pool {
	t.Helper()
	p := &Pool{opt: Options{Workers: lanes, OutMax: 1 << 16, HostStarts: true}, ringCap: 64 << 10, stopped: make(chan struct{}),
		modules: map[string]int{}, vacancyNews: make(chan struct{}), timers: map[*time.Timer]struct{}{}}
	p.idle = sync.NewCond(&p.mu)
	require.NoError(t, p.allocate())
	t.Cleanup(func() { p.mu.Lock(); defer p.mu.Unlock(); p.release() })
	return p
}

// bareLane is a lane of it, afresh, with n tasks in its ring.
func bareLane(t testing.TB, p *Pool, n uint64) (*lane, *forbidden) {
	t.Helper()
	ln, err := p.laneAt(0)
	require.NoError(t, err)
	ln.state, ln.ready, ln.proc = laneStateReady, true, &start.Process{}
	f := &forbidden{}
	if n > 0 {
		j := &job{work: f, n: n, next: n, open: n}
		p.open += n
		for i := range n {
			ok, err := ln.stage(j, i, 1, nil)
			require.NoError(t, err)
			require.True(t, ok)
		}
		p.feed()
	}
	return ln, f
}

// A result too large for this machine is an outcome of its task, not the end of the worker.
func TestResultTooLargeForMemory(t *testing.T) {
	p := bare(t, 1)
	ln, err := p.laneAt(0)
	require.NoError(t, err)
	ln.state, ln.proc = laneStateReady, &start.Process{}
	b := &batch{p: p, ends: []uint64{0}}
	b.job = &job{work: b, n: 1, next: 1, open: 1}
	p.open++
	_, err = ln.stage(b.job, 0, 1, nil)
	require.NoError(t, err)
	p.feed()
	ln.head.slots[3].Store(1)
	ref := bulkRef{off: uint64(p.geo.resultOff), size: uint64(p.geo.resultSize), slot: 3}
	var body [sizeBulkRef]byte
	*at[bulkRef](body[:]) = ref
	forge(ln, kindResult, flagBulk, &resultHead{number: 1}, body[:]...)
	require.NoError(t, ln.drain())
	require.Equal(t, NoMemory, b.results[0].Outcome)
	require.Zero(t, ln.head.slots[3].Load())
	require.Zero(t, p.open)
}

// What an initializer says is believed only before the worker is ready, and only so much of it.
func TestInitFailedTwice(t *testing.T) {
	p := bare(t, 1)
	ln, _ := bareLane(t, p, 1)
	forge(ln, kindInitFailed, 0, &resultHead{})
	require.ErrorIs(t, ln.drain(), shm.ErrCorrupt)
	ln, _ = bareLane(t, p, 0)
	ln.state = laneStateStarting
	forge(ln, kindInitFailed, 0, &resultHead{})
	forge(ln, kindInitFailed, 0, &resultHead{})
	require.ErrorIs(t, ln.drain(), shm.ErrCorrupt)
}

// A lane that was spoilt stays so: what lies behind the nonsense is not read.
func TestSpoiltLaneIsNotReadOn(t *testing.T) {
	p := bare(t, 1)
	ln, _ := bareLane(t, p, 2)
	forge(ln, kindResult, 0, &resultHead{number: 77})
	forge(ln, kindResult, 0, &resultHead{number: 1})
	require.ErrorIs(t, ln.drain(), shm.ErrCorrupt)
	require.ErrorIs(t, ln.drain(), shm.ErrCorrupt)
	require.Equal(t, uint64(2), p.open)
}

// A forked child writes over the generation of its lane before its parent says that it is there.
func TestVacancyGenerationIsTheParents(t *testing.T) {
	p := opened(t, Options{Workers: 1, HostStarts: true})
	v, err := p.Vacancy(enough)
	require.NoError(t, err)
	p.mu.Lock()
	p.lanes[v.Lane].head.generation.Add(5)
	p.mu.Unlock()
	require.NoError(t, p.Decline(v, errors.New("no")))
}

// The words of a lane change while the parent reads them.
func TestLaneChangesWhileRead(t *testing.T) {
	p := bare(t, 1)
	p.geo.resultSize = 1 << 20
	random := rand.New(rand.NewPCG(1, 2))
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		ln, _ := bareLane(t, p, 50)
		for i := range uint64(50) {
			var body [sizeBulkRef]byte
			*at[bulkRef](body[:]) = bulkRef{off: uint64(p.geo.resultOff), size: 4096, slot: uint32(i)}
			forge(ln, kindResult, flagBulk, &resultHead{number: i + 1}, body[:]...)
		}
		ring := ln.mem[laneHead+p.ringCap:]
		quit, quitted := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(quitted)
			for {
				select {
				case <-quit:
					return
				default:
				}
				for range 100 {
					ring[random.IntN(4096)] = byte(random.Uint32())
				}
				ln.head.slots[random.IntN(maxSlots)].Store(random.Uint32())
			}
		}()
		for range 20 {
			if ln.drain() != nil {
				break
			}
		}
		close(quit)
		<-quitted
	}
}

// ---- memory -------------------------------------------------------------------------------------------------------

// More tasks than fit into memory at a time wait for those before them.
func TestArenaSmallerThanTasks(t *testing.T) {
	p := opened(t, Options{Workers: 3})
	p.mu.Lock()
	p.arena.Close()
	p.arena = shm.NewArena(p.seg, p.geo.taskOff, 1<<20)
	p.mu.Unlock()
	in := make([][]byte, 40)
	for i := range in {
		in[i] = make([]byte, 400_000)
		in[i][0] = byte(i)
	}
	out, err := Map(within(t), p, mirrorBytes, in)
	require.NoError(t, err)
	for i := range out {
		require.Equal(t, byte(i), out[i][0])
	}
	_, err = Map(within(t), p, mirrorBytes, [][]byte{make([]byte, 2<<20)})
	require.ErrorIs(t, err, ErrMemory)
	require.ErrorIs(t, err, shm.ErrNoMemory)
	require.ErrorContains(t, err, "block of 2097152 bytes")
	healthy(t, p)
}

// A result that does not fit is an error of the task, with its reason.
func TestNoMemoryForAResult(t *testing.T) {
	p := opened(t, Options{Workers: 1})
	_, err := Map(within(t), p, fillLimited, []int{4 << 20})
	var task *TaskError
	require.ErrorAs(t, err, &task)
	require.ErrorContains(t, err, "result of 419")
	require.ErrorIs(t, err, shm.ErrNoMemory)
	healthy(t, p)
}

// fillLimited makes a result that is larger than all that its worker's results may take.
var fillLimited = Register("fill limited", func(ctx context.Context, n int) ([]byte, error) {
	h := ctx.(*taskContext).h
	h.arena = shm.NewArena(h.seg, int64(h.board.resultOff)+int64(h.slot)*int64(h.board.resultSize), 1<<20)
	return make([]byte, n), nil
})

var mirrorBytes = Register("mirror bytes", func(_ context.Context, b []byte) ([]byte, error) { return b, nil })

// The storage of results goes with the worker that made them.
func TestStorageOfTheDead(t *testing.T) {
	p := opened(t, Options{Workers: 1})
	healthy(t, p)
	storage := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(p.seg.FD(), &st))
		return st.Blocks * 512
	}
	before := storage()
	for range 3 {
		_, err := Map(within(t), p, fill, []int{32 << 20})
		require.NoError(t, err)
		require.Greater(t, storage(), before+(30<<20))
		_, err = Map(within(t), p, fill, []int{-1})
		var lost *WorkerLostError
		require.ErrorAs(t, err, &lost)
		healthy(t, p)
		require.Less(t, storage(), before+(2<<20))
	}
}

// Results that nobody takes do not make the others pile up.
func TestDoneQueueStaysSmall(t *testing.T) {
	var q doneQueue
	forgotten := &batch{results: []Result{{}}}
	q.push(forgotten, 0)
	for i := range 100_000 {
		b := &batch{results: []Result{{}}}
		q.push(b, 0)
		before := q.len()
		q.remove(b, 0)
		b.results[0].Outcome = resultTaken
		if before != 2 || q.len() != 1 {
			t.Fatal(i, before, q.len())
		}
	}
	require.Less(t, len(q.items), 1000)
	b, _, ok := q.pop()
	require.True(t, ok)
	require.Same(t, forgotten, b)
	_, _, ok = q.pop()
	require.False(t, ok)
	require.Zero(t, q.len())
}

// Calls that are dropped while all workers are busy leave nothing behind.
func TestDroppedCallsAreForgotten(t *testing.T) {
	p := opened(t, Options{Workers: 1})
	_, err := Submit(within(t), p, nap, 600_000)
	require.NoError(t, err)
	eventually(t, func() bool { return p.State().Running == 1 })
	for range 5000 {
		task, err := Submit(within(t), p, quick, 1)
		require.NoError(t, err)
		require.True(t, task.Cancel())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Less(t, len(p.queue), 100)
}

// ---- large numbers ------------------------------------------------------------------------------------------------

func TestCancelMany(t *testing.T) {
	const n = 200_000
	p := opened(t, Options{Workers: 1})
	data, sizes := words(600_000)
	_, err := p.SubmitBytes(nap.ID(), data, sizes, 0)
	require.NoError(t, err)
	eventually(t, func() bool { return p.State().Running == 1 })
	first, err := p.SubmitBytes(quick.ID(), make([]byte, 8*n), fillSizes(n), 0)
	require.NoError(t, err)
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	begun := time.Now()
	for _, i := range order[:n-100] {
		if once, twice := p.Cancel(first+uint64(i)), p.Cancel(first+uint64(i)); once != nil || twice != ErrStarted {
			t.Fatal(once, twice)
		}
		require.Less(t, time.Since(begun), enough)
	}
	require.Equal(t, uint64(100), p.State().Waiting)
	require.NoError(t, syscall.Kill(p.PIDs()[0], syscall.SIGKILL))
	got := map[Outcome]int{}
	for total := 0; total < n+1; {
		k, err := p.Collect(10000, enough, func(r Result) { got[r.Outcome]++ })
		require.NoError(t, err)
		total += k
	}
	require.Equal(t, map[Outcome]int{Lost: 1, Cancelled: n - 100, OK: 100}, got)
	require.Zero(t, p.State().Waiting)
}

func fillSizes(n int) []uint64 {
	sizes := make([]uint64, n)
	for i := range sizes {
		sizes[i] = 8
	}
	return sizes
}

// Cancelled tasks of a job are not counted again when the job ends as a whole.
func TestCancelThenTerminate(t *testing.T) {
	p := opened(t, Options{Workers: 1})
	data, sizes := words(600_000)
	_, err := p.SubmitBytes(nap.ID(), data, sizes, 0)
	require.NoError(t, err)
	eventually(t, func() bool { return p.State().Running == 1 })
	first, err := p.SubmitBytes(quick.ID(), make([]byte, 80), fillSizes(10), 0)
	require.NoError(t, err)
	for _, i := range []uint64{3, 4, 9, 0} {
		require.NoError(t, p.Cancel(first+i))
	}
	p.Terminate()
	require.NoError(t, p.Join(enough))
	got := map[Outcome]int{}
	for {
		_, err := p.Collect(10, 0, func(r Result) { got[r.Outcome]++ })
		if errors.Is(err, ErrClosed) {
			break
		}
		require.NoError(t, err)
	}
	require.Equal(t, map[Outcome]int{Cancelled: 4, Closed: 7}, got)
}

// Results are taken in an order of the caller's.
func TestForgetInAnyOrder(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	p := &Pool{}
	jobs := make([]*job, n)
	for i := range jobs {
		b := &batch{p: p}
		b.job = &job{work: b, first: uint64(i + 1), n: 1}
		jobs[i] = b.job
		p.jobs = append(p.jobs, b.job)
	}
	begun := time.Now()
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
		there := p.find(jobs[i].first) >= 0
		p.forget(jobs[i])
		if gone := p.find(jobs[i].first) < 0; !there || !gone {
			t.Fatal(i, there, gone)
		}
		if i%1000 == 0 {
			require.Less(t, time.Since(begun), enough)
		}
	}
	require.Empty(t, p.jobs)
}

func TestEntriesNearlyFull(t *testing.T) {
	var q entries
	for i := range uint64(1 << 16) {
		q.push(entry{i: i})
	}
	for len(q.items) < cap(q.items) {
		q.push(entry{i: uint64(len(q.items))})
	}
	begun := time.Now()
	for k := range uint64(1 << 17) {
		if q.at(0).i != k {
			t.Fatal(q.at(0).i, k)
		}
		q.pop()
		q.push(entry{i: k + uint64(q.len()) + 1})
		if k%1000 == 0 {
			require.Less(t, time.Since(begun), enough)
		}
	}
	require.LessOrEqual(t, cap(q.items), 1<<19)
}

func TestLearnFromAClockThatStands(t *testing.T) {
	p := &Pool{}
	for range 100_000 {
		p.learn(0)
	}
	require.Equal(t, maxDepth, p.depth())
	p.learn(math.MaxUint64)
	require.Equal(t, 1, p.depth())
}

func TestArraySizesOverflow(t *testing.T) {
	p := bare(t, 1)
	for _, a := range []Array{
		{N: 1 << 63, InSize: 2},
		{N: 1 << 62, OutSize: 4},
		{N: 1 << 62, InSize: 1 << 40},
		{N: 1, InSize: -1},
		{N: 1, OutSize: outMaxDefault},
	} {
		require.ErrorIs(t, p.MapBytes(&a), ErrInvalid)
	}
}
