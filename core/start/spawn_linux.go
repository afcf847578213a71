package start

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawnProcess executes s.Path. syscall.ForkExec clones with CLONE_VFORK|CLONE_VM, so a start does not
// depend on how much memory the host has.
func spawnProcess(s Spec) (*Process, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	payloadFD := -1
	if s.Payload != nil {
		fd, err := sealedMemfd(s.Payload)
		if err != nil {
			return nil, fmt.Errorf("start: payload of %d bytes: %w", len(s.Payload), explain(err))
		}
		defer func() { _ = unix.Close(fd) }()
		payloadFD = fd
		s.Files = append(append([]int(nil), s.Files...), fd)
	}
	files, null, err := childFiles(s.Files)
	if err != nil {
		return nil, err
	}
	if null >= 0 {
		defer func() { _ = unix.Close(null) }()
	}

	if err := children.enter(); err != nil {
		return nil, fmt.Errorf("start: supervising children: %w", explain(err))
	}
	defer children.leave()

	pidfd := -1
	pid, err := forkExec(&s, &syscall.ProcAttr{
		Dir: s.Dir, Env: s.tell(payloadFD), Files: files, Sys: &syscall.SysProcAttr{PidFD: &pidfd},
	})
	if err != nil {
		return nil, failure(&s, err)
	}
	if pidfd, err = aboveStdio(pidfd); err == nil {
		p := newProcess(pid, handle(pidfd))
		if err = children.adopt(p); err == nil {
			return p, nil
		}
		p.leak.Stop()
		_ = unix.Close(pidfd)
	}
	// A child that cannot be supervised must not go on. The kernel runs out of memory here, or of descriptors.
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		if _, werr := unix.Wait4(pid, nil, 0, nil); werr != unix.EINTR {
			break
		}
	}
	return nil, fmt.Errorf("start: supervising process %d: %w", pid, explain(err))
}

// forkExec runs syscall.ForkExec, with SIGINT blocked if so asked. Go's fork saves the calling thread's
// signal mask, blocks everything and restores the saved mask in the child before it execs: so the mask of this
// very thread is what the child begins with. The interval in which this thread misses SIGINT loses none:
// a process-directed signal goes to another thread or waits.
func forkExec(s *Spec, attr *syscall.ProcAttr) (int, error) {
	if s.BlockSIGINT {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var block, old unix.Sigset_t
		block.Val[0] = 1 << (unix.SIGINT - 1)
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old); err != nil {
			return 0, fmt.Errorf("blocking SIGINT: %w", err)
		}
		defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }()
	}
	return syscall.ForkExec(s.Path, s.Args, attr)
}

var kernelChecked atomic.Bool

// checkKernel finds out, once, that the kernel has pidfds and can wait for them (Linux 5.4). A refusal is not
// remembered: it may have been for want of descriptors.
func checkKernel() error {
	if kernelChecked.Load() {
		return nil
	}
	fd, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		err = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil)
		if err == nil || err == unix.ECHILD { // ECHILD: of course, we are not our own child
			kernelChecked.Store(true)
			return nil
		}
	}
	if err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOMEM {
		return fmt.Errorf("start: %w", explain(err))
	}
	return fmt.Errorf("start: processes are supervised by pidfd, and this kernel (or a seccomp filter) has none; "+
		"Linux 5.4 is needed: %w (%w)", ErrUnsupported, err)
}

// sealedMemfd returns a descriptor of a memory file with these bytes which nobody can change any more.
func sealedMemfd(payload []byte) (int, error) {
	// Writing past RLIMIT_FSIZE would send SIGXFSZ, which kills a host that does not expect it.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && uint64(len(payload)) > limit.Cur {
		return -1, unix.EFBIG
	}
	fd, err := unix.MemfdCreate("polyproc-payload", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	if fd, err = aboveStdio(fd); err != nil {
		return -1, err
	}
	for at := 0; at < len(payload); {
		n, err := unix.Pwrite(fd, payload[at:], int64(at)) // not Write: the offset is the child's, too, and stays 0
		if err != nil && err != unix.EINTR {
			_ = unix.Close(fd)
			return -1, err
		}
		at += max(n, 0)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// aboveStdio moves a descriptor of ours off 0, 1 and 2, which are free only because the host closed them:
// its child or its next printf would meet us there. It closes fd on failure.
func aboveStdio(fd int) (int, error) {
	if fd > 2 {
		return fd, nil
	}
	moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	_ = unix.Close(fd)
	if err != nil {
		return -1, err
	}
	return moved, nil
}

var errTableFull = errors.New("no file descriptor is free (RLIMIT_NOFILE)")

// explain adds what the errno's own text leaves out.
func explain(err error) error {
	switch err {
	case syscall.EMFILE:
		return fmt.Errorf("%w: %w", errTableFull, err)
	case syscall.EAGAIN:
		return fmt.Errorf("the limit of processes is reached (RLIMIT_NPROC, pids.max): %w", err)
	case syscall.EFBIG:
		return fmt.Errorf("the limit of a file's size is lower (RLIMIT_FSIZE): %w", err)
	}
	return err
}
