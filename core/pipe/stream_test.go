package pipe_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pipe"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func streams(t testing.TB) (a, b *pipe.Stream) {
	x, y := net.Pipe()
	a, b = pipe.NewStream(x), pipe.NewStream(y)
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func TestFrames(t *testing.T) {
	a, b := streams(t)
	ctx := within(t)
	sizes := []int{0, 1, 4, 1 << 20, 1<<20 + 1, 5<<20 + 3}
	sent := make(chan error, 1)
	go func() {
		var err error
		for i, n := range sizes {
			err = errors.Join(err, a.Send(ctx, bytes.Repeat([]byte{byte(i)}, n)))
		}
		sent <- err
	}()
	for i, n := range sizes {
		m, err := b.Recv(ctx)
		require.NoError(t, err)
		require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(i)}, n), m), "%d bytes", n)
	}
	require.NoError(t, <-sent)
	require.NoError(t, a.Close())
	_, err := b.Recv(ctx)
	require.ErrorIs(t, err, io.EOF)
}

func TestFramesThatAreNone(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"cut header":    {[]byte{0, 0}, io.ErrUnexpectedEOF},
		"cut message":   {[]byte{0, 0, 0, 5, 'a'}, io.ErrUnexpectedEOF},
		"never comes":   {[]byte{0x7f, 0xff, 0xff, 0xff}, io.ErrUnexpectedEOF},
		"long and cut":  {binary.BigEndian.AppendUint64([]byte{0xff, 0xff, 0xff, 0xff}, 1<<62), io.ErrUnexpectedEOF},
		"negative":      {[]byte{0x80, 0, 0, 0}, nil},
		"long negative": {binary.BigEndian.AppendUint64([]byte{0xff, 0xff, 0xff, 0xff}, 1<<63), nil},
	} {
		t.Run(name, func(t *testing.T) {
			x, y := net.Pipe()
			s := pipe.NewStream(y)
			defer func() { _ = s.Close() }()
			go func() {
				_, _ = x.Write(c.bytes)
				_ = x.Close()
			}()
			_, err := s.Recv(within(t))
			require.Error(t, err)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
			}
		})
	}
	a, b := streams(t)
	b.SetLimit(3)
	go func() { _ = a.Send(context.Background(), []byte("four")) }()
	_, err := b.Recv(within(t))
	require.ErrorIs(t, err, pipe.ErrTooBig)
}

func TestContextsOfStreams(t *testing.T) {
	a, b := streams(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := b.Recv(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	sent := make(chan error, 1)
	go func() { sent <- a.Send(within(t), []byte("still good")) }()
	m, err := b.Recv(within(t))
	require.NoError(t, err)
	require.NoError(t, <-sent)
	require.Equal(t, "still good", string(m))
}

func listen(t testing.TB, key []byte) *pipe.Listener {
	t.Helper()
	l, err := pipe.Listen("tcp", "127.0.0.1:0", key)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestKeys(t *testing.T) {
	ctx := within(t)
	for name, c := range map[string]struct {
		listener, client []byte
		good             bool
	}{
		"no keys":        {nil, nil, true},
		"the same":       {[]byte("key"), []byte("key"), true},
		"empty ones":     {[]byte{}, []byte{}, true},
		"different ones": {[]byte("key"), []byte("other"), false},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, c.listener)
			accepted := make(chan error, 1)
			go func() {
				s, err := l.Accept(ctx)
				if err == nil {
					err = errors.Join(s.Send(ctx, []byte("welcome")), s.Close())
				}
				accepted <- err
			}()
			s, err := pipe.Dial(ctx, "tcp", l.Addr().String(), c.client)
			if !c.good {
				require.ErrorIs(t, err, pipe.ErrAuthentication)
				require.ErrorIs(t, <-accepted, pipe.ErrAuthentication)
				return
			}
			require.NoError(t, err)
			m, err := s.Recv(ctx)
			require.NoError(t, err)
			require.Equal(t, "welcome", string(m))
			require.NoError(t, <-accepted)
			require.NoError(t, s.Close())
		})
	}
}

// What is no client is turned away, and the next is served.
func TestStrangers(t *testing.T) {
	ctx := within(t)
	l := listen(t, []byte("key"))
	for _, say := range []string{"", "GET / HTTP/1.0\r\n\r\n", "\x00\x00\x00\x05{md5}", "\x00\x00\x00\x10" + string(make([]byte, 16)), "\x00\x01\x00\x00"} {
		c, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		_, err = c.Write([]byte(say))
		require.NoError(t, err)
		if say == "" {
			require.NoError(t, c.Close())
		}
		_, err = l.Accept(ctx)
		require.Error(t, err, "%q", say)
		_ = c.Close()
	}
	go func() {
		if s, err := pipe.Dial(ctx, "tcp", l.Addr().String(), []byte("key")); err == nil {
			_ = s.Close()
		}
	}()
	s, err := l.Accept(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = l.Accept(short)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, l.Close())
	_, err = l.Accept(ctx)
	require.ErrorIs(t, err, net.ErrClosed)
}

// pythons finds one, and other versions of it if the machine has them: both kinds of the challenge are wanted.
func pythons(t *testing.T) []string {
	t.Helper()
	var found []string
	if path, err := exec.LookPath("python3"); err == nil {
		found = append(found, path)
	}
	if home, err := os.UserHomeDir(); err == nil {
		more, _ := filepath.Glob(filepath.Join(home, ".pyenv", "versions", "3.*", "bin", "python"))
		found = append(found, more...)
	}
	if testing.Short() && len(found) > 1 {
		found = found[:1]
	}
	if len(found) == 0 {
		t.Skip("there is no Python here to talk to")
	}
	return found
}

const pythonClient = `
import sys
from multiprocessing.connection import Client
c = Client(sys.argv[1], authkey=b"the key")
while True:
    m = c.recv_bytes()
    c.send_bytes(m[::-1])
    if m == b"end":
        break
`

const pythonListener = `
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
with Listener(sys.argv[1], authkey=b"the key") as l:
    print("ready", flush=True)
    try:
        l.accept()
        sys.exit("a client without the key was accepted")
    except AuthenticationError:
        pass
    c = l.accept()
    while True:
        m = c.recv_bytes()
        c.send_bytes(m[::-1])
        if m == b"end":
            break
`

func reversed(m []byte) []byte {
	r := make([]byte, len(m))
	for i, b := range m {
		r[len(m)-1-i] = b
	}
	return r
}

func talk(t *testing.T, s *pipe.Stream) {
	t.Helper()
	ctx := within(t)
	for _, m := range [][]byte{{}, []byte("hello"), bytes.Repeat([]byte("ab"), 1<<20), []byte("end")} {
		require.NoError(t, s.Send(ctx, m))
		got, err := s.Recv(ctx)
		require.NoError(t, err)
		require.True(t, bytes.Equal(reversed(m), got), "%d bytes", len(m))
	}
}

func TestPython(t *testing.T) {
	for _, python := range pythons(t) {
		version, err := exec.Command(python, "-c", "import sys; print(*sys.version_info[:2], sep='.', end='')").Output()
		require.NoError(t, err)
		t.Run("client "+string(version), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			l, err := pipe.Listen("unix", path, []byte("the key"))
			require.NoError(t, err)
			defer func() { _ = l.Close() }()
			cmd := exec.CommandContext(within(t), python, "-c", pythonClient, path)
			cmd.Stderr = os.Stderr
			require.NoError(t, cmd.Start())
			s, err := l.Accept(within(t))
			require.NoError(t, err)
			talk(t, s)
			require.NoError(t, cmd.Wait())
			require.NoError(t, s.Close())
		})
		t.Run("listener "+string(version), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			cmd := exec.CommandContext(within(t), python, "-c", pythonListener, path)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = io.ReadFull(out, make([]byte, 5))
			require.NoError(t, err)
			_, err = pipe.Dial(within(t), "unix", path, []byte("not the key"))
			require.ErrorIs(t, err, pipe.ErrAuthentication)
			s, err := pipe.Dial(within(t), "unix", path, []byte("the key"))
			require.NoError(t, err)
			talk(t, s)
			require.NoError(t, cmd.Wait())
			require.NoError(t, s.Close())
		})
	}
}

// Somebody without the key cannot have one connection of a client answer what the other asks.
func TestReflection(t *testing.T) {
	ctx := within(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	clients := make(chan error, 2)
	var ends [2]*pipe.Stream
	for i := range ends {
		go func() {
			_, err := pipe.Dial(ctx, "tcp", l.Addr().String(), []byte("the key"))
			clients <- err
		}()
		c, err := l.Accept()
		require.NoError(t, err)
		ends[i] = pipe.NewStream(c)
	}
	require.NoError(t, ends[0].Send(ctx, append([]byte("#CHALLENGE#{sha256}"), make([]byte, 40)...)))
	_, err = ends[0].Recv(ctx)
	require.NoError(t, err)
	require.NoError(t, ends[0].Send(ctx, []byte("#WELCOME#")))
	asked, err := ends[0].Recv(ctx)
	require.NoError(t, err)
	require.NoError(t, ends[1].Send(ctx, asked))
	_, err = ends[1].Recv(ctx)
	require.Error(t, err, "the client has answered its own challenge")
	require.ErrorIs(t, <-clients, pipe.ErrAuthentication)
	require.NoError(t, ends[0].Close())
	require.Error(t, <-clients)
	require.NoError(t, ends[1].Close())
}

// However many clients say nothing: those that know the key are accepted, by one goroutine too, and the oldest silent ones give way.
func TestSilentClientsKeepNobodyOut(t *testing.T) {
	ctx := within(t)
	key := []byte("the key")
	l := listen(t, key)
	silent := make([]net.Conn, 150)
	for i := range silent {
		c, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		silent[i] = c
	}
	dialed := make(chan error, 1)
	go func() {
		s, err := pipe.Dial(ctx, "tcp", l.Addr().String(), key)
		if err == nil {
			err = s.Send(ctx, []byte("here"))
		}
		dialed <- err
	}()
	s, err := l.Accept(ctx)
	require.NoError(t, err)
	data, err := s.Recv(ctx)
	require.NoError(t, err)
	require.Equal(t, "here", string(data))
	require.NoError(t, <-dialed)
	require.NoError(t, s.Close())
	_, err = io.Copy(io.Discard, silent[0])
	require.NoError(t, err, "it was not closed")
	// The others are closed with the listener.
	require.NoError(t, l.Close())
	for _, c := range silent {
		_, _ = io.Copy(io.Discard, c)
	}
	_, err = l.Accept(ctx)
	require.ErrorIs(t, err, net.ErrClosed)
}
