"""config/kubernetes and config/compose.yaml, as far as they can be judged without a cluster."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from warmproxy.loading import Loaded, load

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"
FILES = {path.stem: path for path in sorted((CONFIG / "kubernetes").glob("*.yaml"))}
OLDEST = "1.29.0"
"""Native sidecars are on by default from here on."""
IMAGE_ENV = dict(
    re.findall(r'\b(WARMPROXY_\w+)="(.*?)"', (ROOT / "Dockerfile").read_text(encoding="utf-8"))
)


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(FILES[name].read_text(encoding="utf-8")))


def one(name: str, kind: str) -> Any:
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def pod(name: str) -> Any:
    """The specification of its pods."""
    kind = {"sidecar": "Deployment", "daemonset": "DaemonSet"}[name]
    return one(name, kind)["spec"]["template"]["spec"]


def containers(name: str) -> Iterator[Any]:
    yield from pod(name).get("initContainers", ())
    yield from pod(name)["containers"]


def warmproxy(name: str) -> Any:
    (found,) = [each for each in containers(name) if each["name"] == "warmproxy"]
    return found


def settings(name: str) -> Loaded:
    """What the daemon in the pod reads: the image's variables, the manifest's, the ConfigMap."""
    own = {each["name"]: each["value"] for each in warmproxy(name).get("env", ())}
    text = one(name, "ConfigMap")["data"]["warmproxy.toml"]
    return load(path=name, text=text, environ=IMAGE_ENV | own, flags={})


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", FILES)
def test_the_api_takes_each_manifest(name: str, version: str) -> None:
    """By the schemas of the oldest version that it is for and of the newest; a field that there
    is not is refused."""
    for document in documents(name):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_would_be_refused() -> None:
    broken = one("sidecar", "Deployment")
    broken["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, OLDEST, strict=True)


@pytest.mark.parametrize("name", FILES)
def test_its_settings_hold(name: str) -> None:
    """The daemon would start with them, hold its share, and leave the state file alone."""
    found = settings(name).settings
    assert found.replicas > 1
    (upstream,) = found.upstream
    assert upstream.warm == -(-upstream.warm_total // found.replicas) < upstream.warm_total
    assert found.state_file == ""


def test_a_sidecar_is_one_that_the_app_waits_for() -> None:
    """It restarts on its own (so it is a sidecar), the app begins once /readyz says so, it listens
    on loopback, and the share is by the number of pods."""
    sidecar = warmproxy("sidecar")
    assert sidecar in pod("sidecar")["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    probe = sidecar["startupProbe"]
    assert probe["httpGet"] == {"path": "/readyz", "port": "admin"}
    found = settings("sidecar").settings
    assert probe["periodSeconds"] * probe["failureThreshold"] > found.ready_timeout
    assert found.listen == ("127.0.0.1:3128", "[::1]:3128")
    assert found.admin == "0.0.0.0:3180"  # the kubelet asks from outside
    assert found.replicas == one("sidecar", "Deployment")["spec"]["replicas"]
    app = pod("sidecar")["containers"][0]
    variables = {each["name"]: each["value"] for each in app["env"]}
    for name in ("http_proxy", "https_proxy"):
        assert variables[name] == variables[name.upper()] == f"http://{found.listen[0]}"


def test_the_service_of_a_node_leads_to_its_own_daemon() -> None:
    service, policy = one("daemonset", "Service")["spec"], one("daemonset", "NetworkPolicy")["spec"]
    assert service["internalTrafficPolicy"] == "Local"
    labels = one("daemonset", "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == policy["podSelector"]["matchLabels"] == labels
    ports = {each["name"] for each in warmproxy("daemonset")["ports"]}
    assert ports == {"proxy", "admin"}
    assert [each["targetPort"] for each in service["ports"]] == ["proxy"]


@pytest.mark.parametrize("name", FILES)
def test_each_container_is_as_the_restricted_standard_wants_it(name: str) -> None:
    """Pod Security Standards, profile restricted, and beyond it a root that is read only and a
    limit of memory."""
    spec = pod(name)
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["automountServiceAccountToken"] is False
    for container in containers(name):
        context = container["securityContext"]
        assert context["runAsUser"] > 0
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert "cpu" in container["resources"]["requests"]


# ── compose ──────────────────────────────────────────────────────────────────────────────────


def compose() -> Any:
    return yaml.safe_load((CONFIG / "compose.yaml").read_text(encoding="utf-8"))


def test_compose_mounts_and_asks_for_what_there_is() -> None:
    """Each file that is mounted exists, each service that another names does too, and nothing is
    published beyond loopback."""
    services = compose()["services"]
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+", service["image"]), f"{name} has no tag"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose()["volumes"] or (CONFIG / source).exists(), source
        assert set(service.get("depends_on", ())) <= set(services)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "http_proxy" in services["app"]["environment"]
    scraped = yaml.safe_load((CONFIG / "prometheus/compose.yml").read_text(encoding="utf-8"))
    (job,) = scraped["scrape_configs"]
    assert [t.partition(":")[0] for t in job["static_configs"][0]["targets"]] == ["warmproxy"]
    assert services["prometheus"]["command"] == ["--config.file=/etc/prometheus/compose.yml"]


def test_grafana_is_given_prometheus_and_the_dashboard() -> None:
    provisioning = CONFIG / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    assert source["url"].removeprefix("http://").partition(":")[0] in compose()["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/warmproxy.yaml").read_text())[
        "providers"
    ]
    mounts = [volume.split(":")[1] for volume in compose()["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/warmproxy.json" in mounts
