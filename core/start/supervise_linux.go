package start

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// handle is a child's pidfd: it names this process for ever, whatever becomes of the number.
type handle int

func (h handle) fd() int { return int(h) }

// key tells children apart in the poller.
func (h handle) key(int) int { return int(h) }

func (h handle) close() { _ = unix.Close(int(h)) }

// signal sends a signal to a process that has not been collected.
func (h handle) signal(pid int, sig syscall.Signal) error {
	err := unix.PidfdSendSignal(int(h), sig, nil, 0)
	if err != unix.ENOSYS && err != unix.EPERM {
		return err
	}
	// A seccomp filter may forbid this call alone. The number is the process's as long as its pidfd says that it has not ended.
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(h), Events: unix.POLLIN}}, 0); n > 0 {
		return unix.ESRCH
	}
	return unix.Kill(pid, sig)
}

// childInfo is how siginfo_t begins for SIGCHLD (man 2 sigaction).
type childInfo struct {
	signo, errno, code int32
	_                  [0]uintptr // the union that follows is aligned like a pointer
	pid                int32
	uid                uint32
	status             int32
}

// cldExited is the si_code of a process that exited; CLD_KILLED and CLD_DUMPED are the others here.
const cldExited = 1

// reap collects the exit status of a process whose pidfd polls readable. WNOHANG, because a child held
// by a tracer polls readable and cannot be reaped before the tracer lets go.
func (h handle) reap(int) (Status, bool) {
	for {
		var raw unix.Siginfo
		err := unix.Waitid(unix.P_PIDFD, int(h), &raw, unix.WEXITED|unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // ECHILD: somebody else took it
			return h.exitInfo(), true
		}
		info := (*childInfo)(unsafe.Pointer(&raw))
		switch {
		case info.pid == 0:
			return Status{}, false
		case raw.Code == cldExited:
			return Status{Known: true, Code: int(info.status)}, true
		default:
			return Status{Known: true, Signal: syscall.Signal(info.status)}, true
		}
	}
}

// exitInfo asks for the exit status of a process that somebody else has reaped. Since Linux 6.15 the pidfd
// keeps it; before, it is unknown.
func (h handle) exitInfo() Status {
	for range 3 {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err := unix.IoctlPidfdInfo(int(h), &info)
		switch {
		case err == unix.ESRCH: // reaped while the kernel looked; or it keeps nothing
			continue
		case err != nil: // it does not know the question
			return Status{}
		case info.Mask&unix.PIDFD_INFO_EXIT == 0:
			// It polls readable a moment before it is reaped, and POLLHUP after; that is told unasked.
			const moment = 20 // ms
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(h)}}, moment)
			continue
		}
		status := syscall.WaitStatus(info.Exit_code)
		if status.Signaled() {
			return Status{Known: true, Signal: status.Signal()}
		}
		return Status{Known: true, Code: status.ExitStatus()}
	}
	return Status{}
}

// poller is an epoll instance over pidfds. It is waited for through Go's own poller, so that
// not even one thread sleeps for it.
type poller struct {
	fd   int
	file *os.File
	raw  syscall.RawConn
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if fd, err = aboveStdio(fd); err != nil {
		return nil, err
	}
	if err = unix.SetNonblock(fd, true); err != nil { // what makes os.NewFile take it into Go's poller
		_ = unix.Close(fd)
		return nil, err
	}
	p := &poller{fd: fd, file: os.NewFile(uintptr(fd), "children")}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		_ = p.file.Close()
		return nil, err
	}
	return p, nil
}

// One report per arming: a child that cannot be reaped yet must not make the poller spin.
const endEvents = unix.EPOLLIN | unix.EPOLLONESHOT

func (p *poller) add(h handle, _ int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, int(h), &unix.EpollEvent{Events: endEvents, Fd: int32(h)})
}

func (p *poller) again(h handle, _ int) {
	_ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, int(h), &unix.EpollEvent{Events: endEvents, Fd: int32(h)})
}

// remove is not left to close: a forked host holds a copy of the descriptor, which would keep it here.
func (p *poller) remove(h handle, _ int) { _ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, int(h), nil) }

func (p *poller) close() { _ = p.file.Close() }

// wait sleeps until children have ended and returns their keys.
func (p *poller) wait() (keys []int) {
	var events [64]unix.EpollEvent
	n := 0
	err := p.raw.Read(func(uintptr) bool {
		n, _ = unix.EpollWait(p.fd, events[:], 0)
		return n > 0
	})
	if err != nil { // Go's poller would not take the descriptor: sleep here, then
		n, _ = unix.EpollWait(p.fd, events[:], -1)
	}
	for _, event := range events[:max(n, 0)] {
		keys = append(keys, int(event.Fd))
	}
	return keys
}
