/* heap_race_test.c - two living processes that race for the blocks of the shared heap: one stands at a point of heap.c, where a preemption may be, while the other goes on. What
 * the first has seen of a slab is not so any more then, and it must notice.
 *
 * deadline: 60 s
 */
#include "require.h"

static void test_point(const char *name, uint32_t slab);
#define PP__TEST_POINT(name, slab) test_point(name, slab)

#include "heapkit.h"

enum { TAG = 100, HALF = 512 << 10 };

static pp__heap *heap;
static int to_child[2], to_parent[2];
static const char *stop_at; /* where this process stands still, once */
static uint32_t stop_slab;
static void (*meanwhile)(void);

static void test_point(const char *name, uint32_t slab)
{
	if (stop_at == NULL || strcmp(name, stop_at) != 0 || (stop_slab != 0 && slab != stop_slab))
		return;
	stop_at = NULL;
	meanwhile();
}

/* Each process says when it has got somewhere, and waits until the other has. */
static void tell(int fd)
{
	REQUIRE_EQ(write(fd, "x", 1), 1);
}

static void listen_to(int fd)
{
	char c;

	REQUIRE_EQ(read(fd, &c, 1), 1);
}

static void child_goes_on(void) /* the parent stands still meanwhile */
{
	tell(to_child[1]);
	listen_to(to_parent[0]);
}

static void parent_goes_on(void)
{
	tell(to_parent[1]);
	listen_to(to_child[0]);
}

static uint64_t alloc(uint64_t size, uint32_t tag)
{
	uint64_t off;

	REQUIRE_EQ(pp__alloc(heap, size, tag, &off, NULL), PP_OK);
	return off;
}

static uint32_t slab_of(uint64_t off)
{
	return (uint32_t)(off >> PP__SLAB_SHIFT);
}

static void fill(uint64_t off, uint64_t size)
{
	memset(pp__at(heap, off), 0xaa, size);
}

static void require_whole(uint64_t off, uint64_t size)
{
	const uint8_t *const p = pp__at(heap, off);

	for (uint64_t i = 0; i < size; i++)
		REQUIRE_EQ(p[i], 0xaa);
}

static void require_nothing_given(void)
{
	const kit_count c = kit_audit(heap);

	REQUIRE_EQ(c.giving, 0);
}

static pid_t start(void (*child)(void))
{
	heap = NULL;
	REQUIRE_EQ(pp__heap_create(NULL, &heap), PP_OK);
	REQUIRE_EQ(pipe(to_child), 0);
	REQUIRE_EQ(pipe(to_parent), 0);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		alarm(30);
		child();
		_exit(0);
	}
	REQUIRE(pp__join(heap) != 0);
	return pid;
}

static void end(pid_t child)
{
	REQUIRE_EQ(kit_wait(child), 0);
	kit_settle(heap);
	require_nothing_given();
	for (int i = 0; i < 2; i++) {
		close(to_child[i]);
		close(to_parent[i]);
	}
	pp__heap_close(heap);
}

/* evict_all gives back what others have left free, as pp__free does. */
static void evict_all(void)
{
	evict(heap, (uint64_t)1 << 40, heap->me, 0);
}

/* ---- evict: the slab is given back and gets another class, or kind, between the look and the CAS */

static uint64_t block; /* the first that the child has had */

static void child_slab_of_another_class(void)
{
	block = alloc(64 << 10, TAG);
	REQUIRE(pp__free(heap, block, TAG));
	parent_goes_on();
	kit_trim(heap);
	const uint64_t live = alloc(HALF, TAG), other = alloc(HALF, TAG + 1);
	REQUIRE_EQ(slab_of(live), slab_of(block));
	fill(live, HALF);
	REQUIRE(pp__free(heap, other, TAG + 1));
	parent_goes_on();
	require_whole(live, HALF);
	require_nothing_given();
	REQUIRE(pp__free(heap, live, TAG));
}

static void child_run_becomes_large(void)
{
	block = alloc(3 << 20, TAG);
	REQUIRE(pp__free(heap, block, TAG));
	parent_goes_on();
	kit_trim(heap);
	const uint64_t first = alloc(HALF, TAG), live = alloc(HALF, TAG);
	const uint64_t low = first < live ? first : live, high = first < live ? live : first;
	REQUIRE_EQ(low, block);
	fill(high, HALF);
	REQUIRE(pp__free(heap, low, TAG));
	parent_goes_on();
	require_whole(high, HALF);
	require_nothing_given();
	REQUIRE_EQ(slab_at(heap, slab_of(low))->state[0], 1);
}

static void child_large_becomes_run(void)
{
	block = alloc(64 << 10, TAG);
	REQUIRE(pp__free(heap, block, TAG));
	parent_goes_on();
	kit_trim(heap);
	const uint64_t run = alloc(3 << 20, TAG);
	REQUIRE_EQ(slab_of(run), slab_of(block));
	REQUIRE(pp__free(heap, run, TAG));
	parent_goes_on();
	require_nothing_given();
	REQUIRE_EQ(slab_at(heap, slab_of(run))->state[0], 1);
}

static void evicted(void (*child)(void))
{
	const pid_t pid = start(child);

	listen_to(to_parent[0]);
	stop_at = "evict: looked";
	stop_slab = 0;
	meanwhile = child_goes_on;
	evict_all();
	REQUIRE(stop_at == NULL);
	tell(to_child[1]);
	end(pid);
}

/* ---- adopt: a block of a dead process's slab is being given back when the heir finds that none is
 * in use */

static void heir(void)
{
	kit_settle(heap); /* stands still when it has found that no block is in use */
	REQUIRE(stop_at == NULL);
	const uint64_t live = alloc(HALF, TAG), more = alloc(HALF, TAG + 1);
	fill(live, HALF);
	fill(more, HALF);
	parent_goes_on();
	require_whole(live, HALF);
	require_whole(more, HALF);
	REQUIRE(pp__free(heap, live, TAG));
	REQUIRE(pp__free(heap, more, TAG + 1));
}

static void child_heir(void)
{
	const pid_t dead = fork();

	REQUIRE(dead >= 0);
	if (dead == 0) {
		const uint64_t off = alloc(HALF, TAG);
		REQUIRE(pp__free(heap, off, TAG));
		raise(SIGKILL);
	}
	REQUIRE(WIFSIGNALED(kit_wait(dead)));
	REQUIRE(pp__join(heap) != 0);
	stop_at = "adopt: unused";
	stop_slab = 0;
	meanwhile = parent_goes_on;
	heir();
}

static void inherited(void)
{
	const pid_t pid = start(child_heir);

	listen_to(to_parent[0]);
	stop_at = "evict: taken";
	stop_slab = 0;
	meanwhile = child_goes_on;
	evict_all();
	REQUIRE(stop_at == NULL);
	tell(to_child[1]);
	end(pid);
}

/* ---- commit, trim: the owner of a free run stands still while another process gives it back, and
 * gets its place */

static uint64_t theirs;

static void take_its_place(void) /* the parent, as a run */
{
	REQUIRE_EQ(evict(heap, 1, heap->me, 0), true);
	theirs = alloc(3 << 20, TAG + 1);
	REQUIRE(pp__free(heap, theirs, TAG + 1));
}

static void take_its_place_large(void)
{
	REQUIRE_EQ(evict(heap, 1, heap->me, 0), true);
	const uint64_t a = alloc(HALF, TAG + 1), b = alloc(HALF, TAG + 1);
	theirs = a < b ? a : b;
	REQUIRE(pp__free(heap, theirs, TAG + 1));
}

static void child_commits(void)
{
	uint64_t room, word;

	block = alloc(3 << 20, TAG);
	REQUIRE(pp__free(heap, block, TAG));
	stop_at = "commit";
	stop_slab = slab_of(block);
	meanwhile = parent_goes_on;
	const uint64_t off = alloc(3 << 20, TAG);
	REQUIRE(stop_at == NULL);
	REQUIRE(pp__state_of(heap, off, &room, &word) != NULL);
	REQUIRE_EQ(pp__slab_owner(word), heap->me);
	REQUIRE(off != block);
	REQUIRE_EQ(slab_at(heap, slab_of(block))->state[0], 1);
	REQUIRE(pp__free(heap, off, TAG));
	parent_goes_on();
}

static void child_trims(void)
{
	block = alloc(3 << 20, TAG);
	REQUIRE(pp__free(heap, block, TAG));
	stop_at = "trim: run";
	stop_slab = slab_of(block);
	meanwhile = parent_goes_on;
	kit_trim(heap);
	REQUIRE(stop_at == NULL);
	require_nothing_given();
	parent_goes_on();
}

static void taken(void (*child)(void), void (*place)(void))
{
	const pid_t pid = start(child);

	listen_to(to_parent[0]);
	place();
	tell(to_child[1]);
	listen_to(to_parent[0]);
	REQUIRE_EQ(slab_at(heap, slab_of(theirs))->state[0], 1);
	tell(to_child[1]);
	end(pid);
}

/* ---- adopt: two heirs of a dead process's free run, the second of which uses the place at once */

static void child_second_heir(void)
{
	const pid_t dead = fork();

	REQUIRE(dead >= 0);
	if (dead == 0) {
		const uint64_t off = alloc(3 << 20, TAG);
		REQUIRE(pp__free(heap, off, TAG));
		raise(SIGKILL);
	}
	REQUIRE(WIFSIGNALED(kit_wait(dead)));
	REQUIRE(pp__join(heap) != 0);
	stop_at = "adopt: run";
	stop_slab = 0;
	meanwhile = parent_goes_on;
	kit_settle(heap);
	REQUIRE(stop_at == NULL);
	require_nothing_given();
	parent_goes_on();
}

static void settle_and_take(void)
{
	kit_settle(heap);
	const uint64_t a = alloc(HALF, TAG + 1), b = alloc(HALF, TAG + 1);
	theirs = a < b ? a : b;
	REQUIRE_EQ(slab_of(a), PP__SLAB_FIRST);
	REQUIRE(pp__free(heap, theirs, TAG + 1));
}

int main(int argc, char **argv)
{
	(void)argc, (void)argv;
	pthread_atfork(pp__heap_before_fork, pp__heap_in_parent, pp__heap_in_child);
	evicted(child_slab_of_another_class);
	evicted(child_run_becomes_large);
	evicted(child_large_becomes_run);
	inherited();
	taken(child_commits, take_its_place);
	taken(child_trims, take_its_place_large);
	taken(child_second_heir, settle_and_take);
	return 0;
}
