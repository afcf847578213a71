package shm

import "time"

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
	PidShift     = pidShift
	MembersHead  = membersHead
)
