package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/polyproc/polyproc/shm"
)

var (
	// ErrShutdown says that the queue was shut down for all processes and, to a getter, that nothing is left in it.
	ErrShutdown = errors.New("queue: shut down")
	// ErrEmpty says that there is no message now.
	ErrEmpty = errors.New("queue: empty")
	// ErrFull says that there is no room now.
	ErrFull = errors.New("queue: full")
	// ErrBusy says that some process was in the middle of an operation for longer than a call that is not to wait waits: 50 ms.
	ErrBusy = errors.New("queue: another process is in the middle of an operation")
	// ErrClosed says that this process has closed its handle by [Queue.Close]. It is an [os.ErrClosed].
	ErrClosed = fmt.Errorf("queue: %w", os.ErrClosed)
	// ErrTaskDone says that TaskDone was called more often than there were messages.
	ErrTaskDone = errors.New("queue: TaskDone was called more often than there were messages")
	// ErrAcked says that a lease was over already.
	ErrAcked = errors.New("queue: the lease is over")
)

// Options say what queue to make. The zero value is good.
type Options struct {
	// MaxSize is how many messages it holds at most, up to 2^31-1. 0: unbounded, Put waits for nobody.
	MaxSize int
}

// Queue is a queue of values between processes: each value is delivered once, to one getter. It lies in shared memory: a Put that has returned
// is not undone by the death of the process, and whoever dies at whatever instruction leaves it as it was before or after its call.
//
// The methods may be called from several goroutines at once.
type Queue[T any] struct {
	// Codec is how values travel. Set it before the first use, also before UnmarshalBinary; zero: [DefaultCodec].
	Codec Codec[T]

	raw  *raw
	once sync.Once
	name string
	asIs bool // the values are []byte and the codec is the default one: messages need no decoding
}

// New makes a queue in a heap; nil: that of this process's family, [shm.Family]. Errors: [shm.ErrNoMemory], [shm.ErrInvalid],
// [shm.ErrUnsupported].
func New[T any](h *shm.Heap, o Options) (*Queue[T], error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if h == nil {
		var err error
		if h, err = shm.Family(); err != nil {
			return nil, fmt.Errorf("queue: %w", err)
		}
	}
	object, err := makeIn(h, o)
	if err != nil {
		return nil, err
	}
	return &Queue[T]{raw: openRaw(object, false)}, nil
}

func (o Options) check() error {
	if o.MaxSize < 0 || o.MaxSize > itemsMost {
		return fmt.Errorf("queue: MaxSize %d: %w", o.MaxSize, shm.ErrInvalid)
	}
	return nil
}

func makeIn(h *shm.Heap, o Options) (*shm.Object, error) {
	object, err := h.NewObject(shm.KindQueue, sizeQueue)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	(*head)(object.Pointer()).maxsize = uint64(o.MaxSize)
	return object, nil
}

// Create makes a queue with a name, which other processes of the same user find until [Unlink]: C programs, Python and Go. The name
// has 1 to 200 bytes, no slash, and no dot at its start. Errors: [fs.ErrExist], and as New.
func Create[T any](name string, o Options) (*Queue[T], error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	file, err := fileName(name)
	if err != nil {
		return nil, err
	}
	h, err := shm.CreateNamedHeap(file)
	if err != nil {
		return nil, fmt.Errorf("queue %s: %w", name, err)
	}
	return inNamed[T](h, name, o)
}

// Open finds the queue with that name. Errors: [fs.ErrNotExist], [fs.ErrPermission] (it is not of this user alone), [shm.ErrCorrupt],
// [shm.ErrNoMemory], [shm.ErrUnsupported] (processes of another pid namespace have it open).
func Open[T any](name string) (*Queue[T], error) {
	file, err := fileName(name)
	if err != nil {
		return nil, err
	}
	h, err := shm.OpenNamedHeap(file)
	if err != nil {
		return nil, fmt.Errorf("queue %s: %w", name, err)
	}
	return inNamed[T](h, name, Options{})
}

// OpenOrCreate finds the queue with that name, or makes it.
func OpenOrCreate[T any](name string, o Options) (*Queue[T], error) {
	for {
		q, err := Open[T](name)
		if errors.Is(err, os.ErrNotExist) {
			q, err = Create[T](name, o)
		}
		if !errors.Is(err, os.ErrExist) { // it came in between
			return q, err
		}
	}
}

// Unlink removes the name of a queue. Who has opened it goes on with it. Errors: [fs.ErrNotExist].
func Unlink(name string) error {
	file, err := fileName(name)
	if err != nil {
		return err
	}
	return shm.Unlink(file)
}

func fileName(name string) (string, error) {
	if len(name) == 0 || len(name) > 200 || name[0] == '.' || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("queue: name %q: %w", name, shm.ErrInvalid)
	}
	return "pp.q." + name, nil
}

// inNamed finds the queue in its heap, or makes it there: who created the heap may have died before.
func inNamed[T any](h *shm.Heap, name string, o Options) (*Queue[T], error) {
	object, err := rootOf(h, o)
	if err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("queue %s: %w", name, err)
	}
	return &Queue[T]{raw: openRaw(object, true), name: name}, nil
}

func rootOf(h *shm.Heap, o Options) (*shm.Object, error) {
	for {
		if root := atomic.LoadUint64(h.Root()); root != 0 {
			return h.ObjectAt(root, shm.KindQueue, 0)
		}
		object, err := makeIn(h, o)
		if err != nil {
			return nil, err
		}
		object.Keep() // the root's reference: the queue is there until the file is not
		if atomic.CompareAndSwapUint64(h.Root(), 0, object.Off()) {
			return object, nil
		}
		object.Unkeep()
		object.Drop() // somebody else was first
	}
}

// Close releases this process's handle of the queue; calls of this process that wait return [ErrClosed]. Other processes go on: the
// queue and its messages stay as long as any process has a handle, a reference is in flight, or the queue has a name. To end the
// queue for all processes, call [Queue.Shutdown]. Close returns nil, also when it is called again.
func (q *Queue[T]) Close() error {
	if q.raw != nil {
		q.raw.free()
	}
	return nil
}

// use returns the queue, if it is one.
func (q *Queue[T]) use() (*raw, error) {
	if q.raw == nil {
		return nil, ErrClosed
	}
	q.once.Do(func() {
		if q.Codec.Append == nil && q.Codec.Decode == nil {
			q.Codec = DefaultCodec[T]()
			_, q.asIs = any(*new(T)).([]byte)
		}
	})
	return q.raw, nil
}

// buffers are for messages on their way in and out.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, inlineMost); return &b }}

const bufferMost = 1 << 20 // larger ones are left to the garbage collector

func giveBuffer(p *[]byte, b []byte) {
	if cap(b) <= bufferMost {
		*p = b[:0]
		buffers.Put(p)
	}
}

// Put puts a value, waiting for room as long as ctx allows. When it returns nil, the value will be delivered. On an error nothing was put. Errors: [ErrShutdown], the
// context's, [ErrClosed], [shm.ErrNoMemory], [shm.ErrCorrupt], the codec's.
func (q *Queue[T]) Put(ctx context.Context, v T) error { return q.put(ctx, false, v) }

// TryPut puts a value if there is room. Errors as Put's, and [ErrFull], [ErrBusy].
func (q *Queue[T]) TryPut(v T) error { return q.put(context.Background(), true, v) }

func (q *Queue[T]) put(ctx context.Context, try bool, v T) error {
	r, err := q.use()
	if err != nil {
		return err
	}
	if q.asIs {
		return r.putOne(ctx, try, any(v).([]byte), Raw)
	}
	p := buffers.Get().(*[]byte)
	b, err := q.Codec.Append((*p)[:0], v)
	if err == nil {
		err = r.putOne(ctx, try, b, q.Codec.Number)
	}
	giveBuffer(p, b)
	return err
}

// PutMany puts values; as many as there is room for become visible at once. Returns how many were put, also with an error. Errors
// as Put's.
func (q *Queue[T]) PutMany(ctx context.Context, values []T) (int, error) {
	r, err := q.use()
	if err != nil {
		return 0, err
	}
	p := buffers.Get().(*[]byte)
	b := (*p)[:0]
	sizes := make([]int, len(values))
	for i, v := range values {
		before := len(b)
		if b, err = q.Codec.Append(b, v); err != nil {
			return 0, err
		}
		sizes[i] = len(b) - before
	}
	n, err := r.putMany(ctx, b, sizes, q.Codec.Number)
	giveBuffer(p, b)
	return n, err
}

// Get takes the next value, waiting for one as long as ctx allows. Errors: [ErrShutdown] (and nothing is left), the context's, [ErrClosed],
// *[DecodeError], [shm.ErrCorrupt], [shm.ErrNoMemory].
func (q *Queue[T]) Get(ctx context.Context) (T, error) { return q.get(ctx, false) }

// TryGet takes the next value if there is one. Errors as Get's, and [ErrEmpty], [ErrBusy].
func (q *Queue[T]) TryGet() (T, error) { return q.get(context.Background(), true) }

func (q *Queue[T]) get(ctx context.Context, try bool) (v T, err error) {
	r, err := q.use()
	if err != nil {
		return v, err
	}
	var m message
	if q.asIs {
		err := r.getOne(ctx, try, false, nil, &m)
		if m.cell != nil {
			m.data = clone(m.data)
			r.done(&m)
		}
		v, _ = any(m.data).(T)
		return v, err
	}
	p := buffers.Get().(*[]byte)
	err = r.getOne(ctx, try, false, (*p)[:0], &m)
	if err == nil {
		v, err = q.decode(m.data, m.codec)
		r.done(&m)
	}
	buffers.Put(p)
	return v, err
}

func (q *Queue[T]) decode(data []byte, codec uint32) (v T, err error) {
	_, bytes := any(v).([]byte)
	if uint32(q.Codec.Number) == codec || (bytes && q.Codec.Number == Raw) {
		v, err = q.Codec.Decode(data)
	} else {
		err = fmt.Errorf("the receiver's is %d", q.Codec.Number)
	}
	if err != nil {
		err = &DecodeError{Codec: uint16(codec), Data: clone(data), Err: err}
	}
	return v, err
}

// GetMany takes up to most values that are there, and waits only if there is none. With an error of decoding it returns the values
// before that one; those behind it stay in the queue or are lost with it. Errors as Get's.
func (q *Queue[T]) GetMany(ctx context.Context, most int) ([]T, error) {
	if most < 1 {
		return nil, fmt.Errorf("queue: GetMany of %d: %w", most, shm.ErrInvalid)
	}
	first, err := q.Get(ctx)
	if err != nil {
		return nil, err
	}
	p := buffers.Get().(*[]byte)
	b, sizes, codecs := q.raw.getRest((*p)[:0], most-1)
	values := append(make([]T, 0, 1+len(sizes)), first)
	for i, at := 0, 0; i < len(sizes) && err == nil; i++ {
		var v T
		if v, err = q.decode(b[at:at+sizes[i]], codecs[i]); err == nil {
			values = append(values, v)
		}
		at += sizes[i]
	}
	buffers.Put(p)
	return values, err
}

// All returns the values as they come, until the queue is closed and empty, or ctx ends, or something else is wrong: then
// it yields the error, but for [ErrShutdown], and is over.
func (q *Queue[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			v, err := q.Get(ctx)
			if errors.Is(err, ErrShutdown) {
				return
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Lease is a value that this process has taken and not acknowledged: if it ends before it has, another gets the value.
type Lease[T any] struct {
	Value T
	raw   *raw
	mu    sync.Mutex
	m     message
}

// Lease takes the next value until it is acknowledged. Errors as Get's; a value that cannot be decoded counts as acknowledged.
func (q *Queue[T]) Lease(ctx context.Context) (*Lease[T], error) { return q.lease(ctx, false) }

// TryLease leases a value if there is one. Errors as Lease's, and [ErrEmpty], [ErrBusy].
func (q *Queue[T]) TryLease() (*Lease[T], error) { return q.lease(context.Background(), true) }

func (q *Queue[T]) lease(ctx context.Context, try bool) (*Lease[T], error) {
	r, err := q.use()
	if err != nil {
		return nil, err
	}
	var m message
	if err := r.getOne(ctx, try, true, nil, &m); err != nil {
		return nil, err
	}
	v, err := q.decode(m.data, m.codec)
	if err != nil {
		_ = r.ack(&m, false)
		return nil, err
	}
	return &Lease[T]{Value: v, raw: r, m: m}, nil
}

// Ack acknowledges the value: nobody gets it again. Errors: [ErrAcked], [shm.ErrCorrupt].
func (l *Lease[T]) Ack() error { return l.end(false) }

// Return gives the value back: it is the first that the next getter gets. Errors as Ack's.
func (l *Lease[T]) Return() error { return l.end(true) }

func (l *Lease[T]) end(back bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.raw.ack(&l.m, back)
}

// Len returns how many messages are in the queue at this moment, exactly. Errors: [ErrClosed].
func (q *Queue[T]) Len() (int, error) {
	r, err := q.use()
	if err != nil {
		return 0, err
	}
	return r.length()
}

// Stats returns all that can be known of the queue. Errors: [ErrClosed].
func (q *Queue[T]) Stats() (Stats, error) {
	r, err := q.use()
	if err != nil {
		return Stats{}, err
	}
	return r.stats()
}

// Descriptor returns a descriptor for poll(2), select(2) and epoll(7), by which a program waits for the queue beside other things. It
// becomes readable when there is something to get: a value, or [ErrShutdown]. It stays readable until a call of this Queue finds it
// empty: TryGet and its kin, Len, Stats or Descriptor. So it may be readable although another getter was faster: call TryGet then,
// and wait again after [ErrEmpty]. A value makes it readable soon after the put; if the putter is killed in the middle of its call, within
// half a second. Descriptor itself looks, so that the descriptor is readable when it returns if there is something to get.
//
// It is for waiting only: the program neither reads nor closes it. It stays the queue's, until Close, and each call returns the same.
// A queue whose descriptor was asked for has one goroutine that waits. Errors: [ErrClosed], [shm.ErrNoMemory], a [syscall.Errno]
// (no descriptor is left).
func (q *Queue[T]) Descriptor() (int, error) {
	r, err := q.use()
	if err != nil {
		return -1, err
	}
	return r.descriptor()
}

// TaskDone says that one value that was taken has been dealt with. Errors: [ErrTaskDone], [ErrClosed].
func (q *Queue[T]) TaskDone() error {
	r, err := q.use()
	if err != nil {
		return err
	}
	return r.taskDone()
}

// Join waits until TaskDone was called for every value. Errors: the context's, [ErrClosed].
func (q *Queue[T]) Join(ctx context.Context) error {
	r, err := q.use()
	if err != nil {
		return err
	}
	return r.join(ctx)
}

// Shutdown ends the queue for all processes, as close ends a channel: each later Put fails with [ErrShutdown], getters take the
// messages that are left and then get ErrShutdown too. It does not release this process's handle, which [Queue.Close] does.
// A second Shutdown does nothing. Errors: [ErrBusy] (a process is stopped in the middle of a put), [ErrClosed].
func (q *Queue[T]) Shutdown() error {
	r, err := q.use()
	if err != nil {
		return err
	}
	return r.close()
}

// MarshalBinary returns a reference to the queue, 32 bytes that mean the same in every process of the family, C and Python too (pp_ref_import): send it by
// whatever means, each to one receiver. The queue lives until it is received, whatever happens to this process. encoding/gob and so
// core/pool's arguments call it. A named queue is opened by its name instead: its reference is good only where it is open. Errors: [ErrClosed], [shm.ErrNoMemory].
func (q *Queue[T]) MarshalBinary() ([]byte, error) {
	r, err := q.use()
	if err != nil {
		return nil, err
	}
	return r.send()
}

// UnmarshalBinary makes q the queue whose reference was sent here. q must be new. Errors: [shm.ErrInvalid] (no queue, or of another family, or q
// is one already), [shm.ErrGone], [shm.ErrCorrupt], [shm.ErrNoMemory].
func (q *Queue[T]) UnmarshalBinary(data []byte) error {
	if q.raw != nil {
		return fmt.Errorf("queue: it is a queue already: %w", shm.ErrInvalid)
	}
	object, err := shm.Receive(data, shm.KindQueue)
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	q.raw = openRaw(object, false)
	return nil
}
