// The engine's threads are called pp-engine, so that ps and top tell them from the program's, and so does the proof that nobody will send through a pipe: of threads that it
// does not know it must assume that they may. The Go runtime makes them by pthread_create, which the linker leads here (--wrap, see the Makefile).
#include <pthread.h>
#include <stdlib.h>
#include <sys/prctl.h>

typedef struct {
	void *(*start)(void *);
	void *arg;
} beginning;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);

static void *begin(void *arg)
{
	const beginning b = *(beginning *)arg;

	free(arg);
	prctl(PR_SET_NAME, "pp-engine", 0, 0, 0);
	return b.start(b.arg);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
	beginning *const b = malloc(sizeof *b);

	if (b == NULL)
		return __real_pthread_create(thread, attr, start, arg);
	*b = (beginning){start, arg};
	const int error = __real_pthread_create(thread, attr, begin, b);
	if (error != 0)
		free(b);
	return error;
}
