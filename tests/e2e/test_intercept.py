"""Clients that only speak CONNECT, and whose TLS ends here because its owner asked for that.

What counts is what the origin saw: a request on a connection whose handshake was done before the
client was there, or, where the client does not take our certificate, the client's own handshake.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients import CLIENTS, Job, chromium
from tests.e2e.daemon import Warmproxy, command, fetch_on, warmproxy_environ
from tests.e2e.harness import eventually, need
from tests.e2e.origins import Connection, Request, pattern, pattern_crc
from tests.e2e.tls_origins import Pki, secure, shaken
from warmproxy.net.authority import KEY, TRUST, create, prepare, rotate

HOSTS = ["localhost", "127.0.0.1"]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def ca(home: Callable[[str], Path]) -> Path:
    """The folder of an authority for localhost and 127.0.0.1."""
    folder = home("authority") / "ca"
    create(folder, HOSTS, now=time.time(), days=30)
    return folder


@pytest.fixture
def start(warmproxy: Any, pki: Pki, ca: Path) -> Callable[..., Warmproxy]:
    """A daemon that intercepts `url`; `upstream` and whatever else are further settings."""

    def start_it(url: str, *args: str, **more: Any) -> Warmproxy:
        return warmproxy(*args, config=config(pki, ca, url, **more), by_file=True)

    return start_it


def config(pki: Pki, ca: Path, url: str, **more: Any) -> dict[str, Any]:
    upstream = {"url": url, "warm": 2, "intercept": True, "ca_file": str(pki.file)}
    upstream |= more.pop("upstream", {})
    return {"learn_requests": 0, "ca_dir": str(ca), "upstream": [upstream], **more}


def by_name(web: Any) -> str:
    """The origin's URL by its name, for SNI: an address has none."""
    return f"https://localhost:{web.port}"


def trusting(ca: Path, *alpn: str) -> ssl.SSLContext:
    """A client that trusts our authority and nobody else."""
    context = ssl.create_default_context(cafile=str(ca / TRUST))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@contextlib.contextmanager
def inside(
    proxy: Warmproxy, web: Any, context: ssl.SSLContext
) -> Iterator[http.client.HTTPConnection]:
    """A connection to the origin by its name, through CONNECT and TLS."""
    connection = http.client.HTTPConnection("localhost", web.port, timeout=20)
    connection.sock = proxy.tls_tunnel(f"localhost:{web.port}", context)
    try:
        yield connection
    finally:
        connection.close()


def warm(web: Any, count: int = 2) -> None:
    """Wait until the origin, too, knows of so many finished handshakes."""
    eventually(lambda: sum(map(shaken, web.connections)) >= count)


def handshake_at(request: Request) -> float:
    found = secure(request.connection).handshake_at
    assert found is not None
    return found


def refusals(proxy: Warmproxy) -> list[dict[str, Any]]:
    return proxy.events("intercept_refused")


# -- who trusts the authority -----------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CLIENTS if name != "chromium"])
def test_a_client_gets_finished_tls(
    start: Any, origin: Any, run: Any, home: Any, undici: Any, pki: Pki, ca: Path, name: str
) -> None:
    """What it asks through CONNECT comes to the origin on a connection whose handshake was done
    before the client was started."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    warm(web)
    trusted = ca / TRUST
    job = Job((f"{by_name(web)}/path?q=1",), proxy.url, trusted, "", home("client"), undici)
    invocation = CLIENTS[name](job)
    ran = run(invocation.args, proxy.client_environ(**invocation.env))
    assert ran.code == 0, ran.output + proxy.log()
    assert web.greeting in ran.output
    [request] = web.requests
    assert (request.method, request.target) == ("GET", "/path?q=1")
    assert request.header("host") == f"localhost:{web.port}"
    assert "warmproxy" in (request.header("via") or "")
    assert handshake_at(request) < ran.started_at
    assert secure(request.connection).name == "localhost"
    assert proxy.pools()[by_name(web)]["hits"] == 1
    assert refusals(proxy) == []


def test_chromium_gets_finished_tls(
    start: Any, origin: Any, run: Any, home: Any, pki: Pki, ca: Path
) -> None:
    """The browser trusts the authority by its user's certificate store."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    warm(web)
    folder = home("chromium")
    store = f"sql:{folder}/.pki/nssdb"
    (folder / ".pki/nssdb").mkdir(parents=True)
    certutil = need("certutil")
    subprocess.run([certutil, "-d", store, "-N", "--empty-password"], check=True)
    add = [certutil, "-d", store, "-A", "-t", "C,,", "-n", "warmproxy", "-i"]
    subprocess.run([*add, str(ca / TRUST)], check=True)
    resolve = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
    page = [*chromium(folder, proxy.url, "--dump-dom"), resolve, f"{by_name(web)}/page"]
    ran = run(page, proxy.client_environ(HOME=str(folder)))
    assert web.greeting in ran.output, ran.output + proxy.log()
    request = next(request for request in web.requests if request.target == "/page")
    assert handshake_at(request) < ran.started_at
    assert refusals(proxy) == []


def test_an_address_is_intercepted_as_a_name_is(
    start: Any, origin: Any, pki: Pki, ca: Path
) -> None:
    """The certificate speaks for an address, and there is no SNI."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(f"https://127.0.0.1:{web.port}")
    with contextlib.closing(
        http.client.HTTPSConnection("127.0.0.1", proxy.port, context=trusting(ca), timeout=20)
    ) as connection:
        connection.set_tunnel("127.0.0.1", web.port)
        assert fetch_on(connection, "/").text == web.greeting


def test_one_connection_carries_many_requests(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    """Bodies both ways, HEAD, 100 Continue, pipelining: as without TLS."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    size = 3 << 20
    body = b"".join(pattern(1 << 20))
    with inside(proxy, web, trusting(ca)) as connection:
        assert fetch_on(connection, "/echo", "POST", body).body == body
        assert zlib.crc32(fetch_on(connection, f"/bytes/{size}").body) == pattern_crc(size)
        assert fetch_on(connection, "/", "HEAD").body == b""
        expecting = {"Expect": "100-continue"}
        assert fetch_on(connection, "/echo", "PUT", b"after 100", expecting).body == b"after 100"
        ask = f"GET /{{}} HTTP/1.1\r\nHost: localhost:{web.port}\r\n\r\n"
        connection.sock.sendall("".join(ask.format(i) for i in range(3)).encode())
        answers = b""
        while answers.count(web.greeting.encode()) < 3:
            more = connection.sock.recv(65536)
            assert more, answers
            answers += more
    assert [request.target for request in web.requests[-3:]] == ["/0", "/1", "/2"]
    assert {request.header("host") for request in web.requests} == {f"localhost:{web.port}"}
    assert proxy.pools()[by_name(web)]["hits"] == 7


def test_a_hello_that_comes_with_the_connect(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    """A client need not wait for its 200: its first bytes of TLS may be in the same packet."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting(ca).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    place = f"localhost:{web.port}"
    with proxy.raw() as sock:
        sock.sendall(
            f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode() + outgoing.read()
        )
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(65536)
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        incoming.write(rest)

        def until_done(act: Callable[[], Any]) -> Any:
            while True:
                try:
                    return act()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    more = sock.recv(65536)
                    assert more
                    incoming.write(more)

        until_done(tls.do_handshake)
        tls.write(f"GET /x HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        sock.sendall(outgoing.read())
        assert until_done(lambda: tls.read(65536)).startswith(b"HTTP/1.1 200")
    assert [request.target for request in web.requests] == ["/x"]


def test_an_upgrade_inside_becomes_a_tunnel(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    """101 through CONNECT and two TLS connections: bytes both ways, and each end's close."""

    def answer(connection: Connection, request: Request) -> None:
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"
        )
        while data := connection.receive():
            connection.send(data.upper())
        secure(connection).say_close_notify()
        connection.fin()

    web = origin(answer, tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    with inside(proxy, web, trusting(ca)) as connection:
        connection.request("GET", "/", headers={"Connection": "Upgrade", "Upgrade": "echo"})
        assert read_head(connection.sock).startswith(b"HTTP/1.1 101")
        connection.sock.sendall(b"hello")
        assert connection.sock.recv(100) == b"HELLO"
    eventually(lambda: not proxy.pools()[by_name(web)]["active"], says=proxy.log)


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, head
        head += byte
    return head


def test_what_is_asked_inside_is_for_that_origin(
    start: Any, origin: Any, pki: Pki, ca: Path
) -> None:
    """Another Host is misdirected (421) and goes nowhere; absolute-form of the origin is fine."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    place = f"localhost:{web.port}"
    with inside(proxy, web, trusting(ca)) as connection:
        assert fetch_on(connection, f"https://{place}/a").text == web.greeting
        assert fetch_on(connection, "/b", headers={"Host": place.upper()}).text == web.greeting
    cases = [
        ("/c", "evil.example", 421),
        (f"https://localhost:{web.port + 1}/c", place, 421),
        (f"http://{place}/c", place, 421),
    ]
    for target, host, status in cases:
        with inside(proxy, web, trusting(ca)) as connection:
            reply = fetch_on(connection, target, headers={"Host": host})
            assert reply.status == status, (target, reply.text)
            assert reply.headers["Proxy-Status"].startswith("warmproxy; error=http_request_error")
    with inside(proxy, web, trusting(ca)) as connection:
        connection.sock.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        assert read_head(connection.sock).startswith(b"HTTP/1.1 400")
    assert [(r.target, r.header("host")) for r in web.requests] == [("/a", place), ("/b", place)]


# -- who does not -----------------------------------------------------------------------------


def tunnelled(web: Any, request: Request, after: float) -> bool:
    """The client's own TLS came to the origin: on a connection that was open before, with a
    handshake that was not."""
    return request.connection.opened_at < after < handshake_at(request)


@pytest.mark.parametrize("name", ["curl", "requests", "node-http", "java-httpclient"])
def test_a_client_that_does_not_trust_us_is_tunnelled_from_then_on(
    start: Any, origin: Any, run: Any, home: Any, undici: Any, pki: Pki, name: str
) -> None:
    """The first time it fails as it would with any wrong certificate, with one line in the log; the
    second time it is none of our business. The origin hears of the second time only."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    job = Job((f"{by_name(web)}/",), proxy.url, pki.file, "", home("client"), undici)
    first = run((invocation := CLIENTS[name](job)).args, proxy.client_environ(**invocation.env))
    assert first.code != 0, first.output
    [line] = eventually(lambda: refusals(proxy), says=proxy.log)
    assert (line["client"], line["origin"]) == ("127.0.0.1", f"tcp://localhost:{web.port}")
    assert line["level"] == "warning"
    assert line["next"] == "a blind tunnel"
    assert web.requests == []
    second = run(invocation.args, proxy.client_environ(**invocation.env))
    assert second.code == 0, second.output + proxy.log()
    [request] = web.requests
    assert tunnelled(web, request, second.started_at)
    assert len(refusals(proxy)) == 1


def test_others_are_intercepted_all_the_same(
    start: Any, origin: Any, run: Any, pki: Pki, ca: Path
) -> None:
    """Another program from the same address, known by its User-Agent."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    warm(web)

    def curl(trusted: Path, agent: str) -> Any:
        args = ["-sS", "-x", proxy.url, "-A", agent, "--cacert", str(trusted), f"{by_name(web)}/"]
        return run([need("curl"), *args], proxy.client_environ())

    assert curl(pki.file, "one").code == 60  # no known CA
    ours = curl(ca / TRUST, "two")
    assert ours.code == 0, ours.output
    theirs = curl(pki.file, "one")
    assert theirs.code == 0, theirs.output
    one, two = web.requests
    assert handshake_at(one) < ours.started_at
    assert tunnelled(web, two, theirs.started_at)


def test_without_a_fallback_it_stays_refused(start: Any, origin: Any, pki: Pki) -> None:
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web), intercept_fallback="none")
    for _ in range(3):
        with pytest.raises(ssl.SSLCertVerificationError):
            proxy.tls_tunnel(f"localhost:{web.port}", ssl.create_default_context(cafile=pki.file))
    eventually(lambda: refusals(proxy))
    assert [line["next"] for line in refusals(proxy)] == ["the same again (intercept_fallback)"]
    assert web.requests == []


def test_a_reload_gives_everybody_another_chance(
    start: Any, origin: Any, pki: Pki, ca: Path
) -> None:
    """Who did not trust us may have learned to since."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    place = f"localhost:{web.port}"
    with pytest.raises(ssl.SSLCertVerificationError):
        proxy.tls_tunnel(place, ssl.create_default_context(cafile=pki.file))
    eventually(lambda: refusals(proxy))
    with pytest.raises(ssl.SSLCertVerificationError):  # this is the origin's own certificate
        proxy.tls_tunnel(place, trusting(ca))
    proxy.reload()
    with inside(proxy, web, trusting(ca)) as connection:
        assert fetch_on(connection, "/").text == web.greeting


@pytest.mark.parametrize("alpn", [("h2",), ()])
def test_http_2_alone_is_tunnelled_from_then_on(
    start: Any, origin: Any, pki: Pki, ca: Path, alpn: tuple[str, ...]
) -> None:
    """With ALPN or by prior knowledge: what begins as HTTP/2 gets no answer, and is left alone."""
    web = origin(tls=pki.server(alpn=("h2",)))
    proxy = start(by_name(web), upstream={"tls": 1, "warm": 1})
    sock = proxy.tls_tunnel(f"localhost:{web.port}", trusting(ca, *alpn))
    assert sock.selected_alpn_protocol() is None
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    assert sock.recv(100) == b""
    sock.close()
    [line] = eventually(lambda: refusals(proxy))
    assert "HTTP/2" in line["reason"]
    client = ssl.create_default_context(cafile=pki.file)
    client.set_alpn_protocols(["h2"])
    with proxy.tls_tunnel(f"localhost:{web.port}", client) as sock:
        assert sock.selected_alpn_protocol() == "h2"  # the origin's choice


def test_a_client_that_pins_is_tunnelled_from_then_on(
    start: Any, origin: Any, run: Any, tmp_path: Path, authority: Any, ca: Path
) -> None:
    """curl trusts us, and wants the origin's own key: it leaves after the handshake."""
    server = authority.server
    web = origin(tls=server)
    upstream = {"ca_file": str(authority.file)}
    proxy = start(by_name(web), upstream=upstream)
    both = tmp_path / "both.pem"
    both.write_bytes(authority.file.read_bytes() + (ca / TRUST).read_bytes())
    pin = ["--pinnedpubkey", f"sha256//{authority.spki}", "--cacert", str(both)]
    args = [need("curl"), "-sS", "-x", proxy.url, *pin, f"{by_name(web)}/"]
    assert run(args, proxy.client_environ()).code == 90  # the pinned key does not match
    [line] = eventually(lambda: refusals(proxy))
    assert "pins" in line["reason"]
    assert web.requests == []
    ran = run(args, proxy.client_environ())
    assert (ran.code, web.greeting in ran.output) == (0, True), ran.output


def test_silence_is_no_tls_either(start: Any, origin: Any, pki: Pki) -> None:
    """A client that waits for the origin to speak first: not for ever, and a tunnel the next
    time."""
    web = origin(tls=pki.server())
    proxy = start(by_name(web))
    with proxy.tunnel(f"localhost:{web.port}") as sock:
        assert sock.recv(1) == b""
    [line] = eventually(lambda: refusals(proxy))
    assert "did not begin TLS within 10 s" in line["reason"]


def test_what_is_no_tls_is_tunnelled_from_then_on(start: Any, origin: Any, pki: Pki) -> None:
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    with proxy.tunnel(f"localhost:{web.port}") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in sock.recv(1000)
    [line] = eventually(lambda: refusals(proxy))
    assert "no TLS" in line["reason"]


def test_another_name_is_no_business_of_ours(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    """CONNECT to the origin, SNI of another host: it gets no certificate."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    context = trusting(ca)
    context.check_hostname = False
    sock = proxy.tunnel(f"localhost:{web.port}")
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(sock, server_hostname="other.example")
    sock.close()
    [line] = eventually(lambda: refusals(proxy))
    assert "another name" in line["reason"]


def test_a_client_that_is_not_to_be_intercepted_gets_a_tunnel(
    start: Any, origin: Any, pki: Pki
) -> None:
    """intercept_clients names others: at once, and without a word."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web), intercept_clients=["10.0.0.0/8"])
    context = ssl.create_default_context(cafile=pki.file)
    with inside(proxy, web, context) as connection:
        assert fetch_on(connection, "/").text == web.greeting
        assert proxy.count("warmproxy_tunnels") == 1
    assert refusals(proxy) == []


def test_only_that_origin_is_intercepted(start: Any, origin: Any, pki: Pki) -> None:
    """The same host at another port is another origin."""
    web, other = (origin(tls=pki.server(alpn=("http/1.1",))) for _ in range(2))
    proxy = start(by_name(web))
    with inside(proxy, other, ssl.create_default_context(cafile=pki.file)) as connection:
        assert fetch_on(connection, "/").text == other.greeting


# -- upstreams that are not who they say --------------------------------------------------------


@pytest.mark.parametrize("kind", ["expired", "self-signed", "another name", "another authority"])
def test_a_wrong_certificate_never_looks_like_the_origin(
    start: Any, origin: Any, tmp_path: Path, pki: Pki, ca: Path, kind: str
) -> None:
    """What the client gets is a 502 of ours that says why, and the log has a line; the origin gets
    no request."""
    certificate: Any = {
        "expired": pki.expired,
        "self-signed": pki.self_signed,
        "another name": lambda: pki.issue("other.example"),
        "another authority": lambda: Pki(tmp_path).issue("localhost"),
    }[kind]()
    web = origin(tls=pki.server(certificate))
    proxy = start(by_name(web), ready_timeout=0.2)
    with inside(proxy, web, trusting(ca)) as connection:
        reply = fetch_on(connection, "/secret", "POST", b"body")
        assert reply.status == 502
        assert "error=tls_certificate_error" in reply.headers["Proxy-Status"]
    assert web.requests == []
    failed = proxy.events("dial_failed")
    assert any(line["origin"] == by_name(web) and line["result"] == "tls" for line in failed)


# -- reload, rotation, leaving ------------------------------------------------------------------


def test_rotation_drops_no_connection(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    """A connection from before goes on; who learned the successor in time, or has the bundle of
    both, notices nothing; and the new certificate is by the new authority."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    before = trusting(ca)
    with inside(proxy, web, before) as connection:
        assert fetch_on(connection, "/1").text == web.greeting
        prepare(ca, HOSTS, now=time.time(), days=30)
        learned = trusting(ca)
        rotate(ca, HOSTS, now=time.time(), days=30)
        proxy.reload()
        port = connection.sock.getsockname()[1]
        assert fetch_on(connection, "/2").text == web.greeting
        assert connection.sock.getsockname()[1] == port
        for context in (learned, trusting(ca)):
            with inside(proxy, web, context) as other:
                assert fetch_on(other, "/3").text == web.greeting
        with pytest.raises(ssl.SSLCertVerificationError):
            proxy.tls_tunnel(f"localhost:{web.port}", before)


def test_a_bad_authority_keeps_what_was(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    """A reload with a key that others can read is refused, and says so; all goes on as before."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    os.chmod(ca / KEY, 0o644)
    refused = proxy.reload()
    assert refused["event"] == "reload_failed"
    assert "chmod" in json.dumps(refused)
    with inside(proxy, web, trusting(ca)) as connection:
        assert fetch_on(connection, "/").text == web.greeting


def test_who_is_inside_leaves_when_it_is_switched_off(
    start: Any, origin: Any, pki: Pki, ca: Path
) -> None:
    """After a reload without `intercept` CONNECT is a tunnel. Who is inside gets the answer that is
    under way, and no other: what holds for the upstream from now on, its certificate unverified
    perhaps, is not what it was promised."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    with inside(proxy, web, trusting(ca)) as idle, inside(proxy, web, trusting(ca)) as busy:
        assert fetch_on(idle, "/1").text == web.greeting
        busy.request("GET", "/hold")
        web.wait_requests(2)
        other = {"intercept": False, "verify": False, "tls": 1}
        proxy.reload(config(pki, ca, by_name(web), upstream=other))
        assert idle.sock.recv(1) == b""
        web.gate.set()
        with busy.getresponse() as response:
            assert response.getheader("connection") == "close"
            assert response.read().decode() == web.greeting
        with inside(proxy, web, ssl.create_default_context(cafile=pki.file)) as tunnel:
            assert fetch_on(tunnel, "/3").text == web.greeting


def test_several_processes_intercept_alike(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    """Each has the same authority, whoever of them gets the connection."""
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web), processes=2)
    for _ in range(8):
        with inside(proxy, web, trusting(ca)) as connection:
            assert fetch_on(connection, "/").text == web.greeting
    assert proxy.pools()[by_name(web)]["intercepted"]
    assert proxy.count("warmproxy_authority_not_after_timestamp_seconds") > time.time()


def test_sigterm_ends_who_is_idle_inside_and_lets_an_answer_finish(
    start: Any, origin: Any, pki: Pki, ca: Path
) -> None:
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web))
    with inside(proxy, web, trusting(ca)) as idle, inside(proxy, web, trusting(ca)) as busy:
        assert fetch_on(idle, "/").text == web.greeting
        busy.request("GET", "/hold")
        web.wait_requests(2)
        os.kill(proxy.pid, signal.SIGTERM)
        assert idle.sock.recv(1) == b""
        web.gate.set()
        with busy.getresponse() as response:
            assert response.read().decode() == web.greeting
            assert response.getheader("connection") == "close"
    assert proxy.exit_code(10) == 0
    assert refusals(proxy) == []


# -- what is said -------------------------------------------------------------------------------


def test_what_is_said_of_it(start: Any, origin: Any, pki: Pki, warmproxy_command: Any) -> None:
    """The banner, the log, /pools, the page and `warmproxy status` name what is intercepted."""
    web, other = (origin(tls=pki.server(alpn=("http/1.1",))) for _ in range(2))
    upstreams = {"url": by_name(web), "warm": 1}
    proxy = start(by_name(web), "--log-format", "text", upstream=upstreams)
    said = eventually(lambda: [line for line in proxy.log().splitlines() if "trust-help" in line])
    assert [by_name(web) in line for line in said] == [True]
    marks = {name: pool["intercepted"] for name, pool in proxy.pools().items()}
    assert marks == {by_name(web): True, f"tcp://localhost:{web.port}": True}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.admin_port)) as admin:
        page = fetch_on(admin, "/", headers={"Accept": "text/html"}).text
    assert "intercepted" in page
    shown = warmproxy_command("status", "--admin", f"127.0.0.1:{proxy.admin_port}")
    assert f"{by_name(web)} (intercepted)" in shown.stdout
    assert other.url not in shown.stdout


def test_nothing_of_bodies_or_fields_is_logged(start: Any, origin: Any, pki: Pki, ca: Path) -> None:
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    proxy = start(by_name(web), "--access-log", "true")
    with inside(proxy, web, trusting(ca)) as connection:
        headers = {"Authorization": "Bearer s3cret-field", "User-Agent": "s3cret-agent"}
        target = "/s3cret-path?token=s3cret-query"
        assert fetch_on(connection, target, "POST", b"s3cret-body", headers).status == 200
    line = eventually(lambda: [e for e in proxy.events("answered") if e["method"] == "POST"])[0]
    assert (line["origin"], line["status"]) == (by_name(web), 200)
    assert "s3cret" not in proxy.log()


def test_without_the_extra_it_says_what_to_install(
    home: Any, run: Any, pki: Pki, ca: Path, tmp_path: Path
) -> None:
    """`check` and `run` alike, with exit status 2."""
    folder = home("without")
    (folder / "cryptography").mkdir()
    (folder / "cryptography/__init__.py").write_text("raise ImportError('not here')\n")
    file = tmp_path / "warmproxy.toml"
    file.write_text(
        f'ca_dir = "{ca}"\n[[upstream]]\nurl = "https://localhost:1"\nintercept = true\n'
    )
    environ = warmproxy_environ()
    environ["PYTHONPATH"] = f"{folder}:{environ['PYTHONPATH']}"
    for verb in ("check", "run"):
        ran = run(command(verb, "--config", str(file)), environ)
        assert ran.code == 2, ran.output
        assert f"{file}:4: 'intercept'" in ran.output
        assert "pip install 'warmproxy[intercept]'" in ran.output
        assert "Traceback" not in ran.output


@pytest.mark.parametrize("hosts", [None, ["other.example"]])
def test_an_authority_that_is_not_there_or_not_for_it(
    home: Any, run: Any, tmp_path: Path, hosts: list[str] | None
) -> None:
    folder = home("authority") / "ca"
    if hosts is not None:
        create(folder, hosts, now=time.time(), days=1)
    file = tmp_path / "warmproxy.toml"
    file.write_text(
        f'ca_dir = "{folder}"\n[[upstream]]\nurl = "https://localhost:1"\nintercept = true\n'
    )
    remedy = "warmproxy ca rotate" if hosts else "warmproxy ca init"
    for verb in ("check", "run"):
        ran = run(command(verb, "--config", str(file)), warmproxy_environ())
        assert ran.code == 2, ran.output
        assert f"{file}:4: 'intercept'" in ran.output
        assert remedy in ran.output
