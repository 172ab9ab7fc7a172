"""What soak.py tells: tables, words and the plot."""

import time
from pathlib import Path

from rig import report, soak_judge
from rig.soak_judge import EXCUSED, SERVED, Run

NAME = "soak.py"


def verdict_table(run: Run) -> str:
    found = soak_judge.bars(run)
    rows = [(b.what, b.value, b.bound, "met" if b.met else "**missed**") for b in found]
    return report.table(("seen", "value", "bound", "bar"), 1, rows)


def origin_table(run: Run) -> str:
    rows = []
    for origin in run.origins:
        ratio = f"{100 * origin.hits / origin.asked:.2f} %" if origin.asked else "-"
        served, excused = (origin.findings.get(kind, 0) for kind in (SERVED, EXCUSED))
        asked = sum(origin.findings.values())
        warm = origin.warm or "learned"
        rows.append((origin.says, warm, asked, served, excused, origin.closed, ratio))
    heads = ("origin", "warm", "requests", "served", "not, for a reason", "it closed", "hits")
    return report.numbers(heads, rows)


def told(run: Run, python: str) -> tuple[str, str]:
    """What both pages say, and what only the benchmarks' page says."""
    versions = ", ".join(f"{k} {v}" for k, v in report.versions(python).items())
    ratios = [s.hit_ratio for s in run.samples if s.hit_ratio is not None]
    least, middle = (100 * soak_judge.percentile(ratios, share) for share in (0, 0.5))
    reasons = sorted(run.reasons.items(), key=lambda one: -one[1])
    words = ", ".join(f"{what} {count}" for what, count in reasons) or "none"
    asked, served = sum(run.findings.values()), run.findings.get(SERVED, 0)
    first = (
        f"`{report.command(NAME)}`, {time.strftime('%Y-%m-%d')}, {run.seconds / 60:.1f} min;"
        f" {versions};\n{asked} requests"
        f" ({asked / run.seconds:.0f} a second), {served} served,"
        f" {run.findings.get(EXCUSED, 0)} not, for a reason. Hits of the configured origins that"
        f" were up, in 10 s: median {middle:.2f} %, lowest {least:.2f} %.\n\n{verdict_table(run)}"
    )
    return first, f"Not served, for a reason: {words}.\n\n{origin_table(run)}"


def plot(run: Run, to: Path) -> None:
    """Memory, descriptors, lag, hits and errors over the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(5, 1, figsize=(10, 11), layout="constrained", sharex=True)
    at = [s.at / 60 for s in run.samples]
    axes[0].plot(at, [s.rss / (1 << 20) for s in run.samples], label="RSS, MiB")
    axes[1].plot(at, [s.descriptors for s in run.samples], label="descriptors")
    axes[1].plot(at, [s.left for s in run.samples], label="beside connections")
    lags = [1000 * lag for lag in run.lags]
    axes[2].plot([(n + 1) / 60 for n in range(len(lags))], lags, ".", ms=3, label="loop lag, ms")
    axes[2].axhline(1000 * soak_judge.LAG, color="crimson", lw=0.8, label="bound of p99")
    hits = [(s.at / 60, 100 * s.hit_ratio) for s in run.samples if s.hit_ratio is not None]
    axes[3].plot(*zip(*hits, strict=True), label="hits of the configured origins that were up, %")
    errors = [sum(s.errors.values()) for s in run.samples]
    axes[4].plot(at, errors, label="not served in 10 s")
    axes[3].set_ylim(min([95.0, *(share for _, share in hits)]), 100.3)
    for axis in axes:
        if axis is not axes[3]:
            axis.set_ylim(0, 1.1 * max(1.0, axis.get_ylim()[1]))
        axis.axvspan(0, soak_judge.warm_up(run.seconds) / 60, color="gray", alpha=0.15, lw=0)
        axis.grid(alpha=0.3)
        above = {"bbox_to_anchor": (0, 1), "borderaxespad": 0.1, "frameon": False}
        axis.legend(loc="lower left", ncols=2, **above)
    axes[-1].set_xlabel("minutes; gray: the warm-up, which does not count")
    figure.savefig(to, dpi=80)
    pyplot.close(figure)
