package ipcsync

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/polyproc/polyproc/shm"
)

const lockSpins = 40

// goroutines have no numbers: a Lock is held by a process.
const anyGoroutine = 1

func (s *shared) lock() *lockHead { return (*lockHead)(s.object.Pointer()) }

func (s *shared) mine(thread uint32) uint64 { return uint64(thread)<<32 | uint64(s.heap.Me()) }

// take acquires levels of the lock. try: without waiting.
func (s *shared) take(ctx context.Context, thread, levels uint32, try bool) error {
	if _, err := s.heap.Join(); err != nil {
		return fmt.Errorf("ipcsync: %w", err)
	}
	l, mine := s.lock(), s.mine(thread)
	switch {
	case atomic.LoadUint64(&l.turn) == 0 && atomic.CompareAndSwapUint64(&l.word, 0, mine):
	case l.object.flags&flagRecursive != 0 && atomic.LoadUint64(&l.word)&^sleepers == mine:
		count := atomic.LoadUint32(&l.count)
		if levels > math.MaxUint32-count {
			return ErrTooMany
		}
		atomic.StoreUint32(&l.count, count+levels)
		return nil
	case try:
		if err := s.tryLock(mine); err != nil {
			return err
		}
	default:
		if err := s.lockSlow(ctx, mine); err != nil {
			return err
		}
	}
	atomic.StoreUint32(&l.count, levels)
	s.object.Acquired()
	return nil
}

// errHeld: somebody has it. It does not leave the package.
var errHeld = fmt.Errorf("ipcsync: the lock is held")

// tryLock is for who does not wait, or not any longer.
func (s *shared) tryLock(mine uint64) error {
	l := s.lock()
	v := atomic.LoadUint64(&l.word)
	if atomic.CompareAndSwapUint64(&l.word, 0, mine) {
		return nil
	}
	if v != 0 && v&valueMost == 0 {
		return s.corrupt("lock", v)
	}
	if v != 0 && s.suspicious(v) && s.recoverLock(v) {
		return ErrOwnerDied
	}
	return errHeld
}

// recoverLock frees the lock if the holder in v is dead.
func (s *shared) recoverLock(v uint64) bool {
	owner := shm.Owner(v & valueMost)
	l := s.lock()
	if owner == s.heap.Me() || !s.heap.Gone(owner) || !atomic.CompareAndSwapUint64(&l.word, v, 0) {
		return false
	}
	if v&sleepers != 0 {
		shm.FutexWake(low(&l.word), 1)
	}
	return true
}

func (s *shared) lockSlow(ctx context.Context, mine uint64) error {
	l := s.lock()
	for range lockSpins {
		if atomic.LoadUint64(&l.turn) != 0 {
			break
		}
		if atomic.LoadUint64(&l.word) == 0 && atomic.CompareAndSwapUint64(&l.word, 0, mine) {
			return nil
		}
	}
	p := s.pace(ctx, &l.turn)
	defer p.end()
	err := p.hold()
	for err == nil {
		if err = p.queue(); err != nil {
			break
		}
		v := atomic.LoadUint64(&l.word)
		if v == 0 {
			// Who has slept leaves the bit: there may be others, and only the bit has them woken.
			to := mine
			if p.slept {
				to |= sleepers
			}
			if atomic.CompareAndSwapUint64(&l.word, 0, to) {
				return nil
			}
			continue
		}
		if v&valueMost == 0 {
			return s.corrupt("lock", v)
		}
		if v&sleepers == 0 && !atomic.CompareAndSwapUint64(&l.word, v, v|sleepers) {
			continue
		}
		v |= sleepers
		var late bool
		if late, err = p.sleep(low(&l.word), uint32(v)); late && err == nil && atomic.LoadUint64(&l.word) == v && s.recoverLock(v) {
			return ErrOwnerDied
		}
	}
	if ended(err) { // a wake-up that it got is not lost
		if last := s.tryLock(mine | sleepers); last != errHeld {
			return last
		}
	}
	return err
}

// levels is how often the lock is held by this thread of this process.
func (s *shared) levels(thread uint32) uint32 {
	l := s.lock()
	if s.heap.Me() == 0 || atomic.LoadUint64(&l.word)&^sleepers != s.mine(thread) {
		return 0
	}
	if count := atomic.LoadUint32(&l.count); l.object.flags&flagRecursive != 0 && count != 0 {
		return count
	}
	return 1
}

// openLock frees the lock and reports whether it was held.
func (s *shared) openLock() bool {
	l := s.lock()
	s.object.Released()
	old := atomic.SwapUint64(&l.word, 0)
	if old&sleepers != 0 {
		shm.FutexWake(low(&l.word), 1)
	}
	return old != 0
}

// LockState is what a lock says of itself.
type LockState struct {
	Held   bool
	Mine   bool // by this process
	PID    int  // of the holder, 0 if it is not known any more
	Levels int  // of an RLock; 1 of a Lock that is held
}

func (b *base) state() (LockState, error) {
	s, err := b.enter()
	if err != nil {
		return LockState{}, err
	}
	defer s.leave()
	l := s.lock()
	owner := shm.Owner(atomic.LoadUint64(&l.word) & valueMost)
	if owner == 0 {
		return LockState{}, nil
	}
	levels := atomic.LoadUint32(&l.count)
	if levels == 0 || l.object.flags&flagRecursive == 0 {
		levels = 1
	}
	return LockState{Held: true, Mine: owner == s.heap.Me(), PID: s.heap.PID(owner), Levels: int(levels)}, nil
}

func try(err error) (bool, error) {
	if err == errHeld {
		return false, nil
	}
	return err == nil, err
}

// Lock is mutual exclusion between processes, and between goroutines of one. Who holds it is a process: any goroutine may release it, and any other process
// too. The methods may be called from several goroutines at once.
type Lock struct{ base }

// NewLock makes a lock in a heap; nil: that of this process's family, [shm.Family]. Errors: [shm.ErrNoMemory], [shm.ErrUnsupported].
func NewLock(h *shm.Heap) (*Lock, error) {
	l := &Lock{}
	if err := l.make(h, shm.KindLock, sizeLock, 0, nil); err != nil {
		return nil, err
	}
	l.ready()
	return l, nil
}

// UnmarshalBinary receives a reference that MarshalBinary, or pp_ref_export in C, has made. Errors: [shm.ErrInvalid] (no reference to a lock, or of another family),
// [shm.ErrGone], [shm.ErrCorrupt], [shm.ErrNoMemory].
func (l *Lock) UnmarshalBinary(data []byte) error {
	if err := l.receive(data, shm.KindLock, flagRecursive, 0); err != nil {
		return err
	}
	l.ready()
	return nil
}

func (b *base) ready() {
	l := b.s.lock()
	b.s.words = []*uint32{low(&l.word), low(&l.turn)}
}

// Acquire takes the lock, waiting for it as long as ctx allows; if it is free it is taken whatever ctx says. Errors: [ErrOwnerDied], the context's, [ErrClosed],
// [shm.ErrCorrupt], [shm.ErrNoMemory] (this process cannot be a member).
func (l *Lock) Acquire(ctx context.Context) error {
	s, err := l.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	return s.take(ctx, anyGoroutine, 1, false)
}

// TryAcquire takes the lock if it is free. It notices the death of a holder too, at a call 10 ms after the first in vain: [ErrOwnerDied].
func (l *Lock) TryAcquire() (bool, error) {
	s, err := l.enter()
	if err != nil {
		return false, err
	}
	defer s.leave()
	return try(s.take(context.Background(), anyGoroutine, 1, true))
}

// Release gives the lock up, whoever holds it. Errors: [ErrNotHeld], [ErrClosed].
func (l *Lock) Release() error {
	s, err := l.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	if !s.openLock() {
		return ErrNotHeld
	}
	return nil
}

// State returns who holds the lock at this moment. Errors: [ErrClosed].
func (l *Lock) State() (LockState, error) { return l.state() }

// Locker is the lock for code that has no place for errors: the death of a holder is passed over in silence, all others panic.
func (l *Lock) Locker() sync.Locker {
	return locker{func() error { return l.Acquire(context.Background()) }, l.Release}
}

func (l *Lock) held() (*shared, uint32, error) {
	s, err := l.enter()
	return s, anyGoroutine, err
}

type locker struct{ acquire, release func() error }

func (l locker) Lock() {
	err := l.acquire()
	for err == ErrOwnerDied {
		err = l.acquire()
	}
	if err != nil {
		panic(err)
	}
}

func (l locker) Unlock() {
	if err := l.release(); err != nil {
		panic(err)
	}
}

// RLock is a lock that its holder may take again; it is free when it was released as often. Threads hold it in C and Python. Goroutines have no identity, so
// who holds it in Go is a [Holder], made by [RLock.Holder]: a request, a connection, a worker.
type RLock struct{ base }

// NewRLock makes a lock, as [NewLock] does.
func NewRLock(h *shm.Heap) (*RLock, error) {
	l := &RLock{}
	if err := l.make(h, shm.KindLock, sizeLock, flagRecursive, nil); err != nil {
		return nil, err
	}
	l.ready()
	return l, nil
}

// UnmarshalBinary receives a reference, as [Lock.UnmarshalBinary] does.
func (l *RLock) UnmarshalBinary(data []byte) error {
	if err := l.receive(data, shm.KindLock, flagRecursive, flagRecursive); err != nil {
		return err
	}
	l.ready()
	return nil
}

// State returns who holds the lock at this moment. Errors: [ErrClosed].
func (l *RLock) State() (LockState, error) { return l.state() }

var holders atomic.Uint32

// Holder returns a new holder, different from all others.
func (l *RLock) Holder() *Holder {
	n := holders.Add(1)
	for n == 0 {
		n = holders.Add(1)
	}
	return &Holder{l, n}
}

// Holder is who may hold an RLock, more than once. What uses the same Holder is one and the same to the lock: goroutines that are to exclude each other need their
// own ones. A Holder costs nothing and needs no end.
type Holder struct {
	lock   *RLock
	number uint32
}

// Acquire takes the lock, or one more level of it. Errors as [Lock.Acquire], and [ErrTooMany].
func (h *Holder) Acquire(ctx context.Context) error {
	s, err := h.lock.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	return s.take(ctx, h.number, 1, false)
}

// TryAcquire takes the lock, or one more level of it, if nobody else holds it. Errors as [Lock.TryAcquire].
func (h *Holder) TryAcquire() (bool, error) {
	s, err := h.lock.enter()
	if err != nil {
		return false, err
	}
	defer s.leave()
	return try(s.take(context.Background(), h.number, 1, true))
}

// Release gives up one level. Errors: [ErrNotHeld] (by this holder), [ErrClosed].
func (h *Holder) Release() error {
	s, err := h.lock.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	switch levels := s.levels(h.number); levels {
	case 0:
		return ErrNotHeld
	case 1:
		s.openLock()
	default:
		atomic.StoreUint32(&s.lock().count, levels-1)
	}
	return nil
}

// Levels returns how often this holder has acquired the lock; 0: it does not hold it. Errors: [ErrClosed].
func (h *Holder) Levels() (int, error) {
	s, err := h.lock.enter()
	if err != nil {
		return 0, err
	}
	defer s.leave()
	return int(s.levels(h.number)), nil
}

// Locker is the lock for code that has no place for errors, as [Lock.Locker].
func (h *Holder) Locker() sync.Locker {
	return locker{func() error { return h.Acquire(context.Background()) }, h.Release}
}

func (h *Holder) held() (*shared, uint32, error) {
	s, err := h.lock.enter()
	return s, h.number, err
}

// Held is a lock that a [Condition] is waited for with: a *[Lock] or a *[Holder].
type Held interface {
	// held returns the lock, entered, and who holds it in this process.
	held() (*shared, uint32, error)
}

var (
	_ Held = (*Lock)(nil)
	_ Held = (*Holder)(nil)
)
