"""Writes warmproxy.json, the Grafana dashboard: `python config/grafana/dashboard.py`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("warmproxy.json")
Panel = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
DAEMONS = '{job=~"$job",instance=~"$instance"}'
ORIGINS = '{job=~"$job",instance=~"$instance",origin=~"$origin"}'
WIDTH, HEIGHT = 8, 7
"""Of a panel; a row is 24 wide."""


def of(labels: str = "") -> str:
    """The selector of what an origin is a label of."""
    return f"{ORIGINS[:-1]},{labels}}}" if labels else ORIGINS


def rate(name: str, by: str = "", labels: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate(warmproxy_{name}{of(labels)}[$__rate_interval]))"


def level(name: str, by: str = "", labels: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (warmproxy_{name}{of(labels)})"


def quantile(q: float, name: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(name + '_seconds_bucket', labels)})"


HIT = 'outcome=~"fresh|used"'
IDLE = 'state=~"fresh|used"'
HIT_RATIO = f"{rate('acquires_total', labels=HIT)} / {rate('acquires_total')}"
LIMITS = f"min by (origin, kind) (warmproxy_idle_limit_seconds{ORIGINS})"
BY_ORIGIN = f"{rate('acquires_total', 'origin', HIT)} / {rate('acquires_total', 'origin')}"


def panel(kind: str, title: str, unit: str, about: str, **queries: str) -> Panel:
    """`queries`: legend -> expression; in a legend, `__` stands for a label's braces."""
    targets = [
        {
            "refId": "ABCDEFGH"[i],
            "datasource": SOURCE,
            "expr": expr,
            "legendFormat": f"{{{{{legend[2:]}}}}}" if legend.startswith("__") else legend,
        }
        for i, (legend, expr) in enumerate(queries.items())
    ]
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": targets,
    }


def number(title: str, unit: str, about: str, expr: str, most: float | None = None) -> Panel:
    made = panel("stat", title, unit, about, **{title: expr})
    made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
    if most is not None:
        made["fieldConfig"]["defaults"]["max"] = most
    return made


def graph(title: str, unit: str, about: str, *, stacked: bool = False, **queries: str) -> Panel:
    made = panel("timeseries", title, unit, about, **queries)
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if stacked:
        custom = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
        made["fieldConfig"]["defaults"]["custom"] = custom
    return made


ROWS: dict[str, list[Panel]] = {
    "At a glance": [
        number("Hit ratio", "percentunit", "Requests that found a connection open.", HIT_RATIO, 1),
        number(
            "Saved",
            "s",
            "Seconds of connecting that requests did not wait for, in the time shown.",
            f"sum (increase(warmproxy_connect_seconds_saved_total{ORIGINS}[$__range]))",
        ),
        number("Requests", "reqps", "Connections asked for.", rate("acquires_total")),
        number("Warm", "short", "Idle connections.", level("upstream_connections", labels=IDLE)),
        number(
            "Missing",
            "short",
            "Fewer idle than there should be, over all pools.",
            f"sum (clamp_min(warmproxy_target_idle{ORIGINS} - on (job, instance, origin) "
            f"sum by (job, instance, origin) (warmproxy_upstream_connections{of(IDLE)}), 0))",
        ),
        number("Daemons", "short", "That answer.", f"sum (up{DAEMONS})"),
    ],
    "Is it worth it?": [
        graph("Hit ratio by origin", "percentunit", "", __origin=BY_ORIGIN),
        graph(
            "Acquires by outcome",
            "reqps",
            "fresh and used were open; dialled and waited were waited for; failed had none.",
            stacked=True,
            __outcome=rate("acquires_total", "outcome"),
        ),
        graph(
            "Saved, and what it costs",
            "short",
            "Seconds of connecting saved a second, against connections held idle.",
            saved=rate("connect_seconds_saved_total"),
            idle=rate("idle_socket_seconds_total"),
        ),
    ],
    "Pools": [
        graph(
            "Connections",
            "short",
            "fresh and used are idle, active ones carry a request, dialling ones are on their way.",
            stacked=True,
            __state=level("upstream_connections", "state"),
        ),
        graph("Idle", "short", "", __origin=level("upstream_connections", "origin", IDLE)),
        graph(
            "Target", "short", "Idle that there should be.", __origin=level("target_idle", "origin")
        ),
        graph(
            "Below target",
            "percentunit",
            "Share of the time with fewer idle connections than there should be, of all daemons.",
            __origin=rate("below_target_seconds_total", "origin"),
        ),
        graph(
            "Waiting",
            "short",
            "Requests that wait for a connection.",
            __origin=level("waiting", "origin"),
        ),
        graph(
            "Wait of those that were no hit",
            "s",
            "",
            median=quantile(0.5, "acquire_wait"),
            p95=quantile(0.95, "acquire_wait"),
        ),
        graph("Dials", "ops", "By result.", stacked=True, __result=rate("dials_total", "result")),
        graph(
            "Dial time, 95th percentile",
            "s",
            "By phase; what a warm connection saves.",
            __phase=quantile(0.95, "dial", "phase"),
        ),
        graph(
            "Closed",
            "ops",
            "By reason: docs/operations.md says who closed, and why.",
            stacked=True,
            __reason=rate("closed_total", "reason"),
        ),
        graph(
            "Unused",
            "ops",
            "Connections that ended without serving.",
            __origin=rate("dials_wasted_total", "origin"),
        ),
        graph(
            "Redial gap, 95th percentile",
            "s",
            "From a loss to the replacement.",
            __origin=quantile(0.95, "redial_gap", "origin"),
        ),
        graph(
            "Idle limits",
            "s",
            "At which idle age the upstream closes: learned, or announced.",
            **{"{{origin}} {{kind}}": LIMITS},
        ),
    ],
    "Requests": [
        graph(
            "Answers",
            "reqps",
            "By class of status code.",
            stacked=True,
            __code_class=rate("requests_total", "code_class"),
        ),
        graph(
            "To the first byte",
            "s",
            "From a request to its response's start.",
            median=quantile(0.5, "first_byte"),
            p95=quantile(0.95, "first_byte"),
            p99=quantile(0.99, "first_byte"),
        ),
        graph("Sent again", "reqps", "By reason.", __reason=rate("retries_total", "reason")),
        graph(
            "Primes",
            "reqps",
            "Requests of our own that keep connections in use.",
            __result=rate("primes_total", "result"),
        ),
        graph(
            "Tunnels",
            "short",
            "",
            open=f"sum (warmproxy_tunnels{DAEMONS})",
            **{"opened a second": rate("tunnels_opened_total")},
        ),
        graph(
            "Through ended tunnels",
            "Bps",
            "up: from the client.",
            __direction=rate("tunnel_bytes_total", "direction"),
        ),
    ],
    "Daemons": [
        graph(
            "Loop lag",
            "s",
            "Above some hundredths: it lacks processor time.",
            __instance=f"max by (instance) (warmproxy_loop_lag_seconds{DAEMONS})",
        ),
        graph(
            "Processor",
            "percentunit",
            "Of one core.",
            __instance=f"sum by (instance) (rate(process_cpu_seconds_total{DAEMONS}"
            "[$__rate_interval]))",
        ),
        graph(
            "Memory",
            "bytes",
            "Resident.",
            __instance=f"sum by (instance) (process_resident_memory_bytes{DAEMONS})",
        ),
        graph(
            "Clients",
            "short",
            "Client connections.",
            __instance=f"sum by (instance) (warmproxy_clients{DAEMONS})",
        ),
        graph(
            "File descriptors",
            "percentunit",
            "In use, of what is allowed.",
            __instance=f"max by (instance) (process_open_fds{DAEMONS} / process_max_fds)",
        ),
        graph(
            "Versions",
            "short",
            "Daemons by version.",
            __version=f"count by (version) (warmproxy_build_info{DAEMONS})",
        ),
    ],
}


def placed() -> Iterator[Panel]:
    """All rows and panels, each with its number and place."""
    y = ident = 0
    for title, panels in ROWS.items():
        ident += 1
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        row = {"id": ident, "type": "row", "title": title, "collapsed": False, "panels": []}
        yield row | {"gridPos": place}
        y += 1
        small = panels[0]["type"] == "stat"
        width, height = (24 // len(panels), 4) if small else (WIDTH, HEIGHT)
        for i, made in enumerate(panels):
            ident += 1
            across = 24 // width
            place = {"x": i % across * width, "y": y + i // across * height}
            yield {"id": ident} | made | {"gridPos": place | {"w": width, "h": height}}
        y += -(-len(panels) // (24 // width)) * height


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    picked = 'job=~"$job",instance=~"$instance"'
    return {
        "uid": "warmproxy",
        "title": "warmproxy",
        "description": "Connections that are open before they are asked for.",
        "tags": ["warmproxy"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                },
                variable("job", "Job", "label_values(warmproxy_build_info, job)"),
                variable(
                    "instance",
                    "Daemon",
                    'label_values(warmproxy_build_info{job=~"$job"}, instance)',
                ),
                variable(
                    "origin", "Origin", f"label_values(warmproxy_target_idle{{{picked}}}, origin)"
                ),
            ]
        },
        "annotations": {"list": []},
        "panels": list(placed()),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
