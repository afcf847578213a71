package queue

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// watch is the descriptor of a queue, an eventfd of this process; capi/front/queue.c has the same. Its goroutine waits as a getter does,
// makes the eventfd readable when there is something to get, and passes the wake-up on, since it takes no message. Then it rests until a
// call of this Queue finds it empty, and clears the eventfd. Nothing of this is in shared memory.
type watch struct {
	fd       int
	mu       sync.Mutex
	readable bool
	cleared  chan struct{} // has an element after readable became false, or the queue was freed
}

// something reports whether there is something to get: exactly, unlike canGet, or a look that does not get would leave the descriptor
// readable.
func (r *raw) something() bool {
	q, v := r.q, r.view()
	return q.inChain() != 0 || q.isClosed() || (atomic.LoadUint32(&q.returned) != 0 && v.count(cellReturned) != 0)
}

// descriptor returns the descriptor, made on first use.
func (r *raw) descriptor() (int, error) {
	if err := r.enter(); err != nil {
		return -1, err
	}
	defer r.leave()
	r.watching.Lock()
	w := r.watch.Load()
	if w == nil {
		fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			r.watching.Unlock()
			if err == unix.ENOMEM {
				err = shm.ErrNoMemory
			}
			return -1, fmt.Errorf("queue: its descriptor: %w", err)
		}
		w = &watch{fd: fd, readable: true, cleared: make(chan struct{}, 1)}
		r.watch.Store(w)
		r.pins.Add(1)
		go r.watchQueue(w)
	}
	r.watching.Unlock()
	r.settle()
	r.announce(w)
	return w.fd, nil
}

// settle makes the descriptor unreadable if there is nothing to get: after calls that may have found so.
func (r *raw) settle() {
	w := r.watch.Load()
	if w == nil || r.something() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.readable {
		var count [8]byte
		_, _ = unix.Read(w.fd, count[:]) // EAGAIN: it is not readable
		w.readable = false
		w.wake()
	}
}

// announce makes the descriptor readable if there is something to get.
func (r *raw) announce(w *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.readable && r.something() {
		_, _ = unix.Write(w.fd, []byte{1, 1, 1, 1, 1, 1, 1, 1}) // any number, in either byte order
		w.readable = true
	}
}

func (w *watch) isReadable() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.readable
}

func (w *watch) wake() {
	select {
	case w.cleared <- struct{}{}:
	default:
	}
}

// watchQueue is the goroutine. It keeps the queue mapped until the handle is freed.
func (r *raw) watchQueue(w *watch) {
	defer r.leave()
	for !r.isFreed() {
		if w.isReadable() {
			<-w.cleared
			continue
		}
		// An error says that the handle was freed.
		_ = r.rest(context.Background(), false, r.notEmpty, r.something, nil)
		r.announce(w)
		r.notEmpty.Chime().Ring(1)
	}
}

// endWatch lets the goroutine end, after the handle was freed.
func (r *raw) endWatch() {
	if w := r.watch.Load(); w != nil {
		w.wake()
	}
}

// closeWatch closes the descriptor when no call is left that may read or write it: its number may be another file's at once.
func (r *raw) closeWatch() {
	if w := r.watch.Load(); w != nil {
		_ = unix.Close(w.fd)
	}
}
