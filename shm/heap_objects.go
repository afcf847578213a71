package shm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Object is this process's reference to an object in a heap: a block that begins with a kind, a generation and a count of references. It is
// there as long as any process has a reference, or one is on its way; whoever drops the last destroys it.
type Object struct {
	heap       *Heap
	off, room  uint64
	cell       uint32
	kind       uint32
	generation uint32
	dropped    atomic.Bool
}

// RefSize is how many bytes a reference takes on its way.
const RefSize = 32

// kinds is what the packages in this program that bring kinds of objects have told.
var kinds struct {
	sync.RWMutex
	of [kindMost]struct {
		size    uint64
		destroy func(h *Heap, off uint64)
	}
}

// RegisterKind tells the least size of objects of a kind, and what frees the rest of one whose last reference was dropped; its own block is
// freed by the caller. For the init function of a package that brings a kind: references to objects of other kinds that the dead have held are left
// to programs that know them.
func RegisterKind(kind uint32, size uint64, destroy func(h *Heap, off uint64)) {
	kinds.Lock()
	defer kinds.Unlock()
	kinds.of[kind].size, kinds.of[kind].destroy = size, destroy
}

func kindOf(kind uint32) (size uint64, destroy func(*Heap, uint64)) {
	kinds.RLock()
	defer kinds.RUnlock()
	if kind >= kindMost {
		return 0, nil
	}
	return kinds.of[kind].size, kinds.of[kind].destroy
}

// Heap returns the heap that the object is in.
func (o *Object) Heap() *Heap { return o.heap }

// Off returns where it is.
func (o *Object) Off() uint64 { return o.off }

// Pointer returns the address of the object, which is as large as RegisterKind said, or as NewObject asked for.
func (o *Object) Pointer() unsafe.Pointer { return unsafe.Add(o.heap.base, o.off) }

// ---- references

func (h *Heap) cell(i uint32) *uint64 { return (*uint64)(unsafe.Add(h.base, refsOff+uintptr(i)*8)) }

func cellOf(owner Owner, off uint64) uint64 { return uint64(owner)<<32 | off>>7 }

// refsTop: cells below this one may have been used, and may be touched.
func (h *Heap) refsTop() uint32 {
	top := min(atomic.LoadUint32(&h.head.refsTop), refsMost)
	if h.openRefs(top) != nil {
		return h.refsOpened.Load()
	}
	return top
}

func (h *Heap) openRefs(end uint32) error {
	is := h.refsOpened.Load()
	if end <= is {
		return nil
	}
	end = (end + storageStep/8 - 1) / (storageStep / 8) * (storageStep / 8)
	if err := h.open(refsOff+uint64(is)*8, uint64(end-is)*8); err != nil {
		return err
	}
	raiseAtomic(&h.refsOpened, end)
	return nil
}

func (h *Heap) takeBelow(from, top uint32, value uint64) uint32 {
	for i := from; i < top; i++ {
		if atomic.LoadUint64(h.cell(i)) == 0 && atomic.CompareAndSwapUint64(h.cell(i), 0, value) {
			atomic.StoreUint32(&h.head.refsHint, i+1)
			return i
		}
	}
	return 0
}

// takeCell writes a cell: its number, 0 if there is none.
func (h *Heap) takeCell(owner Owner, off uint64) uint32 {
	value := cellOf(owner, off)
	top := h.refsTop()
	if i := h.takeBelow(max(atomic.LoadUint32(&h.head.refsHint), 1), top, value); i != 0 {
		return i
	}
	for top < refsMost {
		at := max(top, 1)
		if at >= h.refsReady.Load() { // two goroutines may do it at once
			have := at / (storageStep / 8) * (storageStep / 8)
			if h.openRefs(have+storageStep/8) != nil || h.reserve(refsOff+uint64(have)*8, storageStep) != nil {
				return 0
			}
			raiseAtomic(&h.refsReady, have+storageStep/8)
		}
		atomic.CompareAndSwapUint32(&h.head.refsTop, top, at+1)
		top = h.refsTop()
		if i := h.takeBelow(at, top, value); i != 0 {
			return i
		}
	}
	return h.takeBelow(1, top, value)
}

func raiseAtomic(v *atomic.Uint32, to uint32) {
	for is := v.Load(); is < to && !v.CompareAndSwap(is, to); is = v.Load() {
	}
}

func (h *Heap) clearCell(i uint32, value uint64) bool {
	if i == 0 || i >= h.refsTop() || !atomic.CompareAndSwapUint64(h.cell(i), value, 0) {
		return false
	}
	lower(&h.head.refsHint, i)
	return true
}

// objectAt finds an object that is alive, as far as that can be told without a reference.
func (h *Heap) objectAt(off uint64) (o *objectHead, generation uint32, room uint64) {
	if off%128 != 0 {
		return nil, 0, 0
	}
	state, room, _ := h.stateOf(off)
	p := h.Within(off, sizeObject)
	if state == nil || p == nil || room < sizeObject || !h.within(off, room) {
		return nil, 0, 0
	}
	o = (*objectHead)(p)
	generation = atomic.LoadUint32(&o.generation)
	if generation < 2 || generation&giving != 0 || atomic.LoadUint32(state) != generation {
		return nil, 0, 0
	}
	return o, generation, room
}

// addRef takes a reference unless the object is gone: generation and count are one word, so nothing else that has come to lie there is changed.
func (o *objectHead) addRef(generation uint32) bool {
	for {
		is := atomic.LoadUint64(o.counted())
		if uint32(is) != generation || is>>32 == 0 || is>>32 == 1<<32-1 {
			return false
		}
		if atomic.CompareAndSwapUint64(o.counted(), is, is+1<<32) {
			return true
		}
	}
}

// dropRef drops a reference that the caller had, and the object with the last one. generation 0: any.
func (h *Heap) dropRef(off uint64, generation uint32) {
	o, is, room := h.objectAt(off)
	if o == nil || (generation != 0 && is != generation) {
		return
	}
	for {
		word := atomic.LoadUint64(o.counted())
		if uint32(word) != is || word>>32 == 0 {
			return
		}
		if atomic.CompareAndSwapUint64(o.counted(), word, word-1<<32) {
			if word>>32 != 1 {
				return
			}
			break
		}
	}
	h.empty(o, off, room)
	h.Free(off, is)
}

// empty frees what an object has that nobody refers to any more. It may run again for the same object.
func (h *Heap) empty(o *objectHead, off, room uint64) {
	if size, destroy := kindOf(atomic.LoadUint32(&o.kind)); destroy != nil && size <= room {
		destroy(h, off)
	}
}

// dropCell drops the reference that a cell of ours stands for. The last one's cell stays until the object is empty: if we die on the way, who sweeps behind us
// goes on. The block itself is freed after that, because a cell without its object may be anything's. (drop_reference in objects.c)
func (h *Heap) dropCell(cell uint32, value uint64, generation uint32) {
	off := (value & (1<<32 - 1)) << 7
	if cell == 0 || cell >= h.refsTop() || atomic.LoadUint64(h.cell(cell)) != value {
		return
	}
	o, is, room := h.objectAt(off)
	if o == nil || (generation != 0 && is != generation) {
		h.clearCell(cell, value)
		return
	}
	for {
		word := atomic.LoadUint64(o.counted())
		switch {
		case uint32(word) != is:
			h.clearCell(cell, value)
			return
		case word>>32 > 1:
			// Others have it too: the two steps are as close as can be, for who dies between them keeps the object for ever.
			if h.clearCell(cell, value) {
				h.dropRef(off, is)
			}
			return
		case word>>32 == 1 && !atomic.CompareAndSwapUint64(o.counted(), word, uint64(is)):
			continue
		}
		// 0 before: whose cell this was died here.
		h.empty(o, off, room)
		if h.clearCell(cell, value) {
			h.Free(off, is)
		}
		return
	}
}

// takeOver makes the cell of somebody who is no more, or of a message, ours, and drops the reference.
func (h *Heap) takeOver(cell uint32, value uint64, generation uint32) {
	off, me := (value&(1<<32-1))<<7, h.Me()
	if me == 0 { // not a member yet
		if h.clearCell(cell, value) {
			h.dropRef(off, generation)
		}
	} else if ours := cellOf(me, off); cell != 0 && cell < h.refsTop() && atomic.CompareAndSwapUint64(h.cell(cell), value, ours) {
		h.dropCell(cell, ours, generation)
	}
}

// sweep drops the references of a dead owner, and of those that are in the table no more.
func (h *Heap) sweep(dead Owner) {
	for i := uint32(1); i < h.refsTop(); i++ {
		value := atomic.LoadUint64(h.cell(i))
		owner, off := Owner(value>>32), (value&(1<<32-1))<<7
		if value == 0 || owner.inFlight() || (owner != dead && h.current(owner)) {
			continue
		}
		// What is behind it can only be freed by a program that knows the kind.
		if o, _, _ := h.objectAt(off); o != nil {
			if _, destroy := kindOf(atomic.LoadUint32(&o.kind)); destroy == nil {
				continue
			}
		}
		h.takeOver(i, value, 0)
	}
}

// tidy drops what the dead hold: little at a time.
func (h *Heap) tidy() {
	now := time.Now().UnixNano()
	if at := h.reapAt.Load(); now >= at && h.reapAt.CompareAndSwap(at, now+int64(time.Second)) {
		h.reap(16, false)
	}
}

// NewObject makes an object of size bytes, zeroed behind its first 16, and returns the first reference to it. Errors: [ErrNoMemory],
// [ErrInvalid], [ErrCorrupt].
func (h *Heap) NewObject(kind uint32, size uint64) (*Object, error) {
	if size < sizeObject || kind == KindNone || kind >= kindMost {
		return nil, fmt.Errorf("%w: an object of kind %d, %d bytes", ErrInvalid, kind, size)
	}
	me, err := h.Join()
	if err != nil {
		return nil, err
	}
	h.tidy()
	generation := h.Tag()
	h.mu.Lock()
	defer h.mu.Unlock()
	for range 100 { // again if somebody else gives back what was free
		p, err := h.pick(size)
		if err != nil {
			return nil, err
		}
		// The block is free still: who dies before the commit leaves a cell that means nothing.
		clear(h.mem[p.off : p.off+size])
		*(*objectHead)(unsafe.Add(h.base, p.off)) = objectHead{kind: kind, generation: generation, refs: 1}
		cell := h.takeCell(me, p.off)
		if cell != 0 && h.commit(&p, generation) {
			h.users.Add(1)
			return &Object{heap: h, off: p.off, room: p.room, cell: cell, kind: kind, generation: generation}, nil
		}
		h.clearCell(cell, cellOf(me, p.off))
		h.abandon(&p)
		if cell == 0 {
			return nil, fmt.Errorf("%w: all cells for references are taken", ErrNoMemory)
		}
	}
	return nil, errHeapDamaged
}

// ObjectAt returns a reference to an object that another process has made; off comes from outside and is checked. generation 0: any.
// Errors: [ErrCorrupt], [ErrGone], [ErrNoMemory].
func (h *Heap) ObjectAt(off uint64, kind, generation uint32) (*Object, error) {
	return h.attach(off, kind, generation, 0, 0)
}

// attach with a cell that may be ours to take over, with its reference, if it has that owner; 0: none.
func (h *Heap) attach(off uint64, kind, generation, flying uint32, owner Owner) (*Object, error) {
	me, err := h.Join()
	if err != nil {
		return nil, err
	}
	if kind == KindNone || kind >= kindMost || off%128 != 0 || h.Within(off, sizeObject) == nil {
		return nil, fmt.Errorf("%w: no object can be at offset %d", ErrCorrupt, off)
	}
	head, is, room := h.objectAt(off)
	if head == nil || (generation != 0 && is != generation) {
		if generation != 0 {
			return nil, ErrGone
		}
		return nil, fmt.Errorf("%w: no object is at offset %d", ErrCorrupt, off)
	}
	if size, _ := kindOf(kind); atomic.LoadUint32(&head.kind) != kind || room < size {
		return nil, fmt.Errorf("%w: an object of another kind is at offset %d", ErrCorrupt, off)
	}
	h.tidy()
	o := &Object{heap: h, off: off, room: room, kind: kind, generation: is}
	if flying > 0 && flying < h.refsTop() && atomic.CompareAndSwapUint64(h.cell(flying), cellOf(owner, off), cellOf(me, off)) {
		o.cell = flying
		h.users.Add(1)
		return o, nil
	}
	if !head.addRef(is) {
		return nil, ErrGone
	}
	if o.cell = h.takeCell(me, off); o.cell == 0 {
		h.dropRef(off, is)
		return nil, fmt.Errorf("%w: all cells for references are taken", ErrNoMemory)
	}
	h.users.Add(1)
	return o, nil
}

// Drop gives the reference up, and the object with it if it was the last. Nobody may use it here any more. The second call does nothing.
func (o *Object) Drop() {
	if !o.dropped.CompareAndSwap(false, true) {
		return
	}
	o.heap.dropCell(o.cell, cellOf(o.heap.Me(), o.off), o.generation)
	_ = o.heap.leave()
}

// Keep counts one reference more that no process holds: the object stays as long as the heap. Take it back with Unkeep.
func (o *Object) Keep() bool { return o.head().addRef(o.generation) }

// Unkeep takes back what Keep has done.
func (o *Object) Unkeep() { o.heap.dropRef(o.off, o.generation) }

func (o *Object) head() *objectHead { return (*objectHead)(o.Pointer()) }

// Send returns a reference that is on its way: [RefSize] bytes without any address, that mean the same in every process of the family, C and Python too
// (pp_ref_import). The object lives until somebody has received it, whatever happens to this process. Errors: [ErrGone], [ErrNoMemory].
func (o *Object) Send() ([]byte, error) {
	if !o.head().addRef(o.generation) {
		return nil, ErrGone
	}
	flight := o.heap.Tag() << 12 & inFlight
	cell := o.heap.takeCell(Owner(flight|0xfff), o.off)
	if cell == 0 {
		o.heap.dropRef(o.off, o.generation)
		return nil, fmt.Errorf("%w: all cells for references are taken", ErrNoMemory)
	}
	ref := refBytes{heapID: o.heap.id, off: o.off, kind: o.kind, generation: o.generation, cell: cell, flight: flight}
	return unsafe.Slice((*byte)(unsafe.Pointer(&ref)), RefSize), nil
}

func parseRef(data []byte) (r refBytes, err error) {
	if len(data) != RefSize {
		return r, fmt.Errorf("%w: a reference of %d bytes", ErrInvalid, len(data))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), RefSize), data)
	return r, nil
}

// Receive returns an object of the kind whose reference was sent here; another may have received it before. Errors: [ErrInvalid] (no reference, of
// another kind, or of another family), [ErrGone], [ErrCorrupt], [ErrNoMemory].
func Receive(data []byte, kind uint32) (*Object, error) {
	r, err := parseRef(data)
	if err != nil {
		return nil, err
	}
	if r.kind != kind || r.generation == 0 {
		return nil, fmt.Errorf("%w: a reference to an object of kind %d, not %d", ErrInvalid, r.kind, kind)
	}
	h := heapByID(r.heapID)
	if h == nil {
		if _, err = Family(); err != nil { // which a process without objects has not mapped yet
			return nil, err
		}
		if h = heapByID(r.heapID); h == nil {
			return nil, fmt.Errorf("%w: the object belongs to another family of processes", ErrInvalid)
		}
	}
	defer func() { _ = h.leave() }()
	return h.attach(r.off, kind, r.generation, r.cell, r.owner())
}

// Forget takes back a reference that nobody will receive.
func Forget(data []byte) {
	if r, err := parseRef(data); err == nil {
		if h := heapByID(r.heapID); h != nil {
			h.takeOver(r.cell, cellOf(r.owner(), r.off), r.generation)
			_ = h.leave()
		}
	}
}

// inFlight reports whether a cell with this owner belongs to a reference on its way.
func (o Owner) inFlight() bool { return o&0x80000fff == 0xfff }

// owner is that of the cell of a reference on its way.
func (r *refBytes) owner() Owner { return Owner(r.flight&inFlight | 0xfff) }

// descriptors takes back the name of a descriptor that is on its way, or the descriptor of a
// reference to an end of a pipe: package pipe's.
var descriptors atomic.Pointer[func(ref []byte)]

// RegisterDescriptors is for the init function of package pipe.
func RegisterDescriptors(forget func(ref []byte)) { descriptors.Store(&forget) }

// ForgetIn takes back the references, and the descriptors by their names, in the bytes of a message
// that nobody will read. To do so again has no effect.
func (h *Heap) ForgetIn(data []byte) {
	id := binary.NativeEndian.AppendUint64(nil, h.id)
	for {
		at := bytes.Index(data, id)
		if at < 0 || len(data)-at < RefSize {
			return
		}
		ref := bytes.Clone(data[at : at+RefSize])
		data = data[at+len(id):]
		if r, err := parseRef(ref); err == nil {
			if forget := descriptors.Load(); forget != nil && (r.kind == KindPipe || r.off>>32 == math.MaxUint32) {
				(*forget)(ref)
			}
			Forget(ref)
		}
	}
}

// ForgetInBlock is ForgetIn for a message in a block, unless that is smaller than size or has another
// tag.
func (h *Heap) ForgetInBlock(off uint64, tag uint32, size uint64) {
	if room, ok := h.BlockRoom(off, tag); ok && size <= room {
		if data, ok := h.At(off, size); ok {
			h.ForgetIn(data)
		}
	}
}

// ForgetIn takes back every reference to an object of the family, and every descriptor on its way,
// whose bytes are contained in a message that nobody will read.
func ForgetIn(data []byte) {
	if h := loadedFamily(); h != nil && len(data) >= RefSize {
		h.ForgetIn(data)
	}
}

// heapByID returns a heap of this process, which stays until leave.
func heapByID(id uint64) *Heap {
	heaps.Lock()
	defer heaps.Unlock()
	for _, h := range heaps.byID[id] {
		if h.retain() {
			return h
		}
	}
	return nil
}
