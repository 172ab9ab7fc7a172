"""Mutation testing of what decides over framing, headers and retries: about five minutes.

    .venv/bin/pip install 'mutmut>=3.8,<4'
    .venv/bin/python tests/mutation.py

mutmut changes one operator, constant or call at a time in a copy of the tree and runs the unit
tests against it, but not those of Hypothesis: what they find is left to chance, and on a busy
machine they fail for being slow. Exits with 1 where the tests pass with a change that
mutation.toml has no reason for. An endless loop that runs into mutmut's time limit counts as
noticed. No part of the normal run.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
[tool.mutmut]
source_paths = ["warmproxy"]
only_mutate = [
    "warmproxy/protocol/framing.py",
    "warmproxy/protocol/headers.py",
    "warmproxy/policy/retry.py",
]
pytest_add_cli_args_test_selection = [
    "tests/protocol/test_framing.py",
    "tests/protocol/test_headers.py",
    "tests/protocol/test_exchange.py",
    "tests/policy/test_policy.py",
]
pytest_add_cli_args = ["-m", "not hypothesis", "--timeout", "0"]
"""
NOTICED = ("killed", "timeout")

Key = tuple[str, str, str]
"""Function, what was removed, what was added; white space does not matter."""


def words(text: str) -> str:
    return " ".join(text.split())


def key_of(name: str, shown: str) -> Key:
    """`name` as mutmut has it, `shown` its diff: independent of line and mutant numbers."""
    module, _, function = name.rpartition("__mutmut_")[0].rpartition(".")
    function = re.sub("^x_|^xǁ", "", function).replace("ǁ", ".")
    changed = [line for line in shown.splitlines() if not line.startswith(("+++", "---"))]
    removed, added = (
        words(" ".join(line[1:] for line in changed if line.startswith(sign))) for sign in "-+"
    )
    return f"{module}.{function}", removed, added


def reasons() -> dict[Key, str]:
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    return {
        (m["function"], words(m["was"]), words(m["mutant"])): m["reason"]
        for m in listed.get("survivor", [])
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--children", default="2", help="mutants that are tested at a time (%(default)s)"
    )
    children = parser.parse_args().children
    known = reasons()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder)
        for part in ("warmproxy", "tests"):
            shutil.copytree(
                ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "e2e")
            )
        shutil.copy(ROOT / "README.md", tree)
        (tree / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + CONFIG)

        def mutmut(*args: str) -> str:
            run = subprocess.run(
                [sys.executable, "-m", "mutmut", *args],
                cwd=tree,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if run.returncode:
                sys.exit(run.stdout[-5000:])
            return run.stdout

        mutmut("run", "--max-children", children)
        verdicts = dict(
            line.strip().rsplit(": ", 1)
            for line in mutmut("results", "--all", "true").splitlines()
            if "__mutmut_" in line
        )
        found: dict[Key, str] = {}
        unexplained = 0
        for name, verdict in verdicts.items():
            if verdict in NOTICED:
                continue
            shown = mutmut("show", name)
            key = key_of(name, shown)
            found[key] = verdict
            if key not in known:
                unexplained += 1
                print(f"{shown}\n")

    for function, _, mutant in known.keys() - found.keys():
        print(f"mutation.toml: did not survive, may go: {function}: {mutant}")
    counts = Counter(verdicts.values())
    survived = sum(count for verdict, count in counts.items() if verdict not in NOTICED)
    print(
        f"{len(verdicts)} mutants: {len(verdicts) - survived} noticed"
        f" ({counts['timeout']} by the time limit), {survived - unexplained} survived with a"
        f" reason, {unexplained} without"
    )
    return 1 if unexplained or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
