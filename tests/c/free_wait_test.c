/* free_wait_test.c - a handle that is freed while another thread waits by it: the waiter gets PP_ERR_CLOSED, also one without a limit of time, and the object goes on
 * for those who have other handles.
 *
 * deadline: 120 s
 */
#include "require.h"

#include "procfs.h"

#include <polyproc.h>
#include <pthread.h>
#include <stdbool.h>

enum { PATIENCE = 20000 };

static pp_pipe ends[2];
static pp_queue queue;
static long tid;

static int32_t get(void)
{
	char byte;
	size_t n;

	return pp_queue_get(queue, &byte, 1, -1, &n);
}

static int32_t put(void)
{
	return pp_queue_put(queue, "x", 1, PP_RAW, -1);
}

static int32_t put_large(void)
{
	static const char large[100000];

	return pp_queue_put(queue, large, sizeof large, PP_RAW, -1);
}

static int32_t join(void)
{
	return pp_queue_join(queue, -1);
}

static int32_t receive(void)
{
	char byte;

	return (int32_t)pp_pipe_recv(ends[0], &byte, 1, -1);
}

static int32_t send_one(void)
{
	static const char data[10000];

	return pp_pipe_send(ends[1], data, sizeof data, -1);
}

typedef struct {
	int32_t (*call)(void);
	bool fill, pipe;
} each;

static void *run(void *arg)
{
	const each *const one = arg;

	__atomic_store_n(&tid, syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	REQUIRE_STATUS(one->call(), PP_ERR_CLOSED);
	REQUIRE(strstr(pp_last_error(), "freed during the call") != NULL);
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

int main(void)
{
	static const each all[] = {{get, false, false}, {put, true, false}, {put_large, true, false}, {join, true, false}, {receive, false, true}, {send_one, true, true}};
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	static char data[10000];

	options.maxsize = 2;
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		uint8_t ref[PP_REF_SIZE];
		pp_queue other;
		pp_pipe other_end;
		pthread_t thread;
		struct timespec end;
		size_t n;

		REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
		REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
		REQUIRE_STATUS(pp_ref_export(queue, ref), PP_OK);
		REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_QUEUE, &other, NULL), PP_OK);
		REQUIRE_STATUS(pp_ref_export(ends[all[i].call == send_one], ref), PP_OK);
		REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_PIPE, &other_end, NULL), PP_OK);
		while (all[i].fill && !all[i].pipe && pp_queue_put(queue, "x", 1, PP_RAW, 0) == PP_OK)
			;
		while (all[i].fill && all[i].pipe && pp_pipe_send(ends[1], data, sizeof data, 0) == PP_OK)
			;
		tid = 0;
		REQUIRE_EQ(pthread_create(&thread, NULL, run, (void *)(uintptr_t)&all[i]), 0);
		WITHIN(PATIENCE, sleeps());
		if (all[i].pipe)
			REQUIRE_STATUS(pp_pipe_free(ends[all[i].call == send_one]), PP_OK);
		else
			REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
		REQUIRE_EQ(clock_gettime(CLOCK_REALTIME, &end), 0);
		end.tv_sec += PATIENCE / 1000;
		REQUIRE_EQ(pthread_timedjoin_np(thread, NULL, &end), 0);
		/* By the other handles everything goes on. */
		if (all[i].fill)
			REQUIRE_STATUS(pp_queue_get(other, data, 1, 0, &n), all[i].pipe ? PP_ERR_EMPTY : PP_OK);
		REQUIRE_STATUS(pp_queue_put(other, "y", 1, PP_RAW, PATIENCE), PP_OK);
		if (all[i].call == receive) {
			REQUIRE_STATUS(pp_pipe_send(ends[1], "y", 1, PATIENCE), PP_OK);
			REQUIRE_EQ(pp_pipe_recv(other_end, data, 1, PATIENCE), 1);
		}
		REQUIRE_STATUS(pp_queue_free(other), PP_OK);
		REQUIRE_STATUS(pp_pipe_free(other_end), PP_OK);
		(void)pp_pipe_free(ends[0]);
		(void)pp_pipe_free(ends[1]);
		(void)pp_queue_free(queue);
	}
	return 0;
}
