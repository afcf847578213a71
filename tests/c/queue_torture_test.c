/* queue_torture_test.c - eight processes put into and take from one queue and are killed at random, and every message is accounted for.
 *
 * Producers note in shared memory what they have put; consumers what they have taken. Nothing that was put is lost, but what a getter had taken and
 * not noted when it was killed, at most one each; with leases nothing at all. Nothing comes twice, but what a lessee had noted and not acknowledged.
 * Every message is whole, and those of one producer come in order to each consumer.
 *
 * POLYPROC_TORTURE_SECONDS says how long it takes, for both variants together (10).
 *
 * deadline: 120 s
 */
#include "require.h"

#include <polyproc.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { PRODUCERS = 4, CONSUMERS = 4, LIVES = 65536, MOST = 4096, BATCH = 5, ROOM = 300000 };

typedef struct shared {
	uint32_t acked[LIVES];       /* messages that producer life i knows it has put */
	uint32_t tried[LIVES];
	uint8_t seen[LIVES][MOST];   /* how often each was taken */
	uint64_t taken;
	uint32_t stop;
	char wrong[200];
} shared;

static shared *s;
static pp_queue queue;

typedef struct message {
	uint32_t life, number, size, check;
} message;

static uint32_t size_of(uint32_t life, uint32_t number)
{
	uint64_t x = ((uint64_t)life << 32 | number) * 0x9e3779b97f4a7c15u + 1;
	const uint32_t r = (uint32_t)(next_random(&x) >> 20), kind = r % 100;

	return (uint32_t)sizeof(message) + (kind < 90 ? r / 100 % 200 : kind < 99 ? r / 100 % 8000 : r / 100 % 200000);
}

static void wrong(const char *what, const message *m)
{
	snprintf(s->wrong, sizeof s->wrong, "%s: message %u of %u, %u bytes", what, m->number, m->life, m->size);
}

static void fill(uint8_t *at, uint32_t life, uint32_t number)
{
	const message m = {life, number, size_of(life, number), life * 31 + number * 7};

	memcpy(at, &m, sizeof m);
	memset(at + sizeof m, (int)(m.check & 0xff), m.size - sizeof m);
}

static void produce(uint32_t life)
{
	static uint8_t buf[BATCH * ROOM];
	uint64_t sizes[BATCH];
	uint32_t next = 0;

	while (next < MOST - BATCH && __atomic_load_n(&s->stop, __ATOMIC_SEQ_CST) == 0) {
		size_t n = next % 7 == 0 ? BATCH : 1, done = 0;
		size_t at = 0;
		for (size_t i = 0; i < n; i++) {
			fill(buf + at, life, next + (uint32_t)i);
			sizes[i] = size_of(life, next + (uint32_t)i);
			at += sizes[i];
		}
		__atomic_store_n(&s->tried[life], next + (uint32_t)n, __ATOMIC_SEQ_CST);
		const int32_t status = n == 1 ? pp_queue_put(queue, buf, sizes[0], 0, 1000) : pp_queue_put_many(queue, buf, sizes, n, 0, 1000, &done);
		if (status != PP_OK && status != PP_ERR_FULL && status != PP_ERR_TIMEOUT) {
			snprintf(s->wrong, sizeof s->wrong, "put: %s: %s", pp_status_name(status), pp_last_error());
			return;
		}
		next += n == 1 ? status == PP_OK : (uint32_t)done;
		__atomic_store_n(&s->acked[life], next, __ATOMIC_SEQ_CST);
	}
}

static void consume(bool lease)
{
	static uint8_t buf[ROOM];
	static uint32_t last[LIVES]; /* number + 1 */

	for (;;) {
		pp_message m;
		const int32_t status = lease ? pp_queue_lease(queue, 300, &m) : pp_queue_take(queue, buf, sizeof buf, 300, &m);
		if (status == PP_ERR_EMPTY || status == PP_ERR_TIMEOUT) {
			if (__atomic_load_n(&s->stop, __ATOMIC_SEQ_CST) == 2)
				return;
			continue;
		}
		if (status != PP_OK) {
			snprintf(s->wrong, sizeof s->wrong, "get: %s: %s", pp_status_name(status), pp_last_error());
			return;
		}
		message head = {0};
		if (m.size >= sizeof head)
			memcpy(&head, m.data, sizeof head);
		if (m.size < sizeof head || head.life >= LIVES || head.number >= MOST || head.size != m.size || head.size != size_of(head.life, head.number) ||
		    head.check != head.life * 31 + head.number * 7) {
			wrong("not what was put", &head);
			return;
		}
		for (size_t i = sizeof head; i < m.size; i++)
			if (((const uint8_t *)m.data)[i] != (uint8_t)head.check) {
				wrong("not whole", &head);
				return;
			}
		if (!lease && last[head.life] > head.number) {
			wrong("out of order", &head);
			return;
		}
		last[head.life] = head.number + 1;
		__atomic_fetch_add(&s->seen[head.life][head.number], 1, __ATOMIC_SEQ_CST);
		__atomic_fetch_add(&s->taken, 1, __ATOMIC_SEQ_CST);
		if (lease && pp_message_ack(&m) != PP_OK) {
			wrong("ack", &head);
			return;
		}
		pp_message_free(&m);
	}
}

static pid_t start(int place, uint32_t *life, bool lease)
{
	const uint32_t mine = place < PRODUCERS ? (*life)++ : 0;

	REQUIRE(*life < LIVES);
	const pid_t pid = fork();
	REQUIRE(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (place < PRODUCERS)
			produce(mine);
		else
			consume(lease);
		_exit(0);
	}
	return pid;
}

static void variant(bool lease, int seconds)
{
	pid_t pids[PRODUCERS + CONSUMERS];
	uint32_t life = 0, kills = 0, consumer_kills = 0;
	uint64_t random = (uint64_t)now_ms() | 1;
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;

	memset(s->wrong, 0, sizeof s->wrong);
	REQUIRE_EQ(madvise(s, sizeof *s, MADV_REMOVE), 0);
	options.maxsize = 500;
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	printf("%s: seed %llu\n", lease ? "leases" : "gets", (unsigned long long)random);
	for (int i = 0; i < PRODUCERS + CONSUMERS; i++)
		pids[i] = start(i, &life, lease);
	const int64_t end = now_ms() + seconds * 1000;
	int64_t moved = now_ms(), worst = 0;
	uint64_t taken = 0;
	while (now_ms() < end && life < LIVES - PRODUCERS && s->wrong[0] == 0) {
		nanosleep(&(struct timespec){0, (long)(next_random(&random) % 12) * 1000000 + 200000}, NULL);
		const int i = (int)(next_random(&random) % (PRODUCERS + CONSUMERS));
		kill(pids[i], SIGKILL);
		int how;
		REQUIRE_EQ(waitpid(pids[i], &how, 0), pids[i]);
		const bool killed = WIFSIGNALED(how);
		REQUIRE(killed ? WTERMSIG(how) == SIGKILL : WEXITSTATUS(how) == 0);
		kills += killed;
		consumer_kills += killed && i >= PRODUCERS;
		pids[i] = start(i, &life, lease);
		const uint64_t is = __atomic_load_n(&s->taken, __ATOMIC_SEQ_CST);
		worst = now_ms() - moved > worst ? now_ms() - moved : worst;
		if (is != taken)
			moved = now_ms();
		REQUIRE(now_ms() - moved < 30000); /* nobody hangs */
		taken = is;
	}
	__atomic_store_n(&s->stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < PRODUCERS; i++)
		REQUIRE_EQ(waitpid(pids[i], NULL, 0), pids[i]);
	/* What the killed had leased comes back within a slice of a sleeper. */
	pp_queue_state state;
	const int64_t until = now_ms() + 30000;
	do {
		nanosleep(&(struct timespec){0, 20000000}, NULL);
		REQUIRE_STATUS(pp_queue_info(queue, &state), PP_OK);
		REQUIRE(now_ms() < until);
	} while ((state.size != 0 || state.leased != 0) && s->wrong[0] == 0);
	__atomic_store_n(&s->stop, 2, __ATOMIC_SEQ_CST);
	for (int i = PRODUCERS; i < PRODUCERS + CONSUMERS; i++)
		REQUIRE_EQ(waitpid(pids[i], NULL, 0), pids[i]);
	if (s->wrong[0] != 0) {
		fprintf(stderr, "%s\n", s->wrong);
		exit(1);
	}
	uint64_t put = 0, lost = 0, twice = 0, extra = 0;
	for (uint32_t i = 0; i < life; i++) {
		put += s->acked[i];
		for (uint32_t n = 0; n < MOST; n++) {
			const uint32_t seen = s->seen[i][n];
			lost += seen == 0 && n < s->acked[i];
			twice += seen > 1 ? seen - 1 : 0;
			REQUIRE(seen == 0 || n < s->tried[i]); /* only what was tried */
			extra += seen != 0 && n >= s->acked[i]; /* put, and the producer did not live to know */
		}
	}
	printf("%u kills, %llu messages acknowledged, %llu taken, %llu put by producers that did not live to know, %llu lost with their getters, %llu twice; longest "
	       "pause %lld ms\n",
	       kills, (unsigned long long)put, (unsigned long long)s->taken, (unsigned long long)extra, (unsigned long long)lost, (unsigned long long)twice,
	       (long long)worst);
	fflush(stdout);
	REQUIRE(kills > 10 && put > 1000 && extra <= (uint64_t)kills * BATCH);
	REQUIRE(lost <= (lease ? 0 : consumer_kills));
	REQUIRE(twice <= (lease ? consumer_kills : 0));
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

int main(void)
{
	const char *const given = getenv("POLYPROC_TORTURE_SECONDS");
	const int seconds = given != NULL ? atoi(given) : 10;

	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	REQUIRE(s != MAP_FAILED);
	variant(false, seconds / 2 + 1);
	variant(true, seconds / 2 + 1);
	return 0;
}
