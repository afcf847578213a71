// Package cdriver compiles and runs the C programs in tests/c, one subtest each: a program passes if it compiles without a
// warning, exits with 0 before its deadline, and leaves no process and no shared memory behind.
//
// A line of a program's source can say
//
//	deadline: 300 s     how long it may take, besides the time for torture (120 s if it does not say)
//	valgrind: yes       run it under valgrind too; for programs that do not load the engine
//	sanitize: address   compile it with that sanitizer of gcc's
package cdriver

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	deadlineLine = regexp.MustCompile(`(?m)^\W*deadline: (\d+) s`)
	valgrindLine = regexp.MustCompile(`(?m)^\W*valgrind: yes`)
	sanitizeLine = regexp.MustCompile(`(?m)^\W*sanitize: (\w+)`)
)

func TestC(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob(filepath.Join(root, "tests/c/*_test.c"))
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) == 0 {
		t.Fatal("no program in tests/c")
	}
	for _, source := range sources {
		t.Run(strings.TrimSuffix(filepath.Base(source), "_test.c"), func(t *testing.T) {
			text, err := os.ReadFile(source)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(t.Name(), "killsweep") { // one step after the other: nothing to measure, nothing to disturb
				t.Parallel()
			}
			program := compile(t, root, source)
			run(t, deadline(t, text), program)
			if valgrindLine.Match(text) {
				t.Run("valgrind", func(t *testing.T) {
					valgrind, err := exec.LookPath("valgrind")
					if err != nil {
						t.Skip("valgrind is not installed")
					}
					run(t, 5*deadline(t, text), valgrind, "-q", "--error-exitcode=99", "--leak-check=full",
						"--errors-for-leak-kinds=definite", "--child-silent-after-fork=yes", program)
				})
			}
		})
	}
}

func compile(t *testing.T, root, source string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	lib := filepath.Join(root, "build")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	optimize := "-O1"
	if strings.Contains(source, "killsweep") { // a sweep compiles what it sweeps, and does so as the product is (Makefile, CFLAGS)
		optimize = "-O3"
	}
	flags := []string{"-std=c11", "-g", optimize, "-Wall", "-Wextra", "-Wpedantic", "-Werror",
		"-I", filepath.Join(root, "include"), "-o", program, source,
		"-L", lib, "-lpolyproc", "-Wl,-rpath," + lib, "-pthread", "-ldl", "-lm"}
	if m := sanitizeLine.FindSubmatch(text); m != nil {
		flags = append(flags, "-fsanitize="+string(m[1]))
	}
	cmd := exec.Command("gcc", flags...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func deadline(t *testing.T, text []byte) time.Duration {
	t.Helper()
	seconds := 120
	if m := deadlineLine.FindSubmatch(text); m != nil {
		seconds, _ = strconv.Atoi(string(m[1]))
	}
	if value := os.Getenv("POLYPROC_TORTURE_SECONDS"); value != "" {
		torture, err := strconv.Atoi(value)
		if err != nil {
			t.Fatalf("POLYPROC_TORTURE_SECONDS: %v", err)
		}
		seconds += torture
	}
	return time.Duration(seconds) * time.Second
}

// run runs a program in a process group of its own, and looks at what is left of the group afterwards.
func run(t *testing.T, limit time.Duration, argv ...string) {
	t.Helper()
	before := sharedMemory(t)
	// A file and not a pipe: a child that survives would keep a pipe open, and Wait waiting.
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	group := cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(limit):
		err = errors.New("deadline exceeded")
		killGroup(group)
		<-ended
	}
	if err != nil {
		text, _ := os.ReadFile(output.Name())
		killGroup(group)
		t.Fatalf("%v after %v\n%s", err, time.Since(began).Round(time.Millisecond), text)
	}
	// Workers die with their parent within a second; zombies of ours are reaped by init.
	for end := time.Now().Add(5 * time.Second); !groupIsEmpty(group); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			out, _ := exec.Command("ps", "-o", "pid,ppid,stat,args", "-g", strconv.Itoa(group)).Output()
			killGroup(group)
			t.Fatalf("processes are left:\n%s", out)
		}
	}
	for name := range sharedMemory(t) {
		if !before[name] {
			t.Errorf("/dev/shm/%s is left", name)
		}
	}
}

func groupIsEmpty(group int) bool {
	return errors.Is(syscall.Kill(-group, 0), syscall.ESRCH)
}

func killGroup(group int) {
	_ = syscall.Kill(-group, syscall.SIGKILL) // empty already: fine
}

// sharedMemory lists the named segments that are polyproc's.
func sharedMemory(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	entries, err := os.ReadDir("/dev/shm")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "pp") {
			names[entry.Name()] = true
		}
	}
	return names
}
