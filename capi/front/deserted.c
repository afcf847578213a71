/* deserted.c - pp_waiting and pp_pipe_deserted: see pipe.h, DESERTED. */
#include "heap_private.h"

#include "pipe.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 256 };

#define KERNEL_THREAD 0x00200000ul /* PF_KTHREAD */

static pp__post *post_at(const pp__heap *heap, uint32_t i)
{
	return (pp__post *)(void *)(heap->base + PP__POSTS_OFF) + i;
}

/* way_of finds where the messages for an end come from: 0 if it is no handle, or only sends. */
static uint64_t way_of(pp_pipe end, const pp__pipe **pipe_out, uint64_t *peer_out)
{
	pp__handle *const handle = pp__pin(end, PP__KIND_PIPE);
	uint64_t off = 0;

	if (handle == NULL)
		return 0;
	const uint64_t peer = (handle->words[0] ^ 1) & 1;
	const pp__pipe *const pipe = pp__at(handle->heap, handle->off);
	if (peer == 1 || (__atomic_load_n(&pipe->object.flags, __ATOMIC_RELAXED) & PP__PIPE_DUPLEX) != 0)
		off = handle->off + offsetof(pp__pipe, way) + peer * sizeof(pp__pipe_way);
	if (pipe_out != NULL) {
		*pipe_out = pipe;
		*peer_out = peer;
	}
	pp__unpin(handle);
	return off;
}

int32_t pp_waiting(const pp_wait *waits, size_t n)
{
	static uint32_t ready; /* the owner whose post has storage */
	uint64_t words[PP__POST_WAITS] = {0};
	int32_t result = PP_OK;

	if (waits == NULL && n > 0)
		return pp__fail(PP_ERR_INVALID, "pp_waiting: NULL");
	if (n > PP__POST_WAITS) {
		result = pp__fail(PP_ERR_TOO_BIG, "pp_waiting: %zu waits, %u is the most", n, PP__POST_WAITS);
		n = 0;
	}
	for (size_t i = 0; i < n; i++) {
		if (waits[i].pid > 0) {
			words[i] = (uint64_t)waits[i].pid;
		} else if ((words[i] = way_of(waits[i].end, NULL, NULL)) != 0) {
			words[i] |= PP__POST_WAY;
		} else {
			n = 0;
			result = pp__fail(PP_ERR_HANDLE, "pp_waiting: not an end of a pipe that receives");
		}
	}
	pp__heap *const heap = pp__family_heap();
	const uint32_t me = heap != NULL ? pp__join(heap) : 0;
	if (me == 0)
		return pp__failed();
	const uint32_t place = (me & 0xfff) - 1;
	if (place >= PP__MEMBERS)
		return pp__fail(PP_ERR_NOMEM, "pp_waiting: no place in the table of members");
	pp__post *const post = post_at(heap, place);
	if (ready != me) {
		const int32_t status = pp__heap_reserve(heap, PP__POSTS_OFF + place * sizeof(pp__post), sizeof(pp__post));
		if (status != PP_OK)
			return pp__fail(status, "pp_waiting: no memory");
		ready = me;
	}
	__atomic_store_n(&post->seq, post->seq | 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&post->owner, me, __ATOMIC_SEQ_CST);
	__atomic_store_n(&post->pid, (int32_t)getpid(), __ATOMIC_SEQ_CST);
	__atomic_store_n(&post->count, (uint32_t)n, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < PP__POST_WAITS; i++)
		__atomic_store_n(&post->waits[i], words[i], __ATOMIC_SEQ_CST);
	__atomic_store_n(&post->seq, post->seq + 1, __ATOMIC_SEQ_CST);
	return result;
}

/* What a proof stands on. */
typedef struct {
	pp__heap *heap;
	const pp__pipe *pipe;
	const pp__pipe_way *way;
	uint64_t way_off;
	uint64_t peer;
	uint64_t inode;    /* of the peer's socket, which is looked for */
	int32_t pids[MOST]; /* the holders, then those they wait for */
	uint32_t places[MOST];
	uint32_t seqs[MOST];
	uint32_t count, holders;
} proof;

static bool add(proof *p, int32_t pid)
{
	for (uint32_t i = 0; i < p->count; i++)
		if (p->pids[i] == pid)
			return true;
	if (p->count == MOST)
		return false;
	p->pids[p->count++] = pid;
	return true;
}

/* harmless reports whether a process whose descriptors cannot be read has none all the same: it has ended, has never had any, or is older than the pipe and so could
 * have been given only the descriptor, which is of no use without the memory. */
static bool harmless(const proof *p, const char *pid)
{
	PP__NO_CANCEL();
	const uint64_t born = __atomic_load_n(&p->pipe->born, __ATOMIC_RELAXED);
	char path[64], text[1024], *at;
	char state;
	unsigned long flags;
	unsigned long long start;

	snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT || errno == ESRCH;
	const ssize_t n = read(fd, text, sizeof text - 1);
	const int error = errno;
	close(fd);
	if (n <= 0)
		return n < 0 && error == ESRCH;
	text[n] = '\0';
	if ((at = strrchr(text, ')')) == NULL ||
	    sscanf(at + 1, " %c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state, &flags, &start) != 3)
		return false;
	return state == 'Z' || state == 'X' || (flags & KERNEL_THREAD) != 0 || (born != 0 && start < born);
}

/* scan adds every process that has the other end's socket. */
static bool scan(proof *p)
{
	char path[64], wanted[40], found[40];
	bool well = true;
	DIR *const all = opendir("/proc");

	if (all == NULL)
		return false;
	snprintf(wanted, sizeof wanted, "socket:[%llu]", (unsigned long long)p->inode);
	for (struct dirent *each; well && (errno = 0, each = readdir(all)) != NULL;) {
		if (!isdigit((unsigned char)each->d_name[0]))
			continue;
		snprintf(path, sizeof path, "/proc/%.20s/fd", each->d_name);
		DIR *const fds = opendir(path);
		if (fds == NULL) {
			well = errno == ENOENT || errno == ESRCH || (errno == EACCES && harmless(p, each->d_name));
			continue;
		}
		bool has = false;
		for (struct dirent *fd; (errno = 0, fd = readdir(fds)) != NULL;) {
			const ssize_t n = readlinkat(dirfd(fds), fd->d_name, found, sizeof found - 1);
			if (n < 0) {
				if (errno == EACCES && !harmless(p, each->d_name))
					well = false;
				continue;
			}
			found[n] = '\0';
			if (strcmp(found, wanted) == 0) {
				has = true;
				break;
			}
		}
		if (!has && errno != 0 && errno != ENOENT && errno != ESRCH)
			well = false;
		closedir(fds);
		if (has)
			well = well && add(p, atoi(each->d_name));
	}
	closedir(all);
	return well;
}

/* plausible looks at the references to the pipe, before anything is read from /proc: none is being sent; and, if others than this process have one, one of them waits. */
static bool plausible(const proof *p)
{
	pp__heap *const heap = p->heap;
	const uint32_t me = pp__join(heap), top = pp__refs_top(heap);
	const uint64_t off = (uint64_t)((const uint8_t *)p->pipe - heap->base);
	const uint64_t *const cells = (const uint64_t *)(const void *)(heap->base + PP__REFS_OFF);
	bool others = false, wait = false;
	char path[32];

	for (uint32_t i = 1; i < top && i < PP__REFS_MOST; i++) {
		const uint64_t cell = __atomic_load_n(&cells[i], __ATOMIC_SEQ_CST);
		const uint32_t owner = (uint32_t)(cell >> 32), place = (owner & 0xfff) - 1;
		if ((uint32_t)cell != off / 128 || owner == me || owner == 0)
			continue;
		if (pp__in_flight(owner))
			return false;
		/* A place of this process that is not its own is for a child that died before it took it, or has not yet: that one has descriptors. */
		const int32_t pid = pp__owner_pid(heap, owner);
		if (place >= PP__MEMBERS || pid == (int32_t)getpid() || pp__gone(heap, owner))
			continue;
		others = true;
		/* One that /proc hides (hidepid) may have the other end, and scan would not see it. */
		snprintf(path, sizeof path, "/proc/%d", (int)pid);
		if (access(path, F_OK) != 0)
			return false;
		wait = wait || (__atomic_load_n(&post_at(heap, place)->owner, __ATOMIC_SEQ_CST) == owner &&
		                __atomic_load_n(&post_at(heap, place)->count, __ATOMIC_SEQ_CST) != 0);
	}
	return wait || !others;
}

/* read_post finds the post of a process and adds whom it waits for. False: it has none, or waits for something else. */
static bool read_post(proof *p, uint32_t i)
{
	for (uint32_t place = 0; place < PP__MEMBERS; place++) {
		const pp__post *const at = post_at(p->heap, place);
		if (__atomic_load_n(&at->pid, __ATOMIC_SEQ_CST) != p->pids[i])
			continue;
		const uint32_t seq = __atomic_load_n(&at->seq, __ATOMIC_SEQ_CST), owner = __atomic_load_n(&at->owner, __ATOMIC_SEQ_CST);
		if (pp__owner_pid(p->heap, owner) != p->pids[i]) /* of one who had the place, or the number, before */
			continue;
		const uint32_t count = __atomic_load_n(&at->count, __ATOMIC_SEQ_CST);
		if ((seq & 1) != 0 || (owner & 0xfff) - 1 != place || count == 0 || count > PP__POST_WAITS || pp__gone(p->heap, owner))
			return false;
		for (uint32_t k = 0; k < count; k++) {
			const uint64_t wait = __atomic_load_n(&at->waits[k], __ATOMIC_SEQ_CST);
			if ((wait & PP__POST_WAY) != 0 ? (wait & ~PP__POST_WAY) != p->way_off : !add(p, (int32_t)wait))
				return false;
		}
		p->places[i] = place;
		p->seqs[i] = seq;
		return true;
	}
	return false;
}

static bool unchanged(const proof *p)
{
	for (uint32_t i = 0; i < p->count; i++)
		if (__atomic_load_n(&post_at(p->heap, p->places[i])->seq, __ATOMIC_SEQ_CST) != p->seqs[i])
			return false;
	return __atomic_load_n(&p->way->tail, __ATOMIC_SEQ_CST) == __atomic_load_n(&p->way->head, __ATOMIC_SEQ_CST);
}

/* prove looks, and looks again. */
static bool prove(proof *p, proof *again)
{
	if (p->inode == 0 || !plausible(p) || !scan(p))
		return false;
	p->holders = p->count;
	for (uint32_t i = 0; i < p->count; i++) /* grows meanwhile */
		if (!read_post(p, i))
			return false;
	if (!unchanged(p) || !scan(again) || again->count != p->holders || !plausible(p))
		return false;
	for (uint32_t i = 0; i < again->count; i++) {
		uint32_t k = 0;
		while (k < p->holders && p->pids[k] != again->pids[i])
			k++;
		if (k == p->holders)
			return false;
	}
	for (uint32_t i = 0; i < p->count; i++) {
		const pp__post *const post = post_at(p->heap, p->places[i]);
		const uint32_t owner = __atomic_load_n(&post->owner, __ATOMIC_SEQ_CST);
		if (pp__gone(p->heap, owner) || pp__owner_pid(p->heap, owner) != p->pids[i])
			return false;
	}
	return unchanged(p);
}

int32_t pp_pipe_deserted(pp_pipe end)
{
	pp__heap *const heap = pp__family_heap();
	pp__handle *const handle = heap != NULL ? pp__pin(end, PP__KIND_PIPE) : NULL;
	proof *const both = handle != NULL ? calloc(2, sizeof *both) : NULL;
	int32_t status = handle == NULL ? PP_ERR_HANDLE : pp__fail(PP_ERR_STATE, "it is not proved that nobody will send");

	if (both != NULL && heap == handle->heap) {
		both[0].heap = heap;
		both[0].way_off = way_of(end, &both[0].pipe, &both[0].peer);
		both[0].way = both[0].way_off != 0 ? pp__at(heap, both[0].way_off) : NULL;
		both[0].inode = both[0].way_off != 0 ? __atomic_load_n(&both[0].pipe->inode[both[0].peer], __ATOMIC_RELAXED) : 0;
		both[1] = both[0];
		if (both[0].way != NULL && prove(&both[0], &both[1]))
			status = PP_OK;
	}
	free(both);
	if (handle != NULL)
		pp__unpin(handle);
	return status;
}
