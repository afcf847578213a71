package cgen

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/internal/cgen/testdata/subset"
)

var update = flag.Bool("update", false, "write testdata/subset.gen.h")

// generateSubset is the C of testdata/subset, where each construct occurs.
func generateSubset(t *testing.T) []byte {
	t.Helper()
	p, err := Load("testdata/subset")
	require.NoError(t, err)
	text, err := Generate(p, Config{Prefix: "pp__t", Files: []string{"subset.go"}, Guard: "SUBSET_GEN_H", Include: []string{"mem.h"}})
	require.NoError(t, err)
	return text
}

func TestSubsetIsTranslatedToThis(t *testing.T) {
	text := generateSubset(t)
	if *update {
		require.NoError(t, os.WriteFile("testdata/subset.gen.h", text, 0o644))
	}
	want, err := os.ReadFile("testdata/subset.gen.h")
	require.NoError(t, err)
	require.Equal(t, string(want), string(text))
}

func TestGeneratedCComputesWhatGoComputes(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("there is no gcc")
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "subset.gen.h"), generateSubset(t), 0o644))
	for _, level := range []string{"-O0", "-O3"} {
		program := filepath.Join(dir, "main"+level)
		cmd := exec.Command(gcc, "-std=gnu11", level, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover",
			"-I", dir, "-I", "../../../capi/front", "-o", program, "testdata/main.c")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		out, err = exec.Command(program).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Equal(t, subset.Run(), string(out))
	}
}

// memExports is what the compiler has said of package mem.
var memExports = sync.OnceValues(func() (map[string]string, error) { return exports(".", memPath, "fmt") })

// generate translates the text of a file.
func generate(t *testing.T, text string) (string, error) {
	t.Helper()
	found, err := memExports()
	require.NoError(t, err)
	p, err := check("example.org/steps", map[string][]byte{"steps.go": []byte(text)}, found)
	require.NoError(t, err)
	out, err := Generate(p, Config{Prefix: "pp__t", Files: []string{"steps.go"}, Guard: "G"})
	return string(out), err
}

// What lies outside the subset, and the line (of the text after a preamble) where that is said.
var refusals = []struct {
	name, text string
	line       int
	says       string
}{
	{"int", "func f(a int) {}", 1, "the type int"},
	{"float", "func f(a float64) {}", 1, "the type float64"},
	{"string", "func f(a string) {}", 1, "the type string"},
	{"slice", "func f(a []uint32) {}", 1, "the type []uint32"},
	{"map", "func f(a map[uint32]bool) {}", 1, "the type map[uint32]bool"},
	{"interface", "func f(a error) {}", 1, "the type"},
	{"channel", "func f(a chan bool) {}", 1, "the type chan bool"},
	{"function type", "func f(a func()) {}", 1, "the type func()"},
	{"two results", "func f() (uint32, uint32) {\n\treturn 1, 2\n}", 1, "more than one result"},
	{"named result", "func f() (n uint32) {\n\treturn 1\n}", 1, "a named result"},
	{"variadic", "func f(a ...uint32) {}", 1, "a variadic function"},
	{"generic function", "func f[T any](a *T) {}", 1, "a generic function"},
	{"generic type", "type t[T any] struct{ a T }", 1, "a generic type"},
	{"alias", "type t = uint32", 1, "an alias"},
	{"embedded", "type t struct{ a }\ntype a struct{ n uint32 }", 1, "an embedded field"},
	{"order of types", "type t struct{ a a }\ntype a struct{ n uint32 }", 1, "declared further down"},
	{"package variable", "var n uint32", 1, "a package variable"},
	{"float constant", "const f = 1.5", 1, "no integer"},
	{"closure", "func f() {\n\tg := func() {}\n\tg()\n}", 2, "the type func()"},
	{"go", "func g() {}\nfunc f() {\n\tgo g()\n}", 3, "go"},
	{"defer", "func g() {}\nfunc f() {\n\tdefer g()\n}", 3, "defer"},
	{"goto", "func f() {\nagain:\n\tgoto again\n}", 2, "a label"},
	{"break with label", "func f() {\nouter:\n\tfor {\n\t\tbreak outer\n\t}\n}", 2, "a label"},
	{"fallthrough", "func f(a uint32) {\n\tswitch a {\n\tcase 1:\n\t\tfallthrough\n\tdefault:\n\t}\n}", 4, "fallthrough"},
	{"init of if", "func f(a uint32) {\n\tif b := a; b > 1 {\n\t}\n}", 2, "an init statement of if"},
	{"init of switch", "func f(a uint32) {\n\tswitch b := a; b {\n\t}\n}", 2, "an init statement of switch"},
	{"case not constant", "func f(a, b uint32) {\n\tswitch a {\n\tcase b:\n\t}\n}", 3, "a case that is no constant"},
	{"default first", "func f(a uint32) {\n\tswitch a {\n\tdefault:\n\tcase 1:\n\t}\n}", 3, "default that is not last"},
	{"break in a chain", "func f(a uint32) {\n\tswitch {\n\tcase a > 1:\n\t\tbreak\n\t}\n}", 4, "break in a switch without a tag"},
	{"two assignments", "func f(a, b uint32) {\n\ta, b = b, a\n}", 2, "more than one assignment"},
	{"two results used", "func g() (uint32, uint32)\nfunc f() {\n\ta, b := g()\n\t_ = a + b\n}", 3, "more than one result"},
	{"hidden name", "func f(a uint32) {\n\tif a > 1 {\n\t\ta := a\n\t\ta++\n\t}\n}", 3, "a hides another a"},
	{"C keyword", "func f(register uint32) {}", 1, "the name register"},
	{"range over a slice", "func f() {\n\tfor range \"abc\" {\n\t}\n}", 2, "range over anything but"},
	{"range over signed", "func f(n int32) {\n\tfor range n {\n\t}\n}", 2, "range over anything but"},
	{"range variable changed", "func f(n uint32) {\n\tfor i := range n {\n\t\ti++\n\t}\n}", 2, "i is changed in its loop"},
	{"range over an expression", "func f(n uint32) {\n\tfor range n + 1 {\n\t}\n}", 2, "a variable that keeps its value"},
	{"range over what changes", "func f(n uint32) {\n\tfor range n {\n\t\tn--\n\t}\n}", 2, "a variable that keeps its value"},
	{"signed arithmetic", "func f(a int32) int32 {\n\treturn a + 1\n}", 2, "arithmetic on int32"},
	{"narrow arithmetic", "func f(a uint8) uint8 {\n\treturn a << 1\n}", 2, "arithmetic on uint8"},
	{"signed increment", "func f(a int64) {\n\ta++\n}", 2, "arithmetic on int64"},
	{"shift by anything", "func f(a, b uint32) uint32 {\n\treturn a << b\n}", 2, "a shift count that may be 32 or more"},
	{"shift by too much", "func f(a, b uint32) uint32 {\n\treturn a << (b & 63)\n}", 2, "a shift count that may be 32 or more"},
	{"divisor", "func f(a, b uint32) uint32 {\n\treturn a / b\n}", 2, "a divisor that is no constant"},
	{"index", "type t struct{ a [4]uint32 }\nfunc f(p *t, i uint32) uint32 {\n\treturn p.a[i]\n}", 3, "an index that may be 4 or more"},
	{"index masked too far", "type t struct{ a [4]uint32 }\nfunc f(p *t, i uint32) uint32 {\n\treturn p.a[i&7]\n}", 3, "an index that may be 4 or more"},
	{"order of operands", "func f(p *uint64) bool {\n\treturn mem.Load64(p) == mem.Load64(p)\n}", 2, "two operands that call functions"},
	{"order of arguments", "func g(a, b uint64) {}\nfunc f(p *uint64) {\n\tg(mem.Load64(p), mem.Load64(p))\n}", 3, "two operands that call functions"},
	{"plain read", "//c:shared\ntype t struct{ a uint64 }\nfunc f(p *t) uint64 {\n\treturn p.a\n}", 4, "t.a is read or written without package mem"},
	{"plain write", "//c:shared\ntype t struct{ a uint64 }\nfunc f(p *t) {\n\tp.a = 1\n}", 4, "t.a is read or written without package mem"},
	{"plain element", "//c:shared\ntype t struct{ a [2]uint64 }\nfunc f(p *t) uint64 {\n\treturn p.a[1]\n}", 4, "t.a is read or written without package mem"},
	{"whole struct", "//c:shared\ntype t struct{ a uint64 }\nfunc f(p, q *t) {\n\t*p = *q\n}", 4, "t is read or written whole"},
	{"plain word", "type t struct{ p *uint64 }\nfunc f(t *t) uint64 {\n\treturn *t.p\n}", 3, "a word behind a pointer"},
	{"pointer in shared memory", "//c:shared\ntype t struct{ a *uint64 }", 2, "the field a of t"},
	{"bool in shared memory", "//c:shared\ntype t struct{ a bool }", 2, "the field a of t"},
	{"padding", "//c:shared\ntype t struct {\n\ta uint32\n\tb uint64\n}", 2, "padding before b"},
	{"padding at the end", "//c:shared\ntype t struct {\n\ta uint64\n\tb uint32\n}", 2, "padding at its end"},
	{"literal without names", "type t struct{ a uint32 }\nfunc f() t {\n\treturn t{1}\n}", 3, "a literal without the names"},
	{"address of a literal", "type t struct{ a uint32 }\nfunc f() *t {\n\treturn &t{a: 1}\n}", 3, "the address of a literal"},
	{"builtin", "func f(a, b uint32) uint32 {\n\treturn min(a, b)\n}", 2, "the builtin min"},
	{"another package", "func f() {\n\tfmt.Println()\n}", 2, "a call of fmt.Println"},
	{"pointer to integer", "func f(p *uint64) uint64 {\n\treturn uint64(uintptr(unsafe.Pointer(p)))\n}", 2, ""},
	{"function value", "func g() {}\nfunc f() bool {\n\th := g\n\th()\n\treturn true\n}", 3, ""},
	{"same name", "type a uint64\nfunc (x a) get() uint64 { return uint64(x) }\nfunc aGet() {}\nfunc f(x a) uint64 {\n\taGet()\n\treturn x.get()\n}", 3, "as is another function"},
	{"comment", "/* old */\nfunc f() {}", 1, "a comment of the other form"},
}

func TestWhatLiesOutsideIsRefusedWithItsLine(t *testing.T) {
	preamble := "package steps\n\nimport (\n\t\"fmt\"\n\t\"unsafe\"\n\n\t\"" + memPath + "\"\n)\n\n" +
		"var _ = fmt.Sprint\nvar _ unsafe.Pointer\nvar _ = mem.Load64\n\n"
	before := strings.Count(preamble, "\n")
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			_, err := generate(t, preamble+r.text)
			require.Error(t, err)
			var found []string
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				var refused *Error
				require.True(t, errors.As(e, &refused), "%v", e)
				require.Equal(t, "steps.go", refused.Pos.Filename)
				if strings.Contains(refused.Text, r.says) && refused.Pos.Line == before+r.line {
					return
				}
				if refused.Pos.Line > before { // the preamble's variables are refused too
					found = append(found, e.Error())
				}
			}
			require.Fail(t, "not refused as it should be", "%d: %s; but:\n%s", before+r.line, r.says, strings.Join(found, "\n"))
		})
	}
}

func TestSnake(t *testing.T) {
	for name, want := range map[string]string{
		"commitGet": "commit_get", "CAS64": "cas64", "LoadRelaxed64": "load_relaxed64", "q": "q", "PIDOf": "pid_of", "cellWordOf": "cell_word_of",
	} {
		require.Equal(t, want, snake(name))
	}
}

func TestPointersThatAreOnlyReadAreConst(t *testing.T) {
	text, err := generate(t, `package steps

import "`+memPath+`"

type t struct{ n uint32 }

func read(p *t) uint32 { return p.n }
func also(p *t) uint32 { return read(p) }
func write(p *t)       { p.n++ }
func through(p *t)     { write(p) }
func load(p *uint64) uint64 { return mem.Load64(p) }
func store(p *uint64)  { mem.Store64(p, 1) }
`)
	require.NoError(t, err)
	for _, want := range []string{
		"pp__t_read(const pp__t_t *p)", "pp__t_also(const pp__t_t *p)", "pp__t_write(pp__t_t *p)", "pp__t_through(pp__t_t *p)",
		"pp__t_load(const uint64_t *p)", "pp__t_store(uint64_t *p)",
	} {
		require.Contains(t, text, want)
	}
}
