/* scenarios.h - a test that is many scenarios, each in a process of its own: the program runs itself with the scenario's name. So
 * each has its own library, limits and descriptors, none sees what another left, and what it leaves itself is found. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "require.h"

#include <polyproc.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>

typedef struct scenario {
	const char *name;
	void (*run)(void);
	int no_init;  /* main does not call pp_init */
	int by_signal; /* it ends itself by this signal */
} scenario;

static const char *program; /* argv[0] */

/* shared_names counts files in /dev/shm and descriptors that a scenario has open. */
static inline int open_descriptors(void)
{
	int count = 0;

	for (int fd = 0; fd < 4096; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

/* run_scenario runs one in a child and looks at what it leaves. */
static inline void run_scenario(const scenario *s)
{
	int status, rest;
	const int64_t began = now_ms();
	const pid_t child = fork();

	REQUIRE(child >= 0);
	if (child == 0) {
		execl("/proc/self/exe", program, s->name, (char *)NULL);
		_exit(127);
	}
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	if (status != s->by_signal) {
		fprintf(stderr, "%s: status %#x\n", s->name, (unsigned)status);
		exit(1);
	}
	/* All that it has started has become this process's, and must end within a second. */
	const int64_t until = now_ms() + 1000;
	pid_t left;
	while ((left = waitpid(-1, &rest, WNOHANG)) >= 0) {
		if (now_ms() > until) {
			fprintf(stderr, "%s: leaves processes\n", s->name);
			exit(1);
		}
		if (left == 0)
			nanosleep(&(struct timespec){0, 1000000}, NULL);
	}
	REQUIRE_EQ(errno, ECHILD);
	printf("%-28s %lld ms\n", s->name, (long long)(now_ms() - began));
	fflush(stdout);
}

/* run_scenarios is main: without arguments it runs all, with a name that one. */
static inline int run_scenarios(int argc, char **argv, const scenario *list, size_t count)
{
	program = argv[0];
	if (argc == 2) {
		for (size_t i = 0; i < count; i++) {
			if (strcmp(list[i].name, argv[1]) != 0)
				continue;
			if (!list[i].no_init)
				REQUIRE_STATUS(pp_init(&argc, &argv), PP_OK);
			alarm(60);
			list[i].run();
			return 0;
		}
		fprintf(stderr, "no scenario %s\n", argv[1]);
		return 1;
	}
	REQUIRE_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	for (size_t i = 0; i < count; i++)
		run_scenario(&list[i]);
	return 0;
}

#endif
