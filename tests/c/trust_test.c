/* trust_test.c - whose files, descriptors and environment are believed: those of this user only, and none in a set-uid program.
 *
 * deadline: 60 s
 */
#include "scenarios.h"

#include <sched.h>
#include <stdbool.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
enum { STRANGER = 65534 };

static char queue_name[40], queue_path[80];

static void need_root(void)
{
	if (geteuid() == 0)
		return;
	printf("skipped: only root can be somebody else\n");
	exit(0);
}

static void become(uid_t uid)
{
	REQUIRE_EQ(setresgid(uid, uid, uid), 0);
	REQUIRE_EQ(setresuid(uid, uid, uid), 0);
}

static void collect(pid_t child)
{
	int status;

	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 0);
}

/* ---- named queues ------------------------------------------------------------------------------------------------------------ */

static int32_t open_queue(pp_queue *queue_out)
{
	pp_queue_options options = PP_QUEUE_OPTIONS_INIT;

	options.name = queue_name;
	return pp_queue_create(&options, queue_out);
}

static void name_it(const char *what)
{
	snprintf(queue_name, sizeof queue_name, "test-%s-%d", what, (int)getpid());
	snprintf(queue_path, sizeof queue_path, "/dev/shm/pp.q.%s", queue_name);
}

/* refused: the name is there, and is not opened. */
static void refused(const char *why)
{
	pp_queue queue;

	REQUIRE_STATUS(open_queue(&queue), PP_ERR_PERMISSION);
	if (strstr(pp_last_error(), why) == NULL) {
		fprintf(stderr, "\"%s\" does not say \"%s\"\n", pp_last_error(), why);
		exit(1);
	}
}

static void put_one(void)
{
	pp_queue queue;

	REQUIRE_STATUS(open_queue(&queue), PP_OK);
	REQUIRE_STATUS(pp_queue_put(queue, "hello", 5, PP_RAW, -1), PP_OK);
}

static void get_one(void)
{
	pp_queue queue;
	char text[8];
	size_t size;

	REQUIRE_STATUS(open_queue(&queue), PP_OK);
	REQUIRE_STATUS(pp_queue_get(queue, text, sizeof text, 5000, &size), PP_OK);
	REQUIRE(size == 5 && memcmp(text, "hello", 5) == 0);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
}

static void strangers_queue(void)
{
	need_root();
	name_it("stranger");
	const pid_t stranger = fork();
	if (stranger == 0) {
		become(STRANGER);
		put_one();
		REQUIRE_EQ(chmod(queue_path, 0666), 0);
		_exit(0);
	}
	collect(stranger);
	refused("belongs to user 65534");
	REQUIRE_EQ(chmod(queue_path, 0600), 0);
	refused("belongs to user 65534");
	REQUIRE_EQ(unlink(queue_path), 0);
	/* And the other way round. */
	put_one();
	const pid_t another = fork();
	if (another == 0) {
		become(STRANGER);
		refused("Permission denied");
		REQUIRE_STATUS(pp_queue_unlink(queue_name), PP_ERR_PERMISSION);
		_exit(0);
	}
	collect(another);
	get_one();
	REQUIRE_EQ(unlink(queue_path), 0);
}

static void not_alone(void)
{
	char other[100];

	name_it("shared");
	put_one();
	static const mode_t modes[] = {0640, 0604, 0660, 0622, 0611, 0777};
	for (size_t i = 0; i < COUNT(modes); i++) {
		REQUIRE_EQ(chmod(queue_path, modes[i]), 0);
		refused("others have access");
	}
	REQUIRE_EQ(chmod(queue_path, 0600), 0);
	snprintf(other, sizeof other, "%s.link", queue_path);
	REQUIRE_EQ(link(queue_path, other), 0);
	refused("another link");
	REQUIRE_EQ(unlink(other), 0);
	get_one();
	REQUIRE_EQ(rename(queue_path, other), 0);
	REQUIRE_EQ(symlink(other, queue_path), 0);
	refused(queue_path);
	REQUIRE(unlink(queue_path) == 0 && unlink(other) == 0);
	REQUIRE_EQ(mkfifo(queue_path, 0600), 0);
	refused("no regular file");
	REQUIRE_EQ(unlink(queue_path), 0);
	REQUIRE_EQ(mkdir(queue_path, 0700), 0);
	refused(queue_path);
	REQUIRE_EQ(rmdir(queue_path), 0);
}

/* A container that is started again has another pid namespace, and finds the queue in the same /dev/shm. */
static void in_new_namespace(void (*run)(void))
{
	const pid_t outer = fork();

	REQUIRE(outer >= 0);
	if (outer == 0) {
		if (unshare(CLONE_NEWPID) != 0) {
			printf("skipped: a pid namespace: %s\n", strerror(errno));
			fflush(stdout);
			_exit(0);
		}
		const pid_t inner = fork();
		if (inner == 0) {
			REQUIRE_EQ(getpid(), 1);
			run();
			_exit(0);
		}
		collect(inner);
		_exit(0);
	}
	collect(outer);
}

static void get_in_vain(void)
{
	pp_queue queue;

	REQUIRE_STATUS(open_queue(&queue), PP_ERR_UNSUPPORTED);
	REQUIRE(strstr(pp_last_error(), "pid namespace") != NULL);
}

/* One that dies in the middle, so that what it held is to be taken back: a message that it took, and not acknowledged. */
static void lease_and_die(void)
{
	pp_queue queue;
	pp_message message;

	REQUIRE_STATUS(open_queue(&queue), PP_OK);
	REQUIRE_STATUS(pp_queue_lease(queue, 5000, &message), PP_OK);
	_exit(0);
}

/* Two that come at the same time meet each other's shared lock, and neither is one of the other namespace. */
static void restarted_for_several(void)
{
	int ready[2];
	char byte;
	pp_queue queue;

	name_it("several");
	in_new_namespace(put_one);
	REQUIRE_EQ(pipe2(ready, O_CLOEXEC), 0);
	const pid_t other = fork();
	if (other == 0) {
		const int fd = open(queue_path, O_RDWR | O_CLOEXEC);
		REQUIRE(fd >= 0 && flock(fd, LOCK_SH) == 0); /* and will ask for the exclusive one */
		REQUIRE_EQ(write(ready[1], "", 1), 1);
		usleep(20000);
		_exit(0);
	}
	REQUIRE_EQ(read(ready[0], &byte, 1), 1);
	REQUIRE_STATUS(open_queue(&queue), PP_OK);
	collect(other);
	const int fd = open(queue_path, O_RDWR | O_CLOEXEC);
	REQUIRE(fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK); /* who has the queue has the shared lock */
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	close(fd);
	REQUIRE_EQ(unlink(queue_path), 0);
}

static void restarted(void)
{
	pp_queue queue;

	name_it("restart");
	in_new_namespace(put_one);
	in_new_namespace(lease_and_die);
	in_new_namespace(get_one);
	in_new_namespace(put_one);
	get_one();
	/* We have it no more: the next may come. While one has it, no other namespace may. */
	in_new_namespace(put_one);
	REQUIRE_STATUS(open_queue(&queue), PP_OK);
	in_new_namespace(get_in_vain);
	/* A child that has it keeps it, too; by its mapping, without descriptors. */
	int ready[2];
	REQUIRE_EQ(pipe(ready), 0);
	const pid_t child = fork();
	if (child == 0) {
		REQUIRE_STATUS(pp_queue_put(queue, "hello", 5, PP_RAW, -1), PP_OK);
		for (int fd = 3; fd < 256; fd++)
			if (fd != ready[1])
				close(fd);
		REQUIRE_EQ(write(ready[1], "", 1), 1);
		for (;;)
			pause();
	}
	char byte;
	REQUIRE_EQ(read(ready[0], &byte, 1), 1);
	REQUIRE_STATUS(pp_queue_free(queue), PP_OK);
	in_new_namespace(get_in_vain);
	int status;
	kill(child, SIGKILL);
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	in_new_namespace(get_one);
	in_new_namespace(get_one);
	REQUIRE_EQ(unlink(queue_path), 0);
}

/* ---- the environment ---------------------------------------------------------------------------------------------------------- */

/* victim is a program that uses the library as any does. It ends with what it has believed. */
enum { BELIEVED_PAYLOAD = 16, BELIEVED_FAMILY = 2, BELIEVED_WORKER = 4, LEFT_IN_ENVIRONMENT = 8, NO_SET_UID = 100 };

static int victim(const char *family)
{
	const void *data;
	size_t size;
	int32_t fds[2];
	char env[100];
	struct stat st;
	int believed = 0;

	REQUIRE_EQ(stat("/proc/self/exe", &st), 0);
	if ((st.st_mode & S_ISUID) != 0 && geteuid() != st.st_uid)
		return NO_SET_UID;
	REQUIRE_STATUS(pp_init(NULL, NULL), PP_OK);
	believed |= pp_worker_pending() ? BELIEVED_WORKER : 0;
	believed |= pp_payload(&data, &size) == PP_OK ? BELIEVED_PAYLOAD : 0;
	REQUIRE_STATUS(pp_family(fds, env, sizeof env), PP_OK);
	believed |= strcmp(strchr(env, ':'), strchr(family, ':')) == 0 ? BELIEVED_FAMILY : 0;
	static const char *const names[] = {"POLYPROC_PROCESS", "POLYPROC_FAMILY", "POLYPROC_WORKER"};
	for (size_t i = 0; i < COUNT(names); i++)
		believed |= getenv(names[i]) != NULL ? LEFT_IN_ENVIRONMENT : 0;
	return believed;
}

/* attack starts the program with everything that a parent would tell it, by descriptors of its own. */
static _Noreturn void attack(const char *path, pid_t parent, bool function)
{
	char process[80], family[120], worker[80];
	int32_t fds[2];
	const int payload = memfd_create("payload", MFD_ALLOW_SEALING);

	REQUIRE_EQ(write(payload, "payload", 7), 7);
	REQUIRE_EQ(fcntl(payload, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
	REQUIRE_STATUS(pp_family(fds, family, sizeof family), PP_OK);
	fcntl(fds[0], F_SETFD, 0);
	fcntl(fds[1], F_SETFD, 0);
	snprintf(process, sizeof process, "POLYPROC_PROCESS=%d,%d,%d", payload, (int)parent, function ? 2 : 0);
	snprintf(worker, sizeof worker, "POLYPROC_WORKER=%d,0,1,%d", fds[0], (int)parent);
	char *const arguments[] = {(char *)(uintptr_t)path, (char *)(uintptr_t)"victim", family, NULL};
	char *const environment[] = {process, family, worker, NULL};
	execve(path, arguments, environment);
	REQUIRE(!"execve");
	abort();
}

static int believed_by(const char *path, uid_t attacker, bool as_child)
{
	int status;
	const pid_t parent = getpid(), child = fork();

	if (child == 0) {
		if (attacker != 0)
			become(attacker);
		/* A worker's parent must be the one that it is told. */
		attack(path, as_child ? parent : parent + 1, as_child);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static char own_path[300];

/* So that the next two prove something. */
static void own_environment(void)
{
	REQUIRE_EQ(believed_by(own_path, 0, false) & (BELIEVED_PAYLOAD | BELIEVED_FAMILY), BELIEVED_PAYLOAD | BELIEVED_FAMILY);
}

/* A copy of this program in a directory that anybody may enter. */
static void copy_program(char *path, size_t size, mode_t mode)
{
	char directory[] = "/tmp/polyproc-trust-XXXXXX", command[500];

	REQUIRE(mkdtemp(directory) != NULL && chmod(directory, 0755) == 0);
	snprintf(path, size, "%s/victim", directory);
	snprintf(command, sizeof command, "cp '%s' '%s'", own_path, path);
	REQUIRE_EQ(system(command), 0);
	REQUIRE_EQ(chmod(path, mode), 0);
}

static void remove_program(char *path)
{
	unlink(path);
	*strrchr(path, '/') = '\0';
	rmdir(path);
}

/* A program with root's rights that nobody starts believes nothing, and leaves nothing to those that it starts. */
static void set_uid(void)
{
	char path[100];

	need_root();
	copy_program(path, sizeof path, 04755);
	const int believed = believed_by(path, STRANGER, false);
	const int as_child = believed_by(path, STRANGER, true);
	remove_program(path);
	if (believed == NO_SET_UID) {
		printf("skipped: /tmp has no set-uid programs\n");
		return;
	}
	REQUIRE_EQ(believed, 0);
	/* It does not go on as if a user had started it, where it was to be a child. */
	REQUIRE_EQ(as_child, 1);
}

/* Nor does root's program believe descriptors of a stranger, which su(1) hands over. */
static void strangers_descriptors(void)
{
	char process[80], family[120];
	int32_t fds[2];
	int pair[2], status;
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(3 * sizeof(int))];
	} control;

	need_root();
	REQUIRE_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	const pid_t stranger = fork();
	if (stranger == 0) {
		become(STRANGER);
		const int payload = memfd_create("payload", MFD_ALLOW_SEALING);
		REQUIRE_EQ(write(payload, "payload", 7), 7);
		REQUIRE_EQ(fcntl(payload, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
		/* As the library makes them. Its own family this process has from root. */
		struct stat st;
		fds[0] = memfd_create("heap", MFD_ALLOW_SEALING);
		fds[1] = socket(AF_UNIX, SOCK_DGRAM, 0);
		REQUIRE_EQ(ftruncate(fds[0], (off_t)1 << 36), 0);
		REQUIRE_EQ(fcntl(fds[0], F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW), 0);
		REQUIRE_EQ(fstat(fds[0], &st), 0);
		snprintf(family, sizeof family, "POLYPROC_FAMILY=%d,%d,%llx:%llx", fds[0], fds[1], (unsigned long long)st.st_dev,
		         (unsigned long long)st.st_ino);
		struct iovec bytes = {family, sizeof family};
		struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
		struct cmsghdr *const head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(3 * sizeof(int));
		memcpy(CMSG_DATA(head), (int[]){fds[0], fds[1], payload}, 3 * sizeof(int));
		REQUIRE_EQ(sendmsg(pair[1], &message, 0), sizeof family);
		_exit(0);
	}
	struct iovec bytes = {family, sizeof family};
	struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int got[3], heap, depot;
	char identity[60];
	REQUIRE_EQ(recvmsg(pair[0], &message, 0), sizeof family);
	memcpy(got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
	collect(stranger);
	REQUIRE_EQ(sscanf(family, "POLYPROC_FAMILY=%d,%d,%59s", &heap, &depot, identity), 3);
	snprintf(family, sizeof family, "POLYPROC_FAMILY=%d,%d,%s", got[0], got[1], identity);
	snprintf(process, sizeof process, "POLYPROC_PROCESS=%d,%d,0", got[2], (int)getpid());
	const pid_t child = fork();
	if (child == 0)
		execve(own_path, (char *[]){own_path, (char *)(uintptr_t)"victim", family, NULL}, (char *[]){process, family, NULL});
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE_EQ(status, 0);
}

/* A file that can shrink is no heap, whatever is said of it. */
static void plain_file(void)
{
	char path[] = "/tmp/polyproc-plain-XXXXXX", env[120];
	int32_t fds[2];
	struct stat st;

	const int fd = mkstemp(path), depot = socket(AF_UNIX, SOCK_DGRAM, 0);
	REQUIRE(fd >= 0 && depot >= 0 && unlink(path) == 0);
	REQUIRE_EQ(ftruncate(fd, (off_t)1 << 36), 0);
	REQUIRE_EQ(fstat(fd, &st), 0);
	snprintf(env, sizeof env, "POLYPROC_FAMILY=%d,%d,%llx:%llx", fd, depot, (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	REQUIRE_STATUS(pp_family_join(env), PP_ERR_INVALID);
	REQUIRE_STATUS(pp_family(fds, env, sizeof env), PP_OK);
	REQUIRE(fds[0] != fd);
}

static const scenario scenarios[] = {
	{"strangers_queue", strangers_queue, 0, 0},
	{"not_alone", not_alone, 0, 0},
	{"restarted", restarted, 0, 0},
	{"restarted_for_several", restarted_for_several, 0, 0},
	{"own_environment", own_environment, 0, 0},
	{"set_uid", set_uid, 0, 0},
	{"strangers_descriptors", strangers_descriptors, 0, 0},
	{"plain_file", plain_file, 0, 0},
};

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "victim") == 0)
		return victim(argv[2]);
	const ssize_t n = readlink("/proc/self/exe", own_path, sizeof own_path - 1);
	REQUIRE(n > 0);
	own_path[n] = '\0';
	return run_scenarios(argc, argv, scenarios, COUNT(scenarios));
}
