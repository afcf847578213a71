package start

import "golang.org/x/sys/unix"

// openParent returns the pidfd of the parent.
func openParent(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	return aboveStdio(fd)
}

// awaitParent sleeps until the parent has ended.
func awaitParent(fd int) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != unix.EINTR {
			return
		}
	}
}
