/* pipe_torture_test.c - several processes send through one end, others receive at the other, and are killed at random: each message that was acknowledged arrives once, whole, and in its sender's order; but one that a
 * killed receiver had taken may be gone with it, one for each death. And the descriptor never lies: what poll(2) calls readable can be received without waiting.
 *
 * deadline: 120 s
 * POLYPROC_TORTURE_SECONDS: how long (10)
 */
#include "require.h"

#include <polyproc.h>

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { SENDERS = 3, RECEIVERS = 2, SENDER_NUMBERS = 65536, BIG = 40000 };

typedef struct {
	uint64_t acked[SENDER_NUMBERS]; /* how many messages of this sender were sent */
	uint64_t next[SENDER_NUMBERS];  /* receivers, under no lock: one receiver at a time per message */
	uint64_t received;
	uint32_t stop;
} board;

static board *shared;

typedef struct {
	uint32_t sender;
	uint32_t size;
	uint64_t number; /* 1, ... */
} header;

static _Noreturn void be_sender(pp_pipe to, uint32_t who)
{
	static uint8_t text[BIG + 1];
	uint64_t seed = who * 7919 + 1;

	for (uint64_t i = 1; !__atomic_load_n(&shared->stop, __ATOMIC_SEQ_CST); i++) {
		const uint64_t r = next_random(&seed);
		const uint32_t size = (uint32_t)(r % 64 == 0 ? BIG : r % 8 == 0 ? 4000 : sizeof(header) + r % 64);
		const header h = {who, size, i};
		memset(text, (int)(who + i), size);
		memcpy(text, &h, sizeof h);
		const int32_t status = pp_pipe_send(to, text, size, 1000);
		if (status == PP_ERR_TIMEOUT) {
			i--;
			continue;
		}
		REQUIRE_STATUS(status, PP_OK);
		__atomic_store_n(&shared->acked[who], i, __ATOMIC_SEQ_CST);
	}
	_exit(0);
}

static void check(const uint8_t *text, uint64_t size)
{
	header h;

	REQUIRE(size >= sizeof h && size <= BIG);
	memcpy(&h, text, sizeof h);
	REQUIRE(h.size == size && h.sender < SENDER_NUMBERS);
	for (uint64_t i = sizeof h; i < size; i++)
		REQUIRE(text[i] == (uint8_t)(h.sender + h.number));
	/* The last number of this sender that anybody has received. With several receivers a later one may be noted first. */
	uint64_t last = __atomic_load_n(&shared->next[h.sender], __ATOMIC_SEQ_CST);
	while (last < h.number && !__atomic_compare_exchange_n(&shared->next[h.sender], &last, h.number, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
	}
	__atomic_fetch_add(&shared->received, 1, __ATOMIC_SEQ_CST);
}

static _Noreturn void be_receiver(pp_pipe from)
{
	static uint8_t text[BIG];

	for (;;) {
		const int64_t size = pp_pipe_recv(from, text, sizeof text, 200);
		if (size == PP_ERR_TIMEOUT) {
			if (__atomic_load_n(&shared->stop, __ATOMIC_SEQ_CST) == 2)
				_exit(0);
			continue;
		}
		REQUIRE(size >= 0);
		check(text, (uint64_t)size);
	}
}

static pid_t start(pp_pipe from, pp_pipe to, int sends, uint32_t who)
{
	const pid_t pid = fork();

	REQUIRE(pid >= 0);
	if (pid != 0)
		return pid;
	if (sends)
		be_sender(to, who);
	be_receiver(from);
}

/* many: everybody is killed now and then. */
static void many(int seconds)
{
	pp_pipe ends[2];
	pid_t pids[SENDERS + RECEIVERS];
	uint32_t senders = 0, kills = 0, receivers_killed = 0;
	uint64_t seed = 88172645463325252ull, sent = 0;
	int how;

	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	for (int i = 0; i < SENDERS + RECEIVERS; i++)
		pids[i] = start(ends[0], ends[1], i < SENDERS, senders < SENDER_NUMBERS && i < SENDERS ? senders++ : 0);
	const int64_t until = now_ms() + seconds * 1000;
	while (now_ms() < until) {
		const uint64_t r = next_random(&seed);
		const int i = (int)(r % (SENDERS + RECEIVERS));
		nanosleep(&(struct timespec){0, (long)(r / 16 % 20000000)}, NULL);
		if (senders == SENDER_NUMBERS)
			break;
		REQUIRE_EQ(kill(pids[i], SIGKILL), 0);
		REQUIRE_EQ(waitpid(pids[i], &how, 0), pids[i]);
		REQUIRE(WIFSIGNALED(how));
		kills++;
		receivers_killed += i >= SENDERS;
		pids[i] = start(ends[0], ends[1], i < SENDERS, i < SENDERS ? senders++ : 0);
	}
	__atomic_store_n(&shared->stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < SENDERS; i++) {
		REQUIRE_EQ(waitpid(pids[i], &how, 0), pids[i]);
		REQUIRE(WIFEXITED(how) && WEXITSTATUS(how) == 0);
	}
	WITHIN(30000, pp_pipe_poll(ends[0], 0, NULL) == PP_ERR_TIMEOUT);
	__atomic_store_n(&shared->stop, 2, __ATOMIC_SEQ_CST);
	for (int i = SENDERS; i < SENDERS + RECEIVERS; i++) {
		REQUIRE_EQ(waitpid(pids[i], &how, 0), pids[i]);
		REQUIRE(WIFEXITED(how) && WEXITSTATUS(how) == 0);
	}
	for (uint32_t i = 0; i < senders; i++)
		sent += shared->acked[i];
	/* A killed sender may have sent one that it did not come to note; a killed receiver may have taken one that it did not come to note. */
	printf("%llu messages acknowledged, %llu received, %u killed, of them %u receivers\n", (unsigned long long)sent,
	       (unsigned long long)shared->received, kills, receivers_killed);
	REQUIRE(shared->received + receivers_killed >= sent);
	REQUIRE(shared->received <= sent + (kills - receivers_killed));
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
}

/* truth: one receiver that believes the descriptor. */
static void truth(int seconds)
{
	pp_pipe ends[2];
	static uint8_t text[BIG];
	int32_t fd;
	uint64_t last = 0, count = 0;
	int how;

	memset(shared, 0, sizeof *shared);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_STATUS(pp_pipe_descriptor(ends[0], &fd), PP_OK);
	const pid_t pid = start(ends[0], ends[1], 1, 0);
	const int64_t until = now_ms() + seconds * 1000;
	while (now_ms() < until) {
		struct pollfd at = {.fd = fd, .events = POLLIN};
		header h;
		REQUIRE(poll(&at, 1, 20000) == 1);
		const int64_t size = pp_pipe_recv(ends[0], text, sizeof text, 0);
		REQUIRE(size >= 0); /* it was readable */
		memcpy(&h, text, sizeof h);
		REQUIRE_EQ(h.number, last + 1);
		last = h.number;
		count++;
		/* And if it is not readable, nothing is there that was acknowledged before we looked. */
		const uint64_t acked = __atomic_load_n(&shared->acked[0], __ATOMIC_SEQ_CST);
		if (poll(&at, 1, 0) == 0)
			REQUIRE(acked <= last);
	}
	__atomic_store_n(&shared->stop, 1, __ATOMIC_SEQ_CST);
	while (pp_pipe_recv(ends[0], text, sizeof text, 100) >= 0) {
	}
	REQUIRE_EQ(waitpid(pid, &how, 0), pid);
	REQUIRE(WIFEXITED(how) && WEXITSTATUS(how) == 0);
	printf("%llu messages by a descriptor that was believed\n", (unsigned long long)count);
	REQUIRE(count > 100);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
}

int main(void)
{
	const char *text = getenv("POLYPROC_TORTURE_SECONDS");
	const int seconds = text != NULL && atoi(text) > 0 ? atoi(text) : 10;

	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(shared != MAP_FAILED);
	many(seconds);
	truth(seconds / 4 + 1);
	return 0;
}
