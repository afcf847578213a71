/* procfs.h - what a test sees of processes from outside: for what must not be left, and for what must be known of a hang. */
#ifndef PROCFS_H
#define PROCFS_H

#include "require.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* read_text reads a file into text: "" if it cannot. */
static inline void read_text(const char *path, char *text, size_t size)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = 0, got = 0;

	while (fd >= 0 && (size_t)n < size - 1 && (got = read(fd, text + n, size - 1 - (size_t)n)) > 0)
		n += got;
	text[n] = '\0';
	if (fd >= 0)
		close(fd);
}

/* dump_process prints what the system tells of a process and of each of its threads. */
static inline void dump_process(pid_t pid)
{
	char path[300], text[2000];

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	read_text(path, text, sizeof text);
	fprintf(stderr, "  %s", text);
	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	DIR *const tasks = opendir(path);
	if (tasks == NULL)
		return;
	for (struct dirent *e; (e = readdir(tasks)) != NULL;) {
		static const char *const files[] = {"comm", "wchan", "syscall", "stack"};
		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		fprintf(stderr, "    %s", e->d_name);
		for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
			snprintf(path, sizeof path, "/proc/%d/task/%.20s/%s", (int)pid, e->d_name, files[i]);
			read_text(path, text, sizeof text);
			for (char *c = text; *c != '\0'; c++)
				*c = *c == '\n' ? ' ' : *c;
			fprintf(stderr, " %s", text);
		}
		fputc('\n', stderr);
	}
	closedir(tasks);
}

/* dump_group prints all processes of this one's group. */
static inline void dump_group(const char *why)
{
	DIR *const processes = opendir("/proc");

	fprintf(stderr, "%s: processes of group %d:\n", why, (int)getpgrp());
	if (processes == NULL)
		return;
	for (struct dirent *e; (e = readdir(processes)) != NULL;) {
		const pid_t pid = (pid_t)atoi(e->d_name);
		if (pid > 0 && getpgid(pid) == getpgrp())
			dump_process(pid);
	}
	closedir(processes);
	fflush(stderr);
}

/* count_descriptors_like counts the descriptors of this process whose name, "anon_inode:[pidfd]" say, has part in it; "" for all. */
static inline int count_descriptors_like(const char *part)
{
	DIR *const list = opendir("/proc/self/fd");
	char name[300];
	int count = 0;

	REQUIRE(list != NULL);
	for (struct dirent *e; (e = readdir(list)) != NULL;) {
		if (!isdigit((unsigned char)e->d_name[0]) || atoi(e->d_name) == dirfd(list))
			continue;
		const ssize_t n = readlinkat(dirfd(list), e->d_name, name, sizeof name - 1);
		name[n > 0 ? n : 0] = '\0';
		count += n > 0 && strstr(name, part) != NULL;
	}
	closedir(list);
	return count;
}

/* count_lines counts the lines of a file that have part in them. */
static inline int count_lines(const char *path, const char *part)
{
	FILE *const f = fopen(path, "re");
	char *line = NULL;
	size_t room = 0;
	int count = 0;

	REQUIRE(f != NULL);
	while (getline(&line, &room, f) > 0)
		count += strstr(line, part) != NULL;
	free(line);
	fclose(f);
	return count;
}

/* status_number reads a number from /proc/PID/status, such as "Threads:" or "VmRSS:" (KiB); -1 if there is no such process. */
static inline long status_number(pid_t pid, const char *name)
{
	char path[64], text[8000];

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	read_text(path, text, sizeof text);
	const char *const at = strstr(text, name);
	return at != NULL ? strtol(at + strlen(name), NULL, 10) : -1;
}

/* collect_within collects a child of this process and returns its status; one that does not end within ms milliseconds ends the test,
 * with a dump of all. */
static inline int collect_within(pid_t child, int ms)
{
	int status = 0;
	struct pollfd p = {.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN};
	const int64_t until = now_ms() + ms;

	REQUIRE(p.fd >= 0);
	for (;;) {
		const int64_t rest = until - now_ms();
		const int n = poll(&p, 1, rest > 0 ? (int)rest : 0);
		if (n > 0)
			break;
		if (n == 0 && rest <= 0) {
			fprintf(stderr, "process %d, child of %d, does not end\n", (int)child, (int)getpid());
			dump_group("a hang");
			_exit(1);
		}
	}
	close(p.fd);
	REQUIRE_EQ(waitpid(child, &status, 0), child);
	return status;
}

#endif
