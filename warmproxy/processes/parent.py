"""The parent: starts the processes that serve, replaces them, and ends them."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from functools import partial
from typing import Any

import uvloop

from warmproxy import log, systemd, wiring
from warmproxy.admin.server import AdminConnection, AdminHosts, AdminTerms
from warmproxy.errors import StartError
from warmproxy.hello import say_hello, warn_of_unverified
from warmproxy.net.listener import Doors
from warmproxy.policy.backoff import Backoff
from warmproxy.policy.shares import share
from warmproxy.processes import serving
from warmproxy.processes.child import Child
from warmproxy.processes.doors import AllDoors
from warmproxy.processes.link import Begin
from warmproxy.processes.seed import Seed, SeedGone
from warmproxy.processes.voice import Voice
from warmproxy.reload import Reloads
from warmproxy.service import SWEEP_SECONDS, new_pseudonym
from warmproxy.settings import Settings, changed
from warmproxy.systemd import Notifier
from warmproxy.wiring import Inherited, Prepared

LONGEST_PAUSE = 10.0
"""Seconds, at most, before a process that keeps ending is started again."""
SETTLED_SECONDS = 30.0
"""Who has lived so long has not ended for a reason of its start."""
LOOK_SECONDS = 0.05
"""Between two looks at whether a new process is warm."""


def run_all(settings: Settings, read: Callable[[], Settings], *, takeover: bool = False) -> None:
    """Serve with `settings.processes` processes until SIGTERM or SIGINT. `read` gives the settings
    anew at each SIGHUP. Raises StartError where it cannot start."""
    if takeover:
        raise StartError("--takeover is for one process, and 'processes' asks for several")
    notifier = Notifier(os.environ)
    inherited = wiring.inherited(settings, systemd.passed_sockets(os.environ))
    log.setup(settings.log_format, sys.stderr)
    seed = Seed(serving.serve)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Parent(settings, read, notifier, inherited, seed).serve())
    finally:
        seed.close()


class Place:
    """One of the N: who serves there now."""

    def __init__(self, number: int) -> None:
        self.number = number
        """from 1"""
        self.child: Child | None = None
        self.restarts = 0
        self.backoff = Backoff(LONGEST_PAUSE, random.random)
        self.turn = asyncio.Lock()
        """Whoever starts a process for it holds this."""


class Parent:
    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        notifier: Notifier,
        inherited: Inherited,
        seed: Seed,
    ) -> None:
        self._settings = inherited.over(settings)
        self._read = read
        self._notifier = notifier
        self._inherited = inherited
        self._seed = seed
        self._pseudonym = new_pseudonym()
        self._all_doors = AllDoors(settings.processes, inherited.sockets)
        self._places = [Place(number + 1) for number in range(settings.processes)]
        self._children: set[Child] = set()
        """All that have not ended."""
        self._reloads = Reloads(self._reread, self._adopt, notifier)
        self._voice = Voice(self._places, self._reloads, self._pids)
        self._stopping = asyncio.Event()
        self._lost: SeedGone | None = None
        """Why it cannot go on."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._admins: set[AdminConnection] = set()
        self._admin_doors = Doors({})
        self._admin_terms = self._new_admin_terms()

    async def serve(self) -> None:
        """Start all, and stay until a signal comes; then let all drain. Raises StartError."""
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._all_doors.open(self._settings)
        self._all_doors.close_old()
        started = await asyncio.gather(*map(self._fill, self._places), return_exceptions=True)
        for error in started:
            if error is not None:
                self._stop()
                await self._drain()
                raise error
        await self._admin_doors.open()
        await self._open_admin()
        warm = [f"{upstream.origin}={upstream.warm}" for upstream in self._settings.upstream]
        say_hello(self._settings, self._all_doors.first, warm)
        loop.add_signal_handler(signal.SIGHUP, self._reloads.ask)
        loop.add_signal_handler(signal.SIGUSR2, self._refuse_upgrade)
        self._do(self._tell_when_ready())
        self._sweep()
        await self._stopping.wait()
        self._notifier.stopping()
        await self._drain()
        if self._lost is not None:
            raise self._lost

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(what, name=f"parent of the processes: {what!r}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": task.get_name(), "exception": error})

    def _pids(self) -> list[int]:
        return [os.getpid(), *(child.pid for child in self._children)]

    async def _tell_when_ready(self) -> None:
        for child in [place.child for place in self._places]:
            if child is not None:
                await self._until_warm(child)
        self._notifier.ready()

    # ── the admin pages ──────────────────────────────────────────────────────────────────────

    def _new_admin_terms(self) -> AdminTerms:
        hosts = AdminHosts(self._settings.admin_hosts, self._settings.admin)
        return AdminTerms(wiring.own_access(self._settings), hosts)

    async def _open_admin(self) -> None:
        """Serve the pages where the settings have them now."""
        factory = partial(
            AdminConnection,
            lambda target, accept: self._loop.create_task(self._voice.respond(target, accept)),
            lambda target, client: self._loop.create_task(self._voice.submit(target, client)),
            self._admin_terms,
            lambda: formatdate(usegmt=True).encode(),
            self._admins,
        )
        sockets = self._all_doors.first.admin
        await self._admin_doors.adopt({at: (sock, factory) for at, sock in sockets.items()})

    def _sweep(self) -> None:
        for admin in list(self._admins):
            admin.sweep(self._loop.time())
        self._notifier.alive()
        pause = min(SWEEP_SECONDS, self._notifier.watchdog_seconds / 3)
        log.tick()
        self._sweeping = self._loop.call_later(pause, self._sweep)

    # ── processes come and go ────────────────────────────────────────────────────────────────

    def _share(self, number: int) -> Settings:
        """The settings of process `number`, from 1. The private socket is not theirs."""
        whole = self._settings
        return changed(share(whole, number - 1, whole.processes), control="")

    async def _start(self, place: Place) -> Child:
        """A new process for the place, which is not in it yet. Raises StartError."""
        number, sockets = place.number, self._all_doors.of(place.number - 1)
        begin = Begin(number, self._share(number), tuple(sockets), self._pseudonym)
        wants_to_go = partial(self._asked_to_go, place)
        child = await Child.start(self._seed, sockets.values(), begin, wants_to_go)
        self._children.add(child)
        self._do(self._watch(place, child))
        if self._stopping.is_set():
            child.stop()
        return child

    async def _fill(self, place: Place) -> None:
        async with place.turn:
            place.child = await self._start(place)

    async def _watch(self, place: Place, child: Child) -> None:
        """Until it has ended; and where nobody asked it to, start another."""
        await child.ended.wait()
        code = await self._seed.end_of(child.pid)
        self._children.discard(child)
        self._voice.has_ended(child)
        child.over.set()
        if not child.is_leaving and not self._stopping.is_set():
            cause = _cause(code)
            log.event(
                "process_ended", level="error", process=child.number, pid=child.pid, cause=cause
            )
            await self._revive(place, child)

    async def _revive(self, place: Place, dead: Child) -> None:
        async with place.turn:
            if place.child is not dead:
                return  # it was replaced meanwhile
            place.child = None
            if time.monotonic() - dead.began >= SETTLED_SECONDS:
                place.backoff.succeeded()
            while not self._stopping.is_set():
                now = time.monotonic()
                place.backoff.failed(now)
                await self._pause(place.backoff.not_before - now)
                try:
                    place.child = await self._start(place)
                except SeedGone as error:
                    self._lost = error
                    self._stop()
                except StartError as error:
                    self._tell_failed(place, error)
                else:
                    place.restarts += 1
                    return

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _asked_to_go(self, place: Place, child: Child) -> None:
        if place.child is child and not self._stopping.is_set():
            self._do(self._replace_asked(place, child))

    async def _replace_asked(self, place: Place, only: Child | None = None) -> None:
        try:
            await self._replace(place, only)
        except StartError as error:
            self._tell_failed(place, error)

    async def _replace(self, place: Place, only: Child | None = None) -> None:
        """Put a new process in the place of the one that is there (`only` of this one), which
        drains once its successor is warm. Raises StartError, and then the old one stays."""
        async with place.turn:
            old = place.child
            if only not in (None, old):
                return
            new = await self._start(place)
            await self._until_warm(new)
            if new.ended.is_set():
                raise StartError(f"process {place.number} ended before it was warm")
            place.child = new
            if old is not None and old in self._children:
                self._voice.is_leaving(old)
                old.leave(new.pid)
            log.event("process_replaced", process=place.number, pid=new.pid)

    async def _until_warm(self, child: Child) -> None:
        """Or until it ends, or all are to stop."""
        while not self._stopping.is_set():
            try:
                told = await child.ask("ready")
                if all(is_ready for _, is_ready, _ in told["ready"]):
                    return
            except TimeoutError:
                pass
            except ConnectionError:
                return
            await asyncio.sleep(LOOK_SECONDS)

    def _tell_failed(self, place: Place, error: StartError) -> None:
        log.event("process_failed", level="error", process=place.number, reason=str(error))

    # ── other settings ───────────────────────────────────────────────────────────────────────

    def _refuse_upgrade(self) -> None:
        reason = "with 'processes' it is a restart: there is nobody who could take over from all"
        log.event("upgrade_failed", level="error", reason=reason)

    def _reread(self) -> Prepared:
        """Whatever would keep a process from taking them is found here."""
        return wiring.prepare(self._inherited.over(self._read()))

    async def _adopt(self, prepared: Prepared) -> tuple[list[str], list[str]]:
        """Have all processes take the settings; where the listeners are others, by replacing one
        process after the other. Raises StartError."""
        if self._stopping.is_set():
            raise StartError("it is stopping")
        before = self._settings
        settings, names, fixed = prepared.settings.after(before)
        has_other_doors = self._all_doors.open(settings)
        self._settings = settings
        log.setup(settings.log_format, sys.stderr)
        if has_other_doors:
            await self._replace_all(before)
        else:
            for place in self._places:
                async with place.turn:
                    if place.child is not None:
                        place.child.reload(self._share(place.number))
        self._admin_terms.become(self._new_admin_terms())
        await self._open_admin()
        self._all_doors.close_old()
        warn_of_unverified(settings)
        return names, fixed

    async def _replace_all(self, before: Settings) -> None:
        """One after the other. Raises StartError, and then all have the settings of before."""
        try:
            for place in self._places:
                await self._replace(place)
        except StartError:
            self._settings = before
            self._all_doors.open(before)  # nothing of it was closed
            for place in self._places:
                await self._replace_asked(place)
            self._all_doors.close_old()
            raise

    # ── leaving ──────────────────────────────────────────────────────────────────────────────

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._cut()  # asked twice: the grace time is over
        self._stopping.set()

    def _cut(self) -> None:
        for child in self._children:
            child.cut()

    async def _drain(self) -> None:
        self._voice.draining = self._admin_terms.draining = True
        self._all_doors.close()
        for child in self._children:
            child.stop()
        for place in self._places:
            async with place.turn:  # whoever was about to start one has seen that it stops
                pass
        grace = self._settings.grace
        cutting = self._loop.call_later(grace, self._cut)  # those that a successor had already
        await asyncio.gather(*(child.end_within(grace) for child in self._children))
        cutting.cancel()
        self._admin_doors.close()
        for admin in list(self._admins):
            admin.transport.close()
        log.tick(at_end=True)
        await asyncio.sleep(0)  # let the closes reach the kernel


def _cause(code: int | None) -> str:
    """How a process ended, from its exit code."""
    if code is None:
        return "unknown"
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
