//go:build linux

package pool_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pool"
	"github.com/polyproc/polyproc/core/start"
)

func open(t testing.TB, opt pool.Options) *pool.Pool {
	t.Helper()
	p, err := pool.Open(opt)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func numbers(n int) []int {
	in := make([]int, n)
	for i := range in {
		in[i] = i
	}
	return in
}

// works maps 1,000 items: what every pool must still do after a failure.
func works(t testing.TB, p *pool.Pool) {
	t.Helper()
	out, err := pool.Map(limited(t), p, square, numbers(1000))
	require.NoError(t, err)
	for i := range out {
		require.Equal(t, i*i, out[i])
	}
}

func TestMap(t *testing.T) {
	for _, workers := range []int{1, 2, 5, 64} {
		p := open(t, pool.Options{Workers: workers})
		for _, n := range []int{0, 1, 2, 1000, 50000} {
			out, err := pool.Map(limited(t), p, square, numbers(n))
			require.NoError(t, err)
			require.Len(t, out, n)
			for i := range out {
				require.Equal(t, i*i, out[i])
			}
		}
		require.NoError(t, p.Shutdown(limited(t)))
		require.Zero(t, p.State().Alive)
		_, err := pool.Map(limited(t), p, square, numbers(1))
		require.ErrorIs(t, err, pool.ErrClosed)
		require.NoError(t, p.Close(), "Shutdown has closed it")
	}
}

func TestMapFromManyGoroutines(t *testing.T) {
	p := open(t, pool.Options{Workers: 3})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				out, err := pool.Map(limited(t), p, square, numbers(500))
				if err != nil || out[499] != 499*499 {
					t.Errorf("%v %v", out, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestSizes(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	for _, n := range []int{0, 1, 100, 4 << 10, 65000, 65536, 70000, 1 << 20, 5<<20 + 3, 100 << 20} {
		data := bytes.Repeat([]byte{byte(n), 1, 2, 3, 5, 7, 11}, n/7+1)[:n]
		out, err := pool.Map(limited(t), p, echo, [][]byte{data, data})
		require.NoError(t, err, n)
		require.True(t, bytes.Equal(data, out[0]) && bytes.Equal(data, out[1]), n)
	}
	works(t, p)
}

func TestBigBurst(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	in := make([][]byte, 700)
	for i := range in {
		in[i] = bytes.Repeat([]byte{byte(i)}, 200_000+i)
	}
	out, err := pool.Map(limited(t), p, echo, in)
	require.NoError(t, err)
	for i := range in {
		require.True(t, bytes.Equal(in[i], out[i]), i)
	}
}

type point struct {
	X, Y float64
	Name string
	Tags map[string]int
}

var mirror = pool.Register("mirror", func(_ context.Context, p point) (*point, error) { return &point{-p.X, -p.Y, p.Name, p.Tags}, nil })

func TestGob(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	out, err := pool.Map(limited(t), p, mirror, []point{{1, 2, "a", map[string]int{"k": 1}}, {}})
	require.NoError(t, err)
	require.Equal(t, &point{-1, -2, "a", map[string]int{"k": 1}}, out[0])
}

func TestFailures(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	t.Run("error", func(t *testing.T) {
		_, err := pool.Map(limited(t), p, fail, []int{3})
		var te *pool.TaskError
		require.ErrorAs(t, err, &te)
		require.Equal(t, "no 3", te.Message)
		require.False(t, te.Panic)
	})
	t.Run("panic", func(t *testing.T) {
		_, err := pool.Map(limited(t), p, crash, []int{11})
		var te *pool.TaskError
		require.ErrorAs(t, err, &te)
		require.True(t, te.Panic)
		require.Contains(t, te.Message, "nil pointer")
	})
	for name, c := range map[string]struct {
		in     int
		status start.Status
	}{"exit": {7, start.Status{Known: true, Code: 7}}, "SIGKILL": {9, start.Status{Known: true, Signal: syscall.SIGKILL}}} {
		t.Run(name, func(t *testing.T) {
			out, err := pool.Map(limited(t), p, crash, []int{0, 1, c.in, 3, 4})
			var lost *pool.WorkerLostError
			require.ErrorAs(t, err, &lost)
			require.Equal(t, c.status, lost.Status)
			require.NotZero(t, lost.PID)
			require.Equal(t, "crash", lost.Task)
			require.Equal(t, []int{0, 1, 0, 3, 4}, out, "the other tasks are not hurt")
			works(t, p)
			require.Equal(t, 2, p.State().Workers)
		})
	}
	t.Run("unknown function", func(t *testing.T) {
		_, err := p.SubmitBytes(12345, []byte("x"), []uint64{1}, 0)
		require.NoError(t, err)
		_, err = p.Collect(1, deadline, func(r pool.Result) {
			require.Equal(t, pool.Failed, r.Outcome)
			require.Contains(t, string(r.Data), "no function")
		})
		require.NoError(t, err)
	})
	works(t, p)
}

// A worker that dies has tasks waiting in its ring: they must all be done by others, each once.
func TestDeathWithTasksWaiting(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	works(t, p) // the pool has learnt that tasks are short, and fills lanes deeply
	in := numbers(20000)
	for i := range in {
		in[i] = 100
		if i%2000 == 77 {
			in[i] = 9
		}
	}
	tasks := map[uint64]pool.Outcome{}
	for i, err := range pool.StreamUnordered(limited(t), p, crash, seq(in)) {
		var lost *pool.WorkerLostError
		switch {
		case err == nil:
			require.Equal(t, 100, i)
			tasks[uint64(len(tasks))] = pool.OK
		case errors.As(err, &lost):
			tasks[uint64(len(tasks))] = pool.Lost
		default:
			require.NoError(t, err)
		}
	}
	require.Len(t, tasks, len(in))
	lost := 0
	for _, o := range tasks {
		if o == pool.Lost {
			lost++
		}
	}
	require.Equal(t, 10, lost)
}

func seq[T any](in []T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, v := range in {
			if !yield(v) {
				return
			}
		}
	}
}

func TestInitializer(t *testing.T) {
	t.Run("gets its argument", func(t *testing.T) {
		for _, n := range []int{0, 1, 1 << 20} {
			p := open(t, pool.Options{Workers: 1, Initializer: initBig(make([]byte, n))})
			out, err := pool.Map(limited(t), p, sizeSeen, []struct{}{{}})
			require.NoError(t, err)
			require.Equal(t, []int{n}, out)
		}
	})
	t.Run("fails once", func(t *testing.T) {
		p := open(t, pool.Options{Workers: 2, Initializer: initOnce(filepath.Join(t.TempDir(), "flag"))})
		works(t, p)
		require.Equal(t, 2, p.State().Workers)
	})
	t.Run("always fails", func(t *testing.T) {
		for _, workers := range []int{1, 2, 8} {
			p := open(t, pool.Options{Workers: workers, Initializer: initNever(0)})
			for range 3 {
				_, err := pool.Map(limited(t), p, square, numbers(10))
				require.ErrorIs(t, err, pool.ErrInit)
				require.ErrorContains(t, err, "never ready")
			}
			require.LessOrEqual(t, p.State().Started, uint64(workers+3), "no respawning for ever")
			require.NoError(t, p.Shutdown(limited(t)))
		}
	})
	t.Run("exits", func(t *testing.T) {
		p := open(t, pool.Options{Workers: 2, Initializer: initExit(struct{}{})})
		_, err := pool.Map(limited(t), p, square, numbers(10))
		require.ErrorIs(t, err, pool.ErrStart)
		require.ErrorContains(t, err, "exit code 3")
	})
}

func TestMaxTasks(t *testing.T) {
	p := open(t, pool.Options{Workers: 2, MaxTasks: 3})
	seen := map[int]int{}
	for range 4 {
		out, err := pool.Map(limited(t), p, sleep, make([]int, 10))
		require.NoError(t, err)
		for _, pid := range out {
			seen[pid]++
		}
	}
	for pid, n := range seen {
		require.LessOrEqual(t, n, 3, pid)
	}
	require.GreaterOrEqual(t, len(seen), 14)
	require.NoError(t, p.Shutdown(limited(t)))
}

func TestLongTasksGoToDifferentWorkers(t *testing.T) {
	p := open(t, pool.Options{Workers: 8})
	works(t, p) // short tasks first: they fill only a few lanes
	in := make([]int, 8)
	for i := range in {
		in[i] = 300
	}
	begun := time.Now()
	out, err := pool.Map(limited(t), p, sleep, in)
	require.NoError(t, err)
	pids := map[int]bool{}
	for _, pid := range out {
		pids[pid] = true
	}
	require.Len(t, pids, 8, "each worker has one")
	t.Logf("8 sleeps of 300 ms: %v", time.Since(begun))
}

func TestCancel(t *testing.T) {
	p := open(t, pool.Options{Workers: 1})
	works(t, p)
	first, err := pool.Submit(limited(t), p, sleep, 200)
	require.NoError(t, err)
	for p.State().Running != 1 {
		time.Sleep(time.Millisecond)
	}
	var later []*pool.Task[int]
	for range 5 {
		task, err := pool.Submit(limited(t), p, sleep, 0)
		require.NoError(t, err)
		later = append(later, task)
	}
	require.False(t, first.Cancel(), "it runs")
	require.True(t, later[1].Cancel())
	require.True(t, later[4].Cancel())
	for i, task := range later {
		_, err := task.Wait(limited(t))
		if i == 1 || i == 4 {
			require.ErrorIs(t, err, pool.ErrCancelled)
		} else {
			require.NoError(t, err)
		}
	}
	_, err = first.Wait(limited(t))
	require.NoError(t, err)
}

func TestContextKillsTheTask(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	works(t, p)
	ctx, cancel := context.WithCancel(limited(t))
	time.AfterFunc(50*time.Millisecond, cancel)
	begun := time.Now()
	_, err := pool.Map(ctx, p, sleep, []int{600_000, 600_000, 600_000})
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, time.Since(begun), deadline)
	works(t, p)
	task, err := pool.Submit(ctx, p, sleep, 1)
	require.ErrorIs(t, err, context.Canceled)
	require.Nil(t, task)
	waitFor(t, func() bool { return p.State().Running == 0 })
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !cond(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(end), "hang")
	}
}

func TestStreamTakesNothingAfterItsContext(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	for _, stream := range []func(context.Context, *pool.Pool, *pool.Func[int, int], iter.Seq[int]) iter.Seq2[int, error]{
		pool.Stream[int, int], pool.StreamUnordered[int, int],
	} {
		for end := range 3 {
			ctx, cancel := context.WithCancel(limited(t))
			taken, yielded := 0, 0
			var last error
			for _, err := range stream(ctx, p, square, func(yield func(int) bool) {
				for ; ; taken++ {
					if taken == end {
						cancel() // while the sequence makes an input
					}
					if !yield(taken) {
						return
					}
				}
			}) {
				if last = err; err == nil {
					yielded++
				}
			}
			cancel()
			require.ErrorIs(t, last, context.Canceled)
			require.Equal(t, end, taken)
			require.LessOrEqual(t, yielded, end)
		}
	}
}

func TestStream(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	pulled := 0
	endless := func(yield func(int) bool) {
		for i := 0; ; i++ {
			pulled++
			if !yield(i) {
				return
			}
		}
	}
	got := 0
	for out, err := range pool.Stream(limited(t), p, square, endless) {
		require.NoError(t, err)
		require.Equal(t, got*got, out)
		if got++; got == 1000 {
			break
		}
	}
	require.LessOrEqual(t, pulled, 2*1000+4*2+1, "the stream does not run away")
	sum := 0
	for out, err := range pool.StreamUnordered(limited(t), p, square, seq(numbers(3000))) {
		require.NoError(t, err)
		sum += out
	}
	require.Equal(t, 2999*3000*5999/6, sum)
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	n := 0
	for _, err := range pool.Stream(ctx, p, sleep, seq([]int{0, 0, 600_000, 600_000})) {
		if n++; n == 2 {
			cancel()
		}
		if n == 3 {
			require.ErrorIs(t, err, context.Canceled)
		} else {
			require.NoError(t, err)
		}
	}
	require.Equal(t, 3, n)
	works(t, p)
}

func TestTerminate(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	task, err := pool.Submit(limited(t), p, sleep, 600_000)
	require.NoError(t, err)
	done := make(chan error)
	go func() {
		_, err := task.Wait(limited(t))
		done <- err
	}()
	waitFor(t, func() bool { return p.State().Running == 1 })
	p.Terminate()
	require.Error(t, <-done)
	require.NoError(t, p.Join(deadline))
	require.Zero(t, p.State().Alive)
}

func TestCollectAndWait(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	echoID := echo.ID()
	first, err := p.SubmitBytes(echoID, []byte("aabbbc"), []uint64{2, 3, 1}, 40)
	require.NoError(t, err)
	r, err := p.WaitTask(first+1, deadline)
	require.NoError(t, err)
	require.Equal(t, "bbb", string(r.Data))
	require.Equal(t, uint64(41), r.Cookie)
	_, err = p.WaitTask(first+1, 0)
	require.ErrorIs(t, err, pool.ErrNoTask, "each result can be taken once")
	got := map[uint64]string{}
	for len(got) < 2 {
		_, err := p.Collect(10, deadline, func(r pool.Result) { got[r.Cookie] = string(r.Data) })
		require.NoError(t, err)
	}
	require.Equal(t, map[uint64]string{40: "aa", 42: "c"}, got)
	_, err = p.Collect(10, 0, func(pool.Result) {})
	require.ErrorIs(t, err, pool.ErrTimeout)
	_, err = p.WaitTask(first+100, 0)
	require.ErrorIs(t, err, pool.ErrNoTask)

	woken := make(chan int)
	go func() {
		n, _ := p.Collect(10, deadline, func(pool.Result) {})
		woken <- n
	}()
	go func() {
		for {
			select {
			case <-woken:
				return
			case <-time.After(time.Millisecond):
				p.Wake()
			}
		}
	}()
	require.Zero(t, <-woken)
	woken <- 0
	p.Drain()
	require.NoError(t, p.Join(deadline))
	_, err = p.Collect(10, deadline, func(pool.Result) {})
	require.ErrorIs(t, err, pool.ErrClosed)
}

// The input of the program is the program's.
func TestWorkersHaveNoInput(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	for name, input := range map[string]string{"pipe": "hello", "closed": ""} {
		cmd := exec.CommandContext(limited(t), self)
		cmd.Env = append(os.Environ(), helperVar+"=stdin")
		cmd.Stderr = os.Stderr
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.Output()
		require.NoError(t, err, name)
		require.Equal(t, fmt.Sprintf(`worker "" program %q <nil>`, input), string(out))
	}
}

func TestShutdownFinishesTasks(t *testing.T) {
	p := open(t, pool.Options{Workers: 1})
	var tasks []*pool.Task[int]
	for i := range 10 {
		task, err := pool.Submit(limited(t), p, square, i)
		require.NoError(t, err)
		tasks = append(tasks, task)
	}
	require.NoError(t, p.Shutdown(limited(t)))
	for i, task := range tasks {
		n, err := task.Wait(limited(t))
		require.NoError(t, err)
		require.Equal(t, i*i, n)
	}
	require.NoError(t, p.Shutdown(limited(t)), "again")
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	p := open(t, pool.Options{Workers: 1})
	task, err := pool.Submit(limited(t), p, sleep, 600_000)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(limited(t))
	ended := make(chan error)
	go func() { ended <- p.Shutdown(ctx) }()
	for _, err = pool.Submit(ctx, p, nop, 1); !errors.Is(err, pool.ErrClosed); _, err = pool.Submit(ctx, p, nop, 1) {
		require.NoError(t, err) // it has not begun
	}
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.NoError(t, p.Close())
	_, err = task.Wait(limited(t))
	require.ErrorIs(t, err, pool.ErrClosed)
}

func TestInvalid(t *testing.T) {
	for _, opt := range []pool.Options{{Workers: -1}, {Workers: pool.MaxWorkers + 1}, {MaxTasks: -1}, {OutMax: -1}} {
		_, err := pool.Open(opt)
		require.ErrorIs(t, err, pool.ErrInvalid)
	}
	_, err := pool.Open(pool.Options{Workers: 1, Args: []string{"/no/such/program"}})
	require.Error(t, err)
	p := open(t, pool.Options{Workers: 1})
	require.ErrorIs(t, p.Join(0), pool.ErrRunning)
	_, err = p.SubmitBytes(1, []byte("abc"), []uint64{1}, 0)
	require.ErrorIs(t, err, pool.ErrInvalid)
	_, err = p.SubmitBytes(1, nil, nil, 0)
	require.NoError(t, err)
	_, err = p.SubmitBytes(1, nil, []uint64{math.MaxUint64, 1}, 0)
	require.ErrorIs(t, err, pool.ErrTooBig)
	require.Panics(t, func() { pool.Register("nop", func(context.Context, int) (int, error) { return 0, nil }) })
	require.Panics(t, func() { pool.Register[int, int]("nil", nil) })
	require.Panics(t, func() { pool.RegisterInitializer[int]("nil", nil) })
	_, err = pool.Open(pool.Options{Path: "/no/such/program"})
	require.ErrorIs(t, err, pool.ErrInvalid)
}

// host runs the helper program; pids are those of its workers.
func host(t *testing.T, what string) (cmd *exec.Cmd, pids []int) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd = exec.Command(self)
	cmd.Env = append(os.Environ(), helperVar+"="+what)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
		pid, err := strconv.Atoi(lines.Text())
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	require.Len(t, pids, 2)
	return cmd, pids
}

// dead reports whether a process is not there, or a zombie.
func dead(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// A parent that is SIGKILLed takes its workers along, busy or idle.
func TestParentKilled(t *testing.T) {
	cmd, pids := host(t, "1")
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	begun := time.Now()
	for _, pid := range pids {
		waitFor(t, func() bool { return dead(pid) })
	}
	t.Logf("workers gone %v after their parent", time.Since(begun))
}

// So does one that executes another program, and lives.
func TestParentExecutes(t *testing.T) {
	cmd, pids := host(t, "exec")
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	for _, pid := range pids {
		waitFor(t, func() bool { return dead(pid) })
	}
	require.False(t, dead(cmd.Process.Pid))
}

// The exact account of a pool whose workers are killed at random: every task has one outcome.
func TestTorture(t *testing.T) {
	torture(t, tortureTime())
}

func tortureTime() time.Duration {
	if s, err := strconv.Atoi(os.Getenv("POLYPROC_TORTURE_SECONDS")); err == nil {
		return time.Duration(s) * time.Second
	}
	return 5 * time.Second
}

func torture(t *testing.T, length time.Duration) {
	p := open(t, pool.Options{Workers: 4})
	stop := make(chan struct{})
	var kills int
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(5+i%20) * time.Millisecond):
			}
			if pids := p.PIDs(); len(pids) > 0 {
				_ = syscall.Kill(pids[(i*2654435761>>7)%len(pids)], syscall.SIGKILL)
				kills++
			}
		}
	})
	tasks, lost := 0, 0
	for end := time.Now().Add(length); time.Now().Before(end); {
		in := make([]uint64, 5000)
		var data []byte
		for i := range in {
			in[i] = 16
			data = append(data, make([]byte, 8)...)
			data = append(data, byte(i), byte(i>>8), 0, 0, 0, 0, 0, 0)
		}
		first, err := p.SubmitBytes(echo.ID(), data, in, 0)
		require.NoError(t, err)
		seen := make([]int, len(in))
		for got := 0; got < len(in); {
			n, err := p.Collect(1000, deadline, func(r pool.Result) {
				require.Equal(t, first+r.Cookie, r.Task)
				seen[r.Cookie]++
				switch r.Outcome {
				case pool.OK:
					require.Equal(t, byte(r.Cookie), r.Data[8])
					require.Equal(t, byte(r.Cookie>>8), r.Data[9])
				case pool.Lost:
					require.Equal(t, -9, r.Exit)
					lost++
				default:
					t.Errorf("outcome %d", r.Outcome)
				}
			})
			require.NoError(t, err, "hang: %+v", p.State())
			got += n
		}
		for i, n := range seen {
			require.Equal(t, 1, n, "outcomes of task %d", i)
		}
		tasks += len(in)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d tasks, %d kills, %d tasks lost, %d workers", tasks, kills, lost, p.State().Started)
	works(t, p)
	require.NoError(t, p.Shutdown(limited(t)))
}

func BenchmarkMapNop(b *testing.B) {
	for _, workers := range []int{2, 64} {
		b.Run(strconv.Itoa(workers)+" workers", func(b *testing.B) {
			p := open(b, pool.Options{Workers: workers})
			_, err := pool.Map(context.Background(), p, nop, make([]int, 1000))
			require.NoError(b, err)
			in := make([]int, b.N)
			b.ResetTimer()
			_, err = pool.Map(context.Background(), p, nop, in)
			require.NoError(b, err)
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	p := open(b, pool.Options{Workers: 2})
	for b.Loop() {
		_, err := pool.Map(context.Background(), p, nop, []int{1})
		require.NoError(b, err)
	}
}
