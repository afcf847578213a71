/* for.c - a parallel for loop over memory that the program shares with its workers.
 *
 *   cc for.c $(pkg-config --cflags --libs polyproc) -lm && ./a.out
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <math.h>
#include <polyproc.h>
#include <stdio.h>

enum { N = 1000000 };

/* What the loop reads and writes. It holds no pointers: a worker has it at another address. */
struct loop {
	double in[N], out[N];
};

/* The body of the loop, for the numbers begin to end - 1. */
static int32_t square_roots(size_t begin, size_t end, void *data, const void *ctx, size_t ctx_size)
{
	(void)ctx, (void)ctx_size;
	struct loop *loop = data;
	for (size_t i = begin; i < end; i++)
		loop->out[i] = sqrt(loop->in[i]);
	return 0;
}

int main(int argc, char **argv)
{
	pp_init(&argc, &argv); /* a worker is this program, executed again: in it the call never returns */

	pp_pool pool;
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.workers = 2;
	void *memory;
	if (pp_pool_open(&options, &pool) != PP_OK || pp_pool_alloc(pool, sizeof(struct loop), &memory) != PP_OK) {
		fprintf(stderr, "%s\n", pp_last_error());
		return 1;
	}
	struct loop *loop = memory;
	for (size_t i = 0; i < N; i++)
		loop->in[i] = (double)i * (double)i;

	int32_t rc = pp_pool_for(pool, square_roots, N, 0, loop, NULL, 0, NULL);
	double sum = 0;
	for (size_t i = 0; i < N; i++)
		sum += loop->out[i];
	printf("for: %s; the sum of the roots is %.0f\n", pp_status_name(rc), sum);
	return pp_pool_free(pool) == PP_OK ? 0 : 1;
}
