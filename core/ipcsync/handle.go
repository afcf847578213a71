package ipcsync

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

var (
	// ErrOwnerDied says that a process has died while it held the lock: what the lock guards may be half done, and the caller has not got the lock. The
	// lock is poisoned: each acquirer, of every process, gets this error until one has acquired it by [Lock.Recover] or [Holder.Recover]. Locks made by
	// [NewRecoverableLock] and [NewRecoverableRLock] do not have it.
	ErrOwnerDied = errors.New("ipcsync: the holder of the lock has died, and what it guards may be half done; the lock was not acquired: acquire it by Recover, or make it by NewRecoverableLock")
	// ErrNotHeld says that the lock is not held, or not by this holder.
	ErrNotHeld = errors.New("ipcsync: the lock is not held")
	// ErrTooMany says that a semaphore was released too often, or that an RLock has 2^32-1 levels.
	ErrTooMany = errors.New("ipcsync: too many times")
	// ErrBroken says that the barrier is broken: somebody gave up, died or aborted it.
	ErrBroken = errors.New("ipcsync: the barrier is broken")
	// ErrClosed says that this process has closed its handle of the object. It is an [os.ErrClosed].
	ErrClosed = fmt.Errorf("ipcsync: %w", os.ErrClosed)
)

// shared is an object as this process has it.
type shared struct {
	object *shm.Object
	heap   *shm.Heap
	pins   atomic.Int64 // calls under way; freedPins is added by Close
	finish sync.Once
	freed  chan struct{}
	gate   chan struct{} // of the goroutines that wait only one sleeps in the kernel
	words  []*uint32     // what they sleep on

	suspect [2]atomic.Uint64 // see suspicious
	tried   atomic.Uint32    // see recoverPermits
}

const freedPins = -1 << 40

// base is what all objects have.
type base struct{ s *shared }

// make makes an object of size bytes; nil: in the family's heap. fill completes it before anybody else knows of it.
func (b *base) make(h *shm.Heap, kind uint32, size uint64, flags uint32, fill func(p unsafe.Pointer)) error {
	if h == nil {
		var err error
		if h, err = shm.Family(); err != nil {
			return fmt.Errorf("ipcsync: %w", err)
		}
	}
	object, err := h.NewObject(kind, size)
	if err != nil {
		return fmt.Errorf("ipcsync: %w", err)
	}
	(*objectHead)(object.Pointer()).flags = flags
	if fill != nil {
		fill(object.Pointer())
	}
	b.open(object)
	return nil
}

func (b *base) open(object *shm.Object) {
	b.s = &shared{object: object, heap: object.Heap(), freed: make(chan struct{}), gate: make(chan struct{}, 1)}
}

// receive is UnmarshalBinary; mask and flags tell objects of one kind apart.
func (b *base) receive(data []byte, kind, mask, flags uint32) error {
	object, err := shm.Receive(data, kind)
	if err != nil {
		return fmt.Errorf("ipcsync: %w", err)
	}
	if is := (*objectHead)(object.Pointer()).flags; is&mask != flags {
		object.Drop()
		return fmt.Errorf("ipcsync: %w: a reference to another type of object (flags %#x)", shm.ErrInvalid, is)
	}
	b.open(object)
	return nil
}

// MarshalBinary returns a reference to the object that is on its way: 32 bytes for UnmarshalBinary in any process of the family, once, which C (pp_ref_import) and Python
// understand too. The object lives until it was received, or taken back with [shm.Forget].
func (b *base) MarshalBinary() ([]byte, error) {
	s, err := b.enter()
	if err != nil {
		return nil, err
	}
	defer s.leave()
	ref, err := s.object.Send()
	if err != nil {
		return nil, fmt.Errorf("ipcsync: %w", err)
	}
	return ref, nil
}

// Close releases this process's handle of the object; calls of this process that wait return [ErrClosed]. The object stays as long as
// any process has a handle or a reference is in flight. Close does not release a lock that is held. It returns nil, also when it is
// called again.
func (b *base) Close() error {
	if s := b.s; s != nil {
		s.free()
	}
	return nil
}

func (b *base) enter() (*shared, error) {
	s := b.s
	if s == nil {
		return nil, ErrClosed
	}
	if s.pins.Add(1) > 0 {
		return s, nil
	}
	s.leave()
	return nil, ErrClosed
}

func (s *shared) leave() {
	if s.pins.Add(-1) == freedPins {
		s.finish.Do(s.object.Drop)
	}
}

func (s *shared) free() {
	for {
		n := s.pins.Load()
		if n < 0 {
			return
		}
		if s.pins.CompareAndSwap(n, n+1+freedPins) {
			break
		}
	}
	close(s.freed)
	for _, word := range s.words {
		shm.FutexWake(word, math.MaxInt32)
	}
	s.leave()
}

func (s *shared) isFreed() bool { return s.pins.Load() < 0 }

func (s *shared) corrupt(what string, value uint64) error {
	return fmt.Errorf("ipcsync: %w: %s at %#x: %#x cannot be", shm.ErrCorrupt, what, s.object.Off(), value)
}

// suspicious reports, to one that does not wait, that the object has been in the way in this same state for so long that somebody may be dead.
func (s *shared) suspicious(state uint64) bool {
	at := now()
	same := s.suspect[0].Load() == state
	if same && at-s.suspect[1].Load() < sliceMinNS {
		return false
	}
	s.suspect[0].Store(state)
	s.suspect[1].Store(at)
	return same
}

// verdicts remembers who is gone, for a look at many cells.
type verdicts map[shm.Owner]bool

func (v verdicts) gone(h *shm.Heap, o shm.Owner) bool {
	if o == h.Me() {
		return false
	}
	dead, known := v[o]
	if !known {
		dead = h.Gone(o)
		v[o] = dead
	}
	return dead
}

func init() {
	shm.RegisterKind(shm.KindLock, sizeLock, none)
	shm.RegisterKind(shm.KindSemaphore, sizeSemaphore, none)
	shm.RegisterKind(shm.KindCondition, sizeCondition, destroyCondition)
	shm.RegisterKind(shm.KindEvent, sizeEvent, none)
	shm.RegisterKind(shm.KindBarrier, sizeBarrier, none)
}

// none is for objects that have nothing but their block.
func none(*shm.Heap, uint64) {}

// ended reports whether err is the end of a context.
func ended(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
