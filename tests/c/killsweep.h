/* killsweep.h - a child that executes k instructions of an operation and is killed then. */
#ifndef KILLSWEEP_H
#define KILLSWEEP_H

#include "require.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/wait.h>

/* kill_after forks a child that calls prepare, at full speed, and then op, k instructions of it. entered, in memory that both share, is 0
 * before, 1 in the operation, 2 behind it. Returns 1 if the operation had ended by then, and how many instructions it was in *done_out. */
static inline int kill_after(unsigned k, volatile uint64_t *entered, void (*prepare)(void), void (*op)(void), unsigned *done_out)
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
	REQUIRE(WIFSTOPPED(status));
	unsigned done = 0;
	/* Up to the operation, and then k instructions more. */
	while (done < k && __atomic_load_n(entered, __ATOMIC_SEQ_CST) < 2) {
		REQUIRE_EQ(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL), 0);
		REQUIRE_EQ(waitpid(child, &status, 0), child);
		REQUIRE(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
		if (__atomic_load_n(entered, __ATOMIC_SEQ_CST) != 0)
			done++;
	}
	const int ended = __atomic_load_n(entered, __ATOMIC_SEQ_CST) == 2;
	REQUIRE_EQ(kill(child, SIGKILL), 0);
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	REQUIRE(WIFSIGNALED(status));
	*done_out = done;
	return ended;
}

#endif
