/* demo.c - the demo in C: the SHA-256 of every header under /usr/include, by one function pointer.
 *
 * Once in this process and once in a pool, with the same digests both ways, or it exits with 1. Then a worker is crashed on
 * purpose: that costs one element.
 *
 *   make demo, or: demo-c [directory [workers]]
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _XOPEN_SOURCE 700
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <polyproc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- SHA-256 (FIPS 180-4) ------------------------------------------------------------------------------------------- */

typedef struct sha256 {
	uint32_t h[8];
	uint64_t size; /* bytes so far */
	uint8_t block[64];
} sha256;

static const uint32_t K[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t ror(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void sha256_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], s[8];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t a = w[i - 15], b = w[i - 2];
		w[i] = w[i - 16] + (ror(a, 7) ^ ror(a, 18) ^ a >> 3) + w[i - 7] + (ror(b, 17) ^ ror(b, 19) ^ b >> 10);
	}
	memcpy(s, h, sizeof s);
	for (int i = 0; i < 64; i++) {
		uint32_t e = s[4], a = s[0];
		uint32_t t1 = s[7] + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + K[i] + w[i];
		uint32_t t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
		s[7] = s[6], s[6] = s[5], s[5] = e, s[4] = s[3] + t1;
		s[3] = s[2], s[2] = s[1], s[1] = a, s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

static void sha256_begin(sha256 *c)
{
	static const uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	memcpy(c->h, h, sizeof h);
	c->size = 0;
}

static void sha256_add(sha256 *c, const void *data, size_t size)
{
	const uint8_t *p = data;
	size_t have = c->size % 64;
	c->size += size;
	while (size > 0) {
		if (have == 0 && size >= 64) {
			sha256_block(c->h, p);
			p += 64, size -= 64;
			continue;
		}
		size_t n = size < 64 - have ? size : 64 - have;
		memcpy(c->block + have, p, n);
		p += n, size -= n, have += n;
		if (have == 64) {
			sha256_block(c->h, c->block);
			have = 0;
		}
	}
}

static void sha256_end(sha256 *c, uint8_t digest[32])
{
	uint64_t bits = c->size * 8;
	uint8_t padding[72] = {0x80}, length[8];
	for (int i = 0; i < 8; i++)
		length[i] = (uint8_t)(bits >> (56 - 8 * i));
	sha256_add(c, padding, (119 - c->size % 64) % 64 + 1);
	sha256_add(c, length, 8);
	for (int i = 0; i < 32; i++)
		digest[i] = (uint8_t)(c->h[i / 4] >> (24 - 8 * (i % 4)));
}

/* ---- the job ---------------------------------------------------------------------------------------------------------- */

typedef struct header {
	char path[248];
	uint32_t crash; /* read address 0 instead */
	uint32_t reserved;
} header;

typedef struct digest {
	uint8_t sha256[32];
	uint64_t size;
} digest;

/* The task: one file's digest. Its error code is 1 if the file cannot be read. */
static int32_t hash(const void *in, size_t in_size, void *out, size_t *out_size, const void *ctx, size_t ctx_size)
{
	(void)in_size, (void)out_size, (void)ctx, (void)ctx_size;
	const header *h = in;
	digest *d = out;
	if (h->crash)
		return *(volatile int *)(uintptr_t)(h->crash - 1);
	int fd = open(h->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 1;
	static uint8_t buffer[65536];
	sha256 c;
	sha256_begin(&c);
	ssize_t n;
	while ((n = read(fd, buffer, sizeof buffer)) > 0)
		sha256_add(&c, buffer, (size_t)n);
	close(fd);
	if (n < 0)
		return 1;
	d->size = c.size;
	sha256_end(&c, d->sha256);
	return 0;
}

static header *headers;
static size_t count, room;

static int found(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)ftw;
	size_t length = strlen(path);
	if (type != FTW_F || !S_ISREG(st->st_mode) || length < 2 || strcmp(path + length - 2, ".h") != 0 || length >= sizeof headers->path)
		return 0;
	if (count == room) {
		room = room ? 2 * room : 1024;
		header *bigger = realloc(headers, room * sizeof *headers);
		if (!bigger)
			return -1;
		headers = bigger;
	}
	memset(&headers[count], 0, sizeof *headers);
	memcpy(headers[count++].path, path, length);
	return 0;
}

static int by_path(const void *a, const void *b)
{
	return strcmp(((const header *)a)->path, ((const header *)b)->path);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The digest of all digests, and all sizes added up. */
static digest total(const digest *d, size_t n)
{
	digest sum = {{0}, 0};
	sha256 c;
	sha256_begin(&c);
	for (size_t i = 0; i < n; i++) {
		sha256_add(&c, d[i].sha256, sizeof d[i].sha256);
		sum.size += d[i].size;
	}
	sha256_end(&c, sum.sha256);
	return sum;
}

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, pp_last_error());
	return 1;
}

int main(int argc, char **argv)
{
	pp_init(&argc, &argv); /* in a worker this call never returns */

	const char *directory = argc > 1 ? argv[1] : "/usr/include";
	if (nftw(directory, found, 16, FTW_PHYS) != 0 || count == 0) {
		fprintf(stderr, "no headers in %s\n", directory);
		return 1;
	}
	qsort(headers, count, sizeof *headers, by_path);
	digest *alone = calloc(count, sizeof *alone), *together = calloc(count, sizeof *together);
	pp_outcome *outcome = calloc(count, sizeof *outcome);
	if (!alone || !together || !outcome)
		return fail("memory");

	/* Twice: the first time reads the files from the disk, for both ways alike. */
	double start = 0;
	for (int time = 0; time < 2; time++) {
		start = now();
		for (size_t i = 0; i < count; i++) {
			size_t size = sizeof *alone;
			if (hash(&headers[i], sizeof *headers, &alone[i], &size, NULL, 0) != 0)
				memset(&alone[i], 0, sizeof *alone);
		}
	}
	double sequential = now() - start;

	pp_pool pool;
	pp_pool_options options = PP_POOL_OPTIONS_INIT;
	options.workers = argc > 2 ? atoi(argv[2]) : 0;
	if (pp_pool_open(&options, &pool) != PP_OK)
		return fail("pp_pool_open");
	/* One small map first: the time below is that of the work, not of starting processes. */
	int32_t rc = pp_pool_map(pool, hash, headers, sizeof *headers, together, sizeof *together, count < 4 ? count : 4, 1, NULL, 0, NULL);
	if (rc != PP_OK && rc != PP_ERR_TASK)
		return fail("pp_pool_map");
	start = now();
	rc = pp_pool_map(pool, hash, headers, sizeof *headers, together, sizeof *together, count, 0, NULL, 0, outcome);
	double parallel = now() - start;
	if (rc != PP_OK && rc != PP_ERR_TASK)
		return fail("pp_pool_map");
	for (size_t i = 0; i < count; i++)
		if (outcome[i].status != PP_OK)
			memset(&together[i], 0, sizeof *together);

	digest a = total(alone, count), b = total(together, count);
	printf("%zu headers, %" PRIu64 " bytes, the digest of all digests is ", count, a.size);
	for (int i = 0; i < 32; i++)
		printf("%02x", a.sha256[i]);
	printf("\nsequential %.2f s, parallel %.2f s: %.2f times as fast\n", sequential, parallel, sequential / parallel);
	int32_t pids[1024];
	size_t alive;
	if (pp_pool_info(pool, NULL, pids, 1024, &alive) != PP_OK)
		return fail("pp_pool_info");
	printf("worker pids");
	for (size_t i = 0; i < alive; i++)
		printf(" %" PRId32, pids[i]);
	printf(", parent %d\n", (int)getpid());
	if (memcmp(&a, &b, sizeof a) != 0 || memcmp(alone, together, count * sizeof *alone) != 0) {
		fprintf(stderr, "the digests differ\n");
		return 1;
	}
	printf("the digests are the same both ways\n");

	/* One element of a hundred reads address 0. */
	size_t some = count < 100 ? count : 100, lost = 0, good = 0;
	headers[some / 2].crash = 1;
	rc = pp_pool_map(pool, hash, headers, sizeof *headers, together, sizeof *together, some, 0, NULL, 0, outcome);
	headers[some / 2].crash = 0;
	for (size_t i = 0; i < some; i++) {
		lost += outcome[i].status == PP_ERR_WORKER_LOST;
		good += outcome[i].status == PP_OK && memcmp(&alone[i], &together[i], sizeof *alone) == 0;
	}
	printf("a crash on purpose among %zu elements: %zu digests, %zu lost (%s)\n", some, good, lost, pp_status_name(rc));
	rc = pp_pool_map(pool, hash, headers, sizeof *headers, together, sizeof *together, some, 0, NULL, 0, outcome);
	if (rc != PP_OK || lost != 1 || good != some - 1 || memcmp(alone, together, some * sizeof *alone) != 0) {
		fprintf(stderr, "a crash must cost one element\n");
		return 1;
	}
	if (pp_pool_free(pool) != PP_OK)
		return fail("pp_pool_free");
	free(headers), free(alone), free(together), free(outcome);
	return 0;
}
