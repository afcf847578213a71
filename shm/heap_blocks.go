package shm

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"
)

// Blocks of a heap; capi/front/heap.c is the same in C.

const (
	tableStep  = storageStep / sizeSlab
	adoptPause = adoptMillis * time.Millisecond
	adoptMost  = adoptMostMillis * time.Millisecond
)

// slabList is the slabs of one class that this process owns, and free blocks of them.
type slabList struct {
	slabs   []uint32
	current uint32   // small: where fresh blocks come from; 0: none
	cursor  uint32   // where the next look for free blocks begins
	skip    int      // so many slabs may be claimed before the next look
	over    uint32   // small: freed blocks that free had no room for since slabs were last given back
	free    []uint32 // offset / 128; what is not free any more is skipped when taken
}

// adopting is when slabs of the dead are looked for again.
type adopting struct {
	begun bool
	at    time.Time
	pause time.Duration
}

// pick is a free block of ours that was found; nobody else takes it while Heap.mu is held.
type pick struct {
	off, room uint64
	state     *uint32
	from      uint32
	run       uint32 // slabs of a new run; 0: no new run
	counted   bool   // leaves the sum of warm blocks when taken
	word      uint64 // of the slab, where another process may give it back meanwhile; 0: none may
}

// Alloc returns the offset of a block of at least size bytes (1 .. 16 GiB), a multiple of 128, its storage reserved, not zeroed, and how large it is. tag, from
// 2 to 2^31-1 ([Heap.Tag]), is what Free takes. Errors: [ErrNoMemory] (the machine, a limit, the heap or the address space),
// [ErrInvalid], [ErrCorrupt].
func (h *Heap) Alloc(size uint64, tag uint32) (off, room uint64, err error) {
	if size == 0 || tag < 2 || tag&giving != 0 {
		return 0, 0, fmt.Errorf("%w: a block of %d bytes, tag %d", ErrInvalid, size, tag)
	}
	if size > blockMost {
		return 0, 0, fmt.Errorf("%w: a block of %d bytes, %d is the most", ErrNoMemory, size, uint64(blockMost))
	}
	if _, err = h.Join(); err != nil {
		return 0, 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for range 100 {
		p, err := h.pick(size)
		if err != nil {
			return 0, 0, err
		}
		if h.commit(&p, tag) {
			return p.off, p.room, nil
		}
		h.abandon(&p)
	}
	return 0, 0, errHeapDamaged
}

var errHeapDamaged = fmt.Errorf("%w: the heap's blocks", ErrCorrupt)

// Free frees the block at off if it is in use with this tag, and reports whether it was. Any process may; off may be anything.
func (h *Heap) Free(off uint64, tag uint32) bool {
	state, room, word := h.stateOf(off)
	if state == nil || tag < 2 || tag&giving != 0 || atomic.LoadUint32(state) != tag {
		return false
	}
	kind, to := slabKind(word), uint32(1)
	if kind != slabSmall && atomic.LoadUint64(&h.head.warm)+room > warmMost {
		me := h.Me() // 0: somebody who sweeps before he is in
		if me != 0 && (room > warmMost/2 || !h.evict(room, me, slabOwner(word))) {
			to = giving | uint32(me)
		}
	}
	if !atomic.CompareAndSwapUint32(state, tag, to) {
		return false
	}
	switch {
	case to != 1 && kind == slabRun:
		h.giveBack(uint32(off >> slabShift))
		return true
	case to != 1:
		h.punch(off, room)
		atomic.StoreUint32(state, 0)
		return true
	case kind != slabSmall:
		atomic.AddUint64(&h.head.warm, room)
	}
	if kind != slabRun && slabOwner(word) == h.Me() {
		list := &h.large[slabClass(word)%largeClasses]
		if kind == slabSmall {
			list = &h.small[slabClass(word)%smallClasses]
		}
		h.mu.Lock()
		list.over++
		switch class := slabClass(word); {
		case len(list.free) < freeMost:
			list.free = append(list.free, uint32(off>>smallShift))
			list.over--
		case kind == slabSmall && list.over >= 2*smallBlocks(class):
			h.trimSmall(class, false)
		default:
			list.skip = 0
		}
		h.mu.Unlock()
	}
	return true
}

// evict gives back storage of free blocks, size bytes if it finds as much: not our own, and not of the owner of the block that is being freed. Else a
// process that has nothing to do any more would keep warm what those lack who work.
func (h *Heap) evict(size uint64, me, spared Owner) bool {
	found := uint64(0)
	top := h.top()
	for seen := uint32(0); seen < min(evictLooks, top-slabFirst) && found < size; seen++ {
		i := h.evictCursor.Add(1)
		if i < slabFirst || i >= top {
			i = slabFirst
			h.evictCursor.Store(i)
		}
		if word := h.slabWord(i); slabOwner(word) != me && slabOwner(word) != spared {
			found += h.evictSlab(i, word, me)
		}
	}
	return found >= size
}

// evictSlab gives back storage of the free blocks of a slab, whose word was word: how many bytes.
func (h *Heap) evictSlab(i uint32, word uint64, me Owner) (found uint64) {
	s := h.slab(i)
	switch class := slabClass(word); {
	case slabKind(word) == slabLarge && class < largeClasses:
		room := uint64(1) << (largeShift + class)
		for k := range uint32(16) >> class {
			if h.takeFree(i, k, word, 1, me) {
				h.warmSub(room)
				h.punch(uint64(i)<<slabShift+uint64(k)*room, room)
				atomic.StoreUint32(&s.state[k], 0)
				found += room
			}
		}
	case slabKind(word) == slabRun && h.takeFree(i, 0, word, 1, me):
		found = uint64(atomic.LoadUint32(&s.reserved)) << 12
		h.warmSub(found)
		h.giveBack(i)
	}
	return found
}

// Retag changes the tag of a block in use; false if it was not in use with from.
func (h *Heap) Retag(off uint64, from, to uint32) bool {
	state, _, _ := h.stateOf(off)
	return state != nil && from >= 2 && to >= 2 && (from|to)&giving == 0 && atomic.CompareAndSwapUint32(state, from, to)
}

// ---- slabs

func (h *Heap) slab(i uint32) *slab { return (*slab)(unsafe.Add(h.base, slabsOff+uintptr(i)*sizeSlab)) }

func (h *Heap) slabWord(i uint32) uint64 { return atomic.LoadUint64(&h.slab(i).word) }

func (h *Heap) slabCAS(i uint32, from, to uint64) bool {
	return atomic.CompareAndSwapUint64(&h.slab(i).word, from, to)
}

// top: slabs below this one may have been used, and may be touched.
func (h *Heap) top() uint32 {
	top := min(max(atomic.LoadUint32(&h.head.slabTop), slabFirst), h.slabs)
	if h.opened.Load() < uint64(top)<<slabShift && h.openSlabs(top) != nil {
		return uint32(h.opened.Load() >> slabShift)
	}
	return top
}

// openSlabs opens the slabs before end, and their entries in the table. Goroutines may do it at the
// same time.
func (h *Heap) openSlabs(end uint32) error {
	is := h.opened.Load()
	end = min((end+openStep-1)/openStep*openStep, h.slabs)
	to := uint64(end) << slabShift
	if to <= is {
		return nil
	}
	// The table in larger steps: most often this is open already.
	table, tableEnd := (is>>slabShift+tableStep-1)/tableStep, (uint64(end)+tableStep-1)/tableStep
	if tableEnd > table {
		if err := h.open(slabsOff+table*storageStep, (tableEnd-table)*storageStep); err != nil {
			return err
		}
	}
	if err := h.open(is, to-is); err != nil {
		return err
	}
	for is < to && !h.opened.CompareAndSwap(is, to) {
		is = h.opened.Load()
	}
	return nil
}

func smallBlocks(class uint32) uint32 { return slabSize >> (smallShift + class) }

// covered is how many blocks the array of states takes.
func covered(class uint32) uint32 {
	size := uint32(1) << (smallShift + class)
	return (smallBlocks(class)*4 + size - 1) / size
}

func (h *Heap) smallStates(i, class uint32) []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Add(h.base, uintptr(i)<<slabShift)), smallBlocks(class))
}

// stateOf finds the state of the block that begins at off, nil if there is none, and the block's room.
func (h *Heap) stateOf(off uint64) (state *uint32, room, word uint64) {
	n, at := off>>slabShift, off&(slabSize-1)
	if n < slabFirst || n >= uint64(h.top()) {
		return nil, 0, 0
	}
	i := uint32(n)
	s := h.slab(i)
	word = atomic.LoadUint64(&s.word)
	class := slabClass(word)
	switch slabKind(word) {
	case slabSmall:
		if class >= smallClasses {
			return nil, 0, 0
		}
		room = 1 << (smallShift + class)
		if at%room != 0 || at/room < uint64(covered(class)) {
			return nil, 0, 0
		}
		return &h.smallStates(i, class)[at/room], room, word
	case slabLarge:
		if class >= largeClasses {
			return nil, 0, 0
		}
		room = 1 << (largeShift + class)
		if at%room != 0 {
			return nil, 0, 0
		}
		return &s.state[at/room], room, word
	case slabRun:
		count := slabCount(word)
		room = uint64(atomic.LoadUint32(&s.reserved)) << 12
		if at != 0 || count == 0 || count > h.top()-i || room > uint64(count)<<slabShift {
			return nil, 0, 0
		}
		return &s.state[0], room, word
	}
	return nil, 0, 0
}

func (h *Heap) warmSub(size uint64) {
	for {
		is := atomic.LoadUint64(&h.head.warm)
		if atomic.CompareAndSwapUint64(&h.head.warm, is, is-min(is, size)) {
			return
		}
	}
}

func (h *Heap) reserve(off, size uint64) error {
	return h.seg.reserve(&h.head.budget, int64(off), int64(size))
}

func (h *Heap) punch(off, size uint64) { _ = h.seg.Punch(int64(off), int64(size)) }

// ready sees to it that the entries of the slabs before end have storage.
func (h *Heap) ready(end uint32) error {
	for h.slabsReady < end {
		if err := h.reserve(slabsOff+uint64(h.slabsReady)*sizeSlab, storageStep); err != nil {
			return err
		}
		h.slabsReady += tableStep
	}
	return nil
}

// lower makes a hint not larger than i.
func lower(hint *uint32, i uint32) {
	for {
		is := atomic.LoadUint32(hint)
		if i >= is || atomic.CompareAndSwapUint32(hint, is, i) {
			return
		}
	}
}

func raise(top *uint32, i uint32) {
	for {
		is := atomic.LoadUint32(top)
		if i <= is || atomic.CompareAndSwapUint32(top, is, i) {
			return
		}
	}
}

// release gives a slab back that is CLAIMED by us.
func (h *Heap) release(i uint32) {
	h.punch(uint64(i)<<slabShift, slabSize)
	atomic.StoreUint64(&h.slab(i).word, 0)
	lower(&h.head.slabHint, i)
}

// claim takes n slabs in a row. They are CLAIMED then, their fields 0, without storage.
func (h *Heap) claim(n uint32) (first uint32, err error) {
	mine := slabWordOf(slabClaimed, 0, 0, h.Me())
	for pass := range 2 {
		i := uint32(slabFirst)
		if hint := atomic.LoadUint32(&h.head.slabHint); pass == 0 && hint > slabFirst && hint <= h.slabs {
			i = hint
		}
	search:
		for n <= h.slabs && i <= h.slabs-n {
			top := h.top()
			for k := uint32(0); k < n && i+k < top; k++ {
				if h.slabWord(i+k) != 0 {
					i += k + 1
					continue search
				}
			}
			if err := h.openSlabs(i + n); err != nil {
				return 0, err
			}
			if err := h.ready(i + n); err != nil {
				return 0, err
			}
			raise(&h.head.slabTop, i+n)
			for k := range n {
				if !h.slabCAS(i+k, 0, mine) {
					for k > 0 {
						k--
						atomic.StoreUint64(&h.slab(i+k).word, 0)
					}
					i++
					continue search
				}
			}
			for k := range n {
				s := h.slab(i + k)
				s.reserved, s.fresh = 0, 0
				clear(s.state[:])
			}
			if n == 1 {
				atomic.StoreUint32(&h.head.slabHint, i+1)
			}
			return i, nil
		}
	}
	return 0, fmt.Errorf("%w: the heap has no %d MiB in a row", ErrNoMemory, n)
}

// giveBack gives a run back whose state says that we are the one to do it.
func (h *Heap) giveBack(first uint32) {
	word := h.slabWord(first)
	for k := slabCount(word); k > 1; {
		k--
		if k >= h.top()-first {
			continue
		}
		tail := h.slabWord(first + k)
		if slabKind(tail) == slabTail && slabCount(tail) == k && h.slabCAS(first+k, tail, slabWordOf(slabTail, 0, k, h.Me())) {
			h.release(first + k)
		}
	}
	// Its owner's successor may take it over at the same time.
	for ; slabKind(word) == slabRun; word = h.slabWord(first) {
		if h.slabCAS(first, word, slabWordOf(slabClaimed, 0, 0, h.Me())) {
			h.release(first)
			return
		}
	}
}

// takeFree makes us the one to give back the storage of a free block, whose state is from: 0 or 1,
// or that of a dead giver. word is what the slab's word was before: the state alone proves nothing
// about the slab. So the word is read again, and the state put back if the slab has changed hands.
func (h *Heap) takeFree(i, k uint32, word uint64, from uint32, me Owner) bool {
	state := &h.slab(i).state[k]
	if atomic.LoadUint32(state) != from || !atomic.CompareAndSwapUint32(state, from, giving|uint32(me)) {
		return false
	}
	if h.slabWord(i) == word {
		return true
	}
	atomic.CompareAndSwapUint32(state, giving|uint32(me), from)
	return false
}

// emptyLarge takes the storage of the free blocks of a slab of ours, and releases it if no block is
// in use: true. With mu held.
func (h *Heap) emptyLarge(i, class uint32) bool {
	me, size := h.Me(), uint64(1)<<(largeShift+class)
	var taken [16]bool
	used := false
	for k := range uint32(16) >> class {
		state := &h.slab(i).state[k]
		if taken[k] = atomic.CompareAndSwapUint32(state, 1, 0); taken[k] {
			h.warmSub(size)
		} else if atomic.LoadUint32(state) != 0 {
			used = true
		}
	}
	// All states are 0: only we could change that.
	if !used && h.slabCAS(i, slabWordOf(slabLarge, class, 0, me), slabWordOf(slabClaimed, 0, 0, me)) {
		h.release(i)
		return true
	}
	for k := range uint32(16) >> class {
		if taken[k] {
			h.punch(uint64(i)<<slabShift+uint64(k)*size, size)
		}
	}
	return false
}

// ---- slabs of the dead

func (h *Heap) largeUsed(i, class uint32) bool {
	for k := range uint32(16) >> class {
		if atomic.LoadUint32(&h.slab(i).state[k]) > 1 {
			return true
		}
	}
	return false
}

func (h *Heap) smallUsed(i, class uint32) bool {
	states := h.smallStates(i, class)
	for k := covered(class); k < min(atomic.LoadUint32(&h.slab(i).fresh), uint32(len(states))); k++ {
		if atomic.LoadUint32(&states[k]) > 1 {
			return true
		}
	}
	return false
}

// adopt takes over what the dead have left, and adds up what is warm. Returns how many slabs it got.
func (h *Heap) adopt(deep bool) (got int) {
	me := h.Me()
	verdicts := map[Owner]bool{}
	dead := func(o Owner) bool {
		if o == me {
			return false
		}
		v, ok := verdicts[o]
		if !ok {
			v = h.gone(o, deep)
			verdicts[o] = v
		}
		return v
	}
	var warm uint64
	for i := uint32(slabFirst); i < h.top(); i++ {
		word := h.slabWord(i)
		kind, class, count := slabKind(word), slabClass(word), slabCount(word)
		gone := kind != slabFree && dead(slabOwner(word))
		s := h.slab(i)
		drop := func() {
			if h.slabCAS(i, slabWordOf(kind, class, 0, me), slabWordOf(slabClaimed, 0, 0, me)) {
				h.release(i)
			}
		}
		switch kind {
		case slabClaimed:
			if gone && h.slabCAS(i, word, slabWordOf(slabClaimed, 0, 0, me)) {
				h.release(i)
				got++
			}
		case slabSmall:
			if !gone || class >= smallClasses || !h.slabCAS(i, word, slabWordOf(kind, class, 0, me)) {
				continue
			}
			got++
			if h.smallUsed(i, class) {
				h.small[class].slabs = append(h.small[class].slabs, i)
				h.small[class].skip = 0
			} else {
				drop()
			}
		case slabLarge:
			if class >= largeClasses {
				continue
			}
			ours := gone && h.slabCAS(i, word, slabWordOf(kind, class, 0, me))
			if ours {
				word = slabWordOf(kind, class, 0, me)
				got++
			}
			more := uint64(0)
			for k := range uint32(16) >> class {
				v := atomic.LoadUint32(&s.state[k])
				// Somebody who is no more was giving it back: it may have storage or not.
				if v&giving != 0 && dead(Owner(v&^giving)) && h.takeFree(i, k, word, v, me) {
					atomic.StoreUint32(&s.state[k], 0)
				}
				if v == 1 {
					more += 1 << (largeShift + class)
				}
			}
			if ours && !h.largeUsed(i, class) {
				if h.emptyLarge(i, class) {
					continue
				}
				more = 0
			}
			warm += more
			if ours {
				h.large[class].slabs = append(h.large[class].slabs, i)
				h.large[class].skip = 0
			}
		case slabRun:
			v := atomic.LoadUint32(&s.state[0])
			if (v&giving != 0 && dead(Owner(v&^giving))) || (v <= 1 && gone) {
				// Nobody allocates what a dead process owns, and a dead giver gives no more.
				if h.takeFree(i, 0, word, v, me) {
					h.giveBack(i)
					got += int(count)
				}
			} else if v == 1 {
				warm += uint64(atomic.LoadUint32(&s.reserved)) << 12
			}
		case slabTail:
			if !gone {
				continue
			}
			if count > 0 && count <= i && i-count >= slabFirst {
				if first := h.slabWord(i - count); slabKind(first) == slabRun && slabCount(first) > count {
					continue
				}
			}
			if h.slabCAS(i, word, slabWordOf(slabClaimed, 0, 0, me)) {
				h.release(i)
				got++
			}
		}
	}
	atomic.StoreUint64(&h.head.warm, warm)
	return got
}

// adoptNowAndThen: at the first need of this process, and after pauses that grow if nothing was found.
func (h *Heap) adoptNowAndThen() bool {
	a := &h.adopting
	if a.begun && time.Now().Before(a.at) {
		return false
	}
	got := h.adopt(false)
	if got > 0 || !a.begun {
		a.pause = adoptPause
	} else {
		a.pause = min(2*a.pause, adoptMost)
	}
	a.begun, a.at = true, time.Now().Add(a.pause)
	return got > 0
}

// ---- finding a block

// pop takes a free block from the list; what is there may be in use again, or its slab be another's.
func (h *Heap) pop(list *slabList, own uint64, p *pick) bool {
	for len(list.free) > 0 {
		last := len(list.free) - 1
		off := uint64(list.free[last]) << smallShift
		list.free = list.free[:last]
		state, room, word := h.stateOf(off)
		if state == nil || word != own {
			continue
		}
		if v := atomic.LoadUint32(state); v <= 1 {
			*p = pick{off: off, room: room, state: state, from: v}
			return true
		}
	}
	return false
}

func (l *slabList) drop(at int) {
	if l.current == l.slabs[at] {
		l.current = 0
	}
	last := len(l.slabs) - 1
	l.slabs[at] = l.slabs[last]
	l.slabs = l.slabs[:last]
}

// lookSmall collects free blocks that others have freed.
func (h *Heap) lookSmall(list *slabList, class uint32) {
	if list.skip > 0 {
		list.skip--
		return
	}
	own := slabWordOf(slabSmall, class, 0, h.Me())
	for all := len(list.slabs); all > 0 && len(list.slabs) > 0 && len(list.free) < freeMost/2; all-- {
		at := int(list.cursor) % len(list.slabs)
		i, had := list.slabs[at], len(list.free)
		if h.slabWord(i) != own {
			list.drop(at)
			continue
		}
		states := h.smallStates(i, class)
		fresh := min(atomic.LoadUint32(&h.slab(i).fresh), uint32(len(states)))
		k := covered(class)
		for ; k < fresh && len(list.free) < freeMost; k++ {
			if atomic.LoadUint32(&states[k]) <= 1 {
				list.free = append(list.free, uint32((uint64(i)<<slabShift+uint64(k)<<(smallShift+class))>>smallShift))
			}
		}
		// Enough others: one that is all free goes back.
		if had > 0 && i != list.current && k == fresh && uint32(len(list.free)-had) == fresh-covered(class) &&
			h.slabCAS(i, own, slabWordOf(slabClaimed, 0, 0, h.Me())) {
			list.free = list.free[:had]
			list.drop(at)
			h.release(i)
			continue
		}
		list.cursor = uint32(at) + 1
	}
	if len(list.free) == 0 {
		list.skip = len(list.slabs) / 8
	}
}

func (h *Heap) pickSmall(class uint32) (p pick, err error) {
	list := &h.small[class]
	own := slabWordOf(slabSmall, class, 0, h.Me())
	size := uint64(1) << (smallShift + class)
	for range rounds {
		if h.pop(list, own, &p) {
			return p, nil
		}
		for list.current != 0 && h.slabWord(list.current) == own {
			i := list.current
			s := h.slab(i)
			fresh := max(atomic.LoadUint32(&s.fresh), covered(class))
			if fresh >= smallBlocks(class) {
				break
			}
			have, need := uint64(atomic.LoadUint32(&s.reserved))<<12, uint64(fresh+1)*size
			if need > have {
				want := (need + storageStep - 1) / storageStep * storageStep
				if err := h.reserve(uint64(i)<<slabShift+have, want-have); err != nil {
					return p, err
				}
				s.reserved = uint32(want >> 12)
			}
			atomic.StoreUint32(&s.fresh, fresh+1)
			state := &h.smallStates(i, class)[fresh]
			if v := atomic.LoadUint32(state); v <= 1 {
				return pick{off: uint64(i)<<slabShift + uint64(fresh)*size, room: size, state: state, from: v}, nil
			}
		}
		list.current = 0
		if h.lookSmall(list, class); len(list.free) > 0 {
			continue
		}
		if h.adoptNowAndThen() {
			h.lookSmall(list, class)
		}
		if len(list.free) > 0 {
			continue
		}
		i, err := h.claim(1)
		if err != nil {
			return p, err
		}
		want := (uint64(smallBlocks(class))*4 + size + storageStep - 1) / storageStep * storageStep
		if err = h.reserve(uint64(i)<<slabShift, want); err != nil {
			h.release(i)
			return p, err
		}
		s := h.slab(i)
		s.reserved, s.fresh = uint32(want>>12), covered(class)
		clear(h.smallStates(i, class))
		atomic.StoreUint64(&s.word, own)
		list.slabs = append(list.slabs, i)
		list.current = i
	}
	return p, errHeapDamaged
}

// lookLarge collects free blocks: warm ones if there are any, or else cold ones.
func (h *Heap) lookLarge(list *slabList, class uint32) {
	if list.skip > 0 {
		list.skip--
		return
	}
	own := slabWordOf(slabLarge, class, 0, h.Me())
	var cold []uint32
	for all := len(list.slabs); all > 0 && len(list.slabs) > 0 && len(list.free) < freeMost/16; all-- {
		at := int(list.cursor) % len(list.slabs)
		i := list.slabs[at]
		if h.slabWord(i) != own {
			list.drop(at)
			continue
		}
		colds := 0
		for k := range uint32(16) >> class {
			at128 := uint32((uint64(i)<<slabShift + uint64(k)<<(largeShift+class)) >> smallShift)
			switch atomic.LoadUint32(&h.slab(i).state[k]) {
			case 1:
				list.free = append(list.free, at128)
			case 0:
				cold = append(cold, at128)
				colds++
			}
		}
		// All without storage, and not needed now: for whom it may concern.
		if colds == 16>>class && (len(list.free) > 0 || len(cold) > colds) && h.slabCAS(i, own, slabWordOf(slabClaimed, 0, 0, h.Me())) {
			cold = cold[:len(cold)-colds]
			list.drop(at)
			h.release(i)
			continue
		}
		list.cursor = uint32(at) + 1
	}
	if len(list.free) == 0 {
		list.free = append(list.free, cold[:min(len(cold), freeMost/16)]...)
	}
	if len(list.free) == 0 {
		list.skip = len(list.slabs) / 8
	}
}

func (h *Heap) prefault(off, size uint64) { h.seg.Prefault(h.mem[off : off+min(size, prefaultMost)]) }

func (h *Heap) pickLarge(class uint32) (p pick, err error) {
	list := &h.large[class]
	own := slabWordOf(slabLarge, class, 0, h.Me())
	size := uint64(1) << (largeShift + class)
	for range rounds {
		if h.pop(list, own, &p) {
			if p.counted = p.from == 1; p.counted {
				return p, nil
			}
			if err = h.reserve(p.off, size); err == nil {
				h.prefault(p.off, size) // one call instead of a fault per page
			}
			return p, err
		}
		if h.lookLarge(list, class); len(list.free) > 0 {
			continue
		}
		if h.adoptNowAndThen() {
			h.lookLarge(list, class)
		}
		if len(list.free) > 0 {
			continue
		}
		i, err := h.claim(1)
		if err != nil {
			return p, err
		}
		atomic.StoreUint64(&h.slab(i).word, own)
		list.slabs = append(list.slabs, i)
		for k := uint64(16) >> class; k > 0; {
			k--
			list.free = append(list.free, uint32((uint64(i)<<slabShift+k*size)>>smallShift))
		}
	}
	return p, errHeapDamaged
}

// warmRun finds a run of ours that is free and not much too large.
func (h *Heap) warmRun(need uint32, size uint64, p *pick) bool {
	list := &h.runs
	for at := 0; at < len(list.slabs); {
		i := list.slabs[at]
		word := h.slabWord(i)
		count := slabCount(word)
		if slabKind(word) != slabRun || slabOwner(word) != h.Me() || count == 0 || count > h.top()-i {
			list.drop(at)
			continue
		}
		at++
		s := h.slab(i)
		room := uint64(atomic.LoadUint32(&s.reserved)) << 12
		if atomic.LoadUint32(&s.state[0]) == 1 && count >= need && count <= 2*need && room >= size && room <= uint64(count)<<slabShift {
			*p = pick{off: uint64(i) << slabShift, room: room, state: &s.state[0], from: 1, counted: true, word: word}
			return true
		}
	}
	return false
}

func (h *Heap) pickRun(size uint64) (p pick, err error) {
	need := uint32((size + slabSize - 1) >> slabShift)
	if atomic.LoadUint64(&h.head.warm) >= size && h.warmRun(need, size, &p) {
		return p, nil
	}
	h.adoptNowAndThen()
	first, err := h.claim(need)
	if err != nil {
		return p, err
	}
	room := (size + storageStep - 1) / storageStep * storageStep
	p = pick{off: uint64(first) << slabShift, room: room, state: &h.slab(first).state[0], run: need}
	// That may take seconds, and the slabs are ours alone already: other goroutines need not wait.
	h.mu.Unlock()
	if err = h.reserve(p.off, room); err == nil {
		h.prefault(p.off, room)
	}
	h.mu.Lock()
	if err != nil {
		h.abandon(&p)
		return p, err
	}
	for k := uint32(1); k < need; k++ {
		atomic.StoreUint64(&h.slab(first+k).word, slabWordOf(slabTail, 0, k, h.Me()))
	}
	h.slab(first).reserved = uint32(room >> 12)
	return p, nil
}

// classFor is the class of a size.
func classFor(size uint64, shift int) (class uint32) {
	for uint64(1)<<(shift+int(class)) < size {
		class++
	}
	return class
}

func (h *Heap) pickOnce(size uint64) (pick, error) {
	switch {
	case size <= 1<<(smallShift+smallClasses-1):
		return h.pickSmall(classFor(size, smallShift))
	case size <= 1<<(largeShift+largeClasses-1):
		return h.pickLarge(classFor(size, largeShift))
	}
	return h.pickRun(size)
}

// pick finds a free block, with mu held, which it may give up for a while.
func (h *Heap) pick(size uint64) (pick, error) {
	p, err := h.pickOnce(size)
	if err == nil || !isNoMemory(err) {
		return p, err
	}
	// Short of something: what the dead hold, and what is kept for later.
	h.mu.Unlock()
	h.reap(heapMembers, true)
	h.mu.Lock()
	h.adopt(true)
	h.trim()
	return h.pickOnce(size)
}

// trimSmall gives back our slabs of a class that have no block in use. all: the one that new blocks come from too.
func (h *Heap) trimSmall(class uint32, all bool) {
	list := &h.small[class]
	list.skip, list.over = 0, 0
	own := slabWordOf(slabSmall, class, 0, h.Me())
	for at := len(list.slabs) - 1; at >= 0; at-- {
		i := list.slabs[at]
		if h.slabWord(i) == own && ((i == list.current && !all) || h.smallUsed(i, class)) {
			continue
		}
		list.drop(at)
		if h.slabCAS(i, own, slabWordOf(slabClaimed, 0, 0, h.Me())) {
			h.release(i)
		}
	}
}

// trim gives back what of ours is free.
func (h *Heap) trim() {
	me := h.Me()
	for class := range uint32(largeClasses) {
		list := &h.large[class]
		list.skip = 0
		own := slabWordOf(slabLarge, class, 0, me)
		for at := len(list.slabs) - 1; at >= 0; at-- {
			i := list.slabs[at]
			if h.slabWord(i) != own || h.emptyLarge(i, class) {
				list.drop(at)
			}
		}
	}
	for class := range uint32(smallClasses) {
		h.trimSmall(class, true)
	}
	for at := len(h.runs.slabs) - 1; at >= 0; at-- {
		i := h.runs.slabs[at]
		word := h.slabWord(i)
		if slabKind(word) != slabRun || slabOwner(word) != me {
			h.runs.drop(at)
		} else if h.takeFree(i, 0, word, 1, me) {
			h.warmSub(uint64(atomic.LoadUint32(&h.slab(i).reserved)) << 12)
			h.runs.drop(at)
			h.giveBack(i)
		}
	}
}

// commit makes the block used.
func (h *Heap) commit(p *pick, tag uint32) bool {
	if !atomic.CompareAndSwapUint32(p.state, p.from, tag) {
		return false
	}
	if p.word != 0 && h.slabWord(uint32(p.off>>slabShift)) != p.word {
		atomic.CompareAndSwapUint32(p.state, tag, p.from)
		return false
	}
	if p.counted {
		h.warmSub(p.room)
	}
	if p.run > 0 {
		first := uint32(p.off >> slabShift)
		atomic.StoreUint64(&h.slab(first).word, slabWordOf(slabRun, 0, p.run, h.Me()))
		h.runs.slabs = append(h.runs.slabs, first)
	}
	return true
}

// abandon gives back what was picked and is not to be used.
func (h *Heap) abandon(p *pick) {
	for k := p.run; k > 0; {
		k--
		h.release(uint32(p.off>>slabShift) + k)
	}
}

// InUse counts the blocks in use and adds up how large they are. It looks at the whole heap: for tests and reports.
func (h *Heap) InUse() (blocks int, bytes uint64) {
	count := func(state *uint32, size uint64) {
		if v := atomic.LoadUint32(state); v > 1 && v&giving == 0 {
			blocks++
			bytes += size
		}
	}
	for i := uint32(slabFirst); i < h.top(); i++ {
		word := h.slabWord(i)
		switch class := slabClass(word); {
		case slabKind(word) == slabSmall && class < smallClasses:
			states := h.smallStates(i, class)
			for k := covered(class); k < min(atomic.LoadUint32(&h.slab(i).fresh), uint32(len(states))); k++ {
				count(&states[k], 1<<(smallShift+class))
			}
		case slabKind(word) == slabLarge && class < largeClasses:
			for k := range uint32(16) >> class {
				count(&h.slab(i).state[k], 1<<(largeShift+class))
			}
		case slabKind(word) == slabRun:
			count(&h.slab(i).state[0], uint64(slabCount(word))<<slabShift)
		}
	}
	return blocks, bytes
}
