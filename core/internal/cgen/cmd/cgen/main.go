// Command cgen writes the C of the steps of an object: see package cgen. It runs in the directory of a package, by go:generate.
//
//	cgen -prefix pp__queue -o ../../capi/front/queue_steps.gen.h [-after layout.go] [-include queue.h] chain.go ...
//
// With CGEN_CHECK set it writes nothing, and fails if the file is not what it would write.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/polyproc/polyproc/core/internal/cgen"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var (
		prefix  = flag.String("prefix", "", "of names in C")
		out     = flag.String("o", "", "the file to write")
		after   = flag.String("after", "", "files of the package that C has already, with commas between them")
		include = flag.String("include", "", "headers, with commas between them")
	)
	flag.Parse()
	if *prefix == "" || *out == "" || flag.NArg() == 0 {
		return fmt.Errorf("cgen: -prefix, -o and files, please")
	}
	p, err := cgen.Load(".")
	if err != nil {
		return err
	}
	split := func(s string) []string {
		if s == "" {
			return nil
		}
		return strings.Split(s, ",")
	}
	name := strings.NewReplacer(".gen.h", "", ".h", "").Replace(filepath.Base(*out))
	text, err := cgen.Generate(p, cgen.Config{
		Prefix:  *prefix,
		Files:   flag.Args(),
		After:   split(*after),
		Guard:   "PP_" + strings.ToUpper(name) + "_GEN_H",
		Include: split(*include),
	})
	if err != nil {
		return err
	}
	if os.Getenv("CGEN_CHECK") == "" {
		return os.WriteFile(*out, text, 0o644)
	}
	there, err := os.ReadFile(*out)
	if err != nil {
		return err
	}
	if !bytes.Equal(there, text) {
		return fmt.Errorf("%s is out of date: run `make generate`", *out)
	}
	return nil
}
