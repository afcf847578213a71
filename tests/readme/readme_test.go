// Package readme holds README.md, and that of the Python package, to their word: their programs run, and the make targets that they name exist.
package readme

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks returns the blocks of a language in a file.
func blocks(t *testing.T, path, language string) []string {
	t.Helper()
	var all []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(read(t, path), -1) {
		all = append(all, m[1])
	}
	if len(all) == 0 {
		t.Fatalf("%s has no block of %s", path, language)
	}
	return all
}

func run(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPython(t *testing.T) {
	squares := "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n"
	for path, want := range map[string][]string{
		"../../README.md":                 {squares},
		"../../bindings/python/README.md": {squares, "b'for anybody'\n"},
	} {
		programs := blocks(t, path, "python")
		if len(programs) != len(want) {
			t.Fatalf("%s has %d programs, %d are known here", path, len(programs), len(want))
		}
		for i, text := range programs {
			program := filepath.Join(t.TempDir(), "program.py")
			if err := os.WriteFile(program, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			got := run(t, []string{"PYTHONPATH=" + absolute(t, "../../bindings/python/src")}, "python3", program)
			if got != want[i] {
				t.Errorf("program %d of %s prints %q, want %q", i, path, got, want[i])
			}
		}
	}
}

func TestC(t *testing.T) {
	dir := t.TempDir()
	source, program, lib := filepath.Join(dir, "program.c"), filepath.Join(dir, "program"), absolute(t, "../../build")
	if err := os.WriteFile(source, []byte(blocks(t, "../../README.md", "c")[0]), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "gcc", "-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-I", absolute(t, "../../include"),
		"-o", program, source, "-L", lib, "-lpolyproc", "-Wl,-rpath,"+lib)
	run(t, nil, program)
}

func TestMakeTargets(t *testing.T) {
	makefile := read(t, "../../Makefile")
	named := regexp.MustCompile("(?m)(?:`|^    )make ([a-z-]+)").FindAllStringSubmatch(read(t, "../../README.md"), -1)
	if len(named) < 3 {
		t.Fatalf("README.md names only %v", named)
	}
	for _, m := range named {
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			t.Errorf("README.md says make %s, which the Makefile does not have", m[1])
		}
	}
}

// A link to a file of the repository must have a file at its end.
func TestLinks(t *testing.T) {
	for _, m := range regexp.MustCompile(`\]\(([^):#]+)\)`).FindAllStringSubmatch(read(t, "../../README.md"), -1) {
		if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
			t.Error(err)
		}
	}
}
