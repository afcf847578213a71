/* queue.h - a queue of byte messages in a heap (heap.h), as C (queue.c) and Go (core/queue) both see it. The layout and the steps
 * on memory are written once, in Go: queue_layout.gen.h and queue_steps.gen.h are generated from core/queue (`make generate`).
 *
 * LAYOUT. A queue is an object of 512 bytes, pp__queue, and a chain of chunks. A chunk is a block of 4, 16, 64 or 256 KiB: pp__queue_chunk, and then
 * records from offset PP__QUEUE_CHUNK_HEAD on, each { u32 len; u16 kind; u16 codec } and len bytes, padded to 8. Kinds:
 *
 *   PP__QUEUE_KIND_INLINE  the bytes are the message, at most PP__QUEUE_INLINE_MOST
 *   PP__QUEUE_KIND_BULK    pp__queue_bulk: the message lies in a block of its own
 *   PP__QUEUE_KIND_NEXT    len 0: nothing more in this chunk, go on at the start of the chunk `next`. A chunk that is full to its last byte has none.
 *
 * A reference to a block is one word, tag | class << 31 | off / 128 << 33, class: a chunk has 4 KiB << 2 * class; 0 means none. The tag (pp__tag) is the
 * block's and new with each use, so that whoever frees or takes a block by a reference that is out of date gets nothing.
 *
 * A position is one word, items:32 | crossings:16 | offset in the chunk / 8:16. items counts every message ever put (tail) or taken (head), crossings counts how often
 * the position went to another chunk; both wrap. The chunk of a position is tail_chunk[crossings & 1] (head_chunk): the other of the two is written before the
 * store that moves there. 0: no chunk yet, its `next` is pp__queue.first; a queue that was never used has no chunk.
 *
 *   messages in the queue = items(tail) - items(head) + cells that are RETURNED (see below)
 *
 * To read both exactly: head, tail, head again until head has not changed.
 *
 * PUT, under put_lock: room (bounded: items(tail) - items(head) < maxsize)? The record goes behind tail; if the chunk lacks the space, then into the next chunk: `next`, if a dead producer
 * has left one there that is large enough (an unfit one is freed); else the spare one (exchange, and pp__retag to a new tag; if that fails it is no more); else a new block. It is filled in (self, and next =
 * 0, unless it was already in the chain), linked (next), the record NEXT is written, tail_chunk[crossings + 1 & 1] = it, and then
 *
 *   COMMIT  tail = new position, one store. Many messages, also over several chunks, may be one commit (crossings + 1 only).
 *
 * then put_lock is given back, and not_empty rung for one. A producer that dies before the commit has left garbage behind tail, and perhaps chunks in the chain
 * that the next producer uses. After it, the message is in the queue. Ringing lost: sleepers look every PP__SLICE_MS.
 *
 * GET, under get_lock: items(tail) != items(head)? The record behind head, or, at NEXT or the chunk's end, the first of the chunk `next`: then old = the chunk left,
 * head_chunk[crossings + 1 & 1] = the next one. The bytes are copied out, and then
 *
 *   COMMIT  head = new position, one store. A get of many is many commits.
 *
 * then, if old: it becomes the spare one (CAS from 0) or is freed; old = 0. get_lock is given back; if the queue is bounded, not_full is rung for as many as were
 * taken; if messages are left, not_empty is rung for one more (so a wake-up that a dying getter swallowed goes on).
 * Taking get_lock from the dead: if old is not 0 and not head_chunk[crossings & 1], the dead had committed: it is freed (its tag makes that
 * harmless if it was before; a spare one that is freed is noticed by pp__retag). Read old and head_chunk, then see that get_lock still names the dead, then free.
 *
 * CELLS. Blocks that belong to a process, not to the chain, are named by cells, so that they are not lost with it: tables of 4 KiB, pp__queue_table, 126 cells each,
 * in a chain from pp__queue.cells (linked by CAS, given back with the queue only). A cell's word is owner << 32 | state << 24 | generation:24; who claims a free cell does so by one CAS
 * 0 state -> CLAIMED, generation + 1, owner = itself; then ref and size (and seq) are written, and then state, by the owner alone as long as it lives.
 *
 *   FREE      0, owner 0
 *   CLAIMED   being filled in: means nothing yet. Of the dead: becomes FREE
 *   HELD      the block ref is the owner's: a message being written, or one that was taken and is being read. Of the dead: the block is freed, then FREE
 *   LEASED    ref, size, codec is a message that the owner has taken and not acknowledged. Of the dead: RETURNED
 *   RETURNED  owner 0: a message that goes to the next getter, before the chain. Whoever takes it does so by one CAS to HELD or LEASED, himself the owner: the COMMIT
 *   PUTTING   owner holds put_lock and commits ref as message number seq (the value of items(tail) after it). Of the dead, under its lock:
 *             items(tail) - seq >= 0 (signed): FREE, the message is in the chain. Else HELD
 *   TAKING    owner holds get_lock and takes ref, a BULK message, as number seq (items(head) after it). Of the dead, under its lock: items(head) - seq >= 0: HELD. Else FREE
 *   LEASING   the same for a lease of a BULK message: LEASED, else FREE
 *   COPYING   the same for a lease of an INLINE message, ref being a copy (the cell is HELD until that is whole): LEASED, else HELD
 *
 * PUTTING is judged by resolve of put_lock only, TAKING, LEASING and COPYING by that of get_lock only: by CAS, while the lock's word still names the dead one (heap.h, pp__mutex_lock). The rest is
 * done by whoever sweeps (having proof that the owner is gone): who finds no free cell, who waits for a message while cells are in use, now and then who gets. A sweeper first makes a cell of the dead
 * its own by CAS (HELD: owner = sweeper), then acts. An acknowledgement is one CAS LEASED -> HELD, then the block is freed, then FREE. nack: LEASED -> RETURNED. After RETURNED was
 * stored: returned += 1 and not_empty is rung. returned is a hint: a getter that finds none stores 0 and looks once more; a sweeper that finds a RETURNED cell while it is 0
 * (who returned it died) adds 1.
 * So: PUT of a large message: claim a cell, allocate, HELD, copy, put_lock, PUTTING, COMMIT, FREE. GET of one: get_lock, claim, TAKING, COMMIT, HELD, give get_lock back, read, free the block, FREE.
 *
 * DONE. done counts task_done: CAS, at most items(tail). all_done is rung when they are equal; join waits for that.
 * CLOSED. closed is stored once; put looks at it under put_lock. Getters take what there is, and then get PP_ERR_CLOSED. All bells are rung for all.
 *
 * Nothing is believed: off + size of a chunk must lie in the blocks, self must be the reference that led there, a record must end in its chunk, a BULK block of size bytes must lie in the
 * blocks: else PP_ERR_CORRUPT, and the lock is given back.
 *
 * A named queue is the root object of a heap in /dev/shm/pp.q.NAME. Its references count one more, so that it is there until the file is unlinked and unmapped. A root of 0: whoever opens it
 * makes the object and stores root by CAS from 0. */
#ifndef PP_QUEUE_H
#define PP_QUEUE_H

#include "queue_layout.gen.h"

#endif
