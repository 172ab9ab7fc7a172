"""The composition root: build the house, open the doors, sweep, and leave in good order."""

import asyncio
import gc
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial

import uvloop

from warmproxy import __version__, log, sample, wiring
from warmproxy.admin.pages import Readiness, View, awaited, respond, submit
from warmproxy.admin.server import AdminConnection, AdminHosts
from warmproxy.net.changes import NetworkChanges, read_clocks, slept
from warmproxy.net.client import Clients
from warmproxy.net.dialer import Dialer
from warmproxy.net.housekeeper import Housekeeper, Waiter
from warmproxy.net.listener import Doors, Factory
from warmproxy.net.prime import Primer
from warmproxy.net.resolver import Resolver
from warmproxy.net.splice import PIPES
from warmproxy.net.tls import Contexts
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.pool.registry import Registry
from warmproxy.settings import Settings
from warmproxy.state import StateFile
from warmproxy.warming import Warming

SWEEP_SECONDS = 1.0
"""Between two looks for what no event tells: timeouts, clients that hung up while paused."""

DESCRIPTORS_APART = 64
"""For what is neither client nor upstream: listeners, admin, log, look-ups, the loop's own."""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError where it cannot start."""
    log.setup(settings.log_format, sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Service(settings).serve())


class Service:
    """One run of the daemon. `serve` is its whole life."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop_lag = 0.0
        self._date = (0, b"")
        self._admins: set[AdminConnection] = set()
        self._stopping = asyncio.Event()
        self._announced = False
        self._is_crowded = False
        """accept_paused was said, accept_resumed was not yet."""
        self._paused_at = 0.0
        self._shed_all = 0
        self._cut = 0
        """Connections that the end of the grace time cut."""
        self._shed = 0
        """Idle connections that were closed since descriptors ran out."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._clocks = read_clocks()

    async def serve(self) -> None:
        """Build, listen, and stay until a signal comes; then drain."""
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        sockets = wiring.bind(self._settings)
        self._build(sockets)
        await self._doors.open()
        if sockets.admin is not None:
            hosts = AdminHosts(self._settings.admin_hosts, self._settings.admin)
            factory = partial(
                AdminConnection,
                partial(respond, self._view),
                partial(submit, self._view),
                wiring.own_access(self._settings),
                hosts,
                self._http_date,
                self._admins,
            )
            self._admin_server = await loop.create_server(factory, sock=sockets.admin)
        self._warming.tick(time.time())
        self._say_hello(sockets)
        self._housekeeper.start()
        self._sweep_at(loop.time() + SWEEP_SECONDS)
        # Full collections while connections are opened stalled the loop for 80 ms with 18,000 of
        # them, and found nothing: what a connection leaves is freed by reference counts. Cycles
        # are found while they are young.
        gc.freeze()
        gc.set_threshold(700, 10, 1000)
        try:
            changes = NetworkChanges(loop, self._network_changed)
        except OSError:
            changes = None  # not Linux, or not allowed to us
        try:
            await self._stopping.wait()
            await self._drain()
        finally:
            self._sweeping.cancel()
            if changes is not None:
                changes.close()

    # ── building, and opening the doors ──────────────────────────────────────────────────────

    def _build(self, sockets: wiring.Sockets) -> None:
        settings, loop = self._settings, self._loop
        observer = log.LogObserver(access_log=settings.access_log)
        self._state = StateFile(settings.state_file)
        self._registry = registry = Registry[UpstreamConnection, Waiter](
            settings, observer, random.random, loop.time(), self._state.recall
        )
        where = wiring.destinations(settings, registry.configured, sockets)
        self._resolver = Resolver(loop, settings.dns_refresh, random.random)
        contexts = Contexts(wiring.profiles(settings))
        for origin in registry.configured:
            if origin.tls is not None:
                contexts[origin.tls]  # made now: the loop would wait 70 ms for it
        dialer = Dialer(loop, self._resolver, where, contexts)
        self._housekeeper = Housekeeper(settings, registry, dialer, observer, loop)
        self._resolver.is_wanted = self._housekeeper.places.wanted
        self._resolver.on_answer = self._housekeeper.places.located
        self._primer = Primer(
            wiring.primes(settings), self._housekeeper, observer, loop, settings.max_head
        )
        self._descriptors = wiring.raise_descriptor_limit() - DESCRIPTORS_APART
        self._clients = Clients(
            housekeeper=self._housekeeper,
            observer=observer,
            loop=loop,
            settings=settings,
            when_changed=self._look_at_descriptors,
        )
        terms = wiring.proxy_terms(settings, where, self._http_date)
        self._warming = Warming(settings, terms, self._housekeeper, loop.time)
        connect = self._clients.connect
        doors: list[tuple[socket.socket, Factory]] = [
            (sock, partial(connect, terms)) for sock in sockets.proxy
        ]
        gateways = wiring.gateway_terms(settings, terms)
        for sock, its_terms in zip(sockets.gateways, gateways, strict=True):
            doors.append((sock, partial(connect, its_terms)))
        self._doors = Doors(doors)
        self._readiness = Readiness(deadline=loop.time() + settings.ready_timeout)
        self._view = View(
            now=loop.time,
            pools=lambda: list(registry),
            configured=registry.configured,
            readiness=self._readiness,
            metrics=self._metrics,
            grant=self._warming.grant,
        )

    def _say_hello(self, sockets: wiring.Sockets) -> None:
        addresses = [_address(sock) for sock in sockets.proxy]
        log.event(
            "listening",
            version=__version__,
            proxy=addresses,
            gateways=[_address(sock) for sock in sockets.gateways] or None,
            admin=_address(sockets.admin) if sockets.admin is not None else None,
            warm=[f"{pool.origin}={pool.target_idle(0.0)}" for pool in self._registry],
        )
        for upstream in self._settings.upstream:
            if not upstream.verify:
                log.event("unverified", level="warning", origin=str(upstream.secure_origin))
        if self._settings.log_format != "json":
            print(banner(addresses[0]), flush=True)

    # ── while it runs ────────────────────────────────────────────────────────────────────────

    def _sweep_at(self, due: float) -> None:
        self._sweeping = self._loop.call_at(due, self._sweep, due)

    def _sweep(self, due: float) -> None:
        now = self._loop.time()
        self._loop_lag = max(0.0, now - due)
        self._clients.sweep()
        PIPES.sweep()
        for admin in list(self._admins):
            admin.sweep(now)
        self._warming.tick(time.time())
        if not self._announced:
            self._announce(now)
        self._look_at_descriptors()
        clocks = read_clocks()
        if asleep := slept(self._clocks, clocks):
            log.event("suspended", seconds=round(asleep), suspect=self._distrust())
        self._clocks = clocks
        self._state.look(self._registry, self._loop)
        # At its limit a daemon pauses with every client that comes: two lines tell of all that.
        if self._is_crowded and now - self._paused_at >= SWEEP_SECONDS and not self._doors.paused:
            self._is_crowded = False
            clients, upstreams = len(self._clients.open), self._housekeeper.open
            log.event("accept_resumed", clients=clients, upstreams=upstreams, shed=self._shed_all)
            self._shed_all = 0
        self._sweep_at(now + SWEEP_SECONDS)

    def _network_changed(self) -> None:
        log.event("network_changed", suspect=self._distrust())

    def _distrust(self) -> int:
        """Names and idle connections are from another time or network; how many connections."""
        self._resolver.doubt_all()
        return self._housekeeper.places.moved()

    def _look_at_descriptors(self) -> None:
        """Stop accepting before the system refuses descriptors, and begin again when some are
        free: asked whenever a client comes or goes.

        Where descriptors run out, half of what is idle goes, and is not dialled again before
        there is room for it: clients that wait come first.
        """
        clients, upstreams = len(self._clients.open), self._housekeeper.open
        scarce = clients + upstreams >= self._descriptors
        if (scarce or clients >= self._settings.max_clients) and not self._doors.paused:
            self._doors.pause()
            shed = self._housekeeper.shed(upstreams // 2) if scarce else 0
            self._housekeeper.scarce |= scarce
            self._shed += shed
            self._shed_all += shed
            self._paused_at = self._loop.time()
            if not self._is_crowded:
                self._is_crowded = True
                log.event(
                    "accept_paused",
                    level="warning",
                    clients=clients,
                    upstreams=upstreams,
                    max_clients=self._settings.max_clients,
                    descriptors=self._descriptors,
                    shed=shed,
                )
        elif self._doors.paused and not self._readiness.draining and self._has_room_again():
            self._doors.paused = False  # opening takes a turn of the loop
            task = self._loop.create_task(self._doors.open(), name="accept again")
            self._tasks.add(task)
            task.add_done_callback(self._accepts_again)
        if self._housekeeper.scarce and self._has_room_again(for_more=self._shed):
            self._housekeeper.scarce = False
            self._shed = 0
            self._housekeeper.start()

    def _accepts_again(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._doors.pause()  # the next look tries again
            log.event("accept_failed", level="warning", reason=str(error))

    def _has_room_again(self, *, for_more: int = 0) -> bool:
        """A tenth is free, beside `for_more` connections: nothing flutters at its limit."""
        clients, upstreams = len(self._clients.open), self._housekeeper.open
        return (
            clients <= self._settings.max_clients * 0.9
            and clients + upstreams + for_more <= self._descriptors * 0.9
        )

    def _announce(self, now: float) -> None:
        """Say once that the pools are warm, or which are not when the time for it is over."""
        pools = awaited(self._registry, self._registry.configured)
        said = self._readiness.look(pools, now)
        if all(ready for _, ready, _ in said):
            self._announced = True
            if said:
                log.event("ready", pools=[f"{origin} {why}" for origin, _, why in said])

    def _http_date(self) -> bytes:
        """The Date field's value (RFC 9110, 6.6.1), made once a second."""
        second = int(time.time())
        if second != self._date[0]:
            self._date = (second, _date_field(second))
        return self._date[1]

    def _sample(self) -> sample.Sample:
        return sample.take(
            self._registry,
            self._loop.time(),
            clients=len(self._clients.open),
            tunnels=self._clients.tunnels,
            loop_lag=self._loop_lag,
        )

    def _metrics(self, accept: str) -> tuple[Iterator[bytes], str]:
        # here and not above: 27 ms and 3 MiB, for those that scrape
        from warmproxy.metrics import render

        return render(self._sample(), accept)

    # ── leaving ──────────────────────────────────────────────────────────────────────────────

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._cut += self._clients.abort()  # asked twice: the grace time is over
        self._stopping.set()

    async def _drain(self) -> None:
        """Accept nothing more, let exchanges in flight finish within the grace time."""
        self._readiness.draining = True
        self._doors.close()
        self._clients.drain()
        log.event("draining", exchanges=len(self._clients.open), grace=self._settings.grace)
        try:
            async with asyncio.timeout(self._settings.grace):
                await self._clients.none_left.wait()
        except TimeoutError:
            pass  # those who are left are cut
        self._cut += self._clients.abort()
        self._housekeeper.stop()
        self._primer.stop()
        if self._settings.admin:
            self._admin_server.close()
        for admin in list(self._admins):
            admin.transport.close()
        await self._state.close(self._registry)
        await asyncio.sleep(0)  # let the closes reach the kernel
        log.event("stopped", cut_short=self._cut)


def banner(address: str) -> str:
    """What a person does next: the variables, in both spellings."""
    url = "http://" + address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
    return (
        f"warmproxy {__version__} listens on {url}. For the programs that are to use it:\n"
        f"  export http_proxy={url} HTTP_PROXY={url}\n"
        f"  export https_proxy={url} HTTPS_PROXY={url}\n"
        "  export no_proxy=localhost,127.0.0.1,::1 NO_PROXY=localhost,127.0.0.1,::1"
    )


def _date_field(second: int) -> bytes:
    """RFC 9110, 5.6.7. Not by email.utils, which takes 3 ms to import, nor by strftime, which
    may speak another language."""
    t = time.gmtime(second)
    date = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year}"
    return f"{date} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT".encode()


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
