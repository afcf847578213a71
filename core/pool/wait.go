package pool

import (
	"errors"
	"os"
	"time"

	"github.com/polyproc/polyproc/shm"
)

// Who reads results: a thread that waits in a call does it itself (the fore bell), so that a round trip needs no third
// party. When no thread waits, the pool's own goroutine (the back bell) keeps the workers fed; they ring it only when they run out of
// tasks or of room, not for every result.

const slice = sliceMillis * time.Millisecond

// waitFor waits until cond holds. The lock is held at the call, at the return and whenever cond is called, but not between. timeout < 0
// waits for ever. It returns ErrTimeout or, if the host's signal handlers are to end waits (Options.Interruptible), ErrInterrupted.
func (p *Pool) waitFor(timeout time.Duration, cond func() bool) error {
	var deadline time.Time
	if timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	p.waiters++
	defer p.leave()
	for {
		seq := p.board.fore.enter()
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
		p.mu.Unlock()
		var err error
		if p.opt.Interruptible {
			err = futexWaitInterruptible(p.board.fore.addr(), seq, pause)
		} else {
			err = shm.FutexWait(p.board.fore.addr(), seq, pause)
		}
		p.mu.Lock()
		if p.opt.Interruptible && errors.Is(err, shm.ErrInterrupted) {
			return ErrInterrupted
		}
		p.ticked(err, pause)
	}
}

// leave ends a wait. The last to leave takes the flag down and looks once more: a worker that still saw the flag has
// published before, and one that has not seen it rings the other bell.
func (p *Pool) leave() {
	p.waiters--
	if p.waiters == 0 {
		p.board.fore.waiters.Store(0)
		p.poll()
	}
	p.idle.Broadcast()
}

// notify wakes all that wait in a call: something has changed that they may wait for.
func (p *Pool) notify() {
	p.idle.Broadcast()
	p.board.fore.ring()
}

// pause is how long to sleep at most.
func (p *Pool) pause() time.Duration {
	if p.needsTick() {
		return tick
	}
	return slice
}

// ticked looks after lanes that do not get on, when a sleep has ended by its time.
func (p *Pool) ticked(err error, pause time.Duration) {
	if errors.Is(err, os.ErrDeadlineExceeded) && pause <= tick {
		p.poll()
		p.takeBack()
	}
}

// background reads results when no thread waits in a call.
func (p *Pool) background() {
	defer close(p.stopped)
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.stop {
		seq := p.board.back.enter()
		p.poll()
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
		p.mu.Unlock()
		err := shm.FutexWait(p.board.back.addr(), seq, pause)
		p.mu.Lock()
		p.ticked(err, pause)
	}
}
