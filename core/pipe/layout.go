package pipe

import (
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// What a pipe looks like in shared memory. capi/front/pipe_layout.gen.h is generated from this file (`make generate`);
// capi/front/pipe.h has the algorithms, commit points and what a death leaves. The subset of Go is that of core/internal/cgen.
//
//c:go

const (
	ringCap    = 65536 //c:name PP__PIPE_CAP
	recordHead = 8
	inlineMost = 16384
	leases     = 16
	flagDuplex = 1    //c:name PP__PIPE_DUPLEX
	wakeByte   = 'p'  //c:name PP__PIPE_BYTE
	depotOff   = 2048 //c:name PP__DEPOT_OFF
)

// Tunables.
const (
	lookMillis  = 4   //c:name PP__PIPE_LOOK_MS
	closeMillis = 100 //c:name PP__PIPE_CLOSE_MS
	sliceMillis = 500 //c:extern PP__SLICE_MS
)

// Kinds of records.
const (
	kindInline = 1      //c:name PP__PIPE_INLINE
	kindBulk   = 2      //c:name PP__PIPE_BULK
	kindFD     = 3      //c:name PP__PIPE_FD
	kindPad    = 0xffff //c:name PP__PIPE_PAD
)

//c:extern pp__bell
//c:shared
type bell struct {
	seq     uint32
	waiters uint32
}

//c:shared
type lease struct {
	owner    uint32
	tag      uint32
	off      uint64
	end      uint64
	reserved uint64
}

// way is one direction.
//
//c:shared
type way struct {
	sendLock uint32 // these by who holds sendLock
	ringTag  uint32
	ring     uint64 // 0: nobody has sent yet
	tail     uint64
	seenHead uint64 // head when it was last looked at
	_        [128 - 32]byte

	bell      uint32 // these by both
	watched   uint32
	look      uint32
	reserved0 uint32
	space     bell // senders sleep
	_         [128 - 24]byte

	recvLock uint32 // these by who holds recvLock
	spare    uint32
	head     uint64
	_        [128 - 16]byte

	leases [leases]lease
	_      [128]byte
}

//c:name pp__pipe
//c:shared
type head struct {
	object [16]byte  //c:type pp__object
	inode  [2]uint64 // of the sockets
	born   uint64    // when it was made, in the unit of /proc/PID/stat field 22; 0: not known
	_      [128 - 40]byte
	way    [2]way
}

// bulk begins the payload of a bulk record.
//
//c:shared
type bulk struct {
	off      uint64
	size     uint64 // of the message, bytes
	tag      uint32
	reserved uint32
}

// name is what a descriptor in the depot is called: the payload of a record with a descriptor.
//
//c:name pp__pipe_fd
//c:shared
type name struct {
	name [4]uint64
}

// Sizes of these, in bytes.
const (
	sizePipe = uint64(unsafe.Sizeof(head{}))
	sizeBulk = uint64(unsafe.Sizeof(bulk{}))
	sizeName = uint64(unsafe.Sizeof(name{}))
)

//c:go
func (b *bell) chime() shm.Chime { return shm.NewChime(&b.seq, &b.waiters) }

// objectFlags is the word of flags of what every object begins with.
//
//c:go
func (h *head) objectFlags() *uint32 { return (*uint32)(unsafe.Pointer(&h.object[4])) }
