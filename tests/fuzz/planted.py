"""Bugs on purpose, to see that the fuzzing would find them.

    python tests/fuzz/planted.py [--seconds 60] [--engine plain|atheris]

Each is put into a copy of the package, and fuzz.py runs against that copy, without the corpus:
what is found is found by what the fuzzer makes up. First it runs against a copy without a bug,
where it must find nothing. The exit status is 0 where every bug was found in time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz.py")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bug:
    """`old`, which `module` has exactly once, becomes `new`."""

    what: str
    target: str
    module: str
    old: str
    new: str


BUGS = (
    Bug(
        "white space before a colon is accepted in requests",
        "heads",
        "protocol/heads.py",
        '_FIELD = rb"%b++:[ ]?+',
        '_FIELD = rb"%b++[ ]?+:[ ]?+',
    ),
    Bug(
        "lines may end in LF alone",
        "heads",
        "protocol/heads.py",
        'lines = block.split(b"\\r\\n")\n    if len(lines) < 3',
        'lines = block.replace(b"\\r\\n", b"\\n").split(b"\\n")\n    if len(lines) < 3',
    ),
    Bug(
        "obs-fold is accepted",
        "heads",
        "protocol/heads.py",
        "        field = FIELD_LINE.fullmatch(line)\n        if field is None:\n",
        "        field = FIELD_LINE.fullmatch(line)\n"
        '        if line[0] in b" \\t" and fields:\n'
        "            name, value = fields[-1]\n"
        '            fields[-1] = (name, value + b" " + line.strip(b" \\t"))\n'
        "            continue\n"
        "        if field is None:\n",
    ),
    Bug(
        "the end of a head is missed where reads cut it",
        "heads",
        "protocol/heads.py",
        "self._scanned = max(0, len(buffer) - 2)",
        "self._scanned = len(buffer)",
    ),
    Bug(
        "NUL is accepted in values",
        "heads",
        "protocol/framing.py",
        'VALUE = rb"[\\t -~',
        'VALUE = rb"[\\0\\t -~',
    ),
    Bug(
        "Transfer-Encoding is accepted beside Content-Length: 0",
        "heads",
        "protocol/headers.py",
        "    if length is not None:\n"
        '        raise BadRequest("Transfer-Encoding and Content-Length in one request")',
        '    if length is not None and length != b"0":\n'
        '        raise BadRequest("Transfer-Encoding and Content-Length in one request")',
    ),
    Bug(
        "of two Content-Length the last one wins",
        "heads",
        "protocol/headers.py",
        '                raise BadRequest("more than one Content-Length")',
        "                pass",
    ),
    Bug(
        "of two Hosts the last one wins",
        "heads",
        "protocol/headers.py",
        '                raise BadRequest("more than one Host")',
        "                pass",
    ),
    Bug(
        "what Connection names is compared with its case",
        "heads",
        "protocol/headers.py",
        "return frozenset(_list(value.lower()))",
        "return frozenset(_list(value))",
    ),
    Bug(
        "a body is a byte too long",
        "framing",
        "protocol/framing.py",
        "        if size < left:\n",
        "        if size <= left:\n",
    ),
    Bug(
        "chunk sizes overflow at 32 bits",
        "framing",
        "protocol/framing.py",
        "self._left = int(line[1], 16)",
        "self._left = int(line[1], 16) & 0xFFFFFFFF",
    ),
    Bug(
        "white space is accepted behind a chunk size",
        "framing",
        "protocol/framing.py",
        '{1,16}+)(?:%b)*\\r\\n"',
        '{1,16}+)(?:%b)*[ \\t]*+\\r\\n"',
    ),
    Bug(
        "trailers that Connection names are passed on",
        "framing",
        "protocol/framing.py",
        "lower not in NEVER_TRAILERS and lower not in self._drop",
        "lower not in NEVER_TRAILERS",
    ),
    Bug(
        "fragments are forwarded",
        "target",
        "protocol/target.py",
        '(/[!\\"$-~]*+)"\n',
        '(/[!-~]*+)"\n',
    ),
    Bug(
        "port 0 is accepted",
        "target",
        "protocol/target.py",
        "not 0 < port < 65536",
        "not 0 <= port < 65536",
    ),
    Bug(
        "passwords are shown",
        "settings",
        "settings.py",
        """    text = re.sub(r"//\\S*@", "//***@", text)\n    return""",
        "    return text\n    return",
    ),
    Bug(
        "requests are sent again after a part of an answer",
        "exchange",
        "policy/retry.py",
        " and not answered",
        "",
    ),
    Bug(
        "connections with bytes left over are used again",
        "exchange",
        "protocol/exchange.py",
        "reusable=response.reusable and not rest",
        "reusable=response.reusable",
    ),
    Bug(
        "a cut response looks whole to HTTP/1.0",
        "exchange",
        "protocol/exchange.py",
        'self._response.chunked and self._request.version == b"1.0"',
        "False",
    ),
)


def package() -> Path:
    """The package under test: what PYTHONPATH names goes first, as in fuzz.py."""
    places = [Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    return next(p / "warmproxy" for p in (*places, ROOT) if (p / "warmproxy").is_dir())


def plant(bug: Bug, copy: Path) -> None:
    """Raises ValueError where the text to change is not there once."""
    path = copy / bug.module
    text = path.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.module} has {text.count(bug.old)} times {bug.old!r}")
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def fuzzed(bug: Bug | None, target: str, seconds: float, engine: str | None) -> tuple[str, float]:
    """What fuzz.py says about the package with the bug, "" for nothing, and in how many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "warmproxy")
        shutil.copytree(package(), copy, ignore=shutil.ignore_patterns("__pycache__"))
        if bug is not None:
            plant(bug, copy)
        command = [sys.executable, str(FUZZ), "--target", target, "--no-corpus"]
        command += ["--seconds", str(seconds)] + (["--engine", engine] if engine else [])
        begun = time.monotonic()
        environ = {**os.environ, "PYTHONPATH": folder}
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace"
        )
        took = time.monotonic() - begun
    if done.returncode == 0:
        return "", took
    found = [line for line in done.stdout.splitlines() if line.startswith(f"{target}: input ")]
    return (found[0] if found else done.stdout + done.stderr), took


def main() -> int:
    parser = argparse.ArgumentParser(description="Does the fuzzing find planted bugs?")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each bug at most")
    parser.add_argument("--engine", choices=("plain", "atheris"))
    args = parser.parse_args()
    good = True
    for target in dict.fromkeys(bug.target for bug in BUGS):
        found, took = fuzzed(None, target, min(args.seconds, 10.0), args.engine)
        print(f"{'FAILED ' if found else 'nothing'} {took:5.1f} s  {target} without a bug {found}")
        good = good and not found
    missed = 0
    for bug in BUGS:
        found, took = fuzzed(bug, bug.target, args.seconds, args.engine)
        missed += not found
        word = "found  " if found else "MISSED "
        print(f"{word} {took:5.1f} s  {bug.what}: {found[:120]}", flush=True)
    print(f"{len(BUGS) - missed} of {len(BUGS)} planted bugs found")
    return 0 if good and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
