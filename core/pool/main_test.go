//go:build linux

package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/polyproc/polyproc/core/pool"
	"github.com/polyproc/polyproc/shm"
)

var (
	nop    = pool.Register("nop", func(_ context.Context, n int) (int, error) { return n, nil })
	square = pool.Register("square", func(_ context.Context, n int) (int, error) { return n * n, nil })
	echo   = pool.Register("echo", func(_ context.Context, b []byte) ([]byte, error) { return b, nil })
	fail   = pool.Register("fail", func(_ context.Context, n int) (int, error) { return 0, fmt.Errorf("no %d", n) })
	crash  = pool.Register("crash", func(_ context.Context, n int) (int, error) {
		switch n {
		case 7:
			os.Exit(7)
		case 9:
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			time.Sleep(time.Minute)
		case 11:
			return *(*int)(nil), nil
		case 12:
			return 0, errors.New("an error")
		}
		return n, nil
	})
	sleep = pool.Register("sleep", func(_ context.Context, ms int) (int, error) {
		time.Sleep(time.Duration(ms) * time.Millisecond)
		return os.Getpid(), nil
	})
)

// Initializers.
var (
	initOnce = pool.RegisterInitializer("fails once", func(path string) error {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil // somebody has failed before
		}
		_ = f.Close()
		return errors.New("the first one fails")
	})
	initNever = pool.RegisterInitializer("always fails", func(int) error { return errors.New("never ready") })
	initExit  = pool.RegisterInitializer("exits", func(struct{}) error { os.Exit(3); return nil })
	initBig   = pool.RegisterInitializer("measures", func(arg []byte) error {
		initSize = len(arg)
		return nil
	})
	initSize int
	sizeSeen = pool.Register("size seen", func(context.Context, struct{}) (int, error) { return initSize, nil })
)

const (
	helperVar = "POOL_TEST_HELPER"
	// deadline bounds every wait of the tests: reaching it is a hang.
	deadline = 30 * time.Second
)

func TestMain(m *testing.M) {
	pool.Init()
	switch os.Getenv(helperVar) {
	case "":
	case "stdin":
		stdin()
		os.Exit(0)
	default:
		helper()
		os.Exit(0)
	}
	_, _, _ = shm.Inherit() // two descriptors that stay
	fds := descriptors()
	code := m.Run()
	if code == 0 {
		code = leaks(fds)
	}
	os.Exit(code)
}

// helper is a program with a busy and an idle worker; it says who they are and waits to be killed.
func helper() {
	p, err := pool.Open(pool.Options{Workers: 2})
	if err != nil {
		panic(err)
	}
	if _, err := pool.Map(context.Background(), p, nop, make([]int, 100)); err != nil {
		panic(err)
	}
	if _, err := pool.Submit(context.Background(), p, sleep, 600_000); err != nil {
		panic(err)
	}
	for p.State().Running != 1 {
		time.Sleep(time.Millisecond)
	}
	for _, pid := range p.PIDs() {
		fmt.Println(pid)
	}
	fmt.Println("ready")
	if os.Getenv(helperVar) == "exec" {
		panic(syscall.Exec("/bin/sleep", []string{"sleep", "600"}, nil))
	}
	select {}
}

var readStdin = pool.Register("read stdin", func(context.Context, struct{}) (string, error) {
	b, err := io.ReadAll(os.Stdin)
	return string(b), err
})

// stdin is a program with an input, which a worker asks for too.
func stdin() {
	p, err := pool.Open(pool.Options{Workers: 1})
	if err != nil {
		panic(err)
	}
	defer p.Close()
	theirs, err := pool.Map(context.Background(), p, readStdin, make([]struct{}, 1))
	if err != nil {
		panic(err)
	}
	ours, err := io.ReadAll(os.Stdin)
	fmt.Printf("worker %q program %q %v", theirs[0], ours, err)
}

func descriptors() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// leaks reports descriptors, children, goroutines and shared memory that the tests have left, once what ends by itself has had time to.
func leaks(fds int) int {
	var what string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		what = ""
		children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
		maps, _ := os.ReadFile("/proc/self/maps")
		// The runtime's own poller has two descriptors and appears with the first use.
		if n := descriptors(); n > fds+3 {
			what += fmt.Sprintf("%d descriptors, %d before\n", n, fds)
		}
		if len(children) > 0 {
			what += fmt.Sprintf("children: %s\n", children)
		}
		if bytes.Contains(maps, []byte("/memfd:")) {
			what += "mapped segments\n"
		}
		if n := runtime.NumGoroutine(); n > 2 {
			buf := make([]byte, 1<<20)
			what += fmt.Sprintf("%d goroutines:\n%s\n", n, buf[:runtime.Stack(buf, true)])
		}
		if what == "" {
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, "leaks:\n"+what)
	return 1
}
