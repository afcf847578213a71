/* queue.c - see queue.h, where layout and algorithms are. */
#include "front.h"

#include "bell.h"
#include "heap.h"
#include "queue.h"
#include "spin.h"
#include "wait.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#ifndef LEASE_SLICE_MS /* a test has less patience */
#define LEASE_SLICE_MS PP__QUEUE_LEASE_MILLIS
#endif
#define MESSAGE_MOST ((uint64_t)16 << 30)

/* pp_message.kind, and above it, from bit M_FORKS on, pp__forks of who took the message: the owner of an ancestor's may be gone. */
enum { M_NONE = 0, M_BUFFER = 1, M_MALLOC = 2, M_HELD = 3, M_LEASED = 4, M_KINDS = 7, M_FORKS = 3 };

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

#include "queue_steps.gen.h"

/* ---- little things ------------------------------------------------------------------------------------------------------------ */

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
	const uint64_t until = v->timeout_ms == PP_TRY ? 0 : v->timeout_ms == 0 ? pp__deadline(PP__QUEUE_LOCK_PATIENCE_MILLIS) : deadline_of(v);
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

/* ---- what the steps stand on (core/queue/hand.go has the same) ----------------------------------------------------------------------- */

/* announce tells that n cells have become RETURNED. */
static void announce(const view *v, int n)
{
	__atomic_fetch_add(&v->q->returned, 1, __ATOMIC_SEQ_CST);
	ring(&v->q->not_empty, n);
}

/* sweep does what is left to do for the dead. Reports whether something was. */
static bool sweep(view *v)
{
	uint32_t returned = 0;

	__atomic_store_n(&v->handle->words[W_SWEPT], pp__now_ns(), __ATOMIC_RELAXED);
	const bool did = pp__queue_sweep_cells(v, pp__join(v->heap), &returned);
	if (returned > 0)
		announce(v, (int)returned);
	return did;
}

static int32_t pp__queue_corrupt(view *v, const char *what, uint64_t value)
{
	(void)v;
	return pp__fail(PP_ERR_CORRUPT, "queue: %s is %#llx", what, (unsigned long long)value);
}

static inline void *pp__queue_within(const view *v, uint64_t off, uint64_t size)
{
	return pp__within(v->heap, off, size);
}

static bool pp__queue_free_block(const view *v, pp__queue_ref r)
{
	return pp__free(v->heap, pp__queue_ref_off(r), pp__queue_ref_tag(r));
}

static void pp__queue_forget(const view *v, void *data, uint64_t size)
{
	pp__refs_forget(v->heap, data, size);
}

static void pp__queue_forget_block(const view *v, pp__queue_ref r, uint64_t size)
{
	pp__refs_forget_block(v->heap, pp__queue_ref_off(r), pp__queue_ref_tag(r), size);
}

static pp__queue_ref pp__queue_retag(const view *v, pp__queue_ref r)
{
	const uint64_t off = pp__queue_ref_off(r);
	const uint32_t tag = pp__tag(v->heap);

	return pp__retag(v->heap, off, pp__queue_ref_tag(r), tag) ? pp__queue_ref_of(off, pp__queue_ref_class(r), tag) : 0;
}

static int32_t pp__queue_alloc(view *v, uint64_t size, uint32_t class, pp__queue_ref *r)
{
	const uint32_t tag = pp__tag(v->heap);
	uint64_t off;
	int32_t status = pp__alloc(v->heap, size, tag, &off, NULL);

	if (status == PP_ERR_NOMEM && sweep(v)) /* what the dead have held */
		status = pp__alloc(v->heap, size, tag, &off, NULL);
	if (status == PP_OK)
		*r = pp__queue_ref_of(off, class, tag);
	return status;
}

static int32_t pp__queue_join(view *v, uint32_t *me)
{
	*me = pp__join(v->heap);
	return *me != 0 ? PP_OK : pp__failed();
}

static bool pp__queue_gone(const view *v, uint32_t owner)
{
	return pp__gone(v->heap, owner);
}

static bool pp__queue_sweep_now_and_then(view *v)
{
	const uint64_t swept = __atomic_load_n(&v->handle->words[W_SWEPT], __ATOMIC_RELAXED);

	return pp__queue_has_cells(v->q) && pp__now_ns() - swept >= PP__QUEUE_SWEEP_MILLIS * (uint64_t)1000000 && sweep(v);
}

/* For pp__mutex_lock: the cells of a dead holder of the lock. */
static void resolve_put(pp__heap *heap, void *object, uint32_t dead)
{
	const view v = {.heap = heap, .q = object};

	pp__queue_resolve_put(&v, dead);
}

static void resolve_get(pp__heap *heap, void *object, uint32_t dead)
{
	const view v = {.heap = heap, .q = object};

	pp__queue_resolve_get(&v, dead);
}

static bool ready_to_get(const void *q)
{
	return pp__queue_can_get(q);
}

static bool ready_to_put(const void *q)
{
	return pp__queue_can_put(q);
}

static bool all_done(const void *q)
{
	return pp__queue_finished(q);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------------------------- */

/* linger waits for more than the one message, or the room for one, that has just come, for as long as each look finds some. Who takes one at a time from a queue that
 * is empty after each, or puts into one that is full after each, fetches the lines of head and tail from the other side for each; that costs more than all the rest. If none
 * come, as when two answer each other, it was for nothing and is left out the next times. */
static void linger(const pp__queue *q, uint64_t *skip)
{
	if (*skip != 0) {
		--*skip;
		return;
	}
	uint32_t there = pp__queue_in_chain(q);
	for (int look = 0; look < (int)PP__QUEUE_LINGER_LOOKS; look++) {
		for (int i = 0; i < 8; i++)
			pp__pause();
		const uint32_t now = pp__queue_in_chain(q), come = now > there ? now - there : there - now;
		if (come < PP__QUEUE_LINGER_LEAST) {
			*skip = look == 0 ? PP__QUEUE_LINGER_REST : 0;
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
	const bool leases = pp__queue_in_use(v);
	uint64_t ns = (leases ? LEASE_SLICE_MS : PP__SLICE_MS) * (uint64_t)1000000;
	const bool whole = ns <= deadline - now;
	if (!whole)
		ns = deadline - now;
	const int32_t how = pp__bell_wait(bell, seq, ns);
	pp__slept(patience, began);
	if (how == PP_ERR_INTERRUPTED)
		return pp__fail(how, "queue: a signal handler ran");
	if (how == PP_ERR_TIMEOUT && whole && leases)
		sweep(v);
	return PP_OK;
}

/* ---- putting ---------------------------------------------------------------------------------------------------------------------------- */

/* gather copies the parts of a message. */
static void gather(uint8_t *to, const pp_part *parts, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (parts[i].size != 0)
			memcpy(to, parts[i].data, parts[i].size);
		to += parts[i].size;
	}
}

/* append writes a record behind the producer's cursor. */
static int32_t append(view *v, pp__queue_cursor *c, const pp_part *parts, size_t n, uint32_t len, uint32_t kind, uint32_t codec, uint32_t from)
{
	const int32_t status = pp__queue_place(v, c, len, from);

	if (status != PP_OK)
		return status;
	gather(pp__queue_cursor_body(c), parts, n);
	pp__queue_cursor_seal(c, len, kind, codec);
	return PP_OK;
}

/* begin_put takes put_lock and finds room for at least one message: PP_OK, how many in *room_out. Otherwise the lock is not held. */
static int32_t begin_put(view *v, pp__queue_cursor *c, uint32_t *room_out)
{
	int32_t status = lock(v, &v->q->put_lock, resolve_put);

	if (status != PP_OK)
		return status;
	status = pp__queue_room(v, c, room_out);
	if (status != PP_OK)
		pp__mutex_unlock(&v->q->put_lock);
	return status;
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

/* put_small puts one record: a message, or the reference to the block that this process holds. */
static int32_t put_small(view *v, const pp_part *parts, size_t n, uint32_t len, uint32_t codec, pp__queue_block *held)
{
	pp__queue *const q = v->q;
	pp__queue_cursor c;
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
	status = append(v, &c, parts, n, len, held != NULL ? PP__QUEUE_KIND_BULK : PP__QUEUE_KIND_INLINE, codec, c.crossings);
	if (status == PP_OK) {
		if (held != NULL)
			pp__queue_commit_held(v, &c, held);
		else
			pp__queue_commit_put(v, &c);
	}
	pp__mutex_unlock(&q->put_lock);
	if (status == PP_OK)
		ring(&q->not_empty, 1);
	return status;
}

/* put_bulk puts a message in a block of its own, which is written before anything is locked. */
static int32_t put_bulk(view *v, const pp_part *parts, size_t n, uint64_t size, uint32_t codec)
{
	pp__queue_block b = {0};
	int32_t status;

	while (pp__queue_full(v->q)) { /* not with the memory in hand */
		status = rest(v, &v->q->not_full, ready_to_put, PP_ERR_FULL);
		if (status != PP_OK)
			return put_failed(v, status);
		if (pp__queue_is_closed(v->q))
			return put_failed(v, PP_ERR_CLOSED);
	}
	status = pp__queue_hold(v, &b, size, codec);
	if (status != PP_OK)
		return status;
	gather(b.data, parts, n);
	const pp__queue_bulk bulk = {b.ref, size};
	const pp_part part = {&bulk, sizeof bulk};
	status = put_small(v, &part, 1, sizeof bulk, codec, &b);
	if (status != PP_OK)
		pp__queue_free_cell(v, b.cell, b.ref);
	return status;
}

/* ---- getting ----------------------------------------------------------------------------------------------------------------------------- */

static void end_get(view *v, uint32_t taken, uint32_t left)
{
	pp__queue *const q = v->q;

	pp__mutex_unlock(&q->get_lock);
	if (taken != 0 && pp__load64(&q->maxsize) != 0)
		ring(&q->not_full, taken > INT_MAX ? INT_MAX : (int)taken);
	if (left != 0)
		ring(&q->not_empty, 1);
}

/* ---- descriptor ------------------------------------------------------------------------------------------------------------------- */

/* The descriptor of a queue is an eventfd of the handle, and handle->watch says what it is:
 *
 *   WATCH_NONE      nobody has asked for it
 *   WATCH_READABLE  the eventfd is readable, and the watcher rests
 *   WATCH_ARMED     it is not, and the watcher sleeps on not_empty, as a getter does, until there is something to get
 *   WATCH_BUSY      a thread is about to change the eventfd, or to replace it, and is alone in that
 *   WATCH_ENDED     the handle was freed
 *
 * in the lower three bits. Above them each change counts, so that a change from what was looked at before fails.
 *
 * The watcher is a thread of this process. It makes the descriptor readable, rings not_empty for the next sleeper, since it has taken a
 * wake-up and no message, and rests until a call with this handle finds the queue empty. That call clears the eventfd, then stores ARMED,
 * and the watcher looks before it sleeps. So no message is missed; and as sleepers do, the watcher looks each PP__SLICE_MS, so a putter that
 * dies between its commit and its ring delays the descriptor and no more. Nothing of this is in shared memory. */
enum { WATCH_NONE = 0, WATCH_READABLE = 1, WATCH_ARMED = 2, WATCH_BUSY = 3, WATCH_ENDED = 4, WATCH_STATES = 7, WATCH_CHANGE = 8 };

enum { WATCHER_STACK = 128 << 10, WATCH_YIELDS = 100 };

static bool watch_move(pp__handle *h, uint32_t *word, uint32_t to)
{
	const uint32_t next = ((*word & ~(uint32_t)WATCH_STATES) + WATCH_CHANGE) | to;

	if (!__atomic_compare_exchange_n(&h->watch, word, next, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	*word = next;
	return true;
}

/* watch_wake lets the watcher look at handle->watch. */
static void watch_wake(pp__handle *h)
{
	syscall(SYS_futex, &h->watch, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* watch_word waits until no thread is in the middle of changing the descriptor, which is one system call: for a second at most, in case that
 * this is a signal handler in the middle of it. */
static uint32_t watch_word(const pp__handle *h)
{
	uint32_t word = __atomic_load_n(&h->watch, __ATOMIC_SEQ_CST);

	for (int n = 0; (word & WATCH_STATES) == WATCH_BUSY && n < WATCH_YIELDS + 1000; n++) {
		if (n < WATCH_YIELDS)
			sched_yield();
		else
			nanosleep(&(struct timespec){0, 1000000}, NULL);
		word = __atomic_load_n(&h->watch, __ATOMIC_SEQ_CST);
	}
	return word;
}

/* something reports whether there is something to get. Not by the count of RETURNED cells, which is a hint: a look that does not get would
 * leave the descriptor readable. */
static bool something(const view *v)
{
	return pp__queue_in_chain(v->q) != 0 || __atomic_load_n(&v->q->closed, __ATOMIC_SEQ_CST) != 0 ||
	       (__atomic_load_n(&v->q->returned, __ATOMIC_SEQ_CST) != 0 && pp__queue_count(v, PP__QUEUE_CELL_RETURNED) != 0);
}

/* watch_ring makes the descriptor readable if there is something to get. A program may have closed it. */
static void watch_ring(const view *v)
{
	pp__handle *const h = v->handle;
	const uint64_t one = 1;
	uint32_t word;

	do {
		word = watch_word(h);
		if ((word & WATCH_STATES) != WATCH_ARMED || !something(v))
			return;
	} while (!watch_move(h, &word, WATCH_BUSY));
	if (pp__handle_fd(h) && write(h->fd, &one, sizeof one) < 0) { /* EAGAIN: it is readable */
	}
	watch_move(h, &word, WATCH_READABLE);
}

static void *watch_queue(void *arg)
{
	pp__handle *const h = arg;
	view v = {h, h->heap, pp__at(h->heap, h->off), -1, 0};
	bool woken = false;

	prctl(PR_SET_NAME, "pp-queue", 0, 0, 0);
	for (;;) {
		const uint32_t word = __atomic_load_n(&h->watch, __ATOMIC_SEQ_CST), state = word & WATCH_STATES;
		/* Another thread has made the descriptor readable, or freed the handle: the wake-up was for the next sleeper. */
		if (woken && state != WATCH_ARMED && something(&v))
			ring(&v.q->not_empty, 1);
		woken = false;
		if (state == WATCH_ENDED)
			break;
		if (state != WATCH_ARMED) {
			syscall(SYS_futex, &h->watch, FUTEX_WAIT_PRIVATE, word, NULL, NULL, 0);
			continue;
		}
		const uint32_t seq = enter(&v.q->not_empty);
		if (something(&v)) {
			watch_ring(&v);
			ring(&v.q->not_empty, 1);
			continue;
		}
		if (freed(&v)) {
			sched_yield(); /* who frees it is about to store WATCH_ENDED */
			continue;
		}
		const bool leases = pp__queue_in_use(&v);
		const uint64_t ns = (leases ? LEASE_SLICE_MS : PP__SLICE_MS) * (uint64_t)1000000;
		const int32_t how = pp__bell_wait(&v.q->not_empty, seq, ns);
		woken = how != PP_ERR_TIMEOUT;
		if (!woken && leases)
			sweep(&v);
	}
	pp__drop(h);
	return NULL;
}

/* watch_begin starts the watcher, unless there is one. */
static int32_t watch_begin(pp__handle *h)
{
	uint32_t none = 0;

	if (!__atomic_compare_exchange_n(&h->watcher, &none, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return PP_OK;
	pp__keep(h);
	const int error = pp__thread_begin(watch_queue, h, WATCHER_STACK);
	if (error == 0)
		return PP_OK;
	__atomic_store_n(&h->watcher, 0, __ATOMIC_SEQ_CST);
	pp__drop(h);
	return pp__fail(error == EAGAIN ? PP_ERR_NOMEM : PP_ERR_SYSTEM, "queue: the thread that watches it for its descriptor: %s", strerror(error));
}

/* watch_settle makes the descriptor unreadable if there is nothing to get: after calls that may have found so. Without a thread to be had, in
 * a forked child, it stays readable. */
static void watch_settle(const view *v)
{
	pp__handle *const h = v->handle;
	uint64_t count;

	if (__builtin_expect(__atomic_load_n(&h->watch, __ATOMIC_RELAXED) == WATCH_NONE, true) || something(v))
		return;
	PP__NO_CANCEL();
	const int before = errno;
	uint32_t word = watch_word(h);
	/* Who has seen a message before it was taken must look again. */
	while ((word & WATCH_STATES) == WATCH_ARMED && !watch_move(h, &word, WATCH_ARMED))
		word = watch_word(h);
	if ((word & WATCH_STATES) == WATCH_READABLE && watch_begin(h) == PP_OK && watch_move(h, &word, WATCH_BUSY)) {
		if (pp__handle_fd(h) && read(h->fd, &count, sizeof count) < 0) { /* EAGAIN: it is not readable */
		}
		watch_move(h, &word, WATCH_ARMED);
		watch_wake(h);
	}
	errno = before;
}

/* watch_open makes the descriptor, if there is none or the program has closed it. */
static int32_t watch_open(pp__handle *h)
{
	struct stat st;
	uint32_t word = watch_word(h), state;

	for (;; word = watch_word(h)) {
		state = word & WATCH_STATES;
		if (state == WATCH_ENDED)
			return pp__fail(PP_ERR_HANDLE, "queue: the handle was freed during the call");
		if (state != WATCH_NONE && state != WATCH_BUSY && pp__handle_fd(h))
			return PP_OK;
		if (state != WATCH_BUSY && watch_move(h, &word, WATCH_BUSY))
			break;
	}
	const int fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0) {
		const int32_t status = pp__fail(errno == ENOMEM ? PP_ERR_NOMEM : PP_ERR_SYSTEM, "queue: its descriptor: %s", strerror(errno));
		watch_move(h, &word, state);
		watch_wake(h);
		return status;
	}
	h->inode = fstat(fd, &st) == 0 ? (uint64_t)st.st_ino : 0;
	__atomic_store_n(&h->fd, fd, __ATOMIC_SEQ_CST);
	watch_move(h, &word, WATCH_READABLE);
	return PP_OK;
}

/* watch_forked: the eventfd is the parent's, which clears it when the parent finds the queue empty. The child has one of its own under the same
 * number, readable until it looks. */
static void watch_forked(pp__handle *h)
{
	h->watcher = 0;
	if (h->fd < 0) {
		h->watch = WATCH_NONE; /* or another thread was about to make it */
		return;
	}
	const int fd = pp__handle_fd(h) ? eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
	h->watch = WATCH_READABLE;
	if (fd < 0 || dup3(fd, h->fd, O_CLOEXEC) < 0) {
		if (pp__handle_fd(h)) /* who waits for it learns that it is not his */
			close(h->fd);
		h->fd = -1;
		h->watch = WATCH_NONE;
	}
	if (fd >= 0)
		close(fd);
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

/* own lets the message lie in its block; it keeps the handle alive. */
static void own(view *v, const want *w, const pp__queue_block *b)
{
	pp__keep(v->handle);
	describe(w->message, b->data, b->size, b->codec, (w->lease ? M_LEASED : M_HELD) | pp__forks << M_FORKS);
	w->message->cell = (uint64_t)b->number << 24 | pp__queue_cell_word_generation(b->word);
	w->message->owner = (uintptr_t)v->handle;
}

/* deliver hands over a message. */
static void deliver(view *v, const want *w, const pp__queue_block *b)
{
	if (!w->copy) {
		own(v, w, b);
		return;
	}
	memcpy(w->buf, b->data, b->size);
	describe(w->message, w->buf, b->size, b->codec, M_BUFFER);
	pp__queue_free_cell(v, b->cell, b->ref);
}

/* get_returned takes a message that was leased to somebody who did not acknowledge it. PP_ERR_EMPTY: there is none. */
static int32_t get_returned(view *v, const want *w)
{
	pp__queue_block b = {0};
	const int32_t status = pp__queue_take_returned(v, &b, w->copy ? w->room : UINT64_MAX, w->lease ? PP__QUEUE_CELL_LEASED : PP__QUEUE_CELL_HELD);

	if (status == PP_OK)
		deliver(v, w, &b);
	else if (status == PP_ERR_TOO_BIG)
		w->message->size = b.size;
	return status;
}

/* get_bulk takes a message that was found, get_lock held, by way of a cell: one that lies in a block of its own, or a lease. */
static int32_t get_bulk(view *v, const want *w, const pp__queue_found *f)
{
	pp__queue_block b = {0};
	const int32_t status = pp__queue_take(v, f, w->lease, &b);

	if (status != PP_OK) {
		end_get(v, 0, 1); /* another may have the memory */
		return status;
	}
	end_get(v, 1, f->left);
	deliver(v, w, &b);
	return PP_OK;
}

/* get_once takes a message if one is there. */
static int32_t get_once(view *v, const want *w)
{
	pp__queue *const q = v->q;
	pp__queue_found f;

	if (__atomic_load_n(&q->returned, __ATOMIC_SEQ_CST) != 0) {
		const int32_t status = get_returned(v, w);
		if (status != PP_ERR_EMPTY)
			return status;
	}
	int32_t status = lock(v, &q->get_lock, resolve_get);
	if (status != PP_OK)
		return status;
	const bool closed = pp__queue_is_closed(q); /* before tail is read: then nothing comes after */
	status = pp__queue_find(v, &f);
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
	pp__queue_commit_get(v, &f);
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
	if ((++v.handle->words[W_GETS] & (PP__QUEUE_GETS_PER_SWEEP - 1)) == 0)
		pp__queue_sweep_now_and_then(&v);
	for (;;) {
		status = get_once(&v, w);
		if (status != PP_ERR_EMPTY)
			break;
		watch_settle(&v);
		status = rest(&v, &v.q->not_empty, ready_to_get, PP_ERR_EMPTY);
		if (status != PP_OK)
			break;
	}
	watch_settle(&v);
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
	pp__queue_cursor c;
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
		status = append(v, &c, &part, 1, (uint32_t)sizes[done], PP__QUEUE_KIND_INLINE, codec, from);
		if (status == PP_OK)
			data += sizes[done++];
	}
	if (done != 0)
		pp__queue_commit_put(v, &c);
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
	pp__queue_found f, last = {0};
	size_t done = 0;

	if (lock(v, &q->get_lock, resolve_get) != PP_OK)
		return 0;
	while (done < max && pp__queue_find(v, &f) == PP_OK && f.ref == 0 && f.size <= room) {
		memcpy(buf, f.data, f.size);
		buf += f.size;
		room -= f.size;
		sizes[done++] = f.size;
		last = f;
		pp__queue_commit_get(v, &f); /* a store: what was taken is taken, whatever becomes of the rest */
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
		watch_settle(&v);
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
	const pp__queue_cell_word word = pp__queue_cell_word_of(me, state, (uint32_t)m->cell);
	pp__queue_table *table = pp__queue_table_at(v, pp__load64(&v->q->cells));

	for (uint32_t n = number / PP__QUEUE_TABLE_CELLS; table != NULL && n > 0; n--)
		table = pp__queue_table_at(v, pp__load64(&table->next));
	if (table == NULL)
		return NULL;
	pp__queue_cell *const cell = &table->cells[number % PP__QUEUE_TABLE_CELLS];
	return pp__queue_cell_load(cell) == word ? cell : NULL;
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
	pp__queue_cell *const cell = view_of_message(message, &v) ? cell_of_message(&v, message, PP__QUEUE_CELL_LEASED) : NULL;
	if (cell == NULL)
		return pp__fail(PP_ERR_STATE, "queue: the message was leased by another process");
	pp__queue_cell_set(cell, pp__join(v.heap), PP__QUEUE_CELL_HELD);
	pp__queue_free_cell(&v, cell, pp__load64(&cell->ref));
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
		pp__queue_cell *const cell = cell_of_message(&v, message, kind == M_HELD ? PP__QUEUE_CELL_HELD : PP__QUEUE_CELL_LEASED);
		if (cell != NULL && kind == M_HELD) {
			pp__queue_free_cell(&v, cell, pp__load64(&cell->ref));
		} else if (cell != NULL) {
			pp__queue_cell_set(cell, 0, PP__QUEUE_CELL_RETURNED);
			announce(&v, 1);
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
	*state_out = (pp_queue_state){
		.size = pp__queue_in_chain(v.q) + (uint64_t)pp__queue_count(&v, PP__QUEUE_CELL_RETURNED),
		.maxsize = pp__load64(&v.q->maxsize),
		.unfinished = pp__queue_unfinished(v.q),
		.leased = pp__queue_count(&v, PP__QUEUE_CELL_LEASED),
		.closed = pp__queue_is_closed(v.q),
	};
	watch_settle(&v);
	pp__unpin(v.handle);
	return PP_OK;
}

int32_t pp_queue_descriptor(pp_queue queue, int32_t *fd_out)
{
	PP__NO_CANCEL();
	view v;

	if (fd_out == NULL)
		return pp__fail(PP_ERR_INVALID, "queue: fd_out is NULL");
	int32_t status = view_of(queue, 0, &v);
	if (status != PP_OK)
		return status;
	status = watch_open(v.handle);
	if (status == PP_OK)
		status = watch_begin(v.handle);
	if (status == PP_OK) {
		watch_settle(&v);
		watch_ring(&v);
		*fd_out = __atomic_load_n(&v.handle->fd, __ATOMIC_SEQ_CST);
	}
	pp__unpin(v.handle);
	return status;
}

int32_t pp_queue_task_done(pp_queue queue)
{
	view v;
	int32_t status = view_of(queue, 0, &v);

	if (status != PP_OK)
		return status;
	status = pp__queue_task_done(v.q);
	if (status == PP_ERR_STATE)
		status = pp__fail(status, "queue: task_done was called more often than there were messages");
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

static void destroy(pp__heap *heap, uint64_t off)
{
	view v = {.heap = heap, .q = pp__at(heap, off)};

	pp__queue_destroy(&v);
}

static void closed(pp__handle *handle)
{
	if (handle->extra != NULL) /* a named queue has a heap to itself */
		pp__heap_close(handle->heap);
}

static const pp__kind queue_kind = {.name = "queue", .destroy = destroy, .closed = closed, .forked = watch_forked, .size = sizeof(pp__queue)};

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
		const uint64_t root = pp__load64(&head->root);
		if (root != 0)
			return pp__object_at(heap, root, PP__KIND_QUEUE, 0, handle_out);
		const int32_t status = make(heap, maxsize, handle_out);
		if (status != PP_OK)
			return status;
		pp__queue *const q = pp__at(heap, (*handle_out)->off);
		__atomic_fetch_add(&q->object.refs, 1, __ATOMIC_SEQ_CST); /* the root's */
		if (pp__cas64(&head->root, 0, (*handle_out)->off))
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
		if (__atomic_exchange_n(&handle->watch, WATCH_ENDED, __ATOMIC_SEQ_CST) != WATCH_NONE)
			watch_wake(handle);
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
