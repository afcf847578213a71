/* dump_test.c - shared memory is left out of core files: what is mapped of memfds in a pool's process, and in its workers, says so. */
#include "require.h"

#include <polyproc.h>

/* dumped counts the mappings of shared memory that a core file would have. */
static int dumped(void)
{
	FILE *const f = fopen("/proc/self/smaps", "re");
	char line[1024];
	int count = 0, shared = 0, ours = 0;

	REQUIRE(f != NULL);
	while (fgets(line, sizeof line, f) != NULL) {
		unsigned long from, to;
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			ours = strstr(line, "/memfd:polyproc") != NULL && strstr(line, "engine") == NULL;
		if (strncmp(line, "VmFlags:", 8) == 0 && ours) {
			shared++;
			count += strstr(line, " dd") == NULL;
		}
	}
	fclose(f);
	return shared > 0 ? count : -1;
}

static int32_t look(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in, (void)in_size, (void)out_size, (void)ctx, (void)ctx_size;
	*(int *)out = dumped();
	return 0;
}

int main(int argc, char **argv)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	pp_queue queue;
	char in[4] = {0};
	int out[4];

	pp_init(&argc, &argv);
	options.workers = 2;
	options.init_arg = "secret";
	options.init_arg_size = 6;
	REQUIRE_STATUS(pp_queue_create(NULL, &queue), PP_OK);
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, look, in, 1, out, sizeof *out, 4, 0, NULL, 0, NULL), PP_OK);
	for (int i = 0; i < 4; i++)
		REQUIRE_EQ(out[i], 0);
	REQUIRE_EQ(dumped(), 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	return 0;
}
