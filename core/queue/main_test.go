//go:build linux

package queue_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pool"
	"github.com/polyproc/polyproc/core/queue"
	"github.com/polyproc/polyproc/core/start"
)

const roleVar = "QUEUE_TEST_ROLE"

// roles are what the test binary does when a test executes it again, with arguments.
var roles = map[string]func(ctx context.Context, args []string) error{}

func init() {
	// The kill sweep steps through the main thread only: the main goroutine must stay there.
	if os.Getenv(roleVar) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	pool.Init()
	if role := os.Getenv(roleVar); role != "" {
		_ = os.Unsetenv(roleVar)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := roles[role](ctx, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "child:", role, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	code := m.Run()
	if left := leaks(); code == 0 && len(left) > 0 {
		fmt.Fprintln(os.Stderr, "leaked:", strings.Join(left, "\n\t"))
		code = 99
	}
	os.Exit(code)
}

// leaks lists heaps beyond the family's, which stays, and names in /dev/shm that the tests left.
func leaks() []string {
	var left []string
	seen := map[string]bool{} // by inode: what is open of a heap, and what is not, are lines of their own
	maps, _ := os.ReadFile("/proc/self/maps")
	for line := range strings.Lines(string(maps)) {
		if field := strings.Fields(line); (strings.Contains(line, "memfd:") || strings.Contains(line, "/dev/shm")) && !seen[field[4]] {
			seen[field[4]] = true
			left = append(left, strings.TrimSpace(line))
		}
	}
	if len(left) == 1 && strings.Contains(left[0], "memfd:") {
		left = nil
	}
	names, _ := filepath.Glob("/dev/shm/pp.q." + testName("*"))
	return append(left, names...)
}

func testName(what string) string { return fmt.Sprintf("pptest-%d-%s", os.Getpid(), what) }

// sent is a reference to a queue as an argument.
func sent[T any](t testing.TB, q *queue.Queue[T]) string {
	t.Helper()
	ref, err := q.MarshalBinary()
	require.NoError(t, err)
	return hex.EncodeToString(ref)
}

// received is the queue whose reference is an argument.
func received[T any](arg string) (*queue.Queue[T], error) {
	ref, err := hex.DecodeString(arg)
	if err != nil {
		return nil, err
	}
	q := new(queue.Queue[T])
	return q, q.UnmarshalBinary(ref)
}

// spec is the test binary in a role, in our family.
func spec(t testing.TB, role string, args ...string) start.Spec {
	t.Helper()
	s := start.Spec{Path: "/proc/self/exe", Args: append([]string{"child"}, args...), Env: append(os.Environ(), roleVar+"="+role)}
	require.NoError(t, s.InheritFamily())
	return s
}

// spawn starts a child, which is killed when the test ends.
func spawn(t testing.TB, s start.Spec) *start.Process {
	t.Helper()
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
	case <-time.After(time.Minute):
		require.Fail(t, "a child does not end")
	}
}

// piped starts a child with pipes, for what is not about queues.
func piped(t testing.TB, role string, args ...string) (*exec.Cmd, io.WriteCloser, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return cmd, in, bufio.NewReader(out)
}
