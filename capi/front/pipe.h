/* pipe.h - a pipe of messages in the family's heap (heap.h), as C (pipe.c) and Go (core/pipe) both see it. The layout is generated from Go (`make generate`).
 *
 * A pipe is a pair of rings, where the messages are, and a pair of connected sockets (AF_UNIX, SOCK_STREAM), which wake sleepers and by which the
 * kernel tells that nobody is left at the other end. Messages never go through the sockets. End i (0, 1) is socket i: its holders send
 * through way[i] and receive from way[1 - i]. A one-way pipe (object.flags without PP__PIPE_DUPLEX) has way[1] only: end 0 receives, end 1
 * sends. Several processes may hold the same end, a process may hold both.
 *
 * LAYOUT. The object is a pp__pipe. The ring of a way is a block of PP__PIPE_CAP bytes that the first sender allocates: way.ring_tag is its tag, and
 * way.ring, stored last, its offset. tail and head count bytes and only grow; position p lies at ring[p % cap].
 * A record is { u32 len; u16 kind; u16 codec; } payload[len] padding to 8 and never wraps: what would cross the end is preceded by a record of
 * kind PP__PIPE_PAD up to the end. A record is at most cap / 2. Kinds:
 *
 *   PP__PIPE_INLINE  the bytes are the message, at most PP__PIPE_INLINE_MOST
 *   PP__PIPE_BULK    pp__pipe_bulk: the message is in a block of its own. len is more than that, size / 256 and at most cap / 8, so that the
 *                    ring bounds the bytes on their way: 16 MiB, or 8 messages
 *   PP__PIPE_FD      pp__pipe_fd: a descriptor, which rests in the depot (see below) under this name
 *
 * BYTES IN THE SOCKETS wake: bell is 1 if bytes are in the socket that the receivers of the way have, or are about to be put there by who holds send_lock.
 *
 *   B1  whoever has committed a message and then finds bell 0 stores 1 there and writes two bytes, both PP__PIPE_BYTE (others are PP_ERR_CORRUPT); all under send_lock
 *   B2  bell goes from 1 to 0 under recv_lock only, and then the ring is looked at again: not empty: the 1 is put back (exchange) and the bytes stay
 *   B3  so, while no sender is at work: ring not empty => at least one byte in the socket. (If a sender died at work: until the next one.)
 *   B4  watched (below): ring empty => no byte in the socket, when no call is at work
 *
 * WATCHED. As long as nobody has asked for the descriptor of an end, nobody can poll it, and B4 need not hold: a receiver that empties the ring leaves the byte where
 * it is, and senders go on without any system call. pp_pipe_fd stores way.watched = 1 (for ever; then takes recv_lock and settles), and from then on receivers settle
 * whenever they have emptied the ring.
 *
 *   SETTLE  under recv_lock take send_lock too (a short wait; if it cannot be had, go without): if the ring is empty, read all bytes (MSG_DONTWAIT) and store
 *           bell = 0, spare = 0. If the ring is not empty although bell is 1 and the socket has no byte (send_lock was taken from the dead): bell = 0.
 *
 * SEND (way w): the block of a big message is allocated and filled first. send_lock. If w.look is set, or this process has not done so for PP__PIPE_LOOK_MS, ask the kernel (poll(2), 0 ms) whether the
 * other end is gone: PP_ERR_EOF. Room? else give send_lock back, sleep on w.space (bounded, and ask the kernel about the other end), again. The record
 * is written behind tail, and then
 *
 *   COMMIT  tail = new position, one store
 *
 * then B1 (two bytes always if send_lock was taken from the dead, who may have died between bell and bytes), then send_lock is given back. A sender that dies before the commit
 * has left garbage behind tail and, for a big message, a block that is lost; after it, the message is in the ring: receivers find it when they look
 * (each PP__SLICE_MS at least), pollers when the next sender has written the bytes.
 *
 * RECEIVE (way w), under recv_lock: tail != head? The bytes are copied out (or a big message is leased), and then
 *
 *   COMMIT  head = new position, one store
 *
 * then, if the ring is empty and watched: settle. space is rung if somebody sleeps there and half of the ring is free. recv_lock is given back. A receiver that dies before
 * the commit has changed nothing: the next one gets the message. If the ring is empty:
 *
 *   - to see whether the pipe is at its end, or to wait for bounded time, or watched: settle, give recv_lock back, poll(2). POLLHUP: look at the ring once more, then PP_ERR_EOF.
 *   - else (not watched, unbounded) sleep with recv_lock held, one system call for both, waiting and reading: bell = 0 (B2); recv(2) of w.spare + 1 bytes with MSG_WAITALL, which returns
 *     within PP__SLICE_MS (SO_RCVTIMEO); spare = bell; again. spare is how many bytes are in the socket at least while the ring is empty: 0 or 1.
 *     So of the two bytes of a sender one is read and one stays for B3, and is read with the next sender's first. 0 is always right (it costs a round); taking recv_lock from
 *     the dead stores 0. Others that want recv_lock then wait for it, in vain at most PP__SLICE_MS longer than there is a cause.
 *
 * LEASES. A block that a receiver has taken is named by a lease, until the receiver has freed it: { owner, tag, off, end }. Under recv_lock: owner by CAS 0 -> me, then end = head
 * behind the record, and only then tag and off, then COMMIT; later pp__free, owner = 0. Taking recv_lock from the dead, while its word names the dead: leases of the dead with end - head > 0
 * (signed) are not taken: owner = 0; the others: pp__free, owner = 0 (freeing twice is harmless: tags). Leases of the dead who did not hold recv_lock are found by who finds no free lease;
 * if there is none still, the message is copied and its block freed, without a lease.
 *
 * CLOSE. Who is about to close a descriptor of end i stores way[1 - i].look = the time (CLOCK_MONOTONIC, ms, | 1): its senders ask the kernel at every call until PP__PIPE_CLOSE_MS later, when
 * one of them stores 0. The last reference frees rings, messages and descriptors in the depot.
 *
 * DEPOT (depot.c). Descriptors of the family on their way: a datagram in the socket of family.h for each, its 32 bytes the name, with SCM_RIGHTS. pp__depot, in the heap's first
 * page at PP__DEPOT_OFF, has the lock. Only the first datagram can be taken out; so, to take one out from the middle, those before it are copied to the end first, each:
 * read with MSG_PEEK (which gives a descriptor too), sent again, then read. Death in between leaves two of one name: who takes the lock from the dead goes once
 * around and drops the second ones.
 *
 * DESERTED (deserted.c). A process may publish, in the post of its place in the table of members, what it waits for: all of its threads, that is, which could send something. By these posts a receiver finds
 * out that whoever has the other end waits for the receiver itself, so that nothing will ever come. Only Python processes publish. seq is odd while a post is written; it means nothing
 * unless owner is the member's, and with count 0. A wait is a process id, or the offset of a way | PP__POST_WAY.
 *
 * Nothing is believed: tail - head is at most cap, a record must end before tail and before the ring's end, ring and BULK blocks must lie in the blocks: else PP_ERR_CORRUPT, and the lock is given back.
 */
#ifndef PP_PIPE_H
#define PP_PIPE_H

#include "heap.h"
#include "lane.h"

#include "pipe_layout.gen.h"

/* At PP__DEPOT_OFF, in the first page of the family's heap. */
typedef struct pp__depot {
	uint32_t lock;
	uint32_t reserved;
} pp__depot;

/* The posts lie between the table of members and the table of slabs. */
#define PP__POSTS_OFF (128u << 10)
#define PP__POST_WAITS 6u
#define PP__POST_WAY ((uint64_t)1 << 63)
typedef struct pp__post {
	uint32_t owner;
	uint32_t seq;
	int32_t pid;
	uint32_t count;
	uint64_t waits[PP__POST_WAITS];
} pp__post;

#define PP__ASSERT_PIPE(what) _Static_assert(what, #what)
PP__ASSERT_PIPE(sizeof(pp__post) == 64);
PP__ASSERT_PIPE(PP__POSTS_OFF >= PP__MEMBERS_OFF + sizeof(pp__members_head) + PP__MEMBERS * 8);
PP__ASSERT_PIPE(PP__POSTS_OFF + PP__MEMBERS * sizeof(pp__post) <= PP__SLABS_OFF);

#endif
