"""The judge finds each harm in books that hold it, and none in books that do not."""

from typing import Any

import pytest

from tests.chaos.judge import Judge

Line = dict[str, Any]


def ask(number: int = 1, method: str = "GET", outcome: str = "whole", **more: Any) -> Line:
    """A line of the clients' books."""
    line = {"id": number, "method": method, "kind": "plain", "port": 80, "size": 0}
    line |= {"asked": 10.0, "ended": 11.0, "outcome": outcome, "status": 200, "token": ""}
    line |= {"details": "", "retried": False, "visit": number, "before": None, "what": ""}
    return line | more


def gone(number: int = 1, method: str = "GET", **more: Any) -> Line:
    """A request that got our 502 because its connection ended."""
    said = {"status": 502, "token": "connection_terminated", "details": "h closed"}
    return ask(number, method, "own", **(said | more))


def seen(number: int = 1, method: str = "GET", nth: int = 2, **more: Any) -> Line:
    """A try in the origin's books: answered in whole unless said otherwise."""
    line = {"k": "try", "id": number, "method": method, "port": 80, "conn": 1, "nth": nth}
    line |= {"at": 10.5, "whole": 10.5, "interim": 0, "sent": 9, "total": 9, "trick": "none"}
    return line | {"framing": "length", "end": "answered", "late": False, "wrong": False} | more


def died(number: int = 1, method: str = "GET", nth: int = 2, **more: Any) -> Line:
    """A try that the origin swallowed."""
    how = {"sent": 0, "trick": "swallow", "end": "swallow:fin"}
    return seen(number, method, nth, **(how | more))


def ended(served: int, at: float = 10.5, how: str = "idle:fin") -> Line:
    return {"k": "end", "port": 80, "conn": 7, "served": served, "at": at, "how": how}


RESTART = {"k": "restart", "port": 80, "from": 10.2, "to": 10.6}
REFUSED = {"status": 502, "token": "connection_refused"}


@pytest.mark.parametrize(
    ("asks", "origin"),
    [
        ([ask()], [seen()]),
        ([ask(retried=True)], [died(at=10.1), seen(nth=1)]),
        ([ask(retried=True)], [seen(nth=1)]),
        ([gone(method="POST")], [died(method="POST")]),
        ([gone()], [died(nth=1)]),
        ([gone(retried=True)], [died(at=10.1), died(nth=1)]),
        ([gone()], [died(interim=1)]),
        ([gone(method="PUT", size=70_000)], [died(method="PUT")]),
        ([gone()], [ended(served=0)]),
        ([gone()], [RESTART]),
        ([gone(method="PUT", size=70_000)], [ended(served=1)]),
        ([ask(outcome="own", **REFUSED), ask(2, asked=11.0, ended=12.0)], [seen(2, at=11.5)]),
        ([gone(method="POST")], [ended(served=3)]),
        ([gone(), gone(2, "POST")], [ended(served=0), ended(served=4)]),
        ([ask(outcome="truncated")], [seen(trick="cut", end="cut:reset", sent=4)]),
        ([ask(outcome="left", method="POST")], []),
        ([ask(outcome="hung", kind="tunnel")], [seen(trick="stall", end="peer", sent=0)]),
    ],
)
def test_what_the_faults_explain_is_no_harm(asks: list[Line], origin: list[Line]) -> None:
    assert Judge(asks, origin).verdict.violations == []


@pytest.mark.parametrize(
    ("says", "asks", "origin"),
    [
        ("a POST was sent twice", [ask(method="POST")], [died(method="POST"), seen(method="POST")]),
        (
            "a POST was sent twice",
            [gone(method="POST")],
            [died(method="POST"), died(method="POST", late=True)],
        ),
        ("a POST was retried", [gone(method="POST", retried=True)], [died(method="POST")]),
        ("lost, and one replay", [gone()], [died()]),
        ("lost unread, and one replay", [gone()], []),
        ("lost unread, and one replay", [gone()], [ended(served=1)]),
        ("lost unread, and one replay", [gone()], [ended(served=0, at=20.0)]),
        ("lost unread, and one replay", [gone(), gone(2)], [ended(served=0)]),
        ("failed, and no connection ended", [gone(method="POST")], []),
        ("given the answer to another", [ask(outcome="foreign")], [seen()]),
        ("sent 3 times", [ask()], [died(nth=2), died(nth=1), seen(nth=1)]),
        ("repeated after a first try on a fresh", [ask()], [died(nth=1), seen(nth=1)]),
        ("repeated on a used connection", [ask()], [died(), seen(nth=5)]),
        ("repeated after the response had begun", [ask()], [died(sent=3), seen(nth=1)]),
        ("forwarded behind an answer", [ask(outcome="behind")], [seen()]),
        ("the origin got a body that is not", [ask()], [seen(wrong=True)]),
        ("truncated, but the origin sent it whole", [ask(outcome="truncated")], [seen()]),
        ("truncated, and the origin did not", [ask(outcome="truncated")], [seen(end="peer")]),
        ("outcome short", [ask(outcome="short")], [seen(end="cut:reset")]),
        ("outcome hung", [ask(outcome="hung")], [seen()]),
        ("no answer at all", [ask(outcome="none")], []),
        (
            "failed for want of a connection",
            [ask(2, asked=5.0), ask(outcome="own", **REFUSED)],
            [seen(2, at=5.5), RESTART],
        ),
        ("answered, but the origin sent nothing", [ask()], []),
    ],
)
def test_each_harm_is_found(says: str, asks: list[Line], origin: list[Line]) -> None:
    found = Judge(asks, origin).verdict.violations
    assert any(text.startswith(says) for text in found), found
