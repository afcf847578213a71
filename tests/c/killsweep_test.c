/* killsweep_test.c - a process that dies at any instruction of a ring operation leaves the ring as it was before or after it.
 *
 * A child executes k instructions of the operation and is killed (killsweep.h). Then the ring is looked at: what was committed must be there exactly,
 * and both ends must go on.
 *
 * deadline: 120 s
 */
#include "killsweep.h"

#include <stdarg.h>
#include <sys/mman.h>

#include "../../capi/front/ring.c"

/* ring.c says what is corrupt; nothing may be, here. */
int32_t pp__fail(int32_t status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	return status;
}

enum { CAP = 1024 };

typedef struct shared {
	uint64_t tail;
	uint64_t head;
	uint64_t entered; /* the operation has begun */
	uint64_t got;     /* what a consumer that died had taken out before it gave the space back */
	uint8_t data[CAP];
} shared;

static shared *s;

static uint8_t byte_of(unsigned number, unsigned i)
{
	return (uint8_t)(number * 131 + i * 7 + 1);
}

/* bytes_of returns the payload of a record. */
static const uint8_t *bytes_of(unsigned number)
{
	static uint8_t bytes[256];
	static unsigned made;

	if (made != number)
		for (unsigned i = 0; i < sizeof bytes; i++)
			bytes[i] = byte_of(number, i);
	made = number;
	return bytes;
}

/* put writes record number with len bytes. */
static int32_t put(pp__ring *ring, unsigned number, unsigned len)
{
	uint8_t *payload;
	const int32_t status = pp__ring_reserve(ring, len, &payload);

	if (status != PP_OK)
		return status;
	memcpy(payload, bytes_of(number), len); /* a loop would be most of the sweep */
	pp__ring_commit(ring, payload, (uint16_t)number, (uint16_t)(number + 1), len);
	return PP_OK;
}

/* check ends the test unless the record is number, whole. */
static void check(const pp__record *record, unsigned number, unsigned len)
{
	REQUIRE_EQ(record->kind, number);
	REQUIRE_EQ(record->flags, number + 1);
	REQUIRE_EQ(record->len, len);
	for (unsigned i = 0; i < len; i++)
		REQUIRE_EQ(record->payload[i], byte_of(number, i));
}

static void get(pp__ring *ring, unsigned number, unsigned len)
{
	pp__record record;

	REQUIRE_EQ(pp__ring_peek(ring, &record), PP_OK);
	check(&record, number, len);
	pp__ring_release(ring, record.end);
}

/* A case: the ring's position before the operation, and what it holds. */
typedef struct sweep {
	const char *name;
	void (*op)(pp__ring *ring);
	int producer;    /* which end the child is */
	uint64_t start;  /* position at which the first record lies */
	unsigned before; /* records in the ring before */
	unsigned len;    /* of every record, but for the one that op puts */
} sweep;

enum { PUT_LEN = 100, SMALL_PUT_LEN = 13, OP_NUMBER = 77 };

static void op_put(pp__ring *ring)
{
	put(ring, OP_NUMBER, PUT_LEN);
}

static void op_put_small(pp__ring *ring)
{
	put(ring, OP_NUMBER, SMALL_PUT_LEN);
}

/* Takes one record out: copies what it needs, then gives the space back. */
static void op_get(pp__ring *ring)
{
	pp__record record;

	if (pp__ring_peek(ring, &record) != PP_OK)
		_exit(1);
	__atomic_store_n(&s->got, record.kind, __ATOMIC_SEQ_CST);
	pp__ring_release(ring, record.end);
}

static void prepare(const sweep *w)
{
	memset(s, 0, sizeof *s);
	memset(s->data, 0xee, sizeof s->data); /* what earlier laps left */
	s->tail = s->head = w->start;
	pp__ring ring;
	REQUIRE_EQ(pp__ring_producer(&ring, &s->tail, &s->head, s->data, CAP), PP_OK);
	for (unsigned i = 0; i < w->before; i++)
		REQUIRE_EQ(put(&ring, 1 + i, w->len), PP_OK);
}

static const sweep *now;
static pp__ring now_ring;

static void open_end(void)
{
	const int32_t status = now->producer ? pp__ring_producer(&now_ring, &s->tail, &s->head, s->data, CAP)
	                                     : pp__ring_consumer(&now_ring, &s->tail, &s->head, s->data, CAP);

	if (status != PP_OK)
		_exit(1);
	bytes_of(OP_NUMBER);
}

static void run_op(void)
{
	now->op(&now_ring);
}

static uint32_t entered(void)
{
	return (uint32_t)__atomic_load_n(&s->entered, __ATOMIC_SEQ_CST);
}

static const watcher watching = {.entered = entered};
static way the_way;

static pid_t start(const sweep *w)
{
	now = w;
	prepare(w);
	return way_fork(&s->entered, open_end, run_op);
}

/* survive goes on where the dead child was, in its place, and at the other end. */
static void survive(const sweep *w, int ended, unsigned *committed)
{
	pp__ring in, out;

	REQUIRE_EQ(pp__ring_producer(&in, &s->tail, &s->head, s->data, CAP), PP_OK);
	REQUIRE_EQ(pp__ring_consumer(&out, &s->tail, &s->head, s->data, CAP), PP_OK);
	const unsigned op_len = w->op == op_put ? PUT_LEN : SMALL_PUT_LEN;
	unsigned first = 1;
	int put_there = 0;
	if (!w->producer) {
		/* A record is gone only if it was taken out before. */
		pp__record record;
		if (pp__ring_peek(&out, &record) == PP_OK)
			first = record.kind;
		else
			first = w->before + 1;
		REQUIRE(first == 1 || (first == 2 && s->got == 1));
		REQUIRE(!ended || first == 2);
		*committed += first == 2;
	}
	for (unsigned i = first; i <= w->before; i++)
		get(&out, i, w->len);
	if (w->producer) {
		pp__record record;
		const int32_t status = pp__ring_peek(&out, &record);
		REQUIRE(status == PP_OK || status == PP_ERR_TIMEOUT);
		put_there = status == PP_OK;
		REQUIRE(put_there || !ended);
		*committed += (unsigned)put_there;
		if (put_there) {
			check(&record, OP_NUMBER, op_len);
			pp__ring_release(&out, record.end);
		}
	}
	/* And more than two laps with another producer. */
	for (unsigned i = 0; i < 40; i++) {
		REQUIRE_EQ(put(&in, 200 + i, 3 * i), PP_OK);
		get(&out, 200 + i, 3 * i);
	}
	pp__record record;
	REQUIRE_EQ(pp__ring_peek(&out, &record), PP_ERR_TIMEOUT);
}

int main(int argc, char **argv)
{
	static const sweep sweeps[] = {
		{"put into an empty ring", op_put, 1, 64, 0, 0},
		{"put behind others", op_put, 1, 128, 3, 50},
		{"put that wraps", op_put, 1, 5 * CAP - 96, 0, 0},
		{"put that wraps behind others", op_put, 1, 7 * CAP - 176, 2, 50},
		{"put that ends at the end", op_put, 1, 3 * CAP - 112, 0, 0},
		{"put with 8 bytes left", op_put_small, 1, 3 * CAP - 8, 0, 0},
		{"put at the end of 64 bits", op_put, 1, UINT64_MAX - 95, 0, 0},
		{"get", op_get, 0, 64, 1, 50},
		{"get of the first of three", op_get, 0, 64, 3, 50},
		{"get behind a pad", op_get, 0, 3 * CAP - 48, 1, 100},
		{"get before a pad", op_get, 0, 3 * CAP - 96, 2, 50},
	};

	(void)argc;
	way_bind(argv);
	alarm(100);
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(s != MAP_FAILED);
	for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++) {
		unsigned committed = 0, killed = 0;
		pid_t child = start(&sweeps[i]);
		way_record(&the_way, &watching, child);
		way_end(child);
		const uint32_t length = way_length(&the_way);
		for (uint32_t k = way_first(&the_way); k <= length; k = way_next(&the_way, k), killed++) {
			child = start(&sweeps[i]);
			way_to(&the_way, &watching, child, k);
			way_end(child);
			survive(&sweeps[i], entered() == 2, &committed);
		}
		/* Somewhere on the way is the instruction that commits. */
		REQUIRE(length > 10 && committed > 0 && committed < killed);
		printf("%s: %u instructions, killed %u times, %u of them after the commit\n", sweeps[i].name, length, killed, committed);
	}
	return 0;
}
