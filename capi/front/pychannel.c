/* pychannel.c - the Python type behind Queue.put, Queue.get, Connection.send and Connection.recv: what can be done at once is done here, with the GIL
 * held, between one pickling call and one call of the library. Whatever is out of the ordinary, waiting above all, is left to functions of
 * the binding (slow_put, slow_get), which do the same by way of ctypes. */
#include "front.h"

#include "pyapi.h"

#include <string.h>

/* What a message that is taken at once is copied to; larger ones are read where they are. */
enum { ROOM = 4096 };

/* Copying more takes longer than giving the GIL away does: left to slow_put. It puts bytes objects of more than LARGE without copying them into a pickle first. */
enum { KEEP_GIL_MOST = 1 << 18, LARGE = 32768 };

enum { READ_ONLY = 0x100 }; /* PyBUF_READ */

/* A signal that comes just before a wait begins is noticed after it. */
enum { SLICE_MS = 500 };

typedef struct channel {
	py_object head;
	uint64_t number; /* the handle, which belongs to the binding; 0: everything is left to the slow functions */
	py_object *dumps, *loads;
	py_object *slow_put, *slow_get;
	py_object *bytes_type; /* borrowed; NULL: not known yet */
	uint32_t is_pipe;
	uint32_t codec;
} channel;

static void drop(py_object **o)
{
	py_object *const was = *o;

	*o = NULL;
	if (was != NULL)
		py.Py_DecRef(was);
}

/* slowly calls the binding's function with the same arguments. */
static py_object *slowly(channel *self, py_object *function, py_object *const *args, py_size n, py_object *names)
{
	const py_size named = names == NULL ? 0 : py.PyTuple_Size(names);
	py_object *keywords = NULL, *result = NULL;
	py_object *const all = py.PyTuple_New(n + 1);

	if (all == NULL)
		return NULL;
	py.PyTuple_SetItem(all, 0, same((py_object *)self));
	for (py_size i = 0; i < n; i++)
		py.PyTuple_SetItem(all, i + 1, same(args[i]));
	if (named == 0 || (keywords = py.PyDict_New()) != NULL) {
		for (py_size i = 0; i < named; i++)
			py.PyDict_SetItem(keywords, py.PyTuple_GetItem(names, i), args[n + i]);
		if (py.PyErr_Occurred() == NULL)
			result = py.PyObject_Call(function, all, keywords);
	}
	py.Py_DecRef(all);
	drop(&keywords);
	return result;
}

/* is_large_bytes: something that is its own pickle but for a few bytes at its ends. */
static bool is_large_bytes(const channel *self, py_object *o)
{
	char *data;
	py_size size;

	return self->bytes_type != NULL && o->type == self->bytes_type && py.PyBytes_AsStringAndSize(o, &data, &size) == 0 && size > LARGE;
}

/* try_put puts a message if there is room. */
static int32_t try_put(const channel *self, py_object *bytes)
{
	char *data;
	py_size size;

	if (py.PyBytes_AsStringAndSize(bytes, &data, &size) != 0)
		return PP_ERR_INVALID;
	if (size > KEEP_GIL_MOST)
		return PP_ERR_TIMEOUT;
	return self->is_pipe ? pp_pipe_send(self->number, data, (size_t)size, 0)
	                     : pp_queue_put(self->number, data, (size_t)size, self->codec, PP_TRY);
}

/* wait_put puts a message without the GIL, for as long as it takes. PP_ERR_INTERRUPTED: a signal handler of Python has raised. */
static int32_t wait_put(const channel *self, py_object *bytes)
{
	const uint64_t number = self->number;
	const uint32_t codec = self->codec;
	char *data;
	py_size size;
	int32_t status;

	if (py.PyBytes_AsStringAndSize(bytes, &data, &size) != 0)
		return PP_ERR_INTERRUPTED;
	do {
		void *const thread = py.PyEval_SaveThread();
		status = pp_queue_put(number, data, (size_t)size, codec, SLICE_MS);
		py.PyEval_RestoreThread(thread);
		if (status != PP_OK && py.PyErr_CheckSignals() != 0)
			return PP_ERR_INTERRUPTED;
	} while (status == PP_ERR_FULL || status == PP_ERR_TIMEOUT || status == PP_ERR_INTERRUPTED);
	return status;
}

/* wait_get is the same for taking. */
static int32_t wait_get(const channel *self, void *room, size_t size, pp_message *message)
{
	const uint64_t number = self->number;
	int32_t status;

	do {
		void *const thread = py.PyEval_SaveThread();
		status = pp_queue_take(number, room, size, SLICE_MS, message);
		py.PyEval_RestoreThread(thread);
		if (status != PP_OK && py.PyErr_CheckSignals() != 0)
			return PP_ERR_INTERRUPTED;
	} while (status == PP_ERR_EMPTY || status == PP_ERR_TIMEOUT || status == PP_ERR_INTERRUPTED);
	return status;
}

/* wait_recv waits for a moment, without the GIL, for what comes through a pipe, and leaves longer waits to slow_get. Returns as pp_pipe_recv; PP_ERR_INTERRUPTED with a Python error set: a
 * signal handler of Python has raised. */
static int64_t wait_recv(const channel *self, void *room, size_t size)
{
	const uint64_t number = self->number;
	void *const thread = py.PyEval_SaveThread();
	/* For more than a slice, so that the first is slept as one that has no limit is: one system call. */
	const int64_t status = pp_pipe_recv(number, room, size, 2 * SLICE_MS);

	py.PyEval_RestoreThread(thread);
	return status < 0 && status != PP_ERR_TOO_BIG && py.PyErr_CheckSignals() != 0 ? PP_ERR_INTERRUPTED : status;
}

/* unsent has the binding take back what the pickle of an object has exported. It keeps the error that there may be. */
static void unsent(channel *self, py_object *object, py_object *bytes)
{
	py_object *type, *value, *trace;

	py.PyErr_Fetch(&type, &value, &trace);
	py_object *done = py.PyObject_CallMethod((py_object *)self, "_unsent", "OO", object, bytes);
	drop(&done);
	py.PyErr_Restore(type, value, trace);
}

static py_object *channel_put(channel *self, py_object *const *args, py_size n, py_object *names)
{
	if (self->slow_put == NULL)
		return py.PyErr_Format(*py.type_error, "not initialized");
	if (n < 1 || n > 3 || self->number == 0 || (n > 1 && self->is_pipe)) /* it looks at its arguments as Python does */
		return slowly(self, self->slow_put, args, n, names);
	if (is_large_bytes(self, args[0]))
		return slowly(self, self->slow_put, args, n, names);
	py_object *const bytes = py.PyObject_CallFunctionObjArgs(self->dumps, args[0], NULL);
	if (bytes == NULL)
		return NULL;
	self->bytes_type = bytes->type;
	py_object *result;
	int32_t status = try_put(self, bytes);
	if (!self->is_pipe && n == 1 && names == NULL && (status == PP_ERR_FULL || status == PP_ERR_TIMEOUT) && py.PyErr_Occurred() == NULL) {
		status = wait_put(self, bytes);
		if (status == PP_ERR_INTERRUPTED) {
			unsent(self, args[0], bytes);
			py.Py_DecRef(bytes);
			return NULL;
		}
	}
	if (status == PP_OK) {
		result = same(py.none);
	} else if (py.PyErr_Occurred() != NULL) {
		result = NULL;
	} else if (names != NULL) { /* seldom: it is pickled again */
		unsent(self, args[0], bytes);
		result = slowly(self, self->slow_put, args, n, names);
	} else { /* the bytes are not pickled again: slow_put(self, obj, block, timeout, bytes) */
		result = py.PyObject_CallFunctionObjArgs(self->slow_put, (py_object *)self, args[0], n > 1 ? args[1] : py.true_, n > 2 ? args[2] : py.none, bytes,
		                                         NULL);
	}
	py.Py_DecRef(bytes);
	return result;
}

/* loaded unpickles bytes in memory that is ours as long as this call takes. *kept: somebody has kept a view of it. */
static py_object *loaded(channel *self, const void *data, uint64_t size, bool *kept)
{
	py_object *view = size <= ROOM ? py.PyBytes_FromStringAndSize(data, (py_size)size)
	                               : py.PyMemoryView_FromMemory((char *)data, (py_size)size, READ_ONLY);

	*kept = false;
	if (view == NULL)
		return NULL;
	py_object *const result = py.PyObject_CallFunctionObjArgs(self->loads, view, NULL);
	if (size > ROOM) {
		py_object *type, *value, *trace;
		py.PyErr_Fetch(&type, &value, &trace);
		py_object *released = py.PyObject_CallMethod(view, "release", NULL);
		*kept = released == NULL;
		drop(&released);
		py.PyErr_Restore(type, value, trace); /* of the two errors the first */
	}
	drop(&view);
	return result;
}

static py_object *channel_get(channel *self, py_object *const *args, py_size n, py_object *names)
{
	uint64_t room[ROOM / 8];
	py_object *result;
	bool kept;

	if (self->slow_get == NULL)
		return py.PyErr_Format(*py.type_error, "not initialized");
	if (self->number == 0 || n > 2) /* else, if something is there, it does not matter how long one would have waited */
		return slowly(self, self->slow_get, args, n, names);
	if (self->is_pipe) {
		int64_t size = pp_pipe_recv_now(self->number, room, sizeof room);
		if (size == PP_ERR_TIMEOUT && n == 0 && names == NULL) {
			size = wait_recv(self, room, sizeof room);
			if (size == PP_ERR_INTERRUPTED && py.PyErr_Occurred() != NULL)
				return NULL;
		}
		if (size >= 0)
			return loaded(self, room, (uint64_t)size, &kept);
		pp_pipe_message message;
		if (size != PP_ERR_TOO_BIG || pp_pipe_take(self->number, 0, &message) != PP_OK)
			return slowly(self, self->slow_get, args, n, names);
		result = loaded(self, message.data, message.size, &kept);
		if (!kept)
			pp_pipe_message_free(&message);
		return result;
	}
	pp_message message;
	int32_t status = pp_queue_take(self->number, room, sizeof room, PP_TRY, &message);
	if ((status == PP_ERR_EMPTY || status == PP_ERR_TIMEOUT) && n == 0 && names == NULL) {
		status = wait_get(self, room, sizeof room, &message);
		if (status == PP_ERR_INTERRUPTED)
			return NULL;
	}
	if (status != PP_OK)
		return slowly(self, self->slow_get, args, n, names);
	if (message.codec == self->codec) {
		result = loaded(self, message.data, message.size, &kept);
	} else { /* bytes of a C or Go program */
		result = py.PyBytes_FromStringAndSize(message.data, (py_size)message.size);
		kept = false;
	}
	if (!kept)
		pp_message_free(&message);
	return result;
}

/* _adopt(handle, is_pipe, codec, dumps, loads, slow_put, slow_get). Handle 0: all is slow from now on. */
static py_object *channel_adopt(channel *self, py_object *const *args, py_size n)
{
	py_object **const into[] = {&self->dumps, &self->loads, &self->slow_put, &self->slow_get};

	if (n != 7) {
		py.PyErr_SetString(*py.type_error, "_adopt(handle, is_pipe, codec, dumps, loads, slow_put, slow_get)");
		return NULL;
	}
	const uint64_t number = py.PyLong_AsUnsignedLongLong(args[0]);
	const long is_pipe = py.PyLong_AsLong(args[1]), codec = py.PyLong_AsLong(args[2]);
	if (py.PyErr_Occurred() != NULL)
		return NULL;
	self->number = number;
	self->is_pipe = is_pipe != 0;
	self->codec = (uint32_t)codec;
	for (int i = 0; i < 4; i++) {
		drop(into[i]);
		*into[i] = same(args[i + 3]);
	}
	return same(py.none);
}

/* _retire(): the handle is no longer this instance's. */
static py_object *channel_retire(channel *self, py_object *none)
{
	(void)none;
	self->number = 0;
	return same(py.none);
}

static void channel_dealloc(channel *self)
{
	drop(&self->dumps);
	drop(&self->loads);
	drop(&self->slow_put);
	drop(&self->slow_get);
	pp__py_release(&self->head);
}

static py_method channel_methods[] = {
	{"_put", PY_FUNCTION(channel_put), FASTCALL | KEYWORDS, "_put($self, obj, /, block=True, timeout=None)\n--\n\nPickle and put."},
	{"_get", PY_FUNCTION(channel_get), FASTCALL | KEYWORDS, "_get($self, /, block=True, timeout=None)\n--\n\nTake and unpickle."},
	{"_adopt", PY_FUNCTION(channel_adopt), FASTCALL, NULL},
	{"_retire", PY_FUNCTION(channel_retire), NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static py_slot channel_slots[] = {
	{TP_DEALLOC, {.function = PY_FUNCTION(channel_dealloc)}},
	{TP_METHODS, {.data = channel_methods}},
	{TP_DOC, {.data = (void *)(uintptr_t)"One end of a queue or pipe in the memory of the family."}},
	{0, {NULL}},
};

py_spec pp__channel_spec = {"polyproc._FastChannel", sizeof(channel), 0, BASETYPE, channel_slots};
