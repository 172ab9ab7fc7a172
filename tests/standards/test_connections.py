"""Rows 34 to 48 of docs/standards.md: which connection serves whom, and for how long."""

import pytest

from tests.e2e.harness import always, eventually, free_port, takes_more
from tests.standards.wire import OK, Client, paused, request, status_of, then_close

LONG = 1 << 23


# -- idle connections -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stray",
    [OK.replace(b"ok", b"NO"), b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b"x"],
)
def test_row_34_what_comes_unasked_is_never_an_answer(proxy, client, web, stray) -> None:
    """Row 34: bytes on an idle connection end it, even if the next request is already there."""
    for n in range(5):
        assert client.ask(request("GET", f"{web.url}/{n}")).body == b"ok"
        used = web.received[-1].connection
        with paused(proxy):  # so that both are there when it looks, the request first
            client.send(request("GET", f"{web.url}/{n}"))
            used.say(stray)
        assert client.answer().body == b"ok"
        assert web.received[-1].connection is not used
        eventually(lambda used=used: used.ended, says=lambda used=used: used)


def test_row_34_what_comes_unasked_on_a_fresh_connection_is_no_answer(daemon, web) -> None:
    """Row 34: the same on a warm connection that never served a request."""
    proxy = daemon(upstream=[{"url": web.url, "warm": 2}])
    for connection in web.origin.wait_open(2):
        connection.say(OK.replace(b"ok", b"NO"))
    with Client(proxy) as client:
        assert client.ask(request("GET", f"{web.url}/")).body == b"ok"
    for connection in web.connections[:2]:
        assert connection is not web.received[0].connection
        eventually(lambda c=connection: c.ended)


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_row_35_an_end_is_heard_at_once_and_made_up_for(daemon, web, how) -> None:
    """Row 35: an idle connection that the origin ends is closed on our side too, without any
    request, and another one takes its place."""
    daemon(upstream=[{"url": web.url, "warm": 1}])
    (first,) = web.origin.wait_open(1)
    getattr(first, how)()
    eventually(lambda: first.ended, 2, lambda: first)
    eventually(lambda: len(web.connections) == 2, 2, lambda: web.connections)
    assert web.received == []


def test_row_36_idle_connections_end_by_fin_on_both_sides(connect, strict, web) -> None:
    """Row 36: idle_timeout and client_idle_timeout close gracefully, not by a reset."""
    client = connect(strict)
    client.ask(request("GET", f"{web.url}/"))
    assert client.rest() == b""
    connection = web.received[0].connection
    eventually(lambda: connection.ended, says=lambda: connection)
    assert connection.ended == "fin"


def test_row_37_connections_to_one_origin_are_limited(strict, connect, web) -> None:
    """Row 37: no more than max_connections are opened, however many ask."""
    web.answer = lambda received: web.hold() or received.send(OK)
    clients = [connect(strict) for _ in range(3)]
    for client in clients:
        client.send(request("GET", f"{web.url}/"))
    statuses = [status_of(client.answer()) for client in clients[1:]]
    assert statuses == [503, 503]
    web.gate.set()
    assert clients[0].answer().body == b"ok"
    assert web.targets == ["/"]


# -- how long a connection lasts --------------------------------------------------------------


@pytest.mark.parametrize("lines", [[], ["Connection: keep-alive"]])
def test_row_38_an_http_10_client_gets_one_answer(client, web, lines) -> None:
    """Row 38: its connection is never kept, even if it asks for that, and it gets no 1xx."""
    web.answer = b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK
    first = request("GET", f"{web.url}/1", *lines, version="1.0")
    client.send(first + request("GET", f"{web.url}/2", *lines, version="1.0"))
    answer = client.answer()
    assert status_of(answer) == 200
    assert answer.values("connection") == [b"close"]
    assert client.rest() == b""
    assert web.targets == ["/1"]


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (OK, True),
        (OK.replace(b"OK\r\n", b"OK\r\nConnection: keep-alive\r\n"), True),
        (OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), False),
        (OK.replace(b"OK\r\n", b"OK\r\nConnection: x, CLOSE\r\n"), False),
        (OK.replace(b"1.1", b"1.0", 1), False),
        (OK.replace(b"1.1 200 OK\r\n", b"1.0 200 OK\r\nConnection: Keep-Alive\r\n"), True),
    ],
)
def test_row_39_upstream_connections_are_kept_as_the_origin_says(
    client, origin, answer, kept
) -> None:
    """Row 39: no second request after `close` or an HTTP/1.0 response without keep-alive; the
    client's connection goes on all the same."""
    web = origin(answer)
    for n in (1, 2):
        assert client.ask(request("GET", f"{web.url}/{n}")).body == b"ok"
    assert (web.received[0].connection is web.received[1].connection) is kept
    if not kept:
        eventually(lambda: web.received[0].connection.ended)


def test_row_40_a_response_that_nobody_read_ends_its_connection(client, connect, web) -> None:
    """Row 40: a connection whose response was not read to its end is not used again."""
    web.answer = lambda received: (
        received.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nAB"),
        received.rest(),
    )
    client.send(request("GET", f"{web.url}/1"))
    client.head()
    client.reset()
    first = web.received[0].connection
    eventually(lambda: first.ended, says=lambda: first)
    web.answer = OK
    assert connect().ask(request("GET", f"{web.url}/2")).body == b"ok"
    assert web.received[1].connection is not first


def test_row_40_a_body_that_was_not_read_is_no_request(client, web) -> None:
    """Row 40: where we answer before the body was read, what follows is never a request."""
    nobody = f"http://127.0.0.1:{free_port()}/"
    inner = request("GET", f"{web.url}/smuggled")
    client.send(request("POST", nobody, f"Content-Length: {len(inner)}"))
    answer = client.answer()
    assert status_of(answer) == 502
    assert answer.values("connection") == [b"close"]
    client.send(inner)
    assert client.rest() == b""
    assert web.connections == []


def test_row_40_an_answer_before_the_bodys_end_ends_both_connections(client, connect, web) -> None:
    """Row 40: an origin that answers before it has the whole request gets no other one on that
    connection, nor does the client."""

    def early(received) -> None:
        received.send(OK)

    web.answer = early
    client.send(request("POST", f"{web.url}/1", "Content-Length: 100"))
    assert client.answer().body == b"ok"
    assert client.rest() == b""
    client.send(b"x" * 40 + request("GET", f"{web.url}/smuggled"))
    web.answer = OK
    assert connect().ask(request("GET", f"{web.url}/2")).body == b"ok"
    assert web.targets == ["/1", "/2"]
    assert web.received[0].connection is not web.received[1].connection


@pytest.mark.parametrize(
    "line", ["Connection: close", "Connection: x, Close", "Proxy-Connection: close"]
)
def test_row_41_nothing_is_served_after_close(client, web, line) -> None:
    """Row 41: a client that says close gets that answer, with close, and no other."""
    client.send(
        request("GET", f"{web.url}/1", line)
        + request("GET", f"{web.url}/2")
        + request("GET", f"{web.url}/3")
    )
    answer = client.answer()
    assert answer.body == b"ok"
    assert answer.values("connection") == [b"close"]
    assert client.rest() == b""
    assert web.targets == ["/1"]


def test_row_41_nothing_is_asked_after_close(client, origin) -> None:
    """Row 41: an origin that says close, and does not do it, gets no other request; we close."""
    web = origin(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
    answer = client.ask(request("GET", f"{web.url}/1"))
    assert answer.values("connection") == []
    eventually(lambda: web.received[0].connection.ended, says=lambda: web.connections)
    assert client.ask(request("GET", f"{web.url}/2")).body == b"ok"
    assert [r.nth for r in web.received] == [1, 1]


def test_row_42_pipelined_requests_are_answered_in_order(client, origin) -> None:
    """Row 42: four requests at once, the first to a slow origin, are answered in their order."""
    slow = origin(lambda received: slow.hold() or received.send(OK.replace(b"ok", b"s1")))
    quick = origin(OK.replace(b"ok", b"q2"))
    second = request("POST", f"{quick.url}/2", body=b"abc")
    client.send(request("GET", f"{slow.url}/1") + second[:-1])
    slow.wait(1)
    client.send(second[-1:] + request("HEAD", f"{quick.url}/3") + request("GET", f"{slow.url}/4"))
    always(client.silent, 0.2)
    slow.gate.set()
    assert client.answer().body == b"s1"
    assert client.answer().body == b"q2"
    assert client.answer("HEAD").values("content-length") == [b"2"]
    assert client.answer().body == b"s1"
    assert quick.received[0].body == b"abc"
    assert (slow.targets, quick.targets) == (["/1", "/4"], ["/2", "/3"])


def test_row_42_errors_keep_their_place_among_pipelined_requests(client, web) -> None:
    """Row 42: answers of our own come in order too."""
    nobody = f"http://127.0.0.1:{free_port()}/"
    good = request("GET", f"{web.url}/")
    client.send(good + request("GET", nobody) + good + request("TRACE", nobody, "Max-Forwards: 0"))
    assert [status_of(client.answer()) for _ in range(4)] == [200, 502, 200, 200]


# -- retries ----------------------------------------------------------------------------------


def dies_when_used(how: str, read: bool):
    """An answer to the first request of each connection; the second one kills it."""

    def answer(received) -> bool:
        if received.nth > 1:
            if read:
                received.read()
            if how == "reset":
                received.reset()
            return True
        received.read()
        received.send(OK)
        return False

    return answer


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK", "get"])
def test_row_43_what_is_not_idempotent_is_sent_once(client, web, method, how) -> None:
    """Row 43: a used connection that dies under such a request is a 502; the origin has seen the
    request once."""
    web.answer = dies_when_used(how, read=True)
    assert status_of(client.ask(request("GET", f"{web.url}/1"))) == 200
    answer = client.ask(request(method, f"{web.url}/2", body=b"abc"))
    assert status_of(answer) == 502
    assert web.targets == ["/1", "/2"]
    assert [r.nth for r in web.received] == [1, 2]


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_row_43_what_is_idempotent_is_sent_once_more(client, web, method, how) -> None:
    """Row 43: an idempotent one is served over a fresh connection, whole, unseen by the client."""
    web.answer = dies_when_used(how, read=True)
    body = b"abc" if method == "PUT" else None
    assert status_of(client.ask(request("GET", f"{web.url}/1"))) == 200
    assert status_of(client.ask(request(method, f"{web.url}/2", body=body))) == 200
    assert web.targets == ["/1", "/2", "/2"]
    assert [r.nth for r in web.received] == [1, 2, 1]
    assert web.received[1].head == web.received[2].head
    assert web.received[1].body == web.received[2].body == (body or b"")


def test_row_43_a_second_try_that_fails_is_the_last(client, web) -> None:
    """Row 43: a failed retry is not retried."""
    assert status_of(client.ask(request("GET", f"{web.url}/1"))) == 200
    web.answer = lambda received: True
    assert status_of(client.ask(request("GET", f"{web.url}/2"))) == 502
    assert web.targets == ["/1", "/2", "/2"]


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:-1]])
def test_row_43_nothing_is_repeated_after_a_byte_of_an_answer(client, web, part) -> None:
    """Row 43: once something came back, the request is not sent again."""
    assert status_of(client.ask(request("GET", f"{web.url}/1"))) == 200
    web.answer = then_close(part)
    client.send(request("GET", f"{web.url}/2"))
    head = client.head()
    while status_of(head) < 200:
        head = client.head()
    if part == OK[:-1]:
        assert client.rest() == b"o"
    else:
        assert status_of(head) == 502
    assert web.targets == ["/1", "/2"]


def test_row_44_a_408_is_passed_on(client, origin) -> None:
    """Row 44: a 408 to a request of ours is the client's answer: we do not repeat by ourselves."""
    web = origin(
        then_close(
            b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
    )
    assert status_of(client.ask(request("GET", f"{web.url}/"))) == 408
    assert web.targets == ["/"]


def test_row_45_an_early_answer_stops_the_body(client, web) -> None:
    """Row 45: a final answer with close comes through while the body is being sent, and ends the
    sending."""

    def early(received) -> None:
        received.exactly(1000)
        received.send(
            b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig"
        )
        received.rest()

    web.answer = early
    client.send(request("POST", f"{web.url}/", f"Content-Length: {LONG}") + b"x" * 1000)
    answer = client.answer()
    assert (status_of(answer), answer.body) == (413, b"big")
    assert answer.values("connection") == [b"close"]
    assert client.rest() == b""
    first = web.received[0].connection
    eventually(lambda: first.ended, says=lambda: first)


def test_row_45_an_early_answer_comes_through_a_full_pipe(client, web) -> None:
    """Row 45: the answer reaches a client whose body is stuck since the origin does not read."""

    def early(received) -> None:
        web.hold()
        received.send(b"HTTP/1.1 401 Who\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    web.answer = early
    client.send(request("POST", f"{web.url}/", f"Content-Length: {1 << 40}"))
    web.wait(1)
    while takes_more(client.sock, 0.2):
        client.sock.send(b"x" * (1 << 14))
    web.gate.set()
    assert status_of(client.answer()) == 401


# -- one connection, one user -----------------------------------------------------------------


def challenge(scheme: str):
    """401 to whoever shows nothing."""

    def answer(received) -> None:
        received.read()
        if received.values("authorization"):
            received.send(OK)
        else:
            received.send(
                b"HTTP/1.1 401 Who\r\nWWW-Authenticate: %b\r\nContent-Length: 0\r\n\r\n"
                % scheme.encode()
            )

    return answer


@pytest.mark.parametrize("scheme", ["NTLM", "Negotiate", 'Basic realm="a, b", negotiate'])
def test_row_48_an_authenticated_connection_stays_with_its_client(
    client, connect, web, scheme
) -> None:
    """Row 48: once an origin asks for NTLM or Negotiate, that client's requests ride on that
    connection and nobody else's ever do, not even after the client has gone."""
    web.answer = challenge(scheme)
    assert status_of(client.ask(request("GET", f"{web.url}/mine"))) == 401
    pinned = web.received[-1].connection
    for n in range(3):
        connect().ask(request("GET", f"{web.url}/others"))
        mine = request("GET", f"{web.url}/mine", f"Authorization: NTLM {n}")
        assert client.ask(mine).body == b"ok"
    assert {r.connection for r in web.received if r.target == "/mine"} == {pinned}
    assert pinned not in {r.connection for r in web.received if r.target == "/others"}
    client.close()
    eventually(lambda: pinned.ended, says=lambda: pinned)
    web.answer = OK
    connect().ask(request("GET", f"{web.url}/others"))
    assert pinned is not web.received[-1].connection


@pytest.mark.parametrize("scheme", ["NTLM", "Negotiate"])
def test_row_48_credentials_without_a_challenge_pin_too(client, connect, web, scheme) -> None:
    """Row 48: a client that authenticates unasked has its connection to itself as well."""
    assert client.ask(request("GET", f"{web.url}/1", f"Authorization: {scheme} a")).body == b"ok"
    assert connect().ask(request("GET", f"{web.url}/2")).body == b"ok"
    assert client.ask(request("GET", f"{web.url}/3")).body == b"ok"
    first, second, third = web.received
    assert first.connection is third.connection
    assert second.connection is not first.connection


def test_row_48_a_pinned_connection_ends_when_its_client_goes_elsewhere(client, origin) -> None:
    """Row 48: a client that turns to another origin gives its connection up, to nobody."""
    web, other = origin(challenge("NTLM")), origin()
    client.ask(request("GET", f"{web.url}/1"))
    client.ask(request("GET", f"{other.url}/"))
    eventually(lambda: web.received[0].connection.ended, says=lambda: web.connections)
    client.ask(request("GET", f"{web.url}/2"))
    assert [r.nth for r in web.received] == [1, 1]


def test_row_48_bytes_for_a_pinned_connection_are_nobodys(client, origin) -> None:
    """Row 48: what comes unasked on it ends it and is no answer to its client either."""
    web = origin(challenge("NTLM"))
    client.ask(request("GET", f"{web.url}/1"))
    web.received[0].connection.say(OK.replace(b"ok", b"NO"))
    mine = client.ask(request("GET", f"{web.url}/2", "Authorization: NTLM b"))
    assert mine.body == b"ok"
    assert web.received[1].connection is not web.received[0].connection


def test_row_48_basic_credentials_pin_nothing(client, connect, web) -> None:
    """Row 48: what authenticates a request only leaves its connection for everybody."""
    web.answer = challenge('Basic realm="NTLM, Negotiate"')
    client.ask(request("GET", f"{web.url}/1", "Authorization: Basic YTpi"))
    connect().ask(request("GET", f"{web.url}/2"))
    assert web.received[0].connection is web.received[1].connection
