package ipcsync

import "sync/atomic"

// Poison leaves a lock as the death of a holder does.
func Poison(l interface{ enter() (*shared, error) }) {
	s, err := l.enter()
	if err != nil {
		panic(err)
	}
	defer s.leave()
	atomic.StoreUint64(&s.lock().word, poisoned)
}
