/* watch.c - a process of ours does not outlive the one that started it.
 *
 * One thread sleeps on a pidfd of the parent. Not PDEATHSIG: it fires when the thread that created the child ends, and does not survive every
 * exec. Not the end of a pipe: forked siblings hold its other end.
 *
 * A parent that executes another program keeps its pidfd. So the thread of a pool's worker first waits for a record lock (fcntl(2))
 * on the pool's memory, which the parent holds. It ends with the parent's descriptor, which is close-on-exec; a process that the
 * parent forks does not inherit it. As it ends, too, when a parent closes descriptors that are not its own, it is no proof: that
 * the parent does not map the memory any more is one. Without proof the thread goes on with the pidfd. */
#include "front.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

static struct {
	pid_t parent; /* who is watched */
	uint64_t word; /* 0: it is the parent; else its name, see pp__process */
	pid_t self;   /* by whom: a forked child has no such thread */
	int fd;       /* pidfd, -1: none, look from time to time */
	int locked;   /* the file that the parent locks and maps, -1: none */
	struct stat file; /* which that is: the program may put another one under the number at any time */
} watch = {.fd = -1, .locked = -1};
static pthread_mutex_t watch_lock = PTHREAD_MUTEX_INITIALIZER;

/* How often a parent without pidfd (kernels before 5.3, or a host that closed descriptors that are not its own) is looked at. */
enum { WATCH_LOOK_MS = 100 };

/* Most of it is never touched. A first call through the linker alone takes some KiB. */
enum { WATCH_STACK = 64 << 10 };

/* gone reports whether the watched process is not there any more. readable: its pidfd says so. */
static bool gone(bool readable)
{
	/* The kernel gives a process a new parent before it makes the old one's pidfd readable. */
	if (watch.word == 0)
		return getppid() != watch.parent;
	struct pollfd p = {.fd = watch.fd, .events = POLLIN};
	return pp__process_gone(watch.word) || (readable && poll(&p, 1, 0) > 0 && p.revents == POLLIN);
}

static void end_process(void)
{
	kill(getpid(), SIGKILL);
	_exit(128 + SIGKILL); /* valgrind gets here */
}

/* await_lock waits until the parent does not lock the file any more, and ends this process if it executed another program. */
static void await_lock(int fd)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};

	while (fcntl(fd, F_SETLKW, &lock) != 0 && errno == EINTR)
		;
	if (pp__unmapped(watch.parent, pp__device_of(&watch.file), watch.file.st_ino))
		end_process();
}

static void *watch_run(void *unused)
{
	(void)unused;
	prctl(PR_SET_NAME, "pp-watch", 0, 0, 0);
	if (watch.locked >= 0)
		await_lock(watch.locked);
	bool trusted = watch.fd >= 0;
	for (;;) {
		struct pollfd p = {.fd = trusted ? watch.fd : -1, .events = POLLIN};
		const int n = poll(&p, 1, trusted ? -1 : WATCH_LOOK_MS);
		if (gone(n > 0))
			end_process();
		/* Something else than a pidfd is under this number now: the host closed it. */
		if (n > 0 || (n < 0 && errno != EINTR))
			trusted = false;
	}
	return NULL;
}

void pp__watch_forked(void)
{
	watch_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

bool pp__watched(void)
{
	pthread_mutex_lock(&watch_lock);
	const bool watched = watch.self == getpid();
	pthread_mutex_unlock(&watch_lock);
	return watched;
}

int32_t pp__watch(pid_t parent_pid, uint64_t word, int fd)
{
	PP__NO_CANCEL();
	int32_t status = PP_OK;

	pthread_mutex_lock(&watch_lock);
	struct stat file = {0};
	if (fd >= 0 && fstat(fd, &file) != 0)
		fd = -1;
	if (watch.self == getpid() && watch.parent == parent_pid) {
		/* It is watched already, by a thread that knows nothing of the lock. */
		if (fd >= 0 && watch.locked < 0) {
			watch.file = file;
			watch.locked = fd;
			const int error = pp__thread_begin(watch_run, NULL, WATCH_STACK);
			if (error != 0)
				status = pp__fail(PP_ERR_SYSTEM, "the thread that watches the parent: %s", strerror(error));
		}
	} else {
		watch.file = file;
		watch.locked = fd;
		watch.fd = (int)syscall(SYS_pidfd_open, parent_pid, 0);
		watch.parent = parent_pid;
		watch.word = getppid() == parent_pid ? 0 : word;
		if (watch.word == 0 ? getppid() != parent_pid : pp__process_gone(word)) {
			status = pp__fail(PP_ERR_STATE, "process %d, which this process is to die with, has ended", (int)parent_pid);
		} else {
			const int error = pp__thread_begin(watch_run, NULL, WATCH_STACK);
			if (error != 0)
				status = pp__fail(PP_ERR_SYSTEM, "the thread that watches the parent: %s", strerror(error));
		}
		if (status == PP_OK) {
			watch.self = getpid();
		} else if (watch.fd >= 0) {
			close(watch.fd);
			watch.fd = -1;
		}
	}
	pthread_mutex_unlock(&watch_lock);
	return status;
}

int32_t pp_watch_process(int32_t pid)
{
	PP__NO_CANCEL();
	if (pid <= 0)
		return pp__fail(PP_ERR_INVALID, "pp_watch_process: pid %d", (int)pid);
	const uint64_t word = pp__process(pid);
	if (word == 0)
		return pp__fail(PP_ERR_STATE, "process %d, which this process is to die with, has ended", (int)pid);
	return pp__watch(pid, word, -1);
}
