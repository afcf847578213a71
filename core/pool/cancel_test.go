//go:build linux

package pool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/pool"
)

// seen is what a task tells of its context.
type seen struct {
	Deadline time.Time
	OK       bool
	Value    any
	Err      string
}

type contextKey struct{}

var lastContext context.Context

var (
	lookAtContext = pool.Register("look at context", func(ctx context.Context, _ struct{}) (s seen, err error) {
		s.Deadline, s.OK = ctx.Deadline()
		s.Value = ctx.Value(contextKey{})
		if err := ctx.Err(); err != nil {
			s.Err = err.Error()
		}
		return s, nil
	})
	keepContext = pool.Register("keep context", func(ctx context.Context, before bool) (string, error) {
		last := lastContext
		if lastContext = ctx; last == nil {
			if before {
				_ = ctx.Done()
			}
			return "", nil
		}
		<-last.Done()
		return last.Err().Error(), ctx.Err()
	})
	// untilCancelled waits for the end of its context, or of one that it has made of it, and then writes why into a file.
	untilCancelled = pool.Register("until cancelled", func(ctx context.Context, path string) (int, error) {
		if err := os.WriteFile(path+".begun", nil, 0o600); err != nil {
			return 0, err
		}
		child, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		<-child.Done()
		if err := os.WriteFile(path+".new", []byte(ctx.Err().Error()), 0o600); err != nil {
			return 0, err
		}
		return 1, errors.Join(ctx.Err(), os.Rename(path+".new", path))
	})
	// stubborn does not look at its context.
	stubborn = pool.Register("stubborn", func(_ context.Context, path string) (int, error) {
		if err := os.WriteFile(path+".begun", nil, 0o600); err != nil {
			return 0, err
		}
		select {}
	})
)

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// await waits for a condition.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !cond(); runtime.Gosched() {
		require.True(t, time.Now().Before(end), "hang: %s", what)
	}
}

func TestTaskHasTheDeadlineOfItsCaller(t *testing.T) {
	p := open(t, pool.Options{Workers: 1})
	out, err := pool.Map(context.Background(), p, lookAtContext, make([]struct{}, 1))
	require.NoError(t, err)
	require.Equal(t, seen{}, out[0])
	for _, left := range []time.Duration{time.Hour, 200 * 365 * 24 * time.Hour} {
		ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), contextKey{}, 1), left)
		defer cancel()
		at, _ := ctx.Deadline()
		out, err = pool.Map(ctx, p, lookAtContext, make([]struct{}, 1))
		require.NoError(t, err)
		require.True(t, out[0].OK)
		require.WithinDuration(t, at, out[0].Deadline, time.Minute)
		require.Nil(t, out[0].Value, "values stay here")
		require.Empty(t, out[0].Err)
		for s, err := range pool.Stream(ctx, p, lookAtContext, slices.Values(make([]struct{}, 1))) {
			require.NoError(t, err)
			require.WithinDuration(t, at, s.Deadline, time.Minute)
		}
	}
}

func TestContextEndsWithTheTask(t *testing.T) {
	for _, before := range []bool{true, false} {
		p := open(t, pool.Options{Workers: 1})
		for _, want := range []string{"", "context canceled", "context canceled"} {
			out, err := pool.Map(limited(t), p, keepContext, []bool{before})
			require.NoError(t, err)
			require.Equal(t, want, out[0])
		}
	}
}

// The end of the caller's context reaches the task, which may end in its own way, and costs no worker.
func TestCancelReachesTheTask(t *testing.T) {
	p := open(t, pool.Options{Workers: 2, Grace: deadline})
	works(t, p)
	pids := p.PIDs()
	paths := func() []string { return []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")} }
	for name, call := range map[string]struct {
		run  func(ctx context.Context, paths []string) error
		want error
	}{
		"Map": {func(ctx context.Context, paths []string) error {
			_, err := pool.Map(ctx, p, untilCancelled, paths)
			return err
		}, context.Canceled},
		"MapAll": {func(ctx context.Context, paths []string) error {
			_, errs := pool.MapAll(ctx, p, untilCancelled, paths)
			return errs[1]
		}, context.Canceled},
		"Stream": {func(ctx context.Context, paths []string) error {
			for _, err := range pool.Stream(ctx, p, untilCancelled, slices.Values(paths)) {
				return err
			}
			return nil
		}, context.Canceled},
		"Submit": {func(ctx context.Context, paths []string) error {
			_, err := pool.Submit(ctx, p, untilCancelled, paths[1])
			if err != nil {
				return err
			}
			task, err := pool.Submit(ctx, p, untilCancelled, paths[0])
			if err != nil {
				return err
			}
			_, err = task.Wait(limited(t))
			return err
		}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			for range 3 {
				paths := paths()
				ctx, cancel := context.WithCancel(limited(t))
				ended := make(chan error)
				go func() { ended <- call.run(ctx, paths) }()
				for _, path := range paths {
					await(t, "the task begins", func() bool { return exists(path + ".begun") })
				}
				cancel()
				require.ErrorIs(t, <-ended, call.want)
				for _, path := range paths {
					await(t, "the task ends", func() bool { return exists(path) })
					why, err := os.ReadFile(path)
					require.NoError(t, err)
					require.Equal(t, "context canceled", string(why))
				}
			}
			works(t, p)
			require.Equal(t, pids, p.PIDs(), "no worker was killed")
		})
	}
	require.Zero(t, p.State().Lost)
}

func TestDeadlineReachesTheTask(t *testing.T) {
	p := open(t, pool.Options{Workers: 1, Grace: deadline})
	path := filepath.Join(t.TempDir(), "a")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := pool.Map(ctx, p, untilCancelled, []string{path})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	if exists(path + ".begun") { // else the deadline came first
		await(t, "the task ends", func() bool { return exists(path) })
	}
	works(t, p)
}

// A consumer that stops cancels what runs for it.
func TestStreamLeftCancels(t *testing.T) {
	p := open(t, pool.Options{Workers: 2, Grace: deadline})
	works(t, p)
	dir := t.TempDir()
	either := pool.StreamUnordered(limited(t), p, untilOrNot, slices.Values([]string{filepath.Join(dir, "a"), ""}))
	for _, err := range either {
		require.NoError(t, err)
		await(t, "the other begins", func() bool { return exists(filepath.Join(dir, "a.begun")) })
		break
	}
	await(t, "the task ends", func() bool { return exists(filepath.Join(dir, "a")) })
}

var untilOrNot = pool.Register("until or not", func(ctx context.Context, path string) (int, error) {
	if path == "" {
		return 0, nil
	}
	if err := os.WriteFile(path+".begun", nil, 0o600); err != nil {
		return 0, err
	}
	<-ctx.Done()
	return 0, os.WriteFile(path, nil, 0o600)
})

// A task that does not end in the time of grace is killed with its worker.
func TestGraceIsOver(t *testing.T) {
	for _, grace := range []time.Duration{time.Millisecond, -1} {
		p := open(t, pool.Options{Workers: 1, Grace: grace})
		works(t, p)
		pids := p.PIDs()
		path := filepath.Join(t.TempDir(), "a")
		ctx, cancel := context.WithCancel(limited(t))
		task, err := pool.Submit(ctx, p, stubborn, path)
		require.NoError(t, err)
		await(t, "the task begins", func() bool { return exists(path + ".begun") })
		cancel()
		_, err = task.Wait(limited(t))
		require.ErrorIs(t, err, context.Canceled)
		works(t, p)
		require.NotEqual(t, pids, p.PIDs())
	}
}

func TestCloseCancels(t *testing.T) {
	p := open(t, pool.Options{Workers: 2, Grace: deadline})
	path := filepath.Join(t.TempDir(), "a")
	task, err := pool.Submit(limited(t), p, untilCancelled, path)
	require.NoError(t, err)
	await(t, "the task begins", func() bool { return exists(path + ".begun") })
	require.NoError(t, p.Close())
	require.True(t, exists(path), "Close waits for the task")
	_, err = task.Wait(limited(t))
	var te *pool.TaskError
	require.ErrorAs(t, err, &te)
	require.ErrorIs(t, err, context.Canceled)

	// Neither who ignores its context holds it up, nor what waits behind, nor Terminate.
	for _, end := range []func(p *pool.Pool) error{
		func(p *pool.Pool) error { return p.Close() },
		func(p *pool.Pool) error { p.Terminate(); return p.Close() },
	} {
		p = open(t, pool.Options{Workers: 1, Grace: time.Millisecond})
		path = filepath.Join(t.TempDir(), "a")
		running, err := pool.Submit(limited(t), p, stubborn, path)
		require.NoError(t, err)
		waiting, err := pool.Submit(limited(t), p, square, 3)
		require.NoError(t, err)
		await(t, "the task begins", func() bool { return exists(path + ".begun") })
		require.NoError(t, end(p))
		for _, task := range []*pool.Task[int]{running, waiting} {
			_, err = task.Wait(limited(t))
			require.ErrorIs(t, err, pool.ErrClosed)
		}
	}
}
