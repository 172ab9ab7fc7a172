"""Pools of one host and port: which idle connections are closed for a request that hangs."""

from tests.pool.test_origin_pool import RTT, Pool, Said, alive, make, used
from warmproxy.observe import CloseReason
from warmproxy.policy.guard import PROVEN
from warmproxy.policy.retry import Prefer
from warmproxy.pool.site import Site


def site_of(*pools: Pool) -> Site[int, str]:
    site: Site[int, str] = Site()
    site.pools += pools
    return site


def opened(pool: Pool, conn: int, at: float) -> None:
    pool.dial_started(at - RTT)
    assert pool.dial_succeeded(conn, RTT, at) is None


def leased(pool: Pool, now: float) -> int:
    conn = pool.acquire("w", Prefer.FRESH, now, alive)
    assert conn is not None
    return conn


def close(found: list[tuple[Pool, int]], now: float) -> list[int]:
    for pool, conn in found:
        pool.closed(conn, CloseReason.HARMFUL, now)
    return [conn for _, conn in found]


def freed(site: Site[int, str], pool: Pool, conn: int, now: float) -> list[Pool]:
    """What hangs on this connection is found out at `now` and answered at once."""
    waited = now - pool.leased(conn).since
    assert close(site.overdue(pool, conn, waited, now), now)
    return site.answered(pool, conn, now + 0.01)


def test_of_all_pools_the_connections_go_that_are_before_the_hanging_one():
    mine, sibling = make(3), make(1)
    site = site_of(mine, sibling)
    opened(mine, 1, 0.0)
    opened(sibling, 9, 5.0)
    opened(mine, 2, 10.0)
    opened(mine, 4, 30.0)
    assert leased(mine, 30.0) == 4
    opened(mine, 5, 31.0)
    assert sorted(close(site.overdue(mine, 4, 1.5, 31.5), 31.5)) == [1, 2, 9]
    assert mine.tally.closed == {"harmful": 2}


def test_connections_that_were_opened_together_have_an_order_all_the_same():
    pool = make(2)
    opened(pool, 1, 10.0)
    opened(pool, 2, 10.0)
    assert leased(pool, 11.0) == 2
    opened(pool, 3, 11.0)
    assert close(site_of(pool).overdue(pool, 2, 1.5, 12.5), 12.5) == [1]


def test_used_connections_stay():
    """They showed that they have a worker, or need none."""
    pool = make(2)
    opened(pool, 1, 0.0)
    used(pool, 1, 1.0)
    opened(pool, 2, 5.0)
    assert leased(pool, 6.0) == 2
    assert site_of(pool).overdue(pool, 2, 1.5, 7.5) == []


def test_a_canary_is_an_idle_connection_like_others():
    pool = make(1)
    for conn, at in ((1, 0.0), (2, 10.0), (3, 20.0)):
        opened(pool, conn, at)
        pool.closed(conn, CloseReason.UPSTREAM_EOF, at + 5.0)
    opened(pool, 4, 30.0)
    assert not pool.evict(4, CloseReason.IDLE_LIMIT, 34.0), "it is the canary now"
    opened(pool, 5, 34.0)
    assert leased(pool, 34.1) == 5
    assert close(site_of(pool).overdue(pool, 5, 1.5, 35.6), 35.6) == [4]


def test_a_handshake_that_hangs_may_hang_for_any_idle_connection():
    raw, tls = make(2), make(0)
    site = site_of(raw, tls)
    opened(raw, 1, 0.0)
    assert close(site.overdue(tls, None, 1.5, 1.5), 1.5) == [1]
    assert site.handshaken(1.6, 1.6) == []
    opened(raw, 2, 2.0)
    assert close(site.overdue(tls, None, 2.5, 12.5), 12.5) == [2]
    assert site.handshaken(2.6, 12.6) == [raw]
    assert raw.target_idle(12.6) == 0


def test_a_conviction_harms_the_pools_that_hold_or_want_idle_connections():
    said = Said()
    mine, sibling, cold = make(2, observer=said), make(1, observer=said), make(0, observer=said)
    site = site_of(mine, sibling, cold)
    opened(sibling, 9, 0.0)
    opened(mine, 1, 0.0)
    assert leased(mine, 1.0) == 1
    assert freed(site, mine, 1, 2.5) == []
    opened(sibling, 8, 3.0)
    opened(mine, 2, 4.0)
    assert leased(mine, 5.0) == 2
    assert freed(site, mine, 2, 7.5) == [mine, sibling]
    assert said.events == ["held_back 600"] * 2
    assert cold.guard.until < 7.5


def test_what_was_answered_beside_older_ones_is_never_suspected_beside_as_many():
    pool = make(3)
    site = site_of(pool)
    for conn in (1, 2, 3):
        opened(pool, conn, 10.0)
    assert leased(pool, 11.0) == 3
    opened(pool, 4, 11.0)
    assert site.answered(pool, 3, 11.1) == []
    assert leased(pool, 12.0) == 4
    assert site.overdue(pool, 4, 30.0, 42.0) == []
    opened(pool, 5, 50.0)
    opened(pool, 6, 50.0)
    assert leased(pool, 51.0) == 6
    assert site.overdue(pool, 6, 30.0, 81.0), "three are more than two"


# -- coming back ------------------------------------------------------------------------------


def probing() -> tuple[Site[int, str], Pool, Said]:
    """A pool that was left alone long enough and has its one probe, at 601 s."""
    said = Said()
    pool = make(3, observer=said)
    site = site_of(pool)
    pool.harmed("why", 0.0)
    assert pool.plan(601.0).dials == 1
    opened(pool, 1, 601.0)
    assert pool.plan(601.0).dials == 0
    return site, pool, said


def test_a_request_passes_by_the_probe_and_its_answer_proves_that_harmless():
    site, pool, _ = probing()
    assert pool.acquire("w", Prefer.FRESH, 610.0, alive) is None
    assert pool.plan(610.0).dials == 1
    pool.dial_started(610.0)
    assert pool.dial_succeeded(2, RTT, 610.1) == "w"
    assert site.answered(pool, 2, 610.2) == [pool]
    assert pool.plan(610.2).dials == 2


def test_a_request_that_hangs_beside_the_probe_is_freed_and_the_origin_left_alone_for_longer():
    site, pool, said = probing()
    assert pool.acquire("w", Prefer.FRESH, 610.0, alive) is None
    pool.dial_started(610.0)
    assert pool.dial_succeeded(2, RTT, 610.1) == "w"
    assert freed(site, pool, 2, 611.5) == [], "it was convicted by its own word, not by a try"
    pool.closed(2, CloseReason.NOT_REUSABLE, 612.0)
    opened(pool, 3, 613.0)
    assert pool.acquire("w", Prefer.FRESH, 620.0, alive) is None
    pool.dial_started(620.0)
    assert pool.dial_succeeded(4, RTT, 620.1) == "w"
    assert freed(site, pool, 4, 622.7) == [pool]
    assert said.events == ["held_back 600", "held_back 1200"]


def test_a_request_takes_a_used_connection_beside_the_probe():
    _, pool, _ = probing()
    assert pool.acquire("w", Prefer.FRESH, 610.0, alive) is None
    pool.dial_started(610.0)
    assert pool.dial_succeeded(2, RTT, 610.1) == "w"
    assert pool.release(2, 610.2) is None
    assert pool.acquire("w", Prefer.FRESH, 611.0, alive) == 2
    assert pool.acquire("x", Prefer.FRESH_ONLY, 611.0, alive) is None


def test_without_room_beside_it_the_probe_is_handed_out():
    said = Said()
    pool = make(1, observer=said, max_connections=1)
    pool.harmed("why", 0.0)
    opened(pool, 1, 601.0)
    assert pool.acquire("w", Prefer.FRESH, 610.0, alive) == 1


def test_a_probe_that_lives_for_a_minute_proves_itself():
    _, pool, _ = probing()
    assert pool.plan(602.0).wake_at == 601.0 + PROVEN
    assert pool.settled_until(602.0) == 601.0 + PROVEN
    assert pool.plan(601.0 + PROVEN).dials == 2


def test_a_probe_that_lives_to_its_limit_proves_itself():
    for how in (CloseReason.UPSTREAM_EOF, CloseReason.UNSOLICITED_DATA, CloseReason.IDLE_LIMIT):
        _, pool, _ = probing()
        pool.closed(1, how, 606.0)
        assert pool.plan(606.0).dials == 3


def test_a_probe_that_is_refused_or_lost_proves_nothing():
    for how, at in (
        (CloseReason.UPSTREAM_EOF, 601.1),
        (CloseReason.UPSTREAM_RESET, 630.0),
        (CloseReason.SUSPECT, 630.0),
    ):
        _, pool, _ = probing()
        pool.closed(1, how, at)
        assert pool.target_idle(at) == 1


def test_a_slow_answer_beside_the_probe_proves_nothing():
    site, pool, _ = probing()
    assert pool.acquire("w", Prefer.FRESH, 610.0, alive) is None
    pool.dial_started(610.0)
    assert pool.dial_succeeded(2, RTT, 610.1) == "w"
    assert site.answered(pool, 2, 613.0) == []
    assert pool.target_idle(613.0) == 1


def test_how_many_are_older_is_never_told_too_low():
    """The quick count is exact where nobody is suspect, and then at most too high."""
    pool = make(9)
    for conn in range(1, 8):
        opened(pool, conn, float(conn))
    number = {conn: entry.number for conn, entry in pool.unasked()}
    assert [pool.unasked_before(number[conn]) for conn in range(1, 8)] == list(range(7))
    pool.suspect("", 8.0)
    for conn in range(1, 8):
        older = [c for c, entry in pool.unasked() if entry.number < number[conn]]
        assert pool.unasked_before(number[conn]) >= len(older)


def test_what_was_harmless_before_is_not_looked_at_again(monkeypatch):
    """With 10,000 idle connections a look at each would take longer than the request; there is one
    where more of them are older than ever before, and while the origin is probed."""
    pool = make(4)
    site = site_of(pool)
    for conn in range(1, 4):
        opened(pool, conn, 1.0)
    looks = []
    plain = pool.unasked
    monkeypatch.setattr(pool, "unasked", lambda: looks.append(1) or plain())

    def served(now: float, *, wary: bool = False) -> int:
        conn = leased(pool, now)
        pool.guard.is_wary = wary
        assert bool(site.answered(pool, conn, now + 0.01)) is wary  # proved
        pool.closed(conn, CloseReason.NOT_REUSABLE, now + 0.1)
        return len(looks)

    assert served(2.0) == 1  # two are older
    assert served(3.0) == 1  # one
    opened(pool, 5, 4.0)
    opened(pool, 6, 4.0)
    assert served(5.0) == 1  # two again
    opened(pool, 7, 6.0)
    opened(pool, 8, 6.0)
    assert served(7.0) == 2  # three
    assert served(8.0, wary=True) == 3
