package shm

import (
	"math"
	"sync/atomic"
	"time"
	"unsafe"
)

// Bell is an eventcount: a place where processes sleep until there may be something to do. It is two shared words,
// {seq, waiters uint32}, and knows nothing of what is waited for.
//
//	sleeper                                   ringer
//	seq := bell.Enter()                       publish what there is
//	look again; if nothing: bell.Wait(seq)    bell.Ring(1)
//	bell.Leave()
//
// Either the sleeper's second look finds what was published, or the ringer finds the sleeper: no wake-up is lost between the living.
// One that is lost because its sender or its receiver died is made up for by Reset and by bounded sleeps. Waiters is a hint
// that only saves system calls. A Bell is a value: copy it freely.
type Bell struct{ seq, waiters *uint32 }

// NewBell returns the bell in the first 8 bytes of b, which are shared and 4-aligned; zeros are a new bell.
func NewBell(b []byte) Bell {
	_ = b[7]
	p := addressOf(b)
	if uintptr(p)%4 != 0 {
		panic("shm: bell is not aligned")
	}
	return Bell{(*uint32)(p), (*uint32)(unsafe.Add(p, 4))}
}

// Ring wakes up to n sleepers, if there are any; else it costs one load.
func (b Bell) Ring(n int) {
	if atomic.LoadUint32(b.waiters) != 0 {
		atomic.AddUint32(b.seq, 1)
		FutexWake(b.seq, n)
	}
}

// RingAll wakes all sleepers, if there are any.
func (b Bell) RingAll() { b.Ring(math.MaxInt32) }

// Waiting reports whether somebody sleeps, or is about to.
func (b Bell) Waiting() bool { return atomic.LoadUint32(b.waiters) != 0 }

// Enter announces a sleeper and returns what to give to Wait. Look again for what you wait for between the two.
func (b Bell) Enter() uint32 {
	atomic.AddUint32(b.waiters, 1)
	return atomic.LoadUint32(b.seq)
}

// Wait sleeps while the bell has not been rung since Enter. Returns as [FutexWait] does; nil does not promise that there is
// anything: look.
func (b Bell) Wait(seq uint32, timeout time.Duration) error { return FutexWait(b.seq, seq, timeout) }

// Leave takes back what Enter announced. It never goes below 0, because Reset may have come between.
func (b Bell) Leave() {
	for {
		n := atomic.LoadUint32(b.waiters)
		if n == 0 || atomic.CompareAndSwapUint32(b.waiters, n, n-1) {
			return
		}
	}
}

// Reset forgets sleepers that died and wakes the living, who announce themselves again. Call it after a death.
func (b Bell) Reset() {
	atomic.StoreUint32(b.waiters, 0)
	atomic.AddUint32(b.seq, 1)
	FutexWake(b.seq, math.MaxInt32)
}
