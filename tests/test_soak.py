"""What the soak benchmark decides: how a request ended, and whether a run was flat."""

import importlib
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.e2e.harness import eventually

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The modules; they are programs and no package of ours."""
    path, there = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = ("soak_judge", "soak_daemon", "soak_pages")
        loaded = {name[5:]: importlib.import_module(f"rig.{name}") for name in names}
        yield SimpleNamespace(**loaded)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - there:
            if name.partition(".")[0] == "rig":
                del sys.modules[name]


def ask(bench, method="GET", outcome="own", token="connection_terminated", tunnel=False):
    """A request from second 10 to second 11."""
    return bench.judge.Ask(1, method, tunnel, 10.0, 11.0, outcome, token)


FRESH, USED = (False,), (True,)
DIED_USED, DIED_FRESH = (True, False, "reset"), (False, False, "reset")


@pytest.mark.parametrize(
    ("request_", "tries", "finding"),
    [
        ({"outcome": "whole"}, [FRESH], "SERVED"),
        ({"outcome": "whole"}, [DIED_USED, FRESH], "SERVED"),
        ({"outcome": "whole"}, [], "WRONG"),
        ({"outcome": "wrong"}, [FRESH], "WRONG"),
        ({"outcome": "whole", "method": "POST"}, [DIED_USED, FRESH], "TWICE"),
        ({"outcome": "whole"}, [DIED_FRESH, FRESH], "UNEXPLAINED"),
        ({"outcome": "whole"}, [(True, True, "reset"), FRESH], "UNEXPLAINED"),
        ({"outcome": "whole"}, [(True, None, "reset"), FRESH], "SERVED"),
        ({"outcome": "whole"}, [DIED_USED, DIED_USED, FRESH], "UNEXPLAINED"),
        ({}, [DIED_USED], "LOST"),
        ({}, [DIED_FRESH], "EXCUSED"),
        ({"outcome": "cut"}, [(True, None, "reset")], "EXCUSED"),
        ({"outcome": "cut"}, [(True, True)], "UNEXPLAINED"),
        ({"method": "POST"}, [DIED_USED], "EXCUSED"),
        ({"outcome": "none", "tunnel": True}, [DIED_FRESH], "EXCUSED"),
        ({"token": "connection_refused"}, [], "UNEXPLAINED"),
        ({"outcome": "hung", "token": ""}, [FRESH], "UNEXPLAINED"),
    ],
)
def test_how_a_request_ended(bench, request_, tries, finding):
    """Whatever the origin did, a POST comes once, an idempotent request is repeated where the race
    killed it and nowhere else, and every failure has a reason."""
    seen = [bench.judge.Try(*one) for one in tries]
    found, _ = bench.judge.judge(ask(bench, **request_), seen, bench.judge.Past())
    assert found == getattr(bench.judge, finding)


@pytest.mark.parametrize(
    ("method", "at", "used", "finding"),
    [
        ("POST", 10.5, True, "EXCUSED"),
        ("POST", 10.5, False, "EXCUSED"),
        ("POST", 9.0, True, "UNEXPLAINED"),
        ("POST", 12.0, True, "UNEXPLAINED"),
        ("GET", 10.5, False, "EXCUSED"),
        ("GET", 10.5, True, "LOST"),
    ],
)
def test_a_request_that_nobody_read(bench, method, at, used, finding):
    """It needs a connection that was ended while it was on its way, and for a GET one that never
    carried a request: on another it would have been repeated."""
    past = bench.judge.Past(ends=[(at, used)])
    assert bench.judge.judge(ask(bench, method), [], past)[0] == getattr(bench.judge, finding)


@pytest.mark.parametrize(
    ("outage", "finding"),
    [
        ((5.0, float("inf")), "EXCUSED"),
        ((10.9, 20.0), "EXCUSED"),
        ((5.0, 9.5), "EXCUSED"),
        ((5.0, 8.0), "UNEXPLAINED"),
        ((11.5, 20.0), "UNEXPLAINED"),
    ],
)
def test_an_origin_that_was_down(bench, outage, finding):
    """It is a reason while it lasts and for a moment after it, and for nothing before it."""
    past = bench.judge.Past(outages=[outage])
    found, _ = bench.judge.judge(ask(bench, token="connection_refused"), [], past)
    assert found == getattr(bench.judge, finding)


def test_what_is_long_past_is_forgotten(bench):
    """Only what no request of now can have met goes."""
    past = bench.judge.Past([(1.0, True), (9.0, True)], [(1.0, 2.0), (1.0, float("inf"))])
    past.forget(5.0)
    assert (past.ends, past.outages) == ([(9.0, True)], [(1.0, float("inf"))])


def test_growth_is_that_of_the_line(bench):
    """One sample that is out of line is no growth, and neither are two samples."""
    assert bench.judge.growth([(t, 5.0 + 2.0 * t) for t in range(11)]) == pytest.approx(20.0)
    assert bench.judge.growth((t, 90.0 if t == 5 else 5.0) for t in range(11)) == pytest.approx(0)
    assert bench.judge.growth([(0.0, 1.0), (1.0, 100.0)]) == 0.0


def run(bench, **more):
    """An hour without a flaw but what is given; `rss` and the like: by the share of the time."""
    rss, fds = more.pop("rss", lambda at: 40 << 20), more.pop("descriptors", lambda at: 900)
    left = more.pop("left", lambda at: 20)
    samples = [
        bench.judge.Sample(at, rss(at), fds(at), left(at), 0, 1.0, 0.001, {})
        for at in range(10, 3601, 10)
    ]
    flawless = {"lags": [0.001] * 3600, "findings": {}, "stayed": 0}
    flawless |= {"reloads": (5, 5), "raised": 0}
    return bench.judge.Run(3600.0, samples, **(flawless | more))


def missed(bench, **more) -> list[str]:
    return [bar.what for bar in bench.judge.bars(run(bench, **more)) if not bar.met]


def test_a_flat_hour(bench):
    """Nothing is missed, whatever the warm-up was like, and 1 % of the lags may be high."""
    assert missed(bench) == []
    assert missed(bench, rss=lambda at: (20 if at < 360 else 40) << 20) == []
    assert missed(bench, lags=[0.5] * 35 + [0.001] * 3565) == []


@pytest.mark.parametrize(
    ("flaw", "line"),
    [
        ({"rss": lambda at: (40 << 20) + 700 * at}, "RSS"),
        ({"descriptors": lambda at: 900 + at // 150}, "descriptors"),
        ({"left": lambda at: 20 + at // 500}, "those beside"),
        ({"stayed": 1}, "in CLOSE_WAIT"),
        ({"lags": [0.5] * 40 + [0.001] * 3560}, "loop lag"),
        ({"lags": []}, "loop lag"),
        ({"findings": {"wrong answers": 1}}, "wrong answers"),
        ({"findings": {"POSTs that came twice": 1}}, "POSTs"),
        ({"reloads": (5, 4)}, "reloads"),
        ({"raised": 1}, "tracebacks"),
    ],
)
def test_each_flaw_misses_its_bar(bench, flaw, line):
    """And no other one."""
    (what,) = missed(bench, **flaw)
    assert what.startswith(line)


def test_a_run_without_samples_has_no_verdict(bench):
    """It meets nothing."""
    empty = bench.judge.Run(60.0, [], [], {}, 0, (0, 0), 0)
    assert [bar.met for bar in bench.judge.bars(empty)] == [False]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sockets_in_close_wait_are_found(bench):
    """One whose other side has closed is found by its descriptor, and only until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with ours:
            link = os.readlink(f"/proc/self/fd/{ours.fileno()}")
            assert not bench.daemon.close_waits([link])
            theirs.close()
            eventually(lambda: bench.daemon.close_waits([link]) == {link[8:-1]})
            assert not bench.daemon.close_waits(["/dev/null"])
        assert not bench.daemon.close_waits([link])


def test_acquires_are_counted_by_origin(bench):
    """All pools of one origin together, and nothing of another metric."""
    text = """warmproxy_acquires_total{origin="http://two.soak.test:80",outcome="fresh"} 3.0
warmproxy_acquires_total{origin="tcp://two.soak.test:80",outcome="fresh"} 4.0
warmproxy_acquires_total{origin="other",outcome="fresh"} 5.0
warmproxy_dials_total{origin="http://two.soak.test:80",outcome="fresh"} 6.0
"""
    assert bench.daemon.acquires(text) == {("two", "fresh"): 7}


def test_origins_are_told_one_by_one(bench):
    """Hits are a share where the metrics name the origin, and a dash where not."""
    origins = [
        bench.judge.Origin("idle 2 s", 6, {"served": 8, "excused": 1}, 5, 3, 4),
        bench.judge.Origin("not configured", 0, {"served": 2}, 1, 0, 0),
    ]
    told = bench.pages.origin_table(run(bench, origins=origins)).splitlines()
    assert told[2:] == [
        "| idle 2 s | 6 | 9 | 8 | 1 | 5 | 75.00 % |",
        "| not configured | learned | 2 | 2 | 0 | 1 | - |",
    ]
