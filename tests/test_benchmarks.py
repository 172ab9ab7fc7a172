"""The parts of the benchmarks that judge and tell: figures in, verdicts and tables out."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = ("field.figures", "field.load", "growth", "instructions", "intercept")
NAMES += ("rig.programs", "rig.report", "rig.rounds", "rig.turns")


@pytest.fixture(scope="module")
def bench():
    """The modules by the last part of their names; they are programs and no package of ours."""
    path, there = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        loaded = {name.rpartition(".")[2]: importlib.import_module(name) for name in NAMES}
        yield SimpleNamespace(**loaded)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - there:
            if name.partition(".")[0] in ("field", "rig", "growth", "instructions", "intercept"):
                del sys.modules[name]


WRK = """Running 2s test @ http://127.0.0.1:22000
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.95ms    1.02ms  22.34ms   90.04%
    Req/Sec    16.72k     2.11k   20.01k    70.00%
  33281 requests in 2.00s, 22.28MB read
{more}Requests/sec:  16633.80
Transfer/sec:     11.14MB
"""


@pytest.mark.parametrize(
    ("more", "refused", "broken"),
    [
        ("", 0, 0),
        ("  Non-2xx or 3xx responses: 7\n", 7, 0),
        ("  Socket errors: connect 1, read 20, write 0, timeout 3\n", 0, 24),
    ],
)
def test_what_wrk_tells(bench, more, refused, broken):
    """Requests, seconds, and both kinds of failure are read."""
    told = bench.load.parse_wrk(WRK.format(more=more))
    assert told == bench.load.Loaded(33281, 2.0, refused, broken)


def test_wrk_that_tells_nothing(bench):
    """A usage message is no result of zero requests."""
    with pytest.raises(ValueError, match="no result"):
        bench.load.parse_wrk("Usage: wrk <options> <url>")
    minutes = WRK.format(more="").replace("2.00s,", "1.50m,")
    assert bench.load.parse_wrk(minutes).seconds == 90


def test_a_verdict_by_ratio(bench):
    """A bar is on the ratio of the medians; its goal, its least and beyond are told apart."""
    figures = bench.figures
    bar = figures.Bar("cpu 32", "squid", 0.65, 0.6)
    for mine, says in (([9, 1, 6], "goal met"), ([6.3], "met"), ([6.6], "**missed**")):
        found = figures.medians({"cpu 32": {"warmproxy": mine, "squid": [30, 10, 1]}})
        assert figures.verdict(bar, figures.value_of(bar, found, ["squid"])) == says


def test_a_bar_against_every_peer(bench):
    """It is the best peer that counts, not our other trees, and a missed goal is no missed bar."""
    figures = bench.figures
    found = {"1 MiB": {"warmproxy": 0.5, "tree": 0.1, "haproxy": 0.6, "nginx": 0.4}}
    bar = figures.Bar("1 MiB", figures.ANY, None, 1.0)
    value = figures.value_of(bar, found, ["haproxy", "nginx"])
    assert value == pytest.approx(1.25)
    assert figures.verdict(bar, value) == "goal missed"


def test_a_peer_that_is_not_there(bench):
    """Its bars are told as not measured, and fail nothing."""
    figures = bench.figures
    found = {"CONNECT": {"warmproxy": 0.5}}
    bar = figures.Bar("CONNECT", "envoy", 0.6)
    assert figures.verdict(bar, figures.value_of(bar, found, ["squid"])) == "not measured"
    rows = figures.bar_rows(found, ["squid"])
    assert [row[0] for row in rows] == ["CONNECT, s/GiB"] * 2, "no row for what was not asked"


def test_bars_without_ratio(bench):
    """They are in units of their own."""
    rows = bench.figures.bar_rows({"empty": {"warmproxy": 44.0}}, [])
    assert rows == [["empty, MiB", "absolute", "44.0 MiB", "45", "35", "met"]]


def test_trees_are_compared_round_by_round(bench):
    """What made a round slow for both does not show in the ratio."""
    rounds = {"cpu 32": {"warmproxy": [10.0, 20.0, 40.0], "old": [11.0, 24.0, 44.0]}}
    (row,) = bench.figures.tree_rows(rounds, ["old"])
    assert row[-2:] == ["1.100", "1.100-1.200"]


def test_table_of_the_field(bench):
    """A proxy that failed at something has a dash there; what nobody was asked has no column."""
    found = {"cpu 1": {"warmproxy": 50.04, "squid": 90.0}, "CONNECT": {"squid": 1.0}, "start": {}}
    heads, rows = bench.figures.field_rows(found, ["warmproxy", "squid"])
    assert heads == ["proxy", "1 conn, µs/req", "CONNECT, s/GiB"]
    assert rows == [["warmproxy", "50.0", "-"], ["squid", "90.0", "1.00"]]
    assert bench.report.numbers(heads, rows[:1]).splitlines()[1:] == [
        "|---|--:|--:|",
        "| warmproxy | 50.0 | - |",
    ]


def test_a_block_is_written_between_its_marks(bench, tmp_path):
    """Twice gives one block, and what is around it stays."""
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- x.py: begin -->\n\nold\n\n<!-- x.py: end -->\n\nafter\n")
    for text in ("new", "newer"):
        bench.report.write_page(page, "x.py", text)
    assert page.read_text() == (
        "before\n\n<!-- x.py: begin -->\n\nnewer\n\n<!-- x.py: end -->\n\nafter\n"
    )


def test_counts_of_two_processes(bench):
    """The count of a name is found by the processes that it names."""
    told = "counted a, b: 12 13\n==12== \n==12== I   refs:      1,000\n==13== I refs: 2,500\n"
    assert bench.instructions.parse(told) == {"a, b": (1000, 2500)}


def test_counts_that_rise(bench):
    """More than the tolerance is told and named; less, and falling, is not."""
    before = {"one": 1000, "two": 1000, "three": 1000}
    now = {"one": 1051, "two": 1049, "three": 900, "four": 5}
    rows, risen = bench.instructions.compare(before, now)
    assert risen == ["one"]
    verdicts = {row[0]: row[-1] for row in rows}
    assert verdicts == {
        "one": "**rose**",
        "two": "same",
        "three": "fell: --update",
        "four": "new: --update",
    }


@pytest.mark.parametrize(
    ("limit", "steps"),
    [(100_000, [0, 1000, 5000, 10_000]), (20_000, [0, 1000, 5000, 9800]), (1024, [0, 312])],
)
def test_steps_that_fit_the_descriptors(bench, limit, steps):
    """The last step shrinks to what a process may open, and none is taken twice."""
    assert bench.growth.steps_that_fit(bench.growth.CLIENTS, limit) == steps


def test_another_build_of_python(bench):
    """Where code that is not ours takes more or fewer instructions, ours is not to blame."""
    same = bench.instructions.is_same_build
    assert same({"yardstick": 1000}, {"yardstick": 1015})
    assert not same({"yardstick": 1000}, {"yardstick": 1050})
    assert not same({"yardstick": 1000}, {"yardstick": 900})


def test_a_stall_of_the_loop_counts_for_all_that_comes_in_it(bench, tmp_path: Path) -> None:
    """One of 50 ms in a second is nothing to the median, and is seen at the 99th percentile."""
    rows = [(i / 1000, 0.0001) for i in range(950)] + [(1.0, 0.050)]
    assert bench.turns.late(rows, 0.5) == 0.0001
    assert bench.turns.late(rows, 0.99) == pytest.approx(0.040)
    assert bench.turns.late(rows, 1.0) == 0.050
    file = tmp_path / "turns"
    file.write_text("".join(f"{when} {held}\n" for when, held in rows))
    assert bench.turns.read(file, 0.5)[-1] == (0.5, 0.0001)


def test_what_a_browser_tells(bench):
    """DevTools' times, in ms after one in seconds, become those from the connect on."""
    timing = {"requestTime": 100.0, "connectStart": 5.0, "sslStart": 6.0, "sslEnd": 15.0}
    response = {
        "status": 200,
        "headers": {"X-Connected": "98.5", "x-secured": "99.0"},
        "timing": {**timing, "receiveHeadersStart": 57.0},
    }
    answer = bench.programs.answer_of(bench.programs.stamps_of(response))
    assert answer.started == pytest.approx(100.005)
    assert (answer.shaken, answer.seconds) == (pytest.approx(0.010), pytest.approx(0.052))
    assert (answer.connected, answer.secured) == (98.5, 99.0)
    with pytest.raises(OSError, match="502"):
        bench.programs.stamps_of({**response, "status": 502})


def test_stamps_of_a_client_without_a_clock(bench):
    """curl's are seconds after its start; an answer that is not the origin's has no stamps."""
    told = {"started": 0.001, "shaken": 0.011, "answered": 0.052, "connected": "9", "secured": "9"}
    answer = bench.programs.answer_of(told, 10.0)
    assert answer.started == pytest.approx(10.001)
    assert answer.seconds == pytest.approx(0.051)
    with pytest.raises(ValueError, match="float"):
        bench.programs.answer_of({**told, "connected": ""}, 10.0)


@pytest.mark.parametrize(
    ("beside", "handshake", "no_distance", "opened_before", "failed", "passes"),
    [
        (1.05, 0.25, 0.2, 100, [], True),
        (1.06, 0.25, 0.2, 100, [], False),
        (1.04, 1.26, 0.2, 100, [], False),
        (1.04, 0.25, 0.2, 99.5, [], False),
        (1.04, 0.25, 0.2, 100, ["timed out"], False),
        (1.04, 0.25, None, 100, [], False),
        (None, None, 0.2, 100, [], False),
    ],
)
def test_the_bar_of_interception(
    bench, beside, handshake, no_distance, opened_before, failed, passes
):
    """One round trip beside the local handshake, in which none hides, on connections that were
    there, without failure on any of the ways."""

    def cell(way, **known):
        return bench.rounds.Cell(f"curl {way}", "untouched", 1, rounds=10, **known)

    known = {"beside": beside, "shaken": handshake, "opened_before": opened_before}
    cells = {
        "intercepted": cell("intercepted", **known),
        "tunnel": cell("tunnel", p50=2.1, errors=failed),
        "cold": cell("cold", p50=3.1),
        "local": cell("local", shaken=no_distance),
    }
    line = bench.intercept.Line("curl", 1, "untouched", cells)
    assert line.passes is passes
    assert ("met" in bench.intercept.table([line])) is passes


def test_what_is_beside_a_handshake(bench):
    """It is of each request: a long handshake with a quick rest is no long rest."""
    rounds = bench.rounds

    def answer(shaken, seconds):
        return rounds.Answer(started=0.0, seconds=seconds, shaken=shaken)

    answers = [answer(0.010, 0.051), answer(0.030, 0.070), answer(0.011, 0.052)]
    done = [rounds.Round("curl intercepted", "untouched", 1, 10.0, [each]) for each in answers]
    cell = rounds.summarise(("curl intercepted", "untouched", 1), done, 0.040, 1)
    assert cell.shaken == pytest.approx(0.275)
    assert cell.beside == pytest.approx(1.025)
