"""The figures as pictures. matplotlib is needed for nothing else: without it there is none."""

import importlib.util
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from field.figures import OURS

COLOURS = {
    OURS: "crimson",
    "haproxy": "tab:blue",
    "nginx": "tab:green",
    "envoy": "tab:purple",
    "squid": "tab:orange",
    "trafficserver": "tab:brown",
    "tinyproxy": "tab:gray",
    "proxy.py": "tab:olive",
    "mitmproxy": "tab:pink",
    "direct": "black",
}
TOO_FAR = 8.0
"""Times ours; longer bars are cut there and say how long they are."""


def _pyplot() -> object:
    """matplotlib.pyplot, or None with a word."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def growth(values: Mapping[str, Mapping[int, Sequence[float]]], to: Path) -> None:
    """What a request costs, and memory, as everything else grows. Lines that lie flat are good."""
    pyplot = _pyplot()
    if pyplot is None:
        return

    def line(name: str) -> tuple[list[int], list[float]]:
        counts = sorted(values[name])
        return counts, [statistics.median(values[name][n]) for n in counts]

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    clients, memory, origins = axes
    counts, costs = line("clients")
    clients.plot(counts, costs, "o-", color="crimson")
    clients.set_xlabel("idle clients, and as many warm connections")
    clients.set_title("a request beside idle connections")
    counts, sizes = line("MiB")
    memory.plot(counts, sizes, "o-", color="crimson")
    memory.set_xlabel("idle clients, and as many warm connections")
    memory.set_ylabel("resident, MiB")
    memory.set_title("memory")
    for name, style in (("one origin", "o-"), ("all origins", "s--")):
        counts, costs = line(name)
        origins.plot(counts, costs, style, color="crimson", label=f"{name} asked")
    origins.set_xscale("log")
    origins.set_xlabel("configured origins, 2 warm connections each")
    origins.set_title("a request beside other origins")
    origins.legend()
    for axis in (clients, origins):
        axis.set_ylabel("processor time, µs/request")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in (clients, memory):
        axis.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    origins.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    figure.savefig(to, dpi=80)
    pyplot.close(figure)
