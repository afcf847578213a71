package pipe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

var (
	// ErrBroken says to a sender that nobody has the other end.
	ErrBroken = fmt.Errorf("pipe: nobody has the other end: %w", syscall.EPIPE)
	// ErrFull says that there is no room now.
	ErrFull = errors.New("pipe: full")
	// ErrEmpty says that there is no message now.
	ErrEmpty = errors.New("pipe: empty")
	// ErrDirection says that this end of a one-way pipe only sends, or only receives.
	ErrDirection = errors.New("pipe: not in this direction")
	// ErrFileNext says that a file comes next, not a message: RecvFile.
	ErrFileNext = errors.New("pipe: a file comes next")
	// ErrMessageNext says that a message comes next, not a file.
	ErrMessageNext = errors.New("pipe: a message comes next")
	// ErrClosed says that this process has closed the end.
	ErrClosed = fmt.Errorf("pipe: closed: %w", os.ErrClosed)
)

// Conn is an end of a pipe, which carries messages, whole and in order. Several processes and goroutines may use one end at once; each message goes to one of
// them. They lie in shared memory: when Send has returned, the message will arrive, even if this process dies.
type Conn struct{ e *end }

// end is what a Conn is, in this process.
type end struct {
	object   *shm.Object
	heap     *shm.Heap
	p        *head
	which    int
	fd       int
	inode    uint64 // of the file behind fd; 0: not known
	out, in  *half  // nil: not in this direction
	pins     atomic.Int64
	finish   sync.Once
	looked   atomic.Uint64 // ms
	patience shm.Patience
	ready    readiness
}

// half is a way as this end uses it.
type half struct {
	*way
	lock *shm.Mutex
	died atomic.Bool // the lock may have been taken from the dead
	line *shm.Line   // senders that wait for room

	// A receiver takes the senders' lock too, to settle.
	senders     *shm.Mutex
	sendersDied atomic.Bool
}

const (
	freed        = -1 << 40
	tryPatience  = 50 * time.Millisecond
	settleTime   = 50 * time.Millisecond
	fullSlice    = 10 * time.Millisecond
	slice        = sliceMillis * time.Millisecond
	bulkClaim    = ringCap/8 - recordHead
	bytesPerSlot = 256
)

// New makes a pipe in a heap, and returns its two ends; nil: in that of this process's family, [shm.Family]. Each end takes a descriptor. duplex: both send and
// receive; else a only receives, and b only sends. Errors: [shm.ErrNoMemory], [shm.ErrUnsupported], of the system (descriptors).
func New(h *shm.Heap, duplex bool) (a, b *Conn, err error) {
	if h == nil {
		if h, err = shm.Family(); err != nil {
			return nil, nil, fmt.Errorf("pipe: %w", err)
		}
	}
	fds, inodes, err := socketPair()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	first, err := h.NewObject(shm.KindPipe, sizePipe)
	if err == nil {
		p := (*head)(first.Pointer())
		p.inode, p.born = inodes, uptime()
		if duplex {
			*p.objectFlags() = flagDuplex
		}
		var second *shm.Object
		if second, err = h.ObjectAt(first.Off(), shm.KindPipe, 0); err == nil {
			return newConn(first, 0, fds[0]), newConn(second, 1, fds[1]), nil
		}
		first.Drop()
	}
	closeFD(fds[0])
	closeFD(fds[1])
	return nil, nil, fmt.Errorf("pipe: %w", err)
}

func newConn(o *shm.Object, which, fd int) *Conn {
	e := &end{object: o, heap: o.Heap(), p: (*head)(o.Pointer()), which: which, fd: fd, inode: inodeOf(fd)}
	e.ready.gate = make(chan struct{}, 1)
	half := func(i int, sends bool) *half {
		if i == 0 && *e.p.objectFlags()&flagDuplex == 0 {
			return nil
		}
		half := &half{way: &e.p.way[i]}
		if sends {
			half.lock = e.heap.NewMutex(&half.sendLock, func(shm.Owner) { half.died.Store(true) })
			half.line = shm.NewLine(half.space.chime())
		} else {
			half.lock = e.heap.NewMutex(&half.recvLock, func(dead shm.Owner) {
				half.died.Store(true)
				half.resolve(e.heap, dead)
			})
			half.senders = e.heap.NewMutex(&half.sendLock, func(shm.Owner) { half.sendersDied.Store(true) })
		}
		return half
	}
	e.out, e.in = half(which, true), half(1-which, false)
	return &Conn{e}
}

// ---- use, end

func (c *Conn) enter() (*end, error) {
	e := c.e
	if e == nil {
		return nil, ErrClosed
	}
	if e.pins.Add(1) > 0 {
		return e, nil
	}
	e.leave()
	return nil, ErrClosed
}

func (e *end) leave() {
	if e.pins.Add(-1) == freed {
		e.finish.Do(func() {
			e.object.Drop()
			e.ready.close()
			if e.ours() {
				closeFD(e.fd)
			}
		})
	}
}

// ours reports whether the descriptor is that of the end's socket still: a program that becomes a daemon closes all there are, and what it opens then may have the same
// number.
func (e *end) ours() bool { return e.inode == 0 || inodeOf(e.fd) == e.inode }

// hungUp asks the kernel whether nobody has the other end. If the program has closed the descriptor there is no telling, and nothing will ever wake this end: as if it were so.
func (e *end) hungUp() bool { return !e.ours() || hungUp(e.fd) }

func (e *end) isClosed() bool { return e.pins.Load() < 0 }

// Close gives this process's use of the end up; calls that wait return [ErrClosed]. The other end is told once no process has this one any more. The second call does
// nothing.
func (c *Conn) Close() error {
	e := c.e
	if e == nil {
		return nil
	}
	for {
		n := e.pins.Load()
		if n < 0 {
			return nil
		}
		if e.pins.CompareAndSwap(n, n+1+freed) {
			break
		}
	}
	atomic.StoreUint32(&e.p.way[1-e.which].look, uint32(nowMillis())|1)
	e.ready.interrupt()
	if e.out != nil {
		e.out.space.chime().RingAll()
	}
	e.leave()
	return nil
}

// CanSend reports whether this end sends.
func (c *Conn) CanSend() bool { return c.e != nil && c.e.out != nil }

// CanRecv reports whether this end receives.
func (c *Conn) CanRecv() bool { return c.e != nil && c.e.in != nil }

// ---- send

// Send sends a message of any size, also 0, waiting for room as long as ctx allows: 64 KiB may be on their way, of messages over 16 KiB 16 MiB or 8 of them. On an error nothing
// was sent, but after [ErrBroken] that is as good. Errors: [ErrBroken], [ErrDirection], the context's, [ErrClosed], [shm.ErrNoMemory], [shm.ErrCorrupt].
func (c *Conn) Send(ctx context.Context, data []byte) error { return c.send(ctx, false, data) }

// TrySend sends a message if there is room. Errors as Send's, and [ErrFull].
func (c *Conn) TrySend(data []byte) error { return c.send(context.Background(), true, data) }

func (c *Conn) send(ctx context.Context, try bool, data []byte) error {
	e, err := c.enter()
	if err != nil {
		return err
	}
	defer e.leave()
	e.object.Released()
	if len(data) <= inlineMost {
		return shown(e.push(ctx, try, kindInline, data, uint32(len(data))))
	}
	if e.out == nil {
		return ErrDirection
	}
	b := bulk{size: uint64(len(data)), tag: e.heap.Tag()}
	if b.off, _, err = e.heap.Alloc(b.size, b.tag); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	to, ok := e.heap.At(b.off, b.size)
	if !ok {
		return corrupt("a block is at", b.off)
	}
	copy(to, data)
	ref := unsafe.Slice((*byte)(unsafe.Pointer(&b)), sizeBulk)
	err = e.push(ctx, try, kindBulk, ref, uint32(max(sizeBulk, min(b.size/bytesPerSlot, bulkClaim))))
	if err != nil && err != errCommitted {
		e.heap.Free(b.off, b.tag)
	}
	return shown(err)
}

// errCommitted: the message is in the ring, but nobody has the other end.
var errCommitted = fmt.Errorf("%w", ErrBroken)

func shown(err error) error {
	if err == errCommitted {
		return ErrBroken
	}
	return err
}

// push sends a record.
func (e *end) push(ctx context.Context, try bool, kind uint16, data []byte, size uint32) error {
	w := e.out
	if w == nil {
		return ErrDirection
	}
	patience := time.Duration(-1)
	if try {
		patience = tryPatience
	}
	for pause, look := fullSlice, false; ; {
		if err := w.lock.Lock(ctx, patience); err != nil {
			if try && errors.Is(err, os.ErrDeadlineExceeded) {
				return ErrFull
			}
			return err
		}
		recovered := w.died.Swap(false)
		var to []byte
		var tail uint64
		err := error(ErrBroken)
		if (look || e.mustLook()) && e.hungUp() {
			e.looked.Store(0) // the next message is answered so too
		} else {
			to, tail, err = w.reserve(e.heap, kind, size)
		}
		if err == nil {
			copy(to, data)
			atomic.StoreUint64(&w.tail, tail) // commit
			err = e.wake(recovered)
			w.lock.Unlock()
			return err
		}
		if recovered {
			_ = e.wake(true)
		}
		seen := atomic.LoadUint64(&w.seenHead)
		w.lock.Unlock()
		if err != errNoRoom {
			return err
		}
		if try {
			return ErrFull
		}
		late, err := w.line.Wait(ctx, pause, func() bool { return e.isClosed() || atomic.LoadUint64(&w.head) != seen })
		if err != nil {
			return err
		}
		if e.isClosed() {
			return ErrClosed
		}
		if look = late; late {
			pause = min(2*pause, slice)
		}
	}
}

// wake puts bytes into the socket, if there are none: rule B1.
func (e *end) wake(anyway bool) error {
	if atomic.LoadUint32(&e.out.bell) != 0 && !anyway {
		return nil
	}
	atomic.StoreUint32(&e.out.bell, 1)
	if e.ours() && !sendBytes(e.fd) {
		return errCommitted
	}
	return nil
}

// mustLook reports whether the kernel is to be asked about the other end before this message.
func (e *end) mustLook() bool {
	at := nowMillis()
	if look := atomic.LoadUint32(&e.out.look); look != 0 {
		if past := uint32(at) - look; past > closeMillis && past < 1<<31-1 {
			atomic.CompareAndSwapUint32(&e.out.look, look, 0)
		}
	} else if at-e.looked.Load() < lookMillis {
		return false
	}
	e.looked.Store(at)
	return true
}

// ---- receive

// Recv waits for a message as long as ctx allows. Errors: [io.EOF] (nobody has the other end, and all that was sent was received), [ErrFileNext], [ErrDirection], the
// context's, [ErrClosed], [shm.ErrCorrupt], [shm.ErrNoMemory].
func (c *Conn) Recv(ctx context.Context) ([]byte, error) { return c.RecvAppend(ctx, nil) }

// RecvAppend is Recv into a buffer: the message is appended to it, as append does. On an error it returns the buffer as it was.
func (c *Conn) RecvAppend(ctx context.Context, buf []byte) ([]byte, error) {
	return c.recv(ctx, false, buf)
}

// TryRecv takes the next message if there is one. Errors as Recv's, and [ErrEmpty].
func (c *Conn) TryRecv() ([]byte, error) { return c.recv(context.Background(), true, nil) }

func (c *Conn) recv(ctx context.Context, try bool, buf []byte) ([]byte, error) {
	e, err := c.enter()
	if err != nil {
		return buf, err
	}
	defer e.leave()
	to := buf
	if to == nil {
		to = []byte{}
	}
	g := want{take: true, buf: to}
	if err = e.pull(ctx, try, &g); err != nil {
		return buf, err
	}
	e.object.Acquired()
	return g.buf, nil
}

// Poll waits for a message and tells how large it is, and leaves it there; a file is 0. Errors as Recv's.
func (c *Conn) Poll(ctx context.Context) (size int, err error) {
	e, err := c.enter()
	if err != nil {
		return 0, err
	}
	defer e.leave()
	var g want
	err = e.pull(ctx, false, &g)
	return int(g.size), err
}

// TryPoll tells how large the next message is, if there is one. Errors as TryRecv's.
func (c *Conn) TryPoll() (size int, err error) {
	e, err := c.enter()
	if err != nil {
		return 0, err
	}
	defer e.leave()
	var g want
	err = e.pull(context.Background(), true, &g)
	return int(g.size), err
}

// want is what is wanted of a receive, and what came.
type want struct {
	take bool // else only looked at
	file bool
	buf  []byte
	size uint64
	name name
}

// pull receives, or looks.
func (e *end) pull(ctx context.Context, try bool, g *want) error {
	w := e.in
	if w == nil {
		return ErrDirection
	}
	patience := time.Duration(-1)
	if try {
		patience = tryPatience
	}
	hup, thorough := false, false
	var began time.Time // of the wait
	for {
		if err := w.lock.Lock(ctx, patience); err != nil {
			if try && errors.Is(err, os.ErrDeadlineExceeded) {
				return ErrEmpty
			}
			return err
		}
		if w.died.Swap(false) {
			atomic.StoreUint32(&w.spare, 0)
		}
		f, err := e.look(g)
		if err == nil && g.take {
			return e.finishTake(f, g)
		}
		if err != errNothing || hup || e.isClosed() {
			w.lock.Unlock()
			switch {
			case err != errNothing:
				return err
			case hup:
				return io.EOF
			}
			return ErrClosed
		}
		if try {
			w.lock.Unlock()
			if hup = e.hungUp(); !hup {
				return ErrEmpty
			}
			continue
		}
		if began.IsZero() {
			head := atomic.LoadUint64(&w.head)
			w.lock.Unlock()
			began = e.spin(head)
			continue
		}
		well := e.settle(thorough)
		w.lock.Unlock()
		if !well {
			return fmt.Errorf("pipe: %w: somebody has written to its descriptor", shm.ErrCorrupt)
		}
		if hup = !e.ours(); hup {
			continue
		}
		var readable bool
		if readable, hup, err = e.ready.wait(ctx, e.fd, slice, e.isClosed); err != nil {
			return err
		}
		e.patience.Slept(began)
		thorough = readable
	}
}

// look finds the next message. The caller holds recvLock.
func (e *end) look(g *want) (f found, err error) {
	f, err = e.in.first(e.heap, atomic.LoadUint64(&e.in.head))
	if err != nil {
		return f, err
	}
	if !g.take {
		switch f.kind {
		case kindInline:
			g.size = uint64(len(f.payload))
		case kindBulk:
			_, data, err := f.bulk(e.heap)
			g.size = uint64(len(data))
			return f, err
		}
		return f, nil
	}
	if f.kind == kindFD && !g.file {
		return f, ErrFileNext
	}
	if f.kind != kindFD && g.file {
		return f, ErrMessageNext
	}
	return f, nil
}

// finishTake takes the message that look has found, and gives recvLock back.
func (e *end) finishTake(f found, g *want) (err error) {
	w := e.in
	var b bulk
	var data []byte
	var l *lease
	switch f.kind {
	case kindInline:
		g.buf = append(g.buf, f.payload...)
	case kindBulk:
		if b, data, err = f.bulk(e.heap); err == nil {
			l = w.lease(e.heap, b, f.end)
		}
	case kindFD:
		g.name, err = f.name()
	default:
		err = corrupt("the kind of a message is", uint64(f.kind))
	}
	if err != nil {
		w.lock.Unlock()
		return err
	}
	atomic.StoreUint64(&w.head, f.end) // commit
	left := atomic.LoadUint64(&w.tail) - f.end
	if left == 0 && atomic.LoadUint32(&w.watched) != 0 {
		e.settle(false)
	}
	if left <= ringCap/2 {
		w.space.chime().RingAll()
	}
	w.lock.Unlock()
	if f.kind == kindBulk {
		g.buf = append(g.buf, data...)
		l.over(e.heap, b)
	}
	return nil
}

// settle: if the ring is empty, no byte is in the socket afterwards. The caller holds recvLock. thorough: there may be bytes that no word tells of. False: somebody else has written to
// the socket.
func (e *end) settle(thorough bool) bool {
	w := e.in
	if w.senders.Lock(context.Background(), settleTime) != nil { // a sender is stopped
		return true
	}
	defer w.senders.Unlock()
	thorough = w.sendersDied.Swap(false) || thorough
	well := true
	if atomic.LoadUint64(&w.tail) == atomic.LoadUint64(&w.head) {
		if thorough || atomic.LoadUint32(&w.bell) != 0 || atomic.LoadUint32(&w.spare) != 0 {
			well = !e.ours() || drain(e.fd)
		}
		atomic.StoreUint32(&w.bell, 0)
		atomic.StoreUint32(&w.spare, 0)
	} else if thorough && pending(e.fd) == 0 {
		atomic.StoreUint32(&w.bell, 0)
	}
	return well
}

// spin waits a moment for a message without a system call. The ring was empty at head.
func (e *end) spin(head uint64) time.Time {
	_, began := e.patience.Spin(func() bool { return atomic.LoadUint64(&e.in.tail) != head })
	return began
}

// Descriptor returns the descriptor of the end, for poll(2) and epoll(7): readable exactly when a message is there, or (hang-up) nobody has the other end. It stays the Conn's, until
// Close; nothing else may be done with it. Once it was asked for, the end is a little slower.
func (c *Conn) Descriptor() (int, error) {
	e, err := c.enter()
	if err != nil {
		return -1, err
	}
	defer e.leave()
	w := e.in
	if w == nil {
		return e.fd, nil
	}
	// 2: settled. Until then each who asks sees to it.
	if atomic.LoadUint32(&w.watched) != 2 {
		atomic.StoreUint32(&w.watched, 1)
		if err = w.lock.Lock(context.Background(), -1); err != nil {
			return -1, err
		}
		if w.died.Swap(false) {
			atomic.StoreUint32(&w.spare, 0)
		}
		e.settle(true)
		atomic.StoreUint32(&w.watched, 2)
		w.lock.Unlock()
	}
	return e.fd, nil
}

// ---- descriptors, references

// SendFile sends a copy of the descriptor of an open file, in the order of the messages. It arrives even if this process dies; f may be closed. Only through pipes of the
// family's heap. Errors as Send's.
func (c *Conn) SendFile(ctx context.Context, f *os.File) error {
	e, err := c.enter()
	if err != nil {
		return err
	}
	defer e.leave()
	if e.out == nil {
		return ErrDirection
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	n := name{[4]uint64{e.heap.ID(), math.MaxUint32<<32 | uint64(e.heap.Me()), uint64(e.heap.Tag())<<32 | math.MaxUint32, uint64(time.Now().UnixNano())}}
	var put error
	if err = raw.Control(func(fd uintptr) { put = leaveFile(e.heap, n, int(fd)) }); err != nil || put != nil {
		return fmt.Errorf("pipe: %w", errors.Join(err, put))
	}
	if err = e.push(ctx, false, kindFD, n.bytes(), uint32(sizeName)); err != nil && err != errCommitted {
		forgetFile(n)
	}
	return shown(err)
}

// RecvFile receives a file, if one comes next. Errors as Recv's, and [ErrMessageNext].
func (c *Conn) RecvFile(ctx context.Context) (*os.File, error) {
	e, err := c.enter()
	if err != nil {
		return nil, err
	}
	defer e.leave()
	g := want{take: true, file: true}
	if err = e.pull(ctx, false, &g); err != nil {
		return nil, err
	}
	fd, err := takeFile(g.name)
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(fd), "file from a pipe"), nil
}

// MarshalBinary returns a reference to the end that is on its way, 32 bytes, for UnmarshalBinary in another process of the family, once, also pp_pipe_import in C, and Python. The end's
// descriptor rests with the family meanwhile; so the end lives even if this process dies. Only of pipes in the family's heap. Errors: [ErrClosed],
// [shm.ErrInvalid], [shm.ErrNoMemory].
func (c *Conn) MarshalBinary() ([]byte, error) {
	e, err := c.enter()
	if err != nil {
		return nil, err
	}
	defer e.leave()
	ref, err := e.object.Send()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	ref[28] |= byte(e.which)
	var n name
	copy(n.bytes(), ref)
	if err = leaveFile(e.heap, n, e.fd); err != nil {
		shm.Forget(ref)
		return nil, fmt.Errorf("pipe: %w", err)
	}
	return ref, nil
}

// UnmarshalBinary receives an end. Errors: [shm.ErrInvalid] (no reference to a pipe, or of another family), [shm.ErrGone] (the pipe is no more, or the reference was used
// before), [shm.ErrNoMemory] (descriptors too), [shm.ErrCorrupt].
func (c *Conn) UnmarshalBinary(data []byte) error {
	if len(data) != shm.RefSize || binary.LittleEndian.Uint32(data[28:])&0xfff > 1 {
		return fmt.Errorf("pipe: %w: no reference to a pipe", shm.ErrInvalid)
	}
	o, err := shm.Receive(data, shm.KindPipe)
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	var n name
	copy(n.bytes(), data)
	fd, err := takeFile(n)
	if err != nil {
		o.Drop()
		return fmt.Errorf("pipe: %w", err)
	}
	*c = *newConn(o, int(data[28]&1), fd)
	return nil
}

// Forget takes back a reference that nobody will receive.
func Forget(ref []byte) {
	if len(ref) == shm.RefSize {
		var n name
		copy(n.bytes(), ref)
		forgetFile(n)
		shm.Forget(ref)
	}
}
