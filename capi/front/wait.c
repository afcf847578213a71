/* wait.c - see wait.h. */
#include "wait.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>

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

bool pp__interrupts(void)
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
		if ((now.sa_flags & SA_RESTART) != 0 || (i == SIGCHLD && !of_python((uintptr_t)now.sa_handler)))
			restarts = true;
		else
			interrupts = true;
	}
	errno = saved;
	return interrupts || !restarts;
}
