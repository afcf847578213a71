//go:build linux

package pool

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func barren(p *Pool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.barren
}

// Workers that die as soon as they are ready are replaced ever more slowly, but always; one that does something is reason for hope.
func TestWorkersThatOnlyDie(t *testing.T) {
	p := opened(t, Options{Workers: 1})
	last := 0
	killReady := func() time.Time {
		eventually(t, func() bool { pids := p.PIDs(); return len(pids) == 1 && pids[0] != last && readyWorkers(p) == 1 })
		last = p.PIDs()[0]
		killed := time.Now()
		require.NoError(t, syscall.Kill(last, syscall.SIGKILL))
		return killed
	}
	const free = barrenFree + 1
	for range free {
		killReady()
	}
	for i := range 5 {
		killed := killReady()
		eventually(t, func() bool { pids := p.PIDs(); return len(pids) == 1 && pids[0] != last })
		require.GreaterOrEqual(t, time.Since(killed), barrenFirst<<i)
		require.Equal(t, free+i+1, barren(p))
	}
	healthy(t, p)
	require.Zero(t, barren(p))
	killReady() // it has worked
	healthy(t, p)
	require.Zero(t, barren(p))
}

func TestBarrenDelayHasAnEndInSight(t *testing.T) {
	p := &Pool{opt: Options{Workers: 2}}
	for ; p.barren <= barrenFree+2; p.barren++ {
		require.Zero(t, p.barrenDelay())
	}
	for before := time.Duration(0); p.barren < 1000; p.barren++ {
		delay := p.barrenDelay()
		require.True(t, delay == barrenMost || delay > before)
		require.LessOrEqual(t, delay, barrenMost)
		before = delay
	}
	require.Equal(t, barrenMost, p.barrenDelay())
}
