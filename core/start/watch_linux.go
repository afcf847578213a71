package start

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// WatchParent has this process SIGKILLed as soon as its parent ends, by whatever cause, and returns at once. parentPID is
// what the parent told ([Received.ParentPID]): if that process is not this one's parent any more, it has ended
// already; the error says so ([os.ErrProcessDone]), and the caller should exit.
//
// Not PR_SET_PDEATHSIG: that fires when the thread that started this process ends.
func WatchParent(parentPID int) error {
	if parentPID <= 0 {
		return fmt.Errorf("start: watching the parent: %d is not a process id", parentPID)
	}
	fd, err := unix.PidfdOpen(parentPID, 0)
	if err == nil {
		fd, err = aboveStdio(fd)
	}
	// Asked after opening: as long as it is the parent, the descriptor cannot be of another process with its number.
	if os.Getppid() != parentPID {
		if err == nil {
			_ = unix.Close(fd)
		}
		return fmt.Errorf("start: the parent, process %d, has ended: %w", parentPID, os.ErrProcessDone)
	}
	if err != nil {
		return fmt.Errorf("start: watching the parent, process %d: %w", parentPID, explain(err))
	}
	go func() { // a thread sleeping in the kernel
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(poll, -1); n > 0 || (err != nil && err != unix.EINTR) {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				os.Exit(128 + int(unix.SIGKILL)) // pid 1 of a container cannot kill itself
			}
		}
	}()
	return nil
}
