//go:build !linux

package queue

import "github.com/polyproc/polyproc/shm"

// There are no heaps here, and so no queues: New fails before anything of this is called.

type watch struct{}

func (r *raw) descriptor() (int, error) { return -1, shm.ErrUnsupported }

func (r *raw) settle() {}

func (r *raw) endWatch() {}

func (r *raw) closeWatch() {}
