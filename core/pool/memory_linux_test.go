package pool

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/shm"
)

func TestPayloadLargerThanMemory(t *testing.T) {
	require.NoError(t, affordable(0))
	require.NoError(t, affordable(largePayload))
	require.ErrorIs(t, affordable(1<<50), shm.ErrNoMemory)
}
