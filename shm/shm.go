// Package shm is shared memory between processes and what stands directly on it: segments, futex words, bells, rings, arenas,
// a lock that survives the death of its owner, and heaps, which a family of processes shares. It knows nothing of tasks, pools or languages.
//
// # How data flows
//
//	process A                        one memfd                          process B
//	Producer.Stage --bytes--> | ring | rec | rec | pad |        | --> Consumer.Next   (bytes in place)
//	Producer.Publish -------> | tail: one 64-bit store commits  | --> Consumer sees the records
//	Bell.Ring --------------> | seq, waiters: futex             | --> Bell.Wait returns
//	Arena.Alloc/Block.Bytes > | block, reserved and warm        | --> Windows.At      (bytes in place)
//	                          | head: one 64-bit store          | <-- Consumer.Release gives the space back
//
// Three rules hold everywhere. Storage is reserved before it is touched, so full memory is an error and never SIGBUS. One
// atomic store is the commit point of every operation, so a process that is killed at any instruction leaves only garbage that
// nobody can see. What the other process wrote is never trusted: positions and lengths are checked before use, and what cannot be
// is [ErrCorrupt].
//
// Shared words are accessed by sync/atomic, whose operations are sequentially consistent; the C side uses the same order.
//
// # Platforms
//
// Linux has everything. On other systems segments work as far as each function says, futex waits are polls, and what is missing
// answers [ErrUnsupported].
package shm

//go:generate go run ../core/internal/cgen/cmd/cgen -prefix pp_ -o ../capi/front/heap_layout.gen.h -include mem.h heap_layout.go

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"
)

var (
	// ErrNoMemory says that memory, or a limit on memory, file size or address space, is exhausted.
	ErrNoMemory = errors.New("shm: out of memory, or a limit on memory, file size or address space")
	// ErrCorrupt says that shared memory does not hold what it must.
	ErrCorrupt = errors.New("shm: shared memory does not hold what it must")
	// ErrInterrupted says that a signal handler ran during a wait: call again.
	ErrInterrupted = errors.New("shm: interrupted by a signal")
	// ErrUnsupported says that this platform cannot do it.
	ErrUnsupported = errors.New("shm: not supported on this platform")
	// ErrInvalid says that an argument is out of range.
	ErrInvalid = errors.New("shm: invalid argument")
)

// pageSize is what offsets of mappings are multiples of.
var pageSize = int64(mapGranularity())

// Segment is shared memory behind one descriptor. Its methods may be called from several goroutines at once. A segment is closed
// by Close and by nothing else: the garbage collector does not know who still holds slices of its memory.
type Segment struct {
	mu   sync.RWMutex // held to use the descriptor or, exclusively, to close it
	fd   int
	size int64
	data []byte // the whole mapping; nil for a sparse segment
}

// Create returns an anonymous segment of size bytes, zeroed, whole storage reserved and mapped; its size is sealed. The descriptor is
// close-on-exec and never 0, 1 or 2. Errors: [ErrNoMemory], [ErrInvalid] (size < 1).
func Create(size int64) (*Segment, error) {
	s, err := CreateSparse(size)
	if err != nil {
		return nil, err
	}
	return s.complete()
}

// CreateSparse returns an anonymous segment like Create's, but with nothing reserved and nothing mapped: use Reserve, then Map.
func CreateSparse(size int64) (*Segment, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	fd, err := createAnonymous(size)
	if err != nil {
		return nil, wrap("create", err)
	}
	return &Segment{fd: fd, size: size}, nil
}

// CreateNamed returns a new segment that other processes open by name; name is one path element, at most 255 bytes, and may begin
// with a slash. Only the same user may open it. The name appears when the segment is ready, and stays until [Unlink].
// Errors: [fs.ErrExist], [ErrNoMemory], [ErrInvalid].
func CreateNamed(name string, size int64) (*Segment, error) {
	name, err := checkName(name)
	if err != nil {
		return nil, err
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	s, err := createNamed(name, size)
	if err != nil {
		return nil, wrap("create "+name, err)
	}
	return s, nil
}

// OpenNamed opens a segment that [CreateNamed], or shm_open(3) of another program, made. Errors: [fs.ErrNotExist],
// [fs.ErrPermission] (it is not of this user alone: its owner, its mode or a second link; or it is no regular file), [ErrCorrupt] (it has no
// size), [ErrNoMemory].
func OpenNamed(name string) (*Segment, error) {
	name, err := checkName(name)
	if err != nil {
		return nil, err
	}
	s, err := openNamed(name)
	if err != nil {
		return nil, wrap("open "+name, err)
	}
	return s, nil
}

// Unlink removes a name. Segments that are open stay as they are. Errors: [fs.ErrNotExist].
func Unlink(name string) error {
	name, err := checkName(name)
	if err != nil {
		return err
	}
	return wrap("unlink "+name, unlinkNamed(name))
}

// Attach maps the segment behind an inherited or received descriptor, which belongs to the segment from now on and becomes
// close-on-exec; if it fails the descriptor stays the caller's. Errors: [ErrCorrupt] (no size, no regular file, or a memfd that
// could still shrink under us), [ErrNoMemory].
func Attach(fd int) (*Segment, error) {
	s, err := AttachSparse(fd)
	if err != nil {
		return nil, err
	}
	if s.data, err = mapRange(fd, 0, s.size); err != nil {
		return nil, wrap("attach", err)
	}
	return s, nil
}

// AttachSparse is Attach without a mapping: use Map.
func AttachSparse(fd int) (*Segment, error) {
	size, err := adopt(fd)
	if err != nil {
		return nil, wrap("attach", err)
	}
	return &Segment{fd: fd, size: size}, nil
}

// AttachProcess attaches the segment that is descriptor fd of process pid, which takes the right to trace it (the same user).
// Errors: [fs.ErrNotExist], [fs.ErrPermission], [ErrUnsupported], and Attach's.
func AttachProcess(pid, fd int) (*Segment, error) {
	own, err := openOf(pid, fd)
	if err != nil {
		return nil, wrap(fmt.Sprintf("attach descriptor %d of process %d", fd, pid), err)
	}
	s, err := Attach(own)
	if err != nil {
		_ = closeFD(own)
		return nil, err
	}
	return s, nil
}

// complete reserves and maps all of a new segment.
func (s *Segment) complete() (*Segment, error) {
	err := s.Reserve(0, s.size)
	if err == nil {
		s.data, err = mapRange(s.fd, 0, s.size)
	}
	if err != nil {
		_ = s.Close()
		return nil, wrap("create", err)
	}
	return s, nil
}

// FD returns the descriptor, which stays the segment's; -1 after Close.
func (s *Segment) FD() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fd
}

// Size returns the size in bytes.
func (s *Segment) Size() int64 { return s.size }

// Bytes returns the whole mapping: nil for a sparse segment and after Close.
func (s *Segment) Bytes() []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.data
}

// Reserve gets storage for n bytes from off, so that touching them cannot fail; what they hold stays. It refuses what would
// exhaust the machine or the control group rather than have the kernel kill somebody. On an error part of the range may be reserved.
// Errors: [ErrNoMemory], [ErrInvalid] (outside of the segment), [os.ErrClosed].
func (s *Segment) Reserve(off, n int64) error { return s.reserve(nil, off, n) }

// reserve with the budget of a heap, nil: none.
func (s *Segment) reserve(budget *uint64, off, n int64) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	return s.with("reserve", func(fd int) error { return reserve(fd, budget, off, n) })
}

// Punch gives the storage of n bytes from off back to the system; they read as zeros afterwards. Only whole pages free storage.
func (s *Segment) Punch(off, n int64) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	return s.with("punch", func(fd int) error { return punch(fd, off, n) })
}

// Map maps n bytes from off, a multiple of the page size (Windows: 64 KiB), readable and writable. The window outlives Close; Unmap ends it.
// Errors: [ErrInvalid], [ErrNoMemory] (address space), [os.ErrClosed].
func (s *Segment) Map(off, n int64) ([]byte, error) {
	if err := s.check(off, n); err != nil {
		return nil, err
	}
	if n == 0 || off%pageSize != 0 {
		return nil, fmt.Errorf("%w: window of %d bytes at %d", ErrInvalid, n, off)
	}
	var b []byte
	err := s.with("map", func(fd int) (err error) {
		b, err = mapRange(fd, off, n)
		return err
	})
	return b, err
}

// Unmap ends a window that Map returned. Nobody may touch its bytes any more.
func (s *Segment) Unmap(b []byte) error {
	if cap(b) == 0 {
		return nil
	}
	return wrap("unmap", unmapRange(b[:cap(b)]))
}

// Prefault has the kernel fill in the page tables of b, so that the first touch costs nothing. Best effort.
func (s *Segment) Prefault(b []byte) {
	if len(b) > 0 {
		prefault(b)
	}
}

// Close unmaps the whole mapping, not the windows of Map, and closes the descriptor. The second call does nothing.
func (s *Segment) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	var err error
	if s.data != nil {
		err = unmapRange(s.data)
		s.data = nil
	}
	err = errors.Join(err, closeFD(s.fd))
	s.fd = -1
	return wrap("close", err)
}

// with runs f with the descriptor, which is not closed meanwhile.
func (s *Segment) with(what string, f func(fd int) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return fmt.Errorf("shm: %s: %w", what, os.ErrClosed)
	}
	return wrap(what, f(s.fd))
}

func (s *Segment) check(off, n int64) error {
	if off < 0 || n < 0 || off > s.size || n > s.size-off {
		return fmt.Errorf("%w: %d bytes at %d of a segment of %d", ErrInvalid, n, off, s.size)
	}
	return nil
}

func checkSize(size int64) error {
	if size < 1 || int64(int(size)) != size {
		return fmt.Errorf("%w: segment of %d bytes", ErrInvalid, size)
	}
	return nil
}

func checkName(name string) (string, error) {
	bare := strings.TrimPrefix(name, "/")
	if bare == "" || bare == "." || bare == ".." || len(bare) > 255 || strings.ContainsAny(bare, "/\x00") {
		return "", fmt.Errorf("%w: name %q", ErrInvalid, name)
	}
	return bare, nil
}

// wrap gives an error of the system its context, and ErrNoMemory beside it if that is what it means.
func wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case isNoMemory(err) && !errors.Is(err, ErrNoMemory):
		return fmt.Errorf("shm: %s: %w (%w)", what, ErrNoMemory, err)
	case strings.HasPrefix(err.Error(), "shm: "):
		return err
	default:
		return fmt.Errorf("shm: %s: %w", what, err)
	}
}

func pageFloor(n int64) int64 { return n &^ (pageSize - 1) }
func pageCeil(n int64) int64  { return (n + pageSize - 1) &^ (pageSize - 1) }

func addressOf(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
