//go:build linux

package pipe_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pipe"
)

func init() {
	roles["echo"] = func(ctx context.Context, args []string) error {
		var c pipe.Conn
		if err := received(args, &c); err != nil {
			return err
		}
		for {
			m, err := c.Recv(ctx)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = c.Send(ctx, m)
			}
			if err != nil {
				return err
			}
		}
	}
	roles["send-and-end"] = func(ctx context.Context, args []string) error {
		var c pipe.Conn
		if err := received(args, &c); err != nil {
			return err
		}
		f, err := os.CreateTemp("", "pipe-test")
		if err != nil {
			return err
		}
		_ = os.Remove(f.Name())
		if _, err = f.WriteString("in a file"); err != nil {
			return err
		}
		return errors.Join(c.Send(ctx, []byte("small")), c.Send(ctx, pattern(1, 1<<20)), c.SendFile(ctx, f))
	}
	roles["flood"] = func(ctx context.Context, args []string) error {
		var c pipe.Conn
		if err := received(args, &c); err != nil {
			return err
		}
		for n := 0; ; n++ {
			size := 1 + n%50
			if n%10 == 0 {
				size = 40_000
			}
			if err := c.Send(ctx, append([]byte{byte(n), byte(n >> 8), byte(n >> 16)}, pattern(n, size)...)); err != nil {
				return err
			}
		}
	}
	roles["take-and-end"] = func(ctx context.Context, args []string) error {
		var c, answer pipe.Conn
		if err := received(args, &c, &answer); err != nil {
			return err
		}
		for {
			m, err := c.Recv(ctx)
			if err == nil {
				err = answer.Send(ctx, m[:3])
			}
			if err != nil {
				return err
			}
		}
	}
}

func TestAnotherProcess(t *testing.T) {
	a, b := pair(t, nil, true)
	ctx := patient(t)
	p := spawn(t, "echo", sent(t, b))
	require.NoError(t, b.Close())
	for i, n := range []int{0, 5, 4000, 16384, 16385, 3 << 20} {
		for range 5 {
			require.NoError(t, a.Send(ctx, pattern(i, n)))
			got, err := a.Recv(ctx)
			require.NoError(t, err)
			require.True(t, bytes.Equal(pattern(i, n), got))
		}
	}
	require.NoError(t, a.Close())
	ended(t, p)
}

func TestWhatTheDeadHaveSent(t *testing.T) {
	in, out := pair(t, nil, false)
	ctx := patient(t)
	p := spawn(t, "send-and-end", sent(t, out))
	require.NoError(t, out.Close())
	ended(t, p)
	got, err := in.Recv(ctx)
	require.NoError(t, err)
	require.Equal(t, "small", string(got))
	got, err = in.Recv(ctx)
	require.NoError(t, err)
	require.True(t, bytes.Equal(pattern(1, 1<<20), got))
	f, err := in.RecvFile(ctx)
	require.NoError(t, err)
	text := make([]byte, 9)
	_, err = f.ReadAt(text, 0)
	require.NoError(t, err)
	require.Equal(t, "in a file", string(text))
	require.NoError(t, f.Close())
	_, err = in.Recv(ctx)
	require.ErrorIs(t, err, io.EOF)
}

// Senders and receivers are killed at any moment; messages stay whole, in order, and none comes twice.
func TestKillsWhileInUse(t *testing.T) {
	ctx := patient(t)
	for round := range 12 {
		in, out := pair(t, nil, false)
		p := spawn(t, "flood", sent(t, out))
		require.NoError(t, out.Close())
		next := 0
		for begin := time.Now(); ; next++ {
			if next > 0 && time.Since(begin) > time.Duration(round)*time.Millisecond {
				require.NoError(t, p.Kill())
			}
			m, err := in.Recv(ctx)
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			n := int(m[0]) | int(m[1])<<8 | int(m[2])<<16
			require.Equal(t, next, n)
			require.True(t, bytes.Equal(pattern(n, len(m)-3), m[3:]))
		}
		require.NoError(t, in.Close())
	}
}

func TestReceiversDie(t *testing.T) {
	ctx := patient(t)
	in, out := pair(t, nil, false)
	answers, answer := pair(t, nil, false)
	sentAll := make(chan struct{})
	const all = 4000
	next := func(n int) []byte { return []byte{byte(n), byte(n >> 8), byte(n >> 16), 0} }
	go func() {
		defer close(sentAll)
		for n := range all {
			m := next(n)
			if n%20 == 0 {
				m = append(m, make([]byte, 30_000)...)
			}
			if err := out.Send(ctx, m); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	p := spawn(t, "take-and-end", sent(t, in), sent(t, answer))
	last, lost := -1, 0
	take := func(m []byte) {
		n := int(m[0]) | int(m[1])<<8 | int(m[2])<<16
		require.Greater(t, n, last)
		lost += n - last - 1
		last = n
	}
	for last < all/2 {
		m, err := answers.Recv(ctx)
		require.NoError(t, err)
		take(m)
	}
	killed(t, p)
	require.NoError(t, answer.Close())
	for {
		m, err := answers.Recv(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		take(m)
	}
	for last < all-1 { // we go on where it has stopped
		m, err := in.Recv(ctx)
		require.NoError(t, err)
		take(m)
	}
	<-sentAll
	require.LessOrEqual(t, lost, 1, "what the dead one had in hand")
}

func BenchmarkRoundTrip64(b *testing.B) {
	x, y := pair(b, nil, true)
	ctx := context.Background()
	p := spawn(b, "echo", sent(b, y))
	_ = y.Close()
	data, buf := make([]byte, 64), make([]byte, 0, 64)
	for b.Loop() {
		_ = x.Send(ctx, data)
		if _, err := x.RecvAppend(ctx, buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
	_ = x.Close()
	<-p.Done()
}
