package queue

import "github.com/polyproc/polyproc/core/internal/errcodec"

// A task of a pool may return these.
func init() {
	errcodec.Register("queue.ErrShutdown", ErrShutdown)
	errcodec.Register("queue.ErrEmpty", ErrEmpty)
	errcodec.Register("queue.ErrFull", ErrFull)
	errcodec.Register("queue.ErrBusy", ErrBusy)
	errcodec.Register("queue.ErrClosed", ErrClosed)
	errcodec.Register("queue.ErrTaskDone", ErrTaskDone)
	errcodec.Register("queue.ErrAcked", ErrAcked)
}
