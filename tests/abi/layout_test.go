package abi

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What lies in shared memory of a pool is described twice: capi/front/lane.h for C, a layout file in Go. Both are read here and
// compared, number by number and offset by offset. All else is described once: *_layout.gen.h are generated.

// layout is one header and the Go package that says the same.
type layout struct {
	header    string
	dir       string
	structs   map[string]string // of Go, and their names in the header
	constants map[string]string // of Go, and what they are in the header
}

var layouts = map[string]layout{
	"pool": {"lane.h", "core/pool", poolStructs, poolConstants},
}

var poolStructs = map[string]string{
	"bell":       "pp__bell",
	"module":     "pp__module",
	"board":      "pp__board",
	"laneHeader": "pp__lane",
	"taskHead":   "pp__task_head",
	"resultHead": "pp__result_head",
	"bulkRef":    "pp__bulk_ref",
	"taskRange":  "pp__task_range",
	"span":       "pp__span",
	"spanOut":    "pp__span_out",
}

var poolConstants = map[string]string{
	"magic":          "PP__MAGIC",
	"abiVersion":     "PP__ABI",
	"boardSize":      "PP__BOARD_SIZE",
	"laneHead":       "PP__LANE_HEAD",
	"maxLanes":       "PP__MAX_LANES",
	"maxModules":     "PP__MODULES",
	"maxSlots":       "PP__SLOTS",
	"sliceMillis":    "PP__SLICE_MS",
	"kindTask":       "PP__TASK",
	"kindResult":     "PP__RESULT",
	"kindReady":      "PP__READY",
	"kindInitFailed": "PP__INIT_FAILED",
	"flagBulk":       "PP__BULK",
	"flagRange":      "PP__RANGE",
	"flagSpan":       "PP__SPAN",
	"bellSleeps":     "PP__BELL_SLEEPS",
	"bellLooks":      "PP__BELL_LOOKS",
	"taskReady":      "PP__T_READY",
	"taskTaken":      "PP__T_TAKEN",
	"taskRevoked":    "PP__T_REVOKED",
	"laneFree":       "PP__L_FREE",
	"laneOpen":       "PP__L_OPEN",
	"laneClosing":    "PP__L_CLOSING",
	"sizeTaskHead":   "sizeof(pp__task_head)",
	"sizeResultHead": "sizeof(pp__result_head)",
	"sizeBulkRef":    "sizeof(pp__bulk_ref)",
	"sizeTaskRange":  "sizeof(pp__task_range)",
	"sizeSpan":       "sizeof(pp__span)",
	"sizeSpanOut":    "sizeof(pp__span_out)",
	"outMaxDefault":  "0xffffffff",
}

// check type-checks a package as it is for linux/amd64, bodies of functions left out.
func check(t *testing.T, room string) *types.Package {
	t.Helper()
	dir := "../../" + room
	set := token.NewFileSet()
	var files []*ast.File
	out, err := exec.Command("go", "list", "-f", `{{join .GoFiles "\n"}}`, dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		file, err := parser.ParseFile(set, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	config := types.Config{
		IgnoreFuncBodies: true,
		Importer:         importer.ForCompiler(set, "source", nil),
		Sizes:            types.SizesFor("gc", "amd64"),
	}
	pkg, err := config.Check("github.com/polyproc/polyproc/"+room, set, files, nil)
	if err != nil {
		t.Fatal(err)
	}
	return pkg
}

// snake turns buildIDSize into build_id_size.
func snake(name string) string {
	name = regexp.MustCompile(`([a-z0-9])([A-Z])`).ReplaceAllString(name, "${1}_${2}")
	return strings.ToLower(regexp.MustCompile(`([A-Z])([A-Z][a-z])`).ReplaceAllString(name, "${1}_${2}"))
}

func TestLayouts(t *testing.T) {
	for name, l := range layouts {
		t.Run(name, func(t *testing.T) { compare(t, l) })
	}
}

func compare(t *testing.T, l layout) {
	scope := check(t, l.dir).Scope()
	sizes := types.SizesFor("gc", "amd64")

	// The same list of questions for both: Go answers here, C by a program.
	var program strings.Builder
	fmt.Fprintf(&program, "#include <stdio.h>\n#include <inttypes.h>\n#include <polyproc.h>\n#include \"%s\"\nint main(void)\n{\n", l.header)
	var labels []string
	var answers []uint64
	ask := func(label, c string, answer uint64) {
		labels, answers = append(labels, label+" ("+c+")"), append(answers, answer)
		fmt.Fprintf(&program, "\tprintf(\"%%\" PRIu64 \"\\n\", (uint64_t)(%s));\n", c)
	}

	for name, c := range l.constants {
		object, ok := scope.Lookup(name).(*types.Const)
		if !ok {
			t.Errorf("%s has no constant %s", l.dir, name)
			continue
		}
		value, exact := constant.Uint64Val(constant.ToInt(object.Val()))
		if !exact {
			t.Errorf("%s is %s", name, object.Val())
		}
		ask(name, c, value)
	}
	for name, c := range l.structs {
		object := scope.Lookup(name)
		if object == nil {
			t.Errorf("%s has no type %s", l.dir, name)
			continue
		}
		fieldsOf, ok := object.Type().Underlying().(*types.Struct)
		if !ok {
			t.Errorf("%s is no struct", name)
			continue
		}
		ask("size of "+name, "sizeof("+c+")", uint64(sizes.Sizeof(fieldsOf)))
		var fields []*types.Var
		for field := range fieldsOf.Fields() {
			fields = append(fields, field)
		}
		for i, offset := range sizes.Offsetsof(fields) {
			if fields[i].Name() == "_" {
				continue
			}
			field := snake(fields[i].Name())
			ask(name+"."+fields[i].Name(), "offsetof("+c+", "+field+")", uint64(offset))
			ask("size of "+name+"."+fields[i].Name(), "sizeof((("+c+" *)0)->"+field+")", uint64(sizes.Sizeof(fields[i].Type())))
		}
	}
	program.WriteString("\treturn 0;\n}\n")

	binary := filepath.Join(t.TempDir(), "layout")
	cmd := exec.Command("gcc", "-x", "c", "-std=gnu11", "-I", "../../include", "-I", "../../capi/front", "-o", binary, "-")
	cmd.Stdin = strings.NewReader(program.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(out))
	if len(lines) != len(answers) {
		t.Fatalf("%d answers of C to %d questions", len(lines), len(answers))
	}
	for i, line := range lines {
		if line != fmt.Sprint(answers[i]) {
			t.Errorf("%s: %d in Go, %s in C", labels[i], answers[i], line)
		}
	}
	t.Logf("%d numbers compared", len(lines))
}
