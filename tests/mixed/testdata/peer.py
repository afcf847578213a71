"""The Python side of mixed_test.go: what peer.c is. A queue is =NAME."""

import sys

import polyproc


def produce(queue, who, n):
    for i in range(n):
        length = 40000 if i % 97 == 0 else 8 + i * 37 % 900
        queue.put_bytes((who.to_bytes(4, "little") + i.to_bytes(4, "little")).ljust(length, b"\0"))


def move(source, target):
    while True:
        try:
            data = source.get()
        except ValueError:  # closed
            return
        target.put_bytes(data)


def queue_of(argument):
    return polyproc.Queue(name=argument[1:])


if __name__ == "__main__":
    if sys.argv[1] == "produce":
        produce(queue_of(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        move(queue_of(sys.argv[2]), queue_of(sys.argv[3]))
