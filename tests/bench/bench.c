/* bench.c - the C side of make bench: what a task that does nothing costs.
 *
 *   bench-c polyproc|polyproc-fork|pipes|threads WORKERS TASKS
 *
 * prints the seconds that TASKS tasks of 16 bytes took, one at a time to a worker (chunk 1), workers started and warmed up:
 *   polyproc       pp_pool_map, spawned workers
 *   polyproc-fork  pp_pool_map, forked workers
 *   pipes          processes by fork(), a pair of pipes each, one task in flight each, poll() in the parent
 *   threads        pthreads, one queue with a mutex and a condition variable
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _POSIX_C_SOURCE 200809L
#include <poll.h>
#include <polyproc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct task {
	uint64_t index, value;
} task;

typedef uint64_t result;

static int32_t twice(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in_size, (void)out_size, (void)ctx, (void)ctx_size;
	*(result *)out = 2 * ((const task *)in)->value;
	return 0;
}

static void die(const char *what)
{
	fprintf(stderr, "bench-c: %s: %s\n", what, pp_last_error());
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- polyproc ------------------------------------------------------------------------------------------------------ */

static pp_pool pool;

static void open_pool(uint32_t method, int workers)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.method = method;
	options.workers = workers;
	if (pp_pool_open(&options, &pool) != PP_OK)
		die("pp_pool_open");
}

static void polyproc_open(int workers)
{
	open_pool(PP_START_SPAWN, workers);
}

static void polyproc_open_fork(int workers)
{
	open_pool(PP_START_FORK, workers);
}

static void polyproc_map(const task *tasks, result *results, size_t n)
{
	if (pp_pool_map(pool, twice, tasks, sizeof *tasks, results, sizeof *results, n, 1, NULL, 0, NULL) != PP_OK)
		die("pp_pool_map");
}

static void polyproc_close(void)
{
	if (pp_pool_free(pool) != PP_OK)
		die("pp_pool_free");
}

/* ---- fork and pipes --------------------------------------------------------------------------------------------------- */

enum { MAX_WORKERS = 1024 };

static int count;
static struct pollfd from[MAX_WORKERS];
static int to[MAX_WORKERS];
static pid_t child[MAX_WORKERS];

static void pipes_work(int in, int out)
{
	task t;
	while (read(in, &t, sizeof t) == sizeof t) {
		size_t size = sizeof(result);
		task answer = {t.index, 0};
		twice(&t, sizeof t, &answer.value, &size, NULL, 0);
		if (write(out, &answer, sizeof answer) != sizeof answer)
			break;
	}
	_exit(0);
}

static void pipes_open(int workers)
{
	for (count = 0; count < workers; count++) {
		int down[2], up[2];
		if (pipe(down) != 0 || pipe(up) != 0)
			die("pipe");
		child[count] = fork();
		if (child[count] < 0)
			die("fork");
		if (child[count] == 0) {
			for (int i = 0; i < count; i++)
				close(to[i]), close(from[i].fd);
			close(down[1]), close(up[0]);
			pipes_work(down[0], up[1]);
		}
		close(down[0]), close(up[1]);
		to[count] = down[1];
		from[count] = (struct pollfd){up[0], POLLIN, 0};
	}
}

static void pipes_map(const task *tasks, result *results, size_t n)
{
	size_t sent = 0, done = 0;
	while (sent < n && sent < (size_t)count)
		if (write(to[sent], &tasks[sent], sizeof *tasks) != sizeof *tasks)
			die("write");
		else
			sent++;
	while (done < n) {
		if (poll(from, (nfds_t)count, -1) < 0)
			die("poll");
		for (int i = 0; i < count; i++) {
			task answer;
			if (!from[i].revents)
				continue;
			if (read(from[i].fd, &answer, sizeof answer) != sizeof answer)
				die("read");
			results[answer.index] = answer.value;
			done++;
			if (sent < n) {
				if (write(to[i], &tasks[sent], sizeof *tasks) != sizeof *tasks)
					die("write");
				sent++;
			}
		}
	}
}

static void pipes_close(void)
{
	for (int i = 0; i < count; i++) {
		close(to[i]);
		waitpid(child[i], NULL, 0);
	}
}

/* ---- threads ----------------------------------------------------------------------------------------------------------- */

typedef struct job {
	const task *in;
	result *out;
} job;

enum { QUEUE = 1024 };

static pthread_t thread[MAX_WORKERS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER, emptied = PTHREAD_COND_INITIALIZER;
static job queue[QUEUE];
static size_t head, tail, unfinished;
static int closing;

static void *threads_work(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&lock);
	for (;;) {
		while (head == tail && !closing)
			pthread_cond_wait(&filled, &lock);
		if (head == tail)
			break;
		job j = queue[head++ % QUEUE];
		if (tail - head == QUEUE - 1)
			pthread_cond_signal(&emptied);
		pthread_mutex_unlock(&lock);
		size_t size = sizeof(result);
		twice(j.in, sizeof *j.in, j.out, &size, NULL, 0);
		pthread_mutex_lock(&lock);
		if (--unfinished == 0)
			pthread_cond_signal(&emptied);
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

static void threads_open(int workers)
{
	for (count = 0; count < workers; count++)
		if (pthread_create(&thread[count], NULL, threads_work, NULL) != 0)
			die("pthread_create");
}

static void threads_map(const task *tasks, result *results, size_t n)
{
	pthread_mutex_lock(&lock);
	unfinished = n;
	for (size_t i = 0; i < n; i++) {
		while (tail - head == QUEUE)
			pthread_cond_wait(&emptied, &lock);
		queue[tail++ % QUEUE] = (job){&tasks[i], &results[i]};
		pthread_cond_signal(&filled);
		/* A pool takes one task per call: the lock is not held from one to the next. */
		pthread_mutex_unlock(&lock);
		pthread_mutex_lock(&lock);
	}
	while (unfinished > 0)
		pthread_cond_wait(&emptied, &lock);
	pthread_mutex_unlock(&lock);
}

static void threads_close(void)
{
	pthread_mutex_lock(&lock);
	closing = 1;
	pthread_cond_broadcast(&filled);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < count; i++)
		pthread_join(thread[i], NULL);
}

/* ------------------------------------------------------------------------------------------------------------------------ */

static const struct contender {
	const char *name;
	void (*open)(int workers);
	void (*map)(const task *tasks, result *results, size_t n);
	void (*close)(void);
} contenders[] = {
	{"polyproc", polyproc_open, polyproc_map, polyproc_close},
	{"polyproc-fork", polyproc_open_fork, polyproc_map, polyproc_close},
	{"pipes", pipes_open, pipes_map, pipes_close},
	{"threads", threads_open, threads_map, threads_close},
};

int main(int argc, char **argv)
{
	pp_init(&argc, &argv);
	const struct contender *c = NULL;
	for (size_t i = 0; argc == 4 && i < sizeof contenders / sizeof *contenders; i++)
		if (strcmp(argv[1], contenders[i].name) == 0)
			c = &contenders[i];
	if (!c || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_WORKERS || atol(argv[3]) < 1) {
		fprintf(stderr, "usage: bench-c polyproc|polyproc-fork|pipes|threads WORKERS TASKS\n");
		return 2;
	}
	size_t n = (size_t)atol(argv[3]), warm = n / 10 + 1;
	task *tasks = malloc(n * sizeof *tasks);
	result *results = calloc(n, sizeof *results);
	if (!tasks || !results)
		die("memory");
	for (size_t i = 0; i < n; i++)
		tasks[i] = (task){i, i + 1};

	c->open(atoi(argv[2]));
	c->map(tasks, results, warm < n ? warm : n);
	memset(results, 0, n * sizeof *results);
	double start = now();
	c->map(tasks, results, n);
	double seconds = now() - start;
	c->close();

	for (size_t i = 0; i < n; i++)
		if (results[i] != 2 * (i + 1)) {
			fprintf(stderr, "bench-c: %s: result %zu is wrong\n", c->name, i);
			return 1;
		}
	printf("%.9f\n", seconds);
	free(tasks), free(results);
	return 0;
}
