"""What is measured: bursts, whether their connections were open before, how long they took."""

import itertools
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from rig.client import Address, Answer, Burst, Exchange
from rig.daemon import Daemon
from rig.programs import Program
from rig.stage import ORIGIN_IDLE, Life, Stage

QUIET = 10.0  # then up to ORIGIN_IDLE more, so that a burst may meet any phase of its closes
STATES = ("untouched", "after traffic")
DISTURBED = 0.0005  # held up for longer by other work: the round's times say nothing


@dataclass
class Round:
    """One burst and what came of it."""

    kind: str
    state: str
    n: int
    quiet: float
    answers: list[Answer]
    disturbance: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)  # seconds that each process took
    usable: int = 0  # connections that were open when the burst began
    not_before: int = 0  # requests that had to wait for theirs
    held: dict[int, float] = field(default_factory=dict)  # n -> share of time with n open
    pools: object = None  # the daemon's own view, asked afterwards if a request missed

    @property
    def disturbed(self) -> bool:
        return self.disturbance > DISTURBED


def open_spans(lives: Iterable[Life], secured: bool) -> list[tuple[float, float]]:
    """From when to when each connection was of use to the one who dialled it: with `secured`,
    from the end of its handshake on."""
    spans = []
    for connected, handshake_done, ended in lives:
        begin = handshake_done if secured else connected
        if begin is not None:
            spans.append((begin, math.inf if ended is None else ended))
    return spans


def not_open_before(
    answers: Sequence[Answer], usable: int, rtt: float, secured: bool = False
) -> int:
    """How many of a burst's requests went out on connections that were not open before the client
    called connect(); `usable` were.

    By the origin's record. A pool that hands out its newest connection may take one that becomes
    ready a moment after, though as many as are needed were there: nobody waited for it. Such a one
    was dialled before the client came: it is ready within less than the round trip of a dial.
    """
    dialled, late = 0, 0
    for answer in answers:
        ready = answer.secured if secured else answer.connected
        if ready is None or ready >= answer.started + 0.9 * rtt:
            dialled += 1
        elif ready >= answer.started:
            late += 1
    return dialled + min(late, max(0, len(answers) - usable))


def held(
    spans: Iterable[tuple[float, float]], since: float, until: float, bursts: Iterable[int]
) -> dict[int, float]:
    """For each size of burst: the share of this time with that many usable connections."""
    changes = [(since, 0), (until, 0)]
    for begin, end in spans:
        begin, end = max(begin, since), min(end, until)
        if begin < end:
            changes += [(begin, 1), (end, -1)]
    changes.sort()
    enough = dict.fromkeys(bursts, 0.0)
    usable = 0
    for (now, change), (following, _) in itertools.pairwise(changes):
        usable += change
        for n in enough:
            enough[n] += following - now if usable >= n else 0.0
    return {n: seconds / (until - since) for n, seconds in enough.items()}


def spread_quiet(rounds: int) -> list[float]:
    """Quiet times, evenly spread in random order: few rounds still meet all phases."""
    times = [QUIET + ORIGIN_IDLE * (k + random.random()) / rounds for k in range(rounds)]
    random.shuffle(times)
    return times


@dataclass(frozen=True)
class Target:
    """A pool of a daemon, and how to use it."""

    kind: str
    address: Address  # where the client connects
    origin: Address
    exchange: Exchange
    secured: bool = False  # it holds connections whose handshake is done
    program: Callable[[Address, Address], Program] | None = None  # who asks, if not a Burst

    @contextmanager
    def clients(self, n: int) -> Iterator[Callable[[], list[Answer]]]:
        """All is ready; what this gives has them ask."""
        if self.program is not None:
            with self.program(self.origin, self.address) as program:
                yield program.run
        else:
            with Burst(self.exchange, n) as connections:
                yield partial(connections.run, self.address)


def measure(
    stage: Stage,
    target: Target,
    state: str,
    n: int,
    quiet_since: float,
    daemon: Daemon,
    bursts: Iterable[int],
) -> Round:
    """One burst."""
    with target.clients(n) as ask:
        quiet = time.monotonic() - quiet_since
        watch = stage.watch(daemon.pid)
        answers = ask()
        done = Round(target.kind, state, n, quiet, answers, watch.disturbance())
        ran = watch.ran()
    done.cpu = {name: ran[pid] for name, pid in (stage.load | {"proxy": daemon.pid}).items()}
    began = answers[0].started
    spans = open_spans(stage.lives(target.origin), target.secured)
    done.usable = sum(begin < began and began + stage.rtt < end for begin, end in spans)
    done.not_before = not_open_before(answers, done.usable, stage.rtt, target.secured)
    done.held = held(spans, began - QUIET + ORIGIN_IDLE, began, bursts)
    if done.not_before and daemon.asks_readiness:
        done.pools = daemon.pools()
    tell(done, stage.rtt)
    return done


def measure_direct(
    stage: Stage, kind: str, state: str, ask: Callable[[], list[Answer]], *proxy: int
) -> Round:
    """A burst that meets no warm connection. `proxy`: the process, where one is in between."""
    watch = stage.watch(*proxy)
    answers = ask()
    done = Round(kind, state, len(answers), 0.0, answers, watch.disturbance())
    done.cpu = {name: watch.ran()[pid] for name, pid in stage.load.items()}
    done.not_before = len(answers)
    return done


def tell(done: Round, rtt: float) -> None:
    slowest = max(answer.seconds for answer in done.answers) / rtt
    print(
        f"{done.kind:14} {done.state:14} burst {done.n:2}  quiet {done.quiet:5.2f} s"
        f"  slowest {slowest:.2f} RTT  not open before: {done.not_before}"
        f"  disturbed for {done.disturbance * 1000:.1f} ms",
        *{answer.error for answer in done.answers if answer.error},
        file=sys.stderr,
    )


@dataclass
class Cell:
    """All rounds of one line of the table, in units of the measured RTT."""

    kind: str
    state: str
    n: int
    rounds: int = 0
    requests: int = 0
    disturbed: int = 0  # rounds, which give no times ...
    disturbed_used: bool = False  # ... unless too few would be left
    p50: float | None = None
    p99: float | None = None  # nearest rank: the slowest, of less than 100
    slowest: float | None = None
    shaken: float | None = None  # median until the client's own handshake was done ...
    beside: float | None = None  # ... and of what each took beside it
    opened_before: float = 0.0  # percent
    cpu: dict[str, float] = field(default_factory=dict)  # seconds a round, median
    errors: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """No failure, and every request met an open connection."""
        return not self.errors and self.opened_before == 100 and self.p50 is not None


def summarise(key: tuple[str, str, int], rounds: Sequence[Round], rtt: float, enough: int) -> Cell:
    answers = [answer for r in rounds for answer in r.answers]
    cell = Cell(*key, rounds=len(rounds), requests=len(answers))
    if not rounds:
        return cell
    cell.errors = [answer.error for answer in answers if answer.error]
    cell.opened_before = 100 * (1 - sum(r.not_before for r in rounds) / len(answers))
    timed = [r for r in rounds if not r.disturbed]
    cell.disturbed = len(rounds) - len(timed)
    if len(timed) < enough:
        timed, cell.disturbed_used = list(rounds), True
    names = timed[0].cpu
    cell.cpu = {name: statistics.median(r.cpu[name] for r in timed) for name in names}
    times = sorted(a.seconds / rtt for r in timed for a in r.answers if not a.error)
    if times:
        cell.p50, cell.slowest = statistics.median(times), times[-1]
        cell.p99 = times[math.ceil(0.99 * len(times)) - 1]
    if shaken := [a for r in timed for a in r.answers if a.shaken is not None]:
        cell.shaken = statistics.median(a.shaken / rtt for a in shaken)
        cell.beside = statistics.median((a.seconds - a.shaken) / rtt for a in shaken)
    return cell
