package start

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// passed are descriptors of the family for exec.Cmd.ExtraFiles: of all commands, open as long as this process lives.
var passed struct {
	sync.Mutex
	files []*os.File
}

// InheritFamily has the program that cmd will start be of this process's family, as [Spec.InheritFamily] does: it appends two files to
// cmd.ExtraFiles and a variable to cmd.Env. Call it before cmd.Start, and leave the order of ExtraFiles as it is. Errors: those of
// [shm.Inherit].
func InheritFamily(cmd *exec.Cmd) error {
	fds, env, err := shm.Inherit()
	if err != nil {
		return err
	}
	passed.Lock()
	defer passed.Unlock()
	for len(passed.files) < len(fds) {
		fd, err := unix.FcntlInt(uintptr(fds[len(passed.files)]), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("start: the family's descriptors: %w", explain(err))
		}
		passed.files = append(passed.files, os.NewFile(uintptr(fd), shm.FamilyVar))
	}
	// The variable is "NAME=heap,depot,identity". exec.Cmd makes descriptor 3+i of ExtraFiles[i].
	identity := env[strings.LastIndexByte(env, ',')+1:]
	first := 3 + len(cmd.ExtraFiles)
	cmd.Env = append(slices.Clip(cmd.Environ()), fmt.Sprintf("%s=%d,%d,%s", shm.FamilyVar, first, first+1, identity))
	cmd.ExtraFiles = append(slices.Clip(cmd.ExtraFiles), passed.files...)
	return nil
}
