"""What the processes of test_queues.py and torture_queue.py run: importable, so that every start method finds it."""

from __future__ import annotations

import array
import os
import signal
import socket
import time
from queue import Empty, Full


class Odd:
    """Does not pickle."""

    def __reduce__(self):
        raise ArithmeticError("odd")


def echo(questions, answers):
    """Send back whatever comes, until None."""
    for item in iter(questions.get, None):
        answers.put(item)


def put_all(queue, items):
    for item in items:
        queue.put(item)


def put_and_die(queue, item):
    """The last thing that this process does in its life is a put."""
    queue.put(item)
    os.kill(os.getpid(), signal.SIGKILL)


def put_new_queue_and_die(queue):
    import polyproc

    made = polyproc.Queue()
    made.put(array.array("d", [1.5]) * 2_000_000)
    made.put("second")
    queue.put(made)
    os.kill(os.getpid(), signal.SIGKILL)


def put_sockets_and_die(queue):
    from polyproc.connection import Client, Listener

    plain, other = socket.socketpair()
    other.sendall(b"sent before")
    with Listener(family="AF_UNIX") as listener:
        client = Client(listener.address)
        listener.accept().send("as well")
    queue.put((plain, client))
    os.kill(os.getpid(), signal.SIGKILL)


def send_to(sock, data):
    with sock:
        return sock.send(data)


def produce(queue, name, n):
    for i in range(n):
        queue.put((name, i))


def consume(queue, done):
    taken = []
    for item in iter(queue.get, None):
        taken.append(item)
    done.put(taken)


def work_off(queue, answers):
    """For JoinableQueue."""
    while True:
        item = queue.get()
        if item is None:
            queue.task_done()
            return
        answers.put(item * item)
        queue.task_done()


def put_then_get(queue, x):
    """In a pool: the queue came with the task."""
    queue.put(x)
    return queue.qsize() > 0


def new_queue(x):
    """In a pool: a queue made in a worker comes back with the result."""
    import polyproc

    queue = polyproc.SimpleQueue()
    queue.put(x)
    return queue


def hold(queue, ready):
    """Put and take all the time, until killed; ready says when it begins."""
    ready.put(os.getpid())
    while True:
        try:
            queue.put(b"x" * 3000, timeout=0.5)
            queue.get(timeout=0.5)
        except (Empty, Full):
            time.sleep(0.001)
