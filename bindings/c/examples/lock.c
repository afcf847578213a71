/* lock.c - what a lock tells of a process that died while it held it.
 *
 *   cc lock.c $(pkg-config --cflags --libs polyproc) && ./a.out
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <polyproc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(int32_t status)
{
	if (status != PP_OK) {
		fprintf(stderr, "%s\n", pp_last_error());
		exit(1);
	}
}

int main(void)
{
	pp_lock lock;

	check(pp_lock_new(0, &lock));
	const pid_t child = fork();
	if (child == 0) {
		check(pp_lock_acquire(lock, -1));
		_exit(1); /* or is killed, whenever that may be */
	}
	waitpid(child, NULL, 0);

	int32_t status = pp_lock_acquire(lock, 10000);
	if (status == PP_ERR_OWNER_DIED) {
		printf("the holder died: what the lock protects may be half done\n");
		status = pp_lock_recover(lock, 10000); /* nobody acquires the lock before; here the data would be repaired */
	}
	check(status);
	printf("the lock works\n");
	check(pp_lock_release(lock));
	check(pp_lock_free(lock));
	return 0;
}
