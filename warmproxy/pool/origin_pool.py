"""The connections of one origin: a machine that is told facts and asked one question.

            dial_started          dial_succeeded            acquire
   (none) ───────────────> dialling ────────────> fresh, used ─────────> active
                              │ dial_failed            │  ^── release ─────│
                              v                        v closed            v discard
                       (back-off)                    (gone)              (gone)

A state is the shelf where a connection is; a connection is on exactly one. Rules:
* `plan` is level-triggered: the shortage is computed from what is, so that no lost event can lose
  a refill, and asking twice gives the same answer.
* A dial belongs to the pool. Waiters are served first come first served by whatever connection
  comes first; one failed dial fails at most one waiter, the one that waited longest. While an
  origin restarts (it worked lately and refuses now) waiters wait on, for dial_retry_for.
* A release never evicts for surplus (that would cost one dial per request): surplus leaves by age.
* Replace before retire: a connection that is due (shelves.py) counts as missing, and goes when
  its successor is there.
Connections (`C`) and waiters (`W`) are opaque here; times are seconds of one monotonic clock.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from math import inf
from typing import Generic, TypeVar

from warmproxy.errors import DialClosed, DialError, DialRefused, LimitReached
from warmproxy.observe import CloseReason, Observer, Outcome, Tally
from warmproxy.origin import Origin
from warmproxy.policy import retire
from warmproxy.policy.backoff import Backoff, DialBudget
from warmproxy.policy.guard import PROVEN, Guard
from warmproxy.policy.learn import SHORTEST, IdleLimit, Known
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Sizing
from warmproxy.pool.shelves import Entry, Shelves
from warmproxy.settings import OriginSettings

C = TypeVar("C")
W = TypeVar("W")

WORKED_WITHIN = 300.0
"""Seconds: an origin that worked so recently and refuses is likely being restarted."""
RETRY_PAUSE = 0.05
"""Seconds between the dials of waiters while it is."""
DIALS_A_SECOND = 2.0
"""Refills for each connection of the target, where dial_budget says nothing."""
COSTLY = 1.0
"""Refills a second of connections that cannot be kept for long, from which on it is said."""
AT_ONCE = 0.05
"""Seconds beside two round trips in which a request hears that it came too late."""
DIAL_DECAY = 0.9
"""Per dial: how fast a slow one is forgotten."""

# in Python 3.11 reading a member through its class takes ten times as long as reading a global
_FRESH, _USED, _WAITED, _DIALLED, _FAILED = Outcome
_USED_FIRST, _FRESH_FIRST, _FRESH_ONLY = Prefer


@dataclass(slots=True)
class _Waiter:
    prefer: Prefer
    since: float
    dialled: bool
    """No dial was under way for it: one is made because of it."""


@dataclass(frozen=True, slots=True)
class Plan(Generic[C]):
    """What should be done now, and when to ask again (inf: not before something happens)."""

    dials: int
    evict: tuple[tuple[C, CloseReason], ...]
    wake_at: float


@dataclass(frozen=True, slots=True)
class LastClose:
    reason: CloseReason
    at: float
    age: float
    """Seconds the connection had been idle, or active, when it ended."""


class OriginPool(Generic[C, W]):
    """See the module. Facts are methods in the past tense or imperative; the question is `plan`."""

    def __init__(
        self,
        origin: Origin,
        settings: OriginSettings,
        sizing: Sizing,
        budget: DialBudget,
        observer: Observer,
        rng: Callable[[], float],
        now: float,
    ) -> None:
        self.origin = origin
        self.settings = settings
        self.sizing = sizing
        self.tally = Tally()
        self.dialling = 0
        self.last_close: LastClose | None = None
        self.last_error: str | None = None
        self.guard = Guard()
        self.hint: float | None = None
        """Seconds: what `Keep-Alive: timeout=` said last, if it did."""
        self.planned_until = inf
        """When its plan is looked at again if nothing happens: set by who carries the plans out."""
        self.boosts: dict[str, tuple[int, float]] = {}
        """Why -> how many idle connections there should be at the least, and until when."""
        self.generation = 0
        """Grows when connections are to be opened in another way."""
        self.outdated: set[C] = set()
        """Active connections of earlier generations: not to be given back, but closed."""
        self.dial_failures = Backoff(settings.backoff_max, rng)
        self.churn = Backoff(settings.backoff_max, rng)
        """Connections that died right after they were opened."""
        self._budget = budget
        self._observer = observer
        self._rng = rng
        self._shelves: Shelves[C] = Shelves(settings)
        self._active: dict[C, Entry] = {}
        self._taken: set[C] = set()
        """Active ones that no client has: they come back, so nothing is dialled in their place."""
        self._waiting: OrderedDict[W, _Waiter] = OrderedDict()
        self._gaps: list[float] = []
        self._accounted = now
        self._told_costly = False
        self._dial = 0.0
        """Seconds that a dial takes: a high one of the last."""
        self._worked_at = -inf
        self._retry_at = -inf
        """While an origin restarts: when its waiters' next dial, one for all, may go."""
        self._refusing_since = -inf
        """Its first refusal; holds while `_retry_at` does."""

    # ── what is ──────────────────────────────────────────────────────────────────────────────

    @property
    def fresh(self) -> int:
        return len(self._shelves.fresh)

    @property
    def used(self) -> int:
        return len(self._shelves.used)

    @property
    def idle(self) -> int:
        return len(self._shelves)

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def taken(self) -> int:
        """Of the active ones those that are on our own business."""
        return len(self._taken)

    @property
    def canaries(self) -> int:
        return len(self._shelves.canaries)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def open(self) -> int:
        """Connections that hold a descriptor, and dials that will."""
        return self.idle + len(self._active) + self.canaries + self.dialling

    @property
    def rtt(self) -> float:
        """Seconds that the quickest dial took."""
        return self._shelves.rtt

    @property
    def dial_time(self) -> float:
        """Seconds that a dial takes, a high one of the last (0: unknown)."""
        return self._dial

    @property
    def is_costly(self) -> bool:
        """Whether it was told that keeping connections warm takes many dials."""
        return self._told_costly

    @property
    def idle_limits(self) -> dict[str, IdleLimit]:
        """By kind: `fresh` and `used`; `raw` where connections wait for TLS to begin on them, which
        servers judge by another limit than those on which it is done."""
        fresh, used = self._shelves.limits[False], self._shelves.limits[True]
        return {"raw": fresh} if self.origin.scheme == "tcp" else {"fresh": fresh, "used": used}

    def target_idle(self, now: float) -> int:
        """Idle connections there should be: what demand, schedules and requests for it say, but
        none while the origin is left alone, and then one until it has proved harmless."""
        busy = len(self._active) - len(self._taken) + len(self._waiting)
        wanted = self.sizing.target_idle(now, busy, self._dial, self._shelves.lives)
        for count, until in self.boosts.values():
            if count > wanted and now < until:
                wanted = count
        wanted = min(wanted, self.settings.max_connections)
        return self.guard.allowed(wanted, now) if self.guard.is_wary else wanted

    def connections(self) -> Iterator[C]:
        """All of them, whatever their state."""
        return chain(self._shelves, self._active)

    def places(self) -> Counter[str]:
        """Open connections by address."""
        places = self._shelves.count_places()
        places.update(entry.place for entry in self._active.values())
        return places

    def idle_longest(self) -> tuple[C, float] | None:
        """The connection that has been idle longest and may stay, and since when."""
        return self._shelves.idle_longest()

    def oldest_age(self, now: float) -> float:
        """Age in seconds of the oldest idle connection, 0 where there is none."""
        return max((now - entry.opened for entry in self._shelves.entries()), default=0.0)

    def oldest_idle(self) -> C | None:
        """What to give up first where descriptors are scarce."""
        return next(iter(self._shelves), None)

    def was_used(self, conn: C) -> bool:
        """Whether a leased connection served a request before this lease."""
        return self._active[conn].used

    def leased(self, conn: C) -> Entry:
        """What is known of a leased connection."""
        return self._active[conn]

    def unasked(self) -> list[tuple[C, Entry]]:
        """The idle connections that never carried a request."""
        return self._shelves.unasked()

    def unasked_before(self, number: int) -> int:
        """How many of `unasked` were opened before the connection of that number, or more."""
        return self._shelves.unasked_before(number)

    def must_yield(self) -> bool:
        """Whether a used connection that comes back is to be closed: the first in line takes a
        fresh one only, and max_connections leaves no room to dial it."""
        if not self._waiting or self.open < self.settings.max_connections:
            return False
        picky = takewhile(lambda w: w.prefer is _FRESH_ONLY, self._waiting.values())
        return sum(1 for _ in picky) > self.dialling

    def is_let_go(self) -> bool:
        """Whether nobody would miss this pool: no lease, no waiter, no dial, no wish for it."""
        return not (self._active or self._waiting or self.dialling or self.boosts)

    def __repr__(self) -> str:
        return (
            f"<OriginPool fresh={self.fresh} used={self.used} active={self.active}"
            f" dialling={self.dialling} waiting={self.waiting}>"
        )

    # ── facts ────────────────────────────────────────────────────────────────────────────────

    def acquire(
        self, waiter: W, prefer: Prefer, now: float, alive: Callable[[C], CloseReason | None]
    ) -> C | None:
        """A connection for `waiter` at once, or None: then it waits in line.

        `alive` is the liveness test: None for a connection that can be used, else why not (the
        caller has closed it then). Raises LimitReached where the line is full.
        """
        self.account(now)
        busy = len(self._active) - len(self._taken) + len(self._waiting)
        self.sizing.asked(now, busy)
        used_first, fresh_only = prefer is _USED_FIRST, prefer is _FRESH_ONLY
        spared = self.guard.is_wary and self._spares_probe(now)
        if spared:
            used_first = not fresh_only
        while taken := self._shelves.take(
            used_first=used_first, fresh_only=fresh_only, spare_fresh=spared
        ):
            conn, entry = taken
            dead = alive(conn)
            if dead is None:
                return self._lease(conn, entry, _USED if entry.used else _FRESH, now)
            self._gone(entry, dead, now)
        if len(self._waiting) >= self.settings.max_waiting:
            self.tally.acquires[_FAILED] += 1
            raise LimitReached(
                f"{len(self._waiting)} requests already wait for a connection (max_waiting)"
            )
        covered = self.dialling > len(self._waiting)
        self._waiting[waiter] = _Waiter(prefer, now, not covered)
        return None

    def cancel(self, waiter: W) -> None:
        """The waiter is gone or was told that it waits no longer; its dial stays with the pool."""
        if self._waiting.pop(waiter, None) is not None:
            self.tally.acquires[_FAILED] += 1

    def release(self, conn: C, now: float) -> W | None:
        """A lease ended and its connection can be used again: by the waiter returned, or idle."""
        self.account(now)
        entry = self._active.pop(conn)
        self._taken.discard(conn)
        entry.used = True
        entry.suspect = False
        entry.since = self._worked_at = now
        if self.churn.failures:
            self.churn.succeeded()
        return self._offer(conn, entry, now, _WAITED)

    def closed(self, conn: C, reason: CloseReason, now: float) -> None:
        """A connection is gone: closed by them or by us, whichever shelf it was on."""
        self.account(now)
        if (entry := self._active.pop(conn, None)) is not None:
            self.outdated.discard(conn)
            if conn in self._taken:
                self._taken.remove(conn)
                if not entry.used:
                    self.churn.failed(now)  # it did not survive its first request
            entry.used = True
            self._gone(entry, reason, now, was_idle=False)
            return
        entry, was_on_shelf = self._shelves.remove(conn)
        if was_on_shelf and self.idle < self.target_idle(now):
            self._gaps.append(now)
        if not was_on_shelf and reason not in _THEIRS:
            self._shelves.limits[entry.used].survived(now - entry.since)
            self._shelves.learned()
        self._gone(entry, reason, now)

    def lost(self, conn: C, now: float) -> None:
        """The upstream closed an active connection instead of answering. At once: then its close
        has crossed the request on the way, and teaches like one that came while it was idle.
        (Who asks as often as an upstream closes would meet no other.)"""
        entry = self._active[conn]
        took = now - entry.since
        if took <= 2 * self._shelves.rtt + AT_ONCE:
            self._shelves.limits[entry.used].closed(entry.idled + took, now)
            self._shelves.learned()

    def evict(self, conn: C, reason: CloseReason, now: float) -> bool:
        """Carry out one eviction of a plan: True if the connection is to be closed, False if it
        stays open as the canary of its kind."""
        if reason is CloseReason.IDLE_LIMIT and self._shelves.find(conn) is not None:
            self.account(now)
            if self._shelves.keep_as_canary(conn, now):
                return False
        self.closed(conn, reason, now)
        return True

    def take(self, conn: C, now: float) -> None:
        """An idle connection leaves its shelf for a request of our own, which no client sees; it
        comes back by `release`."""
        self.account(now)
        entry, _ = self._shelves.remove(conn)
        entry.since = now
        self._active[conn] = entry
        self._taken.add(conn)

    def hinted(self, seconds: float | None) -> None:
        """The upstream said on an active connection how long it keeps it idle (RFC 2068,
        19.7.1.1: Keep-Alive: timeout); None: it says so no more."""
        self.hint = seconds
        self._shelves.limits[True].hinted(seconds)
        self._shelves.learned()

    def recall(self, known: Mapping[str, Known]) -> None:
        """What an earlier run knew of the idle limits, by kind."""
        for kind, limit in self.idle_limits.items():
            if kind in known:
                limit.recall(known[kind])
        self._shelves.learned()

    def located(self, places: frozenset[str], now: float) -> None:
        """The addresses that the origin's name resolves to now (none: not known). Idle connections
        to others are replaced."""
        self._shelves.located(places, now)

    def suspect(self, place: str | None, now: float) -> list[C]:
        """Something happened to a connection to this address (None: to the network itself): the
        idle ones there are replaced, and handed out last until then. Which they are, for a
        liveness test at once."""
        return self._shelves.suspect(place, now)

    def boost(self, count: int, until: float, why: str, now: float) -> None:
        """Hold at least so many idle connections until then; `count` 0 ends what `why` began."""
        self.account(now)
        self.boosts.pop(why, None)
        if count > 0 and until > now:
            self.boosts[why] = (count, until)
            self._provide_for(count, now)

    def adopt(
        self, settings: OriginSettings, sizing: Sizing, budget: DialBudget, now: float
    ) -> None:
        """Other settings hold from now on; what is open, and what was learned, stays."""
        self.account(now)
        sizing.inherit(self.sizing)
        self.settings, self.sizing, self._budget = settings, sizing, budget
        for count, _ in self.boosts.values():
            self._provide_for(count, now)
        self.dial_failures.longest = self.churn.longest = settings.backoff_max
        self._shelves.adopt(settings)

    def renew(self, now: float) -> None:
        """Connections are to be opened in another way from now on: what is idle is replaced, what
        is active is not given back, and a dial under way is of an earlier generation."""
        self.generation += 1
        self.outdated.update(self._active)
        self._shelves.outdate(now)
        self.dial_failures.succeeded()  # what failed in the old way may work in the new one
        self.churn.succeeded()

    def harmed(self, why: str, now: float) -> None:
        """Idle connections do the origin harm: it is left alone for a while."""
        if self.guard.harmed(why, now):
            self._shelves.refuse(CloseReason.HARMFUL, now)
            self._observer.held_back(self.origin, why, self.guard.until - now)

    def dial_started(self, now: float) -> None:
        self.dialling += 1
        self._budget.charge(now)

    def dial_succeeded(self, conn: C, cost: float, now: float, place: str = "") -> W | None:
        """A connection to the address `place` is there, after `cost` seconds: for the waiter
        returned, or idle."""
        self.account(now)
        self.dialling -= 1
        self.tally.dials["ok"] += 1
        if failures := self.dial_failures.succeeded():
            self._observer.dial_recovered(self.origin, failures)
        self._worked_at, self._retry_at = now, -inf
        if cost < self._shelves.rtt or not self._shelves.rtt:
            self._shelves.rtt = cost
            self._shelves.learned()
        self._dial = max(cost, self._dial * DIAL_DECAY)
        spread = retire.spread(self._rng)
        ends = retire.ends(now, spread, self.settings.max_age)
        entry = Entry(now, spread, cost, now, ends, place)
        return self._offer(conn, entry, now, _DIALLED)

    def dial_failed(self, error: DialError, now: float) -> list[W]:
        """No connection; the waiters returned are to be told so.

        An origin that worked lately and refuses now, or closes what it has accepted, gets
        dial_retry_for to come back: until a request has waited as long, it goes on waiting. The
        time runs from the first refusal, or from when the request came if that was later.
        """
        self.account(now)
        self.dialling -= 1
        self.tally.dials[error.result] += 1
        self.last_error = error.reason
        failures = self.dial_failures
        if failures.failed(now):
            retry_in = failures.not_before - now
            self._observer.dial_failed(self.origin, error, failures.failures, retry_in)
        if isinstance(error, DialRefused | DialClosed) and now - self._worked_at < WORKED_WITHIN:
            if self._retry_at == -inf:
                self._refusing_since = now
            self._retry_at = now + RETRY_PAUSE
            # what a request had waited before, in line, is no part of the restart
            began, patience = self._refusing_since, self.settings.dial_retry_for
            waiting = self._waiting.items()
            told = [waiter for waiter, w in waiting if now - max(w.since, began) >= patience]
            if len(told) < len(self._waiting):
                self.tally.retries["dial"] += 1
        else:
            told = list(islice(self._waiting, len(self._waiting) > self.dialling))
        for waiter in told:
            del self._waiting[waiter]
        self.tally.acquires[_FAILED] += len(told)
        return told

    def dial_cancelled(self) -> None:
        """Nobody wants its outcome: the daemon stops, or it was of an earlier generation."""
        self.dialling -= 1

    # ── the question ─────────────────────────────────────────────────────────────────────────

    def plan(self, now: float) -> Plan[C]:
        """What should be done now. Changes nothing that another call would not change as well."""
        if self.guard.until <= now:
            self._shelves.refuse(None, now)
        if self._probe_proves_at(now) <= now:
            self.guard.proved(now)
        for why in [why for why, (_, until) in self.boosts.items() if until <= now]:
            del self.boosts[why]
        self._shelves.judge(now)
        target = self.target_idle(now)
        evict = self._shelves.leaving(target)
        # the room that an eviction makes is there once it is carried out: a canary makes none
        room = self.settings.max_connections - self.open
        for_waiters, waiters_at = self._dials_for_waiters(now)
        if for_waiters > room:
            # only requests that will not take a used connection wait beside one: it makes room
            gone = {conn for conn, _ in evict}
            used = (conn for conn in self._shelves.used if conn not in gone)
            oldest = list(islice(used, for_waiters - max(0, room)))
            evict += [(conn, CloseReason.SURPLUS) for conn in oldest]
            room += len(oldest)
        for_waiters = max(0, min(for_waiters, room))
        refills, retry_at = self._refills(target, room - for_waiters, now)
        wake_at = min(self._shelves.check_at, self._target_changes_at(now), retry_at, waiters_at)
        return Plan(for_waiters + refills, tuple(evict), wake_at)

    def settled_until(self, now: float) -> float:
        """Until when a plan would hold nothing to do, unless something happens; `now` where it
        may. Much cheaper than a plan."""
        shelves = self._shelves
        missing = self.target_idle(now) - len(shelves)
        due = len(shelves.due)
        if self._waiting or missing + due > self.dialling + len(self._taken):
            return now
        if missing < 0 and (due or shelves.stale):
            return now
        changes_at = self._target_changes_at(now)
        return changes_at if changes_at < shelves.check_at else shelves.check_at

    def is_settled(self, now: float) -> bool:
        """Whether all that is to be done is planned: asked at every acquire."""
        if len(self._shelves) >= self.sizing.most and not (self.boosts or self.guard.is_wary):
            return self.stays_settled()  # whatever the target is, nothing is missing
        settled_until = self.settled_until(now)
        return settled_until > now and settled_until >= self.planned_until

    def stays_settled(self) -> bool:
        """The same after a release, which leaves less to be done: one connection more may be one
        too many, or be due before all others. (Where demand falls by one, the target rises by one
        at the most.)"""
        shelves = self._shelves
        if shelves.due or shelves.stale or self._waiting:
            return False
        return shelves.check_at >= self.planned_until

    def account(self, now: float) -> None:
        """Bring the sums over time (idle socket-seconds, seconds below target) up to `now`."""
        passed = now - self._accounted
        if passed > 0:
            self._accounted = now
            idle = len(self._shelves)
            self.tally.idle_socket_seconds += passed * idle
            if idle < self.target_idle(now):
                self.tally.below_target_seconds += passed

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _provide_for(self, count: int, now: float) -> None:
        """Let the budget open so many connections at once."""
        rate = self.settings.dial_budget or DIALS_A_SECOND * count
        self._budget.widen(rate, max(rate, count), now)

    def _spares_probe(self, now: float) -> bool:
        """A probe tells more beside a request than under it, where there is room for both."""
        room = self.open + self.waiting < self.settings.max_connections
        return room and self.guard.is_probing(now)

    def _lease(self, conn: C, entry: Entry, outcome: Outcome, now: float) -> C:
        entry.idled = now - entry.since
        if self.churn.failures and entry.idled >= SHORTEST:
            self.churn.succeeded()
        entry.since = now
        if not entry.served:
            entry.served = True
            self._budget.earn(now)
        self._active[conn] = entry
        self.tally.acquires[outcome] += 1
        if outcome is _FRESH or outcome is _USED:
            self.tally.saved_seconds += entry.cost
        return conn

    def _offer(self, conn: C, entry: Entry, now: float, outcome: Outcome) -> W | None:
        """Give a connection to the first waiter that may have it, else put it on its shelf."""
        for waiter, w in self._waiting.items():
            if entry.used and w.prefer is _FRESH_ONLY:
                continue
            del self._waiting[waiter]
            self.tally.acquire_wait.observe(now - w.since)
            if outcome is _DIALLED and not w.dialled:
                outcome = _WAITED
            self._lease(conn, entry, outcome, now)
            return waiter
        self._shelves.put(conn, entry, now)
        if self._gaps and not entry.used:
            self.tally.redial_gap.observe(now - self._gaps.pop(0))
        return None

    def _gone(self, entry: Entry, reason: CloseReason, now: float, was_idle: bool = True) -> None:
        age = now - entry.since
        self.last_close = LastClose(reason, now, age)
        self.tally.closed[reason] += 1
        if not entry.served:
            self.tally.dials_wasted += 1
        if reason in _THEIRS and was_idle and not entry.suspect:
            # what failed with a sibling, or after sleep that no clock here counts, had no limit
            self._shelves.limits[entry.used].closed(age, now)
            self._shelves.learned()  # what is still idle may be due by the new limit
        if not was_idle or entry.used:
            return
        if reason in _OLD or (reason in _ENDED and age >= SHORTEST):
            self.guard.proved(now)
        if reason not in _THEIRS:
            return
        self._tell_if_costly(now)
        if age >= SHORTEST:
            self.churn.succeeded()
        elif self.churn.failed(now):
            self._observer.churning(self.origin, self.churn.failures, self.churn.not_before - now)

    def _tell_if_costly(self, now: float) -> None:
        """Say once that the upstream's idle limit makes warm connections cost many dials."""
        lives, target = self._shelves.lives, self.target_idle(now)
        if target > lives * COSTLY and not self._told_costly:
            self._told_costly = True
            rate = min(self._budget.rate, target / lives if lives else inf)
            self._observer.costly(self.origin, self._shelves.limits[False].seconds, 60 * rate)

    def _target_changes_at(self, now: float) -> float:
        """When the target may change with no event."""
        if now < self.guard.until:
            return self.guard.until
        changes_at = self.sizing.changes_at(now)
        if self.guard.is_wary:
            changes_at = min(changes_at, self._probe_proves_at(now))
        for _, until in self.boosts.values():
            changes_at = min(changes_at, until)
        return changes_at

    def _probe_proves_at(self, now: float) -> float:
        """When a probe will have been idle for long enough."""
        if not (self._shelves.fresh and self.guard.is_probing(now)):
            return inf
        return min(entry.since for entry in self._shelves.fresh.values()) + PROVEN

    def _dials_for_waiters(self, now: float) -> tuple[int, float]:
        """Dials that requests wait for and none under way covers, and when more may start."""
        uncovered = max(0, len(self._waiting) - self.dialling)
        if not uncovered or self._retry_at == -inf:
            return uncovered, inf
        if now < self._retry_at:
            return 0, self._retry_at
        return max(0, 1 - self.dialling), inf  # one probe says as much as a hundred

    def _refills(self, target: int, room: int, now: float) -> tuple[int, float]:
        """Dials to reach the target, and when more of them may start."""
        under_way = max(0, self.dialling - len(self._waiting))
        coming = under_way + len(self._taken)
        shortage = min(target - (self.idle - len(self._shelves.due)) - coming, room)
        if shortage <= 0:
            return 0, inf
        not_before = max(self.dial_failures.not_before, self.churn.not_before)
        if now < not_before:
            return 0, not_before
        if self.churn.failures and self._shelves.fresh:
            proven_at = next(reversed(self._shelves.fresh.values())).since + SHORTEST
            if now < proven_at:
                return 0, proven_at
            self.churn.succeeded()  # the probe has lived
        if self.dial_failures.failures or self.churn.failures:
            shortage = min(shortage, 1 - under_way)  # in doubt: a single probe
        dials = max(0, min(shortage, self._budget.available(now)))
        return dials, self._budget.next_at(now) if dials < shortage else inf


_THEIRS = frozenset(
    (
        CloseReason.UPSTREAM_EOF,
        CloseReason.UPSTREAM_RESET,
        CloseReason.TLS_ALERT,
        CloseReason.UNSOLICITED_DATA,
    )
)
_OLD = frozenset((CloseReason.IDLE_LIMIT, CloseReason.MAX_AGE))
_ENDED = frozenset((CloseReason.UPSTREAM_EOF, CloseReason.UNSOLICITED_DATA))
"""How a connection ends that was idle for as long as it may be: by us, and by them."""
