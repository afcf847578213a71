package pool_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pool"
)

func open(t testing.TB, opt pool.Options) *pool.Pool {
	t.Helper()
	p, err := pool.Open(opt)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Free() })
	return p
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestMap(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	ctx := within(t, 20*time.Second)
	for _, n := range []int{0, 1, 2, 1000, 100000} {
		in := make([]int, n)
		for i := range in {
			in[i] = i
		}
		out, err := pool.Map(ctx, p, square, in)
		require.NoError(t, err)
		require.Len(t, out, n)
		for i := range out {
			require.Equal(t, i*i, out[i])
		}
	}
	require.NoError(t, p.JoinContext(ctx))
}

func BenchmarkMapNop(b *testing.B) {
	for _, workers := range []int{2, 64} {
		b.Run("", func(b *testing.B) {
			p := open(b, pool.Options{Workers: workers})
			in := make([]int, b.N)
			ctx := context.Background()
			_, err := pool.Map(ctx, p, nop, make([]int, 1000))
			require.NoError(b, err)
			b.ResetTimer()
			_, err = pool.Map(ctx, p, nop, in)
			require.NoError(b, err)
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	p := open(b, pool.Options{Workers: 2})
	ctx := context.Background()
	for b.Loop() {
		_, err := pool.Map(ctx, p, nop, []int{1})
		require.NoError(b, err)
	}
}
