package pool

import (
	"context"
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// Cancellation: the parent stores the number of a task that runs into the lane's cancel word and wakes who sleeps there. The worker
// cancels the context of the task. When Options.Grace is over and the task is not, the worker is killed.

// cancelRunning cancels the task of j that a lane runs.
func (p *Pool) cancelRunning(ln *lane, j *job) {
	if p.opt.Grace < 0 {
		p.killRunning(ln, j)
		return
	}
	ln.cancel()
	generation := ln.generation
	time.AfterFunc(p.opt.Grace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.freed && ln.proc != nil && ln.generation == generation {
			p.killRunning(ln, j)
			p.feed()
			p.wakeAll()
		}
	})
}

// cancelAll drops what has not started, cancels what runs, and waits for that as long as Options.Grace allows.
func (p *Pool) cancelAll() {
	if p.terminated || p.freed || p.opt.Grace < 0 {
		return
	}
	p.closed = true
	p.look()
	for _, ln := range p.lanes {
		if ln != nil && ln.proc != nil {
			p.steal(ln, 0)
			ln.cancel()
		}
	}
	p.dropQueued(&Result{Outcome: Closed})
	p.notify()
	_ = p.waitFor(p.opt.Grace, func() bool {
		for _, ln := range p.lanes {
			if ln != nil && ln.waiting > 0 {
				return false
			}
		}
		return true
	}) // what has not ended by then is killed
}

// cancel tells the worker that the task that it runs is to end early. All others of the lane were taken back before.
func (ln *lane) cancel() {
	for k := ln.pending.len() - 1; k >= 0; k-- {
		if e := ln.pending.at(k); !e.revoked {
			ln.head.cancel.Store(e.number)
			shm.FutexWake(ln.head.cancelAddr(), math.MaxInt32)
			ln.slow = true // it gets nothing else before that is over
			return
		}
	}
}

// cancelAddr is the word to sleep on.
func (h *laneHeader) cancelAddr() *uint32 { return (*uint32)(unsafe.Pointer(&h.cancel)) }

// taskContext is the context of a task. What it costs to make one that can be cancelled is spent when the task asks for it. The
// task is over when the host's running names another, or none.
type taskContext struct {
	h        *host
	number   uint64                             // of the task
	deadline uint64                             // see taskHead
	asked    atomic.Pointer[cancellableContext] // nil: nobody has asked
}

type cancellableContext struct {
	context.Context
	cancel context.CancelFunc
}

func (c *taskContext) Deadline() (time.Time, bool) { return c.get().Deadline() }
func (c *taskContext) Done() <-chan struct{}       { return c.get().Done() }
func (c *taskContext) Err() error                  { return c.get().Err() }
func (c *taskContext) Value(key any) any           { return c.get().Value(key) }
func (c *taskContext) String() string              { return "pool: the context of a task" }

func (c *taskContext) get() context.Context {
	if made := c.asked.Load(); made != nil {
		return made.Context
	}
	made := new(cancellableContext)
	if c.deadline == 0 {
		made.Context, made.cancel = context.WithCancel(context.Background())
	} else {
		left := max(int64(c.deadline-monotonic()), 0)
		made.Context, made.cancel = context.WithDeadline(context.Background(), time.Now().Add(time.Duration(left)))
	}
	if !c.asked.CompareAndSwap(nil, made) {
		made.cancel()
		return c.asked.Load().Context
	}
	// The task may have ended, or been cancelled, before asked was set. Otherwise stop finds it there.
	if c.h.running.Load() != c || c.h.head.cancel.Load() == c.number {
		made.cancel()
	}
	c.h.watching.Do(func() { go c.h.watchCancel() })
	return made.Context
}

func (c *taskContext) stop() {
	if made := c.asked.Load(); made != nil {
		made.cancel()
	}
}

// end says that the task has returned.
func (c *taskContext) end() {
	c.h.running.Store(nil)
	c.stop()
}

// watchCancel cancels the contexts of tasks when the parent says so. It sleeps in the kernel and so takes a thread; it begins when a task
// first asks for what its context can tell.
func (h *host) watchCancel() {
	for {
		number := h.head.cancel.Load()
		if c := h.running.Load(); c != nil && c.number == number {
			c.stop()
		}
		_ = shm.FutexWait(h.head.cancelAddr(), uint32(number), -1)
	}
}

// deadlineOf is the deadline of a context as it travels; 0: none.
func deadlineOf(ctx context.Context) uint64 {
	at, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(monotonic()+uint64(max(time.Until(at), 0)), 1)
}
