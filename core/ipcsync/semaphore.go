package ipcsync

import (
	"context"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// Semaphore is a number of permits that processes share. The methods may be called from several goroutines at once.
type Semaphore struct{ base }

// NewSemaphore makes a semaphore with value permits at first, and any number later, up to 2^31-1. h as for [NewLock]. Errors: [shm.ErrInvalid],
// [shm.ErrNoMemory], [shm.ErrUnsupported].
func NewSemaphore(h *shm.Heap, value int) (*Semaphore, error) {
	return newSemaphore(h, value, valueMost, 0)
}

// NewBoundedSemaphore makes a semaphore with value permits, at least 1, and never more. Errors as NewSemaphore's.
func NewBoundedSemaphore(h *shm.Heap, value int) (*Semaphore, error) {
	return newSemaphore(h, value, value, 0)
}

// NewRecoverableSemaphore makes a bounded semaphore, 1 to 65535 permits, whose permits know who has them: those of a process that dies come back. Others' are
// lost, as those of POSIX semaphores are. Errors as NewSemaphore's.
func NewRecoverableSemaphore(h *shm.Heap, value int) (*Semaphore, error) {
	return newSemaphore(h, value, value, flagRecover)
}

func newSemaphore(h *shm.Heap, value, most int, flags uint32) (*Semaphore, error) {
	word, size := uint64(most)<<32|uint64(value), sizeSemaphore
	if flags == flagRecover {
		word, size = uint64(most)<<32, size+4*uint64(most)
	}
	if value < 0 || value > valueMost || most == 0 || (flags == flagRecover && (value == 0 || value > permitsMost)) {
		return nil, fmt.Errorf("ipcsync: %w: a semaphore of %d permits", shm.ErrInvalid, value)
	}
	m := &Semaphore{}
	err := m.make(h, shm.KindSemaphore, size, flags, func(p unsafe.Pointer) { (*semaphoreHead)(p).word = word })
	if err != nil {
		return nil, err
	}
	m.ready()
	return m, nil
}

// UnmarshalBinary receives a reference, as [Lock.UnmarshalBinary] does.
func (m *Semaphore) UnmarshalBinary(data []byte) error {
	if err := m.receive(data, shm.KindSemaphore, 0, 0); err != nil {
		return err
	}
	m.ready()
	return nil
}

func (m *Semaphore) ready() {
	h := m.s.semaphore()
	m.s.words = []*uint32{low(&h.word), low(&h.turn), &h.bellSeq}
}

// Acquire takes a permit, waiting for one as long as ctx allows; if there is one it is taken whatever ctx says. Errors: the context's, [ErrClosed],
// [shm.ErrCorrupt], [shm.ErrNoMemory].
func (m *Semaphore) Acquire(ctx context.Context) error {
	s, err := m.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	err = s.takePermit(ctx, false)
	s.object.Acquired()
	return err
}

// TryAcquire takes a permit if there is one.
func (m *Semaphore) TryAcquire() (bool, error) {
	s, err := m.enter()
	if err != nil {
		return false, err
	}
	defer s.leave()
	got, err := try(s.takePermit(context.Background(), true))
	s.object.Acquired()
	return got, err
}

// Release gives a permit, one that any process has taken; of a recoverable semaphore one of this process's if it has any. Errors: [ErrTooMany] (there are as many as there may
// be), [ErrClosed], [shm.ErrCorrupt].
func (m *Semaphore) Release() error {
	s, err := m.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	s.object.Released()
	if s.semaphore().object.flags&flagRecover != 0 {
		return s.givePermit()
	}
	h := s.semaphore()
	for {
		v := atomic.LoadUint64(&h.word)
		value, most := v&valueMost, v>>32
		if value > most {
			return s.corrupt("semaphore", v)
		}
		if value == most {
			return ErrTooMany
		}
		if !atomic.CompareAndSwapUint64(&h.word, v, v+1) {
			continue
		}
		if v&sleepers != 0 && shm.FutexWake(low(&h.word), 1) == 0 {
			atomic.CompareAndSwapUint64(&h.word, v+1, (v+1)&^sleepers)
		}
		return nil
	}
}

// Value returns how many permits there are at one moment.
func (m *Semaphore) Value() (int, error) {
	s, err := m.enter()
	if err != nil {
		return 0, err
	}
	defer s.leave()
	v := atomic.LoadUint64(&s.semaphore().word)
	if s.semaphore().object.flags&flagRecover == 0 {
		if v&valueMost > v>>32 {
			return 0, s.corrupt("semaphore", v)
		}
		return int(v & valueMost), nil
	}
	cells, err := s.permits()
	n := 0
	for i := range cells {
		if atomic.LoadUint32(&cells[i]) == 0 {
			n++
		}
	}
	return n, err
}

func (s *shared) semaphore() *semaphoreHead { return (*semaphoreHead)(s.object.Pointer()) }

func (s *shared) takePermit(ctx context.Context, try bool) error {
	if _, err := s.heap.Join(); err != nil {
		return fmt.Errorf("ipcsync: %w", err)
	}
	h := s.semaphore()
	if h.object.flags&flagRecover != 0 {
		return s.takeNamed(ctx, try)
	}
	if try || atomic.LoadUint64(&h.turn) == 0 {
		if err := s.tryPermit(); err != errHeld || try {
			return err
		}
	}
	for range lockSpins {
		if atomic.LoadUint64(&h.turn) != 0 {
			break
		}
		if atomic.LoadUint64(&h.word)&valueMost != 0 {
			if err := s.tryPermit(); err != errHeld {
				return err
			}
		}
	}
	p := s.pace(ctx, &h.turn)
	defer p.end()
	err := p.hold()
	for err == nil {
		if err = p.queue(); err != nil {
			break
		}
		if err = s.tryPermit(); err != errHeld {
			return err
		}
		err = nil
		v := atomic.LoadUint64(&h.word)
		if v&valueMost != 0 || (v&sleepers == 0 && !atomic.CompareAndSwapUint64(&h.word, v, v|sleepers)) {
			continue
		}
		_, err = p.sleep(low(&h.word), uint32(v|sleepers))
	}
	if ended(err) {
		if last := s.tryPermit(); last != errHeld {
			return last
		}
	}
	return err
}

// tryPermit: errHeld if there is none.
func (s *shared) tryPermit() error {
	h := s.semaphore()
	for {
		v := atomic.LoadUint64(&h.word)
		if v&valueMost > v>>32 || v>>32 > valueMost {
			return s.corrupt("semaphore", v)
		}
		if v&valueMost == 0 {
			return errHeld
		}
		if atomic.CompareAndSwapUint64(&h.word, v, v-1) {
			return nil
		}
	}
}

// ---- permits that name their holders

func (s *shared) permits() ([]uint32, error) {
	h := s.semaphore()
	most := atomic.LoadUint64(&h.word) >> 32
	if most == 0 || most > permitsMost || sizeSemaphore+4*most > s.object.Room() {
		return nil, s.corrupt("semaphore", most)
	}
	return unsafe.Slice((*uint32)(unsafe.Add(unsafe.Pointer(h), sizeSemaphore)), most), nil
}

func (s *shared) bell() shm.Chime {
	h := s.semaphore()
	return shm.NewChime(&h.bellSeq, &h.bellWaiters)
}

func (s *shared) takeCell(cells []uint32) bool {
	me := uint32(s.heap.Me())
	for i := range cells {
		cell := &cells[(uint64(me)+uint64(i))%uint64(len(cells))]
		if atomic.LoadUint32(cell) == 0 && atomic.CompareAndSwapUint32(cell, 0, me) {
			return true
		}
	}
	return false
}

// recoverPermits takes back what the dead hold: of all whose process is not there any more, and of a few others, in turn, by the long look.
func (s *shared) recoverPermits(cells []uint32) (any bool) {
	first := uint64(s.tried.Add(1) - 1)
	present, looked := s.heap.Me(), 0
	for i := range cells {
		cell := &cells[(first+uint64(i))%uint64(len(cells))]
		owner := atomic.LoadUint32(cell)
		o := shm.Owner(owner)
		if o == 0 || o == present {
			continue
		}
		if !departed(s.heap, o) {
			if looked++; looked > longLooks || !s.heap.Gone(o) {
				present = o
				continue
			}
		}
		if atomic.CompareAndSwapUint32(cell, owner, 0) {
			any = true
			s.bell().Ring(1)
		}
	}
	return any
}

func (s *shared) takeNamed(ctx context.Context, try bool) error {
	h := s.semaphore()
	cells, err := s.permits()
	if err != nil {
		return err
	}
	if (try || atomic.LoadUint64(&h.turn) == 0) && s.takeCell(cells) {
		return nil
	}
	last := func() error {
		if s.takeCell(cells) || (s.suspicious(1) && s.recoverPermits(cells) && s.takeCell(cells)) {
			return nil
		}
		return errHeld
	}
	if try {
		return last()
	}
	p := s.pace(ctx, &h.turn)
	defer p.end()
	err = p.hold()
	for err == nil {
		if err = p.queue(); err != nil {
			break
		}
		seq := s.bell().Enter()
		if s.takeCell(cells) {
			return nil
		}
		var late bool
		if late, err = p.sleep(&h.bellSeq, seq); late && err == nil {
			s.recoverPermits(cells)
		}
	}
	if ended(err) && last() == nil {
		return nil
	}
	return err
}

func (s *shared) givePermit() error {
	me, err := s.heap.Join()
	if err != nil {
		return fmt.Errorf("ipcsync: %w", err)
	}
	cells, err := s.permits()
	if err != nil {
		return err
	}
	for _, others := range []bool{false, true} {
		for i := range cells {
			cell := &cells[(uint64(me)+uint64(i))%uint64(len(cells))]
			owner := atomic.LoadUint32(cell)
			if owner != 0 && (others || owner == uint32(me)) && atomic.CompareAndSwapUint32(cell, owner, 0) {
				s.bell().Ring(1)
				return nil
			}
		}
	}
	return ErrTooMany
}
