package main

// #include "engine.h"
import "C"

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/polyproc/polyproc/core/pool"
	"github.com/polyproc/polyproc/core/start"
)

// hosted is a pool of a C host, and the numbers of the functions that it was given.
type hosted struct {
	*pool.Pool
	own bool     // its workers are this program: a task is a function of it
	fns sync.Map // function address -> number
}

var pools = newTable[*hosted]("pool")

// outcomes maps core/pool's outcomes to status codes.
var outcomes = [...]C.int32_t{
	pool.OK:        C.PP_OK,
	pool.Failed:    C.PP_ERR_TASK,
	pool.Lost:      C.PP_ERR_WORKER_LOST,
	pool.Cancelled: C.PP_ERR_CANCELLED,
	pool.BadInit:   C.PP_ERR_INIT,
	pool.BadStart:  C.PP_ERR_START,
	pool.Closed:    C.PP_ERR_CLOSED,
	pool.NoMemory:  C.PP_ERR_NOMEM,
	pool.NotFound:  C.PP_ERR_NOT_FOUND,
	pool.TooBig:    C.PP_ERR_TOO_BIG,
	pool.Abandoned: C.PP_ERR_INTERRUPTED,
}

// why says in words how a task has failed.
func why(r *pool.Result) string {
	status := outcomes[r.Outcome]
	text := C.GoString(C.pp__strerror(status))
	switch r.Outcome {
	case pool.Failed:
		text = fmt.Sprintf("the task returned %d", r.Code)
	case pool.Lost, pool.BadStart:
		if r.PID != 0 {
			text += fmt.Sprintf(" (process %d: %s)", r.PID, ending(r.Exit))
		}
		if len(r.Data) > 0 {
			text += ": " + string(r.Data)
		}
	case pool.BadInit, pool.NotFound, pool.TooBig, pool.NoMemory:
		if len(r.Data) > 0 {
			text += ": " + string(r.Data)
		}
	}
	return text
}

// ending says how a process ended: an exit code, or minus a signal.
func ending(exit int) string {
	switch {
	case exit == math.MinInt32:
		return start.Status{}.String()
	case exit < 0:
		return start.Status{Known: true, Signal: syscall.Signal(-exit)}.String()
	}
	return start.Status{Known: true, Code: exit}.String()
}

func moduleOf(ref *C.pp__fn_ref) pool.Module {
	return pool.Module{
		Path:    C.GoString(&ref.path[0]),
		BuildID: C.GoBytes(unsafe.Pointer(&ref.build_id[0]), C.int(min(ref.build_id_size, 32))),
	}
}

// number returns what workers know a function by.
func (h *hosted) number(fn unsafe.Pointer) (uint64, error) {
	if fn == nil && !h.own {
		return 0, nil
	}
	if fn == nil {
		return 0, invalid("fn is NULL: the workers of this pool run functions of the program")
	}
	if !h.own {
		return 0, invalid("fn is not NULL: the workers of this pool run another program (argv), which gets the bytes")
	}
	if n, ok := h.fns.Load(fn); ok {
		return n.(uint64), nil
	}
	ref, err := reference(fn)
	if err != nil {
		return 0, err
	}
	n, err := h.FunctionNumber(moduleOf(&ref), uint64(ref.offset))
	if err == nil {
		h.fns.Store(fn, n)
	}
	return n, err
}

//export pp__go_pool_open
func pp__go_pool_open(options *C.pp__in_pool_options, out *C.pp_pool) C.int32_t {
	return callOr(C.PP_ERR_START, func() error {
		if options == nil || out == nil {
			return invalid("NULL")
		}
		if options.out_max >= 1<<31 {
			return invalid("out_max of %d bytes", uint64(options.out_max))
		}
		hostStarts := options.flags&C.PP_POOL_HOST_STARTS != 0
		forks := options.method == C.PP_START_FORK && !hostStarts
		var m start.Method
		if !hostStarts && !forks {
			var err error
			if m, err = method(options.method); err != nil {
				return err
			}
		}
		arg, err := goBytes(options.init_arg, options.init_arg_size, "init_arg")
		if err != nil {
			return err
		}
		opt := pool.Options{
			Workers: int(options.workers), MaxTasks: int(options.max_tasks), Method: m, OutMax: int(options.out_max),
			Env: environment((**C.char)(unsafe.Pointer(options.env))), Dir: C.GoString(options.cwd),
			InitArg: arg, BlockSIGINT: true, Grace: -1, Sleep: sleep, Alloc: allocate, Free: free, Unread: forgetIn,
		}
		if opt.Workers == 0 {
			opt.Workers = int(C.pp__cpu_count())
		}
		own := true
		switch {
		case hostStarts:
			opt.HostStarts, own = true, false
		case forks && (options.argv != nil || options.path != nil):
			return invalid("a forked worker executes no program")
		case forks:
			opt.HostStarts = true
		case options.argv != nil && *options.argv != nil:
			if options.initializer != nil {
				return invalid("an initializer for another program")
			}
			own = false
			opt.Path, opt.Args = C.GoString(options.path), goStrings((**C.char)(unsafe.Pointer(options.argv)))
		default:
			if opt.Path, opt.Args, err = again(); err != nil {
				return err
			}
		}
		if options.initializer != nil {
			ref, err := reference(unsafe.Pointer(options.initializer))
			if err != nil {
				return err
			}
			opt.Module = moduleOf(&ref)
			opt.InitFunc = pool.NumberIn(0, uint64(ref.offset))
		}
		if !opt.HostStarts {
			files, variable := family()
			opt.Files, opt.Env = files, append(opt.Env, variable...)
		}
		p, err := pool.Open(opt)
		if err != nil {
			return err
		}
		h := &hosted{Pool: p, own: own}
		if forks {
			// The first here, so that an error is this call's; replacements as they are needed.
			for range opt.Workers {
				if err := h.forkNext(0); err == pool.ErrClosed {
					break // the first have failed already: that is for the tasks to tell
				} else if err != nil {
					return errors.Join(err, p.Close())
				}
			}
			go func() {
				for h.forkNext(-1) != pool.ErrClosed {
				}
			}()
		}
		*out = C.pp_pool(pools.add(h))
		return nil
	})
}

// forkNext waits for a place in the pool and forks a worker for it. The child never comes back into Go.
func (h *hosted) forkNext(limit time.Duration) error {
	v, err := h.Vacancy(limit)
	if err != nil {
		return err
	}
	place := C.pp_vacancy{lane: C.uint32_t(v.Lane), generation: C.uint32_t(v.Generation), fd: C.int32_t(v.FD), parent_pid: C.int32_t(v.ParentPID)}
	pid, err := C.pp__fork_worker(&place)
	if pid <= 0 {
		err = fmt.Errorf("fork: %w", err)
		return errors.Join(err, h.Decline(v, err))
	}
	proc, err := start.Adopt(int(pid), -1)
	if err != nil {
		_ = syscall.Kill(int(pid), syscall.SIGKILL)
		return errors.Join(err, h.Decline(v, err))
	}
	if err := h.Fill(v, proc); err != nil {
		_ = proc.Kill()
		proc.Release()
		return err
	}
	return nil
}

// Results from a certain size on lie in C memory from the start: what the host gets is then not copied again.
func allocate(n int) []byte {
	p := C.malloc(C.size_t(n))
	if p == nil {
		return nil
	}
	return unsafe.Slice((*byte)(p), n)
}

// forgetIn takes back the references in bytes of at least shm.RefSize, which nobody will read.
func forgetIn(b []byte) {
	C.pp__refs_forget(unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)))
}

func free(b []byte) { C.free(unsafe.Pointer(unsafe.SliceData(b))) }

//export pp__go_pool_map
func pp__go_pool_map(handle C.pp_pool, fn C.pp_task_fn, in *C.pp__in, inSize C.size_t, out unsafe.Pointer, outSize, n, chunk C.size_t,
	ctx *C.pp__in, ctxSize C.size_t, outcomesOut *C.pp_outcome) C.int32_t {
	all := results{room: int(outSize)}
	status := withPool(handle, func(h *hosted) (err error) {
		a := &pool.Array{InSize: int(inSize), OutSize: int(outSize), N: uint64(n), Chunk: uint64(chunk), Finish: all.take, Spans: h.own, Quiet: outcomesOut == nil}
		if a.In, err = elements(unsafe.Pointer(in), inSize, n, "in"); err != nil {
			return err
		}
		if a.Out, err = elements(out, outSize, n, "out"); err != nil {
			return err
		}
		if a.Ctx, err = goBytes(unsafe.Pointer(ctx), ctxSize, "ctx"); err != nil {
			return err
		}
		if a.Fn, err = h.number(unsafe.Pointer(fn)); err != nil {
			return err
		}
		if outcomesOut != nil {
			if all.places, err = goSlice(outcomesOut, n, "outcomes_out"); err != nil {
				return err
			}
		}
		return h.MapBytes(a)
	})
	return all.status(status, "element")
}

//export pp__go_pool_alloc
func pp__go_pool_alloc(handle C.pp_pool, size C.size_t, out *unsafe.Pointer) C.int32_t {
	return withPool(handle, func(h *hosted) error {
		if out == nil || size == 0 || size > addressSpace {
			return invalid("data_out is NULL, or a size of %d bytes", uint64(size))
		}
		if !h.own {
			return invalid("the workers of this pool run another program (argv)")
		}
		data, err := h.AllocShared(int64(size))
		if err == nil {
			*out = unsafe.Pointer(unsafe.SliceData(data))
		}
		return err
	})
}

//export pp__go_pool_dealloc
func pp__go_pool_dealloc(handle C.pp_pool, data unsafe.Pointer) C.int32_t {
	return withPool(handle, func(h *hosted) error { return h.FreeShared((*byte)(data)) })
}

//export pp__go_pool_for
func pp__go_pool_for(handle C.pp_pool, fn C.pp_range_fn, n, grain C.size_t, data unsafe.Pointer, ctx *C.pp__in, ctxSize C.size_t,
	outcomesOut *C.pp_outcome) C.int32_t {
	var all results
	status := withPool(handle, func(h *hosted) (err error) {
		r := &pool.Ranges{N: uint64(n), Grain: uint64(grain), Data: (*byte)(data)}
		if outcomesOut != nil && grain == 0 {
			return invalid("outcomes_out with grain 0: its length is not known")
		}
		if outcomesOut != nil && n > 0 {
			if all.places, err = goSlice(outcomesOut, (n-1)/grain+1, "outcomes_out"); err != nil {
				return err
			}
		}
		if r.Ctx, err = goBytes(unsafe.Pointer(ctx), ctxSize, "ctx"); err != nil {
			return err
		}
		if r.Fn, err = h.number(unsafe.Pointer(fn)); err != nil {
			return err
		}
		if r.Fn == 0 {
			return invalid("the workers of this pool run another program (argv)")
		}
		r.Finish = all.take
		return h.MapRanges(r)
	})
	return all.status(status, "range")
}

// results collects the outcomes of a call: in places, if the caller wants them, and the first that is not good.
type results struct {
	places []C.pp_outcome
	room   int // for an element's bytes
	bad    bool
	first  C.int32_t
	at     uint64
	why    string
}

func (all *results) take(i uint64, r *pool.Result) {
	if all.places != nil {
		all.places[i] = C.pp_outcome{
			status: outcomes[r.Outcome], code: C.int32_t(r.Code), pid: C.int32_t(r.PID), exit_code: C.int32_t(r.Exit),
			size: C.uint64_t(min(len(r.Data), all.room)),
		}
	}
	if r.Outcome != pool.OK && (!all.bad || i < all.at) {
		all.bad, all.first, all.at, all.why = true, outcomes[r.Outcome], i, why(r)
	}
}

// status is what the call returns: of the call itself, or else of the first that is not good.
func (all *results) status(call C.int32_t, what string) C.int32_t {
	if call != C.PP_OK || !all.bad {
		return call
	}
	return callOr(all.first, func() error { return fmt.Errorf("%s %d: %s", what, all.at, all.why) })
}

//export pp__go_pool_submit
func pp__go_pool_submit(handle C.pp_pool, fn C.pp_task_fn, data *C.pp__in, size C.size_t, cookie C.uint64_t, out *C.uint64_t) C.int32_t {
	return call(func() error {
		return submit(handle, unsafe.Pointer(fn), unsafe.Pointer(data), []C.uint64_t{C.uint64_t(size)}, cookie, out)
	})
}

//export pp__go_pool_submit_many
func pp__go_pool_submit_many(handle C.pp_pool, fn C.pp_task_fn, data *C.pp__in, sizes *C.pp__in_sizes, n C.size_t, cookie C.uint64_t, out *C.uint64_t) C.int32_t {
	return call(func() error {
		all, err := goSlice((*C.uint64_t)(unsafe.Pointer(sizes)), n, "sizes")
		if err != nil {
			return err
		}
		return submit(handle, unsafe.Pointer(fn), unsafe.Pointer(data), all, cookie, out)
	})
}

func submit(handle C.pp_pool, fn, data unsafe.Pointer, sizes []C.uint64_t, cookie C.uint64_t, out *C.uint64_t) error {
	h, err := pools.get(uint64(handle))
	if err != nil {
		return err
	}
	sum := C.size_t(0)
	for _, n := range sizes {
		if n > addressSpace || sum > addressSpace {
			return pool.ErrTooBig
		}
		sum += C.size_t(n)
	}
	bytes, err := goBytes(data, sum, "data")
	if err != nil {
		return err
	}
	number, err := h.number(fn)
	if err != nil {
		return err
	}
	first, err := h.SubmitBytes(number, bytes, unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(sizes))), len(sizes)), uint64(cookie))
	if err == nil && out != nil {
		*out = C.uint64_t(first)
	}
	return err
}

// slab is memory of the caller that results are placed in.
type slab struct {
	bytes []byte
	used  int
}

// place gives a result's bytes to the host: in the slab, or in C memory that pp_result_free frees.
func (s *slab) place(r *pool.Result, out *C.pp_result) {
	*out = C.pp_result{
		task: C.uint64_t(r.Task), cookie: C.uint64_t(r.Cookie), status: outcomes[r.Outcome], code: C.int32_t(r.Code),
		pid: C.int32_t(r.PID), exit_code: C.int32_t(r.Exit), size: C.uint64_t(len(r.Data)),
	}
	n := len(r.Data)
	switch {
	case n == 0:
	case r.Foreign:
		out.data, out.owned = unsafe.Pointer(unsafe.SliceData(r.Data)), 1
	case n <= len(s.bytes)-s.used:
		copy(s.bytes[s.used:], r.Data)
		out.data = unsafe.Pointer(&s.bytes[s.used])
		s.used = min((s.used+n+7)&^7, len(s.bytes))
	default:
		out.data, out.owned = C.CBytes(r.Data), 1
	}
}

//export pp__go_pool_wait
func pp__go_pool_wait(handle C.pp_pool, task C.uint64_t, ms C.int64_t, out *C.pp_result) C.int32_t {
	return call(func() error {
		h, err := pools.get(uint64(handle))
		if err != nil {
			return err
		}
		if out == nil {
			return invalid("result_out is NULL")
		}
		r, err := h.WaitTask(uint64(task), timeout(ms))
		if err == nil {
			new(slab).place(&r, out)
		}
		return err
	})
}

//export pp__go_pool_collect
func pp__go_pool_collect(handle C.pp_pool, results *C.pp_result, limit C.size_t, memory unsafe.Pointer, memorySize C.size_t, ms C.int64_t, out *C.size_t) C.int32_t {
	return call(func() error {
		h, err := pools.get(uint64(handle))
		if err != nil {
			return err
		}
		if results == nil || limit == 0 || out == nil {
			return invalid("no room for results")
		}
		var s slab
		if memory != nil {
			if s.bytes, err = goBytes(memory, memorySize, "slab"); err != nil {
				return err
			}
		}
		places, err := goSlice(results, limit, "results")
		if err != nil {
			return err
		}
		k := 0
		n, err := h.Collect(len(places), timeout(ms), func(r pool.Result) {
			s.place(&r, &places[k])
			k++
		})
		*out = C.size_t(n)
		return err
	})
}

//export pp__go_pool_wake
func pp__go_pool_wake(handle C.pp_pool) C.int32_t {
	return withPool(handle, func(h *hosted) error { h.Wake(); return nil })
}

//export pp__go_pool_cancel
func pp__go_pool_cancel(handle C.pp_pool, task C.uint64_t) C.int32_t {
	return withPool(handle, func(h *hosted) error { return h.Cancel(uint64(task)) })
}

//export pp__go_pool_info
func pp__go_pool_info(handle C.pp_pool, state *C.pp_pool_state, pids *C.int32_t, limit C.size_t, out *C.size_t) C.int32_t {
	return withPool(handle, func(h *hosted) error {
		s, all := h.StateAndPIDs()
		if state != nil {
			*state = C.pp_pool_state{
				workers: C.int32_t(s.Workers), alive: C.int32_t(s.Alive), waiting: C.uint64_t(s.Waiting), running: C.uint64_t(s.Running),
				done: C.uint64_t(s.Done), started: C.uint64_t(s.Started), lost: C.uint64_t(s.Lost),
			}
		}
		if pids != nil {
			places := unsafe.Slice(pids, min(uint64(limit), uint64(len(all))))
			for i := range places {
				places[i] = C.int32_t(all[i])
			}
		}
		if out != nil {
			*out = C.size_t(len(all))
		}
		return nil
	})
}

//export pp__go_pool_vacancy
func pp__go_pool_vacancy(handle C.pp_pool, ms C.int64_t, out *C.pp_vacancy) C.int32_t {
	return withPool(handle, func(h *hosted) error {
		if out == nil {
			return invalid("vacancy_out is NULL")
		}
		v, err := h.Vacancy(timeout(ms))
		if err == nil {
			*out = C.pp_vacancy{lane: C.uint32_t(v.Lane), generation: C.uint32_t(v.Generation), fd: C.int32_t(v.FD), parent_pid: C.int32_t(v.ParentPID)}
		}
		return err
	})
}

//export pp__go_pool_fill
func pp__go_pool_fill(handle C.pp_pool, vacancy *C.pp__in_vacancy, pid, statusFD C.int32_t) C.int32_t {
	return withPool(handle, func(h *hosted) error {
		if vacancy == nil || pid < 0 {
			return invalid("vacancy is NULL, or pid negative")
		}
		v := pool.Vacancy{Lane: int(vacancy.lane), Generation: uint32(vacancy.generation)}
		if pid == 0 {
			why := errors.New("the host could not start a process")
			if statusFD > 0 {
				why = fmt.Errorf("%w: %w", why, syscall.Errno(statusFD))
			}
			return h.Decline(v, why)
		}
		proc, err := start.Adopt(int(pid), int(statusFD))
		if err != nil {
			return errors.Join(err, h.Decline(v, err))
		}
		if err := h.Fill(v, proc); err != nil {
			proc.Release() // it goes on, and is still collected
			return err
		}
		return nil
	})
}

//export pp__go_pool_close
func pp__go_pool_close(handle C.pp_pool) C.int32_t {
	return withPool(handle, func(h *hosted) error { h.Drain(); return nil })
}

//export pp__go_pool_terminate
func pp__go_pool_terminate(handle C.pp_pool) C.int32_t {
	return withPool(handle, func(h *hosted) error { h.Terminate(); return nil })
}

//export pp__go_pool_join
func pp__go_pool_join(handle C.pp_pool, ms C.int64_t) C.int32_t {
	return withPool(handle, func(h *hosted) error { return h.Join(timeout(ms)) })
}

//export pp__go_pool_free
func pp__go_pool_free(handle C.pp_pool) C.int32_t {
	return call(func() error {
		if handle == 0 {
			return nil
		}
		h, err := pools.remove(uint64(handle))
		if err != nil {
			return err
		}
		return h.Close()
	})
}

func withPool(handle C.pp_pool, body func(*hosted) error) C.int32_t {
	return call(func() error {
		h, err := pools.get(uint64(handle))
		if err != nil {
			return err
		}
		return body(h)
	})
}
