"""Real clients through the proxy, over http:// and, by CONNECT, over https://.

How Node is tested: Node 20's fetch has no proxy setting (NODE_USE_ENV_PROXY came with 22.21 and
24), so `node-fetch` gives it undici's ProxyAgent, and `node-http` uses nothing but Node's own http
module with the whole URL as path, or CONNECT. undici uses CONNECT for http:// as well unless it
is told `proxyTunnel: false`, which versions before 6.21 (Debian 12 has one) do not know: there the
connections that have to be warm are those for tunnels, and the proxy adds no Via.
"""

import os
import re

import pytest

from tests.e2e.clients import CLIENTS, FORWARDING
from tests.e2e.harness import ROOT, free_port, missing, need
from tests.e2e.test_adapters import WAYS

HOP_BY_HOP = ("proxy-connection", "proxy-authorization", "keep-alive", "te", "trailer")
NAMES_THE_CLIENT = ("x-forwarded-for", "x-real-ip", "forwarded", "x-forwarded-host")


@pytest.mark.parametrize("name", CLIENTS)
def test_client_over_http(warmproxy, origin, client, undici, name) -> None:
    """The client's request rides on a connection opened before the client was started, in
    origin-form, with Via and without anything that was meant for the proxy or names the client."""
    web = origin()
    tunnels = name == "node-fetch" and undici().tunnels_http
    proxy = warmproxy("--warm", f"{'https' if tunnels else 'http'}://{web.authority}=2")
    web.wait_open(2)
    ran = client(name, f"{web.url}/page?q=1", proxy=proxy)
    assert ran.code == 0, ran.output
    assert web.token in ran.output
    request = next(r for r in web.requests if r.target == "/page?q=1")
    assert request.connection.opened_at < ran.started_at
    assert request.nth == 1
    assert request.version == "HTTP/1.1"
    assert request.values("host") == [web.authority]
    assert ("warmproxy" in (request.header("via") or "")) is not tunnels
    for field in (*HOP_BY_HOP, *NAMES_THE_CLIENT):
        assert request.values(field) == [], field
    assert proxy.count("warmproxy_acquires_total", outcome="fresh") >= 1
    assert proxy.count("warmproxy_acquires_total", outcome="dialled") == 0


@pytest.mark.parametrize("name", CLIENTS)
def test_client_over_https(warmproxy, origin, client, authority, name) -> None:
    """The client's TLS runs through a tunnel over a connection opened before the client was
    started, and the origin gets the client's own request, which the proxy cannot have touched."""
    web = origin(tls=authority.server)
    proxy = warmproxy("--warm", f"{web.url}=2")
    web.wait_open(2)
    ran = client(name, f"{web.url}/page", proxy=proxy)
    assert ran.code == 0, ran.output
    assert web.token in ran.output
    request = next(r for r in web.requests if r.target == "/page")
    assert request.connection.opened_at < ran.started_at
    assert request.values("host") == [web.authority]
    for field in ("via", *NAMES_THE_CLIENT):
        assert request.values(field) == [], field
    assert proxy.count("warmproxy_acquires_total", outcome="fresh") >= 1
    assert proxy.count("warmproxy_acquires_total", outcome="dialled") == 0
    assert proxy.count("warmproxy_requests_total", code_class="5xx") == 0


def test_the_page_has_each_client_and_way() -> None:
    """The table in docs/clients.md has a row for each client of these tests, and says `no` to
    forwarding where none shows it."""
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| Client | Tunnel | Forwarded | Upgraded | Gateway |\n| ")
    rows = [line.strip("| ").split(" | ") for line in table.partition("\n\n")[0].splitlines()[1:]]
    forwarded = {re.sub(r"\W+", "-", row[0].lower()).strip("-"): row[2] != "no" for row in rows}
    adapters = {way.__name__.removeprefix("with_") for way in WAYS}
    assert forwarded == {name: name in FORWARDING or name in adapters for name in CLIENTS}
    assert all(cell != "no" for row in rows for cell in (row[1], *row[3:]))


def test_listens_on_ipv6_loopback(warmproxy, origin, run) -> None:
    """`--listen [::1]:PORT` is a proxy like the one on 127.0.0.1, and both can be had at once."""
    if not os.path.exists("/proc/net/if_inet6"):
        missing("IPv6")
    web = origin()
    port = free_port()
    proxy = warmproxy("--warm", f"{web.url}=1", "--listen", f"[::1]:{port}")
    ran = run([need("curl"), "-sS", "-x", f"http://[::1]:{port}", f"{web.url}/six"])
    assert ran.code == 0, ran.output
    assert proxy.fetch(f"{web.url}/four").status == 200
    assert [r.target for r in web.requests] == ["/six", "/four"]


def test_prints_the_lines_to_export(warmproxy, origin) -> None:
    """At its start the daemon prints where it listens and the export lines in both spellings."""
    proxy = warmproxy()
    text = proxy.log()
    assert proxy.admin in text
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        assert f"{name}={proxy.url}" in text.replace('"', "").replace("'", ""), text
