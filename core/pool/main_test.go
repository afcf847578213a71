package pool_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/polyproc/polyproc/core/pool"
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

func TestMain(m *testing.M) {
	pool.Init()
	os.Exit(m.Run())
}
