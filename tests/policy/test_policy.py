"""Pure judgement: numbers in, numbers out."""

from math import inf

import pytest

from warmproxy.errors import CredentialsRequired, RequestDenied
from warmproxy.observe import CloseReason
from warmproxy.policy import retire
from warmproxy.policy.access import Access, is_loopback
from warmproxy.policy.backoff import Backoff, DialBudget
from warmproxy.policy.priming import IN_A_ROW, LEFT_OUT, Priming
from warmproxy.policy.retry import Prefer, is_idempotent, may_repeat, preference
from warmproxy.policy.sizing import Fixed, Learned


def test_full_jitter_reaches_from_nothing_to_the_doubled_ceiling():
    for rng, want in ((lambda: 0.0, [0, 0, 0]), (lambda: 0.5, [0.05, 0.1, 0.2])):
        backoff, now, pauses = Backoff(10.0, rng), 1.0, []
        for _ in want:
            backoff.failed(now)
            pauses.append(round(backoff.not_before - now, 6))
            now = backoff.not_before
        assert pauses == want


def test_a_success_forgets_the_failures_and_says_how_many_there_were():
    backoff = Backoff(10.0, lambda: 1.0)
    backoff.failed(0.0)
    backoff.failed(5.0)
    assert backoff.succeeded() == 2
    assert (backoff.failures, backoff.not_before) == (0, 0.0)


def test_the_budget_gives_a_burst_then_its_rate():
    budget = DialBudget(rate=2.0, burst=4.0)
    for _ in range(4):
        budget.charge(0.0)
    assert budget.available(0.0) == 0
    assert budget.next_at(0.0) == 0.5
    assert budget.available(0.5) == 1
    assert budget.available(60.0) == 4, "a long quiet saves up one burst and no more"


def test_what_clients_took_pays_for_its_successors():
    """However fast they come; and saves up no more than a burst."""
    budget = DialBudget(rate=1.0, burst=2.0, earns=True)
    for _ in range(1000):
        budget.charge(0.0)
        budget.earn(0.0)
    assert budget.available(0.0) == 2
    for _ in range(5):
        budget.earn(0.0)
    assert budget.available(0.0) == 2
    named = DialBudget(rate=1.0, burst=2.0)
    for _ in range(2):
        named.charge(0.0)
        named.earn(0.0)
    assert named.available(0.0) == 0, "a number that was given is all there is"


def test_forced_dials_are_charged_but_the_debt_has_a_bound():
    budget = DialBudget(rate=1.0, burst=2.0)
    for _ in range(100):
        budget.charge(0.0)
    assert budget.next_at(0.0) == 3.0


def test_the_nearer_of_age_and_idle_limit_names_the_reason():
    assert retire.due(100.0, 50.0, 1.0, 10.0) == retire.Due(60.0, CloseReason.IDLE_LIMIT)
    assert retire.due(100.0, 95.0, 1.0, 10.0) == retire.Due(100.0, CloseReason.MAX_AGE)


def test_limits_are_spread_over_their_last_tenth_and_an_age_of_zero_is_for_ever():
    assert retire.spread(lambda: 0.0) == 1.0
    assert retire.spread(lambda: 1.0) == 0.9
    assert retire.ends(0.0, 0.9, 100.0) == 90.0
    assert retire.ends(0.0, 0.9, 0.0) == inf
    assert retire.due(90.0, 0.0, 0.9, 50.0).at == 45.0


def test_only_a_repeatable_request_that_lost_the_idle_race_goes_twice():
    race = {"idempotent": True, "was_used": True, "answered": False, "replayable": True, "tries": 1}
    assert may_repeat(**race)
    for change in (
        {"idempotent": False},
        {"was_used": False},
        {"answered": True},
        {"replayable": False},
        {"tries": 2},
    ):
        assert not may_repeat(**{**race, **change})


def test_an_idempotency_key_counts_where_the_upstream_is_said_to_honour_it():
    assert is_idempotent(b"POST", named=True)
    assert not is_idempotent(b"POST", named=False)
    assert is_idempotent(b"PUT", named=False)


def test_methods_in_lower_case_are_other_methods():
    assert preference(b"GET") is Prefer.USED
    assert preference(b"get") is Prefer.FRESH


def test_an_origin_is_learned_after_k_requests_in_the_window_and_forgotten_in_the_quiet():
    sizing = Learned(3, 60.0, 300.0, Fixed(2))
    for now in (0.0, 50.0, 100.0):
        sizing.asked(now, 0)
    assert sizing.target_idle(100.0, 0, 0.0, inf) == 0, "three, but not within a minute"
    sizing.asked(109.0, 0)
    assert sizing.target_idle(109.0, 0, 0.0, inf) == 2
    assert sizing.changes_at(109.0) == 409.0
    assert sizing.target_idle(408.9, 0, 0.0, inf) == 2
    assert sizing.target_idle(409.0, 0, 0.0, inf) == 0


def test_learning_can_be_switched_off():
    sizing = Learned(0, 60.0, 300.0, Fixed(2))
    for _ in range(10):
        sizing.asked(1.0, 0)
    assert sizing.target_idle(1.0, 0, 0.0, inf) == 0


def test_nothing_said_means_loopback_only():
    access = Access((), {})
    for address in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        access.check_client(address)
    for address in ("10.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1"):
        with pytest.raises(RequestDenied):
            access.check_client(address)


def test_loopback_is_known_in_each_way_it_is_written():
    for address in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        assert is_loopback(address)
    for address in ("10.0.0.1", "::2", "128.0.0.1", "::ffff:10.0.0.1"):
        assert not is_loopback(address)


def test_without_credentials_none_are_asked_for():
    access = Access(("10.0.0.0/8",), {})
    for value in (None, b"Basic dTpw"):
        access.check_credentials(value)


def test_networks_admit_their_clients_only():
    access = Access(("10.0.0.0/8",), {})
    access.check_client("10.200.0.1")
    with pytest.raises(RequestDenied):
        access.check_client("127.0.0.1")


@pytest.mark.parametrize(
    "value",
    [None, b"", b"Basic", b"Basic !!!", b"Bearer dXNlcjpzZWNyZXQ=", b"Basic dXNlcjpvdGhlcg=="],
)
def test_credentials_must_be_ours(value):
    access = Access((), {"user": "secret"})
    access.check_client("192.0.2.1")
    access.check_credentials(b"basic dXNlcjpzZWNyZXQ=")
    with pytest.raises(CredentialsRequired):
        access.check_credentials(value)


def test_priming_is_given_up_after_losses_in_a_row_and_tried_again_on_one_connection():
    priming = Priming()
    for _ in range(2):
        assert [priming.lost(1.0) for _ in range(IN_A_ROW - 1)] == [False] * (IN_A_ROW - 1)
        priming.survived()
    for _ in range(IN_A_ROW - 1):
        priming.lost(2.0)
    assert priming.wanted(2.0)
    assert priming.lost(2.0), "that is news"
    assert not priming.wanted(2.0)
    assert not priming.lost(3.0), "one that was under way is none"
    assert priming.wanted(2.0 + LEFT_OUT)
    assert priming.lost(2.0 + LEFT_OUT), "one more is enough"
