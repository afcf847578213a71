/* sync_scribble_test.c - whatever another process writes into a lock, semaphore, condition or barrier while calls use it, no call reads or writes outside
 * of the object, but for blocks of the heap: what was checked is what is used.
 *
 * deadline: 120 s
 * sanitize: address
 */
#include "heapkit.h"
#include "scribble.h"

#include "../../capi/front/sync.c"

enum { TRIALS = 40, CALLS = 400, MARK = 0x5a };

static pp__heap *heap;

/* An object, and the one block behind it of the same class, which holds nothing but marks. */
static uint8_t *object, *after;
static uint64_t object_size;

static void *memory(uint64_t number, uint32_t kind)
{
	pp__handle *const handle = pp__pin(number, kind);

	REQUIRE(handle != NULL);
	object = pp__at(heap, handle->off);
	object_size = handle->room;
	pp__unpin(handle);
	return object;
}

static void mark_after(void)
{
	uint64_t off;

	REQUIRE_EQ(pp__alloc(heap, object_size, pp__tag(heap), &off, NULL), PP_OK);
	after = pp__at(heap, off);
	memset(after, MARK, object_size);
}

static void look_after(void)
{
	for (uint64_t i = 0; i < object_size; i++)
		REQUIRE_EQ(after[i], MARK);
}

static void use_barrier(uint64_t seed)
{
	pp_barrier number;
	uint64_t place = 0;
	uint32_t index;

	REQUIRE_EQ(pp_barrier_new(7, seed & 1 ? PP_BARRIER_ACTION : 0, &number), PP_OK);
	pp__barrier *const b = memory(number, PP__KIND_BARRIER);
	mark_after();
	/* Also numbers that let a reader that looks twice go far beyond the object. */
	scribble_at(&b->parties, 1);
	if (seed & 2)
		scribble_at(&b->word, 1);
	if (seed & 4)
		scribble_at(b + 1, 23);
	const pthread_t thread = scribble_start(seed);
	for (int i = 0; i < CALLS; i++) {
		(void)pp_barrier_wait(number, 1, i & 1 ? &place : NULL, &index);
		(void)pp_barrier_leave(number, next_random(&seed));
		(void)pp_barrier_reset(number);
		(void)pp_barrier_release(number);
	}
	scribble_stop(thread);
	look_after();
}

/* Two threads, as one alone does not wait. */
static pp_lock lock;
static pp_semaphore semaphore;
static pp_condition condition;

static void *contend(void *arg)
{
	const uint64_t which = *(const uint64_t *)arg;

	for (int i = 0; i < CALLS; i++) {
		if (which % 3 == 0) {
			(void)pp_semaphore_acquire(semaphore, 1);
			(void)pp_semaphore_release(semaphore);
			continue;
		}
		(void)pp_lock_acquire(lock, 1);
		if (i % 2 == 0)
			(void)pp_lock_recover(lock, 1);
		if (which % 3 == 1) {
			(void)pp_condition_notify(condition, 2);
			(void)pp_condition_notify_all(condition);
			uint64_t place;
			uint32_t levels;
			if (pp_condition_enter(condition, lock, &place, &levels) == PP_OK && pp_condition_sleep(condition, place, 1) != PP_OK)
				(void)pp_condition_leave(condition, place);
		}
		(void)pp_lock_release(lock);
	}
	return NULL;
}

static void use_others(uint64_t seed)
{
	uint64_t which = seed >> 8;
	pthread_t threads[2];

	REQUIRE_EQ(pp_lock_new((uint32_t)(seed & 3), &lock), PP_OK);
	REQUIRE_EQ(pp_condition_new(&condition), PP_OK);
	REQUIRE_EQ(pp_semaphore_new(5, 5, PP_SEMAPHORE_RECOVER, &semaphore), PP_OK);
	if (which % 3 == 0) {
		pp__semaphore *const m = memory(semaphore, PP__KIND_SEMAPHORE);
		mark_after();
		scribble_at(&m->word, 2);
		scribble_at(m + 1, 2);
	} else if (which % 3 == 1) {
		pp__condition *const c = memory(condition, PP__KIND_CONDITION);
		mark_after();
		scribble_at(&c->more, 2);
		scribble_at(c->cells, 4);
	} else {
		pp__lock *const l = memory(lock, PP__KIND_LOCK);
		mark_after();
		scribble_at(&l->word, 3);
	}
	const pthread_t thread = scribble_start(seed);
	for (int i = 0; i < 2; i++)
		REQUIRE_EQ(pthread_create(&threads[i], NULL, contend, &which), 0);
	for (int i = 0; i < 2; i++)
		REQUIRE_EQ(pthread_join(threads[i], NULL), 0);
	scribble_stop(thread);
	look_after();
}

static pp_barrier waited;

static void *wait_at_barrier(void *status)
{
	*(int32_t *)status = pp_barrier_wait(waited, 400, NULL, NULL);
	return NULL;
}

/* The number of cells changes, for good, while somebody waits: the waiter does not look for dead ones beyond those that there are. Behind the object lies what
 * looks like the cell of a dead process. */
static void use_changed(void)
{
	int32_t status = PP_OK;
	pthread_t thread;
	uint32_t joined;

	REQUIRE_EQ(pp_barrier_new(2, 0, &waited), PP_OK);
	pp__barrier *const b = memory(waited, PP__KIND_BARRIER);
	mark_after();
	REQUIRE(after > object);
	REQUIRE_EQ(pthread_create(&thread, NULL, wait_at_barrier, &status), 0);
	do
		joined = (uint32_t)(__atomic_load_n(&b->word, __ATOMIC_SEQ_CST) >> 32) & 0xffff;
	while (joined == 0);
	const uint64_t generation = (uint32_t)b->word >> 2;
	const uint32_t dead = heap->me ^ 1u << 30; /* of another generation */
	REQUIRE(pp__gone(heap, dead));
	for (uint64_t i = 0; i < object_size / 8; i++)
		((uint64_t *)(void *)after)[i] = (uint64_t)dead << 32 | generation;
	__atomic_store_n(&b->cells_count, (uint32_t)((after + object_size - (uint8_t *)(b + 1)) / 8), __ATOMIC_SEQ_CST);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_EQ(status, PP_ERR_TIMEOUT);
}

int main(void)
{
	uint64_t seed = 7;

	for (int i = 0; i < TRIALS; i++) {
		const uint64_t its = next_random(&seed);
		/* Each in a process and a heap of its own: what it spoils is not the next one's. */
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			alarm(60);
			heap = pp__family_heap();
			REQUIRE(heap != NULL);
			if (i == 0)
				use_changed();
			else if (i % 2 == 0)
				use_barrier(its);
			else
				use_others(its);
			_exit(0);
		}
		const int how = kit_wait(child);
		if (how != 0)
			fprintf(stderr, "round %d: %s %d\n", i, WIFSIGNALED(how) ? "signal" : "exit", WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how));
		REQUIRE_EQ(how, 0);
	}
	return 0;
}
