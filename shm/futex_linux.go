package shm

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// FutexWait sleeps until somebody calls [FutexWake] on the word, in any process that maps it. It returns nil when woken, spuriously
// too, and at once when the word is not val; [os.ErrDeadlineExceeded] after timeout (< 0: never); [ErrInterrupted] when a signal
// handler ran. Elsewhere than on Linux it polls.
func FutexWait(addr *uint32, val uint32, timeout time.Duration) error {
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(int64(timeout))
		ts = &t
	}
	switch e := futexWait(addr, val, ts); e {
	case 0, unix.EAGAIN:
		return nil
	case unix.ETIMEDOUT:
		return os.ErrDeadlineExceeded
	case unix.EINTR:
		return ErrInterrupted
	default:
		return wrap("futex", e)
	}
}

// FutexWake wakes up to n that sleep on the word, in any process, and returns how many it woke.
func FutexWake(addr *uint32, n int) int { return futexWake(addr, n) }
