/* heap_killsweep_test.c - a process that dies at any instruction of an operation on the shared heap leaves what others can go on with:
 * nothing that is in use is lost or given twice, nothing stays taken in the name of the dead, and what leaks is at most the one block that was just
 * allocated, or the one object whose reference was just being taken or dropped.
 *
 * A child executes k instructions of the operation and is killed (killsweep.h).
 *
 * deadline: 300 s
 */
#define FIGURES_MS 3600000 /* the figures of the machine are read once, and not in each child */
#include "heapkit.h"

#include "killsweep.h"

enum { TAG = 77, ALL = 0x7fffffff };

typedef struct shared {
	uint64_t entered;
	uint64_t off; /* of the block or object that the operation is about */
	uint64_t off2;
	uint32_t word; /* a mutex */
	pp__ref ref;
	uint64_t destroyed;
	uint64_t belongs; /* a block that is the object's */
	bool sent; /* ref is whole */
} shared;

static shared *s;
static pp__heap *heap;
static pp__handle *handle;

static void destroy(pp__heap *h, uint64_t off)
{
	(void)off;
	__atomic_fetch_add(&s->destroyed, 1, __ATOMIC_SEQ_CST);
	pp__free(h, s->belongs, TAG + 2);
}

static const pp__kind kind = {.name = "test", .destroy = destroy};

/* ---- in the child ----------------------------------------------------------------------------------------------------- */

/* joined is a member that does not look for the dead's slabs just now. */
static void joined(void)
{
	if (pp__join(heap) == 0)
		_exit(1);
	heap->private->adopted = true;
	heap->private->adopt_at = UINT64_MAX;
	heap->private->reap_at = UINT64_MAX;
}

static uint64_t got(uint64_t size)
{
	uint64_t off;

	if (pp__alloc(heap, size, TAG, &off, NULL) != PP_OK)
		_exit(1);
	return off;
}

static void warm_small(void)
{
	joined();
	pp__free(heap, got(100), TAG);
}

static void alloc_small(void)
{
	s->off2 = got(100);
}

static void alloc_page(void)
{
	s->off2 = got(4000);
}

static void alloc_large(void)
{
	s->off2 = got(300000);
}

static void warm_large(void)
{
	joined();
	pp__free(heap, got(300000), TAG);
}

static void alloc_run(void)
{
	s->off2 = got(3 << 20);
}

static void warm_run_ready(void)
{
	joined();
	pp__free(heap, got(3 << 20), TAG);
}

static void cold_run(void)
{
	joined();
	const uint64_t off = got(5 << 20);
	pp__head(heap)->warm = PP__WARM_MOST;
	pp__free(heap, off, TAG);
}

static void have_small(void)
{
	joined();
	s->off = got(100);
}

static void have_large(void)
{
	joined();
	s->off = got(300000);
}

static void have_run(void)
{
	joined();
	s->off = got(3 << 20);
}

static void no_warmth(void)
{
	joined();
	pp__head(heap)->warm = PP__WARM_MOST;
}

static void have_large_no_warmth(void)
{
	have_large();
	no_warmth();
}

static void have_run_no_warmth(void)
{
	have_run();
	no_warmth();
}

static void free_it(void)
{
	if (!pp__free(heap, s->off, TAG))
		_exit(1);
}

static void new_object(void)
{
	if (pp__object_new(heap, PP__KIND_BARRIER, 128, &handle) != PP_OK)
		_exit(1);
}

static void have_object(void)
{
	joined();
	new_object();
	s->off = handle->off;
	if (pp__alloc(heap, 5000, TAG + 2, &s->belongs, NULL) != PP_OK)
		_exit(1);
}

/* As a process is that makes its second object; to clear the states of a first slab is tens of thousands of instructions. */
static void warm_object(void)
{
	have_object();
	if (pp__handle_free(handle->number, PP__KIND_BARRIER) != PP_OK)
		_exit(1);
	s->destroyed = 0;
	s->belongs = 0;
}

static void free_handle(void)
{
	if (pp__handle_free(handle->number, PP__KIND_BARRIER) != PP_OK)
		_exit(1);
}

static void send_ref(void)
{
	if (pp__ref_send(handle, &s->ref) != PP_OK)
		_exit(1);
}

static void receive_ref(void)
{
	if (pp__ref_receive(&s->ref, &handle) != PP_OK)
		_exit(1);
}

static void take_mutex(void)
{
	if (pp__mutex_lock(heap, &s->word, 0, NULL, NULL, NULL) != PP_OK)
		_exit(1);
	pp__mutex_unlock(&s->word);
}

static void join(void)
{
	heap->private->reap_at = UINT64_MAX;
	if (pp__join(heap) == 0)
		_exit(1);
}

static void adopt_all(void)
{
	pthread_mutex_lock(&heap->private->lock);
	adopt(heap, false);
	pthread_mutex_unlock(&heap->private->lock);
}

static void trim_all(void)
{
	pthread_mutex_lock(&heap->private->lock);
	trim(heap);
	pthread_mutex_unlock(&heap->private->lock);
}

/* ---- in the parent, before ------------------------------------------------------------------------------------------------ */

static void nothing_before(void)
{
}

/* The dead have left slabs of every kind, free and in use. */
static void estate(void)
{
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		joined();
		pp__free(heap, got(100), TAG);
		s->off = got(200);
		pp__free(heap, got(100000), TAG);
		got(60000);
		pp__free(heap, got(2 << 20), TAG);
		const uint64_t off = got(3 << 20);
		/* In the middle of giving a run back, and of claiming. */
		slab_at(heap, (uint32_t)(off >> 20))->state[0] = PP__GIVING | heap->me;
		release(heap, (uint32_t)(off >> 20) + 2);
		uint32_t first;
		REQUIRE_EQ(claim(heap, 3, &first), PP_OK);
		slab_at(heap, first + 1)->word = pp__slab_word_of(PP__SLAB_TAIL, 0, 1, heap->me);
		raise(SIGKILL);
	}
	REQUIRE(WIFSIGNALED(kit_wait(child)));
}

static void own_object(void)
{
	REQUIRE_EQ(pp__object_new(heap, PP__KIND_BARRIER, 128, &handle), PP_OK);
	s->off = handle->off;
}

static void sent_object(void)
{
	own_object();
	REQUIRE_EQ(pp__ref_send(handle, &s->ref), PP_OK);
	s->sent = true;
}

static void dead_holds(void)
{
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		joined();
		REQUIRE_EQ(pp__mutex_lock(heap, &s->word, 0, NULL, NULL, NULL), PP_OK);
		raise(SIGKILL);
	}
	REQUIRE(WIFSIGNALED(kit_wait(child)));
}

/* ---- in the parent, after ---------------------------------------------------------------------------------------------------- */

static uint32_t leaked; /* how often something was */

/* settled looks that nothing is left in the name of the dead, and that at most most blocks are in use. */
static kit_count settled(uint32_t least, uint32_t most)
{
	kit_settle(heap);
	const kit_count c = kit_audit(heap);
	REQUIRE_EQ(c.giving, 0);
	REQUIRE_EQ(c.slabs[PP__SLAB_CLAIMED], 0);
	REQUIRE_EQ(c.members, 1);
	REQUIRE_EQ(pp__head(heap)->warm, c.warm);
	REQUIRE(kit_used(&c) >= least && kit_used(&c) <= most);
	for (uint32_t i = PP__SLAB_FIRST; i < top_of(heap); i++) {
		const uint64_t word = slab_word(heap, i);
		/* Runs in use stay their dead owner's. */
		REQUIRE(word == 0 || pp__slab_owner(word) == heap->me || pp__slab_kind(word) >= PP__SLAB_RUN);
	}
	/* And it goes on. */
	uint64_t off[8];
	static const uint64_t sizes[] = {1, 100, 4000, 30000, 60000, 300000, 1 << 20, 3 << 20};
	for (int i = 0; i < 8; i++) {
		REQUIRE_EQ(pp__alloc(heap, sizes[i], TAG + 1, &off[i], NULL), PP_OK);
		memset(pp__at(heap, off[i]), 0xee, sizes[i]);
	}
	for (int i = 0; i < 8; i++)
		REQUIRE(pp__free(heap, off[i], TAG + 1));
	return c;
}

static void after_alloc(int ended)
{
	const kit_count c = settled(ended ? 1 : 0, 1);
	leaked += kit_used(&c) != 0;
	if (ended)
		REQUIRE(pp__free(heap, s->off2, TAG));
}

static void after_free(int ended)
{
	const kit_count c = settled(0, ended ? 0 : 1);
	leaked += kit_used(&c) != 0;
	/* Not freed: then it is whole and can be. */
	REQUIRE_EQ(pp__free(heap, s->off, TAG), kit_used(&c));
	settled(0, 0);
}

/* An object of the dead alone is gone, and all that it had; its own block may leak, when the cell was cleared and the block was not free yet. */
static void after_object(int ended)
{
	const kit_count c = settled(0, ended ? 0 : 1);
	leaked += kit_used(&c) != 0;
	REQUIRE_EQ(c.cells, 0);
	REQUIRE(s->destroyed <= 2);
	REQUIRE(s->belongs == 0 || !pp__free(heap, s->belongs, TAG + 2));
}

static void after_new_object(int ended)
{
	after_object(ended);
	REQUIRE_EQ(leaked, 0);
	if (ended)
		REQUIRE_EQ(s->destroyed, 1);
}

/* Another holds the object: it stays, with one reference or, when the death was between count and cell, with more; never with less. */
static void after_shared(int ended)
{
	settled(1, 1);
	pp__object *const object = (pp__object *)pp__at(heap, s->off);
	REQUIRE_EQ(object->generation, handle->generation);
	const uint32_t cells = kit_audit(heap).cells;
	REQUIRE(object->refs >= cells && object->refs <= cells + 1);
	leaked += object->refs != cells;
	REQUIRE_EQ(s->destroyed, 0);
	/* Whoever has the message can take it, however often it was tried. A message half written is none. */
	if (s->ref.heap_id != 0 && (ended || s->sent)) {
		pp__handle *mine;
		REQUIRE_EQ(pp__ref_receive(&s->ref, &mine), PP_OK);
		REQUIRE_EQ(mine->off, s->off);
		REQUIRE_EQ(pp__handle_free(mine->number, PP__KIND_BARRIER), PP_OK);
	}
	REQUIRE_EQ(pp__handle_free(handle->number, PP__KIND_BARRIER), PP_OK);
	settled(0, 1);
}

static void after_mutex(int ended)
{
	bool recovered;

	REQUIRE_EQ(pp__mutex_lock(heap, &s->word, pp__deadline(5000), NULL, NULL, &recovered), PP_OK);
	REQUIRE(!(ended && recovered));
	pp__mutex_unlock(&s->word);
	REQUIRE_EQ(s->word, 0);
	settled(0, 0);
}

static void after_join(int ended)
{
	(void)ended;
	settled(0, 0);
}

static void after_estate(int ended)
{
	(void)ended;
	settled(2, 2);
	REQUIRE(pp__free(heap, s->off, TAG));
	settled(1, 1);
}

typedef struct sweep {
	const char *name;
	void (*before)(void); /* in this process */
	void (*prepare)(void);
	void (*op)(void);
	void (*after)(int ended);
} sweep;

static uint32_t entered(void)
{
	return (uint32_t)__atomic_load_n(&s->entered, __ATOMIC_SEQ_CST);
}

static const watcher watching = {.entered = entered};
static way the_way = {.coarse = 16};

/* once kills a child after k instructions of the operation; k ALL: it goes through all of it, and its way is recorded. */
static void once(const sweep *w, uint32_t k)
{
	memset(s, 0, sizeof *s);
	handle = NULL;
	REQUIRE_EQ(pp__heap_create(NULL, &heap), PP_OK);
	pp__head(heap)->budget = (uint64_t)1 << 40; /* a child does not look at the figures of the machine */
	joined();
	w->before();
	const pid_t child = way_fork(&s->entered, w->prepare, w->op);
	if (k == ALL)
		way_record(&the_way, &watching, child);
	else
		way_to(&the_way, &watching, child, k);
	way_end(child);
	w->after(entered() == 2);
	pp__heap_close(heap);
}

int main(int argc, char **argv)
{
	static const sweep sweeps[] = {
		{"alloc of a warm small block", nothing_before, warm_small, alloc_small, after_alloc},
		{"alloc that claims a slab", nothing_before, joined, alloc_page, after_alloc},
		{"alloc of a cold large block", nothing_before, joined, alloc_large, after_alloc},
		{"alloc of a warm large block", nothing_before, warm_large, alloc_large, after_alloc},
		{"alloc of a run", nothing_before, joined, alloc_run, after_alloc},
		{"alloc of a warm run", nothing_before, warm_run_ready, alloc_run, after_alloc},
		{"alloc where a run was", nothing_before, cold_run, alloc_run, after_alloc},
		{"free of a small block", nothing_before, have_small, free_it, after_free},
		{"free of a large block", nothing_before, have_large, free_it, after_free},
		{"free of a run", nothing_before, have_run, free_it, after_free},
		{"free of a large block that gives it back", nothing_before, have_large_no_warmth, free_it, after_free},
		{"free of a run that gives it back", nothing_before, have_run_no_warmth, free_it, after_free},
		{"new object", nothing_before, warm_object, new_object, after_new_object},
		{"free of the last handle", nothing_before, have_object, free_handle, after_object},
		{"free of a handle of two", own_object, joined, free_handle, after_shared},
		{"sending a reference", own_object, joined, send_ref, after_shared},
		{"receiving a reference", sent_object, joined, receive_ref, after_shared},
		{"mutex", nothing_before, joined, take_mutex, after_mutex},
		{"mutex of a dead owner", dead_holds, joined, take_mutex, after_mutex},
		{"joining", nothing_before, nothing_before, join, after_join},
		{"adoption", estate, joined, adopt_all, after_estate},
		{"trim after adoption", estate, joined, trim_all, after_estate},
	};

	way_bind(argv);
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(getenv("POLYPROC_SWEEP") == NULL ? 280 : 14000);
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(s != MAP_FAILED);
	pp__kinds[PP__KIND_BARRIER] = &kind;
	pthread_atfork(pp__heap_before_fork, pp__heap_in_parent, pp__heap_in_child);
	for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++) {
		uint32_t places = 0;
		if (argc > 1 && strcmp(argv[1], sweeps[i].name) != 0)
			continue;
		leaked = 0;
		once(&sweeps[i], ALL);
		const uint32_t length = way_length(&the_way);
		REQUIRE(length > 10);
		for (uint32_t k = way_first(&the_way); k <= length; k = way_next(&the_way, k), places++)
			once(&sweeps[i], k);
		printf("%s: %u instructions, killed %u times, %u times something was kept; went another way: %u\n", sweeps[i].name, length, places, leaked,
		       the_way.missed);
		REQUIRE(leaked < places);
	}
	return 0;
}
