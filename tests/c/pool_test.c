/* pool_test.c - pools, from a C program.
 *
 * deadline: 300 s
 */
#include "scenarios.h"

#include <dlfcn.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unwind.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- tasks --------------------------------------------------------------------------------------------------------- */

static int32_t square(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const double x = *(const double *)in;
	double add = 0;

	if (in_size != sizeof x || *out_size != sizeof x || (uintptr_t)in % 8 != 0 || (uintptr_t)ctx % 8 != 0)
		return 99;
	if (ctx_size == sizeof add)
		memcpy(&add, ctx, sizeof add);
	*(double *)out = x * x + add;
	return 0;
}

static int32_t echo(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)ctx;
	(void)ctx_size;
	if (in_size > *out_size)
		return 98;
	memcpy(out, in, in_size);
	*out_size = in_size;
	return 0;
}

static int32_t nothing(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in;
	(void)in_size;
	(void)out;
	(void)ctx;
	(void)ctx_size;
	*out_size = 0;
	return 0;
}

static int32_t pid_of(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in;
	(void)in_size;
	(void)ctx;
	(void)ctx_size;
	*(int32_t *)out = (int32_t)getpid();
	*out_size = sizeof(int32_t);
	return 0;
}

static int32_t sleep_ms(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const int32_t ms = *(const int32_t *)in;

	(void)ctx;
	(void)ctx_size;
	nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
	return echo(in, in_size, out, out_size, NULL, 0);
}

enum { WELL = 0, SEGFAULT, EXIT, ABORT, KILL, FAIL, TOO_MUCH, CLOSE_ALL, DIVIDE };

/* misbehave does what it is told to. */
static int32_t misbehave(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const int32_t what = *(const int32_t *)in;
	volatile int zero = 0;

	(void)ctx;
	(void)ctx_size;
	switch (what & 0xff) {
	case SEGFAULT:
		*(volatile int *)(uintptr_t)8 = 1;
		break;
	case EXIT:
		exit(what >> 8);
	case ABORT:
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
		abort();
	case KILL:
		kill(getpid(), SIGKILL);
		break;
	case FAIL:
		return what >> 8;
	case TOO_MUCH:
		*out_size += 1;
		return 0;
	case CLOSE_ALL:
		for (int fd = 0; fd < 256; fd++)
			close(fd);
		break;
	case DIVIDE:
		zero = what / zero;
		break;
	}
	return echo(in, in_size, out, out_size, NULL, 0);
}

/* zeros has a result of as many bytes as it is told. */
static int32_t zeros(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	uint64_t n;

	(void)in_size;
	(void)ctx;
	(void)ctx_size;
	memcpy(&n, in, sizeof n);
	if (n > *out_size)
		return 97;
	memset(out, 'z', n);
	*out_size = n;
	return 0;
}

/* sum reads all of ctx. */
static int32_t sum(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	uint64_t total = 0;

	(void)in;
	(void)in_size;
	(void)out_size;
	for (size_t i = 0; i < ctx_size; i++)
		total += ((const uint8_t *)ctx)[i];
	memcpy(out, &total, sizeof total);
	return 0;
}

static uint64_t from_initializer;

static int32_t initialize(const void *arg, size_t arg_size)
{
	if (arg_size != sizeof from_initializer)
		return 1;
	memcpy(&from_initializer, arg, sizeof from_initializer);
	return 0;
}

static int32_t initialized(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in;
	(void)in_size;
	(void)out_size;
	(void)ctx;
	(void)ctx_size;
	memcpy(out, &from_initializer, sizeof from_initializer);
	return 0;
}

static int32_t always_fails(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	return 42;
}

/* fails_once fails if it can remove the file that arg names. */
static int32_t fails_once(const void *arg, size_t arg_size)
{
	(void)arg_size;
	return unlink(arg) == 0 ? 7 : 0;
}

/* ---- help ----------------------------------------------------------------------------------------------------------- */

static pp_pool open_pool(int32_t workers)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool = 0;

	options.workers = workers;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE(pool != 0);
	return pool;
}

/* works ends the test unless the pool maps 1,000 elements correctly. */
static void works(pp_pool pool)
{
	static double in[1000], out[1000];
	pp_outcome outcome[1000];

	for (int i = 0; i < 1000; i++)
		in[i] = i, out[i] = -1, outcome[i].status = -1;
	REQUIRE_STATUS(pp_pool_map(pool, square, in, sizeof *in, out, sizeof *out, 1000, 0, NULL, 0, outcome), PP_OK);
	for (int i = 0; i < 1000; i++)
		REQUIRE(out[i] == (double)i * i && outcome[i].status == PP_OK);
}

static int32_t alive(pp_pool pool)
{
	pp_pool_state state;

	REQUIRE_STATUS(pp_pool_info(pool, &state, NULL, 0, NULL), PP_OK);
	return state.alive;
}

/* ---- scenarios ------------------------------------------------------------------------------------------------------- */

static void map(void)
{
	static const size_t counts[] = {0, 1, 2, 1000, 100000}, chunks[] = {0, 1, 7, 1000, 1000000};
	static double in[100000], out[100000];
	const double ctx = 0.5;
	const pp_pool pool = open_pool(2);

	for (size_t c = 0; c < COUNT(counts); c++) {
		for (size_t k = 0; k < COUNT(chunks); k++) {
			const size_t n = counts[c];
			for (size_t i = 0; i < n; i++)
				in[i] = (double)i / 2, out[i] = -1;
			REQUIRE_STATUS(pp_pool_map(pool, square, in, sizeof *in, out, sizeof *out, n, chunks[k], &ctx, sizeof ctx, NULL), PP_OK);
			for (size_t i = 0; i < n; i++)
				REQUIRE(out[i] == in[i] * in[i] + 0.5);
		}
	}
	/* No result, no input, neither. */
	REQUIRE_STATUS(pp_pool_map(pool, nothing, in, sizeof *in, NULL, 0, 5000, 0, NULL, 0, NULL), PP_OK);
	int32_t pids[100];
	REQUIRE_STATUS(pp_pool_map(pool, pid_of, NULL, 0, pids, sizeof *pids, 100, 1, NULL, 0, NULL), PP_OK);
	for (int i = 0; i < 100; i++)
		REQUIRE(pids[i] > 0 && pids[i] != getpid());
	REQUIRE_STATUS(pp_pool_map(pool, nothing, NULL, 0, NULL, 0, 10, 0, NULL, 0, NULL), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* Elements and results of all sizes around the limits of the rings, and a large ctx. */
static void map_big(void)
{
	static const size_t sizes[] = {1, 8, 1000, 65535 - 56, 65536 - 56, 65536, 200000, 3000000};
	const pp_pool pool = open_pool(2);

	for (size_t k = 0; k < COUNT(sizes); k++) {
		const size_t size = sizes[k], n = size > 100000 ? 8 : 100;
		uint8_t *const in = malloc(size * n), *const out = calloc(n, size);
		REQUIRE(in != NULL && out != NULL);
		for (size_t i = 0; i < size * n; i++)
			in[i] = (uint8_t)(i * 13 + i / 251);
		for (int lap = 0; lap < 3; lap++) {
			memset(out, 0, size * n);
			REQUIRE_STATUS(pp_pool_map(pool, echo, in, size, out, size, n, 0, NULL, 0, NULL), PP_OK);
			REQUIRE(memcmp(in, out, size * n) == 0);
		}
		free(in);
		free(out);
	}
	const size_t ctx_size = 5000001;
	uint8_t *const ctx = malloc(ctx_size);
	REQUIRE(ctx != NULL);
	memset(ctx, 3, ctx_size);
	uint64_t sums[40];
	REQUIRE_STATUS(pp_pool_map(pool, sum, NULL, 0, sums, sizeof *sums, COUNT(sums), 1, ctx, ctx_size, NULL), PP_OK);
	for (size_t i = 0; i < COUNT(sums); i++)
		REQUIRE_EQ(sums[i], 3 * ctx_size);
	free(ctx);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* A bad element costs itself. */
static void bad_elements(void)
{
	static const int32_t bad[] = {SEGFAULT, EXIT, EXIT | 7 << 8, ABORT, KILL, DIVIDE};
	const pp_pool pool = open_pool(2);
	int32_t in[300], out[300];
	pp_outcome outcome[300];

	for (size_t k = 0; k < COUNT(bad); k++) {
		memset(in, 0, sizeof in);
		memset(outcome, 0x7f, sizeof outcome);
		in[0] = in[150] = bad[k];
		in[151] = in[299] = FAIL | 1000 << 8;
		in[152] = TOO_MUCH;
		REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, 300, k % 2 ? 0 : 10, NULL, 0, outcome),
		               PP_ERR_WORKER_LOST);
		REQUIRE(strlen(pp_last_error()) > 0);
		for (int i = 0; i < 300; i++)
			REQUIRE_EQ(outcome[i].status, in[i] == bad[k] ? PP_ERR_WORKER_LOST : in[i] == TOO_MUCH ? PP_ERR_TOO_BIG : in[i] != 0 ? PP_ERR_TASK : PP_OK);
		works(pool);
		WITHIN(1000, alive(pool) == 2);
	}
	/* One that closes every descriptor of its process harms nobody. */
	memset(in, 0, sizeof in);
	in[3] = CLOSE_ALL;
	REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, 10, 0, NULL, 0, NULL), PP_OK);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void submit(void)
{
	enum { N = 2000 };
	const pp_pool pool = open_pool(2);
	uint64_t first = 0, task, numbers[N], sizes[N];
	pp_result result, results[64];
	static uint8_t seen[N];
	char slab[4096];
	size_t n;

	/* One by one, waited for in any order. */
	for (uint64_t i = 0; i < 100; i++)
		REQUIRE_STATUS(pp_pool_submit(pool, echo, &i, sizeof i, 1000 + i, &numbers[i]), PP_OK);
	for (uint64_t i = 100; i-- > 0;) {
		REQUIRE_STATUS(pp_pool_wait(pool, numbers[i], -1, &result), PP_OK);
		REQUIRE_EQ(result.status, PP_OK);
		REQUIRE_EQ(result.task, numbers[i]);
		REQUIRE_EQ(result.cookie, 1000 + i);
		REQUIRE_EQ(result.size, sizeof i);
		REQUIRE(memcmp(result.data, &i, sizeof i) == 0);
		REQUIRE(result.pid > 0);
		pp_result_free(&result);
		pp_result_free(&result);
		REQUIRE_STATUS(pp_pool_wait(pool, numbers[i], 0, &result), PP_ERR_NOT_FOUND);
	}
	/* Many at once, collected as they come. */
	for (uint64_t i = 0; i < N; i++)
		numbers[i] = i, sizes[i] = sizeof *numbers;
	REQUIRE_STATUS(pp_pool_submit_many(pool, echo, numbers, sizes, N, 5000, &first), PP_OK);
	for (size_t got = 0; got < N; got += n) {
		REQUIRE_STATUS(pp_pool_collect(pool, results, COUNT(results), got % 2 ? slab : NULL, sizeof slab, 20000, &n), PP_OK);
		REQUIRE(n > 0 && n <= COUNT(results));
		for (size_t k = 0; k < n; k++) {
			uint64_t i;
			REQUIRE_EQ(results[k].status, PP_OK);
			REQUIRE_EQ(results[k].size, sizeof i);
			REQUIRE((uintptr_t)results[k].data % 8 == 0);
			memcpy(&i, results[k].data, sizeof i);
			REQUIRE(i < N && results[k].task == first + i && results[k].cookie == 5000 + i && !seen[i]++);
			pp_result_free(&results[k]);
		}
	}
	REQUIRE_STATUS(pp_pool_collect(pool, results, COUNT(results), NULL, 0, 0, &n), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_pool_collect(pool, results, COUNT(results), NULL, 0, 50, &n), PP_ERR_TIMEOUT);
	/* What goes wrong is told in the result. */
	const int32_t fail = FAIL | 12345 << 8, leave = EXIT | 9 << 8, crash = SEGFAULT;
	REQUIRE_STATUS(pp_pool_submit(pool, misbehave, &fail, sizeof fail, 1, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, 20000, &result), PP_OK);
	REQUIRE_EQ(result.status, PP_ERR_TASK);
	REQUIRE_EQ(result.code, 12345);
	REQUIRE_STATUS(pp_pool_submit(pool, misbehave, &leave, sizeof leave, 1, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, 20000, &result), PP_OK);
	REQUIRE_EQ(result.status, PP_ERR_WORKER_LOST);
	REQUIRE_EQ(result.exit_code, 9);
	REQUIRE_STATUS(pp_pool_submit(pool, misbehave, &crash, sizeof crash, 1, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, 20000, &result), PP_OK);
	REQUIRE_EQ(result.status, PP_ERR_WORKER_LOST);
	REQUIRE_EQ(result.exit_code, -SIGSEGV);
	works(pool);
	/* Nothing is a task as well. */
	REQUIRE_STATUS(pp_pool_submit(pool, echo, NULL, 0, 1, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, 20000, &result), PP_OK);
	REQUIRE_EQ(result.status, PP_OK);
	REQUIRE_EQ(result.size, 0);
	REQUIRE(result.data == NULL);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_submit(pool, echo, NULL, 0, 1, &task), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_pool_collect(pool, results, COUNT(results), NULL, 0, -1, &n), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_pool_join(pool, 20000), PP_OK);
	REQUIRE_EQ(alive(pool), 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* Large results, more than fits, and a pool that is told how much room they need. */
static void big_results(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	uint64_t task;
	pp_result result;
	static const uint64_t sizes[] = {0, 1, 65536 - 32, 65536 - 31, 100000, 1 << 20, 20 << 20, (20 << 20) + 1};

	options.workers = 1;
	options.out_max = 20 << 20;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	for (int lap = 0; lap < 3; lap++) {
		for (size_t k = 0; k < COUNT(sizes); k++) {
			REQUIRE_STATUS(pp_pool_submit(pool, zeros, &sizes[k], sizeof sizes[k], 0, &task), PP_OK);
			REQUIRE_STATUS(pp_pool_wait(pool, task, 20000, &result), PP_OK);
			if (sizes[k] > options.out_max) {
				REQUIRE_EQ(result.status, PP_ERR_TASK);
				REQUIRE_EQ(result.code, 97);
				continue;
			}
			REQUIRE_EQ(result.status, PP_OK);
			REQUIRE_EQ(result.size, sizes[k]);
			REQUIRE(result.size == 0 || (((const char *)result.data)[0] == 'z' && ((const char *)result.data)[result.size - 1] == 'z'));
			pp_result_free(&result);
		}
	}
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void cancel(void)
{
	const pp_pool pool = open_pool(1);
	const int32_t ms = 1500; /* long enough to be seen running on a loaded machine */
	uint64_t running, waiting[5];
	pp_result result;
	pp_pool_state state;

	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &running), PP_OK);
	for (int i = 0; i < 5; i++)
		REQUIRE_STATUS(pp_pool_submit(pool, echo, &i, sizeof i, 0, &waiting[i]), PP_OK);
	WITHIN(20000, pp_pool_info(pool, &state, NULL, 0, NULL) == PP_OK && state.running == 1);
	REQUIRE_EQ(state.waiting, 5);
	REQUIRE_STATUS(pp_pool_cancel(pool, running), PP_ERR_STATE);
	REQUIRE_STATUS(pp_pool_cancel(pool, waiting[0]), PP_OK);
	REQUIRE_STATUS(pp_pool_cancel(pool, waiting[3]), PP_OK);
	REQUIRE_STATUS(pp_pool_cancel(pool, 123456), PP_ERR_NOT_FOUND);
	REQUIRE_STATUS(pp_pool_wait(pool, waiting[1], 0, &result), PP_ERR_TIMEOUT);
	for (int i = 0; i < 5; i++) {
		REQUIRE_STATUS(pp_pool_wait(pool, waiting[i], 20000, &result), PP_OK);
		REQUIRE_EQ(result.status, i % 3 == 0 ? PP_ERR_CANCELLED : PP_OK);
		REQUIRE_EQ(result.pid == 0, i % 3 == 0);
		pp_result_free(&result);
	}
	REQUIRE_STATUS(pp_pool_wait(pool, running, 20000, &result), PP_OK);
	REQUIRE_EQ(result.status, PP_OK);
	pp_result_free(&result);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void initializers(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	const uint64_t arg = 0x1122334455667788;
	uint64_t out[50], task;
	pp_result result;
	char file[] = "/tmp/polyproc-pool-test-XXXXXX";

	options.workers = 2;
	options.initializer = initialize;
	options.init_arg = &arg;
	options.init_arg_size = sizeof arg;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, initialized, NULL, 0, out, sizeof *out, COUNT(out), 1, NULL, 0, NULL), PP_OK);
	for (size_t i = 0; i < COUNT(out); i++)
		REQUIRE(out[i] == arg);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);

	/* One that fails once: the worker is replaced, and the pool is well. */
	const int fd = mkstemp(file);
	REQUIRE(fd >= 0);
	close(fd);
	options.initializer = fails_once;
	options.init_arg = file;
	options.init_arg_size = sizeof file;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	works(pool);
	REQUIRE_EQ(access(file, F_OK), -1);
	WITHIN(5000, alive(pool) == 2);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);

	/* One that always fails: an error from every call, within a second, and no more processes. */
	const int64_t began = now_ms();
	options.initializer = always_fails;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, initialized, NULL, 0, out, sizeof *out, COUNT(out), 0, NULL, 0, NULL), PP_ERR_INIT);
	REQUIRE(now_ms() - began < 1000);
	int32_t status = pp_pool_submit(pool, echo, &arg, sizeof arg, 0, &task);
	if (status == PP_OK) {
		REQUIRE_STATUS(pp_pool_wait(pool, task, 1000, &result), PP_OK);
		REQUIRE_EQ(result.status, PP_ERR_INIT);
		REQUIRE(result.size > 0 && memmem(result.data, result.size, "42", 2) != NULL);
		pp_result_free(&result);
	} else {
		REQUIRE_STATUS(status, PP_ERR_INIT);
	}
	WITHIN(5000, alive(pool) == 0);
	pp_pool_state before, after;
	REQUIRE_STATUS(pp_pool_info(pool, &before, NULL, 0, NULL), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, initialized, NULL, 0, out, sizeof *out, COUNT(out), 0, NULL, 0, NULL), PP_ERR_INIT);
	REQUIRE_STATUS(pp_pool_info(pool, &after, NULL, 0, NULL), PP_OK);
	REQUIRE_EQ(before.started, after.started);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* Wrong arguments get an error and a message each. */
static void bad_arguments(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool = 0, freed;
	double x = 1, y;
	uint64_t task;
	pp_result result;
	size_t n;

	REQUIRE_STATUS(pp_pool_open(NULL, &pool), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_open(&options, NULL), PP_ERR_INVALID);
	options.workers = -1;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	options.workers = 1025;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	options.workers = INT_MIN;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	options.workers = 1;
	options.size = 3;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	options.size = sizeof options;
	options.method = 77;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	options.method = 0;
	options.init_arg_size = 5;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	options.init_arg_size = 0;
	REQUIRE_EQ(pool, 0);

	/* No handle at all, before and after there is one. */
	for (int lap = 0; lap < 2; lap++) {
		static const pp_pool wrong[] = {0, 999, UINT64_MAX, (uint64_t)1 << 48, INT64_MAX};
		for (size_t i = 0; i < COUNT(wrong); i++) {
			REQUIRE_STATUS(pp_pool_map(wrong[i], square, &x, sizeof x, &y, sizeof y, 1, 0, NULL, 0, NULL), PP_ERR_HANDLE);
			REQUIRE(strlen(pp_last_error()) > 0);
			REQUIRE_STATUS(pp_pool_submit(wrong[i], echo, &x, sizeof x, 0, &task), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_wait(wrong[i], 1, 0, &result), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_collect(wrong[i], &result, 1, NULL, 0, 0, &n), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_wake(wrong[i]), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_cancel(wrong[i], 1), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_info(wrong[i], NULL, NULL, 0, NULL), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_close(wrong[i]), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_terminate(wrong[i]), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_join(wrong[i], 0), PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_pool_free(wrong[i]), wrong[i] == 0 ? PP_OK : PP_ERR_HANDLE);
			REQUIRE_STATUS(pp_process_wait(wrong[i], 0, NULL), PP_ERR_HANDLE);
		}
		if (lap == 0)
			pool = open_pool(1);
	}
	/* A handle of another kind. */
	REQUIRE_STATUS(pp_process_wait(pool, 0, NULL), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_process_signal(pool, SIGKILL), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_process_info(pool, NULL, NULL), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_process_free(pool), PP_ERR_HANDLE);

	REQUIRE_STATUS(pp_pool_map(pool, NULL, &x, sizeof x, &y, sizeof y, 1, 0, NULL, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_map(pool, square, NULL, sizeof x, &y, sizeof y, 1, 0, NULL, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_map(pool, square, &x, sizeof x, NULL, sizeof y, 1, 0, NULL, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_map(pool, square, &x, sizeof x, &y, sizeof y, 1, 0, NULL, 8, NULL), PP_ERR_INVALID);
	int32_t status = pp_pool_map(pool, square, &x, SIZE_MAX / 2, &y, sizeof y, 1000, 0, NULL, 0, NULL);
	REQUIRE(status == PP_ERR_TOO_BIG || status == PP_ERR_INVALID);
	/* Not a function: the stack, the heap. */
	pp_task_fn nowhere;
	double *const p = &x;
	memcpy(&nowhere, &p, sizeof nowhere);
	REQUIRE_STATUS(pp_pool_map(pool, nowhere, &x, sizeof x, &y, sizeof y, 1, 0, NULL, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_submit(pool, echo, NULL, 8, 0, &task), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_submit_many(pool, echo, &x, NULL, 3, 0, &task), PP_ERR_INVALID);
	const uint64_t too_big = UINT64_MAX - 7;
	REQUIRE_STATUS(pp_pool_submit_many(pool, echo, &x, &too_big, 1, 0, &task), PP_ERR_TOO_BIG);
	REQUIRE_STATUS(pp_pool_submit(pool, echo, &x, SIZE_MAX, 0, &task), PP_ERR_TOO_BIG);
	REQUIRE_STATUS(pp_pool_submit(pool, echo, &x, sizeof x, 0, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, -1, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_wait(pool, task, 20000, &result), PP_OK);
	pp_result_free(&result);
	pp_result_free(NULL);
	REQUIRE_STATUS(pp_pool_collect(pool, NULL, 1, NULL, 0, 0, &n), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_collect(pool, &result, 0, NULL, 0, 0, &n), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_collect(pool, &result, 1, NULL, 0, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_join(pool, 0), PP_ERR_STATE);
	REQUIRE_STATUS(pp_pool_info(pool, NULL, NULL, 0, NULL), PP_OK);
	works(pool);
	freed = pool;
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_free(freed), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_pool_submit(freed, echo, &x, sizeof x, 0, &task), PP_ERR_HANDLE);
	/* Nobody gets the number again. */
	pool = open_pool(1);
	REQUIRE(pool != freed);
	REQUIRE_STATUS(pp_pool_submit(freed, echo, &x, sizeof x, 0, &task), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* A program that does not begin with pp_init starts no pool of its own functions, and no storm of processes. */
static void no_init(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;

	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_STATE);
	REQUIRE(strstr(pp_last_error(), "init") != NULL);
}

/* Workers are replaced after max_tasks tasks. */
static void recycle(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	int32_t pids[100];
	pp_pool_state state;

	options.workers = 2;
	options.max_tasks = 10;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, pid_of, NULL, 0, pids, sizeof *pids, 100, 1, NULL, 0, NULL), PP_OK);
	for (int i = 0; i < 100; i++) {
		int same = 0;
		for (int k = 0; k < 100; k++)
			same += pids[k] == pids[i];
		REQUIRE(same <= 10);
	}
	REQUIRE_STATUS(pp_pool_info(pool, &state, NULL, 0, NULL), PP_OK);
	REQUIRE(state.started >= 10 && state.lost == 0);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* A program without standard descriptors. */
static void closed_descriptors(void)
{
	close(0);
	close(1);
	close(2);
	pp_pool pool = open_pool(2);
	works(pool);
	const int32_t in = EXIT;
	int32_t out;
	REQUIRE_EQ(pp_pool_map(pool, misbehave, &in, sizeof in, &out, sizeof out, 1, 0, NULL, 0, NULL), PP_ERR_WORKER_LOST);
	works(pool);
	REQUIRE_EQ(pp_pool_free(pool), PP_OK);
}

/* 64 descriptors must do, and none is left open. */
static void few_descriptors(void)
{
	/* What the test's own parents have left open. */
	for (int fd = 3; fd < 4096; fd++)
		close(fd);
	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &(struct rlimit){64, 64}), 0);
	pp_pool pool = open_pool(2);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	const int before = open_descriptors();
	for (int i = 0; i < 20; i++) {
		pool = open_pool(3);
		works(pool);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	}
	REQUIRE_EQ(open_descriptors(), before);
	/* More workers than descriptors: an error, or a pool that works. */
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.workers = 100;
	const int32_t status = pp_pool_open(&options, &pool);
	if (status == PP_OK) {
		works(pool);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	} else {
		REQUIRE(status == PP_ERR_START || status == PP_ERR_SYSTEM || status == PP_ERR_NOMEM);
		REQUIRE(strlen(pp_last_error()) > 0);
	}
	pool = open_pool(2);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* A limit on file size is an error, not a signal, wherever it strikes. */
static void small_files(void)
{
	static const rlim_t limits[] = {0, 4096, 65536, 600 << 10, 1 << 20, 4 << 20};
	static uint8_t big[8 << 20];

	signal(SIGXFSZ, SIG_DFL);
	for (size_t i = 0; i < COUNT(limits); i++) {
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			/* The engine is loaded in this process for the first time: from the file itself. */
			REQUIRE_EQ(setrlimit(RLIMIT_FSIZE, &(struct rlimit){limits[i], RLIM_INFINITY}), 0);
			pp_pool_options options = PP_POOL_OPTIONS_INIT;
			pp_pool pool;
			options.workers = 1;
			const int32_t status = pp_pool_open(&options, &pool);
			if (status == PP_OK) {
				works(pool);
				uint64_t task;
				pp_result result;
				const int32_t sent = pp_pool_submit(pool, nothing, big, sizeof big, 0, &task);
				if (sent == PP_OK) {
					REQUIRE_STATUS(pp_pool_wait(pool, task, 20000, &result), PP_OK);
					REQUIRE_EQ(result.status, PP_ERR_NOMEM);
				} else {
					REQUIRE_STATUS(sent, PP_ERR_NOMEM);
				}
				works(pool);
				REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
			} else {
				REQUIRE_STATUS(status, PP_ERR_NOMEM);
				REQUIRE(i < COUNT(limits) - 1); /* 4 MiB are enough */
			}
			_exit(0);
		}
		int status;
		REQUIRE_EQ(waitpid(child, &status, 0), child);
		REQUIRE_EQ(status, 0);
	}
}

/* A host that collects or ignores its children's ends: the pool heals all the same. */
static void ignored_children(void)
{
	signal(SIGCHLD, SIG_IGN);
	const pp_pool pool = open_pool(2);
	int32_t in[20] = {0}, out[20];
	pp_outcome outcome[20];

	works(pool);
	in[3] = SEGFAULT;
	in[9] = EXIT | 3 << 8;
	REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, 20, 1, NULL, 0, outcome), PP_ERR_WORKER_LOST);
	for (int i = 0; i < 20; i++)
		REQUIRE_EQ(outcome[i].status, in[i] != 0 ? PP_ERR_WORKER_LOST : PP_OK);
	works(pool);
	WITHIN(2000, alive(pool) == 2);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static int collecting = 1;

static void *collect_all(void *unused)
{
	(void)unused;
	while (__atomic_load_n(&collecting, __ATOMIC_SEQ_CST))
		if (waitpid(-1, NULL, WNOHANG) <= 0)
			nanosleep(&(struct timespec){0, 100000}, NULL);
	return NULL;
}

static void collected_children(void)
{
	pthread_t thread;
	int32_t in[200] = {0}, out[200];
	pp_outcome outcome[200];

	REQUIRE_EQ(pthread_create(&thread, NULL, collect_all, NULL), 0);
	const pp_pool pool = open_pool(2);
	for (int i = 10; i < 200; i += 10)
		in[i] = i % 20 ? KILL : EXIT;
	REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, 200, 1, NULL, 0, outcome), PP_ERR_WORKER_LOST);
	for (int i = 0; i < 200; i++)
		REQUIRE_EQ(outcome[i].status, in[i] != 0 ? PP_ERR_WORKER_LOST : PP_OK);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	__atomic_store_n(&collecting, 0, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
}

/* The host is killed with busy and idle workers: run_scenario looks that they are gone within a second. */
static void host_killed(void)
{
	const pp_pool idle = open_pool(3), busy = open_pool(2);
	const int32_t ms = 100000;
	uint64_t task;
	pp_pool_state state;

	works(idle);
	for (int i = 0; i < 6; i++)
		REQUIRE_STATUS(pp_pool_submit(busy, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	WITHIN(10000, pp_pool_info(busy, &state, NULL, 0, NULL) == PP_OK && state.running == 2);
	kill(getpid(), SIGKILL);
}

/* lets_go releases the lock by which workers notice that their host executes another program: closing any descriptor of the file does. */
static void lets_go(void)
{
	char path[64], target[64];
	int found = 0;

	for (int fd = 3; fd < 256; fd++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		const ssize_t n = readlink(path, target, sizeof target - 1);
		if (n <= 0)
			continue;
		target[n] = '\0';
		if (strstr(target, "memfd:polyproc") == NULL)
			continue;
		const int again = open(path, O_RDWR | O_CLOEXEC);
		REQUIRE(again >= 0);
		close(again);
		found++;
	}
	REQUIRE(found > 0);
}

/* A host that closes what is not its own has not executed another program: its workers live on, and still die with it. */
static void lock_lost(void)
{
	const pp_pool pool = open_pool(2);
	pp_pool_state state;

	works(pool);
	lets_go();
	for (int i = 0; i < 20; i++)
		works(pool);
	REQUIRE_STATUS(pp_pool_info(pool, &state, NULL, 0, NULL), PP_OK);
	REQUIRE_EQ(state.started, 2);
	kill(getpid(), SIGKILL);
}

/* host_that_executes opens pools, says who their workers are, and executes another program. */
static void host_that_executes(int tell, int ask, int hold)
{
	pp_pool_options forked = PP_POOL_OPTIONS_INIT;
	const pp_pool pool = open_pool(2);
	const int32_t ms = 100000;
	pp_pool other;
	int32_t pids[4];
	size_t n, m;
	uint64_t task;
	char byte;

	forked.workers = 2;
	forked.method = PP_START_FORK;
	REQUIRE_STATUS(pp_pool_open(&forked, &other), PP_OK);
	works(pool);
	works(other);
	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_info(pool, NULL, pids, 2, &n), PP_OK);
	REQUIRE_STATUS(pp_pool_info(other, NULL, pids + 2, 2, &m), PP_OK);
	REQUIRE(n == 2 && m == 2);
	/* A child has all descriptors of the host, and lives on. */
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		close(ask);
		while (read(hold, &byte, 1) < 0 && errno == EINTR)
			;
		_exit(0);
	}
	REQUIRE_EQ(write(tell, pids, sizeof pids), (ssize_t)sizeof pids);
	REQUIRE_EQ(read(ask, &byte, 1), 1);
	execl("/bin/sleep", "sleep", "600", (char *)NULL);
	_exit(1);
}

static void host_executes(void)
{
	int tell[2], ask[2], hold[2];
	int32_t pids[4];
	struct pollfd end[4];

	REQUIRE_EQ(pipe2(tell, O_CLOEXEC), 0);
	REQUIRE_EQ(pipe2(ask, O_CLOEXEC), 0);
	REQUIRE_EQ(pipe2(hold, O_CLOEXEC), 0);
	const pid_t host = fork();
	REQUIRE(host >= 0);
	if (host == 0) {
		close(hold[1]);
		host_that_executes(tell[1], ask[0], hold[0]);
	}
	REQUIRE_EQ(read(tell[0], pids, sizeof pids), (ssize_t)sizeof pids);
	for (int i = 0; i < 4; i++) {
		end[i] = (struct pollfd){.fd = (int)syscall(SYS_pidfd_open, pids[i], 0), .events = POLLIN};
		REQUIRE(end[i].fd >= 0);
		REQUIRE_EQ(poll(&end[i], 1, 0), 0);
	}
	REQUIRE_EQ(write(ask[1], "", 1), 1);
	for (int i = 0; i < 4; i++)
		REQUIRE_EQ(poll(&end[i], 1, 20000), 1);
	REQUIRE_EQ(waitpid(host, NULL, WNOHANG), 0);
	REQUIRE_EQ(kill(host, SIGKILL), 0);
	REQUIRE_EQ(waitpid(host, NULL, 0), host);
	close(hold[1]);
}

/* The host ends without freeing anything, with results that nobody took. */
static void host_exits(void)
{
	const pp_pool pool = open_pool(2);
	const int32_t ms = 100000;
	uint64_t task;

	works(pool);
	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_submit(pool, echo, &ms, sizeof ms, 0, &task), PP_OK);
}

static void terminate(void)
{
	pp_pool pool = open_pool(2);
	const int32_t ms = 100000;
	uint64_t tasks[10];
	pp_result result;

	works(pool);
	for (int i = 0; i < 10; i++)
		REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &tasks[i]), PP_OK);
	const int64_t began = now_ms();
	REQUIRE_STATUS(pp_pool_terminate(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_terminate(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(pool, 10000), PP_OK);
	REQUIRE(now_ms() - began < 1000);
	for (int i = 0; i < 10; i++) {
		REQUIRE_STATUS(pp_pool_wait(pool, tasks[i], 1000, &result), PP_OK);
		REQUIRE(result.status == PP_ERR_CLOSED || (i < 2 && result.status == PP_ERR_WORKER_LOST));
		pp_result_free(&result);
	}
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	/* And free alone does it as well. */
	pool = open_pool(2);
	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &tasks[0]), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static pp_pool shared_pool;

static void *map_from_thread(void *result)
{
	static const int laps = 20;

	for (int i = 0; i < laps; i++)
		works(shared_pool);
	return result;
}

/* works has static arrays; threads need their own. */
static void *submit_from_thread(void *argument)
{
	const uint64_t base = (uint64_t)(uintptr_t)argument;
	pp_result result;
	uint64_t task;

	for (uint64_t i = 0; i < 2000; i++) {
		const uint64_t value = base << 32 | i;
		REQUIRE_STATUS(pp_pool_submit(shared_pool, echo, &value, sizeof value, value, &task), PP_OK);
		REQUIRE_STATUS(pp_pool_wait(shared_pool, task, 20000, &result), PP_OK);
		REQUIRE(result.status == PP_OK && result.cookie == value && memcmp(result.data, &value, sizeof value) == 0);
		pp_result_free(&result);
	}
	return NULL;
}

static void *wait_for_wake(void *argument)
{
	pp_result result;
	size_t n = 1;

	(void)argument;
	REQUIRE_STATUS(pp_pool_collect(shared_pool, &result, 1, NULL, 0, 20000, &n), PP_OK);
	REQUIRE_EQ(n, 0);
	return NULL;
}

static void threads(void)
{
	pthread_t list[5];

	shared_pool = open_pool(2);
	REQUIRE_EQ(pthread_create(&list[0], NULL, map_from_thread, NULL), 0);
	for (uintptr_t i = 1; i < COUNT(list); i++)
		REQUIRE_EQ(pthread_create(&list[i], NULL, submit_from_thread, (void *)i), 0); /* NOLINT */
	for (size_t i = 0; i < COUNT(list); i++)
		REQUIRE_EQ(pthread_join(list[i], NULL), 0);
	/* A thread that waits for results can be woken. */
	REQUIRE_EQ(pthread_create(&list[0], NULL, wait_for_wake, NULL), 0);
	const int64_t until = now_ms() + 10000;
	while (pthread_tryjoin_np(list[0], NULL) != 0) {
		REQUIRE(now_ms() < until);
		REQUIRE_STATUS(pp_pool_wake(shared_pool), PP_OK);
		nanosleep(&(struct timespec){0, 1000000}, NULL);
	}
	REQUIRE_STATUS(pp_pool_free(shared_pool), PP_OK);
}

/* A forked child has no part in its parent's pools, and can open pools of its own. */
static void forked(void)
{
	const pp_pool pool = open_pool(2);
	int status;

	works(pool);
	for (int generation = 0; generation < 2; generation++) {
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			alarm(50);
			REQUIRE_STATUS(pp_pool_close(pool), PP_ERR_FORKED);
			REQUIRE_STATUS(pp_pool_free(pool), PP_ERR_FORKED);
			const pp_pool own = open_pool(2);
			REQUIRE(own != pool);
			works(own);
			const pid_t grandchild = fork();
			REQUIRE(grandchild >= 0);
			if (grandchild == 0) {
				alarm(50);
				REQUIRE_STATUS(pp_pool_close(pool), PP_ERR_FORKED);
				REQUIRE_STATUS(pp_pool_close(own), PP_ERR_FORKED);
				const pp_pool third = open_pool(1);
				works(third);
				REQUIRE_STATUS(pp_pool_free(third), PP_OK);
				_exit(0);
			}
			REQUIRE_EQ(waitpid(grandchild, &status, 0), grandchild);
			REQUIRE_EQ(status, 0);
			works(own);
			REQUIRE_STATUS(pp_pool_free(own), PP_OK);
			_exit(0);
		}
		REQUIRE_EQ(waitpid(child, &status, 0), child);
		REQUIRE_EQ(status, 0);
		works(pool);
	}
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void on_alarm(int number)
{
	(void)number;
}

/* under_signals waits for tasks and maps of a pool, while SIGALRM comes, and SIGCHLD when workers end. */
static void under_signals(void)
{
	pp_pool_options pool_options = PP_POOL_OPTIONS_INIT;
	int32_t in[100] = {0}, out[100];
	pp_outcome outcome[100];
	uint64_t task;
	pp_result result;
	size_t n;
	const int32_t ms = 200;
	pp_pool pool;

	pool_options.workers = 2;
	pool_options.max_tasks = 10;
	REQUIRE_STATUS(pp_pool_open(&pool_options, &pool), PP_OK);
	ualarm(10000, 10000);
	for (int round = 0; round < 5; round++) {
		in[3] = in[50] = KILL;
		memset(outcome, 0x7f, sizeof outcome);
		REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, 100, 1, NULL, 0, outcome), PP_ERR_WORKER_LOST);
		for (int i = 0; i < 100; i++)
			REQUIRE_EQ(outcome[i].status, in[i] != 0 ? PP_ERR_WORKER_LOST : PP_OK);
	}
	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, -1, &result), PP_OK);
	pp_result_free(&result);
	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, 60, &result), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_pool_collect(pool, &result, 1, NULL, 0, -1, &n), PP_OK);
	REQUIRE_EQ(n, 1);
	pp_result_free(&result);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(pool, -1), PP_OK);
	ualarm(0, 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* Handlers with SA_RESTART, and those of SIGCHLD, end no wait. */
static void restarted(void)
{
	struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	const char *const sleeper[] = {"sleep", "0.3", NULL};
	pp_process process;
	pp_exit end;

	sigaction(SIGALRM, &act, NULL);
	act.sa_flags = SA_NOCLDSTOP; /* not even restarting */
	sigaction(SIGCHLD, &act, NULL);
	under_signals();
	ualarm(10000, 10000);
	options.argv = sleeper;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 60, &end), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_process_wait(process, -1, &end), PP_OK);
	ualarm(0, 0);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
}

/* They do not either in a program that has another handler, without SA_RESTART. */
static void restarted_beside(void)
{
	struct sigaction act = {.sa_handler = on_alarm, .sa_flags = 0};

	if (syscall(449, NULL, 0, 0, NULL, 0) != -1 || errno != EINVAL) {
		fprintf(stderr, "skipped: the kernel has no futex_waitv\n");
		return;
	}
	sigaction(SIGTERM, &act, NULL);
	act.sa_flags = SA_RESTART;
	sigaction(SIGALRM, &act, NULL);
	sigaction(SIGCHLD, &act, NULL);
	under_signals();
}

/* Whatever a map returns, each element has an outcome. */
static void all_outcomes(void)
{
	pp_outcome outcome[10];
	double in[10] = {0}, out[10];
	pp_pool pool = open_pool(1);

#define UNTOUCHED(call, want)                                    \
	memset(outcome, 0x7f, sizeof outcome);                       \
	REQUIRE_STATUS(call, want);                                  \
	for (int i = 0; i < 10; i++)                                 \
		REQUIRE_EQ(outcome[i].status, PP_ERR_CANCELLED)
	UNTOUCHED(pp_pool_map(pool, NULL, in, 8, out, 8, 10, 0, NULL, 0, outcome), PP_ERR_INVALID);
	UNTOUCHED(pp_pool_map(pool, square, NULL, 8, out, 8, 10, 0, NULL, 0, outcome), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	UNTOUCHED(pp_pool_map(pool, square, in, 8, out, 8, 10, 0, NULL, 0, outcome), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	UNTOUCHED(pp_pool_map(pool, square, in, 8, out, 8, 10, 0, NULL, 0, outcome), PP_ERR_HANDLE);
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.workers = 1;
	options.initializer = always_fails;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	memset(outcome, 0x7f, sizeof outcome);
	REQUIRE_STATUS(pp_pool_map(pool, square, in, 8, out, 8, 10, 0, NULL, 0, outcome), PP_ERR_INIT);
	REQUIRE(strstr(pp_last_error(), "returned 42") != NULL);
	for (int i = 0; i < 10; i++)
		REQUIRE_EQ(outcome[i].status, PP_ERR_INIT);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* complains fails with a code and a text. */
static int32_t complains(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const int32_t code = *(const int32_t *)in;

	(void)in_size;
	(void)ctx;
	(void)ctx_size;
	if (code > 0)
		*out_size = (size_t)snprintf(out, *out_size, "error %d", (int)code);
	return code;
}

/* What a task says of its failure reaches the caller: its code, its text, its worker's end. Codes of the library are not mixed with it. */
static void failures(void)
{
	int32_t in[6] = {0, 33, PP_ERR_TOO_BIG, 0, 0, 0};
	char out[6][16];
	pp_outcome outcome[6];
	uint64_t task;
	pp_result result;
	const pp_pool pool = open_pool(1);

	memset(out, '.', sizeof out);
	REQUIRE_STATUS(pp_pool_map(pool, complains, in, sizeof *in, out, sizeof *out, 3, 1, NULL, 0, outcome), PP_ERR_TASK);
	REQUIRE(strstr(pp_last_error(), "element 1: the task returned 33") != NULL);
	REQUIRE(outcome[0].status == PP_OK && outcome[0].code == 0 && outcome[0].pid > 0 && outcome[0].size == sizeof *out);
	REQUIRE(outcome[1].status == PP_ERR_TASK && outcome[1].code == 33 && outcome[1].size == 8 && memcmp(out[1], "error 33.", 9) == 0);
	REQUIRE(outcome[2].status == PP_ERR_TASK && outcome[2].code == PP_ERR_TOO_BIG && outcome[2].size == 0 && out[2][0] == '.');
	REQUIRE_STATUS(pp_pool_submit(pool, complains, &in[1], sizeof *in, 0, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_wait(pool, task, -1, &result), PP_OK);
	REQUIRE(result.status == PP_ERR_TASK && result.code == 33 && result.size == 8 && memcmp(result.data, "error 33", 8) == 0);
	pp_result_free(&result);
	in[0] = EXIT | 7 << 8;
	in[1] = KILL;
	in[2] = TOO_MUCH;
	in[3] = FAIL | 1000 << 8;
	REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, 5, 1, NULL, 0, outcome), PP_ERR_WORKER_LOST);
	REQUIRE(strstr(pp_last_error(), "exit code 7") != NULL);
	REQUIRE(outcome[0].status == PP_ERR_WORKER_LOST && outcome[0].exit_code == 7 && outcome[0].pid > 0);
	REQUIRE(outcome[1].status == PP_ERR_WORKER_LOST && outcome[1].exit_code == -SIGKILL);
	REQUIRE(outcome[2].status == PP_ERR_TOO_BIG && outcome[2].code == 0);
	REQUIRE(outcome[3].status == PP_ERR_TASK && outcome[3].code == 1000);
	REQUIRE_EQ(outcome[4].status, PP_OK);
	REQUIRE_STATUS(pp_pool_submit(pool, NULL, &in[1], sizeof *in, 0, &task), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_submit_many(pool, complains, NULL, NULL, 0, 0, &task), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* What loops work on. */
typedef struct table {
	uint32_t crash, fail; /* the numbers at which the body does so */
	uint32_t rows[1000];
} table;

/* add adds ctx to the rows of its range. */
static int32_t add(size_t begin, size_t end, void *data, const void *ctx, size_t ctx_size)
{
	table *const t = data;

	if (ctx_size != sizeof(uint32_t))
		return 99;
	for (size_t i = begin; i < end; i++) {
		if (i + 1 == t->crash)
			kill(getpid(), SIGKILL);
		if (i + 1 == t->fail)
			return 55;
		t->rows[i] += *(const uint32_t *)ctx;
	}
	return 0;
}

static int32_t sleeps(size_t begin, size_t end, void *data, const void *ctx, size_t ctx_size)
{
	(void)begin;
	(void)end;
	(void)data;
	(void)ctx;
	(void)ctx_size;
	nanosleep(&(struct timespec){0, 50000000}, NULL);
	return 0;
}

/* A loop does each number once, in memory that the workers share with the program; a bad range costs itself. */
static void loops(void)
{
	static const size_t grains[] = {0, 1, 7, 100, 999, 1000, 5000};
	const pp_pool pool = open_pool(2), other = open_pool(1);
	pp_outcome outcome[100];
	uint8_t *memory;
	void *data;
	const uint32_t one = 1;

	REQUIRE_STATUS(pp_pool_alloc(pool, 4096 + sizeof(table), &data), PP_OK);
	REQUIRE_EQ((uintptr_t)data % 4096, 0);
	memory = data;
	table *const t = (table *)(void *)(memory + 64);
	memset(t, 0, sizeof *t);
	for (size_t k = 0; k < COUNT(grains); k++) {
		for (size_t n = 0; n <= 1000; n = n * 3 + 1) {
			memset(t, 0, sizeof *t);
			REQUIRE_STATUS(pp_pool_for(pool, add, n, grains[k], t, &one, sizeof one, NULL), PP_OK);
			for (size_t i = 0; i < 1000; i++)
				REQUIRE_EQ(t->rows[i], i < n);
		}
	}
	for (int round = 0; round < 20; round++) {
		memset(t, 0, sizeof *t);
		memset(outcome, 0x7f, sizeof outcome);
		t->crash = 505;
		t->fail = 717;
		REQUIRE_STATUS(pp_pool_for(pool, add, 995, 10, t, &one, sizeof one, outcome), PP_ERR_WORKER_LOST);
		REQUIRE(strstr(pp_last_error(), "range 50") != NULL);
		for (int i = 0; i < 100; i++)
			REQUIRE_EQ(outcome[i].status, i == 50 ? PP_ERR_WORKER_LOST : i == 71 ? PP_ERR_TASK : PP_OK);
		REQUIRE(outcome[50].exit_code == -SIGKILL && outcome[71].code == 55);
		for (uint32_t i = 0; i < 1000; i++)
			REQUIRE_EQ(t->rows[i], i < 995 && (i < 504 || i >= 510) && (i < 716 || i >= 720));
	}
	/* Without memory, and what is refused. */
	REQUIRE_STATUS(pp_pool_for(pool, sleeps, 4, 1, NULL, NULL, 0, outcome), PP_OK);
	REQUIRE_STATUS(pp_pool_for(pool, NULL, 4, 1, NULL, NULL, 0, outcome), PP_ERR_INVALID);
	REQUIRE_EQ(outcome[3].status, PP_ERR_CANCELLED);
	REQUIRE_STATUS(pp_pool_for(pool, add, 4, 0, t, &one, sizeof one, outcome), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_for(pool, add, 4, 1, memory - 1, &one, sizeof one, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_for(pool, add, 4, 1, memory + 4096 + sizeof(table), &one, sizeof one, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_for(other, add, 4, 1, t, &one, sizeof one, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_dealloc(other, memory), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_dealloc(pool, memory + 64), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_dealloc(pool, NULL), PP_OK);
	REQUIRE_STATUS(pp_pool_alloc(pool, 0, &data), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_alloc(pool, SIZE_MAX / 2, &data), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_alloc(pool, (size_t)1 << 45, &data), PP_ERR_NOMEM);
	/* More blocks than a worker keeps mapped, each with its own bytes. */
	table *blocks[20];
	for (uint32_t k = 0; k < COUNT(blocks); k++) {
		REQUIRE_STATUS(pp_pool_alloc(pool, sizeof(table), &data), PP_OK);
		blocks[k] = data;
		memset(blocks[k], 0, sizeof *blocks[k]);
	}
	for (uint32_t round = 0; round < 3; round++)
		for (uint32_t k = 0; k < COUNT(blocks); k++)
			REQUIRE_STATUS(pp_pool_for(pool, add, 1000, 0, blocks[k], &k, sizeof k, NULL), PP_OK);
	for (uint32_t k = 0; k < COUNT(blocks); k++) {
		for (size_t i = 0; i < 1000; i++)
			REQUIRE_EQ(blocks[k]->rows[i], 3 * k);
		REQUIRE_STATUS(pp_pool_dealloc(pool, blocks[k]), PP_OK);
		REQUIRE_STATUS(pp_pool_dealloc(pool, blocks[k]), PP_ERR_INVALID);
	}
	/* A signal ends the wait; ranges that run keep the memory. */
	struct sigaction act = {.sa_handler = on_alarm};
	sigaction(SIGALRM, &act, NULL);
	ualarm(20000, 20000);
	REQUIRE_STATUS(pp_pool_for(pool, sleeps, 100, 1, t, NULL, 0, outcome), PP_ERR_INTERRUPTED);
	ualarm(0, 0);
	REQUIRE(outcome[0].status == PP_ERR_INTERRUPTED && outcome[99].status == PP_ERR_CANCELLED);
	REQUIRE_STATUS(pp_pool_dealloc(pool, memory), PP_OK);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(other), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static uint32_t *counts; /* how often each element ran, in memory that forked workers share with the test */

/* counted says which it is, or does what it is told. */
static int32_t counted(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	uint32_t index;
	int32_t what;

	(void)ctx;
	if (in_size != 9 || (ctx_size > 0 && *out_size != ctx_size))
		return 99;
	memcpy(&index, in, sizeof index);
	memcpy(&what, (const uint8_t *)in + 4, sizeof what);
	__atomic_fetch_add(&counts[index], 1, __ATOMIC_SEQ_CST);
	if (what == KILL)
		kill(getpid(), SIGKILL);
	if (what == WELL && index % 1000 == 999)
		nanosleep(&(struct timespec){0, 3000000}, NULL);
	if (what == FAIL)
		return 1000;
	if (*out_size > 0)
		memset(out, (int)(index % 251), *out_size);
	return 0;
}

/* Small elements go many to a record: each runs once, a bad one costs itself, and what a worker had done when it died counts. */
static void spans(void)
{
	enum { N = 20000 };
	static const size_t chunks[] = {0, 2, 64, 1000, 7, N}, sizes[] = {8, 0, 3, 16};
	static const uint8_t ctx[16];
	static uint8_t in[N][9], out[N * 16];
	static pp_outcome outcome[N];
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;

	counts = mmap(NULL, N * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(counts != MAP_FAILED);
	options.workers = 3;
	options.method = PP_START_FORK;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	for (size_t round = 0; round < COUNT(chunks) * COUNT(sizes) * 2; round++) {
		const size_t size = sizes[round / 2 % COUNT(sizes)], chunk = chunks[round % COUNT(chunks)];
		const bool quiet = round % 5 == 4;
		uint64_t state = round + 1;
		memset(counts, 0, N * sizeof *counts);
		memset(out, 0xff, sizeof out);
		for (uint32_t i = 0; i < N; i++) {
			const uint64_t dice = next_random(&state) >> 8;
			const int32_t what = quiet ? WELL : dice % 2000 == 0 ? KILL : dice % 300 == 1 ? FAIL : WELL;
			memcpy(in[i], &i, sizeof i);
			memcpy(in[i] + 4, &what, sizeof what);
		}
		const int32_t status = pp_pool_map(pool, counted, in, sizeof *in, out, size, N, chunk, ctx, size, quiet ? NULL : outcome);
		if (quiet)
			REQUIRE_STATUS(status, PP_OK);
		for (uint32_t i = 0; i < N; i++) {
			int32_t what;
			memcpy(&what, in[i] + 4, sizeof what);
			REQUIRE_EQ(counts[i], 1);
			if (!quiet)
				REQUIRE_EQ(outcome[i].status, what == KILL ? PP_ERR_WORKER_LOST : what == FAIL ? PP_ERR_TASK : PP_OK);
			if (!quiet && what == FAIL)
				REQUIRE_EQ(outcome[i].code, 1000);
			for (size_t k = 0; k < size; k++)
				REQUIRE_EQ(out[i * size + k], what == WELL ? i % 251 : 0xff);
		}
	}
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* throws raises an exception as C++ does. Nobody catches it: if the library lets it pass, the call comes back. */
static int32_t throws(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	struct _Unwind_Exception exception;

	memset(&exception, 0, sizeof exception);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	_Unwind_RaiseException(&exception);
	return echo(in, in_size, out, out_size, ctx, ctx_size);
}

static int32_t throws_range(size_t begin, size_t end, void *data, const void *ctx, size_t ctx_size)
{
	(void)begin;
	(void)end;
	(void)data;
	return throws(ctx, ctx_size, NULL, NULL, NULL, 0);
}

static int32_t throws_init(const void *arg, size_t arg_size)
{
	return throws(arg, arg_size, NULL, NULL, NULL, 0);
}

static int32_t throws_process(const void *arg, size_t arg_size)
{
	return throws(arg, arg_size, NULL, NULL, NULL, 0);
}

/* An exception ends the process of the task, initializer or function that it leaves, with each start method. */
static void exceptions(void)
{
	int32_t in[2] = {0}, out[2];
	pp_outcome outcome[2];
	pp_pool pool;

	for (uint32_t method = PP_START_SPAWN; method <= PP_START_FORK; method++) {
		pp_pool_options options = PP_POOL_OPTIONS_INIT;
		options.workers = 1;
		options.method = method;
		REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
		REQUIRE_STATUS(pp_pool_map(pool, throws, in, sizeof *in, out, sizeof *out, 2, 1, NULL, 0, outcome), PP_ERR_WORKER_LOST);
		REQUIRE(outcome[0].exit_code == -SIGABRT && outcome[1].exit_code == -SIGABRT);
		REQUIRE_STATUS(pp_pool_for(pool, throws_range, 1, 1, NULL, NULL, 0, outcome), PP_ERR_WORKER_LOST);
		REQUIRE_EQ(outcome[0].exit_code, -SIGABRT);
		works(pool);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
		options.initializer = throws_init;
		REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
		REQUIRE_STATUS(pp_pool_map(pool, echo, in, sizeof *in, out, sizeof *out, 2, 1, NULL, 0, outcome), PP_ERR_START);
		REQUIRE_EQ(outcome[0].exit_code, -SIGABRT);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
		pp_process_options process_options = PP_PROCESS_OPTIONS_INIT;
		process_options.fn = throws_process;
		process_options.method = method;
		pp_process process;
		pp_exit end;
		REQUIRE_STATUS(pp_process_start(&process_options, &process), PP_OK);
		REQUIRE_STATUS(pp_process_wait(process, -1, &end), PP_OK);
		REQUIRE(end.known && end.signal == SIGABRT);
		REQUIRE_STATUS(pp_process_free(process), PP_OK);
	}
}

/* nests opens a pool in a worker. */
static int32_t nests(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;

	(void)in_size;
	(void)out_size;
	(void)ctx;
	(void)ctx_size;
	options.workers = 1;
	int32_t status = pp_pool_open(&options, &pool);
	if (status == PP_OK) {
		status = pp_pool_map(pool, echo, in, sizeof(int32_t), out, sizeof(int32_t), 1, 0, NULL, 0, NULL);
		pp_pool_free(pool);
	}
	return status;
}

/* reads_input reads a byte of standard input. */
static int32_t reads_input(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in;
	(void)in_size;
	(void)out_size;
	(void)ctx;
	(void)ctx_size;
	*(int32_t *)out = getchar();
	return 0;
}

/* imports takes the reference in ctx. */
static int32_t imports(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	uint64_t handle;

	(void)in;
	(void)in_size;
	(void)out;
	(void)out_size;
	return ctx_size == PP_REF_SIZE ? pp_ref_import(ctx, PP_KIND_LOCK, &handle, NULL) : 99;
}

/* What a worker has: pools of its own, no standard input of the program, the family, also that of objects made later. */
static void surroundings(void)
{
	int32_t in[4] = {1, 2, 3, 4}, out[4];
	int ends[2];

	REQUIRE_EQ(pipe(ends), 0);
	REQUIRE_EQ(write(ends[1], "abc", 3), 3);
	REQUIRE_EQ(dup2(ends[0], 0), 0);
	for (uint32_t method = PP_START_FORK; method >= PP_START_SPAWN; method--) {
		pp_pool_options options = PP_POOL_OPTIONS_INIT;
		pp_pool pool;
		pp_lock lock;
		uint8_t ref[PP_REF_SIZE];
		options.workers = 2;
		options.method = method;
		REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
		REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
		REQUIRE_STATUS(pp_ref_export(lock, ref), PP_OK);
		REQUIRE_STATUS(pp_pool_map(pool, imports, in, sizeof *in, NULL, 0, 1, 1, ref, sizeof ref, NULL), PP_OK);
		REQUIRE_STATUS(pp_pool_map(pool, nests, in, sizeof *in, out, sizeof *out, 4, 1, NULL, 0, NULL), PP_OK);
		for (int i = 0; i < 4; i++)
			REQUIRE_EQ(out[i], in[i]);
		REQUIRE_STATUS(pp_pool_map(pool, reads_input, in, sizeof *in, out, sizeof *out, 4, 1, NULL, 0, NULL), PP_OK);
		for (int i = 0; i < 4; i++)
			REQUIRE_EQ(out[i], EOF);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	}
	REQUIRE_EQ(getchar(), 'a');
}

/* Options of a newer header are accepted if they ask for nothing new; what is not known is refused. */
static void strange_options(void)
{
	struct {
		pp_pool_options known;
		uint64_t more[4];
	} pool_options = {.known = PP_POOL_OPTIONS_INIT};
	struct {
		pp_process_options known;
		uint64_t more[4];
	} process_options = {.known = PP_PROCESS_OPTIONS_INIT};
	const char *const nothing_to_do[] = {"true", NULL};
	pp_pool pool;
	pp_process process;

	pool_options.known.size = sizeof pool_options;
	process_options.known.size = sizeof process_options;
	process_options.known.argv = nothing_to_do;
	REQUIRE_STATUS(pp_pool_open(&pool_options.known, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	REQUIRE_STATUS(pp_process_start(&process_options.known, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, -1, NULL), PP_OK);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	pool_options.more[3] = process_options.more[3] = 1;
	REQUIRE_STATUS(pp_pool_open(&pool_options.known, &pool), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_start(&process_options.known, &process), PP_ERR_INVALID);
	for (uint32_t method = PP_START_SPAWN; method <= PP_START_FORK; method++) {
		for (int what = 0; what < 4; what++) {
			pp_pool_options a = PP_POOL_OPTIONS_INIT;
			pp_process_options b = PP_PROCESS_OPTIONS_INIT;
			a.method = b.method = method;
			b.fn = throws_process;
			a.flags = b.flags = what == 0 ? 0x80 : 0;
			a.reserved = b.reserved = what == 1 ? 5 : 0;
			a.size -= what == 2;
			b.size -= what == 2;
			a.size *= what == 3 ? 100u : 1u;
			b.size *= what == 3 ? 100u : 1u;
			REQUIRE_STATUS(pp_pool_open(&a, &pool), PP_ERR_INVALID);
			REQUIRE_STATUS(pp_process_start(&b, &process), PP_ERR_INVALID);
		}
	}
	REQUIRE_STATUS(pp_process_adopt(1, -1, &process), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_adopt((int32_t)getpid(), -1, &process), PP_ERR_INVALID);
}

static uint64_t running(pp_pool pool)
{
	pp_pool_state state;

	REQUIRE_STATUS(pp_pool_info(pool, &state, NULL, 0, NULL), PP_OK);
	return state.running;
}

/* A filter that forbids pidfd_send_signal(2) alone does not keep a pool from ending. */
static void no_pidfd_signals(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_send_signal, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog whole = {COUNT(filter), filter};
	const int32_t ms = 60000;
	uint64_t task;

	REQUIRE_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	REQUIRE_EQ(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &whole), 0);
	const pp_pool pool = open_pool(2);
	works(pool);
	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	WITHIN(10000, running(pool) == 1);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* A signal handler ends a wait. */
static void interrupted(void)
{
	const pp_pool pool = open_pool(1);
	const int32_t ms = 200;
	uint64_t task;
	pp_result result;
	struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK};

	works(pool);
	sigaction(SIGALRM, &act, NULL);
	REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	ualarm(20000, 20000);
	REQUIRE_STATUS(pp_pool_wait(pool, task, -1, &result), PP_ERR_INTERRUPTED);
	int32_t status;
	while ((status = pp_pool_wait(pool, task, -1, &result)) == PP_ERR_INTERRUPTED)
		;
	REQUIRE_STATUS(status, PP_OK);
	REQUIRE_EQ(result.status, PP_OK);
	pp_result_free(&result);
	/* map as well; what has not started is cancelled, and nothing is written any more. */
	int32_t in[20], out[20];
	pp_outcome outcome[20];
	for (int i = 0; i < 20; i++)
		in[i] = 50, out[i] = -1;
	REQUIRE_STATUS(pp_pool_map(pool, sleep_ms, in, sizeof *in, out, sizeof *out, 20, 1, NULL, 0, outcome), PP_ERR_INTERRUPTED);
	ualarm(0, 0);
	bool running = false;
	for (int i = 0; i < 20; i++) {
		running = running || outcome[i].status == PP_ERR_INTERRUPTED;
		REQUIRE_EQ(outcome[i].status, out[i] == 50 ? PP_OK : outcome[i].status == PP_ERR_INTERRUPTED ? PP_ERR_INTERRUPTED : PP_ERR_CANCELLED);
	}
	REQUIRE(running);
	int32_t before[20];
	memcpy(before, out, sizeof out);
	REQUIRE_EQ(out[19], -1);
	works(pool);
	REQUIRE(memcmp(before, out, sizeof out) == 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static pthread_t interrupted_thread, main_thread;
static pthread_mutex_t sending = PTHREAD_MUTEX_INITIALIZER;
static int handled, handlers_over;

static void on_interrupt(int number)
{
	volatile uint8_t room[12000]; /* more than a goroutine's stack has */

	(void)number;
	for (size_t i = 0; i < sizeof room; i++)
		room[i] = 0x5a;
	__atomic_fetch_add(&handled, 1, __ATOMIC_SEQ_CST);
}

static void *wait_often(void *unused)
{
	const uint64_t value = 77;
	uint64_t task;
	pp_result result;

	pthread_mutex_lock(&sending);
	interrupted_thread = pthread_self();
	pthread_mutex_unlock(&sending);
	for (int i = 0; i < 1000; i++) {
		int32_t status;
		REQUIRE_STATUS(pp_pool_submit(shared_pool, echo, &value, sizeof value, 0, &task), PP_OK);
		while ((status = pp_pool_wait(shared_pool, task, 20000, &result)) == PP_ERR_INTERRUPTED)
			;
		REQUIRE_STATUS(status, PP_OK);
		REQUIRE(result.status == PP_OK && memcmp(result.data, &value, sizeof value) == 0);
		pp_result_free(&result);
	}
	/* The sender never has a thread that is gone. */
	pthread_mutex_lock(&sending);
	interrupted_thread = main_thread;
	pthread_mutex_unlock(&sending);
	return unused;
}

static void *interrupt_often(void *unused)
{
	while (!__atomic_load_n(&handlers_over, __ATOMIC_SEQ_CST)) {
		pthread_mutex_lock(&sending);
		pthread_kill(interrupted_thread, SIGINT);
		pthread_mutex_unlock(&sending);
		nanosleep(&(struct timespec){0, 50000}, NULL);
	}
	return unused;
}

/* Handlers that know nothing of the library, installed by signal(3), do not run on the stacks of the Go runtime. Threads are new, since
 * stacks grow with use. */
static void plain_handlers(void)
{
	pthread_t thread, sender;

	shared_pool = open_pool(2);
	works(shared_pool);
	signal(SIGINT, on_interrupt);
	works(shared_pool);
	interrupted_thread = main_thread = pthread_self();
	REQUIRE_EQ(pthread_create(&sender, NULL, interrupt_often, NULL), 0);
	for (int i = 0; i < 30; i++) {
		REQUIRE_EQ(pthread_create(&thread, NULL, wait_often, NULL), 0);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
	}
	__atomic_store_n(&handlers_over, 1, __ATOMIC_SEQ_CST);
	REQUIRE_EQ(pthread_join(sender, NULL), 0);
	REQUIRE(handled > 100);
	/* What the program finds is its own handler. */
	struct sigaction now;
	REQUIRE_EQ(sigaction(SIGINT, NULL, &now), 0);
	REQUIRE(now.sa_handler == on_interrupt && (now.sa_flags & SA_RESTART) != 0);
	REQUIRE_STATUS(pp_pool_free(shared_pool), PP_OK);
}

/* Tasks can be functions of libraries: linked ones, and those loaded while the program ran. */
static void library_functions(void)
{
	REQUIRE(pp_cpu_count() >= 1);
	REQUIRE(strcmp(pp_version(), PP_VERSION) == 0);
	REQUIRE(pp_library_path()[0] == '/' && access(pp_library_path(), R_OK) == 0);
	REQUIRE(strcmp(pp_status_name(PP_ERR_TIMEOUT), "PP_ERR_TIMEOUT") == 0 && strcmp(pp_status_name(5), "PP_?") == 0);
	REQUIRE(strcmp(pp_strerror(-1000), "unknown status") == 0);
	char dir[] = "/tmp/polyproc-pool-test-XXXXXX", source[100], library[100], command[400];
	REQUIRE(mkdtemp(dir) != NULL);
	snprintf(source, sizeof source, "%s/task.c", dir);
	snprintf(library, sizeof library, "%s/task.so", dir);
	FILE *const f = fopen(source, "w");
	REQUIRE(f != NULL);
	fputs("#include <stddef.h>\n#include <stdint.h>\n"
	      "int32_t task(const void *in, size_t n, void *out, size_t *m, const void *c, size_t k)\n"
	      "{ (void)n; (void)m; (void)c; (void)k; *(int32_t *)out = *(const int32_t *)in + 1; return 0; }\n", f);
	fclose(f);
	snprintf(command, sizeof command, "gcc -shared -fPIC -Wl,--build-id -o %s %s", library, source);
	REQUIRE_EQ(system(command), 0);
	REQUIRE_EQ(chdir(dir), 0);
	void *const handle = dlopen("./task.so", RTLD_NOW);
	REQUIRE(handle != NULL);
	union {
		void *address;
		pp_task_fn fn;
	} task = {.address = dlsym(handle, "task")};
	REQUIRE(task.address != NULL);
	REQUIRE_EQ(chdir("/"), 0);
	pp_pool pool = open_pool(2);
	int32_t in[100], out[100];
	for (int i = 0; i < 100; i++)
		in[i] = i;
	REQUIRE_STATUS(pp_pool_map(pool, task.fn, in, sizeof *in, out, sizeof *out, 100, 0, NULL, 0, NULL), PP_OK);
	for (int i = 0; i < 100; i++)
		REQUIRE_EQ(out[i], i + 1);
	works(pool);
	/* The file is replaced by another build: that is an error, and not another function. */
	REQUIRE_EQ(unlink(library), 0);
	snprintf(command, sizeof command, "echo 'int other; int32_t task2(void) { return 1; }' | gcc -include stdint.h -xc -shared -fPIC -Wl,--build-id -o %s -", library);
	REQUIRE_EQ(system(command), 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	pool = open_pool(1);
	REQUIRE_STATUS(pp_pool_map(pool, task.fn, in, sizeof *in, out, sizeof *out, 1, 0, NULL, 0, NULL), PP_ERR_NOT_FOUND);
	REQUIRE(strstr(pp_last_error(), "built again") != NULL);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	unlink(library);
	unlink(source);
	rmdir(dir);
}

int main(int argc, char **argv)
{
	static const scenario list[] = {
		{"map", map, 0, 0},
		{"map_big", map_big, 0, 0},
		{"bad_elements", bad_elements, 0, 0},
		{"submit", submit, 0, 0},
		{"big_results", big_results, 0, 0},
		{"cancel", cancel, 0, 0},
		{"initializers", initializers, 0, 0},
		{"bad_arguments", bad_arguments, 0, 0},
		{"no_init", no_init, 1, 0},
		{"recycle", recycle, 0, 0},
		{"closed_descriptors", closed_descriptors, 0, 0},
		{"few_descriptors", few_descriptors, 0, 0},
		{"small_files", small_files, 0, 0},
		{"ignored_children", ignored_children, 0, 0},
		{"collected_children", collected_children, 0, 0},
		{"host_killed", host_killed, 0, SIGKILL},
		{"host_exits", host_exits, 0, 0},
		{"host_executes", host_executes, 0, 0},
		{"lock_lost", lock_lost, 0, SIGKILL},
		{"terminate", terminate, 0, 0},
		{"threads", threads, 0, 0},
		{"forked", forked, 0, 0},
		{"interrupted", interrupted, 0, 0},
		{"restarted", restarted, 0, 0},
		{"restarted_beside", restarted_beside, 0, 0},
		{"all_outcomes", all_outcomes, 0, 0},
		{"failures", failures, 0, 0},
		{"loops", loops, 0, 0},
		{"spans", spans, 0, 0},
		{"exceptions", exceptions, 0, 0},
		{"surroundings", surroundings, 0, 0},
		{"strange_options", strange_options, 0, 0},
		{"no_pidfd_signals", no_pidfd_signals, 0, 0},
		{"plain_handlers", plain_handlers, 0, 0},
		{"library_functions", library_functions, 0, 0},
	};

	return run_scenarios(argc, argv, list, COUNT(list));
}
