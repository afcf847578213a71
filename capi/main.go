// Command capi is the engine of libpolyproc: built with -buildmode=c-shared it is libpolyproc-engine.so, the Go half of the C
// interface. The C half, capi/front, has the public functions; it loads this library on first need and calls through a table.
//
// A call: pp_pool_submit (front/stubs.c) -> pp__go_pool_submit (pool.go here: decode) -> core/pool (work) -> encode -> status.
// There is one file per noun, and no logic in any. This is the only package with import "C".
package main

// #cgo CFLAGS: -std=gnu11 -Wall -Wextra -I${SRCDIR}/../include -I${SRCDIR}/front
// #include "engine.h"
import "C"

import (
	"runtime"
	"sync"
	"time"
)

func main() {}

// reserveAfter is when the threads in reserve are made: not while the program waits for its first pool. That they can be made has been
// tried just before.
const reserveAfter = 50 * time.Millisecond

// pp__go_ready is the first call after the load. It lets the runtime open its descriptors now, so that the C half finds out which they
// are, and will have it make threads, which it keeps, parked, for when it needs some: a thread that cannot be made later would abort
// the program.
//
//export pp__go_ready
func pp__go_ready() {
	time.AfterFunc(reserveAfter, func() { // the first timer opens the poller
		if C.pp__threads_possible(C.PP__THREADS_RESERVED) == 0 {
			reserve(C.PP__THREADS_RESERVED)
		}
	})
}

// reserve has the runtime make n threads: so many goroutines have one each at the same time.
func reserve(n int) {
	var all sync.WaitGroup
	all.Add(n)
	for range n {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		}()
	}
}
