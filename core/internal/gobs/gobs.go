// Package gobs is how values travel that have no shorter form, as tasks' arguments and results (core/pool) and as messages (core/queue): by encoding/gob,
// each with its type, since each may be read by another process.
//
// To describe its type and to understand such a description takes gob far longer than a value does. But for a type that holds no interfaces the description, the frames
// before the value's, is the same in each message: so encoders that have sent theirs are kept, and what they write goes behind a copy of it; and decoders are kept that have read
// a description, for the messages that begin with the same bytes, of which they are given the rest. What goes over is what gob itself would have written.
//
// A pointer goes as what it points to: gob cannot do pointers to pointers of types that marshal themselves.
package gobs

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"fmt"
	"reflect"
	"sync"
)

// Codec returns functions that append the bytes of *v to dst, and that make *v of such bytes, of which nothing is kept. Errors: gob's, and for a nil pointer one
// that begins with who; dst is returned as it was then.
func Codec[T any](who string) (encode func(dst []byte, v *T) ([]byte, error), decode func(src []byte, v *T) error) {
	t := reflect.TypeFor[T]()
	if t.Kind() != reflect.Pointer {
		k := kindOf(t)
		encode = func(dst []byte, v *T) ([]byte, error) { return k.append(dst, v) }
		decode = func(src []byte, v *T) error { return k.decode(src, v) }
		return encode, decode
	}
	k := kindOf(t.Elem())
	encode = func(dst []byte, v *T) ([]byte, error) {
		if reflect.ValueOf(*v).IsNil() {
			return dst, fmt.Errorf("%s: %T(nil) has no value", who, *v)
		}
		return k.append(dst, *v)
	}
	decode = func(src []byte, v *T) error {
		to := reflect.New(t.Elem()).Interface()
		if err := k.decode(src, to); err != nil {
			return err
		}
		*v = to.(T)
		return nil
	}
	return encode, decode
}

// kind is what is known of a type.
type kind struct {
	same     bool      // the description is the same in each message
	encoders sync.Pool // of *encoder

	mu       sync.RWMutex
	decoders map[string]*sync.Pool // of *decoder, by the description that they have read
}

const (
	descriptionsMost = 16      // of one type: other programs may have other ideas of it
	keepMost         = 1 << 20 // bytes; an encoder with a larger buffer is left to the garbage collector
)

var kinds sync.Map // reflect.Type: *kind

func kindOf(t reflect.Type) *kind {
	k, ok := kinds.Load(t)
	if !ok {
		k, _ = kinds.LoadOrStore(t, &kind{same: !holdsInterface(t, map[reflect.Type]bool{}), decoders: map[string]*sync.Pool{}})
	}
	return k.(*kind)
}

// encoder has sent its description.
type encoder struct {
	buf         bytes.Buffer
	gob         *gob.Encoder
	description []byte
}

// append appends the bytes of what v points to.
func (k *kind) append(dst []byte, v any) ([]byte, error) {
	e, _ := k.encoders.Get().(*encoder)
	if e == nil {
		e = &encoder{}
		e.gob = gob.NewEncoder(&e.buf)
	}
	if err := e.gob.Encode(v); err != nil {
		return dst, err
	}
	dst = append(append(dst, e.description...), e.buf.Bytes()...)
	if k.same && e.buf.Cap() <= keepMost {
		if n, ok := describes(e.buf.Bytes()); ok && n > 0 {
			e.description = append(e.description, e.buf.Bytes()[:n]...)
		}
		e.buf.Reset()
		k.encoders.Put(e)
	}
	return dst, nil
}

// decoder has read a description.
type decoder struct {
	src bytes.Reader
	gob *gob.Decoder
}

// decode makes what v points to of the bytes.
func (k *kind) decode(src []byte, v any) error {
	n, ok := 0, false
	if k.same {
		n, ok = describes(src)
	}
	if !ok {
		return gob.NewDecoder(bytes.NewReader(src)).Decode(v)
	}
	k.mu.RLock()
	pool := k.decoders[string(src[:n])]
	k.mu.RUnlock()
	var d *decoder
	if pool != nil {
		d, _ = pool.Get().(*decoder)
	}
	if d != nil {
		d.src.Reset(src[n:])
	} else {
		d = &decoder{}
		d.src.Reset(src)
		d.gob = gob.NewDecoder(&d.src)
	}
	if err := d.gob.Decode(v); err != nil {
		return err // and whatever is left in it goes with it
	}
	if d.src.Len() != 0 {
		return nil
	}
	d.src.Reset(nil)
	if pool == nil {
		pool = k.poolOf(src[:n])
	}
	if pool != nil {
		pool.Put(d)
	}
	return nil
}

// poolOf makes a place for decoders that have read a description; nil: there are too many already.
func (k *kind) poolOf(description []byte) *sync.Pool {
	k.mu.Lock()
	defer k.mu.Unlock()
	pool := k.decoders[string(description)]
	if pool == nil && len(k.decoders) < descriptionsMost {
		pool = &sync.Pool{}
		k.decoders[string(description)] = pool
	}
	return pool
}

// describes returns how many bytes of a gob the description of types takes, and whether one value follows it and nothing more. A gob is frames, each of them its length and a number:
// negative if it describes a type, else that of the value's type (the documentation of encoding/gob, "Encoding Details").
func describes(src []byte) (n int, ok bool) {
	for at := src; ; {
		length, rest, ok := number(at)
		if !ok || length > uint64(len(rest)) {
			return 0, false
		}
		id, _, ok := number(rest[:length])
		if !ok {
			return 0, false
		}
		at = rest[length:]
		if id&1 == 0 {
			return n, len(at) == 0
		}
		n = len(src) - len(at)
	}
}

// number reads an unsigned number as gob writes it: a byte below 128, or the negated count of the bytes that follow, big-endian. A signed one is that, with its sign in bit 0.
func number(src []byte) (x uint64, rest []byte, ok bool) {
	if len(src) == 0 {
		return 0, nil, false
	}
	if src[0] < 128 {
		return uint64(src[0]), src[1:], true
	}
	n := -int(int8(src[0]))
	if n > 8 || n >= len(src) {
		return 0, nil, false
	}
	for _, b := range src[1 : 1+n] {
		x = x<<8 | uint64(b)
	}
	return x, src[1+n:], true
}

var marshalers = []reflect.Type{reflect.TypeFor[gob.GobEncoder](), reflect.TypeFor[encoding.BinaryMarshaler](), reflect.TypeFor[encoding.TextMarshaler]()}

// holdsInterface reports whether a value of the type may hold an interface that gob looks into: then what describes it depends on the value.
func holdsInterface(t reflect.Type, seen map[reflect.Type]bool) bool {
	if seen[t] {
		return false
	}
	seen[t] = true
	for _, m := range marshalers {
		if t.Kind() != reflect.Interface && (t.Implements(m) || reflect.PointerTo(t).Implements(m)) {
			return false
		}
	}
	switch t.Kind() {
	case reflect.Interface:
		return true
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return holdsInterface(t.Elem(), seen)
	case reflect.Map:
		return holdsInterface(t.Key(), seen) || holdsInterface(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() && holdsInterface(f.Type, seen) {
				return true
			}
		}
	}
	return false
}
