package queue

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// The layout of a queue, for Go; capi/front/queue.h says the same for C, with the algorithms, commit points and what a death leaves. tests/abi
// compares the two.

const (
	chunkLeast  = 4096
	classes     = 4
	chunkHead   = 16
	recordHead  = 8
	inlineMost  = 32768
	itemsMost   = 0x7fffffff
	tableCells  = 126
	tablesMost  = 65536
	sliceMillis = 500

	kindInline = 1
	kindBulk   = 2
	kindNext   = 0xffff

	cellFree     = 0
	cellClaimed  = 1
	cellHeld     = 2
	cellLeased   = 3
	cellReturned = 4
	cellPutting  = 5
	cellTaking   = 6
	cellLeasing  = 7
	cellCopying  = 8

	sizeQueue = uint64(unsafe.Sizeof(head{}))
	sizeChunk = uint64(unsafe.Sizeof(chunk{}))
	sizeTable = uint64(unsafe.Sizeof(table{}))
	sizeBulk  = uint64(unsafe.Sizeof(bulk{}))
)

type bell struct {
	seq     uint32
	waiters uint32
}

func (b *bell) chime() shm.Chime { return shm.NewChime(&b.seq, &b.waiters) }

type head struct {
	object   [16]byte
	maxsize  uint64
	closed   uint32
	returned uint32
	notEmpty bell
	notFull  bell
	allDone  bell
	cells    uint64
	spare    uint64
	first    uint64
	_        [128 - 80]byte

	putLock   uint32
	reserved0 uint32
	tail      uint64
	tailChunk [2]uint64
	seenHead  uint64
	_         [128 - 40]byte

	getLock   uint32
	reserved1 uint32
	head      uint64
	headChunk [2]uint64
	old       uint64
	seenTail  uint64
	_         [128 - 48]byte

	done uint32
	_    [128 - 4]byte
}

type chunk struct {
	next uint64
	self uint64
}

type bulk struct {
	ref  uint64
	size uint64
}

type cell struct {
	word  uint64
	ref   uint64
	size  uint64
	seq   uint32
	codec uint32
}

type table struct {
	next  uint64
	self  uint64
	_     [64 - 16]byte
	cells [tableCells]cell
}

// A reference to a block: tag | class << 31 | off / 128 << 33.
type ref uint64

func refOf(off uint64, class, tag uint32) ref {
	return ref(off/128<<33 | uint64(class)<<31 | uint64(tag))
}

func (r ref) off() uint64       { return uint64(r) >> 33 << 7 }
func (r ref) class() uint32     { return uint32(r>>31) & 3 }
func (r ref) tag() uint32       { return uint32(r) & 0x7fffffff }
func (r ref) chunkSize() uint32 { return chunkLeast << (2 * r.class()) }

// A position: items:32 | crossings:16 | offset in the chunk / 8:16.
type position uint64

func positionOf(items, crossings, offset uint32) position {
	return position(uint64(items)<<32 | uint64(crossings&0xffff)<<16 | uint64(offset/8))
}

func (p position) items() uint32     { return uint32(p >> 32) }
func (p position) crossings() uint32 { return uint32(p>>16) & 0xffff }
func (p position) offset() uint32    { return uint32(p&0xffff) * 8 }

// The word of a cell: owner << 32 | state << 24 | generation:24.
type cellWord uint64

func cellWordOf(owner shm.Owner, state, generation uint32) cellWord {
	return cellWord(uint64(owner)<<32 | uint64(state)<<24 | uint64(generation&0xffffff))
}

func (w cellWord) owner() shm.Owner   { return shm.Owner(w >> 32) }
func (w cellWord) state() uint32      { return uint32(w>>24) & 0xff }
func (w cellWord) generation() uint32 { return uint32(w) & 0xffffff }

// with returns the word with another owner and state.
func (w cellWord) with(owner shm.Owner, state uint32) cellWord {
	return cellWordOf(owner, state, w.generation())
}
