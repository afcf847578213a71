/* version.c - what this library is, and where it runs. */
#include "front.h"

#include <errno.h>
#include <sched.h>

const char *pp_version(void)
{
	return PP_VERSION;
}

const char *pp_library_path(void)
{
	return pp__library_file;
}

int32_t pp_cpu_count(void)
{
	/* The kernel refuses masks smaller than its own; nobody tells how large that is. */
	for (int cpus = 1024; cpus <= 1 << 20; cpus *= 4) {
		cpu_set_t *set = CPU_ALLOC((size_t)cpus);
		const size_t size = CPU_ALLOC_SIZE((size_t)cpus);

		if (set == NULL)
			break;
		CPU_ZERO_S(size, set);
		const int failed = sched_getaffinity(0, size, set);
		const int error = errno;
		const int count = CPU_COUNT_S(size, set);
		CPU_FREE(set);
		if (failed == 0)
			return count > 0 ? count : 1;
		if (error != EINVAL)
			break;
	}
	return 1;
}
