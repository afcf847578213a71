/* polyproc.h - processes, pools and shared memory for C programs.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * INTRODUCTION
 *
 *   polyproc runs your functions in other processes: on every core, and each in an address space of
 *   its own, so that a function that crashes costs one task and not the program. This header is the
 *   whole C interface. What is not declared here is not published.
 *
 *       #include <polyproc.h>
 *
 *       static int32_t square(const void *in, size_t in_size, void *out, size_t *out_size,
 *                             const void *ctx, size_t ctx_size)
 *       {
 *           double x = *(const double *)in;
 *           *(double *)out = x * x;
 *           return 0;
 *       }
 *
 *       int main(int argc, char **argv)
 *       {
 *           pp_init(&argc, &argv);               // in a worker this call never returns
 *           pp_pool pool;
 *           pp_pool_options options = PP_POOL_OPTIONS_INIT;
 *           if (pp_pool_open(&options, &pool) != PP_OK) {
 *               fprintf(stderr, "%s\n", pp_last_error());
 *               return 1;
 *           }
 *           double in[1000], out[1000];          // fill in ...
 *           pp_pool_map(pool, square, in, sizeof *in, out, sizeof *out, 1000, 0, NULL, 0, NULL);
 *           return pp_pool_free(pool) == PP_OK ? 0 : 1;
 *       }
 *
 *   cc program.c $(pkg-config --cflags --libs polyproc)
 *
 * WORKERS
 *
 *   A worker is this program, executed again: pp_init(), the first call of main, sees that it is in
 *   a worker and serves tasks until the pool is closed. A task is a plain function pointer; it
 *   needs no registration, it only has to be part of the program or of a shared library that the
 *   program has loaded. A worker dies with the process that started it, whatever ends that process,
 *   and when that process executes another program (execve).
 *
 *   A worker inherits the environment, the working directory, standard output and standard error,
 *   limits and priority; of other descriptors only those of the family. Its standard input is empty
 *   (/dev/null): what there is to read is the program's. Its signals are at their defaults, but
 *   SIGINT does nothing: Ctrl-C is for the program. Global constructors, and what stands before
 *   pp_init in main, run in every worker. A worker may open pools of its own. Workers are children
 *   of the program: a loop of wait(2) until there are no more children does not end while a pool is
 *   open. A task that calls exit() or is left by a C++ exception, by pthread_exit or by longjmp
 *   ends its worker; so do initializers and functions of processes. An exception ends the process
 *   by SIGABRT, as std::terminate does, with every start method.
 *
 *   With PP_START_FORK a worker is a fork(2) of the program instead, and has all that the program
 *   has at that moment. Replacements of workers that end are forked later, from a thread of the
 *   library, while other threads of the program run: a mutex that one of them holds at that moment,
 *   that of malloc's excepted, stays locked in the worker for ever. Tasks of forked workers must
 *   take no locks that other threads of the program use; with PP_START_SPAWN there is no such
 *   limit.
 *
 * ERRORS
 *
 *   Functions that can fail return PP_OK (0) or a negative PP_ERR_ code; pp_last_error() has the
 *   message, for this thread, until its next failing call. No function of the library calls exit()
 *   or abort(), except pp_init in a worker, and no crash of a worker reaches the program.
 *
 * ENGINE
 *
 *   Pools and processes are run by a Go runtime, which the library loads when a program first opens
 *   a pool or starts a process. It needs 1 GiB of address space, of which it uses little, 4
 *   descriptors, and 8 threads, which the library makes first: where it cannot, the call returns
 *   PP_ERR_ENGINE. Threads that the runtime does not use yet wait in reserve. If it needs more of
 *   them, at a moment when the system grants none (RLIMIT_NPROC, pids.max of a control group), it
 *   ends the process by SIGABRT. The library cannot prevent that, only make it unlikely: a process
 *   at its limit of threads should open its pools early. A program that closes all its descriptors
 *   (closefrom, close_range) while it has pools loses them: every call on pools and processes
 *   returns PP_ERR_STATE from then on, and their workers live until the program ends.
 *
 * SECURITY
 *
 *   A family of processes is one user: each member can read and write all that the family shares,
 *   and one that gives up its rights (setuid) stays a member. Named queues are opened only if their
 *   file is this user's, without access for others. What a parent tells its child in the
 *   environment (POLYPROC_*) is believed only if its descriptors are memory files of this user, or
 *   of root. A set-user-ID or set-group-ID program, or one with file capabilities, ignores these
 *   variables and removes them; it cannot be executed again as a worker, so it must use
 *   PP_START_FORK: one that is started by PP_START_SPAWN ends in pp_init with a message. The
 *   connections of polyproc.connection are authenticated by their key, not encrypted.
 *
 *   A process is taken for dead only on the kernel's proof, never because /proc does not show it.
 *   Processes of different pid namespaces cannot share objects (PP_ERR_UNSUPPORTED). Checkpoint and
 *   restore (CRIU) is not supported.
 *
 * THREADS
 *
 *   Every function may be called from any thread, with any handle, at the same time.
 *   pp_last_error() is per thread. No function is a cancellation point: a request of
 *   pthread_cancel() that arrives during a call stays pending until the call has returned and the
 *   thread reaches a cancellation point of its own. Asynchronous cancellation must be off during a
 *   call. Do not leave a call by longjmp() or siglongjmp() out of a signal handler: the behaviour
 *   is undefined. The call may hold locks of this process and of the shared memory, and then later
 *   calls, in every process of the family, wait for them without end.
 *
 * WAITING
 *
 *   timeout_ms is a number of milliseconds; -1: no limit; 0 or PP_TRY: do not wait. Other negative
 *   numbers are PP_ERR_INVALID. What can be done at once is done whatever timeout_ms says.
 *
 * SIGNALS
 *
 *   A signal handler that the program installs should have SA_ONSTACK (and SA_RESTART, as it
 *   likes): the Go runtime behind the library runs on small stacks, also in the program's threads
 *   while these are in a call. Calls that wait give the flag to handlers that lack it. A thread
 *   that calls functions of pools or processes gets an alternative signal stack of 256 KiB, with a
 *   guard page, unless it has one, and keeps it until it ends: handlers run there from then on. A
 *   handler must not leave it by longjmp. A handler without SA_RESTART that runs during a call that
 *   waits ends it with PP_ERR_INTERRUPTED. A handler with SA_RESTART does not, and one of SIGCHLD
 *   never does, with two exceptions. The kernel does not say which handler ran, and a call that
 *   cannot tell returns PP_ERR_INTERRUPTED, because a program can repeat the call:
 *     - a handler of SIGCHLD without SA_RESTART ends calls if the program has another handler
 *       without the flag;
 *     - pp_pipe_recv, pp_pipe_poll, their variants and pp_process_wait, and all calls before Linux
 *       5.16 or where seccomp denies futex_waitv, are ended by handlers with SA_RESTART, too, if
 *       the program has a handler without the flag.
 *   A handler that runs in the last moment (up to 50 us) before a call goes to sleep may not end
 *   it; a call that waits wakes up now and then, looks, and goes to sleep again. A program that
 *   must notice signals at once gives its waits a limit of time, or lets the handler itself wake
 *   the waiter.
 *   pp_event_set and pp_semaphore_release are async-signal-safe: a handler may call them, in any
 *   thread, with a handle that was made before. If one fails that is a thread's first call of the
 *   library, pp_last_error() says nothing of it.
 *
 * OWNERSHIP
 *
 *   Handles are numbers, never reused within a process; 0 is no handle. A handle that was freed, or
 *   is of another kind, is answered by PP_ERR_HANDLE. Freeing handle 0 does nothing. Memory behind
 *   an input pointer is the caller's and is not kept after the call returns. Memory that the
 *   library hands out is freed by the function that its documentation names.
 *
 * MEMORY
 *
 *   Shared memory is reserved before it is touched, so full memory is PP_ERR_NOMEM and no signal,
 *   in a control group too. A call that would leave the machine, or a control group, less than a
 *   reserve is refused: 5 % of its memory or limit, at least 256 MiB, but at most an eighth (or 8
 *   MiB, if that is more). Swap does not count. The environment variable POLYPROC_MEMORY_RESERVE,
 *   read at the first need and ignored in set-user-ID programs, sets another reserve: bytes, with
 *   K, M, G or T, or a percentage ("512M", "10%").
 *
 * UNLOADING
 *
 *   Do not dlclose() the library: the Go runtime behind it cannot be unloaded. dlclose() is
 *   harmless but frees nothing.
 *
 * FORK
 *
 *   Pools and processes belong to the process that opened them; in a forked child their handles
 *   answer PP_ERR_FORKED.
 */
#ifndef POLYPROC_H
#define POLYPROC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PP_API __attribute__((visibility("default")))
#else
#define PP_API
#endif

/* ---- version --------------------------------------------------------------------------------- */

#define PP_VERSION_MAJOR 0
#define PP_VERSION_MINOR 1
#define PP_VERSION_PATCH 0
#define PP_VERSION "0.1.0"

/* pp_version returns the version of the library that is loaded, for example "0.1.0": a static
 * string. Compare it with PP_VERSION, which is the version of this header; a library of the same
 * major version serves the header. */
PP_API const char *pp_version(void);

/* pp_library_path returns the path of the loaded library file: a static string, "" if the system
 * does not tell. */
PP_API const char *pp_library_path(void);

/* ---- status codes and messages --------------------------------------------------------------- */

/* PP_STATUS_LIST(X): every code once, as X(name, number, message). The numbers never change. */
#define PP_STATUS_LIST(X)                                                                  \
	X(OK, 0, "success")                                                                \
	X(ERR_INVALID, -1, "invalid argument")                                             \
	X(ERR_HANDLE, -2, "no such handle: it was freed, never opened, or is of another kind") \
	X(ERR_NOMEM, -3, "out of memory, or a limit on memory, file size or address space") \
	X(ERR_TIMEOUT, -4, "timed out")                                                    \
	X(ERR_INTERRUPTED, -5, "interrupted by a signal")                                  \
	X(ERR_CLOSED, -6, "closed")                                                        \
	X(ERR_STATE, -7, "not possible in this state")                                     \
	X(ERR_WORKER_LOST, -8, "the worker died while it ran the task")                    \
	X(ERR_START, -9, "a process could not be started")                                 \
	X(ERR_INIT, -10, "the initializer of the workers fails")                           \
	X(ERR_CANCELLED, -11, "cancelled before it started")                               \
	X(ERR_TASK, -12, "the task returned an error of its own")                          \
	X(ERR_NOT_FOUND, -13, "not found")                                                 \
	X(ERR_EXISTS, -14, "exists already")                                               \
	X(ERR_TOO_BIG, -15, "too big")                                                     \
	X(ERR_CORRUPT, -16, "shared memory does not hold what it must")                    \
	X(ERR_UNSUPPORTED, -17, "not supported on this platform")                          \
	X(ERR_FORKED, -18, "the handle belongs to the process that forked this one")       \
	X(ERR_ENGINE, -19, "the Go engine could not be loaded")                            \
	X(ERR_SYSTEM, -20, "a system call failed")                                         \
	X(ERR_PANIC, -21, "internal error: please report it")                              \
	X(ERR_OWNER_DIED, -22, "the holder of the lock has died; "                        \
	                        "the lock was not acquired: see pp_lock_recover")          \
	X(ERR_EMPTY, -23, "empty")                                                         \
	X(ERR_FULL, -24, "full")                                                           \
	X(ERR_BROKEN, -25, "the barrier is broken")                                        \
	X(ERR_EOF, -26, "the other end is closed")                                         \
	X(ERR_PERMISSION, -27, "the object belongs to another user, or others have access to it")

enum {
#define PP__X(name, number, message) PP_##name = number,
	PP_STATUS_LIST(PP__X)
#undef PP__X
};

/* PP_TRY is a timeout_ms, for all calls that wait: do not wait. It is 0 but for queues, see
 * there. */
#define PP_TRY INT64_MIN

/* pp_strerror returns the message of a status code: a static string, "unknown status" for any other
 * number. */
PP_API const char *pp_strerror(int32_t status);

/* pp_status_name returns the name of a status code, for example "PP_ERR_TIMEOUT": a static string,
 * or "PP_?". */
PP_API const char *pp_status_name(int32_t status);

/* pp_last_error returns what the last failing call on this thread said, in words: "" if none failed
 * yet. The string is the library's, valid until this thread's next call that fails. */
PP_API const char *pp_last_error(void);

/* ---- start ----------------------------------------------------------------------------------- */

/* pp_init is the first call of main. In a worker (this program, executed again) it serves and never
 * returns; elsewhere it notes that the program can be executed again, and returns PP_OK. argc and
 * argv may be NULL. Without it, pools and functions in spawned processes are refused with
 * PP_ERR_STATE. */
PP_API int32_t pp_init(int *argc, char ***argv);

/* pp_cpu_count returns how many CPUs this process may use (sched_getaffinity(2)), at least 1. */
PP_API int32_t pp_cpu_count(void);

/* Start methods. */
enum {
	PP_START_DEFAULT = 0,   /* spawn */
	/* a program is executed afresh: nothing is inherited that was not passed */
	PP_START_SPAWN = 1,
	/* fork(2), for functions (fn) and for pools of this program's functions: they need no
	 * pp_init. See WORKERS for what such a worker must not do */
	PP_START_FORK = 2,
	PP_START_FORKSERVER = 3 /* not for C: PP_ERR_UNSUPPORTED */
};

/* pp_watch_parent ends this process with SIGKILL when the process that polyproc started it from has
 * died, by whatever cause, within milliseconds. Workers do it by themselves; a process started by
 * pp_process_start calls it if it wants to be a daemon. It costs one thread that sleeps. Returns
 * PP_OK; PP_ERR_STATE if polyproc did not start this process; PP_ERR_SYSTEM. */
PP_API int32_t pp_watch_parent(void);

/* pp_watch_process is pp_watch_parent for any process of this user, such as the one that asked a
 * fork server for this process. One process is watched at a time: the latest. Returns PP_OK;
 * PP_ERR_STATE if there is no such process; PP_ERR_INVALID; PP_ERR_SYSTEM. */
PP_API int32_t pp_watch_process(int32_t pid);

/* ---- family ---------------------------------------------------------------------------------- */

/* Processes share queues, locks and pipes within a family: the process that made the first of them
 * or started the first child, its children, theirs, and so on. Children that it forks after
 * pp_init, its first object or its first pool belong to it, and so do workers of pools and children
 * that run one of this program's functions. Another program joins if it is started with
 * PP_PROCESS_FAMILY, or inherits the two descriptors and is told by the environment.
 *
 * pp_family returns in fds_out the two descriptors, which stay the library's, and in env_out
 * (env_size bytes; NULL, 0: not wanted) the environment variable, "POLYPROC_FAMILY=...", 80 bytes
 * at most, that the library in the child takes note of when it is loaded. Returns PP_OK;
 * PP_ERR_NOMEM (RLIMIT_FSIZE); PP_ERR_TOO_BIG; PP_ERR_SYSTEM, also if the program has closed the
 * descriptors: a process that it starts is not of the family then, one that it forks is. */
PP_API int32_t pp_family(int32_t fds_out[2], char *env_out, size_t env_size);

/* pp_family_join makes this process a member of the family that env, pp_family's text, tells of, if
 * the library did not find it in the environment. Returns PP_OK; PP_ERR_INVALID (the descriptors
 * are not what env says); PP_ERR_STATE (it is of another family). */
PP_API int32_t pp_family_join(const char *env);

/* ---- process --------------------------------------------------------------------------------- */

typedef uint64_t pp_process;

/* pp_process_fn runs in the child; what it returns is the child's exit code (0..255). */
typedef int32_t (*pp_process_fn)(const void *arg, size_t arg_size);

/* pp_process_options says what pp_process_start starts. Zero is the default of every field. */
typedef struct pp_process_options {
	uint32_t size;           /* sizeof(pp_process_options); more is accepted if the rest is zero */
	uint32_t method;         /* PP_START_ */
	/* run fn(arg, arg_size) in a child that executes this program again (PP_START_FORK: in a
	 * forked one); or NULL and: */
	pp_process_fn fn;
	/* the program to execute, NULL: argv[0]. Without a slash it is looked up in the PATH of env,
	 * if env is given, else in this process's; relative entries of PATH are passed over */
	const char *path;
	const char *const *argv; /* its arguments with argv[0], ended by NULL */
	const char *const *env;  /* its environment "NAME=value", ended by NULL; NULL: this process's */
	const char *cwd;         /* its working directory; NULL: this process's */
	/* descriptors that the child inherits, under the same numbers, besides 0, 1 and 2; no others
	 * are inherited (PP_START_FORK: all are) */
	const int32_t *fds;
	size_t fds_count;
	/* bytes for the child: fn's argument, or what pp_payload() returns in it */
	const void *arg;
	size_t arg_size;
	uint32_t flags;          /* PP_PROCESS_ */
	uint32_t reserved;
} pp_process_options;

enum {
	PP_PROCESS_DAEMON = 1,      /* with fn: the child calls pp_watch_parent() */
	PP_PROCESS_BLOCK_SIGINT = 2, /* the child begins with SIGINT blocked */
	/* with argv: the program becomes a member of the family, see pp_family; with fn it always
	 * does */
	PP_PROCESS_FAMILY = 4
};

/* (pp_process_options){...} with every field zero but size. */
#define PP_PROCESS_OPTIONS_INIT {sizeof(pp_process_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* pp_exit tells how a process ended. */
typedef struct pp_exit {
	/* 1; 0 if the host program itself collected the status (waitpid(-1), SIGCHLD ignored) */
	int32_t known;
	int32_t code;   /* exit code 0..255, if signal is 0 */
	int32_t signal; /* the signal that ended it, or 0 */
} pp_exit;

/* pp_process_start starts a child process. Returns PP_OK and the handle; PP_ERR_INVALID;
 * PP_ERR_STATE (fn without pp_init); PP_ERR_NOT_FOUND (no such program); PP_ERR_START;
 * PP_ERR_NOMEM; PP_ERR_UNSUPPORTED (method). */
PP_API int32_t pp_process_start(const pp_process_options *options, pp_process *process_out);

/* pp_process_adopt takes over a process that the program started without this library, by fork(2)
 * say: it is supervised and collected like one that pp_process_start has started. pid is a child of
 * this process; or a child of another, and then status_fd, if not -1, is as in pp_pool_fill.
 * Returns PP_OK and the handle; PP_ERR_INVALID (pid 1, or this process); PP_ERR_NOT_FOUND;
 * PP_ERR_NOMEM; PP_ERR_UNSUPPORTED. */
PP_API int32_t pp_process_adopt(int32_t pid, int32_t status_fd, pp_process *process_out);

/* pp_process_wait waits for the end of the child, for at most timeout_ms milliseconds (-1: for
 * ever, 0: only looks). Returns PP_OK and how it ended, as often as it is asked; PP_ERR_TIMEOUT;
 * PP_ERR_INTERRUPTED (a signal handler without SA_RESTART ran; call again); PP_ERR_HANDLE. */
PP_API int32_t pp_process_wait(pp_process process, int64_t timeout_ms, pp_exit *exit_out);

/* pp_process_info returns the child's process id and a descriptor that poll(2) finds readable once
 * the child has ended (a pidfd; it stays the library's and is closed by pp_process_free). Either
 * pointer may be NULL. */
PP_API int32_t pp_process_info(pp_process process, int32_t *pid_out, int32_t *fd_out);

/* pp_process_signal sends a signal to the child; to one that has ended it does nothing. The process
 * id cannot be that of another process. Returns PP_OK, PP_ERR_INVALID (no such signal),
 * PP_ERR_HANDLE, PP_ERR_SYSTEM. */
PP_API int32_t pp_process_signal(pp_process process, int32_t signal);

/* pp_process_free gives the handle back. The child goes on, and is still collected when it ends. */
PP_API int32_t pp_process_free(pp_process process);

/* pp_payload returns, in a child started with arg and argv, the bytes of arg: they are mapped, read
 * only, and stay until the process ends. Returns PP_OK; PP_ERR_STATE if this process was not given
 * any. */
PP_API int32_t pp_payload(const void **data_out, size_t *size_out);

/* ---- pool ------------------------------------------------------------------------------------ */

typedef uint64_t pp_pool;

/* pp_task_fn is a task. in and ctx are read only, aligned to 8 bytes, and valid until it returns.
 * out has room for *out_size bytes; the function may set *out_size to fewer. It returns 0, or any
 * other number, its own error code, which the caller finds in pp_outcome.code or pp_result.code
 * (status PP_ERR_TASK). A task that fails may leave a text in out: if it sets *out_size to fewer
 * than it was, the caller gets these bytes. A crash or exit() in it costs this task:
 * PP_ERR_WORKER_LOST. */
typedef int32_t (*pp_task_fn)(const void *in, size_t in_size, void *out, size_t *out_size,
                              const void *ctx, size_t ctx_size);

/* pp_init_fn runs once at the start of each worker; a result other than 0 is a failure. */
typedef int32_t (*pp_init_fn)(const void *arg, size_t arg_size);

typedef struct pp_pool_options {
	uint32_t size;           /* sizeof(pp_pool_options); more is accepted if the rest is zero */
	uint32_t method;         /* PP_START_ */
	int32_t workers;         /* how many; 0: pp_cpu_count(); at most 1024 */
	uint32_t max_tasks;      /* a worker is replaced after so many tasks; 0: never */
	size_t out_max;          /* pp_pool_submit: room for a task's result in bytes; 0: 65,536 */
	pp_init_fn initializer;  /* or NULL */
	/* bytes for the initializer, or (with argv) what pp_worker_attach returns */
	const void *init_arg;
	size_t init_arg_size;
	/* a worker host other than this program: one that calls pp_worker_attach(); */
	const char *path;
	const char *const *argv; /* see pp_process_options for these four */
	const char *const *env;
	const char *cwd;
	uint32_t flags;          /* PP_POOL_ */
	uint32_t reserved;
} pp_pool_options;

enum {
	/* The host starts the workers itself, by a fork of its own or through a server that forks: see
	 * pp_pool_vacancy. method, path, argv, env and cwd mean nothing then. */
	PP_POOL_HOST_STARTS = 1
};

#define PP_POOL_OPTIONS_INIT {sizeof(pp_pool_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* pp_outcome is how one element of pp_pool_map ended. */
typedef struct pp_outcome {
	/* PP_OK
	 * PP_ERR_TASK         the task returned an error of its own: code
	 * PP_ERR_WORKER_LOST  the worker died while it ran the task: pid, exit_code
	 * PP_ERR_CANCELLED    the task was not started
	 * PP_ERR_INTERRUPTED  the task was running when the call was interrupted
	 * PP_ERR_CLOSED       the pool was terminated first
	 * PP_ERR_INIT         the initializer fails in all workers
	 * PP_ERR_START        no worker can be started, or all end before they are ready: exit_code
	 * PP_ERR_NOMEM        there is no memory for the task's bytes
	 * PP_ERR_NOT_FOUND    the worker has not got the function: the program's file was replaced
	 * PP_ERR_TOO_BIG      the task set *out_size to more than it had */
	int32_t status;
	int32_t code;      /* PP_ERR_TASK: what the task returned; 0 otherwise */
	int32_t pid;       /* the worker that ran the task; 0 if none did */
	/* PP_ERR_WORKER_LOST, PP_ERR_START: the exit code, or minus the signal that ended the
	 * worker; INT32_MIN: not known */
	int32_t exit_code;
	uint64_t size;     /* PP_OK, PP_ERR_TASK: how many bytes of out[i] the task wrote */
} pp_outcome;

/* pp_result is the outcome of one submitted task. */
typedef struct pp_result {
	uint64_t task;    /* its number, from pp_pool_submit */
	uint64_t cookie;  /* what the submitter gave with it */
	int32_t status;   /* as pp_outcome.status */
	int32_t code;     /* PP_ERR_TASK: what the task returned; 0 otherwise */
	int32_t pid;      /* the worker that ran it; 0 if none did */
	/* PP_ERR_WORKER_LOST, PP_ERR_START: its exit code, or minus the signal that ended it;
	 * INT32_MIN: not known */
	int32_t exit_code;
	uint64_t size;    /* bytes of data */
	/* the result's bytes; PP_ERR_TASK: those that the task left; PP_ERR_INIT, PP_ERR_START,
	 * PP_ERR_NOT_FOUND: the reason as text, without a final NUL. NULL if size is 0 */
	const void *data;
	uint64_t owned;   /* not 0: data was allocated for the caller, see pp_result_free */
} pp_result;

/* pp_pool_open starts a pool. It returns when the workers have been started, not when they are
 * ready: errors of the initializer come with the first result. Returns PP_OK and the handle
 *         PP_ERR_INVALID      options that cannot be, unknown flags, reserved fields that are not 0
 *         PP_ERR_STATE        no pp_init and no argv; or the library's descriptors are closed
 *         PP_ERR_ENGINE       the Go engine could not be loaded, or has no threads: see ENGINE
 *         PP_ERR_NOT_FOUND    the program's file is not there any more, or there is no /proc
 *         PP_ERR_START, PP_ERR_NOMEM, PP_ERR_UNSUPPORTED (method) */
PP_API int32_t pp_pool_open(const pp_pool_options *options, pp_pool *pool_out);

/* pp_pool_map runs fn for each of the n elements of the array in (in_size bytes each) and stores
 * its results in the array out (out_size bytes each; may be NULL and 0), like a parallel for loop.
 * fn gets element i, room for element i, and ctx. chunk elements go to a worker together (0 or 1:
 * the pool adapts); what has not begun can still go to another worker. Each element has its own
 * outcome, and an element that kills its worker costs no other. outcomes_out, if not NULL, has n
 * entries, all of which are filled in whatever the call returns. pp_pool_map waits until all
 * elements are done. It writes out[i] if element i is PP_OK or PP_ERR_TASK, outcomes_out[i].size
 * bytes. Returns PP_OK: every element is PP_OK
 *         the status of the first element that is not PP_OK; pp_last_error says which and why
 *         PP_ERR_INTERRUPTED: a signal handler without SA_RESTART ran. Elements that had not
 *                             started are cancelled. Nothing is written to out or outcomes_out
 *                             after the return
 *         PP_ERR_INVALID, PP_ERR_HANDLE, PP_ERR_FORKED, PP_ERR_CLOSED, PP_ERR_TOO_BIG,
 *         PP_ERR_NOMEM: no element was started */
PP_API int32_t pp_pool_map(pp_pool pool, pp_task_fn fn, const void *in, size_t in_size, void *out,
                           size_t out_size, size_t n, size_t chunk, const void *ctx,
                           size_t ctx_size, pp_outcome *outcomes_out);

/* pp_range_fn is the body of a parallel for loop: it does what is to be done for the numbers begin,
 * begin + 1, ... end - 1. data is the data of pp_pool_for, mapped in the worker, perhaps at another
 * address: pointers in it are of no use. ctx is read only. Returns 0, or any other number, its own
 * error code. */
typedef int32_t (*pp_range_fn)(size_t begin, size_t end, void *data, const void *ctx,
                               size_t ctx_size);

/* pp_pool_for runs fn for the numbers 0 to n - 1, in ranges of grain numbers each (the last may be
 * shorter), and waits until all ranges are done: a parallel for loop without copies. grain 0: the
 * pool makes a few ranges for each worker. Ranges run at the same time and in no order. A loop over
 * fewer than some 100 microseconds of work is faster without it.
 *
 * data points into memory of pp_pool_alloc, where the loop finds what it reads and leaves what it
 * writes, or is NULL. What a range has written before it failed, or before its worker died, is
 * there. outcomes_out, if not NULL, has an entry for each range, (n + grain - 1) / grain of them,
 * all of which are filled in whatever the call returns; grain must not be 0 then. Returns as
 * pp_pool_map; PP_ERR_INVALID also if data is not in memory of pp_pool_alloc of this pool. */
PP_API int32_t pp_pool_for(pp_pool pool, pp_range_fn fn, size_t n, size_t grain, void *data,
                           const void *ctx, size_t ctx_size, pp_outcome *outcomes_out);

/* pp_pool_alloc allocates size bytes that the program shares with the workers of the pool, for
 * pp_pool_for. They are aligned to a page and not initialized. They are gone with pp_pool_free, and
 * are not shared with forked children of the program. Returns PP_OK; PP_ERR_INVALID; PP_ERR_NOMEM;
 * PP_ERR_CLOSED; PP_ERR_HANDLE. */
PP_API int32_t pp_pool_alloc(pp_pool pool, size_t size, void **data_out);

/* pp_pool_dealloc gives memory of pp_pool_alloc back. NULL does nothing. A pp_pool_for that was
 * interrupted may leave ranges running: these keep the memory until they have ended, but nothing
 * may use it here any more. Returns PP_OK; PP_ERR_INVALID; PP_ERR_HANDLE. */
PP_API int32_t pp_pool_dealloc(pp_pool pool, void *data);

/* pp_pool_submit hands one task to the pool: fn gets the size bytes of data as its in, and no ctx.
 * It does not wait. fn is NULL for workers of another host (argv, PP_POOL_HOST_STARTS), which
 * interpret data themselves, and for no others. cookie comes back in pp_result. Returns PP_OK and
 * the task's number; PP_ERR_INVALID; PP_ERR_HANDLE; PP_ERR_CLOSED; PP_ERR_NOMEM; PP_ERR_INIT;
 * PP_ERR_START; PP_ERR_TOO_BIG. */
PP_API int32_t pp_pool_submit(pp_pool pool, pp_task_fn fn, const void *data, size_t size,
                              uint64_t cookie, uint64_t *task_out);

/* pp_pool_submit_many hands over n tasks at once: data holds their bytes one after the other,
 * sizes[i] bytes for task i. Their numbers are *first_out, *first_out + 1, ... and their cookies
 * cookie, cookie + 1, ... n may be 0. Errors as pp_pool_submit; on an error none was taken. */
PP_API int32_t pp_pool_submit_many(pp_pool pool, pp_task_fn fn, const void *data,
                                   const uint64_t *sizes, size_t n, uint64_t cookie,
                                   uint64_t *first_out);

/* pp_pool_wait waits for one task and takes its result; each can be taken once, by this function or
 * by pp_pool_collect. timeout_ms as in pp_process_wait. Returns PP_OK when there is an outcome,
 * good or bad: look at result_out->status; free it with pp_result_free. PP_ERR_TIMEOUT;
 * PP_ERR_INTERRUPTED; PP_ERR_NOT_FOUND (no such task, or taken); PP_ERR_HANDLE. */
PP_API int32_t pp_pool_wait(pp_pool pool, uint64_t task, int64_t timeout_ms, pp_result *result_out);

/* pp_pool_collect takes up to max results of submitted tasks, whichever are done, in the order in
 * which they were done; if none is, it waits for the first. Bytes of a result are placed one after
 * the other (8-aligned) in slab, slab_size bytes, and data points there; what does not fit is
 * allocated for the caller (owned). slab may be NULL. Returns PP_OK and how many (0: another thread
 * called pp_pool_wake); PP_ERR_TIMEOUT; PP_ERR_INTERRUPTED; PP_ERR_CLOSED (the pool is joined or
 * terminated and nothing is left to take); PP_ERR_HANDLE; PP_ERR_INVALID. */
PP_API int32_t pp_pool_collect(pp_pool pool, pp_result *results, size_t max, void *slab,
                               size_t slab_size, int64_t timeout_ms, size_t *n_out);

/* pp_pool_wake makes every thread that waits in pp_pool_collect return with 0 results. */
PP_API int32_t pp_pool_wake(pp_pool pool);

/* pp_result_free frees what a result owns. It may be called on any result, and twice. */
PP_API void pp_result_free(pp_result *result);

/* pp_pool_cancel takes back a task that has not started. Its result is PP_ERR_CANCELLED. Returns
 * PP_OK; PP_ERR_STATE if it has started or is done; PP_ERR_NOT_FOUND. */
PP_API int32_t pp_pool_cancel(pp_pool pool, uint64_t task);

/* pp_pool_info describes a pool at one moment. */
typedef struct pp_pool_state {
	int32_t workers;     /* workers that the pool keeps */
	int32_t alive;       /* processes of the pool that live, replacements included */
	uint64_t waiting;    /* tasks that have not started */
	uint64_t running;    /* tasks that workers have taken */
	uint64_t done;       /* results that nobody has taken yet */
	uint64_t started;    /* worker processes started since the pool was opened */
	uint64_t lost;       /* tasks that ended with PP_ERR_WORKER_LOST */
} pp_pool_state;

/* pp_pool_info fills state_out and, if pids is not NULL, the process ids of up to pids_max live
 * workers, and how many there are. Any pointer may be NULL. */
PP_API int32_t pp_pool_info(pp_pool pool, pp_pool_state *state_out, int32_t *pids, size_t pids_max,
                            size_t *pids_out);

/* pp_vacancy is a place for a worker that the host is to start (PP_POOL_HOST_STARTS). The child
 * gives it to pp_worker_attach_to. */
typedef struct pp_vacancy {
	uint32_t lane;
	uint32_t generation;
	int32_t fd;         /* the pool's memory; a child that is not a plain fork needs it passed */
	int32_t parent_pid; /* the worker dies with this process */
} pp_vacancy;

/* pp_pool_vacancy waits for the next place; each must be answered by pp_pool_fill. A new pool has
 * one for each worker, and one more appears when a worker has ended. A signal handler does not end
 * the wait: it is for a thread of its own. Returns PP_OK; PP_ERR_CLOSED: there will be no more;
 * PP_ERR_TIMEOUT; PP_ERR_HANDLE. */
PP_API int32_t pp_pool_vacancy(pp_pool pool, int64_t timeout_ms, pp_vacancy *vacancy_out);

/* pp_pool_fill says which process has taken the place: a child of this process, which the pool
 * collects from now on, or a child of another that collects it. status_fd is -1, or for the latter
 * a descriptor on which 4 bytes can be read after its end: its exit code as int32_t in this
 * machine's byte order, or minus the signal; the pool takes the descriptor over. pid 0: no process
 * could be started; status_fd is then the errno that says why, or -1. Returns PP_OK; PP_ERR_INVALID
 * (no such place, or the pool was terminated: the process is the host's; pp_worker_next there
 * answers PP_ERR_CLOSED); PP_ERR_NOT_FOUND (no such process: the place is open again);
 * PP_ERR_HANDLE. */
PP_API int32_t pp_pool_fill(pp_pool pool, const pp_vacancy *vacancy, int32_t pid,
                            int32_t status_fd);

/* pp_pool_close lets the pool finish what it has and takes no more. Closing twice does nothing. */
PP_API int32_t pp_pool_close(pp_pool pool);

/* pp_pool_terminate kills the workers now. Tasks without a result get PP_ERR_CLOSED. */
PP_API int32_t pp_pool_terminate(pp_pool pool);

/* pp_pool_join waits until a closed or terminated pool has no task and no worker left. Results stay
 * to be taken. Returns PP_OK; PP_ERR_STATE if the pool was not closed; PP_ERR_TIMEOUT;
 * PP_ERR_INTERRUPTED; PP_ERR_HANDLE. */
PP_API int32_t pp_pool_join(pp_pool pool, int64_t timeout_ms);

/* pp_pool_free terminates the pool if it still runs, joins it, and gives back everything, the
 * handle too. */
PP_API int32_t pp_pool_free(pp_pool pool);

/* ---- pipe ------------------------------------------------------------------------------------ */

/* A pipe carries messages, whole and in order, between its two ends; a handle is one end. Ends
 * belong to the family: they are there in forked children under the same numbers, and go to other
 * processes as pp_pipe_export says. Several threads and processes may use one end. A process that
 * dies, by whatever cause and at whatever moment, leaves the pipe whole: a message is there, or is
 * not. None of these functions loads the Go runtime. */
typedef uint64_t pp_pipe;

/* Both ends send and receive; else ends_out[0] only receives, and ends_out[1] only sends. */
enum { PP_PIPE_DUPLEX = 1 };

/* pp_pipe_create makes a pipe and its two ends. Returns PP_OK; PP_ERR_INVALID; PP_ERR_NOMEM;
 * PP_ERR_SYSTEM (no descriptors are left: one is needed for each end). */
PP_API int32_t pp_pipe_create(uint32_t flags, pp_pipe ends_out[2]);

/* pp_pipe_send sends a message of size bytes, any number, also 0. It waits while 64 KiB are on
 * their way (of bigger messages: 16 MiB, or 8 messages), at most timeout_ms milliseconds (-1: for
 * ever, 0: not at all). Returns PP_OK: the message arrives even if this process dies now;
 * PP_ERR_TIMEOUT; PP_ERR_INTERRUPTED (nothing was sent); PP_ERR_EOF: nobody has the other end;
 * PP_ERR_STATE: this end only receives; PP_ERR_NOMEM; PP_ERR_CLOSED (pp_pipe_free during the call);
 * PP_ERR_HANDLE; PP_ERR_CORRUPT. */
PP_API int32_t pp_pipe_send(pp_pipe end, const void *data, size_t size, int64_t timeout_ms);

/* pp_part is one of several pieces that make a message. */
typedef struct pp_part {
	const void *data;
	uint64_t size;
} pp_part;

/* pp_pipe_send_parts sends one message made of n pieces, without gathering them first. Otherwise as
 * pp_pipe_send. */
PP_API int32_t pp_pipe_send_parts(pp_pipe end, const pp_part *parts, size_t n, int64_t timeout_ms);

/* pp_pipe_recv waits for a message and copies it to data, where there is room for so many bytes.
 * Returns how many it has; or PP_ERR_TOO_BIG: it stays, see pp_pipe_poll and pp_pipe_take;
 * PP_ERR_TIMEOUT; PP_ERR_INTERRUPTED; PP_ERR_EOF: nobody has the other end, and all that was sent
 * has been received; PP_ERR_STATE: this end only sends, or a descriptor comes next; PP_ERR_NOMEM;
 * PP_ERR_CLOSED; PP_ERR_HANDLE; PP_ERR_CORRUPT. */
PP_API int64_t pp_pipe_recv(pp_pipe end, void *data, size_t room, int64_t timeout_ms);

/* pp_pipe_recv_now is pp_pipe_recv with a timeout of 0, but looks at the memory only, not at the
 * system: PP_ERR_TIMEOUT at the end of the pipe too. */
PP_API int64_t pp_pipe_recv_now(pp_pipe end, void *data, size_t room);

/* pp_pipe_message is a message where it is. */
typedef struct pp_pipe_message {
	const void *data;
	uint64_t size;
	uint64_t owned[3]; /* the library's */
} pp_pipe_message;

/* pp_pipe_take is pp_pipe_recv without a copy, for big messages: the bytes are read in shared
 * memory, until pp_pipe_message_free. */
PP_API int32_t pp_pipe_take(pp_pipe end, int64_t timeout_ms, pp_pipe_message *message_out);

/* pp_pipe_message_free gives the memory back. It may be called twice; in a forked child it leaves
 * the parent's message alone. */
PP_API void pp_pipe_message_free(pp_pipe_message *message);

/* pp_pipe_poll waits for a message and tells how large it is (size_out may be NULL; a descriptor:
 * 0), and leaves it there. Errors as pp_pipe_recv. */
PP_API int32_t pp_pipe_poll(pp_pipe end, int64_t timeout_ms, uint64_t *size_out);

/* pp_pipe_descriptor returns a descriptor for poll(2), select(2) and epoll(7): it is readable
 * exactly when a message is there, or when the other end is closed (POLLHUP). It stays the
 * library's, until pp_pipe_free; nothing else may be done with it. Once it was asked for, an end is
 * a little slower. */
PP_API int32_t pp_pipe_descriptor(pp_pipe end, int32_t *fd_out);

/* pp_pipe_send_fd sends a copy of a descriptor, in the order of the messages; pp_pipe_recv_fd
 * receives it (close-on-exec), if it comes next. It arrives even if the sender dies meanwhile.
 * Errors as pp_pipe_send and pp_pipe_recv; PP_ERR_INVALID: no descriptor; PP_ERR_STATE: a message
 * comes next; PP_ERR_NOMEM: too many are on their way, or none is free. */
PP_API int32_t pp_pipe_send_fd(pp_pipe end, int32_t fd, int64_t timeout_ms);
PP_API int32_t pp_pipe_recv_fd(pp_pipe end, int64_t timeout_ms, int32_t *fd_out);

enum { PP_PIPE_CAN_RECV = 1, PP_PIPE_CAN_SEND = 2 };

/* pp_pipe_info describes an end. Its descriptor is only for being passed to a process that is
 * started: see pp_pipe_import. Any pointer may be NULL. */
PP_API int32_t pp_pipe_info(pp_pipe end, uint32_t *can_out, int32_t *fd_out);

/* pp_pipe_export writes a reference to the end, 32 bytes, which another process of the family makes
 * an end of its own from, once: it may be sent through a pipe or a queue, and lives when this
 * process dies. with_fd 0: the descriptor of the end goes another way (a process that is started
 * inherits it), else it goes with the reference. Returns PP_OK; PP_ERR_NOMEM; PP_ERR_HANDLE;
 * PP_ERR_SYSTEM. pp_pipe_import: fd is the descriptor, which is the library's then; or -1 if the
 * reference has it. PP_ERR_CLOSED: the pipe is no more; PP_ERR_NOT_FOUND: the reference was used
 * before; PP_ERR_CORRUPT: it is none. pp_pipe_forget drops a reference that was not sent after
 * all. */
PP_API int32_t pp_pipe_export(pp_pipe end, int32_t with_fd, uint8_t ref_out[32]);
PP_API int32_t pp_pipe_import(const uint8_t ref[32], int32_t fd, pp_pipe *end_out);
PP_API void pp_pipe_forget(const uint8_t ref[32]);

/* pp_fd_export leaves a copy of a descriptor with the family, and writes its name, 32 bytes, by
 * which one process takes it over, once: pp_fd_import (close-on-exec). It is there even if this
 * process dies. Returns PP_OK; PP_ERR_INVALID; PP_ERR_NOT_FOUND (it was taken); PP_ERR_NOMEM (too
 * many are on their way, or none is free); PP_ERR_SYSTEM. */
PP_API int32_t pp_fd_export(int32_t fd, uint8_t name_out[32]);
PP_API int32_t pp_fd_import(const uint8_t name[32], int32_t *fd_out);

/* pp_wait is something that a process waits for: the end of a process (pid), or, with pid 0, a
 * message for an end of a pipe. */
typedef struct pp_wait {
	pp_pipe end;
	int32_t pid;
	uint32_t reserved;
} pp_wait;

/* pp_waiting tells the family what this process waits for. It says: every thread that could send
 * something through a pipe waits, without limit of time, for one of these, and no signal handler
 * will have it do otherwise. A process that does not know that of itself, as C programs do not,
 * says nothing. n 0: it is not so any more; to be said before anything else is done. Returns PP_OK;
 * PP_ERR_TOO_BIG (more than 6: nothing is said); PP_ERR_HANDLE; PP_ERR_NOMEM. For bindings of
 * languages that know their threads. One thread at a time. */
PP_API int32_t pp_waiting(const pp_wait *waits, size_t n);

/* pp_pipe_deserted looks for a proof that no message will ever come to this end: every process that
 * has the other end open is, by its word (pp_waiting) and this process's own, waiting for a message
 * at this same end, or for the end of a process of which that is true in turn. Processes whose
 * descriptors cannot be read, and that have started since the pipe was made, prove nothing; nor do
 * ends on their way. Reads /proc: milliseconds. Returns PP_OK: it is proved, for this moment;
 * PP_ERR_STATE: it is not; PP_ERR_HANDLE. */
PP_API int32_t pp_pipe_deserted(pp_pipe end);

/* pp_pipe_free gives the handle back. The end is closed when no process has it any more. */
PP_API int32_t pp_pipe_free(pp_pipe end);

/* ---- queue ----------------------------------------------------------------------------------- */

/* A queue of messages, bytes of any length, in memory that the processes of a family share (see
 * "family"): any of them puts and gets, messages of one producer stay in their order, and each is
 * taken once. There is no process and no thread behind it (but see pp_queue_descriptor). A message
 * that was put is in the queue, whatever becomes of the process that has put it; a process that
 * dies in the middle of a call, by SIGKILL too, leaves the queue as it was before the call or as
 * it is after it. Handles are good in forked children; other processes of the family are sent a
 * pp_ref. A named queue (file /dev/shm/pp.q.NAME) is open to any process of the user who made it,
 * and stays until pp_queue_unlink. A file of that name that belongs to another user, or that
 * others may read or write, is never opened.
 *
 * timeout_ms: -1 waits for ever. 0 does not wait for messages or room, but up to 50 ms for another
 * process that is in the middle of a call; PP_TRY not even for that, and then answers
 * PP_ERR_TIMEOUT. Functions that wait return PP_ERR_INTERRUPTED when a signal handler without
 * SA_RESTART has run (see SIGNALS); call again. */
typedef uint64_t pp_queue;


typedef struct pp_queue_options {
	uint32_t size;    /* sizeof(pp_queue_options) */
	uint32_t flags;   /* PP_QUEUE_ */
	/* how many messages it holds at most, up to 2^31 - 1; 0: unbounded, put never waits for a
	 * getter */
	uint64_t maxsize;
	/* NULL, or a named queue: 1 to 200 bytes, no '/', no '.' at the start. It is opened if it is
	 * there, else created */
	const char *name;
} pp_queue_options;

enum {
	PP_QUEUE_EXCLUSIVE = 1, /* name must not exist: PP_ERR_EXISTS */
	PP_QUEUE_EXISTING = 2   /* name must exist: PP_ERR_NOT_FOUND; maxsize means nothing */
};

#define PP_QUEUE_OPTIONS_INIT {sizeof(pp_queue_options), 0, 0, 0}

/* What the bytes of a message are: put says it, take and lease tell it. Other numbers, up to
 * 65,535, are the program's. */
enum {
	PP_RAW = 0,   /* just bytes */
	PP_PICKLE = 1 /* a pickle of Python */
};

/* pp_message is a message that was taken. */
typedef struct pp_message {
	const void *data; /* its bytes, 8-aligned; not NULL */
	uint64_t size;
	uint32_t codec;
	uint32_t kind;  /* the library's, as the next two */
	uint64_t cell;
	uint64_t owner;
} pp_message;

/* pp_queue_create makes a queue, or opens a named one. options may be NULL. Returns PP_OK and the
 * handle; PP_ERR_INVALID; PP_ERR_NOMEM (memory, or a limit on file size or address space);
 * PP_ERR_EXISTS; PP_ERR_NOT_FOUND; PP_ERR_CORRUPT (the named file is no queue); PP_ERR_PERMISSION
 * (the named file is another user's, others may read or write it, it has a second link, or it is no
 * regular file); PP_ERR_UNSUPPORTED (processes of another pid namespace have it open);
 * PP_ERR_SYSTEM. */
PP_API int32_t pp_queue_create(const pp_queue_options *options, pp_queue *queue_out);

/* pp_queue_free gives the handle back. The queue and its messages stay as long as any process has a
 * handle of it, or a reference is on its way. Calls of this process that wait by this handle return
 * PP_ERR_CLOSED. */
PP_API int32_t pp_queue_free(pp_queue queue);

/* pp_queue_unlink removes the name of a named queue. Who has opened it goes on with it. Returns
 * PP_OK; PP_ERR_NOT_FOUND; PP_ERR_INVALID; PP_ERR_PERMISSION (the file is another user's, or a
 * directory); PP_ERR_SYSTEM. */
PP_API int32_t pp_queue_unlink(const char *name);

/* pp_queue_put puts a message. When it returns PP_OK, the message will be delivered, whatever
 * happens to this process. Returns PP_OK; PP_ERR_FULL (no room in time); PP_ERR_TIMEOUT (another
 * process was in the middle of a put all the time, stopped perhaps); PP_ERR_CLOSED; PP_ERR_NOMEM;
 * PP_ERR_TOO_BIG (16 GiB); PP_ERR_INTERRUPTED; PP_ERR_HANDLE; PP_ERR_INVALID; PP_ERR_CORRUPT. On an
 * error nothing was put. */
PP_API int32_t pp_queue_put(pp_queue queue, const void *data, size_t size, uint32_t codec,
                            int64_t timeout_ms);

/* pp_queue_put_parts puts one message made of n pieces, without gathering them first. Otherwise as
 * pp_queue_put. */
PP_API int32_t pp_queue_put_parts(pp_queue queue, const pp_part *parts, size_t n, uint32_t codec,
                                  int64_t timeout_ms);

/* pp_queue_put_many puts n messages: data holds their bytes one after the other, sizes[i] of
 * message i. As many as there is room for become visible at once. *done_out says how many were put,
 * also with an error; errors as pp_queue_put. */
PP_API int32_t pp_queue_put_many(pp_queue queue, const void *data, const uint64_t *sizes, size_t n,
                                 uint32_t codec, int64_t timeout_ms, size_t *done_out);

/* pp_queue_get takes the next message into the caller's buffer and its length into *size_out.
 * Returns PP_OK; PP_ERR_EMPTY (none in time); PP_ERR_TOO_BIG: it is longer than room, *size_out
 * says how long, and it stays in the queue; PP_ERR_CLOSED (closed, and nothing is left);
 * PP_ERR_TIMEOUT; PP_ERR_INTERRUPTED; PP_ERR_HANDLE; PP_ERR_CORRUPT. */
PP_API int32_t pp_queue_get(pp_queue queue, void *buf, size_t room, int64_t timeout_ms,
                            size_t *size_out);

/* pp_queue_get_many takes up to max messages that are there into buf, one after the other, and
 * waits only if there is none. Message i has sizes[i] bytes. *n_out says how many; it is less than
 * max if the queue has no more or the next does not fit. Errors as pp_queue_get. */
PP_API int32_t pp_queue_get_many(pp_queue queue, void *buf, size_t room, uint64_t *sizes,
                                 size_t max, int64_t timeout_ms, size_t *n_out);

/* pp_queue_take takes the next message without knowing its length: what is up to 32,768 bytes long
 * and fits is copied into buf (which may be NULL, and room 0), other data lies in the library's
 * memory, large messages where the producer has put them. In any case give it to pp_message_free in
 * the end. Errors as pp_queue_get, but for PP_ERR_TOO_BIG; PP_ERR_NOMEM. */
PP_API int32_t pp_queue_take(pp_queue queue, void *buf, size_t room, int64_t timeout_ms,
                             pp_message *message_out);

/* pp_queue_lease takes the next message until it is acknowledged: if this process ends before, or
 * says pp_message_free instead, the message goes back and is the first to be delivered again.
 * Errors as pp_queue_take. */
PP_API int32_t pp_queue_lease(pp_queue queue, int64_t timeout_ms, pp_message *message_out);

/* pp_message_ack acknowledges a leased message and frees it. Returns PP_OK; PP_ERR_STATE (it was
 * not leased, or by the process that forked this one). */
PP_API int32_t pp_message_ack(pp_message *message);

/* pp_message_free frees a message; one that is leased goes back to the queue. It may be called
 * twice, also on a message that is all zero. */
PP_API void pp_message_free(pp_message *message);

typedef struct pp_queue_state {
	uint64_t size;       /* messages in the queue at one moment, exactly */
	uint64_t maxsize;    /* 0: unbounded */
	uint64_t unfinished; /* messages put, less calls of pp_queue_task_done */
	uint64_t leased;     /* messages that are leased and not acknowledged */
	int32_t closed;
	int32_t reserved;
} pp_queue_state;

PP_API int32_t pp_queue_info(pp_queue queue, pp_queue_state *state_out);

/* pp_queue_descriptor returns a descriptor for poll(2), select(2) and epoll(7), by which a program
 * waits for a queue beside other things. It becomes readable when there is something to get: a
 * message, or PP_ERR_CLOSED. It stays readable until a call with this handle finds the queue empty:
 * pp_queue_get and its kin, pp_queue_info, or pp_queue_descriptor. So it may be readable although
 * another getter was faster: get with timeout_ms 0 then, and wait again after PP_ERR_EMPTY. A
 * message makes it readable soon after the put; if the putter is killed in the middle of its call,
 * within half a second. pp_queue_descriptor itself looks, so that the descriptor is readable when
 * it returns if there is something to get.
 *
 * It is for waiting only: the program neither reads nor closes it. It stays the library's, until
 * pp_queue_free, and each call returns the same. A forked child has one of its own under the same
 * number, which is readable until the child's first look; without a free descriptor it has none
 * until it asks again. Who never calls this pays nothing. Each process that does has one thread for
 * each such queue, "pp-queue", which sleeps and in which no signal handler runs.
 *
 * Returns PP_OK; PP_ERR_INVALID; PP_ERR_HANDLE; PP_ERR_NOMEM (memory or a thread); PP_ERR_SYSTEM
 * (no descriptor is left). */
PP_API int32_t pp_queue_descriptor(pp_queue queue, int32_t *fd_out);

/* pp_queue_task_done says that one message that was taken has been dealt with. Returns PP_OK;
 * PP_ERR_STATE (more often than there were messages); PP_ERR_HANDLE. */
PP_API int32_t pp_queue_task_done(pp_queue queue);

/* pp_queue_join waits until pp_queue_task_done was called for every message. Returns PP_OK;
 * PP_ERR_TIMEOUT; PP_ERR_INTERRUPTED; PP_ERR_HANDLE. */
PP_API int32_t pp_queue_join(pp_queue queue, int64_t timeout_ms);

/* pp_queue_close closes the queue for all processes: puts fail with PP_ERR_CLOSED, getters take
 * what is left and then get PP_ERR_CLOSED. Returns PP_OK, also if it was closed; PP_ERR_TIMEOUT (a
 * process that is stopped in the middle of a put); PP_ERR_INTERRUPTED; PP_ERR_HANDLE. */
PP_API int32_t pp_queue_close(pp_queue queue);

/* ---- references ------------------------------------------------------------------------------ */

/* PP_REF_SIZE bytes stand for an object (a queue, lock, ...) on its way to another process of the
 * family: they hold no address and can be sent by whatever means. The object lives while they are
 * on their way, even if all its handles are freed and their processes dead; so each export should
 * be imported once, or forgotten. */
#define PP_REF_SIZE 32

/* The kinds of objects, for pp_ref_import. */
enum {
	PP_KIND_ANY = 0,
	PP_KIND_LOCK = 1,
	PP_KIND_SEMAPHORE = 2,
	PP_KIND_CONDITION = 3,
	PP_KIND_EVENT = 4,
	PP_KIND_BARRIER = 5,
	PP_KIND_QUEUE = 6,
	PP_KIND_PIPE = 7
};

/* pp_ref_export writes a reference to the object behind a handle of any kind to ref_out,
 * PP_REF_SIZE bytes. Of an end of a pipe it is what pp_pipe_export writes, with the descriptor.
 * Returns PP_OK; PP_ERR_HANDLE; PP_ERR_INVALID; PP_ERR_CLOSED (the object is no more); PP_ERR_NOMEM
 * (memory, or too many descriptors are on their way). */
PP_API int32_t pp_ref_export(uint64_t handle, void *ref_out);

/* pp_ref_import makes a handle of a reference, which this or another process of the family has
 * exported. kind is a PP_KIND_, PP_KIND_ANY: whatever it is; *kind_out (may be NULL) tells. The
 * same reference may be imported again for as long as the object lives; but that of an end of a
 * pipe once only, as its descriptor comes with it. A reference to an end imports as that end.
 * Returns PP_OK; PP_ERR_INVALID (not a reference, another kind, or of another family);
 * PP_ERR_CLOSED (the object is no more); PP_ERR_NOT_FOUND (an end of a pipe that was imported or
 * forgotten before, or exported without its descriptor); PP_ERR_CORRUPT; PP_ERR_NOMEM. */
PP_API int32_t pp_ref_import(const void *ref, uint32_t kind, uint64_t *handle_out,
                             uint32_t *kind_out);

/* pp_ref_forget takes an export of pp_ref_export, pp_pipe_export or pp_fd_export back that nobody
 * will import. Returns PP_OK; PP_ERR_INVALID. */
PP_API int32_t pp_ref_forget(const void *ref);

/* pp_refs_forget takes back every such export whose bytes are contained in data[0..size): a message
 * that nobody will read. References that were imported before stay as they are. What a destroyed
 * queue or pipe still contains, and the bytes of a pool's task that did not run to its end, are
 * treated in this way by the library. Returns PP_OK; PP_ERR_INVALID. */
PP_API int32_t pp_refs_forget(const void *data, size_t size);

/* ---- locks ----------------------------------------------------------------------------------- */

/* Locks, semaphores, conditions, events and barriers lie in the memory of the family (pp_family):
 * any process that has a handle uses the same object; a forked child has the handles of its parent.
 * None costs a descriptor. None loads the Go engine.
 *
 * A process that is killed, at whatever instruction, leaves each of them as it was before or after
 * its call. What it held or waited for is found out by those who wait, within 0.2 s and only on
 * proof: a process that is stopped keeps its lock.
 *
 * All calls that wait (timeout_ms) can return PP_ERR_TIMEOUT; PP_ERR_INTERRUPTED when a signal
 * handler without SA_RESTART ran; PP_ERR_CLOSED when the handle is freed meanwhile; all calls
 * PP_ERR_HANDLE, PP_ERR_NOMEM (the process is no member of the family yet and cannot become one),
 * PP_ERR_CORRUPT. */

typedef uint64_t pp_lock;

enum {
	/* the thread that holds the lock may acquire it again, and only that thread may release it */
	PP_LOCK_RECURSIVE = 1,
	/* the lock of a process that has died is acquired as if it had been released */
	PP_LOCK_RECOVER = 2
};

/* pp_lock_new makes a lock. flags: PP_LOCK_ values. Without PP_LOCK_RECURSIVE, a thread that holds
 * the lock and acquires it again waits for itself, and any thread of any process may release the
 * lock. Returns PP_OK; PP_ERR_INVALID; PP_ERR_NOMEM; PP_ERR_SYSTEM. */
PP_API int32_t pp_lock_new(uint32_t flags, pp_lock *lock_out);

/* pp_lock_acquire takes the lock. Waiting is fair: newcomers may overtake those who wait, but not
 * for more than some milliseconds. Returns PP_OK
 *         PP_ERR_OWNER_DIED: a process has died while it held the lock, and what the lock protects
 *                            may be half done. The lock was NOT acquired. The lock is poisoned from
 *                            then on: every call, of every process, returns this, until one has
 *                            called pp_lock_recover. Not of locks with PP_LOCK_RECOVER
 *         PP_ERR_STATE: (recursive) 2^32 levels
 * A lock belongs to a process. One whose thread has ended holds it still: any thread may release
 * the lock if it is not recursive, and pp_lock_recover takes it over if it is. */
PP_API int32_t pp_lock_acquire(pp_lock lock, int64_t timeout_ms);

/* pp_lock_recover is pp_lock_acquire for a caller that can repair, or does not mind, what the death
 * of a holder has left half done. It acquires a poisoned lock, which is then as any other: it is
 * free when it has been released. If the caller dies first, the lock is poisoned again. If the lock
 * is not poisoned, or another call has recovered it first, it waits and acquires as pp_lock_acquire
 * does. It also acquires a recursive lock whose holder is a thread of this process that has ended.
 * Returns PP_OK, but not whether the lock was poisoned; never PP_ERR_OWNER_DIED. */
PP_API int32_t pp_lock_recover(pp_lock lock, int64_t timeout_ms);

/* pp_lock_release gives the lock up, or one of its levels. Returns PP_OK; PP_ERR_STATE: nobody
 * holds it, or (recursive) not this thread; PP_ERR_OWNER_DIED: nobody holds it, and it is poisoned:
 * it stays so. */
PP_API int32_t pp_lock_release(pp_lock lock);

/* pp_lock_state tells who holds a lock at this moment. */
typedef struct pp_lock_state {
	/* PP_LOCK_FREE, _BY_ME (this thread), _BY_THREAD (another of this process), _BY_PROCESS
	 * (another; it may have died unnoticed), _POISONED (known to have died) */
	int32_t held;
	int32_t pid;     /* the holder's process, 0: nobody's, or one that is gone */
	uint32_t levels; /* how often it holds it */
} pp_lock_state;

enum {
	PP_LOCK_FREE = 0,
	PP_LOCK_BY_ME = 1,
	PP_LOCK_BY_THREAD = 2,
	PP_LOCK_BY_PROCESS = 3,
	PP_LOCK_POISONED = 4
};

PP_API int32_t pp_lock_info(pp_lock lock, pp_lock_state *state_out);

/* pp_lock_restore is pp_lock_acquire for the levels that pp_condition_enter has given up. After
 * PP_ERR_OWNER_DIED they are lost. */
PP_API int32_t pp_lock_restore(pp_lock lock, uint32_t levels, int64_t timeout_ms);

/* pp_lock_free gives the handle back; the lock lives while other handles, of any process, or
 * references do. So do the others' _free functions below. */
PP_API int32_t pp_lock_free(pp_lock lock);

typedef uint64_t pp_semaphore;

#define PP_SEMAPHORE_MOST 0x7fffffffu

enum { PP_SEMAPHORE_RECOVER = 1 };

/* pp_semaphore_new makes a semaphore with value permits, which releases can bring up to most: 1 to
 * PP_SEMAPHORE_MOST. flags: PP_SEMAPHORE_RECOVER: permits of processes that die are given back,
 * silently; value and most are the same then, 1 to 65,535. Returns PP_OK; PP_ERR_INVALID;
 * PP_ERR_NOMEM; PP_ERR_SYSTEM. */
PP_API int32_t pp_semaphore_new(uint32_t value, uint32_t most, uint32_t flags,
                                pp_semaphore *semaphore_out);

/* pp_semaphore_acquire takes a permit. */
PP_API int32_t pp_semaphore_acquire(pp_semaphore semaphore, int64_t timeout_ms);

/* pp_semaphore_release gives a permit back: of this process's, or else of another's. Returns PP_OK;
 * PP_ERR_STATE: there are as many as there can be. */
PP_API int32_t pp_semaphore_release(pp_semaphore semaphore);

/* pp_semaphore_value tells how many permits are free. */
PP_API int32_t pp_semaphore_value(pp_semaphore semaphore, uint32_t *value_out);
PP_API int32_t pp_semaphore_free(pp_semaphore semaphore);

typedef uint64_t pp_condition;

PP_API int32_t pp_condition_new(pp_condition *condition_out);

/* pp_condition_wait gives the lock up, all its levels, waits to be notified, and takes the lock
 * back, however long that takes, with as many levels. All who wait at a condition should use the
 * same lock. Returns PP_OK: notified; PP_ERR_TIMEOUT or PP_ERR_INTERRUPTED: not notified (a
 * notification that arrived at the same moment goes to the next), and the lock is held again;
 * PP_ERR_OWNER_DIED: the lock is NOT held, as a holder has died meanwhile (pp_lock_acquire),
 * notified or not: after pp_lock_recover, which gives it one level, look at what was waited for;
 * PP_ERR_STATE: this thread does not hold the lock. */
PP_API int32_t pp_condition_wait(pp_condition condition, pp_lock lock, int64_t timeout_ms);

/* pp_condition_notify wakes n of those who wait, in the order in which they came, or all if they
 * are fewer; who has died does not count. It may be called without the lock, as
 * pthread_cond_signal(3). */
PP_API int32_t pp_condition_notify(pp_condition condition, uint32_t n);
PP_API int32_t pp_condition_notify_all(pp_condition condition);

/* pp_condition_waiting tells how many wait. */
PP_API int32_t pp_condition_waiting(pp_condition condition, uint32_t *waiting_out);

/* The parts of pp_condition_wait, for bindings that have to look at signals in between. enter takes
 * a place and gives the lock up; sleep waits there: PP_OK and PP_ERR_TIMEOUT end it, after
 * PP_ERR_INTERRUPTED, which comes at least each half second, it goes on with the next call, or
 * leave gives the place up; then pp_lock_restore. A place that is not this process's is
 * PP_ERR_INVALID. */
PP_API int32_t pp_condition_enter(pp_condition condition, pp_lock lock, uint64_t *place_out,
                                  uint32_t *levels_out);
PP_API int32_t pp_condition_sleep(pp_condition condition, uint64_t place, int64_t timeout_ms);
PP_API int32_t pp_condition_leave(pp_condition condition, uint64_t place);
PP_API int32_t pp_condition_free(pp_condition condition);

typedef uint64_t pp_event;

PP_API int32_t pp_event_new(pp_event *event_out);
PP_API int32_t pp_event_set(pp_event event);
PP_API int32_t pp_event_clear(pp_event event);

/* pp_event_is_set returns 1, 0, or an error. */
PP_API int32_t pp_event_is_set(pp_event event);

/* pp_event_wait waits until the event is set. A thread that began to wait before pp_event_set is
 * woken by it, even if pp_event_clear follows at once. */
PP_API int32_t pp_event_wait(pp_event event, int64_t timeout_ms);

/* pp_event_sleep is pp_event_wait for bindings that have to look at signals in between. *place is 0
 * at first. It returns PP_ERR_INTERRUPTED at least each half second; the next call, with the same
 * place, goes on with the wait and misses no pp_event_set in between. */
PP_API int32_t pp_event_sleep(pp_event event, uint64_t *place, int64_t timeout_ms);
PP_API int32_t pp_event_free(pp_event event);

typedef uint64_t pp_barrier;

enum { PP_BARRIER_ACTION = 1 };

/* pp_barrier_new makes a barrier for 1 to 65,535 parties. flags: PP_BARRIER_ACTION: each time, the
 * last to arrive does something before the others go: see pp_barrier_wait. */
PP_API int32_t pp_barrier_new(uint32_t parties, uint32_t flags, pp_barrier *barrier_out);

/* pp_barrier_wait waits until all parties have arrived. *index_out (may be NULL): 0 for the first
 * that arrived, parties - 1 for the last. With PP_BARRIER_ACTION the last is told at once, does
 * what is to be done, and then calls pp_barrier_release, or pp_barrier_abort. Returns PP_OK;
 * PP_ERR_BROKEN: the barrier is broken, or was reset, or one of those who waited has died;
 * PP_ERR_TIMEOUT: this call has broken it; there is no time limit once all are there. After
 * PP_ERR_INTERRUPTED this thread waits no more; but if place is given (*place is 0 at first), it
 * still counts, *place is not 0, and it must call again with it, or pp_barrier_leave;
 * PP_ERR_INTERRUPTED comes at least each half second then. */
PP_API int32_t pp_barrier_wait(pp_barrier barrier, int64_t timeout_ms, uint64_t *place,
                               uint32_t *index_out);

/* pp_barrier_leave gives up a place. If all have arrived by now it does nothing. */
PP_API int32_t pp_barrier_leave(pp_barrier barrier, uint64_t place);

/* pp_barrier_release lets the others go, after the action. Returns PP_OK; PP_ERR_BROKEN: the
 * barrier was broken meanwhile; PP_ERR_STATE: no action is running. */
PP_API int32_t pp_barrier_release(pp_barrier barrier);

/* pp_barrier_abort breaks the barrier: who waits, and who comes until pp_barrier_reset, gets
 * PP_ERR_BROKEN. */
PP_API int32_t pp_barrier_abort(pp_barrier barrier);

/* pp_barrier_reset makes the barrier empty and whole; who waits gets PP_ERR_BROKEN. While an action
 * runs it does nothing. */
PP_API int32_t pp_barrier_reset(pp_barrier barrier);

/* pp_barrier_state is what pp_barrier_info tells. */
typedef struct pp_barrier_state {
	uint32_t parties;
	uint32_t waiting; /* how many have arrived and wait for others */
	uint32_t broken;  /* 0 or 1 */
} pp_barrier_state;

PP_API int32_t pp_barrier_info(pp_barrier barrier, pp_barrier_state *state_out);
PP_API int32_t pp_barrier_free(pp_barrier barrier);

/* ---- worker host ----------------------------------------------------------------------------- */

/* For programs that serve as workers of a pool opened with argv, in any language: the Python
 * binding is one. A process is a worker of one pool. None of these functions loads the Go runtime.
 * One thread serves; the others must not call them. */

/* pp_worker describes the worker's side of the shared memory, so that a binding can read tasks
 * without copying. */
typedef struct pp_worker {
	uint32_t size;         /* sizeof(pp_worker), set by the caller */
	uint32_t lane;         /* which worker this is, 0 .. */
	int32_t parent_pid;
	uint32_t reserved;
	const void *init_arg;  /* init_arg of the pool's options */
	size_t init_arg_size;
	/* where inline tasks lie, ring_size bytes: pp_task.data of a small task points in here */
	const void *ring;
	size_t ring_size;
} pp_worker;

/* pp_task is one task for the worker. */
typedef struct pp_task {
	uint64_t number;  /* the worker's 1st, 2nd, ... task */
	uint64_t size;
	const void *data; /* valid until the next call of pp_worker_done or pp_worker_step */
	uint64_t fn;      /* 0, or which function (opaque, C workers) */
} pp_task;

/* pp_worker_pending returns 1 if this process was started as a worker and has not attached yet,
 * else 0. */
PP_API int32_t pp_worker_pending(void);

/* pp_worker_attach connects the process with the pool that started it and begins to watch the
 * parent. Returns PP_OK; PP_ERR_STATE if this is no worker; PP_ERR_CORRUPT; PP_ERR_SYSTEM. */
PP_API int32_t pp_worker_attach(pp_worker *worker_out);

/* pp_worker_attach_to is pp_worker_attach for a process that the host itself started for a vacancy,
 * such as its own fork. vacancy->fd is a descriptor of this process; it is duplicated. The process
 * may have attached to no pool before; a forked worker may have been forked by one that had. */
PP_API int32_t pp_worker_attach_to(const pp_vacancy *vacancy, pp_worker *worker_out);

/* pp_worker_ready tells the pool that initialization is over: status PP_OK, or PP_ERR_INIT with
 * size bytes that say what went wrong (pp_result.data of every task then); the worker then ends. */
PP_API int32_t pp_worker_ready(int32_t status, const void *data, size_t size);

/* pp_worker_next takes the next task. Returns PP_OK; PP_ERR_TIMEOUT; PP_ERR_INTERRUPTED;
 * PP_ERR_CLOSED: no more will come, end now; PP_ERR_NOMEM: a task was taken that does not fit into
 * the address space of this process, its result is to be given all the same; PP_ERR_CORRUPT. */
PP_API int32_t pp_worker_next(int64_t timeout_ms, pp_task *task_out);

/* pp_worker_done gives the result of the task that pp_worker_next took. status is PP_OK or
 * PP_ERR_TASK with a code of the host's choice. Waits if the parent has not taken earlier results.
 * Returns PP_OK; PP_ERR_NOMEM (nothing was sent: send something smaller); PP_ERR_STATE (no task
 * taken); PP_ERR_CORRUPT. */
PP_API int32_t pp_worker_done(int32_t status, int32_t code, const void *data, size_t size);

/* pp_worker_step is pp_worker_done followed by pp_worker_next with timeout 0, in one call.
 * PP_ERR_TIMEOUT: the result was given, and there is no task yet. PP_ERR_NOMEM: the result was not
 * given. */
PP_API int32_t pp_worker_step(int32_t status, int32_t code, const void *data, size_t size,
                              pp_task *task_out);

/* ---- Python host ----------------------------------------------------------------------------- */

enum { PP_PYTHON_SEMLOCK = 0, PP_PYTHON_CHANNEL = 1 };

/* pp_python_spec returns a PyType_Spec, a static one, for PyType_FromSpec of the CPython
 * interpreter that this process runs; NULL if it runs none, or there is no such type. For the
 * Python binding of the same version: the types are not described here. Only where objects begin
 * with 16 bytes (object.__basicsize__). */
PP_API void *pp_python_spec(uint32_t type);

#ifdef __cplusplus
}
#endif

#endif /* POLYPROC_H */
