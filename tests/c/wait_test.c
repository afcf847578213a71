/* wait_test.c - what all calls that wait have in common: which signals end them, and what timeout_ms may be.
 *
 * deadline: 120 s
 */
#include "require.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <polyproc.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { OFTEN = 20, PATIENCE = 20000 };

static pp_lock lock, held;
static pp_semaphore semaphore, permits;
static pp_condition condition;
static pp_event event;
static pp_barrier barrier;
static pp_queue queue, full, joined;
static pp_pipe ends[2], choked[2];
static char room[1 << 17];
static size_t size;

/* A call that waits, and what lets it succeed. */
typedef struct wait {
	const char *name;
	int32_t (*call)(int64_t timeout_ms);
	void (*release)(void);
	int32_t late; /* when the time is over */
} wait;

static int32_t take_lock(int64_t ms) { return pp_lock_acquire(lock, ms); }
static void give_lock(void) { REQUIRE_STATUS(pp_lock_release(lock), PP_OK); }
static int32_t take_semaphore(int64_t ms) { return pp_semaphore_acquire(semaphore, ms); }
static void give_semaphore(void) { REQUIRE_STATUS(pp_semaphore_release(semaphore), PP_OK); }
static int32_t take_permit(int64_t ms) { return pp_semaphore_acquire(permits, ms); }
static void give_permit(void) { REQUIRE_STATUS(pp_semaphore_release(permits), PP_OK); }
static int32_t wait_condition(int64_t ms) { return pp_condition_wait(condition, held, ms); }
static void notify(void) { REQUIRE_STATUS(pp_condition_notify(condition, 1), PP_OK); }
static int32_t wait_event(int64_t ms) { return pp_event_wait(event, ms); }
static void set_event(void) { REQUIRE_STATUS(pp_event_set(event), PP_OK); }
static void pass_barrier(void) { REQUIRE_STATUS(pp_barrier_wait(barrier, PATIENCE, NULL, NULL), PP_OK); }
static int32_t get_message(int64_t ms) { return pp_queue_get(queue, room, sizeof room, ms, &size); }
static void put_message(void) { REQUIRE_STATUS(pp_queue_put(queue, "x", 1, PP_RAW, -1), PP_OK); }
static int32_t put_into_full(int64_t ms) { return pp_queue_put(full, "x", 1, PP_RAW, ms); }
static void get_from_full(void) { REQUIRE_STATUS(pp_queue_get(full, &(char[8]){0}, 8, -1, &(size_t){0}), PP_OK); }
static int32_t join_queue(int64_t ms) { return pp_queue_join(joined, ms); }
static void done(void) { REQUIRE_STATUS(pp_queue_task_done(joined), PP_OK); }
static int32_t receive(int64_t ms) { return (int32_t)pp_pipe_recv(ends[0], room, sizeof room, ms); }
static int32_t poll_pipe(int64_t ms) { return pp_pipe_poll(ends[0], ms, NULL); }
static void send_message(void) { REQUIRE_STATUS(pp_pipe_send(ends[1], "", 0, -1), PP_OK); }
static int32_t send_into_full(int64_t ms) { return pp_pipe_send(choked[1], room, 4000, ms); }
static void receive_from_full(void) { REQUIRE_EQ(pp_pipe_recv(choked[0], room, sizeof room, -1), 4000); }

static int32_t wait_barrier(int64_t ms)
{
	const int32_t status = pp_barrier_wait(barrier, ms, NULL, NULL);

	if (status == PP_ERR_TIMEOUT)
		REQUIRE_STATUS(pp_barrier_reset(barrier), PP_OK);
	return status;
}

static const wait waits[] = {
	{"lock", take_lock, give_lock, PP_ERR_TIMEOUT},
	{"semaphore", take_semaphore, give_semaphore, PP_ERR_TIMEOUT},
	{"semaphore that recovers", take_permit, give_permit, PP_ERR_TIMEOUT},
	{"condition", wait_condition, notify, PP_ERR_TIMEOUT},
	{"event", wait_event, set_event, PP_ERR_TIMEOUT},
	{"barrier", wait_barrier, pass_barrier, PP_ERR_TIMEOUT},
	{"queue_get", get_message, put_message, PP_ERR_EMPTY},
	{"queue_put", put_into_full, get_from_full, PP_ERR_FULL},
	{"queue_join", join_queue, done, PP_ERR_TIMEOUT},
	{"pipe_send", send_into_full, receive_from_full, PP_ERR_TIMEOUT},
	/* Those that sleep in a system call that the kernel does not restart come last. */
	{"pipe_recv", receive, send_message, PP_ERR_TIMEOUT},
	{"pipe_poll", poll_pipe, send_message, PP_ERR_TIMEOUT},
};

enum { WAITS = sizeof waits / sizeof waits[0], EXACT = WAITS - 2, FUTEX_WAITV = 449 };

static void begin(void)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;

	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	REQUIRE_STATUS(pp_lock_new(0, &held), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(held, 0), PP_OK);
	REQUIRE_STATUS(pp_semaphore_new(0, 1, 0, &semaphore), PP_OK);
	REQUIRE_STATUS(pp_semaphore_new(1, 1, PP_SEMAPHORE_RECOVER, &permits), PP_OK);
	REQUIRE_STATUS(pp_semaphore_acquire(permits, 0), PP_OK);
	REQUIRE_STATUS(pp_condition_new(&condition), PP_OK);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_barrier_new(2, 0, &barrier), PP_OK);
	REQUIRE_STATUS(pp_queue_create(NULL, &queue), PP_OK);
	REQUIRE_STATUS(pp_queue_create(NULL, &joined), PP_OK);
	REQUIRE_STATUS(pp_queue_put(joined, "x", 1, PP_RAW, 0), PP_OK);
	options.maxsize = 1;
	REQUIRE_STATUS(pp_queue_create(&options, &full), PP_OK);
	REQUIRE_STATUS(pp_queue_put(full, "x", 1, PP_RAW, 0), PP_OK);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_STATUS(pp_pipe_create(0, choked), PP_OK);
	while (pp_pipe_send(choked[1], room, 4000, 0) == PP_OK)
		;
}

/* again brings what a wait that has succeeded has used up back to the state in which it waits. */
static void again(const wait *w)
{
	if (w->call == wait_event)
		REQUIRE_STATUS(pp_event_clear(event), PP_OK);
	if (w->call == poll_pipe)
		REQUIRE_EQ(pp_pipe_recv(ends[0], room, sizeof room, 0), 0);
	if (w->call == join_queue)
		REQUIRE_STATUS(pp_queue_put(joined, "x", 1, PP_RAW, 0), PP_OK);
}

static pthread_t waiter;
static int runs, over;

static void handler(int signal)
{
	(void)signal;
	__atomic_fetch_add(&runs, 1, __ATOMIC_SEQ_CST);
}

typedef struct barrage {
	int signal;
	bool ends; /* until the wait is over; else until the handler has run OFTEN times */
	void (*then)(void);
} barrage;

/* send_signals sends the waiter one signal after the other. */
static void *send_signals(void *of)
{
	const barrage *const b = of;
	const int from = __atomic_load_n(&runs, __ATOMIC_SEQ_CST);
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL); /* the waiter is the one that handles them */
	const int64_t end = now_ms() + PATIENCE;
	while (__atomic_load_n(&over, __ATOMIC_SEQ_CST) == 0 && (b->ends || __atomic_load_n(&runs, __ATOMIC_SEQ_CST) - from < OFTEN)) {
		REQUIRE(now_ms() < end);
		nanosleep(&(struct timespec){0, 2000000}, NULL); /* the first comes while the call sleeps, most times */
		REQUIRE_EQ(pthread_kill(waiter, b->signal), 0);
	}
	if (b->then != NULL)
		b->then();
	return NULL;
}

/* under makes a call while signals arrive. */
static int32_t under(const wait *w, int64_t timeout_ms, barrage b)
{
	pthread_t thread;

	over = 0;
	REQUIRE_EQ(pthread_create(&thread, NULL, send_signals, &b), 0);
	const int32_t status = w->call(timeout_ms);
	__atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	return status;
}

static void handle(int signal, int flags, void (*by)(int))
{
	const struct sigaction act = {.sa_handler = by, .sa_flags = flags};

	REQUIRE_EQ(sigaction(signal, &act, NULL), 0);
}

/* goes_on: the signal ends neither a wait without limit nor one with a limit. */
static void goes_on(const wait *w, int signal)
{
	const int32_t status = under(w, -1, (barrage){signal, false, w->release});

	if (status != PP_OK) {
		fprintf(stderr, "%s, signal %d: %s\n", w->name, signal, pp_status_name(status));
		exit(1);
	}
	again(w);
	runs = 0;
	while (runs == 0) /* a signal that came too late has proved nothing */
		REQUIRE_STATUS(under(w, 100, (barrage){signal, true, NULL}), w->late);
}

static void test_restart(void)
{
	handle(SIGUSR1, SA_RESTART, handler);
	handle(SIGCHLD, 0, handler);
	for (int i = 0; i < WAITS; i++) {
		goes_on(&waits[i], SIGUSR1);
		goes_on(&waits[i], SIGCHLD);
	}
}

/* A handler with SA_RESTART, and one of SIGCHLD with it, beside one without. */
static void test_restart_beside(void)
{
	if (syscall(FUTEX_WAITV, NULL, 0, 0, NULL, 0) != -1 || errno != EINVAL) {
		fprintf(stderr, "skipped: the kernel has no futex_waitv\n");
		return;
	}
	handle(SIGUSR2, 0, handler);
	handle(SIGUSR1, SA_RESTART, handler);
	handle(SIGCHLD, SA_RESTART, handler);
	for (int i = 0; i < EXACT; i++) {
		goes_on(&waits[i], SIGUSR1);
		goes_on(&waits[i], SIGCHLD);
	}
	signal(SIGUSR2, SIG_DFL);
}

static void on_one(int number)
{
	handler(number);
	signal(number, SIG_IGN); /* it sees to one signal only */
}

static void test_interrupt(void)
{
	for (int i = 0; i < WAITS; i++) {
		/* Beside others that do not end a wait. */
		handle(SIGUSR2, 0, handler);
		REQUIRE_STATUS(under(&waits[i], -1, (barrage){SIGUSR2, true, NULL}), PP_ERR_INTERRUPTED);
		REQUIRE_STATUS(under(&waits[i], PATIENCE, (barrage){SIGUSR2, true, NULL}), PP_ERR_INTERRUPTED);
		/* Where it is blocked it has not run. */
		sigset_t usr2;
		sigemptyset(&usr2);
		sigaddset(&usr2, SIGUSR2);
		pthread_sigmask(SIG_BLOCK, &usr2, NULL);
		REQUIRE_STATUS(under(&waits[i], 50, (barrage){SIGUSR1, true, NULL}), waits[i].late);
		pthread_sigmask(SIG_UNBLOCK, &usr2, NULL);
	}
	/* A handler that removes itself ends the wait, though none is there afterwards. */
	signal(SIGUSR1, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	for (int i = 0; i < WAITS; i++) {
		int32_t status = waits[i].late;
		while (status == waits[i].late) { /* it ran before the call slept */
			handle(SIGUSR2, 0, on_one);
			status = under(&waits[i], 200, (barrage){SIGUSR2, true, NULL});
		}
		REQUIRE_STATUS(status, PP_ERR_INTERRUPTED);
	}
}

static void test_timeouts(void)
{
	pp_result result;
	pp_exit end;
	size_t n;

	for (int i = 0; i < WAITS; i++) {
		const int64_t begin = now_ms();
		REQUIRE_STATUS(waits[i].call(PP_TRY), waits[i].late);
		REQUIRE_STATUS(waits[i].call(0), waits[i].late);
		REQUIRE_STATUS(waits[i].call(-2), PP_ERR_INVALID);
		REQUIRE(strstr(pp_last_error(), "PP_TRY") != NULL);
		REQUIRE_STATUS(waits[i].call(INT64_MIN + 1), PP_ERR_INVALID);
		REQUIRE(now_ms() - begin < PATIENCE);
	}
	/* Whatever the handle is. */
	REQUIRE_STATUS(pp_pool_wait(0, 1, -2, &result), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_collect(0, &result, 1, NULL, 0, -2, &n), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pool_join(0, -2), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_wait(0, -2, &end), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_lock_restore(lock, 1, PP_TRY), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_lock_restore(lock, 1, -2), PP_ERR_INVALID);
}

/* The same of a process, which the engine waits for. */
static void test_process(void)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	const char *const argv[] = {"sleep", "60", NULL};
	pp_process process;

	options.argv = argv;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, PP_TRY, NULL), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_process_wait(process, -2, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_signal(process, SIGKILL), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, -1, NULL), PP_OK);
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
}

/* deny_waitv makes this process one of a system without futex_waitv. It reports whether that is possible. */
static bool deny_waitv(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FUTEX_WAITV, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog filter = {sizeof code / sizeof *code, code};

	REQUIRE_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
		fprintf(stderr, "skipped: a seccomp filter: %s\n", strerror(errno));
		return false;
	}
	REQUIRE(syscall(FUTEX_WAITV, NULL, 0, 0, NULL, 0) < 0 && errno == EPERM);
	return true;
}

int main(void)
{
	waiter = pthread_self();
	begin();
	test_timeouts();
	test_restart();
	test_restart_beside();
	test_interrupt();
	if (deny_waitv()) {
		test_timeouts();
		test_restart();
		test_interrupt();
	}
	test_process();
	return 0;
}
