/* queue_killsweep_test.c - a process that dies at any instruction of a call of pp_queue_... leaves the queue as it was before the call or as
 * it is after it: no message that was put is lost, none comes twice, nobody hangs, and nothing leaks but, where memory was being allocated, a block.
 *
 * A child is stopped before the operation, executes k instructions of it and is killed, for each k there is (killsweep.h). Then the survivor takes what
 * there is, and goes on. In a second round the child is not killed at k but stopped there, while another process tries (it must fail if the lock is
 * held: nobody steals), a third one waits; then the child is killed and the third must get through. This at every TRY_EVERY-th instruction, and with
 * POLYPROC_SWEEP set at each.
 * An argument names the only case to run.
 *
 * deadline: 300 s
 */
#define FIGURES_MS 3600000 /* the figures of the machine are read once, and not in each child */
#include "heapkit.h"

#define LEASE_SLICE_MS 2
#include "../../capi/front/queue.c"

#include "killsweep.h"

#include <poll.h>
#include <sched.h>

enum { NEW = 77, MANY = 6, ROOM = 65536, TRY_EVERY = 23 };

/* ---- messages ------------------------------------------------------------------------------------------------------------- */

static uint8_t *pattern(uint32_t number, uint32_t size)
{
	static uint8_t bytes[ROOM];

	for (uint32_t i = 0; i < size; i++)
		bytes[i] = (uint8_t)(number * 131 + i * 7 + (i >> 8));
	memcpy(bytes, &number, sizeof number);
	return bytes;
}

/* number_of ends the test unless data is a message, whole. */
static uint32_t number_of(const void *data, uint64_t size)
{
	uint32_t number;

	REQUIRE(size >= sizeof number && size <= ROOM);
	memcpy(&number, data, sizeof number);
	REQUIRE(memcmp(data, pattern(number, (uint32_t)size), size) == 0);
	return number;
}

/* ---- the child ------------------------------------------------------------------------------------------------------------- */

typedef struct control {
	uint32_t entered; /* 1: the operation has begun, 2: ended */
	int32_t status;
	uint32_t got;     /* the message that a get has returned */
	uint8_t out[ROOM];
	uint8_t in[ROOM];
	uint64_t sizes[16];
} control;

static control *ctl;
static pp__heap *heap;

static pid_t fork_member(void)
{
	pp__heap_before_fork();
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0)
		pp__heap_in_child();
	else
		pp__heap_in_parent();
	return pid;
}

typedef struct test {
	const char *name;
	int32_t (*op)(pp_queue queue);
	uint32_t size;    /* of the new message */
	uint32_t adds;    /* messages that op puts */
	uint32_t takes;   /* that it takes */
	uint32_t before;  /* messages in the queue, of size_before */
	uint32_t size_before;
	int lease;        /* what is taken comes back unless acknowledged */
	uint32_t leaks;   /* instructions at which a block may be lost: between the allocation and the store that links it */
	void (*prepare)(pp_queue queue);
	uint32_t maxsize;
	bool watched;     /* the survivor polls the queue's descriptor */
} test;

static const test *now;

static int32_t op_put(pp_queue queue)
{
	return pp_queue_put(queue, ctl->in, now->size, 0, 5000);
}

static int32_t op_put_many(pp_queue queue)
{
	size_t done;

	return pp_queue_put_many(queue, ctl->in, ctl->sizes, MANY, 0, 5000, &done);
}

static int32_t op_get(pp_queue queue)
{
	size_t size;
	const int32_t status = pp_queue_get(queue, ctl->out, ROOM, 5000, &size);

	if (status == PP_OK)
		memcpy(&ctl->got, ctl->out, sizeof ctl->got);
	return status;
}

static int32_t op_take(pp_queue queue)
{
	pp_message m;
	const int32_t status = pp_queue_take(queue, NULL, 0, 5000, &m);

	if (status == PP_OK)
		memcpy(&ctl->got, m.data, sizeof ctl->got);
	pp_message_free(&m);
	return status;
}

static int32_t op_lease_ack(pp_queue queue)
{
	pp_message m;
	int32_t status = pp_queue_lease(queue, 5000, &m);

	if (status == PP_OK) {
		memcpy(&ctl->got, m.data, sizeof ctl->got);
		status = pp_message_ack(&m);
	}
	return status;
}

static int32_t op_lease_back(pp_queue queue)
{
	pp_message m;
	const int32_t status = pp_queue_lease(queue, 5000, &m);

	if (status == PP_OK)
		pp_message_free(&m);
	return status;
}

static void put_one(pp_queue queue, uint32_t number, uint32_t size)
{
	REQUIRE_EQ(pp_queue_put(queue, pattern(number, size), size, 0, 5000), PP_OK);
}

static uint32_t get_one(pp_queue queue, int64_t timeout_ms)
{
	static uint8_t buf[ROOM];
	size_t size;
	const int32_t status = pp_queue_get(queue, buf, sizeof buf, timeout_ms, &size);

	if (status == PP_ERR_EMPTY)
		return 0;
	REQUIRE_EQ(status, PP_OK);
	return number_of(buf, size);
}

/* Leaves an emptied chunk in the queue. */
static void with_spare(pp_queue queue)
{
	for (uint32_t i = 0; i < 5; i++)
		put_one(queue, 1000 + i, 1500);
	for (uint32_t i = 0; i < 5; i++)
		REQUIRE_EQ(get_one(queue, 0), 1000 + i);
}

/* And the last one has no room. */
static void with_spare_full(pp_queue queue)
{
	with_spare(queue);
	put_one(queue, 1000, 11700);
	REQUIRE_EQ(get_one(queue, 0), 1000);
}

/* The head at the end of a chunk, and something in the next. */
static void at_the_end(pp_queue queue)
{
	for (uint32_t i = 0; i < 2; i++)
		put_one(queue, 1000 + i, 1990);
	for (uint32_t i = 0; i < 2; i++)
		REQUIRE_EQ(get_one(queue, 0), 1000 + i);
}

static void at_the_end_with_spare(pp_queue queue)
{
	with_spare(queue);
	for (uint32_t i = 0; i < 8; i++)
		put_one(queue, 1000 + i, 1900);
	for (uint32_t i = 0; i < 8; i++)
		REQUIRE_EQ(get_one(queue, 0), 1000 + i);
}

static void with_returned(pp_queue queue)
{
	pp_message m;

	put_one(queue, 1, now->size_before);
	REQUIRE_EQ(pp_queue_lease(queue, 0, &m), PP_OK);
	pp_message_free(&m);
}

static const test tests[] = {
	{.name = "first put", .op = op_put, .size = 100, .adds = 1, .leaks = 150},
	{.name = "put", .op = op_put, .size = 100, .adds = 1, .before = 2, .size_before = 60},
	{.name = "put that a descriptor waits for", .op = op_put, .size = 100, .adds = 1, .leaks = 150, .watched = true},
	{.name = "put into a bounded queue", .op = op_put, .size = 40, .adds = 1, .before = 2, .size_before = 60, .maxsize = 3},
	{.name = "put into a new chunk", .op = op_put, .size = 300, .adds = 1, .before = 2, .size_before = 1900, .leaks = 150},
	{.name = "put into the spare chunk", .op = op_put, .size = 300, .adds = 1, .prepare = with_spare_full, .leaks = 300},
	{.name = "put of many", .op = op_put_many, .size = 3000, .adds = MANY, .before = 1, .size_before = 60, .leaks = 600},
	{.name = "put of a large message", .op = op_put, .size = 40000, .adds = 1, .before = 1, .size_before = 60, .leaks = 300},
	{.name = "get", .op = op_get, .takes = 1, .before = 3, .size_before = 60},
	{.name = "get of the last", .op = op_get, .takes = 1, .before = 1, .size_before = 60},
	{.name = "get from the next chunk", .op = op_get, .takes = 1, .before = 2, .size_before = 1000, .prepare = at_the_end},
	{.name = "get that frees a chunk", .op = op_get, .takes = 1, .before = 4, .size_before = 1500, .prepare = at_the_end_with_spare},
	{.name = "get of a large message", .op = op_get, .takes = 1, .before = 2, .size_before = 40000, .leaks = 150},
	{.name = "take of a large message", .op = op_take, .takes = 1, .before = 1, .size_before = 40000, .leaks = 150},
	{.name = "lease and ack", .op = op_lease_ack, .takes = 1, .before = 2, .size_before = 60, .lease = 1, .leaks = 300},
	{.name = "lease and ack of a large message", .op = op_lease_ack, .takes = 1, .before = 2, .size_before = 40000, .lease = 1, .leaks = 150},
	{.name = "lease and giving back", .op = op_lease_back, .before = 2, .size_before = 60, .lease = 1, .leaks = 300},
	{.name = "get of a returned message", .op = op_get, .takes = 1, .before = 1, .size_before = 60, .lease = 2, .prepare = with_returned},
};

static bool readable(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	const int n = poll(&p, 1, ms);

	REQUIRE(n == 0 || (n == 1 && p.revents == POLLIN));
	return n == 1;
}

static pp_queue start(const test *t, pp__queue **q_out)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	pp_queue queue;

	now = t;
	options.maxsize = t->maxsize;
	REQUIRE_EQ(pp_queue_create(&options, &queue), PP_OK);
	pp__handle *const handle = pp__pin(queue, PP__KIND_QUEUE);
	*q_out = pp__at(heap, handle->off);
	pp__unpin(handle);
	if (t->prepare != NULL)
		t->prepare(queue);
	for (uint32_t i = t->prepare == with_returned; i < t->before; i++)
		put_one(queue, 1 + i, t->size_before);
	if (t->watched) {
		int32_t fd;
		REQUIRE_EQ(pp_queue_descriptor(queue, &fd), PP_OK);
		REQUIRE(!readable(fd, 0));
	}
	ctl->entered = ctl->got = 0;
	memcpy(ctl->in, pattern(NEW, t->size > 4 ? t->size : 4), t->size > 4 ? t->size : 4);
	for (uint32_t i = 0; i < MANY && t->op == op_put_many; i++) {
		ctl->sizes[i] = t->size;
		memcpy(ctl->in + i * t->size, pattern(NEW + i, t->size), t->size);
	}
	return queue;
}

/* begin starts a child that stops before the operation. */
static pid_t begin(pp_queue queue, bool traced)
{
	const pid_t child = fork_member();

	if (child == 0) {
		alarm(60);
		if (pp__join(heap) == 0 || (traced && ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0))
			_exit(1);
		/* A block of each size that will be asked for: slabs are claimed, memory is touched, symbols are bound. */
		static const uint32_t sizes[] = {100, 4096, 16384, 40000};
		for (int i = 0; i < 4; i++) {
			uint64_t off;
			const uint32_t tag = pp__tag(heap);
			if (pp__alloc(heap, sizes[i], tag, &off, NULL) != PP_OK || !pp__free(heap, off, tag))
				_exit(1);
		}
		if (traced)
			raise(SIGSTOP);
		__atomic_store_n(&ctl->entered, 1, __ATOMIC_SEQ_CST);
		const int32_t status = now->op(queue);
		ctl->status = status;
		__atomic_store_n(&ctl->entered, 2, __ATOMIC_SEQ_CST);
		if (traced)
			raise(SIGSTOP);
		_exit(status == PP_OK ? 0 : 2);
	}
	if (traced) {
		int how;
		REQUIRE_EQ(waitpid(child, &how, 0), child);
		REQUIRE(WIFSTOPPED(how) && WSTOPSIG(how) == SIGSTOP);
	}
	return child;
}

static uint32_t entered(void)
{
	return __atomic_load_n(&ctl->entered, __ATOMIC_SEQ_CST);
}

static const watcher watching = {.entered = entered};
static way the_way;

/* What the child had reached when it died. */
enum { P_BEFORE, P_LOCKED, P_LINKED, P_SLOT, P_OLD, P_CELL, P_COMMITTED, P_UNLOCKED, P_RETURNED, POINTS };
static const char *const point_names[POINTS] = {
	"before", "locked", "chunk linked", "next slot written", "old written", "cell", "committed, locked", "committed, unlocked", "taken by a cell"};

typedef struct state {
	uint64_t tail, head;
	bool put_locked, get_locked;
	uint64_t spare;
} state;

static state look(const pp__queue *q)
{
	return (state){pp__load64(&q->tail), pp__load64(&q->head), q->put_lock != 0, q->get_lock != 0, q->spare};
}

static uint32_t cell_states(const pp__queue *q, uint32_t *which)
{
	const view v = {.heap = heap, .q = (pp__queue *)q};
	uint32_t n = 0;

	for (pp__queue_walk w = pp__queue_first(&v); w.cell != NULL; pp__queue_next(&v, &w))
		if (pp__queue_cell_word_state(pp__queue_cell_load(w.cell)) != PP__QUEUE_CELL_FREE) {
			*which = pp__queue_cell_word_state(pp__queue_cell_load(w.cell));
			n++;
		}
	return n;
}

/* survive takes everything and goes on. before: the queue as it was at the start. Counts the point in points. */
static void survive(const test *t, pp_queue queue, pp__queue *q, const state *before, bool ended, uint32_t *points)
{
	const state s = look(q);
	const uint32_t put = pp__queue_position_items(s.tail) - pp__queue_position_items(before->tail), taken = pp__queue_position_items(s.head) - pp__queue_position_items(before->head);
	uint32_t cell = 0;
	const uint32_t cells = cell_states(q, &cell);
	const bool locked = s.put_locked || s.get_locked;
	uint32_t expect_from = 1, expect_to = t->before;
	int redelivered = -1; /* may or must message 1 come back? -1: it is not away */

	points[P_BEFORE] += !locked && put == 0 && taken == 0 && cells == 0 && !ended;
	points[P_LOCKED] += locked && put == 0 && taken == 0;
	points[P_COMMITTED] += locked && (put != 0 || taken != 0);
	points[P_UNLOCKED] += !locked && (put != 0 || taken != 0) && !ended;
	points[P_CELL] += cells != 0;
	points[P_OLD] += q->old != 0 && taken == 0;
	points[P_SLOT] += put == 0 && q->put_lock != 0 && q->tail_chunk[(pp__queue_position_crossings(s.tail) + 1) & 1] != 0;
	const uint64_t current = q->tail_chunk[pp__queue_position_crossings(s.tail) & 1];
	points[P_LINKED] += put == 0 && (current == 0 ? q->first : ((pp__queue_chunk *)pp__at(heap, pp__queue_ref_off(current)))->next) != 0;
	points[P_RETURNED] += t->lease == 2 && cell != PP__QUEUE_CELL_RETURNED && !ended;

	/* All or nothing. */
	REQUIRE(put == 0 || put == t->adds);
	REQUIRE(taken == 0 || taken == 1);
	REQUIRE(!ended || (ctl->status == PP_OK && put == t->adds));
	if (t->lease == 0) {
		REQUIRE(!ended || taken == t->takes);
		expect_from = 1 + taken;
	} else if (t->lease == 1 && taken == 1) {
		/* Away, and back as long as nobody has acknowledged it. */
		redelivered = cells == 1 && (cell == PP__QUEUE_CELL_LEASING || cell == PP__QUEUE_CELL_COPYING || cell == PP__QUEUE_CELL_LEASED || cell == PP__QUEUE_CELL_RETURNED);
		REQUIRE(redelivered || t->takes == 1);
		REQUIRE(!ended || redelivered == (t->takes == 0));
		expect_from = 2;
	} else if (t->lease == 2) {
		expect_from = cell == PP__QUEUE_CELL_RETURNED ? 1 : 2;
		REQUIRE(!ended || expect_from == 2);
	}
	/* What is there makes the descriptor readable, whether or not its putter has said so. */
	int32_t fd = -1;
	if (t->watched) {
		pp__handle *const handle = pp__pin(queue, PP__KIND_QUEUE);
		fd = handle->fd;
		pp__unpin(handle);
		REQUIRE(put == 0 || readable(fd, 20000));
	}
	bool back = false;
	uint32_t at = expect_from;
	const uint32_t total = expect_to - expect_from + 1 + put + (redelivered == 1);
	for (uint32_t i = 0; i < total; i++) {
		const uint32_t number = get_one(queue, 20000);
		if (redelivered == 1 && number == 1) {
			REQUIRE(!back);
			back = true;
		} else if (at <= expect_to) {
			REQUIRE_EQ(number, at);
			at++;
		} else {
			REQUIRE_EQ(number, NEW + (at - expect_to - 1));
			at++;
		}
	}
	REQUIRE(back == (redelivered == 1));
	REQUIRE_EQ(get_one(queue, 0), 0);
	REQUIRE(!t->watched || !readable(fd, 0));
	if (taken == 1 && ended && t->takes == 1)
		REQUIRE_EQ(ctl->got, 1);
	/* On it goes, over a few chunks, small and large. */
	const uint32_t more = t->maxsize == 0 ? 12 : t->maxsize;
	for (uint32_t i = 0; i < more; i++)
		put_one(queue, 200 + i, 50 + i * 400);
	for (uint32_t i = 0; i < more; i++)
		REQUIRE_EQ(get_one(queue, 0), 200 + i);
	pp_queue_state info;
	REQUIRE_EQ(pp_queue_info(queue, &info), PP_OK);
	REQUIRE_EQ(info.size, 0);
	REQUIRE_EQ(info.leased, 0);
	REQUIRE_EQ(pp_queue_free(queue), PP_OK);
}

/* kill_at kills a child after k instructions of the operation. */
static void kill_at(const test *t, uint32_t k, uint32_t *points)
{
	pp__queue *q;
	const pp_queue queue = start(t, &q);
	const state before = look(q);
	const pid_t child = begin(queue, true);

	const bool ended = !way_to(&the_way, &watching, child, k);
	way_end(child);
	survive(t, queue, q, &before, ended, points);
}

/* record notes the way of a child through the operation: of the second, since the first may find the heap's memory cold. */
static void record(const test *t)
{
	for (int i = 0; i < 2; i++) {
		pp__queue *q;
		const pp_queue queue = start(t, &q);
		const state before = look(q);
		const pid_t child = begin(queue, true);
		uint32_t points[POINTS];

		way_record(&the_way, &watching, child);
		way_end(child);
		survive(t, queue, q, &before, true, points);
	}
}

static void sweep_kills(const test *t)
{
	uint32_t points[POINTS] = {0}, killed = 0;

	record(t);
	kit_settle(heap);
	const kit_count at_first = kit_audit(heap);
	const uint32_t used = kit_used(&at_first), length = way_length(&the_way);
	for (uint32_t k = way_first(&the_way); k <= length; k = way_next(&the_way, k))
		kill_at(t, k, points), killed++;
	kit_settle(heap);
	const kit_count after = kit_audit(heap);
	const uint32_t lost = kit_used(&after) - used;
	printf("%s: %u instructions, killed %u times;", t->name, length, killed);
	for (int i = 0; i < POINTS; i++)
		if (points[i] != 0)
			printf(" %s %u,", point_names[i], points[i]);
	printf(" blocks lost %u; went another way: %u\n", lost, the_way.missed);
	fflush(stdout);
	REQUIRE(lost <= t->leaks);
	if (t->lease != 2) {
		REQUIRE(points[P_BEFORE] > 0 && points[P_LOCKED] > 0 && points[P_COMMITTED] > 0 && points[P_UNLOCKED] > 0);
	} else {
		REQUIRE(points[P_RETURNED] > 0);
	}
}

/* ---- others meanwhile ----------------------------------------------------------------------------------------------------------- */

/* A child that is stopped with the lock keeps it; who waits gets through when it is killed. */
static void contend(const test *t, uint32_t every)
{
	uint32_t refused = 0, waited = 0;

	record(t);
	for (uint32_t k = 0; k <= way_length(&the_way); k += every) {
		pp__queue *q;
		const pp_queue queue = start(t, &q);
		const pid_t child = begin(queue, true);
		way_to(&the_way, &watching, child, k);
		const bool locked = q->put_lock != 0 || q->get_lock != 0;
		uint32_t *const lock_word = t->adds != 0 ? &q->put_lock : &q->get_lock;
		size_t size;
		const int32_t status = t->adds != 0 ? pp_queue_put(queue, pattern(500, 10), 10, 0, PP_TRY)
		                                    : pp_queue_get(queue, ctl->out, ROOM, PP_TRY, &size);
		REQUIRE(locked ? status == PP_ERR_TIMEOUT : status == PP_OK || status == PP_ERR_EMPTY || status == PP_ERR_FULL);
		refused += status == PP_ERR_TIMEOUT;
		if (locked) {
			ctl->entered = 0;
			const pid_t waiter = begin(queue, false);
			WITHIN(10000, (__atomic_load_n(lock_word, __ATOMIC_SEQ_CST) & 0x80000000u) != 0);
			waited++;
			way_end(child);
			if (t->maxsize != 0) /* the dead may have taken the last place */
				get_one(queue, 20000);
			REQUIRE_EQ(kit_wait(waiter), 0);
			REQUIRE_EQ(*lock_word, 0);
		} else {
			way_end(child);
		}
		while (get_one(queue, 0) != 0)
			;
		REQUIRE_EQ(pp_queue_free(queue), PP_OK);
	}
	printf("%s, others meanwhile: refused at %u places, waited at %u\n", t->name, refused, waited);
	fflush(stdout);
	REQUIRE(refused > 0 && waited == refused);
}

/* ---- the end of a queue ---------------------------------------------------------------------------------------------------------- */

static int32_t op_free(pp_queue queue)
{
	return pp_queue_free(queue);
}

/* put_ref puts a message that ends in a reference to a queue. */
static void put_ref(pp_queue queue, pp_queue to, uint32_t size)
{
	static uint8_t message[ROOM];
	pp__ref ref;
	pp__handle *const handle = pp__pin(to, PP__KIND_QUEUE);

	REQUIRE(handle != NULL);
	REQUIRE_EQ(pp__ref_send(handle, &ref), PP_OK);
	pp__unpin(handle);
	memcpy(message + size - sizeof ref, &ref, sizeof ref);
	REQUIRE_EQ(pp_queue_put(queue, message, size, 0, 5000), PP_OK);
}

/* A process that dies while it destroys a queue leaves the rest to others: what the messages refer to is given back, once. */
static void sweep_free(void)
{
	the_way.coarse = 4; /* in `make test`, at each fourth instruction */
	static const test freeing = {.name = "free of a queue with references in it", .op = op_free, .leaks = 600}; /* between the end of an object and that of its block */
	static const uint32_t sizes[] = {sizeof(pp__ref), 40000, 200};
	enum { N = sizeof sizes / sizeof *sizes };
	uint32_t used = 0, lost = 0, killed = 0, over = 0, k = 0;

	for (int round = 0;; round++) {
		pp__queue *q;
		const pp_queue queue = start(&freeing, &q), kept = start(&freeing, &q);
		for (int i = 0; i < N; i++) {
			const pp_queue only = start(&freeing, &q); /* with a message, and no owner but the reference */
			put_one(only, 1, 100);
			put_ref(queue, only, sizes[i]);
			put_ref(queue, kept, sizes[i]);
			REQUIRE_EQ(pp_queue_free(only), PP_OK);
		}
		pp_queue_state info;
		pp__handle *const handle = pp__pin(kept, PP__KIND_QUEUE);
		pp__object *const object = pp__at(heap, handle->off);
		pp__unpin(handle);
		REQUIRE_EQ(__atomic_load_n(&object->refs, __ATOMIC_SEQ_CST), 1 + N);
		const pid_t child = begin(queue, true);
		REQUIRE_EQ(pp_queue_free(queue), PP_OK); /* the child has the last handle */
		if (round < 2) {
			way_record(&the_way, &watching, child);
		} else {
			(void)way_to(&the_way, &watching, child, k);
			killed++;
		}
		way_end(child);
		kit_settle(heap);
		const kit_count after = kit_audit(heap);
		/* Between the two steps of giving one back (heap.h, REFERENCES) a death keeps the object. */
		const uint32_t refs = __atomic_load_n(&object->refs, __ATOMIC_SEQ_CST);
		REQUIRE(refs == 1 || (refs == 2 && ++over <= N * 20));
		REQUIRE_EQ(pp_queue_info(kept, &info), PP_OK);
		put_one(kept, 5, 100);
		REQUIRE_EQ(get_one(kept, 0), 5);
		REQUIRE_EQ(pp_queue_free(kept), PP_OK);
		if (round == 1)
			used = kit_used(&after);
		lost = kit_used(&after) - used;
		if (round >= 1) {
			k = round == 1 ? way_first(&the_way) : way_next(&the_way, k);
			if (k > way_length(&the_way))
				break;
		}
	}
	printf("%s: %u instructions, killed %u times; kept %u times, blocks lost %u; went another way: %u\n", freeing.name, way_length(&the_way), killed, over, lost, the_way.missed);
	fflush(stdout);
	REQUIRE(lost <= freeing.leaks);
}

int main(int argc, char **argv)
{
	const uint32_t every = getenv("POLYPROC_SWEEP") == NULL ? TRY_EVERY : 1;

	way_bind(argv);
	cpu_set_t here; /* two processes that take turns are quickest on one CPU */
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	REQUIRE_EQ(sched_setaffinity(0, sizeof here, &here), 0);
	ctl = mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(ctl != MAP_FAILED);
	heap = pp__family_heap();
	REQUIRE(heap != NULL);
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
		if (argc < 2 || strcmp(argv[1], tests[i].name) == 0)
			sweep_kills(&tests[i]);
	if (argc < 2 || strcmp(argv[1], "free") == 0)
		sweep_free();
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
		if (argc < 2 && tests[i].lease != 2 && tests[i].before != 1)
			contend(&tests[i], every);
	return 0;
}
