// Package mem is access to words of shared memory, with the memory order named: what the steps of objects are written with, of which C has
// the same functions (capi/front/mem.h; core/internal/cgen translates the calls).
//
// A word of shared memory is read once, by one of these, and its checked copy is used: another process may change it at any time.
//
// sync/atomic has only sequentially consistent operations, so here the weaker names mean that as well: the order that a name states is the
// least that a step needs, and what C asks of the processor.
package mem

import (
	"sync/atomic"
	"unsafe"
)

// Load32 reads a word, sequentially consistent.
func Load32(p *uint32) uint32 { return atomic.LoadUint32(p) }

// Load64 reads a word, sequentially consistent.
func Load64(p *uint64) uint64 { return atomic.LoadUint64(p) }

// LoadRelaxed32 reads a word whole, in no order: what only the holder of a lock writes, say.
func LoadRelaxed32(p *uint32) uint32 { return atomic.LoadUint32(p) }

// LoadRelaxed64 reads a word whole, in no order.
func LoadRelaxed64(p *uint64) uint64 { return atomic.LoadUint64(p) }

// Store32 writes a word, sequentially consistent.
func Store32(p *uint32, value uint32) { atomic.StoreUint32(p, value) }

// Store64 writes a word, sequentially consistent.
func Store64(p *uint64, value uint64) { atomic.StoreUint64(p, value) }

// StoreRelaxed32 writes a word whole, in no order.
func StoreRelaxed32(p *uint32, value uint32) { atomic.StoreUint32(p, value) }

// StoreRelaxed64 writes a word whole, in no order.
func StoreRelaxed64(p *uint64, value uint64) { atomic.StoreUint64(p, value) }

// StoreRelease64 writes a word after all that was written before: who reads it sees that.
func StoreRelease64(p *uint64, value uint64) { atomic.StoreUint64(p, value) }

// CAS32 writes to, if the word is from, and reports whether it was.
func CAS32(p *uint32, from, to uint32) bool { return atomic.CompareAndSwapUint32(p, from, to) }

// CAS64 writes to, if the word is from, and reports whether it was.
func CAS64(p *uint64, from, to uint64) bool { return atomic.CompareAndSwapUint64(p, from, to) }

// Swap64 writes a word and returns what it was.
func Swap64(p *uint64, value uint64) uint64 { return atomic.SwapUint64(p, value) }

// Add32 adds to a word and returns the sum.
func Add32(p *uint32, delta uint32) uint32 { return atomic.AddUint32(p, delta) }

// Zero clears size bytes that no other process can see yet.
func Zero(p unsafe.Pointer, size uint64) { clear(unsafe.Slice((*byte)(p), size)) }

// Copy copies size bytes.
func Copy(to, from unsafe.Pointer, size uint64) {
	copy(unsafe.Slice((*byte)(to), size), unsafe.Slice((*byte)(from), size))
}
