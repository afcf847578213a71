/* family.c - see family.h. */
#include "front.h"

#include "family.h"
#include "heap_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define VARIABLE "POLYPROC_FAMILY"

static pid_t denied; /* who started this program as its worker or child; 0: nobody, or it may believe it */

/* Both descriptors + 1 in one word, so that whoever makes them first wins, and no lock can be left behind by a fork: heap << 32 | depot. */
static uint64_t family;

/* The file of the heap, written after family: 0 is not known yet. */
static uint64_t heap_device, heap_inode;

static void note_file(int heap)
{
	struct stat st;

	if (fstat(heap, &st) == 0) {
		__atomic_store_n(&heap_device, pp__device_of(&st), __ATOMIC_RELAXED);
		__atomic_store_n(&heap_inode, (uint64_t)st.st_ino, __ATOMIC_RELEASE);
	}
}

static void unpack(uint64_t both, int *heap_out, int *depot_out)
{
	*heap_out = (int)(both >> 32) - 1;
	*depot_out = (int)(both & UINT32_MAX) - 1;
}

static uint64_t pack(int heap, int depot)
{
	return (uint64_t)(heap + 1) << 32 | (uint32_t)(depot + 1);
}

/* A socket that is connected to itself takes datagrams from nobody else, whoever knows its name, and keeps them, and the descriptors in them,
 * as long as somebody has it open. */
static int32_t make_depot(int *fd_out)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	socklen_t size = sizeof name;
	const int fd = pp__above_stdio(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));

	/* An address of no length: the system chooses an abstract name. */
	if (fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof name.sun_family) == 0 && getsockname(fd, (struct sockaddr *)&name, &size) == 0 &&
	    connect(fd, (struct sockaddr *)&name, size) == 0) {
		/* Until it was connected anybody could send to its name. */
		char byte;
		while (recv(fd, &byte, 1, MSG_DONTWAIT) >= 0)
			;
		*fd_out = fd;
		return PP_OK;
	}
	const int32_t status = pp__fail(PP_ERR_SYSTEM, "the socket of the family: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	return status;
}

int32_t pp__family_fds(int *heap_out, int *depot_out)
{
	PP__NO_CANCEL();
	uint64_t both = __atomic_load_n(&family, __ATOMIC_ACQUIRE);

	if (both == 0) {
		int heap = -1, depot = -1;
		int32_t status = pp__heap_file(&heap);
		if (status != PP_OK)
			return status;
		if ((status = make_depot(&depot)) != PP_OK) {
			close(heap);
			return status;
		}
		const uint64_t made = pack(heap, depot);
		if (__atomic_compare_exchange_n(&family, &both, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
			both = made;
			note_file(heap);
		} else { /* another thread was first */
			close(heap);
			close(depot);
		}
	}
	unpack(both, heap_out, depot_out);
	return PP_OK;
}

bool pp__inherited_file(int fd, struct stat *st_out)
{
	const int seals = fcntl(fd, F_GET_SEALS);

	return fstat(fd, st_out) == 0 && S_ISREG(st_out->st_mode) && (st_out->st_uid == geteuid() || st_out->st_uid == 0) && seals >= 0 &&
	       (seals & F_SEAL_SHRINK) != 0;
}

/* take adopts the descriptors that a value of the variable names, if they are what it says: numbers may have been inherited by a
 * program whose descriptors were not. */
static int32_t take(const char *value)
{
	PP__NO_CANCEL();
	int heap, depot, type;
	unsigned long long device, inode;
	socklen_t size = sizeof type;
	struct stat st;
	uint64_t none = 0;
	char end;

	if (sscanf(value, "%d,%d,%llx:%llx%c", &heap, &depot, &device, &inode, &end) != 4 || heap < 0 || depot < 0)
		return pp__fail(PP_ERR_INVALID, "%.60s is no family", value);
	if (!pp__inherited_file(heap, &st) || st.st_dev != (dev_t)device || st.st_ino != (ino_t)inode ||
	    (uint64_t)st.st_size <= PP__SLAB_FIRST * PP__SLAB_SIZE ||
	    getsockopt(depot, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_DGRAM)
		return pp__fail(PP_ERR_INVALID, "descriptors %d and %d are not those of the family %.60s", heap, depot, value);
	if (!__atomic_compare_exchange_n(&family, &none, pack(heap, depot), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		if (none == pack(heap, depot))
			return PP_OK;
		return pp__fail(PP_ERR_STATE, "this process is of a family already");
	}
	note_file(heap);
	fcntl(heap, F_SETFD, FD_CLOEXEC);
	fcntl(depot, F_SETFD, FD_CLOEXEC);
	return PP_OK;
}

/* distrust takes all that a parent tells out of the environment of a program that has more rights than its caller. A program that was to be
 * a worker must not go on as if it had been started by a user: it would start workers of its own, and these again. */
static void distrust(void)
{
	const char *const worker = getenv("POLYPROC_WORKER"), *const process = getenv("POLYPROC_PROCESS");
	int parent = 0;
	unsigned flags = 0;

	if (worker != NULL && sscanf(worker, "%*d,%*u,%*u,%d", &parent) == 1)
		denied = (pid_t)parent;
	else if (process != NULL && sscanf(process, "%*d,%d,%u", &parent, &flags) == 2 && (flags & PP__CHILD_FN) != 0)
		denied = (pid_t)parent;
	unsetenv("POLYPROC_WORKER");
	unsetenv("POLYPROC_PROCESS");
	unsetenv(VARIABLE);
}

bool pp__denied(void)
{
	return denied != 0 && denied == getppid();
}

__attribute__((constructor)) static void on_load(void)
{
	if (getauxval(AT_SECURE) != 0)
		distrust();
	const char *const value = secure_getenv(VARIABLE);

	if (value != NULL) {
		take(value);
		unsetenv(VARIABLE); /* it is not for the programs that this one starts */
	}
}

int32_t pp_family(int32_t fds_out[2], char *env_out, size_t env_size)
{
	int heap, depot;
	struct stat st;

	if (fds_out == NULL || (env_out == NULL && env_size > 0))
		return pp__fail(PP_ERR_INVALID, "pp_family: NULL");
	const int32_t status = pp__family_fds(&heap, &depot);
	if (status != PP_OK)
		return status;
	const uint64_t inode = __atomic_load_n(&heap_inode, __ATOMIC_ACQUIRE);
	int fault = fstat(heap, &st) == 0 ? 0 : errno;
	/* A program that becomes a daemon closes all descriptors, and what it opens then may have the same number. */
	if (fault == 0 && inode != 0 && (st.st_ino != inode || pp__device_of(&st) != __atomic_load_n(&heap_device, __ATOMIC_RELAXED)))
		fault = EBADF;
	if (fault != 0)
		return pp__fail(PP_ERR_SYSTEM, "the program has closed the descriptors of the family's shared memory: %s", strerror(fault));
	fds_out[0] = heap;
	fds_out[1] = depot;
	const int n = snprintf(env_out, env_size, VARIABLE "=%d,%d,%llx:%llx", heap, depot, (unsigned long long)st.st_dev,
	                       (unsigned long long)st.st_ino);
	if (env_size > 0 && (size_t)n >= env_size)
		return pp__fail(PP_ERR_TOO_BIG, "pp_family: %d bytes are needed", n + 1);
	return PP_OK;
}

int32_t pp_family_join(const char *env)
{
	if (env == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_family_join: NULL");
	return take(strncmp(env, VARIABLE "=", sizeof VARIABLE) == 0 ? env + sizeof VARIABLE : env);
}
