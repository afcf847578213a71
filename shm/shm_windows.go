package shm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// A segment is a section backed by the paging file; FD is its handle. Storage is
// committed with the section: a sparse one takes as much as a full one. What needs another process's section is missing.

func mapGranularity() int { return 64 << 10 }

func createAnonymous(size int64) (int, error) {
	h, err := section(nil, size)
	return int(h), err
}

func section(name *uint16, size int64) (windows.Handle, error) {
	h, err := windows.CreateFileMapping(windows.InvalidHandle, nil, windows.PAGE_READWRITE, uint32(size>>32), uint32(size), name)
	if errors.Is(err, windows.ERROR_ALREADY_EXISTS) { // the handle is that of the other one
		_ = windows.CloseHandle(h)
	}
	if err != nil {
		return 0, err
	}
	return h, nil
}

// createNamed makes a section that lives as long as somebody has it open: Windows knows no unlink.
func createNamed(name string, size int64) (*Segment, error) {
	path, err := windows.UTF16PtrFromString(`Local\` + name)
	if err != nil {
		return nil, err
	}
	h, err := section(path, size)
	if err != nil {
		return nil, err
	}
	return (&Segment{fd: int(h), size: size}).complete()
}

func openNamed(string) (*Segment, error) {
	return nil, fmt.Errorf("%w: open by name", ErrUnsupported) // x/sys has no OpenFileMapping
}

func unlinkNamed(string) error { return nil }

func adopt(int) (int64, error) {
	return 0, fmt.Errorf("%w: the size of a section cannot be asked for", ErrUnsupported)
}

func mapRange(fd int, off, n int64) ([]byte, error) {
	at, err := windows.MapViewOfFile(windows.Handle(fd), windows.FILE_MAP_READ|windows.FILE_MAP_WRITE,
		uint32(off>>32), uint32(off), uintptr(n))
	if err != nil {
		return nil, err
	}
	// The view is not Go memory: read the address as a pointer without the conversion that vet takes for a mistake.
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), n), nil
}

func unmapRange(b []byte) error { return windows.UnmapViewOfFile(uintptr(addressOf(b))) }

func prefault([]byte) {}

func closeFD(fd int) error { return windows.CloseHandle(windows.Handle(fd)) }

func reserve(int, *uint64, int64, int64) error { return nil }
func punch(int, int64, int64) error            { return nil }

func isNoMemory(err error) bool {
	return errors.Is(err, windows.ERROR_NOT_ENOUGH_MEMORY) || errors.Is(err, windows.ERROR_COMMITMENT_LIMIT) ||
		errors.Is(err, windows.ERROR_DISK_FULL)
}
