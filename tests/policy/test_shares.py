"""Shares: what several processes get of a number adds up to it."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from warmproxy.errors import ConfigError
from warmproxy.loading import load
from warmproxy.policy.shares import deal, share
from warmproxy.settings import (
    DEALT,
    DEALT_BY_ORIGIN,
    GatewaySettings,
    OriginSettings,
    Settings,
    UpstreamSettings,
    window_of,
)

counts = st.integers(0, 40)
many = st.integers(2, 8)
warm = counts | st.just("auto")


@st.composite
def upstreams(draw: st.DrawFn) -> tuple[UpstreamSettings, ...]:
    def one(index: int) -> UpstreamSettings:
        least, most = sorted((draw(counts), draw(st.integers(1, 40))))
        windows = [
            window_of({"at": "0 9 * * *", "count": draw(counts), "tls": draw(counts), "for": 60})
            for _ in range(draw(st.integers(0, 2)))
        ]
        return UpstreamSettings(
            url=f"https://h{index}.example",
            warm=draw(warm),
            tls=draw(warm),
            upgrade=draw(st.booleans()),
            warm_min=least,
            warm_max=max(1, most),
            max_connections=draw(st.integers(8, 100)),
            max_waiting=draw(counts),
            dial_budget=draw(st.floats(0, 100)),
            warm_at=tuple(windows),
        )

    return tuple(map(one, range(draw(st.integers(0, 5)))))


@given(counts, many, counts)
def test_cards_are_dealt_evenly(count: int, of: int, start: int) -> None:
    """They add up, nobody has two more than another, and the first goes to `start`."""
    dealt = deal(count, of, start)
    assert sum(dealt) == count
    assert max(dealt) - min(dealt) <= 1
    assert dealt[start % of] == max(dealt)


@given(upstreams(), many)
def test_all_that_is_held_or_allowed_adds_up(given: tuple[UpstreamSettings, ...], of: int) -> None:
    """The limits of all and of each origin, what is warm by number or demand, and windows."""
    whole = Settings(upstream=given, max_connections=4097, learn_warm=5)
    parts = [share(whole, number, of) for number in range(of)]
    for name in DEALT:
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
    learning = [part.learn_warm for part in parts if part.learn_requests]
    assert sum(learning) == 5
    assert len(learning) == min(5, of)
    for index, upstream in enumerate(given):
        its = [part.upstream[index] for part in parts]
        for name in (*DEALT_BY_ORIGIN, "warm_min"):
            assert sum(getattr(each, name) for each in its) == getattr(upstream, name), name
        assert sum(each.dial_budget for each in its) == pytest.approx(upstream.dial_budget)
        if upstream.warm == "auto":
            held = [each.warm_max for each in its if each.warm == "auto"]
            assert sum(held) == upstream.warm_max
            assert {each.warm for each in its} <= {"auto", 0}
        else:
            assert sum(each.warm for each in its) == upstream.warm
        if not whole.needs_tls(upstream.origin) and upstream.tls != "auto":
            assert sum(each.tls for each in its) == upstream.tls
        for i, window in enumerate(upstream.warm_at):
            assert sum(each.warm_at[i].count for each in its) == window.count
            if not whole.needs_tls(upstream.origin):
                assert sum(each.warm_at[i].tls for each in its) == window.tls


@given(counts, st.integers(1, 40), many)
def test_tls_of_upgrades_adds_up_where_there_is_enough(raw: int, tls: int, of: int) -> None:
    """0 would mean as many as there are raw ones: a process with a raw one has one with TLS."""
    upstream = UpstreamSettings(url="https://h.example", warm=raw, tls=tls, upgrade=True)
    whole = Settings(upstream=(upstream,))
    held = []
    for number in range(of):
        part = share(whole, number, of)
        its = part.tls_warm(part.upstream[0])
        assert isinstance(its, int)
        held.append(its)
    assert sum(held) == max(tls, min(of, raw))


@given(counts, many)
def test_tls_that_is_not_said_is_what_is_raw(raw: int, of: int) -> None:
    """By a gateway's need too."""
    upstream = UpstreamSettings(url="https://h.example", warm=raw)
    gateway = GatewaySettings(listen="127.0.0.1:9001", upstream="https://h.example")
    whole = Settings(upstream=(upstream,), gateway=(gateway,))
    parts = [share(whole, number, of) for number in range(of)]
    assert sum(part.tls_warm(part.upstream[0]) for part in parts) == raw


@given(st.lists(counts, max_size=8), many)
def test_many_upstreams_are_spread(warm: list[int], of: int) -> None:
    """What all hold together is dealt as one: no process has two more than another, and none more
    than its share of max_connections."""
    assume(sum(warm))
    given = [UpstreamSettings(url=f"http://h{i}.example", warm=n) for i, n in enumerate(warm)]
    whole = Settings(upstream=tuple(given), max_connections=max(of, sum(warm)))
    parts = [share(whole, number, of) for number in range(of)]
    held = [sum(upstream.warm for upstream in part.upstream) for part in parts]
    assert max(held) - min(held) <= 1
    for part, its in zip(parts, held, strict=True):
        assert its <= part.max_connections


def test_one_of_one_is_all() -> None:
    """Nothing is lost where nothing is shared."""
    whole = Settings(
        upstream=(UpstreamSettings(url="http://h.example", warm=3, dial_budget=7.0),),
        defaults=OriginSettings(max_waiting=0),
    )
    assert share(whole, 0, 1) == whole


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("processes = 4\nmax_tunnels = 3", "x:2: 'max_tunnels' is 3, less than the 4"),
        ("processes = 3\n[defaults]\nmax_connections = 2", "x:3: 'max_connections' is 2"),
        (
            'processes = 3\n[[upstream]]\nurl = "http://h.example"\nmax_waiting = 2',
            "x:4: 'max_waiting' is 2",
        ),
        ("processes = 0", "x:1: 'processes' must be a whole number >= 1, not 0"),
        ("processes = 65", "x:1: 'processes' must be at most 64"),
    ],
)
def test_what_cannot_be_shared_is_refused(text: str, problem: str) -> None:
    """A limit below the number of processes would be exceeded by one for each."""
    with pytest.raises(ConfigError) as caught:
        load(path="x", text=text, environ={}, flags={})
    assert [line[: len(problem)] for line in caught.value.problems] == [problem]


def test_nothing_is_not_shared() -> None:
    """0 means none, or no limit, whatever the number of processes."""
    text = "max_clients_per_address = 0\n[defaults]\nmax_waiting = 0"
    found = load(path="x", text=text, environ={"WARMPROXY_PROCESSES": "9"}, flags={}).settings
    assert share(found, 8, 9).max_clients_per_address == 0
    assert found.processes == 9
