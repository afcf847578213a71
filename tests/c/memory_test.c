/* memory_test.c - the memory of a control group is used up: that is PP_ERR_NOMEM, and nobody is killed.
 *
 * deadline: 120 s
 */
#include "cgroup.h"

#include <polyproc.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PATIENCE = 30000, MOST = 8, MIB = 1 << 20 };

#define LIMIT ((uint64_t)100 * MIB)

static pp_queue queue;
static size_t size;
static uint64_t reserved; /* bytes that the queue is to leave to others */
static int gate[2];

/* put puts messages until the first error. */
static void put_all(void)
{
	char *const data = malloc(size), c;
	int32_t status;

	REQUIRE(data != NULL);
	memset(data, 1, size); /* now: what the process takes for itself later is not looked at beforehand */
	REQUIRE_EQ(read(gate[0], &c, 1), 1);
	while ((status = pp_queue_put(queue, data, size, PP_RAW, PATIENCE)) == PP_OK)
		;
	REQUIRE_STATUS(status, PP_ERR_NOMEM);
	REQUIRE(cgroup_usage() + reserved < LIMIT + 8 * MIB);
	/* What is in the queue can be taken, and what that has freed be used again. */
	size_t n;
	for (int i = 0; i < 3; i++)
		REQUIRE_STATUS(pp_queue_get(queue, data, size, PATIENCE, &n), PP_OK);
	_exit(0);
}

static void producers(int count)
{
	pid_t child[MOST];
	int status;

	REQUIRE_STATUS(pp_queue_create(NULL, &queue), PP_OK);
	REQUIRE_EQ(pipe(gate), 0);
	for (int i = 0; i < count; i++) {
		REQUIRE((child[i] = fork()) >= 0);
		if (child[i] == 0)
			put_all();
	}
	for (int i = 0; i < count; i++)
		REQUIRE_EQ(write(gate[1], "x", 1), 1);
	for (int i = 0; i < count; i++) {
		REQUIRE_EQ(waitpid(child[i], &status, 0), child[i]);
		REQUIRE_EQ(status, 0);
	}
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

static void one(void)
{
	producers(1);
}

static void four(void)
{
	producers(4);
}

static void eight(void)
{
	producers(8);
}

static int32_t large(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in, (void)in_size, (void)ctx, (void)ctx_size;
	memset(out, 1, *out_size);
	return 0;
}

/* Results that have no room. */
static void pool(void)
{
	enum { RESULTS = 64, RESULT = 4 * MIB };
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	uint64_t task[RESULTS];
	int refused = 0;

	options.workers = 4;
	options.out_max = RESULT;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	for (int i = 0; i < RESULTS; i++)
		REQUIRE_STATUS(pp_pool_submit(pool, large, "x", 1, 0, &task[i]), PP_OK);
	for (int i = 0; i < RESULTS; i++) {
		pp_result result = {.size = 0};
		const int32_t status = pp_pool_wait(pool, task[i], PATIENCE, &result);
		REQUIRE_STATUS(status, PP_OK);
		refused += result.status == PP_ERR_NOMEM;
		if (result.status != PP_OK && result.status != PP_ERR_NOMEM)
			fprintf(stderr, "%s: %.*s\n", pp_status_name(result.status), (int)result.size, (const char *)result.data);
		REQUIRE(result.status == PP_OK || result.status == PP_ERR_NOMEM);
		/* Kept: so there will be no room. */
	}
	printf("%d of %d results refused\n", refused, RESULTS);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void in_group(void (*body)(void), size_t message, const char *reserve)
{
	int status;

	size = message;
	reserved = reserve == NULL ? 0 : (uint64_t)atoi(reserve) * MIB;
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		cgroup_enter();
		if (reserve != NULL)
			REQUIRE_EQ(setenv("POLYPROC_MEMORY_RESERVE", reserve, 1), 0);
		body();
		exit(0);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(cgroup_kills(), 0);
	REQUIRE_EQ(status, 0);
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = {200, 30000, 100000, MIB, 4 * MIB};
	char limit[24];

	pp_init(&argc, &argv);
	snprintf(limit, sizeof limit, "%llu", (unsigned long long)LIMIT);
	if (!cgroup_make(limit))
		return 0;
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		in_group(one, sizes[i], NULL);
		in_group(four, sizes[i], NULL);
	}
	in_group(eight, 30000, NULL);
	in_group(one, 30000, "60M");
	in_group(pool, 0, NULL);
	cgroup_remove();
	return 0;
}
