"""Other settings for pools that are there: what stays, what is replaced, what goes."""

from typing import Any

from warmproxy.errors import DialRefused
from warmproxy.observe import CloseReason, Observer, Outcome
from warmproxy.origin import origin, secured
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Auto, Fixed
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.pool.registry import Adopted, Registry
from warmproxy.settings import OriginSettings, Settings, UpstreamSettings

A, B = (origin("http", name, 80) for name in "ab")
PLACE = origin("tcp", "a", 443)
Houses = Registry[int, str]
Pool = OriginPool[int, str]


def alive(conn: int) -> None:
    return None


def house(*upstream: UpstreamSettings, **settings: Any) -> Houses:
    return Registry(Settings(upstream=upstream, **settings), Observer(), lambda: 0.5, 0.0)


def adopt(
    registry: Houses, *upstream: UpstreamSettings, renewed: tuple[str, ...] = (), **settings: Any
) -> Adopted[int, str]:
    return registry.adopt(Settings(upstream=upstream, **settings), renewed, 1.0)


def filled(registry: Houses, of: Any, *conns: int) -> Pool:
    pool = registry.use(of, 0.0)
    for conn in conns:
        pool.dial_started(0.0)
        pool.dial_succeeded(conn, 0.01, 0.0)
    return pool


def http(name: str = "a", **settings: Any) -> UpstreamSettings:
    return UpstreamSettings(url=f"http://{name}", **{"warm": 3, **settings})


def https(**settings: Any) -> UpstreamSettings:
    return UpstreamSettings(url="https://a", warm=0, tls=2, **settings)


# ── the registry ─────────────────────────────────────────────────────────────────────────────


def test_an_unchanged_pool_is_the_same_with_all_that_it_holds():
    registry = house(http())
    pool = filled(registry, A, 1, 2, 3)
    adopted = adopt(registry, http(), max_tunnels=7)
    assert registry.find(A) is pool
    assert (adopted.renamed, adopted.surplus) == ({}, ())
    plan = pool.plan(1.0)
    assert (plan.dials, plan.evict, pool.idle) == (0, (), 3)


def test_a_changed_count_holds_for_the_same_pool():
    registry = house(http())
    pool = filled(registry, A, 1, 2, 3)
    assert adopt(registry, http(warm=5)).surplus == ()
    assert pool.plan(1.0).dials == 2
    assert adopt(registry, http(warm=1)).surplus == ((pool, 2),)
    assert pool.target_idle(1.0) == 1


def test_what_demand_has_left_beyond_the_count_is_not_taken_away():
    registry = house(http())
    pool = filled(registry, A, 1, 2, 3, 4, 5, 6)
    assert adopt(registry, http(warm=2)).surplus == ((pool, 1),), "less by one, so one goes"


def test_a_removed_origin_holds_nothing_and_is_learned_like_any():
    registry = house(http(), learn_requests=2)
    pool = filled(registry, A, 1, 2, 3)
    assert adopt(registry, learn_requests=2).surplus == ((pool, 3),)
    assert registry.configured == frozenset()
    assert pool.target_idle(1.0) == 0
    for waiter in ("x", "y"):
        pool.acquire(waiter, Prefer.USED, 1.0, alive)
    assert pool.target_idle(1.0) == 1


def test_a_learned_origin_that_is_configured_counts_anew_and_no_sum_falls():
    registry = house()
    pool = filled(registry, A, 1)
    assert pool.acquire("x", Prefer.USED, 0.0, alive) == 1
    adopt(registry, http())
    assert registry.find(A) is pool
    assert pool.tally.acquires == {}
    assert registry.forgotten.acquires[Outcome.FRESH] == 1
    assert pool.plan(1.0).dials == 3


def test_a_new_origin_has_its_pool_at_once():
    registry = house(http())
    adopt(registry, http(), http("b", warm=2))
    pool = registry.find(B)
    assert pool is not None
    assert pool.plan(1.0).dials == 2
    assert registry.configured == {A, B}


def test_another_profile_keeps_pool_and_waiters_and_replaces_connections():
    before, after = https(verify=False), https(ca_file="/ca.pem")
    old, new = before.secure_origin, after.secure_origin
    assert old is not None
    assert new is not None
    registry = house(before)
    pool = filled(registry, old, 1)
    assert pool.acquire("user", Prefer.USED, 0.0, alive) == 1
    assert pool.acquire("waiter", Prefer.USED, 0.0, alive) is None
    assert adopt(registry, after).renamed == {old: new}
    assert registry.find(new) is registry.find(old) is registry.use(old, 1.0) is pool
    assert pool.origin is new
    assert 1 in pool.outdated
    assert (pool.waiting, pool.generation) == (1, 1)
    adopt(registry, before)
    assert registry.find(new) is registry.find(old) is pool
    assert pool.origin is old


def test_names_of_long_ago_still_lead_to_the_pool():
    profiles = [https(ca_file=f"/{i}.pem") for i in range(4)]
    registry = house(profiles[0])
    pool = registry.find(profiles[0].secure_origin)  # type: ignore[arg-type]
    for profile in profiles[1:]:
        adopt(registry, profile)
    for profile in profiles:
        assert profile.secure_origin is not None
        assert registry.find(profile.secure_origin) is pool


def test_a_removed_upstreams_tls_is_that_of_the_defaults():
    table = https(verify=False)
    registry = house(table)
    assert table.secure_origin is not None
    pool = filled(registry, table.secure_origin, 1)
    adopt(registry)
    assert pool.origin is secured(PLACE, Settings().default_profile.name)
    assert pool.generation == 1


def test_only_what_is_opened_in_another_way_is_renewed():
    registry = house(https(), http("b"))
    assert https().secure_origin is not None
    pools = [filled(registry, of, 1) for of in (https().secure_origin, B, PLACE)]
    profile = https().tls_profile.name
    adopt(registry, https(), http("b"), renewed=(profile,))
    assert [pool.generation for pool in pools] == [1, 0, 0]
    adopt(registry, https(source_address="127.0.0.7"), http("b"))
    assert [pool.generation for pool in pools] == [2, 0, 1]


def test_other_limits_hold_for_origins_to_come():
    registry = house(http())
    adopt(registry, http("b"), defaults=OriginSettings(max_waiting=5))
    assert registry.use(origin("http", "c", 80), 1.0).settings.max_waiting == 5
    assert registry.settings_of(B).warm == 3  # type: ignore[attr-defined]


# ── the pool ─────────────────────────────────────────────────────────────────────────────────


def pool_of(warm: int, **settings: Any) -> Pool:
    budget = DialBudget(100.0, 100.0)
    own = OriginSettings(**settings)
    pool: Pool = OriginPool(A, own, Fixed(warm), budget, Observer(), lambda: 1.0, 0.0)
    return pool


def opened(pool: Pool, *conns: int, now: float = 0.0) -> None:
    for conn in conns:
        pool.dial_started(now)
        pool.dial_succeeded(conn, 0.01, now)


def test_what_is_idle_goes_one_by_one_as_its_successor_comes():
    pool = pool_of(2)
    opened(pool, 1, 2)
    pool.renew(1.0)
    plan = pool.plan(1.0)
    assert (plan.dials, plan.evict) == (2, ())
    opened(pool, 3, now=1.0)
    (evicted,) = pool.plan(1.0).evict
    assert evicted == (1, CloseReason.OUTDATED)
    pool.evict(*evicted, 1.0)
    opened(pool, 4, now=1.0)
    assert pool.plan(1.0).evict == ((2, CloseReason.OUTDATED),)


def test_until_then_a_request_may_have_it():
    pool = pool_of(1)
    opened(pool, 1)
    pool.renew(1.0)
    assert pool.acquire("x", Prefer.USED, 1.0, alive) == 1


def test_what_is_active_is_not_to_come_back():
    pool = pool_of(1)
    opened(pool, 1)
    pool.acquire("x", Prefer.USED, 0.0, alive)
    pool.renew(1.0)
    assert pool.outdated == {1}
    pool.closed(1, CloseReason.OUTDATED, 1.0)
    assert pool.outdated == set()


def test_a_canary_is_given_up():
    pool = pool_of(2, idle_timeout=100.0)
    opened(pool, 1, 2)
    assert not pool.evict(1, CloseReason.IDLE_LIMIT, 50.0), "it stays as the canary"
    pool.renew(51.0)
    assert (1, CloseReason.OUTDATED) in pool.plan(51.0).evict


def test_failures_of_the_old_way_hold_nothing_back():
    pool = pool_of(2)
    pool.dial_started(0.0)
    pool.dial_failed(DialRefused("refused"), 0.0)
    assert pool.plan(0.0).dials == 0
    pool.renew(0.0)
    assert pool.plan(0.0).dials == 2


def test_other_settings_hold_at_once():
    pool = pool_of(1, idle_timeout=1000.0)
    opened(pool, 1)
    pool.boost(4, 100.0, "asked", 0.0)
    pool.adopt(OriginSettings(idle_timeout=5.0, backoff_max=7.0), Fixed(2), DialBudget(4, 4), 1.0)
    assert pool.target_idle(1.0) == 4, "what was asked for holds on"
    assert pool.plan(1.0).dials == 3
    assert pool.dial_failures.longest == 7.0


def test_auto_goes_on_from_the_demand_that_it_has_seen():
    pool = pool_of(0)
    pool.sizing = Auto(1, 10)
    for active in range(6):
        pool.sizing.target_idle(0.0, active, 0.05, 100.0)
        pool.sizing.asked(0.0, active)
    before = pool.sizing.target_idle(0.5, 0, 0.05, 100.0)
    pool.adopt(OriginSettings(), Auto(1, 4), DialBudget(4, 4), 0.5)
    assert before > 4
    assert pool.sizing.target_idle(0.5, 0, 0.05, 100.0) == 4
