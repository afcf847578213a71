package start

import (
	"syscall"
	"unsafe"
)

// blockSIGINT blocks SIGINT in the calling thread, to which the caller is locked: the
// kernel's sigprocmask is the thread's.
func blockSIGINT() (restore func(), err error) {
	const sigBlock, sigSetmask = 1, 3 // signal.h
	var block, old [4]uint32
	block[0] = 1 << (uint(syscall.SIGINT) - 1)
	_, _, errno := syscall.Syscall(syscall.SYS_SIGPROCMASK, sigBlock, uintptr(unsafe.Pointer(&block)), uintptr(unsafe.Pointer(&old)))
	if errno != 0 {
		return nil, errno
	}
	return func() {
		_, _, _ = syscall.Syscall(syscall.SYS_SIGPROCMASK, sigSetmask, uintptr(unsafe.Pointer(&old)), 0)
	}, nil
}
