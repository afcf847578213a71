// Package core is the map of polyproc's engine: the packages below it hold the process model, in pure Go. It has no code.
//
//	start   one interface for starting processes; supervision of all children by one goroutine and their pidfds
//	queue   queues of messages in the family's heap: bounded or not, named or not, with leases
//	ipcsync locks, semaphores, conditions, events, barriers there, which survive the death of a holder
//	pipe    connections: rings there, and a socket pair for waking and for the end
//	pool    worker processes with a lane of shared memory each; functions registered by name; the byte level for other hosts
//
// They stand on package shm (segments, futex words, bells, rings, arenas, locks that are taken from the dead), which imports
// nothing of ours. Above them is capi, the C interface, the only package with import "C". Imports point downward only; tests/layering
// proves it.
//
// # Closing
//
// One convention holds in all packages:
//
//	Close() error        releases what this process has: the handle of a queue, lock or pipe end; a pool with its workers.
//	                     Calls that wait return ErrClosed, which is an os.ErrClosed. A second Close returns nil.
//	Shutdown             ends the service of an object in order. queue.Queue.Shutdown ends a queue for all processes: no more
//	                     puts, getters take what is left, then ErrShutdown. pool.Pool.Shutdown finishes the tasks, then closes.
//
// So "defer x.Close()" is right after each constructor, and who writes it never ends anything for another process. C has the
// same two calls under the names pp_..._free and pp_queue_close.
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
// Queues, locks and pipes exist twice over one layout, in C (capi/front) for C and Python and in Go (here) for Go programs, and not in Go alone behind C stubs: a
// process that only puts and gets never starts a Go runtime, handles stay good across a fork, and a call from Python costs tens of nanoseconds.
//
// So that the two do not drift apart, an object is split into steps on memory, which neither sleep nor know handles, and waiting and API. The
// steps are written once, in Go, in a strict subset; their C is generated (core/internal/cgen, make generate, make check fails if it is
// out of date) and committed. Queues are built so: layout, words, tunables, message slots and chain stand in core/queue. Of heaps, pipes and
// locks only layout and tunables are, so far; of heaps the words too. Waiting and API are written by hand in each language. The C is as fast as what was written by hand before: 20,000 puts and gets took 19.65 million
// instructions and take 19.17 million.
//
// A family of processes has one heap (capi/front/heap.h, shm.Heap): one sparse memfd that all of them have mapped, in place of a segment per object or per producer. So a reference is
// an offset, ten thousand locks cost one descriptor, and what a dead process has sent is still there. Descriptors on their way rest in the family's depot, a
// datagram socket connected to itself.
//
// A bell's waiters word is a flag that the ringer takes down, not a count: nothing leaks when a sleeper dies, and of a burst of
// results only the first makes a system call.
//
// The engine library is built with a changed copy of one file of the Go runtime, netpoll_epoll.go (the Makefile's overlay). After a
// program has closed all descriptors (closefrom(3), as daemons do), the runtime would end the process from one of its own threads; two
// calls of throw are replaced, so that the library can return PP_ERR_STATE. Checks at our calls alone come too late. A Go release
// whose file differs is built without the change, and make says so. Go programs that import the packages keep their runtime as it is.
package core
