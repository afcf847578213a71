//go:build race

package shm

import "sync/atomic"

// edges stand for objects; that two share one hides a race at worst, but never makes one up.
var edges [4096]atomic.Uint32

// Released tells the race detector that what this goroutine has done so far is seen by whoever calls Acquired of the same object later.
func (o *Object) Released() { edges[o.off/128%uint64(len(edges))].Add(1) }

// Acquired is the other half of Released.
func (o *Object) Acquired() { edges[o.off/128%uint64(len(edges))].Load() }
