"""What a head's fields mean to a proxy, and how a head is written.

A head is judged once, in one pass over its fields: those that are between us and one neighbour
(hop-by-hop, routing and framing) are taken out and understood, all others stay as they are and in
order. A head is never sent on as received: it is written from what was judged, with framing,
Connection and Via of our own.

| what is ambiguous                           | RFC 9112 | request    | response           |
|---------------------------------------------|----------|------------|--------------------|
| Transfer-Encoding and Content-Length        | 6.3      | 400        | 502                |
| Transfer-Encoding in HTTP/1.0               | 6.1      | 400        | 502                |
| last transfer coding is not chunked         | 6.3      | 400        | 502                |
| a transfer coding besides chunked           | 6.1      | 501        | 502                |
| Content-Length differs or is malformed      | 6.3      | 400        | 502                |
| Content-Length repeated, equal              | 6.3      | 400        | collapsed into one |
| Host missing (1.1), repeated or malformed   | 3.2      | 400        |                    |
| CONNECT with a body                         | 9110 9.3.6 | 400      |                    |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from warmproxy.errors import BadRequest, BadResponse
from warmproxy.protocol.framing import (
    HOP_BY_HOP,
    MAX_LENGTH,
    TOKEN,
    VALUE,
    Chunked,
    Framing,
    Length,
    NoBody,
    UntilClose,
)
from warmproxy.protocol.messages import Field, RequestHead, ResponseHead

MAX_FIELDS = 1000
"""Field lines of a head."""

# Fields that the pass over a head stops at; all others are kept without a further look.
_REQUEST_FIELDS = HOP_BY_HOP | {
    b"authorization",
    b"content-length",
    b"expect",
    b"host",
    b"idempotency-key",
    b"max-forwards",
    b"proxy-authorization",
    b"via",
}
_RESPONSE_FIELDS = HOP_BY_HOP | {
    b"content-length",
    b"date",
    b"proxy-authenticate",
    b"via",
    b"www-authenticate",
}

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]++\]|[A-Za-z0-9\-._~!$&'()*+,;=%]*+)(?::[0-9]*+)?")
_TIMEOUT = re.compile(rb"(?i:timeout)[ \t]*+=[ \t]*+\"?+([0-9]{1,9}+)(?![0-9])")
_CONNECTION_AUTH = re.compile(rb"(?i)(?:^|,)[ \t]*+(?:NTLM|Negotiate)(?![!-+\--~])")

# One space behind each colon, as they are written again; nothing to strip.
_PLAIN_RESPONSE = re.compile(
    rb"(HTTP/1\.1 ([2-5][0-9][0-9]) %b*+)"
    rb"((?:\r\n%b++: (?![ \t])%b*+(?<![ \t]))*)\r\n\r\n" % (VALUE, TOKEN, VALUE)
)
_PLAIN_NAMES = b"|".join(sorted(_RESPONSE_FIELDS - {b"date"}))
# the look-ahead, first letters of the names, spares most fields the alternatives
_PLAIN_STOPS = re.compile(rb"\r\n(?=[CKPTUVWckptuvw])((?i:%b): [^\r]*+)" % _PLAIN_NAMES)
_NO_BODY = frozenset({b"204", b"304"})

_NO_OPTIONS: frozenset[bytes] = frozenset()
_line = b": ".join


@dataclass(slots=True)
class JudgedRequest:
    """A request head without what was only for us."""

    version: bytes
    """As received: b"1.1" or b"1.0"."""
    fields: Sequence[Field]
    """What goes on as it came, in order."""
    body: Framing
    content_length: bytes | None
    chunked: bool
    keep_alive: bool
    """The client's connection may serve another request; never with HTTP/1.0 (RFC 9112, 9.3)."""
    host: bytes
    """Value of Host, b"" where HTTP/1.0 has none; the target's authority counts, not this."""
    expect_continue: bool
    upgrade: bytes | None
    """Protocols the client would switch to."""
    te_trailers: bool
    """The client wants trailers (RFC 9110, 10.1.4)."""
    via: Sequence[bytes]
    max_forwards: int | None
    """As received, for TRACE and OPTIONS; 0 means that we have to answer (RFC 9110, 7.6.2)."""
    proxy_authorization: bytes | None
    connection_auth: bool
    """NTLM or Negotiate: what they prove holds for the whole connection."""
    idempotency_key: bool
    """The client names the request, so that the upstream can tell a repetition."""


@dataclass(slots=True)
class JudgedResponse:
    """A response head without what was only for us."""

    fields: Sequence[Field]
    """What goes on as it came, in order; Date and an existing Proxy-Status are among it."""
    body: Framing
    content_length: bytes | None
    chunked: bool
    until_close: bool
    interim: bool
    """1xx, but not 101: the final response is still to come."""
    upgrade: bytes | None
    """101: the protocol that is spoken from here on."""
    offer: bytes | None
    """426: the protocols that the upstream asks for (RFC 9110, 15.5.22)."""
    reusable: bool
    """The upstream's connection may serve another request once the body is complete."""
    keep_alive_timeout: float | None
    """Seconds for which the upstream says it keeps the connection idle."""
    has_date: bool
    connection_auth: bool
    """NTLM or Negotiate are asked for: they authenticate the connection and not the request."""
    via: Sequence[bytes]


def judge_request(head: RequestHead) -> JudgedRequest:
    """Raises BadRequest: see the table above, and 431 for more than MAX_FIELDS fields."""
    if len(head.fields) > MAX_FIELDS:
        raise BadRequest(f"more than {MAX_FIELDS} fields", status=431)
    http_11 = head.version == b"1.1"
    counts_hops = head.method in (b"TRACE", b"OPTIONS")
    kept: list[Field] = []
    options = _NO_OPTIONS
    keep_alive = http_11
    host: bytes | None = None
    length: bytes | None = None
    codings: list[bytes] | None = None
    expects = False
    upgrades: list[bytes] = []
    te_trailers = False
    via: list[bytes] = []
    max_forwards: int | None = None
    proxy_authorization: bytes | None = None
    connection_auth = idempotency_key = False

    for field in head.fields:
        name = field[0].lower()
        if name not in _REQUEST_FIELDS:
            kept.append(field)
            continue
        value = field[1]
        if name == b"host":
            if host is not None:
                raise BadRequest("more than one Host")
            if not _HOST.fullmatch(value):
                raise BadRequest("malformed Host")
            host = value
        elif name == b"connection":
            options |= _options(value)
        elif name == b"proxy-connection":
            keep_alive = keep_alive and b"close" not in _options(value)
        elif name == b"content-length":
            if length is not None:
                raise BadRequest("more than one Content-Length")
            if not _is_length(value):
                raise BadRequest("malformed Content-Length")
            length = value
        elif name == b"transfer-encoding":
            codings = (codings or []) + _list(value.lower())
        elif name == b"via":
            via.append(value)
        elif name == b"te":
            te_trailers = te_trailers or b"trailers" in _options(value)
        elif name == b"upgrade":
            upgrades += _list(value)
        elif name == b"expect":
            waits = value.lower() == b"100-continue"
            if http_11 or not waits:  # in HTTP/1.0 it means nothing (RFC 9110, 10.1.1)
                kept.append(field)
            expects = expects or waits
        elif name == b"proxy-authorization":
            if proxy_authorization is not None:
                raise BadRequest("more than one Proxy-Authorization")
            proxy_authorization = value
        elif name == b"authorization":
            kept.append(field)
            connection_auth = connection_auth or _CONNECTION_AUTH.match(value) is not None
        elif name == b"idempotency-key":
            kept.append(field)
            idempotency_key = True
        elif name == b"max-forwards":
            if not counts_hops:
                kept.append(field)
            elif max_forwards is not None or not value.isdigit() or len(value) > 9:
                raise BadRequest("malformed Max-Forwards")
            else:
                max_forwards = int(value)
        # Keep-Alive: nothing to learn from it

    if host is None:
        if http_11:
            raise BadRequest("HTTP/1.1 needs a Host")
        host = b""
    if nominated := options - HOP_BY_HOP:
        kept = _without(kept, nominated)
        expects = expects and b"expect" not in nominated
        idempotency_key = idempotency_key and b"idempotency-key" not in nominated

    body: Framing
    if codings is not None:
        _judge_request_codings(codings, http_11, length)
        body = Chunked(options)
    elif length is not None:
        body = Length(int(length))
    else:
        body = NoBody()
    if head.method == b"CONNECT" and not body.done:
        raise BadRequest("CONNECT has no body")

    return JudgedRequest(
        head.version,
        kept,
        body,
        length,
        codings is not None,
        keep_alive and b"close" not in options,
        host,
        expects and http_11,
        _upgrade(upgrades) if http_11 and b"upgrade" in options else None,
        te_trailers and http_11,
        via,
        max_forwards,
        proxy_authorization,
        connection_auth,
        idempotency_key,
    )


def write_request(method: bytes, target: bytes, host: bytes, tail: bytes) -> bytes:
    """The head for the upstream, in HTTP/1.1.

    `target` is in origin-form (or `*`), `host` the authority that the client's target named, `tail`
    the rest.
    """
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (method, target, host, tail)


def request_tail(judged: JudgedRequest, via: bytes) -> bytes:
    """All of a head for the upstream that follows Host; `via` is our pseudonym."""
    lines = [*map(_line, judged.fields), _via(judged.via, judged.version, via)]
    if judged.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif judged.content_length is not None:
        lines.append(b"Content-Length: " + judged.content_length)
    if judged.max_forwards is not None:
        lines.append(b"Max-Forwards: %d" % max(0, judged.max_forwards - 1))
    if judged.te_trailers:
        lines.append(b"TE: trailers")
    if judged.upgrade is not None:
        lines.append(b"Upgrade: " + judged.upgrade)
        lines.append(b"Connection: upgrade, TE" if judged.te_trailers else b"Connection: upgrade")
    elif judged.te_trailers:
        lines.append(b"Connection: TE")
    lines += (b"", b"")
    return b"\r\n".join(lines)


def loops(judged: JudgedRequest, pseudonym: bytes) -> bool:
    """Whether the request has been through the proxy called `pseudonym` (RFC 9110, 7.6.3)."""
    for value in judged.via:
        for entry in value.split(b","):
            words = entry.split()
            if len(words) > 1 and words[1] == pseudonym:
                return True
    return False


def judge_response(head: ResponseHead, method: bytes, *, decode: bool = False) -> JudgedResponse:
    """`method` is the request's. `decode`: the client speaks HTTP/1.0, so its body is to come
    without chunks. Raises BadResponse: see the table above.
    """
    if len(head.fields) > MAX_FIELDS:
        raise BadResponse(f"more than {MAX_FIELDS} fields from the upstream")
    status = head.status
    http_11 = head.version == b"1.1"
    kept: list[Field] = []
    options = _NO_OPTIONS
    length: bytes | None = None
    codings: list[bytes] | None = None
    upgrades: list[bytes] = []
    timeout: float | None = None
    has_date = False
    connection_auth = False
    via: list[bytes] = []

    for field in head.fields:
        name = field[0].lower()
        if name not in _RESPONSE_FIELDS:
            kept.append(field)
            continue
        value = field[1]
        if name == b"date":
            has_date = True
            kept.append(field)
        elif name == b"connection":
            options |= _options(value)
        elif name == b"content-length":
            length = _same_length(value, length)
        elif name == b"transfer-encoding":
            codings = (codings or []) + _list(value.lower())
        elif name == b"keep-alive":
            found = _TIMEOUT.search(value)
            timeout = float(found[1]) if found else timeout
        elif name == b"via":
            via.append(value)
        elif name in (b"www-authenticate", b"proxy-authenticate"):
            connection_auth = connection_auth or _CONNECTION_AUTH.search(value) is not None
            kept.append(field)
        elif name == b"upgrade":
            upgrades += _list(value)
        # Proxy-Connection and TE: nothing to learn from them

    if nominated := options - HOP_BY_HOP:
        kept = _without(kept, nominated)
        has_date = has_date and b"date" not in nominated
    if codings is not None:
        _judge_response_codings(codings, http_11, length)

    chunked = until_close = False
    clean = True
    body: Framing
    if status < 200 or status == 204 or (method == b"CONNECT" and status < 300):
        # nothing about a body may be said here, nothing that is said counts (RFC 9112, 6.3)
        body = NoBody()
        clean = codings is None and length in (None, b"0")
        length = None
    elif method == b"HEAD" or status == 304:
        body = NoBody()
    elif codings is not None:
        body = Chunked(options, decode)
        chunked = True
    elif length is not None:
        body = Length(int(length))
    else:
        body = UntilClose()
        until_close = True

    if status == 101 and not upgrades:
        raise BadResponse("the upstream switches protocols without a name for the new one")
    keeps = b"close" not in options if http_11 else b"keep-alive" in options
    return JudgedResponse(
        kept,
        body,
        length,
        chunked,
        until_close,
        status < 200 and status != 101,
        b", ".join(upgrades) if upgrades and status == 101 else None,
        b", ".join(upgrades) if upgrades and status == 426 else None,
        keeps and clean and not until_close and status != 101,
        timeout,
        has_date,
        connection_auth,
        via,
    )


class PlainResponse(NamedTuple):
    """A final response's head, read by the fast lane."""

    status: int
    head: bytes
    """For the client, from the status line to the last field that goes on."""
    length: int | None
    """Of the body in bytes, None where it is chunked."""
    framing: bytes
    """The field that says so to the client."""
    judged: JudgedResponse
    """Shared: without the body, without the fields."""


def read_plain_response(block: bytes) -> PlainResponse | None:
    """The fast lane for what most heads are: a final answer in HTTP/1.1 (to anything but HEAD)
    with a body whose end is told, on a connection that stays. None for all others.

    It gives what parse_response_head, judge_response and write_response would give, in a third of
    the time: the fields that go on are never taken apart.
    """
    head = _PLAIN_RESPONSE.fullmatch(block)
    if head is None:
        return None
    start, status, fields = head.groups()
    if not (b"\r\nDate: " in fields or b"\r\ndate: " in fields):
        return None
    parts = _PLAIN_STOPS.split(fields)
    shape = _plain_shape(*parts[1::2])
    if shape is None or status in _NO_BODY or fields.count(b"\n") > MAX_FIELDS:
        return None
    return PlainResponse(int(status), start + b"".join(parts[::2]), *shape)


@lru_cache(maxsize=4096)
def _plain_shape(*stops: bytes) -> tuple[int | None, bytes, JudgedResponse] | None:
    """What the fields between the upstream and us say together, None if that is not plain."""
    length: bytes | None = None
    chunked = False
    timeout: float | None = None
    for field in stops:
        name, _, value = field.partition(b": ")
        name = name.lower()
        if name == b"content-length" and length is None and _is_length(value):
            length = value
        elif name == b"transfer-encoding" and not chunked and value == b"chunked":
            chunked = True
        elif name == b"keep-alive":
            found = _TIMEOUT.search(value)
            timeout = float(found[1]) if found else timeout
        elif name != b"connection" or value.lower() != b"keep-alive":
            return None
    if chunked is (length is not None):
        return None
    judged = JudgedResponse(
        (), NoBody(), length, chunked, False, False, None, None, True, timeout, True, False, ()
    )
    if length is None:
        return None, b"Transfer-Encoding: chunked", judged
    return int(length), b"Content-Length: " + length, judged


def write_response(
    head: ResponseHead,
    judged: JudgedResponse,
    *,
    via: bytes,
    date: bytes,
    keep_alive: bool,
    client_10: bool,
) -> bytes:
    """The head for the client, in HTTP/1.1.

    `via` is our pseudonym, `date` now as the value of a Date field. `keep_alive`: the client's
    connection stays open after this response; it cannot after a body without a length of its own.
    """
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    lines += map(_line, judged.fields)
    if not judged.has_date and head.status >= 200:
        lines.append(b"Date: " + date)
    lines.append(_via(judged.via, head.version, via))
    if judged.content_length is not None:
        lines.append(b"Content-Length: " + judged.content_length)
    elif judged.chunked and not client_10:
        lines.append(b"Transfer-Encoding: chunked")
    protocols = judged.upgrade or judged.offer
    closes = not keep_alive and head.status >= 200
    if protocols is not None:
        lines.append(b"Upgrade: " + protocols)
        lines.append(b"Connection: close, upgrade" if closes else b"Connection: upgrade")
    elif closes:
        lines.append(b"Connection: close")
    lines += (b"", b"")
    return b"\r\n".join(lines)


def _judge_request_codings(codings: list[bytes], http_11: bool, length: bytes | None) -> None:
    if not http_11:
        raise BadRequest("Transfer-Encoding in HTTP/1.0")
    if length is not None:
        raise BadRequest("Transfer-Encoding and Content-Length in one request")
    if codings == [b"chunked"]:
        return
    if not codings or codings[-1] != b"chunked":
        raise BadRequest("the last transfer coding is not chunked")
    if b"chunked" in codings[:-1]:
        raise BadRequest("chunked more than once")
    raise BadRequest("only chunked is known as a transfer coding", status=501)


def _judge_response_codings(codings: list[bytes], http_11: bool, length: bytes | None) -> None:
    if not http_11:
        raise BadResponse("Transfer-Encoding in an HTTP/1.0 response")
    if length is not None:
        raise BadResponse("Transfer-Encoding and Content-Length in one response")
    # TE asked for no other coding, so none was to be used
    if codings != [b"chunked"]:
        raise BadResponse("the upstream used a transfer coding other than chunked")


def _same_length(value: bytes, before: bytes | None) -> bytes:
    """A response's Content-Length; more than one has to be the same (RFC 9112, 6.3)."""
    for length in value.split(b","):
        length = length.strip(b" \t")
        if not _is_length(length):
            raise BadResponse("malformed Content-Length from the upstream")
        if before is not None and length != before:
            raise BadResponse("more than one Content-Length from the upstream")
        before = length
    assert before is not None
    return before


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= 19 and int(value) <= MAX_LENGTH


def _list(value: bytes) -> list[bytes]:
    """The members of a comma-separated list; empty ones do not count (RFC 9110, 5.6.1)."""
    return [member for part in value.split(b",") if (member := part.strip(b" \t"))]


@lru_cache(maxsize=1024)
def _options(value: bytes) -> frozenset[bytes]:
    """The members of a Connection field and the like, in lower case. There are few such values."""
    return frozenset(_list(value.lower()))


def _without(fields: list[Field], names: frozenset[bytes]) -> list[Field]:
    return [field for field in fields if field[0].lower() not in names]


def _upgrade(protocols: list[bytes]) -> bytes | None:
    """What may be asked for in our name.

    Not h2c: its settings are in a field that ends here, and RFC 9113, 3.1 gave it up.
    """
    return b", ".join(name for name in protocols if name.lower() != b"h2c") or None


def _via(received: Sequence[bytes], version: bytes, pseudonym: bytes) -> bytes:
    ours = b"%b %b" % (version, pseudonym)
    return b"Via: " + b", ".join([*received, ours])
