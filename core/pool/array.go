package pool

import (
	"fmt"
	"math/bits"
)

// Array is a job over arrays of equal elements: the byte-level parallel for loop.
type Array struct {
	Fn      uint64
	In      []byte // N elements of InSize bytes
	InSize  int
	Out     []byte // N elements of OutSize bytes; result i, or what a failed task left, is copied to element i
	OutSize int
	N       uint64
	Chunk   uint64 // elements that go to a worker at a time; 0: the pool decides
	Ctx     []byte // every task sees these bytes
	Spans   bool   // workers understand spans (C)
	Quiet   bool   // Finish is told only of elements that are not OK
	// Finish, if not nil, is told the outcome of each element, in no order, with the pool's lock held.
	Finish func(i uint64, r *Result)

	skip bool // finish has nothing to do: the results were taken
}

const (
	spanBytes = 16 << 10 // of a record of a span, at most: a ring has room for several
	spanMost  = 1024     // elements
)

func (a *Array) inStride() int  { return (a.InSize + 7) &^ 7 }
func (a *Array) outStride() int { return (a.OutSize + 7) &^ 7 }

// spanMax is how many elements one record can hold.
func (a *Array) spanMax() uint64 {
	each := max(a.inStride(), sizeSpanOut+a.outStride())
	if !a.Spans || a.InSize > spanBytes || a.OutSize > spanBytes {
		return 1
	}
	return uint64(min((spanBytes-sizeSpan)/each, spanMost))
}

func (a *Array) spanSize(n uint32) int { return int(n) * a.inStride() }

// putSpan writes elements i to i + n - 1, each at a multiple of 8.
func (a *Array) putSpan(i uint64, n uint32, dst []byte) {
	stride := a.inStride()
	if stride == a.InSize {
		copy(dst, a.In[i*uint64(a.InSize):][:int(n)*a.InSize])
		return
	}
	for k := range uint64(n) {
		a.put(i+k, dst[k*uint64(stride):][:a.InSize])
	}
}

// copySpan takes the results of elements i to i + n - 1 at once, if all are whole.
func (a *Array) copySpan(i uint64, n uint32, heads, outs []byte) bool {
	stride := a.outStride()
	if stride != a.OutSize {
		return false
	}
	for k := range int(n) {
		if h := at[spanOut](heads[k*sizeSpanOut:]); h.status != 0 || int(h.size) != a.OutSize {
			return false
		}
	}
	copy(a.Out[i*uint64(a.OutSize):], outs[:int(n)*stride])
	return true
}

func (a *Array) size(uint64) int { return a.InSize }

func (a *Array) put(i uint64, dst []byte) {
	copy(dst, a.In[i*uint64(a.InSize):][:a.InSize])
}

func (a *Array) finish(i uint64, r *Result) {
	if a.skip {
		return
	}
	if (r.Outcome == OK || r.Outcome == Failed) && a.OutSize > 0 {
		copy(a.Out[i*uint64(a.OutSize):][:a.OutSize], r.Data)
	}
	if a.Finish != nil && !(a.Quiet && r.Outcome == OK) {
		a.Finish(i, r)
	}
}

// product reports whether n elements of a size are so long.
func product(length int, n uint64, size int) bool {
	if size < 0 {
		return false
	}
	high, low := bits.Mul64(n, uint64(size))
	return high == 0 && low == uint64(length)
}

// MapBytes runs an array job and waits for it. When the wait is interrupted by a signal, what has not started is Cancelled,
// what runs is Abandoned, and neither Out nor Finish is touched after the return. After another error no element has started,
// and Finish was not called.
func (p *Pool) MapBytes(a *Array) error {
	if int64(a.OutSize) >= outMaxDefault || !product(len(a.In), a.N, a.InSize) || !product(len(a.Out), a.N, a.OutSize) {
		return fmt.Errorf("%w: sizes of arrays", ErrInvalid)
	}
	if a.N == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	j := &job{work: a, n: a.N, fn: a.Fn, outSize: uint32(a.OutSize), chunk: a.Chunk, spanMax: a.spanMax()}
	if err := p.attachCtx(j, a.Ctx); err != nil {
		return err
	}
	if err := p.add(j); err != nil {
		return err
	}
	return p.finishOrAbandon(j)
}
