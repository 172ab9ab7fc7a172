"""What changes how many connections a pool holds and to where: boosts, harm, addresses."""

from math import inf

import pytest

from tests.pool.test_origin_pool import RTT, Pool, Said, alive, dial, filled, make, used
from warmproxy.observe import CloseReason
from warmproxy.origin import origin
from warmproxy.policy.learn import Known
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Fixed


def dial_to(pool: Pool, conn: int, place: str, now: float = 0.0) -> None:
    pool.dial_started(now)
    assert pool.dial_succeeded(conn, RTT, now, place) is None


def carry_out(pool: Pool, now: float) -> dict[int, CloseReason]:
    """Do what the pool plans, each dial with a new connection; what was closed, and why."""
    closed: dict[int, CloseReason] = {}
    conns = iter(range(1000 + int(now * 1000) * 100, 10**9))
    while (plan := pool.plan(now)).dials or plan.evict:
        closed |= {conn: why for conn, why in plan.evict if pool.evict(conn, why, now)}
        for _ in range(plan.dials):
            dial_to(pool, next(conns), "", now)
    return closed


def test_a_boost_holds_while_it_lasts_and_wakes_the_pool_at_its_end():
    pool = make(2)
    pool.boost(10, 100.0, "asked", 0.0)
    plan = pool.plan(0.0)
    assert (plan.dials, plan.wake_at) == (10, 100.0)
    assert pool.target_idle(99.9) == 10
    assert pool.target_idle(100.0) == 2


def test_a_boost_beyond_the_dial_budget_is_dialled_at_once():
    pool = make(2, rate=4.0)
    pool.boost(50, 60.0, "asked", 0.0)
    assert pool.plan(0.0).dials == 50


def test_a_boost_never_exceeds_the_cap():
    pool = make(2, max_connections=7)
    pool.boost(50, 60.0, "asked", 0.0)
    assert pool.plan(0.0).dials == 7


def test_the_highest_of_several_boosts_holds_and_zero_ends_one():
    pool = make(1)
    pool.boost(5, 100.0, "schedule", 0.0)
    pool.boost(9, 50.0, "asked", 0.0)
    assert pool.target_idle(1.0) == 9
    pool.boost(0, 0.0, "asked", 1.0)
    assert pool.target_idle(1.0) == 5


def test_a_pool_with_a_boost_is_not_let_go_until_it_is_over():
    pool = make(0)
    pool.boost(1, 10.0, "asked", 0.0)
    assert not pool.is_let_go()
    pool.plan(10.0)
    assert pool.is_let_go()


def test_harm_closes_all_that_is_idle_and_leaves_the_origin_alone():
    said = Said()
    pool = make(3, observer=said)
    for conn in (1, 2, 3):
        dial(pool, conn)
    used(pool, 3)
    pool.harmed("it answered 503 to an idle connection", 1.0)
    plan = pool.plan(1.0)
    assert dict(plan.evict) == dict.fromkeys((1, 2, 3), CloseReason.HARMFUL)
    assert (plan.dials, plan.wake_at) == (0, 601.0)
    assert pool.target_idle(600.9) == 0
    assert said.events == ["held_back 600"]


def test_a_request_to_an_origin_left_alone_is_dialled_and_its_connection_goes_afterwards():
    pool = make(3)
    pool.harmed("why", 1.0)
    assert pool.acquire("w", Prefer.USED, 2.0, alive) is None
    assert pool.plan(2.0).dials == 1
    assert dial(pool, 1, 2.0) == "w"
    pool.release(1, 3.0)
    assert pool.plan(3.0).evict == ((1, CloseReason.HARMFUL),)


def test_the_pool_comes_back_with_one_connection_when_it_was_alone_long_enough():
    pool = make(3)
    pool.harmed("why", 1.0)
    carry_out(pool, 1.0)
    plan = pool.plan(601.0)
    assert (plan.dials, plan.evict) == (1, ())


def test_a_second_harm_doubles_the_time_and_one_meanwhile_does_not():
    said = Said()
    pool = make(3, observer=said)
    pool.harmed("why", 0.0)
    pool.harmed("why", 5.0)
    pool.harmed("why", 600.0)
    assert said.events == ["held_back 600", "held_back 1200"]


def test_connections_to_an_address_that_has_gone_go_after_their_successors_came():
    pool = make(2)
    dial_to(pool, 1, "10.0.0.1")
    dial_to(pool, 2, "10.0.0.2")
    pool.located(frozenset({"10.0.0.1", "10.0.0.2"}), 1.0)
    assert pool.plan(1.0).dials == 0
    pool.located(frozenset({"10.0.0.2"}), 2.0)
    assert (pool.plan(2.0).dials, pool.plan(2.0).evict) == (1, ())
    dial_to(pool, 3, "10.0.0.2", 2.1)
    assert pool.plan(2.1).evict == ((1, CloseReason.ADDRESS_GONE),)


def test_a_lease_to_an_address_that_has_gone_is_replaced_when_it_comes_back():
    pool = make(1)
    dial_to(pool, 1, "10.0.0.1")
    assert pool.acquire("w", Prefer.USED, 1.0, alive) == 1
    pool.located(frozenset({"10.0.0.2"}), 1.0)
    pool.release(1, 2.0)
    assert pool.plan(2.0).dials == 1


def test_an_address_that_comes_back_is_as_good_as_ever():
    pool = make(1)
    dial_to(pool, 1, "10.0.0.1")
    pool.located(frozenset({"10.0.0.2"}), 1.0)
    assert pool.plan(1.0).dials == 1
    pool.located(frozenset({"10.0.0.1", "10.0.0.2"}), 2.0)
    assert pool.plan(2.0).dials == 0


def test_siblings_of_a_failed_connection_are_replaced_and_handed_out_last():
    pool = make(3)
    dial_to(pool, 1, "10.0.0.1")
    dial_to(pool, 2, "10.0.0.2")
    dial_to(pool, 3, "10.0.0.2")
    assert sorted(pool.suspect("10.0.0.2", 1.0)) == [2, 3]
    assert pool.plan(1.0).dials == 2
    assert pool.acquire("w", Prefer.FRESH, 1.0, alive) == 1
    assert pool.acquire("w", Prefer.FRESH, 1.0, alive) == 3, "of the suspects the newest"


def test_suspects_go_when_their_successors_are_there():
    pool = make(2)
    dial_to(pool, 1, "10.0.0.1")
    dial_to(pool, 2, "10.0.0.1")
    pool.suspect(None, 1.0)
    assert carry_out(pool, 1.0) == dict.fromkeys((1, 2), CloseReason.SUSPECT)
    assert pool.idle == 2


@pytest.mark.parametrize("suspect", [False, True])
def test_the_end_of_a_suspect_teaches_no_idle_limit(suspect):
    """After sleep they all end, at ages in which the sleep is not counted."""
    pool = make(4)
    for conn in (1, 2, 3, 4):
        dial_to(pool, conn, "10.0.0.1", conn / 10)
    if suspect:
        pool.suspect("10.0.0.1", 20.0)
    for conn in (1, 2, 3, 4):
        pool.closed(conn, CloseReason.UPSTREAM_EOF, 20.0 + conn / 10)
    assert (pool.idle_limits["fresh"].seconds == inf) is suspect


def test_a_suspect_that_served_a_request_is_none():
    pool = make(1)
    dial_to(pool, 1, "10.0.0.1")
    pool.suspect("10.0.0.1", 1.0)
    used(pool, 1, 1.0)
    assert pool.plan(1.0).dials == 0


def test_places_counts_what_is_open_by_address():
    pool = make(3)
    dial_to(pool, 1, "10.0.0.1")
    dial_to(pool, 2, "10.0.0.2")
    dial_to(pool, 3, "10.0.0.2")
    assert pool.acquire("w", Prefer.FRESH, 1.0, alive) == 3
    assert pool.places() == {"10.0.0.1": 1, "10.0.0.2": 2}


def test_what_is_taken_for_ourselves_is_no_acquire_and_comes_back_used():
    pool = filled(2)
    pool.take(1, 1.0)
    assert (pool.idle, pool.active, dict(pool.tally.acquires)) == (1, 1, {})
    assert pool.release(1, 2.0) is None
    assert (pool.fresh, pool.used) == (1, 1)


def test_nothing_is_dialled_in_the_place_of_what_is_taken_for_ourselves():
    pool = filled(2)
    pool.take(1, 1.0)
    assert pool.plan(1.0).dials == 0
    assert pool.settled_until(1.0) > 1.0
    pool.closed(1, CloseReason.NOT_REUSABLE, 1.0)
    assert pool.settled_until(1.0) == 1.0


def test_a_request_does_not_wait_for_what_is_taken_for_ourselves_but_may_have_it():
    pool = filled(1)
    pool.take(1, 1.0)
    assert pool.acquire("w", Prefer.USED, 1.0, alive) is None
    assert pool.plan(1.0).dials == 1
    assert pool.release(1, 1.1) == "w"


def test_what_is_taken_for_ourselves_is_no_demand():
    asked: list[int] = []

    class Heard(Fixed):
        def asked(self, now: float, active: int) -> None:
            asked.append(active)

        def target_idle(self, now: float, active: int, dial: float, lives: float) -> int:
            asked.append(active)
            return 2

    pool = make(2)
    pool.sizing = Heard(2)
    for conn in (1, 2):
        dial(pool, conn)
    pool.take(1, 1.0)
    pool.acquire("w", Prefer.USED, 1.0, alive)
    assert max(asked) == 0
    pool.target_idle(1.0)
    assert max(asked) == 1


def test_a_fresh_connection_that_dies_of_our_request_slows_refills_and_a_used_one_does_not():
    pool = filled(2)
    used(pool, 2)
    pool.take(2, 1.0)
    pool.closed(2, CloseReason.NOT_REUSABLE, 1.0)
    assert pool.churn.failures == 0
    pool.take(1, 1.0)
    pool.closed(1, CloseReason.NOT_REUSABLE, 1.0)
    assert pool.churn.failures == 1
    assert pool.plan(1.0).dials == 0
    assert pool.plan(pool.churn.not_before).dials == 1


def test_what_only_we_have_used_is_wasted():
    pool = filled(2)
    pool.take(1, 1.0)
    pool.release(1, 1.0)
    pool.closed(1, CloseReason.UPSTREAM_EOF, 2.0)
    assert pool.tally.dials_wasted == 1
    used(pool, 2)
    pool.closed(2, CloseReason.UPSTREAM_EOF, 2.0)
    assert pool.tally.dials_wasted == 1


def test_the_one_that_is_idle_longest_is_found_among_those_that_may_stay():
    pool = make(3)
    assert pool.idle_longest() is None
    for conn in (1, 2, 3):
        dial_to(pool, conn, "10.0.0.1" if conn == 1 else "10.0.0.2", now=float(conn))
    assert pool.idle_longest() == (1, 1.0)
    pool.suspect("10.0.0.1", 4.0)
    pool.plan(4.0)
    assert pool.idle_longest() == (2, 2.0)
    pool.take(2, 5.0)
    pool.release(2, 5.0)
    assert pool.idle_longest() == (3, 3.0)
    pool.take(3, 6.0)
    pool.release(3, 6.0)
    assert pool.idle_longest() == (2, 5.0)
    dial_to(pool, 4, "10.0.0.2", now=7.0)
    assert pool.idle_longest() == (2, 5.0), "used ones and fresh ones count alike"


def test_an_announced_limit_replaces_the_used_connection_before_its_time():
    pool = make(1, idle_timeout=60)
    dial(pool, 1)
    assert pool.acquire("w", Prefer.USED, 0.0, alive) == 1
    pool.hinted(5.0)
    pool.release(1, 0.0)
    assert pool.plan(1.0).wake_at < 4.6
    assert pool.plan(4.6).dials == 1
    assert pool.idle_limits["fresh"].seconds == inf


def test_an_announced_limit_that_is_taken_back_lets_the_used_connection_stay():
    pool = make(1, idle_timeout=60)
    dial(pool, 1)
    assert pool.acquire("w", Prefer.USED, 0.0, alive) == 1
    pool.hinted(5.0)
    pool.release(1, 0.0)
    assert pool.plan(4.6).dials == 1
    pool.hinted(None)
    assert pool.hint is None
    assert pool.plan(4.7).dials == 0


def test_a_pool_of_raw_connections_has_one_limit_of_a_kind_of_its_own():
    assert set(make(1).idle_limits) == {"fresh", "used"}
    raw = make(1, origin=origin("tcp", "example.com", 443))
    raw.recall({"raw": Known(5.0, 5.0), "fresh": Known(9.0, 9.0)})
    assert {kind: limit.seconds for kind, limit in raw.idle_limits.items()} == {"raw": 5.0}
    dial(raw, 1)
    assert raw.plan(4.6).dials == 1, "what is recalled is acted on at once"
