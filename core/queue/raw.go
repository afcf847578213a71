package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// raw is a queue of bytes, as this process has it.
type raw struct {
	heap     *shm.Heap
	q        *head
	swept    atomic.Int64
	object   *shm.Object
	named    bool // the heap is the queue's own
	put, get *shm.Mutex
	notEmpty *shm.Line
	notFull  *shm.Line
	allDone  *shm.Line
	pins     atomic.Int64 // calls and leases under way; freed is added when the handle is
	finish   sync.Once

	lingerGet, lingerPut atomic.Int32 // how many waits go without it

	watching sync.Mutex // guards the making of watch
	watch    atomic.Pointer[watch]
}

const freed = -1 << 40

// view is the queue for the steps of one call.
func (r *raw) view() view { return view{heap: r.heap, q: r.q, swept: &r.swept} }

func init() {
	shm.RegisterKind(shm.KindQueue, sizeQueue, func(h *shm.Heap, off uint64) {
		v := view{heap: h, q: (*head)(h.Within(off, sizeQueue)), swept: new(atomic.Int64)}
		v.destroy()
	})
}

func openRaw(o *shm.Object, named bool) *raw {
	r := &raw{heap: o.Heap(), q: (*head)(o.Pointer()), object: o, named: named}
	q := r.q
	r.put = r.heap.NewMutex(&q.putLock, func(dead shm.Owner) { v := r.view(); v.resolvePut(dead) })
	r.get = r.heap.NewMutex(&q.getLock, func(dead shm.Owner) { v := r.view(); v.resolveGet(dead) })
	r.notEmpty, r.notFull, r.allDone = shm.NewLine(q.notEmpty.chime()), shm.NewLine(q.notFull.chime()), shm.NewLine(q.allDone.chime())
	return r
}

// enter keeps the queue mapped until leave.
func (r *raw) enter() error {
	if r.pins.Add(1) > 0 {
		return nil
	}
	r.leave()
	return ErrClosed
}

func (r *raw) leave() {
	if r.pins.Add(-1) == freed {
		r.end()
	}
}

func (r *raw) isFreed() bool { return r.pins.Load() < 0 }

// free gives this process's use up; calls that wait end.
func (r *raw) free() {
	for {
		n := r.pins.Load()
		if n < 0 {
			return
		}
		if r.pins.CompareAndSwap(n, n+1+freed) {
			break
		}
	}
	for _, l := range []*shm.Line{r.notEmpty, r.notFull, r.allDone} {
		l.Chime().RingAll()
	}
	r.endWatch()
	r.leave()
}

func (r *raw) end() {
	r.finish.Do(func() {
		r.closeWatch()
		r.object.Drop()
		if r.named {
			_ = r.heap.Close()
		}
	})
}

// patience is how long a lock is waited for by a call that is not to wait, and by one that is.
func patience(try bool) time.Duration {
	if try {
		return lockPatience
	}
	return -1
}

func lockFailed(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		return ErrBusy
	}
	return err
}

// rest waits for ready; try: returns none at once instead. nil: look again.
func (r *raw) rest(ctx context.Context, try bool, l *shm.Line, ready func() bool, none error) error {
	if try {
		return none
	}
	v := r.view()
	leases, d := v.inUse(), slice // sleepers look for the dead only while messages are out
	if leases {
		d = leaseSlice
	}
	late, err := l.Wait(ctx, d, func() bool { return ready() || r.isFreed() })
	if err != nil {
		return err
	}
	if late && leases {
		v.sweep()
	}
	if r.isFreed() {
		return ErrClosed
	}
	if !late {
		switch l {
		case r.notEmpty:
			r.linger(&r.lingerGet)
		case r.notFull:
			r.linger(&r.lingerPut)
		}
	}
	return nil
}

// linger waits for more than the one message, or the room for one, that has just come, for as long as each look finds some: capi/front/queue.c says why.
func (r *raw) linger(skip *atomic.Int32) {
	if skip.Load() > 0 {
		skip.Add(-1)
		return
	}
	there := int32(r.q.inChain())
	for look := range lingerLooks {
		for range 8 * 64 {
		}
		now := int32(r.q.inChain())
		if max(now-there, there-now) < lingerLeast {
			if look == 0 {
				skip.Store(lingerRest)
			}
			return
		}
		there = now
	}
}

// lockPut takes putLock, makes c where the next message goes and returns for how many there is room, at least one.
func (r *raw) lockPut(ctx context.Context, try bool, v *view, c *cursor) (uint32, error) {
	for {
		if err := r.put.Lock(ctx, patience(try)); err != nil {
			return 0, lockFailed(err)
		}
		var room uint32
		s := v.room(c, &room)
		if s == statusOK {
			return room, nil
		}
		r.put.Unlock()
		if s != statusFull {
			return 0, v.failed(s)
		}
		if err := r.rest(ctx, try, r.notFull, r.q.canPut, ErrFull); err != nil {
			return 0, err
		}
	}
}

// putOne puts a message.
func (r *raw) putOne(ctx context.Context, try bool, data []byte, codec uint16) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	if len(data) > inlineMost {
		return r.putBulk(ctx, try, data, codec)
	}
	return r.putRecord(ctx, try, data, kindInline, uint32(codec), nil)
}

// putRecord puts a record: a message, or the reference to the block that this process holds.
func (r *raw) putRecord(ctx context.Context, try bool, data []byte, kind, codec uint32, held *block) error {
	var c cursor
	v := r.view()
	if _, err := r.lockPut(ctx, try, &v, &c); err != nil {
		return err
	}
	s := v.append(&c, data, kind, codec, c.crossings)
	if s == statusOK {
		if held != nil {
			v.commitHeld(&c, held)
		} else {
			v.commitPut(&c)
		}
	}
	r.put.Unlock()
	if s != statusOK {
		return v.failed(s)
	}
	r.notEmpty.Chime().Ring(1)
	return nil
}

// append writes a record behind the cursor.
func (v *view) append(c *cursor, data []byte, kind, codec, from uint32) status {
	if s := v.place(c, uint32(len(data)), from); s != statusOK {
		return s
	}
	copy(unsafe.Slice((*byte)(c.body()), len(data)), data)
	c.seal(uint32(len(data)), kind, codec)
	return statusOK
}

// putBulk puts a message in a block of its own, which is written before anything is locked.
func (r *raw) putBulk(ctx context.Context, try bool, data []byte, codec uint16) error {
	for r.q.full() { // not with the memory in hand
		if err := r.rest(ctx, try, r.notFull, r.q.canPut, ErrFull); err != nil {
			return err
		}
		if r.q.isClosed() {
			return ErrShutdown
		}
	}
	var b block
	v := r.view()
	if s := v.hold(&b, uint64(len(data)), uint32(codec)); s != statusOK {
		return v.failed(s)
	}
	copy(b.bytes(), data)
	record := bulk{uint64(b.ref), b.size}
	err := r.putRecord(ctx, try, unsafe.Slice((*byte)(unsafe.Pointer(&record)), sizeBulk), kindBulk, uint32(codec), &b)
	if err != nil {
		v.freeCell(b.cell, b.ref)
	}
	return err
}

// putMany puts messages that lie one after the other in data. As many as there is room for are one commit. Returns how many were put.
func (r *raw) putMany(ctx context.Context, data []byte, sizes []int, codec uint16) (done int, err error) {
	if err := r.enter(); err != nil {
		return 0, err
	}
	defer r.leave()
	for done < len(sizes) {
		n := 1
		if sizes[done] > inlineMost {
			err = r.putBulk(ctx, false, data[:sizes[done]], codec)
		} else {
			n, err = r.putSome(ctx, data, sizes[done:], codec)
		}
		if err != nil {
			return done, err
		}
		for range n {
			data = data[sizes[done]:]
			done++
		}
	}
	return done, nil
}

func (r *raw) putSome(ctx context.Context, data []byte, sizes []int, codec uint16) (done int, err error) {
	var c cursor
	v := r.view()
	room, err := r.lockPut(ctx, false, &v, &c)
	if err != nil {
		return 0, err
	}
	s, from := statusOK, c.crossings
	for done < len(sizes) && uint32(done) < room && sizes[done] <= inlineMost {
		if s = v.append(&c, data[:sizes[done]], kindInline, uint32(codec), from); s != statusOK {
			break
		}
		data = data[sizes[done]:]
		done++
	}
	if done > 0 {
		v.commitPut(&c)
	}
	r.put.Unlock()
	if done == 0 {
		return 0, v.failed(s)
	}
	r.notEmpty.Chime().Ring(done)
	return done, nil
}

func (b *block) bytes() []byte { return unsafe.Slice((*byte)(b.data), b.size) }

func (f *found) bytes() []byte { return unsafe.Slice((*byte)(f.data), f.size) }

// message is what a getter has got: in its buffer, or in the block of a cell that is HELD or LEASED by this process. Such a message keeps
// the queue until it is done with.
type message struct {
	data  []byte
	codec uint32
	block ref
	cell  *cell
	word  cellWord
}

// done gives a message's block back.
func (r *raw) done(m *message) {
	if m.cell != nil {
		if v := r.view(); m.cell.load() == m.word {
			v.freeCell(m.cell, m.block)
		}
		m.cell = nil
		r.leave()
	}
}

// ack acknowledges a leased message, or gives it back.
func (r *raw) ack(m *message, back bool) error {
	if m.cell == nil {
		return ErrAcked
	}
	defer func() { m.cell = nil; r.leave() }()
	v := r.view()
	if word := m.cell.load(); word != m.word {
		return v.failed(v.corrupt("the cell of a lease", uint64(word)))
	}
	if back {
		m.cell.set(0, cellReturned)
		v.returned(1)
		return nil
	}
	m.cell.set(m.word.owner(), cellHeld)
	v.freeCell(m.cell, m.block)
	return nil
}

// getOne makes m the next message; what is small and not to be leased is copied to the end of buf, of which only what lies behind its length is used, or, if that is nil, to memory of its own.
func (r *raw) getOne(ctx context.Context, try, lease bool, buf []byte, m *message) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	for {
		err := r.getOnce(ctx, try, lease, buf, m)
		r.settle()
		if err != ErrEmpty {
			return err
		}
		if err := r.rest(ctx, try, r.notEmpty, r.q.canGet, ErrEmpty); err != nil {
			return err
		}
	}
}

// own makes a message of a block that is this process's.
func (r *raw) own(b *block) message {
	r.pins.Add(1)
	return message{b.bytes(), b.codec, b.ref, b.cell, b.word}
}

// getReturned takes a message that was leased to somebody who did not acknowledge it.
func (r *raw) getReturned(lease bool, m *message) error {
	var b block
	v, state := r.view(), uint32(cellHeld)
	if lease {
		state = cellLeased
	}
	if s := v.takeReturned(&b, math.MaxUint64, state); s != statusOK {
		return v.failed(s)
	}
	*m = r.own(&b)
	return nil
}

func (r *raw) getOnce(ctx context.Context, try, lease bool, buf []byte, m *message) error {
	q := r.q
	if atomic.LoadUint32(&q.returned) != 0 {
		if err := r.getReturned(lease, m); err != ErrEmpty {
			return err
		}
	}
	if err := r.get.Lock(ctx, patience(try)); err != nil {
		return lockFailed(err)
	}
	var f found
	v := r.view()
	closed := q.isClosed() // before tail is read: then nothing comes after
	if s := v.find(&f); s != statusOK {
		r.get.Unlock()
		if s == statusEmpty && closed {
			return ErrShutdown
		}
		return v.failed(s)
	}
	late := f.at.items%getsPerSweep == 0
	if lease || f.ref != 0 {
		err := r.getBulk(&f, lease, m)
		if late {
			v.sweepNowAndThen()
		}
		return err
	}
	m.codec = f.codec
	if buf == nil {
		m.data = clone(f.bytes())
	} else {
		m.data = append(buf, f.bytes()...)
	}
	v.commitGet(&f)
	r.unlockGet(1, f.left)
	if late {
		v.sweepNowAndThen()
	}
	return nil
}

func (r *raw) unlockGet(taken int, left uint32) {
	r.get.Unlock()
	if taken > 0 && atomic.LoadUint64(&r.q.maxsize) != 0 {
		r.notFull.Chime().Ring(taken)
	}
	if left > 0 {
		r.notEmpty.Chime().Ring(1)
	}
}

// getBulk takes a message that was found by way of a cell: one that lies in a block of its own, or a lease.
func (r *raw) getBulk(f *found, lease bool, m *message) error {
	var b block
	v := r.view()
	if s := v.take(f, lease, &b); s != statusOK {
		r.unlockGet(0, 1) // another may have the memory
		return v.failed(s)
	}
	r.unlockGet(1, f.left)
	*m = r.own(&b)
	return nil
}

// getRest takes up to most more messages, small ones, without waiting: their bytes are appended to buf as far as that has room.
func (r *raw) getRest(buf []byte, most int) (data []byte, sizes []int, codecs []uint32) {
	if most == 0 || r.enter() != nil {
		return buf, nil, nil
	}
	defer r.leave()
	if r.get.Lock(context.Background(), lockPatience) != nil {
		return buf, nil, nil
	}
	var f found
	left := uint32(0)
	there := min(most, int(r.q.inChain()), 1024) // a start: the number may be wrong
	sizes, codecs = make([]int, 0, there), make([]uint32, 0, there)
	v := r.view()
	for len(sizes) < most && v.find(&f) == statusOK && f.ref == 0 && int(f.size) <= cap(buf)-len(buf) {
		buf = append(buf, f.bytes()...)
		sizes, codecs = append(sizes, int(f.size)), append(codecs, f.codec)
		left = f.left
		v.commitGet(&f) // a store: what was taken is taken, whatever becomes of the rest
	}
	r.unlockGet(len(sizes), left)
	r.settle()
	return buf, sizes, codecs
}

// Stats is what a queue says of itself.
type Stats struct {
	Len        int  // messages in the queue at one moment, exactly
	MaxSize    int  // 0: unbounded
	Unfinished int  // messages put, less calls of TaskDone
	Leased     int  // messages that are leased and not acknowledged
	Shutdown   bool // no more messages come: see Queue.Shutdown
}

func (r *raw) stats() (s Stats, err error) {
	if err := r.enter(); err != nil {
		return s, err
	}
	defer r.leave()
	q, v := r.q, r.view()
	s = Stats{
		Len:        int(q.inChain()),
		MaxSize:    int(atomic.LoadUint64(&q.maxsize)),
		Unfinished: int(q.unfinished()),
		Shutdown:   q.isClosed(),
	}
	s.Len += int(v.count(cellReturned)) // whatever q.returned says: who gave one back may have died before he could tell
	s.Leased = int(v.count(cellLeased))
	r.settle()
	return s, nil
}

func (r *raw) length() (int, error) {
	if err := r.enter(); err != nil {
		return 0, err
	}
	defer r.leave()
	r.settle()
	v := r.view()
	return int(r.q.inChain() + v.count(cellReturned)), nil
}

func (r *raw) taskDone() error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	if r.q.taskDone() != statusOK {
		return ErrTaskDone
	}
	if r.q.finished() {
		r.allDone.Chime().RingAll()
	}
	return nil
}

func (r *raw) join(ctx context.Context) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	for !r.q.finished() {
		if err := r.rest(ctx, false, r.allDone, r.q.finished, nil); err != nil {
			return err
		}
	}
	return nil
}

func (r *raw) close() error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	// Under putLock, so that who sees it sees the last message too.
	if err := r.put.Lock(context.Background(), closePatient); err != nil {
		return lockFailed(err)
	}
	atomic.StoreUint32(&r.q.closed, 1)
	r.put.Unlock()
	r.notEmpty.Chime().RingAll()
	r.notFull.Chime().RingAll()
	return nil
}

// send returns a reference on its way.
func (r *raw) send() ([]byte, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	b, err := r.object.Send()
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return b, nil
}
