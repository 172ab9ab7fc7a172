"""How many instructions does the hot path take? A check that other work on the machine cannot move.

    .venv/bin/python benchmarks/instructions.py            # some 20 seconds; compares
    .venv/bin/python benchmarks/instructions.py --update   # writes instructions.json

What runs for every request (field/hot.py) is run under valgrind's instruction counter, in a process
of its own for N calls and in another for 2 N: the difference is that of N calls, without start-up
and warm-up. `instructions.json` holds the counts by version of Python, with those of a yardstick
that has nothing of ours in it: another version, or another build of one, makes other instructions,
and is not compared with.

Exit status 0: no count rose by more than the tolerance, or there was nothing to compare with;
1: one did; 2: it could not be counted.
"""

import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rig import report

NAME = "instructions.py"
FILE = Path(__file__).with_suffix(".json")
CALLS = 1500
TOLERANCE = 0.05
"""More than this above the committed count is a regression. Runs differ by some 0.2 %."""

YARDSTICK = "yardstick"
BUILD_TOLERANCE = 0.02

Counts = dict[str, int]


def build() -> str:
    """The Python that counts; builds of one version differ all the same, see `is_same_build`."""
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{version}, {platform.python_compiler()}, {platform.machine()}"


def is_same_build(before: Counts, now: Counts) -> bool:
    """By what is not ours: the same code, so the same count, unless Python was built otherwise."""
    return abs(now[YARDSTICK] / before[YARDSTICK] - 1) <= BUILD_TOLERANCE


def parse(told: str) -> dict[str, tuple[int, int]]:
    """From what was printed by `inside` and by valgrind: name -> instructions with N, with 2 N."""
    refs = {
        int(pid): int(number.replace(",", ""))
        for pid, number in re.findall(r"==(\d+)== I +refs: +([\d,]+)", told)
    }
    counted: dict[str, tuple[int, int]] = {}
    for name, once, twice in re.findall(r"^counted (.+): (\d+) (\d+)$", told, re.MULTILINE):
        counted[name] = refs[int(once)], refs[int(twice)]
    return counted


def inside() -> None:
    """Under valgrind, which counts each process from the common start to its own end."""
    from field.hot import HOT

    gc.disable()
    for name, make in HOT.items():
        children = []
        for calls in (CALLS, 2 * CALLS):
            if not (child := os.fork()):
                step = make()
                for _ in range(calls):
                    step()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status:
                sys.exit(f"{name} fails")
            children.append(child)
        print(f"counted {name}: {children[0]} {children[1]}", flush=True)


def count() -> Counts:
    """Instructions of one call. Raises SystemExit, with what went wrong."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print(f"{NAME}: valgrind is not installed: nothing is counted", file=sys.stderr)
        sys.exit(2)
    command = [valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, __file__, "--inside"]
    # hashes, and so what collides, are the same in each run
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LD_LIBRARY_PATH")}
    asked = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**kept, "PYTHONHASHSEED": "0"},
    )
    if asked.returncode:
        print(f"{NAME}: it cannot be counted:\n{asked.stdout[-2000:]}", file=sys.stderr)
        sys.exit(2)
    return {name: (b - a) // CALLS for name, (a, b) in parse(asked.stdout).items()}


def compare(before: Counts, now: Counts) -> tuple[list[list[str]], list[str]]:
    """Rows for a table, and the names of those that rose too much."""
    rows, risen = [], []
    for name, found in now.items():
        if name not in before:
            rows.append([name, "-", f"{found:,}", "", "new: --update"])
            continue
        change = found / before[name] - 1
        worse = change > TOLERANCE
        if worse:
            risen.append(name)
        verdict = "**rose**" if worse else "fell: --update" if change < -TOLERANCE else "same"
        rows.append([name, f"{before[name]:,}", f"{found:,}", f"{change:+.1%}", verdict])
    return rows, risen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="keep what is counted now")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside()
        return 0
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    python = build()
    if python not in kept and not options.update:
        print(f"{FILE.name} has no counts for {python}: nothing to compare with (--update)")
        return 0
    now = count()
    before = kept.get(python, {})
    if before and not options.update and not is_same_build(before, now):
        print(f"{FILE.name} has counts of another build of {python}: nothing to compare with")
        return 0
    rows, risen = compare(before, now)
    print(f"Instructions of one call; {python}\n")
    print(report.table(["what", "before", "now", "change", "verdict"], 1, rows))
    if options.update:
        FILE.write_text(json.dumps({**kept, python: now}, indent=1, sort_keys=True) + "\n")
        return 0
    if risen:
        print(
            f"\nmore than {TOLERANCE:.0%} above {FILE.name}: {', '.join(risen)}."
            " If it is worth it, keep the new counts with --update, and say why.",
            file=sys.stderr,
        )
    return int(bool(risen))


if __name__ == "__main__":
    sys.exit(main())
