"""What soak.py decides, without sockets: how a request ended, and what a run has shown."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SLACK = 0.05
"""Seconds by which both ends may note one event apart."""
RECOVERY = 1.0
"""Seconds after an origin was down for which a failure is still put down to that."""
WARM_UP, WARM_UP_LEAST = 0.1, 75.0
"""Share of the time whose samples do not count, and seconds of it at least: until then pools grow,
because idle_timeout, the 60 s after which a used connection goes, has not passed for any."""

# Of memory and descriptors: the most that a straight line through the samples may rise from the end
# of the warm-up to the end of the run.
RSS_GROWTH = 2 << 20
FD_GROWTH = 20.0
LEFT_GROWTH = 4.0
LAG = 0.010

SERVED, EXCUSED = "served", "excused"
WRONG, TWICE, LOST, UNEXPLAINED = (
    "wrong answers",
    "POSTs that came twice",
    "idempotent requests lost that one replay could serve",
    "failures without a reason at the origin",
)
VIOLATIONS = (WRONG, TWICE, LOST, UNEXPLAINED)


@dataclass(slots=True)
class Try:
    """One time that an origin received a request."""

    used: bool
    """Its connection had carried a request before."""
    sent: bool | None = False
    """The answer was sent. None: a reset followed so soon that it may have overtaken it."""
    ended: str = ""
    """How the origin ended the connection before the answer could arrive, if it did."""


@dataclass(slots=True)
class Ask:
    """One request as its client saw it end; times by one monotonic clock."""

    number: int
    method: str
    tunnel: bool
    asked: float
    ended: float = 0.0
    outcome: str = ""
    """whole; own: an answer of the daemon's, with `token`; wrong: bytes that are not the answer;
    cut: told to be incomplete; none: the connection ended before the answer; hung"""
    token: str = ""
    retried: bool = False


@dataclass(slots=True)
class Past:
    """What an origin did to its connections of late."""

    ends: list[tuple[float, bool]] = field(default_factory=list)
    """When it ended an idle connection, and whether that had carried a request."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """From when to when nobody listened, for longer than a restart takes (inf: still)."""

    def was_down(self, begin: float, end: float) -> bool:
        """Whether it was in that time, or right before."""
        return any(a - SLACK <= end and begin <= b + RECOVERY for a, b in self.outages)

    def ended_idle(self, ask: Ask, *, fresh_only: bool) -> bool:
        """Whether a connection on which this request can have been was ended as it came."""
        return any(
            ask.asked - SLACK <= at <= ask.ended + SLACK and not (used and fresh_only)
            for at, used in self.ends
        )

    def forget(self, before: float) -> None:
        self.ends = [end for end in self.ends if end[0] >= before]
        self.outages = [outage for outage in self.outages if outage[1] >= before]


def judge(ask: Ask, tries: Sequence[Try], past: Past) -> tuple[str, str]:
    """SERVED, EXCUSED or one of VIOLATIONS, and in which way.

    The rules are those of tests/chaos/judge.py. What is not idempotent comes to the origin once.
    What is may come a second time, where the first was on a used connection that ended before a
    byte of the answer, and must then, unless nobody listens. Every failure has a reason at the
    origin: it was down, or it ended that very connection, or one that nothing was read from.
    """
    idempotent = ask.method != "POST"
    if ask.outcome == "wrong":
        return WRONG, "bytes of another answer"
    if len(tries) > 1 and not idempotent:
        return TWICE, f"{len(tries)} times"
    if len(tries) > 2 or (len(tries) == 2 and (not tries[0].used or tries[0].sent is True)):
        return UNEXPLAINED, "repeated where it must not be"
    if ask.outcome == "whole":
        return (SERVED, "") if tries else (WRONG, "an answer that no origin gave")
    if ask.outcome == "hung":
        return UNEXPLAINED, "hung"
    if past.was_down(ask.asked, ask.ended):
        return EXCUSED, "its origin was down"
    if ask.outcome == "own" and ask.token != "connection_terminated":
        return UNEXPLAINED, ask.token or "an answer of the daemon's without a reason"
    if tries:
        last = tries[-1]
        if not last.ended:
            return UNEXPLAINED, f"{ask.outcome} although the origin answered"
        if last.sent is None:
            return EXCUSED, "its answer was overtaken by a reset"
        if idempotent and last.used and not ask.tunnel:
            return LOST, "not repeated"
        return EXCUSED, "ended before its answer, and not to be repeated"
    if past.ended_idle(ask, fresh_only=ask.tunnel or idempotent):
        return EXCUSED, "crossed the end of an idle connection, and not to be repeated"
    return (LOST if idempotent and not ask.tunnel else UNEXPLAINED), f"{ask.outcome}, never read"


@dataclass(slots=True)
class Sample:
    """The daemon at one moment, `at` seconds from the start."""

    at: float
    rss: int
    descriptors: int
    left: int
    """Of the descriptors, those that are neither of a pool's connection nor of a client's."""
    close_wait: int
    hit_ratio: float | None
    """Of the configured origins that were up, since the sample before; None: nothing was asked."""
    lag: float
    """The longest since the sample before, in seconds."""
    errors: dict[str, int]
    """Answers and ends that were not SERVED since the sample before."""


@dataclass(slots=True)
class Origin:
    """What one of them has seen of a run."""

    says: str
    warm: int
    findings: dict[str, int]
    closed: int
    """Connections that it ended."""
    hits: int
    asked: int
    """Connections that the daemon was asked for, and how many of these it had; 0 where the
    metrics do not name the origin."""


@dataclass(slots=True)
class Run:
    """All that was seen."""

    seconds: float
    samples: list[Sample]
    lags: list[float]
    findings: dict[str, int]
    stayed: int
    """Sockets that were in CLOSE_WAIT in two samples."""
    reloads: tuple[int, int]
    """Asked for, and done."""
    raised: int
    """Tracebacks in the daemon's log, and one more if it ended by itself."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Of what was EXCUSED."""
    origins: list[Origin] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bar:
    what: str
    value: str
    bound: str
    met: bool


def growth(points: Iterable[tuple[float, float]]) -> float:
    """How far the straight line through (time, value), by least squares, rises in that time; 0
    for fewer than three points."""
    found = list(points)
    if len(found) < 3:
        return 0.0
    times, values = zip(*found, strict=True)
    line = statistics.linear_regression(times, values)
    return line.slope * (times[-1] - times[0])


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that is not below that share of all; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def warm_up(seconds: float) -> float:
    """How much of a run of so many seconds does not count."""
    return max(WARM_UP * seconds, WARM_UP_LEAST)


def bars(run: Run) -> list[Bar]:
    """The verdict, line by line."""
    counted = [sample for sample in run.samples if sample.at >= warm_up(run.seconds)]
    if len(counted) < 3:
        return [Bar("samples after the warm-up", str(len(counted)), "3", False)]
    mib = 1 << 20
    rss = growth((s.at, s.rss) for s in counted)
    opened = growth((s.at, s.descriptors) for s in counted)
    left = growth((s.at, s.left) for s in counted)
    asked, done = run.reloads
    p99 = percentile(run.lags, 0.99)
    found = [
        Bar(
            "RSS, MiB: first, last, rise",
            f"{counted[0].rss / mib:.1f}, {counted[-1].rss / mib:.1f}, {rss / mib:+.2f}",
            f"rise <= {RSS_GROWTH / mib:g}",
            rss <= RSS_GROWTH,
        ),
        Bar(
            "descriptors: first, last, rise",
            f"{counted[0].descriptors}, {counted[-1].descriptors}, {opened:+.1f}",
            f"rise <= {FD_GROWTH:g}",
            opened <= FD_GROWTH,
        ),
        Bar(
            "those beside connections: first, last, rise",
            f"{counted[0].left}, {counted[-1].left}, {left:+.1f}",
            f"rise <= {LEFT_GROWTH:g}",
            left <= LEFT_GROWTH,
        ),
        Bar("in CLOSE_WAIT in two samples", str(run.stayed), "0", not run.stayed),
        Bar(
            "loop lag, ms: p50, p99, highest",
            f"{1000 * percentile(run.lags, 0.5):.2f}, {1000 * p99:.2f},"
            f" {1000 * max(run.lags, default=0.0):.2f}",
            f"p99 < {1000 * LAG:g}",
            bool(run.lags) and p99 < LAG,
        ),
    ]
    counts = {kind: run.findings.get(kind, 0) for kind in VIOLATIONS}
    found += [Bar(kind, str(count), "0", not count) for kind, count in counts.items()]
    found.append(Bar("reloads done", f"{done} of {asked}", "all", done == asked))
    found.append(Bar("tracebacks", str(run.raised), "0", not run.raised))
    return found
