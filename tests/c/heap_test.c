/* heap_test.c - the shared heap: blocks, members, references, handles, the lock. What is killed at every instruction is in
 * heap_killsweep_test.c.
 *
 * deadline: 300 s
 */
#include "heapkit.h"

#include <sys/syscall.h>
#include <sys/time.h>

enum { TAG = 77 };

static pp__heap *fresh_heap(void)
{
	pp__heap *heap = NULL;

	REQUIRE_EQ(pp__heap_create(NULL, &heap), PP_OK);
	return heap;
}

static void empty(pp__heap *heap)
{
	kit_settle(heap);
	const kit_count c = kit_audit(heap);
	REQUIRE_EQ(kit_used(&c), 0);
	REQUIRE_EQ(c.giving, 0);
	REQUIRE_EQ(c.cells, 0);
	REQUIRE_EQ(c.slabs[PP__SLAB_CLAIMED], 0);
}

/* ---- blocks ------------------------------------------------------------------------------------------------------- */

static void sizes(void)
{
	pp__heap *const heap = fresh_heap();
	uint64_t off[64], room, before = 0;

	for (int lap = 0; lap < 2; lap++) {
		uint32_t n = 0;
		for (uint64_t size = 1; size <= (uint64_t)8 << 20; size = size * 3 + 1, n++) {
			REQUIRE_EQ(pp__alloc(heap, size, TAG, &off[n], &room), PP_OK);
			REQUIRE(room >= size && off[n] % 128 == 0);
			REQUIRE(pp__within(heap, off[n], room) != NULL);
			memset(pp__at(heap, off[n]), (int)n, room);
		}
		for (uint32_t i = 0; i < n; i++) {
			REQUIRE_EQ(*(uint8_t *)pp__at(heap, off[i]), i);
			REQUIRE(!pp__free(heap, off[i], TAG + 1));
			REQUIRE(!pp__free(heap, off[i] + 64, TAG));
			REQUIRE(!pp__retag(heap, off[i], TAG + 1, TAG));
			REQUIRE(pp__retag(heap, off[i], TAG, TAG + 1));
			REQUIRE(pp__free(heap, off[i], TAG + 1));
			REQUIRE(!pp__free(heap, off[i], TAG + 1));
		}
		empty(heap);
		if (lap == 0)
			before = kit_storage(heap);
	}
	/* The second lap used what the first had. */
	REQUIRE_EQ(kit_storage(heap), before);
	REQUIRE_EQ(pp__alloc(heap, 0, TAG, &off[0], NULL), PP_ERR_INVALID);
	REQUIRE_EQ(pp__alloc(heap, 1, 1, &off[0], NULL), PP_ERR_INVALID);
	REQUIRE_EQ(pp__alloc(heap, ((uint64_t)16 << 30) + 1, TAG, &off[0], NULL), PP_ERR_NOMEM);
	/* Garbage is not a block. */
	static const uint64_t garbage[] = {0, 1, 127, 4096, PP__SLABS_OFF, PP__REFS_OFF, (uint64_t)32 << 20, ((uint64_t)32 << 20) + 64,
	                                   (uint64_t)40 << 30, (uint64_t)64 << 30, UINT64_MAX, UINT64_MAX - 127, (uint64_t)1 << 63};
	for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++)
		for (uint32_t tag = 0; tag < 4; tag++)
			REQUIRE(!pp__free(heap, garbage[i], tag));
	kit_trim(heap);
	REQUIRE_EQ(kit_storage(heap), (uint64_t)3 << 16);
	pp__heap_close(heap);
	/* Tags go round without the two that mean free. */
	pp__heap *const other = fresh_heap();
	pp__head(other)->next_tag = 0x7ffffffe - 5;
	for (int i = 0; i < 10; i++) {
		const uint32_t tag = pp__tag(other);
		REQUIRE(tag >= 2 && tag < PP__GIVING);
	}
	pp__heap_close(other);
}

/* Processes and threads that allocate, and free what others have allocated. */
enum { PLACES = 512, THREADS = 2, PROCESSES = 3 };

typedef struct board {
	uint64_t place[PLACES]; /* off, 0: none */
	uint64_t size[PLACES];  /* written before the place, by who allocates */
	uint64_t allocated, freed;
} board;

static board *shared;
static pp__heap *the_heap;
static int64_t until;

static void *mix(void *seed_pointer)
{
	uint64_t seed = *(uint64_t *)seed_pointer;
	pp__heap *const heap = the_heap;

	while (now_ms() < until) {
		for (int i = 0; i < 100; i++) {
			const uint64_t r = next_random(&seed);
			const uint32_t at = (uint32_t)(r % PLACES);
			const uint64_t off = __atomic_exchange_n(&shared->place[at], 0, __ATOMIC_SEQ_CST);
			if (off != 0) {
				const uint64_t *const words = (const uint64_t *)pp__within(heap, off, 16);
				const uint64_t size = words[0];
				REQUIRE(size >= 16 && size < (uint64_t)8 << 20);
				REQUIRE_EQ(words[1], off ^ size);
				REQUIRE_EQ(*((const uint8_t *)words + size - 1), (uint8_t)(size + 16 == size ? 0 : size == 16 ? (off ^ size) >> 56 : off >> 7));
				REQUIRE(pp__free(heap, off, TAG + at));
				__atomic_fetch_add(&shared->freed, 1, __ATOMIC_RELAXED);
				continue;
			}
			const uint64_t most = (uint64_t)1 << (5 + r / PLACES % (r % 7 == 0 ? 18 : 11));
			const uint64_t size = 16 + next_random(&seed) % most;
			uint64_t new, room;
			REQUIRE_EQ(pp__alloc(heap, size, TAG + at, &new, &room), PP_OK);
			REQUIRE(room >= size);
			uint64_t *const words = (uint64_t *)pp__at(heap, new);
			*((uint8_t *)words + size - 1) = (uint8_t)(new >> 7);
			words[0] = size;
			words[1] = new ^ size;
			__atomic_fetch_add(&shared->allocated, 1, __ATOMIC_RELAXED);
			uint64_t none = 0;
			if (!__atomic_compare_exchange_n(&shared->place[at], &none, new, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
				REQUIRE(pp__free(heap, new, TAG + at));
				__atomic_fetch_add(&shared->freed, 1, __ATOMIC_RELAXED);
			}
		}
	}
	return NULL;
}

static void mix_process(uint64_t seed)
{
	pthread_t thread[THREADS];
	uint64_t seeds[THREADS];

	for (int i = 0; i < THREADS; i++) {
		seeds[i] = seed * 100 + (uint64_t)i + 1;
		REQUIRE_EQ(pthread_create(&thread[i], NULL, mix, &seeds[i]), 0);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	_exit(0);
}

static void free_board(void)
{
	for (uint32_t i = 0; i < PLACES; i++)
		if (shared->place[i] != 0) {
			REQUIRE(pp__free(the_heap, shared->place[i], TAG + i));
			shared->place[i] = 0;
		}
}

static void mixed(void)
{
	the_heap = fresh_heap();
	REQUIRE(pp__join(the_heap) != 0);
	memset(shared, 0, sizeof *shared);
	until = now_ms() + 2000;
	pid_t child[PROCESSES];
	for (int i = 0; i < PROCESSES; i++)
		if ((child[i] = fork()) == 0)
			mix_process((uint64_t)i + 1);
	for (int i = 0; i < PROCESSES; i++)
		REQUIRE_EQ(kit_wait(child[i]), 0);
	free_board();
	empty(the_heap);
	const kit_count c = kit_audit(the_heap);
	REQUIRE_EQ(pp__head(the_heap)->warm, c.warm);
	REQUIRE(c.warm <= PP__WARM_MOST);
	REQUIRE(shared->freed > 1000);
	printf("mixed: %llu allocated, %u slabs, %llu KiB of storage, %llu KiB warm\n", (unsigned long long)shared->allocated, c.claimed,
	       (unsigned long long)kit_storage(the_heap) >> 10, (unsigned long long)c.warm >> 10);
	kit_trim(the_heap);
	pp__heap_close(the_heap);
}

/* The same with SIGKILL at random: each costs at most the blocks that were in its hands, one per thread. */
static void killed_at_random(void)
{
	the_heap = fresh_heap();
	REQUIRE(pp__join(the_heap) != 0);
	memset(shared, 0, sizeof *shared);
	const char *const seconds = getenv("POLYPROC_TORTURE_SECONDS");
	const int64_t end = now_ms() + (seconds != NULL ? 500 * atoi(seconds) : 3000);
	uint64_t seed = 4711;
	until = INT64_MAX;
	pid_t child[PROCESSES] = {0};
	uint32_t kills = 0, most = 0;
	while (now_ms() < end) {
		const uint32_t i = (uint32_t)(next_random(&seed) % PROCESSES);
		if (child[i] != 0) {
			REQUIRE_EQ(kill(child[i], SIGKILL), 0);
			kit_wait(child[i]);
			kills++;
		}
		if ((child[i] = fork()) == 0)
			mix_process(seed);
		nanosleep(&(struct timespec){0, (long)(next_random(&seed) % 8000000)}, NULL);
		const uint32_t top = pp__head(the_heap)->slab_top;
		most = top > most ? top : most;
	}
	for (int i = 0; i < PROCESSES; i++)
		if (child[i] != 0) {
			kill(child[i], SIGKILL);
			kit_wait(child[i]);
			kills++;
		}
	kit_settle(the_heap);
	free_board();
	kit_settle(the_heap);
	const kit_count c = kit_audit(the_heap);
	printf("killed at random: %u kills, %llu allocated, %u blocks lost, at most %u MiB of address space\n", kills,
	       (unsigned long long)shared->allocated, kit_used(&c), most);
	REQUIRE(kills > 3);
	REQUIRE(kit_used(&c) <= 2 * THREADS * kills); /* one being allocated, or one being freed */
	REQUIRE_EQ(c.giving, 0);
	REQUIRE_EQ(c.slabs[PP__SLAB_CLAIMED], 0);
	REQUIRE_EQ(pp__head(the_heap)->warm, c.warm);
	REQUIRE_EQ(c.members, 1);
	/* The board's blocks fill some 200 slabs. A kill meets mostly large blocks, whose memory takes longest: some 1.5 slabs per block lost. */
	REQUIRE(most <= 300 + 3 * kit_used(&c));
	pp__heap_close(the_heap);
}

/* What a dead process has left is used by the next. */
static void adoption(void)
{
	pp__heap *const heap = fresh_heap();
	static const uint64_t size[] = {128, 4096, 65536, 524288, 3 << 20};

	for (int lap = 0; lap < 3; lap++) {
		for (size_t s = 0; s < sizeof size / sizeof *size; s++) {
			const pid_t child = fork();
			if (child == 0) {
				for (int i = 0; i < 24; i++) {
					uint64_t off;
					REQUIRE_EQ(pp__alloc(heap, size[s], TAG + (uint32_t)i, &off, NULL), PP_OK);
					memset(pp__at(heap, off), 1, size[s]);
					shared->place[s * 24 + (size_t)i] = off;
				}
				raise(SIGKILL);
			}
			REQUIRE(WIFSIGNALED(kit_wait(child)));
		}
		kit_settle(heap);
		kit_count c = kit_audit(heap);
		REQUIRE_EQ(kit_used(&c), 24 * 5);
		for (size_t s = 0; s < 5; s++)
			for (uint32_t i = 0; i < 24; i++)
				REQUIRE(pp__free(heap, shared->place[s * 24 + i], TAG + i));
		empty(heap);
		c = kit_audit(heap);
		REQUIRE(c.warm <= PP__WARM_MOST);
		REQUIRE(pp__head(heap)->slab_top < PP__SLAB_FIRST + 200);
	}
	kit_trim(heap);
	REQUIRE_EQ(kit_audit(heap).claimed, 0);
	REQUIRE_EQ(kit_storage(heap), (uint64_t)3 << 16);
	pp__heap_close(heap);
}

/* A burst of a gigabyte leaves only what is kept warm. */
static void burst(void)
{
	enum { BLOCK = 256 << 10, MANY = 4096 };
	pp__heap *const heap = fresh_heap();
	static uint64_t off[MANY];
	const uint64_t before = kit_storage(heap);

	for (int owner = 0; owner < 2; owner++) {
		for (uint32_t i = 0; i < MANY; i++) {
			REQUIRE_EQ(pp__alloc(heap, BLOCK, TAG, &off[i], NULL), PP_OK);
			*(uint64_t *)pp__at(heap, off[i]) = i;
		}
		REQUIRE(kit_storage(heap) >= before + (uint64_t)MANY * BLOCK);
		/* The owner frees, or another. */
		const pid_t child = owner == 0 ? 0 : fork();
		if (child == 0)
			for (uint32_t i = 0; i < MANY; i++)
				REQUIRE(pp__free(heap, off[i], TAG));
		if (owner == 1 && child == 0)
			_exit(0);
		REQUIRE(child == 0 || kit_wait(child) == 0);
		REQUIRE(kit_storage(heap) <= before + PP__WARM_MOST + ((uint64_t)1 << 20));
	}
	/* Small ones, freed by whom they belong to. */
	enum { SMALL = 100000 };
	uint64_t *const small = malloc(SMALL * sizeof *small);
	REQUIRE(small != NULL);
	for (uint32_t i = 0; i < SMALL; i++) {
		REQUIRE_EQ(pp__alloc(heap, 1000, TAG, &small[i], NULL), PP_OK);
		memset(pp__at(heap, small[i]), 1, 1000);
	}
	const uint64_t full = kit_storage(heap);
	for (uint32_t i = 0; i < SMALL; i++)
		REQUIRE(pp__free(heap, small[i], TAG));
	free(small);
	REQUIRE(kit_storage(heap) + ((uint64_t)90 << 20) < full);
	/* And one of a size that no slab has. */
	uint64_t big;
	REQUIRE_EQ(pp__alloc(heap, (uint64_t)1 << 30, TAG, &big, NULL), PP_OK);
	REQUIRE(kit_storage(heap) >= before + ((uint64_t)1 << 30));
	REQUIRE(pp__free(heap, big, TAG));
	REQUIRE(kit_storage(heap) <= before + PP__WARM_MOST + ((uint64_t)8 << 20));
	/* More than there is. */
	const uint64_t left = memory_left();
	REQUIRE(left > (uint64_t)64 << 20);
	REQUIRE(left == UINT64_MAX || admit(NULL, left + ((uint64_t)1 << 30)) == 0);
	REQUIRE(admit(NULL, (uint64_t)2 << 20) > 0);
	kit_trim(heap);
	/* But for the table of slabs. */
	REQUIRE(kit_storage(heap) <= before + pp__head(heap)->slab_top * sizeof(pp__slab) + PP__STORAGE_STEP);
	pp__heap_close(heap);
}

/* ---- limits ---------------------------------------------------------------------------------------------------------------- */

static void limited_child(int what, uint64_t limit, void (*body)(void))
{
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		const struct rlimit r = {limit, limit};
		if (what >= 0)
			REQUIRE_EQ(setrlimit((__rlimit_resource_t)what, &r), 0);
		body();
		_exit(0);
	}
	REQUIRE_EQ(kit_wait(child), 0);
}

static void ten_thousand(void)
{
	enum { MANY = 10000 };
	static pp__handle *handle[MANY];
	pp__heap *const heap = pp__family_heap();

	REQUIRE(heap != NULL);
	for (uint32_t i = 0; i < MANY; i++)
		REQUIRE_STATUS(pp__object_new(heap, PP__KIND_LOCK, 128, &handle[i]), PP_OK);
	for (uint32_t i = 0; i < MANY; i++)
		REQUIRE_EQ(pp__handle_free(handle[i]->number, PP__KIND_LOCK), PP_OK);
	empty(heap);
}

static void little_files(void)
{
	pp__heap *heap = NULL;

	REQUIRE_EQ(pp__heap_create(NULL, &heap), PP_ERR_NOMEM);
	REQUIRE_EQ(pp__heap_create("pp.heap_test.none", &heap), PP_ERR_NOMEM);
}

/* The heap was made before the limit: storage within its size is no matter for RLIMIT_FSIZE. */
static void old_file(void)
{
	uint64_t off[32];

	for (int i = 0; i < 32; i++) {
		REQUIRE_EQ(pp__alloc(the_heap, (uint64_t)2 << 20, TAG, &off[i], NULL), PP_OK);
		memset(pp__at(the_heap, off[i]), 1, (uint64_t)2 << 20);
	}
	for (int i = 0; i < 32; i++)
		REQUIRE(pp__free(the_heap, off[i], TAG));
}

static void small_file(void)
{
	pp__heap *heap = NULL;
	uint64_t off[100];
	int n = 0;

	REQUIRE_EQ(pp__heap_create(NULL, &heap), PP_OK);
	REQUIRE_EQ(heap->size, (uint64_t)36 << 20);
	for (int lap = 0; lap < 3; lap++) {
		for (n = 0; n < 100 && pp__alloc(heap, 500000, TAG, &off[n], NULL) == PP_OK; n++)
			memset(pp__at(heap, off[n]), 1, 500000);
		REQUIRE_EQ(n, 8);
		REQUIRE(strstr(pp_last_error(), "shared memory") != NULL);
		while (n > 0)
			REQUIRE(pp__free(heap, off[--n], TAG));
		/* Another class wants the same slabs. */
		for (n = 0; n < 100 && pp__alloc(heap, 30000, TAG, &off[n], NULL) == PP_OK; n++)
			;
		REQUIRE_EQ(n, 100);
		while (n > 0)
			REQUIRE(pp__free(heap, off[--n], TAG));
		REQUIRE_EQ(pp__alloc(heap, (uint64_t)4 << 20, TAG, &off[0], NULL), PP_OK);
		REQUIRE(pp__free(heap, off[0], TAG));
	}
	pp__heap_close(heap);
}

static void little_space(void)
{
	ten_thousand();
	REQUIRE(family->mapped < (uint64_t)1 << 30);
	/* What others have far away cannot be used, and is not touched. */
	REQUIRE(!pp__free(family, (uint64_t)8 << 30, TAG));
	pp__handle *h;
	REQUIRE_EQ(pp__object_at(family, (uint64_t)8 << 30, PP__KIND_LOCK, 5, &h), PP_ERR_CORRUPT);
	/* And the program has room left. */
	free(malloc(64 << 20));
}

static void limits(void)
{
	limited_child(-1, 0, ten_thousand);
	limited_child(RLIMIT_NOFILE, 64, ten_thousand);
	limited_child(RLIMIT_AS, (uint64_t)300 << 20, little_space);
	limited_child(RLIMIT_FSIZE, (uint64_t)35 << 20, ten_thousand);
	limited_child(RLIMIT_FSIZE, ((uint64_t)33 << 20) - 1, little_files);
	limited_child(RLIMIT_FSIZE, ((uint64_t)36 << 20) + 7, small_file);
	the_heap = fresh_heap();
	limited_child(RLIMIT_FSIZE, 4096, old_file);
	pp__heap_close(the_heap);
}

/* ---- named heaps --------------------------------------------------------------------------------------------------------- */

static void named(void)
{
	char name[64];
	pp__heap *a, *b, *c;
	uint64_t off;

	snprintf(name, sizeof name, "pp.heap_test.%d", (int)getpid());
	REQUIRE_EQ(pp__heap_open(name, &a), PP_ERR_NOT_FOUND);
	REQUIRE_EQ(pp__heap_create(name, &a), PP_OK);
	REQUIRE_EQ(pp__heap_create(name, &b), PP_ERR_EXISTS);
	REQUIRE_EQ(pp__heap_open(name, &b), PP_OK);
	REQUIRE_EQ(pp__heap_create("a/b", &c), PP_ERR_INVALID);
	REQUIRE_EQ(pp__heap_open("..", &c), PP_ERR_INVALID);
	struct stat st;
	REQUIRE_EQ(fstat(a->fd, &st), 0);
	REQUIRE_EQ(st.st_mode & 0777, 0600);
	/* One process has it twice, and neither side takes the other for dead. */
	REQUIRE(pp__join(a) != 0 && pp__join(b) != 0 && a->me != b->me);
	REQUIRE(!pp__gone(a, b->me) && !pp__gone(b, a->me));
	REQUIRE_EQ(pp__owner_pid(a, b->me), getpid());
	REQUIRE_EQ(pp__alloc(a, 100, TAG, &off, NULL), PP_OK);
	strcpy((char *)pp__at(a, off), "here");
	REQUIRE(strcmp((char *)pp__within(b, off, 8), "here") == 0);
	const uint32_t was = a->me;
	pp__heap_close(a);
	REQUIRE(pp__gone(b, was));
	kit_settle(b);
	REQUIRE(pp__free(b, off, TAG));
	empty(b);
	pp__heap_close(b);
	/* It outlives all who had it. */
	REQUIRE_EQ(pp__heap_open(name, &a), PP_OK);
	REQUIRE_EQ(pp__head(a)->magic, PP__HEAP_MAGIC);
	char path[128];
	snprintf(path, sizeof path, "/dev/shm/%s", name);
	REQUIRE_EQ(unlink(path), 0);
	pp__heap_close(a);
	/* Other files are not heaps. */
	const int fd = memfd_create("none", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	REQUIRE_EQ(ftruncate(fd, (off_t)64 << 20), 0);
	REQUIRE_EQ(pp__heap_attach(fd, &a), PP_ERR_CORRUPT); /* can shrink */
	close(fd);
	const int other = memfd_create("none", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	REQUIRE_EQ(ftruncate(other, (off_t)64 << 20), 0);
	REQUIRE_EQ(pwrite(other, "whatever", 8, 0), 8);
	REQUIRE_EQ(fcntl(other, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	REQUIRE_EQ(pp__heap_attach(other, &a), PP_ERR_CORRUPT);
	close(other);
}

/* Processes that race to initialize a file, some of which die on the way, all have the same heap. */
static void racing(void)
{
	for (int lap = 0; lap < 40; lap++) {
		const int fd = memfd_create("race", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		REQUIRE(fd >= 0 && ftruncate(fd, (off_t)MOST_SIZE) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
		pid_t child[4];
		for (int i = 0; i < 4; i++)
			if ((child[i] = fork()) == 0) {
				pp__heap *heap;
				REQUIRE_EQ(pp__heap_attach(fd, &heap), PP_OK);
				REQUIRE(pp__join(heap) != 0);
				uint64_t off;
				REQUIRE_EQ(pp__alloc(heap, 100, TAG, &off, NULL), PP_OK);
				shared->place[i] = heap->private->id;
				REQUIRE_EQ(heap->private->id, pp__head(heap)->id[0]);
				_exit(0);
			}
		nanosleep(&(struct timespec){0, lap * 20000}, NULL);
		kill(child[3], SIGKILL);
		for (int i = 0; i < 4; i++)
			REQUIRE(kit_wait(child[i]) == 0 || i == 3);
		REQUIRE(shared->place[0] == shared->place[1] && shared->place[1] == shared->place[2] && shared->place[0] != 0);
		close(fd);
	}
}

/* ---- objects ------------------------------------------------------------------------------------------------------------- */

static uint32_t destroyed, closed;

static void count_destroyed(pp__heap *heap, uint64_t off)
{
	REQUIRE_EQ(((pp__object *)pp__at(heap, off))->refs, 0);
	destroyed++;
}

static void count_closed(pp__handle *handle)
{
	REQUIRE_EQ(handle->number, 0);
	closed++;
}

static const pp__kind test_kind = {.name = "test", .destroy = count_destroyed, .closed = count_closed, .size = 64};

static uint32_t refs_of(const pp__handle *h)
{
	return __atomic_load_n(&((pp__object *)pp__at(h->heap, h->off))->refs, __ATOMIC_SEQ_CST);
}

static void objects(void)
{
	pp__heap *const heap = fresh_heap();
	pp__handle *a, *b, *c;
	pp__ref ref;

	destroyed = closed = 0;
	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &a), PP_OK);
	const uint64_t number = a->number, off = a->off;
	for (int i = 0; i < 112; i++)
		REQUIRE_EQ(((uint8_t *)pp__at(heap, off))[16 + i], 0);
	REQUIRE(pp__pin(number, PP__KIND_LOCK) == NULL);
	REQUIRE(strstr(pp_last_error(), "no such handle") != NULL);
	REQUIRE(pp__pin(number + 1, PP__KIND_BARRIER) == NULL);
	REQUIRE(pp__pin(number ^ (1u << 20), PP__KIND_BARRIER) == NULL);
	REQUIRE(pp__pin(0, PP__KIND_BARRIER) == NULL);
	REQUIRE(pp__pin(UINT64_MAX, PP__KIND_BARRIER) == NULL);
	REQUIRE(pp__pin(number, PP__KIND_BARRIER) == a);
	/* Freed in the middle of a call: closed when that is over. */
	REQUIRE_EQ(pp__handle_free(number, PP__KIND_BARRIER), PP_OK);
	REQUIRE_EQ(pp__handle_free(number, PP__KIND_BARRIER), PP_ERR_HANDLE);
	REQUIRE(pp__pin(number, PP__KIND_BARRIER) == NULL);
	REQUIRE_EQ(closed, 0);
	REQUIRE_EQ(refs_of(a), 1);
	pp__unpin(a);
	REQUIRE_EQ(closed, 1);
	REQUIRE_EQ(destroyed, 1);
	REQUIRE_EQ(pp__handle_free(0, PP__KIND_BARRIER), PP_OK);
	empty(heap);

	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &a), PP_OK);
	REQUIRE(a->number != number);
	REQUIRE_EQ(pp__object_at(heap, a->off, PP__KIND_BARRIER, 0, &b), PP_OK);
	REQUIRE_EQ(pp__object_at(heap, a->off, PP__KIND_BARRIER, a->generation, &c), PP_OK);
	REQUIRE_EQ(refs_of(a), 3);
	REQUIRE_EQ(pp__handle_free(c->number, PP__KIND_BARRIER), PP_OK);
	REQUIRE_EQ(pp__object_at(heap, a->off, PP__KIND_LOCK, 0, &c), PP_ERR_CORRUPT);
	REQUIRE_EQ(pp__object_at(heap, a->off, PP__KIND_BARRIER, a->generation + 1, &c), PP_ERR_CLOSED);
	REQUIRE_EQ(pp__object_at(heap, a->off + 128, PP__KIND_BARRIER, 0, &c), PP_ERR_CORRUPT);
	REQUIRE_EQ(pp__object_at(heap, a->off + 1, PP__KIND_BARRIER, 0, &c), PP_ERR_CORRUPT);
	REQUIRE_EQ(pp__object_at(heap, UINT64_MAX - 127, PP__KIND_BARRIER, 0, &c), PP_ERR_CORRUPT);
	REQUIRE_EQ(pp__object_at(heap, 0, PP__KIND_BARRIER, 0, &c), PP_ERR_CORRUPT);
	/* A reference on its way keeps the object, and is used up once; who has the message twice has a reference of its own. */
	REQUIRE_EQ(pp__ref_send(a, &ref), PP_OK);
	REQUIRE_EQ(pp__handle_free(a->number, PP__KIND_BARRIER), PP_OK);
	REQUIRE_EQ(pp__handle_free(b->number, PP__KIND_BARRIER), PP_OK);
	kit_settle(heap);
	REQUIRE_EQ(kit_audit(heap).cells, 1);
	REQUIRE_EQ(pp__ref_receive(&ref, &a), PP_OK);
	REQUIRE_EQ(refs_of(a), 1);
	REQUIRE_EQ(pp__ref_receive(&ref, &b), PP_OK);
	REQUIRE_EQ(refs_of(a), 2);
	REQUIRE_EQ(pp__handle_free(a->number, PP__KIND_BARRIER), PP_OK);
	REQUIRE_EQ(pp__ref_send(b, &ref), PP_OK);
	pp__ref_forget(&ref);
	pp__ref_forget(&ref);
	REQUIRE_EQ(refs_of(b), 1);
	REQUIRE_EQ(pp__handle_free(b->number, PP__KIND_BARRIER), PP_OK);
	REQUIRE_EQ(pp__ref_receive(&ref, &b), PP_ERR_CLOSED);
	REQUIRE_EQ(destroyed, 2);
	ref.heap_id++;
	REQUIRE_EQ(pp__ref_receive(&ref, &b), PP_ERR_INVALID);
	empty(heap);
	/* The dead's are dropped by who joins, or makes objects for a while. */
	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &a), PP_OK);
	pid_t child = fork();
	if (child == 0)
		raise(SIGKILL);
	REQUIRE(WIFSIGNALED(kit_wait(child)));
	child = fork();
	if (child == 0)
		_exit(0); /* it does not say good-bye */
	REQUIRE_EQ(kit_wait(child), 0);
	heap->private->reap_at = 0;
	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &b), PP_OK);
	REQUIRE_EQ(refs_of(a), 1);
	REQUIRE_EQ(pp__handle_free(a->number, PP__KIND_BARRIER), PP_OK);
	REQUIRE_EQ(pp__handle_free(b->number, PP__KIND_BARRIER), PP_OK);
	empty(heap);
	pp__heap_close(heap);
}

/* ---- handles and threads ---------------------------------------------------------------------------------------------------- */

enum { NUMBERS = 64 };
static uint64_t numbers[NUMBERS];
static uint32_t wide; /* how many of them are used */
static uint32_t stop;

static void *use_handles(void *seed_pointer)
{
	uint64_t seed = *(uint64_t *)seed_pointer, pinned = 0;

	while (__atomic_load_n(&stop, __ATOMIC_RELAXED) == 0) {
		const uint64_t r = next_random(&seed);
		uint64_t *const place = &numbers[r % wide];
		if (r >> 32 & 1) {
			const uint64_t number = __atomic_load_n(place, __ATOMIC_RELAXED);
			pp__handle *const h = pp__pin(number, PP__KIND_BARRIER);
			if (h != NULL) {
				pinned++;
				/* While it is pinned the object is there. */
				REQUIRE_EQ(((pp__object *)pp__at(h->heap, h->off))->generation, h->generation);
				REQUIRE(refs_of(h) >= 1);
				pp__unpin(h);
			}
		} else {
			pp__handle *h;
			const uint64_t old = __atomic_exchange_n(place, 0, __ATOMIC_RELAXED);
			REQUIRE_EQ(pp__handle_free(old, PP__KIND_BARRIER), PP_OK);
			REQUIRE_EQ(pp__object_new(the_heap, PP__KIND_BARRIER, 128, &h), PP_OK);
			const uint64_t other = __atomic_exchange_n(place, h->number, __ATOMIC_RELAXED);
			REQUIRE_EQ(pp__handle_free(other, PP__KIND_BARRIER), PP_OK);
		}
	}
	return (void *)(uintptr_t)pinned;
}

/* A call that ends in the middle, with its thread. */
static void *leave_pinned(void *number)
{
	REQUIRE(pp__pin(*(uint64_t *)number, PP__KIND_BARRIER) != NULL);
	return NULL;
}

static void *drop_kept(void *handle)
{
	pp__drop(handle);
	return NULL;
}

/* Which uses of a handle defer its end, and that the last one ends it: more in one thread than it has places for, beyond the call and in another thread, and a thread that is gone. */
static void pins(void)
{
	pp__heap *const heap = fresh_heap();
	pp__handle *h, *others[PP__PINS];
	pthread_t thread;

	for (int depth = 1; depth <= 2 * PP__PINS; depth++) {
		closed = 0;
		REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &h), PP_OK);
		for (int i = 0; i < depth; i++)
			REQUIRE(pp__pin(h->number, PP__KIND_BARRIER) == h);
		REQUIRE_EQ(pp__handle_free(h->number, PP__KIND_BARRIER), PP_OK);
		for (int i = 0; i < depth; i++) {
			REQUIRE_EQ(closed, 0);
			pp__unpin(h);
		}
		REQUIRE_EQ(closed, 1);
		pp__unpin(h); /* of one that it does not have any more: nothing */
		REQUIRE_EQ(closed, 1);
	}
	/* Kept, pinned, and freed when no place is left. */
	for (int i = 0; i < PP__PINS; i++) {
		REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &others[i]), PP_OK);
		REQUIRE(pp__pin(others[i]->number, PP__KIND_BARRIER) == others[i]);
	}
	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &h), PP_OK);
	REQUIRE(pp__pin(h->number, PP__KIND_BARRIER) == h);
	pp__keep(h);
	closed = 0;
	REQUIRE_EQ(pp__handle_free(h->number, PP__KIND_BARRIER), PP_OK);
	pp__unpin(h);
	REQUIRE_EQ(closed, 0);
	REQUIRE_EQ(pthread_create(&thread, NULL, drop_kept, h), 0);
	pthread_join(thread, NULL);
	REQUIRE_EQ(closed, 1);
	for (int i = 0; i < PP__PINS; i++) {
		pp__unpin(others[i]);
		REQUIRE_EQ(pp__handle_free(others[i]->number, PP__KIND_BARRIER), PP_OK);
	}
	REQUIRE_EQ(closed, 1 + PP__PINS);
	/* A thread that ended in a call is in none. */
	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &h), PP_OK);
	uint64_t number = h->number;
	REQUIRE_EQ(pthread_create(&thread, NULL, leave_pinned, &number), 0);
	pthread_join(thread, NULL);
	REQUIRE_EQ(pp__handle_free(number, PP__KIND_BARRIER), PP_OK);
	REQUIRE_EQ(closed, 2 + PP__PINS);
	REQUIRE_EQ(live, 0);
	empty(heap);
	pp__heap_close(heap);
}

/* Threads make, use and free handles while one forks: each child frees all that it has inherited, or is killed. */
static void forks_and_threads_of(uint32_t handles, int64_t ms)
{
	pthread_t thread[3];
	uint64_t seeds[3] = {1, 2, 3};
	uint32_t children = 0, kills = 0;

	the_heap = fresh_heap();
	memset(numbers, 0, sizeof numbers);
	wide = handles;
	stop = 0;
	for (int i = 0; i < 3; i++)
		REQUIRE_EQ(pthread_create(&thread[i], NULL, use_handles, &seeds[i]), 0);
	uint64_t seed = 99;
	const int64_t end = now_ms() + ms;
	while (now_ms() < end || children < 6) {
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			alarm(20);
			for (int i = 0; i < NUMBERS; i++) {
				pp__handle *const h = pp__pin(numbers[i], PP__KIND_BARRIER);
				if (h == NULL)
					continue;
				REQUIRE(refs_of(h) >= 1);
				REQUIRE_EQ(((pp__object *)pp__at(h->heap, h->off))->generation, h->generation);
				pp__unpin(h);
				REQUIRE_EQ(pp__handle_free(numbers[i], PP__KIND_BARRIER), PP_OK);
			}
			/* And it can go on. */
			pp__handle *h;
			REQUIRE_EQ(pp__object_new(the_heap, PP__KIND_BARRIER, 128, &h), PP_OK);
			REQUIRE_EQ(pp__handle_free(h->number, PP__KIND_BARRIER), PP_OK);
			_exit(0);
		}
		children++;
		if (next_random(&seed) % 2 == 0) {
			nanosleep(&(struct timespec){0, (long)(next_random(&seed) % 1000000)}, NULL);
			kill(child, SIGKILL);
		}
		const int status = kit_wait(child);
		kills += WIFSIGNALED(status);
		REQUIRE(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
	}
	stop = 1;
	uint64_t pinned = 0;
	for (int i = 0; i < 3; i++) {
		void *result;
		pthread_join(thread[i], &result);
		pinned += (uintptr_t)result;
	}
	for (int i = 0; i < NUMBERS; i++)
		REQUIRE_EQ(pp__handle_free(numbers[i], PP__KIND_BARRIER), PP_OK);
	/* Places of children that were killed before they came for them. */
	nurseries(the_heap, UINT64_MAX);
	kit_settle(the_heap);
	const kit_count c = kit_audit(the_heap);
	printf("forks and threads: %u children, %u killed, %llu pins, %u objects kept by deaths\n", children, kills, (unsigned long long)pinned,
	       kit_used(&c));
	REQUIRE_EQ(c.cells, 0);
	REQUIRE(pinned > 100);
	REQUIRE(kit_used(&c) <= kills);
	REQUIRE_EQ(live, 0);
	pp__heap_close(the_heap);
}

static void forks_and_threads(void)
{
	forks_and_threads_of(NUMBERS, 2000);
	forks_and_threads_of(1, 1000); /* all of them at one place: freed under the others' hands */
	const bool is = pp__pins_asymmetric;
	REQUIRE(is);
	pp__pins_asymmetric = false; /* as where membarrier is forbidden */
	forks_and_threads_of(NUMBERS, 500);
	forks_and_threads_of(1, 500);
	pp__pins_asymmetric = is;
}

/* A fork that fails, and a child that comes too late for its place. */
static void failed_fork(void)
{
	pp__heap *const heap = fresh_heap();
	pp__handle *h;

	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &h), PP_OK);
	pp__heap_before_fork();
	pp__heap_in_parent();
	REQUIRE_EQ(refs_of(h), 2);
	nurseries(heap, pp__now_ns()); /* too early */
	REQUIRE_EQ(refs_of(h), 2);
	nurseries(heap, UINT64_MAX);
	REQUIRE_EQ(refs_of(h), 1);
	REQUIRE_EQ(kit_audit(heap).cells, 1);
	REQUIRE_EQ(kit_audit(heap).members, 1);
	/* The same while a child sleeps in its first instruction, as it were: it takes its reference the usual way, or is told. */
	for (int gone = 0; gone < 2; gone++) {
		int gate[2];
		REQUIRE_EQ(pipe(gate), 0);
		pp__heap_before_fork();
		const pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); /* without the handlers */
		REQUIRE(child >= 0);
		if (child == 0) {
			char c;
			close(gate[1]);
			REQUIRE_EQ(read(gate[0], &c, 1), 0);
			const uint64_t number = h->number;
			pp__heap_in_child();
			pp__handle *const p = pp__pin(number, PP__KIND_BARRIER);
			REQUIRE((p == NULL) == (gone == 1));
			if (p != NULL) {
				REQUIRE_EQ(refs_of(p), 2);
				pp__unpin(p);
				REQUIRE_EQ(pp__handle_free(number, PP__KIND_BARRIER), PP_OK);
			}
			_exit(0);
		}
		pp__heap_in_parent();
		close(gate[0]);
		nurseries(heap, UINT64_MAX);
		REQUIRE_EQ(refs_of(h), 1);
		if (gone)
			REQUIRE_EQ(pp__handle_free(h->number, PP__KIND_BARRIER), PP_OK);
		close(gate[1]);
		REQUIRE_EQ(kit_wait(child), 0);
	}
	empty(heap);
	pp__heap_close(heap);
}

/* ---- the lock ------------------------------------------------------------------------------------------------------------------ */

static uint32_t resolved;

static void resolve(pp__heap *heap, void *object, uint32_t dead)
{
	REQUIRE(heap == the_heap);
	REQUIRE_EQ(*(uint32_t *)object & ~PP__SLEEPERS, dead);
	resolved++;
}

static void nothing(int number)
{
	(void)number;
}

typedef struct locked {
	uint32_t word;
	uint64_t a, b, recoveries, takes;
} locked;

static void lock_torture(locked *l)
{
	for (;;) {
		bool recovered;
		REQUIRE_EQ(pp__mutex_lock(the_heap, &l->word, UINT64_MAX, NULL, NULL, &recovered), PP_OK);
		if (recovered) {
			l->recoveries++;
			l->b = l->a;
		}
		REQUIRE_EQ(l->a, l->b);
		l->a++;
		if (l->a % 64 == 0)
			sched_yield();
		l->b++;
		l->takes++;
		pp__mutex_unlock(&l->word);
	}
}

static void locks(void)
{
	uint64_t off;
	bool recovered;

	the_heap = fresh_heap();
	pp__heap *const heap = the_heap;
	REQUIRE_EQ(pp__alloc(heap, sizeof(locked), TAG, &off, NULL), PP_OK);
	locked *const l = (locked *)pp__at(heap, off);
	memset(l, 0, sizeof *l);
	resolved = 0;
	/* Held by the living: a try, a time, a signal. */
	REQUIRE_EQ(pp__mutex_lock(heap, &l->word, 0, NULL, NULL, &recovered), PP_OK);
	REQUIRE_EQ(l->word, heap->me);
	REQUIRE_EQ(pp__mutex_lock(heap, &l->word, 0, NULL, NULL, NULL), PP_ERR_TIMEOUT);
	pid_t child = fork();
	if (child == 0) {
		REQUIRE_EQ(pp__mutex_lock(heap, &l->word, 0, NULL, NULL, NULL), PP_ERR_TIMEOUT);
		const int64_t begin = now_ms();
		REQUIRE_EQ(pp__mutex_lock(heap, &l->word, pp__deadline(60), NULL, NULL, NULL), PP_ERR_TIMEOUT);
		REQUIRE(now_ms() - begin >= 59);
		sigaction(SIGALRM, &(struct sigaction){.sa_handler = nothing}, NULL);
		const struct itimerval soon = {{0, 20000}, {0, 20000}};
		REQUIRE_EQ(setitimer(ITIMER_REAL, &soon, NULL), 0);
		REQUIRE_EQ(pp__mutex_lock(heap, &l->word, UINT64_MAX, NULL, NULL, NULL), PP_ERR_INTERRUPTED);
		_exit(0);
	}
	REQUIRE_EQ(kit_wait(child), 0);
	pp__mutex_unlock(&l->word);
	REQUIRE_EQ(l->word, 0);
	/* Held by the dead: a child that was collected, one that was not, one that executes something else. */
	for (int how = 0; how < 4; how++) {
		int ready[2];
		char c;
		REQUIRE_EQ(pipe(ready), 0);
		child = fork();
		if (child == 0) {
			REQUIRE_EQ(pp__mutex_lock(heap, &l->word, 0, NULL, NULL, NULL), PP_OK);
			REQUIRE_EQ(write(ready[1], "x", 1), 1);
			if (how < 2)
				raise(SIGKILL);
			dup2(ready[0], 0);
			fcntl(0, F_SETFD, 0);
			fcntl(ready[1], F_SETFD, FD_CLOEXEC);
			execl("/bin/sleep", "sleep", "20", (char *)NULL);
			_exit(1);
		}
		REQUIRE_EQ(read(ready[0], &c, 1), 1);
		close(ready[1]);
		if (how == 0)
			kit_wait(child);
		if (how >= 2) /* executed: the pipe's other end is closed */
			REQUIRE_EQ(read(ready[0], &c, 1), 0);
		const uint32_t before = resolved, dead = l->word & ~PP__SLEEPERS;
		int32_t status = PP_ERR_TIMEOUT;
		/* Who only tries gets it too, if not at the first time. */
		WITHIN(5000, (status = pp__mutex_lock(heap, &l->word, how == 3 ? 0 : pp__deadline(5000), resolve, &l->word, &recovered)) == PP_OK);
		REQUIRE(recovered);
		REQUIRE_EQ(resolved, before + 1);
		REQUIRE(pp__gone(heap, dead));
		pp__mutex_unlock(&l->word);
		if (how > 0) {
			kill(child, SIGKILL);
			kit_wait(child);
		}
		close(ready[0]);
	}
	/* A word that names nobody is as good as a dead one's. */
	l->word = PP__SLEEPERS | 0x7ffff0f0;
	REQUIRE_EQ(pp__mutex_lock(heap, &l->word, pp__deadline(1000), NULL, NULL, &recovered), PP_OK);
	REQUIRE(recovered);
	pp__mutex_unlock(&l->word);

	/* Contended, and killed at random. */
	pid_t children[3] = {0};
	uint64_t seed = 5;
	uint32_t kills = 0;
	const int64_t end = now_ms() + 2500;
	while (now_ms() < end) {
		const uint32_t i = (uint32_t)(next_random(&seed) % 3);
		if (children[i] != 0) {
			kill(children[i], SIGKILL);
			REQUIRE_EQ(kit_wait(children[i]), SIGKILL);
			kills++;
		}
		if ((children[i] = fork()) == 0)
			lock_torture(l);
		nanosleep(&(struct timespec){0, (long)(next_random(&seed) % 20000000)}, NULL);
	}
	for (int i = 0; i < 3; i++)
		if (children[i] != 0) {
			kill(children[i], SIGKILL);
			kit_wait(children[i]);
		}
	REQUIRE_EQ(pp__mutex_lock(heap, &l->word, pp__deadline(5000), NULL, NULL, NULL), PP_OK);
	printf("locks: %llu takes, %u kills, %llu recoveries\n", (unsigned long long)l->takes, kills, (unsigned long long)l->recoveries);
	REQUIRE(l->takes > 10000 && kills > 3);
	pp__mutex_unlock(&l->word);
	pp__heap_close(heap);
}

/* More processes than there are places: the dead make room. */
static void places(void)
{
	pp__heap *const heap = fresh_heap();

	REQUIRE(pp__join(heap) != 0);
	uint64_t *const table = slot_of(heap, 0);
	for (uint32_t i = 1; i < PP__MEMBERS; i++)
		table[i] = pp__member_word_of(4194303, i, PP__MEMBER_TAKEN) | 5 << PP__MEMBER_GEN_SHIFT;
	const pid_t child = fork();
	if (child == 0) {
		REQUIRE(pp__join(heap) != 0);
		_exit(0);
	}
	REQUIRE_EQ(kit_wait(child), 0);
	/* All taken by the living: an error. */
	for (uint32_t i = 1; i < PP__MEMBERS; i++)
		table[i] = table[0];
	const pid_t other = fork();
	if (other == 0) {
		uint64_t off;
		REQUIRE_EQ(pp__alloc(heap, 1, TAG, &off, NULL), PP_ERR_NOMEM);
		REQUIRE(strstr(pp_last_error(), "places") != NULL);
		_exit(0);
	}
	REQUIRE_EQ(kit_wait(other), 0);
	pp__heap_close(heap);
}

/* ---- a heap full of nonsense ---------------------------------------------------------------------------------------------------- */

static void scribble(pp__heap *heap, uint64_t *seed)
{
	static const uint32_t kinds = 7;
	const uint64_t r = next_random(seed), v = next_random(seed);
	const uint32_t i = PP__SLAB_FIRST + (uint32_t)(r >> 8) % 24;
	pp__slab *const slab = slab_at(heap, i);
	pp__heap_head *const head = pp__head(heap);

	switch (r % 12) {
	case 0:
		slab->word = v;
		break;
	case 1:
		slab->word = (v % kinds) << 56 | (v >> 8 & 15) << 48 | (v >> 12 & 255) << 32 | (v >> 20 & 1 ? heap->me : (uint32_t)(v >> 32));
		break;
	case 2:
		slab->fresh = (uint32_t)v;
		break;
	case 3:
		slab->reserved = (uint32_t)(v & 1 ? v >> 32 : v >> 55);
		break;
	case 4:
		slab->state[v % 16] = (uint32_t)(v >> 32) >> (v & 31);
		break;
	case 5:
		small_states(heap, i)[v % 8192] = (uint32_t)(v >> 32) >> (v & 31);
		break;
	case 6:
		*cell_at(heap, (uint32_t)(v % 4000)) = next_random(seed) >> (v >> 58);
		break;
	case 7:
		(&head->warm)[v % 4] = next_random(seed) >> (v >> 58);
		break;
	case 8:
		*slot_of(heap, (uint32_t)(v % 8)) = next_random(seed);
		break;
	case 9:
		*(uint64_t *)pp__at(heap, ((uint64_t)i << 20) + (v % 8192) * 128 + 8 * (v >> 40 & 1)) = next_random(seed);
		break;
	case 10:
		head->slab_top = (uint32_t)(v & 1 ? v >> 32 : PP__SLAB_FIRST + (v >> 59));
		break;
	default:
		head->refs_top = (uint32_t)(v & 1 ? v >> 32 : v >> 52);
		break;
	}
}

static void nonsense_child(uint64_t seed)
{
	static const uint64_t size[] = {1, 200, 4000, 30000, 60000, 500000, 1 << 20, 3 << 20};
	pp__heap *const heap = fresh_heap();
	uint64_t off[32] = {0};
	uint64_t number[32] = {0};

	pp__kinds[PP__KIND_BARRIER] = NULL;
	alarm(30);
	pp__tag(heap);
	/* Entries of the tables that are scribbled on have storage. */
	REQUIRE_EQ(ready(heap, 512), PP_OK);
	REQUIRE(open_slabs(heap, 64));
	for (int step = 0; step < 800; step++) {
		const uint64_t r = next_random(&seed);
		const uint32_t at = (uint32_t)(r >> 8) % 32;
		if (r % 8 == 0) {
			scribble(heap, &seed);
		} else if (r % 8 < 4) {
			uint64_t room = 0;
			if (off[at] != 0)
				pp__free(heap, off[at], TAG);
			off[at] = 0;
			const uint64_t want = size[r >> 16 & 7];
			if (pp__alloc(heap, want, TAG, &off[at], &room) == PP_OK) {
				REQUIRE(room >= want && pp__within(heap, off[at], room) != NULL);
				*((volatile uint8_t *)pp__at(heap, off[at]) + room - 1) = 1;
			}
		} else if (r % 8 < 6) {
			pp__handle *h;
			pp__handle_free(number[at], PP__KIND_BARRIER);
			number[at] = 0;
			if (pp__object_new(heap, PP__KIND_BARRIER, 128 + (r >> (r >> 40 & 1 ? 44 : 52)), &h) == PP_OK)
				number[at] = h->number;
		} else if (r % 8 == 6) {
			pp__handle *h;
			const uint64_t where = ((r >> 20) % 24 + 32) << 20 | (r >> 40 & 8191) * 128;
			if (pp__object_at(heap, where, PP__KIND_BARRIER, (uint32_t)(r & 1), &h) == PP_OK)
				pp__handle_free(h->number, PP__KIND_BARRIER);
			pp__free(heap, where, TAG);
		} else if (r >> 32 & 1) {
			kit_settle(heap);
		} else {
			kit_trim(heap);
		}
	}
	_exit(0);
}

static void nonsense(void)
{
	for (uint64_t seed = 1; seed <= 12; seed++) {
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0)
			nonsense_child(seed * 7919);
		const int status = kit_wait(child);
		if (status != 0)
			fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
		REQUIRE_EQ(status, 0);
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} all[] = {
		{"sizes", sizes}, {"mixed", mixed}, {"adoption", adoption}, {"killed_at_random", killed_at_random}, {"burst", burst},
		{"limits", limits}, {"named", named}, {"racing", racing}, {"objects", objects}, {"pins", pins}, {"forks_and_threads", forks_and_threads},
		{"failed_fork", failed_fork}, {"locks", locks}, {"places", places}, {"nonsense", nonsense},
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(shared != MAP_FAILED);
	pthread_atfork(pp__heap_before_fork, pp__heap_in_parent, pp__heap_in_child);
	pp__kinds[PP__KIND_BARRIER] = &test_kind;
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (argc < 2 || strcmp(argv[1], all[i].name) == 0) {
			const int64_t begin = now_ms();
			all[i].run();
			printf("%s: %lld ms\n", all[i].name, (long long)(now_ms() - begin));
		}
	return 0;
}
