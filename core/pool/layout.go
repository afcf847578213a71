package pool

import (
	"math"
	"sync/atomic"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// The layout of a pool's shared memory. capi/front/lane.h describes it and is the other half of the contract;
// tests/abi compares every number and offset here with that header.
const (
	magic       = 0x31304c4f4f505050 // "PPPOOL01"
	abiVersion  = 2
	boardSize   = 65536
	laneHead    = 8192
	maxLanes    = 1152
	maxModules  = 112
	maxSlots    = 512
	sliceMillis = 500
	ringLeast   = 64 << 10
	ringMost    = 1 << 20

	kindTask       = 1
	kindResult     = 2
	kindReady      = 3
	kindInitFailed = 4

	flagBulk  = 1
	flagRange = 2
	flagSpan  = 4

	// resultHead.status, besides 0 and the task's own error: PP_ERR_ codes.
	statusNoMemory = -3
	statusNotFound = -13
	statusTooBig   = -15

	taskReady   = 0
	taskTaken   = 1
	taskRevoked = 2

	bellSleeps = 1
	bellLooks  = 2

	laneFree    = 0
	laneOpen    = 1
	laneClosing = 2

	sizeTaskHead   = 48
	sizeResultHead = 24
	sizeBulkRef    = 24
	sizeTaskRange  = 40
	sizeSpan       = 24
	sizeSpanOut    = 16

	// outMaxDefault in taskHead.outSize means: as much as board.outMax says.
	outMaxDefault = 0xffffffff
)

// bell is an eventcount: see BELLS in lane.h.
type bell struct {
	seq     atomic.Uint32
	waiters atomic.Uint32
}

type module struct {
	buildID     [32]byte
	buildIDSize uint32
	_           uint32
	_           uint64
	path        [464]byte
}

// board is what all processes of a pool share. Workers write only bells and ready bits; the parent believes nothing else of it.
type board struct {
	magic      uint64
	abi        uint32
	lanes      uint32
	laneOff    uint64
	laneSize   uint64
	ringCap    uint64
	taskOff    uint64
	taskSize   uint64
	resultOff  uint64
	resultSize uint64
	initOff    uint64
	initSize   uint64
	initFn     uint64
	outMax     uint64
	parentID   uint64
	parentPID  int32
	_          uint32
	_          [256 - 120]byte
	fore       bell
	_          [128 - 8]byte
	back       bell
	_          [128 - 8]byte
	ready      [maxLanes / 64]atomic.Uint64
	_          [8192 - 512 - maxLanes/8]byte
	modules    [maxModules]module
}

// laneHeader begins a lane. Each field has one writer: P the parent, W the worker.
type laneHeader struct {
	state      atomic.Uint32 // P
	generation atomic.Uint32 // P
	_          [120]byte
	workerPID  atomic.Uint32 // W
	_          [124]byte
	taskTail   uint64 // P
	_          [120]byte
	taskHead   uint64 // W
	_          [120]byte
	taskBell   bell // W sleeps
	_          [120]byte
	resultTail uint64 // W
	_          [120]byte
	resultHead uint64 // P
	_          [120]byte
	spaceBell  bell // W sleeps
	_          [120]byte
	cancel     atomic.Uint64 // P; W sleeps on its low half
	_          [120]byte
	_          [4096 - 1152]byte
	slots      [maxSlots]atomic.Uint32 // W publishes, P releases
	_          [4096 - 4*maxSlots]byte
}

// taskHead begins the payload of a task record.
type taskHead struct {
	number   uint64
	fn       uint64
	state    atomic.Uint32
	outSize  uint32
	ctxOff   uint64
	ctxSize  uint64
	deadline uint64 // monotonic clock, ns; 0: none
}

// resultHead begins the payload of a result record.
type resultHead struct {
	number uint64
	status int32
	code   int32
	runNS  uint64
}

// bulkRef stands in place of bytes that lie in an arena block.
type bulkRef struct {
	off  uint64
	size uint64
	slot uint32
	_    uint32
}

// taskRange is the bytes of a task with flagRange.
type taskRange struct {
	begin  uint64
	end    uint64
	off    uint64 // of the shared block in the file
	size   uint64 // 0: there is none
	offset uint64 // in the block, of what the task is given
}

// span begins the bytes of a task with flagSpan: see SPANS in lane.h.
type span struct {
	claim    atomic.Uint64
	resultAt uint64
	count    uint32
	inSize   uint32
}

// spanOut is the outcome of an element of a span.
type spanOut struct {
	status int32
	code   int32
	size   uint32
	_      uint32
}

// at sees the bytes at the start of b as a T. b is shared memory, 8-aligned, at least as long as T.
func at[T any](b []byte) *T {
	if len(b) < int(unsafe.Sizeof(*new(T))) {
		panic("pool: view beyond its memory")
	}
	return (*T)(unsafe.Pointer(unsafe.SliceData(b)))
}

// ring wakes everybody who sleeps on the bell, and reports whether there may be somebody; it costs one load if nobody does. The
// ringer takes the flag down, so that of a burst of rings only the first makes a system call.
func (b *bell) ring() bool {
	if b.waiters.Load() == 0 || b.waiters.Swap(0) == 0 {
		return false
	}
	b.ringAlways()
	return true
}

// ringAlways wakes without looking whether somebody sleeps.
func (b *bell) ringAlways() {
	b.seq.Add(1)
	shm.FutexWake(b.addr(), math.MaxInt32)
}

// addr is the word to sleep on.
func (b *bell) addr() *uint32 { return (*uint32)(unsafe.Pointer(&b.seq)) }

// enter announces a sleeper and returns the sequence number to sleep on. The caller looks again before it sleeps. The number is read
// first: a ring between the two takes the flag down, and must be seen as one that has come since.
func (b *bell) enter() uint32 {
	seq := b.seq.Load()
	b.waiters.Store(bellSleeps)
	return seq
}

// look says that the caller is awake and will look again, and needs no ring. It returns the sequence number as enter does, which is to
// follow before a sleep.
func (b *bell) look() uint32 {
	b.waiters.Store(bellLooks)
	return b.seq.Load()
}

// leave is for bells with one sleeper: it is up.
func (b *bell) leave() {
	if b.waiters.Load() != 0 {
		b.waiters.Store(0)
	}
}
