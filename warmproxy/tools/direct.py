"""Asking an origin itself, with no daemon between: what `bench` and `doctor` share."""

import http.client
import socket
import ssl
import time
from dataclasses import dataclass
from http.client import HTTPMessage
from urllib.parse import urlsplit

from warmproxy import __version__
from warmproxy.origin import DEFAULT_PORTS

TIMEOUT = 15.0
"""Seconds for each step of a request."""
LARGEST = 8 << 20
"""Bytes of an answer that are read; beyond that the body would be what is measured."""

_TLS_ALERT = "\x15\x03"  # RFC 8446, 5.1: a record's content type 21 and its version


class OriginError(Exception):
    """What does not work with an origin; the text is a sentence for people."""


FAILURES = (OSError, http.client.HTTPException, OriginError)


@dataclass(frozen=True, slots=True)
class Url:
    """What is asked for."""

    scheme: str
    host: str
    port: int
    target: str
    """path and query"""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """As the `url` of an [[upstream]] table."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"


def parse(text: str) -> Url:
    """Raises ValueError, with a sentence for the user."""
    parts = urlsplit(text)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"must be http://... or https://..., not '{text}'")
    if parts.username is not None or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be plain ASCII, without a user or password")
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    if port == 0:
        raise ValueError("there is no port 0")
    query = f"?{parts.query}" if parts.query else ""
    return Url(parts.scheme, parts.hostname, port, (parts.path or "/") + query)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, without its body."""

    first_byte: float
    """When its first byte came, by time.perf_counter()."""
    status: int
    version: str
    headers: HTTPMessage
    keeps: bool
    """Whether the connection may carry another request."""


def resolve(url: Url) -> list[str]:
    """The host's addresses, in the system's order. Raises OSError."""
    found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def connect(address: str, port: int, timeout: float = TIMEOUT) -> socket.socket:
    """A TCP connection, for requests of `TIMEOUT` a step. Raises OSError."""
    sock = socket.create_connection((address, port), timeout)
    sock.settimeout(TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def secure(
    sock: socket.socket, url: Url, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """TLS on a connection, which is closed where that fails. Raises OSError."""
    try:
        return context.wrap_socket(sock, server_hostname=url.host, session=session)
    except BaseException:
        sock.close()
        raise


def ask(
    sock: socket.socket, url: Url, *, by: str, method: str = "GET", target: str | None = None
) -> Answer:
    """One request, in the name of the tool `by`, and its whole answer; the socket stays open.

    `target` is what a proxy wants to see instead of the path. Raises OSError, HTTPException or
    OriginError (an answer beyond `LARGEST`).
    """
    fields = [f"Host: {url.authority}", "Accept: */*", f"User-Agent: warmproxy-{by}/{__version__}"]
    head = [f"{method} {target or url.target} HTTP/1.1", *fields, "", ""]
    sock.sendall("\r\n".join(head).encode("ascii"))
    with http.client.HTTPResponse(sock, method=method) as response:
        response.begin()
        first = time.perf_counter()
        if len(response.read(LARGEST + 1)) > LARGEST:
            raise OriginError(f"the answer has more than {LARGEST >> 20} MiB")
        version = "1.0" if response.version == 10 else "1.1"
        keeps = not response.will_close
        return Answer(first, response.status, version, response.headers, keeps)


def why(error: Exception) -> str:
    """What one of `FAILURES` means, for people."""
    match error:
        case socket.gaierror():
            return f"the name does not resolve: {error.strerror}"
        case ssl.SSLCertVerificationError():
            what = f"the certificate is not to be trusted: {error.verify_message}"
            return f"{what} (--ca-file names other authorities)"
        case ssl.SSLError():
            reason = (error.reason or str(error)).lower().replace("_", " ")
            return f"TLS failed: {reason}{'; is it http://?' * ('wrong version' in reason)}"
        case TimeoutError():
            return error.strerror or "it did not answer in time"
        case ConnectionRefusedError():
            return "connection refused: nothing listens there"
        case http.client.RemoteDisconnected():
            return "it closed the connection without an answer"
        case http.client.BadStatusLine():
            if str(error.args[0]).startswith(_TLS_ALERT):
                return "it speaks TLS: is it https://?"
            return "what answers does not speak HTTP"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error) or type(error).__name__
