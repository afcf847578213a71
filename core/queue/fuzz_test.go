//go:build linux

package queue_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/queue"
	"github.com/polyproc/polyproc/shm"
)

// exercise calls everything on a queue whose memory holds anything. It may fail, but must come back.
func exercise(q *queue.Queue[[]byte]) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Millisecond)
	defer cancel()
	for _, n := range []int{1, 5000, 40_000} {
		_ = q.TryPut(make([]byte, n))
	}
	_, _ = q.PutMany(ctx, [][]byte{{1}, make([]byte, 30_000), make([]byte, 40_000)})
	for range 3 {
		_, _ = q.TryGet()
	}
	if l, err := q.TryLease(); err == nil {
		_ = l.Return()
	}
	if l, err := q.TryLease(); err == nil {
		_ = l.Ack()
	}
	_, _ = q.GetMany(ctx, 10)
	_, _ = q.Stats()
	q.Sweep()
	_ = q.TaskDone()
	_ = q.Join(ctx)
}

// scribbled is a heap with a queue that has messages of all kinds, and a lease.
func scribbled(t testing.TB) (*shm.Heap, *queue.Queue[[]byte], *queue.Lease[[]byte]) {
	h, err := shm.CreateHeap()
	require.NoError(t, err)
	q, err := queue.New[[]byte](h, queue.Options{})
	require.NoError(t, err)
	for _, n := range []int{1, 4000, 300, 40_000, 7} {
		require.NoError(t, q.TryPut(make([]byte, n)))
	}
	l, err := q.TryLease()
	require.NoError(t, err)
	return h, q, l
}

const slab0 = 32 << 20 // where blocks begin

func memory(h *shm.Heap) unsafe.Pointer {
	whole, _ := h.At(slab0, 1)
	return unsafe.Add(unsafe.Pointer(&whole[0]), -slab0)
}

// FuzzQueue writes words anywhere in a queue's 512 bytes and in the first chunks and tables behind it.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{16, 0, 255, 255, 255, 255, 255, 255, 255, 255, 33, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 18, 0, 0, 0, 0, 8, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		h, q, l := scribbled(t)
		words := unsafe.Slice((*uint64)(unsafe.Add(memory(h), q.Object().Off())), 512)
		for ; len(data) >= 10; data = data[10:] {
			words[binary.LittleEndian.Uint16(data)%512] = binary.LittleEndian.Uint64(data[2:])
		}
		exercise(q)
		_ = l.Return()
		require.NoError(t, q.Close())
		require.NoError(t, h.Close())
	})
}

// TestScribbles spoils what lies in a heap at random: a word of the queue, of its chunks, tables, of the heap's own books. Whatever is
// there, calls return, and no process ends.
func TestScribbles(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 200
	}
	r := rand.New(rand.NewPCG(1, 2))
	begin := time.Now()
	for n := range rounds {
		h, q, l := scribbled(t)
		base := memory(h)
		for range 1 + r.IntN(3) {
			var at uint64
			switch r.IntN(4) {
			case 0: // the queue
				at = q.Object().Off() + uint64(r.IntN(512))
			case 1: // blocks of the first slabs
				at = slab0 + uint64(r.IntN(3))<<20 + uint64(r.IntN(64<<10))
			case 2: // the table of slabs
				at = 1<<20 + 32*128 + uint64(r.IntN(8*128))
			case 3: // the head's hints, and references
				at = []uint64{128, 136, 140, 144, 148, 152, 16<<20 + 8, 16<<20 + 16}[r.IntN(8)]
			}
			at &^= 7
			word := (*uint64)(unsafe.Add(base, at))
			switch r.IntN(3) {
			case 0:
				*word = r.Uint64()
			case 1:
				*word ^= 1 << r.IntN(64)
			case 2:
				*word = []uint64{0, 1, 1 << 31, 1<<63 - 1, ^uint64(0), 2 << 56, 4<<56 | 0xffff<<32}[r.IntN(7)]
			}
		}
		exercise(q)
		_ = l.Return()
		require.NoError(t, q.Close())
		_ = h.Close()
		if time.Since(begin) > 10*time.Second {
			t.Logf("%d of %d rounds in the time there is", n+1, rounds)
			break
		}
	}
}

// TestScribblesDuringCalls changes words of a queue, its cells and its records to and fro while calls use them: what was checked must be what is used.
func TestScribblesDuringCalls(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	r := rand.New(rand.NewPCG(3, 4))
	for n := range rounds {
		h, q, l := scribbled(t)
		base := memory(h)
		over := make(chan struct{})
		var scribbler sync.WaitGroup
		scribbler.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				at := q.Object().Off() + uint64(r.IntN(512)) // the queue
				if n%2 == 0 {
					at = slab0 + uint64(r.IntN(64<<10)) // small blocks: its table of cells, its chunks
				}
				at &^= 7
				if lock := at - q.Object().Off(); lock == 128 || lock == 256 { // one who does not exist would be waited for
					continue
				}
				word := (*uint64)(unsafe.Add(base, at))
				was := atomic.LoadUint64(word)
				bad := []uint64{was ^ 1<<r.IntN(64), r.Uint64(), was + uint64(r.IntN(4096)) - 2048, was ^ uint64(r.IntN(65536))}[r.IntN(4)]
				for range 200 { // who looks twice sees both
					atomic.StoreUint64(word, bad)
					atomic.StoreUint64(word, was)
				}
			}
		})
		for range 40 {
			exercise(q)
		}
		close(over)
		scribbler.Wait()
		_ = l.Return()
		_ = q.Close()
		_ = h.Close()
	}
}

// TestFreeOfACircle frees a queue whose chain runs in a circle and whose count of messages has no end.
func TestFreeOfACircle(t *testing.T) {
	h, err := shm.CreateHeap()
	require.NoError(t, err)
	q, err := queue.New[[]byte](h, queue.Options{})
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, q.TryPut(make([]byte, 10)))
	}
	base := memory(h)
	words := unsafe.Slice((*uint64)(unsafe.Add(base, q.Object().Off())), 64)
	first := words[72/8]
	chunk := unsafe.Slice((*uint64)(unsafe.Add(base, first>>33<<7)), 64)
	require.EqualValues(t, 10, uint32(chunk[8]), "the third record")
	chunk[8] = 0xffff << 32 // go on in the next chunk,
	chunk[0] = first        // which is this one
	words[(128+8)/8] |= 0x7ffffffe << 32
	done := make(chan struct{})
	go func() { _ = q.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("Close goes on and on")
	}
	require.NoError(t, h.Close())
}
