package shm

import (
	"sync/atomic"
	"unsafe"
)

// Room returns how large the object's block is, bytes: what it says of its own size is to be checked against this.
func (o *Object) Room() uint64 { return o.room }

// depotOff is where the first page of the family's heap has the depot: capi/front/pipe.h.
const depotOff = 2048

// DepotLock is the word of the lock of the family's depot, where descriptors rest that are on their way: for [Heap.NewMutex] of the heap of
// [Family].
func (h *Heap) DepotLock() *uint32 { return (*uint32)(unsafe.Add(h.base, depotOff)) }

// BlockRoom returns how large the block at off is, if it is in use with this tag: for sizes that were read from shared memory.
func (h *Heap) BlockRoom(off uint64, tag uint32) (room uint64, ok bool) {
	if off%128 != 0 || h.Within(off, 1) == nil {
		return 0, false
	}
	state, room, _ := h.stateOf(off)
	return room, state != nil && tag >= 2 && atomic.LoadUint32(state) == tag
}
