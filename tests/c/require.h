/* require.h - what the C tests share. A test is one program: it ends with 0, or says what is wrong and ends with 1. */
#ifndef REQUIRE_H
#define REQUIRE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* REQUIRE(condition) ends the test if the condition does not hold. */
#define REQUIRE(condition)                                                                                            \
	do {                                                                                                              \
		if (!(condition)) {                                                                                           \
			fprintf(stderr, "%s:%d: %s: not so: %s (errno %d)\n", __FILE__, __LINE__, __func__, #condition, errno); \
			fflush(stderr);                                                                                           \
			_exit(1);                                                                                                 \
		}                                                                                                             \
	} while (0)

/* REQUIRE_EQ(have, want) compares integers. */
#define REQUIRE_EQ(have, want)                                                                                        \
	do {                                                                                                              \
		const long long have_ = (long long)(have), want_ = (long long)(want);                                         \
		if (have_ != want_) {                                                                                         \
			fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, __func__, #have, have_, want_);  \
			fflush(stderr);                                                                                           \
			_exit(1);                                                                                                 \
		}                                                                                                             \
	} while (0)

/* REQUIRE_STATUS(call, want) compares status codes, by name, and shows the library's message; with polyproc.h only. */
#define REQUIRE_STATUS(call, want)                                                                                     \
	do {                                                                                                               \
		const int32_t have_ = (call), want_ = (want);                                                                  \
		if (have_ != want_) {                                                                                          \
			fprintf(stderr, "%s:%d: %s: %s is %s (%s), not %s\n", __FILE__, __LINE__, __func__, #call,                \
			        pp_status_name(have_), pp_last_error(), pp_status_name(want_));                                    \
			fflush(stderr);                                                                                            \
			_exit(1);                                                                                                  \
		}                                                                                                              \
	} while (0)

/* now_ms is a clock that only goes forward. */
static inline int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* WITHIN(ms, condition) looks until the condition holds, and ends the test if it does not within ms milliseconds. */
#define WITHIN(ms, condition)                                      \
	do {                                                           \
		const int64_t until_ = now_ms() + (ms);                    \
		while (!(condition)) {                                     \
			REQUIRE(now_ms() < until_ || (condition));             \
			nanosleep(&(struct timespec){0, 1000000}, NULL);       \
		}                                                          \
	} while (0)

/* A generator of numbers that are the same in every run. */
static inline uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

#endif
