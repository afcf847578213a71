/* Code generated from core/internal/cgen/testdata/subset/subset.go by cgen (core/internal/cgen). DO NOT EDIT. */
#ifndef SUBSET_GEN_H
#define SUBSET_GEN_H

#include "mem.h"

/* Constants, one of them a sum. */
#define PP__T_LEAST 4u
#define PP__T_MOST 0x7fffffffu /* the largest */
#define PP__T_CELLS 8u
#define PP__T_WIDE 1099511627776ull
#define PP__T_SIGNED (-3)

#define PP__T_STEP (64u << 10)
#define PP__T_LARGE ((uint64_t)3 << 20)
#define PP__T_FACTOR ((uint64_t)0x80000001u)

/* word is tag:32 | count:32. */
typedef uint64_t pp__t_word;

static inline uint32_t pp__t_word_tag(pp__t_word w);
static inline uint32_t pp__t_word_count(pp__t_word w);

static inline pp__t_word pp__t_word_of(uint32_t tag, uint32_t count)
{
	return (uint64_t)tag << 32 | (uint64_t)count;
}

/* with_next adds one to the count, see word. */
static inline pp__t_word pp__t_word_with_next(pp__t_word w)
{
	return pp__t_word_of(pp__t_word_tag(w), 0) | (pp__t_word)(pp__t_word_count(w) + 1);
}

static inline uint32_t pp__t_word_tag(pp__t_word w)
{
	return (uint32_t)(w >> 32);
}

static inline uint32_t pp__t_word_count(pp__t_word w)
{
	return (uint32_t)w;
}

/* slot lies in shared memory. */
typedef struct pp__t_slot {
	uint64_t word;
	uint32_t seq;
	uint8_t pad0[4];
	uint32_t cells[PP__T_CELLS]; /* eight */
} pp__t_slot;

/* view is local. */
typedef struct pp__t_view {
	pp__t_slot *slot;
	uint32_t walks;
	pp__t_word last;
} pp__t_view;

/* Written by hand in each language. */
static bool hand_note(pp__t_view *v, const char *what, uint64_t value);

/* load reads the word. */
static pp__t_word pp__t_slot_load(const pp__t_slot *s)
{
	return pp__load64(&s->word);
}

/* Fill writes cells, and returns their sum by a second result. */
static bool pp__t_view_fill(pp__t_view *v, uint32_t from, uint64_t *sum)
{
	*sum = 0;
	for (uint32_t i = 0; i < PP__T_CELLS; i++) {
		pp__store_relaxed32(&v->slot->cells[i % PP__T_CELLS], from + i); /* wraps */
		*sum += from + i;
	}
	return hand_note(v, "filled", *sum);
}

/* total adds the cells up, the odd ones twice. */
static uint64_t pp__t_view_total(const pp__t_view *v)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < PP__T_CELLS; i++) {
		const uint32_t value = pp__load_relaxed32(&v->slot->cells[i & 7]);
		if (i % 2 == 0) {
			n += value;
			continue;
		}
		/* An odd one. */
		n += (uint64_t)value << 1;
	}
	return n;
}

/* kind sorts numbers. */
static inline uint32_t pp__t_kind(uint32_t n)
{
	switch (n) {
	case 0:
		return 10;
	case 1:
	case 2: /* small */
		n += 100;
		break;
	case 3: {
		const uint32_t m = n * 2;
		n = m + 1;
		break;
	}
	default:
		n &= ~(uint32_t)PP__T_LEAST;
		break;
	}
	return n;
}

static inline uint32_t pp__t_grade(uint32_t a, uint32_t b)
{
	uint32_t r = 0;
	if (a > b) {
		r = 1;
	} else if (a == b || b == 7) {
		r = 2;
	} else {
		r = 3;
	}
	return r;
}

/* mix has operators whose precedence differs between the languages. */
static inline uint64_t pp__t_mix(uint64_t a, uint64_t b, uint32_t c)
{
	uint64_t x = (a & b) << 3 | a >> (c & 63);
	x ^= a | (b & ~(uint64_t)7);
	x += (a + b) * 3 % 1000 / 7;
	x -= (uint64_t)c << 5;
	if (((a & b) == 0) != ((c & 1) == 1))
		x = ~x;
	else if ((int32_t)(c - 1000) >= 0 && (a < b || c > 5))
		x++;
	else
		x--;
	x &= ~(uint64_t)PP__T_LEAST;
	x += (uint64_t)c * PP__T_LARGE + (uint64_t)c * PP__T_FACTOR + (uint64_t)(c & PP__T_STEP);
	return x + PP__T_WIDE + ((uint64_t)1 << (c & 31)) + ((uint64_t)PP__T_LEAST << (c & 7));
}

/* after compares two wrapping numbers. */
static inline bool pp__t_after(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) > 0;
}

static inline bool pp__t_lowest(int32_t a)
{
	return a <= PP__T_SIGNED;
}

/* bump moves the word on, and remembers it. */
static pp__t_word pp__t_view_bump(pp__t_view *v, uint32_t tag)
{
	for (;;) {
		const pp__t_word old = pp__t_slot_load(v->slot);
		const pp__t_word next = pp__t_word_of(tag, pp__t_word_count(old) + 1);
		if (pp__cas64(&v->slot->word, old, next)) {
			v->last = next;
			return next;
		}
	}
}

/* at is a cell by its address. */
static uint32_t *pp__t_view_at(const pp__t_view *v, uint32_t i)
{
	if (i >= PP__T_CELLS)
		return NULL;
	return (uint32_t *)(void *)((uint8_t *)v->slot + (i * 4 - 4294967280u));
}

/* copied returns a copy with another count of walks. */
static pp__t_view pp__t_view_copied(const pp__t_view *v, uint32_t walks)
{
	pp__t_view c = *v;
	c.walks = walks;
	const pp__t_view d = {.slot = c.slot, .walks = c.walks + 1, .last = c.last};
	pp__t_view e = {0};
	e = d;
	return e;
}

/* search leaves two loops. */
static inline uint32_t pp__t_search(uint32_t n)
{
	uint32_t found = 0;
	for (uint32_t a = 1; a < n; a++) {
		uint32_t b = a;
		while (b < n) {
			if (a * b == n) {
				found = a;
				break;
			}
			b++;
		}
		if (found != 0)
			break;
	}
	return found;
}

/* ---- the same in Go */

PP__AT(pp__t_slot, word, 0);
PP__AT(pp__t_slot, seq, 8);
PP__AT(pp__t_slot, cells, 16);
_Static_assert(sizeof(pp__t_slot) == 48, "pp__t_slot");

#endif
