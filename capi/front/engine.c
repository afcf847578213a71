/* engine.c - loads the Go engine, and a fresh copy of it after a fork.
 *
 * A Go runtime does not survive fork: in the child its threads are gone. So the child never calls the inherited engine again; it loads a
 * copy of the file under another inode, which the loader takes for another library, with a runtime of its own. The old one stays mapped and
 * dead. A child whose parent had loaded nothing loads the file itself. */
#include "front.h"

#include "heap.h"
#include "wait.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

#define ENGINE_FILE "libpolyproc-engine.so"
#define ENGINE_VERSION ((uint32_t)(PP_VERSION_MAJOR << 16 | PP_VERSION_MINOR << 8 | PP_VERSION_PATCH))

extern char **environ;

char pp__library_file[4096];

static const pp__table *table; /* NULL: not loaded in this process */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t depth;         /* forks since exec that left a dead engine behind */
static pthread_mutex_t modules_lock = PTHREAD_MUTEX_INITIALIZER;

static void host_error(const char *text)
{
	pp__set_error("%s", text != NULL ? text : "");
}

static char **host_environment(void)
{
	return environ;
}

/* host_wait is where calls for results sleep. They may not have looked at signal handlers before (PP_SHORT_MS). */
static int32_t host_wait(const uint32_t *word, uint32_t v, uint64_t ns)
{
	if (ns >= 1000000)
		pp__settle_handlers(true);
	return pp__engine_wait(word, v, ns);
}

pp__host pp__the_host = {
	.size = sizeof(pp__host),
	.set_error = host_error,
	.resolve = pp__resolve,
	.environment = host_environment,
	.family = pp_family,
	.cpu_count = pp_cpu_count,
	.strerror = pp_strerror,
	.fork_worker = pp__fork_worker,
	.interrupts = pp__interrupts,
	.wait = host_wait,
	.use_spare_thread = pp__use_spare_thread,
	.refs_forget = pp_refs_forget,
};

bool pp__engine_loaded(void)
{
	return __atomic_load_n(&table, __ATOMIC_ACQUIRE) != NULL;
}

uint32_t pp__fork_depth(void)
{
	return depth;
}

/* The Go runtime catches signals in every process that it lives in. In a child of a fork it does not live, and a fault there
 * must end the child as it would without the library: so what was set before the engine came is put back. */
enum { SIGNALS = 64, HANDLERS_MS = 100 };
static struct sigaction before_engine[SIGNALS + 1];
static uintptr_t engine_from, engine_to; /* where the engine's code and data are mapped */

static void save_signals(void)
{
	for (int i = 1; i <= SIGNALS; i++)
		if (sigaction(i, NULL, &before_engine[i]) != 0)
			before_engine[i].sa_handler = SIG_DFL;
}

static void restore_signals(void)
{
	for (int i = 1; i <= SIGNALS; i++) {
		struct sigaction now;
		if (sigaction(i, NULL, &now) != 0)
			continue;
		const uintptr_t handler = (now.sa_flags & SA_SIGINFO) != 0 ? (uintptr_t)now.sa_sigaction : (uintptr_t)now.sa_handler;
		if (handler >= engine_from && handler < engine_to)
			sigaction(i, &before_engine[i], NULL);
	}
}

/* on_stack lets a handler of the host run on the alternative stack. Another thread may install one at the same time: it must not be lost. */
static void on_stack(int number)
{
	struct sigaction now, wanted, before;

	if (sigaction(number, NULL, &now) != 0)
		return;
	/* sa_handler and sa_sigaction are one word. */
	while (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN && (now.sa_flags & SA_ONSTACK) == 0) {
		wanted = now;
		wanted.sa_flags |= SA_ONSTACK;
		if (sigaction(number, &wanted, &before) != 0 || (before.sa_handler == now.sa_handler && before.sa_flags == now.sa_flags))
			return;
		now = before;
		if (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN || (now.sa_flags & SA_ONSTACK) != 0)
			sigaction(number, &now, NULL);
	}
}

void pp__settle_handlers(bool sure)
{
	static const int likely[] = {SIGINT, SIGTERM, SIGALRM, SIGCHLD, SIGHUP, SIGUSR1, SIGUSR2};
	static uint64_t last_ms, last_tick;
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	const uint64_t tick = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec, now_ms = tick / 1000000;
	if (__atomic_exchange_n(&last_tick, tick, __ATOMIC_RELAXED) == tick && !sure)
		return;
	if (now_ms - __atomic_load_n(&last_ms, __ATOMIC_RELAXED) >= HANDLERS_MS) {
		__atomic_store_n(&last_ms, now_ms, __ATOMIC_RELAXED);
		for (int i = 1; i <= SIGNALS; i++)
			on_stack(i);
	} else {
		for (size_t i = 0; i < sizeof likely / sizeof *likely; i++)
			on_stack(likely[i]);
	}
}

/* note_range finds out where the object lies that has the symbol. */
static int note_range(struct dl_phdr_info *info, size_t size, void *symbol)
{
	uintptr_t from = UINTPTR_MAX, to = 0;

	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *const ph = &info->dlpi_phdr[i];
		if (ph->p_type != PT_LOAD)
			continue;
		const uintptr_t start = info->dlpi_addr + ph->p_vaddr;
		from = start < from ? start : from;
		to = start + ph->p_memsz > to ? start + ph->p_memsz : to;
	}
	if ((uintptr_t)symbol < from || (uintptr_t)symbol >= to)
		return 0;
	engine_from = from;
	engine_to = to;
	return 1;
}

int pp__modules(int (*look)(struct dl_phdr_info *info, size_t size, void *data), void *data)
{
	pthread_mutex_lock(&modules_lock);
	const int result = dl_iterate_phdr(look, data);
	pthread_mutex_unlock(&modules_lock);
	return result;
}

/* The descriptors of the Go runtime's poller: an epoll instance and the eventfd in it that wakes it. The runtime aborts the process when it
 * finds them closed. -1: not known. */
static int poll_fd = -1, wake_fd = -1;
static bool poller_lost; /* they were found closed */

/* The locks are held across a fork, so that no child is born in the middle of a load or a look at the modules by another thread. */
static void before_fork(void)
{
	int fds[2];

	/* The child is to belong to the family of this process, also if that has no object yet. */
	if (pp__engine_loaded() || __atomic_load_n(&pp__the_host.initialized, __ATOMIC_SEQ_CST) != 0)
		(void)pp_family(fds, NULL, 0);
	pthread_mutex_lock(&load_lock);
	pthread_mutex_lock(&modules_lock);
	pp__heap_before_fork();
}

static void in_parent(void)
{
	pp__heap_in_parent();
	pthread_mutex_unlock(&modules_lock);
	pthread_mutex_unlock(&load_lock);
}

static void in_child(void)
{
	if (table != NULL) {
		table = NULL;
		poll_fd = wake_fd = -1;
		poller_lost = false;
		if (depth < UINT16_MAX)
			depth++;
		restore_signals();
	}
	pthread_mutex_unlock(&modules_lock);
	pthread_mutex_unlock(&load_lock);
	pp__threads_forked();
	pp__pools_forked();
	pp__worker_forked();
	pp__payload_forked();
	pp__watch_forked();
	pp__heap_in_child();
}

/* on_load notes where the library is while its path, which may be relative, still leads there. */
__attribute__((constructor)) static void on_load(void)
{
	Dl_info info;

	if (dladdr(pp__library_file, &info) != 0 && info.dli_fname != NULL) {
		const size_t length = strlen(info.dli_fname);
		if (info.dli_fname[0] == '/' && length < sizeof pp__library_file) {
			memcpy(pp__library_file, info.dli_fname, length + 1);
		} else {
			char *const absolute = realpath(info.dli_fname, NULL);
			if (absolute != NULL && strlen(absolute) < sizeof pp__library_file)
				strcpy(pp__library_file, absolute);
			free(absolute);
		}
	}
	pthread_atfork(before_fork, in_parent, in_child);
}

/* beside writes the path of the engine in the directory of file. */
static bool beside(const char *file, char *path, size_t size)
{
	const char *slash = strrchr(file, '/');
	const int n = slash == NULL ? -1 : snprintf(path, size, "%.*s/%s", (int)(slash - file), file, ENGINE_FILE);

	return n > 0 && (size_t)n < size;
}

/* find_engine opens the engine's file: beside the library, or beside the file that the library is a link to. Returns the
 * descriptor or -1 with a message. */
static int find_engine(char *path, size_t size)
{
	int fd = -1;

	if (beside(pp__library_file, path, size)) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 && errno == ENOENT) {
			char *const real = realpath(pp__library_file, NULL);
			static char other[PATH_MAX];
			if (real != NULL && beside(real, other, sizeof other) && strlen(other) < size &&
			    (fd = open(other, O_RDONLY | O_CLOEXEC)) >= 0)
				strcpy(path, other);
			free(real);
		}
	} else {
		errno = ENOENT;
	}
	if (fd < 0)
		pp__set_error("%s beside %s: %s", ENGINE_FILE, pp__library_file[0] != '\0' ? pp__library_file : "the library", strerror(errno));
	return fd;
}

/* copy_engine makes a file with the same bytes and another inode. Returns its descriptor or -1 with a message. */
static int copy_engine(int from)
{
	struct stat st;
	struct rlimit limit;
	int fd = -1;

	if (fstat(from, &st) == 0 &&
	    /* Beyond the limit there is a signal that ends the process, not an error. */
	    (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || (off_t)limit.rlim_cur >= st.st_size ||
	     (errno = EFBIG, false))) {
		fd = (int)syscall(SYS_memfd_create, "polyproc-engine", MFD_CLOEXEC);
		if (fd < 0 && errno == EACCES) /* vm.memfd_noexec=2; mapping it executable is allowed all the same */
			fd = (int)syscall(SYS_memfd_create, "polyproc-engine", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
	}
	off_t done = 0;
	while (fd >= 0 && done < st.st_size) {
		const ssize_t n = sendfile(fd, from, &done, (size_t)(st.st_size - done));
		if (n <= 0 && !(n < 0 && errno == EINTR)) {
			const int error = n == 0 ? EIO : errno;
			close(fd);
			fd = -1;
			errno = error;
		}
	}
	if (fd < 0)
		pp__set_error("a copy of %s for this forked process: %s", ENGINE_FILE, strerror(errno));
	return fd;
}

/* room_for_engine reports whether the address space, which RLIMIT_AS may limit, has room for what a Go runtime reserves at its start: some
 * 600 MiB that cost nothing. Without it the runtime would end the process. */
static bool room_for_engine(void)
{
	const size_t size = (size_t)1 << 30;
	void *const p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return false;
	munmap(p, size);
	return true;
}

enum { FDS_MOST = 64 };

typedef struct fd_list {
	int fds[FDS_MOST];
	int count;
} fd_list;

static void add_fd(fd_list *list, int fd)
{
	if (list->count < FDS_MOST)
		list->fds[list->count++] = fd;
}

/* list_fds lists the descriptors that are epoll instances and eventfds: as many as there is room for. */
static void list_fds(fd_list *polls, fd_list *events)
{
	DIR *const dir = opendir("/proc/self/fd");
	struct dirent *entry;
	char text[64];

	polls->count = events->count = 0;
	if (dir == NULL)
		return;
	while ((entry = readdir(dir)) != NULL) {
		const ssize_t n = readlinkat(dirfd(dir), entry->d_name, text, sizeof text - 1);
		if (n <= 0)
			continue;
		text[n] = '\0';
		if (strcmp(text, "anon_inode:[eventpoll]") == 0)
			add_fd(polls, atoi(entry->d_name));
		else if (strcmp(text, "anon_inode:[eventfd]") == 0)
			add_fd(events, atoi(entry->d_name));
	}
	closedir(dir);
}

static bool listed(const fd_list *list, int fd)
{
	for (int i = 0; i < list->count; i++)
		if (list->fds[i] == fd)
			return true;
	return false;
}

/* watches reports whether fd is in the epoll instance ep, under this number and as this file. */
static bool watches(int ep, int fd)
{
	struct epoll_event event = {0};

	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event) == 0) {
		epoll_ctl(ep, EPOLL_CTL_DEL, fd, &event);
		return false;
	}
	return errno == EEXIST;
}

/* find_poller finds the runtime's poller among the descriptors that were not there before. */
static void find_poller(const fd_list *polls_before, const fd_list *events_before)
{
	fd_list polls, events;

	poll_fd = wake_fd = -1;
	list_fds(&polls, &events);
	for (int i = 0; i < polls.count; i++) {
		for (int k = 0; k < events.count; k++) {
			if (listed(polls_before, polls.fds[i]) || listed(events_before, events.fds[k]) || !watches(polls.fds[i], events.fds[k]))
				continue;
			poll_fd = polls.fds[i];
			wake_fd = events.fds[k];
			return;
		}
	}
}

/* replace_closed puts another file under the number of a descriptor that is closed, so that the runtime, if it uses it before the program
 * ends, finds a file that nothing happens on. */
static void replace_closed(int number, int fd)
{
	if (fd >= 0 && fd != number) {
		if (fcntl(number, F_GETFD) < 0)
			dup3(fd, number, O_CLOEXEC);
		close(fd);
	}
}

int32_t pp__engine_intact(void)
{
	if (poll_fd < 0)
		return PP_OK;
	if (!__atomic_load_n(&poller_lost, __ATOMIC_ACQUIRE)) {
		if (watches(poll_fd, wake_fd))
			return PP_OK;
		__atomic_store_n(&poller_lost, true, __ATOMIC_RELEASE);
		replace_closed(poll_fd, epoll_create1(EPOLL_CLOEXEC));
		replace_closed(wake_fd, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	}
	return pp__fail(PP_ERR_STATE, "the program has closed descriptors of the library (closefrom, close_range): its pools and processes are lost");
}

/* The runtime ends the program if it cannot open its poller. */
enum { DESCRIPTORS_LOAD = 4 };

/* descriptors_free reports whether n more descriptors can be had; errno says why not. */
static bool descriptors_free(int fd, int n)
{
	const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	if (copy < 0)
		return false;
	const bool free = n <= 1 || descriptors_free(fd, n - 1);
	const int error = errno;
	close(copy);
	errno = error;
	return free;
}

/* load loads the engine and asks it for its table. NULL with a message. The caller has the lock of loads, which guards the static
 * variables: the stack may be small. */
static const pp__table *load(void)
{
	static char path[PATH_MAX];
	static fd_list polls, events;
	int fd = find_engine(path, sizeof path);

	if (fd < 0)
		return NULL;
	if (!room_for_engine()) {
		pp__set_error("the engine needs 1 GiB of address space, of which it uses little: %s (ulimit -v?)", strerror(errno));
		close(fd);
		return NULL;
	}
	const int error = pp__engine_threads(PP__THREADS_LOAD);
	if (error != 0) {
		pp__set_error("the engine needs %d threads: %s (RLIMIT_NPROC, pids.max of the control group, RLIMIT_AS, or a seccomp filter)",
		              PP__THREADS_LOAD, strerror(error));
		close(fd);
		return NULL;
	}
	if (!descriptors_free(fd, DESCRIPTORS_LOAD)) {
		pp__set_error("the engine needs %d descriptors: %s (RLIMIT_NOFILE)", DESCRIPTORS_LOAD, strerror(errno));
		close(fd);
		return NULL;
	}
	if (depth > 0) {
		const int copy = copy_engine(fd);
		close(fd);
		if ((fd = copy) < 0)
			return NULL;
		/* Loaders take equal names for equal files, and the parent's copy may have had the same number. */
		size_t n = (size_t)snprintf(path, sizeof path, "/proc/self");
		for (uint32_t i = 0; i < depth && n + 40 < sizeof path; i++)
			n += (size_t)snprintf(path + n, sizeof path - n, "/.");
		snprintf(path + n, sizeof path - n, "/fd/%d", fd);
	}
	save_signals();
	list_fds(&polls, &events);
	void *const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	close(fd);
	if (handle == NULL) {
		pp__set_error("the engine: %s", dlerror());
		return NULL;
	}
	union {
		void *address;
		__typeof__(pp__engine) *call;
	} entry = {.address = dlsym(handle, "pp__engine")};
	if (entry.address == NULL) {
		pp__set_error("the engine: %s", dlerror());
		return NULL;
	}
	pp__modules(note_range, entry.address);
	const pp__table *const t = entry.call(&pp__the_host);
	if (t == NULL) {
		/* The engine has said why. */
		return NULL;
	}
	if (t->size != sizeof *t || t->version != ENGINE_VERSION) {
		pp__set_error("%s is of another version (%u.%u.%u, table of %u bytes) than %s (" PP_VERSION ", %zu bytes)", path, t->version >> 16,
		              t->version >> 8 & 0xff, t->version & 0xff, t->size, pp__library_file, sizeof *t);
		return NULL;
	}
	pp__signal_stack_begin();
	pp__signal_stack();
	t->ready();
	find_poller(&polls, &events);
	return t;
}

const pp__table *pp__table_now(void)
{
	const pp__table *t = __atomic_load_n(&table, __ATOMIC_ACQUIRE);

	if (t != NULL)
		return t;
	PP__NO_CANCEL();
	pthread_mutex_lock(&load_lock);
	t = table;
	if (t == NULL) {
		t = load();
		__atomic_store_n(&table, t, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&load_lock);
	return t;
}
