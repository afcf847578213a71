/* engine_test.c - the Go engine in a program that gives it little: no threads, no descriptors, small stacks.
 *
 * deadline: 200 s
 */
#include "procfs.h"
#include "scenarios.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <dirent.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static int32_t twice(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	const int32_t x = *(const int32_t *)in;

	(void)in_size;
	(void)out_size;
	(void)ctx;
	(void)ctx_size;
	*(int32_t *)out = 2 * x;
	return 0;
}

static int32_t map_with(pp_pool pool)
{
	int32_t in[20], out[20] = {0};

	for (int i = 0; i < 20; i++)
		in[i] = i;
	const int32_t status = pp_pool_map(pool, twice, in, sizeof *in, out, sizeof *out, 20, 1, NULL, 0, NULL);
	for (int i = 0; i < 20 && status == PP_OK; i++)
		REQUIRE_EQ(out[i], 2 * i);
	return status;
}

static pp_pool open_pool(uint32_t method)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;

	options.workers = 2;
	options.method = method;
	REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_OK);
	return pool;
}

/* forbid_threads lets no thread of this process, and of its children, make a thread any more: as RLIMIT_NPROC and pids.max do. */
static void forbid_threads(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS), /* its flags cannot be seen: the caller tries clone */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program_of_filter = {COUNT(filter), filter};

	REQUIRE_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	REQUIRE_EQ(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program_of_filter), 0);
}

/* Without threads there is no engine: that is an error, and no abort(). */
static void no_threads(void)
{
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;

	forbid_threads();
	for (int i = 0; i < 3; i++) {
		REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_ENGINE);
		REQUIRE(strstr(pp_last_error(), "threads") != NULL && strstr(pp_last_error(), strerror(EAGAIN)) != NULL);
	}
}

/* write_text writes a text to a file; false: it cannot be. */
static int write_text(const char *path, const char *text)
{
	const int fd = open(path, O_WRONLY | O_CLOEXEC);
	const int good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return good;
}

/* The same in a control group with few processes, as containers have it. */
static void no_threads_in_group(void)
{
	static const char *const roots[] = {"/sys/fs/cgroup/pids", "/sys/fs/cgroup"};
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool pool;
	char group[100], path[140], text[20];

	for (size_t i = 0; i < COUNT(roots); i++) {
		snprintf(group, sizeof group, "%s/polyproc-test-%d", roots[i], (int)getpid());
		if (mkdir(group, 0755) != 0)
			continue;
		snprintf(path, sizeof path, "%s/pids.max", group);
		snprintf(text, sizeof text, "%d", (int)getpid());
		if (!write_text(path, "8")) {
			rmdir(group);
			continue;
		}
		snprintf(path, sizeof path, "%s/cgroup.procs", group);
		REQUIRE(write_text(path, text));
		REQUIRE_STATUS(pp_pool_open(&options, &pool), PP_ERR_ENGINE);
		REQUIRE(strstr(pp_last_error(), "pids.max") != NULL);
		snprintf(path, sizeof path, "%s/cgroup.procs", roots[i]);
		REQUIRE(write_text(path, text));
		REQUIRE_EQ(rmdir(group), 0);
		REQUIRE_STATUS(pp_pool_free(open_pool(PP_START_FORK)), PP_OK);
		return;
	}
	printf("skipped: no control group with pids.max can be made: ");
}

/* Threads that cannot be made later cost no more than workers that cannot be replaced: a worker needs one. */
static void no_threads_later(void)
{
	const pp_pool pool = open_pool(PP_START_FORK);
	pp_pool another;
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	int32_t pids[8];
	size_t n;

	/* Those that the library has tried to make are there. */
	REQUIRE(status_number(getpid(), "Threads:") >= 9);
	forbid_threads();
	REQUIRE_STATUS(map_with(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_open(&options, &another), PP_ERR_ENGINE);
	REQUIRE_STATUS(pp_pool_info(pool, NULL, pids, COUNT(pids), &n), PP_OK);
	for (size_t i = 0; i < n; i++)
		kill(pids[i], SIGKILL);
	int32_t status = PP_OK;
	for (int i = 0; i < 100 && (status = map_with(pool)) != PP_ERR_START; i++)
		REQUIRE(status == PP_OK || status == PP_ERR_WORKER_LOST);
	REQUIRE_STATUS(status, PP_ERR_START);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* A program that closes all descriptors, as daemons do, loses its pools, with an error, and is not aborted. */
static void closed_descriptors(void)
{
	const pp_pool pool = open_pool(PP_START_SPAWN);
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	pp_pool another;
	uint64_t task;
	const int32_t x = 1;

	/* Workers that are starting and that work use the runtime meanwhile. */
	for (int i = 0; i < 100; i++)
		REQUIRE_STATUS(pp_pool_submit(pool, twice, &x, sizeof x, 0, &task), PP_OK);
	for (int fd = 3; fd < 256; fd++)
		close(fd);
	for (int i = 0; i < 12; i++)
		REQUIRE(open("/dev/null", O_RDWR) >= 0);
	nanosleep(&(struct timespec){0, 300000000}, NULL); /* time in which the runtime could find out */
	REQUIRE_STATUS(map_with(pool), PP_ERR_STATE);
	REQUIRE(strstr(pp_last_error(), "closed descriptors") != NULL);
	REQUIRE_STATUS(pp_pool_open(&options, &another), PP_ERR_STATE);
	REQUIRE_STATUS(pp_pool_free(pool), PP_ERR_STATE);
}

static void *whole_life(void *unused)
{
	const pp_pool pool = open_pool(PP_START_SPAWN);

	REQUIRE_STATUS(map_with(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
	return unused;
}

/* objects uses some of each kind; what it sends is more than the stack has. */
static void objects(const char *name)
{
	static uint8_t bytes[1 << 20], back[1 << 20];
	const pp_part parts[] = {{bytes, 5000}, {NULL, 0}, {bytes + 5000, 3000}};
	const pp_queue_options options = {.size = sizeof options, .name = name};
	pp_queue queue;
	pp_lock lock;
	pp_event event;
	pp_pipe ends[2];
	size_t size;

	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * 7);
	REQUIRE_STATUS(pp_queue_create(&options, &queue), PP_OK);
	REQUIRE_STATUS(pp_queue_put_parts(queue, parts, 3, PP_RAW, -1), PP_OK);
	REQUIRE_STATUS(pp_queue_get(queue, back, sizeof back, -1, &size), PP_OK);
	REQUIRE(size == 8000 && memcmp(back, bytes, size) == 0);
	REQUIRE_STATUS(pp_queue_put(queue, bytes, sizeof bytes, PP_RAW, -1), PP_OK);
	REQUIRE_STATUS(pp_queue_get(queue, back, sizeof back, -1, &size), PP_OK);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, -1), PP_OK);
	REQUIRE_STATUS(pp_lock_acquire(lock, 300), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_lock_free(lock), PP_OK);
	REQUIRE_STATUS(pp_event_new(&event), PP_OK);
	REQUIRE_STATUS(pp_event_wait(event, 10), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_event_free(event), PP_OK);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_STATUS(pp_pipe_send_parts(ends[1], parts, 3, -1), PP_OK);
	REQUIRE_STATUS(pp_pipe_send_parts(ends[1], NULL, 0, -1), PP_OK);
	REQUIRE_STATUS(pp_pipe_send(ends[1], bytes, sizeof bytes, -1), PP_OK);
	memset(back, 0, sizeof back);
	REQUIRE_EQ(pp_pipe_recv(ends[0], back, sizeof back, -1), 8000);
	REQUIRE(memcmp(back, bytes, 8000) == 0);
	REQUIRE_EQ(pp_pipe_recv(ends[0], back, sizeof back, -1), 0);
	REQUIRE_EQ(pp_pipe_recv(ends[0], back, sizeof back, -1), (int64_t)sizeof back);
	REQUIRE(memcmp(back, bytes, sizeof back) == 0);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
}

static void *use_objects(void *unused)
{
	char name[64];

	objects(NULL);
	snprintf(name, sizeof name, "engine_test.%d", (int)getpid());
	objects(name);
	REQUIRE_STATUS(pp_queue_unlink(name), PP_OK);
	return unused;
}

/* The first call into the library, and into the engine, which loads it, may come from a thread with a small stack. */
static void small_stack(void)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	REQUIRE_EQ(pthread_attr_setstacksize(&attr, 16 << 10), 0);
	REQUIRE_EQ(pthread_create(&thread, &attr, use_objects, NULL), 0);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
	REQUIRE_EQ(pthread_create(&thread, &attr, whole_life, NULL), 0);
	REQUIRE_EQ(pthread_join(thread, NULL), 0);
}

static volatile sig_atomic_t handled;

/* on_signal needs much more stack than the Go runtime's own signal stacks have. */
static void on_signal(int number)
{
	volatile uint8_t room[200 << 10];

	(void)number;
	for (size_t i = 0; i < sizeof room; i += 1024)
		room[i] = 1;
	handled++;
}

static void *signalled(void *stack_out)
{
	whole_life(NULL);
	REQUIRE_EQ(raise(SIGUSR1), 0);
	stack_t now;
	REQUIRE_EQ(sigaltstack(NULL, &now), 0);
	REQUIRE((now.ss_flags & SS_DISABLE) == 0 && now.ss_size >= 256 << 10);
	/* Below it is a page that cannot be written. */
	REQUIRE(mprotect((uint8_t *)now.ss_sp - 4096, 4096, PROT_NONE) == 0);
	*(void **)stack_out = now.ss_sp;
	return NULL;
}

static volatile sig_atomic_t cramped;

static void on_engine_signal(int number)
{
	stack_t now;

	if (sigaltstack(NULL, &now) == 0 && now.ss_size >= 256 << 10)
		on_signal(number);
	else
		cramped++;
}

/* A signal for the process may run its handler in a thread of the engine: that has a stack for it too. */
static void engine_signals(void)
{
	const struct sigaction act = {.sa_handler = on_engine_signal, .sa_flags = SA_RESTART | SA_ONSTACK};
	const pp_pool pool = open_pool(PP_START_SPAWN);
	struct dirent *entry;
	int sent = 0;

	REQUIRE_STATUS(map_with(pool), PP_OK);
	REQUIRE_EQ(sigaction(SIGUSR1, &act, NULL), 0);
	DIR *const dir = opendir("/proc/self/task");
	REQUIRE(dir != NULL);
	while ((entry = readdir(dir)) != NULL) {
		char path[300], name[32] = "";
		snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
		FILE *const f = fopen(path, "r");
		if (f == NULL)
			continue;
		if (fgets(name, sizeof name, f) != NULL && strcmp(name, "pp-engine\n") == 0 &&
		    syscall(SYS_tgkill, getpid(), atoi(entry->d_name), SIGUSR1) == 0)
			sent++;
		fclose(f);
	}
	closedir(dir);
	REQUIRE(sent > 0);
	WITHIN(10000, handled + cramped >= sent);
	REQUIRE_EQ(cramped, 0);
	REQUIRE_STATUS(map_with(pool), PP_OK);
	REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
}

/* Threads that have called the engine run signal handlers on a stack of the library's, which goes with the thread. */
static void signal_stacks(void)
{
	struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};
	unsigned char there;

	sigaction(SIGUSR1, &act, NULL);
	for (int i = 0; i < 10; i++) {
		pthread_t thread;
		void *stack;
		REQUIRE_EQ(pthread_create(&thread, NULL, signalled, &stack), 0);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
		REQUIRE_EQ(handled, i + 1);
		REQUIRE(mincore(stack, 4096, &there) != 0 && errno == ENOMEM);
	}
	/* A thread that has a signal stack keeps it. */
	static uint8_t own[64 << 10];
	const stack_t mine = {.ss_sp = own, .ss_size = sizeof own};
	stack_t now;
	REQUIRE_EQ(sigaltstack(&mine, NULL), 0);
	whole_life(NULL);
	REQUIRE_EQ(sigaltstack(NULL, &now), 0);
	REQUIRE(now.ss_sp == own);
}

/* With hardly a descriptor left no pool can be opened, which is an error; with more, one can. */
static void few_descriptors(void)
{
	struct rlimit before;

	REQUIRE_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
	for (rlim_t n = 3; n <= 12; n++) {
		struct rlimit few = {n, before.rlim_max};
		const pid_t child = fork(); /* whose engine is a new one */
		REQUIRE(child >= 0);
		if (child == 0) {
			pp_pool_options options = PP_POOL_OPTIONS_INIT;
			pp_pool pool;
			REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
			const int32_t status = pp_pool_open(&options, &pool);
			if (status == PP_OK)
				REQUIRE_STATUS(pp_pool_free(pool), PP_OK);
			else if (strstr(pp_last_error(), "oo many open files") == NULL)
				REQUIRE_STATUS(status, PP_ERR_ENGINE);
			REQUIRE(status != PP_OK || n > 6);
			REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
			REQUIRE_STATUS(pp_pool_free(open_pool(PP_START_FORK)), PP_OK);
			_exit(0);
		}
		int how;
		REQUIRE_EQ(waitpid(child, &how, 0), child);
		REQUIRE_EQ(how, 0);
	}
}

/* A pool's thread ends with it. */
static void threads_of_many_pools(void)
{
	pp_pool pools[30];

	REQUIRE_STATUS(pp_pool_free(open_pool(PP_START_FORK)), PP_OK);
	for (size_t i = 0; i < COUNT(pools); i++)
		pools[i] = open_pool(PP_START_FORK);
	const int64_t most = status_number(getpid(), "Threads:");
	for (size_t i = 0; i < COUNT(pools); i++) {
		REQUIRE_STATUS(map_with(pools[i]), PP_OK);
		REQUIRE_STATUS(pp_pool_free(pools[i]), PP_OK);
	}
	REQUIRE(most >= (int64_t)COUNT(pools));
	WITHIN(10000, status_number(getpid(), "Threads:") < most - (int64_t)COUNT(pools) / 2);
}

int main(int argc, char **argv)
{
	static const scenario list[] = {
		{"no_threads", no_threads, 0, 0},
		{"no_threads_in_group", no_threads_in_group, 0, 0},
		{"no_threads_later", no_threads_later, 0, 0},
		{"closed_descriptors", closed_descriptors, 0, 0},
		{"small_stack", small_stack, 0, 0},
		{"engine_signals", engine_signals, 0, 0},
		{"signal_stacks", signal_stacks, 0, 0},
		{"few_descriptors", few_descriptors, 0, 0},
		{"threads_of_many_pools", threads_of_many_pools, 0, 0},
	};

	return run_scenarios(argc, argv, list, COUNT(list));
}
