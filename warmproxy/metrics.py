"""A sample -> Prometheus. The only importer of prometheus_client, imported at the first scrape.

Nothing here runs per request: a scrape reads plain integers. A page of many origins is long (0.8 ms
of work for each), so it is made piece by piece, and the loop turns between two pieces.
"""

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any, TypeVar

from prometheus_client import PlatformCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from warmproxy import __version__
from warmproxy.observe import CloseReason, Histogram, Outcome, Tally
from warmproxy.sample import Gauges, Sample

PIECE = 100
"""Samples that are written at once: about a millisecond's work."""

T = TypeVar("T")
M = TypeVar("M", bound=Metric)

_PLATFORM = PlatformCollector(registry=None)


class Processes:
    """process_* of prometheus_client's ProcessCollector under its names: of all processes of this
    daemon, added up, but for the start, which is the first one's. `pids` is asked at each scrape.

    That one lists /proc/self/fd to count what is in it: 66 ms with 19,000 descriptors.
    """

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._spent: dict[int, float] = {}
        """Processor time of each process that was ever seen: a counter must not fall."""

    def collect(self) -> Iterator[Metric]:
        """Nothing where there is no /proc."""
        tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGESIZE")
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        started = []
        sizes = {"virtual_memory_bytes": 0, "resident_memory_bytes": 0, "open_fds": 0, "max_fds": 0}
        for pid in self._pids():
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    stat = file.read().rpartition(b")")[2].split()
                # Linux tells the number since 6.2
                descriptors = os.stat(f"/proc/{pid}/fd").st_size
                sizes["open_fds"] += descriptors or len(os.listdir(f"/proc/{pid}/fd"))
                sizes["max_fds"] += resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
            except OSError:
                continue  # it has just ended
            self._spent[pid] = (int(stat[11]) + int(stat[12])) / tick
            sizes["virtual_memory_bytes"] += int(stat[20])
            sizes["resident_memory_bytes"] += int(stat[21]) * page
            started.append(booted + int(stat[19]) / tick)
        if not started:
            return
        for name, text, value in (
            ("virtual_memory_bytes", "Virtual memory size in bytes.", None),
            ("resident_memory_bytes", "Resident memory size in bytes.", None),
            ("start_time_seconds", "Start time of the process since unix epoch.", min(started)),
            ("open_fds", "Number of open file descriptors.", None),
            ("max_fds", "Maximum number of open file descriptors.", None),
        ):
            value = sizes[name] if value is None else value
            yield GaugeMetricFamily(f"process_{name}", text, value=value)
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            value=sum(self._spent.values()),
        )


_OWN = Processes(lambda: [os.getpid()])


def render(sample: Sample, accept: str, processes: Processes = _OWN) -> tuple[Iterator[bytes], str]:
    """The page in pieces, and its content type: OpenMetrics where `accept` asks for it."""
    encoder, content_type = choose_encoder(accept)
    return _encoded(_collect(sample, processes), encoder), content_type


def families() -> list[tuple[str, str, str]]:
    """(name as scraped, type, help) of our own families: what docs/ must list."""
    nothing = Sample(tallies={}, gauges={}, clients=0, tunnels=0, loop_lag=0.0)
    return [
        (f"{m.name}_total" if m.type == "counter" else m.name, m.type, m.documentation)
        for m in _collect(nothing, _OWN)
        if m.name.startswith("warmproxy_")
    ]


def _collect(sample: Sample, processes: Processes) -> Iterator[Metric]:
    yield from _gauges(sample)
    yield from _counters(sample)
    yield from _histograms(sample)
    yield from _PLATFORM.collect()
    yield from processes.collect()


def _encoded(metrics: Iterator[Metric], encoder: Callable[[Any], bytes]) -> Iterator[bytes]:
    """Each metric as its own page would have it, without what a page has once."""
    said = ""
    end = b""
    for metric in metrics:
        text, eof, _ = encoder(_Page(metric)).partition(b"# EOF\n")  # OpenMetrics
        while metric.name == said and text.startswith(b"# "):  # HELP and TYPE were there
            text = text.partition(b"\n")[2]
        said = metric.name
        end = eof
        yield text
    yield end


class _Page:
    """One metric in place of a registry."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _pieces(
    make: Callable[[], M], of: dict[str, T], add: Callable[[M, str, T], None]
) -> Iterator[Metric]:
    """A family whose samples `add` adds for each origin: in pieces, at least one."""
    family = make()
    for origin, values in of.items():
        if len(family.samples) >= PIECE:
            yield family
            family = make()
        add(family, origin, values)
    yield family


def _gauges(sample: Sample) -> Iterator[Metric]:
    def gauge(
        name: str,
        text: str,
        label: str | None,
        add: Callable[[GaugeMetricFamily, str, Gauges], None],
    ) -> Iterator[Metric]:
        labels = ("origin", label) if label else ("origin",)
        return _pieces(lambda: GaugeMetricFamily(name, text, labels=labels), sample.gauges, add)

    def connections(family: GaugeMetricFamily, origin: str, now: Gauges) -> None:
        for state in ("fresh", "used", "active", "dialling"):
            family.add_metric((origin, state), getattr(now, state))

    def limits(family: GaugeMetricFamily, origin: str, now: Gauges) -> None:
        for kind, seconds in now.idle_limits:
            family.add_metric((origin, kind), seconds)

    yield from gauge(
        "warmproxy_upstream_connections",
        "Upstream connections by state: fresh and used are idle, dialling is on its way",
        "state",
        connections,
    )
    yield from gauge(
        "warmproxy_target_idle",
        "Idle connections there should be",
        None,
        lambda family, origin, now: family.add_metric((origin,), now.target_idle),
    )
    yield from gauge(
        "warmproxy_waiting",
        "Requests that wait for a connection",
        None,
        lambda family, origin, now: family.add_metric((origin,), now.waiting),
    )
    yield from gauge(
        "warmproxy_idle_limit_seconds",
        "Idle age at which the upstream closes a connection of this kind: learned, or announced",
        "kind",
        limits,
    )
    yield GaugeMetricFamily("warmproxy_clients", "Client connections", value=sample.clients)
    yield GaugeMetricFamily("warmproxy_tunnels", "Open CONNECT tunnels", value=sample.tunnels)
    yield GaugeMetricFamily(
        "warmproxy_loop_lag_seconds",
        "How late the last once-a-second timer of the event loop fired",
        value=sample.loop_lag,
    )
    yield GaugeMetricFamily(
        "warmproxy_config_last_reload_successful",
        "Whether the settings that were read last, at start or by SIGHUP, hold",
        value=sample.reload_is_good,
    )
    yield GaugeMetricFamily(
        "warmproxy_config_last_reload_success_timestamp_seconds",
        "When those that hold were read, in seconds since the epoch",
        value=sample.reload_good_at,
    )
    if sample.authority_ends is not None:
        yield GaugeMetricFamily(
            "warmproxy_authority_not_after_timestamp_seconds",
            "When the authority of intercepted origins expires, in seconds since the epoch",
            value=sample.authority_ends,
        )
    answers = GaugeMetricFamily(
        "warmproxy_process_up",
        "1 if the process answers; if not, the last that it said is in the sums",
        labels=("process",),
    )
    for number, (is_up, _) in sample.processes.items():
        answers.add_metric((number,), is_up)
    yield answers
    build = GaugeMetricFamily("warmproxy_build_info", "Always 1", labels=("version",))
    build.add_metric((__version__,), 1)
    yield build


def _counters(sample: Sample) -> Iterator[Metric]:
    def labelled(
        name: str, text: str, label: str, attribute: str, known: Iterable[str] = ()
    ) -> Iterator[Metric]:
        def add(family: CounterMetricFamily, origin: str, tally: Tally) -> None:
            counts = getattr(tally, attribute)
            # a series that appears with its first event has no increase to alert on
            for value in dict.fromkeys((*known, *counts)):
                family.add_metric((origin, value), counts.get(value, 0))

        labels = ("origin", label)
        return _pieces(lambda: CounterMetricFamily(name, text, labels=labels), sample.tallies, add)

    def plain(name: str, text: str, attribute: str) -> Iterator[Metric]:
        def add(family: CounterMetricFamily, origin: str, tally: Tally) -> None:
            family.add_metric((origin,), getattr(tally, attribute))

        return _pieces(
            lambda: CounterMetricFamily(name, text, labels=("origin",)), sample.tallies, add
        )

    def tunnel_bytes(family: CounterMetricFamily, origin: str, tally: Tally) -> None:
        family.add_metric((origin, "up"), tally.tunnel_bytes_up)
        family.add_metric((origin, "down"), tally.tunnel_bytes_down)

    yield from labelled(
        "warmproxy_acquires",
        "Connections asked for, by outcome: fresh and used were open before the request",
        "outcome",
        "acquires",
        Outcome,
    )
    yield from labelled("warmproxy_dials", "Dials by result", "result", "dials", ("ok",))
    yield from labelled(
        "warmproxy_closed",
        "Upstream connections closed, by reason",
        "reason",
        "closed",
        CloseReason,
    )
    yield from labelled(
        "warmproxy_requests", "Answers by class of status code", "code_class", "requests"
    )
    yield from labelled(
        "warmproxy_retries", "Requests sent a second time", "reason", "retries", ("stale",)
    )
    yield from labelled(
        "warmproxy_primes",
        "Requests of our own that keep connections in use, by result",
        "result",
        "primes",
    )
    yield from plain(
        "warmproxy_connect_seconds_saved",
        "Dial time of the connections that were handed out warm",
        "saved_seconds",
    )
    yield from plain(
        "warmproxy_idle_socket_seconds", "Seconds that connections were idle", "idle_socket_seconds"
    )
    yield from plain("warmproxy_dials_wasted", "Connections that ended unused", "dials_wasted")
    yield from plain(
        "warmproxy_below_target_seconds",
        "Seconds with fewer idle connections than target_idle",
        "below_target_seconds",
    )
    yield from plain("warmproxy_tunnels_opened", "CONNECT tunnels opened", "tunnels")
    yield from _pieces(
        lambda: CounterMetricFamily(
            "warmproxy_tunnel_bytes",
            "Bytes through ended tunnels, up (from the client) and down",
            labels=("origin", "direction"),
        ),
        sample.tallies,
        tunnel_bytes,
    )
    restarts = CounterMetricFamily(
        "warmproxy_process_restarts",
        "Processes that were started in the place of one that had ended",
        labels=("process",),
    )
    for number, (_, count) in sample.processes.items():
        restarts.add_metric((number,), count)
    yield restarts


def _histograms(sample: Sample) -> Iterator[Metric]:
    def plain(name: str, text: str, attribute: str) -> Iterator[Metric]:
        def add(family: HistogramMetricFamily, origin: str, tally: Tally) -> None:
            _add(family, (origin,), getattr(tally, attribute))

        return _pieces(
            lambda: HistogramMetricFamily(name, text, labels=("origin",)), sample.tallies, add
        )

    def dials(family: HistogramMetricFamily, origin: str, tally: Tally) -> None:
        for phase, histogram in tally.dial_seconds.items():
            _add(family, (origin, phase), histogram)

    yield from plain(
        "warmproxy_acquire_wait_seconds", "Waits of acquires that were no hit", "acquire_wait"
    )
    yield from plain(
        "warmproxy_first_byte_seconds", "From a request to its response's start", "first_byte"
    )
    yield from plain(
        "warmproxy_redial_gap_seconds",
        "From the loss of an idle connection to its replacement",
        "redial_gap",
    )
    yield from _pieces(
        lambda: HistogramMetricFamily(
            "warmproxy_dial_seconds", "Successful dials by phase", labels=("origin", "phase")
        ),
        sample.tallies,
        dials,
    )


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, inf), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == inf else str(bound), total))
    family.add_metric(labels, buckets, histogram.total)
