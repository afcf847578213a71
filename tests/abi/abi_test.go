// Package abi holds the library files in build/ against include/polyproc.h: what they export, what they need, and whether the header
// stands by itself.
package abi

import (
	"bufio"
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	header  = "../../include/polyproc.h"
	library = "../../build/libpolyproc.so"
	engine  = "../../build/libpolyproc-engine.so"
)

var (
	comment     = regexp.MustCompile(`(?s)/\*.*?\*/`)
	declaration = regexp.MustCompile(`(?m)^PP_API\s[^;]*?\b(pp_[a-z0-9_]+)\(`)
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// declared lists the functions of the header, sorted.
func declared(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, m := range declaration.FindAllStringSubmatch(comment.ReplaceAllString(read(t, header), ""), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	if len(names) < 20 {
		t.Fatalf("only %d functions found in the header: %v", len(names), names)
	}
	return names
}

// exported lists the dynamic symbols that a library defines, as nm sees them, sorted.
func exported(t *testing.T, path string) []string {
	t.Helper()
	out, err := exec.Command("nm", "-D", "--defined-only", path).Output()
	if err != nil {
		t.Fatalf("nm %s: %v (make build)", path, err)
	}
	var names []string
	for scanner := bufio.NewScanner(bytes.NewReader(out)); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		names = append(names, fields[len(fields)-1])
	}
	slices.Sort(names)
	return names
}

// A prototype without an implementation links as long as nobody calls it; an implementation without a prototype is published by
// accident. The two lists must be the same.
func TestLibraryExportsWhatTheHeaderDeclares(t *testing.T) {
	want, got := declared(t), exported(t, library)
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%s is declared and not exported", name)
		}
	}
	for _, name := range got {
		if !slices.Contains(want, name) {
			t.Errorf("%s is exported and not declared", name)
		}
	}
}

func TestEngineExportsOneSymbol(t *testing.T) {
	if got := exported(t, engine); !slices.Equal(got, []string{"pp__engine"}) {
		t.Errorf("the engine exports %v, want pp__engine alone", got)
	}
}

// The front must load everywhere and fast: the C library and nothing else.
func TestLibrariesNeedOnlyTheCLibrary(t *testing.T) {
	for _, path := range []string{library, engine} {
		file, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		needed, err := file.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range needed {
			switch stem, _, _ := strings.Cut(name, ".so"); stem {
			case "libc", "libpthread", "libdl", "librt", "libresolv", "ld-linux-x86-64", "ld-linux-aarch64":
			default:
				t.Errorf("%s needs %s", path, name)
			}
		}
		soname, err := file.DynString(elf.DT_SONAME)
		if err != nil || len(soname) != 1 || soname[0] != filepath.Base(path) {
			t.Errorf("%s: soname %v, %v", path, soname, err)
		}
		for _, segment := range file.Progs {
			if segment.Type == elf.PT_GNU_STACK && segment.Flags&elf.PF_X != 0 {
				t.Errorf("%s asks for an executable stack", path)
			}
		}
		// The room for this is small and shared by all libraries that a host loads late. (Go's runtime needs its 8 bytes there.)
		flags, err := file.DynValue(elf.DT_FLAGS)
		if path == library && (err != nil || len(flags) > 0 && elf.DynFlag(flags[0])&elf.DF_STATIC_TLS != 0) {
			t.Errorf("%s asks for static thread-local memory (%v, %v)", path, flags, err)
		}
	}
}

func compile(t *testing.T, text string, argv ...string) {
	t.Helper()
	argv = append(argv, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", filepath.Dir(header), "-")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %v\n%s", argv, err, out)
	}
}

func TestHeaderStandsAlone(t *testing.T) {
	for _, std := range []string{"c99", "c11", "c17", "gnu11"} {
		compile(t, "#include <polyproc.h>\n#include <polyproc.h>\nint main(void) { return PP_OK; }\n",
			"gcc", "-x", "c", "-std="+std, "-fsyntax-only")
	}
	for _, std := range []string{"c++11", "c++17", "c++20"} {
		if _, err := exec.LookPath("g++"); err != nil {
			t.Skip("g++ is not installed: the header was not compiled as C++")
		}
		compile(t, "#include <polyproc.h>\n#include <polyproc.h>\nint main() { return PP_OK; }\n",
			"g++", "-x", "c++", "-std="+std, "-fsyntax-only")
	}
}

// The initializers must cover their structs exactly: a field added and forgotten is a warning of -Wextra.
func TestOptionInitializers(t *testing.T) {
	compile(t, `#include <polyproc.h>
int main(void)
{
	pp_pool_options pool = PP_POOL_OPTIONS_INIT;
	pp_process_options process = PP_PROCESS_OPTIONS_INIT;
	return pool.size == sizeof pool && process.size == sizeof process && pool.reserved == 0 && process.reserved == 0 ? 0 : 1;
}
`, "gcc", "-x", "c", "-std=c11", "-fsyntax-only")
}

// The program in the header's introduction is what a newcomer copies.
func TestIntroductionCompiles(t *testing.T) {
	var program []string
	in := false
	for _, line := range strings.Split(read(t, header), "\n") {
		line = strings.TrimPrefix(line, " *")
		in = in || strings.TrimSpace(line) == "#include <polyproc.h>"
		if !in {
			continue
		}
		line = strings.TrimPrefix(line, "       ")
		program = append(program, line)
		if line == "}" && strings.Contains(strings.Join(program, "\n"), "int main") {
			break
		}
	}
	text := strings.Join(program, "\n") + "\n"
	if !strings.Contains(text, "pp_pool_map(") || len(program) > 60 {
		t.Fatalf("the introduction's program was not found, only:\n%s", text)
	}
	argv := []string{"gcc", "-x", "c", "-std=c11", "-fsyntax-only", "-include", "stdio.h", "-Wno-unused-parameter",
		"-Wno-maybe-uninitialized"}
	cmd := exec.Command(argv[0], append(argv[1:], "-Wall", "-Wextra", "-Werror", "-I", filepath.Dir(header), "-")...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, text)
	}
}

// One version, told in several places.
func TestVersions(t *testing.T) {
	text := read(t, header)
	find := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in the header", pattern)
		}
		return m[1]
	}
	version := find(`#define PP_VERSION "([^"]*)"`)
	parts := find(`#define PP_VERSION_MAJOR (\d+)`) + "." + find(`#define PP_VERSION_MINOR (\d+)`) + "." +
		find(`#define PP_VERSION_PATCH (\d+)`)
	if version != parts {
		t.Errorf("PP_VERSION is %s, its parts are %s", version, parts)
	}
	if !strings.Contains(read(t, "../../CHANGELOG.md"), version) {
		t.Errorf("CHANGELOG.md does not mention %s", version)
	}

	program := filepath.Join(t.TempDir(), "version")
	lib, err := filepath.Abs(filepath.Dir(library))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("gcc", "-x", "c", "-I", filepath.Dir(header), "-o", program, "-", "-L", lib, "-lpolyproc", "-Wl,-rpath,"+lib)
	cmd.Stdin = strings.NewReader("#include <polyproc.h>\n#include <stdio.h>\n" +
		"int main(void) { printf(\"%s %s\", pp_version(), pp_library_path()); return 0; }\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := version + " " + filepath.Join(lib, "libpolyproc.so"); string(out) != want {
		t.Errorf("the library says %q, want %q", out, want)
	}
}

// The status codes are for ever: what a released program was compiled with must keep its meaning.
func TestStatusCodesKeepTheirNumbers(t *testing.T) {
	want := map[string]string{
		"OK": "0", "ERR_INVALID": "-1", "ERR_HANDLE": "-2", "ERR_NOMEM": "-3", "ERR_TIMEOUT": "-4", "ERR_INTERRUPTED": "-5",
		"ERR_CLOSED": "-6", "ERR_STATE": "-7", "ERR_WORKER_LOST": "-8", "ERR_START": "-9", "ERR_INIT": "-10",
		"ERR_CANCELLED": "-11", "ERR_TASK": "-12", "ERR_NOT_FOUND": "-13", "ERR_EXISTS": "-14", "ERR_TOO_BIG": "-15",
		"ERR_CORRUPT": "-16", "ERR_UNSUPPORTED": "-17", "ERR_FORKED": "-18", "ERR_ENGINE": "-19", "ERR_SYSTEM": "-20",
		"ERR_PANIC": "-21", "ERR_OWNER_DIED": "-22", "ERR_EMPTY": "-23", "ERR_FULL": "-24", "ERR_BROKEN": "-25", "ERR_EOF": "-26",
		"ERR_PERMISSION": "-27",
	}
	found := map[string]string{}
	for _, m := range regexp.MustCompile(`X\((OK|ERR_\w+), (-?\d+),`).FindAllStringSubmatch(read(t, header), -1) {
		found[m[1]] = m[2]
	}
	for name, number := range want {
		if found[name] != number {
			t.Errorf("PP_%s is %q, was %s", name, found[name], number)
		}
	}
}
