"""Every fenced shell command of README.md and docs/ does what its page says, or is marked as not
run: see documented.py for the marks."""

import re
import sys

import pytest

from tests.documented import NAME, PAGES, SECOND, SHELL, Fence, fences, pattern
from tests.e2e.harness import ROOT, run_in_own_network

MARKS = {"not run", "keeps running", "beside", "file"}
FOUND = {
    str(page.relative_to(ROOT)): list(fences(page.read_text(encoding="utf-8"))) for page in PAGES
}
RUN = [
    name
    for name, found in FOUND.items()
    if any(fence.kind in SHELL and "not run" not in fence.marks for fence in found)
]


@pytest.mark.parametrize("name", RUN)
def test_a_page_does_what_it_says(name: str) -> None:
    """Its commands, in order, each end with 0 and print what is shown."""
    here = [sys.executable, "-m", "tests.documented", str(ROOT / name)]
    ran = run_in_own_network(["timeout", "50", *here])
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", [name for name, found in FOUND.items() if found])
def test_each_fence_is_marked_right(name: str) -> None:
    """A block is of a known kind (a bare one is no command), and a command that is not run says
    why."""
    kinds = {*SHELL, "toml", "python", "js", "promql", "http", "text", ""}
    for fence in FOUND[name]:
        where = f"{name}:{fence.line}"
        assert fence.kind in kinds, where
        if fence.kind in SHELL:
            assert len(fence.marks.get("not run", "it is run")) > 5, where
            assert fence.steps, where
            assert all(command.strip() for command, _ in fence.steps), where
        if set(fence.marks) & MARKS == {"file"}:
            assert fence.kind == "toml", where
        if fence.kind in ("", "text"):
            assert not re.search(r"^\$ ", fence.text, re.MULTILINE), f"{where}: a console"


def test_commands_ask_nobody_else() -> None:
    """A URL in a command is of loopback or of a server that the test has."""
    for name, found in FOUND.items():
        for fence in found:
            if fence.kind not in SHELL or "not run" in fence.marks:
                continue
            for command, _ in fence.steps:
                hosts = set(re.findall(r"https?://(?:[^/@\s]*@)?([\w.-]+)", command))
                known = {NAME, SECOND, "127.0.0.1", "localhost"}
                assert hosts <= known, f"{name}:{fence.line}"


PAGE = """
```sh
one
two
```

<!-- not run: a reason -->
```console
$ three
said
$ four
```
"""


def test_fences_are_found_with_their_marks() -> None:
    assert list(fences(PAGE)) == [
        Fence(2, "sh", "one\ntwo\n", {}),
        Fence(8, "console", "$ three\nsaid\n$ four\n", {"not run": "a reason"}),
    ]
    assert list(fences(PAGE))[1].steps == [("three", "said\n"), ("four", "")]


@pytest.mark.parametrize(
    ("shown", "said", "same"),
    [
        ("10:21:56 info  ready of=4\n", "23:59:01 info ready of=4\n", True),
        ("4 of 4 warm\n", "3 of 4 warm\n", False),
        ("on 127.0.0.1:3128\n", "on 127.0.0.1:3128\n", True),
        ("on 127.0.0.1:3128\n", "on 127.0.1.1:3128\n", False),
        ("version 0.1.0\n", "version 12.3.4\n", True),
        ("saved 0.003, 1.69 s old\n", "saved 0.1, 2 ms old\n", True),
        ("saved 0.003\n", "saved much\n", False),
        ("{\n ...\n}\n", "{\n 1\n 2\n}\n", True),
        ("a ... c\n", "a b c\n", True),
    ],
)
def test_output_is_like_what_is_shown(shown: str, said: str, same: bool) -> None:
    """Counts and addresses are the same, times and versions are of their kind."""
    assert bool(re.fullmatch(pattern(shown), said)) is same
