package ipcsync

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// What locks and the others look like in shared memory, for Go; capi/front/sync.h says the same for C, with the algorithms, commit points and what
// a death leaves. tests/abi compares the two.

const (
	sliceMinNS      = 10_000_000
	sliceMaxNS      = 160_000_000
	patience        = 4
	patientNS       = 4_000_000
	sleepers        = 0x80000000
	valueMost       = 0x7fffffff
	poisoned        = 0x7fffffff // the word of a lock whose holder has died; no process has this owner
	permitsMost     = 65535
	barrierMost     = 65535
	conditionCells  = 112
	conditionMore   = 4096
	flagRecursive   = 1
	flagRecover     = 2
	flagAction      = 4
	barrierFilling  = 0
	barrierFull     = 1
	barrierBroken   = 2
	sizeLock        = uint64(unsafe.Sizeof(lockHead{}))
	sizeSemaphore   = uint64(unsafe.Sizeof(semaphoreHead{}))
	sizeCondition   = uint64(unsafe.Sizeof(conditionHead{}))
	sizeMore        = uint64(unsafe.Sizeof(moreCells{}))
	sizeEvent       = uint64(unsafe.Sizeof(eventHead{}))
	sizeBarrier     = uint64(unsafe.Sizeof(barrierHead{}))
	barrierSpare    = 16 // cells beyond parties
	longLooks       = 4  // at holders of permits, each time
	moreMost        = 4096
	ticketMask      = 0x7fffffff
	notified        = 1
	eventSet        = 1
	eventSeq        = 0x7ffffffe
	generationsMask = 0x3fffffff
)

type objectHead struct {
	kind       uint32
	flags      uint32
	generation uint32
	refs       uint32
}

type lockHead struct {
	object objectHead
	word   uint64 // thread << 32 | sleepers << 31 | owner
	turn   uint64
	count  uint32
	_      [128 - 36]byte
}

type semaphoreHead struct {
	object      objectHead
	word        uint64 // most << 32 | sleepers << 31 | value
	turn        uint64
	bellSeq     uint32
	bellWaiters uint32
	_           [128 - 40]byte
	// flagRecover: cells [most]uint32
}

type conditionHead struct {
	object  objectHead
	more    uint64
	tickets uint32
	_       [128 - 28]byte
	cells   [conditionCells]uint64 // owner << 32 | ticket << 1 | notified
}

type moreCells struct {
	more  uint64
	cells [(conditionMore - 8) / 8]uint64
}

type eventHead struct {
	object objectHead
	word   uint32 // sleepers << 31 | seq << 1 | set
	_      [128 - 20]byte
}

type barrierHead struct {
	object     objectHead
	word       uint64 // history:16 << 48 | arrived:16 << 32 | generation:30 << 2 | phase
	parties    uint32
	cellsCount uint32
	_          [128 - 32]byte
	// cells [cellsCount]uint64: owner << 32 | generation
}

// low is the half of a word that is slept on.
func low(word *uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(word)) // little-endian, as all systems with heaps
}

func ownerOf(cell uint64) shm.Owner { return shm.Owner(cell >> 32) }
