package pool

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

// MaxWorkers is the largest number of workers of one pool.
const MaxWorkers = 1024

// Options says what pool to open. The zero value is a pool of this program's own functions with a worker per CPU.
type Options struct {
	Workers  int          // how many, 1 to MaxWorkers; 0: one per CPU that this process may use
	MaxTasks int          // a worker is replaced after so many tasks; 0: never
	Method   start.Method // nil: start.Spawn()
	OutMax   int          // C workers: room for a submitted task's result, bytes; 0: 65,536

	// A worker host other than this program. Both zero: this program again (see Init); Path alone is ErrInvalid.
	Path string
	Args []string
	Env  []string // nil: os.Environ()
	Dir  string

	// Files are descriptors that workers inherit under the same numbers, besides 0, 1, 2 and the pool's own.
	Files []int

	// Grace is how long a task may go on after its context was cancelled, before its worker is killed. 0: a second; < 0: it is killed
	// at once.
	Grace time.Duration

	// HostStarts leaves the starting of processes to the host, see Vacancy. Path, Args, Env, Dir and Method mean nothing then.
	HostStarts bool

	// Sleep, if not nil, takes the place of shm.FutexWait for threads that wait in a call. If it returns ErrInterrupted, a signal
	// handler of the host has run, and the call ends with that. For calls from C.
	Sleep func(addr *uint32, val uint32, limit time.Duration) error

	// BlockSIGINT starts workers with SIGINT blocked: for hosts that unblock it when they are ready for it.
	BlockSIGINT bool

	// Initializer is what each worker runs first: see RegisterInitializer.
	Initializer Initializer

	// For hosts of other languages, in place of Initializer.
	InitFunc uint64 // the function that a C worker runs first, as NumberIn gives it; 0: none
	Module   Module // the module with number 0, which InitFunc lies in
	InitArg  []byte // its argument, or bytes that pp_worker_attach returns

	// Alloc, if not nil, provides memory for results of at least BigResult bytes; Free takes it back if nobody collects
	// the result. For hosts that want large results outside the Go heap.
	Alloc func(n int) []byte
	Free  func([]byte)

	// Unread gets the bytes of a task that ended without running to its end, and of a result that
	// nobody has collected, to take back the references in them. nil: [shm.ForgetIn].
	Unread func([]byte)
}

// BigResult is the size in bytes from which on Options.Alloc is asked for a result's memory.
const BigResult = 64 << 10

// Pool is a set of worker processes and the tasks that they have and will get. All methods may be called from any
// goroutine. A Pool is not usable after Close.
type Pool struct {
	opt      Options
	seg      *shm.Segment
	board    *board
	boardMem []byte
	arena    *shm.Arena
	initArg  *shm.Block
	ringCap  int64
	geo      geometry

	mu          sync.Mutex
	lanes       []*lane // by slot; never shrinks
	jobs        []*job  // submitted jobs with results that were not taken, by first task number
	jobsGone    int     // of jobs: without results, kept for the search
	queue       []*job  // jobs with tasks that no lane has been given yet, first come first
	queueGone   int     // of queue: dropped
	retry       []again // tasks taken back from a lane: they go first
	done        doneQueue
	vacancies   []*lane       // that no process has been started for, with HostStarts
	vacancyNews chan struct{} // closed when vacancies come, or will come no more
	bytes       []byte        // rest of the chunk that small results are copied to
	dirty       []*lane
	nextID      uint64

	open     uint64 // tasks without an outcome
	blocks   int    // of tasks, in the arena
	outcomes uint64 // that were ever given
	lost     uint64
	started  uint64
	meanNS   float64      // of recent tasks; 0: none yet
	usualNS  float64      // the same, in which one task counts for no more than eight usual ones
	waiters  int          // threads that wait in a call
	patience shm.Patience // of those
	wakes    uint64       // calls of Wake

	opening    bool // Open starts the first workers
	closed     bool
	terminated bool
	freed      bool
	failure    *Result // why no worker can be started: the outcome of every task from then on
	startFails int     // starts that failed in a row
	barren     int     // workers in a row that were ready, and died without having finished a task or lost one
	respawns   int     // goroutines and timers that will start a worker
	timers     map[*time.Timer]struct{}
	initSaid   []byte     // what the last initializer that failed said
	idle       *sync.Cond // signalled when alive or respawns falls
	ticking    bool       // who sleeps looks after lanes that do not get on
	over       bool       // closed, and nothing left to do: the vacancies were withdrawn
	resting    bool       // the background sleeps for as long as nobody wakes it
	stop       bool
	stopped    chan struct{}
	modules    map[string]int
	shared     map[*byte]*sharedBlock // by address
	unread     [][]byte               // for Options.Unread
}

// geometry is where things lie in the segment.
type geometry struct {
	laneOff, laneSize     int64
	taskOff, taskSize     int64
	resultOff, resultSize int64
	slots                 int
}

const (
	blockAlign   = 64 << 10
	regionWanted = 1 << 40 // address space of the file costs nothing
	regionResult = 1 << 36
)

// Open starts a pool. It returns when its workers have been started; it does not wait for them to be ready. A program
// whose workers are the program itself must call Init first in main.
func Open(opt Options) (*Pool, error) {
	if opt.Workers < 0 || opt.Workers > MaxWorkers || opt.MaxTasks < 0 || opt.OutMax < 0 {
		return nil, fmt.Errorf("%w: %d workers, %d tasks per worker, %d bytes of result", ErrInvalid, opt.Workers, opt.MaxTasks, opt.OutMax)
	}
	if opt.Initializer.err != nil {
		return nil, opt.Initializer.err
	}
	if opt.Initializer.id != 0 {
		opt.InitFunc, opt.InitArg = opt.Initializer.id, opt.Initializer.arg
	}
	if opt.Workers == 0 {
		opt.Workers = min(runtime.NumCPU(), MaxWorkers)
	}
	if opt.OutMax == 0 {
		opt.OutMax = 64 << 10
	}
	if opt.Grace == 0 {
		opt.Grace = time.Second
	}
	if opt.Unread == nil {
		opt.Unread = shm.ForgetIn
	}
	if opt.Method == nil {
		opt.Method = start.Spawn()
	}
	if opt.Args == nil && !opt.HostStarts {
		if opt.Path != "" {
			return nil, fmt.Errorf("%w: Options.Path is %q and Options.Args is nil: set both, or neither", ErrInvalid, opt.Path)
		}
		if !initialized {
			return nil, errNoInit
		}
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("pool: %w", err)
		}
		opt.Path, opt.Args = self, os.Args
		// Of the same family, so that arguments and results may be queues; where there are none, only those fail.
		if files, env, err := shm.Inherit(); err == nil {
			if opt.Env == nil {
				opt.Env = os.Environ()
			}
			opt.Env = append(slices.Clip(opt.Env), env)
			opt.Files = append(slices.Clip(opt.Files), files...)
		}
	}
	p := &Pool{opt: opt, patience: shm.Patience{Locked: opt.Sleep != nil}, ringCap: 128 << 10, stopped: make(chan struct{}), modules: map[string]int{}, vacancyNews: make(chan struct{}), timers: map[*time.Timer]struct{}{}}
	p.idle = sync.NewCond(&p.mu)
	if err := p.allocate(); err != nil {
		return nil, err
	}
	go p.background()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opening = true
	for range opt.Workers {
		if err := p.startWorker(); err != nil {
			p.terminateLocked()
			p.mu.Unlock()
			_ = p.Close()
			p.mu.Lock()
			return nil, err
		}
	}
	p.opening = false
	p.ensure(0)
	return p, nil
}

// allocate makes the segment and its board.
func (p *Pool) allocate() error {
	g := &p.geo
	g.slots = min(p.opt.Workers+min(p.opt.Workers, maxLanes-MaxWorkers), maxLanes)
	g.laneOff = boardSize
	g.laneSize = laneHead + 2*p.ringCap
	g.taskOff = roundUp(g.laneOff+g.laneSize*int64(g.slots), blockAlign)
	g.taskSize, g.resultSize = regionWanted, regionResult
	if limit := fileSizeLimit(); limit < g.taskOff+g.taskSize+g.resultSize*int64(g.slots) {
		// A file size limit (ulimit -f): what it leaves is shared between the arenas.
		rest := limit - g.taskOff
		if rest < 0 {
			return fmt.Errorf("pool: %w: the file size limit of %d bytes is below the %d that %d workers need", shm.ErrNoMemory, limit, g.taskOff, p.opt.Workers)
		}
		g.taskSize = rest / 2 / blockAlign * blockAlign
		g.resultSize = rest / 2 / int64(g.slots) / blockAlign * blockAlign
	}
	g.resultOff = g.taskOff + g.taskSize
	seg, err := shm.CreateSparse(g.resultOff + g.resultSize*int64(g.slots))
	if err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	if err := seg.Reserve(0, boardSize); err != nil {
		_ = seg.Close()
		return fmt.Errorf("pool: %w", err)
	}
	lockProgram(seg)
	p.seg = seg
	if p.boardMem, err = seg.Map(0, boardSize); err != nil {
		_ = seg.Close()
		return fmt.Errorf("pool: %w", err)
	}
	p.arena = shm.NewArena(seg, g.taskOff, g.taskSize)
	b := at[board](p.boardMem)
	p.board = b
	b.abi, b.lanes = abiVersion, uint32(g.slots)
	b.laneOff, b.laneSize, b.ringCap = uint64(g.laneOff), uint64(g.laneSize), uint64(p.ringCap)
	b.taskOff, b.taskSize, b.resultOff, b.resultSize = uint64(g.taskOff), uint64(g.taskSize), uint64(g.resultOff), uint64(g.resultSize)
	b.initFn, b.outMax = p.opt.InitFunc, uint64(p.opt.OutMax)
	b.parentPID = int32(os.Getpid())
	self, _ := shm.Identify(os.Getpid()) // 0 where there is none: then only the parent's children can be workers
	b.parentID = uint64(self)
	if n := int64(len(p.opt.InitArg)); n > 0 {
		block, err := p.arena.Alloc(n)
		if err != nil {
			p.release()
			return fmt.Errorf("pool: the initializer's argument: %w", err)
		}
		copy(block.Bytes, p.opt.InitArg)
		p.initArg = block
		b.initOff, b.initSize = uint64(block.Off), uint64(n)
	}
	if p.opt.InitFunc != 0 && (p.opt.Args != nil || p.opt.HostStarts) {
		if _, err := p.moduleNumber(p.opt.Module); err != nil {
			p.release()
			return err
		}
	}
	b.magic = magic
	p.lanes = make([]*lane, g.slots)
	return nil
}

// release gives memory back. No worker may live. Calls that come later find no board.
func (p *Pool) release() {
	for _, ln := range p.lanes {
		if ln != nil {
			ln.unmap()
		}
	}
	p.arena.Close()
	_ = p.seg.Unmap(p.boardMem)
	p.board, p.boardMem, p.lanes = nil, nil, nil
	_ = p.seg.Close()
}

// State describes a pool at one moment.
type State struct {
	Workers int    // that the pool keeps
	Alive   int    // processes that live, replacements included
	Waiting uint64 // tasks that have not started
	Running uint64 // tasks that workers have taken
	Done    uint64 // results that nobody has taken
	Started uint64 // worker processes since Open
	Lost    uint64 // tasks that ended with Lost
}

// State describes the pool now.
func (p *Pool) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state()
}

// StateAndPIDs is State and PIDs of the same moment.
func (p *Pool) StateAndPIDs() (State, []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state(), p.pids()
}

func (p *Pool) state() State {
	p.look()
	s := State{Workers: p.opt.Workers, Done: uint64(p.done.len()), Started: p.started, Lost: p.lost}
	for _, ln := range p.lanes {
		if ln == nil || ln.state == laneStateEmpty {
			continue
		}
		if ln.proc != nil {
			s.Alive++
		}
		for i := range ln.pending.len() {
			if e := ln.pending.at(i); !e.revoked && !ln.gone(e) && e.head.state.Load() == taskTaken {
				s.Running++
			}
		}
	}
	s.Waiting = p.open - s.Running
	return s
}

// PIDs returns the process ids of the workers that live.
func (p *Pool) PIDs() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pids()
}

func (p *Pool) pids() []int {
	var pids []int
	for _, ln := range p.lanes {
		if ln != nil && ln.proc != nil {
			pids = append(pids, ln.proc.PID())
		}
	}
	return pids
}

// Drain makes the pool take no more tasks: it finishes those that it has, and then its workers end. Drain does not wait; [Pool.Shutdown]
// does. A second Drain does nothing.
func (p *Pool) Drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.look()
}

// Terminate kills the workers and does not wait for their end. Tasks without an outcome fail with [ErrClosed].
func (p *Pool) Terminate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.terminateLocked()
}

func (p *Pool) terminateLocked() {
	if p.terminated {
		return
	}
	p.poll() // what is done is done
	p.closed, p.terminated = true, true
	p.withdraw()
	p.stopTimers()
	for _, ln := range p.lanes {
		switch {
		case ln == nil:
		case ln.proc != nil:
			_ = ln.proc.Kill()
		case ln.vacant:
			// Handed out, and who has it may never answer, or find the handle gone. A worker that comes finds no work.
			ln.vacant = false
			ln.state = laneStateEmpty
			p.tellEnd(ln)
		}
	}
	p.dropQueued(&Result{Outcome: Closed})
	p.notify()
}

// Join waits until a drained or terminated pool has neither tasks nor workers; timeout < 0: without limit. It is for hosts in other
// languages: Go programs call [Pool.Shutdown] or [Pool.Close]. Errors: [ErrRunning], [ErrTimeout], [ErrInterrupted].
func (p *Pool) Join(timeout time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		return ErrRunning
	}
	return p.waitFor(timeout, p.empty)
}

// empty reports whether there is neither a task nor a worker.
func (p *Pool) empty() bool { return p.open == 0 && p.alive() == 0 && p.respawns == 0 }

// Close ends the pool and releases everything that it has. Tasks that have not started fail with [ErrClosed]; those that run are
// cancelled and have Options.Grace to return. Then the workers are killed, and Close waits for their end. To let the pool finish its
// tasks first, call [Pool.Shutdown]; to give them no time, [Pool.Terminate] before Close. Close returns nil, also when it is called again.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancelAll()
	p.terminateLocked()
	if p.freed {
		p.mu.Unlock()
		<-p.stopped // the call that came first waits for the workers
		p.mu.Lock()
		return nil
	}
	p.freed = true
	for p.alive() > 0 || p.respawns > 0 || p.waiters > 0 {
		p.notify()
		p.idle.Wait()
	}
	p.stop = true
	p.board.back.ringAlways()
	p.mu.Unlock()
	<-p.stopped
	p.mu.Lock()
	for _, j := range p.jobs {
		j.discard(p)
	}
	p.jobs, p.jobsGone, p.queue, p.queueGone, p.retry, p.done = nil, 0, nil, 0, nil, doneQueue{}
	p.release()
	return nil
}

// alive counts processes.
func (p *Pool) alive() int {
	n := 0
	for _, ln := range p.lanes {
		if ln != nil && ln.state != laneStateEmpty {
			n++
		}
	}
	return n
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// The layouts must be what lane.h says to the byte.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(board{})-boardSize]
	_ = [1]struct{}{}[unsafe.Sizeof(laneHeader{})-laneHead]
	_ = [1]struct{}{}[unsafe.Sizeof(taskHead{})-sizeTaskHead]
	_ = [1]struct{}{}[unsafe.Sizeof(resultHead{})-sizeResultHead]
	_ = [1]struct{}{}[unsafe.Sizeof(bulkRef{})-sizeBulkRef]
	_ = [1]struct{}{}[unsafe.Sizeof(taskRange{})-sizeTaskRange]
	_ = [1]struct{}{}[unsafe.Sizeof(span{})-sizeSpan]
	_ = [1]struct{}{}[unsafe.Sizeof(spanOut{})-sizeSpanOut]
)
