//go:build darwin || freebsd

package shm

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

func mapGranularity() int { return unix.Getpagesize() }

// createNamed has no way to make the name appear when all is ready: who opens it before it has a size gets ErrCorrupt.
func createNamed(name string, size int64) (*Segment, error) {
	fd, err := shmOpen("/"+name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err = unix.Ftruncate(fd, size); err != nil {
		_ = unix.Close(fd)
		_ = shmUnlink("/" + name)
		return nil, err
	}
	s, err := (&Segment{fd: fd, size: size}).complete()
	if err != nil {
		_ = shmUnlink("/" + name)
	}
	return s, err
}

func openNamed(name string) (*Segment, error) {
	fd, err := shmOpen("/"+name, unix.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s, err := Attach(fd)
	if err != nil {
		_ = unix.Close(fd)
	}
	return s, err
}

func unlinkNamed(name string) error { return shmUnlink("/" + name) }

var anonymous atomic.Uint64

// createUnlinked makes an object under a name that nobody else has, and takes the name away again.
func createUnlinked(size int64) (int, error) {
	name := "/pp" + strconv.Itoa(unix.Getpid()) + "." + strconv.FormatUint(anonymous.Add(1), 36)
	fd, err := shmOpen(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return -1, err
	}
	err = shmUnlink(name)
	if err == nil {
		err = unix.Ftruncate(fd, size)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func adopt(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Size < 1 || int64(int(st.Size)) != st.Size {
		return 0, fmt.Errorf("%w: descriptor %d has no size", ErrCorrupt, fd)
	}
	unix.CloseOnExec(fd)
	return st.Size, nil
}

func mapRange(fd int, off, n int64) ([]byte, error) {
	p, err := unix.MmapPtr(fd, off, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), n), nil
}

func unmapRange(b []byte) error { return unix.MunmapPtr(addressOf(b), uintptr(len(b))) }

// prefault is a hint of Linux.
func prefault([]byte) {}

func closeFD(fd int) error { return unix.Close(fd) }

// reserve is not needed: shared memory objects get their storage with their size, or as swap allows.
func reserve(int, *uint64, int64, int64) error { return nil }

// punch cannot give storage of a shared memory object back here; it stays until the segment is closed.
func punch(int, int64, int64) error { return nil }

func isNoMemory(err error) bool {
	return errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EDQUOT)
}
