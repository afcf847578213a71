package pool

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Lanes get shallow at once when a task takes long, but all workers are woken only when tasks do so usually.
func TestOneLongTaskAmongTinyOnes(t *testing.T) {
	const workers = 1024 // more than there are CPUs
	p := &Pool{lanes: make([]*lane, workers)}
	require.Equal(t, workers, p.spread(), "nothing is known of the tasks")
	for range 100 {
		p.learn(uint64(time.Microsecond))
	}
	few := p.spread()
	require.Less(t, few, workers)
	require.Greater(t, p.depth(), 100)

	p.learn(uint64(5 * time.Millisecond)) // the system has put it aside
	require.Equal(t, few, p.spread())
	require.LessOrEqual(t, p.depth(), 2)

	for range 50 {
		p.learn(uint64(5 * time.Millisecond))
	}
	require.Equal(t, workers, p.spread(), "tasks are long now")
	for range 100 {
		p.learn(uint64(time.Microsecond))
	}
	require.Equal(t, few, p.spread(), "and tiny again")
}
