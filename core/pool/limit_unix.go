//go:build unix

package pool

import (
	"math"
	"syscall"
)

// fileSizeLimit is the largest file that this process may make, in bytes: RLIMIT_FSIZE, see setrlimit(2). Beyond it the system
// sends SIGXFSZ, which would end the host.
func fileSizeLimit() int64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil || uint64(limit.Cur) > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(limit.Cur)
}
