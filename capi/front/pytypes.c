/* pytypes.c - the Python types that are too hot for ctypes: pp_python_spec hands out a PyType_Spec, which the binding gives to PyType_FromSpec. Here
 * is that of locks and semaphores; that of queues and pipes is in pychannel.c.
 *
 * An uncontended call keeps the GIL; one that waits releases it, and lets Python's signal handlers run when it is interrupted.
 * No type takes part in cyclic garbage collection: instances refer to functions of the binding and to nothing else. A Python class that derives
 * from one brings its own. */
#include "front.h"

#include "pyapi.h"
#include "sync.h"

#include <dlfcn.h>
#include <string.h>

pp__python pp__py;

bool pp__py_find(void)
{
	static uint32_t found;

	if (__atomic_load_n(&found, __ATOMIC_ACQUIRE) != 0)
		return true;
#define FIND(result, name, parameters) \
	if ((*(void **)(void *)&py.name = dlsym(RTLD_DEFAULT, #name)) == NULL) \
		return false;
	PY_FUNCTIONS(FIND)
#undef FIND
	py.none = dlsym(RTLD_DEFAULT, "_Py_NoneStruct");
	py.true_ = dlsym(RTLD_DEFAULT, "_Py_TrueStruct");
	py.false_ = dlsym(RTLD_DEFAULT, "_Py_FalseStruct");
	py.type_error = dlsym(RTLD_DEFAULT, "PyExc_TypeError");
	py.value_error = dlsym(RTLD_DEFAULT, "PyExc_ValueError");
	if (py.none == NULL || py.true_ == NULL || py.false_ == NULL || py.type_error == NULL || py.value_error == NULL)
		return false;
	const unsigned long *const version = dlsym(RTLD_DEFAULT, "Py_Version"); /* from 3.11 on */
	py.immortal = version != NULL && *version >= 0x030c0000;
	__atomic_store_n(&found, 1, __ATOMIC_RELEASE);
	return true;
}

/* ---- lock and semaphore -------------------------------------------------------------------------------------------------------- */

typedef struct semlock {
	py_object head;
	pp__handle *handle; /* ours as long as it has our number; NULL: _adopt was not called */
	void *object;       /* what it is of */
	uint64_t number;
	py_object *fail;    /* called with a status, raises */
	py_object *died;    /* OwnerDiedError */
	uint32_t kind;
} semlock;

static py_object *failed(semlock *self, int32_t status)
{
	if (self->fail == NULL) {
		py.PyErr_SetString(*py.value_error, "not initialized");
		return NULL;
	}
	py_object *const result = py.PyObject_CallFunction(self->fail, "i", (int)status);
	if (result != NULL) {
		py.Py_DecRef(result);
		py.PyErr_SetString(*py.value_error, "the call failed");
	}
	return NULL;
}

/* usable reports whether the handle is ours still: a fork may have cost this process the handle, and its place may be another's by now. If it
 * is not, the message says why. */
static bool usable(const semlock *self)
{
	if (self->handle == NULL)
		return false;
	if (__atomic_load_n(&self->handle->number, __ATOMIC_RELAXED) == self->number)
		return true;
	pp__handle *const found = pp__pin(self->number, self->kind);
	if (found != NULL)
		pp__unpin(found);
	return false;
}

static int32_t take(semlock *self, uint64_t deadline)
{
	return self->kind == PP__KIND_LOCK ? pp__lock_take(self->handle, deadline, 1) : pp__semaphore_take(self->handle, deadline);
}

static bool take_fast(semlock *self)
{
	return self->kind == PP__KIND_LOCK ? pp__lock_fast(self->object, self->handle->heap->me) : pp__semaphore_fast(self->object);
}

/* A signal that comes while a wait looks for the dead, or is just about to sleep, ends no system call: it is noticed after so long. */
#define SIGNAL_SLICE_NS 500000000ull

static py_object *semlock_take(semlock *self, uint64_t deadline)
{
	int32_t status;
	bool again;

	do {
		if (deadline == 0) {
			status = take(self, 0);
			again = false;
		} else {
			const uint64_t now = pp__now_ns();
			const uint64_t until = now < deadline && deadline - now > SIGNAL_SLICE_NS ? now + SIGNAL_SLICE_NS : deadline;
			void *const thread = py.PyEval_SaveThread();
			status = take(self, until);
			py.PyEval_RestoreThread(thread);
			again = status == PP_ERR_TIMEOUT && until < deadline;
		}
		if ((status == PP_ERR_INTERRUPTED || again) && py.PyErr_CheckSignals() != 0)
			return NULL;
	} while (again || status == PP_ERR_INTERRUPTED);
	return status == PP_OK ? constant(py.true_) : status == PP_ERR_TIMEOUT ? constant(py.false_) : failed(self, status);
}

/* The deadline that timeout seconds mean: negative ones are 0. */
static bool deadline_of(py_object *timeout, uint64_t *deadline_out)
{
	const double seconds = py.PyFloat_AsDouble(timeout);

	if (seconds == -1.0 && py.PyErr_Occurred() != NULL)
		return false;
	*deadline_out = !(seconds > 0) ? 0 : seconds > 1e9 ? UINT64_MAX : pp__now_ns() + (uint64_t)(seconds * 1e9);
	return true;
}

/* acquire(block=True, timeout=None) */
static py_object *semlock_acquire(semlock *self, py_object *const *args, py_size n, py_object *names)
{
	py_object *given[2] = {NULL, NULL};
	uint64_t deadline = UINT64_MAX;
	int block = 1;

	if (!usable(self))
		return failed(self, PP_ERR_HANDLE);
	if (n == 0 && names == NULL)
		return take_fast(self) ? constant(py.true_) : semlock_take(self, UINT64_MAX);
	if (n > 2)
		return py.PyErr_Format(*py.type_error, "acquire() takes at most 2 arguments (%zd given)", n);
	for (py_size i = 0; i < n; i++)
		given[i] = args[i];
	for (py_size i = 0, named = names == NULL ? 0 : py.PyTuple_Size(names); i < named; i++) {
		py_object *const name = py.PyTuple_GetItem(names, i);
		const int which = py.PyUnicode_CompareWithASCIIString(name, "block") == 0     ? 0
		                  : py.PyUnicode_CompareWithASCIIString(name, "timeout") == 0 ? 1
		                                                                              : -1;
		if (which < 0)
			return py.PyErr_Format(*py.type_error, "acquire() got an unexpected keyword argument '%U'", name);
		if (given[which] != NULL)
			return py.PyErr_Format(*py.type_error, "acquire() got multiple values for argument '%U'", name);
		given[which] = args[n + i];
	}
	if (given[0] != NULL && (block = py.PyObject_IsTrue(given[0])) < 0)
		return NULL;
	if (given[1] != NULL && given[1] != py.none && !deadline_of(given[1], &deadline))
		return NULL;
	if (take_fast(self))
		return constant(py.true_);
	return semlock_take(self, block ? deadline : 0);
}

static py_object *semlock_enter(semlock *self, py_object *none)
{
	(void)none;
	if (!usable(self))
		return failed(self, PP_ERR_HANDLE);
	if (take_fast(self))
		return constant(py.true_);
	return semlock_take(self, UINT64_MAX);
}

static py_object *semlock_release(semlock *self, py_object *none)
{
	(void)none;
	if (!usable(self))
		return failed(self, PP_ERR_HANDLE);
	if (self->kind == PP__KIND_LOCK && pp__lock_give_fast(self->object, self->handle->heap->me))
		return constant(py.none);
	const int32_t status = self->kind == PP__KIND_LOCK ? pp__lock_give(self->handle) : pp__semaphore_give(self->handle);
	return status == PP_OK ? constant(py.none) : failed(self, status);
}

/* __exit__(): a wait at a condition that has raised OwnerDiedError has lost the lock, and another process may have recovered it since. */
static py_object *semlock_exit(semlock *self, py_object *const *args, py_size n)
{
	if (n > 0 && args[0] != py.none && self->kind == PP__KIND_LOCK && usable(self) && pp__lock_mine(self->handle) == 0 &&
	    py.PyErr_GivenExceptionMatches(args[0], self->died))
		return constant(py.none);
	return semlock_release(self, NULL);
}

/* _notify(condition, n): whether this thread holds the lock; then n waiters at the condition are notified. */
static py_object *semlock_notify(semlock *self, py_object *const *args, py_size n)
{
	if (!usable(self))
		return failed(self, PP_ERR_HANDLE);
	if (n != 2) {
		py.PyErr_SetString(*py.type_error, "_notify(condition, n)");
		return NULL;
	}
	if (self->kind != PP__KIND_LOCK || pp__lock_mine(self->handle) == 0)
		return constant(py.false_);
	const uint64_t condition = py.PyLong_AsUnsignedLongLong(args[0]);
	const unsigned long long count = py.PyLong_AsUnsignedLongLong(args[1]);
	if (py.PyErr_Occurred() != NULL)
		return NULL;
	const int32_t status = pp_condition_notify(condition, count > PP__SYNC_VALUE_MOST ? PP__SYNC_VALUE_MOST : (uint32_t)count);
	return status == PP_OK ? constant(py.true_) : failed(self, status);
}

/* _is_mine(): does this thread hold the lock? Of semaphores: no. */
static py_object *semlock_is_mine(semlock *self, py_object *none)
{
	(void)none;
	if (!usable(self))
		return failed(self, PP_ERR_HANDLE);
	return constant(self->kind == PP__KIND_LOCK && pp__lock_mine(self->handle) > 0 ? py.true_ : py.false_);
}

/* _get_value(): how often it can be acquired now. */
static py_object *semlock_get_value(semlock *self, py_object *none)
{
	uint32_t value = 0;

	(void)none;
	if (!usable(self))
		return failed(self, PP_ERR_HANDLE);
	if (self->kind == PP__KIND_LOCK) {
		const pp__lock *const lock = pp__at(self->handle->heap, self->handle->off);
		value = __atomic_load_n(&lock->word, __ATOMIC_SEQ_CST) == 0;
	} else {
		const int32_t status = pp__semaphore_count(self->handle, &value);
		if (status != PP_OK)
			return failed(self, status);
	}
	return py.PyLong_FromUnsignedLong(value);
}

/* _adopt(handle, kind, died, fail): the instance owns the handle from now on. */
static py_object *semlock_adopt(semlock *self, py_object *const *args, py_size n)
{
	if (n != 4 || self->number != 0) {
		py.PyErr_SetString(*py.type_error, "_adopt(handle, kind, died, fail), once");
		return NULL;
	}
	const uint64_t number = py.PyLong_AsUnsignedLongLong(args[0]);
	const long kind = py.PyLong_AsLong(args[1]);
	if (py.PyErr_Occurred() != NULL)
		return NULL;
	if (kind != PP__KIND_LOCK && kind != PP__KIND_SEMAPHORE) {
		py.PyErr_SetString(*py.value_error, "neither lock nor semaphore");
		return NULL;
	}
	py_object *const before = self->fail;
	self->fail = args[3];
	py.Py_IncRef(args[3]);
	if (before != NULL)
		py.Py_DecRef(before);
	if (self->died == NULL) {
		self->died = args[2];
		py.Py_IncRef(args[2]);
	}
	pp__handle *const handle = pp__pin(number, (uint32_t)kind);
	if (handle == NULL)
		return failed(self, PP_ERR_HANDLE);
	self->kind = (uint32_t)kind;
	self->number = number;
	self->object = pp__at(handle->heap, handle->off);
	self->handle = handle;
	pp__unpin(handle); /* it stays until the number is freed: at the end of this instance, or by a fork */
	return constant(py.none);
}

static void semlock_dealloc(semlock *self)
{
	if (self->number != 0)
		pp__handle_free(self->number, self->kind);
	if (self->fail != NULL)
		py.Py_DecRef(self->fail);
	if (self->died != NULL)
		py.Py_DecRef(self->died);
	pp__py_release(&self->head);
}

static py_method semlock_methods[] = {
	{"acquire", PY_FUNCTION(semlock_acquire), FASTCALL | KEYWORDS, "acquire($self, /, block=True, timeout=None)\n--\n\nAcquire the semaphore or lock."},
	{"release", PY_FUNCTION(semlock_release), NOARGS, "release($self, /)\n--\n\nRelease the semaphore or lock."},
	{"__enter__", PY_FUNCTION(semlock_enter), NOARGS, "__enter__($self, /)\n--\n\nAcquire the semaphore or lock."},
	{"__exit__", PY_FUNCTION(semlock_exit), FASTCALL, "__exit__($self, /, *args)\n--\n\nRelease the semaphore or lock."},
	{"_is_mine", PY_FUNCTION(semlock_is_mine), NOARGS, "_is_mine($self, /)\n--\n\nWhether this thread holds the lock."},
	{"_get_value", PY_FUNCTION(semlock_get_value), NOARGS, "_get_value($self, /)\n--\n\nHow often it can be acquired now."},
	{"_notify", PY_FUNCTION(semlock_notify), FASTCALL, NULL},
	{"_adopt", PY_FUNCTION(semlock_adopt), FASTCALL, NULL},
	{NULL, NULL, 0, NULL},
};

static py_slot semlock_slots[] = {
	{TP_DEALLOC, {.function = PY_FUNCTION(semlock_dealloc)}},
	{TP_METHODS, {.data = semlock_methods}},
	{TP_DOC, {.data = (void *)(uintptr_t)"A lock or semaphore in the memory of the family."}},
	{0, {NULL}},
};

py_spec pp__semlock_spec = {"polyproc.synchronize._FastSemLock", sizeof(semlock), 0, BASETYPE, semlock_slots};

void *pp_python_spec(uint32_t type)
{
	if (type > PP_PYTHON_CHANNEL || !pp__py_find())
		return NULL;
	return type == PP_PYTHON_SEMLOCK ? &pp__semlock_spec : &pp__channel_spec;
}
