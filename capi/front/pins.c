/* pins.c - see pins.h. */
#include "pins.h"

#include "front.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

__thread pp__pins *pp__pins_mine;
__thread uint32_t pp__thread_number;
bool pp__pins_asymmetric;

static pp__pins *all; /* only ever grows: to as many as there were threads at once */
static pthread_key_t ending;
static bool has_ending;

static int membarrier(int command)
{
	return (int)syscall(SYS_membarrier, command, 0, 0);
}

/* A thread that ends leaves its places to the next. One that ends in the middle of a call uses nothing any more. */
static void ended(void *object)
{
	pp__pins *const pins = object;

	/* Destructors of others may come after this one, and hold locks until then: it is called once more after them. */
	if (__atomic_load_n(&pins->taken, __ATOMIC_RELAXED) == 1 && pthread_setspecific(ending, pins) == 0) {
		__atomic_store_n(&pins->taken, 2, __ATOMIC_RELAXED);
		return;
	}
	pp__pins_mine = NULL;
	for (int i = 0; i < PP__PINS; i++) {
		pp__handle *const h = pins->held[i];
		if (h == NULL)
			continue;
		__atomic_store_n(&pins->held[i], NULL, __ATOMIC_RELEASE);
		pp__pins_order();
		pp__handle_settle(h);
	}
	__atomic_store_n(&pins->thread, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&pins->taken, 0, __ATOMIC_RELEASE);
}

__attribute__((constructor)) static void pins_on_load(void)
{
	has_ending = pthread_key_create(&ending, ended) == 0;
	pp__pins_asymmetric = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0;
}

/* more_pins makes places for PER_PAGE threads and returns those of the first, which is taken. Not from malloc, which a signal handler may have interrupted. */
static pp__pins *more_pins(void)
{
	enum { PER_PAGE = 4096 / sizeof(pp__pins) };
	pp__pins *const pins = mmap(NULL, PER_PAGE * sizeof *pins, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pins == MAP_FAILED)
		return NULL;
	pins->taken = 1;
	for (int i = 0; i < PER_PAGE - 1; i++)
		pins[i].next = &pins[i + 1];
	pp__pins *first = __atomic_load_n(&all, __ATOMIC_RELAXED);
	do {
		pins[PER_PAGE - 1].next = first;
	} while (!__atomic_compare_exchange_n(&all, &first, pins, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
	return pins;
}

static pp__pins *find_pins(void)
{
	pp__pins *pins;

	if (!has_ending)
		return NULL;
	for (pins = __atomic_load_n(&all, __ATOMIC_ACQUIRE); pins != NULL; pins = pins->next) {
		uint32_t no = 0;
		if (__atomic_load_n(&pins->taken, __ATOMIC_RELAXED) == 0 &&
		    __atomic_compare_exchange_n(&pins->taken, &no, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			break;
	}
	if (pins == NULL)
		pins = more_pins();
	if (pins != NULL && pthread_setspecific(ending, pins) != 0) {
		__atomic_store_n(&pins->taken, 0, __ATOMIC_RELEASE);
		return NULL;
	}
	if (pins != NULL)
		__atomic_store_n(&pins->thread, pp__thread_number, __ATOMIC_SEQ_CST);
	return pins;
}

pp__pins *pp__pins_new(void)
{
	sigset_t signals, before;

	/* A handler that calls this library in the middle of this would find other places for the same thread. */
	sigfillset(&signals);
	pthread_sigmask(SIG_SETMASK, &signals, &before);
	if (pp__pins_mine == NULL)
		pp__pins_mine = find_pins();
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return pp__pins_mine;
}

bool pp__pins_known(void)
{
	return has_ending && pthread_getspecific(ending) != NULL;
}

static bool unknown; /* there are threads with numbers and without places */

uint32_t pp__thread_new(void)
{
	static uint32_t count;
	uint32_t number = __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);

	while (number == 0)
		number = __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
	pp__thread_number = number;
	pp__pins *const mine = pp__pins_mine != NULL ? pp__pins_mine : pp__pins_new();
	if (mine != NULL)
		__atomic_store_n(&mine->thread, number, __ATOMIC_SEQ_CST);
	else
		__atomic_store_n(&unknown, true, __ATOMIC_SEQ_CST);
	return number;
}

bool pp__thread_ended(uint32_t number)
{
	if (number == 0 || __atomic_load_n(&unknown, __ATOMIC_SEQ_CST))
		return false;
	for (const pp__pins *pins = __atomic_load_n(&all, __ATOMIC_ACQUIRE); pins != NULL; pins = pins->next)
		if (__atomic_load_n(&pins->thread, __ATOMIC_SEQ_CST) == number)
			return false;
	return true;
}

/* barrier has every thread pass a full barrier. A filter of system calls that has come later than the library may forbid that: from then on calls pass barriers themselves, and what
 * was under way at that moment becomes visible by itself while this thread sleeps. */
static void barrier(void)
{
	PP__NO_CANCEL();
	if (!__atomic_load_n(&pp__pins_asymmetric, __ATOMIC_RELAXED)) {
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		return;
	}
	if (membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0 ||
	    (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0 && membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0))
		return;
	__atomic_store_n(&pp__pins_asymmetric, false, __ATOMIC_SEQ_CST);
	nanosleep(&(struct timespec){0, 10000000}, NULL);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool pp__pins_any(const pp__handle *h)
{
	barrier();
	for (const pp__pins *pins = __atomic_load_n(&all, __ATOMIC_ACQUIRE); pins != NULL; pins = pins->next)
		for (int i = 0; i < PP__PINS; i++)
			if (__atomic_load_n(&pins->held[i], __ATOMIC_ACQUIRE) == h)
				return true;
	return false;
}

void pp__pins_in_child(void)
{
	for (pp__pins *pins = all; pins != NULL; pins = pins->next) {
		for (int i = 0; i < PP__PINS; i++)
			pins->held[i] = NULL;
		pins->taken = pins == pp__pins_mine;
		if (pins != pp__pins_mine)
			pins->thread = 0;
	}
}
