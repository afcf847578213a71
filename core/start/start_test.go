package start_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/start"
)

// deadline is for what should take milliseconds, on a busy machine with the race detector.
const deadline = 20 * time.Second

// helperVar makes the re-executed test binary one of the helpers instead of a test run.
const helperVar = "START_TEST_HELPER"

// depthVar counts helpers started by helpers, so that a mistake among them stays small.
const depthVar = "START_TEST_DEPTH"

// helpers are the programs that tests start: they get the arguments behind argv[0] and return the exit code.
var helpers = map[string]func(args []string) int{
	"exit":       func(args []string) int { return atoi(args[0]) },
	"describe":   describe,
	"receive":    receive,
	"idle":       func([]string) int { select {} },
	"copy-input": copyInput,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperVar); name != "" {
		depth, _ := strconv.Atoi(os.Getenv(depthVar))
		if depth >= 3 {
			panic("helpers that start helpers without end")
		}
		if err := os.Setenv(depthVar, strconv.Itoa(depth+1)); err != nil {
			panic(err)
		}
		time.AfterFunc(3*deadline, func() { panic("helper " + name + " was left behind") })
		os.Exit(helpers[name](os.Args[1:]))
	}
	before := resources()
	code := m.Run()
	if code == 0 {
		if leak := leaked(before); leak != "" {
			fmt.Fprintln(os.Stderr, "leaked:", leak)
			code = 99
		}
	}
	os.Exit(code)
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// copyInput is a program that copies its input to its output and complains.
func copyInput([]string) int {
	if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
		return 1
	}
	fmt.Fprint(os.Stderr, "that was all")
	return 7
}

func TestStandardFiles(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/in", []byte("some input"), 0o600))
	in, err := os.Open(dir + "/in")
	require.NoError(t, err)
	out, err := os.Create(dir + "/out")
	require.NoError(t, err)
	errors, err := os.Create(dir + "/errors")
	require.NoError(t, err)
	s := helper(t, "copy-input")
	s.Stdin, s.Stdout, s.Stderr = in, out, errors
	p := run(t, s)
	for _, file := range []*os.File{in, out, errors} {
		require.NoError(t, file.Close(), "the child has its own")
	}
	require.Equal(t, start.Status{Known: true, Code: 7}, wait(t, p))
	for name, want := range map[string]string{"out": "some input", "errors": "that was all"} {
		got, err := os.ReadFile(dir + "/" + name)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	_, err = start.Spawn().Start(s)
	require.ErrorIs(t, err, os.ErrClosed)
	require.ErrorContains(t, err, "/in")
}

// helper returns what starts this test binary as a helper.
func helper(t testing.TB, name string, args ...string) start.Spec {
	t.Helper()
	require.Contains(t, helpers, name)
	self, err := os.Executable()
	require.NoError(t, err)
	return start.Spec{
		Path: self,
		Args: append([]string{"helper-" + name}, args...),
		Env:  append(os.Environ(), helperVar+"="+name),
	}
}

// run starts a process that is killed at the end of the test, if it is still there.
func run(t testing.TB, s start.Spec) *start.Process {
	t.Helper()
	p, err := start.Spawn().Start(s)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Kill())
		wait(t, p)
		p.Release()
	})
	return p
}

func wait(t testing.TB, p *start.Process) start.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	status, err := p.Wait(ctx)
	require.NoError(t, err, "process %d has not ended in time", p.PID())
	return status
}

// reportVar names the descriptor on which a helper tells its test something.
const reportVar = "START_TEST_REPORT"

// ask runs a helper to its end and decodes what it reported.
func ask(t testing.TB, s start.Spec, answer any) start.Status {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	s.Files = append(s.Files, int(w.Fd()))
	s.Env = append(s.Env, fmt.Sprintf("%s=%d", reportVar, w.Fd()))
	p := run(t, s)
	require.NoError(t, w.Close())
	require.NoError(t, r.SetReadDeadline(time.Now().Add(deadline)))
	text, err := io.ReadAll(r)
	require.NoError(t, err)
	status := wait(t, p)
	require.NoError(t, json.Unmarshal(text, answer), "%v; report: %q", status, text)
	return status
}

// report is the helpers' side of ask.
func report(answer any) int {
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err)
	}
	f := os.NewFile(uintptr(atoi(os.Getenv(reportVar))), "report")
	if _, err := f.Write(text); err != nil {
		panic(err)
	}
	return 0
}

type description struct {
	Args, Env []string
	Dir       string
}

func describe([]string) int {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return report(description{os.Args, os.Environ(), dir})
}

type receipt struct {
	OK, Again         bool
	Nil               bool
	Size              int
	Sum               [sha256.Size]byte
	ParentPID, Parent int
	Flags             int
}

func receive([]string) int {
	r, ok, err := start.Receive()
	if err != nil {
		panic(err)
	}
	_, again, _ := start.Receive()
	return report(receipt{ok, again, r.Payload == nil, len(r.Payload), sha256.Sum256(r.Payload), r.ParentPID, os.Getppid(), r.Flags})
}

func TestLookup(t *testing.T) {
	m, err := start.Lookup("spawn")
	require.NoError(t, err)
	require.Equal(t, "spawn", m.Name())
	for _, name := range []string{"fork", "forkserver"} {
		_, err = start.Lookup(name)
		require.ErrorIs(t, err, start.ErrUnsupported)
		require.ErrorContains(t, err, name)
	}
	_, err = start.Lookup("teleport")
	require.ErrorContains(t, err, "teleport")
	require.NotErrorIs(t, err, start.ErrUnsupported)
}

func TestExitCode(t *testing.T) {
	for _, code := range []int{0, 1, 7, 255} {
		p := run(t, helper(t, "exit", strconv.Itoa(code)))
		status := wait(t, p)
		require.Equal(t, start.Status{Known: true, Code: code}, status)
		require.Equal(t, code, status.ExitCode())
		require.Equal(t, fmt.Sprintf("exit code %d", code), status.String())
		again, ended := p.Status()
		require.True(t, ended)
		require.Equal(t, status, again)
	}
}

func TestKill(t *testing.T) {
	p := run(t, helper(t, "idle"))
	_, ended := p.Status()
	require.False(t, ended)
	require.NoError(t, p.Kill())
	status := wait(t, p)
	require.Equal(t, start.Status{Known: true, Signal: syscall.SIGKILL}, status)
	require.Equal(t, -9, status.ExitCode())
	require.Equal(t, "killed by signal 9 (SIGKILL)", status.String())
	require.NoError(t, p.Kill(), "an ended process needs no killing")
}

func TestUnknownStatus(t *testing.T) {
	require.Equal(t, "ended, status unknown", start.Status{}.String())
	require.Equal(t, math.MinInt32, start.Status{}.ExitCode())
}

func TestWaitIsLeftByContext(t *testing.T) {
	p := run(t, helper(t, "idle"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := p.Wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
	_, ended := p.Status()
	require.False(t, ended)
	require.NoError(t, p.Kill())
	wait(t, p)
	_, err = p.Wait(ctx)
	require.NoError(t, err, "an end that is known is reported")
}

func TestNotFound(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for _, s := range []start.Spec{{Path: missing}, {Args: []string{missing}}, {Path: "no-such-program-anywhere"}} {
		_, err := start.Spawn().Start(s)
		require.ErrorIs(t, err, start.ErrNotFound)
		require.ErrorIs(t, err, exec.ErrNotFound)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorContains(t, err, "start: ")
		require.ErrorContains(t, err, filepath.Base(missing[:0]+s.Path+strings.Join(s.Args, "")))
	}
	_, err := start.Spawn().Start(start.Spec{})
	require.Error(t, err)
	for _, s := range []start.Spec{{Path: "a\x00b"}, {Path: missing, Args: []string{"a\x00"}}, {Path: missing, Env: []string{"A=\x00"}}, {Path: missing, Dir: "\x00"}} {
		_, err = start.Spawn().Start(s)
		require.ErrorIs(t, err, syscall.EINVAL)
		require.ErrorContains(t, err, "NUL")
	}
}

func TestArgsEnvDir(t *testing.T) {
	s := helper(t, "describe", "one", "", "three words")
	s.Env = append(s.Env, "START_TEST_X=first", "START_TEST_X=ä=1")
	s.Dir = t.TempDir()
	var d description
	require.Equal(t, 0, ask(t, s, &d).ExitCode())
	require.Equal(t, s.Args, d.Args)
	require.Contains(t, d.Env, "START_TEST_X=ä=1")
	require.NotContains(t, d.Env, "START_TEST_X=first", "the last value counts")
	dir, err := filepath.EvalSymlinks(s.Dir)
	require.NoError(t, err)
	got, err := filepath.EvalSymlinks(d.Dir)
	require.NoError(t, err)
	require.Equal(t, dir, got)

	require.False(t, slices.ContainsFunc(d.Env, func(v string) bool { return strings.HasPrefix(v, start.EnvProcess) }),
		"nothing was passed, so nothing is told")
}

func TestEnvNilIsOurs(t *testing.T) {
	t.Setenv("START_TEST_INHERITED", "yes")
	t.Setenv(helperVar, "describe")
	s := helper(t, "describe")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	t.Setenv(reportVar, strconv.Itoa(int(w.Fd())))
	s.Env, s.Files = nil, []int{int(w.Fd())}
	p := run(t, s)
	require.NoError(t, w.Close())
	var d description
	require.NoError(t, r.SetReadDeadline(time.Now().Add(deadline)))
	require.NoError(t, json.NewDecoder(r).Decode(&d))
	require.Contains(t, d.Env, "START_TEST_INHERITED=yes")
	require.Equal(t, 0, wait(t, p).ExitCode())
}

func TestPayload(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{0, 1, 4096, 5 << 20} {
		payload := make([]byte, size)
		_, _ = random.Read(payload)
		s := helper(t, "receive")
		s.Payload, s.PayloadFlags = payload, start.FlagFunction
		s.Env = append(s.Env, start.EnvProcess+"=99,98,97") // a parent's own, not yet consumed
		var r receipt
		require.Equal(t, 0, ask(t, s, &r).ExitCode())
		require.Equal(t, receipt{true, false, false, size, sha256.Sum256(payload), os.Getpid(), os.Getpid(), start.FlagFunction}, r)
	}
}

func TestFlagsWithoutPayload(t *testing.T) {
	s := helper(t, "receive")
	s.PayloadFlags = start.FlagWatchParent
	var r receipt
	ask(t, s, &r)
	require.Equal(t, receipt{true, false, true, 0, sha256.Sum256(nil), os.Getpid(), os.Getpid(), start.FlagWatchParent}, r)

	ask(t, helper(t, "receive"), &r)
	require.False(t, r.OK)
}

func TestReceiveMalformed(t *testing.T) {
	for _, value := range []string{"", "1", "1,2", "1,2,x", "1,2,3,4", "123456,1,0"} {
		t.Setenv(start.EnvProcess, value)
		_, ok, err := start.Receive()
		require.True(t, ok)
		require.Error(t, err, "%q", value)
		require.NotContains(t, os.Environ(), start.EnvProcess)
	}
}

func TestOnExit(t *testing.T) {
	p := run(t, helper(t, "exit", "3"))
	statuses := make(chan start.Status, 3)
	p.OnExit(func(s start.Status) {
		select {
		case <-p.Done():
		default:
			t.Error("Done is not closed when OnExit's function runs")
		}
		statuses <- s
	})
	p.OnExit(func(s start.Status) { statuses <- s })
	want := start.Status{Known: true, Code: 3}
	for range 2 {
		select {
		case s := <-statuses:
			require.Equal(t, want, s)
		case <-time.After(deadline):
			require.FailNow(t, "not called")
		}
	}
	p.OnExit(func(s start.Status) { statuses <- s })
	require.Len(t, statuses, 1, "called at once")
	require.Equal(t, want, <-statuses)
}

func TestRelease(t *testing.T) {
	p := run(t, helper(t, "idle"))
	require.Positive(t, p.FD())
	p.Release()
	p.Release()
	require.Equal(t, -1, p.FD())
	require.Positive(t, p.PID())
	require.NoError(t, p.Kill(), "it still answers")
	require.Equal(t, -9, wait(t, p).ExitCode())
	p.Release()

	p = run(t, helper(t, "exit", "0"))
	wait(t, p)
	require.Positive(t, p.FD())
	p.Release()
	require.Equal(t, -1, p.FD())
}

// TestHammer has the supervisor come and go under many starting goroutines.
func TestHammer(t *testing.T) {
	var all sync.WaitGroup
	errs := make(chan error, 8)
	for g := range 8 {
		all.Go(func() {
			for i := range 12 {
				s := start.Spec{Path: helperProgram(t), Env: append(os.Environ(), helperVar+"=exit"), Args: []string{"x", strconv.Itoa(i)}}
				p, err := start.Spawn().Start(s)
				if err != nil {
					errs <- err
					return
				}
				if (g+i)%2 == 0 {
					p.Release()
				}
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				status, err := p.Wait(ctx)
				cancel()
				if err == nil && status.Code != i {
					err = errors.New(status.String())
				}
				p.Release()
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
}

func helperProgram(t testing.TB) string { return helper(t, "exit").Path }

func ExampleSpawn() {
	p, err := start.Spawn().Start(start.Spec{Args: []string{"sh", "-c", "exit 7"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Release()
	status, err := p.Wait(context.Background())
	fmt.Println(status, err)
	// Output: exit code 7 <nil>
}
