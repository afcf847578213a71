package pool

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// futexWaitInterruptible is shm.FutexWait for a thread of a host whose signal handlers are to end the wait. The Go runtime's own signal
// (SIGURG, for preemption) would end it too, since a timed futex(2) is not restarted, so it is blocked meanwhile. The caller's
// goroutine is locked to its thread, as it is in a call from C.
func futexWaitInterruptible(addr *uint32, seq uint32, timeout time.Duration) error {
	var urgent, before unix.Sigset_t
	urgent.Val[0] = 1 << (unix.SIGURG - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &urgent, &before); err == nil {
		defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
	}
	return shm.FutexWait(addr, seq, timeout)
}
