//go:build linux

package queue_test

import (
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pipe"
	"github.com/polyproc/polyproc/core/queue"
)

// What the messages of a destroyed queue or pipe refer to is not kept, in queues in queues too.
func TestReferencesInDestroyedQueues(t *testing.T) {
	ctx := patient(t)
	reader := func() (*pipe.Conn, []byte) {
		a, b, err := pipe.New(nil, false)
		require.NoError(t, err)
		ref, err := b.MarshalBinary()
		require.NoError(t, err)
		require.NoError(t, b.Close())
		t.Cleanup(func() { require.NoError(t, a.Close()) })
		return a, ref
	}
	isClosed := func(a *pipe.Conn) {
		_, err := a.Recv(ctx)
		require.ErrorIs(t, err, io.EOF)
	}
	for _, size := range []int{0, 5000, 200_000} {
		q, err := queue.New[[]byte](nil, queue.Options{})
		require.NoError(t, err)
		a, ref := reader()
		require.NoError(t, q.Put(ctx, append(make([]byte, size), ref...)))
		require.NoError(t, q.Close())
		isClosed(a)

		first, second, err := pipe.New(nil, false)
		require.NoError(t, err)
		a, ref = reader()
		require.NoError(t, second.Send(ctx, append(make([]byte, size), ref...)))
		require.NoError(t, first.Close())
		require.NoError(t, second.Close())
		isClosed(a)
	}
	a, ref := reader()
	for range 1000 {
		q, err := queue.New[[]byte](nil, queue.Options{})
		require.NoError(t, err)
		require.NoError(t, q.Put(context.Background(), ref))
		ref, err = q.MarshalBinary()
		require.NoError(t, err)
		require.NoError(t, q.Close())
	}
	q := new(queue.Queue[[]byte])
	require.NoError(t, q.UnmarshalBinary(ref))
	require.NoError(t, q.Close())
	isClosed(a)
}
