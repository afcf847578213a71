/* scribble.h - a thread that changes words of shared memory to and fro while calls use them, as a mad or hostile process of the family would. */
#ifndef SCRIBBLE_H
#define SCRIBBLE_H

#include "require.h"

#include <pthread.h>
#include <stdatomic.h>

enum { SCRIBBLE_MOST = 512 };

static uint64_t *scribble_words[SCRIBBLE_MOST];
static uint32_t scribble_count;
static atomic_bool scribble_over;
static uint64_t scribble_seed;

/* A value to put in place of another one: near to it, or anything. */
static uint64_t scribble_bad(uint64_t was, uint64_t any)
{
	switch (any >> 60) {
	case 0: return was ^ (uint64_t)1 << (any & 63);
	case 1: return was + (any & 4095) - 2048;
	case 2: return 0;
	case 3: return any;
	case 4: return was & 0xffffffff00000000u;
	case 5: return was ^ (any & 0xffff);
	case 6: return was ^ (any & 0xffff) << 32;
	default: return was + ((any & 7) + 1) * 8;
	}
}

static void *scribble_run(void *none)
{
	(void)none;
	while (!atomic_load_explicit(&scribble_over, memory_order_relaxed)) {
		const uint64_t any = next_random(&scribble_seed);
		uint64_t *const word = scribble_words[(any >> 8) % scribble_count];
		const uint64_t was = __atomic_load_n(word, __ATOMIC_RELAXED), bad = scribble_bad(was, next_random(&scribble_seed));
		/* To and fro: a reader that looks twice sees both. */
		for (int i = 0; i < 200; i++) {
			__atomic_store_n(word, bad, __ATOMIC_RELAXED);
			__atomic_store_n(word, was, __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

static inline void scribble_at(void *words, uint32_t n)
{
	for (uint32_t i = 0; i < n && scribble_count < SCRIBBLE_MOST; i++)
		scribble_words[scribble_count++] = (uint64_t *)words + i;
}

/* scribble_start begins to change the words that scribble_at has named. */
static inline pthread_t scribble_start(uint64_t seed)
{
	pthread_t thread;

	scribble_seed = seed | 1;
	REQUIRE_EQ(pthread_create(&thread, NULL, scribble_run, NULL), 0);
	return thread;
}

static inline void scribble_stop(pthread_t thread)
{
	atomic_store(&scribble_over, true);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
}

#endif
