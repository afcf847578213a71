package ipcsync

import "sync/atomic"

// Poison leaves a lock as the death of a holder does that somebody has noticed.
func Poison(l interface{ enter() (*shared, error) }) {
	setWord(l, func(*shared) uint64 { return poisoned })
}

// HoldDead leaves a lock as a holder does that dies: it has the place of this process, in another generation.
func HoldDead(l interface{ enter() (*shared, error) }) {
	setWord(l, func(s *shared) uint64 { return 1<<32 | uint64(s.heap.Me()^1<<30) })
}

func setWord(l interface{ enter() (*shared, error) }, word func(*shared) uint64) {
	s, err := l.enter()
	if err != nil {
		panic(err)
	}
	defer s.leave()
	if _, err := s.heap.Join(); err != nil {
		panic(err)
	}
	atomic.StoreUint64(&s.lock().word, word(s))
}
