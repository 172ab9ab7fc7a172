"""Who is intercepted, and what is remembered of those who would not be."""

import pytest

from warmproxy.origin import origin
from warmproxy.policy.access import LOOPBACK, Access
from warmproxy.policy.interception import GIVES_UP, REMEMBERED, Interception, Visitor

HERE = origin("tcp", "api.example", 443)


def interception(*, falls_back: bool = True) -> Interception:
    return Interception([HERE], Access(LOOPBACK, {}), falls_back=falls_back)


def visitor(agent: bytes = b"curl", address: str = "127.0.0.1", port: int = 443) -> Visitor:
    return Visitor(address, agent, origin("tcp", "api.example", port))


@pytest.mark.parametrize(
    ("who", "taken"),
    [
        (visitor(), True),
        (visitor(address="::1"), True),
        (visitor(address="192.0.2.1"), False),
        (visitor(port=8443), False),
    ],
)
def test_only_these_clients_and_exactly_that_origin(who: Visitor, taken: bool) -> None:
    assert interception().takes(who) is taken


def test_who_refused_is_left_alone_and_nobody_else() -> None:
    """The program counts, by its address and User-Agent; what is told is told once per address."""
    known = interception()
    assert known.refused(visitor(b"node"))
    assert not known.refused(visitor(b"node"))
    assert not known.refused(visitor(b"java"))
    assert not known.takes(visitor(b"node"))
    assert not known.takes(visitor(b"java"))
    assert known.takes(visitor(b"curl"))


def test_without_a_fallback_nobody_is_left_alone() -> None:
    known = interception(falls_back=False)
    assert known.refused(visitor())
    assert known.takes(visitor())


def test_to_leave_at_once_is_a_refusal_of_those_only_who_never_asked() -> None:
    """A browser opens connections that it does not need."""
    known = interception()
    assert known.left(visitor(), GIVES_UP / 2)
    assert not known.left(visitor(), GIVES_UP)
    known.came_in(visitor())
    assert not known.left(visitor(), 0.0)
    assert known.left(visitor(b"node"), 0.0)


def test_the_memory_is_bounded() -> None:
    """The one that was noted first is forgotten first."""
    known = interception()
    for number in range(REMEMBERED + 1):
        known.refused(visitor(str(number).encode()))
    assert known.takes(visitor(b"0"))
    assert not known.takes(visitor(b"1"))
