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

// taking is a call that takes a lock.
type taking struct {
	thread, levels uint32
	try            bool // without waiting
	recover        bool // in spite of the death of a holder
}

// take acquires the lock.
func (s *shared) take(ctx context.Context, t taking) error {
	if _, err := s.heap.Join(); err != nil {
		return fmt.Errorf("ipcsync: %w", err)
	}
	l, mine := s.lock(), s.mine(t.thread)
	anyway := t.recover || l.object.flags&flagRecover != 0
	switch {
	case atomic.LoadUint64(&l.turn) == 0 && atomic.CompareAndSwapUint64(&l.word, 0, mine):
	case l.object.flags&flagRecursive != 0 && atomic.LoadUint64(&l.word)&^sleepers == mine:
		count := atomic.LoadUint32(&l.count)
		if t.levels > math.MaxUint32-count {
			return ErrTooMany
		}
		atomic.StoreUint32(&l.count, count+t.levels)
		return nil
	case t.try:
		if err := s.tryLock(mine, anyway); err != nil {
			return err
		}
	default:
		if err := s.lockSlow(ctx, mine, anyway); err != nil {
			return err
		}
	}
	atomic.StoreUint32(&l.count, t.levels)
	s.object.Acquired()
	return nil
}

// errHeld: somebody has it. It does not leave the package.
var errHeld = fmt.Errorf("ipcsync: the lock is held")

func isPoisoned(v uint64) bool { return v&valueMost == poisoned }

// tryLock is for a call that does not wait, or not any longer. mine may have the sleepers' bit.
func (s *shared) tryLock(mine uint64, anyway bool) error {
	l := s.lock()
	if atomic.CompareAndSwapUint64(&l.word, 0, mine) {
		return nil
	}
	switch v := atomic.LoadUint64(&l.word); {
	case isPoisoned(v) && !anyway:
		return ErrOwnerDied
	case isPoisoned(v):
		if atomic.CompareAndSwapUint64(&l.word, v, mine) {
			return nil
		}
	case v == 0:
	case v&valueMost == 0:
		return s.corrupt("lock", v)
	case s.suspicious(v):
		return s.inheritLock(v, mine, anyway)
	}
	return errHeld
}

// inheritLock is called when the lock has been held in v for some time. nil: the holder was dead, the lock is taken (anyway); ErrOwnerDied; errHeld: the holder
// lives, or v has changed.
func (s *shared) inheritLock(v, mine uint64, anyway bool) error {
	l := s.lock()
	if owner := shm.Owner(v & valueMost); owner == s.heap.Me() || !s.heap.Gone(owner) {
		return errHeld
	}
	if anyway {
		if !atomic.CompareAndSwapUint64(&l.word, v, mine|v&sleepers) {
			return errHeld
		}
		return nil
	}
	if !atomic.CompareAndSwapUint64(&l.word, v, poisoned) {
		return errHeld
	}
	if v&sleepers != 0 {
		shm.FutexWake(low(&l.word), math.MaxInt32)
	}
	return ErrOwnerDied
}

func (s *shared) lockSlow(ctx context.Context, mine uint64, anyway bool) error {
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
		if isPoisoned(v) && !anyway {
			return ErrOwnerDied
		}
		if v == 0 || isPoisoned(v) {
			// Who has slept leaves the bit: there may be others, and only the bit has them woken.
			to := mine
			if p.slept {
				to |= sleepers
			}
			if atomic.CompareAndSwapUint64(&l.word, v, to) {
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
		if late, err = p.sleep(low(&l.word), uint32(v)); late && err == nil && atomic.LoadUint64(&l.word) == v {
			if found := s.inheritLock(v, mine, anyway); found != errHeld {
				return found
			}
		}
	}
	if ended(err) { // a wake-up that it got is not lost
		if last := s.tryLock(mine|sleepers, anyway); last != errHeld {
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

// openLock frees the lock, unless it is free (ErrNotHeld) or poisoned (ErrOwnerDied).
func (s *shared) openLock() error {
	l := s.lock()
	s.object.Released()
	for {
		old := atomic.LoadUint64(&l.word)
		switch {
		case old == 0:
			return ErrNotHeld
		case isPoisoned(old):
			return ErrOwnerDied
		case !atomic.CompareAndSwapUint64(&l.word, old, 0):
			continue
		case old&sleepers != 0:
			shm.FutexWake(low(&l.word), 1)
		}
		return nil
	}
}

// LockState is what a lock says of itself.
type LockState struct {
	Held     bool // also by a process that has died unnoticed
	Mine     bool // by this process
	PID      int  // of the holder, 0 if it is not known any more
	Levels   int  // of an RLock; 1 of a Lock that is held
	Poisoned bool // its holder has died: Acquire returns [ErrOwnerDied] until Recover has acquired it
}

func (b *base) state() (LockState, error) {
	s, err := b.enter()
	if err != nil {
		return LockState{}, err
	}
	defer s.leave()
	l := s.lock()
	owner := shm.Owner(atomic.LoadUint64(&l.word) & valueMost)
	if owner == 0 || owner == poisoned {
		return LockState{Poisoned: owner == poisoned}, nil
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
func NewLock(h *shm.Heap) (*Lock, error) { return newLock(h, 0) }

// NewRecoverableLock makes a lock that is acquired from a process that has died as if that had released it: there is no [ErrOwnerDied]. Errors as
// [NewLock]'s.
func NewRecoverableLock(h *shm.Heap) (*Lock, error) { return newLock(h, flagRecover) }

func newLock(h *shm.Heap, flags uint32) (*Lock, error) {
	l := &Lock{}
	if err := l.make(h, shm.KindLock, sizeLock, flags, nil); err != nil {
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
	return s.take(ctx, taking{thread: anyGoroutine, levels: 1})
}

// Recover is [Lock.Acquire] for a caller that can repair, or does not mind, what the death of a holder has left half done. It acquires a poisoned lock, which is
// then as any other: Release frees it. If the caller's process dies first, the lock is poisoned again. If the lock is not poisoned, or
// another has recovered it first, Recover waits and acquires it as Acquire does. Errors as Acquire's, but never [ErrOwnerDied].
func (l *Lock) Recover(ctx context.Context) error {
	s, err := l.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	return s.take(ctx, taking{thread: anyGoroutine, levels: 1, recover: true})
}

// TryAcquire takes the lock if it is free. It notices the death of a holder too, at a call 10 ms after the first in vain: [ErrOwnerDied].
func (l *Lock) TryAcquire() (bool, error) {
	s, err := l.enter()
	if err != nil {
		return false, err
	}
	defer s.leave()
	return try(s.take(context.Background(), taking{thread: anyGoroutine, levels: 1, try: true}))
}

// Release gives the lock up, whoever holds it. Errors: [ErrNotHeld], [ErrOwnerDied] (nobody holds it, and it stays poisoned), [ErrClosed].
func (l *Lock) Release() error {
	s, err := l.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	return s.openLock()
}

// State returns who holds the lock at this moment. Errors: [ErrClosed].
func (l *Lock) State() (LockState, error) { return l.state() }

// Locker is the lock for code that has no place for errors: all panic, [ErrOwnerDied] too. For a lock whose holders' deaths do not matter, see
// [NewRecoverableLock].
func (l *Lock) Locker() sync.Locker {
	return locker{func() error { return l.Acquire(context.Background()) }, l.Release}
}

func (l *Lock) held() (*shared, uint32, error) {
	s, err := l.enter()
	return s, anyGoroutine, err
}

type locker struct{ acquire, release func() error }

func (l locker) Lock() {
	if err := l.acquire(); err != nil {
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
func NewRLock(h *shm.Heap) (*RLock, error) { return newRLock(h, flagRecursive) }

// NewRecoverableRLock makes a lock, as [NewRecoverableLock] does.
func NewRecoverableRLock(h *shm.Heap) (*RLock, error) { return newRLock(h, flagRecursive|flagRecover) }

func newRLock(h *shm.Heap, flags uint32) (*RLock, error) {
	l := &RLock{}
	if err := l.make(h, shm.KindLock, sizeLock, flags, nil); err != nil {
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
	return s.take(ctx, taking{thread: h.number, levels: 1})
}

// Recover acquires the lock, or one more level of it, as [Lock.Recover] does.
func (h *Holder) Recover(ctx context.Context) error {
	s, err := h.lock.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	return s.take(ctx, taking{thread: h.number, levels: 1, recover: true})
}

// TryAcquire takes the lock, or one more level of it, if nobody else holds it. Errors as [Lock.TryAcquire].
func (h *Holder) TryAcquire() (bool, error) {
	s, err := h.lock.enter()
	if err != nil {
		return false, err
	}
	defer s.leave()
	return try(s.take(context.Background(), taking{thread: h.number, levels: 1, try: true}))
}

// Release gives up one level. Errors: [ErrNotHeld] (by this holder), [ErrOwnerDied] (nobody holds it, and it stays poisoned), [ErrClosed].
func (h *Holder) Release() error {
	s, err := h.lock.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	switch levels := s.levels(h.number); levels {
	case 0:
		if isPoisoned(atomic.LoadUint64(&s.lock().word)) {
			return ErrOwnerDied
		}
		return ErrNotHeld
	case 1:
		return s.openLock()
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
