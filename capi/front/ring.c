/* ring.c - see ring.h, and RING in lane.h. */
#include "ring.h"

/* A record's first eight bytes as one word, so that one load sees all of it however often the memory changes. */
static uint64_t head_word(uint32_t len, uint16_t kind, uint16_t flags)
{
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the rings of lane.h are little-endian"
#endif
	return (uint64_t)len | (uint64_t)kind << 32 | (uint64_t)flags << 48;
}

static uint64_t record_size(uint64_t len)
{
	return PP__RECORD_HEAD + ((len + 7) & ~(uint64_t)7);
}

static void put_head(uint8_t *at, uint64_t word)
{
	__atomic_store_n((uint64_t *)(void *)at, word, __ATOMIC_RELAXED);
}

static int32_t corrupt(const char *what, uint64_t have, uint64_t own)
{
	return pp__fail(PP_ERR_CORRUPT, "ring: %s is %llu at position %llu", what, (unsigned long long)have, (unsigned long long)own);
}

static int32_t begin(pp__ring *ring, uint64_t *tail, uint64_t *head, uint8_t *data, uint64_t cap)
{
	ring->tail = tail;
	ring->head = head;
	ring->data = data;
	ring->cap = cap;
	const uint64_t t = __atomic_load_n(tail, __ATOMIC_SEQ_CST), h = __atomic_load_n(head, __ATOMIC_SEQ_CST);
	if (t - h > cap || t % 8 != 0 || h % 8 != 0)
		return corrupt("tail", t, h);
	ring->pos = t;
	ring->seen = h;
	return PP_OK;
}

int32_t pp__ring_producer(pp__ring *ring, uint64_t *tail, uint64_t *head, uint8_t *data, uint64_t cap)
{
	return begin(ring, tail, head, data, cap);
}

int32_t pp__ring_consumer(pp__ring *ring, uint64_t *tail, uint64_t *head, uint8_t *data, uint64_t cap)
{
	const int32_t status = begin(ring, tail, head, data, cap);
	const uint64_t t = ring->pos;

	ring->pos = ring->seen;
	ring->seen = t;
	return status;
}

int32_t pp__ring_reserve(pp__ring *ring, uint64_t len, uint8_t **payload_out)
{
	const uint64_t size = record_size(len);
	const uint64_t at = ring->pos & (ring->cap - 1);
	const uint64_t rest = ring->cap - at;

	if (len > pp__ring_longest(ring->cap))
		return pp__fail(PP_ERR_TOO_BIG, "ring: %llu bytes are too many for one record", (unsigned long long)len);
	const uint64_t need = size <= rest ? size : rest + size;
	if (ring->pos + need - ring->seen > ring->cap) {
		const uint64_t head = __atomic_load_n(ring->head, __ATOMIC_SEQ_CST);
		if (ring->pos - head > ring->cap || head % 8 != 0)
			return corrupt("head", head, ring->pos);
		ring->seen = head;
		if (ring->pos + need - head > ring->cap)
			return PP_ERR_TIMEOUT;
	}
	if (size > rest)
		put_head(ring->data + at, head_word((uint32_t)(rest - PP__RECORD_HEAD), PP__PAD, 0));
	*payload_out = ring->data + (size <= rest ? at : 0) + PP__RECORD_HEAD;
	return PP_OK;
}

void pp__ring_commit(pp__ring *ring, uint8_t *payload, uint16_t kind, uint16_t flags, uint32_t len)
{
	const uint64_t at = ring->pos & (ring->cap - 1);
	uint8_t *const record = payload - PP__RECORD_HEAD;
	const uint64_t pad = record == ring->data + at ? 0 : ring->cap - at;

	put_head(record, head_word(len, kind, flags));
	ring->pos += pad + record_size(len);
	__atomic_store_n(ring->tail, ring->pos, __ATOMIC_SEQ_CST);
}

int32_t pp__ring_peek(pp__ring *ring, pp__record *record_out)
{
	for (;;) {
		const uint64_t pos = ring->pos;
		if (pos == ring->seen) {
			const uint64_t tail = __atomic_load_n(ring->tail, __ATOMIC_SEQ_CST);
			if (tail == pos)
				return PP_ERR_TIMEOUT;
			if (tail - pos > ring->cap || tail % 8 != 0)
				return corrupt("tail", tail, pos);
			ring->seen = tail;
		}
		const uint64_t at = pos & (ring->cap - 1);
		const uint64_t word = __atomic_load_n((uint64_t *)(void *)(ring->data + at), __ATOMIC_RELAXED);
		const uint32_t len = (uint32_t)word;
		const uint16_t kind = (uint16_t)(word >> 32);
		const uint64_t size = record_size(len);

		if (size > ring->seen - pos || size > ring->cap - at)
			return corrupt("length of a record", len, pos);
		if (kind == PP__PAD) {
			if (at + size != ring->cap)
				return corrupt("length of a pad", len, pos);
			pp__ring_release(ring, pos + size);
			continue;
		}
		if (size > ring->cap / 2)
			return corrupt("length of a record", len, pos);
		record_out->payload = ring->data + at + PP__RECORD_HEAD;
		record_out->len = len;
		record_out->kind = kind;
		record_out->flags = (uint16_t)(word >> 48);
		record_out->end = pos + size;
		return PP_OK;
	}
}

void pp__ring_release(pp__ring *ring, uint64_t end)
{
	ring->pos = end;
	__atomic_store_n(ring->head, end, __ATOMIC_SEQ_CST);
}
