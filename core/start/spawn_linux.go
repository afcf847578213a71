package start

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// forkExec starts the program and returns its pid and pidfd. An error with a pid means that
// the child runs, but has no pidfd.
func forkExec(s *Spec, attr *syscall.ProcAttr) (pid int, h handle, err error) {
	pidfd := -1
	attr.Sys = &syscall.SysProcAttr{PidFD: &pidfd}
	if s.BlockSIGINT {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
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
	pidfd, err = aboveStdio(pidfd)
	return pid, handle(pidfd), err
}

// blockSIGINT blocks SIGINT in the calling thread, to which the caller is locked. Go's fork saves that thread's mask,
// blocks everything and restores what it saved in the child before it execs: so this is what the child begins with.
// No Ctrl-C is lost meanwhile: a signal to the process goes to another thread, or waits.
func blockSIGINT() (restore func(), err error) {
	var block, old unix.Sigset_t
	block.Val[0] = 1 << (unix.SIGINT - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old); err != nil {
		return nil, err
	}
	return func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }, nil
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

// payloadFile returns a descriptor of a memory file with these bytes which nobody can change any more.
func payloadFile(payload []byte) (int, error) {
	// Writing past RLIMIT_FSIZE would send SIGXFSZ, which kills a host that does not expect it.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && uint64(len(payload)) > limit.Cur {
		return -1, unix.EFBIG
	}
	fd, err := unix.MemfdCreate("polyproc-payload", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // Linux < 6.3 does not know MFD_NOEXEC_SEAL, without which vm.memfd_noexec=2 refuses it
		fd, err = unix.MemfdCreate("polyproc-payload", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
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

// openFiles lists the descriptors of this process (and the one it needed for that).
func openFiles() ([]int, error) {
	dir, err := os.Open("/proc/self/fd")
	if os.IsNotExist(err) { // a bare chroot
		return scanFiles()
	}
	if err != nil {
		return nil, errnoOf(err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, errnoOf(err)
	}
	open := make([]int, 0, len(names))
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil {
			open = append(open, fd)
		}
	}
	return open, nil
}
