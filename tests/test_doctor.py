"""What `doctor` advises, from findings that are made up."""

import pytest

from warmproxy.loading import load
from warmproxy.tools import direct
from warmproxy.tools.advice import at_least, notes, table
from warmproxy.tools.examine import Asked, Dial, Findings, Tls
from warmproxy.tools.watch import Limit

HTTP, HTTPS = (direct.parse(f"{scheme}://h.example/x?y") for scheme in ("http", "https"))


def found(**known) -> Findings:
    """An origin at which nothing is wrong, but for what is said."""
    usual = {
        "dials": [Dial("192.0.2.1", 0.02)],
        "asked": [Asked("GET", 0.02, 200, "1.1", keeps=True)],
        "tls": Tls(0.03, "TLSv1.3", "http/1.1"),
        "alone": 0.07,
        "beside": 0.05,
    }
    return Findings(**{**usual, **known})


def closed(**seconds: float) -> dict[str, Limit]:
    return {kind: Limit(limit, "fin") for kind, limit in seconds.items()}


def upstream(url, findings: Findings, limits: dict[str, Limit], ca_file: str = ""):
    """The table, as the daemon reads it, and with which of its lines a reason is given."""
    text = table(url, findings, limits, ca_file)
    assert text is not None
    assert max(map(len, text.splitlines())) < 80
    (read,) = load(path="x.toml", text=text, environ={}, flags={}).settings.upstream
    assert read.url == url.origin
    return read


@pytest.mark.parametrize(
    ("limit", "warm"), [(1.0, 0), (1.9, 0), (2.0, 1), (9.9, 1), (10.0, 2), (60.0, 2)]
)
def test_how_many_to_hold(limit: float, warm: int) -> None:
    """None where the limit is so short that all would be churn, one where it is short."""
    assert upstream(HTTP, found(tls=None), closed(fresh=limit, used=75.0)).warm == warm


def test_https_has_two_counts() -> None:
    """Tunnels go by the limit of raw TCP, `tls` by that of finished TLS."""
    read = upstream(HTTPS, found(), closed(fresh=5.0, used=75.0, raw=120.0))
    assert (read.warm, read.tls) == (2, 1)
    read = upstream(HTTPS, found(), closed(fresh=120.0, used=75.0, raw=1.0), "/x/ca.pem")
    assert (read.warm, read.tls, read.ca_file) == (0, 2, "/x/ca.pem")


@pytest.mark.parametrize(
    ("used", "hint", "idle_timeout"),
    [
        (Limit(5.0, "fin"), None, 4.5),
        (Limit(50.0, "fin"), None, 45.0),
        (Limit(5.0, "fin"), 2.0, 1.5),
        (Limit(5.0, "fin"), 30.0, 4.5),
        (Limit(0.3, "fin"), None, 0.1),
        (Limit(75.0, "fin"), None, 60.0),
        (Limit(110.0, "open"), None, 60.0),
        (Limit(3.0, "open"), None, 60.0),
        (Limit(3.0, "open"), 20.0, 18.0),
        (Limit(3.0, "open"), 0.0, 60.0),
        (Limit(None, "not kept"), 20.0, 60.0),
        (Limit(None, "not measured"), 20.0, 18.0),
    ],
)
def test_idle_timeout(used: Limit, hint: float | None, idle_timeout: float) -> None:
    """A margin below what was measured or, if that is less or all there is, hinted at; the default
    where that is shorter, or where nothing was seen to end."""
    read = upstream(HTTP, found(tls=None, hint=hint), {"used": used, **closed(fresh=60.0)})
    assert read.idle_timeout == idle_timeout


@pytest.mark.parametrize(
    ("held_by", "warm", "tls", "idle_timeout"),
    [
        (("raw",), 0, 2, 60.0),
        (("raw", "fresh"), 0, 0, 60.0),
        (("fresh",), 0, 0, 60.0),
        (("fresh", "used"), 0, 0, 0.1),
    ],
)
def test_what_holds_a_worker_is_not_warmed(held_by, warm, tls, idle_timeout) -> None:
    limits = {kind: Limit(None, "not measured") for kind in ("fresh", "used", "raw")}
    findings = found(held_by=held_by, held_for=2.0)
    read = upstream(HTTPS, findings, limits)
    assert (read.warm, read.tls, read.idle_timeout) == (warm, tls, idle_timeout)
    said = notes(HTTPS, findings, limits)
    assert said[0].startswith("WARNING: an idle connection holds a worker")
    assert "3 were open" in said[0]
    assert any("learn_requests = 0" in note for note in said) == (held_by != ("raw",))


def test_gunicorn_by_its_looks() -> None:
    """Its sync workers close after each answer; one that keeps connections has threads."""
    closes = found(tls=None, server="gunicorn", asked=[Asked("GET", 0.1, 200, "1.1", keeps=False)])
    assert upstream(HTTP, closes, {}).warm == 0
    assert "sync workers" in notes(HTTP, closes, {})[0]
    keeps = found(tls=None, server="gunicorn")
    assert upstream(HTTP, keeps, closed(fresh=60.0)).warm == 2
    assert notes(HTTP, keeps, closed(fresh=60.0)) == []


@pytest.mark.parametrize(
    "unknown", [{"error": "no"}, {"beside": None}, {"beside_error": "no"}, {"uneven": True}]
)
def test_nothing_is_recommended_while_too_little_is_known(unknown) -> None:
    assert table(HTTP, found(**unknown), closed(fresh=60.0), "") is None


def test_notes() -> None:
    """What an origin writes, that it is busy, near, or watched for too short a time."""
    limits = {"fresh": Limit(10.0, "fin", "HTTP/1.1 408 Late"), "used": Limit(59.99, "open")}
    asked = [Asked("GET", 0.1, 503, "1.1", keeps=True)]
    near = found(tls=None, asked=asked, dials=[Dial("192.0.2.1", 0.0002)])
    assert [note.partition(":")[0] for note in notes(HTTP, near, limits)] == [
        "It writes 'HTTP/1.1 408 Late' on idle connections. Through warmproxy that reaches no "
        "client.",
        "It answered 503",
        "Idle connections were watched for 59 s only",
        "It is so near that there is next to nothing to gain.",
    ]
    assert notes(HTTPS, found(), closed(fresh=60.0, used=5.0, raw=60.0)) == []


def test_a_time_that_was_not_over_is_never_rounded_up() -> None:
    assert [at_least(s) for s in (0.59, 9.99, 10.99, 124.9)] == ["0.5 s", "9.9 s", "10 s", "124 s"]
