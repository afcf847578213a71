package shm

import (
	"sync/atomic"
	"time"
)

// SetLockSlice sets how long sleepers on a lock wait before they look whether its owner lives, and returns the way back.
func SetLockSlice(d time.Duration) (restore func()) {
	was := [2]time.Duration{sliceMin, sliceMax}
	sliceMin, sliceMax = d, d
	return func() { sliceMin, sliceMax = was[0], was[1] }
}

// WarmSize returns how many bytes of free blocks an arena keeps.
func (a *Arena) WarmSize() int64 { return a.warmSize }

// Mapped returns how many windows are mapped.
func (w *Windows) Mapped() int { return len(w.byBase) }

const (
	LockSleepers = lockSleepers
	PidShift     = memberPIDShift
	IDShift      = memberIDShift
	MembersHead  = sizeMembersHead
)

// Executed makes this process forget its place among the members, as if it executed another program.
func (h *Heap) Executed() {
	forget(h.members.id, h.Me())
	h.me.Store(0)
}

// DieDropping drops the last reference as one does who dies before the object is empty, and has who sweeps behind him go on.
func (o *Object) DieDropping() {
	o.dropped.Store(true)
	atomic.StoreUint64(o.head().counted(), uint64(o.generation))
	o.heap.sweep(o.heap.Me())
	_ = o.heap.leave()
}
