// Demo-go is the demo in Go: parse every file of the Go distribution with go/parser.
//
// Once in this process and once in a pool, with the same totals both ways, or it exits with 1. Then a worker is crashed on
// purpose: that costs one task.
//
//	go run ./tests/demo/go [-workers n] [-root directory]
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/polyproc/polyproc/core/pool"
)

// A function is one of the largest.
type function struct {
	Lines      int
	Name, Path string
}

// counts is what is counted in one file, or in all. Largest holds the five largest functions, largest first.
type counts struct {
	Lines, Functions, Types, Unparsable int
	Largest                             []function
}

// The tasks. A worker is this program, executed again: functions are known to both by their names.
var (
	parse = pool.Register("parse", func(_ context.Context, path string) (counts, error) {
		return parseFile(path)
	})
	parseOrCrash = pool.Register("parseOrCrash", func(_ context.Context, path string) (counts, error) {
		if path == "" { // what the kernel does to the largest process when memory runs out
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return parseFile(path)
	})
)

func parseFile(path string) (counts, error) {
	source, err := os.ReadFile(path)
	if err != nil {
		return counts{}, err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
	if err != nil { // testdata of the parser and the compiler
		return counts{Unparsable: 1}, nil
	}
	c := counts{Lines: set.File(file.Pos()).LineCount()}
	for _, declaration := range file.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			c.Functions++
			// Lines of the file, whatever //line directives say.
			lines := set.PositionFor(d.End(), false).Line - set.PositionFor(d.Pos(), false).Line + 1
			c.Largest = append(c.Largest, function{lines, d.Name.Name, path})
		case *ast.GenDecl:
			if d.Tok == token.TYPE {
				c.Types += len(d.Specs)
			}
		}
	}
	c.Largest = largest(c.Largest)
	return c, nil
}

func largest(all []function) []function {
	slices.SortFunc(all, func(a, b function) int {
		return cmp.Or(cmp.Compare(b.Lines, a.Lines), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Path, b.Path))
	})
	return all[:min(5, len(all))]
}

func total(files []counts) counts {
	var sum counts
	for _, c := range files {
		sum.Lines += c.Lines
		sum.Functions += c.Functions
		sum.Types += c.Types
		sum.Unparsable += c.Unparsable
		sum.Largest = append(sum.Largest, c.Largest...)
	}
	sum.Largest = largest(sum.Largest)
	return sum
}

func main() {
	pool.Init() // in a worker this call never returns
	log.SetFlags(0)
	workers := flag.Int("workers", runtime.NumCPU(), "how many processes")
	root := flag.String("root", filepath.Join(build.Default.GOROOT, "src"), "where the Go files are")
	flag.Parse()
	if err := run(context.Background(), *workers, *root); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, workers int, root string) error {
	var paths []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && strings.HasSuffix(path, ".go") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(paths) < 100 {
		return fmt.Errorf("only %d Go files in %s (-root)", len(paths), root)
	}
	for _, path := range paths { // from the disk once, for both ways alike
		if _, err := os.ReadFile(path); err != nil {
			return err
		}
	}

	start := time.Now()
	one := make([]counts, len(paths))
	for i, path := range paths {
		if one[i], err = parseFile(path); err != nil {
			return err
		}
	}
	sequential := total(one)
	sequentialTime := time.Since(start)

	p, err := pool.Open(pool.Options{Workers: workers})
	if err != nil {
		return err
	}
	defer p.Close()
	// One small map first: the time below is that of the work, not of starting processes.
	if _, err := pool.Map(ctx, p, parse, paths[:workers]); err != nil {
		return err
	}
	start = time.Now()
	many, err := pool.Map(ctx, p, parse, paths)
	if err != nil {
		return err
	}
	parallel := total(many)
	parallelTime := time.Since(start)

	fmt.Printf("%d files, %d lines, %d functions, %d types, %d files that do not parse; the largest functions:\n",
		len(paths), sequential.Lines, sequential.Functions, sequential.Types, sequential.Unparsable)
	for _, f := range sequential.Largest {
		short, err := filepath.Rel(root, f.Path)
		if err != nil {
			return err
		}
		fmt.Printf("  %5d lines  %s  %s\n", f.Lines, f.Name, short)
	}
	fmt.Printf("sequential %.2f s, parallel %.2f s: %.2f times as fast\n",
		sequentialTime.Seconds(), parallelTime.Seconds(), sequentialTime.Seconds()/parallelTime.Seconds())
	fmt.Printf("worker pids %v, parent %d\n", p.PIDs(), os.Getpid())
	if !reflect.DeepEqual(sequential, parallel) {
		return fmt.Errorf("the totals differ: %+v and %+v", sequential, parallel)
	}
	fmt.Println("the totals are the same both ways")

	if err := crash(ctx, p, paths[:99]); err != nil {
		return err
	}
	return p.Shutdown(ctx)
}

// crash shows what it costs when one task of a hundred crashes.
func crash(ctx context.Context, p *pool.Pool, paths []string) error {
	some := slices.Insert(slices.Clone(paths), len(paths)/2, "")
	var tasks []*pool.Task[counts]
	for _, path := range some {
		task, err := pool.Submit(ctx, p, parseOrCrash, path)
		if err != nil {
			return err
		}
		tasks = append(tasks, task)
	}
	good, lost := 0, []error(nil)
	for i, task := range tasks {
		got, err := task.Wait(ctx)
		var worker *pool.WorkerLostError
		if errors.As(err, &worker) {
			lost = append(lost, err)
			continue
		}
		if err != nil {
			return err
		}
		want, err := parseFile(some[i])
		if err != nil {
			return err
		}
		if reflect.DeepEqual(got, want) {
			good++
		}
	}
	fmt.Printf("a crash on purpose among %d tasks: %d results, %d lost %v\n", len(some), good, len(lost), lost)
	if good != len(some)-1 || len(lost) != 1 {
		return errors.New("a crash must cost one task")
	}
	again, err := pool.Map(ctx, p, parse, paths)
	if err != nil {
		return err
	}
	if len(again) != len(paths) {
		return errors.New("the pool lost tasks after the crash")
	}
	return nil
}
