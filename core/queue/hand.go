package queue

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// What the steps in cells.go and chain.go stand on, written by hand in each language: capi/front/queue.c has the same.

// view is a queue in its heap, during a call.
//
//c:extern view
//c:methods pp__queue_
type view struct {
	heap  *shm.Heap
	q     *head
	swept *atomic.Int64
	err   error // what a status other than statusOK says, where there is more to say
}

func (b *bell) chime() shm.Chime { return shm.NewChime(&b.seq, &b.waiters) }

// failed returns the error of a step.
func (v *view) failed(s status) error {
	switch s {
	case statusOK:
		return nil
	case statusEmpty:
		return ErrEmpty
	case statusFull:
		return ErrFull
	case statusClosed:
		return ErrShutdown
	case statusState:
		return ErrTaskDone
	}
	return v.err
}

// corrupt makes of a word that cannot be true a status.
//
//c:extern pp__queue_corrupt
func (v *view) corrupt(what string, value uint64) status {
	v.err = fmt.Errorf("queue: %s is %#x: %w", what, value, shm.ErrCorrupt)
	return statusCorrupt
}

// within is the address of size bytes at off, nil if they do not lie in the blocks.
//
//c:extern pp__queue_within
func (v *view) within(off, size uint64) unsafe.Pointer { return v.heap.Within(off, size) }

// freeBlock frees a block, unless it is no such block any more. r may be 0, or garbage.
//
//c:extern pp__queue_free_block
func (v *view) freeBlock(r ref) bool { return r != 0 && v.heap.Free(r.off(), r.tag()) }

// forget takes back the references in a message that nobody will read.
//
//c:extern pp__queue_forget
func (v *view) forget(data unsafe.Pointer, size uint64) {
	v.heap.ForgetIn(unsafe.Slice((*byte)(data), size))
}

// forgetBlock does it for a message in a block, unless that is smaller, or no such block any more.
//
//c:extern pp__queue_forget_block
func (v *view) forgetBlock(r ref, size uint64) { v.heap.ForgetInBlock(r.off(), r.tag(), size) }

// retag gives a block a new tag; 0 if it is no such block any more.
//
//c:extern pp__queue_retag
func (v *view) retag(r ref) ref {
	tag := v.heap.Tag()
	if !v.heap.Retag(r.off(), r.tag(), tag) {
		return 0
	}
	return refOf(r.off(), r.class(), tag)
}

// alloc makes r a block of at least size bytes.
//
//c:extern pp__queue_alloc
func (v *view) alloc(size uint64, class uint32, r *ref) status {
	tag := v.heap.Tag()
	off, _, err := v.heap.Alloc(size, tag)
	if errors.Is(err, shm.ErrNoMemory) && v.sweep() { // what the dead have held
		off, _, err = v.heap.Alloc(size, tag)
	}
	if err != nil {
		v.err = fmt.Errorf("queue: %w", err)
		return statusNoMemory
	}
	*r = refOf(off, class, tag)
	return statusOK
}

// join makes me the owner that this process is.
//
//c:extern pp__queue_join
func (v *view) join(me *shm.Owner) status {
	o, err := v.heap.Join()
	if err != nil {
		v.err = err
		return statusNoMemory
	}
	*me = o
	return statusOK
}

// gone reports whether an owner is proven dead. It costs system calls.
//
//c:extern pp__queue_gone
func (v *view) gone(owner shm.Owner) bool { return v.heap.Gone(owner) }

// sweepNowAndThen sweeps unless that was done a moment ago.
//
//c:extern pp__queue_sweep_now_and_then
func (v *view) sweepNowAndThen() bool {
	return v.q.hasCells() && time.Now().UnixNano()-v.swept.Load() >= int64(sweepPause) && v.sweep()
}

// sweep does what is left to do for the dead. Reports whether something was.
func (v *view) sweep() bool {
	v.swept.Store(time.Now().UnixNano())
	returned := uint32(0)
	did := v.sweepCells(v.heap.Me(), &returned)
	if returned > 0 {
		v.returned(int(returned))
	}
	return did
}

// returned tells that n cells have become RETURNED.
func (v *view) returned(n int) {
	atomic.AddUint32(&v.q.returned, 1)
	v.q.notEmpty.chime().Ring(n)
}

const (
	sweepPause   = sweepMillis * time.Millisecond
	leaseSlice   = leaseMillis * time.Millisecond
	slice        = sliceMillis * time.Millisecond
	lockPatience = lockPatienceMillis * time.Millisecond
	closePatient = closePatienceMillis * time.Millisecond
)
