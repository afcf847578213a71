//go:build linux

package shm_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

const stranger = 65534

// inNamespaces runs the test binary in a role in new namespaces; the test is skipped where that is not permitted.
func inNamespaces(t *testing.T, flags uintptr, role string, args ...string) *process {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes namespaces")
	}
	cmd := command(role, nil, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	p := &process{t: t, cmd: cmd, lines: make(chan string, 64)}
	run(t, p)
	return p
}

func init() {
	// In a pid namespace whose /proc is that of the outer one: each of two processes looks at the other.
	roles["foreign proc"] = func(*shm.Segment, []string) {
		if os.Getpid() != 1 {
			must(fmt.Errorf("pid %d", os.Getpid()))
		}
		h, err := shm.CreateHeap()
		must(err)
		me, err := h.Join()
		must(err)
		fd, err := unix.FcntlInt(uintptr(h.FD()), unix.F_DUPFD_CLOEXEC, 3)
		must(err)
		cmd := command("foreign member", nil, strconv.Itoa(int(me)))
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "heap")}
		out, err := cmd.StdoutPipe()
		must(err)
		_, err = cmd.StdinPipe()
		must(err)
		must(cmd.Start())
		var other uint32
		_, err = fmt.Fscanf(out, "%d\n", &other)
		must(err)
		h.Reap()
		fmt.Println("alive:", !h.Gone(shm.Owner(other)))
		must(cmd.Process.Kill())
		_ = cmd.Wait()
		fmt.Println("gone:", h.Gone(shm.Owner(other)))
	}
	roles["foreign member"] = func(_ *shm.Segment, args []string) {
		h, err := shm.AttachHeap(3)
		must(err)
		me, err := h.Join()
		must(err)
		first, err := strconv.Atoi(args[0])
		must(err)
		if h.Gone(shm.Owner(first)) {
			must(fmt.Errorf("the first process is gone"))
		}
		fmt.Println(uint32(me))
		hear()
	}
	roles["hidden"] = func(*shm.Segment, []string) {
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Mount("proc", "/proc", "proc", 0, "hidepid=2"))
		i, err := shm.Identify(os.Getpid())
		must(err)
		cmd := command("hidden from", nil, strconv.FormatUint(uint64(i), 10))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
		cmd.Stdout = os.Stdout
		must(cmd.Run())
	}
	roles["hidden from"] = func(_ *shm.Segment, args []string) {
		i, err := strconv.ParseUint(args[0], 10, 64)
		must(err)
		_, err = os.Stat(fmt.Sprintf("/proc/%d", shm.Identity(i).PID()))
		fmt.Println("hidden:", os.IsNotExist(err), "alive:", !shm.Identity(i).Gone())
	}
	roles["named heap"] = func(_ *shm.Segment, args []string) {
		h, err := shm.OpenNamedHeap(args[0])
		if errors.Is(err, fs.ErrNotExist) {
			h, err = shm.CreateNamedHeap(args[0])
		}
		must(err)
		_, err = h.Join()
		must(err)
		fmt.Println("joined")
		hear()
	}
}

// What kernels without pidfds, or with pidfds that all have one inode, leave to go by.
func TestIdentityOfOlderKernels(t *testing.T) {
	p := start(t, "idle", create(t, 4096))
	require.Equal(t, "idle", p.line())
	modern, err := shm.Identify(p.pid())
	require.NoError(t, err)
	old, err := shm.ByStart(p.pid())
	require.NoError(t, err)
	another := old ^ 1<<shm.IDShift
	unknown := old &^ ((1<<21 - 1) << shm.IDShift)
	for _, i := range []shm.Identity{modern, old, unknown} {
		require.False(t, i.Gone())
		require.False(t, i.EndedUnseen())
	}
	require.True(t, another.Gone(), "the process with this number started at another time")
	require.True(t, another.EndedUnseen())
	p.signal(unix.SIGSTOP)
	require.False(t, old.EndedUnseen(), "stopped is not dead")
	p.signal(unix.SIGKILL)
	eventually(t, func() bool { return old.Gone() && old.EndedUnseen() && unknown.EndedUnseen() && modern.EndedUnseen() }, "a zombie is dead")
	require.Error(t, p.collect())
	for _, i := range []shm.Identity{modern, old, unknown} {
		require.True(t, i.Gone())
		require.True(t, i.EndedUnseen())
	}
}

func TestForeignProc(t *testing.T) {
	p := inNamespaces(t, unix.CLONE_NEWPID, "foreign proc")
	require.Equal(t, "alive: true", p.line())
	require.Equal(t, "gone: true", p.line())
	require.NoError(t, p.collect())
}

func TestHiddenProcess(t *testing.T) {
	p := inNamespaces(t, unix.CLONE_NEWNS, "hidden")
	require.Equal(t, "hidden: true alive: true", p.line())
	require.NoError(t, p.collect())
}

// A container that is started again has another pid namespace.
func TestNamedHeapIsTakenOver(t *testing.T) {
	name := testName("restart")
	for range 2 {
		p := inNamespaces(t, unix.CLONE_NEWPID, "named heap", name)
		require.Equal(t, "joined", p.line())
		_, err := shm.OpenNamedHeap(name)
		require.ErrorIs(t, err, shm.ErrUnsupported, "the processes of the other namespace live")
		p.signal(unix.SIGKILL)
		require.Error(t, p.collect())
	}
	h, err := shm.OpenNamedHeap(name)
	require.NoError(t, err)
	_, err = h.Join()
	require.NoError(t, err)
	h.Reap()
	require.NoError(t, h.Close())
	require.NoError(t, shm.Unlink(name))
}

// Two that come at the same time meet each other's shared lock, and neither is one of the other namespace.
func TestNamedHeapIsTakenOverByOneOfSeveral(t *testing.T) {
	name := testName("several")
	p := inNamespaces(t, unix.CLONE_NEWPID, "named heap", name)
	require.Equal(t, "joined", p.line())
	p.signal(unix.SIGKILL)
	require.Error(t, p.collect())
	fd, err := unix.Open("/dev/shm/"+name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Flock(fd, unix.LOCK_SH)) // the other, before it asks for the exclusive one
	closed := make(chan error)
	go func() {
		time.Sleep(20 * time.Millisecond)
		closed <- unix.Close(fd)
	}()
	h, err := shm.OpenNamedHeap(name)
	require.NoError(t, <-closed)
	require.NoError(t, err)
	other, err := unix.Open("/dev/shm/"+name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.ErrorIs(t, unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK, "who has the heap has the shared lock")
	require.NoError(t, unix.Close(other))
	require.NoError(t, h.Close())
	require.NoError(t, shm.Unlink(name))
}

func TestNamedOfOthers(t *testing.T) {
	name := testName("others")
	path := "/dev/shm/" + name
	open := func() error {
		s, err := shm.OpenNamed(name)
		if err == nil {
			require.NoError(t, s.Close())
		}
		h, herr := shm.OpenNamedHeap(name)
		if herr == nil {
			require.NoError(t, h.Close())
		}
		require.Equal(t, err == nil, herr == nil)
		return err
	}
	h, err := shm.CreateNamedHeap(name)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	t.Cleanup(func() { _ = os.Remove(path) })
	require.NoError(t, open())
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o622, 0o611} {
		require.NoError(t, os.Chmod(path, mode))
		require.ErrorIs(t, open(), fs.ErrPermission)
	}
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, os.Link(path, path+"-link"))
	require.ErrorIs(t, open(), fs.ErrPermission)
	require.NoError(t, os.Remove(path+"-link"))
	require.NoError(t, open())
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(path, stranger, stranger))
		require.ErrorIs(t, open(), fs.ErrPermission)
	}
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Symlink("/etc/passwd", path))
	require.ErrorIs(t, open(), fs.ErrPermission)
	require.NoError(t, os.Remove(path))
	require.NoError(t, unix.Mkfifo(path, 0o600))
	require.ErrorIs(t, open(), fs.ErrPermission)
}

// Core files must not have the arguments of tasks, and what keys they carry.
func TestNotInCoreFiles(t *testing.T) {
	s := create(t, 1<<20)
	begin := fmt.Sprintf("%x-", uintptr(unsafe.Pointer(&s.Bytes()[0])))
	smaps, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	_, mapping, found := strings.Cut(string(smaps), "\n"+begin)
	require.True(t, found)
	_, flags, _ := strings.Cut(mapping, "VmFlags: ")
	flags, _, _ = strings.Cut(flags, "\n")
	require.Contains(t, " "+flags+" ", " dd ")
}

func init() {
	roles["privileged"] = func(*shm.Segment, []string) {
		_, set := os.LookupEnv(shm.FamilyVar)
		_, env, err := shm.Inherit()
		must(err)
		fmt.Println(shm.Privileged(), set, env[strings.LastIndexByte(env, ':')+1:])
	}
}

// A set-uid program takes no family from the environment of its caller, which an ordinary one takes.
func TestSetUIDProgramIgnoresEnvironment(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes such programs for others")
	}
	require.False(t, shm.Privileged())
	dir, err := os.MkdirTemp("", "polyproc-setuid-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	text, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	program := dir + "/program"
	require.NoError(t, os.WriteFile(program, text, 0o700))
	files, env, err := shm.Inherit()
	require.NoError(t, err)
	inode := env[strings.LastIndexByte(env, ':')+1:]
	told := func(mode os.FileMode, uid uint32) string {
		require.NoError(t, os.Chmod(program, mode))
		cmd := command("privileged", nil)
		cmd.Path = program
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		// They become descriptors 3 and 4 there.
		for _, fd := range files {
			fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			require.NoError(t, err)
			cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), "family"))
		}
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=3,4,%s", shm.FamilyVar, strings.SplitN(env, ",", 3)[2]))
		p := &process{t: t, cmd: cmd, lines: make(chan string, 64)}
		run(t, p)
		line := p.line()
		require.NoError(t, p.collect())
		return line
	}
	require.Equal(t, "false false "+inode, told(0o755, 0))
	got := told(0o755|os.ModeSetuid, stranger)
	if strings.HasPrefix(got, "false") {
		t.Skip("no set-uid programs on this file system")
	}
	require.True(t, strings.HasPrefix(got, "true false "), got)
	require.NotContains(t, got, inode)
}
