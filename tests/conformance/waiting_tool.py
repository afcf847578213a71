#!/usr/bin/env python3
"""What of CPython's tests does not pass yet, and what it waits for: from the results of run_cpython_suite --lenient --json.

    waiting_tool.py RESULT.json ... > waiting.md
    waiting_tool.py --brief RESULT.json ...     in a few lines

Exit 1: some test fails for a reason that is not known here: that is a bug of ours, or a reason to be added below.
"""

import json
import re
import sys

# A test's reason is the first of these whose pattern is found in the last line of its error.
MISSING = [
    (r"polyproc has no (\w+) yet: it comes with release (\S+)", r"\1 (release \2)"),
    (r"module 'polyproc.resource_tracker' has no attribute", r"resource_tracker: names in shared memory (release 0.4)"),
    (r"requires multiprocessing.shared_memory", r"shared_memory (release 0.4)"),
    (r"(requires|needs) (multiprocessing\.)?sharedctypes", r"sharedctypes (release 0.4)"),
]
# Tests whose error does not say it, by pattern of Class.test.
KNOWN = [
    (r"(With\w+TestManagerRestart|TestSyncManagerTypes)\.", r"missing from the module", "Manager (release 0.5)"),
    (r"WithManagerTest", r"is missing from the module under test", "managers (release 0.5)"),
    (r"TestNamedResource\.", r"", "Value (release 0.4), in a child process"),
    (
        r"With(Processes|Manager)TestQueue\.test_queue_feeder_donot_stop_onexc",
        r"AttributeError",
        "refused: it wants put() of what cannot be pickled not to raise; this package's put() raises there",
    ),
    (
        r"TestIgnoreEINTR\.test_ignore$",
        r"ProcessLookupError",
        "a race: it takes for granted that a child that sends 16 MiB waits for the receiver; here it may have ended, and been collected",
    ),
    (
        r"TestPoolNotLeakOnFailure\.",
        r"OSError not raised",
        "refused: it replaces context.Process by a mock that fails; workers of this package's pools are not made of Process objects",
    ),
]


def reason(name, words):
    lines = [line for line in words.strip().splitlines() if line.strip("- ")]
    last = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Skip|Exception)\b|requires|needs", line.strip())), "")
    for pattern, text in MISSING:
        found = re.search(pattern, last or words)
        if found:
            return found.expand(text)
    for test, pattern, text in KNOWN:
        if re.match(test, name) and re.search(pattern, words):
            return text
    return None


def say_briefly(runs, waiting, unexplained):
    """What passed, how many tests of which classes wait for what, and what fails."""
    for (suite, run), (passed, ran, skipped) in sorted(runs.items()):
        print(f"{suite} {run}: {passed} of {ran} passed, {skipped} skipped")
    causes = {}
    for cls, whys in waiting.items():
        for why, methods in whys.items():
            causes.setdefault(why, {})[cls] = sum(map(len, methods.values()))
    for why, classes in sorted(causes.items()):
        names = ", ".join(f"{cls} {count}" for cls, count in sorted(classes.items()))
        print(f"{sum(classes.values())} wait for {why}: {names}")
    print(f"{len(unexplained)} fail" + ":" * bool(unexplained))
    for line in unexplained:
        print(f"  {line}")


def main():
    runs = {}
    waiting = {}
    unexplained = []
    paths = sys.argv[1:]
    brief = "--brief" in paths
    if brief:
        paths.remove("--brief")
    for path in paths:
        with open(path) as file:
            result = json.load(file)
        meta = result["meta"]
        run = f"{meta['python']} {meta['method']}"
        total = meta["total"]
        runs.setdefault((meta["suite"], run), (total["passed"], total["ran"], total["skipped"]))
        for name, test in result["tests"].items():
            if test["internal"] or test["outcome"] in ("passed", "skipped"):
                continue
            why = reason(name, test["detail"] or "")
            if why is None:
                unexplained.append(f"{run}: {name}: {test['outcome']}")
                continue
            cls, _, method = name.partition(".")
            waiting.setdefault(cls, {}).setdefault(why, {}).setdefault(method, set()).add(run)
    if brief:
        say_briefly(runs, waiting, unexplained)
        return 1 if unexplained else 0
    print("# What waits for what comes later\n")
    print("Made by `waiting_tool.py` from runs of `run_cpython_suite --lenient`. Tests that skip themselves with the standard")
    print("library too are not counted as waiting.\n")
    print("| suite | run | passed | of | skipped |\n|---|---|---|---|---|")
    for (suite, run), (passed, ran, skipped) in sorted(runs.items()):
        print(f"| {suite} | {run} | {passed} | {ran} | {skipped} |")
    print(f"\n{len(unexplained)} tests fail for other reasons.\n")
    for line in unexplained:
        print(f"- {line}")
    core = {run for suite, run in runs if suite == "core"}
    for cls in sorted(waiting):
        print(f"\n## {cls}\n")
        for why in sorted(waiting[cls]):
            methods = []
            for method, seen in sorted(waiting[cls][why].items()):
                methods.append(method if seen == core else f"{method} ({', '.join(sorted(seen))})")
            print(f"- {why}: {', '.join(methods)}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
