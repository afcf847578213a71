package pool

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

type laneState uint8

const (
	laneStateEmpty    laneState = iota // no process
	laneStateStarting                  // a process that has not said that it is ready
	laneStateReady
	laneStateRetiring // gets no more tasks: ends when it has done what it has
)

// lane is one worker process and its two rings, seen from the parent. The pool's lock guards it.
type lane struct {
	p          *Pool
	slot       int
	state      laneState
	mem        []byte // the lane's part of the segment
	head       *laneHeader
	generation uint32 // counts the processes that had the lane; head has it for the worker
	tasks      *shm.Producer
	results    *shm.Consumer
	large      *shm.Windows // result blocks
	proc       *start.Process

	pending    entries // in its task ring or running, oldest first
	waiting    int     // of pending: not revoked
	number     uint64  // of the last task staged
	assigned   int     // tasks given to this process so far, less those taken back
	finished   uint64  // results read, over all its life
	seen       uint64  // finished at the last tick
	slow       bool    // made no progress between two ticks: gets tasks one by one
	isDirty    bool    // staged records are to be published
	closing    bool    // told to end
	ready      bool    // has been ready
	fruitless  bool    // this process has finished no task
	vacant     bool    // the host is to start its process
	initFailed bool
	spoilt     error // what is wrong with what the worker wrote: nothing more is read
}

// entry is a task in a lane.
type entry struct {
	job     *job
	i       uint64
	number  uint64
	head    *taskHead
	block   *shm.Block
	end     uint64 // of its record in the ring
	n       uint32 // tasks from i on: 1, but of a span, from which tasks were taken back perhaps
	count   uint32 // of a span: how many it had at first; else 0
	revoked bool
}

// laneAt makes the lane of a slot ready for a new process.
func (p *Pool) laneAt(slot int) (*lane, error) {
	ln := p.lanes[slot]
	if ln == nil {
		off := p.geo.laneOff + int64(slot)*p.geo.laneSize
		if err := p.seg.Reserve(off, p.geo.laneSize); err != nil {
			return nil, err
		}
		mem, err := p.seg.Map(off, p.geo.laneSize)
		if err != nil {
			return nil, err
		}
		ln = &lane{p: p, slot: slot, mem: mem, head: at[laneHeader](mem)}
		p.lanes[slot] = ln
	}
	// Nobody else uses this memory: the process that had the lane is dead.
	generation := ln.generation + 1
	clear(ln.mem[:laneHead])
	ln.head.generation.Store(generation)
	ln.head.state.Store(laneOpen)
	var err error
	if ln.tasks, err = shm.NewProducer(&ln.head.taskTail, &ln.head.taskHead, ln.mem[laneHead:laneHead+p.ringCap]); err != nil {
		return nil, err
	}
	if ln.results, err = shm.NewConsumer(&ln.head.resultTail, &ln.head.resultHead, ln.mem[laneHead+p.ringCap:]); err != nil {
		return nil, err
	}
	if ln.large == nil {
		ln.large = shm.NewWindows(p.seg, 16)
	}
	*ln = lane{p: p, slot: slot, mem: ln.mem, head: ln.head, generation: generation, tasks: ln.tasks, results: ln.results, large: ln.large,
		finished: ln.finished, seen: ln.finished, fruitless: true}
	return ln, nil
}

func (ln *lane) unmap() {
	if ln.large != nil {
		ln.large.Close()
	}
	_ = ln.p.seg.Unmap(ln.mem)
}

// errLater says that a task will fit into memory when others have ended.
var errLater = errors.New("pool: no memory now")

// stage puts a task into the lane's ring; nobody sees it before publish. It reports false if the ring has no room. err means
// that this task will not fit into memory, or not now.
func (ln *lane) stage(j *job, i uint64, many uint32, block *shm.Block) (ok bool, err error) {
	n, count := j.size(i), uint32(0)
	flags := j.flags
	if many > 1 {
		n, count = sizeSpan+j.work.(*Array).spanSize(many), many
		flags |= flagSpan
	}
	body := sizeTaskHead + n
	if bulk := body > ln.tasks.Max(); bulk {
		flags, body = flags|flagBulk, sizeTaskHead+sizeBulkRef
	}
	fresh := flags&flagBulk != 0 && block == nil
	if fresh {
		if block, err = ln.p.arena.Alloc(int64(n)); err != nil {
			if ln.p.blocks > 0 {
				return false, errLater
			}
			return false, err
		}
		ln.p.blocks++
	}
	buf, end, ok := ln.tasks.Stage(kindTask, flags, body)
	if !ok {
		if fresh {
			ln.p.freeBlock(block)
		}
		return false, nil
	}
	if flags&flagBulk != 0 {
		if fresh {
			j.put(i, block.Bytes)
		}
		*at[bulkRef](buf[sizeTaskHead:]) = bulkRef{off: uint64(block.Off), size: uint64(n)}
	} else if count > 0 {
		a := j.work.(*Array)
		s := at[span](buf[sizeTaskHead:])
		s.resultAt, s.count, s.inSize = 0, count, uint32(a.InSize)
		s.claim.Store(uint64(count) << 32)
		a.putSpan(i, count, buf[sizeTaskHead+sizeSpan:])
	} else {
		j.put(i, buf[sizeTaskHead:])
	}
	ln.number++
	h := at[taskHead](buf)
	h.number, h.fn, h.outSize, h.ctxOff, h.ctxSize, h.deadline = ln.number, j.fn, j.outSize, 0, 0, j.deadline
	h.state.Store(taskReady)
	if j.ctx != nil {
		h.ctxOff, h.ctxSize = uint64(j.ctx.Off), j.ctxSize
	}
	ln.pending.push(entry{job: j, i: i, number: ln.number, head: h, block: block, end: end, n: many, count: count})
	ln.waiting += int(many)
	ln.assigned += int(many)
	ln.markDirty()
	return true, nil
}

func (ln *lane) markDirty() {
	if !ln.isDirty {
		ln.isDirty = true
		ln.p.dirty = append(ln.p.dirty, ln)
	}
}

// publish shows the worker what was staged and wakes it if it sleeps.
func (ln *lane) publish() {
	ln.isDirty = false
	ln.tasks.Publish()
	ln.head.taskBell.ring()
}

// revoke takes a task back that the worker has not started. The block with its bytes, if any, is the caller's then.
func (ln *lane) revoke(e *entry) (*shm.Block, bool) {
	if ln.gone(e) || !e.head.state.CompareAndSwap(taskReady, taskRevoked) {
		return nil, false
	}
	block := e.block
	e.revoked, e.block = true, nil
	ln.waiting -= int(e.n)
	ln.assigned -= int(e.n)
	ln.p.retire(ln) // this may have been its last
	return block, true
}

// gone reports whether the worker has given the record of an entry back: it has done the task, though its result was not read yet, and
// another record may lie there.
func (ln *lane) gone(e *entry) bool { return ln.tasks.Head() >= e.end }

// span returns the shared words of an entry that is a span.
func (e *entry) span() *span {
	return (*span)(unsafe.Add(unsafe.Pointer(e.head), sizeTaskHead))
}

// cut takes the tasks back that have not begun of a span that has: n from i on.
func (ln *lane) cut(e *entry) (i uint64, n uint32) {
	if e.count == 0 || ln.gone(e) {
		return 0, 0
	}
	s := e.span()
	for {
		claim := s.claim.Load()
		claimed := min(uint32(claim), e.n)
		if claimed == e.n {
			return 0, 0
		}
		if s.claim.CompareAndSwap(claim, uint64(claimed)<<32|uint64(claimed)) {
			i, n = e.i+uint64(claimed), e.n-claimed
			e.n = claimed
			ln.waiting -= int(n)
			ln.assigned -= int(n)
			return i, n
		}
	}
}

// drain reads the results that are there. An error means that the worker has spoilt the lane; it stays so.
func (ln *lane) drain() error {
	if ln.spoilt == nil {
		ln.spoilt = ln.readAll()
	}
	return ln.spoilt
}

func (ln *lane) readAll() error {
	var r Result
	read := false
	for {
		rec, ok, err := ln.results.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		read = true
		switch rec.Kind {
		case kindReady:
			if ln.state == laneStateStarting {
				ln.p.becameReady(ln)
			}
		case kindInitFailed:
			if ln.state != laneStateStarting {
				return fmt.Errorf("%w: an initializer that failed after its end", shm.ErrCorrupt)
			}
			data, slot, err := ln.payload(rec, rec.Body)
			if errors.Is(err, shm.ErrCorrupt) {
				return err
			} else if err != nil {
				data = []byte(err.Error())
			}
			ln.p.initFailed(ln, data)
			if slot >= 0 {
				ln.release(slot, data)
			}
		case kindResult:
			if err := ln.result(rec, &r); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: record of kind %d", shm.ErrCorrupt, rec.Kind)
		}
	}
	if read {
		ln.results.Release()
		ln.head.spaceBell.ring()
	}
	return nil
}

// result takes one result record.
func (ln *lane) result(rec shm.Record, r *Result) error {
	if len(rec.Body) < sizeResultHead {
		return fmt.Errorf("%w: result of %d bytes", shm.ErrCorrupt, len(rec.Body))
	}
	h := *at[resultHead](rec.Body)
	var e *entry
	for {
		if ln.pending.len() == 0 {
			return fmt.Errorf("%w: result of task %d, which the worker was not given", shm.ErrCorrupt, h.number)
		}
		if e = ln.pending.at(0); !e.revoked {
			break
		}
		ln.pending.pop()
	}
	if e.number != h.number {
		return fmt.Errorf("%w: result of task %d, expected %d", shm.ErrCorrupt, h.number, e.number)
	}
	data, slot, err := ln.payload(rec, rec.Body[sizeResultHead:])
	if errors.Is(err, shm.ErrCorrupt) {
		return err
	}
	*r = Result{Outcome: OK, PID: ln.proc.PID(), Data: data}
	if err != nil {
		r.Outcome, r.Data = NoMemory, []byte(err.Error()) // this process has none to see the bytes
	} else if h.status != 0 {
		r.Outcome, r.Code = failureOf(h.status), h.code
	}
	j, i, block, n, count := e.job, e.i, e.block, e.n, e.count
	if count > 0 && h.status == 0 && err == nil && len(data) != int(count)*(sizeSpanOut+j.work.(*Array).outStride()) {
		return fmt.Errorf("%w: result of %d bytes for %d elements", shm.ErrCorrupt, len(data), count)
	}
	if n > 1 {
		h.runNS /= uint64(n)
	}
	ln.p.learn(h.runNS)
	ln.pending.pop()
	ln.waiting -= int(n)
	ln.finished++
	ln.slow, ln.fruitless = false, false
	ln.p.barren = 0
	ln.p.freeBlock(block)
	if count > 0 && r.Outcome == OK {
		ln.p.completeSpan(j, i, n, count, data, r.PID)
	} else {
		ln.p.completeAll(j, i, n, r)
	}
	if slot >= 0 {
		ln.release(slot, data)
	}
	return nil
}

// failureOf is the outcome that a worker's status stands for: the task's own error, or why the library could not run it.
func failureOf(status int32) Outcome {
	switch status {
	case statusNoMemory:
		return NoMemory
	case statusNotFound:
		return NotFound
	case statusTooBig:
		return TooBig
	}
	return Failed
}

// completeSpan gives the first n tasks of a span of count, from task i of j on, the outcomes that the worker has left.
func (p *Pool) completeSpan(j *job, i uint64, n, count uint32, data []byte, pid int) {
	a := j.work.(*Array)
	outs, stride := data[int(count)*sizeSpanOut:], a.outStride()
	if n > 0 && a.Quiet && !j.dropped && a.copySpan(i, n, data, outs) {
		p.outcomes += uint64(n) - 1
		p.open -= uint64(n) - 1
		j.open -= uint64(n) - 1
		a.skip = true
		p.complete(j, i, &Result{})
		a.skip = false
		return
	}
	for k := range uint64(n) {
		h := *at[spanOut](data[k*sizeSpanOut:])
		r := Result{Outcome: OK, PID: pid, Code: h.code, Data: outs[k*uint64(stride):][:min(int(h.size), a.OutSize)]}
		if h.status != 0 {
			r.Outcome = failureOf(h.status)
		}
		p.complete(j, i+k, &r)
	}
}

// rescueSpan gives the tasks of a span that a dead worker has done the outcomes that it left in its result ring, and returns which task it
// ran and which have not begun: lost is -1 if it ran none.
func (ln *lane) rescueSpan(e *entry) (lost int64, rest again) {
	s := e.span()
	claimed := min(uint32(s.claim.Load()), e.n)
	rest = again{job: e.job, i: e.i + uint64(claimed), n: e.n - claimed}
	if claimed == 0 {
		return -1, rest
	}
	a := e.job.work.(*Array)
	size := uint64(e.count) * uint64(sizeSpanOut+a.outStride())
	resultAt := s.resultAt
	ring := ln.mem[laneHead+ln.p.ringCap:]
	if size > uint64(len(ring)) || resultAt%8 != 0 || resultAt > uint64(len(ring))-size {
		ln.p.completeAll(e.job, e.i, claimed-1, &Result{Outcome: Lost, PID: ln.proc.PID()})
	} else if claimed > 1 {
		ln.p.completeSpan(e.job, e.i, claimed-1, e.count, ring[resultAt:][:size], ln.proc.PID())
	}
	return int64(e.i) + int64(claimed) - 1, rest
}

// release gives a result block back to the worker.
func (ln *lane) release(slot int, data []byte) {
	ln.large.Done(data)
	ln.head.slots[slot].Store(0)
}

// payload returns the bytes of a record: in the ring, or in a block of the lane's result arena, then with its slot. Errors:
// shm.ErrCorrupt; others mean that this process cannot see the bytes, which are there.
func (ln *lane) payload(rec shm.Record, body []byte) (data []byte, slot int, err error) {
	if rec.Flags&flagBulk == 0 {
		return body, -1, nil
	}
	if len(body) < sizeBulkRef {
		return nil, -1, fmt.Errorf("%w: block reference of %d bytes", shm.ErrCorrupt, len(body))
	}
	ref := *at[bulkRef](body)
	g := &ln.p.geo
	from := uint64(g.resultOff) + uint64(ln.slot)*uint64(g.resultSize)
	if ref.slot >= maxSlots || ref.off < from || ref.size > uint64(g.resultSize) || ref.off-from > uint64(g.resultSize)-ref.size {
		return nil, -1, fmt.Errorf("%w: block of %d bytes at %d, slot %d", shm.ErrCorrupt, ref.size, ref.off, ref.slot)
	}
	// Unreserved storage would be a SIGBUS: make sure that what the worker says is there. It is a no-op on reserved storage.
	// It refuses, too, what would leave no memory for the copy that is made of it.
	if err := ln.p.seg.Reserve(int64(ref.off), int64(ref.size)); err != nil {
		return nil, int(ref.slot), err
	}
	data, err = ln.large.At(int64(ref.off), int64(ref.size))
	return data, int(ref.slot), err
}

// learn keeps the mean run time of recent tasks. It rises at once, so that a first long task is not followed by a deep lane. The usual
// run time does not: one tiny task that the system has put aside for some milliseconds is no reason to wake all workers, which would
// then put aside each other's.
func (p *Pool) learn(ns uint64) {
	x := float64(min(max(ns, 1), uint64(time.Hour)))
	if p.usualNS == 0 {
		p.usualNS = x
	}
	p.usualNS += (min(x, 8*p.usualNS) - p.usualNS) / 8
	switch {
	case p.meanNS == 0 || x > 8*p.meanNS:
		p.meanNS = x + 1
	default:
		p.meanNS += (x - p.meanNS) / 8
	}
}

// entries is a queue of entry that does not allocate when warm.
type entries struct {
	items []entry
	head  int
}

func (q *entries) len() int        { return len(q.items) - q.head }
func (q *entries) at(k int) *entry { return &q.items[q.head+k] }
func (q *entries) push(e entry) {
	if q.head > len(q.items)/2 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, e)
}
func (q *entries) pop() {
	q.items[q.head] = entry{}
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
}
