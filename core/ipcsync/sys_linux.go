package ipcsync

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// CLOCK_MONOTONIC, which turns are told in, at the start of the program; Go's own readings of it cost no system call.
var (
	started   = time.Now()
	startedAt = clock()
)

func clock() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 1
	}
	return uint64(t.Nano())
}

// now is CLOCK_MONOTONIC, ns.
func now() uint64 { return startedAt + uint64(time.Since(started)) }

// departed is the cheap half of [shm.Heap.Gone]: there is no process with this number at all.
func departed(h *shm.Heap, o shm.Owner) bool {
	pid := h.PID(o)
	return pid <= 0 || errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}
