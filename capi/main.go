// Command capi is the engine of libpolyproc: built with -buildmode=c-shared it is libpolyproc-engine.so, the Go half of the C
// interface. The C half, capi/front, has the public functions; it loads this library on first need and calls through a table.
//
// A call: pp_pool_submit (front/stubs.c) -> pp__go_pool_submit (pool.go here: decode) -> core/pool (work) -> encode -> status.
// There is one file per noun, and no logic in any. This is the only package with import "C".
package main

// #cgo CFLAGS: -std=gnu11 -Wall -Wextra -I${SRCDIR}/../include -I${SRCDIR}/front
import "C"

func main() {}
