package abi

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/polyproc/polyproc/core/pipe"
)

func pair(t *testing.T, duplex bool) (a, b *pipe.Conn) {
	a, b, err := pipe.New(nil, duplex)
	check0(t, err)
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// C echoes what Go sends: small, large, many at once; both sleep in turn.
func TestPipesBetweenCAndGo(t *testing.T) {
	for _, role := range []string{"echo", "echo-polled"} {
		t.Run(role, func(t *testing.T) {
			ctx := patient(t)
			a, b := pair(t, true)
			p := mix(t, role, b)
			check0(t, b.Close())
			for i, n := range []int{0, 1, 8, 5000, 16384, 16385, 1 << 20, 3} {
				m := bytes.Repeat([]byte{byte(i + 1)}, n)
				for range 50 {
					check0(t, a.Send(ctx, m))
					got, err := a.Recv(ctx)
					check0(t, err)
					if !bytes.Equal(got, m) {
						t.Fatalf("%d bytes came back as %d", n, len(got))
					}
				}
			}
			sent := make(chan error, 1)
			go func() {
				var err error
				for i := range 5000 { // more than there is room for
					err = errors.Join(err, a.Send(ctx, []byte{byte(i), byte(i >> 8)}))
				}
				sent <- err
			}()
			for i := range 5000 {
				got, err := a.Recv(ctx)
				check0(t, err)
				if len(got) != 2 || got[0] != byte(i) || got[1] != byte(i>>8) {
					t.Fatalf("message %d is %v", i, got)
				}
			}
			check0(t, <-sent, a.Close())
			endsWell(t, p)
		})
	}
}

// A C program sends a file, a message in a block of its own, and ends; then Go sees the end.
func TestFilesBetweenCAndGo(t *testing.T) {
	ctx := patient(t)
	a, b := pair(t, true)
	file, err := os.CreateTemp(t.TempDir(), "file")
	check0(t, err)
	_, err = file.WriteString("from Go to C and back")
	check0(t, err, a.SendFile(ctx, file), file.Close())
	p := mix(t, "files", b)
	check0(t, b.Close())
	endsWell(t, p)
	back, err := a.RecvFile(ctx)
	check0(t, err)
	text := make([]byte, 21)
	_, err = back.ReadAt(text, 0)
	check0(t, err, back.Close())
	if string(text) != "from Go to C and back" {
		t.Errorf("%q", text)
	}
	m, err := a.Recv(ctx)
	check0(t, err)
	if !bytes.Equal(m, bytes.Repeat([]byte("C"), 100_000)) {
		t.Errorf("%d bytes", len(m))
	}
	if _, err = a.Recv(ctx); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if err = a.Send(ctx, nil); !errors.Is(err, pipe.ErrBroken) {
		t.Error(err)
	}
}
