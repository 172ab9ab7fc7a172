"""More connections for a while: windows of `warm_at`, POST /warm and `warmproxy warm`.

The origins are the tests' own, which see each connection come and go; curl asks, as people would.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.e2e.daemon import Warmproxy, fetch_on
from tests.e2e.harness import always, clean_environ, eventually, need
from tests.e2e.tls_origins import Pki, shaken
from warmproxy.policy.schedule import AHEAD


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@dataclass(frozen=True)
class Answer:
    status: int
    text: str

    @property
    def pools(self) -> dict[str, dict[str, Any]]:
        return {pool["origin"]: pool for pool in json.loads(self.text)["pools"]}


@pytest.fixture
def post(run) -> Callable[..., Answer]:
    """POST /warm with curl: parameters by name (`for` is `lasts`), header fields as text."""

    def ask(proxy: Warmproxy, *fields: str, lasts: str | None = None, **asked: object) -> Answer:
        query = urlencode({**asked, **({} if lasts is None else {"for": lasts})})
        headers = [word for field in fields for word in ("-H", field)]
        command = [need("curl"), "-sS", "-X", "POST", *headers, "-w", "\n%{http_code}"]
        ran = run([*command, f"http://{proxy.admin}/warm?{query}"], clean_environ())
        assert ran.code == 0, ran.output
        text, _, status = ran.output.rpartition("\n")
        return Answer(int(status), text)

    return ask


def quick(url: str, warm: int = 1, **upstream: Any) -> dict[str, Any]:
    """A configuration whose connections go soon once they are not needed any more."""
    upstream = {"url": url, "warm": warm, "idle_timeout": 0.5, **upstream}
    return {"learn_requests": 0, "upstream": [upstream]}


# ── POST /warm ───────────────────────────────────────────────────────────────────────────────


def test_what_is_asked_for_is_opened_exactly_and_goes_when_the_time_is_over(
    warmproxy, origin, post
) -> None:
    """So many connections and no more, for so long; /pools and the answer say it meanwhile."""
    web = origin()
    proxy = warmproxy(config=quick(web.url))
    began = time.monotonic()
    answer = post(proxy, origin=web.url, count=8, lasts="2.5s")
    assert answer.status == 202
    (boost,) = answer.pools[web.url]["boosts"]
    assert (boost["count"], boost["why"]) == (8, "asked")
    assert 2.0 < boost["seconds_left"] <= 2.5
    web.wait_open(8)
    assert proxy.pool(web.url)["target_idle"] == 8
    left = began + 2.4 - time.monotonic()
    always(lambda: len(web.open_connections()) == 8, left, says=proxy.pools)
    assert len(web.connections) == 8
    web.wait_open(1)
    assert time.monotonic() - began >= 2.5
    pool = proxy.pool(web.url)
    assert (pool["target_idle"], pool["boosts"], pool["closed"]) == (1, [], {"surplus": 7})
    assert len(proxy.log_lines("warm_asked", web.url, '"count": 8', "127.0.0.1")) == 1


def test_what_is_warm_already_is_a_200_and_a_later_wish_takes_the_place_of_the_first(
    warmproxy, origin, post
) -> None:
    """200 and 202 tell whether there is something to wait for; 0 ends it before its time."""
    web = origin()
    proxy = warmproxy(config=quick(web.url, warm=2))
    assert post(proxy, origin=web.url, count=2).status == 200
    assert post(proxy, origin=web.url, count=6, lasts="1h").status == 202
    web.wait_open(6)
    answer = post(proxy, origin=web.url, count=3)
    assert answer.status == 200
    (boost,) = answer.pools[web.url]["boosts"]
    assert (boost["count"], 899 < boost["seconds_left"] <= 900) == (3, True), "15 minutes"
    web.wait_open(3)
    answer = post(proxy, origin=web.url, count=0)
    assert (answer.status, answer.pools[web.url]["boosts"]) == (200, [])
    web.wait_open(2)


def test_an_origin_that_nobody_configured_gets_a_pool_for_it(warmproxy, origin, post) -> None:
    """Its requests are hits from the first on, and it is no host that was learned."""
    web = origin()
    proxy = warmproxy()
    assert post(proxy, origin=web.url, count=3, lasts="1m").status == 202
    web.wait_open(3)
    client = proxy.connect()
    assert fetch_on(client, f"{web.url}/").status == 200
    pool = proxy.pool(web.url)
    assert (pool["configured"], pool["hits"], pool["misses"]) == (False, 1, 0)
    assert proxy.log_lines("learned") == []
    # to end what never was is nothing
    assert post(proxy, origin="http://127.0.0.1:1", count=0).pools == {}
    assert set(proxy.pools()) == {web.url}


def test_count_is_of_tunnels_and_tls_of_finished_handshakes(warmproxy, origin, post, pki) -> None:
    """As in --warm https://h=N,tls=M: each of the two pools gets its own, and only that."""
    web = origin(tls=pki.server())
    url, tunnels = f"https://localhost:{web.port}", f"tcp://localhost:{web.port}"
    proxy = warmproxy(config={"defaults": {"ca_file": str(pki.file)}})
    answer = post(proxy, origin=url, count=2, tls=3)
    assert {origin: pool["target_idle"] for origin, pool in answer.pools.items()} == {
        tunnels: 2,
        url: 3,
    }
    web.wait_open(5)
    eventually(lambda: sum(map(shaken, web.connections)) == 3)
    assert proxy.fetch(f"{url}/").status == 200
    assert proxy.pools()[url]["hits"] == 1
    assert set(post(proxy, origin=url, tls=0).pools) == {url}
    assert proxy.pools()[tunnels]["boosts"] != []


@pytest.mark.parametrize("way", ["upgrade", "gateway"])
def test_where_requests_need_tls_as_many_are_held_with_it(
    warmproxy, origin, post, pki, way
) -> None:
    """`count` alone is enough for an upstream that is served by upgrade, or through a gateway."""
    web = origin(tls=pki.server())
    url = f"https://localhost:{web.port}"
    upstream = {"url": url, "warm": 0, "ca_file": str(pki.file)}
    config: dict[str, Any] = {"upstream": [upstream]}
    if way == "upgrade":
        upstream["upgrade"] = True
    else:
        config["gateway"] = [{"listen": "127.0.0.1:0", "upstream": url}]
    proxy = warmproxy(config=config)
    answer = post(proxy, origin=url, count=2)
    assert [pool["target_idle"] for pool in answer.pools.values()] == [2, 2]
    eventually(lambda: sum(map(shaken, web.connections)) == 2)


def test_what_is_wrong_with_a_wish_is_one_line(warmproxy, post) -> None:
    """400, and a sentence without the password that was sent along."""
    proxy = warmproxy()
    for asked, words in [
        ({}, "origin, and count or tls, must be given; for example POST /warm?origin="),
        ({"origin": "https://h"}, "origin, and count or tls, must be given"),
        ({"count": 3}, "origin, and count or tls, must be given"),
        ({"origin": "h", "count": 3}, "'h' must begin with http:// or https://"),
        ({"origin": "https://h/path", "count": 3}, "must be scheme://host[:port] with nothing"),
        ({"origin": "https://a:s3cret@h", "count": 3}, "credentials do not belong"),
        ({"origin": "ftp://a:s3c\nret@h", "count": 3}, "must begin with http:// or https://"),
        ({"origin": f"https://{'é' * 70}", "count": 3}, "origin: "),
        ({"origin": "https://h", "count": -1}, 'count="-1" must be a whole number >= 0'),
        ({"origin": "https://h", "count": "٣"}, "must be a whole number >= 0"),
        ({"origin": "http://h", "tls": 1}, "tls is for https:// origins"),
        ({"origin": "https://h", "count": 1, "lasts": "25h"}, 'for="25h" must be seconds, or like'),
        ({"origin": "https://h", "count": 1, "lasts": "0"}, "above 0, and 24h at most"),
        ({"origin": "https://h", "cuont": 1}, 'unknown parameter "cuont"; there are origin, count'),
        ({"origin": "https://h", "count": "1&count=2"}, "must be a whole number"),
        ({f"p{i}": i for i in range(20)}, "too many parameters"),
    ]:
        answer = post(proxy, **asked)
        assert (answer.status, answer.text.count("\n")) == (400, 1), answer
        assert words in answer.text, answer
        assert "s3c" not in answer.text
    assert proxy.pools() == {}


def test_the_rules_of_where_requests_may_go_hold(warmproxy, origin, post) -> None:
    """403, with nothing dialled: by name, by address, by port, and never to the proxy itself."""
    web = origin()
    by_name = f"http://localhost:{web.port}"
    listed = warmproxy(config={"allow_upstreams": ["localhost"]})
    usual = warmproxy(config={"connect_ports": [443]})
    for proxy, url, words in [
        (listed, "http://other.example", "other.example is not among allow_upstreams"),
        (listed, web.url, "127.0.0.1 is not among allow_upstreams"),
        (usual, "http://169.254.169.254", "is among deny_upstreams"),
        (usual, f"https://{web.authority}", "CONNECT to port"),
        (usual, f"http://{usual.admin}", "is this very proxy"),
    ]:
        answer = post(proxy, origin=url, count=1)
        assert (answer.status, words in answer.text) == (403, True), answer
        assert proxy.pools() == {}
    assert web.connections == []
    assert post(listed, origin=by_name, count=1).status == 202
    web.wait_open(1)


def test_bounds_of_the_settings_are_a_409(warmproxy, origin, post) -> None:
    """No more than max_connections of the origin, or of all; no more origins than max_origins."""
    a, b, c = origin(), origin(), origin()
    defaults = {"max_connections": 5}
    upstream = [{"url": a.url, "warm": 0, "max_connections": 9}]
    config = {"max_connections": 7, "max_origins": 2, "defaults": defaults, "upstream": upstream}
    proxy = warmproxy(config=config)
    for url, count, most in [(a.url, 8, 7), (b.url, 6, 5), (b.url, 10**8, 5)]:
        answer = post(proxy, origin=url, count=count)
        assert (answer.status, answer.text) == (
            409,
            f"{url}: {count} connections are more than max_connections allows, {most}\n",
        )
    assert set(proxy.pools()) == {a.url}
    assert post(proxy, origin=b.url, count=1).status == 202
    answer = post(proxy, origin=c.url, count=1)
    assert (answer.status, "max_origins (2)" in answer.text) == (409, True), answer
    # a request of a client is no wish: room is made for it as ever
    assert proxy.fetch(f"{c.url}/").status == 200
    assert proxy.pool(b.url)["target_idle"] == 1, "and not at the cost of what was asked for"


def test_nothing_more_is_held_while_the_daemon_stops(warmproxy, origin, post) -> None:
    """503 once the first signal came."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1", "--grace", "30")
    client = proxy.connect()
    client.request("GET", f"{web.url}/hold")
    web.wait_requests(1)
    proxy.signal(15)
    eventually(lambda: proxy.admin_status("/readyz") == 503)
    assert post(proxy, origin=web.url, count=3).status == 503
    web.gate.set()
    assert client.getresponse().read()
    client.close()
    assert proxy.exit_code() == 0


# ── who may ask ──────────────────────────────────────────────────────────────────────────────


def test_other_sites_pages_cannot_ask(warmproxy, origin, post) -> None:
    """A browser says by which page it was sent: `Origin`, `Sec-Fetch-Site`; and a name that was
    made to resolve to this machine shows in Host. Programs say nothing of the kind."""
    web = origin()
    proxy = warmproxy()
    wish = {"origin": web.url, "count": 2}
    own = f"Origin: http://{proxy.admin}"
    for fields in [
        ["Origin: https://evil.test"],
        ["Origin: null"],
        [f"Origin: http://127.0.0.1:{web.port}"],
        [f"Origin: http://127.0.0.1:{proxy.admin_port}.evil.test"],
        [own, "Origin: https://evil.test"],
        ["Sec-Fetch-Site: cross-site"],
        [own, "Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: "],
        ["Host: evil.test"],
        [f"Host: evil.test:{proxy.admin_port}", f"Origin: http://evil.test:{proxy.admin_port}"],
    ]:
        # curl leaves out a field without a value unless it is written like this
        answer = post(
            proxy, *(f.removesuffix(": ") + ";" * f.endswith(": ") for f in fields), **wish
        )
        assert answer.status == 403, (fields, answer)
        assert answer.text.count("\n") == 1
    assert proxy.pools() == {}
    for fields in [[own, "Sec-Fetch-Site: same-origin"], ["Sec-Fetch-Site: none"], []]:
        assert post(proxy, *fields, **wish).status in (200, 202), fields
    web.wait_open(2)


def test_a_browser_that_is_sent_here_by_a_page_is_refused(warmproxy, origin, client) -> None:
    """The page submits a form to /warm as soon as it is shown; Chromium shows what came of it."""
    pages: list[str] = []

    def page(connection: Any, request: Any) -> None:
        connection.reply(pages[0].encode(), {"Content-Type": "text/html"})

    site, victim = origin(page), origin()
    proxy = warmproxy()
    query = urlencode({"origin": victim.url, "count": 5})
    action = f"http://{proxy.admin}/warm?{query}".replace("&", "&amp;")
    pages.append(
        f'<form method="post" action="{action}"></form><script>document.forms[0].submit()</script>'
    )
    ran = client("chromium", site.url)
    assert "the request comes from a page of another site" in ran.output, ran.output
    assert proxy.pools() == {}
    assert victim.connections == []


def test_only_who_may_use_the_proxy_may_ask(warmproxy, origin, post) -> None:
    """allow_clients holds for POST /warm too; the pages stay open to monitoring."""
    web = origin()
    proxy = warmproxy(config={"allow_clients": ["10.0.0.0/8"]})
    answer = post(proxy, origin=web.url, count=1)
    assert (answer.status, "allow_clients" in answer.text) == (403, True)
    assert proxy.pools() == {}


def test_the_page_knows_post_and_nothing_else(warmproxy, run) -> None:
    """405 for a link or an image on a page: they are GET. A wish has no body."""
    proxy = warmproxy()
    url = f"http://{proxy.admin}/warm?origin=http://127.0.0.1:1&count=1"
    for options in ([], ["-I"], ["-X", "PUT"], ["-X", "OPTIONS"]):
        ran = run([need("curl"), "-sS", "-i", *options, url], clean_environ())
        assert ran.output.startswith("HTTP/1.1 405 "), ran.output
        assert "\nAllow: POST" in ran.output
    ran = run([need("curl"), "-sS", "-i", "-d", "x=1", url], clean_environ())
    assert ran.output.startswith("HTTP/1.1 413 "), ran.output
    assert proxy.pools() == {}


# ── warmproxy warm ───────────────────────────────────────────────────────────────────────────


def test_the_command_waits_until_all_is_warm(warmproxy, origin, warmproxy_command, pki) -> None:
    """Exit status 0, and a line for each pool, once the origins have all connections."""
    web, far = origin(), origin(tls=pki.server())
    url = f"https://localhost:{far.port}"
    proxy = warmproxy(config={"defaults": {"ca_file": str(pki.file)}})
    ran = warmproxy_command(
        *("warm", "--admin", proxy.admin, "--for", "90s", "--wait", "10"),
        *(f"{web.url}=4", f"{url}=2,tls=3"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        f"{web.url} 4 of 4 warm",
        f"tcp://localhost:{far.port} 2 of 2 warm",
        f"{url} 3 of 3 warm",
    ]
    assert (len(web.open_connections()), len(far.open_connections())) == (4, 5)
    assert 80 < proxy.pool(web.url)["boosts"][0]["seconds_left"] <= 90
    ran = warmproxy_command("warm", "--admin", proxy.admin, f"{web.url}=0")
    assert ran.returncode == 0
    assert proxy.pool(web.url)["boosts"] == []


def test_the_command_says_why_it_is_not_warm(warmproxy, origin, warmproxy_command) -> None:
    """Exit status 1 where an origin refuses, where the daemon does, and where there is none."""
    down = origin(listening=False)
    proxy = warmproxy()
    for args, words in [
        ([f"{down.url}=3", "--wait", "0.5"], f"{down.url} 0 of 3 warm: {down.authority} refused"),
        ([f"{down.url}=300"], f"{down.url}: 300 connections are more than max_connections allows"),
        (["ftp://h=3"], "'ftp://h' must begin with http:// or https://"),
    ]:
        ran = warmproxy_command("warm", "--admin", proxy.admin, *args)
        assert (ran.returncode, ran.stdout) == (1, ""), ran
        assert ran.stderr.startswith("warmproxy warm: ")
        assert words in ran.stderr
        assert ran.stderr.count("\n") == 1
    proxy.terminate()
    ran = warmproxy_command("warm", "--admin", proxy.admin, "http://h=1")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)


# ── windows ──────────────────────────────────────────────────────────────────────────────────


def test_a_daemon_that_starts_in_a_window_holds_it(warmproxy, origin, pki) -> None:
    """Readiness waits for it, /pools and the log tell of it, with TLS where that is asked for."""
    web, far = origin(), origin(tls=pki.server())
    url = f"https://localhost:{far.port}"
    every_minute = {"at": "* * * * *", "for": "2m"}
    settings = quick(web.url, warm_at=[{**every_minute, "count": 4}])
    secure = {"url": url, "warm": 1, "ca_file": str(pki.file)}
    secure["warm_at"] = [{**every_minute, "count": 0, "tls": 2}]
    settings["upstream"].append(secure)
    proxy = warmproxy(config=settings)
    pools = proxy.pools()
    assert [pool["fresh"] for pool in pools.values()] == [4, 1, 2]
    web.wait_open(4)
    far.wait_open(3)
    found = {name: (pool["target_idle"], pool["boosts"]) for name, pool in pools.items()}
    assert [target for target, _ in found.values()] == [4, 1, 2]
    assert found[f"tcp://localhost:{far.port}"][1] == []
    (boost,) = found[web.url][1]
    assert (boost["count"], boost["why"]) == (4, "schedule * * * * * for 2m")
    assert 55 < boost["seconds_left"] <= 120 + AHEAD.total_seconds()
    assert len(proxy.log_lines("window_began", web.url)) == 1
    assert len(proxy.log_lines("window_began", url)) == 1


def test_a_window_begins_warm_and_ends(warmproxy, origin) -> None:
    """Not a connection more before the last seconds ahead of it, all of them when it begins, and
    as few as ever after it."""
    web = origin()
    ahead = AHEAD.total_seconds()
    begins = int(time.time() + ahead) + 3  # the daemon is up before it is time to dial
    begins_at = time.monotonic() + begins - time.time()
    window = {"at": f"{begins % 60} * * * * *", "count": 6, "for": 1.5}
    proxy = warmproxy(config=quick(web.url, warm_at=[window]))
    assert time.monotonic() < begins_at - ahead, "the daemon took too long to start"
    web.wait_open(6)
    first, *rest = sorted(c.opened_at for c in web.connections)
    assert first < begins_at - ahead
    # the clocks of test and daemon are read at different moments
    assert begins_at - ahead - 0.1 < min(rest)
    assert max(rest) < begins_at
    assert proxy.pool(web.url)["target_idle"] == 6
    web.wait_open(1)
    assert begins_at + 1.4 < time.monotonic() < begins_at + 4
    assert len(web.connections) == 6
    assert proxy.pool(web.url)["boosts"] == []
