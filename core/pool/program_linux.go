package pool

import (
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// A pool's process holds a record lock on the pool's memory for as long as it executes the program that opened the pool: the descriptor is
// close-on-exec, and processes that it forks do not inherit the lock. capi/front/watch.c tells the rest.

// lockProgram takes the lock. Where that fails, workers do not notice an exec.
func lockProgram(seg *shm.Segment) {
	_ = unix.FcntlFlock(uintptr(seg.FD()), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1})
}

// watchProgram ends this process once the pool's process executes another program. It sleeps in a system call.
func watchProgram(seg *shm.Segment, pid int) {
	for unix.FcntlFlock(uintptr(seg.FD()), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_RDLCK, Len: 1}) == unix.EINTR {
	}
	if seg.UnmappedBy(pid) {
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	}
}
