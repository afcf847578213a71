/* cancel_wait_test.c - a thread that is cancelled (pthread_cancel) while it waits in a call finishes the call and ends afterwards, and the object works on for
 * everybody else.
 *
 * deadline: 120 s
 */
#include "require.h"

#include "procfs.h"

#include <polyproc.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/syscall.h>

enum { PATIENCE = 20000, MANY = 100000 };

static pp_pipe ends[2];
static pp_queue queue;
static int returned;
static long tid;
static int32_t outcome;

static void tell(int32_t status)
{
	outcome = status;
	__atomic_store_n(&returned, 1, __ATOMIC_SEQ_CST);
}

static void recv_for_ever(void)
{
	char byte;

	tell((int32_t)pp_pipe_recv(ends[0], &byte, 1, -1));
}

static void recv_with_limit(void)
{
	char byte;

	tell((int32_t)pp_pipe_recv(ends[0], &byte, 1, PATIENCE));
}

static void poll_with_limit(void)
{
	char byte;

	const int32_t status = pp_pipe_poll(ends[0], PATIENCE, NULL);
	tell(status == PP_OK ? (int32_t)pp_pipe_recv(ends[0], &byte, 1, 0) : status);
}

static void send_into_full(void)
{
	static const char data[10000];

	while (pp_pipe_send(ends[1], data, sizeof data, 0) == PP_OK)
		;
	tell(pp_pipe_send(ends[1], data, sizeof data, -1) == PP_OK ? 1 : 0);
}

static void get_from_empty(void)
{
	char byte;
	size_t n;

	tell(pp_queue_get(queue, &byte, 1, -1, &n) == PP_OK ? (int32_t)n : 0);
}

static void put_into_full(void)
{
	while (pp_queue_put(queue, "x", 1, PP_RAW, 0) == PP_OK)
		;
	tell(pp_queue_put(queue, "x", 1, PP_RAW, -1) == PP_OK ? 1 : 0);
}

static void *run(void *op)
{
	void (*f)(void);

	memcpy(&f, &op, sizeof f);
	__atomic_store_n(&tid, syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	f();
	pthread_testcancel();
	REQUIRE(false);
	return NULL;
}

static bool sleeps(void)
{
	const long its = __atomic_load_n(&tid, __ATOMIC_SEQ_CST);
	char path[64], text[500];

	snprintf(path, sizeof path, "/proc/self/task/%ld/stat", its);
	read_text(path, text, sizeof text);
	const char *const at = strrchr(text, ')');
	return its != 0 && at != NULL && at[2] == 'S';
}

static void unblock(void (*op)(void))
{
	static char data[10000];
	char byte;
	size_t n;

	if (op == send_into_full) {
		while (pp_pipe_recv(ends[0], data, sizeof data, 100) == (int64_t)sizeof data)
			;
	} else if (op == get_from_empty) {
		REQUIRE_STATUS(pp_queue_put(queue, "x", 1, PP_RAW, PATIENCE), PP_OK);
	} else if (op == put_into_full) {
		for (int i = 0; i < 5; i++)
			REQUIRE_STATUS(pp_queue_get(queue, &byte, 1, PATIENCE, &n), PP_OK);
	} else {
		REQUIRE_STATUS(pp_pipe_send(ends[1], "x", 1, PATIENCE), PP_OK);
	}
}

int main(void)
{
	void (*const ops[])(void) = {recv_for_ever, recv_with_limit, poll_with_limit, send_into_full, get_from_empty, put_into_full};
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	int32_t fd;

	for (int watched = 0; watched < 2; watched++)
		for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
			pthread_t thread;
			void *result = NULL, *op;
			struct timespec end;
			char byte;
			size_t n;

			options.maxsize = 4;
			REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
			REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
			if (watched)
				REQUIRE_STATUS(pp_pipe_descriptor(ends[0], &fd), PP_OK);
			returned = 0;
			tid = 0;
			memcpy(&op, &ops[i], sizeof op);
			REQUIRE_EQ(pthread_create(&thread, NULL, run, op), 0);
			WITHIN(PATIENCE, sleeps());
			REQUIRE_EQ(pthread_cancel(thread), 0);
			REQUIRE(returned == 0);
			unblock(ops[i]);
			REQUIRE_EQ(clock_gettime(CLOCK_REALTIME, &end), 0);
			end.tv_sec += PATIENCE / 1000;
			REQUIRE_EQ(pthread_timedjoin_np(thread, &result, &end), 0);
			REQUIRE(result == PTHREAD_CANCELED);
			REQUIRE(returned == 1);
			REQUIRE_EQ(outcome, 1);
			/* Everybody else goes on. */
			REQUIRE_STATUS(pp_pipe_send(ends[1], "y", 1, PATIENCE), PP_OK);
			REQUIRE_EQ(pp_pipe_recv(ends[0], &byte, 1, PATIENCE), 1);
			while (pp_queue_get(queue, &byte, 1, 0, &n) == PP_OK)
				;
			REQUIRE_STATUS(pp_queue_put(queue, "y", 1, PP_RAW, PATIENCE), PP_OK);
			REQUIRE_STATUS(pp_queue_get(queue, &byte, 1, PATIENCE, &n), PP_OK);
			REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
			REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
			REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
		}
	return 0;
}
