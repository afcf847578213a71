/* storage.c - memory for ranges of a sparse file, asked for before it is touched: full memory is an error and neither SIGBUS nor the
 * end of some process by the kernel's hand. shm/storage_linux.go has the same in Go.
 *
 * The kernel grants what it does not have, and kills when that is touched. So each request is
 * granted here first, against the figures of the machine and of the control groups, less a reserve.
 * A look at the figures costs some 50 us and is good for FIGURES_MS. What a look has found a
 * process grants to itself until the next; of that, all processes of a heap together take at most a
 * quarter, which a word in the heap's head counts down. Requests are granted and reserved in steps,
 * which get smaller as memory does, so that little is granted that the figures do not show yet.
 *
 * The reserve is what growth leaves to others: of the machine's memory, and of each control group's
 * limit, max(256 MiB, 5 %), but at most max(8 MiB, 1/8). POLYPROC_MEMORY_RESERVE sets it. Swap does
 * not count as memory. */
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
#define RESERVE_STEP ((uint64_t)4 << 20)
#define AMPLE ((uint64_t)64 << 20) /* more than this left: pages that could be dropped need not be counted */
enum { GROUPS = 16, SHARED_PART = 4, OWN_PART = 64, STEP_PART = 8, BUDGET_TRIES = 4 };
#ifndef FIGURES_MS
#define FIGURES_MS 10
#endif

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

/* What was read of a file last, under storage_lock: a thread may have a stack of 16 KiB. */
static char contents[8192];

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
	char *next;

	group_count = 0;
	if (read_file("/proc/self/cgroup", contents, sizeof contents) <= 0)
		return;
	for (char *line = contents; line != NULL && *line != '\0' && group_count < GROUPS; line = next) {
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

/* The reserve that POLYPROC_MEMORY_RESERVE asks for: bytes with or without K, M, G or T, or a
 * percentage. */
static struct {
	bool read, set, percent;
	uint64_t value;
} wanted;

bool pp__parse_reserve(const char *text, bool *percent_out, uint64_t *value_out)
{
	static const char units[] = "KMGT";
	char *end;

	errno = 0;
	if (text[0] < '0' || text[0] > '9')
		return false;
	uint64_t value = strtoull(text, &end, 10);
	if (errno != 0)
		return false;
	*percent_out = *end == '%';
	if (*percent_out) {
		end++;
		if (value > 100)
			return false;
	} else if (*end != '\0') {
		const char *const unit = strchr(units, *end >= 'a' && *end <= 'z' ? *end - 'a' + 'A' : *end);
		if (unit == NULL || value > UINT64_MAX >> 10 * (unit - units + 1))
			return false;
		value <<= 10 * (unit - units + 1);
		end++;
	}
	*value_out = value;
	return *end == '\0';
}

/* reserve_of is how much of total, the machine's memory or a group's limit, is left to others. */
static uint64_t reserve_of(uint64_t total)
{
	if (!wanted.read) {
		const char *const text = secure_getenv("POLYPROC_MEMORY_RESERVE");
		wanted.set = text != NULL && pp__parse_reserve(text, &wanted.percent, &wanted.value);
		wanted.read = true;
	}
	if (wanted.set)
		return wanted.percent ? total / 100 * wanted.value : wanted.value;
	const uint64_t least = (uint64_t)256 << 20, little = (uint64_t)8 << 20;
	const uint64_t want = total / 20 > least ? total / 20 : least, most = total / 8 > little ? total / 8 : little;
	return want < most ? want : most;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static bool group_figure(const group *g, const char *name, uint64_t *out)
{
	char path[300], figure[64];

	snprintf(path, sizeof path, "%.239s/%s", g->dir, name);
	return read_file(path, figure, sizeof figure) > 0 && number_after(figure, "", out);
}

/* group_left is how many bytes the group may still take beyond its reserve. Above memory.high the
 * kernel kills nobody but lets everybody crawl. What version 1 limits together with swap is a limit
 * of its own. File pages that nobody uses count as free: the kernel drops them first. */
static uint64_t group_left(const group *g)
{
	char path[300];
	uint64_t limit = UINT64_MAX, high, both, usage, idle = 0, left;

	if (!group_figure(g, g->old ? "memory.limit_in_bytes" : "memory.max", &limit))
		limit = UINT64_MAX; /* "max" */
	if (!g->old && group_figure(g, "memory.high", &high))
		limit = high < limit ? high : limit;
	if (limit >= (uint64_t)1 << 60 || !group_figure(g, g->old ? "memory.usage_in_bytes" : "memory.current", &usage))
		return UINT64_MAX;
	left = minus(limit, usage);
	if (g->old && group_figure(g, "memory.memsw.limit_in_bytes", &high) && group_figure(g, "memory.memsw.usage_in_bytes", &both)) {
		both = minus(high, both);
		left = both < left ? both : left;
	}
	const uint64_t reserve = reserve_of(limit);
	if (minus(left, reserve) >= AMPLE)
		return left - reserve;
	snprintf(path, sizeof path, "%.239s/memory.stat", g->dir);
	if (read_file(path, contents, sizeof contents) > 0)
		number_after(contents, g->old ? "total_inactive_file " : "inactive_file ", &idle);
	return minus(left + idle, reserve);
}

/* memory_left is how many more bytes the machine and the control groups have beyond the reserve;
 * what cannot be read limits nothing. */
static uint64_t memory_left(void)
{
	uint64_t total, available, left = UINT64_MAX;

	if (read_file("/proc/meminfo", contents, sizeof contents) > 0 && number_after(contents, "MemTotal:", &total) &&
	    number_after(contents, "MemAvailable:", &available))
		left = minus(available << 10, reserve_of(total << 10));
	if (group_count < 0)
		find_groups();
	for (int i = 0; i < group_count; i++) {
		const uint64_t g = group_left(&groups[i]);
		left = g < left ? g : left;
	}
	return left;
}

static uint64_t step_of(uint64_t size, uint64_t left)
{
	uint64_t step = left / STEP_PART / PP__STORAGE_STEP * PP__STORAGE_STEP;

	step = step < PP__STORAGE_STEP ? PP__STORAGE_STEP : step < RESERVE_STEP ? step : RESERVE_STEP;
	return size < step ? size : step;
}

/* admit grants the first step of size bytes: how many it is; 0: the machine or a control group has
 * not got size bytes. budget is the word of the heap, NULL: there is none. */
static uint64_t admit(uint64_t *budget, uint64_t size)
{
	static uint64_t left, read_at, own; /* as this process has last seen it */
	const uint64_t part = budget == NULL ? OWN_PART : SHARED_PART;
	uint64_t step = 0;

	if (budget == NULL)
		budget = &own;
	pthread_mutex_lock(&storage_lock);
	for (int tries = 0; tries < BUDGET_TRIES; tries++) {
		uint64_t granted = __atomic_load_n(budget, __ATOMIC_SEQ_CST), rest = granted;
		step = step_of(size, left);
		if (read_at == 0 || pp__now_ns() - read_at > FIGURES_MS * UINT64_C(1000000) || size > left || step > granted) {
			left = memory_left();
			read_at = pp__now_ns();
			step = step_of(size, left);
			rest = left / part > step ? left / part : step;
		}
		if (size > left)
			step = 0;
		/* Another process that has taken something, or looked, meanwhile: once more, for the
		 * figures may not show it. */
		if (step == 0 || __atomic_compare_exchange_n(budget, &granted, rest - step, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			break;
	}
	if (left != UINT64_MAX)
		left -= step;
	pthread_mutex_unlock(&storage_lock);
	return step;
}

int32_t pp__storage_reserve(int fd, uint64_t *budget, uint64_t off, uint64_t size)
{
	PP__NO_CANCEL();
	while (size > 0) {
		const uint64_t step = admit(budget, size);
		if (step == 0)
			return errno = ENOMEM, PP_ERR_NOMEM;
		while (fallocate(fd, 0, (off_t)off, (off_t)step) != 0)
			if (errno != EINTR)
				return errno == ENOMEM || errno == ENOSPC || errno == EFBIG || errno == EDQUOT ? PP_ERR_NOMEM : PP_ERR_SYSTEM;
		off += step;
		size -= step;
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
	uint64_t *const budget = &pp__head(heap)->budget;

	if (pp__heap_fd(heap))
		return pp__storage_reserve(heap->fd, budget, off, size);
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), end = off + size;
	for (off = off / page * page; off < end;) {
		const uint64_t step = admit(budget, end - off);
		if (step == 0)
			return errno = ENOMEM, PP_ERR_NOMEM;
		while (madvise(heap->base + off, (size_t)step, MADV_POPULATE_WRITE) != 0)
			if (errno != EINTR && errno != EAGAIN)
				return errno == EINVAL ? PP_ERR_SYSTEM : PP_ERR_NOMEM; /* an old kernel; no memory */
		off += step;
	}
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
