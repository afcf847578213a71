package queue

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// What a queue looks like in shared memory. capi/front/queue_layout.gen.h is generated from this file; capi/front/queue.h has the
// algorithms, commit points and what a death leaves. The subset of Go is that of core/internal/cgen.
//
//c:go

// Sizes, in bytes and numbers.
const (
	chunkLeast = 4096
	classes    = 4
	chunkHead  = 16
	recordHead = 8
	inlineMost = 32768
	itemsMost  = 0x7fffffff // an unbounded queue holds at most so many messages
	tableCells = 126
	tablesMost = 65536
)

// Kinds of records.
const (
	kindInline = 1
	kindBulk   = 2
	kindNext   = 0xffff
)

// States of cells.
const (
	cellFree     = 0
	cellClaimed  = 1
	cellHeld     = 2
	cellLeased   = 3
	cellReturned = 4
	cellPutting  = 5
	cellTaking   = 6
	cellLeasing  = 7
	cellCopying  = 8
)

// Tunables.
const (
	sliceMillis  = 500 //c:extern PP__SLICE_MS
	sweepMillis  = 100 // a process looks for dead owners of cells at most this often
	leaseMillis  = 100 // sleepers look for them this often, while cells are in use
	getsPerSweep = 256 // getters look for them so often: a queue that is never empty has no sleepers
	// How long a call that does not wait waits for a process in the middle of another: it may have been
	// preempted, or be dead, which takes some milliseconds to prove.
	lockPatienceMillis  = 50
	closePatienceMillis = 5000

	lingerLooks = 16 // after a successful wait, look so many times for more messages
	lingerLeast = 2  // a look must find so many, or the lingering ends
	lingerRest  = 64 // waits without lingering after one whose first look found less
)

//c:extern pp__bell
//c:shared
type bell struct {
	seq     uint32
	waiters uint32
}

//c:name pp__queue
//c:methods pp__queue_
//c:shared
type head struct {
	object   [16]byte //c:type pp__object
	maxsize  uint64   // messages; 0: unbounded. Written once
	closed   uint32
	returned uint32
	notEmpty bell
	notFull  bell
	allDone  bell
	cells    uint64 // the first table
	spare    uint64 // a chunk
	first    uint64 // `next` before the first chunk
	_        [128 - 80]byte

	putLock   uint32 // these by who holds putLock
	reserved0 uint32
	tail      uint64
	tailChunk [2]uint64
	seenHead  uint64 // head when it was last looked at
	_         [128 - 40]byte

	getLock   uint32 // these by who holds getLock
	reserved1 uint32
	head      uint64
	headChunk [2]uint64
	old       uint64 // the chunk being left
	seenTail  uint64
	_         [128 - 48]byte

	done uint32
	_    [128 - 4]byte
}

//c:shared
type chunk struct {
	next uint64
	self uint64
}

//c:shared
type bulk struct {
	ref  uint64
	size uint64 // of the message, bytes
}

//c:shared
type cell struct {
	word  uint64
	ref   uint64
	size  uint64
	seq   uint32
	codec uint32
}

//c:shared
type table struct {
	next  uint64
	self  uint64
	_     [64 - 16]byte
	cells [tableCells]cell
}

// Sizes of these, in bytes.
const (
	sizeQueue = uint64(unsafe.Sizeof(head{}))
	sizeChunk = uint64(unsafe.Sizeof(chunk{}))
	sizeTable = uint64(unsafe.Sizeof(table{}))
	sizeBulk  = uint64(unsafe.Sizeof(bulk{}))
)

// A reference to a block: tag | class << 31 | off / 128 << 33. A chunk of a class has 4 KiB << 2 * class.
type ref uint64

func refOf(off uint64, class, tag uint32) ref {
	return ref(off/128<<33 | uint64(class)<<31 | uint64(tag))
}

func (r ref) off() uint64       { return uint64(r) >> 33 << 7 }
func (r ref) class() uint32     { return uint32(r>>31) & 3 }
func (r ref) tag() uint32       { return uint32(r) & 0x7fffffff }
func (r ref) chunkSize() uint32 { return classSize(r.class()) }

func classSize(class uint32) uint32 { return chunkLeast << (2 * class & 7) }

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

// A record's first eight bytes are one word: length:32, kind:16, codec:16.
type recordWord uint64

func recordWordOf(size, kind, codec uint32) recordWord {
	return recordWord(uint64(size) | uint64(kind)<<32 | uint64(codec)<<48)
}

func (w recordWord) size() uint32  { return uint32(w) }
func (w recordWord) kind() uint32  { return uint32(w>>32) & 0xffff }
func (w recordWord) codec() uint32 { return uint32(w >> 48) }

// padded is a length with what makes it a multiple of 8.
func padded(n uint64) uint64 { return (n + 7) &^ 7 }
