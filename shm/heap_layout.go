package shm

import "unsafe"

// What a heap looks like, for Go; capi/front/heap.h says the same for C, and the rules. tests/abi compares the two.

const (
	heapMagic   = 0x3130504145485050 // "PPHEAP01"
	heapABI     = 2
	slabSize    = 1 << 20
	slabsMost   = 65536
	slabFirst   = 32
	membersOff  = 4096
	heapMembers = 4094
	slabsOff    = 1 << 20
	refsOff     = 16 << 20
	refsMost    = 1 << 21
	inFlight    = 0x7fffffff // no member has this owner, nor another that ends in these 12 bits: see [Owner.inFlight]
	warmMost    = 16 << 20

	slabFree    = 0
	slabClaimed = 1
	slabSmall   = 2
	slabLarge   = 3
	slabRun     = 4
	slabTail    = 5

	sizeHeapHead    = 4096
	sizeMembersHead = membersHead
	sizeSlab        = 128
	sizeObject      = 16
	sizeRef         = RefSize
)

// Kinds of objects.
const (
	KindNone      = 0
	KindLock      = 1
	KindSemaphore = 2
	KindCondition = 3
	KindEvent     = 4
	KindBarrier   = 5
	KindQueue     = 6
	KindPipe      = 7
	kindMost      = 16
)

type heapHead struct {
	magic     uint64 // stored last
	abi       uint32
	reserved0 uint32
	size      uint64
	id        [2]uint64
	root      uint64
	_         [128 - 48]byte
	warm      uint64
	slabHint  uint32
	slabTop   uint32
	refsTop   uint32
	refsHint  uint32
	nextTag   uint64
	_         [192 - 128 - 32]byte
	budget    uint64 // bytes of storage that may be taken before a process looks at the figures of the machine again
	_         [4096 - 192 - 8]byte
}

type slab struct {
	word     uint64 // kind << 56 | class << 48 | count << 32 | owner
	reserved uint32
	fresh    uint32
	_        [64 - 16]byte
	state    [16]uint32
}

// objectHead is what every object begins with.
type objectHead struct {
	kind       uint32
	flags      uint32
	generation uint32
	refs       uint32 // with generation one 64-bit word
}

// refBytes is a reference on its way.
type refBytes struct {
	heapID     uint64
	off        uint64
	kind       uint32
	generation uint32
	cell       uint32
	flight     uint32 // bits 12..30: those of the cell's owner. Bit 0: which end of a pipe
}

func slabWord(kind, class, count uint32, owner Owner) uint64 {
	return uint64(kind)<<56 | uint64(class)<<48 | uint64(count)<<32 | uint64(owner)
}

func kindIn(word uint64) uint32  { return uint32(word >> 56) }
func classIn(word uint64) uint32 { return uint32(word>>48) & 0xff }
func countIn(word uint64) uint32 { return uint32(word>>32) & 0xffff }
func ownerIn(word uint64) Owner  { return Owner(word) }

// counted is the word of generation and references.
func (o *objectHead) counted() *uint64 { return (*uint64)(unsafe.Pointer(&o.generation)) }
