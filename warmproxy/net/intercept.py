"""A client's CONNECT answered by ourselves: its TLS ends here, with a certificate of our authority.

The connection goes on as that of the same client: behind the handshake it is a ClientConnection
again, whose Exchange takes us for the origin.

| what the client does                             | what follows                               |
|--------------------------------------------------|--------------------------------------------|
| shakes hands and asks                            | its requests go over finished TLS          |
| refuses our certificate by an alert, or hangs up | refused                                    |
| closes right after the handshake, never asked    | refused                                    |
| speaks HTTP/2, no TLS, or nothing                | refused                                    |

Refused is told once per client and origin, and policy/interception decides what comes of it.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from warmproxy.observe import Observer
from warmproxy.origin import Origin
from warmproxy.policy.interception import Interception, Visitor
from warmproxy.protocol.exchange import Terms
from warmproxy.protocol.messages import Intercept

HANDSHAKE_SECONDS = 10.0
"""That a client has from its 200 to the end of its handshake."""

SHUTDOWN_SECONDS = 600.0
"""From our close on, for what is queued and for the client's close_notify. net/client gives less to
those who make requests; this is for tunnels by an upgrade."""

RENEW_BEFORE = 86400.0
"""Seconds before its end from which on a certificate is replaced: at the next CONNECT."""

_PREFACE = b"PRI * HTTP/2.0"
"""How HTTP/2 begins for a client that did not ask by ALPN, or did not wait (RFC 9113, 3.4)."""


class Leaf(Protocol):
    @property
    def pem(self) -> bytes:
        """The certificate and its key."""

    @property
    def not_after(self) -> float:
        """Seconds since the epoch."""


class Signs(Protocol):
    """What a local authority does (net/authority)."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def not_after(self) -> float:
        """Seconds since the epoch."""

    def leaf(self, host: str, now: float) -> Leaf:
        """Raises ValueError where it cannot speak for the host, or no longer."""


class Leaves:
    """The server's SSLContext for each host, of a certificate that was signed lately.

    `before`: those of the settings so far, kept where the authority is the same. `clock`: seconds
    since the epoch.
    """

    def __init__(
        self,
        authority: Signs,
        before: "Leaves | None" = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._made: dict[str, tuple[ssl.SSLContext, float]] = {}
        if before is not None and before._authority.fingerprint == authority.fingerprint:
            self._made = before._made

    @property
    def not_after(self) -> float:
        """When the authority expires, in seconds since the epoch."""
        return self._authority.not_after

    def prepare(self, host: str) -> None:
        """Have one for that host, now. Raises ValueError."""
        if host not in self._made:
            self.make(host)

    def make(self, host: str) -> ssl.SSLContext:
        """Takes a millisecond or two: off the loop. Raises ValueError."""
        leaf = self._authority.leaf(host, self._clock())
        context = server_context(host, leaf.pem)
        self._made[host] = context, leaf.not_after
        return context

    async def get(self, host: str) -> ssl.SSLContext:
        """Raises ValueError."""
        context, not_after = self._made.get(host, (None, 0.0))
        # the last one ends with the authority
        ahead = RENEW_BEFORE if not_after < self.not_after else 0.0
        if context is None or self._clock() > not_after - ahead:
            context = await asyncio.to_thread(self.make, host)
        return context


def server_context(host: str, pem: bytes) -> ssl.SSLContext:
    """HTTP/1.1 over TLS 1.2 or 1.3, for clients that ask for this host or name none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _load(context, pem)

    def check_name(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        if name is None or name.lower() == host:
            return None
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context.sni_callback = check_name
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """The key must not lie on a disk, and OpenSSL wants a path."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("leaf")
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        return
    import tempfile  # here: 5 ms, and Linux does without

    with tempfile.NamedTemporaryFile() as named:  # 0600
        named.write(pem)
        named.flush()
        context.load_cert_chain(named.name)


class Guest(asyncio.Protocol):
    """The client's connection. Exactly one of the two comes."""

    __slots__ = ()

    def came_inside(self, transport: asyncio.Transport, terms: Terms) -> None:
        """TLS is up; what the client sends in it follows."""
        raise NotImplementedError

    def stayed_outside(self) -> None:
        """The connection is gone."""
        raise NotImplementedError


class Interceptor:
    """Shakes hands with clients. `adopt` says for which origins, and how."""

    def __init__(self, loop: asyncio.AbstractEventLoop, observer: Observer) -> None:
        self._loop = loop
        self._observer = observer
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaves: Leaves | None = None
        self._terms: Mapping[Origin, Terms] = {}
        self._is_stopping = False

    def adopt(self, leaves: Leaves | None, terms: Mapping[Origin, Terms]) -> None:
        """What holds from now on; `terms` of those inside, by the tcp origin of their CONNECT."""
        self._leaves, self._terms = leaves, terms

    def stop(self) -> None:
        """From now on clients leave because we do."""
        self._is_stopping = True

    def receive(
        self,
        guest: Guest,
        transport: asyncio.Transport,
        intercept: Intercept,
        interception: Interception,
    ) -> None:
        """Take the transport over until the client is inside, or it is closed."""
        transport.pause_reading()  # until somebody is there who knows what a handshake is
        visitor = intercept.visitor

        def refused(why: str) -> None:
            if interception.refused(visitor) and not self._is_stopping:
                falls_back = interception.falls_back
                self._observer.intercept_refused(visitor.address, visitor.origin, why, falls_back)

        doorstep = _Doorstep(guest, visitor, interception, refused)
        # by what holds now: a reload may leave nothing for this origin
        assert self._leaves is not None
        leaves, terms = self._leaves, self._terms[visitor.origin]
        task = self._loop.create_task(
            self._receive(doorstep, transport, leaves, terms, intercept),
            name=f"intercept {visitor.origin}",
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive(
        self,
        doorstep: "_Doorstep",
        plain: asyncio.Transport,
        leaves: Leaves,
        terms: Terms,
        intercept: Intercept,
    ) -> None:
        try:
            context = await leaves.get(intercept.visitor.origin.host)
        except (ValueError, OSError, RuntimeError) as error:  # expired; no descriptor, no thread
            doorstep.turn_away(plain, f"there is no certificate for it: {error}")
            return
        try:
            secure = await self._shake_hands(plain, doorstep, context, intercept.early)
        except OSError as error:  # TLS's errors and time-outs are such, too
            doorstep.turn_away(plain, _why(error))
        else:
            doorstep.open(secure, terms)

    async def _shake_hands(
        self,
        plain: asyncio.Transport,
        doorstep: "_Doorstep",
        context: ssl.SSLContext,
        early: bytes,
    ) -> asyncio.Transport:
        if plain.is_closing():  # start_tls would wait for ever
            raise ConnectionResetError
        if early:
            # start_tls takes no bytes that were read before. Its protocol is there from the next
            # turn of the loop on, and keeps what it is given until its handshake begins.
            self._loop.call_soon(_feed, plain, early)
        secure = await self._loop.start_tls(
            plain,
            doorstep,
            context,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        if secure is None or secure.get_extra_info("ssl_object") is None:
            raise ConnectionAbortedError  # by us, which start_tls takes for success
        return secure


def _feed(transport: asyncio.Transport, data: bytes) -> None:
    """As if the transport had read it."""
    protocol = cast(asyncio.BufferedProtocol, transport.get_protocol())
    while data:
        buffer = memoryview(protocol.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


class _Doorstep(asyncio.Protocol):
    """Stands in TLS until the client's first byte, which says whether there is a guest."""

    def __init__(
        self,
        guest: Guest,
        visitor: Visitor,
        interception: Interception,
        refused: Callable[[str], None],
    ) -> None:
        self._guest = guest
        self._refused = refused
        self._visitor = visitor
        self._interception = interception
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        """What came right behind the handshake."""
        self._opened_at = 0.0

    def turn_away(self, plain: asyncio.Transport, why: str) -> None:
        """There is no handshake."""
        self._refused(why)
        plain.abort()
        self._guest.stayed_outside()

    def open(self, transport: asyncio.Transport, terms: Terms) -> None:
        """The handshake is done."""
        self._transport = transport
        self._opened_at = time.monotonic()
        self._guest.came_inside(transport, terms)
        if self._early:
            self.data_received(b"".join(self._early))

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        elif data.startswith(_PREFACE):
            self._refused("the client speaks HTTP/2, and would not have HTTP/1.1")
            self._transport.set_protocol(self._guest)
            self._guest.eof_received()  # nothing of it is a request
        else:
            self._interception.came_in(self._visitor)
            self._transport.set_protocol(self._guest)
            self._guest.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._interception.left(self._visitor, time.monotonic() - self._opened_at):
            self._refused(
                "the client left right after the handshake: it pins or refuses certificates"
            )
        self._guest.connection_lost(exc)


def _why(error: OSError) -> str:
    """What a client did, for a person who can do something about it."""
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    said = reason.lower().replace("_", " ")
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return f"the client does not trust our authority ({said}): see warmproxy ca trust-help"
    if "UNRECOGNIZED_NAME" in reason or "CALLBACK_FAILED" in reason:
        return "the client asks for another name than that of its CONNECT"
    if reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"):
        return f"the client speaks no TLS ({said})"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with the client: {said or error}"
    if isinstance(error, TimeoutError) or "taking longer" in str(error):
        return f"the client did not begin TLS within {HANDSHAKE_SECONDS:g} s"
    return (
        "the client hung up in the handshake; if that is since it does not trust our authority, see"
        " warmproxy ca trust-help"
    )
