"""Requests that come again: a program sends the same fields with each request, only targets differ.

What a block of fields means is judged once and kept for the next request that has the very same
bytes behind its request line. Kept are requests in HTTP/1.1 without a body and without a question
to us; for all others, and for targets that are not plainly http://host/path, there is nothing.
Judging takes 7 µs, finding 2.
"""

import re

from warmproxy.protocol.headers import JudgedRequest, request_tail
from warmproxy.protocol.messages import RequestHead
from warmproxy.protocol.target import PLAIN_TARGET, Forward, place_of

ENTRIES = 256
"""Kept at most; when there are more, all are forgotten."""
LONGEST = 4096
"""Bytes of fields that are worth keeping."""

_LINE = re.compile(rb"([A-Z]{1,16}+) %b HTTP/1\.1(?=\r\n)" % PLAIN_TARGET)

_NOT_KEPT = frozenset({b"CONNECT", b"OPTIONS", b"TRACE"})
"""Methods whose fields mean something else."""


class Memo:
    """For one proxy: `via` is its pseudonym. What it keeps has passed the checks of its fields."""

    __slots__ = ("_known", "_via")

    def __init__(self, via: bytes) -> None:
        self._via = via
        self._known: dict[bytes, tuple[JudgedRequest, bytes]] = {}

    def find(self, block: bytes) -> tuple[RequestHead, Forward, JudgedRequest, bytes] | None:
        """The head that `block` is, where it leads, its fields as judged, and all of the head
        to the upstream that follows its Host field."""
        line = _LINE.match(block)
        if line is None:
            return None
        known = self._known.get(block[line.end() :])
        if known is None:
            return None
        method, authority, path = line.groups()
        if method in _NOT_KEPT:
            return None
        place, host = place_of(authority)
        return RequestHead(method, path, b"1.1", ()), Forward(place, path, host), *known

    def keep(self, block: bytes, head: RequestHead, judged: JudgedRequest) -> None:
        """Remember what the fields of a request mean, if they may come again."""
        fields = block[block.find(b"\r\n") :]
        if (
            head.version != b"1.1"
            or head.method in _NOT_KEPT
            or judged.content_length is not None
            or judged.chunked
            or len(fields) > LONGEST
        ):
            return
        if len(self._known) >= ENTRIES:
            self._known.clear()
        self._known[fields] = judged, request_tail(judged, self._via)
