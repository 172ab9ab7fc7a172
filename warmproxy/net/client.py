"""One client's connection: feeds its Exchange, carries out the actions, pauses the faster side."""

import asyncio
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never, cast

from warmproxy.errors import LimitReached, WarmproxyError
from warmproxy.net.acks import acknowledge
from warmproxy.net.housekeeper import Housekeeper, Lease
from warmproxy.net.intercept import Guest, Interceptor
from warmproxy.net.splice import Mover, can_move
from warmproxy.net.tunnel import Tunnel, reset
from warmproxy.net.upstream import WRITE_BUFFER
from warmproxy.observe import CloseReason, Observer
from warmproxy.policy.access import is_loopback
from warmproxy.policy.trial import OVERDUE
from warmproxy.protocol.exchange import Exchange, State, Terms
from warmproxy.protocol.messages import (
    Acquire,
    Action,
    Answered,
    Cancel,
    Close,
    CloseClient,
    Intercept,
    MoveToClient,
    MoveToUpstream,
    Release,
    Retried,
    Splice,
    ToClient,
    ToUpstream,
)
from warmproxy.settings import Settings

LINGER_SECONDS = 2.0
"""How long a client may take to read its last answer while it still sends."""

SWEPT_AT_ONCE = 500
"""Clients that one turn of the loop looks at: a millisecond if all are busy."""

_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


@dataclass(slots=True)
class Clients:
    """What all client connections share, and which of them there are."""

    housekeeper: Housekeeper
    interceptor: Interceptor
    observer: Observer
    loop: asyncio.AbstractEventLoop
    settings: Settings
    when_changed: Callable[[], None]
    """Called when a connection came or went."""
    open: set["ClientConnection"] = field(default_factory=set)
    by_address: Counter[str] = field(default_factory=Counter)
    """Open connections of each client address that is not loopback."""
    tunnels: int = 0
    draining: bool = False
    patient: bool = False
    """While draining: whoever is idle may ask once more."""
    none_left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection goes while draining."""
    time: Callable[[], float] = field(init=False)
    """The loop's clock, in seconds."""

    def __post_init__(self) -> None:
        self.time = self.loop.time

    def connect(self, terms: Terms) -> "ClientConnection":
        """What a listener makes for each connection that it accepts."""
        return ClientConnection(self, terms)

    def drain(self, *, patient: bool = False) -> None:
        """Each connection finishes what is under way and begins nothing; with `patient`, idle
        ones may ask once more: they cannot know yet."""
        self.draining, self.patient = True, patient
        for client in list(self.open):
            client.drain()
        self._look()

    def end_inside(self, terms: Terms) -> None:
        """These terms are over: who is inside by them finishes what is under way."""
        for client in [client for client in self.open if client.terms is terms]:
            client.drain()

    def abort(self) -> int:
        """The grace time is over; how many connections were cut."""
        left = list(self.open)
        for client in left:
            client.abort()
        return len(left)

    def sweep(self) -> None:
        """Look at each for what no event tells: to be called about once a second."""
        self._sweep(list(self.open))

    def _sweep(self, left: list["ClientConnection"]) -> None:
        now = self.loop.time()
        for client in left[-SWEPT_AT_ONCE:]:
            if client in self.open:
                client.sweep(now)
        del left[-SWEPT_AT_ONCE:]
        if left:
            self.loop.call_soon(self._sweep, left)

    def came(self, client: "ClientConnection", address: str) -> None:
        """A connection was accepted. Raises LimitReached where its address has too many."""
        self.open.add(client)
        self.when_changed()
        if is_loopback(address):
            return
        self.by_address[address] += 1
        most = self.settings.max_clients_per_address
        if most and self.by_address[address] > most:
            raise LimitReached(f"{address} has {most} connections open (max_clients_per_address)")

    def gone(self, client: "ClientConnection", address: str) -> None:
        if client not in self.open:
            return
        self.open.remove(client)
        if address in self.by_address:
            self.by_address[address] -= 1
            if not self.by_address[address]:
                del self.by_address[address]
        self.when_changed()
        self._look()

    def _look(self) -> None:
        if self.draining and not self.open:
            self.none_left.set()


class ClientConnection(Guest):
    """Client of the daemon; waiter of the housekeeper; sink of an upstream connection."""

    __slots__ = (
        "_asked_at",
        "_below",
        "_client_full",
        "_clients",
        "_exchange",
        "_first_byte_due",
        "_lease",
        "_lingers",
        "_moved",
        "_mover",
        "_pinned",
        "_queued",
        "_reading",
        "_since",
        "_terms",
        "_transport",
        "_tunnel",
        "_upstream_full",
    )

    def __init__(self, clients: Clients, terms: Terms) -> None:
        self._clients = clients
        self._terms = terms
        self._lease: Lease | None = None
        self._tunnel: Tunnel | None = None
        self._mover: Mover | None = None
        """In our place as the transport's protocol since the first long body of a request."""
        self._reading = True
        self._upstream_full = False
        self._client_full = False
        self._pinned = False
        """The lease stays with this client between its exchanges."""
        self._moved = 0
        """Bytes through the tunnel at the last sweep."""
        self._queued = (0, 0)
        """Bytes that the client and the upstream had yet to take at the last sweep."""
        self._lingers = False
        self._first_byte_due = False
        self._since = clients.time()
        """Of the last event that counts for a timeout."""
        self._asked_at = 0.0
        """By the system's clock: the loop's (uvloop) counts whole milliseconds."""
        self._exchange: Exchange
        self._transport: asyncio.Transport
        self._below: asyncio.Transport | None = None
        """Inside an intercepted CONNECT: what carries the TLS."""

    def __repr__(self) -> str:
        return f"<ClientConnection {self._exchange!r} {self._lease and self._lease.connection!r}>"

    @property
    def exchange(self) -> Exchange:
        return self._exchange

    @property
    def terms(self) -> Terms:
        return self._terms

    @property
    def is_tunnel(self) -> bool:
        return self._tunnel is not None

    # ── asyncio.Protocol: the client's side ──────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        peername = transport.get_extra_info("peername")
        self._exchange = Exchange(self._terms, peername[0] if peername else "")
        if peername is None:  # it was gone before it was accepted
            self._transport.abort()
            return
        try:
            self._clients.came(self, self._exchange.client_address)
        except LimitReached as error:
            self._run(self._exchange.refuse(error))
        if self._clients.draining:
            self.drain()

    def data_received(self, data: bytes) -> None:
        # a head's time runs from its first byte, and the last answer's from its end
        if not (self._exchange.awaits_head or self._lingers):
            self._since = self._clients.time()
        self._run(self._exchange.client_data(data))
        if self._exchange.lacks:
            acknowledge(self._transport, len(data))

    def eof_received(self) -> bool:
        if self._lingers:
            return False
        self._run(self._exchange.client_eof())
        # a client may half-close and still want its answer; TLS knows no half-close
        open_still = self._exchange.state is not State.CLOSED or self._lingers
        return open_still and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.gone(self, self._exchange.client_address)
        self._run(self._exchange.client_lost())
        self._drop_pinned()

    def pause_writing(self) -> None:
        self._client_full = True
        if self._lease is not None:
            self._lease.connection.pause_reading()

    def resume_writing(self) -> None:
        self._client_full = False
        if self._lease is not None:
            self._lease.connection.resume_reading()

    # ── Guest: an interceptor's side ─────────────────────────────────────────────────────────

    def came_inside(self, transport: asyncio.Transport, terms: Terms) -> None:
        """The client's TLS ends here: what it asks from now on comes through that."""
        self._below, self._transport, self._terms = self._transport, transport, terms
        self._mover = None
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._exchange = Exchange(terms, self._exchange.client_address)
        self._since = self._clients.time()
        if self._clients.draining or terms.is_over:
            self.drain()

    def stayed_outside(self) -> None:
        """There was no handshake, and the connection is gone."""
        self._clients.gone(self, self._exchange.client_address)

    # ── Waiter: the pool's side ──────────────────────────────────────────────────────────────

    def lease_ready(self, lease: Lease) -> None:
        self._run(self._take(lease))

    def lease_failed(self, error: WarmproxyError) -> None:
        self._run(self._exchange.lease_failed(error))

    # ── Sink: the upstream's side ────────────────────────────────────────────────────────────

    def upstream_data(self, data: bytes) -> None:
        if self._pinned:
            self._drop_pinned()  # between two exchanges nobody has asked for anything
            return
        self._since = self._clients.time()
        if self._first_byte_due:
            self._first_byte_due = False
            assert self._lease is not None
            self._lease.tally.first_byte.observe(time.monotonic() - self._asked_at)
            self._lease.answered()
        self._run(self._exchange.upstream_data(data))
        if self._exchange.is_forwarding and self._lease is not None:
            acknowledge(self._lease.connection.transport, len(data))

    def upstream_moved(self, size: int) -> None:
        """Bytes of the response's body went past, see MoveToClient."""
        self._since = self._clients.time()
        self._run(self._exchange.response_moved(size))

    def client_moved(self, size: int) -> None:
        """Bytes of the request's body went past, see MoveToUpstream."""
        self._since = self._clients.time()
        self._run(self._exchange.request_moved(size))

    def upstream_ended(self, *, reset: bool) -> None:
        if self._pinned:
            self._drop_pinned()
            return
        lease = self._lease
        alert = lease is not None and lease.connection.ended is CloseReason.TLS_ALERT
        self._run(self._exchange.upstream_ended(reset=reset, alert=alert))

    def upstream_writable(self, writable: bool) -> None:
        self._upstream_full = not writable
        self._adjust_reading()

    # ── for the service ──────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Finish what is under way, begin nothing."""
        patient = self._clients.patient
        if self._tunnel is None:
            self._run(self._exchange.drain(patient=patient))
            if self._exchange.state is State.TUNNEL and not patient:
                self._transport.abort()  # its TLS has just begun, and nothing would come of it

    def abort(self) -> None:
        """The grace time is over."""
        if self._tunnel is not None:
            self._tunnel.close()
        if self._exchange.is_forwarding:
            reset(self._transport)  # an answer that ends by close would look whole
        else:
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Look for what no event tells: called about once a second."""
        exchange, settings = self._exchange, self._clients.settings
        if exchange.is_quiet and now - self._since < settings.client_idle_timeout:
            return  # most clients at most times
        if self._tunnel is not None:
            self._sweep_tunnel(self._tunnel, now)
            return
        self._look_at_queues(now)
        waited = now - self._since
        if self._lingers:
            if waited >= LINGER_SECONDS:
                self._transport.abort()
        elif exchange.state is State.LINGERING:
            if waited >= LINGER_SECONDS:
                self._run(exchange.client_eof())
        elif self._transport.is_closing():
            # what is queued goes out first, but not for ever to a client that does not read; TLS
            # then waits for the client's close_notify
            queued = self._queued[0] > 0
            if waited >= (settings.client_idle_timeout if queued else LINGER_SECONDS):
                self._transport.abort()
        elif exchange.state is State.IDLE:
            if exchange.awaits_head:
                if waited >= settings.head_timeout:
                    self._run(exchange.head_timed_out())
            elif waited >= settings.client_idle_timeout:
                self._run(exchange.client_eof())
        elif exchange.state is State.FORWARDING:
            assert self._lease is not None
            upstream = self._lease.settings
            asked = exchange.awaits_response or self._upstream_full
            if asked and self._first_byte_due and waited >= OVERDUE:
                self._lease.overdue(waited)
            if exchange.awaits_response:
                if upstream.response_timeout and waited >= upstream.response_timeout:
                    self._run(exchange.response_timed_out())
            elif upstream.stall_timeout and waited >= upstream.stall_timeout:
                if self._client_full:
                    reset(self._transport)  # it takes nothing: no answer would reach it
                else:
                    self._run(exchange.stalled(upstream_full=self._upstream_full))
        elif exchange.state is State.CONNECTING:
            if not self._reading and self._hung_up():
                self._transport.abort()
            elif waited >= OVERDUE:
                assert exchange.origin is not None
                self._clients.housekeeper.overdue(exchange.origin, waited)

    def _look_at_queues(self, now: float) -> None:
        """A slow reader takes bytes without any event: what is queued for it becomes less."""
        to_client, to_upstream = self._transport.get_write_buffer_size(), 0
        if self._below is not None:
            to_client += self._below.get_write_buffer_size()
        if self._lease is not None:
            upstream = self._lease.connection
            to_client += upstream.waiting
            to_upstream = upstream.transport.get_write_buffer_size()
            to_upstream += self._mover.waiting if self._mover is not None else 0
        queued = (to_client, to_upstream)
        if queued != self._queued:
            self._queued = queued
            if self._exchange.is_forwarding or self._lingers or self._transport.is_closing():
                self._since = now

    def _sweep_tunnel(self, tunnel: Tunnel, now: float) -> None:
        moved = tunnel.moved
        limit = self._clients.settings.tunnel_idle_timeout
        if moved != self._moved:
            self._moved, self._since = moved, now
            return
        waited = now - self._since
        if self._first_byte_due and tunnel.up and waited >= OVERDUE:
            assert self._lease is not None
            self._lease.overdue(waited)
        if limit and waited >= limit:
            tunnel.close()

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _run(self, actions: list[Action]) -> None:
        """Carry the actions out in their order; those that follow from them join the list."""
        for action in actions:
            # a chain of isinstance takes two thirds of the time that a match takes
            if isinstance(action, ToClient):
                self._transport.write(action.data)
            elif isinstance(action, ToUpstream):
                assert self._lease is not None
                self._since = self._clients.time()
                self._lease.connection.transport.write(action.data)
            elif isinstance(action, Acquire):
                actions += self._acquire(action)
            elif isinstance(action, Release):
                self._release(action)
            elif isinstance(action, Answered):
                self._answered(action)
            elif isinstance(action, Retried):
                tally = self._clients.housekeeper.tally(self._exchange.origin)
                tally.retries["stale"] += 1
            elif isinstance(action, MoveToClient):
                self._move_to_client(action.length)
            elif isinstance(action, MoveToUpstream):
                self._move_to_upstream(action.length)
            elif isinstance(action, Splice):
                self._splice(action)
            elif isinstance(action, Intercept):
                self._intercept(action)
                return
            elif isinstance(action, Cancel):
                origin = self._exchange.origin
                assert origin is not None
                self._clients.housekeeper.cancel(origin, self)
            elif isinstance(action, CloseClient):
                self._close(action.how)
            else:
                assert_never(action)
        self._adjust_reading()

    def _acquire(self, action: Acquire) -> list[Action]:
        clients = self._clients
        self._asked_at = time.monotonic()
        if self._pinned:
            assert self._lease is not None
            if action.origin == self._lease.connection.origin and self._lease.is_alive():
                self._pinned = False
                self._first_byte_due = self._lease.was_used = True
                return self._exchange.leased(True, self._lease.settings.idempotency_key)
            self._drop_pinned()
        try:
            if action.origin.scheme == "tcp" and clients.tunnels >= clients.settings.max_tunnels:
                raise LimitReached(f"{clients.tunnels} tunnels are open (max_tunnels)")
            lease = clients.housekeeper.acquire(action.origin, action.prefer, self)
        except WarmproxyError as error:
            return self._exchange.lease_failed(error)
        return [] if lease is None else self._take(lease)

    def _take(self, lease: Lease) -> list[Action]:
        clients = self._clients
        if (
            lease.connection.origin.scheme == "tcp"
            and clients.tunnels >= clients.settings.max_tunnels
        ):  # others came to stand while this one was dialled
            lease.release(reusable=False)
            error = LimitReached(f"{clients.tunnels} tunnels are open (max_tunnels)")
            return self._exchange.lease_failed(error)
        self._lease = lease
        self._upstream_full = False
        self._first_byte_due = True
        lease.connection.attach(self)
        if self._client_full:
            lease.connection.pause_reading()
        return self._exchange.leased(lease.was_used, lease.settings.idempotency_key)

    def _move_to_client(self, length: int) -> None:
        assert self._lease is not None
        upstream = self._lease.connection
        if can_move(upstream.transport, self._transport):
            upstream.move(self._transport, length, self.upstream_moved)

    def _move_to_upstream(self, length: int) -> None:
        assert self._lease is not None
        upstream = self._lease.connection
        if can_move(self._transport, upstream.transport):
            if self._mover is None:
                self._mover = Mover(self._transport, self)
            self._mover.move(upstream.transport, self.client_moved, WRITE_BUFFER, length)

    def _release(self, action: Release) -> None:
        self._upstream_full = False
        if self._mover is not None:
            self._mover.stop()
        if action.pinned:
            self._pinned = True
            return
        lease, self._lease = self._lease, None
        if lease is not None:
            if action.unanswered:
                lease.lost()
            lease.release(reusable=action.reusable, keep_alive=action.keep_alive)

    def _drop_pinned(self) -> None:
        """The connection that this client has authenticated is of use to nobody else."""
        if self._pinned:
            self._pinned = False
            self._release(Release(reusable=False))

    def _answered(self, action: Answered) -> None:
        clients = self._clients
        self._since = clients.time()
        tally = clients.housekeeper.tally(action.origin)
        tally.requests[_CODE_CLASSES[action.status // 100]] += 1
        if clients.settings.access_log:
            clients.observer.answered(
                self._exchange.client_address,
                action.method.decode("ascii", "replace"),
                action.origin,
                action.status,
                time.monotonic() - self._asked_at,
                action.error,
            )

    def _splice(self, action: Splice) -> None:
        lease = self._lease
        assert lease is not None
        lease.tally.tunnels += 1
        self._clients.tunnels += 1
        ended = self._exchange.client_ended
        self._tunnel = Tunnel(
            self._transport, lease.connection.transport, self._tunnel_answered, self._tunnel_ended
        )
        self._tunnel.send_early(action.to_upstream, action.to_client + lease.connection.early)
        if ended:
            self._tunnel.client_ended()

    def _intercept(self, action: Intercept) -> None:
        assert self._terms.interception is not None
        self._drop_pinned()
        if self._client_full:  # TLS would be told that there is room, and it knows of no lack
            reset(self._transport)
            return
        self._reading = True  # as it will be again
        self._clients.interceptor.receive(self, self._transport, action, self._terms.interception)

    def _tunnel_answered(self) -> None:
        if self._first_byte_due:  # but for one that began as a request
            self._first_byte_due = False
            assert self._lease is not None
            self._lease.answered()

    def _tunnel_ended(self, tunnel: Tunnel) -> None:
        lease = self._lease
        assert lease is not None
        lease.tally.tunnel_bytes_up += tunnel.up
        lease.tally.tunnel_bytes_down += tunnel.down
        lease.connection.broken |= tunnel.timed_out
        self._clients.gone(self, self._exchange.client_address)
        self._clients.tunnels -= 1
        self._tunnel = None
        self._release(Release(reusable=False))

    def _close(self, how: Close) -> None:
        self._since = self._clients.time()
        if how is Close.ABORT:
            reset(self._transport)
        elif how is Close.LINGER and self._transport.can_write_eof():
            self._lingers = True
            self._transport.write_eof()
        else:
            self._transport.close()

    def _adjust_reading(self) -> None:
        """Read from the client while somebody has room for what it sends."""
        reads = (not self._upstream_full and self._exchange.wants_data) or self._lingers
        if reads is self._reading or self._tunnel is not None or self._transport.is_closing():
            return
        self._reading = reads
        if reads and self._mover is not None:
            self._mover.resume()
        elif reads:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _hung_up(self) -> bool:
        """A paused transport never tells that its peer is gone: ask the socket."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), _HANG_UP)
        return bool(poll.poll(0))


_CODE_CLASSES = ("0xx", "1xx", "2xx", "3xx", "4xx", "5xx", "6xx", "7xx", "8xx", "9xx")
