/* spin.h - waiting for a moment without a system call, as long as it pays.
 *
 * A sleep and a wake-up cost each side some 20 us (a virtual CPU that has halted), a message between two CPUs that look costs less than one. So who waits looks first, for about as
 * long as a sleep costs, and learns whether that is worth it: each success doubles the time for the next, each failure halves it, down to nothing. What then tells that it would
 * be worth it again is a sleep that was short: two processes that answer each other at once, but sleep, see nothing but the time that the wake-ups take. */
#ifndef PP_SPIN_H
#define PP_SPIN_H

#include "front.h"

enum {
	PP__SPIN_LEAST = 1000,   /* ns, shorter is not worth a look at the clock */
	PP__SPIN_MOST = 50000,   /* ns */
	PP__SPIN_SHORT = 100000, /* ns: a wait that ended before, wake-ups included, may have been for who answers at once */
	PP__SPIN_REST = 64,      /* short waits until the next try */
};

/* What a handle knows about its waits. Several threads may share it: it is a guess for all of them. */
typedef struct pp__patience {
	uint32_t budget; /* ns to spin for; 0: not at all */
	uint32_t rest;   /* short waits that are left until it is tried again */
} pp__patience;

_Static_assert(sizeof(pp__patience) == sizeof(uint64_t), "a word of a handle");

static inline pp__patience pp__patience_of(const uint64_t *word)
{
	const uint64_t both = __atomic_load_n(word, __ATOMIC_RELAXED);

	return (pp__patience){(uint32_t)both, (uint32_t)(both >> 32)};
}

static inline void pp__patience_set(uint64_t *word, uint32_t budget, uint32_t rest)
{
	__atomic_store_n(word, (uint64_t)rest << 32 | budget, __ATOMIC_RELAXED);
}

/* pp__spin looks at ready(object) for as long as word, a word of the handle, says, and reports whether it came true. *began_out: when it began, for pp__slept. */
static inline bool pp__spin(uint64_t *word, bool (*ready)(const void *object), const void *object, uint64_t *began_out)
{
	static int32_t cpus;
	const pp__patience now = pp__patience_of(word);
	const uint64_t began = *began_out = pp__now_ns();

	if (cpus == 0)
		cpus = pp_cpu_count();
	if (cpus == 1 || now.budget == 0)
		return false;
	do {
		for (int i = 0; i < 8; i++)
			pp__pause();
		if (ready(object)) {
			pp__patience_set(word, 2 * now.budget < PP__SPIN_MOST ? 2 * now.budget : PP__SPIN_MOST, 0);
			return true;
		}
	} while (pp__now_ns() - began < now.budget);
	if (now.budget / 2 < PP__SPIN_LEAST)
		pp__patience_set(word, 0, PP__SPIN_REST);
	else
		pp__patience_set(word, now.budget / 2, 0);
	return false;
}

typedef struct pp__change {
	const uint32_t *word;
	uint32_t from;
} pp__change;

static inline bool pp__changed(const void *object)
{
	const pp__change *const c = object;

	return __atomic_load_n(c->word, __ATOMIC_SEQ_CST) != c->from;
}

/* pp__spin_on is pp__spin until *watched is not `from` any more: what a futex would wait for. */
static inline bool pp__spin_on(uint64_t *word, const uint32_t *watched, uint32_t from, uint64_t *began_out)
{
	const pp__change c = {watched, from};

	return pp__spin(word, pp__changed, &c, began_out);
}

/* pp__slept is told when a wait is over that has slept. */
static inline void pp__slept(uint64_t *word, uint64_t began)
{
	const pp__patience now = pp__patience_of(word);

	if (now.budget != 0 || pp__now_ns() - began > PP__SPIN_SHORT)
		return;
	if (now.rest > 1)
		pp__patience_set(word, 0, now.rest - 1);
	else
		pp__patience_set(word, PP__SPIN_MOST, 0);
}

#endif
