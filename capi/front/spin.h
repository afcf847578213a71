/* spin.h - waiting for a moment without a system call, as long as it pays. */
#ifndef PP_SPIN_H
#define PP_SPIN_H

#include "front.h"

enum { PP__SPIN_LEAST = 1000 }; /* ns */

/* pp__spin looks at ready(object) for at most *budget ns, once every so many pauses of the CPU, and reports whether it came true. Each success doubles the budget, up to limit
 * ns; each failure halves it; far down, it is tried now and then only. budget is a word of the handle: several threads may share it. */
static inline bool pp__spin(uint64_t *budget, uint64_t limit, int pauses, bool (*ready)(const void *object), const void *object)
{
	static int32_t cpus;
	const uint64_t most = __atomic_load_n(budget, __ATOMIC_RELAXED);

	if (cpus == 0)
		cpus = pp_cpu_count();
	if (cpus == 1)
		return false;
	if (most < PP__SPIN_LEAST) { /* counts up: one sleep of 16 */
		__atomic_store_n(budget, most + PP__SPIN_LEAST / 16, __ATOMIC_RELAXED);
		return false;
	}
	const uint64_t began = pp__now_ns();
	do {
		for (int i = 0; i < pauses; i++)
			pp__pause();
		if (ready(object)) {
			__atomic_store_n(budget, 2 * most < limit ? 2 * most : limit, __ATOMIC_RELAXED);
			return true;
		}
	} while (pp__now_ns() - began < most);
	__atomic_store_n(budget, most / 2, __ATOMIC_RELAXED);
	return false;
}

#endif
