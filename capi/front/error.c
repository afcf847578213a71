/* error.c - status codes in words, and the message of a thread's last failing call. */
#include "front.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The message of the last failing call: a text that needs no formatting, or, if that is NULL, what was formatted. */
static __thread const char *fixed;
static __thread char message[512];
static __thread int32_t failed;

/* say keeps a text without conversions by its address: it is a literal, and calls that fail often, such as those that find a queue empty, cost no formatting. */
static void say(const char *format, va_list args)
{
	const int saved = errno;

	fixed = NULL;
	if (strchr(format, '%') == NULL)
		fixed = format;
	else
		vsnprintf(message, sizeof message, format, args);
	errno = saved;
}

void pp__set_error(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(format, args);
	va_end(args);
}

int32_t pp__fail(int32_t status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(format, args);
	va_end(args);
	failed = status;
	return status;
}

int32_t pp__failed(void)
{
	return failed != PP_OK ? failed : PP_ERR_SYSTEM;
}

const char *pp_last_error(void)
{
	return fixed != NULL ? fixed : message;
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

enum { OPTIONS_MOST = 4096 };

int32_t pp__options_fit(const void *options, uint32_t size, size_t known, const char *init)
{
	if (size < known || size > OPTIONS_MOST)
		return pp__fail(PP_ERR_INVALID, "options.size is %u: initialize the options with %s", size, init);
	for (size_t i = known; i < size; i++)
		if (((const uint8_t *)options)[i] != 0)
			return pp__fail(PP_ERR_INVALID, "options.size is %u, and the options have fields that this library (" PP_VERSION ") does not know", size);
	return PP_OK;
}
