/* main.c - prints what the functions of subset.gen.h compute; subset/run.go does the same in Go. */
#include <stdio.h>

#include "subset.gen.h"

static bool hand_note(pp__t_view *v, const char *what, uint64_t value)
{
	v->walks += (uint32_t)value + (uint32_t)strlen(what);
	return true;
}

typedef unsigned long long ull;

int main(void)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 3, 7, 8, 1000, 1001, 0x7fffffff, 0x80000000, 0xffffffff, 0x123456789abcdef0, UINT64_MAX};
	enum { N = sizeof numbers / sizeof numbers[0] };

	for (int i = 0; i < N; i++) {
		const uint64_t x = numbers[i];
		for (int k = 0; k < N; k++) {
			const uint64_t y = numbers[k];
			for (int m = 0; m < N; m++)
				printf("mix [%llu]\n", (ull)pp__t_mix(x, y, (uint32_t)numbers[m]));
			printf("two [%u %d %llu]\n", pp__t_grade((uint32_t)x, (uint32_t)y), pp__t_after((uint32_t)x, (uint32_t)y),
			       (ull)pp__t_word_of((uint32_t)x, (uint32_t)y));
		}
		printf("one [%u %d %u %u %llu]\n", pp__t_kind((uint32_t)x), pp__t_lowest((int32_t)x), pp__t_word_tag(x), pp__t_word_count(x),
		       (ull)pp__t_word_with_next(x));
	}
	pp__t_slot s = {0};
	pp__t_view v = {.slot = &s};
	uint64_t sum;
	const bool filled = pp__t_view_fill(&v, 0xfffffffc, &sum);
	printf("fill [%d %llu %llu %u]\n", filled, (ull)sum, (ull)pp__t_view_total(&v), v.walks);
	const uint64_t first = pp__t_view_bump(&v, 5), second = pp__t_view_bump(&v, 6);
	printf("bump [%llu %llu %llu]\n", (ull)first, (ull)second, (ull)v.last);
	printf("at [%u %d]\n", *pp__t_view_at(&v, 7), pp__t_view_at(&v, 8) == NULL);
	const pp__t_view c = pp__t_view_copied(&v, 9);
	printf("copied [%u %llu %d]\n", c.walks, (ull)c.last, c.slot == v.slot);
	printf("search [%u %u]\n", pp__t_search(35), pp__t_search(37));
	return 0;
}
