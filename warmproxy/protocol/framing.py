"""Where a body ends (RFC 9112, 6 and 7).

Every framing has the same three members:

* `feed(data)` returns (what to pass on, what belongs to whatever follows). Where all of `data`
  belongs and nothing is to be changed, that very object comes back, uncopied.
* `done`: the body is complete; all that is fed from now on is rest.
* `ended()`: the input ended here; is the body complete?

A chunked body is passed on with its framing as received, once each piece of that framing has been
checked. Only trailers are written anew, and only payload is left with `decode=True`.
"""

import re
from typing import Literal

MAX_LENGTH = 2**63 - 1
"""Largest body or chunk: what a signed 64-bit reader further on still understands."""
MAX_SIZE_LINE = 256
"""Bytes of a chunk-size line, extensions and line end included."""
MAX_TRAILERS = 8192
"""Bytes of a trailer section, the empty line included."""

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
"""One character of a token (RFC 9110, 5.6.2)."""
VALUE = rb"[\t -~\x80-\xff]"
"""One character of a field value: no control character but HTAB (RFC 9110, 5.5)."""
FIELD_LINE = re.compile(rb"(%b++):[ \t]*+(%b*+)" % (TOKEN, VALUE))
"""A field line without its CRLF; white space may still trail the value."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields between us and one neighbour, named by Connection or not (RFC 9110, 7.6.1)."""

NEVER_TRAILERS = HOP_BY_HOP | {
    # framing and routing
    b"content-length",
    b"host",
    b"max-forwards",
    b"trailer",
    b"via",
    # authentication
    b"authorization",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"set-cookie",
    b"www-authenticate",
    # how the content is to be read
    b"content-encoding",
    b"content-range",
    b"content-type",
}
"""What may not be said in a trailer: it would come too late there (RFC 9110, 6.5.1)."""

# RFC 9112, 7.1 and 7.1.1. There is one way to match, or none. Quantifiers of groups are not
# possessive, here and elsewhere: before Python 3.11.5 (Debian 12 has 3.11.2) a possessive group
# that fails half-way keeps what it had read (CPython issue 106052).
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb"[ \t]*+;[ \t]*+%b++(?:[ \t]*+=[ \t]*+(?:%b++|%b))?" % (TOKEN, TOKEN, _QUOTED)
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:%b)*\r\n" % _EXTENSION)
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")

_CR = 13


class FramingError(ValueError):
    """A body breaks its framing; the message says how. The connection cannot be used further."""


class NoBody:
    """No body, whatever the fields say: an answer to HEAD, 1xx, 204, 304, a plain GET."""

    __slots__ = ()
    done = True

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return b"", data

    def ended(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "NoBody()"


class Length:
    """Exactly `length` bytes (RFC 9112, 6.2)."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        left = self._left
        size = len(data)
        if size < left:
            self._left = left - size
            return data, b""
        self._left = 0
        self.done = True
        if size == left:
            return data, b""
        return data[:left], data[left:]

    @property
    def left(self) -> int:
        return self._left

    def skip(self, size: int) -> None:
        """So many bytes of it, at most what is left, went another way than through `feed`."""
        self._left -= size
        self.done = self._left == 0

    def ended(self) -> bool:
        return self.done

    def __repr__(self) -> str:
        return f"Length({self._left} left)"


class UntilClose:
    """All there is until the connection ends: responses only (RFC 9112, 6.3)."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return (b"", data) if self.done else (data, b"")

    def ended(self) -> bool:
        self.done = True
        return True

    def __repr__(self) -> str:
        return "UntilClose()"


_Part = Literal["size", "payload", "payload end", "trailers", "done"]


class Chunked:
    """Chunks (RFC 9112, 7.1).

    `drop`: lower-case names of trailers that go no further, those that Connection nominates.
    `decode`: pass on the payload only, without trailers: for a client that speaks HTTP/1.0.

    `feed` raises FramingError where the input is not strictly what section 7.1 allows.
    """

    __slots__ = ("_decode", "_drop", "_held", "_left", "_part")

    def __init__(self, drop: frozenset[bytes] = frozenset(), decode: bool = False) -> None:
        self._drop = drop
        self._decode = decode
        self._part: _Part = "size"
        self._left = 0
        """Payload bytes of this chunk still to come."""
        self._held = b""
        """The beginning of a line or trailer section; passed on when all of it is known good."""

    @property
    def done(self) -> bool:
        return self._part == "done"

    def ended(self) -> bool:
        return self._part == "done"

    def __repr__(self) -> str:
        return f"Chunked({self._part}, {self._left} left)"

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._part == "done":
            return b"", data
        data = self._held + data  # data itself where nothing is held
        pieces: list[bytes] = []  # the payload, for decode
        tail = b""  # what is written in place of a trailer section
        kept = 0  # data[:kept] is passed on as it is
        at = 0
        size = len(data)
        while at < size:
            part = self._part
            if part == "size":
                line = _SIZE_LINE.match(data, at)
                if line is None:
                    self._check_partial_size_line(data, at)
                    break
                at = line.end()
                if at - line.start() > MAX_SIZE_LINE:
                    raise FramingError("chunk-size line too long")
                self._left = int(line[1], 16)
                if self._left > MAX_LENGTH:
                    raise FramingError("chunk too large")
                self._part = "payload" if self._left else "trailers"
                kept = at
            elif part == "payload":
                end = min(size, at + self._left)
                if self._decode:
                    pieces.append(data[at:end])
                self._left -= end - at
                if not self._left:
                    self._part = "payload end"
                kept = at = end
            elif part == "payload end":
                if not data.startswith(b"\r\n", at):
                    if size - at == 1 and data[at] == _CR:
                        break
                    raise FramingError("a chunk is longer than its size says")
                kept = at = at + 2
                self._part = "size"
            else:
                section = self._trailers_end(data, at)
                if section is None:
                    break
                if section == at + 2:
                    kept = section
                else:
                    tail = self._filtered(data[at : section - 2])
                at = section
                self._part = "done"
                break

        if self._part == "done":
            rest = data[at:]
        else:
            self._held = data[at:]
            rest = b""
        if self._decode:
            return b"".join(pieces), rest
        return data[:kept] + tail, rest  # data itself where all of it is kept

    def _check_partial_size_line(self, data: bytes, at: int) -> None:
        """Raises FramingError unless more input can make a chunk-size line of data[at:]."""
        if data[at] not in _HEX_DIGITS or data.count(b"\n", at):
            raise FramingError("malformed chunk size")
        if len(data) - at >= MAX_SIZE_LINE:
            raise FramingError("chunk-size line too long")

    def _trailers_end(self, data: bytes, at: int) -> int | None:
        """The offset behind the trailer section that begins at `at`, None when it is not all there.

        Line ends other than CRLF are refused here, as they might hide the end.
        """
        if data.startswith(b"\r\n", at):
            return at + 2
        lines, end, _ = data[at:].partition(b"\r\n\r\n")
        section = lines + end
        if section.count(b"\n") != section.count(b"\r\n"):
            raise FramingError("a trailer line does not end in CRLF")
        # one byte more is needed where the section is incomplete
        if len(section) + (not end) > MAX_TRAILERS:
            raise FramingError("trailers too long")
        return at + len(section) if end else None

    def _filtered(self, lines: bytes) -> bytes:
        """The trailer section anew from its lines, each with CRLF; the empty line is added."""
        kept: list[bytes] = []
        for line in lines.split(b"\r\n")[:-1]:
            field = FIELD_LINE.fullmatch(line)
            if field is None:
                raise FramingError("malformed trailer")
            name, value = field.groups()
            lower = name.lower()
            if lower not in NEVER_TRAILERS and lower not in self._drop:
                kept.append(b"%b: %b\r\n" % (name, value.rstrip()))
        kept.append(b"\r\n")
        return b"".join(kept)


Framing = NoBody | Length | Chunked | UntilClose
