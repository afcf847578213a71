package pool

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/polyproc/polyproc/shm"
)

// A ring that comes while a sleeper announces itself takes the sleeper's flag down. The next ring, for what is published after the
// sleeper has looked, must wake it all the same.
func TestBellLosesNoRing(t *testing.T) {
	const limit = 10 * time.Second
	rounds := uint64(2000000)
	if testing.Short() {
		rounds /= 20
	}
	var b bell
	var published, seen atomic.Uint64
	asleep := make(chan error, 1)
	go func() {
		for seen.Load() < 2*rounds {
			seq := b.enter()
			seen.Store(published.Load())
			if seen.Load() == 2*rounds {
				break
			}
			if err := shm.FutexWait(b.addr(), seq, limit); errors.Is(err, os.ErrDeadlineExceeded) && published.Load() != seen.Load() {
				asleep <- err
				return
			}
		}
		asleep <- nil
	}()
	for round := range rounds {
		published.Add(1)
		b.ring()
		for range round % 128 { // the sleeper looks now, or has looked
			published.Load()
		}
		published.Add(1)
		b.ring()
		for deadline := time.Now().Add(2 * limit); seen.Load() != published.Load(); {
			if time.Now().After(deadline) {
				t.Fatalf("asleep with %d of %d seen: %v", seen.Load(), published.Load(), <-asleep)
			}
		}
	}
	if err := <-asleep; err != nil {
		t.Fatal(err)
	}
}
