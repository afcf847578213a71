/* pyapi.h - the few functions of CPython's stable ABI that our types use, without Python's headers and without a link to libpython: what is needed is
 * declared here and looked up in the process that has loaded us, so one library serves every CPython from 3.9 on. That rests on objects
 * beginning with {refcount, type}, 16 bytes: the binding asks for no type where object.__basicsize__ is another number (free-threaded builds,
 * other interpreters). */
#ifndef PP_PYAPI_H
#define PP_PYAPI_H

#include <stdbool.h>
#include <stdint.h>

typedef intptr_t py_size;

typedef struct py_object {
	py_size refs;
	struct py_object *type;
} py_object;

typedef struct py_method {
	const char *name;
	void (*function)(void); /* of the type that flags says */
	int flags;
	const char *doc;
} py_method;

typedef struct py_slot {
	int slot;
	union {
		void *data;
		void (*function)(void);
	} value;
} py_slot;

typedef struct py_spec {
	const char *name;
	int basic_size;
	int item_size;
	unsigned flags;
	py_slot *slots;
} py_spec;

/* typeslots.h, methodobject.h, object.h: of the stable ABI */
enum { TP_DEALLOC = 52, TP_DOC = 56, TP_METHODS = 64, TP_FREE = 74 };
enum { NOARGS = 0x0004, KEYWORDS = 0x0002, FASTCALL = 0x0080 };
enum { BASETYPE = 1 << 10 };

/* X(result, name, parameters): the functions; V(name): the objects. */
#define PY_FUNCTIONS(X)                                                  \
	X(void, Py_IncRef, (py_object *))                                    \
	X(void, Py_DecRef, (py_object *))                                    \
	X(void *, PyType_GetSlot, (py_object *, int))                        \
	X(void *, PyEval_SaveThread, (void))                                 \
	X(void, PyEval_RestoreThread, (void *))                              \
	X(int, PyErr_CheckSignals, (void))                                   \
	X(py_object *, PyErr_Occurred, (void))                               \
	X(int, PyErr_GivenExceptionMatches, (py_object *, py_object *))      \
	X(void, PyErr_SetString, (py_object *, const char *))                \
	X(py_object *, PyErr_Format, (py_object *, const char *, ...))       \
	X(int, PyObject_IsTrue, (py_object *))                               \
	X(double, PyFloat_AsDouble, (py_object *))                           \
	X(py_object *, PyLong_FromUnsignedLong, (unsigned long))             \
	X(unsigned long long, PyLong_AsUnsignedLongLong, (py_object *))      \
	X(long, PyLong_AsLong, (py_object *))                                \
	X(py_object *, PyBytes_FromStringAndSize, (const char *, py_size))   \
	X(int, PyBytes_AsStringAndSize, (py_object *, char **, py_size *))   \
	X(py_object *, PyMemoryView_FromMemory, (char *, py_size, int))      \
	X(py_object *, PyObject_CallMethod, (py_object *, const char *, const char *, ...)) \
	X(py_object *, PyObject_CallFunctionObjArgs, (py_object *, ...))     \
	X(void, PyErr_Fetch, (py_object **, py_object **, py_object **))     \
	X(void, PyErr_Restore, (py_object *, py_object *, py_object *))      \
	X(py_size, PyTuple_Size, (py_object *))                              \
	X(py_object *, PyTuple_GetItem, (py_object *, py_size))              \
	X(py_object *, PyTuple_New, (py_size))                               \
	X(int, PyTuple_SetItem, (py_object *, py_size, py_object *))         \
	X(py_object *, PyDict_New, (void))                                   \
	X(int, PyDict_SetItem, (py_object *, py_object *, py_object *))      \
	X(py_object *, PyObject_Call, (py_object *, py_object *, py_object *)) \
	X(int, PyUnicode_CompareWithASCIIString, (py_object *, const char *)) \
	X(py_object *, PyObject_CallFunction, (py_object *, const char *, ...))

typedef struct pp__python {
#define DECLARE(result, name, parameters) result(*name) parameters;
	PY_FUNCTIONS(DECLARE)
#undef DECLARE
	py_object *none, *true_, *false_, **type_error, **value_error;
	bool immortal; /* None, True and False are not counted: from 3.12 on */
} pp__python;

extern pp__python pp__py;
#define py pp__py

/* pp__py_find looks the functions up: false if this process runs no Python, or not one that we know. */
bool pp__py_find(void);

#define PY_FUNCTION(f) ((void (*)(void))(f))

/* pp__py_release ends an instance of one of our types, or of a class that derives from it. */
static inline void pp__py_release(py_object *self)
{
	py_object *const type = self->type;
	const union {
		void *data;
		void (*function)(void *);
	} release = {py.PyType_GetSlot(type, TP_FREE)};

	release.function(self);
	py.Py_DecRef(type);
}

static inline py_object *same(py_object *o)
{
	py.Py_IncRef(o);
	return o;
}

/* constant returns a new reference to None, True or False. */
static inline py_object *constant(py_object *o)
{
	if (!py.immortal)
		o->refs += 1;
	return o;
}

extern py_spec pp__semlock_spec, pp__channel_spec;

#endif
