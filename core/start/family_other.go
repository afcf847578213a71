//go:build !linux

package start

import (
	"os/exec"

	"github.com/polyproc/polyproc/shm"
)

// InheritFamily has the program that cmd will start be of this process's family. There are families on Linux only: elsewhere it
// returns [shm.ErrUnsupported].
func InheritFamily(*exec.Cmd) error { return shm.ErrUnsupported }
