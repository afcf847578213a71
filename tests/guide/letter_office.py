"""Queues: one process writes letters, two deliver them until nothing has come for a while; a third queue waits for what is done."""

import queue

import polyproc as mp


def writer(letters: mp.Queue, office: str) -> None:
    for i in range(6):
        letters.put(f"{office}/{i}")


def carrier(letters: mp.Queue, delivered: mp.SimpleQueue, name: str) -> None:
    while True:
        try:
            delivered.put((name, letters.get(timeout=1.0)))
        except queue.Empty:
            break
    delivered.put((name, None))


def sorter(parcels: mp.JoinableQueue) -> None:
    for weight, scales in iter(parcels.get, None):
        scales[0] += weight
        parcels.task_done()
    parcels.task_done()


def main() -> None:
    letters, delivered = mp.Queue(maxsize=4), mp.SimpleQueue()
    office = mp.Process(target=writer, args=(letters, "north"))
    carriers = [mp.Process(target=carrier, args=(letters, delivered, f"carrier {i}")) for i in range(2)]
    for process in [office, *carriers]:
        process.start()
    came, resting = [], []
    while len(resting) < len(carriers):
        name, letter = delivered.get()
        if letter is None:
            resting.append(name)
        else:
            came.append(letter)
    for process in [office, *carriers]:
        process.join()
    print(f"delivered: {', '.join(sorted(came))}; resting: {', '.join(sorted(resting))}", flush=True)

    parcels = mp.JoinableQueue()
    for weight in range(4):
        parcels.put((weight, [0]))
    sorting = mp.Process(target=sorter, args=(parcels,))
    sorting.start()
    parcels.join()
    print(f"all parcels sorted, {parcels.qsize()} left", flush=True)
    parcels.put(None)
    parcels.join()
    sorting.join()
    print(f"exit codes {[p.exitcode for p in [office, *carriers, sorting]]}", flush=True)


if __name__ == "__main__":
    main()
