//go:build linux

package shm_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/shm"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func sparse(t testing.TB, size int64) *shm.Segment {
	t.Helper()
	s, err := shm.CreateSparse(size)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestArena(t *testing.T) {
	s := sparse(t, 1<<30)
	a := shm.NewArena(s, 64*kib, 512*mib)
	defer a.Close()
	b, err := a.Alloc(100_000)
	require.NoError(t, err)
	require.Len(t, b.Bytes, 100_000)
	require.Equal(t, 128*kib, cap(b.Bytes))
	require.GreaterOrEqual(t, b.Off, int64(64*kib))
	require.EqualValues(t, 128*kib, stored(t, s))

	// Reused warm.
	copy(b.Bytes, "warm")
	off := b.Off
	a.Free(b)
	a.Free(b)
	a.Free(nil)
	require.EqualValues(t, 128*kib, a.WarmSize())
	b, err = a.Alloc(128 * kib)
	require.NoError(t, err)
	require.Equal(t, off, b.Off)
	require.Equal(t, "warm", string(b.Bytes[:4]))
	require.Zero(t, a.WarmSize())

	// What is larger than the warm limit, or surplus, goes back to the system.
	big, err := a.Alloc(64*mib + 1)
	require.NoError(t, err)
	require.Equal(t, 128*mib, cap(big.Bytes))
	require.EqualValues(t, 128*mib+128*kib, stored(t, s))
	a.Free(big)
	require.EqualValues(t, 128*kib, stored(t, s))
	var blocks []*shm.Block
	for range 5 {
		b, err := a.Alloc(16 * mib)
		require.NoError(t, err)
		blocks = append(blocks, b)
	}
	for _, b := range blocks {
		a.Free(b)
	}
	require.EqualValues(t, 64*mib, a.WarmSize())
	require.EqualValues(t, 64*mib+128*kib, stored(t, s))

	for _, n := range []int64{0, -1} {
		_, err = a.Alloc(n)
		require.ErrorIs(t, err, shm.ErrInvalid)
	}
	_, err = a.Alloc(512*mib + 1)
	require.ErrorIs(t, err, shm.ErrNoMemory)
	a.Close()
	a.Close()
	require.Zero(t, stored(t, s))
	_, err = a.Alloc(1)
	require.ErrorIs(t, err, os.ErrClosed)
	a.Free(b)
}

// What was split is merged again: after any history the whole arena can be had in one block.
func TestArenaMerges(t *testing.T) {
	s := sparse(t, 1<<30)
	a := shm.NewArena(s, 0, 8*mib+300*kib)
	defer a.Close()
	random := rand.New(rand.NewPCG(5, 6))
	var live []*shm.Block
	full := 0
	for range 3_000 {
		if random.IntN(2) == 0 && len(live) > 0 {
			i := random.IntN(len(live))
			b := live[i]
			live[i] = live[len(live)-1]
			live = live[:len(live)-1]
			require.Equal(t, fmt.Sprint(b.Off), string(b.Bytes[:len(fmt.Sprint(b.Off))]), "nobody else wrote here")
			a.Free(b)
			continue
		}
		b, err := a.Alloc(1 + random.Int64N(4*mib)>>random.IntN(6))
		if err != nil {
			require.ErrorIs(t, err, shm.ErrNoMemory)
			full++
			continue
		}
		if len(b.Bytes) < 20 {
			b.Bytes = b.Bytes[:20]
		}
		copy(b.Bytes, fmt.Sprint(b.Off))
		live = append(live, b)
	}
	require.Greater(t, full, 100)
	for _, b := range live {
		a.Free(b)
	}
	b, err := a.Alloc(8 * mib)
	require.NoError(t, err)
	a.Free(b)
}

func TestArenaGoroutines(t *testing.T) {
	s := sparse(t, 1<<30)
	a := shm.NewArena(s, 0, 1<<30)
	defer a.Close()
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 200 {
				b, err := a.Alloc(int64(1 + (i%4)*200*kib))
				if err != nil {
					t.Error(err)
					return
				}
				b.Bytes[0] = byte(g)
				if b.Bytes[0] != byte(g) {
					t.Error("block of another")
				}
				a.Free(b)
			}
		})
	}
	all.Wait()
}

func TestWindows(t *testing.T) {
	s := sparse(t, 16*mib+100)
	a := shm.NewArena(s, 0, 16*mib)
	defer a.Close()
	w := shm.NewWindows(s, 2)
	defer w.Close()
	var blocks []*shm.Block
	for i := range 4 {
		b, err := a.Alloc(200 * kib)
		require.NoError(t, err)
		b.Bytes[0], b.Bytes[200*kib-1] = byte(i), byte(i+100)
		blocks = append(blocks, b)
	}
	var pinned [][]byte
	for i, b := range blocks {
		v, err := w.At(b.Off, 200*kib)
		require.NoError(t, err)
		require.Len(t, v, 200*kib)
		require.EqualValues(t, i, v[0])
		require.EqualValues(t, i+100, v[200*kib-1])
		pinned = append(pinned, v)
	}
	require.Equal(t, 4, w.Mapped(), "those in use come on top")
	again, err := w.At(blocks[0].Off, 10)
	require.NoError(t, err)
	require.True(t, &again[0] == &pinned[0][0], "cached")
	w.Done(again)
	for _, v := range pinned {
		w.Done(v)
	}
	require.Equal(t, 2, w.Mapped())
	require.Panics(t, func() { w.Done(blocks[0].Bytes) })

	// In the middle of a page, larger than before, dropped while in use, at the end of the segment.
	off := blocks[3].Off
	v, err := w.At(off+5000, 10)
	require.NoError(t, err)
	larger, err := w.At(off+5000, 100_000)
	require.NoError(t, err)
	w.Drop(off + 5000)
	v[0], larger[1] = 1, 2
	require.EqualValues(t, 2, v[1])
	w.Done(v)
	w.Done(larger)
	end, err := w.At(16*mib+50, 50)
	require.NoError(t, err)
	require.Len(t, end, 50)
	w.Done(end)

	none, err := w.At(16*mib+100, 0)
	require.NoError(t, err)
	w.Done(none)
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {16*mib + 100, 1}, {1, 16*mib + 100}, {1 << 62, 1 << 62}} {
		_, err = w.At(r[0], r[1])
		require.ErrorIs(t, err, shm.ErrCorrupt, "%v", r)
	}
	v, err = w.At(off, 1)
	require.NoError(t, err)
	w.Close()
	require.Equal(t, 1, w.Mapped(), "in use")
	w.Done(v)
	require.Zero(t, w.Mapped())
	_, err = w.At(off, 1)
	require.ErrorIs(t, err, os.ErrClosed)
}

func BenchmarkArena(b *testing.B) {
	a := shm.NewArena(sparse(b, 1<<30), 0, 1<<30)
	defer a.Close()
	b.ReportAllocs()
	for b.Loop() {
		x, err := a.Alloc(mib)
		if err != nil {
			b.Fatal(err)
		}
		a.Free(x)
	}
}

func BenchmarkWindows(b *testing.B) {
	w := shm.NewWindows(sparse(b, 1<<30), 16)
	defer w.Close()
	b.ReportAllocs()
	for b.Loop() {
		x, err := w.At(mib, mib)
		if err != nil {
			b.Fatal(err)
		}
		w.Done(x)
	}
}
