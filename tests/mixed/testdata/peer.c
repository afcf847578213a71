/* peer.c - the C side of mixed_test.go: one process of the family that works on queues.
 *
 *   peer produce QUEUE WHO N     puts N messages { WHO, 0 .. N-1 } of various lengths
 *   peer move FROM TO            gets from one queue, puts into the other, until that is closed
 *   peer lease FROM TO           leases from one, puts into the other, acknowledges
 *
 * A queue is a reference of 32 bytes in hexadecimal, or =NAME. */
#include <polyproc.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int32_t status, const char *what)
{
	if (status == PP_OK)
		return;
	fprintf(stderr, "peer: %s: %d %s\n", what, (int)status, pp_last_error());
	exit(3);
}

static pp_queue queue_of(const char *hex)
{
	uint8_t ref[PP_REF_SIZE];
	uint64_t handle = 0;

	if (hex[0] == '=') {
		pp_queue_options options = PP_QUEUE_OPTIONS_INIT;
		options.flags = PP_QUEUE_EXISTING;
		options.name = hex + 1;
		must(pp_queue_create(&options, &handle), "pp_queue_create");
		return handle;
	}
	for (size_t i = 0; i < sizeof ref; i++) {
		unsigned byte = 0;
		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			exit(2);
		ref[i] = (uint8_t)byte;
	}
	must(pp_ref_import(ref, PP_KIND_QUEUE, &handle, NULL), "pp_ref_import");
	return handle;
}

static size_t length_of(uint32_t i)
{
	return i % 97 == 0 ? 40000 : 8 + i * 37 % 900;
}

static void produce(pp_queue queue, uint32_t who, uint32_t n)
{
	static uint8_t data[40000];

	for (uint32_t i = 0; i < n; i++) {
		memcpy(data, &who, sizeof who);
		memcpy(data + 4, &i, sizeof i);
		must(pp_queue_put(queue, data, length_of(i), 0, -1), "pp_queue_put");
	}
}

static void move(pp_queue from, pp_queue to, int lease)
{
	pp_message message;

	for (;;) {
		const int32_t status = lease ? pp_queue_lease(from, -1, &message) : pp_queue_take(from, NULL, 0, -1, &message);
		if (status == PP_ERR_CLOSED)
			return;
		must(status, "pp_queue_take");
		must(pp_queue_put(to, message.data, message.size, message.codec, -1), "pp_queue_put");
		if (lease)
			must(pp_message_ack(&message), "pp_message_ack");
		else
			pp_message_free(&message);
	}
}

int main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "produce") == 0)
		produce(queue_of(argv[2]), (uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4]));
	else if (argc == 4 && (strcmp(argv[1], "move") == 0 || strcmp(argv[1], "lease") == 0))
		move(queue_of(argv[2]), queue_of(argv[3]), argv[1][0] == 'l');
	else
		return 2;
	return 0;
}
