package shm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// shm_open2(2) would seal the size as well; shm_open is in every release that Go supports.

func shmOpen(name string, flags int, mode uint32) (int, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	fd, _, e := unix.Syscall(unix.SYS_SHM_OPEN, uintptr(unsafe.Pointer(path)), uintptr(flags|unix.O_CLOEXEC), uintptr(mode))
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

func shmUnlink(name string) error {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, e := unix.Syscall(unix.SYS_SHM_UNLINK, uintptr(unsafe.Pointer(path)), 0, 0); e != 0 {
		return e
	}
	return nil
}

func createAnonymous(size int64) (int, error) { return createUnlinked(size) }
