/* lane.h - the shared memory of a pool, as both sides see it: the C worker host in this directory, and core/pool (Go),
 * whose lane_layout.go states the same numbers; tests/abi compares the two.
 *
 * One memfd holds a whole pool and is the only descriptor that a worker inherits. It is sparse: size is set once and sealed,
 * storage is reserved (fallocate) before use.
 *
 *   file offset 0      board      64 KiB, shared by all: bells, ready bits, modules
 *   lane_off           lanes      lanes x lane_size: a worker maps the board and its own lane, nothing of the others
 *   task_off           task arena blocks for tasks too big for a ring; the parent allocates and frees
 *   result_off         result arenas, one of result_size bytes per lane; the worker allocates, the parent releases
 *
 * A lane is two single-producer single-consumer byte rings and the words beside them. Every field has one writer.
 *
 * RING. tail and head count bytes and only grow; position p lies at data[p % ring_cap]. A record is
 *   { u32 len; u16 kind; u16 flags; } payload[len] padding to 8
 * and never wraps: what would cross the end is preceded by a record of kind PP__PAD up to the end. The producer writes records and then
 * stores tail: that one 64-bit store publishes them. The consumer reads up to tail and stores head to give space back.
 * A record (header included) is at most ring_cap / 2.
 *
 * TASK LIFE. payload = pp__task_head + bytes (or pp__bulk_ref if flags & PP__BULK). state goes READY -> TAKEN by a CAS of the worker,
 * which is what "started" means; or READY -> REVOKED by a CAS of the parent, after which the worker skips it.
 * The worker gives the record's space back (head) when the task is done, so the bytes stay in place while it runs.
 * Then: result record (tail store: the task is done), head store, next. A worker that dies therefore leaves at most
 * one task that is TAKEN and has no result: that one is lost; all that are READY go elsewhere.
 *
 * SPANS. Small elements of a map travel many to a record (PP__SPAN). claim says which of them have begun: the worker adds 1 to its lower
 * half before it begins the next, as long as that is less than the upper half, the limit; the parent lowers the limit to the
 * lower half to take back what has not begun. Both by a CAS of the whole word. The worker leaves the elements' outcomes and results in its
 * result ring, at result_at, where they become a record when the last is done. If it dies before, all that were claimed but for the last
 * one are done, and the parent finds them there: it is the last one that is lost.
 *
 * CANCELLATION. The parent stores the number of a task that runs to cancel, wakes who sleeps there, and gives the task some time to
 * return before it kills the worker. Go workers cancel the task's context; C workers do not look.
 *
 * BELLS. The parent sleeps on the board, a worker on its lane. A bell is an eventcount: the sleeper reads seq, stores 1 to
 * waiters, looks again, and waits (futex) while seq is unchanged; the ringer publishes, then looks at waiters, and only if it
 * is 1 stores 0 there, adds 1 to seq and wakes all. Both sides use sequentially consistent operations, so one of the two sees the other. A wake that was
 * lost because its sender died is made up for by the parent's death watch and by bounded sleeps (PP__SLICE_MS).
 * The board has two bells: fore, for a thread that waits in a call, and back, for the engine's own thread. A worker rings fore if
 * somebody is there, else back if it needs something: its task ring is empty, or its result ring half full.
 * A thread that waits stores 2 to waiters of fore while it is awake and will look at the ready bits by itself: workers then ring
 * neither bell, but fore when a result ring fills up. It stores 1 and looks again before it sleeps for longer than a moment.
 */
#ifndef PP_LANE_H
#define PP_LANE_H

#include <stddef.h>
#include <stdint.h>

#define PP__MAGIC 0x31304c4f4f505050ull /* "PPPOOL01" */
#define PP__ABI 2u
#define PP__BOARD_SIZE 65536u
#define PP__LANE_HEAD 8192u /* lane header; rings follow: task ring, then result ring, ring_cap bytes each */
#define PP__MAX_LANES 1152u /* 1,024 workers and room for replacements */
#define PP__MODULES 112u
#define PP__SLOTS 512u
#define PP__SLICE_MS 500

/* kinds of records */
enum { PP__PAD = 0xffff, PP__TASK = 1, PP__RESULT = 2, PP__READY = 3, PP__INIT_FAILED = 4 };
/* flags of records */
enum { PP__BULK = 1, PP__RANGE = 2, PP__SPAN = 4 };
/* waiters of a bell: see BELLS */
enum { PP__BELL_SLEEPS = 1, PP__BELL_LOOKS = 2 };
/* states of a task */
enum { PP__T_READY = 0, PP__T_TAKEN = 1, PP__T_REVOKED = 2 };
/* lane.state, written by the parent */
enum { PP__L_FREE = 0, PP__L_OPEN = 1, PP__L_CLOSING = 2 };

typedef struct pp__bell {
	uint32_t seq;
	uint32_t waiters;
} pp__bell;

/* A loaded program or library that task functions lie in. Written by the parent before the first task that uses it. */
typedef struct pp__module {
	uint8_t build_id[32];
	uint32_t build_id_size; /* 0: none */
	uint32_t reserved;
	uint64_t reserved2;
	char path[464]; /* "" = the program itself */
} pp__module;       /* 512 bytes */

typedef struct pp__board {
	uint64_t magic;
	uint32_t abi;
	uint32_t lanes;
	uint64_t lane_off;
	uint64_t lane_size; /* PP__LANE_HEAD + 2 * ring_cap */
	uint64_t ring_cap;  /* a power of two, 64 KiB .. 1 MiB */
	uint64_t task_off;
	uint64_t task_size;
	uint64_t result_off;
	uint64_t result_size;
	uint64_t init_off; /* init_arg bytes: file offset in the task arena, 0 if none */
	uint64_t init_size;
	uint64_t init_fn;  /* pp__task_head.fn of the initializer (C workers), 0 if none */
	uint64_t out_max;  /* room for a result of a C worker's pp_pool_submit task, bytes */
	uint64_t parent_id; /* names the parent: pid, and pidfd inode or start time, as in the table of members */
	int32_t parent_pid;
	uint32_t reserved;
	uint8_t pad0[256 - 120];
	pp__bell fore; /* 256 */
	uint8_t pad1[128 - 8];
	pp__bell back; /* 384 */
	uint8_t pad2[128 - 8];
	uint64_t ready[PP__MAX_LANES / 64]; /* 512: bit per lane: look at its result ring. Set by workers, cleared by the parent */
	uint8_t pad3[8192 - 512 - 8 * (PP__MAX_LANES / 64)];
	pp__module modules[PP__MODULES]; /* 8192 .. 65536 */
} pp__board;

typedef struct pp__lane {
	uint32_t state;      /* parent */
	uint32_t generation; /* parent: the worker that this lane was given to; others must not touch it */
	uint8_t pad0[128 - 8];
	uint32_t worker_pid; /* worker */
	uint8_t pad1[128 - 4];
	uint64_t task_tail; /* 256, parent */
	uint8_t pad2[128 - 8];
	uint64_t task_head; /* 384, worker */
	uint8_t pad3[128 - 8];
	pp__bell task_bell; /* 512, the worker sleeps: tasks, closing */
	uint8_t pad4[128 - 8];
	uint64_t result_tail; /* 640, worker */
	uint8_t pad5[128 - 8];
	uint64_t result_head; /* 768, parent */
	uint8_t pad6[128 - 8];
	pp__bell space_bell; /* 896, the worker sleeps: room in the result ring, a released block */
	uint8_t pad7[128 - 8];
	uint64_t cancel; /* 1024, parent: number of the task that is to end early; 0: none. A worker may sleep on its low half */
	uint8_t pad9[128 - 8];
	uint8_t reserved[4096 - 1152];
	uint32_t slots[PP__SLOTS]; /* 4096: result block i: 0 free, 1 published by the worker; the parent stores 0 to release */
	uint8_t pad8[4096 - 4 * PP__SLOTS];
} pp__lane;

/* payload of PP__TASK begins with: */
typedef struct pp__task_head {
	uint64_t number; /* 1, 2, ... in this lane */
	uint64_t fn;     /* 0: opaque bytes; C: (module + 1) << 48 | offset in the module's image; Go: FNV-1a 64 of the name */
	uint32_t state;  /* PP__T_ */
	uint32_t out_size; /* C map: bytes of room for the result; 0xffffffff: board.out_max */
	uint64_t ctx_off;  /* C map: ctx lies once in the task arena, at this file offset; 0: no ctx */
	uint64_t ctx_size;
	uint64_t deadline; /* when the caller stops to wait, CLOCK_MONOTONIC, ns; 0: never. Go workers tell the task */
} pp__task_head;

/* the bytes of a PP__TASK with PP__RANGE, which is for a pp_range_fn: */
typedef struct pp__task_range {
	uint64_t begin, end;
	uint64_t off;    /* file offset of a block of the task arena that the program and workers read and write at the same time */
	uint64_t size;   /* of the block; 0: there is none */
	uint64_t offset; /* in the block, of the function's data */
} pp__task_range;

/* the bytes of a PP__TASK with PP__SPAN begin with: (then elements, each at a multiple of 8) */
typedef struct pp__span {
	uint64_t claim;     /* limit << 32 | claimed */
	uint64_t result_at; /* worker, before the first claim: where in the result ring's data the outcomes begin */
	uint32_t count;     /* of elements, at first also the limit */
	uint32_t in_size;   /* of each */
} pp__span;

/* the bytes of a PP__RESULT of such a task, if status is PP_OK: count of these, then count results, each at a multiple of 8 */
typedef struct pp__span_out {
	int32_t status; /* as pp__result_head.status */
	int32_t code;
	uint32_t size; /* bytes of its result */
	uint32_t reserved;
} pp__span_out;

/* payload of PP__RESULT begins with: */
typedef struct pp__result_head {
	uint64_t number;
	int32_t status; /* PP_OK; PP_ERR_TASK: the task's own error; PP_ERR_NOT_FOUND, _TOO_BIG, _NOMEM: the library could not run it */
	int32_t code;
	uint64_t run_ns; /* from taken to done, CLOCK_MONOTONIC */
} pp__result_head;

/* instead of the bytes, if flags & PP__BULK: (for PP__RESULT, PP__INIT_FAILED: off lies in the lane's result arena) */
typedef struct pp__bulk_ref {
	uint64_t off; /* file offset */
	uint64_t size;
	uint32_t slot; /* results: which of lane.slots to release */
	uint32_t reserved;
} pp__bulk_ref;

#define PP__ASSERT(what) _Static_assert(what, #what)
PP__ASSERT(sizeof(pp__module) == 512);
PP__ASSERT(sizeof(pp__board) == PP__BOARD_SIZE);
PP__ASSERT(offsetof(pp__board, fore) == 256);
PP__ASSERT(offsetof(pp__board, back) == 384);
PP__ASSERT(offsetof(pp__board, ready) == 512);
PP__ASSERT(offsetof(pp__board, modules) == 8192);
PP__ASSERT(sizeof(pp__lane) == PP__LANE_HEAD);
PP__ASSERT(offsetof(pp__lane, task_tail) == 256);
PP__ASSERT(offsetof(pp__lane, task_head) == 384);
PP__ASSERT(offsetof(pp__lane, task_bell) == 512);
PP__ASSERT(offsetof(pp__lane, result_tail) == 640);
PP__ASSERT(offsetof(pp__lane, result_head) == 768);
PP__ASSERT(offsetof(pp__lane, space_bell) == 896);
PP__ASSERT(offsetof(pp__lane, cancel) == 1024);
PP__ASSERT(offsetof(pp__lane, slots) == 4096);
PP__ASSERT(sizeof(pp__task_head) == 48);
PP__ASSERT(sizeof(pp__result_head) == 24);
PP__ASSERT(sizeof(pp__bulk_ref) == 24);
PP__ASSERT(sizeof(pp__task_range) == 40);
PP__ASSERT(sizeof(pp__span) == 24);
PP__ASSERT(sizeof(pp__span_out) == 16);

#endif
