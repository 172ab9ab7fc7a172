"""The pool's rules, with ints for connections and strings for waiters: no socket, no clock."""

from math import inf
from random import Random

import pytest

from warmproxy.errors import DialRefused, LimitReached
from warmproxy.observe import CloseReason, Observer
from warmproxy.origin import origin
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.learn import SHORTEST, Known
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Fixed
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.settings import OriginSettings

Pool = OriginPool[int, str]
ORIGIN = origin("http", "example.com", 80)
REFUSED = DialRefused("refused")
RTT = 0.01


class Said(Observer):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def dial_failed(self, origin, error, failures, retry_in):
        self.events.append(f"dial_failed {failures}")

    def dial_recovered(self, origin, failures):
        self.events.append(f"dial_recovered {failures}")

    def churning(self, origin, closes, retry_in):
        self.events.append(f"churning {closes}")

    def costly(self, origin, limit, dials):
        self.events.append(f"costly {limit:g} {dials:g}")

    def held_back(self, origin, why, seconds):
        self.events.append(f"held_back {seconds:g}")


def make(
    warm=0,
    *,
    origin=ORIGIN,
    observer=None,
    rate=100.0,
    earns=False,
    rng=lambda: 1.0,
    **settings,
) -> Pool:
    return OriginPool(
        origin,
        OriginSettings(**settings),
        Fixed(warm),
        DialBudget(rate, max(rate, warm), earns=earns),
        observer or Observer(),
        rng,
        0.0,
    )


def alive(conn):
    return None


def dial(pool: Pool, conn: int, now: float = 0.0):
    pool.dial_started(now)
    return pool.dial_succeeded(conn, RTT, now)


def filled(warm=3, **settings) -> Pool:
    pool = make(warm, **settings)
    for conn in range(1, warm + 1):
        assert dial(pool, conn) is None
    return pool


def used(pool: Pool, conn: int, now: float = 0.0) -> None:
    """Lease a fresh connection and give it back."""
    assert pool.acquire("user", Prefer.FRESH, now, alive) == conn
    assert pool.release(conn, now) is None


def test_a_configured_pool_is_dialled_full_with_no_request():
    assert make(4).plan(0.0).dials == 4


def test_asking_twice_gives_the_same_plan():
    pool = filled(3, idle_timeout=5)
    for conn in (1, 2):
        used(pool, 3 if conn == 1 else 2, 1.0)
    for now in (1.0, 6.5, 7.0, 100.0):
        assert pool.plan(now) == pool.plan(now)


def test_a_dial_under_way_counts_so_that_it_is_not_made_twice():
    pool = make(2)
    pool.dial_started(0.0)
    assert pool.plan(0.0).dials == 1


def test_a_lost_connection_is_missing_at_once():
    pool = filled(3)
    pool.closed(2, CloseReason.UPSTREAM_EOF, 5.0)
    assert pool.plan(5.0).dials == 1
    assert pool.last_close is not None
    assert (pool.last_close.reason, pool.last_close.age) == ("upstream_eof", 5.0)


def test_repeatable_requests_take_used_connections_and_spare_the_fresh():
    pool = filled(3)
    used(pool, 3)
    assert pool.acquire("w", Prefer.USED, 0.0, alive) == 3


def test_unrepeatable_requests_take_fresh_connections_first_then_used_ones():
    pool = filled(2)
    used(pool, 2)
    assert pool.acquire("w", Prefer.FRESH, 0.0, alive) == 1
    assert pool.acquire("x", Prefer.FRESH, 0.0, alive) == 2


def test_fresh_only_waits_beside_a_used_connection_and_gets_a_dial():
    pool = make(0)
    assert pool.acquire("first", Prefer.USED, 0.0, alive) is None
    assert dial(pool, 1) == "first"
    pool.release(1, 0.0)
    assert pool.acquire("replay", Prefer.FRESH_ONLY, 0.0, alive) is None
    assert pool.plan(0.0).dials == 1
    assert dial(pool, 2) == "replay"


def test_fresh_only_at_the_cap_evicts_the_oldest_idle_used_connection():
    pool = filled(2, max_connections=2)
    used(pool, 2, 1.0)
    used(pool, 1, 2.0)
    assert pool.acquire("replay", Prefer.FRESH_ONLY, 3.0, alive) is None
    plan = pool.plan(3.0)
    assert plan.evict == ((2, CloseReason.SURPLUS),)
    assert plan.dials == 1


def test_the_newest_idle_connection_is_handed_out_first():
    pool = filled(3)
    assert [pool.acquire(w, Prefer.FRESH, 1.0, alive) for w in "abc"] == [3, 2, 1]


def test_dead_connections_are_swapped_silently_at_checkout():
    pool = filled(3)
    dead = {3: CloseReason.UPSTREAM_EOF, 2: CloseReason.UPSTREAM_RESET}
    assert pool.acquire("w", Prefer.USED, 1.0, dead.get) == 1
    assert pool.tally.closed == {"upstream_eof": 1, "upstream_reset": 1}
    assert pool.tally.acquires == {"fresh": 1}


def test_waiters_are_served_in_the_order_in_which_they_came():
    pool = make(0, max_connections=1)
    assert [pool.acquire(w, Prefer.USED, 0.0, alive) for w in "abc"] == [None] * 3
    assert pool.plan(0.0).dials == 1
    assert dial(pool, 1) == "a"
    assert pool.plan(0.0).dials == 0
    assert pool.release(1, 1.0) == "b"
    assert pool.release(1, 2.0) == "c"
    assert pool.tally.acquires == {"dialled": 1, "waited": 2}


def test_a_waiter_that_left_is_served_no_more_but_its_dial_stays():
    pool = make(0)
    pool.acquire("gone", Prefer.USED, 0.0, alive)
    pool.dial_started(0.0)
    pool.cancel("gone")
    assert pool.dial_succeeded(1, RTT, 0.0) is None
    assert (pool.fresh, pool.waiting) == (1, 0)


def test_a_waiter_that_was_served_cannot_leave_the_line_any_more():
    pool = make(0)
    pool.acquire("w", Prefer.USED, 0.0, alive)
    assert dial(pool, 1) == "w"
    pool.cancel("w")
    assert pool.tally.acquires == {"dialled": 1}
    assert pool.active == 1


def test_a_used_connection_passes_over_a_waiter_that_wants_a_fresh_one():
    pool = filled(1)
    pool.acquire("user", Prefer.FRESH, 0.0, alive)
    pool.acquire("tunnel", Prefer.FRESH_ONLY, 0.0, alive)
    pool.acquire("get", Prefer.USED, 0.0, alive)
    assert pool.release(1, 0.0) == "get"
    assert dial(pool, 2) == "tunnel"


def test_a_lease_tells_whether_its_connection_served_a_request_before():
    pool = filled(1)
    pool.acquire("a", Prefer.FRESH, 0.0, alive)
    assert not pool.was_used(1)
    pool.release(1, 0.0)
    pool.acquire("b", Prefer.FRESH, 0.0, alive)
    assert pool.was_used(1)


def test_a_lease_that_ends_with_its_connection_is_no_idle_close():
    pool = filled(1)
    pool.acquire("a", Prefer.FRESH, 0.0, alive)
    pool.closed(1, CloseReason.UPSTREAM_EOF, 5.0)
    assert (pool.active, pool.idle) == (0, 0)
    assert pool.tally.closed == {"upstream_eof": 1}
    assert pool.tally.dials_wasted == 0
    assert pool.idle_limits["used"].seconds == pool.idle_limits["fresh"].seconds == inf


def test_a_dial_that_is_cancelled_counts_no_more():
    pool = make(1)
    pool.dial_started(0.0)
    pool.dial_cancelled()
    assert (pool.dialling, pool.open) == (0, 0)


def test_a_settled_pool_needs_no_plan_until_something_is_due():
    pool = filled(2, idle_timeout=40, rng=lambda: 0.0)
    assert pool.plan(0.0).wake_at == pool.settled_until(0.0) == 40.0
    pool.acquire("a", Prefer.FRESH, 1.0, alive)
    assert pool.settled_until(1.0) == 1.0, "one is missing"
    dial(pool, 3, 1.0)
    assert pool.settled_until(1.0) == 40.0
    pool.release(2, 2.0)
    assert pool.settled_until(2.0) == 40.0, "surplus leaves by age"
    pool.plan(40.0)
    assert pool.settled_until(40.0) == 40.0, "now"
    waited_for = make(0)
    waited_for.acquire("w", Prefer.USED, 3.0, alive)
    assert waited_for.settled_until(3.0) == 3.0


def test_one_failed_dial_fails_the_waiter_that_waited_longest_and_no_other():
    pool = make(0)
    for waiter in "ab":
        pool.acquire(waiter, Prefer.USED, 0.0, alive)
        pool.dial_started(0.0)
    assert pool.dial_failed(REFUSED, 0.0) == ["a"]
    assert pool.waiting == 1
    assert pool.plan(0.0).dials == 0, "the other dial is still under way for b"


def test_a_failed_refill_fails_nobody_while_another_dial_covers_the_waiter():
    pool = make(2)
    pool.dial_started(0.0)
    pool.dial_started(0.0)
    pool.acquire("w", Prefer.USED, 0.0, alive)
    assert pool.dial_failed(REFUSED, 0.0) == []
    assert dial(pool, 7) == "w"


def test_an_origin_that_worked_lately_gets_time_to_come_back_and_then_its_waiters_fail():
    pool = make(0, dial_retry_for=1.0)
    dial(pool, 1, 0.0)
    pool.closed(1, CloseReason.UPSTREAM_EOF, 10.0)
    for waiter in "ab":
        pool.acquire(waiter, Prefer.USED, 10.0, alive)
    assert pool.plan(10.0).dials == 2
    for _ in range(2):
        pool.dial_started(10.0)
    assert [pool.dial_failed(REFUSED, 10.0) for _ in range(2)] == [[], []]
    assert pool.plan(10.0).dials == 0
    assert pool.plan(10.0).wake_at == pytest.approx(10.05)
    assert pool.plan(10.05).dials == 1, "one probe for all that wait"
    pool.dial_started(10.05)
    assert pool.dial_failed(REFUSED, 10.99) == []
    pool.dial_started(11.05)
    assert pool.dial_failed(REFUSED, 11.05) == ["a", "b"]
    assert pool.tally.retries == {"dial": 3}


def test_an_origin_that_comes_back_serves_those_who_waited():
    pool = make(0)
    dial(pool, 1, 0.0)
    pool.closed(1, CloseReason.UPSTREAM_EOF, 10.0)
    for waiter in "ab":
        pool.acquire(waiter, Prefer.USED, 10.0, alive)
    pool.dial_started(10.0)
    assert pool.dial_failed(REFUSED, 10.0) == []
    pool.dial_started(10.5)
    assert pool.dial_succeeded(2, RTT, 10.5) == "a"
    assert pool.plan(10.5).dials == 1, "b is dialled for at once"


def test_an_origin_that_worked_long_ago_fails_at_once():
    pool = make(0)
    dial(pool, 1, 0.0)
    pool.closed(1, CloseReason.UPSTREAM_EOF, 1.0)
    pool.acquire("w", Prefer.USED, 301.0, alive)
    pool.dial_started(301.0)
    assert pool.dial_failed(REFUSED, 301.0) == ["w"]


def test_a_full_line_refuses_at_once():
    pool = make(0, max_waiting=1, max_connections=1)
    pool.acquire("a", Prefer.USED, 0.0, alive)
    with pytest.raises(LimitReached):
        pool.acquire("b", Prefer.USED, 0.0, alive)


def test_a_waiters_dial_ignores_back_off_and_budget():
    pool = make(0, rate=0.001)
    pool.dial_started(0.0)
    pool.dial_failed(REFUSED, 0.0)
    for waiter in "abc":
        pool.acquire(waiter, Prefer.USED, 0.0, alive)
    assert pool.plan(0.0).dials == 3


def test_refills_pause_after_a_failure_and_then_one_probe_goes():
    said = Said()
    pool = make(3, observer=said)
    for _ in range(3):
        pool.dial_started(0.0)
    for _ in range(3):
        pool.dial_failed(REFUSED, 0.0)
    assert said.events == ["dial_failed 1"], "three dials of one outage are one failure"
    plan = pool.plan(0.0)
    assert (plan.dials, plan.wake_at) == (0, 0.1)
    assert pool.plan(0.1).dials == 1
    assert dial(pool, 1, 0.2) is None
    assert pool.plan(0.2).dials == 2
    assert said.events[-1] == "dial_recovered 1"


def test_the_pause_doubles_up_to_its_longest():
    pool = make(1, backoff_max=1.0)
    now, pauses = 0.0, []
    for _ in range(6):
        pool.dial_started(now)
        pool.dial_failed(REFUSED, now)
        wake_at = pool.plan(now).wake_at
        pauses.append(round(wake_at - now, 6))
        now = wake_at
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_the_dial_budget_spreads_refills_after_a_mass_close():
    pool = filled(10, rate=20.0)
    for conn in range(1, 11):
        pool.closed(conn, CloseReason.UPSTREAM_EOF, 0.6)
    assert pool.plan(0.6).dials == 10
    for conn in range(11, 21):
        dial(pool, conn, 0.6)
    for conn in range(11, 21):
        pool.closed(conn, CloseReason.UPSTREAM_EOF, 1.2)
    for conn in range(21, 31):
        dial(pool, conn, 1.2)
    for conn in range(21, 31):
        pool.closed(conn, CloseReason.UPSTREAM_EOF, 1.8)
    plan = pool.plan(1.8)
    assert 10 <= plan.dials < 20
    assert plan.wake_at == inf


def test_what_clients_take_is_replaced_however_fast_they_come():
    """Tunnels use up a connection each: the budget is for dials that come to nothing."""
    pool = make(2, earns=True, rate=4.0)
    for conn in (1, 2):
        dial(pool, conn)
    for conn in range(3, 100):
        now = conn / 1000
        taken = pool.acquire("tunnel", Prefer.FRESH_ONLY, now, alive)
        assert taken is not None
        assert pool.plan(now).dials == 1
        dial(pool, conn, now)
        pool.closed(taken, CloseReason.NOT_REUSABLE, now)


def test_connections_that_die_at_once_are_churn_and_back_off_once_per_wave():
    said = Said()
    pool = make(3, observer=said)
    for conn in (1, 2, 3):
        dial(pool, conn, 0.0)
    for conn in (1, 2, 3):
        pool.closed(conn, CloseReason.UPSTREAM_EOF, 0.01)
    assert said.events == ["churning 1"]
    assert pool.plan(0.01).dials == 0
    assert pool.plan(0.2).dials == 1, "one probe"
    dial(pool, 4, 0.2)
    assert pool.plan(0.3).dials == 0, "the probe has not lived long enough to trust the origin"
    assert pool.plan(0.8).dials == 2, "it has"


@pytest.mark.parametrize(
    ("warm", "age", "rate", "said"),
    [
        (10, 0.6, 20.0, ["costly 0.6 1200"]),  # as many as the budget allows
        (2, 0.6, 4.0, ["costly 0.6 240"]),
        (2, 5.0, 4.0, []),
    ],
)
def test_a_limit_that_makes_warm_connections_cost_many_dials_is_said_once(warm, age, rate, said):
    heard = Said()
    pool = make(warm, observer=heard, rate=rate)
    for conn in range(1, 40):
        now = conn * age
        dial(pool, conn, now)
        pool.closed(conn, CloseReason.UPSTREAM_EOF, now + age)
    assert heard.events == said


def test_a_release_never_evicts_for_surplus():
    pool = filled(2)
    pool.acquire("a", Prefer.FRESH, 1.0, alive)
    assert pool.plan(1.0).dials == 1
    dial(pool, 3, 1.0)
    pool.release(2, 1.5)
    assert pool.idle == 3
    assert pool.plan(1.5).evict == ()


def test_surplus_leaves_by_age_used_ones_first():
    pool = filled(2, idle_timeout=40, rng=lambda: 0.0)
    pool.acquire("a", Prefer.FRESH, 1.0, alive)
    dial(pool, 3, 1.0)
    pool.release(2, 1.5)
    plan = pool.plan(1.5)
    assert plan.wake_at == 40.0
    assert pool.plan(40.0).evict == ((1, CloseReason.SURPLUS),)
    assert pool.plan(41.5).evict[0] == (2, CloseReason.IDLE_LIMIT)


def test_a_connection_that_is_due_is_replaced_before_it_goes():
    pool = filled(2, max_age=40.0, rng=lambda: 0.0)
    plan = pool.plan(40.0)
    assert (plan.dials, plan.evict) == (2, ()), "both are still there for whoever comes"
    dial(pool, 3, 40.1)
    assert pool.plan(40.1).evict == ((1, CloseReason.MAX_AGE),)
    dial(pool, 4, 40.1)
    assert len(pool.plan(40.1).evict) == 2


def test_what_is_due_stays_while_no_successor_can_be_dialled():
    pool = filled(1, max_age=100.0, rng=lambda: 0.0)
    pool.dial_started(100.0)
    pool.dial_failed(REFUSED, 100.0)
    assert pool.plan(100.0).evict == ()
    assert pool.acquire("w", Prefer.USED, 100.0, alive) == 1


def carried_out(pool: Pool, now: float, ids) -> None:
    """Do at once what the pool plans."""
    while (plan := pool.plan(now)).dials or plan.evict:
        for conn, why in plan.evict:
            pool.evict(conn, why, now)
        for _ in range(plan.dials):
            dial(pool, next(ids), now)


def test_while_no_limit_is_known_one_connection_goes_ahead_and_the_others_are_never_as_old():
    """An upstream closes all that are 60 s old: of ten that were opened together it gets one."""
    pool, ids, now = filled(10), iter(range(100, 10**6)), 0.0
    short = 0
    while now < 55.0:
        now = max(pool.plan(now).wake_at, now + 0.001)
        carried_out(pool, now, ids)
        short += pool.idle < 10
    assert (pool.canaries, short, pool.tally.dials["ok"]) == (1, 0, 20)
    [ahead] = set(pool.connections()) & set(range(1, 11))
    pool.closed(ahead, CloseReason.UPSTREAM_EOF, 60.0)
    assert pool.idle == 10
    assert pool.oldest_age(60.0) < 20.0


def test_what_the_one_ahead_has_lived_through_the_others_may():
    pool, ids, now = filled(10), iter(range(100, 10**6)), 0.0
    while now < 3000.0:
        now = min(max(pool.plan(now).wake_at, now + 0.001), now + 10.0)
        carried_out(pool, now, ids)
    assert pool.tally.dials["ok"] == 40, "replaced thrice in 50 minutes, each time five times later"


def test_a_single_connection_is_not_replaced_for_a_limit_that_nobody_knows():
    pool = filled(1)
    assert pool.plan(300.0).dials == 0


def taught(limit=5.0, **settings) -> Pool:
    """A pool of three whose upstream closed all of them at one age, and that has three new ones."""
    pool = filled(3, rng=lambda: 0.0, **settings)
    for conn in (1, 2, 3):
        pool.closed(conn, CloseReason.UPSTREAM_EOF, limit)
    for conn in (4, 5, 6):
        dial(pool, conn, limit)
    return pool


def test_closes_that_agree_teach_the_limit_and_successors_come_before_it():
    pool = taught(5.0)
    assert pool.idle_limits["fresh"].seconds == 5.0
    assert pool.plan(5.0).wake_at == pytest.approx(5.0 + 4.5)
    assert pool.plan(9.6).dials == 3
    assert pool.plan(9.6).evict == ()


def test_closes_at_random_ages_teach_nothing():
    pool = filled(4)
    for conn, age in ((1, 2.0), (2, 5.0), (3, 9.0)):
        pool.closed(conn, CloseReason.UPSTREAM_EOF, age)
    assert pool.idle_limits["fresh"].seconds == inf


def test_one_due_connection_stays_open_as_the_canary_that_can_disprove_the_limit():
    pool = taught(5.0)
    for conn in (7, 8, 9):
        dial(pool, conn, 9.7)
    evict = pool.plan(9.7).evict
    assert evict == tuple((conn, CloseReason.IDLE_LIMIT) for conn in (4, 5, 6))
    assert [pool.evict(conn, why, 9.7) for conn, why in evict] == [False, True, True]
    assert (pool.idle, pool.canaries) == (3, 1)
    assert pool.acquire("w", Prefer.USED, 9.7, alive) == 9, "the canary is handed to nobody"
    pool.closed(4, CloseReason.UPSTREAM_EOF, 11.2)
    assert pool.idle_limits["fresh"].seconds == 5.0, "one that lives longer proves nothing"


def test_three_canaries_that_have_seen_enough_lift_the_limit():
    pool = make(3, rng=lambda: 0.0)
    pool.recall({"fresh": Known(5.0, 5.0)})
    now, conns = 0.0, iter(range(1000))
    canaries: dict[int, bool] = {}
    """connection -> whether it was closed"""
    while pool.idle_limits["fresh"].seconds == 5.0:
        plan = pool.plan(now)
        for conn, why in plan.evict:
            closed = pool.evict(conn, why, now)
            if not closed or conn in canaries:
                canaries[conn] = closed
        for _ in range(plan.dials):
            dial(pool, next(conns), now)
        now = max(now + 0.01, min(plan.wake_at, now + 0.5))
    assert list(canaries.values()) == [True] * 3
    assert 3 * (20 - 4.5) <= now < 3 * 20
    assert pool.idle_limits["fresh"].seconds == pytest.approx(20.0, abs=0.1)


def test_a_canary_ends_with_its_max_age_whatever_the_pool_needs():
    pool = taught(5.0, max_age=15.0)
    for conn in (7, 8, 9):
        dial(pool, conn, 9.7)
    for conn, why in pool.plan(9.7).evict:
        pool.evict(conn, why, 9.7)
    now = 9.7
    while pool.canaries:
        now = max(pool.plan(now).wake_at, now + 0.01)
        for conn, why in pool.plan(now).evict:
            if conn == 4:
                assert why is CloseReason.MAX_AGE
                assert pool.evict(conn, why, now)
        assert now < 40
    assert now >= 5.0 + 15.0


def ask(pool: Pool, conn: int, now: float, took: float) -> None:
    """A request on this connection, which the upstream closes after so many seconds."""
    assert pool.acquire("w", Prefer.FRESH, now, alive) == conn
    pool.lost(conn, now + took)
    pool.closed(conn, CloseReason.UPSTREAM_EOF, now + took)


def test_closes_that_cross_requests_teach_the_limit_too():
    pool = make(1)
    for n in range(3):
        dial(pool, n, 10.0 * n)
        ask(pool, n, 10.0 * n + 5.0, RTT)
    assert pool.idle_limits["fresh"].seconds == pytest.approx(5.0 + RTT)
    assert pool.idle_limits["used"].seconds == inf


def test_a_close_long_after_the_request_has_not_crossed_it():
    pool = make(1)
    for n in range(3):
        dial(pool, n, 10.0 * n)
        ask(pool, n, 10.0 * n + 5.0, 1.0)
    assert pool.idle_limits["fresh"].seconds == inf


def test_a_close_on_a_connection_that_was_not_idle_before_teaches_nothing():
    pool = make(0)
    for n in range(3):
        pool.acquire("w", Prefer.FRESH, 10.0 * n, alive)
        assert dial(pool, n, 10.0 * n) == "w"
        pool.lost(n, 10.0 * n + RTT)
        pool.closed(n, CloseReason.UPSTREAM_EOF, 10.0 * n + RTT)
    assert pool.idle_limits["fresh"].seconds == inf


def test_the_two_shelves_have_limits_of_their_own():
    pool = filled(3)
    for waiter, conn in (("a", 3), ("b", 2), ("c", 1)):
        assert pool.acquire(waiter, Prefer.FRESH, 0.0, alive) == conn
    for conn in (1, 2, 3):
        pool.release(conn, 0.0)
        pool.closed(conn, CloseReason.UPSTREAM_EOF, 5.0)
    assert pool.idle_limits["used"].seconds == 5.0
    assert pool.idle_limits["fresh"].seconds == inf


def test_hits_are_counted_with_the_seconds_that_they_saved():
    pool = filled(2)
    used(pool, 2)
    pool.acquire("b", Prefer.USED, 0.0, alive)
    assert pool.tally.acquires == {"fresh": 1, "used": 1}
    assert pool.tally.saved_seconds == pytest.approx(2 * RTT)


def test_a_dial_that_was_under_way_already_makes_its_waiter_one_that_waited():
    pool = make(1)
    pool.dial_started(0.0)
    pool.acquire("w", Prefer.USED, 0.0, alive)
    assert pool.dial_succeeded(1, RTT, 0.5) == "w"
    assert pool.tally.acquires == {"waited": 1}


def test_time_with_too_few_idle_connections_is_counted():
    pool = make(1)
    pool.account(2.0)
    dial(pool, 1, 2.0)
    pool.account(5.0)
    assert pool.tally.below_target_seconds == 2.0
    assert pool.tally.idle_socket_seconds == 3.0


def test_the_gap_from_a_loss_to_its_replacement_is_measured():
    pool = filled(1)
    pool.closed(1, CloseReason.UPSTREAM_EOF, 5.0)
    dial(pool, 2, 5.04)
    assert pool.tally.redial_gap.total == pytest.approx(0.04)


def test_nothing_is_dialled_beyond_the_cap():
    pool = make(5, max_connections=3)
    assert pool.plan(0.0).dials == 3


def test_a_used_connection_yields_to_those_in_front_who_need_a_fresh_one():
    pool = make(0, max_connections=1)
    assert not pool.must_yield()
    pool.acquire("a", Prefer.USED, 0.0, alive)
    dial(pool, 1)
    assert not pool.must_yield(), "nobody waits"
    pool.acquire("replay", Prefer.FRESH_ONLY, 0.0, alive)
    pool.acquire("other", Prefer.USED, 0.0, alive)
    assert pool.must_yield()
    pool.cancel("replay")
    assert not pool.must_yield(), "the next in line takes a used one"


@pytest.mark.parametrize(("count", "looks"), [(100, 100), (2000, 45)])
def test_many_connections_are_looked_at_seldom_and_ahead_of_time(count: int, looks: int) -> None:
    """A look at all connections takes longer the more there are: then it finds what will be due
    soon. None is found late."""
    pool = make(count, rng=Random(1).random, max_connections=count, idle_timeout=600.0)
    for conn in range(count):
        dial(pool, conn)
    pool._shelves.limits[False].recall(Known(60.0, 60.0))
    pool._shelves.learned()
    limit = pool._shelves.limits[False].safe(pool._shelves.rtt)
    ends = {conn: entry.since + limit * entry.spread for conn, entry in pool.unasked()}
    now, seen, found = 0.0, 0, set()
    while len(found) < count:
        now = max(now, pool.plan(now).wake_at)
        pool.plan(now)
        for conn in pool._shelves.due.keys() - found:
            assert now - 1e-6 <= ends[conn] <= now + 1.0
        found |= pool._shelves.due.keys()
        seen += 1
    assert 0.5 * looks <= seen <= looks


def test_a_pool_with_all_that_it_can_want_is_settled_whatever_its_target():
    """An acquire then asks no sizing; what is due, or due before the next plan, still counts."""
    pool = make(warm=1, idle_timeout=40)
    dial(pool, 1)
    dial(pool, 2)
    pool.planned_until = pool.plan(0.0).wake_at
    assert pool.is_settled(1.0)
    pool.suspect(None, 1.0)
    pool.plan(1.0)
    assert not pool.is_settled(1.0), "two are due"


def test_how_long_a_dial_takes_and_what_it_was_told_of_costs():
    pool = make(warm=1)
    assert (pool.dial_time, pool.is_costly) == (0.0, False)
    pool.dial_started(0.0)
    pool.dial_succeeded(1, 0.25, 0.0)
    assert pool.dial_time == 0.25


def test_who_takes_a_connection_that_was_idle_for_long_shows_that_they_live():
    """After closes right behind the opening only a probe is dialled, until one has lived."""
    pool = make(warm=2)
    dial(pool, 1)
    pool.closed(1, CloseReason.UPSTREAM_EOF, 0.0)
    assert pool.churn.failures == 1
    at = pool.churn.not_before
    dial(pool, 2, at)
    assert pool.acquire(9, Prefer.FRESH, at + SHORTEST, alive) == 2
    assert pool.churn.failures == 0
