package shm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Heap is memory that a family of processes shares: blocks that any of them allocates and any frees, and objects, which live as long as a process
// has a reference. It is one sparse file that everyone maps whole, once; storage is reserved as it is needed and given back. C programs
// and Python have the same heap by libpolyproc: capi/front/heap.h has the layout and the rules.
//
//	offset 0      head: identity, hints          16 MiB   references: who holds what
//	4 KiB         members: which processes       32 MiB   blocks: slabs of 1 MiB, each owned by the process that allocates there
//	1 MiB         slabs: what each MiB is for    64 GiB   the end, less where a limit says so
//
// Allocation takes no lock of other processes; a free is one compare-and-swap from the tag that the block was allocated with, so that whoever
// cleans up after the dead may free twice. What a dead process had claimed others take over.
//
// An offset means the same in every process, an address does not. The methods may be called from several goroutines at once.
// Linux only: elsewhere making one is [ErrUnsupported].
type Heap struct {
	seg     *Segment
	mem     []byte // what is mapped
	base    unsafe.Pointer
	head    *heapHead
	members *Members
	id      uint64
	slabs   uint32 // how many are mapped

	opened     atomic.Uint64 // blocks before this offset may be touched: see capi/front/heap.h
	refsOpened atomic.Uint32 // and cells before this one

	users  atomic.Int64 // objects of this process, and 1 until Close
	closed atomic.Bool
	me     atomic.Uint32
	joinMu sync.Mutex

	mu         sync.Mutex // what follows
	slabsReady uint32     // entries of the table of slabs that surely have storage
	small      [smallClasses]slabList
	large      [largeClasses]slabList
	runs       slabList
	adopting   adopting

	refsReady   atomic.Uint32 // the same of cells
	reapAt      atomic.Int64
	reapCursor  atomic.Uint32
	evictCursor atomic.Uint32
}

// ErrGone says that an object is no more.
var ErrGone = errors.New("shm: the object is no more")

const (
	heapLeast = slabSize * (slabFirst + 1)
	heapMost  = slabsMost * slabSize
)

// heaps has the heaps of this process, by id. A named one may be open several times.
var heaps = struct {
	sync.Mutex
	byID map[uint64][]*Heap
}{byID: map[uint64][]*Heap{}}

// CreateHeap makes an anonymous heap, which is there as long as a process has it. Errors: [ErrNoMemory], [ErrUnsupported].
func CreateHeap() (*Heap, error) {
	fd, err := createHeapFile()
	if err != nil {
		return nil, wrap("create a heap", err)
	}
	h, err := AttachHeap(fd)
	if err != nil {
		_ = closeFD(fd)
	}
	return h, err
}

// CreateNamedHeap makes a heap that other processes of the same user open by name, until [Unlink]; name as in [CreateNamed].
// Errors: [fs.ErrExist], [ErrNoMemory], [ErrInvalid], [ErrUnsupported].
func CreateNamedHeap(name string) (*Heap, error) {
	name, err := checkName(name)
	if err != nil {
		return nil, err
	}
	h, err := createNamedHeap(name)
	return h, wrap("create the heap "+name, err)
}

// OpenNamedHeap opens a heap that has a name. Errors: [fs.ErrNotExist], [fs.ErrPermission] (it is not of this user alone), [ErrCorrupt],
// [ErrNoMemory], [ErrUnsupported] (processes of another pid namespace have it open).
func OpenNamedHeap(name string) (*Heap, error) {
	name, err := checkName(name)
	if err != nil {
		return nil, err
	}
	fd, err := openHeapFile(name)
	if err != nil {
		return nil, wrap("open the heap "+name, err)
	}
	h, err := attachHeap(fd, true)
	if err != nil {
		_ = closeFD(fd)
	}
	return h, err
}

// AttachHeap maps the heap behind a descriptor, which belongs to it from now on and becomes close-on-exec; if it fails the descriptor stays the
// caller's. Errors: [ErrCorrupt] (no heap, or of another version), [ErrNoMemory] (address space), [ErrUnsupported] (another pid namespace).
func AttachHeap(fd int) (*Heap, error) { return attachHeap(fd, false) }

func attachHeap(fd int, named bool) (*Heap, error) {
	seg, err := AttachSparse(fd)
	if err != nil {
		return nil, err
	}
	size := uint64(seg.Size())
	if size < heapLeast || size > heapMost || size%slabSize != 0 {
		return nil, fmt.Errorf("%w: descriptor %d is no heap", ErrCorrupt, fd)
	}
	h := &Heap{seg: seg, slabsReady: storageStep / sizeSlab}
	h.adopting.pause = adoptPause
	h.users.Store(1)
	h.refsReady.Store(storageStep / 8)
	// Head and members; a first part of the tables of slabs and of references. A process that joins
	// needs no memory.
	first := []int64{0, slabsOff, refsOff}
	for _, off := range first {
		if stored(fd) >= int64(len(first))*storageStep {
			break
		}
		if err := seg.Reserve(off, storageStep); err != nil {
			return nil, err
		}
	}
	if h.mem, err = mapHeap(fd, size); err != nil {
		return nil, wrap("map a heap", err)
	}
	h.base = addressOf(h.mem)
	h.head = (*heapHead)(h.base)
	h.slabs = uint32(len(h.mem) / slabSize)
	h.opened.Store(slabFirst * slabSize)
	h.refsOpened.Store(storageStep / 8)
	err = errors.Join(h.open(0, slabsOff+storageStep), h.open(refsOff, storageStep))
	if err == nil {
		h.id, err = h.initialize(size)
	}
	if err == nil && named {
		err = wrap("open a named heap", h.openNamed())
	}
	if err == nil {
		h.members, err = NewMembers(seg, h.mem[membersOff:membersOff+MembersSize(heapMembers)])
	}
	if err != nil {
		_ = unmapRange(h.mem)
		return nil, err
	}
	heaps.Lock()
	defer heaps.Unlock()
	heaps.byID[h.id] = append(heaps.byID[h.id], h)
	return h, nil
}

// initialize makes a heap of zeros. Several processes may do it at the same time, and any may die on the way: zeros are an empty heap,
// and all write the same, but for the id.
func (h *Heap) initialize(size uint64) (id uint64, err error) {
	head := h.head
	if atomic.LoadUint64(&head.magic) == 0 {
		for i := range head.id {
			atomic.CompareAndSwapUint64(&head.id[i], 0, rand.Uint64()|1)
		}
		atomic.StoreUint32(&head.abi, heapABI)
		atomic.StoreUint64(&head.size, size)
		atomic.StoreUint64(&head.magic, heapMagic)
	}
	id = atomic.LoadUint64(&head.id[0])
	if atomic.LoadUint64(&head.magic) != heapMagic || atomic.LoadUint32(&head.abi) != heapABI ||
		atomic.LoadUint64(&head.size) != size || id == 0 {
		return 0, fmt.Errorf("%w: this is no heap of polyproc, or of another version", ErrCorrupt)
	}
	return id, nil
}

// Close ends this process's use of the heap, once the last of its objects was dropped: then its place among the members goes, and the mapping. It is for named
// heaps: the family's stays. The second call does nothing.
func (h *Heap) Close() error {
	if !h.closed.CompareAndSwap(false, true) {
		return nil
	}
	return h.leave()
}

// retain keeps the heap mapped until leave, unless that is too late.
func (h *Heap) retain() bool {
	for {
		n := h.users.Load()
		if n == 0 || h.users.CompareAndSwap(n, n+1) {
			return n != 0
		}
	}
}

func (h *Heap) leave() error {
	if h.users.Add(-1) > 0 {
		return nil
	}
	if me := h.Me(); me != 0 {
		h.sweep(me)
		h.members.Leave(me)
	}
	heaps.Lock()
	heaps.byID[h.id] = slices.DeleteFunc(heaps.byID[h.id], func(other *Heap) bool { return other == h })
	if len(heaps.byID[h.id]) == 0 {
		delete(heaps.byID, h.id)
	}
	heaps.Unlock()
	return errors.Join(wrap("unmap a heap", unmapRange(h.mem)), h.seg.Close())
}

// FD returns the descriptor, which stays the heap's.
func (h *Heap) FD() int { return h.seg.FD() }

// ID tells heaps apart.
func (h *Heap) ID() uint64 { return h.id }

// Root is the word that names the one object of a named heap: its offset; 0: there is none yet.
func (h *Heap) Root() *uint64 { return &h.head.root }

// Mapped returns how many bytes of the heap this process can use.
func (h *Heap) Mapped() uint64 { return uint64(len(h.mem)) }

// At returns size bytes at off, for an offset that was read from shared memory: false if they do not lie in the blocks.
func (h *Heap) At(off, size uint64) ([]byte, bool) {
	if !h.within(off, size) {
		return nil, false
	}
	return h.mem[off : off+size : off+size], true
}

// Within is the address of size bytes at off, nil if they do not lie in the blocks, or off is not a multiple of 8.
func (h *Heap) Within(off, size uint64) unsafe.Pointer {
	if off%8 != 0 {
		return nil
	}
	// What within would find first: one call less for each message.
	if end := h.opened.Load(); off < slabFirst*slabSize || off > end || size > end-off {
		if !h.within(off, size) {
			return nil
		}
	}
	return unsafe.Add(h.base, off)
}

func (h *Heap) within(off, size uint64) bool {
	end := h.opened.Load()
	if off > end || size > end-off {
		end = uint64(h.top()) << slabShift
	}
	return off >= slabFirst*slabSize && off <= end && size <= end-off
}

// open lets this process touch a range of the mapping.
func (h *Heap) open(off, size uint64) error {
	from := off / uint64(pageSize) * uint64(pageSize)
	return wrap("open a part of the heap", openRange(h.mem[from:off+size]))
}

// Me returns who this process is among the members, 0 before Join.
func (h *Heap) Me() Owner { return Owner(h.me.Load()) }

// Join makes this process a member, unless it is one. Errors: [ErrNoMemory] (all places are taken by the living), [ErrUnsupported].
func (h *Heap) Join() (Owner, error) {
	if me := h.Me(); me != 0 {
		return me, nil
	}
	h.joinMu.Lock()
	defer h.joinMu.Unlock()
	if me := h.Me(); me != 0 {
		return me, nil
	}
	// Who sweeps destroys objects, and that may ask for a name; and without one the cells of the dead cannot be made our own. So first the name: cells of who is in the
	// table no more anybody may sweep.
	buried := false
	me, err := h.members.Join(func(Owner) { buried = true })
	if err != nil {
		return 0, err
	}
	h.me.Store(uint32(me))
	if buried {
		h.sweep(0)
	}
	h.reap(16, false)
	return me, nil
}

// Gone reports whether a member is proven dead, see [Members.Gone]. Up to 150 us: only after a wait of some ms.
func (h *Heap) Gone(o Owner) bool { return h.gone(o, true) }

// PID returns a member's process id, 0 if it is not in the table any more.
func (h *Heap) PID(o Owner) int {
	word, ok := h.members.word(o)
	if !ok {
		return 0
	}
	return int(memberPID(word))
}

// gone with deep false does not look at the member's memory map, so that a process which executes another program is not noticed.
func (h *Heap) gone(o Owner, deep bool) bool {
	if o.inFlight() {
		return false
	}
	word, ok := h.members.word(o)
	if !ok {
		return true
	}
	if identityIn(word).Gone() {
		return true
	}
	pid := int(memberPID(word))
	if pid == os.Getpid() {
		return !remembered(h.members.id, o)
	}
	return deep && unmapped(pid, h.members.file)
}

// current reports whether the member's place was not given to another since.
func (h *Heap) current(o Owner) bool {
	_, ok := h.members.word(o)
	return ok
}

// Reap drops the references that dead members have held, and frees their places. It happens by itself, sooner or later.
func (h *Heap) Reap() { h.reap(heapMembers, true) }

// reap sweeps behind dead members, looking at most at so many.
func (h *Heap) reap(most int, deep bool) {
	at := h.reapCursor.Load()
	looked := 0
	for range heapMembers {
		if looked == most {
			break
		}
		at = (at + 1) % heapMembers
		word := atomic.LoadUint64(&h.members.slots[at])
		o := memberOwner(word, uint32(at))
		if word&memberTaken == 0 {
			continue
		}
		if o == h.Me() {
			// We joined when no descriptor was free, so that our id could not be found.
			if i := identityIn(word); i&memberKinds == memberByStart && i.id() == 0 {
				if who, err := Identify(os.Getpid()); err == nil {
					atomic.CompareAndSwapUint64(&h.members.slots[at], word, uint64(who)|word&memberGenMask)
				}
			}
			continue
		}
		looked++
		if h.gone(o, deep) {
			h.members.bury(o, word, h.sweep)
		}
	}
	h.reapCursor.Store(at)
}

// Tag returns a number from 2 to 2^31-1 that was not given for a long time: for Alloc.
func (h *Heap) Tag() uint32 {
	return uint32((atomic.AddUint64(&h.head.nextTag, 1)-1)%(giving-2)) + 2
}

var family struct {
	sync.Mutex
	fds  [2]int // heap, depot
	have bool
	heap *Heap
}

// Family returns the heap that this process shares with those it starts and with those that started it: the one it was given
// ([FamilyVar]), or a new one. It is made at the first call and stays. Errors: [ErrNoMemory], [ErrUnsupported].
//
// In a C or Python program libpolyproc has the family: the Go code in it must not ask for it here.
func Family() (*Heap, error) {
	h, err := attachFamily()
	if err != nil {
		return nil, err
	}
	// Who joins sweeps behind the dead, and what destroys their objects may ask for the family.
	if _, err = h.Join(); err != nil {
		return nil, err
	}
	return h, nil
}

func attachFamily() (*Heap, error) {
	family.Lock()
	defer family.Unlock()
	if family.heap != nil {
		return family.heap, nil
	}
	if err := familyFiles(); err != nil {
		return nil, err
	}
	h, err := AttachHeap(family.fds[0])
	if err != nil {
		return nil, err
	}
	family.heap = h
	return h, nil
}

// loadedFamily is the family's heap if this process has it already.
func loadedFamily() *Heap {
	family.Lock()
	defer family.Unlock()
	return family.heap
}

// FamilyVar names the environment variable that tells a process its family, "heap,depot,device:inode": two descriptors that it inherits and, in
// hexadecimal, which file the first is. It is taken out of the environment when the program starts.
const FamilyVar = "POLYPROC_FAMILY"

// Inherit returns what a child must be given to be of this process's family: descriptors, under the same numbers, and an entry for its
// environment. Errors as [Family].
func Inherit() (files []int, env string, err error) {
	family.Lock()
	defer family.Unlock()
	if err := familyFiles(); err != nil {
		return nil, "", err
	}
	env, err = describeFamily(family.fds)
	return family.fds[:], env, err
}

// familyFiles makes the descriptors unless they are there.
func familyFiles() error {
	if family.have {
		return nil
	}
	heap, err := createHeapFile()
	if err != nil {
		return wrap("the family's heap", err)
	}
	depot, err := createDepot()
	if err != nil {
		_ = closeFD(heap)
		return wrap("the family's socket", err)
	}
	family.fds, family.have = [2]int{heap, depot}, true
	return nil
}

func init() {
	if value, ok := os.LookupEnv(FamilyVar); ok {
		_ = os.Unsetenv(FamilyVar) // it is not for the programs that this one starts
		if Privileged() {
			return
		}
		if fds, err := takeFamily(value); err == nil {
			family.fds, family.have = fds, true
		}
	}
}
