/* submit.c - tasks one by one, results as they are done, and a task that crashes.
 *
 *   cc submit.c $(pkg-config --cflags --libs polyproc) && ./a.out
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <polyproc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Turns the text around; on "crash" it does what a bug does. */
static int32_t reverse(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)ctx, (void)ctx_size;
	const char *text = in;
	char *reversed = out;
	if (in_size == 5 && memcmp(text, "crash", 5) == 0)
		abort();
	if (*out_size < in_size)
		return 1;
	for (size_t i = 0; i < in_size; i++)
		reversed[i] = text[in_size - 1 - i];
	*out_size = in_size;
	return 0;
}

int main(int argc, char **argv)
{
	pp_init(&argc, &argv);

	pp_pool pool;
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.workers = 2;
	if (pp_pool_open(&options, &pool) != PP_OK) {
		fprintf(stderr, "%s\n", pp_last_error());
		return 1;
	}

	const char *texts[] = {"stressed", "crash", "drawer", "reward"};
	enum { N = sizeof texts / sizeof *texts };
	for (uint64_t i = 0; i < N; i++) {
		uint64_t task;
		if (pp_pool_submit(pool, reverse, texts[i], strlen(texts[i]), i, &task) != PP_OK) {
			fprintf(stderr, "%s\n", pp_last_error());
			return 1;
		}
	}

	for (int taken = 0; taken < N;) {
		pp_result results[N];
		size_t n;
		if (pp_pool_collect(pool, results, N, NULL, 0, 10000, &n) != PP_OK) {
			fprintf(stderr, "%s\n", pp_last_error());
			return 1;
		}
		for (size_t i = 0; i < n; i++) {
			pp_result *r = &results[i];
			if (r->status == PP_OK)
				printf("%s: %.*s\n", texts[r->cookie], (int)r->size, (const char *)r->data);
			else /* the worker is gone, this task with it; a new worker does the rest */
				printf("%s: %s, signal %d\n", texts[r->cookie], pp_status_name(r->status), -r->exit_code);
			pp_result_free(r);
		}
		taken += (int)n;
	}
	return pp_pool_free(pool) == PP_OK ? 0 : 1;
}
