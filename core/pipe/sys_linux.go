package pipe

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// What is asked of the system: the sockets, which wake and by which the kernel tells that nobody is left.

// started is when the clock below was read; Go's own readings of CLOCK_MONOTONIC cost no system call.
var (
	started   = time.Now()
	startedAt = clock(unix.CLOCK_MONOTONIC)
)

func clock(which int32) uint64 {
	var t unix.Timespec
	if unix.ClockGettime(which, &t) != nil {
		return 1
	}
	return uint64(t.Nano())
}

// nowMillis is CLOCK_MONOTONIC, ms.
func nowMillis() uint64 { return (startedAt + uint64(time.Since(started))) / uint64(time.Millisecond) }

// uptime is the time since the start of the system in the unit of /proc/PID/stat, field 22: 1/100 s. 0: it is not known here.
func uptime() uint64 {
	if !shm.BootTime() {
		return 0
	}
	return clock(unix.CLOCK_BOOTTIME) / uint64(10*time.Millisecond)
}

func closeFD(fd int) { _ = unix.Close(fd) }

// inodeOf is the inode of the file behind a descriptor, 0 if there is none.
func inodeOf(fd int) uint64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}

func socketPair() (fds [2]int, inodes [2]uint64, err error) {
	if fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fds, inodes, os.NewSyscallError("socketpair", err)
	}
	limit := unix.NsecToTimeval(int64(slice)) // for receivers in C, which sleep in recv(2)
	for i, fd := range fds {
		var st unix.Stat_t
		if err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.Fstat(fd, &st)); err != nil {
			closeFD(fds[0])
			closeFD(fds[1])
			return fds, inodes, err
		}
		inodes[i] = st.Ino
	}
	return fds, inodes, nil
}

const hangUp = unix.POLLHUP | unix.POLLERR | unix.POLLNVAL

// hungUp asks the kernel whether nobody has the other end.
func hungUp(fd int) bool {
	at := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(at, 0)
	return err == nil && n > 0 && at[0].Revents&hangUp != 0
}

var wakeBytes = []byte{wakeByte, wakeByte}

// sendBytes wakes the receivers, false: nobody has the other end.
func sendBytes(fd int) bool {
	err := unix.Send(fd, wakeBytes, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return err != unix.EPIPE && err != unix.ECONNRESET // EAGAIN: the socket is full of bytes, which is as good
}

// drain reads all bytes, and reports whether they were senders'.
func drain(fd int) bool {
	var room [64]byte
	well := true
	for n := len(room); n == len(room); {
		var err error
		if n, _, err = unix.Recvfrom(fd, room[:], unix.MSG_DONTWAIT); err != nil {
			break
		}
		for _, b := range room[:max(n, 0)] {
			well = well && b == wakeByte
		}
	}
	return well
}

// pending is how many bytes are in the socket.
func pending(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return -1
	}
	return n
}

// readiness waits for a socket without a thread: it is in an epoll of its own, and that in Go's poller. The socket itself is other processes' too, and must stay as it is: not
// O_NONBLOCK. Of several goroutines one waits, the others for that one.
type readiness struct {
	gate chan struct{}
	mu   sync.Mutex
	file *os.File
	over bool
}

func (r *readiness) open(fd int) (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil || r.over {
		return r.file, nil
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	if err == nil {
		err = unix.SetNonblock(ep, true)
	}
	if err != nil {
		closeFD(ep)
		return nil, os.NewSyscallError("epoll", err)
	}
	r.file = os.NewFile(uintptr(ep), "pipe")
	return r.file, nil
}

// wait waits until bytes are in the socket or nobody has the other end, at most most: then and after an interrupt it returns nothing. Errors: the context's, of
// the system.
func (r *readiness) wait(ctx context.Context, fd int, most time.Duration, over func() bool) (readable, hup bool, err error) {
	select {
	case r.gate <- struct{}{}:
		defer func() { <-r.gate }()
	case <-ctx.Done():
		return false, false, ctx.Err()
	}
	file, err := r.open(fd)
	if err != nil || file == nil {
		return false, false, err
	}
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetReadDeadline(time.Now().Add(most))
	}
	if err != nil {
		return false, false, err
	}
	if over() { // what has interrupted before the deadline was set
		return false, false, nil
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	err = raw.Read(func(ep uintptr) bool {
		var at [1]unix.EpollEvent
		n, err := unix.EpollWait(int(ep), at[:], 0)
		if n > 0 {
			readable, hup = true, at[0].Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
		}
		return n > 0 || (err != nil && err != unix.EINTR)
	})
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if err == nil && !readable {
		err = ctx.Err()
	}
	return readable, hup, err
}

// interrupt ends a wait.
func (r *readiness) interrupt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		_ = r.file.SetReadDeadline(time.Unix(1, 0))
	}
}

func (r *readiness) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.file != nil {
		_ = r.file.Close()
	}
}
