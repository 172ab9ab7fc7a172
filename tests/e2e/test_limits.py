"""What happens at the edges: no connection to be had, no permission, no more time."""

import base64
import contextlib
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.daemon import fetch_on, origin_name, read_reply, wait_warm
from tests.e2e.harness import always, eventually, free_port


def own_answer(reply, status: int, error: str) -> None:
    """It is the daemon's own: Proxy-Status with that error, and a short text for people."""
    assert reply.status == status, (reply, reply.body)
    field = reply.headers["Proxy-Status"]
    assert field is not None, reply.headers.as_string()
    assert field.startswith("warmproxy")
    assert re.search(rf"\berror={error}\b", field), field
    assert reply.headers["Content-Type"].startswith("text/plain")
    assert 10 < len(reply.text) < 1000
    assert "Traceback" not in reply.text


# -- waiting ----------------------------------------------------------------------------------


def test_first_come_first_served(warmproxy, origin) -> None:
    """Requests that wait for the only connection get it in the order in which they came."""
    web = origin()
    upstream = {"url": web.url, "warm": 1, "max_connections": 1}
    proxy = warmproxy(config={"upstream": [upstream]})
    with ThreadPoolExecutor(6) as threads:
        results = [threads.submit(proxy.fetch, f"{web.url}/hold?0")]
        web.wait_requests(1)
        for n in range(1, 6):
            results.append(threads.submit(proxy.fetch, f"{web.url}/{n}"))
            eventually(lambda n=n: proxy.pool(web.url)["waiting"] == n, says=proxy.pools)
        web.gate.set()
        assert [r.result().status for r in results] == [200] * 6
    assert [r.target for r in web.requests] == ["/hold?0", *(f"/{n}" for n in range(1, 6))]
    assert len(web.connections) == 1
    assert proxy.count("warmproxy_acquires_total", outcome="waited") == 5


def test_503_when_the_wait_is_over(warmproxy, origin) -> None:
    """A request that gets no connection within acquire_timeout has its 503, and not sooner."""
    web = origin()
    upstream = {"url": web.url, "warm": 1, "max_connections": 1, "acquire_timeout": 0.4}
    proxy = warmproxy(config={"upstream": [upstream]})
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(proxy.fetch, f"{web.url}/hold")
        web.wait_requests(1)
        began = time.monotonic()
        reply = proxy.fetch(f"{web.url}/refused", "POST", b"x")
        took = time.monotonic() - began
        web.gate.set()
        assert held.result().status == 200
    own_answer(reply, 503, "connection_limit_reached")
    assert 0.4 <= took < 3
    assert [r.target for r in web.requests] == ["/hold"]
    assert proxy.count("warmproxy_acquires_total", outcome="failed") == 1


def test_503_at_once_when_too_many_wait(warmproxy, origin) -> None:
    """One request more than max_waiting is refused at once; those that wait are served."""
    web = origin()
    upstream = {"url": web.url, "warm": 1, "max_connections": 1, "max_waiting": 1}
    proxy = warmproxy(config={"upstream": [upstream]})
    with ThreadPoolExecutor(2) as threads:
        served = [threads.submit(proxy.fetch, f"{web.url}/hold")]
        web.wait_requests(1)
        served.append(threads.submit(proxy.fetch, f"{web.url}/waits"))
        eventually(lambda: proxy.pool(web.url)["waiting"] == 1)
        reply = proxy.fetch(f"{web.url}/refused")
        assert not served[0].done()
        web.gate.set()
        assert [r.result().status for r in served] == [200, 200]
    own_answer(reply, 503, "connection_limit_reached")
    assert [r.target for r in web.requests] == ["/hold", "/waits"]


def test_a_client_that_goes_away_gives_up_its_place(warmproxy, origin) -> None:
    """A waiting client that hangs up is forgotten: its request never reaches the origin."""
    web = origin()
    upstream = {"url": web.url, "warm": 1, "max_connections": 1}
    proxy = warmproxy(config={"upstream": [upstream]})
    with ThreadPoolExecutor(2) as threads:
        held = threads.submit(proxy.fetch, f"{web.url}/hold")
        web.wait_requests(1)
        impatient = proxy.connect()
        impatient.request("GET", f"{web.url}/forgotten")
        eventually(lambda: proxy.pool(web.url)["waiting"] == 1)
        patient = threads.submit(proxy.fetch, f"{web.url}/served")
        eventually(lambda: proxy.pool(web.url)["waiting"] == 2)
        impatient.close()
        eventually(lambda: proxy.pool(web.url)["waiting"] == 1, says=proxy.pools)
        web.gate.set()
        assert held.result().status == patient.result().status == 200
    assert [r.target for r in web.requests] == ["/hold", "/served"]


@pytest.mark.parametrize("target", ["/hold", "/bytes/1073741824"])
def test_a_client_that_goes_away_in_the_middle_costs_one_connection(
    warmproxy, origin, target
) -> None:
    """A client that resets while it waits for its answer, or in the middle of it, takes that
    connection with it at once and nothing else."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    web.wait_open(2)
    with proxy.raw() as impatient:
        impatient.sendall(f"GET {web.url}{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        used = web.wait_requests(1)[0].connection
        if target != "/hold":
            assert impatient.recv(4096).startswith(b"HTTP/1.1 200")
        impatient.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    eventually(lambda: proxy.pool(web.url)["active"] == 0, says=proxy.pools)
    web.gate.set()
    eventually(lambda: used.ended, says=lambda: used)
    wait_warm(proxy, web.url, 2)
    assert proxy.fetch(f"{web.url}/next").status == 200
    assert web.requests[-1].connection is not used


# -- dials that fail --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "CONNECT"])
def test_502_when_the_dial_is_refused(warmproxy, origin, method) -> None:
    """Nobody listens: a 502 that says so, for requests and tunnels."""
    port = free_port()
    proxy = warmproxy()
    authority = f"127.0.0.1:{port}"
    target = authority if method == "CONNECT" else f"http://{authority}/"
    own_answer(proxy.fetch(target, method), 502, "connection_refused")
    scheme = "https" if method == "CONNECT" else "http"
    assert proxy.pool(f"{scheme}://{authority}")["last_error"]


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_504_when_the_dial_takes_too_long(warmproxy, blackhole, method) -> None:
    """Nobody answers the dial (a full backlog): a 504 after dial_timeout, not before."""
    proxy = warmproxy(config={"defaults": {"dial_timeout": 0.5}})
    target = f"127.0.0.1:{blackhole.port}" if method == "CONNECT" else f"{blackhole.url}/"
    began = time.monotonic()
    own_answer(proxy.fetch(target, method), 504, "connection_timeout")
    assert 0.5 <= time.monotonic() - began < 4


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_502_when_the_name_does_not_exist(warmproxy, method) -> None:
    """A name that does not resolve: a 502 with dns_error."""
    proxy = warmproxy()
    target = "nosuch.invalid:80" if method == "CONNECT" else "http://nosuch.invalid/"
    own_answer(proxy.fetch(target, method), 502, "dns_error")
    assert proxy.count("warmproxy_dials_total", result="dns") >= 1


def test_504_when_the_upstream_stays_silent(warmproxy, origin) -> None:
    """An upstream that takes a request and says nothing: a 504 after response_timeout, and the
    connection is not used again."""
    web = origin()
    upstream = {"url": web.url, "warm": 1, "response_timeout": 0.4}
    proxy = warmproxy(config={"upstream": [upstream]})
    own_answer(proxy.fetch(f"{web.url}/hold"), 504, "http_response_timeout")
    silent = web.requests[0].connection
    web.gate.set()
    eventually(lambda: silent.ended, says=lambda: silent)
    assert proxy.fetch(f"{web.url}/next").status == 200
    assert web.requests[1].connection is not silent


def test_502_and_no_second_try_when_a_post_is_lost(warmproxy, origin) -> None:
    """An upstream that closes after it has read a POST, without an answer: a 502, and the POST is
    not sent again."""
    web = origin(lambda connection, request: connection.read_body(request) or connection.cut())
    proxy = warmproxy("--warm", f"{web.url}=2")
    own_answer(proxy.fetch(f"{web.url}/", "POST", b"once"), 502, "connection_terminated")
    assert [bytes(r.body) for r in web.requests] == [b"once"]
    assert proxy.count("warmproxy_retries_total") == 0


def test_a_get_on_a_used_connection_that_dies_is_sent_again(warmproxy, origin) -> None:
    """A GET whose used connection dies without an answer goes out once more, on a fresh one; the
    client sees only the answer."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2")
    usual = web.answer

    def die_when_used(connection, request) -> None:
        if request.nth == 2:
            connection.cut()
        else:
            usual(connection, request)

    web.answer = die_when_used
    for n in (1, 2):
        assert proxy.fetch(f"{web.url}/{n}").status == 200
    assert [r.target for r in web.requests] == ["/1", "/2", "/2"]
    assert [r.nth for r in web.requests] == [1, 2, 1]
    assert proxy.count("warmproxy_retries_total", reason="stale") == 1


# -- its end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_exchange_is_finished_before_the_exit(warmproxy, origin, how) -> None:
    """SIGTERM and Ctrl-C: no new connections, /readyz says 503 at once, the exchange in flight
    gets its answer, and the exit status is 0."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=2", "--grace", "20")
    client = proxy.connect()
    try:
        client.request("POST", f"{web.url}/hold", b"x")
        web.wait_requests(1)
        proxy.signal(how)
        eventually(lambda: proxy.admin_status("/readyz") == 503, 3, proxy.log)
        assert proxy.admin_status("/healthz") == 200
        eventually(lambda: _refused(proxy.port), 3)
        assert proxy.running()
        web.gate.set()
        reply = read_reply(client)
    finally:
        client.close()
    assert (reply.status, reply.text) == (200, web.greeting)
    assert (reply.headers["Connection"] or "").lower() == "close"
    assert proxy.exit_code(5) == 0
    assert "Traceback" not in proxy.log()
    web.wait_open(0)


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_grace_time_has_an_end(warmproxy, origin) -> None:
    """An exchange that does not finish within the grace time is cut off, with exit status 0."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1", "--grace", "0.5")
    with proxy.raw() as sock:
        sock.sendall(f"GET {web.url}/hold HTTP/1.1\r\nHost: {web.authority}\r\n\r\n".encode())
        web.wait_requests(1)
        began = time.monotonic()
        assert proxy.terminate() == 0
        assert 0.5 <= time.monotonic() - began < 4
    assert "Traceback" not in proxy.log()


def test_an_idle_daemon_ends_at_once(warmproxy, origin) -> None:
    """Without an exchange in flight the end does not wait for the grace time, though clients are
    connected and pools are warm."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=3", "--grace", "30")
    client = proxy.connect()
    try:
        assert fetch_on(client, f"{web.url}/").status == 200
        began = time.monotonic()
        assert proxy.terminate() == 0
        assert time.monotonic() - began < 3
    finally:
        client.close()
    web.wait_open(0)


def test_a_tunnel_lives_until_the_grace_time_ends(warmproxy, origin) -> None:
    """A tunnel still carries bytes after SIGTERM, and its end is the daemon's end."""
    far = origin(raw=_echo)
    proxy = warmproxy("--warm", f"https://{far.authority}=1", "--grace", "20")
    with proxy.tunnel(far.authority) as tunnel:
        proxy.signal(signal.SIGTERM)
        eventually(lambda: proxy.admin_status("/readyz") == 503, 3)
        tunnel.sendall(b"still")
        assert tunnel.recv(100) == b"still"
        tunnel.shutdown(socket.SHUT_WR)
        assert tunnel.recv(100) == b""
    assert proxy.exit_code(5) == 0


def _echo(connection) -> None:
    while data := connection.receive():
        connection.send(data)


# -- its start --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["listen", "admin"])
def test_a_port_in_use_is_one_line_and_exit_1(warmproxy_command, which) -> None:
    """A port that is taken: one line that names it, exit status 1, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"listen": free_port(), "admin": free_port(), which: taken.getsockname()[1]}
        ran = warmproxy_command(
            *["run", "--listen", f"127.0.0.1:{ports['listen']}"],
            *["--admin", f"127.0.0.1:{ports['admin']}"],
        )
    assert ran.returncode == 1, ran
    lines = ran.stderr.strip().splitlines()
    assert len(lines) == 1, ran.stderr
    assert str(ports[which]) in lines[0]
    assert "in use" in lines[0]
    assert "Traceback" not in ran.stdout


def test_an_open_proxy_is_refused(warmproxy_command) -> None:
    """A listen address beyond loopback without allow_clients or credentials: exit status 2 and a
    line that says what to set."""
    ran = warmproxy_command(
        *["run", "--listen", f"0.0.0.0:{free_port()}", "--admin", f"127.0.0.1:{free_port()}"]
    )
    assert ran.returncode == 2, ran
    assert "allow_clients" in ran.stderr
    assert "credentials_file" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_allow_clients_lets_in_whom_it_names(warmproxy, origin) -> None:
    """With allow_clients a listen address beyond loopback is accepted; clients of those networks
    are served and others get a 403."""
    web = origin()
    config = {"allow_clients": ["127.0.0.0/8"]}
    assert warmproxy(config=config, listen="0.0.0.0").fetch(f"{web.url}/in").status == 200
    config = {"allow_clients": ["10.11.12.0/24"]}
    reply = warmproxy(config=config, listen="0.0.0.0").fetch(f"{web.url}/out")
    own_answer(reply, 403, "http_request_denied")
    assert [r.target for r in web.requests] == ["/in"]


def test_credentials(warmproxy, origin, tmp_path) -> None:
    """With a credentials_file: 407 with a challenge for none and for wrong ones, 200 for the
    right ones, for requests and tunnels, and the origin never sees them."""
    file = tmp_path / "credentials"
    file.write_text("someone:open sesame\n")
    file.chmod(0o600)
    web = origin()
    proxy = warmproxy(config={"credentials_file": str(file)})

    def fields(user: str) -> dict[str, str]:
        return {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()}

    for method, target in (("GET", f"{web.url}/"), ("CONNECT", web.authority)):
        for headers in ({}, fields("someone:else"), fields("nobody:open sesame")):
            reply = proxy.fetch(target, method, headers=headers)
            own_answer(reply, 407, "http_request_denied")
            assert reply.headers["Proxy-Authenticate"].startswith("Basic ")
    assert web.requests == []
    right = fields("someone:open sesame")
    assert proxy.fetch(f"{web.url}/in", headers=right).status == 200
    assert web.requests[0].values("proxy-authorization") == []
    with proxy.raw() as sock:
        value = right["Proxy-Authorization"]
        head = f"CONNECT {web.authority} HTTP/1.1\r\nHost: {web.authority}\r\n"
        sock.sendall(f"{head}Proxy-Authorization: {value}\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1", "POST /x?y HTTP/1.1"])
def test_an_origin_form_request_gets_help(warmproxy, request_line) -> None:
    """Whoever takes the proxy for a web server gets a 400 that says what it is and how to use
    it."""
    proxy = warmproxy()
    with proxy.raw() as sock:
        sock.sendall(f"{request_line}\r\nHost: 127.0.0.1:{proxy.port}\r\n\r\n".encode())
        answer = b""
        with contextlib.suppress(TimeoutError):
            sock.settimeout(2)
            while b"http_proxy" not in answer.lower() and (data := sock.recv(4096)):
                answer += data
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400 ")
    assert "warmproxy" in body
    assert "http_proxy" in body.lower()


# -- origins that nobody configured -----------------------------------------------------------


def test_an_origin_asked_three_times_becomes_warm(warmproxy, origin) -> None:
    """An origin that is not configured: its connection is kept and used again; the third request
    within learn_window makes it warm without any further request."""
    web = origin()
    proxy = warmproxy()
    for n in (1, 2):
        assert proxy.fetch(f"{web.url}/{n}").status == 200
        assert proxy.pool(web.url)["target_idle"] == 0
    assert len(web.connections) == 1
    assert proxy.fetch(f"{web.url}/3").status == 200
    eventually(lambda: proxy.pool(web.url)["target_idle"] == 1, says=proxy.pools)
    wait_warm(proxy, web.url, 1)
    eventually(web.idle_connections)
    assert len(web.requests) == 3
    outcomes = {
        outcome: proxy.count("warmproxy_acquires_total", outcome=outcome, origin="other")
        for outcome in ("dialled", "used")
    }
    assert outcomes == {"dialled": 1, "used": 2}


def test_a_learned_origin_that_is_quiet_is_let_go(warmproxy, origin) -> None:
    """After learn_quiet without a request a learned origin is no longer held warm."""
    web = origin()
    proxy = warmproxy(
        config={"learn_quiet": 0.6, "learn_requests": 2, "defaults": {"idle_timeout": 0.3}}
    )
    for n in (1, 2):
        assert proxy.fetch(f"{web.url}/{n}").status == 200
    eventually(lambda: len(web.open_connections()) >= 1, says=proxy.pools)
    eventually(
        lambda: proxy.pools().get(origin_name(web.url), {"target_idle": 0})["target_idle"] == 0
    )
    web.wait_open(0)


def test_the_least_recently_used_connections_go_first(warmproxy, origin) -> None:
    """At the global max_connections a new origin gets room from the one that was used least
    recently; configured connections stay."""
    held, first, second, third = origin(), origin(), origin(), origin()
    upstream = {"url": held.url, "warm": 2}
    proxy = warmproxy(config={"max_connections": 4, "upstream": [upstream]})
    held.wait_open(2)
    assert proxy.fetch(f"{first.url}/").status == 200
    assert proxy.fetch(f"{second.url}/").status == 200
    assert [len(o.open_connections()) for o in (held, first, second)] == [2, 1, 1]
    assert proxy.fetch(f"{third.url}/").status == 200
    first.wait_open(0)
    assert [len(o.open_connections()) for o in (held, second, third)] == [2, 1, 1]
    always(lambda: len(held.open_connections()) == 2, 0.3)
    assert proxy.count("warmproxy_closed_total", reason="surplus") == 1


def test_the_least_recently_used_origin_is_forgotten_first(warmproxy, origin) -> None:
    """At max_origins the origin that was used least recently is forgotten and its connections are
    closed."""
    first, second, third = origin(), origin(), origin()
    proxy = warmproxy(config={"max_origins": 2})
    for web in (first, second, first, third):
        assert proxy.fetch(f"{web.url}/").status == 200
    second.wait_open(0)
    assert set(proxy.pools()) == {origin_name(first.url), origin_name(third.url)}
    assert len(first.open_connections()) == 1
    assert proxy.fetch(f"{second.url}/again").status == 200


def test_an_origin_that_is_being_asked_is_never_forgotten(warmproxy, origin) -> None:
    """At max_origins with all others in use, the newest origin keeps its pool while it is asked:
    its connection can end idle, and it can be asked again, without a trace of trouble."""
    busy, other = origin(), origin()
    proxy = warmproxy(config={"max_origins": 1})
    with proxy.raw() as held:
        held.sendall(f"GET {busy.url}/hold HTTP/1.1\r\nHost: {busy.authority}\r\n\r\n".encode())
        busy.wait_open(1)
        assert proxy.fetch(f"{other.url}/").status == 200
        for connection in other.open_connections():
            connection.fin()
        other.wait_open(0)
        assert proxy.fetch(f"{other.url}/again").status == 200
        busy.gate.set()
        assert held.recv(100).startswith(b"HTTP/1.1 200 ")
    assert proxy.count("warmproxy_requests_total", code_class="2xx") == 3
    assert "Traceback" not in proxy.log()
    assert "AssertionError" not in proxy.log()
