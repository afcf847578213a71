/* messages.c - messages of 64 bytes in C, for make bench.
 *
 *   messages-c polyproc|mq|same COUNT
 *
 * prints the seconds that COUNT messages took:
 *   polyproc   one process puts, another gets: pp_queue_put, pp_queue_get, at most 1,000 in the queue
 *   mq         the same through a POSIX message queue (10 messages: more takes privileges)
 *   same       one thread, pp_queue_put and then pp_queue_get, COUNT times
 *
 * Boost.Interprocess's message_queue is measured by messages_boost.cc, and the Go packages by go test -bench in core/queue.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <mqueue.h>
#include <polyproc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, BOUND = 1000 };

static pp_queue queue;
static mqd_t mq;

static void die(const char *what)
{
	fprintf(stderr, "messages-c: %s: %s\n", what, pp_last_error());
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void polyproc_put(const char *message)
{
	if (pp_queue_put(queue, message, SIZE, PP_RAW, -1) != PP_OK)
		die("pp_queue_put");
}

static void polyproc_get(char *message)
{
	size_t size;
	if (pp_queue_get(queue, message, SIZE, -1, &size) != PP_OK || size != SIZE)
		die("pp_queue_get");
}

static void mq_put(const char *message)
{
	if (mq_send(mq, message, SIZE, 0) != 0)
		die("mq_send");
}

static void mq_get(char *message)
{
	if (mq_receive(mq, message, SIZE, NULL) != SIZE)
		die("mq_receive");
}

int main(int argc, char **argv)
{
	char message[SIZE] = "m";

	if (argc != 3)
		return 2;
	const long count = atol(argv[2]);
	const int by_mq = strcmp(argv[1], "mq") == 0;
	if (by_mq) {
		struct mq_attr attr = {.mq_maxmsg = 10, .mq_msgsize = SIZE};
		char name[64];
		snprintf(name, sizeof name, "/polyproc-bench-%ld", (long)getpid());
		mq = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &attr);
		if (mq == (mqd_t)-1)
			die("mq_open");
		mq_unlink(name);
	} else {
		pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
		options.maxsize = BOUND;
		if (pp_queue_create(&options, &queue) != PP_OK)
			die("pp_queue_create");
	}
	if (strcmp(argv[1], "same") == 0) {
		const double start = now();
		for (long i = 0; i < count; i++) {
			polyproc_put(message);
			polyproc_get(message);
		}
		printf("%.9f\n", now() - start);
		return 0;
	}
	const pid_t child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		for (long i = 0; i <= count; i++)
			by_mq ? mq_put(message) : polyproc_put(message);
		_exit(0);
	}
	by_mq ? mq_get(message) : polyproc_get(message); /* it runs */
	const double start = now();
	for (long i = 0; i < count; i++)
		by_mq ? mq_get(message) : polyproc_get(message);
	printf("%.9f\n", now() - start);
	waitpid(child, NULL, 0);
	return 0;
}
