//go:build linux

package shm_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

const (
	roleVar  = "SHM_TEST_ROLE"
	patience = 20 * time.Second // longer than anything here may take
)

// roles are what the test binary does when a test executes it again: with the segment that it inherits, and arguments.
var roles = map[string]func(s *shm.Segment, args []string){}

func init() {
	// The sweep steps through the main thread only: the main goroutine must stay there.
	if os.Getenv(roleVar) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		_ = os.Unsetenv(roleVar)
		var s *shm.Segment
		if os.Args[1] == "segment" {
			var err error
			s, err = shm.Attach(3)
			must(err)
		}
		roles[role](s, os.Args[2:])
		os.Exit(0)
	}
	code := m.Run()
	shm.CloseFamily()
	if left := leaks(); code == 0 && len(left) > 0 {
		fmt.Fprintln(os.Stderr, "leaked:", strings.Join(left, "\n\t"))
		code = 99
	}
	os.Exit(code)
}

// leaks lists descriptors and mappings of segments, descriptors of processes and names in /dev/shm that the tests left.
func leaks() []string {
	var left []string
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil &&
			(strings.Contains(to, "memfd:") || strings.Contains(to, "/dev/shm") || strings.Contains(to, "pidfd")) {
			left = append(left, "descriptor "+fd.Name()+" "+to)
		}
	}
	maps, _ := os.ReadFile("/proc/self/maps")
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "memfd:") || strings.Contains(line, "/dev/shm") {
			left = append(left, "mapping "+strings.TrimSpace(line))
		}
	}
	names, _ := filepath.Glob("/dev/shm/" + testName("*"))
	return append(left, names...)
}

func testName(what string) string { return fmt.Sprintf("pptest-%d-%s", os.Getpid(), what) }

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
}

// process is the test binary in a role.
type process struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	ended bool
}

func command(role string, s *shm.Segment, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"segment"}, args...)...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	if s == nil {
		cmd.Args[1] = "none"
		return cmd
	}
	fd, err := unix.FcntlInt(uintptr(s.FD()), unix.F_DUPFD_CLOEXEC, 3)
	must(err)
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "segment")}
	return cmd
}

// start executes the test binary; it is killed when the test ends.
func start(t testing.TB, role string, s *shm.Segment, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: command(role, s, args...), lines: make(chan string, 64)}
	run(t, p)
	return p
}

// run executes what the process is to be.
func run(t testing.TB, p *process) {
	t.Helper()
	var err error
	p.in, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	for _, f := range p.cmd.ExtraFiles {
		_ = f.Close() // some may be nil, which is an error and no more
	}
	go func() {
		defer close(p.lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			p.lines <- scan.Text()
		}
	}()
	t.Cleanup(p.kill)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// line returns the next line that the child prints.
func (p *process) line() string {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		require.True(p.t, ok, "the child ended")
		return line
	case <-time.After(patience):
		require.Fail(p.t, "the child says nothing")
		return ""
	}
}

func (p *process) tell(line string) {
	_, err := io.WriteString(p.in, line+"\n")
	require.NoError(p.t, err)
}

func (p *process) signal(sig unix.Signal) { require.NoError(p.t, unix.Kill(p.pid(), sig)) }

func (p *process) kill() {
	if !p.ended {
		_ = p.cmd.Process.Kill()
		p.collect()
	}
}

// collect waits for the end.
func (p *process) collect() error {
	for range p.lines { // Wait closes the pipe: all must have been read
	}
	p.ended = true
	return p.cmd.Wait()
}

// finish waits for the end by itself and checks that it is a good one.
func (p *process) finish() {
	p.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	require.NoError(p.t, p.collect())
}

// hear waits for a line from the parent.
func hear() {
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	must(err)
}

func create(t testing.TB, size int64) *shm.Segment {
	t.Helper()
	s, err := shm.Create(size)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func u32(b []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&b[off : off+4][0])) }
func u64(b []byte, off int) *uint64 { return (*uint64)(unsafe.Pointer(&b[off : off+8][0])) }

func TestSegment(t *testing.T) {
	s := create(t, 10_000)
	require.EqualValues(t, 10_000, s.Size())
	require.Len(t, s.Bytes(), 10_000)
	require.Greater(t, s.FD(), 2)
	flags, err := unix.FcntlInt(uintptr(s.FD()), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.NotZero(t, flags&unix.FD_CLOEXEC)
	for _, size := range []int64{0, 9_999, 20_000} {
		require.ErrorIs(t, unix.Ftruncate(s.FD(), size), unix.EPERM, "size %d", size)
	}
	for i, b := range s.Bytes() {
		require.Zero(t, b, "byte %d", i)
	}

	// Two mappings of one memory.
	fd, err := unix.FcntlInt(uintptr(s.FD()), unix.F_DUPFD, 3)
	require.NoError(t, err)
	other, err := shm.Attach(fd)
	require.NoError(t, err)
	s.Bytes()[9_999] = 7
	require.EqualValues(t, 7, other.Bytes()[9_999])
	require.NoError(t, other.Close())
	require.NoError(t, other.Close())
	require.Equal(t, -1, other.FD())
	require.Nil(t, other.Bytes())
	require.ErrorIs(t, other.Reserve(0, 1), os.ErrClosed)
	_, err = other.Map(0, 1)
	require.ErrorIs(t, err, os.ErrClosed)

	third, err := shm.AttachProcess(os.Getpid(), s.FD())
	require.NoError(t, err)
	require.EqualValues(t, 7, third.Bytes()[9_999])
	require.NoError(t, third.Close())
}

func TestSegmentArguments(t *testing.T) {
	for _, size := range []int64{0, -1, -1 << 63} {
		_, err := shm.Create(size)
		require.ErrorIs(t, err, shm.ErrInvalid)
	}
	for _, name := range []string{"", "/", ".", "..", "a/b", "/a/b", "a\x00", strings.Repeat("x", 256)} {
		_, err := shm.CreateNamed(name, 1)
		require.ErrorIs(t, err, shm.ErrInvalid, "%q", name)
		_, err = shm.OpenNamed(name)
		require.ErrorIs(t, err, shm.ErrInvalid, "%q", name)
		require.ErrorIs(t, shm.Unlink(name), shm.ErrInvalid, "%q", name)
	}
	s := create(t, 8192)
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {8192, 1}, {0, 8193}, {1 << 62, 1 << 62}, {8193, 0}} {
		require.ErrorIs(t, s.Reserve(r[0], r[1]), shm.ErrInvalid, "%v", r)
		require.ErrorIs(t, s.Punch(r[0], r[1]), shm.ErrInvalid, "%v", r)
		_, err := s.Map(r[0], r[1])
		require.ErrorIs(t, err, shm.ErrInvalid, "%v", r)
	}
	for _, r := range [][2]int64{{1, 1}, {0, 0}} {
		_, err := s.Map(r[0], r[1])
		require.ErrorIs(t, err, shm.ErrInvalid, "%v", r)
	}
}

func TestAttachRefuses(t *testing.T) {
	loose, err := unix.MemfdCreate("loose", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	require.NoError(t, err)
	defer func() { _ = unix.Close(loose) }()
	_, err = shm.Attach(loose)
	require.ErrorIs(t, err, shm.ErrCorrupt, "no size")
	require.NoError(t, unix.Ftruncate(loose, 4096))
	_, err = shm.Attach(loose)
	require.ErrorIs(t, err, shm.ErrCorrupt, "can shrink")

	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _, _ = r.Close(), w.Close() }()
	_, err = shm.Attach(int(r.Fd()))
	require.ErrorIs(t, err, shm.ErrCorrupt, "a pipe")
	_, err = shm.AttachProcess(os.Getpid(), int(r.Fd()))
	require.ErrorIs(t, err, shm.ErrCorrupt, "a pipe")
	_, err = shm.AttachProcess(os.Getpid(), 1<<20)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = shm.Attach(1 << 20)
	require.ErrorIs(t, err, unix.EBADF)
	_, err = unix.FcntlInt(uintptr(loose), unix.F_GETFD, 0)
	require.NoError(t, err, "a descriptor that was refused stays the caller's")
}

func TestNamed(t *testing.T) { testNamed(t) }

func TestNamedWithoutTmpfile(t *testing.T) {
	defer shm.WithoutTmpfile()()
	testNamed(t)
	hidden, err := filepath.Glob(fmt.Sprintf("/dev/shm/.polyproc-%d-*", os.Getpid()))
	require.NoError(t, err)
	require.Empty(t, hidden)
}

func testNamed(t *testing.T) {
	name := testName("named")
	_, err := shm.OpenNamed(name)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorIs(t, shm.Unlink(name), os.ErrNotExist)

	s, err := shm.CreateNamed(name, 5_000)
	require.NoError(t, err)
	info, err := os.Stat("/dev/shm/" + name)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
	_, err = shm.CreateNamed(name, 5_000)
	require.ErrorIs(t, err, os.ErrExist)

	other, err := shm.OpenNamed("/" + name)
	require.NoError(t, err)
	require.EqualValues(t, 5_000, other.Size())
	copy(s.Bytes(), "hello")
	require.Equal(t, "hello", string(other.Bytes()[:5]))
	require.NoError(t, shm.Unlink(name))
	_, err = shm.OpenNamed(name)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, "hello", string(other.Bytes()[:5]), "what is open stays")
	require.NoError(t, s.Close())
	require.NoError(t, other.Close())
}

func TestNamedRace(t *testing.T) {
	name := testName("race")
	const n = 8
	won := make(chan *shm.Segment, n)
	for range n {
		go func() {
			s, err := shm.CreateNamed(name, 1<<20)
			if err != nil && !errors.Is(err, os.ErrExist) {
				t.Errorf("create: %v", err)
			}
			won <- s
		}()
	}
	winners := 0
	for range n {
		if s := <-won; s != nil {
			winners++
			require.NoError(t, s.Close())
		}
	}
	require.Equal(t, 1, winners)
	require.NoError(t, shm.Unlink(name))
}

func stored(t testing.TB, s *shm.Segment) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(s.FD(), &st))
	return st.Blocks * 512
}

func TestSparse(t *testing.T) {
	s, err := shm.CreateSparse(1 << 40)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	require.Nil(t, s.Bytes())
	require.Zero(t, stored(t, s))
	const at, n = 1 << 39, 1 << 20
	require.NoError(t, s.Reserve(at, n))
	require.EqualValues(t, n, stored(t, s))
	b, err := s.Map(at, n)
	require.NoError(t, err)
	s.Prefault(b)
	copy(b, "x")
	require.EqualValues(t, n, stored(t, s))
	c, err := s.Map(at, n)
	require.NoError(t, err)
	require.Equal(t, "x", string(c[:1]))
	require.NoError(t, s.Punch(at, n))
	require.Zero(t, b[0])
	require.NoError(t, s.Unmap(b))
	require.NoError(t, s.Unmap(c[:5]), "the capacity counts")
	require.ErrorIs(t, s.Reserve(0, 1<<40), shm.ErrNoMemory)
}

func init() {
	roles["file size"] = func(_ *shm.Segment, _ []string) {
		must(unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}))
		for _, f := range []func() (*shm.Segment, error){
			func() (*shm.Segment, error) { return shm.Create(1<<20 + 1) },
			func() (*shm.Segment, error) { return shm.CreateSparse(1 << 40) },
			func() (*shm.Segment, error) { return shm.CreateNamed(testName("fsize"), 2<<20) },
		} {
			if _, err := f(); !errors.Is(err, shm.ErrNoMemory) {
				must(fmt.Errorf("got %v", err))
			}
		}
		s, err := shm.Create(1 << 20)
		must(err)
		fmt.Println(s.Size())
	}
	roles["address space"] = func(_ *shm.Segment, _ []string) {
		s, err := shm.CreateSparse(1 << 40)
		must(err)
		must(unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: 64 << 30, Max: 64 << 30}))
		if _, err := s.Map(0, 1<<40); !errors.Is(err, shm.ErrNoMemory) {
			must(fmt.Errorf("got %v", err))
		}
	}
	roles["no stdio"] = func(_ *shm.Segment, _ []string) {
		for fd := range 3 {
			must(unix.Close(fd))
		}
		s, err := shm.Create(1)
		must(err)
		if s.FD() <= 2 {
			os.Exit(4)
		}
	}
}

// Limits are errors: the kernel's signals for them would end the host.
func TestLimits(t *testing.T) {
	p := start(t, "file size", nil)
	require.Equal(t, "1048576", p.line())
	p.finish()
	if !raceEnabled { // whose shadow memory is larger than any limit
		start(t, "address space", nil).finish()
	}
	start(t, "no stdio", nil).finish()
}

func TestGroupLeft(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	_, ok := shm.GroupLeft(dir, 2)
	require.False(t, ok, "no files limit nothing")
	write("memory.max", "max\n")
	write("memory.current", "700\n")
	_, ok = shm.GroupLeft(dir, 2)
	require.False(t, ok)
	const mib = 1 << 20
	write("memory.max", "838860800\n") // 800 MiB; the reserve is 100
	write("memory.current", "314572800\n")
	write("memory.stat", "anon 5\ninactive_file 52428800\n")
	left, ok := shm.GroupLeft(dir, 2)
	require.True(t, ok)
	require.EqualValues(t, 400*mib, left, "there is enough, without the pages that could be dropped")
	write("memory.current", "817889280\n") // 780 MiB
	left, _ = shm.GroupLeft(dir, 2)
	require.Zero(t, left)
	write("memory.current", "713031680\n") // 680 MiB
	left, _ = shm.GroupLeft(dir, 2)
	require.EqualValues(t, 70*mib, left, "with them")
	write("memory.high", "734003200\n") // 700 MiB
	left, _ = shm.GroupLeft(dir, 2)
	require.EqualValues(t, 0, left)
	write("memory.high", "max\n")
	write("memory.limit_in_bytes", "9223372036854771712\n")
	_, ok = shm.GroupLeft(dir, 1)
	require.False(t, ok)
	write("memory.stat", "total_inactive_file 1048576\n")
	write("memory.limit_in_bytes", "67108864\n") // 64 MiB: at least 8 are left
	write("memory.usage_in_bytes", "33554432\n")
	require.NoError(t, os.Remove(filepath.Join(dir, "memory.high")))
	left, _ = shm.GroupLeft(dir, 1)
	require.EqualValues(t, 25*mib, left)
	write("memory.memsw.limit_in_bytes", "67108864\n")
	write("memory.memsw.usage_in_bytes", "50331648\n")
	left, _ = shm.GroupLeft(dir, 1)
	require.EqualValues(t, 9*mib, left, "what was swapped out counts")
}

func TestReserve(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		text        string
		total, want uint64
		ok          bool
	}{
		{"", 64 * gib, 64 * gib / 20, false}, {"", 4 * gib, gib / 4, false}, {"", gib, gib / 8, false}, {"", 100 << 20, 100 << 20 / 8, false},
		{"", 32 << 20, 8 << 20, false},
		{"0", gib, 0, true}, {"1000", gib, 1000, true}, {"64K", gib, 64 << 10, true}, {"300m", gib, 300 << 20, true}, {"2G", gib, 2 * gib, true},
		{"1T", gib, 1 << 40, true}, {"10%", 1000, 100, true}, {"100%", 1000, 1000, true},
		{"101%", gib, gib / 8, false}, {"-1", gib, gib / 8, false}, {"1X", gib, gib / 8, false}, {"1MB", gib, gib / 8, false},
		{"K", gib, gib / 8, false}, {"99999999999T", gib, gib / 8, false}, {"1 M", gib, gib / 8, false},
	} {
		have, ok := shm.ReserveOf(c.text, c.total)
		require.Equal(t, c.want, have, "%q of %d", c.text, c.total)
		require.Equal(t, c.ok, ok, c.text)
	}
}

func TestFutex(t *testing.T) {
	b := create(t, 4096).Bytes()
	word := u32(b, 0)
	require.NoError(t, shm.FutexWait(word, 1, -1), "another value")
	require.ErrorIs(t, wait(word, 0, 10*time.Millisecond), os.ErrDeadlineExceeded)
	require.ErrorIs(t, wait(word, 0, 0), os.ErrDeadlineExceeded)
	done := make(chan error)
	go func() { done <- wait(word, 0, patience) }()
	for begin := time.Now(); shm.FutexWake(word, 1) == 0; runtime.Gosched() {
		require.Less(t, time.Since(begin), patience)
	}
	require.NoError(t, <-done)
}

// wait is FutexWait, asked again after signals, as the Go runtime sends them.
func wait(word *uint32, val uint32, timeout time.Duration) error {
	for {
		if err := shm.FutexWait(word, val, timeout); err != shm.ErrInterrupted {
			return err
		}
	}
}

func init() {
	roles["interrupted"] = func(s *shm.Segment, _ []string) {
		fmt.Println("waiting")
		fmt.Println(shm.FutexWait(u32(s.Bytes(), 0), 0, patience) == nil)
	}
	roles["idle"] = func(_ *shm.Segment, _ []string) {
		fmt.Println("idle")
		hear()
	}
}

func TestLiveness(t *testing.T) {
	s := create(t, 4096)
	self, err := shm.Identify(os.Getpid())
	require.NoError(t, err)
	require.False(t, self.Gone())
	require.True(t, (self ^ 1<<shm.IDShift).Gone(), "another id is another process with the number")
	require.True(t, shm.Identity(0).Gone())
	_, err = shm.Identify(0)
	require.ErrorIs(t, err, shm.ErrUnsupported)

	p := start(t, "idle", s)
	require.Equal(t, "idle", p.line())
	idle, err := shm.Identify(p.pid())
	require.NoError(t, err)
	require.Equal(t, p.pid(), idle.PID())
	require.False(t, idle.Gone())
	require.False(t, shm.Unmapped(p.pid(), s))
	other := create(t, 4096)
	require.True(t, shm.Unmapped(p.pid(), other))
	p.signal(unix.SIGSTOP)
	require.True(t, !idle.Gone(), "stopped is not dead")
	p.signal(unix.SIGKILL)
	eventually(t, func() bool { return idle.Gone() }, "a zombie is dead")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	require.NoError(t, err)
	require.Contains(t, string(stat), ") Z ")
	require.False(t, shm.Unmapped(p.pid(), s), "no maps prove nothing")
	require.Error(t, p.collect())
	require.True(t, idle.Gone())
	_, err = shm.Identify(p.pid())
	require.ErrorIs(t, err, shm.ErrUnsupported)
}

// eventually asks until the answer is yes, for what the kernel does in its own time.
func eventually(t testing.TB, yes func() bool, what string) {
	t.Helper()
	for begin := time.Now(); !yes(); runtime.Gosched() {
		require.Less(t, time.Since(begin), patience, what)
	}
}

// bytesOf returns the words as bytes, aligned as shared memory is.
func bytesOf(words []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
}
