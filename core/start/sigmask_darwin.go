package start

import (
	"syscall"
	"unsafe"
)

// blockSIGINT blocks SIGINT in the calling thread, to which the caller is locked.
func blockSIGINT() (restore func(), err error) {
	const sigBlock, sigSetmask = 1, 3 // signal.h
	block, old := uint32(1<<(uint(syscall.SIGINT)-1)), uint32(0)
	_, _, errno := syscall.Syscall(syscall.SYS___PTHREAD_SIGMASK, sigBlock, uintptr(unsafe.Pointer(&block)), uintptr(unsafe.Pointer(&old)))
	if errno != 0 {
		return nil, errno
	}
	return func() {
		_, _, _ = syscall.Syscall(syscall.SYS___PTHREAD_SIGMASK, sigSetmask, uintptr(unsafe.Pointer(&old)), 0)
	}, nil
}
