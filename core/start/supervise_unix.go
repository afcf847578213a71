//go:build unix

package start

import (
	"sync"
	"time"
)

// children is the one supervisor of this process. It costs nothing while there are no children:
// the goroutine and the poller come with the first and go with the last.
var children supervisor

// supervisor reaps all children from one goroutine that sleeps in one poller.
type supervisor struct {
	mu       sync.Mutex
	poll     *poller          // nil while idle
	alive    map[int]*Process // by handle.key
	starting int              // Starts between enter and leave: they need poll
	running  bool             // the goroutine runs
}

// retryAfter is how long to leave a child alone that has ended but cannot be reaped yet: one whose
// tracer (a debugger) has not let go of it.
const retryAfter = 5 * time.Millisecond

// enter makes sure, before there is a child, that it can be supervised.
func (s *supervisor) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.poll == nil {
		poll, err := newPoller()
		if err != nil {
			return err
		}
		s.poll, s.alive = poll, make(map[int]*Process)
	}
	s.starting++
	return nil
}

// adopt takes a child over, between enter and leave.
func (s *supervisor) adopt(p *Process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.poll.add(p.h, p.pid); err != nil {
		return err
	}
	s.alive[p.h.key(p.pid)] = p
	if !s.running {
		s.running = true
		go s.run()
	}
	return nil
}

// find returns the supervised child with that pid, shared with the caller, or nil.
func (s *supervisor) find(pid int) *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.alive {
		if p.pid == pid && p.report == nil && p.share() {
			return p
		}
	}
	return nil
}

// leave ends what enter began, whether there was a child or not.
func (s *supervisor) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting--
	s.closeIfIdle()
}

// closeIfIdle gives the poller back when nobody needs it. Call it with mu held.
func (s *supervisor) closeIfIdle() {
	if s.starting == 0 && !s.running && len(s.alive) == 0 {
		s.poll.close()
		s.poll, s.alive = nil, nil
	}
}

func (s *supervisor) run() {
	s.mu.Lock()
	poll := s.poll // stays the same while running
	s.mu.Unlock()
	for {
		keys := poll.wait()
		s.mu.Lock()
		ready := make([]*Process, 0, len(keys))
		for _, key := range keys {
			if p := s.alive[key]; p != nil {
				ready = append(ready, p)
			}
		}
		s.mu.Unlock()
		for _, p := range ready {
			s.bury(p)
		}
		s.mu.Lock()
		if len(s.alive) == 0 {
			s.running = false
			s.closeIfIdle()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// bury collects an ended child and tells the world.
func (s *supervisor) bury(p *Process) {
	if !p.collect() {
		time.AfterFunc(retryAfter, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.poll.again(p.h, p.pid)
		})
		return
	}
	// Out of the table first: once finish has run, the descriptor may be closed and its number reused.
	s.mu.Lock()
	s.poll.remove(p.h, p.pid)
	delete(s.alive, p.h.key(p.pid))
	s.mu.Unlock()
	p.finish()
}
