/* threads.c - what the engine asks of the threads of the program: that new ones can be made, and that signal handlers have a stack. */
#include "front.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- new threads -------------------------------------------------------------------------------------------------------- */

typedef struct gathering {
	pthread_mutex_t lock;
	pthread_cond_t over;
	bool is_over;
} gathering;

static void *attend(void *arg)
{
	gathering *const g = arg;

	pthread_mutex_lock(&g->lock);
	while (!g->is_over)
		pthread_cond_wait(&g->over, &g->lock);
	pthread_mutex_unlock(&g->lock);
	return NULL;
}

int pp__threads_possible(unsigned n)
{
	gathering g = {.lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};
	pthread_t threads[PP__THREADS_MOST];
	sigset_t all, before;
	unsigned made = 0;
	int error = 0;

	/* No handler of the program runs in these threads. The stacks are of the default size, as those of the engine's threads are. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (made < n && made < PP__THREADS_MOST && (error = pthread_create(&threads[made], NULL, attend, &g)) == 0)
		made++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_mutex_lock(&g.lock);
	g.is_over = true;
	pthread_cond_broadcast(&g.over);
	pthread_mutex_unlock(&g.lock);
	for (unsigned i = 0; i < made; i++)
		pthread_join(threads[i], NULL);
	return error;
}

/* ---- signal stacks ------------------------------------------------------------------------------------------------------ */

/* The Go runtime needs an alternative signal stack in each thread that calls it, and gives a thread without one 32 KiB of its own heap
 * with no guard page. Handlers of the program then run there. So a thread gets a larger stack of the library's before its first call. */

static pthread_key_t stack_key;
static bool stack_key_made;
static __thread bool has_stack;

static size_t guard_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

/* free_stack runs at the end of a thread. A thread that set another stack meanwhile keeps it. */
static void free_stack(void *base)
{
	stack_t now;

	if (sigaltstack(NULL, &now) != 0)
		return;
	if (now.ss_sp == (uint8_t *)base + guard_size()) {
		if ((now.ss_flags & SS_ONSTACK) != 0)
			return;
		const stack_t none = {.ss_flags = SS_DISABLE};
		if (sigaltstack(&none, NULL) != 0)
			return;
	}
	munmap(base, guard_size() + PP__SIGNAL_STACK);
}

void pp__signal_stack_begin(void)
{
	/* After the engine has made its own key: destructors run in the order of the keys. */
	if (!stack_key_made)
		stack_key_made = pthread_key_create(&stack_key, free_stack) == 0;
}

void pp__signal_stack(void)
{
	stack_t now;

	if (has_stack)
		return;
	has_stack = true;
	if (sigaltstack(NULL, &now) != 0 || (now.ss_flags & SS_DISABLE) == 0)
		return;
	uint8_t *const base = mmap(NULL, guard_size() + PP__SIGNAL_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return; /* the runtime's own will do */
	const stack_t ours = {.ss_sp = base + guard_size(), .ss_size = PP__SIGNAL_STACK};
	if (mprotect(base, guard_size(), PROT_NONE) != 0 || sigaltstack(&ours, NULL) != 0) {
		munmap(base, guard_size() + PP__SIGNAL_STACK);
		return;
	}
	if (stack_key_made)
		pthread_setspecific(stack_key, base);
}
