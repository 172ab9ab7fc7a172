"""The composition root: build the house, open the doors, sweep, and leave in good order."""

import asyncio
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import partial
from math import inf

import uvloop

from warmproxy import __version__, log
from warmproxy.admin.pages import Readiness, View, respond
from warmproxy.admin.server import AdminConnection
from warmproxy.errors import StartError
from warmproxy.metrics import Exposition, Gauges, Sample
from warmproxy.net.client import Clients
from warmproxy.net.dialer import Dialer
from warmproxy.net.housekeeper import Housekeeper, Waiter
from warmproxy.net.listener import listen
from warmproxy.net.resolver import Resolver
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.policy.access import Access
from warmproxy.pool.registry import Registry, tallies
from warmproxy.protocol.exchange import Terms
from warmproxy.settings import Settings, parse_address

SWEEP_SECONDS = 1.0
"""Between two looks for what no event tells: timeouts, clients that hung up while paused."""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError where it cannot start."""
    log.setup(settings.log_format, sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Service(settings).serve())


class Service:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._access = Access(settings.allow_clients, read_credentials(settings.credentials_file))
        self._loop_lag = 0.0
        self._date = (0, b"")
        self._servers: list[asyncio.Server] = []
        self._admins: set[AdminConnection] = set()
        self._stopping = asyncio.Event()
        self._announced = False

    async def serve(self) -> None:
        """Build, listen, and stay until a signal comes; then drain."""
        self._loop = loop = asyncio.get_running_loop()
        settings = self._settings
        observer = log.LogObserver(access_log=settings.access_log)
        registry: Registry[UpstreamConnection, Waiter] = Registry(
            settings, observer, random.random, loop.time()
        )
        self._registry = registry
        self._housekeeper = Housekeeper(
            settings, registry, Dialer(loop, Resolver(loop)), observer, loop
        )
        terms = Terms(
            access=self._access,
            max_head=settings.max_head,
            max_buffer=settings.max_buffer,
            pseudonym=b"warmproxy-" + secrets.token_hex(4).encode(),
            date=self._http_date,
        )
        self._clients = Clients(
            housekeeper=self._housekeeper,
            terms=terms,
            observer=observer,
            loop=loop,
            idle_timeout=settings.client_idle_timeout,
            access_log=settings.access_log,
        )
        self._readiness = Readiness(deadline=loop.time() + settings.ready_timeout)
        self._view = View(
            now=loop.time,
            pools=lambda: list(registry),
            configured=registry.configured,
            readiness=self._readiness,
            metrics=Exposition(self._sample).render,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        await self._listen()
        self._housekeeper.start()
        sweep = loop.call_later(SWEEP_SECONDS, self._sweep, loop.time() + SWEEP_SECONDS)
        try:
            await self._stopping.wait()
            await self._drain()
        finally:
            sweep.cancel()

    # ── opening the doors ────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        settings = self._settings
        defaults = Settings()
        proxy = []
        for text in settings.listen:
            host, port = parse_address(text)
            # who did not ask for [::1] is not stopped by a machine without IPv6
            optional = settings.listen == defaults.listen and ":" in host
            sock = listen(host, port, purpose="proxy", optional=optional)
            if sock is not None:
                proxy.append(sock)
        admin = None
        if settings.admin:
            admin = listen(*parse_address(settings.admin), purpose="admin")
        for sock in proxy:
            self._servers.append(await self._loop.create_server(self._clients.connect, sock=sock))
        if admin is not None:
            page = partial(respond, self._view)
            factory = partial(AdminConnection, page, self._http_date, self._admins)
            self._admin_server = await self._loop.create_server(factory, sock=admin)
        addresses = [_address(sock.getsockname()) for sock in proxy]
        log.event(
            "listening",
            version=__version__,
            proxy=addresses,
            admin=_address(admin.getsockname()) if admin is not None else None,
            warm=[f"{u.origin}={u.warm}" for u in settings.upstream],
        )
        if settings.log_format != "json":
            print(banner(addresses[0]), flush=True)

    # ── while it runs ────────────────────────────────────────────────────────────────────────

    def _sweep(self, due: float) -> None:
        now = self._loop.time()
        self._loop_lag = max(0.0, now - due)
        for client in list(self._clients.open):
            client.sweep(now)
        if not self._announced:
            self._announce(now)
        self._loop.call_at(now + SWEEP_SECONDS, self._sweep, now + SWEEP_SECONDS)

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

    def _stop(self, number: int) -> None:
        if self._stopping.is_set():
            # asked twice: the grace time is over
            self._clients.abort()
        self._stopping.set()

    async def _drain(self) -> None:
        """Accept nothing more, let exchanges in flight finish within the grace time."""
        self._readiness.draining = True
        clients = self._clients
        for server in self._servers:
            server.close()
        clients.drain()
        log.event("draining", exchanges=len(clients.open), grace=self._settings.grace)
        try:
            async with asyncio.timeout(self._settings.grace):
                await clients.none_left.wait()
        except TimeoutError:
            pass  # those who are left are cut
        cut = clients.abort()
        self._housekeeper.stop()
        if self._settings.admin:
            self._admin_server.close()
        for admin in list(self._admins):
            admin.transport.close()
        await asyncio.sleep(0)  # let the closes reach the kernel
        log.event("stopped", cut_short=cut)


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
