"""Platforms: the guard of the entry point, and which start method there is."""

import polyproc as mp

print(f"{'the program' if __name__ == '__main__' else 'a worker that imports it'} reads the file", flush=True)


def halve(n: int) -> float:
    return n / 2


if __name__ == "__main__":
    method = mp.get_start_method()  # the platform's, unless set_start_method() was called
    print(f"{method} is one of the methods: {method in mp.get_all_start_methods()}")
    try:
        mp.set_start_method("teleport", force=True)
    except ValueError:
        print("an unknown method is refused")
    with mp.Pool(2) as pool:
        print(pool.map(halve, range(4)))
    with mp.get_context(method).Pool(2) as pool:
        print(pool.map(halve, range(4, 8)))
