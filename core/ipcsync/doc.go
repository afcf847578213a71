/*
Package ipcsync is locks, semaphores, conditions, events and barriers between processes, in shared memory. An uncontended lock costs one compare-and-swap and no
system call; ten thousand of them cost no descriptor; and who is killed, at whatever instruction, leaves nothing that hangs.

# Use

	l, err := ipcsync.NewLock(nil)         // in the heap of this process's family
	defer l.Close()                        // releases this process's handle
	switch err := l.Acquire(ctx); err {
	case nil:
		defer l.Release()
	case ipcsync.ErrOwnerDied:             // not acquired, nor by anybody else until
		err = l.Recover(ctx)           // acquires it: repair what it guards, then Release
	}

An object is sent to another process as 32 bytes (MarshalBinary, which encoding/gob calls): to a Go program that was started with
[start.InheritFamily] or [start.Spec.InheritFamily], to a C or Python child, through a queue. The other side may be C (pp_lock_*, pp_semaphore_*, pp_condition_*, pp_event_*,
pp_barrier_*) or Python (polyproc.Lock and its like): they read and write the same words.

# How data flows

	Acquire                      one sparse memfd of the family (shm.Heap)               another process
	CAS 0 -> me  ------------->  lock: 128 bytes {holder | sleepers' bit}
	  not free: set the bit,       ^                                 \---- not free: ------> sleeps on the word (futex)
	  sleep, at most 160 ms        |                                                         looks at the end of each slice:
	Release: CAS 0, wake one ----- /                                                         is the holder dead? (pidfd)
	                                                                                           CAS dead -> poisoned: ErrOwnerDied

Each operation is over with one store or compare-and-swap of one word. Whoever dies before it has changed nothing; after it, at most a wake-up is missing, and no sleep is
longer than 160 ms. capi/front/sync.h has the words, the algorithms, and what a death at each point leaves.

	held by the dead             every acquirer gets ErrOwnerDied, until one calls Recover (or the lock is a recoverable one)
	permits of the dead          come back if the semaphore is a recoverable one
	notified, and died           the notification goes to the next
	dead at a barrier            it is broken

# Processes and goroutines

Who holds a Lock is a process. Goroutines of one process exclude each other with it as well; they stand in line, and only the first sleeps in the kernel, so a thousand that wait cost
one thread (of a [Condition]: a thread each). Goroutines have no identity, so an [RLock] is held by a [Holder], which whoever acquires it more than once passes along.

Newcomers may overtake those who were woken, which is fast, but not for ever: who has been woken four times in vain, or has waited 4 ms, makes newcomers wait.

# Contexts

The end of a context ends any wait with its error, 160 ms late at worst if it is cancelled in the very moment when the wait begins. What can be had at once is had whatever
the context says. To take back the lock after [Condition.Wait] is waited for without the context.

# Files

	handle.go     what all have: references, Close       pace.go       how long to sleep, whose turn it is
	lock.go       Lock, RLock, Holder                    semaphore.go  Semaphore
	condition.go  Condition                              event.go      Event
	barrier.go    Barrier                                layout.go     what they look like in memory

Linux only: elsewhere the New functions return [shm.ErrUnsupported].
*/
package ipcsync

//go:generate go run ../internal/cgen/cmd/cgen -prefix pp_ -o ../../capi/front/sync_layout.gen.h -include heap.h,mem.h layout.go
