"""The simulator's own numbers, where they can be worked out by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def simulate():
    """benchmarks/simulate.py, which is a program and no package."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("simulate", BENCHMARKS / "simulate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        del sys.modules["simulate"]


def outcome(simulate, spec, requests, seconds, limits="none", dial=0.05):
    arrivals = simulate.traces.Trace("by hand", seconds, (tuple(requests),))
    rng = simulate.Random(0)
    world = simulate.World(simulate.pool(spec, arrivals, rng), simulate.LIMITS[limits], dial, rng)
    return world.run(requests, seconds)


BURST = [(100.0, 1.0)] * 4
"""Four at one moment, each for a second."""


@pytest.mark.parametrize(("n", "hits"), [(0, 0), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_a_fixed_number_serves_as_many_at_once_as_it_has(simulate, n, hits):
    found = outcome(simulate, ("fixed", n, 0), BURST, 200.0)
    assert (found.requests, found.hits, len(found.waits)) == (4, hits, 4 - hits)
    assert all(0.05 <= wait <= 0.06 for wait in found.waits), "a dial, up to a fifth longer"


def test_what_a_fixed_number_costs_while_nobody_asks(simulate):
    found = outcome(simulate, ("fixed", 3, 0), [], 40.0)
    assert found.dials == 3
    assert found.idle_seconds == pytest.approx(3 * 40.0, rel=0.01)


def test_an_oracle_dials_in_time_and_holds_nothing(simulate):
    def cap(now: float) -> int:
        return 3

    found = simulate.oracle(BURST, simulate.LIMITS["none"], 0.05, cap, tunnels=False)
    assert (found.requests, found.hits, found.idle_seconds) == (4, 3, 0.0)


def test_a_rival_that_only_looks_every_30_s_is_caught_by_an_idle_limit(simulate):
    """HikariCP finds out that a connection is dead when somebody wants it: hypercorn has closed
    all of them after 5 s, and nobody has looked since."""
    found = outcome(simulate, ("hikari", 4, 4), BURST, 200.0, limits="hypercorn")
    assert found.hits == 0
