/* The C half of mix_test.go: a role, then references in hexadecimal. Exits with the line of what failed (mod 256). */
#include <polyproc.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE 30000
#define REQUIRE(what)                                                                                              \
	do {                                                                                                       \
		if (!(what)) {                                                                                     \
			fprintf(stderr, "mix.c:%d: %s: %s\n", __LINE__, #what, pp_last_error());                   \
			_exit(__LINE__ % 255 + 1);                                                                 \
		}                                                                                                  \
	} while (0)

static uint64_t received(const char *hex)
{
	uint8_t ref[32];
	uint64_t handle;
	unsigned byte;

	REQUIRE(hex != NULL && strlen(hex) == 64);
	for (int i = 0; i < 32; i++) {
		REQUIRE(sscanf(hex + 2 * i, "%2x", &byte) == 1);
		ref[i] = (uint8_t)byte;
	}
	REQUIRE(pp_ref_import(ref, PP_KIND_ANY, &handle, NULL) == PP_OK);
	return handle;
}

static void contend(char **args)
{
	const uint64_t l = received(args[0]), r = received(args[1]), m = received(args[2]), named = received(args[3]), e = received(args[4]);
	pp_lock_state state;

	REQUIRE(pp_event_set(e) == PP_OK);
	for (int i = 0; i < 2000; i++) {
		REQUIRE(pp_lock_acquire(l, PATIENCE) == PP_OK);
		REQUIRE(pp_lock_info(l, &state) == PP_OK && state.held == PP_LOCK_BY_ME);
		REQUIRE(pp_lock_release(l) == PP_OK);
		REQUIRE(pp_lock_acquire(r, PATIENCE) == PP_OK && pp_lock_acquire(r, 0) == PP_OK);
		REQUIRE(pp_lock_info(r, &state) == PP_OK && state.held == PP_LOCK_BY_ME && state.levels == 2);
		REQUIRE(pp_lock_release(r) == PP_OK && pp_lock_release(r) == PP_OK);
		REQUIRE(pp_semaphore_acquire(m, PATIENCE) == PP_OK && pp_semaphore_release(m) == PP_OK);
		REQUIRE(pp_semaphore_acquire(named, PATIENCE) == PP_OK && pp_semaphore_release(named) == PP_OK);
	}
}

static void handover(char **args)
{
	const uint64_t l = received(args[0]), c = received(args[1]), b = received(args[2]);
	uint32_t index;

	REQUIRE(pp_barrier_wait(b, PATIENCE, NULL, &index) == PP_OK && index < 2);
	REQUIRE(pp_lock_acquire(l, PATIENCE) == PP_OK); /* when the other waits */
	for (int i = 0; i < 200; i++) {
		REQUIRE(pp_condition_notify(c, 1) == PP_OK);
		if (i < 199)
			REQUIRE(pp_condition_wait(c, l, PATIENCE) == PP_OK);
	}
	REQUIRE(pp_lock_release(l) == PP_OK);
	for (int i = 0; i < 500; i++)
		REQUIRE(pp_barrier_wait(b, PATIENCE, NULL, &index) == PP_OK);
}

static void hold(char **args)
{
	const uint64_t l = received(args[0]), r = received(args[1]), named = received(args[2]), e = received(args[3]);

	REQUIRE(pp_lock_acquire(l, 0) == PP_OK && pp_lock_acquire(r, 0) == PP_OK && pp_lock_acquire(r, 0) == PP_OK);
	REQUIRE(pp_semaphore_acquire(named, 0) == PP_OK);
	REQUIRE(pp_event_set(e) == PP_OK);
	pause();
}

static void told(char **args)
{
	const uint64_t l = received(args[0]);

	REQUIRE(pp_lock_acquire(l, PATIENCE) == PP_ERR_OWNER_DIED && pp_lock_release(l) == PP_ERR_OWNER_DIED);
}

static uint64_t received_end(const char *hex)
{
	uint8_t ref[32];
	uint64_t end;
	unsigned byte;

	REQUIRE(hex != NULL && strlen(hex) == 64);
	for (int i = 0; i < 32; i++) {
		REQUIRE(sscanf(hex + 2 * i, "%2x", &byte) == 1);
		ref[i] = (uint8_t)byte;
	}
	REQUIRE(pp_pipe_import(ref, -1, &end) == PP_OK);
	return end;
}

static char big[1 << 20];

static void echo_until_end(uint64_t end, int polled)
{
	struct pollfd at = {.events = POLLIN};

	if (polled)
		REQUIRE(pp_pipe_descriptor(end, &at.fd) == PP_OK);
	for (;;) {
		if (polled)
			REQUIRE(poll(&at, 1, PATIENCE) == 1);
		const int64_t n = pp_pipe_recv(end, big, sizeof big, polled ? 0 : -1);
		if (n == PP_ERR_EOF)
			return;
		REQUIRE(n >= 0);
		REQUIRE(pp_pipe_send(end, big, (size_t)n, PATIENCE) == PP_OK);
	}
}

static void echo(char **args)
{
	echo_until_end(received_end(args[0]), 0);
}

static void echo_polled(char **args)
{
	echo_until_end(received_end(args[0]), 1);
}

static void files(char **args)
{
	const uint64_t end = received_end(args[0]);
	int32_t fd;

	REQUIRE(pp_pipe_recv_fd(end, PATIENCE, &fd) == PP_OK);
	REQUIRE(pp_pipe_send_fd(end, fd, PATIENCE) == PP_OK);
	memset(big, 'C', 100000);
	REQUIRE(pp_pipe_send(end, big, 100000, PATIENCE) == PP_OK);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(char **args);
	} roles[] = {
		{"contend", contend}, {"handover", handover}, {"hold", hold},
		{"echo", echo}, {"echo-polled", echo_polled}, {"files", files}, {"told", told},
	};

	REQUIRE(argc > 2);
	for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
		if (strcmp(argv[1], roles[i].name) == 0) {
			roles[i].run(argv + 2);
			return 0;
		}
	}
	REQUIRE(!"a role");
}
