/* bell.h - the eventcount of lane.h. waiters is a flag, not a count: a sleeper that dies leaves it up, and the next ring takes
 * it down at the price of one useless system call. The ringer takes it down before it wakes everybody, so that of a burst of
 * rings only the first makes a system call. */
#ifndef PP_BELL_H
#define PP_BELL_H

#include "wait.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Announces a sleeper and returns the number to sleep on. The caller looks again before it sleeps. The number is read first: a
 * ring between the two takes the flag down, and must be seen as one that has come since. */
static inline uint32_t pp__bell_enter(pp__bell *bell)
{
	const uint32_t seq = __atomic_load_n(&bell->seq, __ATOMIC_SEQ_CST);

	__atomic_store_n(&bell->waiters, PP__BELL_SLEEPS, __ATOMIC_SEQ_CST);
	return seq;
}

/* For bells with one sleeper: it is up. */
static inline void pp__bell_leave(pp__bell *bell)
{
	if (__atomic_load_n(&bell->waiters, __ATOMIC_RELAXED) != 0)
		__atomic_store_n(&bell->waiters, 0, __ATOMIC_SEQ_CST);
}

/* Sleeps until the bell was rung after seq was read, at most ns nanoseconds; returns as pp__futex_wait. */
static inline int32_t pp__bell_wait(const pp__bell *bell, uint32_t seq, uint64_t ns)
{
	return pp__futex_wait(&bell->seq, seq, ns);
}

/* Wakes who sleeps on the bell; the caller has published before. Returns how many were asleep. */
static inline long pp__bell_ring(pp__bell *bell)
{
	if (__atomic_load_n(&bell->waiters, __ATOMIC_SEQ_CST) == 0 || __atomic_exchange_n(&bell->waiters, 0, __ATOMIC_SEQ_CST) == 0)
		return 0;
	__atomic_fetch_add(&bell->seq, 1, __ATOMIC_SEQ_CST);
	return syscall(SYS_futex, &bell->seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

#endif
