// Package pool runs Go functions in worker processes. A worker that dies, in a C library that calls abort or by SIGKILL, costs the one task
// that it ran: the caller of that task gets an error, a new worker takes the place, and all other tasks go on.
//
// # Use
//
//	var square = pool.Register("square", func(ctx context.Context, n int) (int, error) { return n * n, nil })
//
//	func main() {
//		pool.Init() // in a worker, which is this program executed again, this call does not return
//		p, err := pool.Open(pool.Options{})
//		if err != nil {
//			log.Fatal(err)
//		}
//		defer p.Close()
//		squares, err := pool.Map(context.Background(), p, square, []int{1, 2, 3})
//		...
//	}
//
// Tests call Init in TestMain. [Map] and [MapAll] run a function for a slice, [Stream] for a sequence, [Submit] runs one call.
// A pool that is no longer needed ends in one of two ways: [Pool.Shutdown] finishes its tasks first, [Pool.Close] cancels them.
//
// # Workers
//
// A worker is the program executed again: it runs the initialization of all packages, and main until [Init]. It inherits
//
//   - the environment, arguments and working directory of the program, unless Options say otherwise;
//   - standard output and standard error. Its standard input is /dev/null;
//   - the family's shared memory, so that arguments and results may be queues, locks and pipes (core/queue, core/ipcsync, core/pipe);
//   - of open files only Options.Files;
//   - ignored signals. Ctrl-C does not end it: that is left to the program.
//
// It runs one task at a time and keeps its global variables between tasks. It ends when the program ends, by whatever cause.
//
// # Errors
//
// The error of one of several inputs is an [*InputError], which wraps
//
//   - a [*TaskError] if the function returned an error, panicked, or ended its goroutine. errors.Is and errors.As look through it:
//     errors.Is(err, fs.ErrNotExist) works, and RegisterError does the same for the program's own errors;
//   - a [*WorkerLostError] if the worker died: exit code or signal;
//   - [ErrInit] or [ErrStart] if no worker can be started, [ErrClosed] if the pool was closed first.
//
// # Cancellation
//
// The context that a function gets has the deadline of its caller's and ends with it. So a function should hand it on, or look at it, as
// any other Go function does. What does not return within Options.Grace, one second by default, is killed with its worker. The caller
// is told at once in either case.
//
// The package is tested on Linux. On other systems it compiles.
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
// taken and has no result is lost; those that were ready go to other workers, each exactly once. The parent may
// take back a ready task by the same compare-and-swap: to cancel it, or when a lane gets stuck behind a long task while others are idle.
//
// # Who waits
//
// A thread that waits in a call reads the result rings itself (the fore bell), so a round trip is two wake-ups: the worker's and
// its own. While it is awake nobody rings for it, and while all lanes have enough to do it looks only now and then, so that it reads
// many results at a time. When nobody waits, a goroutine (the back bell) keeps the workers fed; they ring it when they run dry, not for each result.
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
//	errors.go    errors of tasks                         cancel.go   contexts of tasks, time of grace
//	lane.go      one worker's rings and pending tasks    job.go      tasks as bytes: submit, collect, wait, cancel
//	schedule.go  which task goes to which lane           array.go    the parallel for loop over arrays of bytes
//	wait.go      who reads results                       worker.go   the other side: a Go worker
package pool
