"""A Hypothesis state machine drives the pool at random and keeps a tally of its own."""

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from warmproxy.errors import DialRefused, DialTimeout, LimitReached
from warmproxy.observe import CloseReason, Observer
from warmproxy.origin import origin
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Fixed
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.settings import OriginSettings

WARM = 3
CAP = 6
PLACES = ("10.0.0.1", "10.0.0.2")
THEIRS = (CloseReason.UPSTREAM_EOF, CloseReason.UPSTREAM_RESET, CloseReason.UNSOLICITED_DATA)


class PoolMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the rules at the top of origin_pool.py hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool: OriginPool[int, int] = OriginPool(
            origin("http", "example.com", 80),
            OriginSettings(max_connections=CAP, max_waiting=4, idle_timeout=20, max_age=50),
            Fixed(WARM),
            DialBudget(2.0 * WARM, 2.0 * WARM),
            Observer(),
            lambda: 0.5,
            0.0,
        )
        self.ids = iter(range(1, 1_000_000))
        self.dialling = 0
        self.idle: dict[int, bool] = {}
        """connection -> used"""
        self.active: dict[int, int] = {}
        """connection -> who holds it"""
        self.canaries: set[int] = set()
        self.waiting: dict[int, Prefer] = {}

    def served(self, conn: int, waiter: int | None, used: bool) -> None:
        """A connection came free: to the right waiter, or idle where nobody may have it."""
        may_have = [w for w, p in self.waiting.items() if not (used and p is Prefer.FRESH_ONLY)]
        assert waiter == (may_have[0] if may_have else None)
        if waiter is None:
            self.idle[conn] = used
        else:
            del self.waiting[waiter]
            self.active[conn] = waiter

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 7.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(most=st.integers(1, 10))
    def carry_out(self, most: int) -> None:
        plan = self.pool.plan(self.now)
        assert plan.dials >= 0
        for conn, reason in plan.evict:
            if self.pool.evict(conn, reason, self.now):
                assert conn in self.idle or conn in self.canaries
                self.idle.pop(conn, None)
                self.canaries.discard(conn)
            else:
                del self.idle[conn]
                self.canaries.add(conn)
        for _ in range(min(most, plan.dials)):
            self.pool.dial_started(self.now)
            self.dialling += 1

    @precondition(lambda self: self.dialling)
    @rule(place=st.sampled_from(PLACES))
    def dial_succeeds(self, place: str = PLACES[0]) -> None:
        conn = next(self.ids)
        self.dialling -= 1
        self.served(conn, self.pool.dial_succeeded(conn, 0.01, self.now, place), used=False)

    @rule()
    def fill(self) -> None:
        """All that is asked for is opened: by chance alone that is seldom reached."""
        for _ in range(3):
            self.carry_out(10)
            while self.dialling:
                self.dial_succeeds()

    @rule(count=st.integers(0, 2 * CAP), seconds=st.sampled_from([0.0, 2.0, 40.0]))
    def boost(self, count: int, seconds: float) -> None:
        self.pool.boost(count, self.now + seconds, "asked", self.now)

    @rule()
    def harm(self) -> None:
        self.pool.harmed("it says 503 to idle connections", self.now)
        assert self.pool.target_idle(self.now) == 0

    @rule(places=st.frozensets(st.sampled_from(PLACES)))
    def locate(self, places: frozenset[str]) -> None:
        self.pool.located(places, self.now)

    @rule(place=st.sampled_from([None, *PLACES]))
    def suspect(self, place: str | None) -> None:
        assert set(self.pool.suspect(place, self.now)) <= set(self.idle)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(sorted(self.idle)))
        del self.idle[conn]
        self.pool.take(conn, self.now)
        self.active[conn] = -1

    @precondition(lambda self: self.dialling)
    @rule()
    def dial_fails(self) -> None:
        self.dialling -= 1
        told = self.pool.dial_failed(DialTimeout("timeout"), self.now)
        uncovered = len(self.waiting) > self.dialling
        assert told == list(self.waiting)[:uncovered]
        for waiter in told:
            del self.waiting[waiter]

    @precondition(lambda self: self.dialling)
    @rule()
    def dial_is_refused(self) -> None:
        """An origin that worked lately may be restarting: only who waited long is told."""
        self.dialling -= 1
        told = self.pool.dial_failed(DialRefused("refused"), self.now)
        assert told == list(self.waiting)[: len(told)]
        for waiter in told:
            del self.waiting[waiter]

    @rule(prefer=st.sampled_from(Prefer), dead=st.integers(0, 2))
    def acquire(self, prefer: Prefer, dead: int) -> None:
        waiter = next(self.ids)
        found_dead: list[int] = []

        def alive(conn: int) -> CloseReason | None:
            if len(found_dead) < dead:
                found_dead.append(conn)
                return CloseReason.UPSTREAM_EOF
            return None

        try:
            conn = self.pool.acquire(waiter, prefer, self.now, alive)
        except LimitReached:
            assert len(self.waiting) == 4
            conn = -1
        for gone in found_dead:
            del self.idle[gone]
        if conn == -1:
            return
        if conn is None:
            room = self.pool.open + len(self.waiting) < CAP
            spared = room and self.pool.guard.is_probing(self.now)  # a probe stays where it is
            fit = [
                c
                for c, used in self.idle.items()
                if not (used and prefer is Prefer.FRESH_ONLY) and not (spared and not used)
            ]
            assert not fit, "an idle connection beside a waiter that may have it"
            self.waiting[waiter] = prefer
        else:
            was_used = self.idle.pop(conn)
            assert not (was_used and prefer is Prefer.FRESH_ONLY)
            assert self.pool.was_used(conn) == was_used
            self.active[conn] = waiter

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[waiter]
        self.pool.cancel(waiter)

    @precondition(lambda self: self.active)
    @rule(data=st.data(), reusable=st.booleans())
    def lease_ends(self, data: st.DataObject, reusable: bool) -> None:
        conn = data.draw(st.sampled_from(sorted(self.active)))
        del self.active[conn]
        if reusable:
            self.served(conn, self.pool.release(conn, self.now), used=True)
        else:
            self.pool.closed(conn, CloseReason.NOT_REUSABLE, self.now)

    @precondition(lambda self: self.idle or self.canaries)
    @rule(data=st.data(), reason=st.sampled_from(THEIRS))
    def upstream_closes(self, data: st.DataObject, reason: CloseReason) -> None:
        conn = data.draw(st.sampled_from(sorted([*self.idle, *self.canaries])))
        self.idle.pop(conn, None)
        self.canaries.discard(conn)
        self.pool.closed(conn, reason, self.now)

    @invariant()
    def counts_agree(self) -> None:
        pool = self.pool
        assert pool.fresh == sum(not used for used in self.idle.values())
        assert pool.used == sum(self.idle.values())
        assert pool.active == len(self.active)
        assert pool.taken == list(self.active.values()).count(-1)
        assert pool.canaries == len(self.canaries)
        assert pool.waiting == len(self.waiting)
        assert pool.dialling == self.dialling

    @invariant()
    def never_above_the_cap(self) -> None:
        plan = self.pool.plan(self.now)
        assert self.pool.open - len(plan.evict) + plan.dials <= CAP

    @invariant()
    def a_settled_pool_has_nothing_to_do(self) -> None:
        until = self.pool.settled_until(self.now)
        if until > self.now:
            plan = self.pool.plan(self.now)
            assert (plan.dials, plan.evict) == (0, ())
            assert plan.wake_at >= until

    @invariant()
    def what_is_settled_is_planned(self) -> None:
        """So that an acquire or a release need not have the pool planned."""
        pool = self.pool
        if self.now < pool.planned_until and pool.is_settled(self.now):
            plan = pool.plan(self.now)
            assert (plan.dials, plan.evict) == (0, ())
            assert plan.wake_at >= pool.planned_until
        pool.planned_until = pool.plan(self.now).wake_at

    @invariant()
    def asking_twice_gives_the_same_answer(self) -> None:
        assert self.pool.plan(self.now) == self.pool.plan(self.now)

    def teardown(self) -> None:
        """Left alone, with dials that work, the pool returns to its target and stays there."""
        for conn in list(self.active):
            del self.active[conn]
            self.pool.closed(conn, CloseReason.NOT_REUSABLE, self.now)
        for waiter in list(self.waiting):
            self.cancel_all(waiter)
        self.now = max(self.now, self.pool.guard.until)  # left alone long enough
        self.pool.located(frozenset(), self.now)  # where no probe stays, none proves anything
        for _ in range(200):
            while self.dialling:
                self.dial_succeeds()
            self.carry_out(10)
            if self.pool.idle >= WARM and not self.dialling:
                break
            wake_at = self.pool.plan(self.now).wake_at
            self.now = max(self.now + 0.001, min(wake_at, self.now + 1.0))
        assert self.pool.idle >= WARM
        assert self.pool.tally.acquires["failed"] >= 0

    def cancel_all(self, waiter: int) -> None:
        del self.waiting[waiter]
        self.pool.cancel(waiter)


PoolMachine.TestCase.settings = hypothesis_settings(
    max_examples=150,
    stateful_step_count=60,
    # measuring coverage on a busy machine makes the rules slow, and that is no fault of theirs
    suppress_health_check=[HealthCheck.too_slow],
)
TestPool = PoolMachine.TestCase
