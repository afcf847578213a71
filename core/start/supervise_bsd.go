//go:build darwin || freebsd

package start

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// handle is a kqueue that reports the end of one child. It serves FD alone: signals go to the number, which is
// the child's as long as it has not been reaped.
type handle int

func (h handle) fd() int         { return int(h) }
func (h handle) key(pid int) int { return pid }
func (h handle) close()          { _ = unix.Close(int(h)) }

func (h handle) signal(pid int, sig syscall.Signal) error { return unix.Kill(pid, sig) }

func (h handle) reap(pid int) (Status, bool) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil: // ECHILD: somebody else took it
			return Status{}, true
		case got == 0:
			return Status{}, false
		case status.Signaled():
			return Status{Known: true, Signal: status.Signal()}, true
		default:
			return Status{Known: true, Code: status.ExitStatus()}, true
		}
	}
}

// newKqueue returns a kqueue that is not inherited.
func newKqueue() (int, error) {
	kq, err := unix.Kqueue()
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(kq)
	return aboveStdio(kq)
}

// watchExit has kq report, once, the end of process pid. A process that is a zombie already cannot be watched on
// every system: a timer reports it then.
func watchExit(kq, pid int) error {
	event := []unix.Kevent_t{{Fflags: unix.NOTE_EXIT}}
	unix.SetKevent(&event[0], pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	_, err := unix.Kevent(kq, event, nil, nil)
	if err == unix.ESRCH {
		return reportSoon(kq, pid)
	}
	return err
}

// reportSoon has kq report pid in a millisecond.
func reportSoon(kq, pid int) error {
	event := []unix.Kevent_t{{Data: 1}}
	unix.SetKevent(&event[0], pid, unix.EVFILT_TIMER, unix.EV_ADD|unix.EV_ONESHOT)
	_, err := unix.Kevent(kq, event, nil, nil)
	return err
}

// poller is one kqueue for all children.
type poller struct{ kq int }

func newPoller() (*poller, error) {
	kq, err := newKqueue()
	if err != nil {
		return nil, err
	}
	return &poller{kq}, nil
}

func (p *poller) add(_ handle, pid int) error { return watchExit(p.kq, pid) }
func (p *poller) again(_ handle, pid int)     { _ = reportSoon(p.kq, pid) }
func (p *poller) remove(handle, int)          {} // events are one-shot, and the process is gone
func (p *poller) close()                      { _ = unix.Close(p.kq) }

// wait sleeps until children have ended and returns their keys.
func (p *poller) wait() (keys []int) {
	var events [64]unix.Kevent_t
	n, _ := unix.Kevent(p.kq, nil, events[:], nil)
	for _, event := range events[:max(n, 0)] {
		keys = append(keys, int(event.Ident))
	}
	return keys
}
