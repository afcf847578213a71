//go:build !linux

package pipe

import (
	"context"
	"time"

	"github.com/polyproc/polyproc/shm"
)

// There are no heaps here, and so no pipes: New fails before anything of this is called.

func nowMillis() uint64 { return uint64(time.Now().UnixMilli()) }

func uptime() uint64 { return 0 }

func closeFD(int) {}

func inodeOf(int) uint64 { return 0 }

func socketPair() (fds [2]int, inodes [2]uint64, err error) { return fds, inodes, shm.ErrUnsupported }

func hungUp(int) bool { return true }

func sendBytes(int) bool { return false }

func drain(int) bool { return true }

func pending(int) int { return 0 }

type readiness struct{ gate chan struct{} }

func (r *readiness) wait(context.Context, int, time.Duration, func() bool) (readable, hup bool, err error) {
	return false, true, shm.ErrUnsupported
}

func (r *readiness) interrupt() {}

func (r *readiness) close() {}

func leaveFile(*shm.Heap, name, int) error { return shm.ErrUnsupported }

func takeFile(name) (int, error) { return -1, shm.ErrUnsupported }

func forgetFile(name) {}
