package pipe

import (
	"net"

	"github.com/polyproc/polyproc/core/internal/errcodec"
)

// A task of a pool may return these.
func init() {
	errcodec.Register("pipe.ErrBroken", ErrBroken)
	errcodec.Register("pipe.ErrFull", ErrFull)
	errcodec.Register("pipe.ErrEmpty", ErrEmpty)
	errcodec.Register("pipe.ErrDirection", ErrDirection)
	errcodec.Register("pipe.ErrFileNext", ErrFileNext)
	errcodec.Register("pipe.ErrMessageNext", ErrMessageNext)
	errcodec.Register("pipe.ErrClosed", ErrClosed)
	errcodec.Register("pipe.ErrAuthentication", ErrAuthentication)
	errcodec.Register("pipe.ErrTooBig", ErrTooBig)
	errcodec.Register("net.ErrClosed", net.ErrClosed)
}
