/* objects.c - see heap.h: objects, the references that processes hold, and handles. */
#include "heap_private.h"
#include "pins.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	CHUNKS = 18,
	CHUNK_FIRST = 64, /* handles in chunk 0; each following one has twice as many */
	INDEX_BITS = 24,
	SERIAL_BITS = 39,
	REAP_MS = 1000,
	NURSERY_MS = 10000,
	READY_STEP = PP__STORAGE_STEP / 8
};
/* pins: how often it is kept; freed, and to be closed when nobody uses it; how often that has happened */
#define COUNT UINT64_C(0x7fffffff)
#define CLOSING UINT64_C(0x80000000)
#define GENERATION (UINT64_C(1) << 32)
#define NUMBER_MARK ((uint64_t)1 << 63) /* no other handle of the library has it */

const pp__kind *pp__kinds[PP__KINDS];

/* ---- references ----------------------------------------------------------------------------------------------------- */

static uint64_t *cell_at(const pp__heap *heap, uint32_t i)
{
	return (uint64_t *)(void *)(heap->base + PP__REFS_OFF) + i;
}

static uint64_t cell_of(uint32_t owner, uint64_t off)
{
	return (uint64_t)owner << 32 | off >> 7;
}

/* open_refs lets this process touch the cells before end. */
static bool open_refs(const pp__heap *heap, uint32_t end)
{
	uint32_t *const opened = &heap->private->refs_opened;
	uint32_t is = __atomic_load_n(opened, __ATOMIC_ACQUIRE);

	if (end <= is)
		return true;
	end = (end + READY_STEP - 1) / READY_STEP * READY_STEP;
	if (!pp__heap_open_range(heap, PP__REFS_OFF + (uint64_t)is * 8, (uint64_t)(end - is) * 8))
		return false;
	while (is < end && !__atomic_compare_exchange_n(opened, &is, end, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		;
	return true;
}

uint32_t pp__refs_top(const pp__heap *heap)
{
	uint32_t top = __atomic_load_n(&pp__head(heap)->refs_top, __ATOMIC_ACQUIRE);

	top = top < PP__REFS_MOST ? top : PP__REFS_MOST;
	return open_refs(heap, top) ? top : __atomic_load_n(&heap->private->refs_opened, __ATOMIC_ACQUIRE);
}

static uint32_t take_below(pp__heap *heap, uint32_t from, uint32_t top, uint64_t value)
{
	for (uint32_t i = from; i < top; i++) {
		uint64_t none = 0;
		if (__atomic_load_n(cell_at(heap, i), __ATOMIC_RELAXED) == 0 &&
		    __atomic_compare_exchange_n(cell_at(heap, i), &none, value, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
			__atomic_store_n(&pp__head(heap)->refs_hint, i + 1, __ATOMIC_RELAXED);
			return i;
		}
	}
	return 0;
}

/* pp__cell_take writes a cell: its number, 0 if there is none. */
uint32_t pp__cell_take(pp__heap *heap, uint32_t owner, uint64_t off)
{
	pp__heap_head *const head = pp__head(heap);
	struct pp__heap_private *const p = heap->private;
	const uint64_t value = cell_of(owner, off);
	const uint32_t hint = __atomic_load_n(&head->refs_hint, __ATOMIC_RELAXED);
	uint32_t top = pp__refs_top(heap), i = take_below(heap, hint == 0 ? 1 : hint, top, value);

	while (i == 0 && top < PP__REFS_MOST) {
		const uint32_t at = top == 0 ? 1 : top;
		uint32_t have = __atomic_load_n(&p->refs_ready, __ATOMIC_ACQUIRE);
		if (at >= have) {
			/* Two threads may do it at once. */
			have = at / READY_STEP * READY_STEP;
			if (!open_refs(heap, have + READY_STEP))
				return 0;
			if (pp__heap_reserve(heap, PP__REFS_OFF + (uint64_t)have * 8, PP__STORAGE_STEP) != PP_OK)
				return 0;
			__atomic_store_n(&p->refs_ready, have + READY_STEP, __ATOMIC_RELEASE);
		}
		__atomic_compare_exchange_n(&head->refs_top, &top, at + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
		top = pp__refs_top(heap);
		i = take_below(heap, at, top, value);
	}
	return i != 0 ? i : take_below(heap, 1, top, value);
}

/* cell_hint: this one is free. */
static void cell_hint(pp__heap *heap, uint32_t i)
{
	uint32_t *const hint = &pp__head(heap)->refs_hint;
	uint32_t is = __atomic_load_n(hint, __ATOMIC_RELAXED);

	while (i < is && !__atomic_compare_exchange_n(hint, &is, i, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static bool cell_clear(pp__heap *heap, uint32_t i, uint64_t value)
{
	if (i == 0 || i >= pp__refs_top(heap) || !__atomic_compare_exchange_n(cell_at(heap, i), &value, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	cell_hint(heap, i);
	return true;
}

/* object_at finds an object that is alive, as far as that can be told without a reference. */
static pp__object *object_at(const pp__heap *heap, uint64_t off, uint32_t *generation_out, uint64_t *room_out)
{
	uint64_t word;
	uint32_t *const state = off % 128 == 0 ? pp__state_of(heap, off, room_out, &word) : NULL;
	pp__object *const object = (pp__object *)pp__within(heap, off, sizeof(pp__object));

	if (state == NULL || object == NULL || pp__within(heap, off, *room_out) == NULL)
		return NULL;
	const uint32_t generation = __atomic_load_n(&object->generation, __ATOMIC_ACQUIRE);
	if (generation < 2 || (generation & PP__GIVING) != 0 || __atomic_load_n(state, __ATOMIC_ACQUIRE) != generation)
		return NULL;
	*generation_out = generation;
	return object;
}

static uint64_t *counted(pp__object *object)
{
	return (uint64_t *)(void *)&object->generation;
}

/* refs_add takes a reference of an object unless it is gone: generation and count are one word, so nothing else that has come to lie there is
 * changed. */
static bool refs_add(pp__object *object, uint32_t generation)
{
	uint64_t is = __atomic_load_n(counted(object), __ATOMIC_ACQUIRE);

	while ((uint32_t)is == generation && is >> 32 != 0 && is >> 32 != UINT32_MAX)
		if (__atomic_compare_exchange_n(counted(object), &is, is + ((uint64_t)1 << 32), false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE))
			return true;
	return false;
}

/* empty_object frees what an object has that nobody refers to any more. It may run again for the same object. */
static void empty_object(pp__heap *heap, uint64_t off, pp__object *object, uint64_t room)
{
	const uint32_t kind = __atomic_load_n(&object->kind, __ATOMIC_RELAXED);

	if (kind < PP__KINDS && pp__kinds[kind] != NULL && pp__kinds[kind]->size <= room && pp__kinds[kind]->destroy != NULL)
		pp__kinds[kind]->destroy(heap, off);
}

/* refs_drop drops a reference that the caller had, and the object with the last one. generation 0: any. */
static void refs_drop(pp__heap *heap, uint64_t off, uint32_t generation)
{
	uint32_t is_generation;
	uint64_t room;
	pp__object *const object = object_at(heap, off, &is_generation, &room);

	if (object == NULL || (generation != 0 && is_generation != generation))
		return;
	uint64_t is = __atomic_load_n(counted(object), __ATOMIC_ACQUIRE);
	do {
		if ((uint32_t)is != is_generation || is >> 32 == 0)
			return;
	} while (!__atomic_compare_exchange_n(counted(object), &is, is - ((uint64_t)1 << 32), false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE));
	if (is >> 32 != 1)
		return;
	empty_object(heap, off, object, room);
	pp__free(heap, off, is_generation);
}

/* drop_reference drops the reference that a cell of ours stands for. The last one's cell stays until the object is empty: if we die on the
 * way, who sweeps behind us goes on. The block itself is freed after that, because a cell without its object may be anything's. */
static void drop_reference(pp__heap *heap, uint32_t cell, uint64_t value, uint32_t generation)
{
	const uint64_t off = (value & UINT32_MAX) << 7;
	uint32_t is_generation;
	uint64_t room;

	if (cell == 0 || cell >= pp__refs_top(heap) || __atomic_load_n(cell_at(heap, cell), __ATOMIC_ACQUIRE) != value)
		return;
	pp__object *const object = object_at(heap, off, &is_generation, &room);
	if (object != NULL && (generation == 0 || is_generation == generation)) {
		uint64_t is = __atomic_load_n(counted(object), __ATOMIC_ACQUIRE);
		/* 0: whose cell this was died on the way. */
		while ((uint32_t)is == is_generation && is >> 32 <= 1) {
			if (is >> 32 == 1 &&
			    !__atomic_compare_exchange_n(counted(object), &is, is_generation, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE))
				continue;
			empty_object(heap, off, object, room);
			if (cell_clear(heap, cell, value))
				pp__free(heap, off, is_generation);
			return;
		}
		/* Others have it too: the two steps are as close as can be, for who dies between them keeps the object for ever. */
		if ((uint32_t)is == is_generation) {
			uint64_t from = value;
			if (!__atomic_compare_exchange_n(cell_at(heap, cell), &from, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
				return;
			while (!__atomic_compare_exchange_n(counted(object), &is, is - ((uint64_t)1 << 32), false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE))
				if ((uint32_t)is != is_generation || is >> 32 == 0)
					return;
			cell_hint(heap, cell);
			if (is >> 32 == 1) {
				empty_object(heap, off, object, room);
				pp__free(heap, off, is_generation);
			}
			return;
		}
	}
	if (cell_clear(heap, cell, value))
		refs_drop(heap, off, generation);
}

/* take_over makes the cell of somebody who is no more, or of a message, ours, and drops the reference. */
static void take_over(pp__heap *heap, uint32_t cell, uint64_t value, uint32_t generation)
{
	const uint64_t off = (value & UINT32_MAX) << 7, ours = cell_of(__atomic_load_n(&heap->me, __ATOMIC_ACQUIRE), off);

	if (ours >> 32 == 0) { /* not a member yet */
		if (cell_clear(heap, cell, value))
			refs_drop(heap, off, generation);
	} else if (cell != 0 && cell < pp__refs_top(heap) &&
	           __atomic_compare_exchange_n(cell_at(heap, cell), &value, ours, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
		drop_reference(heap, cell, ours, generation);
	}
}

void pp__sweep(pp__heap *heap, const uint32_t *dead, uint32_t n)
{
	const uint32_t top = pp__refs_top(heap);

	for (uint32_t i = 1; i < top; i++) {
		const uint64_t value = __atomic_load_n(cell_at(heap, i), __ATOMIC_ACQUIRE);
		const uint32_t owner = (uint32_t)(value >> 32);
		bool drop = false;
		if (value == 0 || pp__in_flight(owner))
			continue;
		for (uint32_t k = 0; k < n && !drop; k++)
			drop = owner == dead[k];
		if (drop || !pp__members_current(heap, owner))
			take_over(heap, i, value, 0);
	}
}

/* ---- handles ------------------------------------------------------------------------------------------------------------ */

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static pp__handle *chunks[CHUNKS];
static uint32_t handle_count; /* ever made: places below this are there */
static uint32_t *spare;       /* places to use again */
static uint32_t spare_count, spare_room;
static uint32_t live; /* handles that exist, or whose closing is not over */
static uint64_t serial;

/* Why a fork has cost this process handles, "" if none did, and the last handle that was made before it. */
static char fork_loss[512];
static uint64_t fork_serial;

/* place finds the handle at an index. */
static pp__handle *place(uint32_t index)
{
	uint32_t size = CHUNK_FIRST;

	for (int i = 0; i < CHUNKS; i++, size *= 2) {
		if (index < size) {
			pp__handle *const chunk = __atomic_load_n(&chunks[i], __ATOMIC_ACQUIRE);
			return chunk == NULL ? NULL : &chunk[index];
		}
		index -= size;
	}
	return NULL;
}

/* handle_new returns a handle that nobody can find yet. */
static pp__handle *handle_new(uint32_t *index_out)
{
	pp__handle *h = NULL;

	pthread_mutex_lock(&handles_lock);
	/* Room to note every place as free is there before it is needed. */
	if (spare_count == 0 && spare_room <= handle_count) {
		const uint32_t room = spare_room == 0 ? CHUNK_FIRST : 2 * spare_room;
		uint32_t *const more = realloc(spare, room * sizeof *more);
		if (more != NULL) {
			spare = more;
			spare_room = room;
		}
	}
	if (spare_count > 0) {
		*index_out = spare[--spare_count];
		h = place(*index_out);
	} else if (handle_count < spare_room) {
		uint32_t index = handle_count, size = CHUNK_FIRST;
		int i = 0;
		for (; i < CHUNKS && index >= size; i++, size *= 2)
			index -= size;
		if (i < CHUNKS && chunks[i] == NULL)
			__atomic_store_n(&chunks[i], calloc(size, sizeof(pp__handle)), __ATOMIC_RELEASE);
		if (i < CHUNKS && chunks[i] != NULL) {
			*index_out = handle_count;
			__atomic_store_n(&handle_count, handle_count + 1, __ATOMIC_RELEASE);
			h = &chunks[i][index];
		}
	}
	if (h != NULL) {
		h->kind = PP__KIND_NONE;
		h->heap = NULL;
		h->off = 0;
		h->cell = h->fork_cell = 0; /* not forking: a fork that is under way has kept what was here, and will drop it */
		h->fd = -1;
		h->inode = 0;
		h->extra = NULL;
		memset(h->words, 0, sizeof h->words);
		h->watch = h->watcher = 0;
		__atomic_fetch_add(&live, 1, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&handles_lock);
	if (h == NULL)
		pp__fail(PP_ERR_NOMEM, "memory for a handle");
	return h;
}

/* The place of a handle in its table: its number is 0 when it is asked for. */
static uint32_t index_of(const pp__handle *h)
{
	uint32_t size = CHUNK_FIRST, before = 0;

	for (int i = 0; i < CHUNKS; i++, before += size, size *= 2)
		if (chunks[i] != NULL && h >= chunks[i] && h < chunks[i] + size)
			return before + (uint32_t)(h - chunks[i]);
	abort(); /* not a handle of ours: a mistake in this library */
}

bool pp__handle_fd(const pp__handle *h)
{
	struct stat st;

	return h->fd >= 0 && (h->inode == 0 || (fstat(h->fd, &st) == 0 && st.st_ino == h->inode));
}

static void close_fd(pp__handle *h)
{
	PP__NO_CANCEL();
	if (pp__handle_fd(h))
		close(h->fd);
	h->fd = -1;
}

/* handle_spare closes the descriptor under the lock that a fork takes too: the child has it and knows it, or has none. */
static void handle_spare(pp__handle *h)
{
	pthread_mutex_lock(&handles_lock);
	close_fd(h);
	spare[spare_count++] = index_of(h);
	__atomic_fetch_sub(&live, 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&handles_lock);
}

static uint64_t serial_in(uint64_t number)
{
	return number >> INDEX_BITS & (((uint64_t)1 << SERIAL_BITS) - 1);
}

static void handle_publish(pp__handle *h, uint32_t index)
{
	const uint64_t n = serial_in(__atomic_add_fetch(&serial, 1, __ATOMIC_RELAXED) << INDEX_BITS);

	__atomic_store_n(&h->number, NUMBER_MARK | n << INDEX_BITS | index, __ATOMIC_SEQ_CST);
}

/* handle_closed ends a handle whose last use is over. reference: it has one to drop. */
static void handle_closed(pp__handle *h, bool reference)
{
	const pp__kind *const kind = h->kind < PP__KINDS ? pp__kinds[h->kind] : NULL;
	pp__heap *const heap = h->heap;

	if (reference)
		drop_reference(heap, h->cell, cell_of(__atomic_load_n(&heap->me, __ATOMIC_ACQUIRE), h->off), h->generation);
	if (kind != NULL && kind->closed != NULL)
		kind->closed(h);
	handle_spare(h);
}

void pp__handle_settle(pp__handle *h)
{
	uint64_t is = __atomic_load_n(&h->pins, __ATOMIC_SEQ_CST);

	if ((is & (CLOSING | COUNT)) != CLOSING || pp__pins_any(h))
		return;
	/* The generation: it may have been closed meanwhile, made again, and freed again. */
	if (__atomic_compare_exchange_n(&h->pins, &is, (is + GENERATION) & ~CLOSING, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		handle_closed(h, true);
}

void pp__keep(pp__handle *h)
{
	__atomic_fetch_add(&h->pins, 1, __ATOMIC_SEQ_CST);
}

void pp__drop(pp__handle *h)
{
	uint64_t is = __atomic_load_n(&h->pins, __ATOMIC_RELAXED);

	do {
		/* None: it was kept by the process that forked this one. */
		if ((is & COUNT) == 0)
			return;
	} while (!__atomic_compare_exchange_n(&h->pins, &is, is - 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	if ((is & (CLOSING | COUNT)) == (CLOSING | 1))
		pp__handle_settle(h);
}

void pp__unpin(pp__handle *h)
{
	if (!pp__pins_drop(h))
		pp__drop(h);
	else if ((__atomic_load_n(&h->pins, __ATOMIC_RELAXED) & CLOSING) != 0)
		pp__handle_settle(h);
}

static pp__handle *lookup(uint64_t number, uint32_t kind)
{
	pp__handle *const h = (number & NUMBER_MARK) != 0 ? place((uint32_t)(number & ((1u << INDEX_BITS) - 1))) : NULL;

	if (h != NULL) {
		if (!pp__pins_take(h))
			pp__keep(h);
		if (__atomic_load_n(&h->number, __ATOMIC_SEQ_CST) == number && h->kind == kind)
			return h;
		pp__unpin(h);
	}
	const char *const name = kind < PP__KINDS && pp__kinds[kind] != NULL ? pp__kinds[kind]->name : "object";
	if (fork_loss[0] != '\0' && (number & NUMBER_MARK) != 0 && serial_in(number) <= fork_serial)
		pp__fail(PP_ERR_HANDLE, "%s: the handle was freed, or this process lost it when it was forked: %s", name, fork_loss);
	else
		pp__fail(PP_ERR_HANDLE, "%s: no such handle, or it was freed", name);
	return NULL;
}

pp__handle *pp__pin(uint64_t number, uint32_t kind)
{
	return lookup(number, kind);
}

pp__handle *pp__pin_quietly(uint64_t number, uint32_t kind)
{
	pp__handle *const h = (number & NUMBER_MARK) != 0 ? place((uint32_t)(number & ((1u << INDEX_BITS) - 1))) : NULL;

	if (h == NULL)
		return NULL;
	pp__keep(h);
	if (__atomic_load_n(&h->number, __ATOMIC_SEQ_CST) == number && h->kind == kind)
		return h;
	pp__drop(h);
	return NULL;
}

int32_t pp__handle_free(uint64_t number, uint32_t kind)
{
	if (number == 0)
		return PP_OK;
	pp__handle *const h = lookup(number, kind);
	if (h == NULL)
		return PP_ERR_HANDLE;
	if (!__atomic_compare_exchange_n(&h->number, &number, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
		pp__unpin(h);
		return pp__fail(PP_ERR_HANDLE, "it was freed already");
	}
	__atomic_fetch_or(&h->pins, CLOSING, __ATOMIC_SEQ_CST);
	pp__unpin(h);
	return PP_OK;
}

/* ---- objects --------------------------------------------------------------------------------------------------------------- */

/* nurseries gives up places that were taken for children that have not come for them. */
static void nurseries(pp__heap *heap, uint64_t now)
{
	struct pp__heap_private *const p = heap->private;

	for (uint32_t i = 0; i < PP__NURSERIES; i++) {
		pp__nursery *const n = &p->nursery[i];
		if (n->owner == 0)
			continue;
		if (pp__members_still(heap, n->owner, n->word)) {
			if (now - n->since < NURSERY_MS * UINT64_C(1000000))
				continue;
			/* Sweeping ends with the place: first it must not be to be had any more. */
			if (pp__members_revoke(heap, n->owner, n->word)) {
				pp__sweep(heap, &n->owner, 1);
				pp__members_leave(heap, n->owner);
			}
		}
		__atomic_store_n(&n->owner, 0, __ATOMIC_SEQ_CST);
	}
}

/* tidy drops what the dead hold: little at a time. */
static void tidy(pp__heap *heap)
{
	struct pp__heap_private *const p = heap->private;
	const uint64_t now = pp__now_ns();
	uint64_t at = __atomic_load_n(&p->reap_at, __ATOMIC_RELAXED);

	if (now < at || !__atomic_compare_exchange_n(&p->reap_at, &at, now + REAP_MS * UINT64_C(1000000), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return;
	nurseries(heap, now);
	pp__reap(heap, 16, false);
}

int32_t pp__object_new(pp__heap *heap, uint32_t kind, uint64_t size, pp__handle **handle_out)
{
	const uint32_t me = pp__join(heap), generation = pp__tag(heap);
	uint32_t index, cell = 0;
	pp__pick pick;

	if (me == 0)
		return pp__failed();
	if (size < sizeof(pp__object) || kind == PP__KIND_NONE || kind >= PP__KINDS)
		return pp__fail(PP_ERR_INVALID, "an object of kind %u, %llu bytes", kind, (unsigned long long)size);
	tidy(heap);
	pp__handle *const h = handle_new(&index);
	if (h == NULL)
		return PP_ERR_NOMEM;
	pthread_mutex_lock(&heap->private->lock);
	int32_t status;
	/* Again if somebody else gives back what was free, see pp__alloc. */
	for (int tries = 0; (status = pp__pick_block(heap, size, &pick)) == PP_OK; tries++) {
		/* The block is free still: who dies before the commit leaves a cell that means nothing. */
		pp__object *const object = (pp__object *)pp__at(heap, pick.off);
		memset(object, 0, size);
		object->kind = kind;
		object->generation = generation;
		object->refs = 1;
		cell = pp__cell_take(heap, me, pick.off);
		if (cell != 0 && pp__pick_commit(heap, &pick, generation))
			break;
		if (cell != 0)
			cell_clear(heap, cell, cell_of(me, pick.off));
		pp__pick_abandon(heap, &pick);
		if (cell == 0 || tries == 100) {
			status = cell == 0 ? PP_ERR_NOMEM : PP_ERR_CORRUPT;
			break;
		}
	}
	pthread_mutex_unlock(&heap->private->lock);
	if (status != PP_OK) {
		handle_spare(h);
		return pp__fail(status, "a new object of %llu bytes: %s", (unsigned long long)size,
		                status == PP_ERR_NOMEM ? "no memory, or a limit" : status == PP_ERR_CORRUPT ? "the heap is damaged" : strerror(errno));
	}
	h->kind = kind;
	h->heap = heap;
	h->off = pick.off;
	h->room = pick.room;
	h->cell = cell;
	h->generation = generation;
	handle_publish(h, index);
	*handle_out = h;
	return PP_OK;
}

/* check looks whether an offset from outside is an object as it should be. */
static int32_t check(pp__heap *heap, uint64_t off, uint32_t kind, uint32_t generation, pp__object **object_out, uint32_t *generation_out,
                     uint64_t *room_out)
{
	if (kind == PP__KIND_NONE || kind >= PP__KINDS || off % 128 != 0 || pp__within(heap, off, sizeof(pp__object)) == NULL)
		return pp__fail(PP_ERR_CORRUPT, "no object can be at offset %llu (%llu bytes are mapped)", (unsigned long long)off,
		                (unsigned long long)heap->mapped);
	*object_out = object_at(heap, off, generation_out, room_out);
	if (*object_out == NULL || (generation != 0 && *generation_out != generation))
		return pp__fail(generation != 0 ? PP_ERR_CLOSED : PP_ERR_CORRUPT, "the object is no more");
	if (__atomic_load_n(&(*object_out)->kind, __ATOMIC_RELAXED) != kind || (pp__kinds[kind] != NULL && *room_out < pp__kinds[kind]->size))
		return pp__fail(PP_ERR_CORRUPT, "an object of another kind is at offset %llu", (unsigned long long)off);
	return PP_OK;
}

/* attach makes the handle of an object. in_flight: a cell that may be ours to take over, with its
 * reference, if it has that owner; 0: none. */
static int32_t attach_object(pp__heap *heap, uint64_t off, uint32_t kind, uint32_t generation, uint32_t in_flight, uint32_t owner,
                             pp__handle **handle_out)
{
	const uint32_t me = pp__join(heap);
	pp__object *object = NULL;
	uint32_t index, cell = 0, is_generation;
	uint64_t room;

	if (me == 0)
		return pp__failed();
	int32_t status = check(heap, off, kind, generation, &object, &is_generation, &room);
	if (status != PP_OK)
		return status;
	tidy(heap);
	pp__handle *const h = handle_new(&index);
	if (h == NULL)
		return PP_ERR_NOMEM;
	if (in_flight > 0 && in_flight < pp__refs_top(heap)) {
		uint64_t value = cell_of(owner, off);
		if (__atomic_compare_exchange_n(cell_at(heap, in_flight), &value, cell_of(me, off), false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			cell = in_flight;
	}
	if (cell == 0) {
		if (!refs_add(object, is_generation)) {
			status = pp__fail(PP_ERR_CLOSED, "the object is no more");
		} else if ((cell = pp__cell_take(heap, me, off)) == 0) {
			refs_drop(heap, off, is_generation);
			status = pp__fail(PP_ERR_NOMEM, "all cells for references are taken");
		}
	}
	if (status != PP_OK) {
		handle_spare(h);
		return status;
	}
	h->kind = kind;
	h->heap = heap;
	h->off = off;
	h->room = room;
	h->cell = cell;
	h->generation = is_generation;
	handle_publish(h, index);
	*handle_out = h;
	return PP_OK;
}

int32_t pp__object_at(pp__heap *heap, uint64_t off, uint32_t kind, uint32_t generation, pp__handle **handle_out)
{
	return attach_object(heap, off, kind, generation, 0, 0, handle_out);
}

/* flight_of is the owner of the cell of a reference on its way. */
static uint32_t flight_of(const pp__ref *ref)
{
	return (ref->flight & PP__IN_FLIGHT) | 0xfff;
}

int32_t pp__ref_send(const pp__handle *handle, pp__ref *ref_out)
{
	pp__heap *const heap = handle->heap;

	if (!refs_add((pp__object *)pp__at(heap, handle->off), handle->generation))
		return pp__fail(PP_ERR_CLOSED, "the object is no more");
	const uint32_t flight = pp__tag(heap) << 12 & PP__IN_FLIGHT;
	const uint32_t cell = pp__cell_take(heap, flight | 0xfff, handle->off);
	if (cell == 0) {
		refs_drop(heap, handle->off, handle->generation);
		return pp__fail(PP_ERR_NOMEM, "all cells for references are taken");
	}
	*ref_out = (pp__ref){.heap_id = heap->private->id, .off = handle->off, .kind = handle->kind, .generation = handle->generation, .cell = cell, .flight = flight};
	return PP_OK;
}

int32_t pp__ref_receive(const pp__ref *ref, pp__handle **handle_out)
{
	pp__heap *heap = pp__heap_by_id(ref->heap_id);

	/* A process that has no object yet has not mapped its family's heap. */
	if (heap == NULL && pp__family_heap() == NULL)
		return pp__failed();
	if (heap == NULL && (heap = pp__heap_by_id(ref->heap_id)) == NULL)
		return pp__fail(PP_ERR_INVALID, "the object belongs to another family of processes");
	if (ref->generation == 0)
		return pp__fail(PP_ERR_CORRUPT, "a reference without a generation");
	return attach_object(heap, ref->off, ref->kind, ref->generation, ref->cell, flight_of(ref), handle_out);
}

void pp__ref_forget(const pp__ref *ref)
{
	pp__heap *const heap = pp__heap_by_id(ref->heap_id);

	if (heap != NULL && pp__join(heap) != 0)
		take_over(heap, ref->cell, cell_of(flight_of(ref), ref->off), ref->generation);
}

/* The references in unread messages that this thread has not taken back yet. One of them may be the last of a
 * queue whose messages hold references again: those are added here, so that there is no recursion. */
static __thread struct {
	pp__ref *refs;
	size_t count, room;
	bool busy;
} unread;

static void collect(const pp__heap *heap, const uint8_t *at, uint64_t size)
{
	const uint64_t id = heap->private->id;
	const uint8_t *const end = at + size;

	while ((at = memmem(at, (size_t)(end - at), &id, sizeof id)) != NULL && (size_t)(end - at) >= sizeof(pp__ref)) {
		if (unread.count == unread.room) {
			const size_t room = 2 * unread.room + 16;
			pp__ref *const more = realloc(unread.refs, room * sizeof *more);
			if (more == NULL)
				return;
			unread.refs = more;
			unread.room = room;
		}
		memcpy(&unread.refs[unread.count++], at, sizeof(pp__ref));
		at += sizeof id;
	}
}

void pp__refs_forget(const pp__heap *heap, const void *data, uint64_t size)
{
	PP__NO_CANCEL();
	collect(heap, data, size);
	if (unread.busy || unread.room == 0)
		return;
	unread.busy = true;
	while (unread.count > 0) {
		const pp__ref ref = unread.refs[--unread.count];
		if (pp__ref_has_descriptor(&ref))
			pp_pipe_forget((const uint8_t *)&ref);
		else
			pp__ref_forget(&ref);
	}
	free(unread.refs);
	unread.refs = NULL;
	unread.room = 0;
	unread.busy = false;
}

void pp__refs_forget_block(const pp__heap *heap, uint64_t off, uint32_t tag, uint64_t size)
{
	uint64_t room, word;
	uint32_t *const state = pp__state_of(heap, off, &room, &word);

	if (state != NULL && __atomic_load_n(state, __ATOMIC_ACQUIRE) == tag && size <= room && pp__within(heap, off, room) != NULL)
		pp__refs_forget(heap, pp__at(heap, off), size);
}

/* ---- fork ------------------------------------------------------------------------------------------------------------------- */

static bool forking; /* there were handles */

/* nursery_for takes a place for the child, once per heap and fork. */
static uint32_t nursery_for(pp__heap *heap)
{
	struct pp__heap_private *const p = heap->private;

	if (p->fork_owner != 0)
		return p->fork_owner;
	for (uint32_t i = 0; i < PP__NURSERIES; i++) {
		const pp__nursery *const n = &p->nursery[i];
		if (n->owner == 0 || !pp__members_still(heap, n->owner, n->word))
			return pp__members_take(heap, &p->fork_owner, &p->fork_word, NULL);
	}
	return 0; /* the child helps itself */
}

void pp__heap_before_fork(void)
{
	pthread_mutex_lock(&handles_lock);
	pp__heap_locks(true);
	forking = __atomic_load_n(&live, __ATOMIC_RELAXED) > 0;
	for (uint32_t i = 0; forking && i < handle_count; i++) {
		pp__handle *const h = place(i);
		const uint64_t number = __atomic_load_n(&h->number, __ATOMIC_SEQ_CST);
		/* That keeps the heap mapped; it is taken off after the fork, when closing does no harm. */
		if (number == 0)
			continue;
		pp__keep(h);
		h->forking = 1;
		h->fork_cell = 0;
		if (__atomic_load_n(&h->number, __ATOMIC_SEQ_CST) != number)
			continue;
		const uint32_t owner = nursery_for(h->heap);
		if (owner != 0 && refs_add((pp__object *)pp__at(h->heap, h->off), h->generation)) {
			h->fork_cell = pp__cell_take(h->heap, owner, h->off);
			/* The handle's own reference is there: this is not the last. */
			if (h->fork_cell == 0)
				refs_drop(h->heap, h->off, h->generation);
		}
	}
	pp__storage_forking();
}

void pp__heap_in_parent(void)
{
	const uint64_t now = pp__now_ns();
	const bool handles = forking;
	const uint32_t count = handle_count;

	pp__storage_forked(false);
	for (pp__heap *heap = pp__heaps; heap != NULL; heap = heap->private->next) {
		struct pp__heap_private *const p = heap->private;
		for (uint32_t i = 0; i < PP__NURSERIES && p->fork_owner != 0; i++) {
			pp__nursery *const n = &p->nursery[i];
			if (n->owner != 0 && pp__members_still(heap, n->owner, n->word))
				continue;
			n->word = p->fork_word;
			n->since = now;
			__atomic_store_n(&n->owner, p->fork_owner, __ATOMIC_SEQ_CST);
			__atomic_store_n(&p->fork_owner, 0, __ATOMIC_SEQ_CST);
		}
	}
	pp__heap_locks(false);
	pthread_mutex_unlock(&handles_lock);
	for (uint32_t i = 0; handles && i < count; i++) {
		pp__handle *const h = place(i);
		if (h->forking != 0) {
			/* The cell is the child's: at the next fork this handle may be freed, and its heap closed. */
			h->forking = h->fork_cell = 0;
			pp__drop(h);
		}
	}
	/* Who only forks meets no other occasion, and what children have left must go as fast as they come: each brings one member, and two are looked at. */
	if (handles && pp__heap_family() != NULL) {
		nurseries(pp__heap_family(), now);
		pp__reap(pp__heap_family(), 2, false);
	}
}

uint32_t pp__forks;

void pp__heap_in_child(void)
{
	pp__forks++;
	handles_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	pp__pins_in_child();
	pp__storage_forked(true);
	pp__heap_locks_in_child();
	for (pp__heap *heap = pp__heaps; heap != NULL; heap = heap->private->next) {
		struct pp__heap_private *const p = heap->private;
		/* Not in another pid namespace: its ids would be taken for those of here, and a living owner for dead. */
		if (p->fork_owner != 0 && pp__members_in(heap) == PP_OK && pp__members_rename(heap, p->fork_owner, p->fork_word))
			heap->me = p->fork_owner;
		p->fork_owner = 0;
	}
	for (uint32_t i = 0; forking && i < handle_count; i++) {
		pp__handle *const h = place(i);
		const uint64_t pins = h->pins;
		const bool taken = h->fork_cell != 0 && h->heap->me != 0;
		const uint32_t cell = h->fork_cell;
		/* The threads that used it are not here. */
		h->pins = pins & ~(CLOSING | COUNT);
		h->forking = h->fork_cell = 0;
		if (h->number != 0) {
			h->cell = taken ? cell : 0;
			pp__object *object = NULL;
			uint32_t generation;
			uint64_t room;
			/* Without a place in the table, or a cell: as from anybody else. If the object is gone, calls will say so. */
			if (!taken && pp__join(h->heap) != 0 && check(h->heap, h->off, h->kind, h->generation, &object, &generation, &room) == PP_OK &&
			    (refs_add(object, generation) || pp__fail(PP_ERR_CLOSED, "the object is no more") == PP_OK)) {
				h->cell = pp__cell_take(h->heap, h->heap->me, h->off);
				if (h->cell == 0) {
					refs_drop(h->heap, h->off, h->generation);
					pp__fail(PP_ERR_NOMEM, "all cells for references are taken");
				}
			}
			if (h->cell == 0) {
				h->number = 0;
				snprintf(fork_loss, sizeof fork_loss, "%.255s", pp_last_error());
				fork_serial = serial_in(serial << INDEX_BITS);
			}
			if (h->number != 0) {
				if (h->kind < PP__KINDS && pp__kinds[h->kind] != NULL && pp__kinds[h->kind]->forked != NULL)
					pp__kinds[h->kind]->forked(h);
				continue;
			}
			h->cell = 0;
			handle_closed(h, false);
		} else if ((pins & CLOSING) != 0 || cell != 0) {
			/* The parent was about to close it. */
			h->cell = cell;
			handle_closed(h, taken);
		} else {
			/* Spare, or in the middle of being made or closed by a thread that is not here. */
			close_fd(h);
		}
	}
	forking = false;
}
