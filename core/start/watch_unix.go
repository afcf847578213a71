//go:build unix

package start

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// WatchParent has this process killed (SIGKILL) as soon as its parent ends, by whatever cause, and returns at once.
// parentPID is what the parent told ([Received]); if that process is not this one's parent any more, it has ended
// already: the error says so ([os.ErrProcessDone]) and the caller should exit. The watch costs one descriptor and
// one sleeping thread, and lasts as long as the process.
//
// Not PR_SET_PDEATHSIG: that fires when the thread that started this process ends.
func WatchParent(parentPID int) error {
	if parentPID <= 0 {
		return fmt.Errorf("start: watching the parent: %d is not a process id", parentPID)
	}
	fd, err := openParent(parentPID)
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
	go func() {
		awaitParent(fd)
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		os.Exit(128 + int(unix.SIGKILL)) // the first process of a container cannot kill itself
	}()
	return nil
}
