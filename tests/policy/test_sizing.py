"""What demand says about how many connections should be idle: floats and ints, no clock."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from warmproxy.policy.sizing import CHURN, FEW, PAUSES, PERIOD, Auto, Fixed, Learned

DIAL = 0.05


def burst(sizing: Auto, at: float, count: int, lives: float = inf) -> None:
    """So many requests at one moment; all are answered before anything else happens."""
    for active in range(count):
        sizing.target_idle(at, active, DIAL, lives)
        sizing.asked(at, active)


def target(sizing: Auto, at: float, active: int = 0, lives: float = inf) -> int:
    return sizing.target_idle(at, active, DIAL, lives)


def test_before_the_first_request_there_is_the_least():
    assert target(Auto(2, 10), 0.0) == 2
    assert Auto(2, 10).changes_at(0.0) == inf


def test_a_burst_is_provided_for_from_then_on():
    sizing = Auto(1, 20)
    burst(sizing, 10.0, 8)
    assert target(sizing, 10.5) == 8


def test_what_is_in_use_is_not_asked_for_twice():
    sizing = Auto(1, 20)
    burst(sizing, 10.0, 9)
    assert target(sizing, 10.0, active=9) == 3, "a root for chance: demand was never higher"
    assert target(sizing, 10.0, active=5) == 7


def test_a_stream_needs_what_comes_within_the_time_of_a_dial():
    sizing = Auto(0, 20)
    for i in range(1000):
        now = i * 0.02
        sizing.target_idle(now, 5, DIAL, inf)
        sizing.asked(now, 5)  # one goes, one comes
    assert target(sizing, 20.0, active=5) == 1


def test_tunnels_need_one_for_each_that_begins_within_the_time_of_a_dial():
    sizing = Auto(0, 20, reuse=False)
    for i in range(1000):
        sizing.target_idle(i * 0.02, i, DIAL, inf)
        sizing.asked(i * 0.02, i)
    assert 3 <= target(sizing, 20.0, active=1000) <= 5


def test_the_most_is_never_exceeded():
    sizing = Auto(1, 6)
    burst(sizing, 1.0, 50)
    assert target(sizing, 1.1) == 6


def test_demand_is_forgotten_after_two_periods_and_not_after_one():
    sizing = Auto(1, 20)
    burst(sizing, 0.0, 8)
    for second in range(1, int(2 * PERIOD) + 3):
        sizing.asked(float(second), 0)
        assert target(sizing, second) == (8 if second < 2 * PERIOD else 1)


def test_a_rhythm_is_expected_and_nothing_is_held_between_where_that_would_be_churn():
    sizing, lives = Auto(0, 20), 4.5
    for minute in range(8):
        burst(sizing, 60.0 * minute, 5, lives)
        for after in (1.5, 30.0):
            target(sizing, 60.0 * minute + after, lives=lives)
    last = 60.0 * 7
    assert target(sizing, last + 30.0, lives=lives) == 0
    wakes = sizing.changes_at(last + 30.0)
    assert last + 50.0 < wakes < last + 60.0 - 2 * DIAL, "in time for the next one"
    assert target(sizing, wakes, lives=lives) == 5
    assert target(sizing, last + 60.0, lives=lives) == 5
    late = sizing.changes_at(last + 60.0)
    assert target(sizing, late, lives=lives) == 0, "it did not come"


def test_short_lived_connections_are_held_for_as_many_dials_as_a_hit_is_worth():
    sizing, lives = Auto(0, 20), 4.5
    burst(sizing, 0.0, 3, lives)
    assert target(sizing, CHURN * lives - 1.0, lives=lives) == 3
    assert target(sizing, CHURN * lives + 1.0, lives=lives) == 0


def test_pauses_without_a_pattern_are_not_waited_for_where_connections_are_short_lived():
    sizing, lives, now = Auto(0, 20), 2.0, 0.0
    for pause in (100.0, 700.0, 1500.0, 300.0, 2500.0, 5000.0):
        now += pause
        burst(sizing, now, 2, lives)
    held = [target(sizing, now + after, lives=lives) for after in range(2, 6000, 2)]
    assert sum(1 for n in held if n) < 200


def test_the_least_is_held_at_any_time():
    sizing = Auto(2, 20)
    burst(sizing, 0.0, 5, 2.0)
    assert target(sizing, 10_000.0, lives=2.0) == 2


def test_a_learned_origin_is_sized_by_what_it_was_learned_from():
    sizing = Learned(3, 60.0, 300.0, Auto(1, 4))
    for now, active in ((0.0, 0), (0.0, 1), (1.0, 0)):
        sizing.asked(now, active)
    assert sizing.target_idle(1.0, 0, DIAL, inf) == 1
    assert sizing.target_idle(301.0, 0, DIAL, inf) == 0


def test_a_fixed_number_is_what_it_is():
    assert Fixed(3).target_idle(5.0, 100, DIAL, 1.0) == 3


requests = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 0.2), st.floats(0, 30), st.floats(0, 5000)), st.integers(0, 30)
    ),
    max_size=60,
)


@given(
    requests,
    st.integers(0, 5),
    st.integers(5, 12),
    st.booleans(),
    st.sampled_from([0.0, 0.02, 0.2]),
    st.sampled_from([0.3, 4.5, 60.0, inf]),
)
def test_whatever_comes_the_answer_is_within_its_bounds_and_holds_until_it_says(
    arrivals, least, most, reuse, dial, lives
):
    """Between warm_min and warm_max; the next change lies ahead, and before it nothing changes."""
    sizing, now = Auto(least, most, reuse=reuse), 0.0
    for pause, active in arrivals:
        now += pause
        sizing.asked(now, active)
        wanted = sizing.target_idle(now, active, dial, lives)
        assert least <= wanted <= most
        until = sizing.changes_at(now)
        assert until > now
        before = min((now + until) / 2, now + 1e6) if until < inf else now + 1e6
        assert sizing.target_idle(before, active, dial, lives) == wanted
    assert len(sizing._pauses) <= PAUSES
    assert FEW < PAUSES


def test_what_was_seen_is_inherited_by_one_of_the_same_kind():
    """A learned origin stays learned; one of another kind begins anew."""
    old, new = (Learned(2, 10.0, 300.0, Auto(1, most)) for most in (5, 3))
    for moment in (0.0, 1.0):
        old.asked(moment, 0)
    new.inherit(old)
    assert new.target_idle(1.0, 0, DIAL, inf) == old.target_idle(1.0, 0, DIAL, inf) == 1
    never = Learned(0, 10.0, 300.0, Auto(1, 3))
    never.inherit(old)
    assert never.target_idle(1.0, 0, DIAL, inf) == 0
    for other in (Fixed(4), Auto(1, 9, reuse=False)):
        fresh = Auto(2, 9)
        fresh.inherit(other)
        assert target(fresh, 1.0) == 2
    fixed = Fixed(3)
    fixed.inherit(old)
    assert fixed.target_idle(1.0, 0, DIAL, inf) == 3


def test_no_answer_is_higher_than_the_most():
    """A pool with as many idle connections does not ask for the target at each request."""
    for sizing in (Fixed(3), Auto(2, 7), Learned(1, 10.0, 60.0, Auto(1, 4))):
        for step in range(200):
            now = step * 0.01
            sizing.asked(now, step % 20)
            assert sizing.target_idle(now, step % 20, 0.05, 60.0) <= sizing.most
    wider = Auto(2, 9)
    wider.inherit(Auto(2, 5))
    assert wider.most == 9, "it comes from the settings"
