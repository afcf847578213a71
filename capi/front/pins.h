/* pins.h - which handles calls use at this moment.
 *
 * A handle that is freed in the middle of a call is closed when that call is over. A call says what it uses in a place of its thread, by plain stores; who frees a handle is rare,
 * and pays for both sides: it marks the handle, has every thread pass a full barrier (membarrier(2), PRIVATE_EXPEDITED), and then looks at the places of all threads. So
 *
 *   call:    place = handle;  look whether the handle has this number still;  use it;  place = NULL;  look whether it is CLOSING, then try to close it
 *   freeing: number = 0;  pins |= CLOSING;  membarrier;  look at all places;  none has it: close it
 *
 * needs no locked instruction in a call: either the call sees the mark, or who frees sees the call. Without membarrier (a filter of system calls) calls pass the barrier
 * themselves. What outlives a call, a message that was not copied, is counted in the handle. The idea is liburcu's (Desnoyers et al., "User-Level Implementations of
 * Read-Copy Update", IEEE TPDS 2012), with places instead of epochs: Michael, "Hazard Pointers", IEEE TPDS 2004. */
#ifndef PP_PINS_H
#define PP_PINS_H

#include "heap.h"

enum { PP__PINS = 4 }; /* handles that one thread's calls use at once; more are counted in the handle */

typedef struct pp__pins {
	pp__handle *held[PP__PINS];
	struct pp__pins *next; /* of all threads that there have been */
	uint32_t taken;        /* 1: by a thread that lives; 2: that is about to end; 0: by none */
	uint32_t thread;       /* its number (pp__thread), 0: none yet */
} __attribute__((aligned(64))) pp__pins;

/* Not initial-exec, which is no faster here: it would take all of this library's thread-local memory from the little that the C library keeps for libraries that are loaded
 * later, and a program with many of those could not load it. */
extern __thread pp__pins *pp__pins_mine __attribute__((visibility("hidden")));
extern bool pp__pins_asymmetric;

pp__pins *pp__pins_new(void);

static inline void pp__pins_order(void)
{
	if (__builtin_expect(__atomic_load_n(&pp__pins_asymmetric, __ATOMIC_RELAXED), true))
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
	else
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* pp__pins_take notes that this thread uses the handle: false if there is no place. A signal handler may call it in the middle of itself: it leaves the places as they were. */
static inline bool pp__pins_take(pp__handle *h)
{
	pp__pins *const mine = pp__pins_mine != NULL ? pp__pins_mine : pp__pins_new();

	for (int i = 0; mine != NULL && i < PP__PINS; i++)
		if (mine->held[i] == NULL) {
			__atomic_store_n(&mine->held[i], h, __ATOMIC_RELAXED);
			pp__pins_order();
			return true;
		}
	return false;
}

/* pp__pins_drop ends that: false if it was not noted. */
static inline bool pp__pins_drop(const pp__handle *h)
{
	pp__pins *const mine = pp__pins_mine;

	for (int i = PP__PINS - 1; mine != NULL && i >= 0; i--)
		if (mine->held[i] == h) {
			__atomic_store_n(&mine->held[i], NULL, __ATOMIC_RELEASE);
			pp__pins_order();
			return true;
		}
	return false;
}

/* pp__thread is this thread's number, from 1. No other thread of this process gets it, nor one of a forked child, which counts on. */
extern __thread uint32_t pp__thread_number __attribute__((visibility("hidden")));
uint32_t pp__thread_new(void);
static inline uint32_t pp__thread(void)
{
	const uint32_t number = pp__thread_number;
	return number != 0 ? number : pp__thread_new();
}

/* pp__thread_ended reports that the thread of this process with this number has ended. False: it lives, or that is not known. */
bool pp__thread_ended(uint32_t number);

/* pp__pins_known reports whether this thread has a place, and so has used this library's thread-local memory. It does not touch that memory itself: where
 * the library was loaded by dlopen(3), a thread's first access allocates it, which a signal handler must not. */
bool pp__pins_known(void);

/* pp__pins_any reports whether a call uses the handle, which is marked already. */
bool pp__pins_any(const pp__handle *h);

/* pp__handle_settle (objects.c) closes a handle that was freed, if nothing uses it any more. */
void pp__handle_settle(pp__handle *h);

/* pp__pins_in_child forgets what threads use that a forked child does not have. */
void pp__pins_in_child(void);

#endif
