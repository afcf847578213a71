// Command capi is the engine of libpolyproc: built with -buildmode=c-shared it is libpolyproc-engine.so, the Go half of the C
// interface. The C half, capi/front, has the public functions; it loads this library on first need and calls through a table.
//
// A call: pp_pool_submit (front/stubs.c) -> pp__go_pool_submit (pool.go here: decode) -> core/pool (work) -> encode -> status.
// There is one file per noun, and no logic in any. This is the only package with import "C".
package main

// #cgo CFLAGS: -std=gnu11 -Wall -Wextra -I${SRCDIR}/../include -I${SRCDIR}/front
// #include "engine.h"
import "C"

import "time"

func main() {}

// pp__go_ready is the first call after the load. It lets the runtime open its descriptors now, so that
// the C half finds out which they are.
//
//export pp__go_ready
func pp__go_ready() {
	time.AfterFunc(time.Hour, func() {}).Stop() // the first timer opens the poller
}
