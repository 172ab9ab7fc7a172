"""What a benchmark tells: versions, tables, the page beside it."""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rig.daemon import ROOT
from rig.rounds import Cell

README = ROOT / "benchmarks/README.md"


def python() -> str:
    """The Python that runs warmproxy: .venv's, or this one."""
    installed = ROOT / ".venv/bin/python"
    return str(installed) if installed.exists() else sys.executable


def versions(python: str) -> dict[str, str]:
    """What was measured; `tree` is the commit, with '+' when the tree differed from it."""
    script = (
        "import importlib.metadata as m, platform, ssl, warmproxy as w;"
        "print(getattr(w, '__version__', '?'), platform.python_version(), m.version('uvloop'),"
        "ssl.OPENSSL_VERSION.split()[1])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment)
    answered = asked.stdout.split()
    told = dict(zip(("warmproxy", "Python", "uvloop", "OpenSSL"), answered, strict=False))

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except FileNotFoundError:
            return ""

    if commit := git("rev-parse", "--short", "HEAD"):
        changed = git("status", "--porcelain", "--", "warmproxy")
        told["tree"] = commit + ("+" if changed else "")
    told["Linux"] = ".".join(platform.release().split(".")[:2])
    told["cores"] = str(os.cpu_count())
    return told


def command(script: str, python: str = "python3") -> str:
    """What was called; which files and which Python it was given is nobody's business."""
    told = re.sub(r" --(json|latency|plot|python)[ =]\S+", "", " " + shlex.join(sys.argv[1:]))
    return f"{python} benchmarks/{script}{told}".rstrip()


def table(heads: Sequence[str], words: int, rows: Iterable[Sequence[object]]) -> str:
    """The first `words` columns and the last hold words, the others numbers."""
    numbers = len(heads) - words - 1
    rule = "|" + "---|" * words + "--:|" * numbers + "---|"
    lines = ["| " + " | ".join(heads) + " |", rule]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def numbers(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of a name and nothing but numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def times(*values: float | None) -> list[str]:
    return ["none" if value is None else f"{value:.3f}" for value in values]


def verdict(cell: Cell, passes: bool) -> str:
    said = "met" if passes else "**missed**"
    if cell.disturbed_used:
        said += " (disturbed)"
    return said + (f", {len(cell.errors)} failed" if cell.errors else "")


def write_json(target: str, everything: object) -> None:
    """To a file, - for stdout. Bodies of answers are left out."""
    written = json.dumps(everything, indent=1, default=lambda body: None)
    if target == "-":
        print(written)
    else:
        Path(target).write_text(written + "\n")


def deliver(name: str, text: str, everything: object, options: argparse.Namespace) -> None:
    """To --json, to standard output unless that has it, and to the README if it is to be there."""
    if options.json:
        write_json(options.json, everything)
    if options.json != "-":
        print(text)
    if options.writes_readme:
        write_readme(name, text)


def write_readme(name: str, text: str) -> None:
    write_page(README, name, text)


def write_page(page: Path, name: str, text: str) -> None:
    """Between the page's markers with this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text() if page.exists() else ""
    if begin not in old or end not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
