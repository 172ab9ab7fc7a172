"""The long run: python -m tests.chaos --requests 100000 --seed 1 [2 3]; exit 1 on a violation."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.rig import run


def main() -> int:
    """Run each seed and print what it showed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="a folder for the books and logs")
    options = parser.parse_args()
    failed = False
    for seed in options.seed:
        with tempfile.TemporaryDirectory(prefix="chaos-") as made:
            home = Path(made)
            if options.keep:
                home = options.keep / str(seed)
                home.mkdir(parents=True)
            timeout = 60 + options.requests / 100
            result = run(home, seed, options.requests, workers=options.workers, timeout=timeout)
        print(result, flush=True)
        failed |= bool(result.violations)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
