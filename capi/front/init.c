/* init.c - pp_init, and what becomes of a program that polyproc has executed again: a worker, or a child that runs one function. */
#include "bell.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern char **environ;

/* A function pointer from an address: ISO C has no cast for it, POSIX demands that it can be done. */
#define PP__AS_FN(type, address) (((union { const void *from; type to; }){.from = (address)}).to)

/* A C++ exception must not leave a function that runs in a process of its own: in a forked one it would be caught by a handler of the
 * parent's, and the rest of the parent's main would run a second time. The personality of the frames below ends the process as
 * std::terminate does, while the unwinder still looks for a handler. */
__attribute__((used)) static int no_exceptions(int version, int actions, uint64_t kind, void *exception, void *context)
{
	(void)version;
	(void)actions;
	(void)kind;
	(void)exception;
	(void)context;
	static const char text[] = "polyproc: an exception, or the end of the thread, has left a function that ran in a process of its own\n";
	(void)!write(STDERR_FILENO, text, sizeof text - 1);
	abort();
}

/* PP__NO_EXCEPTIONS comes first in a function, PP__RETURNS after its call, so that this is no jump out of the frame. */
#define PP__NO_EXCEPTIONS() __asm__ volatile(".cfi_personality 0x1b, no_exceptions")
#define PP__RETURNS() __asm__ volatile("" ::: "memory")

static __attribute__((noinline)) int32_t call_task(const void *address, const void *in, size_t in_size, void *out, size_t *size, const pp__call *call)
{
	PP__NO_EXCEPTIONS();
	const int32_t code = PP__AS_FN(pp_task_fn, address)(in, in_size, out, size, call->ctx, call->ctx_size);
	PP__RETURNS();
	return code;
}

static __attribute__((noinline)) int32_t call_range(const void *address, const pp__call *call)
{
	PP__NO_EXCEPTIONS();
	const int32_t code = PP__AS_FN(pp_range_fn, address)(call->begin, call->end, call->data, call->ctx, call->ctx_size);
	PP__RETURNS();
	return code;
}

static __attribute__((noinline)) int32_t call_init(const void *address, const void *arg, size_t size)
{
	PP__NO_EXCEPTIONS();
	const int32_t code = PP__AS_FN(pp_init_fn, address)(arg, size);
	PP__RETURNS();
	return code;
}

static __attribute__((noinline)) int32_t call_process(pp_process_fn fn, const void *arg, size_t size)
{
	PP__NO_EXCEPTIONS();
	const int32_t code = fn(arg, size);
	PP__RETURNS();
	return code;
}

static bool forked; /* this worker or child goes on from the middle of its parent */

/* leave ends this process. A forked one ends with _exit: the atexit functions are those of the parent, and so is what is not yet
 * written to files; standard output was purged at the fork, and what has been printed since is this process's. */
static _Noreturn void leave(int code)
{
	if (!forked)
		exit(code);
	fflush(stdout);
	_exit(code);
}

static _Noreturn void give_up(const char *what)
{
	fprintf(stderr, "polyproc: %s: %s\n", what, pp_last_error());
	leave(1);
}

static void ignore(int signal)
{
	(void)signal;
}

/* Ctrl-C reaches the whole foreground group. It is the parent's to decide what follows, so a worker takes no notice; by a handler, which
 * exec resets, and not by SIG_IGN, which the programs that tasks start would inherit. */
static void settle_signals(void)
{
	struct sigaction act = {.sa_handler = ignore, .sa_flags = SA_RESTART};
	sigset_t interrupt;

	sigemptyset(&act.sa_mask);
	sigaction(SIGINT, &act, NULL);
	sigemptyset(&interrupt);
	sigaddset(&interrupt, SIGINT);
	pthread_sigmask(SIG_UNBLOCK, &interrupt, NULL);
}

/* initialize runs the pool's initializer and reports how it went. */
static void initialize(const pp_worker *worker)
{
	const uint64_t init_fn = pp__worker_init_fn();
	const void *address;
	char text[600];

	if (init_fn != 0) {
		int32_t status = pp__worker_fn(init_fn, &address);
		if (status != PP_OK) {
			snprintf(text, sizeof text, "the initializer cannot be called: %s", pp_last_error());
		} else if ((status = call_init(address, worker->init_arg, worker->init_arg_size)) != 0) {
			snprintf(text, sizeof text, "the initializer returned %d", (int)status);
		}
		if (status != PP_OK) {
			pp_worker_ready(PP_ERR_INIT, text, strlen(text));
			leave(1);
		}
	}
	if (pp_worker_ready(PP_OK, NULL, 0) != PP_OK)
		give_up("worker");
}

/* run_span calls a task's function for each element that the parent does not take back meanwhile. */
static int32_t run_span(const void *address, const pp__call *call)
{
	size_t size;
	pp__span_out *const outcome = pp__worker_span_room(&size);
	const size_t stride = (call->room + 7) & ~(size_t)7;
	uint32_t i;

	if (outcome == NULL)
		return pp__worker_refuse(PP_ERR_NOMEM, NULL, 0);
	uint8_t *const results = (uint8_t *)(outcome + call->span);
	while (pp__worker_claim(&i) == PP_OK) {
		size_t out_size = call->room;
		const int32_t code = call_task(address, call->elements + i * call->stride, call->in_size, results + i * stride, &out_size, call);
		if (code != 0)
			outcome[i] = (pp__span_out){PP_ERR_TASK, code, out_size < call->room ? (uint32_t)out_size : 0, 0};
		else if (out_size > call->room)
			outcome[i] = (pp__span_out){PP_ERR_TOO_BIG, 0, 0, 0};
		else
			outcome[i] = (pp__span_out){PP_OK, 0, (uint32_t)out_size, 0};
	}
	return pp_worker_done(PP_OK, 0, outcome, size);
}

/* run calls a task's function and gives its result. */
static int32_t run(const pp_task *task)
{
	const void *address;
	pp__call call;

	int32_t status = pp__worker_call(&call);
	if (status != PP_OK)
		return status;
	if ((status = pp__worker_fn(task->fn, &address)) != PP_OK) {
		const char *text = pp_last_error();
		return pp__worker_refuse(PP_ERR_NOT_FOUND, text, strlen(text));
	}
	if (call.span != 0)
		return run_span(address, &call);
	if (call.is_range) {
		const int32_t code = call_range(address, &call);
		return pp_worker_done(code == 0 ? PP_OK : PP_ERR_TASK, code, NULL, 0);
	}
	void *const out = pp__worker_stage(call.room, call.exact);
	if (out == NULL)
		return pp__worker_refuse(PP_ERR_NOMEM, NULL, 0);
	size_t size = call.room;
	const int32_t code = call_task(address, task->data, (size_t)task->size, out, &size, &call);
	if (code != 0) /* a size that it has not set is no size of an error's text */
		status = pp_worker_done(PP_ERR_TASK, code, out, size < call.room ? size : 0);
	else if (size > call.room)
		return pp__worker_refuse(PP_ERR_TOO_BIG, NULL, 0);
	else
		status = pp_worker_done(PP_OK, 0, out, size);
	return status == PP_ERR_NOMEM ? pp__worker_refuse(PP_ERR_NOMEM, NULL, 0) : status;
}

/* serve runs tasks until there will be no more. */
static void serve(const pp_worker *worker)
{
	settle_signals();
	initialize(worker);
	for (;;) {
		pp_task task;
		int32_t status = pp_worker_next(-1, &task);
		if (status == PP_ERR_INTERRUPTED)
			continue;
		if (status == PP_ERR_CLOSED)
			return;
		status = status == PP_ERR_NOMEM ? pp__worker_refuse(PP_ERR_NOMEM, NULL, 0) : status != PP_OK ? status : run(&task);
		if (status != PP_OK)
			give_up("worker");
	}
}

/* no_input gives a worker an empty standard input: what there is to read is for the program, and workers would take it away. */
static void no_input(void)
{
	const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (forked)
		__fpurge(stdin);
	if (null > STDIN_FILENO) {
		dup2(null, STDIN_FILENO);
		close(null);
	} else if (null == STDIN_FILENO) {
		fcntl(null, F_SETFD, 0);
	}
}

/* serve_afresh ends with exit, not _exit: what tasks have printed is flushed, and their atexit functions run. */
static _Noreturn void serve_afresh(void)
{
	pp_worker worker = {.size = sizeof worker};

	if (pp__worker_orphan())
		_exit(1);
	const int32_t status = pp_worker_attach(&worker);
	if (status == PP_ERR_STATE)
		_exit(1); /* the parent has died meanwhile: nobody is left who wants to hear of it */
	if (status != PP_OK)
		give_up("worker");
	no_input();
	serve(&worker);
	exit(0);
}

/* pp__fork_worker forks a worker. */
int32_t pp__fork_worker(const pp_vacancy *vacancy)
{
	pp_worker worker = {.size = sizeof worker};
	const pid_t pid = fork();

	if (pid != 0)
		return (int32_t)pid;
	__fpurge(stdout);
	forked = true;
	if (pp_worker_attach_to(vacancy, &worker) != PP_OK)
		_exit(1);
	no_input();
	serve(&worker);
	leave(0);
}

/* run_child is a child of pp_process_start with fn. */
static _Noreturn void run_child(void)
{
	const void *raw, *arg, *address;
	size_t raw_size, arg_size;
	pp__fn_ref ref;

	if (pp__payload_raw(&raw, &raw_size) != PP_OK || pp_payload(&arg, &arg_size) != PP_OK)
		give_up("child");
	memcpy(&ref, raw, sizeof ref);
	if (pp__locate(&ref, &address) != PP_OK)
		give_up("child");
	exit(call_process(PP__AS_FN(pp_process_fn, address), arg, arg_size) & 0xff);
}

/* pp__fork_process is pp_process_start by PP_START_FORK: the child goes on from here, with all that the parent had. Returns the child's pid to the parent, or -1 with errno. */
int32_t pp__fork_process(const pp_process_options *options, pp__bell *gate)
{
	const pid_t parent = getpid();
	sigset_t interrupt, before;

	sigemptyset(&interrupt);
	sigaddset(&interrupt, SIGINT);
	/* Blocked already at the fork, so that there is no moment in which it is not. */
	if ((options->flags & PP_PROCESS_BLOCK_SIGINT) != 0)
		pthread_sigmask(SIG_BLOCK, &interrupt, &before);
	const pid_t pid = fork();
	if (pid != 0) {
		const int error = errno;
		if ((options->flags & PP_PROCESS_BLOCK_SIGINT) != 0)
			pthread_sigmask(SIG_SETMASK, &before, NULL);
		errno = error;
		return (int32_t)pid;
	}
	__fpurge(stdout);
	forked = true;
	pp__started_by_fork(parent);
	if ((options->flags & PP_PROCESS_DAEMON) != 0 && pp__watch(parent, 0, -1) != PP_OK)
		_exit(1); /* the parent has died */
	while (__atomic_load_n(&gate->seq, __ATOMIC_SEQ_CST) == 0 && getppid() == parent)
		(void)pp__bell_wait(gate, 0, (uint64_t)PP__SLICE_MS * 1000000u);
	munmap(gate, sizeof *gate);
	if (options->cwd != NULL && chdir(options->cwd) != 0) {
		pp__set_error("%s: %s", options->cwd, strerror(errno));
		give_up("child");
	}
	if (options->env != NULL)
		environ = (char **)(uintptr_t)options->env;
	leave(call_process(options->fn, options->arg, options->arg_size) & 0xff);
}

/* keep_arguments copies the program's arguments: programs shuffle and overwrite their argv. */
static char *const *keep_arguments(int argc, char **argv)
{
	static const char file[] = "/proc/self/cmdline";
	size_t size = 0, count = 0;
	char *text = NULL;

	if (argv != NULL) {
		for (int i = 0; i < argc && argv[i] != NULL; i++, count++)
			size += strlen(argv[i]) + 1;
		text = malloc(size + 1);
		if (text == NULL)
			return NULL;
		char *at = text;
		for (size_t i = 0; i < count; i++)
			at = stpcpy(at, argv[i]) + 1;
	} else {
		FILE *f = fopen(file, "re");
		size_t room = 0;
		size_t n = 1;
		if (f == NULL)
			return NULL;
		while (n > 0) {
			if (room - size < 4096) {
				char *more = realloc(text, room = room * 2 + 8192);
				if (more == NULL)
					break;
				text = more;
			}
			n = fread(text + size, 1, room - size - 1, f);
			size += n;
		}
		fclose(f);
		if (text == NULL || n > 0) {
			free(text);
			return NULL;
		}
		text[size] = '\0';
		for (size_t i = 0; i < size; i++)
			count += text[i] == '\0';
	}
	char **list = calloc(count + 1, sizeof *list);
	if (list == NULL) {
		free(text);
		return NULL;
	}
	for (size_t i = 0, at = 0; i < count; i++, at += strlen(text + at) + 1)
		list[i] = text + at;
	return list; /* for the life of the process */
}

int32_t pp_init(int *argc, char ***argv)
{
	if (pp__denied()) {
		fputs("polyproc: a set-uid program, or one with file capabilities, does not believe its environment, and so can be no worker or "
		      "child of itself: use PP_START_FORK\n",
		      stderr);
		_exit(1);
	}
	const bool first = !pp__the_host.initialized;
	if (first) {
		char *const *arguments = keep_arguments(argc != NULL ? *argc : 0, argc != NULL && argv != NULL ? *argv : NULL);
		if (arguments == NULL)
			return pp__fail(PP_ERR_NOMEM, "pp_init: the program's arguments: out of memory");
		pp__the_host.argv = arguments;
		__atomic_store_n(&pp__the_host.initialized, 1, __ATOMIC_SEQ_CST);
	}
	/* A task of a worker may open a pool of its own. */
	if (pp_worker_pending())
		serve_afresh();
	const pp__started *child = pp__started_as();
	/* Not that of another program's child, whose variable was left in the environment. */
	if (first && child->known) {
		if ((child->flags & PP__CHILD_WATCH) != 0 && pp_watch_parent() != PP_OK && getppid() != child->parent_pid)
			_exit(1);
		if ((child->flags & PP__CHILD_FN) != 0)
			run_child();
	}
	return PP_OK;
}
