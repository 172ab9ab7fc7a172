"""Carries out what the pools plan: dials, evictions, one timer per origin; and hands out leases."""

import asyncio
import socket
import warnings
from collections.abc import Callable, Container
from math import inf
from typing import Any, Protocol

from warmproxy.errors import DialClosed, DialError, LimitReached, ShuttingDown, WarmproxyError
from warmproxy.net.dialer import Dialer
from warmproxy.net.places import Places
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.observe import CloseReason, Observer, Tally
from warmproxy.origin import Origin, unsecured
from warmproxy.policy.guard import objection
from warmproxy.policy.retry import Prefer
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.pool.registry import Registry
from warmproxy.settings import OriginSettings, Settings

PLANS = 32
"""Pools that one turn of the loop plans, beside those with waiters: 20 µs each."""

REFILLS = 4
"""Dials that one turn of the loop begins and nobody waits for: 250 µs each, all told."""


class Waiter(Protocol):
    """Who asked for a connection and could not have one at once. Exactly one of the two comes,
    unless it cancels."""

    def lease_ready(self, lease: "Lease") -> None: ...

    def lease_failed(self, error: WarmproxyError) -> None: ...


Pool = OriginPool[UpstreamConnection, Waiter]


class Lease:
    """An acquired connection. Its owner releases it exactly once."""

    __slots__ = ("_housekeeper", "_pool", "connection", "was_used")

    def __init__(
        self, housekeeper: "Housekeeper", pool: Pool, connection: UpstreamConnection
    ) -> None:
        self._housekeeper: Housekeeper | None = housekeeper
        self._pool = pool
        self.connection = connection
        self.was_used = pool.was_used(connection)

    def release(self, *, reusable: bool, keep_alive: float | None = None) -> None:
        """Give the connection back; with `reusable` the next request may have it, and the upstream
        says that it keeps it idle for `keep_alive` seconds, or says nothing."""
        housekeeper, self._housekeeper = self._housekeeper, None
        if housekeeper is None:
            raise RuntimeError(f"{self.connection!r} was released twice")
        housekeeper.released(self._pool, self.connection, reusable, keep_alive)

    def lost(self) -> None:
        """The upstream closed the connection instead of answering; the release follows."""
        if self._housekeeper is not None:
            self._housekeeper.lost(self._pool, self.connection)

    @property
    def tally(self) -> Tally:
        return self._pool.tally

    def answered(self) -> None:
        """The first byte came of what was asked for."""
        if not self.was_used and self._housekeeper is not None:
            self._housekeeper.answered(self._pool, self.connection)

    def overdue(self, waited: float) -> None:
        """No byte has come for so many seconds."""
        if not self.was_used and self._housekeeper is not None:
            self._housekeeper.overdue(self._pool.origin, waited, self.connection)

    def is_alive(self) -> bool:
        """The liveness test, for a lease that was kept for a while."""
        return self.connection.check() is None

    @property
    def settings(self) -> OriginSettings:
        return self._pool.settings

    def __del__(self) -> None:
        if self._housekeeper is not None:
            warnings.warn(f"{self.connection!r} was never released", ResourceWarning, stacklevel=2)
            self.release(reusable=False)


class _Nobody:
    """Asks for what is there and waits for nothing."""

    def lease_ready(self, lease: Lease) -> None:
        raise AssertionError

    def lease_failed(self, error: WarmproxyError) -> None:
        raise AssertionError


class Housekeeper:
    """The only one who touches pools: it tells them facts and does what they plan.

    Pools that changed are planned once per turn of the loop, outside the request's call stack.
    Many at once (a start, the end of what was opened together) take many turns, so that requests
    need not wait for them.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry[UpstreamConnection, Waiter],
        dialer: Dialer,
        observer: Observer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.registry = registry
        self._settings = settings
        self._dialer = dialer
        self._observer = observer
        self._loop = loop
        self._time = loop.time
        self._open = 0
        """Connections and dials of all pools."""
        self._changed: dict[Origin, Pool] = {}
        self._flushing: asyncio.Handle | None = None
        self._wakes: dict[Origin, asyncio.Handle] = {}
        """What plans each pool again at its `planned_until`."""
        self._timeouts: dict[Waiter, asyncio.TimerHandle] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self._refills = 0
        """That this turn of the loop may still begin."""
        self._starved: dict[Origin, Pool] = {}
        """Pools whose waiters need a dial that max_connections (all origins) did not allow."""
        self._warmed: dict[Origin, bool] = {}
        self.places = Places(registry, loop, self._ended, self._plan_soon)
        self._on_idle_end = self._idle_ended
        """One bound method for all connections: 64 bytes less for each."""
        self._stopped = False
        self.when_shelved: Callable[[UpstreamConnection], None] | None = None
        """Called with each new connection that nobody waits for, once it is idle."""
        self.scarce = False
        """Descriptors are running out: dials for requests only."""

    # ── for the service ──────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Open what is configured, at once."""
        for pool in self.registry:
            self._plan_soon(pool)

    def adopt(self, settings: Settings, renewed: Container[str]) -> None:
        """Other settings hold from now on; see Registry.adopt."""
        now = self._loop.time()
        self._settings = settings
        adopted = self.registry.adopt(settings, renewed, now)
        memories: tuple[dict[Origin, Any], ...] = (
            self._changed,
            self._wakes,
            self._starved,
            self._warmed,
        )
        for memory in memories:
            for before in memory.keys() & adopted.renamed.keys():
                memory[adopted.renamed[before]] = memory.pop(before)
        for pool, count in adopted.surplus:
            for _ in range(count):
                if (conn := pool.oldest_idle()) is not None:
                    self._ended(pool, conn, CloseReason.SURPLUS, now)
        self.start()

    def stop(self) -> None:
        """No more dials; whoever waits is told so; idle connections are closed."""
        self._stopped = True
        for task in self._dials:
            task.cancel()
        for waiter, timeout in list(self._timeouts.items()):
            timeout.cancel()
            waiter.lease_failed(ShuttingDown("this proxy is shutting down"))
        self._timeouts.clear()
        for wake in self._wakes.values():
            wake.cancel()
        now = self._time()
        for pool in self.registry:
            while (conn := pool.oldest_idle()) is not None:
                self._ended(pool, conn, CloseReason.SHUTDOWN, now)

    def shed(self, count: int) -> int:
        """Close up to `count` idle connections, those of the origins used least recently first;
        how many there were."""
        now = self._time()
        for done in range(count):
            pool = self.registry.least_recent_with_idle()
            conn = pool.oldest_idle() if pool else None
            if pool is None or conn is None:
                return done
            self._ended(pool, conn, CloseReason.SURPLUS, now)
        return count

    @property
    def open(self) -> int:
        """Upstream connections and dials under way, of all origins."""
        return self._open

    def tally(self, origin: Origin | None) -> Tally:
        """Where the counts for `origin` go; those that belong to none join `other`."""
        pool = self.registry.find(origin) if origin else None
        return pool.tally if pool else self.registry.forgotten

    def boost(self, origin: Origin, count: int, seconds: float, why: str) -> Pool:
        """Hold at least `count` idle connections to the origin for so long, in place of what `why`
        began before; 0 ends that."""
        now = self._time()
        pool = self.registry.find(origin) or self.registry.use(origin, now)
        pool.boost(count, now + seconds, why, now)
        if len(self.registry) > self._settings.max_origins:
            self._let_go(now)
        self._plan_soon(pool)
        return pool

    # ── for those who want a connection ──────────────────────────────────────────────────────

    def acquire(self, origin: Origin, prefer: Prefer, waiter: Waiter) -> Lease | None:
        """A lease at once, in this call stack, or None: the waiter will hear.

        Raises LimitReached or ShuttingDown.
        """
        if self._stopped:
            raise ShuttingDown("this proxy is shutting down")
        now = self._time()
        pool = self.registry.use(origin, now)
        conn = pool.acquire(waiter, prefer, now, self._alive)
        if len(self.registry) > self._settings.max_origins:
            self._let_go(now)  # by now this pool has a lease or a waiter, and stays
        if not pool.is_settled(now):
            self._plan_soon(pool)
        if conn is not None:
            return Lease(self, pool, conn)
        timeout = pool.settings.acquire_timeout
        self._timeouts[waiter] = self._loop.call_later(timeout, self._time_out, pool, waiter)
        return None

    def cancel(self, origin: Origin, waiter: Waiter) -> None:
        """The waiter wants no connection any more."""
        if (timeout := self._timeouts.pop(waiter, None)) is not None:
            timeout.cancel()
            pool = self.registry.find(origin)
            assert pool is not None, "a pool outlives its waiters"
            pool.cancel(waiter)
            self._plan_soon(pool)

    def take(self, pool: Pool, conn: UpstreamConnection) -> Lease:
        """An idle connection for a request of our own."""
        pool.take(conn, self._time())
        return Lease(self, pool, conn)

    def lost(self, pool: Pool, conn: UpstreamConnection) -> None:
        """For Lease.lost only."""
        pool.lost(conn, self._time())

    def released(
        self, pool: Pool, conn: UpstreamConnection, reusable: bool, keep_alive: float | None
    ) -> None:
        """For Lease.release only."""
        now = self._time()
        conn.detach()
        if conn.ended is not None:
            self._ended(pool, conn, conn.ended, now)
        elif not reusable or self._stopped:
            reason = CloseReason.SHUTDOWN if self._stopped else CloseReason.NOT_REUSABLE
            self._ended(pool, conn, reason, now)
        elif conn in pool.outdated:
            self._ended(pool, conn, CloseReason.OUTDATED, now)
        elif pool.must_yield():
            self._ended(pool, conn, CloseReason.SURPLUS, now)
        else:
            if keep_alive != pool.hint:
                pool.hinted(keep_alive)
            waiter = pool.release(conn, now)
            if waiter is not None:
                self._serve(pool, waiter, conn)
            if not pool.stays_settled():
                self._plan_soon(pool)

    def answered(self, pool: Pool, conn: UpstreamConnection) -> None:
        """For Lease.answered: the connection was fresh."""
        for changed in self.registry.site(pool.origin).answered(pool, conn, self._time()):
            self._plan_soon(changed)

    def overdue(
        self, origin: Origin, waited: float, conn: UpstreamConnection | None = None
    ) -> None:
        """Who asked for this origin has waited for so many seconds: for the first byte on a
        connection that was fresh, or (None) for a handshake. Idle connections may be why."""
        pool = self.registry.find(origin)
        if pool is None or (conn is None and origin.scheme != "https"):
            return
        now = self._time()
        for its, idle in self.registry.site(origin).overdue(pool, conn, waited, now):
            self._ended(its, idle, CloseReason.HARMFUL, now)

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _alive(self, conn: UpstreamConnection) -> CloseReason | None:
        dead = conn.check()
        if dead is not None:
            conn.close()
            self._freed()
            self._heed(conn, self._time())
            if conn.broken:
                self._loop.call_soon(self.places.failed, conn.origin.host, conn.peer)
        return dead

    def _heed(self, conn: UpstreamConnection, now: float) -> None:
        """An origin may say that it does not want idle connections."""
        if (why := objection(conn.said)) is not None:
            pool = self.registry.find(conn.origin)
            assert pool is not None, "a pool outlives its connections"
            pool.harmed(why, now)

    def _serve(self, pool: Pool, waiter: Waiter, conn: UpstreamConnection) -> None:
        self._timeouts.pop(waiter).cancel()
        waiter.lease_ready(Lease(self, pool, conn))

    def _time_out(self, pool: Pool, waiter: Waiter) -> None:
        del self._timeouts[waiter]
        pool.cancel(waiter)
        self._plan_soon(pool)
        waiter.lease_failed(
            LimitReached(
                f"no connection to {pool.origin.authority} within"
                f" {pool.settings.acquire_timeout:g} s (acquire_timeout): {pool.active} in use,"
                f" {pool.dialling} being dialled, max_connections {pool.settings.max_connections}"
            )
        )

    def _idle_ended(self, conn: UpstreamConnection, reason: CloseReason) -> None:
        """The upstream ended an idle connection: seen in the turn of the loop in which it came."""
        pool = self.registry.find(conn.origin)
        assert pool is not None, "a pool outlives its connections"
        self._ended(pool, conn, reason, self._time())

    def _ended(self, pool: Pool, conn: UpstreamConnection, reason: CloseReason, now: float) -> None:
        """A connection is over, whoever ended it."""
        conn.close()
        pool.closed(conn, reason, now)
        self._heed(conn, now)
        self._plan_soon(pool)
        self._freed()
        if conn.broken:
            self.places.failed(pool.origin.host, conn.peer)

    def _freed(self) -> None:
        """One connection fewer: those who could not dial under the cap may try again."""
        self._open -= 1
        for starved in self._starved.values():
            self._plan_soon(starved)
        self._starved.clear()

    def _let_go(self, now: float) -> None:
        for pool in self.registry.beyond_cap():
            while (conn := pool.oldest_idle()) is not None:
                self._ended(pool, conn, CloseReason.SURPLUS, now)
            for memory in (self._changed, self._starved, self._warmed):
                memory.pop(pool.origin, None)
            if (wake := self._wakes.pop(pool.origin, None)) is not None:
                wake.cancel()
            self.registry.let_go(pool)

    # ── plans ────────────────────────────────────────────────────────────────────────────────

    def _plan_soon(self, pool: Pool) -> None:
        self._changed[pool.origin] = pool
        if self._flushing is None and not self._stopped:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        changed, self._changed = self._changed, {}
        self._refills = REFILLS
        plans = 0
        for pool in changed.values():
            if pool.waiting or (plans < PLANS and self._refills):
                plans += 1
                self._carry_out(pool)
            else:
                self._plan_soon(pool)

    def _carry_out(self, pool: Pool) -> None:
        now = self._time()
        plan = pool.plan(now)
        self._tell_if_learned(pool, now)
        for conn, reason in plan.evict:
            if pool.evict(conn, reason, now):
                conn.close()
                self._freed()
        if plan.evict:
            self._plan_soon(pool)
        for_waiters = max(0, pool.waiting - pool.dialling)
        for i in range(plan.dials):
            if i >= for_waiters:
                if not self._refills:
                    self._plan_soon(pool)
                    break
                self._refills -= 1
            if not self._make_room(pool, now):
                self._starved[pool.origin] = pool
                break
            self._start_dial(pool, now)
        if plan.wake_at < pool.planned_until:
            if (wake := self._wakes.get(pool.origin)) is not None:
                wake.cancel()
            # a timer that is later than needed would cost warmth; one too early, one more look
            self._wakes[pool.origin] = self._loop.call_at(plan.wake_at, self._wake, pool)
            pool.planned_until = plan.wake_at

    def _wake(self, pool: Pool) -> None:
        del self._wakes[pool.origin]
        pool.planned_until = inf
        self._plan_soon(pool)

    def _make_room(self, pool: Pool, now: float) -> bool:
        """Whether one more connection may be opened under the cap over all origins.

        A request that waits may cost another origin its idle connection; a refill may not, or
        two pools could take turns in emptying each other.
        """
        if self._open < self._settings.max_connections and not self.scarce:
            return True
        if pool.waiting <= pool.dialling:
            return False
        victim = self.registry.least_recent_with_idle()
        if victim is None:
            return self._open < self._settings.max_connections
        conn = victim.oldest_idle()
        assert conn is not None
        self._ended(victim, conn, CloseReason.SURPLUS, now)
        return True

    def _start_dial(self, pool: Pool, now: float) -> None:
        pool.dial_started(now)
        self._open += 1
        task = self._loop.create_task(self._dial(pool), name=f"dial {pool.origin}")
        self._dials.add(task)
        task.add_done_callback(self._dial_done)

    def _dial_done(self, task: asyncio.Task[None]) -> None:
        self._dials.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": task.get_name(), "exception": error})

    async def _dial(self, pool: Pool) -> None:
        own, generation = pool.settings, pool.generation
        try:
            warm = self._warm_tcp(pool) if pool.origin.scheme == "https" else None
            urgent = pool.waiting > 0
            dialled = await self._dialer.dial(
                pool.origin, own.dial_timeout, warm, urgent, own.source_address, pool.places
            )
            conn = dialled.connection
            if conn.ended is not None:
                self._heed(conn, self._time())
                raise DialClosed(f"{pool.origin.authority} accepted and closed at once")
            if generation != pool.generation:
                conn.close()
                self._undone(pool)
                return
        except DialError as error:
            if generation == pool.generation:
                self._dial_failed(pool, error)
            else:
                self._undone(pool)
        except asyncio.CancelledError:
            self._open -= 1
            pool.dial_cancelled()
            raise
        except Exception as error:
            # a defect of ours must not leave a dial counted as under way for ever
            self._dial_failed(
                pool,
                DialError(f"the dial broke: {error!r}", status=500, token="proxy_internal_error"),
            )
            raise
        else:
            tally = pool.tally
            tally.dial_seconds["dns"].observe(dialled.dns)
            tally.dial_seconds["tcp"].observe(dialled.tcp)
            if pool.origin.scheme == "https":
                tally.dial_seconds["tls"].observe(dialled.tls)
                site, now = self.registry.site(pool.origin), self._time()
                for changed in site.handshaken(dialled.tls, now):
                    self._plan_soon(changed)
            conn.on_idle_end = self._on_idle_end
            cost = dialled.dns + dialled.tcp + dialled.tls
            waiter = pool.dial_succeeded(conn, cost, self._time(), conn.peer)
            for place in dialled.silent:
                self.places.failed(pool.origin.host, place)
            if waiter is not None:
                self._serve(pool, waiter, conn)
            elif conn.early:
                conn.refuse_data(conn.early)
            elif self.when_shelved is not None:
                self.when_shelved(conn)
        self._plan_soon(pool)

    def _warm_tcp(self, pool: Pool) -> socket.socket | None:
        """A fresh raw connection to the same place for TLS to begin on: saves a waiting request
        one round trip. Refills dial for themselves: taking would only move the shortage."""
        raw = self.registry.find(unsecured(pool.origin))
        if raw is None or not raw.fresh or not pool.waiting:
            return None
        now = self._time()
        nobody = _Nobody()
        try:
            conn = raw.acquire(nobody, Prefer.FRESH_ONLY, now, self._alive)
        except LimitReached:
            return None
        if conn is None:
            raw.cancel(nobody)
            return None
        taken = conn.take_socket()
        self._ended(raw, conn, CloseReason.SECURED, now)
        return taken

    def _undone(self, pool: Pool) -> None:
        """The settings changed under a dial: who waits for it has another one."""
        pool.dial_cancelled()
        self._freed()
        self._plan_soon(pool)

    def _dial_failed(self, pool: Pool, error: DialError) -> None:
        self._freed()
        for place in error.silent:
            self.places.failed(pool.origin.host, place)
        for waiter in pool.dial_failed(error, self._time()):
            self._timeouts.pop(waiter).cancel()
            waiter.lease_failed(error)

    def _tell_if_learned(self, pool: Pool, now: float) -> None:
        if pool.origin in self.registry.configured or pool.boosts:
            return
        target = pool.target_idle(now)
        if self._warmed.get(pool.origin, False) != bool(target):
            if target:
                self._warmed[pool.origin] = True
            else:
                del self._warmed[pool.origin]
            self._observer.learned(pool.origin, target)
