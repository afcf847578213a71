package pool

import (
	"time"

	"golang.org/x/sys/unix"
)

// CLOCK_MONOTONIC, which all processes share, at the start of the program. Go's own readings of it cost no system call.
var (
	started   = time.Now()
	startedAt = func() uint64 {
		var t unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail for this clock
		return uint64(t.Nano())
	}()
)

// monotonic is CLOCK_MONOTONIC, ns.
func monotonic() uint64 { return startedAt + uint64(time.Since(started)) }
