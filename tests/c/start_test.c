/* start_test.c - workers by fork, workers that the host starts itself, processes that it forked itself.
 *
 * deadline: 300 s
 */
#include "scenarios.h"

#include "procfs.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- tasks --------------------------------------------------------------------------------------------------------- */

static int32_t square(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const double x = *(const double *)in;
	double add = 0;

	if (in_size != sizeof x || *out_size != sizeof x)
		return 99;
	if (ctx_size == sizeof add)
		memcpy(&add, ctx, sizeof add);
	*(double *)out = x * x + add;
	return 0;
}

static int32_t pid_of(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in;
	(void)in_size;
	(void)ctx;
	(void)ctx_size;
	*(int32_t *)out = (int32_t)getpid();
	*out_size = sizeof(int32_t);
	return 0;
}

enum { WELL = 0, SEGFAULT, EXIT, QUIT, KILL, FAIL, DIVIDE };

static int32_t misbehave(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const int32_t what = *(const int32_t *)in;
	volatile int zero = 0;

	(void)ctx;
	(void)ctx_size;
	switch (what & 0xff) {
	case SEGFAULT:
		*(volatile int *)(uintptr_t)8 = 1;
		break;
	case EXIT:
		exit(what >> 8);
	case QUIT:
		_exit(what >> 8);
	case KILL:
		kill(getpid(), SIGKILL);
		break;
	case FAIL:
		return what >> 8;
	case DIVIDE:
		zero = what / zero;
		break;
	}
	memcpy(out, in, in_size);
	*out_size = in_size;
	return 0;
}

static int32_t sleep_ms(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const int32_t ms = *(const int32_t *)in;

	(void)in_size;
	(void)out;
	(void)ctx;
	(void)ctx_size;
	nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
	*out_size = 0;
	return 0;
}

/* say prints what it gets, unflushed. */
static int32_t say(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in_size;
	(void)out;
	(void)ctx;
	(void)ctx_size;
	printf("task %d\n", *(const int32_t *)in);
	*out_size = 0;
	return 0;
}

/* used_numbers tells how many of the standard descriptors are files that can be written: what a task prints must not go there. (The Go runtime
 * may have files of its own there, such as its cgroup's limit, which it reads.) */
static int32_t used_numbers(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	struct stat st;
	int32_t count = 0;

	(void)in;
	(void)in_size;
	(void)ctx;
	(void)ctx_size;
	for (int fd = 0; fd <= 2; fd++)
		count += fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
	*(int32_t *)out = count;
	*out_size = sizeof(int32_t);
	return 0;
}

/* of_parent gives what a variable of the program was at the fork. */
static int32_t inherited = 1;

static int32_t of_parent(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in;
	(void)in_size;
	(void)ctx;
	(void)ctx_size;
	*(int32_t *)out = inherited;
	*out_size = sizeof(int32_t);
	return 0;
}

static int32_t initialize(const void *arg, size_t arg_size)
{
	if (arg_size != sizeof inherited)
		return 1;
	memcpy(&inherited, arg, sizeof inherited);
	return 0;
}

static int32_t always_fails(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	return 42;
}

/* fails_once fails if it can remove the file that arg names. */
static int32_t fails_once(const void *arg, size_t arg_size)
{
	(void)arg_size;
	return unlink(arg) == 0 ? 7 : 0;
}

/* ---- help ----------------------------------------------------------------------------------------------------------- */

static pp_pool open_forked(int32_t workers)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool = 0;

	options.method = PP_START_FORK;
	options.workers = workers;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	return pool;
}

static void works(pp_pool pool)
{
	double in[1000], out[1000], add = 0.5;
	pp_outcome outcome[1000];

	for (int i = 0; i < 1000; i++)
		in[i] = i, out[i] = -1, outcome[i].status = -1;
	REQUIRE_STATUS(pp_pool_map(pool, square, in, sizeof *in, out, sizeof *out, 1000, 0, &add, sizeof add, outcome), PP_OK);
	for (int i = 0; i < 1000; i++)
		REQUIRE(out[i] == (double)i * i + 0.5 && outcome[i].status == PP_OK);
}

static pp_pool_state state_of(pp_pool pool)
{
	pp_pool_state state;

	REQUIRE_STATUS(pp_pool_info(pool, &state, NULL, 0, NULL), PP_OK);
	return state;
}

/* quiet runs something and tells how many bytes were written to standard error meanwhile; what was, goes there afterwards. */
static int stderr_file = -1, stderr_before = -1;

static void catch_stderr(void)
{
	stderr_file = memfd_create("stderr", MFD_CLOEXEC);
	stderr_before = fcntl(2, F_DUPFD_CLOEXEC, 3);
	REQUIRE(stderr_file >= 0 && stderr_before >= 0);
	REQUIRE_EQ(dup2(stderr_file, 2), 2);
}

static void nothing_on_stderr(void)
{
	char text[1000];

	REQUIRE_EQ(dup2(stderr_before, 2), 2);
	const ssize_t n = pread(stderr_file, text, sizeof text - 1, 0);
	REQUIRE(n >= 0);
	text[n] = '\0';
	if (n > 0)
		fprintf(stderr, "on standard error: %s\n", text);
	REQUIRE_EQ(n, 0);
	close(stderr_file);
	close(stderr_before);
}

/* ---- pools of forked workers ------------------------------------------------------------------------------------------- */

static void fork_map(void)
{
	int32_t pids[100], value = 0;
	const int32_t parent = (int32_t)getpid();

	inherited = 4711;
	pp_pool pool = open_forked(2);
	inherited = 1;
	works(pool);
	REQUIRE_STATUS(pp_pool_map(pool, of_parent, NULL, 0, &value, sizeof value, 1, 0, NULL, 0, NULL), PP_OK);
	REQUIRE_EQ(value, 4711);
	REQUIRE_STATUS(pp_pool_map(pool, pid_of, NULL, 0, pids, sizeof *pids, COUNT(pids), 1, NULL, 0, NULL), PP_OK);
	for (size_t i = 0; i < COUNT(pids); i++)
		REQUIRE(pids[i] > 0 && pids[i] != parent);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(pool, 10000), PP_OK);
	REQUIRE_EQ(state_of(pool).alive, 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	/* A fork executes no program. */
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.method = PP_START_FORK;
	options.path = "/bin/true";
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	/* Free alone, at once. */
	for (int i = 0; i < 20; i++)
		REQUIRE_STATUS(pp_pool_free(open_forked(2)), PP_OK);
}

/* What ends a worker, ends it as it would any process: without the Go runtime's last words. */
static void fork_crashes(void)
{
	static const int32_t bad[] = {SEGFAULT, EXIT | 3 << 8, QUIT, QUIT | 255 << 8, KILL, DIVIDE};
	static const int32_t ends[] = {-SIGSEGV, 3, 0, 255, -SIGKILL, -SIGFPE};
	const pp_pool pool = open_forked(2);
	int32_t in[300], out[300];
	pp_outcome outcome[300];
	uint64_t task;
	pp_result result;

	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	works(pool);
	catch_stderr();
	for (size_t k = 0; k < COUNT(bad); k++) {
		memset(in, 0, sizeof in);
		memset(outcome, 0x7f, sizeof outcome);
		in[0] = in[150] = bad[k];
		in[151] = in[299] = FAIL | 1000 << 8;
		REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, 300, k % 2 ? 0 : 10, NULL, 0, outcome),
		               PP_ERR_WORKER_LOST);
		for (int i = 0; i < 300; i++)
			REQUIRE_EQ(outcome[i].status, in[i] == bad[k] ? PP_ERR_WORKER_LOST : in[i] != 0 ? PP_ERR_TASK : PP_OK);
		REQUIRE_STATUS(pp_pool_submit(pool, misbehave, &bad[k], sizeof bad[k], 0, &task), PP_OK);
		REQUIRE_STATUS(pp_pool_wait(pool, task, 10000, &result), PP_OK);
		REQUIRE_EQ(result.status, PP_ERR_WORKER_LOST);
		REQUIRE_EQ(result.exit_code, ends[k]);
		REQUIRE(result.pid > 0);
		pp_result_free(&result);
		works(pool);
	}
	nothing_on_stderr();
	WITHIN(5000, state_of(pool).alive == 2);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void fork_initializers(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	const int32_t arg = 12321;
	int32_t out[50];
	uint64_t task;
	pp_result result;
	char file[] = "/tmp/polyproc-start-test-XXXXXX";

	options.method = PP_START_FORK;
	options.workers = 2;
	options.initializer = initialize;
	options.init_arg = &arg;
	options.init_arg_size = sizeof arg;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, of_parent, NULL, 0, out, sizeof *out, COUNT(out), 1, NULL, 0, NULL), PP_OK);
	for (size_t i = 0; i < COUNT(out); i++)
		REQUIRE_EQ(out[i], arg);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);

	const int fd = mkstemp(file);
	REQUIRE(fd >= 0);
	close(fd);
	options.initializer = fails_once;
	options.init_arg = file;
	options.init_arg_size = sizeof file;
	catch_stderr();
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	works(pool);
	REQUIRE_EQ(access(file, F_OK), -1);
	WITHIN(5000, state_of(pool).alive == 2);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);

	const int64_t began = now_ms();
	options.initializer = always_fails;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, of_parent, NULL, 0, out, sizeof *out, COUNT(out), 0, NULL, 0, NULL), PP_ERR_INIT);
	REQUIRE(now_ms() - began < 1000);
	const int32_t status = pp_pool_submit(pool, misbehave, &arg, sizeof arg, 0, &task);
	if (status == PP_OK) {
		REQUIRE_STATUS(pp_pool_wait(pool, task, 1000, &result), PP_OK);
		REQUIRE_EQ(result.status, PP_ERR_INIT);
		REQUIRE(memmem(result.data, result.size, "42", 2) != NULL);
		pp_result_free(&result);
	} else {
		REQUIRE_STATUS(status, PP_ERR_INIT);
	}
	WITHIN(5000, state_of(pool).alive == 0);
	const uint64_t started = state_of(pool).started;
	REQUIRE_STATUS(pp_pool_map(pool, of_parent, NULL, 0, out, sizeof *out, COUNT(out), 0, NULL, 0, NULL), PP_ERR_INIT);
	REQUIRE_EQ(state_of(pool).started, started);
	nothing_on_stderr();
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void fork_recycle(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	int32_t pids[100];

	options.method = PP_START_FORK;
	options.workers = 2;
	options.max_tasks = 10;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	REQUIRE_STATUS(pp_pool_map(pool, pid_of, NULL, 0, pids, sizeof *pids, 100, 1, NULL, 0, NULL), PP_OK);
	for (int i = 0; i < 100; i++) {
		int same = 0;
		for (int k = 0; k < 100; k++)
			same += pids[k] == pids[i];
		REQUIRE(same <= 10);
	}
	REQUIRE(state_of(pool).started >= 10 && state_of(pool).lost == 0);
	works(pool);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

static void fork_many(void)
{
	const pp_pool pool = open_forked(64);
	int32_t in[64 * 8];
	pp_outcome outcome[64 * 8];

	for (int lap = 0; lap < 3; lap++)
		works(pool);
	for (size_t i = 0; i < COUNT(in); i++)
		in[i] = i % 16 == 3 ? KILL : WELL;
	int32_t out[COUNT(in)];
	REQUIRE_STATUS(pp_pool_map(pool, misbehave, in, sizeof *in, out, sizeof *out, COUNT(in), 1, NULL, 0, outcome), PP_ERR_WORKER_LOST);
	for (size_t i = 0; i < COUNT(in); i++)
		REQUIRE_EQ(outcome[i].status, in[i] == KILL ? PP_ERR_WORKER_LOST : PP_OK);
	works(pool);
	WITHIN(10000, state_of(pool).alive == 64);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(pool, 20000), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	REQUIRE(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

static void fork_terminate(void)
{
	const pp_pool pool = open_forked(2);
	const int32_t ms = 100000;
	uint64_t tasks[6];
	pp_result result;

	works(pool);
	for (size_t i = 0; i < COUNT(tasks); i++)
		REQUIRE_STATUS(pp_pool_submit(pool, sleep_ms, &ms, sizeof ms, 0, &tasks[i]), PP_OK);
	const int64_t began = now_ms();
	REQUIRE_STATUS(pp_pool_terminate(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(pool, 10000), PP_OK);
	REQUIRE(now_ms() - began < 1000);
	for (size_t i = 0; i < COUNT(tasks); i++) {
		REQUIRE_STATUS(pp_pool_wait(pool, tasks[i], 1000, &result), PP_OK);
		REQUIRE(result.status == PP_ERR_CLOSED || (i < 2 && result.status == PP_ERR_WORKER_LOST));
		pp_result_free(&result);
	}
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* The host is killed: run_scenario looks that its workers, idle and busy, are gone within a second. */
static void fork_host_killed(void)
{
	const pp_pool idle = open_forked(3), busy = open_forked(2);
	const int32_t ms = 100000;
	uint64_t task;

	works(idle);
	for (int i = 0; i < 6; i++)
		REQUIRE_STATUS(pp_pool_submit(busy, sleep_ms, &ms, sizeof ms, 0, &task), PP_OK);
	WITHIN(10000, state_of(busy).running == 2);
	kill(getpid(), SIGKILL);
}

/* The functions of a library that was loaded while the program ran: before the fork of the worker, or after. */
static void fork_library(void)
{
	char dir[] = "/tmp/polyproc-start-test-XXXXXX", library[100], command[500];

	REQUIRE(mkdtemp(dir) != NULL);
	snprintf(library, sizeof library, "%s/task.so", dir);
	snprintf(command, sizeof command,
	         "echo 'int task(const int *in, unsigned long n, int *out, unsigned long *m, const void *c, unsigned long k)"
	         "{ (void)n; (void)m; (void)c; (void)k; *out = *in + 1; return 0; }' | gcc -xc -shared -fPIC -Wl,--build-id -o %s -", library);
	REQUIRE_EQ(system(command), 0);
	const pp_pool before = open_forked(2);
	works(before);
	void *const handle = dlopen(library, RTLD_NOW);
	REQUIRE(handle != NULL);
	union {
		void *address;
		pp_task_fn fn;
	} task = {.address = dlsym(handle, "task")};
	REQUIRE(task.address != NULL);
	const pp_pool after = open_forked(2);
	const pp_pool pools[] = {before, after};
	for (size_t p = 0; p < COUNT(pools); p++) {
		int32_t in[100], out[100];
		for (int i = 0; i < 100; i++)
			in[i] = i;
		REQUIRE_STATUS(pp_pool_map(pools[p], task.fn, in, sizeof *in, out, sizeof *out, 100, 0, NULL, 0, NULL), PP_OK);
		for (int i = 0; i < 100; i++)
			REQUIRE_EQ(out[i], i + 1);
		works(pools[p]);
		REQUIRE_STATUS(pp_pool_free(pools[p]), PP_OK);
	}
	unlink(library);
	rmdir(dir);
}

/* Neither the workers nor the parent have standard descriptors; nothing of the pool is under their numbers. */
static void fork_closed_descriptors(void)
{
	close(0);
	close(1);
	close(2);
	const pp_pool pool = open_forked(2);
	int32_t used[10];
	works(pool);
	REQUIRE_EQ(pp_pool_map(pool, used_numbers, NULL, 0, used, sizeof *used, COUNT(used), 1, NULL, 0, NULL), PP_OK);
	for (size_t i = 0; i < COUNT(used); i++)
		REQUIRE_EQ(used[i], 0);
	const int32_t in = QUIT;
	int32_t out;
	REQUIRE_EQ(pp_pool_map(pool, misbehave, &in, sizeof in, &out, sizeof out, 1, 0, NULL, 0, NULL), PP_ERR_WORKER_LOST);
	works(pool);
	REQUIRE_EQ(pp_pool_free(pool), PP_OK);
}

static int32_t say_more(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	printf("process\n");
	return 0;
}

/* What the parent has printed and not flushed comes once; what tasks and processes print comes, too. */
static void fork_output(void)
{
	char text[4000];
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;
	pp_exit how;
	const int file = memfd_create("stdout", MFD_CLOEXEC);
	const int before = dup(1);

	REQUIRE(file >= 0 && before >= 0);
	REQUIRE_EQ(fcntl(file, F_SETFL, O_APPEND), 0);
	fflush(stdout);
	REQUIRE_EQ(dup2(file, 1), 1);
	printf("parent"); /* not a line, not flushed */
	const pp_pool pool = open_forked(2);
	for (int32_t i = 0; i < 4; i++)
		REQUIRE_STATUS(pp_pool_map(pool, say, &i, sizeof i, NULL, 0, 1, 0, NULL, 0, NULL), PP_OK);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(pool, 10000), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	options.method = PP_START_FORK;
	options.fn = say_more;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 10000, &how), PP_OK);
	REQUIRE_EQ(how.code, 0);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	fflush(stdout);
	REQUIRE_EQ(dup2(before, 1), 1);
	close(before);
	const ssize_t n = pread(file, text, sizeof text - 1, 0);
	REQUIRE(n > 0);
	text[n] = '\0';
	static const char *const once[] = {"parent", "task 0\n", "task 1\n", "task 2\n", "task 3\n", "process\n"};
	size_t length = 0;
	for (size_t i = 0; i < COUNT(once); i++) {
		const char *const at = strstr(text, once[i]);
		if (at == NULL || strstr(at + 1, once[i]) != NULL)
			fprintf(stderr, "printed: %s\n", text);
		REQUIRE(at != NULL && strstr(at + 1, once[i]) == NULL);
		length += strlen(once[i]);
	}
	REQUIRE_EQ(length, n);
	close(file);
}

/* ---- processes by fork ----------------------------------------------------------------------------------------------- */

static pp_pool pool_of_parent;
static pp_process process_of_parent;

static int32_t nested(const void *arg, size_t arg_size)
{
	int32_t left;

	REQUIRE_EQ(arg_size, sizeof left);
	memcpy(&left, arg, sizeof left);
	REQUIRE_STATUS(pp_pool_close(pool_of_parent), PP_ERR_FORKED);
	REQUIRE_STATUS(pp_pool_free(pool_of_parent), PP_ERR_FORKED);
	REQUIRE_STATUS(pp_process_wait(process_of_parent, 0, NULL), process_of_parent == 0 ? PP_ERR_HANDLE : PP_ERR_FORKED);
	for (uint32_t method = PP_START_SPAWN; method <= PP_START_FORK; method++) {
		pp_pool_options options = PP_POOL_OPTIONS_INIT;
		options.method = method;
		options.workers = 2;
		REQUIRE_STATUS(pp_pool_open(&options, &pool_of_parent), PP_OK);
		works(pool_of_parent);
		if (method == PP_START_FORK && left > 0) {
			pp_process_options child = PP_PROCESS_OPTIONS_INIT;
			pp_exit how;
			left--;
			child.method = PP_START_FORK;
			child.fn = nested;
			child.arg = &left;
			child.arg_size = sizeof left;
			REQUIRE_STATUS(pp_process_start(&child, &process_of_parent), PP_OK);
			REQUIRE_STATUS(pp_process_wait(process_of_parent, 50000, &how), PP_OK);
			REQUIRE(how.known && how.signal == 0);
			REQUIRE_EQ(how.code, left);
			REQUIRE_STATUS(pp_process_free(process_of_parent), PP_OK);
			left++;
			works(pool_of_parent);
		}
		REQUIRE_STATUS(pp_pool_free(pool_of_parent), PP_OK);
	}
	return left;
}

/* Pools within processes within processes. */
static void fork_nested(void)
{
	const int32_t deep = 4;

	pool_of_parent = open_forked(1);
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_exit how;
	options.method = PP_START_FORK;
	options.fn = nested;
	options.arg = &deep;
	options.arg_size = sizeof deep;
	pp_process process;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 50000, &how), PP_OK);
	REQUIRE(how.known && how.signal == 0);
	REQUIRE_EQ(how.code, deep);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	works(pool_of_parent);
	REQUIRE_STATUS(pp_pool_free(pool_of_parent), PP_OK);
}

/* ---- processes that the host forked itself ---------------------------------------------------------------------------- */

static void adopt(void)
{
	pp_process process;
	pp_exit how;
	int32_t pid, fd;

	REQUIRE_STATUS(pp_process_adopt(0, -1, &process), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_adopt(-5, -1, &process), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_adopt(1, -1, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_adopt(INT_MAX, -1, &process), PP_ERR_NOT_FOUND);
	REQUIRE(strlen(pp_last_error()) > 0);
	/* Alive, ended already, killed. */
	for (int lap = 0; lap < 3; lap++) {
		int pipe_ends[2];
		char byte;
		REQUIRE_EQ(pipe(pipe_ends), 0);
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			close(pipe_ends[1]);
			if (lap != 1)
				(void)!read(pipe_ends[0], &byte, 1);
			_exit(23);
		}
		close(pipe_ends[0]);
		if (lap == 1)
			WITHIN(5000, waitid(P_PID, (id_t)child, &(siginfo_t){0}, WEXITED | WNOWAIT) == 0);
		REQUIRE_STATUS(pp_process_adopt(child, -1, &process), PP_OK);
		REQUIRE_STATUS(pp_process_info(process, &pid, &fd), PP_OK);
		REQUIRE_EQ(pid, child);
		if (lap != 1) {
			REQUIRE_STATUS(pp_process_wait(process, 0, NULL), PP_ERR_TIMEOUT);
			struct pollfd p = {.fd = fd, .events = POLLIN};
			REQUIRE_EQ(poll(&p, 1, 0), 0);
		}
		if (lap == 2)
			REQUIRE_STATUS(pp_process_signal(process, SIGTERM), PP_OK);
		close(pipe_ends[1]);
		REQUIRE_STATUS(pp_process_wait(process, 10000, &how), PP_OK);
		REQUIRE_EQ(how.known, 1);
		REQUIRE(lap == 2 ? how.signal == SIGTERM : how.code == 23 && how.signal == 0);
		REQUIRE(waitpid(child, NULL, WNOHANG) < 0 && errno == ECHILD);
		REQUIRE_STATUS(pp_process_free(process), PP_OK);
	}
	/* The child of another: a fork server tells how it ended, or is itself gone before it can. */
	for (int lap = 0; lap < 3; lap++) {
		int status_ends[2], pid_ends[2];
		int32_t number = 0;
		REQUIRE_EQ(pipe(status_ends), 0);
		REQUIRE_EQ(pipe(pid_ends), 0);
		const pid_t server = fork();
		REQUIRE(server >= 0);
		if (server == 0) {
			int status;
			close(status_ends[0]);
			const pid_t worker = fork();
			if (worker == 0) {
				close(status_ends[1]);
				nanosleep(&(struct timespec){0, 50000000}, NULL);
				if (lap == 1)
					kill(getpid(), SIGTERM);
				_exit(44);
			}
			number = (int32_t)worker;
			REQUIRE_EQ(write(pid_ends[1], &number, sizeof number), sizeof number);
			if (lap == 2)
				_exit(0); /* before it can say anything */
			REQUIRE_EQ(waitid(P_PID, (id_t)worker, &(siginfo_t){0}, WEXITED | WNOWAIT), 0);
			REQUIRE_EQ(waitpid(worker, &status, 0), worker);
			number = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
			REQUIRE_EQ(write(status_ends[1], &number, sizeof number), sizeof number);
			_exit(0);
		}
		close(status_ends[1]);
		REQUIRE_EQ(read(pid_ends[0], &number, sizeof number), sizeof number);
		REQUIRE_STATUS(pp_process_adopt(number, status_ends[0], &process), PP_OK);
		REQUIRE_STATUS(pp_process_wait(process, 10000, &how), PP_OK);
		if (lap == 2)
			REQUIRE(how.known == 0 || (how.code == 44 && how.signal == 0)); /* newer kernels know */
		else
			REQUIRE(how.known == 1 && (lap == 1 ? how.signal == SIGTERM : how.code == 44 && how.signal == 0));
		REQUIRE_STATUS(pp_process_free(process), PP_OK);
		REQUIRE_EQ(fcntl(status_ends[0], F_GETFD), -1); /* taken over and closed */
		REQUIRE_EQ(collect_within(server, 10000), 0);
		close(pid_ends[0]);
		close(pid_ends[1]);
	}
}

/* ---- pools whose host starts the workers -------------------------------------------------------------------------------- */

static pp_pool open_hosted(int32_t workers, uint32_t max_tasks)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool = 0;

	options.workers = workers;
	options.max_tasks = max_tasks;
	options.flags = PP_POOL_HOST_STARTS;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	return pool;
}

/* serve is a worker of the host's own making: each task is a number n, and its result n + 1. 1000: it exits with 9. */
static _Noreturn void serve(const pp_vacancy *vacancy)
{
	pp_worker worker = {.size = sizeof worker};
	pp_task task;

	if (pp_worker_attach_to(vacancy, &worker) != PP_OK) {
		fprintf(stderr, "attach: %s\n", pp_last_error());
		_exit(101);
	}
	if (worker.parent_pid != vacancy->parent_pid || worker.lane != vacancy->lane || pp_worker_attach_to(vacancy, &worker) != PP_ERR_STATE)
		_exit(102);
	if (pp_worker_ready(PP_OK, NULL, 0) != PP_OK)
		_exit(103);
	int32_t status;
	while ((status = pp_worker_next(-1, &task)) != PP_ERR_CLOSED) {
		int32_t n;
		if (status == PP_ERR_INTERRUPTED)
			continue;
		if (status != PP_OK || task.size != sizeof n)
			_exit(104);
		memcpy(&n, task.data, sizeof n);
		if (n == 1000)
			_exit(9);
		n++;
		if (pp_worker_done(PP_OK, 0, &n, sizeof n) != PP_OK)
			_exit(105);
	}
	_exit(0);
}

/* fill_own forks workers for all places that there are or will be, until there are no more: a thread of the host. */
static void *fill_own(void *argument)
{
	const pp_pool pool = *(pp_pool *)argument;
	pp_vacancy v;
	int32_t status;

	while ((status = pp_pool_vacancy(pool, -1, &v)) == PP_OK) {
		const pid_t pid = fork();
		REQUIRE(pid >= 0);
		if (pid == 0)
			serve(&v);
		const int32_t filled = pp_pool_fill(pool, &v, pid, -1);
		if (filled != PP_OK) { /* the pool was closed, or even freed, meanwhile */
			REQUIRE(filled == PP_ERR_INVALID || filled == PP_ERR_HANDLE);
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
	}
	REQUIRE(status == PP_ERR_CLOSED || status == PP_ERR_HANDLE);
	return NULL;
}

/* adds submits numbers and looks at what comes back. */
static void adds(pp_pool pool, int32_t count)
{
	uint64_t task;
	pp_result results[64];
	size_t n;
	int64_t sum = 0;

	for (int32_t i = 0; i < count; i++)
		REQUIRE_STATUS(pp_pool_submit(pool, NULL, &(int32_t){i % 1000}, sizeof i, (uint64_t)i, &task), PP_OK);
	for (int32_t got = 0; got < count; got += (int32_t)n) {
		REQUIRE_STATUS(pp_pool_collect(pool, results, COUNT(results), NULL, 0, 20000, &n), PP_OK);
		for (size_t i = 0; i < n; i++) {
			int32_t value;
			REQUIRE_EQ(results[i].status, PP_OK);
			REQUIRE_EQ(results[i].size, sizeof value);
			memcpy(&value, results[i].data, sizeof value);
			REQUIRE_EQ(value, results[i].cookie % 1000 + 1);
			sum += value;
			pp_result_free(&results[i]);
		}
	}
	REQUIRE(sum > 0);
}

static void hosted(void)
{
	pthread_t thread;
	uint64_t task;
	pp_result result;
	const int32_t leave = 1000;
	pp_pool pool = open_hosted(3, 0);

	REQUIRE_EQ(pthread_create(&thread, NULL, fill_own, &pool), 0);
	adds(pool, 2000);
	WITHIN(5000, state_of(pool).alive == 3);
	for (int lap = 0; lap < 5; lap++) {
		REQUIRE_STATUS(pp_pool_submit(pool, NULL, &leave, sizeof leave, 0, &task), PP_OK);
		REQUIRE_STATUS(pp_pool_wait(pool, task, 10000, &result), PP_OK);
		REQUIRE_EQ(result.status, PP_ERR_WORKER_LOST);
		REQUIRE_EQ(result.exit_code, 9);
		REQUIRE(result.pid > 0 && result.pid != getpid());
		adds(pool, 200);
	}
	WITHIN(5000, state_of(pool).alive == 3);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(pool, 10000), PP_OK);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	REQUIRE(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	/* Workers that are replaced, and a pool that is terminated and one that is freed while a thread waits for places. */
	for (int lap = 0; lap < 2; lap++) {
		pool = open_hosted(2, 20);
		REQUIRE_EQ(pthread_create(&thread, NULL, fill_own, &pool), 0);
		adds(pool, 1000);
		WITHIN(5000, state_of(pool).started >= 50);
		if (lap == 0)
			REQUIRE_STATUS(pp_pool_terminate(pool), PP_OK);
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
	}
	WITHIN(5000, waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

/* Answers that the pool must not believe, and none at all. */
static void hosted_wrongly(void)
{
	pp_vacancy v, w;
	pp_pool pool = open_hosted(2, 0);
	int status;

	REQUIRE_STATUS(pp_pool_vacancy(pool, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_fill(pool, NULL, 1, -1), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_vacancy(pool, 5000, &v), PP_OK);
	REQUIRE_STATUS(pp_pool_vacancy(pool, 5000, &w), PP_OK);
	REQUIRE(v.lane != w.lane);
	REQUIRE_EQ(v.parent_pid, getpid());
	REQUIRE_STATUS(pp_pool_vacancy(pool, 0, &(pp_vacancy){0}), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_pool_vacancy(pool, 30, &(pp_vacancy){0}), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_pool_fill(pool, &v, -7, -1), PP_ERR_INVALID);
	pp_vacancy wrong = v;
	wrong.generation += 1;
	REQUIRE_STATUS(pp_pool_fill(pool, &wrong, 0, -1), PP_ERR_INVALID);
	wrong = v;
	wrong.lane = 77777;
	REQUIRE_STATUS(pp_pool_fill(pool, &wrong, 0, -1), PP_ERR_INVALID);
	/* No such process: the place is open again. */
	REQUIRE_STATUS(pp_pool_fill(pool, &v, INT_MAX, -1), PP_ERR_NOT_FOUND);
	REQUIRE_STATUS(pp_pool_vacancy(pool, 5000, &v), PP_OK);
	pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0)
		serve(&v);
	REQUIRE_STATUS(pp_pool_fill(pool, &v, child, -1), PP_OK);
	adds(pool, 100);
	/* Declined: it comes again, but not at once for ever. */
	REQUIRE_STATUS(pp_pool_fill(pool, &w, 0, -1), PP_OK);
	REQUIRE_STATUS(pp_pool_fill(pool, &w, 0, -1), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_vacancy(pool, 5000, &w), PP_OK);
	/* A child that dies before it attaches is replaced, too. */
	child = fork();
	REQUIRE(child >= 0);
	if (child == 0)
		_exit(3);
	REQUIRE_STATUS(pp_pool_fill(pool, &w, child, -1), PP_OK);
	REQUIRE_STATUS(pp_pool_vacancy(pool, 5000, &w), PP_OK);
	child = fork();
	REQUIRE(child >= 0);
	if (child == 0)
		serve(&w);
	REQUIRE_STATUS(pp_pool_fill(pool, &w, child, -1), PP_OK);
	adds(pool, 500);
	/* A stale place: its worker is told so. */
	const pp_vacancy stale = {w.lane, w.generation - 1, w.fd, w.parent_pid};
	const pid_t late = fork();
	REQUIRE(late >= 0);
	if (late == 0) {
		pp_worker worker = {.size = sizeof worker};
		alarm(20);
		if (pp_worker_attach_to(NULL, &worker) != PP_ERR_INVALID || pp_worker_attach_to(&stale, NULL) != PP_ERR_INVALID)
			_exit(1);
		if (pp_worker_attach_to(&stale, &worker) != PP_ERR_STATE || strlen(pp_last_error()) == 0)
			_exit(2);
		if (pp_worker_attach_to(&(pp_vacancy){60000, 1, stale.fd, stale.parent_pid}, &worker) != PP_ERR_CORRUPT)
			_exit(3);
		if (pp_worker_attach_to(&(pp_vacancy){0, 1, 999, stale.parent_pid}, &worker) != PP_ERR_SYSTEM)
			_exit(4);
		if (pp_worker_attach_to(&(pp_vacancy){0, 1, stale.fd, 1}, &worker) != PP_ERR_CORRUPT)
			_exit(5);
		if (pp_worker_ready(PP_OK, NULL, 0) != PP_ERR_STATE)
			_exit(6);
		_exit(0);
	}
	REQUIRE_EQ(waitpid(late, &status, 0), late);
	REQUIRE_EQ(status, 0);
	adds(pool, 500);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);

	/* A pool that ends while places are handed out and not filled. */
	for (int lap = 0; lap < 3; lap++) {
		pool = open_hosted(2, 0);
		REQUIRE_STATUS(pp_pool_vacancy(pool, 5000, &v), PP_OK);
		uint64_t task;
		pp_result result;
		if (lap == 0) {
			REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
			const int32_t joined = pp_pool_join(pool, 200);
			REQUIRE(joined == PP_OK || joined == PP_ERR_TIMEOUT); /* the host may still come with its process */
			const int32_t filled = pp_pool_fill(pool, &v, 0, -1);
			REQUIRE(filled == PP_OK || filled == PP_ERR_INVALID);
			REQUIRE_STATUS(pp_pool_join(pool, 10000), PP_OK);
		} else {
			REQUIRE_STATUS(pp_pool_submit(pool, NULL, &(int32_t){1}, 4, 0, &task), PP_OK);
			if (lap == 1) {
				REQUIRE_STATUS(pp_pool_terminate(pool), PP_OK);
				REQUIRE_STATUS(pp_pool_wait(pool, task, 10000, &result), PP_OK);
				REQUIRE_EQ(result.status, PP_ERR_CLOSED);
				REQUIRE_STATUS(pp_pool_vacancy(pool, 5000, &w), PP_ERR_CLOSED);
				child = fork();
				REQUIRE(child >= 0);
				if (child == 0)
					serve(&v);
				if (pp_pool_fill(pool, &v, child, -1) != PP_OK) {
					kill(child, SIGKILL);
					waitpid(child, NULL, 0);
				}
			}
		}
		const int64_t began = now_ms();
		REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
		REQUIRE(now_ms() - began < 2000);
		REQUIRE_STATUS(pp_pool_fill(pool, &v, 0, -1), PP_ERR_HANDLE);
		REQUIRE_STATUS(pp_pool_vacancy(pool, 0, &v), PP_ERR_HANDLE);
	}
	WITHIN(5000, waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

/* A server between: it forks the workers, and tells how they ended. It gets the pool's memory by SCM_RIGHTS, as one would that was executed. */
static ssize_t send_with(int socket, const void *bytes, size_t size, const int *fds, size_t fds_size)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(2 * sizeof(int))];
	} control = {.room = {0}};
	struct iovec io = {(void *)(uintptr_t)bytes, size};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = CMSG_SPACE(fds_size)};
	struct cmsghdr *const c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(fds_size);
	memcpy(CMSG_DATA(c), fds, fds_size);
	return sendmsg(socket, &m, MSG_NOSIGNAL);
}

static ssize_t receive_with(int socket, void *bytes, size_t size, int *fds, size_t fds_size)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct iovec io = {bytes, size};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
	const ssize_t n = recvmsg(socket, &m, MSG_CMSG_CLOEXEC);

	if (n > 0)
		memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), fds_size);
	return n;
}

static _Noreturn void fork_server(int socket)
{
	pp_vacancy v;
	int fds[2];

	/* It dies with its family, whatever happens to that. */
	if (pp_watch_process(getppid()) != PP_OK)
		_exit(1);
	while (receive_with(socket, &v, sizeof v, fds, sizeof fds) == sizeof v) {
		/* One process more between, which waits for the worker and tells how it ended. */
		const pid_t waiter = fork();
		if (waiter == 0) {
			int status;
			const pid_t worker = fork();
			v.fd = fds[0];
			if (worker == 0)
				serve(&v);
			const int32_t pid = (int32_t)worker;
			if (write(socket, &pid, sizeof pid) != sizeof pid)
				_exit(1);
			close(fds[0]);
			if (waitid(P_PID, (id_t)worker, &(siginfo_t){0}, WEXITED | WNOWAIT) != 0 || waitpid(worker, &status, 0) != worker)
				_exit(1);
			const int32_t code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
			_exit(write(fds[1], &code, sizeof code) == sizeof code ? 0 : 1);
		}
		close(fds[0]);
		close(fds[1]);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	_exit(0);
}

typedef struct served {
	pp_pool pool;
	int socket;
} served;

static void *fill_by_server(void *argument)
{
	const served *const s = argument;
	pp_vacancy v;

	while (pp_pool_vacancy(s->pool, -1, &v) == PP_OK) {
		int status_ends[2];
		int32_t pid;
		REQUIRE_EQ(pipe2(status_ends, O_CLOEXEC), 0);
		const int fds[] = {v.fd, status_ends[1]};
		REQUIRE_EQ(send_with(s->socket, &v, sizeof v, fds, sizeof fds), sizeof v);
		close(status_ends[1]);
		REQUIRE_EQ(read(s->socket, &pid, sizeof pid), sizeof pid);
		REQUIRE(pid > 0);
		const int32_t filled = pp_pool_fill(s->pool, &v, pid, status_ends[0]);
		REQUIRE(filled == PP_OK || filled == PP_ERR_INVALID || filled == PP_ERR_NOT_FOUND);
	}
	return NULL;
}

static pid_t start_server(int *socket_out)
{
	int ends[2];

	REQUIRE_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
	const pid_t server = fork(); /* before the engine is loaded */
	REQUIRE(server >= 0);
	if (server == 0) {
		close(ends[0]);
		fork_server(ends[1]);
	}
	close(ends[1]);
	*socket_out = ends[0];
	return server;
}

static void hosted_by_server(void)
{
	served s;
	pthread_t thread;
	uint64_t task;
	pp_result result;
	const int32_t leave = 1000;
	const pid_t server = start_server(&s.socket);

	s.pool = open_hosted(3, 0);
	REQUIRE_EQ(pthread_create(&thread, NULL, fill_by_server, &s), 0);
	adds(s.pool, 2000);
	for (int lap = 0; lap < 3; lap++) {
		REQUIRE_STATUS(pp_pool_submit(s.pool, NULL, &leave, sizeof leave, 0, &task), PP_OK);
		REQUIRE_STATUS(pp_pool_wait(s.pool, task, 10000, &result), PP_OK);
		REQUIRE_EQ(result.status, PP_ERR_WORKER_LOST);
		REQUIRE_EQ(result.exit_code, 9);
		adds(s.pool, 200);
	}
	int32_t pids[3];
	size_t n;
	WITHIN(5000, pp_pool_info(s.pool, NULL, pids, COUNT(pids), &n) == PP_OK && n == 3);
	for (int i = 0; i < 3; i++)
		REQUIRE(kill(pids[i], SIGKILL) == 0);
	adds(s.pool, 200);
	REQUIRE_STATUS(pp_pool_close(s.pool), PP_OK);
	REQUIRE_STATUS(pp_pool_join(s.pool, 10000), PP_OK);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_STATUS(pp_pool_free(s.pool), PP_OK);
	close(s.socket);
	REQUIRE_EQ(collect_within(server, 10000), 0);
}

/* The host is killed: workers that are not its children are gone as well, and so is the server. */
static void server_host_killed(void)
{
	served s;
	pthread_t thread;

	start_server(&s.socket);
	s.pool = open_hosted(3, 0);
	REQUIRE_EQ(pthread_create(&thread, NULL, fill_by_server, &s), 0);
	adds(s.pool, 100);
	WITHIN(5000, state_of(s.pool).alive == 3);
	kill(getpid(), SIGKILL);
}

/* ---- watching ---------------------------------------------------------------------------------------------------------- */

static void watch_process(void)
{
	REQUIRE_STATUS(pp_watch_process(0), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_watch_process(-3), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_watch_process(INT_MAX), PP_ERR_STATE);
	/* lap 0: a brother; 1: first one, then another, of which the latest counts. */
	for (int lap = 0; lap < 2; lap++) {
		pid_t brothers[2];
		for (int i = 0; i < 2; i++) {
			brothers[i] = fork();
			REQUIRE(brothers[i] >= 0);
			if (brothers[i] == 0)
				for (;;)
					pause();
		}
		int ready[2];
		char byte;
		REQUIRE_EQ(pipe(ready), 0);
		const pid_t watcher = fork();
		REQUIRE(watcher >= 0);
		if (watcher == 0) {
			if (lap == 1)
				REQUIRE_STATUS(pp_watch_process(brothers[1]), PP_OK);
			REQUIRE_STATUS(pp_watch_process(brothers[0]), PP_OK);
			REQUIRE_STATUS(pp_watch_process(brothers[0]), PP_OK);
			REQUIRE_EQ(status_number(getpid(), "Threads:"), lap == 1 ? 3 : 2);
			REQUIRE_EQ(write(ready[1], "x", 1), 1);
			for (;;)
				pause();
		}
		REQUIRE_EQ(read(ready[0], &byte, 1), 1);
		REQUIRE_EQ(kill(brothers[1], SIGKILL), 0);
		REQUIRE_EQ(collect_within(brothers[1], 10000), SIGKILL);
		nanosleep(&(struct timespec){0, 300000000}, NULL); /* nothing happens */
		REQUIRE_EQ(waitpid(watcher, NULL, WNOHANG), 0);
		const int64_t began = now_ms();
		REQUIRE_EQ(kill(brothers[0], SIGKILL), 0);
		REQUIRE_EQ(collect_within(brothers[0], 10000), SIGKILL);
		REQUIRE_EQ(collect_within(watcher, 10000), SIGKILL);
		REQUIRE(now_ms() - began < 1000);
		close(ready[0]);
		close(ready[1]);
	}
}

int main(int argc, char **argv)
{
	/* Workers by fork need no pp_init. */
	static const scenario list[] = {
		{"fork_map", fork_map, 1, 0},
		{"fork_crashes", fork_crashes, 0, 0},
		{"fork_initializers", fork_initializers, 1, 0},
		{"fork_recycle", fork_recycle, 0, 0},
		{"fork_many", fork_many, 0, 0},
		{"fork_terminate", fork_terminate, 1, 0},
		{"fork_host_killed", fork_host_killed, 1, SIGKILL},
		{"fork_library", fork_library, 0, 0},
		{"fork_closed_descriptors", fork_closed_descriptors, 1, 0},
		{"fork_output", fork_output, 1, 0},
		{"fork_nested", fork_nested, 0, 0},
		{"adopt", adopt, 1, 0},
		{"hosted", hosted, 1, 0},
		{"hosted_wrongly", hosted_wrongly, 1, 0},
		{"hosted_by_server", hosted_by_server, 1, 0},
		{"server_host_killed", server_host_killed, 1, SIGKILL},
		{"watch_process", watch_process, 1, 0},
	};

	return run_scenarios(argc, argv, list, COUNT(list));
}
