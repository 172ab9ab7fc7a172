"""The figures as pictures. matplotlib is needed for nothing else: without it there is none."""

import importlib.util
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from field.figures import OURS, Medians

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
Axes = Any
"""Of matplotlib, which is not always there."""
TOO_FAR = 8.0
"""Times ours; longer bars are cut there and say how long they are."""


def _pyplot() -> Any:
    """matplotlib.pyplot, or None with a word."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def peers(
    found: Medians, names: Sequence[str], cells: Sequence[Mapping[str, Any]], to: Path
) -> None:
    """Ours beside the others; `cells`: those of first_request.py, or none."""
    pyplot = _pyplot()
    if pyplot is None:
        return
    rows, columns, size = (2, 2, (11, 8.6)) if cells else (1, 3, (15, 4.6))
    figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
    axes = grid.flat
    _by_connections(axes[0], found, names)
    bodies = ("1 MiB", "100 MiB", "CONNECT")
    _bars(axes[1], found, names, bodies, "large bodies, processor time, s/GiB")
    sockets = {"client": "idle client", "upstream": "idle upstream"}
    _bars(axes[2], found, names, sockets, "memory of a connection, KiB", list(sockets.values()))
    if cells:
        _by_burst(axes[3], cells)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5 if cells else len(labels))
    figure.savefig(to, dpi=80)
    pyplot.close(figure)


def _by_connections(axis: Axes, found: Medians, names: Sequence[str]) -> None:
    counts = (1, 32, 256)
    places = range(len(counts))
    for name in names:
        costs = [found.get(f"cpu {n}", {}).get(name) for n in counts]
        if None in costs:
            continue
        mine = name == OURS
        axis.plot(
            places,
            costs,
            "*-" if mine else "o-",
            ms=13 if mine else 4,
            lw=2 if mine else 1,
            color=COLOURS.get(name),
            label=name,
            zorder=5 if mine else 3,
        )
    axis.set_yscale("log")
    axis.set_xticks(places, [str(n) for n in counts])
    axis.set_xlabel("connections")
    axis.set_title("512 bytes, processor time, µs/request")
    ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if _within(axis, tick)]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _within(axis: Axes, value: float) -> bool:
    low, high = axis.get_ylim()
    return bool(low <= value <= high)


def _bars(
    axis: Axes,
    found: Medians,
    names: Sequence[str],
    measures: Iterable[str],
    title: str,
    labels: Sequence[str] | None = None,
) -> None:
    """Groups of bars; one much longer than ours is cut, and says how long it is."""
    measures = list(measures)
    mine = [found.get(m, {}).get(OURS, 0.0) for m in measures]
    most = TOO_FAR * max(mine, default=1.0) or 1.0
    longest = max((v for m in measures for v in found.get(m, {}).values()), default=0.0)
    top = min(most, longest * 1.12) or 1.0
    width = 0.85 / max(len(names), 1)
    for at, name in enumerate(names):
        for group, measure in enumerate(measures):
            value = found.get(measure, {}).get(name)
            if value is None:
                continue
            x = group + (at - (len(names) - 1) / 2) * width
            axis.bar(x, min(value, top), width, color=COLOURS.get(name))
            if value > top:
                style = {"ha": "center", "va": "top", "rotation": 90, "fontsize": 8}
                axis.text(
                    x,
                    top * 0.98,
                    f"{value:,.0f}" if value >= 10 else f"{value:.1f}",
                    color="white",
                    **style,
                )
    axis.set_ylim(0, top)
    axis.set_xticks(range(len(measures)), labels or measures)
    axis.set_title(title)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _by_burst(axis: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    lines: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for cell in cells:
        if cell["p50"] is not None:
            point = (cell["n"], cell["p50"], cell["slowest"])
            lines.setdefault((cell["kind"], cell["state"]), []).append(point)
    for number, ((kind, state), points) in enumerate(sorted(lines.items())):
        at, middle, slowest = zip(*sorted(points), strict=True)
        colour = "black" if state == "cold" else f"C{number}"
        label = "no proxy" if state == "cold" else f"{kind}, {state}"
        axis.plot(at, middle, f"{'osv^D'[number % 5]}-", ms=5, color=colour, label=label)
        axis.plot(at, slowest, ":", color=colour)
    axis.set_xscale("log")
    bursts = sorted({cell["n"] for cell in cells})
    axis.set_xticks(bursts, [str(n) for n in bursts])
    axis.minorticks_off()
    axis.set_ylim(bottom=0.9)
    axis.axhline(1, color="gray", lw=0.8, ls="--")
    axis.set_xlabel("requests at once")
    axis.set_title("first request, round trips (dotted: slowest)")
    axis.grid(alpha=0.3)
    axis.legend(loc="center right")


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
