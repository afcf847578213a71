package start

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"syscall"
)

// Status is how a process ended.
type Status struct {
	// Known is false if somebody else collected the exit status, a host that calls waitpid(-1) or
	// ignores SIGCHLD, and the kernel keeps no copy (Linux does since 6.15). The process has ended all the same.
	Known bool
	// Code is the exit code, 0 if Signal ended it.
	Code int
	// Signal is the signal that killed it, or 0.
	Signal syscall.Signal
}

// String returns "exit code 7", "killed by signal 9 (SIGKILL)" or "ended, status unknown".
func (s Status) String() string {
	switch {
	case !s.Known:
		return "ended, status unknown"
	case s.Signal != 0:
		if name := signalName(s.Signal); name != "" {
			return fmt.Sprintf("killed by signal %d (%s)", int(s.Signal), name)
		}
		return fmt.Sprintf("killed by signal %d", int(s.Signal))
	default:
		return fmt.Sprintf("exit code %d", s.Code)
	}
}

// ExitCode returns the exit code, the negated signal number, or math.MinInt32 if unknown.
func (s Status) ExitCode() int {
	switch {
	case !s.Known:
		return math.MinInt32
	case s.Signal != 0:
		return -int(s.Signal)
	default:
		return s.Code
	}
}

// Process is a started child. Its methods may be called from any goroutine. It is reaped
// whether anybody waits for it or not.
type Process struct {
	pid  int
	done chan struct{}
	leak runtime.Cleanup // closes the descriptor of a Process nobody released

	mu     sync.Mutex
	h      handle
	status Status
	reaped bool // the kernel has forgotten it: nothing may be sent to its number any more
	ended  bool // status is final, done is closed or about to be
	users  int  // those that have not released it
	onExit []func(Status)
	report *report // of an adopted process whose parent tells its status, or nil
}

func newProcess(pid int, h handle) *Process {
	p := &Process{pid: pid, h: h, done: make(chan struct{}), users: 1}
	p.leak = runtime.AddCleanup(p, handle.close, h)
	return p
}

// PID returns the process id. It may be in use by another process once this one has ended.
func (p *Process) PID() int { return p.pid }

// FD returns a descriptor that polls readable once the process has ended: a pidfd on Linux, a
// kqueue on BSDs, a process handle on windows. It is the Process's, and closed by Release;
// then FD returns -1.
func (p *Process) FD() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users == 0 {
		return -1
	}
	return p.h.fd()
}

// Done returns a channel that is closed when the process has ended and been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status returns how the process ended; false: it runs.
func (p *Process) Status() (Status, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status, p.ended
}

// Wait waits for the end of the process or of ctx; in the latter case the error is ctx.Err() and the
// process is left alone. An ended process is reported even if ctx is over, too.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
	default:
		select {
		case <-p.done:
		case <-ctx.Done():
			return Status{}, ctx.Err()
		}
	}
	status, _ := p.Status()
	return status, nil
}

// Signal sends a signal to the process, and never to another one that got its number.
// It returns nil if the process has ended already.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped || p.ended {
		return nil
	}
	if err := p.h.signal(p.pid, sig); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("start: sending signal %d to process %d: %w", int(sig), p.pid, err)
	}
	return nil
}

// Kill ends the process by force. It does not wait: see Wait.
func (p *Process) Kill() error { return p.Signal(syscall.SIGKILL) }

// OnExit has f called once with the status, after Done is closed: from the supervisor goroutine, which
// f must not hold up, or, if the process has ended already, at once.
func (p *Process) OnExit(f func(Status)) {
	p.mu.Lock()
	if !p.ended {
		p.onExit = append(p.onExit, f)
		p.mu.Unlock()
		return
	}
	status := p.status
	p.mu.Unlock()
	f(status)
}

// Release gives back what the handle holds: FD is invalid from now on, and closed as soon as the process
// has ended. The process goes on, is still reaped, and the other methods still answer. Twice is harmless, but each
// Adopt of a process that is supervised already wants a Release of its own.
func (p *Process) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users > 0 {
		p.users--
		p.closeIfOver()
	}
}

// share adds a user, who calls Release in turn; false: the process has been reaped.
func (p *Process) share() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped || p.ended {
		return false
	}
	p.users++
	return true
}

// closeIfOver closes the handle when nobody needs it any more. Call it with mu held.
func (p *Process) closeIfOver() {
	if p.users == 0 && p.ended {
		p.leak.Stop()
		p.h.close()
	}
}

// collect takes the exit status from the kernel; false: not to be had yet.
func (p *Process) collect() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.report != nil {
		status, told := p.report.read()
		if !told {
			return false
		}
		p.report = nil // it has closed its descriptor
		p.status, p.reaped = status, status.Known
	}
	if !p.reaped {
		p.status, p.reaped = p.h.reap(p.pid)
	}
	return p.reaped
}

// finish makes the end known. It comes after collect, once nothing else refers to the handle.
func (p *Process) finish() {
	p.mu.Lock()
	p.ended = true
	p.closeIfOver()
	status, callbacks := p.status, p.onExit
	p.onExit = nil
	close(p.done)
	p.mu.Unlock()
	for _, f := range callbacks {
		f(status)
	}
}
