/* killsweep.h - a child that executes k instructions of an operation, for every k there is (in `make test` for some).
 *
 * The child stops itself (SIGSTOP) before the operation and behind it. way_record lets a first child go step by step and notes the address of each
 * instruction; way_to brings every later child to its k-th. It goes at full speed to a breakpoint, on the last instruction up to the k-th that is executed
 * there for the first time, and from there step by step: so a place costs about as much as a fork, wherever it lies, and a sweep can afford them all.
 *
 * An instruction that copies (rep movs, rep stos) counts as one, with all its repetitions. Who waits for others does not go the same way each time: a
 * child that does not come by its breakpoint runs to the stop behind the operation, way_next has the same k again, and that breakpoint is not used any more. */
#ifndef KILLSWEEP_H
#define KILLSWEEP_H

#include "procfs.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WAY_LONGEST = 200000, WAY_SLOTS = 1 << 19 };

typedef struct way {
	uint32_t count;  /* instructions, from the stop before the operation to the stop behind it */
	uint32_t begins; /* of these, before the operation */
	uint32_t missed; /* children that did not come by their breakpoint */
	bool again;      /* the last did not */
	uint32_t coarse; /* see way_stride */
	uint32_t anchor[WAY_LONGEST + 1]; /* of each instruction: the last one up to it that is executed for the first time */
	uint64_t ip[WAY_LONGEST + 1];
} way;

/* How a sweep looks at its child. */
typedef struct watcher {
	uint32_t (*entered)(void); /* 0: before the operation, 1: in it, 2: behind it */
	void (*asleep)(void);      /* or NULL: gives a child that sleeps what it waits for, called once */
} watcher;

/* way_sleeping reports whether the child is in a system call that does not return. */
static inline bool way_sleeping(pid_t child)
{
	char path[64], text[256];

	snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
	read_text(path, text, sizeof text);
	const char *const after = strrchr(text, ')');
	return after != NULL && after[2] == 'S';
}

/* way_go lets the child go, by request, to its next stop, and returns the signal of it: SIGTRAP, or SIGSTOP behind the operation. */
static inline int way_go(const watcher *w, pid_t child, int request, bool *given)
{
	int status = 0;

	REQUIRE_EQ(ptrace((enum __ptrace_request)request, child, NULL, NULL), 0);
	for (int spins = 0;; spins++) {
		const pid_t got = waitpid(child, &status, *given || w->asleep == NULL ? 0 : WNOHANG);
		if (got == child)
			break;
		REQUIRE_EQ(got, 0);
		if (spins > 200 && !*given && way_sleeping(child)) {
			*given = true;
			w->asleep();
		}
		if (spins > 200)
			nanosleep(&(struct timespec){0, 50000}, NULL);
	}
	REQUIRE(WIFSTOPPED(status));
	REQUIRE(WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP);
	return WSTOPSIG(status);
}

#if defined(__x86_64__)
static inline uint64_t way_ip(pid_t child)
{
	errno = 0;
	const uint64_t ip = (uint64_t)ptrace(PTRACE_PEEKUSER, child, offsetof(struct user_regs_struct, rip), NULL);
	REQUIRE_EQ(errno, 0);
	return ip;
}

/* way_run lets the child run until it is about to execute the instruction at address: false if it stopped behind the operation first. */
static inline bool way_run(const watcher *w, pid_t child, uint64_t address, bool *given)
{
	void *const at = (void *)(uintptr_t)address;

	errno = 0;
	const long was = ptrace(PTRACE_PEEKTEXT, child, at, NULL);
	REQUIRE_EQ(errno, 0);
	REQUIRE_EQ(ptrace(PTRACE_POKETEXT, child, at, (void *)((was & ~0xffL) | 0xcc)), 0);
	if (way_go(w, child, PTRACE_CONT, given) == SIGSTOP)
		return false;
	REQUIRE_EQ(ptrace(PTRACE_POKETEXT, child, at, (void *)was), 0);
	REQUIRE_EQ(way_ip(child), address + 1);
	REQUIRE_EQ(ptrace(PTRACE_POKEUSER, child, offsetof(struct user_regs_struct, rip), (void *)at), 0);
	return true;
}

/* way_step executes one instruction, and of the copying ones all repetitions. */
static inline bool way_step(const watcher *w, pid_t child, bool *given)
{
	const uint64_t ip = way_ip(child);

	errno = 0;
	const uint64_t code = (uint64_t)ptrace(PTRACE_PEEKTEXT, child, (void *)(uintptr_t)ip, NULL);
	const uint32_t length = (code & 0xfeff) == 0xa4f3 || (code & 0xfeff) == 0xaaf3           ? 2
	                        : (code & 0xfeffff) == 0xa448f3 || (code & 0xfeffff) == 0xaa48f3 ? 3
	                                                                                         : 0;
	if (errno == 0 && length != 0)
		return way_run(w, child, ip + length, given);
	return way_go(w, child, PTRACE_SINGLESTEP, given) == SIGTRAP;
}
#else
static inline uint64_t way_ip(pid_t child)
{
	(void)child;
	return 0;
}

static inline bool way_run(const watcher *w, pid_t child, uint64_t address, bool *given)
{
	(void)w, (void)child, (void)address, (void)given;
	return false;
}

static inline bool way_step(const watcher *w, pid_t child, bool *given)
{
	return way_go(w, child, PTRACE_SINGLESTEP, given) == SIGTRAP;
}
#endif

/* way_record steps child, which has stopped before the operation, through it, and notes the way. The child is behind the operation then. */
static inline void way_record(way *way, const watcher *w, pid_t child)
{
	static uint64_t seen[WAY_SLOTS]; /* addresses, by hash */
	bool given = false;

	memset(seen, 0, sizeof seen);
	way->count = way->begins = way->missed = 0;
	way->again = false;
	for (uint32_t n = 0; w->entered() < 2; n++) {
		const uint64_t ip = way_ip(child);
		REQUIRE(n < WAY_LONGEST);
		uint32_t slot = (uint32_t)(ip * 0x9e3779b97f4a7c15u >> 45);
		while (seen[slot] != 0 && seen[slot] != ip)
			slot = (slot + 1) % WAY_SLOTS;
		way->ip[n] = ip;
		way->anchor[n] = seen[slot] == 0 || n == 0 ? n : way->anchor[n - 1];
		seen[slot] = ip;
		REQUIRE(way_step(w, child, &given));
		way->count = n + 1;
		way->begins += w->entered() == 0;
	}
	way->ip[way->count] = way_ip(child);
	way->anchor[way->count] = way->anchor[way->count - 1];
}

/* way_length is how many instructions the operation takes. */
static inline uint32_t way_length(const way *way)
{
	return way->count - way->begins;
}

/* way_to brings child, which has stopped before the operation, to where it has executed k instructions of it. Returns false, and the child is behind the
 * operation, if it is over by then or if this child went another way. */
static inline bool way_to(way *way, const watcher *w, pid_t child, uint32_t k)
{
	const uint32_t to = way->begins + (k < way_length(way) ? k : way_length(way));
	uint32_t at = way->anchor[to];
	bool given = false;

#if !defined(__x86_64__)
	at = 0;
#endif
	if (at != 0 && !way_run(w, child, way->ip[at], &given)) {
		for (uint32_t i = at; i <= way->count && way->anchor[i] == at; i++)
			way->anchor[i] = way->anchor[at - 1];
		way->missed++;
		way->again = true;
		return false;
	}
	while (at < to && w->entered() < 2) {
		if (!way_step(w, child, &given))
			break;
		at++;
	}
	while (k >= way_length(way) && w->entered() < 2 && way_step(w, child, &given))
		;
	return w->entered() < 2;
}

/* way_bind, called first in main, starts the program anew with all symbols bound: the binding of one is a thousand instructions of the loader. */
static inline void way_bind(char **argv)
{
	if (getenv("LD_BIND_NOW") == NULL) {
		setenv("LD_BIND_NOW", "1", 1);
		execv("/proc/self/exe", argv);
		REQUIRE(false);
	}
}

/* way_fork forks a child that calls prepare, stops, and goes on, when it is let go, with op; *entered, in memory that both share, says where it is. */
static inline pid_t way_fork(uint64_t *entered, void (*prepare)(void), void (*op)(void))
{
	__atomic_store_n(entered, 0, __ATOMIC_SEQ_CST);
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		prepare();
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
			_exit(1);
		raise(SIGSTOP);
		__atomic_store_n(entered, 1, __ATOMIC_SEQ_CST);
		op();
		__atomic_store_n(entered, 2, __ATOMIC_SEQ_CST);
		raise(SIGSTOP);
		_exit(0);
	}
	int status;
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	return child;
}

/* way_stride is how far to go on from k. The sweep of `make sweep` (POLYPROC_SWEEP) tries every instruction, that of `make test` one of way->coarse (every one,
 * if that is 0); of a loop that goes round for thousands both try ever fewer. */
static inline uint32_t way_stride(const way *way, uint32_t k)
{
	const uint32_t at = way->begins + k, round = k < way_length(way) ? at - way->anchor[at] : 0;
	const uint32_t every = way->coarse == 0 || getenv("POLYPROC_SWEEP") != NULL ? 1 : way->coarse;

	return round < 2000 ? every : every == 1 ? round / 64 : round / 4;
}

/* way_first is the k to begin with. */
static inline uint32_t way_first(const way *way)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint32_t)now.tv_sec % way_stride(way, 0);
}

/* way_next is the k to go on with after k; the last is way_length's, where the operation is over. */
static inline uint32_t way_next(way *way, uint32_t k)
{
	const uint32_t length = way_length(way), next = k + way_stride(way, k);

	if (way->again) {
		way->again = false;
		return k;
	}
	return k < length && next > length ? length : next;
}

/* way_end kills child. */
static inline void way_end(pid_t child)
{
	int status;

	REQUIRE_EQ(kill(child, SIGKILL), 0);
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE(WIFSIGNALED(status));
}

#endif
