package queue

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// At returns the queue at off in a heap.
func At[T any](h *shm.Heap, off uint64) (*Queue[T], error) {
	o, err := h.ObjectAt(off, shm.KindQueue, 0)
	if err != nil {
		return nil, err
	}
	return &Queue[T]{raw: openRaw(o, false)}, nil
}

// Object returns the queue's object.
func (q *Queue[T]) Object() *shm.Object { return q.raw.object }

// Words returns the queue's 512 bytes as words.
func (q *Queue[T]) Words() []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(q.raw.q)), sizeQueue/8)
}

// Offsets of words, in words.
const (
	PutLock = 128 / 8
	GetLock = 256 / 8
)

// Sweep does what is left to do for the dead, and reports whether something was.
func (q *Queue[T]) Sweep() bool { v := q.raw.view(); return v.sweep() }

// Sound reports whether the next message, if it lies in a block of its own, has that block.
func (q *Queue[T]) Sound() bool {
	var f found
	v := q.raw.view()
	return v.find(&f) != statusOK || f.ref == 0 || q.raw.heap.Retag(f.ref.off(), f.ref.tag(), f.ref.tag())
}

// DieReturning gives a lease back as one does who dies before he can say so.
func (l *Lease[T]) DieReturning() {
	l.m.cell.set(0, cellReturned)
	l.m.cell = nil
	l.raw.leave()
}
