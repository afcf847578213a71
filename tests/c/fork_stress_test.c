/* fork_stress_test.c - a program of many threads, all of them in calls of the library, that forks all the time: from its main thread and
 * from others, three generations deep. Every child uses the library as if it were the first.
 *
 * POLYPROC_FORKS says how many processes are forked (60). deadline: 1500 s
 */
#include "procfs.h"

#include <polyproc.h>
#include <pthread.h>
#include <stdbool.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { GENERATIONS = 3, FORKERS = 3, PATIENCE_MS = 120000 };

static pp_pool spawned, forked; /* of this process: its threads are in calls with these */
static pp_process sleeper;
static pp_result kept; /* allocated by the parent's engine */
static int stopping;
static uint64_t calls; /* that threads have made */

static bool go_on(void)
{
	__atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
	return __atomic_load_n(&stopping, __ATOMIC_SEQ_CST) == 0;
}

/* ---- tasks --------------------------------------------------------------------------------------------------------- */

static int32_t twice(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	int32_t add = 0;

	(void)in_size;
	if (ctx_size == sizeof add)
		memcpy(&add, ctx, sizeof add);
	*(int32_t *)out = *(const int32_t *)in * 2 + add;
	*out_size = sizeof(int32_t);
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

/* until_told sleeps until the byte that in names by its pipe can be read. */
static int32_t until_told(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in;
	(void)in_size;
	(void)out;
	(void)ctx;
	(void)ctx_size;
	*out_size = 0;
	nanosleep(&(struct timespec){1000, 0}, NULL);
	return 0;
}

static int32_t seven(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	return 7;
}

static int32_t sleep_long(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	while (pause() != 0)
		;
	return 0;
}

static pp_pool open_pool(uint32_t method, int32_t workers)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool = 0;

	options.method = method;
	options.workers = workers;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	return pool;
}

static void maps(pp_pool pool, int n)
{
	int32_t in[1000] = {0}, out[1000], ctx = n;

	REQUIRE(n <= 1000);
	for (int i = 0; i < n; i++)
		in[i] = i, out[i] = -1;
	REQUIRE_STATUS(pp_pool_map(pool, twice, in, sizeof *in, out, sizeof *out, (size_t)n, 0, &ctx, sizeof ctx, NULL), PP_OK);
	for (int i = 0; i < n; i++)
		REQUIRE_EQ(out[i], 2 * i + n);
}

/* ---- threads that are always in a call ----------------------------------------------------------------------------- */

static void *mapping(void *pool)
{
	while (go_on())
		maps(*(pp_pool *)pool, 500);
	return NULL;
}

static void *waiting(void *pool)
{
	while (go_on()) {
		const uint64_t value = calls;
		uint64_t task;
		pp_result result;
		REQUIRE_STATUS(pp_pool_submit(*(pp_pool *)pool, echo, &value, sizeof value, value, &task), PP_OK);
		REQUIRE_STATUS(pp_pool_wait(*(pp_pool *)pool, task, -1, &result), PP_OK);
		REQUIRE(result.status == PP_OK && result.cookie == value && memcmp(result.data, &value, sizeof value) == 0);
		pp_result_free(&result);
	}
	return NULL;
}

/* collecting has a pool of its own, since it takes whatever is done. */
static void *collecting(void *unused)
{
	const pp_pool pool = open_pool(PP_START_SPAWN, 1);
	static uint8_t bytes[300000];
	uint64_t sizes[30], first;

	for (size_t i = 0; i < COUNT(sizes); i++)
		sizes[i] = i % 10 == 0 ? 80000 : 100;
	while (go_on()) {
		pp_result results[COUNT(sizes)];
		size_t n;
		REQUIRE_STATUS(pp_pool_submit_many(pool, echo, bytes, sizes, COUNT(sizes), 0, &first), PP_OK);
		for (size_t got = 0; got < COUNT(sizes); got += n) {
			REQUIRE_STATUS(pp_pool_collect(pool, results, COUNT(results), NULL, 0, -1, &n), PP_OK);
			for (size_t i = 0; i < n; i++) {
				REQUIRE(results[i].cookie < COUNT(sizes) && (results[i].status == PP_OK || results[i].status == PP_ERR_TASK));
				pp_result_free(&results[i]);
			}
		}
	}
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	return unused;
}

static void *starting(void *unused)
{
	for (unsigned i = 0; go_on(); i++) {
		pp_process_options options = PP_PROCESS_OPTIONS_INIT;
		pp_process process;
		pp_exit how;
		int32_t pid, fd;
		options.method = i % 2 == 0 ? PP_START_FORK : PP_START_SPAWN;
		options.fn = seven;
		REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
		REQUIRE_STATUS(pp_process_info(process, &pid, &fd), PP_OK);
		REQUIRE_STATUS(pp_process_wait(process, -1, &how), PP_OK);
		REQUIRE(how.known == 1 && how.code == 7);
		REQUIRE_STATUS(pp_process_free(process), PP_OK);
	}
	return unused;
}

static void *opening(void *unused)
{
	for (unsigned i = 0; go_on(); i++) {
		const pp_pool pool = open_pool(i % 2 == 0 ? PP_START_FORK : PP_START_SPAWN, 1);
		maps(pool, 100);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	}
	return unused;
}

static void *erring(void *unused)
{
	while (go_on()) {
		pp_pool_state state;
		int32_t pids[8];
		size_t n;
		REQUIRE_STATUS(pp_pool_close(12345678), PP_ERR_HANDLE);
		REQUIRE(strlen(pp_last_error()) > 0);
		REQUIRE_STATUS(pp_process_signal(sleeper, 1000), PP_ERR_INVALID);
		REQUIRE_STATUS(pp_pool_cancel(spawned, UINT64_MAX), PP_ERR_NOT_FOUND);
		REQUIRE_STATUS(pp_pool_info(spawned, &state, pids, COUNT(pids), &n), PP_OK);
		REQUIRE_STATUS(pp_process_wait(sleeper, 1, NULL), PP_ERR_TIMEOUT);
	}
	return unused;
}

/* ---- what a child does --------------------------------------------------------------------------------------------- */

/* The parent's handles are known for what they are. */
static void strange_handles(void)
{
	int32_t x = 1, y;
	uint64_t task;
	pp_result result;
	size_t n;
	const pp_pool pools[] = {spawned, forked};

	for (size_t i = 0; i < COUNT(pools); i++) {
		REQUIRE_STATUS(pp_pool_map(pools[i], twice, &x, sizeof x, &y, sizeof y, 1, 0, NULL, 0, NULL), PP_ERR_FORKED);
		REQUIRE_STATUS(pp_pool_submit(pools[i], echo, &x, sizeof x, 0, &task), PP_ERR_FORKED);
		REQUIRE_STATUS(pp_pool_wait(pools[i], 1, 0, &result), PP_ERR_FORKED);
		REQUIRE_STATUS(pp_pool_collect(pools[i], &result, 1, NULL, 0, 0, &n), PP_ERR_FORKED);
		REQUIRE_STATUS(pp_pool_info(pools[i], NULL, NULL, 0, &n), PP_ERR_FORKED);
		REQUIRE_STATUS(pp_pool_free(pools[i]), PP_ERR_FORKED);
	}
	REQUIRE_STATUS(pp_process_wait(sleeper, 0, NULL), PP_ERR_FORKED);
	REQUIRE_STATUS(pp_process_signal(sleeper, SIGKILL), PP_ERR_FORKED);
	REQUIRE_STATUS(pp_process_free(sleeper), PP_ERR_FORKED);
	REQUIRE(strlen(pp_last_error()) > 0);
	/* What its engine has allocated can be freed. */
	pp_result_free(&kept);
}

static int interrupts;
static pthread_t to_interrupt;

static void on_interrupt(int number)
{
	(void)number;
	__atomic_fetch_add(&interrupts, 1, __ATOMIC_SEQ_CST);
}

static void *interrupting(void *done)
{
	while (__atomic_load_n((int *)done, __ATOMIC_SEQ_CST) == 0) {
		nanosleep(&(struct timespec){0, 2000000}, NULL);
		pthread_kill(to_interrupt, SIGINT);
	}
	return NULL;
}

/* Ctrl-C, with a handler, ends a wait. */
static void interrupted(pp_pool pool)
{
	struct sigaction act = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART | SA_ONSTACK}, before;
	uint64_t task;
	pp_result result;
	pthread_t thread;
	int done = 0;

	REQUIRE_EQ(sigaction(SIGINT, &act, &before), 0);
	REQUIRE_STATUS(pp_pool_submit(pool, until_told, NULL, 0, 0, &task), PP_OK);
	to_interrupt = pthread_self();
	interrupts = 0;
	REQUIRE_EQ(pthread_create(&thread, NULL, interrupting, &done), 0);
	REQUIRE_STATUS(pp_pool_wait(pool, task, -1, &result), PP_ERR_INTERRUPTED);
	__atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE(interrupts > 0);
	REQUIRE_EQ(sigaction(SIGINT, &before, NULL), 0);
}

/* 64 MiB go through the engine; results of this size lie in the Go heap until they are collected, so that it has garbage to collect. */
static void much(pp_pool pool)
{
	enum { SIZE = 16 << 10, BATCH = 256, BATCHES = 16 };
	static uint8_t bytes[SIZE * BATCH], slab[SIZE * BATCH];
	static uint64_t sizes[BATCH];
	uint64_t first;

	for (size_t i = 0; i < BATCH; i++) {
		sizes[i] = SIZE;
		memset(bytes + i * SIZE, (int)i, SIZE);
	}
	for (int lap = 0; lap < BATCHES; lap++) {
		pp_result results[BATCH];
		size_t n;
		REQUIRE_STATUS(pp_pool_submit_many(pool, echo, bytes, sizes, BATCH, 0, &first), PP_OK);
		for (size_t got = 0; got < BATCH; got += n) {
			REQUIRE_STATUS(pp_pool_collect(pool, results, BATCH, slab, sizeof slab, 60000, &n), PP_OK);
			for (size_t i = 0; i < n; i++) {
				REQUIRE(results[i].status == PP_OK && results[i].size == SIZE);
				REQUIRE(memcmp(results[i].data, bytes + results[i].cookie * SIZE, SIZE) == 0);
				pp_result_free(&results[i]);
			}
		}
	}
}

/* generation_run is a whole life: with a pool, a process, a signal, threads, and a child of its own, born while the threads are in calls. */
static void generation_run(int generation, unsigned number)
{
	const uint32_t method = (number + (unsigned)generation) % 2 == 0 ? PP_START_SPAWN : PP_START_FORK;
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_exit how;
	pthread_t threads[2];

	strange_handles();
	pp_pool pool = open_pool(method, 2);
	REQUIRE(pool != spawned && pool != forked);
	maps(pool, 1000);
	much(pool);
	interrupted(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);

	options.method = method;
	options.fn = seven;
	pp_process process;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 60000, &how), PP_OK);
	REQUIRE(how.known == 1 && how.code == 7);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	if (generation == GENERATIONS)
		return;

	/* This one's child finds other handles of another parent. */
	spawned = open_pool(method == PP_START_FORK ? PP_START_SPAWN : PP_START_FORK, 1);
	forked = open_pool(PP_START_FORK, 1);
	options.fn = sleep_long;
	options.flags = PP_PROCESS_DAEMON;
	REQUIRE_STATUS(pp_process_start(&options, &sleeper), PP_OK);
	stopping = 0;
	REQUIRE_EQ(pthread_create(&threads[0], NULL, mapping, &spawned), 0);
	REQUIRE_EQ(pthread_create(&threads[1], NULL, waiting, &forked), 0);
	const uint64_t began = __atomic_load_n(&calls, __ATOMIC_SEQ_CST);
	WITHIN(60000, __atomic_load_n(&calls, __ATOMIC_SEQ_CST) > began + 4);
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		generation_run(generation + 1, number);
		if (number % 2 == 0)
			exit(0);
		_exit(0);
	}
	REQUIRE_EQ(collect_within(child, PATIENCE_MS / generation), 0);
	__atomic_store_n(&stopping, 1, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < COUNT(threads); i++)
		REQUIRE_EQ(pthread_join(threads[i], NULL), 0);
	REQUIRE_STATUS(pp_process_signal(sleeper, SIGKILL), PP_OK);
	REQUIRE_STATUS(pp_process_wait(sleeper, 60000, &how), PP_OK);
	REQUIRE_EQ(how.signal, SIGKILL);
	REQUIRE_STATUS(pp_process_free(sleeper), PP_OK);
	REQUIRE_STATUS(pp_pool_free(spawned), PP_OK);
	REQUIRE_STATUS(pp_pool_free(forked), PP_OK);
}

/* ---- the program --------------------------------------------------------------------------------------------------- */

static unsigned families, next_family;

/* fork_families forks until there were enough. */
static void *fork_families(void *unused)
{
	unsigned number;

	while ((number = __atomic_fetch_add(&next_family, 1, __ATOMIC_SEQ_CST)) < families) {
		const int64_t began = now_ms();
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			generation_run(1, number);
			/* All the ways to end: the first is also that of what the program's own exit functions do. */
			if (number % 3 == 0)
				exit(0);
			_exit(0);
		}
		const int status = collect_within(child, PATIENCE_MS);
		if (status != 0) {
			fprintf(stderr, "family %u: status %#x\n", number, (unsigned)status);
			_exit(1);
		}
		if (number % 50 == 49) {
			printf("%u forks, the last three %lld ms, %lld calls, %ld KiB\n", (number + 1) * GENERATIONS, (long long)(now_ms() - began),
			       (long long)calls, status_number(getpid(), "VmRSS:"));
			fflush(stdout);
		}
		/* One that never calls the library. */
		const pid_t idle = fork();
		REQUIRE(idle >= 0);
		if (idle == 0)
			_exit(status_number(getpid(), "Threads:") == 1 ? 3 : 4);
		REQUIRE_EQ(collect_within(idle, PATIENCE_MS), 3 << 8);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t callers[6], forkers[FORKERS - 1];
	const char *const forks = getenv("POLYPROC_FORKS");
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	uint64_t task;
	static uint8_t bytes[200000];
	int status;

	REQUIRE_STATUS(pp_init(&argc, &argv), PP_OK);
	if (getpgrp() != getpid())
		REQUIRE_EQ(setpgid(0, 0), 0);
	families = (unsigned)((forks != NULL ? atoi(forks) : 60) + GENERATIONS - 1) / GENERATIONS;
	/* Twice the same: what the first leaves in caches is no leak. */
	int descriptors[2], mappings[2];
	for (int lap = 0; lap < 2; lap++) {
		const unsigned all = families;
		stopping = 0;
		next_family = 0;
		if (lap == 0)
			families = 3;
		spawned = open_pool(PP_START_SPAWN, 2);
		forked = open_pool(PP_START_FORK, 2);
		options.fn = sleep_long;
		options.flags = PP_PROCESS_DAEMON;
		REQUIRE_STATUS(pp_process_start(&options, &sleeper), PP_OK);
		pp_pool_options with_room = PP_POOL_OPTIONS_INIT;
		pp_pool roomy;
		with_room.workers = 1;
		with_room.out_max = sizeof bytes;
		REQUIRE_STATUS(pp_pool_open(&with_room, &roomy), PP_OK);
		REQUIRE_STATUS(pp_pool_submit(roomy, echo, bytes, sizeof bytes, 0, &task), PP_OK);
		REQUIRE_STATUS(pp_pool_wait(roomy, task, -1, &kept), PP_OK);
		REQUIRE(kept.status == PP_OK && kept.owned != 0);
		REQUIRE_STATUS(pp_pool_free(roomy), PP_OK);

		REQUIRE_EQ(pthread_create(&callers[0], NULL, mapping, &spawned), 0);
		REQUIRE_EQ(pthread_create(&callers[1], NULL, waiting, &forked), 0);
		REQUIRE_EQ(pthread_create(&callers[2], NULL, collecting, NULL), 0);
		REQUIRE_EQ(pthread_create(&callers[3], NULL, starting, NULL), 0);
		REQUIRE_EQ(pthread_create(&callers[4], NULL, opening, NULL), 0);
		REQUIRE_EQ(pthread_create(&callers[5], NULL, erring, NULL), 0);
		for (size_t i = 0; i < COUNT(forkers); i++)
			REQUIRE_EQ(pthread_create(&forkers[i], NULL, fork_families, NULL), 0);
		fork_families(NULL);
		for (size_t i = 0; i < COUNT(forkers); i++)
			REQUIRE_EQ(pthread_join(forkers[i], NULL), 0);
		__atomic_store_n(&stopping, 1, __ATOMIC_SEQ_CST);
		for (size_t i = 0; i < COUNT(callers); i++)
			REQUIRE_EQ(pthread_join(callers[i], NULL), 0);
		pp_result_free(&kept);
		REQUIRE_STATUS(pp_process_signal(sleeper, SIGKILL), PP_OK);
		REQUIRE_STATUS(pp_process_wait(sleeper, 60000, NULL), PP_OK);
		REQUIRE_STATUS(pp_process_free(sleeper), PP_OK);
		REQUIRE_STATUS(pp_pool_free(spawned), PP_OK);
		REQUIRE_STATUS(pp_pool_free(forked), PP_OK);
		WITHIN(10000, waitpid(-1, &status, WNOHANG) < 0 && errno == ECHILD);
		descriptors[lap] = count_descriptors_like("");
		mappings[lap] = count_lines("/proc/self/maps", "memfd:");
		families = all;
	}
	REQUIRE_EQ(descriptors[1], descriptors[0]);
	REQUIRE_EQ(mappings[1], mappings[0]);
	printf("%u forks, %llu calls by other threads meanwhile\n", families * GENERATIONS, (unsigned long long)calls);
	return 0;
}
