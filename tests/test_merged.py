"""What several processes say, as one."""

from typing import Any

from warmproxy.admin.history import Lately
from warmproxy.metrics import render
from warmproxy.observe import Outcome, Tally
from warmproxy.processes.merged import merge_abouts, merge_pool, merge_pools, merge_samples
from warmproxy.sample import Gauges, Sample


def tally(dials: int) -> Tally:
    made = Tally()
    made.dials["ok"] += dials
    made.first_byte.observe(0.003)
    made.dial_seconds["tcp"].observe(0.01)
    made.saved_seconds += 0.5
    return made


def test_samples_are_added_up() -> None:
    """Counters and histograms with those of processes that are gone; of limits the lowest holds,
    and of the loops' lag the highest."""
    here = Gauges(fresh=2, target_idle=3, idle_limits=(("fresh", 9.0), ("used", 5.0)))
    there = Gauges(fresh=1, active=1, target_idle=2, idle_limits=(("used", 4.0),))
    samples = [
        Sample({"a": tally(3), "other": tally(1)}, {"a": here}, clients=5, tunnels=1, loop_lag=0.1),
        Sample({"a": tally(4)}, {"a": there}, clients=7, tunnels=0, loop_lag=0.3),
    ]
    merged = merge_samples(samples, {"a": tally(10)}, {"1": (True, 0), "2": (False, 3)})
    assert dict(merged.gauges["a"].idle_limits) == {"fresh": 9.0, "used": 4.0}
    assert (merged.gauges["a"].fresh, merged.gauges["a"].target_idle) == (3, 5)
    assert (merged.clients, merged.tunnels, merged.loop_lag) == (12, 1, 0.3)
    text = b"".join(render(merged, "")[0]).decode()
    for line in (
        'warmproxy_dials_total{origin="a",result="ok"} 17.0',
        'warmproxy_first_byte_seconds_count{origin="a"} 3.0',
        'warmproxy_dial_seconds_count{origin="a",phase="tcp"} 3.0',
        'warmproxy_connect_seconds_saved_total{origin="a"} 1.5',
        'warmproxy_dials_total{origin="other",result="ok"} 1.0',
        'warmproxy_process_up{process="2"} 0.0',
        'warmproxy_process_restarts_total{process="2"} 3.0',
    ):
        assert f"\n{line}\n" in text, line


def test_merging_changes_no_sample() -> None:
    """They are merged again at the next scrape."""
    sample = Sample({"a": tally(3)}, {}, clients=0, tunnels=0, loop_lag=0.0)
    gone = {"a": tally(1)}
    for _ in range(3):
        merged = merge_samples([sample, sample], gone, {})
        assert merged.tallies["a"].dials["ok"] == 7


def test_pools_are_added_up_by_origin() -> None:
    """Each origin has one entry, whoever holds it."""
    first = [{"origin": "a", "fresh": 1}, {"origin": "b", "fresh": 2}]
    second = [{"origin": "c", "fresh": 4}, {"origin": "a", "fresh": 8}]
    assert merge_pools([first, second]) == [
        {"origin": "a", "fresh": 9},
        {"origin": "b", "fresh": 2},
        {"origin": "c", "fresh": 4},
    ]


def test_what_is_no_sum() -> None:
    """The oldest age, the lowest limits, the last close, the longest wait, the first text."""
    first = {
        "origin": "a",
        "configured": True,
        "verified": None,
        "oldest_age": 3.0,
        "idle_limits": {"fresh": 9.0, "used": None},
        "boosts": [{"count": 3, "seconds_left": 5.0, "why": "asked"}],
        "held_back": None,
        "last_close": {"reason": "upstream_eof", "ago": 7.0, "age": 1.0},
        "closed": {"upstream_eof": 2},
        "last_error": None,
        "saved_seconds": 0.1,
    }
    second = {
        **first,
        "oldest_age": 4.0,
        "idle_limits": {"fresh": 8.0},
        "boosts": [{"count": 2, "seconds_left": 6.0, "why": "asked"}],
        "held_back": {"reason": "429", "seconds": 600.0},
        "last_close": {"reason": "max_age", "ago": 2.0, "age": 1.0},
        "closed": {"upstream_eof": 1, "max_age": 1},
        "last_error": "refused",
        "saved_seconds": 0.2,
    }
    assert merge_pool([first, second]) == {
        "origin": "a",
        "configured": True,
        "verified": None,
        "oldest_age": 4.0,
        "idle_limits": {"fresh": 8.0, "used": None},
        "boosts": [{"count": 5, "seconds_left": 6.0, "why": "asked"}],
        "held_back": {"reason": "429", "seconds": 600.0},
        "last_close": {"reason": "max_age", "ago": 2.0, "age": 1.0},
        "closed": {"upstream_eof": 3, "max_age": 1},
        "last_error": "refused",
        "saved_seconds": 0.3,
    }
    assert first["boosts"] == [{"count": 3, "seconds_left": 5.0, "why": "asked"}]


def about(**other: Any) -> dict[str, Any]:
    history = {"seconds": 20.0, "per_second": [1.0, 2.5], "hits": [9, 20], "misses": [1, 5]}
    return {
        "uptime": 20.0,
        "clients": 3,
        "tunnels": 1,
        "accepting": True,
        "draining": False,
        "reload_is_good": True,
        "authority_seconds_left": None,
        "loop_lag": 0.01,
        "forgotten": {"hits": 1, "misses": 2, "failed": 0, "saved_seconds": 0.5},
        "history": history | {"warm": [4, 4], "target": [4, 4]},
        **other,
    }


def test_a_daemon_is_as_well_as_the_worst_of_its_processes() -> None:
    """Counts add up, with those of processes that ended; one that lags or accepts nobody tells."""
    ended = Tally()
    ended.acquires[Outcome.USED] += 100
    ended.saved_seconds = 2.0
    worse = about(uptime=9.0, accepting=False, loop_lag=0.3, reload_is_good=False)
    worse["authority_seconds_left"] = 5
    said = merge_abouts([about(), worse], {"http://h:80": ended})
    del said["history"]
    assert said == {
        "uptime": 20.0,
        "clients": 6,
        "tunnels": 2,
        "accepting": False,
        "reload_is_good": False,
        "authority_seconds_left": 5,
        "loop_lag": 0.3,
        "forgotten": {"hits": 102, "misses": 4, "failed": 0, "saved_seconds": 3.0},
    }
    assert merge_abouts([], {})["history"]["hits"] == []


def test_the_history_of_a_younger_process_adds_to_the_last() -> None:
    """What was at the same time is added; hit ratios come from the sums, so they stay right."""
    young = {"seconds": 9.0, "per_second": [1.5], "hits": [5], "misses": [10]}
    said = merge_abouts([about(), about(history=young | {"warm": [2], "target": [4]})], {})
    lately = Lately(**said["history"])
    assert (lately.seconds, lately.per_second, lately.warm) == (20.0, [1.0, 4.0], [4, 6])
    assert lately.target == [4, 8]
    assert lately.hit_ratio == [0.9, 25 / 40]
