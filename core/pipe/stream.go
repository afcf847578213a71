package pipe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"time"
)

// Stream is a connection of messages over a socket, in the wire format of Python's multiprocessing.connection: a length, 4 bytes in network order, and so many bytes; -1: the
// length follows in 8 bytes. What Python sends with send_bytes is a message; with send it is a pickle. Several goroutines may use it at once.
type Stream struct {
	conn      net.Conn
	send, rec chan struct{} // one at a time
	limit     int
	header    [12]byte
}

// ErrTooBig says that the other end announces a message that is larger than the limit. The stream is closed.
var ErrTooBig = errors.New("pipe: the message is larger than the limit")

const (
	longFrame  = -1
	shortMost  = math.MaxInt32
	bufferStep = 1 << 20 // nothing is allocated for bytes that have not arrived, but this
)

// NewStream returns the stream over a connection, which belongs to it from now on.
func NewStream(c net.Conn) *Stream {
	return &Stream{conn: c, send: make(chan struct{}, 1), rec: make(chan struct{}, 1), limit: math.MaxInt}
}

// SetLimit has Recv refuse messages of more than n bytes. Set it before the first Recv.
func (s *Stream) SetLimit(n int) { s.limit = n }

// Conn returns the connection: for its addresses, and to ask who the other end is.
func (s *Stream) Conn() net.Conn { return s.conn }

// Close closes the stream; calls that wait return [net.ErrClosed].
func (s *Stream) Close() error { return s.conn.Close() }

// during calls f while no other goroutine is in the same direction; the end of ctx ends its reads and writes. broken tells whether f has broken off in the middle of a message:
// then the stream is closed, for nothing could be read as what it is not.
func during(ctx context.Context, gate chan struct{}, deadline func(time.Time) error, f func() (broken bool, err error), end func() error) error {
	select {
	case gate <- struct{}{}:
		defer func() { <-gate }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if ctx.Done() != nil {
		stopped := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = deadline(time.Unix(1, 0))
			close(stopped)
		})
		defer func() {
			if !stop() {
				<-stopped
				_ = deadline(time.Time{})
			}
		}()
	}
	broken, err := f()
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		err = ctx.Err()
	}
	if broken {
		_ = end()
	}
	return err
}

// Send sends a message. Errors: the context's; of the connection. An error in the middle of a message closes the stream.
func (s *Stream) Send(ctx context.Context, data []byte) error {
	return during(ctx, s.send, s.conn.SetWriteDeadline, func() (bool, error) {
		var room [12]byte
		header := room[:4]
		if len(data) > shortMost {
			long := int32(longFrame)
			header = room[:]
			binary.BigEndian.PutUint32(header, uint32(long))
			binary.BigEndian.PutUint64(header[4:], uint64(len(data)))
		} else {
			binary.BigEndian.PutUint32(header, uint32(len(data)))
		}
		parts := net.Buffers{header, data}
		n, err := parts.WriteTo(s.conn)
		return err != nil && n > 0, err
	}, s.conn.Close)
}

// Recv receives a message. Errors: [io.EOF] (the other end is closed), [io.ErrUnexpectedEOF] (in the middle of a message), [ErrTooBig], the context's, of the connection. All but the
// context's before a message has begun leave a stream of which no more can be received.
func (s *Stream) Recv(ctx context.Context) (data []byte, err error) {
	err = during(ctx, s.rec, s.conn.SetReadDeadline, func() (bool, error) {
		n, err := io.ReadFull(s.conn, s.header[:4])
		if err != nil {
			return n > 0, err
		}
		size := int64(int32(binary.BigEndian.Uint32(s.header[:])))
		if size == longFrame {
			if _, err = io.ReadFull(s.conn, s.header[4:]); err != nil {
				return true, cut(err)
			}
			size = int64(binary.BigEndian.Uint64(s.header[4:]))
		}
		if size < 0 {
			return true, fmt.Errorf("pipe: %w: a length of %d", errFrame, size)
		}
		if size > int64(s.limit) {
			return true, fmt.Errorf("%w: %d of %d bytes", ErrTooBig, size, s.limit)
		}
		data, err = readGrowing(s.conn, size)
		return err != nil, err
	}, s.conn.Close)
	if err != nil {
		return nil, err
	}
	return data, nil
}

var errFrame = errors.New("the other end does not speak this protocol")

func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readGrowing reads size bytes into a buffer that doubles each time it is full.
func readGrowing(r io.Reader, size int64) ([]byte, error) {
	data := make([]byte, min(size, bufferStep))
	for have := 0; ; {
		n, err := io.ReadFull(r, data[have:])
		if have += n; err != nil {
			return nil, cut(err)
		}
		if int64(have) == size {
			return data, nil
		}
		more := make([]byte, min(size, 2*int64(have)))
		copy(more, data)
		data = more
	}
}
