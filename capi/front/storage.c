/* storage.c - memory for ranges of a sparse file, asked for before it is touched: full memory is an error and neither SIGBUS nor the
 * end of some process by the kernel's hand. shm/shm_linux.go has the same in Go. */
#include "heap_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* One fallocate at most: a signal makes it give up and undo all it did, so that a large one might never end. */
#define RESERVE_STEP ((uint64_t)32 << 20)
#define ADMIT_FROM ((uint64_t)1 << 20)
enum { FIGURES_MS = 10, GROUPS = 16 };

static ssize_t read_file(const char *path, char *text, size_t size)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t n = 0;

	if (fd < 0)
		return -1;
	while (n < size - 1) {
		const ssize_t got = read(fd, text + n, size - 1 - n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		n += (size_t)got;
	}
	close(fd);
	text[n] = '\0';
	return (ssize_t)n;
}

/* number_after finds name at the start of a line and reads the number behind it. */
static bool number_after(const char *text, const char *name, uint64_t *out)
{
	const size_t length = strlen(name);

	for (const char *line = text; line != NULL && *line != '\0'; line = strchr(line, '\n'), line = line == NULL ? NULL : line + 1) {
		if (strncmp(line, name, length) != 0)
			continue;
		char *end;
		errno = 0;
		*out = strtoull(line + length, &end, 10);
		return end != line + length && errno == 0;
	}
	return false;
}

/* A control group that limits this process, of version 1 or 2 by the names of its files. */
typedef struct group {
	char dir[240];
	bool old;
} group;

static group groups[GROUPS];
static int group_count = -1; /* they hardly ever change */
static pthread_mutex_t storage_lock = PTHREAD_MUTEX_INITIALIZER;

static void add_groups(const char *root, const char *path, bool old)
{
	char at[200], file[300];
	size_t n = strnlen(path, sizeof at);

	if (n == 0 || n >= sizeof at || path[0] != '/')
		return;
	memcpy(at, path, n + 1);
	for (;;) {
		if (strcmp(at, "/") == 0)
			at[0] = '\0';
		group *const g = &groups[group_count];
		snprintf(g->dir, sizeof g->dir, "%s%s", root, at);
		g->old = old;
		snprintf(file, sizeof file, "%s/%s", g->dir, old ? "memory.limit_in_bytes" : "memory.max");
		if (group_count < GROUPS && access(file, F_OK) == 0 && ++group_count == GROUPS)
			return;
		char *const slash = strrchr(at, '/');
		if (slash == NULL)
			return;
		*slash = '\0';
	}
}

/* In a container the path may be that of the host; then only the root, which is the container's own group, is there. */
static void find_groups(void)
{
	char text[4096], *next;

	group_count = 0;
	if (read_file("/proc/self/cgroup", text, sizeof text) <= 0)
		return;
	for (char *line = text; line != NULL && *line != '\0' && group_count < GROUPS; line = next) {
		if ((next = strchr(line, '\n')) != NULL)
			*next++ = '\0';
		char *const controllers = strchr(line, ':');
		char *const path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
		if (path == NULL)
			continue;
		if (strncmp(line, "0::", 3) == 0) {
			add_groups("/sys/fs/cgroup", path + 1, false);
			if (group_count < GROUPS)
				add_groups("/sys/fs/cgroup/unified", path + 1, false);
			continue;
		}
		*path = '\0';
		*controllers = ',';
		char list[200];
		snprintf(list, sizeof list, "%.150s,", controllers);
		if (strstr(list, ",memory,") != NULL)
			add_groups("/sys/fs/cgroup/memory", path + 1, true);
	}
}

/* group_left is how many bytes the group may still take; file pages that nobody uses count as free, the kernel drops them first. */
static uint64_t group_left(const group *g)
{
	char path[300], text[4096];
	uint64_t limit, usage, idle = 0;

	snprintf(path, sizeof path, "%.239s/%s", g->dir, g->old ? "memory.limit_in_bytes" : "memory.max");
	if (read_file(path, text, sizeof text) <= 0 || !number_after(text, "", &limit) || limit >= (uint64_t)1 << 60)
		return UINT64_MAX; /* "max", or version 1's word for it */
	snprintf(path, sizeof path, "%.239s/%s", g->dir, g->old ? "memory.usage_in_bytes" : "memory.current");
	if (read_file(path, text, sizeof text) <= 0 || !number_after(text, "", &usage))
		return UINT64_MAX;
	snprintf(path, sizeof path, "%.239s/memory.stat", g->dir);
	if (read_file(path, text, sizeof text) > 0)
		number_after(text, g->old ? "total_inactive_file " : "inactive_file ", &idle);
	return limit + idle > usage ? limit + idle - usage : 0;
}

/* memory_left is how many more bytes the machine and the control groups have; what cannot be read limits nothing. */
static uint64_t memory_left(void)
{
	char text[8192];
	uint64_t total, available, swap = 0, left = UINT64_MAX;

	if (read_file("/proc/meminfo", text, sizeof text) > 0 && number_after(text, "MemTotal:", &total) &&
	    number_after(text, "MemAvailable:", &available)) {
		number_after(text, "SwapFree:", &swap);
		total <<= 10;
		left = (available + swap) << 10;
		const uint64_t spare = total / 64 < (uint64_t)64 << 20 ? total / 64 : (uint64_t)64 << 20; /* for the machine to go on */
		left = left > spare ? left - spare : 0;
	}
	if (group_count < 0)
		find_groups();
	for (int i = 0; i < group_count; i++) {
		const uint64_t g = group_left(&groups[i]);
		left = g < left ? g : left;
	}
	return left;
}

/* admit refuses bytes that the machine or a control group does not have: the kernel would not refuse but kill. Best effort: others
 * allocate at the same time. The figures cost some 30 us and are kept for a while; small requests are added up until they make it worth while. */
static bool admit(uint64_t size)
{
	static uint64_t left, read_at, unchecked;
	bool ok = true;

	if (size < ADMIT_FROM && __atomic_add_fetch(&unchecked, size, __ATOMIC_RELAXED) < ADMIT_FROM)
		return true;
	pthread_mutex_lock(&storage_lock);
	if (size < ADMIT_FROM)
		size = __atomic_exchange_n(&unchecked, 0, __ATOMIC_RELAXED);
	const uint64_t now = pp__now_ns();
	if (read_at == 0 || now - read_at > FIGURES_MS * UINT64_C(1000000) || size > left) {
		left = memory_left();
		read_at = now;
	}
	if (size > left)
		ok = false;
	else if (left != UINT64_MAX)
		left -= size;
	pthread_mutex_unlock(&storage_lock);
	return ok;
}

int32_t pp__storage_reserve(int fd, uint64_t off, uint64_t size)
{
	PP__NO_CANCEL();
	if (!admit(size))
		return PP_ERR_NOMEM;
	while (size > 0) {
		const uint64_t step = size < RESERVE_STEP ? size : RESERVE_STEP;
		if (fallocate(fd, 0, (off_t)off, (off_t)step) == 0) {
			off += step;
			size -= step;
		} else if (errno != EINTR) {
			return errno == ENOMEM || errno == ENOSPC || errno == EFBIG || errno == EDQUOT ? PP_ERR_NOMEM : PP_ERR_SYSTEM;
		}
	}
	return PP_OK;
}

uint64_t pp__device_of(const struct stat *st)
{
	return (uint64_t)major(st->st_dev) << 32 | minor(st->st_dev);
}

bool pp__is_file(int fd, uint64_t device, uint64_t inode)
{
	struct stat st;

	return fstat(fd, &st) == 0 && pp__device_of(&st) == device && (uint64_t)st.st_ino == inode;
}

bool pp__heap_fd(const pp__heap *heap)
{
	return pp__is_file(heap->fd, heap->private->device, heap->private->inode);
}

int32_t pp__heap_reserve(pp__heap *heap, uint64_t off, uint64_t size)
{
	PP__NO_CANCEL();
	if (pp__heap_fd(heap))
		return pp__storage_reserve(heap->fd, off, size);
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), from = off / page * page;
	if (!admit(size))
		return PP_ERR_NOMEM;
	while (madvise(heap->base + from, (size_t)(off + size - from), MADV_POPULATE_WRITE) != 0)
		if (errno != EINTR && errno != EAGAIN)
			return errno == EINVAL ? PP_ERR_SYSTEM : PP_ERR_NOMEM; /* an old kernel; no memory */
	return PP_OK;
}

void pp__heap_punch(pp__heap *heap, uint64_t off, uint64_t size)
{
	PP__NO_CANCEL();
	if (!pp__heap_fd(heap)) {
		madvise(heap->base + off, (size_t)size, MADV_REMOVE);
		return;
	}
	while (fallocate(heap->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)size) != 0 && errno == EINTR)
		;
}

void pp__storage_forking(void)
{
	pthread_mutex_lock(&storage_lock);
}

void pp__storage_forked(bool child)
{
	if (child)
		storage_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	else
		pthread_mutex_unlock(&storage_lock);
}
