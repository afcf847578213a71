"""What the children of test_stdlib.py run. It does not import the standard library's package: its functions do, when they run."""

from __future__ import annotations

import os

from process_tasks import answer


def keys(path):
    import multiprocessing

    import polyproc

    me = multiprocessing.current_process()
    ours = polyproc.current_process()
    answer(
        path,
        {
            "stdlib": bytes(me.authkey).hex(),
            "polyproc": bytes(ours.authkey).hex(),
            "name": [me.name, ours.name],
            "pid": [me.pid, ours.pid],
            "alive": [me.is_alive(), ours.is_alive()],
            "daemon": [me.daemon, ours.daemon],
            "repr": [repr(me), repr(ours)],
            "class": [me.__class__.__name__, isinstance(me, type(ours))],
        },
    )


def keys_of_a_child(method, path):
    """As keys(), in a child of this child."""
    import polyproc

    p = polyproc.get_context(method).Process(target=keys, args=(path,))
    p.start()
    p.join(60)


def stdlib_keys():
    """The two keys, in a pool's worker."""
    import multiprocessing

    import polyproc

    return bytes(multiprocessing.current_process().authkey), bytes(polyproc.current_process().authkey)


def rename(path):
    """What one package's object is told, the other's knows; and a child of the standard library's has its key."""
    import multiprocessing

    import polyproc

    multiprocessing.current_process().name = "renamed"
    p = multiprocessing.get_context("spawn").Process(target=keys_of_the_stdlib, args=(path,))
    p.start()
    p.join(60)
    answer(path + ".name", polyproc.current_process().name)


def keys_of_the_stdlib(path):
    import multiprocessing

    answer(path, bytes(multiprocessing.current_process().authkey).hex())


def increment(proxy, path=None):
    proxy["n"] += 1
    if path is not None:
        answer(path, proxy["n"])
    return proxy


def send(connection, path):
    connection.send("through a connection")
    connection.close()
    answer(path, "sent")


def send_through(connection, path):
    """Make a pipe of the standard library here, and send its end: this process shares it by a thread of its own."""
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()
    connection.send(theirs)
    answer(path, ours.recv())


class Thing:
    pass


def hook(thing):
    thing.calls.append(os.getpid())


def calls(thing, path):
    answer(path, [os.getpid(), thing.calls])


the_thing = None


def calls_of_the_thing():
    return os.getpid(), the_thing.calls


def register(name):
    util = __import__(name + ".util", fromlist=["util"])
    util.register_after_fork(the_thing, hook)


def pickles(value, path):
    """Pickled here, for a process of this package."""
    import pickle

    answer(path, len(pickle.dumps(value)))


def with_finalizer(path):
    import multiprocessing.util

    multiprocessing.util.Finalize(None, answer, (path, "finalized"), exitpriority=1)


class Strict:
    def __init_subclass__(cls, *, word, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.word = word


def special(method):
    """A class of processes that cannot be derived from casually; its method is called through the other package's object."""
    import polyproc

    class Special(Strict, polyproc.get_context(method).Process, word="special"):
        def run(self):
            import multiprocessing

            me = multiprocessing.current_process()
            answer(self._args[0], [me.word, me.spell(), isinstance(me, Special)])

        def spell(self):
            return self.name + "!"

    return Special
