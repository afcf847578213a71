//go:build linux

package pipe_test

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

	"github.com/polyproc/polyproc/core/pipe"
	"github.com/polyproc/polyproc/shm"
)

// FuzzDamage writes anything into a pipe, or into its ring, and uses it: errors are welcome, crashes and waits without end are not.
func FuzzDamage(f *testing.F) {
	all := make([]byte, 64)
	for i := range all {
		all[i] = 0xff
	}
	for _, at := range []uint16{128, 132, 136, 144, 152, 256, 260, 384, 388, 392, 512, 516, 1 << 15, 1<<15 + 4} {
		f.Add(at, []byte{1})
		f.Add(at, []byte{8, 0, 0, 0})
		f.Add(at, []byte{0, 0, 0, 2, 0, 0, 0, 0})
		f.Add(at, all)
	}
	f.Fuzz(func(t *testing.T, at uint16, data []byte) {
		h, err := shm.Family()
		require.NoError(t, err)
		a, b := pair(t, h, true)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		require.NoError(t, a.Send(ctx, []byte("a message")))
		require.NoError(t, a.Send(ctx, make([]byte, 40_000)))
		ref, err := a.MarshalBinary()
		require.NoError(t, err)
		defer pipe.Forget(ref)
		off := binary.LittleEndian.Uint64(ref[8:])
		p := h.Within(off, 2176)
		ring := *(*uint64)(unsafe.Add(p, 128+8))
		if at >= 1<<15 {
			copy(unsafe.Slice((*byte)(h.Within(ring, 1<<16)), 1<<16)[at-1<<15:], data)
		} else {
			copy(unsafe.Slice((*byte)(p), 2176)[16+int(at)%2160:], data)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 3 {
				_ = a.Send(ctx, []byte("more"))
				_, _ = b.Poll(ctx)
				_, _ = b.Recv(ctx)
			}
			_ = a.TrySend(make([]byte, 20_000))
			_, _ = b.RecvFile(ctx)
			_, _ = b.Descriptor()
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("it hangs")
		}
	})
}

// TestScribblesDuringCalls changes words of a pipe and of its ring to and fro while calls use them: what was checked must be what is used.
func TestScribblesDuringCalls(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	r := rand.New(rand.NewPCG(5, 6))
	h, err := shm.Family()
	require.NoError(t, err)
	for n := range rounds {
		a, b := pair(t, h, true)
		require.NoError(t, a.Send(t.Context(), []byte("a message")))
		ref, err := a.MarshalBinary()
		require.NoError(t, err)
		p := h.Within(binary.LittleEndian.Uint64(ref[8:]), 2176)
		pipe.Forget(ref)
		ring := h.Within(atomic.LoadUint64((*uint64)(unsafe.Add(p, 128+8))), 1<<16)
		over := make(chan struct{})
		var scribbler sync.WaitGroup
		scribbler.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				word := (*uint64)(unsafe.Add(ring, r.IntN(4096)&^7))
				if n%2 == 0 {
					at := 128 + r.IntN(1024)&^7
					if at == 128 || at == 128+256 { // the locks: one who does not exist would be waited for
						continue
					}
					word = (*uint64)(unsafe.Add(p, at))
				}
				was := atomic.LoadUint64(word)
				bad := []uint64{was ^ 1<<r.IntN(64), r.Uint64(), was + uint64(r.IntN(4096)) - 2048, was ^ uint64(r.IntN(65536))}[r.IntN(4)]
				for range 200 { // who looks twice sees both
					atomic.StoreUint64(word, bad)
					atomic.StoreUint64(word, was)
				}
			}
		})
		for range 300 {
			_ = a.TrySend(make([]byte, 100))
			_ = a.TrySend(make([]byte, 20_000))
			_, _ = b.TryPoll()
			_, _ = b.TryRecv()
			_, _ = b.TryRecv()
		}
		close(over)
		scribbler.Wait()
		_ = a.Close()
		_ = b.Close()
	}
}
