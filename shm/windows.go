package shm

import (
	"fmt"
	"os"
	"sync"
)

// Windows maps the blocks that another process allocated from an [Arena], by offset and size, and keeps the latest mapped, because the
// same blocks come again and again. Its methods may be called from several goroutines at once.
//
// The rule: what At returned is valid until it is given to Done, once for each At. Between the two the window stays mapped, whatever
// is dropped or cached meanwhile.
type Windows struct {
	s   *Segment
	max int

	mu     sync.Mutex
	byOff  map[int64]*window   // current windows, by offset of their first page
	byBase map[uintptr]*window // all that are mapped, by address
	clock  uint64
	closed bool
}

type window struct {
	off   int64
	bytes []byte
	pins  int
	used  uint64 // clock of the latest At
	stale bool   // no longer in byOff: unmapped as soon as nobody uses it
}

// NewWindows returns a cache of at most max windows that nobody uses at the moment; those in use come on top.
func NewWindows(s *Segment, max int) *Windows {
	return &Windows{s: s, max: max, byOff: map[int64]*window{}, byBase: map[uintptr]*window{}}
}

// At returns n bytes of the segment from off; give them to Done after use. Errors: [ErrCorrupt] if they do not lie in the
// segment, since the numbers come from another process; [ErrNoMemory] (address space); [os.ErrClosed].
func (w *Windows) At(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > w.s.Size() || n > w.s.Size()-off {
		return nil, fmt.Errorf("%w: %d bytes at %d of a segment of %d", ErrCorrupt, n, off, w.s.Size())
	}
	if n == 0 {
		return []byte{}, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, errClosed("windows")
	}
	first := pageFloor(off)
	size := min(pageCeil(off+n), w.s.Size()) - first
	v := w.byOff[first]
	if v != nil && int64(len(v.bytes)) < size {
		w.retire(v)
		v = nil
	}
	if v == nil {
		b, err := w.s.Map(first, size)
		if err != nil {
			return nil, err
		}
		v = &window{off: first, bytes: b}
		w.byOff[first] = v
		w.byBase[uintptr(addressOf(b))] = v
	}
	w.clock++
	v.used = w.clock
	v.pins++
	at := off - first
	return v.bytes[at : at+n : at+n], nil
}

// Done ends the use of what At returned; the slice must begin where At's began. Empty ones need no Done.
func (w *Windows) Done(b []byte) {
	if cap(b) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// At's offset and the mapping agree modulo the page size, so the page of b is the first of its window.
	v := w.byBase[uintptr(addressOf(b))&^uintptr(pageSize-1)]
	if v == nil || v.pins == 0 {
		panic("shm: Done without At")
	}
	if v.pins--; v.pins == 0 && v.stale {
		w.unmap(v)
	}
	w.evict()
}

// Drop forgets the window at off, because its block was given back to the system: it is unmapped as soon as nobody uses it.
func (w *Windows) Drop(off int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.byOff[pageFloor(off)]; v != nil {
		w.retire(v)
	}
}

// Close unmaps the windows, those in use when Done is called. At fails from now on. The second call does nothing.
func (w *Windows) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, v := range w.byOff {
		w.retire(v)
	}
}

func (w *Windows) retire(v *window) {
	delete(w.byOff, v.off)
	if v.stale = true; v.pins == 0 {
		w.unmap(v)
	}
}

func (w *Windows) unmap(v *window) {
	delete(w.byBase, uintptr(addressOf(v.bytes)))
	_ = w.s.Unmap(v.bytes)
}

// evict unmaps what has not been used for the longest time until at most max windows are idle. There are few: a scan will do.
func (w *Windows) evict() {
	for {
		idle := 0
		var oldest *window
		for _, v := range w.byOff {
			if v.pins > 0 {
				continue
			}
			idle++
			if oldest == nil || v.used < oldest.used {
				oldest = v
			}
		}
		if idle <= w.max {
			return
		}
		w.retire(oldest)
	}
}

func errClosed(what string) error { return fmt.Errorf("shm: %s: %w", what, os.ErrClosed) }
