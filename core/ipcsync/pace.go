package ipcsync

import (
	"context"
	"errors"
	"math"
	"os"
	"sync/atomic"
	"time"

	"github.com/polyproc/polyproc/shm"
)

// pace is one wait for one object.
type pace struct {
	s       *shared
	turn    *uint64 // nil: the object has none
	ctx     context.Context
	begin   uint64
	slice   time.Duration
	woken   int
	ticket  uint32
	slept   bool // no newcomer any more
	hasTurn bool
	own     bool // sleeps on a word that is its alone, or holds the gate: needs it not
	holds   bool
	stop    func() bool
}

var tickets atomic.Uint32

func (s *shared) pace(ctx context.Context, turn *uint64) pace {
	return pace{
		s: s, turn: turn, ctx: ctx, begin: now(), slice: sliceMinNS,
		ticket: (uint32(s.heap.Me())*0x9e3779b1 + tickets.Add(1)<<1) | 1,
	}
}

// hold takes the gate for the whole wait: those of one process come in the order in which they asked.
func (p *pace) hold() error {
	select {
	case p.s.gate <- struct{}{}:
		p.own, p.holds = true, true
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-p.s.freed:
		return ErrClosed
	}
}

// end is called when the wait is over, whatever came of it.
func (p *pace) end() {
	if p.stop != nil {
		p.stop()
	}
	if p.hasTurn {
		old := atomic.LoadUint64(p.turn)
		if uint32(old) == p.ticket && atomic.CompareAndSwapUint64(p.turn, old, 0) {
			shm.FutexWake(low(p.turn), math.MaxInt32)
		}
	}
	if p.holds {
		<-p.s.gate
	}
}

func millis(ns uint64) uint32 { return uint32(ns / 1_000_000) }

// takeTurn lets newcomers wait, once this one has waited for long enough.
func (p *pace) takeTurn() {
	at := now()
	if p.turn == nil || (p.woken < patience && at-p.begin < patientNS) {
		return
	}
	old := atomic.LoadUint64(p.turn)
	if old != 0 && uint32(old) != p.ticket && int32(uint32(old>>32)-millis(at)) > 0 {
		return
	}
	until := millis(at) + 2*millis(uint64(p.slice))
	if atomic.CompareAndSwapUint64(p.turn, old, uint64(until)<<32|uint64(p.ticket)) {
		p.hasTurn = true
	}
}

// queue has newcomers wait until it is nobody's turn, or the context's end is near: then they take part.
func (p *pace) queue() error {
	for !p.slept && p.ctx.Err() == nil {
		turn, at := atomic.LoadUint64(p.turn), now()
		if turn == 0 {
			return nil
		}
		left := int32(uint32(turn>>32) - millis(at))
		if left <= 0 || left > 1000 {
			if atomic.CompareAndSwapUint64(p.turn, turn, 0) {
				shm.FutexWake(low(p.turn), math.MaxInt32)
			}
			continue
		}
		most, over := p.most(min(time.Duration(left)*time.Millisecond, sliceMaxNS))
		if over {
			return nil
		}
		_ = shm.FutexWait(low(p.turn), uint32(turn), most)
		if p.s.isFreed() {
			return ErrClosed
		}
	}
	return nil
}

// most is d, or what is left to the context's end if that is less. over: nothing is.
func (p *pace) most(d time.Duration) (left time.Duration, over bool) {
	if at, ok := p.ctx.Deadline(); ok {
		d = min(d, time.Until(at))
	}
	return d, d <= 0
}

// sleep sleeps while *word is v, for a slice. nil: look again; late: and see whether somebody is dead. Errors: the context's, [ErrClosed].
func (p *pace) sleep(word *uint32, v uint32) (late bool, err error) {
	if err := p.ctx.Err(); err != nil {
		return false, err
	}
	if !p.own {
		select {
		case p.s.gate <- struct{}{}:
			defer func() { <-p.s.gate }()
		case <-p.ctx.Done():
			return false, p.ctx.Err()
		case <-p.s.freed:
			return false, ErrClosed
		}
	}
	p.takeTurn()
	p.slept = true
	most, over := p.most(p.slice)
	if over {
		return false, context.DeadlineExceeded
	}
	if p.stop == nil && p.ctx.Done() != nil {
		// A wake-up that comes before we sleep is lost; then the end of the context is seen a slice later.
		p.stop = context.AfterFunc(p.ctx, func() { shm.FutexWake(word, math.MaxInt32) })
		if err := p.ctx.Err(); err != nil {
			return false, err
		}
	}
	if atomic.LoadUint32(word) == v {
		err = shm.FutexWait(word, v, most)
	}
	if p.s.isFreed() {
		return false, ErrClosed
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.slice = min(2*p.slice, sliceMaxNS)
		return true, p.ctx.Err()
	}
	if err == nil {
		p.woken++
	}
	return false, nil
}
