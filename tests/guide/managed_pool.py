"""A pool that belongs to an object: started on first use, closed by close() or at the end of the program."""

import atexit
from collections.abc import Iterable
from typing import Any, Callable, Optional

import polyproc as mp


class Workshop:
    def __init__(self, hands: Optional[int] = None) -> None:
        self.hands = hands or mp.cpu_count()
        self.pool: Any = None
        self.closed = False

    def _open(self) -> Any:
        if self.closed:
            raise RuntimeError("the workshop is closed")
        if self.pool is None:
            self.pool = mp.Pool(self.hands)
            atexit.register(self.close)
        return self.pool

    def order(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._open().apply_async(function, args, kwargs)

    def batch(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        result: list[Any] = self._open().map(function, items)
        return result

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool.join()
            self.pool = None
            print("closed", flush=True)
        self.closed = True


def weld(left: str, right: str, seam: str = "-") -> str:
    return left + seam + right


def main() -> None:
    first = Workshop(2)
    print(first.order(weld, "beam", "plate", seam="=").get(timeout=60))
    print(first.batch(len, ["a", "bc", "def"]))
    first.close()
    try:
        first.order(weld, "a", "b")
    except RuntimeError as error:
        print(f"refused: {error}")

    second = Workshop()
    print(second.batch(abs, range(-3, 0)), flush=True)
    # Nobody closes the second: atexit does.


if __name__ == "__main__":
    main()
