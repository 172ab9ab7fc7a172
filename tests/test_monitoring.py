"""config/prometheus and config/grafana, as far as they can be judged without a daemon."""

import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.harness import need

CONFIG = Path(__file__).parent.parent / "config"
PROMETHEUS = CONFIG / "prometheus"


def read(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))


ALERTS = {rule["alert"]: rule for group in read("alerts.yml")["groups"] for rule in group["rules"]}
RULES = [rule for name in ("rules", "alerts") for g in read(f"{name}.yml")["groups"]
         for rule in g["rules"]]  # fmt: skip


def promtool(*args: str) -> None:
    done = subprocess.run(
        [need("promtool"), *args], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["prometheus", "compose", "kubernetes"])
def test_prometheus_takes_the_examples_and_the_rules(name: str, tmp_path: Path) -> None:
    """promtool finds nothing wrong with the configuration and the files that it names. Debian's
    knows no Kubernetes, so that its discovery of pods is left out for it."""
    config = read(f"{name}.yml")
    config["rule_files"] = [str(PROMETHEUS / file) for file in config["rule_files"]]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "warmproxy"  # the alerts go by it
    if found := job.pop("kubernetes_sd_configs", None):
        assert found == [{"role": "pod"}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_a_sidecar_and_a_daemon_of_a_node_are_found() -> None:
    """What kubernetes.yml keeps is how the manifests call container and port."""
    (job,) = read("kubernetes.yml")["scrape_configs"]
    (keep,) = [r for r in job["relabel_configs"] if r.get("action") == "keep"]
    container, port = keep["regex"].split(";")
    for path in (CONFIG / "kubernetes").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert f"- name: {container}\n" in text
        assert f"name: {port}, containerPort: 3180" in text


def test_the_rules_do_what_their_tests_say() -> None:
    """promtool runs tests.yml: what fires, what does not, and what is added up."""
    promtool("test", "rules", "tests.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_fires_in_a_test_and_is_quiet_in_another(alert: str) -> None:
    """An alert without a test that fires may be unable to; one without a quiet test, to stop."""
    asked = [
        one
        for test in read("tests.yml")["tests"]
        for one in test.get("alert_rule_test", ())
        if one["alertname"] == alert
    ]
    assert {bool(one["exp_alerts"]) for one in asked} == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_what_is_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.search(r"\$labels\.(origin|instance)", rule["annotations"]["summary"])


def test_the_dashboard_is_the_one_that_its_program_writes() -> None:
    program = runpy.run_path(str(CONFIG / "grafana" / "dashboard.py"))
    assert program["FILE"].read_text(encoding="utf-8") == program["text"](), (
        "python config/grafana/dashboard.py writes it"
    )


def test_the_dashboard_fits_any_grafana() -> None:
    """No number of its own, no data source fixed, no two panels on one place, none without a
    query."""
    board = json.loads((CONFIG / "grafana" / "warmproxy.json").read_text(encoding="utf-8"))
    assert "id" not in board
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert {t["datasource"]["uid"] for t in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
