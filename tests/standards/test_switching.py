"""Rows 49 to 56 of docs/standards.md: interim answers, upgrades and tunnels."""

import base64
import hashlib
import socket
import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_websocket
from websockets.sync.server import Server, ServerConnection, serve

from tests.e2e.harness import always, eventually, free_port
from tests.standards.wire import (
    OK,
    Client,
    Reader,
    broken,
    error_of,
    paused,
    refused,
    request,
    status_of,
    then_close,
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EXPECT = "Expect: 100-continue"
UPGRADE = ("Connection: Upgrade", "Upgrade: own/1")
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: own/1\r\n\r\n"
BYTES = bytes(range(256))


# -- 1xx --------------------------------------------------------------------------------------


def test_row_49_interim_responses_are_passed_on(client, origin) -> None:
    """Row 49: every 1xx reaches the client, at once and in order, asked for or not."""

    def answer(received) -> None:
        for n in range(3):
            received.send(b"HTTP/1.1 103 Early Hints\r\nLink: </%d>\r\n\r\n" % n)
        received.send(b"HTTP/1.1 102 Processing\r\n\r\n" + CONTINUE)
        web.hold()
        received.send(OK)

    web = origin(answer)
    client.send(request("GET", f"{web.url}/"))
    heads = [client.head() for _ in range(5)]
    assert [status_of(h) for h in heads] == [103, 103, 103, 102, 100]
    assert [h.values("link") for h in heads[:3]] == [[b"</0>"], [b"</1>"], [b"</2>"]]
    assert all(len(h.values("via")) == 1 for h in heads)
    web.gate.set()
    assert client.answer().body == b"ok"


def test_row_49_no_interim_response_to_an_http_10_client(client, origin) -> None:
    """Row 49: HTTP/1.0 knows no 1xx: such a client gets the final response alone."""
    web = origin(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + CONTINUE + OK)
    client.send(request("GET", f"{web.url}/", version="1.0"))
    assert client.rest().startswith(b"HTTP/1.1 200 ")


# -- Expect -----------------------------------------------------------------------------------


def test_row_50_a_client_that_waits_for_100_gets_it(client, origin) -> None:
    """Row 50: the head goes on without the body, and the origin's 100 comes back: no deadlock."""

    def answer(received) -> None:
        received.send(CONTINUE)
        received.read()
        received.send(OK)

    web = origin(answer)
    for n in range(2):
        client.send(request("POST", f"{web.url}/{n}", EXPECT, "Content-Length: 4"))
        assert status_of(client.head()) == 100
        assert web.received[-1].values("expect") == [b"100-continue"]
        client.send(b"body")
        assert client.answer().body == b"ok"
        assert web.received[-1].body == b"body"


@pytest.mark.parametrize("status", [b"417 Expectation Failed", b"401 Who", b"200 OK"])
def test_row_50_a_final_answer_instead_of_100(client, origin, status) -> None:
    """Row 50: an early final answer reaches the client, who never sent the body."""
    web = origin(lambda received: received.send(OK.replace(b"200 OK", status)) or received.rest())
    client.send(request("POST", f"{web.url}/", EXPECT, "Content-Length: 4"))
    answer = client.answer()
    assert (answer.line, answer.body) == (b"HTTP/1.1 " + status, b"ok")
    assert client.rest() == b""
    eventually(lambda: web.received[0].connection.ended)
    assert not web.received[0].complete


def test_row_50_our_own_final_answer_instead_of_100(client) -> None:
    """Row 50: what cannot be forwarded is told at once, and not after a body."""
    nobody = f"http://127.0.0.1:{free_port()}/"
    client.send(request("POST", nobody, EXPECT, "Content-Length: 4"))
    assert status_of(client.answer()) == 502
    assert client.rest() == b""


def test_row_50_a_client_that_does_not_wait_is_served_too(client, origin) -> None:
    """Row 50: a body that comes with its head goes on; the 100 that follows is passed on."""
    web = origin(CONTINUE + OK)
    client.send(request("POST", f"{web.url}/", EXPECT, body=b"body"))
    assert [status_of(client.head()), client.answer().body] == [100, b"ok"]
    assert web.received[0].body == b"body"


def test_row_50_the_expectation_of_an_http_10_client_is_ignored(client, web) -> None:
    """Row 50: in HTTP/1.0 it means nothing: it goes no further and no 100 comes back."""
    client.send(request("POST", f"{web.url}/", EXPECT, version="1.0", body=b"body"))
    assert status_of(client.answer()) == 200
    (received,) = web.received
    assert received.body == b"body"
    assert received.values("expect") == []


# -- Upgrade ----------------------------------------------------------------------------------


def test_row_51_an_upgrade_is_asked_for_in_our_name(client, origin) -> None:
    """Row 51: Upgrade under Connection: upgrade is sent anew, and the answer told the client."""
    web = origin(lambda received: received.send(SWITCHING + b"early") or received.rest())
    lines = ["Connection: x-hop, UPGRADE", "X-Hop: 1", "Upgrade: own/1, h2c", "HTTP2-Settings: x"]
    client.send(request("GET", f"{web.url}/", *lines))
    switched = client.head()
    assert status_of(switched) == 101
    assert switched.values("upgrade") == [b"own/1"]
    assert switched.values("connection") == [b"upgrade"]
    assert client.reader.exactly(5) == b"early"
    (received,) = web.received
    assert received.values("upgrade") == [b"own/1"]
    assert received.values("connection") == [b"upgrade"]
    assert b"x-hop" not in received.names()


@pytest.mark.parametrize(
    ("lines", "version"),
    [(["Upgrade: own/1"], "1.1"), (["Connection: upgrade"], "1.1"), (UPGRADE, "1.0")],
)
def test_row_51_no_upgrade_that_was_not_asked_for(client, web, lines, version) -> None:
    """Row 51: none without Connection: upgrade, without a name, or from HTTP/1.0."""
    client.ask(request("GET", f"{web.url}/", *lines, version=version))
    assert not web.received[0].names() & {b"upgrade", b"connection"}


def test_row_51_a_switch_that_nobody_asked_for_is_a_502(proxy, origin) -> None:
    """Row 51: an origin that switches by itself is broken."""
    broken(proxy, origin(SWITCHING))


def test_row_51_a_refused_upgrade_is_an_ordinary_answer(client, web) -> None:
    """Row 51: where the origin does not switch, its answer counts and all goes on."""
    for n in (1, 2):
        assert client.ask(request("GET", f"{web.url}/{n}", *UPGRADE)).body == b"ok"
    assert [r.nth for r in web.received] == [1, 2]


def test_row_51_a_demanded_upgrade_names_its_protocol(client, origin) -> None:
    """Row 51: the Upgrade of a 426 reaches the client, under a Connection of ours."""
    web = origin(
        b"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: own/2\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    answer = client.ask(request("GET", f"{web.url}/"))
    assert (answer.values("upgrade"), answer.members("connection")) == ([b"own/2"], [b"upgrade"])


def test_row_51_100_comes_before_101(client, origin) -> None:
    """Row 51: with an expectation too, the client sees 100, sends its body, then sees 101."""

    def answer(received) -> None:
        received.send(CONTINUE)
        received.read()
        received.send(SWITCHING + b"hi")
        received.rest()

    web = origin(answer)
    client.send(request("POST", f"{web.url}/", EXPECT, *UPGRADE, "Content-Length: 4"))
    assert status_of(client.head()) == 100
    always(client.silent, 0.1)
    client.send(b"body")
    assert status_of(client.head()) == 101
    assert client.reader.exactly(2) == b"hi"
    assert web.received[0].body == b"body"


# -- CONNECT ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        ":443",
        "user@127.0.0.1:443",
        "{authority}/",
        "http://{authority}",
        "{authority},{authority}",
    ],
)
def test_row_52_a_connect_without_a_host_and_port_is_a_400(proxy, web, target) -> None:
    """Row 52: an empty, missing or impossible port, or more than host:port, is refused."""
    refused(proxy, web, request("CONNECT", target.format(authority=web.authority)), 400)


def test_row_52_connect_ports_are_limited(strict, connect, web) -> None:
    """Row 52: a port that is not among connect_ports is a 403; plain requests may go there."""
    answer = connect(strict).ask(request("CONNECT", web.authority))
    assert status_of(answer) == 403
    assert error_of(answer) == "http_request_denied"
    assert web.connections == []
    assert connect(strict).ask(request("GET", f"{web.url}/")).body == b"ok"


def test_row_53_the_answer_to_connect_says_nothing_of_a_body(client, web) -> None:
    """Row 53: no Transfer-Encoding and no Content-Length; what follows is the tunnel's."""
    client.send(request("CONNECT", web.authority))
    head = client.head()
    assert status_of(head) == 200
    assert not head.names() & {b"transfer-encoding", b"content-length"}
    client.send(b"GET /through HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer().body == b"ok"
    assert web.received[0].head == b"GET /through HTTP/1.1\r\nHost: h\r\n\r\n"


def test_row_53_a_connect_with_a_body_is_refused(proxy, web) -> None:
    """Row 53: nor may the request have one."""
    refused(proxy, web, request("CONNECT", web.authority, body=b"abc"), 400)
    lines = ["Transfer-Encoding: chunked"]
    refused(proxy, web, request("CONNECT", web.authority, *lines) + b"0\r\n\r\n", 400)


class Peer:
    """The far end of a tunnel: a bare socket in the test's hand."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.authority = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sock: socket.socket | None = None

    def accept(self) -> socket.socket:
        self.sock, _ = self._listener.accept()
        self.sock.settimeout(10)
        return self.sock

    def close(self) -> None:
        self._listener.close()
        if self.sock is not None:
            self.sock.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def test_row_54_the_client_ends_first(client, peer) -> None:
    """Row 54: the client's end is passed on behind its data, what is outstanding still comes
    back, and then both sides are closed."""
    client.send(request("CONNECT", peer.authority))
    far = peer.accept()
    client.head()
    up = BYTES * 4000
    sender = threading.Thread(target=lambda: (client.send(up), client.finish()))
    sender.start()
    assert Reader(lambda: far.recv(1 << 16)).rest() == up
    sender.join()
    far.sendall(BYTES)
    assert client.reader.exactly(256) == BYTES
    assert client.silent()
    far.close()
    assert client.rest() == b""


def test_row_54_the_far_end_ends_first(client, peer) -> None:
    """Row 54: the same the other way round."""
    client.send(request("CONNECT", peer.authority))
    far = peer.accept()
    client.head()
    down = BYTES * 4000
    sender = threading.Thread(target=lambda: (far.sendall(down), far.shutdown(socket.SHUT_WR)))
    sender.start()
    assert client.rest() == down
    sender.join()
    client.send(BYTES)
    assert Reader(lambda: far.recv(1 << 16)).exactly(256) == BYTES
    client.close()
    assert far.recv(1) == b""


def test_row_54_both_ends_with_data_under_way(client, peer) -> None:
    """Row 54: an end loses nothing that was sent before it, in either direction."""
    client.send(request("CONNECT", peer.authority))
    far = peer.accept()
    client.head()
    data = BYTES * 8000
    up = threading.Thread(target=lambda: (client.send(data), client.finish()))
    down = threading.Thread(target=lambda: (far.sendall(data), far.shutdown(socket.SHUT_WR)))
    got = []
    read = threading.Thread(target=lambda: got.append(Reader(lambda: far.recv(1 << 16)).rest()))
    for thread in (up, down, read):
        thread.start()
    assert client.rest() == data
    for thread in (up, down, read):
        thread.join()
    assert got == [data]


@pytest.mark.parametrize("who", ["client", "far end"])
def test_row_54_a_reset_is_passed_on(client, peer, who) -> None:
    """Row 54: a side that resets takes the other one along, as a reset."""
    client.send(request("CONNECT", peer.authority))
    far = peer.accept()
    client.head()
    near, other = (client.sock, far) if who == "client" else (far, client.sock)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    near.close()
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_row_55_200_means_that_the_far_end_was_reached(client, connect, peer) -> None:
    """Row 55: a CONNECT that leads nowhere is a 502, and one that works has its connection."""
    answer = client.ask(request("CONNECT", f"127.0.0.1:{free_port()}"))
    assert status_of(answer) == 502
    assert error_of(answer) == "connection_refused"
    other = connect()
    other.send(request("CONNECT", peer.authority))
    assert status_of(other.head()) == 200
    peer.accept()


def test_row_55_early_bytes_go_first(client, peer) -> None:
    """Row 55: what the client sends with its CONNECT, and its end, come out at the far end."""
    client.send(request("CONNECT", peer.authority) + b"early " + BYTES)
    far = peer.accept()
    assert status_of(client.head()) == 200
    client.send(b" later")
    client.finish()
    assert Reader(lambda: far.recv(1 << 16)).rest() == b"early " + BYTES + b" later"


def test_row_55_a_far_end_that_speaks_first_is_heard(proxy) -> None:
    """Row 55: bytes that a server sends as soon as it has accepted reach the client, first."""
    greeting = b"220 at your service\r\n"
    listener = socket.create_server(("127.0.0.1", 0))
    open_ones = []

    def greet() -> None:
        try:
            while True:
                sock, _ = listener.accept()
                open_ones.append(sock)
                sock.sendall(greeting)
        except OSError:
            pass

    thread = threading.Thread(target=greet)
    thread.start()
    try:
        authority = f"127.0.0.1:{listener.getsockname()[1]}"
        for _ in range(200):
            with Client(proxy) as each:
                each.send(request("CONNECT", authority))
                answer = each.head()
                assert status_of(answer) == 200, answer
                assert each.reader.exactly(len(greeting)) == greeting
            open_ones.pop(0).close()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for sock in [listener, *open_ones]:
            sock.close()


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_row_55_a_dead_warm_connection_is_swapped(daemon, connect, web, how) -> None:
    """Row 55: warm connections that died the moment before are never given to a tunnel."""
    proxy = daemon(upstream=[{"url": web.url.replace("http:", "https:"), "warm": 2}])
    for _ in range(2):
        idle = [c for c in web.origin.wait_open(2) if not c.eof_at]
        client = connect(proxy)
        with paused(proxy):  # so that both are there when it looks, the request first
            client.send(request("CONNECT", web.authority))
            for connection in idle:
                getattr(connection, how)()
                if how == "reset":
                    connection.join()
        assert status_of(client.head()) == 200
        client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.answer().body == b"ok"
        assert web.received[-1].connection not in idle
        client.close()
        eventually(lambda: web.received[-1].connection.ended)


# -- WebSocket --------------------------------------------------------------------------------


def echo(connection: ServerConnection) -> None:
    """Speak first, then send everything back."""
    connection.send("welcome")
    try:
        for message in connection:
            connection.send(message)
    except ConnectionClosed:
        pass


@pytest.fixture(scope="module")
def websocket_server() -> Iterator[Server]:
    with serve(echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


KEY = base64.b64encode(b"sixteen bytes ok").decode()
ACCEPT = base64.b64encode(
    hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
)


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_row_56_websocket_by_get(client, websocket_server, scheme) -> None:
    """Row 56: a WebSocket by `GET http://` and by `GET ws://`: the handshake goes through and
    frames are relayed untouched, pings and the close too."""
    port = websocket_server.socket.getsockname()[1]
    client.send(
        request(
            "GET",
            f"{scheme}://127.0.0.1:{port}/chat",
            "Connection: keep-alive, Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {KEY}",
        )
        + frame(0x81, b"with the handshake")
    )
    head = client.head()
    assert status_of(head) == 101
    assert head.values("sec-websocket-accept") == [ACCEPT]
    assert client.reader.exactly(9) == b"\x81\x07welcome"
    assert client.reader.exactly(20) == b"\x81\x12with the handshake"
    client.send(frame(0x82, BYTES[:100]))
    assert client.reader.exactly(102) == b"\x82\x64" + BYTES[:100]
    client.send(frame(0x89, b"ping") + frame(0x88, b"\x03\xe8"))
    assert client.rest() == b"\x8a\x04ping" + b"\x88\x02\x03\xe8"


def frame(first: int, payload: bytes) -> bytes:
    """A client's frame of less than 126 bytes (RFC 6455, 5.2)."""
    mask = b"\x11\x22\x33\x44"
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return bytes([first, 0x80 | len(payload)]) + mask + masked


def test_row_56_websocket_by_connect(proxy, websocket_server) -> None:
    """Row 56: a WebSocket client that was given a proxy uses CONNECT, and talks as if directly."""
    port = websocket_server.socket.getsockname()[1]
    before = proxy.count("warmproxy_tunnels_opened_total")
    with connect_websocket(f"ws://127.0.0.1:{port}/chat", proxy=proxy.url) as websocket:
        assert websocket.recv(10) == "welcome"
        for message in ("hello", BYTES * 1000, "caf\xe9"):
            websocket.send(message)
            assert websocket.recv(10) == message
    assert proxy.count("warmproxy_tunnels_opened_total") == before + 1


def test_row_56_an_upgraded_connection_half_closes(client, origin) -> None:
    """Row 56: after 101 both directions end on their own, as in a tunnel."""

    def answer(received) -> bool:
        received.send(SWITCHING)
        received.send(received.rest()[::-1])
        return True

    web = origin(answer)
    client.send(request("GET", f"{web.url}/", *UPGRADE))
    assert status_of(client.head()) == 101
    client.send(BYTES)
    client.finish()
    assert client.rest() == BYTES[::-1]


def test_row_56_a_server_that_does_not_switch_ends_nothing(client, origin) -> None:
    """Row 56: a refused handshake is an answer like any other."""
    web = origin(then_close(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"))
    answer = client.ask(request("GET", f"{web.url}/", *UPGRADE))
    assert (status_of(answer), answer.body) == (403, b"no")
    web.answer = OK
    assert client.ask(request("GET", f"{web.url}/")).body == b"ok"
