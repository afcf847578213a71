package ipcsync

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// Barrier is where parties wait for each other: all go once all have come, as often as they like. One that gives up, dies or aborts breaks it for all, until
// Reset. The methods may be called from several goroutines at once.
type Barrier struct {
	base
	// Action is run by one of the parties once all have come, and before they go; if it fails, the barrier breaks. Only of a barrier that was made with one; set it after
	// UnmarshalBinary: functions do not travel. nil does nothing.
	Action func() error
}

// NewBarrier makes a barrier for 1 to 65535 parties; with an action, unless that is nil. h and errors as for [NewSemaphore].
func NewBarrier(h *shm.Heap, parties int, action func() error) (*Barrier, error) {
	if parties < 1 || parties > barrierMost {
		return nil, fmt.Errorf("ipcsync: %w: a barrier of %d parties", shm.ErrInvalid, parties)
	}
	b, flags, cells := &Barrier{Action: action}, uint32(0), uint32(parties+barrierSpare)
	if action != nil {
		flags = flagAction
	}
	err := b.make(h, shm.KindBarrier, sizeBarrier+8*uint64(cells), flags, func(p unsafe.Pointer) {
		head := (*barrierHead)(p)
		head.parties, head.cellsCount = uint32(parties), cells
	})
	if err != nil {
		return nil, err
	}
	b.s.words = []*uint32{low(&b.s.barrier().word)}
	return b, nil
}

// UnmarshalBinary receives a reference, as [Lock.UnmarshalBinary] does.
func (b *Barrier) UnmarshalBinary(data []byte) error {
	if err := b.receive(data, shm.KindBarrier, 0, 0); err != nil {
		return err
	}
	b.s.words = []*uint32{low(&b.s.barrier().word)}
	return nil
}

func (s *shared) barrier() *barrierHead { return (*barrierHead)(s.object.Pointer()) }

// barrierState is the word of a barrier.
type barrierState struct{ generation, phase, arrived, history uint32 }

func stateOf(word uint64) barrierState {
	return barrierState{uint32(word) >> 2, uint32(word & 3), uint32(word >> 32 & 0xffff), uint32(word >> 48)}
}

func (s barrierState) word() uint64 {
	return uint64(s.history&0xffff)<<48 | uint64(s.arrived)<<32 | uint64(s.generation<<2|s.phase)
}

// next is the state after this generation has ended; how: 1 broken.
func (s barrierState) next(how uint32) barrierState {
	return barrierState{(s.generation + 1) & generationsMask, barrierFilling, 0, s.history<<1 | how}
}

// move changes the word, and wakes all who wait.
func (h *barrierHead) move(from uint64, to barrierState) bool {
	if !atomic.CompareAndSwapUint64(&h.word, from, to.word()) {
		return false
	}
	shm.FutexWake(low(&h.word), math.MaxInt32)
	return true
}

func (h *barrierHead) broken(v uint64) bool {
	to := stateOf(v)
	to.phase = barrierBroken
	return h.move(v, to)
}

// barrierCall is a barrier during a call: its numbers as they were read once, and checked. Others can write to the memory that they come from at any time.
type barrierCall struct {
	cells   []uint64
	parties uint32
	action  bool
}

// readBarrier reads and checks the barrier.
func (s *shared) readBarrier() (barrierCall, error) {
	h := s.barrier()
	parties, n := atomic.LoadUint32(&h.parties), atomic.LoadUint32(&h.cellsCount)
	if parties == 0 || parties > barrierMost || n < parties || n > barrierMost+barrierSpare || sizeBarrier+8*uint64(n) > s.object.Room() {
		return barrierCall{}, s.corrupt("barrier", uint64(n)<<32|uint64(parties))
	}
	cells := unsafe.Slice((*uint64)(unsafe.Add(unsafe.Pointer(h), sizeBarrier)), n)
	return barrierCall{cells, parties, atomic.LoadUint32(&h.object.flags)&flagAction != 0}, nil
}

// Wait waits until all parties have come, and returns which this one was: 0 came first. The end of ctx breaks the barrier, unless all have come by then. Errors: [ErrBroken], the
// context's, the action's (at who ran it), [ErrClosed], [shm.ErrCorrupt], [shm.ErrNoMemory].
func (b *Barrier) Wait(ctx context.Context) (index int, err error) {
	s, err := b.enter()
	if err != nil {
		return 0, err
	}
	defer s.leave()
	if _, err = s.heap.Join(); err != nil {
		return 0, fmt.Errorf("ipcsync: %w", err)
	}
	g, err := s.readBarrier()
	if err != nil {
		return 0, err
	}
	s.object.Released()
	at, err := s.arrive(ctx, g)
	s.object.Acquired()
	if err != nil {
		return 0, err
	}
	defer atomic.CompareAndSwapUint64(at.cell, at.mine, 0)
	switch {
	case at.runs:
		err = b.act(s)
	case !at.last:
		err = s.await(ctx, g, at)
		s.object.Acquired()
	}
	if err != nil {
		return 0, err
	}
	return int(at.index), nil
}

// act runs the action, and lets the others go.
func (b *Barrier) act(s *shared) (err error) {
	done := false
	defer func() {
		if !done { // it has panicked, or failed
			s.abort()
		}
	}()
	if b.Action != nil {
		if err = b.Action(); err != nil {
			return err
		}
	}
	done = true
	s.object.Released()
	h := s.barrier()
	for {
		v := atomic.LoadUint64(&h.word)
		state := stateOf(v)
		if state.phase != barrierFull {
			return ErrBroken
		}
		if h.move(v, state.next(0)) {
			return nil
		}
	}
}

// arrival is a party's place.
type arrival struct {
	cell       *uint64
	number     int // of the cell
	mine       uint64
	generation uint32
	index      uint32
	last       bool
	runs       bool // the action is its to run
}

func (s *shared) arrive(ctx context.Context, g barrierCall) (a arrival, err error) {
	h, cells, parties := s.barrier(), g.cells, g.parties
	p := s.pace(ctx, nil)
	defer p.end()
	turns := 0
	for {
		v := atomic.LoadUint64(&h.word)
		is := stateOf(v)
		switch {
		case is.phase == barrierBroken:
			return a, ErrBroken
		case is.phase > barrierBroken || is.arrived > parties || (is.arrived == parties) != (is.phase == barrierFull):
			return a, s.corrupt("barrier", v)
		case is.phase == barrierFull: // the others are on their way out; they wait for the action
			late, err := p.sleep(low(&h.word), uint32(v))
			if err != nil {
				return a, err
			}
			if late {
				s.sweepBarrier(cells, v, turns)
				turns++
			}
			continue
		}
		a.generation = is.generation
		a.mine = uint64(s.heap.Me())<<32 | uint64(is.generation)
		if a.number = s.claim(cells, v, a.mine); a.number < 0 { // sixteen others are between their cell and their arrival
			if err := ctx.Err(); err != nil {
				return a, err
			}
			_ = shm.FutexWait(low(&h.word), uint32(v), time.Millisecond)
			if s.isFreed() {
				return a, ErrClosed
			}
			continue
		}
		a.cell = &cells[a.number]
		for is.generation == a.generation && is.phase == barrierFilling && is.arrived < parties {
			a.index, a.last = is.arrived, is.arrived+1 == parties
			if a.last && s.deserted(cells, is.generation) {
				h.broken(v)
				break
			}
			a.runs = a.last && g.action
			to := is
			to.arrived++
			switch {
			case a.runs:
				to.phase = barrierFull
			case a.last:
				to = is.next(0)
			}
			if atomic.CompareAndSwapUint64(&h.word, v, to.word()) {
				if a.last && !a.runs && parties > 1 {
					shm.FutexWake(low(&h.word), math.MaxInt32)
				}
				return a, nil
			}
			v = atomic.LoadUint64(&h.word)
			is = stateOf(v)
		}
		atomic.CompareAndSwapUint64(a.cell, a.mine, 0)
	}
}

// deserted reports whether one of those who have arrived is not there any more: the cheap look, for the last to arrive.
func (s *shared) deserted(cells []uint64, generation uint32) bool {
	alive, me := s.heap.Me(), s.heap.Me()
	for i := range cells {
		cell := atomic.LoadUint64(&cells[i])
		owner := ownerOf(cell)
		if cell == 0 || uint32(cell) != generation || owner == alive || owner == me {
			continue
		}
		if departed(s.heap, owner) {
			return true
		}
		alive = owner
	}
	return false
}

// claim takes a cell for the generation of v: its number, -1 if there is none. The cell of a dead process of this generation is not
// taken: it may be all that tells that one of those who have arrived is dead. It breaks the barrier.
func (s *shared) claim(cells []uint64, v, mine uint64) int {
	for i := range cells {
		cell := atomic.LoadUint64(&cells[i])
		if cell != 0 && uint32(cell) == uint32(mine) {
			continue
		}
		if atomic.CompareAndSwapUint64(&cells[i], cell, mine) {
			return i
		}
	}
	known := verdicts{}
	for i := range cells {
		cell := atomic.LoadUint64(&cells[i])
		if cell != 0 && uint32(cell) == uint32(mine) && known.gone(s.heap, ownerOf(cell)) {
			s.barrier().broken(v)
			break
		}
	}
	return -1
}

// await waits until the generation has ended.
func (s *shared) await(ctx context.Context, g barrierCall, a arrival) error {
	h := s.barrier()
	p := s.pace(ctx, nil)
	defer func() { p.end() }()
	for {
		v := atomic.LoadUint64(&h.word)
		is := stateOf(v)
		if is.generation != a.generation {
			if back := (is.generation - a.generation - 1) & generationsMask; back < 16 && is.history>>back&1 == 0 {
				return nil
			}
			return ErrBroken
		}
		if is.phase == barrierBroken {
			return ErrBroken
		}
		if is.phase > barrierBroken || is.arrived > g.parties {
			return s.corrupt("barrier", v)
		}
		if is.phase == barrierFull && p.ctx.Done() != nil { // it is over when the action is
			p.end()
			p = s.pace(context.WithoutCancel(ctx), nil)
		}
		late, err := p.sleep(low(&h.word), uint32(v))
		switch {
		case err == nil && late:
			s.sweepBarrier(g.cells, v, a.number)
		case errors.Is(err, ErrClosed):
			s.depart(a)
			return err
		case err != nil:
			if at := atomic.LoadUint64(&h.word); uint32(at) == uint32(v) && h.broken(at) {
				return err
			}
		}
	}
}

// depart goes before the generation has ended; if all have arrived it does nothing.
func (s *shared) depart(a arrival) {
	h := s.barrier()
	for {
		v := atomic.LoadUint64(&h.word)
		is := stateOf(v)
		if is.generation != a.generation || is.phase != barrierFilling || is.arrived == 0 {
			return
		}
		is.arrived--
		if atomic.CompareAndSwapUint64(&h.word, v, is.word()) {
			return
		}
	}
}

// sweepBarrier breaks the barrier if the next one behind the cell from that waits at it, in v, is dead. So each looks at one other at the end of its slices, and
// every dead one has somebody alive before it. Of the goroutines of a process only one sleeps, and so looks behind the cells of all.
func (s *shared) sweepBarrier(cells []uint64, v uint64, from int) {
	generation, me := stateOf(v).generation, s.heap.Me()
	known, next := verdicts{}, true
	for i := range cells {
		cell := atomic.LoadUint64(&cells[(from+1+i)%len(cells)])
		if cell == 0 || uint32(cell) != generation {
			continue
		}
		owner := ownerOf(cell)
		if next && owner != me && known.gone(s.heap, owner) {
			s.barrier().broken(v)
			return
		}
		next = owner == me
	}
}

func (s *shared) abort() {
	h := s.barrier()
	for {
		v := atomic.LoadUint64(&h.word)
		if stateOf(v).phase == barrierBroken || h.broken(v) {
			return
		}
	}
}

// Abort breaks the barrier: all who wait, and all who come, get [ErrBroken].
func (b *Barrier) Abort() error {
	s, err := b.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	s.abort()
	return nil
}

// Reset makes the barrier empty and whole; who waits gets [ErrBroken]. While an action runs it does nothing.
func (b *Barrier) Reset() error {
	s, err := b.enter()
	if err != nil {
		return err
	}
	defer s.leave()
	h := s.barrier()
	for {
		v := atomic.LoadUint64(&h.word)
		is := stateOf(v)
		// Also with nobody in it: one may have died between its cell and its arrival.
		if is.phase == barrierFull || h.move(v, is.next(1)) {
			return nil
		}
	}
}

// BarrierState is what a barrier says of itself.
type BarrierState struct {
	Parties int
	Waiting int // how many have come and wait for others
	Broken  bool
}

// State tells how the barrier is, at one moment.
func (b *Barrier) State() (BarrierState, error) {
	s, err := b.enter()
	if err != nil {
		return BarrierState{}, err
	}
	defer s.leave()
	is := stateOf(atomic.LoadUint64(&s.barrier().word))
	state := BarrierState{Parties: int(atomic.LoadUint32(&s.barrier().parties)), Broken: is.phase == barrierBroken}
	if is.phase == barrierFilling {
		state.Waiting = int(is.arrived)
	}
	return state, nil
}
