package queue

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/polyproc/polyproc/core/internal/gobs"
)

// Codec is how values travel. Number, beside each message, says so to the receiver: 0 is bytes as they are, which every language
// understands, 1 is Python's pickle.
type Codec[T any] struct {
	Number uint16
	// Append appends the value's bytes to dst.
	Append func(dst []byte, v T) ([]byte, error)
	// Decode makes a value of bytes, of which it must keep nothing.
	Decode func(src []byte) (T, error)
}

// Numbers of codecs. Each of those of [DefaultCodec] stands for one type, or checks types itself, so that a queue of one type refuses the messages of
// another by *[DecodeError].
const (
	Raw     = 0
	Pickle  = 1
	Gob     = 16 // encoding/gob, which describes its types
	Int64   = 17 // int, int64: 8 bytes, little-endian, as the next two
	Uint64  = 18
	Float64 = 19
)

// DecodeError says that a message is not what the receiver's codec understands. It was taken from the queue all the same.
type DecodeError struct {
	Codec uint16 // the message's
	Data  []byte // its bytes
	Err   error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("queue: a message of %d bytes, codec %d: %v", len(e.Data), e.Codec, e.Err)
}

func (e *DecodeError) Unwrap() error { return e.Err }

// clone copies b, also an empty one, to memory that need not be cleared before.
func clone(b []byte) []byte {
	to := make([]byte, len(b))
	copy(to, b)
	return to
}

// DefaultCodec is the codec of queues that are given none: []byte and string as they are ([Raw]); int and int64, uint64, and float64 in 8 bytes,
// little-endian ([Int64], [Uint64], [Float64]); everything else by encoding/gob ([Gob]). A queue of []byte takes messages of any codec.
func DefaultCodec[T any]() Codec[T] {
	c := Codec[T]{Number: Gob}
	word := func(number uint16, to func(v T) uint64, from func(x uint64) T) {
		c.Number = number
		c.Append = func(dst []byte, v T) ([]byte, error) { return binary.LittleEndian.AppendUint64(dst, to(v)), nil }
		c.Decode = func(src []byte) (v T, err error) {
			if len(src) != 8 {
				return v, fmt.Errorf("%d bytes for a value of 8", len(src))
			}
			return from(binary.LittleEndian.Uint64(src)), nil
		}
	}
	var zero T
	switch any(zero).(type) {
	case []byte:
		c.Number = Raw
		c.Append = func(dst []byte, v T) ([]byte, error) { return append(dst, any(v).([]byte)...), nil }
		c.Decode = func(src []byte) (T, error) { return any(clone(src)).(T), nil }
	case string:
		c.Number = Raw
		c.Append = func(dst []byte, v T) ([]byte, error) { return append(dst, any(v).(string)...), nil }
		c.Decode = func(src []byte) (T, error) { return any(string(src)).(T), nil }
	case int:
		word(Int64, func(v T) uint64 { return uint64(any(v).(int)) }, func(x uint64) T { return any(int(x)).(T) })
	case int64:
		word(Int64, func(v T) uint64 { return uint64(any(v).(int64)) }, func(x uint64) T { return any(int64(x)).(T) })
	case uint64:
		word(Uint64, func(v T) uint64 { return any(v).(uint64) }, func(x uint64) T { return any(x).(T) })
	case float64:
		word(Float64, func(v T) uint64 { return math.Float64bits(any(v).(float64)) }, func(x uint64) T { return any(math.Float64frombits(x)).(T) })
	default:
		encode, decode := gobs.Codec[T]("queue")
		c.Append = func(dst []byte, v T) ([]byte, error) { return encode(dst, &v) }
		c.Decode = func(src []byte) (v T, err error) {
			err = decode(src, &v)
			return v, err
		}
	}
	return c
}
