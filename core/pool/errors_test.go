//go:build linux

package pool_test

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pool"
)

var errEmpty = errors.New("the basket is empty")

// tooMany is an error of a type that gob knows.
type tooMany struct {
	Most  int
	Cause error
}

func (e *tooMany) Error() string { return fmt.Sprintf("more than %d: %v", e.Most, e.Cause) }
func (e *tooMany) Unwrap() error { return e.Cause }

// rude has methods that panic.
type rude struct{ A int }

func (rude) Error() string { panic("no") }

func init() {
	pool.RegisterError("errEmpty", errEmpty)
	gob.Register(&tooMany{})
}

var failures = map[string]func() error{
	"path":     func() error { _, err := os.Open("/no/such/file"); return err },
	"wrapped":  func() error { return fmt.Errorf("reading: %w", io.ErrUnexpectedEOF) },
	"deadline": func() error { return context.DeadlineExceeded },
	"ours":     func() error { return fmt.Errorf("checkout: %w", errEmpty) },
	"type":     func() error { return fmt.Errorf("checkout: %w", &tooMany{3, errEmpty}) },
	"joined":   func() error { return errors.Join(io.EOF, syscall.ENOSPC) },
	"nested":   func() error { return &pool.InputError{Index: 3, Err: &pool.WorkerLostError{PID: 5, Task: "inner"}} },
	"panic":    func() error { panic(&tooMany{4, io.EOF}) },
	"goexit":   func() error { runtime.Goexit(); return nil },
	"require":  func() error { require.Fail(failer{}, "as a test does"); return nil },
	"rude":     func() error { return rude{} },
}

// failer is what a test hands to require in place of a testing.T.
type failer struct{}

func (failer) Errorf(string, ...any) {}
func (failer) FailNow()              { runtime.Goexit() }

var (
	failAs = pool.Register("fail as", func(_ context.Context, how string) (int, error) {
		if how == "" {
			return 1, nil
		}
		return 0, failures[how]()
	})
	initAs = pool.RegisterInitializer("fail as", func(how string) error { return failures[how]() })
)

func TestErrorsKeepTheirChain(t *testing.T) {
	p := open(t, pool.Options{Workers: 1})
	pids := p.PIDs()
	for how, check := range map[string]func(t *testing.T, err error){
		"path": func(t *testing.T, err error) {
			var path *fs.PathError
			require.ErrorAs(t, err, &path)
			require.Equal(t, &fs.PathError{Op: "open", Path: "/no/such/file", Err: syscall.ENOENT}, path)
			require.ErrorIs(t, err, fs.ErrNotExist)
		},
		"wrapped":  func(t *testing.T, err error) { require.ErrorIs(t, err, io.ErrUnexpectedEOF) },
		"deadline": func(t *testing.T, err error) { require.ErrorIs(t, err, context.DeadlineExceeded) },
		"ours":     func(t *testing.T, err error) { require.ErrorIs(t, err, errEmpty) },
		"type": func(t *testing.T, err error) {
			var many *tooMany
			require.ErrorAs(t, err, &many)
			require.Equal(t, &tooMany{3, errEmpty}, many)
		},
		"joined": func(t *testing.T, err error) {
			require.ErrorIs(t, err, io.EOF)
			require.ErrorIs(t, err, syscall.ENOSPC)
		},
		"panic": func(t *testing.T, err error) {
			var task *pool.TaskError
			require.ErrorAs(t, err, &task)
			require.True(t, task.Panic)
			require.Contains(t, task.Message, "panic: more than 4: EOF\n")
			require.Contains(t, task.Message, "errors_test.go")
			require.ErrorIs(t, err, io.EOF)
		},
		"nested": func(t *testing.T, err error) {
			var lost *pool.WorkerLostError
			require.ErrorAs(t, err, &lost)
			require.Equal(t, &pool.WorkerLostError{PID: 5, Task: "inner"}, lost)
			var input *pool.InputError
			require.ErrorAs(t, err, &input)
			require.Zero(t, input.Index, "the one of this map comes first")
			require.ErrorAs(t, input.Err, &input)
			require.Equal(t, 3, input.Index)
		},
		"rude": func(t *testing.T, err error) { require.ErrorContains(t, err, "pool_test.rude") },
	} {
		t.Run(how, func(t *testing.T) {
			_, err := pool.Map(limited(t), p, failAs, []string{how})
			var task *pool.TaskError
			require.ErrorAs(t, err, &task)
			require.Equal(t, "fail as", task.Task)
			if how != "panic" && how != "rude" {
				require.Equal(t, failures[how]().Error(), task.Message)
			}
			require.NotErrorIs(t, err, fs.ErrPermission)
			check(t, err)
		})
	}
	require.Equal(t, pids, p.PIDs(), "no worker has died")
}

// A task that ends its goroutine fails; it neither hangs nor costs the worker.
func TestGoexit(t *testing.T) {
	p := open(t, pool.Options{Workers: 1})
	pids := p.PIDs()
	ins := slices.Repeat([]string{"", "goexit", "require"}, 10)
	outs, errs := pool.MapAll(limited(t), p, failAs, ins)
	for i, in := range ins {
		if in == "" {
			require.NoError(t, errs[i])
			require.Equal(t, 1, outs[i])
			continue
		}
		var task *pool.TaskError
		require.ErrorAs(t, errs[i], &task)
		require.False(t, task.Panic)
		require.Contains(t, task.Message, "runtime.Goexit")
		require.Contains(t, task.Message, "errors_test.go")
	}
	require.Equal(t, pids, p.PIDs())
	require.Zero(t, p.State().Running)
	require.NoError(t, p.Shutdown(limited(t)))

	for _, how := range []string{"goexit", "panic", "require"} {
		bad := open(t, pool.Options{Workers: 2, Initializer: initAs(how)})
		_, err := pool.Map(limited(t), bad, square, numbers(3))
		require.ErrorIs(t, err, pool.ErrInit, how)
	}
}

func TestInputError(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	outs, err := pool.Map(limited(t), p, failAs, []string{"", "", "ours", "", "path"})
	var input *pool.InputError
	require.ErrorAs(t, err, &input)
	require.Equal(t, 2, input.Index)
	require.ErrorIs(t, err, errEmpty)
	require.EqualError(t, err, "input 2: pool: fail as: checkout: the basket is empty")
	require.Equal(t, []int{1, 1, 0, 1, 0}, outs)

	for name, stream := range map[string]func([]string) iter.Seq2[int, error]{
		"Stream": func(in []string) iter.Seq2[int, error] { return pool.Stream(limited(t), p, failAs, slices.Values(in)) },
		"StreamUnordered": func(in []string) iter.Seq2[int, error] {
			return pool.StreamUnordered(limited(t), p, failAs, slices.Values(in))
		},
	} {
		var failed []int
		good := 0
		for n, err := range stream([]string{"ours", "", "", "ours", "ours", ""}) {
			if err == nil {
				good += n
				continue
			}
			require.ErrorAs(t, err, &input, name)
			require.ErrorIs(t, err, errEmpty)
			failed = append(failed, input.Index)
		}
		slices.Sort(failed)
		require.Equal(t, []int{0, 3, 4}, failed, name)
		require.Equal(t, 3, good, name)
	}
}

var mirrorAny = pool.Register("mirror any", func(_ context.Context, v *point) (*point, error) { return v, nil })

// What cannot be encoded fails by itself.
func TestUnencodable(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	ins := []*point{{X: 1}, nil, {X: 3}}
	outs, errs := pool.MapAll(limited(t), p, mirrorAny, ins)
	require.NoError(t, errors.Join(errs[0], errs[2]))
	require.ErrorContains(t, errs[1], "mirror any: argument")
	require.Equal(t, []*point{ins[0], nil, ins[2]}, outs)
	_, err := pool.Map(limited(t), p, mirrorAny, ins)
	var input *pool.InputError
	require.ErrorAs(t, err, &input)
	require.Equal(t, 1, input.Index)
	_, err = pool.Submit(limited(t), p, mirrorAny, nil)
	require.ErrorContains(t, err, "argument")
	for _, stream := range []iter.Seq2[*point, error]{
		pool.Stream(limited(t), p, mirrorAny, slices.Values(ins)),
		pool.StreamUnordered(limited(t), p, mirrorAny, slices.Values(ins)),
	} {
		good, bad := 0, 0
		for _, err := range stream {
			if err == nil {
				good++
			} else {
				require.ErrorAs(t, err, &input)
				require.Equal(t, 1, input.Index)
				bad++
			}
		}
		require.Equal(t, []int{2, 1}, []int{good, bad})
	}
}

func TestMapAll(t *testing.T) {
	p := open(t, pool.Options{Workers: 2})
	outs, errs := pool.MapAll(limited(t), p, crash, []int{0, 7, 2, 12, 4})
	require.Equal(t, []int{0, 0, 2, 0, 4}, outs)
	require.NoError(t, errors.Join(errs[0], errs[2], errs[4]))
	var lost *pool.WorkerLostError
	require.ErrorAs(t, errs[1], &lost)
	require.Equal(t, 7, lost.Status.Code)
	require.EqualError(t, errs[3], "pool: crash: an error")

	outs, errs = pool.MapAll(limited(t), p, crash, nil)
	require.Empty(t, outs)
	require.Empty(t, errs)

	// What was done before the context has ended counts.
	ctx, cancel := context.WithCancel(limited(t))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		outs, errs = pool.MapAll(ctx, p, sleep, []int{0, 600_000, 600_000})
	}()
	for s := p.State(); s.Running != 2 || s.Waiting != 0; s = p.State() {
		runtime.Gosched()
	}
	cancel()
	<-ended
	require.NoError(t, errs[0])
	require.NotZero(t, outs[0])
	for _, err := range errs[1:] {
		require.ErrorIs(t, err, context.Canceled)
	}

	require.NoError(t, p.Close())
	_, errs = pool.MapAll(limited(t), p, square, numbers(3))
	for _, err := range errs {
		require.ErrorIs(t, err, pool.ErrClosed)
	}
}
