//go:build linux

package queue_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pool"
	"github.com/polyproc/polyproc/core/queue"
)

type tally struct {
	N  int
	To *queue.Queue[int]
}

var count = pool.Register("queue_test.count", func(ctx context.Context, t tally) (int, error) {
	defer t.To.Close()
	for n := range t.N {
		if err := t.To.Put(ctx, n); err != nil {
			return 0, err
		}
	}
	return t.N, nil
})

var countTo = pool.Register("queue_test.countTo", func(ctx context.Context, to *queue.Queue[int]) (int, error) {
	defer to.Close()
	return 1, to.Put(ctx, 7)
})

func openPool(t *testing.T, workers int) *pool.Pool {
	t.Helper()
	p, err := pool.Open(pool.Options{Workers: workers})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Shutdown(patient(t)))
	})
	return p
}

var putAfterShutdown = pool.Register("queue_test.putAfterShutdown", func(ctx context.Context, to *queue.Queue[int]) (int, error) {
	defer to.Close()
	return 0, errors.Join(to.Shutdown(), to.Put(ctx, 7))
})

func TestErrorsOfQueuesComeFromWorkers(t *testing.T) {
	_, err := pool.Map(patient(t), openPool(t, 1), putAfterShutdown, []*queue.Queue[int]{familyQueue[int](t, 0)})
	require.ErrorIs(t, err, queue.ErrShutdown)
}

// The queue alone is a task's argument too.
func TestPoolWorkersGetAQueue(t *testing.T) {
	ctx := patient(t)
	q := familyQueue[int](t, 10)
	p := openPool(t, 1)
	done, err := pool.Map(ctx, p, countTo, []*queue.Queue[int]{q, q})
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, done)
	for range 2 {
		v, err := q.Get(ctx)
		require.NoError(t, err)
		require.Equal(t, 7, v)
	}
}

// A worker of a pool is of the family: tasks may have queues as arguments.
func TestPoolWorkersGetQueues(t *testing.T) {
	ctx := patient(t)
	q := familyQueue[int](t, 10)
	p := openPool(t, 2)
	go func() {
		_, err := pool.Map(ctx, p, count, []tally{{100, q}, {100, q}, {100, q}})
		if err != nil {
			t.Error(err)
		}
		_ = q.Shutdown()
	}()
	sum := 0
	for n, err := range q.All(ctx) {
		require.NoError(t, err)
		sum += n
	}
	require.Equal(t, 3*4950, sum)
}
