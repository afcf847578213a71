/* stubs.c - the public functions whose work is the engine's: each calls through the table.
 *
 * Handles. The upper 16 bits of a handle are the number of forks behind the process that issued it; the engine, which numbers
 * from 1 in every process, sees only the lower 48. So a handle from before a fork is known for what it is, and never taken for one of
 * the fresh engine's own, and the engine need not be loaded to say so. */
#include "bell.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define HANDLE_BITS 48
#define ADDRESS_SPACE ((size_t)1 << 47) /* no arrays are larger */

/* ours checks a handle and reduces it to the engine's number. */
static int32_t ours(uint64_t *handle)
{
	const uint64_t issued = *handle >> HANDLE_BITS, now = pp__fork_depth();

	if (*handle >> 63 != 0) /* see objects.c */
		return pp__fail(PP_ERR_HANDLE, "handle %#llx is that of a queue, a lock or a pipe, and not of a pool or process", (unsigned long long)*handle);
	if (*handle != 0 && issued < now)
		return pp__fail(PP_ERR_FORKED, "handle %#llx belongs to a process that forked this one", (unsigned long long)*handle);
	/* No engine: nothing was ever opened. */
	if (*handle == 0 || issued > now || !pp__engine_loaded())
		return pp__fail(PP_ERR_HANDLE, "handle %#llx was never opened", (unsigned long long)*handle);
	*handle &= ((uint64_t)1 << HANDLE_BITS) - 1;
	return PP_OK;
}

static void issue(uint64_t *handle)
{
	*handle |= (uint64_t)pp__fork_depth() << HANDLE_BITS;
}

/* enter comes before each call into the engine. */
static int32_t enter(const pp__table **table_out)
{
	if ((*table_out = pp__table_now()) == NULL)
		return PP_ERR_ENGINE;
	pp__signal_stack();
	return pp__engine_intact();
}

/* PP_CALL passes a call whose first argument is a handle; PP_WAIT one that may wait, which is PP_SHORT_MS if it usually does not wait for
 * long (it sleeps in the host's wait); PP_OPEN one that needs no handle. A first call into
 * the engine waits until the Go runtime is ready, which is a cancellation point. */
#define PP_CALL(name, handle, arguments)             \
	do {                                             \
		PP__NO_CANCEL();                             \
		const int32_t pp__status = ours(&(handle));  \
		if (pp__status != PP_OK)                     \
			return pp__status;                       \
		const pp__table *t;                          \
		const int32_t pp__entered = enter(&t);       \
		return pp__entered != PP_OK ? pp__entered : t->name arguments; \
	} while (0)

#define PP_WAIT_SURE(sure, name, handle, arguments)  \
	do {                                             \
		if (pp__engine_loaded())                     \
			pp__settle_handlers(sure);               \
		PP_CALL(name, handle, arguments);            \
	} while (0)
#define PP_WAIT(name, handle, arguments) PP_WAIT_SURE(true, name, handle, arguments)

/* PP_WAIT_MS and PP_SHORT_MS are for calls with timeout_ms, which the engine gets as -1, or a number from 0 on. */
#define PP_SURE_MS(sure, name, handle, arguments)      \
	do {                                               \
		if (!pp__timeout_valid(timeout_ms))            \
			return pp__timeout_invalid(timeout_ms);    \
		if (timeout_ms == PP_TRY)                      \
			timeout_ms = 0;                            \
		PP_WAIT_SURE(sure, name, handle, arguments);   \
	} while (0)
#define PP_WAIT_MS(name, handle, arguments) PP_SURE_MS(true, name, handle, arguments)
#define PP_SHORT_MS(name, handle, arguments) PP_SURE_MS(false, name, handle, arguments)

#define PP_OPEN(name, handle_out, arguments)         \
	do {                                             \
		PP__NO_CANCEL();                             \
		const pp__table *t;                          \
		int32_t pp__status = enter(&t);              \
		if (pp__status == PP_OK)                     \
			pp__status = t->name arguments;          \
		if (pp__status == PP_OK)                     \
			issue(handle_out);                       \
		return pp__status;                           \
	} while (0)

/* ---- process ---- */

enum { PROCESS_FLAGS = PP_PROCESS_DAEMON | PP_PROCESS_BLOCK_SIGINT | PP_PROCESS_FAMILY };

/* start_fork forks in the calling thread, which the child's only one is a copy of, and has the engine adopt the child. */
static int32_t start_fork(const pp_process_options *options, pp_process *process_out)
{
	PP__NO_CANCEL();
	if (options->fn == NULL || options->path != NULL || options->argv != NULL)
		return pp__fail(PP_ERR_INVALID, "a forked child runs fn and executes no program");
	if (options->arg == NULL && options->arg_size > 0)
		return pp__fail(PP_ERR_INVALID, "arg is NULL and its size is %zu", options->arg_size);
	const pp__table *t;
	const int32_t entered = enter(&t);
	if (entered != PP_OK)
		return entered; /* before there is a child that nobody could supervise */
	/* The child waits until it is adopted: one that ended before could be gone without a trace, where SIGCHLD is ignored. */
	pp__bell *const gate = mmap(NULL, sizeof *gate, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (gate == MAP_FAILED)
		return pp__fail(PP_ERR_NOMEM, "a page for the start of a process: %s", strerror(errno));
	const int32_t pid = pp__fork_process(options, gate);
	int32_t status = PP_OK;
	if (pid < 0) {
		status = pp__fail(PP_ERR_START, "fork: %s", strerror(errno));
	} else if ((status = pp_process_adopt(pid, -1, process_out)) != PP_OK) {
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	} else {
		__atomic_store_n(&gate->waiters, 1, __ATOMIC_SEQ_CST); /* the one sleeper, if it is asleep */
		pp__bell_ring(gate);
	}
	munmap(gate, sizeof *gate);
	return status;
}

int32_t pp_process_start(const pp_process_options *options, pp_process *process_out)
{
	if (options == NULL || process_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_process_start: NULL");
	const int32_t fit = pp__options_fit(options, options->size, sizeof *options, "PP_PROCESS_OPTIONS_INIT");
	if (fit != PP_OK)
		return fit;
	if ((options->flags & ~(uint32_t)PROCESS_FLAGS) != 0 || options->reserved != 0)
		return pp__fail(PP_ERR_INVALID, "pp_process_start: flags %#x, reserved %u", options->flags, options->reserved);
	if (options->method == PP_START_FORK)
		return start_fork(options, process_out);
	PP_OPEN(process_start, process_out, (options, process_out));
}

int32_t pp_process_adopt(int32_t pid, int32_t status_fd, pp_process *process_out)
{
	if (process_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_process_adopt: NULL");
	PP_OPEN(process_adopt, process_out, (pid, status_fd, process_out));
}

int32_t pp_process_wait(pp_process process, int64_t timeout_ms, pp_exit *exit_out)
{
	PP_WAIT_MS(process_wait, process, (process, timeout_ms, exit_out));
}

int32_t pp_process_info(pp_process process, int32_t *pid_out, int32_t *fd_out)
{
	PP_CALL(process_info, process, (process, pid_out, fd_out));
}

int32_t pp_process_signal(pp_process process, int32_t signal)
{
	PP_CALL(process_signal, process, (process, signal));
}

int32_t pp_process_free(pp_process process)
{
	if (process == 0)
		return PP_OK;
	PP_CALL(process_free, process, (process));
}

/* ---- pool ---- */

static uint32_t pools_open;

void pp__pools_forked(void)
{
	pools_open = 0;
}

static int32_t pool_open(const pp_pool_options *options, pp_pool *pool_out)
{
	PP_OPEN(pool_open, pool_out, (options, pool_out));
}

int32_t pp_pool_open(const pp_pool_options *options, pp_pool *pool_out)
{
	if (options == NULL || pool_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_pool_open: NULL");
	const int32_t fit = pp__options_fit(options, options->size, sizeof *options, "PP_POOL_OPTIONS_INIT");
	if (fit != PP_OK)
		return fit;
	if ((options->flags & ~(uint32_t)PP_POOL_HOST_STARTS) != 0 || options->reserved != 0)
		return pp__fail(PP_ERR_INVALID, "pp_pool_open: flags %#x, reserved %u", options->flags, options->reserved);
	/* Each pool needs a thread, and one that cannot be made would abort the program. */
	const int error = pp__engine_loaded() ? pp__engine_threads(PP__THREADS_LOAD + __atomic_load_n(&pools_open, __ATOMIC_RELAXED)) : 0;
	if (error != 0)
		return pp__fail(PP_ERR_ENGINE, "a pool needs threads: %s (RLIMIT_NPROC, pids.max of the control group, or RLIMIT_AS)", strerror(error));
	const int32_t status = pool_open(options, pool_out);
	if (status == PP_OK)
		__atomic_fetch_add(&pools_open, 1, __ATOMIC_RELAXED);
	return status;
}

/* nothing_started fills in n outcomes, whatever becomes of the call, unless n cannot be true: each element takes size bytes more. */
static void nothing_started(pp_outcome *outcomes, size_t n, size_t size)
{
	if (size > ADDRESS_SPACE || n > ADDRESS_SPACE / (sizeof *outcomes + size))
		return;
	for (size_t i = 0; i < n; i++)
		outcomes[i] = (pp_outcome){.status = PP_ERR_CANCELLED};
}

int32_t pp_pool_map(pp_pool pool, pp_task_fn fn, const void *in, size_t in_size, void *out, size_t out_size, size_t n, size_t chunk,
                    const void *ctx, size_t ctx_size, pp_outcome *outcomes_out)
{
	if (outcomes_out != NULL && in_size <= ADDRESS_SPACE && out_size <= ADDRESS_SPACE)
		nothing_started(outcomes_out, n, in_size + out_size);
	PP_WAIT(pool_map, pool, (pool, fn, in, in_size, out, out_size, n, chunk, ctx, ctx_size, outcomes_out));
}

int32_t pp_pool_alloc(pp_pool pool, size_t size, void **data_out)
{
	PP_CALL(pool_alloc, pool, (pool, size, data_out));
}

int32_t pp_pool_dealloc(pp_pool pool, void *data)
{
	if (data == NULL)
		return PP_OK;
	PP_CALL(pool_dealloc, pool, (pool, data));
}

int32_t pp_pool_for(pp_pool pool, pp_range_fn fn, size_t n, size_t grain, void *data, const void *ctx, size_t ctx_size,
                    pp_outcome *outcomes_out)
{
	if (outcomes_out != NULL && grain > 0 && n > 0)
		nothing_started(outcomes_out, (n - 1) / grain + 1, 0);
	PP_WAIT(pool_for, pool, (pool, fn, n, grain, data, ctx, ctx_size, outcomes_out));
}

int32_t pp_pool_submit(pp_pool pool, pp_task_fn fn, const void *data, size_t size, uint64_t cookie, uint64_t *task_out)
{
	PP_CALL(pool_submit, pool, (pool, fn, data, size, cookie, task_out));
}

int32_t pp_pool_submit_many(pp_pool pool, pp_task_fn fn, const void *data, const uint64_t *sizes, size_t n, uint64_t cookie,
                            uint64_t *first_out)
{
	PP_CALL(pool_submit_many, pool, (pool, fn, data, sizes, n, cookie, first_out));
}

int32_t pp_pool_wait(pp_pool pool, uint64_t task, int64_t timeout_ms, pp_result *result_out)
{
	PP_SHORT_MS(pool_wait, pool, (pool, task, timeout_ms, result_out));
}

int32_t pp_pool_collect(pp_pool pool, pp_result *results, size_t max, void *slab, size_t slab_size, int64_t timeout_ms, size_t *n_out)
{
	PP_SHORT_MS(pool_collect, pool, (pool, results, max, slab, slab_size, timeout_ms, n_out));
}

int32_t pp_pool_wake(pp_pool pool)
{
	PP_CALL(pool_wake, pool, (pool));
}

/* The engine allocates owned results with malloc, so that they can be freed in a forked child as well. */
void pp_result_free(pp_result *result)
{
	if (result == NULL || result->owned == 0)
		return;
	free((void *)(uintptr_t)result->data);
	result->owned = 0;
	result->data = NULL;
	result->size = 0;
}

int32_t pp_pool_cancel(pp_pool pool, uint64_t task)
{
	PP_CALL(pool_cancel, pool, (pool, task));
}

int32_t pp_pool_info(pp_pool pool, pp_pool_state *state_out, int32_t *pids, size_t pids_max, size_t *pids_out)
{
	PP_CALL(pool_info, pool, (pool, state_out, pids, pids_max, pids_out));
}

int32_t pp_pool_vacancy(pp_pool pool, int64_t timeout_ms, pp_vacancy *vacancy_out)
{
	PP_WAIT_MS(pool_vacancy, pool, (pool, timeout_ms, vacancy_out));
}

int32_t pp_pool_fill(pp_pool pool, const pp_vacancy *vacancy, int32_t pid, int32_t status_fd)
{
	PP_CALL(pool_fill, pool, (pool, vacancy, pid, status_fd));
}

int32_t pp_pool_close(pp_pool pool)
{
	PP_CALL(pool_close, pool, (pool));
}

int32_t pp_pool_terminate(pp_pool pool)
{
	PP_CALL(pool_terminate, pool, (pool));
}

int32_t pp_pool_join(pp_pool pool, int64_t timeout_ms)
{
	PP_WAIT_MS(pool_join, pool, (pool, timeout_ms));
}

static int32_t pool_free(pp_pool pool)
{
	PP_WAIT(pool_free, pool, (pool));
}

int32_t pp_pool_free(pp_pool pool)
{
	if (pool == 0)
		return PP_OK;
	const int32_t status = pool_free(pool);
	if (status == PP_OK)
		__atomic_fetch_sub(&pools_open, 1, __ATOMIC_RELAXED);
	return status;
}
