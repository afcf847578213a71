"""What the other ends of the connections run: children of either package, and programs on other versions of Python."""

from __future__ import annotations

import sys


def package(name):
    return __import__(f"{name}.connection", fromlist=["connection"])


def echo(connection):
    """Send back what comes, until the other end closes."""
    try:
        while True:
            connection.send(connection.recv())
    except EOFError:
        connection.close()


def echo_descriptor(name, fd):
    """As echo(), over a descriptor that the child has by fork."""
    echo(package(name).Connection(fd))


def relay(connection):
    """Receive a connection over this one, and say something there."""
    with connection, connection.recv() as other:
        other.send("from the child")


def connect(name, address, key):
    with package(name).Client(address, authkey=key) as connection:
        connection.send(["hello", 2**70, {"a": b"b"}])
        connection.send_bytes(b"x" * 100_000)
        assert connection.recv() == "and hello"


def listen(name, family, key):
    """Take one connection; the address goes to the standard output."""
    with package(name).Listener(family=family, authkey=key) as listener:
        print(repr(listener.address), flush=True)
        with listener.accept() as connection:
            assert connection.recv() == ["hello", 2**70, {"a": b"b"}]
            assert connection.recv_bytes() == b"x" * 100_000
            connection.send("and hello")


def main(role, name, where, key):
    key = None if key == "-" else key.encode()
    if role == "listen":
        listen(name, where, key)
    else:
        connect(name, eval(where), key)
    others = {"multiprocessing": "polyproc", "polyproc": "multiprocessing"}
    assert others[name] not in sys.modules
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
