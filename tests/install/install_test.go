// Package install installs the library to a temporary prefix and uses it as a C program elsewhere would: through
// pkg-config and through CMake, with the programs in bindings/c/examples.
package install

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What the examples print, in any order of lines.
var outputs = map[string][]string{
	"for":     {"for: PP_OK; the sum of the roots is 499999500000"},
	"map":     {"element 7: PP_ERR_TASK, error 33 (element 7: the task returned 33)", "map: PP_ERR_TASK; 1 failed; the sum of the others is 499493"},
	"submit":  {"stressed: desserts", "crash: PP_ERR_WORKER_LOST, signal 6", "drawer: reward", "reward: drawer"},
	"process": {"hello, world", "exit code 3"},
	"lock":    {"the holder died: what the lock protects may be half done", "the lock works"},
	"queue":   {"shared: 6", "memory: 6", "holds: 5", "it: 2"},
}

func command(t *testing.T, dir string, env []string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

func installed(t *testing.T) string {
	t.Helper()
	prefix := filepath.Join(t.TempDir(), "prefix")
	command(t, "../..", nil, "make", "-s", "install", "PREFIX="+prefix, "DESTDIR=")
	return prefix
}

func examples(t *testing.T) []string {
	t.Helper()
	sources, err := filepath.Glob("../../bindings/c/examples/*.c")
	if err != nil || len(sources) != len(outputs) {
		t.Fatalf("%v, %v: want one for each of %d outputs", sources, err, len(outputs))
	}
	return sources
}

func check(t *testing.T, program, prefix string) {
	t.Helper()
	name := filepath.Base(program)
	got := command(t, filepath.Dir(program), []string{"LD_LIBRARY_PATH=" + filepath.Join(prefix, "lib")}, program)
	for _, line := range outputs[name] {
		if !strings.Contains("\n"+got, "\n"+line+"\n") {
			t.Errorf("%s does not print %q, but:\n%s", name, line, got)
		}
	}
}

func TestPkgConfig(t *testing.T) {
	if _, err := exec.LookPath("pkg-config"); err != nil {
		t.Skip("pkg-config is not installed")
	}
	prefix := installed(t)
	env := []string{"PKG_CONFIG_PATH=" + filepath.Join(prefix, "lib/pkgconfig")}
	flags := strings.Fields(command(t, ".", env, "pkg-config", "--cflags", "--libs", "polyproc"))
	for _, source := range examples(t) {
		name := strings.TrimSuffix(filepath.Base(source), ".c")
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), name)
			argv := append([]string{"gcc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o", program, source}, flags...)
			command(t, ".", nil, append(argv, "-lm")...)
			check(t, program, prefix)
		})
	}
}

func TestCMake(t *testing.T) {
	if _, err := exec.LookPath("cmake"); err != nil {
		t.Skip("cmake is not installed")
	}
	prefix := installed(t)
	dir := t.TempDir()
	var lists strings.Builder
	lists.WriteString("cmake_minimum_required(VERSION 3.13)\nproject(examples C)\nfind_package(polyproc 0.1 REQUIRED)\n")
	var names []string
	for _, source := range examples(t) {
		path, err := filepath.Abs(source)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(source), ".c")
		names = append(names, name)
		lists.WriteString("add_executable(" + name + " " + path + ")\ntarget_link_libraries(" + name + " polyproc::polyproc m)\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "CMakeLists.txt"), []byte(lists.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	command(t, dir, nil, "cmake", "-S", dir, "-B", out, "-DCMAKE_PREFIX_PATH="+prefix)
	command(t, dir, nil, "cmake", "--build", out)
	for _, name := range names {
		check(t, filepath.Join(out, name), prefix)
	}
}

// A package is built with DESTDIR: the paths inside must be those without it.
func TestDestdir(t *testing.T) {
	dir := t.TempDir()
	command(t, "../..", nil, "make", "-s", "install", "PREFIX=/usr", "DESTDIR="+dir)
	text, err := os.ReadFile(filepath.Join(dir, "usr/lib/pkgconfig/polyproc.pc"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "prefix=/usr\n") || strings.Contains(string(text), "@") {
		t.Errorf("polyproc.pc:\n%s", text)
	}
	for _, name := range []string{"include/polyproc.h", "lib/libpolyproc.so", "lib/libpolyproc-engine.so",
		"lib/cmake/polyproc/polyproc-config.cmake", "lib/cmake/polyproc/polyproc-config-version.cmake"} {
		if _, err := os.Stat(filepath.Join(dir, "usr", name)); err != nil {
			t.Error(err)
		}
	}
}
