package pool

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"math"
	"sync"
)

// Func is a function that workers can run: one that was registered under a name.
type Func[In, Out any] struct {
	name string
	id   uint64
}

// Name returns the name that the function was registered under.
func (f *Func[In, Out]) Name() string { return f.name }

// ID returns the number of the function in [Pool.SubmitBytes].
func (f *Func[In, Out]) ID() uint64 { return f.id }

var registry = struct {
	sync.Mutex
	tasks map[uint64]task
	inits map[uint64]initializer
}{tasks: map[uint64]task{}, inits: map[uint64]initializer{}}

type task struct {
	name string
	run  func(ctx context.Context, in []byte, out []byte) ([]byte, error) // appends the result to out
}

type initializer struct {
	name string
	run  func(arg []byte) error
}

func nameID(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return h.Sum64()
}

// Register makes fn a function that workers can run. Call it while packages are initialized, so that the worker, which is this
// program executed again, has it too:
//
//	var square = pool.Register("square", func(ctx context.Context, n int) (int, error) { return n * n, nil })
//
// Arguments and results travel as bytes, as Codec describes. It panics if the name is taken.
func Register[In, Out any](name string, fn func(ctx context.Context, in In) (Out, error)) *Func[In, Out] {
	f := &Func[In, Out]{name: name, id: nameID(name)}
	decode, encode := decoder[In](), encoder[Out]()
	registry.Lock()
	defer registry.Unlock()
	if t, ok := registry.tasks[f.id]; ok {
		panic(fmt.Sprintf("pool: function %q is registered already (as %q)", name, t.name))
	}
	registry.tasks[f.id] = task{name, func(ctx context.Context, in, out []byte) ([]byte, error) {
		var arg In
		if err := decode(in, &arg); err != nil {
			return nil, fmt.Errorf("argument: %w", err)
		}
		result, err := fn(ctx, arg)
		if err != nil {
			return nil, err
		}
		if out, err = encode(out, &result); err != nil {
			return nil, fmt.Errorf("result: %w", err)
		}
		return out, nil
	}}
	return f
}

// RegisterInitializer makes fn a function that each worker can run at its start: its number goes into Options.Initializer, its
// argument into Options.InitArg. It panics if the name is taken.
func RegisterInitializer(name string, fn func(arg []byte) error) uint64 {
	id := nameID(name)
	registry.Lock()
	defer registry.Unlock()
	if _, ok := registry.inits[id]; ok {
		panic(fmt.Sprintf("pool: initializer %q is registered already", name))
	}
	registry.inits[id] = initializer{name, fn}
	return id
}

// WorkerLost is the error of a task whose worker died while it ran it.
type WorkerLost struct {
	PID  int
	Exit int    // exit code, or minus the signal; math.MinInt32: not known
	Task string // name of the function
}

func (e *WorkerLost) Error() string {
	how := fmt.Sprintf("exit code %d", e.Exit)
	switch {
	case e.Exit == math.MinInt32:
		how = "exit status not known"
	case e.Exit < 0:
		how = fmt.Sprintf("signal %d", -e.Exit)
	}
	return fmt.Sprintf("pool: worker %d died (%s) while it ran %s", e.PID, how, e.Task)
}

// TaskError is the error that a task returned, as text, or its panic.
type TaskError struct {
	Task    string
	Message string // a panic's has the worker's stack trace
	Panic   bool
}

func (e *TaskError) Error() string { return "pool: " + e.Task + ": " + e.Message }

// Errors of tasks, besides WorkerLost and TaskError.
var (
	ErrCancelled = errors.New("pool: task cancelled")
	ErrInit      = errors.New("pool: the initializer of the workers fails")
	ErrStart     = errors.New("pool: workers end before they are ready")
	ErrMemory    = errors.New("pool: no memory for the task's bytes")
)

const codePanic = 1 // Result.Code of a panic; 0: an error

func (r *Result) err(name string) error {
	switch r.Outcome {
	case OK:
		return nil
	case Failed:
		return &TaskError{Task: name, Message: string(r.Data), Panic: r.Code == codePanic}
	case Lost:
		return &WorkerLost{PID: r.PID, Exit: r.Exit, Task: name}
	case Cancelled:
		return ErrCancelled
	case BadInit:
		return fmt.Errorf("%w: %s", ErrInit, r.Data)
	case BadStart:
		return fmt.Errorf("%w (exit code %d)%s", ErrStart, r.Exit, r.Data)
	case NoMemory:
		return fmt.Errorf("%w %s", ErrMemory, r.Data)
	}
	return ErrClosed
}

// calls is the work of Go tasks: arguments in one buffer, outcomes by task.
type calls struct {
	p       *Pool
	job     *job
	data    []byte
	ends    []int
	results []Result
}

func (c *calls) size(i uint64) int {
	if i == 0 {
		return c.ends[0]
	}
	return c.ends[i] - c.ends[i-1]
}

func (c *calls) put(i uint64, dst []byte) { copy(dst, c.data[c.ends[i]-len(dst):]) }

func (c *calls) finish(i uint64, r *Result) {
	c.results[i] = *r
	data := c.results[i].Data
	c.results[i].Data = nil
	if len(data) > 0 {
		c.results[i].Data, _ = c.p.keep(data)
	}
}

func newCalls[In, Out any](p *Pool, f *Func[In, Out], ins []In) (*calls, error) {
	c := &calls{p: p, ends: make([]int, len(ins)), results: make([]Result, len(ins))}
	encode := encoder[In]()
	var err error
	for i := range ins {
		if c.data, err = encode(c.data, &ins[i]); err != nil {
			return nil, fmt.Errorf("pool: %s: argument %d: %w", f.name, i, err)
		}
		c.ends[i] = len(c.data)
	}
	c.job = &job{work: c, n: uint64(len(ins)), fn: f.id}
	return c, nil
}

// run queues the calls; when ctx ends, what has not started is dropped and what runs is killed. stop undoes that.
func (c *calls) run(ctx context.Context) (stop func() bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.p.add(c.job); err != nil {
		return nil, err
	}
	if c.job.open == 0 {
		return func() bool { return true }, nil
	}
	stop = context.AfterFunc(ctx, c.abandon)
	c.job.ended = func() { stop() } // a long-lived ctx must not remember all its calls
	return stop, nil
}

// abandon drops the calls, and kills the workers that run them.
func (c *calls) abandon() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.job.open > 0 {
		c.p.drop(c.job, true)
		c.p.feed()
	}
	c.p.wakeAll()
}

// wait waits for the outcomes of all calls, or for the end of ctx.
func (c *calls) wait(ctx context.Context) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	for {
		err := c.p.waitFor(-1, func() bool { return c.job.open == 0 || ctx.Err() != nil })
		if c.job.open == 0 && !c.job.dropped {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if c.job.dropped {
			return ErrCancelled
		}
		if err != nil {
			return err
		}
	}
}

// Map runs f for every input and returns the results in the same order. It waits for all of them. The error is that of the first input
// that failed, and then the results of those that did not fail are there all the same. When ctx ends, Map returns
// ctx.Err() at once, and the workers that run its tasks are killed and replaced.
func Map[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], ins []In) ([]Out, error) {
	outs := make([]Out, len(ins))
	if len(ins) == 0 {
		return outs, ctx.Err()
	}
	c, err := newCalls(p, f, ins)
	if err != nil {
		return nil, err
	}
	stop, err := c.run(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := c.wait(ctx); err != nil {
		c.abandon() // not left to the hook, which stop may still take down
		return nil, err
	}
	decode := decoder[Out]()
	var first error
	for i := range c.results {
		err := c.results[i].err(f.name)
		if err == nil {
			err = decode(c.results[i].Data, &outs[i])
		}
		if err != nil && first == nil {
			first = fmt.Errorf("input %d: %w", i, err)
		}
	}
	return outs, first
}

// Task is a call that was submitted.
type Task[Out any] struct {
	calls *calls
	name  string
	ctx   context.Context
	stop  func() bool
}

// Submit hands one call to the pool and does not wait. When ctx ends before the call does, the call is dropped, or its worker
// killed, and Wait returns ctx.Err().
func Submit[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], in In) (*Task[Out], error) {
	c, err := newCalls(p, f, []In{in})
	if err != nil {
		return nil, err
	}
	stop, err := c.run(ctx)
	if err != nil {
		return nil, err
	}
	return &Task[Out]{calls: c, name: f.name, ctx: ctx, stop: stop}, nil
}

// Wait waits for the result. It may be called again, and from several goroutines. The end of its own ctx ends only the wait.
func (t *Task[Out]) Wait(ctx context.Context) (out Out, err error) {
	unhook := context.AfterFunc(ctx, func() {
		t.calls.p.mu.Lock()
		defer t.calls.p.mu.Unlock()
		t.calls.p.wakeAll()
	})
	defer unhook()
	if err := t.calls.wait(ctx); err != nil {
		if t.ctx.Err() != nil {
			err = t.ctx.Err()
		}
		return out, err
	}
	t.stop()
	r := &t.calls.results[0]
	if err := r.err(t.name); err != nil {
		return out, err
	}
	return out, decoder[Out]()(r.Data, &out)
}

// Cancel takes the call back if it has not started, and reports whether it has.
func (t *Task[Out]) Cancel() bool {
	p, j := t.calls.p, t.calls.job
	p.mu.Lock()
	defer p.mu.Unlock()
	if j.open == 0 {
		return false
	}
	p.drop(j, false)
	p.wakeAll()
	if j.open > 0 {
		j.dropped = false // it runs: its outcome is wanted after all
		return false
	}
	return true
}

// Stream runs f for every input of a sequence and yields the results in the same order. It takes from the sequence only so
// far ahead of the consumer as the workers can use (at most twice what was consumed, and a few for each worker), so that the sequence may
// be endless. When the consumer stops, or ctx ends, tasks of the stream that run are killed.
func Stream[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], ins iter.Seq[In]) iter.Seq2[Out, error] {
	return stream(ctx, p, f, ins, true)
}

// StreamUnordered is Stream, but yields results as they come.
func StreamUnordered[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], ins iter.Seq[In]) iter.Seq2[Out, error] {
	return stream(ctx, p, f, ins, false)
}

const maxAhead = 4096

func stream[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], ins iter.Seq[In], ordered bool) iter.Seq2[Out, error] {
	return func(yield func(Out, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		next, stopIns := iter.Pull(ins)
		defer stopIns()
		decode := decoder[Out]()
		flight := map[*calls]struct{}{} // in the pool
		var order []*calls              // ordered: as they were taken from the sequence
		var ready []*calls              // unordered: as they ended
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			for c := range flight {
				if c.job.open > 0 {
					p.drop(c.job, true)
				}
			}
			p.feed()
		}()
		unhook := context.AfterFunc(ctx, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.wakeAll()
		})
		defer unhook()
		more, consumed := true, 0
		for {
			for more && len(flight) < min(4*p.opt.Workers+consumed, maxAhead) {
				in, ok := next()
				if !ok {
					more = false
					break
				}
				c, err := newCalls(p, f, []In{in})
				if err == nil {
					c.job.ended = func() { ready = append(ready, c) }
					if ordered {
						order = append(order, c)
						c.job.ended = nil
					}
					p.mu.Lock()
					err = p.add(c.job)
					p.mu.Unlock()
				}
				if err != nil {
					yield(*new(Out), err)
					return
				}
				flight[c] = struct{}{}
			}
			if len(flight) == 0 {
				return
			}
			var c *calls
			p.mu.Lock()
			err := p.waitFor(-1, func() bool {
				switch {
				case ordered && order[0].job.open == 0:
					c, order = order[0], order[1:]
				case len(ready) > 0:
					c, ready = ready[0], ready[1:]
				}
				return c != nil || ctx.Err() != nil
			})
			p.mu.Unlock()
			switch {
			case c != nil:
			case ctx.Err() != nil:
				yield(*new(Out), ctx.Err())
				return
			default:
				yield(*new(Out), err)
				return
			}
			delete(flight, c)
			consumed++
			var out Out
			err = c.results[0].err(f.name)
			if err == nil {
				err = decode(c.results[0].Data, &out)
			}
			if !yield(out, err) {
				return
			}
		}
	}
}

// Shutdown ends the pool in order: it takes no more tasks, finishes those that it has, and then releases everything as [Pool.Close]
// does. When ctx ends first, Shutdown returns ctx.Err(), the pool goes on with its tasks, and Close ends it at once. So a program
// writes defer p.Close() after Open, and Shutdown where its work is done.
func (p *Pool) Shutdown(ctx context.Context) error {
	p.Drain()
	wake := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wakeAll()
	})
	defer wake()
	p.mu.Lock()
	if !p.freed {
		err := p.waitFor(-1, func() bool { return p.empty() || ctx.Err() != nil })
		if err == nil && !p.empty() {
			err = ctx.Err()
		}
		if err != nil {
			p.mu.Unlock()
			return err
		}
	}
	p.mu.Unlock()
	return p.Close()
}
