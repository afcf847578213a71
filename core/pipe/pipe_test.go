//go:build linux

package pipe_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/pipe"
	"github.com/polyproc/polyproc/shm"
)

func pair(t testing.TB, h *shm.Heap, duplex bool) (a, b *pipe.Conn) {
	t.Helper()
	a, b, err := pipe.New(h, duplex)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func pattern(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}

func TestMessages(t *testing.T) {
	h := newHeap(t)
	a, b := pair(t, h, true)
	ctx := patient(t)
	for round := range 3 {
		for i, n := range []int{0, 1, 7, 8, 9, 100, 16383, 16384, 16385, 1 << 16, 1 << 20, 5<<20 + 3} {
			require.NoError(t, a.Send(ctx, pattern(i+round, n)))
			require.NoError(t, b.Send(ctx, pattern(i-round, n)))
			size, err := b.Poll(ctx)
			require.NoError(t, err)
			require.Equal(t, n, size)
			got, err := b.Recv(ctx)
			require.NoError(t, err)
			require.True(t, bytes.Equal(pattern(i+round, n), got), "%d bytes", n)
			got, err = a.RecvAppend(ctx, []byte("x"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(append([]byte("x"), pattern(i-round, n)...), got), "%d bytes", n)
		}
	}
	_, err := a.TryRecv()
	require.ErrorIs(t, err, pipe.ErrEmpty)
	_, err = a.TryPoll()
	require.ErrorIs(t, err, pipe.ErrEmpty)
	require.NoError(t, errors.Join(a.Close(), b.Close(), b.Close()))
	blocks, _ := h.InUse()
	require.Zero(t, blocks)
	require.ErrorIs(t, a.Send(ctx, nil), pipe.ErrClosed)
	_, err = a.Recv(ctx)
	require.ErrorIs(t, err, os.ErrClosed)
}

func TestOneWay(t *testing.T) {
	in, out := pair(t, newHeap(t), false)
	ctx := patient(t)
	require.True(t, in.CanRecv() && out.CanSend() && !in.CanSend() && !out.CanRecv())
	require.ErrorIs(t, in.Send(ctx, nil), pipe.ErrDirection)
	require.ErrorIs(t, in.Send(ctx, make([]byte, 1<<20)), pipe.ErrDirection)
	_, err := out.Recv(ctx)
	require.ErrorIs(t, err, pipe.ErrDirection)
	require.NoError(t, out.Send(ctx, []byte("this way")))
	require.NoError(t, out.Close())
	got, err := in.Recv(ctx)
	require.NoError(t, err)
	require.Equal(t, "this way", string(got))
	_, err = in.Recv(ctx)
	require.ErrorIs(t, err, io.EOF)
	_, err = in.TryRecv()
	require.ErrorIs(t, err, io.EOF)
}

func TestFull(t *testing.T) {
	h := newHeap(t)
	in, out := pair(t, h, false)
	ctx := patient(t)
	message := pattern(0, 1000)
	n := 0
	var err error
	for ; err == nil; n++ {
		err = out.TrySend(message)
	}
	require.ErrorIs(t, err, pipe.ErrFull)
	require.Equal(t, 1<<16/1008+1, n)
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, out.Send(short, message), context.DeadlineExceeded)
	sent := make(chan error, 1)
	go func() { sent <- out.Send(ctx, message) }()
	for range n {
		got, err := in.Recv(ctx)
		require.NoError(t, err)
		require.Equal(t, message, got)
	}
	require.NoError(t, <-sent)
	// Of big ones at most eight.
	big, n := make([]byte, 3<<20), 0
	for err = nil; err == nil; n++ {
		err = out.TrySend(big)
	}
	require.ErrorIs(t, err, pipe.ErrFull)
	require.LessOrEqual(t, n, 9)
	blocked := make(chan error, 1)
	go func() { blocked <- out.Send(ctx, big) }()
	require.NoError(t, in.Close())
	require.ErrorIs(t, <-blocked, pipe.ErrBroken)
	require.ErrorIs(t, out.Send(ctx, message), syscall.EPIPE)
	require.NoError(t, out.Close())
	blocks, _ := h.InUse()
	require.Zero(t, blocks)
}

func TestWaitersEnd(t *testing.T) {
	for name, end := range map[string]struct {
		how  func(a, b *pipe.Conn, cancel func())
		want error
	}{
		"close":       {func(a, _ *pipe.Conn, _ func()) { _ = a.Close() }, pipe.ErrClosed},
		"cancel":      {func(_, _ *pipe.Conn, cancel func()) { cancel() }, context.Canceled},
		"end of file": {func(_, b *pipe.Conn, _ func()) { _ = b.Close() }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, newHeap(t), true)
			ctx, cancel := context.WithCancel(patient(t))
			defer cancel()
			ended := make(chan error, 50)
			for range cap(ended) {
				go func() {
					_, err := a.Recv(ctx)
					ended <- err
				}()
			}
			begin := time.Now()
			end.how(a, b, cancel)
			for range cap(ended) {
				require.ErrorIs(t, <-ended, end.want)
			}
			require.Less(t, time.Since(begin), time.Minute)
		})
	}
}

func TestManySendersManyReceivers(t *testing.T) {
	a, b := pair(t, newHeap(t), true)
	ctx := patient(t)
	const senders, receivers, each = 4, 4, 3000
	seen := make(chan map[string]int, receivers)
	for range receivers {
		go func() {
			mine := map[string]int{}
			for {
				m, err := b.Recv(ctx)
				if err != nil {
					if err != io.EOF {
						t.Error(err)
					}
					seen <- mine
					return
				}
				mine[string(m)]++
			}
		}()
	}
	sent := make(chan error, senders)
	for i := range senders {
		go func() {
			var err error
			for k := range each {
				err = errors.Join(err, a.Send(ctx, fmt.Appendf(nil, "%d %d", i, k)))
			}
			sent <- err
		}()
	}
	for range senders {
		require.NoError(t, <-sent)
	}
	require.NoError(t, a.Close())
	all := map[string]int{}
	for range receivers {
		for m, n := range <-seen {
			all[m] += n
		}
	}
	require.Len(t, all, senders*each)
	for m, n := range all {
		require.Equal(t, 1, n, m)
	}
}

func readable(t *testing.T, fd int, ms int) bool {
	at := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(at, ms)
	require.NoError(t, err)
	return n > 0
}

// The descriptor is readable exactly when a message is there.
func TestDescriptor(t *testing.T) {
	a, b := pair(t, newHeap(t), true)
	ctx := patient(t)
	require.NoError(t, a.Send(ctx, []byte("before")))
	fd, err := b.Descriptor()
	require.NoError(t, err)
	require.True(t, readable(t, fd, 0))
	_, err = b.Recv(ctx)
	require.NoError(t, err)
	require.False(t, readable(t, fd, 0))
	for n := range 20 {
		for range n%3 + 1 {
			require.NoError(t, a.Send(ctx, []byte("x")))
		}
		for range n%3 + 1 {
			require.True(t, readable(t, fd, 0))
			_, err = b.TryRecv()
			require.NoError(t, err)
		}
		require.False(t, readable(t, fd, 0))
	}
	require.NoError(t, a.Close())
	require.True(t, readable(t, fd, 0))
	// Bytes of others are an error.
	c, d := pair(t, newHeap(t), true)
	other, err := c.Descriptor()
	require.NoError(t, err)
	_, err = unix.Write(other, []byte("not a message"))
	require.NoError(t, err)
	_, err = d.Recv(ctx)
	require.ErrorIs(t, err, shm.ErrCorrupt)
}

func TestFiles(t *testing.T) {
	h, err := shm.Family()
	require.NoError(t, err)
	a, b := pair(t, h, true)
	ctx := patient(t)
	file, err := os.CreateTemp(t.TempDir(), "file")
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	require.NoError(t, a.Send(ctx, []byte("then a file")))
	for i := range 3 {
		require.NoError(t, a.SendFile(ctx, file), i)
	}
	_, err = b.RecvFile(ctx)
	require.ErrorIs(t, err, pipe.ErrMessageNext)
	_, err = b.Recv(ctx)
	require.NoError(t, err)
	_, err = b.Recv(ctx)
	require.ErrorIs(t, err, pipe.ErrFileNext)
	for range 2 {
		got, err := b.RecvFile(ctx)
		require.NoError(t, err)
		_, err = got.WriteString("hello")
		require.NoError(t, err)
		require.NoError(t, got.Close())
	}
	text, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	require.Equal(t, "hellohello", string(text))
	// The third is dropped with the pipe. One that is not in the family's heap has no depot.
	c, _ := pair(t, newHeap(t), true)
	require.ErrorIs(t, c.SendFile(ctx, file), shm.ErrInvalid)
	_, err = c.MarshalBinary()
	require.ErrorIs(t, err, shm.ErrInvalid)
}

func TestReferences(t *testing.T) {
	a, b := pair(t, nil, true)
	ctx := patient(t)
	ref, err := b.MarshalBinary()
	require.NoError(t, err)
	require.NoError(t, b.Close())
	require.NoError(t, a.Send(ctx, []byte("to whoever comes")), "the end is on its way")
	var c pipe.Conn
	require.NoError(t, c.UnmarshalBinary(ref))
	got, err := c.Recv(ctx)
	require.NoError(t, err)
	require.Equal(t, "to whoever comes", string(got))
	require.ErrorIs(t, new(pipe.Conn).UnmarshalBinary(ref), shm.ErrGone)
	require.ErrorIs(t, new(pipe.Conn).UnmarshalBinary(ref[:31]), shm.ErrInvalid)
	again, err := c.MarshalBinary()
	require.NoError(t, err)
	require.NoError(t, c.Close())
	pipe.Forget(again)
	_, err = a.Recv(ctx)
	require.ErrorIs(t, err, io.EOF)
	require.ErrorIs(t, new(pipe.Conn).Send(ctx, nil), pipe.ErrClosed)
}

func BenchmarkPingPong64(b *testing.B) {
	x, y := pair(b, newHeap(b), true)
	ctx := context.Background()
	go func() {
		var buf []byte
		for {
			m, err := y.RecvAppend(ctx, buf[:0])
			if err != nil {
				return
			}
			buf = m
			_ = y.Send(ctx, m)
		}
	}()
	data, buf := make([]byte, 64), make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		_ = x.Send(ctx, data)
		if _, err := x.RecvAppend(ctx, buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSendRecv64(b *testing.B) {
	x, y := pair(b, newHeap(b), true)
	ctx := context.Background()
	data, buf := make([]byte, 64), make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		_ = x.Send(ctx, data)
		if _, err := y.RecvAppend(ctx, buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

// A program that becomes a daemon closes all descriptors, and what it opens then may have the number of an end: that file is left alone.
func TestClosedByTheProgram(t *testing.T) {
	h, err := shm.Family()
	require.NoError(t, err)
	for which := range 2 {
		receiver, sender, err := pipe.New(h, false)
		require.NoError(t, err)
		fd, err := []*pipe.Conn{receiver, sender}[which].Descriptor()
		require.NoError(t, err)
		own, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		require.NoError(t, err)
		require.NoError(t, syscall.Dup3(own[0], fd, 0))
		_, err = syscall.Write(own[1], []byte("mine"))
		require.NoError(t, err)
		for range 3 {
			_ = sender.TrySend([]byte("x"))
			_, _ = receiver.TryRecv()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			_, _ = receiver.Recv(ctx)
			cancel()
		}
		require.NoError(t, receiver.Close())
		require.NoError(t, sender.Close())
		buf := make([]byte, 10)
		_, _, err = syscall.Recvfrom(own[1], buf, syscall.MSG_DONTWAIT)
		require.ErrorIs(t, err, syscall.EAGAIN, "something was written to it")
		n, _, err := syscall.Recvfrom(fd, buf, syscall.MSG_DONTWAIT)
		require.NoError(t, err)
		require.Equal(t, "mine", string(buf[:n]))
		for _, each := range []int{fd, own[0], own[1]} {
			require.NoError(t, syscall.Close(each))
		}
	}
}
