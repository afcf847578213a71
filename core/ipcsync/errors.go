package ipcsync

import "github.com/polyproc/polyproc/core/internal/errcodec"

// A task of a pool may return these.
func init() {
	errcodec.Register("ipcsync.ErrOwnerDied", ErrOwnerDied)
	errcodec.Register("ipcsync.ErrNotHeld", ErrNotHeld)
	errcodec.Register("ipcsync.ErrTooMany", ErrTooMany)
	errcodec.Register("ipcsync.ErrBroken", ErrBroken)
	errcodec.Register("ipcsync.ErrClosed", ErrClosed)
}
