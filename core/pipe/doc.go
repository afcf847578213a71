/*
Package pipe is pipes of messages between processes: two ends, messages whole and in order, in shared memory. When Send has returned, the message arrives, whatever
becomes of the sender; and whoever is killed, at whatever instruction, spoils nothing.

# Use

	a, b, err := pipe.New(nil, true)           // in the heap of this process's family; true: both ways
	err = a.Send(ctx, []byte("hello"))
	message, err := b.Recv(ctx)                // io.EOF: nobody has the other end any more

An end is sent to another process as 32 bytes ([Conn.MarshalBinary], which encoding/gob calls): to a Go program that was started with
[start.InheritFamily] or [start.Spec.InheritFamily], to a C or Python child, through a queue or another pipe. The other side may be C (pp_pipe_*) or Python
(polyproc.Pipe): they use the same rings. Files travel too, in their place among the messages: [Conn.SendFile].

# How data flows

	Send                         one sparse memfd of the family (shm.Heap)               Recv
	send lock (names owner)      pipe: 2 ways of 1 KiB, a ring of 64 KiB each             receive lock, copy out
	  record behind tail ------> | len kind | bytes | len kind | bytes | ... |  ------->
	  tail: one 64-bit store --- the message is there                     head: one store: it is taken
	  > 16 KiB: a block of its own, written before any lock is taken; the record names it
	  2 bytes, if there are none, --> a socket pair, one socket for each end --> wakes who sleeps; hang-up: the other end is gone

Messages never go through the sockets; a sender that finds its receiver awake makes no system call. [Conn.Descriptor] is for event loops of others.

	sender dies before the store     nobody sees the message; its lock is taken from it on proof of death
	after it                         the message arrives
	receiver dies before its store   the next receiver gets the message
	after it                         the message is lost with it

# Over sockets

[Listen], [Dial] and [Stream] are messages over sockets, also between machines, in the wire format and with the challenge of Python's multiprocessing.connection, of all its
versions: a Go program serves what its Client asks, and asks what its Listener serves. They share nothing with pipes in memory but that they carry messages. The challenge tells who
knows the key; it hides nothing, and keeps nobody from changing what is sent: beyond one machine use a network that does.

# Who waits

A goroutine that waits for a message waits in Go's poller and takes no thread. One that waits for room, or for a process that is in the middle of a message, takes one, for all of
its process that wait for the same. No sleep is longer than half a second, since its waker may have died.

# Files

	pipe.go  Conn: send, receive, wait, references      sys_linux.go    sockets, clocks, Go's poller
	ring.go  rings, records, leases: under the locks    depot_linux.go  descriptors on their way
	layout.go  what it looks like in memory             stream.go, listener.go  messages over sockets

Pipes are Linux only: elsewhere New returns [shm.ErrUnsupported]. Streams are everywhere.
*/
package pipe

//go:generate go run ../internal/cgen/cmd/cgen -prefix pp__pipe -o ../../capi/front/pipe_layout.gen.h -include heap.h,lane.h,mem.h layout.go
