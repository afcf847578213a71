/* worker.c - the worker's end of a lane: takes tasks, gives results. See lane.h.
 *
 * What is needed of the board is checked and copied once, in attach. After that only words that change are read from shared memory, and
 * each is checked before it is used, so that a parent gone mad costs an error. */
#include "bell.h"
#include "blocks.h"
#include "ring.h"
#include "spin.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* Mapped parts of the task arena. The parent uses the same blocks again and again, so their windows are kept. */
typedef struct window {
	pp__view view; /* base NULL: none */
	uint64_t off, size;
	uint64_t used; /* when, for the choice of the one to drop */
	bool pinned;   /* the task at hand lies in it */
} window;

enum { WINDOWS = 16, WINDOW_LEAST = 64 << 10 };
#define WINDOWS_MOST ((uint64_t)1 << 30) /* address space of all windows together, but for what one task needs */

/* Blocks of the task arena that the parent and workers write at the same time (pp_pool_alloc). */
typedef struct shared_view {
	pp__view view;
	uint64_t off, size;
	uint64_t used;
} shared_view;

enum { SHARED_VIEWS = 8 };

enum { NEVER = 0, ATTACHED, FORKED };

/* Where the result of the task at hand is being made, see pp__worker_stage. */
enum { STAGE_NONE = 0, STAGE_RING, STAGE_BLOCK, STAGE_PRIVATE };

static struct {
	int state;
	int fd;
	uint32_t index, generation;
	pid_t parent_pid;
	pp__board *board;
	pp__lane *lane;
	pp__view board_view, lane_view, init_view;
	uint64_t task_off, task_size;
	uint64_t init_fn, out_max;
	pp__ring tasks, results;
	pp__blocks blocks;
	uint64_t *ready; /* the word of board.ready that has this lane's bit */
	uint64_t ready_bit;
	size_t init_size;

	bool busy;        /* a task was taken and has no result yet */
	bool skipped;     /* revoked tasks were stepped over: the parent has room that it does not know of */
	uint64_t end;     /* of the task's record */
	uint64_t number;
	uint64_t fn;
	uint64_t taken_ns;
	pp__call call;
	pp__span *span; /* in the task ring, or NULL */

	int stage;
	uint8_t *stage_data;
	uint32_t stage_slot;
	uint8_t *private_data;
	size_t private_size;

	window windows[WINDOWS];
	shared_view shared[SHARED_VIEWS];
	uint64_t clock; /* counts uses of windows */

	uint64_t patience; /* spin.h */

	uint64_t known_fn; /* the function that was called last, and where it is */
	const void *known_at;
	uint64_t module_base[PP__MODULES]; /* 0: not looked up */
} w = {.fd = -1};

/* ---- start ---------------------------------------------------------------------------------------------------- */

typedef struct assignment {
	int fd;
	uint32_t lane, generation;
	pid_t parent_pid;
} assignment;

/* assigned reads POLYPROC_WORKER: "fd,lane,generation,parent_pid". */
static bool assigned(assignment *out)
{
	const char *text = secure_getenv("POLYPROC_WORKER");
	unsigned long long value[4];
	char *end;

	if (text == NULL)
		return false;
	for (int i = 0; i < 4; i++) {
		errno = 0;
		value[i] = *text >= '0' && *text <= '9' ? strtoull(text, &end, 10) : ULLONG_MAX;
		if (value[i] > (i == 2 ? UINT32_MAX : INT32_MAX) || errno != 0 || *end != (i < 3 ? ',' : '\0'))
			return false;
		text = end + 1;
	}
	out->fd = (int)value[0];
	out->lane = (uint32_t)value[1];
	out->generation = (uint32_t)value[2];
	out->parent_pid = (pid_t)value[3];
	return true;
}

/* ours reports whether an assignment is this process's, and not that of a worker written in something that left the variable
 * to the programs it starts. */
static bool ours(const assignment *a)
{
	/* A dead parent: a worker that has come too late, as far as anybody can tell. */
	return getppid() == a->parent_pid || (kill(a->parent_pid, 0) != 0 && errno == ESRCH && fcntl(a->fd, F_GETFD) >= 0);
}

int32_t pp_worker_pending(void)
{
	assignment a;

	return w.state == NEVER && assigned(&a) && ours(&a);
}

bool pp__worker_orphan(void)
{
	assignment a;

	return assigned(&a) && ours(&a) && getppid() != a.parent_pid;
}

static int32_t misfit(const char *what)
{
	return pp__fail(PP_ERR_CORRUPT, "the pool's memory: %s", what);
}

/* within reports whether size bytes at off lie in [from, from + length). */
static bool within(uint64_t off, uint64_t size, uint64_t from, uint64_t length)
{
	return off >= from && size <= length && off - from <= length - size;
}

static int32_t map(pp__view *view, uint64_t off, uint64_t size, int prot)
{
	const int error = pp__view_map(view, w.fd, off, size, prot);

	if (error == 0)
		return PP_OK;
	return pp__fail(error == ENOMEM ? PP_ERR_NOMEM : PP_ERR_SYSTEM, "%llu bytes of the pool's memory cannot be mapped: %s",
	                (unsigned long long)size, strerror(error));
}

/* connect maps board and lane and checks what they say. */
static int32_t attach_lane(const assignment *a)
{
	struct stat st;
	int32_t status;

	if (!pp__inherited_file(w.fd, &st))
		return pp__fail(PP_ERR_SYSTEM, "descriptor %d is not the pool's memory: a sealed memory file of this user", w.fd);
	const uint64_t file = (uint64_t)st.st_size;
	if (file < PP__BOARD_SIZE)
		return misfit("too small");
	if ((status = map(&w.board_view, 0, PP__BOARD_SIZE, PROT_READ | PROT_WRITE)) != PP_OK)
		return status;
	w.board = (pp__board *)(void *)w.board_view.data;
	if (__atomic_load_n(&w.board->magic, __ATOMIC_SEQ_CST) != PP__MAGIC)
		return misfit("not a pool");
	const pp__board b = *w.board;
	if (b.abi != PP__ABI)
		return pp__fail(PP_ERR_CORRUPT, "the pool's memory has layout %u, this library knows %u: two versions are mixed", b.abi, PP__ABI);
	if (b.parent_pid != a->parent_pid)
		return misfit("of another process");
	if (b.lanes > PP__MAX_LANES || a->lane >= b.lanes)
		return misfit("no such lane");
	if (b.ring_cap < 64 << 10 || b.ring_cap > 1 << 20 || (b.ring_cap & (b.ring_cap - 1)) != 0 ||
	    b.lane_size != PP__LANE_HEAD + 2 * b.ring_cap)
		return misfit("size of the rings");
	if (b.lane_off % 8 != 0 || b.task_off % 8 != 0 || b.result_off % 4096 != 0 || b.result_size % 4096 != 0 ||
	    !within(b.lane_off, b.lanes * b.lane_size, PP__BOARD_SIZE, file - PP__BOARD_SIZE) ||
	    !within(b.task_off, b.task_size, PP__BOARD_SIZE, file - PP__BOARD_SIZE) ||
	    b.result_size > file / (b.lanes + 1u) || !within(b.result_off, b.lanes * b.result_size, PP__BOARD_SIZE, file - PP__BOARD_SIZE))
		return misfit("layout");
	if (b.init_size > SIZE_MAX || (b.init_off != 0 && !within(b.init_off, b.init_size, b.task_off, b.task_size)))
		return misfit("argument of the initializer");
	if ((status = map(&w.lane_view, b.lane_off + a->lane * b.lane_size, b.lane_size, PROT_READ | PROT_WRITE)) != PP_OK)
		return status;
	w.lane = (pp__lane *)(void *)w.lane_view.data;
	if (__atomic_load_n(&w.lane->generation, __ATOMIC_SEQ_CST) != a->generation)
		return pp__fail(PP_ERR_STATE, "the lane was given to another worker");
	uint8_t *const task_data = w.lane_view.data + PP__LANE_HEAD;
	if (pp__ring_consumer(&w.tasks, &w.lane->task_tail, &w.lane->task_head, task_data, b.ring_cap) != PP_OK ||
	    pp__ring_producer(&w.results, &w.lane->result_tail, &w.lane->result_head, task_data + b.ring_cap, b.ring_cap) != PP_OK)
		return PP_ERR_CORRUPT;
	if (b.init_off != 0 && b.init_size > 0 && (status = map(&w.init_view, b.init_off, b.init_size, PROT_READ)) != PP_OK)
		return status;
	w.init_size = w.init_view.base != NULL ? (size_t)b.init_size : 0;
	w.init_fn = b.init_fn;
	w.out_max = b.out_max;
	w.task_off = b.task_off;
	w.task_size = b.task_size;
	w.index = a->lane;
	w.generation = a->generation;
	w.parent_pid = a->parent_pid;
	w.ready = &w.board->ready[w.index / 64];
	w.ready_bit = (uint64_t)1 << (w.index % 64);
	w.blocks.fd = w.fd;
	w.blocks.device = pp__device_of(&st);
	w.blocks.inode = st.st_ino;
	w.blocks.taken = w.lane->slots;
	w.blocks.off = b.result_off + w.index * b.result_size;
	w.blocks.size = b.result_size;
	return PP_OK;
}

/* attach connects the process with the lane that it was assigned. w.fd is its own descriptor already. */
static int32_t attach(const assignment *a, pp_worker *worker_out)
{
	int32_t status;

	if ((status = attach_lane(a)) != PP_OK || (status = pp__watch(a->parent_pid, w.board->parent_id, w.fd)) != PP_OK) {
		pp__view_unmap(&w.board_view);
		pp__view_unmap(&w.lane_view);
		return status;
	}
	w.state = ATTACHED;
	__atomic_store_n(&w.lane->worker_pid, (uint32_t)getpid(), __ATOMIC_SEQ_CST);
	const uint32_t size = worker_out->size;
	*worker_out = (pp_worker){
		.size = size,
		.lane = w.index,
		.parent_pid = (int32_t)w.parent_pid,
		.init_arg = w.init_view.base != NULL ? w.init_view.data : NULL,
		.init_arg_size = w.init_size,
		.ring = w.tasks.data,
		.ring_size = (size_t)w.tasks.cap,
	};
	return PP_OK;
}

int32_t pp_worker_attach(pp_worker *worker_out)
{
	assignment a;

	if (worker_out == NULL || worker_out->size < sizeof *worker_out)
		return pp__fail(PP_ERR_INVALID, "pp_worker_attach: NULL, or its size is not set");
	if (w.state != NEVER || !assigned(&a) || !ours(&a))
		return pp__fail(PP_ERR_STATE, w.state != NEVER ? "attached already" : "this process is not a worker");
	/* Programs that a task executes are no workers of this pool. */
	unsetenv("POLYPROC_WORKER");
	w.fd = a.fd;
	if (fcntl(a.fd, F_SETFD, FD_CLOEXEC) != 0)
		return pp__fail(PP_ERR_SYSTEM, "descriptor %d, the pool's memory: %s", a.fd, strerror(errno));
	return attach(&a, worker_out);
}

int32_t pp_worker_attach_to(const pp_vacancy *vacancy, pp_worker *worker_out)
{
	if (vacancy == NULL || worker_out == NULL || worker_out->size < sizeof *worker_out)
		return pp__fail(PP_ERR_INVALID, "pp_worker_attach_to: NULL, or its size is not set");
	if (w.state == ATTACHED)
		return pp__fail(PP_ERR_STATE, "attached already");
	/* What a worker that forked this process had mapped stays mapped: nobody knows what still points there. */
	memset(&w, 0, sizeof w);
	w.fd = fcntl(vacancy->fd, F_DUPFD_CLOEXEC, 3);
	if (w.fd < 0)
		return pp__fail(PP_ERR_SYSTEM, "descriptor %d, the pool's memory: %s", vacancy->fd, strerror(errno));
	const assignment a = {w.fd, vacancy->lane, vacancy->generation, vacancy->parent_pid};
	const int32_t status = attach(&a, worker_out);
	if (status != PP_OK) {
		close(w.fd);
		w.fd = -1;
	}
	return status;
}

void pp__worker_forked(void)
{
	if (w.state == ATTACHED)
		w.state = FORKED;
}

static int32_t not_attached(void)
{
	return pp__fail(PP_ERR_STATE, w.state == FORKED ? "the lane belongs to the process that forked this one" : "pp_worker_attach first");
}

/* ---- bells ---------------------------------------------------------------------------------------------------- */

/* half_full reports whether the parent has much to read. */
static bool half_full(void)
{
	return w.results.pos - __atomic_load_n(w.results.head, __ATOMIC_RELAXED) > w.results.cap / 2;
}

/* notify shows the parent that there is something to see: a thread that waits in a call at once, the engine's own only if it is
 * needed to go on, since results do not run away. */
static void notify(void)
{
	if ((__atomic_load_n(w.ready, __ATOMIC_SEQ_CST) & w.ready_bit) == 0)
		__atomic_fetch_or(w.ready, w.ready_bit, __ATOMIC_SEQ_CST);
	const uint32_t fore = __atomic_load_n(&w.board->fore.waiters, __ATOMIC_SEQ_CST);
	if (fore == PP__BELL_LOOKS && !half_full())
		return;
	if (fore != 0)
		pp__bell_ring(&w.board->fore);
	else if (!pp__ring_waiting(&w.tasks) || half_full())
		pp__bell_ring(&w.board->back);
}

/* notify_hard is for when this process is about to sleep until the parent does something. */
static void notify_hard(void)
{
	__atomic_fetch_or(w.ready, w.ready_bit, __ATOMIC_SEQ_CST);
	pp__bell_ring(&w.board->fore);
	pp__bell_ring(&w.board->back);
}

/* sleep_for_space sleeps until the parent has read results, at most a slice. have is looked at between the announcement and the sleep. */
static void sleep_for_space(uint64_t seen, const uint64_t *head)
{
	notify_hard();
	const uint32_t seq = pp__bell_enter(&w.lane->space_bell);
	if (__atomic_load_n(head, __ATOMIC_SEQ_CST) == seen)
		pp__bell_wait(&w.lane->space_bell, seq, (uint64_t)PP__SLICE_MS * 1000000u);
	pp__bell_leave(&w.lane->space_bell);
}

/* ---- tasks ---------------------------------------------------------------------------------------------------- */

/* drop_windows unmaps the windows that the task at hand does not use. */
static void drop_windows(void)
{
	for (int i = 0; i < WINDOWS; i++)
		if (w.windows[i].view.base != NULL && !w.windows[i].pinned)
			pp__view_unmap(&w.windows[i].view);
}

/* window_at maps size bytes of the task arena, and says where in *out. */
static int32_t window_at(uint64_t off, uint64_t size, const void **out)
{
	window *free_one = NULL, *oldest = NULL;
	int32_t status;

	uint64_t mapped = 0, length = WINDOW_LEAST;

	w.clock++;
	for (int i = 0; i < WINDOWS; i++) {
		window *v = &w.windows[i];
		if (v->view.base == NULL) {
			free_one = v;
			continue;
		}
		if (v->off == off && v->size >= size) {
			v->used = w.clock;
			v->pinned = true;
			*out = v->view.data;
			return PP_OK;
		}
		mapped += v->size;
	}
	/* By powers of two, so that a block whose next use is a bit longer needs no new window. */
	while (length < size)
		length *= 2;
	const uint64_t rest = w.task_off + w.task_size - off;
	if (length > rest)
		length = rest;
	while (free_one == NULL || mapped + length > WINDOWS_MOST) {
		oldest = NULL;
		for (int i = 0; i < WINDOWS; i++) {
			window *v = &w.windows[i];
			if (v->view.base != NULL && !v->pinned && (oldest == NULL || v->used < oldest->used))
				oldest = v;
		}
		if (oldest == NULL)
			break;
		mapped -= oldest->size;
		pp__view_unmap(&oldest->view);
		free_one = oldest;
	}
	if (free_one == NULL)
		return misfit("more blocks than a task can have");
	if ((status = map(&free_one->view, off, length, PROT_READ)) == PP_ERR_NOMEM) {
		/* The address space may be limited: see whether it is enough for this task alone. */
		drop_windows();
		length = size;
		status = map(&free_one->view, off, length, PROT_READ);
	}
	if (status != PP_OK)
		return status;
	if (size >= 1 << 20)
		madvise(free_one->view.base, (size_t)size, MADV_POPULATE_READ); /* one call instead of many faults */
	*free_one = (window){.view = free_one->view, .off = off, .size = length, .used = w.clock, .pinned = true};
	*out = free_one->view.data;
	return PP_OK;
}

/* shared_at maps a shared block for reading and writing. Returns NULL with a message. */
static uint8_t *shared_at(uint64_t off, uint64_t size)
{
	shared_view *place = &w.shared[0];

	w.clock++;
	for (int i = 0; i < SHARED_VIEWS; i++) {
		shared_view *const v = &w.shared[i];
		if (v->view.base != NULL && v->off == off && v->size == size) {
			v->used = w.clock;
			return v->view.data;
		}
		if (v->used < place->used)
			place = v;
	}
	if (place->view.base != NULL)
		pp__view_unmap(&place->view);
	*place = (shared_view){0};
	if (map(&place->view, off, size, PROT_READ | PROT_WRITE) != PP_OK)
		return NULL;
	if (size >= 1 << 20)
		madvise(place->view.base, (size_t)size, MADV_POPULATE_WRITE); /* one call instead of many faults */
	place->off = off;
	place->size = size;
	place->used = w.clock;
	return place->view.data;
}

/* open_range finds out what a task over a range of numbers is to work on. */
static int32_t open_range(const pp_task *task)
{
	pp__task_range range;

	if (task->size != sizeof range)
		return misfit("a task without its range");
	memcpy(&range, task->data, sizeof range);
	if (range.begin > range.end || range.end > SIZE_MAX ||
	    (range.size > 0 && (!within(range.off, range.size, w.task_off, w.task_size) || range.offset >= range.size)))
		return misfit("a task's range");
	w.call.is_range = true;
	w.call.begin = (size_t)range.begin;
	w.call.end = (size_t)range.end;
	if (range.size > 0) {
		uint8_t *const data = shared_at(range.off, range.size);
		if (data == NULL)
			return PP_ERR_SYSTEM;
		w.call.data = data + range.offset;
	}
	return PP_OK;
}

static size_t round8(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

/* open_span finds the elements of a task that has several. */
static int32_t open_span(const pp_task *task)
{
	pp__span *const span = (pp__span *)(uintptr_t)task->data;

	if (task->size < sizeof *span)
		return misfit("a task without its span");
	const uint32_t count = span->count, in_size = span->in_size;
	if (count == 0 || count > w.results.cap || (task->size - sizeof *span) / count != round8(in_size) || w.call.room > w.results.cap ||
	    count * (sizeof(pp__span_out) + round8(w.call.room)) > pp__ring_longest(w.results.cap) - sizeof(pp__result_head))
		return misfit("a task's span");
	w.span = span;
	w.call.span = count;
	w.call.in_size = in_size;
	w.call.stride = round8(in_size);
	w.call.elements = (const uint8_t *)(span + 1);
	return PP_OK;
}

int32_t pp__worker_claim(uint32_t *element_out)
{
	uint64_t claim = __atomic_load_n(&w.span->claim, __ATOMIC_SEQ_CST);

	for (;;) {
		const uint32_t claimed = (uint32_t)claim, limit = (uint32_t)(claim >> 32);
		if (claimed >= limit || claimed >= w.call.span)
			return PP_ERR_TIMEOUT;
		if (__atomic_compare_exchange_n(&w.span->claim, &claim, claim + 1, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			*element_out = claimed;
			return PP_OK;
		}
	}
}

pp__span_out *pp__worker_span_room(size_t *size_out)
{
	*size_out = w.call.span * (sizeof(pp__span_out) + round8(w.call.room));
	uint8_t *const room = pp__worker_stage(*size_out, true);
	if (room != NULL) /* where the parent looks if this process dies before it has published them */
		__atomic_store_n(&w.span->result_at, (uint64_t)(room - w.results.data), __ATOMIC_SEQ_CST);
	return (pp__span_out *)(void *)room;
}

static void unpin(void)
{
	for (int i = 0; i < WINDOWS; i++)
		w.windows[i].pinned = false;
}

/* open_task finds the bytes of a task that was taken. */
static int32_t open_task(const pp__record *record, const pp__task_head *head, pp_task *out)
{
	int32_t status;

	out->number = head->number;
	out->fn = head->fn;
	out->data = record->payload + sizeof *head;
	out->size = record->len - sizeof *head;
	w.call = (pp__call){0};
	unpin();
	if (record->flags & PP__BULK) {
		pp__bulk_ref ref;
		if (out->size < sizeof ref)
			return misfit("a task without its block");
		memcpy(&ref, out->data, sizeof ref);
		if (ref.off % 8 != 0 || ref.size > SIZE_MAX || !within(ref.off, ref.size, w.task_off, w.task_size))
			return misfit("a task's block");
		out->size = ref.size;
		if ((status = window_at(ref.off, ref.size, &out->data)) != PP_OK)
			return status;
	}
	if (head->ctx_off != 0) {
		if (head->ctx_off % 8 != 0 || head->ctx_size > SIZE_MAX || !within(head->ctx_off, head->ctx_size, w.task_off, w.task_size))
			return misfit("a task's ctx");
		w.call.ctx_size = (size_t)head->ctx_size;
		if (head->ctx_size > 0 && (status = window_at(head->ctx_off, head->ctx_size, &w.call.ctx)) != PP_OK)
			return status;
	}
	w.call.exact = head->out_size != UINT32_MAX;
	w.call.room = (size_t)(w.call.exact ? head->out_size : w.out_max);
	w.span = NULL;
	if ((record->flags & PP__SPAN) != 0)
		return open_span(out);
	return (record->flags & PP__RANGE) != 0 ? open_range(out) : PP_OK;
}

/* take takes the oldest task that was not revoked. PP_ERR_TIMEOUT: there is none. */
static int32_t take(uint64_t now, pp_task *out)
{
	for (;;) {
		pp__record record;
		int32_t status = pp__ring_peek(&w.tasks, &record);
		if (status != PP_OK)
			return status;
		if (record.kind != PP__TASK || record.len < sizeof(pp__task_head))
			return misfit("no task where one must be");
		pp__task_head *const shared = (pp__task_head *)(void *)record.payload;
		uint32_t state = PP__T_READY;
		if (!__atomic_compare_exchange_n(&shared->state, &state, PP__T_TAKEN, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			if (state != PP__T_REVOKED)
				return misfit("state of a task");
			pp__ring_release(&w.tasks, record.end);
			w.skipped = true;
			continue;
		}
		const pp__task_head head = *shared;
		w.number = head.number;
		w.fn = head.fn;
		w.end = record.end;
		w.taken_ns = now != 0 ? now : pp__now_ns();
		status = open_task(&record, &head, out);
		w.busy = status == PP_OK || status == PP_ERR_NOMEM; /* not mapped, but it can be answered */
		return status;
	}
}

/* closing reports whether no more tasks will come; those that are in the ring are still to be done. */
static bool closing(void)
{
	return __atomic_load_n(&w.lane->state, __ATOMIC_SEQ_CST) != PP__L_OPEN ||
	       __atomic_load_n(&w.lane->generation, __ATOMIC_SEQ_CST) != w.generation;
}

static bool has_task(const void *ring)
{
	return pp__ring_waiting(ring);
}

int32_t pp_worker_next(int64_t timeout_ms, pp_task *task_out)
{
	uint64_t deadline = 0, began = 0;

	if (task_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_worker_next: NULL");
	if (!pp__timeout_valid(timeout_ms))
		return pp__timeout_invalid(timeout_ms);
	if (w.state != ATTACHED)
		return not_attached();
	if (w.busy)
		return pp__fail(PP_ERR_STATE, "the task before has no result yet");
	for (;;) {
		const int32_t status = take(0, task_out);
		if (w.skipped) {
			w.skipped = false;
			notify_hard();
		}
		if (status != PP_ERR_TIMEOUT)
			return status;
		if (closing()) {
			/* The parent puts tasks first and closes then: what is not there now never comes. */
			if (pp__ring_waiting(&w.tasks))
				continue;
			return pp__fail(PP_ERR_CLOSED, "the pool has no more tasks for this worker");
		}
		if (timeout_ms == 0 || timeout_ms == PP_TRY)
			return pp__fail(PP_ERR_TIMEOUT, "no task yet");
		if (began == 0 && pp__spin(&w.patience, has_task, &w.tasks, &began))
			continue;
		uint64_t pause = (uint64_t)PP__SLICE_MS * 1000000u;
		if (timeout_ms > 0) {
			const uint64_t now = pp__now_ns();
			if (deadline == 0)
				deadline = (uint64_t)timeout_ms > (UINT64_MAX - now) / 1000000u ? UINT64_MAX : now + (uint64_t)timeout_ms * 1000000u;
			if (now >= deadline)
				return pp__fail(PP_ERR_TIMEOUT, "no task in %lld ms", (long long)timeout_ms);
			if (deadline - now < pause)
				pause = deadline - now;
		}
		pp__blocks_trim(&w.blocks);
		int32_t slept = PP_OK;
		const uint32_t seq = pp__bell_enter(&w.lane->task_bell);
		if (!pp__ring_waiting(&w.tasks) && !closing())
			slept = pp__bell_wait(&w.lane->task_bell, seq, pause);
		pp__slept(&w.patience, began);
		pp__bell_leave(&w.lane->task_bell);
		if (slept == PP_ERR_INTERRUPTED && !pp__ring_waiting(&w.tasks))
			return pp__fail(PP_ERR_INTERRUPTED, "a signal handler ran");
	}
}

/* ---- results -------------------------------------------------------------------------------------------------- */

/* reserve waits until the result ring has room. */
static int32_t reserve(uint64_t len, uint8_t **payload_out)
{
	for (;;) {
		const int32_t status = pp__ring_reserve(&w.results, len, payload_out);
		if (status != PP_ERR_TIMEOUT)
			return status;
		sleep_for_space(w.results.seen, w.results.head);
	}
}

/* take_block waits until there is a block, but not if the system has no memory for one. */
static int32_t take_block(uint64_t size, uint32_t *slot_out)
{
	for (;;) {
		/* Blocks come back when the parent has read the records that name them, and then it moves head. */
		const uint64_t head = __atomic_load_n(w.results.head, __ATOMIC_SEQ_CST);
		const int32_t status = pp__blocks_take(&w.blocks, size, slot_out);
		if (status != PP_ERR_TIMEOUT)
			return status;
		sleep_for_space(head, w.results.head);
	}
}

void *pp__worker_stage(size_t room, bool exact)
{
	uint8_t *payload;

	w.stage = STAGE_NONE;
	if (room <= pp__ring_longest(w.results.cap) - sizeof(pp__result_head)) {
		if (reserve(sizeof(pp__result_head) + room, &payload) != PP_OK)
			return NULL;
		w.stage = STAGE_RING;
		w.stage_data = payload + sizeof(pp__result_head);
	} else if (exact) {
		if (take_block(room, &w.stage_slot) != PP_OK)
			return NULL;
		w.stage = STAGE_BLOCK;
		w.stage_data = w.blocks.block[w.stage_slot].view.data;
	} else {
		if (w.private_size < room) {
			free(w.private_data);
			w.private_data = malloc(room);
			w.private_size = w.private_data != NULL ? room : 0;
			if (w.private_data == NULL) {
				pp__set_error("%zu bytes for a result: out of memory", room);
				return NULL;
			}
		}
		w.stage = STAGE_PRIVATE;
		w.stage_data = w.private_data;
	}
	return w.stage_data;
}

/* unstage forgets what was staged and not used. */
static void unstage(void)
{
	if (w.stage == STAGE_BLOCK)
		pp__blocks_return(&w.blocks, w.stage_slot);
	w.stage = STAGE_NONE;
}

/* send publishes one record: head, and then the bytes or a reference to a block that holds them. */
static int32_t send(uint16_t kind, const void *head, size_t head_size, const void *data, size_t size)
{
	const bool in_place = w.stage != STAGE_NONE && data == w.stage_data && size > 0;
	uint8_t *payload;
	int32_t status;

	if (size <= pp__ring_longest(w.results.cap) - head_size) {
		if (in_place && w.stage == STAGE_RING) {
			payload = w.stage_data - head_size;
		} else {
			if ((status = reserve(head_size + size, &payload)) != PP_OK)
				return status;
			if (size > 0)
				memcpy(payload + head_size, data, size);
		}
		if (head_size > 0)
			memcpy(payload, head, head_size);
		pp__ring_commit(&w.results, payload, kind, 0, (uint32_t)(head_size + size));
		unstage();
		return PP_OK;
	}
	uint32_t slot;
	if (in_place && w.stage == STAGE_BLOCK) {
		slot = w.stage_slot;
	} else {
		if ((status = take_block(size, &slot)) != PP_OK)
			return status;
		memcpy(w.blocks.block[slot].view.data, data, size);
	}
	const pp__bulk_ref ref = {.off = w.blocks.block[slot].off, .size = size, .slot = slot};
	if ((status = reserve(head_size + sizeof ref, &payload)) != PP_OK) {
		pp__blocks_return(&w.blocks, slot);
		return status;
	}
	if (head_size > 0)
		memcpy(payload, head, head_size);
	memcpy(payload + head_size, &ref, sizeof ref);
	pp__ring_commit(&w.results, payload, kind, PP__BULK, (uint32_t)(head_size + sizeof ref));
	if (in_place && w.stage == STAGE_BLOCK)
		w.stage = STAGE_NONE;
	unstage();
	return PP_OK;
}

int32_t pp_worker_ready(int32_t status, const void *data, size_t size)
{
	if (data == NULL && size > 0)
		return pp__fail(PP_ERR_INVALID, "pp_worker_ready: NULL");
	if (w.state != ATTACHED)
		return not_attached();
	const int32_t sent = status == PP_OK ? send(PP__READY, NULL, 0, NULL, 0) : send(PP__INIT_FAILED, NULL, 0, data, size);
	if (sent == PP_OK)
		notify_hard();
	return sent;
}

/* done gives the result and returns the time in *now. */
static int32_t done(int32_t status, int32_t code, const void *data, size_t size, uint64_t *now)
{
	if (w.state != ATTACHED)
		return not_attached();
	if (!w.busy)
		return pp__fail(PP_ERR_STATE, "no task was taken");
	if (data == NULL && size > 0)
		return pp__fail(PP_ERR_INVALID, "pp_worker_done: data is NULL and its size is %zu", size);
	*now = pp__now_ns();
	const pp__result_head head = {.number = w.number, .status = status, .code = code, .run_ns = *now - w.taken_ns};
	const int32_t sent = send(PP__RESULT, &head, sizeof head, data, size);
	if (sent != PP_OK)
		return sent;
	w.busy = false;
	/* Before the parent is told, so that it finds the room when it looks. */
	pp__ring_release(&w.tasks, w.end);
	notify();
	return PP_OK;
}

int32_t pp_worker_done(int32_t status, int32_t code, const void *data, size_t size)
{
	uint64_t now;

	if (status != PP_OK && status != PP_ERR_TASK)
		return pp__fail(PP_ERR_INVALID, "pp_worker_done: status %d", (int)status);
	return done(status, code, data, size, &now);
}

int32_t pp__worker_refuse(int32_t status, const void *data, size_t size)
{
	uint64_t now;

	return done(status, 0, data, size, &now);
}

int32_t pp_worker_step(int32_t status, int32_t code, const void *data, size_t size, pp_task *task_out)
{
	uint64_t now = 0;

	if (task_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_worker_step: NULL");
	if (status != PP_OK && status != PP_ERR_TASK)
		return pp__fail(PP_ERR_INVALID, "pp_worker_step: status %d", (int)status);
	const int32_t sent = done(status, code, data, size, &now);
	if (sent != PP_OK)
		return sent;
	const int32_t taken = take(now, task_out);
	if (taken == PP_ERR_TIMEOUT)
		return pp_worker_next(0, task_out);
	if (w.skipped) {
		w.skipped = false;
		notify_hard();
	}
	return taken;
}

/* ---- for C workers (init.c) ----------------------------------------------------------------------------------------- */

int32_t pp__worker_call(pp__call *call_out)
{
	*call_out = w.call;
	return w.busy ? PP_OK : PP_ERR_STATE;
}

uint64_t pp__worker_init_fn(void)
{
	return w.init_fn;
}

int32_t pp__worker_fn(uint64_t fn, const void **fn_out)
{
	const uint64_t module = fn >> 48;

	if (fn == w.known_fn && w.known_at != NULL) {
		*fn_out = w.known_at;
		return PP_OK;
	}
	if (module == 0 || module > PP__MODULES)
		return pp__fail(PP_ERR_CORRUPT, "function %#llx is of no module", (unsigned long long)fn);
	const pp__module *m = &w.board->modules[module - 1];
	pp__fn_ref ref = {.build_id_size = m->build_id_size, .offset = fn & (((uint64_t)1 << 48) - 1)};
	memcpy(ref.build_id, m->build_id, sizeof ref.build_id);
	memcpy(ref.path, m->path, sizeof ref.path);
	const int32_t status = pp__locate(&ref, fn_out);
	if (status == PP_OK) {
		w.known_fn = fn;
		w.known_at = *fn_out;
	}
	return status;
}
