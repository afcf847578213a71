/* cancel_test.c - no call of the library is a cancellation point: each is made by a thread that has a pending request (pthread_cancel). It must return, and
 * afterwards the object must work and the process must be able to fork: a thread that ended inside of the library would leave its locks behind.
 *
 * deadline: 120 s
 */
#include "require.h"

#include <polyproc.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>

enum { PATIENCE = 20000, BIG = 4 << 20 };

static char *big;
static pp_queue queue;
static pp_lock held; /* by a dead process */
static char name[64];
static bool returned;

static int32_t square(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)ctx, (void)ctx_size;
	memcpy(out, in, in_size);
	*out_size = in_size;
	return 0;
}

/* Storage of every kind: small blocks, large ones, runs; and given back. */
static void put_and_get(void)
{
	static const size_t sizes[] = {10, 5000, 40000, 100000, 600000, BIG, 3 * (BIG / 4)};
	size_t n;

	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		REQUIRE_STATUS(pp_queue_put(queue, big, sizes[i], PP_RAW, PATIENCE), PP_OK);
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		REQUIRE_STATUS(pp_queue_get(queue, big, BIG, PATIENCE, &n), PP_OK);
		REQUIRE_EQ(n, sizes[i]);
	}
}

static void make_objects(void)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	pp_queue made[20];
	pp_lock lock;

	for (int i = 0; i < 20; i++) {
		REQUIRE_STATUS(pp_queue_create(&options, &made[i]), PP_OK);
		REQUIRE_STATUS(pp_queue_put(made[i], big, 30000, PP_RAW, PATIENCE), PP_OK);
		REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
		REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	}
	for (int i = 0; i < 20; i++)
		REQUIRE_STATUS(pp_queue_free(made[i]), PP_OK);
}

static void named(void)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	pp_queue made, opened;
	size_t n;

	options.name = name;
	options.flags = PP_QUEUE_EXCLUSIVE;
	REQUIRE_STATUS(pp_queue_create(&options, &made), PP_OK);
	options.flags = PP_QUEUE_EXISTING;
	REQUIRE_STATUS(pp_queue_create(&options, &opened), PP_OK);
	REQUIRE_STATUS(pp_queue_put(made, "x", 1, PP_RAW, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_queue_get(opened, big, BIG, PATIENCE, &n), PP_OK);
	REQUIRE_STATUS(pp_queue_free(made), PP_OK);
	REQUIRE_STATUS(pp_queue_free(opened), PP_OK);
	REQUIRE_STATUS(pp_queue_unlink(name), PP_OK);
}

/* The holder's death is to be proven: descriptors of processes, files of /proc. */
static void dead_owner(void)
{
	REQUIRE_STATUS(pp_lock_acquire(held, PATIENCE), PP_ERR_OWNER_DIED);
	REQUIRE_STATUS(pp_lock_recover(held, PATIENCE), PP_OK);
}

static void descriptors(void)
{
	uint8_t as[32];
	int32_t fd;

	REQUIRE_STATUS(pp_fd_export(1, as), PP_OK);
	REQUIRE_STATUS(pp_fd_import(as, &fd), PP_OK);
	REQUIRE(fd > 2);
	/* Not close(2): it would be a cancellation point. */
	REQUIRE(pp_last_error() != NULL);
}

/* The engine is loaded here. */
static void pool(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	double in[10] = {1, 2, 3}, out[10];

	options.workers = 2;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, square, in, sizeof *in, out, sizeof *out, 10, 0, NULL, 0, NULL), PP_OK);
	REQUIRE(memcmp(in, out, sizeof in) == 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void *cancelled(void *op)
{
	void (*run)(void);

	memcpy(&run, &op, sizeof run);
	REQUIRE_EQ(pthread_cancel(pthread_self()), 0);
	run();
	__atomic_store_n(&returned, true, __ATOMIC_SEQ_CST);
	pthread_testcancel();
	REQUIRE(false);
	return NULL;
}

static void *go(void *op)
{
	void (*run)(void);

	memcpy(&run, &op, sizeof run);
	run();
	return NULL;
}

static void in_time(pthread_t thread, void **result)
{
	struct timespec end;

	REQUIRE_EQ(clock_gettime(CLOCK_REALTIME, &end), 0);
	end.tv_sec += PATIENCE / 1000;
	REQUIRE_EQ(pthread_timedjoin_np(thread, result, &end), 0);
}

static void fork_once(void)
{
	int status;
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		put_and_get();
		_exit(0);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 0);
}

static void hold_and_die(void)
{
	int status;

	REQUIRE_STATUS(pp_lock_new(0, &held), PP_OK);
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		REQUIRE_STATUS(pp_lock_acquire(held, PATIENCE), PP_OK);
		raise(SIGKILL);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
}

static void *pointer(void (*op)(void))
{
	void *as;

	memcpy(&as, &op, sizeof as);
	return as;
}

int main(int argc, char **argv)
{
	void (*const ops[])(void) = {put_and_get, make_objects, named, dead_owner, descriptors, pool};
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;

	pp_init(&argc, &argv);
	REQUIRE((big = calloc(1, BIG)) != NULL);
	snprintf(name, sizeof name, "pp-cancel-%d", (int)getpid());
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
		pthread_t thread;
		void *result = NULL;

		if (ops[i] == dead_owner)
			hold_and_die();
		returned = false;
		REQUIRE_EQ(pthread_create(&thread, NULL, cancelled, pointer(ops[i])), 0);
		in_time(thread, &result);
		REQUIRE(result == PTHREAD_CANCELED);
		if (!returned)
			fprintf(stderr, "operation %zu is a cancellation point\n", i);
		REQUIRE(returned);
		REQUIRE_EQ(pthread_create(&thread, NULL, go, pointer(put_and_get)), 0);
		in_time(thread, NULL);
		REQUIRE_EQ(pthread_create(&thread, NULL, go, pointer(fork_once)), 0);
		in_time(thread, NULL);
	}
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	return 0;
}
