//go:build unix

package start

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// unwanted in syscall.ProcAttr.Files has Go close that number in the child.
const unwanted = ^uintptr(0)

// childFiles returns the child's descriptor table: 0, 1, 2 and what is wanted under their own numbers, and
// everything else that an exec would carry over marked for closing. The host may be a C or Python program whose
// descriptors are not close-on-exec. Those of 0, 1, 2 that are closed here become /dev/null there: null is then
// its descriptor, for the caller to close, else -1.
func childFiles(s *Spec) (files []uintptr, null int, err error) {
	wanted := s.Files
	for _, fd := range wanted {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); fd < 0 || err != nil {
			return nil, -1, fmt.Errorf("start: descriptor %d, which the child is to inherit: %w", fd, unix.EBADF)
		}
	}
	var stdio [3]int // what the child has as 0, 1, 2; -1: /dev/null
	for fd, file := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		stdio[fd] = fd
		if file != nil {
			stdio[fd] = int(file.Fd())
		}
		if _, err := unix.FcntlInt(uintptr(stdio[fd]), unix.F_GETFD, 0); err != nil {
			if file != nil {
				return nil, -1, fmt.Errorf("start: %s, which the child is to have as descriptor %d: %w", file.Name(), fd, os.ErrClosed)
			}
			stdio[fd] = -1
		}
	}
	size, err := tableSize(wanted)
	if err != nil {
		return nil, -1, err
	}
	files = make([]uintptr, size)
	for i := range files {
		files[i] = unwanted
	}
	for _, fd := range wanted {
		files[fd] = uintptr(fd)
	}
	null = -1
	for fd, from := range stdio {
		if from < 0 && null < 0 {
			if null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
				null, err = aboveStdio(null)
			}
			if err != nil {
				return nil, -1, fmt.Errorf("start: /dev/null for closed standard files: %w", explain(err))
			}
		}
		if from < 0 {
			from = null
		}
		files[fd] = uintptr(from)
	}
	return files, null, nil
}

// spare is how many free numbers the table covers besides those in use: another thread of the host may open a
// descriptor, inheritable for a moment, between our look at the table and the fork. It gets the lowest free number.
const spare = 16

// tableSize returns how many numbers the child's table must cover: 0-2, the wanted ones, whatever
// is inheritable, and the spare ones as far as they fit.
func tableSize(wanted []int) (int, error) {
	open, err := openFiles()
	if err != nil {
		return 0, fmt.Errorf("start: listing open descriptors: %w", explain(err))
	}
	slices.Sort(open)
	// Go moves its status pipe behind the table, to size+1, which the limit must allow.
	room := uint64(1 << 30)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		room = min(room, uint64(limit.Cur))
	}
	size := 3
	for _, fd := range wanted {
		size = max(size, fd+1)
	}
	for _, fd := range slices.Backward(open) {
		if fd < size {
			break
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		switch {
		case err != nil || flags&unix.FD_CLOEXEC != 0:
		case uint64(fd)+3 > room:
			// Opened before the limit was lowered: out of the table's reach. It is not for the programs that this process executes
			// by other means, either: they could not open such a number themselves.
			unix.CloseOnExec(fd)
		default:
			size = fd + 1
		}
	}
	if uint64(size)+2 > room {
		return 0, fmt.Errorf("start: descriptor %d is open and leaves no room below the limit of %d: %w",
			size-1, room, explain(syscall.EMFILE))
	}
	reach, free := 0, spare
	for _, fd := range open {
		if fd-reach >= free {
			break
		}
		free -= fd - reach
		reach = fd + 1
	}
	return min(max(size, reach+free), int(room)-2), nil
}

// scanFiles lists open descriptors where the system has no list of them, up to a number that few programs reach.
func scanFiles() (open []int, err error) {
	const most = 1 << 16
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	for fd := range int(min(uint64(limit.Cur), most)) {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			open = append(open, fd)
		}
	}
	return open, nil
}

// aboveStdio moves a descriptor of ours off 0, 1 and 2, which are free only because the host closed them:
// its child or its next printf would meet us there. It closes fd on failure.
func aboveStdio(fd int) (int, error) {
	if fd > 2 {
		return fd, nil
	}
	moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	_ = unix.Close(fd)
	if err != nil {
		return -1, err
	}
	return moved, nil
}
