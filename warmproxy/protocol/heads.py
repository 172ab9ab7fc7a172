"""Bytes to heads: a fast lane for what is common, and h11 behind it (h11's only importer).

The rules:

* The fast lane is one strict regular expression over the whole head, then a cheap split. Every
  quantifier of characters in it is possessive, and each line of a head can be read in one way, so
  it reads each byte a bounded number of times.
* What it does not recognise is read line by line, by rules at least as strict as RFC 9112's and
  in some places stricter, and then by h11. A head is accepted only where both readers agree.
* The fast lane accepts a subset of what the slow lane accepts, but for what `headers.py` judges
  (Host, Content-Length, Transfer-Encoding), and both give the same head.

| refused although h11 accepts it              | RFC 9112 | request | response |
|----------------------------------------------|----------|---------|----------|
| a line that ends in LF alone                 | 2.2      | 400     | 502      |
| obs-fold                                     | 5.2      | 400     | 502      |
| a control character in a value or reason     | 9110 5.5 | 400     | 502      |
| HTTP/1.2 to HTTP/1.9                         | 2.3      | 400     | 502      |
| a major version other than 1                 | 2.3      | 505     | 502      |
| a method of more than 32 characters          | 3        | 501     |          |

White space before a field's colon is refused in requests and removed from responses (5.1).
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from warmproxy.errors import BadRequest, BadResponse, WarmproxyError
from warmproxy.protocol.framing import FIELD_LINE, TOKEN, VALUE
from warmproxy.protocol.messages import Field, RequestHead, ResponseHead

if TYPE_CHECKING:
    import h11  # the functions that need it import it: 8 ms, 0.3 MiB that most runs are spared

MAX_METHOD = 32
"""Characters of a method; the longest registered one has 17."""

# One space or none after the colon and no other white space around the value, so that the plain
# _FIELDS expression can take the fields apart without stripping any.
_FIELD = rb"%b++:[ ]?+(?![ \t])%b*+(?<![ \t])\r\n" % (TOKEN, VALUE)
_FAST_REQUEST = re.compile(
    rb"([A-Z]{1,16}+) ([!-~]++) HTTP/(1\.[01])\r\n((?:%b)*)\r\n" % _FIELD,
)
_FAST_RESPONSE = re.compile(
    rb"HTTP/(1\.[01]) ([1-9][0-9][0-9])(?: (%b*+))?\r\n((?:%b)*)\r\n" % (VALUE, _FIELD),
)
_FIELDS = re.compile(rb"([^:]++):[ ]?+([^\r]*+)\r\n")

_REQUEST_LINE = re.compile(rb"(%b++) ([!-~]++) HTTP/([0-9])\.([0-9])" % TOKEN)
_STATUS_LINE = re.compile(rb"HTTP/([0-9])\.([0-9]) ([1-9][0-9][0-9])(?: (%b*+))?" % VALUE)
_SPACE_BEFORE_COLON = re.compile(rb"\A(%b++)[ \t]++:" % TOKEN)
_METHOD = re.compile(rb"%b++" % TOKEN)
_METHOD_START = re.compile(TOKEN)

# h11 tidies these up while it reads; headers.py judges them as they came.
_TIDIED = frozenset({b"content-length", b"transfer-encoding"})

_SPACE = 32

_HOW_TO = "set http_proxy=http://HOST:PORT and https_proxy=http://HOST:PORT"


def read_status(data: bytes) -> int | None:
    """The status code where the bytes begin with the whole status line of a response."""
    line, end, _ = data.partition(b"\r\n")
    found = _STATUS_LINE.fullmatch(line) if end else None
    return int(found[3]) if found else None


class HeadBuffer:
    """Collects one head after the other from a byte stream.

    `max_head`: bytes of a head at most, its empty line included. `error` says what is read:
    BadRequest for requests, BadResponse for responses.
    """

    __slots__ = ("_buffer", "_max_head", "_requests", "_scanned", "_skipped", "pending")

    def __init__(self, max_head: int, error: type[BadRequest] | type[BadResponse]) -> None:
        self._max_head = max_head
        self._requests = issubclass(error, BadRequest)
        self._buffer = bytearray()
        self._scanned = 0
        """No head ends before this offset of the buffer."""
        self._skipped = False
        """The one empty line before a request was there already (RFC 9112, 2.2)."""
        self.pending = False
        """Whether a part of a head is held."""

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Returns (the head with its empty line, what followed it), None when more is needed.

        Raises BadRequest with 414 (request line) or 431 for a head of more than `max_head` bytes,
        and with 400 as soon as the bytes can be no request; for responses BadResponse.
        """
        if not self.pending and data and data[0] > _SPACE:
            end = data.find(b"\r\n\r\n") + 4
            if 4 <= end <= self._max_head:
                self._skipped = False
                # this copies what is behind the head; mostly nothing is
                return (data, b"") if end == len(data) else (data[:end], data[end:])
        return self._feed_slowly(data)

    def _feed_slowly(self, data: bytes) -> tuple[bytes, bytes] | None:
        buffer = self._buffer
        buffer += data
        if self._requests and not self._skipped:
            if buffer.startswith(b"\r\n"):
                del buffer[:2]
                self._skipped = True
            elif buffer == b"\r":
                self.pending = True
                return None
        self.pending = bool(buffer)
        if not buffer:
            return None
        if self._requests:
            _refuse_no_request(buffer)
        elif not b"HTTP/1.".startswith(buffer[:7]):
            raise BadResponse("the upstream's answer is not HTTP/1.1")

        # All line ends count here, so that a head with wrong ones is refused and not waited for.
        found = [
            at + len(ending)
            for ending in (b"\n\r\n", b"\n\n")
            if (at := buffer.find(ending, self._scanned)) >= 0
        ]
        if not found:
            self._scanned = max(0, len(buffer) - 2)
            if b"\0" in data:
                raise self._bad("NUL in the head")
            if len(buffer) >= self._max_head:
                raise self._too_long(buffer)
            return None
        end = min(found)
        if end > self._max_head:
            raise self._too_long(buffer)
        block = bytes(buffer[:end])
        rest = data[len(data) - (len(buffer) - end) :]
        buffer.clear()
        self.pending = False
        self._scanned = 0
        self._skipped = False
        return block, rest

    def _bad(self, reason: str) -> WarmproxyError:
        return BadRequest(reason) if self._requests else BadResponse(reason)

    def _too_long(self, buffer: bytearray) -> WarmproxyError:
        limit = f"the limit (max_head) is {self._max_head} bytes"
        if not self._requests:
            return BadResponse(f"the upstream's head is too long: {limit}")
        if buffer.find(b"\n", 0, self._max_head) < 0:
            return BadRequest(f"request line too long: {limit}", status=414)
        return BadRequest(f"request head too long: {limit}", status=431)


def parse_request_head(block: bytes) -> RequestHead:
    """Returns the head that `block` is: everything up to and including the empty line.

    Raises BadRequest: 400, 501 for a method that is too long, 505 for HTTP/2 and the like.
    """
    return _fast_request(block) or _slow_request(block)


def parse_response_head(block: bytes) -> ResponseHead:
    """Returns the head that `block` is, interim ones too. Raises BadResponse."""
    return _fast_response(block) or _slow_response(block)


def _fast_request(block: bytes) -> RequestHead | None:
    head = _FAST_REQUEST.fullmatch(block)
    if head is None:
        return None
    method, target, version, fields = head.groups()
    return RequestHead(method, target, version, _FIELDS.findall(fields))


def _fast_response(block: bytes) -> ResponseHead | None:
    head = _FAST_RESPONSE.fullmatch(block)
    if head is None:
        return None
    version, status, reason, fields = head.groups(b"")
    return ResponseHead(version, int(status), reason, _FIELDS.findall(fields))


def _slow_request(block: bytes) -> RequestHead:
    import h11

    _refuse_no_request(block)
    method = _METHOD.match(block)
    if method is not None and method.end() > MAX_METHOD:
        raise BadRequest(f"method of more than {MAX_METHOD} characters", status=501)
    lines = _lines(block, BadRequest)
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise BadRequest("malformed request line")
    name, target, major, minor = line.groups()
    if major != b"1":
        raise BadRequest("only HTTP/1.1 and HTTP/1.0 are spoken here", status=505)
    if minor not in b"01":
        raise BadRequest("no such version of HTTP")
    head = RequestHead(name, target, b"1." + minor, _fields(lines[1:], BadRequest))
    # headers.py judges the codings: h11 has one status for all that are wrong (RFC 9112, 6.3)
    heard = [
        line
        for line, (field_name, _) in zip(lines[1:], head.fields, strict=True)
        if field_name.lower() != b"transfer-encoding"
    ]
    event = _second_opinion(
        h11.Connection(h11.SERVER), b"\r\n".join([lines[0], *heard, b"", b""]), BadRequest
    )
    if (
        not isinstance(event, h11.Request)
        or (event.method, event.target) != (name, target)
        or not _same_fields(head.fields, event)
    ):
        raise BadRequest("ambiguous request head")
    return head


def _slow_response(block: bytes) -> ResponseHead:
    import h11

    lines = _lines(block, BadResponse)
    line = _STATUS_LINE.fullmatch(lines[0])
    if line is None:
        raise BadResponse("malformed status line from the upstream")
    major, minor, status, reason = line.groups(b"")
    if major != b"1" or minor not in b"01":
        raise BadResponse("the upstream answers in a version of HTTP that was not asked for")
    lines[1:] = [_SPACE_BEFORE_COLON.sub(rb"\1:", field, count=1) for field in lines[1:]]
    head = ResponseHead(b"1." + minor, int(status), reason, _fields(lines[1:], BadResponse))
    client = h11.Connection(h11.CLIENT)
    # h11 wants to have asked before it reads an answer; with an upgrade, 101 is one too
    client.send(
        h11.Request(
            method="GET",
            target="/",
            headers=[("Host", "h"), ("Connection", "upgrade"), ("Upgrade", "any")],
        )
    )
    client.send(h11.EndOfMessage())
    event = _second_opinion(client, b"\r\n".join(lines) + b"\r\n\r\n", BadResponse)
    if (
        not isinstance(event, h11.Response | h11.InformationalResponse)
        or event.status_code != head.status
        or not _same_fields(head.fields, event)
    ):
        raise BadResponse("ambiguous head from the upstream")
    return head


def _refuse_no_request(start: bytes | bytearray) -> None:
    """Raises BadRequest where a stream that begins with `start` can be no request.

    Whoever speaks something else to this port needs to be told, and not to wait.
    """
    if _METHOD_START.match(start):
        return
    if start[:1] == b"\x16":
        reason = (
            "this looks like TLS, but this is a plain-HTTP proxy port: the proxy's own URL begins "
            "with http:// for https targets too, as in https_proxy=http://HOST:PORT"
        )
    elif start[:1] in (b"\x04", b"\x05"):
        reason = f"this looks like SOCKS, but this is an HTTP proxy: {_HOW_TO}"
    else:
        reason = "a request begins with a method"
    raise BadRequest(reason)


def _lines(block: bytes, error: type[WarmproxyError]) -> list[bytes]:
    """The lines without the empty one. Raises `error` where not every one ends in CRLF."""
    lines = block.split(b"\r\n")
    if len(lines) < 3 or lines[-2:] != [b"", b""] or not all(lines[:-2]):
        raise error("a head is lines that end in CRLF, then an empty one")
    del lines[-2:]
    for line in lines:
        if b"\n" in line or b"\r" in line:
            raise error("bare CR or LF in the head")
    return lines


def _fields(lines: list[bytes], error: type[WarmproxyError]) -> list[Field]:
    """Name and value of each field line. Raises `error`, naming the rule that is broken."""
    fields: list[Field] = []
    for line in lines:
        field = FIELD_LINE.fullmatch(line)
        if field is None:
            name, colon, value = line.partition(b":")
            if line[0] in b" \t":
                raise error("a field line begins with white space (obs-fold)")
            if colon and name.rstrip(b" \t") != name:
                raise error("white space before a field's colon")
            if not colon or not _METHOD.fullmatch(name):
                raise error("malformed field name")
            raise error("control character in a field value")
        name, value = field.groups()
        fields.append((name, value.rstrip(b" \t")))
    return fields


def _second_opinion(reader: "h11.Connection", block: bytes, error: type[WarmproxyError]) -> object:
    """What h11 makes of the head. Raises `error`, for requests with the status that h11 advises."""
    import h11

    reader.receive_data(block)
    try:
        return reader.next_event()
    except h11.RemoteProtocolError as refusal:
        # without the bytes that it quotes: there may be a secret among them
        reason = str(refusal).partition(": b")[0]
        status = refusal.error_status_hint if issubclass(error, BadRequest) else None
        raise error(reason, status=status) from None


def _same_fields(
    fields: Sequence[Field], event: "h11.Request | h11.Response | h11.InformationalResponse"
) -> bool:
    """Whether h11 read the same fields; two readers that differ are what smuggling lives on."""
    ours = [field for field in fields if field[0].lower() not in _TIDIED]
    return ours == [field for field in event.headers.raw_items() if field[0].lower() not in _TIDIED]
