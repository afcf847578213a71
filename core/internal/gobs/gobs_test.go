package gobs

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type inner struct {
	Name string
	More []*inner
}

type outer struct {
	ID   int
	Data []byte
	At   time.Time
	By   map[string]inner
	Seen [2]bool
}

type open struct{ Value any }

func init() {
	gob.Register(inner{})
	gob.Register(map[string]int{})
}

func sample(i int) outer {
	o := outer{ID: i, Data: bytes.Repeat([]byte{byte(i)}, 1+i%300), At: time.Unix(int64(i), 0).UTC()}
	if i%3 == 0 {
		o.By = map[string]inner{fmt.Sprint(i): {Name: "x", More: []*inner{{Name: "y"}}}}
	}
	return o
}

// Each message is a gob of its own: what reads it may never have seen another.
func TestEachMessageStandsAlone(t *testing.T) {
	encode, decode := Codec[outer]("test")
	for i := range 300 {
		v := sample(i)
		b, err := encode([]byte("head"), &v)
		require.NoError(t, err)
		require.Equal(t, "head", string(b[:4]))
		var plain, ours outer
		require.NoError(t, gob.NewDecoder(bytes.NewReader(b[4:])).Decode(&plain))
		require.Equal(t, v, plain)
		require.NoError(t, decode(b[4:], &ours))
		require.Equal(t, v, ours)
		var by bytes.Buffer // and one that gob has written is as good
		require.NoError(t, gob.NewEncoder(&by).Encode(v))
		var again outer
		require.NoError(t, decode(by.Bytes(), &again))
		require.Equal(t, v, again)
	}
}

// Values of other types in an interface bring their own descriptions, each time.
func TestInterfaces(t *testing.T) {
	encode, _ := Codec[open]("test")
	for i, v := range []open{{1}, {inner{Name: "a"}}, {map[string]int{"b": 2}}, {inner{Name: "c"}}, {2}} {
		b, err := encode(nil, &v)
		require.NoError(t, err)
		var got open
		require.NoError(t, gob.NewDecoder(bytes.NewReader(b)).Decode(&got), i)
		require.Equal(t, v, got)
	}
}

func TestPointers(t *testing.T) {
	encode, decode := Codec[*inner]("test")
	none := (*inner)(nil)
	_, err := encode(nil, &none)
	require.ErrorContains(t, err, "test: ")
	for range 3 {
		v := &inner{Name: "n"}
		b, err := encode(nil, &v)
		require.NoError(t, err)
		var got *inner
		require.NoError(t, decode(b, &got))
		require.Equal(t, v, got)
	}
}

type refuses struct{ No bool }

func (r refuses) GobEncode() ([]byte, error) {
	if r.No {
		return nil, errors.New("no")
	}
	return []byte{1}, nil
}
func (r *refuses) GobDecode([]byte) error { return nil }

// What fails leaves nothing behind that another message would get.
func TestFailures(t *testing.T) {
	encode, decode := Codec[struct{ A, B refuses }]("test")
	for range 3 {
		bad := struct{ A, B refuses }{B: refuses{true}}
		b, err := encode([]byte("x"), &bad)
		require.Error(t, err)
		require.Equal(t, "x", string(b))
		good := struct{ A, B refuses }{}
		b, err = encode(nil, &good)
		require.NoError(t, err)
		require.NoError(t, gob.NewDecoder(bytes.NewReader(b)).Decode(&good))
		require.Error(t, decode(b[:len(b)-1], &good))
		require.NoError(t, decode(b, &good))
	}
}

func TestManyAtOnce(t *testing.T) {
	encode, decode := Codec[outer]("test")
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 200 {
				v := sample(g*1000 + i)
				b, err := encode(nil, &v)
				var got outer
				if err == nil {
					err = decode(b, &got)
				}
				if err != nil || !reflect.DeepEqual(v, got) {
					t.Errorf("%v, %v, %v", v, got, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// More descriptions of a type than are kept.
func TestManyDescriptions(t *testing.T) {
	_, decode := Codec[inner]("test")
	for i := range 3 * descriptionsMost {
		sender := reflect.StructOf([]reflect.StructField{{Name: "Name", Type: reflect.TypeFor[string]()},
			{Name: "F" + strings.Repeat("x", i), Type: reflect.TypeFor[int]()}})
		v := reflect.New(sender).Elem()
		v.Field(0).SetString("n")
		var b bytes.Buffer
		require.NoError(t, gob.NewEncoder(&b).EncodeValue(v))
		for range 2 {
			var got inner
			require.NoError(t, decode(b.Bytes(), &got))
			require.Equal(t, "n", got.Name)
		}
	}
	require.LessOrEqual(t, len(kindOf(reflect.TypeFor[inner]()).decoders), descriptionsMost)
}

// Whatever comes over: no panic, and the next message is understood.
func FuzzDecode(f *testing.F) {
	encode, decode := Codec[outer]("fuzz")
	v := sample(6)
	good, err := encode(nil, &v)
	require.NoError(f, err)
	f.Add(good)
	n, ok := describes(good)
	require.True(f, ok)
	f.Add(good[n:])
	f.Add(append(bytes.Clone(good[:n]), good...))
	f.Add(append(bytes.Clone(good), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		var any outer
		_ = decode(b, &any)
		for range 2 {
			var got outer
			require.NoError(t, decode(good, &got))
			require.Equal(t, v, got)
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	encode, decode := Codec[struct {
		ID   int
		Data []byte
	}]("bench")
	v := struct {
		ID   int
		Data []byte
	}{1, make([]byte, 64)}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = encode(buf[:0], &v); err == nil {
			err = decode(buf, &v)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
