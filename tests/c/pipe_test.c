/* pipe_test.c - pp_pipe_...: what the header says of each call; nothing of a pipe that is freed is left.
 *
 * deadline: 100 s
 */
#include "require.h"

#include <polyproc.h>

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { BIG = 3000000 };

static uint8_t data[BIG], room[BIG];

static int descriptors(void)
{
	DIR *const dir = opendir("/proc/self/fd");
	int n = -1; /* the directory's own */

	REQUIRE(dir != NULL);
	for (struct dirent *each; (each = readdir(dir)) != NULL;)
		n += each->d_name[0] != '.';
	closedir(dir);
	return n;
}

static int readable(int fd)
{
	struct pollfd at = {.fd = fd, .events = POLLIN};

	return poll(&at, 1, 0) > 0 && (at.revents & POLLIN) != 0;
}

static pid_t forked(void)
{
	const pid_t pid = fork();

	REQUIRE(pid >= 0);
	if (pid == 0)
		alarm(60);
	return pid;
}

static void ended(pid_t pid, int code)
{
	int how;

	REQUIRE_EQ(waitpid(pid, &how, 0), pid);
	REQUIRE(WIFEXITED(how));
	REQUIRE_EQ(WEXITSTATUS(how), code);
}

static void sizes(void)
{
	static const size_t some[] = {0, 1, 7, 8, 9, 16383, 16384, 16385, 65536, 1 << 20, BIG};
	pp_pipe ends[2];
	uint64_t size;

	REQUIRE_STATUS(pp_pipe_create(PP_PIPE_DUPLEX, ends), PP_OK);
	for (int round = 0; round < 20; round++) {
		for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
			const pp_pipe from = ends[(round + i) & 1], to = ends[(round + i + 1) & 1];
			pp_pipe_message m;
			memset(data, round + (int)i, some[i]);
			REQUIRE_STATUS(pp_pipe_send(from, data, some[i], -1), PP_OK);
			REQUIRE_STATUS(pp_pipe_poll(to, 0, &size), PP_OK);
			REQUIRE_EQ(size, some[i]);
			if (some[i] > 0)
				REQUIRE_EQ(pp_pipe_recv(to, room, some[i] - 1, 0), PP_ERR_TOO_BIG);
			if (round & 1) {
				REQUIRE_EQ(pp_pipe_recv(to, room, sizeof room, 0), (int64_t)some[i]);
				REQUIRE(memcmp(room, data, some[i]) == 0);
			} else {
				REQUIRE_STATUS(pp_pipe_take(to, 0, &m), PP_OK);
				REQUIRE_EQ(m.size, some[i]);
				REQUIRE(memcmp(m.data, data, some[i]) == 0);
				pp_pipe_message_free(&m);
				pp_pipe_message_free(&m);
			}
			REQUIRE_STATUS(pp_pipe_poll(to, 0, NULL), PP_ERR_TIMEOUT);
		}
	}
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
}

static void errors(void)
{
	pp_pipe ends[2], other;
	uint8_t ref[32];
	uint32_t can;
	int32_t fd;

	REQUIRE_STATUS(pp_pipe_create(2, ends), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pipe_create(0, NULL), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	REQUIRE_STATUS(pp_pipe_info(ends[0], &can, NULL), PP_OK);
	REQUIRE_EQ(can, PP_PIPE_CAN_RECV);
	REQUIRE_STATUS(pp_pipe_info(ends[1], &can, NULL), PP_OK);
	REQUIRE_EQ(can, PP_PIPE_CAN_SEND);
	REQUIRE_STATUS(pp_pipe_send(ends[0], "", 0, 0), PP_ERR_STATE);
	REQUIRE_EQ(pp_pipe_recv(ends[1], room, 1, 0), PP_ERR_STATE);
	REQUIRE_STATUS(pp_pipe_send(ends[1], NULL, 1, 0), PP_ERR_INVALID);
	REQUIRE_EQ(pp_pipe_recv(ends[0], NULL, 1, 0), PP_ERR_INVALID);
	REQUIRE_EQ(pp_pipe_recv(ends[0], room, 1, 0), PP_ERR_TIMEOUT);
	REQUIRE_EQ(pp_pipe_recv_now(ends[0], room, 1), PP_ERR_TIMEOUT);
	const int64_t began = now_ms();
	REQUIRE_EQ(pp_pipe_recv(ends[0], room, 1, 60), PP_ERR_TIMEOUT);
	REQUIRE(now_ms() - began >= 60);
	/* 64 KiB and no more, and what fits in fits again. */
	int n = 0;
	while (pp_pipe_send(ends[1], data, 1000, 0) == PP_OK)
		n++;
	REQUIRE(n >= 60 && n <= 65);
	REQUIRE_STATUS(pp_pipe_send(ends[1], data, 1000, 30), PP_ERR_TIMEOUT);
	REQUIRE_EQ(pp_pipe_recv(ends[0], room, 1000, 0), 1000);
	REQUIRE_STATUS(pp_pipe_send(ends[1], data, 900, 1000), PP_OK);
	/* Big ones are bounded too. */
	for (; n > -1; n--)
		(void)pp_pipe_recv(ends[0], room, 1000, 0);
	for (n = 0; pp_pipe_send(ends[1], data, 1 << 20, 0) == PP_OK; n++) {
	}
	REQUIRE(n >= 8 && n <= 17);
	REQUIRE_STATUS(pp_pipe_send_fd(ends[1], -1, 0), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_send(ends[1], "", 0, -1), PP_ERR_EOF);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_ERR_HANDLE);
	REQUIRE_STATUS(pp_pipe_free(0), PP_OK);
	REQUIRE_STATUS(pp_pipe_descriptor(ends[0], &fd), PP_ERR_HANDLE);
	REQUIRE_EQ(pp_pipe_recv(ends[0], room, 1, -1), PP_ERR_HANDLE);
	/* References. */
	REQUIRE_STATUS(pp_pipe_export(ends[1], 1, ref), PP_OK);
	REQUIRE_STATUS(pp_pipe_import(ref, -1, &other), PP_OK);
	REQUIRE_STATUS(pp_pipe_import(ref, -1, &ends[0]), PP_ERR_NOT_FOUND);
	REQUIRE_STATUS(pp_pipe_free(other), PP_OK);
	REQUIRE_STATUS(pp_pipe_export(ends[1], 1, ref), PP_OK);
	pp_pipe_forget(ref);
	REQUIRE_STATUS(pp_pipe_import(ref, -1, &other), PP_ERR_NOT_FOUND);
	memset(ref, 0x5a, sizeof ref);
	REQUIRE_STATUS(pp_pipe_import(ref, -1, &other), PP_ERR_CORRUPT);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
}

static void ignore(int number)
{
	(void)number;
}

static void waits(void)
{
	struct sigaction act = {.sa_handler = ignore};
	pp_pipe ends[2];
	int32_t fd;

	sigaction(SIGUSR1, &act, NULL);
	for (int watched = 0; watched < 2; watched++) {
		REQUIRE_STATUS(pp_pipe_create(PP_PIPE_DUPLEX, ends), PP_OK);
		if (watched)
			REQUIRE_STATUS(pp_pipe_descriptor(ends[0], &fd), PP_OK);
		const pid_t parent = getpid(), pid = forked();
		if (pid == 0) {
			nanosleep(&(struct timespec){0, 100000000}, NULL);
			REQUIRE_EQ(kill(parent, SIGUSR1), 0);
			REQUIRE_EQ(pp_pipe_recv(ends[1], room, sizeof room, -1), 2);
			REQUIRE_STATUS(pp_pipe_send(ends[1], data, BIG, -1), PP_OK);
			_exit(0);
		}
		REQUIRE_EQ(pp_pipe_recv(ends[0], room, sizeof room, -1), PP_ERR_INTERRUPTED);
		REQUIRE_STATUS(pp_pipe_send(ends[0], "go", 2, -1), PP_OK);
		REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
		/* Longer than a slice: the sleeper goes on. */
		REQUIRE_EQ(pp_pipe_recv(ends[0], room, sizeof room, 20000), BIG);
		ended(pid, 0);
		REQUIRE_EQ(pp_pipe_recv(ends[0], room, sizeof room, -1), PP_ERR_EOF);
		REQUIRE_STATUS(pp_pipe_poll(ends[0], -1, NULL), PP_ERR_EOF);
		REQUIRE_STATUS(pp_pipe_send(ends[0], "", 0, -1), PP_ERR_EOF);
		REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	}
}

/* The last who has an end is killed: who waits at the other is told, be it to receive, or to send into a full pipe. */
static void killed(void)
{
	for (int sends = 0; sends < 2; sends++) {
		pp_pipe ends[2];
		int how;
		REQUIRE_STATUS(pp_pipe_create(PP_PIPE_DUPLEX, ends), PP_OK);
		const pid_t idle = forked();
		if (idle == 0) {
			REQUIRE_STATUS(pp_pipe_send(ends[1], "I was here", 10, -1), PP_OK);
			for (;;)
				pause();
		}
		REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
		REQUIRE_EQ(pp_pipe_recv(ends[0], room, sizeof room, 20000), 10);
		const pid_t killer = forked();
		if (killer == 0) {
			pp_pipe_free(ends[0]);
			nanosleep(&(struct timespec){0, 200000000}, NULL);
			kill(idle, SIGKILL);
			_exit(0);
		}
		const int64_t began = now_ms();
		if (sends) {
			int32_t status;
			while ((status = pp_pipe_send(ends[0], data, 10000, -1)) == PP_OK) {
			}
			REQUIRE_STATUS(status, PP_ERR_EOF);
		} else {
			REQUIRE_EQ(pp_pipe_recv(ends[0], room, sizeof room, -1), PP_ERR_EOF);
		}
		REQUIRE(now_ms() - began >= 150);
		REQUIRE_EQ(waitpid(idle, &how, 0), idle);
		ended(killer, 0);
		REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	}
}

/* Ends and descriptors on their way outlive who has sent them. */
static void travels(void)
{
	pp_pipe ends[2], other;
	uint8_t ref[32];
	int32_t fd;
	int how, tube[2];

	REQUIRE_STATUS(pp_pipe_create(PP_PIPE_DUPLEX, ends), PP_OK);
	const pid_t pid = forked();
	if (pid == 0) {
		pp_pipe made[2];
		REQUIRE_STATUS(pp_pipe_create(0, made), PP_OK);
		REQUIRE_STATUS(pp_pipe_send(made[1], data, BIG, -1), PP_OK);
		REQUIRE_STATUS(pp_pipe_export(made[0], 1, ref), PP_OK);
		REQUIRE_STATUS(pp_pipe_send(ends[1], ref, sizeof ref, -1), PP_OK);
		REQUIRE_EQ(pipe(tube), 0);
		for (int i = 0; i < 40; i++) /* more than one, to be found in the middle of others */
			REQUIRE_STATUS(pp_pipe_send_fd(ends[1], tube[i & 1], -1), PP_OK);
		REQUIRE_EQ(write(tube[1], "in the tube", 11), 11);
		kill(getpid(), SIGKILL);
	}
	REQUIRE_EQ(waitpid(pid, &how, 0), pid);
	REQUIRE(WIFSIGNALED(how));
	REQUIRE_STATUS(pp_pipe_recv_fd(ends[0], 0, &fd), PP_ERR_STATE);
	REQUIRE_EQ(pp_pipe_recv(ends[0], ref, sizeof ref, 0), 32);
	REQUIRE_EQ(pp_pipe_recv(ends[0], room, sizeof room, 0), PP_ERR_STATE);
	uint8_t mine[32];
	REQUIRE_STATUS(pp_fd_export(0, mine), PP_OK);
	REQUIRE_STATUS(pp_pipe_recv_fd(ends[0], 0, &fd), PP_OK);
	REQUIRE_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
	REQUIRE_EQ(read(fd, room, 100), 11);
	close(fd);
	REQUIRE_STATUS(pp_fd_import(mine, &fd), PP_OK);
	close(fd);
	REQUIRE_STATUS(pp_fd_import(mine, &fd), PP_ERR_NOT_FOUND);
	REQUIRE_STATUS(pp_pipe_import(ref, -1, &other), PP_OK);
	REQUIRE_EQ(pp_pipe_recv(other, room, sizeof room, 0), BIG);
	REQUIRE_EQ(pp_pipe_recv(other, room, sizeof room, -1), PP_ERR_EOF);
	REQUIRE_STATUS(pp_pipe_free(other), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
}

/* Nobody sends, by proof; and once somebody may, there is none. */
static void deserted(void)
{
	pp_pipe ends[2];
	pp_wait wait = {0};
	int32_t fd;

	REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
	wait.end = ends[0];
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_ERR_STATE);
	REQUIRE_STATUS(pp_waiting(&wait, 1), PP_OK);
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_OK);
	const pid_t idle = forked(); /* it says nothing */
	if (idle == 0)
		for (;;)
			pause();
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_ERR_STATE);
	REQUIRE_EQ(kill(idle, SIGKILL), 0);
	REQUIRE_EQ(waitpid(idle, NULL, 0), idle);
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_send(ends[1], "x", 1, -1), PP_OK);
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_ERR_STATE);
	REQUIRE_EQ(pp_pipe_recv(ends[0], room, 1, 0), 1);
	uint8_t ref[32];
	REQUIRE_STATUS(pp_pipe_export(ends[1], 1, ref), PP_OK);
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_ERR_STATE);
	pp_pipe_forget(ref);
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_waiting(NULL, 0), PP_OK);
	REQUIRE_STATUS(pp_pipe_deserted(ends[0]), PP_ERR_STATE);
	REQUIRE_STATUS(pp_pipe_deserted(ends[1]), PP_ERR_STATE);
	REQUIRE_STATUS(pp_pipe_descriptor(ends[0], &fd), PP_OK);
	REQUIRE(!readable(fd));
	REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
	REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
}

/* Shared memory in use, bytes. */
static uint64_t memory(void)
{
	int32_t fds[2];
	struct stat st;

	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	REQUIRE_EQ(fstat(fds[0], &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void leaks(void)
{
	uint64_t bytes = 0;

	for (int round = 0; round < 600; round++) {
		pp_pipe ends[2];
		uint8_t ref[32];
		REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
		/* With all that can lie in it. */
		REQUIRE_STATUS(pp_pipe_send(ends[1], data, 100000, 0), PP_OK);
		REQUIRE_STATUS(pp_pipe_send_fd(ends[1], 0, 0), PP_OK);
		REQUIRE_STATUS(pp_pipe_export(ends[1], 1, ref), PP_OK);
		pp_pipe_forget(ref);
		REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
		REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
		if (round == 99)
			bytes = memory();
	}
	REQUIRE(memory() <= bytes + (1 << 20));
}

/* A program that becomes a daemon closes all descriptors, and what it opens then may have the number of an end: that file is left alone. */
static void closed_by_the_program(void)
{
	for (int which = 0; which < 2; which++) {
		pp_pipe ends[2];
		int32_t fd;
		int own[2];
		char bytes[10];
		REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
		REQUIRE_STATUS(pp_pipe_info(ends[which], NULL, &fd), PP_OK);
		REQUIRE_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, own), 0);
		REQUIRE_EQ(dup2(own[0], fd), fd);
		REQUIRE_EQ(write(own[1], "mine", 4), 4);
		for (int i = 0; i < 3; i++) {
			(void)pp_pipe_send(ends[1], "x", 1, 20);
			(void)pp_pipe_recv(ends[0], bytes, sizeof bytes, 0);
			(void)pp_pipe_recv(ends[0], bytes, sizeof bytes, 20);
		}
		if (which == 0) {
			while (pp_pipe_recv(ends[0], bytes, sizeof bytes, 0) > 0)
				;
			REQUIRE_EQ(pp_pipe_recv(ends[0], bytes, sizeof bytes, -1), PP_ERR_EOF);
		}
		REQUIRE_STATUS(pp_pipe_free(ends[0]), PP_OK);
		REQUIRE_STATUS(pp_pipe_free(ends[1]), PP_OK);
		REQUIRE_EQ(recv(own[1], bytes, sizeof bytes, MSG_DONTWAIT), -1); /* nothing was written to it, */
		REQUIRE_EQ(recv(fd, bytes, sizeof bytes, MSG_DONTWAIT), 4);      /* nothing read, and it is open */
		REQUIRE(memcmp(bytes, "mine", 4) == 0);
		close(fd);
		close(own[0]);
		close(own[1]);
	}
}

/* References to ends: pp_ref_ and pp_pipe_ are the same, and each makes the end that it was made of. */
static void references(void)
{
	for (int which = 0; which < 2; which++)
		for (int way = 0; way < 4; way++) {
			pp_pipe ends[2], end = 0;
			uint8_t ref[PP_REF_SIZE];
			uint32_t can, own, kind = 0;
			char byte = 'r';
			REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
			REQUIRE_STATUS(way & 1 ? pp_ref_export(ends[which], ref) : pp_pipe_export(ends[which], 1, ref), PP_OK);
			REQUIRE_STATUS(way & 2 ? pp_ref_import(ref, PP_KIND_PIPE, &end, &kind) : pp_pipe_import(ref, -1, &end), PP_OK);
			REQUIRE_EQ(kind, way & 2 ? PP_KIND_PIPE : 0);
			REQUIRE_STATUS(pp_pipe_info(end, &can, NULL), PP_OK);
			REQUIRE_STATUS(pp_pipe_info(ends[which], &own, NULL), PP_OK);
			REQUIRE_EQ(can, own);
			REQUIRE_STATUS(pp_pipe_free(ends[which]), PP_OK);
			REQUIRE_STATUS(pp_pipe_send(which == 1 ? end : ends[1], &byte, 1, 1000), PP_OK);
			REQUIRE_EQ(pp_pipe_recv(which == 0 ? end : ends[0], &byte, 1, 1000), 1);
			REQUIRE_STATUS(pp_ref_import(ref, PP_KIND_PIPE, &end, NULL), PP_ERR_NOT_FOUND); /* its descriptor has been taken */
			REQUIRE_STATUS(pp_pipe_free(ends[which ^ 1]), PP_OK);
			REQUIRE_STATUS(pp_pipe_free(end), PP_OK);
			/* One that is forgotten leaves nothing: the other end sees that nobody is there. */
			REQUIRE_STATUS(pp_pipe_create(0, ends), PP_OK);
			REQUIRE_STATUS(way & 1 ? pp_ref_export(ends[which], ref) : pp_pipe_export(ends[which], 1, ref), PP_OK);
			REQUIRE_STATUS(pp_pipe_free(ends[which]), PP_OK);
			if (way & 2)
				REQUIRE_STATUS(pp_ref_forget(ref), PP_OK);
			else
				pp_pipe_forget(ref);
			REQUIRE_STATUS(which == 1 ? (int32_t)pp_pipe_recv(ends[0], &byte, 1, 5000) : pp_pipe_send(ends[1], &byte, 1, 5000), PP_ERR_EOF);
			REQUIRE_STATUS(pp_pipe_free(ends[which ^ 1]), PP_OK);
		}
}

/* A fork while another thread frees ends: the child has the descriptors of the ends that it has, and no other, whatever that thread was at. */
enum { ENDS = 400, FORKS = 20 };

static pp_pipe many[ENDS];

static void *free_many(void *start)
{
	pthread_barrier_wait(start);
	for (int i = 0; i < ENDS; i++)
		REQUIRE_STATUS(pp_pipe_free(many[i]), PP_OK);
	return NULL;
}

static void forks_amid_frees(void)
{
	for (int round = 0; round < 15; round++) {
		const int base = descriptors();
		pthread_barrier_t start;
		pthread_t thread;
		pid_t children[FORKS];
		pthread_barrier_init(&start, NULL, 2);
		for (int i = 0; i < ENDS; i += 2)
			REQUIRE_STATUS(pp_pipe_create(0, many + i), PP_OK);
		REQUIRE_EQ(pthread_create(&thread, NULL, free_many, &start), 0);
		pthread_barrier_wait(&start);
		for (int k = 0; k < FORKS; k++) {
			children[k] = forked();
			if (children[k] == 0) {
				int live = 0;
				int32_t fd;
				for (int i = 0; i < ENDS; i++)
					live += pp_pipe_descriptor(many[i], &fd) == PP_OK;
				_exit(descriptors() == base + live ? 0 : 1);
			}
		}
		for (int k = 0; k < FORKS; k++)
			ended(children[k], 0);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
		pthread_barrier_destroy(&start);
	}
}

int main(void)
{
	const int before = descriptors();
	int32_t fds[2];

	REQUIRE_STATUS(pp_family(fds, NULL, 0), PP_OK);
	sizes();
	errors();
	waits();
	killed();
	travels();
	references();
	closed_by_the_program();
	deserted();
	leaks();
	forks_amid_frees();
	REQUIRE_EQ(descriptors(), before + 2);
	return 0;
}
