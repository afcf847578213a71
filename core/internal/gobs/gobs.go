// Package gobs is how values travel that have no shorter form, as tasks' arguments and results (core/pool) and as messages (core/queue): by encoding/gob,
// each with its type, since each may be read by another process.
//
// A pointer goes as what it points to: gob cannot do pointers to pointers of types that marshal themselves.
package gobs

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"reflect"
)

// Codec returns functions that append the bytes of *v to dst, and that make *v of such bytes, of which nothing is kept. Errors: gob's, and for a nil pointer one
// that begins with who; dst is returned as it was then.
func Codec[T any](who string) (encode func(dst []byte, v *T) ([]byte, error), decode func(src []byte, v *T) error) {
	if reflect.TypeFor[T]().Kind() != reflect.Pointer {
		encode = func(dst []byte, v *T) ([]byte, error) { return appendTo(dst, v) }
		decode = func(src []byte, v *T) error { return gob.NewDecoder(bytes.NewReader(src)).Decode(v) }
		return encode, decode
	}
	encode = func(dst []byte, v *T) ([]byte, error) {
		if reflect.ValueOf(*v).IsNil() {
			return dst, fmt.Errorf("%s: %T(nil) has no value", who, *v)
		}
		return appendTo(dst, *v)
	}
	decode = func(src []byte, v *T) error {
		to := reflect.New(reflect.TypeFor[T]().Elem())
		if err := gob.NewDecoder(bytes.NewReader(src)).DecodeValue(to); err != nil {
			return err
		}
		*v = to.Interface().(T)
		return nil
	}
	return encode, decode
}

func appendTo(dst []byte, v any) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	if err := gob.NewEncoder(buf).Encode(v); err != nil {
		return dst, err
	}
	return buf.Bytes(), nil
}
