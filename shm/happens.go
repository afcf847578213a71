//go:build !race

package shm

// Released tells the race detector that what this goroutine has done so far is seen by whoever calls Acquired of the same object later, in this process. The detector
// does not look at memory outside of Go's own, so it does not know by itself that a lock in shared memory orders anything. Without -race these do
// nothing.
func (o *Object) Released() {}

// Acquired is the other half of Released.
func (o *Object) Acquired() {}
