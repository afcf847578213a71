//go:build linux

package queue_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/queue"
	"github.com/polyproc/polyproc/shm"
)

var errNotExist, errExist = os.ErrNotExist, os.ErrExist

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newHeap(t testing.TB) *shm.Heap {
	h, err := shm.CreateHeap()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

func newQueue[T any](t testing.TB, maxSize int) *queue.Queue[T] {
	q, err := queue.New[T](newHeap(t), queue.Options{MaxSize: maxSize})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return q
}

func length[T any](t testing.TB, q *queue.Queue[T]) int {
	n, err := q.Len()
	require.NoError(t, err)
	return n
}

func TestValuesComeInOrder(t *testing.T) {
	q := newQueue[int](t, 0)
	ctx := patient(t)
	for i := range 10_000 { // over several chunks
		require.NoError(t, q.Put(ctx, i))
	}
	require.Equal(t, 10_000, length(t, q))
	for i := range 10_000 {
		v, err := q.Get(ctx)
		require.NoError(t, err)
		require.Equal(t, i, v)
	}
	_, err := q.TryGet()
	require.ErrorIs(t, err, queue.ErrEmpty)
}

func TestSizes(t *testing.T) {
	q := newQueue[[]byte](t, 0)
	ctx := patient(t)
	sizes := []int{0, 1, 7, 8, 9, 4095, 4096, 32767, 32768, 32769, 1 << 16, 1 << 20, 5<<20 + 3}
	for round := range 3 {
		for i, n := range sizes {
			require.NoError(t, q.Put(ctx, bytes.Repeat([]byte{byte(i + round)}, n)))
		}
		for i, n := range sizes {
			b, err := q.Get(ctx)
			require.NoError(t, err)
			require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(i + round)}, n), b), "%d bytes", n)
		}
	}
}

func TestBounds(t *testing.T) {
	q := newQueue[string](t, 2)
	ctx := patient(t)
	require.NoError(t, q.Put(ctx, "a"))
	require.NoError(t, q.TryPut("b"))
	require.ErrorIs(t, q.TryPut("c"), queue.ErrFull)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, q.Put(short, "c"), context.DeadlineExceeded)
	put := make(chan error, 1)
	go func() { put <- q.Put(ctx, "c") }()
	v, err := q.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, "a", v)
	require.NoError(t, <-put)
	require.Equal(t, 2, length(t, q))
}

func TestShutdownEndsAll(t *testing.T) {
	q := newQueue[int](t, 0)
	ctx := patient(t)
	n, err := q.PutMany(ctx, []int{1, 2, 3})
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.NoError(t, q.Shutdown())
	require.ErrorIs(t, q.Put(ctx, 4), queue.ErrShutdown)
	sum := 0
	for v, err := range q.All(ctx) {
		require.NoError(t, err)
		sum += v
	}
	require.Equal(t, 6, sum)
	_, err = q.Get(ctx)
	require.ErrorIs(t, err, queue.ErrShutdown)
}

func TestWaitersEnd(t *testing.T) {
	for name, end := range map[string]func(q *queue.Queue[int], cancel func()){
		"shut down": func(q *queue.Queue[int], _ func()) { require.NoError(t, q.Shutdown()) },
		"close":     func(q *queue.Queue[int], _ func()) { require.NoError(t, q.Close()) },
		"cancel":    func(_ *queue.Queue[int], cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			q := newQueue[int](t, 0)
			ctx, cancel := context.WithCancel(patient(t))
			defer cancel()
			ended := make(chan error, 100)
			for range cap(ended) {
				go func() {
					_, err := q.Get(ctx)
					ended <- err
				}()
			}
			begin := time.Now()
			end(q, cancel)
			for range cap(ended) {
				require.Error(t, <-ended)
			}
			require.Less(t, time.Since(begin), time.Minute)
		})
	}
}

func TestMany(t *testing.T) {
	q := newQueue[int](t, 10)
	ctx := patient(t)
	values := make([]int, 1000)
	for i := range values {
		values[i] = i
	}
	put := make(chan error, 1)
	go func() {
		_, err := q.PutMany(ctx, values)
		put <- err
	}()
	var got []int
	for len(got) < len(values) {
		some, err := q.GetMany(ctx, 7)
		require.NoError(t, err)
		require.LessOrEqual(t, len(some), 7)
		got = append(got, some...)
	}
	require.Equal(t, values, got)
	require.NoError(t, <-put)
}

// Who gives a lease back and dies before he can tell has given it back all the same.
func TestReturnedAndNotTold(t *testing.T) {
	q := newQueue[string](t, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, q.Put(ctx, "again"))
	l, err := q.Lease(ctx)
	require.NoError(t, err)
	l.DieReturning()
	require.Equal(t, 1, length(t, q))
	v, err := q.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, "again", v)
}

func TestLease(t *testing.T) {
	q := newQueue[string](t, 0)
	ctx := patient(t)
	big := string(make([]byte, 100_000))
	for _, v := range []string{"first", big, "third"} {
		require.NoError(t, q.Put(ctx, v))
	}
	first, err := q.Lease(ctx)
	require.NoError(t, err)
	second, err := q.TryLease()
	require.NoError(t, err)
	require.Equal(t, "first", first.Value)
	require.Equal(t, big, second.Value)
	s, err := q.Stats()
	require.NoError(t, err)
	require.Equal(t, queue.Stats{Len: 1, Leased: 2, Unfinished: 3}, s)
	require.NoError(t, first.Return())
	require.ErrorIs(t, first.Ack(), queue.ErrAcked)
	require.Equal(t, 2, length(t, q))
	v, err := q.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, "first", v, "what was given back comes first")
	require.NoError(t, second.Ack())
	require.ErrorIs(t, second.Return(), queue.ErrAcked)
	v, err = q.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, "third", v)
	require.Zero(t, length(t, q))
}

func TestJoin(t *testing.T) {
	q := newQueue[int](t, 0)
	ctx := patient(t)
	require.ErrorIs(t, q.TaskDone(), queue.ErrTaskDone)
	require.NoError(t, q.Join(ctx))
	require.NoError(t, q.Put(ctx, 1))
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, q.Join(short), context.DeadlineExceeded)
	joined := make(chan error, 1)
	go func() { joined <- q.Join(ctx) }()
	_, err := q.Get(ctx)
	require.NoError(t, err)
	require.NoError(t, q.TaskDone())
	require.NoError(t, <-joined)
}

func TestCodecs(t *testing.T) {
	type point struct{ X, Y int }
	h := newHeap(t)
	ctx := patient(t)
	points, err := queue.New[*point](h, queue.Options{})
	require.NoError(t, err)
	defer points.Close()
	require.NoError(t, points.Put(ctx, &point{1, 2}))
	p, err := points.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, &point{1, 2}, p)

	// Another type of the same queue sees bytes, or says what it does not understand.
	ref, err := points.MarshalBinary()
	require.NoError(t, err)
	var same queue.Queue[[]byte]
	require.NoError(t, same.UnmarshalBinary(ref))
	defer same.Close()
	require.NoError(t, same.Put(ctx, []byte("raw")))
	_, err = points.Get(ctx)
	var bad *queue.DecodeError
	require.ErrorAs(t, err, &bad)
	require.Equal(t, []byte("raw"), bad.Data)
	require.NoError(t, points.Put(ctx, &point{3, 4}))
	_, err = same.Get(ctx)
	require.NoError(t, err)
}

func TestNames(t *testing.T) {
	ctx := patient(t)
	name := testName("names")
	_, err := queue.Open[string](name)
	require.ErrorIs(t, err, errNotExist)
	a, err := queue.Create[string](name, queue.Options{MaxSize: 3})
	require.NoError(t, err)
	defer func() { _ = queue.Unlink(name) }()
	_, err = queue.Create[string](name, queue.Options{})
	require.ErrorIs(t, err, errExist)
	require.NoError(t, a.Put(ctx, "kept"))
	ref, err := a.MarshalBinary()
	require.NoError(t, err)
	var again queue.Queue[string]
	require.NoError(t, again.UnmarshalBinary(ref))
	require.NoError(t, a.Close()) // the name keeps it, and again keeps it mapped
	require.ErrorIs(t, a.Put(ctx, "more"), queue.ErrClosed)
	require.Equal(t, 1, length(t, &again))
	require.NoError(t, again.Close())
	b, err := queue.OpenOrCreate[string](name, queue.Options{})
	require.NoError(t, err)
	v, err := b.Get(ctx)
	require.NoError(t, err)
	require.Equal(t, "kept", v)
	s, err := b.Stats()
	require.NoError(t, err)
	require.Equal(t, 3, s.MaxSize)
	require.NoError(t, b.Close())
	require.NoError(t, queue.Unlink(name))
	require.ErrorIs(t, queue.Unlink(name), errNotExist)
	for _, bad := range []string{"", ".x", "a/b", string(make([]byte, 201))} {
		_, err = queue.Create[int](bad, queue.Options{})
		require.ErrorIs(t, err, shm.ErrInvalid, bad)
	}
}

func TestGoroutines(t *testing.T) {
	q := newQueue[int](t, 50)
	ctx := patient(t)
	const producers, consumers, each = 4, 4, 2000
	sums := make(chan int, consumers)
	for range consumers {
		go func() {
			sum := 0
			for v, err := range q.All(ctx) {
				if err != nil {
					t.Error(err)
				}
				sum += v
			}
			sums <- sum
		}()
	}
	puts := make(chan error, producers)
	for range producers {
		go func() {
			var err error
			for i := range each {
				err = errors.Join(err, q.Put(ctx, i))
			}
			puts <- err
		}()
	}
	for range producers {
		require.NoError(t, <-puts)
	}
	require.NoError(t, q.Shutdown())
	sum := 0
	for range consumers {
		sum += <-sums
	}
	require.Equal(t, producers*each*(each-1)/2, sum)
}

func BenchmarkPutGet64(b *testing.B) {
	q := newQueue[[]byte](b, 0)
	ctx := context.Background()
	data := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if err := q.Put(ctx, data); err != nil {
			b.Fatal(err)
		}
		if _, err := q.Get(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// refuses has a queue of the type R read a value of the type S.
func refuses[S, R any](t *testing.T, v S) {
	t.Helper()
	sent, err := queue.New[S](nil, queue.Options{})
	require.NoError(t, err)
	defer sent.Close()
	require.NoError(t, sent.TryPut(v))
	ref, err := sent.MarshalBinary()
	require.NoError(t, err)
	var read queue.Queue[R]
	require.NoError(t, read.UnmarshalBinary(ref))
	defer read.Close()
	got, err := read.TryGet()
	var other *queue.DecodeError
	require.ErrorAs(t, err, &other, "%T read as %T: %v", v, got, got)
}

func TestOfAnotherType(t *testing.T) {
	refuses[int, float64](t, 5)
	refuses[int, uint64](t, -5)
	refuses[float64, int64](t, 2.5)
	refuses[uint64, float64](t, 7)
	refuses[int, string](t, 5)
	refuses[string, int](t, "12345678")
	refuses[[]byte, float64](t, make([]byte, 8))
	refuses[int, struct{ A int }](t, 5)
	refuses[struct{ A int }, int](t, struct{ A int }{5})
	refuses[struct{ A int }, map[string]int](t, struct{ A int }{5})
	refuses[map[string]int, []string](t, map[string]int{"a": 1})
}
