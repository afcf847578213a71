//go:build !linux

package pool

import "time"

// monotonic is a clock that all processes share, ns. It is the wall clock here, and goes astray when that is set.
func monotonic() uint64 { return uint64(time.Now().UnixNano()) }
