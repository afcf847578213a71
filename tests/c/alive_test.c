/* alive_test.c - a living process is never taken for dead, and a dead one is found out, where /proc shows other processes or none, in time
 * namespaces, without pidfd_open, without a free descriptor, and when a number was given again.
 *
 * deadline: 120 s
 */
#include "scenarios.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define COUNT(array) (sizeof(array) / sizeof *(array))
enum { STRANGER = 65534, LOOK_MS = 300, LIMIT_MS = 20000 };

/* ---- what the scenarios have in common ------------------------------------------------------------------------------------ */

static void collect(pid_t child)
{
	int status;

	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 0);
}

/* skip ends a scenario that this system does not permit. */
static void skip(const char *what)
{
	printf("skipped: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(0);
}

static void write_file(const char *path, const char *text)
{
	const int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		skip(path);
	close(fd);
}

/* A mount namespace of our own, in which nothing that is mounted reaches others. */
static void own_mounts(void)
{
	if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		skip("a mount namespace");
}

static void mount_proc(const char *options)
{
	if (mount("proc", "/proc", "proc", 0, options) != 0)
		skip("mounting /proc");
}

static void become(uid_t uid)
{
	REQUIRE_EQ(setresgid(uid, uid, uid), 0);
	REQUIRE_EQ(setresuid(uid, uid, uid), 0);
}

/* deny_pidfd_open installs a filter, as some container runtimes have it. */
static void deny_pidfd_open(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog filter = {COUNT(code), code};

	REQUIRE_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
		skip("a seccomp filter");
	REQUIRE(syscall(SYS_pidfd_open, getpid(), 0) < 0 && errno == EPERM);
}

static pp_lock new_lock(void)
{
	pp_lock lock;

	REQUIRE_STATUS(pp_lock_new(0, &lock), PP_OK);
	return lock;
}

/* start_holder returns a child that holds the lock until it is killed. prepare runs in it first; NULL: nothing. */
static pid_t start_holder(pp_lock lock, void (*prepare)(void))
{
	int told[2];
	char byte;

	REQUIRE_EQ(pipe2(told, O_CLOEXEC), 0);
	const pid_t child = fork();
	REQUIRE(child >= 0);
	if (child == 0) {
		if (prepare != NULL)
			prepare();
		REQUIRE_STATUS(pp_lock_acquire(lock, LIMIT_MS), PP_OK);
		REQUIRE_EQ(write(told[1], "", 1), 1);
		for (;;)
			pause();
	}
	close(told[1]);
	REQUIRE_EQ(read(told[0], &byte, 1), 1);
	close(told[0]);
	return child;
}

/* held_by_the_living: the holder is looked at, and the lock stays its. */
static void held_by_the_living(pp_lock lock)
{
	for (int i = 0; i < 2; i++)
		REQUIRE_STATUS(pp_lock_acquire(lock, LOOK_MS), PP_ERR_TIMEOUT);
}

static void end(pid_t child)
{
	int status;

	kill(child, SIGKILL);
	REQUIRE_EQ(waitpid(child, &status, 0), child);
}

/* A child of ours dies, and becomes a zombie: nobody collects it before its death has been noticed. */
static void lives_then_dies(pp_lock lock, pid_t holder)
{
	held_by_the_living(lock);
	kill(holder, SIGKILL);
	REQUIRE_STATUS(pp_lock_acquire(lock, LIMIT_MS), PP_ERR_OWNER_DIED);
	end(holder);
}

/* below runs a scenario as the first process of a pid namespace, whose /proc is still the one from outside. */
static void below(void (*run)(void))
{
	if (unshare(CLONE_NEWPID) != 0)
		skip("a pid namespace");
	const pid_t first = fork();
	REQUIRE(first >= 0);
	if (first == 0) {
		REQUIRE_EQ(getpid(), 1);
		run();
		_exit(0);
	}
	collect(first);
}

/* ---- /proc of somebody else ------------------------------------------------------------------------------------------------- */

static void both_ways(void)
{
	const pp_lock lock = new_lock();

	/* The child looks at its parent... */
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	const pid_t child = fork();
	if (child == 0) {
		held_by_the_living(lock);
		_exit(0);
	}
	collect(child);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	/* ... and the parent at its child. */
	lives_then_dies(lock, start_holder(lock, NULL));
}

static void foreign_proc(void)
{
	below(both_ways);
}

static void foreign_proc_without_pidfd(void)
{
	deny_pidfd_open();
	below(both_ways);
}

static void empty_proc(void)
{
	own_mounts();
	if (mount("none", "/proc", "tmpfs", 0, NULL) != 0)
		skip("an empty /proc");
	both_ways();
}

/* ---- /proc that hides processes -------------------------------------------------------------------------------------------- */

/* watched_by_stranger has another user look at a holder, which is root's or, if prepare says so, nobody's. */
static void watched_by_stranger(void (*prepare)(void))
{
	const pp_lock lock = new_lock();
	int lived[2];
	char byte;

	const pid_t holder = start_holder(lock, prepare);
	REQUIRE_EQ(pipe2(lived, O_CLOEXEC), 0);
	const pid_t stranger = fork();
	if (stranger == 0) {
		char path[40];
		become(STRANGER);
		snprintf(path, sizeof path, "/proc/%d/stat", (int)holder);
		REQUIRE(access(path, F_OK) != 0 && errno == ENOENT);
		held_by_the_living(lock);
		REQUIRE_EQ(write(lived[1], "", 1), 1);
		REQUIRE_STATUS(pp_lock_acquire(lock, LIMIT_MS), PP_ERR_OWNER_DIED);
		_exit(0);
	}
	close(lived[1]);
	REQUIRE_EQ(read(lived[0], &byte, 1), 1);
	end(holder);
	collect(stranger);
}

static void not_dumpable(void)
{
	become(STRANGER);
	REQUIRE_EQ(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), 0);
}

static void hidden(void (*prepare)(void), int filter)
{
	own_mounts();
	mount_proc("hidepid=2");
	if (filter)
		deny_pidfd_open();
	watched_by_stranger(prepare);
}

static void hidepid_other_user(void)
{
	hidden(NULL, 0);
}

static void hidepid_not_dumpable(void)
{
	hidden(not_dumpable, 0);
}

static void hidepid_without_pidfd(void)
{
	hidden(NULL, 1);
}

/* A process that has given up its rights can still die with another one. */
static void hidepid_watch(void)
{
	int told[2];
	char byte;

	own_mounts();
	mount_proc("hidepid=2");
	REQUIRE_EQ(pipe2(told, O_CLOEXEC), 0);
	const pid_t other = fork();
	if (other == 0)
		for (;;)
			pause();
	const pid_t watcher = fork();
	if (watcher == 0) {
		become(STRANGER);
		REQUIRE_STATUS(pp_watch_process(other), PP_OK);
		REQUIRE_EQ(write(told[1], "", 1), 1);
		for (;;)
			pause();
	}
	close(told[1]);
	REQUIRE_EQ(read(told[0], &byte, 1), 1);
	/* It lives while the other does: the end of the pipe would come else. */
	fcntl(told[0], F_SETFL, O_NONBLOCK);
	REQUIRE(read(told[0], &byte, 1) < 0 && errno == EAGAIN);
	end(other);
	int status;
	REQUIRE_EQ(waitpid(watcher, &status, 0), watcher);
	REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* ---- time namespaces --------------------------------------------------------------------------------------------------------- */

static void other_time(void)
{
	if (unshare(CLONE_NEWTIME) != 0)
		skip("a time namespace");
	write_file("/proc/self/timens_offsets", "boottime 10000000 0");
}

static void time_namespace(void)
{
	const pp_lock lock = new_lock();

	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	other_time(); /* of the children */
	const pid_t child = fork();
	if (child == 0) {
		struct timespec t;
		REQUIRE_EQ(clock_gettime(CLOCK_BOOTTIME, &t), 0);
		REQUIRE(t.tv_sec >= 10000000);
		held_by_the_living(lock);
		_exit(0);
	}
	collect(child);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	lives_then_dies(lock, start_holder(lock, NULL));
}

static void time_namespace_without_pidfd(void)
{
	deny_pidfd_open();
	time_namespace();
}

/* ---- without pidfd_open ------------------------------------------------------------------------------------------------------ */

/* Without a pidfd a zombie is there for kill(2), and has its start time. */
static void denied_pidfd(void)
{
	int lived[2];
	char byte;

	deny_pidfd_open();
	/* A child of ours, and one of somebody else. */
	const pp_lock first = new_lock(), lock = new_lock();
	lives_then_dies(first, start_holder(first, NULL));
	const pid_t holder = start_holder(lock, NULL);
	REQUIRE_EQ(pipe2(lived, O_CLOEXEC), 0);
	const pid_t sibling = fork();
	if (sibling == 0) {
		held_by_the_living(lock);
		REQUIRE_EQ(write(lived[1], "", 1), 1);
		REQUIRE_STATUS(pp_lock_acquire(lock, LIMIT_MS), PP_ERR_OWNER_DIED);
		_exit(0);
	}
	close(lived[1]);
	REQUIRE_EQ(read(lived[0], &byte, 1), 1);
	kill(holder, SIGKILL);
	collect(sibling);
	end(holder);
}

static void *wait_for_ever(void *lock)
{
	REQUIRE_STATUS(pp_lock_acquire(*(pp_lock *)lock, LIMIT_MS), PP_OK);
	for (;;)
		pause();
	return NULL;
}

/* state_of reads what /proc says of a process: 'Z', say. */
static char state_of(pid_t pid)
{
	char path[40], text[200];

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	const ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
	text[n > 0 ? n : 0] = '\0';
	close(fd);
	const char *const at = strrchr(text, ')');
	return at != NULL ? at[2] : '\0';
}

/* The first thread of a process has ended, and /proc calls the process a zombie: it lives. */
static void denied_pidfd_first_thread_ended(void)
{
	pp_lock lock;

	deny_pidfd_open();
	lock = new_lock();
	const pid_t holder = fork();
	if (holder == 0) {
		pthread_t thread;
		REQUIRE_EQ(pthread_create(&thread, NULL, wait_for_ever, &lock), 0);
		pthread_exit(NULL);
	}
	WITHIN(LIMIT_MS, state_of(holder) == 'Z');
	WITHIN(LIMIT_MS, pp_lock_acquire(lock, 0) == PP_ERR_TIMEOUT || pp_lock_release(lock) != PP_OK);
	lives_then_dies(lock, holder);
}

/* ---- a number that was given again -------------------------------------------------------------------------------------------- */

static void next_pid_is(pid_t pid)
{
	char text[20];

	snprintf(text, sizeof text, "%d", (int)pid - 1);
	write_file("/proc/sys/kernel/ns_last_pid", text);
}

static unsigned long long started(void)
{
	char text[1024];
	const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	const ssize_t n = read(fd, text, sizeof text - 1);
	unsigned long long start = 0;

	REQUIRE(fd >= 0 && n > 0);
	close(fd);
	text[n] = '\0';
	REQUIRE_EQ(sscanf(strrchr(text, ')') + 1,
	                  " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start), 1);
	return start;
}

/* The number of a dead holder is that of a living process which started at another time. */
static void given_again(void)
{
	enum { NUMBER = 1000 };
	const pp_lock lock = new_lock();

	next_pid_is(NUMBER);
	const pid_t holder = start_holder(lock, NULL);
	REQUIRE_EQ(holder, NUMBER);
	end(holder);
	const unsigned long long before = started();
	int pause_pipe[2];
	REQUIRE_EQ(pipe2(pause_pipe, O_CLOEXEC), 0);
	for (;;) {
		int told[2];
		unsigned long long since = 0;
		REQUIRE_EQ(pipe2(told, O_CLOEXEC), 0);
		next_pid_is(NUMBER);
		/* Not fork: the child must not become a member. */
		const pid_t other = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
		if (other == 0) {
			since = started();
			REQUIRE_EQ(write(told[1], &since, sizeof since), sizeof since);
			for (;;)
				pause();
		}
		REQUIRE_EQ(other, NUMBER);
		REQUIRE_EQ(read(told[0], &since, sizeof since), sizeof since);
		close(told[0]);
		close(told[1]);
		if (since > before + 2) {
			REQUIRE_STATUS(pp_lock_acquire(lock, LIMIT_MS), PP_ERR_OWNER_DIED);
			end(other);
			return;
		}
		end(other);
	}
}

static void *idle(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

/* It is that of a thread now: kill(2) finds it, but no process has it. */
static void given_to_thread(void)
{
	enum { NUMBER = 1000 };
	const pp_lock lock = new_lock();
	pthread_t thread;

	next_pid_is(NUMBER);
	const pid_t holder = start_holder(lock, NULL);
	REQUIRE_EQ(holder, NUMBER);
	end(holder);
	next_pid_is(NUMBER);
	REQUIRE_EQ(pthread_create(&thread, NULL, idle, NULL), 0);
	REQUIRE_EQ(kill(NUMBER, 0), 0);
	REQUIRE_STATUS(pp_lock_acquire(lock, LIMIT_MS), PP_ERR_OWNER_DIED);
}

static void own_namespace(void)
{
	own_mounts();
	mount_proc(NULL);
	given_again();
}

static void own_namespace_without_pidfd(void)
{
	own_mounts();
	mount_proc(NULL);
	deny_pidfd_open();
	given_again();
}

static void own_namespace_thread(void)
{
	own_mounts();
	mount_proc(NULL);
	given_to_thread();
}

static void own_namespace_thread_without_pidfd(void)
{
	own_mounts();
	mount_proc(NULL);
	deny_pidfd_open();
	given_to_thread();
}

static void number_given_again(void)
{
	below(own_namespace);
}

static void number_given_again_without_pidfd(void)
{
	below(own_namespace_without_pidfd);
}

static void number_given_to_thread(void)
{
	below(own_namespace_thread);
}

static void number_given_to_thread_without_pidfd(void)
{
	below(own_namespace_thread_without_pidfd);
}

/* ---- forks that cannot look --------------------------------------------------------------------------------------------------- */

static void jail(void)
{
	if (chdir("/sys/kernel") != 0 || chroot(".") != 0) /* a directory that is there, and holds no /proc */
		skip("chroot");
	REQUIRE(access("/proc/self", F_OK) != 0);
}

/* A daemon that goes into its jail and then forks: the child has what its parent had, and both can make more. */
static void forked_in_chroot(void)
{
	const pp_lock lock = new_lock();

	jail();
	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	const pid_t child = fork();
	if (child == 0) {
		held_by_the_living(lock);
		const pp_lock another = new_lock();
		REQUIRE_STATUS(pp_lock_acquire(another, 0), PP_OK);
		_exit(0);
	}
	collect(child);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	lives_then_dies(lock, start_holder(lock, NULL));
}

/* The first use is in the jail. */
static void first_use_in_chroot(void)
{
	pp_lock lock;

	jail();
	const int32_t status = pp_lock_new(0, &lock);
	if (status != PP_OK) {
		/* Before Linux 6.11: the true class, not "no memory". */
		REQUIRE_STATUS(status, PP_ERR_UNSUPPORTED);
		return;
	}
	lives_then_dies(lock, start_holder(lock, NULL));
}

static int take_all_descriptors(void)
{
	const struct rlimit limit = {256, 256};
	int last = -1, fd;

	REQUIRE_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
	while ((fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
		last = fd;
	REQUIRE(errno == EMFILE && last >= 0);
	return last;
}

/* No descriptor is free at the fork. */
static void forked_without_descriptors(void)
{
	const pp_lock lock = new_lock();

	REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_OK);
	const int last = take_all_descriptors();
	const pid_t child = fork();
	if (child == 0) {
		held_by_the_living(lock);
		/* Once it has descriptors again, it joins by name, and can be told from another with its number. */
		close(last);
		close(last - 1);
		pp_lock more;
		for (int i = 0; i < 100; i++) {
			REQUIRE_STATUS(pp_lock_new(0, &more), PP_OK);
			REQUIRE_STATUS(pp_lock_free(more), PP_OK);
		}
		_exit(0);
	}
	collect(child);
	REQUIRE_STATUS(pp_lock_release(lock), PP_OK);
	/* And a dead child is found out without one, whether it was collected or not. */
	const pid_t holder = fork();
	if (holder == 0)
		_exit(pp_lock_acquire(lock, LIMIT_MS) == PP_OK ? 0 : 1);
	siginfo_t info;
	REQUIRE_EQ(waitid(P_PID, (id_t)holder, &info, WEXITED | WNOWAIT), 0);
	REQUIRE_EQ(info.si_status, 0);
	REQUIRE_STATUS(pp_lock_acquire(lock, LIMIT_MS), PP_ERR_OWNER_DIED);
	collect(holder);
}

/* A fork into another pid namespace: the handles are refused there, and the message tells why. */
static void forked_into_namespace(void)
{
	const pp_lock lock = new_lock();

	if (unshare(CLONE_NEWPID) != 0)
		skip("a pid namespace");
	const pid_t child = fork();
	if (child == 0) {
		REQUIRE_STATUS(pp_lock_acquire(lock, 0), PP_ERR_HANDLE);
		REQUIRE(strstr(pp_last_error(), "pid namespace") != NULL);
		pp_lock another;
		REQUIRE_STATUS(pp_lock_new(0, &another), PP_ERR_UNSUPPORTED);
		REQUIRE(strstr(pp_last_error(), "pid namespace") != NULL);
		_exit(0);
	}
	collect(child);
}

static const scenario scenarios[] = {
	{"foreign_proc", foreign_proc, 0, 0},
	{"foreign_proc_without_pidfd", foreign_proc_without_pidfd, 0, 0},
	{"empty_proc", empty_proc, 0, 0},
	{"hidepid_other_user", hidepid_other_user, 0, 0},
	{"hidepid_not_dumpable", hidepid_not_dumpable, 0, 0},
	{"hidepid_without_pidfd", hidepid_without_pidfd, 0, 0},
	{"hidepid_watch", hidepid_watch, 0, 0},
	{"time_namespace", time_namespace, 0, 0},
	{"time_namespace_without_pidfd", time_namespace_without_pidfd, 0, 0},
	{"denied_pidfd", denied_pidfd, 0, 0},
	{"denied_pidfd_first_thread_ended", denied_pidfd_first_thread_ended, 0, 0},
	{"number_given_again", number_given_again, 0, 0},
	{"number_given_again_without_pidfd", number_given_again_without_pidfd, 0, 0},
	{"number_given_to_thread", number_given_to_thread, 0, 0},
	{"number_given_to_thread_without_pidfd", number_given_to_thread_without_pidfd, 0, 0},
	{"forked_in_chroot", forked_in_chroot, 0, 0},
	{"first_use_in_chroot", first_use_in_chroot, 0, 0},
	{"forked_without_descriptors", forked_without_descriptors, 0, 0},
	{"forked_into_namespace", forked_into_namespace, 0, 0},
};

int main(int argc, char **argv)
{
	return run_scenarios(argc, argv, scenarios, COUNT(scenarios));
}
