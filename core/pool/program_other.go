//go:build !linux

package pool

import "github.com/polyproc/polyproc/shm"

func lockProgram(*shm.Segment) {}

func watchProgram(*shm.Segment, int) {}
