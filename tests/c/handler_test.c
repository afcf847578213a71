/* handler_test.c - pp_event_set and pp_semaphore_release are async-signal-safe: in a library that was loaded by dlopen(3), as the first call of a thread, they
 * allocate nothing. A handler may have interrupted malloc.
 *
 * deadline: 60 s
 */
#include "require.h"

#include <polyproc.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

/* The C library's own, behind ours, which count. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static volatile sig_atomic_t in_handler, allocations, signals;

void *malloc(size_t n)
{
	allocations += in_handler;
	return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	allocations += in_handler;
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	allocations += in_handler;
	return __libc_realloc(p, n);
}

void *memalign(size_t to, size_t n)
{
	allocations += in_handler;
	return __libc_memalign(to, n);
}

static int32_t (*event_set)(pp_event);
static int32_t (*semaphore_release)(pp_semaphore);
static pp_event event;
static pp_semaphore semaphore, full, recovers;

static void handler(int signal)
{
	(void)signal;
	in_handler = 1;
	const int32_t set = event_set(event), given = semaphore_release(semaphore), back = semaphore_release(recovers), stale = event_set(4711),
	              many = semaphore_release(full);
	in_handler = 0;
	if (set == PP_OK && given == PP_OK && back == PP_OK && stale == PP_ERR_HANDLE && many == PP_ERR_STATE)
		signals++;
}

static void *first_call(void *none)
{
	REQUIRE_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
	return none;
}

/* load loads another copy of the library. */
static void *load(void)
{
	char name[] = "/tmp/pp-handler-XXXXXX", part[65536];
	const int from = open(pp_library_path(), O_RDONLY | O_CLOEXEC), to = mkstemp(name);
	ssize_t n;

	REQUIRE(from >= 0 && to >= 0);
	while ((n = read(from, part, sizeof part)) > 0)
		REQUIRE_EQ(write(to, part, (size_t)n), n);
	REQUIRE_EQ(n, 0);
	REQUIRE_EQ(close(from), 0);
	REQUIRE_EQ(close(to), 0);
	void *const library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	REQUIRE(library != NULL);
	REQUIRE_EQ(unlink(name), 0);
	return library;
}

#define FIND(variable, name)                                          \
	do {                                                              \
		*(void **)(void *)&(variable) = dlsym(library, name);         \
		REQUIRE((variable) != NULL);                                  \
	} while (0)

int main(void)
{
	int32_t (*event_new)(pp_event *), (*semaphore_new)(uint32_t, uint32_t, uint32_t, pp_semaphore *), (*acquire)(pp_semaphore, int64_t),
	    (*wait)(pp_event, int64_t), (*clear)(pp_event);
	pthread_key_t key;

	/* Beyond the keys that a thread has room for from its start. */
	for (int i = 0; i < 40; i++)
		REQUIRE_EQ(pthread_key_create(&key, NULL), 0);
	void *const library = load();
	FIND(event_new, "pp_event_new");
	FIND(event_set, "pp_event_set");
	FIND(wait, "pp_event_wait");
	FIND(clear, "pp_event_clear");
	FIND(semaphore_new, "pp_semaphore_new");
	FIND(semaphore_release, "pp_semaphore_release");
	FIND(acquire, "pp_semaphore_acquire");
	REQUIRE(event_set != pp_event_set); /* not the one that the program is linked with */
	REQUIRE_EQ(event_new(&event), PP_OK);
	REQUIRE_EQ(semaphore_new(0, 1000, 0, &semaphore), PP_OK);
	REQUIRE_EQ(semaphore_new(1, 1, 0, &full), PP_OK);
	REQUIRE_EQ(semaphore_new(3, 3, PP_SEMAPHORE_RECOVER, &recovers), PP_OK);
	const struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART};
	REQUIRE_EQ(sigaction(SIGUSR1, &act, NULL), 0);
	for (int i = 1; i <= 100; i++) {
		pthread_t thread;
		REQUIRE_EQ(acquire(recovers, 0), PP_OK);
		REQUIRE_EQ(pthread_create(&thread, NULL, first_call, NULL), 0);
		REQUIRE_EQ(wait(event, 20000), PP_OK);
		REQUIRE_EQ(acquire(semaphore, 20000), PP_OK);
		REQUIRE_EQ(pthread_join(thread, NULL), 0);
		REQUIRE_EQ(clear(event), PP_OK);
		REQUIRE_EQ(signals, i);
		REQUIRE_EQ(allocations, 0);
	}
	/* In a thread that has called before, too. */
	REQUIRE_EQ(acquire(recovers, 0), PP_OK);
	first_call(NULL);
	REQUIRE_EQ(signals, 101);
	REQUIRE_EQ(allocations, 0);
	return 0;
}
