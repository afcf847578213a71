/* pipe_fuzz_test.c - whatever is written into the memory of a pipe, calls return an error or something, never crash, and never hang.
 *
 * deadline: 200 s
 */
#include "heapkit.h"

#include "../../capi/front/depot.c"
#include "../../capi/front/pipe.c"

int32_t pp_cpu_count(void)
{
	return 2;
}

enum { PIPES = 2000, CALLS = 60 };

static pp__heap *heap;
static uint32_t *counts; /* of outcomes, by minus the status */

static void note(int64_t status)
{
	counts[status >= 0 ? 0 : status > -32 ? -status : 32]++;
}

/* spoil writes into one of the words that others believe, or do not. */
static void spoil(pp__pipe *pipe, uint64_t *seed)
{
	const uint64_t r = next_random(seed), value = next_random(seed);
	pp__pipe_way *const way = &pipe->way[1];
	uint8_t *ring;
	uint64_t word = r >> 32 & 3;

	word = word == 0 ? value : word == 1 ? value & 0xfff8 : word == 2 ? (value & 0x3ffffff8) + ((uint64_t)32 << 20) : way->tail + (value & 0xff8);
	switch (r % 12) {
	case 0:
		way->tail = word;
		break;
	case 1:
		way->head = word;
		break;
	case 2:
		way->ring = word;
		break;
	case 3:
		way->send_lock = (uint32_t)word;
		break;
	case 4:
		way->recv_lock = (uint32_t)word;
		break;
	case 5:
		way->leases[value % PP__PIPE_LEASES] = (pp__pipe_lease){(uint32_t)word, (uint32_t)value, next_random(seed), next_random(seed), 0};
		break;
	case 6:
		way->bell = (uint32_t)word;
		way->spare = (uint32_t)value;
		break;
	case 7:
		way->seen_head = word;
		break;
	case 8:
		((uint64_t *)(void *)pipe)[16 + value % ((sizeof *pipe - 128) / 8)] = word;
		break;
	default: /* records */
		if (ring_of(heap, way, &ring) == PP_OK)
			memcpy(ring + ((way->head + (r >> 8 & 15) * 8) & (CAP - 1)), &word, 8);
	}
}

static void one_round(uint64_t seed)
{
	static uint8_t data[100000];
	pp_pipe ends[2];

	REQUIRE_EQ(pp_pipe_create((uint32_t)(seed & 1), ends), PP_OK);
	pp__handle *const handle = pp__pin(ends[0], PP__KIND_PIPE);
	pp__pipe *const pipe = pp__at(heap, handle->off);
	pp__unpin(handle);
	for (int i = 0; i < CALLS; i++) {
		const uint64_t r = next_random(&seed);
		const int64_t timeout = r >> 40 & 7 ? 0 : 3;
		pp_pipe_message m;
		uint64_t size;
		int32_t fd;
		if ((r & 3) == 0)
			spoil(pipe, &seed);
		switch (r >> 8 & 7) {
		case 0:
		case 1:
			note(pp_pipe_send(ends[1], data, r >> 16 & 0x3fff, timeout));
			break;
		case 2:
			note(pp_pipe_send(ends[1], data, r >> 16 & 0xffff, timeout));
			break;
		case 3:
		case 4:
			note(pp_pipe_recv(ends[0], data, sizeof data, timeout));
			break;
		case 5:
			if (pp_pipe_take(ends[0], timeout, &m) == PP_OK) {
				volatile uint8_t sum = 0;
				for (uint64_t k = 0; k < m.size && k < 1 << 20; k += 512)
					sum = (uint8_t)(sum + ((const uint8_t *)m.data)[k]);
				pp_pipe_message_free(&m);
			}
			break;
		case 6:
			note(pp_pipe_poll(ends[0], timeout, &size));
			break;
		default:
			note(pp_pipe_descriptor(ends[(r >> 20) & 1], &fd));
		}
	}
	(void)pp_pipe_free(ends[0]);
	(void)pp_pipe_free(ends[1]);
}

int main(void)
{
	uint64_t seed = 1;
	int how;

	counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(counts != MAP_FAILED);

	for (int i = 0; i < PIPES; i++) {
		const uint64_t its = next_random(&seed);
		/* Each in a process and a heap of its own: what it spoils is not the next one's. */
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			alarm(20);
			heap = pp__family_heap();
			REQUIRE(heap != NULL);
			one_round(its);
			_exit(0);
		}
		REQUIRE_EQ(waitpid(child, &how, 0), child);
		if (!WIFEXITED(how) || WEXITSTATUS(how) != 0) {
			fprintf(stderr, "round %d, seed %llu: %s %d\n", i, (unsigned long long)its, WIFSIGNALED(how) ? "signal" : "exit",
			        WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how));
			return 1;
		}
	}
	for (int i = 0; i <= 32; i++)
		if (counts[i] != 0)
			printf("%s: %u\n", pp_status_name(-i), counts[i]);
	REQUIRE(counts[0] > 1000 && counts[-PP_ERR_CORRUPT] > 1000);
	return 0;
}
