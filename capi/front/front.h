/* front.h - what the files of the C library share among themselves. Nothing here leaves the library. */
#ifndef PP_FRONT_H
#define PP_FRONT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd, fallocate, sched_getaffinity, dl_iterate_phdr */
#endif

#include <polyproc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "lane.h"
#include "table.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* pp__fail stores a message for pp_last_error of this thread and returns status. errno is kept. format is a literal: one without conversions is kept as it is,
 * which costs next to nothing. */
int32_t pp__fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* pp__failed returns the status of this thread's last pp__fail: for callers of a function that has failed without returning one. */
int32_t pp__failed(void);

/* pp__set_error does the same without a status. */
void pp__set_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* pp__options_fit checks the size that the caller has put at the head of its options, of which known bytes are known here. More is taken,
 * from a newer header, if it is zero. init is how to initialize them. Returns PP_OK or PP_ERR_INVALID. */
int32_t pp__options_fit(const void *options, uint32_t size, size_t known, const char *init);

/* The library's own path as the loader knew it, made absolute; "" if unknown. */
extern char pp__library_file[4096];

/* What the library offers to the engine; init.c notes the program's arguments in it. */
extern pp__host pp__the_host;

/* pp__table_now returns the engine's table, loading the engine first if need be; NULL (with a message) if it cannot. */
const pp__table *pp__table_now(void);

/* pp__engine_loaded reports whether this process, not one that forked it, has loaded the engine. */
bool pp__engine_loaded(void);

/* pp__settle_handlers sees to it that handlers that the host has installed since the engine came do not run on the stack of a goroutine,
 * which is a few KiB: without SA_ONSTACK (signal(3), Python 3.9) the kernel would put their frames there, over what lies below.
 * For calls that may wait. It looks at the likely signals, and at all of them now and then. sure false: only if the clock's tick
 * (1 to 10 ms) has changed since the last look, for short calls that come by the thousand: the look costs 1.8 us. */
void pp__settle_handlers(bool sure);

/* pp__engine_threads sees to it that the engine has n threads, those included that wait until it needs them, or 16 that wait. Returns 0,
 * or the errno of the first that could not be made: then it has made none. pp__use_spare_thread has one that waits run start(arg),
 * detached, with all signals blocked; false: none waits. A forked child has no threads of the engine. */
int pp__engine_threads(unsigned n);
bool pp__use_spare_thread(void *(*start)(void *), void *arg);
void pp__threads_forked(void);
void pp__pools_forked(void); /* a forked child has no pools */

/* pp__signal_stack gives the calling thread an alternative signal stack of PP__SIGNAL_STACK bytes with a guard page, if it has none: before
 * its first call into Go. pp__signal_stack_begin comes once before, after the engine was loaded; the stacks are freed at the ends of their threads. */
#define PP__SIGNAL_STACK ((size_t)256 << 10)
void pp__signal_stack_begin(void);
void pp__signal_stack(void);

/* pp__engine_intact reports whether the descriptors that the Go runtime cannot do without are still open: PP_OK, or PP_ERR_STATE. */
int32_t pp__engine_intact(void);

/* The number of forks with a loaded engine between this process and the one that was executed. It is the upper 16 bits of
 * every handle, so that a handle tells whether it was issued before a fork. */
uint32_t pp__fork_depth(void);

/* pp__modules is dl_iterate_phdr(3), but not during a fork by another thread: glibc (2.36) leaves the lock of that function in the child
 * as it is, and there is nobody who would release it. Not in a callback of itself. */
struct dl_phdr_info;
int pp__modules(int (*look)(struct dl_phdr_info *info, size_t size, void *data), void *data);

/* pp__resolve finds the module that a function lies in: PP_OK, PP_ERR_NOT_FOUND, PP_ERR_TOO_BIG. */
int32_t pp__resolve(const void *fn, pp__fn_ref *ref_out);

/* pp__locate is the way back, in another process: PP_OK and the function's address; PP_ERR_NOT_FOUND if the module is not there,
 * is another build, or has no code at the offset. */
int32_t pp__locate(const pp__fn_ref *ref, const void **fn_out);

/* pp__process returns a word that names the process which has this number now, for pp__process_gone in any process of this pid namespace; 0
 * with a message if there is none. Bits as in the table of members (shm/members.go), but for the generation, which is 0: process id; the
 * low bits of the pidfd's inode where the kernel has one for each process, else those of the start time; which of the two. Where
 * neither can be found the id is a start time of 0, which is never compared: then the number alone names the process. */
uint64_t pp__process(pid_t pid);

/* pp__process_gone reports whether the process that a word names is proven dead: no process has the number, another one has it, or all
 * threads of the process have ended (a zombie is dead). What cannot be found out proves nothing: a process that /proc does not show lives. */
bool pp__process_gone(uint64_t word);

/* pp__own_proc reports whether /proc is that of this process's pid namespace, so that /proc/PID is the process that PID names here. */
bool pp__own_proc(void);

/* pp__boot_time reports whether this process counts time from the boot, as processes outside of time namespaces do: else the start times that
 * it reads are not those that others read. */
bool pp__boot_time(void);

/* pp__unmapped reports whether it is proven that the process does not map the file: it executed another program, which keeps
 * process id, start time and pidfd. Maps that cannot be read prove nothing, nor do those of a /proc that does not show that we
 * map the file ourselves. */
bool pp__unmapped(pid_t pid, uint64_t device, uint64_t inode);

/* pp__watch begins to watch process pid: this one's parent; or, if word is not 0, the process that it names, as pp__process does: the
 * parent of a worker that a fork server made. fd, if not -1, is a file that the process locks and maps for as long as it executes
 * this program. PP_OK also if it is watched already; PP_ERR_STATE if it is not there any more; PP_ERR_SYSTEM. */
int32_t pp__watch(pid_t pid, uint64_t word, int fd);

/* pp__fork_worker forks a C worker that serves the place: its pid, or -1 with errno. */
int32_t pp__fork_worker(const pp_vacancy *vacancy);

/* pp__fork_process forks a child that runs options->fn once the bell gate, in memory that both share, has rung: its pid, or -1 with errno. */
int32_t pp__fork_process(const pp_process_options *options, pp__bell *gate);

/* pp__started_by_fork notes that polyproc forked this process. */
void pp__started_by_fork(pid_t parent);

/* In the child of a fork: locks that another thread held at that moment are free again. What they guard is a few words, each valid
 * at every moment. */
void pp__payload_forked(void);
void pp__watch_forked(void);

/* pp__thread_begin starts a detached thread of the library, in which no signal handler runs. It has `stack` bytes of stack besides what
 * thread-local variables take. 0, or an errno. */
int pp__thread_begin(void *(*run)(void *), void *arg, size_t stack);

/* pp__watched reports whether a thread of this process watches its parent. */
bool pp__watched(void);

/* How this process was started, from POLYPROC_PROCESS. */
typedef struct pp__started {
	bool known; /* polyproc started this process, or one that forked it */
	pid_t parent_pid;
	uint32_t flags; /* PP__CHILD_ */
	int payload_fd;
} pp__started;

enum { PP__CHILD_WATCH = 1, PP__CHILD_FN = 2 };

/* The environment is believed only if its writer can do no more than this process: never in a set-uid or set-gid program, nor in one with file
 * capabilities (secure_getenv(3)); and the descriptors that it names must be such as only this user, or root, can have made.
 * pp__inherited_file checks one: a memory file that nobody can shrink. */
struct stat;
bool pp__inherited_file(int fd, struct stat *st_out);

/* pp__denied reports whether this program was started as a worker, or to run one function, and cannot believe it. */
bool pp__denied(void);

/* pp__started_as takes POLYPROC_PROCESS from the environment on the first call. */
const pp__started *pp__started_as(void);

/* pp__payload_raw maps the payload, function reference included. */
int32_t pp__payload_raw(const void **data_out, size_t *size_out);

/* Views of a file: mmap wants offsets that are multiples of the page size, which is not 4,096 everywhere. */
typedef struct pp__view {
	void *base;
	size_t length;
	uint8_t *data; /* the byte at the wanted offset */
} pp__view;

/* pp__view_map maps size bytes at off. Returns 0 or errno. */
int pp__view_map(pp__view *view, int fd, uint64_t off, uint64_t size, int prot);
void pp__view_unmap(pp__view *view);

/* The task that pp_worker_next took, with what is for C tasks only. */
typedef struct pp__call {
	const void *ctx;
	size_t ctx_size;
	size_t room; /* for the result */
	bool exact;  /* the result will most likely take all the room */
	bool is_range; /* a pp_range_fn is called, for: */
	size_t begin, end;
	void *data;
	uint32_t span; /* not 0: a pp_task_fn is called for up to so many elements, each of: */
	size_t in_size, stride;
	const uint8_t *elements;
} pp__call;

int32_t pp__worker_call(pp__call *call_out);

/* pp__worker_stage returns room for the result of the taken task, 8-aligned, best in the place that the parent will read. What
 * is written there and then given to pp_worker_done is not copied again. NULL: out of memory. */
void *pp__worker_stage(size_t room, bool exact);

/* pp__worker_claim begins the next element of a span: PP_OK and its number, or PP_ERR_TIMEOUT: there is none any more. */
int32_t pp__worker_claim(uint32_t *element_out);

/* pp__worker_span_room says where the outcomes of a span go, and after them the results: to be given to pp_worker_done in the end. NULL: out
 * of memory. */
pp__span_out *pp__worker_span_room(size_t *size_out);

/* pp__worker_refuse is pp_worker_done for a task that the library could not run: status is PP_ERR_NOT_FOUND, PP_ERR_TOO_BIG or PP_ERR_NOMEM. */
int32_t pp__worker_refuse(int32_t status, const void *data, size_t size);

/* pp__worker_fn finds a task function: PP_OK, PP_ERR_NOT_FOUND, PP_ERR_CORRUPT. */
int32_t pp__worker_fn(uint64_t fn, const void **fn_out);

/* pp__worker_init_fn is the pool's initializer, 0 if none. */
uint64_t pp__worker_init_fn(void);

/* pp__worker_orphan: this process was started as a worker of a pool whose process has died since. */
bool pp__worker_orphan(void);

/* Called in a forked child: the lane belongs to the parent process. */
void pp__worker_forked(void);

static inline uint64_t pp__now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* pp__storage_reserve gives size bytes at off of a file storage, which may have some already,
 * unless the machine or a control group has no more than its reserve. budget is the word of a heap
 * (pp__heap_head), NULL: none. PP_OK, PP_ERR_NOMEM, PP_ERR_SYSTEM with errno; no message. In
 * storage.c. */
int32_t pp__storage_reserve(int fd, uint64_t *budget, uint64_t off, uint64_t size);

/* pp__parse_reserve reads a value of POLYPROC_MEMORY_RESERVE: false if it is none. */
bool pp__parse_reserve(const char *text, bool *percent_out, uint64_t *value_out);

/* pp__is_file reports whether a descriptor is that of this file still: a program that becomes a daemon closes all there are, and what it opens then may have the same number.
 * pp__device_of is a file's device as /proc/PID/maps writes it: major << 32 | minor. Both in storage.c. */
struct stat;
uint64_t pp__device_of(const struct stat *st);
bool pp__is_file(int fd, uint64_t device, uint64_t inode);

/* PP__NO_CANCEL() keeps this thread from being cancelled (pthread_cancel) until the end of the
 * enclosing block. open, read, close, poll, fallocate and others are cancellation points: a thread
 * that ends in one of them leaves locks and descriptors behind. So each function that makes such a
 * system call, or its caller, has this line. A request that arrives meanwhile stays pending. */
#define PP__NO_CANCEL() __attribute__((cleanup(pp__cancel_restore), unused)) const int pp__cancel_state = pp__cancel_disable()

static inline int pp__cancel_disable(void)
{
	int state = PTHREAD_CANCEL_ENABLE;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	return state;
}

static inline void pp__cancel_restore(const int *state)
{
	pthread_setcancelstate(*state, NULL);
}

/* Tells the CPU that this is a loop that waits for another one. */
static inline void pp__pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb" ::: "memory");
#else
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
#endif
}

#endif
