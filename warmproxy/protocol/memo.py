"""Heads that come again: a program sends the same fields with each request, a server with each
answer of a kind.

* `Requests`: what a block of fields means is judged once and kept for the next request that has the
  very same bytes behind its target. Kept are requests in HTTP/1.1 without a body and without a
  question to us; for all others, and for targets that are not plainly http://host/path, there is
  nothing. Judging takes 8 µs, finding 1.
* `Answers`: the same for responses that read_plain_response reads and that differ in nothing but
  their Date. Reading takes 4 µs, finding 1.

Keys are the bytes themselves, so nothing is ever taken for something else.
"""

import re
from dataclasses import dataclass

from warmproxy.policy.retry import preference
from warmproxy.protocol.framing import VALUE
from warmproxy.protocol.headers import (
    JudgedRequest,
    JudgedResponse,
    read_plain_response,
)
from warmproxy.protocol.messages import Acquire, RequestHead
from warmproxy.protocol.target import PLAIN_TARGET, Forward

ENTRIES = 2048
"""Kept at most; when there are more, all are forgotten."""
LONGEST = 2048
"""Bytes of a head that are worth keeping."""
REST = 16 * ENTRIES
"""Answers for which none is kept or looked for, once as many as there is room for were kept and not
one came again: a crawler gets no head twice."""

_LINE = re.compile(rb"[A-Z]{1,16}+ %b(?= HTTP/1\.1\r\n)" % PLAIN_TARGET)
_DATE = re.compile(rb"\r\n[Dd]ate: (?![ \t])%b++(?<![ \t])(?=\r\n)" % VALUE)

_NOT_KEPT = frozenset({b"CONNECT", b"OPTIONS", b"TRACE"})
"""Methods whose fields mean something else."""


@dataclass(slots=True)
class Known:
    """What a request line, but for its path, and a block of fields mean. All of it is shared."""

    request: RequestHead
    """That of the first of them."""
    judged: JudgedRequest
    route: Forward
    """That of the first of them."""
    acquire: Acquire
    start: bytes
    """The head for the upstream up to the path."""
    end: bytes
    """And behind it."""


class Requests:
    """For one proxy. What it keeps has passed the checks that do not depend on the client's
    address."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Known] = {}

    def find(self, block: bytes) -> tuple[Known, bytes] | None:
        """What the head means, and its path."""
        line = _LINE.match(block)
        if line is None:
            return None
        start, end = line.span(2)
        known = self._known.get((block[:start], block[end:]))
        return None if known is None else (known, block[start:end])

    def keep(
        self, block: bytes, head: RequestHead, judged: JudgedRequest, route: Forward, out: bytes
    ) -> None:
        """Remember what a request means, if it may come again; `out`: its head for the upstream."""
        line = _LINE.match(block)
        if (
            line is None
            or head.method in _NOT_KEPT
            or judged.content_length is not None
            or judged.chunked
            or len(block) > LONGEST
        ):
            return
        if len(self._known) >= ENTRIES:
            self._known.clear()
        start, end = line.span(2)
        behind = len(head.method) + 1 + end - start
        self._known[block[:start], block[end:]] = Known(
            head,
            judged,
            route,
            Acquire(route.origin, preference(head.method)),
            head.method + b" ",
            out[behind:],
        )


class Answers:
    """For one proxy; `via` is its pseudonym."""

    __slots__ = ("_came_again", "_known", "_rest", "_via")

    def __init__(self, via: bytes) -> None:
        self._via = via
        self._known: dict[
            tuple[bytes, bytes], tuple[bytes, bytes, int, int | None, JudgedResponse]
        ] = {}
        self._came_again = False
        self._rest = 0

    def read(self, block: bytes) -> tuple[bytes, int, int | None, JudgedResponse] | None:
        """What read_plain_response reads of an answer to anything but HEAD: the whole head for a
        client whose connection stays, the status, the body's length (None: it is chunked), and
        what else was judged."""
        date = None
        if self._rest:
            self._rest -= 1
        else:
            date = _DATE.search(block)
        if date is None:
            return self._read(block)
        start, end = date.span()
        key = block[:start], block[end:]
        known = self._known.get(key)
        if known is not None:
            self._came_again = True
            before, behind, status, length, judged = known
            return before + block[start:end] + behind, status, length, judged
        found = self._read(block)
        if found is not None and len(block) <= LONGEST:
            if len(self._known) >= ENTRIES:
                self._known.clear()
                self._rest = 0 if self._came_again else REST
                self._came_again = False
            before, _, behind = found[0].partition(block[start:end])
            self._known[key] = before, behind, *found[1:]
        return found

    def _read(self, block: bytes) -> tuple[bytes, int, int | None, JudgedResponse] | None:
        plain = read_plain_response(block)
        if plain is None:
            return None
        head = b"%b\r\nVia: 1.1 %b\r\n%b\r\n\r\n" % (plain.head, self._via, plain.framing)
        return head, plain.status, plain.length, plain.judged
