//go:build linux && amd64 && !race

package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/core/queue"
	"github.com/polyproc/polyproc/shm"
)

// The kill sweep, as in shm/killsweep_test.go: a child is single-stepped through one operation on a queue. After each instruction that
// changed the heap, a copy of it is what survivors would find had the child been killed there; they run on the copy, with a process that is
// really dead in the child's place, and must find exactly what holds if the operation happened or exactly what holds if it did not, a queue
// that works, and, once all is given back, at most one block too many: the one that was allocated and not yet linked. Some children
// are killed in earnest.
//
// The race detector's instructions are not those that are shipped, so this is not built with it.

type swept struct {
	name     string
	maxSize  int
	prepare  func(t testing.TB, q *queue.Queue[[]byte])
	ready    func(q *queue.Queue[[]byte]) func(ctx context.Context) error
	before   []string
	after    []string
	dead     int  // the lock that a member holds who is no more: which word
	cold     bool // the child has never allocated before
	anyOrder bool // what a dead process has leased comes when that is noticed
}

const bigSize = 40_000 // more than goes inline

func show(b []byte) string {
	if len(b) > 16 {
		return fmt.Sprintf("%c*%d", b[0], len(b))
	}
	return string(b)
}

func fill(messages ...any) func(testing.TB, *queue.Queue[[]byte]) {
	return func(t testing.TB, q *queue.Queue[[]byte]) {
		for _, m := range messages {
			b, ok := m.([]byte)
			if !ok {
				b = []byte(m.(string))
			}
			require.NoError(t, q.TryPut(b))
		}
	}
}

func letters(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }

func putting(messages ...[]byte) func(*queue.Queue[[]byte]) func(context.Context) error {
	return func(q *queue.Queue[[]byte]) func(context.Context) error {
		return func(ctx context.Context) error {
			if len(messages) == 1 {
				return q.Put(ctx, messages[0])
			}
			_, err := q.PutMany(ctx, messages)
			return err
		}
	}
}

func getting(q *queue.Queue[[]byte]) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := q.Get(ctx)
		return err
	}
}

func leasing(q *queue.Queue[[]byte]) func(context.Context) error {
	return func(ctx context.Context) error {
		l, err := q.Lease(ctx)
		if err != nil {
			return err
		}
		return l.Ack()
	}
}

func sweeps() []swept {
	return []swept{
		{name: "put", prepare: fill("0", "1"), ready: putting([]byte("new")), before: []string{"0", "1"}, after: []string{"0", "1", "new"}},
		{name: "put, the first", cold: true, prepare: fill(), ready: putting([]byte("new")), after: []string{"new"}},
		{name: "put, grow", prepare: fill(letters('a', 4000)), ready: putting(letters('b', 300)),
			before: []string{"a*4000"}, after: []string{"a*4000", "b*300"}},
		{name: "put, the spare chunk", prepare: func(t testing.TB, q *queue.Queue[[]byte]) {
			fill(letters('a', 4000), letters('b', 16000))(t, q)
			for range 2 { // both chunks are left by the getter only with what follows
				_, err := q.TryGet()
				require.NoError(t, err)
			}
		}, ready: putting(letters('c', 600)), after: []string{"c*600"}},
		{name: "put, bulk", prepare: fill("0"), ready: putting(letters('b', bigSize)),
			before: []string{"0"}, after: []string{"0", fmt.Sprint("b*", bigSize)}},
		{name: "put of many, over a chunk's end", prepare: fill(letters('a', 3900)), ready: putting(letters('b', 100), letters('c', 100), letters('d', 100)),
			before: []string{"a*3900"}, after: []string{"a*3900", "b*100", "c*100", "d*100"}},
		{name: "get", prepare: fill("0", "1", "2"), ready: getting, before: []string{"0", "1", "2"}, after: []string{"1", "2"}},
		{name: "get, bounded", maxSize: 3, prepare: fill("0", "1", "2"), ready: getting, before: []string{"0", "1", "2"}, after: []string{"1", "2"}},
		{name: "get, another chunk", prepare: func(t testing.TB, q *queue.Queue[[]byte]) {
			fill(letters('a', 4000), letters('b', 300), "2")(t, q)
			_, err := q.TryGet()
			require.NoError(t, err)
		}, ready: getting, before: []string{"b*300", "2"}, after: []string{"2"}},
		{name: "get, bulk", prepare: fill(letters('a', bigSize), "1"), ready: getting,
			before: []string{fmt.Sprint("a*", bigSize), "1"}, after: []string{"1"}},
		// A lease that is not acknowledged returns: until the acknowledgement nothing has happened.
		{name: "lease and ack", anyOrder: true, prepare: fill("0", "1"), ready: leasing, before: []string{"0", "1"}, after: []string{"1"}},
		{name: "lease and ack, bulk", anyOrder: true, prepare: fill(letters('a', bigSize), "1"), ready: leasing,
			before: []string{fmt.Sprint("a*", bigSize), "1"}, after: []string{"1"}},
		{name: "put, lock of the dead", dead: queue.PutLock, prepare: fill("0"), ready: putting([]byte("new")),
			before: []string{"0"}, after: []string{"0", "new"}},
		{name: "get, lock of the dead", dead: queue.GetLock, prepare: fill("0", "1"), ready: getting, before: []string{"0", "1"}, after: []string{"1"}},
	}
}

var corpse int // the id of a process that has ended and was collected

const (
	membersAt = 4096 + 64
	pidShift  = 42
)

func u64(b []byte, at int) *uint64 { return (*uint64)(unsafe.Pointer(&b[at])) }

// bury puts the dead process into the places of members of process pid.
func bury(members []byte, pid int) {
	for i := range 4094 {
		if word := u64(members, 8*i); *word>>pidShift == uint64(pid) {
			*word = *word&(1<<pidShift-1) | uint64(corpse)<<pidShift
		}
	}
}

func buryIn(t testing.TB, fd, pid int) {
	b, err := unix.Mmap(fd, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	bury(b[membersAt:], pid)
	require.NoError(t, unix.Munmap(b))
}

func dup(t testing.TB, fd int) int {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	require.NoError(t, err)
	return d
}

// stage is a heap with one queue, and a word beside it that tells where the child is.
type stage struct {
	heap  *shm.Heap
	q     *queue.Queue[[]byte]
	phase uint64
	word  *uint32
}

func open(t testing.TB, w *swept) *stage {
	h, err := shm.CreateHeap()
	require.NoError(t, err)
	s := &stage{heap: h}
	s.phase, _, err = h.Alloc(8, 2)
	require.NoError(t, err)
	s.word = (*uint32)(h.Within(s.phase, 8))
	atomic.StoreUint32(s.word, 0)
	s.q, err = queue.New[[]byte](h, queue.Options{MaxSize: w.maxSize})
	require.NoError(t, err)
	w.prepare(t, s.q)
	if w.dead != 0 {
		other, err := shm.AttachHeap(dup(t, h.FD()))
		require.NoError(t, err)
		owner, err := other.Join()
		require.NoError(t, err)
		s.q.Words()[w.dead] = uint64(owner)
		require.NoError(t, other.Close())
	}
	return s
}

func (s *stage) close(t testing.TB) {
	require.NoError(t, s.q.Close())
	require.NoError(t, s.heap.Close())
}

func init() {
	roles["swept"] = func(_ context.Context, args []string) error {
		debug.SetGCPercent(-1)
		number := func(i int) uint64 {
			n, err := strconv.ParseUint(args[i], 10, 64)
			if err != nil {
				panic(err)
			}
			return n
		}
		h, err := shm.AttachHeap(3)
		if err != nil {
			return err
		}
		q, err := queue.At[[]byte](h, number(1))
		if err != nil {
			return err
		}
		w := sweeps()[number(0)]
		op := w.ready(q)
		if !w.cold {
			if err = warm(h); err != nil {
				return err
			}
		}
		phase := (*uint32)(h.Within(number(2), 8))
		ctx := context.Background()
		// Raw: the scheduler would take the processor away from a thread that is stopped in a system call.
		if _, _, e := unix.RawSyscall(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(unix.Gettid()), uintptr(unix.SIGSTOP)); e != 0 {
			return e
		}
		atomic.StoreUint32(phase, 1)
		err = op(ctx)
		atomic.StoreUint32(phase, 2)
		return err
	}
	roles["nothing"] = func(context.Context, []string) error { return nil }
}

// warm does once what takes longer the first time, with another queue.
func warm(h *shm.Heap) error {
	q, err := queue.New[[]byte](h, queue.Options{})
	for _, n := range []int{1, 4000, 500, bigSize} {
		if err == nil {
			err = q.TryPut(letters('w', n))
		}
	}
	for n := range 4 {
		if err != nil {
			break
		}
		if n%3 != 0 {
			_, err = q.TryGet()
			continue
		}
		var l *queue.Lease[[]byte]
		if l, err = q.TryLease(); err == nil { // the smallest, and the largest
			err = l.Ack()
		}
	}
	return err
}

// traced is a child that the calling thread single-steps.
type traced struct {
	pid   int
	stage *stage
	// In the moment between its own stop and that of its other threads, the Go scheduler may decide to run the stepped goroutine
	// later; it then sleeps for ever. Such a child is ended and tried again.
	watch *time.Timer
}

const stuck = 3 * time.Second

// trace starts the child and brings it to the operation's first instruction; nil: it got stuck.
func trace(t *testing.T, s *stage, index int) *traced {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", strconv.Itoa(index), strconv.FormatUint(s.q.Object().Off(), 10), strconv.FormatUint(s.phase, 10))
	cmd.Env = append(os.Environ(), roleVar+"=swept", "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	file := os.NewFile(uintptr(dup(t, s.heap.FD())), "heap")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	require.NoError(t, cmd.Start())
	require.NoError(t, file.Close())
	pid := cmd.Process.Pid
	require.NoError(t, cmd.Process.Release()) // collected here, by wait
	c := &traced{pid, s, time.AfterFunc(stuck, func() { _ = unix.Kill(pid, unix.SIGKILL) })}
	for sig := c.wait(t); sig != unix.SIGSTOP; sig = c.wait(t) {
		if sig == 0 {
			c.watch.Stop()
			return nil
		}
		_ = unix.PtraceSetOptions(pid, unix.PTRACE_O_EXITKILL) // it must not stay stopped when this test is killed
		_ = unix.PtraceCont(pid, 0)
	}
	// Delivered, it stops the whole process; only the thread that we step leaves the stop.
	_ = unix.PtraceCont(pid, int(unix.SIGSTOP))
	if c.wait(t) == 0 {
		c.watch.Stop()
		return nil
	}
	for atomic.LoadUint32(s.word) == 0 {
		if c.step(t) == lost {
			return nil
		}
	}
	return c
}

// wait returns the signal that the child stopped with, 0 if it ended.
func (c *traced) wait(t *testing.T) unix.Signal {
	t.Helper()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(c.pid, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		require.NoError(t, err)
		if !status.Stopped() {
			return 0
		}
		return status.StopSignal()
	}
}

type progress int

const (
	within progress = iota // the operation
	over                   // it is complete
	lost                   // the child got stuck and is gone
)

// step runs one instruction of the operation, a whole system call at most.
func (c *traced) step(t *testing.T) progress {
	t.Helper()
	c.watch.Reset(stuck)
	for {
		_ = unix.PtraceSingleStep(c.pid)
		switch sig := c.wait(t); sig {
		case 0:
			c.watch.Stop()
			return lost
		case unix.SIGTRAP:
			if atomic.LoadUint32(c.stage.word) == 2 {
				return over
			}
			return within
		case unix.SIGURG, unix.SIGSTOP, unix.SIGCONT: // not delivered, and no instruction was run
		default:
			require.Failf(t, "the child did not survive", "signal %v", sig)
		}
	}
}

func (c *traced) kill(t *testing.T) {
	t.Helper()
	c.watch.Stop()
	require.NoError(t, unix.Kill(c.pid, unix.SIGKILL))
	for c.wait(t) != 0 {
	}
}

// extent is a part of the heap's file that has been written to.
type extent struct {
	off  int64
	data []byte
}

// look appends to list what of the heap's file has ever been written to.
func look(t testing.TB, h *shm.Heap) (list []extent) {
	first, ok := h.At(slab0, 1)
	require.True(t, ok)
	base := unsafe.Add(unsafe.Pointer(&first[0]), -slab0)
	for at := int64(0); ; {
		from, err := unix.Seek(h.FD(), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return list
		}
		require.NoError(t, err)
		at, err = unix.Seek(h.FD(), from, unix.SEEK_HOLE)
		require.NoError(t, err)
		if from >= slab0 { // this process may not have touched it yet
			_, ok = h.At(uint64(from), uint64(at-from))
			require.True(t, ok)
		}
		list = append(list, extent{from, unsafe.Slice((*byte)(unsafe.Add(base, from)), at-from)})
	}
}

// same tells whether nothing has changed, not counting the bytes of large messages: they are what slabs of large blocks hold.
func same(h *shm.Heap, a, b []extent) bool {
	large := func(e extent) bool {
		if e.off < slab0 {
			return false
		}
		whole, _ := h.At(slab0, 1)
		word := (*uint64)(unsafe.Add(unsafe.Pointer(&whole[0]), 1<<20-slab0+e.off>>20*128))
		return *word>>56 == 3
	}
	return slices.EqualFunc(a, b, func(a, b extent) bool {
		return a.off == b.off && len(a.data) == len(b.data) && (large(a) || bytes.Equal(a.data, b.data))
	})
}

// drain takes what there is, and what the dead have leased.
func drain(q *queue.Queue[[]byte]) (found []string, err error) {
	for {
		if !q.Sound() {
			return nil, errors.New("a message whose block was freed")
		}
		b, err := q.TryGet() // through the lock: who holds it may be dead
		if err == nil {
			found = append(found, show(b))
			continue
		}
		if !errors.Is(err, queue.ErrEmpty) {
			return nil, err
		}
		if !q.Sweep() {
			return found, nil
		}
	}
}

// judge has survivors work on the heap: what they find must be what was before or after the operation. Then all is given back, and leaked is how
// many blocks are not. sweepFirst: somebody tidies up before anybody has the locks.
func judge(w *swept, h *shm.Heap, off uint64, sweepFirst bool) (happened bool, leaked int, err error) {
	q, err := queue.At[[]byte](h, off)
	if err != nil {
		return false, 0, err
	}
	if sweepFirst {
		q.Sweep()
	}
	found, err := drain(q)
	if w.anyOrder {
		slices.Sort(found)
		slices.Sort(w.before)
	}
	switch {
	case err != nil:
		return false, 0, err
	case slices.Equal(found, w.after):
		happened = true
	case !slices.Equal(found, w.before):
		return false, 0, fmt.Errorf("found %q", found)
	}
	for _, n := range []int{1, 5000, bigSize} { // it goes on, through locks, chunks and cells
		if err := q.TryPut(letters('x', n)); err != nil {
			return false, 0, fmt.Errorf("afterwards: put of %d bytes: %w", n, err)
		}
		b, err := q.TryGet()
		if err != nil || len(b) != n {
			return false, 0, fmt.Errorf("afterwards: %d bytes of %d, %w", len(b), n, err)
		}
	}
	if found, err = drain(q); err != nil || len(found) > 0 {
		return false, 0, fmt.Errorf("afterwards: found %q, %w", found, err)
	}
	o := q.Object()
	_ = q.Close()
	h.Reap()
	o.Unkeep() // the reference of this process in the heap that was copied
	blocks, _ := h.InUse()
	return happened, blocks - 1, nil // but for the word that tells the phase
}

// judgeCopy judges a copy of the heap.
func judgeCopy(t testing.TB, w *swept, s *stage, now []extent, pid int, sweepFirst bool) (happened bool, leaked int, err error) {
	fd, err := unix.MemfdCreate("copy", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(s.heap.FD(), &st))
	require.NoError(t, unix.Ftruncate(fd, st.Size))
	for _, e := range now {
		_, err := unix.Pwrite(fd, e.data, e.off)
		require.NoError(t, err)
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	require.NoError(t, err)
	buryIn(t, fd, pid)
	h, err := shm.AttachHeap(fd)
	require.NoError(t, err)
	happened, leaked, err = judge(w, h, s.q.Object().Off(), sweepFirst)
	require.NoError(t, h.Close())
	return happened, leaked, err
}

type seen struct{ points, states, leaks, kills int }

// copies judges a copy of the heap after every instruction; false: the child got stuck.
func (w *swept) copies(t *testing.T, index int) (sum seen, ok bool) {
	s := open(t, w)
	defer s.close(t)
	child := trace(t, s, index)
	if child == nil {
		return sum, false
	}
	var last []extent
	happened := false
	for how := within; how == within; how = child.step(t) {
		if sum.points++; sum.points > 400_000 {
			require.Fail(t, "an operation without end")
		}
		now := look(t, s.heap)
		if same(s.heap, now, last) {
			continue
		}
		last = last[:0]
		for _, e := range now {
			last = append(last, extent{e.off, bytes.Clone(e.data)})
		}
		was := happened
		var leaked int
		var err error
		happened, leaked, err = judgeCopy(t, w, s, last, child.pid, false)
		require.NoErrorf(t, err, "the copy after %d instructions", sum.points)
		require.Falsef(t, was && !happened, "undone after %d instructions", sum.points)
		require.LessOrEqualf(t, leaked, 1, "blocks lost after %d instructions", sum.points)
		require.GreaterOrEqual(t, leaked, 0)
		also, _, err := judgeCopy(t, w, s, last, child.pid, true)
		require.NoErrorf(t, err, "the copy after %d instructions, swept", sum.points)
		require.Equal(t, happened, also)
		sum.states++
		sum.leaks += leaked
	}
	if atomic.LoadUint32(s.word) != 2 {
		return sum, false
	}
	happened, leaked, err := judgeCopy(t, w, s, look(t, s.heap), child.pid, true)
	require.NoError(t, err)
	require.True(t, happened, "at the end")
	require.Zero(t, leaked, "at the end")
	child.kill(t)
	return sum, true
}

// kills has children killed after some numbers of instructions below points, and judges the heap itself.
func (w *swept) kills(t *testing.T, index, points int) (n int) {
	for at := 0; at < points; at += max(points/8, 1) {
		s := open(t, w)
		if child := trace(t, s, index); child != nil {
			how := within
			for i := 0; i < at && how == within; i++ {
				how = child.step(t)
			}
			if how != lost {
				child.kill(t)
			}
		}
		_, leaked, err := judge(w, s.heap, s.q.Object().Off(), n%2 == 1)
		require.NoErrorf(t, err, "the kill after %d instructions", at)
		require.LessOrEqual(t, leaked, 1)
		s.close(t)
		n++
	}
	return n
}

func TestKillSweep(t *testing.T) {
	runtime.LockOSThread() // ptrace is a matter of threads
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=nothing")
	require.NoError(t, cmd.Run())
	corpse = cmd.Process.Pid
	begin := time.Now()
	var all seen
	for i, w := range sweeps() {
		sum, ok := w.copies(t, i)
		for tries := 1; !ok; tries++ {
			require.Less(t, tries, 5, "children get stuck")
			sum, ok = w.copies(t, i)
		}
		sum.kills = w.kills(t, i, sum.points)
		t.Logf("%-34s %6d kill points, %4d states of memory, %2d with a block lost, %2d real kills", w.name, sum.points, sum.states, sum.leaks, sum.kills)
		require.Greater(t, sum.states, 1, w.name)
		all = seen{all.points + sum.points, all.states + sum.states, all.leaks + sum.leaks, all.kills + sum.kills}
	}
	t.Logf("%d kill points, %d states, %d real kills, %v", all.points, all.states, all.kills, time.Since(begin).Round(time.Millisecond))
}
