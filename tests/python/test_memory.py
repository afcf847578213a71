"""The memory of a control group is used up: that is a MemoryError, and nobody is killed."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

LIMIT = 300 << 20

PRODUCERS = """
    import sys
    import polyproc as mp

    def produce(queue, start, size):
        data = b"x" * size
        start.wait()
        try:
            while True:
                queue.put(data)
        except MemoryError:
            sys.exit(7)

    if __name__ == "__main__":
        ctx = mp.get_context("fork")
        queue, start = ctx.Queue(), ctx.Event()
        count, size = int(sys.argv[1]), int(sys.argv[2])
        processes = [ctx.Process(target=produce, args=(queue, start, size)) for _ in range(count)]
        for p in processes:
            p.start()
        start.set()
        for p in processes:
            p.join(60)
        print([p.exitcode for p in processes])
        assert len(queue.get()) == size
"""

POOL = """
    import sys
    import polyproc as mp

    def result(size):
        return bytearray(size)

    if __name__ == "__main__":
        with mp.get_context("fork").Pool(3) as pool:
            pids = {p.pid for p in pool._pool}
            ends = []
            for _ in range(20):
                try:
                    ends.append(len(pool.apply(result, (40 << 20,))))
                except MemoryError:
                    ends.append("MemoryError")
            assert set(ends) <= {40 << 20, "MemoryError"}, ends
            assert {p.pid for p in pool._pool} == pids
        print("well")
"""


@pytest.fixture
def group():
    """A control group with a limit on memory: its directory."""
    for root, limit in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]:
        path = f"{root}/polyproc-pytest-{os.getpid()}"
        try:
            os.mkdir(path)
        except OSError:
            continue
        try:
            with open(f"{path}/{limit}", "w") as f:
                f.write(str(LIMIT))
        except OSError:
            os.rmdir(path)
            continue
        break
    else:
        pytest.skip("no control group for memory can be made")
    yield path
    deadline = time.monotonic() + 10
    while True:
        try:
            return os.rmdir(path)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def run_in(group, tmp_path, program, *args):
    """Runs a program in the group; what it has printed."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    enter = f"echo $$ > {group}/cgroup.procs; exec \"$@\""
    done = subprocess.run(
        ["/bin/sh", "-c", enter, "sh", sys.executable, str(file), *map(str, args)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    kills = 0
    for name in ["memory.oom_control", "memory.events"]:
        if os.path.exists(f"{group}/{name}"):
            with open(f"{group}/{name}") as f:
                kills += sum(int(line.split()[1]) for line in f if line.startswith("oom_kill "))
    assert kills == 0, done
    assert done.returncode == 0, done
    return done.stdout.strip()


@pytest.mark.parametrize(("count", "size"), [(1, 200), (1, 30_000), (4, 30_000), (4, 1_000_000)])
def test_full_group_is_a_memory_error(group, tmp_path, count, size):
    assert run_in(group, tmp_path, PRODUCERS, count, size) == str([7] * count)


def test_results_in_a_full_group(group, tmp_path):
    assert run_in(group, tmp_path, POOL) == "well"
