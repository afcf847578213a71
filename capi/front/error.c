/* error.c - status codes in words, and the message of a thread's last failing call. */
#include "front.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static __thread char message[512];

void pp__set_error(const char *format, ...)
{
	const int saved = errno;
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof message, format, args);
	va_end(args);
	errno = saved;
}

int32_t pp__fail(int32_t status, const char *format, ...)
{
	const int saved = errno;
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof message, format, args);
	va_end(args);
	errno = saved;
	return status;
}

const char *pp_last_error(void)
{
	return message;
}

const char *pp_strerror(int32_t status)
{
	switch (status) {
#define PP__X(name, number, text) \
	case number:              \
		return text;
		PP_STATUS_LIST(PP__X)
#undef PP__X
	}
	return "unknown status";
}

const char *pp_status_name(int32_t status)
{
	switch (status) {
#define PP__X(name, number, text) \
	case number:              \
		return "PP_" #name;
		PP_STATUS_LIST(PP__X)
#undef PP__X
	}
	return "PP_?";
}
