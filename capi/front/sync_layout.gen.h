/* Code generated from core/ipcsync/layout.go by cgen (core/internal/cgen). DO NOT EDIT. */
#ifndef PP_SYNC_LAYOUT_GEN_H
#define PP_SYNC_LAYOUT_GEN_H

#include "heap.h"
#include "mem.h"

/* Words. */
#define PP__SYNC_SLEEPERS 0x80000000u
#define PP__SYNC_VALUE_MOST 0x7fffffffu
#define PP__LOCK_POISONED 0x7fffffffu
#define PP__SYNC_PERMITS_MOST 65535u
#define PP__BARRIER_MOST 65535u
#define PP__CONDITION_CELLS 112u
#define PP__CONDITION_MORE 4096u /* bytes: 511 cells */

/* Flags of objects. */
#define PP__SYNC_RECURSIVE 1u
#define PP__SYNC_RECOVER 2u
#define PP__SYNC_ACTION 4u

/* Phases of a barrier. */
#define PP__BARRIER_FILLING 0u
#define PP__BARRIER_FULL 1u
#define PP__BARRIER_BROKEN 2u

/* Tunables. */
#define PP__SYNC_SLICE_MIN_NS ((uint64_t)10000000u)
#define PP__SYNC_SLICE_MAX_NS ((uint64_t)160000000u)
#define PP__SYNC_PATIENCE 4u
#define PP__SYNC_PATIENT_NS ((uint64_t)4000000u)
#define PP__BARRIER_SPARE 16u /* cells beyond parties */

typedef struct pp__lock {
	pp__object object;
	uint64_t word; /* thread << 32 | sleepers << 31 | owner */
	uint64_t turn;
	uint32_t count; /* levels, RLock and Lock: the holder's */
	uint8_t pad0[92];
} pp__lock;

typedef struct pp__semaphore {
	pp__object object;
	uint64_t word; /* most << 32 | sleepers << 31 | value */
	uint64_t turn;
	uint32_t bell_seq; /* PP__SYNC_RECOVER */
	uint32_t bell_waiters;
	uint8_t pad0[88];
} pp__semaphore;

typedef struct pp__condition {
	pp__object object;
	uint64_t more; /* offset of the next block of cells, 0: none */
	uint32_t tickets;
	uint8_t pad0[100];
	uint64_t cells[PP__CONDITION_CELLS]; /* owner << 32 | ticket << 1 | notified */
} pp__condition;

typedef struct pp__condition_more {
	uint64_t more;
	uint64_t cells[511];
} pp__condition_more;

typedef struct pp__event {
	pp__object object;
	uint32_t word; /* sleepers << 31 | seq << 1 | set */
	uint8_t pad0[108];
} pp__event;

typedef struct pp__barrier {
	pp__object object;
	uint64_t word; /* history:16 << 48 | arrived:16 << 32 | generation:30 << 2 | phase */
	uint32_t parties;
	uint32_t cells_count; /* parties + 16 */
	uint8_t pad0[96];
} pp__barrier;

/* ---- the same in Go */

PP__AT(pp__object, kind, 0);
PP__AT(pp__object, flags, 4);
PP__AT(pp__object, generation, 8);
PP__AT(pp__object, refs, 12);
_Static_assert(sizeof(pp__object) == 16, "pp__object");
PP__AT(pp__lock, object, 0);
PP__AT(pp__lock, word, 16);
PP__AT(pp__lock, turn, 24);
PP__AT(pp__lock, count, 32);
_Static_assert(sizeof(pp__lock) == 128, "pp__lock");
PP__AT(pp__semaphore, object, 0);
PP__AT(pp__semaphore, word, 16);
PP__AT(pp__semaphore, turn, 24);
PP__AT(pp__semaphore, bell_seq, 32);
PP__AT(pp__semaphore, bell_waiters, 36);
_Static_assert(sizeof(pp__semaphore) == 128, "pp__semaphore");
PP__AT(pp__condition, object, 0);
PP__AT(pp__condition, more, 16);
PP__AT(pp__condition, tickets, 24);
PP__AT(pp__condition, cells, 128);
_Static_assert(sizeof(pp__condition) == 1024, "pp__condition");
PP__AT(pp__condition_more, more, 0);
PP__AT(pp__condition_more, cells, 8);
_Static_assert(sizeof(pp__condition_more) == 4096, "pp__condition_more");
PP__AT(pp__event, object, 0);
PP__AT(pp__event, word, 16);
_Static_assert(sizeof(pp__event) == 128, "pp__event");
PP__AT(pp__barrier, object, 0);
PP__AT(pp__barrier, word, 16);
PP__AT(pp__barrier, parties, 24);
PP__AT(pp__barrier, cells_count, 28);
_Static_assert(sizeof(pp__barrier) == 128, "pp__barrier");

#endif
