/* heap_private.h - what heap.c, members.c, objects.c, storage.c and family.c share among themselves. */
#ifndef PP_HEAP_PRIVATE_H
#define PP_HEAP_PRIVATE_H

#include "front.h"

#include "heap.h"

#include <pthread.h>

enum { PP__NURSERIES = 64 };
#define PP__SLEEPERS 0x80000000u

/* Slabs of one class that this process owns, and free blocks of them. */
typedef struct pp__slabs {
	uint32_t *slab;
	uint32_t count, room;
	uint32_t current; /* small: where fresh blocks come from; 0: none */
	uint32_t cursor;  /* where the next look for free blocks begins */
	uint32_t skip;    /* so many slabs may be claimed before the next look */
	uint32_t overflow; /* small: freed blocks that had no room below since slabs were last given back */
	uint32_t free_count;
	uint32_t free[PP__FREE_MOST]; /* offset / 128; what is not free any more is skipped when taken */
} pp__slabs;

typedef struct pp__nursery {
	uint32_t owner;
	uint64_t word;
	uint64_t since; /* ns */
} pp__nursery;

struct pp__heap_private {
	pp__heap *next;            /* all heaps of this process */
	pthread_mutex_t join_lock;
	pthread_mutex_t lock;      /* the slabs below */
	uint32_t joining;          /* the owner that pp__join_slow is about to be */
	pp__nursery nursery[PP__NURSERIES]; /* places taken for children, see pp__heap_before_fork; owner 0: free */
	uint32_t fork_owner;       /* of the fork under way */
	uint64_t fork_word;
	uint64_t id;
	uint64_t device, inode;    /* what /proc/PID/maps calls the file */
	uint32_t slabs;            /* how many are mapped */
	uint32_t slabs_ready;      /* entries of the table that surely have storage */
	uint32_t refs_ready;       /* the same of cells */
	uint32_t refs_opened;      /* cells before this one may be touched */
	bool family;
	bool adopted;              /* slabs of the dead were looked for */
	uint64_t adopt_at;         /* ns: when to look again */
	uint64_t adopt_pause;
	uint64_t reap_at;
	uint64_t deep_at;          /* a lock was tried, and its owner's memory map read */
	uint32_t reap_cursor;
	uint32_t evict_cursor;
	pp__slabs small[PP__SMALL_CLASSES];
	pp__slabs large[PP__LARGE_CLASSES];
	pp__slabs runs;
	uint32_t verdict_of[PP__MEMBERS]; /* adopt: owners that were looked at */
	bool verdict[PP__MEMBERS];
};

/* Tests put another process's steps where a preemption may be. */
#ifndef PP__TEST_POINT
#define PP__TEST_POINT(name, slab) ((void)0)
#endif

static inline pp__heap_head *pp__head(const pp__heap *heap)
{
	return (pp__heap_head *)(void *)heap->base;
}

/* ---- storage.c */

/* pp__heap_fd is pp__is_file of the heap's descriptor. Where it is not, storage is got and given back by way of the mapping. */
bool pp__heap_fd(const pp__heap *heap);
int32_t pp__heap_reserve(pp__heap *heap, uint64_t off, uint64_t size);
void pp__heap_punch(pp__heap *heap, uint64_t off, uint64_t size);
/* Around a fork: nobody is in the middle of it then. */
void pp__storage_forking(void);
void pp__storage_forked(bool child);

/* A random number, of the kernel or of the clock. */
uint64_t pp__random(void);

/* ---- members.c */

/* pp__members_in checks the namespace and names the table: before the first use. */
int32_t pp__members_in(pp__heap *heap);
/* pp__members_open is pp__members_in for a named heap whose descriptor this process has opened itself. Its file may be older than this pid
 * namespace: if no process has it open any more, those in the table are dead, and the table is taken over. */
int32_t pp__members_open(pp__heap *heap);
bool pp__members_gone(pp__heap *heap, uint32_t owner, bool deep);
/* pp__members_take takes a place for this process: the owner, 0 with a message if there is none. *before is the owner before the place is. dead_out not NULL: the place of a dead
 * member too, *dead_out: that owner, or 0. Its place being another's, whoever sweeps finds what it held; but who took it is to do so. */
uint32_t pp__members_take(pp__heap *heap, uint32_t *before, uint64_t *word_out, uint32_t *dead_out);
void pp__members_leave(pp__heap *heap, uint32_t owner);
/* pp__members_rename puts this process's name in place of the one in word: false if the place is not the owner's any more. */
bool pp__members_rename(pp__heap *heap, uint32_t owner, uint64_t word);
/* pp__members_revoke lets a place name nobody, if it holds word still: true if it did, and nobody can put a name there. The owner is not given again until
 * pp__members_leave. */
bool pp__members_revoke(pp__heap *heap, uint32_t owner, uint64_t word);
/* pp__members_still tells whether the place has that word. */
bool pp__members_still(const pp__heap *heap, uint32_t owner, uint64_t word);
/* pp__members_current: the place was not given to another since; no system call. */
bool pp__members_current(const pp__heap *heap, uint32_t owner);
/* pp__reap sweeps behind dead members, looking at most at so many. */
void pp__reap(pp__heap *heap, uint32_t most, bool deep);
/* pp__heap_knows: is the owner one of this process, in whichever of its heaps with this table? */
bool pp__heap_knows(uint64_t table, uint32_t owner);

/* ---- objects.c */

/* pp__sweep drops the cells of n dead owners, and of those that are in the table no more. */
void pp__sweep(pp__heap *heap, const uint32_t *dead, uint32_t n);
uint32_t pp__cell_take(pp__heap *heap, uint32_t owner, uint64_t off);
/* pp__refs_top: cells below this one may have been used, and may be touched. */
uint32_t pp__refs_top(const pp__heap *heap);

/* ---- heap.c */

typedef struct pp__pick {
	uint64_t off;
	uint64_t room;
	uint32_t *state;
	uint32_t from;
	uint32_t run; /* slabs of a new run; 0: no new run */
	bool counted; /* leaves the sum of warm blocks when taken */
	uint64_t word; /* of the slab, where another process may give it back meanwhile; 0: none may */
} pp__pick;

/* pp__pick_block finds a free block of ours; nobody else takes it while private->lock is held. pp__pick_commit makes it used. */
int32_t pp__pick_block(pp__heap *heap, uint64_t size, pp__pick *pick);
bool pp__pick_commit(pp__heap *heap, const pp__pick *pick, uint32_t tag);
void pp__pick_abandon(pp__heap *heap, const pp__pick *pick);
/* pp__state_of finds the state of the block that begins at off, NULL if there is none. */
uint32_t *pp__state_of(const pp__heap *heap, uint64_t off, uint64_t *room_out, uint64_t *word_out);
/* pp__heap_open_range lets this process touch a range of the mapping; size is rounded up to pages. */
bool pp__heap_open_range(const pp__heap *heap, uint64_t off, uint64_t size);
/* pp__heap_family is the family's heap if this process has it already. */
pp__heap *pp__heap_family(void);
/* pp__heap_by_id finds a heap of this process. */
pp__heap *pp__heap_by_id(uint64_t id);

extern pthread_mutex_t pp__heaps_lock;
extern pp__heap *pp__heaps;
/* Around a fork. */
void pp__heap_locks(bool take);
void pp__heap_locks_in_child(void);

/* pp__above_stdio moves a descriptor out of 0..2, where a host that closed them would let a child take it for its standard streams. */
int pp__above_stdio(int fd);

/* pp__heap_file makes the file of an anonymous heap: its size is set and sealed, and nothing is in it yet. PP_OK; PP_ERR_NOMEM (RLIMIT_FSIZE); PP_ERR_SYSTEM. */
int32_t pp__heap_file(int *fd_out);

#endif
