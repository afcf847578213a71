/* pipe_scribble_test.c - whatever another process writes into a pipe while calls use it, no call reads or writes outside the memory it was given
 * and outside the heap: what was checked is what is used.
 *
 * deadline: 120 s
 * sanitize: address
 */
#include "heapkit.h"
#include "scribble.h"

#include "../../capi/front/depot.c"
#include "../../capi/front/pipe.c"

int32_t pp_cpu_count(void)
{
	return 2;
}

enum { TRIALS = 60, CALLS = 3000, BIG = 17000 };

static pp__heap *heap;

static void use(const pp_pipe ends[2], uint64_t *seed)
{
	uint8_t *const data = calloc(1, BIG);
	REQUIRE(data != NULL);

	for (int i = 0; i < CALLS; i++) {
		const uint64_t r = next_random(seed);
		const size_t size = r & 1 ? BIG : r >> 8 & 1023, room = r & 2 ? BIG : size;
		uint8_t *const to = malloc(room == 0 ? 1 : room);
		pp_pipe_message m;
		uint64_t next;
		REQUIRE(to != NULL);
		(void)pp_pipe_send(ends[1], data, size, 0);
		if ((r >> 32 & 3) == 0)
			(void)pp_pipe_poll(ends[0], 0, &next);
		if ((r >> 34 & 1) == 0) {
			REQUIRE(pp_pipe_recv(ends[0], to, room, 0) <= (int64_t)room);
		} else if (pp_pipe_take(ends[0], 0, &m) == PP_OK) {
			const uint8_t *const from = m.data;
			if (from >= heap->base && from < heap->base + heap->mapped)
				REQUIRE(m.size <= (uint64_t)(heap->base + heap->mapped - from));
			pp_pipe_message_free(&m);
		}
		free(to);
	}
	free(data);
}

static void one_round(uint64_t seed)
{
	pp_pipe ends[2];
	uint8_t byte = 0;

	heap = pp__family_heap();
	REQUIRE(heap != NULL);
	REQUIRE_EQ(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_EQ(pp_pipe_send(ends[1], &byte, 1, 0), PP_OK);
	REQUIRE_EQ(pp_pipe_recv(ends[0], &byte, 1, 0), 1);
	pp__handle *const handle = pp__pin(ends[0], PP__KIND_PIPE);
	pp__pipe *const pipe = pp__at(heap, handle->off);
	pp__unpin(handle);
	pp__pipe_way *const way = &pipe->way[1];
	uint8_t *ring;
	REQUIRE_EQ(ring_of(heap, way, &ring), PP_OK);
	/* Not the words that name the holders of locks: one that does not exist would be waited for. */
	switch (seed % 3) {
	case 0: /* the records */
		scribble_at(ring, 400);
		break;
	case 1:
		scribble_at(&way->tail, 2);
		scribble_at(&way->head, 1);
		scribble_at(ring, 32);
		break;
	default:
		scribble_at(&way->ring, 3);
		scribble_at(&way->bell, 3);
		scribble_at(&way->head, 1);
		scribble_at(way->leases, 16);
		scribble_at(&pipe->inode, 3);
	}
	const pthread_t thread = scribble_start(seed);
	use(ends, &seed);
	scribble_stop(thread);
	(void)pp_pipe_free(ends[0]);
	(void)pp_pipe_free(ends[1]);
}

int main(void)
{
	uint64_t seed = 11;

	for (int i = 0; i < TRIALS; i++) {
		const uint64_t its = next_random(&seed) / 3 * 3;
		/* Each in a process and a heap of its own: what it spoils is not the next one's. */
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			alarm(60);
			one_round(its + (uint64_t)(i % 3));
			_exit(0);
		}
		const int how = kit_wait(child);
		if (how != 0)
			fprintf(stderr, "round %d: %s %d\n", i, WIFSIGNALED(how) ? "signal" : "exit", WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how));
		REQUIRE_EQ(how, 0);
	}
	return 0;
}
