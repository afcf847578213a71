/* wait.h - what every call that waits has in common: what timeout_ms means, and whether a signal ends the wait. */
#ifndef PP_WAIT_H
#define PP_WAIT_H

#include "front.h"

/* pp__timeout_valid reports whether timeout_ms is one: PP_TRY, -1, or a number of milliseconds. */
static inline bool pp__timeout_valid(int64_t timeout_ms)
{
	return timeout_ms >= -1 || timeout_ms == PP_TRY;
}

static inline int32_t pp__timeout_invalid(int64_t timeout_ms)
{
	pp__set_error("timeout_ms is %lld: a timeout is PP_TRY, -1 (no limit), or a number of milliseconds", (long long)timeout_ms);
	return PP_ERR_INVALID;
}

/* pp__futex_wait sleeps while *word is v, at most ns nanoseconds. Returns PP_OK, also without cause; PP_ERR_TIMEOUT;
 * PP_ERR_INTERRUPTED: a signal handler ran that ends waits. No message. The word is shared with other processes.
 *
 * It is futex_waitv(2), which the kernel restarts after a handler with SA_RESTART, as its timeout is absolute. Where that is
 * missing (Linux before 5.16, seccomp) it is futex(2), which no handler with SA_RESTART restarts. */
int32_t pp__futex_wait(const uint32_t *word, uint32_t v, uint64_t ns);

/* pp__engine_wait is pp__futex_wait for a thread that runs Go code otherwise: the Go runtime's SIGURG does not end it. */
int32_t pp__engine_wait(const uint32_t *word, uint32_t v, uint64_t ns);

/* pp__interrupts decides what a system call that returned EINTR means for the call of the library: true: PP_ERR_INTERRUPTED; false: it waits
 * again. A signal handler ends a wait unless it has SA_RESTART, or is one of SIGCHLD; the kernel does not say which handler ran, so this
 * looks at all handlers that can run in this thread. restarted: the kernel restarts the system call after handlers with SA_RESTART, so the
 * one that ran has not got the flag. errno is kept.
 *
 * If there are handlers of both sorts, the wait ends: a wait that ends too often is called again, one that goes on may hang.
 * If no handler explains a restart, the one that ran has removed itself (SA_RESETHAND), and the wait ends too. */
bool pp__interrupts(bool restarted);

#endif
