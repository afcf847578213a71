/* cgroup.h - a control group with a limit on memory, of version 1 or 2, for a test's child. */
#ifndef CGROUP_H
#define CGROUP_H

#include "require.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>

static char cgroup_dir[200];
static bool cgroup_old;

static inline bool cgroup_write(const char *name, const char *text)
{
	char path[300];

	snprintf(path, sizeof path, "%s/%s", cgroup_dir, name);
	const int fd = open(path, O_WRONLY | O_CLOEXEC);
	const bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	if (fd >= 0)
		close(fd);
	return ok;
}

static inline uint64_t cgroup_number(const char *name, const char *key)
{
	char path[300], text[8192] = "";

	snprintf(path, sizeof path, "%s/%s", cgroup_dir, name);
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	REQUIRE(fd >= 0);
	const ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	REQUIRE(n > 0);
	const char *const at = strstr(text, key);
	return at == NULL ? 0 : strtoull(at + strlen(key), NULL, 10);
}

/* cgroup_make makes a group; false, and a line that says why, if this process may not. */
static inline bool cgroup_make(const char *bytes)
{
	static const char *const roots[] = {"/sys/fs/cgroup/memory", "/sys/fs/cgroup"};

	for (int i = 0; i < 2; i++) {
		cgroup_old = i == 0;
		snprintf(cgroup_dir, sizeof cgroup_dir, "%s/polyproc-test-%d", roots[i], (int)getpid());
		if (mkdir(cgroup_dir, 0755) != 0)
			continue;
		if (cgroup_write(cgroup_old ? "memory.limit_in_bytes" : "memory.max", bytes)) {
			if (!cgroup_old)
				cgroup_write("memory.swap.max", "0");
			return true;
		}
		rmdir(cgroup_dir);
	}
	printf("skipped: no control group for memory can be made: %s\n", strerror(errno));
	return false;
}

/* cgroup_enter moves this process into the group: for a child, before it has done anything. */
static inline void cgroup_enter(void)
{
	REQUIRE(cgroup_write("cgroup.procs", "0"));
}

static inline uint64_t cgroup_kills(void)
{
	return cgroup_old ? cgroup_number("memory.oom_control", "oom_kill ") : cgroup_number("memory.events", "oom_kill ");
}

static inline uint64_t cgroup_usage(void)
{
	const uint64_t usage = cgroup_number(cgroup_old ? "memory.usage_in_bytes" : "memory.current", "");

	return usage - cgroup_number("memory.stat", cgroup_old ? "total_inactive_file " : "inactive_file ");
}

static inline void cgroup_remove(void)
{
	WITHIN(5000, rmdir(cgroup_dir) == 0);
}

#endif
