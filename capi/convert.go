package main

// #include "engine.h"
import "C"

import (
	"os"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// goStrings copies a NULL-ended array of C strings; nil for NULL.
func goStrings(p **C.char) []string {
	if p == nil {
		return nil
	}
	out := []string{}
	for ; *p != nil; p = (**C.char)(unsafe.Add(unsafe.Pointer(p), unsafe.Sizeof(*p))) {
		out = append(out, C.GoString(*p))
	}
	return out
}

// addressSpace bounds what sizes and counts can be true: no array is larger than 2^47 bytes.
const addressSpace = 1 << 47

// goBytes sees n bytes of C memory as a slice, without copying.
func goBytes(p unsafe.Pointer, n C.size_t, what string) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if p == nil {
		return nil, invalid("%s is NULL and its size is %d", what, uint64(n))
	}
	return goSlice((*byte)(p), n, what)
}

// goSlice sees n elements of C memory as a slice. What cannot be is an error here and not a panic.
func goSlice[T any](p *T, n C.size_t, what string) ([]T, error) {
	if n == 0 {
		return nil, nil
	}
	if p == nil {
		return nil, invalid("%s is NULL and there are %d", what, uint64(n))
	}
	if uint64(n) > addressSpace/uint64(max(unsafe.Sizeof(*p), 1)) {
		return nil, invalid("%s: %d elements", what, uint64(n))
	}
	return unsafe.Slice(p, n), nil
}

// elements is goBytes for an array of n elements.
func elements(p unsafe.Pointer, size, n C.size_t, what string) ([]byte, error) {
	if size != 0 && n > addressSpace/size {
		return nil, invalid("%d elements of %d bytes", uint64(n), uint64(size))
	}
	return goBytes(p, size*n, what)
}

// timeout converts milliseconds; negative is for ever.
func timeout(ms C.int64_t) time.Duration {
	switch {
	case ms < 0:
		return -1
	case int64(ms) > int64(1<<62/time.Millisecond):
		return -1 // 146 million years
	}
	return time.Duration(ms) * time.Millisecond
}

// family is what a child inherits to be of this process's family: descriptors, and a variable of the environment. Nothing if there is no
// family, because shared memory is not to be had: the child then finds the same when it wants some.
func family() (files []int, variable []string) {
	var fds [2]C.int32_t
	var text [96]C.char
	if C.pp__family(&fds[0], &text[0], C.size_t(len(text))) != C.PP_OK {
		return nil, nil
	}
	return []int{int(fds[0]), int(fds[1])}, []string{C.GoString(&text[0])}
}

// interrupts reports whether a signal handler that has run, and ended a system call of this thread with EINTR, is to end the wait.
func interrupts() bool { return bool(C.pp__interrupts()) }

// sleep is [shm.FutexWait], ended by those signal handlers of the program only that end waits.
func sleep(addr *uint32, val uint32, limit time.Duration) error {
	switch C.pp__wait((*C.uint32_t)(addr), C.uint32_t(val), C.uint64_t(limit)) {
	case C.PP_ERR_TIMEOUT:
		return os.ErrDeadlineExceeded
	case C.PP_ERR_INTERRUPTED:
		return shm.ErrInterrupted
	}
	return nil
}

// environment is the C program's at this moment, which setenv(3) may have changed since Go copied it.
func environment(given **C.char) []string {
	if given != nil {
		return goStrings(given)
	}
	return append([]string{}, goStrings(C.pp__environment())...)
}
