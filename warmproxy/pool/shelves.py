"""The idle connections of one pool: which is handed out next, which one has to go, and when.

Fresh and used connections have a shelf each, and each shelf is last-in first-out: the newest are
handed out, the oldest age out. A connection is *due* when it should be replaced: by its idle limit
or its age, because its address has gone, because it is suspect. It stays on its shelf until its
successor is there. A *stale* one has been idle for idle_timeout and goes if it is surplus.

One connection of each kind that is due by its idle limit may stay open as the canary, on no
shelf: its end says whether a learned limit is (still) true. Where none is known a fresh one goes
ahead of the others, which are replaced before they are as old as anything was seen to get: what was
opened together would be closed together.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice, takewhile
from math import inf
from typing import Generic, TypeVar

from warmproxy.observe import CloseReason
from warmproxy.policy import retire
from warmproxy.policy.learn import IdleLimit
from warmproxy.settings import OriginSettings

C = TypeVar("C")

MANY = 500
"""From so many connections on, one that will be due soon is taken for due ..."""
FORESIGHT = 1e-4
"""... so many seconds early for each of them: looking at all then takes 1 % of the time."""


@dataclass(slots=True)
class Entry:
    """What the pool knows of one connection."""

    opened: float
    spread: float
    """Factor for its limits, so that it is not replaced together with its siblings."""
    cost: float
    """Seconds that the dial took: what a hit saves, and about one round trip."""
    since: float
    """Idle or active since."""
    ends: float
    """When it is too old, whatever it does."""
    place: str = ""
    """The peer's address, "" where it does not matter."""
    used: bool = False
    """It carried a request: a client's, or one of our own."""
    served: bool = False
    """It carried a client's."""
    idled: float = 0.0
    """Seconds idle before the lease that it is under."""
    suspect: bool = False
    """A sibling at the same address failed, or the way there changed."""
    outdated: bool = False
    """It was opened in a way that holds no more."""
    number: int = field(default_factory=count(1).__next__)
    """Grows with each connection of any pool: the order in which upstreams accepted them."""


class Shelves(Generic[C]):
    """See the module. Times are seconds of one monotonic clock."""

    def __init__(self, settings: OriginSettings) -> None:
        self.fresh: OrderedDict[C, Entry] = OrderedDict()
        self.used: OrderedDict[C, Entry] = OrderedDict()
        self.canaries: dict[C, Entry] = {}
        self.limits = {False: IdleLimit(), True: IdleLimit()}
        """The learned idle limits, by `used`."""
        self.rtt = 0.0
        """Of the quickest dial, in seconds; `learned` after a change."""
        self.lives = inf
        """Seconds that a fresh connection can be idle before it has to be replaced."""
        self.due: dict[C, CloseReason] = {}
        """Idle connections that are to be replaced, used ones first."""
        self.stale: dict[C, CloseReason] = {}
        """Fresh and used connections that go if they are surplus."""
        self.check_at = inf
        """No idle connection is due before this."""
        self._settings = settings
        self._expired: dict[C, CloseReason] = {}
        """Canaries that have seen enough, or are too old."""
        self._places: frozenset[str] = frozenset()
        """Where connections may lead, where that is known."""
        self._unwanted: CloseReason | None = None
        self._hold = [0.0, 0.0]
        """Seconds that a fresh and a used connection may be idle before they are looked at."""
        self.learned()

    def __len__(self) -> int:
        return len(self.fresh) + len(self.used)

    def __iter__(self) -> Iterator[C]:
        """All that hold a descriptor, what is to be given up first before the others."""
        return chain(self.canaries, self.used, self.fresh)

    def entries(self) -> Iterator[Entry]:
        """Of the idle ones."""
        return chain(self.used.values(), self.fresh.values())

    def find(self, conn: C) -> Entry | None:
        """An idle connection's entry; None for a canary."""
        return self.fresh.get(conn) or self.used.get(conn)

    def unasked(self) -> list[tuple[C, Entry]]:
        """What holds a descriptor and never carried a request."""
        kept = [(conn, entry) for conn, entry in self.canaries.items() if not entry.used]
        return [*kept, *self.fresh.items()]

    def unasked_before(self, number: int) -> int:
        """How many of those have a lower number, or more: what is on top of the shelf is the
        newest, but for suspects."""
        newest = reversed(self.fresh.values())
        newer = sum(1 for _ in takewhile(lambda entry: entry.number >= number, newest))
        return len(self.fresh) + len(self.canaries) - newer

    def idle_longest(self) -> tuple[C, float] | None:
        """Of those that are not due the one that has been idle longest, and since when."""
        found = None
        for shelf in (self.used, self.fresh):
            for conn, entry in shelf.items():
                if conn not in self.due:
                    if found is None or entry.since < found[1]:
                        found = conn, entry.since
                    break
        return found

    def count_places(self) -> Counter[str]:
        """Idle connections by address."""
        return Counter(entry.place for entry in self.entries())

    # ── what comes and goes ──────────────────────────────────────────────────────────────────

    def put(self, conn: C, entry: Entry, now: float) -> None:
        """The connection is idle from now on."""
        (self.used if entry.used else self.fresh)[conn] = entry
        look_at = min(entry.ends, now + self._hold[entry.used])
        if look_at < self.check_at:
            self.check_at = look_at
        if self._reason_to_go(entry) is not None:
            self.check_at = now

    def learned(self) -> None:
        """A limit may have changed, or what is known of the round trip."""
        for used in (False, True):
            # a connection's jitter is its own; before the shortest of them nothing is due
            limit = self.limits[used]
            hold = limit.trusted if limit.is_unknown and not used else limit.safe(self.rtt)
            self._hold[used] = min(hold * (1 - retire.JITTER), self._settings.idle_timeout)
        self.lives = self.limits[False].safe(self.rtt)
        self.check_at = -inf

    def take(
        self, *, used_first: bool, fresh_only: bool, spare_fresh: bool = False
    ) -> tuple[C, Entry] | None:
        """The connection to hand out next, off its shelf."""
        first, second = (self.used, self.fresh) if used_first else (self.fresh, self.used)
        shelf = first if first or fresh_only else second
        if not shelf or (spare_fresh and shelf is self.fresh):
            return None
        taken = shelf.popitem()
        if self.due or self.stale:
            self._forget(taken[0])
        return taken

    def remove(self, conn: C) -> tuple[Entry, bool]:
        """A connection that leaves for another reason, and whether it was on a shelf (else it
        was a canary). Raises KeyError."""
        self._forget(conn)
        if (canary := self.canaries.pop(conn, None)) is not None:
            return canary, False
        entry = self.fresh.pop(conn, None)
        return entry or self.used.pop(conn), True

    def keep_as_canary(self, conn: C, now: float) -> bool:
        """Leave one that is due by a learned limit, or because none is known, open, off its shelf,
        unless there is one of its kind already; whether it was left."""
        entry = self.find(conn)
        limit = self.limits[entry.used] if entry else None
        if (
            entry is None
            or limit is None
            or not (limit.probe_at < inf or (limit.is_unknown and not entry.used))
            or any(canary.used == entry.used for canary in self.canaries.values())
        ):
            return False
        self.remove(conn)
        self.canaries[conn] = entry
        self.check_at = now
        return True

    # ── what is to go ────────────────────────────────────────────────────────────────────────

    def located(self, places: frozenset[str], now: float) -> None:
        """What the origin's name resolves to now: connections elsewhere are to be replaced."""
        if places != self._places:
            self._places = places
            self._come_last(lambda entry: self._reason_to_go(entry) is not None, now)

    def suspect(self, place: str | None, now: float) -> list[C]:
        """Idle connections to an address (None: to any) are to be replaced; which those are."""
        for entry in self.entries():
            entry.suspect |= place is None or entry.place == place
        return self._come_last(lambda entry: entry.suspect, now)

    def adopt(self, settings: OriginSettings) -> None:
        """Other settings hold from now on."""
        self._settings = settings
        self.learned()

    def outdate(self, now: float) -> None:
        """All that is open is to be replaced."""
        for entry in chain(self.entries(), self.canaries.values()):
            entry.outdated = True
        self.check_at = now

    def refuse(self, reason: CloseReason | None, now: float) -> None:
        """All that is idle is to go, for this reason (None: no longer)."""
        if reason is not self._unwanted:
            self._unwanted = reason
            self.check_at = now

    def judge(self, now: float) -> None:
        """Find out which idle connections are due, at most once per moment at which one can be."""
        if now < self.check_at:
            return
        check_at = inf
        self.due.clear()
        self.stale.clear()
        self._expired.clear()
        for conn, entry in self.canaries.items():
            self.limits[entry.used].proved(now - entry.since)
            probe_at = self.limits[entry.used].probe_at
            end = retire.due(entry.ends, entry.since, entry.spread, probe_at)
            if entry.outdated:
                self._expired[conn] = CloseReason.OUTDATED
            elif end.at <= now:
                self._expired[conn] = end.reason
            else:
                check_at = min(check_at, end.at)
        picky = self._unwanted is not None or bool(self._places)
        idle_timeout = self._settings.idle_timeout
        if len(self) > MANY:
            now += len(self) * FORESIGHT
        for used, shelf in ((True, self.used), (False, self.fresh)):
            limit = self._limit_of(used)
            for conn, entry in shelf.items():
                # what follows is said of most connections by this alone, at a third of the time
                since, at = entry.since, entry.ends
                at = min(at, since + limit * entry.spread, since + idle_timeout)
                if at > now and not (picky or entry.suspect or entry.outdated):
                    if at < check_at:
                        check_at = at
                    continue
                due = retire.due(entry.ends, since, entry.spread, limit)
                stale_at = since + idle_timeout
                if (reason := self._reason_to_go(entry)) is not None:
                    self.due[conn] = reason
                elif due.at <= now:
                    self.due[conn] = due.reason
                elif stale_at <= now:
                    self.stale[conn] = CloseReason.SURPLUS
                    check_at = min(check_at, due.at)
                else:
                    check_at = min(check_at, due.at, stale_at)
        self.check_at = check_at

    def leaving(self, target: int) -> list[tuple[C, CloseReason]]:
        """Of the due and the stale ones those that are not needed to reach the target."""
        if not (self.due or self.stale or self._expired):
            return []
        surplus = max(0, len(self) - target)
        leaving = islice(chain(self.due.items(), self.stale.items()), surplus)
        return [*self._expired.items(), *leaving]

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _forget(self, conn: C) -> None:
        """The connection is no longer idle: what was judged of it holds no more."""
        self.due.pop(conn, None)
        self.stale.pop(conn, None)
        self._expired.pop(conn, None)

    def _reason_to_go(self, entry: Entry) -> CloseReason | None:
        """Why it is to go whatever its age."""
        if self._unwanted is not None:
            return self._unwanted
        if self._places and entry.place and entry.place not in self._places:
            return CloseReason.ADDRESS_GONE
        if entry.outdated:
            return CloseReason.OUTDATED
        return CloseReason.SUSPECT if entry.suspect else None

    def _limit_of(self, used: bool) -> float:
        """Seconds after which the idle connections of a shelf are due, but for their jitter."""
        known = self.limits[used]
        if used:
            return min(known.safe(self.rtt), self._settings.idle_timeout)
        if known.is_unknown and len(self.fresh) > 1:
            return known.trusted
        return known.safe(self.rtt)

    def _come_last(self, chosen: Callable[[Entry], bool], now: float) -> list[C]:
        """Hand these out after all others of their shelf."""
        self.check_at = now
        found = []
        for shelf in (self.used, self.fresh):
            mine = [conn for conn, entry in shelf.items() if chosen(entry)]
            for conn in reversed(mine):
                shelf.move_to_end(conn, last=False)
            found += mine
        return found
