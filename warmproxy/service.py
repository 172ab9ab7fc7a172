"""The composition root: build the house, open the doors, sweep, and leave in good order."""

import asyncio
import gc
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial

import uvloop

from warmproxy import log, sample, systemd, wiring
from warmproxy.admin.history import History
from warmproxy.admin.pages import (
    Readiness,
    Said,
    View,
    awaited,
    describe,
    forgotten,
    respond,
    submit,
)
from warmproxy.admin.server import AdminConnection
from warmproxy.control import Control, Offer, Taken, take
from warmproxy.crowd import Crowd
from warmproxy.errors import StartError
from warmproxy.heap import trimmer
from warmproxy.hello import say_hello, warn_of_unverified
from warmproxy.net.changes import NetworkChanges, read_clocks, slept
from warmproxy.net.client import Clients
from warmproxy.net.dialer import Dialer
from warmproxy.net.housekeeper import Housekeeper, Pool, Waiter
from warmproxy.net.intercept import Interceptor
from warmproxy.net.listener import Address, Doors, Factory
from warmproxy.net.prime import Primer
from warmproxy.net.resolver import Resolver
from warmproxy.net.splice import PIPES
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.origin import Origin
from warmproxy.pool.registry import Registry
from warmproxy.protocol.exchange import Terms
from warmproxy.reload import Reloads
from warmproxy.settings import Settings
from warmproxy.state import StateFile
from warmproxy.systemd import Notifier
from warmproxy.upgrade import Upgrade
from warmproxy.warming import Warming
from warmproxy.wiring import Inherited, Prepared, Rules

SWEEP_SECONDS = 1.0
"""Between two looks for what no event tells: timeouts, clients that hung up while paused."""

TRIM_SECONDS = 60.0
"""Between two times that freed memory is given back: 0.3 ms with 13 MiB of heap."""

READY_SECONDS = 0.05
"""Between two looks whether all is warm, at the start."""

DESCRIPTORS_APART = 64
"""For what is neither client nor upstream: listeners, admin, log, look-ups, the loop's own."""


def run(settings: Settings, read: Callable[[], Settings], *, takeover: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until another process takes over. `read` gives the
    settings anew at each SIGHUP; with `takeover` the listeners are those of the process that
    runs. Raises StartError where it cannot start."""
    notifier = Notifier(os.environ)
    inherited = wiring.inherited(settings, systemd.passed_sockets(os.environ))
    log.setup(settings.log_format, sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        service = Service(settings, read, notifier, inherited)
        runner.run(service.serve(takeover=takeover))


class Service:
    """One run of the daemon. `serve` is its whole life.

    With a `pseudonym` (its name in Via) it is one of several processes: the parent says when it
    stops, leaves or takes other settings, greets, and serves the admin pages.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        notifier: Notifier,
        inherited: Inherited,
        pseudonym: bytes = b"",
    ) -> None:
        self._settings = settings
        self._read = read
        self._notifier = notifier
        self._inherited = inherited
        self._loop_lag = 0.0
        self._date = (0, b"")
        self._is_part = bool(pseudonym)
        self._pseudonym = pseudonym or new_pseudonym()
        self.opened = asyncio.Event()
        """The doors are open."""
        self._admins: set[AdminConnection] = set()
        self._terms: dict[Address, Terms] = {}
        """What holds for those who came in at each address, now or in the past: shared by their
        connections, and changed in place."""
        self._inside: dict[Origin, Terms] = {}
        """The same for those inside intercepted CONNECTs, by their tcp origin."""
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        """All is warm, the time for it is over, or it is to stop."""
        self._successor: int | None = None
        """The process that took over."""
        self._is_retired = False
        """Nothing is held warm any more."""
        self._cut = 0
        """Connections that the end of the grace time cut."""
        self._upgrade = Upgrade()
        self._clocks = read_clocks()
        self._trim = trimmer()
        self._trim_due = 0.0

    async def serve(self, *, takeover: bool = False) -> None:
        """Build, listen, and stay until a signal comes; then drain."""
        self._loop = loop = asyncio.get_running_loop()
        sys.unraisablehook = log.unraisable
        if not self._is_part:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
        self._reloads = Reloads(self._reread, self._adopt, self._notifier)
        taken = await self._take_over() if takeover else None
        self._build(taken)
        if not self._is_part:
            loop.add_signal_handler(signal.SIGHUP, self.reload)
            loop.add_signal_handler(signal.SIGUSR2, self._upgrade.begin)
        self._warming.tick(time.time())
        if taken is None:
            await self._open()
        self._housekeeper.start()
        self._look_if_settled()
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
            if taken is not None:
                await self._relieve(taken)
            if not self._stopping.is_set():
                self._control.open(self._settings.control)
            await self._stopping.wait()
            await self._drain()
        finally:
            self._control.close()
            self._sweeping.cancel()
            if changes is not None:
                changes.close()

    # ── building, and opening the doors ──────────────────────────────────────────────────────

    def _build(self, taken: Taken | None) -> None:
        loop = self._loop
        self._settings = settings = self._inherited.over(self._settings)
        sockets = wiring.bind(settings, self._inherited.sockets)
        for sock in self._inherited.sockets.values():
            if sock not in sockets.every.values():
                sock.close()
        prepared = wiring.prepare(settings)
        self._rules = rules = wiring.rules(prepared, sockets, self._pseudonym, self._http_date)
        self._observer = observer = log.LogObserver(access_log=settings.access_log)
        self._state = StateFile(settings.state_file, taken.offer.limits if taken else {})
        self._registry = registry = Registry[UpstreamConnection, Waiter](
            settings, observer, random.random, loop.time(), self._state.recall
        )
        self._resolver = Resolver(loop, settings.dns_refresh, random.random)
        self._dialer = Dialer(loop, self._resolver, rules.destinations, rules.contexts)
        self._housekeeper = Housekeeper(settings, registry, self._dialer, observer, loop)
        self._resolver.is_wanted = self._housekeeper.places.wanted
        self._resolver.on_answer = self._housekeeper.places.located
        self._primer = Primer(rules.primes, self._housekeeper, observer, loop, settings.max_head)
        self._interceptor = Interceptor(loop, observer)
        self._clients = Clients(
            housekeeper=self._housekeeper,
            interceptor=self._interceptor,
            observer=observer,
            loop=loop,
            settings=settings,
            when_changed=lambda: self._crowd.look(),
        )
        self._adopt_interception()
        self._warming = Warming(settings, rules.proxy, self._housekeeper, loop.time)
        self._doors = Doors(self._entrances(rules))
        self._readiness = Readiness(deadline=loop.time() + settings.ready_timeout)
        self._history = History(loop.time())
        self.view = View(
            pools=lambda: self._describe(list(registry)),
            ready=self._ready,
            draining=lambda: self._readiness.draining,
            metrics=self._metrics,
            grant=lambda wish: list(self._describe(self._warming.grant(wish))),
            about=partial(self._about, loop.time()),
        )
        self._admin_terms = rules.admin
        self._admin_doors = Doors(self._admin_entrances(rules))
        descriptors = wiring.raise_descriptor_limit() - DESCRIPTORS_APART
        self._crowd = Crowd(self._doors, self._clients, self._housekeeper, loop, descriptors)
        self._control = Control(loop, self._offer, self.leave)

    def _entrances(self, rules: Rules) -> dict[Address, tuple[socket.socket, Factory]]:
        """The proxy's own listeners and the gateways', each with what holds there."""
        sockets = rules.sockets.proxy | rules.sockets.gateways
        for address in sockets:
            self._terms.setdefault(address, rules.terms(address))
        connect = self._clients.connect
        return {at: (sock, partial(connect, self._terms[at])) for at, sock in sockets.items()}

    def _adopt_interception(self) -> None:
        """Those inside, and those to come in, get what the rules say now. Where nobody is
        intercepted any more, the upstream may not be verified any more either: they leave."""
        rules, interception = self._rules, self._rules.proxy.interception
        wanted = frozenset() if interception is None else interception.origins
        for origin in wanted:
            terms = rules.terms_inside(origin)
            self._inside.setdefault(origin, terms).become(terms)
        for origin in self._inside.keys() - wanted:
            terms = self._inside.pop(origin)
            terms.become(replace(terms, is_over=True))
            self._clients.end_inside(terms)
        self._interceptor.adopt(rules.leaves, self._inside)

    def _admin_entrances(self, rules: Rules) -> dict[Address, tuple[socket.socket, Factory]]:
        factory = partial(
            AdminConnection,
            partial(respond, self.view),
            partial(submit, self.view),
            self._admin_terms,
            self._http_date,
            self._admins,
        )
        return {address: (sock, factory) for address, sock in rules.sockets.admin.items()}

    async def _open(self) -> None:
        await self._doors.open()
        if not self._is_part:
            await self._admin_doors.open()
            warm = [f"{pool.origin}={pool.target_idle(0.0)}" for pool in self._registry]
            say_hello(self._settings, self._rules.sockets, warm)
        self.opened.set()

    def _describe(self, pools: Iterable[Pool]) -> Iterator[Said]:
        for pool in pools:
            configured = pool.origin in self._registry.configured
            intercepted = self._rules.intercepts(pool.origin)
            yield describe(pool, configured, intercepted, self._loop.time(), self._history)

    def _ready(self) -> list[tuple[str, bool, str]]:
        pools = awaited(self._registry, self._registry.configured)
        said = self._readiness.look(pools, self._loop.time())
        return [(str(origin), is_ready, why) for origin, is_ready, why in said]

    # ── another process's listeners, and ours for another ────────────────────────────────────

    async def _take_over(self) -> Taken | None:
        """The listeners of the process that runs, if one does. Raises StartError."""
        path = self._settings.control
        if not path:
            raise StartError(
                "--takeover needs a control socket, and there is no runtime directory:"
                " set 'control' to the path that the running proxy has"
            )
        taken = await self._loop.run_in_executor(None, take, path)
        if taken is None:
            log.event("takeover_nobody", path=path)
            return None
        sockets, passed = taken.offer.sockets, taken.offer.passed
        self._inherited = wiring.Inherited(
            {Address(*place): sock for place, sock in sockets.items()},
            passed.get("listen", ()),
            passed.get("admin"),
        )
        return taken

    async def _relieve(self, taken: Taken) -> None:
        """All is warm before a request comes, and then the other one may go."""
        await self._settled.wait()
        if not self._stopping.is_set():
            await self._open()
            await taken.ready(self._loop)
            log.event("taken_over", pid=taken.pid, version=taken.version)

    def _offer(self) -> Offer:
        return Offer(
            {(at.host, at.port, at.role): sock for at, sock in self._rules.sockets.every.items()},
            self._inherited.passed(),
            self._state.handed_over(self._registry),
        )

    def leave(self, pid: int) -> None:
        """The process with that id has taken over: drain patiently."""
        self._successor = pid
        self._control.close()
        self._doors.close()
        self._admin_doors.close()
        self._notifier.succeeded_by(pid)
        self.stop()

    # ── other settings ───────────────────────────────────────────────────────────────────────

    def reload(self) -> None:
        """Read the settings anew, and put them to use where nothing is wrong with them."""
        self._reloads.ask()

    def _reread(self) -> Prepared:
        return wiring.prepare(self._inherited.over(self._read()), self._rules)

    async def _adopt(self, prepared: Prepared) -> tuple[list[str], list[str]]:
        """Put what was read to use, in one turn of the loop. Raises StartError."""
        if self._stopping.is_set():
            raise StartError("it is stopping")
        settings, changed, fixed = prepared.settings.after(self._settings)
        before = self._rules.sockets
        sockets = wiring.bind(settings, before.every)
        prepared = replace(prepared, settings=settings)
        self._rules = rules = wiring.rules(prepared, sockets, self._pseudonym, self._http_date)
        if settings.log_format != self._settings.log_format:
            log.setup(settings.log_format, sys.stderr)
        self._settings = self._clients.settings = settings
        self._observer.access_log = settings.access_log
        self._resolver.refresh = settings.dns_refresh
        self._dialer.adopt(rules.destinations, rules.contexts)
        self._housekeeper.adopt(settings, rules.contexts.renewed)
        self._primer.adopt(rules.primes, settings.max_head)
        self._warming.adopt(settings, rules.proxy)
        self._warming.tick(time.time())
        for address, terms in self._terms.items():
            terms.become(rules.terms(address, terms.gateway))
        self._adopt_interception()
        self._admin_terms.become(rules.admin)
        await self._adopt_doors(rules, before)
        self._control.open(settings.control)
        if not self._is_part:
            warn_of_unverified(settings)
        return changed, fixed

    async def _adopt_doors(self, rules: Rules, before: wiring.Sockets) -> None:
        try:
            await self._doors.adopt(self._entrances(rules))
            if not self._is_part:
                await self._admin_doors.adopt(self._admin_entrances(rules))
        except OSError as error:  # no descriptor left: the next look tries again
            self._doors.pause()
            log.event("accept_failed", level="warning", reason=str(error))
        for sock in before.every.values():
            if sock not in rules.sockets.every.values():
                sock.close()

    # ── while it runs ────────────────────────────────────────────────────────────────────────

    def _look_if_settled(self) -> None:
        """Say once that the pools are warm, or which are not when the time for it is over."""
        if self._settled.is_set():
            return
        said = self._ready()
        if not all(ready for _, ready, _ in said):
            self._loop.call_later(READY_SECONDS, self._look_if_settled)
            return
        self._settled.set()
        self._notifier.ready()
        if said:
            log.event("ready", pools=[f"{origin} {why}" for origin, _, why in said])

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
        self._crowd.look()
        if self._is_retired:  # what came back meanwhile
            self._housekeeper.shed(self._housekeeper.open)
        clocks = read_clocks()
        if asleep := slept(self._clocks, clocks):
            log.event("suspended", seconds=round(asleep), suspect=self._distrust())
        self._clocks = clocks
        self._state.look(self._registry, self._loop)
        log.tick()
        self._history.look(self._registry, now)
        if now >= self._trim_due:
            self._trim_due = now + TRIM_SECONDS
            self._trim(0)
        if self._notifier.is_heard:
            self._tell_systemd(now)
        if self._successor is None:
            self._upgrade.look()
        self._sweep_at(now + min(SWEEP_SECONDS, self._notifier.watchdog_seconds / 3))

    def _tell_systemd(self, now: float) -> None:
        self._notifier.alive()
        idle = sum(pool.idle for pool in self._registry)
        wanted = sum(pool.target_idle(now) for pool in self._registry)
        self._notifier.status(f"{idle} idle of {wanted}, {len(self._clients.open)} clients")

    def _network_changed(self) -> None:
        log.event("network_changed", suspect=self._distrust())

    def _distrust(self) -> int:
        """Names and idle connections are from another time or network; how many connections."""
        self._resolver.doubt_all()
        return self._housekeeper.places.moved()

    def _http_date(self) -> bytes:
        """The Date field's value (RFC 9110, 6.6.1), made once a second."""
        second = int(time.time())
        if second != self._date[0]:
            self._date = (second, _date_field(second))
        return self._date[1]

    def sample(self) -> sample.Sample:
        """All that a scrape shows."""
        return sample.take(
            self._registry,
            self._loop.time(),
            clients=len(self._clients.open),
            tunnels=self._clients.tunnels,
            loop_lag=self._loop_lag,
            reload_is_good=self._reloads.is_good,
            reload_good_at=self._reloads.good_at,
            authority_ends=None if (found := self._rules.leaves) is None else found.not_after,
        )

    def _about(self, started: float) -> Said:
        """What /pools says of the daemon itself."""
        leaves = self._rules.leaves
        return {
            "uptime": round(self._loop.time() - started, 3),
            "clients": len(self._clients.open),
            "tunnels": self._clients.tunnels,
            "accepting": not self._doors.paused,
            "draining": self._readiness.draining,
            "reload_is_good": self._reloads.is_good,
            "loop_lag": round(self._loop_lag, 6),
            "authority_seconds_left": None
            if leaves is None
            else round(leaves.not_after - time.time()),
            "forgotten": forgotten(self._registry.forgotten),
            "history": asdict(self._history.lately()),
        }

    def _metrics(self, accept: str) -> tuple[Iterator[bytes], str]:
        # here and not above: 27 ms and 3 MiB, for those that scrape
        from warmproxy.metrics import render

        return render(self.sample(), accept)

    # ── leaving ──────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """Drain; asked twice, cut what is left at once."""
        if self._stopping.is_set():
            self._cut += self._clients.abort()  # asked twice: the grace time is over
        self._stopping.set()
        self._settled.set()

    async def _drain(self) -> None:
        """Accept nothing more, let exchanges in flight finish within the grace time."""
        self._readiness.draining = self._admin_terms.draining = True
        self._interceptor.stop()
        self._doors.close()
        if self._is_part:  # the parent's: where that is gone, nobody answers there
            self._admin_doors.close()
        if self._successor is None:
            self._notifier.stopping()
            self._clients.drain()
            grace = self._settings.grace
            log.event("draining", exchanges=len(self._clients.open), grace=grace)
        else:
            grace = await self._drain_idle(self._successor)
        await self._none_left(grace)
        self._cut += self._clients.abort()
        self._housekeeper.stop()
        self._primer.stop()
        self._admin_doors.close()
        for admin in list(self._admins):
            admin.transport.close()
        await self._state.close(self._registry)
        await asyncio.sleep(0)  # let the closes reach the kernel
        log.tick(at_end=True)
        log.event("stopped", cut_short=self._cut)

    async def _drain_idle(self, successor: int) -> float:
        """After a takeover: who is idle may be about to ask, and is answered as ever, once; then
        nothing is held warm any more. How many seconds are left for what is in flight."""
        grace, patience = self._settings.takeover_grace, self._settings.grace
        clients = len(self._clients.open)
        log.event("handed_over", pid=successor, clients=clients, grace=grace)
        self._clients.drain(patient=True)
        await self._none_left(min(grace, patience))
        self._clients.drain()
        self._is_retired = self._housekeeper.scarce = True
        self._housekeeper.shed(self._housekeeper.open)
        return max(0.0, grace - patience)

    async def _none_left(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._clients.none_left.wait()
        except TimeoutError:
            pass


def new_pseudonym() -> bytes:
    """Our name in Via, by which a request that comes round is known."""
    return b"warmproxy-" + secrets.token_hex(4).encode()


def _date_field(second: int) -> bytes:
    """RFC 9110, 5.6.7. Not by email.utils, which takes 3 ms to import, nor by strftime, which
    may speak another language."""
    t = time.gmtime(second)
    date = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year}"
    return f"{date} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT".encode()


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
