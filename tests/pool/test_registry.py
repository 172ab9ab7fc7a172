"""Which pools there are, which are let go first, and that no count is lost with them."""

from math import inf

from warmproxy.observe import CloseReason, Observer, Tally
from warmproxy.origin import origin
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Auto
from warmproxy.pool.registry import Registry, tallies
from warmproxy.settings import Settings, UpstreamSettings

A, B, C = (origin("http", name, 80) for name in "abc")
CONFIGURED = UpstreamSettings(url="http://a", warm=3)


def make(**settings) -> Registry[int, str]:
    registry: Registry[int, str] = Registry(
        Settings(upstream=(CONFIGURED,), **settings), Observer(), lambda: 0.5, 0.0
    )
    return registry


def fill(registry: Registry[int, str], of, conn: int) -> None:
    pool = registry.use(of, 0.0)
    pool.dial_started(0.0)
    pool.dial_succeeded(conn, 0.01, 0.0)


def test_configured_origins_have_their_pool_from_the_start_and_want_it_warm():
    registry = make()
    assert [pool.origin for pool in registry] == [A]
    pool = registry.find(A)
    assert pool is not None
    assert pool.plan(0.0).dials == 3
    assert registry.find(B) is None


def test_an_https_upstream_has_a_pool_for_tunnels_and_one_for_finished_tls_where_asked():
    def origins(**upstream):
        config = UpstreamSettings(url="https://a", warm=2, max_connections=7, **upstream)
        registry: Registry[int, str] = Registry(
            Settings(upstream=(config,)), Observer(), lambda: 0.5, 0.0
        )
        return registry, [(str(p.origin), p.target_idle(0.0)) for p in registry], config

    registry, pools, config = origins()
    assert pools == [("tcp://a:443", 2)]
    secure = config.secure_origin
    assert secure is not None
    assert registry.use(secure, 0.0).settings.max_connections == 7, "its settings hold all the same"
    assert secure not in registry.configured
    assert origins(tls=3)[1] == [("tcp://a:443", 2), ("https://a:443", 3)]
    assert origins(upgrade=True)[1] == [("tcp://a:443", 2), ("https://a:443", 2)]


def test_auto_is_sized_between_its_limits_for_each_of_an_upstreams_two_pools():
    config = UpstreamSettings(
        url="https://a", warm="auto", tls="auto", warm_min=3, warm_max=50, max_connections=8
    )
    registry: Registry[int, str] = Registry(
        Settings(upstream=(config,)), Observer(), lambda: 0.5, 0.0
    )
    for pool in registry:
        assert isinstance(pool.sizing, Auto)
        assert (pool.sizing.warm_min, pool.sizing.warm_max) == (3, 8)
        assert pool.target_idle(0.0) == 3
        assert pool.plan(0.0).dials == 3
    assert len(registry) == 2


def test_an_origin_has_its_settings_before_it_has_a_pool():
    config = UpstreamSettings(url="https://a", max_connections=7)
    registry: Registry[int, str] = Registry(
        Settings(upstream=(config,)), Observer(), lambda: 0.5, 0.0
    )
    secure = config.secure_origin
    assert secure is not None
    assert registry.settings_of(secure) is config
    assert registry.settings_of(config.origin) is config
    assert registry.settings_of(B) is not config
    assert len(registry) == 1


def test_it_is_full_when_every_origin_would_be_missed():
    registry = make(max_origins=2)
    registry.use(B, 0.0)
    assert not registry.is_full(), "nobody would miss one of the two"
    registry.use(B, 0.0).boost(1, 10.0, "asked", 0.0)
    assert registry.is_full()


def test_an_origin_gets_a_pool_with_its_first_use_and_is_not_warmed_for_it():
    registry = make()
    pool = registry.use(B, 0.0)
    assert registry.use(B, 1.0) is pool
    assert pool.plan(0.0).dials == 0
    assert len(registry) == 2


def test_an_origin_that_is_asked_often_is_warmed_until_it_is_quiet():
    registry = make(learn_requests=2, learn_window=10.0, learn_warm=2, learn_quiet=60.0)
    pool = registry.use(B, 0.0)
    for now in (0.0, 1.0):
        pool.acquire(f"w{now}", Prefer.USED, now, lambda conn: None)
        pool.cancel(f"w{now}")
    assert pool.plan(1.0).dials == 1, "as many as were asked for at once"
    assert pool.plan(1.0).wake_at <= 61.0
    assert pool.plan(61.0).dials == 0


def test_the_least_recently_used_origin_that_nobody_would_miss_is_let_go_first():
    registry = make(max_origins=2)
    for used in (B, C):
        registry.use(used, 0.0)
    registry.use(B, 1.0)
    assert [pool.origin for pool in registry.beyond_cap()] == [C]


def test_as_many_are_let_go_as_there_are_too_many():
    registry = make(max_origins=1)
    for used in (B, C):
        registry.use(used, 0.0)
    assert [pool.origin for pool in registry.beyond_cap()] == [B, C]


def test_pools_with_a_lease_and_configured_ones_stay():
    registry = make(max_origins=1)
    fill(registry, B, 1)
    pool = registry.use(B, 0.0)
    assert pool.acquire("w", Prefer.USED, 0.0, lambda conn: None) == 1
    assert registry.beyond_cap() == []
    pool.release(1, 0.0)
    assert [gone.origin for gone in registry.beyond_cap()] == [B]
    assert make(max_origins=2).beyond_cap() == []


def test_the_pools_of_a_host_are_found_while_they_are_there():
    registry = make()
    tunnels = registry.use(origin("tcp", A.host, 443), 0.0)
    assert registry.at(A.host) == [registry.find(A), tunnels]
    assert registry.at("nowhere") == []
    registry.let_go(tunnels)
    assert registry.at(A.host) == [registry.find(A)]
    other = registry.use(B, 0.0)
    assert registry.at(B.host) == [other]
    registry.let_go(other)
    assert registry.at(B.host) == []


def test_what_a_pool_counted_stays_in_the_sums_when_it_is_let_go():
    registry = make()
    fill(registry, B, 1)
    pool = registry.use(B, 0.0)
    pool.closed(1, CloseReason.SURPLUS, 5.0)
    registry.let_go(pool)
    assert registry.find(B) is None
    assert registry.forgotten.dials == {"ok": 1}
    assert registry.forgotten.closed == {"surplus": 1}
    assert registry.forgotten.idle_socket_seconds == 5.0


def test_pools_of_one_host_and_port_are_in_one_place_which_goes_with_the_last():
    registry = make()
    raw, tls = origin("tcp", "b", 443), origin("https", "b", 443, "")
    pools = [registry.use(raw, 0.0), registry.use(tls, 0.0)]
    site = registry.site(raw)
    assert registry.site(tls) is site
    assert site.pools == pools
    registry.use(B, 0.0)
    assert registry.site(B) is not site
    registry.let_go(pools[0])
    assert registry.site(tls).pools == pools[1:]
    registry.let_go(pools[1])
    registry.use(tls, 0.0)
    assert registry.site(tls) is not site


def test_room_is_made_at_the_cost_of_the_origin_used_longest_ago_and_not_of_configured_ones():
    registry = make()
    for number, of in enumerate((A, B, C)):
        fill(registry, of, number + 1)
    found = registry.least_recent_with_idle()
    assert found is not None
    assert found.origin == B
    registry.use(B, 0.0)
    found = registry.least_recent_with_idle()
    assert found is not None
    assert found.origin == C
    only = make()
    assert only.least_recent_with_idle() is None
    fill(only, A, 1)
    found = only.least_recent_with_idle()
    assert found is not None
    assert found.origin == A


def test_labels_are_the_configured_origins_and_one_for_all_the_rest():
    mine, others, forgotten = Tally(), Tally(), Tally()
    mine.dials["ok"] += 1
    others.dials["ok"] += 2
    others.dial_seconds["tcp"].observe(0.5)
    others.acquire_wait.observe(0.002)
    forgotten.dials["refused"] += 4
    forgotten.dial_seconds["tcp"].observe(0.5)
    by_label = tallies([A], [(A, mine), (B, others)], forgotten)
    assert by_label["http://a:80"] is mine
    assert by_label["other"].dials == {"ok": 2, "refused": 4}
    assert by_label["other"].dial_seconds["tcp"].total == 1.0
    assert sum(by_label["other"].acquire_wait.counts) == 1
    assert others.dials == {"ok": 2}, "summing up changes nothing"


def test_every_connection_can_be_walked_and_the_oldest_is_given_up_first():
    registry = make()
    for conn in (1, 2):
        fill(registry, A, conn)
    pool = registry.use(A, 0.0)
    assert sorted(pool.connections()) == [1, 2]
    assert pool.oldest_idle() == 1
    assert pool.oldest_age(7.0) == 7.0
    assert repr(pool) == "<OriginPool fresh=2 used=0 active=0 dialling=0 waiting=0>"
    assert pool.plan(0.0).wake_at < inf
