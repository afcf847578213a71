/* members.c - the table of the processes that take part (shm/members.go is the same in Go and has the bits), and the lock that names
 * its owner (shm/lock.go). */
#include "heap_private.h"
#include "wait.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#define PIDFS_MAGIC 0x50494446
#define GET_PID_NAMESPACE _IO(0xFF, 5) /* PIDFD_GET_PID_NAMESPACE */
#define TIME_NS_INIT_INO 0xEFFFFFFAu

enum { DEEP_MS = 20, BATCH = 64, OPEN_TRIES = 50, OPEN_PAUSE_NS = 2000000 };
#define SLICE_MIN_NS (PP__LOCK_SLICE_MIN_MILLIS * (uint64_t)1000000)
#define SLICE_MAX_NS (PP__LOCK_SLICE_MOST_MILLIS * (uint64_t)1000000)

_Static_assert(PP__MEMBERS_OFF + sizeof(pp__members_head) + PP__MEMBERS * 8 <= PP__SLABS_OFF, "the table of members fits");

static pp__members_head *members(const pp__heap *heap)
{
	return (pp__members_head *)(void *)(heap->base + PP__MEMBERS_OFF);
}

static uint64_t *slot_of(const pp__heap *heap, uint32_t i)
{
	return (uint64_t *)(void *)(heap->base + PP__MEMBERS_OFF + sizeof(pp__members_head)) + i;
}

/* member_word reads the word of a member; false if it is not there any more. */
static bool member_word(const pp__heap *heap, uint32_t owner, uint64_t *word_out)
{
	const uint32_t i = pp__owner_index(owner);

	if (i >= PP__MEMBERS)
		return false;
	*word_out = __atomic_load_n(slot_of(heap, i), __ATOMIC_SEQ_CST);
	return (*word_out & PP__MEMBER_TAKEN) != 0 && pp__member_owner(*word_out, i) == owner;
}

/* ---- which process a number names -------------------------------------------------------------------------------------- */

static int pidfd_open(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* pidfd_id reads the inode of a pidfd: since Linux 6.9 it names one process until the machine is booted again, and is the same for every
 * reader. Before, all pidfds have one inode in common: false. */
static bool pidfd_id(int fd, uint64_t *id_out)
{
	struct statfs fs;
	struct stat st;

	if (fstatfs(fd, &fs) != 0 || fs.f_type != PIDFS_MAGIC || fstat(fd, &st) != 0)
		return false;
	*id_out = (uint64_t)st.st_ino & PP__MEMBER_ID_MASK;
	return true;
}

/* What /proc/PID/stat says. */
typedef struct proc_stat {
	char state;
	long threads;
	uint64_t start; /* clock ticks after the boot, as the reader's time namespace has it */
} proc_stat;

static bool read_stat(pid_t pid, proc_stat *out)
{
	char path[48], text[1024];
	unsigned long long start;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n;
	while ((n = read(fd, text, sizeof text - 1)) < 0 && errno == EINTR)
		;
	close(fd);
	if (n <= 0)
		return false;
	text[n] = '\0';
	/* Field 2, the name, may hold anything; the last parenthesis ends it. */
	const char *const at = strrchr(text, ')');
	if (at == NULL || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d %llu", &out->state,
	                         &out->threads, &start) != 3)
		return false;
	out->start = start;
	return true;
}

bool pp__own_proc(void)
{
	PP__NO_CANCEL();
	char text[512], line[64];
	size_t length = 0; /* of the line so far, kept or not */
	long first = 0;    /* the number that /proc has for this process */
	bool well = false;

	const int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	for (ssize_t n; (n = read(fd, text, sizeof text)) != 0;) {
		if (n < 0 && errno == EINTR)
			continue;
		for (ssize_t i = 0; i < n; i++) {
			if (text[i] != '\n') {
				if (length < sizeof line - 1)
					line[length] = text[i];
				length++;
				continue;
			}
			line[length < sizeof line ? length : sizeof line - 1] = '\0';
			length = 0;
			char *end;
			if (strncmp(line, "Pid:", 4) == 0) {
				first = strtol(line + 4, NULL, 10);
				well = first == (long)getpid();
			} else if (strncmp(line, "NSpid:", 6) == 0) {
				/* One number for each namespace from that of /proc down to ours. */
				well = well && strtol(line + 6, &end, 10) == first && *end == '\0';
			}
		}
		if (n < 0)
			break;
	}
	close(fd);
	return well;
}

/* The time of day is the same in all time namespaces. So as long as it is as far from the time since
 * the boot as before, this process is in the namespace in which it has looked, or in one that differs
 * from it by less than a tick. A look takes longer than all else that a new pipe needs of the kernel. */
bool pp__boot_time(void)
{
	static int64_t seen; /* the difference in ns, with the answer in bit 0; 0: never looked */
	const int64_t second = 1000000000, tolerance = 1000000;
	struct timespec day, boot;
	struct stat st;

	if (clock_gettime(CLOCK_REALTIME, &day) != 0 || clock_gettime(CLOCK_BOOTTIME, &boot) != 0)
		return false;
	const int64_t now = (int64_t)(day.tv_sec - boot.tv_sec) * second + (day.tv_nsec - boot.tv_nsec);
	const int64_t before = __atomic_load_n(&seen, __ATOMIC_RELAXED);
	if (before != 0 && now - before < tolerance && before - now < tolerance)
		return (before & 1) != 0;
	const bool is = stat("/proc/self/ns/time", &st) != 0 ? errno == ENOENT : st.st_ino == TIME_NS_INIT_INO;
	__atomic_store_n(&seen, is ? now | 1 : now & ~(int64_t)1, __ATOMIC_RELAXED);
	return is;
}

uint64_t pp__process(pid_t pid)
{
	PP__NO_CANCEL();
	const int fd = pidfd_open(pid);
	uint64_t id = 0;
	uint32_t kind = PP__MEMBER_BY_START;
	proc_stat stat;

	if (pid <= 0 || (uint64_t)pid >= (uint64_t)1 << PP__MEMBER_PID_BITS || (fd < 0 && syscall(SYS_tgkill, pid, pid, 0) != 0 && errno == ESRCH)) {
		pp__fail(PP_ERR_UNSUPPORTED, "there is no process %d", (int)pid);
		if (fd >= 0)
			close(fd);
		return 0;
	}
	if (fd >= 0 && pidfd_id(fd, &id))
		kind = PP__MEMBER_BY_PIDFD;
	else if (pp__own_proc() && pp__boot_time() && read_stat(pid, &stat))
		id = stat.start & PP__MEMBER_ID_MASK;
	if (fd >= 0)
		close(fd);
	return pp__member_word_of((uint32_t)pid, id, kind);
}

/* another_start: it is proven that the process which has the number now started at another time than the one in word. */
static bool another_start(uint64_t word, const proc_stat *now)
{
	const uint64_t id = pp__member_id(word);

	return (word & PP__MEMBER_KINDS) == PP__MEMBER_BY_START && id != 0 && (now->start & PP__MEMBER_ID_MASK) != id && pp__boot_time();
}

/* ended_unseen does without a pidfd: a filter denies it, the kernel is older than 5.3, or there is no descriptor free. */
static bool ended_unseen(uint64_t word)
{
	const pid_t pid = (pid_t)pp__member_pid(word);
	siginfo_t child = {0};
	proc_stat now;

	/* Not kill(2), which also knows the numbers of threads: of this number's group, is this thread there? */
	if (syscall(SYS_tgkill, pid, pid, 0) != 0 && errno == ESRCH)
		return true;
	/* A child of ours that nobody has collected. */
	if (waitid(P_PID, (id_t)pid, &child, WEXITED | WNOHANG | WNOWAIT) == 0 && child.si_pid == pid)
		return true;
	if (!read_stat(pid, &now))
		return false;
	/* The first thread of a process may end before the others: then it is a zombie, too. */
	const bool zombie = (now.state == 'Z' || now.state == 'X') && now.threads <= 1;
	return (zombie || another_start(word, &now)) && pp__own_proc();
}

bool pp__process_gone(uint64_t word)
{
	PP__NO_CANCEL();
	const pid_t pid = (pid_t)pp__member_pid(word);
	uint64_t id;
	proc_stat now;

	if (pid <= 0)
		return true;
	const int fd = pidfd_open(pid); /* before anything else: what it names cannot change any more */
	if (fd < 0)
		return errno == ESRCH || ended_unseen(word);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int n;
	while ((n = poll(&p, 1, 0)) < 0 && errno == EINTR)
		;
	bool gone = n == 1 && (p.revents & POLLIN) != 0;
	/* A process with this number lives. Only what proves that it is another one counts now; that /proc does not show it proves nothing. */
	if (!gone && (word & PP__MEMBER_KINDS) == PP__MEMBER_BY_PIDFD)
		gone = pidfd_id(fd, &id) && id != pp__member_id(word);
	else if (!gone)
		gone = read_stat(pid, &now) && another_start(word, &now) && pp__own_proc();
	close(fd);
	return gone;
}

typedef enum { MAPS_UNKNOWN, MAPS_WITH, MAPS_WITHOUT } maps_look;

/* look_at_maps looks for a file among the mappings of a process. About 150 us. */
static maps_look look_at_maps(pid_t pid, uint64_t device, uint64_t inode)
{
	char path[32], text[4096];
	size_t kept = 0, lines = 0;
	bool tail = false; /* of a line too long for text: the part that matters was seen */

	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return MAPS_UNKNOWN;
	for (;;) {
		const ssize_t n = read(fd, text + kept, sizeof text - 1 - kept);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			close(fd);
			return n == 0 && kept == 0 && lines > 0 ? MAPS_WITHOUT : MAPS_UNKNOWN;
		}
		kept += (size_t)n;
		text[kept] = '\0';
		char *line = text, *end;
		while ((end = memchr(line, '\n', kept - (size_t)(line - text))) != NULL || (line == text && kept == sizeof text - 1)) {
			/* address perms offset device inode path */
			unsigned long long is;
			unsigned major, minor;
			if (end != NULL)
				*end = '\0';
			if (!tail) {
				const int fields = sscanf(line, "%*s %*s %*s %x:%x %llu", &major, &minor, &is);
				if (fields != 3 || (is == inode && ((uint64_t)major << 32 | minor) == device)) {
					close(fd);
					return fields != 3 ? MAPS_UNKNOWN : MAPS_WITH;
				}
				lines++;
			}
			tail = end == NULL;
			if (tail) {
				line = text + kept;
				break;
			}
			line = end + 1;
		}
		kept -= (size_t)(line - text);
		memmove(text, line, kept);
	}
}

bool pp__unmapped(pid_t pid, uint64_t device, uint64_t inode)
{
	PP__NO_CANCEL();
	return look_at_maps(pid, device, inode) == MAPS_WITHOUT && pp__own_proc() && look_at_maps(getpid(), device, inode) == MAPS_WITH;
}

/* pid_space finds a number for the pid namespace, 0 if it cannot. A child whose parent still has the number that it knew itself by is in the
 * parent's: after a chroot there may be no /proc to ask. */
static uint64_t pid_space(void)
{
	static uint64_t known;
	static pid_t known_by;
	static uint32_t known_forks;
	PP__NO_CANCEL();
	const pid_t pid = getpid(), by = __atomic_load_n(&known_by, __ATOMIC_ACQUIRE);
	struct stat st;
	uint64_t space = 0;

	if (stat("/proc/self/ns/pid", &st) == 0) {
		space = (uint64_t)st.st_ino;
	} else {
		const int fd = pidfd_open(pid);
		const int ns = fd >= 0 ? ioctl(fd, GET_PID_NAMESPACE, 0) : -1; /* Linux 6.11 */
		if (ns >= 0 && fstat(ns, &st) == 0)
			space = (uint64_t)st.st_ino;
		else if (by > 0 && (__atomic_load_n(&known_forks, __ATOMIC_RELAXED) == pp__forks || by == getppid()))
			space = __atomic_load_n(&known, __ATOMIC_RELAXED);
		if (ns >= 0)
			close(ns);
		if (fd >= 0)
			close(fd);
	}
	if (space != 0) {
		__atomic_store_n(&known, space, __ATOMIC_RELAXED);
		__atomic_store_n(&known_forks, pp__forks, __ATOMIC_RELAXED);
		__atomic_store_n(&known_by, pid, __ATOMIC_RELEASE);
	}
	return space;
}

int32_t pp__members_in(pp__heap *heap)
{
	pp__members_head *const head = members(heap);
	const uint64_t space = pid_space();
	uint64_t expected = 0;

	if (space == 0)
		return pp__fail(PP_ERR_UNSUPPORTED, "the pid namespace of this process cannot be determined: mount /proc, or use Linux 6.11");
	if (!__atomic_compare_exchange_n(&head->space, &expected, space, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) && expected != space)
		return pp__fail(PP_ERR_UNSUPPORTED,
		                "the shared heap belongs to another pid namespace; process liveness cannot be determined from here");
	expected = 0;
	__atomic_compare_exchange_n(&head->id, &expected, pp__random() | 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return PP_OK;
}

static int lock_file(int fd, int how)
{
	int result;

	while ((result = flock(fd, how)) != 0 && errno == EINTR)
		;
	return result;
}

/* Each opener holds a shared lock on its own open file description: it ends when the last process that has the description, or maps the
 * file by it, has ended. So who gets the exclusive lock is alone. Who does not get it has lost the shared one, too (flock(2)): nobody goes on without that, or
 * the next from elsewhere would believe to be alone. And the other may be one that has just come here: so it asks more than once, after a pause without a lock. */
int32_t pp__members_open(pp__heap *heap)
{
	pp__members_head *const head = members(heap);
	const uint64_t space = pid_space();

	for (int tries = 0; lock_file(heap->fd, LOCK_SH) == 0; tries++) {
		const uint64_t is = __atomic_load_n(&head->space, __ATOMIC_SEQ_CST);
		if (space == 0 || is == 0 || is == space || tries == OPEN_TRIES)
			return pp__members_in(heap); /* which says what is wrong */
		if (lock_file(heap->fd, LOCK_EX | LOCK_NB) != 0) {
			if (errno != EWOULDBLOCK)
				break;
			nanosleep(&(struct timespec){0, (long)(OPEN_PAUSE_NS / 2 + pp__random() % OPEN_PAUSE_NS)}, NULL);
			continue;
		}
		/* Between the two locks another one may have come first. */
		if (__atomic_load_n(&head->space, __ATOMIC_SEQ_CST) != is)
			continue;
		for (uint32_t i = 0; i < PP__MEMBERS; i++) {
			const uint64_t word = __atomic_load_n(slot_of(heap, i), __ATOMIC_SEQ_CST);
			if ((word & PP__MEMBER_TAKEN) != 0)
				pp__members_revoke(heap, pp__member_owner(word, i), word);
		}
		__atomic_store_n(&head->space, space, __ATOMIC_SEQ_CST);
	}
	return pp__fail(PP_ERR_SYSTEM, "flock: %s", strerror(errno));
}

bool pp__members_current(const pp__heap *heap, uint32_t owner)
{
	uint64_t word;

	return member_word(heap, owner, &word);
}

bool pp__members_still(const pp__heap *heap, uint32_t owner, uint64_t word)
{
	uint64_t is;

	return member_word(heap, owner, &is) && is == word;
}

bool pp__heap_knows(uint64_t table, uint32_t owner)
{
	bool known = false;

	pthread_mutex_lock(&pp__heaps_lock);
	for (pp__heap *h = pp__heaps; h != NULL && !known; h = h->private->next) {
		if (__atomic_load_n(&members(h)->id, __ATOMIC_RELAXED) != table)
			continue;
		struct pp__heap_private *const p = h->private;
		known = __atomic_load_n(&h->me, __ATOMIC_SEQ_CST) == owner || __atomic_load_n(&p->joining, __ATOMIC_SEQ_CST) == owner ||
		        __atomic_load_n(&p->fork_owner, __ATOMIC_SEQ_CST) == owner;
		for (uint32_t i = 0; i < PP__NURSERIES && !known; i++)
			known = __atomic_load_n(&p->nursery[i].owner, __ATOMIC_SEQ_CST) == owner;
	}
	pthread_mutex_unlock(&pp__heaps_lock);
	return known;
}

bool pp__members_gone(pp__heap *heap, uint32_t owner, bool deep)
{
	uint64_t word;

	if (pp__in_flight(owner))
		return false;
	if (!member_word(heap, owner, &word))
		return true;
	if (pp__process_gone(word))
		return true;
	const int32_t pid = (int32_t)pp__member_pid(word);
	/* Ours: either we know of it, or the program that this process executed before had it. */
	if (pid == getpid())
		return !pp__heap_knows(__atomic_load_n(&members(heap)->id, __ATOMIC_RELAXED), owner);
	return deep && pp__unmapped(pid, heap->private->device, heap->private->inode);
}

bool pp__gone(pp__heap *heap, uint32_t owner)
{
	return pp__members_gone(heap, owner & ~PP__SLEEPERS, true);
}

int32_t pp__owner_pid(const pp__heap *heap, uint32_t owner)
{
	uint64_t word;

	return member_word(heap, owner & ~PP__SLEEPERS, &word) ? (int32_t)pp__member_pid(word) : 0;
}

uint32_t pp__members_take(pp__heap *heap, uint32_t *before, uint64_t *word_out, uint32_t *dead_out)
{
	const uint64_t who = pp__process(getpid());

	for (uint32_t i = 0; who != 0 && i < PP__MEMBERS; i++) {
		uint64_t old = __atomic_load_n(slot_of(heap, i), __ATOMIC_SEQ_CST);
		const bool taken = (old & PP__MEMBER_TAKEN) != 0;
		if (taken && (dead_out == NULL || !pp__members_gone(heap, pp__member_owner(old, i), true)))
			continue;
		const uint32_t dead = taken ? pp__member_owner(old, i) : 0;
		const uint64_t word = who | pp__member_next(old);
		const uint32_t owner = pp__member_owner(word, i);
		if (pp__in_flight(owner))
			continue;
		/* First: another thread that meets the owner must know that it is ours. */
		__atomic_store_n(before, owner, __ATOMIC_SEQ_CST);
		if (__atomic_compare_exchange_n(slot_of(heap, i), &old, word, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			if (word_out != NULL)
				*word_out = word;
			if (dead_out != NULL)
				*dead_out = dead;
			return owner;
		}
	}
	__atomic_store_n(before, 0, __ATOMIC_SEQ_CST);
	if (who != 0)
		pp__fail(PP_ERR_NOMEM, "all %u places of the table of members are taken", PP__MEMBERS);
	return 0;
}

/* replace lets the place of an owner hold `to`, if it holds word: of the same generation, as the owner stays what it is. */
static bool replace(const pp__heap *heap, uint32_t owner, uint64_t word, uint64_t to)
{
	const uint32_t i = pp__owner_index(owner);

	return __atomic_compare_exchange_n(slot_of(heap, i), &word, (to & ~PP__MEMBER_GEN_MASK) | (word & PP__MEMBER_GEN_MASK), false,
	                                   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void vacate(const pp__heap *heap, uint32_t owner, uint64_t word)
{
	replace(heap, owner, word, 0);
}

void pp__members_leave(pp__heap *heap, uint32_t owner)
{
	uint64_t word;

	if (member_word(heap, owner, &word))
		vacate(heap, owner, word);
}

bool pp__members_rename(pp__heap *heap, uint32_t owner, uint64_t word)
{
	const uint64_t who = pp__process(getpid());

	return who != 0 && replace(heap, owner, word, who);
}

bool pp__members_revoke(pp__heap *heap, uint32_t owner, uint64_t word)
{
	return replace(heap, owner, word, PP__MEMBER_TAKEN); /* by nobody */
}

/* bury sweeps behind members that are proven dead and frees their places: not before, an owner is not given again before that. First their places name nobody any more, else a
 * forked child could come for one that its parent took for it, while that is swept. Who dies in the middle of this has it done by the next who looks. */
static void bury(pp__heap *heap, uint32_t *dead, uint64_t *words, uint32_t n)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < n; i++)
		if (pp__members_revoke(heap, dead[i], words[i])) {
			dead[left] = dead[i];
			words[left++] = (words[i] & PP__MEMBER_GEN_MASK) | PP__MEMBER_TAKEN;
		}
	if (left == 0)
		return;
	pp__sweep(heap, dead, left);
	for (uint32_t i = 0; i < left; i++)
		vacate(heap, dead[i], words[i]);
}

void pp__reap(pp__heap *heap, uint32_t most, bool deep)
{
	uint32_t dead[BATCH], n = 0;
	uint64_t words[BATCH];
	struct pp__heap_private *const p = heap->private;
	uint32_t i = __atomic_load_n(&p->reap_cursor, __ATOMIC_RELAXED);

	for (uint32_t seen = 0, looked = 0; seen < PP__MEMBERS && looked < most; seen++) {
		i = (i + 1) % PP__MEMBERS;
		const uint64_t word = __atomic_load_n(slot_of(heap, i), __ATOMIC_SEQ_CST);
		const uint32_t owner = pp__member_owner(word, i);
		if ((word & PP__MEMBER_TAKEN) == 0)
			continue;
		if (owner == __atomic_load_n(&heap->me, __ATOMIC_RELAXED)) {
			/* We joined when no descriptor was free, so that our id could not be found. */
			if ((word & PP__MEMBER_KINDS) == PP__MEMBER_BY_START && pp__member_id(word) == 0)
				pp__members_rename(heap, owner, word);
			continue;
		}
		looked++;
		if (!pp__members_gone(heap, owner, deep))
			continue;
		dead[n] = owner;
		words[n++] = word;
		if (n == BATCH) {
			bury(heap, dead, words, n);
			n = 0;
		}
	}
	__atomic_store_n(&p->reap_cursor, i, __ATOMIC_RELAXED);
	bury(heap, dead, words, n);
}

/* What the program that this process executed before has left nobody else can tell for dead, once we map the heap again. */
static void reap_own(pp__heap *heap)
{
	const uint64_t table = __atomic_load_n(&members(heap)->id, __ATOMIC_RELAXED);
	const uint64_t pid = (uint64_t)getpid();
	uint32_t dead[BATCH], n = 0;
	uint64_t words[BATCH];

	for (uint32_t i = 0; i < PP__MEMBERS; i++) {
		const uint64_t word = __atomic_load_n(slot_of(heap, i), __ATOMIC_SEQ_CST);
		if ((word & PP__MEMBER_TAKEN) == 0 || pp__member_pid(word) != (uint32_t)pid || pp__heap_knows(table, pp__member_owner(word, i)))
			continue;
		dead[n] = pp__member_owner(word, i);
		words[n++] = word;
		if (n == BATCH)
			break;
	}
	bury(heap, dead, words, n);
}

static __thread bool joining; /* sweeping destroys objects, and that asks for an owner again */

uint32_t pp__join_slow(pp__heap *heap)
{
	struct pp__heap_private *const p = heap->private;

	if (joining) {
		pp__fail(PP_ERR_STATE, "not a member yet");
		return 0;
	}
	pthread_mutex_lock(&p->join_lock);
	uint32_t me = heap->me, dead = 0;
	const bool joined = me != 0;
	if (!joined) {
		joining = true;
		if (pp__members_in(heap) == PP_OK) {
			me = pp__members_take(heap, &p->joining, NULL, NULL);
			if (me == 0)
				me = pp__members_take(heap, &p->joining, NULL, &dead);
		}
		__atomic_store_n(&heap->me, me, __ATOMIC_SEQ_CST);
		__atomic_store_n(&p->joining, 0, __ATOMIC_SEQ_CST);
		joining = false;
	}
	pthread_mutex_unlock(&p->join_lock);
	if (me != 0 && !joined) {
		if (dead != 0)
			pp__sweep(heap, &dead, 1);
		reap_own(heap);
		pp__reap(heap, 16, false);
	}
	return me;
}

/* ---- the lock ------------------------------------------------------------------------------------------------------------ */

void pp__mutex_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* owner_gone looks whether the owner of a lock is dead. Who only tries may try often: then the memory map is read only now and then. */
static bool owner_gone(pp__heap *heap, uint32_t dead, bool trying)
{
	struct pp__heap_private *const p = heap->private;
	const uint64_t now = pp__now_ns();
	const bool deep = !trying || now - __atomic_load_n(&p->deep_at, __ATOMIC_RELAXED) >= DEEP_MS * UINT64_C(1000000);

	if (trying && deep)
		__atomic_store_n(&p->deep_at, now, __ATOMIC_RELAXED);
	return pp__members_gone(heap, dead, deep);
}

int32_t pp__mutex_slow(pp__heap *heap, uint32_t *word, uint64_t deadline, pp__resolve_fn *resolve, void *object, bool *recovered)
{
	const uint32_t me = pp__join(heap);
	uint64_t slice = SLICE_MIN_NS;

	if (recovered != NULL)
		*recovered = false;
	if (me == 0)
		return pp__failed();
	for (uint32_t i = 0; i < PP__LOCK_SPINS; i++) {
		uint32_t free = 0;
		if (__atomic_load_n(word, __ATOMIC_RELAXED) == 0 &&
		    __atomic_compare_exchange_n(word, &free, me, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			return PP_OK;
		pp__pause();
	}
	/* From here on the lock is taken with the sleepers' bit: there may be others, and only the bit has them woken. */
	const uint32_t mine = me | PP__SLEEPERS;
	for (;;) {
		uint32_t v = __atomic_load_n(word, __ATOMIC_SEQ_CST);
		if (v == 0) {
			if (__atomic_compare_exchange_n(word, &v, mine, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
				return PP_OK;
			continue;
		}
		if (deadline != 0) {
			if ((v & PP__SLEEPERS) == 0 &&
			    !__atomic_compare_exchange_n(word, &v, v | PP__SLEEPERS, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
				continue;
			v |= PP__SLEEPERS;
			const uint64_t now = deadline == UINT64_MAX ? 0 : pp__now_ns();
			uint64_t left = deadline > now ? deadline - now : 0;
			left = left < slice ? left : slice;
			if (left > 0) {
				const int32_t how = pp__futex_wait(word, v, left);
				if (how == PP_ERR_INTERRUPTED)
					return pp__fail(how, "a signal handler ran");
				if (how == PP_OK)
					continue;
			}
			slice = 2 * slice < SLICE_MAX_NS ? 2 * slice : SLICE_MAX_NS;
		}
		/* Nothing for a while: the owner may be dead, or whoever was woken before us. */
		const uint32_t dead = v & ~PP__SLEEPERS;
		if (dead != me && __atomic_load_n(word, __ATOMIC_SEQ_CST) == v && owner_gone(heap, dead, deadline == 0)) {
			if (resolve != NULL)
				resolve(heap, object, dead);
			if (__atomic_compare_exchange_n(word, &v, mine, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
				if (recovered != NULL)
					*recovered = true;
				return PP_OK;
			}
		}
		if (deadline != UINT64_MAX && (deadline == 0 || pp__now_ns() >= deadline)) {
			uint32_t free = 0;
			if (__atomic_compare_exchange_n(word, &free, mine, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
				return PP_OK;
			return PP_ERR_TIMEOUT;
		}
	}
}

uint64_t pp__deadline(int64_t timeout_ms)
{
	if (timeout_ms == 0 || timeout_ms == PP_TRY)
		return 0;
	if (timeout_ms < 0)
		return UINT64_MAX;
	const uint64_t now = pp__now_ns();
	return (uint64_t)timeout_ms > (UINT64_MAX - 1 - now) / 1000000u ? UINT64_MAX : now + (uint64_t)timeout_ms * 1000000u;
}
