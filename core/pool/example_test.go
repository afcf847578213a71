//go:build linux

package pool_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/polyproc/polyproc/core/pool"
)

// Functions are registered while packages are initialized, so that the worker has them too.
var (
	fibonacci = pool.Register("fibonacci", func(_ context.Context, n int) (int, error) {
		a, b := 0, 1
		for range n {
			a, b = b, a+b
		}
		return a, nil
	})
	fragile = pool.Register("fragile", func(_ context.Context, name string) (string, error) {
		if name == "bad" {
			os.Exit(3)
		}
		return "hello, " + name, nil
	})
)

func Example() {
	// pool.Init() is the first line of main (here: of TestMain).
	p, err := pool.Open(pool.Options{Workers: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	out, err := pool.Map(context.Background(), p, fibonacci, []int{10, 20, 30})
	fmt.Println(out, err)
	// Output: [55 6765 832040] <nil>
}

// A worker that dies costs the task that it ran.
func ExampleWorkerLostError() {
	p, err := pool.Open(pool.Options{Workers: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	for _, name := range []string{"Ada", "bad", "Grace"} {
		task, err := pool.Submit(context.Background(), p, fragile, name)
		if err != nil {
			fmt.Println(err)
			return
		}
		greeting, err := task.Wait(context.Background())
		var lost *pool.WorkerLostError
		switch {
		case errors.As(err, &lost):
			fmt.Println("lost with", lost.Status)
		case err != nil:
			fmt.Println(err)
		default:
			fmt.Println(greeting)
		}
	}
	// Output:
	// hello, Ada
	// lost with exit code 3
	// hello, Grace
}

// A stream may be endless: it is read only as far ahead as the workers can use.
func ExampleStream() {
	p, err := pool.Open(pool.Options{Workers: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	naturals := func(yield func(int) bool) {
		for n := 0; yield(n); n++ {
		}
	}
	for f, err := range pool.Stream(context.Background(), p, fibonacci, naturals) {
		if err != nil || f > 50 {
			break
		}
		fmt.Print(f, " ")
	}
	fmt.Println()
	// Output: 0 1 1 2 3 5 8 13 21 34
}
