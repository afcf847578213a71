/* lane_test.c - the worker's end of a lane, driven by a parent that this test plays itself, by lane.h. The library's engine is
 * not loaded. Each worker is a forked child that calls pp_worker_attach.
 *
 * deadline: 120 s
 * valgrind: yes
 */
#include "require.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>

#include "../../capi/front/ring.c"

int32_t pp__fail(int32_t status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	return status;
}

/* ---- the parent's side ------------------------------------------------------------------------------------------- */

enum { CAP = 64 << 10, LANES = 2, LANE = 1, GENERATION = 7 };
#define TASK_SIZE ((uint64_t)64 << 20)
static uint64_t result_size = (uint64_t)64 << 20;

static struct {
	int fd;
	uint8_t *file; /* all of it: it is sparse */
	size_t size;
	pp__board *board;
	pp__lane *lane;
	pp__ring tasks, results;
	pid_t worker;
	uint64_t number; /* of the last task */
} p = {.fd = -1};

static void open_pool(void)
{
	if (p.fd >= 0) {
		munmap(p.file, p.size);
		close(p.fd);
	}
	memset(&p, 0, sizeof p);
	const uint64_t lane_size = PP__LANE_HEAD + 2 * CAP;
	const uint64_t task_off = (PP__BOARD_SIZE + LANES * lane_size + 65535) / 65536 * 65536;
	p.size = task_off + TASK_SIZE + LANES * result_size;
	p.fd = memfd_create("lane_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	REQUIRE(p.fd >= 0);
	REQUIRE_EQ(ftruncate(p.fd, (off_t)p.size), 0);
	REQUIRE_EQ(fcntl(p.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	p.file = mmap(NULL, p.size, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
	REQUIRE(p.file != MAP_FAILED);
	p.board = (pp__board *)(void *)p.file;
	p.lane = (pp__lane *)(void *)(p.file + PP__BOARD_SIZE + LANE * lane_size);
	p.board->abi = PP__ABI;
	p.board->lanes = LANES;
	p.board->lane_off = PP__BOARD_SIZE;
	p.board->lane_size = lane_size;
	p.board->ring_cap = CAP;
	p.board->task_off = task_off;
	p.board->task_size = TASK_SIZE;
	p.board->result_off = task_off + TASK_SIZE;
	p.board->result_size = result_size;
	p.board->parent_pid = (int32_t)getpid();
	p.board->magic = PP__MAGIC;
	p.lane->generation = GENERATION;
	p.lane->state = PP__L_OPEN;
	uint8_t *const data = (uint8_t *)p.lane + PP__LANE_HEAD;
	REQUIRE_EQ(pp__ring_producer(&p.tasks, &p.lane->task_tail, &p.lane->task_head, data, CAP), PP_OK);
	REQUIRE_EQ(pp__ring_consumer(&p.results, &p.lane->result_tail, &p.lane->result_head, data + CAP, CAP), PP_OK);
}

static void ring_bell(pp__bell *bell)
{
	if (__atomic_exchange_n(&bell->waiters, 0, __ATOMIC_SEQ_CST) != 0) {
		__atomic_fetch_add(&bell->seq, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_futex, &bell->seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	}
}

/* sleep_on waits for a ring of the board's back bell, if the condition of the caller does not hold yet; at most a while. */
static void sleep_on(pp__bell *bell, uint32_t seq)
{
	syscall(SYS_futex, &bell->seq, FUTEX_WAIT, seq, &(struct timespec){0, 100000000}, NULL, 0);
}

/* The bytes of task or result number i. */
static void fill(uint8_t *to, uint64_t seed, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = (uint8_t)(seed * 31 + i * 7 + (i >> 8));
}

static int filled(const uint8_t *at, uint64_t seed, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (at[i] != (uint8_t)(seed * 31 + i * 7 + (i >> 8)))
			return 0;
	return 1;
}

/* put_task writes a task without publishing it; NULL: the ring is full. bulk is the file offset of a block, or 0. */
static pp__task_head *put_task(uint64_t bulk, size_t size)
{
	uint8_t *payload;
	const size_t len = sizeof(pp__task_head) + (bulk != 0 ? sizeof(pp__bulk_ref) : size);
	const int32_t status = pp__ring_reserve(&p.tasks, len, &payload);

	if (status == PP_ERR_TIMEOUT)
		return NULL;
	REQUIRE_EQ(status, PP_OK);
	pp__task_head *head = (pp__task_head *)(void *)payload;
	*head = (pp__task_head){.number = ++p.number, .state = PP__T_READY};
	if (bulk != 0) {
		const pp__bulk_ref ref = {.off = bulk, .size = size};
		memcpy(payload + sizeof *head, &ref, sizeof ref);
		fill(p.file + bulk, p.number, size);
	} else {
		fill(payload + sizeof *head, p.number, size);
	}
	pp__ring_commit(&p.tasks, payload, PP__TASK, bulk != 0 ? PP__BULK : 0, (uint32_t)len);
	return head;
}

static void send_task(uint64_t bulk, size_t size)
{
	REQUIRE(put_task(bulk, size) != NULL);
	ring_bell(&p.lane->task_bell);
}

static void close_lane(void)
{
	__atomic_store_n(&p.lane->state, PP__L_CLOSING, __ATOMIC_SEQ_CST);
	ring_bell(&p.lane->task_bell);
}

/* peek_result waits for a record from the worker. */
static void peek_result(pp__record *record)
{
	const int64_t until = now_ms() + 20000;

	for (;;) {
		__atomic_store_n(&p.board->back.waiters, 1, __ATOMIC_SEQ_CST);
		const uint32_t seq = __atomic_load_n(&p.board->back.seq, __ATOMIC_SEQ_CST);
		const int32_t status = pp__ring_peek(&p.results, record);
		if (status == PP_OK)
			return;
		REQUIRE_EQ(status, PP_ERR_TIMEOUT);
		REQUIRE(now_ms() < until);
		sleep_on(&p.board->back, seq);
	}
}

static void release_result(const pp__record *record)
{
	pp__ring_release(&p.results, record->end);
	ring_bell(&p.lane->space_bell);
}

/* expect takes result number, which echoes size bytes of its task, and gives its block back. */
static void expect(uint64_t number, size_t size)
{
	pp__record record;
	pp__result_head head;
	pp__bulk_ref ref = {0};

	peek_result(&record);
	REQUIRE_EQ(record.kind, PP__RESULT);
	REQUIRE((__atomic_load_n(&p.board->ready[0], __ATOMIC_SEQ_CST) & 1 << LANE) != 0);
	memcpy(&head, record.payload, sizeof head);
	REQUIRE_EQ(head.number, number);
	REQUIRE_EQ(head.status, PP_OK);
	REQUIRE_EQ(head.code, (int32_t)number);
	const uint8_t *data = record.payload + sizeof head;
	if (record.flags & PP__BULK) {
		REQUIRE_EQ(record.len, sizeof head + sizeof ref);
		memcpy(&ref, data, sizeof ref);
		REQUIRE(ref.slot < PP__SLOTS && ref.off >= p.board->result_off + LANE * result_size && ref.size <= result_size);
		REQUIRE(ref.off + ref.size <= p.board->result_off + (LANE + 1) * result_size);
		REQUIRE_EQ(ref.size, size);
		REQUIRE_EQ(p.lane->slots[ref.slot], 1);
		data = p.file + ref.off;
	} else {
		REQUIRE_EQ(record.len, sizeof head + size);
	}
	REQUIRE(filled(data, number, size));
	if (record.flags & PP__BULK)
		__atomic_store_n(&p.lane->slots[ref.slot], 0, __ATOMIC_SEQ_CST);
	release_result(&record);
}

static void expect_ready(void)
{
	pp__record record;

	peek_result(&record);
	REQUIRE_EQ(record.kind, PP__READY);
	release_result(&record);
}

/* ---- the worker's side ---------------------------------------------------------------------------------------------- */

static pp_worker worker = {.size = sizeof worker};

/* attach makes this process, a child of the test, a worker. */
static int32_t attach(void)
{
	char text[100];

	snprintf(text, sizeof text, "%d,%d,%d,%d", p.fd, LANE, GENERATION, (int)getppid());
	setenv("POLYPROC_WORKER", text, 1);
	const int32_t status = pp_worker_attach(&worker);
	REQUIRE(getenv("POLYPROC_WORKER") == NULL);
	return status;
}

/* echo gives every task's bytes back, by done and next or by step; ends when the lane is closed. */
static void echo_with(int steps)
{
	pp_task task;

	alarm(30);
	REQUIRE_STATUS(attach(), PP_OK);
	REQUIRE_STATUS(pp_worker_ready(PP_OK, NULL, 0), PP_OK);
	int32_t status = pp_worker_next(-1, &task);
	while (status != PP_ERR_CLOSED) {
		if (status == PP_ERR_TIMEOUT) {
			status = pp_worker_next(-1, &task);
			continue;
		}
		REQUIRE_STATUS(status, PP_OK);
		if (steps) {
			status = pp_worker_step(PP_OK, (int32_t)task.number, task.data, task.size, &task);
		} else {
			REQUIRE_STATUS(pp_worker_done(PP_OK, (int32_t)task.number, task.data, task.size), PP_OK);
			status = pp_worker_next(-1, &task);
		}
	}
}

static void echo(void)
{
	echo_with(0);
}

static void echo_steps(void)
{
	echo_with(1);
}

static void start(void (*body)(void))
{
	p.worker = fork();
	REQUIRE(p.worker >= 0);
	if (p.worker == 0) {
		body();
		_exit(0);
	}
}

/* finish waits for the worker's end, 20 s at most. */
static int finish(void)
{
	int status;
	pid_t ended = 0;

	WITHIN(20000, (ended = waitpid(p.worker, &status, WNOHANG)) != 0);
	REQUIRE_EQ(ended, p.worker);
	return status;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

/* Tasks of all sizes that fit into the ring, so many that both rings wrap often. */
static void test_inline(void (*body)(void))
{
	uint64_t random = 12345, taken = 0;
	size_t sizes[4096];
	const unsigned tasks = 3000;

	open_pool();
	start(body);
	expect_ready();
	while (taken < tasks) {
		while (p.number < tasks) {
			size_t size = next_random(&random) % 4 == 0 ? next_random(&random) % (CAP / 2 - 56 + 1) : next_random(&random) % 300;
			if (p.number % 100 == 0)
				size = CAP / 2 - 8 - sizeof(pp__task_head); /* the largest */
			if (put_task(0, size) == NULL)
				break;
			sizes[p.number] = size;
		}
		ring_bell(&p.lane->task_bell);
		taken++;
		expect(taken, sizes[taken]);
	}
	close_lane();
	REQUIRE_EQ(finish(), 0);
	/* The worker gives the space of every task back. */
	REQUIRE_EQ(p.lane->task_head, p.lane->task_tail);
}

/* Tasks and results in blocks. */
static void test_bulk(void)
{
	static const size_t sizes[] = {CAP / 2, 70000, 128 << 10, (128 << 10) + 1, 1 << 20, 3000001, 16 << 20, 1};
	const unsigned count = sizeof sizes / sizeof *sizes;

	open_pool();
	start(echo);
	expect_ready();
	for (unsigned i = 0; i < 5 * count; i++) {
		const size_t size = sizes[i % count];
		send_task(p.board->task_off + (i % 2) * (TASK_SIZE / 2), size);
		expect(p.number, size);
	}
	close_lane();
	REQUIRE_EQ(finish(), 0);
}

/* A small result arena: the worker waits for blocks to come back, and makes do when sizes change. */
static void test_few_blocks(void)
{
	const uint64_t before = result_size;

	result_size = 1 << 20;
	open_pool();
	start(echo);
	expect_ready();
	for (unsigned lap = 0; lap < 3; lap++) {
		/* Eight blocks of 128 KiB are all there is. */
		const uint64_t first = p.number + 1;
		for (unsigned i = 0; i < 20; i++)
			send_task(p.board->task_off + (uint64_t)i * (128 << 10), 100000);
		WITHIN(10000, __atomic_load_n(&p.lane->space_bell.waiters, __ATOMIC_SEQ_CST) != 0);
		for (unsigned i = 0; i < 20; i++)
			expect(first + i, 100000);
		/* One that needs all of the arena. */
		send_task(p.board->task_off, 1 << 20);
		expect(p.number, 1 << 20);
	}
	close_lane();
	REQUIRE_EQ(finish(), 0);
	result_size = before;
}

/* The parent reads nothing: the worker waits when the result ring is full, and loses nothing. */
static void test_full(void)
{
	uint64_t taken = 0;

	open_pool();
	start(echo_steps);
	expect_ready();
	for (unsigned lap = 0; lap < 4; lap++) {
		while (__atomic_load_n(&p.lane->space_bell.waiters, __ATOMIC_SEQ_CST) == 0) {
			if (put_task(0, 5000) != NULL)
				ring_bell(&p.lane->task_bell);
			else
				WITHIN(10000, __atomic_load_n(&p.lane->space_bell.waiters, __ATOMIC_SEQ_CST) != 0 ||
				                  *p.tasks.head != p.tasks.seen);
		}
		/* A record of 5,032 bytes and what is lost at the end of the ring did not fit any more. */
		REQUIRE(*p.results.tail - p.results.pos > CAP - 2 * 5032);
		while (taken < p.number)
			expect(++taken, 5000);
	}
	close_lane();
	REQUIRE_EQ(finish(), 0);
}

/* What is in the ring when the lane is closed is done before the worker ends. */
static void test_closing(void)
{
	open_pool();
	for (int i = 0; i < 10; i++)
		send_task(0, 100);
	close_lane();
	start(echo);
	expect_ready();
	for (uint64_t i = 1; i <= 10; i++)
		expect(i, 100);
	REQUIRE_EQ(finish(), 0);
	/* And one that waits is woken. */
	open_pool();
	start(echo);
	expect_ready();
	WITHIN(10000, __atomic_load_n(&p.lane->task_bell.waiters, __ATOMIC_SEQ_CST) != 0);
	const int64_t began = now_ms();
	close_lane();
	REQUIRE_EQ(finish(), 0);
	REQUIRE(now_ms() - began < 5000);
}

static void test_revoked(void)
{
	open_pool();
	for (int i = 1; i <= 30; i++) {
		pp__task_head *const head = put_task(0, (size_t)i * 10);
		uint32_t state = PP__T_READY;
		REQUIRE(head != NULL);
		if (i % 3 != 0) /* the first and the last as well */
			REQUIRE(i == 30 || __atomic_compare_exchange_n(&head->state, &state, PP__T_REVOKED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
	}
	start(echo_steps);
	expect_ready();
	for (uint64_t i = 3; i <= 30; i += 3)
		expect(i, i * 10);
	/* Nothing but revoked tasks: the parent hears that there is room again. */
	WITHIN(10000, __atomic_load_n(&p.lane->task_bell.waiters, __ATOMIC_SEQ_CST) != 0);
	__atomic_store_n(&p.board->ready[0], 0, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 3; i++)
		put_task(0, 10)->state = PP__T_REVOKED;
	ring_bell(&p.lane->task_bell);
	WITHIN(10000, __atomic_load_n(&p.board->ready[0], __ATOMIC_SEQ_CST) != 0 || *p.tasks.head == *p.tasks.tail);
	WITHIN(10000, *p.tasks.head == *p.tasks.tail);
	close_lane();
	REQUIRE_EQ(finish(), 0);
}

static void misuse(void)
{
	pp_task task;
	pp_worker small = {.size = 8};

	alarm(30);
	unsetenv("POLYPROC_WORKER");
	REQUIRE_EQ(pp_worker_pending(), 0);
	REQUIRE_STATUS(pp_worker_attach(&worker), PP_ERR_STATE);
	REQUIRE(strlen(pp_last_error()) > 0);
	REQUIRE_STATUS(pp_worker_next(0, &task), PP_ERR_STATE);
	REQUIRE_STATUS(pp_worker_done(PP_OK, 0, NULL, 0), PP_ERR_STATE);
	REQUIRE_STATUS(pp_worker_ready(PP_OK, NULL, 0), PP_ERR_STATE);
	static const char *const nonsense[] = {"", "1", "3,1,7", "-3,1,7,1", "3,1,7,1,", "x,1,7,1", "3,1,7,99999999999999999999", "3, 1,7,1"};
	for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
		setenv("POLYPROC_WORKER", nonsense[i], 1);
		REQUIRE_EQ(pp_worker_pending(), 0);
		REQUIRE_STATUS(pp_worker_attach(&worker), PP_ERR_STATE);
	}
	/* A variable that a living worker's program has left to the programs that it starts. */
	char text[100];
	snprintf(text, sizeof text, "%d,%d,%d,%d", p.fd, LANE, GENERATION, (int)getpid());
	setenv("POLYPROC_WORKER", text, 1);
	REQUIRE_EQ(pp_worker_pending(), 0);
	snprintf(text, sizeof text, "%d,%d,%d,%d", p.fd, LANE, GENERATION, (int)getppid());
	setenv("POLYPROC_WORKER", text, 1);
	REQUIRE_EQ(pp_worker_pending(), 1);
	REQUIRE_STATUS(pp_worker_attach(NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_worker_attach(&small), PP_ERR_INVALID);
	REQUIRE_EQ(pp_worker_pending(), 1);
	REQUIRE_STATUS(attach(), PP_OK);
	REQUIRE_EQ(pp_worker_pending(), 0);
	REQUIRE_EQ(worker.lane, LANE);
	REQUIRE_EQ(worker.parent_pid, getppid());
	REQUIRE_EQ(worker.init_arg_size, 5);
	REQUIRE(memcmp(worker.init_arg, "hello", 5) == 0);
	REQUIRE_EQ(worker.ring_size, CAP);
	REQUIRE((fcntl(p.fd, F_GETFD) & FD_CLOEXEC) != 0);
	REQUIRE_STATUS(pp_worker_attach(&worker), PP_ERR_STATE);
	REQUIRE_STATUS(pp_worker_ready(PP_OK, NULL, 3), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_worker_next(0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_worker_done(PP_OK, 0, NULL, 0), PP_ERR_STATE);
	REQUIRE_STATUS(pp_worker_next(0, &task), PP_ERR_TIMEOUT);
	const int64_t began = now_ms();
	REQUIRE_STATUS(pp_worker_next(60, &task), PP_ERR_TIMEOUT);
	REQUIRE(now_ms() - began >= 59);
	REQUIRE_STATUS(pp_watch_parent(), PP_OK);
	REQUIRE_STATUS(pp_worker_ready(PP_OK, NULL, 0), PP_OK);
	REQUIRE_STATUS(pp_worker_next(INT64_MAX, &task), PP_OK);
	REQUIRE_STATUS(pp_worker_next(0, &task), PP_ERR_STATE);
	REQUIRE_STATUS(pp_worker_done(PP_OK, 0, NULL, 7), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_worker_done(PP_ERR_NOMEM, 0, NULL, 0), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_worker_step(PP_OK, 0, NULL, 0, NULL), PP_ERR_INVALID);
	/* More than the worker's part of the memory can hold: nothing is sent, and something smaller can be. */
	void *const big = mmap(NULL, result_size + 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	REQUIRE(big != MAP_FAILED);
	REQUIRE_STATUS(pp_worker_done(PP_OK, 0, big, result_size + 1), PP_ERR_NOMEM);
	REQUIRE_STATUS(pp_worker_step(PP_OK, 0, big, SIZE_MAX, &task), PP_ERR_NOMEM);
	/* The file has its size: a limit on new files is no matter, and no signal. */
	REQUIRE_EQ(setrlimit(RLIMIT_FSIZE, &(struct rlimit){4096, 4096}), 0);
	/* A child of a worker is none. */
	const pid_t child = fork();
	if (child == 0) {
		REQUIRE_STATUS(pp_worker_done(PP_OK, 0, NULL, 0), PP_ERR_STATE);
		REQUIRE_STATUS(pp_worker_next(0, &task), PP_ERR_STATE);
		REQUIRE_STATUS(pp_worker_attach(&worker), PP_ERR_STATE);
		REQUIRE_STATUS(pp_watch_parent(), PP_ERR_STATE);
		_exit(0);
	}
	int status;
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 0);
	/* The parent closes the lane when it has this. */
	const int32_t last = pp_worker_step(PP_ERR_TASK, (int32_t)task.number, big, result_size, &task);
	REQUIRE(last == PP_ERR_TIMEOUT || last == PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_worker_next(10000, &task), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_worker_next(0, &task), PP_ERR_CLOSED);
}

/* Wrong calls get an error each, and change nothing. */
static void test_misuse(void)
{
	pp__record record;
	pp__result_head head;
	pp__bulk_ref ref;

	open_pool();
	p.board->init_off = p.board->task_off + 65536;
	p.board->init_size = 5;
	memcpy(p.file + p.board->init_off, "hello", 5);
	start(misuse);
	expect_ready();
	send_task(0, 10);
	peek_result(&record);
	memcpy(&head, record.payload, sizeof head);
	memcpy(&ref, record.payload + sizeof head, sizeof ref);
	REQUIRE_EQ(record.flags, PP__BULK);
	REQUIRE_EQ(head.status, PP_ERR_TASK);
	REQUIRE_EQ(head.code, 1);
	REQUIRE_EQ(ref.size, result_size);
	release_result(&record);
	close_lane();
	REQUIRE_EQ(finish(), 0);
}

static void fail_init(void)
{
	char *const text = malloc(200000);

	alarm(30);
	REQUIRE(text != NULL);
	memset(text, 'x', 200000);
	REQUIRE_STATUS(attach(), PP_OK);
	REQUIRE_STATUS(pp_worker_ready(PP_ERR_INIT, text, 200000), PP_OK);
	REQUIRE_STATUS(pp_worker_ready(PP_ERR_INIT, "no", 2), PP_OK);
	free(text);
}

static void test_init_failed(void)
{
	pp__record record;
	pp__bulk_ref ref;

	open_pool();
	start(fail_init);
	peek_result(&record);
	REQUIRE_EQ(record.kind, PP__INIT_FAILED);
	REQUIRE_EQ(record.flags, PP__BULK);
	memcpy(&ref, record.payload, sizeof ref);
	REQUIRE_EQ(ref.size, 200000);
	REQUIRE_EQ(p.file[ref.off + 199999], 'x');
	release_result(&record);
	peek_result(&record);
	REQUIRE_EQ(record.kind, PP__INIT_FAILED);
	REQUIRE_EQ(record.len, 2);
	REQUIRE(memcmp(record.payload, "no", 2) == 0);
	release_result(&record);
	REQUIRE_EQ(finish(), 0);
}

static void on_signal(int number)
{
	(void)number;
}

static void interrupted(void)
{
	pp_task task;
	struct sigaction act = {.sa_handler = on_signal};

	alarm(30);
	sigaction(SIGUSR1, &act, NULL);
	REQUIRE_STATUS(attach(), PP_OK);
	REQUIRE_STATUS(pp_worker_next(-1, &task), PP_ERR_INTERRUPTED);
	/* It may be called again. */
	while (pp_worker_next(0, &task) != PP_ERR_CLOSED)
		;
}

/* A signal handler makes pp_worker_next return. */
static void test_interrupted(void)
{
	int status;
	pid_t ended = 0;

	open_pool();
	start(interrupted);
	WITHIN(10000, __atomic_load_n(&p.lane->task_bell.waiters, __ATOMIC_SEQ_CST) != 0);
	/* One that comes between the last look and the sleep interrupts nothing, hence again and again. */
	WITHIN(10000, kill(p.worker, SIGUSR1) == 0 && __atomic_load_n(&p.lane->task_bell.waiters, __ATOMIC_SEQ_CST) == 0);
	close_lane();
	WITHIN(10000, (ended = waitpid(p.worker, &status, WNOHANG)) != 0);
	REQUIRE_EQ(ended, p.worker);
	REQUIRE_EQ(status, 0);
}

/* A worker dies within a second of its parent, waiting or busy. */
static void test_parent_dies(int busy)
{
	int ends[2], status;
	pid_t grandchild;

	REQUIRE_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	REQUIRE_EQ(pipe(ends), 0);
	const pid_t parent = fork();
	REQUIRE(parent >= 0);
	if (parent == 0) {
		p.fd = -1;
		open_pool();
		p.worker = fork();
		if (p.worker == 0) {
			REQUIRE_STATUS(attach(), PP_OK);
			REQUIRE_STATUS(pp_worker_ready(PP_OK, NULL, 0), PP_OK);
			pp_task task;
			if (busy)
				for (volatile int i = 1; i; i = 1)
					;
			pp_worker_next(-1, &task);
			_exit(3);
		}
		expect_ready();
		REQUIRE_EQ(write(ends[1], &p.worker, sizeof p.worker), sizeof p.worker);
		kill(getpid(), SIGKILL);
	}
	REQUIRE_EQ(read(ends[0], &grandchild, sizeof grandchild), sizeof grandchild);
	REQUIRE_EQ(waitpid(parent, &status, 0), parent);
	const int64_t died = now_ms();
	pid_t ended = 0;
	WITHIN(20000, (ended = waitpid(grandchild, &status, WNOHANG)) != 0); /* valgrind runs one thread at a time */
	REQUIRE_EQ(ended, grandchild);
	REQUIRE(status == SIGKILL || status == (128 + SIGKILL) << 8); /* the latter under valgrind */
	printf("worker gone %lld ms after its parent\n", (long long)(now_ms() - died));
	close(ends[0]);
	close(ends[1]);
	/* One that comes too late is told so, and does not start. */
	open_pool();
	p.board->parent_pid = (int32_t)parent;
	p.worker = fork();
	if (p.worker == 0) {
		char text[100];
		snprintf(text, sizeof text, "%d,%d,%d,%d", p.fd, LANE, GENERATION, (int)parent);
		setenv("POLYPROC_WORKER", text, 1);
		REQUIRE_STATUS(pp_worker_attach(&worker), PP_ERR_STATE);
		_exit(0);
	}
	REQUIRE_EQ(finish(), 0);
}

/* A worker that takes what it gets, whatever that is, and must end by itself. */
static void take_anything(void)
{
	pp_task task;

	if (freopen("/dev/null", "w", stderr) == NULL || attach() != PP_OK)
		_exit(0);
	(void)pp_worker_ready(PP_OK, NULL, 0);
	for (int i = 0; i < 200; i++) {
		const int32_t status = pp_worker_next(2, &task);
		if (status == PP_ERR_TIMEOUT)
			continue;
		if (status != PP_OK)
			break;
		/* Every byte of it can be read. */
		volatile uint8_t sum = 0;
		for (uint64_t k = 0; k < task.size; k += 4096)
			sum = (uint8_t)(sum + ((const uint8_t *)task.data)[k]);
		if (pp_worker_done(PP_OK, 0, task.data, task.size) != PP_OK)
			(void)pp_worker_done(PP_ERR_TASK, 1, NULL, 0);
	}
	_exit(0);
}

/* spoil puts nonsense into shared memory: random numbers, or what is almost right. */
static void spoil(uint64_t *random, int board_too)
{
	const uint64_t r = next_random(random), v = next_random(random);
	const uint64_t nasty[] = {0, 1, 7, 8, 64, CAP / 2, CAP - 8, CAP, CAP + 8, 2 * CAP, UINT32_MAX, UINT64_MAX, UINT64_MAX - 7, v, v & 0xffff, v & ~7u};
	const uint64_t value = nasty[v / 65536 % (sizeof nasty / sizeof *nasty)];
	uint8_t *const ring = (uint8_t *)p.lane + PP__LANE_HEAD;

	switch (r % (board_too ? 9 : 7)) {
	case 0:
		__atomic_store_n(&p.lane->task_tail, value, __ATOMIC_SEQ_CST);
		break;
	case 1:
		__atomic_store_n(&p.lane->result_head, value, __ATOMIC_SEQ_CST);
		break;
	case 2:
		__atomic_store_n(&p.lane->slots[r / 16 % PP__SLOTS], (uint32_t)value, __ATOMIC_SEQ_CST);
		break;
	case 3: /* a word of the ring */
	case 4:
		memcpy(ring + r / 16 % (2 * CAP / 8) * 8, &value, 8);
		break;
	case 5: /* the head of the next task, which is there */
		memcpy(ring + (p.lane->task_head % CAP + r / 16 % 10 * 8) % CAP, &value, 8);
		break;
	case 6:
		p.lane->task_tail += value % 4096 / 8 * 8;
		break;
	case 7: /* the fields of the board up to its bells */
	case 8:
		memcpy(p.file + r / 16 % 32 * 4, &value, r / 1024 % 2 ? 4 : 8);
		break;
	}
}

/* Whatever the parent's words say, the worker ends in order: no crash, no access outside, no hang. */
static void test_corrupt(unsigned rounds)
{
	uint64_t random = 987654321;
	unsigned attached = 0;

	for (unsigned i = 0; i < rounds; i++) {
		open_pool();
		for (int k = 0; k < 8; k++) {
			put_task(k % 3 == 0 ? p.board->task_off + (uint64_t)k * 65536 : 0, k % 3 == 0 ? 90000 : 500);
		}
		const unsigned before = next_random(&random) % 3;
		for (unsigned k = 0; k < before; k++)
			spoil(&random, i % 2);
		start(take_anything);
		for (unsigned k = 0; k < 3; k++)
			spoil(&random, 0);
		/* A worker that believes that its ring is full waits, as it must: let it see an empty one, and the end. */
		const int64_t until = now_ms() + 20000;
		int status;
		pid_t ended;
		while ((ended = waitpid(p.worker, &status, WNOHANG)) == 0) {
			REQUIRE(now_ms() < until);
			__atomic_store_n(&p.lane->result_head, __atomic_load_n(&p.lane->result_tail, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
			for (unsigned k = 0; k < PP__SLOTS; k++)
				__atomic_store_n(&p.lane->slots[k], 0, __ATOMIC_SEQ_CST);
			ring_bell(&p.lane->space_bell);
			close_lane();
			nanosleep(&(struct timespec){0, 200000}, NULL);
		}
		REQUIRE_EQ(ended, p.worker);
		REQUIRE_EQ(status, 0);
		attached += p.lane->worker_pid != 0;
	}
	REQUIRE(attached > rounds / 3);
}

/* Both ends of a ring against random records; then each end against random words of the other. */
static void test_ring(void)
{
	static uint8_t data[4096] __attribute__((aligned(8)));
	uint64_t tail = 0, head = 0, random = 42;
	pp__ring in, out;
	pp__record record;
	unsigned sent = 0, taken = 0;

	REQUIRE_EQ(pp__ring_producer(&in, &tail, &head, data, sizeof data), PP_OK);
	REQUIRE_EQ(pp__ring_consumer(&out, &tail, &head, data, sizeof data), PP_OK);
	while (taken < 200000) {
		const size_t len = (sent * 2654435761u >> 7) % (pp__ring_longest(sizeof data) + 1);
		uint8_t *payload;
		if (next_random(&random) % 2 && pp__ring_reserve(&in, len, &payload) == PP_OK) {
			memset(payload, (int)(sent & 0xff), len);
			pp__ring_commit(&in, payload, (uint16_t)(sent % 1000), 0, (uint32_t)len);
			sent++;
		} else if (pp__ring_peek(&out, &record) == PP_OK) {
			REQUIRE_EQ(record.kind, taken % 1000);
			REQUIRE_EQ(record.len, (taken * 2654435761u >> 7) % (pp__ring_longest(sizeof data) + 1));
			REQUIRE(record.len == 0 || (record.payload[0] == (taken & 0xff) && record.payload[record.len - 1] == (taken & 0xff)));
			pp__ring_release(&out, record.end);
			taken++;
		} else {
			REQUIRE_EQ(taken, sent);
		}
	}
	REQUIRE(freopen("/dev/null", "w", stderr) != NULL); /* every refusal is told */
	for (unsigned i = 0; i < 200000; i++) {
		uint8_t *payload;
		tail = head = 0;
		pp__ring_producer(&in, &tail, &head, data, sizeof data);
		pp__ring_consumer(&out, &tail, &head, data, sizeof data);
		for (unsigned k = 0; k < 64; k += 8) {
			const uint64_t word = next_random(&random) & (k % 16 ? UINT64_MAX : 0xffff000007ff);
			memcpy(data + k, &word, 8);
		}
		tail = next_random(&random) % 6000;
		for (int k = 0; k < 4 && pp__ring_peek(&out, &record) == PP_OK; k++) {
			REQUIRE(record.payload >= data && record.len <= sizeof data && record.payload + record.len <= data + sizeof data);
			pp__ring_release(&out, record.end);
		}
		head = next_random(&random) % 6000;
		if (pp__ring_reserve(&in, next_random(&random) % 5000, &payload) == PP_OK)
			REQUIRE(payload >= data && payload < data + sizeof data);
	}
}

/* It takes its time. */
static int under_valgrind(void)
{
	char line[4096];
	int found = 0;
	FILE *const f = fopen("/proc/self/maps", "re");

	REQUIRE(f != NULL);
	while (fgets(line, sizeof line, f) != NULL)
		found |= strstr(line, "vgpreload") != NULL;
	fclose(f);
	return found;
}

int main(void)
{
	alarm(110);
	setvbuf(stdout, NULL, _IOLBF, 0);
	const unsigned rounds = under_valgrind() ? 40 : 400;
#define RUN(call)                                                    \
	do {                                                             \
		const int64_t began_ = now_ms();                             \
		call;                                                        \
		printf("%-32s %lld ms\n", #call, (long long)(now_ms() - began_)); \
	} while (0)
	RUN(test_inline(echo));
	RUN(test_inline(echo_steps));
	RUN(test_bulk());
	RUN(test_few_blocks());
	RUN(test_full());
	RUN(test_closing());
	RUN(test_revoked());
	RUN(test_misuse());
	RUN(test_init_failed());
	RUN(test_interrupted());
	RUN(test_parent_dies(0));
	RUN(test_parent_dies(1));
	RUN(test_corrupt(rounds));
	RUN(test_ring()); /* last: it takes stderr away */
	return 0;
}
