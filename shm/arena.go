package shm

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
)

const (
	blockMin  = 128 << 10
	warmLimit = 64 << 20
)

// Arena allocates blocks for what is too large for a ring, in one range of a sparse segment. One process allocates and frees; others
// are told offset and size, and read or write the block through [Windows]. Nothing of an arena's books lies in shared memory, so there is nothing
// to repair when a process dies. Its methods may be called from several goroutines at once.
//
// Blocks are powers of two from 128 KiB. First touch of fresh shared memory is 50 times slower than of warm memory, so up to
// 64 MiB of free blocks stay reserved and mapped for the next Alloc; what is more goes back to the system.
type Arena struct {
	s        *Segment
	off, end int64

	mu       sync.Mutex
	cold     [64][]int64      // free offsets without storage, by log2 of the size (buddies)
	warm     []*Block         // free, reserved and mapped: oldest first
	live     map[int64]*Block // allocated, by offset
	warmSize int64
	closed   bool
}

// Block is n bytes of an arena.
type Block struct {
	Off   int64  // in the file
	Bytes []byte // the n bytes that were asked for; the capacity is that of the block. Not zeroed
}

func (b *Block) size() int64 { return int64(cap(b.Bytes)) }

// NewArena returns an arena over size bytes of the segment from off, a multiple of the page size. Nothing else may use the range.
func NewArena(s *Segment, off, size int64) *Arena {
	a := &Arena{s: s, off: off, end: off + size, live: map[int64]*Block{}}
	// The largest blocks that fit, each at a multiple of its size.
	for at := int64(0); size-at >= blockMin; {
		order := bits.Len64(uint64(size-at)) - 1
		if at > 0 {
			order = min(order, bits.TrailingZeros64(uint64(at)))
		}
		a.cold[order] = append(a.cold[order], at)
		at += 1 << order
	}
	return a
}

// Alloc returns a block of n bytes, whose storage is reserved and mapped. Errors: [ErrInvalid] (n < 1), [ErrNoMemory] (the arena, the
// machine, a limit or the address space), [os.ErrClosed].
func (a *Arena) Alloc(n int64) (*Block, error) {
	if n < 1 {
		return nil, fmt.Errorf("%w: block of %d bytes", ErrInvalid, n)
	}
	if n > a.end-a.off {
		return nil, fmt.Errorf("%w: block of %d bytes, arena of %d", ErrNoMemory, n, a.end-a.off)
	}
	order := max(bits.Len64(uint64(n-1)), bits.Len64(blockMin-1))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, errClosed("arena")
	}
	for i := len(a.warm) - 1; i >= 0; i-- { // the latest used is the likeliest in the cache
		if b := a.warm[i]; b.size() == 1<<order {
			a.warm = slices.Delete(a.warm, i, i+1)
			a.warmSize -= b.size()
			return a.hand(b.Off, b.Bytes[:cap(b.Bytes)], n), nil
		}
	}
	b, err := a.fresh(order)
	if err != nil && len(a.warm) > 0 { // what is kept warm may be what is missing
		a.trim(0)
		b, err = a.fresh(order)
	}
	if err != nil {
		return nil, err
	}
	return a.hand(b.Off, b.Bytes, n), nil
}

// Free takes a block back. Nobody may touch its bytes any more, in no process. A block that is not allocated is ignored.
func (a *Arena) Free(b *Block) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b == nil || a.live[b.Off] != b {
		return
	}
	delete(a.live, b.Off)
	if b.size() > warmLimit {
		a.discard(b)
		return
	}
	a.warm = append(a.warm, b)
	a.warmSize += b.size()
	a.trim(warmLimit)
}

// Close gives everything back, blocks that are still allocated too. The second call does nothing.
func (a *Arena) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.closed = true
	a.trim(0)
	for _, b := range a.live {
		a.discard(b)
	}
	clear(a.live)
}

func (a *Arena) hand(off int64, whole []byte, n int64) *Block {
	b := &Block{Off: off, Bytes: whole[:n]}
	a.live[off] = b
	return b
}

// fresh takes a cold block, splitting a larger one if need be, and gives it storage.
func (a *Arena) fresh(order int) (*Block, error) {
	from := order
	for from < len(a.cold) && len(a.cold[from]) == 0 {
		from++
	}
	if from == len(a.cold) {
		return nil, fmt.Errorf("%w: no free block of %d bytes in the arena", ErrNoMemory, int64(1)<<order)
	}
	last := len(a.cold[from]) - 1
	at := a.cold[from][last]
	a.cold[from] = a.cold[from][:last]
	for from > order {
		from--
		a.cold[from] = append(a.cold[from], at+1<<from)
	}
	size := int64(1) << order
	err := a.s.Reserve(a.off+at, size)
	var b []byte
	if err == nil {
		b, err = a.s.Map(a.off+at, size)
	}
	if err != nil {
		_ = a.s.Punch(a.off+at, size)
		a.putCold(at, order)
		return nil, err
	}
	a.s.Prefault(b)
	return &Block{Off: a.off + at, Bytes: b}, nil
}

// trim discards warm blocks, the oldest first, until at most limit bytes are left.
func (a *Arena) trim(limit int64) {
	n := 0
	for ; a.warmSize > limit; n++ {
		a.warmSize -= a.warm[n].size()
		a.discard(a.warm[n])
	}
	a.warm = slices.Delete(a.warm, 0, n)
}

// discard gives the storage of a block back to the system and its range to the cold ones.
func (a *Arena) discard(b *Block) {
	size := b.size()
	_ = a.s.Unmap(b.Bytes)
	_ = a.s.Punch(b.Off, size)
	b.Bytes = nil
	a.putCold(b.Off-a.off, bits.TrailingZeros64(uint64(size)))
}

// putCold returns a range, merged with its buddy as long as that is free too.
func (a *Arena) putCold(at int64, order int) {
	for {
		buddy := slices.Index(a.cold[order], at^1<<order)
		if buddy < 0 {
			a.cold[order] = append(a.cold[order], at)
			return
		}
		list := a.cold[order]
		list[buddy] = list[len(list)-1]
		a.cold[order] = list[:len(list)-1]
		at &^= 1 << order
		order++
	}
}
