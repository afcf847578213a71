package main

// #include "engine.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"syscall"
	"unsafe"

	"github.com/polyproc/polyproc/core/pool"
	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

var (
	errHandle = errors.New("no such handle")
	errNoInit = errors.New("this program cannot be executed again as a worker: call pp_init(&argc, &argv) first in main")
)

// statuses maps errors to codes: the first that matches counts.
var statuses = []struct {
	is   error
	code C.int32_t
}{
	{errHandle, C.PP_ERR_HANDLE},
	{errNoInit, C.PP_ERR_STATE},
	{pool.ErrInterrupted, C.PP_ERR_INTERRUPTED},
	{pool.ErrNoTask, C.PP_ERR_NOT_FOUND},
	{pool.ErrStarted, C.PP_ERR_STATE},
	{pool.ErrRunning, C.PP_ERR_STATE},
	{pool.ErrInvalid, C.PP_ERR_INVALID},
	{pool.ErrTooBig, C.PP_ERR_TOO_BIG},
	{shm.ErrNoMemory, C.PP_ERR_NOMEM},
	{shm.ErrCorrupt, C.PP_ERR_CORRUPT},
	{start.ErrUnsupported, C.PP_ERR_UNSUPPORTED},
	{start.ErrNotFound, C.PP_ERR_NOT_FOUND},
	{os.ErrDeadlineExceeded, C.PP_ERR_TIMEOUT},
	{context.DeadlineExceeded, C.PP_ERR_TIMEOUT},
	{os.ErrClosed, C.PP_ERR_CLOSED},
	{syscall.ENOMEM, C.PP_ERR_NOMEM},
	{syscall.EINVAL, C.PP_ERR_INVALID},
	{fs.ErrNotExist, C.PP_ERR_NOT_FOUND},
	{fs.ErrExist, C.PP_ERR_EXISTS},
}

// statusOf returns the code of an error and leaves its text for pp_last_error.
func statusOf(err error, otherwise C.int32_t) C.int32_t {
	if err == nil {
		return C.PP_OK
	}
	text := C.CString(err.Error())
	C.pp__set_error(text)
	C.free(unsafe.Pointer(text))
	for _, s := range statuses {
		if errors.Is(err, s.is) {
			return s.code
		}
	}
	return otherwise
}

// call runs the body of an export: the only place where errors become codes, and where a panic stops.
func call(body func() error) (status C.int32_t) {
	return callOr(C.PP_ERR_SYSTEM, body)
}

// callOr is call with another code for errors that have none of their own.
func callOr(otherwise C.int32_t, body func() error) (status C.int32_t) {
	defer func() {
		if v := recover(); v != nil {
			status = statusOf(fmt.Errorf("panic: %v\n%s", v, debug.Stack()), C.PP_ERR_PANIC)
		}
	}()
	return statusOf(body(), otherwise)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{pool.ErrInvalid}, args...)...)
}
