"""TOML with its lines: tomllib does not say where a value was, nor in our words what is wrong."""

import re
import tomllib
from collections.abc import Iterable
from typing import Any

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:""?)?'  # up to two quotes may stand before the closing three
    r"|'''.*?'''(?:''?)?"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)


class _Locator:
    """Walks over TOML that tomllib has accepted, so it need not judge, only keep count."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.last_index: dict[Path, int] = {}  # of each array of tables

    def walk(self) -> None:
        table: Path = ()
        while self.see(_BLANK):
            if self.text.startswith("[[", self.at):
                table = self.header(2)
            elif self.text.startswith("[", self.at):
                table = self.header(1)
            else:
                self.pair(table)

    def see(self, pattern: re.Pattern[str]) -> bool:
        """Step over what matches; False at the end of the text."""
        self.take(pattern)
        return self.at < len(self.text)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None, f"line {self.line}"
        self.line += match[0].count("\n")
        self.at = match.end()
        return match[0]

    def step(self, wanted: str) -> bool:
        if not self.text.startswith(wanted, self.at):
            return False
        self.at += len(wanted)
        return True

    def header(self, brackets: int) -> Path:
        self.at += brackets
        line = self.line
        *parents, name = self.key()
        self.at += brackets
        path = (*self.descend((), parents, line), name)
        if brackets == 1:
            self.lines[path] = line
            return path
        self.lines.setdefault(path, line)
        index = self.last_index[path] = self.last_index.get(path, -1) + 1
        self.lines[*path, index] = line
        return (*path, index)

    def descend(self, path: Path, names: Iterable[str], line: int) -> Path:
        """Follow names from a table; where one is an array of tables, its last one is meant."""
        for name in names:
            path = (*path, name)
            self.lines.setdefault(path, line)
            if path in self.last_index:
                path = (*path, self.last_index[path])
        return path

    def key(self) -> list[str]:
        names = []
        while True:
            self.take(_SPACE)
            if self.text[self.at] in "\"'":
                quoted = self.take(_STRING)
                names.append(tomllib.loads(f"key = {quoted}")["key"])
            else:
                names.append(self.take(_BARE_KEY))
            self.take(_SPACE)
            if not self.step("."):
                return names

    def pair(self, table: Path) -> None:
        line = self.line
        *parents, name = self.key()
        self.step("=")
        self.take(_SPACE)
        path = (*self.descend(table, parents, line), name)
        self.lines[path] = line
        self.value(path)

    def value(self, path: Path) -> None:
        if self.step("["):
            index = 0
            while self.see(_BLANK) and not self.step("]"):
                self.lines[*path, index] = self.line
                self.value((*path, index))
                self.take(_BLANK)
                self.step(",")
                index += 1
        elif self.step("{"):
            while self.see(_BLANK) and not self.step("}"):
                self.pair(path)
                self.take(_BLANK)
                self.step(",")
        elif self.text[self.at] in "\"'":
            self.take(_STRING)
        else:
            self.take(_SCALAR)


def locate(text: str) -> dict[Path, int]:
    """The line, from 1, of each key, table and array element of TOML that tomllib accepts.

    `("upstream", 0, "warm")` is the path of `warm` in the first [[upstream]]. A table is at its
    header, or where it is first implied; a value is where its key begins.
    """
    locator = _Locator(text)
    locator.walk()
    return locator.lines


class BadToml(Exception):
    """A text that cannot be read: at which line, and why."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(line, what)
        self.line = line
        self.what = what


def read_toml(text: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The document, and the lines that `locate` finds in it. Raises BadToml."""
    try:
        return tomllib.loads(text), locate(text)
    except RecursionError:
        raise BadToml(1, "is nested too deeply") from None
    except ValueError as error:  # tomllib's own, and int() for numbers beyond all measure
        raise _bad(text, str(error)) from None


# how tomllib's messages about a bare word begin
_UNQUOTED = "Invalid value|Expected newline or end of document after a statement"
# and those about a key, and a table, that was there before
_TWICE = r"Cannot overwrite a value|Cannot declare \((.*)\) twice"


def _bad(text: str, message: str) -> BadToml:
    where = r"(.*) \(at (?:line (\d+), column \d+|end of document)\)"
    found = re.fullmatch(where, message, re.DOTALL)
    if found is None:
        return BadToml(1, "holds a number that is too large")
    what = f"not valid TOML: {found[1][:1].lower()}{' '.join(found[1][1:].split())}"
    if twice := re.fullmatch(_TWICE, found[1]):
        table = ".".join(re.findall(r"'(.*?)'", twice[1] or ""))
        what = f"{f'[{table}]' if table else 'this key'} is there already, further up"
    if re.match(_UNQUOTED, found[1]):
        what += "; does a string lack its quotes?"
    if found[2] is None:
        return BadToml(text.rstrip().count("\n") + 1, f"{what}, at the end")
    return BadToml(int(found[2]), what)
