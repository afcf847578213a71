package pool

import (
	"math"
	"slices"
	"sort"
	"time"

	"github.com/polyproc/polyproc/shm"
)

// Outcome says how a task ended.
type Outcome uint8

const (
	OK        Outcome = iota
	Failed            // the task reported an error: Result.Code and Data are its own
	Lost              // the worker died while it ran the task: PID and Exit tell which and how
	Cancelled         // taken back before it started
	BadInit           // the initializer fails: Data is what it said
	BadStart          // workers die before they are ready: Exit tells how
	Closed            // the pool was terminated first
	NoMemory          // the task's bytes did not fit into memory
	NotFound          // C workers: the function is not there in the worker's program
	TooBig            // C workers: the task set *out_size to more than it had
	Abandoned         // it ran when the call that waited for it was interrupted
)

// Result is the outcome of one task.
type Result struct {
	Task    uint64
	Cookie  uint64
	Outcome Outcome
	Code    int32  // Failed: the task's own number, and Data what it left
	PID     int    // the worker that ran it; 0: none did
	Exit    int    // Lost, BadStart: exit code, or minus the signal; math.MinInt32: not known
	Data    []byte // the caller's own
	Foreign bool   // Data comes from Options.Alloc
}

// work is what a job's tasks are made of and where their outcomes go. All methods are called with the pool's lock held.
type work interface {
	size(i uint64) int          // bytes of task i
	put(i uint64, dst []byte)   // writes them
	finish(i uint64, r *Result) // takes the outcome. r and r.Data (shared memory) are valid during the call only
}

// job is a row of n tasks that were handed over together.
type job struct {
	work
	first    uint64 // number of its first task
	n        uint64
	next     uint64 // tasks from here on are in no lane yet
	open     uint64 // tasks without an outcome
	fn       uint64
	outSize  uint32
	flags    uint16     // of its records
	spanMax  uint64     // elements of one record, if more than 1 (C workers, see SPANS in lane.h)
	chunk    uint64     // go to one lane at a time; 0: the pool decides
	ctx      *shm.Block // for all its tasks, or nil
	ctxSize  uint64
	deadline uint64              // when its caller stops to wait: see taskHead
	holes    map[uint64]struct{} // tasks from next on that have an outcome already
	dropped  bool                // no more tasks of it are started, and nobody waits for outcomes
	ended    func()              // called, with the pool's lock held, when open is 0; may be nil
}

// again is a task that goes to another lane, with the block that its bytes lie in, if they do.
type again struct {
	job   *job
	i     uint64
	n     uint32 // tasks from i on, in one record
	block *shm.Block
}

// add queues a job and starts what can start.
func (p *Pool) add(j *job) error {
	if p.closed {
		return ErrClosed
	}
	p.nextID++
	j.first = p.nextID
	p.nextID += j.n - 1
	j.open = j.n
	p.open += j.n
	outcomes := p.outcomes
	if p.failure != nil {
		p.completeRest(j, p.failure)
	} else {
		p.queue = append(p.queue, j)
		p.feed()
		p.rouse()
	}
	p.tell(outcomes)
	return nil
}

// completeRest ends the tasks of j that no lane has been given yet.
func (p *Pool) completeRest(j *job, r *Result) {
	for ; j.next < j.n; j.next++ {
		if !j.isOver(j.next) {
			p.complete(j, j.next, r)
		}
	}
	j.holes = nil
}

// isOver reports whether task i, which no lane has been given, has been cancelled.
func (j *job) isOver(i uint64) bool {
	_, over := j.holes[i]
	return over
}

// unqueue removes the first job of the queue.
func (p *Pool) unqueue() {
	p.queue[0] = nil
	p.queue = p.queue[1:]
	p.queueGone = min(p.queueGone, len(p.queue))
}

// forgetDropped removes a job from the queue that was dropped: at some time, together with others.
func (p *Pool) forgetDropped() {
	p.queueGone++
	if p.queueGone > 32 && p.queueGone > len(p.queue)/2 {
		p.queue = slices.DeleteFunc(p.queue, func(j *job) bool { return j.next == j.n })
		p.queueGone = 0
	}
}

// again puts tasks that were taken back from a lane before all others.
func (p *Pool) again(tasks []again) {
	if len(tasks) > 0 {
		p.retry = append(tasks, p.retry...)
	}
}

func (p *Pool) freeBlock(b *shm.Block) {
	if b != nil {
		p.blocks--
		p.arena.Free(b)
	}
}

// completeAll gives tasks i to i + n - 1 of j the same outcome.
func (p *Pool) completeAll(j *job, i uint64, n uint32, r *Result) {
	for k := range uint64(n) {
		p.complete(j, i+k, r)
	}
}

// complete gives task i of j its outcome.
func (p *Pool) complete(j *job, i uint64, r *Result) {
	j.open--
	p.open--
	p.outcomes++
	if r.Outcome == Lost {
		p.lost++
	}
	switch r.Outcome {
	case Lost, Cancelled, BadInit, BadStart, Closed, NoMemory, NotFound:
		p.forgetTask(j, i)
	}
	if !j.dropped {
		j.finish(i, r)
	}
	if j.open == 0 {
		if j.ctx != nil {
			p.arena.Free(j.ctx)
			j.ctx = nil
		}
		if j.ended != nil {
			j.ended()
		}
	}
}

// forgetTask has the references in the bytes of a task taken back, as nobody will read them.
func (p *Pool) forgetTask(j *job, i uint64) {
	if w, ok := j.work.(interface{ task(i uint64) []byte }); ok {
		p.leaveUnread(w.task(i))
	}
}

// leaveUnread hands bytes to Options.Unread, without the pool's lock: objects may be destroyed there.
func (p *Pool) leaveUnread(data []byte) {
	if len(data) < shm.RefSize {
		return
	}
	if p.unread = append(p.unread, data); len(p.unread) > 1 {
		return
	}
	go func() {
		p.mu.Lock()
		unread := p.unread
		p.unread = nil
		p.mu.Unlock()
		for _, data := range unread {
			p.opt.Unread(data)
		}
	}()
}

// dropQueued ends all tasks that are in no lane.
func (p *Pool) dropQueued(r *Result) {
	for _, a := range p.retry {
		p.freeBlock(a.block)
		p.completeAll(a.job, a.i, a.n, r)
	}
	p.retry = nil
	for _, j := range p.queue {
		p.completeRest(j, r)
	}
	p.queue, p.queueGone = nil, 0
}

// abandon takes back what has not started of a job, and ends the wait for what has: each task gets its outcome now.
func (p *Pool) abandon(j *job) {
	p.cancelWaiting(j)
	if j.dropped = true; j.open == 0 {
		return
	}
	for _, ln := range p.lanes {
		if ln == nil {
			continue
		}
		for k := range ln.pending.len() {
			if e := ln.pending.at(k); e.job == j && !e.revoked {
				for i := range uint64(e.n) {
					j.finish(e.i+i, &Result{Outcome: Abandoned})
				}
			}
		}
	}
}

// drop takes back what has not started of a job whose caller is gone; outcomes of what has started go nowhere.
// running says that what runs is cancelled, too.
func (p *Pool) drop(j *job, running bool) {
	j.dropped = true
	for _, ln := range p.cancelWaiting(j) {
		if running {
			p.cancelRunning(ln, j)
		}
	}
}

// cancelWaiting takes back what has not started of a job. It returns the lanes that run a task of it.
func (p *Pool) cancelWaiting(j *job) (running []*lane) {
	none := &Result{Outcome: Cancelled}
	if j.next < j.n {
		p.completeRest(j, none)
		p.forgetDropped()
	}
	p.retry = slices.DeleteFunc(p.retry, func(a again) bool {
		if a.job == j {
			p.freeBlock(a.block)
			p.completeAll(j, a.i, a.n, none)
		}
		return a.job == j
	})
	for _, ln := range p.lanes {
		if ln == nil || ln.proc == nil {
			continue
		}
		runs := false
		for i := range ln.pending.len() {
			e := ln.pending.at(i)
			if e.job != j || e.revoked {
				continue
			}
			if block, ok := ln.revoke(e); ok {
				p.freeBlock(block)
				p.completeAll(j, e.i, e.n, none)
			} else {
				i, n := ln.cut(e)
				p.completeAll(j, i, n, none)
				runs = true
			}
		}
		if runs {
			running = append(running, ln)
		}
	}
	return running
}

// killRunning kills a worker that runs a task of j, and makes sure that it runs no other by the time it dies.
func (p *Pool) killRunning(ln *lane, j *job) {
	p.steal(ln, 0)
	// A worker does one task at a time: if it is past j's task, the last one that was not taken back is another's, or none.
	p.read(ln)
	if ln.waiting == 0 {
		return
	}
	for i := range ln.pending.len() {
		if e := ln.pending.at(i); !e.revoked && e.job != j {
			return
		}
	}
	ln.state = laneStateRetiring
	_ = ln.proc.Kill()
	p.ensure(0)
}

// batch is the work of submitted tasks: bytes one after the other, results kept until they are taken.
type batch struct {
	p       *Pool
	job     *job
	cookie  uint64
	data    []byte
	ends    []uint64 // of task i in data
	results []Result // by task, made at the first outcome
	taken   uint64
}

func (b *batch) span(i uint64) (from, to uint64) {
	if i > 0 {
		from = b.ends[i-1]
	}
	return from, b.ends[i]
}

func (b *batch) size(i uint64) int {
	from, to := b.span(i)
	return int(to - from)
}

func (b *batch) task(i uint64) []byte {
	from, to := b.span(i)
	return b.data[from:to]
}

func (b *batch) put(i uint64, dst []byte) { copy(dst, b.task(i)) }

// resultTaken marks a place in batch.results whose result was handed out.
const resultTaken = Outcome(0xff)

// resultOpen marks one that has no outcome yet.
const resultOpen = Outcome(0xfe)

func (b *batch) finish(i uint64, r *Result) {
	if b.results == nil {
		b.results = make([]Result, b.job.n)
		for k := range b.results {
			b.results[k].Outcome = resultOpen
		}
	}
	kept := *r
	kept.Task, kept.Cookie = b.job.first+i, b.cookie+i
	if kept.Data, kept.Foreign = b.p.keep(r.Data); kept.Data == nil && len(r.Data) > 0 {
		kept.Outcome = NoMemory
	}
	b.results[i] = kept
	b.p.done.push(b, i)
	if b.job.open == 0 {
		b.data, b.ends = nil, nil // nobody asks for them any more
	}
}

// take hands out the result of task i, which has one.
func (b *batch) take(i uint64) Result {
	r := b.results[i]
	b.results[i] = Result{Outcome: resultTaken}
	b.taken++
	if b.taken == b.job.n {
		b.p.forget(b.job)
	}
	return r
}

// keep copies bytes out of shared memory. It returns nil if there is no memory for them.
func (p *Pool) keep(data []byte) (kept []byte, foreign bool) {
	n := len(data)
	switch {
	case n == 0:
		return nil, false
	case n >= BigResult && p.opt.Alloc != nil:
		if kept = p.opt.Alloc(n); kept != nil {
			copy(kept, data)
		}
		return kept, kept != nil
	case n >= 4<<10:
		kept = make([]byte, n)
	default:
		// Small results share chunks: an allocation each would be most of what a result costs.
		if len(p.bytes) < n {
			p.bytes = make([]byte, 64<<10)
		}
		kept, p.bytes = p.bytes[:n:n], p.bytes[n:]
	}
	copy(kept, data)
	return kept, false
}

// forget removes a job whose results were all taken.
func (p *Pool) forget(j *job) {
	k := p.find(j.first)
	if k < 0 {
		return
	}
	// Its numbers stay for the search until it is among the first, the usual case, or half of all jobs are such.
	p.jobs[k] = &job{first: j.first, n: j.n}
	p.jobsGone++
	for len(p.jobs) > 0 && p.jobs[0].work == nil {
		p.jobs[0] = nil
		p.jobs = p.jobs[1:]
		p.jobsGone--
	}
	if p.jobsGone > 32 && p.jobsGone > len(p.jobs)/2 {
		p.jobs = slices.DeleteFunc(p.jobs, func(j *job) bool { return j.work == nil })
		p.jobsGone = 0
	}
}

// find returns the place in p.jobs of the job that has the task, or -1.
func (p *Pool) find(task uint64) int {
	k := sort.Search(len(p.jobs), func(k int) bool { return p.jobs[k].first+p.jobs[k].n > task })
	if k < len(p.jobs) && p.jobs[k].first <= task && p.jobs[k].work != nil {
		return k
	}
	return -1
}

func (j *job) discard(p *Pool) {
	b, ok := j.work.(*batch)
	if !ok {
		return
	}
	for i := range b.results {
		r := &b.results[i]
		switch {
		case r.Outcome == resultTaken:
		case r.Foreign:
			p.opt.Unread(r.Data)
			p.opt.Free(r.Data)
		default:
			p.leaveUnread(r.Data)
		}
	}
}

// SubmitBytes hands over len(sizes) tasks for fn: task i has sizes[i] of the bytes of data, which is copied. Task numbers
// and cookies count up from the first. It does not wait. Results come by Collect or WaitTask.
func (p *Pool) SubmitBytes(fn uint64, data []byte, sizes []uint64, cookie uint64) (first uint64, err error) {
	if len(sizes) == 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed {
			return 0, ErrClosed
		}
		return 0, nil
	}
	ends := make([]uint64, len(sizes))
	sum := uint64(0)
	for i, n := range sizes {
		if n > math.MaxInt64-sum {
			return 0, ErrTooBig
		}
		sum += n
		ends[i] = sum
	}
	if sum != uint64(len(data)) {
		return 0, ErrInvalid
	}
	if err := affordable(sum); err != nil {
		return 0, err
	}
	b := &batch{p: p, cookie: cookie, ends: ends}
	if sum > 0 {
		// The caller's memory may be gone before the tasks start.
		b.data = append(make([]byte, 0, sum), data...)
	}
	b.job = &job{work: b, n: uint64(len(sizes)), fn: fn, outSize: outMaxDefault}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.add(b.job); err != nil {
		return 0, err
	}
	p.jobs = append(p.jobs, b.job)
	return b.job.first, nil
}

// Collect takes up to limit results of submitted tasks, oldest outcome first, and calls take for each. If there is none
// it waits for the first, for at most timeout (< 0: for ever). It returns 0 when Wake was called, and ErrClosed when
// the pool is closed and none is left to come.
func (p *Pool) Collect(limit int, timeout time.Duration, take func(Result)) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freed {
		return 0, ErrClosed
	}
	wakes := p.wakes
	p.look()
	if p.done.len() == 0 {
		err := p.waitFor(timeout, func() bool { return p.done.len() > 0 || p.wakes != wakes || p.ended() })
		if err != nil && p.done.len() == 0 {
			return 0, err
		}
	}
	if p.done.len() == 0 && p.ended() {
		return 0, ErrClosed
	}
	n := 0
	for n < limit {
		b, i, ok := p.done.pop()
		if !ok {
			break
		}
		take(b.take(i))
		n++
	}
	return n, nil
}

// ended reports whether no result can come any more.
func (p *Pool) ended() bool { return p.closed && p.open == 0 }

// Wake makes the calls of Collect that wait return with no result.
func (p *Pool) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakes++
	p.notify()
}

// WaitTask waits for the outcome of one task and takes it.
func (p *Pool) WaitTask(task uint64, timeout time.Duration) (Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, i, err := p.lookup(task)
	if err != nil {
		return Result{}, err
	}
	finished := func() bool { return b.results != nil && b.results[i].Outcome != resultOpen }
	if !finished() {
		if err := p.waitFor(timeout, finished); err != nil {
			return Result{}, err
		}
	}
	if b.results[i].Outcome == resultTaken {
		return Result{}, ErrNoTask
	}
	p.done.remove(b, i)
	return b.take(i), nil
}

// Cancel takes back a task that has not started; its outcome is Cancelled.
func (p *Pool) Cancel(task uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, i, err := p.lookup(task)
	if err != nil {
		return err
	}
	p.look()
	if b.results != nil && b.results[i].Outcome != resultOpen {
		return ErrStarted
	}
	j := b.job
	cancelled := &Result{Outcome: Cancelled}
	if i >= j.next {
		if j.holes == nil {
			j.holes = map[uint64]struct{}{}
		}
		j.holes[i] = struct{}{}
		p.complete(j, i, cancelled)
		p.notify()
		return nil
	}
	for k, a := range p.retry {
		if a.job == j && a.i == i {
			p.retry = slices.Delete(p.retry, k, k+1)
			p.freeBlock(a.block)
			p.complete(j, i, cancelled)
			p.notify()
			return nil
		}
	}
	for _, ln := range p.lanes {
		if ln == nil {
			continue
		}
		for k := range ln.pending.len() {
			e := ln.pending.at(k)
			if e.job != j || e.i != i || e.revoked {
				continue
			}
			block, ok := ln.revoke(e)
			if !ok {
				return ErrStarted
			}
			p.freeBlock(block)
			p.complete(j, i, cancelled)
			p.notify()
			return nil
		}
	}
	return ErrStarted
}

func (p *Pool) lookup(task uint64) (*batch, uint64, error) {
	k := p.find(task)
	if k < 0 {
		return nil, 0, ErrNoTask
	}
	b := p.jobs[k].work.(*batch)
	i := task - b.job.first
	if b.results != nil && b.results[i].Outcome == resultTaken {
		return nil, 0, ErrNoTask
	}
	return b, i, nil
}

// doneQueue holds which results are there, oldest first. A result that WaitTask took leaves a hole.
type doneQueue struct {
	items []doneItem
	head  int
	holes int
}

type doneItem struct {
	b *batch
	i uint64
}

func (q *doneQueue) len() int { return len(q.items) - q.head - q.holes }

func (q *doneQueue) push(b *batch, i uint64) { q.items = append(q.items, doneItem{b, i}) }

func (q *doneQueue) pop() (*batch, uint64, bool) {
	for q.head < len(q.items) {
		it := q.items[q.head]
		q.items[q.head] = doneItem{}
		q.head++
		if q.head == len(q.items) {
			q.items, q.head = q.items[:0], 0
		} else if q.head >= 4096 && q.head*2 >= len(q.items) {
			n := copy(q.items, q.items[q.head:])
			clear(q.items[n:])
			q.items, q.head = q.items[:n], 0
		}
		if it.b.results[it.i].Outcome == resultTaken {
			q.holes--
			continue
		}
		return it.b, it.i, true
	}
	return nil, 0, false
}

// remove makes a hole of a result that is about to be taken. The one at the head, the usual case of submit and wait by
// turns, leaves none; others are skipped by pop, which sees that they were taken.
func (q *doneQueue) remove(b *batch, i uint64) {
	q.holes++
	if q.holes > 32 && q.holes > (len(q.items)-q.head)/2 {
		q.items = slices.DeleteFunc(q.items[q.head:], func(it doneItem) bool {
			return it == doneItem{b, i} || it.b.results[it.i].Outcome == resultTaken
		})
		q.head, q.holes = 0, 0
		return
	}
	for q.head < len(q.items) {
		it := q.items[q.head]
		if it != (doneItem{b, i}) && it.b.results[it.i].Outcome != resultTaken {
			return
		}
		q.items[q.head] = doneItem{}
		q.head++
		q.holes--
		if q.head == len(q.items) {
			q.items, q.head = q.items[:0], 0
		}
	}
}
