package pool

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/polyproc/polyproc/core/start"
)

// EnvWorker is the environment variable that tells a process that it is a worker, and of which pool:
// "descriptor,lane,generation,parent's process id".
const EnvWorker = "POLYPROC_WORKER"

// startsInRow is how many starts may fail in a row, with no worker ready, before the pool gives up.
// A SIGKILL counts less than an end of the worker's own making: it comes from outside, and the next start may be spared.
const (
	startsInRow = 3
	killWeight  = 10
)

// How fast workers are replaced that do nothing but die, though they were ready: see barrenDelay.
const (
	barrenFree  = 3 // so many in a row, besides one for each worker of the pool, are replaced at once
	barrenFirst = 10 * time.Millisecond
	barrenMost  = time.Second
)

// maxSaid is how much of what an initializer says is kept, bytes.
const maxSaid = 16 << 20

// startWorker starts a process in a free slot. The lock is released while the system starts it.
func (p *Pool) startWorker() error {
	slot := slices.IndexFunc(p.lanes, func(ln *lane) bool { return ln == nil || ln.state == laneStateEmpty })
	if slot < 0 {
		return nil // all slots have processes that are about to end; the end of one comes back here
	}
	ln, err := p.laneAt(slot)
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	if p.opt.HostStarts {
		p.vacate(ln)
		return nil
	}
	ln.state = laneStateStarting
	env := p.opt.Env
	if env == nil {
		env = os.Environ()
	}
	generation := ln.generation
	spec := start.Spec{
		Path: p.opt.Path, Args: p.opt.Args, Dir: p.opt.Dir, Files: append([]int{p.seg.FD()}, p.opt.Files...), BlockSIGINT: p.opt.BlockSIGINT,
		Env: append(withoutWorker(env), EnvWorker+"="+strings.Join([]string{
			strconv.Itoa(p.seg.FD()), strconv.Itoa(slot), strconv.FormatUint(uint64(generation), 10), strconv.Itoa(os.Getpid()),
		}, ",")),
	}
	p.mu.Unlock()
	var proc *start.Process
	if spec.Stdin, err = nothing(); err == nil {
		proc, err = p.opt.Method.Start(spec)
		_ = spec.Stdin.Close() // only read from
	}
	p.mu.Lock()
	if err != nil {
		ln.state = laneStateEmpty
		return fmt.Errorf("pool: %w", err)
	}
	p.started++
	p.employ(ln, proc)
	return nil
}

// nothing returns a file that is at its end: workers do not read what their parent's standard input has. Where there is no /dev/null, in a
// bare chroot, it is a pipe without a writer.
func nothing() (*os.File, error) {
	null, err := os.Open(os.DevNull)
	if err == nil {
		return null, nil
	}
	read, write, pipeErr := os.Pipe()
	if pipeErr != nil {
		return nil, err
	}
	return read, write.Close()
}

// employ begins to supervise a lane's new process.
func (p *Pool) employ(ln *lane, proc *start.Process) {
	ln.proc = proc
	if p.terminated || p.failure != nil {
		_ = proc.Kill()
	}
	proc.OnExit(func(status start.Status) { go p.onExit(ln, status) })
	p.settle()
	outcomes := p.outcomes
	p.read(ln) // it may have said that it is ready while nobody knew it
	p.feed()
	p.tell(outcomes)
}

func withoutWorker(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(s string) bool { return strings.HasPrefix(s, EnvWorker+"=") })
}

// becameReady counts a worker in.
func (p *Pool) becameReady(ln *lane) {
	ln.state = laneStateReady
	ln.ready = true
	p.startFails = 0
}

// initFailed notes that a worker's initializer failed. The worker ends by itself.
func (p *Pool) initFailed(ln *lane, data []byte) {
	p.initSaid = append([]byte{}, data[:min(len(data), maxSaid)]...)
	ln.initFailed = true
	ln.state = laneStateRetiring
}

// onExit settles the tasks of a worker that has ended: what it has done counts, what it ran is lost, what it had not started
// goes to others.
func (p *Pool) onExit(ln *lane, status start.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = ln.drain() // if this fails, what follows is right all the same
	lost := &Result{Outcome: Lost, PID: ln.proc.PID(), Exit: status.ExitCode()}
	if p.terminated && status.Signal == syscall.SIGKILL {
		lost = &Result{Outcome: Closed} // it was not the worker's fault
	}
	lostTasks := false
	var untouched []again
	for ln.pending.len() > 0 {
		e := *ln.pending.at(0)
		ln.pending.pop()
		switch {
		case e.revoked:
		case ln.gone(&e): // done, but the result cannot be read
			p.freeBlock(e.block)
			p.completeAll(e.job, e.i, e.n, lost)
			lostTasks = true
		case e.head.state.Load() == taskTaken && e.count > 0:
			which, rest := ln.rescueSpan(&e)
			if which >= 0 {
				p.complete(e.job, uint64(which), lost)
				lostTasks = true
			}
			if rest.n > 0 {
				untouched = append(untouched, rest)
			}
		case e.head.state.Load() == taskTaken:
			p.freeBlock(e.block)
			p.complete(e.job, e.i, lost)
			lostTasks = true
		default:
			untouched = append(untouched, again{e.job, e.i, e.n, e.block})
		}
	}
	p.again(untouched)
	// What it had allocated for results, and nobody will ever use, goes back to the system.
	_ = p.seg.Punch(p.geo.resultOff+int64(ln.slot)*p.geo.resultSize, p.geo.resultSize)
	ln.proc.Release()
	ln.proc = nil
	ln.waiting = 0
	wasReady := ln.ready
	p.clearLane(ln)

	if p.terminated {
		p.dropQueued(&Result{Outcome: Closed})
	} else if p.failure != nil {
		p.dropQueued(p.failure)
	} else {
		delay := time.Duration(0)
		if !wasReady {
			if status.Signal == syscall.SIGKILL {
				p.startFails++
			} else {
				p.startFails += killWeight
			}
			delay = p.startFailed(p.whyNotReady(ln, &Result{Outcome: BadStart, PID: lost.PID, Exit: lost.Exit}))
		} else if ln.fruitless && !ln.closing && !lostTasks {
			p.barren++
			delay = p.barrenDelay()
		}
		p.ensure(delay)
	}
	p.feed()
	p.settle()
	p.wakeAll()
}

// clearLane empties the lane of a worker that has ended or never came.
func (p *Pool) clearLane(ln *lane) {
	ln.state = laneStateEmpty
	p.board.ready[ln.slot/64].And(^(uint64(1) << (ln.slot % 64)))
}

// whyNotReady is what the tasks' outcome is if workers end as this one did, before it was ready: what its initializer said, or else other.
func (p *Pool) whyNotReady(ln *lane, other *Result) *Result {
	if ln.initFailed {
		return &Result{Outcome: BadInit, Data: p.initSaid}
	}
	return other
}

// noProcess is the tasks' outcome if no process can be started.
func noProcess(why error) *Result {
	return &Result{Outcome: BadStart, Exit: math.MinInt32, Data: []byte(why.Error())}
}

// barrenDelay is how long the replacement of a worker waits that was ready and died without having done anything. A program whose workers
// all do so, for whatever reason, is not to spend its time on starting them. It is never given up: the next one may do better, and
// tasks that crash their workers do not count, as they come to an end by that.
func (p *Pool) barrenDelay() time.Duration {
	n := p.barren - barrenFree - p.opt.Workers
	if n <= 0 {
		return 0
	}
	return min(barrenFirst<<min(n-1, 16), barrenMost)
}

// startFailed decides what follows from a start that failed: nothing can be started (the pool's failure is set), or another
// try after the delay that it returns.
func (p *Pool) startFailed(failure *Result) time.Duration {
	if !p.anyReady() {
		if p.startFails >= startsInRow*killWeight {
			p.fail(failure)
		}
		return 0
	}
	// Some workers do well. Try again, ever more slowly.
	return min(10*time.Millisecond<<min(p.startFails/killWeight, 10), 5*time.Second)
}

// notStarted counts a start that has left no process to supervise, and sees to the next.
func (p *Pool) notStarted(failure *Result) {
	p.startFails += killWeight
	p.ensure(max(p.startFailed(failure), 10*time.Millisecond))
}

func (p *Pool) anyReady() bool {
	return slices.ContainsFunc(p.lanes, func(ln *lane) bool { return ln != nil && ln.proc != nil && ln.ready })
}

// fail gives all tasks, now and later, the same outcome.
func (p *Pool) fail(failure *Result) {
	p.failure = failure
	p.withdraw()
	for _, ln := range p.lanes {
		if ln != nil && ln.proc != nil {
			_ = ln.proc.Kill()
		}
	}
	p.dropQueued(failure)
}

// ensure starts as many workers as are missing.
func (p *Pool) ensure(delay time.Duration) {
	if p.opening || p.failure != nil || p.terminated || p.closed && p.open == 0 {
		return
	}
	have, free := p.respawns, -p.respawns
	for _, ln := range p.lanes {
		switch {
		case ln == nil || ln.state == laneStateEmpty:
			free++
		case ln.state == laneStateStarting || ln.state == laneStateReady || ln.initFailed:
			have++ // whose initializer failed is replaced when it has ended: only then it counts as a failed start
		}
	}
	for ; have < p.opt.Workers && free > 0; have, free = have+1, free-1 {
		p.respawns++
		var timer *time.Timer
		timer = time.AfterFunc(delay, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.timers, timer)
			p.startAnother()
		})
		p.timers[timer] = struct{}{}
	}
}

// stopTimers calls off the starts that were put off.
func (p *Pool) stopTimers() {
	for timer := range p.timers {
		if timer.Stop() {
			delete(p.timers, timer)
			p.respawns--
		}
	}
}

// startAnother runs in a goroutine of its own.
func (p *Pool) startAnother() {
	defer p.wakeAll()
	p.respawns-- // from here on its lane counts
	if p.failure != nil || p.terminated || p.closed && p.open == 0 {
		return
	}
	if err := p.startWorker(); err != nil {
		p.notStarted(noProcess(err))
	}
}
