/* blocks.h - the worker's allocator for results that are too big for its ring: up to PP__SLOTS blocks in the lane's part of the
 * file. The worker takes blocks, the parent gives them back by storing 0 in lane.slots. All that decides where a block
 * lies is private to the worker, so there is no shared allocator to repair when one of the two dies. */
#ifndef PP_BLOCKS_H
#define PP_BLOCKS_H

#include "front.h"

typedef struct pp__block {
	uint64_t off;  /* in the file */
	uint64_t cap;  /* bytes up to the next block */
	uint64_t warm; /* bytes from its start that have storage */
	pp__view view; /* of all cap bytes; base NULL: not mapped */
} pp__block;

typedef struct pp__blocks {
	int fd;
	uint64_t device, inode; /* of the file: pp__is_file */
	uint32_t *taken; /* lane.slots */
	uint64_t off;    /* the worker's part of the file */
	uint64_t size;
	uint64_t used;   /* bytes of it that blocks were cut from */
	uint64_t warm;   /* bytes with storage, all blocks together */
	uint32_t count;
	pp__block block[PP__SLOTS];
} pp__blocks;

/* pp__blocks_take finds a block for size bytes, with storage for them, and marks it taken. PP_ERR_TIMEOUT: none is free now, wait for the
 * parent; PP_ERR_NOMEM: there is no such room, or the system has no memory for it. */
int32_t pp__blocks_take(pp__blocks *blocks, uint64_t size, uint32_t *slot_out);

/* pp__blocks_return gives a block back that was taken and not published. */
void pp__blocks_return(pp__blocks *blocks, uint32_t slot);

/* pp__blocks_trim gives storage of free blocks back to the system, as far as it is more than is worth keeping. */
void pp__blocks_trim(pp__blocks *blocks);

#endif
