// Package subset has each construct that cgen translates. The test compiles its C, and compares what both compute.
package subset

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm/mem"
)

// Constants, one of them a sum.
const (
	least  = 4
	most   = 0x7fffffff // the largest
	Cells  = least * 2
	wide   = 1 << 40
	signed = int32(-3)

	step   = 64 << 10
	large  = 3 << 20    //c:type uint64_t
	factor = 0x80000001 //c:type uint64_t
	forGo  = 7          //c:go
)

// word is tag:32 | count:32.
type word uint64

func wordOf(tag, count uint32) word { return word(uint64(tag)<<32 | uint64(count)) }

// withNext adds one to the count, see [word].
func (w word) withNext() word { return wordOf(w.tag(), 0) | word(w.count()+1) }

//c:go
func (w word) onlyGo() uint32 { return forGo }

func (w word) tag() uint32   { return uint32(w >> 32) }
func (w word) count() uint32 { return uint32(w) }

// slot lies in shared memory.
//
//c:shared
type slot struct {
	word  uint64
	seq   uint32
	_     [4]byte
	cells [Cells]uint32 // eight
}

// view is local.
type view struct {
	slot  *slot
	walks uint32
	last  word
}

//c:extern hand_note
func (v *view) note(what string, value uint64) bool {
	v.walks += uint32(value) + uint32(len(what))
	return true
}

// load reads the word.
func (s *slot) load() word { return word(mem.Load64(&s.word)) }

// Fill writes cells, and returns their sum by a second result.
func (v *view) fill(from uint32, sum *uint64) bool {
	*sum = 0
	for i := range uint32(Cells) {
		mem.StoreRelaxed32(&v.slot.cells[i%Cells], from+i) // wraps
		*sum += uint64(from + i)
	}
	return v.note("filled", *sum)
}

// total adds the cells up, the odd ones twice.
func (v *view) total() uint64 {
	n := uint64(0)
	for i := uint32(0); i < Cells; i++ {
		value := mem.LoadRelaxed32(&v.slot.cells[i&7])
		if i%2 == 0 {
			n += uint64(value)
			continue
		}
		// An odd one.
		n += uint64(value) << 1
	}
	return n
}

// kind sorts numbers.
func kind(n uint32) uint32 {
	switch n {
	case 0:
		return 10
	case 1, 2: // small
		n += 100
	case 3:
		m := n * 2
		n = m + 1
	default:
		n &^= least
	}
	return n
}

func grade(a, b uint32) uint32 {
	r := uint32(0)
	switch {
	case a > b:
		r = 1
	case a == b, b == 7:
		r = 2
	default:
		r = 3
	}
	return r
}

// mix has operators whose precedence differs between the languages.
func mix(a, b uint64, c uint32) uint64 {
	x := a&b<<3 | a>>(c&63)
	x ^= a | b&^7
	x += (a + b) * 3 % 1000 / 7
	x -= uint64(c) << 5
	if a&b == 0 != (c&1 == 1) {
		x = ^x
	} else if int32(c-1000) >= 0 && (a < b || c > 5) {
		x++
	} else {
		x--
	}
	x &^= least
	x += uint64(c)*large + uint64(c)*factor + uint64(c&step)
	return x + wide + uint64(1)<<(c&31) + uint64(least<<(c&7))
}

// after compares two wrapping numbers.
func after(a, b uint32) bool { return int32(a-b) > 0 }

func lowest(a int32) bool { return a <= signed }

// bump moves the word on, and remembers it.
func (v *view) bump(tag uint32) word {
	for {
		old := v.slot.load()
		next := wordOf(tag, old.count()+1)
		if mem.CAS64(&v.slot.word, uint64(old), uint64(next)) {
			v.last = next
			return next
		}
	}
}

// at is a cell by its address.
func (v *view) at(i uint32) *uint32 {
	if i >= Cells {
		return nil
	}
	return (*uint32)(unsafe.Add(unsafe.Pointer(v.slot), i*4-0xfffffff0))
}

// copied returns a copy with another count of walks.
func (v *view) copied(walks uint32) view {
	c := *v
	c.walks = walks
	d := view{slot: c.slot, walks: c.walks + 1, last: c.last}
	var e view
	e = d
	return e
}

// search leaves two loops.
func search(n uint32) uint32 {
	found := uint32(0)
	for a := uint32(1); a < n; a++ {
		b := a
		for b < n {
			if a*b == n {
				found = a
				break
			}
			b++
		}
		if found != 0 {
			break
		}
	}
	return found
}
