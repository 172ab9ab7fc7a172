"""Two transports spliced: bytes both ways, back-pressure, half-close (RFC 9110, 9.3.6)."""

import asyncio
import socket
import struct
from collections.abc import Callable

from warmproxy.net.acks import acknowledge
from warmproxy.net.splice import Mover, can_move, set_protocol

MOVED_FROM = 64 * 1024
"""Bytes from one side after which the rest is spliced: most tunnels carry less, and to begin takes
as long as a request does."""

_NO_LINGER = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """End a connection by RST: what abort() does alone is an orderly FIN to the peer."""
    if not transport.is_closing():
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


class Tunnel:
    """Joins two connected transports by taking over their protocols.

    `on_answer` is called once, when the upstream's first byte comes, and `on_end` when both sides
    are closed. A side's end is passed on as an end of
    writing; the other direction stays open until it ends as well. `up` and `down` count bytes
    from the client and to it.
    """

    def __init__(
        self,
        client: asyncio.Transport,
        upstream: asyncio.Transport,
        on_answer: Callable[[], None],
        on_end: Callable[["Tunnel"], None],
    ) -> None:
        self._on_end = on_end
        self._client = _Side(self, client)
        self._upstream = _Side(self, upstream, on_answer)
        self._client.peer, self._upstream.peer = self._upstream, self._client
        for side in (self._client, self._upstream):
            if not side.transport.is_reading() and not side.transport.is_closing():
                side.transport.resume_reading()
        plain = can_move(client, upstream)
        for side in (self._client, self._upstream):
            side.begin(plain)

    @property
    def up(self) -> int:
        return self._client.received

    @property
    def down(self) -> int:
        return self._upstream.received

    @property
    def moved(self) -> int:
        """Bytes that were handed on."""
        return self.up + self.down - self._client.waiting - self._upstream.waiting

    @property
    def timed_out(self) -> bool:
        """Whether the upstream stopped acknowledging. (A reset says less here: many a protocol
        ends by one.)"""
        return isinstance(self._upstream.lost_by, TimeoutError)

    def send_early(self, to_upstream: bytes, to_client: bytes) -> None:
        """What came before the tunnel stood goes first."""
        if to_upstream:
            self._client.data_received(to_upstream)
        if to_client:
            self._upstream.data_received(to_client)

    def client_ended(self) -> None:
        """The client had half-closed before the tunnel stood."""
        self._client.eof_received()

    def close(self) -> None:
        """Flush and close both sides."""
        self._client.flush()
        self._upstream.flush()
        self._client.transport.close()
        self._upstream.transport.close()

    def side_lost(self) -> None:
        if self._client.lost and self._upstream.lost:
            self._on_end(self)
            for side in (self._client, self._upstream):
                side.forget()


class _Side(asyncio.Protocol):
    """One end: what it receives is written to its peer, or, where it is much and both ends are
    plain, moved there."""

    peer: "_Side"
    _mover: Mover | None = None
    _plain = False

    def __init__(
        self,
        tunnel: Tunnel,
        transport: asyncio.Transport,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self._tunnel = tunnel
        self._on_first = on_first
        self.transport = transport
        self.received = 0
        self.ended = False
        self.lost = False
        self.lost_by: Exception | None = None

    def begin(self, plain: bool) -> None:
        """Take over the transport; `plain`: neither side is TLS."""
        self._plain = plain
        set_protocol(self.transport, self)

    def forget(self) -> None:
        """Both are closed. What points in a circle would stay until a full garbage collection, and
        the service has next to none."""
        del self._tunnel, self.peer

    @property
    def waiting(self) -> int:
        return self._mover.waiting if self._mover is not None else 0

    def flush(self) -> None:
        if self._mover is not None:
            self._mover.flush()

    def came(self, size: int) -> None:
        if self._on_first is not None:
            self._on_first()
            self._on_first = None
        self.received += size
        acknowledge(self.transport, size)

    def data_received(self, data: bytes) -> None:
        self.came(len(data))
        self.peer.transport.write(data)
        if (
            self._plain
            and self.received >= MOVED_FROM
            and can_move(self.transport, self.peer.transport)
        ):
            self._plain = False
            self._mover = Mover(self.transport, self)
            self._mover.move(self.peer.transport, self.came, 0)

    def eof_received(self) -> bool:
        if not self.ended:
            self.ended = True
            if self.peer.ended or self.peer.lost:
                self._tunnel.close()
            elif self.peer.transport.can_write_eof():
                self.peer.transport.write_eof()
            else:
                self._tunnel.close()  # TLS knows no half-close: flush, and end both
        return self.transport.can_write_eof()  # the other direction may still be in use

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.lost_by = exc
        if exc is not None:
            # a reset is not an orderly end: pass it on as one
            reset(self.peer.transport)
        else:
            self.peer.transport.close()
        self._tunnel.side_lost()

    def pause_writing(self) -> None:
        if not self.peer.lost and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.peer.lost and not self.peer.transport.is_closing():
            self.peer.resume()

    def resume(self) -> None:
        if self._mover is not None:
            self._mover.resume()
        else:
            self.transport.resume_reading()
