package pool

import (
	"context"
	"fmt"
	"hash/fnv"
	"iter"
	"sync"
)

// Func is a function that workers can run: one that was registered under a name.
type Func[In, Out any] struct {
	name   string
	id     uint64
	encode encodeFunc[In]
	decode decodeFunc[Out]
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
// Arguments and results travel as bytes: []byte and string as they are, numbers in 8 bytes, everything else by encoding/gob.
// Register panics if the name is taken, or fn is nil.
//
// The context that fn gets has the deadline of the caller's context, but not its values. It ends when the caller's does, when the pool
// is closed, and when fn has returned. Then fn has Options.Grace, one second by default, to return; if it has not by then, its worker
// is killed and replaced. The caller waits for neither.
func Register[In, Out any](name string, fn func(ctx context.Context, in In) (Out, error)) *Func[In, Out] {
	if fn == nil {
		panic(fmt.Sprintf("pool: function %q is nil", name))
	}
	f := &Func[In, Out]{name: name, id: nameID(name), encode: encoder[In](), decode: decoder[Out]()}
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

// Initializer is a call that each worker makes at its start: see [RegisterInitializer]. The zero value is none.
type Initializer struct {
	id  uint64
	arg []byte
	err error
}

// RegisterInitializer makes fn a function that each worker can run at its start, before its first task. It returns a function that
// makes the call of fn with an argument, for [Options]:
//
//	var connect = pool.RegisterInitializer("connect", func(address string) error { ... })
//
//	p, err := pool.Open(pool.Options{Initializer: connect("localhost:5432")})
//
// Call it, like [Register], while packages are initialized. A worker in which fn returns an error, panics or ends the process is not
// used; when several in a row fail so, all tasks of the pool fail with [ErrInit] or [ErrStart]. RegisterInitializer panics if the name
// is taken, or fn is nil.
func RegisterInitializer[Arg any](name string, fn func(arg Arg) error) func(arg Arg) Initializer {
	if fn == nil {
		panic(fmt.Sprintf("pool: initializer %q is nil", name))
	}
	id := nameID(name)
	decode, encode := decoder[Arg](), encoder[Arg]()
	registry.Lock()
	defer registry.Unlock()
	if _, ok := registry.inits[id]; ok {
		panic(fmt.Sprintf("pool: initializer %q is registered already", name))
	}
	registry.inits[id] = initializer{name, func(data []byte) error {
		var arg Arg
		if err := decode(data, &arg); err != nil {
			return fmt.Errorf("argument: %w", err)
		}
		return fn(arg)
	}}
	return func(arg Arg) Initializer {
		data, err := encode(nil, &arg)
		if err != nil {
			err = fmt.Errorf("pool: initializer %s: argument: %w", name, err)
		}
		return Initializer{id, data, err}
	}
}

// calls is the work of Go tasks: arguments in one buffer, outcomes by task.
type calls struct {
	p       *Pool
	job     *job
	data    []byte
	ends    []int
	inputs  []int // MapAll: which inputs the tasks are of
	index   int   // Stream: which input of the sequence it is
	unsent  error // Stream: why it could not be encoded
	results []Result
}

func (c *calls) size(i uint64) int {
	if i == 0 {
		return c.ends[0]
	}
	return c.ends[i] - c.ends[i-1]
}

func (c *calls) task(i uint64) []byte { return c.data[c.ends[i]-c.size(i) : c.ends[i]] }

func (c *calls) put(i uint64, dst []byte) { copy(dst, c.task(i)) }

func (c *calls) finish(i uint64, r *Result) {
	c.results[i] = *r
	data := c.results[i].Data
	c.results[i].Data = nil
	if len(data) > 0 {
		c.results[i].Data, _ = c.p.keep(data)
	}
}

// newCalls encodes the arguments. If errs is nil, one that cannot be encoded is an *InputError; else its error goes into errs, and it
// is left out.
func newCalls[In, Out any](p *Pool, f *Func[In, Out], ins []In, errs []error) (*calls, error) {
	c := &calls{p: p, ends: make([]int, 0, len(ins))}
	if errs != nil {
		c.inputs = make([]int, 0, len(ins))
	}
	for i := range ins {
		data, err := f.encode(c.data, &ins[i])
		if err != nil {
			err = fmt.Errorf("pool: %s: argument: %w", f.name, err)
			if errs == nil {
				return nil, &InputError{Index: i, Err: err}
			}
			errs[i] = err
			continue
		}
		c.data, c.ends = data, append(c.ends, len(data))
		if errs != nil {
			c.inputs = append(c.inputs, i)
		}
	}
	c.results = make([]Result, len(c.ends))
	for i := range c.results {
		c.results[i].Outcome = resultOpen
	}
	c.job = &job{work: c, n: uint64(len(c.ends)), fn: f.id}
	return c, nil
}

// run queues the calls; when ctx ends, what has not started is dropped and what runs is cancelled. stop undoes that.
func (c *calls) run(ctx context.Context) (stop func() bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.job.deadline = deadlineOf(ctx)
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

// abandon drops the calls, and cancels those that run.
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

// all runs the calls and waits for them. After an error those without an outcome are abandoned.
func (c *calls) all(ctx context.Context) error {
	stop, err := c.run(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := c.wait(ctx); err != nil {
		c.abandon() // not left to the hook, which stop may still take down
		return err
	}
	return nil
}

// output decodes a result.
func output[In, Out any](f *Func[In, Out], r *Result, out *Out) error {
	if err := r.err(f.name); err != nil {
		return err
	}
	if err := f.decode(r.Data, out); err != nil {
		return fmt.Errorf("pool: %s: result: %w", f.name, err)
	}
	return nil
}

// Map runs f for every input and returns the results in the same order. It waits for all of them. When inputs fail, the error is the
// [*InputError] of the first of them, and the results of those that did not fail are returned all the same; [MapAll] returns the error
// of each. When an input cannot be encoded, Map runs nothing and returns no results. When ctx ends first, Map returns ctx.Err() at once; [Register] says what happens to tasks that run.
func Map[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], ins []In) ([]Out, error) {
	outs := make([]Out, len(ins))
	if len(ins) == 0 {
		return outs, ctx.Err()
	}
	c, err := newCalls(p, f, ins, nil)
	if err != nil {
		return nil, err
	}
	if err := c.all(ctx); err != nil {
		return nil, err
	}
	var first error
	for i := range c.results {
		if err := output(f, &c.results[i], &outs[i]); err != nil && first == nil {
			first = &InputError{Index: i, Err: err}
		}
	}
	return outs, first
}

// MapAll runs f for every input, waits for all of them, and returns the result and the error of each: outs[i] is the result for ins[i]
// if errs[i] is nil. Both slices have the length of ins, so errors.Join(errs...) is nil if nothing failed. When ctx ends first, the
// inputs that have no outcome yet get ctx.Err().
func MapAll[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], ins []In) (outs []Out, errs []error) {
	outs, errs = make([]Out, len(ins)), make([]error, len(ins))
	c, _ := newCalls(p, f, ins, errs)
	if len(c.inputs) == 0 {
		return outs, errs
	}
	err := c.all(ctx)
	for k, i := range c.inputs {
		if c.results[k].Outcome == resultOpen {
			errs[i] = err
		} else {
			errs[i] = output(f, &c.results[k], &outs[i])
		}
	}
	return outs, errs
}

// Task is a call that was submitted.
type Task[Out any] struct {
	calls  *calls
	output func(r *Result, out *Out) error
	ctx    context.Context
	stop   func() bool
}

// Submit hands one call to the pool and does not wait. When ctx ends before the call does, the call is dropped, or cancelled if it
// runs (see [Register]), and Wait returns ctx.Err().
func Submit[In, Out any](ctx context.Context, p *Pool, f *Func[In, Out], in In) (*Task[Out], error) {
	c, err := newCalls(p, f, []In{in}, nil)
	if err != nil {
		return nil, err.(*InputError).Err
	}
	stop, err := c.run(ctx)
	if err != nil {
		return nil, err
	}
	output := func(r *Result, out *Out) error { return output(f, r, out) }
	return &Task[Out]{calls: c, output: output, ctx: ctx, stop: stop}, nil
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
	err = t.output(&t.calls.results[0], &out)
	return out, err
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
// be endless. The error of an input that fails is an [*InputError], and the stream goes on; any other error ends it. When the consumer
// stops, or ctx ends, nothing more is taken from the sequence, and tasks of the stream that run are cancelled: see [Register].
//
// The sequence and the consumer take turns, as if they were one goroutine. While the sequence makes its next input the consumer gets
// no result, and the end of ctx is not noticed; so an input must not depend on a result that the stream has yet to yield: use [Submit].
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
		deadline := deadlineOf(ctx)
		next, stopIns := iter.Pull(ins)
		defer stopIns()
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
		more, taken, consumed := true, 0, 0
		for {
			for more && ctx.Err() == nil && len(flight) < min(4*p.opt.Workers+consumed, maxAhead) {
				in, ok := next()
				if !ok {
					more = false
					break
				}
				if ctx.Err() != nil { // it ended while the sequence made the input
					break
				}
				var unsent [1]error
				c, _ := newCalls(p, f, []In{in}, unsent[:])
				c.index, c.unsent = taken, unsent[0]
				c.job.deadline = deadline
				taken++
				flight[c] = struct{}{}
				if ordered {
					order = append(order, c)
				} else {
					c.job.ended = func() { ready = append(ready, c) }
				}
				if c.unsent != nil {
					if !ordered {
						ready = append(ready, c)
					}
					continue
				}
				p.mu.Lock()
				err := p.add(c.job)
				p.mu.Unlock()
				if err != nil {
					yield(*new(Out), err)
					return
				}
			}
			if len(flight) == 0 {
				if more {
					yield(*new(Out), ctx.Err())
				}
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
			if err = c.unsent; err == nil {
				err = output(f, &c.results[0], &out)
			}
			if err != nil {
				err = &InputError{Index: c.index, Err: err}
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
