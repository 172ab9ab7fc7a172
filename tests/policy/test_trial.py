"""Whether idle connections keep an origin from answering: evidence in, verdict out."""

from itertools import count

import pytest

from warmproxy.policy.guard import Guard, objection
from warmproxy.policy.trial import AT_ONCE, OVERDUE, PAUSE, Trial

RTT = 0.01


def kept(trial: Trial, now: float, waited: float, older: int = 2) -> bool:
    """A request that hangs is found after `waited` seconds, the older ones are closed, and it is
    answered at once; whether the origin is found guilty."""
    assert trial.tries(waited, older, RTT, now)
    return trial.answered(waited + 0.005, 0, now + 0.005)


def convicted() -> Trial:
    trial = Trial()
    assert not kept(trial, 0.0, 1.5)
    assert kept(trial, 10.0, 2.5)
    return trial


def test_nothing_is_closed_for_a_request_that_is_not_overdue_or_has_no_older_ones():
    trial = Trial()
    assert not trial.tries(OVERDUE - 0.1, 3, RTT, 0.0)
    assert not trial.tries(30.0, 0, RTT, 0.0)
    assert trial.tries(OVERDUE, 1, RTT, 0.0)


def test_two_requests_that_are_freed_after_waits_that_differ_convict():
    trial = Trial()
    assert not kept(trial, 0.0, 1.5)
    assert not trial.tries(1.6, 2, RTT, 10.0), "so long a wait would tell nothing new"
    assert kept(trial, 10.4, 2.1)


def test_an_origin_whose_answer_always_takes_as_long_is_never_convicted():
    """Whatever the moment at which the sweep finds the request, and even where all answers come
    just after a try."""
    for tenths, phase in ((t, p) for t in range(10, 40) for p in range(10)):
        trial, takes, tries = Trial(), tenths / 10 + 0.003, 0
        for now in range(0, 1000, 10):
            moments = (n + (phase + now * 0.37) % 10 / 10 for n in count())
            for waited in moments:
                if waited >= takes:
                    break
                tries += trial.tries(waited, 3, RTT, now + waited)
            assert not trial.answered(takes, 3, now + takes)
        assert tries <= 2


def test_a_slow_start_and_quick_answers_then_clear_the_origin():
    trial = Trial()
    assert not kept(trial, 0.0, 1.2)
    assert not trial.answered(0.02, 2, 10.0)
    assert not trial.tries(30.0, 2, RTT, 100.0)
    assert not kept(trial, 200.0, 3.0, older=3), "more of them may still do harm"


def test_what_was_answered_beside_some_says_nothing_of_more():
    trial = Trial()
    trial.answered(0.02, 2, 0.0)
    assert trial.harmless == 2
    assert not trial.tries(30.0, 2, RTT, 50.0)
    assert trial.tries(30.0, 3, RTT, 60.0)


def test_a_slow_answer_beside_idle_ones_is_no_proof():
    trial = Trial()
    trial.answered(OVERDUE, 2, 0.0)
    assert trial.harmless == 0


def test_a_request_is_overdue_by_what_the_origin_takes_usually():
    trial = Trial()
    trial.answered(3.0, 0, 0.0)
    assert not trial.tries(5.9, 2, RTT, 10.0)
    assert trial.tries(6.0, 2, RTT, 10.0)


def test_a_slow_answer_is_forgotten_over_quick_ones():
    trial = Trial()
    trial.answered(3.0, 0, 0.0)
    for now in range(20):
        trial.answered(0.1, 0, float(now))
    assert trial.tries(1.0, 2, RTT, 30.0)


def test_a_try_that_frees_nobody_is_not_repeated_soon_and_each_time_later():
    trial, now = Trial(), 0.0
    for n in range(4):
        assert trial.tries(1.5, 2, RTT, now)
        trial.answered(2.2, 0, now + 0.7)  # later than at once
        concluded = now + 0.7
        assert not trial.tries(30.0, 2, RTT, concluded + PAUSE * 2**n - 1)
        now = concluded + PAUSE * 2**n + 1
        for _ in range(20):  # what it takes usually is quick again
            trial.answered(0.1, 0, now)


def test_a_try_that_frees_nobody_takes_back_what_an_earlier_one_said():
    trial = Trial()
    assert not kept(trial, 0.0, 1.5)
    assert trial.tries(2.5, 2, RTT, 10.0)
    trial.answered(3.2, 0, 10.7)
    for _ in range(20):
        trial.answered(0.1, 0, 20.0)
    assert not kept(trial, 10.7 + PAUSE, 3.0)


def test_a_request_that_had_hardly_waited_was_not_freed():
    trial = Trial()
    kept(trial, 0.0, 1.5)
    assert trial.tries(2.5, 2, RTT, 10.0)
    assert not trial.answered(AT_ONCE / 2, 0, 10.01)
    assert trial.answered(2.55, 0, 10.05)


def test_any_of_the_requests_that_a_try_frees_may_convict():
    trial = Trial()
    kept(trial, 0.0, 1.5)
    assert trial.tries(2.1, 2, RTT, 10.0)
    assert not trial.answered(1.6, 0, 10.01)
    assert trial.answered(2.11, 0, 10.01)


def test_a_long_way_is_given_its_round_trips():
    trial = Trial()
    assert trial.tries(1.5, 2, 0.3, 0.0)
    assert not trial.answered(2.5, 0, 1.0)
    assert trial.tries(2.6 + AT_ONCE, 2, 0.3, 10.0)
    assert trial.answered(3.6 + AT_ONCE, 0, 11.0)


def test_after_a_conviction_one_try_is_enough():
    assert kept(convicted(), 700.0, 1.1)


def test_a_convict_that_answers_beside_as_many_is_cleared():
    trial = convicted()
    trial.answered(0.01, 1, 700.0)
    assert kept(trial, 710.0, 1.1), "fewer than did the harm are no proof"
    trial.answered(0.01, 2, 1400.0)
    assert not kept(trial, 1410.0, 1.1, older=3)


def test_what_an_idle_connection_is_answered_is_an_objection_or_its_limit():
    assert objection(503) == "it answered 503 to an idle connection"
    assert objection(429)
    assert objection(500)
    for status in (None, 408, 400, 200, 502):
        assert objection(status) is None


def test_the_guard_allows_none_then_one_then_all():
    guard = Guard()
    assert guard.allowed(5, 0.0) == 5
    assert guard.harmed("why", 0.0)
    assert not guard.harmed("why", 599.0)
    assert guard.allowed(5, 599.0) == 0
    assert not guard.proved(599.0), "nothing can be proved while there are none"
    assert guard.allowed(5, 600.0) == 1
    assert guard.allowed(0, 600.0) == 0
    assert guard.proved(600.0)
    assert not guard.proved(601.0)
    assert guard.allowed(5, 601.0) == 5


@pytest.mark.parametrize(
    ("after", "seconds"), [(1.0, 1200.0), (23 * 3600.0, 1200.0), (25 * 3600.0, 600.0)]
)
def test_a_day_without_harm_is_forgiven(after, seconds):
    guard = Guard()
    guard.harmed("why", 0.0)
    again = guard.until + after
    guard.harmed("why", again)
    assert guard.until - again == seconds


def test_an_origin_is_never_left_alone_for_more_than_six_hours():
    guard, now = Guard(), 0.0
    for _ in range(12):
        guard.harmed("why", now)
        seconds, now = guard.until - now, guard.until
    assert seconds == 6 * 3600
