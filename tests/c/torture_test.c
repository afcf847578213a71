/* torture_test.c - workers are killed at random, tasks crash at random, and every task has exactly one outcome, the right one.
 *
 * POLYPROC_TORTURE_SECONDS says how long it takes, for all variants together (10). An argument names the only
 * variant to run.
 *
 * deadline: 120 s
 */
#include "procfs.h"

#include <limits.h>
#include <polyproc.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/prctl.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { PATIENCE_MS = 30000 };

/* ---- tasks --------------------------------------------------------------------------------------------------------- */

enum { WELL, LEAVE, FAULT, DIE, ABORT, FAIL, KINDS };

/* element is what tasks get and give back, followed by bytes that depend on it. */
typedef struct element {
	uint64_t number;
	uint32_t kind;
	uint32_t size; /* all of it */
} element;

static void fill(uint8_t *at, uint64_t number, uint32_t kind, uint32_t size)
{
	const element e = {number, kind, size};

	memcpy(at, &e, sizeof e);
	memset(at + sizeof e, (int)(number * 31 & 0xff), size - sizeof e);
}

static bool is_whole(const void *at, size_t room, uint64_t number)
{
	const uint8_t *const bytes = at;
	element e;

	memcpy(&e, bytes, sizeof e);
	if (e.number != number || e.size < sizeof e || e.size > room)
		return false;
	for (size_t i = sizeof e; i < e.size; i += i % 4096 == 0 ? 4096 : 1)
		if (bytes[i] != (uint8_t)(number * 31))
			return false;
	return true;
}

/* work gives back what it gets, or ends the process in one of several ways. */
static int32_t work(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	element e;

	if (in_size < sizeof e || in_size > *out_size || ctx_size != 0 || ctx != NULL)
		return 1;
	memcpy(&e, in, sizeof e);
	if (e.size > in_size || !is_whole(in, in_size, e.number))
		return 2;
	switch (e.kind) {
	case LEAVE:
		_exit(5);
	case FAULT:
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
		*(volatile int *)(uintptr_t)8 = 1;
		break;
	case DIE:
		kill(getpid(), SIGKILL);
		break;
	case ABORT:
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
		abort();
	case FAIL:
		return 77;
	}
	memcpy(out, in, e.size);
	*out_size = e.size;
	return 0;
}

/* ---- variants -------------------------------------------------------------------------------------------------------- */

typedef struct variant {
	const char *name;
	uint32_t method;
	int32_t workers;
	uint32_t max_tasks;
	uint32_t least, most;   /* bytes of an element */
	uint32_t batch;         /* elements of a map, tasks of a submission */
	uint32_t kill_us;       /* mean time between kills */
	uint32_t crashes;       /* one task in so many */
	int32_t share;          /* of the time */
} variant;

static const variant variants[] = {
	{"spawn", PP_START_SPAWN, 2, 0, 16, 16, 4000, 20000, 20000, 5},
	{"fork", PP_START_FORK, 2, 0, 16, 16, 4000, 10000, 10000, 2},
	{"64 workers", PP_START_SPAWN, 64, 0, 16, 200, 4000, 10000, 20000, 2},
	{"max_tasks", PP_START_FORK, 3, 200, 16, 16, 1000, 20000, 20000, 1},
	{"100-200 kB", PP_START_SPAWN, 3, 0, 100000, 200000, 40, 20000, 200, 1},
	{"fork, 64, max_tasks", PP_START_FORK, 64, 1000, 16, 70000, 200, 5000, 2000, 1},
};

static const variant *v;
static pp_pool pool;
static int64_t end_ms;
static int over, killer_over, watchdog_over;
static uint64_t tasks, lost, failed, kills, progress;

static bool go_on(void)
{
	return now_ms() < end_ms;
}

static uint32_t random_size(uint64_t *state)
{
	return v->least + (uint32_t)(next_random(state) % (v->most - v->least + 1));
}

static uint32_t random_kind(uint64_t *state)
{
	const uint64_t n = next_random(state) >> 8;

	if (n % 500 == 0)
		return FAIL;
	return n % v->crashes == 1 ? LEAVE + (uint32_t)(n / v->crashes % (FAIL - LEAVE)) : WELL;
}

/* account checks one outcome. data is the result, in room bytes. */
static void account(uint32_t kind, uint64_t number, int32_t status, int32_t code, const void *data, size_t room)
{
	__atomic_fetch_add(&tasks, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
	switch (status) {
	case PP_OK:
		REQUIRE_EQ(kind, WELL);
		REQUIRE(is_whole(data, room, number));
		return;
	case PP_ERR_TASK:
		REQUIRE_EQ(kind, FAIL);
		REQUIRE_EQ(code, 77);
		__atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
		return;
	default:
		REQUIRE_STATUS(status, PP_ERR_WORKER_LOST);
		__atomic_fetch_add(&lost, 1, __ATOMIC_RELAXED);
	}
}

static void *mapping(void *seed)
{
	uint64_t state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15u;
	uint8_t *const in = malloc((size_t)v->batch * v->most), *const out = malloc((size_t)v->batch * v->most);
	pp_outcome *const outcome = malloc(v->batch * sizeof *outcome);
	uint32_t *const kinds = malloc(v->batch * sizeof *kinds);
	uint64_t number = (uint64_t)(uintptr_t)seed << 48;

	REQUIRE(in != NULL && out != NULL && outcome != NULL && kinds != NULL);
	while (go_on()) {
		const size_t n = next_random(&state) % v->batch + 1, chunk = next_random(&state) % 3 == 0 ? next_random(&state) % 100 : 0;
		bool all_well = true;
		number += v->batch;
		for (size_t i = 0; i < n; i++) {
			kinds[i] = random_kind(&state);
			fill(in + i * v->most, number + i, kinds[i], random_size(&state));
			outcome[i].status = 12345;
		}
		const int32_t answer = pp_pool_map(pool, work, in, v->most, out, v->most, n, chunk, NULL, 0, outcome);
		int32_t first = PP_OK;
		for (size_t i = 0; i < n; i++) {
			account(kinds[i], number + i, outcome[i].status, outcome[i].code, out + i * v->most, v->most);
			if (first == PP_OK)
				first = outcome[i].status;
			all_well = all_well && kinds[i] == WELL;
		}
		REQUIRE_STATUS(answer, first);
		REQUIRE(all_well || first != PP_OK);
	}
	free(in);
	free(out);
	free(outcome);
	free(kinds);
	return NULL;
}

/* Tasks that were submitted for pp_pool_collect: what was told of each. */
enum { IN_FLIGHT_MOST = 1 << 15 };
static uint8_t given[IN_FLIGHT_MOST]; /* kind + 1; 0: has an outcome */
static uint64_t submitted, collected;

static void *submitting(void *seed)
{
	uint64_t state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15u;
	uint8_t *const data = malloc((size_t)v->batch * v->most);
	uint64_t *const sizes = malloc(v->batch * sizeof *sizes), first;

	REQUIRE(data != NULL && sizes != NULL && v->batch * 2 <= IN_FLIGHT_MOST);
	while (go_on()) {
		const size_t n = next_random(&state) % v->batch + 1;
		uint8_t *at = data;
		/* The collector is not left far behind: memory has an end. */
		const uint64_t most = v->most > 10000 ? 200 : IN_FLIGHT_MOST;
		while (submitted + n - __atomic_load_n(&collected, __ATOMIC_SEQ_CST) > most && go_on())
			nanosleep(&(struct timespec){0, 200000}, NULL);
		if (!go_on())
			break;
		for (size_t i = 0; i < n; i++) {
			const uint32_t kind = random_kind(&state);
			sizes[i] = random_size(&state);
			fill(at, submitted + i, kind, (uint32_t)sizes[i]);
			at += sizes[i];
			/* Outcomes come in any order: the task that had this place before may be the last of many. */
			uint8_t *const place = &given[(submitted + i) % IN_FLIGHT_MOST];
			WITHIN(PATIENCE_MS, __atomic_load_n(place, __ATOMIC_SEQ_CST) == 0);
			__atomic_store_n(place, (uint8_t)(kind + 1), __ATOMIC_SEQ_CST);
		}
		REQUIRE_STATUS(pp_pool_submit_many(pool, work, data, sizes, n, submitted, &first), PP_OK);
		__atomic_fetch_add(&submitted, n, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
	REQUIRE_STATUS(pp_pool_wake(pool), PP_OK);
	free(data);
	free(sizes);
	return NULL;
}

static void *collecting(void *unused)
{
	enum { ROOM = 256 };
	static uint8_t slab[1 << 20];
	pp_result results[ROOM];
	size_t n;

	for (;;) {
		const bool last = __atomic_load_n(&over, __ATOMIC_SEQ_CST) != 0;
		if (last && collected == __atomic_load_n(&submitted, __ATOMIC_SEQ_CST))
			break;
		const int32_t status = pp_pool_collect(pool, results, ROOM, slab, sizeof slab, last ? PATIENCE_MS : 1000, &n);
		if (status == PP_ERR_TIMEOUT && !last)
			continue;
		REQUIRE_STATUS(status, PP_OK);
		for (size_t i = 0; i < n; i++) {
			const pp_result *const r = &results[i];
			const uint8_t kind = __atomic_exchange_n(&given[r->cookie % IN_FLIGHT_MOST], 0, __ATOMIC_SEQ_CST);
			REQUIRE(kind != 0); /* once */
			account(kind - 1u, r->cookie, r->status, r->code, r->data, r->size);
			REQUIRE(r->status != PP_OK || r->pid > 0);
			if (r->status == PP_ERR_WORKER_LOST)
				REQUIRE(r->exit_code == -SIGKILL || (kind == LEAVE + 1 && r->exit_code == 5) ||
				        (kind == FAULT + 1 && r->exit_code == -SIGSEGV) || (kind == ABORT + 1 && r->exit_code == -SIGABRT));
			pp_result_free(&results[i]);
		}
		__atomic_fetch_add(&collected, n, __ATOMIC_SEQ_CST);
	}
	REQUIRE_STATUS(pp_pool_collect(pool, results, ROOM, NULL, 0, 0, &n), PP_ERR_TIMEOUT); /* none comes twice */
	return unused;
}

/* killing kills one worker after the other. A pid is that of a child of this process, which the pool collects: between the look and the kill
 * it could have been collected and given to another process, so it is held by a pidfd and looked at again. */
static void *killing(void *seed)
{
	uint64_t state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15u;
	int32_t pids[128];
	size_t n;

	while (__atomic_load_n(&killer_over, __ATOMIC_SEQ_CST) == 0) {
		const uint64_t us = next_random(&state) % (2 * v->kill_us);
		nanosleep(&(struct timespec){0, (long)us * 1000}, NULL);
		REQUIRE_STATUS(pp_pool_info(pool, NULL, pids, COUNT(pids), &n), PP_OK);
		if (n == 0 || n > COUNT(pids))
			continue;
		const int32_t pid = pids[next_random(&state) % n];
		const int fd = (int)syscall(SYS_pidfd_open, pid, 0);
		if (fd < 0)
			continue;
		bool ours = false;
		REQUIRE_STATUS(pp_pool_info(pool, NULL, pids, COUNT(pids), &n), PP_OK);
		for (size_t i = 0; i < n && i < COUNT(pids); i++)
			ours = ours || pids[i] == pid;
		if (ours && syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0) == 0)
			kills++;
		close(fd);
	}
	return NULL;
}

static void *watching(void *unused)
{
	uint64_t seen = 0;
	int64_t since = now_ms();

	while (__atomic_load_n(&watchdog_over, __ATOMIC_SEQ_CST) == 0) {
		const uint64_t now = __atomic_load_n(&progress, __ATOMIC_SEQ_CST);
		nanosleep(&(struct timespec){0, 20000000}, NULL);
		if (now != seen) {
			seen = now;
			since = now_ms();
		} else if (now_ms() - since > PATIENCE_MS) {
			pp_pool_state s = {0};
			const int32_t status = pp_pool_info(pool, &s, NULL, 0, NULL);
			fprintf(stderr, "%s: no outcome for %d ms. %llu tasks, %llu submitted, %llu collected; pool (%s): %d workers, %d alive, %llu waiting, "
			        "%llu running, %llu done, %llu started, %llu lost\n", v->name, PATIENCE_MS, (unsigned long long)tasks,
			        (unsigned long long)submitted, (unsigned long long)collected, pp_status_name(status), s.workers, s.alive,
			        (unsigned long long)s.waiting, (unsigned long long)s.running, (unsigned long long)s.done, (unsigned long long)s.started,
			        (unsigned long long)s.lost);
			dump_group("a hang");
			_exit(1);
		}
	}
	return unused;
}

static void run(const variant *which, int64_t ms, uint64_t seed)
{
	pthread_t mappers[2], submitter, collector, killer, watchdog;
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool_state state;

	v = which;
	options.method = v->method;
	options.workers = v->workers;
	options.max_tasks = v->max_tasks;
	options.out_max = v->most > 65536 ? v->most : 0;
	over = killer_over = watchdog_over = 0;
	tasks = lost = failed = kills = submitted = collected = 0;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	const int64_t began = now_ms();
	end_ms = began + ms;
	REQUIRE_EQ(pthread_create(&watchdog, NULL, watching, NULL), 0);
	for (size_t i = 0; i < COUNT(mappers); i++)
		REQUIRE_EQ(pthread_create(&mappers[i], NULL, mapping, (void *)(uintptr_t)(seed + i)), 0); /* NOLINT */
	REQUIRE_EQ(pthread_create(&submitter, NULL, submitting, (void *)(uintptr_t)(seed + 10)), 0);  /* NOLINT */
	REQUIRE_EQ(pthread_create(&collector, NULL, collecting, NULL), 0);
	REQUIRE_EQ(pthread_create(&killer, NULL, killing, (void *)(uintptr_t)(seed + 11)), 0); /* NOLINT */
	for (size_t i = 0; i < COUNT(mappers); i++)
		REQUIRE_EQ(pthread_join(mappers[i], NULL), 0);
	REQUIRE_EQ(pthread_join(submitter, NULL), 0);
	REQUIRE_EQ(pthread_join(collector, NULL), 0);
	const int64_t took = now_ms() - began;
	__atomic_store_n(&killer_over, 1, __ATOMIC_SEQ_CST);
	REQUIRE_EQ(pthread_join(killer, NULL), 0);

	REQUIRE_STATUS(pp_pool_info(pool, &state, NULL, 0, NULL), PP_OK);
	REQUIRE_EQ(state.lost, lost);
	REQUIRE_EQ(state.waiting + state.running + state.done, 0);
	/* The pool heals, and works. */
	WITHIN(PATIENCE_MS, pp_pool_info(pool, &state, NULL, 0, NULL) == PP_OK && state.alive >= v->workers);
	for (int i = 0; i < 100; i++) {
		uint8_t *const in = malloc(v->most), *const out = malloc(v->most);
		REQUIRE(in != NULL && out != NULL);
		fill(in, 7, WELL, v->most);
		const int32_t status = pp_pool_map(pool, work, in, v->most, out, v->most, 1, 0, NULL, 0, NULL);
		/* The last kill may have struck a worker that nobody has missed until now. */
		REQUIRE(status == PP_OK || status == PP_ERR_WORKER_LOST);
		REQUIRE(status != PP_OK || is_whole(out, v->most, 7));
		if (i > 50)
			REQUIRE_STATUS(status, PP_OK);
		free(in);
		free(out);
	}
	__atomic_store_n(&watchdog_over, 1, __ATOMIC_SEQ_CST);
	REQUIRE_EQ(pthread_join(watchdog, NULL), 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	WITHIN(PATIENCE_MS, waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	printf("%-20s %9llu tasks, %7lld/s, %6llu kills, %6llu lost, %6llu failed, %llu workers\n", v->name, (unsigned long long)tasks,
	       (long long)tasks * 1000 / (took > 0 ? took : 1), (unsigned long long)kills, (unsigned long long)lost, (unsigned long long)failed,
	       (unsigned long long)state.started);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const char *const text = getenv("POLYPROC_TORTURE_SECONDS"), *const seed_text = getenv("POLYPROC_TORTURE_SEED");
	const int64_t ms = 1000 * (int64_t)(text != NULL ? atoi(text) : 10);
	const uint64_t seed = seed_text != NULL ? strtoull(seed_text, NULL, 10) : (uint64_t)getpid() * 1000;
	int32_t shares = 0;
	uint64_t all_tasks = 0, all_kills = 0, all_lost = 0;

	REQUIRE_STATUS(pp_init(&argc, &argv), PP_OK);
	const char *const only = argc > 1 ? argv[1] : NULL;
	if (getpgrp() != getpid())
		REQUIRE_EQ(setpgid(0, 0), 0);
	printf("seed %llu\n", (unsigned long long)seed);
	for (size_t i = 0; i < COUNT(variants); i++)
		shares += only == NULL || strcmp(only, variants[i].name) == 0 ? variants[i].share : 0;
	/* What the engine keeps for good is there after the first. */
	run(&variants[0], 200, seed);
	const int descriptors = count_descriptors_like(""), mappings = count_lines("/proc/self/maps", "memfd:");
	for (size_t i = 0; i < COUNT(variants); i++) {
		if (only != NULL && strcmp(only, variants[i].name) != 0)
			continue;
		run(&variants[i], ms * variants[i].share / shares, seed + 100 * (i + 1));
		all_tasks += tasks;
		all_kills += kills;
		all_lost += lost;
		WITHIN(5000, count_descriptors_like("") == descriptors);
		REQUIRE_EQ(count_lines("/proc/self/maps", "memfd:"), mappings);
	}
	printf("all: %llu tasks, %llu kills, %llu lost, none twice, none missing\n", (unsigned long long)all_tasks, (unsigned long long)all_kills,
	       (unsigned long long)all_lost);
	return 0;
}
