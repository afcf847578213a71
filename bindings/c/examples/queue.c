/* queue.c - a queue between processes: words go in here, a forked child measures them, and a second queue brings the answers back.
 *
 *   cc queue.c $(pkg-config --cflags --libs polyproc) && ./a.out
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <polyproc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct answer {
	char word[32];
	size_t length;
} answer;

static void check(int32_t status)
{
	if (status != PP_OK) {
		fprintf(stderr, "%s\n", pp_last_error());
		exit(1);
	}
}

/* Takes words until the queue is closed and empty. */
static void measure(pp_queue words, pp_queue answers)
{
	answer a;

	for (;;) {
		const int32_t status = pp_queue_get(words, a.word, sizeof a.word - 1, -1, &a.length);
		if (status == PP_ERR_CLOSED)
			return;
		check(status);
		a.word[a.length] = '\0';
		check(pp_queue_put(answers, &a, sizeof a, PP_RAW, -1));
	}
}

int main(void)
{
	static const char *const texts[] = {"shared", "memory", "holds", "it"};
	pp_queue words, answers;
	answer a;
	size_t size;

	check(pp_queue_create(NULL, &words));
	check(pp_queue_create(NULL, &answers));
	const pid_t child = fork();
	if (child == 0) {
		measure(words, answers);
		_exit(0);
	}
	for (int i = 0; i < 4; i++)
		check(pp_queue_put(words, texts[i], strlen(texts[i]), PP_RAW, -1));
	check(pp_queue_close(words));
	for (int i = 0; i < 4; i++) {
		check(pp_queue_get(answers, &a, sizeof a, 10000, &size));
		printf("%s: %zu\n", a.word, a.length);
	}
	waitpid(child, NULL, 0);
	check(pp_queue_free(words));
	check(pp_queue_free(answers));
	return 0;
}
