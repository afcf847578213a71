package pool

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/polyproc/polyproc/core/internal/gobs"
)

// Codec. How a Go value travels: []byte and string as they are; bool, integers and floats in 8 bytes or fewer, little-endian;
// everything else by encoding/gob (so: exported fields, no channels, no functions). Both ends are the same program, so the type
// itself does not travel where it need not.

type (
	encodeFunc[T any] func(dst []byte, v *T) ([]byte, error) // appends
	decodeFunc[T any] func(src []byte, v *T) error
)

func encoder[T any]() encodeFunc[T] {
	var zero T
	word := func(to func(v *T) uint64) encodeFunc[T] {
		return func(dst []byte, v *T) ([]byte, error) { return binary.LittleEndian.AppendUint64(dst, to(v)), nil }
	}
	switch any(zero).(type) {
	case []byte:
		return func(dst []byte, v *T) ([]byte, error) { return append(dst, *any(v).(*[]byte)...), nil }
	case string:
		return func(dst []byte, v *T) ([]byte, error) { return append(dst, *any(v).(*string)...), nil }
	case struct{}:
		return func(dst []byte, _ *T) ([]byte, error) { return dst, nil }
	case int:
		return word(func(v *T) uint64 { return uint64(*any(v).(*int)) })
	case int64:
		return word(func(v *T) uint64 { return uint64(*any(v).(*int64)) })
	case uint64:
		return word(func(v *T) uint64 { return *any(v).(*uint64) })
	case float64:
		return word(func(v *T) uint64 { return math.Float64bits(*any(v).(*float64)) })
	}
	encode, _ := gobs.Codec[T]("pool")
	return encode
}

func decoder[T any]() decodeFunc[T] {
	var zero T
	word := func(from func(v *T, x uint64)) decodeFunc[T] {
		return func(src []byte, v *T) error {
			if len(src) != 8 {
				return fmt.Errorf("pool: %d bytes for a value of 8", len(src))
			}
			from(v, binary.LittleEndian.Uint64(src))
			return nil
		}
	}
	switch any(zero).(type) {
	case []byte:
		return func(src []byte, v *T) error { *any(v).(*[]byte) = append([]byte{}, src...); return nil }
	case string:
		return func(src []byte, v *T) error { *any(v).(*string) = string(src); return nil }
	case struct{}:
		return func([]byte, *T) error { return nil }
	case int:
		return word(func(v *T, x uint64) { *any(v).(*int) = int(x) })
	case int64:
		return word(func(v *T, x uint64) { *any(v).(*int64) = int64(x) })
	case uint64:
		return word(func(v *T, x uint64) { *any(v).(*uint64) = x })
	case float64:
		return word(func(v *T, x uint64) { *any(v).(*float64) = math.Float64frombits(x) })
	}
	_, decode := gobs.Codec[T]("pool")
	return decode
}
