package shm

import (
	"runtime"
	"sync/atomic"
	"time"
)

// Patience is how long a goroutine looks again before it sleeps, learnt from the waits before. A sleep and a wake-up cost each side some 20 us, a message between two
// CPUs that look less than one. Each success doubles the time, each failure halves it, down to nothing; that it would be worth it again is told by sleeps that
// were short: two processes that answer each other at once, but sleep, see nothing but the time that the wake-ups take. capi/front/spin.h is the same in C. The
// zero value is ready; several goroutines may share it.
type Patience struct {
	Locked bool // the goroutines are locked to threads, as those of calls from C are: they do not let others run meanwhile, which would take a wake-up to come back from

	budget atomic.Int64 // ns; 0: not at all
	rest   atomic.Int32 // short sleeps until the next try
}

const (
	patienceLeast = 1 * time.Microsecond
	patienceMost  = 50 * time.Microsecond
	patienceShort = 100 * time.Microsecond // a wait, wake-ups included
	patienceRest  = 64
	patienceAlone = 5 * time.Microsecond // before others run: a look at the scheduler costs more than a message that is on its way
)

// Willing reports whether Spin would look at all.
func (p *Patience) Willing() bool { return p.budget.Load() != 0 && runtime.GOMAXPROCS(0) > 1 }

// Spin waits a moment for ready, without a system call, and reports whether it came true. began is for Slept.
func (p *Patience) Spin(ready func() bool) (came bool, began time.Time) {
	budget := time.Duration(p.budget.Load())
	began = time.Now()
	if budget == 0 || runtime.GOMAXPROCS(0) == 1 {
		return false, began
	}
	for {
		for range 8 {
			// Who writes what is looked at would wait for each look.
			for range 64 {
			}
			if ready() {
				p.budget.Store(int64(min(2*budget, patienceMost)))
				return true, began
			}
		}
		waited := time.Since(began)
		if waited >= budget {
			break
		}
		if waited > patienceAlone && !p.Locked {
			runtime.Gosched() // another goroutine may be the one to wait for
		}
	}
	if budget /= 2; budget < patienceLeast {
		p.rest.Store(patienceRest)
		budget = 0
	}
	p.budget.Store(int64(budget))
	return false, began
}

// Slept is told when a wait is over that has slept.
func (p *Patience) Slept(began time.Time) {
	if p.budget.Load() == 0 && time.Since(began) <= patienceShort && p.rest.Add(-1) <= 0 {
		p.budget.Store(int64(patienceMost))
	}
}
