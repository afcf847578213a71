/* pipe.c - see pipe.h, which has the algorithms. */
#include "bell.h"

#include "depot.h"
#include "heap.h"
#include "pipe.h"
#include "spin.h"
#include "wait.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#define MS 1000000u
#define CAP ((uint64_t)PP__PIPE_CAP)
/* How long a receiver waits for a sender in order to settle. Longer means that the sender is stopped. */
#define SETTLE_NS (50u * MS)
/* The first sleep of a sender before it asks the kernel about the other end; doubles up to PP__SLICE_MS. */
#define FULL_NS (10u * MS)

/* pp__handle.words: */
enum { WHICH = 0, LOOKED = 1, FREED = 2, PATIENCE = 3 };

/* A call. */
typedef struct {
	pp__handle *handle;
	pp__pipe_way *way;
	int fd;
	uint64_t deadline; /* 0: does not wait */
	bool sends;
} call;

/* What is sent: parts_n pieces, size bytes in all. */
typedef struct {
	const pp_part *parts;
	size_t parts_n;
	uint32_t size;
	uint32_t len; /* of the record, if more than size */
	uint16_t kind;
} item;

/* What is wanted of a receive. */
typedef struct {
	enum { COPY, TAKE, LOOK, FD } how;
	void *data;
	uint64_t room;
	uint64_t size; /* of the message */
	pp_pipe_message *message;
	/* of a big one, once it is taken: */
	uint8_t *block;
	pp__pipe_bulk bulk;
	pp__pipe_lease *lease;
	uint64_t name[4]; /* of a descriptor */
} want;

/* The oldest record of a ring. */
typedef struct {
	uint8_t *payload;
	uint64_t end; /* the position behind it */
	uint32_t len;
	uint16_t kind;
} record;

/* ---- words of shared memory: each is read once, by one of these, and its checked copy is used, as another process may change it at any time */

static uint32_t word32(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static uint64_t word64(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* words copies n words of a record, which lies at a multiple of 8. */
static void words(uint64_t *to, const uint8_t *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = word64((const uint64_t *)(const void *)from + i);
}

static bool duplex(const pp__pipe *pipe)
{
	return (word32(&pipe->object.flags) & PP__PIPE_DUPLEX) != 0;
}

/* free_lease frees the block that a lease names. */
static void free_lease(pp__heap *heap, const pp__pipe_lease *lease)
{
	pp__free(heap, word64(&lease->off), word32(&lease->tag));
}

/* ring_of finds the ring: PP_OK; PP_ERR_TIMEOUT: there is none yet; PP_ERR_CORRUPT. */
static int32_t ring_of(const pp__heap *heap, const pp__pipe_way *way, uint8_t **ring_out)
{
	const uint64_t off = __atomic_load_n(&way->ring, __ATOMIC_ACQUIRE);

	if (off == 0)
		return PP_ERR_TIMEOUT;
	*ring_out = off % 128 == 0 ? pp__within(heap, off, CAP) : NULL;
	return *ring_out == NULL ? PP_ERR_CORRUPT : PP_OK;
}

/* first_of finds the oldest record: PP_OK, PP_ERR_TIMEOUT (none), PP_ERR_CORRUPT. For who holds recv_lock, or may be wrong. */
static int32_t first_of(const pp__heap *heap, const pp__pipe_way *way, uint64_t head, record *record_out)
{
	uint8_t *ring;
	const uint64_t tail = __atomic_load_n(&way->tail, __ATOMIC_SEQ_CST);

	if (tail == head)
		return PP_ERR_TIMEOUT;
	if (tail - head > CAP || ((tail | head) & 7) != 0 || ring_of(heap, way, &ring) != PP_OK)
		return PP_ERR_CORRUPT;
	for (;;) {
		const uint64_t at = head & (CAP - 1);
		const uint64_t word = word64((const uint64_t *)(const void *)(ring + at));
		const uint32_t len = (uint32_t)word, kinds = (uint32_t)(word >> 32);
		const uint64_t size = PP__PIPE_RECORD_HEAD + (((uint64_t)len + 7) & ~(uint64_t)7);
		if (size > tail - head || size > CAP - at)
			return PP_ERR_CORRUPT;
		head += size;
		if ((kinds & 0xffff) != PP__PIPE_PAD) {
			*record_out = (record){ring + at + PP__PIPE_RECORD_HEAD, head, len, (uint16_t)kinds};
			return PP_OK;
		}
		if (tail == head)
			return PP_ERR_CORRUPT;
	}
}

/* bulk_of reads where a big message is: NULL if that cannot be. */
static uint8_t *bulk_of(const pp__heap *heap, const record *from, pp__pipe_bulk *bulk_out)
{
	if (from->len < sizeof *bulk_out)
		return NULL;
	uint64_t copy[sizeof *bulk_out / 8];
	words(copy, from->payload, sizeof copy / sizeof *copy);
	memcpy(bulk_out, copy, sizeof *bulk_out);
	return bulk_out->off % 128 != 0 || bulk_out->tag < 2 ? NULL : pp__within(heap, bulk_out->off, bulk_out->size);
}

/* destroy frees what a pipe has that nobody holds any more. */
static void destroy(pp__heap *heap, uint64_t off)
{
	pp__pipe *const pipe = pp__at(heap, off);

	for (int i = 0; i < 2; i++) {
		pp__pipe_way *const way = &pipe->way[i];
		uint64_t head = word64(&way->head);
		record next;
		/* As many as fit, whatever is written there. */
		for (unsigned n = 0; n < CAP / PP__PIPE_RECORD_HEAD && first_of(heap, way, head, &next) == PP_OK; n++) {
			pp__pipe_bulk bulk;
			uint64_t name[4];
			if (next.kind == PP__PIPE_BULK && bulk_of(heap, &next, &bulk) != NULL) {
				pp__refs_forget_block(heap, bulk.off, bulk.tag, bulk.size);
				pp__free(heap, bulk.off, bulk.tag);
			}
			if (next.kind == PP__PIPE_INLINE)
				pp__refs_forget(heap, next.payload, next.len);
			if (next.kind == PP__PIPE_FD && next.len >= sizeof name) {
				words(name, next.payload, sizeof name / sizeof *name);
				(void)pp__depot_take(heap, name, NULL);
			}
			head = next.end;
		}
		/* Who lives and reads a block holds the pipe; these are of the dead. */
		for (unsigned k = 0; k < PP__PIPE_LEASES; k++)
			if (word32(&way->leases[k].owner) != 0)
				free_lease(heap, &way->leases[k]);
		pp__free(heap, word64(&way->ring), word32(&way->ring_tag)); /* 0: there is none */
	}
}

static const pp__kind pipe_kind = {.name = "pipe", .destroy = destroy, .size = sizeof(pp__pipe)};

__attribute__((constructor)) static void on_load(void)
{
	pp__kinds[PP__KIND_PIPE] = &pipe_kind;
}

/* ---- calls */

/* begin pins the end. */
static int32_t begin(pp_pipe end, bool sends, int64_t timeout_ms, call *call_out)
{
	if (!pp__timeout_valid(timeout_ms))
		return pp__timeout_invalid(timeout_ms);
	pp__handle *const handle = pp__pin(end, PP__KIND_PIPE);
	if (handle == NULL)
		return PP_ERR_HANDLE;
	pp__pipe *const pipe = pp__at(handle->heap, handle->off);
	const uint32_t way = (uint32_t)handle->words[WHICH] ^ !sends;
	if (way == 0 && !duplex(pipe)) {
		pp__unpin(handle);
		return pp__fail(PP_ERR_STATE, "this end of the pipe only %s", sends ? "receives" : "sends");
	}
	*call_out = (call){handle, &pipe->way[way], handle->fd, pp__deadline(timeout_ms), sends};
	return PP_OK;
}

static int32_t end(const call *call, int32_t status)
{
	pp__unpin(call->handle);
	switch (status) {
	case PP_ERR_CORRUPT:
		return pp__fail(status, "the pipe does not hold what it must, or somebody has written to its descriptor");
	case PP_ERR_EOF:
		return pp__fail(status, "nobody has the other end of the pipe");
	case PP_ERR_CLOSED:
		return pp__fail(status, "the end of the pipe was freed during the call");
	case PP_ERR_TIMEOUT:
		return pp__fail(status, call->sends ? "there was no room in the pipe in time" : "nothing came through the pipe in time");
	case PP_ERR_TOO_BIG:
		return pp__fail(status, "the message is longer than the buffer");
	case PP_ERR_INTERRUPTED:
		return pp__fail(status, "a signal handler ran");
	default:
		return status;
	}
}

static bool closing(const call *call)
{
	return __atomic_load_n(&call->handle->words[FREED], __ATOMIC_SEQ_CST) != 0;
}

/* hung_up asks the kernel whether nobody has the other end. If the program has closed the descriptor there is no telling, and nothing will ever wake this end: as if it were so. */
static bool hung_up(const call *call)
{
	PP__NO_CANCEL();
	struct pollfd at = {.fd = call->fd};

	return !pp__handle_fd(call->handle) || (poll(&at, 1, 0) > 0 && (at.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0);
}

/* until is the time to the deadline, at most most: ns; 0: it is over. */
static uint64_t until(const call *call, uint64_t most)
{
	if (call->deadline == UINT64_MAX)
		return most;
	const uint64_t now = pp__now_ns();
	return now >= call->deadline ? 0 : call->deadline - now < most ? call->deadline - now : most;
}

/* ---- sending */

/* wake is rule B1. Returns PP_OK or PP_ERR_EOF. */
static int32_t wake(const call *call, bool anyway)
{
	pp__pipe_way *const way = call->way;

	if (__atomic_load_n(&way->bell, __ATOMIC_SEQ_CST) != 0 && !anyway)
		return PP_OK;
	__atomic_store_n(&way->bell, 1, __ATOMIC_SEQ_CST);
	PP__NO_CANCEL();
	if (!pp__handle_fd(call->handle)) /* the number may be another file's: it is not written to */
		return PP_OK;
	/* EAGAIN: the socket is full of bytes, which is as good. */
	if (send(call->fd, (const char[]){PP__PIPE_BYTE, PP__PIPE_BYTE}, 2, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && (errno == EPIPE || errno == ECONNRESET))
		return PP_ERR_EOF;
	return PP_OK;
}

static void put_head(uint8_t *record, uint32_t len, uint16_t kind)
{
	__atomic_store_n((uint64_t *)(void *)record, (uint64_t)kind << 32 | len, __ATOMIC_RELAXED);
}

/* reserve finds room for a record with len bytes: PP_OK and where its payload goes and the position behind it; PP_ERR_TIMEOUT: there is none now; PP_ERR_NOMEM; PP_ERR_CORRUPT. */
static int32_t reserve(pp__heap *heap, pp__pipe_way *way, const item *what, uint8_t **payload_out, uint64_t *end_out)
{
	uint8_t *ring;
	uint64_t tail = word64(&way->tail);
	const uint64_t seen = word64(&way->seen_head);
	const uint32_t len = what->len > what->size ? what->len : what->size;
	const uint64_t need = PP__PIPE_RECORD_HEAD + (((uint64_t)len + 7) & ~(uint64_t)7);

	int32_t status = ring_of(heap, way, &ring);
	if (status == PP_ERR_TIMEOUT) {
		const uint32_t tag = pp__tag(heap);
		uint64_t off;
		if ((status = pp__alloc(heap, CAP, tag, &off, NULL)) != PP_OK)
			return status;
		way->ring_tag = tag;
		ring = pp__at(heap, off);
		__atomic_store_n(&way->ring, off, __ATOMIC_SEQ_CST);
	}
	if (status != PP_OK)
		return status;
	const uint64_t at = tail & (CAP - 1);
	const uint64_t pad = need > CAP - at ? CAP - at : 0;
	if ((tail & 7) != 0)
		return PP_ERR_CORRUPT;
	if (tail - seen > CAP || CAP - (tail - seen) < pad + need) {
		const uint64_t head = __atomic_load_n(&way->head, __ATOMIC_SEQ_CST);
		if (tail - head > CAP || (head & 7) != 0)
			return PP_ERR_CORRUPT;
		__atomic_store_n(&way->seen_head, head, __ATOMIC_RELAXED);
		if (CAP - (tail - head) < pad + need)
			return PP_ERR_TIMEOUT;
	}
	if (pad != 0) {
		put_head(ring + at, (uint32_t)(pad - PP__PIPE_RECORD_HEAD), PP__PIPE_PAD);
		tail += pad;
	}
	uint8_t *const to = ring + (tail & (CAP - 1));
	put_head(to, len, what->kind);
	*payload_out = to + PP__PIPE_RECORD_HEAD;
	*end_out = tail + need;
	return PP_OK;
}

/* must_look reports whether the kernel is to be asked about the other end before this message. */
static bool must_look(const call *call)
{
	pp__pipe_way *const way = call->way;
	uint64_t *const looked = &call->handle->words[LOOKED];
	uint32_t look = __atomic_load_n(&way->look, __ATOMIC_RELAXED);
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	const uint64_t now = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / MS;
	if (look != 0) {
		if ((uint32_t)now - look > PP__PIPE_CLOSE_MS && (uint32_t)now - look < UINT32_MAX / 2)
			__atomic_compare_exchange_n(&way->look, &look, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	} else if (now - __atomic_load_n(looked, __ATOMIC_RELAXED) < PP__PIPE_LOOK_MS) {
		return false;
	}
	__atomic_store_n(looked, now, __ATOMIC_RELAXED);
	return true;
}

static void gather(uint8_t *to, const pp_part *parts, size_t n)
{
	for (size_t i = 0; i < n; to += parts[i].size, i++)
		if (parts[i].size > 0)
			memcpy(to, parts[i].data, parts[i].size);
}

/* push sends a record. */
static int32_t push(const call *call, const item *what)
{
	pp__heap *const heap = call->handle->heap;
	pp__pipe_way *const way = call->way;
	uint64_t slice = FULL_NS;
	bool look = false;

	for (;;) {
		bool recovered;
		uint8_t *payload;
		uint64_t tail;
		int32_t status = pp__mutex_lock(heap, &way->send_lock, call->deadline, NULL, NULL, &recovered);
		if (status != PP_OK)
			return status;
		if ((look || must_look(call)) && hung_up(call)) {
			__atomic_store_n(&call->handle->words[LOOKED], 0, __ATOMIC_RELAXED); /* the next message is answered so too */
			status = PP_ERR_EOF;
		} else {
			status = reserve(heap, way, what, &payload, &tail);
		}
		if (status == PP_OK) {
			gather(payload, what->parts, what->parts_n);
			__atomic_store_n(&way->tail, tail, __ATOMIC_SEQ_CST); /* COMMIT */
			status = wake(call, recovered);
			pp__mutex_unlock(&way->send_lock);
			return status;
		}
		if (recovered)
			(void)wake(call, true);
		if (status != PP_ERR_TIMEOUT || call->deadline == 0 || closing(call)) {
			pp__mutex_unlock(&way->send_lock);
			return status == PP_ERR_TIMEOUT && call->deadline != 0 ? PP_ERR_CLOSED : status;
		}
		const uint32_t seq = pp__bell_enter(&way->space);
		const bool room = __atomic_load_n(&way->head, __ATOMIC_SEQ_CST) != word64(&way->seen_head) || closing(call);
		pp__mutex_unlock(&way->send_lock);
		if (room)
			continue;
		const uint64_t ns = until(call, slice);
		if (ns == 0)
			return PP_ERR_TIMEOUT;
		status = pp__bell_wait(&way->space, seq, ns);
		if (status == PP_ERR_INTERRUPTED)
			return status;
		look = status == PP_ERR_TIMEOUT;
		slice = look && slice < PP__SLICE_MS * (uint64_t)MS / 2 ? 2 * slice : slice;
	}
}

/* send_big sends what does not go into the ring. */
static int32_t send_big(const call *call, const pp_part *parts, size_t n, uint64_t size)
{
	pp__heap *const heap = call->handle->heap;
	const uint32_t tag = pp__tag(heap);
	const uint64_t claim = size / 256 < CAP / 8 - PP__PIPE_RECORD_HEAD ? size / 256 : CAP / 8 - PP__PIPE_RECORD_HEAD;
	pp__pipe_bulk bulk = {.size = size, .tag = tag};

	int32_t status = pp__alloc(heap, size, tag, &bulk.off, NULL);
	if (status != PP_OK)
		return status;
	gather(pp__at(heap, bulk.off), parts, n);
	status = push(call, &(item){&(pp_part){&bulk, sizeof bulk}, 1, sizeof bulk, (uint32_t)claim, PP__PIPE_BULK});
	if (status != PP_OK)
		pp__free(heap, bulk.off, tag);
	return status;
}

int32_t pp_pipe_send_parts(pp_pipe to, const pp_part *parts, size_t n, int64_t timeout_ms)
{
	uint64_t size = 0;
	call call = {0};

	if (parts == NULL && n > 0)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_send_parts: NULL");
	for (size_t i = 0; i < n; i++) {
		if ((parts[i].data == NULL && parts[i].size > 0) || parts[i].size > INT64_MAX - size)
			return pp__fail(PP_ERR_INVALID, "pp_pipe_send_parts: piece %zu", i);
		size += parts[i].size;
	}
	const int32_t status = begin(to, true, timeout_ms, &call);
	if (status != PP_OK)
		return status;
	if (size > PP__PIPE_INLINE_MOST)
		return end(&call, send_big(&call, parts, n, size));
	return end(&call, push(&call, &(item){parts, n, (uint32_t)size, 0, PP__PIPE_INLINE}));
}

int32_t pp_pipe_send(pp_pipe to, const void *data, size_t size, int64_t timeout_ms)
{
	call call = {0};

	if (data == NULL && size > 0)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_send: NULL");
	const int32_t status = begin(to, true, timeout_ms, &call);
	if (status != PP_OK)
		return status;
	if (size > PP__PIPE_INLINE_MOST)
		return end(&call, send_big(&call, &(pp_part){data, size}, 1, size));
	return end(&call, push(&call, &(item){&(pp_part){data, size}, 1, (uint32_t)size, 0, PP__PIPE_INLINE}));
}

/* ---- leases */

/* resolve puts the leases of one who died with recv_lock in order. */
static void resolve(pp__heap *heap, void *object, uint32_t dead)
{
	pp__pipe_way *const way = object;
	const uint64_t head = __atomic_load_n(&way->head, __ATOMIC_SEQ_CST);

	for (unsigned i = 0; i < PP__PIPE_LEASES; i++) {
		pp__pipe_lease *const lease = &way->leases[i];
		uint32_t owner = dead;
		if (__atomic_load_n(&lease->owner, __ATOMIC_SEQ_CST) != dead)
			continue;
		if ((int64_t)(word64(&lease->end) - head) <= 0)
			free_lease(heap, lease);
		__atomic_compare_exchange_n(&lease->owner, &owner, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	}
}

/* lease names a block that is about to be taken; NULL: there is no place. The caller holds recv_lock. */
static pp__pipe_lease *lease_of(pp__heap *heap, pp__pipe_way *way, const pp__pipe_bulk *bulk, uint64_t end)
{
	const uint32_t me = pp__join(heap);

	for (int round = 0; round < 2; round++) {
		for (unsigned i = 0; i < PP__PIPE_LEASES; i++) {
			pp__pipe_lease *const lease = &way->leases[i];
			uint32_t none = 0;
			if (!__atomic_compare_exchange_n(&lease->owner, &none, me, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
				continue;
			/* First: with an old end, resolve would take the block for one that was taken. */
			__atomic_store_n(&lease->end, end, __ATOMIC_SEQ_CST);
			__atomic_store_n(&lease->tag, bulk->tag, __ATOMIC_SEQ_CST);
			__atomic_store_n(&lease->off, bulk->off, __ATOMIC_SEQ_CST);
			return lease;
		}
		for (unsigned i = 0; round == 0 && i < PP__PIPE_LEASES; i++) {
			pp__pipe_lease *const lease = &way->leases[i];
			uint32_t owner = __atomic_load_n(&lease->owner, __ATOMIC_SEQ_CST);
			if (owner == 0 || owner == me || !pp__gone(heap, owner))
				continue;
			free_lease(heap, lease);
			__atomic_compare_exchange_n(&lease->owner, &owner, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

static void lease_end(pp__heap *heap, pp__pipe_lease *lease, uint64_t off, uint32_t tag)
{
	uint32_t me = pp__join(heap);

	pp__free(heap, off, tag);
	if (lease != NULL)
		__atomic_compare_exchange_n(&lease->owner, &me, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* ---- receiving */

/* ours reports whether these are bytes of senders: nobody else may write to the descriptors. */
static bool ours(const char *bytes, ssize_t n)
{
	for (ssize_t i = 0; i < n; i++)
		if (bytes[i] != PP__PIPE_BYTE)
			return false;
	return true;
}

static void set_spare(pp__pipe_way *way, uint32_t n)
{
	__atomic_store_n(&way->spare, n, __ATOMIC_RELAXED);
}

/* settle: see pipe.h. The caller holds recv_lock. thorough: there may be bytes that no word tells of. False: somebody has written what is no byte of a sender. */
static bool settle(const call *call, bool thorough)
{
	PP__NO_CANCEL();
	pp__heap *const heap = call->handle->heap;
	pp__pipe_way *const way = call->way;
	bool recovered;
	char bytes[64];
	bool well = true;
	int count;

	/* Not by trying first: a sender that has just rung may have lost its CPU to this process, and a try would look whether it is dead. */
	if (pp__mutex_lock(heap, &way->send_lock, pp__now_ns() + SETTLE_NS, NULL, NULL, &recovered) != PP_OK)
		return true;
	if (__atomic_load_n(&way->tail, __ATOMIC_SEQ_CST) == word64(&way->head)) {
		if (thorough || recovered || __atomic_load_n(&way->bell, __ATOMIC_SEQ_CST) != 0 || word32(&way->spare) != 0)
			for (ssize_t n = (ssize_t)sizeof bytes; n == (ssize_t)sizeof bytes && pp__handle_fd(call->handle);) {
				n = recv(call->fd, bytes, sizeof bytes, MSG_DONTWAIT);
				well = ours(bytes, n) && well;
			}
		__atomic_store_n(&way->bell, 0, __ATOMIC_SEQ_CST);
		set_spare(way, 0);
	} else if (recovered && ioctl(call->fd, FIONREAD, &count) == 0 && count == 0) {
		__atomic_store_n(&way->bell, 0, __ATOMIC_SEQ_CST);
	}
	pp__mutex_unlock(&way->send_lock);
	return well;
}

/* take receives the oldest record, if there is one: PP_OK; PP_ERR_TIMEOUT; PP_ERR_TOO_BIG; PP_ERR_STATE; PP_ERR_NOMEM; PP_ERR_CORRUPT. The caller holds recv_lock. */
static int32_t take(const call *call, want *what)
{
	pp__heap *const heap = call->handle->heap;
	pp__pipe_way *const way = call->way;
	record next;

	int32_t status = first_of(heap, way, word64(&way->head), &next);
	if (status != PP_OK)
		return status;
	if ((next.kind == PP__PIPE_FD) != (what->how == FD))
		return pp__fail(PP_ERR_STATE, what->how == FD ? "a message comes next, not a descriptor" : "a descriptor comes next, not a message");
	if (next.kind == PP__PIPE_BULK) {
		if ((what->block = bulk_of(heap, &next, &what->bulk)) == NULL)
			return PP_ERR_CORRUPT;
		what->size = what->bulk.size;
	} else if (next.kind == PP__PIPE_INLINE) {
		what->block = NULL;
		what->size = next.len;
	} else if (next.kind != PP__PIPE_FD || next.len < sizeof what->name) {
		return PP_ERR_CORRUPT;
	}
	if (what->how == COPY && what->size > what->room)
		return PP_ERR_TOO_BIG;
	if (what->how == FD) {
		words(what->name, next.payload, sizeof what->name / sizeof *what->name);
	} else if (what->block != NULL) {
		what->lease = lease_of(heap, way, &what->bulk, next.end);
	} else {
		if (what->how == TAKE && (what->data = malloc(what->size > 0 ? what->size : 1)) == NULL)
			return pp__fail(PP_ERR_NOMEM, "out of memory for a message of %llu bytes", (unsigned long long)what->size);
		memcpy(what->data, next.payload, what->size);
	}
	__atomic_store_n(&way->head, next.end, __ATOMIC_SEQ_CST); /* COMMIT */
	const uint64_t left = __atomic_load_n(&way->tail, __ATOMIC_SEQ_CST) - next.end;
	if (left == 0 && __atomic_load_n(&way->watched, __ATOMIC_SEQ_CST) != 0)
		(void)settle(call, false);
	if (left <= CAP / 2)
		(void)pp__bell_ring(&way->space);
	return PP_OK;
}

/* finish does what need not be done under the lock. */
static int32_t finish(const call *call, want *what)
{
	pp__heap *const heap = call->handle->heap;

	if (what->how == COPY && what->block != NULL) {
		memcpy(what->data, what->block, what->size);
		lease_end(heap, what->lease, what->bulk.off, what->bulk.tag);
	}
	if (what->how == TAKE) {
		*what->message = (pp_pipe_message){what->block != NULL ? what->block : what->data, what->size, {0}};
		/* owned: the handle, which is kept; the lease; the tag. Or nothing but 1: memory of this process. */
		if (what->block != NULL) {
			pp__keep(call->handle);
			what->message->owned[0] = (uint64_t)(uintptr_t)call->handle;
			what->message->owned[1] = (uint64_t)(uintptr_t)what->lease;
			what->message->owned[2] = (uint64_t)what->bulk.tag << 32 | pp__join(heap);
		} else {
			what->message->owned[0] = 1;
		}
	}
	return PP_OK;
}

/* doze sleeps with recv_lock held: one system call that waits for bytes and reads them. The ring was seen empty. PP_OK: look again; PP_ERR_EOF; PP_ERR_INTERRUPTED; PP_ERR_STATE: the socket does not
 * block, the program has made it so. */
static int32_t doze(const call *call)
{
	PP__NO_CANCEL();
	if (!pp__handle_fd(call->handle))
		return PP_ERR_EOF;
	pp__pipe_way *const way = call->way;
	char bytes[2];
	const uint32_t bell = __atomic_exchange_n(&way->bell, 0, __ATOMIC_SEQ_CST);

	if (__atomic_load_n(&way->tail, __ATOMIC_SEQ_CST) != word64(&way->head)) {
		if (bell != 0)
			__atomic_store_n(&way->bell, 1, __ATOMIC_SEQ_CST);
		return PP_OK;
	}
	const ssize_t n = recv(call->fd, bytes, word32(&way->spare) != 0 ? 2 : 1, MSG_WAITALL);
	const int error = errno;
	set_spare(way, __atomic_load_n(&way->bell, __ATOMIC_SEQ_CST) != 0);
	if (n > 0)
		return ours(bytes, n) ? PP_OK : PP_ERR_CORRUPT;
	if (n == 0 || error == ECONNRESET)
		return PP_ERR_EOF;
	if (error == EINTR)
		return pp__interrupts(false) ? PP_ERR_INTERRUPTED : PP_OK;
	const int flags = fcntl(call->fd, F_GETFL);
	return flags >= 0 && (flags & O_NONBLOCK) != 0 ? PP_ERR_STATE : PP_OK;
}

/* pull receives, or (LOOK) waits for, a message. */
static int32_t pull(const call *call, want *what, bool now)
{
	pp__heap *const heap = call->handle->heap;
	pp__pipe_way *const way = call->way;
	bool hup = false, thorough = false, nonblocking = false;
	int32_t interrupted = PP_OK;
	uint64_t began = 0; /* of the wait */

	for (;;) {
		bool recovered;
		int32_t status = pp__mutex_lock(heap, &way->recv_lock, call->deadline, resolve, way, &recovered);
		if (status != PP_OK)
			return interrupted != PP_OK ? interrupted : status;
		if (recovered)
			set_spare(way, 0);
		if (what->how == LOOK) {
			record next;
			status = first_of(heap, way, word64(&way->head), &next);
			what->size = 0;
			if (status == PP_OK && next.kind == PP__PIPE_INLINE)
				what->size = next.len;
			else if (status == PP_OK && next.kind == PP__PIPE_BULK && bulk_of(heap, &next, &what->bulk) != NULL)
				what->size = what->bulk.size;
		} else {
			status = take(call, what);
		}
		if (status != PP_ERR_TIMEOUT || interrupted != PP_OK || hup || now || closing(call)) {
			pp__mutex_unlock(&way->recv_lock);
			if (status == PP_OK)
				return finish(call, what);
			return status != PP_ERR_TIMEOUT || now ? status
			       : hup                           ? PP_ERR_EOF
			       : closing(call)                 ? PP_ERR_CLOSED
			                                       : interrupted;
		}
		if (call->deadline == 0) {
			pp__mutex_unlock(&way->recv_lock);
			if (!(hup = hung_up(call)))
				return PP_ERR_TIMEOUT;
			continue;
		}
		const uint64_t ns = until(call, (uint64_t)PP__SLICE_MS * MS);
		if (ns == 0) {
			pp__mutex_unlock(&way->recv_lock);
			return PP_ERR_TIMEOUT;
		}
		if (began == 0) {
			/* The ring was empty at head. The low half of tail is enough: it moves by no more than the ring's size. */
			const uint32_t head = (uint32_t)word64(&way->head);
			pp__mutex_unlock(&way->recv_lock);
			(void)pp__spin_on(&call->handle->words[PATIENCE], (const uint32_t *)(const void *)&way->tail, head, &began);
			continue;
		}
		if (ns == (uint64_t)PP__SLICE_MS * MS && what->how != LOOK && !nonblocking && __atomic_load_n(&way->watched, __ATOMIC_SEQ_CST) == 0) {
			status = doze(call);
			pp__mutex_unlock(&way->recv_lock);
			pp__slept(&call->handle->words[PATIENCE], began);
			if (status == PP_ERR_CORRUPT)
				return status;
			hup = status == PP_ERR_EOF;
			nonblocking = status == PP_ERR_STATE;
			interrupted = status == PP_ERR_INTERRUPTED ? status : PP_OK;
			continue;
		}
		const bool well = settle(call, thorough);
		pp__mutex_unlock(&way->recv_lock);
		if (!well)
			return PP_ERR_CORRUPT;
		PP__NO_CANCEL();
		if (!pp__handle_fd(call->handle)) {
			hup = true;
			continue;
		}
		struct pollfd at = {.fd = call->fd, .events = POLLIN};
		const int n = poll(&at, 1, (int)((ns + MS - 1) / MS));
		pp__slept(&call->handle->words[PATIENCE], began);
		hup = n > 0 && (at.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
		interrupted = n < 0 && errno == EINTR && pp__interrupts(false) ? PP_ERR_INTERRUPTED : PP_OK;
		thorough = n > 0; /* if the ring is empty nevertheless */
	}
}

static int64_t receive(pp_pipe from, void *data, size_t room, int64_t timeout_ms, bool now)
{
	call call = {0};
	want what = {.how = COPY, .data = data, .room = room};

	if (data == NULL && room > 0)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_recv: NULL");
	if (data == NULL)
		what.data = &call;
	int32_t status = begin(from, false, timeout_ms, &call);
	if (status != PP_OK)
		return status;
	status = end(&call, pull(&call, &what, now));
	return status == PP_OK ? (int64_t)what.size : status;
}

int64_t pp_pipe_recv(pp_pipe from, void *data, size_t room, int64_t timeout_ms)
{
	return receive(from, data, room, timeout_ms, false);
}

int64_t pp_pipe_recv_now(pp_pipe from, void *data, size_t room)
{
	return receive(from, data, room, 0, true);
}

int32_t pp_pipe_take(pp_pipe from, int64_t timeout_ms, pp_pipe_message *message_out)
{
	call call = {0};
	want what = {.how = TAKE, .message = message_out};

	if (message_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_take: NULL");
	*message_out = (pp_pipe_message){0};
	int32_t status = begin(from, false, timeout_ms, &call);
	if (status != PP_OK)
		return status;
	return end(&call, pull(&call, &what, false));
}

void pp_pipe_message_free(pp_pipe_message *message)
{
	if (message == NULL || message->owned[0] == 0)
		return;
	if (message->owned[0] == 1) {
		free((void *)(uintptr_t)message->data);
	} else {
		pp__handle *const handle = (pp__handle *)(uintptr_t)message->owned[0];
		pp__heap *const heap = handle->heap;
		/* A forked child has another owner: the block is its parent's. */
		if (pp__join(heap) == (uint32_t)message->owned[2]) {
			lease_end(heap, (pp__pipe_lease *)(uintptr_t)message->owned[1],
			          (uint64_t)((const uint8_t *)message->data - heap->base), (uint32_t)(message->owned[2] >> 32));
			pp__drop(handle);
		}
	}
	*message = (pp_pipe_message){0};
}

int32_t pp_pipe_poll(pp_pipe from, int64_t timeout_ms, uint64_t *size_out)
{
	call call = {0};
	want what = {.how = LOOK};

	int32_t status = begin(from, false, timeout_ms, &call);
	if (status != PP_OK)
		return status;
	status = pull(&call, &what, false);
	if (size_out != NULL)
		*size_out = status == PP_OK ? what.size : 0;
	return end(&call, status);
}

/* ---- descriptors */

int32_t pp_pipe_descriptor(pp_pipe of, int32_t *fd_out)
{
	call call = {0};
	bool recovered;

	if (fd_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_descriptor: NULL");
	int32_t status = begin(of, false, -1, &call);
	if (status == PP_ERR_STATE)
		return pp_pipe_info(of, NULL, fd_out);
	if (status != PP_OK)
		return status;
	/* 2: settled. Until then each who asks sees to it. */
	uint32_t *const watched = &call.way->watched;
	if (__atomic_load_n(watched, __ATOMIC_SEQ_CST) != 2) {
		__atomic_store_n(watched, 1, __ATOMIC_SEQ_CST);
		status = pp__mutex_lock(call.handle->heap, &call.way->recv_lock, UINT64_MAX, resolve, call.way, &recovered);
		if (status == PP_OK) {
			if (recovered)
				set_spare(call.way, 0);
			(void)settle(&call, true);
			__atomic_store_n(watched, 2, __ATOMIC_SEQ_CST);
			pp__mutex_unlock(&call.way->recv_lock);
		}
	}
	*fd_out = call.fd;
	return end(&call, status);
}

/* name_of makes a name for the depot that no other has. It begins as a reference does, but
 * with an offset that no object has: see pp__ref_has_descriptor. */
static pp__pipe_fd name_of(pp__heap *heap)
{
	return (pp__pipe_fd){{pp__heap_id(heap), UINT64_MAX << 32 | pp__join(heap), (uint64_t)pp__tag(heap) << 32 | UINT32_MAX, pp__now_ns()}};
}

int32_t pp_fd_export(int32_t fd, uint8_t name_out[32])
{
	if (name_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_fd_export: NULL");
	pp__heap *const heap = pp__family_heap();
	if (heap == NULL)
		return pp__failed();
	const pp__pipe_fd named = name_of(heap);
	memcpy(name_out, named.name, sizeof named.name);
	int32_t status;
	while ((status = pp__depot_put(heap, named.name, fd)) == PP_ERR_INTERRUPTED) {
	}
	return status;
}

int32_t pp_fd_import(const uint8_t name[32], int32_t *fd_out)
{
	uint64_t words[4];
	int fd;

	if (name == NULL || fd_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_fd_import: NULL");
	pp__heap *const heap = pp__family_heap();
	if (heap == NULL)
		return pp__failed();
	memcpy(words, name, sizeof words);
	int32_t status;
	while ((status = pp__depot_take(heap, words, &fd)) == PP_ERR_INTERRUPTED) {
	}
	if (status == PP_OK)
		*fd_out = fd;
	return status;
}

int32_t pp_pipe_send_fd(pp_pipe to, int32_t fd, int64_t timeout_ms)
{
	call call = {0};

	int32_t status = begin(to, true, timeout_ms, &call);
	if (status != PP_OK)
		return status;
	pp__heap *const heap = call.handle->heap;
	const pp__pipe_fd named = name_of(heap);
	status = pp__depot_put(heap, named.name, fd);
	if (status == PP_OK) {
		status = push(&call, &(item){&(pp_part){&named, sizeof named}, 1, sizeof named, 0, PP__PIPE_FD});
		if (status != PP_OK)
			(void)pp__depot_take(heap, named.name, NULL);
	}
	return end(&call, status);
}

int32_t pp_pipe_recv_fd(pp_pipe from, int64_t timeout_ms, int32_t *fd_out)
{
	call call = {0};
	want what = {.how = FD};
	int fd;

	if (fd_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_recv_fd: NULL");
	int32_t status = begin(from, false, timeout_ms, &call);
	if (status != PP_OK)
		return status;
	status = pull(&call, &what, false);
	if (status == PP_OK && (status = pp__depot_take(call.handle->heap, what.name, &fd)) == PP_OK)
		*fd_out = fd;
	return end(&call, status);
}

/* ---- ends */

int32_t pp_pipe_info(pp_pipe of, uint32_t *can_out, int32_t *fd_out)
{
	pp__handle *const handle = pp__pin(of, PP__KIND_PIPE);

	if (handle == NULL)
		return PP_ERR_HANDLE;
	const pp__pipe *const pipe = pp__at(handle->heap, handle->off);
	if (can_out != NULL) {
		*can_out = duplex(pipe) ? PP_PIPE_CAN_RECV | PP_PIPE_CAN_SEND
		           : handle->words[WHICH] == 0                   ? PP_PIPE_CAN_RECV
		                                                       : PP_PIPE_CAN_SEND;
	}
	if (fd_out != NULL)
		*fd_out = handle->fd;
	pp__unpin(handle);
	return PP_OK;
}

static void become(pp__handle *handle, int fd, uint64_t which)
{
	struct stat st;

	handle->fd = fd;
	handle->inode = fstat(fd, &st) == 0 ? (uint64_t)st.st_ino : 0;
	handle->words[WHICH] = which;
	handle->words[LOOKED] = 0;
	handle->words[FREED] = 0;
	handle->words[PATIENCE] = 0;
}

/* pp__uptime is the time since the start of the system, in the unit in which /proc tells when processes have started; 0: it is not known here. */
static uint64_t pp__uptime(void)
{
	struct timespec t;
	const long ticks = sysconf(_SC_CLK_TCK);

	if (ticks <= 0 || !pp__boot_time() || clock_gettime(CLOCK_BOOTTIME, &t) != 0)
		return 0;
	return (uint64_t)t.tv_sec * (uint64_t)ticks + (uint64_t)t.tv_nsec * (uint64_t)ticks / 1000000000u;
}

int32_t pp_pipe_create(uint32_t flags, pp_pipe ends_out[2])
{
	PP__NO_CANCEL();
	const struct timeval slice = {.tv_usec = PP__SLICE_MS * 1000};
	int fds[2];
	pp__handle *first, *second;

	if (ends_out == NULL || (flags & ~(uint32_t)PP_PIPE_DUPLEX) != 0)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_create: %s", ends_out == NULL ? "NULL" : "unknown flags");
	pp__heap *const heap = pp__family_heap();
	if (heap == NULL)
		return pp__failed();
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
		return pp__fail(errno == ENOMEM || errno == ENOBUFS ? PP_ERR_NOMEM : PP_ERR_SYSTEM, "pp_pipe_create: %s", strerror(errno));
	int32_t status = pp__object_new(heap, PP__KIND_PIPE, sizeof(pp__pipe), &first);
	if (status != PP_OK) {
		close(fds[0]);
		close(fds[1]);
		return status;
	}
	become(first, fds[0], 0);
	pp__pipe *const pipe = pp__at(heap, first->off);
	pipe->object.flags = (flags & PP_PIPE_DUPLEX) != 0 ? PP__PIPE_DUPLEX : 0;
	pipe->born = pp__uptime();
	for (int i = 0; i < 2; i++)
		(void)setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof slice);
	status = pp__object_at(heap, first->off, PP__KIND_PIPE, first->generation, &second);
	if (status != PP_OK) {
		close(fds[1]);
		pp__handle_free(first->number, PP__KIND_PIPE);
		return status;
	}
	become(second, fds[1], 1);
	pipe->inode[0] = first->inode;
	pipe->inode[1] = second->inode;
	ends_out[0] = first->number;
	ends_out[1] = second->number;
	return PP_OK;
}

int32_t pp_pipe_export(pp_pipe of, int32_t with_fd, uint8_t ref_out[32])
{
	pp__ref ref;
	uint64_t name[4];

	if (ref_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_export: NULL");
	pp__handle *const handle = pp__pin(of, PP__KIND_PIPE);
	if (handle == NULL)
		return PP_ERR_HANDLE;
	int32_t status = pp__ref_send(handle, &ref);
	if (status == PP_OK) {
		ref.flight |= (uint32_t)handle->words[WHICH];
		memcpy(name, &ref, sizeof name);
		/* The cell makes the reference a name that no other has, as long as it is on its way. */
		if (with_fd != 0 && (status = pp__depot_put(handle->heap, name, handle->fd)) != PP_OK)
			pp__ref_forget(&ref);
		memcpy(ref_out, &ref, sizeof ref);
	}
	pp__unpin(handle);
	return status;
}

int32_t pp_pipe_import(const uint8_t from[32], int32_t fd, pp_pipe *end_out)
{
	PP__NO_CANCEL();
	pp__ref ref;
	uint64_t name[4];
	pp__handle *handle;
	int given = fd;

	if (from == NULL || end_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_pipe_import: NULL");
	memcpy(&ref, from, sizeof ref);
	memcpy(name, from, sizeof name);
	if (ref.kind != PP__KIND_PIPE || (ref.flight & 0xfff) > 1)
		return pp__fail(PP_ERR_CORRUPT, "this is no reference to a pipe");
	pp__heap *const heap = pp__family_heap();
	if (heap == NULL)
		return pp__failed();
	int32_t status = fd >= 0 ? PP_OK : pp__depot_take(heap, name, &given);
	if (status != PP_OK)
		return status;
	status = pp__ref_receive(&ref, &handle);
	if (status != PP_OK) {
		if (fd < 0)
			close(given);
		return status;
	}
	(void)fcntl(given, F_SETFD, FD_CLOEXEC); /* one that a program was started with is inherited no further */
	become(handle, given, ref.flight & 1);
	*end_out = handle->number;
	return PP_OK;
}

void pp_pipe_forget(const uint8_t from[32])
{
	pp__ref ref;
	uint64_t name[4];
	pp__heap *const heap = from != NULL ? pp__family_heap() : NULL;

	if (heap == NULL)
		return;
	memcpy(&ref, from, sizeof ref);
	memcpy(name, from, sizeof name);
	(void)pp__depot_take(heap, name, NULL);
	if (ref.kind == PP__KIND_PIPE)
		pp__ref_forget(&ref);
}

int32_t pp_pipe_free(pp_pipe end)
{
	pp__handle *const handle = end != 0 ? pp__pin(end, PP__KIND_PIPE) : NULL;

	if (handle != NULL) {
		pp__pipe *const pipe = pp__at(handle->heap, handle->off);
		const uint32_t now = (uint32_t)(pp__now_ns() / MS) | 1;
		__atomic_store_n(&handle->words[FREED], 1, __ATOMIC_SEQ_CST);
		(void)pp__bell_ring(&pipe->way[handle->words[WHICH]].space); /* senders of this process */
		__atomic_store_n(&pipe->way[handle->words[WHICH] ^ 1].look, now, __ATOMIC_SEQ_CST);
		pp__unpin(handle);
	}
	return pp__handle_free(end, PP__KIND_PIPE);
}
