"""One connection to an upstream: watched while idle, a source for its sink while active.

Idle is an active state: the transport always reads, and whatever arrives ends the connection,
each kind under its own name. Nothing that came while it was idle is ever handed on.
"""

import asyncio
import os
import select
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Protocol, cast

from warmproxy.net.splice import Mover
from warmproxy.observe import CloseReason
from warmproxy.origin import Origin
from warmproxy.policy.destinations import reached
from warmproxy.protocol.heads import read_status

WRITE_BUFFER = 256 * 1024
"""Bytes queued for a slow reader before its source is paused."""

PEEKED = 256
"""Bytes that hold a status line."""

TLS_ALERT_RECORD = 0x15  # RFC 8446, 5.1: content type 21


class Sink(Protocol):
    """Who holds the lease: gets what the upstream sends."""

    def upstream_data(self, data: bytes) -> None: ...

    def upstream_ended(self, *, reset: bool) -> None: ...

    def upstream_writable(self, writable: bool) -> None:
        """The upstream takes no more for now, or (True) again."""


class UpstreamConnection(asyncio.Protocol):
    """Made by the dialer. `on_idle_end` hears why it ended while no lease held it; the holder of
    a lease hears it as its sink and finds the reason in `ended`.
    """

    __slots__ = (
        "_mover",
        "_poll",
        "_remember",
        "_sink",
        "broken",
        "early",
        "ended",
        "on_idle_end",
        "origin",
        "peer",
        "said",
        "transport",
    )

    def __init__(
        self, origin: Origin, remember: Callable[[ssl.SSLObject | None], None] | None = None
    ) -> None:
        self.origin = origin
        self._remember = remember
        """Keeps the TLS session for later dials."""
        self.peer = ""
        """Its address."""
        self.broken = False
        """Ended by a reset or a time-out, which others to the same address may share."""
        self.ended: CloseReason | None = None
        self.said: int | None = None
        """The status of a response that came for no request."""
        self.early = b""
        """Of a raw connection: what the upstream said before anybody had the connection."""
        self.on_idle_end: Callable[[UpstreamConnection, CloseReason], None] | None = None
        self._sink: Sink | None = None
        self._mover: Mover | None = None
        self._poll: select.poll | None = None
        self.transport: asyncio.Transport

    def __repr__(self) -> str:
        state = self.ended or ("active" if self._sink else "idle")
        return f"<UpstreamConnection {self.origin} {self.peer} {state}>"

    # ── for the holder of the lease ──────────────────────────────────────────────────────────

    def attach(self, sink: Sink) -> None:
        self._sink = sink

    def detach(self) -> None:
        """The lease is over. Reading goes on: a paused transport would never see the FIN."""
        self._sink = None
        if self._mover is not None:
            self._mover.stop()
        if self._remember is not None:
            self._remember(self.transport.get_extra_info("ssl_object"))
            self._remember = None
        if self.ended is None and not self.transport.is_reading():
            self.transport.resume_reading()

    @property
    def waiting(self) -> int:
        """Bytes that left it by `move` and have not gone on."""
        return self._mover.waiting if self._mover is not None else 0

    def pause_reading(self) -> None:
        if self.ended is None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._mover is not None:
            self._mover.resume()
        elif self.ended is None:
            self.transport.resume_reading()

    def move(self, to: asyncio.Transport, length: int, moved: Callable[[int], None]) -> None:
        """The next `length` bytes go to `to` instead of the sink, which hears of their numbers by
        `moved` and must not write there. It ends when all have gone or the lease is over."""
        if self._mover is None:  # it stays: who sent one long body sends more
            self._mover = Mover(self.transport, self)
        self._mover.move(to, moved, WRITE_BUFFER, length)

    # ── for the pool's keeper ────────────────────────────────────────────────────────────────

    def check(self) -> CloseReason | None:
        """The liveness test at checkout: None if the connection can be used, else why not.

        The loop may not have seen a FIN yet; readable means that something came for nobody.
        A connection that fails is closed.
        """
        if self.ended is not None:
            return self.ended
        if self.transport.is_closing():  # TLS that broke is told a turn after its socket is gone
            self.ended = CloseReason.UPSTREAM_RESET
        else:
            # one poll object for all checks of a connection takes 0.3 µs, urllib3's wait_for_read,
            # which makes a new one each time, 0.9
            poll = self._poll
            if poll is None:
                poll = self._poll = select.poll()
                poll.register(self._fileno(), select.POLLIN)
            if poll.poll(0):
                self.ended = self._why_readable()
                self.transport.abort()
        return self.ended

    def close(self) -> None:
        """We end it. Nobody is told."""
        self._sink = None
        self.on_idle_end = None
        self.transport.close()

    def refuse_data(self, data: bytes) -> None:
        """Bytes came that nobody asked for: the connection is of no use."""
        self._end(self._classify(data))
        self.transport.abort()

    def take_socket(self) -> socket.socket:
        """The connected socket, for TLS to begin on; this object is done with it."""
        taken = socket.socket(fileno=os.dup(self._fileno()))
        taken.setblocking(False)
        self.close()
        return taken

    def _fileno(self) -> int:
        # not kept: the loop makes a socket object of 72 bytes when it is asked for one
        fileno: int = self.transport.get_extra_info("socket").fileno()
        return fileno

    def _why_readable(self) -> CloseReason:
        # the loop's socket object cannot be read from: look through a second descriptor
        with socket.socket(fileno=os.dup(self._fileno())) as sock:
            try:
                data = sock.recv(PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                self.broken = True
                return CloseReason.UPSTREAM_RESET
        return self._classify(data) if data else CloseReason.UPSTREAM_EOF

    def _classify(self, data: bytes) -> CloseReason:
        if self.origin.scheme == "tcp" and data[0] == TLS_ALERT_RECORD:
            return CloseReason.TLS_ALERT
        self.said = read_status(data)
        return CloseReason.UNSOLICITED_DATA

    def _end(self, reason: CloseReason, *, broken: bool = False) -> None:
        if self.ended is not None:
            return
        self.ended = reason
        self.broken = broken
        if self._sink is not None:
            self._sink.upstream_ended(reset=reason is not CloseReason.UPSTREAM_EOF)
        elif self.on_idle_end is not None:
            self.on_idle_end(self, reason)

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if peername := transport.get_extra_info("peername"):  # none once it was reset
            self.peer = sys.intern(str(reached(peername[0])))
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.upstream_data(data)
        elif self.ended is None and self.on_idle_end is None and self.origin.scheme == "tcp":
            # Nobody has it yet: a tunnel's client may wait for this (SSH and SMTP servers speak
            # first), so it is kept until it is known who gets the connection.
            self.early += data
            self.transport.pause_reading()
        elif self.ended is None:
            self.refuse_data(data)

    def eof_received(self) -> bool | None:
        self._end(CloseReason.UPSTREAM_EOF)
        return None  # the transport closes itself: no CLOSE_WAIT

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._end(CloseReason.TLS_ALERT)
        elif exc is not None or (self.origin.scheme == "https" and self._sink is not None):
            # TLS that ends without close_notify may have been cut (RFC 9112, 9.8)
            self._end(CloseReason.UPSTREAM_RESET, broken=exc is not None)
        else:
            self._end(CloseReason.UPSTREAM_EOF)

    def pause_writing(self) -> None:
        if self._sink is not None:
            self._sink.upstream_writable(False)

    def resume_writing(self) -> None:
        if self._sink is not None:
            self._sink.upstream_writable(True)
