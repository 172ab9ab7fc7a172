"""The idle limits of upstreams: said by them, learned from them, remembered over a restart."""

import shutil
import signal
import stat

import pytest

from tests.e2e.daemon import fetch_on, origin_name, read_reply, wait_warm
from tests.e2e.harness import eventually


def closed(proxy, reason: str) -> float:
    return proxy.count("warmproxy_closed_total", reason=reason)


def test_a_used_connection_goes_before_its_announced_end(warmproxy, node_server) -> None:
    """Node says `Keep-Alive: timeout=2`: the connection that served is given up before, though no
    close was ever seen, and the field goes no further."""
    web = node_server({"keepAliveTimeout": 2000})
    proxy = warmproxy("--warm", f"{web.url}=1")
    reply = proxy.fetch(f"{web.url}/")
    assert reply.status == 200
    assert reply.headers["Keep-Alive"] is None
    assert proxy.pool(web.url)["idle_limits"] == {"fresh": None, "used": 2.0}
    assert proxy.count("warmproxy_idle_limit_seconds", kind="used") == 2.0
    wait_warm(proxy, web.url, 2)
    eventually(lambda: proxy.pool(web.url)["used"] == 0, says=proxy.pools)
    last_close = proxy.pool(web.url)["last_close"]
    assert last_close["reason"] == "idle_limit"
    assert 1.3 <= last_close["age"] < 1.8
    assert closed(proxy, "upstream_eof") == 0


def test_a_used_connection_goes_before_an_end_that_nobody_announced(
    warmproxy, apache_server
) -> None:
    """Apache (KeepAliveTimeout 1) announces it only to who asks by `Connection: keep-alive`: what
    it does to the first burst's connections is enough to spare the next ones that end."""
    web = apache_server("KeepAliveTimeout 1")
    proxy = warmproxy("--warm", f"{web.url}=4")

    def burst() -> None:
        """Four connections that carried a request each: a POST takes one that carried none."""
        wait_warm(proxy, web.url, 4)
        clients = [proxy.connect() for _ in range(4)]
        for client in clients:
            client.request("POST", f"{web.url}/hello.txt", b"body")
        for client in clients:
            # where it does not like a POST (405) that is an answer all the same
            assert read_reply(client).status < 500

    burst()
    eventually(lambda: proxy.pool(web.url)["idle_limits"]["used"], says=proxy.pools)
    assert proxy.pool(web.url)["idle_limits"]["used"] == pytest.approx(1.0, abs=0.15)
    eventually(lambda: proxy.pool(web.url)["used"] == 0, says=proxy.pools)
    before = closed(proxy, "upstream_eof")
    burst()
    wait_warm(proxy, web.url, 4)
    eventually(lambda: proxy.pool(web.url)["used"] == 0, says=proxy.pools)
    assert closed(proxy, "idle_limit") >= 2
    eventually(lambda: proxy.pool(web.url)["canaries"] == 0, says=proxy.pools)
    assert closed(proxy, "upstream_eof") == before + 1, "the canary's"


def test_what_is_no_longer_said_no_longer_holds(warmproxy, origin) -> None:
    """A response without `Keep-Alive: timeout=` takes back what an earlier one has said; 0 and
    nonsense say nothing."""
    web = origin()
    said = iter(["timeout=4", "timeout=0", "timeout=7, max=3", None, "max=5"])

    def answer(connection, request) -> None:
        value = next(said)
        connection.reply(b"ok", headers=(("Keep-Alive", value),) if value else ())

    web.answer = answer
    proxy = warmproxy("--warm", f"{web.url}=1")
    client = proxy.connect()
    for used in (4.0, None, 7.0, None, None):
        assert fetch_on(client, f"{web.url}/").status == 200
        limits = eventually(lambda: proxy.pool(web.url)["active"] == 0 and proxy.pool(web.url))
        assert limits["idle_limits"]["used"] == used


def test_a_raw_connection_has_a_limit_of_its_own_kind(warmproxy, origin) -> None:
    """What an origin with https in its URL does to connections that wait for TLS is told as `raw`,
    in /pools and in the metric."""
    web = origin(idle_fresh=0.8)
    url = f"https://{web.authority}"
    proxy = warmproxy("--warm", f"{url}=3")
    limits = eventually(
        lambda: (known := proxy.pool(url)["idle_limits"])["raw"] and known, says=proxy.pools
    )
    assert set(limits) == {"raw"}
    assert limits["raw"] == pytest.approx(0.8, abs=0.1)
    labels = {"origin": origin_name(url), "kind": "raw"}
    assert proxy.count("warmproxy_idle_limit_seconds", **labels) == pytest.approx(0.8, abs=0.1)


# -- over a restart ---------------------------------------------------------------------------


def test_what_was_learned_holds_from_the_start_of_the_next_run(warmproxy, origin, home) -> None:
    """A second daemon with the same state file replaces connections before the limit that the
    first one learned: the origin ends none but the canaries."""
    web = origin(idle_fresh=1.5)
    file = home("state") / "deep" / "limits.json"
    keep = {"WARMPROXY_STATE_FILE": str(file)}
    first = warmproxy("--warm", f"{web.url}=3", env=keep)
    eventually(lambda: first.pool(web.url)["idle_limits"]["fresh"], says=first.pools)
    assert first.terminate() == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert web.url in file.read_text()

    second = warmproxy("--warm", f"{web.url}=3", env=keep)
    known = second.pool(web.url)["idle_limits"]
    assert known["fresh"] == pytest.approx(1.5, abs=0.1)
    eventually(lambda: closed(second, "idle_limit") >= 6, says=second.pools)
    # of each round of three at most the canary
    assert closed(second, "upstream_eof") <= closed(second, "idle_limit") / 2
    assert second.log_lines("state_") == []


def test_news_reach_the_file_while_the_daemon_runs_and_survive_its_crash(
    warmproxy, origin, home
) -> None:
    """Killed, a daemon leaves what it had written; nothing of a half-written file is left."""
    web = origin(idle_fresh=0.8)
    folder = home("state")
    keep = {"WARMPROXY_STATE_FILE": str(folder / "limits.json")}
    with_clock = warmproxy("--warm", f"{web.url}=3", env=keep)
    eventually(lambda: (folder / "limits.json").exists(), 40, with_clock.pools)
    with_clock.signal(signal.SIGKILL)
    with_clock.exit_code()
    assert [p.name for p in folder.iterdir() if p.suffix == ".json"] == ["limits.json"]
    again = warmproxy("--warm", f"{web.url}=3", env=keep)
    assert again.pool(web.url)["idle_limits"]["fresh"] == pytest.approx(0.8, abs=0.1)


def test_a_state_file_that_is_no_use_is_said_once(warmproxy, origin, home) -> None:
    """Broken when it is read, gone when it is written: two lines, and requests are served."""
    web = origin(idle_fresh=0.6)
    folder = home("state") / "inner"
    folder.mkdir()
    file = folder / "limits.json"
    file.write_text("{broken")
    proxy = warmproxy("--warm", f"{web.url}=3", env={"WARMPROXY_STATE_FILE": str(file)})
    shutil.rmtree(folder)
    folder.touch()
    eventually(lambda: proxy.pool(web.url)["idle_limits"]["fresh"], says=proxy.pools)
    assert proxy.fetch(f"{web.url}/").status == 200
    assert proxy.terminate() == 0
    for event in ("state_unreadable", "state_unwritable"):
        (line,) = proxy.log_lines(event)
        assert str(file) in line
