"""Pipes: a train reports to the signal box, which answers; a list of what has passed goes to the archive, which keeps all there is."""

import polyproc as mp

STATIONS = ["harbour", "mill", "bridge", "summit"]


def train(line, box):
    box.close()  # this process's copy of the other end: else it would hold its own line open
    for station in STATIONS:
        line.send({"at": station, "cargo": bytes(100_000)})
        answer = line.recv()
    print(f"train: {answer} at {station}")


def archive(shelf, desk):
    desk.close()
    kept = []
    while True:
        try:
            kept.append(shelf.recv_bytes().decode())
        except EOFError:
            break
    print(f"archive: {', '.join(kept)}")


def main():
    box, line = mp.Pipe()
    processes = [mp.Process(target=train, args=(line, box))]
    processes[0].start()
    line.close()  # before the archive starts: forked, it would have a copy, and the box would wait for that one's end too
    shelf, desk = mp.Pipe(duplex=False)
    processes.append(mp.Process(target=archive, args=(shelf, desk)))
    processes[1].start()
    shelf.close()
    while box.poll(60):
        try:
            report = box.recv()
        except EOFError:
            break
        desk.send_bytes(f"{report['at']} {len(report['cargo'])}".encode())
        box.send("stop" if report["at"] == STATIONS[-1] else "go")
    else:
        raise TimeoutError("nothing was heard for a minute")
    processes[0].join()
    print("box: the line is closed")
    desk.close()
    processes[1].join()
    print([process.exitcode for process in processes], shelf.closed, box.readable)


if __name__ == "__main__":
    main()
