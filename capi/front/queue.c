/* queue.c - see queue.h, where layout and algorithms are. */
#include "front.h"

#include "bell.h"
#include "heap.h"
#include "queue.h"
#include "spin.h"
#include "wait.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* How long a call that is not to wait waits for a process in the middle of another: it may have been preempted, or be dead, which takes some ms to prove. */
#define LOCK_PATIENCE_MS 50
/* Sleepers look for messages leased to the dead, and while there are leases, this often. */
#ifndef LEASE_SLICE_MS /* a test has less patience */
#define LEASE_SLICE_MS 100
#endif
#define SWEEP_NS 100000000u
/* Every so many calls of get, the leases of the dead are looked for too: a queue that is never empty has no sleepers. */
#define GETS_PER_SWEEP 256u
#define TABLES_MOST 65536u
#define MESSAGE_MOST ((uint64_t)16 << 30)

/* pp_message.kind, and above it, from bit M_FORKS on, pp__forks of who took the message: the owner of an ancestor's may be gone. */
enum { M_NONE = 0, M_BUFFER = 1, M_MALLOC = 2, M_HELD = 3, M_LEASED = 4, M_KINDS = 7, M_FORKS = 3 };

/* linger: looks at most, messages that a look must find, and waits without it after one that found less. */
#define LINGER_LOOKS 16
#define LINGER_LEAST 2u
#define LINGER_REST 64u

/* handle->words */
enum { W_GETS = 0, W_SWEPT = 1, W_SPIN_GET = 2, W_SPIN_PUT = 3, W_LINGER_GET = 4, W_LINGER_PUT = 5 };

/* A queue during a call. */
typedef struct view {
	pp__handle *handle;
	pp__heap *heap;
	pp__queue *q;
	int64_t timeout_ms;
	uint64_t deadline; /* 0: not computed yet, the clock costs as much as a put */
} view;

/* ---- little things ------------------------------------------------------------------------------------------------------------ */

static int32_t corrupt(const char *what, uint64_t value)
{
	return pp__fail(PP_ERR_CORRUPT, "queue: %s is %#llx", what, (unsigned long long)value);
}

static uint64_t load64(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

/* A word of shared memory is read once, by one of these, and its checked copy is used: another process may change it at any time. */
static uint64_t relaxed64(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static bool swap64(uint64_t *word, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static uint64_t padded(uint64_t len)
{
	return (len + 7) & ~(uint64_t)7;
}

static int32_t view_of(pp_queue queue, int64_t timeout_ms, view *v)
{
	if (!pp__timeout_valid(timeout_ms))
		return pp__timeout_invalid(timeout_ms);
	pp__handle *const handle = pp__pin(queue, PP__KIND_QUEUE);
	if (handle == NULL)
		return PP_ERR_HANDLE;
	*v = (view){handle, handle->heap, pp__at(handle->heap, handle->off), timeout_ms, 0};
	return PP_OK;
}

static uint64_t deadline_of(view *v)
{
	if (v->deadline == 0)
		v->deadline = v->timeout_ms == PP_TRY ? 1 : pp__deadline(v->timeout_ms);
	return v->deadline;
}

/* lock takes one of the two locks. */
static int32_t lock(view *v, uint32_t *word, pp__resolve_fn *resolve)
{
	uint32_t nobody = 0;
	const uint32_t me = pp__join(v->heap);

	if (me != 0 && __atomic_compare_exchange_n(word, &nobody, me, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return PP_OK;
	const uint64_t until = v->timeout_ms == PP_TRY ? 0 : v->timeout_ms == 0 ? pp__deadline(LOCK_PATIENCE_MS) : deadline_of(v);
	return pp__mutex_slow(v->heap, word, until, resolve, v->q, NULL);
}

/* ---- bells (heap.h) ------------------------------------------------------------------------------------------------------------- */

static uint32_t enter(pp__bell *bell)
{
	uint32_t seq;

	do {
		__atomic_store_n(&bell->waiters, 1, __ATOMIC_SEQ_CST);
		seq = __atomic_load_n(&bell->seq, __ATOMIC_SEQ_CST);
	} while (__atomic_load_n(&bell->waiters, __ATOMIC_SEQ_CST) != 1);
	return seq;
}

static void ring_slow(pp__bell *bell, int n)
{
	if (__atomic_exchange_n(&bell->waiters, 0, __ATOMIC_SEQ_CST) == 0)
		return;
	__atomic_fetch_add(&bell->seq, 1, __ATOMIC_SEQ_CST);
	if (syscall(SYS_futex, &bell->seq, FUTEX_WAKE, n, NULL, NULL, 0) >= n)
		__atomic_store_n(&bell->waiters, 1, __ATOMIC_SEQ_CST); /* there may be more */
}

static inline void ring(pp__bell *bell, int n)
{
	if (__atomic_load_n(&bell->waiters, __ATOMIC_SEQ_CST) != 0)
		ring_slow(bell, n);
}

static bool sweep(view *v, bool now);
static bool in_use(const view *v);
static uint32_t in_chain(const pp__queue *q);

/* linger waits for more than the one message, or the room for one, that has just come, for as long as each look finds some. Who takes one at a time from a queue that
 * is empty after each, or puts into one that is full after each, fetches the lines of head and tail from the other side for each; that costs more than all the rest. If none
 * come, as when two answer each other, it was for nothing and is left out the next times. */
static void linger(const pp__queue *q, uint64_t *skip)
{
	if (*skip != 0) {
		--*skip;
		return;
	}
	uint32_t there = in_chain(q);
	for (int look = 0; look < LINGER_LOOKS; look++) {
		for (int i = 0; i < 8; i++)
			pp__pause();
		const uint32_t now = in_chain(q), come = now > there ? now - there : there - now;
		if (come < LINGER_LEAST) {
			*skip = look == 0 ? LINGER_REST : 0;
			return;
		}
		there = now;
	}
}

/* freed reports whether the handle was, while this call uses it. */
static bool freed(const view *v)
{
	return __atomic_load_n(&v->handle->number, __ATOMIC_SEQ_CST) == 0;
}

/* rest sleeps until the bell rings, but not if ready, and not beyond the deadline: then it returns status. PP_OK: look again.
 * PP_ERR_CLOSED: the handle was freed meanwhile. */
static int32_t rest(view *v, pp__bell *bell, bool (*ready)(const void *q), int32_t status)
{
	if (v->timeout_ms == 0 || v->timeout_ms == PP_TRY)
		return status;
	const uint64_t deadline = deadline_of(v);
	uint64_t *const patience = &v->handle->words[bell == &v->q->not_full ? W_SPIN_PUT : W_SPIN_GET], began;
	if (pp__spin(patience, ready, v->q, &began)) {
		if (bell != &v->q->all_done)
			linger(v->q, &v->handle->words[bell == &v->q->not_full ? W_LINGER_PUT : W_LINGER_GET]);
		return PP_OK;
	}
	const uint32_t seq = enter(bell);
	if (ready(v->q))
		return PP_OK;
	if (freed(v))
		return PP_ERR_CLOSED;
	const uint64_t now = pp__now_ns();
	if (now >= deadline)
		return status;
	const bool leases = in_use(v);
	uint64_t ns = (leases ? LEASE_SLICE_MS : PP__SLICE_MS) * (uint64_t)1000000;
	const bool whole = ns <= deadline - now;
	if (!whole)
		ns = deadline - now;
	const int32_t how = pp__bell_wait(bell, seq, ns);
	pp__slept(patience, began);
	if (how == PP_ERR_INTERRUPTED)
		return pp__fail(how, "queue: a signal handler ran");
	if (how == PP_ERR_TIMEOUT && whole && leases)
		sweep(v, true);
	return PP_OK;
}

/* ---- cells ------------------------------------------------------------------------------------------------------------------------- */

static uint32_t state_of(uint64_t word)
{
	return (uint32_t)(word >> 24) & 0xff;
}

static uint64_t with(uint64_t word, uint32_t owner, uint32_t state)
{
	return pp__qcell_word(owner, state, (uint32_t)word);
}

static void set(pp__queue_cell *cell, uint32_t owner, uint32_t state)
{
	__atomic_store_n(&cell->word, with(load64(&cell->word), owner, state), __ATOMIC_SEQ_CST);
}

/* table_at checks a reference to a table: NULL if there is none behind it. */
static pp__queue_table *table_at(const pp__heap *heap, uint64_t ref)
{
	pp__queue_table *const table = ref == 0 ? NULL : pp__within(heap, pp__qref_off(ref), sizeof *table);

	return table != NULL && load64(&table->self) == ref ? table : NULL;
}

/* Goes over all cells: for (walk w = first(...); w.cell != NULL; next(&w)). A chain that is corrupt ends. */
typedef struct walk {
	const pp__heap *heap;
	pp__queue_table *table;
	pp__queue_cell *cell;
	uint32_t number; /* of the cell */
} walk;

static walk first(const pp__heap *heap, const pp__queue *q)
{
	pp__queue_table *const table = table_at(heap, load64(&q->cells));

	return (walk){heap, table, table == NULL ? NULL : table->cells, 0};
}

static void next(walk *w)
{
	if (++w->number % PP__QUEUE_CELLS != 0) {
		w->cell++;
		return;
	}
	w->table = w->number / PP__QUEUE_CELLS < TABLES_MOST ? table_at(w->heap, load64(&w->table->next)) : NULL;
	w->cell = w->table == NULL ? NULL : w->table->cells;
}

/* in_use reports whether any cell is. */
static bool in_use(const view *v)
{
	if (load64(&v->q->cells) == 0)
		return false;
	for (walk w = first(v->heap, v->q); w.cell != NULL; next(&w))
		if (state_of(load64(&w.cell->word)) != PP__CELL_FREE)
			return true;
	return false;
}

/* Frees the block ref of a cell that is this process's, and the cell. */
static void free_cell(const view *v, pp__queue_cell *cell, uint64_t ref)
{
	pp__free(v->heap, pp__qref_off(ref), pp__qref_tag(ref));
	set(cell, 0, PP__CELL_FREE);
}

/* sweep does what is left to do for the dead. Reports whether something was. */
static bool sweep(view *v, bool now)
{
	const uint32_t me = pp__join(v->heap);
	uint32_t known = 0; /* the last owner that was looked at */
	bool gone = false, did = false;
	int returned = 0;

	if (load64(&v->q->cells) == 0)
		return false;
	const uint64_t time = pp__now_ns();
	if (!now && time - __atomic_load_n(&v->handle->words[W_SWEPT], __ATOMIC_RELAXED) < SWEEP_NS)
		return false;
	__atomic_store_n(&v->handle->words[W_SWEPT], time, __ATOMIC_RELAXED);
	for (walk w = first(v->heap, v->q); w.cell != NULL; next(&w)) {
		const uint64_t word = load64(&w.cell->word);
		const uint32_t owner = (uint32_t)(word >> 32), state = state_of(word);
		if (state == PP__CELL_RETURNED && __atomic_load_n(&v->q->returned, __ATOMIC_SEQ_CST) == 0)
			returned++; /* by one who died before he could say so */
		if (owner == 0 || owner == me || (state != PP__CELL_CLAIMED && state != PP__CELL_HELD && state != PP__CELL_LEASED))
			continue;
		if (owner != known) {
			known = owner;
			gone = pp__gone(v->heap, owner);
		}
		if (!gone)
			continue;
		did = true;
		if (state == PP__CELL_CLAIMED)
			swap64(&w.cell->word, word, with(word, 0, PP__CELL_FREE));
		else if (state == PP__CELL_LEASED)
			returned += swap64(&w.cell->word, word, with(word, 0, PP__CELL_RETURNED));
		else if (me != 0 && swap64(&w.cell->word, word, with(word, me, PP__CELL_HELD)))
			free_cell(v, w.cell, load64(&w.cell->ref));
	}
	if (returned > 0) {
		__atomic_fetch_add(&v->q->returned, 1, __ATOMIC_SEQ_CST);
		ring(&v->q->not_empty, returned);
	}
	return did;
}

static int32_t alloc(view *v, uint64_t size, uint32_t class, uint64_t *ref_out)
{
	const uint32_t tag = pp__tag(v->heap);
	uint64_t off;
	int32_t status = pp__alloc(v->heap, size, tag, &off, NULL);

	if (status == PP_ERR_NOMEM && sweep(v, true)) /* what the dead have held */
		status = pp__alloc(v->heap, size, tag, &off, NULL);
	if (status == PP_OK)
		*ref_out = pp__qref(off, class, tag);
	return status;
}

/* more_cells puts another table at the end of the chain, unless somebody else does. */
static int32_t more_cells(view *v)
{
	uint64_t ref;
	const int32_t status = alloc(v, sizeof(pp__queue_table), 0, &ref);

	if (status != PP_OK)
		return status;
	pp__queue_table *const table = pp__at(v->heap, pp__qref_off(ref));
	memset(table, 0, sizeof *table);
	table->self = ref;
	uint64_t *link = &v->q->cells;
	for (uint32_t n = 0; n < TABLES_MOST; n++) {
		if (swap64(link, 0, ref))
			return PP_OK;
		pp__queue_table *const there = table_at(v->heap, load64(link));
		if (there == NULL)
			break;
		link = &there->next;
	}
	pp__free(v->heap, pp__qref_off(ref), pp__qref_tag(ref));
	return corrupt("a table of cells", load64(link));
}

/* claim_cell returns a cell of this process, in state CLAIMED. */
static int32_t claim_cell(view *v, pp__queue_cell **cell_out, uint32_t *number_out)
{
	const uint32_t me = pp__join(v->heap);

	if (me == 0)
		return pp__failed();
	for (bool swept = false;; swept = true) {
		for (walk w = first(v->heap, v->q); w.cell != NULL; next(&w)) {
			const uint64_t word = load64(&w.cell->word);
			if (state_of(word) != PP__CELL_FREE || !swap64(&w.cell->word, word, pp__qcell_word(me, PP__CELL_CLAIMED, (uint32_t)word + 1)))
				continue;
			*cell_out = w.cell;
			*number_out = w.number;
			return PP_OK;
		}
		if (!swept && sweep(v, false))
			continue;
		const int32_t status = more_cells(v);
		if (status != PP_OK)
			return status;
	}
}

static void fill(pp__queue_cell *cell, uint64_t ref, uint64_t size, uint32_t codec, uint32_t seq)
{
	__atomic_store_n(&cell->ref, ref, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->size, size, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->codec, codec, __ATOMIC_RELAXED);
	__atomic_store_n(&cell->seq, seq, __ATOMIC_RELAXED);
}

/* For pp__mutex_lock: the cells of a dead holder of the lock. */
static void resolve(pp__heap *heap, pp__queue *q, uint32_t *word, const uint64_t *position, bool putting, uint32_t dead)
{
	for (walk w = first(heap, q); w.cell != NULL; next(&w)) {
		const uint64_t cell = load64(&w.cell->word);
		const uint32_t state = state_of(cell);
		if ((uint32_t)(cell >> 32) != dead || state < PP__CELL_PUTTING || (state == PP__CELL_PUTTING) != putting)
			continue;
		const uint32_t seq = __atomic_load_n(&w.cell->seq, __ATOMIC_RELAXED);
		const bool committed = (int32_t)(pp__qpos_items(load64(position)) - seq) >= 0;
		/* Only now is it known that the position was read while it stood still. */
		if ((__atomic_load_n(word, __ATOMIC_SEQ_CST) & 0x7fffffffu) != dead)
			return;
		static const uint8_t after[][2] = { /* not committed, committed */
			[PP__CELL_PUTTING] = {PP__CELL_HELD, PP__CELL_FREE},
			[PP__CELL_TAKING] = {PP__CELL_FREE, PP__CELL_HELD},
			[PP__CELL_LEASING] = {PP__CELL_FREE, PP__CELL_LEASED},
			[PP__CELL_COPYING] = {PP__CELL_HELD, PP__CELL_LEASED},
		};
		if (state >= sizeof after / sizeof after[0])
			continue;
		const uint32_t to = after[state][committed];
		swap64(&w.cell->word, cell, with(cell, to == PP__CELL_FREE ? 0 : dead, to));
	}
}

static void resolve_put(pp__heap *heap, void *object, uint32_t dead)
{
	pp__queue *const q = object;

	resolve(heap, q, &q->put_lock, &q->tail, true, dead);
}

static void resolve_get(pp__heap *heap, void *object, uint32_t dead)
{
	pp__queue *const q = object;
	const uint64_t head = load64(&q->head), old = load64(&q->old);
	const uint64_t current = load64(&q->head_chunk[pp__qpos_crossings(head) & 1]);

	if ((__atomic_load_n(&q->get_lock, __ATOMIC_SEQ_CST) & 0x7fffffffu) != dead)
		return;
	if (old != 0 && old != current)
		pp__free(heap, pp__qref_off(old), pp__qref_tag(old));
	resolve(heap, q, &q->get_lock, &q->head, false, dead);
}

/* ---- how many ---------------------------------------------------------------------------------------------------------------------- */

static uint32_t in_chain(const pp__queue *q)
{
	for (;;) {
		const uint64_t head = load64(&q->head), tail = load64(&q->tail);
		if (load64(&q->head) == head)
			return pp__qpos_items(tail) - pp__qpos_items(head);
	}
}

static uint64_t count(const view *v, uint32_t state)
{
	uint64_t n = 0;

	for (walk w = first(v->heap, v->q); w.cell != NULL; next(&w))
		n += state_of(load64(&w.cell->word)) == state;
	return n;
}

static bool ready_to_get(const void *object)
{
	const pp__queue *const q = object;

	return in_chain(q) != 0 || __atomic_load_n(&q->returned, __ATOMIC_SEQ_CST) != 0 || __atomic_load_n(&q->closed, __ATOMIC_SEQ_CST) != 0;
}

static bool full(const pp__queue *q)
{
	const uint64_t maxsize = load64(&q->maxsize);

	return in_chain(q) >= (maxsize == 0 || maxsize > PP__QUEUE_ITEMS_MOST ? PP__QUEUE_ITEMS_MOST : maxsize);
}

static bool ready_to_put(const void *object)
{
	const pp__queue *const q = object;

	return !full(q) || __atomic_load_n(&q->closed, __ATOMIC_SEQ_CST) != 0;
}

static bool all_done(const void *object)
{
	const pp__queue *const q = object;
	const uint32_t done = __atomic_load_n(&q->done, __ATOMIC_SEQ_CST);

	return done == pp__qpos_items(load64(&q->tail));
}

/* ---- the chain --------------------------------------------------------------------------------------------------------------------- */

/* A position, taken apart, and its chunk. */
typedef struct cursor {
	uint32_t items;
	uint32_t crossings;
	uint32_t offset;
	uint32_t size;           /* of the chunk */
	uint64_t ref;            /* the chunk, 0: before the first */
	pp__queue_chunk *chunk;
} cursor;

/* enter_chunk moves to the chunk that ref names. */
static int32_t enter_chunk(const pp__heap *heap, cursor *c, uint64_t ref, uint32_t offset)
{
	pp__queue_chunk *const chunk = pp__within(heap, pp__qref_off(ref), pp__qchunk_size(ref));

	if (chunk == NULL || load64(&chunk->self) != ref)
		return corrupt("the reference of a chunk", ref);
	c->chunk = chunk;
	c->ref = ref;
	c->size = pp__qchunk_size(ref);
	c->offset = offset;
	return offset >= PP__QUEUE_CHUNK_HEAD && offset <= c->size ? PP_OK : corrupt("an offset", offset);
}

static int32_t cursor_at(const pp__heap *heap, uint64_t position, const uint64_t chunks[2], cursor *c)
{
	*c = (cursor){.items = pp__qpos_items(position), .crossings = pp__qpos_crossings(position)};
	const uint64_t ref = __atomic_load_n(&chunks[c->crossings & 1], __ATOMIC_RELAXED);
	return ref == 0 ? PP_OK : enter_chunk(heap, c, ref, pp__qpos_offset(position));
}

static uint64_t position_of(const cursor *c)
{
	return pp__qpos(c->items, c->crossings, c->offset);
}

static uint64_t *link_of(pp__queue *q, const cursor *c)
{
	return c->chunk == NULL ? &q->first : &c->chunk->next;
}

/* A record's first eight bytes as one word, so that it is read and written whole. */
static uint64_t head_word(uint32_t len, uint32_t kind, uint32_t codec)
{
	return (uint64_t)len | (uint64_t)kind << 32 | (uint64_t)codec << 48;
}

static uint64_t *record_at(const cursor *c)
{
	return (uint64_t *)(void *)((uint8_t *)c->chunk + c->offset);
}

/* reuse takes the spare chunk, if it is large enough, under a new tag. */
static bool reuse(view *v, uint64_t need, uint64_t *ref_out)
{
	if (load64(&v->q->spare) == 0)
		return false;
	const uint64_t ref = __atomic_exchange_n(&v->q->spare, 0, __ATOMIC_SEQ_CST), off = pp__qref_off(ref);
	if (ref == 0)
		return false;
	const uint32_t tag = pp__tag(v->heap);
	if (need > pp__qchunk_size(ref) || pp__within(v->heap, off, pp__qchunk_size(ref)) == NULL) {
		pp__free(v->heap, off, pp__qref_tag(ref));
		return false;
	}
	*ref_out = pp__qref(off, pp__qref_class(ref), tag);
	return pp__retag(v->heap, off, pp__qref_tag(ref), tag);
}

/* grow moves the producer's cursor to a chunk with need bytes behind its head. Nothing that a getter sees changes. from: the crossings of tail. */
static int32_t grow(view *v, cursor *c, uint64_t need, uint32_t from)
{
	pp__queue *const q = v->q;
	uint64_t *const link = link_of(q, c);
	const uint64_t left = load64(link); /* by a producer that died, and what follows it */
	uint64_t ref = left, unfit = 0;
	cursor to = *c;

	need += PP__QUEUE_CHUNK_HEAD;
	to.crossings = (from + 1) & 0xffff;
	if (left != 0) {
		const int32_t status = enter_chunk(v->heap, &to, left, PP__QUEUE_CHUNK_HEAD);
		if (status != PP_OK)
			return status;
		if (need > to.size) {
			unfit = left;
			ref = 0;
		}
	}
	if (ref == 0) {
		if (!reuse(v, need, &ref)) {
			uint32_t class = c->chunk == NULL ? 0 : pp__qref_class(c->ref) + 1;
			if (class >= PP__QUEUE_CLASSES)
				class = PP__QUEUE_CLASSES - 1;
			while (PP__QUEUE_CHUNK_LEAST << 2 * class < need)
				class++;
			const int32_t status = alloc(v, PP__QUEUE_CHUNK_LEAST << 2 * class, class, &ref);
			if (status != PP_OK)
				return status;
		}
		pp__queue_chunk *const chunk = pp__at(v->heap, pp__qref_off(ref));
		__atomic_store_n(&chunk->next, unfit != 0 ? load64(&to.chunk->next) : 0, __ATOMIC_RELAXED);
		__atomic_store_n(&chunk->self, ref, __ATOMIC_RELAXED);
		__atomic_store_n(link, ref, __ATOMIC_SEQ_CST);
		pp__free(v->heap, pp__qref_off(unfit), pp__qref_tag(unfit));
		const int32_t status = enter_chunk(v->heap, &to, ref, PP__QUEUE_CHUNK_HEAD);
		if (status != PP_OK)
			return status;
	}
	if (c->chunk != NULL && c->offset + PP__QUEUE_RECORD_HEAD <= c->size)
		__atomic_store_n(record_at(c), head_word(0, PP__QUEUE_NEXT, 0), __ATOMIC_RELAXED);
	__atomic_store_n(&q->tail_chunk[to.crossings & 1], ref, __ATOMIC_SEQ_CST);
	*c = to;
	return PP_OK;
}

/* place_record writes a record behind the producer's cursor. */
static int32_t place_record(view *v, cursor *c, const pp_part *parts, size_t n, uint32_t len, uint32_t kind, uint32_t codec, uint32_t from)
{
	const uint64_t need = PP__QUEUE_RECORD_HEAD + padded(len);

	if (c->chunk == NULL || need > c->size - c->offset) {
		const int32_t status = grow(v, c, need, from);
		if (status != PP_OK)
			return status;
	}
	uint64_t *const record = record_at(c);
	uint8_t *to = (uint8_t *)(record + 1);
	for (size_t i = 0; i < n; i++) {
		if (parts[i].size != 0)
			memcpy(to, parts[i].data, parts[i].size);
		to += parts[i].size;
	}
	__atomic_store_n(record, head_word(len, kind, codec), __ATOMIC_RELAXED);
	c->offset += (uint32_t)need;
	c->items++;
	return PP_OK;
}

/* begin_put takes put_lock and finds room for at least one message: PP_OK, how many in *room_out. Otherwise the lock is not held. */
static int32_t begin_put(view *v, cursor *c, uint32_t *room_out)
{
	pp__queue *const q = v->q;
	int32_t status = lock(v, &q->put_lock, resolve_put);

	if (status != PP_OK)
		return status;
	const uint64_t tail = relaxed64(&q->tail), limit = load64(&q->maxsize);
	const uint32_t most = limit == 0 || limit > PP__QUEUE_ITEMS_MOST ? PP__QUEUE_ITEMS_MOST : (uint32_t)limit;
	uint32_t there = pp__qpos_items(tail) - pp__qpos_items(relaxed64(&q->seen_head));
	if (there >= most) {
		const uint64_t head = load64(&q->head);
		__atomic_store_n(&q->seen_head, head, __ATOMIC_RELAXED);
		there = pp__qpos_items(tail) - pp__qpos_items(head);
	}
	status = __atomic_load_n(&q->closed, __ATOMIC_RELAXED) != 0 ? PP_ERR_CLOSED
	         : there > PP__QUEUE_ITEMS_MOST                     ? corrupt("the number of messages", there)
	         : there >= most                                    ? PP_ERR_FULL
	                                                            : cursor_at(v->heap, tail, q->tail_chunk, c);
	if (status != PP_OK) {
		pp__mutex_unlock(&q->put_lock);
		return status;
	}
	*room_out = most - there;
	return PP_OK;
}

static void commit_put(pp__queue *q, const cursor *c)
{
	__atomic_store_n(&q->tail, position_of(c), __ATOMIC_RELEASE);
}

static int32_t put_failed(const view *v, int32_t status)
{
	if (status == PP_ERR_CLOSED)
		return pp__fail(status, freed(v) ? "queue: the handle was freed during the call" : "queue: closed");
	if (status == PP_ERR_FULL)
		return pp__fail(status, "queue: full");
	if (status == PP_ERR_TIMEOUT)
		return pp__fail(status, "queue: another process is in the middle of an operation");
	return status;
}

/* put_small puts one record: a message, or the reference that its cell holds. */
static int32_t put_small(view *v, const pp_part *parts, size_t n, uint32_t len, uint32_t codec, pp__queue_cell *cell)
{
	pp__queue *const q = v->q;
	cursor c;
	uint32_t room;
	int32_t status;

	for (;;) {
		status = begin_put(v, &c, &room);
		if (status != PP_ERR_FULL)
			break;
		status = rest(v, &q->not_full, ready_to_put, PP_ERR_FULL);
		if (status != PP_OK)
			break;
	}
	if (status != PP_OK)
		return put_failed(v, status);
	status = place_record(v, &c, parts, n, len, cell != NULL ? PP__QUEUE_BULK : PP__QUEUE_INLINE, codec, c.crossings);
	if (status == PP_OK) {
		if (cell != NULL) {
			__atomic_store_n(&cell->seq, c.items, __ATOMIC_RELAXED);
			set(cell, pp__join(v->heap), PP__CELL_PUTTING);
		}
		commit_put(q, &c);
		if (cell != NULL)
			set(cell, 0, PP__CELL_FREE);
	}
	pp__mutex_unlock(&q->put_lock);
	if (status == PP_OK)
		ring(&q->not_empty, 1);
	return status;
}

/* put_bulk puts a message in a block of its own, which is written before anything is locked. */
static int32_t put_bulk(view *v, const pp_part *parts, size_t n, uint64_t size, uint32_t codec)
{
	pp__queue_cell *cell;
	uint32_t number;
	int32_t status;
	uint64_t ref;

	while (full(v->q)) { /* not with the memory in hand */
		status = rest(v, &v->q->not_full, ready_to_put, PP_ERR_FULL);
		if (status != PP_OK)
			return put_failed(v, status);
		if (__atomic_load_n(&v->q->closed, __ATOMIC_SEQ_CST) != 0)
			return put_failed(v, PP_ERR_CLOSED);
	}
	status = claim_cell(v, &cell, &number);
	if (status != PP_OK)
		return status;
	status = alloc(v, size, 0, &ref);
	if (status != PP_OK) {
		set(cell, 0, PP__CELL_FREE);
		return status;
	}
	fill(cell, ref, size, codec, 0);
	set(cell, pp__join(v->heap), PP__CELL_HELD);
	uint8_t *to = pp__at(v->heap, pp__qref_off(ref));
	for (size_t i = 0; i < n; i++) {
		if (parts[i].size != 0)
			memcpy(to, parts[i].data, parts[i].size);
		to += parts[i].size;
	}
	const pp__queue_bulk bulk = {ref, size};
	const pp_part part = {&bulk, sizeof bulk};
	status = put_small(v, &part, 1, sizeof bulk, codec, cell);
	if (status != PP_OK)
		free_cell(v, cell, ref);
	return status;
}

/* A message in the chain, before it is taken. */
typedef struct found {
	cursor at;          /* behind it */
	uint64_t old;       /* the chunk left on the way, 0: none */
	const uint8_t *data;
	uint64_t size;
	uint64_t ref;       /* of a bulk message */
	uint32_t codec;
	uint32_t left;      /* messages after it */
} found;

/* find looks at the next message, get_lock held. PP_OK, PP_ERR_EMPTY, PP_ERR_CORRUPT. */
static int32_t find(view *v, found *f)
{
	pp__queue *const q = v->q;
	const uint64_t head = relaxed64(&q->head);
	uint64_t tail = relaxed64(&q->seen_tail);
	uint32_t there = pp__qpos_items(tail) - pp__qpos_items(head);

	if (there == 0 || there > PP__QUEUE_ITEMS_MOST) {
		tail = load64(&q->tail);
		__atomic_store_n(&q->seen_tail, tail, __ATOMIC_RELAXED);
		there = pp__qpos_items(tail) - pp__qpos_items(head);
		if (there == 0)
			return PP_ERR_EMPTY;
		if (there > PP__QUEUE_ITEMS_MOST)
			return corrupt("the number of messages", there);
	}
	int32_t status = cursor_at(v->heap, head, q->head_chunk, &f->at);
	if (status != PP_OK)
		return status;
	f->old = 0;
	f->left = there - 1;
	uint64_t word = 0;
	bool go_on = f->at.chunk == NULL || f->at.offset + PP__QUEUE_RECORD_HEAD > f->at.size;
	if (!go_on) {
		word = relaxed64(record_at(&f->at));
		go_on = (uint16_t)(word >> 32) == PP__QUEUE_NEXT;
	}
	if (go_on) {
		const uint32_t crossings = (f->at.crossings + 1) & 0xffff;
		f->old = f->at.ref;
		status = enter_chunk(v->heap, &f->at, load64(link_of(q, &f->at)), PP__QUEUE_CHUNK_HEAD);
		if (status != PP_OK)
			return status;
		f->at.crossings = crossings;
		word = relaxed64(record_at(&f->at));
	}
	const uint32_t len = (uint32_t)word, kind = (uint16_t)(word >> 32);
	const uint64_t *const record = record_at(&f->at);
	const uint64_t need = PP__QUEUE_RECORD_HEAD + padded(len);
	if (need > f->at.size - f->at.offset || (kind != PP__QUEUE_INLINE && kind != PP__QUEUE_BULK))
		return corrupt("the head of a record", word);
	f->codec = (uint32_t)(word >> 48);
	f->data = (const uint8_t *)(record + 1);
	f->size = len;
	f->ref = 0;
	if (kind == PP__QUEUE_BULK) {
		const pp__queue_bulk bulk = {relaxed64(record + 1), relaxed64(record + 2)};
		f->data = len == sizeof bulk ? pp__within(v->heap, pp__qref_off(bulk.ref), bulk.size) : NULL;
		if (f->data == NULL || bulk.ref == 0)
			return corrupt("the reference of a message", bulk.ref);
		f->size = bulk.size;
		f->ref = bulk.ref;
	} else if (len > PP__QUEUE_INLINE_MOST) {
		return corrupt("the length of a message", len);
	}
	f->at.offset += (uint32_t)need;
	f->at.items++;
	return PP_OK;
}

/* commit_get takes what was found, get_lock held. False: the chunk that was left is no block any more, so the chain is corrupt. */
static bool commit_get(view *v, const found *f)
{
	pp__queue *const q = v->q;
	bool well = true;

	if (f->at.ref != relaxed64(&q->head_chunk[f->at.crossings & 1])) { /* a crossing */
		__atomic_store_n(&q->old, f->old, __ATOMIC_RELAXED);
		__atomic_store_n(&q->head_chunk[f->at.crossings & 1], f->at.ref, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&q->head, position_of(&f->at), __ATOMIC_RELEASE);
	if (f->old == 0)
		return true;
	if (load64(&q->spare) != 0 || !swap64(&q->spare, 0, f->old))
		well = pp__free(v->heap, pp__qref_off(f->old), pp__qref_tag(f->old));
	__atomic_store_n(&q->old, 0, __ATOMIC_SEQ_CST);
	return well;
}

static void end_get(view *v, uint32_t taken, uint32_t left)
{
	pp__queue *const q = v->q;

	pp__mutex_unlock(&q->get_lock);
	if (taken != 0 && load64(&q->maxsize) != 0)
		ring(&q->not_full, taken > INT_MAX ? INT_MAX : (int)taken);
	if (left != 0)
		ring(&q->not_empty, 1);
}

/* What a getter wants. */
typedef struct want {
	bool lease;
	bool copy;      /* into buf and nowhere else: PP_ERR_TOO_BIG */
	void *buf;
	size_t room;
	pp_message *message;
} want;

static void describe(pp_message *m, const void *data, uint64_t size, uint32_t codec, uint32_t kind)
{
	*m = (pp_message){data, size, codec, kind, 0, 0};
}

/* A message in the block of a cell that is HELD or LEASED by this process: what was read and checked, as the memory may have changed since. */
typedef struct block {
	const void *data;
	uint64_t size;
	uint64_t ref;
	uint32_t codec;
	uint32_t number; /* of the cell */
	pp__queue_cell *cell;
} block;

/* own lets the message lie in its block; it keeps the handle alive. */
static void own(view *v, const want *w, const block *b)
{
	pp__keep(v->handle);
	describe(w->message, b->data, b->size, b->codec, (w->lease ? M_LEASED : M_HELD) | pp__forks << M_FORKS);
	w->message->cell = (uint64_t)b->number << 24 | (load64(&b->cell->word) & 0xffffffu);
	w->message->owner = (uintptr_t)v->handle;
}

/* deliver hands over a message. */
static void deliver(view *v, const want *w, const block *b)
{
	if (!w->copy) {
		own(v, w, b);
		return;
	}
	memcpy(w->buf, b->data, b->size);
	describe(w->message, w->buf, b->size, b->codec, M_BUFFER);
	free_cell(v, b->cell, b->ref);
}

/* get_returned takes a message that was leased to somebody who did not acknowledge it. PP_ERR_EMPTY: there is none. */
static int32_t get_returned(view *v, const want *w)
{
	pp__queue *const q = v->q;
	const uint32_t me = pp__join(v->heap);

	if (me == 0)
		return pp__failed();
	for (int again = 0; again < 2; again++) {
		for (walk k = first(v->heap, q); k.cell != NULL; next(&k)) {
			const uint64_t word = load64(&k.cell->word);
			if (state_of(word) != PP__CELL_RETURNED)
				continue;
			if (again != 0) /* came in after the count was cleared, and there may be more */
				__atomic_fetch_add(&q->returned, 1, __ATOMIC_SEQ_CST);
			const uint64_t size = load64(&k.cell->size), ref = load64(&k.cell->ref);
			const uint32_t codec = __atomic_load_n(&k.cell->codec, __ATOMIC_SEQ_CST);
			const void *const data = pp__within(v->heap, pp__qref_off(ref), size);
			if (load64(&k.cell->word) != word)
				continue; /* size, ref and codec may not be of one message */
			if (data == NULL)
				return corrupt("the reference of a message", ref);
			if (w->copy && size > w->room) {
				w->message->size = size;
				return PP_ERR_TOO_BIG;
			}
			if (!swap64(&k.cell->word, word, with(word, me, w->lease ? PP__CELL_LEASED : PP__CELL_HELD)))
				continue;
			deliver(v, w, &(block){data, size, ref, codec, k.number, k.cell});
			return PP_OK;
		}
		if (again == 0)
			__atomic_store_n(&q->returned, 0, __ATOMIC_SEQ_CST);
	}
	return PP_ERR_EMPTY;
}

/* get_bulk takes a message that was found, get_lock held, by way of a cell: one that lies in a block of its own, or a lease. */
static int32_t get_bulk(view *v, const want *w, found *f)
{
	pp__queue_cell *cell;
	uint32_t number, state = w->lease ? PP__CELL_LEASING : PP__CELL_TAKING;
	int32_t status = claim_cell(v, &cell, &number);

	if (status != PP_OK) {
		end_get(v, 0, 1); /* another may have the memory */
		return status;
	}
	const uint32_t me = pp__join(v->heap);
	if (f->ref == 0) {
		status = alloc(v, f->size == 0 ? 1 : f->size, 0, &f->ref);
		if (status != PP_OK) {
			set(cell, 0, PP__CELL_FREE);
			end_get(v, 0, 1);
			return status;
		}
		state = PP__CELL_COPYING;
		f->data = memcpy(pp__at(v->heap, pp__qref_off(f->ref)), f->data, f->size);
	}
	fill(cell, f->ref, f->size, f->codec, f->at.items);
	set(cell, me, state);
	commit_get(v, f);
	set(cell, me, w->lease ? PP__CELL_LEASED : PP__CELL_HELD);
	end_get(v, 1, f->left);
	deliver(v, w, &(block){f->data, f->size, f->ref, f->codec, number, cell});
	return PP_OK;
}

/* get_once takes a message if one is there. */
static int32_t get_once(view *v, const want *w)
{
	pp__queue *const q = v->q;
	found f;

	if (__atomic_load_n(&q->returned, __ATOMIC_SEQ_CST) != 0) {
		const int32_t status = get_returned(v, w);
		if (status != PP_ERR_EMPTY)
			return status;
	}
	int32_t status = lock(v, &q->get_lock, resolve_get);
	if (status != PP_OK)
		return status;
	const bool closed = __atomic_load_n(&q->closed, __ATOMIC_SEQ_CST) != 0; /* before tail is read: then nothing comes after */
	status = find(v, &f);
	if (status == PP_OK && w->copy && f.size > w->room) {
		w->message->size = f.size;
		status = PP_ERR_TOO_BIG;
	}
	if (status != PP_OK) {
		end_get(v, 0, status == PP_ERR_TOO_BIG);
		return status == PP_ERR_EMPTY && closed ? PP_ERR_CLOSED : status;
	}
	if (w->lease || f.ref != 0)
		return get_bulk(v, w, &f);
	uint32_t kind = M_BUFFER;
	void *to = w->buf;
	if (f.size > w->room) {
		kind = M_MALLOC;
		to = malloc(f.size);
		if (to == NULL) {
			end_get(v, 0, 1);
			return pp__fail(PP_ERR_NOMEM, "queue: no memory for a message of %llu bytes", (unsigned long long)f.size);
		}
	}
	if (f.size != 0)
		memcpy(to, f.data, f.size);
	commit_get(v, &f);
	end_get(v, 1, f.left);
	static const uint64_t nothing = 0;
	describe(w->message, to == NULL ? &nothing : to, f.size, f.codec, kind);
	return PP_OK;
}

static int32_t get_failed(const view *v, int32_t status)
{
	if (status == PP_ERR_EMPTY)
		return pp__fail(status, "queue: empty");
	return status == PP_ERR_TOO_BIG ? pp__fail(status, "queue: the message is longer than the buffer") : put_failed(v, status);
}

static int32_t get(pp_queue queue, int64_t timeout_ms, const want *w)
{
	view v;
	int32_t status = view_of(queue, timeout_ms, &v);

	*w->message = (pp_message){0};
	if (status != PP_OK)
		return status;
	if ((++v.handle->words[W_GETS] & (GETS_PER_SWEEP - 1)) == 0)
		sweep(&v, false);
	for (;;) {
		status = get_once(&v, w);
		if (status != PP_ERR_EMPTY)
			break;
		status = rest(&v, &v.q->not_empty, ready_to_get, PP_ERR_EMPTY);
		if (status != PP_OK)
			break;
	}
	if (status != PP_OK)
		status = get_failed(&v, status);
	pp__unpin(v.handle);
	return status;
}

/* ---- functions of polyproc.h -------------------------------------------------------------------------------------------------------- */

int32_t pp_queue_put(pp_queue queue, const void *data, size_t size, uint32_t codec, int64_t timeout_ms)
{
	const pp_part part = {data, size};

	return pp_queue_put_parts(queue, &part, 1, codec, timeout_ms);
}

int32_t pp_queue_put_parts(pp_queue queue, const pp_part *parts, size_t n, uint32_t codec, int64_t timeout_ms)
{
	view v;
	uint64_t size = 0;

	if ((parts == NULL && n != 0) || codec > UINT16_MAX)
		return pp__fail(PP_ERR_INVALID, "queue: invalid arguments");
	for (size_t i = 0; i < n; i++) {
		if (parts[i].data == NULL && parts[i].size != 0)
			return pp__fail(PP_ERR_INVALID, "queue: data is NULL");
		if (parts[i].size > MESSAGE_MOST - size)
			return pp__fail(PP_ERR_TOO_BIG, "queue: a message has at most %llu bytes", (unsigned long long)MESSAGE_MOST);
		size += parts[i].size;
	}
	int32_t status = view_of(queue, timeout_ms, &v);
	if (status != PP_OK)
		return status;
	if (size > PP__QUEUE_INLINE_MOST)
		status = put_bulk(&v, parts, n, size, codec);
	else
		status = put_small(&v, parts, n, (uint32_t)size, codec, NULL);
	pp__unpin(v.handle);
	return status;
}

/* put_some puts the first messages of many, small ones, as many as there is room for. */
static int32_t put_some(view *v, const uint8_t *data, const uint64_t *sizes, size_t n, uint32_t codec, size_t *done_out)
{
	pp__queue *const q = v->q;
	cursor c;
	uint32_t room;
	size_t done = 0;
	int32_t status;

	for (;;) {
		status = begin_put(v, &c, &room);
		if (status != PP_ERR_FULL)
			break;
		status = rest(v, &q->not_full, ready_to_put, PP_ERR_FULL);
		if (status != PP_OK)
			break;
	}
	if (status != PP_OK)
		return put_failed(v, status);
	const uint32_t from = c.crossings;
	while (done < n && done < room && status == PP_OK && sizes[done] <= PP__QUEUE_INLINE_MOST) {
		const pp_part part = {data, sizes[done]};
		status = place_record(v, &c, &part, 1, (uint32_t)sizes[done], PP__QUEUE_INLINE, codec, from);
		if (status == PP_OK)
			data += sizes[done++];
	}
	if (done != 0)
		commit_put(q, &c);
	pp__mutex_unlock(&q->put_lock);
	if (done != 0)
		ring(&q->not_empty, done > INT_MAX ? INT_MAX : (int)done);
	*done_out = done;
	return done != 0 ? PP_OK : status;
}

int32_t pp_queue_put_many(pp_queue queue, const void *data, const uint64_t *sizes, size_t n, uint32_t codec, int64_t timeout_ms,
                          size_t *done_out)
{
	const uint8_t *at = data;
	size_t done = 0;
	view v;

	if (done_out != NULL)
		*done_out = 0;
	if (done_out == NULL || (sizes == NULL && n != 0) || codec > UINT16_MAX)
		return pp__fail(PP_ERR_INVALID, "queue: invalid arguments");
	for (size_t i = 0; i < n; i++) {
		if (sizes[i] > MESSAGE_MOST)
			return pp__fail(PP_ERR_TOO_BIG, "queue: a message has at most %llu bytes", (unsigned long long)MESSAGE_MOST);
		if (data == NULL && sizes[i] != 0)
			return pp__fail(PP_ERR_INVALID, "queue: data is NULL");
	}
	int32_t status = view_of(queue, timeout_ms, &v);
	if (status != PP_OK)
		return status;
	while (done < n && status == PP_OK) {
		size_t some = 1;
		if (sizes[done] > PP__QUEUE_INLINE_MOST) {
			const pp_part part = {at, sizes[done]};
			status = put_bulk(&v, &part, 1, sizes[done], codec);
		} else {
			status = put_some(&v, at, sizes + done, n - done, codec, &some);
		}
		if (status == PP_OK)
			for (size_t i = 0; i < some; i++)
				at += sizes[done++];
	}
	pp__unpin(v.handle);
	*done_out = done;
	return status;
}

int32_t pp_queue_get(pp_queue queue, void *buf, size_t room, int64_t timeout_ms, size_t *size_out)
{
	pp_message message;
	const want w = {.copy = true, .buf = buf, .room = room, .message = &message};

	if (size_out == NULL || (buf == NULL && room != 0))
		return pp__fail(PP_ERR_INVALID, "queue: invalid arguments");
	const int32_t status = get(queue, timeout_ms, &w);
	*size_out = status == PP_OK || status == PP_ERR_TOO_BIG ? message.size : 0;
	return status;
}

/* get_rest takes more messages without waiting, small ones, for a call that has one already. */
static size_t get_rest(view *v, uint8_t *buf, size_t room, uint64_t *sizes, size_t max)
{
	pp__queue *const q = v->q;
	found f, last = {0};
	size_t done = 0;

	if (lock(v, &q->get_lock, resolve_get) != PP_OK)
		return 0;
	while (done < max && find(v, &f) == PP_OK && f.ref == 0 && f.size <= room) {
		memcpy(buf, f.data, f.size);
		buf += f.size;
		room -= f.size;
		sizes[done++] = f.size;
		last = f;
		commit_get(v, &f); /* a store: what was taken is taken, whatever becomes of the rest */
	}
	end_get(v, (uint32_t)(done > UINT32_MAX ? UINT32_MAX : done), done != 0 ? last.left : 0);
	return done;
}

int32_t pp_queue_get_many(pp_queue queue, void *buf, size_t room, uint64_t *sizes, size_t max, int64_t timeout_ms, size_t *n_out)
{
	size_t size = 0;
	view v;

	if (n_out == NULL || sizes == NULL || max == 0)
		return pp__fail(PP_ERR_INVALID, "queue: invalid arguments");
	*n_out = 0;
	int32_t status = pp_queue_get(queue, buf, room, timeout_ms, &size);
	if (status == PP_ERR_TOO_BIG)
		sizes[0] = size;
	if (status != PP_OK)
		return status;
	sizes[0] = size;
	*n_out = 1;
	if (max > 1 && view_of(queue, 0, &v) == PP_OK) {
		*n_out += get_rest(&v, (uint8_t *)buf + size, room - size, sizes + 1, max - 1);
		pp__unpin(v.handle);
	}
	return PP_OK;
}

int32_t pp_queue_take(pp_queue queue, void *buf, size_t room, int64_t timeout_ms, pp_message *message_out)
{
	const want w = {.buf = buf, .room = room, .message = message_out};

	if (message_out == NULL || (buf == NULL && room != 0))
		return pp__fail(PP_ERR_INVALID, "queue: invalid arguments");
	return get(queue, timeout_ms, &w);
}

int32_t pp_queue_lease(pp_queue queue, int64_t timeout_ms, pp_message *message_out)
{
	const want w = {.lease = true, .message = message_out};

	if (message_out == NULL)
		return pp__fail(PP_ERR_INVALID, "queue: invalid arguments");
	return get(queue, timeout_ms, &w);
}

/* cell_of_message finds the cell of a message, if it is this process's still. */
static pp__queue_cell *cell_of_message(const view *v, const pp_message *m, uint32_t state)
{
	const uint32_t me = pp__join(v->heap), number = (uint32_t)(m->cell >> 24);
	pp__queue_table *table = table_at(v->heap, load64(&v->q->cells));

	for (uint32_t n = number / PP__QUEUE_CELLS; table != NULL && n > 0; n--)
		table = table_at(v->heap, load64(&table->next));
	if (table == NULL)
		return NULL;
	pp__queue_cell *const cell = &table->cells[number % PP__QUEUE_CELLS];
	return load64(&cell->word) == pp__qcell_word(me, state, (uint32_t)m->cell) ? cell : NULL;
}

/* view_of_message finds the queue of a message that lies in it. False: another process has taken it, which forked this one; its owner means nothing here. */
static bool view_of_message(const pp_message *m, view *v)
{
	pp__handle *const handle = (pp__handle *)(uintptr_t)m->owner;

	if (handle == NULL || (m->kind & ~(uint32_t)M_KINDS) != pp__forks << M_FORKS)
		return false;
	*v = (view){handle, handle->heap, pp__at(handle->heap, handle->off), 0, 0};
	return true;
}

int32_t pp_message_ack(pp_message *message)
{
	view v;

	if (message == NULL || (message->kind & M_KINDS) != M_LEASED)
		return pp__fail(PP_ERR_STATE, "queue: the message is not leased");
	pp__queue_cell *const cell = view_of_message(message, &v) ? cell_of_message(&v, message, PP__CELL_LEASED) : NULL;
	if (cell == NULL)
		return pp__fail(PP_ERR_STATE, "queue: the message was leased by another process");
	set(cell, pp__join(v.heap), PP__CELL_HELD);
	free_cell(&v, cell, load64(&cell->ref));
	pp__drop(v.handle);
	*message = (pp_message){0};
	return PP_OK;
}

void pp_message_free(pp_message *message)
{
	view v;

	if (message == NULL)
		return;
	const uint32_t kind = message->kind & M_KINDS;
	if (kind == M_MALLOC) {
		free((void *)(uintptr_t)message->data);
	} else if ((kind == M_HELD || kind == M_LEASED) && view_of_message(message, &v)) {
		pp__queue_cell *const cell = cell_of_message(&v, message, kind == M_HELD ? PP__CELL_HELD : PP__CELL_LEASED);
		if (cell != NULL && kind == M_HELD) {
			free_cell(&v, cell, load64(&cell->ref));
		} else if (cell != NULL) {
			set(cell, 0, PP__CELL_RETURNED);
			__atomic_fetch_add(&v.q->returned, 1, __ATOMIC_SEQ_CST);
			ring(&v.q->not_empty, 1);
		}
		if (cell != NULL) /* else it is not what was taken: a message that was copied, and freed before */
			pp__drop(v.handle);
	}
	*message = (pp_message){0};
}

int32_t pp_queue_info(pp_queue queue, pp_queue_state *state_out)
{
	view v;

	if (state_out == NULL)
		return pp__fail(PP_ERR_INVALID, "queue: state_out is NULL");
	const int32_t status = view_of(queue, 0, &v);
	if (status != PP_OK)
		return status;
	const uint32_t done = __atomic_load_n(&v.q->done, __ATOMIC_SEQ_CST);
	*state_out = (pp_queue_state){
		.size = in_chain(v.q) + (load64(&v.q->cells) != 0 ? count(&v, PP__CELL_RETURNED) : 0),
		.maxsize = load64(&v.q->maxsize),
		.unfinished = pp__qpos_items(load64(&v.q->tail)) - done,
		.leased = load64(&v.q->cells) != 0 ? count(&v, PP__CELL_LEASED) : 0,
		.closed = __atomic_load_n(&v.q->closed, __ATOMIC_SEQ_CST) != 0,
	};
	pp__unpin(v.handle);
	return PP_OK;
}

int32_t pp_queue_task_done(pp_queue queue)
{
	view v;
	int32_t status = view_of(queue, 0, &v);

	if (status != PP_OK)
		return status;
	uint32_t done = __atomic_load_n(&v.q->done, __ATOMIC_SEQ_CST);
	do {
		if (done == pp__qpos_items(load64(&v.q->tail))) {
			status = pp__fail(PP_ERR_STATE, "queue: task_done was called more often than there were messages");
			break;
		}
	} while (!__atomic_compare_exchange_n(&v.q->done, &done, done + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
	if (status == PP_OK && all_done(v.q))
		ring(&v.q->all_done, INT_MAX);
	pp__unpin(v.handle);
	return status;
}

int32_t pp_queue_join(pp_queue queue, int64_t timeout_ms)
{
	view v;
	int32_t status = view_of(queue, timeout_ms, &v);

	if (status != PP_OK)
		return status;
	while (status == PP_OK && !all_done(v.q))
		status = rest(&v, &v.q->all_done, all_done, PP_ERR_TIMEOUT);
	pp__unpin(v.handle);
	return status == PP_ERR_TIMEOUT  ? pp__fail(status, "queue: not all messages are done")
	       : status == PP_ERR_CLOSED ? pp__fail(status, "queue: the handle was freed during the call")
	                                 : status;
}

int32_t pp_queue_close(pp_queue queue)
{
	view v;
	int32_t status = view_of(queue, 5000, &v);

	if (status != PP_OK)
		return status;
	/* Under put_lock, so that who sees it sees the last message too. */
	status = lock(&v, &v.q->put_lock, resolve_put);
	if (status == PP_OK) {
		__atomic_store_n(&v.q->closed, 1, __ATOMIC_SEQ_CST);
		pp__mutex_unlock(&v.q->put_lock);
		ring(&v.q->not_empty, INT_MAX);
		ring(&v.q->not_full, INT_MAX);
	}
	status = put_failed(&v, status);
	pp__unpin(v.handle);
	return status;
}

/* ---- birth and end -------------------------------------------------------------------------------------------------------------------- */

/* destroy frees what hangs on a queue that nobody has any more. What is corrupt stays. */
static void destroy(pp__heap *heap, uint64_t off)
{
	pp__queue *const q = pp__at(heap, off);
	view v = {.heap = heap, .q = q};
	found f;

	/* A chain that runs in a circle ends where a chunk is to be freed a second time. */
	do {
		if (find(&v, &f) != PP_OK)
			break;
		if (f.ref == 0) {
			pp__refs_forget(heap, f.data, f.size);
		} else {
			pp__refs_forget_block(heap, pp__qref_off(f.ref), pp__qref_tag(f.ref), f.size);
			pp__free(heap, pp__qref_off(f.ref), pp__qref_tag(f.ref));
		}
	} while (commit_get(&v, &f));
	cursor c;
	uint64_t ref = 0;
	if (cursor_at(heap, load64(&q->head), q->head_chunk, &c) == PP_OK)
		ref = c.ref != 0 ? c.ref : load64(&q->first);
	while (ref != 0 && enter_chunk(heap, &c, ref, PP__QUEUE_CHUNK_HEAD) == PP_OK) { /* the last, and those that the dead have left behind it */
		const uint64_t after = load64(&c.chunk->next);
		if (!pp__free(heap, pp__qref_off(ref), pp__qref_tag(ref)))
			break;
		ref = after;
	}
	const uint64_t spare = load64(&q->spare), old = load64(&q->old);
	pp__free(heap, pp__qref_off(spare), pp__qref_tag(spare));
	pp__free(heap, pp__qref_off(old), pp__qref_tag(old));
	for (walk w = first(heap, q); w.cell != NULL; next(&w)) {
		const uint64_t block = load64(&w.cell->ref);
		const uint32_t state = state_of(load64(&w.cell->word));
		if (state == PP__CELL_LEASED || state == PP__CELL_RETURNED)
			pp__refs_forget_block(heap, pp__qref_off(block), pp__qref_tag(block), load64(&w.cell->size));
		if (state > PP__CELL_CLAIMED)
			pp__free(heap, pp__qref_off(block), pp__qref_tag(block));
	}
	for (pp__queue_table *table = table_at(heap, load64(&q->cells)); table != NULL;) {
		const uint64_t self = load64(&table->self), after = load64(&table->next);
		if (!pp__free(heap, pp__qref_off(self), pp__qref_tag(self)))
			break;
		table = table_at(heap, after);
	}
}

static void closed(pp__handle *handle)
{
	if (handle->extra != NULL) /* a named queue has a heap to itself */
		pp__heap_close(handle->heap);
}

static const pp__kind queue_kind = {.name = "queue", .destroy = destroy, .closed = closed, .size = sizeof(pp__queue)};

__attribute__((constructor)) static void on_load(void)
{
	pp__kinds[PP__KIND_QUEUE] = &queue_kind;
}

static int32_t make(pp__heap *heap, uint64_t maxsize, pp__handle **handle_out)
{
	const int32_t status = pp__object_new(heap, PP__KIND_QUEUE, sizeof(pp__queue), handle_out);

	if (status == PP_OK)
		((pp__queue *)pp__at(heap, (*handle_out)->off))->maxsize = maxsize;
	return status;
}

static int32_t file_name(const char *name, char file[256])
{
	const size_t length = name == NULL ? 0 : strlen(name);

	if (length == 0 || length > 200 || name[0] == '.' || strchr(name, '/') != NULL)
		return pp__fail(PP_ERR_INVALID, "queue: the name has 1 to 200 bytes, no '/', and no '.' at its start");
	memcpy(file, "pp.q.", 5);
	memcpy(file + 5, name, length + 1);
	return PP_OK;
}

/* open_named finds the queue in its heap, or makes it there. */
static int32_t open_named(pp__heap *heap, uint64_t maxsize, pp__handle **handle_out)
{
	pp__heap_head *const head = (pp__heap_head *)(void *)heap->base;

	for (;;) {
		const uint64_t root = load64(&head->root);
		if (root != 0)
			return pp__object_at(heap, root, PP__KIND_QUEUE, 0, handle_out);
		const int32_t status = make(heap, maxsize, handle_out);
		if (status != PP_OK)
			return status;
		pp__queue *const q = pp__at(heap, (*handle_out)->off);
		__atomic_fetch_add(&q->object.refs, 1, __ATOMIC_SEQ_CST); /* the root's */
		if (swap64(&head->root, 0, (*handle_out)->off))
			return PP_OK;
		__atomic_fetch_sub(&q->object.refs, 1, __ATOMIC_SEQ_CST);
		pp__handle_free((*handle_out)->number, PP__KIND_QUEUE); /* somebody else was first */
	}
}

static int32_t create_named(const pp_queue_options *options, pp__handle **handle_out)
{
	char file[256];
	pp__heap *heap;
	int32_t status = file_name(options->name, file);

	if (status != PP_OK)
		return status;
	do {
		status = (options->flags & PP_QUEUE_EXCLUSIVE) != 0 ? PP_ERR_NOT_FOUND : pp__heap_open(file, &heap);
		if (status == PP_ERR_NOT_FOUND && (options->flags & PP_QUEUE_EXISTING) == 0)
			status = pp__heap_create(file, &heap);
	} while (status == PP_ERR_EXISTS && (options->flags & PP_QUEUE_EXCLUSIVE) == 0); /* it came, or went, in between */
	if (status != PP_OK)
		return status;
	status = open_named(heap, options->maxsize, handle_out);
	if (status == PP_OK)
		(*handle_out)->extra = heap;
	else
		pp__heap_close(heap);
	return status;
}

static int32_t options_valid(const pp_queue_options *options)
{
	const uint32_t known = PP_QUEUE_EXCLUSIVE | PP_QUEUE_EXISTING;
	const int32_t fit = pp__options_fit(options, options->size, sizeof *options, "PP_QUEUE_OPTIONS_INIT");

	if (fit != PP_OK)
		return fit;
	if ((options->flags & ~known) != 0)
		return pp__fail(PP_ERR_INVALID, "queue: options.flags %#x: unknown flags", options->flags);
	if (options->flags == known)
		return pp__fail(PP_ERR_INVALID, "queue: PP_QUEUE_EXCLUSIVE and PP_QUEUE_EXISTING exclude each other");
	if (options->flags != 0 && options->name == NULL)
		return pp__fail(PP_ERR_INVALID, "queue: options.flags are for named queues, and options.name is NULL");
	if (options->maxsize > PP__QUEUE_ITEMS_MOST)
		return pp__fail(PP_ERR_INVALID, "queue: options.maxsize is %llu: the most is %u", (unsigned long long)options->maxsize,
		                PP__QUEUE_ITEMS_MOST);
	return PP_OK;
}

int32_t pp_queue_create(const pp_queue_options *options, pp_queue *queue_out)
{
	static const pp_queue_options none = PP_QUEUE_OPTIONS_INIT;
	pp__handle *handle;
	int32_t status;

	if (options == NULL)
		options = &none;
	status = queue_out == NULL ? pp__fail(PP_ERR_INVALID, "queue: queue_out is NULL") : options_valid(options);
	if (status != PP_OK)
		return status;
	if (options->name != NULL) {
		status = create_named(options, &handle);
	} else {
		pp__heap *const heap = pp__family_heap();
		status = heap == NULL ? pp__failed() : make(heap, options->maxsize, &handle);
	}
	if (status == PP_OK)
		*queue_out = handle->number;
	return status;
}

int32_t pp_queue_free(pp_queue queue)
{
	pp__handle *const handle = queue != 0 ? pp__pin(queue, PP__KIND_QUEUE) : NULL;
	const int32_t status = pp__handle_free(queue, PP__KIND_QUEUE);

	/* The threads of this process that wait by this handle. They cannot be told from others that sleep. */
	if (handle != NULL && status == PP_OK) {
		pp__queue *const q = pp__at(handle->heap, handle->off);
		ring(&q->not_empty, INT_MAX);
		ring(&q->not_full, INT_MAX);
		ring(&q->all_done, INT_MAX);
	}
	if (handle != NULL)
		pp__unpin(handle);
	return status;
}

int32_t pp_queue_unlink(const char *name)
{
	char path[300] = "/dev/shm/";
	const int32_t status = file_name(name, path + 9);

	if (status != PP_OK)
		return status;
	if (unlink(path) == 0)
		return PP_OK;
	return pp__fail(errno == ENOENT                                       ? PP_ERR_NOT_FOUND
	                : errno == EPERM || errno == EACCES || errno == EISDIR ? PP_ERR_PERMISSION
	                                                                       : PP_ERR_SYSTEM,
	                "queue %s: %s", name, strerror(errno));
}
