package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

var initialized bool

var errNoInit = errors.New("pool: workers are this program, executed again: call pool.Init first in main (and in TestMain)")

// Init is the first call of main, and of TestMain. In a worker, which is the program executed again, it serves tasks and never
// returns; elsewhere it notes that the program can be executed again.
func Init() {
	initialized = true
	value, ok := os.LookupEnv(EnvWorker)
	if !ok {
		return
	}
	// Programs that a task starts are not workers.
	_ = os.Unsetenv(EnvWorker)
	if shm.Privileged() {
		// It believes nothing; but one that was to be a worker must not go on to start workers of its own, and these again.
		if a, err := parseAssignment(value); err == nil && a.parent == os.Getppid() {
			fmt.Fprintln(os.Stderr, "pool: a set-uid program, or one with file capabilities, can be no worker of itself")
			os.Exit(1)
		}
		return
	}
	if err := serve(value); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// host is the worker's side of its lane.
type host struct {
	seg               *shm.Segment
	board             *board
	boardMem, laneMem []byte
	head              *laneHeader
	slot              int
	tasks             *shm.Consumer
	results           *shm.Producer
	large             *shm.Windows // task blocks
	arena             *shm.Arena   // for results
	ended             chan error   // the worker is to end
	gone              func(error)  // goOn
	task              shm.Record   // that runs
	begun             uint64       // when it began, as monotonic tells; 0: to be read, since this process may have slept
	in                []byte       // its bytes
	running           atomic.Pointer[taskContext]
	watching          sync.Once // see watchCancel
	blocks            [maxSlots]*shm.Block
}

// assignment is what EnvWorker tells.
type assignment struct {
	fd, lane   int
	generation uint32
	parent     int
}

func parseAssignment(value string) (a assignment, err error) {
	fields := strings.Split(value, ",")
	if len(fields) != 4 {
		return a, fmt.Errorf("pool: %s=%q", EnvWorker, value)
	}
	var num [4]uint64
	for i := range num {
		largest := 31
		if i == 2 {
			largest = 32
		}
		if num[i], err = strconv.ParseUint(fields[i], 10, largest); err != nil {
			return a, fmt.Errorf("pool: %s=%q: %w", EnvWorker, value, err)
		}
	}
	return assignment{int(num[0]), int(num[1]), uint32(num[2]), int(num[3])}, nil
}

// serve is a worker's life.
func serve(value string) error {
	a, err := parseAssignment(value)
	if err != nil {
		return err
	}
	// Ctrl-C is the parent's business; it reaches the whole process group. Notify, not Ignore: what a task starts is to have the default.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	if err := start.WatchParent(a.parent); errors.Is(err, os.ErrProcessDone) {
		os.Exit(1) // nobody is left to be told
	} else if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	h, err := attach(a)
	if err != nil {
		return fmt.Errorf("pool: worker: %w", err)
	}
	go watchProgram(h.seg, a.parent)
	go h.begin()
	return <-h.ended
}

// begin runs the initializer, and then tasks.
func (h *host) begin() {
	fail := func(err error) {
		err = h.send(kindInitFailed, nil, []byte(err.Error()))
		h.ringParent()
		h.ended <- err
	}
	if err := h.initialize(fail); err != nil {
		fail(err)
		return
	}
	if err := h.send(kindReady, nil, nil); err != nil {
		h.ended <- err
		return
	}
	h.ringParent()
	h.loop()
}

func attach(a assignment) (*host, error) {
	if err := shm.CheckInherited(a.fd); err != nil {
		return nil, err
	}
	seg, err := shm.AttachSparse(a.fd)
	if err != nil {
		return nil, err
	}
	return join(seg, a.lane, a.generation)
}

// join connects with a lane, after it has checked all that it takes from the board.
func join(seg *shm.Segment, slot int, generation uint32) (_ *host, err error) {
	h := &host{seg: seg, slot: slot, large: shm.NewWindows(seg, 16), ended: make(chan error, 1)}
	h.gone = h.goOn
	defer func() {
		if err != nil {
			h.leave()
		}
	}()
	if h.boardMem, err = seg.Map(0, boardSize); err != nil {
		return nil, err
	}
	b := at[board](h.boardMem)
	h.board = b
	size := uint64(seg.Size())
	room := func(off, unit, n uint64) bool { return off <= size && (n == 0 || unit <= (size-off)/n) }
	switch {
	case b.magic != magic || b.abi != abiVersion:
		return nil, fmt.Errorf("%w: no pool of this version", shm.ErrCorrupt)
	case b.lanes > maxLanes || slot < 0 || slot >= int(b.lanes):
		return nil, fmt.Errorf("%w: lane %d of %d", shm.ErrCorrupt, slot, b.lanes)
	case b.ringCap < ringLeast || b.ringCap > ringMost || b.ringCap&(b.ringCap-1) != 0 || b.laneSize != laneHead+2*b.ringCap,
		!room(b.laneOff, b.laneSize, uint64(b.lanes)), !room(b.taskOff, b.taskSize, 1), !room(b.resultOff, b.resultSize, uint64(b.lanes)):
		return nil, fmt.Errorf("%w: layout of a pool", shm.ErrCorrupt)
	}
	if h.laneMem, err = seg.Map(int64(b.laneOff)+int64(slot)*int64(b.laneSize), int64(b.laneSize)); err != nil {
		return nil, err
	}
	h.head = at[laneHeader](h.laneMem)
	if h.head.generation.Load() != generation {
		return nil, fmt.Errorf("%w: lane %d was given to another process", shm.ErrCorrupt, slot)
	}
	h.arena = shm.NewArena(seg, int64(b.resultOff)+int64(slot)*int64(b.resultSize), int64(b.resultSize))
	if h.tasks, err = shm.NewConsumer(&h.head.taskTail, &h.head.taskHead, h.laneMem[laneHead:laneHead+b.ringCap]); err != nil {
		return nil, err
	}
	if h.results, err = shm.NewProducer(&h.head.resultTail, &h.head.resultHead, h.laneMem[laneHead+b.ringCap:]); err != nil {
		return nil, err
	}
	h.head.workerPID.Store(uint32(os.Getpid()))
	return h, nil
}

// leave gives the mappings back.
func (h *host) leave() {
	h.large.Close()
	if h.arena != nil {
		h.arena.Close()
	}
	_ = h.seg.Unmap(h.laneMem)
	_ = h.seg.Unmap(h.boardMem)
}

// initialize runs the initializer. If that ends its goroutine, fail is called in another.
func (h *host) initialize(fail func(error)) error {
	if h.board.initFn == 0 {
		return nil
	}
	init, ok := registry.inits[h.board.initFn]
	if !ok {
		return fmt.Errorf("no initializer %#x is registered in this program", h.board.initFn)
	}
	var arg []byte
	if h.board.initSize > 0 {
		window, err := h.large.At(int64(h.board.initOff), int64(h.board.initSize))
		if err != nil {
			return err
		}
		arg = append(arg, window...)
		h.large.Done(window)
	}
	_, err := guard(func() ([]byte, error) { return nil, init.run(arg) }, fail)
	return err
}

// panicked is a panic of a task.
type panicked struct {
	text string
	err  error // that it panicked with, or nil
}

func (p *panicked) Error() string { return p.text }

// exited is the end of a task's goroutine.
type exited struct{ text string }

func (e *exited) Error() string { return e.text }

// guard runs fn and turns its panic into an error. If fn ends its goroutine (runtime.Goexit), guard does not return, and calls
// fail in another goroutine.
func guard(fn func() ([]byte, error), fail func(error)) (out []byte, err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if v := recover(); v != nil {
			cause, _ := v.(error)
			err = &panicked{fmt.Sprintf("panic: %v\n%s", v, debug.Stack()), cause}
			return
		}
		go fail(&exited{fmt.Sprintf("the task ended its goroutine by runtime.Goexit, as t.FailNow does\n%s", debug.Stack())})
	}()
	out, err = fn()
	returned = true
	return out, err
}

// loop runs tasks until the lane is closed. A task that ends its goroutine ends this one; the loop then goes on in another.
func (h *host) loop() {
	var out []byte
	var contexts []taskContext
	for {
		rec, err := h.next()
		if err != nil || rec.Body == nil {
			h.ended <- err
			return
		}
		head := at[taskHead](rec.Body)
		if len(contexts) == 0 {
			contexts = make([]taskContext, 16) // an allocation for each would be much of what a small task costs; 512 bytes
		}
		ctx := &contexts[0]
		contexts = contexts[1:]
		ctx.h, ctx.number, ctx.deadline = h, head.number, head.deadline
		h.running.Store(ctx)
		h.task = rec
		if h.begun == 0 {
			h.begun = monotonic()
		}
		if h.in, err = h.input(rec); err == nil {
			out, err = h.run(ctx, head.fn, h.in, out[:0], h.gone)
		}
		ctx.end()
		if err := h.reply(out, err); err != nil {
			h.ended <- err
			return
		}
		if cap(out) > 1<<20 {
			out = nil
		}
	}
}

// goOn is what follows when a task has ended its goroutine.
func (h *host) goOn(err error) {
	h.running.Load().end()
	if err := h.reply(nil, err); err != nil {
		h.ended <- err
		return
	}
	h.loop()
}

// reply sends the outcome of the task that ran: the result, or what err says.
func (h *host) reply(out []byte, err error) error {
	rec := h.task
	res := resultHead{number: at[taskHead](rec.Body).number}
	if err != nil {
		res.status = 1
		cause := err
		p, panics := err.(*panicked)
		if panics {
			cause = p.err
		}
		out, res.code = describe(out[:0], err, cause)
		if panics {
			res.code |= codePanic
		}
	}
	// One reading of the clock is the end of this task and the beginning of the next: a reading can take longer than a small task.
	now := monotonic()
	res.runNS, h.begun = uint64(max(int64(now-h.begun), 0)), now
	if err := h.send(kindResult, &res, out); err != nil {
		return err
	}
	if rec.Flags&flagBulk != 0 {
		h.large.Done(h.in)
	}
	h.tasks.ReleaseTo(rec.End)
	h.ringParent()
	return nil
}

// describe is appendFailure for errors whose methods may panic.
func describe(out []byte, err, cause error) (data []byte, code int32) {
	defer func() {
		if v := recover(); v != nil {
			data, code = fmt.Appendf(out, "an error of type %T, whose methods panic: %v", err, v), 0
		}
	}()
	return appendFailure(out, err.Error(), cause)
}

func (h *host) run(ctx context.Context, fn uint64, in, out []byte, fail func(error)) ([]byte, error) {
	t, ok := registry.tasks[fn]
	if !ok {
		return out, fmt.Errorf("no function %#x is registered in this program: call Register while packages are initialized", fn)
	}
	return guard(func() ([]byte, error) { return t.run(ctx, in, out) }, fail)
}

// input returns a task's bytes where they lie.
func (h *host) input(rec shm.Record) ([]byte, error) {
	body := rec.Body[sizeTaskHead:]
	if rec.Flags&flagBulk == 0 {
		return body, nil
	}
	if len(body) < sizeBulkRef {
		return nil, fmt.Errorf("%w: block reference of %d bytes", shm.ErrCorrupt, len(body))
	}
	ref := at[bulkRef](body)
	return h.large.At(int64(ref.off), int64(ref.size))
}

// next takes the next task; a record without body means that the worker is to end.
func (h *host) next() (shm.Record, error) {
	for {
		closing := h.head.state.Load() == laneClosing
		rec, err := h.take()
		if err != nil || rec.Body != nil || closing {
			return rec, err
		}
		if err := h.sleep(&h.head.taskBell, func() bool {
			return !h.tasks.Empty() || h.head.state.Load() == laneClosing
		}); err != nil {
			return shm.Record{}, err
		}
	}
}

// take takes the oldest task that was not taken back by the parent; a record without body means that there is none.
func (h *host) take() (shm.Record, error) {
	for skipped := false; ; skipped = true {
		rec, ok, err := h.tasks.Next()
		if err != nil {
			return shm.Record{}, err
		}
		if !ok {
			if skipped {
				h.ringParent() // it does not know of the room
			}
			return shm.Record{}, nil
		}
		if rec.Kind != kindTask || len(rec.Body) < sizeTaskHead {
			return shm.Record{}, fmt.Errorf("%w: record of kind %d, %d bytes", shm.ErrCorrupt, rec.Kind, len(rec.Body))
		}
		if at[taskHead](rec.Body).state.CompareAndSwap(taskReady, taskTaken) {
			return rec, nil
		}
		h.tasks.ReleaseTo(rec.End)
	}
}

// send publishes one record, and waits for room if the parent has not read earlier ones.
func (h *host) send(kind uint16, res *resultHead, data []byte) error {
	size, flags := 0, uint16(0)
	if res != nil {
		size = sizeResultHead
	}
	var ref bulkRef
	if size+len(data) > h.results.Max() {
		block, slot, err := h.block(len(data))
		if err != nil {
			// The parent learns that instead.
			err = fmt.Errorf("result of %d bytes: %w", len(data), err)
			if res == nil {
				data = []byte(err.Error())
			} else {
				res.status = 1
				data, res.code = describe(nil, err, err)
			}
		} else {
			copy(block.Bytes, data)
			ref = bulkRef{off: uint64(block.Off), size: uint64(len(data)), slot: uint32(slot)}
			flags = flagBulk
		}
	}
	n := size + len(data)
	if flags != 0 {
		n = size + sizeBulkRef
	}
	var buf []byte
	h.wait(&h.head.spaceBell, func() bool {
		var ok bool
		buf, _, ok = h.results.Stage(kind, flags, n)
		return ok
	})
	if res != nil {
		*at[resultHead](buf) = *res
	}
	if flags != 0 {
		*at[bulkRef](buf[size:]) = ref
	} else {
		copy(buf[size:], data)
	}
	h.results.Publish()
	return nil
}

// block finds room for a large result.
func (h *host) block(n int) (block *shm.Block, slot int, err error) {
	h.wait(&h.head.spaceBell, func() bool {
		slot = -1
		for i, b := range h.blocks {
			if b != nil && h.head.slots[i].Load() == 0 {
				h.arena.Free(b)
				h.blocks[i], b = nil, nil
			}
			if b == nil {
				slot = i
			}
		}
		return slot >= 0
	})
	if block, err = h.arena.Alloc(int64(n)); err != nil {
		return nil, 0, err
	}
	h.blocks[slot] = block
	h.head.slots[slot].Store(1)
	return block, slot, nil
}

// wait sleeps on a bell of the lane until cond holds. (The parent's death ends the process.)
func (h *host) wait(b *bell, cond func() bool) {
	for !cond() {
		h.board.fore.ring() // also one who is awake, or may sleep for a moment
		_ = h.sleep(b, cond)
	}
}

// sleep sleeps until a bell of the lane rings, at most a slice, but not if cond holds. The flag is up only meanwhile: with it up, all
// that the parent publishes would cost it a system call.
func (h *host) sleep(b *bell, cond func() bool) (err error) {
	h.begun = 0
	if seq := b.enter(); !cond() {
		err = shm.FutexWait(b.addr(), seq, slice)
	}
	b.leave()
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, shm.ErrInterrupted) {
		return nil
	}
	return err
}

// ringParent tells the parent to look at this lane.
func (h *host) ringParent() {
	word, bit := &h.board.ready[h.slot/64], uint64(1)<<(h.slot%64)
	if word.Load()&bit == 0 {
		word.Or(bit)
	}
	bell := &h.board.back
	switch h.board.fore.waiters.Load() {
	case 0:
	case bellLooks:
		return
	default:
		bell = &h.board.fore
	}
	if bell.ring() {
		h.begun = 0 // who was woken may have got this CPU
	}
}
