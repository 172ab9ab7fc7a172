"""Tallies and pools -> Prometheus. The only importer of prometheus_client.

Nothing here runs per request: a scrape reads plain integers. Origins that are not configured
share the label origin="other", so that clients cannot grow the number of series.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import inf

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from warmproxy import __version__
from warmproxy.observe import CloseReason, Histogram, Outcome, Tally


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is now, of one label's pools."""

    fresh: int = 0
    used: int = 0
    active: int = 0
    dialling: int = 0
    waiting: int = 0
    target_idle: int = 0
    idle_limits: tuple[tuple[str, float], ...] = ()
    """(kind, seconds) of the limits that were learned."""

    def __add__(self, other: "Gauges") -> "Gauges":
        return Gauges(
            self.fresh + other.fresh,
            self.used + other.used,
            self.active + other.active,
            self.dialling + other.dialling,
            self.waiting + other.waiting,
            self.target_idle + other.target_idle,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """All that one scrape shows, by the label `origin`."""

    tallies: dict[str, Tally]
    gauges: dict[str, Gauges]
    clients: int
    tunnels: int
    loop_lag: float
    reload_is_good: bool = True
    reload_good_at: float = 0.0
    """Seconds since the epoch."""
    processes: dict[str, tuple[bool, int]] = field(default_factory=lambda: {"1": (True, 0)})
    """By number: whether it answers, and how often it was started anew."""


class _Pools(Collector):
    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._sample = sample

    def describe(self) -> Iterable[Metric]:
        return []  # asked at registration, when there is nothing to show yet

    def collect(self) -> Iterator[Metric]:
        sample = self._sample()
        yield from _gauges(sample)
        yield from _counters(sample)
        yield from _histograms(sample)


class _Processes(Collector):
    """What ProcessCollector says of each process, added up; the start is the first one's."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._counted: dict[int, float] = {}
        """Processor time of each process that was ever seen: a counter must not fall."""

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        found: dict[str, list[Metric]] = {}
        for pid in self._pids():
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                found.setdefault(metric.name, []).append(metric)
                if metric.type == "counter":
                    self._counted[pid] = metric.samples[0].value
        for name, each in found.items():
            values = [metric.samples[0].value for metric in each]
            if each[0].type == "counter":
                value = sum(self._counted.values())
                yield CounterMetricFamily(name, each[0].documentation, value=value)
            else:
                value = min(values) if name == "process_start_time_seconds" else sum(values)
                yield GaugeMetricFamily(name, each[0].documentation, value=value)


class Exposition:
    """The registry behind /metrics. `sample` is called at each scrape, and `pids` too: the
    processes that process_* add up."""

    def __init__(
        self, sample: Callable[[], Sample], pids: Callable[[], list[int]] | None = None
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Pools(sample))
        if pids is None:
            ProcessCollector(registry=self._registry)
        else:
            self._registry.register(_Processes(pids))
        PlatformCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type: OpenMetrics where `accept` asks for it."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type

    def families(self) -> list[tuple[str, str, str]]:
        """(name as scraped, type, help) of our own families: what docs/ must list."""
        return [
            (f"{m.name}_total" if m.type == "counter" else m.name, m.type, m.documentation)
            for m in self._registry.collect()
            if m.name.startswith("warmproxy_")
        ]


def _gauges(sample: Sample) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        "warmproxy_upstream_connections",
        "Upstream connections by state: fresh and used are idle, dialling is on its way",
        labels=("origin", "state"),
    )
    target = GaugeMetricFamily(
        "warmproxy_target_idle", "Idle connections there should be", labels=("origin",)
    )
    waiting = GaugeMetricFamily(
        "warmproxy_waiting", "Requests that wait for a connection", labels=("origin",)
    )
    limits = GaugeMetricFamily(
        "warmproxy_idle_limit_seconds",
        "Idle age at which the upstream closes a connection of this kind: learned, or announced",
        labels=("origin", "kind"),
    )
    for origin, now in sample.gauges.items():
        for state in ("fresh", "used", "active", "dialling"):
            connections.add_metric((origin, state), getattr(now, state))
        target.add_metric((origin,), now.target_idle)
        waiting.add_metric((origin,), now.waiting)
        for kind, seconds in now.idle_limits:
            limits.add_metric((origin, kind), seconds)
    yield connections
    yield target
    yield waiting
    yield limits
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
    tallies = sample.tallies

    def labelled(
        name: str, text: str, label: str, attribute: str, known: Iterable[str] = ()
    ) -> Metric:
        family = CounterMetricFamily(name, text, labels=("origin", label))
        for origin, tally in tallies.items():
            counts = getattr(tally, attribute)
            # a series that appears with its first event has no increase to alert on
            for value in dict.fromkeys((*known, *counts)):
                family.add_metric((origin, value), counts.get(value, 0))
        return family

    def plain(name: str, text: str, attribute: str) -> Metric:
        family = CounterMetricFamily(name, text, labels=("origin",))
        for origin, tally in tallies.items():
            family.add_metric((origin,), getattr(tally, attribute))
        return family

    yield labelled(
        "warmproxy_acquires",
        "Connections asked for, by outcome: fresh and used were open before the request",
        "outcome",
        "acquires",
        Outcome,
    )
    yield labelled("warmproxy_dials", "Dials by result", "result", "dials", ("ok",))
    yield labelled(
        "warmproxy_closed",
        "Upstream connections closed, by reason",
        "reason",
        "closed",
        CloseReason,
    )
    yield labelled(
        "warmproxy_requests", "Answers by class of status code", "code_class", "requests"
    )
    yield labelled(
        "warmproxy_retries", "Requests sent a second time", "reason", "retries", ("stale",)
    )
    yield labelled(
        "warmproxy_primes",
        "Requests of our own that keep connections in use, by result",
        "result",
        "primes",
    )
    yield plain(
        "warmproxy_connect_seconds_saved",
        "Dial time of the connections that were handed out warm",
        "saved_seconds",
    )
    yield plain(
        "warmproxy_idle_socket_seconds", "Seconds that connections were idle", "idle_socket_seconds"
    )
    yield plain("warmproxy_dials_wasted", "Connections that ended unused", "dials_wasted")
    yield plain(
        "warmproxy_below_target_seconds",
        "Seconds with fewer idle connections than target_idle",
        "below_target_seconds",
    )
    yield plain("warmproxy_tunnels_opened", "CONNECT tunnels opened", "tunnels")
    tunnel_bytes = CounterMetricFamily(
        "warmproxy_tunnel_bytes",
        "Bytes through ended tunnels, up (from the client) and down",
        labels=("origin", "direction"),
    )
    for origin, tally in tallies.items():
        tunnel_bytes.add_metric((origin, "up"), tally.tunnel_bytes_up)
        tunnel_bytes.add_metric((origin, "down"), tally.tunnel_bytes_down)
    yield tunnel_bytes
    restarts = CounterMetricFamily(
        "warmproxy_process_restarts",
        "Processes that were started in the place of one that had ended",
        labels=("process",),
    )
    for number, (_, count) in sample.processes.items():
        restarts.add_metric((number,), count)
    yield restarts


def _histograms(sample: Sample) -> Iterator[Metric]:
    def plain(name: str, text: str, attribute: str) -> Metric:
        family = HistogramMetricFamily(name, text, labels=("origin",))
        for origin, tally in sample.tallies.items():
            _add(family, (origin,), getattr(tally, attribute))
        return family

    yield plain(
        "warmproxy_acquire_wait_seconds", "Waits of acquires that were no hit", "acquire_wait"
    )
    yield plain(
        "warmproxy_first_byte_seconds", "From a request to its response's start", "first_byte"
    )
    yield plain(
        "warmproxy_redial_gap_seconds",
        "From the loss of an idle connection to its replacement",
        "redial_gap",
    )
    dials = HistogramMetricFamily(
        "warmproxy_dial_seconds", "Successful dials by phase", labels=("origin", "phase")
    )
    for origin, tally in sample.tallies.items():
        for phase, histogram in tally.dial_seconds.items():
            _add(dials, (origin, phase), histogram)
    yield dials


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, inf), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == inf else str(bound), total))
    family.add_metric(labels, buckets, histogram.total)
