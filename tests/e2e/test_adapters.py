"""warmproxy.clients with the real clients, the real daemon and origins that speak real TLS."""

import asyncio
import contextlib
import pickle
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx
import pytest
import requests
import trustme
import urllib3
from urllib3.util.wait import wait_for_read

import warmproxy.clients.aiohttp
import warmproxy.clients.requests
from tests.e2e.conftest import Authority
from tests.e2e.daemon import warmproxy_environ
from tests.e2e.harness import ROOT, eventually, free_port
from tests.e2e.origins import Connection, Origin, Request
from warmproxy.clients import proxy_url
from warmproxy.clients.httpx import AsyncForwardingTransport, ForwardingTransport
from warmproxy.clients.requests import ForwardingAdapter
from warmproxy.clients.urllib3 import ForwardingManager, prewarm

# -- the five ways, alike ---------------------------------------------------------------------


@dataclass(frozen=True)
class Got:
    status: int
    headers: Mapping[str, str]
    text: str


class Fetch(Protocol):
    def __call__(
        self, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Got: ...


@contextlib.contextmanager
def with_requests(proxy: str, ca: Path, fallback: bool) -> Iterator[Fetch]:
    with requests.Session() as session:
        session.mount("https://", ForwardingAdapter(proxy, fallback=fallback))
        session.mount("http://", ForwardingAdapter(proxy, fallback=fallback))
        session.verify = str(ca)

        def fetch(url: str, body: Any = None, headers: Any = None) -> Got:
            method = "GET" if body is None else "POST"
            answer = session.request(method, url, data=body, headers=headers, timeout=20)
            return Got(answer.status_code, answer.headers, answer.text)

        yield fetch


@contextlib.contextmanager
def with_urllib3(proxy: str, ca: Path, fallback: bool) -> Iterator[Fetch]:
    with ForwardingManager(proxy, fallback=fallback, ca_certs=str(ca)) as manager:

        def fetch(url: str, body: Any = None, headers: Any = None) -> Got:
            method = "GET" if body is None else "POST"
            answer = manager.request(method, url, body=body, headers=headers, timeout=20)
            return Got(answer.status, answer.headers, answer.data.decode())

        yield fetch


@contextlib.contextmanager
def with_httpx(proxy: str, ca: Path, fallback: bool) -> Iterator[Fetch]:
    context = ssl.create_default_context(cafile=ca)
    transport = ForwardingTransport(proxy, fallback=fallback, verify=context)
    with httpx.Client(transport=transport, timeout=20) as client:

        def fetch(url: str, body: Any = None, headers: Any = None) -> Got:
            method = "GET" if body is None else "POST"
            answer = client.request(method, url, content=body, headers=headers)
            return Got(answer.status_code, answer.headers, answer.text)

        yield fetch


@contextlib.contextmanager
def with_async_httpx(proxy: str, ca: Path, fallback: bool) -> Iterator[Fetch]:
    context = ssl.create_default_context(cafile=ca)
    transport = AsyncForwardingTransport(proxy, fallback=fallback, verify=context)
    client = httpx.AsyncClient(transport=transport, timeout=20)

    async def fetch(url: str, body: Any, headers: Any) -> Got:
        method = "GET" if body is None else "POST"
        answer = await client.request(method, url, content=body, headers=headers)
        return Got(answer.status_code, answer.headers, answer.text)

    with asyncio.Runner() as runner:
        yield lambda url, body=None, headers=None: runner.run(fetch(url, body, headers))
        runner.run(client.aclose())


@contextlib.contextmanager
def with_aiohttp(proxy: str, ca: Path, fallback: bool) -> Iterator[Fetch]:
    context = ssl.create_default_context(cafile=ca)

    async def made() -> aiohttp.ClientSession:
        return warmproxy.clients.aiohttp.session(proxy, fallback=fallback)

    async def fetch(url: str, body: Any, headers: Any) -> Got:
        method = "GET" if body is None else "POST"
        request = session.request(method, url, data=body, headers=headers, ssl=context)
        async with request as answer:
            return Got(answer.status, answer.headers, await answer.text())

    with asyncio.Runner() as runner:
        session = runner.run(made())
        yield lambda url, body=None, headers=None: runner.run(fetch(url, body, headers))
        runner.run(session.close())


Way = Callable[[str, Path, bool], contextlib.AbstractContextManager[Fetch]]

WAYS: list[Way] = [with_requests, with_urllib3, with_httpx, with_async_httpx, with_aiohttp]
UNREACHABLE = (
    requests.ConnectionError,
    urllib3.exceptions.HTTPError,
    httpx.ConnectError,
    aiohttp.ClientConnectionError,
)

each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("with_"))


def trusting(authority: Authority) -> dict[str, Any]:
    return {"defaults": {"ca_file": str(authority.file)}}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests would prefer them
        monkeypatch.delenv(name, raising=False)


# -- forwarding -------------------------------------------------------------------------------


@each_way
def test_https_goes_out_on_tls_that_was_there_before(way, warmproxy, origin, authority) -> None:
    """Each client's https request reaches the origin, whole, on a connection whose handshake was
    over before the client was made; the next one, which has a body, does not wait either."""
    web = origin(tls=authority.server)
    proxy = warmproxy("--warm", f"{web.url}=0,tls=2", config=trusting(authority))
    web.wait_open(2)
    began = time.monotonic()
    with way(proxy.url, authority.file, False) as fetch:
        first = fetch(f"{web.url}/page?a=b%20c#part", headers={"X-Mine": "1"})
        second = fetch(f"{web.url}/echo", body=b"some words")
    assert (first.status, web.token in first.text) == (200, True)
    assert (second.status, second.text) == (200, "some words")
    asked = web.requests
    assert [(r.method, r.target) for r in asked] == [("GET", "/page?a=b%20c"), ("POST", "/echo")]
    assert [r.values("host") for r in asked] == [[web.authority]] * 2
    assert asked[0].values("x-mine") == ["1"]
    assert asked[0].connection.opened_at < began
    for outcome in ("dialled", "waited", "failed"):
        assert proxy.count("warmproxy_acquires_total", outcome=outcome) == 0, outcome


@each_way
def test_a_certificate_that_is_not_trusted_is_a_502(way, warmproxy, origin, authority) -> None:
    """The daemon verifies: an origin of another authority gets no byte of the request, and the
    client, whatever it trusts itself, a 502 that says why."""
    other = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.issue_cert("127.0.0.1").configure_cert(context)
    web = origin(tls=context)
    proxy = warmproxy(config=trusting(authority))
    with way(proxy.url, authority.file, True) as fetch:
        got = fetch(f"{web.url}/secret")
    assert got.status == 502
    assert "error=tls_certificate_error" in got.headers["Proxy-Status"]
    assert web.requests == []


@each_way
def test_nobody_there(way, origin, authority) -> None:
    """Without the daemon a request fails; with `fallback` it goes straight to the origin, whose
    certificate the client then verifies itself."""
    web = origin(tls=authority.server)
    stranger = origin(tls=authority.server)
    nobody = f"http://some:one@127.0.0.1:{free_port()}"
    with way(nobody, authority.file, False) as fetch, pytest.raises(UNREACHABLE):
        fetch(web.url)
    assert web.requests == []
    with way(nobody, authority.file, True) as fetch:
        got = fetch(f"{web.url}/echo", body=b"some words")
    assert (got.status, got.text) == (200, "some words")
    [request] = web.requests
    assert request.target == "/echo"
    assert request.values("proxy-authorization") == []
    ca = authority.file.with_name("other.pem")
    trustme.CA().cert_pem.write_to_path(str(ca))
    with way(nobody, ca, True) as fetch, pytest.raises((*UNREACHABLE, ssl.SSLError)):
        fetch(stranger.url)
    assert stranger.requests == []


@each_way
def test_the_daemon_goes_away(way, warmproxy, origin, authority) -> None:
    """A client that has an idle connection to a daemon that ended goes on without it."""
    web = origin(tls=authority.server)
    proxy = warmproxy(config=trusting(authority))
    with way(proxy.url, authority.file, True) as fetch:
        assert fetch(f"{web.url}/by-proxy").status == 200
        assert proxy.terminate() == 0
        assert fetch(f"{web.url}/direct").status == 200
    by_proxy, direct = web.requests
    assert by_proxy.values("via") != []
    assert direct.values("via") == []


@each_way
def test_credentials_and_the_variable(way, warmproxy, origin, authority, tmp_path, monkeypatch):
    """User and password in the proxy's address are sent to it alone; the address may come from
    the variable, and http:// goes the same way."""
    file = tmp_path / "credentials"
    file.write_text("some one:p@ss\n")
    file.chmod(0o600)
    web, plain = origin(tls=authority.server), origin()
    proxy = warmproxy(config={"credentials_file": str(file), **trusting(authority)})
    with way(proxy.url, authority.file, False) as fetch:
        assert fetch(web.url).status == 407
    monkeypatch.setenv("http_proxy", f"http://some%20one:p%40ss@127.0.0.1:{proxy.port}/")
    with way(None, authority.file, False) as fetch:
        assert fetch(web.url).status == 200
        assert fetch(plain.url).status == 200
    for request in (*web.requests, *plain.requests):
        assert request.values("proxy-authorization") == []
        assert request.values("via") != []


def test_which_proxy(monkeypatch) -> None:
    """Argument, variable, default; never one beyond loopback unless that is allowed."""
    assert proxy_url() == "http://127.0.0.1:3128"
    monkeypatch.setenv("HTTP_PROXY", "http://[::1]:8080/")
    assert proxy_url() == "http://[::1]:8080"
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert proxy_url() == "http://127.0.0.1:3128"
    monkeypatch.setenv("http_proxy", "localhost:9")
    assert proxy_url() == "http://localhost:9"
    assert proxy_url("http://127.0.0.2") == "http://127.0.0.2:80"
    for remote in ("http://10.0.0.1:3128", "http://proxy.example:3128", "http://localhost.evil:1"):
        for refusing in (proxy_url, ForwardingAdapter, ForwardingManager, ForwardingTransport):
            with pytest.raises(ValueError, match="in the clear"):
                refusing(remote)
        assert proxy_url(remote, allow_remote=True) == remote
    for wrong in ("https://127.0.0.1:1", "http://127.0.0.1:x", "http://", "http://127.0.0.1:1/a"):
        with pytest.raises(ValueError, match="of the form"):
            proxy_url(wrong)


def test_requests_ready_session(warmproxy, origin, authority) -> None:
    """`session()` needs nothing more; the proxy variables do not turn it to a tunnel; it can be
    pickled; a client certificate is not silently left out."""
    web = origin(tls=authority.server)
    proxy = warmproxy(config=trusting(authority))
    with warmproxy_session(proxy.url) as session:
        session.proxies = {"https": "http://127.0.0.1:1"}
        again = pickle.loads(pickle.dumps(session))
        with again:
            for one in (session, again):
                assert one.get(f"{web.url}/x", timeout=20).status_code == 200
        with pytest.raises(ValueError, match="client_cert"):
            session.get(web.url, cert="mine.pem", timeout=20)
    assert [r.target for r in web.requests] == ["/x", "/x"]
    assert all(r.values("via") for r in web.requests)


warmproxy_session = warmproxy.clients.requests.session


def test_urllib3_redirects(warmproxy, origin, authority) -> None:
    """A redirect within the origin keeps the Authorization field, one to another loses it, as
    without a proxy."""

    def answer(connection: Connection, request: Request) -> None:
        where = {"/one": "/two", "/two": f"{other.url}/three"}[request.target]
        connection.reply(status="302 Found", headers=(("Location", where),))

    other = origin(tls=authority.server)
    web = origin(answer, tls=authority.server)
    proxy = warmproxy(config=trusting(authority))
    with ForwardingManager(proxy.url) as manager:
        got = manager.request("GET", f"{web.url}/one", headers={"Authorization": "secret"})
    assert (got.status, other.token in got.data.decode()) == (200, True)
    assert [r.values("authorization") for r in web.requests] == [["secret"]] * 2
    assert [r.values("authorization") for r in other.requests] == [[]]


PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: block.split("warmproxy.clients.")[1][:9]
)
def test_the_page_can_be_copied(block, warmproxy, origin, authority, run) -> None:
    """Each block of docs/clients.md runs as it stands, but for the origin's name."""
    web = origin(tls=authority.server)
    proxy = warmproxy(config=trusting(authority))
    trust = {"SSL_CERT_FILE": str(authority.file), "REQUESTS_CA_BUNDLE": str(authority.file)}
    forwards = "prewarm" not in block
    environ = warmproxy_environ(**trust, **({"http_proxy": proxy.url} if forwards else {}))
    ran = run([sys.executable, "-c", block.replace("https://api.example.com", web.url)], environ)
    assert (ran.code, ran.output) == (0, "")
    [request] = web.requests
    assert bool(request.values("via")) == forwards
    if not forwards:
        assert len(web.connections) == 4


# -- prewarm ----------------------------------------------------------------------------------


def manager_of(ca: Path, maxsize: int, proxy: str | None) -> Any:
    if proxy is not None:
        return urllib3.ProxyManager(proxy, maxsize=maxsize, ca_certs=str(ca))
    return urllib3.PoolManager(maxsize=maxsize, ca_certs=str(ca))


def session_of(ca: Path, maxsize: int, proxy: str | None) -> Any:
    session = requests.Session()
    session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=maxsize))
    session.verify = str(ca)
    if proxy is not None:
        session.proxies = {"https": proxy}
    return session


def pool_of(client: Any) -> Any:
    if isinstance(client, requests.Session):
        adapter = client.get_adapter("https://")
        [client, *_] = [*adapter.proxy_manager.values(), adapter.poolmanager]
    [key] = client.pools.keys()
    return client.pools[key]


both = pytest.mark.parametrize(
    ("make", "warm"),
    [(manager_of, prewarm), (session_of, warmproxy.clients.requests.prewarm)],
    ids=["urllib3", "requests"],
)


def close(client: Any) -> None:
    client.close() if isinstance(client, requests.Session) else client.clear()


def in_parallel(client: Any, url: str, n: int, web: Origin) -> list[int]:
    """n requests that are all under way at once; their statuses."""
    with ThreadPoolExecutor(n) as threads:
        asked = [threads.submit(client.request, "GET", url, timeout=20) for _ in range(n)]
        web.wait_requests(n)
        web.gate.set()
        return [
            getattr(f.result(), "status_code", 0) or getattr(f.result(), "status", 0) for f in asked
        ]


@both
@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "tunnel"])
def test_prewarmed_connections_are_used(
    make, warm, version, by_proxy, origin, warmproxy, tmp_path, stack
) -> None:
    """The next n requests at once take the n connections that were opened for them, also once
    TLS 1.3's session tickets have come in on each of them, unread."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    web = origin(tls=tls_of(ca, version))
    proxy = warmproxy(config={"learn_requests": 0}).url if by_proxy else None
    client = make(tmp_path / "ca.pem", 4, proxy)
    stack.callback(close, client)
    warm(client, f"{web.url}/", 4)
    shaken = web.wait_open(4)
    pool = pool_of(client)
    socks = [conn.sock for conn in pool.pool.queue]
    assert [sock.version() for sock in socks] == [f"TLSv{version}"] * 4
    if version == "1.3":
        eventually(lambda: all(wait_for_read(sock, timeout=0) for sock in socks))
    assert web.requests == []
    assert in_parallel(client, f"{web.url}/hold", 4, web) == [200] * 4
    assert {r.connection for r in web.requests} == set(shaken)
    warm(client, web.url, 4)
    assert web.open_connections() == shaken, "those that are there already count"


def tls_of(ca: trustme.CA, version: str) -> ssl.SSLContext:
    """A server's context of one version of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = {
        "1.2": ssl.TLSVersion.TLSv1_2,
        "1.3": ssl.TLSVersion.TLSv1_3,
    }[version]
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


@both
@pytest.mark.parametrize("how", ["close", "bytes"])
def test_prewarmed_connections_that_ended_are_not_used(
    make, warm, how, origin, authority, stack
) -> None:
    """What the origin closed, or wrote on unasked, is replaced before the request is sent."""
    web = origin(tls=authority.server)
    client = make(authority.file, 1, None)
    stack.callback(close, client)
    warm(client, web.url, 1)
    [old] = web.wait_open(1)
    [conn] = pool_of(client).pool.queue
    eventually(lambda: wait_for_read(conn.sock, timeout=0), says="a ticket")
    assert conn.is_connected
    old.fin() if how == "close" else old.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    eventually(lambda: not conn.is_connected)
    assert in_parallel(client, web.url, 1, web) == [200]
    [request] = web.requests
    assert request.connection is not old


@both
def test_prewarm_says_what_is_wrong(make, warm, origin, authority, tmp_path, stack) -> None:
    """More connections than the pool keeps; a certificate that is not trusted; nobody there."""
    web = origin(tls=authority.server)
    client = make(authority.file, 2, None)
    stack.callback(close, client)
    with pytest.raises(ValueError, match="keeps 2 connections, not 3"):
        warm(client, web.url, 3)
    with pytest.raises(urllib3.exceptions.HTTPError):
        warm(client, f"https://127.0.0.1:{free_port()}", 2)
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    distrustful = make(other, 2, None)
    stack.callback(close, distrustful)
    with pytest.raises(ssl.SSLCertVerificationError):
        warm(distrustful, web.url, 2)
    assert web.requests == []
