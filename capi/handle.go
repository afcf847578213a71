//go:build cgo

package main

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Handles of what lives in the Go heap: pools and child processes. All tables count with one counter, so that the handle of a process is
// never that of a pool, and none is used twice.
var lastHandle atomic.Uint64

type table[T any] struct {
	noun string
	mu   sync.RWMutex
	m    map[uint64]T
}

func newTable[T any](noun string) *table[T] { return &table[T]{noun: noun, m: map[uint64]T{}} }

func (t *table[T]) add(v T) uint64 {
	h := lastHandle.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.m[h] = v
	return h
}

func (t *table[T]) get(h uint64) (T, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	v, ok := t.m[h]
	if !ok {
		return v, fmt.Errorf("%w: %s %d", errHandle, t.noun, h)
	}
	return v, nil
}

func (t *table[T]) remove(h uint64) (T, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.m[h]
	if !ok {
		return v, fmt.Errorf("%w: %s %d", errHandle, t.noun, h)
	}
	delete(t.m, h)
	return v, nil
}
