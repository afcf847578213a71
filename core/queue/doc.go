/*
Package queue is queues between processes, in shared memory: a put or a get takes a fraction of a microsecond, no thread or process
stands between, and whoever is killed, at whatever instruction, spoils nothing.

# Use

	q, err := queue.New[string](nil, queue.Options{})   // in the heap of this process's family
	defer q.Close()                                     // releases this process's handle
	err = q.Put(ctx, "work")
	for v, err := range q.All(ctx) { ... }              // until some process calls q.Shutdown()

A queue is sent to another process as 32 bytes ([Queue.MarshalBinary], which encoding/gob calls): to a Go program that was started with
[start.InheritFamily] or [start.Spec.InheritFamily], to a C or Python child, through another queue. Or it has a name ([Create], [Open]), and whoever runs as the
same user finds it. The other side may be C (pp_queue_*) or Python (polyproc.Queue): they write and read the same memory.

# How data flows

	producer                     one sparse memfd of the family (shm.Heap)              consumer
	Put: encode                  queue: 512 bytes of locks, positions, bells
	  put lock (names owner)     chunk 4K -> chunk 16K -> chunk 64K -> 256K
	  record behind tail ------> | len kind codec | bytes | len kind codec | ... |
	  tail: one 64-bit store --- the message is there ------------------------------->  get lock, copy out
	  bell if somebody sleeps                                       head: one store <-- the message is taken
	                                                                                    chunks that are empty go back
	> 32 KiB: a block of its own, written before any lock is taken; the record names it. The consumer decodes it where it lies.

A producer may die right after its Put has returned. A process that dies before its store leaves garbage that nobody sees; its locks are taken from it
on proof of death. Blocks that belong to a process rather than to the chain, large messages on their way and leased ones, are
named by cells, and so come back or are freed when it dies. capi/front/queue.h has the layout and each point where one may die.

# At least once, at most once

A value that was taken by [Queue.Get] is gone with the process that took it. One that was taken by [Queue.Lease] goes to another if
the process dies before [Lease.Ack], first of all.

# Who waits

Goroutines that wait in one process stand in line, and the first of them sleeps in the kernel (a futex), at most half a second at a time, since its waker may have
died; so waiting costs one thread per queue and process. No goroutine is left behind by a queue, and none polls. A program that waits in
poll(2) or the like for other things too uses [Queue.Descriptor].

# Files

	queue.go  Queue[T], names, references      chain.go   chunks, records, positions: the algorithms under the locks
	codec.go  values as bytes                  cells.go   blocks that belong to processes, and those of the dead
	raw.go    a queue of bytes: who waits      layout.go  what it looks like in memory
	watch_linux.go  the descriptor             hand.go    what cells.go and chain.go stand on

layout.go, cells.go and chain.go are the steps on memory, of which C has the generated half: run `make generate` after a change.

Linux only: elsewhere New and Create return [shm.ErrUnsupported].
*/
package queue

//go:generate go run ../internal/cgen/cmd/cgen -prefix pp__queue -o ../../capi/front/queue_layout.gen.h -include heap.h,lane.h,mem.h layout.go
//go:generate go run ../internal/cgen/cmd/cgen -prefix pp__queue -o ../../capi/front/queue_steps.gen.h -after layout.go -include mem.h,queue.h cells.go chain.go
