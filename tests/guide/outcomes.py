"""Errors as data: a task that fails says so in its result, and one bad input does not stop the others."""

import math
import traceback
from dataclasses import dataclass
from typing import Optional

import polyproc as mp


@dataclass
class Outcome:
    task: int
    value: Optional[int] = None
    error: str = ""
    where: str = ""


def root(n: int) -> Outcome:
    try:
        return Outcome(n, math.isqrt(n))
    except ValueError as error:
        return Outcome(n, None, str(error), traceback.format_exc())


def root_or_raise(n: int) -> int:
    return math.isqrt(n)


def main() -> None:
    inputs = [81, 2, -3, 100, -25]
    with mp.Pool() as pool:
        outcomes = pool.map(root, inputs)
        for outcome in outcomes:
            if outcome.error:
                print(f"{outcome.task}: failed in {'root' if 'in root' in outcome.where else '?'}(): {outcome.error}")
            else:
                print(f"{outcome.task}: {outcome.value}")

        # Without that, the first error is raised here, with the worker's traceback as its cause.
        try:
            pool.map(root_or_raise, inputs)
        except ValueError as error:
            there = "root_or_raise" in str(error.__cause__)
            print(f"raised: {type(error).__name__}, the worker's traceback is there: {there}")
        print(f"the pool goes on: {pool.map(root_or_raise, [4, 9])}")


if __name__ == "__main__":
    main()
