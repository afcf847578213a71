/* queue_scribble_test.c - whatever another process writes into a queue while calls use it, no call reads or writes outside the memory it was given
 * and outside the heap: what was checked is what is used.
 *
 * deadline: 120 s
 * sanitize: address
 */
#include "heapkit.h"
#include "scribble.h"

#include "../../capi/front/queue.c"

enum { TRIALS = 60, CALLS = 1500, BIG = 33000 };

static pp__heap *heap;

/* The buffers are exactly as large as the calls are told, and come from malloc, so that the sanitizer sees the first byte beyond. */
static void use(pp_queue queue, uint64_t *seed)
{
	uint8_t *const data = calloc(1, BIG);
	REQUIRE(data != NULL);

	for (int i = 0; i < CALLS; i++) {
		const uint64_t r = next_random(seed);
		const size_t size = r & 1 ? BIG : r >> 8 & 1023, room = r & 2 ? BIG : size;
		uint8_t *const to = malloc(room == 0 ? 1 : room);
		uint64_t sizes[4];
		pp_message m;
		size_t n = 0;
		REQUIRE(to != NULL);
		(void)pp_queue_put(queue, data, size, 0, 0);
		switch (r >> 32 & 3) {
		case 0:
		case 1:
			if (pp_queue_get(queue, to, room, 0, &n) == PP_OK)
				REQUIRE(n <= room);
			break;
		case 2:
			if (pp_queue_take(queue, to, room, 0, &m) == PP_OK) {
				const uint8_t *const from = m.data;
				if (from >= heap->base && from < heap->base + heap->mapped)
					REQUIRE(m.size <= (uint64_t)(heap->base + heap->mapped - from));
				else
					REQUIRE(from != to || m.size <= room);
				pp_message_free(&m);
			}
			break;
		default:
			if (pp_queue_lease(queue, 0, &m) == PP_OK) {
				REQUIRE(m.size <= (uint64_t)(heap->base + heap->mapped - (const uint8_t *)m.data));
				pp_message_free(&m); /* goes back: the next getter takes it from its cell */
			}
		}
		if (pp_queue_get_many(queue, to, room, sizes, 4, 0, &n) == PP_OK) {
			uint64_t sum = 0;
			for (size_t k = 0; k < n; k++)
				sum += sizes[k];
			REQUIRE(n <= 4 && sum <= room);
		}
		free(to);
	}
	free(data);
}

static void one_round(uint64_t seed)
{
	static uint8_t big[BIG];
	pp_queue queue;
	size_t n;

	heap = pp__family_heap();
	REQUIRE(heap != NULL);
	REQUIRE_EQ(pp_queue_create(NULL, &queue), PP_OK);
	/* A table of cells, and a chunk. */
	REQUIRE_EQ(pp_queue_put(queue, big, sizeof big, 0, 0), PP_OK);
	REQUIRE_EQ(pp_queue_get(queue, big, sizeof big, 0, &n), PP_OK);
	pp__handle *const handle = pp__pin(queue, PP__KIND_QUEUE);
	pp__queue *const q = pp__at(heap, handle->off);
	pp__unpin(handle);
	pp__queue_table *const table = pp__queue_table_at(&(const view){.heap = heap}, q->cells);
	REQUIRE(table != NULL);
	/* Not the words that name the holders of locks: one that does not exist would be waited for. */
	switch (seed % 4) {
	case 0: /* what a cell says of its message */
		scribble_at(&table->cells[0].ref, 3);
		scribble_at(&table->cells[1].ref, 3);
		break;
	case 1:
		scribble_at(table->cells, 4 * 4);
		break;
	case 2: /* the records */
		scribble_at(pp__at(heap, pp__queue_ref_off(q->tail_chunk[pp__queue_position_crossings(q->tail) & 1])), 256);
		break;
	default:
		scribble_at(&q->maxsize, 2);
		scribble_at(&q->cells, 3);
		scribble_at(&q->tail, 4);
		scribble_at(&q->head, 5);
		scribble_at(&table->next, 2);
		scribble_at(pp__at(heap, pp__queue_ref_off(q->tail_chunk[pp__queue_position_crossings(q->tail) & 1])), 16);
	}
	const pthread_t thread = scribble_start(seed);
	use(queue, &seed);
	scribble_stop(thread);
	(void)pp_queue_free(queue);
}

int main(void)
{
	uint64_t seed = 7;

	for (int i = 0; i < TRIALS; i++) {
		const uint64_t its = next_random(&seed) & ~(uint64_t)3;
		/* Each in a process and a heap of its own: what it spoils is not the next one's. */
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			alarm(60);
			one_round(its | (uint64_t)(i % 4));
			_exit(0);
		}
		const int how = kit_wait(child);
		if (how != 0)
			fprintf(stderr, "round %d: %s %d\n", i, WIFSIGNALED(how) ? "signal" : "exit", WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how));
		REQUIRE_EQ(how, 0);
	}
	return 0;
}
