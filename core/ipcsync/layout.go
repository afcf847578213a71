package ipcsync

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// What locks and the others look like in shared memory. capi/front/sync_layout.gen.h is generated from this file (`make generate`);
// capi/front/sync.h has the algorithms, commit points and what a death leaves. The subset of Go is that of core/internal/cgen.
//
//c:go

// Words.
const (
	sleepers        = 0x80000000 //c:name PP__SYNC_SLEEPERS
	valueMost       = 0x7fffffff //c:name PP__SYNC_VALUE_MOST
	poisoned        = 0x7fffffff //c:name PP__LOCK_POISONED
	permitsMost     = 65535      //c:name PP__SYNC_PERMITS_MOST
	barrierMost     = 65535
	conditionCells  = 112
	conditionMore   = 4096       // bytes: 511 cells
	ticketMask      = 0x7fffffff //c:go
	notified        = 1          //c:go
	eventSet        = 1          //c:go
	eventSeq        = 0x7ffffffe //c:go
	generationsMask = 0x3fffffff //c:go
)

// Flags of objects.
const (
	flagRecursive = 1 //c:name PP__SYNC_RECURSIVE
	flagRecover   = 2 //c:name PP__SYNC_RECOVER
	flagAction    = 4 //c:name PP__SYNC_ACTION
)

// Phases of a barrier.
const (
	barrierFilling = 0
	barrierFull    = 1
	barrierBroken  = 2
)

// Tunables.
const (
	//c:type uint64_t
	sliceMinNS = 10_000_000 //c:name PP__SYNC_SLICE_MIN_NS
	//c:type uint64_t
	sliceMaxNS = 160_000_000 //c:name PP__SYNC_SLICE_MAX_NS
	patience   = 4           //c:name PP__SYNC_PATIENCE
	//c:type uint64_t
	patientNS    = 4_000_000 //c:name PP__SYNC_PATIENT_NS
	barrierSpare = 16        // cells beyond parties
	longLooks    = 4         //c:go
	moreMost     = 4096      //c:go
)

//c:extern pp__object
//c:shared
type objectHead struct {
	kind       uint32
	flags      uint32
	generation uint32
	refs       uint32
}

//c:name pp__lock
//c:shared
type lockHead struct {
	object objectHead
	word   uint64 // thread << 32 | sleepers << 31 | owner
	turn   uint64
	count  uint32 // levels, RLock and Lock: the holder's
	_      [128 - 36]byte
}

//c:name pp__semaphore
//c:shared
type semaphoreHead struct {
	object      objectHead
	word        uint64 // most << 32 | sleepers << 31 | value
	turn        uint64
	bellSeq     uint32 // flagRecover
	bellWaiters uint32
	_           [128 - 40]byte
	// flagRecover: cells [most]uint32
}

//c:name pp__condition
//c:shared
type conditionHead struct {
	object  objectHead
	more    uint64 // offset of the next block of cells, 0: none
	tickets uint32
	_       [128 - 28]byte
	cells   [conditionCells]uint64 // owner << 32 | ticket << 1 | notified
}

//c:name pp__condition_more
//c:shared
type moreCells struct {
	more  uint64
	cells [(conditionMore - 8) / 8]uint64
}

//c:name pp__event
//c:shared
type eventHead struct {
	object objectHead
	word   uint32 // sleepers << 31 | seq << 1 | set
	_      [128 - 20]byte
}

//c:name pp__barrier
//c:shared
type barrierHead struct {
	object     objectHead
	word       uint64 // history:16 << 48 | arrived:16 << 32 | generation:30 << 2 | phase
	parties    uint32
	cellsCount uint32 // parties + 16
	_          [128 - 32]byte
	// cells [cellsCount]uint64: owner << 32 | generation
}

// Sizes of these, in bytes.
//
//c:go
const (
	sizeLock      = uint64(unsafe.Sizeof(lockHead{}))      //c:go
	sizeSemaphore = uint64(unsafe.Sizeof(semaphoreHead{})) //c:go
	sizeCondition = uint64(unsafe.Sizeof(conditionHead{})) //c:go
	sizeMore      = uint64(unsafe.Sizeof(moreCells{}))     //c:go
	sizeEvent     = uint64(unsafe.Sizeof(eventHead{}))     //c:go
	sizeBarrier   = uint64(unsafe.Sizeof(barrierHead{}))   //c:go
)

// low is the half of a word that is slept on.
//
//c:go
func low(word *uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(word)) // little-endian, as all systems with heaps
}

//c:go
func ownerOf(cell uint64) shm.Owner { return shm.Owner(cell >> 32) }
