"""Answers of our own making.

Each says what happened three times over: to programs by its status, to other proxies by
Proxy-Status (RFC 9209), and to people by a line of text, with a second one on what to do.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from warmproxy.errors import WarmproxyError
from warmproxy.protocol.messages import Field

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
"""The answer to a CONNECT that worked. It says nothing about a body (RFC 9110, 9.3.6)."""

STATUS_REASONS: Mapping[int, str] = MappingProxyType(
    {
        200: "OK",
        202: "Accepted",
        400: "Bad Request",
        403: "Forbidden",
        404: "Not Found",
        405: "Method Not Allowed",
        407: "Proxy Authentication Required",
        408: "Request Timeout",
        409: "Conflict",
        411: "Length Required",
        413: "Content Too Large",
        414: "URI Too Long",
        421: "Misdirected Request",
        431: "Request Header Fields Too Large",
        500: "Internal Server Error",
        501: "Not Implemented",
        502: "Bad Gateway",
        503: "Service Unavailable",
        504: "Gateway Timeout",
        505: "HTTP Version Not Supported",
    }
)
"""Reason phrases of the statuses that we send."""

# What to do about it, by error token; the reason itself says it where nothing stands here.
_ADVICE = {
    "connection_limit_reached": "Try again soon, or raise max_connections for this upstream.",
    "connection_refused": "Is the upstream running, and is this its port?",
    "connection_terminated": "The upstream's log may say why; the request may have been done.",
    "connection_timeout": "Is the upstream up and reachable from this machine?",
    "destination_unavailable": "Is there a route from this machine to the upstream?",
    "dns_error": "Is the host's name spelled right, and does this machine resolve it?",
    "dns_timeout": "Is this machine's resolver working?",
    "http_protocol_error": "The upstream has to be mended; asking again will not help.",
    "http_request_denied": "Whoever runs this proxy decides who may use it, and for what.",
    "http_response_timeout": "The upstream may be busy; response_timeout says how long we wait.",
    "proxy_loop_detected": "The upstream's address must not lead back to this proxy.",
}
_ADVICE_BY_STATUS = {
    407: "Give the proxy's user and password, as in http_proxy=http://USER:PASSWORD@HOST:PORT",
}

_MAX_DETAILS = 250
"""Characters of a reason that go into Proxy-Status."""
_NOT_FOR_STRINGS = re.compile(r"[^ -~]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def reply(
    error: WarmproxyError,
    *,
    close: bool,
    head_only: bool = False,
    date: bytes,
    retried: bool = False,
    next_hop: str | None = None,
) -> bytes:
    """The whole answer that tells a client of `error`.

    `close`: the connection ends with it. `head_only`: it answers a HEAD. `date`: now, as the value
    of a Date field. `retried`: the request had been sent twice. `next_hop`: the address that was
    tried, as host:port.
    """
    phrase = STATUS_REASONS.get(error.status, "Error")
    body = _body(error, phrase)
    status = f"Proxy-Status: warmproxy; error={error.token}"
    if next_hop is not None:
        status += f"; next-hop={_string(next_hop)}"
    if retried:
        status += "; retried"  # a parameter of our own; RFC 9209, 2.1 has those ignored
    status += f"; details={_string(error.reason)}"
    lines = [
        f"HTTP/1.1 {error.status} {phrase}",
        f"Date: {date.decode('ascii')}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        status,
    ]
    if error.status == 407:
        lines.append('Proxy-Authenticate: Basic realm="warmproxy", charset="UTF-8"')
    if error.status == 503:
        lines.append("Retry-After: 1")
    if close:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
    return head if head_only else head + body


def last_hop(
    method: bytes, target: bytes, fields: Sequence[Field], *, close: bool, date: bytes
) -> bytes:
    """The whole answer to TRACE or OPTIONS with Max-Forwards: 0, which end here (RFC 9110, 7.6.2).

    TRACE gets its own head back, without what should not travel (RFC 9110, 9.3.8).
    """
    lines = [b"HTTP/1.1 200 OK", b"Date: " + date]
    body = b""
    if method == b"TRACE":
        sent = [b"TRACE %b HTTP/1.1" % target]
        sent += [b"%b: %b" % f for f in fields if f[0].lower() not in _NOT_TRACED]
        body = b"\r\n".join([*sent, b"", b""])
        lines.append(b"Content-Type: message/http")
    else:
        lines.append(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT")
    lines.append(b"Content-Length: %d" % len(body))
    if close:
        lines.append(b"Connection: close")
    return b"\r\n".join([*lines, b"", body])


_NOT_TRACED = frozenset({b"authorization", b"cookie", b"proxy-authorization"})


def _body(error: WarmproxyError, phrase: str) -> bytes:
    text = f"{error.status} {phrase}: {_CONTROL.sub(' ', error.reason)}\n"
    advice = _ADVICE_BY_STATUS.get(error.status) or _ADVICE.get(error.token)
    if advice is not None:
        text += advice + "\n"
    return text.encode("utf-8", "replace")


def _string(text: str) -> str:
    """A structured-field string (RFC 8941, 3.3.3): ASCII without control characters."""
    text = _NOT_FOR_STRINGS.sub("?", text[:_MAX_DETAILS])
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
