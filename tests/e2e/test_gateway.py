"""Clients that leave TLS to us: whole https:// URLs, http:// that is upgraded, and gateways' base
URLs."""

import socket
import threading
from typing import Any

import pytest

from tests.e2e.clients import CLIENTS, FORWARDING
from tests.e2e.conftest import Ran
from tests.e2e.daemon import Warmproxy
from tests.e2e.harness import eventually, free_port, missing, need
from tests.e2e.netns import run_inside
from tests.e2e.origins import Connection
from tests.e2e.tls_origins import Pki, secure, shaken


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


class Gate:
    """A daemon with one https upstream, upgraded and behind a gateway."""

    def __init__(self, warmproxy: Any, pki: Pki, web: Any, **more: Any) -> None:
        self.web = web
        self.port = free_port()
        self.secure = f"https://localhost:{web.port}"
        """the upstream, and its pool"""
        self.plain = f"http://localhost:{web.port}"
        """what clients of the upgrade ask for"""
        self.base = f"http://127.0.0.1:{self.port}"
        """what clients of the gateway ask"""
        upstream = {"url": self.secure, "warm": 2, "upgrade": True, "ca_file": str(pki.file)}
        gateway = {"listen": f"127.0.0.1:{self.port}", "upstream": self.secure}
        self.proxy: Warmproxy = warmproxy(
            config={"upstream": [upstream], "gateway": [gateway], **more}
        )
        eventually(lambda: sum(map(shaken, web.connections)) == 2)

    def pool(self) -> dict[str, Any]:
        return self.proxy.pools()[self.secure]

    def answer(self, message: str) -> bytes:
        """What the gateway says to a message of our own, to its end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            sock.sendall(message.replace("\n", "\r\n").encode() + b"\r\n\r\n")
            return sock.makefile("rb").read()


@pytest.fixture
def gate(warmproxy, pki, origin) -> Gate:
    """A Gate to an origin with TLS."""
    return Gate(warmproxy, pki, origin(tls=pki.server()))


def names_itself(connection: Connection, request: Any) -> None:
    """Answer like a site that redirects to itself, sets cookies, and elsewhere."""
    host = request.header("host")
    elsewhere = request.target == "/elsewhere"
    connection.read_body(request)
    connection.reply(
        b"moved",
        "302 Found",
        (
            ("Location", "https://elsewhere.example/x" if elsewhere else f"https://{host}/next?a"),
            ("Set-Cookie", "a=1; Path=/; Secure; HttpOnly"),
            ("Set-Cookie", "b=secure; secure"),
        ),
    )


# -- real clients -----------------------------------------------------------------------------


def rode_on_warm_tls(gate: Gate, ran: Ran, *targets: str) -> None:
    """The client got its answers, and its requests reached the origin in origin-form and with its
    name, the first over TLS that was finished before the client was started and none by a dial."""
    assert ran.code == 0, ran.output
    assert gate.web.token in ran.output
    asked = [r for r in gate.web.requests if r.target != "/favicon.ico"]
    assert [r.target for r in asked] == list(targets)
    its = secure(asked[0].connection)
    assert its.handshake_at is not None
    assert its.handshake_at < ran.started_at
    assert its.name == "localhost"
    for request in asked:
        assert request.values("host") == [f"localhost:{gate.web.port}"]
        assert request.values("upgrade") == []  # Java asks for h2c
    pool = gate.pool()
    assert pool["hits"] >= len(targets)
    assert pool["misses"] == 0


@pytest.mark.parametrize("name", FORWARDING)
def test_clients_by_whole_url(gate, client, name) -> None:
    """A real client sends the whole https:// URL to the proxy."""
    ran = client(name, f"{gate.secure}/page?q=1", proxy=gate.proxy, of=FORWARDING)
    rode_on_warm_tls(gate, ran, "/page?q=1")


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_by_http_url(gate, client, undici, name) -> None:
    """A real client that has a proxy asks for http://, which is upgraded."""
    if name == "node-fetch" and undici().tunnels_http:
        missing("undici >= 6.21, which sends http:// as a whole URL,")
    ran = client(name, f"{gate.plain}/page?q=1", proxy=gate.proxy)
    rode_on_warm_tls(gate, ran, "/page?q=1")


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_with_a_base_url(gate, client, name) -> None:
    """A real client that knows no proxy asks a gateway, twice on one connection; Chromium, which
    shows one page, once."""
    targets = ["/page?n=0", "/page?n=1"][: 1 if name == "chromium" else 2]
    ran = client(name, *(gate.base + target for target in targets))
    rode_on_warm_tls(gate, ran, *targets)
    assert ran.output.count(gate.web.token) == len(targets)
    assert [r.nth for r in gate.web.requests][: len(targets)] == [1, 2][: len(targets)]


PAGE = b"""<p id=said></p><script>
const ask = new XMLHttpRequest();
ask.open('POST', '/api', false);
ask.send('from the page');
document.getElementById('said').textContent = ask.responseText;
</script>"""


@pytest.mark.parametrize("way", ["upgraded", "gateway"])
def test_a_browser_session(gate, client, way) -> None:
    """Chromium follows the site's redirect to itself, and what its page then posts comes with the
    Secure cookie and with Origin and Referer of the site, all over warm TLS."""

    def site(connection: Connection, request: Any) -> None:
        if request.target == "/login":
            names_itself(connection, request)
        elif request.target == "/api":
            connection.read_body(request)
            connection.reply(gate.web.token.encode())
        else:
            connection.reply(PAGE)

    gate.web.answer = site
    base, proxy = (gate.plain, gate.proxy) if way == "upgraded" else (gate.base, None)
    ran = client("chromium", f"{base}/login", proxy=proxy)
    rode_on_warm_tls(gate, ran, "/login", "/next?a", "/api")
    api = next(r for r in gate.web.requests if r.target == "/api")
    assert (api.method, bytes(api.body)) == ("POST", b"from the page")
    assert sorted((api.header("cookie") or "").split("; ")) == ["a=1", "b=secure"]
    assert api.header("origin") == gate.secure
    assert api.header("referer") == f"{gate.secure}/next?a"


# -- upgraded http ----------------------------------------------------------------------------


def test_an_upgraded_exchange_names_https_to_the_origin(gate) -> None:
    """Origin and Referer say https:// to the origin, a Location to itself says http:// to the
    client, one to elsewhere stays, and cookies come without Secure."""
    gate.web.answer = names_itself
    sent = {"Origin": gate.plain, "Referer": f"{gate.plain}/form"}
    reply = gate.proxy.fetch(f"{gate.plain}/login", "POST", b"user", sent)
    assert reply.status == 302
    assert reply.headers["Location"] == f"{gate.plain}/next?a"
    cookies = ["a=1; Path=/; HttpOnly", "b=secure"]
    assert reply.headers.get_all("Set-Cookie") == cookies
    (request,) = gate.web.requests
    assert request.header("origin") == gate.secure
    assert request.header("referer") == f"{gate.secure}/form"
    far = gate.proxy.fetch(f"{gate.plain}/elsewhere", headers={"Referer": "http://other.example/"})
    assert far.headers["Location"] == "https://elsewhere.example/x"
    assert gate.web.requests[-1].header("referer") == "http://other.example/"


def test_a_curl_session_through_an_upgrade(gate, run, home) -> None:
    """curl follows a redirect to the site itself and sends its Secure cookie back, all by http://
    and all over warm TLS."""

    def site(connection: Connection, request: Any) -> None:
        if request.target == "/":
            names_itself(connection, request)
        else:
            connection.reply((request.header("cookie") or "no cookie").encode())

    gate.web.answer = site
    args = ["-sS", "-L", "-b", "", "--noproxy", "", "-x", gate.proxy.url, f"{gate.plain}/"]
    ran = run([need("curl"), *args])
    assert sorted(ran.output.split("; ")) == ["a=1", "b=secure"], ran.output
    assert [r.target for r in gate.web.requests] == ["/", "/next?a"]
    assert gate.pool()["misses"] == 0


# Runs inside a network namespace: see netns.py. curl asks from loopback and from beyond.
_FROM_BEYOND = """
import json, subprocess, sys
from pathlib import Path
from tests.e2e.daemon import Warmproxy
from tests.e2e.netns import ADDRESS
from tests.e2e.origins import Origin
from tests.e2e.tls_origins import Pki

curl, remote = sys.argv[1], sys.argv[2] == "True"
here = Path()
pki = Pki(here)
web = Origin(tls=pki.server())
upstream = {
    "url": web.url, "warm": 1, "upgrade": True, "upgrade_remote": remote, "ca_file": "ca.pem"
}
networks = ["127.0.0.0/8", "10.0.0.0/8"]
config = {"allow_clients": networks, "upstream": [upstream]}
proxy = Warmproxy(here, config=config, listen="0.0.0.0")

def ask(name, host):
    url = f"http://{web.authority}/{name}"
    args = [curl, "-sS", "-i", "--noproxy", "", "-x", f"http://{host}:{proxy.port}", url]
    return subprocess.run(args, capture_output=True, text=True, check=True).stdout

try:
    said = {name: ask(name, host) for name, host in (("beyond", ADDRESS), ("here", "127.0.0.1"))}
    print(json.dumps({"said": said, "heard": [r.target for r in web.requests]}))
finally:
    proxy.stop()
    web.close()
"""


@pytest.mark.parametrize("remote", [False, True])
def test_an_upgrade_for_a_client_beyond_loopback(tmp_path, remote) -> None:
    """A client at an address that is not loopback, which may use the proxy, gets a 403 for an
    upgraded http:// and the origin hears nothing of it, unless upgrade_remote allows it."""
    found = run_inside(_FROM_BEYOND, tmp_path, need("curl"), str(remote))
    beyond, here = found["said"]["beyond"], found["said"]["here"]
    assert here.startswith("HTTP/1.1 200 ")
    if remote:
        assert beyond.startswith("HTTP/1.1 200 ")
    else:
        assert beyond.startswith("HTTP/1.1 403 ")
        assert "error=http_request_denied" in beyond
        assert "upgrade_remote" in beyond
    assert found["heard"] == (["/beyond", "/here"] if remote else ["/here"])


# -- gateways ---------------------------------------------------------------------------------


def test_a_gateway_stands_for_its_upstream(gate) -> None:
    """Origin-form goes to the upstream over warm TLS with the upstream's Host; what names the
    upstream in the answer names the gateway, and the connection is kept."""
    gate.web.answer = names_itself
    base = f"127.0.0.1:{gate.port}"
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as sock:
        stream = sock.makefile("rb")
        for n in range(3):
            sock.sendall(
                f"GET /v1/things?n={n} HTTP/1.1\r\nHost: {base}\r\n"
                f"Origin: http://{base}\r\nReferer: http://{base}/v1\r\n\r\n".encode()
            )
            head = [line.strip() for line in iter(stream.readline, b"\r\n")]
            assert stream.read(5) == b"moved"
            assert head[0] == b"HTTP/1.1 302 Found"
            assert f"Location: http://{base}/next?a".encode() in head
            assert b"Set-Cookie: b=secure" in head
    assert [r.target for r in gate.web.requests] == [f"/v1/things?n={n}" for n in range(3)]
    request = gate.web.requests[0]
    host = f"localhost:{gate.web.port}"
    assert request.values("host") == [host]
    assert request.header("origin") == f"https://{host}"
    assert request.header("referer") == f"https://{host}/v1"
    assert {r.connection for r in gate.web.requests} == {request.connection}
    pool = gate.pool()
    assert (pool["hits"], pool["misses"]) == (3, 0)


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT example.com:443 HTTP/1.1\nHost: example.com:443",
        "GET http://127.0.0.1/ HTTP/1.1\nHost: 127.0.0.1",
        "GET https://example.com/ HTTP/1.1\nHost: example.com",
        "GET HTTP/1.1\nHost: x",
        "GET / HTTP/1.1",
    ],
    ids=["CONNECT", "http", "https", "no target", "no Host"],
)
def test_a_gateway_takes_nothing_else(gate, line) -> None:
    """CONNECT and whole URLs are for the proxy's port: 400, and the upstream hears nothing."""
    assert gate.answer(line).startswith(b"HTTP/1.1 400 ")
    assert gate.web.requests == []


def test_a_gateway_to_a_plain_upstream(warmproxy, origin) -> None:
    """The same for http: Host is rewritten, and OPTIONS * goes on as *."""
    web = origin()
    port = free_port()
    proxy = warmproxy(
        config={
            "upstream": [{"url": web.url, "warm": 1}],
            "gateway": [{"listen": f"127.0.0.1:{port}", "upstream": web.url}],
        }
    )
    web.wait_open(1)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert sock.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
    (request,) = web.requests
    assert (request.method, request.target) == ("OPTIONS", "*")
    assert request.values("host") == [web.authority]
    assert proxy.pool(web.url)["hits"] == 1


def test_a_websocket_by_a_gateway(stack, warmproxy, authority) -> None:
    """A real WebSocket client on ws:// at a gateway talks to a real server behind TLS."""
    try:
        from websockets.sync.client import connect
        from websockets.sync.server import serve
    except ImportError:
        missing("the Python package websockets")

    def echo(socket: Any) -> None:
        for message in socket:
            socket.send(message.upper())

    server = stack.enter_context(serve(echo, "127.0.0.1", 0, ssl=authority.server))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.shutdown)
    url = f"https://127.0.0.1:{server.socket.getsockname()[1]}"
    port = free_port()
    warmproxy(
        config={
            "upstream": [{"url": url, "warm": 0, "tls": 1, "ca_file": str(authority.file)}],
            "gateway": [{"listen": f"127.0.0.1:{port}", "upstream": url}],
        }
    )
    with connect(f"ws://127.0.0.1:{port}/chat", proxy=None) as client:
        for text in ("one", "two" * 50_000):
            client.send(text)
            assert client.recv(timeout=10) == text.upper()


def test_a_port_in_use_stops_the_start(warmproxy, origin) -> None:
    """A gateway whose port is taken: exit code 1 and one line that says which."""
    web = origin()
    taken = f"127.0.0.1:{web.port}"
    proxy = warmproxy(
        ready=False, config={"gateway": [{"listen": taken, "upstream": "https://localhost"}]}
    )
    assert proxy.exit_code() == 1
    assert taken in proxy.log()
    assert "Traceback" not in proxy.log()
