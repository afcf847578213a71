/* depot.c - see depot.h. */
#include "front.h"

#include "depot.h"
#include "family.h"
#include "pipe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NAME_SIZE 32u
/* What one process's limit on socket memory lets lie there. */
#define SOCKET_ROOM (4 << 20)

typedef struct {
	uint64_t word[4];
} name;

/* look receives the first datagram, or only looks at it. Returns 1; 0: there is none; -1 with errno. fd_out NULL: without the descriptor; *fd_out
 * is -1 if there was none. */
static int look(int depot, int flags, name *name_out, int *fd_out)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec bytes = {name_out, NAME_SIZE};
	struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};

	if (fd_out != NULL) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
		*fd_out = -1;
	}
	const ssize_t n = recvmsg(depot, &message, flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == EAGAIN ? 0 : -1;
	if ((size_t)n < NAME_SIZE) /* not ours */
		memset((char *)name_out + n, 0xff, NAME_SIZE - (size_t)n);
	if (fd_out != NULL) {
		struct cmsghdr *const found = CMSG_FIRSTHDR(&message);
		if (found != NULL && found->cmsg_level == SOL_SOCKET && found->cmsg_type == SCM_RIGHTS && found->cmsg_len >= CMSG_LEN(sizeof(int)))
			memcpy(fd_out, CMSG_DATA(found), sizeof(int));
	}
	return 1;
}

/* leave sends a datagram. Returns 0 or errno. */
static int leave(int depot, const name *as, int fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	name copy = *as;
	struct iovec bytes = {&copy, NAME_SIZE};
	struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};

	if (fd >= 0) {
		memset(&control, 0, sizeof control);
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(int));
	}
	return sendmsg(depot, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? errno : 0;
}

/* turn puts the first datagram behind the last. Whoever dies in it leaves two of it. Returns 0 or errno. */
static int turn(int depot)
{
	name first;
	int fd;

	const int n = look(depot, MSG_PEEK, &first, &fd);
	if (n <= 0)
		return n == 0 ? 0 : errno;
	int error = leave(depot, &first, fd);
	if (fd >= 0)
		close(fd);
	if (error == 0 && look(depot, 0, &first, NULL) < 0)
		error = errno;
	return error;
}

/* tidy goes once around and drops what is there twice. It may die too: then the next one does it. */
static void drop_doubles(int depot)
{
	name *seen = NULL, *more, first;
	size_t count = 0, room = 0;

	/* A mark tells where the round ends; one that a dead tidier left is dropped as it comes by. */
	const name mark = {{0, 0, (uint64_t)getpid(), pp__now_ns()}};
	if (leave(depot, &mark, -1) != 0)
		return;
	while (look(depot, MSG_PEEK, &first, NULL) > 0) {
		bool twice = first.word[0] == 0;
		for (size_t i = 0; !twice && i < count; i++)
			twice = memcmp(&seen[i], &first, NAME_SIZE) == 0;
		if (twice) {
			if (look(depot, 0, &first, NULL) <= 0 || memcmp(&first, &mark, NAME_SIZE) == 0)
				break;
			continue;
		}
		if (count == room) {
			if ((more = realloc(seen, (room = 2 * room + 64) * sizeof *seen)) == NULL)
				break;
			seen = more;
		}
		seen[count++] = first;
		if (turn(depot) != 0)
			break;
	}
	free(seen);
}

static int32_t enter(pp__heap *heap, int *depot_out, pp__depot **at_out)
{
	int file;
	bool recovered;
	pp__depot *const at = pp__at(heap, PP__DEPOT_OFF);

	int32_t status = pp__family_fds(&file, depot_out);
	if (status == PP_OK)
		status = pp__mutex_lock(heap, &at->lock, UINT64_MAX, NULL, NULL, &recovered);
	if (status != PP_OK)
		return status;
	if (recovered)
		drop_doubles(*depot_out);
	*at_out = at;
	return PP_OK;
}

int32_t pp__depot_put(pp__heap *heap, const uint64_t as[4], int fd)
{
	PP__NO_CANCEL();
	static bool wide;
	int depot;
	pp__depot *at;
	name label;
	const int room = SOCKET_ROOM;

	if (fd < 0)
		return pp__fail(PP_ERR_INVALID, "%d is no descriptor", fd);
	memcpy(&label, as, sizeof label);
	const int32_t status = enter(heap, &depot, &at);
	if (status != PP_OK)
		return status;
	if (!wide) {
		(void)setsockopt(depot, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
		wide = true;
	}
	const int error = leave(depot, &label, fd);
	pp__mutex_unlock(&at->lock);
	if (error == 0)
		return PP_OK;
	if (error == EBADF)
		return pp__fail(PP_ERR_INVALID, "descriptor %d is not open", fd);
	if (error == EAGAIN || error == ENOBUFS || error == ENOMEM || error == ETOOMANYREFS)
		return pp__fail(PP_ERR_NOMEM, "too many descriptors are on their way between processes: %s", strerror(error));
	return pp__fail(PP_ERR_SYSTEM, "descriptor %d cannot be sent: %s", fd, strerror(error));
}

int32_t pp__depot_take(pp__heap *heap, const uint64_t as[4], int *fd_out)
{
	PP__NO_CANCEL();
	int depot, error = 0, fd = -1;
	pp__depot *at;
	name label, first, stop;
	bool turned = false, found = false;

	memcpy(&label, as, sizeof label);
	const int32_t status = enter(heap, &depot, &at);
	if (status != PP_OK)
		return status;
	while (look(depot, MSG_PEEK, &first, NULL) > 0) {
		if (memcmp(&first, &label, NAME_SIZE) == 0) {
			found = true;
			if (fd_out == NULL) {
				(void)look(depot, 0, &first, NULL);
				break;
			}
			/* Looked at first: if there is no number for it, it stays. */
			if (look(depot, MSG_PEEK, &first, &fd) <= 0 || fd < 0)
				error = errno != 0 ? errno : EMFILE;
			else
				(void)look(depot, 0, &first, NULL);
			break;
		}
		if (turned && memcmp(&first, &stop, NAME_SIZE) == 0)
			break;
		if (!turned) {
			stop = first;
			turned = true;
		}
		if ((error = turn(depot)) != 0)
			break;
	}
	pp__mutex_unlock(&at->lock);
	if (error != 0)
		return pp__fail(error == EMFILE || error == ENFILE || error == EAGAIN ? PP_ERR_NOMEM : PP_ERR_SYSTEM,
		                "a descriptor cannot be received: %s", strerror(error));
	if (!found)
		return pp__fail(PP_ERR_NOT_FOUND, "the descriptor is not on its way: it was received before, or never sent");
	if (fd_out != NULL)
		*fd_out = fd;
	return PP_OK;
}
