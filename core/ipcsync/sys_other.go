//go:build !linux

package ipcsync

import (
	"time"

	"github.com/polyproc/polyproc/shm"
)

// There are no heaps here, and so no objects: nothing of this is called.

var started = time.Now()

func now() uint64 { return uint64(time.Since(started)) }

func departed(h *shm.Heap, o shm.Owner) bool { return h.Gone(o) }
