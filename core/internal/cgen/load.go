package cgen

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Package is a type-checked Go package, with comments.
type Package struct {
	fset  *token.FileSet
	files map[string]*ast.File // by base name
	info  *types.Info
	types *types.Package
}

// list returns what "go list" prints in dir, for linux/amd64.
func list(dir string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	return out, nil
}

// exports finds what the compiler has said of the packages that the patterns need, as linux/amd64 has them.
func exports(dir string, patterns ...string) (map[string]string, error) {
	out, err := list(dir, append([]string{"-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}"}, patterns...)...)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if path, file, ok := strings.Cut(lines.Text(), " "); ok && file != "" {
			found[path] = file
		}
	}
	return found, nil
}

// Load reads and type-checks the package in dir, as linux/amd64 has it.
func Load(dir string) (*Package, error) {
	out, err := list(dir, "-f", `{{.ImportPath}}{{range .GoFiles}} {{.}}{{end}}`, ".")
	if err != nil {
		return nil, err
	}
	words := strings.Fields(string(out))
	texts := map[string][]byte{}
	for _, name := range words[1:] {
		if texts[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	found, err := exports(dir, ".")
	if err != nil {
		return nil, err
	}
	return check(words[0], texts, found)
}

// check parses and type-checks a package of these files.
func check(path string, texts map[string][]byte, exports map[string]string) (*Package, error) {
	p := &Package{fset: token.NewFileSet(), files: map[string]*ast.File{}}
	var files []*ast.File
	for name, text := range texts {
		f, err := parser.ParseFile(p.fset, name, text, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		p.files[name] = f
		files = append(files, f)
	}
	lookup := func(path string) (io.ReadCloser, error) {
		file, ok := exports[path]
		if !ok {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(file)
	}
	p.info = &types.Info{
		Types:      map[ast.Expr]types.TypeAndValue{},
		Defs:       map[*ast.Ident]types.Object{},
		Uses:       map[*ast.Ident]types.Object{},
		Selections: map[*ast.SelectorExpr]*types.Selection{},
		Scopes:     map[ast.Node]*types.Scope{},
	}
	var failed []error
	config := types.Config{
		Importer: importer.ForCompiler(p.fset, "gc", lookup),
		Sizes:    sizes,
		Error:    func(err error) { failed = append(failed, err) },
	}
	p.types, _ = config.Check(path, p.fset, files, p.info)
	return p, errors.Join(failed...)
}

var sizes = types.SizesFor("gc", "amd64")
