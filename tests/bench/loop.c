/* loop.c - the loop of make bench: the square roots of a million numbers.
 *
 *   loop-c polyproc|polyproc-map|openmp|sequential WORKERS LOOPS
 *
 * prints the seconds that LOOPS such loops took, workers started and memory touched:
 *   polyproc      pp_pool_for
 *   polyproc-map  pp_pool_map, a call for each number
 *   openmp        #pragma omp parallel for schedule(static), WORKERS threads
 *   sequential    one thread
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <polyproc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N = 1000000 };

struct loop {
	double in[N], out[N];
};

static int32_t range(size_t begin, size_t end, void *data, const void *ctx, size_t ctx_size)
{
	struct loop *loop = data;
	(void)ctx, (void)ctx_size;
	for (size_t i = begin; i < end; i++)
		loop->out[i] = sqrt(loop->in[i]);
	return 0;
}

static int32_t one(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in_size, (void)out_size, (void)ctx, (void)ctx_size;
	*(double *)out = sqrt(*(const double *)in);
	return 0;
}

static void die(const char *what)
{
	fprintf(stderr, "loop-c: %s: %s\n", what, pp_last_error());
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static pp_pool pool;
static int workers;

static void polyproc_for(struct loop *loop)
{
	if (pp_pool_for(pool, range, N, 0, loop, NULL, 0, NULL) != PP_OK)
		die("pp_pool_for");
}

static void polyproc_map(struct loop *loop)
{
	if (pp_pool_map(pool, one, loop->in, sizeof(double), loop->out, sizeof(double), N, 0, NULL, 0, NULL) != PP_OK)
		die("pp_pool_map");
}

static void openmp(struct loop *loop)
{
#pragma omp parallel for schedule(static) num_threads(workers)
	for (int i = 0; i < N; i++)
		loop->out[i] = sqrt(loop->in[i]);
}

static void sequential(struct loop *loop)
{
	range(0, N, loop, NULL, 0);
}

int main(int argc, char **argv)
{
	static const struct contender {
		const char *name;
		void (*run)(struct loop *loop);
		int pooled;
	} contenders[] = {{"polyproc", polyproc_for, 1}, {"polyproc-map", polyproc_map, 1}, {"openmp", openmp, 0}, {"sequential", sequential, 0}};
	const struct contender *c = NULL;

	pp_init(&argc, &argv);
	for (size_t i = 0; argc == 4 && i < sizeof contenders / sizeof *contenders; i++)
		if (strcmp(argv[1], contenders[i].name) == 0)
			c = &contenders[i];
	const int loops = c ? atoi(argv[3]) : 0;
	workers = c ? atoi(argv[2]) : 0;
	if (workers < 1 || loops < 1) {
		fprintf(stderr, "usage: loop-c polyproc|polyproc-map|openmp|sequential WORKERS LOOPS\n");
		return 2;
	}
	void *memory = NULL;
	if (c->pooled) {
		pp_pool_options options = PP_POOL_OPTIONS_INIT;
		options.workers = workers;
		if (pp_pool_open(&options, &pool) != PP_OK || pp_pool_alloc(pool, sizeof(struct loop), &memory) != PP_OK)
			die("pp_pool_open");
	} else if ((memory = malloc(sizeof(struct loop))) == NULL) {
		die("memory");
	}
	struct loop *loop = memory;
	for (int i = 0; i < N; i++) {
		loop->in[i] = (double)i * i;
		loop->out[i] = 0;
	}
	for (int i = 0; i < 3; i++)
		c->run(loop);
	const double start = now();
	for (int i = 0; i < loops; i++)
		c->run(loop);
	const double seconds = now() - start;
	for (int i = 0; i < N; i++)
		if (loop->out[i] != i) {
			fprintf(stderr, "loop-c: %s: root %d is wrong\n", c->name, i);
			return 1;
		}
	if (c->pooled && pp_pool_free(pool) != PP_OK)
		die("pp_pool_free");
	printf("%.9f\n", seconds);
	return 0;
}
