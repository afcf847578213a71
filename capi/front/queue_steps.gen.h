/* Code generated from core/queue/cells.go, core/queue/chain.go by cgen (core/internal/cgen). DO NOT EDIT. */
#ifndef PP_QUEUE_STEPS_GEN_H
#define PP_QUEUE_STEPS_GEN_H

#include "mem.h"
#include "queue.h"

/* walk goes over all cells: first, then next until cell is NULL. A chain that is corrupt ends. */
typedef struct pp__queue_walk {
	pp__queue_table *table;
	pp__queue_cell *cell;
	uint32_t number; /* of the cell */
} pp__queue_walk;

/* block is a message in the block of a cell that is this process's: what was read and checked, as
 * the memory may have changed since. */
typedef struct pp__queue_block {
	void *data;
	uint64_t size;
	pp__queue_ref ref;
	uint32_t codec;
	uint32_t number; /* of the cell */
	pp__queue_cell *cell;
	pp__queue_cell_word word; /* of the cell */
} pp__queue_block;

/* Written by hand in each language. */
static void *pp__queue_within(const view *v, uint64_t off, uint64_t size);
static bool pp__queue_free_block(const view *v, pp__queue_ref r);
static int32_t pp__queue_alloc(view *v, uint64_t size, uint32_t class, pp__queue_ref *r);
static int32_t pp__queue_corrupt(view *v, const char *what, uint64_t value);
static int32_t pp__queue_join(view *v, uint32_t *me);
static bool pp__queue_sweep_now_and_then(view *v);
static bool pp__queue_gone(const view *v, uint32_t owner);

static pp__queue_cell_word pp__queue_cell_load(const pp__queue_cell *c)
{
	return pp__load64(&c->word);
}

static bool pp__queue_cell_cas(pp__queue_cell *c, pp__queue_cell_word from, pp__queue_cell_word to)
{
	return pp__cas64(&c->word, from, to);
}

/* set changes a cell that is this process's. */
static void pp__queue_cell_set(pp__queue_cell *c, uint32_t owner, uint32_t state)
{
	pp__store64(&c->word, pp__queue_cell_word_with(pp__queue_cell_load(c), owner, state));
}

static void pp__queue_cell_fill(pp__queue_cell *c, pp__queue_ref r, uint64_t size, uint32_t codec,
		uint32_t seq)
{
	pp__store_relaxed64(&c->ref, r);
	pp__store_relaxed64(&c->size, size);
	pp__store_relaxed32(&c->codec, codec);
	pp__store_relaxed32(&c->seq, seq);
}

static bool pp__queue_has_cells(const pp__queue *q)
{
	return pp__load64(&q->cells) != 0;
}

/* table_at checks a reference to a table: NULL if there is none behind it. */
static pp__queue_table *pp__queue_table_at(const view *v, pp__queue_ref r)
{
	if (r == 0)
		return NULL;
	pp__queue_table *const t = pp__queue_within(v, pp__queue_ref_off(r), PP__QUEUE_SIZE_TABLE);
	if (t == NULL || pp__load64(&t->self) != r)
		return NULL;
	return t;
}

static pp__queue_walk pp__queue_first(const view *v)
{
	pp__queue_walk w = {.table = pp__queue_table_at(v, pp__load64(&v->q->cells))};
	if (w.table != NULL)
		w.cell = &w.table->cells[0];
	return w;
}

static void pp__queue_next(const view *v, pp__queue_walk *w)
{
	w->number++;
	if (w->number % PP__QUEUE_TABLE_CELLS == 0) {
		pp__queue_ref t = pp__load64(&w->table->next);
		if (w->number / PP__QUEUE_TABLE_CELLS >= PP__QUEUE_TABLES_MOST)
			t = 0;
		w->table = pp__queue_table_at(v, t);
		if (w->table == NULL) {
			w->cell = NULL;
			return;
		}
	}
	w->cell = &w->table->cells[w->number % PP__QUEUE_TABLE_CELLS];
}

/* count counts the cells in a state. */
static uint32_t pp__queue_count(const view *v, uint32_t state)
{
	uint32_t n = 0;
	for (pp__queue_walk w = pp__queue_first(v); w.cell != NULL; pp__queue_next(v, &w)) {
		if (pp__queue_cell_word_state(pp__queue_cell_load(w.cell)) == state)
			n++;
	}
	return n;
}

/* in_use reports whether any cell is. */
static bool pp__queue_in_use(const view *v)
{
	for (pp__queue_walk w = pp__queue_first(v); w.cell != NULL; pp__queue_next(v, &w)) {
		if (pp__queue_cell_word_state(pp__queue_cell_load(w.cell)) != PP__QUEUE_CELL_FREE)
			return true;
	}
	return false;
}

/* ---- cells of this process */

/* free_cell gives up the block of a cell that is this process's, and the cell. */
static void pp__queue_free_cell(const view *v, pp__queue_cell *c, pp__queue_ref block)
{
	pp__queue_free_block(v, block);
	pp__queue_cell_set(c, 0, PP__QUEUE_CELL_FREE);
}

/* more_cells puts another table at the end of the chain, unless somebody else does. */
static int32_t pp__queue_more_cells(view *v)
{
	pp__queue_ref r = 0;
	const int32_t s = pp__queue_alloc(v, PP__QUEUE_SIZE_TABLE, 0, &r);
	if (s != PP_OK)
		return s;
	pp__queue_table *const t = pp__queue_within(v, pp__queue_ref_off(r), PP__QUEUE_SIZE_TABLE);
	if (t == NULL)
		return pp__queue_corrupt(v, "the reference of a table", r);
	pp__zero(t, PP__QUEUE_SIZE_TABLE);
	pp__store64(&t->self, r);
	uint64_t *link = &v->q->cells;
	for (uint32_t i = 0; i < PP__QUEUE_TABLES_MOST; i++) {
		if (pp__cas64(link, 0, r))
			return PP_OK;
		pp__queue_table *const there = pp__queue_table_at(v, pp__load64(link));
		if (there == NULL)
			break;
		link = &there->next;
	}
	pp__queue_free_block(v, r);
	return pp__queue_corrupt(v, "a table of cells", pp__load64(link));
}

/* claim makes b a cell of this process, in state CLAIMED. */
static int32_t pp__queue_claim(view *v, pp__queue_block *b)
{
	uint32_t me = 0;
	int32_t s = pp__queue_join(v, &me);
	if (s != PP_OK)
		return s;
	bool swept = false;
	for (;;) {
		for (pp__queue_walk w = pp__queue_first(v); w.cell != NULL; pp__queue_next(v, &w)) {
			const pp__queue_cell_word word = pp__queue_cell_load(w.cell);
			const pp__queue_cell_word claimed
					= pp__queue_cell_word_of(me, PP__QUEUE_CELL_CLAIMED,
					pp__queue_cell_word_generation(word) + 1);
			if (pp__queue_cell_word_state(word) == PP__QUEUE_CELL_FREE
					&& pp__queue_cell_cas(w.cell, word, claimed)) {
				b->cell = w.cell;
				b->number = w.number;
				b->word = claimed;
				return PP_OK;
			}
		}
		if (!swept && pp__queue_sweep_now_and_then(v)) {
			swept = true;
			continue;
		}
		s = pp__queue_more_cells(v);
		if (s != PP_OK)
			return s;
	}
}

/* become changes the state of a block's cell. */
static void pp__queue_block_become(pp__queue_block *b, uint32_t state)
{
	b->word = pp__queue_cell_word_with(b->word, pp__queue_cell_word_owner(b->word), state);
	pp__store64(&b->cell->word, b->word);
}

/* hold makes b a new block of this process, in state HELD: the caller writes the message there. */
static int32_t pp__queue_hold(view *v, pp__queue_block *b, uint64_t size, uint32_t codec)
{
	int32_t s = pp__queue_claim(v, b);
	if (s != PP_OK)
		return s;
	b->size = size;
	b->codec = codec;
	s = pp__queue_alloc(v, size, 0, &b->ref);
	if (s != PP_OK) {
		pp__queue_cell_set(b->cell, 0, PP__QUEUE_CELL_FREE);
		return s;
	}
	pp__queue_cell_fill(b->cell, b->ref, size, codec, 0);
	/* from here on the block is not lost with this process */
	pp__queue_block_become(b, PP__QUEUE_CELL_HELD);
	b->data = pp__queue_within(v, pp__queue_ref_off(b->ref), size);
	if (b->data == NULL) {
		pp__queue_free_cell(v, b->cell, b->ref);
		return pp__queue_corrupt(v, "a block", b->ref);
	}
	return PP_OK;
}

/* take_returned takes a message of at most `most` bytes that was leased to a process which did not
 * acknowledge it, as LEASED or HELD. PP_ERR_EMPTY: there is none. PP_ERR_TOO_BIG: b.size says how
 * large it is. */
static int32_t pp__queue_take_returned(view *v, pp__queue_block *b, uint64_t most, uint32_t state)
{
	uint32_t me = 0;
	const int32_t s = pp__queue_join(v, &me);
	if (s != PP_OK)
		return s;
	for (uint32_t again = 0; again < 2; again++) {
		for (pp__queue_walk w = pp__queue_first(v); w.cell != NULL; pp__queue_next(v, &w)) {
			pp__queue_cell *const c = w.cell;
			const pp__queue_cell_word word = pp__queue_cell_load(c);
			if (pp__queue_cell_word_state(word) != PP__QUEUE_CELL_RETURNED)
				continue;
			/* came in after the count was cleared, and there may be more */
			if (again != 0)
				pp__add32(&v->q->returned, 1);
			b->size = pp__load64(&c->size);
			b->ref = pp__load64(&c->ref);
			b->codec = pp__load32(&c->codec);
			b->data = pp__queue_within(v, pp__queue_ref_off(b->ref), b->size);
			if (pp__queue_cell_load(c) != word) /* they may not be of one message */
				continue;
			if (b->data == NULL)
				return pp__queue_corrupt(v, "the reference of a message", b->ref);
			if (b->size > most)
				return PP_ERR_TOO_BIG;
			b->word = pp__queue_cell_word_with(word, me, state);
			if (pp__queue_cell_cas(c, word, b->word)) {
				b->cell = c;
				b->number = w.number;
				return PP_OK;
			}
		}
		if (again == 0)
			pp__store32(&v->q->returned, 0);
	}
	return PP_ERR_EMPTY;
}

/* ---- cells of the dead */

/* sweep_cells does what is left to do for the dead, and reports whether something was. It adds to
 * returned how many cells became RETURNED. */
static bool pp__queue_sweep_cells(const view *v, uint32_t me, uint32_t *returned)
{
	uint32_t known = 0; /* the last owner that was looked at */
	bool gone = false;
	bool did = false;
	for (pp__queue_walk w = pp__queue_first(v); w.cell != NULL; pp__queue_next(v, &w)) {
		const pp__queue_cell_word word = pp__queue_cell_load(w.cell);
		const uint32_t owner = pp__queue_cell_word_owner(word);
		const uint32_t state = pp__queue_cell_word_state(word);
		if (state == PP__QUEUE_CELL_RETURNED && pp__load32(&v->q->returned) == 0)
			(*returned)++; /* its process died before it could say so */
		if (owner == 0 || owner == me
				|| (state != PP__QUEUE_CELL_CLAIMED && state != PP__QUEUE_CELL_HELD
				&& state != PP__QUEUE_CELL_LEASED))
			continue;
		if (owner != known) {
			known = owner;
			gone = pp__queue_gone(v, owner);
		}
		if (!gone)
			continue;
		did = true;
		switch (state) {
		case PP__QUEUE_CELL_CLAIMED:
			pp__queue_cell_cas(w.cell, word,
					pp__queue_cell_word_with(word, 0, PP__QUEUE_CELL_FREE));
			break;
		case PP__QUEUE_CELL_LEASED:
			if (pp__queue_cell_cas(w.cell, word,
					pp__queue_cell_word_with(word, 0, PP__QUEUE_CELL_RETURNED)))
				(*returned)++;
			break;
		case PP__QUEUE_CELL_HELD:
			if (me != 0 && pp__queue_cell_cas(w.cell, word,
					pp__queue_cell_word_with(word, me, PP__QUEUE_CELL_HELD)))
				pp__queue_free_cell(v, w.cell, pp__load64(&w.cell->ref));
			break;
		}
	}
	return did;
}

/* settled is what becomes of a cell of a dead holder of a lock. */
static inline uint32_t pp__queue_settled(uint32_t state, bool committed)
{
	switch (state) {
	case PP__QUEUE_CELL_PUTTING:
		if (committed)
			return PP__QUEUE_CELL_FREE;
		return PP__QUEUE_CELL_HELD;
	case PP__QUEUE_CELL_TAKING:
		if (committed)
			return PP__QUEUE_CELL_HELD;
		return PP__QUEUE_CELL_FREE;
	case PP__QUEUE_CELL_LEASING:
		if (committed)
			return PP__QUEUE_CELL_LEASED;
		return PP__QUEUE_CELL_FREE;
	}
	if (committed) /* PP__QUEUE_CELL_COPYING */
		return PP__QUEUE_CELL_LEASED;
	return PP__QUEUE_CELL_HELD;
}

static bool pp__queue_held_by(const uint32_t *lock, uint32_t owner)
{
	return (pp__load32(lock) & 0x7fffffff) == owner;
}

/* resolve settles the cells of a dead holder of a lock, whose commits are stores of at. */
static void pp__queue_resolve(const view *v, const uint32_t *lock, const uint64_t *at, bool putting,
		uint32_t dead)
{
	for (pp__queue_walk w = pp__queue_first(v); w.cell != NULL; pp__queue_next(v, &w)) {
		const pp__queue_cell_word word = pp__queue_cell_load(w.cell);
		const uint32_t state = pp__queue_cell_word_state(word);
		if (pp__queue_cell_word_owner(word) != dead || state < PP__QUEUE_CELL_PUTTING
				|| state > PP__QUEUE_CELL_COPYING
				|| (state == PP__QUEUE_CELL_PUTTING) != putting)
			continue;
		const uint32_t seq = pp__load_relaxed32(&w.cell->seq);
		const bool committed
				= (int32_t)(pp__queue_position_items(pp__load64(at)) - seq) >= 0;
		/* Only now is it known that the position was read while it stood still. */
		if (!pp__queue_held_by(lock, dead))
			return;
		const uint32_t to = pp__queue_settled(state, committed);
		uint32_t owner = dead;
		if (to == PP__QUEUE_CELL_FREE)
			owner = 0;
		pp__queue_cell_cas(w.cell, word, pp__queue_cell_word_with(word, owner, to));
	}
}

static void pp__queue_resolve_put(const view *v, uint32_t dead)
{
	pp__queue_resolve(v, &v->q->put_lock, &v->q->tail, true, dead);
}

static void pp__queue_resolve_get(const view *v, uint32_t dead)
{
	pp__queue *const q = v->q;
	const pp__queue_position at = pp__load64(&q->head);
	const pp__queue_ref old = pp__load64(&q->old);
	const pp__queue_ref now = pp__load64(&q->head_chunk[pp__queue_position_crossings(at) & 1]);
	if (!pp__queue_held_by(&q->get_lock, dead))
		return;
	if (old != 0 && old != now)
		pp__queue_free_block(v, old);
	pp__queue_resolve(v, &q->get_lock, &q->head, false, dead);
}

/* cursor is a position, taken apart, and its chunk. */
typedef struct pp__queue_cursor {
	uint32_t items;
	uint32_t crossings;
	uint32_t offset;
	uint32_t size; /* of the chunk */
	pp__queue_ref ref; /* the chunk, 0: before the first */
	pp__queue_chunk *chunk;
} pp__queue_cursor;

/* Written by hand in each language. */
static pp__queue_ref pp__queue_retag(const view *v, pp__queue_ref r);
static void pp__queue_forget(const view *v, void *data, uint64_t size);
static void pp__queue_forget_block(const view *v, pp__queue_ref r, uint64_t size);

static int32_t pp__queue_new_chunk(view *v, pp__queue_ref *r, const pp__queue_cursor *c,
		uint64_t whole);

/* enter moves to the chunk that r names. */
static int32_t pp__queue_enter(view *v, pp__queue_cursor *c, pp__queue_ref r, uint32_t offset)
{
	pp__queue_chunk *const p
			= pp__queue_within(v, pp__queue_ref_off(r), pp__queue_ref_chunk_size(r));
	if (p == NULL || pp__load64(&p->self) != r)
		return pp__queue_corrupt(v, "the reference of a chunk", r);
	c->chunk = p;
	c->ref = r;
	c->size = pp__queue_ref_chunk_size(r);
	c->offset = offset;
	if (offset < PP__QUEUE_CHUNK_HEAD || offset > c->size)
		return pp__queue_corrupt(v, "an offset", offset);
	return PP_OK;
}

/* cursor_at makes c the position at, in one of two chunks. */
static int32_t pp__queue_cursor_at(view *v, pp__queue_cursor *c, pp__queue_position at,
		const uint64_t *chunks)
{
	*c = (pp__queue_cursor){.items = pp__queue_position_items(at),
			.crossings = pp__queue_position_crossings(at)};
	const pp__queue_ref r = pp__load_relaxed64(&chunks[c->crossings & 1]);
	if (r == 0)
		return PP_OK;
	return pp__queue_enter(v, c, r, pp__queue_position_offset(at));
}

static pp__queue_position pp__queue_cursor_position(const pp__queue_cursor *c)
{
	return pp__queue_position_of(c->items, c->crossings, c->offset);
}

/* link is where the reference of the chunk behind the cursor's stands. */
static uint64_t *pp__queue_link(const view *v, const pp__queue_cursor *c)
{
	if (c->chunk == NULL)
		return &v->q->first;
	return &c->chunk->next;
}

/* record is the head of the record at the cursor, which is so far from the chunk's end. */
static uint64_t *pp__queue_cursor_record(const pp__queue_cursor *c)
{
	return (uint64_t *)(void *)((uint8_t *)c->chunk + c->offset);
}

/* body is what lies behind the head of the record at the cursor. */
static void *pp__queue_cursor_body(const pp__queue_cursor *c)
{
	return (uint8_t *)c->chunk + (c->offset + PP__QUEUE_RECORD_HEAD);
}

/* ---- how many */

/* in_chain returns how many messages the chain has, at one moment. */
static uint32_t pp__queue_in_chain(const pp__queue *q)
{
	for (;;) {
		const pp__queue_position at = pp__load64(&q->head);
		const pp__queue_position tail = pp__load64(&q->tail);
		if (pp__load64(&q->head) == at)
			return pp__queue_position_items(tail) - pp__queue_position_items(at);
	}
}

/* most is how many messages the queue may hold. */
static uint32_t pp__queue_most(const pp__queue *q)
{
	const uint64_t n = pp__load_relaxed64(&q->maxsize);
	if (n == 0 || n > PP__QUEUE_ITEMS_MOST)
		return PP__QUEUE_ITEMS_MOST;
	return (uint32_t)n;
}

static bool pp__queue_full(const pp__queue *q)
{
	const uint32_t most = pp__queue_most(q);
	return pp__queue_in_chain(q) >= most;
}

static bool pp__queue_is_closed(const pp__queue *q)
{
	return pp__load32(&q->closed) != 0;
}

static bool pp__queue_can_put(const pp__queue *q)
{
	return !pp__queue_full(q) || pp__queue_is_closed(q);
}

static bool pp__queue_can_get(const pp__queue *q)
{
	return pp__queue_in_chain(q) != 0 || pp__load32(&q->returned) != 0
			|| pp__queue_is_closed(q);
}

/* unfinished is how many messages were put and not reported done. */
static uint32_t pp__queue_unfinished(const pp__queue *q)
{
	const uint32_t done = pp__load32(&q->done);
	return pp__queue_position_items(pp__load64(&q->tail)) - done;
}

static bool pp__queue_finished(const pp__queue *q)
{
	return pp__queue_unfinished(q) == 0;
}

/* task_done reports one message done. PP_ERR_STATE: there is none that is not. */
static int32_t pp__queue_task_done(pp__queue *q)
{
	for (;;) {
		const uint32_t done = pp__load32(&q->done);
		if (done == pp__queue_position_items(pp__load64(&q->tail)))
			return PP_ERR_STATE;
		if (pp__cas32(&q->done, done, done + 1))
			return PP_OK;
	}
}

/* ---- putting; the caller holds put_lock */

/* room makes c where the next message goes, and free how many more there may be, at least one.
 * PP_ERR_FULL, PP_ERR_CLOSED, or corruption. */
static int32_t pp__queue_room(view *v, pp__queue_cursor *c, uint32_t *free)
{
	pp__queue *const q = v->q;
	const uint32_t most = pp__queue_most(q);
	const pp__queue_position tail = pp__load_relaxed64(&q->tail);
	uint32_t there = pp__queue_position_items(tail)
			- pp__queue_position_items(pp__load_relaxed64(&q->seen_head));
	if (there >= most) {
		const pp__queue_position at = pp__load64(&q->head);
		pp__store_relaxed64(&q->seen_head, at);
		there = pp__queue_position_items(tail) - pp__queue_position_items(at);
	}
	if (pp__load_relaxed32(&q->closed) != 0)
		return PP_ERR_CLOSED;
	if (there > PP__QUEUE_ITEMS_MOST)
		return pp__queue_corrupt(v, "the number of messages", there);
	if (there >= most)
		return PP_ERR_FULL;
	*free = most - there;
	return pp__queue_cursor_at(v, c, tail, q->tail_chunk);
}

/* reuse takes the spare chunk, if it is large enough, under a new tag. 0: there is none. */
static pp__queue_ref pp__queue_reuse(const view *v, uint64_t need)
{
	if (pp__load64(&v->q->spare) == 0)
		return 0;
	const pp__queue_ref r = pp__swap64(&v->q->spare, 0);
	if (r == 0)
		return 0;
	if (need > pp__queue_ref_chunk_size(r)
			|| pp__queue_within(v, pp__queue_ref_off(r),
			pp__queue_ref_chunk_size(r)) == NULL) {
		pp__queue_free_block(v, r);
		return 0;
	}
	return pp__queue_retag(v, r);
}

/* grow moves the cursor to a chunk with need bytes behind its head. Nothing that a getter sees
 * changes. from: the crossings of tail. */
static int32_t pp__queue_grow(view *v, pp__queue_cursor *c, uint64_t need, uint32_t from)
{
	uint64_t *const link = pp__queue_link(v, c);
	/* by a producer that died, and what follows it */
	const pp__queue_ref left = pp__load64(link);
	const uint64_t whole = need + PP__QUEUE_CHUNK_HEAD;
	pp__queue_cursor to = *c;
	to.crossings = (from + 1) & 0xffff;
	pp__queue_ref r = left;
	pp__queue_ref unfit = 0;
	uint64_t next = 0;
	if (left != 0) {
		const int32_t s = pp__queue_enter(v, &to, left, PP__QUEUE_CHUNK_HEAD);
		if (s != PP_OK)
			return s;
		if (whole > to.size) {
			r = 0;
			unfit = left;
			next = pp__load64(&to.chunk->next);
		}
	}
	if (r == 0) {
		int32_t s = pp__queue_new_chunk(v, &r, c, whole);
		if (s != PP_OK)
			return s;
		pp__queue_chunk *const p
				= pp__queue_within(v, pp__queue_ref_off(r), PP__QUEUE_SIZE_CHUNK);
		if (p == NULL)
			return pp__queue_corrupt(v, "the reference of a chunk", r);
		pp__store_relaxed64(&p->next, next);
		pp__store_relaxed64(&p->self, r);
		pp__store64(link, r);
		pp__queue_free_block(v, unfit);
		s = pp__queue_enter(v, &to, r, PP__QUEUE_CHUNK_HEAD);
		if (s != PP_OK)
			return s;
	}
	if (c->chunk != NULL && c->offset + PP__QUEUE_RECORD_HEAD <= c->size)
		pp__store_relaxed64(pp__queue_cursor_record(c),
				pp__queue_record_word_of(0, PP__QUEUE_KIND_NEXT, 0));
	pp__store64(&v->q->tail_chunk[to.crossings & 1], r);
	*c = to;
	return PP_OK;
}

/* new_chunk makes r a chunk of at least whole bytes, larger than the cursor's: the spare one, or a
 * new one. */
static int32_t pp__queue_new_chunk(view *v, pp__queue_ref *r, const pp__queue_cursor *c,
		uint64_t whole)
{
	*r = pp__queue_reuse(v, whole);
	if (*r != 0)
		return PP_OK;
	uint32_t class = 0;
	if (c->chunk != NULL)
		class = pp__queue_ref_class(c->ref) + 1;
	if (class >= PP__QUEUE_CLASSES)
		class = PP__QUEUE_CLASSES - 1;
	while (class < PP__QUEUE_CLASSES - 1 && pp__queue_class_size(class) < whole)
		class++;
	return pp__queue_alloc(v, pp__queue_class_size(class), class, r);
}

/* place finds the place of a record of size bytes behind the cursor: the caller writes them to
 * c.body() and calls seal. */
static int32_t pp__queue_place(view *v, pp__queue_cursor *c, uint32_t size, uint32_t from)
{
	const uint64_t need = PP__QUEUE_RECORD_HEAD + pp__queue_padded(size);
	if (c->chunk == NULL || need > c->size - c->offset)
		return pp__queue_grow(v, c, need, from);
	return PP_OK;
}

/* seal ends the record at the cursor, which goes behind it. The commit is what publishes it. */
static void pp__queue_cursor_seal(pp__queue_cursor *c, uint32_t size, uint32_t kind, uint32_t codec)
{
	pp__store_relaxed64(pp__queue_cursor_record(c),
			pp__queue_record_word_of(size, kind, codec));
	c->offset += PP__QUEUE_RECORD_HEAD + (uint32_t)pp__queue_padded(size);
	c->items++;
}

/* commit_put is the one store after which the messages are in the queue. */
static void pp__queue_commit_put(const view *v, const pp__queue_cursor *c)
{
	pp__store_release64(&v->q->tail, pp__queue_cursor_position(c));
}

/* commit_held commits the message of a cell that is HELD by this process, to which the record
 * before the cursor refers. */
static void pp__queue_commit_held(const view *v, const pp__queue_cursor *c, pp__queue_block *b)
{
	pp__store_relaxed32(&b->cell->seq, c->items);
	pp__queue_block_become(b, PP__QUEUE_CELL_PUTTING);
	pp__queue_commit_put(v, c);
	pp__queue_cell_set(b->cell, 0, PP__QUEUE_CELL_FREE);
}

/* ---- getting; the caller holds get_lock */

/* found is a message in the chain, before it is taken. */
typedef struct pp__queue_found {
	pp__queue_cursor at; /* behind it */
	pp__queue_ref old; /* the chunk left on the way, 0: none */
	void *data;
	uint64_t size;
	pp__queue_ref ref; /* of a bulk message */
	uint32_t codec;
	uint32_t left; /* messages after it */
} pp__queue_found;

/* find looks at the next message. PP_ERR_EMPTY, or corruption. */
static int32_t pp__queue_find(view *v, pp__queue_found *f)
{
	pp__queue *const q = v->q;
	const pp__queue_position at = pp__load_relaxed64(&q->head);
	uint32_t there = pp__queue_position_items(pp__load_relaxed64(&q->seen_tail))
			- pp__queue_position_items(at);
	if (there == 0 || there > PP__QUEUE_ITEMS_MOST) {
		const pp__queue_position tail = pp__load64(&q->tail);
		pp__store_relaxed64(&q->seen_tail, tail);
		there = pp__queue_position_items(tail) - pp__queue_position_items(at);
		if (there == 0)
			return PP_ERR_EMPTY;
		if (there > PP__QUEUE_ITEMS_MOST)
			return pp__queue_corrupt(v, "the number of messages", there);
	}
	pp__queue_cursor *const c = &f->at;
	int32_t s = pp__queue_cursor_at(v, c, at, q->head_chunk);
	if (s != PP_OK)
		return s;
	f->old = 0;
	f->left = there - 1;
	pp__queue_record_word word = 0;
	bool go_on = c->chunk == NULL || c->offset + PP__QUEUE_RECORD_HEAD > c->size;
	if (!go_on) {
		word = pp__load_relaxed64(pp__queue_cursor_record(c));
		go_on = pp__queue_record_word_kind(word) == PP__QUEUE_KIND_NEXT;
	}
	if (go_on) {
		f->old = c->ref;
		const uint32_t crossings = (c->crossings + 1) & 0xffff;
		uint64_t *const link = pp__queue_link(v, c);
		s = pp__queue_enter(v, c, pp__load64(link), PP__QUEUE_CHUNK_HEAD);
		if (s != PP_OK)
			return s;
		c->crossings = crossings;
		word = pp__load_relaxed64(pp__queue_cursor_record(c));
	}
	const uint64_t need = PP__QUEUE_RECORD_HEAD
			+ pp__queue_padded(pp__queue_record_word_size(word));
	if (need > c->size - c->offset
			|| (pp__queue_record_word_kind(word) != PP__QUEUE_KIND_INLINE
			&& pp__queue_record_word_kind(word) != PP__QUEUE_KIND_BULK))
		return pp__queue_corrupt(v, "the head of a record", word);
	f->codec = pp__queue_record_word_codec(word);
	if (pp__queue_record_word_kind(word) == PP__QUEUE_KIND_BULK) {
		if (pp__queue_record_word_size(word) != PP__QUEUE_SIZE_BULK)
			return pp__queue_corrupt(v, "the head of a record", word);
		pp__queue_bulk *const b = pp__queue_cursor_body(c);
		f->ref = pp__load_relaxed64(&b->ref);
		f->size = pp__load_relaxed64(&b->size);
		f->data = pp__queue_within(v, pp__queue_ref_off(f->ref), f->size);
		if (f->data == NULL || f->ref == 0)
			return pp__queue_corrupt(v, "the reference of a message", f->ref);
	} else {
		if (pp__queue_record_word_size(word) > PP__QUEUE_INLINE_MOST)
			return pp__queue_corrupt(v, "the length of a message",
					pp__queue_record_word_size(word));
		f->ref = 0;
		f->size = pp__queue_record_word_size(word);
		f->data = pp__queue_cursor_body(c);
	}
	c->offset += (uint32_t)need;
	c->items++;
	return PP_OK;
}

/* commit_get takes what was found: one store. False: the chunk that was left is no block any more,
 * so the chain is corrupt. */
static bool pp__queue_commit_get(const view *v, const pp__queue_found *f)
{
	pp__queue *const q = v->q;
	uint64_t *const chunk = &q->head_chunk[f->at.crossings & 1];
	if (pp__load_relaxed64(chunk) != f->at.ref) { /* a crossing */
		pp__store_relaxed64(&q->old, f->old);
		pp__store64(chunk, f->at.ref);
	}
	pp__store_release64(&q->head, pp__queue_cursor_position(&f->at));
	if (f->old == 0)
		return true;
	bool well = true;
	if (pp__load64(&q->spare) != 0 || !pp__cas64(&q->spare, 0, f->old))
		well = pp__queue_free_block(v, f->old);
	pp__store64(&q->old, 0);
	return well;
}

/* take takes what was found by way of a cell, which is HELD or LEASED then: a message that lies in
 * a block of its own, or a lease, for which an inline message is copied to a block. */
static int32_t pp__queue_take(view *v, const pp__queue_found *f, bool lease, pp__queue_block *b)
{
	int32_t s = pp__queue_claim(v, b);
	if (s != PP_OK)
		return s;
	b->data = f->data;
	b->size = f->size;
	b->ref = f->ref;
	b->codec = f->codec;
	uint32_t state = PP__QUEUE_CELL_TAKING;
	if (lease)
		state = PP__QUEUE_CELL_LEASING;
	if (f->ref == 0) {
		uint64_t size = f->size;
		if (size == 0)
			size = 1;
		s = pp__queue_alloc(v, size, 0, &b->ref);
		if (s != PP_OK) {
			pp__queue_cell_set(b->cell, 0, PP__QUEUE_CELL_FREE);
			return s;
		}
		pp__queue_cell_fill(b->cell, b->ref, b->size, b->codec, f->at.items);
		/* from here on the block is not lost with this process */
		pp__queue_block_become(b, PP__QUEUE_CELL_HELD);
		b->data = pp__queue_within(v, pp__queue_ref_off(b->ref), size);
		if (b->data == NULL) {
			pp__queue_free_cell(v, b->cell, b->ref);
			return pp__queue_corrupt(v, "a block", b->ref);
		}
		pp__copy(b->data, f->data, f->size);
		state = PP__QUEUE_CELL_COPYING;
	} else {
		pp__queue_cell_fill(b->cell, b->ref, b->size, b->codec, f->at.items);
	}
	pp__queue_block_become(b, state);
	pp__queue_commit_get(v, f);
	if (lease)
		pp__queue_block_become(b, PP__QUEUE_CELL_LEASED);
	else
		pp__queue_block_become(b, PP__QUEUE_CELL_HELD);
	return PP_OK;
}

/* ---- the end */

/* destroy frees what hangs on a queue that nobody has any more, with what its messages refer to.
 * What is corrupt stays. */
static void pp__queue_destroy(view *v)
{
	pp__queue *const q = v->q;
	pp__queue_found f = {0};
	while (pp__queue_find(v, &f) == PP_OK) {
		if (f.ref == 0) {
			pp__queue_forget(v, f.data, f.size);
		} else {
			pp__queue_forget_block(v, f.ref, f.size);
			pp__queue_free_block(v, f.ref);
		}
		/* a chain that runs in a circle ends where a chunk is to be freed a second time */
		if (!pp__queue_commit_get(v, &f))
			break;
	}
	pp__queue_cursor c = {0};
	pp__queue_ref r = 0;
	if (pp__queue_cursor_at(v, &c, pp__load64(&q->head), q->head_chunk) == PP_OK) {
		r = c.ref;
		if (r == 0)
			r = pp__load64(&q->first);
	}
	/* the last, and those that the dead have left behind it */
	while (r != 0 && pp__queue_enter(v, &c, r, PP__QUEUE_CHUNK_HEAD) == PP_OK) {
		const pp__queue_ref next = pp__load64(&c.chunk->next);
		if (!pp__queue_free_block(v, r))
			break;
		r = next;
	}
	pp__queue_free_block(v, pp__load64(&q->spare));
	pp__queue_free_block(v, pp__load64(&q->old));
	for (pp__queue_walk w = pp__queue_first(v); w.cell != NULL; pp__queue_next(v, &w)) {
		const uint32_t state = pp__queue_cell_word_state(pp__queue_cell_load(w.cell));
		const pp__queue_ref held = pp__load64(&w.cell->ref);
		if (state == PP__QUEUE_CELL_LEASED || state == PP__QUEUE_CELL_RETURNED)
			pp__queue_forget_block(v, held, pp__load64(&w.cell->size));
		if (state > PP__QUEUE_CELL_CLAIMED)
			pp__queue_free_block(v, held);
	}
	pp__queue_table *t = pp__queue_table_at(v, pp__load64(&q->cells));
	while (t != NULL) {
		const pp__queue_ref self = pp__load64(&t->self);
		const pp__queue_ref next = pp__load64(&t->next);
		if (!pp__queue_free_block(v, self))
			break;
		t = pp__queue_table_at(v, next);
	}
}

/* ---- the same in Go */

_Static_assert(PP_OK == 0, "PP_OK");
_Static_assert(PP_ERR_CORRUPT == -16, "PP_ERR_CORRUPT");
_Static_assert(PP_ERR_EMPTY == -23, "PP_ERR_EMPTY");
_Static_assert(PP_ERR_FULL == -24, "PP_ERR_FULL");
_Static_assert(PP_ERR_CLOSED == -6, "PP_ERR_CLOSED");
_Static_assert(PP_ERR_TOO_BIG == -15, "PP_ERR_TOO_BIG");
_Static_assert(PP_ERR_STATE == -7, "PP_ERR_STATE");
_Static_assert(PP_ERR_NOMEM == -3, "PP_ERR_NOMEM");

#endif
