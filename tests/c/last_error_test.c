/* last_error_test.c - pp_last_error is the message of the failing call itself, and no earlier one's.
 *
 * deadline: 60 s
 */
#include "require.h"

#include <polyproc.h>
#include <pthread.h>
#include <stdbool.h>

/* What an earlier failing call has said. */
static const char *marker(void)
{
	REQUIRE_EQ(pp_queue_unlink("/"), PP_ERR_INVALID);
	return pp_last_error();
}

/* FAILS(call, status): it fails, and has a message of its own. */
#define FAILS(call, want)                                                                                    \
	do {                                                                                                     \
		char before_[512];                                                                                   \
		snprintf(before_, sizeof before_, "%s", marker());                                                   \
		const int64_t have_ = (call);                                                                        \
		if (have_ != (want) || strcmp(pp_last_error(), before_) == 0 || pp_last_error()[0] == '\0') {        \
			fprintf(stderr, "%d: %s: %s, message \"%s\"\n", __LINE__, #call, pp_status_name((int32_t)have_), pp_last_error()); \
			bad++;                                                                                           \
		}                                                                                                    \
	} while (0)

/* SAYS(call, status, text): and the message has this text in it. */
#define SAYS(call, want, text)                                                                         \
	do {                                                                                               \
		FAILS(call, want);                                                                             \
		if (strstr(pp_last_error(), text) == NULL) {                                                   \
			fprintf(stderr, "%d: %s: message \"%s\" without \"%s\"\n", __LINE__, #call, pp_last_error(), text); \
			bad++;                                                                                     \
		}                                                                                              \
	} while (0)

static int bad;

static void queues(void)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
	struct {
		pp_queue_options options;
		uint64_t more;
	} newer = {PP_QUEUE_OPTIONS_INIT, 0};
	pp_queue queue;
	pp_message message = {0};
	char buf[100];
	uint64_t sizes[2];
	size_t n;

	options.maxsize = 1;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	FAILS(pp_queue_get(queue, buf, sizeof buf, PP_TRY, &n), PP_ERR_EMPTY);
	FAILS(pp_queue_get(queue, buf, sizeof buf, 1, &n), PP_ERR_EMPTY);
	FAILS(pp_queue_get_many(queue, buf, sizeof buf, sizes, 2, 0, &n), PP_ERR_EMPTY);
	FAILS(pp_queue_take(queue, buf, sizeof buf, 0, &message), PP_ERR_EMPTY);
	FAILS(pp_queue_lease(queue, 1, &message), PP_ERR_EMPTY);
	FAILS(pp_message_ack(&message), PP_ERR_STATE);
	FAILS(pp_message_ack(NULL), PP_ERR_STATE);
	FAILS(pp_queue_task_done(queue), PP_ERR_STATE);
	REQUIRE_STATUS(pp_queue_put(queue, buf, 50, PP_RAW, 0), PP_OK);
	FAILS(pp_queue_put(queue, buf, 50, PP_RAW, PP_TRY), PP_ERR_FULL);
	FAILS(pp_queue_put(queue, buf, 50, PP_RAW, 1), PP_ERR_FULL);
	FAILS(pp_queue_put_parts(queue, NULL, 1, PP_RAW, 1), PP_ERR_INVALID);
	FAILS(pp_queue_put_many(queue, buf, NULL, 1, PP_RAW, 1, &n), PP_ERR_INVALID);
	FAILS(pp_queue_get(queue, buf, 10, 0, &n), PP_ERR_TOO_BIG);
	FAILS(pp_queue_join(queue, 1), PP_ERR_TIMEOUT);
	FAILS(pp_queue_info(queue, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_queue_close(queue), PP_OK);
	FAILS(pp_queue_put(queue, buf, 50, PP_RAW, 0), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_queue_get(queue, buf, sizeof buf, 0, &n), PP_OK);
	FAILS(pp_queue_get(queue, buf, sizeof buf, 0, &n), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	FAILS(pp_queue_free(queue), PP_ERR_HANDLE);
	FAILS(pp_queue_get(queue, buf, sizeof buf, 0, &n), PP_ERR_HANDLE);
	FAILS(pp_queue_unlink("pp-last-error-no-such-name"), PP_ERR_NOT_FOUND);
	/* Each cause has its message. */
	SAYS(pp_queue_create(&options, NULL), PP_ERR_INVALID, "queue_out");
	options.size = 8;
	SAYS(pp_queue_create(&options, &queue), PP_ERR_INVALID, "options.size is 8");
	options.size = sizeof options;
	options.flags = 128;
	SAYS(pp_queue_create(&options, &queue), PP_ERR_INVALID, "unknown flags");
	options.flags = PP_QUEUE_EXCLUSIVE | PP_QUEUE_EXISTING;
	SAYS(pp_queue_create(&options, &queue), PP_ERR_INVALID, "exclude");
	options.flags = PP_QUEUE_EXISTING;
	SAYS(pp_queue_create(&options, &queue), PP_ERR_INVALID, "name is NULL");
	options.name = "pp-last-error-no-such-name";
	FAILS(pp_queue_create(&options, &queue), PP_ERR_NOT_FOUND);
	options.name = NULL;
	options.flags = 0;
	options.maxsize = (uint64_t)1 << 31;
	SAYS(pp_queue_create(&options, &queue), PP_ERR_INVALID, "maxsize");
	/* A newer header's options are as good as long as what this library does not know is zero. */
	newer.options.size = sizeof newer;
	REQUIRE_STATUS(pp_queue_create(&newer.options, &queue), PP_OK);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	newer.more = 1;
	SAYS(pp_queue_create(&newer.options, &queue), PP_ERR_INVALID, "does not know");
	/* A size that was never set: nothing beyond the options is read. */
	newer.options.size = UINT32_MAX;
	SAYS(pp_queue_create(&newer.options, &queue), PP_ERR_INVALID, "options.size");
}

static void pipes(void)
{
	pp_pipe ends[2], end;
	pp_pipe_message message;
	uint8_t ref[32] = {0};
	uint64_t size;
	char buf[100], large[10000];
	int32_t fd;

	FAILS(pp_pipe_create(128, ends), PP_ERR_INVALID);
	FAILS(pp_pipe_create(0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	FAILS(pp_pipe_recv(ends[0], buf, sizeof buf, 0), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_recv(ends[0], buf, sizeof buf, 2), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_recv_now(ends[0], buf, sizeof buf), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_take(ends[0], 0, &message), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_poll(ends[0], 2, &size), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_recv_fd(ends[0], 2, &fd), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_recv(ends[1], buf, sizeof buf, 2), PP_ERR_STATE);
	FAILS(pp_pipe_send(ends[0], buf, sizeof buf, 2), PP_ERR_STATE);
	FAILS(pp_pipe_send(ends[1], NULL, 1, 2), PP_ERR_INVALID);
	FAILS(pp_pipe_send_fd(ends[1], -1, 2), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pipe_send(ends[1], buf, 50, 0), PP_OK);
	FAILS(pp_pipe_recv(ends[0], buf, 10, 0), PP_ERR_TOO_BIG);
	FAILS(pp_pipe_recv_fd(ends[0], 0, &fd), PP_ERR_STATE);
	while (pp_pipe_send(ends[1], large, sizeof large, 0) == PP_OK)
		;
	FAILS(pp_pipe_send(ends[1], large, sizeof large, 0), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_send(ends[1], large, sizeof large, 2), PP_ERR_TIMEOUT);
	FAILS(pp_pipe_import(ref, -1, &end), PP_ERR_CORRUPT);
	FAILS(pp_pipe_deserted(ends[0]), PP_ERR_STATE);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	FAILS(pp_pipe_send(ends[1], buf, 50, 0), PP_ERR_EOF);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
	FAILS(pp_pipe_free(ends[1]), PP_ERR_HANDLE);
	FAILS(pp_pipe_recv(ends[1], buf, 50, 0), PP_ERR_HANDLE);
	FAILS(pp_pipe_descriptor(ends[1], &fd), PP_ERR_HANDLE);
	FAILS(pp_fd_export(-1, ref), PP_ERR_INVALID);
	FAILS(pp_fd_import(ref, &fd), PP_ERR_NOT_FOUND);
	FAILS(pp_ref_export(ends[1], ref), PP_ERR_HANDLE);
	FAILS(pp_ref_import(ref, PP_KIND_ANY, &end, NULL), PP_ERR_INVALID);
}

static void *taker(void *lock)
{
	const pp_lock its = *(pp_lock *)lock;

	FAILS(pp_lock_acquire(its, 0), PP_ERR_TIMEOUT);
	FAILS(pp_lock_acquire(its, 2), PP_ERR_TIMEOUT);
	return NULL;
}

static void locks(void)
{
	pp_lock lock, recursive;
	pp_semaphore semaphore;
	pp_event event;
	pp_condition condition;
	pp_barrier barrier;
	pthread_t thread;

	FAILS(pp_lock_new(128, &lock), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_lock_new(PP_LOCK_RECURSIVE, &recursive), PP_OK);
	FAILS(pp_lock_release(lock), PP_ERR_STATE);
	FAILS(pp_lock_release(recursive), PP_ERR_STATE);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	REQUIRE_EQ(pthread_create(&thread, NULL, taker, &lock), 0);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_STATUS(pp_semaphore_new(1, 1, 0, &semaphore), PP_OK);
	FAILS(pp_semaphore_release(semaphore), PP_ERR_STATE);
	REQUIRE_STATUS(pp_semaphore_acquire(semaphore, 0), PP_OK);
	FAILS(pp_semaphore_acquire(semaphore, 0), PP_ERR_TIMEOUT);
	FAILS(pp_semaphore_acquire(semaphore, 2), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	FAILS(pp_event_wait(event, 0), PP_ERR_TIMEOUT);
	FAILS(pp_event_wait(event, 2), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	FAILS(pp_condition_wait(condition, lock, 2), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_barrier_new(2, 0, &barrier), PP_OK);
	FAILS(pp_barrier_new(0, 0, &barrier), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_barrier_abort(barrier), PP_OK);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	FAILS(pp_lock_free(lock), PP_ERR_HANDLE);
	FAILS(pp_lock_acquire(lock, 0), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_lock_free(recursive), PP_OK);
	REQUIRE_STATUS(pp_semaphore_free(semaphore), PP_OK);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
	REQUIRE_STATUS(pp_condition_free(condition), PP_OK);
	REQUIRE_STATUS(pp_barrier_free(barrier), PP_OK);
}

static int32_t work(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in, (void)in_size, (void)out, (void)ctx, (void)ctx_size;
	*out_size = 0;
	return 0;
}

static void pools(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	pp_result results[2];
	size_t n;
	uint64_t task;

	options.size = 8;
	FAILS(pp_pool_open(&options, &pool), PP_ERR_INVALID);
	options.size = sizeof options;
	FAILS(pp_pool_open(&options, NULL), PP_ERR_INVALID);
	options.workers = 1;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	FAILS(pp_pool_submit(pool, work, NULL, 1, 0, &task), PP_ERR_INVALID);
	FAILS(pp_pool_collect(pool, results, 2, NULL, 0, 2, &n), PP_ERR_TIMEOUT);
	FAILS(pp_pool_join(pool, 2), PP_ERR_STATE);
	FAILS(pp_pool_wait(pool, 4711, 2, results), PP_ERR_NOT_FOUND);
	REQUIRE_STATUS(pp_pool_close(pool), PP_OK);
	FAILS(pp_pool_submit(pool, work, "x", 1, 0, &task), PP_ERR_CLOSED);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	FAILS(pp_pool_close(pool), PP_ERR_HANDLE);
}

int main(int argc, char **argv)
{
	pp_init(&argc, &argv);
	queues();
	pipes();
	locks();
	pools();
	REQUIRE_EQ(bad, 0);
	return 0;
}
