/* family_test.c - who belongs to a family, and how a child learns of it.
 *
 * deadline: 60 s
 */
#include "scenarios.h"

#include <sys/resource.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

typedef struct heap_id {
	dev_t dev;
	ino_t ino;
} heap_id;

/* our_heap tells which file this process has its shared memory in; and that nobody else is to inherit it unasked. */
static heap_id our_heap(void)
{
	int32_t fds[2];
	char env[80];
	struct stat st;

	REQUIRE_STATUS(pp_family(fds, env, sizeof env), PP_OK);
	REQUIRE(strncmp(env, "POLYPROC_FAMILY=", 16) == 0);
	REQUIRE_EQ(fstat(fds[0], &st), 0);
	REQUIRE((fcntl(fds[0], F_GETFD) & FD_CLOEXEC) != 0 && (fcntl(fds[1], F_GETFD) & FD_CLOEXEC) != 0);
	REQUIRE(fds[0] > 2 && fds[1] > 2);
	return (heap_id){st.st_dev, st.st_ino};
}

static int32_t same_heap(const void *arg, size_t arg_size)
{
	const heap_id mine = our_heap(), *const theirs = arg;

	if (arg_size != sizeof mine)
		return 2;
	return getenv("POLYPROC_FAMILY") != NULL ? 3 : mine.dev == theirs->dev && mine.ino == theirs->ino ? 0 : 1;
}

static int32_t same_heap_below(const void *arg, size_t arg_size)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;
	pp_exit end;

	options.fn = same_heap;
	options.method = PP_START_SPAWN;
	options.arg = arg;
	options.arg_size = arg_size;
	const int32_t status = pp_process_start(&options, &process);
	if (status != PP_OK)
		return 100 - status;
	if (pp_process_wait(process, 20000, &end) != PP_OK)
		return 4;
	return end.signal != 0 ? 5 : end.code;
}

static void ends_with_0(const pp_process_options *options)
{
	pp_process process;
	pp_exit end;

	REQUIRE_STATUS(pp_process_start(options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 20000, &end), PP_OK);
	REQUIRE(end.known && end.signal == 0);
	REQUIRE_EQ(end.code, 0);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
}

static void children(void)
{
	const heap_id id = our_heap();
	const uint32_t methods[] = {PP_START_SPAWN, PP_START_FORK};
	const pp_process_fn fns[] = {same_heap, same_heap_below};

	for (size_t m = 0; m < COUNT(methods); m++)
		for (size_t f = 0; f < COUNT(fns); f++) {
			pp_process_options options = PP_PROCESS_OPTIONS_INIT;
			options.method = methods[m];
			options.fn = fns[f];
			options.arg = &id;
			options.arg_size = sizeof id;
			ends_with_0(&options);
		}
}

/* A family is made by the first child, even if nothing is shared yet: the two can share something later. */
static void child_first(void)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;
	int32_t fds[2];
	char link[64], target[64];

	const int32_t before = open_descriptors();
	options.fn = same_heap;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	REQUIRE(open_descriptors() >= before + 2);
	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	snprintf(link, sizeof link, "/proc/self/fd/%d", (int)fds[0]);
	REQUIRE(readlink(link, target, sizeof target) > 0);
	REQUIRE(strstr(target, "polyproc-heap") != NULL);
}

static int32_t task_heap(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)out;
	(void)ctx;
	(void)ctx_size;
	*out_size = 0;
	return same_heap(in, in_size);
}

static void workers(void)
{
	const uint32_t methods[] = {PP_START_SPAWN, PP_START_FORK};

	for (size_t m = 0; m < COUNT(methods); m++) {
		pp_pool_options options = PP_POOL_OPTIONS_INIT;
		pp_pool pool;
		options.method = methods[m];
		options.workers = 2;
		REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
		const heap_id id = our_heap();
		REQUIRE_STATUS(pp_pool_map(pool, task_heap, &id, sizeof id, NULL, 0, 1, 0, NULL, 0, NULL), PP_OK);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	}
}

/* Only programs that are to be members inherit anything. */
static void programs(void)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	char script[200];
	int32_t fds[2];

	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	snprintf(script, sizeof script, "test -z \"$POLYPROC_FAMILY\" && test ! -e /proc/self/fd/%d && test ! -e /proc/self/fd/%d", (int)fds[0],
	         (int)fds[1]);
	const char *const plain[] = {"sh", "-c", script, NULL};
	options.argv = plain;
	ends_with_0(&options);
	snprintf(script, sizeof script, "test -n \"$POLYPROC_FAMILY\" && test -e /proc/self/fd/%d && test -e /proc/self/fd/%d", (int)fds[0],
	         (int)fds[1]);
	options.flags = PP_PROCESS_FAMILY;
	ends_with_0(&options);
}

static void joining(void)
{
	int32_t fds[2];
	char env[80];

	REQUIRE_STATUS(pp_family_join(NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_family_join("POLYPROC_FAMILY="), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_family_join("0,1,0:0"), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_family_join("900,901,1:1 "), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_family(NULL, env, sizeof env), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_family(fds, env, 10), PP_ERR_TOO_BIG);
	REQUIRE_STATUS(pp_family(fds, env, sizeof env), PP_OK);
	REQUIRE_STATUS(pp_family_join(env), PP_OK); /* its own */
	env[16] = '9'; /* another descriptor */
	REQUIRE_STATUS(pp_family_join(env), PP_ERR_INVALID);
}

/* A limit on file size: no shared memory, but an error and no signal, and processes start all the same. */
static void small_files(void)
{
	struct rlimit limit = {1 << 20, 1 << 20};
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	const char *const argv[] = {"true", NULL};
	int32_t fds[2];

	REQUIRE_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_ERR_NOMEM);
	options.argv = argv;
	options.flags = PP_PROCESS_FAMILY;
	ends_with_0(&options);
}

int main(int argc, char **argv)
{
	static const scenario list[] = {
		{"children", children, 0, 0}, {"child_first", child_first, 0, 0}, {"workers", workers, 0, 0},
		{"programs", programs, 0, 0}, {"joining", joining, 0, 0},         {"small_files", small_files, 0, 0},
	};

	return run_scenarios(argc, argv, list, COUNT(list));
}
