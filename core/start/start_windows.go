package start

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// handle is a process handle: it polls (WaitForSingleObject) signaled once the process has ended.
type handle windows.Handle

func (h handle) fd() int { return int(h) }
func (h handle) close()  { _ = windows.CloseHandle(windows.Handle(h)) }

// killedBy is the exit code of a process we ended, less the signal's number, as there are no signals to ask for.
const killedBy = 0x10000

func (h handle) signal(_ int, sig syscall.Signal) error {
	if sig != syscall.SIGKILL && sig != syscall.SIGTERM {
		return fmt.Errorf("only SIGKILL and SIGTERM can be sent on windows: %w", ErrUnsupported)
	}
	err := windows.TerminateProcess(windows.Handle(h), killedBy+uint32(sig))
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) { // what a process that has ended answers
		if event, _ := windows.WaitForSingleObject(windows.Handle(h), 0); event == windows.WAIT_OBJECT_0 {
			return nil
		}
	}
	return err
}

func (h handle) reap(int) (Status, bool) {
	var code uint32
	if err := windows.GetExitCodeProcess(windows.Handle(h), &code); err != nil {
		return Status{}, true
	}
	if sig := syscall.Signal(code - killedBy); sig == syscall.SIGKILL || sig == syscall.SIGTERM {
		return Status{Known: true, Signal: sig}, true
	}
	return Status{Known: true, Code: int(code)}, true
}

// spawnProcess starts s.Path with a handle list (PROC_THREAD_ATTRIBUTE_HANDLE_LIST, which
// package syscall makes of what is passed here): nothing else is inherited.
func spawnProcess(s Spec) (*Process, error) {
	payload := -1
	if s.Payload != nil {
		h, err := payloadFile(s.Payload)
		if err != nil {
			return nil, fmt.Errorf("start: payload of %d bytes: %w", len(s.Payload), err)
		}
		defer func() { _ = windows.CloseHandle(h) }()
		payload = int(h)
		s.Files = append(slices.Clone(s.Files), payload)
	}
	sys := &syscall.SysProcAttr{}
	for _, file := range s.Files {
		if err := windows.SetHandleInformation(windows.Handle(file), windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
			return nil, fmt.Errorf("start: handle %d, which the child is to inherit: %w", file, err)
		}
		sys.AdditionalInheritedHandles = append(sys.AdditionalInheritedHandles, syscall.Handle(file))
	}
	pid, process, err := syscall.StartProcess(s.Path, s.Args, &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.tell(payload),
		Files: []uintptr{stdio(s.Stdin, syscall.Stdin), stdio(s.Stdout, syscall.Stdout), stdio(s.Stderr, syscall.Stderr)},
		Sys:   sys,
	})
	switch {
	case errors.Is(err, windows.ERROR_FILE_NOT_FOUND), errors.Is(err, windows.ERROR_PATH_NOT_FOUND):
		return nil, fmt.Errorf("start: %s: %w (%w)", s.Path, ErrNotFound, err)
	case err != nil:
		return nil, fmt.Errorf("start: %s: %w", s.Path, err)
	}
	h := handle(process)
	if s.PayloadFlags&FlagWatchParent != 0 {
		if err := dieWithUs(h); err != nil {
			_ = windows.TerminateProcess(windows.Handle(h), 1)
			h.close()
			return nil, fmt.Errorf("start: tying process %d to this one: %w", pid, err)
		}
	}
	p := newProcess(pid, h)
	go func() { // windows has no poller for processes that takes more than 64 of them
		_, _ = windows.WaitForSingleObject(windows.Handle(h), windows.INFINITE)
		p.collect()
		p.finish()
	}()
	return p, nil
}

func stdio(file *os.File, own syscall.Handle) uintptr {
	if file != nil {
		return file.Fd()
	}
	return uintptr(own)
}

// family is the job whose processes the kernel ends when its last handle is closed: when this process ends.
var family = sync.OnceValues(func() (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	return job, err
})

func dieWithUs(h handle) error {
	job, err := family()
	if err != nil {
		return err
	}
	return windows.AssignProcessToJobObject(job, windows.Handle(h))
}

// payloadFile returns an inheritable handle of a file that holds these bytes and goes with its last handle.
func payloadFile(payload []byte) (windows.Handle, error) {
	file, err := os.CreateTemp("", "polyproc-payload-") // for a name that is ours
	if err != nil {
		return 0, err
	}
	name := file.Name()
	if err := file.Close(); err != nil {
		return 0, err
	}
	wide, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	h, err := windows.CreateFile(wide, windows.GENERIC_READ|windows.GENERIC_WRITE, windows.FILE_SHARE_READ|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_TEMPORARY|windows.FILE_FLAG_DELETE_ON_CLOSE, 0)
	if err != nil {
		return 0, errors.Join(err, os.Remove(name))
	}
	for len(payload) > 0 {
		var n uint32
		if err := windows.WriteFile(h, payload, &n, nil); err != nil {
			return 0, errors.Join(err, windows.CloseHandle(h))
		}
		payload = payload[n:]
	}
	return h, nil
}

// WatchParent has this process ended as soon as its parent ends and returns at once. parentPID is what the parent told
// ([Received]); if that process has ended already the error says so ([os.ErrProcessDone]) and the caller should exit.
func WatchParent(parentPID int) error {
	if parentPID <= 0 {
		return fmt.Errorf("start: watching the parent: %d is not a process id", parentPID)
	}
	gone := fmt.Errorf("start: the parent, process %d, has ended: %w", parentPID, os.ErrProcessDone)
	if os.Getppid() != parentPID {
		return gone
	}
	const access = windows.SYNCHRONIZE | windows.PROCESS_QUERY_LIMITED_INFORMATION
	h, err := windows.OpenProcess(access, false, uint32(parentPID))
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) { // there is no such process
		return gone
	}
	if err != nil {
		return fmt.Errorf("start: watching the parent, process %d: %w", parentPID, err)
	}
	// A parent's number stays here when the parent is gone: what has it now is the parent only if it is older than we are.
	theirs, err := created(h)
	ours, ourErr := created(windows.CurrentProcess())
	if err = errors.Join(err, ourErr); err != nil || theirs > ours {
		_ = windows.CloseHandle(h)
		if err != nil {
			return fmt.Errorf("start: watching the parent, process %d: %w", parentPID, err)
		}
		return gone
	}
	go func() {
		_, _ = windows.WaitForSingleObject(h, windows.INFINITE)
		_ = windows.TerminateProcess(windows.CurrentProcess(), killedBy+uint32(syscall.SIGKILL))
	}()
	return nil
}

// created returns when a process was made, in nanoseconds.
func created(h windows.Handle) (int64, error) {
	var creation, exit, kernel, user windows.Filetime
	err := windows.GetProcessTimes(h, &creation, &exit, &kernel, &user)
	return creation.Nanoseconds(), err
}

// lookPath finds a program in the PATH of env, with the extensions of PATHEXT; relative entries are passed over.
func lookPath(name string, env []string) (string, error) {
	if filepath.Base(name) != name {
		return name, nil
	}
	for _, variable := range env {
		key, path, _ := strings.Cut(variable, "=")
		if !strings.EqualFold(key, "PATH") {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			if !filepath.IsAbs(dir) {
				continue
			}
			if file, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("start: %q in PATH: %w", name, ErrNotFound)
}

// envKey returns what makes a variable's name unique.
func envKey(name string) string { return strings.ToUpper(name) }

func signalName(sig syscall.Signal) string {
	switch sig {
	case syscall.SIGKILL:
		return "SIGKILL"
	case syscall.SIGTERM:
		return "SIGTERM"
	}
	return ""
}
