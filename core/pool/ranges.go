package pool

import (
	"fmt"
	"unsafe"

	"github.com/polyproc/polyproc/shm"
)

// sharedBlock is memory that the program and the workers use at the same time.
type sharedBlock struct {
	block *shm.Block
	uses  int  // jobs over it that have not ended
	freed bool // nobody wants it any more but those
}

// AllocShared returns n bytes that tasks of [Pool.MapRanges] can read and write, not initialized.
func (p *Pool) AllocShared(n int64) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	block, err := p.arena.Alloc(n)
	if err != nil {
		return nil, fmt.Errorf("pool: %d bytes of shared memory: %w", n, err)
	}
	if p.shared == nil {
		p.shared = map[*byte]*sharedBlock{}
	}
	p.shared[unsafe.SliceData(block.Bytes)] = &sharedBlock{block: block}
	return block.Bytes, nil
}

// FreeShared gives memory of AllocShared back, once the tasks that use it have ended.
func (p *Pool) FreeShared(data *byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.shared[data]
	if b == nil {
		return fmt.Errorf("%w: %p is not where shared memory of this pool begins", ErrInvalid, data)
	}
	delete(p.shared, data)
	b.freed = true
	p.disuse(b, 0)
	return nil
}

// disuse takes n uses off a block and frees it if it has none and is not wanted.
func (p *Pool) disuse(b *sharedBlock, n int) {
	if b.uses -= n; b.uses == 0 && b.freed {
		p.arena.Free(b.block)
	}
}

// sharedAt returns the block that data points into, and where; nil for nil.
func (p *Pool) sharedAt(data *byte) (*sharedBlock, uint64, error) {
	if data == nil {
		return nil, 0, nil
	}
	at := uintptr(unsafe.Pointer(data))
	for base, b := range p.shared {
		if from := uintptr(unsafe.Pointer(base)); at >= from && at-from < uintptr(len(b.block.Bytes)) {
			return b, uint64(at - from), nil
		}
	}
	return nil, 0, fmt.Errorf("%w: %p does not point into shared memory of this pool", ErrInvalid, data)
}

// Ranges is a job over the numbers 0 to N - 1, which C workers get in ranges: the parallel for loop.
type Ranges struct {
	Fn    uint64
	N     uint64
	Grain uint64 // numbers in a range; 0: the pool decides
	Data  *byte  // in memory of AllocShared, or nil: what all ranges work on
	Ctx   []byte // every range sees these bytes
	// Finish, if not nil, is told the outcome of each range, in no order, with the pool's lock held.
	Finish func(i uint64, r *Result)

	ref taskRange // as every task has it, but for begin and end
}

func (r *Ranges) size(uint64) int { return sizeTaskRange }

func (r *Ranges) put(i uint64, dst []byte) {
	t := at[taskRange](dst)
	*t = r.ref
	t.begin = i * r.Grain
	t.end = t.begin + min(r.Grain, r.N-t.begin)
}

func (r *Ranges) finish(i uint64, result *Result) {
	if r.Finish != nil {
		r.Finish(i, result)
	}
}

// rangesPerWorker is how many ranges a worker gets if the pool decides: few, since each costs a round, but more than one, since
// what has not started can go to another worker.
const rangesPerWorker = 4

// MapRanges runs a job over ranges and waits for it. Errors and interruptions are as in MapBytes.
func (p *Pool) MapRanges(r *Ranges) error {
	if r.N == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	shared, offset, err := p.sharedAt(r.Data)
	if err != nil {
		return err
	}
	workers := uint64(p.opt.Workers)
	if r.Grain == 0 {
		r.Grain = max((r.N-1)/(rangesPerWorker*workers)+1, 1)
	}
	n := (r.N-1)/r.Grain + 1
	j := &job{work: r, n: n, fn: r.Fn, flags: flagRange, chunk: max((n-1)/workers+1, 1)}
	j.chunk = min(j.chunk, rangesPerWorker)
	if err := p.attachCtx(j, r.Ctx); err != nil {
		return err
	}
	if shared != nil {
		r.ref = taskRange{off: uint64(shared.block.Off), size: uint64(len(shared.block.Bytes)), offset: offset}
		shared.uses++
		j.ended = func() { p.disuse(shared, 1) }
	}
	if err := p.add(j); err != nil {
		return err
	}
	return p.finishOrAbandon(j)
}

// attachCtx copies the bytes that all tasks of a job see.
func (p *Pool) attachCtx(j *job, ctx []byte) error {
	if len(ctx) == 0 {
		return nil
	}
	block, err := p.arena.Alloc(int64(len(ctx)))
	if err != nil {
		return fmt.Errorf("pool: ctx: %w", err)
	}
	copy(block.Bytes, ctx)
	j.ctx, j.ctxSize = block, uint64(len(ctx))
	return nil
}

// finishOrAbandon waits for a job, or gives it up if the wait is interrupted.
func (p *Pool) finishOrAbandon(j *job) error {
	if err := p.waitFor(-1, func() bool { return j.open == 0 }); err != nil {
		p.abandon(j)
		return err
	}
	return nil
}
