"""Origin -> connected UpstreamConnection, or a DialError that says why not."""

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from warmproxy.errors import (
    DialClosed,
    DialError,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    TlsCertificateError,
    TlsProtocolError,
)
from warmproxy.net.race import Attempts, Races
from warmproxy.net.resolver import AddrInfo, Resolver
from warmproxy.net.source import NoSource, family
from warmproxy.net.tls import Context, Contexts
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.origin import Origin
from warmproxy.policy.destinations import Destinations

# A NAT may forget a silent connection after as little as 4 minutes, so probes come before that. Not
# too early either: a server that defers accepting (TCP_DEFER_ACCEPT: Apache 31 s, nginx `deferred`
# 63 s) and runs Linux 6.18 refuses the request that follows a probe (TcpExtTSEcrRejected) until the
# deferral is over; seen with probes after 15 and after 30 s. With TCP_USER_TIMEOUT (milliseconds),
# which is for requests to a peer that has vanished, Linux no longer counts probes: the first one
# that goes unanswered is the last if that time has passed when the next is due, so there have to be
# several within it. Linux only where the constant exists only there.
_OPTIONS: tuple[tuple[int, str, int], ...] = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 75),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 20_000),
)

_REFUSED = frozenset((errno.ECONNREFUSED, errno.ECONNRESET))
_UNREACHABLE = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN))
_NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))


HANDSHAKES = 24
"""That refills have begun and not done at once: an answer costs half a millisecond of the loop's
time, and answers come together (200 of them stalled it for 104 ms, and left twice the memory)."""

HANDSHAKE_PLACE = 0.1
"""Seconds that one counts for at most: a silent peer holds nobody else up."""


@dataclass(slots=True)
class Dialled:
    """A connection that is there, and the seconds that each phase took."""

    connection: UpstreamConnection
    dns: float
    tcp: float
    tls: float
    silent: tuple[str, ...] = ()
    """Addresses that were tried before and gave no answer."""


class Dialer:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        resolver: Resolver,
        destinations: Destinations,
        contexts: Contexts,
    ) -> None:
        self._loop = loop
        self._resolver = resolver
        self._destinations = destinations
        self._contexts = contexts
        self._races = Races(loop)
        self._places = asyncio.Semaphore(HANDSHAKES)

    def adopt(self, destinations: Destinations, contexts: Contexts) -> None:
        """Other settings hold for the dials to come."""
        self._destinations, self._contexts = destinations, contexts

    async def dial(
        self,
        origin: Origin,
        timeout: float,
        warm: socket.socket | None = None,
        urgent: bool = True,
        source: str = "",
        places: Callable[[], Mapping[str, int]] = dict,
    ) -> Dialled:
        """Resolve, connect and, for https, shake hands; each may take `timeout` seconds.
        `warm` is a socket that is connected to the place already. Not `urgent`: nobody waits for
        it, so it may wait for other handshakes. `source`: the local address, "" for any.
        `places`: the origin's open connections by address. Raises DialError.

        Timed by the system's clock: the loop's own counts whole milliseconds (uvloop), and the
        dials that a pool saves may be shorter.
        """
        started = resolved = connected = time.monotonic()
        sock = warm
        silent: tuple[str, ...] = ()
        context = self._contexts[origin.tls] if origin.scheme == "https" else None
        try:
            if sock is None:
                addresses = await self._resolver.resolve(origin.host, origin.port, timeout)
                addresses = self._allowed(origin, addresses, source)
                resolved = time.monotonic()
                sock, silent = await self._connect(origin, addresses, timeout, source, places)
                connected = time.monotonic()
            if context is not None:
                async with contextlib.nullcontext() if urgent else self._place():
                    connection = await self._shake_hands(origin, sock, timeout, context)
            else:
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(origin), sock=sock
                )
            sock = None  # the transport's from here on
        finally:
            if sock is not None:
                sock.close()
        done = time.monotonic()
        dns, tcp, tls = resolved - started, connected - resolved, done - connected
        return Dialled(connection, dns, tcp, tls, silent)

    async def _connect(
        self,
        origin: Origin,
        addresses: list[AddrInfo],
        timeout: float,
        source: str,
        places: Callable[[], Mapping[str, int]],
    ) -> tuple[socket.socket, tuple[str, ...]]:
        """The connected socket, and the addresses that were silent before."""
        attempts = Attempts()
        try:
            async with asyncio.timeout(timeout):
                sock = await self._races.run(origin, addresses, places, source, attempts)
        except TimeoutError as error:  # ours, or the system's ETIMEDOUT
            self._resolver.doubt(origin.host)
            why = error.strerror or f"no connection within {timeout:g} s"
            failed = DialTimeout(f"{origin.authority} did not answer: {why}")
            failed.silent = attempts.silent()
            raise failed from None
        except OSError as error:
            self._resolver.doubt(origin.host)
            translated = _translate(origin, error)
            if isinstance(translated, DialUnreachable):
                translated.silent = attempts.silent()
            raise translated from error
        try:
            self._destinations.check_connected(origin, sock.getsockname()[0], sock.getpeername()[0])
            tune(sock)
        except OSError as error:  # reset already
            sock.close()
            raise _translate(origin, error) from error
        except DialError:
            sock.close()
            raise
        return sock, attempts.silent(sock)

    async def _shake_hands(
        self, origin: Origin, sock: socket.socket, timeout: float, context: Context
    ) -> UpstreamConnection:
        """TLS with the origin's profile, its name as SNI and verified."""
        try:
            _, connection = await self._loop.create_connection(
                lambda: UpstreamConnection(origin, context.remember),
                sock=sock,
                ssl=context.ssl,
                server_hostname=origin.host,
                ssl_handshake_timeout=timeout,
            )
        except ssl.SSLCertVerificationError as error:
            raise TlsCertificateError(
                f"{origin.authority} is not to be trusted: {error.verify_message}"
            ) from error
        except ssl.SSLError as error:
            why = (error.reason or str(error)).lower().replace("_", " ")
            raise TlsProtocolError(f"no TLS with {origin.authority}: {why}") from error
        except (ConnectionError, TimeoutError) as error:
            raise TlsProtocolError(
                f"{origin.authority} did not finish the TLS handshake: {error}"
            ) from error
        return connection

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """A place among the handshakes under way."""
        await self._places.acquire()
        held = [self._places.release]
        timer = self._loop.call_later(HANDSHAKE_PLACE, lambda: held.pop()())
        try:
            yield
        finally:
            timer.cancel()
            if held:
                held.pop()()

    def _allowed(self, origin: Origin, addresses: list[AddrInfo], source: str) -> list[AddrInfo]:
        """Those of the addresses where a dial may go, and can from `source`. Raises the last one's
        denial if none may."""
        allowed, denial = [], None
        for address in addresses:
            try:
                self._destinations.check_address(origin, address[4][0])
                allowed.append(address)
            except DialError as error:
                denial = error
        if not allowed and denial is not None:
            raise denial
        if source and not (allowed := [a for a in allowed if a[0] == family(source)]):
            raise DialUnreachable(
                f"{origin.authority} has no address of the kind that source_address {source} is"
            )
        return allowed


def tune(sock: socket.socket) -> None:
    """TCP_NODELAY, keep-alive probes and a bound on unacknowledged data, where the system has
    them."""
    for level, name, value in _OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(level, option, value)


def _translate(origin: Origin, error: OSError) -> DialError:
    why = error.strerror or str(error)
    if isinstance(error, NoSource):
        return DialError(
            f"no connection to {origin.authority}: {why}",
            status=500,
            token="proxy_configuration_error",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return DialError(
            f"no local port left for a connection to {origin.authority}",
            status=503,
            token="connection_limit_reached",
        )
    if error.errno in _REFUSED:
        return DialRefused(f"{origin.authority} refused the connection")
    if error.errno == errno.ENOTCONN:  # reset between the connect and our first look
        return DialClosed(f"{origin.authority} accepted and closed at once")
    if error.errno in _UNREACHABLE:
        return DialUnreachable(f"{origin.authority} cannot be reached: {why}")
    if error.errno in _NO_DESCRIPTORS:
        return DialError(
            f"no file descriptor left for a connection to {origin.authority}",
            status=503,
            token="connection_limit_reached",
        )
    return DialError(f"no connection to {origin.authority}: {why}")
