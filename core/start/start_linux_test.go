package start_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/start"
)

func init() {
	helpers["closed-stdio"] = closedStdio
	helpers["seals"] = seals
	helpers["stolen"] = stolen
	helpers["full-table"] = fullTable
	helpers["file-size"] = fileSize
	helpers["parent"] = parent
	helpers["watch"] = watch
	helpers["tracer"] = tracer
}

// sleeper is a program that opens nothing and ends when told to.
func sleeper() start.Spec { return start.Spec{Args: []string{"sleep", "613"}} }

// procStatus returns a line of /proc/PID/status.
func procStatus(t testing.TB, pid int, key string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(rest)
		}
	}
	require.FailNow(t, "no such line", key)
	return ""
}

func TestSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGSEGV, syscall.SIGABRT, syscall.Signal(40)} {
		p := run(t, sleeper())
		require.NoError(t, p.Signal(sig))
		status := wait(t, p)
		require.Equal(t, start.Status{Known: true, Signal: sig}, status)
		require.Equal(t, -int(sig), status.ExitCode())
	}
	require.Equal(t, "killed by signal 11 (SIGSEGV)", start.Status{Known: true, Signal: syscall.SIGSEGV}.String())
	require.Equal(t, "killed by signal 40", start.Status{Known: true, Signal: 40}.String())

	p := run(t, sleeper())
	require.ErrorIs(t, p.Signal(9999), syscall.EINVAL)
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	plain := file("plain", "no program", 0o644)
	script := file("script", "#!/no/such/interpreter\n", 0o755)
	garbage := file("garbage", "\x01\x02\x03", 0o755)
	for _, c := range []struct {
		name string
		spec start.Spec
		is   error
		text string
	}{
		{"not executable", start.Spec{Path: plain}, syscall.EACCES, plain},
		{"not executable in PATH", start.Spec{Path: "plain", Env: []string{"PATH=" + dir}}, syscall.EACCES, "plain"},
		{"no interpreter", start.Spec{Path: script}, syscall.ENOENT, "interpreter"},
		{"no program", start.Spec{Path: garbage}, syscall.ENOEXEC, garbage},
		{"a directory", start.Spec{Path: dir}, syscall.EACCES, dir},
		{"no directory", start.Spec{Path: "/bin/true", Dir: "/no/such/dir"}, syscall.ENOENT, "directory /no/such/dir"},
		{"a file for a directory", start.Spec{Path: "/bin/true", Dir: plain}, syscall.ENOTDIR, "directory " + plain},
		{"relative to Dir", start.Spec{Path: "./true", Dir: dir}, start.ErrNotFound, "./true"},
		{"not in PATH", start.Spec{Path: "true", Env: []string{"PATH=" + dir + "::."}, Dir: "/bin"}, start.ErrNotFound, "true"},
		{"too long", start.Spec{Path: "/bin/true", Args: []string{strings.Repeat("x", 1<<20)}}, syscall.E2BIG, "arguments"},
		{"closed descriptor", start.Spec{Path: "/bin/true", Files: []int{987}}, syscall.EBADF, "987"},
		{"negative descriptor", start.Spec{Path: "/bin/true", Files: []int{-1}}, syscall.EBADF, "-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := openFiles("self")
			p, err := start.Spawn().Start(c.spec)
			require.Nil(t, p)
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, "start: ")
			require.ErrorContains(t, err, c.text)
			require.Equal(t, before, openFiles("self"))
			require.Empty(t, childPIDs())
		})
	}
}

func TestPathOfEnvCounts(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nine"), []byte("#!/bin/sh\nexit 9\n"), 0o755))
	p := run(t, start.Spec{Args: []string{"nine"}, Env: []string{"PATH=/no/where:" + dir}})
	require.Equal(t, 9, wait(t, p).ExitCode())
	p = run(t, start.Spec{Path: "./nine", Dir: dir})
	require.Equal(t, 9, wait(t, p).ExitCode())
	p = run(t, start.Spec{Path: "true", Env: []string{}})
	require.Equal(t, 0, wait(t, p).ExitCode(), "no PATH at all")
}

// TestNothingElseIsInherited passes one of several descriptors that an exec would let through.
func TestNothingElseIsInherited(t *testing.T) {
	var low, high [2]int
	require.NoError(t, unix.Pipe2(low[:], 0)) // not close-on-exec, as C and old Python open them
	require.NoError(t, unix.Pipe2(high[:], 0))
	top, err := unix.FcntlInt(uintptr(high[1]), unix.F_DUPFD, 200)
	require.NoError(t, err)
	wanted, err := unix.FcntlInt(uintptr(high[1]), unix.F_DUPFD_CLOEXEC, 100)
	require.NoError(t, err)
	all := []int{low[0], low[1], high[0], high[1], top, wanted}
	defer func() {
		for _, fd := range all {
			require.NoError(t, unix.Close(fd))
		}
	}()
	s := sleeper()
	s.Files = []int{low[1], wanted, wanted, 2}
	s.Payload = []byte("x")
	p := run(t, s)

	want := []string{"0", "1", "2", strconv.Itoa(low[1]), strconv.Itoa(wanted)}
	var got []string
	require.Eventually(t, func() bool { // the parent goes on when one descriptor is closed by exec, not the last
		got = openFiles(strconv.Itoa(p.PID()))
		got = slices.DeleteFunc(got, func(f string) bool { return strings.Contains(f, "memfd:polyproc-payload") })
		return len(got) == len(want)
	}, deadline, time.Millisecond, "%v", &got)
	mine := openFiles("self")
	for _, file := range got {
		fd, _, _ := strings.Cut(file, " ")
		require.Contains(t, want, fd)
		require.Contains(t, mine, file, "it is the same file under the same number")
	}
	for _, fd := range all[:5] {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err)
		require.Zero(t, flags, "the parent's descriptors are as they were")
	}
}

func TestDescriptorIsPollable(t *testing.T) {
	p := run(t, sleeper())
	poll := []unix.PollFd{{Fd: int32(p.FD()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, p.Kill())
	n, err = unix.Poll(poll, int(deadline.Milliseconds()))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	wait(t, p)
}

func TestListsOfOpenFilesAgree(t *testing.T) {
	listed, err := start.ListFiles()
	require.NoError(t, err)
	scanned, err := start.ScanFiles()
	require.NoError(t, err)
	slices.Sort(listed)
	for _, fd := range scanned {
		require.Contains(t, listed, fd)
	}
	require.Len(t, listed, len(scanned)+1, "and the directory itself")
}

// closedStdio closes 0, 1 and 2 and looks at what a child makes of it, and at what we opened meanwhile.
func closedStdio([]string) int {
	for fd := range 3 {
		if err := unix.Close(fd); err != nil {
			panic(err)
		}
	}
	s := sleeper()
	s.Payload = []byte("payload")
	p, err := start.Spawn().Start(s)
	if err != nil {
		panic(err)
	}
	own := openFiles("self")
	child := openFiles(strconv.Itoa(p.PID()))
	if err := p.Kill(); err != nil {
		panic(err)
	}
	<-p.Done()
	p.Release()
	return report([][]string{own, child})
}

func TestClosedStdio(t *testing.T) {
	var files [][]string
	require.Equal(t, 0, ask(t, helper(t, "closed-stdio"), &files).ExitCode())
	for _, file := range files[0] {
		fd, target, _ := strings.Cut(file, " -> ")
		if atoi(fd) < 3 { // a directory being listed, by the helper, comes and goes
			require.Contains(t, target, "/fd", "ours stay above 2")
		}
	}
	require.Subset(t, files[1], []string{"0 -> /dev/null", "1 -> /dev/null", "2 -> /dev/null"})
}

func seals([]string) int {
	var fd int
	if _, err := fmt.Sscanf(os.Getenv(start.EnvProcess), "%d,", &fd); err != nil {
		panic(err)
	}
	_, writing := unix.Pwrite(fd, []byte("x"), 0)
	offset, err := unix.Seek(fd, 0, io.SeekCurrent)
	return report([]string{writing.Error(), unix.Ftruncate(fd, 0).Error(), unix.Ftruncate(fd, 1<<20).Error(), fmt.Sprint(offset, err)})
}

func TestPayloadIsSealed(t *testing.T) {
	s := helper(t, "seals")
	s.Payload = []byte("sealed")
	var answers []string
	require.Equal(t, 0, ask(t, s, &answers).ExitCode())
	refused := unix.EPERM.Error()
	require.Equal(t, []string{refused, refused, refused, "0 <nil>"}, answers)
}

func TestSIGINT(t *testing.T) {
	const bit = 1 << (int(syscall.SIGINT) - 1)
	for range 3 {
		for _, block := range []bool{true, false} {
			s := sleeper()
			s.BlockSIGINT = block
			p := run(t, s)
			mask, err := strconv.ParseUint(procStatus(t, p.PID(), "SigBlk"), 16, 64)
			require.NoError(t, err)
			require.Equal(t, block, mask&bit != 0, "mask %x", mask)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Sigset_t
	require.NoError(t, unix.PthreadSigmask(unix.SIG_BLOCK, nil, &before))
	s := sleeper()
	s.BlockSIGINT = true
	run(t, s)
	require.NoError(t, unix.PthreadSigmask(unix.SIG_BLOCK, nil, &after))
	require.Equal(t, before, after)
}

// stolen is a host whose children's exit statuses are lost: it ignores SIGCHLD, or reaps whatever there is.
func stolen(args []string) int {
	switch args[0] {
	case "ignore":
		signal.Ignore(syscall.SIGCHLD)
	case "waitpid":
		go func() {
			for {
				_, _ = unix.Wait4(-1, nil, 0, nil) // ECHILD while there are none
			}
		}()
	}
	codes := map[string]int{}
	for range 20 {
		p, err := start.Spawn().Start(start.Spec{Args: []string{"sh", "-c", "exit 7"}})
		if err != nil {
			panic(err)
		}
		<-p.Done()
		status, _ := p.Status()
		codes[status.String()]++
		if err := p.Kill(); err != nil {
			panic(err)
		}
		p.Release()
	}
	if _, err := start.Spawn().Start(start.Spec{Path: "/no/such/program"}); err == nil {
		panic("started")
	}
	p, err := start.Spawn().Start(sleeper())
	if err != nil {
		panic(err)
	}
	if err := p.Kill(); err != nil {
		panic(err)
	}
	<-p.Done()
	status, _ := p.Status()
	codes[status.String()]++
	p.Release()
	return report(codes)
}

func TestStatusCollectedBySomebodyElse(t *testing.T) {
	for _, how := range []string{"ignore", "waitpid"} {
		t.Run(how, func(t *testing.T) {
			var codes map[string]int
			require.Equal(t, 0, ask(t, helper(t, "stolen", how), &codes).ExitCode())
			known, unknown := codes["exit code 7"]+codes["killed by signal 9 (SIGKILL)"], codes["ended, status unknown"]
			require.Equal(t, 21, known+unknown, "%v", codes)
			if pidfdKeepsStatus(t) {
				require.Zero(t, unknown, "%v", codes)
			}
		})
	}
}

// pidfdKeepsStatus reports whether the kernel can tell a status that somebody else has collected.
func pidfdKeepsStatus(t testing.TB) bool {
	var name unix.Utsname
	require.NoError(t, unix.Uname(&name))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	require.NoError(t, err)
	return major > 6 || major == 6 && minor >= 15
}

func TestManyChildren(t *testing.T) {
	const n = 200
	p := run(t, sleeper())
	threads := atoi(procStatus(t, os.Getpid(), "Threads"))
	all := make([]*start.Process, n)
	for i := range all {
		all[i] = run(t, sleeper())
	}
	require.Less(t, atoi(procStatus(t, os.Getpid(), "Threads")), threads+10, "no thread per child")
	goroutines := runtime.NumGoroutine()
	require.Less(t, goroutines, 20, "nor a goroutine")
	for _, child := range all {
		require.NoError(t, child.Kill())
	}
	for _, child := range all {
		require.Equal(t, -9, wait(t, child).ExitCode())
	}
	require.Equal(t, []string{strconv.Itoa(p.PID())}, childPIDs(), "no zombies")
}

// TestThreadEnds has the thread that started a child end: the child is the process's, not the thread's.
func TestThreadEnds(t *testing.T) {
	type started struct {
		p   *start.Process
		tid int
		err error
	}
	result := make(chan started)
	var locked func()
	locked = func() {
		runtime.LockOSThread()              // never unlocked, so that the thread ends with the goroutine,
		if unix.Gettid() == unix.Getpid() { // except the main thread
			done := make(chan struct{})
			go func() { defer close(done); locked() }()
			<-done
			return
		}
		p, err := start.Spawn().Start(sleeper())
		result <- started{p, unix.Gettid(), err}
	}
	go locked()
	r := <-result
	require.NoError(t, r.err)
	t.Cleanup(func() {
		require.NoError(t, r.p.Kill())
		wait(t, r.p)
		r.p.Release()
	})
	require.Eventually(t, func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", r.tid))
		return os.IsNotExist(err)
	}, deadline, time.Millisecond)
	require.NoError(t, r.p.Signal(0))
	require.NotContains(t, procStatus(t, r.p.PID(), "State"), "Z", "not even a zombie")
	_, ended := r.p.Status()
	require.False(t, ended)
	require.NoError(t, r.p.Kill())
	require.Equal(t, -9, wait(t, r.p).ExitCode())
}

type tableReport struct {
	Succeeded, Failed int
	Error             string
	Strange           []string // errors that are not EMFILE
	Leaked            []string
}

// fullTable starts children with 64 descriptors allowed and 0, 1, 2, ... of them free.
func fullTable([]string) int {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}); err != nil {
		panic(err)
	}
	resources() // Go's poller has its descriptors
	var r tableReport
	var filled []int
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		filled = append(filled, fd)
	}
	for range 16 {
		before := tableOf64()
		p, err := start.Spawn().Start(start.Spec{Args: []string{"true"}, Payload: []byte("x")})
		if err == nil {
			r.Succeeded++
			<-p.Done()
			p.Release()
		} else {
			r.Failed++
			r.Error = err.Error()
			if !isEMFILE(err) {
				r.Strange = append(r.Strange, err.Error())
			}
		}
		for end := time.Now().Add(deadline); !start.Idle() && time.Now().Before(end); {
			runtime.Gosched() // the supervisor closes its poller just after the last child is done
		}
		if after := tableOf64(); after != before {
			r.Leaked = append(r.Leaked, fmt.Sprint("from ", before, " to ", after))
		}
		if pids := childPIDs(); len(pids) > 0 && pids[0] != "" {
			r.Leaked = append(r.Leaked, fmt.Sprint("children ", pids))
		}
		_ = unix.Close(filled[0])
		filled = filled[1:]
	}
	return report(r)
}

// tableOf64 counts open descriptors, without opening one.
func tableOf64() (n int) {
	for fd := range 64 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}

func isEMFILE(err error) bool {
	return strings.Contains(err.Error(), "start: ") && strings.Contains(err.Error(), "RLIMIT_NOFILE") &&
		strings.Contains(err.Error(), syscall.EMFILE.Error())
}

func TestFullTable(t *testing.T) {
	var r tableReport
	require.Equal(t, 0, ask(t, helper(t, "full-table"), &r).ExitCode())
	require.Empty(t, r.Strange)
	require.Empty(t, r.Leaked)
	require.Positive(t, r.Failed)
	require.Positive(t, r.Succeeded)
	t.Logf("%d failed (%s), %d succeeded", r.Failed, r.Error, r.Succeeded)
}

// fileSize has a payload that is longer than files may be: a write would end this process with SIGXFSZ.
func fileSize([]string) int {
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1000, Max: 1000}); err != nil {
		panic(err)
	}
	_, err := start.Spawn().Start(start.Spec{Args: []string{"true"}, Payload: make([]byte, 1001)})
	p, fits := start.Spawn().Start(start.Spec{Args: []string{"true"}, Payload: make([]byte, 1000)})
	if fits == nil {
		<-p.Done()
		p.Release()
	}
	return report([]string{fmt.Sprint(err), fmt.Sprint(fits)})
}

func TestFileSizeLimit(t *testing.T) {
	var errs []string
	require.Equal(t, 0, ask(t, helper(t, "file-size"), &errs).ExitCode())
	require.Contains(t, errs[0], "start: ")
	require.Contains(t, errs[0], "RLIMIT_FSIZE")
	require.Equal(t, "<nil>", errs[1])
}

// parent starts workers that watch it, and waits to be killed.
func parent([]string) int {
	fd := atoi(os.Getenv(reportVar))
	for _, how := range []string{"idle", "busy"} {
		p, err := start.Spawn().Start(start.Spec{
			Path:         "/proc/self/exe",
			Args:         []string{"watch", how},
			Env:          append(os.Environ(), helperVar+"=watch", "GOMAXPROCS=1"),
			Files:        []int{fd},
			PayloadFlags: start.FlagWatchParent,
		})
		if err != nil {
			panic(err)
		}
		defer p.Release()
	}
	select {}
}

// watch is one of parent's workers.
func watch(args []string) int {
	r, _, err := start.Receive()
	if err == nil {
		err = start.WatchParent(r.ParentPID)
	}
	if err != nil {
		panic(err)
	}
	f := os.NewFile(uintptr(atoi(os.Getenv(reportVar))), "report")
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		panic(err)
	}
	if args[0] == "busy" {
		for n := 1; n != 0; n += 2 { // computes for ever
		}
	}
	select {}
}

func TestChildrenDieWithTheirParent(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	s := helper(t, "parent")
	s.Files = []int{int(w.Fd())}
	s.Env = append(s.Env, fmt.Sprintf("%s=%d", reportVar, w.Fd()))
	p := run(t, s)
	require.NoError(t, w.Close())
	require.NoError(t, r.SetReadDeadline(time.Now().Add(deadline)))

	lines := bufio.NewScanner(r)
	var workers []unix.PollFd
	for range 2 {
		require.True(t, lines.Scan(), "%v", lines.Err())
		fd, err := unix.PidfdOpen(atoi(lines.Text()), 0)
		require.NoError(t, err)
		defer func() { _ = unix.Close(fd) }()
		workers = append(workers, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	require.NoError(t, p.Kill())
	wait(t, p)
	dead := time.Now()
	for i := range workers {
		n, err := unix.Poll(workers[i:i+1], int(time.Second.Milliseconds()))
		require.NoError(t, err)
		require.Equal(t, 1, n, "worker %d lives a second after its parent", i)
	}
	require.Less(t, time.Since(dead), time.Second)
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Empty(t, rest, "the pipe's last writer has gone")
}

func TestWatchParentThatIsGone(t *testing.T) {
	require.ErrorIs(t, start.WatchParent(os.Getpid()), os.ErrProcessDone, "we are not our parent")
	p := run(t, start.Spec{Args: []string{"true"}})
	wait(t, p)
	require.ErrorIs(t, start.WatchParent(p.PID()), os.ErrProcessDone)
	require.Error(t, start.WatchParent(0))
	require.Error(t, start.WatchParent(-5))
}

// tracer holds on to a process, as a debugger does, until its standard of being told otherwise closes.
func tracer(args []string) int {
	runtime.LockOSThread()
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(atoi(args[0])), 0, 0, 0, 0)
	f := os.NewFile(uintptr(atoi(os.Getenv(reportVar))), "report")
	if err := json.NewEncoder(f).Encode(int(errno)); err != nil {
		panic(err)
	}
	_, _ = os.NewFile(uintptr(atoi(args[1])), "hold").Read(make([]byte, 1))
	return 0
}

// TestTracedChild has a child end that cannot be reaped yet, because a debugger has not let go of it.
func TestTracedChild(t *testing.T) {
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() { _, _ = r.Close(), w.Close() })
		return r, w
	}
	told, tell := pipe()
	hold, letGo := pipe()
	traced := run(t, sleeper())
	s := helper(t, "tracer", strconv.Itoa(traced.PID()), strconv.Itoa(int(hold.Fd())))
	s.Files = []int{int(tell.Fd()), int(hold.Fd())}
	s.Env = append(s.Env, fmt.Sprintf("%s=%d", reportVar, tell.Fd()))
	debugger := run(t, s)
	var errno syscall.Errno
	require.NoError(t, told.SetReadDeadline(time.Now().Add(deadline)))
	require.NoError(t, json.NewDecoder(told).Decode(&errno))
	if errno != 0 {
		t.Skipf("ptrace is not allowed here: %v", errno)
	}
	require.NoError(t, traced.Kill())
	poll := []unix.PollFd{{Fd: int32(traced.FD()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, int(deadline.Milliseconds()))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	for range 5 { // others are not held up
		require.Equal(t, 0, wait(t, run(t, start.Spec{Args: []string{"true"}})).ExitCode())
	}
	_, ended := traced.Status()
	require.False(t, ended)
	require.NoError(t, letGo.Close())
	require.Equal(t, -9, wait(t, traced).ExitCode())
	require.Equal(t, 0, wait(t, debugger).ExitCode())
}
