//go:build linux

package queue_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/polyproc/polyproc/core/queue"
	"github.com/polyproc/polyproc/core/start"
)

// Values of one queue go to whoever asks first; a closed queue ends the loop.
func Example() {
	ctx := context.Background()
	q, err := queue.New[string](nil, queue.Options{MaxSize: 100})
	if err != nil {
		panic(err)
	}
	defer q.Close()
	go func() {
		for _, word := range []string{"one", "two", "three"} {
			_ = q.Put(ctx, word)
		}
		_ = q.Shutdown()
	}()
	for word, err := range q.All(ctx) {
		fmt.Println(word, err)
	}
	// Output:
	// one <nil>
	// two <nil>
	// three <nil>
}

func init() { roles["example-worker"] = exampleWorker }

type job struct{ From, To int }

// exampleWorker is the other process of the next example: it gets a queue of jobs, and where to put the results.
func exampleWorker(ctx context.Context, _ []string) error {
	told, _, err := start.Receive()
	if err != nil {
		return err
	}
	var jobs queue.Queue[job]
	var sums queue.Queue[int]
	if err := errors.Join(jobs.UnmarshalBinary(told.Payload[:32]), sums.UnmarshalBinary(told.Payload[32:])); err != nil {
		return err
	}
	for {
		l, err := jobs.Lease(ctx) // should this process die, another gets the job
		if errors.Is(err, queue.ErrShutdown) {
			return nil
		}
		if err != nil {
			return err
		}
		sum := 0
		for n := l.Value.From; n < l.Value.To; n++ {
			sum += n
		}
		if err := errors.Join(sums.Put(ctx, sum), l.Ack()); err != nil {
			return err
		}
	}
}

// A queue reaches another process as 32 bytes, here in what it is started with.
func ExampleQueue_MarshalBinary() {
	ctx := context.Background()
	jobs, err := queue.New[job](nil, queue.Options{})
	if err != nil {
		panic(err)
	}
	defer jobs.Close()
	sums, err := queue.New[int](nil, queue.Options{})
	if err != nil {
		panic(err)
	}
	defer sums.Close()

	a, _ := jobs.MarshalBinary()
	b, _ := sums.MarshalBinary()
	spec := start.Spec{Path: "/proc/self/exe", Env: append(os.Environ(), roleVar+"=example-worker"), Payload: append(a, b...)}
	if err := spec.InheritFamily(); err != nil {
		panic(err)
	}
	worker, err := start.Spawn().Start(spec)
	if err != nil {
		panic(err)
	}
	for n := range 4 {
		_ = jobs.Put(ctx, job{n * 25, (n + 1) * 25})
	}
	_ = jobs.Shutdown()
	total := 0
	for range 4 {
		sum, _ := sums.Get(ctx)
		total += sum
	}
	_, _ = worker.Wait(ctx)
	fmt.Println(total)
	// Output: 4950
}

// A named queue is found by whoever runs as the same user, in C, Python or Go.
func ExampleCreate() {
	ctx := context.Background()
	name := testName("example")
	q, err := queue.Create[[]byte](name, queue.Options{})
	if err != nil {
		panic(err)
	}
	defer q.Close()
	defer func() { _ = queue.Unlink(name) }()
	_ = q.Put(ctx, []byte("for whom it may concern"))

	other, err := queue.Open[[]byte](name)
	if err != nil {
		panic(err)
	}
	defer other.Close()
	b, _ := other.Get(ctx)
	fmt.Printf("%s\n", b)
	_, err = other.TryGet()
	fmt.Println(err)
	// Output:
	// for whom it may concern
	// queue: empty
}
