package start

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Adopt takes over a process that somebody else started: the host by a fork of its own, or a server that forks on request. It is
// supervised like one that Start has started; one that Start has started, or Adopt was given before, is the same Process. If it is a child of this process, it is collected here. If it is not, statusFD is a
// descriptor on which its parent writes 4 bytes after its end, the exit code as int32 in this machine's byte order, or minus the
// signal; or -1, and then the status is what the kernel tells (Linux 6.15) or not known. Adopt owns statusFD, even if it fails.
// Errors: [ErrNotFound] if there is no such process (an ended child that nobody has collected is one).
func Adopt(pid, statusFD int) (*Process, error) {
	fail := func(err error) (*Process, error) {
		if statusFD >= 0 {
			_ = unix.Close(statusFD)
		}
		return nil, err
	}
	if err := checkKernel(); err != nil {
		return fail(err)
	}
	if statusFD < 0 {
		// Two would try to collect one status.
		if p := children.find(pid); p != nil {
			return p, nil
		}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return fail(fmt.Errorf("start: process %d: %w", pid, ErrNotFound))
	}
	if err == nil {
		fd, err = aboveStdio(fd)
	}
	if err != nil {
		return fail(fmt.Errorf("start: supervising process %d: %w", pid, explain(err)))
	}
	if err := children.enter(); err != nil {
		_ = unix.Close(fd)
		return fail(fmt.Errorf("start: supervising children: %w", explain(err)))
	}
	defer children.leave()
	p := newProcess(pid, handle(fd))
	if statusFD >= 0 {
		_ = unix.SetNonblock(statusFD, true)
		p.report = &report{fd: statusFD}
	}
	if err := children.adopt(p); err != nil {
		p.leak.Stop()
		p.h.close()
		return fail(fmt.Errorf("start: supervising process %d: %w", pid, explain(err)))
	}
	return p, nil
}

// reportTime is how long an ended process's parent may take to say how it ended.
const reportTime = 2 * time.Second

// report is where the parent of an adopted process tells its status.
type report struct {
	fd    int
	since time.Time // when the process was found to have ended
}

// read returns the status; false: it may still come.
func (r *report) read() (Status, bool) {
	var b [4]byte
	n, err := unix.Read(r.fd, b[:])
	switch {
	case n == len(b):
		_ = unix.Close(r.fd)
		if code := int32(binary.NativeEndian.Uint32(b[:])); code < 0 {
			return Status{Known: true, Signal: syscall.Signal(-code)}, true
		} else {
			return Status{Known: true, Code: int(code)}, true
		}
	case err == unix.EAGAIN || err == unix.EINTR:
		if r.since.IsZero() {
			r.since = time.Now()
		}
		if time.Since(r.since) < reportTime {
			return Status{}, false
		}
	}
	_ = unix.Close(r.fd) // its parent is gone, or mute
	return Status{}, true
}
