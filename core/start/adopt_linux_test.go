package start_test

import (
	"encoding/binary"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/start"
)

func adopt(t testing.TB, pid, statusFD int) *start.Process {
	t.Helper()
	p, err := start.Adopt(pid, statusFD)
	require.NoError(t, err)
	require.Equal(t, pid, p.PID())
	t.Cleanup(func() {
		require.NoError(t, p.Kill())
		wait(t, p)
		p.Release()
	})
	return p
}

// orphan starts a process that is nobody's child here.
func orphan(t testing.TB) (pid int) {
	t.Helper()
	text, err := exec.Command("sh", "-c", "sleep 613 </dev/null >/dev/null 2>&1 & echo $!").Output()
	require.NoError(t, err)
	return atoi(strings.TrimSpace(string(text)))
}

func TestAdoptChild(t *testing.T) {
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exit 5"}, nil)
	require.NoError(t, err)
	require.Equal(t, start.Status{Known: true, Code: 5}, wait(t, adopt(t, pid, -1)))
	require.Empty(t, childPIDs())
}

func TestAdoptWhatIsSupervisedAlready(t *testing.T) {
	p, err := start.Spawn().Start(sleeper())
	require.NoError(t, err)
	again := adopt(t, p.PID(), -1)
	require.Same(t, p, again)
	p.Release()
	require.NotEqual(t, -1, again.FD(), "there is another user")
	require.NoError(t, again.Kill())
	require.Equal(t, start.Status{Known: true, Signal: syscall.SIGKILL}, wait(t, again))
}

func TestAdoptStranger(t *testing.T) {
	for _, told := range []int32{-9, 77} {
		var pipe [2]int
		require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
		p := adopt(t, orphan(t), pipe[0])
		require.NoError(t, p.Kill())
		require.NoError(t, binary.Write(fdWriter(pipe[1]), binary.NativeEndian, told))
		require.Equal(t, int(told), wait(t, p).ExitCode(), "what its parent says, counts")
		require.NoError(t, unix.Close(pipe[1]))
	}
}

func TestAdoptStrangerOfMuteParent(t *testing.T) {
	var pipe [2]int
	require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	p := adopt(t, orphan(t), pipe[0])
	require.NoError(t, unix.Close(pipe[1]))
	require.NoError(t, p.Kill())
	if status := wait(t, p); status.Known {
		require.Equal(t, syscall.SIGKILL, status.Signal)
	}
}

func TestAdoptErrors(t *testing.T) {
	p := run(t, start.Spec{Args: []string{"true"}})
	wait(t, p)
	var pipe [2]int
	require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	_, err := start.Adopt(p.PID(), pipe[0])
	require.ErrorIs(t, err, start.ErrNotFound)
	require.NoError(t, unix.Close(pipe[1]))
	_, err = unix.FcntlInt(uintptr(pipe[0]), unix.F_GETFD, 0)
	require.ErrorIs(t, err, unix.EBADF, "Adopt owns the descriptor, even if it fails")
	for _, pid := range []int{0, -1} {
		_, err = start.Adopt(pid, -1)
		require.ErrorIs(t, err, start.ErrNotFound)
	}
}

type fdWriter int

func (w fdWriter) Write(b []byte) (int, error) { return unix.Write(int(w), b) }
