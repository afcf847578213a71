/* Code generated from core/queue/layout.go by cgen (core/internal/cgen). DO NOT EDIT. */
#ifndef PP_QUEUE_LAYOUT_GEN_H
#define PP_QUEUE_LAYOUT_GEN_H

#include "heap.h"
#include "lane.h"
#include "mem.h"

/* Sizes, in bytes and numbers. */
#define PP__QUEUE_CHUNK_LEAST 4096u
#define PP__QUEUE_CLASSES 4u
#define PP__QUEUE_CHUNK_HEAD 16u
#define PP__QUEUE_RECORD_HEAD 8u
#define PP__QUEUE_INLINE_MOST 32768u
#define PP__QUEUE_ITEMS_MOST 0x7fffffffu /* an unbounded queue holds at most so many messages */
#define PP__QUEUE_TABLE_CELLS 126u
#define PP__QUEUE_TABLES_MOST 65536u

/* Kinds of records. */
#define PP__QUEUE_KIND_INLINE 1u
#define PP__QUEUE_KIND_BULK 2u
#define PP__QUEUE_KIND_NEXT 0xffffu

/* States of cells. */
#define PP__QUEUE_CELL_FREE 0u
#define PP__QUEUE_CELL_CLAIMED 1u
#define PP__QUEUE_CELL_HELD 2u
#define PP__QUEUE_CELL_LEASED 3u
#define PP__QUEUE_CELL_RETURNED 4u
#define PP__QUEUE_CELL_PUTTING 5u
#define PP__QUEUE_CELL_TAKING 6u
#define PP__QUEUE_CELL_LEASING 7u
#define PP__QUEUE_CELL_COPYING 8u

/* Tunables. */
/* a process looks for dead owners of cells at most this often */
#define PP__QUEUE_SWEEP_MILLIS 100u
#define PP__QUEUE_LEASE_MILLIS 100u /* sleepers look for them this often, while cells are in use */
/* getters look for them so often: a queue that is never empty has no sleepers */
#define PP__QUEUE_GETS_PER_SWEEP 256u
/* How long a call that does not wait waits for a process in the middle of another: it may have been
 * preempted, or be dead, which takes some milliseconds to prove. */
#define PP__QUEUE_LOCK_PATIENCE_MILLIS 50u
#define PP__QUEUE_CLOSE_PATIENCE_MILLIS 5000u

/* after a successful wait, look so many times for more messages */
#define PP__QUEUE_LINGER_LOOKS 16u
#define PP__QUEUE_LINGER_LEAST 2u /* a look must find so many, or the lingering ends */
/* waits without lingering after one whose first look found less */
#define PP__QUEUE_LINGER_REST 64u

typedef struct pp__queue {
	pp__object object;
	uint64_t maxsize; /* messages; 0: unbounded. Written once */
	uint32_t closed;
	uint32_t returned;
	pp__bell not_empty;
	pp__bell not_full;
	pp__bell all_done;
	uint64_t cells; /* the first table */
	uint64_t spare; /* a chunk */
	uint64_t first; /* `next` before the first chunk */
	uint8_t pad0[48];

	uint32_t put_lock; /* these by who holds put_lock */
	uint32_t reserved0;
	uint64_t tail;
	uint64_t tail_chunk[2];
	uint64_t seen_head; /* head when it was last looked at */
	uint8_t pad1[88];

	uint32_t get_lock; /* these by who holds get_lock */
	uint32_t reserved1;
	uint64_t head;
	uint64_t head_chunk[2];
	uint64_t old; /* the chunk being left */
	uint64_t seen_tail;
	uint8_t pad2[80];

	uint32_t done;
	uint8_t pad3[124];
} pp__queue;

typedef struct pp__queue_chunk {
	uint64_t next;
	uint64_t self;
} pp__queue_chunk;

typedef struct pp__queue_bulk {
	uint64_t ref;
	uint64_t size; /* of the message, bytes */
} pp__queue_bulk;

typedef struct pp__queue_cell {
	uint64_t word;
	uint64_t ref;
	uint64_t size;
	uint32_t seq;
	uint32_t codec;
} pp__queue_cell;

typedef struct pp__queue_table {
	uint64_t next;
	uint64_t self;
	uint8_t pad0[48];
	pp__queue_cell cells[PP__QUEUE_TABLE_CELLS];
} pp__queue_table;

/* Sizes of these, in bytes. */
#define PP__QUEUE_SIZE_QUEUE 512u
#define PP__QUEUE_SIZE_CHUNK 16u
#define PP__QUEUE_SIZE_TABLE 4096u
#define PP__QUEUE_SIZE_BULK 16u

/* A reference to a block: tag | class << 31 | off / 128 << 33. A chunk of a class has 4 KiB << 2 *
 * class. */
typedef uint64_t pp__queue_ref;

static inline uint32_t pp__queue_class_size(uint32_t class);

static inline pp__queue_ref pp__queue_ref_of(uint64_t off, uint32_t class, uint32_t tag)
{
	return off / 128 << 33 | (uint64_t)class << 31 | (uint64_t)tag;
}

static inline uint64_t pp__queue_ref_off(pp__queue_ref r)
{
	return r >> 33 << 7;
}

static inline uint32_t pp__queue_ref_class(pp__queue_ref r)
{
	return (uint32_t)(r >> 31) & 3;
}

static inline uint32_t pp__queue_ref_tag(pp__queue_ref r)
{
	return (uint32_t)r & 0x7fffffff;
}

static inline uint32_t pp__queue_ref_chunk_size(pp__queue_ref r)
{
	return pp__queue_class_size(pp__queue_ref_class(r));
}

static inline uint32_t pp__queue_class_size(uint32_t class)
{
	return (uint32_t)PP__QUEUE_CHUNK_LEAST << (2 * class & 7);
}

/* A position: items:32 | crossings:16 | offset in the chunk / 8:16. */
typedef uint64_t pp__queue_position;

static inline pp__queue_position pp__queue_position_of(uint32_t items, uint32_t crossings,
		uint32_t offset)
{
	return (uint64_t)items << 32 | (uint64_t)(crossings & 0xffff) << 16
			| (uint64_t)(offset / 8);
}

static inline uint32_t pp__queue_position_items(pp__queue_position p)
{
	return (uint32_t)(p >> 32);
}

static inline uint32_t pp__queue_position_crossings(pp__queue_position p)
{
	return (uint32_t)(p >> 16) & 0xffff;
}

static inline uint32_t pp__queue_position_offset(pp__queue_position p)
{
	return (uint32_t)(p & 0xffff) * 8;
}

/* The word of a cell: owner << 32 | state << 24 | generation:24. */
typedef uint64_t pp__queue_cell_word;

static inline pp__queue_cell_word pp__queue_cell_word_of(uint32_t owner, uint32_t state,
		uint32_t generation)
{
	return (uint64_t)owner << 32 | (uint64_t)state << 24 | (uint64_t)(generation & 0xffffff);
}

static inline uint32_t pp__queue_cell_word_owner(pp__queue_cell_word w)
{
	return (uint32_t)(w >> 32);
}

static inline uint32_t pp__queue_cell_word_state(pp__queue_cell_word w)
{
	return (uint32_t)(w >> 24) & 0xff;
}

static inline uint32_t pp__queue_cell_word_generation(pp__queue_cell_word w)
{
	return (uint32_t)w & 0xffffff;
}

/* with returns the word with another owner and state. */
static inline pp__queue_cell_word pp__queue_cell_word_with(pp__queue_cell_word w, uint32_t owner,
		uint32_t state)
{
	return pp__queue_cell_word_of(owner, state, pp__queue_cell_word_generation(w));
}

/* A record's first eight bytes are one word: length:32, kind:16, codec:16. */
typedef uint64_t pp__queue_record_word;

static inline pp__queue_record_word pp__queue_record_word_of(uint32_t size, uint32_t kind,
		uint32_t codec)
{
	return (uint64_t)size | (uint64_t)kind << 32 | (uint64_t)codec << 48;
}

static inline uint32_t pp__queue_record_word_size(pp__queue_record_word w)
{
	return (uint32_t)w;
}

static inline uint32_t pp__queue_record_word_kind(pp__queue_record_word w)
{
	return (uint32_t)(w >> 32) & 0xffff;
}

static inline uint32_t pp__queue_record_word_codec(pp__queue_record_word w)
{
	return (uint32_t)(w >> 48);
}

/* padded is a length with what makes it a multiple of 8. */
static inline uint64_t pp__queue_padded(uint64_t n)
{
	return (n + 7) & ~(uint64_t)7;
}

/* ---- the same in Go */

_Static_assert(PP__SLICE_MS == 500, "PP__SLICE_MS");
PP__AT(pp__bell, seq, 0);
PP__AT(pp__bell, waiters, 4);
_Static_assert(sizeof(pp__bell) == 8, "pp__bell");
PP__AT(pp__queue, object, 0);
PP__AT(pp__queue, maxsize, 16);
PP__AT(pp__queue, closed, 24);
PP__AT(pp__queue, returned, 28);
PP__AT(pp__queue, not_empty, 32);
PP__AT(pp__queue, not_full, 40);
PP__AT(pp__queue, all_done, 48);
PP__AT(pp__queue, cells, 56);
PP__AT(pp__queue, spare, 64);
PP__AT(pp__queue, first, 72);
PP__AT(pp__queue, put_lock, 128);
PP__AT(pp__queue, reserved0, 132);
PP__AT(pp__queue, tail, 136);
PP__AT(pp__queue, tail_chunk, 144);
PP__AT(pp__queue, seen_head, 160);
PP__AT(pp__queue, get_lock, 256);
PP__AT(pp__queue, reserved1, 260);
PP__AT(pp__queue, head, 264);
PP__AT(pp__queue, head_chunk, 272);
PP__AT(pp__queue, old, 288);
PP__AT(pp__queue, seen_tail, 296);
PP__AT(pp__queue, done, 384);
_Static_assert(sizeof(pp__queue) == 512, "pp__queue");
PP__AT(pp__queue_chunk, next, 0);
PP__AT(pp__queue_chunk, self, 8);
_Static_assert(sizeof(pp__queue_chunk) == 16, "pp__queue_chunk");
PP__AT(pp__queue_bulk, ref, 0);
PP__AT(pp__queue_bulk, size, 8);
_Static_assert(sizeof(pp__queue_bulk) == 16, "pp__queue_bulk");
PP__AT(pp__queue_cell, word, 0);
PP__AT(pp__queue_cell, ref, 8);
PP__AT(pp__queue_cell, size, 16);
PP__AT(pp__queue_cell, seq, 24);
PP__AT(pp__queue_cell, codec, 28);
_Static_assert(sizeof(pp__queue_cell) == 32, "pp__queue_cell");
PP__AT(pp__queue_table, next, 0);
PP__AT(pp__queue_table, self, 8);
PP__AT(pp__queue_table, cells, 64);
_Static_assert(sizeof(pp__queue_table) == 4096, "pp__queue_table");

#endif
