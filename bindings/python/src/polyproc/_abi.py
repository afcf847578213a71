"""include/polyproc.h for ctypes: one class for each structure, one table for all functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The version of the header that this module was written from.
VERSION = (0, 1)

START_DEFAULT = 0
START_SPAWN = 1
START_FORK = 2
START_FORKSERVER = 3

POOL_HOST_STARTS = 1

PROCESS_DAEMON = 1
PROCESS_BLOCK_SIGINT = 2
PROCESS_FAMILY = 4

KIND_ANY = 0
KIND_LOCK = 1
KIND_SEMAPHORE = 2
KIND_CONDITION = 3
KIND_EVENT = 4
KIND_BARRIER = 5
KIND_QUEUE = 6
KIND_PIPE = 7

REF_SIZE = 32

LOCK_RECURSIVE = 1
LOCK_RECOVER = 2
LOCK_FREE = 0
LOCK_BY_ME = 1
LOCK_BY_THREAD = 2
LOCK_BY_PROCESS = 3
LOCK_POISONED = 4
SEMAPHORE_MOST = 0x7FFFFFFF
SEMAPHORE_RECOVER = 1
BARRIER_ACTION = 1
PYTHON_SEMLOCK = 0
PYTHON_CHANNEL = 1

QUEUE_EXCLUSIVE = 1
QUEUE_EXISTING = 2
CODEC_RAW = 0
CODEC_PICKLE = 1
TRY = -(1 << 63)


class ProcessOptions(ctypes.Structure):
    """pp_process_options"""

    _fields_ = [
        ("size", c_uint32),
        ("method", c_uint32),
        ("fn", c_void_p),
        ("path", c_char_p),
        ("argv", POINTER(c_char_p)),
        ("env", POINTER(c_char_p)),
        ("cwd", c_char_p),
        ("fds", POINTER(c_int32)),
        ("fds_count", c_size_t),
        ("arg", c_char_p),
        ("arg_size", c_size_t),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


class Exit(ctypes.Structure):
    """pp_exit"""

    _fields_ = [
        ("known", c_int32),
        ("code", c_int32),
        ("signal", c_int32),
    ]


class PoolOptions(ctypes.Structure):
    """pp_pool_options"""

    _fields_ = [
        ("size", c_uint32),
        ("method", c_uint32),
        ("workers", c_int32),
        ("max_tasks", c_uint32),
        ("out_max", c_size_t),
        ("initializer", c_void_p),
        ("init_arg", c_char_p),
        ("init_arg_size", c_size_t),
        ("path", c_char_p),
        ("argv", POINTER(c_char_p)),
        ("env", POINTER(c_char_p)),
        ("cwd", c_char_p),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


class Result(ctypes.Structure):
    """pp_result"""

    _fields_ = [
        ("task", c_uint64),
        ("cookie", c_uint64),
        ("status", c_int32),
        ("code", c_int32),
        ("pid", c_int32),
        ("exit_code", c_int32),
        ("size", c_uint64),
        ("data", c_void_p),
        ("owned", c_uint64),
    ]


class PoolState(ctypes.Structure):
    """pp_pool_state"""

    _fields_ = [
        ("workers", c_int32),
        ("alive", c_int32),
        ("waiting", c_uint64),
        ("running", c_uint64),
        ("done", c_uint64),
        ("started", c_uint64),
        ("lost", c_uint64),
    ]


class Vacancy(ctypes.Structure):
    """pp_vacancy"""

    _fields_ = [
        ("lane", c_uint32),
        ("generation", c_uint32),
        ("fd", c_int32),
        ("parent_pid", c_int32),
    ]


class PipeMessage(ctypes.Structure):
    """pp_pipe_message"""

    _fields_ = [
        ("data", c_void_p),
        ("size", c_uint64),
        ("owned", c_uint64 * 3),
    ]


class Wait(ctypes.Structure):
    """pp_wait"""

    _fields_ = [
        ("end", c_uint64),
        ("pid", c_int32),
        ("reserved", c_uint32),
    ]


class Worker(ctypes.Structure):
    """pp_worker"""

    _fields_ = [
        ("size", c_uint32),
        ("lane", c_uint32),
        ("parent_pid", c_int32),
        ("reserved", c_uint32),
        ("init_arg", c_void_p),
        ("init_arg_size", c_size_t),
        ("ring", c_void_p),
        ("ring_size", c_size_t),
    ]


class Task(ctypes.Structure):
    """pp_task"""

    _fields_ = [
        ("number", c_uint64),
        ("size", c_uint64),
        ("data", c_void_p),
        ("fn", c_uint64),
    ]


class LockState(ctypes.Structure):
    """pp_lock_state"""

    _fields_ = [
        ("held", c_int32),
        ("pid", c_int32),
        ("levels", c_uint32),
    ]


class BarrierState(ctypes.Structure):
    """pp_barrier_state"""

    _fields_ = [
        ("parties", c_uint32),
        ("waiting", c_uint32),
        ("broken", c_uint32),
    ]


class QueueOptions(ctypes.Structure):
    """pp_queue_options"""

    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("maxsize", c_uint64),
        ("name", c_char_p),
    ]


class QueueState(ctypes.Structure):
    """pp_queue_state"""

    _fields_ = [
        ("size", c_uint64),
        ("maxsize", c_uint64),
        ("unfinished", c_uint64),
        ("leased", c_uint64),
        ("closed", c_int32),
        ("reserved", c_int32),
    ]


class Message(ctypes.Structure):
    """pp_message"""

    _fields_ = [
        ("data", c_void_p),
        ("size", c_uint64),
        ("codec", c_uint32),
        ("kind", c_uint32),
        ("cell", c_uint64),
        ("owner", c_uint64),
    ]


class Part(ctypes.Structure):
    """pp_part"""

    _fields_ = [
        ("data", c_void_p),
        ("size", c_uint64),
    ]


_status = c_int32
_handle = c_uint64
# Pointers to structures and arrays that a call fills in are declared as void pointers: byref(), an array, and an address that was
# computed once all pass, and the hot calls are spared ctypes' type check.
_p = c_void_p

# name: (result, arguments), in the order of the header.
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "pp_version": (c_char_p, ()),
    "pp_library_path": (c_char_p, ()),
    "pp_strerror": (c_char_p, (c_int32,)),
    "pp_status_name": (c_char_p, (c_int32,)),
    "pp_last_error": (c_char_p, ()),
    "pp_init": (_status, (_p, _p)),
    "pp_cpu_count": (c_int32, ()),
    "pp_watch_parent": (_status, ()),
    "pp_watch_process": (_status, (c_int32,)),
    "pp_process_start": (_status, (POINTER(ProcessOptions), POINTER(c_uint64))),
    "pp_process_adopt": (_status, (c_int32, c_int32, POINTER(c_uint64))),
    "pp_process_wait": (_status, (_handle, c_int64, POINTER(Exit))),
    "pp_process_info": (_status, (_handle, POINTER(c_int32), POINTER(c_int32))),
    "pp_process_signal": (_status, (_handle, c_int32)),
    "pp_process_free": (_status, (_handle,)),
    "pp_family": (_status, (POINTER(c_int32), c_char_p, c_size_t)),
    "pp_family_join": (_status, (c_char_p,)),
    "pp_payload": (_status, (POINTER(c_void_p), POINTER(c_size_t))),
    "pp_pool_open": (_status, (POINTER(PoolOptions), POINTER(c_uint64))),
    "pp_pool_map": (
        _status,
        (_handle, _p, _p, c_size_t, _p, c_size_t, c_size_t, c_size_t, _p, c_size_t, _p),
    ),
    "pp_pool_for": (_status, (_handle, _p, c_size_t, c_size_t, _p, _p, c_size_t, _p)),
    "pp_pool_alloc": (_status, (_handle, c_size_t, _p)),
    "pp_pool_dealloc": (_status, (_handle, _p)),
    "pp_pool_submit": (_status, (_handle, _p, _p, c_size_t, c_uint64, _p)),
    "pp_pool_submit_many": (_status, (_handle, _p, _p, _p, c_size_t, c_uint64, _p)),
    "pp_pool_wait": (_status, (_handle, c_uint64, c_int64, _p)),
    "pp_pool_collect": (_status, (_handle, _p, c_size_t, _p, c_size_t, c_int64, _p)),
    "pp_pool_wake": (_status, (_handle,)),
    "pp_result_free": (None, (_p,)),
    "pp_pool_cancel": (_status, (_handle, c_uint64)),
    "pp_pool_info": (_status, (_handle, _p, _p, c_size_t, _p)),
    "pp_pool_vacancy": (_status, (_handle, c_int64, _p)),
    "pp_pool_fill": (_status, (_handle, _p, c_int32, c_int32)),
    "pp_pool_close": (_status, (_handle,)),
    "pp_pool_terminate": (_status, (_handle,)),
    "pp_pool_join": (_status, (_handle, c_int64)),
    "pp_pool_free": (_status, (_handle,)),
    "pp_pipe_create": (_status, (c_uint32, _p)),
    "pp_pipe_send": (_status, (_handle, _p, c_size_t, c_int64)),
    "pp_pipe_send_parts": (_status, (_handle, _p, c_size_t, c_int64)),
    "pp_pipe_recv": (c_int64, (_handle, _p, c_size_t, c_int64)),
    "pp_pipe_recv_now": (c_int64, (_handle, _p, c_size_t)),
    "pp_pipe_take": (_status, (_handle, c_int64, _p)),
    "pp_pipe_message_free": (None, (_p,)),
    "pp_pipe_poll": (_status, (_handle, c_int64, _p)),
    "pp_pipe_descriptor": (_status, (_handle, _p)),
    "pp_pipe_send_fd": (_status, (_handle, c_int32, c_int64)),
    "pp_pipe_recv_fd": (_status, (_handle, c_int64, _p)),
    "pp_pipe_info": (_status, (_handle, _p, _p)),
    "pp_pipe_export": (_status, (_handle, c_int32, _p)),
    "pp_pipe_import": (_status, (_p, c_int32, _p)),
    "pp_pipe_forget": (None, (_p,)),
    "pp_fd_export": (_status, (c_int32, _p)),
    "pp_fd_import": (_status, (_p, _p)),
    "pp_waiting": (_status, (_p, c_size_t)),
    "pp_pipe_deserted": (_status, (_handle,)),
    "pp_pipe_free": (_status, (_handle,)),
    "pp_ref_export": (_status, (_handle, _p)),
    "pp_ref_import": (_status, (_p, c_uint32, _p, _p)),
    "pp_ref_forget": (_status, (_p,)),
    "pp_refs_forget": (_status, (_p, c_size_t)),
    "pp_lock_new": (_status, (c_uint32, _p)),
    "pp_lock_acquire": (_status, (_handle, c_int64)),
    "pp_lock_release": (_status, (_handle,)),
    "pp_lock_info": (_status, (_handle, _p)),
    "pp_lock_recover": (_status, (_handle, c_int64)),
    "pp_lock_restore": (_status, (_handle, c_uint32, c_int64)),
    "pp_lock_free": (_status, (_handle,)),
    "pp_semaphore_new": (_status, (c_uint32, c_uint32, c_uint32, _p)),
    "pp_semaphore_acquire": (_status, (_handle, c_int64)),
    "pp_semaphore_release": (_status, (_handle,)),
    "pp_semaphore_value": (_status, (_handle, _p)),
    "pp_semaphore_free": (_status, (_handle,)),
    "pp_condition_new": (_status, (_p,)),
    "pp_condition_wait": (_status, (_handle, _handle, c_int64)),
    "pp_condition_notify": (_status, (_handle, c_uint32)),
    "pp_condition_notify_all": (_status, (_handle,)),
    "pp_condition_waiting": (_status, (_handle, _p)),
    "pp_condition_enter": (_status, (_handle, _handle, _p, _p)),
    "pp_condition_sleep": (_status, (_handle, c_uint64, c_int64)),
    "pp_condition_leave": (_status, (_handle, c_uint64)),
    "pp_condition_free": (_status, (_handle,)),
    "pp_event_new": (_status, (_p,)),
    "pp_event_set": (_status, (_handle,)),
    "pp_event_clear": (_status, (_handle,)),
    "pp_event_is_set": (_status, (_handle,)),
    "pp_event_wait": (_status, (_handle, c_int64)),
    "pp_event_sleep": (_status, (_handle, POINTER(c_uint64), c_int64)),
    "pp_event_free": (_status, (_handle,)),
    "pp_barrier_new": (_status, (c_uint32, c_uint32, _p)),
    "pp_barrier_wait": (_status, (_handle, c_int64, _p, _p)),
    "pp_barrier_leave": (_status, (_handle, c_uint64)),
    "pp_barrier_release": (_status, (_handle,)),
    "pp_barrier_abort": (_status, (_handle,)),
    "pp_barrier_reset": (_status, (_handle,)),
    "pp_barrier_info": (_status, (_handle, _p)),
    "pp_barrier_free": (_status, (_handle,)),
    "pp_queue_create": (_status, (_p, _p)),
    "pp_queue_free": (_status, (_handle,)),
    "pp_queue_unlink": (_status, (c_char_p,)),
    "pp_queue_put": (_status, (_handle, _p, c_size_t, c_uint32, c_int64)),
    "pp_queue_put_parts": (_status, (_handle, _p, c_size_t, c_uint32, c_int64)),
    "pp_queue_put_many": (_status, (_handle, _p, _p, c_size_t, c_uint32, c_int64, _p)),
    "pp_queue_get": (_status, (_handle, _p, c_size_t, c_int64, _p)),
    "pp_queue_get_many": (_status, (_handle, _p, c_size_t, _p, c_size_t, c_int64, _p)),
    "pp_queue_take": (_status, (_handle, _p, c_size_t, c_int64, _p)),
    "pp_queue_lease": (_status, (_handle, c_int64, _p)),
    "pp_message_ack": (_status, (_p,)),
    "pp_message_free": (None, (_p,)),
    "pp_queue_info": (_status, (_handle, _p)),
    "pp_queue_descriptor": (_status, (_handle, _p)),
    "pp_queue_task_done": (_status, (_handle,)),
    "pp_queue_join": (_status, (_handle, c_int64)),
    "pp_queue_close": (_status, (_handle,)),
    "pp_worker_pending": (c_int32, ()),
    "pp_worker_attach": (_status, (_p,)),
    "pp_worker_attach_to": (_status, (_p, _p)),
    "pp_worker_ready": (_status, (c_int32, _p, c_size_t)),
    "pp_worker_next": (_status, (c_int64, _p)),
    "pp_worker_done": (_status, (c_int32, c_int32, _p, c_size_t)),
    "pp_worker_step": (_status, (c_int32, c_int32, _p, c_size_t, _p)),
    "pp_python_spec": (c_void_p, (c_uint32,)),
}


def declare(library: ctypes.CDLL) -> None:
    """Give every function of ``library`` its prototype.

    Raises:
        AttributeError: the library lacks a function of the table.
    """
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
