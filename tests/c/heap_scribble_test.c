/* heap_scribble_test.c - a thread changes words of the heap's head and tables while calls read them. Whatever these see, they stay within the heap, and end: a word that
 * is read again after it was checked would not.
 *
 * sanitize: address
 * deadline: 120 s
 */
#include "heapkit.h"
#include "scribble.h"

enum { TAG = 77, SLABS = 24, LAPS = 15, STEPS = 4000, MODES = 5, RUNS = 3 };

static const pp__kind some_kind = {.name = "thing", .size = 128};

static void words_of(pp__heap *heap, uint64_t seed)
{
	pp__heap_head *const head = pp__head(heap);

	switch (seed % MODES) {
	case 0:
		scribble_at(&head->warm, 4); /* and the tops and hints */
		scribble_at(&head->budget, 1);
		scribble_at(cell_at(heap, 0), 40);
		break;
	case 1:
		for (uint32_t i = 0; i < SLABS; i++)
			scribble_at(slab_at(heap, PP__SLAB_FIRST + i), 2);
		break;
	case 2:
		for (uint32_t i = 0; i < SLABS; i++)
			scribble_at(slab_at(heap, PP__SLAB_FIRST + i)->state, 8);
		break;
	case RUNS: /* how large they are */
		for (uint32_t i = 0; i < 4; i++)
			scribble_at(&slab_at(heap, PP__SLAB_FIRST + 2 * i)->reserved, 1);
		break;
	default:
		for (uint32_t i = 0; i < SLABS; i++) {
			scribble_at(slab_at(heap, PP__SLAB_FIRST + i), 2);
			scribble_at(small_states(heap, PP__SLAB_FIRST + i) + covered(0), 6);
			scribble_at(slot_of(heap, 1 + i), 1);
		}
		scribble_at(&head->slab_hint, 2);
	}
}

static void use(pp__heap *heap, uint64_t seed, bool runs)
{
	static const uint64_t size[] = {1, 200, 4000, 30000, 60000, 500000, 1 << 20, 2 << 20};
	uint64_t off[32] = {0}, number[32] = {0}, done = 0;

	for (int step = 0; step < (runs ? 10 * STEPS : STEPS); step++) {
		uint64_t r = next_random(&seed);
		uint32_t at = (uint32_t)(r >> 8) % 32;
		pp__handle *h;
		if (runs) {
			r = (r & ~(uint64_t)0x70007) | 0x70000;
			at %= 3;
		}
		if (r % 8 < 4) {
			uint64_t room = 0;
			if (off[at] != 0)
				pp__free(heap, off[at], TAG);
			off[at] = 0;
			if (pp__alloc(heap, size[r >> 16 & 7], TAG, &off[at], &room) != PP_OK)
				continue;
			REQUIRE(room >= size[r >> 16 & 7]);
			/* The last byte only: two blocks at one place are what such a heap may give. */
			*((volatile uint8_t *)pp__at(heap, off[at]) + room - 1) = 1;
			done++;
		} else if (r % 8 < 6) {
			pp__handle_free(number[at], PP__KIND_BARRIER);
			number[at] = 0;
			if (pp__object_new(heap, PP__KIND_BARRIER, 128 + (r >> 52), &h) == PP_OK)
				number[at] = h->number;
		} else if (r % 8 == 6) {
			const uint64_t where = ((r >> 20) % SLABS + PP__SLAB_FIRST) << PP__SLAB_SHIFT | (r >> 40 & 8191) * 128;
			if (pp__object_at(heap, where, PP__KIND_BARRIER, 0, &h) == PP_OK) {
				REQUIRE(pp__within(heap, h->off, h->room) != NULL);
				pp__handle_free(h->number, PP__KIND_BARRIER);
			}
			pp__free(heap, where, TAG);
			(void)pp__retag(heap, where, TAG, TAG);
		} else if (r >> 32 & 1) {
			kit_trim(heap);
		} else if (r >> 33 & 1) {
			pthread_mutex_lock(&heap->private->lock);
			adopt(heap, false);
			pthread_mutex_unlock(&heap->private->lock);
		} else {
			evict(heap, 1 << 20, heap->me, 0);
		}
	}
	printf("seed %llu: %llu blocks\n", (unsigned long long)seed, (unsigned long long)done);
}

static void child(uint64_t seed)
{
	pp__heap *heap = NULL;

	alarm(100);
	REQUIRE_EQ(pp__heap_create(NULL, &heap), PP_OK);
	REQUIRE(pp__join(heap) != 0);
	REQUIRE_EQ(ready(heap, 512), PP_OK);
	REQUIRE(open_slabs(heap, PP__SLAB_FIRST + SLABS));
	words_of(heap, seed);
	const pthread_t thread = scribble_start(seed);
	use(heap, seed * 7919, seed % MODES == RUNS);
	scribble_stop(thread);
	_exit(0);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	pp__kinds[PP__KIND_BARRIER] = &some_kind;
	for (uint64_t seed = 1; seed <= LAPS; seed++) {
		const pid_t pid = fork();
		REQUIRE(pid >= 0);
		if (pid == 0)
			child(seed);
		const int status = kit_wait(pid);
		if (status != 0)
			fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
		REQUIRE_EQ(status, 0);
	}
	return 0;
}
