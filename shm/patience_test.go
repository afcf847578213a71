package shm

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A wait that is not worth looking for is not looked for; short sleeps bring looking back, success keeps it, failure ends it.
func TestPatienceLearns(t *testing.T) {
	if runtime.GOMAXPROCS(0) == 1 {
		t.Skip("one CPU: nobody looks")
	}
	var p Patience
	now := time.Now().Add(time.Hour) // however slow the machine, a sleep since then was short
	looks := 0
	never := func() bool { looks++; return false }
	came, began := p.Spin(never)
	require.False(t, came)
	require.Zero(t, looks, "nothing is known yet")

	p.Slept(time.Now().Add(-time.Second))
	_, _ = p.Spin(never)
	require.Zero(t, looks, "a long sleep says nothing for it")

	p.Slept(now)
	require.False(t, began.IsZero())
	came, _ = p.Spin(func() bool { return true })
	require.True(t, came)
	require.Equal(t, patienceMost, time.Duration(p.budget.Load()), "never more")

	for range 10 {
		_, _ = p.Spin(never)
	}
	require.NotZero(t, looks)
	looks = 0
	for range patienceRest - 1 {
		_, _ = p.Spin(never)
		p.Slept(now)
	}
	require.Zero(t, looks, "it rests")
	p.Slept(now)
	_, _ = p.Spin(never)
	require.NotZero(t, looks, "and is tried again")
}
