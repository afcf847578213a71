package pipe

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// What a pipe looks like in shared memory, for Go; capi/front/pipe.h says the same for C, with the algorithms, commit points and what a death
// leaves. tests/abi compares the two.

const (
	ringCap     = 65536
	recordHead  = 8
	inlineMost  = 16384
	leases      = 16
	flagDuplex  = 1
	lookMillis  = 4
	closeMillis = 100
	sliceMillis = 500
	depotOff    = 2048 // shm knows it: DepotLock
	wakeByte    = 'p'

	kindInline = 1
	kindBulk   = 2
	kindFD     = 3
	kindPad    = 0xffff

	sizePipe = uint64(unsafe.Sizeof(head{}))
	sizeBulk = uint64(unsafe.Sizeof(bulk{}))
	sizeName = uint64(unsafe.Sizeof(name{}))
)

type bell struct {
	seq     uint32
	waiters uint32
}

type lease struct {
	owner    uint32
	tag      uint32
	off      uint64
	end      uint64
	reserved uint64
}

type way struct {
	sendLock uint32
	ringTag  uint32
	ring     uint64
	tail     uint64
	seenHead uint64
	_        [128 - 32]byte

	bell      uint32
	watched   uint32
	look      uint32
	reserved0 uint32
	space     bell
	_         [128 - 24]byte

	recvLock uint32
	spare    uint32
	head     uint64
	_        [128 - 16]byte

	leases [leases]lease
	_      [128]byte
}

type head struct {
	object [16]byte
	inode  [2]uint64
	born   uint64
	_      [128 - 40]byte
	way    [2]way
}

type bulk struct {
	off      uint64
	size     uint64
	tag      uint32
	reserved uint32
}

// name is what a descriptor in the depot is called.
type name struct{ name [4]uint64 }

func (b *bell) chime() shm.Chime { return shm.NewChime(&b.seq, &b.waiters) }

// objectFlags is the word of flags of what every object begins with.
func (h *head) objectFlags() *uint32 { return (*uint32)(unsafe.Pointer(&h.object[4])) }
