//go:build linux

package queue_test

import (
	"context"
	"errors"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/queue"
)

func init() {
	// Puts numbers from 0 on until it is killed, and says in another queue when the first is there.
	roles["put-numbers"] = func(ctx context.Context, args []string) error {
		numbers, err := received[int](args[0])
		if err != nil {
			return err
		}
		begun, err := received[int](args[1])
		if err != nil {
			return err
		}
		for i := 0; ; i++ {
			if err := numbers.Put(ctx, i); err != nil {
				return err
			}
			if i == 0 {
				if err := begun.Put(ctx, i); err != nil {
					return err
				}
			}
		}
	}
}

// readable polls a descriptor. Tests that wait give it a minute.
func readable(t testing.TB, fd int, timeout time.Duration) bool {
	t.Helper()
	until := time.Now().Add(timeout)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(time.Until(until), 0).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		require.NoError(t, err)
		require.True(t, n == 0 || fds[0].Revents == unix.POLLIN)
		return n == 1
	}
}

func descriptorOf[T any](t testing.TB, q *queue.Queue[T]) int {
	t.Helper()
	fd, err := q.Descriptor()
	require.NoError(t, err)
	return fd
}

func TestDescriptorIsReadableWhileThereIsSomething(t *testing.T) {
	ctx := patient(t)
	q := familyQueue[int](t, 0)
	require.NoError(t, q.Put(ctx, 1))
	fd := descriptorOf(t, q)
	require.True(t, readable(t, fd, 0)) // at once
	_, err := q.Get(ctx)
	require.NoError(t, err)
	require.False(t, readable(t, fd, 0))
	for range 300 {
		require.NoError(t, q.Put(ctx, 1))
		require.True(t, readable(t, fd, time.Minute))
		require.NoError(t, q.Put(ctx, 2))
		_, err = q.Get(ctx)
		require.NoError(t, err)
		require.True(t, readable(t, fd, 0))
		_, err = q.TryGet()
		require.NoError(t, err)
		require.False(t, readable(t, fd, 0))
		require.Equal(t, fd, descriptorOf(t, q))
	}

	// A value that is given back; a look does not take it.
	require.NoError(t, q.Put(ctx, 3))
	require.True(t, readable(t, fd, time.Minute))
	lease, err := q.Lease(ctx)
	require.NoError(t, err)
	require.False(t, readable(t, fd, 0))
	require.NoError(t, lease.Return())
	require.True(t, readable(t, fd, time.Minute))
	n, err := q.Len()
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.True(t, readable(t, fd, 0))
	_, err = q.GetMany(ctx, 10)
	require.NoError(t, err)
	require.False(t, readable(t, fd, 0))

	require.NoError(t, q.Shutdown())
	require.True(t, readable(t, fd, time.Minute))
	_, err = q.TryGet()
	require.ErrorIs(t, err, queue.ErrShutdown)
	require.True(t, readable(t, fd, 0))
}

// A closed queue leaves neither descriptor nor goroutine behind.
func TestDescriptorEndsWithTheQueue(t *testing.T) {
	count := func() (n int) {
		files, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		for _, f := range files {
			if name, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.Contains(name, "eventfd") {
				n++
			}
		}
		return n
	}
	files, goroutines := count(), runtime.NumGoroutine()
	for i := range 50 {
		q, err := queue.New[int](nil, queue.Options{})
		require.NoError(t, err)
		fd := descriptorOf(t, q)
		if i%2 == 0 { // its goroutine rests
			require.NoError(t, q.Put(t.Context(), 1))
			require.True(t, readable(t, fd, time.Minute))
		}
		require.NoError(t, q.Close())
		_, err = q.Descriptor()
		require.ErrorIs(t, err, queue.ErrClosed)
	}
	for until := time.Now().Add(time.Minute); count() > files || runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(until), "%d eventfds, %d goroutines", count()-files, runtime.NumGoroutine()-goroutines)
	}
}

// The descriptor is not closed while a user of the queue is left: a call that is under way when another goroutine closes the queue would
// read or write the file that has its number then.
func TestDescriptorStaysForThoseWhoStillUseTheQueue(t *testing.T) {
	ctx := patient(t)
	goroutines := runtime.NumGoroutine()
	q, err := queue.New[int](nil, queue.Options{})
	require.NoError(t, err)
	fd := descriptorOf(t, q)
	require.NoError(t, q.Put(ctx, 1))
	lease, err := q.Lease(ctx)
	require.NoError(t, err)
	require.NoError(t, q.Close())
	for until := time.Now().Add(time.Minute); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(until), "the goroutine does not end")
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.NoError(t, lease.Ack())
	_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.ErrorIs(t, err, unix.EBADF)
}

// The only poller sees each value of another process, one by one: nothing else makes up for a missed wake-up.
func TestDescriptorMissesNoValueOfAnotherProcess(t *testing.T) {
	ctx := patient(t)
	in, out := familyQueue[[]byte](t, 0), familyQueue[[]byte](t, 0)
	child := spawn(t, spec(t, "echo", sent(t, in), sent(t, out)))
	fd := descriptorOf(t, out)
	for i := range 3000 {
		require.NoError(t, in.Put(ctx, []byte{byte(i)}))
		for {
			require.True(t, readable(t, fd, time.Minute))
			b, err := out.TryGet()
			if errors.Is(err, queue.ErrEmpty) {
				continue
			}
			require.NoError(t, err)
			require.Equal(t, []byte{byte(i)}, b)
			break
		}
	}
	require.NoError(t, in.Shutdown())
	ended(t, child)
}

// Putters are killed at any moment; what they have put is announced all the same, in its order.
func TestDescriptorSurvivesKilledPutters(t *testing.T) {
	ctx := patient(t)
	q, begun := familyQueue[int](t, 20), familyQueue[int](t, 0) // bounded: the putter may be the faster one
	fd := descriptorOf(t, q)
	for round := range 20 {
		child := spawn(t, spec(t, "put-numbers", sent(t, q), sent(t, begun)))
		_, err := begun.Get(ctx)
		require.NoError(t, err)
		next := 0
		drain := func(until int) {
			for next < until {
				n, err := q.TryGet()
				if errors.Is(err, queue.ErrEmpty) {
					return
				}
				if errors.Is(err, queue.ErrBusy) {
					continue
				}
				require.NoError(t, err)
				require.Equal(t, next, n)
				next++
			}
		}
		for next < 1+round*10 {
			require.True(t, readable(t, fd, time.Minute))
			drain(1 + round*10)
		}
		require.NoError(t, child.Kill())
		<-child.Done()
		if n, err := q.Len(); err == nil && n > 0 {
			require.True(t, readable(t, fd, time.Minute))
		}
		drain(math.MaxInt)
		require.False(t, readable(t, fd, 0))
	}
}
