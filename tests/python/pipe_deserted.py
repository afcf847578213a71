"""A program for test_pipe.py: a reader waits for a message; the first argument says what the others do. Prints what the reader got."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import polyproc

LATE = 12.0  # seconds: long after the reader has looked for who is left

ctx = polyproc.get_context("fork")


def read(reader):
    began = time.monotonic()
    try:
        got = reader.recv()
    except EOFError:
        got = "EOF"
    print(got, time.monotonic() - began >= LATE - 0.5, flush=True)


def read_as_nobody(reader):
    """/proc does not show this process the one that has the other end."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    assert not os.path.exists(f"/proc/{os.getppid()}")
    read(reader)


def start_and_join(reader):
    process = ctx.Process(target=read, args=(reader,))
    process.start()
    process.join()


def late(writer):
    time.sleep(LATE)
    writer.send("late")


def late_by_another(conn):
    time.sleep(LATE)
    conn.recv().send("late")


class SigEvent(ctypes.Structure):
    """struct sigevent of glibc, for SIGEV_THREAD."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("pad", ctypes.c_char * 32),
    ]


def call_late_by_a_native_thread(function):
    """Have a thread of the C library, of which Python does not know until then, call the function later."""
    try:
        create = ctypes.CDLL(None).timer_create
    except AttributeError:
        create = ctypes.CDLL("librt.so.1").timer_create
    event = SigEvent(notify=2, function=ctypes.cast(function, ctypes.c_void_p).value)
    timer = ctypes.c_void_p()
    assert create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0
    when = (ctypes.c_long * 4)(0, 0, int(LATE), 0)  # struct itimerspec
    try:
        start = ctypes.CDLL(None).timer_settime
    except AttributeError:
        start = ctypes.CDLL("librt.so.1").timer_settime
    assert start(timer, 0, when, None) == 0


def main(case):
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=read, args=(reader,))
    if case == "middle":  # who waits for the reader is waited for in turn
        middle = ctx.Process(target=start_and_join, args=(reader,))
        middle.start()
        middle.join()
        return
    if case == "hidden":
        assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
        process = ctx.Process(target=read_as_nobody, args=(reader,))
    if case == "method":
        process = polyproc.get_context("spawn").Process(target=read, args=(reader,))
    process.start()
    if case == "thread":
        threading.Thread(target=late, args=(writer,)).start()
    if case == "waiting threads":  # all of them in a join: they prove as much as one
        threading.Thread(target=process.join).start()
        time.sleep(0.1)
    if case == "thread that ends":  # after the join has begun
        threading.Thread(target=time.sleep, args=(0.5,)).start()
    if case == "alarm":
        signal.signal(signal.SIGALRM, lambda number, frame: writer.send("late"))
        signal.setitimer(signal.ITIMER_REAL, LATE)
    if case == "interrupt":
        signal.signal(signal.SIGINT, lambda number, frame: writer.send("late"))
        threading.Timer(LATE, os.kill, (os.getpid(), signal.SIGINT)).start()
    if case == "limited":
        process.join(LATE)
        writer.send("late")
    if case == "other process":  # that is not of this package, and has a copy of the descriptor
        fd = os.dup(writer.fileno())
        subprocess.Popen(["sleep", str(LATE)], pass_fds=[fd])
        os.close(fd)
    if case == "raw fork" and os.fork() == 0:
        late(writer)
        os._exit(0)
    if case == "on its way":
        one, two = ctx.Pipe()
        other = polyproc.get_context("spawn").Process(target=late_by_another, args=(two,))
        other.start()
        one.send(writer)
    if case == "native thread":
        send = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda value: writer.send("late"))
        call_late_by_a_native_thread(send)
    if case == "after a pool":  # its engine's threads are the library's own
        polyproc.get_context("spawn").Pool(1).terminate()
    if case in ("sleep", "hidden"):
        time.sleep(LATE)
        writer.send("late")
    process.join()


if __name__ == "__main__":
    main(sys.argv[1])
