/* Code generated from core/pipe/layout.go by cgen (core/internal/cgen). DO NOT EDIT. */
#ifndef PP_PIPE_LAYOUT_GEN_H
#define PP_PIPE_LAYOUT_GEN_H

#include "heap.h"
#include "lane.h"
#include "mem.h"

#define PP__PIPE_CAP 65536u
#define PP__PIPE_RECORD_HEAD 8u
#define PP__PIPE_INLINE_MOST 16384u
#define PP__PIPE_LEASES 16u
#define PP__PIPE_DUPLEX 1u
#define PP__PIPE_BYTE 112u
#define PP__DEPOT_OFF 2048u

/* Tunables. */
#define PP__PIPE_LOOK_MS 4u
#define PP__PIPE_CLOSE_MS 100u

/* Kinds of records. */
#define PP__PIPE_INLINE 1u
#define PP__PIPE_BULK 2u
#define PP__PIPE_FD 3u
#define PP__PIPE_PAD 0xffffu

typedef struct pp__pipe_lease {
	uint32_t owner;
	uint32_t tag;
	uint64_t off;
	uint64_t end;
	uint64_t reserved;
} pp__pipe_lease;

/* way is one direction. */
typedef struct pp__pipe_way {
	uint32_t send_lock; /* these by who holds send_lock */
	uint32_t ring_tag;
	uint64_t ring; /* 0: nobody has sent yet */
	uint64_t tail;
	uint64_t seen_head; /* head when it was last looked at */
	uint8_t pad0[96];

	uint32_t bell; /* these by both */
	uint32_t watched;
	uint32_t look;
	uint32_t reserved0;
	pp__bell space; /* senders sleep */
	uint8_t pad1[104];

	uint32_t recv_lock; /* these by who holds recv_lock */
	uint32_t spare;
	uint64_t head;
	uint8_t pad2[112];

	pp__pipe_lease leases[PP__PIPE_LEASES];
	uint8_t pad3[128];
} pp__pipe_way;

typedef struct pp__pipe {
	pp__object object;
	uint64_t inode[2]; /* of the sockets */
	uint64_t born; /* when it was made, in the unit of /proc/PID/stat field 22; 0: not known */
	uint8_t pad0[88];
	pp__pipe_way way[2];
} pp__pipe;

/* bulk begins the payload of a bulk record. */
typedef struct pp__pipe_bulk {
	uint64_t off;
	uint64_t size; /* of the message, bytes */
	uint32_t tag;
	uint32_t reserved;
} pp__pipe_bulk;

/* name is what a descriptor in the depot is called: the payload of a record with a descriptor. */
typedef struct pp__pipe_fd {
	uint64_t name[4];
} pp__pipe_fd;

/* Sizes of these, in bytes. */
#define PP__PIPE_SIZE_PIPE 2176u
#define PP__PIPE_SIZE_BULK 24u
#define PP__PIPE_SIZE_NAME 32u

/* ---- the same in Go */

_Static_assert(PP__SLICE_MS == 500, "PP__SLICE_MS");
PP__AT(pp__bell, seq, 0);
PP__AT(pp__bell, waiters, 4);
_Static_assert(sizeof(pp__bell) == 8, "pp__bell");
PP__AT(pp__pipe_lease, owner, 0);
PP__AT(pp__pipe_lease, tag, 4);
PP__AT(pp__pipe_lease, off, 8);
PP__AT(pp__pipe_lease, end, 16);
PP__AT(pp__pipe_lease, reserved, 24);
_Static_assert(sizeof(pp__pipe_lease) == 32, "pp__pipe_lease");
PP__AT(pp__pipe_way, send_lock, 0);
PP__AT(pp__pipe_way, ring_tag, 4);
PP__AT(pp__pipe_way, ring, 8);
PP__AT(pp__pipe_way, tail, 16);
PP__AT(pp__pipe_way, seen_head, 24);
PP__AT(pp__pipe_way, bell, 128);
PP__AT(pp__pipe_way, watched, 132);
PP__AT(pp__pipe_way, look, 136);
PP__AT(pp__pipe_way, reserved0, 140);
PP__AT(pp__pipe_way, space, 144);
PP__AT(pp__pipe_way, recv_lock, 256);
PP__AT(pp__pipe_way, spare, 260);
PP__AT(pp__pipe_way, head, 264);
PP__AT(pp__pipe_way, leases, 384);
_Static_assert(sizeof(pp__pipe_way) == 1024, "pp__pipe_way");
PP__AT(pp__pipe, object, 0);
PP__AT(pp__pipe, inode, 16);
PP__AT(pp__pipe, born, 32);
PP__AT(pp__pipe, way, 128);
_Static_assert(sizeof(pp__pipe) == 2176, "pp__pipe");
PP__AT(pp__pipe_bulk, off, 0);
PP__AT(pp__pipe_bulk, size, 8);
PP__AT(pp__pipe_bulk, tag, 16);
PP__AT(pp__pipe_bulk, reserved, 20);
_Static_assert(sizeof(pp__pipe_bulk) == 24, "pp__pipe_bulk");
PP__AT(pp__pipe_fd, name, 0);
_Static_assert(sizeof(pp__pipe_fd) == 32, "pp__pipe_fd");

#endif
