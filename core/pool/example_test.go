//go:build linux

package pool_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

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

var (
	errOutOfStock = errors.New("out of stock")
	setPrefix     = pool.RegisterInitializer("set prefix", func(p string) error { prefix = p; return nil })
	prefix        string
	greet         = pool.Register("greet", func(_ context.Context, name string) (string, error) { return prefix + name, nil })
	order         = pool.Register("order", func(_ context.Context, item string) (int, error) {
		switch item {
		case "file":
			_, err := os.Open("/no/such/file")
			return 0, err
		case "unicorn":
			return 0, fmt.Errorf("order %s: %w", item, errOutOfStock)
		}
		return len(item), nil
	})
	patience = pool.Register("patience", func(ctx context.Context, _ struct{}) (string, error) {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(time.Hour):
			return "an hour is over", nil
		}
	})
)

func init() { pool.RegisterError("example: out of stock", errOutOfStock) }

// The error of each input, and what errors.Is finds in it.
func ExampleMapAll() {
	p, err := pool.Open(pool.Options{Workers: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	outs, errs := pool.MapAll(context.Background(), p, order, []string{"tea", "unicorn", "file", "honey"})
	fmt.Println(outs)
	for i, err := range errs {
		switch {
		case errors.Is(err, errOutOfStock):
			fmt.Println(i, "is out of stock")
		case errors.Is(err, fs.ErrNotExist):
			fmt.Println(i, "has no file")
		case err == nil:
			fmt.Println(i, "is good")
		}
	}
	// Output:
	// [3 0 0 5]
	// 0 is good
	// 1 is out of stock
	// 2 has no file
	// 3 is good
}

func ExampleInputError() {
	p, err := pool.Open(pool.Options{Workers: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	_, err = pool.Map(context.Background(), p, order, []string{"tea", "unicorn", "honey"})
	var input *pool.InputError
	fmt.Println(errors.As(err, &input), input.Index)
	fmt.Println(err)
	// Output:
	// true 1
	// input 1: pool: order: order unicorn: out of stock
}

func ExampleRegisterInitializer() {
	p, err := pool.Open(pool.Options{Workers: 2, Initializer: setPrefix("hello, ")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	fmt.Println(pool.Map(context.Background(), p, greet, []string{"Ada", "Grace"}))
	// Output: [hello, Ada hello, Grace] <nil>
}

// The deadline of the caller is the task's.
func ExampleRegister_deadline() {
	p, err := pool.Open(pool.Options{Workers: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = pool.Map(ctx, p, patience, make([]struct{}, 1))
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output: true
}

// Shutdown finishes what was submitted.
func ExamplePool_Shutdown() {
	p, err := pool.Open(pool.Options{Workers: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close() // if something fails before
	task, err := pool.Submit(context.Background(), p, fibonacci, 10)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Shutdown(context.Background()))
	fmt.Println(task.Wait(context.Background()))
	// Output:
	// <nil>
	// 55 <nil>
}
