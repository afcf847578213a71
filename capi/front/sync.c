/* sync.c - locks, semaphores, conditions, events and barriers in the family heap: see sync.h for layouts, algorithms and what a death leaves. */
#include "front.h"

#include "pins.h"
#include "spin.h"
#include "sync.h"
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Marks a commit point that sync.h names; tests/c/sync_killsweep_test.c tells from the words which of them a process had passed when it died. */
#define PP__POINT(name) ((void)0)

#define LOAD(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
#define CAS(p, from, to) cas64(p, from, to)
#define SLEEPERS ((uint64_t)PP__SYNC_SLEEPERS)
#define FOR_EVER UINT64_MAX

/* handle->words */
enum { SUSPECT = 0, SINCE = 1, TRIED = 2, PATIENCE = 3 };
enum { SPINS = 40, MORE_MOST = 4096, VERDICTS = 16, LOOKS = 4 };

static inline bool cas64(uint64_t *p, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static inline bool cas32(uint32_t *p, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static inline void *object_of(const pp__handle *handle)
{
	return pp__at(handle->heap, handle->off);
}

/* ---- sleeping ------------------------------------------------------------------------------------------------------------- */

/* A futex of 32 bits: the low half of a 64-bit word. Not FUTEX_PRIVATE: other processes. */
static uint32_t *low(uint64_t *word)
{
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layout is little-endian"
#endif
	return (uint32_t *)(void *)word;
}

static long wake(uint32_t *word, int n)
{
	const int saved = errno;
	const long woken = syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);

	errno = saved;
	return woken;
}

/* A wait for one object. */
typedef struct pace {
	pp__handle *handle;
	uint64_t *turn; /* NULL: the object has none */
	uint64_t deadline;
	uint64_t begin;
	uint64_t back; /* when a wait that the caller can continue returns PP_ERR_INTERRUPTED; FOR_EVER: it cannot be continued */
	uint64_t slice;
	uint32_t woken;
	uint32_t ticket;
	bool slept;     /* no newcomer any more */
	bool has_turn;
} pace;

static void pace_begin(pace *p, pp__handle *handle, uint64_t *turn, uint64_t deadline)
{
	*p = (pace){.handle = handle, .turn = turn, .deadline = deadline, .begin = pp__now_ns(), .back = FOR_EVER, .slice = PP__SYNC_SLICE_MIN_NS};
	p->ticket = (handle->heap->me * 0x9e3779b1u + pp__thread()) | 1;
}

static uint32_t ms(uint64_t ns)
{
	return (uint32_t)(ns / 1000000u);
}

/* pace_returns lets the wait return from time to time, see PP__SYNC_RETURN_NS. */
static void pace_returns(pace *p)
{
	p->back = p->begin + PP__SYNC_RETURN_NS;
}

/* take_turn lets newcomers wait, once this one has waited for long enough. */
static void take_turn(pace *p, uint64_t now)
{
	if (p->turn == NULL || (p->woken < PP__SYNC_PATIENCE && now - p->begin < PP__SYNC_PATIENT_NS))
		return;
	const uint64_t old = LOAD(p->turn);
	if (old != 0 && (uint32_t)old != p->ticket && (int32_t)((uint32_t)(old >> 32) - ms(now)) > 0)
		return;
	if (CAS(p->turn, old, (uint64_t)(ms(now) + 2 * ms(p->slice)) << 32 | p->ticket))
		p->has_turn = true;
}

/* pace_end is called when the wait is over, whatever came of it. */
static void pace_end(pace *p)
{
	if (!p->has_turn)
		return;
	const uint64_t old = LOAD(p->turn);
	if ((uint32_t)old == p->ticket && CAS(p->turn, old, 0))
		wake(low(p->turn), INT_MAX);
}

/* pace_queue has newcomers wait until it is nobody's turn. PP_OK: take part, also when the time is over; PP_ERR_INTERRUPTED. */
static int32_t pace_queue(pace *p)
{
	while (!p->slept) {
		const uint64_t turn = LOAD(p->turn), now = pp__now_ns();
		const int32_t left = (int32_t)((uint32_t)(turn >> 32) - ms(now));
		if (turn == 0 || now >= p->deadline)
			return PP_OK;
		if (left <= 0 || left > 1000) {
			if (CAS(p->turn, turn, 0))
				wake(low(p->turn), INT_MAX);
			continue;
		}
		uint64_t ns = (uint64_t)left * 1000000u;
		if (ns > p->deadline - now)
			ns = p->deadline - now;
		if (pp__futex_wait(low(p->turn), (uint32_t)turn, ns) == PP_ERR_INTERRUPTED)
			return PP_ERR_INTERRUPTED;
	}
	return PP_OK;
}

enum { SLICE_OVER = 1 };

/* pace_spin looks before the first sleep. Not where there are turns: who holds a lock holds it for longer, or is gone after SPINS. */
static bool pace_spin(pace *p, const uint32_t *word, uint32_t v)
{
	uint64_t began;

	return !p->slept && p->turn == NULL && pp__spin_on(&p->handle->words[PATIENCE], word, v, &began);
}

/* pace_sleep sleeps while *word is v, for a slice. PP_OK: look again; SLICE_OVER: look whether somebody is dead; PP_ERR_TIMEOUT: that too, the
 * deadline is over; PP_ERR_INTERRUPTED; PP_ERR_CLOSED: the handle was freed. */
static int32_t pace_sleep(pace *p, uint32_t *word, uint32_t v)
{
	uint64_t now = pp__now_ns();
	int32_t status = PP_ERR_TIMEOUT;

	take_turn(p, now);
	if (now < p->deadline && pace_spin(p, word, v))
		return PP_OK;
	p->slept = true;
	if (now < p->deadline) {
		status = pp__futex_wait(word, v, p->slice < p->deadline - now ? p->slice : p->deadline - now);
		if (p->turn == NULL)
			pp__slept(&p->handle->words[PATIENCE], p->begin);
	}
	if (status == PP_ERR_INTERRUPTED)
		return status;
	if (LOAD(&p->handle->number) == 0)
		return pp__fail(PP_ERR_CLOSED, "the handle was freed during the wait");
	if (status == PP_OK) {
		p->woken += 1;
		return PP_OK;
	}
	if (p->slice < PP__SYNC_SLICE_MAX_NS)
		p->slice *= 2;
	now = pp__now_ns();
	return now >= p->deadline ? PP_ERR_TIMEOUT : now >= p->back ? PP_ERR_INTERRUPTED : SLICE_OVER;
}

/* suspicious reports, to one that does not wait, that the object has been in the way in this same state for so long that somebody may be dead. */
static bool suspicious(pp__handle *handle, uint64_t state)
{
	const uint64_t now = pp__now_ns(), since = __atomic_load_n(&handle->words[SINCE], __ATOMIC_RELAXED);
	const bool same = __atomic_load_n(&handle->words[SUSPECT], __ATOMIC_RELAXED) == state;

	if (same && now - since < PP__SYNC_SLICE_MIN_NS)
		return false;
	__atomic_store_n(&handle->words[SUSPECT], state, __ATOMIC_RELAXED);
	__atomic_store_n(&handle->words[SINCE], now, __ATOMIC_RELAXED);
	return same;
}

/* departed is the cheap half of pp__gone: there is no process with this number at all. */
static bool departed(const pp__heap *heap, uint32_t owner)
{
	const int saved = errno;
	const int32_t pid = pp__owner_pid(heap, owner);
	const bool none = pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH);

	errno = saved;
	return none;
}

/* Verdicts of pp__gone, for a look at many cells. */
typedef struct verdicts {
	uint32_t n;
	uint32_t owner[VERDICTS];
	bool gone[VERDICTS];
} verdicts;

static bool gone(pp__heap *heap, uint32_t owner, verdicts *known)
{
	if (owner == heap->me)
		return false;
	for (uint32_t i = 0; i < known->n; i++)
		if (known->owner[i] == owner)
			return known->gone[i];
	const bool verdict = pp__gone(heap, owner);
	if (known->n < VERDICTS) {
		known->owner[known->n] = owner;
		known->gone[known->n++] = verdict;
	}
	return verdict;
}

static int32_t corrupt(const pp__handle *handle, const char *what, uint64_t value)
{
	return pp__fail(PP_ERR_CORRUPT, "%s at %#llx: %#llx cannot be", what, (unsigned long long)handle->off, (unsigned long long)value);
}

static int32_t timed_out(void)
{
	return pp__fail(PP_ERR_TIMEOUT, "timed out");
}

static int32_t interrupted(void)
{
	return pp__fail(PP_ERR_INTERRUPTED, "a signal handler ran");
}

/* ---- lock ----------------------------------------------------------------------------------------------------------------- */

static uint64_t my_word(const pp__heap *heap)
{
	return (uint64_t)pp__thread() << 32 | heap->me;
}

static bool is_poisoned(uint64_t v)
{
	return ((uint32_t)v & ~PP__SYNC_SLEEPERS) == PP__LOCK_POISONED;
}

static int32_t owner_died(void)
{
	return pp__fail(PP_ERR_OWNER_DIED, "the holder of the lock has died, and what it protects may be half done. The lock was not acquired: "
	                                   "acquire it by pp_lock_recover, or create it with PP_LOCK_RECOVER");
}

/* A call that takes a lock. */
typedef struct taking {
	pp__handle *handle;
	pp__lock *lock;
	uint64_t mine; /* the word that says that this thread holds the lock */
	bool recovers; /* pp_lock_recover */
	bool anyway;   /* a dead holder does not matter: pp_lock_recover, or a lock with PP__SYNC_RECOVER */
} taking;

/* holder_ended reports whether the holder in v is a thread of this process that has ended, for a call that recovers an RLock. */
static bool holder_ended(const taking *t, uint64_t v)
{
	return t->recovers && (t->lock->object.flags & PP__SYNC_RECURSIVE) != 0 && ((uint32_t)v & ~PP__SYNC_SLEEPERS) == t->handle->heap->me &&
	       pp__thread_ended((uint32_t)(v >> 32));
}

/* lock_inherit is called when the lock has been held in v for some time. PP_OK: the holder was dead, the lock is taken; PP_ERR_OWNER_DIED; PP_ERR_TIMEOUT: the holder
 * lives, or v has changed. */
static int32_t lock_inherit(const taking *t, uint64_t v)
{
	const uint32_t owner = (uint32_t)v & ~PP__SYNC_SLEEPERS;
	uint64_t *const word = &t->lock->word;

	if (!holder_ended(t, v) && (owner == t->handle->heap->me || !pp__gone(t->handle->heap, owner)))
		return PP_ERR_TIMEOUT;
	if (t->anyway) {
		if (!CAS(word, v, t->mine | (v & SLEEPERS)))
			return PP_ERR_TIMEOUT;
		PP__POINT(lock_inherited);
		return PP_OK;
	}
	if (!CAS(word, v, PP__LOCK_POISONED))
		return PP_ERR_TIMEOUT;
	PP__POINT(lock_poisoned);
	if ((v & SLEEPERS) != 0)
		wake(low(word), INT_MAX);
	return owner_died();
}

/* lock_try is for a call that does not wait, or not any longer. mine may have the sleepers' bit. */
static int32_t lock_try(const taking *t, uint64_t mine)
{
	uint64_t *const word = &t->lock->word;
	int32_t status;

	if (CAS(word, 0, mine)) {
		PP__POINT(lock_taken);
		return PP_OK;
	}
	const uint64_t v = LOAD(word);
	if (is_poisoned(v)) {
		if (!t->anyway)
			return owner_died();
		if (!CAS(word, v, mine))
			return timed_out();
		PP__POINT(lock_recovered);
		return PP_OK;
	}
	if (v != 0 && ((uint32_t)v & ~PP__SYNC_SLEEPERS) == 0)
		return corrupt(t->handle, "lock", v);
	if (v != 0 && (holder_ended(t, v) || suspicious(t->handle, v)) && (status = lock_inherit(t, v)) != PP_ERR_TIMEOUT)
		return status;
	return timed_out();
}

static int32_t lock_slow(const taking *t, uint64_t deadline)
{
	pp__handle *const handle = t->handle;
	pp__lock *const lock = t->lock;
	const uint64_t mine = t->mine;
	pace p;
	int32_t status;

	if (deadline == 0)
		return lock_try(t, mine);
	for (int i = 0; i < SPINS && LOAD(&lock->turn) == 0; i++) {
		if (LOAD(&lock->word) == 0 && CAS(&lock->word, 0, mine)) {
			PP__POINT(lock_taken);
			return PP_OK;
		}
		pp__pause();
	}
	pace_begin(&p, handle, &lock->turn, deadline);
	for (;;) {
		if ((status = pace_queue(&p)) != PP_OK)
			break;
		uint64_t v = LOAD(&lock->word);
		if (v == 0) {
			/* Who has slept leaves the bit: there may be others, and only the bit has them woken. */
			if (CAS(&lock->word, 0, p.slept ? mine | SLEEPERS : mine)) {
				PP__POINT(lock_taken);
				break;
			}
			continue;
		}
		if (is_poisoned(v)) {
			if (!t->anyway) {
				status = owner_died();
				break;
			}
			if (!CAS(&lock->word, v, p.slept ? mine | SLEEPERS : mine))
				continue;
			PP__POINT(lock_recovered);
			break;
		}
		if (((uint32_t)v & ~PP__SYNC_SLEEPERS) == 0) {
			status = corrupt(handle, "lock", v);
			break;
		}
		if (holder_ended(t, v)) {
			if ((status = lock_inherit(t, v)) != PP_ERR_TIMEOUT)
				break;
			continue;
		}
		if ((v & SLEEPERS) == 0 && !CAS(&lock->word, v, v | SLEEPERS))
			continue;
		v |= SLEEPERS;
		status = pace_sleep(&p, low(&lock->word), (uint32_t)v);
		if (status == PP_OK)
			continue;
		if (status == SLICE_OVER) {
			if (LOAD(&lock->word) == v && (status = lock_inherit(t, v)) != PP_ERR_TIMEOUT)
				break;
			continue;
		}
		if (status == PP_ERR_TIMEOUT)
			status = lock_try(t, mine | SLEEPERS);
		break;
	}
	pace_end(&p);
	return status == PP_ERR_INTERRUPTED ? interrupted() : status;
}

static int32_t lock_take(pp__handle *handle, uint64_t deadline, uint32_t levels, bool recovers)
{
	pp__lock *const lock = object_of(handle);

	if (pp__join(handle->heap) == 0)
		return pp__failed();
	const uint64_t mine = my_word(handle->heap);
	if (__atomic_load_n(&lock->turn, __ATOMIC_RELAXED) == 0 && CAS(&lock->word, 0, mine)) {
		PP__POINT(lock_taken);
	} else if ((lock->object.flags & PP__SYNC_RECURSIVE) != 0 && (LOAD(&lock->word) & ~SLEEPERS) == mine) {
		const uint32_t count = __atomic_load_n(&lock->count, __ATOMIC_RELAXED);
		if (levels > UINT32_MAX - count)
			return pp__fail(PP_ERR_STATE, "the lock is held %u times", count);
		__atomic_store_n(&lock->count, count + levels, __ATOMIC_RELAXED);
		PP__POINT(lock_deeper);
		return PP_OK;
	} else {
		const taking t = {handle, lock, mine, recovers, recovers || (lock->object.flags & PP__SYNC_RECOVER) != 0};
		const int32_t status = lock_slow(&t, deadline);
		if (status != PP_OK)
			return status;
	}
	__atomic_store_n(&lock->count, levels, __ATOMIC_RELAXED);
	return PP_OK;
}

int32_t pp__lock_take(pp__handle *handle, uint64_t deadline, uint32_t levels)
{
	return lock_take(handle, deadline, levels, false);
}

int32_t pp__lock_recover(pp__handle *handle, uint64_t deadline)
{
	return lock_take(handle, deadline, 1, true);
}

uint32_t pp__lock_mine(const pp__handle *handle)
{
	const pp__lock *const lock = object_of(handle);

	if (handle->heap->me == 0 || (LOAD(&lock->word) & ~SLEEPERS) != my_word(handle->heap))
		return 0;
	const uint32_t count = __atomic_load_n(&lock->count, __ATOMIC_RELAXED);
	return (lock->object.flags & PP__SYNC_RECURSIVE) == 0 || count == 0 ? 1 : count;
}

/* lock_open frees the lock, unless it is free or poisoned, and returns what it was. */
static uint64_t lock_open(pp__lock *lock)
{
	uint64_t old = LOAD(&lock->word);

	do {
		if (old == 0 || is_poisoned(old))
			return old;
	} while (!__atomic_compare_exchange_n(&lock->word, &old, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
	PP__POINT(lock_free);
	if ((old & SLEEPERS) != 0)
		wake(low(&lock->word), 1);
	return old;
}

int32_t pp__lock_give(pp__handle *handle)
{
	pp__lock *const lock = object_of(handle);

	if ((lock->object.flags & PP__SYNC_RECURSIVE) != 0) {
		const uint32_t levels = pp__lock_mine(handle);
		if (levels == 0 && is_poisoned(LOAD(&lock->word)))
			return owner_died();
		if (levels == 0)
			return pp__fail(PP_ERR_STATE, "attempt to release recursive lock not owned by thread");
		if (levels > 1) {
			__atomic_store_n(&lock->count, levels - 1, __ATOMIC_RELAXED);
			return PP_OK;
		}
		lock_open(lock);
		return PP_OK;
	}
	const uint64_t old = lock_open(lock);
	if (is_poisoned(old))
		return owner_died();
	return old == 0 ? pp__fail(PP_ERR_STATE, "semaphore or lock released too many times") : PP_OK;
}

/* ---- semaphore -------------------------------------------------------------------------------------------------------------- */

static uint32_t most_of(uint64_t word)
{
	return (uint32_t)(word >> 32);
}

static uint32_t value_of(uint64_t word)
{
	return (uint32_t)word & PP__SYNC_VALUE_MOST;
}

/* permits_of returns the cells of a semaphore with PP__SYNC_RECOVER, NULL if their number cannot be. permits sets a message then. */
static uint32_t *permits_of(const pp__handle *handle, uint32_t *most_out)
{
	pp__semaphore *const semaphore = object_of(handle);
	const uint32_t most = *most_out = most_of(LOAD(&semaphore->word));

	if (most == 0 || most > PP__SYNC_PERMITS_MOST || sizeof *semaphore + (uint64_t)4 * most > handle->room)
		return NULL;
	return (uint32_t *)(void *)(semaphore + 1);
}

static uint32_t *permits(const pp__handle *handle, uint32_t *most_out)
{
	uint32_t *const cells = permits_of(handle, most_out);

	if (cells == NULL)
		corrupt(handle, "semaphore", *most_out);
	return cells;
}

static void ring(pp__semaphore *semaphore)
{
	if (LOAD(&semaphore->bell_waiters) == 0 || __atomic_exchange_n(&semaphore->bell_waiters, 0, __ATOMIC_SEQ_CST) == 0)
		return;
	__atomic_fetch_add(&semaphore->bell_seq, 1, __ATOMIC_SEQ_CST);
	if (wake(&semaphore->bell_seq, 1) >= 1)
		__atomic_store_n(&semaphore->bell_waiters, 1, __ATOMIC_SEQ_CST);
}

static bool permit_take(pp__handle *handle, uint32_t *cells, uint32_t most)
{
	const uint32_t me = handle->heap->me, first = me % most;

	for (uint32_t i = 0; i < most; i++) {
		uint32_t *const cell = &cells[(first + i) % most];
		if (LOAD(cell) == 0 && cas32(cell, 0, me)) {
			PP__POINT(permit_taken);
			return true;
		}
	}
	return false;
}

/* permits_recover takes back what the dead hold: of all that have left the table of processes, and of a few others, in turn, by the long look. */
static bool permits_recover(pp__handle *handle, uint32_t *cells, uint32_t most)
{
	const uint32_t first = (uint32_t)__atomic_fetch_add(&handle->words[TRIED], 1, __ATOMIC_RELAXED) % most;
	uint32_t present = handle->heap->me, looked = 0;
	bool any = false;

	for (uint32_t i = 0; i < most; i++) {
		uint32_t *const cell = &cells[(first + i) % most];
		const uint32_t owner = LOAD(cell);
		if (owner == 0 || owner == present)
			continue;
		if (!departed(handle->heap, owner) && (looked++ >= LOOKS || !pp__gone(handle->heap, owner))) {
			present = owner;
			continue;
		}
		if (cas32(cell, owner, 0)) {
			PP__POINT(permit_recovered);
			any = true;
			ring(object_of(handle));
		}
	}
	return any;
}

static int32_t recover_take(pp__handle *handle, uint64_t deadline)
{
	pp__semaphore *const semaphore = object_of(handle);
	uint32_t most;
	uint32_t *const cells = permits(handle, &most);
	int32_t status;
	pace p;

	if (cells == NULL)
		return PP_ERR_CORRUPT;
	if ((deadline == 0 || LOAD(&semaphore->turn) == 0) && permit_take(handle, cells, most))
		return PP_OK;
	if (deadline == 0) {
		if (suspicious(handle, 1) && permits_recover(handle, cells, most) && permit_take(handle, cells, most))
			return PP_OK;
		return timed_out();
	}
	pace_begin(&p, handle, &semaphore->turn, deadline);
	for (;;) {
		uint32_t seq;
		if ((status = pace_queue(&p)) != PP_OK)
			break;
		do {
			__atomic_store_n(&semaphore->bell_waiters, 1, __ATOMIC_SEQ_CST);
			seq = LOAD(&semaphore->bell_seq);
		} while (LOAD(&semaphore->bell_waiters) != 1);
		if (permit_take(handle, cells, most))
			break;
		status = pace_sleep(&p, &semaphore->bell_seq, seq);
		if (status == SLICE_OVER || (status == PP_ERR_TIMEOUT && suspicious(handle, 1)))
			permits_recover(handle, cells, most);
		if (status == PP_OK || status == SLICE_OVER)
			continue;
		if (status == PP_ERR_TIMEOUT)
			status = permit_take(handle, cells, most) ? PP_OK : timed_out();
		break;
	}
	pace_end(&p);
	return status == PP_ERR_INTERRUPTED ? interrupted() : status;
}

/* semaphore_try: PP_OK, PP_ERR_TIMEOUT (without message), PP_ERR_CORRUPT. */
static int32_t semaphore_try(pp__handle *handle, pp__semaphore *semaphore)
{
	for (;;) {
		const uint64_t v = LOAD(&semaphore->word);
		const uint32_t value = value_of(v);
		if (value > most_of(v) || most_of(v) > PP__SYNC_VALUE_MOST)
			return corrupt(handle, "semaphore", v);
		if (value == 0)
			return PP_ERR_TIMEOUT;
		if (CAS(&semaphore->word, v, v - 1)) {
			PP__POINT(semaphore_taken);
			return PP_OK;
		}
	}
}

static int32_t semaphore_slow(pp__handle *handle, pp__semaphore *semaphore, uint64_t deadline)
{
	int32_t status = PP_OK;
	pace p;

	for (int i = 0; i < SPINS && LOAD(&semaphore->turn) == 0; i++) {
		if (value_of(LOAD(&semaphore->word)) != 0 && (status = semaphore_try(handle, semaphore)) != PP_ERR_TIMEOUT)
			return status;
		pp__pause();
	}
	pace_begin(&p, handle, &semaphore->turn, deadline);
	for (;;) {
		if ((status = pace_queue(&p)) != PP_OK || (status = semaphore_try(handle, semaphore)) != PP_ERR_TIMEOUT)
			break;
		uint64_t v = LOAD(&semaphore->word);
		if (value_of(v) != 0)
			continue;
		if ((v & SLEEPERS) == 0 && !CAS(&semaphore->word, v, v | SLEEPERS))
			continue;
		v |= SLEEPERS;
		status = pace_sleep(&p, low(&semaphore->word), (uint32_t)v);
		if (status == PP_OK || status == SLICE_OVER)
			continue;
		if (status == PP_ERR_TIMEOUT && (status = semaphore_try(handle, semaphore)) == PP_ERR_TIMEOUT)
			status = timed_out();
		break;
	}
	pace_end(&p);
	return status == PP_ERR_INTERRUPTED ? interrupted() : status;
}

int32_t pp__semaphore_take(pp__handle *handle, uint64_t deadline)
{
	pp__semaphore *const semaphore = object_of(handle);

	if (pp__join(handle->heap) == 0)
		return pp__failed();
	if ((semaphore->object.flags & PP__SYNC_RECOVER) != 0)
		return recover_take(handle, deadline);
	if (deadline == 0 || __atomic_load_n(&semaphore->turn, __ATOMIC_RELAXED) == 0) {
		const int32_t status = semaphore_try(handle, semaphore);
		if (status != PP_ERR_TIMEOUT)
			return status;
		if (deadline == 0)
			return timed_out();
	}
	return semaphore_slow(handle, semaphore, deadline);
}

static int32_t too_many(void)
{
	return pp__fail(PP_ERR_STATE, "semaphore or lock released too many times");
}

/* semaphore_give sets no message: PP_OK, PP_ERR_STATE, PP_ERR_CORRUPT. It runs in signal handlers. */
static int32_t semaphore_give(pp__handle *handle)
{
	pp__semaphore *const semaphore = object_of(handle);

	if ((semaphore->object.flags & PP__SYNC_RECOVER) != 0) {
		const uint32_t me = handle->heap->me; /* 0: it holds none */
		uint32_t most;
		uint32_t *const cells = permits_of(handle, &most);
		if (cells == NULL)
			return PP_ERR_CORRUPT;
		for (int others = 0; others < 2; others++) {
			for (uint32_t i = 0; i < most; i++) {
				uint32_t *const cell = &cells[(me + i) % most];
				const uint32_t owner = LOAD(cell);
				if (owner != 0 && (others || owner == me) && cas32(cell, owner, 0)) {
					PP__POINT(permit_given);
					ring(semaphore);
					return PP_OK;
				}
			}
		}
		return PP_ERR_STATE;
	}
	for (;;) {
		const uint64_t v = LOAD(&semaphore->word);
		if (value_of(v) >= most_of(v))
			return value_of(v) > most_of(v) ? PP_ERR_CORRUPT : PP_ERR_STATE;
		if (!CAS(&semaphore->word, v, v + 1))
			continue;
		PP__POINT(semaphore_given);
		if ((v & SLEEPERS) != 0 && wake(low(&semaphore->word), 1) == 0)
			CAS(&semaphore->word, v + 1, (v + 1) & ~SLEEPERS);
		return PP_OK;
	}
}

int32_t pp__semaphore_give(pp__handle *handle)
{
	const int32_t status = semaphore_give(handle);

	if (status == PP_ERR_CORRUPT)
		return corrupt(handle, "semaphore", LOAD(&((pp__semaphore *)object_of(handle))->word));
	return status == PP_ERR_STATE ? too_many() : status;
}

int32_t pp__semaphore_count(const pp__handle *handle, uint32_t *value_out)
{
	pp__semaphore *const semaphore = object_of(handle);
	const uint64_t v = LOAD(&semaphore->word);

	if ((semaphore->object.flags & PP__SYNC_RECOVER) != 0) {
		uint32_t most, value = 0;
		const uint32_t *const cells = permits(handle, &most);
		if (cells == NULL)
			return PP_ERR_CORRUPT;
		for (uint32_t i = 0; i < most; i++)
			value += LOAD(&cells[i]) == 0;
		*value_out = value;
		return PP_OK;
	}
	if (value_of(v) > most_of(v))
		return corrupt(handle, "semaphore", v);
	*value_out = value_of(v);
	return PP_OK;
}

/* ---- condition -------------------------------------------------------------------------------------------------------------- */

#define NOTIFIED 1u
#define TICKET_MASK 0x7fffffffu

/* Walks all cells of a condition: for (walk w = walk_begin(h); walk_next(&w); ) ... *w.cell. */
typedef struct walk {
	const pp__handle *handle;
	uint64_t *cell;  /* the current one */
	uint32_t number; /* which it is, from 0 */
	uint64_t *more;  /* where the offset of the next block is */
	uint64_t next;   /* that offset, when it was looked at last */
	uint64_t *end;
	uint32_t blocks;
} walk;

static walk walk_begin(const pp__handle *handle)
{
	pp__condition *const condition = object_of(handle);

	return (walk){handle, condition->cells - 1, UINT32_MAX, &condition->more, 0, condition->cells + PP__CONDITION_CELLS, 0};
}

static bool walk_next(walk *w)
{
	w->number += 1;
	if (++w->cell != w->end)
		return true;
	const uint64_t off = w->next = LOAD(w->more);
	pp__condition_more *const block = off == 0 || off % 128 != 0 ? NULL : pp__within(w->handle->heap, off, sizeof *block);
	if (block == NULL || ++w->blocks > MORE_MOST)
		return false;
	w->more = &block->more;
	w->cell = block->cells;
	w->end = block->cells + sizeof block->cells / sizeof block->cells[0];
	return true;
}

static uint32_t cell_owner(uint64_t cell)
{
	return (uint32_t)(cell >> 32);
}

/* condition_sweep passes on the notifications that the dead did not live to take; all: it frees their waiting cells too, which costs a long
 * look at every waiter's process. */
static int32_t condition_notify(pp__handle *handle, uint64_t n);

static void condition_sweep(pp__handle *handle, bool all)
{
	verdicts known = {0};
	const uint64_t me = (uint64_t)handle->heap->me << 32;

	for (walk w = walk_begin(handle); walk_next(&w);) {
		const uint64_t cell = LOAD(w.cell);
		if (cell == 0 || (!all && (cell & NOTIFIED) == 0) || !gone(handle->heap, cell_owner(cell), &known))
			continue;
		if ((cell & NOTIFIED) == 0) {
			CAS(w.cell, cell, 0);
		} else if (CAS(w.cell, cell, me | (uint32_t)cell)) {
			PP__POINT(condition_inherited);
			condition_notify(handle, 1);
			__atomic_store_n(w.cell, 0, __ATOMIC_SEQ_CST);
		}
	}
}

/* notify_cell: true if the waiter in *cell, which was v, is notified now. */
static bool notify_cell(pp__handle *handle, uint64_t *cell, uint64_t v, uint32_t *alive)
{
	const uint32_t owner = cell_owner(v);

	if (owner != handle->heap->me && owner != *alive) {
		if (departed(handle->heap, owner)) {
			CAS(cell, v, 0);
			return false;
		}
		*alive = owner;
	}
	if (!CAS(cell, v, v | NOTIFIED))
		return false;
	PP__POINT(condition_notified);
	wake(low(cell), 1);
	return true;
}

static int32_t condition_notify(pp__handle *handle, uint64_t n)
{
	pp__condition *const condition = object_of(handle);
	const uint32_t end = LOAD(&condition->tickets);
	uint32_t alive = 0;

	if (n >= PP__SYNC_VALUE_MOST) {
		for (walk w = walk_begin(handle); walk_next(&w);) {
			const uint64_t v = LOAD(w.cell);
			if (v != 0 && (v & NOTIFIED) == 0)
				notify_cell(handle, w.cell, v, &alive);
		}
		return PP_OK;
	}
	while (n > 0) {
		uint64_t *oldest = NULL, found = 0;
		uint32_t age = 0;
		for (walk w = walk_begin(handle); walk_next(&w);) {
			const uint64_t v = LOAD(w.cell);
			const uint32_t its = (end - (uint32_t)((uint32_t)v >> 1)) & TICKET_MASK;
			/* age 0 is a ticket that was drawn after the look at tickets, or no ticket. */
			if (v != 0 && (v & NOTIFIED) == 0 && its > age && its <= TICKET_MASK / 2) {
				oldest = w.cell;
				found = v;
				age = its;
			}
		}
		if (oldest == NULL)
			break;
		if (notify_cell(handle, oldest, found, &alive))
			n -= 1;
	}
	return PP_OK;
}

/* condition_enter takes a cell: place = number << 32 | ticket << 1 | 1. */
static int32_t condition_enter(pp__handle *handle, uint64_t *place_out)
{
	pp__condition *const condition = object_of(handle);
	pp__heap *const heap = handle->heap;
	const uint32_t me = pp__join(heap);

	if (me == 0)
		return pp__failed();
	const uint32_t ticket = __atomic_fetch_add(&condition->tickets, 1, __ATOMIC_SEQ_CST) & TICKET_MASK;
	for (bool swept = false;;) {
		walk w = walk_begin(handle);
		while (walk_next(&w)) {
			if (LOAD(w.cell) == 0 && CAS(w.cell, 0, (uint64_t)me << 32 | ticket << 1)) {
				PP__POINT(condition_waiting);
				*place_out = (uint64_t)w.number << 32 | ticket << 1 | 1;
				return PP_OK;
			}
		}
		if (w.next != 0)
			return w.blocks > MORE_MOST ? pp__fail(PP_ERR_NOMEM, "condition: too many waiters") : corrupt(handle, "condition", w.next);
		if (!swept) {
			condition_sweep(handle, true);
			swept = true;
			continue;
		}
		uint64_t off;
		const int32_t status = pp__alloc(heap, sizeof(pp__condition_more), condition->object.generation, &off, NULL);
		if (status != PP_OK)
			return status;
		memset(pp__at(heap, off), 0, sizeof(pp__condition_more));
		if (!CAS(w.more, 0, off))
			pp__free(heap, off, condition->object.generation);
	}
}

/* condition_cell finds the cell of a place; NULL if the place is none of this process. */
static uint64_t *condition_cell(const pp__handle *handle, uint64_t place)
{
	for (walk w = walk_begin(handle); walk_next(&w);) {
		if (w.number != (uint32_t)(place >> 32))
			continue;
		const uint64_t cell = LOAD(w.cell), mine = (uint64_t)handle->heap->me << 32 | ((uint32_t)place & ~NOTIFIED);
		return (place & 1) != 0 && (cell & ~(uint64_t)NOTIFIED) == mine ? w.cell : NULL;
	}
	return NULL;
}

static int32_t no_place(void)
{
	return pp__fail(PP_ERR_INVALID, "this process does not wait at that place");
}

static int32_t condition_sleep(pp__handle *handle, uint64_t place, uint64_t deadline, bool returns)
{
	uint64_t *const cell = condition_cell(handle, place);
	pace p;

	if (cell == NULL)
		return no_place();
	const uint64_t waiting = LOAD(cell) & ~(uint64_t)NOTIFIED;
	pace_begin(&p, handle, NULL, deadline);
	if (returns)
		pace_returns(&p);
	for (;;) {
		const uint64_t v = LOAD(cell);
		if (v == (waiting | NOTIFIED)) {
			__atomic_store_n(cell, 0, __ATOMIC_SEQ_CST);
			return PP_OK;
		}
		if (v != waiting)
			return corrupt(handle, "condition", v);
		const int32_t status = pace_sleep(&p, low(cell), (uint32_t)waiting);
		if (status == PP_OK)
			continue;
		if (status == SLICE_OVER) {
			condition_sweep(handle, false);
			continue;
		}
		if (status != PP_ERR_TIMEOUT)
			return status == PP_ERR_INTERRUPTED ? interrupted() : status;
		if (CAS(cell, waiting, 0)) {
			PP__POINT(condition_left);
			return timed_out();
		}
	}
}

static int32_t condition_leave(pp__handle *handle, uint64_t place)
{
	uint64_t *const cell = condition_cell(handle, place);

	if (cell == NULL)
		return no_place();
	if (CAS(cell, LOAD(cell) & ~(uint64_t)NOTIFIED, 0)) {
		PP__POINT(condition_left);
		return PP_OK;
	}
	/* It was meant for somebody who goes on waiting. */
	condition_notify(handle, 1);
	__atomic_store_n(cell, 0, __ATOMIC_SEQ_CST);
	return PP_OK;
}

static void condition_destroy(pp__heap *heap, uint64_t off)
{
	pp__condition *const condition = pp__at(heap, off);
	uint64_t next = LOAD(&condition->more);

	for (int i = 0; i < MORE_MOST && next != 0 && next % 128 == 0; i++) {
		pp__condition_more *const block = pp__within(heap, next, sizeof *block);
		const uint64_t here = next;
		if (block == NULL)
			break;
		next = LOAD(&block->more);
		if (!pp__free(heap, here, condition->object.generation))
			break;
	}
}

/* lock_close gives all levels up, and returns how many there were. */
static uint32_t lock_close(pp__handle *handle)
{
	const uint32_t levels = pp__lock_mine(handle);

	if (levels > 0)
		lock_open(object_of(handle));
	return levels;
}

/* ---- event -------------------------------------------------------------------------------------------------------------------- */

#define EVENT_SET 1u
#define EVENT_SEQ 0x7ffffffeu

static void event_set(pp__event *event)
{
	for (;;) {
		const uint32_t v = LOAD(&event->word);
		if ((v & EVENT_SET) != 0)
			return;
		if (!cas32(&event->word, v, ((v + 2) & EVENT_SEQ) | EVENT_SET))
			continue;
		PP__POINT(event_set);
		if ((v & PP__SYNC_SLEEPERS) != 0)
			wake(&event->word, INT_MAX);
		return;
	}
}

/* event_wait waits until the event is set, or was set since *place was noted: 1 << 32 | the event's count of settings. *place 0: since now,
 * and *place is noted. place is NULL where the wait is not continued. */
static int32_t event_wait(pp__handle *handle, uint64_t deadline, uint64_t *place)
{
	pp__event *const event = object_of(handle);
	uint32_t v = LOAD(&event->word);
	const uint32_t seq = place != NULL && *place != 0 ? (uint32_t)*place : v & EVENT_SEQ;
	pace p;

	if ((v & EVENT_SET) != 0 || (v & EVENT_SEQ) != seq)
		return PP_OK;
	if (deadline == 0)
		return timed_out();
	pace_begin(&p, handle, NULL, deadline);
	if (place != NULL) {
		*place = (uint64_t)1 << 32 | seq;
		pace_returns(&p);
	}
	for (;;) {
		v = LOAD(&event->word);
		if ((v & EVENT_SET) != 0 || (v & EVENT_SEQ) != seq)
			return PP_OK;
		if ((v & PP__SYNC_SLEEPERS) == 0 && !cas32(&event->word, v, v | PP__SYNC_SLEEPERS))
			continue;
		const int32_t status = pace_sleep(&p, &event->word, v | PP__SYNC_SLEEPERS);
		if (status == PP_OK || status == SLICE_OVER)
			continue;
		if (status != PP_ERR_TIMEOUT)
			return status == PP_ERR_INTERRUPTED ? interrupted() : status;
		v = LOAD(&event->word);
		return (v & EVENT_SET) != 0 || (v & EVENT_SEQ) != seq ? PP_OK : timed_out();
	}
}

/* ---- barrier ------------------------------------------------------------------------------------------------------------------ */

#define GENERATIONS 0x3fffffffu

typedef struct state {
	uint32_t generation, phase, arrived, history;
} state;

static state state_of(uint64_t word)
{
	return (state){(uint32_t)word >> 2, word & 3, word >> 32 & 0xffff, (uint32_t)(word >> 48)};
}

static uint64_t barrier_word(state s)
{
	return (uint64_t)s.history << 48 | (uint64_t)s.arrived << 32 | s.generation << 2 | s.phase;
}

/* next_word is the word after generation s has ended. */
static uint64_t next_word(state s, uint32_t broken)
{
	return barrier_word((state){(s.generation + 1) & GENERATIONS, PP__BARRIER_FILLING, 0, (s.history << 1 | broken) & 0xffff});
}

/* A barrier during a call: its numbers as they were read once, and checked. Others can write to the memory that they come from at any time. */
typedef struct gate {
	pp__handle *handle;
	pp__barrier *barrier;
	uint64_t *cells;
	uint32_t count; /* of the cells */
	uint32_t parties;
	bool action;
} gate;

/* gate_of reads and checks a barrier: PP_OK, or PP_ERR_CORRUPT. */
static int32_t gate_of(pp__handle *handle, gate *g)
{
	pp__barrier *const barrier = object_of(handle);

	*g = (gate){handle, barrier, (uint64_t *)(void *)(barrier + 1), LOAD(&barrier->cells_count), LOAD(&barrier->parties),
	            (LOAD(&barrier->object.flags) & PP__SYNC_ACTION) != 0};
	if (g->parties == 0 || g->parties > PP__BARRIER_MOST || g->count < g->parties || g->count > PP__BARRIER_MOST + 16 ||
	    sizeof *barrier + (uint64_t)8 * g->count > handle->room)
		return corrupt(handle, "barrier", (uint64_t)g->count << 32 | g->parties);
	return PP_OK;
}

/* barrier_end moves the word from v to `to` and wakes all who wait. */
static bool barrier_end(pp__barrier *barrier, uint64_t v, uint64_t to)
{
	if (!CAS(&barrier->word, v, to))
		return false;
	wake(low(&barrier->word), INT_MAX);
	return true;
}

static void barrier_break(pp__barrier *barrier, uint64_t v)
{
	state s = state_of(v);

	s.phase = PP__BARRIER_BROKEN;
	if (CAS(&barrier->word, v, barrier_word(s))) {
		PP__POINT(barrier_broken);
		wake(low(&barrier->word), INT_MAX);
	}
}

/* barrier_sweep breaks the barrier if the next one behind cell `from` that waits at it, in v, is dead. So each looks at one other at the end of
 * its slices, and every dead one has somebody alive before it. */
static void barrier_sweep(const gate *g, uint64_t v, uint32_t from)
{
	pp__heap *const heap = g->handle->heap;
	const uint32_t generation = state_of(v).generation;

	for (uint32_t i = 1; i <= g->count; i++) {
		const uint64_t cell = LOAD(&g->cells[((uint64_t)from + i) % g->count]);
		if (cell == 0 || (uint32_t)cell != generation || cell_owner(cell) == heap->me)
			continue;
		if (pp__gone(heap, cell_owner(cell)))
			barrier_break(g->barrier, v);
		return;
	}
}

/* barrier_deserted reports whether one of those who have arrived is not there any more: the cheap look, for the last to arrive. */
static bool barrier_deserted(const gate *g, uint32_t generation)
{
	const pp__heap *const heap = g->handle->heap;
	uint32_t alive = heap->me;

	for (uint32_t i = 0; i < g->count; i++) {
		const uint64_t cell = LOAD(&g->cells[i]);
		if (cell == 0 || (uint32_t)cell != generation || cell_owner(cell) == alive || cell_owner(cell) == heap->me)
			continue;
		alive = cell_owner(cell);
		if (departed(heap, alive))
			return true;
	}
	return false;
}

/* barrier_claim takes a cell for this generation, that of v: its number, or -1 if there is none. The cell of a dead process of this
 * generation is not taken: it may be all that tells that one of those who have arrived is dead. It breaks the barrier. */
static int32_t barrier_claim(const gate *g, uint64_t v)
{
	pp__heap *const heap = g->handle->heap;
	const uint32_t generation = state_of(v).generation;
	const uint64_t mine = (uint64_t)heap->me << 32 | generation;
	verdicts known = {0};

	for (uint32_t i = 0; i < g->count; i++) {
		const uint64_t cell = LOAD(&g->cells[i]);
		if (cell != 0 && (uint32_t)cell == generation)
			continue;
		if (CAS(&g->cells[i], cell, mine)) {
			PP__POINT(barrier_cell);
			return (int32_t)i;
		}
	}
	for (uint32_t i = 0; i < g->count; i++) {
		const uint64_t cell = LOAD(&g->cells[i]);
		if (cell != 0 && (uint32_t)cell == generation && gone(heap, cell_owner(cell), &known)) {
			barrier_break(g->barrier, v);
			break;
		}
	}
	return -1;
}

static int32_t broken(void)
{
	return pp__fail(PP_ERR_BROKEN, "the barrier is broken");
}

#define PLACE(cell, index, generation) (((uint64_t)(cell) + 1) << 46 | (uint64_t)(index) << 30 | (generation))

/* barrier_arrive takes part: the place is made. PP_OK: it goes on with barrier_sleep, unless *ended. */
static int32_t barrier_arrive(const gate *g, uint64_t *place_out, bool *ended)
{
	pp__handle *const handle = g->handle;
	pp__barrier *const barrier = g->barrier;
	const uint32_t parties = g->parties;
	uint32_t turns = 0;
	pace p;

	pace_begin(&p, handle, NULL, FOR_EVER);
	for (;;) {
		uint64_t v = LOAD(&barrier->word);
		state s = state_of(v);
		if (s.phase == PP__BARRIER_BROKEN)
			return broken();
		if (s.phase > PP__BARRIER_BROKEN || s.arrived > parties || (s.arrived == parties) != (s.phase == PP__BARRIER_FULL))
			return corrupt(handle, "barrier", v);
		if (s.phase == PP__BARRIER_FULL) {
			/* The others are on their way out; they wait for the action. */
			const int32_t status = pace_sleep(&p, low(&barrier->word), (uint32_t)v);
			if (status == SLICE_OVER)
				barrier_sweep(g, v, turns++);
			else if (status != PP_OK)
				return status == PP_ERR_INTERRUPTED ? interrupted() : status;
			continue;
		}
		const int32_t cell = barrier_claim(g, v);
		if (cell < 0) {
			/* Sixteen others are between their cell and their arrival; or the barrier is broken now. */
			pp__futex_wait(low(&barrier->word), (uint32_t)v, 1000000);
			continue;
		}
		const uint64_t mine = (uint64_t)handle->heap->me << 32 | s.generation;
		for (;;) {
			const bool last = s.arrived + 1 == parties, action = g->action;
			if (last && barrier_deserted(g, s.generation)) {
				barrier_break(barrier, v);
				break;
			}
			const uint32_t index = s.arrived;
			state to = s;
			to.arrived += 1;
			to.phase = last ? PP__BARRIER_FULL : PP__BARRIER_FILLING;
			if (CAS(&barrier->word, v, last && !action ? next_word(s, 0) : barrier_word(to))) {
				PP__POINT(barrier_arrived);
				*place_out = PLACE(cell, index, s.generation);
				*ended = last;
				if (last && !action) {
					PP__POINT(barrier_passed);
					if (parties > 1)
						wake(low(&barrier->word), INT_MAX);
				}
				return PP_OK;
			}
			const uint32_t generation = s.generation;
			v = LOAD(&barrier->word);
			s = state_of(v);
			if (s.generation != generation || s.phase != PP__BARRIER_FILLING || s.arrived >= parties)
				break;
		}
		CAS(&g->cells[cell], mine, 0);
	}
}

/* barrier_leave goes before the generation has ended; if it has, or all have arrived, it does nothing. */
static void barrier_leave(const gate *g, uint64_t place)
{
	pp__barrier *const barrier = g->barrier;
	const uint32_t generation = (uint32_t)place & GENERATIONS, cell = (uint32_t)(place >> 46) - 1;

	for (;;) {
		const uint64_t v = LOAD(&barrier->word);
		state s = state_of(v);
		if (s.generation != generation || s.phase != PP__BARRIER_FILLING || s.arrived == 0)
			return;
		s.arrived -= 1;
		if (CAS(&barrier->word, v, barrier_word(s))) {
			PP__POINT(barrier_left);
			if (cell < g->count)
				CAS(&g->cells[cell], (uint64_t)g->handle->heap->me << 32 | generation, 0);
			return;
		}
	}
}

static int32_t barrier_sleep(const gate *g, uint64_t place, uint64_t deadline, bool returns)
{
	pp__handle *const handle = g->handle;
	pp__barrier *const barrier = g->barrier;
	const uint32_t generation = (uint32_t)place & GENERATIONS;
	pace p;

	pace_begin(&p, handle, NULL, deadline);
	if (returns)
		pace_returns(&p);
	for (;;) {
		const uint64_t v = LOAD(&barrier->word);
		const state s = state_of(v);
		if (s.generation != generation) {
			const uint32_t back = (s.generation - generation - 1) & GENERATIONS;
			return back < 16 && (s.history >> back & 1) == 0 ? PP_OK : broken();
		}
		if (s.phase == PP__BARRIER_BROKEN)
			return broken();
		if (s.phase > PP__BARRIER_BROKEN || s.arrived > g->parties)
			return corrupt(handle, "barrier", v);
		/* Once all are there nobody runs out of time: it is over when the action is. */
		p.deadline = s.phase == PP__BARRIER_FULL ? FOR_EVER : deadline;
		const int32_t status = pace_sleep(&p, low(&barrier->word), (uint32_t)v);
		if (status == SLICE_OVER) {
			barrier_sweep(g, v, (uint32_t)(place >> 46) - 1);
		} else if (status == PP_ERR_TIMEOUT) {
			const uint64_t now = LOAD(&barrier->word);
			if ((uint32_t)now != (uint32_t)v)
				continue;
			state to = state_of(now);
			to.phase = PP__BARRIER_BROKEN;
			if (CAS(&barrier->word, now, barrier_word(to))) {
				PP__POINT(barrier_broken);
				wake(low(&barrier->word), INT_MAX);
				return timed_out();
			}
		} else if (status == PP_ERR_INTERRUPTED) {
			return interrupted();
		} else if (status != PP_OK) {
			barrier_leave(g, place); /* nobody can go on with this wait */
			return status;
		}
	}
}

/* ---- kinds ---------------------------------------------------------------------------------------------------------------------- */

static const pp__kind lock_kind = {.name = "lock", .size = sizeof(pp__lock)};
static const pp__kind semaphore_kind = {.name = "semaphore", .size = sizeof(pp__semaphore)};
static const pp__kind condition_kind = {.name = "condition", .destroy = condition_destroy, .size = sizeof(pp__condition)};
static const pp__kind event_kind = {.name = "event", .size = sizeof(pp__event)};
static const pp__kind barrier_kind = {.name = "barrier", .size = sizeof(pp__barrier)};

static void __attribute__((constructor)) register_kinds(void)
{
	pp__kinds[PP__KIND_LOCK] = &lock_kind;
	pp__kinds[PP__KIND_SEMAPHORE] = &semaphore_kind;
	pp__kinds[PP__KIND_CONDITION] = &condition_kind;
	pp__kinds[PP__KIND_EVENT] = &event_kind;
	pp__kinds[PP__KIND_BARRIER] = &barrier_kind;
}

/* ---- what polyproc.h publishes ---------------------------------------------------------------------------------------------------- */

/* Calls f with the handle pinned. */
#define PINNED(number, kind, call)                             \
	do {                                                       \
		pp__handle *const handle = pp__pin(number, kind);      \
		if (handle == NULL)                                    \
			return PP_ERR_HANDLE;                              \
		const int32_t pp__status = (call);                     \
		pp__unpin(handle);                                     \
		return pp__status;                                     \
	} while (0)

/* WAITS is PINNED for a call that waits; deadline is what timeout_ms means. */
#define WAITS(number, kind, call)                              \
	do {                                                       \
		if (!pp__timeout_valid(timeout_ms))                    \
			return pp__timeout_invalid(timeout_ms);            \
		const uint64_t deadline = pp__deadline(timeout_ms);    \
		PINNED(number, kind, call);                            \
	} while (0)

/* new_object makes an object of the kind, for the caller to fill in before it is handed out. */
static int32_t new_object(uint32_t kind, uint64_t size, uint32_t flags, const void *out, pp__handle **handle_out)
{
	pp__heap *heap;

	if (out == NULL)
		return pp__fail(PP_ERR_INVALID, "%s: NULL", pp__kinds[kind]->name);
	if ((heap = pp__family_heap()) == NULL)
		return pp__failed();
	const int32_t status = pp__object_new(heap, kind, size, handle_out);
	if (status == PP_OK)
		((pp__object *)object_of(*handle_out))->flags = flags;
	return status;
}

int32_t pp_lock_new(uint32_t flags, pp_lock *lock_out)
{
	pp__handle *handle;

	if ((flags & ~(uint32_t)(PP_LOCK_RECURSIVE | PP_LOCK_RECOVER)) != 0)
		return pp__fail(PP_ERR_INVALID, "pp_lock_new: flags %#x", flags);
	const int32_t status = new_object(PP__KIND_LOCK, sizeof(pp__lock), flags, lock_out, &handle);
	if (status == PP_OK)
		*lock_out = handle->number;
	return status;
}

int32_t pp_lock_acquire(pp_lock lock, int64_t timeout_ms)
{
	WAITS(lock, PP__KIND_LOCK, pp__lock_take(handle, deadline, 1));
}

int32_t pp_lock_recover(pp_lock lock, int64_t timeout_ms)
{
	WAITS(lock, PP__KIND_LOCK, pp__lock_recover(handle, deadline));
}

int32_t pp_lock_release(pp_lock lock)
{
	PINNED(lock, PP__KIND_LOCK, pp__lock_give(handle));
}

static int32_t lock_info(pp__handle *handle, pp_lock_state *state)
{
	const pp__lock *const lock = object_of(handle);
	const uint64_t v = LOAD(&lock->word);
	const uint32_t owner = (uint32_t)v & ~PP__SYNC_SLEEPERS;

	if (is_poisoned(v)) {
		*state = (pp_lock_state){.held = PP_LOCK_POISONED};
		return PP_OK;
	}
	state->levels = owner == 0 ? 0 : __atomic_load_n(&lock->count, __ATOMIC_RELAXED);
	if (owner != 0 && (state->levels == 0 || (lock->object.flags & PP__SYNC_RECURSIVE) == 0))
		state->levels = 1;
	state->pid = owner == 0 ? 0 : pp__owner_pid(handle->heap, owner);
	state->held = owner == 0                                   ? PP_LOCK_FREE
	              : owner != handle->heap->me                  ? PP_LOCK_BY_PROCESS
	              : (v & ~SLEEPERS) != my_word(handle->heap)   ? PP_LOCK_BY_THREAD
	                                                           : PP_LOCK_BY_ME;
	return PP_OK;
}

int32_t pp_lock_info(pp_lock lock, pp_lock_state *state_out)
{
	if (state_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_lock_info: NULL");
	PINNED(lock, PP__KIND_LOCK, lock_info(handle, state_out));
}

int32_t pp_lock_restore(pp_lock lock, uint32_t levels, int64_t timeout_ms)
{
	if (levels == 0)
		return pp__fail(PP_ERR_INVALID, "pp_lock_restore: no levels");
	WAITS(lock, PP__KIND_LOCK, pp__lock_take(handle, deadline, levels));
}

int32_t pp_lock_free(pp_lock lock)
{
	return pp__handle_free(lock, PP__KIND_LOCK);
}

int32_t pp_semaphore_new(uint32_t value, uint32_t most, uint32_t flags, pp_semaphore *semaphore_out)
{
	const bool recover = (flags & PP_SEMAPHORE_RECOVER) != 0;
	pp__handle *handle;

	if ((flags & ~(uint32_t)PP_SEMAPHORE_RECOVER) != 0)
		return pp__fail(PP_ERR_INVALID, "pp_semaphore_new: flags %#x", flags);
	if (value > most || most == 0 || most > PP_SEMAPHORE_MOST)
		return pp__fail(PP_ERR_INVALID, "pp_semaphore_new: value %u, most %u: value is at most most, which is 1 to %u", value, most,
		                PP_SEMAPHORE_MOST);
	if (recover && (most != value || most == 0 || most > PP__SYNC_PERMITS_MOST))
		return pp__fail(PP_ERR_INVALID, "pp_semaphore_new: with PP_SEMAPHORE_RECOVER there are 1 to %u permits, all of them free at first",
		                PP__SYNC_PERMITS_MOST);
	const uint64_t size = sizeof(pp__semaphore) + (recover ? (uint64_t)4 * most : 0);
	const int32_t status = new_object(PP__KIND_SEMAPHORE, size, recover ? PP__SYNC_RECOVER : 0, semaphore_out, &handle);
	if (status == PP_OK) {
		((pp__semaphore *)object_of(handle))->word = (uint64_t)most << 32 | (recover ? 0 : value);
		*semaphore_out = handle->number;
	}
	return status;
}

int32_t pp_semaphore_acquire(pp_semaphore semaphore, int64_t timeout_ms)
{
	WAITS(semaphore, PP__KIND_SEMAPHORE, pp__semaphore_take(handle, deadline));
}

/* QUIETLY is PINNED for a function that signal handlers may call, if that is the first call of its thread: there is no message then. */
#define QUIETLY(number, kind, call)                                  \
	do {                                                             \
		if (!pp__pins_known()) {                                     \
			pp__handle *const handle = pp__pin_quietly(number, kind); \
			if (handle == NULL)                                      \
				return PP_ERR_HANDLE;                                \
			const int32_t pp__status = (call);                       \
			pp__drop(handle);                                        \
			return pp__status;                                       \
		}                                                            \
	} while (0)

int32_t pp_semaphore_release(pp_semaphore semaphore)
{
	QUIETLY(semaphore, PP__KIND_SEMAPHORE, semaphore_give(handle));
	PINNED(semaphore, PP__KIND_SEMAPHORE, pp__semaphore_give(handle));
}

int32_t pp_semaphore_value(pp_semaphore semaphore, uint32_t *value_out)
{
	if (value_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_semaphore_value: NULL");
	PINNED(semaphore, PP__KIND_SEMAPHORE, pp__semaphore_count(handle, value_out));
}

int32_t pp_semaphore_free(pp_semaphore semaphore)
{
	return pp__handle_free(semaphore, PP__KIND_SEMAPHORE);
}

int32_t pp_condition_new(pp_condition *condition_out)
{
	pp__handle *handle;
	const int32_t status = new_object(PP__KIND_CONDITION, sizeof(pp__condition), 0, condition_out, &handle);

	if (status == PP_OK)
		*condition_out = handle->number;
	return status;
}

static int32_t not_owned(void)
{
	return pp__fail(PP_ERR_STATE, "this thread does not hold the lock of the condition");
}

/* enter_closed: condition_enter, then the lock is open. */
static int32_t enter(pp__handle *condition, pp__handle *lock, uint64_t *place_out, uint32_t *levels_out)
{
	if (pp__lock_mine(lock) == 0)
		return not_owned();
	const int32_t status = condition_enter(condition, place_out);
	if (status == PP_OK)
		*levels_out = lock_close(lock);
	return status;
}

int32_t pp_condition_enter(pp_condition condition, pp_lock lock, uint64_t *place_out, uint32_t *levels_out)
{
	if (place_out == NULL || levels_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_condition_enter: NULL");
	pp__handle *const held = pp__pin(lock, PP__KIND_LOCK);
	if (held == NULL)
		return PP_ERR_HANDLE;
	pp__handle *const handle = pp__pin(condition, PP__KIND_CONDITION);
	const int32_t status = handle == NULL ? PP_ERR_HANDLE : enter(handle, held, place_out, levels_out);
	if (handle != NULL)
		pp__unpin(handle);
	pp__unpin(held);
	return status;
}

int32_t pp_condition_sleep(pp_condition condition, uint64_t place, int64_t timeout_ms)
{
	WAITS(condition, PP__KIND_CONDITION, condition_sleep(handle, place, deadline, true));
}

int32_t pp_condition_leave(pp_condition condition, uint64_t place)
{
	PINNED(condition, PP__KIND_CONDITION, condition_leave(handle, place));
}

static int32_t condition_wait(pp__handle *condition, pp__handle *lock, int64_t timeout_ms)
{
	uint64_t place;
	uint32_t levels;
	const uint64_t deadline = pp__deadline(timeout_ms);
	int32_t status = enter(condition, lock, &place, &levels), again;

	if (status != PP_OK)
		return status;
	status = condition_sleep(condition, place, deadline, false);
	if (status != PP_OK && status != PP_ERR_TIMEOUT)
		condition_leave(condition, place);
	do {
		again = pp__lock_take(lock, FOR_EVER, levels);
		if (again == PP_ERR_INTERRUPTED && status == PP_ERR_TIMEOUT)
			status = again;
	} while (again == PP_ERR_INTERRUPTED);
	return again != PP_OK ? again : status;
}

int32_t pp_condition_wait(pp_condition condition, pp_lock lock, int64_t timeout_ms)
{
	if (!pp__timeout_valid(timeout_ms))
		return pp__timeout_invalid(timeout_ms);
	pp__handle *const held = pp__pin(lock, PP__KIND_LOCK);
	if (held == NULL)
		return PP_ERR_HANDLE;
	pp__handle *const handle = pp__pin(condition, PP__KIND_CONDITION);
	const int32_t status = handle == NULL ? PP_ERR_HANDLE : condition_wait(handle, held, timeout_ms);
	if (handle != NULL)
		pp__unpin(handle);
	pp__unpin(held);
	return status;
}

/* join_and_notify: a notification that is passed on needs a name. */
static int32_t join_and_notify(pp__handle *handle, uint64_t n)
{
	return pp__join(handle->heap) == 0 ? pp__failed() : condition_notify(handle, n);
}

int32_t pp_condition_notify(pp_condition condition, uint32_t n)
{
	PINNED(condition, PP__KIND_CONDITION, join_and_notify(handle, n));
}

int32_t pp_condition_notify_all(pp_condition condition)
{
	PINNED(condition, PP__KIND_CONDITION, join_and_notify(handle, UINT64_MAX));
}

static int32_t condition_waiting(pp__handle *handle, uint32_t *waiting_out)
{
	uint32_t n = 0;

	for (walk w = walk_begin(handle); walk_next(&w);) {
		const uint64_t cell = LOAD(w.cell);
		n += cell != 0 && (cell & NOTIFIED) == 0;
	}
	*waiting_out = n;
	return PP_OK;
}

int32_t pp_condition_waiting(pp_condition condition, uint32_t *waiting_out)
{
	if (waiting_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_condition_waiting: NULL");
	PINNED(condition, PP__KIND_CONDITION, condition_waiting(handle, waiting_out));
}

int32_t pp_condition_free(pp_condition condition)
{
	return pp__handle_free(condition, PP__KIND_CONDITION);
}

int32_t pp_event_new(pp_event *event_out)
{
	pp__handle *handle;
	const int32_t status = new_object(PP__KIND_EVENT, sizeof(pp__event), 0, event_out, &handle);

	if (status == PP_OK)
		*event_out = handle->number;
	return status;
}

static int32_t set(pp__handle *handle)
{
	event_set(object_of(handle));
	return PP_OK;
}

static int32_t clear(pp__handle *handle)
{
	pp__event *const event = object_of(handle);

	__atomic_fetch_and(&event->word, ~EVENT_SET, __ATOMIC_SEQ_CST);
	PP__POINT(event_cleared);
	return PP_OK;
}

int32_t pp_event_set(pp_event event)
{
	QUIETLY(event, PP__KIND_EVENT, set(handle));
	PINNED(event, PP__KIND_EVENT, set(handle));
}

int32_t pp_event_clear(pp_event event)
{
	PINNED(event, PP__KIND_EVENT, clear(handle));
}

static int32_t is_set(const pp__handle *handle)
{
	const pp__event *const event = object_of(handle);

	return (int32_t)(LOAD(&event->word) & EVENT_SET);
}

int32_t pp_event_is_set(pp_event event)
{
	PINNED(event, PP__KIND_EVENT, is_set(handle));
}

int32_t pp_event_wait(pp_event event, int64_t timeout_ms)
{
	WAITS(event, PP__KIND_EVENT, event_wait(handle, deadline, NULL));
}

int32_t pp_event_sleep(pp_event event, uint64_t *place, int64_t timeout_ms)
{
	if (place == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_event_sleep: place is NULL");
	WAITS(event, PP__KIND_EVENT, event_wait(handle, deadline, place));
}

int32_t pp_event_free(pp_event event)
{
	return pp__handle_free(event, PP__KIND_EVENT);
}

int32_t pp_barrier_new(uint32_t parties, uint32_t flags, pp_barrier *barrier_out)
{
	pp__handle *handle;

	if ((flags & ~(uint32_t)PP_BARRIER_ACTION) != 0 || parties == 0 || parties > PP__BARRIER_MOST)
		return pp__fail(PP_ERR_INVALID, "pp_barrier_new: %u parties, flags %#x", parties, flags);
	const uint32_t count = parties + 16;
	const int32_t status = new_object(PP__KIND_BARRIER, sizeof(pp__barrier) + (uint64_t)8 * count, flags != 0 ? PP__SYNC_ACTION : 0, barrier_out,
	                                  &handle);
	if (status == PP_OK) {
		pp__barrier *const barrier = object_of(handle);
		barrier->parties = parties;
		barrier->cells_count = count;
		*barrier_out = handle->number;
	}
	return status;
}

static int32_t barrier_wait(pp__handle *handle, uint64_t deadline, uint64_t *kept, uint32_t *index_out)
{
	uint64_t place = kept == NULL ? 0 : *kept;
	bool ended = false;
	gate g;
	int32_t status = gate_of(handle, &g);

	if (status != PP_OK)
		return status;
	if (pp__join(handle->heap) == 0)
		return pp__failed();
	if (place == 0)
		status = barrier_arrive(&g, &place, &ended);
	if (status == PP_OK && index_out != NULL)
		*index_out = (uint32_t)(place >> 30) & 0xffff;
	if (status == PP_OK && !ended)
		status = barrier_sleep(&g, place, deadline, kept != NULL);
	if (status == PP_ERR_INTERRUPTED && kept == NULL && place != 0)
		barrier_leave(&g, place);
	if (kept != NULL)
		*kept = status == PP_ERR_INTERRUPTED ? place : 0;
	return status;
}

int32_t pp_barrier_wait(pp_barrier barrier, int64_t timeout_ms, uint64_t *place, uint32_t *index_out)
{
	WAITS(barrier, PP__KIND_BARRIER, barrier_wait(handle, deadline, place, index_out));
}

static int32_t leave(pp__handle *handle, uint64_t place)
{
	gate g;
	const int32_t status = gate_of(handle, &g);

	if (status == PP_OK && place != 0)
		barrier_leave(&g, place);
	return status;
}

int32_t pp_barrier_leave(pp_barrier barrier, uint64_t place)
{
	PINNED(barrier, PP__KIND_BARRIER, leave(handle, place));
}

static int32_t release_barrier(pp__handle *handle)
{
	pp__barrier *const barrier = object_of(handle);

	for (;;) {
		const uint64_t v = LOAD(&barrier->word);
		const state s = state_of(v);
		if (s.phase == PP__BARRIER_BROKEN)
			return broken();
		if (s.phase != PP__BARRIER_FULL)
			return pp__fail(PP_ERR_STATE, "pp_barrier_release: no action is running");
		if (CAS(&barrier->word, v, next_word(s, 0))) {
			PP__POINT(barrier_passed);
			wake(low(&barrier->word), INT_MAX);
			return PP_OK;
		}
	}
}

int32_t pp_barrier_release(pp_barrier barrier)
{
	PINNED(barrier, PP__KIND_BARRIER, release_barrier(handle));
}

static int32_t abort_barrier(pp__handle *handle)
{
	pp__barrier *const barrier = object_of(handle);
	uint64_t v;

	while (state_of(v = LOAD(&barrier->word)).phase != PP__BARRIER_BROKEN)
		barrier_break(barrier, v);
	return PP_OK;
}

int32_t pp_barrier_abort(pp_barrier barrier)
{
	PINNED(barrier, PP__KIND_BARRIER, abort_barrier(handle));
}

static int32_t reset(pp__handle *handle)
{
	pp__barrier *const barrier = object_of(handle);

	for (;;) {
		const uint64_t v = LOAD(&barrier->word);
		const state s = state_of(v);
		if (s.phase == PP__BARRIER_FULL)
			return PP_OK;
		/* Also with nobody in it: one may have died between its cell and its arrival. */
		if (barrier_end(barrier, v, next_word(s, 1))) {
			PP__POINT(barrier_reset);
			return PP_OK;
		}
	}
}

int32_t pp_barrier_reset(pp_barrier barrier)
{
	PINNED(barrier, PP__KIND_BARRIER, reset(handle));
}

static int32_t barrier_info(pp__handle *handle, pp_barrier_state *out)
{
	const pp__barrier *const barrier = object_of(handle);
	const state s = state_of(LOAD(&barrier->word));

	out->parties = barrier->parties;
	out->waiting = s.phase == PP__BARRIER_FILLING ? s.arrived : 0;
	out->broken = s.phase == PP__BARRIER_BROKEN;
	return PP_OK;
}

int32_t pp_barrier_info(pp_barrier barrier, pp_barrier_state *state_out)
{
	if (state_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_barrier_info: NULL");
	PINNED(barrier, PP__KIND_BARRIER, barrier_info(handle, state_out));
}

int32_t pp_barrier_free(pp_barrier barrier)
{
	return pp__handle_free(barrier, PP__KIND_BARRIER);
}
