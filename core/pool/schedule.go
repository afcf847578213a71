package pool

import (
	"math/bits"
	"runtime"
	"time"
)

const (
	// laneFill is how much work a lane is given ahead, as run time. Deeper lanes need fewer wake-ups, and cost nothing
	// when they turn out wrong: what has not started is taken back.
	laneFill = 300 * time.Microsecond
	// maxDepth is how many tasks a lane holds at most.
	maxDepth = 1024
	// tiny is the run time below which a task is not worth waking another worker than those that fill the CPUs.
	tiny = 20 * time.Microsecond
	// prefetch is the run time below which a worker has its next task waiting while it runs one.
	prefetch = 5 * time.Millisecond
	// tick is how long a lane may hold tasks without progress while others have nothing to do.
	tick = 2 * time.Millisecond
)

// poll reads what workers have said, and gives them what they can take.
func (p *Pool) poll() {
	if p.board == nil { // after Close
		return
	}
	for w := range (len(p.lanes) + 63) / 64 {
		if p.board.ready[w].Load() == 0 {
			continue
		}
		for m := p.board.ready[w].Swap(0); m != 0; m &= m - 1 {
			if slot := w*64 + bits.TrailingZeros64(m); slot < len(p.lanes) && p.lanes[slot] != nil && p.lanes[slot].proc != nil {
				p.read(p.lanes[slot])
			}
		}
	}
	p.feed()
	p.settle()
}

// read drains a lane. A worker that has spoilt it is killed; onExit does the rest.
func (p *Pool) read(ln *lane) {
	if err := ln.drain(); err != nil && ln.proc != nil {
		_ = ln.proc.Kill()
	}
	p.retire(ln)
}

// depth is how many tasks a lane should hold.
func (p *Pool) depth() int {
	switch {
	case p.meanNS == 0 || p.meanNS > float64(prefetch):
		return 1
	case p.meanNS > float64(laneFill)/2:
		return 2
	}
	if len(p.queue) > 0 && p.queue[0].spanMax > 1 { // few records for many tasks
		return min(int(float64(2*laneFill)/p.meanNS), 4*int(p.queue[0].spanMax))
	}
	return min(int(float64(laneFill)/p.meanNS), maxDepth)
}

// spread is how many lanes tasks should be spread over, as long as these get on.
func (p *Pool) spread() int {
	if p.usualNS != 0 && p.usualNS < float64(tiny) {
		return max(runtime.GOMAXPROCS(0), 1)
	}
	return len(p.lanes)
}

// feed moves queued tasks to lanes. Which lanes: tasks of unknown or long run time go one to each; short ones go in numbers
// to as many lanes as there are CPUs, and to others only if these make no progress.
func (p *Pool) feed() {
	if p.failure == nil && !p.terminated && (len(p.queue) > 0 || len(p.retry) > 0) {
		p.feedLanes()
	}
	for _, ln := range p.dirty {
		ln.publish()
	}
	p.dirty = p.dirty[:0]
}

func (p *Pool) feedLanes() {
	depth, limit := p.depth(), p.spread()
	// First round: lanes with nothing to do get one each. Then all are filled, evenly.
	for level := 1; ; level = min(level*2, depth) {
		used := 0
		for _, ln := range p.lanes {
			if used >= limit {
				break
			}
			if ln == nil || ln.state != laneStateReady {
				continue
			}
			if ln.slow && ln.waiting > 0 {
				continue
			}
			used++
			for ln.waiting < level && p.hasQuota(ln) {
				more, room := p.give(ln)
				if !more {
					return
				}
				if !room {
					if ln.tasks.Err() != nil { // there will never be any: its worker has spoilt the ring
						ln.state = laneStateRetiring
						_ = ln.proc.Kill()
						p.ensure(0)
					}
					break
				}
			}
		}
		if level >= depth {
			return
		}
	}
}

func (p *Pool) hasQuota(ln *lane) bool { return p.opt.MaxTasks == 0 || ln.assigned < p.opt.MaxTasks }

// give stages the next task, and those of its chunk. more: there was one for which there is memory; room: the lane took it.
func (p *Pool) give(ln *lane) (more, room bool) {
	if len(p.retry) > 0 {
		a := p.retry[0]
		if a.job.dropped { // its caller's memory may be gone
			p.retry[0] = again{}
			p.retry = p.retry[1:]
			p.freeBlock(a.block)
			p.completeAll(a.job, a.i, a.n, &Result{Outcome: Cancelled})
			return true, true
		}
		n := a.n
		if n > 1 { // of a span that did not get on: in parts, to several lanes
			n = max(n/uint32(2*p.opt.Workers), 1)
		}
		ok, err := ln.stage(a.job, a.i, n, a.block)
		if err == errLater {
			return false, false
		}
		if err != nil {
			p.completeAll(a.job, a.i, n, outcomeOf(err))
		}
		if (ok || err != nil) && n < a.n {
			p.retry[0].i += uint64(n)
			p.retry[0].n -= n
		} else if ok || err != nil {
			p.retry[0] = again{}
			p.retry = p.retry[1:]
		}
		p.spent(ln)
		return true, ok || err != nil
	}
	for len(p.queue) > 0 {
		j := p.queue[0]
		if j.next == j.n {
			p.unqueue()
			continue
		}
		if n := p.spanOf(j); n > 1 {
			for k := uint64(0); k < max(j.chunk, 1) && j.next < j.n; k += n {
				n = min(n, j.n-j.next, max(j.chunk, n)-k)
				if ok, _ := ln.stage(j, j.next, uint32(n), nil); !ok {
					return true, k > 0
				}
				j.next += n
			}
			return true, true
		}
		for k := uint64(0); k < max(j.chunk, 1) && j.next < j.n && p.hasQuota(ln); k++ {
			if j.isOver(j.next) {
				j.next++
				continue
			}
			ok, err := ln.stage(j, j.next, 1, nil)
			if err == errLater { // nor will it for another lane
				p.spent(ln)
				return false, false
			}
			if err != nil {
				p.complete(j, j.next, outcomeOf(err))
			} else if !ok {
				p.spent(ln)
				return true, k > 0
			}
			j.next++
		}
		p.spent(ln)
		return true, true
	}
	return false, false
}

// spanTime is how long the tasks of one record should run, if the caller does not say how many go together.
const spanTime = 100 * time.Microsecond

// spanOf is how many of a job's next tasks go into one record.
func (p *Pool) spanOf(j *job) uint64 {
	if j.spanMax < 2 || p.opt.MaxTasks > 0 {
		return 1
	}
	if j.chunk > 1 {
		return min(j.chunk, j.spanMax)
	}
	if p.meanNS == 0 {
		return 1
	}
	// Towards the end of a job fewer, so that all workers end at about the same time.
	share := (j.n - j.next) / uint64(2*p.opt.Workers)
	return max(min(uint64(float64(spanTime)/p.meanNS), j.spanMax, share), 1)
}

func outcomeOf(err error) *Result { return &Result{Outcome: NoMemory, Data: []byte(err.Error())} }

// spent starts the replacement of a worker that has been given its last task, so that it is there when this one ends.
func (p *Pool) spent(ln *lane) {
	if ln.state == laneStateReady && !p.hasQuota(ln) {
		ln.state = laneStateRetiring
		p.ensure(0)
	}
}

// retire tells a lane that gets no more tasks to end, once it has done its last.
func (p *Pool) retire(ln *lane) {
	if ln.state == laneStateRetiring && ln.waiting == 0 {
		p.tellEnd(ln)
	}
}

func (p *Pool) tellEnd(ln *lane) {
	if ln.closing {
		return
	}
	ln.closing = true
	ln.head.state.Store(laneClosing)
	ln.head.taskBell.ringAlways()
}

// settle ends the workers of a closed pool that has nothing left to do.
func (p *Pool) settle() {
	if !p.closed || p.open > 0 {
		return
	}
	p.stopTimers()
	told := len(p.vacancies) > 0
	if p.opt.HostStarts && !p.over {
		p.over = true
		p.withdraw()
	}
	for _, ln := range p.lanes {
		if ln != nil && ln.proc != nil && !ln.closing {
			p.tellEnd(ln)
			told = true
		}
	}
	if told {
		p.notify()
	}
}

// needsTick reports whether a lane may hold tasks that another could run now.
func (p *Pool) needsTick() bool {
	idle, held := false, false
	for _, ln := range p.lanes {
		if ln == nil || ln.state == laneStateEmpty {
			continue
		}
		if ln.state == laneStateReady && ln.waiting == 0 {
			idle = true
		} else if ln.waiting > 1 {
			held = true
		}
	}
	return idle && (held || len(p.queue) > 0 || len(p.retry) > 0)
}

// takeBack moves tasks from lanes that made no progress since the last look, where others have nothing to do.
func (p *Pool) takeBack() {
	for _, ln := range p.lanes {
		if ln == nil || ln.proc == nil || ln.waiting == 0 {
			continue
		}
		stuck := ln.finished == ln.seen
		ln.seen = ln.finished
		if !stuck {
			continue
		}
		ln.slow = true
		p.steal(ln, 0)
	}
	p.feed()
}

// steal takes back the tasks of a lane that have not started, but for the first keep of them.
func (p *Pool) steal(ln *lane, keep int) {
	var taken []again
	for k := keep; k < ln.pending.len(); k++ {
		e := ln.pending.at(k)
		if e.revoked {
			continue
		}
		if block, ok := ln.revoke(e); ok {
			taken = append(taken, again{e.job, e.i, e.n, block})
		} else if i, n := ln.cut(e); n > 0 {
			taken = append(taken, again{e.job, i, n, nil})
		}
	}
	p.again(taken)
}
