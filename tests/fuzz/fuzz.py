"""Long fuzzing, by hand; the tests run the same checks for a few seconds.

    python tests/fuzz/fuzz.py --seconds 600 --target heads|framing|target|settings|exchange|all

Each input goes through a check of properties.py. Inputs are grown and changed by grow.py, which
knows what the text is made of, and begin with the corpus in tests/protocol/corpus. Two engines
drive it:

* atheris (libFuzzer) keeps what reaches new code and changes it further, by its own mutations
  with grow.py's words as a dictionary, and by grow.py's. It is not among the project's
  dependencies: its wheels are large and few. In an environment of its own:

      python3 -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris httptools -e .
      /tmp/fuzz/bin/python tests/fuzz/fuzz.py --seconds 600

* plain, without coverage, wherever atheris is missing, or with --engine plain.

The exit status is 0 where nothing was found; else the input is printed. An input that takes more
than 10 seconds counts as a hang. The last line is JSON: how many inputs, how long.
"""

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from random import Random

# behind what PYTHONPATH names, so that another copy of the package can be put under test
sys.path.append(str(Path(__file__).parents[2]))

try:
    import atheris
except ImportError:
    atheris = None

HANG_SECONDS = 10
MAX_INPUT = {"heads": 1500, "framing": 700, "target": 400, "settings": 700, "exchange": 2000}
"""Bytes of an input; the corpus has the longer ones, which only take time here."""


def load(instrument: bool) -> None:
    """The package and the checks, the former instrumented where coverage is wanted."""
    global CHECKS, dictionary, grown, mutated, seeds
    if instrument:
        with atheris.instrument_imports(include=["warmproxy"]):
            import warmproxy.loading
            import warmproxy.protocol.exchange  # noqa: F401
    from tests.fuzz.grow import dictionary, grown, mutated, seeds
    from tests.fuzz.properties import CHECKS


class Found(Exception):
    """An input that a check does not like."""


def run_plain(target: str, seconds: float, seed: int, with_corpus: bool) -> int:
    """How many inputs were fine. Raises Found."""
    random = Random(seed)
    check = CHECKS[target]
    waiting = seeds(target)[::-1] if with_corpus else []
    kept = seeds(target)[:50] if not with_corpus else list(waiting)
    count = 0
    until = time.monotonic() + seconds
    faulthandler.dump_traceback_later(seconds + HANG_SECONDS, exit=True)
    while count % 64 or time.monotonic() < until:
        if waiting:
            data = waiting.pop()
        elif random.random() < 0.2:
            data = mutated(random, random.choice(kept))
        else:
            data = grown(random, target)
        try:
            check(data)
        except Exception as error:
            raise Found(report(target, data, error, count)) from error
        count += 1
    faulthandler.cancel_dump_traceback_later()
    return count


def report(target: str, data: bytes, error: Exception, count: int) -> str:
    what = f"{type(error).__name__}: {error}"
    return f"{target}: input {count + 1}: {what}\n{data!r}"


def run_atheris(target: str, seconds: float, seed: int, with_corpus: bool) -> None:
    """Does not return: libFuzzer ends the process."""
    check = CHECKS[target]
    count = 0
    begun = time.monotonic()

    def one(data: bytes) -> None:
        nonlocal count
        try:
            check(data)
        except Exception as error:
            print(report(target, data, error, count), flush=True)
            raise
        count += 1
        if count % 1024 == 0 and time.monotonic() - begun >= seconds:
            print(f"INPUTS {count}", flush=True)
            os._exit(0)  # libFuzzer's own way out prints what it likes

    def change(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        chance = random.random()
        if chance < 0.4:
            out = atheris.Mutate(data, most)
        elif chance < 0.7:
            out = mutated(random, data)
        else:
            out = grown(random, target)
        return out[:most]

    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs")
        inputs.mkdir()
        for data in seeds(target) if with_corpus else seeds(target)[:50]:
            inputs.joinpath(f"{zlib.crc32(data):08x}").write_bytes(data)
        words = Path(folder, "words")
        words.write_text("".join(map(_quoted, dictionary())))
        atheris.Setup(
            [
                sys.argv[0],
                f"-seed={seed}",
                f"-max_len={MAX_INPUT[target]}",
                f"-dict={words}",
                f"-timeout={HANG_SECONDS}",
                "-rss_limit_mb=4096",
                f"-artifact_prefix={folder}/",
                "-verbosity=0",
                "-print_final_stats=0",
                str(inputs),
            ],
            one,
            custom_mutator=change,
        )
        atheris.Fuzz()


def _quoted(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def main() -> int:
    parser = argparse.ArgumentParser(description="Long fuzzing of what reads bytes.")
    names = ("heads", "framing", "target", "settings", "exchange")
    parser.add_argument("--target", choices=(*names, "all"), default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    engines = ("atheris", "plain")
    engine = engines[atheris is None]
    parser.add_argument("--engine", choices=engines, default=engine)
    parser.add_argument("--no-corpus", action="store_true", help="begin with grown inputs only")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine == "atheris" and atheris is None:
        parser.error("atheris is not installed; see the top of this file")

    load(args.engine == "atheris" and args.one)
    if args.one:
        run_atheris(args.target, args.seconds, args.seed, not args.no_corpus)
    totals: dict[str, int] = {}
    begun = time.monotonic()
    for target in names if args.target == "all" else (args.target,):
        started = time.monotonic()
        if args.engine == "plain":
            try:
                totals[target] = run_plain(target, args.seconds, args.seed, not args.no_corpus)
            except Found as found:
                print(found)
                return 1
        else:
            # libFuzzer owns its process, so each target gets one
            command = [sys.executable, __file__, "--one", "--target", target]
            command += ["--seconds", str(args.seconds), "--seed", str(args.seed)]
            command += ["--no-corpus"] * args.no_corpus
            done = subprocess.run(command, capture_output=True)
            out = done.stdout.decode("utf-8", "replace")
            counted = [line for line in out.splitlines() if line.startswith("INPUTS ")]
            if done.returncode or not counted:
                print(out + done.stderr.decode("utf-8", "replace")[-3000:])
                return 1
            totals[target] = int(counted[-1].split()[1])
        took = time.monotonic() - started
        rate = totals[target] / took
        print(
            f"{target}: {totals[target]:,} inputs, {took:.0f} s, {rate:,.0f} a second", flush=True
        )
    seconds = round(time.monotonic() - begun)
    result = {"engine": args.engine, "inputs": totals, "total": sum(totals.values())}
    print(json.dumps({**result, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
