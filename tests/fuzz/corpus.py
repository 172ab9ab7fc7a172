"""The corpus in tests/protocol/corpus: what is sent, and what has to come of it.

A file is TOML: `side` and groups. A group has `why` (the rule and where it is written), the
verdict that all of its cases share, and `cases`: lists of strings, first a note, then the bytes,
then what is expected of them. Strings hold bytes as Latin-1 (`\\u00e4` is the byte E4), and
`%{a*9000}` stands for 9000 times `a`. Where a group has a frame (`around`, `forwarded`, `client`),
each case's bytes stand in it in place of `@@`.

`side` is `request` or `request-body`: bytes of a client.

| verdict        | what is expected                                                              |
|----------------|-------------------------------------------------------------------------------|
| `status`       | our own answer and the end of the connection; what is listed was forwarded    |
|                | before; of a head that is refused nothing is, of a body never all             |
| `tunnel`       | the origin, and the bytes that go to it first                                 |
| `waits`        | nothing happens until more comes                                              |
| none           | each request that is forwarded, byte by byte; `to` is the origin              |

`side` is `response` or `response-body`: bytes of the upstream that answers `request`; `end`:
it then closes (`close`, `reset`).

| verdict        | what is expected                                                              |
|----------------|-------------------------------------------------------------------------------|
| `status`       | our own answer instead, behind `first`; the upstream's connection is discarded |
| `broken`       | our own 502, or a response that is cut; the connection is discarded           |
| `tunnel`       | a switch of protocols; all that the client got                                |
| none           | all that the client got; `reused`: the upstream's connection may serve again; |
|                | `close`: how the client's ends; `cut`: the client sees that it is not whole;  |
|                | `surplus`: there is more than the response, so that its connection may serve  |
|                | again only if what is too much comes later than the release                   |
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "protocol" / "corpus"
GET = b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n"

_REPEAT = re.compile(r"%\{(.*?)\*([0-9]+)\}", re.DOTALL)
_KEYS = {
    *("why", "around", "cases", "status", "tunnel", "waits", "to", "forwarded"),
    *("request", "end", "first", "broken", "client", "reused", "close", "cut", "surplus"),
}


@dataclass(frozen=True)
class Case:
    """One line of the corpus."""

    name: str
    side: str
    why: str
    sent: bytes
    expected: tuple[bytes, ...]
    status: int | None = None
    tunnel: bool = False
    waits: bool = False
    to: str | None = None
    request: bytes = GET
    end: str | None = None
    first: bytes = b""
    broken: bool = False
    reused: bool | None = None
    close: str | None = None
    cut: bool = False
    surplus: bool = False

    def __str__(self) -> str:
        return self.name


def raw(text: str) -> bytes:
    """The bytes that a string of the corpus stands for."""
    return _REPEAT.sub(lambda found: found[1] * int(found[2]), text).encode("latin-1")


def read(path: Path) -> list[Case]:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    cases = []
    for group in document["group"]:
        unknown = group.keys() - _KEYS
        if unknown:
            raise ValueError(f"{path.name}: unknown keys {unknown} in {group['why']!r}")
        frame = group.get("forwarded", group.get("client", "@@"))
        verdict = {key: group[key] for key in _VERDICT if key in group}
        for note, sent, *expected in group["cases"]:
            cases.append(
                Case(
                    f"{path.stem}: {group['why']}: {note}",
                    document["side"],
                    group["why"],
                    raw(group.get("around", "@@").replace("@@", sent)),
                    tuple(raw(frame.replace("@@", each)) for each in expected),
                    request=raw(group["request"]) if "request" in group else GET,
                    first=raw(group.get("first", "")),
                    **verdict,
                )
            )
    return cases


_VERDICT = ("status", "tunnel", "waits", "to", "end", "broken", "reused", "close", "cut", "surplus")


def corpus() -> list[Case]:
    return [case for path in sorted(FOLDER.glob("*.toml")) for case in read(path)]
