/* threads.c - the engine's threads: those that wait until it needs one, and the stack that signal handlers have in them. */
#include "front.h"

#include <limits.h>
#include <link.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- spare threads ------------------------------------------------------------------------------------------------------ */

/* A spare thread waits in its seat for the function that the engine would start a thread for. Only a thread that exists proves that it
 * could be made, and one that is used later was not made in vain: ending it first would wait until the kernel has run it, which takes
 * milliseconds on a busy machine. */
enum { SEATS = 16, SEAT_FREE = 0, SEAT_SPARE, SEAT_CALLED };

typedef struct seat {
	uint32_t state; /* a futex */
	pthread_t thread;
	void *(*start)(void *); /* NULL: the thread ends */
	void *arg;
} seat;

static seat seats[SEATS];
static pthread_mutex_t seats_lock = PTHREAD_MUTEX_INITIALIZER; /* of the seats that are free or spare */
static unsigned living;                                        /* threads that began in a seat and have not ended */

static uint32_t state_of(const seat *s)
{
	return __atomic_load_n(&s->state, __ATOMIC_ACQUIRE);
}

static void *sit(void *at)
{
	seat *const s = at;

	prctl(PR_SET_NAME, "pp-spare", 0, 0, 0);
	while (state_of(s) == SEAT_SPARE)
		syscall(SYS_futex, &s->state, FUTEX_WAIT_PRIVATE, SEAT_SPARE, NULL, NULL, 0);
	void *(*const start)(void *) = s->start;
	void *const arg = s->arg;
	__atomic_store_n(&s->state, SEAT_FREE, __ATOMIC_RELEASE);
	void *const result = start == NULL ? NULL : start(arg);
	__atomic_fetch_sub(&living, 1, __ATOMIC_RELAXED);
	return result;
}

/* call has a spare thread leave its seat. */
static void call(seat *s, void *(*start)(void *), void *arg)
{
	s->start = start;
	s->arg = arg;
	__atomic_store_n(&s->state, SEAT_CALLED, __ATOMIC_RELEASE);
	syscall(SYS_futex, &s->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

int pp__engine_threads(unsigned n)
{
	pthread_t ended[SEATS];
	seat *made[SEATS];
	sigset_t all, before;
	unsigned count = 0;
	int error = 0;

	if (__atomic_load_n(&living, __ATOMIC_RELAXED) >= n)
		return 0;
	PP__NO_CANCEL();
	/* No handler of the program runs in a spare thread. The stacks are of the default size, as those of the engine's threads are. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_mutex_lock(&seats_lock);
	for (seat *s = seats; s < seats + SEATS && __atomic_load_n(&living, __ATOMIC_RELAXED) < n; s++) {
		if (state_of(s) != SEAT_FREE)
			continue;
		s->state = SEAT_SPARE;
		if ((error = pthread_create(&s->thread, NULL, sit, s)) != 0) {
			s->state = SEAT_FREE;
			break;
		}
		__atomic_fetch_add(&living, 1, __ATOMIC_RELAXED);
		made[count++] = s;
	}
	if (error == 0)
		count = 0;
	for (unsigned i = 0; i < count; i++) {
		ended[i] = made[i]->thread;
		call(made[i], NULL, NULL);
	}
	pthread_mutex_unlock(&seats_lock);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	for (unsigned i = 0; i < count; i++)
		pthread_join(ended[i], NULL);
	return error;
}

bool pp__use_spare_thread(void *(*start)(void *), void *arg)
{
	bool used = false;

	pthread_mutex_lock(&seats_lock);
	for (seat *s = seats; s < seats + SEATS && !used; s++) {
		if (state_of(s) != SEAT_SPARE)
			continue;
		pthread_detach(s->thread);
		call(s, start, arg);
		used = true;
	}
	pthread_mutex_unlock(&seats_lock);
	return used;
}

void pp__threads_forked(void)
{
	memset(seats, 0, sizeof seats);
	seats_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	living = 0;
}

/* ---- threads of the library ---------------------------------------------------------------------------------------------- */

static int add_tls(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_TLS)
			*(size_t *)data += info->dlpi_phdr[i].p_memsz + info->dlpi_phdr[i].p_align;
	return 0;
}

int pp__thread_begin(void *(*run)(void *), void *arg, size_t stack)
{
	pthread_attr_t attr;
	pthread_t thread;
	sigset_t all, before;
	int error = pthread_attr_init(&attr);

	if (error != 0)
		return error;
	/* The system takes the thread-local variables of the program from a thread's stack, and does not add them. */
	pp__modules(add_tls, &stack);
	if (stack < (size_t)PTHREAD_STACK_MIN)
		stack = (size_t)PTHREAD_STACK_MIN;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, (stack + 65535) / 65536 * 65536);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread inherits it: no handler of the host runs on so small a stack */
	error = pthread_create(&thread, &attr, run, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
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
