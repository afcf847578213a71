package pool

import (
	"fmt"
	"os"
	"time"

	"github.com/polyproc/polyproc/core/start"
)

// Vacancy is a place for a worker process that the host is to start (Options.HostStarts): by a fork of its own, or through a server
// that forks for it. The child attaches with these numbers.
type Vacancy struct {
	Lane       int
	Generation uint32
	FD         int // the pool's memory, in this process
	ParentPID  int // whom the worker dies with
}

// vacate makes a free lane one that the host is to start a worker for.
func (p *Pool) vacate(ln *lane) {
	ln.state = laneStateStarting
	ln.vacant = true
	p.vacancies = append(p.vacancies, ln)
	p.tellVacancy()
}

// tellVacancy wakes those who wait for a vacancy: there is one, or there will be none.
func (p *Pool) tellVacancy() {
	close(p.vacancyNews)
	p.vacancyNews = make(chan struct{})
}

// withdraw takes back the vacancies that nobody has been given.
func (p *Pool) withdraw() {
	for _, ln := range p.vacancies {
		ln.vacant = false
		ln.state = laneStateEmpty
	}
	p.vacancies = nil
	p.tellVacancy()
}

// Vacancy waits for the next place, for at most timeout (< 0: for ever). Each must be answered by Fill or Decline. ErrClosed: there
// will be no more.
func (p *Pool) Vacancy(timeout time.Duration) (Vacancy, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var expired <-chan time.Time
	if timeout >= 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		expired = timer.C
	}
	// Not waitFor: who waits here for most of a pool's life must not be rung for each result.
	for len(p.vacancies) == 0 {
		if p.terminated || p.failure != nil || p.ended() {
			return Vacancy{}, ErrClosed
		}
		news := p.vacancyNews
		p.mu.Unlock()
		select {
		case <-news:
			p.mu.Lock()
		case <-expired:
			p.mu.Lock()
			if len(p.vacancies) == 0 {
				return Vacancy{}, ErrTimeout
			}
		}
	}
	ln := p.vacancies[0]
	p.vacancies[0] = nil
	p.vacancies = p.vacancies[1:]
	return Vacancy{Lane: ln.slot, Generation: ln.generation, FD: p.seg.FD(), ParentPID: os.Getpid()}, nil
}

// vacantLane finds the lane of a vacancy that was handed out.
func (p *Pool) vacantLane(v Vacancy) (*lane, error) {
	if v.Lane >= 0 && v.Lane < len(p.lanes) {
		if ln := p.lanes[v.Lane]; ln != nil && ln.vacant && ln.generation == v.Generation {
			return ln, nil
		}
	}
	return nil, fmt.Errorf("%w: lane %d has no vacancy", ErrInvalid, v.Lane)
}

// Fill says which process has taken the place; the pool supervises it from then on.
func (p *Pool) Fill(v Vacancy, proc *start.Process) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ln, err := p.vacantLane(v)
	if err != nil {
		return err
	}
	ln.vacant = false
	p.started++
	p.employ(ln, proc)
	return nil
}

// Decline says that no process could be started, or that the one that was has ended: if its initializer failed, that is why.
func (p *Pool) Decline(v Vacancy, why error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ln, err := p.vacantLane(v)
	if err != nil {
		return err
	}
	ln.vacant = false
	_ = ln.drain() // if this fails, what follows is right all the same
	p.clearLane(ln)
	p.notStarted(p.whyNotReady(ln, noProcess(why)))
	p.wakeAll()
	return nil
}
