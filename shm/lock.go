package shm

import (
	"errors"
	"math"
	"os"
	"sync/atomic"
	"time"
)

// Lock is mutual exclusion between processes, and between goroutines of one, over a 32-bit word in shared memory: 0, or who holds
// it, and bit 31 if somebody sleeps. Taking it is one CAS that names the owner, so that whoever dies holding it is known.
//
// It is taken from the dead, and only on proof of death ([Members.Gone]), never because time has passed: a stopped process keeps its lock. Before
// it is taken over, Resolve ends what the dead owner had begun, while the word still names it. That order makes recovery itself safe to die
// in: whoever comes next finds the dead owner again and resolves again.
//
// A process must not fork while it holds a lock: the child has no part in it.
type Lock struct {
	word    *uint32
	members *Members
	me      Owner
	resolve func(dead Owner)
}

const lockSleepers = 1 << 31

// How long a sleeper waits before it looks whether the owner lives, at first and at most.
var (
	sliceMin = lockSliceMinMillis * time.Millisecond
	sliceMax = lockSliceMostMillis * time.Millisecond
)

// NewLock returns this member's side of the lock in word; with me 0 it is only good for Sweep. resolve may be nil. It is called when the owner of the lock is dead and
// still named by the word. Several processes may run it for the same owner at the same time, and one may be late, after another
// has taken over: it must be idempotent, change only what belongs to this dead Owner, by compare-and-swap, and believe what it
// has read of what the lock protects only if [Lock.Owner] is still the dead one afterwards.
func NewLock(word *uint32, members *Members, me Owner, resolve func(dead Owner)) *Lock {
	return &Lock{word, members, me, resolve}
}

// Owner returns who holds the lock, 0 if nobody does.
func (l *Lock) Owner() Owner { return Owner(atomic.LoadUint32(l.word) &^ lockSleepers) }

// TryAcquire takes the lock if nobody holds it. It does not look whether who holds it is dead.
func (l *Lock) TryAcquire() bool {
	return l.me != 0 && atomic.CompareAndSwapUint32(l.word, 0, uint32(l.me))
}

// Acquire takes the lock within timeout (< 0: for ever). recovered says that it was taken from a dead owner. It is not recursive.
// Errors: [os.ErrDeadlineExceeded]; [ErrInterrupted], call again.
func (l *Lock) Acquire(timeout time.Duration) (recovered bool, err error) {
	if l.TryAcquire() {
		return false, nil
	}
	return l.slow(timeout)
}

func (l *Lock) slow(timeout time.Duration) (bool, error) {
	if l.me == 0 {
		panic("shm: lock is taken by nobody")
	}
	for range lockSpins {
		if atomic.LoadUint32(l.word) == 0 && l.TryAcquire() {
			return false, nil
		}
	}
	slice := sliceMin
	return l.wait(timeout, &slice)
}

// wait is for who has looked in vain. slice is how long the next sleep is; it grows.
func (l *Lock) wait(timeout time.Duration, slice *time.Duration) (bool, error) {
	begin := time.Now()
	// From here on we take the lock with the sleepers' bit: there may be others, and only the bit has them woken.
	mine := uint32(l.me) | lockSleepers
	for {
		v := atomic.LoadUint32(l.word)
		if v == 0 {
			if atomic.CompareAndSwapUint32(l.word, 0, mine) {
				return false, nil
			}
			continue
		}
		if v&lockSleepers == 0 && !atomic.CompareAndSwapUint32(l.word, v, v|lockSleepers) {
			continue
		}
		v |= lockSleepers
		left := *slice
		if timeout >= 0 {
			left = min(left, timeout-time.Since(begin))
		}
		if left > 0 {
			err := FutexWait(l.word, v, left)
			if err == nil {
				continue
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return false, err
			}
		}
		// Nothing for a while: the owner may be dead, or whoever was woken before us.
		*slice = min(2**slice, sliceMax)
		if atomic.LoadUint32(l.word) == v && l.takeOver(v, mine) {
			return true, nil
		}
		if timeout >= 0 && time.Since(begin) >= timeout {
			if atomic.CompareAndSwapUint32(l.word, 0, mine) {
				return false, nil
			}
			return false, os.ErrDeadlineExceeded
		}
	}
}

// takeOver takes the lock from the owner in v if that is dead; to is what the word becomes.
func (l *Lock) takeOver(v, to uint32) bool {
	dead := Owner(v &^ lockSleepers)
	if dead == l.me || !l.members.Gone(dead) {
		return false
	}
	if l.resolve != nil {
		l.resolve(dead)
	}
	return atomic.CompareAndSwapUint32(l.word, v, to)
}

// Release gives the lock up. It panics if this member does not hold it.
func (l *Lock) Release() {
	if atomic.CompareAndSwapUint32(l.word, uint32(l.me), 0) {
		return
	}
	if !atomic.CompareAndSwapUint32(l.word, uint32(l.me)|lockSleepers, 0) {
		panic(errNotHeld)
	}
	FutexWake(l.word, 1)
}

// Sweep releases the lock on behalf of a member that is dead, if that holds it: what [Members.Reap] asks for.
func (l *Lock) Sweep(dead Owner) {
	for {
		v := atomic.LoadUint32(l.word)
		if Owner(v&^lockSleepers) != dead || dead == l.me {
			return
		}
		if l.resolve != nil {
			l.resolve(dead)
		}
		if atomic.CompareAndSwapUint32(l.word, v, 0) {
			FutexWake(l.word, math.MaxInt32)
			return
		}
	}
}
