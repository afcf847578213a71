package shm

import "unsafe"

// What a heap looks like in shared memory, and the tunables of both halves. capi/front/heap_layout.gen.h is generated from this file
// (`make generate`); capi/front/heap.h has the rules. The subset of Go is that of core/internal/cgen.
//
//c:go

// Where things lie in the file. heapMagic is "PPHEAP01".
const (
	heapMagic   = 0x3130504145485050
	heapABI     = 2
	slabShift   = 20
	slabSize    = 1 << 20 //c:type uint64_t
	slabsMost   = 65536   // 64 GiB of address space in the file; storage only for what is used
	slabFirst   = 32
	membersOff  = 4096
	heapMembers = 4094     //c:name PP__MEMBERS
	slabsOff    = 1 << 20  //c:type uint64_t
	refsOff     = 16 << 20 //c:type uint64_t
	refsMost    = 1 << 21
)

// Kinds of slabs.
const (
	slabFree    = 0
	slabClaimed = 1
	slabSmall   = 2
	slabLarge   = 3
	slabRun     = 4
	slabTail    = 5
)

// Blocks.
const (
	smallShift   = 7 // blocks of 128 << class bytes
	smallClasses = 9
	largeShift   = 16 // blocks of 64 KiB << class
	largeClasses = 4
	giving       = 1 << 31  // state of a block: | owner
	blockMost    = 16 << 30 //c:type uint64_t
	storageStep  = 64 << 10 // the page table's granularity is at most this on the systems that we know
)

// Owners: slot + 1 in the low bits, generation above them. Bit 31 is never set.
const (
	ownerSlotBits = 12
	ownerSlot     = 1<<ownerSlotBits - 1
	// No member has this owner, nor another that ends in these 12 bits: their slot does not exist.
	inFlight = 0x7fffffff
)

// The word of a member: what it is | generation << 2 | id << 21 | process id << 42, see [Members].
const (
	memberTaken    = 1
	memberByStart  = 1
	memberByPidfd  = 3
	memberKinds    = 3
	memberGenShift = 2
	memberGenBits  = 19
	memberGenMask  = (1<<memberGenBits - 1) << memberGenShift //c:type uint64_t
	memberIDShift  = memberGenShift + memberGenBits
	memberIDBits   = 21
	memberIDMask   = 1<<memberIDBits - 1 //c:type uint64_t
	memberPIDShift = memberIDShift + memberIDBits
	memberPIDBits  = 64 - memberPIDShift
)

// Tunables.
const (
	warmMost     = 16 << 20 //c:type uint64_t
	prefaultMost = 16 << 20 //c:type uint64_t
	openStep     = 8        // slabs that are opened together
	evictLooks   = 64
	freeMost     = 1024 // cached free blocks of a class
	rounds       = 8    // of looking for a block; a found one is taken only by somebody who writes what is ours alone

	adoptMillis     = 200 // a process looks for slabs of the dead after so long, then twice as long
	adoptMostMillis = 3200

	lockSpins           = 40
	lockSliceMinMillis  = 1 // a waiter for a lock looks so soon whether its owner lives, then twice as late
	lockSliceMostMillis = 160
)

const (
	sizeHeapHead    = 4096
	sizeMembersHead = 64
	sizeSlab        = 128
	sizeObject      = 16
	sizeRef         = RefSize //c:go
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
	kindMost      = 16 //c:name PP__KINDS
)

//c:shared
type heapHead struct {
	magic     uint64 // stored last
	abi       uint32
	reserved0 uint32
	size      uint64    // of the file, bytes
	id        [2]uint64 // random: which heap this is
	root      uint64    // named heaps: offset of the one object, stored once; 0 before
	_         [128 - 48]byte

	warm     uint64 // bytes of free blocks that have storage, about
	slabHint uint32 // where to look for a free slab first
	slabTop  uint32 // no slab from here on was ever claimed
	refsTop  uint32 // no cell from here on was ever used
	refsHint uint32
	nextTag  uint64 // for tags of blocks and generations of objects
	_        [192 - 128 - 32]byte

	budget uint64 // bytes of storage that may be taken before a process looks at the figures of the machine again
	_      [4096 - 192 - 8]byte
}

//c:name pp__members_head
//c:shared
type membersHeader struct {
	space uint64 // the pid namespace
	id    uint64
	_     [64 - 16]byte
}

//c:shared
type slab struct {
	word     uint64
	reserved uint32 // owner: bytes with storage / 4096
	fresh    uint32 // owner: small slabs: blocks from this index on were never handed out
	_        [64 - 16]byte
	state    [16]uint32
}

// objectHead is what every object begins with.
//
//c:name pp__object
//c:shared
type objectHead struct {
	kind       uint32 // PP__KIND_
	flags      uint32 // of the kind
	generation uint32 // the block's tag too; tells it from an object that had its place before
	refs       uint32 // with generation one 64-bit word
}

// refBytes is a reference on its way.
//
//c:name pp__ref
//c:shared
type refBytes struct {
	heapID     uint64
	off        uint64
	kind       uint32
	generation uint32
	cell       uint32
	flight     uint32 // bits 12..30: those of the cell's owner. Bit 0: which end of a pipe
}

// The word of a slab: kind << 56 | class << 48 | count << 32 | owner. count: slabs of a run.

func slabWordOf(kind, class, count uint32, owner Owner) uint64 {
	return uint64(kind)<<56 | uint64(class)<<48 | uint64(count)<<32 | uint64(owner)
}

func slabKind(word uint64) uint32  { return uint32(word >> 56) }
func slabClass(word uint64) uint32 { return uint32(word>>48) & 0xff }
func slabCount(word uint64) uint32 { return uint32(word>>32) & 0xffff }
func slabOwner(word uint64) Owner  { return Owner(word) }

// ownerIndex is the index of an owner's slot.
func ownerIndex(owner Owner) uint32 { return uint32(owner)&ownerSlot - 1 }

// memberOwner is the owner that the member in slot i is.
func memberOwner(word uint64, i uint32) Owner {
	return Owner(word&memberGenMask>>memberGenShift<<ownerSlotBits) | Owner(i+1)
}

func memberID(word uint64) uint64  { return word >> memberIDShift & memberIDMask }
func memberPID(word uint64) uint32 { return uint32(word >> memberPIDShift) }

// memberWordOf is the word of a process, but for the generation.
func memberWordOf(pid uint32, id uint64, kind uint32) uint64 {
	return uint64(pid)<<memberPIDShift | id<<memberIDShift | uint64(kind)
}

// memberNext is the generation after that of a word, in its place.
func memberNext(word uint64) uint64 { return (word + 1<<memberGenShift) & memberGenMask }

// counted is the word of generation and references.
//
//c:go
func (o *objectHead) counted() *uint64 { return (*uint64)(unsafe.Pointer(&o.generation)) }
