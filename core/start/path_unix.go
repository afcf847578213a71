//go:build unix

package start

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lookPath finds a program in the PATH of env. Relative and empty entries are passed over, so that what
// lies in a working directory is never run by accident (os/exec refuses those, too).
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/bin:/usr/bin" // as execvp does without a PATH
	for _, variable := range env {
		if value, ok := strings.CutPrefix(variable, "PATH="); ok {
			path = value
		}
	}
	denied := false
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err != nil || info.IsDir() {
			continue
		}
		if unix.Access(file, unix.X_OK) == nil {
			return file, nil
		}
		denied = true
	}
	if denied {
		return "", fmt.Errorf("start: %s in PATH: %w", name, syscall.EACCES)
	}
	return "", fmt.Errorf("start: %q in PATH: %w", name, ErrNotFound)
}

// envKey returns what makes a variable's name unique.
func envKey(name string) string { return name }

// failure says what an errno of fork or exec meant.
func failure(s *Spec, err error) error {
	if s.Dir != "" && (err == syscall.ENOENT || err == syscall.ENOTDIR || err == syscall.EACCES) {
		if info, statErr := os.Stat(s.Dir); statErr != nil {
			return fmt.Errorf("start: directory %s: %w", s.Dir, errnoOf(statErr))
		} else if !info.IsDir() {
			return fmt.Errorf("start: directory %s: %w", s.Dir, syscall.ENOTDIR)
		}
	}
	switch err {
	case syscall.ENOENT:
		path := s.Path
		if !filepath.IsAbs(path) {
			path = filepath.Join(s.Dir, path)
		}
		if _, statErr := os.Stat(path); statErr == nil {
			return fmt.Errorf("start: the interpreter or loader that %s asks for: %w", s.Path, err)
		}
		return fmt.Errorf("start: %s: %w", s.Path, ErrNotFound)
	case syscall.E2BIG:
		bytes := 0
		for _, list := range [][]string{s.Args, s.Env} {
			for _, text := range list {
				bytes += len(text) + 1
			}
		}
		return fmt.Errorf("start: %d bytes of arguments and environment are too many: %w", bytes, err)
	}
	return fmt.Errorf("start: %s: %w", s.Path, explain(err))
}

// errnoOf returns the errno inside an error of package os.
func errnoOf(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

func signalName(sig syscall.Signal) string { return unix.SignalName(sig) }
