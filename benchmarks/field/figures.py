"""Figures, and what follows from them: medians, ratios, bars, tables. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OURS = "warmproxy"

Rounds = dict[str, dict[str, list[float]]]
"""Measure -> proxy -> one value for each round."""
Medians = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Measure:
    """One column: less is better in all of them."""

    name: str
    head: str
    digits: int


MEASURES = (
    Measure("cpu 1", "1 conn, µs/req", 1),
    Measure("cpu 32", "32, µs/req", 1),
    Measure("cpu 256", "256, µs/req", 1),
    Measure("added", "added p50, µs", 0),
    Measure("1 MiB", "1 MiB, s/GiB", 2),
    Measure("100 MiB", "100 MiB, s/GiB", 2),
    Measure("CONNECT", "CONNECT, s/GiB", 2),
    Measure("start", "start, ms", 0),
    Measure("empty", "empty, MiB", 1),
    Measure("client", "KiB/client", 1),
    Measure("upstream", "KiB/upstream", 1),
    Measure("TLS upstream", "KiB/TLS upstream", 1),
)

ANY = "every peer"


@dataclass(frozen=True)
class Bar:
    """`measure` of ours, divided by that of `against` unless that is "", may be `least` at most."""

    measure: str
    against: str
    least: float | None
    goal: float | None = None


BARS = (
    Bar("cpu 1", "haproxy", 1.25, 1.1),
    Bar("cpu 32", "squid", 0.65, 0.60),
    Bar("cpu 32", "envoy", 1.2, 1.0),
    Bar("cpu 32", "haproxy", 2.4, 1.9),
    Bar("cpu 256", "haproxy", 2.4, 2.0),
    Bar("added", "squid", 1.0),
    Bar("1 MiB", "haproxy", 1.0),
    Bar("1 MiB", ANY, None, 1.0),
    Bar("100 MiB", "haproxy", 1.0),
    Bar("100 MiB", ANY, None, 1.0),
    Bar("CONNECT", "envoy", 0.6),
    Bar("CONNECT", ANY, 1.0),
    Bar("start", "", 250.0),
    Bar("empty", "", 45.0, 35.0),
    Bar("client", "", 6.0),
    Bar("upstream", "", 2.0),
    Bar("TLS upstream", "", 50.0),
)


def medians(rounds: Rounds) -> dict[str, dict[str, float]]:
    return {
        measure: {proxy: statistics.median(values) for proxy, values in by_proxy.items() if values}
        for measure, by_proxy in rounds.items()
    }


def value_of(bar: Bar, found: Medians, peers: Iterable[str]) -> float | None:
    """What the bar is about, of ours; None where something for it was not measured."""
    by_proxy = found.get(bar.measure, {})
    mine = by_proxy.get(OURS)
    if mine is None or not bar.against:
        return mine
    names = list(peers) if bar.against == ANY else [bar.against]
    theirs = min((by_proxy[name] for name in names if name in by_proxy), default=None)
    return mine / theirs if theirs else None


def verdict(bar: Bar, value: float | None) -> str:
    if value is None:
        return "not measured"
    if bar.goal is not None and value <= bar.goal:
        return "goal met"
    if bar.least is None:
        return "goal missed"
    return "met" if value <= bar.least else "**missed**"


def paired_ratios(rounds: Rounds, measure: str, proxy: str, base: str) -> list[float]:
    """Of the values of each round; rounds that one of them lacks are left out."""
    by_proxy = rounds.get(measure, {})
    pairs = zip(by_proxy.get(proxy, ()), by_proxy.get(base, ()), strict=False)
    return [a / b for a, b in pairs if b]


def field_rows(found: Medians, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of all proxies; what was not asked at all has no column."""
    columns = [m for m in MEASURES if found.get(m.name)]
    rows = []
    for name in names:
        row = [name]
        for measure in columns:
            value = found[measure.name].get(name)
            row.append("-" if value is None else f"{value:.{measure.digits}f}")
        rows.append(row)
    return ["proxy", *(m.head for m in columns)], rows


def bar_rows(found: Medians, peers: Sequence[str]) -> list[list[str]]:
    """What is asked, against whom, found, at most, goal, verdict; of what was measured."""
    units = {m.name: m.head.rpartition(", ")[2] for m in MEASURES}
    names = {m.name: m.head for m in MEASURES}
    rows = []
    for bar in BARS:
        if not found.get(bar.measure):
            continue
        value = value_of(bar, found, peers)
        unit = "" if bar.against else " " + units[bar.measure].partition("/")[0]
        digits = 2 if bar.against else 1
        rows.append(
            [
                names[bar.measure],
                bar.against or "absolute",
                "-" if value is None else f"{value:.{digits}f}{unit}",
                "-" if bar.least is None else f"{bar.least:g}",
                "-" if bar.goal is None else f"{bar.goal:g}",
                verdict(bar, value),
            ]
        )
    return rows


def tree_rows(rounds: Rounds, trees: Sequence[str]) -> list[list[str]]:
    """Each other tree of ours against the one the bench is in: ratios of the same round."""
    rows = []
    for measure in MEASURES:
        for tree in trees:
            ratios = paired_ratios(rounds, measure.name, tree, OURS)
            if not ratios:
                continue
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            values = rounds[measure.name]
            digits = measure.digits
            rows.append(
                [
                    measure.head,
                    tree,
                    f"{statistics.median(values[OURS]):.{digits}f}",
                    f"{statistics.median(values[tree]):.{digits}f}",
                    f"{middle:.3f}",
                    f"{low:.3f}-{high:.3f}",
                ]
            )
    return rows


TREE_HEADS = ["measure", "tree", "ours", "tree's", "tree / ours", "range"]
BAR_HEADS = ["measure", "against", "found", "at most", "goal", "bar"]
