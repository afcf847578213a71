// Package layering proves that imports point downwards only: shm <- core <- capi, and that cgo stays in capi. The rules
// hold for every platform that the packages compile on.
package layering

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	module = "github.com/polyproc/polyproc"
	purego = "github.com/ebitengine/purego"
)

// A pkg is what go list tells of a package. Deps are complete; test imports are direct.
type pkg struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
	CgoFiles     []string
	GoFiles      []string
}

func list(t *testing.T, goos string, patterns ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json"}, patterns...)...)
	cmd.Dir = "../.."
	// With cgo on, files that would use it are listed as such instead of being left out in silence.
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", patterns, err)
	}
	var pkgs []pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatalf("go list %v: no package", patterns)
	}
	return pkgs
}

func under(path, room string) bool {
	return path == module+"/"+room || strings.HasPrefix(path, module+"/"+room+"/")
}

func TestImportsPointDownwards(t *testing.T) {
	// For a room, the rooms that it may use.
	rooms := map[string][]string{
		"shm":  {"shm"},
		"core": {"core", "shm"},
		"capi": {"capi", "core", "shm"},
	}
	for _, goos := range []string{"linux", "darwin", "freebsd", "windows"} {
		for room, allowed := range rooms {
			if room == "capi" && goos != "linux" {
				continue // needs a C compiler for that platform
			}
			for _, p := range list(t, goos, "./"+room+"/...") {
				deps := append(append(append([]string{}, p.Deps...), p.TestImports...), p.XTestImports...)
			next:
				for _, dep := range deps {
					if dep != module && !strings.HasPrefix(dep, module+"/") {
						continue
					}
					for _, a := range allowed {
						if under(dep, a) {
							continue next
						}
					}
					t.Errorf("%s: %s imports %s; %s may import %v", goos, p.ImportPath, dep, room, allowed)
				}
			}
		}
	}
}

func TestCgoOnlyInCapi(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "freebsd", "windows"} {
		for _, p := range list(t, goos, "./shm/...", "./core/...") {
			if len(p.CgoFiles) > 0 {
				t.Errorf("%s: %s uses cgo in %v", goos, p.ImportPath, p.CgoFiles)
			}
		}
	}
	for _, p := range list(t, "linux", "./...") {
		if len(p.CgoFiles) > 0 && !under(p.ImportPath, "capi") {
			t.Errorf("%s uses cgo in %v", p.ImportPath, p.CgoFiles)
		}
	}
}

// On Linux a program that imports purego is dynamic even with CGO_ENABLED=0: only core/cload, which loads C libraries,
// may cost its users that. On darwin it is the way to shm_open.
func TestPuregoStaysInItsPlace(t *testing.T) {
	for _, p := range list(t, "linux", "./shm/...", "./core/...") {
		if under(p.ImportPath, "core/cload") {
			continue
		}
		loads := false
		for _, dep := range p.Deps {
			loads = loads || under(dep, "core/cload")
		}
		for _, dep := range p.Deps {
			if dep == purego && !loads {
				t.Errorf("%s needs purego", p.ImportPath)
			}
		}
	}
	err := filepath.WalkDir("../..", func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "build") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_darwin.go") ||
			strings.HasSuffix(filepath.Dir(path), "core/cload") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), "\t\""+purego+"\"") || strings.Contains(string(text), "import \""+purego+"\"") {
			t.Errorf("%s imports purego: only core/cload and *_darwin.go may", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What importers get must be as static as Go programs are: the Go demo is such an importer.
func TestImportersAreStatic(t *testing.T) {
	program := filepath.Join(t.TempDir(), "demo")
	cmd := exec.Command("go", "build", "-o", program, "./tests/demo/go")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("a CGO_ENABLED=0 program that imports core/pool needs a dynamic linker")
		}
	}
}
