/* queue_test.c - queues, through the public header.
 *
 * deadline: 180 s
 */
#include "require.h"

#include <polyproc.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PATIENCE = 20000 };

static pp_queue make(uint64_t maxsize)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	pp_queue queue;

	options.maxsize = maxsize;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	return queue;
}

static void put(pp_queue queue, const char *text)
{
	REQUIRE_STATUS(pp_queue_put(queue, text, strlen(text), PP_RAW, 0), PP_OK);
}

static void expect(pp_queue queue, const char *text)
{
	char buf[100];
	size_t size;

	REQUIRE_STATUS(pp_queue_get(queue, buf, sizeof buf, PATIENCE, &size), PP_OK);
	REQUIRE_EQ(size, strlen(text));
	REQUIRE(memcmp(buf, text, size) == 0);
}

static uint64_t length(pp_queue queue)
{
	pp_queue_state state;

	REQUIRE_STATUS(pp_queue_info(queue, &state), PP_OK);
	return state.size;
}

static void ended_well(pid_t pid)
{
	int status;

	REQUIRE_EQ(waitpid(pid, &status, 0), pid);
	REQUIRE(WIFEXITED(status));
	REQUIRE_EQ(WEXITSTATUS(status), 0);
}

/* The storage of the family's memory, bytes. */
static uint64_t storage(void)
{
	int32_t fds[2];
	struct stat st;

	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	REQUIRE_EQ(fstat(fds[0], &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void test_sizes(void)
{
	static const size_t sizes[] = {0, 1, 7, 8, 9, 4070, 4072, 4073, 16000, 32767, 32768, 32769, 100000, 5000000};
	uint8_t *const in = malloc(5000000), *const out = malloc(5000000);
	const pp_queue queue = make(0);
	size_t size;
	pp_message m;

	REQUIRE(in != NULL && out != NULL);
	for (size_t i = 0; i < 5000000; i++)
		in[i] = (uint8_t)(i * 7 + i / 256);
	for (size_t round = 0; round < 3; round++)
		for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
			REQUIRE_STATUS(pp_queue_put(queue, in + i, sizes[i] > 100 ? sizes[i] - 20 : sizes[i], (uint32_t)i, -1), PP_OK);
		}
	REQUIRE_EQ(length(queue), 3 * sizeof sizes / sizeof *sizes);
	for (size_t round = 0; round < 3; round++)
		for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
			const size_t n = sizes[i] > 100 ? sizes[i] - 20 : sizes[i];
			const uint8_t *data = out;
			if (n > 0) {
				REQUIRE_STATUS(pp_queue_get(queue, out, n - 1, 0, &size), PP_ERR_TOO_BIG);
				REQUIRE_EQ(size, n);
			}
			memset(&m, 0, sizeof m);
			if (round == 0) {
				REQUIRE_STATUS(pp_queue_get(queue, out, 5000000, 0, &size), PP_OK);
			} else {
				REQUIRE_STATUS(pp_queue_take(queue, round == 1 ? out : NULL, round == 1 ? 4096 : 0, 0, &m), PP_OK);
				REQUIRE(m.data != NULL && (uintptr_t)m.data % 8 == 0);
				REQUIRE_EQ(m.codec, i);
				data = m.data;
				size = m.size;
			}
			REQUIRE_EQ(size, n);
			REQUIRE(memcmp(data, in + i, n) == 0);
			pp_message_free(&m);
			pp_message_free(&m);
		}
	REQUIRE_STATUS(pp_queue_get(queue, out, 10, 0, &size), PP_ERR_EMPTY);
	const pp_part parts[] = {{"abc", 3}, {NULL, 0}, {in, 40000}, {"d", 1}};
	REQUIRE_STATUS(pp_queue_put_parts(queue, parts, 2, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_put_parts(queue, parts, 4, PP_RAW, 0), PP_OK);
	expect(queue, "abc");
	REQUIRE_STATUS(pp_queue_get(queue, out, 50000, 0, &size), PP_OK);
	REQUIRE_EQ(size, 40004);
	REQUIRE(memcmp(out, "abc", 3) == 0 && memcmp(out + 3, in, 40000) == 0 && out[40003] == 'd');
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	free(in);
	free(out);
}

static void test_many(void)
{
	enum { N = 1000 };
	static char in[N * 100], out[N * 100];
	uint64_t sizes[N], got[N];
	const pp_queue queue = make(0), bounded = make(3);
	size_t n, total = 0, at = 0, all = 0;

	for (size_t i = 0; i < N; i++) {
		sizes[i] = i % 100;
		memset(in + total, (int)i, sizes[i]);
		total += sizes[i];
	}
	REQUIRE_STATUS(pp_queue_put_many(queue, in, sizes, N, PP_RAW, 0, &n), PP_OK);
	REQUIRE_EQ(n, N);
	while (all < N) {
		REQUIRE_STATUS(pp_queue_get_many(queue, out + at, sizeof out - at, got + all, 300, 0, &n), PP_OK);
		REQUIRE(n > 0 && n <= 300);
		for (size_t i = 0; i < n; i++) {
			REQUIRE_EQ(got[all + i], sizes[all + i]);
			at += got[all + i];
		}
		all += n;
	}
	REQUIRE_EQ(at, total);
	REQUIRE(memcmp(in, out, total) == 0);
	REQUIRE_STATUS(pp_queue_get_many(queue, out, sizeof out, got, 10, 0, &n), PP_ERR_EMPTY);
	REQUIRE_EQ(n, 0);
	REQUIRE_STATUS(pp_queue_put_many(bounded, in, sizes, 5, PP_RAW, 10, &n), PP_ERR_FULL);
	REQUIRE_EQ(n, 3);
	REQUIRE_EQ(length(bounded), 3);
	/* What does not fit stays. */
	REQUIRE_STATUS(pp_queue_put(queue, in, 10, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_put(queue, in, 90, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_get_many(queue, out, 50, got, 10, 0, &n), PP_OK);
	REQUIRE_EQ(n, 1);
	REQUIRE_STATUS(pp_queue_get_many(queue, out, 50, got, 10, 0, &n), PP_ERR_TOO_BIG);
	REQUIRE_EQ(got[0], 90);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_free(bounded), PP_OK);
}

static void test_bounds_and_time(void)
{
	const pp_queue queue = make(2);
	char buf[10];
	size_t size;

	put(queue, "1");
	put(queue, "2");
	REQUIRE_STATUS(pp_queue_put(queue, "3", 1, PP_RAW, 0), PP_ERR_FULL);
	REQUIRE_STATUS(pp_queue_put(queue, "3", 1, PP_RAW, PP_TRY), PP_ERR_FULL);
	int64_t start = now_ms();
	REQUIRE_STATUS(pp_queue_put(queue, "3", 1, PP_RAW, 100), PP_ERR_FULL);
	REQUIRE(now_ms() - start >= 100 && now_ms() - start < 5000);
	expect(queue, "1");
	expect(queue, "2");
	REQUIRE_STATUS(pp_queue_get(queue, buf, sizeof buf, 0, &size), PP_ERR_EMPTY);
	REQUIRE_STATUS(pp_queue_get(queue, buf, sizeof buf, PP_TRY, &size), PP_ERR_EMPTY);
	start = now_ms();
	REQUIRE_STATUS(pp_queue_get(queue, buf, sizeof buf, 100, &size), PP_ERR_EMPTY);
	REQUIRE(now_ms() - start >= 100 && now_ms() - start < 5000);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

static void test_arguments(void)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	pp_queue queue = make(0);
	pp_queue_state state;
	pp_message m;
	char buf[4];
	size_t n;

	REQUIRE_STATUS(pp_queue_create(NULL, NULL), PP_ERR_INVALID);
	options.maxsize = (uint64_t)1 << 31;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_ERR_INVALID);
	options.maxsize = 0;
	options.flags = PP_QUEUE_EXCLUSIVE;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_ERR_INVALID);
	options.flags = 0;
	options.size = 4;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_queue_put(queue, NULL, 1, PP_RAW, 0), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_queue_put(queue, "a", 1, 65536, 0), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_queue_put(queue, "a", SIZE_MAX, PP_RAW, 0), PP_ERR_TOO_BIG);
	REQUIRE_STATUS(pp_queue_put(queue, NULL, 0, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_get(queue, NULL, 1, 0, &n), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_queue_get(queue, buf, 1, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_queue_get(queue, NULL, 0, 0, &n), PP_OK);
	REQUIRE_EQ(n, 0);
	REQUIRE_STATUS(pp_queue_take(queue, buf, 1, 0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_queue_info(queue, NULL), PP_ERR_INVALID);
	memset(&m, 0, sizeof m);
	REQUIRE_STATUS(pp_message_ack(&m), PP_ERR_STATE);
	REQUIRE_STATUS(pp_message_ack(NULL), PP_ERR_STATE);
	pp_message_free(NULL);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_free(queue), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_queue_free(0), PP_OK);
	REQUIRE_STATUS(pp_queue_put(queue, "a", 1, PP_RAW, 0), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_queue_get(queue, buf, 1, 0, &n), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_queue_info(queue, &state), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_queue_close(queue), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_queue_join(queue, 0), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_queue_task_done(12345), PP_ERR_HANDLE);
}

static void *get_in_thread(void *queue)
{
	char buf[10];
	size_t size;
	int32_t status;

	do /* it may see the message that is not for it, and is too long for it */
		status = pp_queue_get(*(pp_queue *)queue, buf, sizeof buf, PATIENCE, &size);
	while (status == PP_ERR_TOO_BIG);
	return (void *)(intptr_t)status;
}

static void test_close_and_join(void)
{
	pp_queue queue = make(0);
	pthread_t threads[3];
	void *result;

	REQUIRE_STATUS(pp_queue_join(queue, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_task_done(queue), PP_ERR_STATE);
	put(queue, "a");
	put(queue, "b");
	REQUIRE_STATUS(pp_queue_join(queue, 20), PP_ERR_TIMEOUT);
	expect(queue, "a");
	REQUIRE_STATUS(pp_queue_task_done(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_join(queue, 0), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_queue_task_done(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_join(queue, -1), PP_OK);
	REQUIRE_STATUS(pp_queue_task_done(queue), PP_ERR_STATE);
	REQUIRE_STATUS(pp_queue_close(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_close(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_put(queue, "c", 1, PP_RAW, -1), PP_ERR_CLOSED);
	expect(queue, "b");
	char buf[10];
	size_t size;
	REQUIRE_STATUS(pp_queue_get(queue, buf, sizeof buf, -1, &size), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	queue = make(0);
	for (int i = 0; i < 3; i++)
		REQUIRE_EQ(pthread_create(&threads[i], NULL, get_in_thread, &queue), 0);
	put(queue, "one of them");
	expect(queue, "one of them");
	REQUIRE_STATUS(pp_queue_close(queue), PP_OK);
	for (int i = 0; i < 3; i++) {
		REQUIRE_EQ(pthread_join(threads[i], &result), 0);
		REQUIRE_EQ((intptr_t)result, PP_ERR_CLOSED);
	}
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

static void test_leases(void)
{
	static const size_t sizes[] = {10, 100000};
	char *const text = calloc(1, 100000);
	const pp_queue queue = make(0);
	pp_queue_state state;
	pp_message m, other;

	REQUIRE(text != NULL);
	for (int i = 0; i < 2; i++) {
		memset(text, 'a' + i, sizes[i]);
		REQUIRE_STATUS(pp_queue_put(queue, text, sizes[i], 5, 0), PP_OK);
		put(queue, "next");
		REQUIRE_STATUS(pp_queue_lease(queue, 0, &m), PP_OK);
		REQUIRE_EQ(m.size, sizes[i]);
		REQUIRE_EQ(m.codec, 5);
		REQUIRE(memcmp(m.data, text, sizes[i]) == 0);
		REQUIRE_STATUS(pp_queue_info(queue, &state), PP_OK);
		REQUIRE(state.size == 1 && state.leased == 1);
		pp_message_free(&m); /* back, and first */
		REQUIRE_EQ(length(queue), 2);
		REQUIRE_STATUS(pp_queue_lease(queue, 0, &m), PP_OK);
		REQUIRE_EQ(m.size, sizes[i]);
		REQUIRE_STATUS(pp_queue_lease(queue, 0, &other), PP_OK);
		REQUIRE_EQ(other.size, 4);
		REQUIRE_STATUS(pp_message_ack(&other), PP_OK);
		REQUIRE_STATUS(pp_message_ack(&other), PP_ERR_STATE);
		REQUIRE_STATUS(pp_message_ack(&m), PP_OK);
		pp_message_free(&m);
		REQUIRE_STATUS(pp_queue_info(queue, &state), PP_OK);
		REQUIRE(state.size == 0 && state.leased == 0);
	}
	/* Of a process that ends, or is killed. */
	put(queue, "kept");
	for (int i = 0; i < 2; i++) {
		const pid_t pid = fork();
		REQUIRE(pid >= 0);
		if (pid == 0) {
			if (pp_queue_lease(queue, PATIENCE, &m) != PP_OK)
				_exit(1);
			if (i == 0)
				_exit(0);
			kill(getpid(), SIGKILL);
		}
		REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
		REQUIRE_EQ(length(queue), 0);
		REQUIRE_STATUS(pp_queue_lease(queue, PATIENCE, &m), PP_OK);
		REQUIRE(m.size == 4 && memcmp(m.data, "kept", 4) == 0);
		pp_message_free(&m);
	}
	/* A lease is not a forked child's. */
	REQUIRE_STATUS(pp_queue_lease(queue, 0, &m), PP_OK);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		if (pp_message_ack(&m) != PP_ERR_STATE)
			_exit(1);
		pp_message_free(&m);
		_exit(0);
	}
	ended_well(pid);
	REQUIRE_STATUS(pp_message_ack(&m), PP_OK);
	REQUIRE_EQ(length(queue), 0);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	free(text);
}

/* A message that a process has when it forks stays its own; in the child, where the queue's memory may be gone by then, there is nothing to free. */
static void test_message_in_forked_child(void)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	char *const text = calloc(1, 200000), name[64];
	pp_queue queue;
	pp_message held, leased;

	REQUIRE(text != NULL);
	snprintf(name, sizeof name, "test-%d-fork", (int)getpid());
	options.name = name;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	REQUIRE_STATUS(pp_queue_put(queue, text, 200000, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_put(queue, text, 200000, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_take(queue, NULL, 0, 0, &held), PP_OK);
	REQUIRE_STATUS(pp_queue_lease(queue, 0, &leased), PP_OK);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		if (pp_queue_free(queue) != PP_OK || pp_message_ack(&leased) != PP_ERR_STATE)
			_exit(1);
		pp_message_free(&held);
		pp_message_free(&leased);
		_exit(held.data != NULL || leased.data != NULL);
	}
	ended_well(pid);
	REQUIRE(held.size == 200000 && memcmp(held.data, text, 200000) == 0);
	pp_message_free(&held);
	REQUIRE_STATUS(pp_message_ack(&leased), PP_OK);
	REQUIRE_EQ(length(queue), 0);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_unlink(name), PP_OK);
	free(text);
}

static void test_view_outlives_handle(void)
{
	char *const text = malloc(200000);
	const pp_queue queue = make(0);
	pp_message m;

	REQUIRE(text != NULL);
	memset(text, 'x', 200000);
	REQUIRE_STATUS(pp_queue_put(queue, text, 200000, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_take(queue, NULL, 0, 0, &m), PP_OK);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	const pp_queue others = make(0); /* nothing of it may lie there */
	REQUIRE_STATUS(pp_queue_put(others, text + 1, 199999, PP_RAW, 0), PP_OK);
	REQUIRE(memcmp(m.data, text, 200000) == 0);
	pp_message_free(&m);
	REQUIRE_STATUS(pp_queue_free(others), PP_OK);
	free(text);
}

static void test_named(void)
{
	char name[64], long_name[300];
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	pp_queue queue, again;
	struct stat st;
	char path[128];

	snprintf(name, sizeof name, "test-%d", (int)getpid());
	snprintf(path, sizeof path, "/dev/shm/pp.q.%s", name);
	options.name = name;
	options.maxsize = 2;
	options.flags = PP_QUEUE_EXISTING;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_ERR_NOT_FOUND);
	options.flags = PP_QUEUE_EXCLUSIVE;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	REQUIRE_STATUS(pp_queue_create(&options, &again), PP_ERR_EXISTS);
	REQUIRE_EQ(stat(path, &st), 0);
	REQUIRE_EQ(st.st_mode & 0777, 0600);
	options.flags = 0;
	options.maxsize = 100;
	REQUIRE_STATUS(pp_queue_create(&options, &again), PP_OK);
	put(queue, "1");
	put(again, "2");
	REQUIRE_STATUS(pp_queue_put(again, "3", 1, PP_RAW, 0), PP_ERR_FULL);
	expect(again, "1");
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_free(again), PP_OK);
	/* Forks with it open, and after it was closed: its memory is not there any more. */
	options.flags = PP_QUEUE_EXISTING;
	const pp_queue other = make(0); /* without any handle nothing is to be done at a fork */
	for (int round = 0; round < 5; round++) {
		pid_t pid = -1;
		REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
		for (int open = 1; open >= 0; open--) {
			pid = fork();
			REQUIRE(pid >= 0);
			if (pid == 0)
				_exit(pp_queue_put(queue, "?", 1, PP_RAW, 0) == (open ? PP_OK : PP_ERR_HANDLE) ? 0 : 1);
			ended_well(pid);
			if (open) {
				REQUIRE_EQ(length(queue), 2);
				expect(queue, "2");
				expect(queue, "?");
				put(queue, "2");
				REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
			}
		}
	}
	REQUIRE_STATUS(pp_queue_free(other), PP_OK);
	/* It stays, with what is in it. Many make it at once, one is made. */
	options.flags = PP_QUEUE_EXISTING;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	expect(queue, "2");
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	for (int round = 0; round < 20; round++) {
		pid_t pids[4];
		REQUIRE_STATUS(pp_queue_unlink(name), PP_OK);
		options.flags = 0;
		for (int i = 0; i < 4; i++) {
			pids[i] = fork();
			REQUIRE(pids[i] >= 0);
			if (pids[i] == 0) {
				if (pp_queue_create(&options, &queue) != PP_OK || pp_queue_put(queue, "x", 1, PP_RAW, 0) != PP_OK) {
					fprintf(stderr, "%s\n", pp_last_error());
					_exit(1);
				}
				_exit(0);
			}
		}
		for (int i = 0; i < 4; i++)
			ended_well(pids[i]);
		REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
		REQUIRE_EQ(length(queue), 4);
		REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	}
	/* No queue. */
	REQUIRE_STATUS(pp_queue_unlink(name), PP_OK);
	FILE *const file = fopen(path, "w");
	REQUIRE(file != NULL);
	fputs("something else", file);
	fclose(file);
	REQUIRE_EQ(chmod(path, 0600), 0); /* else it is not even looked into */
	const int32_t status = pp_queue_create(&options, &queue);
	REQUIRE(status == PP_ERR_CORRUPT);
	REQUIRE_STATUS(pp_queue_unlink(name), PP_OK);
	REQUIRE_STATUS(pp_queue_unlink(name), PP_ERR_NOT_FOUND);
	memset(long_name, 'x', 201);
	long_name[201] = 0;
	const char *const bad[] = {"", ".", "..", "a/b", ".a", long_name};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		options.name = bad[i];
		REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_ERR_INVALID);
		REQUIRE_STATUS(pp_queue_unlink(bad[i]), PP_ERR_INVALID);
	}
	REQUIRE_STATUS(pp_queue_unlink(NULL), PP_ERR_INVALID);
}

static void test_references(void)
{
	const pp_queue outer = make(0), inner = make(0);
	uint8_t ref[PP_REF_SIZE];
	size_t size;

	put(inner, "inside");
	REQUIRE_STATUS(pp_ref_export(inner, ref), PP_OK);
	REQUIRE_STATUS(pp_queue_put(outer, ref, sizeof ref, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_free(inner), PP_OK);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		pp_queue got;
		REQUIRE_STATUS(pp_queue_get(outer, ref, sizeof ref, PATIENCE, &size), PP_OK);
		REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_LOCK, &got, NULL), PP_ERR_INVALID);
		REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_QUEUE, &got, NULL), PP_OK);
		expect(got, "inside");
		/* One that it has made, and then it is no more. */
		const pp_queue mine = make(0);
		char *const large = calloc(1, 16 << 20);
		REQUIRE(large != NULL);
		memset(large, 'y', 16 << 20);
		REQUIRE_STATUS(pp_queue_put(mine, large, 16 << 20, PP_RAW, 0), PP_OK);
		REQUIRE_STATUS(pp_ref_export(mine, ref), PP_OK);
		REQUIRE_STATUS(pp_queue_put(outer, ref, sizeof ref, PP_RAW, 0), PP_OK);
		kill(getpid(), SIGKILL);
	}
	int status;
	REQUIRE_EQ(waitpid(pid, &status, 0), pid);
	REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	pp_queue got;
	pp_message m;
	REQUIRE_STATUS(pp_queue_get(outer, ref, sizeof ref, 0, &size), PP_OK);
	REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_QUEUE, &got, NULL), PP_OK);
	REQUIRE_STATUS(pp_queue_take(got, NULL, 0, 0, &m), PP_OK);
	REQUIRE_EQ(m.size, 16 << 20);
	for (size_t i = 0; i < m.size; i++)
		REQUIRE(((const char *)m.data)[i] == 'y');
	pp_message_free(&m);
	REQUIRE_STATUS(pp_queue_free(got), PP_OK);
	REQUIRE_STATUS(pp_queue_free(outer), PP_OK);
}

/* reader_of_ref returns the receiving end of a new pipe whose only other end is a reference. */
static pp_pipe reader_of_ref(uint8_t ref_out[PP_REF_SIZE])
{
	pp_pipe ends[2];

	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_STATUS(pp_ref_export(ends[1], ref_out), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
	return ends[0];
}

static void expect_eof(pp_pipe end)
{
	char byte;

	REQUIRE_STATUS((int32_t)pp_pipe_recv(end, &byte, 1, PATIENCE), PP_ERR_EOF);
	REQUIRE_STATUS(pp_pipe_free(end), PP_OK);
}

/* What the messages of a destroyed queue or pipe refer to is not kept. */
static void test_references_in_a_destroyed_queue(void)
{
	enum { AT = 7, DEEP = 3000, RETURNED = 3, FD = 4, N = 5 };
	static uint8_t message[100000];
	static const size_t sizes[] = {AT + PP_REF_SIZE, 5000, sizeof message, sizeof message, AT + PP_REF_SIZE};
	pp_pipe readers[N], ends[2], reader;
	uint8_t ref[PP_REF_SIZE];
	pp_message m;
	char byte;

	for (int in_pipe = 0; in_pipe < 2; in_pipe++) {
		const pp_queue queue = make(0);
		int fds[2];
		REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
		REQUIRE_EQ(pipe(fds), 0);
		for (int i = 0; i < N; i++) {
			if (i == FD)
				REQUIRE_STATUS(pp_fd_export(fds[1], message + AT), PP_OK);
			else
				readers[i] = reader_of_ref(message + AT);
			REQUIRE_STATUS(in_pipe ? pp_pipe_send(ends[1], message, sizes[i], 0) : pp_queue_put(queue, message, sizes[i], PP_RAW, 0), PP_OK);
			for (int k = 0; i == RETURNED && k < RETURNED && !in_pipe; k++) { /* all before it go behind it */
				REQUIRE_STATUS(pp_queue_lease(queue, 0, &m), PP_OK);
				REQUIRE_STATUS(pp_queue_put(queue, m.data, m.size, PP_RAW, 0), PP_OK);
				REQUIRE_STATUS(pp_message_ack(&m), PP_OK);
			}
			if (i == RETURNED && !in_pipe) {
				REQUIRE_STATUS(pp_queue_lease(queue, 0, &m), PP_OK);
				pp_message_free(&m);
			}
		}
		close(fds[1]);
		REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
		REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
		REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
		for (int i = 0; i < N; i++)
			if (i != FD)
				expect_eof(readers[i]);
		REQUIRE_EQ(read(fds[0], &byte, 1), 0);
		close(fds[0]);
	}
	/* A queue in a queue in a queue ... */
	reader = reader_of_ref(ref);
	for (int i = 0; i < DEEP; i++) {
		const pp_queue queue = make(0);
		REQUIRE_STATUS(pp_queue_put(queue, ref, sizeof ref, PP_RAW, 0), PP_OK);
		if (i + 1 < DEEP)
			REQUIRE_STATUS(pp_ref_export(queue, ref), PP_OK);
		REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	}
	expect_eof(reader);
	/* The same by hand; and whoever dies before it is done leaves it to others. */
	reader = reader_of_ref(message + AT);
	REQUIRE_STATUS(pp_refs_forget(message, sizeof message), PP_OK);
	REQUIRE_STATUS(pp_refs_forget(message, sizeof message), PP_OK);
	REQUIRE_STATUS(pp_refs_forget(NULL, 0), PP_OK);
	REQUIRE_STATUS(pp_refs_forget(NULL, 1), PP_ERR_INVALID);
	expect_eof(reader);
	reader = reader_of_ref(ref);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		REQUIRE_STATUS(pp_queue_put(make(0), ref, sizeof ref, PP_RAW, 0), PP_OK);
		kill(getpid(), SIGKILL);
	}
	REQUIRE_EQ(waitpid(pid, NULL, 0), pid);
	for (int64_t until = now_ms() + PATIENCE;;) { /* who makes objects looks for the dead, once a second */
		REQUIRE_STATUS(pp_queue_free(make(0)), PP_OK);
		const int32_t status = (int32_t)pp_pipe_recv(reader, &byte, 1, 100);
		if (status == PP_ERR_EOF)
			break;
		REQUIRE_STATUS(status, PP_ERR_TIMEOUT);
		REQUIRE(now_ms() < until);
	}
	REQUIRE_STATUS(pp_pipe_free(reader), PP_OK);
}

/* A reference that was imported means nothing to pp_ref_forget, whatever has its cell now. */
static void test_old_reference_is_forgotten(void)
{
	uint8_t old[PP_REF_SIZE], new[PP_REF_SIZE];
	const pp_queue queue = make(0);
	pp_queue got;

	REQUIRE_STATUS(pp_ref_export(queue, old), PP_OK);
	REQUIRE_STATUS(pp_ref_import(old, PP_KIND_QUEUE, &got, NULL), PP_OK);
	REQUIRE_STATUS(pp_queue_free(got), PP_OK);
	REQUIRE_STATUS(pp_ref_export(queue, new), PP_OK);
	REQUIRE(memcmp(old, new, 24) == 0 && memcmp(old + 24, new + 24, 4) == 0); /* the same cell */
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_ref_forget(old), PP_OK);
	REQUIRE_STATUS(pp_ref_import(new, PP_KIND_QUEUE, &got, NULL), PP_OK);
	put(got, "here");
	expect(got, "here");
	REQUIRE_STATUS(pp_queue_free(got), PP_OK);
}

static volatile sig_atomic_t signals;

static void on_signal(int signal)
{
	(void)signal;
	signals++;
}

static void test_signals(void)
{
	struct sigaction action;
	const pp_queue queue = make(0);
	const struct timespec soon = {0, 100000000};
	char buf[10];
	size_t size;
	timer_t timer;
	struct sigevent event;

	memset(&action, 0, sizeof action);
	action.sa_handler = on_signal; /* without SA_RESTART */
	REQUIRE_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	memset(&event, 0, sizeof event);
	event.sigev_notify = SIGEV_SIGNAL;
	event.sigev_signo = SIGUSR1;
	REQUIRE_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	const struct itimerspec spec = {{0, 0}, soon};
	REQUIRE_EQ(timer_settime(timer, 0, &spec, NULL), 0);
	REQUIRE_STATUS(pp_queue_get(queue, buf, sizeof buf, PATIENCE, &size), PP_ERR_INTERRUPTED);
	REQUIRE_EQ(signals, 1);
	put(queue, "a");
	REQUIRE_EQ(timer_settime(timer, 0, &spec, NULL), 0);
	REQUIRE_STATUS(pp_queue_join(queue, PATIENCE), PP_ERR_INTERRUPTED);
	REQUIRE_EQ(timer_delete(timer), 0);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

/* Several producers and consumers, in processes and threads, on a bounded queue: every message once, each producer's in order. */
static void test_many_to_many(void)
{
	enum { PRODUCERS = 3, CONSUMERS = 3, EACH = 20000 };
	typedef struct item {
		uint32_t from, number;
	} item;
	uint8_t (*const seen)[EACH] = mmap(NULL, PRODUCERS * EACH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const pp_queue queue = make(50);
	pid_t pids[PRODUCERS + CONSUMERS];

	REQUIRE(seen != MAP_FAILED);
	for (uint32_t i = 0; i < PRODUCERS + CONSUMERS; i++) {
		pids[i] = fork();
		REQUIRE(pids[i] >= 0);
		if (pids[i] != 0)
			continue;
		if (i < PRODUCERS) {
			for (item m = {i, 0}; m.number < EACH; m.number++)
				REQUIRE_STATUS(pp_queue_put(queue, &m, sizeof m, PP_RAW, -1), PP_OK);
			_exit(0);
		}
		uint32_t last[PRODUCERS] = {0};
		for (;;) {
			item m[10];
			uint64_t sizes[10];
			size_t n;
			const int32_t status = pp_queue_get_many(queue, m, sizeof m, sizes, i % 2 ? 10 : 1, -1, &n);
			if (status == PP_ERR_CLOSED)
				_exit(0);
			REQUIRE_STATUS(status, PP_OK);
			for (size_t k = 0; k < n; k++) {
				REQUIRE(m[k].number + 1 > last[m[k].from]);
				last[m[k].from] = m[k].number + 1;
				__atomic_fetch_add(&seen[m[k].from][m[k].number], 1, __ATOMIC_SEQ_CST);
			}
		}
	}
	for (int i = 0; i < PRODUCERS; i++)
		ended_well(pids[i]);
	REQUIRE_STATUS(pp_queue_close(queue), PP_OK);
	for (int i = PRODUCERS; i < PRODUCERS + CONSUMERS; i++)
		ended_well(pids[i]);
	for (int i = 0; i < PRODUCERS; i++)
		for (int k = 0; k < EACH; k++)
			REQUIRE_EQ(seen[i][k], 1);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_EQ(munmap(seen, PRODUCERS * EACH), 0);
}

static void test_thousands(void)
{
	enum { N = 10000 };
	static pp_queue queues[N];
	struct rlimit limit;

	REQUIRE_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
	const struct rlimit low = {256, limit.rlim_max};
	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
	for (int i = 0; i < N; i++) {
		queues[i] = make(0);
		put(queues[i], "here");
	}
	for (int i = 0; i < N; i++)
		expect(queues[i], "here");
	for (int i = 0; i < N; i++)
		REQUIRE_STATUS(pp_queue_free(queues[i]), PP_OK);
	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* A burst, small messages and large ones, of POLYPROC_BURST_MB (200) together, and the memory is back. */
static void test_burst(void)
{
	const char *const given = getenv("POLYPROC_BURST_MB");
	const uint64_t bytes = (uint64_t)(given != NULL ? atoi(given) : 200) << 20;
	static char message[64000];
	const uint64_t before = storage();
	const pp_queue queue = make(0);
	uint64_t n = 0, size = 0;
	size_t got;

	for (; size < bytes; n++) {
		const size_t length = n % 10 == 0 ? sizeof message : 2000;
		REQUIRE_STATUS(pp_queue_put(queue, message, length, PP_RAW, 0), PP_OK);
		size += length;
	}
	REQUIRE(storage() - before >= bytes);
	for (uint64_t i = 0; i < n; i++)
		REQUIRE_STATUS(pp_queue_get(queue, message, sizeof message, 0, &got), PP_OK);
	REQUIRE_EQ(length(queue), 0);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	const uint64_t after = storage();
	printf("%llu MB in %llu messages: %llu MB of memory before, %llu MB after\n", (unsigned long long)(bytes >> 20), (unsigned long long)n,
	       (unsigned long long)(before >> 20), (unsigned long long)(after >> 20));
	REQUIRE(after < before + ((uint64_t)32 << 20)); /* 16 MiB are kept warm */
}

static void test_large(void)
{
	enum { SIZE = 100 << 20 };
	char *const in = malloc(SIZE);
	const pp_queue queue = make(0);
	pp_message m;

	REQUIRE(in != NULL);
	memset(in, 'z', SIZE);
	REQUIRE_STATUS(pp_queue_put(queue, in, SIZE, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_queue_take(queue, NULL, 0, 0, &m), PP_OK);
	REQUIRE_EQ(m.size, SIZE);
	REQUIRE(memcmp(m.data, in, SIZE) == 0);
	pp_message_free(&m);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	free(in);
}

/* Limits are errors. In a child of its own: the limits stay with it. */
static void test_limits(void)
{
	static const struct {
		int what;
		rlim_t limit;
	} limits[] = {{RLIMIT_FSIZE, 1 << 20}, {RLIMIT_FSIZE, 100 << 20}, {RLIMIT_AS, 200 << 20}};

	for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
		/* The family's memory is there already, so a program that starts under the limit. */
		char what[32], limit[32];
		snprintf(what, sizeof what, "%d", limits[i].what);
		snprintf(limit, sizeof limit, "%llu", (unsigned long long)limits[i].limit);
		const pid_t pid = fork();
		REQUIRE(pid >= 0);
		if (pid == 0) {
			execl("/proc/self/exe", "queue_test", what, limit, (char *)NULL);
			_exit(127);
		}
		ended_well(pid);
	}
}

static int limited(int what, rlim_t most)
{
	const struct rlimit limit = {most, most};
	static char message[300000];
	pp_queue queue;
	int64_t n = 0;
	size_t size;

	REQUIRE_EQ(setrlimit(what, &limit), 0);
	int32_t status = pp_queue_create(NULL, &queue);
	while (status == PP_OK && n < 10000) {
		status = pp_queue_put(queue, message, n % 2 ? 3000 : sizeof message, PP_RAW, 0);
		n += status == PP_OK;
	}
	REQUIRE_STATUS(status, PP_ERR_NOMEM);
	printf("limit %d of %llu MB: %lld messages, then %s\n", what, (unsigned long long)(most >> 20), (long long)n, pp_last_error());
	for (int64_t i = 0; i < n; i++)
		REQUIRE_STATUS(pp_queue_get(queue, message, sizeof message, 0, &size), PP_OK);
	if (n > 0) {
		put(queue, "on it goes");
		expect(queue, "on it goes");
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3)
		return limited(atoi(argv[1]), (rlim_t)atoll(argv[2]));
	test_sizes();
	test_many();
	test_bounds_and_time();
	test_arguments();
	test_close_and_join();
	test_leases();
	test_message_in_forked_child();
	test_view_outlives_handle();
	test_named();
	test_references();
	test_references_in_a_destroyed_queue();
	test_old_reference_is_forgotten();
	test_signals();
	test_many_to_many();
	test_thousands();
	test_burst();
	test_large();
	test_limits();
	return 0;
}
