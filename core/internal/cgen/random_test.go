package cgen

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// writer makes expressions of the subset at random.
type writer struct{ *rand.Rand }

func (w writer) pick(of ...string) string { return of[w.IntN(len(of))] }

// word is an expression of uint32 (bits 32) or uint64, or of types that are one.
func (w writer) word(bits, depth int) string {
	if depth == 0 {
		switch w.IntN(4) {
		case 0:
			if bits == 64 && w.IntN(3) == 0 {
				return w.pick("1<<40", "0xfedcba9876543210", "wide")
			}
			return w.pick("1", "7", "0x80000001", "4294967295", "small", "big", "big-small", "small<<3")
		default:
			if bits == 64 {
				return w.pick("a", "b")
			}
			return w.pick("c", "d")
		}
	}
	x, y := func() string { return w.word(bits, w.IntN(depth)) }, func() string { return w.word(bits, w.IntN(depth)) }
	variable := map[int][]string{32: {"c", "d"}, 64: {"a", "b"}}[bits]
	name := w.pick(variable...) // so that nothing is constant
	switch w.IntN(12) {
	case 0, 1:
		return fmt.Sprintf("(%s ^ %s) %s %s", x(), name, w.pick("+", "-", "*"), y())
	case 2:
		return fmt.Sprintf("%s %s (%s ^ %s) %s (%s)", name, w.pick("&", "|", "^", "&^"), x(), name, w.pick("&", "|", "^", "&^", "+", "-", "*"), y())
	case 3:
		return fmt.Sprintf("(%s + %s) %s %s", name, x(), w.pick("/", "%"), w.pick("3", "1000", "small"))
	case 4:
		return fmt.Sprintf("(%s | %s) %s (uint32(%s) & %d)", name, x(), w.pick("<<", ">>"), w.word(32, w.IntN(depth)), w.pick1(bits))
	case 5:
		return fmt.Sprintf("%s %s %d %s %s", name, w.pick("<<", ">>"), w.IntN(bits), w.pick("&", "|", "+", "-", "*"), x())
	case 6:
		return fmt.Sprintf("^(%s &^ %s)", x(), name)
	case 7:
		if bits == 64 {
			return fmt.Sprintf("uint64(%s ^ c)", w.word(32, w.IntN(depth)))
		}
		return fmt.Sprintf("uint32(%s ^ a)", w.word(64, w.IntN(depth)))
	case 8:
		if bits == 64 {
			return fmt.Sprintf("uint64(word(%s ^ b) >> 3)", x())
		}
		return fmt.Sprintf("uint32(uint16(%s ^ d))", x())
	case 9:
		return fmt.Sprintf("pick%d(%s, %s, %s)", bits, w.truth(depth-1), x(), y())
	case 10:
		return fmt.Sprintf("1 << (%s & 31) | %s", name, x())
	}
	return fmt.Sprintf("(%s) & (%s) | (%s)", x(), name, y())
}

func (w writer) pick1(bits int) int { return []int{bits - 1, 7, 15}[w.IntN(3)] }

// truth is an expression of bool.
func (w writer) truth(depth int) string {
	if depth <= 0 {
		return w.pick("a < b", "c >= d", "a == uint64(c)", "int32(c-d) >= 0", "b != 7", "int64(a-b) < 0")
	}
	switch w.IntN(5) {
	case 0:
		return fmt.Sprintf("%s && %s", w.truth(depth-1), w.truth(w.IntN(depth)))
	case 1:
		return fmt.Sprintf("(%s || %s)", w.truth(depth-1), w.truth(w.IntN(depth)))
	case 2:
		return fmt.Sprintf("!(%s)", w.truth(depth-1))
	case 3:
		return fmt.Sprintf("(%s) %s (%s)", w.truth(depth-1), w.pick("==", "!="), w.truth(w.IntN(depth)))
	}
	bits := 32 << w.IntN(2)
	return fmt.Sprintf("(%s ^ %s) %s %s", w.word(bits, depth-1), map[int]string{32: "d", 64: "b"}[bits], w.pick("<", "<=", ">", ">=", "==", "!="), w.word(bits, w.IntN(depth)))
}

// Expressions at random mean in C what they mean in Go, and gcc has nothing to say of them.
func TestRandomExpressionsMeanTheSame(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("there is no gcc")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := writer{rand.New(rand.NewPCG(seed, 1))}
	const functions = 300
	var steps, main, c strings.Builder
	steps.WriteString(`package main

const (
	small = 12
	big   = 0xfffffff0
	wide  = 1 << 33 //c:type uint64_t
)

type word uint64

func pick32(which bool, x, y uint32) uint32 {
	if which {
		return x
	}
	return y
}

func pick64(which bool, x, y uint64) uint64 {
	if which {
		return x
	}
	return y
}
`)
	main.WriteString("package main\n\nimport \"fmt\"\n\nfunc main() {\n\tnumbers := []uint64{0, 1, 12, 1 << 31, 1<<32 - 1, 1 << 63, 0x123456789abcdef}\n" +
		"\tfor _, a := range numbers {\n\t\tfor _, b := range numbers {\n\t\t\tc, d := uint32(a), uint32(b>>7)\n")
	c.WriteString("#include <stdio.h>\n#include \"steps.gen.h\"\nint main(void)\n{\n\tstatic const uint64_t numbers[] = " +
		"{0, 1, 12, 1ull << 31, (1ull << 32) - 1, 1ull << 63, 0x123456789abcdef};\n" +
		"\tfor (int i = 0; i < 7; i++)\n\t\tfor (int k = 0; k < 7; k++) {\n\t\t\tconst uint64_t a = numbers[i], b = numbers[k];\n" +
		"\t\t\tconst uint32_t c = (uint32_t)a, d = (uint32_t)(b >> 7);\n")
	for n := range functions {
		result, body := "uint64", "\treturn "+w.word(64, 4)
		switch n % 3 {
		case 1:
			result, body = "uint32", "\tx := c\n\tx "+w.pick("+=", "-=", "*=", "&=", "|=", "^=", "&^=")+" "+w.word(32, 4)+"\n\treturn x"
		case 2:
			result, body = "bool", "\treturn "+w.truth(4)
		}
		fmt.Fprintf(&steps, "\nfunc f%d(a, b uint64, c, d uint32) %s {\n%s\n}\n", n, result, body)
		fmt.Fprintf(&main, "\t\t\tfmt.Printf(\"%d %%v\\n\", f%d(a, b, c, d))\n", n, n)
		switch result {
		case "bool":
			fmt.Fprintf(&c, "\t\t\tprintf(\"%d %%s\\n\", pp__t_f%d(a, b, c, d) ? \"true\" : \"false\");\n", n, n)
		default:
			fmt.Fprintf(&c, "\t\t\tprintf(\"%d %%llu\\n\", (unsigned long long)pp__t_f%d(a, b, c, d));\n", n, n)
		}
	}
	main.WriteString("\t\t}\n\t}\n}\n")
	c.WriteString("\t\t}\n\treturn 0;\n}\n")
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	write("go.mod", "module example.org/random\n\ngo 1.26\n")
	write("steps.go", steps.String())
	write("main.go", main.String())
	write("main.c.txt", c.String())
	p, err := Load(dir)
	require.NoError(t, err)
	if os.Getenv("CGEN_KEEP") != "" {
		require.NoError(t, os.WriteFile(os.Getenv("CGEN_KEEP"), []byte(steps.String()), 0o644))
	}
	text, err := Generate(p, Config{Prefix: "pp__t", Files: []string{"steps.go"}, Guard: "G", Include: []string{"mem.h"}})
	require.NoError(t, err)
	write("steps.gen.h", string(text))
	cmd := exec.Command("go", "run", ".")
	cmd.Dir = dir
	want, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", want)
	cmd = exec.Command(gcc, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-type-limits", "-Werror", "-fsanitize=undefined",
		"-fno-sanitize-recover", "-I", dir, "-I", "../../../capi/front", "-o", filepath.Join(dir, "main"), "-x", "c", filepath.Join(dir, "main.c.txt"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	got, err := exec.Command(filepath.Join(dir, "main")).CombinedOutput()
	require.NoError(t, err, "%s", got)
	if string(got) == string(want) {
		return
	}
	for i, line := range strings.Split(string(want), "\n") {
		if other := strings.Split(string(got), "\n"); other[i] != line {
			name := "f" + strings.Fields(line)[0] + "("
			require.Fail(t, "they differ", "%s in Go, %s in C\n%s\n%s", line, other[i], around(steps.String(), name), around(string(text), name))
		}
	}
}

// around is the function with a name, as far as the next.
func around(text, name string) string {
	_, rest, _ := strings.Cut(text, name)
	return name + strings.SplitN(rest, "\n}", 2)[0]
}
