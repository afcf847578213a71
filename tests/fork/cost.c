/* cost.c - what the library costs a program that forks. It prints, and judges nothing:
 *
 *   - fork, _exit in the child and waitpid, in a program that is linked with the library, that has the engine loaded, that has a pool
 *     open; a child has one thread each time: one that never calls the library has nothing of it but the parent's mappings to copy;
 *   - the threads of a process that the library starts: 1, and 2 if it is a daemon or a worker, which a C thread ends with its parent;
 *     a worker never has an engine, and little memory of its own;
 *   - children of children that all use pools: each brings up an engine of its own, beside the dead ones of its parents.
 *
 *   cc -O2 -Iinclude -o /tmp/cost tests/fork/cost.c -Lbuild -lpolyproc -Wl,-rpath,$PWD/build && /tmp/cost
 *   cc -O2 -DWITHOUT -Iinclude -o /tmp/cost tests/fork/cost.c && /tmp/cost      the same without the library
 */
#include "../c/procfs.h"

#ifndef WITHOUT
#include <polyproc.h>
#endif

enum { FORKS = 2000, GENERATIONS = 8 };

static int by_time(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* fork_and_exit prints the median and the fastest tenth of fork, _exit and waitpid, in microseconds, and what the child looks like. */
static void fork_and_exit(const char *what)
{
	static double us[FORKS];
	int status;

	for (int i = 0; i < FORKS; i++) {
		struct timespec began, ended;
		clock_gettime(CLOCK_MONOTONIC, &began);
		const pid_t child = fork();
		if (child == 0)
			_exit(0);
		waitpid(child, &status, 0);
		clock_gettime(CLOCK_MONOTONIC, &ended);
		us[i] = (double)(ended.tv_sec - began.tv_sec) * 1e6 + (double)(ended.tv_nsec - began.tv_nsec) / 1e3;
	}
	qsort(us, FORKS, sizeof *us, by_time);
	const pid_t child = fork();
	if (child == 0)
		_exit((int)status_number(getpid(), "Threads:"));
	waitpid(child, &status, 0);
	printf("%-44s fork+exit median %6.0f us, 10%% %6.0f us; a child has %d threads\n", what, us[FORKS / 2], us[FORKS / 10],
	       WEXITSTATUS(status));
	fflush(stdout);
}

#ifndef WITHOUT
static int32_t look(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	return (int32_t)status_number(getpid(), "Threads:");
}

static int32_t look_task(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	char text[20000];
	long *const result = out;

	(void)in;
	(void)in_size;
	(void)ctx;
	(void)ctx_size;
	read_text("/proc/self/smaps_rollup", text, sizeof text);
	const char *const clean = strstr(text, "Private_Clean:"), *const dirty = strstr(text, "Private_Dirty:");
	result[0] = status_number(getpid(), "Threads:");
	result[1] = (clean != NULL ? strtol(clean + 14, NULL, 10) : 0) + (dirty != NULL ? strtol(dirty + 14, NULL, 10) : 0);
	*out_size = 2 * sizeof *result;
	return 0;
}

static void processes(void)
{
	static const char *const names[] = {"spawn", "fork"};

	for (uint32_t m = 0; m < 2; m++) {
		for (uint32_t daemon = 0; daemon < 2; daemon++) {
			pp_process_options options = PP_PROCESS_OPTIONS_INIT;
			pp_process process;
			pp_exit how = {0};
			options.method = PP_START_SPAWN + m;
			options.fn = look;
			options.flags = daemon ? PP_PROCESS_DAEMON : 0;
			REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
			REQUIRE_STATUS(pp_process_wait(process, 10000, &how), PP_OK);
			REQUIRE_STATUS(pp_process_free(process), PP_OK);
			printf("process by %-6s %-26s %d threads\n", names[m], daemon ? "daemon" : "no daemon", how.code);
		}
		pp_pool_options options = PP_POOL_OPTIONS_INIT;
		pp_pool pool;
		long figures[2];
		options.method = PP_START_SPAWN + m;
		options.workers = 1;
		const int64_t began = now_ms();
		REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
		REQUIRE_STATUS(pp_pool_map(pool, look_task, NULL, 0, figures, sizeof figures, 1, 0, NULL, 0, NULL), PP_OK);
		printf("worker by %-6s: %ld threads, %ld KiB private, %lld ms to the first result\n", names[m], figures[0], figures[1],
		       (long long)(now_ms() - began));
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	}
}

/* generations prints what each further generation costs that brings up an engine of its own. */
static void generations(int left)
{
	static int deep;
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;

	options.workers = 1;
	options.method = PP_START_FORK;
	const int64_t began = now_ms();
	if (pp_pool_open(&options, &pool) != PP_OK) {
		printf("generation %d: %s\n", deep, pp_last_error());
		fflush(stdout);
		return;
	}
	long figures[2];
	REQUIRE_STATUS(pp_pool_map(pool, look_task, NULL, 0, figures, sizeof figures, 1, 0, NULL, 0, NULL), PP_OK);
	printf("generation %d: pool to first result %lld ms, resident %ld KiB, %d engines mapped, %d descriptors\n", deep,
	       (long long)(now_ms() - began), status_number(getpid(), "VmRSS:"), count_lines("/proc/self/maps", "polyproc-engine") / 4,
	       count_descriptors_like(""));
	fflush(stdout);
	if (left > 0) {
		const pid_t child = fork();
		if (child == 0) {
			deep++;
			generations(left - 1);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
	pp_pool_free(pool);
}
#endif

int main(int argc, char **argv)
{
#ifdef WITHOUT
	(void)argc;
	(void)argv;
	fork_and_exit("without the library");
#else
	REQUIRE_STATUS(pp_init(&argc, &argv), PP_OK);
	fork_and_exit("linked, nothing called");
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;
	options.fn = look;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 10000, NULL), PP_OK);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	fork_and_exit("engine loaded");
	pp_pool_options pool_options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	long figures[2];
	REQUIRE_STATUS(pp_pool_open(&pool_options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, look_task, NULL, 0, figures, sizeof figures, 1, 0, NULL, 0, NULL), PP_OK);
	fork_and_exit("engine loaded, a pool open");
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	processes();
	generations(GENERATIONS);
#endif
	return 0;
}
