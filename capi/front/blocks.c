/* blocks.c - see blocks.h. */
#include "blocks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BLOCK_LEAST = 128 << 10 };
#define WARM_MOST ((uint64_t)64 << 20) /* storage of free blocks that is kept; a first touch costs fifty times a warm one */

static uint64_t round_up(uint64_t n, uint64_t unit)
{
	return (n + unit - 1) / unit * unit;
}

static bool is_free(const pp__blocks *blocks, uint32_t slot)
{
	return __atomic_load_n(&blocks->taken[slot], __ATOMIC_SEQ_CST) == 0;
}

static bool own_fd(const pp__blocks *blocks)
{
	return pp__is_file(blocks->fd, blocks->device, blocks->inode);
}

/* warm gives the first size bytes of a block storage. Writing to pages without would end this process with SIGBUS when memory is full. A
 * limit on file size (SIGXFSZ) is no matter: the file has its final size already. */
static int32_t warm(pp__blocks *blocks, pp__block *b, uint64_t size)
{
	PP__NO_CANCEL();
	const uint64_t want = round_up(size, (uint64_t)sysconf(_SC_PAGESIZE));
	const uint64_t end = want < b->cap ? want : b->cap;
	int error = own_fd(blocks) ? 0 : EBADF;

	if (error == 0 && b->view.base == NULL)
		error = pp__view_map(&b->view, blocks->fd, b->off, b->cap, PROT_READ | PROT_WRITE);
	if (error == 0 && end > b->warm) {
		const uint64_t more = end - b->warm;
		if (pp__storage_reserve(blocks->fd, NULL, b->off + b->warm, more) != PP_OK) {
			error = errno;
			(void)fallocate(blocks->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(b->off + b->warm), (off_t)more);
		}
		if (error == 0) {
			madvise(b->view.data + b->warm, (size_t)more, MADV_POPULATE_WRITE); /* one call instead of a fault per page */
			blocks->warm += more;
			b->warm = end;
		}
	}
	if (error == 0)
		return PP_OK;
	return pp__fail(PP_ERR_NOMEM, "%llu bytes for a result: %s", (unsigned long long)size, strerror(error));
}

static void chill(pp__blocks *blocks, pp__block *b)
{
	PP__NO_CANCEL();
	if (!own_fd(blocks))
		return;
	if (b->warm > 0 && fallocate(blocks->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)b->off, (off_t)b->warm) != 0)
		return; /* then it stays warm */
	blocks->warm -= b->warm;
	b->warm = 0;
	pp__view_unmap(&b->view);
}

void pp__blocks_trim(pp__blocks *blocks)
{
	for (uint32_t i = blocks->count; i-- > 0 && blocks->warm > WARM_MOST;)
		if (blocks->block[i].warm > 0 && is_free(blocks, i))
			chill(blocks, &blocks->block[i]);
}

/* cut begins anew when no block is taken. */
static bool start_over(pp__blocks *blocks)
{
	for (uint32_t i = 0; i < blocks->count; i++)
		if (!is_free(blocks, i))
			return false;
	for (uint32_t i = 0; i < blocks->count; i++) {
		chill(blocks, &blocks->block[i]);
		pp__view_unmap(&blocks->block[i].view);
	}
	blocks->count = 0;
	blocks->used = 0;
	blocks->warm = 0;
	return true;
}

/* choose finds a free block, or cuts a new one; count if there is neither. */
static uint32_t choose(pp__blocks *blocks, uint64_t size, uint64_t cap)
{
	uint32_t best = blocks->count, spare = blocks->count;

	for (uint32_t i = 0; i < blocks->count; i++) {
		const pp__block *b = &blocks->block[i];
		if (b->cap < size || !is_free(blocks, i))
			continue;
		/* One that is much too large is better kept for what needs it. */
		uint32_t *const place = b->cap / 4 <= cap ? &best : &spare;
		if (*place == blocks->count || b->cap < blocks->block[*place].cap ||
		    (b->cap == blocks->block[*place].cap && b->warm > blocks->block[*place].warm))
			*place = i;
	}
	if (best < blocks->count)
		return best;
	if (blocks->count < PP__SLOTS) {
		const uint64_t left = blocks->size - blocks->used;
		if (cap > left) /* the end of the part need not be a power of two */
			cap = round_up(size, BLOCK_LEAST);
		if (cap <= left) {
			blocks->block[blocks->count] = (pp__block){.off = blocks->off + blocks->used, .cap = cap};
			blocks->used += cap;
			return blocks->count++;
		}
	}
	return spare;
}

int32_t pp__blocks_take(pp__blocks *blocks, uint64_t size, uint32_t *slot_out)
{
	uint64_t cap = BLOCK_LEAST;

	if (size > blocks->size)
		return pp__fail(PP_ERR_NOMEM, "%llu bytes for a result: a worker has room for %llu", (unsigned long long)size,
		                (unsigned long long)blocks->size);
	while (cap < size)
		cap *= 2;
	uint32_t slot = choose(blocks, size, cap);
	if (slot == blocks->count) {
		if (!start_over(blocks))
			return PP_ERR_TIMEOUT;
		slot = choose(blocks, size, cap);
		if (slot == blocks->count)
			return pp__fail(PP_ERR_NOMEM, "%llu bytes for a result: a worker has room for %llu", (unsigned long long)size,
			                (unsigned long long)blocks->size);
	}
	const int32_t status = warm(blocks, &blocks->block[slot], size);
	if (status == PP_OK) {
		__atomic_store_n(&blocks->taken[slot], 1, __ATOMIC_SEQ_CST);
		*slot_out = slot;
	}
	return status;
}

void pp__blocks_return(pp__blocks *blocks, uint32_t slot)
{
	__atomic_store_n(&blocks->taken[slot], 0, __ATOMIC_SEQ_CST);
}
