package errcodec

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"syscall"

	"github.com/polyproc/polyproc/shm"
)

func init() {
	for name, err := range map[string]error{
		"io.EOF":                   io.EOF,
		"io.ErrUnexpectedEOF":      io.ErrUnexpectedEOF,
		"io.ErrShortWrite":         io.ErrShortWrite,
		"io.ErrShortBuffer":        io.ErrShortBuffer,
		"io.ErrNoProgress":         io.ErrNoProgress,
		"io.ErrClosedPipe":         io.ErrClosedPipe,
		"fs.ErrInvalid":            fs.ErrInvalid,
		"fs.ErrPermission":         fs.ErrPermission,
		"fs.ErrExist":              fs.ErrExist,
		"fs.ErrNotExist":           fs.ErrNotExist,
		"fs.ErrClosed":             fs.ErrClosed,
		"fs.SkipDir":               fs.SkipDir,
		"fs.SkipAll":               fs.SkipAll,
		"os.ErrDeadlineExceeded":   os.ErrDeadlineExceeded,
		"os.ErrNoDeadline":         os.ErrNoDeadline,
		"os.ErrProcessDone":        os.ErrProcessDone,
		"exec.ErrNotFound":         exec.ErrNotFound,
		"exec.ErrDot":              exec.ErrDot,
		"context.Canceled":         context.Canceled,
		"context.DeadlineExceeded": context.DeadlineExceeded,
		"errors.ErrUnsupported":    errors.ErrUnsupported,
		"strconv.ErrRange":         strconv.ErrRange,
		"strconv.ErrSyntax":        strconv.ErrSyntax,

		"shm.ErrNoMemory":    shm.ErrNoMemory,
		"shm.ErrCorrupt":     shm.ErrCorrupt,
		"shm.ErrInterrupted": shm.ErrInterrupted,
		"shm.ErrUnsupported": shm.ErrUnsupported,
		"shm.ErrInvalid":     shm.ErrInvalid,
		"shm.ErrGone":        shm.ErrGone,
	} {
		Register(name, err)
	}
}

// known are types that travel without gob.Register, which would fix their names for the whole program.
var known = map[reflect.Type]string{
	reflect.TypeFor[syscall.Errno]():     "syscall.Errno",
	reflect.TypeFor[*fs.PathError]():     "fs.PathError",
	reflect.TypeFor[*os.LinkError]():     "os.LinkError",
	reflect.TypeFor[*os.SyscallError]():  "os.SyscallError",
	reflect.TypeFor[*exec.Error]():       "exec.Error",
	reflect.TypeFor[*strconv.NumError](): "strconv.NumError",
}

// RegisterType makes a type of errors known. Call it while packages are initialized.
func RegisterType[T error](name string) { known[reflect.TypeFor[T]()] = name }
