package shm

import (
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// libSystem has shm_open(2) and shm_unlink(2), which golang.org/x/sys lacks. Apple supports system calls only through it.
var libSystem = sync.OnceValue(func() (f struct {
	open, unlink uintptr
	err          error
}) {
	handle, err := purego.Dlopen("/usr/lib/libSystem.B.dylib", purego.RTLD_LAZY|purego.RTLD_GLOBAL)
	for name, into := range map[string]*uintptr{"shm_open": &f.open, "shm_unlink": &f.unlink} {
		if err == nil {
			*into, err = purego.Dlsym(handle, name)
		}
	}
	f.err = err
	return f
})

func shmOpen(name string, flags int, mode uint32) (int, error) {
	f := libSystem()
	if f.err != nil {
		return -1, f.err
	}
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	r, _, e := purego.SyscallN(f.open, uintptr(unsafe.Pointer(path)), uintptr(flags), uintptr(mode))
	if int32(r) < 0 {
		return -1, unix.Errno(e)
	}
	unix.CloseOnExec(int(r))
	return int(r), nil
}

func shmUnlink(name string) error {
	f := libSystem()
	if f.err != nil {
		return f.err
	}
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if r, _, e := purego.SyscallN(f.unlink, uintptr(unsafe.Pointer(path))); int32(r) < 0 {
		return unix.Errno(e)
	}
	return nil
}

func createAnonymous(size int64) (int, error) { return createUnlinked(size) }
