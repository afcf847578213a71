/* sync_killsweep_test.c - a process that dies at any instruction of an operation on a lock, semaphore, condition, event or barrier leaves it as it was
 * before or after: the others go on, nobody acquires a lock whose holder died unaware, and no wake-up is lost.
 *
 * For each k a child executes k instructions of the operation and is killed (killsweep.h). A child that sleeps is given what it waits for. From what lies in
 * the memory then it is told which commit point of capi/front/sync.h the child had passed; each must have been reached.
 *
 * The library is the one that is shipped; only the layout (sync.h) is looked into.
 *
 * deadline: 300 s
 */
#include "killsweep.h"

#include <polyproc.h>
#include <pthread.h>
#include <sys/mman.h>

#include "../../capi/front/sync.h"

enum { PATIENCE = 20000, POINTS = 6 };

/* What parent and child share beside the objects. */
typedef struct shared {
	uint64_t entered;
	int32_t status;
} shared;

static shared *s;
static uint8_t *heap;  /* the family's, mapped once more */
static uint64_t heap_size;

/* The objects of a case; the child inherits the handles. */
static pp_lock lock, scratch;
static pp_semaphore semaphore;
static pp_condition condition;
static pp_event event;
static pp_barrier barrier;

/* at finds the object behind a handle in the memory of the family. */
static void *at(uint64_t handle)
{
	pp__ref ref;

	REQUIRE_STATUS(pp_ref_export(handle, &ref), PP_OK);
	REQUIRE_STATUS(pp_ref_forget(&ref), PP_OK);
	REQUIRE(ref.off < heap_size);
	return heap + ref.off;
}

/* ---- a helper of the survivors: a thread that waits ------------------------------------------------------------------------------------ */

typedef struct helper {
	pthread_t thread;
	int32_t (*wait)(void);
	int32_t status;
	uint32_t ended;
} helper;

static helper the_helper;

static void *help(void *arg)
{
	helper *const h = arg;

	h->status = h->wait();
	__atomic_store_n(&h->ended, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void helper_start(int32_t (*wait)(void))
{
	the_helper = (helper){.wait = wait};
	REQUIRE_EQ(pthread_create(&the_helper.thread, NULL, help, &the_helper), 0);
}

static int helper_ended(void)
{
	return (int)__atomic_load_n(&the_helper.ended, __ATOMIC_SEQ_CST);
}

static int32_t helper_join(void)
{
	WITHIN(PATIENCE, helper_ended());
	REQUIRE_EQ(pthread_join(the_helper.thread, NULL), 0);
	return the_helper.status;
}

/* ---- cases ---------------------------------------------------------------------------------------------------------------------- */

typedef struct sweep {
	const char *name;
	void (*prepare)(void);  /* parent: before the child */
	void (*begin)(void);    /* child: before the operation; may be NULL */
	int32_t (*op)(void);    /* child */
	void (*asleep)(void);   /* parent: the child sleeps; NULL: it wakes by itself */
	void (*started)(void);  /* parent: the child stands before the operation; may be NULL */
	int (*check)(int ended); /* parent: the child is dead. Returns which point was passed: 0 none, 1 ... */
	const char *points[POINTS]; /* their names, from 1 on */
} sweep;

static const sweep *now;

/* lock */

static pp__lock *lock_memory(void)
{
	return at(lock);
}

static uint64_t word_now(void)
{
	return __atomic_load_n(&lock_memory()->word, __ATOMIC_SEQ_CST) & ~(uint64_t)PP__SYNC_SLEEPERS;
}

static void prepare_lock(void)
{
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
}

static void prepare_rlock(void)
{
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &lock), PP_OK);
}

static int32_t acquire(void)
{
	return pp_lock_acquire(lock, PATIENCE);
}

static int32_t release(void)
{
	return pp_lock_release(lock);
}

static void child_acquires(void)
{
	if (acquire() != PP_OK)
		_exit(1);
}

static void child_acquires_twice(void)
{
	child_acquires();
	child_acquires();
}

static int32_t recover(void)
{
	return pp_lock_recover(lock, PATIENCE);
}

static bool is_poisoned(void)
{
	return word_now() == PP__LOCK_POISONED;
}

/* The lock must work. dead: it was held at a death: nobody acquires it unaware until one recovers it. */
static void lock_works(int dead)
{
	for (int i = 0; dead && i < 3; i++) {
		REQUIRE_STATUS(acquire(), PP_ERR_OWNER_DIED);
		REQUIRE(is_poisoned());
		REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_ERR_OWNER_DIED);
		REQUIRE_STATUS(release(), PP_ERR_OWNER_DIED);
	}
	REQUIRE_STATUS(dead ? recover() : pp_lock_acquire(lock, 0), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(scratch, 0), PP_OK);
	REQUIRE_STATUS(release(), PP_OK);
	REQUIRE_STATUS(pp_lock_release(scratch), PP_OK);
	REQUIRE_STATUS(release(), PP_ERR_STATE);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
}

static int check_acquire(int ended)
{
	const bool taken = word_now() != 0;

	REQUIRE(taken || !ended);
	lock_works(taken);
	return taken;
}

static int check_release(int ended)
{
	const bool held = word_now() != 0;

	REQUIRE(!held || !ended);
	lock_works(held);
	return !held;
}

static int check_levels(int ended)
{
	/* Two levels were held, and one more or less is: it is the dead one's anyhow. */
	const uint32_t levels = lock_memory()->count;

	REQUIRE(word_now() != 0 && (levels == 2 || levels == 3 || levels == 1));
	REQUIRE(!ended || levels != 2);
	lock_works(1);
	return levels != 2;
}

/* contended: the parent holds the lock, and lets go when the child sleeps */
static void prepare_held(void)
{
	prepare_lock();
	REQUIRE_STATUS(acquire(), PP_OK);
}

static void let_go(void)
{
	REQUIRE_STATUS(release(), PP_OK);
}

static int check_contended(int ended)
{
	pp_lock_state state;

	REQUIRE_STATUS(pp_lock_info(lock, &state), PP_OK);
	const bool taken = state.held == PP_LOCK_BY_PROCESS;
	REQUIRE(taken || !ended);
	if (state.held == PP_LOCK_BY_ME)
		let_go();
	lock_works(taken);
	return taken;
}

/* somebody sleeps when the child releases */
static int32_t wait_for_lock(void)
{
	const int32_t status = acquire();
	return status == PP_OK ? release() : status;
}

static void start_lock_waiter(void)
{
	helper_start(wait_for_lock);
	WITHIN(PATIENCE, (__atomic_load_n(&lock_memory()->word, __ATOMIC_SEQ_CST) & PP__SYNC_SLEEPERS) != 0);
}

static int check_release_to(int ended)
{
	const int32_t status = helper_join();

	REQUIRE(status == PP_OK || (status == PP_ERR_OWNER_DIED && !ended));
	lock_works(status != PP_OK);
	return status == PP_OK;
}

/* the holder is dead, and the child finds out */
static void prepare_dead_holder(void)
{
	prepare_lock();
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		child_acquires();
		raise(SIGKILL);
	}
	REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
	REQUIRE(word_now() != 0);
}

static int check_poisoned(int ended)
{
	const bool poisoned = is_poisoned();

	REQUIRE(word_now() != 0 && (poisoned || !ended));
	REQUIRE(!ended || s->status == PP_ERR_OWNER_DIED);
	lock_works(1);
	return poisoned;
}

/* the lock is poisoned, or its holder is dead, and the child recovers it */
static void prepare_poisoned(void)
{
	prepare_dead_holder();
	REQUIRE_STATUS(acquire(), PP_ERR_OWNER_DIED);
}

static uint64_t word_before;

static void note_word(void)
{
	word_before = word_now();
}

/* Whatever it has done, somebody has died with the lock. */
static int check_lock_recover(int ended)
{
	const bool taken = word_now() != word_before;

	REQUIRE(word_now() != 0 && (taken || !ended));
	lock_works(1);
	return taken;
}

static int32_t recover_and_release(void)
{
	const int32_t status = recover();
	return status == PP_OK ? release() : status;
}

static int check_whole(int ended)
{
	const uint64_t word = word_now();

	REQUIRE(word == 0 || !ended);
	lock_works(word != 0);
	return word == 0 ? 2 : word != word_before;
}

/* the lock recovers by itself */
static void prepare_silent(void)
{
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECOVER, &lock), PP_OK);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		child_acquires();
		raise(SIGKILL);
	}
	REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
}

static int check_silent(int ended)
{
	const bool taken = word_now() != word_before;

	REQUIRE(taken || !ended);
	REQUIRE_STATUS(acquire(), PP_OK);
	REQUIRE_STATUS(release(), PP_OK);
	lock_works(0);
	return taken;
}

/* semaphore */

static pp__semaphore *semaphore_memory(void)
{
	return at(semaphore);
}

static uint32_t value(void)
{
	uint32_t v;

	REQUIRE_STATUS(pp_semaphore_value(semaphore, &v), PP_OK);
	return v;
}

static void prepare_semaphore(void)
{
	REQUIRE_STATUS(pp_semaphore_new(2, 3, 0, &semaphore), PP_OK);
}

static bool was_given;

static void prepare_empty(void)
{
	REQUIRE_STATUS(pp_semaphore_new(0, 3, 0, &semaphore), PP_OK);
	was_given = false;
}

static void prepare_recover(void)
{
	REQUIRE_STATUS(pp_semaphore_new(2, 2, PP_SEMAPHORE_RECOVER, &semaphore), PP_OK);
}

static int32_t take(void)
{
	return pp_semaphore_acquire(semaphore, PATIENCE);
}

static int32_t give(void)
{
	return pp_semaphore_release(semaphore);
}

static void child_takes(void)
{
	if (take() != PP_OK)
		_exit(1);
}

/* The semaphore must have so many permits, exactly. */
static void semaphore_works(uint32_t permits)
{
	for (uint32_t i = 0; i < permits; i++)
		REQUIRE_STATUS(take(), PP_OK);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(give(), PP_OK);
	REQUIRE_STATUS(take(), PP_OK);
	REQUIRE_STATUS(pp_semaphore_free(semaphore), PP_OK);
}

static int check_take(int ended)
{
	const uint32_t v = value();

	REQUIRE((v == 2 && !ended) || v == 1);
	semaphore_works(v);
	return v == 1;
}

static int check_give(int ended)
{
	const uint32_t v = value();

	REQUIRE((v == 2 && !ended) || v == 3);
	semaphore_works(v);
	return v == 3;
}

static void give_one(void)
{
	REQUIRE_STATUS(give(), PP_OK);
	was_given = true;
}

static int check_take_contended(int ended)
{
	const uint32_t v = value();

	/* It was given one only if it slept. */
	const bool taken = was_given && v == 0;
	REQUIRE(v <= (uint32_t)was_given && (taken || !ended));
	semaphore_works(v);
	return taken;
}

static void start_semaphore_waiter(void)
{
	helper_start(take);
	WITHIN(PATIENCE, (__atomic_load_n(&semaphore_memory()->word, __ATOMIC_SEQ_CST) & PP__SYNC_SLEEPERS) != 0);
}

static int check_give_contended(int ended)
{
	/* If it was given, the sleeper has it, or is about to. */
	uint32_t v = 0;
	const int64_t until = now_ms() + 50;
	while (!helper_ended() && now_ms() < until && (v = value()) == 0 && !ended)
		nanosleep(&(struct timespec){0, 1000000}, NULL);
	const bool given = helper_ended() || v > 0 || ended;
	if (!given)
		REQUIRE_STATUS(give(), PP_OK);
	REQUIRE_STATUS(helper_join(), PP_OK);
	semaphore_works(0);
	return given;
}

/* permits of the dead are given back: whatever the child had, there are two again */
static int check_recover(int ended)
{
	const uint32_t v = value();

	REQUIRE(v == 1 || v == 2);
	(void)ended;
	semaphore_works(2);
	return v == 1;
}

static int check_recover_give(int ended)
{
	const uint32_t v = value();

	REQUIRE(v == 1 || v == 2);
	REQUIRE(!ended || v == 2);
	semaphore_works(2);
	return v == 2;
}

/* a dead one holds both permits, and the child takes one back */
static void prepare_dead_permits(void)
{
	prepare_recover();
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		child_takes();
		child_takes();
		raise(SIGKILL);
	}
	REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
	REQUIRE_EQ(value(), 0);
}

static int check_permit_recovered(int ended)
{
	const uint32_t v = value();

	REQUIRE(!ended || s->status == PP_OK);
	semaphore_works(2);
	return v > 0 || ended;
}

/* condition */

static pp__condition *condition_memory(void)
{
	return at(condition);
}

static void prepare_condition(void)
{
	prepare_rlock();
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
}

static int32_t wait_condition(void)
{
	return pp_condition_wait(condition, lock, PATIENCE);
}

static int32_t notify_one(void)
{
	return pp_condition_notify(condition, 1);
}

static int32_t wait_locked(void)
{
	int32_t status;

	status = recover(); /* the child may have died with it */
	if (status == PP_OK)
		status = wait_condition();
	if (status == PP_OK)
		status = release();
	return status;
}

static uint32_t waiting(void)
{
	uint32_t n;

	REQUIRE_STATUS(pp_condition_waiting(condition, &n), PP_OK);
	return n;
}

static void start_condition_waiter(void)
{
	helper_start(wait_locked);
	WITHIN(PATIENCE, waiting() == 1);
}

static void notify_child(void)
{
	REQUIRE_STATUS(notify_one(), PP_OK);
}

static void condition_done(void)
{
	REQUIRE_STATUS(recover(), PP_OK);
	REQUIRE_EQ(waiting(), 0);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
	REQUIRE_STATUS(release(), PP_OK);
	lock_works(0);
}

/* The child waited, or was about to. A waiter that comes later must get the notification that is sent after the child's death. */
static int check_wait(int ended)
{
	const uint64_t cell = condition_memory()->cells[0];
	const int point = ended ? 3 : cell == 0 ? 0 : (cell & 1) == 0 ? 1 : 2;

	if (point == 1) {
		/* Behind the dead one in the queue. */
		helper_start(wait_locked);
		WITHIN(PATIENCE, waiting() == 2 || (waiting() == 1 && condition_memory()->cells[0] != cell));
	} else {
		helper_start(wait_locked);
		WITHIN(PATIENCE, waiting() >= 1 || helper_ended());
	}
	/* With point 2 it inherits the notification that the dead one had got. */
	if (point != 2)
		REQUIRE_STATUS(notify_one(), PP_OK);
	REQUIRE_STATUS(helper_join(), PP_OK);
	condition_done();
	return point;
}

static int check_notify(int ended)
{
	const uint64_t cell = condition_memory()->cells[0];
	const bool notified = ended || cell == 0 || (cell & 1) != 0;

	if (!notified)
		REQUIRE_STATUS(notify_one(), PP_OK);
	REQUIRE_STATUS(helper_join(), PP_OK);
	condition_done();
	return notified;
}

/* A waiter is dead that was notified: the child, which waits too, inherits that. */
static void prepare_inheritance(void)
{
	prepare_condition();
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		child_acquires();
		wait_condition();
		_exit(1);
	}
	WITHIN(PATIENCE, waiting() == 1);
	REQUIRE_STATUS(acquire(), PP_OK); /* the process has given it up, so it is stopped without it */
	REQUIRE_STATUS(release(), PP_OK);
	REQUIRE_EQ(kill(pid, SIGSTOP), 0);
	REQUIRE_EQ(waitpid(pid, NULL, WUNTRACED), pid);
	REQUIRE_STATUS(notify_one(), PP_OK);
	REQUIRE_EQ(kill(pid, SIGKILL), 0);
	REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
	REQUIRE_EQ(condition_memory()->cells[0] & 1, 1);
}

static uint32_t owner_before;

static void note_owner(void)
{
	owner_before = (uint32_t)(condition_memory()->cells[0] >> 32);
}

static int check_inherit(int ended)
{
	const uint64_t first = condition_memory()->cells[0];
	const bool inherited = ended || (uint32_t)(first >> 32) != owner_before;
	/* It has taken the notification, and died while it took the lock back. */
	const bool consumed = first == 0 && condition_memory()->cells[1] == 0;

	REQUIRE(!ended || (s->status == PP_OK && consumed));
	/* Whatever the child did not use up comes to the next; if it has, that needs one of its own. */
	helper_start(wait_locked);
	WITHIN(PATIENCE, waiting() > 0 || helper_ended());
	nanosleep(&(struct timespec){0, 1000000}, NULL);
	if (consumed)
		REQUIRE_STATUS(notify_one(), PP_OK);
	WITHIN(PATIENCE, helper_ended());
	REQUIRE_STATUS(helper_join(), PP_OK);
	condition_done();
	return inherited;
}

/* event */

static pp__event *event_memory(void)
{
	return at(event);
}

static void prepare_event(void)
{
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
}

static void prepare_set(void)
{
	prepare_event();
	REQUIRE_STATUS(pp_event_set(event), PP_OK);
}

static int32_t wait_event(void)
{
	return pp_event_wait(event, PATIENCE);
}

static int32_t set_event(void)
{
	return pp_event_set(event);
}

static int32_t clear_event(void)
{
	return pp_event_clear(event);
}

static void start_event_waiter(void)
{
	helper_start(wait_event);
	WITHIN(PATIENCE, (event_memory()->word & PP__SYNC_SLEEPERS) != 0);
}

static void set_for_child(void)
{
	REQUIRE_STATUS(set_event(), PP_OK);
}

static void event_works(void)
{
	REQUIRE_STATUS(clear_event(), PP_OK);
	REQUIRE_STATUS(pp_event_wait(event, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(set_event(), PP_OK);
	REQUIRE_STATUS(pp_event_wait(event, 0), PP_OK);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
}

static int check_set(int ended)
{
	const bool set = pp_event_is_set(event) == 1;

	REQUIRE(set || !ended);
	if (!set)
		REQUIRE_STATUS(set_event(), PP_OK);
	REQUIRE_STATUS(helper_join(), PP_OK);
	event_works();
	return set;
}

static int check_clear(int ended)
{
	const bool set = pp_event_is_set(event) == 1;

	REQUIRE(!set || !ended);
	event_works();
	return !set;
}

static int check_event_wait(int ended)
{
	start_event_waiter_or_set:
	if (pp_event_is_set(event) == 1) {
		event_works();
		return ended;
	}
	helper_start(wait_event);
	WITHIN(PATIENCE, (event_memory()->word & PP__SYNC_SLEEPERS) != 0);
	REQUIRE_STATUS(set_event(), PP_OK);
	REQUIRE_STATUS(helper_join(), PP_OK);
	goto start_event_waiter_or_set;
}

/* barrier */

static pp__barrier *barrier_memory(void)
{
	return at(barrier);
}

static void prepare_barrier(void)
{
	REQUIRE_STATUS(pp_barrier_new(2, 0, &barrier), PP_OK);
}

static void prepare_action(void)
{
	REQUIRE_STATUS(pp_barrier_new(2, PP_BARRIER_ACTION, &barrier), PP_OK);
}

static int32_t wait_barrier(void)
{
	return pp_barrier_wait(barrier, PATIENCE, NULL, NULL);
}

static int32_t wait_and_act(void)
{
	uint32_t index;
	const int32_t status = pp_barrier_wait(barrier, PATIENCE, NULL, &index);
	return status == PP_OK && index == 1 ? pp_barrier_release(barrier) : status;
}

static int32_t wait_shortly(void)
{
	return pp_barrier_wait(barrier, 1, NULL, NULL);
}

static uint32_t arrived(void)
{
	return (uint32_t)(barrier_memory()->word >> 32) & 0xffff;
}

static uint32_t phase(void)
{
	return (uint32_t)barrier_memory()->word & 3;
}

static uint32_t generation(void)
{
	return (uint32_t)barrier_memory()->word >> 2;
}

static bool has_cell(void)
{
	return ((uint64_t *)(void *)(barrier_memory() + 1))[0] != 0;
}

static void start_barrier_waiter(void)
{
	helper_start(wait_barrier);
	WITHIN(PATIENCE, arrived() == 1);
}

static void barrier_works(void)
{
	pp_barrier_state state;

	REQUIRE_STATUS(pp_barrier_reset(barrier), PP_OK);
	REQUIRE_STATUS(pp_barrier_info(barrier, &state), PP_OK);
	REQUIRE(state.parties == 2 && state.waiting == 0 && !state.broken);
	for (int i = 0; i < 3; i++) {
		helper_start(wait_and_act);
		const int32_t status = (barrier_memory()->object.flags & PP__SYNC_ACTION) != 0 ? wait_and_act() : wait_barrier();
		REQUIRE_EQ(status, PP_OK);
		REQUIRE_STATUS(the_helper.wait == NULL ? PP_OK : helper_join(), PP_OK);
	}
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
}

static int32_t wait_no_action(void)
{
	const int32_t status = wait_barrier();
	return status;
}

static void barrier_passes(void)
{
	REQUIRE_STATUS(pp_barrier_reset(barrier), PP_OK);
	for (int i = 0; i < 3; i++) {
		helper_start(wait_no_action);
		REQUIRE_STATUS(wait_barrier(), PP_OK);
		REQUIRE_STATUS(helper_join(), PP_OK);
	}
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
}

/* the first to arrive: whoever comes next finds the barrier broken by its death, or itself the first */
static int check_first(int ended)
{
	const int point = ended ? 3 : generation() != 0 ? 3 : arrived() == 1 ? 2 : has_cell() ? 1 : 0;

	if (phase() == PP__BARRIER_FILLING && generation() == 0) {
		if (point == 0) {
			REQUIRE_STATUS(pp_barrier_wait(barrier, 1, NULL, NULL), PP_ERR_TIMEOUT);
		} else if (point == 1) {
			/* It has not arrived: found dead at the end of a slice. */
			REQUIRE_STATUS(wait_barrier(), PP_ERR_BROKEN);
		} else {
			/* With it there are two: the second passes, or finds it dead. */
			const int32_t status = wait_barrier();
			REQUIRE(status == PP_OK || status == PP_ERR_BROKEN);
		}
	}
	barrier_passes();
	return point;
}

static void arrive_second(void)
{
	REQUIRE_STATUS(wait_barrier(), PP_OK);
}

/* the last to arrive: the other passes, or is told */
static int check_last(int ended)
{
	const bool passed = generation() != 0;
	const int32_t status = helper_join();

	REQUIRE(status == (passed ? PP_OK : PP_ERR_BROKEN) || (!passed && !has_cell() && status == PP_ERR_TIMEOUT));
	REQUIRE(passed || !ended);
	barrier_passes();
	return passed;
}

/* not a cell of the helper's: the child's is the second */
static int check_last_or_none(int ended)
{
	const uint64_t second = ((uint64_t *)(void *)(barrier_memory() + 1))[1];

	if (generation() == 0 && second == 0) {
		/* It had not begun: the helper goes on waiting, and is freed by us. */
		REQUIRE(!ended && !helper_ended());
		REQUIRE_STATUS(wait_barrier(), PP_OK);
		REQUIRE_STATUS(helper_join(), PP_OK);
		barrier_passes();
		return 0;
	}
	return 1 + check_last(ended);
}

/* the one that runs the action */
static int check_action(int ended)
{
	const uint64_t second = ((uint64_t *)(void *)(barrier_memory() + 1))[1];
	const bool passed = generation() != 0, full = phase() == PP__BARRIER_FULL;

	if (!passed && second == 0) {
		REQUIRE(!ended && !helper_ended());
		REQUIRE_STATUS(wait_and_act(), PP_OK);
		REQUIRE_STATUS(helper_join(), PP_OK);
	} else {
		REQUIRE_STATUS(helper_join(), passed ? PP_OK : PP_ERR_BROKEN);
		REQUIRE(passed || !ended);
	}
	barrier_works();
	return passed ? 2 : full ? 1 : 0;
}

static int32_t abort_barrier(void)
{
	return pp_barrier_abort(barrier);
}

static int32_t reset_barrier(void)
{
	return pp_barrier_reset(barrier);
}

static int check_abort(int ended)
{
	const bool broken = phase() == PP__BARRIER_BROKEN;

	REQUIRE(broken || !ended);
	if (!broken)
		REQUIRE_STATUS(abort_barrier(), PP_OK);
	REQUIRE_STATUS(helper_join(), PP_ERR_BROKEN);
	barrier_passes();
	return broken;
}

static int check_reset(int ended)
{
	const bool moved = generation() != 0;

	REQUIRE(moved || !ended);
	if (!moved)
		REQUIRE_STATUS(reset_barrier(), PP_OK);
	REQUIRE_STATUS(helper_join(), PP_ERR_BROKEN);
	barrier_passes();
	return moved;
}

/* it runs out of time */
static int check_time_out(int ended)
{
	const bool broken = phase() == PP__BARRIER_BROKEN;

	REQUIRE(!ended || (broken && s->status == PP_ERR_TIMEOUT));
	barrier_passes();
	return broken;
}

static const sweep sweeps[] = {
	{"lock: acquire", prepare_lock, NULL, acquire, NULL, NULL, check_acquire, {"lock_taken"}},
	{"lock: release", prepare_lock, child_acquires, release, NULL, NULL, check_release, {"lock_free"}},
	{"lock: acquire, contended", prepare_held, NULL, acquire, let_go, NULL, check_contended, {"lock_taken"}},
	{"lock: release to a sleeper", prepare_lock, child_acquires, release, NULL, start_lock_waiter, check_release_to, {"lock_free"}},
	{"lock: acquire from the dead", prepare_dead_holder, NULL, acquire, NULL, NULL, check_poisoned, {"lock_poisoned"}},
	{"lock: recover", prepare_poisoned, NULL, recover, NULL, note_word, check_lock_recover, {"lock_recovered"}},
	{"lock: recover from the dead", prepare_dead_holder, NULL, recover, NULL, note_word, check_lock_recover, {"lock_inherited"}},
	{"lock: recover, release", prepare_poisoned, NULL, recover_and_release, NULL, note_word, check_whole, {"lock_recovered", "lock_free"}},
	{"lock: acquire from the dead, silently", prepare_silent, NULL, acquire, NULL, note_word, check_silent, {"lock_inherited"}},
	{"rlock: acquire", prepare_rlock, NULL, acquire, NULL, NULL, check_acquire, {"lock_taken"}},
	{"rlock: acquire again", prepare_rlock, child_acquires_twice, acquire, NULL, NULL, check_levels, {"lock_deeper"}},
	{"rlock: release a level", prepare_rlock, child_acquires_twice, release, NULL, NULL, check_levels, {"count"}},
	{"rlock: release", prepare_rlock, child_acquires, release, NULL, NULL, check_release, {"lock_free"}},
	{"semaphore: acquire", prepare_semaphore, NULL, take, NULL, NULL, check_take, {"semaphore_taken"}},
	{"semaphore: release", prepare_semaphore, NULL, give, NULL, NULL, check_give, {"semaphore_given"}},
	{"semaphore: acquire, contended", prepare_empty, NULL, take, give_one, NULL, check_take_contended, {"semaphore_taken"}},
	{"semaphore: release to a sleeper", prepare_empty, NULL, give, NULL, start_semaphore_waiter, check_give_contended, {"semaphore_given"}},
	{"semaphore, permits with names: acquire", prepare_recover, NULL, take, NULL, NULL, check_recover, {"permit_taken"}},
	{"semaphore, permits with names: release", prepare_recover, child_takes, give, NULL, NULL, check_recover_give, {"permit_given"}},
	{"semaphore, permits with names: acquire from the dead", prepare_dead_permits, NULL, take, NULL, NULL, check_permit_recovered, {"permit_recovered"}},
	{"condition: wait", prepare_condition, child_acquires_twice, wait_condition, notify_child, NULL, check_wait,
	 {"condition_waiting", "condition_notified", "end"}},
	{"condition: notify", prepare_condition, NULL, notify_one, NULL, start_condition_waiter, check_notify, {"condition_notified"}},
	{"condition: wait, and inherit", prepare_inheritance, child_acquires, wait_condition, NULL, note_owner, check_inherit, {"condition_inherited"}},
	{"event: set", prepare_event, NULL, set_event, NULL, start_event_waiter, check_set, {"event_set"}},
	{"event: clear", prepare_set, NULL, clear_event, NULL, NULL, check_clear, {"event_cleared"}},
	{"event: wait", prepare_event, NULL, wait_event, set_for_child, NULL, check_event_wait, {"end"}},
	{"barrier: first to arrive", prepare_barrier, NULL, wait_barrier, arrive_second, NULL, check_first, {"barrier_cell", "barrier_arrived", "end"}},
	{"barrier: last to arrive", prepare_barrier, NULL, wait_barrier, NULL, start_barrier_waiter, check_last_or_none, {"barrier_cell", "barrier_passed"}},
	{"barrier: last to arrive, with an action", prepare_action, NULL, wait_and_act, NULL, start_barrier_waiter, check_action,
	 {"barrier_arrived", "barrier_passed"}},
	{"barrier: abort", prepare_barrier, NULL, abort_barrier, NULL, start_barrier_waiter, check_abort, {"barrier_broken"}},
	{"barrier: reset", prepare_barrier, NULL, reset_barrier, NULL, start_barrier_waiter, check_reset, {"barrier_reset"}},
	{"barrier: time out", prepare_barrier, NULL, wait_shortly, NULL, NULL, check_time_out, {"barrier_broken"}},
};

/* ---- killing ---------------------------------------------------------------------------------------------------------------------- */

static void begin(void)
{
	/* A member by now, and all that is bound at the first call is bound. */
	if (pp_lock_acquire(scratch, PATIENCE) != PP_OK || pp_lock_release(scratch) != PP_OK)
		_exit(1);
	if (now->begin != NULL)
		now->begin();
}

static void op(void)
{
	s->status = now->op();
}

static uint32_t entered(void)
{
	return (uint32_t)__atomic_load_n(&s->entered, __ATOMIC_SEQ_CST);
}

static pid_t start(const sweep *w)
{
	memset(s, 0, sizeof *s);
	now = w;
	w->prepare();
	const pid_t child = way_fork(&s->entered, begin, op);
	if (w->started != NULL)
		w->started();
	return child;
}

static void run(const sweep *w)
{
	static way the_way = {.coarse = 2};
	const watcher watching = {.entered = entered, .asleep = w->asleep};
	unsigned hits[POINTS + 1] = {0}, killed = 0;

	pid_t child = start(w);
	way_record(&the_way, &watching, child);
	way_end(child);
	w->check(1);
	const uint32_t length = way_length(&the_way);
	for (uint32_t k = way_first(&the_way); k <= length; k = way_next(&the_way, k)) {
		child = start(w);
		way_to(&the_way, &watching, child, k);
		way_end(child);
		const int point = w->check(entered() == 2);
		REQUIRE(point >= 0 && point < POINTS);
		hits[point]++;
		killed++;
	}
	printf("%s: %u instructions, killed %u times: %u before the first commit point", w->name, length, killed, hits[0]);
	for (int i = 0; i < POINTS && w->points[i] != NULL; i++)
		printf(", %u after %s", hits[i + 1], w->points[i]);
	printf("; went another way: %u\n", the_way.missed);
	fflush(stdout);
	for (int i = 0; i < POINTS && w->points[i] != NULL; i++)
		REQUIRE(hits[i + 1] > 0);
	REQUIRE(hits[0] > 0);
}

int main(int argc, char **argv)
{
	int32_t fds[2];

	way_bind(argv);
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(s != MAP_FAILED);
	REQUIRE_STATUS(pp_lock_new(0, &scratch), PP_OK);
	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	heap_size = PP__SLAB_SIZE * (PP__SLAB_FIRST + 64);
	heap = mmap(NULL, heap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	REQUIRE(heap != MAP_FAILED);
	for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++)
		if (argc < 2 || strstr(sweeps[i].name, argv[1]) != NULL)
			run(&sweeps[i]);
	return 0;
}
