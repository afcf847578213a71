"""Connections between threads, over pairs of queues. Mirrors multiprocessing/dummy/connection.py."""

from __future__ import annotations

from queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

__all__ = ["Client", "Listener", "Pipe"]

families = [None]


class _Closing:
    def close(self) -> None:
        """Nothing is left to do."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Connection(_Closing):
    """One end: what is sent is put, as it is, into a queue that the other end gets from."""

    def __init__(self, _in: Queue[Any], _out: Queue[Any]) -> None:
        self._in = _in
        self._out = _out
        self.send = self.send_bytes = _out.put
        self.recv = self.recv_bytes = _in.get

    def poll(self, timeout: float = 0.0) -> bool:
        """Whether there is something to receive, now or within timeout seconds."""
        with self._in.not_empty:
            return self._in.not_empty.wait_for(self._in._qsize, max(timeout, 0)) > 0


class Listener(_Closing):
    """Waits for clients of its address, which is a queue."""

    def __init__(self, address: object = None, family: int | None = None, backlog: int = 1) -> None:
        self._backlog_queue: Queue[tuple[Queue[Any], Queue[Any]]] | None = Queue(backlog)

    def accept(self) -> Connection:
        """The connection of the next client.

        Raises:
            OSError: the listener is closed.
        """
        if self._backlog_queue is None:
            raise OSError("listener is closed")
        return Connection(*self._backlog_queue.get())

    def close(self) -> None:
        """Give the address up."""
        self._backlog_queue = None

    @property
    def address(self) -> Queue[tuple[Queue[Any], Queue[Any]]] | None:
        """What clients connect to."""
        return self._backlog_queue


def Client(address: Queue[tuple[Queue[Any], Queue[Any]]]) -> Connection:
    """Connect to a listener in another thread."""
    here: Queue[Any] = Queue()
    there: Queue[Any] = Queue()
    address.put((there, here))
    return Connection(here, there)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Two ends that are connected."""
    a: Queue[Any] = Queue()
    b: Queue[Any] = Queue()
    return Connection(a, b), Connection(b, a)
