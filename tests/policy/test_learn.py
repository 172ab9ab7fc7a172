"""What closes teach, first by single facts, then against simulated servers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from warmproxy.policy.learn import REMEMBERED, SHORTEST, IdleLimit, Known

RTT = 0.01


MOMENTS = count(step=1000.0)


def learned(*ages: float) -> IdleLimit:
    """After closes at these ages, each at a moment of its own."""
    limit = IdleLimit()
    see(limit, *ages)
    return limit


def see(limit: IdleLimit, *ages: float) -> None:
    for age in ages:
        limit.closed(age, next(MOMENTS))


# ── a limit shows where closes crowd ─────────────────────────────────────────────────────────


def test_a_limit_needs_three_closes_that_agree():
    assert learned(5.0, 5.1).seconds == inf
    assert learned(5.0, 5.1, 5.2).seconds == 5.0
    assert learned(5.0, 5.1, 9.0).seconds == inf


def test_closes_that_do_not_agree_are_outvoted_and_not_averaged():
    assert learned(60.0, 5.0, 61.0, 30.0, 60.5, 60.2).seconds == 60.0


def test_what_dies_at_once_is_no_idle_limit():
    assert learned(0.1, 0.1, 0.1, 0.1).seconds == inf


def test_a_blurred_limit_shows_after_a_dozen_closes_and_is_the_lowest_of_them():
    ages = [5.0, 6.4, 3.6, 4.4, 5.8, 4.1, 5.4, 6.2, 4.7, 3.9, 6.0]
    assert learned(*ages).seconds == inf
    assert learned(*ages, 5.1).seconds == 3.6


def test_in_a_large_crowd_one_low_close_is_an_accident_and_two_are_the_limit():
    assert learned(*[60.0] * 30, 40.0).seconds == 60.0
    assert learned(*[60.0] * 30, 40.0, 41.0).seconds == 41.0


def test_closes_at_one_moment_at_different_ages_are_one_observation():
    limit = IdleLimit()
    for age in (5.0, 30.0, 31.0, 29.0):
        limit.closed(age, 100.0)
    assert limit.seconds == inf
    limit = learned(*[60.0] * 8)
    for moment in (next(MOMENTS), next(MOMENTS)):
        for age in (3.0, 3.0, 3.0, 3.1):
            limit.closed(age, moment)
    assert limit.seconds == 60.0, "two restarts are two observations"


def test_a_pool_that_was_opened_at_once_teaches_when_it_is_closed_at_once():
    limit = IdleLimit()
    for age in (5.0, 5.01, 5.02, 5.03):
        limit.closed(age, 100.0 + age)
    assert limit.known == Known(5.0, 5.02), "and what it teaches is easily shaken"
    see(limit, 20.0, 50.0)
    assert limit.seconds == inf


# ── and changes where they no longer do ──────────────────────────────────────────────────────


def test_one_canary_that_lives_long_changes_nothing():
    limit = learned(5.0, 5.0, 5.0)
    limit.survived(20.0)
    assert limit.seconds == 5.0
    see(limit, 5.0)
    limit.survived(20.0)
    limit.survived(20.0)
    assert limit.seconds == 5.0, "they were not three in a row"


def test_three_canaries_in_a_row_lift_the_limit_to_what_they_have_seen():
    limit = learned(*[5.0] * REMEMBERED)
    assert limit.probe_at == 20.0
    for _ in range(3):
        limit.survived(20.0)
    assert limit.known == Known(20.0, 20.0)
    assert limit.probe_at == 80.0
    see(limit, 60.0, 60.0, 60.0)
    assert limit.seconds == 60.0


def test_a_canary_that_ended_about_the_limit_has_seen_nothing():
    limit = learned(5.0, 5.0, 5.0)
    for _ in range(3):
        limit.survived(5.5)
    assert limit.seconds == 5.0


def test_where_nothing_is_known_nothing_can_survive_it():
    limit = learned(5.0)
    for _ in range(3):
        limit.survived(20.0)
    assert (limit.seconds, limit.probe_at) == (inf, inf)


def test_three_closes_in_a_row_lower_the_limit():
    limit = learned(*[60.0] * REMEMBERED)
    see(limit, 5.0, 5.0)
    assert limit.seconds == 60.0
    see(limit, 5.0)
    assert limit.known == Known(5.0, 5.0)


def test_three_early_closes_at_ages_that_do_not_agree_lower_nothing():
    limit = learned(*[60.0] * REMEMBERED)
    see(limit, 3.0, 25.0, 9.0)
    assert limit.seconds == 60.0


# ── what is made of it ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limit", "rtt", "safe"),
    [(60.0, 0.04, 54.0), (3.0, 0.04, 2.5), (5.0, 2.0, 1.0), (0.9, 0.04, 0.6), (1.0, 2.0, 0.0)],
    ids=["a tenth", "half a second", "two round trips", "a third if short", "never negative"],
)
def test_the_margin(limit, rtt, safe):
    assert learned(limit, limit, limit).safe(rtt) == pytest.approx(safe)


def test_nothing_known_is_safe_for_ever():
    assert IdleLimit().safe(RTT) == inf


def test_the_margin_grows_with_the_range_in_which_closes_crowd():
    assert learned(10.0, 10.8, 10.4).safe(RTT) == pytest.approx(10.0 - 1.0 - 0.8 / 4)


def test_a_hint_caps_what_is_safe_and_shows_while_it_is_said():
    limit = IdleLimit()
    limit.hinted(5.0)
    assert (limit.seconds, limit.safe(RTT)) == (5.0, 4.5)
    assert limit.probe_at == inf, "what is said needs no probe"
    limit.hinted(10.0)
    assert limit.safe(RTT) == 9.0
    limit.hinted(None)
    assert limit.safe(RTT) == inf


def test_what_was_seen_goes_before_a_hint_that_promises_more():
    limit = learned(5.0, 5.0, 5.0)
    limit.hinted(75.0)
    assert (limit.seconds, limit.safe(RTT), limit.probe_at) == (5.0, 4.5, 20.0)
    limit.hinted(3.0)
    assert (limit.seconds, limit.safe(RTT), limit.probe_at) == (3.0, 2.5, inf)


@pytest.mark.parametrize("seconds", [0.0, 1e6, 999_999_999.0])
def test_an_absurd_hint_is_none(seconds):
    limit = IdleLimit()
    limit.hinted(5.0)
    limit.hinted(seconds)
    assert limit.seconds == inf


def test_what_is_recalled_holds_until_three_in_a_row_say_otherwise():
    limit = IdleLimit()
    limit.recall(Known(4.0, 6.0))
    assert limit.known == Known(4.0, 6.0)
    see(limit, 60.0, 61.0)
    assert limit.seconds == 4.0
    see(limit, 60.0)
    assert limit.seconds == 60.0


# ── simulated servers ────────────────────────────────────────────────────────────────────────


@dataclass
class Played:
    """A pool of some connections at a server, seen through its IdleLimit."""

    limit: IdleLimit = field(default_factory=IdleLimit)
    events: list[tuple[float, str, float, float]] = field(default_factory=list)
    """when, what (close, canary, due, restart), then `seconds` and `safe`"""

    def since(self, moment: float) -> list[tuple[float, str, float, float]]:
        return [event for event in self.events if event[0] >= moment]

    def known_share(self) -> float:
        """Of the time."""
        known = sum(b[0] - a[0] for a, b in pairwise(self.events) if a[2] < inf)
        return known / self.events[-1][0]


Server = Callable[[float, Random], float]
"""When a connection was opened, and chance -> how long it is kept idle."""


def play(
    server: Server, until: float, *, width: int = 2, seed: int = 0, restarts: float = inf
) -> Played:
    """`width` idle connections, each replaced when it is due or was closed, and one canary; the
    server restarts every `restarts` seconds on average."""
    rng = Random(seed)
    played, limit = (made := Played()), made.limit

    def dial(now: float) -> tuple[float, float, float]:
        opened = now + RTT
        return opened, opened + server(opened, rng), 1 - 0.1 * rng.random()

    conns = [dial(0.3 * rng.random()) for _ in range(width)]
    canary: tuple[float, float, float] | None = None
    now, restart_at = 0.0, rng.expovariate(1 / restarts) if restarts < inf else inf
    while True:
        safe = limit.safe(RTT)
        coming = [(ends, "close", i) for i, (_, ends, _) in enumerate(conns)]
        coming += [
            (max(now, o + safe * spread), "due", i) for i, (o, _, spread) in enumerate(conns)
        ]
        coming.append((restart_at, "restart", 0))
        if canary is not None:
            enough = max(now, canary[0] + limit.probe_at)
            coming += [(canary[1], "canary", 0), (enough, "survivor", 0)]
        now, what, i = min(coming)
        if now > until:
            return played
        if what == "close":
            limit.closed(now - conns[i][0], now)
            conns[i] = dial(now)
        elif what == "due":
            if canary is None and limit.probe_at < inf:
                canary = conns[i]
            conns[i] = dial(now)
        elif what == "restart":
            restart_at = now + rng.expovariate(1 / restarts)
            for i, (opened, _, _) in enumerate(conns):
                limit.closed(now - opened, now)
                conns[i] = dial(now)
            canary = None
        elif canary is not None:
            if what == "canary":
                limit.closed(now - canary[0], now)
            else:
                limit.survived(now - canary[0])
            canary, what = None, "canary"
        played.events.append((now, what, limit.seconds, limit.safe(RTT)))


def fixed(seconds: float) -> Server:
    return lambda opened, rng: seconds


def jittered(seconds: float) -> Server:
    return lambda opened, rng: seconds * rng.uniform(0.7, 1.3)


def changing(before: Server, after: Server, at: float) -> Server:
    return lambda opened, rng: (before if opened < at else after)(opened, rng)


# Chance is drawn by the servers: the same examples in every run, or one run in many would fail.
simulated = hypothesis_settings(max_examples=40, derandomize=True)
limits = st.floats(SHORTEST + 0.1, 3600.0)
seeds = st.integers(0, 2**32)
widths = st.sampled_from([1, 2, 4, 10])


@simulated
@given(limits, seeds, widths)
def test_a_fixed_limit_is_learned_within_three_rounds_and_kept(seconds, seed, width):
    played = play(fixed(seconds), 40 * seconds, width=width, seed=seed)
    for _, what, found, safe in played.since(3 * seconds + 2):
        assert found == pytest.approx(seconds, rel=1e-3)
        assert 0.6 * seconds <= safe < seconds
        assert what != "close", "a connection was closed under the pool"


@simulated
@given(st.floats(2.0, 600.0), seeds, widths)
def test_a_jittered_limit_ends_with_a_safe_age_below_the_lowest(seconds, seed, width):
    played = play(jittered(seconds), 60 * seconds, width=width, seed=seed)
    late = played.since(30 * seconds)
    assert late
    for _, what, _, safe in late:
        assert safe <= 0.7 * seconds
        assert what != "close"
    assert late[-1][3] >= 0.3 * seconds, "so low that it is churn"


@simulated
@given(
    st.sampled_from(
        [
            lambda opened, rng: rng.expovariate(1 / 60),
            lambda opened, rng: rng.uniform(0, 60),
            lambda opened, rng: 10 ** rng.uniform(0, 3),
        ]
    ),
    seeds,
    st.sampled_from([2, 4]),
)
def test_closes_at_random_ages_give_no_limit(server, seed, width):
    played = play(server, 6000.0, width=width, seed=seed)
    assert played.known_share() < 0.2, "by chance, and soon forgotten"


@simulated
@given(st.sampled_from([60.0, 300.0]), seeds)
def test_restarts_at_random_moments_give_no_limit(every, seed):
    """The connections of one pool have one age after each of them: it is the moments that count."""
    played = play(fixed(1e9), 100 * every, width=4, seed=seed, restarts=every)
    assert played.events[-1][2] == inf


@simulated
@given(st.floats(2.0, 30.0), seeds)
def test_restarts_do_not_hide_a_limit(seconds, seed):
    played = play(fixed(seconds), 4000.0, width=4, seed=seed, restarts=600.0)
    for _, _, found, _ in played.since(20 * seconds + 60):
        assert found <= seconds * 1.001


@simulated
@given(st.floats(1.0, 60.0), st.floats(1.5, 30.0), st.sampled_from([fixed, jittered]), seeds)
def test_a_limit_that_rose_is_found_again_by_a_bounded_number_of_canaries(low, factor, kind, seed):
    at, high = 40 * low, low * factor
    played = play(changing(kind(low), kind(high), at), at + 200 * high, seed=seed)
    risen = 0.7 * high * 0.9 if kind is jittered else 0.9 * high
    found = next(when for when, _, seconds, _ in played.since(at) if seconds >= risen)
    canaries = [event for event in played.since(at) if event[0] <= found and event[1] == "canary"]
    # three for each factor of four and those that were under way, when none is lost to chance
    assert len(canaries) <= (16 if kind is fixed else 60), len(canaries)


@simulated
@given(st.floats(1.0, 60.0), st.floats(1.5, 30.0), st.sampled_from([fixed, jittered]), seeds)
def test_a_limit_that_fell_is_learned_after_few_closes(low, factor, kind, seed):
    high = low * factor
    at = 40 * high
    played = play(changing(kind(high), kind(low), at), at + 200 * low + 3 * high, seed=seed)
    lowest = 0.7 * low if kind is jittered else low
    closes = [event for event in played.since(at) if event[1] == "close"]
    # three rounds of both, and three more where an old canary ended between them
    assert len(closes) <= 12 + (REMEMBERED if kind is jittered else 0)
    assert played.events[-1][3] < lowest * 1.001


def test_without_a_limit_nothing_is_learned():
    assert play(fixed(1e9), 1e6).events == []
