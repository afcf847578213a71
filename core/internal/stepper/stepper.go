//go:build linux && amd64

// Package stepper runs a child instruction by instruction, for tests that kill it where it hurts. The caller's goroutine must be locked to its thread, as ptrace(2) knows threads.
package stepper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// Ready is for the child, whose main goroutine was locked to the main thread by an init function: it stops, and from here on only this thread runs, step by step.
func Ready() error {
	debug.SetGCPercent(-1)
	// Raw: the scheduler would take the processor away from a thread that is stopped in a system call.
	if _, _, e := unix.RawSyscall(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(unix.Gettid()), uintptr(unix.SIGSTOP)); e != 0 {
		return e
	}
	return nil
}

// InFamily makes cmd's process one of this family.
func InFamily(cmd *exec.Cmd) error {
	fds, env, err := shm.Inherit()
	if err != nil {
		return err
	}
	for _, fd := range fds {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(d), "family"))
	}
	parts := strings.SplitN(env, ",", 3) // NAME=heap,depot,identity
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=3,4,%s", shm.FamilyVar, parts[2]))
	return nil
}

// Child is a child that is stopped between two instructions.
type Child struct {
	pid int
	// In the moment between its own stop and that of its other threads, the Go scheduler may decide to run the stepped goroutine later; it then sleeps for ever.
	watch *time.Timer
}

// ErrLost says that the child got stuck, or has ended: try again with another.
var ErrLost = errors.New("stepper: the child is lost")

const stuck = 3 * time.Second

// Start starts cmd, and returns when the child has called [Ready]. Errors: [ErrLost] and others.
func Start(cmd *exec.Cmd) (*Child, error) {
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	err := cmd.Start()
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
	if err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // collected here, by wait
	c := &Child{pid, time.AfterFunc(stuck, func() { _ = unix.Kill(pid, unix.SIGKILL) })}
	for {
		sig, err := c.wait()
		if err != nil {
			return nil, err
		}
		if sig == unix.SIGSTOP {
			break
		}
		_ = unix.PtraceSetOptions(pid, unix.PTRACE_O_EXITKILL) // it must not stay stopped when the test is killed
		_ = unix.PtraceCont(pid, 0)
	}
	// Delivered, it stops the whole process; only the thread that we step leaves the stop.
	_ = unix.PtraceCont(pid, int(unix.SIGSTOP))
	if _, err = c.wait(); err != nil {
		return nil, err
	}
	return c, nil
}

// wait waits for the child's next stop.
func (c *Child) wait() (unix.Signal, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(c.pid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case !status.Stopped():
			c.watch.Stop()
			return 0, ErrLost
		default:
			return status.StopSignal(), nil
		}
	}
}

// Step runs one instruction, a whole system call at most. Errors: [ErrLost], and what ended the child instead.
func (c *Child) Step() error {
	c.watch.Reset(stuck)
	for {
		_ = unix.PtraceSingleStep(c.pid)
		sig, err := c.wait()
		switch {
		case err != nil:
			return err
		case sig == unix.SIGTRAP:
			return nil
		case sig == unix.SIGURG, sig == unix.SIGSTOP, sig == unix.SIGCONT: // not delivered, and no instruction was run
		default:
			return fmt.Errorf("stepper: the child did not survive: signal %v", sig)
		}
	}
}

// Kill kills the child and collects it.
func (c *Child) Kill() {
	c.watch.Stop()
	_ = unix.Kill(c.pid, unix.SIGKILL)
	for {
		if _, err := c.wait(); err != nil {
			return
		}
	}
}
