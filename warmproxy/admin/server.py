"""The admin listener's HTTP, one page after the other, on the daemon's own parser."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import chain, islice
from typing import cast

from warmproxy.admin.pages import TEXT, Page
from warmproxy.errors import BadRequest, RequestDenied, WarmproxyError
from warmproxy.policy.access import Access
from warmproxy.protocol.framing import NoBody
from warmproxy.protocol.headers import judge_request
from warmproxy.protocol.heads import HeadBuffer, parse_request_head
from warmproxy.protocol.messages import RequestHead
from warmproxy.protocol.replies import STATUS_REASONS

MAX_HEAD = 16384
MAX_CONNECTIONS = 32
"""Open at once; descriptors for them are set apart, and whoever scrapes needs one."""
IDLE_SECONDS = 90.0
"""Longer than the usual scrape interval, so that a scraper keeps its connection."""


ANY_HOST = ("/metrics", "/healthz", "/readyz")
"""Pages for programs, which reach the listener by whatever name the platform gives it."""


class AdminHosts:
    """The Host values that pages may be asked for by.

    A web site can make its own name resolve to 127.0.0.1 and have its visitors' browsers ask us
    (DNS rebinding); what it cannot change is the Host field.
    """

    def __init__(self, names: Iterable[str], admin: str) -> None:
        own = admin.rpartition(":")[0]
        self._names = frozenset(n.lower() for n in (*names, own, "localhost", "[::1]"))

    def check(self, host: str, target: str) -> None:
        """Raises RequestDenied. `host` is the field's value, with or without a port."""
        host = host.lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        path = target.partition("?")[0]
        if path in ANY_HOST or name in self._names or _is_loopback(name):
            return
        raise RequestDenied(
            f"the admin pages are not served to Host {name!r}; if that is right, add it to"
            " admin_hosts"
        )


@dataclass(slots=True)
class AdminTerms:
    """What holds for all connections to the admin listener; a reload changes it in place."""

    access: Access
    """Who may POST."""
    hosts: AdminHosts
    draining: bool = False
    """Each answer is its connection's last."""

    def become(self, other: "AdminTerms") -> None:
        """After a reload."""
        self.access, self.hosts = other.access, other.hosts


def check_same_site(head: RequestHead, host: str) -> None:
    """Raises RequestDenied where a browser says that another site's page makes it ask: any page
    may have its visitors' browsers send a POST without asking us first. Programs say neither."""
    for name, value in head.fields:
        text = value.decode("latin-1").lower()
        match name.lower():
            case b"sec-fetch-site" if text not in ("same-origin", "none"):
                raise RequestDenied("the request comes from a page of another site")
            case b"origin" if text.partition("://")[2] != host.lower():
                raise RequestDenied("the request comes from a page of another site (Origin)")


def _is_loopback(name: str) -> bool:
    """Whether it is an address of loopback, and no name that only begins like one."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


FEW = 5
"""Pieces from which on a page goes out piece by piece, and without its length."""

Reply = Page | asyncio.Future[Page]


class AdminConnection(asyncio.Protocol):
    """`respond` gets the target and the Accept field of a GET, `submit` the target of a POST and
    the client's address; either may give the page later. `open` holds those that live.

    A long page goes out piece by piece, one in each turn of the loop.
    """

    def __init__(
        self,
        respond: Callable[[str, str], Reply],
        submit: Callable[[str, str], Reply],
        terms: AdminTerms,
        date: Callable[[], bytes],
        open: set["AdminConnection"],
    ) -> None:
        self._respond = respond
        self._submit = submit
        self._terms = terms
        self._date = date
        self._open = open
        self._input = HeadBuffer(MAX_HEAD, BadRequest)
        self._unread = b""
        """What came behind a request whose page is not out yet."""
        self._awaited: asyncio.Future[Page] | None = None
        """The page that comes later."""
        self._pieces: Iterator[bytes] | None = None
        """What is left of the page that is being sent."""
        self._sending: asyncio.Handle | None = None
        self._chunked = self._closes = self._is_full = False
        self._served = True
        """Something since the last sweep; a new connection gets the whole time as well."""
        self._since = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._open.add(self)
        if len(self._open) > MAX_CONNECTIONS:
            self.transport.abort()

    def sweep(self, now: float) -> None:
        """End a connection that has served nothing for IDLE_SECONDS: asked once a second."""
        if self._served:
            self._served, self._since = False, now
        elif now - self._since >= IDLE_SECONDS:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._pieces = None
        if self._awaited is not None:
            self._awaited.cancel()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self._pieces is not None:
            self._next_piece()

    def eof_received(self) -> bool:
        self._closes = True
        return self._is_busy

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if self._is_busy and len(self._unread) > MAX_HEAD:
            self.transport.abort()
            return
        self._proceed()

    @property
    def _is_busy(self) -> bool:
        """With a page: what follows its request is not looked at before it is out."""
        return self._pieces is not None or self._awaited is not None

    def _proceed(self) -> None:
        try:
            while not self._is_busy and not self.transport.is_closing():
                data, self._unread = self._unread, b""
                if (found := self._input.feed(data)) is None:
                    return
                block, self._unread = found
                self._serve(parse_request_head(block))
        except WarmproxyError as error:
            self._fail(error)

    def _fail(self, error: WarmproxyError) -> None:
        self._send(Page(error.status, TEXT, error.reason.encode() + b"\n"), close=True)

    def _serve(self, head: RequestHead) -> None:
        self._served = True
        judged = judge_request(head)
        target = head.target.decode("ascii")
        path = target.partition("?")[0]
        allowed = ("POST",) if path == "/warm" else ("GET", "HEAD")
        if head.method.decode("ascii") not in allowed:
            page = Page(405, TEXT, f"this page knows {' and '.join(allowed)}\n".encode())
            self._send(page, close=True, allow=", ".join(allowed))
            return
        if not isinstance(judged.body, NoBody) and not judged.body.done:
            raise BadRequest("requests to the admin listener carry no body", status=413)
        if not head.target.startswith(b"/"):
            raise BadRequest(
                "this is warmproxy's admin listener; the proxy listens on another port"
            )
        host = judged.host.decode("ascii")
        self._terms.hosts.check(host, target)
        self._chunked = head.version != b"1.0"  # else a long page ends with the connection
        close = self._terms.draining or not judged.keep_alive
        if head.method == b"POST":
            check_same_site(head, host)
            client = self.transport.get_extra_info("peername")[0]
            self._terms.access.check_client(client)
            self._answer(self._submit(target, client), close=close)
            return
        accept = next((v for n, v in head.fields if n.lower() == b"accept"), b"")
        reply = self._respond(target, accept.decode("latin-1"))
        self._answer(reply, close=close, head_only=head.method == b"HEAD")

    def _answer(self, reply: Reply, *, close: bool, head_only: bool = False) -> None:
        if isinstance(reply, Page):
            self._send(reply, close=close, head_only=head_only)
            return
        self._awaited = reply
        reply.add_done_callback(partial(self._came, close=close, head_only=head_only))

    def _came(self, reply: asyncio.Future[Page], *, close: bool, head_only: bool) -> None:
        self._awaited = None
        if self.transport.is_closing() or reply.cancelled():
            return
        self._served = True
        try:
            self._send(reply.result(), close=close or self._closes, head_only=head_only)
        except WarmproxyError as error:
            self._fail(error)
        except BaseException:
            self.transport.abort()
            raise
        self._proceed()

    def _send(self, page: Page, *, close: bool, head_only: bool = False, allow: str = "") -> None:
        body = page.body
        if not isinstance(body, bytes):
            first = list(islice(body, FEW))
            if len(first) == FEW:
                self._closes = close or self._closes or not self._chunked
                self._send_in_pieces(page, chain(first, body), head_only=head_only)
                return
            body = b"".join(first)
        fields = f"Content-Length: {len(body)}\r\n"
        if allow:
            fields += f"Allow: {allow}\r\n"
        self.transport.write(self._head(page, fields, close=close) + (b"" if head_only else body))
        if close:
            self.transport.close()

    def _head(self, page: Page, fields: str, *, close: bool) -> bytes:
        return (
            f"HTTP/1.1 {page.status} {STATUS_REASONS.get(page.status, '')}\r\n"
            f"Date: {self._date().decode()}\r\n"
            f"Content-Type: {page.content_type}\r\n"
            f"{fields}{page.fields}"
            "Cache-Control: no-store\r\n"
            f"{'Connection: close' if close else 'Connection: keep-alive'}\r\n\r\n"
        ).encode("latin-1")

    def _send_in_pieces(self, page: Page, pieces: Iterator[bytes], *, head_only: bool) -> None:
        """One piece in each turn of the loop, as long as the client takes them."""
        fields = "Transfer-Encoding: chunked\r\n" if self._chunked else ""
        self.transport.write(self._head(page, fields, close=self._closes))
        if not head_only:
            self._pieces = pieces
            self._next_piece()
        elif self._closes:
            self.transport.close()

    def _next_piece(self) -> None:
        if self._sending is None:
            self._sending = asyncio.get_running_loop().call_soon(self._send_piece)

    def _send_piece(self) -> None:
        self._sending = None
        if self._pieces is None or self._is_full:
            return  # the client is gone, or too slow for now
        self._served = True
        piece = next(self._pieces, None)
        if piece is not None:
            if piece:
                self.transport.write(_chunk(piece) if self._chunked else piece)
            self._next_piece()
            return
        self._pieces = None
        if self._chunked:
            self.transport.write(_chunk(b""))
        if self._closes:
            self.transport.close()
        else:
            self._proceed()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
