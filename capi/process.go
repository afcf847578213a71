package main

// #include "engine.h"
import "C"

import (
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/pool"
	"github.com/polyproc/polyproc/core/start"
)

var processes = newTable[*start.Process]("process")

// method returns the start method of a PP_START_ number.
func method(number C.uint32_t) (start.Method, error) {
	switch number {
	case C.PP_START_DEFAULT, C.PP_START_SPAWN:
		return start.Lookup("spawn")
	case C.PP_START_FORK:
		return start.Lookup("fork")
	case C.PP_START_FORKSERVER:
		return start.Lookup("forkserver")
	}
	return nil, invalid("start method %d", uint32(number))
}

// again fills in the program itself as what to execute.
func again() (path string, args []string, err error) {
	argv := C.pp__argv()
	if argv == nil {
		return "", nil, errNoInit
	}
	path, err = os.Executable()
	return path, goStrings((**C.char)(unsafe.Pointer(argv))), err
}

// reference describes a C function so that the same program can find it in another process: a pp__fn_ref.
func reference(fn unsafe.Pointer) (ref C.pp__fn_ref, err error) {
	if C.pp__resolve(fn, &ref) != C.PP_OK {
		return ref, invalid("the function at %p is not part of a loaded program or library", fn)
	}
	return ref, nil
}

//export pp__go_process_start
func pp__go_process_start(options *C.pp__in_process_options, out *C.pp_process) C.int32_t {
	return callOr(C.PP_ERR_START, func() error {
		if options == nil || out == nil {
			return invalid("NULL")
		}
		m, err := method(options.method)
		if err != nil {
			return err
		}
		arg, err := goBytes(options.arg, options.arg_size, "arg")
		if err != nil {
			return err
		}
		spec := start.Spec{Env: environment((**C.char)(unsafe.Pointer(options.env))), BlockSIGINT: options.flags&C.PP_PROCESS_BLOCK_SIGINT != 0}
		if options.flags&C.PP_PROCESS_DAEMON != 0 {
			spec.PayloadFlags |= start.FlagWatchParent
		}
		switch {
		case options.fn != nil && (options.argv != nil || options.path != nil):
			return invalid("both fn and a program")
		case options.fn != nil:
			ref, err := reference(unsafe.Pointer(options.fn))
			if err != nil {
				return err
			}
			if spec.Path, spec.Args, err = again(); err != nil {
				return err
			}
			spec.PayloadFlags |= start.FlagFunction
			spec.Payload = append(C.GoBytes(unsafe.Pointer(&ref), C.int(unsafe.Sizeof(ref))), arg...)
		case options.argv == nil || *options.argv == nil:
			return invalid("neither fn nor argv")
		default:
			spec.Path = C.GoString(options.path)
			spec.Args = goStrings((**C.char)(unsafe.Pointer(options.argv)))
			if options.arg != nil {
				spec.Payload = append([]byte{}, arg...)
			}
		}
		spec.Dir = C.GoString(options.cwd)
		fds, err := goSlice(options.fds, options.fds_count, "fds")
		if err != nil {
			return err
		}
		for _, fd := range fds {
			spec.Files = append(spec.Files, int(fd))
		}
		if options.fn != nil || options.flags&C.PP_PROCESS_FAMILY != 0 {
			files, variable := family()
			spec.Files = append(spec.Files, files...)
			spec.Env = append(spec.Env, variable...)
		}
		p, err := m.Start(spec)
		if err != nil {
			return err
		}
		*out = C.pp_process(processes.add(p))
		return nil
	})
}

//export pp__go_process_adopt
func pp__go_process_adopt(pid, statusFD C.int32_t, out *C.pp_process) C.int32_t {
	return callOr(C.PP_ERR_START, func() error {
		if pid <= 1 || int(pid) == os.Getpid() {
			return invalid("process %d cannot be a child of this one", int32(pid))
		}
		if out == nil {
			return invalid("process_out is NULL")
		}
		p, err := start.Adopt(int(pid), int(statusFD))
		if err == nil {
			*out = C.pp_process(processes.add(p))
		}
		return err
	})
}

//export pp__go_process_wait
func pp__go_process_wait(process C.pp_process, ms C.int64_t, out *C.pp_exit) C.int32_t {
	return call(func() error {
		p, err := processes.get(uint64(process))
		if err != nil {
			return err
		}
		if err := awaitEnd(p, timeout(ms)); err != nil {
			return err
		}
		status, _ := p.Status()
		if out != nil {
			*out = C.pp_exit{code: C.int32_t(status.Code), signal: C.int32_t(status.Signal)}
			if status.Known {
				out.known = 1
			}
		}
		return nil
	})
}

// awaitEnd waits on the pidfd in the calling thread, so that a signal handler of the host ends the wait. SIGURG is the Go runtime's own: it may
// have been sent, for the collector, just before the wait began, and poll(2) is never restarted; so it stays blocked for that time.
func awaitEnd(p *start.Process, limit time.Duration) error {
	var urgent, before unix.Sigset_t
	const bits = 8 * int(unsafe.Sizeof(urgent.Val[0]))
	urgent.Val[(int(unix.SIGURG)-1)/bits] = 1 << ((int(unix.SIGURG) - 1) % bits)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &urgent, &before); err != nil {
		return err
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	deadline := time.Now().Add(limit)
	for {
		if _, ended := p.Status(); ended {
			return nil
		}
		ms := -1
		if limit >= 0 {
			rest := max(time.Until(deadline), 0)
			ms = int(min((rest+time.Millisecond-1)/time.Millisecond, 1<<30))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.FD()), Events: unix.POLLIN}}, ms)
		switch {
		case errors.Is(err, syscall.EINTR):
			if interrupts() {
				return pool.ErrInterrupted
			}
		case err != nil:
			return err
		case n > 0:
			<-p.Done() // the supervisor is about to collect it
			return nil
		case limit >= 0 && time.Until(deadline) <= 0:
			return pool.ErrTimeout
		}
	}
}

//export pp__go_process_info
func pp__go_process_info(process C.pp_process, pid, fd *C.int32_t) C.int32_t {
	return call(func() error {
		p, err := processes.get(uint64(process))
		if err != nil {
			return err
		}
		if pid != nil {
			*pid = C.int32_t(p.PID())
		}
		if fd != nil {
			*fd = C.int32_t(p.FD())
		}
		return nil
	})
}

//export pp__go_process_signal
func pp__go_process_signal(process C.pp_process, signal C.int32_t) C.int32_t {
	return call(func() error {
		p, err := processes.get(uint64(process))
		if err != nil {
			return err
		}
		return p.Signal(syscall.Signal(signal))
	})
}

//export pp__go_process_free
func pp__go_process_free(process C.pp_process) C.int32_t {
	return call(func() error {
		if process == 0 {
			return nil
		}
		p, err := processes.remove(uint64(process))
		if err != nil {
			return err
		}
		p.Release()
		return nil
	})
}
