//go:build linux

package pipe_test

import (
	"context"
	"encoding"
	"encoding/hex"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

const roleVar = "PIPE_TEST_ROLE"

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
	before := descriptors()
	code := m.Run()
	// The family's two stay, and what Go's poller and the supervisor of processes have.
	if after := descriptors(); code == 0 && after > before+8 {
		fmt.Fprintln(os.Stderr, "descriptors:", before, "before,", after, "after")
		code = 99
	}
	os.Exit(code)
}

func descriptors() int {
	names, _ := os.ReadDir("/proc/self/fd")
	return len(names)
}

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newHeap(t testing.TB) *shm.Heap {
	h, err := shm.CreateHeap()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
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
