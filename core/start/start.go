package start

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/polyproc/polyproc/shm"
)

// EnvProcess names the environment variable that tells a child what it was given:
// "payload_fd,parent_pid,flags", all decimal; payload_fd is -1 when there is no payload.
// Whoever consumes it removes it, so that grandchildren do not see it ([Receive] does).
const EnvProcess = "POLYPROC_PROCESS"

// Flags of [Spec.PayloadFlags].
const (
	// FlagWatchParent asks the child to die with its parent: the child calls [WatchParent]
	// (the C library and Go's entry hook do it for it); on windows the kernel sees to it.
	FlagWatchParent = 1 << 0
	// FlagFunction says that the payload begins with a reference to a C function.
	FlagFunction = 1 << 1
)

var (
	// ErrNotFound says that the program to start does not exist. It is also an
	// [exec.ErrNotFound] and an [fs.ErrNotExist].
	ErrNotFound error = notFound{}
	// ErrUnsupported says that this platform, or this kernel, or this build cannot do it.
	ErrUnsupported = errors.ErrUnsupported
)

type notFound struct{}

func (notFound) Error() string { return "program not found" }
func (notFound) Is(target error) bool {
	return target == exec.ErrNotFound || target == fs.ErrNotExist
}

// Spec says what to start. The zero value of each field but Args is a usable default.
// A Start method reads it and keeps nothing of it.
type Spec struct {
	// Path is the program. "" means Args[0]. Without a separator it is looked up in the PATH
	// of Env (absolute entries only); a relative path with one is relative to Dir.
	Path string
	// Args is the argument vector, argv[0] included. Empty: just Path.
	Args []string
	// Env is the environment, "NAME=value" each; of several with one name the last counts, as in
	// [exec.Cmd]. nil: [os.Environ]; in a C host that is the environment as it was when the
	// library was loaded: such callers pass their own.
	Env []string
	// Dir is the working directory; "": the parent's.
	Dir string
	// Files are descriptors (on windows: handles) that the child inherits under the same
	// numbers, besides 0, 1 and 2. Nothing else is inherited, close-on-exec or not.
	// They stay the caller's and must stay open until Start returns.
	Files []int
	// Stdin, Stdout and Stderr are the child's standard files; nil: this process's own, or /dev/null if it has closed them. They stay
	// the caller's and must stay open until Start returns.
	Stdin, Stdout, Stderr *os.File
	// Payload, if not nil, reaches the child as a sealed memfd (elsewhere: an unlinked file)
	// of exactly these bytes, read from offset 0. See [EnvProcess] and [Receive].
	Payload []byte
	// PayloadFlags are the flags told in EnvProcess. If they are not 0 the variable is set
	// without a payload, too.
	PayloadFlags int
	// BlockSIGINT lets the child begin with SIGINT blocked, so that a Ctrl-C before it has
	// installed a handler does not kill it. Without meaning on windows.
	BlockSIGINT bool
}

// Method is one way to bring a process into being.
type Method interface {
	// Name is "spawn", "fork" or "forkserver".
	Name() string
	// Start starts one process and returns once its program runs, or with an error if it
	// could not be executed: [ErrNotFound], fs.ErrPermission, syscall.E2BIG (arguments and
	// environment too large), EMFILE, EAGAIN (process limit), ENOMEM and so on, all wrapped.
	// After an error nothing is left behind.
	Start(Spec) (*Process, error)
}

type spawn struct{}

// Spawn returns the method that executes a program afresh.
func Spawn() Method { return spawn{} }

// Lookup returns the start method of that name. fork and forkserver exist in a host's own
// language only (see the package documentation): for them the error is [ErrUnsupported].
func Lookup(name string) (Method, error) {
	switch name {
	case "spawn":
		return spawn{}, nil
	case "fork", "forkserver":
		return nil, fmt.Errorf("start: method %q is not available here, only \"spawn\" is: %w", name, ErrUnsupported)
	}
	return nil, fmt.Errorf("start: no start method is called %q (there are spawn, fork and forkserver)", name)
}

func (spawn) Name() string { return "spawn" }

func (spawn) Start(s Spec) (*Process, error) {
	if s.Path == "" && len(s.Args) > 0 {
		s.Path = s.Args[0]
	}
	if s.Path == "" {
		return nil, errors.New("start: neither Path nor Args name a program")
	}
	if len(s.Args) == 0 {
		s.Args = []string{s.Path}
	}
	if s.Env == nil {
		s.Env = os.Environ()
	}
	hasNUL := func(text string) bool { return strings.IndexByte(text, 0) >= 0 }
	if hasNUL(s.Path) || hasNUL(s.Dir) || slices.ContainsFunc(s.Args, hasNUL) || slices.ContainsFunc(s.Env, hasNUL) {
		return nil, fmt.Errorf("start: a NUL byte in a path, an argument or the environment: %w", syscall.EINVAL)
	}
	s.Env = lastOfEach(s.Env)
	path, err := lookPath(s.Path, s.Env)
	if err != nil {
		return nil, err
	}
	s.Path = path
	return spawnProcess(s)
}

// tell returns env with EnvProcess set, if there is something to tell.
func (s *Spec) tell(payloadFD int) []string {
	if payloadFD < 0 && s.PayloadFlags == 0 {
		return s.Env
	}
	return lastOfEach(append(s.Env, fmt.Sprintf("%s=%d,%d,%d", EnvProcess, payloadFD, os.Getpid(), s.PayloadFlags)))
}

// lastOfEach returns a new environment list in which each variable occurs once, with its last value. A child that met
// several would take the first (getenv, os.Getenv): the parent's, not what the caller appended to it.
func lastOfEach(env []string) []string {
	once := make([]string, 0, len(env)+1)
	seen := make(map[string]bool, len(env))
	for _, v := range slices.Backward(env) {
		skip := min(1, len(v))                             // a name may begin with "=": windows has "=C:"
		if i := strings.IndexByte(v[skip:], '='); i >= 0 { // else it assigns nothing, and is passed as it is
			key := envKey(v[:skip+i])
			if seen[key] {
				continue
			}
			seen[key] = true
		}
		once = append(once, v)
	}
	slices.Reverse(once)
	return once
}

// Received is what a parent's Start told this process.
type Received struct {
	Payload   []byte // nil if none was passed
	ParentPID int
	Flags     int
}

// Receive takes what [EnvProcess] announces: it removes the variable, reads the payload whole and
// closes its descriptor. ok is false if this process was not told anything (or Receive ran before), or is
// [shm.Privileged] and so believes nothing. The descriptor must be one of this user's, see [shm.CheckInherited].
func Receive() (r Received, ok bool, err error) {
	value, ok := os.LookupEnv(EnvProcess)
	if !ok {
		return r, false, nil
	}
	_ = os.Unsetenv(EnvProcess) // cannot fail for this name
	if shm.Privileged() {
		return r, false, nil
	}
	parts := strings.Split(value, ",")
	var n [3]int
	if len(parts) != len(n) {
		return r, true, fmt.Errorf("start: %s is malformed: %q", EnvProcess, value)
	}
	for i, part := range parts {
		if n[i], err = strconv.Atoi(part); err != nil {
			return r, true, fmt.Errorf("start: %s is malformed: %q", EnvProcess, value)
		}
	}
	r.ParentPID, r.Flags = n[1], n[2]
	if n[0] < 0 {
		return r, true, nil
	}
	if err = shm.CheckInherited(n[0]); err == nil {
		r.Payload, err = readPayload(n[0])
	}
	if err != nil {
		return r, true, fmt.Errorf("start: reading the payload: %w", err)
	}
	return r, true, nil
}

// readPayload reads an inherited descriptor's file from its beginning and closes it. The offset is
// left alone: it is shared with the parent and with whoever else has the descriptor.
func readPayload(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "payload")
	if f == nil {
		return nil, syscall.EBADF
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	payload := make([]byte, info.Size())
	if n, err := f.ReadAt(payload, 0); n < len(payload) {
		return nil, err
	}
	return payload, nil
}
