"""The composition root: build the house, open the doors, sweep, and leave in good order."""

import asyncio
import os
import random
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import partial
from ipaddress import ip_address
from math import inf

import uvloop

from warmproxy import __version__, log
from warmproxy.admin.pages import Readiness, View, respond
from warmproxy.admin.server import AdminConnection, AdminHosts
from warmproxy.errors import StartError
from warmproxy.metrics import Exposition, Gauges, Sample
from warmproxy.net.client import Clients
from warmproxy.net.dialer import Dialer
from warmproxy.net.housekeeper import Housekeeper, Waiter
from warmproxy.net.listener import Doors, listen
from warmproxy.net.resolver import Resolver
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.origin import Origin
from warmproxy.policy.access import Access
from warmproxy.policy.destinations import Destinations, Listener
from warmproxy.pool.registry import Registry, tallies
from warmproxy.protocol.exchange import Terms
from warmproxy.settings import Settings, parse_address

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
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Build, listen, and stay until a signal comes; then drain."""
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        proxy, admin = self._bind()
        self._build(proxy, admin)
        await self._doors.open()
        if admin is not None:
            hosts = AdminHosts(self._settings.admin_hosts, self._settings.admin)
            page = partial(respond, self._view)
            factory = partial(AdminConnection, page, hosts, self._http_date, self._admins)
            self._admin_server = await loop.create_server(factory, sock=admin)
        self._say_hello(proxy, admin)
        self._housekeeper.start()
        self._sweep_at(loop.time() + SWEEP_SECONDS)
        try:
            await self._stopping.wait()
            await self._drain()
        finally:
            self._sweeping.cancel()

    # ── building, and opening the doors ──────────────────────────────────────────────────────

    def _bind(self) -> tuple[list[socket.socket], socket.socket | None]:
        """The listening sockets of the proxy and of the admin listener. Raises StartError."""
        settings = self._settings
        # who did not ask for [::1] is not stopped by a machine without IPv6
        as_shipped = settings.listen == Settings().listen
        proxy = []
        for text in settings.listen:
            host, port = parse_address(text)
            sock = listen(host, port, purpose="proxy", optional=as_shipped and ":" in host)
            if sock is not None:
                proxy.append(sock)
        admin = listen(*parse_address(settings.admin), purpose="admin") if settings.admin else None
        return proxy, admin

    def _build(self, proxy: list[socket.socket], admin: socket.socket | None) -> None:
        settings, loop = self._settings, self._loop
        observer = log.LogObserver(access_log=settings.access_log)
        self._registry = registry = Registry[UpstreamConnection, Waiter](
            settings, observer, random.random, loop.time()
        )
        destinations = _destinations(settings, registry.configured, proxy, admin)
        dialer = Dialer(loop, Resolver(loop), destinations)
        self._housekeeper = Housekeeper(settings, registry, dialer, observer, loop)
        terms = Terms(
            access=Access(settings.allow_clients, read_credentials(settings.credentials_file)),
            destinations=destinations,
            max_head=settings.max_head,
            max_buffer=settings.max_buffer,
            pseudonym=b"warmproxy-" + secrets.token_hex(4).encode(),
            date=self._http_date,
        )
        self._descriptors = raise_descriptor_limit() - DESCRIPTORS_APART
        self._clients = Clients(
            housekeeper=self._housekeeper,
            terms=terms,
            observer=observer,
            loop=loop,
            settings=settings,
            when_changed=self._look_at_descriptors,
        )
        self._doors = Doors(proxy, self._clients.connect)
        self._readiness = Readiness(deadline=loop.time() + settings.ready_timeout)
        self._view = View(
            now=loop.time,
            pools=lambda: list(registry),
            configured=registry.configured,
            readiness=self._readiness,
            metrics=Exposition(self._sample).render,
        )

    def _say_hello(self, proxy: list[socket.socket], admin: socket.socket | None) -> None:
        addresses = [_address(sock.getsockname()) for sock in proxy]
        log.event(
            "listening",
            version=__version__,
            proxy=addresses,
            admin=_address(admin.getsockname()) if admin is not None else None,
            warm=[f"{u.origin}={u.warm}" for u in self._settings.upstream],
        )
        if self._settings.log_format != "json":
            print(banner(addresses[0]), flush=True)

    # ── while it runs ────────────────────────────────────────────────────────────────────────

    def _sweep_at(self, due: float) -> None:
        self._sweeping = self._loop.call_at(due, self._sweep, due)

    def _sweep(self, due: float) -> None:
        now = self._loop.time()
        self._loop_lag = max(0.0, now - due)
        for client in list(self._clients.open):
            client.sweep(now)
        if not self._announced:
            self._announce(now)
        self._look_at_descriptors()
        self._sweep_at(now + SWEEP_SECONDS)

    def _look_at_descriptors(self) -> None:
        """Stop accepting before the system refuses descriptors, and begin again when some are
        free: asked whenever a client comes or goes."""
        clients, upstreams = len(self._clients.open), self._housekeeper.open
        full = clients >= self._settings.max_clients or clients + upstreams >= self._descriptors
        if full and not self._doors.paused:
            self._doors.pause()
            scarce = clients + upstreams >= self._descriptors
            self._housekeeper.scarce = scarce
            shed = self._housekeeper.shed(upstreams // 2) if scarce else 0
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
            self._housekeeper.scarce = False
            self._housekeeper.start()
            task = self._loop.create_task(self._doors.open(), name="accept again")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            log.event("accept_resumed", clients=clients, upstreams=self._housekeeper.open)

    def _has_room_again(self) -> bool:
        """A tenth is free: accepting does not flutter at its limit."""
        clients, upstreams = len(self._clients.open), self._housekeeper.open
        return (
            clients <= self._settings.max_clients * 0.9
            and clients + upstreams <= self._descriptors * 0.9
        )

    def _announce(self, now: float) -> None:
        """Say once that the pools are warm, or which are not when the time for it is over."""
        configured = [p for p in self._registry if p.origin in self._registry.configured]
        said = self._readiness.look(configured, now)
        if all(ready for _, ready, _ in said):
            self._announced = True
            if said:
                log.event("ready", pools=[f"{origin} {why}" for origin, _, why in said])

    def _http_date(self) -> bytes:
        """The Date field's value (RFC 9110, 6.6.1), made once a second."""
        second = int(time.time())
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]

    def _sample(self) -> Sample:
        now = self._loop.time()
        registry = self._registry
        gauges: dict[str, Gauges] = {"other": Gauges()}
        for pool in registry:
            pool.account(now)
            limits = (("fresh", pool.limits[False]), ("used", pool.limits[True]))
            here = Gauges(
                pool.fresh,
                pool.used,
                pool.active,
                pool.dialling,
                pool.waiting,
                pool.sizing.target_idle(now),
                tuple((kind, lim.seconds) for kind, lim in limits if lim.seconds < inf),
            )
            if pool.origin in registry.configured:
                gauges[str(pool.origin)] = here
            else:
                gauges["other"] += here
        return Sample(
            tallies(
                registry.configured, [(p.origin, p.tally) for p in registry], registry.forgotten
            ),
            gauges,
            clients=len(self._clients.open),
            tunnels=sum(client.is_tunnel for client in self._clients.open),
            loop_lag=self._loop_lag,
        )

    # ── leaving ──────────────────────────────────────────────────────────────────────────────

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._clients.abort()  # asked twice: the grace time is over
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
        cut = self._clients.abort()
        self._housekeeper.stop()
        if self._settings.admin:
            self._admin_server.close()
        for admin in list(self._admins):
            admin.transport.close()
        await asyncio.sleep(0)  # let the closes reach the kernel
        log.event("stopped", cut_short=cut)


def raise_descriptor_limit() -> int:
    """Take as many descriptors as the system lets us have without asking; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        return soft  # macOS names a hard limit that it does not grant
    return hard


def _destinations(
    settings: Settings,
    configured: frozenset[Origin],
    proxy: list[socket.socket],
    admin: socket.socket | None,
) -> Destinations:
    """The rules of where requests may go, with the ports that CONNECT may use by default."""
    ports = settings.connect_ports
    if not ports and not all(ip_address(s.getsockname()[0]).is_loopback for s in proxy):
        ports = (443,)
    ours = [*proxy, admin] if admin is not None else proxy
    listeners = [Listener(*sock.getsockname()[:2]) for sock in ours]
    return Destinations(
        connect_ports=ports,
        allow=settings.allow_upstreams,
        deny=settings.deny_upstreams,
        configured=configured,
        listeners=listeners,
    )


def read_credentials(path: str) -> Mapping[str, str]:
    """user -> password, from lines `user:password`; empty lines and # comments are left out.

    Raises StartError, which names lines and never their contents.
    """
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"credentials_file {path}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise StartError(f"{path}:{number}: not of the form user:password")
        found[user] = password
    if not found:
        raise StartError(f"credentials_file {path} holds no user:password line")
    if os.stat(path).st_mode & 0o077:
        log.event("credentials_readable_by_others", level="warning", path=path)
    return found


def banner(address: str) -> str:
    """What a person does next: the variables, in both spellings."""
    url = "http://" + address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
    return (
        f"warmproxy {__version__} listens on {url}. For the programs that are to use it:\n"
        f"  export http_proxy={url} HTTP_PROXY={url}\n"
        f"  export https_proxy={url} HTTPS_PROXY={url}\n"
        "  export no_proxy=localhost,127.0.0.1,::1 NO_PROXY=localhost,127.0.0.1,::1"
    )


def _address(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
