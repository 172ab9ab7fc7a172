"""A real Prometheus asks a real daemon: what it gets, and what the rules and panels make of it."""

import http.client
import json
import math
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.e2e.daemon import Reply, fetch_on
from tests.e2e.harness import ROOT, Process, eventually, free_port, need
from warmproxy.net.authority import create

CONFIG = ROOT / "config"
WINDOW = "4s"
"""In place of the time that Grafana puts into rates: 20 scrapes."""


class Prometheus(Process):
    """With the project's rules, asking every fifth of a second; `targets` are host:port."""

    def __init__(self, home: Path, *targets: str) -> None:
        self.port = free_port()
        config = {
            "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
            "rule_files": [str(CONFIG / "prometheus" / f"{n}.yml") for n in ("rules", "alerts")],
            "scrape_configs": [
                {"job_name": "warmproxy", "static_configs": [{"targets": list(targets)}]}
            ],
        }
        (home / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        super().__init__(
            [
                need("prometheus"),
                f"--config.file={home}/prometheus.yml",
                f"--storage.tsdb.path={home}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            home / "log",
            home,
        )

    def get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return {}  # it is starting
            raise AssertionError(f"{query}: {json.load(error)['error']}") from None
        except OSError:
            return {}  # it has not started yet

    def ask(self, query: str) -> list[float]:
        """The values of all series that are the answer now."""
        return [float(row["value"][1]) for row in self.get("query", query=query).get("result", ())]


@pytest.fixture
def prometheus(stack: Any, home: Callable[[str], Path]) -> Callable[..., Prometheus]:
    def start(*targets: str) -> Prometheus:
        made = Prometheus(home("prometheus"), *targets)
        stack.callback(made.stop)
        return made

    return start


def panels() -> Iterator[tuple[str, str]]:
    """(title, expression) of each query, with every variable at "all"."""
    board = json.loads((CONFIG / "grafana" / "warmproxy.json").read_text())
    names = [variable["name"] for variable in board["templating"]["list"]]
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            expr = re.sub(r"\$__(rate_interval|range)\b", WINDOW, target["expr"])
            for name in names:
                expr = re.sub(rf"\${name}\b", ".*", expr)
            assert "$" not in expr
            yield panel["title"], expr


def test_every_panel_and_rule_has_an_answer(warmproxy, origin, prometheus, stack) -> None:
    """A daemon with some of everything (requests, tunnels, primes, closes, requests that wait) is
    scraped: each query of the dashboard has numbers, and no rule fails."""

    def answer(connection: Any, request: Any) -> None:
        connection.read_body(request)
        connection.reply(b"hello", headers=(("Keep-Alive", "timeout=30"),))

    web, far = origin(answer), origin(raw=lambda c: c.send(c.receive() * 3))
    quiet = origin()
    proxy = warmproxy(
        config={
            "upstream": [
                {"url": quiet.url, "warm": 1},
                {"url": web.url, "warm": 2, "max_connections": 4, "prime": "HEAD /"},
                {"url": f"https://{far.authority}", "warm": 1},
            ]
        }
    )
    server = prometheus(proxy.admin)
    over = threading.Event()

    def load() -> None:
        while not over.wait(0.1):
            held = [proxy.connect() for _ in range(8)]  # twice as many as there can be connections
            for client in held:
                client.request("GET", f"{web.url}/")
            for client in held:
                client.getresponse().read()
                client.close()
            for idle in quiet.idle_connections():
                # at one age, it would be learned and forestalled; at once, refills would pause
                if time.monotonic() - idle.opened_at > 0.6 + idle.number * 1.3 % 3:
                    idle.fin()
            with proxy.tunnel(far.authority) as tunnel:
                tunnel.sendall(b"12345")
                while tunnel.recv(100):
                    pass

    thread = threading.Thread(target=load)
    stack.callback(thread.join)
    stack.callback(over.set)
    thread.start()

    def unanswered() -> list[str]:
        return [
            f"{title}: {expr}"
            for title, expr in panels()
            if not any(map(math.isfinite, server.ask(expr)))
        ]

    eventually(lambda: not unanswered(), timeout=30, says=lambda: "\n".join(unanswered()))
    assert server.ask('up{job="warmproxy"}') == [1]

    def rules() -> list[dict[str, Any]]:
        return [rule for group in server.get("rules")["groups"] for rule in group["rules"]]

    eventually(lambda: {r["health"] for r in rules()} == {"ok"}, says=rules)
    recorded = [r["name"] for r in rules() if r["type"] == "recording"]
    assert len(recorded) >= 10
    eventually(
        lambda: all(map(server.ask, recorded)),
        says=lambda: [name for name in recorded if not server.ask(name)],
    )


def test_the_rules_name_only_what_there_is(warmproxy, origin, home) -> None:
    """Each metric in a rule is one that the daemon has, or another rule records."""
    web, ca = origin(), home("authority") / "ca"
    create(ca, ["localhost"], now=time.time(), days=1)
    intercepted = {"url": "https://localhost:1", "warm": 0, "intercept": True}
    upstreams = [{"url": web.url, "warm": 1}, intercepted]
    proxy = warmproxy(config={"ca_dir": str(ca), "upstream": upstreams})
    assert proxy.fetch(f"{web.url}/").status == 200
    there = {s.name for f in proxy.metrics().families.values() for s in f.samples}
    text = "".join((CONFIG / "prometheus" / f"{n}.yml").read_text() for n in ("rules", "alerts"))
    text = re.sub(r"(?m)^ *(summary|description|#).*$", "", text)
    recorded = set(re.findall(r"record: (\S+)", text))
    named = set(re.findall(r"\b(?:\w+:)*(?:warmproxy|process)_\w+(?::\w+)?", text))
    assert len(named) > 15
    assert named - recorded - there - {"instance_origin"} == set()


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends, by its source; the one that is installed is asked itself."""


@pytest.mark.parametrize("whose", ["installed", "3"])
def test_prometheus_is_given_open_metrics(whose: str, warmproxy, origin, prometheus) -> None:
    """What Prometheus says in Accept is answered in OpenMetrics, and that can be read."""
    accept = PROMETHEUS_3
    if whose == "installed":
        asked = origin()
        prometheus(asked.authority)
        eventually(lambda: asked.requests)
        accept = asked.requests[0].header("accept")
    proxy = warmproxy("--warm", f"{asked.url if whose == 'installed' else origin().url}=1")
    reply = fetch_admin(proxy.admin_port, accept)
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert reply.text.endswith("# EOF\n")
    families = {f.name: f.type for f in text_string_to_metric_families(reply.text)}
    assert families["warmproxy_acquires"] == "counter"
    assert families["warmproxy_dial_seconds"] == "histogram"


def fetch_admin(port: int, accept: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        return fetch_on(connection, "/metrics", headers={"Accept": accept})
    finally:
        connection.close()
