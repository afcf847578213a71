/* fork_stress_test.c - a program of many threads, all of them in calls of the library, that forks all the time: from its main thread and
 * from others, three generations deep. Every child uses the library as if it were the first, and the queues, locks, pipes and events of all its
 * ancestors, while their threads do. What was put, sent and counted by whom is known exactly in the end.
 *
 * POLYPROC_FORKS says how many processes are forked (60).
 *
 * deadline: 300 s
 */
#include "procfs.h"

#include <polyproc.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { GENERATIONS = 3, FORKERS = 3, PATIENCE_MS = 120000, TURNS = 3, SHARED_GROWTH_MIB = 64 };

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

/* What another process is given. */
typedef struct gifts {
	uint8_t queue[PP_REF_SIZE], lock[PP_REF_SIZE], event[PP_REF_SIZE], pipe[PP_REF_SIZE];
} gifts;

/* seven uses all that it was given. */
static int32_t seven(const void *arg, size_t arg_size)
{
	const gifts *const given = arg;
	pp_queue queue;
	pp_lock lock;
	pp_event event;
	pp_pipe pipe;

	REQUIRE_EQ(arg_size, sizeof *given);
	REQUIRE_STATUS(pp_ref_import(given->queue, PP_KIND_QUEUE, &queue, NULL), PP_OK);
	REQUIRE_STATUS(pp_ref_import(given->lock, PP_KIND_LOCK, &lock, NULL), PP_OK);
	REQUIRE_STATUS(pp_ref_import(given->event, PP_KIND_EVENT, &event, NULL), PP_OK);
	REQUIRE_STATUS(pp_pipe_import(given->pipe, -1, &pipe), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, 60000), PP_OK);
	REQUIRE_STATUS(pp_queue_put(queue, "queue", 5, PP_RAW, 60000), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_pipe_send(pipe, "pipe", 4, 60000), PP_OK);
	REQUIRE_STATUS(pp_event_set(event), PP_OK);
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

/* start_seven makes objects, and a process that is given them. */
static void start_seven(uint32_t method)
{
	const pp_queue_options one = {.size = sizeof one, .maxsize = 1};
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;
	pp_exit how;
	pp_queue queue;
	pp_lock lock;
	pp_event event;
	pp_pipe ends[2];
	gifts given;
	int32_t pid, fd;
	char text[8];
	size_t size;

	REQUIRE_STATUS(pp_queue_create(&one, &queue), PP_OK);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_STATUS(pp_ref_export(queue, given.queue), PP_OK);
	REQUIRE_STATUS(pp_ref_export(lock, given.lock), PP_OK);
	REQUIRE_STATUS(pp_ref_export(event, given.event), PP_OK);
	REQUIRE_STATUS(pp_pipe_export(ends[1], 1, given.pipe), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	options.method = method;
	options.fn = seven;
	options.arg = &given;
	options.arg_size = sizeof given;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_event_wait(event, 60000), PP_OK);
	REQUIRE_STATUS(pp_queue_get(queue, text, sizeof text, 60000, &size), PP_OK);
	REQUIRE(size == 5 && memcmp(text, "queue", 5) == 0);
	REQUIRE_EQ(pp_pipe_recv(ends[0], text, sizeof text, 60000), 4);
	REQUIRE(memcmp(text, "pipe", 4) == 0);
	REQUIRE_STATUS(pp_queue_get(queue, text, sizeof text, 0, &size), PP_ERR_EMPTY);
	REQUIRE_STATUS(pp_process_info(process, &pid, &fd), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 60000, &how), PP_OK);
	REQUIRE(how.known == 1 && how.code == 7);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

static void *starting(void *unused)
{
	for (unsigned i = 0; go_on(); i++)
		start_seven(i % 2 == 0 ? PP_START_FORK : PP_START_SPAWN);
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

/* ---- objects that a process shares with all who descend from it ------------------------------------------------------ */

enum { LOCKS = 3, OWN = -1, TICKET = -2, LAST = -3, LONG = 50000, SHORT = 10 };

static unsigned families, next_family;

/* note is a message: from whom, and the number of the family, or of the lap. The rest of it are bytes that are all alike. */
typedef struct note {
	int32_t from; /* a generation; or OWN: a thread of the process that has made the scene; TICKET: a ticket that a child has taken; LAST */
	uint32_t number;
	uint8_t rest[LONG];
} note;

typedef struct scene {
	int generation; /* of the process that has made it */
	pp_queue queue, tickets;
	pp_pipe ends[2];
	pp_lock lock, recursive, guard;
	pp_semaphore permit;
	pp_event never, pulse;
	pp_condition condition;
	volatile uint64_t *counts; /* shared: a number for each lock, that nobody adds to without it */
	/* Of the process that has made it alone: */
	bool over, ended;
	uint64_t laps, counted;
	uint8_t *got[GENERATIONS + 1], *received[GENERATIONS + 1], *tickets_back; /* [generation][family]: how often */
	uint32_t own_got, own_received;
	pthread_t producers[2], consumers[4];
} scene;

static scene scenes[GENERATIONS];

static size_t write_note(note *n, int32_t from, uint32_t number, bool longer)
{
	const size_t size = offsetof(note, rest) + (longer ? LONG : SHORT);

	n->from = from;
	n->number = number;
	memset(n->rest, (int)(number % 251), size - offsetof(note, rest));
	return size;
}

static void check_note(const note *n, size_t size)
{
	const size_t rest = size - offsetof(note, rest);

	REQUIRE(rest == LONG || rest == SHORT);
	REQUIRE(n->rest[0] == n->number % 251 && memcmp(n->rest, n->rest + 1, rest - 1) == 0);
}

static void put_note(const scene *s, int32_t from, uint32_t number, bool longer)
{
	note n;
	const size_t size = write_note(&n, from, number, longer);

	REQUIRE_STATUS(pp_queue_put(s->queue, &n, size, PP_RAW, 60000), PP_OK);
}

static void send_note(const scene *s, int32_t from, uint32_t number, bool longer)
{
	note n;
	const size_t size = write_note(&n, from, number, longer);

	REQUIRE_STATUS(pp_pipe_send(s->ends[1], &n, size, 60000), PP_OK);
}

/* add adds 1 under each lock, in a way that loses it if the lock lets two in. */
static void add(const scene *s)
{
	REQUIRE_STATUS(pp_lock_acquire(s->lock, 60000), PP_OK);
	s->counts[0] = s->counts[0] + 1;
	REQUIRE_STATUS(pp_lock_release(s->lock), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(s->recursive, 60000), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(s->recursive, 0), PP_OK);
	s->counts[1] = s->counts[1] + 1;
	REQUIRE_STATUS(pp_lock_release(s->recursive), PP_OK);
	REQUIRE_STATUS(pp_lock_release(s->recursive), PP_OK);
	REQUIRE_STATUS(pp_semaphore_acquire(s->permit, 60000), PP_OK);
	s->counts[2] = s->counts[2] + 1;
	REQUIRE_STATUS(pp_semaphore_release(s->permit), PP_OK);
}

/* breathe leaves some time to the others: two threads of every process do what follows. */
static void breathe(void)
{
	nanosleep(&(struct timespec){0, 200000}, NULL);
}

static void *producing(void *arg)
{
	scene *const s = arg;

	while (!__atomic_load_n(&s->over, __ATOMIC_SEQ_CST)) {
		put_note(s, OWN, (uint32_t)s->laps, s->laps % 16 == 0);
		send_note(s, OWN, (uint32_t)s->laps, s->laps % 16 == 8);
		add(s);
		REQUIRE_STATUS(pp_event_set(s->pulse), PP_OK);
		REQUIRE_STATUS(pp_event_clear(s->pulse), PP_OK);
		REQUIRE_STATUS(pp_condition_notify_all(s->condition), PP_OK);
		__atomic_fetch_add(&s->laps, 1, __ATOMIC_SEQ_CST);
		breathe();
	}
	return NULL;
}

static void *counting(void *arg)
{
	scene *const s = arg;

	for (; !__atomic_load_n(&s->over, __ATOMIC_SEQ_CST); s->counted++) {
		add(s);
		breathe();
	}
	return NULL;
}

/* tally counts a message; those of one thread are in order. It returns whether more will come. */
static bool tally(const note *n, size_t size, uint8_t **from, uint8_t *tickets, uint32_t *own)
{
	check_note(n, size);
	if (n->from == LAST)
		return false;
	if (n->from == OWN) {
		REQUIRE_EQ(n->number, *own);
		*own += 1;
		return true;
	}
	REQUIRE(n->number < families);
	if (n->from == TICKET && tickets != NULL) {
		tickets[n->number] += 1;
		return true;
	}
	REQUIRE(n->from > 0 && n->from <= GENERATIONS);
	from[n->from][n->number] += 1;
	return true;
}

static void *getting(void *arg)
{
	scene *const s = arg;
	note n;
	size_t size;

	do
		REQUIRE_STATUS(pp_queue_get(s->queue, &n, sizeof n, -1, &size), PP_OK);
	while (tally(&n, size, s->got, s->tickets_back, &s->own_got));
	return NULL;
}

static void *receiving(void *arg)
{
	scene *const s = arg;
	note n;
	int64_t size;

	do {
		size = pp_pipe_recv(s->ends[0], &n, sizeof n, -1);
		REQUIRE(size > 0);
	} while (tally(&n, (size_t)size, s->received, NULL, &s->own_received));
	return NULL;
}

static void *waiting_for_event(void *arg)
{
	scene *const s = arg;

	while (!__atomic_load_n(&s->ended, __ATOMIC_SEQ_CST))
		REQUIRE_STATUS(pp_event_wait(s->pulse, 60000), PP_OK);
	return NULL;
}

/* notified waits once at the condition. */
static int32_t notified(const scene *s, int64_t ms)
{
	REQUIRE_STATUS(pp_lock_acquire(s->guard, 60000), PP_OK);
	const int32_t status = pp_condition_wait(s->condition, s->guard, ms);
	REQUIRE_STATUS(pp_lock_release(s->guard), PP_OK);
	return status;
}

static void *waiting_for_notice(void *arg)
{
	scene *const s = arg;

	while (!__atomic_load_n(&s->ended, __ATOMIC_SEQ_CST)) {
		const int32_t status = notified(s, 1000);
		REQUIRE(status == PP_OK || status == PP_ERR_TIMEOUT);
	}
	return NULL;
}

static void scene_open(scene *s, int generation)
{
	const pp_queue_options bounded = {.size = sizeof bounded, .maxsize = 50};

	memset(s, 0, sizeof *s);
	s->generation = generation;
	REQUIRE_STATUS(pp_queue_create(&bounded, &s->queue), PP_OK);
	REQUIRE_STATUS(pp_queue_create(NULL, &s->tickets), PP_OK);
	REQUIRE_STATUS(pp_pipe_create(0, s->ends), PP_OK);
	REQUIRE_STATUS(pp_lock_new(0, &s->lock), PP_OK);
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &s->recursive), PP_OK);
	REQUIRE_STATUS(pp_lock_new(0, &s->guard), PP_OK);
	REQUIRE_STATUS(pp_semaphore_new(1, 1, 0, &s->permit), PP_OK);
	REQUIRE_STATUS(pp_event_new(&s->never), PP_OK);
	REQUIRE_STATUS(pp_event_new(&s->pulse), PP_OK);
	REQUIRE_STATUS(pp_condition_new(&s->condition), PP_OK);
	s->counts = mmap(NULL, LOCKS * sizeof *s->counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(s->counts != MAP_FAILED);
	for (int g = 0; g <= GENERATIONS; g++) {
		s->got[g] = calloc(families, 1);
		s->received[g] = calloc(families, 1);
		REQUIRE(s->got[g] != NULL && s->received[g] != NULL);
	}
	s->tickets_back = calloc(families, 1);
	REQUIRE(s->tickets_back != NULL);
	void *(*const consumers[])(void *) = {getting, receiving, waiting_for_event, waiting_for_notice};
	REQUIRE_EQ(pthread_create(&s->producers[0], NULL, producing, s), 0);
	REQUIRE_EQ(pthread_create(&s->producers[1], NULL, counting, s), 0);
	for (size_t i = 0; i < COUNT(consumers); i++)
		REQUIRE_EQ(pthread_create(&s->consumers[i], NULL, consumers[i], s), 0);
}

/* scene_free gives the handles back, in whichever process has them. */
static void scene_free(scene *s)
{
	REQUIRE_STATUS(pp_queue_free(s->queue), PP_OK);
	REQUIRE_STATUS(pp_queue_free(s->tickets), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(s->ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(s->ends[1]), PP_OK);
	REQUIRE_STATUS(pp_lock_free(s->lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(s->recursive), PP_OK);
	REQUIRE_STATUS(pp_lock_free(s->guard), PP_OK);
	REQUIRE_STATUS(pp_semaphore_free(s->permit), PP_OK);
	REQUIRE_STATUS(pp_event_free(s->never), PP_OK);
	REQUIRE_STATUS(pp_event_free(s->pulse), PP_OK);
	REQUIRE_STATUS(pp_condition_free(s->condition), PP_OK);
	REQUIRE_STATUS(pp_event_set(s->pulse), PP_ERR_HANDLE);
	REQUIRE_EQ(munmap((void *)s->counts, LOCKS * sizeof *s->counts), 0);
	for (int g = 0; g <= GENERATIONS; g++) {
		free(s->got[g]);
		free(s->received[g]);
	}
	free(s->tickets_back);
}

/* scene_visit is what a descendant does with it. */
static void scene_visit(const scene *s, int generation, unsigned number)
{
	uint32_t ticket;
	size_t size;

	put_note(s, generation, number, number % 4 == 0);
	send_note(s, generation, number, number % 4 == 1);
	for (int i = 0; i < TURNS; i++)
		add(s);
	REQUIRE_STATUS(pp_event_wait(s->never, 1), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_event_wait(s->pulse, 60000), PP_OK);
	REQUIRE_STATUS(notified(s, 60000), PP_OK);
	if (generation == s->generation + 1) {
		REQUIRE_STATUS(pp_queue_get(s->tickets, &ticket, sizeof ticket, 0, &size), PP_OK);
		REQUIRE_EQ(size, sizeof ticket);
		put_note(s, TICKET, ticket, false);
	}
}

/* scene_close finds every message, ticket and turn of the families first to last, once. */
static void scene_close(scene *s, unsigned first, unsigned last)
{
	pp_queue_state queue, tickets;
	uint32_t value;

	__atomic_store_n(&s->over, true, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < COUNT(s->producers); i++)
		REQUIRE_EQ(pthread_join(s->producers[i], NULL), 0);
	__atomic_store_n(&s->ended, true, __ATOMIC_SEQ_CST);
	REQUIRE_STATUS(pp_event_set(s->pulse), PP_OK);
	put_note(s, LAST, 0, false);
	send_note(s, LAST, 0, false);
	for (size_t i = 0; i < COUNT(s->consumers); i++)
		REQUIRE_EQ(pthread_join(s->consumers[i], NULL), 0);

	REQUIRE_EQ(s->own_got, s->laps);
	REQUIRE_EQ(s->own_received, s->laps);
	for (unsigned f = 0; f < families; f++) {
		const bool mine = f >= first && f <= last;
		for (int g = 1; g <= GENERATIONS; g++) {
			REQUIRE_EQ(s->got[g][f], mine && g > s->generation);
			REQUIRE_EQ(s->received[g][f], mine && g > s->generation);
		}
		REQUIRE_EQ(s->tickets_back[f], mine);
	}
	REQUIRE_STATUS(pp_queue_info(s->queue, &queue), PP_OK);
	REQUIRE_STATUS(pp_queue_info(s->tickets, &tickets), PP_OK);
	REQUIRE(queue.size == 0 && tickets.size == 0);
	REQUIRE_STATUS(pp_pipe_poll(s->ends[0], 0, NULL), PP_ERR_TIMEOUT);
	const uint64_t turns = s->laps + s->counted + (uint64_t)(last - first + 1) * (uint64_t)(GENERATIONS - s->generation) * TURNS;
	for (int i = 0; i < LOCKS; i++)
		REQUIRE_EQ(s->counts[i], turns);
	REQUIRE_STATUS(pp_semaphore_value(s->permit, &value), PP_OK);
	REQUIRE_EQ(value, 1);
	REQUIRE_EQ(pp_event_is_set(s->never), 0);
	scene_free(s);
}

/* family_mib is how much memory the segments of the family have in use. */
static long family_mib(void)
{
	char path[64], name[64];
	struct stat st;
	long blocks = 0;

	for (int fd = 0; fd < 1024; fd++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		const ssize_t n = readlink(path, name, sizeof name - 1);
		if (n <= 0)
			continue;
		name[n] = '\0';
		if (strncmp(name, "/memfd:", 7) == 0 && fstat(fd, &st) == 0)
			blocks += st.st_blocks;
	}
	return blocks * 512 >> 20;
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

/* Ctrl-C, with a handler that does not ask for calls to be restarted, ends a wait. */
static void interrupted(pp_pool pool)
{
	struct sigaction act = {.sa_handler = on_interrupt, .sa_flags = SA_ONSTACK}, before;
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

/* It ends the other waits too. */
static void interrupted_others(void)
{
	struct sigaction act = {.sa_handler = on_interrupt, .sa_flags = SA_ONSTACK}, before;
	pthread_t thread;
	pp_queue queue;
	pp_lock lock;
	pp_event event;
	pp_pipe ends[2];
	char text[8];
	size_t size;

	REQUIRE_STATUS(pp_queue_create(NULL, &queue), PP_OK);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	REQUIRE_EQ(sigaction(SIGINT, &act, &before), 0);
	to_interrupt = pthread_self();
	for (int what = 0; what < 4; what++) {
		int done = 0;
		interrupts = 0;
		REQUIRE_EQ(pthread_create(&thread, NULL, interrupting, &done), 0);
		const int32_t status = what == 0   ? pp_queue_get(queue, text, sizeof text, 60000, &size)
		                       : what == 1 ? pp_lock_acquire(lock, 60000)
		                       : what == 2 ? pp_event_wait(event, 60000)
		                                   : (int32_t)pp_pipe_recv(ends[0], text, sizeof text, 60000);
		__atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
		REQUIRE_STATUS(status, PP_ERR_INTERRUPTED);
		REQUIRE(interrupts > 0);
	}
	REQUIRE_EQ(sigaction(SIGINT, &before, NULL), 0);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
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
	for (int g = 0; g < generation; g++)
		scene_visit(&scenes[g], generation, number);
	pp_pool pool = open_pool(method, 2);
	REQUIRE(pool != spawned && pool != forked);
	maps(pool, 1000);
	much(pool);
	interrupted(pool);
	interrupted_others();
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	start_seven(method);
	if (generation == GENERATIONS) {
		/* Whatever threads of the ancestors were doing with these. */
		for (int g = 0; g < generation; g++)
			scene_free(&scenes[g]);
		return;
	}

	/* This one's child finds other handles of another parent. */
	spawned = open_pool(method == PP_START_FORK ? PP_START_SPAWN : PP_START_FORK, 1);
	forked = open_pool(PP_START_FORK, 1);
	options.method = method;
	options.fn = sleep_long;
	options.flags = PP_PROCESS_DAEMON;
	REQUIRE_STATUS(pp_process_start(&options, &sleeper), PP_OK);
	stopping = 0;
	scene *const own = &scenes[generation];
	scene_open(own, generation);
	REQUIRE_EQ(pthread_create(&threads[0], NULL, mapping, &spawned), 0);
	REQUIRE_EQ(pthread_create(&threads[1], NULL, waiting, &forked), 0);
	const uint64_t began = __atomic_load_n(&calls, __ATOMIC_SEQ_CST);
	WITHIN(60000, __atomic_load_n(&calls, __ATOMIC_SEQ_CST) > began + 4 && __atomic_load_n(&own->laps, __ATOMIC_SEQ_CST) > 4);
	REQUIRE_STATUS(pp_queue_put(own->tickets, &number, sizeof number, PP_RAW, 0), PP_OK);
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		generation_run(generation + 1, number);
		if (number % 2 == 0)
			exit(0);
		_exit(0);
	}
	REQUIRE_EQ(collect_within(child, PATIENCE_MS / generation), 0);
	scene_close(own, number, number);
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

/* fork_families forks until there were enough. */
static void *fork_families(void *unused)
{
	unsigned number;

	while ((number = __atomic_fetch_add(&next_family, 1, __ATOMIC_SEQ_CST)) < families) {
		const int64_t began = now_ms();
		REQUIRE_STATUS(pp_queue_put(scenes[0].tickets, &number, sizeof number, PP_RAW, 0), PP_OK);
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
	long shared[2];
	uint64_t laps = 0;
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

		scene_open(&scenes[0], 0);
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
		scene_close(&scenes[0], 0, families - 1);
		laps += scenes[0].laps;
		pp_result_free(&kept);
		REQUIRE_STATUS(pp_process_signal(sleeper, SIGKILL), PP_OK);
		REQUIRE_STATUS(pp_process_wait(sleeper, 60000, NULL), PP_OK);
		REQUIRE_STATUS(pp_process_free(sleeper), PP_OK);
		REQUIRE_STATUS(pp_pool_free(spawned), PP_OK);
		REQUIRE_STATUS(pp_pool_free(forked), PP_OK);
		WITHIN(10000, waitpid(-1, &status, WNOHANG) < 0 && errno == ECHILD);
		descriptors[lap] = count_descriptors_like("");
		mappings[lap] = count_lines("/proc/self/maps", "memfd:");
		shared[lap] = family_mib();
		families = all;
	}
	REQUIRE_EQ(descriptors[1], descriptors[0]);
	REQUIRE_EQ(mappings[1], mappings[0]);
	REQUIRE(shared[1] <= shared[0] + SHARED_GROWTH_MIB);
	printf("%u forks, %llu calls with pools, %llu laps with queues, locks, pipes, events by other threads meanwhile, %ld KiB, %ld MiB shared\n",
	       families * GENERATIONS, (unsigned long long)calls, (unsigned long long)laps, status_number(getpid(), "VmRSS:"), shared[1]);
	return 0;
}
