//go:build darwin || freebsd

package start

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// forkExec starts the program and returns its pid and a kqueue that reports its end. An error with a pid
// means that the child runs, but cannot be watched.
func forkExec(s *Spec, attr *syscall.ProcAttr) (pid int, h handle, err error) {
	if s.BlockSIGINT {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		// Go's fork restores this thread's mask in the child before it execs.
		restore, err := blockSIGINT()
		if err != nil {
			return 0, -1, fmt.Errorf("blocking SIGINT: %w", err)
		}
		defer restore()
	}
	pid, err = syscall.ForkExec(s.Path, s.Args, attr)
	if err != nil {
		return 0, -1, err
	}
	kq, err := newKqueue()
	if err == nil {
		if err = watchExit(kq, pid); err != nil {
			_ = unix.Close(kq)
		}
	}
	return pid, handle(kq), err
}

func checkKernel() error { return nil }

// payloadFile returns a descriptor, open for reading only, of a file without a name that holds these bytes.
func payloadFile(payload []byte) (int, error) {
	file, err := os.CreateTemp("", "polyproc-payload-")
	if err != nil {
		return -1, errnoOf(err)
	}
	name := file.Name()
	defer func() { _ = os.Remove(name) }()
	_, err = file.Write(payload)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return -1, errnoOf(err)
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return aboveStdio(fd)
}

// openFiles lists the descriptors of this process. There is no list of all of them on every BSD.
func openFiles() ([]int, error) { return scanFiles() }
