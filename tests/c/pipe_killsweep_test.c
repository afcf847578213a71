/* pipe_killsweep_test.c - a process that dies at any instruction of pp_pipe_send or pp_pipe_recv leaves the pipe as it was before the call or as it is after it: no message that was sent is
 * lost, none comes twice, nobody hangs, blocks leak only where memory was being allocated, and the descriptor tells the truth once the survivor has called.
 *
 * A child is stopped before the operation, executes k instructions of it and is killed (killsweep.h).
 *
 * deadline: 300 s
 */
#define FIGURES_MS 3600000 /* the figures of the machine are read once, and not in each child */
#include "heapkit.h"

#include "../../capi/front/depot.c"
#include "../../capi/front/pipe.c"

#include "killsweep.h"

int32_t pp_cpu_count(void)
{
	return 1;
}

enum { NEW = 77, ROOM = 65536 };

static uint8_t *pattern(uint32_t number, uint32_t size)
{
	static uint8_t bytes[ROOM];

	for (uint32_t i = 0; i < size; i++)
		bytes[i] = (uint8_t)(number * 131 + i * 7 + (i >> 8));
	memcpy(bytes, &number, sizeof number);
	return bytes;
}

static uint32_t number_of(const void *data, uint64_t size)
{
	uint32_t number;

	REQUIRE(size >= sizeof number && size <= ROOM);
	memcpy(&number, data, sizeof number);
	REQUIRE(memcmp(data, pattern(number, (uint32_t)size), size) == 0);
	return number;
}

typedef struct control {
	uint32_t entered; /* 1: the operation has begun, 2: ended */
	int32_t status;
	uint32_t got;
	uint8_t out[ROOM];
	uint8_t in[ROOM];
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
	int32_t (*op)(pp_pipe from, pp_pipe to);
	uint32_t size;   /* of the new message */
	uint32_t sends, takes;
	uint32_t before; /* messages in the pipe, */
	uint32_t size_before;
	uint64_t at;     /* where in the ring the first begins */
	bool watched;
	uint32_t leaks;  /* instructions at which a block may be lost */
} test;

static const test *now;

static int32_t op_send(pp_pipe from, pp_pipe to)
{
	(void)from;
	return pp_pipe_send(to, ctl->in, now->size, 5000);
}

static int32_t op_recv(pp_pipe from, pp_pipe to)
{
	(void)to;
	const int64_t size = pp_pipe_recv(from, ctl->out, ROOM, 5000);
	if (size >= 0)
		memcpy(&ctl->got, ctl->out, sizeof ctl->got);
	return size >= 0 ? PP_OK : (int32_t)size;
}

static int32_t op_take(pp_pipe from, pp_pipe to)
{
	pp_pipe_message m;

	(void)to;
	const int32_t status = pp_pipe_take(from, 5000, &m);
	if (status == PP_OK)
		memcpy(&ctl->got, m.data, sizeof ctl->got);
	pp_pipe_message_free(&m);
	return status;
}

static const test tests[] = {
	{.name = "first send", .op = op_send, .size = 100, .sends = 1, .leaks = 400},
	{.name = "send", .op = op_send, .size = 100, .sends = 1, .before = 2, .size_before = 60},
	{.name = "send into an empty ring", .op = op_send, .size = 100, .sends = 1, .at = 4096},
	{.name = "send around the end", .op = op_send, .size = 8000, .sends = 1, .before = 1, .size_before = 60, .at = 60000},
	{.name = "send of a big message", .op = op_send, .size = 40000, .sends = 1, .before = 1, .size_before = 60, .leaks = 400},
	{.name = "send, watched", .op = op_send, .size = 100, .sends = 1, .at = 4096, .watched = true},
	{.name = "receive", .op = op_recv, .takes = 1, .before = 3, .size_before = 60},
	{.name = "receive the last", .op = op_recv, .takes = 1, .before = 1, .size_before = 60},
	{.name = "receive the last, watched", .op = op_recv, .takes = 1, .before = 1, .size_before = 60, .watched = true},
	{.name = "receive around the end", .op = op_recv, .takes = 1, .before = 3, .size_before = 8000, .at = 63000},
	{.name = "receive a big message", .op = op_recv, .takes = 1, .before = 2, .size_before = 40000},
	{.name = "take a big message", .op = op_take, .takes = 1, .before = 1, .size_before = 40000, .watched = true},
};

static bool readable(int fd)
{
	struct pollfd at = {.fd = fd, .events = POLLIN};

	return poll(&at, 1, 0) > 0 && (at.revents & POLLIN) != 0;
}

static void send_one(pp_pipe to, uint32_t number, uint32_t size)
{
	REQUIRE_EQ(pp_pipe_send(to, pattern(number, size), size, 20000), PP_OK);
}

static uint32_t recv_one(pp_pipe from, int64_t timeout_ms)
{
	static uint8_t buf[ROOM];
	const int64_t size = pp_pipe_recv(from, buf, sizeof buf, timeout_ms);

	if (size == PP_ERR_TIMEOUT)
		return 0;
	REQUIRE(size >= 0);
	return number_of(buf, (uint64_t)size);
}

static pp__pipe_way *start(const test *t, pp_pipe ends[2])
{
	now = t;
	REQUIRE_EQ(pp_pipe_create(0, ends), PP_OK);
	pp__handle *const handle = pp__pin(ends[0], PP__KIND_PIPE);
	pp__pipe_way *const way = &((pp__pipe *)pp__at(heap, handle->off))->way[1];
	int32_t fd;
	pp__unpin(handle);
	if (t->watched)
		REQUIRE_EQ(pp_pipe_descriptor(ends[0], &fd), PP_OK);
	for (uint64_t at = 0; at < t->at;) {
		const uint64_t size = t->at - at < 8008 ? t->at - at - 8 : 8000;
		send_one(ends[1], 1000, (uint32_t)size);
		REQUIRE_EQ(recv_one(ends[0], 0), 1000);
		at += size + 8;
	}
	for (uint32_t i = 0; i < t->before; i++)
		send_one(ends[1], 1 + i, t->size_before);
	ctl->entered = ctl->got = 0;
	memcpy(ctl->in, pattern(NEW, t->size > 4 ? t->size : 4), t->size > 4 ? t->size : 4);
	return way;
}

static uint32_t entered(void)
{
	return __atomic_load_n(&ctl->entered, __ATOMIC_SEQ_CST);
}

static pid_t begin_child(const pp_pipe ends[2])
{
	const pid_t child = fork_member();

	if (child == 0) {
		alarm(60);
		if (pp__join(heap) == 0 || ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
			_exit(1);
		/* Slabs are claimed, memory is touched, symbols are bound. */
		static const uint32_t sizes[] = {100, 40000};
		for (int i = 0; i < 2; i++) {
			uint64_t off;
			const uint32_t tag = pp__tag(heap);
			if (pp__alloc(heap, sizes[i], tag, &off, NULL) != PP_OK || !pp__free(heap, off, tag))
				_exit(1);
		}
		raise(SIGSTOP);
		__atomic_store_n(&ctl->entered, 1, __ATOMIC_SEQ_CST);
		const int32_t status = now->op(ends[0], ends[1]);
		ctl->status = status;
		__atomic_store_n(&ctl->entered, 2, __ATOMIC_SEQ_CST);
		raise(SIGSTOP);
		_exit(0);
	}
	int how;
	REQUIRE_EQ(waitpid(child, &how, 0), child);
	REQUIRE(WIFSTOPPED(how) && WSTOPSIG(how) == SIGSTOP);
	return child;
}

static const watcher watching = {.entered = entered};
static way the_way = {.coarse = 2};

/* What the child had reached when it died. */
enum { P_BEFORE, P_LOCKED, P_LEASE, P_COMMITTED, P_BELL, P_BYTES, P_UNLOCKED, POINTS };
static const char *const point_names[POINTS] = {"before", "locked", "leased", "committed, locked", "bell stored", "bytes written", "committed, unlocked"};

static uint32_t blocks_in_use(void)
{
	kit_settle(heap);
	const kit_count c = kit_audit(heap);
	return kit_used(&c);
}

/* note_way notes the way of a child through the operation: of the second, since the first may find the heap's memory cold. */
static void note_way(const test *t)
{
	for (int i = 0; i < 2; i++) {
		pp_pipe ends[2];
		start(t, ends);
		const pid_t child = begin_child(ends);
		way_record(&the_way, &watching, child);
		way_end(child);
		REQUIRE_EQ(pp_pipe_free(ends[1]), PP_OK);
		REQUIRE_EQ(pp_pipe_free(ends[0]), PP_OK);
	}
}

static void sweep(const test *t)
{
	const uint32_t used = blocks_in_use();
	uint32_t points[POINTS] = {0}, killed = 0;

	note_way(t);
	for (uint32_t k = way_first(&the_way); k <= way_length(&the_way); k = way_next(&the_way, k), killed++) {
		pp_pipe ends[2];
		pp__pipe_way *const way = start(t, ends);
		const uint64_t tail = way->tail, head = way->head;
		int32_t fd;
		int count;
		const pid_t child = begin_child(ends);
		const bool ended = !way_to(&the_way, &watching, child, k);
		const uint32_t sent = way->tail != tail, taken = way->head != head;
		const bool locked = way->send_lock != 0 || way->recv_lock != 0;
		points[P_BEFORE] += !locked && !sent && !taken && !ended;
		points[P_LOCKED] += locked && !sent && !taken;
		points[P_COMMITTED] += locked && (sent || taken);
		points[P_UNLOCKED] += !locked && (sent || taken) && !ended;
		for (unsigned i = 0; i < PP__PIPE_LEASES; i++)
			points[P_LEASE] += way->leases[i].owner != 0;
		pp__handle *const handle = pp__pin(ends[0], PP__KIND_PIPE);
		const int raw = handle->fd;
		pp__unpin(handle);
		REQUIRE_EQ(ioctl(raw, FIONREAD, &count), 0);
		if (t->sends && sent && way->send_lock != 0) {
			points[P_BELL] += way->bell != 0 && count == 0;
			points[P_BYTES] += way->bell != 0 && count != 0;
		}
		way_end(child);
		/* All or nothing, and in order; then it goes on. */
		REQUIRE(!ended || (ctl->status == PP_OK && sent == t->sends && taken == t->takes));
		if (ended && t->takes)
			REQUIRE_EQ(ctl->got, 1);
		send_one(ends[1], 500, 60);
		REQUIRE(readable(raw)); /* whatever the dead has left undone, who sends next does */
		for (uint32_t i = 1 + taken; i <= t->before; i++)
			REQUIRE_EQ(recv_one(ends[0], 20000), i);
		if (sent)
			REQUIRE_EQ(recv_one(ends[0], 20000), NEW);
		REQUIRE_EQ(recv_one(ends[0], 20000), 500);
		REQUIRE_EQ(recv_one(ends[0], 0), 0);
		REQUIRE_EQ(pp_pipe_descriptor(ends[0], &fd), PP_OK);
		if (t->watched && readable(fd)) /* bytes too many of the dead: the next call that waits takes them away */
			REQUIRE_EQ(pp_pipe_poll(ends[0], 1, NULL), PP_ERR_TIMEOUT);
		REQUIRE(!readable(fd));
		send_one(ends[1], 501, 60);
		REQUIRE(readable(fd));
		REQUIRE_EQ(recv_one(ends[0], 0), 501);
		REQUIRE(!readable(fd));
		REQUIRE_EQ(pp_pipe_free(ends[1]), PP_OK);
		REQUIRE_EQ(pp_pipe_poll(ends[0], 0, NULL), PP_ERR_EOF);
		REQUIRE_EQ(pp_pipe_free(ends[0]), PP_OK);
	}
	const uint32_t left = blocks_in_use(), leaked = left - used;
	REQUIRE(left >= used && leaked <= t->leaks);
	printf("%-28s %u instructions, killed %u times, went another way: %u; blocks lost at %u;", t->name, way_length(&the_way), killed, the_way.missed, leaked);
	for (int i = 0; i < POINTS; i++)
		printf(" %s %u%s", point_names[i], points[i], i + 1 < POINTS ? "," : "\n");
	fflush(stdout);
	REQUIRE(points[P_BEFORE] > 0 && points[P_LOCKED] > 0 && points[P_COMMITTED] > 0 && points[P_UNLOCKED] > 0);
	if (t->sends && t->watched)
		REQUIRE(points[P_BELL] > 0 && points[P_BYTES] > 0);
	if (t->sends && t->at == 0 && t->before == 0)
		REQUIRE(points[P_BELL] > 0 && points[P_BYTES] > 0);
	if (t->takes && t->size_before > PP__PIPE_INLINE_MOST)
		REQUIRE(points[P_LEASE] > 0);
}

int main(int argc, char **argv)
{
	(void)argc;
	way_bind(argv);
	ctl = mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(ctl != MAP_FAILED);
	heap = pp__family_heap();
	REQUIRE(heap != NULL);
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
		sweep(&tests[i]);
	return 0;
}
