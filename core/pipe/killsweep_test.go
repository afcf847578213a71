//go:build linux && amd64 && !race

package pipe_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/internal/stepper"
	"github.com/polyproc/polyproc/core/pipe"
	"github.com/polyproc/polyproc/shm"
)

// The kill sweep: a child is single-stepped through one operation, and killed after the first change of the pipe in shared memory, another one after the second, and so on, the last after the
// operation. Each time we go on with the pipe, and must find what holds if the operation has happened, or what holds if it has not.

type step struct {
	name          string
	sends         bool
	watched       bool
	before, after []int // sizes of the messages that are in the pipe
	op            func(c *pipe.Conn) error
}

var steps = []step{
	{name: "the first send", sends: true, after: []int{10}, op: send(10)},
	{name: "send", sends: true, before: []int{5}, after: []int{5, 10}, op: send(10)},
	{name: "big send", sends: true, before: []int{5}, after: []int{5, 30_000}, op: send(30_000)},
	{name: "recv", before: []int{5, 6}, after: []int{6}, op: recv},
	{name: "recv the last, watched", watched: true, before: []int{5}, op: recv},
	{name: "big recv", before: []int{30_000, 6}, after: []int{6}, op: recv},
	{name: "recv nothing", op: func(c *pipe.Conn) error { _, _ = c.TryRecv(); return nil }},
}

func send(n int) func(*pipe.Conn) error {
	return func(c *pipe.Conn) error { return c.TrySend(make([]byte, n)) }
}

func recv(c *pipe.Conn) error {
	_, err := c.TryRecv()
	return err
}

func init() {
	if os.Getenv(roleVar) == "step" {
		runtime.LockOSThread()
	}
	roles["step"] = func(_ context.Context, args []string) error {
		var c pipe.Conn
		n, err1 := strconv.Atoi(args[0])
		off, err2 := strconv.ParseUint(args[1], 10, 64)
		h, err3 := shm.Family()
		if err := errors.Join(err1, err2, err3, received(args[2:], &c)); err != nil {
			return err
		}
		phase := (*uint32)(h.Within(off, 8))
		if err := stepper.Ready(); err != nil {
			return err
		}
		atomic.StoreUint32(phase, 1)
		err := steps[n].op(&c)
		atomic.StoreUint32(phase, 2)
		return err
	}
}

func TestKillSweep(t *testing.T) {
	if testing.Short() {
		t.Skip("single-steps children: seconds")
	}
	h, err := shm.Family()
	require.NoError(t, err)
	tag := h.Tag()
	off, _, err := h.Alloc(8, tag)
	require.NoError(t, err)
	defer h.Free(off, tag)
	for i, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			kills, retries, happened := 0, 0, 0
			for over := false; !over; {
				in, out := pair(t, nil, false)
				for _, n := range s.before {
					require.NoError(t, out.TrySend(make([]byte, n)))
				}
				if s.watched {
					_, err = in.Descriptor()
					require.NoError(t, err)
				}
				its := in
				if s.sends {
					its = out
				}
				ref := sent(t, its)
				data, err := hex.DecodeString(ref)
				require.NoError(t, err)
				object, ok := h.At(binary.LittleEndian.Uint64(data[8:])+16, 2176-16) // behind the count of references
				require.True(t, ok)
				over, err = stepped(h, off, i, ref, kills, object)
				if errors.Is(err, stepper.ErrLost) && retries < 20 {
					retries++
					over = false
					continue
				}
				require.NoError(t, err)
				if goesOn(t, &s, in, out) {
					happened++
				}
				require.NoError(t, errors.Join(in.Close(), out.Close()))
				kills++
			}
			t.Logf("killed in %d states, in %d of them it had happened", kills, happened)
			if len(s.before) != len(s.after) {
				require.True(t, happened > 0 && happened < kills)
			}
		})
	}
}

// goesOn uses the pipe: messages are as before or as after, and which, and more come through.
func goesOn(t *testing.T, s *step, in, out *pipe.Conn) (happened bool) {
	ctx := patient(t)
	require.NoError(t, out.Send(ctx, []byte("from the living")))
	var sizes []int
	for {
		m, err := in.Recv(ctx)
		require.NoError(t, err)
		if string(m) == "from the living" {
			break
		}
		sizes = append(sizes, len(m))
	}
	if len(sizes) != len(s.after) {
		require.Equal(t, s.before, sizes)
	} else {
		require.Equal(t, s.after, sizes)
		happened = len(s.before) != len(s.after)
	}
	if s.watched { // readable exactly if there is a message
		fd, err := in.Descriptor()
		require.NoError(t, err)
		require.False(t, readable(t, fd, 0))
		require.NoError(t, out.Send(ctx, nil))
		require.True(t, readable(t, fd, 0))
		_, err = in.Recv(ctx)
		require.NoError(t, err)
		require.False(t, readable(t, fd, 0))
	}
	require.NoError(t, out.Close())
	_, err := in.Recv(ctx)
	require.ErrorIs(t, err, io.EOF)
	return happened
}

// stepped steps a child until the pipe has changed n times in its operation, and kills it. over: the operation has ended before.
func stepped(h *shm.Heap, off uint64, index int, ref string, n int, object []byte) (over bool, err error) {
	phase := (*uint32)(h.Within(off, 8))
	atomic.StoreUint32(phase, 0)
	cmd := exec.Command("/proc/self/exe", strconv.Itoa(index), strconv.FormatUint(off, 10), ref)
	cmd.Env = append(os.Environ(), roleVar+"=step")
	cmd.Stderr = os.Stderr
	if err = stepper.InFamily(cmd); err != nil {
		return false, err
	}
	c, err := stepper.Start(cmd)
	if err != nil {
		return false, err
	}
	seen := bytes.Clone(object)
	for changes := 0; ; {
		if err = c.Step(); err != nil {
			if !errors.Is(err, stepper.ErrLost) {
				c.Kill()
			}
			return false, err
		}
		at := atomic.LoadUint32(phase)
		if at == 0 {
			continue
		}
		if !bytes.Equal(seen, object) {
			changes++
			copy(seen, object)
		}
		if over = at == 2; over || changes == n {
			c.Kill()
			return over, nil
		}
	}
}
