"""What the children of the tests run. It imports no more than they need, so that they start quickly.

A child answers by a file, as the queues of the two packages differ: the last argument of a target is the file's path.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time


def answer(path, value):
    """Put ``value`` (JSON) there, whole."""
    with open(f"{path}.{os.getpid()}", "w") as file:
        json.dump(value, file)
    os.replace(file.name, path)


def question(path, deadline=30.0):
    """What a child has put there, or will within ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not os.path.exists(path):
        if time.monotonic() > end:
            raise AssertionError(f"no answer in {path}")
        time.sleep(0.005)
    with open(path) as file:
        return json.load(file)


def package(name):
    """The package under test, by name: importing this module must not load both."""
    return __import__(name)


def nothing(*args, **kwargs):
    pass


def arguments(*args, **kwargs):
    path = args[-1]
    answer(path, [args[:-1], kwargs])


def size(data, path):
    answer(path, [len(data), data[:1].decode(), data[-1:].decode()])


def who(name, path):
    mp = package(name)
    me, parent = mp.current_process(), mp.parent_process()
    answer(
        path,
        {
            "name": me.name,
            "pid": me.pid,
            "getpid": os.getpid(),
            "daemon": me.daemon,
            "alive": me.is_alive(),
            "repr": repr(me),
            "authkey": bytes(me.authkey).hex(),
            "children": len(mp.active_children()),
            "parent": [parent.name, parent.pid, parent.is_alive()],
            "getppid": os.getppid(),
            "method": mp.get_start_method(),
            "exitcode": me.exitcode,
        },
    )


def surroundings(path):
    answer(
        path,
        {
            "cwd": os.getcwd(),
            "argv": sys.argv,
            "path": sys.path,
            "stdin": sys.stdin.read(),
            "environment": sorted(name for name in os.environ if name.startswith("POLYPROC_")),
            "main": sys.modules["__main__"].__name__,
        },
    )


def leave(code):
    sys.exit(code)


def leave_number(code):
    os._exit(code)


def fail():
    raise ZeroDivisionError("on purpose")


def die(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def sleep(path):
    answer(path, os.getpid())
    time.sleep(60)


def ignore_terminate(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(path)


def print_something(text):
    sys.stdout.write(text)


def with_atexit(path):
    atexit.register(answer, path, "atexit")


def with_finalizer(name, path):
    util = __import__(name + ".util", fromlist=["util"])
    util.Finalize(None, answer, (path, "finalized"), exitpriority=1)


def with_thread(path):
    threading.Thread(target=lambda: (time.sleep(0.1), answer(path, "thread"))).start()


def grandchildren(name, path):
    mp = package(name)
    child = mp.Process(target=nothing)
    names = [child.name]
    child.start()
    child.join()
    names.append(mp.Process(target=nothing).name)
    answer(path, [names, child.exitcode])


def daemon_with_child(name, path):
    mp = package(name)
    try:
        mp.Process(target=nothing).start()
    except AssertionError as e:
        answer(path, str(e))


def write_to(dup, path):
    fd = dup.detach()
    os.write(fd, b"from the child")
    os.close(fd)
    answer(path, "written")


def send_on(sock, path):
    with sock:
        sock.sendall(b"over a socket")
    answer(path, "sent")


def watch_parent(name, path, done):
    parent = package(name).parent_process()
    answer(path, parent.is_alive())
    parent.join(30)
    answer(done, parent.is_alive())


def ask_the_other_package(path):
    import logging
    import multiprocessing
    import multiprocessing.process

    me = multiprocessing.current_process()
    record = logging.getLogRecordFactory()("name", 1, "path", 1, "message", (), None)
    answer(
        path,
        {
            "name": me.name,
            "daemon": me.daemon,
            "pid": me.pid,
            "parent": multiprocessing.parent_process().pid,
            "children": len(multiprocessing.active_children()),
            "record": record.processName,
        },
    )


def loaded_modules(path):
    answer(path, sorted(sys.modules))


def log(name):
    package(name).get_logger().warning("from a child")


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("cannot be pickled")


class Explosive:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return (fail, ())


class Closed:
    """Becomes, in the child, the descriptor that was passed while it was pickled."""

    def __init__(self, name, fd):
        self.name, self.fd = name, fd

    def __reduce__(self):
        reduction = __import__(self.name + ".reduction", fromlist=["reduction"])
        return (detach, (reduction.DupFd(self.fd),))


def detach(dup):
    return dup


def count_passed(dups, path):
    answer(path, len({dup.detach() for dup in dups}))


def parents(name, path):
    answer(path, [os.getppid(), package(name).parent_process().pid])


def grandchild_of_server(name, path):
    mp = package(name)
    p = mp.Process(target=parents, args=(name, path + ".grandchild"))
    p.start()
    p.join()
    if p.exitcode == 0:
        answer(path, [*question(path + ".grandchild", 0), mp.parent_process().pid])


def start_later(name, ready, path):
    answer(ready, 1)
    question(ready + ".go")
    p = package(name).Process(target=nothing)
    p.start()
    p.join()
    answer(path, p.exitcode)


def start_as_orphan(name, ready, path):
    mp = package(name)
    answer(ready, 1)
    mp.parent_process().join()
    p = mp.Process(target=leave, args=(6,))
    p.start()
    p.join()
    answer(path, [os.getppid(), p.exitcode])


def who_by(method, name, path):
    p = package(name).get_context(method).Process(target=who, args=(name, path))
    p.start()
    p.join()
    sys.exit(p.exitcode)
