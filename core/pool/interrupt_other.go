//go:build !linux

package pool

import (
	"time"

	"github.com/polyproc/polyproc/shm"
)

func futexWaitInterruptible(addr *uint32, seq uint32, timeout time.Duration) error {
	return shm.FutexWait(addr, seq, timeout)
}
