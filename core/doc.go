// Package core is the map of polyproc's engine: the packages below it hold the process model, in pure Go. It has no code.
//
//	start   one interface for starting processes; supervision of all children by one goroutine and their pidfds
//	pool    worker processes with a lane of shared memory each; functions registered by name; the byte level for other hosts
//
// They stand on package shm (segments, futex words, bells, rings, arenas, locks that are taken from the dead), which imports
// nothing of ours. Above them is capi, the C interface, the only package with import "C". Imports point downward only; tests/layering
// proves it.
//
// # Decisions, and where they depart from the first design
//
// The C library is two files. libpolyproc.so is C: the public functions, the whole data path of a worker, and the parent watch. It
// loads libpolyproc-engine.so, the Go half, at the first call that needs it, and calls through one table. So a worker, Python or C,
// never starts a Go runtime (it would cost some 5 ms, 6 threads and 4 MB each), a program that only looks does not either, and
// after a fork only the engine is to be replaced by a fresh copy, while the C half goes on.
//
// A pool's lane holds the state of each task in the task's own record (ready, taken, revoked), instead of telling what was started
// from the ring's head. That makes "cancel what has not started" and moving tasks between lanes exact, at the price of one
// uncontended compare-and-swap.
//
// A bell's waiters word is a flag that the ringer takes down, not a count: nothing leaks when a sleeper dies, and of a burst of
// results only the first makes a system call.
package core
