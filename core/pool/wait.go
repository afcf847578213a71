package pool

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/polyproc/polyproc/shm"
)

// Who reads results: a thread that waits in a call does it itself (the fore bell), so that a round trip needs no third
// party. When no thread waits, the pool's own goroutine (the back bell) keeps the workers fed; they ring it only when they run out of
// tasks or of room, not for every result.

// pace is how long a thread that waits leaves lanes alone that have enough to do. The kernel may make twice that of it.
const pace = 50 * time.Microsecond

const slice = sliceMillis * time.Millisecond

// waitFor waits until cond holds. The lock is held at the call, at the return and whenever cond is called, but not between. timeout < 0
// waits for ever. It returns ErrTimeout or, if a signal handler of the host is to end waits (Options.Sleep), ErrInterrupted.
func (p *Pool) waitFor(timeout time.Duration, cond func() bool) error {
	if p.freed { // nobody may come any more; who is here is waited for
		if cond() {
			return nil
		}
		return ErrClosed
	}
	var deadline time.Time
	if timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	p.waiters++
	defer p.leave()
	var looks, tired bool // no ring is needed; looking has not helped
	paces := 0            // short sleeps in a row
	for {
		alone := p.waiters == 1 // what wakes one of many is seldom what the others wait for
		spin := alone && !tired && p.patience.Willing()
		var seq uint32
		if looks = alone && (spin || paces > 0); looks {
			seq = p.board.fore.look()
		} else {
			seq = p.board.fore.enter()
		}
		outcomes := p.outcomes
		p.poll()
		if p.outcomes != outcomes && p.waiters > 1 {
			p.board.fore.ringAlways() // this thread may have read what another waits for
		}
		if cond() {
			return nil
		}
		if timeout == 0 {
			return ErrTimeout
		}
		pause := p.pause()
		if timeout > 0 {
			rest := time.Until(deadline)
			if rest <= 0 {
				return ErrTimeout
			}
			pause = min(pause, rest)
		}
		tired = false
		paced := looks && p.deep()
		switch {
		case paced:
			pause = min(pause, pace)
			if paces++; paces >= int(tick/pace) {
				paces = 1
				if p.ticking {
					p.takeBack()
				}
			}
		case paces > 0 && !spin: // announce the sleep first
			paces = 0
			continue
		default:
			paces = 0
		}
		p.mu.Unlock()
		if spin && !paced {
			came, _ := p.patience.Spin(func() bool { return p.board.fore.seq.Load() != seq || p.news() })
			tired = !came
			p.mu.Lock()
			continue
		}
		var err error
		began := time.Now()
		if p.opt.Sleep != nil {
			err = p.opt.Sleep(p.board.fore.addr(), seq, pause)
		} else {
			err = shm.FutexWait(p.board.fore.addr(), seq, pause)
		}
		if alone && !paced {
			p.patience.Slept(began)
		}
		p.mu.Lock()
		if p.opt.Sleep != nil && errors.Is(err, shm.ErrInterrupted) {
			return ErrInterrupted
		}
		if !paced {
			p.ticked(err, pause)
		}
	}
}

// deep reports whether each lane that has tasks has enough for some time, so that there is no need to read its results at once.
// Read many at a time they cost less: each look takes the lines that the workers write from them.
func (p *Pool) deep() bool {
	mean, deep := min(p.meanNS, p.usualNS), false
	for _, ln := range p.lanes {
		if ln == nil || ln.waiting == 0 {
			continue
		}
		if float64(ln.waiting)*mean < float64(2*pace) {
			return false
		}
		deep = true
	}
	return deep
}

// news reports whether a worker has something to say.
func (p *Pool) news() bool {
	for w := range (len(p.lanes) + 63) / 64 {
		if p.board.ready[w].Load() != 0 {
			return true
		}
	}
	return false
}

// leave ends a wait. The last to leave takes the flag down and looks once more: a worker that still saw the flag has
// published before, and one that has not seen it rings the other bell.
func (p *Pool) leave() {
	p.waiters--
	if p.waiters == 0 {
		p.board.fore.waiters.Store(0)
		p.ticking = false
		p.poll()
	}
	p.idle.Broadcast()
}

// notify wakes all that wait in a call: something has changed that they may wait for.
func (p *Pool) notify() {
	p.idle.Broadcast()
	if p.board != nil {
		p.board.fore.ring()
	}
}

// wakeAll is notify for what somebody may wait for who is past the bell's flag: it wakes in any case. A worker that dies between taking
// down a bell's flag and waking the sleeper leaves one whom nobody would ring for.
func (p *Pool) wakeAll() {
	p.idle.Broadcast()
	if p.board != nil {
		p.board.fore.ringAlways()
		p.board.back.ringAlways()
	}
}

// look is poll for calls that do not wait, and for the background: what they read another may wait for.
func (p *Pool) look() {
	outcomes := p.outcomes
	p.poll()
	p.tell(outcomes)
}

// tell wakes those who wait if there are more outcomes than there were.
func (p *Pool) tell(outcomes uint64) {
	if p.outcomes != outcomes && p.waiters > 0 {
		p.notify()
	}
}

// pause is how long to sleep at most.
func (p *Pool) pause() time.Duration {
	p.ticking = p.needsTick()
	if p.ticking {
		return tick
	}
	return slice
}

// rouse wakes one who looks after the lanes, if all went to sleep when there was nothing to look after.
func (p *Pool) rouse() {
	switch {
	case p.waiters == 0 && p.resting:
		p.resting = false
		p.board.back.ringAlways()
	case !p.ticking && p.needsTick():
		p.ticking = true
		if p.waiters > 0 {
			p.board.fore.ring()
		} else {
			p.board.back.ring()
		}
	}
}

// ticked looks after lanes that do not get on, when a sleep has ended by its time.
func (p *Pool) ticked(err error, pause time.Duration) {
	if errors.Is(err, os.ErrDeadlineExceeded) && pause <= tick {
		p.poll()
		p.takeBack()
	}
}

// A background sleeps in a system call, which takes a thread. The runtime keeps a thread for the next that needs one: for so many pools
// that is right, and what more pools need at a time goes with them.
const keptThreads = 3

var backgrounds atomic.Int32

// background reads results when no thread waits in a call.
func (p *Pool) background() {
	if backgrounds.Add(1) > keptThreads {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
	}
	defer backgrounds.Add(-1)
	defer close(p.stopped)
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.stop {
		seq := p.board.back.enter()
		p.look()
		pause := slice
		switch {
		case p.open == 0:
			pause = -1
		case p.waiters == 0:
			pause = p.pause()
		}
		if p.stop {
			return
		}
		p.resting = pause < 0
		addr := p.board.back.addr()
		p.mu.Unlock()
		err := shm.FutexWait(addr, seq, pause)
		p.mu.Lock()
		p.resting = false
		p.ticked(err, pause)
	}
}
