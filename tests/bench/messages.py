"""One measurement of what processes talk through, in a process of its own.

    messages.py NAME CASE METHOD COUNT

NAME is a package with multiprocessing's interface. Prints one number, in microseconds:

    queue simple pipe    per item: one producer, the parent consumes COUNT small integers; from the producer's go to the last item
    queue-2x2            per item: two producers, two consumers, COUNT each
    queue-pingpong pipe-pingpong
                         a small item there and back
    queue-1m pipe-1m     per message of 1 MB of bytes, one way
    event                from set() in one process to the return of wait() in the other and back, on two Events
    lock-contended       acquire and release, by two processes at once
    with                 `with lock:` uncontended, by timeit's way: the best of seven, so that another's load does not count
    lock-bare semaphore-bare rlock-bare
                         acquire() and release(), the same
"""

import importlib
import sys
import time
import timeit

MEGABYTE = b"m" * 1_000_000


def produce(queue, item, count, ready):
    ready.wait()
    put = queue.put
    for _ in range(count):
        put(item)


def consume(queue, count, ready, seconds):
    ready.wait()
    get = queue.get
    start = time.perf_counter()
    for _ in range(count):
        get()
    if seconds is not None:
        seconds.put(time.perf_counter() - start)


def echo(queue, other, count):
    for _ in range(count):
        other.put(queue.get())


def send(connection, item, count, ready):
    ready.wait()
    for _ in range(count):
        connection.send(item)


def send_bytes(connection, item, count, ready):
    ready.wait()
    for _ in range(count):
        connection.send_bytes(item)


def echo_pipe(connection, count):
    for _ in range(count):
        connection.send(connection.recv())


def answer(first, second, count):
    for _ in range(count):
        first.wait()
        first.clear()
        second.set()


def contend(lock, count, ready):
    ready.wait()
    for _ in range(count):
        with lock:
            pass


def one_way(context, queue, item, count):
    ready = context.Event()
    child = context.Process(target=produce, args=(queue, item, count, ready))
    child.start()
    time.sleep(0.1)  # it waits
    start = time.perf_counter()
    ready.set()
    for _ in range(count):
        queue.get()
    took = time.perf_counter() - start
    child.join()
    return took / count


def queue(context, count):
    return one_way(context, context.Queue(), 12345, count)


def simple(context, count):
    return one_way(context, context.SimpleQueue(), 12345, count)


def queue_1m(context, count):
    return one_way(context, context.Queue(), MEGABYTE, count)


def queue_2x2(context, count):
    items, seconds, ready = context.Queue(), context.Queue(), context.Event()
    children = [context.Process(target=produce, args=(items, 12345, count, ready)) for _ in range(2)]
    children += [context.Process(target=consume, args=(items, count, ready, seconds)) for _ in range(2)]
    for child in children:
        child.start()
    time.sleep(0.3)  # all of them wait
    ready.set()
    took = max(seconds.get(), seconds.get())
    for child in children:
        child.join()
    return took / (2 * count)


def queue_pingpong(context, count):
    there, back = context.Queue(), context.Queue()
    child = context.Process(target=echo, args=(there, back, count + 1))
    child.start()
    there.put(0)
    back.get()
    start = time.perf_counter()
    for i in range(count):
        there.put(i)
        back.get()
    took = time.perf_counter() - start
    child.join()
    return took / count


def through_pipe(context, item, count, target, receive):
    ready = context.Event()
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=target, args=(writer, item, count, ready))
    child.start()
    time.sleep(0.1)  # it waits
    get = getattr(reader, receive)
    start = time.perf_counter()
    ready.set()
    for _ in range(count):
        get()
    took = time.perf_counter() - start
    child.join()
    return took / count


def pipe(context, count):
    return through_pipe(context, 12345, count, send, "recv")


def pipe_1m(context, count):
    return through_pipe(context, MEGABYTE, count, send_bytes, "recv_bytes")


def pipe_pingpong(context, count):
    ours, theirs = context.Pipe()
    child = context.Process(target=echo_pipe, args=(theirs, count + 1))
    child.start()
    ours.send(0)
    ours.recv()
    start = time.perf_counter()
    for i in range(count):
        ours.send(i)
        ours.recv()
    took = time.perf_counter() - start
    child.join()
    return took / count


def event(context, count):
    first, second = context.Event(), context.Event()
    child = context.Process(target=answer, args=(first, second, count + 1))
    child.start()
    first.set()
    second.wait()
    second.clear()
    start = time.perf_counter()
    for _ in range(count):
        first.set()
        second.wait()
        second.clear()
    took = time.perf_counter() - start
    child.join()
    return took / count


def lock_contended(context, count):
    lock, ready = context.Lock(), context.Event()
    children = [context.Process(target=contend, args=(lock, count, ready)) for _ in range(2)]
    for child in children:
        child.start()
    time.sleep(0.3)  # both wait
    start = time.perf_counter()
    ready.set()
    for child in children:
        child.join()
    return (time.perf_counter() - start) / (2 * count)


def best(statement, lock, count):
    timer = timeit.Timer(statement, globals={"lock": lock, "acquire": lock.acquire, "release": lock.release})
    return min(timer.repeat(7, count)) / count


def with_lock(context, count):
    return best("with lock: pass", context.Lock(), count)


def lock_bare(context, count):
    return best("acquire(); release()", context.Lock(), count)


def semaphore_bare(context, count):
    return best("acquire(); release()", context.Semaphore(3), count)


def rlock_bare(context, count):
    return best("acquire(); release()", context.RLock(), count)


CASES = {
    "queue": queue,
    "queue-2x2": queue_2x2,
    "queue-pingpong": queue_pingpong,
    "queue-1m": queue_1m,
    "simple": simple,
    "pipe": pipe,
    "pipe-pingpong": pipe_pingpong,
    "pipe-1m": pipe_1m,
    "event": event,
    "lock-contended": lock_contended,
    "with": with_lock,
    "lock-bare": lock_bare,
    "semaphore-bare": semaphore_bare,
    "rlock-bare": rlock_bare,
}


def main():
    name, case, method, count = *sys.argv[1:4], int(sys.argv[4])
    context = importlib.import_module(name).get_context(method)
    print(f"{CASES[case](context, count) * 1e6:.6f}", flush=True)


if __name__ == "__main__":
    main()
