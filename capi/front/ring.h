/* ring.h - both ends of the byte rings of lane.h. An end keeps its own position privately and believes the other's word only
 * after a check against it, so that garbage in shared memory is PP_ERR_CORRUPT and never an access outside the ring. */
#ifndef PP_RING_H
#define PP_RING_H

#include "front.h"

typedef struct pp__ring {
	uint64_t *tail; /* shared words */
	uint64_t *head;
	uint8_t *data;
	uint64_t cap;  /* a power of two */
	uint64_t pos;  /* this end's own position */
	uint64_t seen; /* the other end's position when it was last looked at */
} pp__ring;

typedef struct pp__record {
	uint8_t *payload;
	uint32_t len;
	uint16_t kind;
	uint16_t flags;
	uint64_t end; /* the position behind it */
} pp__record;

#define PP__RECORD_HEAD 8u

/* The longest payload of a ring. */
static inline uint64_t pp__ring_longest(uint64_t cap)
{
	return cap / 2 - PP__RECORD_HEAD;
}

/* pp__ring_producer and pp__ring_consumer begin at what the shared words say. Return PP_OK or PP_ERR_CORRUPT. */
int32_t pp__ring_producer(pp__ring *ring, uint64_t *tail, uint64_t *head, uint8_t *data, uint64_t cap);
int32_t pp__ring_consumer(pp__ring *ring, uint64_t *tail, uint64_t *head, uint8_t *data, uint64_t cap);

/* pp__ring_reserve finds room for a record with up to len bytes of payload and returns where the payload goes. Nothing is visible to the
 * consumer until pp__ring_commit; a reservation that is not committed needs no undoing. PP_ERR_TIMEOUT: no room now;
 * PP_ERR_TOO_BIG; PP_ERR_CORRUPT. */
int32_t pp__ring_reserve(pp__ring *ring, uint64_t len, uint8_t **payload_out);

/* pp__ring_commit publishes what was reserved last; len may be less than reserved. */
void pp__ring_commit(pp__ring *ring, uint8_t *payload, uint16_t kind, uint16_t flags, uint32_t len);

/* pp__ring_peek looks at the oldest record. PP_ERR_TIMEOUT: there is none; PP_ERR_CORRUPT. The payload stays in place until
 * pp__ring_release. */
int32_t pp__ring_peek(pp__ring *ring, pp__record *record_out);

/* pp__ring_release gives the space up to the end of the record back to the producer. */
void pp__ring_release(pp__ring *ring, uint64_t end);

/* pp__ring_waiting reports, at the price of one load, whether pp__ring_peek would find something (or corruption). */
static inline bool pp__ring_waiting(const pp__ring *ring)
{
	return __atomic_load_n(ring->tail, __ATOMIC_SEQ_CST) != ring->pos;
}

#endif
