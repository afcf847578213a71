/* process_test.c - child processes, from a C program.
 *
 * deadline: 300 s
 */
#include "scenarios.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const uint32_t methods[] = {PP_START_DEFAULT, PP_START_SPAWN, PP_START_FORK};

/* ---- what children run -------------------------------------------------------------------------------------------- */

static int32_t give_back(const void *arg, size_t arg_size)
{
	int32_t code = 99;

	if (arg_size == sizeof code)
		memcpy(&code, arg, sizeof code);
	return code;
}

static int32_t arg_is_right(const void *arg, size_t arg_size)
{
	const uint8_t *const bytes = arg;
	const void *payload;
	size_t size;

	for (size_t i = 0; i < arg_size; i++)
		if (bytes[i] != (uint8_t)(i * 7 + i / 253))
			return 1;
	if (arg_size == 0 || getenv("POLYPROC_PROCESS") != NULL)
		return arg_size == 0 ? 0 : 2;
	if (pp_payload(&payload, &size) != PP_OK)
		return 0; /* a forked child has it in its memory only */
	return size == arg_size && memcmp(payload, arg, size) == 0 ? 0 : 3;
}

static int32_t die(const void *arg, size_t arg_size)
{
	(void)arg_size;
	kill(getpid(), *(const int32_t *)arg);
	return 1;
}

static int32_t fault(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	*(volatile int *)(uintptr_t)8 = 1;
	return 1;
}

static int32_t sleep_long(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	while (pause() != 0) /* always */
		;
	return 0;
}

static int32_t count_descriptors(const void *arg, size_t arg_size)
{
	(void)arg;
	(void)arg_size;
	return open_descriptors();
}

static int32_t sigint_is_blocked(const void *arg, size_t arg_size)
{
	sigset_t set;

	(void)arg;
	(void)arg_size;
	sigprocmask(SIG_SETMASK, NULL, &set);
	return sigismember(&set, SIGINT);
}

static int32_t look_around(const void *arg, size_t arg_size)
{
	char dir[100];

	(void)arg;
	(void)arg_size;
	if (getcwd(dir, sizeof dir) == NULL || strcmp(dir, "/usr") != 0)
		return 1;
	const char *const value = getenv("POLYPROC_TEST");
	if (value == NULL || strcmp(value, "yes") != 0)
		return 2;
	return getenv("HOME") == NULL ? 0 : 3;
}

/* outlive notes, a while after its parent's death, in a pipe, that it was not its own. arg is the pipe and the parent. */
static int32_t outlive(const void *arg, size_t arg_size)
{
	const int32_t *const pipe_and_parent = arg;

	(void)arg_size;
	while (getppid() == pipe_and_parent[1])
		nanosleep(&(struct timespec){0, 1000000}, NULL);
	nanosleep(&(struct timespec){0, 300000000}, NULL); /* longer than a watch takes */
	return write(pipe_and_parent[0], "x", 1) == 1 ? 0 : 1;
}

/* ---- help ---------------------------------------------------------------------------------------------------------- */

static pp_process start(uint32_t method, pp_process_fn fn, const void *arg, size_t arg_size)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process = 0;

	options.method = method;
	options.fn = fn;
	options.arg = arg;
	options.arg_size = arg_size;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	REQUIRE(process != 0);
	return process;
}

/* ends waits for the end of a process, which must be so. */
static void ends(pp_process process, int32_t code, int32_t signal)
{
	pp_exit how = {-1, -1, -1};

	for (int i = 0; i < 2; i++) {
		REQUIRE_STATUS(pp_process_wait(process, i == 0 ? 20000 : 0, &how), PP_OK);
		REQUIRE_EQ(how.known, 1);
		REQUIRE_EQ(how.signal, signal);
		REQUIRE_EQ(how.code, code);
	}
	REQUIRE_STATUS(pp_process_free(process), PP_OK);
	REQUIRE_STATUS(pp_process_wait(process, 0, &how), PP_ERR_HANDLE);
}

/* ---- scenarios ------------------------------------------------------------------------------------------------------- */

static void functions(void)
{
	static const int32_t codes[] = {0, 1, 7, 128, 255, 256, 511, -1};
	static uint8_t bytes[5000001];

	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * 7 + i / 253);
	for (size_t m = 0; m < COUNT(methods); m++) {
		for (size_t i = 0; i < COUNT(codes); i++)
			ends(start(methods[m], give_back, &codes[i], sizeof codes[i]), codes[i] & 0xff, 0);
		ends(start(methods[m], arg_is_right, bytes, sizeof bytes), 0, 0);
		ends(start(methods[m], arg_is_right, bytes, 1), 0, 0);
		ends(start(methods[m], arg_is_right, NULL, 0), 0, 0);
	}
}

static void signals(void)
{
	static const int32_t numbers[] = {SIGKILL, SIGTERM, SIGUSR1};

	for (size_t m = 0; m < COUNT(methods); m++) {
		for (size_t i = 0; i < COUNT(numbers); i++) {
			ends(start(methods[m], die, &numbers[i], sizeof numbers[i]), 0, numbers[i]);
			const pp_process process = start(methods[m], sleep_long, NULL, 0);
			REQUIRE_STATUS(pp_process_wait(process, 0, NULL), PP_ERR_TIMEOUT);
			const int64_t began = now_ms();
			REQUIRE_STATUS(pp_process_wait(process, 30, NULL), PP_ERR_TIMEOUT);
			REQUIRE(now_ms() - began >= 29);
			REQUIRE_STATUS(pp_process_signal(process, 0), PP_OK);
			REQUIRE_STATUS(pp_process_signal(process, 1000), PP_ERR_INVALID);
			REQUIRE_STATUS(pp_process_signal(process, -1), PP_ERR_INVALID);
			REQUIRE_STATUS(pp_process_signal(process, numbers[i]), PP_OK);
			REQUIRE_STATUS(pp_process_wait(process, 20000, NULL), PP_OK);
			/* It has ended: nobody else gets the signal. */
			REQUIRE_STATUS(pp_process_signal(process, SIGKILL), PP_OK);
			ends(process, 0, numbers[i]);
		}
		/* The host's runtime catches faults; a child's kill it. */
		ends(start(methods[m], fault, NULL, 0), 0, SIGSEGV);
	}
}

static void programs(void)
{
	static const char *const shell[] = {"sh", "-c", "exit $CODE", NULL}, *const env[] = {"CODE=23", "PATH=/usr/bin:/bin", NULL},
	                         *const where[] = {"sh", "-c", "test \"$(pwd)\" = /usr", NULL}, *const missing[] = {"no-such-program-here", NULL},
	                         *const empty[] = {NULL};
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;

	options.argv = shell;
	options.env = env;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	ends(process, 23, 0);
	options.path = "/bin/sh";
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	ends(process, 23, 0);
	options.path = NULL;
	options.env = NULL;
	options.argv = where;
	options.cwd = "/usr";
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	ends(process, 0, 0);
	options.cwd = "/no/such/directory";
	const int32_t status = pp_process_start(&options, &process);
	REQUIRE(status == PP_ERR_NOT_FOUND || status == PP_ERR_START);
	options.cwd = NULL;
	options.argv = missing;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_NOT_FOUND);
	REQUIRE(strstr(pp_last_error(), missing[0]) != NULL);
	options.path = "/no/such/program";
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_NOT_FOUND);
	options.path = "/etc/passwd";
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_START);
	options.path = NULL;
	options.argv = empty;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
}

/* This program, given bytes and not a function. */
static void payload_child(void)
{
	const void *data;
	size_t size;

	REQUIRE_STATUS(pp_payload(NULL, &size), PP_ERR_INVALID);
	for (int i = 0; i < 2; i++) {
		REQUIRE_STATUS(pp_payload(&data, &size), PP_OK);
		REQUIRE_EQ(size, 6);
		REQUIRE(memcmp(data, "abc\0de", 6) == 0);
	}
	REQUIRE(getenv("POLYPROC_PROCESS") == NULL);
	REQUIRE_EQ(open_descriptors(), 3);
	REQUIRE_STATUS(pp_watch_parent(), PP_OK);
	REQUIRE_STATUS(pp_watch_parent(), PP_OK);
	/* A child of it has the payload, and another parent. */
	int status;
	const pid_t child = fork();
	if (child == 0) {
		REQUIRE_STATUS(pp_payload(&data, &size), PP_OK);
		REQUIRE(memcmp(data, "abc\0de", 6) == 0);
		REQUIRE_STATUS(pp_watch_parent(), PP_ERR_STATE);
		_exit(5);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 5 << 8);
	exit(17);
}

static void payload(void)
{
	const void *data;
	size_t size;
	const char *const argv[] = {program, "payload_child", NULL};
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;

	/* Nobody gave this process anything. */
	REQUIRE_STATUS(pp_payload(&data, &size), PP_ERR_STATE);
	REQUIRE_STATUS(pp_watch_parent(), PP_ERR_STATE);
	options.path = "/proc/self/exe";
	options.argv = argv;
	options.arg = "abc\0de";
	options.arg_size = 6;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	ends(process, 17, 0);
	/* What the environment says wrongly is no harm. */
	static const char *const nonsense[] = {"POLYPROC_PROCESS=", "POLYPROC_PROCESS=77,1,2", "POLYPROC_PROCESS=0,999999,3", "POLYPROC_WORKER=0,0,0,1",
	                                       "POLYPROC_WORKER=x", "POLYPROC_PROCESS=-1,5,1"};
	for (size_t i = 0; i < COUNT(nonsense); i++) {
		const char *const env[] = {nonsense[i], NULL}, *const plain[] = {program, "plain_child", NULL};
		options.argv = plain;
		options.arg = NULL;
		options.arg_size = 0;
		options.env = env;
		const pid_t child = fork();
		REQUIRE(child >= 0);
		if (child == 0) {
			execve("/proc/self/exe", (char *const *)(uintptr_t)plain, (char *const *)(uintptr_t)env);
			_exit(127);
		}
		int status;
		REQUIRE_EQ(waitpid(child, &status, 0), child);
		/* Only one that names a function, or a parent that is dead, keeps a program from its main. */
		REQUIRE(status == 18 << 8 || (WIFEXITED(status) && WEXITSTATUS(status) == 1));
	}
}

static void plain_child(void)
{
	exit(18);
}

static void surroundings(void)
{
	static const char *const env[] = {"POLYPROC_TEST=yes", NULL};

	for (size_t m = 0; m < COUNT(methods); m++) {
		pp_process_options options = PP_PROCESS_OPTIONS_INIT;
		pp_process process;
		options.method = methods[m];
		options.fn = look_around;
		options.env = env;
		options.cwd = "/usr";
		REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
		ends(process, 0, 0);
		ends(start(methods[m], sigint_is_blocked, NULL, 0), 0, 0);
		options = (pp_process_options)PP_PROCESS_OPTIONS_INIT;
		options.method = methods[m];
		options.fn = sigint_is_blocked;
		options.flags = PP_PROCESS_BLOCK_SIGINT;
		REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
		ends(process, 1, 0);
		REQUIRE_EQ(sigint_is_blocked(NULL, 0), 0);
	}
}

/* Descriptors: only those that are named go to the child. */
static void descriptors(void)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;
	int pipes[4][2];
	int32_t fds[2];

	for (int i = 0; i < 4; i++)
		REQUIRE_EQ(pipe(pipes[i]), 0); /* without FD_CLOEXEC */
	ends(start(PP_START_SPAWN, count_descriptors, NULL, 0), 5, 0);
	const int32_t some = 1;
	ends(start(PP_START_SPAWN, count_descriptors, &some, sizeof some), 5, 0);
	fds[0] = pipes[1][1];
	fds[1] = pipes[3][0];
	options.fn = count_descriptors;
	options.fds = fds;
	options.fds_count = 2;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	ends(process, 7, 0);
	options.fds_count = 1;
	options.fn = NULL;
	char script[50];
	snprintf(script, sizeof script, "echo hello >&%d", (int)fds[0]);
	const char *const shell[] = {"sh", "-c", script, NULL};
	options.argv = shell;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	char text[6];
	REQUIRE_EQ(read(pipes[1][0], text, sizeof text), 6);
	REQUIRE(memcmp(text, "hello\n", 6) == 0);
	ends(process, 0, 0);
	/* One that is not open is an error, not a surprise. */
	fds[0] = 777;
	REQUIRE(pp_process_start(&options, &process) != PP_OK);
	REQUIRE(strlen(pp_last_error()) > 0);
}

static void bad_arguments(void)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process = 0;
	pp_exit how;
	int32_t pid, fd;
	static const pp_process wrong[] = {0, 999, UINT64_MAX, (uint64_t)1 << 48};

	REQUIRE_STATUS(pp_process_start(NULL, &process), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_start(&options, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
	options.fn = give_back;
	options.size = 5;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
	options.size = sizeof options;
	options.arg_size = 5;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
	options.arg_size = 0;
	options.fds_count = 1;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
	options.fds_count = 0;
	options.path = "/bin/true";
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
	options.path = NULL;
	options.method = 99;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
	int *const heap = malloc(sizeof *heap);
	REQUIRE(heap != NULL);
	memcpy(&options.fn, &heap, sizeof heap);
	options.method = 0;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_INVALID);
	free(heap);
	REQUIRE_EQ(process, 0);
	for (size_t i = 0; i < COUNT(wrong); i++) {
		REQUIRE_STATUS(pp_process_wait(wrong[i], 0, &how), PP_ERR_HANDLE);
		REQUIRE_STATUS(pp_process_info(wrong[i], &pid, &fd), PP_ERR_HANDLE);
		REQUIRE_STATUS(pp_process_signal(wrong[i], SIGKILL), PP_ERR_HANDLE);
		REQUIRE_STATUS(pp_process_free(wrong[i]), wrong[i] == 0 ? PP_OK : PP_ERR_HANDLE);
		REQUIRE(wrong[i] == 0 || strlen(pp_last_error()) > 0);
	}
	process = start(0, sleep_long, NULL, 0);
	/* A handle of another kind. */
	REQUIRE_STATUS(pp_pool_close(process), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_pool_free(process), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_process_info(process, NULL, NULL), PP_OK);
	REQUIRE_STATUS(pp_process_info(process, &pid, &fd), PP_OK);
	REQUIRE(pid > 0 && kill(pid, 0) == 0);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	REQUIRE_EQ(poll(&p, 1, 0), 0);
	REQUIRE_STATUS(pp_process_signal(process, SIGKILL), PP_OK);
	REQUIRE_EQ(poll(&p, 1, 10000), 1);
	ends(process, 0, SIGKILL);
}

/* Without pp_init there is no way to this program's functions; other programs can be started. */
static void no_init(void)
{
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	pp_process process;
	static const char *const shell[] = {"sh", "-c", "exit 3", NULL};

	options.fn = give_back;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_ERR_STATE);
	REQUIRE(strstr(pp_last_error(), "init") != NULL);
	options.fn = NULL;
	options.argv = shell;
	REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	ends(process, 3, 0);
}

static void ignored_children(void)
{
	static const int32_t code = 3;
	pp_exit how;

	signal(SIGCHLD, SIG_IGN);
	for (size_t m = 0; m < COUNT(methods); m++) {
		const pp_process process = start(methods[m], give_back, &code, sizeof code);
		REQUIRE_STATUS(pp_process_wait(process, 20000, &how), PP_OK);
		/* Nobody knows how it ended, unless the system still does. */
		REQUIRE(how.known == 0 || how.code == 3);
		REQUIRE_STATUS(pp_process_free(process), PP_OK);
	}
}

static void collected_children(void)
{
	static const int32_t code = 3;
	pp_exit how;
	int unknown = 0;

	for (int i = 0; i < 30; i++) {
		const pp_process process = start(0, give_back, &code, sizeof code);
		while (waitpid(-1, NULL, WNOHANG) == 0)
			;
		REQUIRE_STATUS(pp_process_wait(process, 20000, &how), PP_OK);
		REQUIRE(how.known == 0 || how.code == 3);
		unknown += how.known == 0;
		REQUIRE_STATUS(pp_process_free(process), PP_OK);
	}
	printf("%d of 30 unknown\n", unknown);
}

static void closed_descriptors(void)
{
	static const int32_t code = 41;

	close(0);
	close(1);
	close(2);
	for (size_t m = 0; m < COUNT(methods); m++)
		ends(start(methods[m], give_back, &code, sizeof code), 41, 0);
}

/* Many, at once and one after the other; nothing is left open. */
static void many(void)
{
	pp_process list[50];
	int32_t codes[COUNT(list)];

	/* What the test's own parents have left open. */
	for (int fd = 3; fd < 4096; fd++)
		close(fd);
	ends(start(0, give_back, NULL, 0), 99, 0);
	const int before = open_descriptors();
	for (int lap = 0; lap < 3; lap++) {
		for (size_t i = 0; i < COUNT(list); i++) {
			codes[i] = (int32_t)i;
			list[i] = start(methods[i % COUNT(methods)], give_back, &codes[i], sizeof codes[i]);
		}
		for (size_t i = COUNT(list); i-- > 0;)
			ends(list[i], (int32_t)i, 0);
	}
	/* Freed before it has ended: it is collected all the same. */
	for (int i = 0; i < 20; i++)
		REQUIRE_STATUS(pp_process_free(start(0, give_back, NULL, 0)), PP_OK);
	WITHIN(10000, open_descriptors() == before);
	WITHIN(10000, waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)before + 1, 64}), 0);
	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	options.fn = give_back;
	const int32_t status = pp_process_start(&options, &list[0]);
	if (status == PP_OK) {
		ends(list[0], 99, 0);
	} else {
		REQUIRE(status == PP_ERR_START || status == PP_ERR_SYSTEM || status == PP_ERR_NOMEM);
		REQUIRE(strlen(pp_last_error()) > 0);
	}
	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &(struct rlimit){64, 64}), 0);
	ends(start(0, give_back, NULL, 0), 99, 0);
}

static void forked(void)
{
	static const int32_t code = 9;
	const pp_process process = start(0, sleep_long, NULL, 0);
	int status;
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		alarm(50);
		REQUIRE_STATUS(pp_process_wait(process, 0, NULL), PP_ERR_FORKED);
		REQUIRE_STATUS(pp_process_signal(process, SIGKILL), PP_ERR_FORKED);
		for (size_t m = 0; m < COUNT(methods); m++)
			ends(start(methods[m], give_back, &code, sizeof code), 9, 0);
		_exit(0);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 0);
	REQUIRE_STATUS(pp_process_wait(process, 0, NULL), PP_ERR_TIMEOUT);
	REQUIRE_STATUS(pp_process_signal(process, SIGKILL), PP_OK);
	ends(process, 0, SIGKILL);
}

static void on_signal(int number)
{
	(void)number;
}

static void interrupted(void)
{
	struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
	const pp_process process = start(0, sleep_long, NULL, 0);

	sigaction(SIGALRM, &act, NULL);
	ualarm(20000, 20000);
	REQUIRE_STATUS(pp_process_wait(process, -1, NULL), PP_ERR_INTERRUPTED);
	REQUIRE_STATUS(pp_process_wait(process, 10000, NULL), PP_ERR_INTERRUPTED);
	ualarm(0, 0);
	REQUIRE_STATUS(pp_process_signal(process, SIGKILL), PP_OK);
	ends(process, 0, SIGKILL);
}

/* The host is killed: its daemons end, which run_scenario sees to. */
static void daemons(void)
{
	for (size_t m = 0; m < COUNT(methods); m++) {
		pp_process_options options = PP_PROCESS_OPTIONS_INIT;
		pp_process process;
		options.method = methods[m];
		options.fn = sleep_long;
		options.flags = PP_PROCESS_DAEMON;
		REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
	}
	kill(getpid(), SIGKILL);
}

/* Others outlive it. */
static void survivors(void)
{
	for (size_t m = 0; m < COUNT(methods); m++) {
		int ends_of_pipe[2], status;
		char byte;
		REQUIRE_EQ(pipe(ends_of_pipe), 0);
		const pid_t host = fork();
		REQUIRE(host >= 0);
		if (host == 0) {
			pp_process_options options = PP_PROCESS_OPTIONS_INIT;
			pp_process process;
			const int32_t fd = ends_of_pipe[1], pipe_and_parent[] = {fd, (int32_t)getpid()};
			options.method = methods[m];
			options.fn = outlive;
			options.arg = pipe_and_parent;
			options.arg_size = sizeof pipe_and_parent;
			options.fds = &fd;
			options.fds_count = 1;
			if (methods[m] == PP_START_FORK) {
				options.fds = NULL;
				options.fds_count = 0;
			}
			REQUIRE_STATUS(pp_process_start(&options, &process), PP_OK);
			kill(getpid(), SIGKILL);
		}
		close(ends_of_pipe[1]);
		REQUIRE_EQ(waitpid(host, &status, 0), host);
		REQUIRE_EQ(status, SIGKILL);
		REQUIRE_EQ(read(ends_of_pipe[0], &byte, 1), 1);
		close(ends_of_pipe[0]);
	}
}

int main(int argc, char **argv)
{
	static const scenario list[] = {
		{"functions", functions, 0, 0},
		{"signals", signals, 0, 0},
		{"programs", programs, 0, 0},
		{"payload", payload, 0, 0},
		{"surroundings", surroundings, 0, 0},
		{"descriptors", descriptors, 0, 0},
		{"bad_arguments", bad_arguments, 0, 0},
		{"no_init", no_init, 1, 0},
		{"ignored_children", ignored_children, 0, 0},
		{"collected_children", collected_children, 0, 0},
		{"closed_descriptors", closed_descriptors, 0, 0},
		{"many", many, 0, 0},
		{"forked", forked, 0, 0},
		{"interrupted", interrupted, 0, 0},
		{"daemons", daemons, 0, SIGKILL},
		{"survivors", survivors, 0, 0},
	};
	/* Programs that scenarios start. */
	static const scenario helpers[] = {
		{"payload_child", payload_child, 0, 0},
		{"plain_child", plain_child, 0, 0},
	};

	for (size_t i = 0; i < COUNT(helpers); i++)
		if (argc == 2 && strcmp(argv[1], helpers[i].name) == 0)
			return run_scenarios(argc, argv, &helpers[i], 1);
	return run_scenarios(argc, argv, list, COUNT(list));
}
