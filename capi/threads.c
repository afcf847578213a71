/* The engine's threads are called pp-engine, so that ps and top tell them from the program's, and so
 * does the proof that nobody will send through a pipe: of threads that it does not know it must assume
 * that they may. The Go runtime makes them by pthread_create, which the linker leads here (--wrap, see
 * the Makefile). They are the library's spare threads as long as there are any: that a thread cannot be
 * made would abort the program. */
#include "engine.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>

typedef struct {
	void *(*start)(void *);
	void *arg;
	sigset_t mask;
} beginning;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);

enum { SIGNAL_STACK = 256 << 10, GUARD = 64 << 10 };

static void *begin(void *arg)
{
	const beginning b = *(beginning *)arg;

	free(arg);
	prctl(PR_SET_NAME, "pp-engine", 0, 0, 0);
	pthread_sigmask(SIG_SETMASK, &b.mask, NULL);
	/* Handlers of the program may run here too. Without a stack they run on 32 KiB of the Go heap, with nothing below that stops them. */
	uint8_t *const room = mmap(NULL, SIGNAL_STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return b.start(b.arg);
	stack_t stack = {.ss_sp = room + GUARD, .ss_size = SIGNAL_STACK};
	mprotect(room, GUARD, PROT_NONE);
	sigaltstack(&stack, NULL);
	void *const result = b.start(b.arg);
	stack.ss_flags = SS_DISABLE;
	if (sigaltstack(&stack, NULL) == 0)
		munmap(room, SIGNAL_STACK + GUARD);
	return result;
}

/* The thread that runs the runtime's start. The constructor of the engine makes it, before the library
 * has said where its spare threads are, and does not wait for it. */
static beginning *first;

static int start_thread(pthread_t *thread, const pthread_attr_t *attr, beginning *b)
{
	if (pp__library->use_spare_thread(begin, b))
		return 0;
	const int error = __real_pthread_create(thread, attr, begin, b);
	if (error != 0)
		free(b);
	return error;
}

/* The runtime wants its threads detached and with the default stack, and uses no pthread_t. */
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
	beginning *const b = malloc(sizeof *b);

	if (b == NULL)
		return __real_pthread_create(thread, attr, start, arg);
	*b = (beginning){.start = start, .arg = arg};
	pthread_sigmask(SIG_SETMASK, NULL, &b->mask);
	if (pp__library == NULL && first == NULL) {
		first = b;
		return 0;
	}
	return start_thread(thread, attr, b);
}

int pp__first_thread(void)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	return start_thread(&thread, &attr, first);
}
