/* heap.c - see heap.h: making and mapping a heap, and its blocks. */
#include "heap_private.h"

#include "family.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	TABLE_STEP = PP__STORAGE_STEP / sizeof(pp__slab), /* entries that get storage together */
	SCAN_ENOUGH = PP__FREE_MOST / 2
};
#define LEAST_SIZE (PP__SLAB_SIZE * (PP__SLAB_FIRST + 1))
#define MOST_SIZE ((uint64_t)PP__SLABS_MOST * PP__SLAB_SIZE)

/* The list of heaps changes with both locks held: the first is held around a fork before all others, the second is taken last. */
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_mutex_t pp__heaps_lock = PTHREAD_MUTEX_INITIALIZER;
pp__heap *pp__heaps;

uint64_t pp__random(void)
{
	PP__NO_CANCEL(); /* getrandom(3) is a cancellation point */
	uint64_t x = 0;

	if (getrandom(&x, sizeof x, GRND_NONBLOCK) == (ssize_t)sizeof x)
		return x;
	return pp__now_ns() * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)getpid() << 32;
}

/* ---- making and mapping ------------------------------------------------------------------------------------------------- */

int pp__above_stdio(int fd)
{
	if (fd < 0 || fd > 2)
		return fd;
	const int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3), error = errno;
	close(fd);
	errno = error;
	return moved;
}

bool pp__heap_open_range(const pp__heap *heap, uint64_t off, uint64_t size)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), from = off / page * page;

	return mprotect(heap->base + from, (size_t)(off + size - from), PROT_READ | PROT_WRITE) == 0;
}

/* map maps as much as there is room for, closed. RLIMIT_AS is the program's too: it gets at least
 * three quarters. */
static uint8_t *map(int fd, uint64_t size, uint64_t *mapped_out)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
		uint64_t most = limit.rlim_cur / 4;
		most = most < 2 * LEAST_SIZE ? 2 * LEAST_SIZE : most;
		size = most < size ? most : size;
	}
	for (size &= ~(PP__SLAB_SIZE - 1);;) {
		void *const p = mmap(NULL, (size_t)size, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
		if (p != MAP_FAILED) {
			madvise(p, (size_t)size, MADV_DONTDUMP);
			munlock(p, (size_t)size); /* mlockall(MCL_FUTURE) would have holes filled as they are opened */
			*mapped_out = size;
			return p;
		}
		if (size == LEAST_SIZE)
			return NULL;
		size = size / 2 & ~(PP__SLAB_SIZE - 1);
		size = size < LEAST_SIZE ? LEAST_SIZE : size;
	}
}

/* initialize makes a heap of zeros. Several processes may do it at the same time, and any may die on the way: zeros are an empty heap, and
 * all write the same, but for the id. */
static int32_t initialize(pp__heap_head *head, uint64_t size, uint64_t *id_out)
{
	if (__atomic_load_n(&head->magic, __ATOMIC_ACQUIRE) == 0) {
		for (int i = 0; i < 2; i++) {
			uint64_t none = 0;
			__atomic_compare_exchange_n(&head->id[i], &none, pp__random() | 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
		}
		__atomic_store_n(&head->abi, PP__HEAP_ABI, __ATOMIC_RELAXED);
		__atomic_store_n(&head->size, size, __ATOMIC_RELAXED);
		__atomic_store_n(&head->magic, PP__HEAP_MAGIC, __ATOMIC_SEQ_CST);
	}
	*id_out = __atomic_load_n(&head->id[0], __ATOMIC_ACQUIRE);
	if (__atomic_load_n(&head->magic, __ATOMIC_ACQUIRE) != PP__HEAP_MAGIC || __atomic_load_n(&head->abi, __ATOMIC_RELAXED) != PP__HEAP_ABI ||
	    __atomic_load_n(&head->size, __ATOMIC_RELAXED) != size || *id_out == 0)
		return pp__fail(PP_ERR_CORRUPT, "this is no heap of polyproc, or of another version");
	return PP_OK;
}

static void forget(pp__heap *heap)
{
	struct pp__heap_private *const p = heap->private;

	if (heap->base != NULL)
		munmap(heap->base, (size_t)heap->mapped);
	if (p != NULL) {
		for (uint32_t i = 0; i < PP__SMALL_CLASSES; i++)
			free(p->small[i].slab);
		for (uint32_t i = 0; i < PP__LARGE_CLASSES; i++)
			free(p->large[i].slab);
		free(p->runs.slab);
		free(p);
	}
	free(heap);
}

static int32_t attach(int fd, bool named, pp__heap **heap_out)
{
	PP__NO_CANCEL();
	struct stat st;

	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size < LEAST_SIZE || (uint64_t)st.st_size > MOST_SIZE ||
	    (uint64_t)st.st_size % PP__SLAB_SIZE != 0)
		return pp__fail(PP_ERR_CORRUPT, "descriptor %d is no heap", fd);
	/* A file of /dev/shm reports F_SEAL_SEAL alone: it cannot be sealed, and only its owner's programs can shrink it. */
	const int seals = fcntl(fd, F_GET_SEALS);
	if (seals >= 0 && (seals & (F_SEAL_SEAL | F_SEAL_SHRINK)) == 0)
		return pp__fail(PP_ERR_CORRUPT, "descriptor %d can shrink", fd);

	pp__heap *const heap = calloc(1, sizeof *heap);
	struct pp__heap_private *const p = calloc(1, sizeof *p);
	if (heap == NULL || p == NULL) {
		free(heap);
		free(p);
		return pp__fail(PP_ERR_NOMEM, "a heap's %zu bytes of local memory", sizeof *p);
	}
	heap->private = p;
	heap->fd = fd;
	heap->size = (uint64_t)st.st_size;
	pthread_mutex_init(&p->lock, NULL);
	pthread_mutex_init(&p->join_lock, NULL);
	p->device = pp__device_of(&st);
	p->inode = st.st_ino;
	p->adopt_pause = PP__ADOPT_MILLIS;
	/* Head and members; a first part of the tables of slabs and of references. A process that joins
	 * needs no memory. */
	static const uint64_t first[] = {0, PP__SLABS_OFF, PP__REFS_OFF};
	int32_t status = PP_OK;
	for (size_t i = 0; i < sizeof first / sizeof *first && status == PP_OK && (uint64_t)st.st_blocks * 512 < sizeof first / sizeof *first * PP__STORAGE_STEP; i++)
		status = pp__storage_reserve(fd, NULL, first[i], PP__STORAGE_STEP);
	if (status != PP_OK) {
		pp__fail(status, "storage for a heap: %s", strerror(errno));
	} else if ((heap->base = map(fd, heap->size, &heap->mapped)) == NULL) {
		status = pp__fail(PP_ERR_NOMEM, "address space for a heap, %" PRIu64 " bytes at least: %s", (uint64_t)LEAST_SIZE, strerror(errno));
	} else if (!pp__heap_open_range(heap, 0, PP__SLABS_OFF + PP__STORAGE_STEP) || !pp__heap_open_range(heap, PP__REFS_OFF, PP__STORAGE_STEP)) {
		status = pp__fail(PP_ERR_NOMEM, "a heap's mapping: %s", strerror(errno));
	} else {
		status = initialize(pp__head(heap), heap->size, &p->id);
	}
	heap->opened = PP__SLAB_FIRST * PP__SLAB_SIZE;
	p->refs_opened = PP__STORAGE_STEP / 8;
	if (status == PP_OK)
		status = named ? pp__members_open(heap) : pp__members_in(heap);
	if (status != PP_OK) {
		forget(heap);
		return status;
	}
	p->slabs = (uint32_t)(heap->mapped >> PP__SLAB_SHIFT);
	p->slabs_ready = TABLE_STEP;
	p->refs_ready = PP__STORAGE_STEP / 8;
	pthread_mutex_lock(&open_lock);
	pthread_mutex_lock(&pp__heaps_lock);
	p->next = pp__heaps;
	pp__heaps = heap;
	pthread_mutex_unlock(&pp__heaps_lock);
	pthread_mutex_unlock(&open_lock);
	*heap_out = heap;
	return PP_OK;
}

int32_t pp__heap_attach(int fd, pp__heap **heap_out)
{
	return attach(fd, false, heap_out);
}

enum { PATH_ROOM = sizeof "/dev/shm/" + NAME_MAX };

static bool path_of(const char *name, char *path, size_t size)
{
	const int n = snprintf(path, size, "/dev/shm/%s", name);

	return n > 0 && (size_t)n < size && n - 9 <= NAME_MAX && name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
	       strcmp(name, "..") != 0;
}

/* size_file gives the file of a new heap its size; all sizes cost the same. */
static int32_t size_file(int fd)
{
	struct rlimit limit;
	uint64_t size = MOST_SIZE;

	/* Beyond the limit there is a signal that ends the process, not an error. */
	if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < size)
		size = limit.rlim_cur & ~(PP__SLAB_SIZE - 1);
	if (size < LEAST_SIZE)
		return pp__fail(PP_ERR_NOMEM, "a heap needs a file of %" PRIu64 " bytes, the limit is %" PRIu64 " (RLIMIT_FSIZE)", (uint64_t)LEAST_SIZE,
		                (uint64_t)limit.rlim_cur);
	if (ftruncate(fd, (off_t)size) != 0)
		return pp__fail(errno == EFBIG || errno == ENOSPC || errno == ENOMEM ? PP_ERR_NOMEM : PP_ERR_SYSTEM, "a file of %" PRIu64 " bytes: %s", size,
		                strerror(errno));
	return PP_OK;
}

int32_t pp__heap_file(int *fd_out)
{
	PP__NO_CANCEL();
	int fd = memfd_create("polyproc-heap", MFD_CLOEXEC | MFD_ALLOW_SEALING | 8U /* MFD_NOEXEC_SEAL */);

	if (fd < 0 && errno == EINVAL) /* Linux < 6.3 */
		fd = memfd_create("polyproc-heap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if ((fd = pp__above_stdio(fd)) < 0)
		return pp__fail(errno == ENOMEM ? PP_ERR_NOMEM : PP_ERR_SYSTEM, "a file for a heap: %s", strerror(errno));
	int32_t status = size_file(fd);
	if (status == PP_OK && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
		status = pp__fail(PP_ERR_SYSTEM, "seals for a heap: %s", strerror(errno));
	if (status == PP_OK)
		*fd_out = fd;
	else
		close(fd);
	return status;
}

int32_t pp__heap_create(const char *name, pp__heap **heap_out)
{
	PP__NO_CANCEL();
	char path[PATH_ROOM], from[64];
	struct stat st;
	int fd;
	int32_t status;

	if (name != NULL && !path_of(name, path, sizeof path))
		return pp__fail(PP_ERR_INVALID, "\"%s\" cannot be a file of /dev/shm", name);
	if (name != NULL && lstat(path, &st) == 0)
		return pp__fail(PP_ERR_EXISTS, "%s exists", path);
	from[0] = '\0';
	if (name == NULL) {
		if ((status = pp__heap_file(&fd)) != PP_OK)
			return status;
	} else {
		/* Made without a name, readied, and then linked: nobody opens it half made, and who dies on the way leaves nothing. */
		fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) { /* gVisor */
			snprintf(from, sizeof from, "/dev/shm/.polyproc-%d-%" PRIx64, (int)getpid(), pp__random());
			fd = open(from, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
		}
		if ((fd = pp__above_stdio(fd)) < 0)
			return pp__fail(PP_ERR_SYSTEM, "a file for a heap: %s", strerror(errno));
		status = size_file(fd);
	}
	pp__heap *heap = NULL;
	if (status == PP_OK)
		status = attach(fd, name != NULL, &heap);
	if (status == PP_OK && name != NULL) {
		char proc[48];
		snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
		/* Never with two names: a file with another link is not opened. */
		if (from[0] != '\0' ? renameat2(AT_FDCWD, from, AT_FDCWD, path, RENAME_NOREPLACE) != 0
		                    : linkat(AT_FDCWD, proc, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0)
			status = errno == EEXIST ? pp__fail(PP_ERR_EXISTS, "%s exists", path) : pp__fail(PP_ERR_SYSTEM, "%s: %s", path, strerror(errno));
	}
	if (from[0] != '\0')
		unlink(from);
	if (status == PP_OK) {
		*heap_out = heap;
		return PP_OK;
	}
	if (heap != NULL)
		pp__heap_close(heap);
	else
		close(fd);
	return status;
}

/* own_file checks a file that was found by its name: anybody can make one in /dev/shm. */
static int32_t own_file(int fd, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return pp__fail(PP_ERR_SYSTEM, "%s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return pp__fail(PP_ERR_PERMISSION, "%s is no regular file", path);
	if (st.st_uid != geteuid())
		return pp__fail(PP_ERR_PERMISSION, "%s belongs to user %u, not to user %u", path, (unsigned)st.st_uid, (unsigned)geteuid());
	if ((st.st_mode & 077) != 0)
		return pp__fail(PP_ERR_PERMISSION, "%s has mode %04o: others have access to it", path, (unsigned)st.st_mode & 07777);
	if (st.st_nlink > 1)
		return pp__fail(PP_ERR_PERMISSION, "%s has another link", path);
	return PP_OK;
}

int32_t pp__heap_open(const char *name, pp__heap **heap_out)
{
	PP__NO_CANCEL();
	char path[PATH_ROOM];

	if (!path_of(name, path, sizeof path))
		return pp__fail(PP_ERR_INVALID, "\"%s\" cannot be a file of /dev/shm", name);
	const int fd = pp__above_stdio(open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
	if (fd < 0)
		return pp__fail(errno == ENOENT                                                         ? PP_ERR_NOT_FOUND
		                : errno == EACCES || errno == EPERM || errno == ELOOP || errno == EISDIR ? PP_ERR_PERMISSION
		                                                                                         : PP_ERR_SYSTEM,
		                "%s: %s", path, strerror(errno));
	int32_t status = own_file(fd, path);
	if (status == PP_OK)
		status = attach(fd, true, heap_out);
	if (status != PP_OK)
		close(fd);
	return status;
}

void pp__heap_close(pp__heap *heap)
{
	PP__NO_CANCEL();
	struct pp__heap_private *const p = heap->private;

	if (heap->me != 0) {
		pp__sweep(heap, &heap->me, 1);
		pp__members_leave(heap, heap->me);
	}
	for (uint32_t i = 0; i < PP__NURSERIES; i++)
		if (p->nursery[i].owner != 0 && pp__members_still(heap, p->nursery[i].owner, p->nursery[i].word)) {
			pp__sweep(heap, &p->nursery[i].owner, 1);
			pp__members_leave(heap, p->nursery[i].owner);
		}
	pthread_mutex_lock(&open_lock);
	pthread_mutex_lock(&pp__heaps_lock);
	for (pp__heap **at = &pp__heaps; *at != NULL; at = &(*at)->private->next)
		if (*at == heap) {
			*at = p->next;
			break;
		}
	pthread_mutex_unlock(&pp__heaps_lock);
	pthread_mutex_unlock(&open_lock);
	if (pp__heap_fd(heap))
		close(heap->fd);
	forget(heap);
}

static pp__heap *family;
static pthread_mutex_t family_lock = PTHREAD_MUTEX_INITIALIZER;

pp__heap *pp__family_heap(void)
{
	pp__heap *heap = __atomic_load_n(&family, __ATOMIC_ACQUIRE);
	int fd, depot;

	if (heap != NULL)
		return heap;
	if (pp__family_fds(&fd, &depot) != PP_OK)
		return NULL;
	pthread_mutex_lock(&family_lock);
	heap = family;
	if (heap == NULL && pp__heap_attach(fd, &heap) == PP_OK) {
		heap->private->family = true;
		__atomic_store_n(&family, heap, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&family_lock);
	return heap != NULL && pp__join(heap) != 0 ? heap : NULL;
}

uint64_t pp__heap_id(const pp__heap *heap)
{
	return heap->private->id;
}

pp__heap *pp__heap_family(void)
{
	return __atomic_load_n(&family, __ATOMIC_ACQUIRE);
}

pp__heap *pp__heap_by_id(uint64_t id)
{
	pthread_mutex_lock(&pp__heaps_lock);
	pp__heap *heap = pp__heaps;
	while (heap != NULL && heap->private->id != id)
		heap = heap->private->next;
	pthread_mutex_unlock(&pp__heaps_lock);
	return heap;
}

void pp__heap_locks(bool take)
{
	if (take) {
		pthread_mutex_lock(&family_lock);
		pthread_mutex_lock(&open_lock);
	}
	for (pp__heap *h = pp__heaps; h != NULL; h = h->private->next) {
		if (take) {
			pthread_mutex_lock(&h->private->join_lock);
			pthread_mutex_lock(&h->private->lock);
		} else {
			pthread_mutex_unlock(&h->private->lock);
			pthread_mutex_unlock(&h->private->join_lock);
		}
	}
	if (take) {
		pthread_mutex_lock(&pp__heaps_lock);
	} else {
		pthread_mutex_unlock(&pp__heaps_lock);
		pthread_mutex_unlock(&open_lock);
		pthread_mutex_unlock(&family_lock);
	}
}

/* In the child: slabs and places are the parent's. */
void pp__heap_locks_in_child(void)
{
	family_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	open_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	pp__heaps_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	for (pp__heap *h = pp__heaps; h != NULL; h = h->private->next) {
		struct pp__heap_private *const p = h->private;
		pthread_mutex_init(&p->lock, NULL);
		pthread_mutex_init(&p->join_lock, NULL);
		h->me = 0;
		p->joining = 0;
		p->adopted = false;
		p->reap_at = 0;
		memset(p->nursery, 0, sizeof p->nursery);
		pp__slabs *const all[] = {p->small, p->large, &p->runs};
		const uint32_t n[] = {PP__SMALL_CLASSES, PP__LARGE_CLASSES, 1};
		for (int k = 0; k < 3; k++)
			for (uint32_t i = 0; i < n[k]; i++)
				all[k][i].count = all[k][i].current = all[k][i].cursor = all[k][i].skip = all[k][i].free_count = 0;
	}
}

/* ---- slabs ------------------------------------------------------------------------------------------------------------------- */

static pp__slab *slab_at(const pp__heap *heap, uint32_t i)
{
	return (pp__slab *)(void *)(heap->base + PP__SLABS_OFF) + i;
}

static uint64_t slab_word(const pp__heap *heap, uint32_t i)
{
	return __atomic_load_n(&slab_at(heap, i)->word, __ATOMIC_ACQUIRE);
}

static bool slab_cas(const pp__heap *heap, uint32_t i, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(&slab_at(heap, i)->word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* open_slabs opens the slabs before end, and their entries in the table. Threads may do it at the
 * same time. */
static bool open_slabs(const pp__heap *heap, uint32_t end)
{
	uint64_t *const opened = &((pp__heap *)(uintptr_t)heap)->opened; /* the one word that grows with use */
	uint64_t is = __atomic_load_n(opened, __ATOMIC_ACQUIRE);
	const uint32_t slabs = heap->private->slabs;

	end = end < slabs - PP__OPEN_STEP ? (end + PP__OPEN_STEP - 1) / PP__OPEN_STEP * PP__OPEN_STEP : slabs;
	const uint64_t to = (uint64_t)end << PP__SLAB_SHIFT;
	if (to <= is)
		return true;
	/* The table in larger steps: most often this is open already. */
	const uint64_t table = ((is >> PP__SLAB_SHIFT) + TABLE_STEP - 1) / TABLE_STEP, table_end = (end + TABLE_STEP - 1) / TABLE_STEP;
	if (table_end > table && !pp__heap_open_range(heap, PP__SLABS_OFF + table * PP__STORAGE_STEP, (table_end - table) * PP__STORAGE_STEP))
		return false;
	if (!pp__heap_open_range(heap, is, to - is))
		return false;
	while (is < to && !__atomic_compare_exchange_n(opened, &is, to, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		;
	return true;
}

/* Slabs below this one may have been used, and may be touched. */
static uint32_t top_of(const pp__heap *heap)
{
	uint32_t top = __atomic_load_n(&pp__head(heap)->slab_top, __ATOMIC_ACQUIRE);
	uint64_t opened = __atomic_load_n(&heap->opened, __ATOMIC_ACQUIRE);

	top = top < PP__SLAB_FIRST ? PP__SLAB_FIRST : top < heap->private->slabs ? top : heap->private->slabs;
	if (opened < (uint64_t)top << PP__SLAB_SHIFT && !open_slabs(heap, top))
		return (uint32_t)(__atomic_load_n(&heap->opened, __ATOMIC_ACQUIRE) >> PP__SLAB_SHIFT);
	return top;
}

void *pp__within_slow(const pp__heap *heap, uint64_t off, uint64_t size)
{
	const uint64_t end = (uint64_t)top_of(heap) << PP__SLAB_SHIFT;

	return off < PP__SLAB_FIRST * PP__SLAB_SIZE || off > end || size > end - off ? NULL : heap->base + off;
}

static uint32_t blocks_of(uint32_t class)
{
	return (uint32_t)PP__SLAB_SIZE >> (PP__SMALL_SHIFT + class);
}

/* covered is how many blocks the array of states takes. */
static uint32_t covered(uint32_t class)
{
	const uint32_t size = 1u << (PP__SMALL_SHIFT + class);

	return (blocks_of(class) * 4 + size - 1) / size;
}

static uint32_t *small_states(const pp__heap *heap, uint32_t i)
{
	return (uint32_t *)(void *)(heap->base + ((uint64_t)i << PP__SLAB_SHIFT));
}

uint32_t *pp__state_of(const pp__heap *heap, uint64_t off, uint64_t *room_out, uint64_t *word_out)
{
	const uint64_t i = off >> PP__SLAB_SHIFT, at = off & (PP__SLAB_SIZE - 1);

	if (i < PP__SLAB_FIRST || i >= top_of(heap))
		return NULL;
	pp__slab *const slab = slab_at(heap, (uint32_t)i);
	const uint64_t word = slab_word(heap, (uint32_t)i);
	const uint32_t class = pp__slab_class(word);
	*word_out = word;
	switch (pp__slab_kind(word)) {
	case PP__SLAB_SMALL:
		*room_out = (uint64_t)1 << (PP__SMALL_SHIFT + class % PP__SMALL_CLASSES);
		if (class >= PP__SMALL_CLASSES || at % *room_out != 0 || at / *room_out < covered(class))
			return NULL;
		return small_states(heap, (uint32_t)i) + at / *room_out;
	case PP__SLAB_LARGE:
		*room_out = (uint64_t)1 << (PP__LARGE_SHIFT + class % PP__LARGE_CLASSES);
		if (class >= PP__LARGE_CLASSES || at % *room_out != 0)
			return NULL;
		return &slab->state[at / *room_out];
	case PP__SLAB_RUN:
		*room_out = (uint64_t)__atomic_load_n(&slab->reserved, __ATOMIC_RELAXED) << 12;
		if (at != 0 || pp__slab_count(word) == 0 || i + pp__slab_count(word) > top_of(heap) ||
		    *room_out > (uint64_t)pp__slab_count(word) << PP__SLAB_SHIFT)
			return NULL;
		return &slab->state[0];
	default:
		return NULL;
	}
}

static void warm_add(const pp__heap *heap, uint64_t size)
{
	__atomic_fetch_add(&pp__head(heap)->warm, size, __ATOMIC_RELAXED);
}

static void warm_sub(const pp__heap *heap, uint64_t size)
{
	uint64_t *const warm = &pp__head(heap)->warm;
	uint64_t is = __atomic_load_n(warm, __ATOMIC_RELAXED);

	while (!__atomic_compare_exchange_n(warm, &is, is > size ? is - size : 0, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static bool list_room(pp__slabs *list)
{
	if (list->count < list->room)
		return true;
	const uint32_t room = list->room == 0 ? 16 : 2 * list->room;
	uint32_t *const slab = realloc(list->slab, room * sizeof *slab);
	if (slab == NULL)
		return false;
	list->slab = slab;
	list->room = room;
	return true;
}

/* ready sees to it that the entries of the slabs before end have storage. */
static int32_t ready(pp__heap *heap, uint32_t end)
{
	struct pp__heap_private *const p = heap->private;

	while (p->slabs_ready < end) {
		const int32_t status = pp__heap_reserve(heap, PP__SLABS_OFF + (uint64_t)p->slabs_ready * sizeof(pp__slab), PP__STORAGE_STEP);
		if (status != PP_OK)
			return status;
		p->slabs_ready += TABLE_STEP;
	}
	return PP_OK;
}

/* release gives a slab back that is CLAIMED by us. */
static void release(pp__heap *heap, uint32_t i)
{
	pp__slab *const slab = slab_at(heap, i);

	pp__heap_punch(heap, (uint64_t)i << PP__SLAB_SHIFT, PP__SLAB_SIZE);
	__atomic_store_n(&slab->word, 0, __ATOMIC_SEQ_CST);
	uint32_t *const hint = &pp__head(heap)->slab_hint;
	uint32_t is = __atomic_load_n(hint, __ATOMIC_RELAXED);
	while (i < is && !__atomic_compare_exchange_n(hint, &is, i, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

/* claim takes n slabs in a row. They are CLAIMED then, their fields 0, without storage. */
static int32_t claim(pp__heap *heap, uint32_t n, uint32_t *first_out)
{
	struct pp__heap_private *const p = heap->private;
	pp__heap_head *const head = pp__head(heap);
	const uint64_t mine = pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, heap->me);

	for (int pass = 0; pass < 2; pass++) {
		uint32_t i = pass == 0 ? __atomic_load_n(&head->slab_hint, __ATOMIC_RELAXED) : PP__SLAB_FIRST;
		i = i < PP__SLAB_FIRST || i > p->slabs ? PP__SLAB_FIRST : i;
		while (n <= p->slabs && i <= p->slabs - n) {
			const uint32_t top = top_of(heap);
			uint32_t bad = n;
			for (uint32_t k = 0; k < n && i + k < top && bad == n; k++)
				if (slab_word(heap, i + k) != 0)
					bad = k;
			if (bad < n) {
				i += bad + 1;
				continue;
			}
			if (!open_slabs(heap, i + n))
				return PP_ERR_NOMEM;
			const int32_t status = ready(heap, i + n);
			if (status != PP_OK)
				return status;
			uint32_t is = __atomic_load_n(&head->slab_top, __ATOMIC_RELAXED);
			while (is < i + n && !__atomic_compare_exchange_n(&head->slab_top, &is, i + n, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
				;
			for (uint32_t k = 0; k < n && bad == n; k++)
				if (!slab_cas(heap, i + k, 0, mine))
					bad = k;
			if (bad < n) {
				while (bad-- > 0)
					__atomic_store_n(&slab_at(heap, i + bad)->word, 0, __ATOMIC_SEQ_CST);
				i++;
				continue;
			}
			for (uint32_t k = 0; k < n; k++) {
				pp__slab *const slab = slab_at(heap, i + k);
				slab->reserved = slab->fresh = 0;
				memset(slab->state, 0, sizeof slab->state);
			}
			if (n == 1)
				__atomic_store_n(&head->slab_hint, i + 1, __ATOMIC_RELAXED);
			*first_out = i;
			return PP_OK;
		}
	}
	return PP_ERR_NOMEM;
}

/* give_back gives a run back whose state says that we are the one to do it. */
static void give_back(pp__heap *heap, uint32_t first)
{
	uint64_t word = slab_word(heap, first);
	const uint32_t count = pp__slab_count(word);

	for (uint32_t k = count; k-- > 1;) {
		if (first + k >= top_of(heap))
			continue;
		const uint64_t tail = slab_word(heap, first + k);
		if (pp__slab_kind(tail) == PP__SLAB_TAIL && pp__slab_count(tail) == k && slab_cas(heap, first + k, tail, pp__slab_word_of(PP__SLAB_TAIL, 0, k, heap->me)))
			release(heap, first + k);
	}
	/* Its owner's successor may take it over at the same time. */
	while (pp__slab_kind(word) == PP__SLAB_RUN && !slab_cas(heap, first, word, pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, heap->me)))
		word = slab_word(heap, first);
	if (pp__slab_kind(word) == PP__SLAB_RUN)
		release(heap, first);
}

/* take_free makes us the one to give back the storage of a free block, whose state is from: 0 or 1,
 * or that of a dead giver. word is what the slab's word was before: the state alone proves nothing
 * about the slab. So the word is read again, and the state put back if the slab has changed hands. */
static bool take_free(pp__heap *heap, uint32_t i, uint32_t k, uint64_t word, uint32_t from, uint32_t me)
{
	uint32_t *const state = &slab_at(heap, i)->state[k];
	uint32_t v = from;

	if (__atomic_load_n(state, __ATOMIC_RELAXED) != from ||
	    !__atomic_compare_exchange_n(state, &v, PP__GIVING | me, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	if (slab_word(heap, i) == word)
		return true;
	v = PP__GIVING | me;
	__atomic_compare_exchange_n(state, &v, from, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	return false;
}

/* empty_large takes the storage of the free blocks of a slab of ours, and releases it if no block
 * is in use: true. With private->lock held. */
static bool empty_large(pp__heap *heap, uint32_t i, uint32_t class)
{
	const uint64_t own = pp__slab_word_of(PP__SLAB_LARGE, class, 0, heap->me), size = (uint64_t)1 << (PP__LARGE_SHIFT + class);
	bool taken[16] = {false}, used = false;

	for (uint32_t k = 0; k < 16u >> class; k++) {
		uint32_t v = 1;
		taken[k] = __atomic_compare_exchange_n(&slab_at(heap, i)->state[k], &v, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
		if (taken[k])
			warm_sub(heap, size);
		used |= !taken[k] && v != 0;
	}
	/* All states are 0: only we could change that. */
	if (!used && slab_cas(heap, i, own, pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, heap->me))) {
		release(heap, i);
		return true;
	}
	for (uint32_t k = 0; k < 16u >> class; k++)
		if (taken[k])
			pp__heap_punch(heap, ((uint64_t)i << PP__SLAB_SHIFT) + k * size, size);
	return false;
}

/* ---- slabs of the dead ------------------------------------------------------------------------------------------------ */

static bool slab_owner_gone(pp__heap *heap, uint32_t owner, bool deep)
{
	struct pp__heap_private *const p = heap->private;

	if (owner == heap->me)
		return false;
	const uint32_t i = (owner & 0xfff) - 1;
	if (i >= PP__MEMBERS || !pp__members_current(heap, owner))
		return true;
	if (p->verdict_of[i] != owner) {
		p->verdict_of[i] = owner;
		p->verdict[i] = pp__members_gone(heap, owner, deep);
	}
	return p->verdict[i];
}

/* heir_large looks at the blocks of a slab whose word is word, whoever has it. What dead givers
 * have left is free then. Adds up what is warm. */
static void heir_large(pp__heap *heap, uint32_t i, uint64_t word, bool deep, uint64_t *warm)
{
	pp__slab *const slab = slab_at(heap, i);
	const uint32_t class = pp__slab_class(word);

	for (uint32_t k = 0; k < 16u >> class; k++) {
		uint32_t v = __atomic_load_n(&slab->state[k], __ATOMIC_ACQUIRE);
		/* Somebody who is no more was giving it back: it may have storage or not. */
		if ((v & PP__GIVING) != 0 && (v & ~PP__GIVING) != heap->me && slab_owner_gone(heap, v & ~PP__GIVING, deep) &&
		    take_free(heap, i, k, word, v, heap->me))
			__atomic_store_n(&slab->state[k], 0, __ATOMIC_SEQ_CST);
		*warm += v == 1 ? (uint64_t)1 << (PP__LARGE_SHIFT + class) : 0;
	}
}

static bool small_used(const pp__heap *heap, uint32_t i, uint32_t class)
{
	const uint32_t *const states = small_states(heap, i);
	uint32_t fresh = __atomic_load_n(&slab_at(heap, i)->fresh, __ATOMIC_RELAXED);

	fresh = fresh < blocks_of(class) ? fresh : blocks_of(class);
	for (uint32_t k = covered(class); k < fresh; k++)
		if (__atomic_load_n(&states[k], __ATOMIC_ACQUIRE) > 1)
			return true;
	return false;
}

static bool large_used(const pp__heap *heap, uint32_t i, uint32_t class)
{
	for (uint32_t k = 0; k < 16u >> class; k++)
		if (__atomic_load_n(&slab_at(heap, i)->state[k], __ATOMIC_ACQUIRE) > 1)
			return true;
	return false;
}

/* adopt takes over what the dead have left, and adds up what is warm. Returns how many slabs it got. With private->lock held. */
static uint32_t adopt(pp__heap *heap, bool deep)
{
	struct pp__heap_private *const p = heap->private;
	const uint32_t me = heap->me, top = top_of(heap);
	uint32_t got = 0;
	uint64_t warm = 0;

	memset(p->verdict_of, 0, sizeof p->verdict_of);
	for (uint32_t i = PP__SLAB_FIRST; i < top; i++) {
		const uint64_t word = slab_word(heap, i);
		const uint32_t kind = pp__slab_kind(word), class = pp__slab_class(word), count = pp__slab_count(word);
		const bool gone = kind != PP__SLAB_FREE && pp__slab_owner(word) != me && slab_owner_gone(heap, pp__slab_owner(word), deep);
		pp__slab *const slab = slab_at(heap, i);
		switch (kind) {
		case PP__SLAB_CLAIMED:
			if (gone && slab_cas(heap, i, word, pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, me))) {
				release(heap, i);
				got++;
			}
			break;
		case PP__SLAB_SMALL:
			if (!gone || class >= PP__SMALL_CLASSES || !list_room(&p->small[class]) ||
			    !slab_cas(heap, i, word, pp__slab_word_of(kind, class, 0, me)))
				break;
			got++;
			if (small_used(heap, i, class)) {
				p->small[class].slab[p->small[class].count++] = i;
				p->small[class].skip = 0;
			} else if (slab_cas(heap, i, pp__slab_word_of(kind, class, 0, me), pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, me))) {
				release(heap, i);
			}
			break;
		case PP__SLAB_LARGE: {
			if (class >= PP__LARGE_CLASSES)
				break;
			const bool ours = gone && list_room(&p->large[class]) && slab_cas(heap, i, word, pp__slab_word_of(kind, class, 0, me));
			uint64_t more = 0;
			heir_large(heap, i, ours ? pp__slab_word_of(kind, class, 0, me) : word, deep, &more);
			got += ours;
			if (ours && !large_used(heap, i, class)) {
				PP__TEST_POINT("adopt: unused", i);
				if (empty_large(heap, i, class))
					break;
				more = 0;
			}
			warm += more;
			if (ours) {
				p->large[class].slab[p->large[class].count++] = i;
				p->large[class].skip = 0;
			}
			break;
		}
		case PP__SLAB_RUN: {
			uint32_t v = __atomic_load_n(&slab->state[0], __ATOMIC_ACQUIRE);
			if (((v & PP__GIVING) != 0 && (v & ~PP__GIVING) != me && slab_owner_gone(heap, v & ~PP__GIVING, deep)) || (v <= 1 && gone)) {
				/* Nobody allocates what a dead process owns, and a dead giver gives no more. */
				PP__TEST_POINT("adopt: run", i);
				if (take_free(heap, i, 0, word, v, me)) {
					give_back(heap, i);
					got += count;
				}
			} else if (v == 1) {
				warm += (uint64_t)__atomic_load_n(&slab->reserved, __ATOMIC_RELAXED) << 12;
			}
			break;
		}
		case PP__SLAB_TAIL: {
			if (!gone)
				break;
			const uint64_t first = count <= i ? slab_word(heap, i - count) : 0;
			if (count > 0 && i - count >= PP__SLAB_FIRST && pp__slab_kind(first) == PP__SLAB_RUN && pp__slab_count(first) > count)
				break;
			if (slab_cas(heap, i, word, pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, me))) {
				release(heap, i);
				got++;
			}
			break;
		}
		default:
			break;
		}
	}
	__atomic_store_n(&pp__head(heap)->warm, warm, __ATOMIC_RELAXED);
	return got;
}

/* adopt_now_and_then: at the first need of this process, and after pauses that grow if nothing was found. */
static bool adopt_now_and_then(pp__heap *heap)
{
	struct pp__heap_private *const p = heap->private;
	const uint64_t now = pp__now_ns();

	if (p->adopted && now < p->adopt_at)
		return false;
	const uint32_t got = adopt(heap, false);
	p->adopt_pause = got > 0 || !p->adopted ? PP__ADOPT_MILLIS : 2 * p->adopt_pause < PP__ADOPT_MOST_MILLIS ? 2 * p->adopt_pause : PP__ADOPT_MOST_MILLIS;
	p->adopted = true;
	p->adopt_at = now + p->adopt_pause * UINT64_C(1000000);
	return got > 0;
}

/* ---- small blocks -------------------------------------------------------------------------------------------------------------- */

static bool try_small(pp__heap *heap, uint32_t i, uint32_t k, uint32_t class, pp__pick *pick)
{
	uint32_t *const state = small_states(heap, i) + k;
	const uint32_t v = __atomic_load_n(state, __ATOMIC_ACQUIRE);

	if (v > 1)
		return false;
	*pick = (pp__pick){.off = ((uint64_t)i << PP__SLAB_SHIFT) + ((uint64_t)k << (PP__SMALL_SHIFT + class)),
	                   .room = (uint64_t)1 << (PP__SMALL_SHIFT + class),
	                   .state = state,
	                   .from = v};
	return true;
}

/* pop takes a free block from the list; what is there may be in use again, or its slab be another's. */
static bool pop(pp__heap *heap, pp__slabs *list, uint64_t own, pp__pick *pick)
{
	while (list->free_count > 0) {
		const uint64_t off = (uint64_t)list->free[--list->free_count] << PP__SMALL_SHIFT;
		uint64_t room, word;
		uint32_t *const state = pp__state_of(heap, off, &room, &word);
		uint32_t v;
		if (state == NULL || word != own || (v = __atomic_load_n(state, __ATOMIC_ACQUIRE)) > 1)
			continue;
		*pick = (pp__pick){.off = off, .room = room, .state = state, .from = v};
		return true;
	}
	return false;
}

static void drop_slab(pp__slabs *list, uint32_t at)
{
	if (list->current == list->slab[at])
		list->current = 0;
	list->slab[at] = list->slab[--list->count];
}

/* look_small collects free blocks that others have freed. */
static void look_small(pp__heap *heap, pp__slabs *list, uint32_t class)
{
	const uint64_t own = pp__slab_word_of(PP__SLAB_SMALL, class, 0, heap->me);

	if (list->skip > 0) {
		list->skip--;
		return;
	}
	for (uint32_t seen = 0, all = list->count; seen < all && list->count > 0 && list->free_count < SCAN_ENOUGH; seen++) {
		const uint32_t at = list->cursor % list->count, i = list->slab[at], had = list->free_count;
		if (slab_word(heap, i) != own) {
			drop_slab(list, at);
			continue;
		}
		const uint32_t *const states = small_states(heap, i);
		uint32_t fresh = __atomic_load_n(&slab_at(heap, i)->fresh, __ATOMIC_RELAXED), k;
		fresh = fresh < blocks_of(class) ? fresh : blocks_of(class);
		for (k = covered(class); k < fresh && list->free_count < PP__FREE_MOST; k++)
			if (__atomic_load_n(&states[k], __ATOMIC_ACQUIRE) <= 1)
				list->free[list->free_count++] = (uint32_t)((((uint64_t)i << PP__SLAB_SHIFT) + ((uint64_t)k << (PP__SMALL_SHIFT + class))) >> PP__SMALL_SHIFT);
		/* Enough others: one that is all free goes back. */
		if (had > 0 && i != list->current && k == fresh && list->free_count - had == fresh - covered(class) &&
		    slab_cas(heap, i, own, pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, heap->me))) {
			list->free_count = had;
			drop_slab(list, at);
			release(heap, i);
			continue;
		}
		list->cursor = at + 1;
	}
	if (list->free_count == 0)
		list->skip = list->count / 8;
}

static int32_t pick_small(pp__heap *heap, uint32_t class, pp__pick *pick)
{
	pp__slabs *const list = &heap->private->small[class];
	const uint64_t own = pp__slab_word_of(PP__SLAB_SMALL, class, 0, heap->me);
	const uint64_t size = (uint64_t)1 << (PP__SMALL_SHIFT + class);

	for (uint32_t round = 0; round < PP__ROUNDS; round++) {
		if (pop(heap, list, own, pick))
			return PP_OK;
		while (list->current != 0 && slab_word(heap, list->current) == own) {
			pp__slab *const slab = slab_at(heap, list->current);
			uint32_t fresh = __atomic_load_n(&slab->fresh, __ATOMIC_RELAXED);
			fresh = fresh < covered(class) ? covered(class) : fresh;
			if (fresh >= blocks_of(class))
				break;
			const uint64_t have = (uint64_t)__atomic_load_n(&slab->reserved, __ATOMIC_RELAXED) << 12, need = (fresh + 1) * size;
			if (need > have) {
				const uint64_t want = (need + PP__STORAGE_STEP - 1) / PP__STORAGE_STEP * PP__STORAGE_STEP;
				const int32_t status = pp__heap_reserve(heap, ((uint64_t)list->current << PP__SLAB_SHIFT) + have, want - have);
				if (status != PP_OK)
					return status;
				slab->reserved = (uint32_t)(want >> 12);
			}
			__atomic_store_n(&slab->fresh, fresh + 1, __ATOMIC_SEQ_CST);
			if (try_small(heap, list->current, fresh, class, pick))
				return PP_OK;
		}
		list->current = 0;
		look_small(heap, list, class);
		if (list->free_count > 0)
			continue;
		if (adopt_now_and_then(heap))
			look_small(heap, list, class);
		if (list->free_count > 0)
			continue;
		uint32_t i;
		if (!list_room(list))
			return PP_ERR_NOMEM;
		int32_t status = claim(heap, 1, &i);
		if (status != PP_OK)
			return status;
		const uint64_t first = (uint64_t)blocks_of(class) * 4 + size;
		const uint64_t want = (first + PP__STORAGE_STEP - 1) / PP__STORAGE_STEP * PP__STORAGE_STEP;
		status = pp__heap_reserve(heap, (uint64_t)i << PP__SLAB_SHIFT, want);
		if (status != PP_OK) {
			release(heap, i);
			return status;
		}
		pp__slab *const slab = slab_at(heap, i);
		slab->reserved = (uint32_t)(want >> 12);
		slab->fresh = covered(class);
		memset(small_states(heap, i), 0, blocks_of(class) * 4);
		__atomic_store_n(&slab->word, own, __ATOMIC_SEQ_CST);
		list->slab[list->count++] = i;
		list->current = i;
	}
	return PP_ERR_CORRUPT;
}

/* ---- large blocks ---------------------------------------------------------------------------------------------------------------- */

static void populate(const pp__heap *heap, uint64_t off, uint64_t size)
{
	/* One call instead of a fault per page. */
	madvise(heap->base + off, (size_t)(size < PP__PREFAULT_MOST ? size : PP__PREFAULT_MOST), MADV_POPULATE_WRITE);
}

/* look_large collects free blocks: warm ones if there are any, or else cold ones. */
static void look_large(pp__heap *heap, pp__slabs *list, uint32_t class)
{
	const uint64_t own = pp__slab_word_of(PP__SLAB_LARGE, class, 0, heap->me);
	uint32_t cold[SCAN_ENOUGH / 8], cold_count = 0;

	if (list->skip > 0) {
		list->skip--;
		return;
	}
	for (uint32_t seen = 0, all = list->count; seen < all && list->count > 0 && list->free_count < SCAN_ENOUGH / 8; seen++) {
		const uint32_t at = list->cursor % list->count, i = list->slab[at];
		if (slab_word(heap, i) != own) {
			drop_slab(list, at);
			continue;
		}
		uint32_t colds = 0;
		for (uint32_t k = 0; k < 16u >> class; k++) {
			const uint32_t v = __atomic_load_n(&slab_at(heap, i)->state[k], __ATOMIC_ACQUIRE);
			const uint32_t at128 = (uint32_t)((((uint64_t)i << PP__SLAB_SHIFT) + ((uint64_t)k << (PP__LARGE_SHIFT + class))) >> PP__SMALL_SHIFT);
			if (v == 1 && list->free_count < PP__FREE_MOST)
				list->free[list->free_count++] = at128;
			else if (v == 0 && ++colds > 0 && cold_count < sizeof cold / sizeof *cold)
				cold[cold_count++] = at128;
		}
		/* All without storage, and not needed now: for whom it may concern. */
		if (colds == 16u >> class && (list->free_count > 0 || cold_count > colds) &&
		    slab_cas(heap, i, own, pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, heap->me))) {
			drop_slab(list, at);
			release(heap, i);
			continue;
		}
		list->cursor = at + 1;
	}
	if (list->free_count == 0) {
		memcpy(list->free, cold, cold_count * sizeof *cold);
		list->free_count = cold_count;
	}
	if (list->free_count == 0)
		list->skip = list->count / 8;
}

static int32_t pick_large(pp__heap *heap, uint32_t class, pp__pick *pick)
{
	pp__slabs *const list = &heap->private->large[class];
	const uint64_t own = pp__slab_word_of(PP__SLAB_LARGE, class, 0, heap->me);
	const uint64_t size = (uint64_t)1 << (PP__LARGE_SHIFT + class);

	for (uint32_t round = 0; round < PP__ROUNDS; round++) {
		if (pop(heap, list, own, pick)) {
			pick->counted = pick->from == 1;
			if (pick->from == 1)
				return PP_OK;
			const int32_t status = pp__heap_reserve(heap, pick->off, size);
			if (status != PP_OK)
				return status;
			populate(heap, pick->off, size);
			return PP_OK;
		}
		look_large(heap, list, class);
		if (list->free_count > 0)
			continue;
		if (adopt_now_and_then(heap))
			look_large(heap, list, class);
		if (list->free_count > 0)
			continue;
		uint32_t i;
		if (!list_room(list))
			return PP_ERR_NOMEM;
		const int32_t status = claim(heap, 1, &i);
		if (status != PP_OK)
			return status;
		__atomic_store_n(&slab_at(heap, i)->word, own, __ATOMIC_SEQ_CST);
		list->slab[list->count++] = i;
		for (uint32_t k = 16u >> class; k-- > 0;)
			list->free[list->free_count++] = (uint32_t)((((uint64_t)i << PP__SLAB_SHIFT) + k * size) >> PP__SMALL_SHIFT);
	}
	return PP_ERR_CORRUPT;
}

/* ---- runs --------------------------------------------------------------------------------------------------------------------- */

/* warm_run finds a run of ours that is free and not much too large. */
static bool warm_run(pp__heap *heap, uint32_t need, uint64_t size, pp__pick *pick)
{
	pp__slabs *const list = &heap->private->runs;

	for (uint32_t at = 0; at < list->count;) {
		const uint32_t i = list->slab[at];
		const uint64_t word = slab_word(heap, i);
		const uint32_t count = pp__slab_count(word);
		pp__slab *const slab = slab_at(heap, i);
		if (pp__slab_kind(word) != PP__SLAB_RUN || pp__slab_owner(word) != heap->me || count == 0 || i + count > top_of(heap)) {
			drop_slab(list, at);
			continue;
		}
		at++;
		const uint64_t room = (uint64_t)__atomic_load_n(&slab->reserved, __ATOMIC_RELAXED) << 12;
		if (__atomic_load_n(&slab->state[0], __ATOMIC_ACQUIRE) != 1 || count < need || count > 2 * need || room < size ||
		    room > (uint64_t)count << PP__SLAB_SHIFT)
			continue;
		*pick = (pp__pick){.off = (uint64_t)i << PP__SLAB_SHIFT,
		                   .room = room,
		                   .state = &slab->state[0],
		                   .from = 1,
		                   .counted = true,
		                   .word = word};
		return true;
	}
	return false;
}

static int32_t pick_run(pp__heap *heap, uint64_t size, pp__pick *pick)
{
	const uint32_t need = (uint32_t)((size + PP__SLAB_SIZE - 1) >> PP__SLAB_SHIFT);
	uint32_t first;

	if (__atomic_load_n(&pp__head(heap)->warm, __ATOMIC_RELAXED) >= size && warm_run(heap, need, size, pick))
		return PP_OK;
	adopt_now_and_then(heap);
	int32_t status = claim(heap, need, &first);
	if (status != PP_OK)
		return status;
	const uint64_t room = (size + PP__STORAGE_STEP - 1) / PP__STORAGE_STEP * PP__STORAGE_STEP;
	/* That may take seconds, and the slabs are ours alone already: other threads need not wait, nor a fork. */
	pthread_mutex_unlock(&heap->private->lock);
	status = pp__heap_reserve(heap, (uint64_t)first << PP__SLAB_SHIFT, room);
	if (status == PP_OK)
		populate(heap, (uint64_t)first << PP__SLAB_SHIFT, room);
	pthread_mutex_lock(&heap->private->lock);
	if (status != PP_OK) {
		for (uint32_t k = need; k-- > 0;)
			release(heap, first + k);
		return status;
	}
	for (uint32_t k = 1; k < need; k++)
		__atomic_store_n(&slab_at(heap, first + k)->word, pp__slab_word_of(PP__SLAB_TAIL, 0, k, heap->me), __ATOMIC_SEQ_CST);
	slab_at(heap, first)->reserved = (uint32_t)(room >> 12);
	*pick = (pp__pick){.off = (uint64_t)first << PP__SLAB_SHIFT, .room = room, .state = &slab_at(heap, first)->state[0], .run = need};
	return PP_OK;
}

/* ---- blocks --------------------------------------------------------------------------------------------------------------------- */

/* Which class a size is of. */
static uint32_t class_for(uint64_t size, int shift)
{
	uint32_t class = 0;

	while ((uint64_t)1 << (shift + (int)class) < size)
		class++;
	return class;
}

static int32_t pick_once(pp__heap *heap, uint64_t size, pp__pick *pick)
{
	if (size <= (uint64_t)1 << (PP__SMALL_SHIFT + PP__SMALL_CLASSES - 1))
		return pick_small(heap, class_for(size, PP__SMALL_SHIFT), pick);
	if (size <= (uint64_t)1 << (PP__LARGE_SHIFT + PP__LARGE_CLASSES - 1))
		return pick_large(heap, class_for(size, PP__LARGE_SHIFT), pick);
	return pick_run(heap, size, pick);
}

/* trim_small gives back our slabs of a class that have no block in use. all: the one that new blocks come from too. */
static void trim_small(pp__heap *heap, uint32_t class, bool all)
{
	pp__slabs *const list = &heap->private->small[class];
	const uint64_t own = pp__slab_word_of(PP__SLAB_SMALL, class, 0, heap->me);

	list->skip = list->overflow = 0;
	for (uint32_t at = list->count; at-- > 0;) {
		const uint32_t i = list->slab[at];
		if (slab_word(heap, i) == own && ((i == list->current && !all) || small_used(heap, i, class)))
			continue;
		drop_slab(list, at);
		if (slab_cas(heap, i, own, pp__slab_word_of(PP__SLAB_CLAIMED, 0, 0, heap->me)))
			release(heap, i);
	}
}

/* trim gives back what of ours is free and warm. */
static void trim(pp__heap *heap)
{
	struct pp__heap_private *const p = heap->private;

	for (uint32_t class = 0; class < PP__LARGE_CLASSES; class++) {
		pp__slabs *const list = &p->large[class];
		const uint64_t own = pp__slab_word_of(PP__SLAB_LARGE, class, 0, heap->me);
		list->skip = 0;
		for (uint32_t at = list->count; at-- > 0;) {
			const uint32_t i = list->slab[at];
			if (slab_word(heap, i) != own || empty_large(heap, i, class))
				drop_slab(list, at);
		}
	}
	for (uint32_t class = 0; class < PP__SMALL_CLASSES; class++)
		trim_small(heap, class, true);
	for (uint32_t at = p->runs.count; at-- > 0;) {
		const uint32_t i = p->runs.slab[at];
		const uint64_t word = slab_word(heap, i);
		if (pp__slab_kind(word) != PP__SLAB_RUN || pp__slab_owner(word) != heap->me) {
			drop_slab(&p->runs, at);
			continue;
		}
		PP__TEST_POINT("trim: run", i);
		if (take_free(heap, i, 0, word, 1, heap->me)) {
			warm_sub(heap, (uint64_t)__atomic_load_n(&slab_at(heap, i)->reserved, __ATOMIC_RELAXED) << 12);
			drop_slab(&p->runs, at);
			give_back(heap, i);
		}
	}
}

int32_t pp__pick_block(pp__heap *heap, uint64_t size, pp__pick *pick)
{
	int32_t status = pick_once(heap, size, pick);

	if (status != PP_ERR_NOMEM)
		return status;
	/* Short of something: what the dead hold, and what is kept for later. */
	pthread_mutex_unlock(&heap->private->lock);
	pp__reap(heap, PP__MEMBERS, true);
	pthread_mutex_lock(&heap->private->lock);
	adopt(heap, true);
	trim(heap);
	return pick_once(heap, size, pick);
}

bool pp__pick_commit(pp__heap *heap, const pp__pick *pick, uint32_t tag)
{
	uint32_t from = pick->from;

	PP__TEST_POINT("commit", (uint32_t)(pick->off >> PP__SLAB_SHIFT));
	if (!__atomic_compare_exchange_n(pick->state, &from, tag, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	if (pick->word != 0 && slab_word(heap, (uint32_t)(pick->off >> PP__SLAB_SHIFT)) != pick->word) {
		from = tag;
		__atomic_compare_exchange_n(pick->state, &from, pick->from, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
		return false;
	}
	if (pick->counted)
		warm_sub(heap, pick->room);
	if (pick->run > 0) {
		const uint32_t first = (uint32_t)(pick->off >> PP__SLAB_SHIFT);
		__atomic_store_n(&slab_at(heap, first)->word, pp__slab_word_of(PP__SLAB_RUN, 0, pick->run, heap->me), __ATOMIC_SEQ_CST);
		/* A run that is not on the list is not used again while we live. */
		if (list_room(&heap->private->runs))
			heap->private->runs.slab[heap->private->runs.count++] = first;
	}
	return true;
}

void pp__pick_abandon(pp__heap *heap, const pp__pick *pick)
{
	for (uint32_t k = pick->run; k-- > 0;)
		release(heap, (uint32_t)(pick->off >> PP__SLAB_SHIFT) + k);
}

uint32_t pp__tag(pp__heap *heap)
{
	return (uint32_t)(__atomic_fetch_add(&pp__head(heap)->next_tag, 1, __ATOMIC_RELAXED) % (PP__GIVING - 2)) + 2;
}

int32_t pp__alloc(pp__heap *heap, uint64_t size, uint32_t tag, uint64_t *off_out, uint64_t *room_out)
{
	pp__pick pick;
	int32_t status;

	if (size == 0 || tag < 2 || (tag & PP__GIVING) != 0)
		return pp__fail(PP_ERR_INVALID, "a block of %" PRIu64 " bytes, tag %u", size, tag);
	if (size > PP__BLOCK_MOST)
		return pp__fail(PP_ERR_NOMEM, "%" PRIu64 " bytes of shared memory: %" PRIu64 " is the most", size, (uint64_t)PP__BLOCK_MOST);
	if (pp__join(heap) == 0)
		return pp__failed();
	pthread_mutex_lock(&heap->private->lock);
	int tries = 0;
	while ((status = pp__pick_block(heap, size, &pick)) == PP_OK && !pp__pick_commit(heap, &pick, tag)) {
		pp__pick_abandon(heap, &pick);
		if (++tries == 100) {
			status = PP_ERR_CORRUPT;
			break;
		}
	}
	pthread_mutex_unlock(&heap->private->lock);
	if (status != PP_OK)
		return pp__fail(status, "%" PRIu64 " bytes of shared memory: %s", size,
		                status == PP_ERR_NOMEM ? "a limit, the heap, or the machine or a control group beyond its reserve (POLYPROC_MEMORY_RESERVE) has no more" : strerror(errno));
	*off_out = pick.off;
	if (room_out != NULL)
		*room_out = pick.room;
	return PP_OK;
}

/* evict gives back storage of free blocks, size bytes if it finds as much: not our own, and not of the owner of the block that is being
 * freed. Else a process that has nothing to do any more would keep warm what those lack who work. */
static bool evict(pp__heap *heap, uint64_t size, uint32_t me, uint32_t spared)
{
	const uint32_t top = top_of(heap);
	uint32_t *const cursor = &heap->private->evict_cursor;
	uint64_t found = 0;

	for (uint32_t seen = 0; seen < PP__EVICT_LOOKS && seen < top - PP__SLAB_FIRST && found < size; seen++) {
		uint32_t i = __atomic_add_fetch(cursor, 1, __ATOMIC_RELAXED);
		if (i < PP__SLAB_FIRST || i >= top)
			__atomic_store_n(cursor, i = PP__SLAB_FIRST, __ATOMIC_RELAXED);
		const uint64_t word = slab_word(heap, i);
		const uint32_t kind = pp__slab_kind(word), class = pp__slab_class(word);
		if (pp__slab_owner(word) == me || pp__slab_owner(word) == spared)
			continue;
		if (kind == PP__SLAB_LARGE || kind == PP__SLAB_RUN)
			PP__TEST_POINT("evict: looked", i);
		for (uint32_t k = 0; kind == PP__SLAB_LARGE && class < PP__LARGE_CLASSES && k < 16u >> class; k++) {
			const uint64_t room = (uint64_t)1 << (PP__LARGE_SHIFT + class);
			if (!take_free(heap, i, k, word, 1, me))
				continue;
			warm_sub(heap, room);
			PP__TEST_POINT("evict: taken", i);
			pp__heap_punch(heap, ((uint64_t)i << PP__SLAB_SHIFT) + k * room, room);
			__atomic_store_n(&slab_at(heap, i)->state[k], 0, __ATOMIC_SEQ_CST);
			found += room;
		}
		if (kind == PP__SLAB_RUN && take_free(heap, i, 0, word, 1, me)) {
			const uint64_t room = (uint64_t)__atomic_load_n(&slab_at(heap, i)->reserved, __ATOMIC_RELAXED) << 12;
			warm_sub(heap, room);
			give_back(heap, i);
			found += room;
		}
	}
	return found >= size;
}

bool pp__free(pp__heap *heap, uint64_t off, uint32_t tag)
{
	uint64_t room, word;
	uint32_t *const state = pp__state_of(heap, off, &room, &word);
	uint32_t from = tag, me, to = 1;

	if (state == NULL || tag < 2 || (tag & PP__GIVING) != 0 || __atomic_load_n(state, __ATOMIC_ACQUIRE) != tag)
		return false;
	const uint32_t kind = pp__slab_kind(word);
	if (kind != PP__SLAB_SMALL && __atomic_load_n(&pp__head(heap)->warm, __ATOMIC_RELAXED) + room > PP__WARM_MOST && (me = pp__join(heap)) != 0 &&
	    (room > PP__WARM_MOST / 2 || !evict(heap, room, me, pp__slab_owner(word))))
		to = PP__GIVING | me;
	if (!__atomic_compare_exchange_n(state, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	if (to != 1) {
		if (kind == PP__SLAB_RUN) {
			give_back(heap, (uint32_t)(off >> PP__SLAB_SHIFT));
			return true;
		}
		pp__heap_punch(heap, off, room);
		__atomic_store_n(state, 0, __ATOMIC_SEQ_CST);
	} else if (kind != PP__SLAB_SMALL) {
		warm_add(heap, room);
	}
	if (kind != PP__SLAB_RUN && to == 1 && pp__slab_owner(word) == __atomic_load_n(&heap->me, __ATOMIC_RELAXED)) {
		struct pp__heap_private *const p = heap->private;
		pp__slabs *const list = kind == PP__SLAB_SMALL ? &p->small[pp__slab_class(word)] : &p->large[pp__slab_class(word)];
		pthread_mutex_lock(&p->lock);
		if (list->free_count < PP__FREE_MOST)
			list->free[list->free_count++] = (uint32_t)(off >> PP__SMALL_SHIFT);
		else if (kind == PP__SLAB_SMALL && ++list->overflow >= 2 * blocks_of(pp__slab_class(word)))
			trim_small(heap, pp__slab_class(word), false);
		else
			list->skip = 0;
		pthread_mutex_unlock(&p->lock);
	}
	return true;
}

bool pp__retag(pp__heap *heap, uint64_t off, uint32_t from, uint32_t to)
{
	uint64_t room, word;
	uint32_t *const state = pp__state_of(heap, off, &room, &word);

	return state != NULL && from >= 2 && to >= 2 && ((from | to) & PP__GIVING) == 0 &&
	       __atomic_compare_exchange_n(state, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
