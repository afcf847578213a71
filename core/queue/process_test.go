//go:build linux

package queue_test

import (
	"context"
	"encoding/gob"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/queue"
	"github.com/polyproc/polyproc/core/start"
)

func init() {
	roles["echo"] = echo
	roles["gob-echo"] = gobEcho
	roles["lease-and-wait"] = leaseAndWait
	roles["named-put"] = func(ctx context.Context, args []string) error {
		q, err := queue.Open[string](args[0])
		if err != nil {
			return err
		}
		return q.Put(ctx, args[1])
	}
	roles["passed-on"] = passedOn
	roles["echo-many"] = func(ctx context.Context, args []string) error {
		in, err := received[[]byte](args[0])
		if err != nil {
			return err
		}
		out, err := received[[]byte](args[1])
		for err == nil {
			var some [][]byte
			if some, err = in.GetMany(ctx, 64); err == nil {
				_, err = out.PutMany(ctx, some)
			}
		}
		if errors.Is(err, queue.ErrShutdown) {
			return nil
		}
		return err
	}
}

func echo(ctx context.Context, args []string) error {
	in, err := received[[]byte](args[0])
	if err != nil {
		return err
	}
	out, err := received[[]byte](args[1])
	if err != nil {
		return err
	}
	for b, err := range in.All(ctx) {
		if err == nil {
			err = out.Put(ctx, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func familyQueue[T any](t testing.TB, maxSize int) *queue.Queue[T] {
	t.Helper()
	q, err := queue.New[T](nil, queue.Options{MaxSize: maxSize})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return q
}

// A child that os/exec has started is of the family too, whatever files it has besides.
func TestChildOfOSExec(t *testing.T) {
	ctx := patient(t)
	other, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer other.Close()
	for _, extra := range [][]*os.File{nil, {other}, {other, other}} {
		in, out := familyQueue[[]byte](t, 10), familyQueue[[]byte](t, 0)
		cmd := exec.CommandContext(ctx, "/proc/self/exe", sent(t, in), sent(t, out))
		cmd.Env = append(os.Environ(), roleVar+"=echo")
		cmd.Stderr = os.Stderr
		cmd.ExtraFiles = extra
		require.NoError(t, start.InheritFamily(cmd))
		require.NoError(t, cmd.Start())
		require.NoError(t, in.Put(ctx, []byte("there and back")))
		b, err := out.Get(ctx)
		require.NoError(t, err)
		require.Equal(t, "there and back", string(b))
		require.NoError(t, in.Shutdown())
		require.NoError(t, cmd.Wait())
	}
}

func TestAnotherProcess(t *testing.T) {
	ctx := patient(t)
	in, out := familyQueue[[]byte](t, 10), familyQueue[[]byte](t, 0)
	p := spawn(t, spec(t, "echo", sent(t, in), sent(t, out)))
	for _, n := range []int{0, 5, 4000, 32768, 32769, 3 << 20} {
		require.NoError(t, in.Put(ctx, make([]byte, n)))
		b, err := out.Get(ctx)
		require.NoError(t, err)
		require.Len(t, b, n)
	}
	require.NoError(t, in.Shutdown())
	ended(t, p)
}

func leaseAndWait(ctx context.Context, args []string) error {
	q, err := received[string](args[0])
	if err != nil {
		return err
	}
	ready, err := received[string](args[1])
	if err != nil {
		return err
	}
	l, err := q.Lease(ctx)
	if err != nil {
		return err
	}
	if err = ready.Put(ctx, l.Value); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestLeasesOfTheDeadReturn(t *testing.T) {
	ctx := patient(t)
	q, ready := familyQueue[string](t, 0), familyQueue[string](t, 0)
	for _, value := range []string{"small", string(make([]byte, 1<<17))} {
		require.NoError(t, q.Put(ctx, value))
		p := spawn(t, spec(t, "lease-and-wait", sent(t, q), sent(t, ready)))
		v, err := ready.Get(ctx)
		require.NoError(t, err)
		require.Equal(t, value, v)
		_, err = q.TryGet()
		require.ErrorIs(t, err, queue.ErrEmpty)
		require.NoError(t, p.Kill())
		v, err = q.Get(ctx) // has a deadline
		require.NoError(t, err)
		require.Equal(t, value, v)
	}
}

func TestNamedAcrossProcesses(t *testing.T) {
	ctx := patient(t)
	q, err := queue.Create[string](testName("named"), queue.Options{})
	require.NoError(t, err)
	defer q.Close()
	defer func() { require.NoError(t, queue.Unlink(testName("named"))) }()
	ended(t, spawn(t, spec(t, "named-put", testName("named"), "hello")))
	v, err := q.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, "hello", v)
	// Nothing of a family travels to another: the receiver says so.
	other, err := queue.New[string](newHeap(t), queue.Options{})
	require.NoError(t, err)
	defer other.Close()
	p := spawn(t, spec(t, "echo", sent(t, other), sent(t, other)))
	<-p.Done()
	status, _ := p.Status()
	require.Equal(t, 3, status.ExitCode())
}

// passedOn gets a queue through a queue, and sends through it.
func passedOn(ctx context.Context, args []string) error {
	q, err := received[*queue.Queue[string]](args[0])
	if err != nil {
		return err
	}
	answer, err := q.Get(ctx)
	if err != nil {
		return err
	}
	return answer.Put(ctx, "by the queue that came by a queue")
}

func TestQueuesTravelThroughQueues(t *testing.T) {
	ctx := patient(t)
	q, answer := familyQueue[*queue.Queue[string]](t, 0), familyQueue[string](t, 0)
	require.NoError(t, q.Put(ctx, answer))
	ended(t, spawn(t, spec(t, "passed-on", sent(t, q))))
	v, err := answer.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, "by the queue that came by a queue", v)
}

type task struct {
	ID   int
	Data []byte
}

func gobEcho(context.Context, []string) error {
	in, out := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var v task
		if err := in.Decode(&v); err != nil {
			return nil // the end
		}
		if err := out.Encode(v); err != nil {
			return err
		}
	}
}

// BenchmarkRoundTrip sends 64 bytes to another process and back, by queues and by gob over pipes; and many, without waiting for each answer.
func BenchmarkRoundTrip(b *testing.B) {
	ctx := context.Background()
	data := make([]byte, 64)
	b.Run("queue", func(b *testing.B) {
		in, out := familyQueue[[]byte](b, 0), familyQueue[[]byte](b, 0)
		p := spawn(b, spec(b, "echo", sent(b, in), sent(b, out)))
		for b.Loop() {
			_ = in.Put(ctx, data)
			if _, err := out.Get(ctx); err != nil {
				b.Fatal(err)
			}
		}
		_ = in.Shutdown()
		<-p.Done()
	})
	b.Run("gob-pipe", func(b *testing.B) {
		cmd, in, out := piped(b, "gob-echo")
		to, from := gob.NewEncoder(in), gob.NewDecoder(out)
		for b.Loop() {
			_ = to.Encode(task{1, data})
			var v task
			if err := from.Decode(&v); err != nil {
				b.Fatal(err)
			}
		}
		_ = in.Close()
		_ = cmd.Wait()
	})
}

// BenchmarkStream sends 64 bytes to another process and back, in a stream.
func BenchmarkStream(b *testing.B) {
	ctx := context.Background()
	data := make([]byte, 64)
	b.Run("queue", func(b *testing.B) {
		in, out := familyQueue[[]byte](b, 0), familyQueue[[]byte](b, 0)
		p := spawn(b, spec(b, "echo", sent(b, in), sent(b, out)))
		b.ResetTimer()
		go func() {
			for range b.N {
				_ = in.Put(ctx, data)
			}
		}()
		for range b.N {
			if _, err := out.Get(ctx); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		_ = in.Shutdown()
		<-p.Done()
	})
	b.Run("queue-many", func(b *testing.B) {
		in, out := familyQueue[[]byte](b, 0), familyQueue[[]byte](b, 0)
		p := spawn(b, spec(b, "echo-many", sent(b, in), sent(b, out)))
		const batch = 64
		many := make([][]byte, batch)
		for i := range many {
			many[i] = data
		}
		b.ResetTimer()
		go func() {
			for n := 0; n < b.N; n += batch {
				_, _ = in.PutMany(ctx, many[:min(batch, b.N-n)])
			}
		}()
		for n := 0; n < b.N; {
			some, err := out.GetMany(ctx, batch)
			if err != nil {
				b.Fatal(err)
			}
			n += len(some)
		}
		b.StopTimer()
		_ = in.Shutdown()
		<-p.Done()
	})
	b.Run("gob-pipe", func(b *testing.B) {
		cmd, in, out := piped(b, "gob-echo")
		to, from := gob.NewEncoder(in), gob.NewDecoder(out)
		b.ResetTimer()
		go func() {
			for range b.N {
				_ = to.Encode(task{1, data})
			}
		}()
		for range b.N {
			var v task
			if err := from.Decode(&v); err != nil {
				b.Error(errors.Join(err, errors.New("the echo has ended")))
				break
			}
		}
		b.StopTimer()
		_ = in.Close()
		_ = cmd.Wait()
	})
}
