//go:build linux

package ipcsync_test

import (
	"context"
	"encoding"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

const roleVar = "IPCSYNC_TEST_ROLE"

// roles are what the test binary does when a test executes it again, with arguments.
var roles = map[string]func(ctx context.Context, args []string) error{}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		_ = os.Unsetenv(roleVar)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := roles[role](ctx, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "child:", role, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// soon is a context that ends after some ms.
func soon(t testing.TB, ms int) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(ms)*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func newHeap(t testing.TB) *shm.Heap {
	h, err := shm.CreateHeap()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// must is for what makes an object, which is closed when the test ends.
func must[T interface{ Close() error }](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, v.Close()) })
		return v
	}
}

// sent is a reference as an argument of a child.
func sent(t testing.TB, v encoding.BinaryMarshaler) string {
	t.Helper()
	ref, err := v.MarshalBinary()
	require.NoError(t, err)
	return hex.EncodeToString(ref)
}

// received fills in objects from arguments.
func received(args []string, objects ...encoding.BinaryUnmarshaler) error {
	for i, o := range objects {
		ref, err := hex.DecodeString(args[i])
		if err != nil {
			return err
		}
		if err = o.UnmarshalBinary(ref); err != nil {
			return err
		}
	}
	return nil
}

// spawn starts the test binary in a role, in our family. It is killed when the test ends.
func spawn(t testing.TB, role string, args ...string) *start.Process {
	t.Helper()
	s := start.Spec{Path: "/proc/self/exe", Args: append([]string{"child"}, args...), Env: append(os.Environ(), roleVar+"="+role)}
	require.NoError(t, s.InheritFamily())
	p, err := start.Spawn().Start(s)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = p.Kill()
		<-p.Done()
	})
	return p
}

// ended waits for a child that is to end well.
func ended(t testing.TB, p *start.Process) {
	t.Helper()
	select {
	case <-p.Done():
		status, _ := p.Status()
		require.Equal(t, 0, status.ExitCode())
	case <-time.After(30 * time.Second):
		require.Fail(t, "a child does not end")
	}
}

// killed kills a child and waits for its end.
func killed(t testing.TB, p *start.Process) {
	t.Helper()
	require.NoError(t, p.Kill())
	<-p.Done()
}

// eventually waits until something is so that nobody tells.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for begin := time.Now(); !so(); runtime.Gosched() {
		if time.Since(begin) > 20*time.Second {
			require.Fail(t, "never "+what)
		}
	}
}

func asleep(n int) func() bool {
	return func() bool {
		buf := make([]byte, 1<<20)
		return strings.Count(string(buf[:runtime.Stack(buf, true)]), "(*pace).sleep") >= n
	}
}

const stop = syscall.SIGSTOP

func stopped(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") T ")
}
