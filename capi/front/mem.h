/* mem.h - access to words of shared memory, with the memory order named: what the generated steps of objects are written with. Go has the
 * same functions in shm/mem. A word is read once, and its checked copy is used: another process may change it at any time. */
#ifndef PP_MEM_H
#define PP_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PP__AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type "." #field)

static inline uint32_t pp__load32(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static inline uint64_t pp__load64(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static inline uint32_t pp__load_relaxed32(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline uint64_t pp__load_relaxed64(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void pp__store32(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static inline void pp__store64(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static inline void pp__store_relaxed32(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static inline void pp__store_relaxed64(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static inline void pp__store_release64(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* pp__cas writes to, if the word is from, and reports whether it was. */
static inline bool pp__cas32(uint32_t *word, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static inline bool pp__cas64(uint64_t *word, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static inline uint64_t pp__swap64(uint64_t *word, uint64_t value)
{
	return __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST);
}

/* pp__add32 returns the sum. */
static inline uint32_t pp__add32(uint32_t *word, uint32_t delta)
{
	return __atomic_add_fetch(word, delta, __ATOMIC_SEQ_CST);
}

static inline void pp__zero(void *to, uint64_t size)
{
	memset(to, 0, size);
}

static inline void pp__copy(void *to, const void *from, uint64_t size)
{
	if (size != 0)
		memcpy(to, from, size);
}

#endif
