//go:build darwin || freebsd

package start

import "golang.org/x/sys/unix"

// openParent returns a kqueue that reports the end of the parent.
func openParent(pid int) (int, error) {
	kq, err := newKqueue()
	if err != nil {
		return -1, err
	}
	if err := watchExit(kq, pid); err != nil {
		_ = unix.Close(kq)
		return -1, err
	}
	return kq, nil
}

// awaitParent sleeps until the parent has ended.
func awaitParent(kq int) {
	for {
		if _, err := unix.Kevent(kq, nil, make([]unix.Kevent_t, 1), nil); err != unix.EINTR {
			return
		}
	}
}
