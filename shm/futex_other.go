//go:build !linux

package shm

import (
	"os"
	"sync/atomic"
	"time"
)

// FutexWait sleeps until the word is not val, which it looks at every 20 us to 1 ms: these systems have no documented wait on
// a word that works across processes. It returns nil then, and [os.ErrDeadlineExceeded] after timeout (< 0: never).
// Whoever wakes must have changed the word, as [Bell] does.
func FutexWait(addr *uint32, val uint32, timeout time.Duration) error {
	pause := 20 * time.Microsecond
	for begin := time.Now(); atomic.LoadUint32(addr) == val; pause = min(2*pause, time.Millisecond) {
		left := pause
		if timeout >= 0 {
			if left = min(pause, timeout-time.Since(begin)); left <= 0 {
				return os.ErrDeadlineExceeded
			}
		}
		time.Sleep(left)
	}
	return nil
}

// FutexWake does nothing here, see [FutexWait], and returns 0.
func FutexWake(*uint32, int) int { return 0 }
