package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"

	"github.com/polyproc/polyproc/core/internal/errcodec"
	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

// Errors of calls.
var (
	ErrClosed      = error(alias{"pool: closed", os.ErrClosed})
	ErrRunning     = errors.New("pool: still running: drain or terminate it first")
	ErrTimeout     = error(alias{"pool: timed out", os.ErrDeadlineExceeded})
	ErrNoTask      = errors.New("pool: no such task, or its result was taken")
	ErrStarted     = errors.New("pool: the task has started")
	ErrInvalid     = errors.New("pool: invalid argument")
	ErrTooBig      = errors.New("pool: task too big")
	ErrInterrupted = shm.ErrInterrupted
)

// alias is an error of the standard library in the pool's own words.
type alias struct {
	text string
	is   error
}

func (e alias) Error() string { return e.text }
func (e alias) Unwrap() error { return e.is }

// Errors of tasks, besides [WorkerLostError] and [TaskError].
var (
	ErrCancelled = errors.New("pool: task cancelled")
	ErrInit      = errors.New("pool: the initializer of the workers fails")
	ErrStart     = errors.New("pool: workers end before they are ready")
	ErrMemory    = error(alias{"pool: no memory for the task's bytes", shm.ErrNoMemory})
)

func init() {
	for name, err := range map[string]error{
		"pool.ErrClosed": ErrClosed, "pool.ErrTooBig": ErrTooBig, "pool.ErrCancelled": ErrCancelled,
		"pool.ErrInit": ErrInit, "pool.ErrStart": ErrStart, "pool.ErrMemory": ErrMemory,
	} {
		errcodec.Register(name, err)
	}
	// A task may use a pool of its own.
	errcodec.RegisterType[*WorkerLostError]("pool.WorkerLostError")
	errcodec.RegisterType[*TaskError]("pool.TaskError")
	errcodec.RegisterType[*InputError]("pool.InputError")
}

// RegisterError makes a sentinel error known by a name, so that [errors.Is] finds it in the error of a task: it stands for the same
// variable in the worker and in the program that calls. Call it while packages are initialized, as [Register]:
//
//	var ErrEmpty = errors.New("the basket is empty")
//
//	func init() { pool.RegisterError("ErrEmpty", ErrEmpty) }
//
// Types of errors are registered with [encoding/gob.Register]. RegisterError panics if the name or the error is registered already.
func RegisterError(name string, err error) { errcodec.Register("user: "+name, err) }

// WorkerLostError is the error of a task whose worker died while it ran the task.
type WorkerLostError struct {
	PID    int          // of the worker
	Status start.Status // how it ended: exit code or signal
	Task   string       // name of the function
}

func (e *WorkerLostError) Error() string {
	return fmt.Sprintf("pool: worker %d died (%v) while it ran %s", e.PID, e.Status, e.Task)
}

// TaskError is the error of a task that ended with an error, a panic, or runtime.Goexit (as t.FailNow does). It wraps the task's error
// as far as that can be sent: [errors.Is] finds sentinel errors of the standard library and those of [RegisterError], and [errors.As]
// finds [syscall.Errno], *fs.PathError, *os.LinkError, *os.SyscallError, *exec.Error, *strconv.NumError, and types that were registered
// with [encoding/gob.Register]. An error that is none of these, *net.OpError for example, has its text, and wraps what the task's error
// wraps.
type TaskError struct {
	Task    string // name of the function
	Message string // the text of the error; with the worker's stack trace if the task panicked
	Panic   bool
	err     error
}

func (e *TaskError) Error() string { return "pool: " + e.Task + ": " + e.Message }

// Unwrap returns the error that the task returned, or that it panicked with; nil if that was no more than its text.
func (e *TaskError) Unwrap() error { return e.err }

// InputError is the error of one of several inputs.
type InputError struct {
	Index int   // of the input, from 0
	Err   error // a [*TaskError], a [*WorkerLostError], ...
}

func (e *InputError) Error() string { return fmt.Sprintf("input %d: %v", e.Index, e.Err) }

// Unwrap returns Err.
func (e *InputError) Unwrap() error { return e.Err }

// Bits of Result.Code of a Go task that has failed.
const (
	codePanic = 1 << iota // by a panic
	codeChain             // Data is a text and an error, as appendFailure writes them
)

// appendFailure appends how a task has failed: its text and, behind it, the error, if there is more to that than text.
func appendFailure(out []byte, text string, err error) (data []byte, code int32) {
	if err != nil {
		begin := len(out)
		out = append(binary.AppendUvarint(out, uint64(len(text))), text...)
		data, ok := errcodec.Append(out, err)
		if ok {
			return data, codeChain
		}
		out = out[:begin]
	}
	return append(out, text...), 0
}

// failure is the other end of appendFailure.
func (r *Result) failure() (text string, err error) {
	if r.Code&codeChain == 0 {
		return string(r.Data), nil
	}
	size, n := binary.Uvarint(r.Data)
	if n <= 0 || size > uint64(len(r.Data)-n) {
		return "the worker sent an error that cannot be read", nil
	}
	rest := r.Data[n:]
	err, _ = errcodec.Decode(rest[size:]) // what cannot be decoded is in the text
	return string(rest[:size]), err
}

func (r *Result) err(name string) error {
	switch r.Outcome {
	case OK:
		return nil
	case Failed:
		text, err := r.failure()
		return &TaskError{Task: name, Message: text, Panic: r.Code&codePanic != 0, err: err}
	case Lost:
		return &WorkerLostError{PID: r.PID, Status: statusOf(r.Exit), Task: name}
	case Cancelled:
		return ErrCancelled
	case BadInit:
		return fmt.Errorf("%w: %s", ErrInit, r.Data)
	case BadStart:
		if len(r.Data) > 0 {
			return fmt.Errorf("%w: %s", ErrStart, r.Data)
		}
		return fmt.Errorf("%w: %v", ErrStart, statusOf(r.Exit))
	case NoMemory:
		if len(r.Data) > 0 {
			return fmt.Errorf("%w: %s", ErrMemory, r.Data)
		}
		return ErrMemory
	}
	return ErrClosed
}

// statusOf is the inverse of [start.Status.ExitCode].
func statusOf(exit int) start.Status {
	switch {
	case exit == math.MinInt32:
		return start.Status{}
	case exit < 0:
		return start.Status{Known: true, Signal: syscall.Signal(-exit)}
	}
	return start.Status{Known: true, Code: exit}
}
