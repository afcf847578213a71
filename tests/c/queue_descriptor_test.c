/* queue_descriptor_test.c - pp_queue_descriptor: a poller gets every message, whoever puts, takes, forks or is killed meanwhile.
 *
 * deadline: 180 s
 */
#include "procfs.h"

#include <polyproc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { PATIENCE = 20000, PUTTERS = 4, EACH = 3000 };

static pp_queue make(uint64_t maxsize, const char *name)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	pp_queue queue;

	options.maxsize = maxsize;
	options.name = name;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	return queue;
}

static int descriptor(pp_queue queue)
{
	int32_t fd;

	REQUIRE_STATUS(pp_queue_descriptor(queue, &fd), PP_OK);
	return fd;
}

static bool readable(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	const int n = poll(&p, 1, ms);

	REQUIRE(n == 0 || (n == 1 && p.revents == POLLIN));
	return n == 1;
}

static void put(pp_queue queue, uint32_t number)
{
	REQUIRE_STATUS(pp_queue_put(queue, &number, sizeof number, PP_RAW, PATIENCE), PP_OK);
}

/* get returns false if there is nothing now. */
static bool get(pp_queue queue, uint32_t *number)
{
	size_t size;
	int32_t status;

	do
		status = pp_queue_get(queue, number, sizeof *number, 0, &size);
	while (status == PP_ERR_TIMEOUT || status == PP_ERR_INTERRUPTED);
	if (status == PP_ERR_EMPTY)
		return false;
	REQUIRE_STATUS(status, PP_OK);
	REQUIRE_EQ(size, sizeof *number);
	return true;
}

static pid_t forked(void)
{
	const pid_t pid = fork();

	REQUIRE(pid >= 0);
	if (pid == 0)
		alarm(120);
	return pid;
}

static void ended_well(pid_t pid)
{
	int status;

	REQUIRE_EQ(waitpid(pid, &status, 0), pid);
	REQUIRE(WIFEXITED(status));
	REQUIRE_EQ(WEXITSTATUS(status), 0);
}

static void test_level(void)
{
	const pp_queue queue = make(0, NULL);
	const int before = count_descriptors_like("eventfd");
	pp_queue_state state;
	uint32_t number;
	int32_t none;

	REQUIRE_STATUS(pp_queue_descriptor(queue, NULL), PP_ERR_INVALID);
	put(queue, 1);
	REQUIRE_EQ(count_descriptors_like("eventfd"), before); /* who does not ask has none */
	const int fd = descriptor(queue);
	REQUIRE(readable(fd, 0)); /* at once: there is something */
	REQUIRE(get(queue, &number));
	REQUIRE(!readable(fd, 0));
	for (int i = 0; i < 300; i++) {
		put(queue, 2);
		REQUIRE(readable(fd, PATIENCE));
		put(queue, 3);
		REQUIRE(readable(fd, 0));
		REQUIRE(get(queue, &number));
		REQUIRE(readable(fd, 0)); /* one is left */
		REQUIRE(get(queue, &number));
		REQUIRE(!readable(fd, 0));
		REQUIRE_EQ(descriptor(queue), fd);
	}
	/* Asking looks, whatever the library's thread is about to do. */
	for (int i = 0; i < 3000; i++) {
		put(queue, 2);
		REQUIRE(readable(descriptor(queue), 0));
		REQUIRE(get(queue, &number));
		REQUIRE(!readable(descriptor(queue), 0));
	}
	REQUIRE_EQ(count_descriptors_like("eventfd"), before + 1);

	/* A message that a lease gives back. */
	pp_message message;
	put(queue, 4);
	REQUIRE(readable(fd, PATIENCE));
	REQUIRE_STATUS(pp_queue_lease(queue, PATIENCE, &message), PP_OK);
	REQUIRE(!readable(fd, 0));
	pp_message_free(&message);
	REQUIRE(readable(fd, PATIENCE));
	REQUIRE_STATUS(pp_queue_info(queue, &state), PP_OK);
	REQUIRE(readable(fd, 0));
	REQUIRE(get(queue, &number));
	REQUIRE(!readable(fd, 0));

	/* Nothing is to be had of a closed one, and a getter is to be told. */
	REQUIRE_STATUS(pp_queue_close(queue), PP_OK);
	REQUIRE(readable(fd, PATIENCE));
	REQUIRE_STATUS(pp_queue_info(queue, &state), PP_OK);
	REQUIRE(readable(fd, 0));
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_descriptor(queue, &none), PP_ERR_HANDLE);
	/* With its thread. */
	WITHIN(PATIENCE, count_descriptors_like("eventfd") == before);
	WITHIN(PATIENCE, status_number(getpid(), "Threads:") == 1);
}

/* Where another process takes the message first, the descriptor is readable in vain, and once only. */
static void test_taken_by_others(void)
{
	const pp_queue queue = make(0, NULL);
	const int fd = descriptor(queue);
	uint32_t number;

	for (int i = 0; i < 20; i++) {
		put(queue, 1);
		REQUIRE(readable(fd, PATIENCE));
		const pid_t child = forked();
		if (child == 0) {
			REQUIRE(get(queue, &number));
			_exit(0);
		}
		ended_well(child);
		REQUIRE(readable(fd, 0));
		REQUIRE(!get(queue, &number));
		REQUIRE(!readable(fd, 0));
	}
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

/* Several processes put; the parent and another poller take what their descriptors announce, and a third process waits in pp_queue_get. */
static void many(uint64_t maxsize, const char *name)
{
	const pp_queue queue = make(maxsize, name);
	uint32_t *const seen = mmap(NULL, (PUTTERS * EACH + 1) * sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint32_t *const total = &seen[PUTTERS * EACH];
	pid_t putters[PUTTERS], getters[2];
	uint32_t number;

	REQUIRE(seen != MAP_FAILED);
	for (int kind = 0; kind < 2; kind++) {
		getters[kind] = forked();
		if (getters[kind] != 0)
			continue;
		for (;;) {
			size_t size;
			if (kind == 0) {
				REQUIRE_STATUS(pp_queue_get(queue, &number, sizeof number, PATIENCE, &size), PP_OK);
			} else {
				REQUIRE(readable(descriptor(queue), PATIENCE));
				if (!get(queue, &number))
					continue;
			}
			if (number == UINT32_MAX)
				_exit(0);
			__atomic_fetch_add(&seen[number], 1, __ATOMIC_SEQ_CST);
			__atomic_fetch_add(total, 1, __ATOMIC_SEQ_CST);
		}
	}
	for (uint32_t i = 0; i < PUTTERS; i++) {
		putters[i] = forked();
		if (putters[i] == 0) {
			uint64_t random = i + 1;
			for (uint32_t k = 0; k < EACH; k++) {
				put(queue, i * EACH + k);
				if (next_random(&random) % 16 == 0) /* so that the queue is empty now and then */
					nanosleep(&(struct timespec){0, (long)(next_random(&random) % 300000)}, NULL);
			}
			_exit(0);
		}
	}
	const int fd = descriptor(queue), epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN};
	REQUIRE_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
	while (__atomic_load_n(total, __ATOMIC_SEQ_CST) < PUTTERS * EACH) {
		/* The others may take the last ones. */
		if (epoll_wait(epoll, &event, 1, 100) == 0)
			continue;
		while (get(queue, &number)) {
			__atomic_fetch_add(&seen[number], 1, __ATOMIC_SEQ_CST);
			__atomic_fetch_add(total, 1, __ATOMIC_SEQ_CST);
		}
	}
	for (uint32_t i = 0; i < PUTTERS; i++)
		ended_well(putters[i]);
	for (uint32_t i = 0; i < PUTTERS * EACH; i++)
		REQUIRE_EQ(seen[i], 1);
	put(queue, UINT32_MAX);
	put(queue, UINT32_MAX);
	ended_well(getters[0]);
	ended_well(getters[1]);
	REQUIRE_EQ(close(epoll), 0);
	REQUIRE_EQ(munmap(seen, (PUTTERS * EACH + 1) * sizeof *seen), 0);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

static void test_many(void)
{
	char name[60];

	many(0, NULL);
	many(3, NULL);
	snprintf(name, sizeof name, "descriptor-test-%d", (int)getpid());
	many(0, name);
	REQUIRE_STATUS(pp_queue_unlink(name), PP_OK);
}

/* The only poller sees each message of a putter, one by one: no other getter, and no other message, makes up for a missed wake-up. */
static void test_each(void)
{
	const pp_queue there = make(0, NULL), back = make(0, NULL);
	uint32_t number;

	const pid_t child = forked();
	if (child == 0) {
		for (uint32_t i = 0; i < 5000; i++) {
			put(there, i);
			while (readable(descriptor(back), PATIENCE) && !get(back, &number))
				;
			REQUIRE_EQ(number, i);
		}
		_exit(0);
	}
	const int fd = descriptor(there);
	for (uint32_t i = 0; i < 5000; i++) {
		do
			REQUIRE(readable(fd, PATIENCE));
		while (!get(there, &number));
		REQUIRE_EQ(number, i);
		put(back, i);
	}
	ended_well(child);
	REQUIRE_STATUS(pp_queue_free(there), PP_OK);
	REQUIRE_STATUS(pp_queue_free(back), PP_OK);
}

/* Putters are killed at any moment; what they have put is announced all the same. */
static void test_killed(void)
{
	const pp_queue queue = make(50, NULL); /* bounded: the putter may be the faster one */
	const int fd = descriptor(queue);
	uint32_t *const done = mmap(NULL, sizeof *done, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t random = 7;

	REQUIRE(done != MAP_FAILED);
	for (int round = 0; round < 100; round++) {
		uint32_t number, next = 0;
		*done = 0;
		const pid_t putter = forked();
		if (putter == 0)
			for (uint32_t i = 0;; i++) {
				put(queue, i);
				__atomic_store_n(done, i + 1, __ATOMIC_SEQ_CST);
			}
		WITHIN(PATIENCE, __atomic_load_n(done, __ATOMIC_SEQ_CST) != 0);
		const int64_t stop = (int64_t)(next_random(&random) % 2000);
		while (next < stop) {
			REQUIRE(readable(fd, PATIENCE));
			while (next < stop && get(queue, &number)) {
				REQUIRE_EQ(number, next);
				next++;
			}
		}
		REQUIRE_EQ(kill(putter, SIGKILL), 0);
		REQUIRE_EQ(waitpid(putter, NULL, 0), putter);
		while (next < *done) {
			REQUIRE(readable(fd, PATIENCE));
			while (get(queue, &number)) {
				REQUIRE_EQ(number, next);
				next++;
			}
		}
		while (get(queue, &number)) /* the one that was put and not counted */
			REQUIRE_EQ(number, next);
		WITHIN(PATIENCE, !readable(fd, 0));
	}
	REQUIRE_EQ(munmap(done, sizeof *done), 0);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

/* The child's descriptor is its own: neither takes the other's readiness. */
static void test_fork(void)
{
	const pp_queue queue = make(0, NULL), back = make(0, NULL);
	const int fd = descriptor(queue);
	uint32_t number;

	REQUIRE(!readable(fd, 0));
	const pid_t child = forked();
	if (child == 0) {
		/* By the number that it has inherited. */
		REQUIRE(readable(fd, 0));
		REQUIRE(!get(queue, &number));
		REQUIRE(!readable(fd, 0));
		for (uint32_t i = 0; i < 200; i++) {
			put(back, i);
			do
				REQUIRE(readable(fd, PATIENCE));
			while (!get(queue, &number));
			REQUIRE_EQ(number, i);
			REQUIRE_EQ(descriptor(queue), fd);
		}
		_exit(0);
	}
	for (uint32_t i = 0; i < 200; i++) {
		pp_queue_state state;
		size_t size;
		REQUIRE_STATUS(pp_queue_get(back, &number, sizeof number, PATIENCE, &size), PP_OK);
		put(queue, i);
		/* The parent looks meanwhile, and clears its own. */
		REQUIRE_STATUS(pp_queue_info(queue, &state), PP_OK);
	}
	ended_well(child);
	/* One that looks nowhere is no worse for it. */
	const pid_t idle = forked();
	if (idle == 0) {
		REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
		_exit(0);
	}
	ended_well(idle);
	put(queue, 5);
	REQUIRE(readable(fd, PATIENCE));
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_queue_free(back), PP_OK);
}

/* Handles with descriptors come and go in threads, while others are inside calls. */
static void *come_and_go(void *of)
{
	const pp_queue shared = *(pp_queue *)of;
	uint32_t number;

	for (int i = 0; i < 300; i++) {
		const pp_queue own = make(0, NULL);
		const int fd = descriptor(own);
		put(own, 1);
		put(shared, 2);
		(void)descriptor(shared);
		REQUIRE(readable(fd, PATIENCE));
		get(shared, &number);
		REQUIRE_STATUS(pp_queue_free(own), PP_OK);
	}
	return NULL;
}

static void test_threads(void)
{
	pp_queue shared = make(0, NULL);
	pthread_t threads[4];
	uint32_t number;

	for (int i = 0; i < 4; i++)
		REQUIRE_EQ(pthread_create(&threads[i], NULL, come_and_go, &shared), 0);
	for (int i = 0; i < 4; i++)
		REQUIRE_EQ(pthread_join(threads[i], NULL), 0);
	while (get(shared, &number))
		;
	REQUIRE(!readable(descriptor(shared), 0));
	put(shared, 1);
	REQUIRE(readable(descriptor(shared), 0));
	REQUIRE_STATUS(pp_queue_free(shared), PP_OK);
	WITHIN(PATIENCE, status_number(getpid(), "Threads:") == 1);
}

/* Without a thread or a descriptor it is an error of this call, and the queue goes on. */
static void test_limits(void)
{
	const pid_t child = forked();

	if (child == 0) {
		const pp_queue queue = make(0, NULL);
		struct rlimit limit;
		uint32_t number;
		int32_t fd;

		REQUIRE_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
		const struct rlimit none = {0, limit.rlim_max};
		REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
		REQUIRE_STATUS(pp_queue_descriptor(queue, &fd), PP_ERR_SYSTEM);
		put(queue, 1);
		REQUIRE(get(queue, &number));
		REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
		REQUIRE(!readable(descriptor(queue), 0));
		/* Closed by the program: another comes. */
		REQUIRE_EQ(close(descriptor(queue)), 0);
		put(queue, 1);
		REQUIRE(readable(descriptor(queue), 0));
		REQUIRE(get(queue, &number));
		REQUIRE(!readable(descriptor(queue), 0));
		REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
		_exit(0);
	}
	ended_well(child);
}

int main(void)
{
	test_level();
	test_taken_by_others();
	test_each();
	test_many();
	test_killed();
	test_fork();
	test_threads();
	test_limits();
	return 0;
}
