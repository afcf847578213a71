/* wait.c - see wait.h. */
#include "wait.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIGNALS = 64 };

/* of_python reports whether a handler is the interpreter's own. It only notes the signal; the Python function behind it runs when the call of
 * the library has returned to Python, which then calls again. */
static bool of_python(uintptr_t handler)
{
	Dl_info interpreter, module;
	const void *const function = dlsym(RTLD_DEFAULT, "PyErr_CheckSignals");

	return function != NULL && dladdr(function, &interpreter) != 0 && dladdr((const void *)handler, &module) != 0 &&
	       module.dli_fbase == interpreter.dli_fbase;
}

bool pp__interrupts(bool restarted)
{
	const int saved = errno;
	bool restarts = false, interrupts = false;
	sigset_t blocked;

	pthread_sigmask(SIG_BLOCK, NULL, &blocked);
	for (int i = 1; i <= SIGNALS && !interrupts; i++) {
		struct sigaction now;
		/* Faults are not raised in a wait; SIGURG is the Go runtime's, for threads that run Go code. */
		if (i == SIGSEGV || i == SIGBUS || i == SIGFPE || i == SIGILL || i == SIGTRAP || i == SIGURG || sigismember(&blocked, i) == 1)
			continue;
		/* sa_handler and sa_sigaction are one word. */
		if (sigaction(i, NULL, &now) != 0 || now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN)
			continue;
		if ((now.sa_flags & SA_RESTART) != 0)
			restarts = restarts || !restarted;
		else if (i == SIGCHLD && !of_python((uintptr_t)now.sa_handler))
			restarts = true;
		else
			interrupts = true;
	}
	errno = saved;
	return interrupts || !restarts;
}

/* struct futex_waitv and its number are missing in the headers of older systems. */
typedef struct waitv {
	uint64_t val;
	uint64_t uaddr;
	uint32_t flags;
	uint32_t reserved;
} waitv;

enum { FUTEX_WAITV = 449, SIZE_U32 = 2 /* shared between processes, as FUTEX2_PRIVATE is not set */ };

static bool without_waitv; /* the kernel has none, or denies it */

int32_t pp__futex_wait(const uint32_t *word, uint32_t v, uint64_t ns)
{
	if (!__atomic_load_n(&without_waitv, __ATOMIC_RELAXED)) {
		const uint64_t now = pp__now_ns(), end = ns < UINT64_MAX - now ? now + ns : UINT64_MAX;
		const struct timespec at = {(time_t)(end / 1000000000u), (long)(end % 1000000000u)};
		const waitv wait = {.val = v, .uaddr = (uintptr_t)word, .flags = SIZE_U32};

		if (syscall(FUTEX_WAITV, &wait, 1, 0, &at, CLOCK_MONOTONIC) >= 0 || errno == EAGAIN)
			return PP_OK;
		if (errno == ETIMEDOUT)
			return PP_ERR_TIMEOUT;
		if (errno == EINTR)
			return pp__interrupts(true) ? PP_ERR_INTERRUPTED : PP_OK;
		if (errno != ENOMEM)
			__atomic_store_n(&without_waitv, true, __ATOMIC_RELAXED);
	}
	const struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

	if (syscall(SYS_futex, word, FUTEX_WAIT, v, &t, NULL, 0) == 0 || errno == EAGAIN)
		return PP_OK;
	return errno == ETIMEDOUT ? PP_ERR_TIMEOUT : errno == EINTR && pp__interrupts(false) ? PP_ERR_INTERRUPTED : PP_OK;
}

int32_t pp__engine_wait(const uint32_t *word, uint32_t v, uint64_t ns)
{
	sigset_t urgent, before;

	/* Its handler has SA_RESTART. */
	if (!__atomic_load_n(&without_waitv, __ATOMIC_RELAXED))
		return pp__futex_wait(word, v, ns);
	sigemptyset(&urgent);
	sigaddset(&urgent, SIGURG);
	pthread_sigmask(SIG_BLOCK, &urgent, &before);
	const int32_t status = pp__futex_wait(word, v, ns);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return status;
}
