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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

enum { SLOT_BITS = 12, GEN_SHIFT = 2, GEN_BITS = 19, START_SHIFT = 21, START_BITS = 21, PID_SHIFT = 42, PID_BITS = 22, TAKEN = 1 };
enum { LOCK_SPINS = 40, DEEP_MS = 20, BATCH = 64 };
#define SLICE_MIN_NS ((uint64_t)1000000)
#define SLICE_MAX_NS ((uint64_t)160000000)
#define GEN_MASK (((uint64_t)1 << GEN_BITS) - 1)
#define START_MASK (((uint64_t)1 << START_BITS) - 1)

_Static_assert(PP__MEMBERS_OFF + sizeof(pp__members_head) + PP__MEMBERS * 8 <= PP__SLABS_OFF, "the table of members fits");

static pp__members_head *members(const pp__heap *heap)
{
	return (pp__members_head *)(void *)(heap->base + PP__MEMBERS_OFF);
}

static uint64_t *slot_of(const pp__heap *heap, uint32_t i)
{
	return (uint64_t *)(void *)(heap->base + PP__MEMBERS_OFF + sizeof(pp__members_head)) + i;
}

static uint32_t member_owner(uint64_t word, uint32_t i)
{
	return (uint32_t)(word >> GEN_SHIFT & GEN_MASK) << SLOT_BITS | (i + 1);
}

/* member_word reads the word of a member; false if it is not there any more. */
static bool member_word(const pp__heap *heap, uint32_t owner, uint64_t *word_out)
{
	const uint32_t i = (owner & ((1u << SLOT_BITS) - 1)) - 1;

	if (i >= PP__MEMBERS)
		return false;
	*word_out = __atomic_load_n(slot_of(heap, i), __ATOMIC_SEQ_CST);
	return (*word_out & TAKEN) != 0 && member_owner(*word_out, i) == owner;
}

/* start_time reads when a process started, /proc/PID/stat field 22: 0, or errno. */
static int start_time(const char *pid, uint64_t *start_out)
{
	char path[48], text[1024];

	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	ssize_t n;
	while ((n = read(fd, text, sizeof text - 1)) < 0 && errno == EINTR)
		;
	const int error = errno;
	close(fd);
	if (n <= 0)
		return n < 0 ? error : EIO;
	text[n] = '\0';
	/* Field 2, the name, may hold anything; the last parenthesis ends it. */
	const char *at = strrchr(text, ')');
	for (int field = 2; at != NULL && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (at == NULL)
		return EIO;
	*start_out = strtoull(at + 1, NULL, 10);
	return 0;
}

/* process_gone reports whether the process with this id and start time is proven dead: no process has the id, the one that has it started
 * at another time, or all its threads have ended (a zombie that nobody collected yet is dead too). What cannot be found out is no proof. */
static bool process_gone(int32_t pid, uint64_t start)
{
	PP__NO_CANCEL();
	char name[16];
	uint64_t is = 0;

	if (pid <= 0)
		return true;
	const int fd = (int)syscall(SYS_pidfd_open, pid, 0); /* before the start time: what it names cannot change any more */
	if (fd < 0 && (errno == ESRCH || (kill(pid, 0) != 0 && errno == ESRCH)))
		return true;
	snprintf(name, sizeof name, "%d", (int)pid);
	const int error = start_time(name, &is);
	bool gone = false;
	if (error == 0)
		gone = (is & START_MASK) != start;
	else if (error == ENOENT || error == ESRCH)
		gone = access("/proc/self/stat", F_OK) == 0; /* without /proc nothing has a start time */
	if (fd >= 0) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		int n;
		while (!gone && (n = poll(&p, 1, 0)) != 0) {
			if (n < 0 && errno == EINTR)
				continue;
			gone = n == 1 && (p.revents & POLLIN) != 0;
			break;
		}
		close(fd);
	}
	return gone;
}

/* unmapped reports whether it is proven that the process does not map the file: it executed another program, which keeps process id, start
 * time and pidfd. About 150 us. Maps that cannot be read prove nothing. */
static bool unmapped(int32_t pid, uint64_t device, uint64_t inode)
{
	PP__NO_CANCEL();
	char path[32], text[4096];
	size_t kept = 0, lines = 0;
	bool tail = false; /* of a line too long for text: the part that matters was seen */

	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	for (;;) {
		const ssize_t n = read(fd, text + kept, sizeof text - 1 - kept);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			close(fd);
			return n == 0 && kept == 0 && lines > 0;
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
				if (sscanf(line, "%*s %*s %*s %x:%x %llu", &major, &minor, &is) != 3 ||
				    (is == inode && ((uint64_t)major << 32 | minor) == device)) {
					close(fd);
					return false;
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

int32_t pp__members_in(pp__heap *heap)
{
	pp__members_head *const head = members(heap);
	struct stat st;
	uint64_t expected = 0;

	if (stat("/proc/self/ns/pid", &st) != 0)
		return pp__fail(PP_ERR_SYSTEM, "/proc/self/ns/pid: %s", strerror(errno));
	if (!__atomic_compare_exchange_n(&head->space, &expected, (uint64_t)st.st_ino, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) &&
	    expected != (uint64_t)st.st_ino)
		return pp__fail(PP_ERR_UNSUPPORTED, "the heap is used in another pid namespace: there is no telling who of there is dead");
	expected = 0;
	__atomic_compare_exchange_n(&head->id, &expected, pp__random() | 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return PP_OK;
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

	if (owner == PP__IN_FLIGHT)
		return false;
	if (!member_word(heap, owner, &word))
		return true;
	const int32_t pid = (int32_t)(word >> PID_SHIFT);
	if (process_gone(pid, word >> START_SHIFT & START_MASK))
		return true;
	/* Ours: either we know of it, or the program that this process executed before had it. */
	if (pid == getpid())
		return !pp__heap_knows(__atomic_load_n(&members(heap)->id, __ATOMIC_RELAXED), owner);
	return deep && unmapped(pid, heap->private->device, heap->private->inode);
}

bool pp__gone(pp__heap *heap, uint32_t owner)
{
	return pp__members_gone(heap, owner & ~PP__SLEEPERS, true);
}

int32_t pp__owner_pid(const pp__heap *heap, uint32_t owner)
{
	uint64_t word;

	return member_word(heap, owner & ~PP__SLEEPERS, &word) ? (int32_t)(word >> PID_SHIFT) : 0;
}

/* identity returns what a word says of this process, but for the generation; 0 with a message if that cannot be found out. */
static uint64_t identity(void)
{
	PP__NO_CANCEL();
	const pid_t pid = getpid();
	uint64_t start = 0;
	const int error = start_time("self", &start);

	if (error != 0 || (uint64_t)pid >= (uint64_t)1 << PID_BITS) {
		pp__fail(PP_ERR_UNSUPPORTED, "start time of process %d: %s", (int)pid, strerror(error != 0 ? error : EOVERFLOW));
		return 0;
	}
	return (uint64_t)pid << PID_SHIFT | (start & START_MASK) << START_SHIFT | TAKEN;
}

uint32_t pp__members_take(pp__heap *heap, uint32_t *before, uint64_t *word_out, uint32_t *dead_out)
{
	const uint64_t who = identity();

	for (uint32_t i = 0; who != 0 && i < PP__MEMBERS; i++) {
		uint64_t old = __atomic_load_n(slot_of(heap, i), __ATOMIC_SEQ_CST);
		const bool taken = (old & TAKEN) != 0;
		if (taken && (dead_out == NULL || !pp__members_gone(heap, member_owner(old, i), true)))
			continue;
		const uint32_t dead = taken ? member_owner(old, i) : 0;
		const uint64_t word = who | (((old >> GEN_SHIFT) + 1) & GEN_MASK) << GEN_SHIFT;
		const uint32_t owner = member_owner(word, i);
		if (owner == PP__IN_FLIGHT)
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
	const uint32_t i = (owner & ((1u << SLOT_BITS) - 1)) - 1;

	return __atomic_compare_exchange_n(slot_of(heap, i), &word, (to & ~(GEN_MASK << GEN_SHIFT)) | (word & (GEN_MASK << GEN_SHIFT)), false,
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
	const uint64_t who = identity();

	return who != 0 && replace(heap, owner, word, who);
}

bool pp__members_revoke(pp__heap *heap, uint32_t owner, uint64_t word)
{
	return replace(heap, owner, word, TAKEN); /* by nobody */
}

/* bury sweeps behind members that are proven dead and frees their places: not before, an owner is not given again before that. First their places name nobody any more, else a
 * forked child could come for one that its parent took for it, while that is swept. Who dies in the middle of this has it done by the next who looks. */
static void bury(pp__heap *heap, uint32_t *dead, uint64_t *words, uint32_t n)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < n; i++)
		if (pp__members_revoke(heap, dead[i], words[i])) {
			dead[left] = dead[i];
			words[left++] = (words[i] & (GEN_MASK << GEN_SHIFT)) | TAKEN;
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
		const uint32_t owner = member_owner(word, i);
		if ((word & TAKEN) == 0 || owner == __atomic_load_n(&heap->me, __ATOMIC_RELAXED))
			continue;
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
		if ((word & TAKEN) == 0 || word >> PID_SHIFT != pid || pp__heap_knows(table, member_owner(word, i)))
			continue;
		dead[n] = member_owner(word, i);
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
		return PP_ERR_NOMEM;
	for (int i = 0; i < LOCK_SPINS; i++) {
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
				const struct timespec t = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
				/* Not FUTEX_PRIVATE: the owner is another process. */
				if (syscall(SYS_futex, word, FUTEX_WAIT, v, &t, NULL, 0) == 0 || errno == EAGAIN)
					continue;
				if (errno == EINTR && !pp__interrupts())
					continue;
				if (errno == EINTR)
					return pp__fail(PP_ERR_INTERRUPTED, "a signal handler ran");
				if (errno != ETIMEDOUT)
					return pp__fail(PP_ERR_SYSTEM, "futex: %s", strerror(errno));
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
