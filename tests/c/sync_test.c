/* sync_test.c - locks, semaphores, conditions, events and barriers between processes: what polyproc.h says of them, with processes that die and stop.
 *
 * deadline: 120 s
 */
#include "require.h"

#include <polyproc.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "../../capi/front/sync.h"

enum { PATIENCE = 20000 };

typedef struct shared {
	uint64_t numbers[64];
	uint64_t total;
	uint32_t stop;
	uint32_t ready;
} shared;

static shared *s;

static uint64_t get(uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static uint64_t add(uint64_t *p)
{
	return __atomic_fetch_add(p, 1, __ATOMIC_SEQ_CST);
}

static pid_t start(void (*body)(int), int which)
{
	const pid_t pid = fork();

	REQUIRE(pid >= 0);
	if (pid == 0) {
		body(which);
		_exit(0);
	}
	return pid;
}

/* finish ends the test unless the child ends well. */
static void finish(pid_t pid)
{
	int status;

	REQUIRE_EQ(waitpid(pid, &status, 0), pid);
	REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void end(pid_t pid)
{
	REQUIRE_EQ(kill(pid, SIGKILL), 0);
	REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
}

static pp_lock lock;
static pp_semaphore semaphore;
static pp_condition condition;
static pp_event event;
static pp_barrier barrier;

/* ---- lock */

static void hold_and_die(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	add(&s->total);
	for (;;)
		pause();
}

static void acquire_in_vain(int which)
{
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_ERR_OWNER_DIED);
	REQUIRE(strstr(pp_last_error(), "pp_lock_recover") != NULL && strstr(pp_last_error(), "PP_LOCK_RECOVER") != NULL);
	REQUIRE_STATUS(pp_lock_acquire(lock, which % 2 == 0 ? 0 : -1), PP_ERR_OWNER_DIED);
	REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_OWNER_DIED);
}

static void recover_once(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_lock_recover(lock, PATIENCE), PP_OK);
	REQUIRE_EQ(add(&s->numbers[0]), 0); /* alone */
	for (int i = 0; i < 20000; i++)
		__asm__ volatile("");
	__atomic_store_n(&s->numbers[0], 0, __ATOMIC_SEQ_CST);
	add(&s->numbers[1]);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
}

static void recover_and_die(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_lock_recover(lock, PATIENCE), PP_OK);
	raise(SIGKILL);
}

static void acquire_and_count(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	add(&s->numbers[1]);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
}

static void recover_not(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_lock_recover(lock, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_lock_recover(lock, 50), PP_ERR_TIMEOUT);
}

static void test_all_are_told(uint32_t flags)
{
	pid_t pids[6];

	REQUIRE_STATUS(pp_lock_new(flags, &lock), PP_OK);
	for (int round = 0; round < 5; round++) {
		memset(s, 0, sizeof *s);
		const pid_t holder = start(hold_and_die, 0);
		WITHIN(PATIENCE, get(&s->total) == 1);
		for (int i = 0; i < 6; i++)
			pids[i] = start(acquire_in_vain, i);
		end(holder);
		for (int i = 0; i < 6; i++)
			finish(pids[i]);
		pp_lock_state state;
		REQUIRE_STATUS(pp_lock_info(lock, &state), PP_OK);
		REQUIRE(state.held == PP_LOCK_POISONED && state.pid == 0 && state.levels == 0);
		/* One that dies while it recovers. */
		const pid_t recoverer = start(recover_and_die, 0);
		REQUIRE_EQ(waitpid(recoverer, NULL, 0), recoverer);
		acquire_in_vain(0);
		/* Of several, the first makes it whole for the others. */
		for (int i = 0; i < 6; i++)
			pids[i] = start(recover_once, i);
		for (int i = 0; i < 6; i++)
			finish(pids[i]);
		REQUIRE_EQ(s->numbers[1], 6);
		REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
		REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	}
	/* Recovering is acquiring where nobody has died, and where somebody has died unnoticed. */
	REQUIRE_STATUS(pp_lock_recover(lock, 0), PP_OK);
	if ((flags & PP_LOCK_RECURSIVE) != 0) {
		REQUIRE_STATUS(pp_lock_recover(lock, 0), PP_OK);
		REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	} else {
		REQUIRE_STATUS(pp_lock_recover(lock, 0), PP_ERR_TIMEOUT);
		REQUIRE_STATUS(pp_lock_recover(lock, 50), PP_ERR_TIMEOUT);
	}
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_STATE);
	memset(s, 0, sizeof *s);
	const pid_t unnoticed = start(hold_and_die, 0);
	WITHIN(PATIENCE, get(&s->total) == 1);
	end(unnoticed);
	REQUIRE_STATUS(pp_lock_recover(lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	/* Who only tries learns of it too. */
	memset(s, 0, sizeof *s);
	const pid_t holder = start(hold_and_die, 0);
	WITHIN(PATIENCE, get(&s->total) == 1);
	end(holder);
	int32_t status;
	WITHIN(PATIENCE, (status = pp_lock_acquire(lock, 0)) != PP_ERR_TIMEOUT);
	REQUIRE_EQ(status, PP_ERR_OWNER_DIED);
	REQUIRE_STATUS(pp_lock_acquire(lock, PP_TRY), PP_ERR_OWNER_DIED);
	REQUIRE_STATUS(pp_lock_recover(lock, PP_TRY), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
}

/* PP_LOCK_RECOVER: nobody is told. */
static void test_recovers_by_itself(uint32_t flags)
{
	pid_t pids[6];

	REQUIRE_STATUS(pp_lock_new(flags | PP_LOCK_RECOVER, &lock), PP_OK);
	for (int round = 0; round < 5; round++) {
		memset(s, 0, sizeof *s);
		const pid_t holder = start(hold_and_die, 0);
		WITHIN(PATIENCE, get(&s->total) == 1);
		for (int i = 0; i < 6; i++)
			pids[i] = start(acquire_and_count, i);
		end(holder);
		for (int i = 0; i < 6; i++)
			finish(pids[i]);
		REQUIRE_EQ(s->numbers[1], 6);
	}
	REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_STATE);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_new(4, &lock), PP_ERR_INVALID);
}

static void test_death(void)
{
	for (uint32_t flags = 0; flags <= PP_LOCK_RECURSIVE; flags += PP_LOCK_RECURSIVE) {
		test_all_are_told(flags);
		test_recovers_by_itself(flags);
	}
}

/* A wait at a condition does not give the lock back as if nothing had happened. */
static void *wait_told(void *arg)
{
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_condition_wait(condition, lock, *(int64_t *)arg), PP_ERR_OWNER_DIED);
	REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_OWNER_DIED); /* it is not held */
	return NULL;
}

static void test_condition_is_told(void)
{
	int64_t times[3] = {PATIENCE, -1, 1};
	pthread_t threads[3];
	uint32_t n;

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &lock), PP_OK);
	for (int i = 0; i < 2; i++)
		REQUIRE_EQ(pthread_create(&threads[i], NULL, wait_told, &times[i]), 0);
	do
		REQUIRE_STATUS(pp_condition_waiting(condition, &n), PP_OK);
	while (n < 2);
	const pid_t holder = start(hold_and_die, 0);
	WITHIN(PATIENCE, get(&s->total) == 1);
	REQUIRE_STATUS(pp_condition_notify(condition, 2), PP_OK);
	end(holder);
	for (int i = 0; i < 2; i++)
		REQUIRE_EQ(pthread_join(threads[i], NULL), 0);
	REQUIRE_STATUS(pp_condition_waiting(condition, &n), PP_OK);
	REQUIRE_EQ(n, 0);
	REQUIRE_STATUS(pp_lock_recover(lock, 0), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
}

/* A thread ends with a lock: any thread releases one that is not recursive, and recovers one that is. */
static void *hold_and_end(void *arg)
{
	(void)arg;
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	return NULL;
}

static void *hold_until_told(void *stop)
{
	hold_and_end(NULL);
	add(&s->total);
	WITHIN(PATIENCE, __atomic_load_n((int *)stop, __ATOMIC_SEQ_CST) != 0);
	return NULL;
}

static void test_thread_ends(void)
{
	pp_lock_state state;
	pthread_t thread;
	int stop = 0;

	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_EQ(pthread_create(&thread, NULL, hold_and_end, NULL), 0);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_STATUS(pp_lock_recover(lock, 50), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &lock), PP_OK);
	for (int round = 0; round < 3; round++) {
		REQUIRE_EQ(pthread_create(&thread, NULL, hold_and_end, NULL), 0);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
		REQUIRE_STATUS(pp_lock_acquire(lock, 20), PP_ERR_TIMEOUT);
		REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_STATE);
		finish(start(recover_not, 0)); /* another process cannot know */
		REQUIRE_STATUS(pp_lock_recover(lock, round == 0 ? 0 : PATIENCE), PP_OK);
		REQUIRE_STATUS(pp_lock_info(lock, &state), PP_OK);
		REQUIRE(state.held == PP_LOCK_BY_ME && state.levels == 1);
		REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	}
	/* Not while it lives. One that waits sees the end. */
	REQUIRE_EQ(pthread_create(&thread, NULL, hold_until_told, &stop), 0);
	WITHIN(PATIENCE, get(&s->total) == 1);
	REQUIRE_STATUS(pp_lock_recover(lock, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_lock_recover(lock, 200), PP_ERR_TIMEOUT);
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	REQUIRE_STATUS(pp_lock_recover(lock, PATIENCE), PP_OK);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
}

/* A thread may hold a lock until a destructor of its own gives it up, which is called after the library's. */
static pthread_key_t holding;

static void give_up_late(void *arg)
{
	(void)arg;
	add(&s->total);
	usleep(200000);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
}

static void *hold_to_the_end(void *arg)
{
	hold_and_end(arg);
	REQUIRE_EQ(pthread_setspecific(holding, &holding), 0);
	return NULL;
}

static void test_thread_is_not_over_yet(void)
{
	pthread_t thread;

	memset(s, 0, sizeof *s);
	REQUIRE_EQ(pthread_key_create(&holding, give_up_late), 0);
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &lock), PP_OK);
	REQUIRE_EQ(pthread_create(&thread, NULL, hold_to_the_end, NULL), 0);
	WITHIN(PATIENCE, get(&s->total) == 1);
	REQUIRE_STATUS(pp_lock_recover(lock, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_lock_recover(lock, PATIENCE), PP_OK);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_EQ(pthread_key_delete(holding), 0);
}

static void test_stopped_holder(void)
{
	int status;

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	const pid_t holder = start(hold_and_die, 0);
	WITHIN(PATIENCE, get(&s->total) == 1);
	REQUIRE_EQ(kill(holder, SIGSTOP), 0);
	REQUIRE_EQ(waitpid(holder, &status, WUNTRACED), holder);
	for (int i = 0; i < 3; i++)
		REQUIRE_STATUS(pp_lock_acquire(lock, 250), PP_ERR_TIMEOUT);
	pp_lock_state state;
	REQUIRE_STATUS(pp_lock_info(lock, &state), PP_OK);
	REQUIRE(state.held == PP_LOCK_BY_PROCESS && state.pid == holder && state.levels == 1);
	end(holder);
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_ERR_OWNER_DIED);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
}

static void release_it(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_STATE);
}

static void *acquire_in_thread(void *arg)
{
	*(int32_t *)arg = pp_lock_acquire(lock, 0);
	return NULL;
}

static void test_who_may(void)
{
	pp_lock_state state;
	pthread_t thread;
	int32_t status;

	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, -1), PP_OK);
	finish(start(release_it, 0)); /* another process */
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_ERR_HANDLE);

	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &lock), PP_OK);
	for (int i = 0; i < 3; i++)
		REQUIRE_STATUS(pp_lock_acquire(lock, -1), PP_OK);
	REQUIRE_STATUS(pp_lock_info(lock, &state), PP_OK);
	REQUIRE(state.held == PP_LOCK_BY_ME && state.pid == getpid() && state.levels == 3);
	REQUIRE_EQ(pthread_create(&thread, NULL, acquire_in_thread, &status), 0);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_EQ(status, PP_ERR_TIMEOUT); /* another thread */
	for (int i = 0; i < 3; i++)
		REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_STATE);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_new(7, &lock), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_lock_new(0, NULL), PP_ERR_INVALID);
}

/* Everybody takes the lock as fast as it can, holds it for a moment, and notes how many others had it since the last time. */
static void hammer(int which)
{
	uint64_t last = 0, most = 0, mine = 0;

	while (__atomic_load_n(&s->stop, __ATOMIC_RELAXED) == 0) {
		REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
		const uint64_t total = s->total++; /* the lock protects it */
		if (mine++ > 0 && total - last - 1 > most)
			most = total - last - 1;
		last = total;
		for (int i = 0; i < 20000; i++)
			__asm__ volatile("");
		REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	}
	s->numbers[which] = mine;
	s->numbers[32 + which] = most;
}

/* No waiter starves: of 200,000 acquisitions no process sees more than a fifth go by between two of its own. */
static void test_fair(void)
{
	enum { N = 6, TOTAL = 200000 };
	pid_t pids[N];
	uint64_t sum = 0;

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	for (int i = 0; i < N; i++)
		pids[i] = start(hammer, i);
	WITHIN(60000, get(&s->total) >= TOTAL);
	__atomic_store_n(&s->stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < N; i++)
		finish(pids[i]);
	for (int i = 0; i < N; i++) {
		printf("fairness: process %d: %llu times, at most %llu others in between\n", i, (unsigned long long)s->numbers[i],
		       (unsigned long long)s->numbers[32 + i]);
		sum += s->numbers[i];
		REQUIRE(s->numbers[i] > TOTAL / 200);
		REQUIRE(s->numbers[32 + i] < s->total / 5);
	}
	REQUIRE_EQ(sum, s->total); /* and the lock excludes */
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
}

/* ---- semaphore */

static void take_one(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, PATIENCE), PP_OK);
	add(&s->total);
	for (;;)
		pause();
}

static void take_and_end(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, PATIENCE), PP_OK);
	add(&s->total);
}

static void test_semaphore(void)
{
	uint32_t value;
	pid_t pids[8];

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_semaphore_new(0, 0, 0, &semaphore), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_semaphore_new(0, PP_SEMAPHORE_MOST, 0, &semaphore), PP_OK);
	for (int i = 0; i < 8; i++)
		pids[i] = start(take_and_end, i);
	for (int i = 0; i < 8; i++)
		REQUIRE_STATUS(pp_semaphore_release(semaphore), PP_OK);
	for (int i = 0; i < 8; i++)
		finish(pids[i]);
	REQUIRE_STATUS(pp_semaphore_value(semaphore, &value), PP_OK);
	REQUIRE_EQ(value, 0);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, 30), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_semaphore_free(semaphore), PP_OK);

	REQUIRE_STATUS(pp_semaphore_new(1, 1, 0, &semaphore), PP_OK);
	REQUIRE_STATUS(pp_semaphore_release(semaphore), PP_ERR_STATE);
	REQUIRE_STATUS(pp_semaphore_free(semaphore), PP_OK);
	REQUIRE_STATUS(pp_semaphore_new(2, 1, 0, &semaphore), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_semaphore_new(1, 2, PP_SEMAPHORE_RECOVER, &semaphore), PP_ERR_INVALID);

	/* Permits of the dead come back; those of a stopped process do not. */
	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_semaphore_new(2, 2, PP_SEMAPHORE_RECOVER, &semaphore), PP_OK);
	pids[0] = start(take_one, 0);
	pids[1] = start(take_one, 1);
	WITHIN(PATIENCE, get(&s->total) == 2);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, 300), PP_ERR_TIMEOUT);
	end(pids[0]);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, 300), PP_ERR_TIMEOUT);
	end(pids[1]);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_semaphore_release(semaphore), PP_OK);
	REQUIRE_STATUS(pp_semaphore_release(semaphore), PP_OK);
	REQUIRE_STATUS(pp_semaphore_release(semaphore), PP_ERR_STATE);
	REQUIRE_STATUS(pp_semaphore_free(semaphore), PP_OK);
}

/* ---- condition */

static void wait_once(int which)
{
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_condition_wait(condition, lock, PATIENCE), PP_OK);
	s->numbers[which] = add(&s->total) + 1;
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_ERR_STATE);
}

static uint32_t waiting(void)
{
	uint32_t n;

	REQUIRE_STATUS(pp_condition_waiting(condition, &n), PP_OK);
	return n;
}

static void test_condition(void)
{
	enum { N = 5 };
	pid_t pids[N];

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &lock), PP_OK);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	REQUIRE_STATUS(pp_condition_wait(condition, lock, 0), PP_ERR_STATE);
	for (uint32_t i = 0; i < N; i++) {
		pids[i] = start(wait_once, (int)i);
		WITHIN(PATIENCE, waiting() == i + 1);
	}
	end(pids[1]);
	REQUIRE_STATUS(pp_condition_notify(condition, 2), PP_OK); /* 0 and 2: 1 is dead */
	finish(pids[0]);
	finish(pids[2]);
	REQUIRE(s->numbers[0] != 0 && s->numbers[2] != 0 && s->total == 2);
	REQUIRE_EQ(waiting(), 2);
	REQUIRE_STATUS(pp_condition_notify_all(condition), PP_OK);
	finish(pids[3]);
	finish(pids[4]);
	REQUIRE_EQ(waiting(), 0);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	REQUIRE_STATUS(pp_condition_wait(condition, lock, 20), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
}

static void *many_wait(void *arg)
{
	(void)arg;
	REQUIRE_STATUS(pp_lock_acquire(lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_condition_wait(condition, lock, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	return NULL;
}

/* More waiters than there are cells in the object. */
static void test_many_waiters(void)
{
	enum { N = PP__CONDITION_CELLS + 30 };
	static pthread_t threads[N];
	pthread_attr_t small;

	REQUIRE_EQ(pthread_attr_init(&small), 0);
	REQUIRE_EQ(pthread_attr_setstacksize(&small, 256 << 10), 0);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	for (int i = 0; i < N; i++)
		REQUIRE_EQ(pthread_create(&threads[i], &small, many_wait, NULL), 0);
	WITHIN(PATIENCE, waiting() == N);
	REQUIRE_STATUS(pp_condition_notify(condition, N / 2), PP_OK);
	WITHIN(PATIENCE, waiting() == N - N / 2);
	REQUIRE_STATUS(pp_condition_notify_all(condition), PP_OK);
	for (int i = 0; i < N; i++)
		REQUIRE_EQ(pthread_join(threads[i], NULL), 0);
	REQUIRE_EQ(waiting(), 0);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
}

/* ---- event */

static void wait_for_event(int which)
{
	(void)which;
	add(&s->total);
	REQUIRE_STATUS(pp_event_wait(event, PATIENCE), PP_OK);
}

static void test_event(void)
{
	pid_t pids[4];
	int status;

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_event_wait(event, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_event_wait(event, 20), PP_ERR_TIMEOUT);
	for (int i = 0; i < 4; i++)
		pids[i] = start(wait_for_event, i);
	WITHIN(PATIENCE, get(&s->total) == 4);
	nanosleep(&(struct timespec){0, 30000000}, NULL); /* let them sleep; those who do not yet are stopped below and must not have missed it */
	REQUIRE_EQ(kill(pids[0], SIGSTOP), 0);
	REQUIRE_EQ(waitpid(pids[0], &status, WUNTRACED), pids[0]);
	REQUIRE_STATUS(pp_event_set(event), PP_OK);
	REQUIRE_STATUS(pp_event_clear(event), PP_OK);
	REQUIRE_EQ(kill(pids[0], SIGCONT), 0);
	for (int i = 0; i < 4; i++)
		finish(pids[i]);
	REQUIRE_EQ(pp_event_is_set(event), 0);
	REQUIRE_STATUS(pp_event_set(event), PP_OK);
	REQUIRE_EQ(pp_event_is_set(event), 1);
	REQUIRE_STATUS(pp_event_wait(event, -1), PP_OK);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
	REQUIRE_STATUS(pp_event_is_set(event), PP_ERR_HANDLE);
}

/* A wait that its caller can continue returns by itself, and misses nothing between two calls. */
static void test_continued_waits(void)
{
	uint64_t place = 0;
	uint32_t levels, index;

	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_event_sleep(event, NULL, -1), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_event_sleep(event, &place, 20), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_event_sleep(event, &place, -1), PP_ERR_INTERRUPTED);
	REQUIRE_STATUS(pp_event_sleep(event, &place, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_event_set(event), PP_OK);
	REQUIRE_STATUS(pp_event_clear(event), PP_OK);
	REQUIRE_STATUS(pp_event_sleep(event, &place, -1), PP_OK);
	place = 0;
	REQUIRE_STATUS(pp_event_sleep(event, &place, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);

	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	REQUIRE_STATUS(pp_condition_enter(condition, lock, &place, &levels), PP_OK);
	REQUIRE_STATUS(pp_condition_sleep(condition, place, -1), PP_ERR_INTERRUPTED);
	REQUIRE_STATUS(pp_condition_notify(condition, 1), PP_OK);
	REQUIRE_STATUS(pp_condition_sleep(condition, place, -1), PP_OK);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);

	REQUIRE_STATUS(pp_barrier_new(2, 0, &barrier), PP_OK);
	place = 0;
	REQUIRE_STATUS(pp_barrier_wait(barrier, -1, &place, &index), PP_ERR_INTERRUPTED);
	REQUIRE(place != 0);
	const pid_t other = fork();
	REQUIRE(other >= 0);
	if (other == 0)
		_exit(pp_barrier_wait(barrier, PATIENCE, NULL, NULL) != PP_OK);
	finish(other);
	REQUIRE_STATUS(pp_barrier_wait(barrier, -1, &place, &index), PP_OK);
	REQUIRE_EQ(index, 0);
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
}

/* ---- barrier */

static void meet(int which)
{
	for (int i = 0; i < 20; i++) {
		uint32_t index;
		add(&s->numbers[i]);
		REQUIRE_STATUS(pp_barrier_wait(barrier, PATIENCE, NULL, &index), PP_OK);
		REQUIRE_EQ(get(&s->numbers[i]), 4);
		if (index == 3) {
			REQUIRE_EQ(get(&s->total), (unsigned)i); /* nobody is let go before */
			add(&s->total);
			REQUIRE_STATUS(pp_barrier_release(barrier), PP_OK);
		}
		REQUIRE(get(&s->total) > (unsigned)i);
	}
	(void)which;
}

static void wait_broken(int which)
{
	(void)which;
	REQUIRE_STATUS(pp_barrier_wait(barrier, PATIENCE, NULL, NULL), PP_ERR_BROKEN);
}

static void wait_for_nothing(int which)
{
	(void)which;
	pp_barrier_wait(barrier, PATIENCE, NULL, NULL);
}

static pp_barrier_state barrier_now(void)
{
	pp_barrier_state state;

	REQUIRE_STATUS(pp_barrier_info(barrier, &state), PP_OK);
	return state;
}

static void test_barrier(void)
{
	pid_t pids[4];

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_barrier_new(0, 0, &barrier), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_barrier_new(4, PP_BARRIER_ACTION, &barrier), PP_OK);
	REQUIRE_STATUS(pp_barrier_release(barrier), PP_ERR_STATE);
	for (int i = 0; i < 4; i++)
		pids[i] = start(meet, i);
	for (int i = 0; i < 4; i++)
		finish(pids[i]);
	REQUIRE_EQ(s->total, 20);

	/* It is broken by time, by abort, by reset, and by the death of one who waits. */
	pids[0] = start(wait_broken, 0);
	WITHIN(PATIENCE, barrier_now().waiting == 1);
	REQUIRE_STATUS(pp_barrier_wait(barrier, 10, NULL, NULL), PP_ERR_TIMEOUT);
	finish(pids[0]);
	REQUIRE(barrier_now().broken == 1 && barrier_now().waiting == 0);
	REQUIRE_STATUS(pp_barrier_wait(barrier, 10, NULL, NULL), PP_ERR_BROKEN);
	REQUIRE_STATUS(pp_barrier_reset(barrier), PP_OK);
	for (int how = 0; how < 2; how++) {
		pids[0] = start(wait_broken, 0);
		WITHIN(PATIENCE, barrier_now().waiting == 1);
		REQUIRE_STATUS(how == 0 ? pp_barrier_abort(barrier) : pp_barrier_reset(barrier), PP_OK);
		finish(pids[0]);
		REQUIRE_STATUS(pp_barrier_reset(barrier), PP_OK);
	}
	pids[0] = start(wait_broken, 0);
	pids[1] = start(wait_for_nothing, 0);
	WITHIN(PATIENCE, barrier_now().waiting == 2);
	end(pids[1]);
	finish(pids[0]);
	REQUIRE_EQ(barrier_now().broken, 1);
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
}

/* object_in returns where an object lies in the heap that is mapped at heap. */
static uint8_t *object_in(uint8_t *heap, uint64_t handle)
{
	pp__ref where;

	REQUIRE_STATUS(pp_ref_export(handle, &where), PP_OK);
	REQUIRE_STATUS(pp_ref_forget(&where), PP_OK);
	return heap + where.off;
}

/* Sixteen others and more, all alive, are on their way to a barrier: the cell of a dead process that has arrived is not taken for another. */
static void test_barrier_without_cells(void)
{
	const uint64_t heap_size = PP__SLAB_SIZE * (PP__SLAB_FIRST + 64);
	int32_t fds[2];
	pp_lock lock;

	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	uint8_t *const heap = mmap(NULL, heap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	REQUIRE(heap != MAP_FAILED);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	const pp__lock *const locked = (const pp__lock *)(const void *)object_in(heap, lock);
	const uint64_t me = locked->word & 0x7fffffffu;
	REQUIRE_STATUS(pp_barrier_new(2, 0, &barrier), PP_OK);
	const pid_t dead = start(wait_for_nothing, 0);
	WITHIN(PATIENCE, barrier_now().waiting == 1);
	end(dead);
	pp__barrier *const at = (pp__barrier *)(void *)object_in(heap, barrier);
	uint64_t *const cells = (uint64_t *)(void *)(at + 1);
	uint64_t generation = 0;
	for (uint32_t i = 0; i < at->cells_count; i++)
		if (cells[i] != 0)
			generation = cells[i] & UINT32_MAX;
	for (uint32_t i = 0; i < at->cells_count; i++)
		if (cells[i] == 0)
			cells[i] = me << 32 | generation;
	REQUIRE_STATUS(pp_barrier_wait(barrier, PATIENCE, NULL, NULL), PP_ERR_BROKEN);
	REQUIRE_EQ(barrier_now().broken, 1);
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_EQ(munmap(heap, heap_size), 0);
}

/* ---- signals, references, numbers, bad memory */

static void nothing(int signal)
{
	(void)signal;
}

/* interrupted: the call must end because of a signal, which arrives again and again. */
static void interrupted(int32_t (*call)(void))
{
	const struct sigaction act = {.sa_handler = nothing};
	const struct itimerval often = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};

	REQUIRE_EQ(sigaction(SIGALRM, &act, NULL), 0);
	REQUIRE_EQ(setitimer(ITIMER_REAL, &often, NULL), 0);
	const int32_t status = call();
	REQUIRE_EQ(setitimer(ITIMER_REAL, &never, NULL), 0);
	REQUIRE_STATUS(status, PP_ERR_INTERRUPTED);
}

static int32_t wait_lock(void)
{
	return pp_lock_acquire(lock, -1);
}

static int32_t wait_semaphore(void)
{
	return pp_semaphore_acquire(semaphore, -1);
}

static int32_t wait_condition(void)
{
	return pp_condition_wait(condition, lock, -1);
}

static int32_t wait_event(void)
{
	return pp_event_wait(event, -1);
}

static int32_t wait_barrier(void)
{
	return pp_barrier_wait(barrier, -1, NULL, NULL);
}

static void test_signals(void)
{
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	REQUIRE_STATUS(pp_barrier_new(2, 0, &barrier), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, -1), PP_OK);
	interrupted(wait_lock);
	interrupted(wait_event);
	interrupted(wait_condition);
	REQUIRE_EQ(waiting(), 0);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK); /* it was taken back */
	interrupted(wait_barrier);
	REQUIRE_EQ(barrier_now().waiting, 0);
	for (int recover = 0; recover < 2; recover++) {
		REQUIRE_STATUS(pp_semaphore_new(1, 1, recover ? PP_SEMAPHORE_RECOVER : 0, &semaphore), PP_OK);
		REQUIRE_STATUS(pp_semaphore_acquire(semaphore, -1), PP_OK);
		interrupted(wait_semaphore);
		REQUIRE_STATUS(pp_semaphore_free(semaphore), PP_OK);
	}
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
}

/* A handler sets an event. It is the first call of its thread, which it may have interrupted in the middle of malloc. */
static void set_event(int signal)
{
	(void)signal;
	REQUIRE_STATUS(pp_event_set(event), PP_OK);
}

static void *allocate(void *stop)
{
	add(&s->total);
	while (__atomic_load_n((int *)stop, __ATOMIC_SEQ_CST) == 0) {
		void *volatile block = malloc(100000);
		free(block);
	}
	return NULL;
}

static void test_handlers(void)
{
	const struct sigaction act = {.sa_handler = set_event, .sa_flags = SA_RESTART};

	memset(s, 0, sizeof *s);
	REQUIRE_EQ(sigaction(SIGUSR1, &act, NULL), 0);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	for (uint64_t i = 0; i < 500; i++) {
		pthread_t thread;
		int stop = 0;
		REQUIRE_EQ(pthread_create(&thread, NULL, allocate, &stop), 0);
		WITHIN(PATIENCE, get(&s->total) == i + 1);
		REQUIRE_EQ(pthread_kill(thread, SIGUSR1), 0);
		REQUIRE_STATUS(pp_event_wait(event, PATIENCE), PP_OK);
		__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
		REQUIRE_STATUS(pp_event_clear(event), PP_OK);
	}
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
}

static uint8_t ref[PP_REF_SIZE];

/* A handle that is freed during a wait ends that wait, which then does not count any more. */
static void *wait_freed(void *of)
{
	REQUIRE_STATUS(pp_barrier_wait(*(pp_barrier *)of, -1, NULL, NULL), PP_ERR_CLOSED);
	return NULL;
}

static void test_freed(void)
{
	pp_barrier other;
	pthread_t thread;

	REQUIRE_STATUS(pp_barrier_new(2, 0, &barrier), PP_OK);
	REQUIRE_STATUS(pp_ref_export(barrier, ref), PP_OK);
	REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_BARRIER, &other, NULL), PP_OK);
	REQUIRE_EQ(pthread_create(&thread, NULL, wait_freed, &other), 0);
	WITHIN(PATIENCE, barrier_now().waiting == 1);
	REQUIRE_STATUS(pp_barrier_free(other), PP_OK);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_EQ(barrier_now().waiting, 0);
	REQUIRE_STATUS(pp_barrier_wait(barrier, 10, NULL, NULL), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
}

static void make_and_die(int which)
{
	pp_semaphore made;

	(void)which;
	REQUIRE_STATUS(pp_semaphore_new(3, 5, 0, &made), PP_OK);
	REQUIRE_STATUS(pp_ref_export(made, s->numbers), PP_OK);
	__atomic_store_n(&s->ready, 1, __ATOMIC_SEQ_CST);
	raise(SIGKILL);
}

static void test_references(void)
{
	uint64_t other;
	uint32_t kind, value;

	memset(s, 0, sizeof *s);
	const pid_t pid = start(make_and_die, 0);
	REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
	REQUIRE_EQ(s->ready, 1);
	memcpy(ref, s->numbers, sizeof ref);
	REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_LOCK, &other, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_ANY, &other, &kind), PP_OK);
	REQUIRE_EQ(kind, PP_KIND_SEMAPHORE);
	REQUIRE_STATUS(pp_semaphore_value(other, &value), PP_OK);
	REQUIRE_EQ(value, 3);
	REQUIRE_STATUS(pp_lock_acquire(other, 0), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_semaphore_free(other), PP_OK);
	REQUIRE_STATUS(pp_ref_export(other, ref), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_ref_export(event, ref), PP_OK);
	REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_EVENT, &other, NULL), PP_OK);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
	REQUIRE_STATUS(pp_event_set(other), PP_OK);
	REQUIRE_STATUS(pp_event_free(other), PP_OK);
	REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_EVENT, &other, NULL), PP_ERR_CLOSED);
	memset(ref, 0xff, sizeof ref);
	REQUIRE(pp_ref_import(ref, PP_KIND_ANY, &other, NULL) != PP_OK);
}

static unsigned descriptors(void)
{
	DIR *const d = opendir("/proc/self/fd");
	unsigned n = 0;

	REQUIRE(d != NULL);
	while (readdir(d) != NULL)
		n++;
	closedir(d);
	return n;
}

static void test_ten_thousand(void)
{
	enum { N = 10000 };
	static uint64_t locks[N], events[N];
	struct rlimit before, few;

	REQUIRE_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = before;
	few.rlim_cur = 256;
	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
	const unsigned open_before = descriptors();
	for (int i = 0; i < N; i++) {
		REQUIRE_STATUS(pp_lock_new(i & 1, &locks[i]), PP_OK);
		REQUIRE_STATUS(pp_event_new(&events[i]), PP_OK);
		REQUIRE_STATUS(pp_lock_acquire(locks[i], 0), PP_OK);
	}
	REQUIRE_EQ(descriptors(), open_before);
	for (int i = 0; i < N; i++) {
		REQUIRE_EQ(pp_event_is_set(events[i]), 0);
		REQUIRE_STATUS(pp_lock_release(locks[i]), PP_OK);
		REQUIRE_STATUS(pp_lock_free(locks[i]), PP_OK);
		REQUIRE_STATUS(pp_event_free(events[i]), PP_OK);
	}
	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* Whatever lies in the memory of an object, calls return, and nothing is touched beside it. */
static void test_bad_memory(void)
{
	const uint64_t heap_size = PP__SLAB_SIZE * (PP__SLAB_FIRST + 64);
	uint64_t random = 88172645463325252u;
	uint64_t objects[7];
	int32_t fds[2];

	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	uint8_t *const heap = mmap(NULL, heap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	REQUIRE(heap != MAP_FAILED);
	for (int round = 0; round < 300; round++) {
		REQUIRE_STATUS(pp_lock_new(round & 1, &objects[0]), PP_OK);
		REQUIRE_STATUS(pp_semaphore_new(2, 3, 0, &objects[1]), PP_OK);
		REQUIRE_STATUS(pp_semaphore_new(2, 2, PP_SEMAPHORE_RECOVER, &objects[2]), PP_OK);
		REQUIRE_STATUS(pp_condition_new(&objects[3]), PP_OK);
		REQUIRE_STATUS(pp_event_new(&objects[4]), PP_OK);
		REQUIRE_STATUS(pp_barrier_new(2, 0, &objects[5]), PP_OK);
		REQUIRE_STATUS(pp_lock_new(0, &objects[6]), PP_OK);
		for (int i = 0; i < 6; i++) {
			pp__ref where;
			REQUIRE_STATUS(pp_ref_export(objects[i], &where), PP_OK);
			REQUIRE_STATUS(pp_ref_forget(&where), PP_OK);
			for (int n = 0; n < 1 + round % 8; n++) {
				const uint64_t value = next_random(&random), word = next_random(&random);
				/* Behind the head that all objects have. */
				uint8_t *const at = heap + where.off + 16 + (word >> 8) % (i == 3 ? 1008 : i == 2 || i == 5 ? 160 : 112);
				switch (value % 4) {
				case 0: *at = (uint8_t)(value >> 8); break;
				case 1: *at ^= (uint8_t)(1u << (value >> 8 & 7)); break;
				case 2: memset(heap + where.off + 16 + (word >> 8) % 12 * 8, (int)(value >> 8 & 0xff), 8); break;
				default: memset(heap + where.off + 16 + (word >> 8) % 12 * 8, 0, 8); break;
				}
			}
		}
		uint32_t n;
		pp_lock_state lock_state;
		pp_barrier_state barrier_state;
		pp_lock_acquire(objects[0], round % 3);
		pp_lock_info(objects[0], &lock_state);
		pp_lock_release(objects[0]);
		for (int i = 1; i < 3; i++) {
			pp_semaphore_acquire(objects[i], round % 3);
			pp_semaphore_value(objects[i], &n);
			pp_semaphore_release(objects[i]);
		}
		pp_condition_waiting(objects[3], &n);
		pp_condition_notify(objects[3], 2);
		if (pp_lock_acquire(objects[6], 0) == PP_OK)
			pp_condition_wait(objects[3], objects[6], round % 3);
		pp_condition_notify_all(objects[3]);
		pp_event_wait(objects[4], round % 3);
		pp_event_set(objects[4]);
		pp_event_clear(objects[4]);
		pp_barrier_info(objects[5], &barrier_state);
		uint64_t place = 0;
		if ((heap[0] & 1) == 0 || round % 2 == 0)
			pp_barrier_leave(objects[5], next_random(&random));
		/* A barrier whose action never ends is waited for: with a signal. */
		const struct sigaction act = {.sa_handler = nothing};
		const struct itimerval soon = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};
		REQUIRE_EQ(sigaction(SIGALRM, &act, NULL), 0);
		REQUIRE_EQ(setitimer(ITIMER_REAL, &soon, NULL), 0);
		pp_barrier_wait(objects[5], round % 3, &place, &n);
		REQUIRE_EQ(setitimer(ITIMER_REAL, &never, NULL), 0);
		pp_barrier_leave(objects[5], place);
		pp_barrier_release(objects[5]);
		pp_barrier_abort(objects[5]);
		pp_barrier_reset(objects[5]);
		REQUIRE_STATUS(pp_lock_free(objects[0]), PP_OK);
		REQUIRE_STATUS(pp_semaphore_free(objects[1]), PP_OK);
		REQUIRE_STATUS(pp_semaphore_free(objects[2]), PP_OK);
		REQUIRE_STATUS(pp_condition_free(objects[3]), PP_OK);
		REQUIRE_STATUS(pp_event_free(objects[4]), PP_OK);
		REQUIRE_STATUS(pp_barrier_free(objects[5]), PP_OK);
		REQUIRE_STATUS(pp_lock_free(objects[6]), PP_OK);
	}
	REQUIRE_EQ(munmap(heap, heap_size), 0);
}

/* ---- torture */

static pp_lock condition_lock;

/* a and b change together under the lock: who finds them different is behind one that died in between. */
static void torment(int which)
{
	int32_t s2;
	uint64_t random = (uint64_t)getpid() * 0x9e3779b97f4a7c15u;

	for (;;) {
		const uint64_t what = next_random(&random) >> 32;
		if (what % 8 == 0) {
			REQUIRE_STATUS(pp_semaphore_acquire(semaphore, PATIENCE), PP_OK);
			REQUIRE_STATUS(pp_semaphore_release(semaphore), PP_OK);
			add(&s->numbers[3]);
			continue;
		}
		uint64_t *const a = &s->numbers[4], *const b = &s->numbers[5];
		const int32_t status = pp_lock_acquire(lock, PATIENCE);
		if (status == PP_ERR_OWNER_DIED) {
			REQUIRE_STATUS(pp_lock_recover(lock, PATIENCE), PP_OK);
			add(&s->numbers[2]);
			if (get(a) != get(b)) {
				add(&s->numbers[6]);
				__atomic_store_n(b, get(a), __ATOMIC_SEQ_CST);
			}
		} else {
			REQUIRE_STATUS(status, PP_OK);
			REQUIRE_EQ(get(a), get(b)); /* nobody gets the lock unaware */
		}
		add(a);
		for (int i = 0; i < 20000; i++)
			__asm__ volatile("");
		add(b);
		REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
		if (what % 8 > 2)
			continue;
		/* The condition has a lock of its own, which recovers by itself. */
		REQUIRE_STATUS(pp_lock_acquire(condition_lock, PATIENCE), PP_OK);
		if (what % 8 == 1) {
			REQUIRE_STATUS(pp_condition_notify(condition, 2), PP_OK);
		} else {
			s2 = pp_condition_wait(condition, condition_lock, 1);
			REQUIRE(s2 == PP_OK || s2 == PP_ERR_TIMEOUT);
		}
		REQUIRE_STATUS(pp_lock_release(condition_lock), PP_OK);
	}
	(void)which;
}

/* Processes die at random: the lock excludes, and who acquires it after a holder's death knows. */
static void test_torture(void)
{
	enum { N = 6, KILLS = 1000 };
	uint64_t random = 4711, before = 0;
	pid_t pids[N];
	uint32_t value;

	memset(s, 0, sizeof *s);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	REQUIRE_STATUS(pp_semaphore_new(2, 2, PP_SEMAPHORE_RECOVER, &semaphore), PP_OK);
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECOVER, &condition_lock), PP_OK);
	for (int i = 0; i < N; i++)
		pids[i] = start(torment, i);
	for (int k = 0; k < KILLS; k++) {
		/* They get on between two deaths. */
		WITHIN(PATIENCE, get(&s->numbers[5]) > before + next_random(&random) % 300);
		before = get(&s->numbers[5]);
		const unsigned who = (unsigned)(next_random(&random) >> 33) % N;
		int status;
		REQUIRE_EQ(kill(pids[who], SIGKILL), 0);
		REQUIRE_EQ(waitpid(pids[who], &status, 0), pids[who]);
		REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* it had no complaint */
		pids[who] = start(torment, (int)who);
	}
	for (int i = 0; i < N; i++)
		end(pids[i]);
	const uint64_t told = s->numbers[2];
	REQUIRE_STATUS(pp_lock_recover(lock, PATIENCE), PP_OK);
	printf("torture: %d kills, %llu turns at the lock, %llu at the semaphore; %llu died holding the lock, in %llu cases in the middle of their work\n", KILLS,
	       (unsigned long long)s->numbers[5], (unsigned long long)s->numbers[3], (unsigned long long)told, (unsigned long long)s->numbers[6]);
	REQUIRE(told > 0 && s->numbers[6] <= told);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, PATIENCE), PP_OK);
	REQUIRE_STATUS(pp_semaphore_value(semaphore, &value), PP_OK);
	REQUIRE_EQ(value, 0);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(condition_lock), PP_OK);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
	REQUIRE_STATUS(pp_semaphore_free(semaphore), PP_OK);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{"death of a holder", test_death},
	{"a condition tells of it", test_condition_is_told},
	{"a thread ends", test_thread_ends},
	{"a thread is not over yet", test_thread_is_not_over_yet},
	{"who may acquire and release", test_who_may},
	{"stopped holder", test_stopped_holder},
	{"fairness", test_fair},
	{"semaphore", test_semaphore},
	{"condition", test_condition},
	{"many waiters", test_many_waiters},
	{"event", test_event},
	{"continued waits", test_continued_waits},
	{"barrier", test_barrier},
	{"barrier without cells", test_barrier_without_cells},
	{"signals", test_signals},
	{"handlers", test_handlers},
	{"freed", test_freed},
	{"references", test_references},
	{"ten thousand", test_ten_thousand},
	{"torture", test_torture},
	{"bad memory", test_bad_memory},
};

int main(int argc, char **argv)
{
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(s != MAP_FAILED);
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
		if (argc > 1 && strstr(tests[i].name, argv[1]) == NULL)
			continue;
		const int64_t begin = now_ms();
		tests[i].run();
		printf("%s: %lld ms\n", tests[i].name, (long long)(now_ms() - begin));
		fflush(stdout);
	}
	return 0;
}
