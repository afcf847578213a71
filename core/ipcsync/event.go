package ipcsync

import (
	"context"
	"math"
	"sync/atomic"

	"github.com/polyproc/polyproc/shm"
)

// Event is a flag that processes set, clear and wait for. The methods may be called from several goroutines at once.
type Event struct{ base }

// NewEvent makes an event that is not set. h and errors as for [NewLock].
func NewEvent(h *shm.Heap) (*Event, error) {
	e := &Event{}
	if err := e.make(h, shm.KindEvent, sizeEvent, 0, nil); err != nil {
		return nil, err
	}
	e.s.words = []*uint32{&e.s.event().word}
	return e, nil
}

// UnmarshalBinary receives a reference, as [Lock.UnmarshalBinary] does.
func (e *Event) UnmarshalBinary(data []byte) error {
	if err := e.receive(data, shm.KindEvent, 0, 0); err != nil {
		return err
	}
	e.s.words = []*uint32{&e.s.event().word}
	return nil
}

func (s *shared) event() *eventHead { return (*eventHead)(s.object.Pointer()) }

// Set sets the flag and lets all go who wait.
func (e *Event) Set() error {
	s, err := e.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	s.object.Released()
	h := s.event()
	for {
		v := atomic.LoadUint32(&h.word)
		if v&eventSet != 0 {
			return nil
		}
		if !atomic.CompareAndSwapUint32(&h.word, v, (v+2)&eventSeq|eventSet) {
			continue
		}
		if v&sleepers != 0 {
			shm.FutexWake(&h.word, math.MaxInt32)
		}
		return nil
	}
}

// Clear takes the flag away. Whoever began to wait before the last Set goes all the same.
func (e *Event) Clear() error {
	s, err := e.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	atomic.AndUint32(&s.event().word, ^uint32(eventSet))
	return nil
}

// IsSet reports whether the flag is set. Errors: [ErrClosed].
func (e *Event) IsSet() (bool, error) {
	s, err := e.enter()
	if err != nil {
		return false, err
	}
	defer s.leave()
	defer s.object.Acquired()
	return atomic.LoadUint32(&s.event().word)&eventSet != 0, nil
}

// Wait returns nil once the flag is set, or was set since the call began. Errors: the context's, [ErrClosed].
func (e *Event) Wait(ctx context.Context) error {
	s, err := e.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	defer s.object.Acquired()
	h := s.event()
	v := atomic.LoadUint32(&h.word)
	if v&eventSet != 0 {
		return nil
	}
	seq := v & eventSeq
	p := s.pace(ctx, nil)
	defer p.end()
	for err == nil {
		v = atomic.LoadUint32(&h.word)
		if v&eventSet != 0 || v&eventSeq != seq {
			return nil
		}
		if v&sleepers == 0 && !atomic.CompareAndSwapUint32(&h.word, v, v|sleepers) {
			continue
		}
		_, err = p.sleep(&h.word, v|sleepers)
	}
	if v = atomic.LoadUint32(&h.word); ended(err) && (v&eventSet != 0 || v&eventSeq != seq) {
		return nil
	}
	return err
}
