"""SIGHUP: other settings, and what becomes of what is open."""

import contextlib
import http.client
import os
import re
import signal
import socket
import threading
from typing import Any

import pytest

from tests.e2e.daemon import Warmproxy, fetch_on, read_reply, wait_warm
from tests.e2e.harness import accepts, always, eventually, free_port
from tests.e2e.tls_origins import Pki, secure, shaken


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def upstream(url: str, warm: int = 3, **more: Any) -> dict[str, Any]:
    return {"url": url, "warm": warm, **more}


def names(web: Any) -> set[int]:
    """The connections that an origin has open, by number."""
    return {connection.number for connection in web.open_connections()}


def warmed(web: Any, count: int = 3) -> set[int]:
    """The same, once the origin has accepted so many."""
    return set(eventually(lambda: len(names(web)) == count and names(web)))


def is_good(proxy: Warmproxy) -> bool:
    return proxy.count("warmproxy_config_last_reload_successful") == 1


# -- what does not hold -----------------------------------------------------------------------


def test_a_bad_file_changes_nothing_and_is_told(warmproxy, origin) -> None:
    """All of the old settings go on, sockets and all; the log names each problem with its line,
    and the metric says 0 until a good file comes, which the time-stamp tells of."""
    web = origin()
    config = {"upstream": [upstream(web.url)]}
    proxy = warmproxy(config=config, by_file=True)
    before, client = warmed(web), proxy.connect()
    stamp = proxy.count("warmproxy_config_last_reload_success_timestamp_seconds")
    said = proxy.reload(proxy.file.read_text() + 'warn = 5\nverify = "no"\n')
    last = proxy.file.read_text().count("\n")
    assert said["event"] == "reload_failed"
    assert said["level"] == "error"
    assert said["problems"] == [
        f"{proxy.file}:{last - 1}: unknown key \"warn\"; did you mean 'warm'?",
        f"{proxy.file}:{last}: 'verify' must be true or false, not \"no\"",
    ]
    assert "warmproxy check" in said["advice"]
    assert not is_good(proxy)
    stays = "warmproxy_config_last_reload_success_timestamp_seconds"
    assert proxy.count(stays) == stamp
    assert names(web) == before
    assert fetch_on(client, f"{web.url}/").text == web.greeting
    assert proxy.reload(config)["event"] == "reloaded"
    assert is_good(proxy)
    assert proxy.count(stays) > stamp
    assert proxy.terminate() == 0


def test_what_is_no_toml_and_what_is_gone(warmproxy, origin) -> None:
    """A file that cannot be parsed, or read, is as bad; the daemon's exit status tells nothing."""
    web = origin()
    proxy = warmproxy(config={"upstream": [upstream(web.url)]}, by_file=True)
    assert re.search(r"warmproxy\.toml:1: ", proxy.reload("= 5")["problems"][0])
    proxy.file.unlink()
    assert "No such file" in proxy.reload()["problems"][0]
    assert proxy.fetch(f"{web.url}/").status == 200
    assert proxy.terminate() == 0


def test_a_listener_that_cannot_be_opened_refuses_all_of_it(warmproxy, origin) -> None:
    """A port in use leaves everything as it was: nothing else of that file holds, and no port that
    it names is open."""
    web, free = origin(), free_port()
    proxy = warmproxy(config={"upstream": [upstream(web.url)]}, by_file=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        both = [f"127.0.0.1:{port}" for port in (proxy.port, free, taken.getsockname()[1])]
        said = proxy.reload({"listen": both, "upstream": [upstream(web.url, 7)]})
        assert f"cannot listen on {both[2]}" in said["problems"][0]
        assert not accepts(free)
    assert proxy.pool(web.url)["target_idle"] == 3
    assert proxy.fetch(f"{web.url}/").status == 200


def test_a_certificate_that_cannot_be_read_refuses_all_of_it(warmproxy, origin, tmp_path) -> None:
    """So does a file that the settings name."""
    web, ca = origin(), tmp_path / "ca.pem"
    ca.write_text("nothing")
    proxy = warmproxy(config={"upstream": [upstream(web.url)]}, by_file=True)
    said = proxy.reload({"defaults": {"ca_file": str(ca)}, "upstream": []})
    assert f"ca_file {ca}" in said["problems"][0]
    assert proxy.pool(web.url)["configured"]


def test_flags_and_variables_go_before_the_file_as_at_the_start(warmproxy, origin) -> None:
    """A reload reads the file anew, and what was said beside it holds on."""
    web, other = origin(), origin()
    proxy = warmproxy("--warm", f"{web.url}=2", config={}, env={"WARMPROXY_WARM": f"{other.url}=1"})
    said = proxy.reload({"upstream": [upstream(web.url, 5), upstream(other.url, 5)]})
    assert said["event"] == "reloaded"
    assert proxy.pool(web.url)["target_idle"] == 2
    assert proxy.pool(other.url)["target_idle"] == 1


# -- pools ------------------------------------------------------------------------------------


def test_each_pool_becomes_what_the_new_settings_say(warmproxy, origin) -> None:
    """An origin that stays keeps its very sockets and counts, one that has more or fewer warm gets
    them, a new one is dialled, one that was removed has none any more; a request that is in flight
    and a client's connection outlive it."""
    same, more, fewer, removed, new = (origin() for _ in range(5))
    config = {"upstream": [upstream(web.url) for web in (same, more, fewer, removed)]}
    proxy = warmproxy(config=config, by_file=True)
    before = {web: warmed(web) for web in (same, more, fewer)}
    client, busy = proxy.connect(), proxy.connect()
    assert fetch_on(client, f"{same.url}/").text == same.greeting
    busy.request("GET", f"{removed.url}/hold")
    removed.wait_requests(1)
    wait_warm(proxy, same.url, 3)
    hits = proxy.pool(same.url)["hits"]
    said = proxy.reload(
        {
            "upstream": [
                upstream(same.url),
                upstream(more.url, 5),
                upstream(fewer.url, 1),
                upstream(new.url, 2),
            ]
        }
    )
    assert said["event"] == "reloaded"
    assert said["changed"] == ["upstream"]
    new.wait_open(2)
    more.wait_open(5)
    fewer.wait_open(1)
    removed.wait_open(1)  # the one in use
    assert names(same) >= before[same]
    assert names(more) > before[more]
    assert names(fewer) < before[fewer]
    assert proxy.pool(same.url)["hits"] == hits
    assert not proxy.pool(removed.url)["configured"]
    removed.gate.set()
    assert read_reply(busy).status == 200
    assert fetch_on(client, f"{removed.url}/").text == removed.greeting
    assert fetch_on(client, f"{same.url}/").text == same.greeting


def test_a_removed_origin_under_load_loses_no_request(warmproxy, origin) -> None:
    """Clients that ask all the time go on being answered while their origin goes from the settings
    and comes back, ten times; sums over all origins never become less."""
    web = origin()
    with_it, without = {"upstream": [upstream(web.url)]}, {"upstream": []}
    proxy = warmproxy(config=with_it, by_file=True)
    stop, wrong, done = threading.Event(), [], []

    def ask() -> None:
        client = proxy.connect()
        while not stop.is_set():
            reply = fetch_on(client, f"{web.url}/", "POST", b"x")
            done.append(reply) if reply.status == 200 else wrong.append(reply)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    last = 0.0
    try:
        for turn in range(10):
            asked = len(done)
            assert proxy.reload(with_it if turn % 2 else without)["event"] == "reloaded"
            eventually(lambda asked=asked: len(done) > asked + 5)
            total = proxy.count("warmproxy_acquires_total")
            assert total >= last
            last = total
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert proxy.count("warmproxy_requests_total") == len(done)


def test_what_was_learned_of_an_origin_stays(warmproxy, origin) -> None:
    """A pool whose settings change keeps the idle limit that it has learned."""
    web = origin(idle_fresh=0.6)
    proxy = warmproxy(config={"upstream": [upstream(web.url)]}, by_file=True)
    limit = eventually(lambda: proxy.pool(web.url)["idle_limits"]["fresh"], says=proxy.pools)
    proxy.reload({"upstream": [upstream(web.url, 4, dial_timeout=3.0)]})
    assert proxy.pool(web.url)["idle_limits"]["fresh"] == pytest.approx(limit, abs=0.3)


def test_another_source_address_replaces_what_is_open(warmproxy, origin) -> None:
    """Connections from the old address go once others from the new one are there, never before:
    the pool is below its target for no time at all."""
    web = origin()
    proxy = warmproxy(config={"upstream": [upstream(web.url)]}, by_file=True)
    below = proxy.count("warmproxy_below_target_seconds_total")
    proxy.reload({"upstream": [upstream(web.url, source_address="127.0.0.7")]})
    eventually(lambda: [c.peer[0] for c in web.open_connections()] == ["127.0.0.7"] * 3)
    assert proxy.pool(web.url)["closed"] == {"outdated": 3}
    assert proxy.count("warmproxy_below_target_seconds_total") == below


# -- TLS --------------------------------------------------------------------------------------


def common_name(connection: Any) -> str:
    subject = dict(part[0] for part in secure(connection).getpeercert()["subject"])
    return subject["commonName"]


def test_a_renewed_client_certificate_is_used(warmproxy, origin, pki) -> None:
    """The same file names, other contents: idle connections are replaced by ones that show the new
    certificate, one that is in use is finished and not used again."""
    web = origin(tls=pki.server(client_ca=pki.ca))
    cert, key = pki.files("me", pki.issue("me", common_name="old"))
    table = upstream(
        web.url, 0, tls=2, ca_file=str(pki.file), client_cert=str(cert), client_key=str(key)
    )
    proxy = warmproxy(config={"upstream": [table]}, by_file=True)
    busy = proxy.connect()
    busy.request("GET", f"{web.url}/hold")
    web.wait_requests(1)
    wait = {"origin": web.url}
    eventually(lambda: proxy.pools()[web.url]["fresh"] == 2)
    renewed = pki.files("new", pki.issue("me", common_name="new"))
    for old, new in zip((cert, key), renewed, strict=True):
        os.replace(new, old)
    assert proxy.reload()["event"] == "reloaded"
    eventually(
        lambda: [common_name(c) for c in web.idle_connections() if shaken(c)] == ["new", "new"],
        says=lambda: (web.connections, proxy.pools()),
    )
    assert web.requests[0].connection.open
    web.gate.set()
    assert read_reply(busy).status == 200
    eventually(lambda: not web.requests[0].connection.open)
    assert fetch_on(busy, f"{web.url}/").text == web.greeting
    assert common_name(web.requests[-1].connection) == "new"
    assert proxy.count("warmproxy_closed_total", reason="outdated", **wait) == 3


def test_an_unchanged_certificate_replaces_nothing(warmproxy, origin, pki) -> None:
    """A reload of the same TLS settings, with the same files, leaves connections as they are."""
    web = origin(tls=pki.server())
    table = upstream(web.url, 1, tls=2, ca_file=str(pki.file))
    proxy = warmproxy(config={"upstream": [table]}, by_file=True)
    before = warmed(web)
    proxy.reload({"upstream": [table], "max_tunnels": 7})
    assert always(lambda: names(web) == before, 0.3)


def test_another_tls_profile_keeps_the_pool(warmproxy, origin, pki) -> None:
    """verify = false becomes true with the right ca_file: connections are replaced before they
    go, counts go on, and a client's kept connection uses the new ones."""
    web = origin(tls=pki.server())
    proxy = warmproxy(
        config={"upstream": [upstream(web.url, 0, tls=2, verify=False)]}, by_file=True
    )
    client = proxy.connect()
    assert fetch_on(client, f"{web.url}/").text == web.greeting
    hits = proxy.pools()[web.url]["hits"]
    before = names(web)
    proxy.reload({"upstream": [upstream(web.url, 0, tls=2, ca_file=str(pki.file))]})
    eventually(lambda: len(names(web) - before) == 2 and not names(web) & before)
    pool = proxy.pools()[web.url]
    assert pool["verified"]
    assert pool["hits"] == hits
    assert fetch_on(client, f"{web.url}/").text == web.greeting
    assert proxy.pools()[web.url]["hits"] == hits + 1


def test_who_waits_moves_with_the_pool(warmproxy, origin, pki) -> None:
    """A request that waits for a connection which cannot be verified gets one by the settings that
    come meanwhile."""
    web = origin(tls=pki.server())
    web.pause_accepting()
    table = upstream(web.url, 0, tls=1)
    config = {"ready_timeout": 0.0, "upstream": [table]}
    proxy = warmproxy(config=config, by_file=True)
    client = proxy.connect()
    client.request("GET", f"{web.url}/")
    eventually(lambda: proxy.pools()[web.url]["waiting"] == 1)
    proxy.reload({**config, "upstream": [{**table, "ca_file": str(pki.file)}]})
    web.resume_accepting()
    assert read_reply(client).text == web.greeting


# -- listeners and the rest -------------------------------------------------------------------


def test_listeners_come_and_go_and_their_clients_stay(warmproxy, origin) -> None:
    """A new address is open when the reload is said to be done, a removed one is closed; clients
    that came in there, and at the one that stays, go on. Gateways and the admin listener too."""
    web, other = origin(), origin()
    ports = [free_port() for _ in range(4)]
    extra, gateway, admin, later = ports
    config = {"upstream": [upstream(web.url)]}
    proxy = warmproxy(config=config, by_file=True)
    stays = proxy.connect()
    assert fetch_on(stays, f"{web.url}/").status == 200
    table = {"listen": f"127.0.0.1:{gateway}", "upstream": other.url}
    listen = [f"127.0.0.1:{proxy.port}", f"127.0.0.1:{extra}"]
    wider = {**config, "listen": listen, "gateway": [table], "admin": f"127.0.0.1:{admin}"}
    assert proxy.reload(wider)["event"] == "reloaded"
    assert accepts(extra)
    assert not accepts(proxy.admin_port)
    proxy.admin_port = admin
    assert proxy.admin_get("/healthz").status == 200
    came_in = socket.create_connection(("127.0.0.1", extra), timeout=10)
    by_gateway = socket.create_connection(("127.0.0.1", gateway), timeout=10)
    with came_in, by_gateway:
        narrower = {**config, "listen": [listen[0], f"127.0.0.1:{later}"]}
        assert proxy.reload(narrower)["event"] == "reloaded"
        assert not accepts(extra)
        assert not accepts(gateway)
        assert accepts(later)
        for sock, target in ((came_in, f"{web.url}/"), (by_gateway, "/")):
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert other.requests
    assert fetch_on(stays, f"{web.url}/").status == 200


def test_rules_hold_for_clients_that_are_connected(warmproxy, origin) -> None:
    """Who may go where, and what the log tells, is by the new settings from the next request on."""
    web = origin()
    proxy = warmproxy(config={}, by_file=True)
    client = proxy.connect()
    assert fetch_on(client, f"{web.url}/").status == 200
    proxy.reload({"allow_upstreams": ["*.example.com"], "access_log": True})
    reply = fetch_on(client, f"{web.url}/")
    assert reply.status == 403
    assert b"allow_upstreams" in reply.body
    assert eventually(lambda: proxy.events("answered"))[0]["status"] == 403
    proxy.write({"log_format": "text"})
    proxy.signal(signal.SIGHUP)
    eventually(lambda: " reloaded changed=" in proxy.log(), says=proxy.log)


def test_a_client_that_was_admitted_is_judged_anew(warmproxy, origin) -> None:
    """Who may use the proxy is asked again of clients that are connected, also where others'
    requests of the same form have been judged since."""
    web = origin()
    proxy = warmproxy(config={"allow_clients": ["127.0.0.0/8"]}, by_file=True)
    allowed, denied = (
        http.client.HTTPConnection("127.0.0.1", proxy.port, 10, (source, 0))
        for source in ("127.0.0.3", "127.0.0.2")
    )
    with contextlib.closing(allowed), contextlib.closing(denied):
        for client in (denied, allowed, denied, allowed):
            assert fetch_on(client, f"{web.url}/").status == 200
        proxy.reload({"allow_clients": ["127.0.0.3/32"]})
        for _ in range(2):
            assert fetch_on(allowed, f"{web.url}/").status == 200
        assert fetch_on(denied, f"{web.url}/").status == 403


def test_windows_begin_and_end_with_the_settings(warmproxy, origin) -> None:
    """A window that a reload brings holds at once in its time; one that it takes away ends."""
    web = origin()
    window = {"at": "* * * * *", "count": 5, "for": "5m"}
    proxy = warmproxy(config={"upstream": [upstream(web.url, 1)]}, by_file=True)
    proxy.reload({"upstream": [upstream(web.url, 1, warm_at=[window])]})
    assert proxy.pool(web.url)["target_idle"] == 5
    proxy.reload({"upstream": [upstream(web.url, 1)]})
    assert proxy.pool(web.url)["target_idle"] == 1
    assert len(proxy.events("window_began")) == 1


def test_what_only_a_restart_changes_is_named(warmproxy) -> None:
    """It stays as it was, and the log line says which settings these are."""
    without = ["env", "-u", "WARMPROXY_STATE_FILE"]
    proxy = warmproxy(config={"state_file": ""}, by_file=True, inside=without)
    said = proxy.reload({"state_file": "elsewhere.json", "max_tunnels": 9})
    assert said["changed"] == ["max_tunnels"]
    assert said["needs_restart"] == ["state_file"]


def test_many_signals_are_one_reload_after_another(warmproxy, origin) -> None:
    """Signals that come together are no reason to do everything as often; the last state of the
    file holds."""
    web = origin()
    proxy = warmproxy(config={"upstream": [upstream(web.url, 1)]}, by_file=True)
    proxy.write({"upstream": [upstream(web.url, 4)]})
    for _ in range(50):
        proxy.signal(signal.SIGHUP)
    web.wait_open(4)
    done = len(proxy.events("reloaded"))
    assert 1 <= done <= 50
    assert proxy.pool(web.url)["target_idle"] == 4


def test_primes_are_those_of_the_new_settings(warmproxy, origin) -> None:
    """A prime that a reload brings is sent on the connections to come, one that it takes away is
    not."""
    web = origin()
    proxy = warmproxy(config={"upstream": [upstream(web.url, 1)]}, by_file=True)
    proxy.reload({"upstream": [upstream(web.url, 2, prime="HEAD /primed")]})
    eventually(lambda: [r.target for r in web.requests] == ["/primed"], says=lambda: web.requests)
    proxy.reload({"upstream": [upstream(web.url, 3)]})
    web.wait_open(3)
    assert len(web.requests) == 1
