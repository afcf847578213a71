/* Code generated from shm/heap_layout.go by cgen (core/internal/cgen). DO NOT EDIT. */
#ifndef PP_HEAP_LAYOUT_GEN_H
#define PP_HEAP_LAYOUT_GEN_H

#include "mem.h"

/* Where things lie in the file. PP__HEAP_MAGIC is "PPHEAP01". */
#define PP__HEAP_MAGIC 0x3130504145485050ull
#define PP__HEAP_ABI 2u
#define PP__SLAB_SHIFT 20u
#define PP__SLAB_SIZE ((uint64_t)1 << 20)
/* 64 GiB of address space in the file; storage only for what is used */
#define PP__SLABS_MOST 65536u
#define PP__SLAB_FIRST 32u
#define PP__MEMBERS_OFF 4096u
#define PP__MEMBERS 4094u
#define PP__SLABS_OFF ((uint64_t)1 << 20)
#define PP__REFS_OFF ((uint64_t)16 << 20)
#define PP__REFS_MOST (1u << 21)

/* Kinds of slabs. */
#define PP__SLAB_FREE 0u
#define PP__SLAB_CLAIMED 1u
#define PP__SLAB_SMALL 2u
#define PP__SLAB_LARGE 3u
#define PP__SLAB_RUN 4u
#define PP__SLAB_TAIL 5u

/* Blocks. */
#define PP__SMALL_SHIFT 7u /* blocks of 128 << class bytes */
#define PP__SMALL_CLASSES 9u
#define PP__LARGE_SHIFT 16u /* blocks of 64 KiB << class */
#define PP__LARGE_CLASSES 4u
#define PP__GIVING (1u << 31) /* state of a block: | owner */
#define PP__BLOCK_MOST ((uint64_t)16 << 30)
/* the page table's granularity is at most this on the systems that we know */
#define PP__STORAGE_STEP (64u << 10)

/* Owners: slot + 1 in the low bits, generation above them. Bit 31 is never set. */
#define PP__OWNER_SLOT_BITS 12u
#define PP__OWNER_SLOT 4095u
/* No member has this owner, nor another that ends in these 12 bits: their slot does not exist. */
#define PP__IN_FLIGHT 0x7fffffffu

/* The word of a member: what it is | generation << 2 | id << 21 | process id << 42, see Members. */
#define PP__MEMBER_TAKEN 1u
#define PP__MEMBER_BY_START 1u
#define PP__MEMBER_BY_PIDFD 3u
#define PP__MEMBER_KINDS 3u
#define PP__MEMBER_GEN_SHIFT 2u
#define PP__MEMBER_GEN_BITS 19u
#define PP__MEMBER_GEN_MASK ((uint64_t)2097148u)
#define PP__MEMBER_ID_SHIFT 21u
#define PP__MEMBER_ID_BITS 21u
#define PP__MEMBER_ID_MASK ((uint64_t)0x1fffffu)
#define PP__MEMBER_PID_SHIFT 42u
#define PP__MEMBER_PID_BITS 22u

/* Tunables. */
#define PP__WARM_MOST ((uint64_t)16 << 20)
#define PP__PREFAULT_MOST ((uint64_t)16 << 20)
#define PP__OPEN_STEP 8u /* slabs that are opened together */
#define PP__EVICT_LOOKS 64u
#define PP__FREE_MOST 1024u /* cached free blocks of a class */
/* of looking for a block; a found one is taken only by somebody who writes what is ours alone */
#define PP__ROUNDS 8u

/* a process looks for slabs of the dead after so long, then twice as long */
#define PP__ADOPT_MILLIS 200u
#define PP__ADOPT_MOST_MILLIS 3200u

#define PP__LOCK_SPINS 40u
/* a waiter for a lock looks so soon whether its owner lives, then twice as late */
#define PP__LOCK_SLICE_MIN_MILLIS 1u
#define PP__LOCK_SLICE_MOST_MILLIS 160u

#define PP__SIZE_HEAP_HEAD 4096u
#define PP__SIZE_MEMBERS_HEAD 64u
#define PP__SIZE_SLAB 128u
#define PP__SIZE_OBJECT 16u

/* Kinds of objects. */
#define PP__KIND_NONE 0u
#define PP__KIND_LOCK 1u
#define PP__KIND_SEMAPHORE 2u
#define PP__KIND_CONDITION 3u
#define PP__KIND_EVENT 4u
#define PP__KIND_BARRIER 5u
#define PP__KIND_QUEUE 6u
#define PP__KIND_PIPE 7u
#define PP__KINDS 16u

typedef struct pp__heap_head {
	uint64_t magic; /* stored last */
	uint32_t abi;
	uint32_t reserved0;
	uint64_t size; /* of the file, bytes */
	uint64_t id[2]; /* random: which heap this is */
	uint64_t root; /* named heaps: offset of the one object, stored once; 0 before */
	uint8_t pad0[80];

	uint64_t warm; /* bytes of free blocks that have storage, about */
	uint32_t slab_hint; /* where to look for a free slab first */
	uint32_t slab_top; /* no slab from here on was ever claimed */
	uint32_t refs_top; /* no cell from here on was ever used */
	uint32_t refs_hint;
	uint64_t next_tag; /* for tags of blocks and generations of objects */
	uint8_t pad1[32];

	/* bytes of storage that may be taken before a process looks at the figures of the machine
	 * again */
	uint64_t budget;
	uint8_t pad2[3896];
} pp__heap_head;

typedef struct pp__members_head {
	uint64_t space; /* the pid namespace */
	uint64_t id;
	uint8_t pad0[48];
} pp__members_head;

typedef struct pp__slab {
	uint64_t word;
	uint32_t reserved; /* owner: bytes with storage / 4096 */
	uint32_t fresh; /* owner: small slabs: blocks from this index on were never handed out */
	uint8_t pad0[48];
	uint32_t state[16];
} pp__slab;

/* pp__object is what every object begins with. */
typedef struct pp__object {
	uint32_t kind; /* PP__KIND_ */
	uint32_t flags; /* of the kind */
	/* the block's tag too; tells it from an object that had its place before */
	uint32_t generation;
	uint32_t refs; /* with generation one 64-bit word */
} pp__object;

/* pp__ref is a reference on its way. */
typedef struct pp__ref {
	uint64_t heap_id;
	uint64_t off;
	uint32_t kind;
	uint32_t generation;
	uint32_t cell;
	uint32_t flight; /* bits 12..30: those of the cell's owner. Bit 0: which end of a pipe */
} pp__ref;

static inline uint64_t pp__slab_word_of(uint32_t kind, uint32_t class, uint32_t count,
		uint32_t owner)
{
	return (uint64_t)kind << 56 | (uint64_t)class << 48 | (uint64_t)count << 32
			| (uint64_t)owner;
}

static inline uint32_t pp__slab_kind(uint64_t word)
{
	return (uint32_t)(word >> 56);
}

static inline uint32_t pp__slab_class(uint64_t word)
{
	return (uint32_t)(word >> 48) & 0xff;
}

static inline uint32_t pp__slab_count(uint64_t word)
{
	return (uint32_t)(word >> 32) & 0xffff;
}

static inline uint32_t pp__slab_owner(uint64_t word)
{
	return (uint32_t)word;
}

/* owner_index is the index of an owner's slot. */
static inline uint32_t pp__owner_index(uint32_t owner)
{
	return (owner & PP__OWNER_SLOT) - 1;
}

/* member_owner is the owner that the member in slot i is. */
static inline uint32_t pp__member_owner(uint64_t word, uint32_t i)
{
	return (uint32_t)((word & PP__MEMBER_GEN_MASK) >> PP__MEMBER_GEN_SHIFT << PP__OWNER_SLOT_BITS) | (i + 1);
}

static inline uint64_t pp__member_id(uint64_t word)
{
	return word >> PP__MEMBER_ID_SHIFT & PP__MEMBER_ID_MASK;
}

static inline uint32_t pp__member_pid(uint64_t word)
{
	return (uint32_t)(word >> PP__MEMBER_PID_SHIFT);
}

/* member_word_of is the word of a process, but for the generation. */
static inline uint64_t pp__member_word_of(uint32_t pid, uint64_t id, uint32_t kind)
{
	return (uint64_t)pid << PP__MEMBER_PID_SHIFT | id << PP__MEMBER_ID_SHIFT | (uint64_t)kind;
}

/* member_next is the generation after that of a word, in its place. */
static inline uint64_t pp__member_next(uint64_t word)
{
	return (word + ((uint64_t)1 << PP__MEMBER_GEN_SHIFT)) & PP__MEMBER_GEN_MASK;
}

/* ---- the same in Go */

PP__AT(pp__heap_head, magic, 0);
PP__AT(pp__heap_head, abi, 8);
PP__AT(pp__heap_head, reserved0, 12);
PP__AT(pp__heap_head, size, 16);
PP__AT(pp__heap_head, id, 24);
PP__AT(pp__heap_head, root, 40);
PP__AT(pp__heap_head, warm, 128);
PP__AT(pp__heap_head, slab_hint, 136);
PP__AT(pp__heap_head, slab_top, 140);
PP__AT(pp__heap_head, refs_top, 144);
PP__AT(pp__heap_head, refs_hint, 148);
PP__AT(pp__heap_head, next_tag, 152);
PP__AT(pp__heap_head, budget, 192);
_Static_assert(sizeof(pp__heap_head) == 4096, "pp__heap_head");
PP__AT(pp__members_head, space, 0);
PP__AT(pp__members_head, id, 8);
_Static_assert(sizeof(pp__members_head) == 64, "pp__members_head");
PP__AT(pp__slab, word, 0);
PP__AT(pp__slab, reserved, 8);
PP__AT(pp__slab, fresh, 12);
PP__AT(pp__slab, state, 64);
_Static_assert(sizeof(pp__slab) == 128, "pp__slab");
PP__AT(pp__object, kind, 0);
PP__AT(pp__object, flags, 4);
PP__AT(pp__object, generation, 8);
PP__AT(pp__object, refs, 12);
_Static_assert(sizeof(pp__object) == 16, "pp__object");
PP__AT(pp__ref, heap_id, 0);
PP__AT(pp__ref, off, 8);
PP__AT(pp__ref, kind, 16);
PP__AT(pp__ref, generation, 20);
PP__AT(pp__ref, cell, 24);
PP__AT(pp__ref, flight, 28);
_Static_assert(sizeof(pp__ref) == 32, "pp__ref");

#endif
