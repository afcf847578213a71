/* map.c - a parallel loop: one function over an array, in two processes.
 *
 *   cc map.c $(pkg-config --cflags --libs polyproc) -lm && ./a.out
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <math.h>
#include <polyproc.h>
#include <stdio.h>

/* A task: reads one element, writes one result. */
static int32_t square_root(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in_size, (void)out_size, (void)ctx, (void)ctx_size;
	double x = *(const double *)in;
	if (x < 0)
		return 33; /* EDOM: this element's own error, the others go on */
	*(double *)out = sqrt(x);
	return 0;
}

int main(int argc, char **argv)
{
	pp_init(&argc, &argv); /* a worker is this program, executed again: in it the call never returns */

	pp_pool pool;
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.workers = 2;
	if (pp_pool_open(&options, &pool) != PP_OK) {
		fprintf(stderr, "%s\n", pp_last_error());
		return 1;
	}

	enum { N = 1000 };
	static double in[N], out[N];
	static pp_outcome outcome[N];
	for (int i = 0; i < N; i++)
		in[i] = (double)i * i;
	in[7] = -1;

	int32_t rc = pp_pool_map(pool, square_root, in, sizeof *in, out, sizeof *out, N, 0, NULL, 0, outcome);
	double sum = 0;
	int failed = 0;
	for (int i = 0; i < N; i++) {
		if (outcome[i].status == PP_OK)
			sum += out[i];
		else
			failed++;
	}
	printf("element 7: %s, error %d (%s)\n", pp_status_name(outcome[7].status), outcome[7].code, pp_last_error());
	printf("map: %s; %d failed; the sum of the others is %.0f\n", pp_status_name(rc), failed, sum);
	return pp_pool_free(pool) == PP_OK ? 0 : 1;
}
