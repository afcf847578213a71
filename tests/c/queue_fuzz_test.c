/* queue_fuzz_test.c - whatever a queue's memory holds, calls return: with PP_ERR_CORRUPT, or with something, but never by a signal, and
 * never for ever.
 *
 * Words of the queue, its chunks, records, large messages' references and cells are overwritten, with values that are near the right ones or not, and a
 * child then does everything that can be done with a queue.
 *
 * deadline: 120 s
 */
#include "heapkit.h"

#include "../../capi/front/queue.c"

enum { TRIALS = 1500, PATIENCE = 20 };

static pp__heap *heap;
static uint64_t random_state = 88172645463325252u;

static uint64_t any(void)
{
	return next_random(&random_state);
}

/* A value to put in place of another one. */
static uint64_t bad(uint64_t was)
{
	switch (any() % 8) {
	case 0: return was ^ (uint64_t)1 << any() % 64;
	case 1: return was + any() % 4096 - 2048;
	case 2: return 0;
	case 3: return UINT64_MAX;
	case 4: return any();
	case 5: return was & 0xffffffff00000000u;
	case 6: return was | 0x7fffffff;
	default: return was ^ (any() & any() & any() & any());
	}
}

static void spoil(pp__queue *q)
{
	/* What is where. The words that say who holds a lock are left alone: a live holder that does not exist is waited for, rightly. */
	static const uint16_t words[] = {16, 24, 32, 40, 48, 56, 64, 72, 136, 144, 152, 160, 264, 272, 280, 288, 296, 384};
	uint8_t *const at = (uint8_t *)q;
	const uint64_t tail = q->tail_chunk[pp__queue_position_crossings(q->tail) & 1], head = q->head_chunk[pp__queue_position_crossings(q->head) & 1];

	for (uint64_t n = 1 + any() % 3; n > 0; n--) {
		const uint64_t ref = any() % 2 ? tail : head;
		uint64_t *word = (uint64_t *)(void *)(at + words[any() % (sizeof words / sizeof *words)]);
		const uint32_t size = pp__queue_ref_chunk_size(ref);
		const uint64_t kind = any() % 4;
		if (kind == 1 && pp__within(heap, pp__queue_ref_off(ref), size) != NULL)
			word = (uint64_t *)pp__at(heap, pp__queue_ref_off(ref)) + any() % 64;
		pp__queue_table *const table = pp__queue_table_at(&(const view){.heap = heap}, q->cells);
		if (kind == 2 && table != NULL)
			word = (uint64_t *)(void *)table + (any() % 2 ? any() % 2 : 8 + any() % 40);
		*word = bad(*word);
	}
}

/* use does whatever can be done. */
static void use(pp_queue queue)
{
	static uint8_t buf[70000];
	static const uint64_t sizes[3] = {10, 2000, 50000};
	pp_message m, leased;
	pp_queue_state state;
	size_t n;
	uint64_t got[4];

	pp_queue_info(queue, &state);
	for (int i = 0; i < 6; i++) {
		pp_queue_put(queue, buf, 100, 0, 0);
		pp_queue_put(queue, buf, 3000, 0, 1);
		pp_queue_put(queue, buf, 40000, 0, 1);
		pp_queue_put_many(queue, buf, sizes, 3, 0, 0, &n);
		if (pp_queue_take(queue, buf, sizeof buf, 1, &m) == PP_OK)
			pp_message_free(&m);
		pp_queue_get(queue, buf, sizeof buf, 0, &n);
		pp_queue_get_many(queue, buf, sizeof buf, got, 4, 0, &n);
		if (pp_queue_lease(queue, 0, &leased) == PP_OK) {
			if (i % 2)
				pp_message_ack(&leased);
			pp_message_free(&leased);
		}
		pp_queue_task_done(queue);
	}
	pp_queue_join(queue, 1);
	pp_queue_close(queue);
	for (int i = 0; i < 40 && pp_queue_get(queue, buf, sizeof buf, 0, &n) == PP_OK; i++)
		;
	pp_queue_free(queue); /* the last reference but the parent's */
}

/* A chain that runs in a circle, and a count of messages that has no end: the last reference goes all the same, and soon. */
static void circle(void)
{
	static uint8_t bytes[10];
	pp_queue queue;

	REQUIRE_EQ(pp_queue_create(NULL, &queue), PP_OK);
	for (int i = 0; i < 3; i++)
		REQUIRE_EQ(pp_queue_put(queue, bytes, sizeof bytes, 0, 0), PP_OK);
	pp__handle *const handle = pp__pin(queue, PP__KIND_QUEUE);
	pp__queue *const q = pp__at(heap, handle->off);
	pp__unpin(handle);
	const uint64_t ref = q->first;
	pp__queue_chunk *const chunk = pp__at(heap, pp__queue_ref_off(ref));
	uint64_t *const third = (uint64_t *)(void *)chunk + (PP__QUEUE_CHUNK_HEAD + 2 * (PP__QUEUE_RECORD_HEAD + 16)) / 8;
	REQUIRE_EQ((uint32_t)*third, sizeof bytes);
	*third = pp__queue_record_word_of(0, PP__QUEUE_KIND_NEXT, 0);
	chunk->next = ref;
	q->tail |= (uint64_t)0x7ffffffe << 32;
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		alarm(PATIENCE);
		destroy(heap, handle->off);
		_exit(0);
	}
	REQUIRE_EQ(kit_wait(child), 0);
}

int main(void)
{
	static uint8_t bytes[50000];
	uint32_t corrupt_seen = 0;

	alarm(110);
	heap = pp__family_heap();
	REQUIRE(heap != NULL);
	circle();
	for (int trial = 0; trial < TRIALS; trial++) {
		pp_queue queue;
		pp_message held[3];
		REQUIRE_EQ(pp_queue_create(NULL, &queue), PP_OK);
		for (uint64_t i = 0; i < 3 + (uint64_t)trial % 9; i++)
			REQUIRE_EQ(pp_queue_put(queue, bytes, i % 4 == 3 ? 50000 : 700 * i, 0, 0), PP_OK);
		for (int i = 0; i < trial % 3; i++)
			REQUIRE_EQ(pp_queue_lease(queue, 0, &held[i]), PP_OK);
		if (trial % 3 == 2)
			pp_message_free(&held[0]);
		pp__handle *const handle = pp__pin(queue, PP__KIND_QUEUE);
		spoil(pp__at(heap, handle->off));
		pp__unpin(handle);
		pp__heap_before_fork();
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			pp__heap_in_child();
			alarm(PATIENCE);
			size_t n;
			const int32_t status = pp_queue_get(queue, bytes, sizeof bytes, 0, &n);
			use(queue);
			_exit(status == PP_ERR_CORRUPT ? 3 : 0);
		}
		pp__heap_in_parent();
		const int how = kit_wait(child);
		if (!WIFEXITED(how))
			fprintf(stderr, "trial %d: signal %d\n", trial, WTERMSIG(how));
		REQUIRE(WIFEXITED(how));
		corrupt_seen += WEXITSTATUS(how) == 3;
		/* And the last reference, here. */
		REQUIRE_EQ(pp_queue_free(queue), PP_OK);
	}
	printf("%d queues spoilt, %u noticed at once\n", TRIALS, corrupt_seen);
	REQUIRE(corrupt_seen > TRIALS / 50);
	return 0;
}
