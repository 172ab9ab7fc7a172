"""Rows 23 to 33 of docs/standards.md: where bodies end, and what a broken one comes to."""

import pytest

from tests.e2e.harness import eventually
from tests.standards.wire import (
    OK,
    Ended,
    broken,
    error_of,
    refused,
    request,
    status_of,
    then_close,
)

CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"


def coded(head: bytes = b"HTTP/1.1 200 OK\r\n", body: bytes = CHUNKS) -> bytes:
    """A chunked response."""
    return head + CHUNKED.encode() + b"\r\n\r\n" + body


def smuggled(web) -> bytes:
    """What would be a request if the one before it were read otherwise."""
    return request("GET", f"{web.url}/smuggled")


# -- lengths and codings that disagree --------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", CHUNKED],
        [CHUNKED, "Content-Length: 5"],
        ["content-length: 0", "transfer-encoding: CHUNKED"],
    ],
)
def test_row_23_two_framings_in_a_request_are_refused(proxy, web, lines) -> None:
    """Row 23: Transfer-Encoding and Content-Length together are a 400 and the end."""
    data = request("POST", f"{web.url}/bad", *lines) + CHUNKS + smuggled(web)
    refused(proxy, web, data, 400)


def test_row_23_two_framings_in_a_response_are_refused(proxy, origin) -> None:
    """Row 23: the same in a response are a 502 and its connection's end."""
    broken(proxy, origin(coded(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n")))


def test_row_24_a_coding_in_an_http_10_request_is_refused(proxy, web) -> None:
    """Row 24: HTTP/1.0 knows no Transfer-Encoding: a 400 and the end."""
    data = request("POST", f"{web.url}/bad", CHUNKED, version="1.0") + CHUNKS + smuggled(web)
    refused(proxy, web, data, 400)


def test_row_24_a_coding_in_an_http_10_response_is_refused(proxy, origin) -> None:
    """Row 24: the same from an origin is a 502 and its connection's end."""
    broken(proxy, origin(coded(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n")))


@pytest.mark.parametrize(
    "lines",
    [
        ["Transfer-Encoding: chunked, gzip"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked;q=1"],
        ["Transfer-Encoding: "],
        ["Transfer-Encoding: chunked, chunked"],
        ["X-Odd:  spaces make another reader take this head", "Transfer-Encoding: gzip"],
    ],
)
def test_row_25_the_last_coding_has_to_be_chunked(proxy, web, lines) -> None:
    """Row 25: a request whose end cannot be told is a 400 and the end."""
    data = request("POST", f"{web.url}/bad", *lines) + CHUNKS + smuggled(web)
    refused(proxy, web, data, 400)


@pytest.mark.parametrize(
    "lengths",
    [["x"], ["-1"], ["+5"], ["5 5"], ["5,"], ["0x5"], ["5, 6"], ["9" * 20], ["5", "6"], ["5", "5"]],
)
def test_row_26_a_bad_length_in_a_request_is_refused(proxy, web, lengths) -> None:
    """Row 26: a malformed, differing or repeated Content-Length is a 400 and the end."""
    lines = [f"Content-Length: {length}" for length in lengths]
    data = request("POST", f"{web.url}/bad", *lines) + b"abcde" + smuggled(web)
    refused(proxy, web, data, 400)


@pytest.mark.parametrize(
    "lengths", [[b"x"], [b"-2"], [b"+2"], [b"2 2"], [b"2, 3"], [b"9" * 20], [b"2", b"3"]]
)
def test_row_26_a_bad_length_in_a_response_is_a_502(proxy, origin, lengths) -> None:
    """Row 26: the same from an origin is a 502, and its connection is closed."""
    lines = b"".join(b"Content-Length: %b\r\n" % length for length in lengths)
    broken(proxy, origin(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\nok"))


@pytest.mark.parametrize("lines", [b"2, 2", b"2\r\nContent-Length: 2"])
def test_row_26_equal_lengths_in_a_response_become_one(client, origin, lines) -> None:
    """Row 26: a length that is only repeated is passed on once."""
    web = origin(b"HTTP/1.1 200 OK\r\nContent-Length: " + lines + b"\r\n\r\nok")
    for _ in range(2):
        answer = client.ask(request("GET", f"{web.url}/"))
        assert (answer.values("content-length"), answer.body) == ([b"2"], b"ok")
    assert [r.nth for r in web.received] == [1, 2]


@pytest.mark.parametrize("codings", [["gzip, chunked"], ["x-own", "chunked"]])
@pytest.mark.parametrize("odd", ["X-Even: 1", "X-Odd:  spaces make another reader take this head"])
def test_row_27_an_unknown_coding_is_a_501(proxy, web, codings, odd) -> None:
    """Row 27: a coding that we do not know, with chunked behind it, is a 501."""
    lines = [odd, *(f"Transfer-Encoding: {coding}" for coding in codings)]
    refused(proxy, web, request("POST", f"{web.url}/bad", *lines) + CHUNKS, 501)


# -- where no body may be ---------------------------------------------------------------------


def test_row_28_no_coding_on_204_and_1xx(client, origin) -> None:
    """Row 28: an origin's Transfer-Encoding or length on 1xx and 204 ends here."""
    for extra in (b"Transfer-Encoding: chunked", b"Content-Length: 0"):
        early = b"HTTP/1.1 103 Early Hints\r\n" + extra + b"\r\nX: 1\r\n\r\n"
        web = origin(early + b"HTTP/1.1 204 No Content\r\n" + extra + b"\r\nX: 2\r\n\r\n")
        client.send(request("GET", f"{web.url}/"))
        assert client.head().names() == {b"x", b"via"}
        assert client.answer().names() - {b"connection"} == {b"x", b"via", b"date"}
        web.answer = OK
        assert client.ask(request("GET", f"{web.url}/next")).body == b"ok"


@pytest.mark.parametrize(
    ("method", "status", "extra"),
    [
        ("HEAD", "200 OK", "Content-Length: 1000"),
        ("HEAD", "200 OK", CHUNKED),
        ("HEAD", "200 OK", "X: 1"),
        ("GET", "304 Not Modified", "Content-Length: 1000"),
        ("GET", "304 Not Modified", "X: 1"),
        ("GET", "204 No Content", "X: 1"),
        ("POST", "204 No Content", "X: 1"),
    ],
)
def test_row_28_answers_without_a_body_end_with_their_head(
    client, origin, method, status, extra
) -> None:
    """Row 28: HEAD, 204 and 304 have no body whatever their fields say; both connections go on."""
    web = origin(f"HTTP/1.1 {status}\r\n{extra}\r\n\r\n".encode())
    for n in (1, 2):
        answer = client.ask(request(method, f"{web.url}/{n}"))
        assert answer.line == f"HTTP/1.1 {status}".encode()
    web.answer = OK
    assert client.ask(request("GET", f"{web.url}/3")).body == b"ok"
    assert [r.nth for r in web.received] == [1, 2, 3]


def test_row_28_no_coding_towards_an_http_10_client(client, origin) -> None:
    """Row 28: an HTTP/1.0 client gets a chunked body bare, up to the connection's end."""
    body = b'3;ext="a;b"\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n'
    web = origin(coded(body=body))
    client.send(request("GET", f"{web.url}/", "Connection: keep-alive", version="1.0"))
    head = client.head()
    assert head.values("transfer-encoding") == []
    assert head.values("content-length") == []
    assert client.rest() == b"abcde"


# -- chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"3\r\nabc\r\n0\r\n\r\n",
        b"3;unknown\r\nabc\r\n0;x=1\r\n\r\n",
        b'003 ; a = "b\\"c" ;d\r\nabc\r\n000\r\n\r\n',
        b"1\r\na\r\nA\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n",
    ],
)
def test_row_29_chunks_are_understood_with_unknown_extensions(client, web, body) -> None:
    """Row 29: chunked bodies pass both ways, their unknown extensions ignored."""
    web.answer = coded(body=body)
    for n in (1, 2):
        answer = client.ask(request("POST", f"{web.url}/{n}", CHUNKED) + body)
        assert answer.body == body
        assert web.received[-1].body == body
    assert [r.nth for r in web.received] == [1, 2]


def test_row_29_a_body_that_looks_like_a_request_is_none(client, web) -> None:
    """Row 29: the bytes of a chunk and of a body with a length are never read as a request."""
    inner = smuggled(web)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    client.ask(request("POST", f"{web.url}/1", CHUNKED) + body)
    client.ask(request("POST", f"{web.url}/2", body=inner))
    client.ask(request("GET", f"{web.url}/3"))
    assert web.targets == ["/1", "/2", "/3"]
    assert web.received[1].body == inner


BAD_CHUNKS = [
    b"FFFFFFFFFFFFFFFFF\r\nabc",
    b"8000000000000000\r\nabc",
    b"0000000000000000003\r\nabc\r\n0\r\n\r\n",
    b"-3\r\nabc\r\n0\r\n\r\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"3\nabc\r\n0\r\n\r\n",
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"\r\n3\r\nabc\r\n0\r\n\r\n",
    b"3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n",
    b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX: a\nY: b\r\n\r\n",
    b"3\r\nabc\r\n0\r\nno colon\r\n\r\n",
]


@pytest.mark.parametrize("body", BAD_CHUNKS)
def test_row_29_bad_chunks_of_a_request_end_it(client, connect, web, body) -> None:
    """Row 29: sizes that overflow and broken framing never make a whole request."""
    client.send(request("POST", f"{web.url}/bad", CHUNKED) + body)
    answer = client.answer()
    assert status_of(answer) == 400
    assert client.rest() == b""
    assert connect().ask(request("GET", f"{web.url}/good")).body == b"ok"
    eventually(lambda: all(r.connection.ended for r in web.received if r.target == "/bad"))
    assert not any(r.complete for r in web.received if r.target == "/bad")


@pytest.mark.parametrize("body", BAD_CHUNKS)
def test_row_29_bad_chunks_of_a_response_are_a_502(proxy, origin, body) -> None:
    """Row 29: the same from an origin, in one piece with the head, is a 502."""
    broken(proxy, origin(coded(body=body)))


def test_row_30_trailers_stay_trailers(client, web) -> None:
    """Row 30: trailers go on as trailers, both ways, and none becomes a header field."""
    body = b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\nX-Other:3 \r\n\r\n"
    sent = b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\nX-Other: 3\r\n\r\n"
    web.answer = coded(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\n", body)
    lines = [CHUNKED, "TE: trailers", "Connection: TE", "Trailer: X-Sum"]
    answer = client.ask(request("POST", f"{web.url}/", *lines) + body)
    (received,) = web.received
    for message in (received, answer):
        assert message.body == sent
        assert not message.names() & {b"x-sum", b"x-other"}
        assert message.values("trailer") == [b"X-Sum"]


def test_row_30_what_may_not_be_a_trailer_is_dropped(client, web) -> None:
    """Row 30: framing, routing and authentication cannot be said in a trailer."""
    forbidden = [
        "Content-Length: 5",
        "Transfer-Encoding: gzip",
        "Host: evil.example",
        "Via: 1.1 nobody",
        "Authorization: Basic YTpi",
        "Set-Cookie: a=b",
        "Content-Type: text/html",
        "Trailer: X",
    ]
    lines = "".join(f"{line}\r\n" for line in [*forbidden, "X-Sum: 1"]).encode()
    body = b"3\r\nabc\r\n0\r\n" + lines + b"\r\n"
    web.answer = coded(body=body)
    answer = client.ask(request("POST", f"{web.url}/", CHUNKED) + body)
    assert answer.body == b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
    assert web.received[0].body == answer.body


def test_row_30_no_trailer_field_of_our_own(client, web) -> None:
    """Row 30: where nobody has announced trailers, we do not either."""
    web.answer = coded(body=b"0\r\nX-Sum: 1\r\n\r\n")
    answer = client.ask(request("POST", f"{web.url}/", CHUNKED) + CHUNKS)
    assert answer.values("trailer") == web.received[0].values("trailer") == []


# -- bodies that are cut ----------------------------------------------------------------------


def test_row_31_a_response_short_of_its_length_stays_short(client, origin) -> None:
    """Row 31: the client sees the length that was promised, less than that, and the end."""
    web = origin(then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart"))
    client.send(request("GET", f"{web.url}/"))
    assert client.head().values("content-length") == [b"10"]
    assert client.rest() == b"part"


@pytest.mark.parametrize("cut", [b"5\r\nab", b"2\r\nab\r\n", b"2\r\nab\r\n0\r\n", b"2\r\nab\r\n0"])
def test_row_31_a_chunked_response_without_its_end_stays_without(client, origin, cut) -> None:
    """Row 31: a chunked body that breaks off gets no last chunk from us."""
    web = origin(then_close(coded(body=cut)))
    client.send(request("GET", f"{web.url}/"))
    client.head()
    with pytest.raises(Ended):
        client.reader.chunks()


def test_row_31_a_chunked_response_that_breaks_later_stays_without_an_end(client, origin) -> None:
    """Row 31: a body that turns out malformed half-way is cut and not mended."""

    def answer(received) -> None:
        received.send(coded(body=b"2\r\nab\r\n"))
        received.connection.origin.gate.wait(10)
        received.send(b"zz\r\n0\r\n\r\n")

    web = origin(answer)
    client.send(request("GET", f"{web.url}/"))
    client.head()
    assert client.reader.exactly(7) == b"2\r\nab\r\n"
    web.gate.set()
    assert client.rest() == b""
    eventually(lambda: web.received[0].connection.ended)


def test_row_31_a_cut_is_a_reset_where_the_end_is_the_connections_end(client, origin) -> None:
    """Row 31: an HTTP/1.0 client, who gets chunks bare, hears of the cut by a reset."""

    def answer(received) -> bool:
        received.send(coded(body=b"2\r\nab\r\n"))
        received.connection.origin.gate.wait(10)
        return True

    web = origin(answer)
    client.send(request("GET", f"{web.url}/", version="1.0"))
    client.head()
    assert client.reader.exactly(2) == b"ab"
    web.gate.set()
    with pytest.raises(ConnectionResetError):
        client.rest()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_row_31_a_body_until_the_end_passes_whole(client, origin, version) -> None:
    """Row 31: a response that its connection's end delimits is complete at the FIN, and ends the
    client's connection, who was told so."""
    body = bytes(range(256)) * 1000
    web = origin(then_close(b"HTTP/1.1 200 OK\r\n\r\n" + body))
    client.send(request("GET", f"{web.url}/", version=version))
    assert client.head().values("connection") == [b"close"]
    assert client.rest() == body


def test_row_31_a_body_until_the_end_is_cut_by_a_reset(client, origin) -> None:
    """Row 31: an origin's RST instead of its FIN is passed on as a reset."""

    def answer(received) -> None:
        received.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        received.connection.origin.gate.wait(10)
        received.reset()

    web = origin(answer)
    client.send(request("GET", f"{web.url}/"))
    client.head()
    assert client.reader.exactly(4) == b"part"
    web.gate.set()
    with pytest.raises(ConnectionResetError):
        client.rest()


@pytest.mark.parametrize(
    "part", [request("POST", "{}", "Content-Length: 9") + b"abc", request("POST", "{}", CHUNKED)]
)
def test_row_31_a_request_that_is_cut_never_looks_whole(client, origin, part) -> None:
    """Row 31: where the client breaks off, the origin sees a request without its end."""
    web = origin()
    client.send(part.replace(b"{}", web.url.encode()))
    web.wait(1)
    client.finish()
    eventually(lambda: web.received[0].connection.ended)
    assert not web.received[0].complete
    assert client.rest() == b""


# -- HTTP/1.0 servers, bytes too many ---------------------------------------------------------


def test_row_32_no_chunks_to_a_server_that_speaks_http_10(client, connect, web) -> None:
    """Row 32: an origin that answered in HTTP/1.0 gets no chunked request: 411, until it has
    answered in HTTP/1.1 again."""
    web.answer = OK.replace(b"1.1", b"1.0", 1)
    client.ask(request("GET", f"{web.url}/old"))
    answer = client.ask(request("POST", f"{web.url}/refused", CHUNKED) + CHUNKS)
    assert status_of(answer) == 411
    assert error_of(answer) == "http_request_error"
    web.answer = OK
    other = connect()
    assert other.ask(request("POST", f"{web.url}/length", body=b"abc")).body == b"ok"
    assert other.ask(request("POST", f"{web.url}/new", CHUNKED) + CHUNKS).body == b"ok"
    assert web.targets == ["/old", "/length", "/new"]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", OK),
        ("GET", coded()),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_row_33_bytes_behind_a_response_are_never_another(client, origin, method, answer) -> None:
    """Row 33: a second response in the wake of the first is given to nobody."""
    web = origin(answer + OK.replace(b"ok", b"NO"))
    assert status_of(client.ask(request(method, f"{web.url}/1"))) in (200, 204, 304)
    first = web.received[0].connection
    eventually(lambda: first.ended, says=lambda: first)
    web.answer = OK
    assert client.ask(request("GET", f"{web.url}/2")).body == b"ok"
    assert web.received[1].connection is not first
