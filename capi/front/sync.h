/* sync.h - locks, semaphores, conditions, events and barriers: what lies in the family heap (heap.h), for C (sync.c) and Go (core/ipcsync).
 *
 * Every operation commits by one store or CAS on one word. What is written before is seen by nobody; what dies after leaves at most a wake-up that
 * was not given, which sleepers make up for: no sleep is longer than PP__SYNC_SLICE_MAX_NS, then they look again, and look whether whom they
 * wait for is dead (pp__gone). All futexes are the low 32 bits of their word (little-endian), shared, FUTEX_WAIT / FUTEX_WAKE.
 *
 * An owner is a process (pp__join). A thread is a number from 1 that is unique in its process for as long as it lives: C counts threads; in Go it may be any
 * number that stands for whoever holds the lock. It is compared only where the owner is this process's.
 *
 * LOCK (pp__lock; PP__SYNC_RECURSIVE in object.flags: RLock)
 *   word = thread << 32 | sleepers << 31 | owner; 0: free.
 *   acquire   if turn is 0: CAS 0 -> thread, owner                                      [lock_taken]
 *             RLock: the word is mine (owner and thread): count + 1, no CAS.            [lock_deeper]
 *             after the CAS the holder writes count = 1: nobody but the holder believes count.
 *             poisoned: PP_ERR_OWNER_DIED, at once.
 *             else sleep: CAS in the sleepers' bit, FUTEX_WAIT on the low half. Who has slept takes the lock with the bit set: there may be others.
 *   release   Lock: by anybody. CAS word -> 0 (PP_ERR_STATE if it was 0)                [lock_free]   wake 1 if the bit was set.
 *             RLock: only where the word is mine. count > 1: count - 1. Else CAS word -> 0.
 *             poisoned: PP_ERR_OWNER_DIED, and it stays poisoned.
 *   death of the holder: an acquirer that finds the owner gone (at the end of a slice; with timeout 0 too, if the word has been the same for some ms)
 *             does CAS word -> PP__LOCK_POISONED [lock_poisoned], wakes all, and answers PP_ERR_OWNER_DIED.
 *             PP__SYNC_RECOVER in object.flags: CAS word -> thread, owner, with the bit kept [lock_inherited]: it has the lock.
 *   recover   as acquire, but PP__LOCK_POISONED -> thread, owner [lock_recovered], and of a dead holder [lock_inherited]. So too if the holder of an RLock is a thread of
 *             this process that has ended (pp__thread_ended).
 *   dies before lock_taken: nothing. After lock_taken, lock_recovered or lock_inherited: it is the dead holder. After lock_free, before the wake: sleepers wait for
 *             a slice. After lock_poisoned: all the same; sleepers learn of it at the ends of their slices. So the word says at each moment either that the holder is to be
 *             asked about, or that it has died: nobody acquires the lock unaware.
 *   condition wait releases all levels at once and takes them back by one CAS and count = levels.
 *
 * TURN (locks and semaphores): newcomers may overtake, but not for ever. turn = until << 32 | ticket, or 0. A waiter that was woken PP__SYNC_PATIENCE
 * times in vain, or has waited for PP__SYNC_PATIENT_NS, does CAS 0 -> {now + 2 slices in ms of CLOCK_MONOTONIC, its ticket (not 0, any number)}, and renews it whenever it wakes. Newcomers that find
 * a turn do not take the lock but sleep on turn (its low half, the ticket) until it is 0, or `until` is over (wrap-safe; then anybody may CAS
 * it to 0; more than 1 s ahead counts as over too), and then take part like all others. Who has slept on the word, tries only (timeout 0), or is at the end of
 * its time, ignores the turn. Its owner does CAS -> 0 and wakes all when it has the lock or gives up. Dead or stopped, its turn is over by itself.
 *
 * SEMAPHORE (pp__semaphore)
 *   word = most << 32 | sleepers << 31 | value: most never changes, value <= most.
 *   acquire   value > 0 and turn 0: CAS value - 1 (keeps the bit)                       [semaphore_taken]
 *             value 0: CAS in the bit, FUTEX_WAIT.
 *   release   value < most: CAS value + 1 (PP_ERR_STATE otherwise)                      [semaphore_given]
 *             with the bit: FUTEX_WAKE 1; if nobody was there, CAS the bit away from exactly that word.
 *   PP__SYNC_RECOVER in object.flags: the permits name their holders. cells[most] follow at offset 128, u32: 0, or the owner. value is not used:
 *   the free cells are the value. acquire: CAS a cell 0 -> owner [permit_taken]; release: CAS a cell of mine, else of anybody, -> 0 [permit_given], PP_ERR_STATE if all are free.
 *   Sleepers use bell: {seq, waiters} as in heap.h; at the end of a slice they CAS the cells of owners that are gone to 0 [permit_recovered]: all
 *   whose process id is none any more (kill(2)), and four others in turn, by pp__gone.
 *   dies: before a CAS nothing, after it holds a permit: which is gone for ever, as in the standard library, or given back with PP__SYNC_RECOVER.
 *
 * CONDITION (pp__condition): who waits has a cell. It knows no lock: the lock is an argument, as in pthread_cond_wait.
 *   cell = owner << 32 | ticket << 1 | notified; 0: free. ticket: 31 bits from tickets (fetch_add), compared wrap-safe: FIFO.
 *   PP__CONDITION_CELLS cells in the object; more in blocks of PP__CONDITION_MORE bytes (tag: the object's generation) that begin with the offset of the next, 0: none;
 *   linked by CAS of that offset, freed with the object.
 *   wait      CAS a free cell -> waiting [condition_waiting]; release the lock; FUTEX_WAIT on the cell until it is notified; cell = 0; take the lock back (all levels, for as long as it takes).
 *             If the lock's holder has died meanwhile: PP_ERR_OWNER_DIED, and the lock is not held, as with LOCK.
 *             out of time: CAS waiting -> 0 [condition_left]; if that fails it was notified after all.
 *             interrupted and given up though notified: the notification is passed on, below.
 *   notify n  n times: the waiting cell of the lowest ticket: CAS -> notified [condition_notified], wake it. Whose process is not there any more (kill(2): ESRCH) is passed over and its cell freed.
 *   a notified cell whose owner is gone: waiters look for those at the end of a slice. CAS the cell's owner to mine (it stays notified) [condition_inherited],
 *             notify the next one, cell = 0. So a death on the way leaves a notified cell of the dead again: a notification may be given twice, never lost.
 *   waiting cells of the dead are freed by notify, as above, and by who finds no free cell. (Not at the end of slices: all waiters would look at all others.)
 *
 * EVENT (pp__event)
 *   word (u32) = sleepers << 31 | seq << 1 | set.
 *   set       not set: CAS -> seq + 1, set, without sleepers [event_set]; wake all if there were.
 *   clear     CAS set away [event_cleared].
 *   wait      set: at once. Else CAS in the bit, FUTEX_WAIT; over as soon as seq is another one: a clear() right after the set() takes nothing away.
 *
 * BARRIER (pp__barrier): parties <= PP__BARRIER_MOST, cells[cells_count] (u64) follow at offset 128.
 *   word = history:16 << 48 | arrived:16 << 32 | generation:30 << 2 | phase. phase: 0 filling, 1 all are there and one of them runs the action, 2 broken.
 *   history: bit i tells how generation - 1 - i ended: 1 broken (or reset), 0 passed. Older than 16: counts as broken.
 *   wait      phase 2: PP_ERR_BROKEN. Phase 1: sleep until it is over, then as a newcomer. Phase 0: take a cell (0, or of another generation; none: an owner that is gone breaks the barrier):
 *             CAS -> owner << 32 | generation [barrier_cell]; CAS arrived + 1 [barrier_arrived], index = arrived before. The last one: PP__SYNC_ACTION: -> phase 1 in the same CAS,
 *             it is told and ends it by release; else -> next generation, arrived 0, history << 1 in the same CAS [barrier_passed], wake all.
 *             Others FUTEX_WAIT on the low half until generation or phase changes. The cell is freed (CAS to 0) on the way out.
 *   release   phase 1 -> next generation, as above [barrier_passed].
 *   time out  in phase 0: CAS -> phase 2 [barrier_broken], wake all; in phase 1 it waits for the end of the action.
 *   leave     (interrupted) CAS arrived - 1 in the same generation, phase 0 [barrier_left].
 *   abort     CAS -> phase 2. reset: phase 0 or 2: CAS -> next generation, arrived 0, history << 1 | 1 [barrier_reset], wake all.
 *   death     of one with a cell of this generation (waiting, or running the action): each waiter looks, at the end of a slice, at the next cell behind its own of another process and this generation, and breaks the barrier; so does the last to
 *             arrive, at once, if there is no process of that number any more.
 *
 * Whatever a word holds, nothing is read or written outside the object: values that cannot be are answered by PP_ERR_CORRUPT.
 */
#ifndef PP_SYNC_H
#define PP_SYNC_H

#include "heap.h"
#include "pins.h"

#include "sync_layout.gen.h"

/* A wait that its caller can continue (pp_event_sleep, pp_condition_sleep, pp_barrier_wait with a place) returns PP_ERR_INTERRUPTED after
 * about this time, so that the caller looks whether a signal came just before the sleep. */
#define PP__SYNC_RETURN_NS 500000000ull

/* ---- this process's side: sync.c; the handles are pinned by the caller. Deadlines as pp__mutex_lock's -------------------------------- */

/* PP_OK, PP_ERR_TIMEOUT, PP_ERR_OWNER_DIED, PP_ERR_INTERRUPTED, PP_ERR_STATE (RLock: too many levels), PP_ERR_NOMEM (cannot join).
 * levels: 1, or what pp__lock_release_all has returned. */
int32_t pp__lock_take(pp__handle *handle, uint64_t deadline, uint32_t levels);
int32_t pp__lock_recover(pp__handle *handle, uint64_t deadline);
int32_t pp__lock_give(pp__handle *handle); /* PP_OK, PP_ERR_STATE, PP_ERR_OWNER_DIED */

/* pp__lock_mine reports whether this thread holds the lock: how often, 0: it does not. */
uint32_t pp__lock_mine(const pp__handle *handle);

int32_t pp__semaphore_take(pp__handle *handle, uint64_t deadline);
int32_t pp__semaphore_give(pp__handle *handle); /* PP_OK, PP_ERR_STATE */
int32_t pp__semaphore_count(const pp__handle *handle, uint32_t *value_out);

/* pp__lock_fast takes the lock if that takes no more than one CAS. me: heap.me. */
static inline bool pp__lock_fast(pp__lock *lock, uint32_t me)
{
	uint64_t none = 0;

	if (me == 0 || __atomic_load_n(&lock->turn, __ATOMIC_RELAXED) != 0 ||
	    !__atomic_compare_exchange_n(&lock->word, &none, (uint64_t)pp__thread() << 32 | me, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	__atomic_store_n(&lock->count, 1, __ATOMIC_RELAXED);
	return true;
}

/* pp__lock_give_fast gives up the one level of this thread, if nobody sleeps. */
static inline bool pp__lock_give_fast(pp__lock *lock, uint32_t me)
{
	uint64_t mine = (uint64_t)pp__thread() << 32 | me;

	return __atomic_load_n(&lock->count, __ATOMIC_RELAXED) == 1 && me != 0 &&
	       __atomic_compare_exchange_n(&lock->word, &mine, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* pp__semaphore_fast takes a permit if there is one that has no name. */
static inline bool pp__semaphore_fast(pp__semaphore *semaphore)
{
	uint64_t v = __atomic_load_n(&semaphore->word, __ATOMIC_RELAXED);

	if (__atomic_load_n(&semaphore->turn, __ATOMIC_RELAXED) != 0)
		return false;
	do {
		const uint32_t value = (uint32_t)v & PP__SYNC_VALUE_MOST;
		if (value == 0 || value > v >> 32) /* with PP__SYNC_RECOVER it is 0 */
			return false;
	} while (!__atomic_compare_exchange_n(&semaphore->word, &v, v - 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	return true;
}

#endif
