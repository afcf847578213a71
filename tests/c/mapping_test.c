/* mapping_test.c - programs that read or lock whatever is mapped do not fill the holes of the heap: a search for leaks reads all that is readable, and
 * mlockall(MCL_FUTURE) has new mappings filled. In a control group whose limit would end such a program.
 *
 * deadline: 120 s
 */
#include "cgroup.h"

#include <fcntl.h>
#include <polyproc.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { MIB = 1 << 20, PATIENCE = 20000 };

/* use_all makes one of everything, and uses it; messages of a size that takes slabs of its own. */
static void use_all(void)
{
	pp_queue queue;
	pp_lock lock;
	pp_pipe ends[2];
	char *const data = calloc(1, MIB);
	size_t n;

	REQUIRE(data != NULL);
	REQUIRE_STATUS(pp_queue_create(NULL, &queue), PP_OK);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	for (int i = 0; i < 10; i++)
		REQUIRE_STATUS(pp_queue_put(queue, data, MIB, PP_RAW, PATIENCE), PP_OK);
	for (int i = 0; i < 10; i++)
		REQUIRE_STATUS(pp_queue_get(queue, data, MIB, PATIENCE, &n), PP_OK);
	REQUIRE_STATUS(pp_pipe_send(ends[1], data, 1000, PATIENCE), PP_OK);
	REQUIRE_EQ(pp_pipe_recv(ends[0], data, MIB, PATIENCE), 1000);
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	free(data);
}

/* read_all reads a word of each page that may be read, and returns how many MiB of the heap those
 * are. */
static uint64_t read_all(void)
{
	FILE *const f = fopen("/proc/self/maps", "re");
	char line[512], perms[8];
	unsigned long from, to;
	uint64_t bytes = 0;
	volatile char sum = 0;

	REQUIRE(f != NULL);
	while (fgets(line, sizeof line, f) != NULL) {
		REQUIRE_EQ(sscanf(line, "%lx-%lx %7s", &from, &to, perms), 3);
		if (perms[0] != 'r' || perms[3] != 's')
			continue;
		bytes += to - from;
		for (unsigned long at = from; at < to; at += 4096)
			sum = (char)(sum + *(const volatile char *)(uintptr_t)at); /* NOLINT(performance-no-int-to-ptr) */
	}
	fclose(f);
	return bytes / MIB;
}

static void searched(void)
{
	use_all();
	const uint64_t read = read_all();
	printf("%llu MiB may be read\n", (unsigned long long)read);
	REQUIRE(read > 10 && read < 64);
}

static void locked(void)
{
	REQUIRE_EQ(mlockall(MCL_CURRENT | MCL_FUTURE), 0);
	use_all();
	printf("locked before: %llu MiB\n", (unsigned long long)cgroup_usage() / MIB);
}

static void locked_later(void)
{
	use_all();
	REQUIRE_EQ(mlockall(MCL_CURRENT | MCL_FUTURE), 0);
	use_all();
	printf("locked later: %llu MiB\n", (unsigned long long)cgroup_usage() / MIB);
}

/* A child of a fork meets blocks that lie beyond what was open at the fork, from both sides. */
static void grown(void)
{
	enum { MANY = 60 };
	pp_queue there, back;
	char *const data = malloc(MIB);
	size_t n;
	int status;

	REQUIRE(data != NULL);
	REQUIRE_STATUS(pp_queue_create(NULL, &there), PP_OK);
	REQUIRE_STATUS(pp_queue_create(NULL, &back), PP_OK);
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		for (int i = 0; i < MANY; i++) {
			memset(data, i, MIB);
			REQUIRE_STATUS(pp_queue_put(back, data, MIB / 2 + (size_t)i, PP_RAW, PATIENCE), PP_OK);
			REQUIRE_STATUS(pp_queue_get(there, data, MIB, PATIENCE, &n), PP_OK);
			REQUIRE(n == (size_t)MIB && data[0] == (char)i && data[MIB - 1] == (char)i);
		}
		_exit(0);
	}
	for (int i = 0; i < MANY; i++) {
		memset(data, i, MIB);
		REQUIRE_STATUS(pp_queue_put(there, data, MIB, PP_RAW, PATIENCE), PP_OK);
	}
	for (int i = 0; i < MANY; i++) {
		REQUIRE_STATUS(pp_queue_get(back, data, MIB, PATIENCE, &n), PP_OK);
		REQUIRE(n == (size_t)MIB / 2 + (size_t)i && data[0] == (char)i);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 0);
}

static void in_group(void (*body)(void))
{
	int status;
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		cgroup_enter();
		body();
		exit(0);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(cgroup_kills(), 0);
	REQUIRE_EQ(status, 0);
}

int main(void)
{
	if (!cgroup_make("268435456"))
		return 0;
	in_group(searched);
	in_group(locked);
	in_group(locked_later);
	in_group(grown);
	cgroup_remove();
	return 0;
}
