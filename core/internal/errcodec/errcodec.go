// Package errcodec is how the error of a task travels from a worker to the pool's process, so that [errors.Is] and [errors.As]
// find there what they find in the worker.
//
// An error is sent as a tree of the errors that it wraps. Of each it sends
//
//   - the text;
//   - the name, if it is a registered sentinel: it arrives as the same variable;
//   - the value, if gob can carry its type: types of the standard library that are listed in register.go, and types that the
//     program has registered with [gob.Register]. Fields that hold errors are sent as errors;
//   - which registered sentinels its own Is method accepts.
//
// An error that is none of these arrives as one that has the same text and wraps the same errors.
package errcodec

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"fmt"
	"reflect"
	"slices"
	"sync"
)

// depthMost and nodesMost bound what is sent of an error that wraps without end, or too much. What is left out is in the text.
const (
	depthMost = 64
	nodesMost = 1024
)

// node is one error of the tree, as it travels.
type node struct {
	Text  string
	Name  string   // of a registered sentinel
	Is    []string // names of the sentinels that the error's Is method accepts
	Value []byte   // gob of an interface that holds the error
	Field []string // names of the value's fields that hold errors: Wraps has them first, in this order
	Wraps []node
}

var sentinels = struct {
	sync.RWMutex
	byName map[string]error
	names  map[error]string
}{byName: map[string]error{}, names: map[error]string{}}

// Register makes err known by a name, which is the same in all processes. It panics if the name or the error is registered
// already, and if errors of this type cannot be compared.
func Register(name string, err error) {
	if err == nil || !reflect.TypeOf(err).Comparable() {
		panic(fmt.Sprintf("error %q: an error of type %T cannot be told from others", name, err))
	}
	sentinels.Lock()
	defer sentinels.Unlock()
	if _, ok := sentinels.byName[name]; ok {
		panic(fmt.Sprintf("error %q is registered already", name))
	}
	if as, ok := sentinels.names[err]; ok {
		panic(fmt.Sprintf("error %q is registered already, as %q", name, as))
	}
	sentinels.byName[name], sentinels.names[err] = err, name
}

// Append appends the bytes of err to dst. It returns false, and dst as it was, if err has nothing but its text: nothing then is
// gained by sending more.
func Append(dst []byte, err error) ([]byte, bool) {
	b := builder{left: nodesMost}
	n := b.build(err, 0)
	if !b.worth {
		return dst, false
	}
	buf := bytes.NewBuffer(dst)
	if gob.NewEncoder(buf).Encode(n) != nil {
		return dst, false
	}
	return buf.Bytes(), true
}

// Decode returns the error whose bytes these are.
func Decode(src []byte) (err, failed error) {
	var n node
	if failed := gob.NewDecoder(bytes.NewReader(src)).Decode(&n); failed != nil {
		return nil, failed
	}
	return n.err(0), nil
}

type builder struct {
	left  int
	worth bool // there is more than texts
}

func (b *builder) build(err error, depth int) node {
	b.left--
	n := node{Text: err.Error()}
	if n.Name = nameOf(err); n.Name != "" {
		b.worth = true
		return n // what it wraps is known at the other end
	}
	fields := b.value(&n, err)
	if is, ok := err.(interface{ Is(error) bool }); ok && n.Value == nil {
		n.Is = accepted(is)
		b.worth = b.worth || n.Is != nil
	}
	wraps := fields
	for _, inner := range unwrap(err) {
		if inner != nil && !slices.ContainsFunc(fields, func(f error) bool { return same(f, inner) }) {
			wraps = append(wraps, inner)
		}
	}
	for _, inner := range wraps {
		if depth == depthMost || b.left <= 0 {
			break
		}
		n.Wraps = append(n.Wraps, b.build(inner, depth+1))
	}
	if n.Field != nil && len(n.Wraps) < len(n.Field) { // cut off: the value would be without its errors
		n.Field, n.Value = nil, nil
	}
	return n
}

func unwrap(err error) []error {
	switch w := err.(type) {
	case interface{ Unwrap() error }:
		return []error{w.Unwrap()}
	case interface{ Unwrap() []error }:
		return w.Unwrap()
	}
	return nil
}

// same reports whether two errors are the same one, as far as errors of their type can be compared.
func same(a, b error) bool {
	t := reflect.TypeOf(a)
	return t == reflect.TypeOf(b) && (!t.Comparable() || a == b)
}

func nameOf(err error) string {
	if !reflect.TypeOf(err).Comparable() {
		return ""
	}
	sentinels.RLock()
	defer sentinels.RUnlock()
	return sentinels.names[err]
}

func accepted(err interface{ Is(error) bool }) (names []string) {
	sentinels.RLock()
	defer sentinels.RUnlock()
	for name, sentinel := range sentinels.byName {
		if err.Is(sentinel) {
			names = append(names, name)
		}
	}
	return names
}

// value fills in the value of n, if gob can carry it, and returns the errors in its fields.
func (b *builder) value(n *node, err error) (fields []error) {
	v := reflect.ValueOf(err)
	pointer := v.Kind() == reflect.Pointer
	if pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	send := err
	if v.Kind() == reflect.Struct && !marshalsItself(v.Type()) {
		// A copy without its errors, which gob could carry only if it knew the type of each.
		bare := reflect.New(v.Type()).Elem()
		for i := range v.NumField() {
			f := v.Type().Field(i)
			switch {
			case !f.IsExported():
				continue
			case f.Type != reflect.TypeFor[error]():
				bare.Field(i).Set(v.Field(i))
			case !v.Field(i).IsNil():
				n.Field = append(n.Field, f.Name)
				fields = append(fields, v.Field(i).Interface().(error))
			}
		}
		if pointer {
			send = bare.Addr().Interface().(error)
		} else {
			send = bare.Interface().(error)
		}
	}
	encoded, ok := encodeValue(send)
	if !ok {
		n.Field = nil
		return nil
	}
	n.Value, b.worth = encoded, true
	return fields
}

func marshalsItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[gob.GobEncoder]()) || p.Implements(reflect.TypeFor[encoding.BinaryMarshaler]())
}

// encodeValue reports false if gob does not know the type or cannot carry it. Methods of the type may panic.
func encodeValue(err error) (encoded []byte, ok bool) {
	defer func() {
		if recover() != nil {
			encoded, ok = nil, false
		}
	}()
	t := reflect.TypeOf(err)
	if name := known[t]; name != "" {
		var buf bytes.Buffer
		if gob.NewEncoder(&buf).Encode(name) != nil || gob.NewEncoder(&buf).EncodeValue(reflect.ValueOf(err)) != nil {
			return nil, false
		}
		return append([]byte{isKnown}, buf.Bytes()...), true
	}
	var buf bytes.Buffer
	buf.WriteByte(isRegistered)
	if gob.NewEncoder(&buf).Encode(&err) != nil {
		return nil, false
	}
	return buf.Bytes(), true
}

// The first byte of a value.
const (
	isKnown      = 1 // the name of a type of ours follows, then the value
	isRegistered = 2 // an interface follows, whose type gob knows
)

// decodeValue returns nil if the value cannot be decoded here.
func decodeValue(src []byte) (err error) {
	defer func() {
		if recover() != nil {
			err = nil
		}
	}()
	kind, r := src[0], bytes.NewReader(src[1:])
	if kind == isRegistered {
		if gob.NewDecoder(r).Decode(&err) != nil {
			return nil
		}
		return err
	}
	var name string
	if gob.NewDecoder(r).Decode(&name) != nil {
		return nil
	}
	for t, is := range known {
		if is != name {
			continue
		}
		if t.Kind() == reflect.Pointer {
			v := reflect.New(t.Elem())
			if gob.NewDecoder(r).DecodeValue(v) != nil {
				return nil
			}
			return v.Interface().(error)
		}
		v := reflect.New(t)
		if gob.NewDecoder(r).DecodeValue(v) != nil {
			return nil
		}
		return v.Elem().Interface().(error)
	}
	return nil
}

// err makes the error of a node.
func (n *node) err(depth int) error {
	if depth > depthMost {
		return &remote{text: n.Text}
	}
	if n.Name != "" {
		if err := find(n.Name); err != nil {
			return err
		}
	}
	wraps := make([]error, len(n.Wraps))
	for i := range n.Wraps {
		wraps[i] = n.Wraps[i].err(depth + 1)
	}
	if len(n.Value) > 0 {
		if err := n.withFields(decodeValue(n.Value), wraps); err != nil {
			if rest := wraps[len(n.Field):]; len(rest) > 0 { // what its fields do not have
				return &remoteMany{remote{text: n.Text}, append([]error{err}, rest...)}
			}
			return err
		}
	}
	r := &remote{text: n.Text, is: n.Is}
	switch len(wraps) {
	case 0:
		return r
	case 1:
		return &remoteOne{*r, wraps[0]}
	}
	return &remoteMany{*r, wraps}
}

// withFields gives a value the errors that its fields held. It returns nil if they do not fit.
func (n *node) withFields(err error, wraps []error) error {
	if err == nil || len(n.Field) == 0 {
		return err
	}
	v := reflect.ValueOf(err)
	pointer := v.Kind() == reflect.Pointer
	if !pointer {
		v = reflect.New(v.Type())
		v.Elem().Set(reflect.ValueOf(err))
	}
	if v.Elem().Kind() != reflect.Struct || len(wraps) < len(n.Field) {
		return nil
	}
	for i, name := range n.Field {
		f := v.Elem().FieldByName(name)
		if !f.IsValid() || !f.CanSet() || f.Type() != reflect.TypeFor[error]() {
			return nil
		}
		f.Set(reflect.ValueOf(&wraps[i]).Elem())
	}
	if pointer {
		return err
	}
	return v.Elem().Interface().(error)
}

func find(name string) error {
	sentinels.RLock()
	defer sentinels.RUnlock()
	return sentinels.byName[name]
}

// remote is an error of another process whose type is not known here.
type remote struct {
	text string
	is   []string
}

func (r *remote) Error() string { return r.text }

func (r *remote) Is(target error) bool {
	if target == nil || len(r.is) == 0 {
		return false
	}
	name := nameOf(target)
	return name != "" && slices.Contains(r.is, name)
}

type remoteOne struct {
	remote
	inner error
}

func (r *remoteOne) Unwrap() error { return r.inner }

type remoteMany struct {
	remote
	inner []error
}

func (r *remoteMany) Unwrap() []error { return r.inner }
