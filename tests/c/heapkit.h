/* heapkit.h - the shared heap of the library, with its insides, for the tests of it. */
#ifndef HEAPKIT_H
#define HEAPKIT_H

#include "require.h"

#include "../../capi/front/error.c"
#include "../../capi/front/heap.c"
#include "../../capi/front/members.c"
#include "../../capi/front/objects.c"
#include "../../capi/front/pins.c"
#include "../../capi/front/storage.c"
#include "../../capi/front/wait.c"

#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>

static int kit_fd = -1;

int pp__thread_begin(void *(*run)(void *), void *arg, size_t stack)
{
	pthread_t thread;
	sigset_t all, before;

	(void)stack;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	const int error = pthread_create(&thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error != 0 ? error : pthread_detach(thread);
}

/* A family for the tests: its heap is made by the first who asks, as family.c does. */
int32_t pp__family_fds(int *heap_out, int *depot_out)
{
	if (kit_fd < 0) {
		kit_fd = memfd_create("heap_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		REQUIRE(kit_fd >= 0);
		struct rlimit limit;
		REQUIRE_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
		REQUIRE_EQ(ftruncate(kit_fd, (off_t)(limit.rlim_cur < MOST_SIZE ? limit.rlim_cur & ~(PP__SLAB_SIZE - 1) : MOST_SIZE)), 0);
		REQUIRE_EQ(fcntl(kit_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	}
	*heap_out = kit_fd;
	*depot_out = -1;
	return PP_OK;
}

/* What a heap holds. */
typedef struct kit_count {
	uint32_t blocks[3]; /* in use: small, large, runs */
	uint64_t bytes;     /* of these */
	uint64_t warm;      /* free large blocks and runs with storage */
	uint32_t slabs[6];  /* by kind */
	uint32_t claimed;   /* slabs that are not free */
	uint32_t giving;    /* blocks somebody is giving back */
	uint32_t cells;     /* in use */
	uint32_t members;
} kit_count;

/* kit_audit reads all of a heap that nobody uses at the moment, and ends the test if anything in it does not fit. */
static inline kit_count kit_audit(const pp__heap *heap)
{
	kit_count c;
	const uint32_t top = top_of(heap);
	uint32_t tails = 0;

	memset(&c, 0, sizeof c);
	for (uint32_t i = PP__SLAB_FIRST; i < top; i++) {
		const uint64_t word = slab_word(heap, i);
		const uint32_t kind = pp__slab_kind(word), class = pp__slab_class(word), count = pp__slab_count(word);
		const pp__slab *const slab = slab_at(heap, i);
		REQUIRE(kind <= PP__SLAB_TAIL);
		c.slabs[kind]++;
		c.claimed += kind != PP__SLAB_FREE;
		if (tails > 0) {
			tails--;
			REQUIRE_EQ(kind, PP__SLAB_TAIL);
		}
		if (kind == PP__SLAB_FREE)
			REQUIRE_EQ(word, 0);
		if (kind == PP__SLAB_SMALL) {
			REQUIRE(class < PP__SMALL_CLASSES);
			REQUIRE(slab->fresh <= blocks_of(class));
			for (uint32_t k = covered(class); k < blocks_of(class); k++) {
				const uint32_t v = small_states(heap, i)[k];
				REQUIRE(v < PP__GIVING);
				REQUIRE(v == 0 || k < slab->fresh);
				c.blocks[0] += v > 1;
				c.bytes += v > 1 ? (uint64_t)128 << class : 0;
			}
		}
		if (kind == PP__SLAB_LARGE) {
			REQUIRE(class < PP__LARGE_CLASSES);
			for (uint32_t k = 0; k < 16u >> class; k++) {
				const uint32_t v = slab->state[k];
				c.giving += (v & PP__GIVING) != 0;
				c.blocks[1] += v > 1 && (v & PP__GIVING) == 0;
				c.bytes += v > 1 ? (uint64_t)65536 << class : 0;
				c.warm += v == 1 ? (uint64_t)65536 << class : 0;
			}
		}
		if (kind == PP__SLAB_RUN) {
			REQUIRE(count > 0 && i + count <= top);
			REQUIRE((uint64_t)slab->reserved << 12 <= (uint64_t)count << 20);
			tails = count - 1;
			for (uint32_t k = 1; k < count; k++)
				REQUIRE_EQ(pp__slab_count(slab_word(heap, i + k)), k);
			const uint32_t v = slab->state[0];
			c.giving += (v & PP__GIVING) != 0;
			c.blocks[2] += v > 1 && (v & PP__GIVING) == 0;
			c.bytes += v > 1 ? (uint64_t)count << 20 : 0;
			c.warm += v == 1 ? (uint64_t)slab->reserved << 12 : 0;
		}
	}
	REQUIRE_EQ(tails, 0);
	for (uint32_t i = 1; i < pp__refs_top(heap); i++)
		c.cells += *cell_at(heap, i) != 0;
	for (uint32_t i = 0; i < PP__MEMBERS; i++)
		c.members += (*slot_of(heap, i) & PP__MEMBER_TAKEN) != 0;
	return c;
}

static inline uint32_t kit_used(const kit_count *c)
{
	return c->blocks[0] + c->blocks[1] + c->blocks[2];
}

/* kit_settle does all that is ever done behind the dead. */
static inline void kit_settle(pp__heap *heap)
{
	REQUIRE(pp__join(heap) != 0);
	pp__reap(heap, PP__MEMBERS, true);
	pthread_mutex_lock(&heap->private->lock);
	adopt(heap, true);
	pthread_mutex_unlock(&heap->private->lock);
}

static inline void kit_trim(pp__heap *heap)
{
	pthread_mutex_lock(&heap->private->lock);
	trim(heap);
	pthread_mutex_unlock(&heap->private->lock);
}

/* kit_storage is how many bytes of memory the file has. */
static inline uint64_t kit_storage(const pp__heap *heap)
{
	struct stat st;

	REQUIRE_EQ(fstat(heap->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static inline int kit_wait(pid_t child)
{
	int status;

	REQUIRE_EQ(waitpid(child, &status, 0), child);
	return status;
}

#endif
