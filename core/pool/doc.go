// Package pool runs functions in worker processes, and loses one task, not the program, when a worker dies.
//
// # Use
//
//	var square = pool.Register("square", func(ctx context.Context, n int) (int, error) { return n * n, nil })
//
//	func main() {
//		pool.Init() // in a worker, which is this program executed again, this call does not return
//		p, err := pool.Open(pool.Options{})
//		...
//		squares, err := pool.Map(ctx, p, square, []int{1, 2, 3})
//	}
//
// # How data flows
//
// A pool is lanes. Each worker process has a lane of its own in shared memory: a ring of tasks that only the parent writes, and a ring
// of results that only the worker writes. There is no lock between processes and nothing that two workers share but a bell
// and a bit each, so a worker that dies, at whatever instruction, can spoil nothing.
//
//	caller              parent: scheduler (schedule.go)               worker (worker.go; C: capi/front/worker.c)
//	Map, Submit  -->  job queue  --stage-->  [task ring]  --CAS-->  take, run
//	  ^                                                              |
//	  +--- complete  <--drain--  [result ring]  <--one 64-bit store--+
//
// Large arguments and results lie in blocks of an arena beside the rings, and records name the blocks.
//
// Everything is in one anonymous memfd that workers inherit; it is gone with the last process. capi/front/lane.h has the
// layout and the rules; layout.go states it for Go.
//
// # One task lost
//
// A task in a ring is ready until the worker takes it, by one compare-and-swap of a word in its record. The result ring's tail store is
// what "done" means. When a worker's pidfd says that it is dead, the parent reads what results there are; the one task that was
// taken and has no result is [WorkerLost]; those that were ready go to other workers, each exactly once. The parent may
// take back a ready task by the same compare-and-swap: to cancel it, or when a lane gets stuck behind a long task while others are idle.
//
// # Who waits
//
// A thread that waits in a call reads the result rings itself (the fore bell), so a round trip is two wake-ups: the worker's and
// its own. When nobody waits, a goroutine (the back bell) keeps the workers fed; they ring it when they run dry, not for each result.
//
// # How much at a time
//
// The pool keeps the mean run time of recent tasks. Long or unknown tasks go one to each worker. Short ones go in numbers that fill some 300
// microseconds, to as many workers as there are CPUs, so that 64 workers on 2 CPUs cost no more than 2. What turns out wrong
// is put right: tasks are taken back from a lane that made no progress for 2 ms while another is idle.
//
// # Files
//
//	pool.go      Pool: open, close, terminate, join      func.go     Register, Map, Submit, Stream: generic Go
//	workers.go   start and end of worker processes       codec.go    Go values as bytes
//	lane.go      one worker's rings and pending tasks    job.go      tasks as bytes: submit, collect, wait, cancel
//	schedule.go  which task goes to which lane           array.go    the parallel for loop over arrays of bytes
//	wait.go      who reads results                       worker.go   the other side: a Go worker
package pool
