/* process.c - a function of this program in a child process, and how it ended.
 *
 *   cc process.c $(pkg-config --cflags --libs polyproc) && ./a.out
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <polyproc.h>
#include <stdio.h>
#include <string.h>

static int32_t greet(const void *arg, size_t arg_size)
{
	printf("hello, %.*s\n", (int)arg_size, (const char *)arg);
	fflush(stdout);
	return 3; /* the exit code */
}

int main(int argc, char **argv)
{
	pp_init(&argc, &argv);

	pp_process_options options = PP_PROCESS_OPTIONS_INIT;
	options.fn = greet;
	options.arg = "world";
	options.arg_size = strlen("world");

	pp_process child;
	pp_exit end;
	int32_t pid;
	if (pp_process_start(&options, &child) != PP_OK || pp_process_info(child, &pid, NULL) != PP_OK ||
	    pp_process_wait(child, 10000, &end) != PP_OK) {
		fprintf(stderr, "%s\n", pp_last_error());
		return 1;
	}
	printf("exit code %d\n", end.code);
	return pp_process_free(child) == PP_OK && pid > 0 ? 0 : 1;
}
