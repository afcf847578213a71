/* payload.c - what a child that pp_process_start started was given. */
#include "front.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pp__started started = {.payload_fd = -1};
static pid_t parsed_by; /* 0: the environment was not looked at */
static pp__view payload;
static size_t payload_size;

/* Parses "payload_fd,parent_pid,flags". */
static bool parse(const char *text, pp__started *out)
{
	char *end;
	long long value[3];

	for (int i = 0; i < 3; i++) {
		errno = 0;
		value[i] = strtoll(text, &end, 10);
		if (end == text || errno != 0 || *end != (i < 2 ? ',' : '\0'))
			return false;
		text = end + 1;
	}
	if (value[0] < -1 || value[0] > INT32_MAX || value[1] <= 0 || value[1] > INT32_MAX || value[2] < 0 || value[2] > INT32_MAX)
		return false;
	out->payload_fd = (int)value[0];
	out->parent_pid = (pid_t)value[1];
	out->flags = (uint32_t)value[2];
	return true;
}

const pp__started *pp__started_as(void)
{
	pthread_mutex_lock(&lock);
	if (parsed_by == 0) {
		const char *text = secure_getenv("POLYPROC_PROCESS");
		parsed_by = getpid();
		if (text != NULL && parse(text, &started)) {
			started.known = true;
			if (started.payload_fd >= 0 && fcntl(started.payload_fd, F_SETFD, FD_CLOEXEC) != 0)
				started.payload_fd = -1;
		}
		/* Programs that this one executes are not what is meant. */
		if (text != NULL)
			unsetenv("POLYPROC_PROCESS");
	}
	pthread_mutex_unlock(&lock);
	return &started;
}

void pp__payload_forked(void)
{
	lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

int32_t pp__payload_raw(const void **data_out, size_t *size_out)
{
	PP__NO_CANCEL();
	const pp__started *child = pp__started_as();
	int32_t status = PP_OK;

	pthread_mutex_lock(&lock);
	if (payload.base == NULL) {
		struct stat st;
		if (!child->known || child->payload_fd < 0) {
			status = pp__fail(PP_ERR_STATE, "this process was not given a payload");
		} else if (!pp__inherited_file(child->payload_fd, &st) || st.st_size <= 0) {
			status = pp__fail(PP_ERR_STATE, "the descriptor of the payload was closed, or is not a sealed memory file of this user");
		} else {
			const int error = pp__view_map(&payload, child->payload_fd, 0, (uint64_t)st.st_size, PROT_READ);
			if (error != 0) {
				status = pp__fail(PP_ERR_SYSTEM, "the payload cannot be mapped: %s", strerror(error));
			} else {
				payload_size = (size_t)st.st_size;
				close(child->payload_fd);
			}
		}
	}
	if (status == PP_OK) {
		*data_out = payload.data;
		*size_out = payload_size;
	}
	pthread_mutex_unlock(&lock);
	return status;
}

void pp__started_by_fork(pid_t parent)
{
	started = (pp__started){.known = true, .parent_pid = parent, .payload_fd = -1};
	parsed_by = getpid();
}

int32_t pp_payload(const void **data_out, size_t *size_out)
{
	const void *data;
	size_t size;

	if (data_out == NULL || size_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_payload: NULL");
	const int32_t status = pp__payload_raw(&data, &size);
	if (status != PP_OK)
		return status;
	if (started.flags & PP__CHILD_FN) {
		if (size < sizeof(pp__fn_ref))
			return pp__fail(PP_ERR_CORRUPT, "the payload has %zu bytes and lacks its function", size);
		data = (const uint8_t *)data + sizeof(pp__fn_ref);
		size -= sizeof(pp__fn_ref);
	}
	*data_out = data;
	*size_out = size;
	return PP_OK;
}

int32_t pp_watch_parent(void)
{
	const pp__started *child = pp__started_as();

	if (pp__watched())
		return PP_OK;
	/* A forked child shares the payload, but not the parent. */
	if (!child->known || parsed_by != getpid())
		return pp__fail(PP_ERR_STATE, "polyproc did not start this process");
	return pp__watch(child->parent_pid, 0, -1);
}

int pp__view_map(pp__view *view, int fd, uint64_t off, uint64_t size, int prot)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	const uint64_t skip = off % page;

	if (size > SIZE_MAX - skip)
		return ENOMEM;
	void *base = mmap(NULL, (size_t)(size + skip), prot, MAP_SHARED, fd, (off_t)(off - skip));
	if (base == MAP_FAILED)
		return errno;
	madvise(base, (size_t)(size + skip), MADV_DONTDUMP); /* arguments, and keys, are not for core files */
	view->base = base;
	view->length = (size_t)(size + skip);
	view->data = (uint8_t *)base + skip;
	return 0;
}

void pp__view_unmap(pp__view *view)
{
	if (view->base != NULL)
		munmap(view->base, view->length);
	view->base = NULL;
}
