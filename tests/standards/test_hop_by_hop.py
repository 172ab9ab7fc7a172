"""Rows 16 to 22 of docs/standards.md: what ends at a proxy and what it adds."""

import re
from email.utils import parsedate_to_datetime
from time import time

import pytest

from tests.standards.wire import OK, Client, error_of, refused, request, status_of

CHUNKS = b"3\r\nabc\r\n0\r\n"


def with_fields(*lines: bytes, answer: bytes = OK) -> bytes:
    """That answer with more fields."""
    return answer.replace(b"\r\n", b"\r\n" + b"".join(line + b"\r\n" for line in lines), 1)


# -- Connection -------------------------------------------------------------------------------


def test_row_16_what_a_request_lists_in_connection_ends_here(client, web) -> None:
    """Row 16: every field that Connection names is dropped, in any case and from all its lines,
    and Connection too; all others stay."""
    client.ask(
        request(
            "GET",
            f"{web.url}/",
            "X-Hop: 1",
            "Connection: x-hop, X-OTHER,,keep-alive",
            "X-Other: 2",
            "X-Hop: 3",
            "X-Kept: 4",
            "connection: Authorization",
            "Authorization: Basic YTpi",
        )
    )
    (received,) = web.received
    assert received.names() == {b"host", b"via", b"x-kept"}


def test_row_16_what_a_response_lists_in_connection_ends_here(client, origin) -> None:
    """Row 16: the same for responses."""
    web = origin(
        with_fields(
            b"X-Hop: 1", b"Connection: X-hop", b"X-Other: 2", b"X-Kept: 4", b"connection: x-OTHER"
        )
    )
    answer = client.ask(request("GET", f"{web.url}/"))
    assert answer.names() == {b"date", b"via", b"content-length", b"x-kept"}


def test_row_16_interim_responses_too(client, origin) -> None:
    """Row 16: what a 1xx lists in Connection ends here as well."""
    early = b"HTTP/1.1 103 Early Hints\r\nX-Hop: 1\r\nConnection: x-hop\r\nLink: </a>\r\n\r\n"
    web = origin(early + OK)
    client.send(request("GET", f"{web.url}/"))
    hints = client.head()
    assert hints.names() == {b"link", b"via"}
    assert client.answer().body == b"ok"


def test_row_16_trailers_of_a_request_too(client, web) -> None:
    """Row 16: a trailer that Connection names does not go on; others do."""
    head = request(
        "POST", f"{web.url}/", "Transfer-Encoding: chunked", "Connection: X-Hop", "X-Hop: 0"
    )
    client.ask(head + CHUNKS + b"x-hop: 1\r\nX-Kept: 2\r\nX-HOP: 3\r\n\r\n")
    (received,) = web.received
    assert received.body == CHUNKS + b"X-Kept: 2\r\n\r\n"
    assert b"x-hop" not in received.names()


def test_row_16_trailers_of_a_response_too(client, origin) -> None:
    """Row 16: the same for a response's trailers."""
    web = origin(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-hop\r\n\r\n"
        + CHUNKS
        + b"X-Hop: 1\r\nX-Kept: 2\r\n\r\n"
    )
    answer = client.ask(request("GET", f"{web.url}/"))
    assert answer.body == CHUNKS + b"X-Kept: 2\r\n\r\n"


def test_row_17_what_is_for_one_neighbour_ends_here_even_unlisted(client, web) -> None:
    """Row 17: the fields between two neighbours are dropped where Connection does not name
    them, in header and trailers."""
    lines = ["Proxy-Connection: keep-alive", "Keep-Alive: timeout=9", "TE: gzip", "Upgrade: any"]
    head = request("POST", f"{web.url}/", *lines, "Transfer-Encoding: chunked")
    trailers = "".join(f"{line}\r\n" for line in [*lines, "Connection: close"]).encode()
    client.ask(head + CHUNKS + trailers + b"\r\n")
    (received,) = web.received
    assert received.names() == {b"host", b"via", b"transfer-encoding"}
    assert received.body == CHUNKS + b"\r\n"


def test_row_17_a_responses_unlisted_ones_too(client, origin) -> None:
    """Row 17: the same for responses."""
    web = origin(
        with_fields(
            b"Keep-Alive: timeout=9",
            b"Proxy-Connection: close",
            b"TE: trailers",
            b"Upgrade: h2c",
            b"Connection: keep-alive",
        )
    )
    answer = client.ask(request("GET", f"{web.url}/"))
    assert answer.names() == {b"date", b"via", b"content-length"}


def test_row_17_a_wish_for_trailers_goes_on_as_ours(client, web) -> None:
    """Row 17: TE is acted on: a wish for trailers is asked anew, under a Connection of ours."""
    client.ask(request("GET", f"{web.url}/", "TE: trailers, gzip;q=0.5", "Connection: TE"))
    (received,) = web.received
    assert received.values("te") == [b"trailers"]
    assert received.values("connection") == [b"TE"]


# -- Via --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_row_18_via_on_requests(client, web, version) -> None:
    """Row 18: our entry, with the version that we received, comes behind those before us."""
    lines = ["Via: 1.0 first", "X-Between: 1", "Via: 1.1 second (a comment)"]
    client.ask(request("GET", f"{web.url}/", *lines, version=version))
    *before, ours = web.received[0].members("via")
    assert before == [b"1.0 first", b"1.1 second (a comment)"]
    assert re.fullmatch(rb"%b warmproxy-[0-9a-f]+" % version.encode(), ours)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_row_18_via_on_responses(client, origin, version) -> None:
    """Row 18: the same on responses, which a proxy may not skip."""
    web = origin(with_fields(b"Via: 1.1 behind", answer=OK.replace(b"1.1", version, 1)))
    before, ours = client.ask(request("GET", f"{web.url}/")).members("via")
    assert before == b"1.1 behind"
    assert re.fullmatch(version + rb" warmproxy-[0-9a-f]+", ours)


def test_row_18_via_where_there_was_none(client, web) -> None:
    """Row 18: each forwarded message has exactly one entry of ours, the same both ways."""
    for method in ("GET", "HEAD", "POST"):
        answer = client.ask(request(method, f"{web.url}/"))
        assert len(answer.members("via")) == 1
        assert web.received[-1].members("via") == answer.members("via")


# -- loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["{us}", "1.1 other, {us}, 1.0 last", "1.1 other\r\nVia: {us} (x)"])
@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_row_19_our_own_name_in_via_is_a_loop(client, connect, web, via, method) -> None:
    """Row 19: a request that has been here is refused and not forwarded."""
    us = client.ask(request("GET", f"{web.url}/first")).values("via")[0].decode()
    target = web.authority if method == "CONNECT" else f"{web.url}/again"
    answer = connect().ask(request(method, target, f"Via: {via.format(us=us)}"))
    assert status_of(answer) == 502
    assert error_of(answer) == "proxy_loop_detected"
    assert web.targets == ["/first"]
    assert len(web.connections) == 1


def test_row_19_another_proxys_name_is_none(client, web) -> None:
    """Row 19: other proxies, even those of our kind, are no loop."""
    lines = ["Via: 1.1 warmproxy-00000000, 1.1 warmproxy, 1.1 proxy.example:3128"]
    assert status_of(client.ask(request("GET", f"{web.url}/", *lines))) == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_row_19_our_own_address_is_a_loop(proxy, connect, host, method) -> None:
    """Row 19: no request and no tunnel goes to one of our own listeners."""
    for port in (proxy.port, proxy.admin_port):
        authority = f"{host}:{port}"
        target = authority if method == "CONNECT" else f"http://{authority}/"
        answer = connect().ask(request(method, target))
        assert status_of(answer) == 502
        assert error_of(answer) == "proxy_loop_detected"


# -- version, Date, credentials ---------------------------------------------------------------


def test_row_20_we_send_our_own_version(connect, web) -> None:
    """Row 20: HTTP/1.1 goes out both ways, whatever came in."""
    for client_version in ("1.0", "1.1"):
        for origin_version in (b"HTTP/1.0", b"HTTP/1.1"):
            web.answer = OK.replace(b"HTTP/1.1", origin_version)
            answer = connect().ask(request("GET", f"{web.url}/", version=client_version))
            assert answer.line == b"HTTP/1.1 200 OK"
            assert web.received[-1].line == b"GET / HTTP/1.1"


def test_row_20_a_version_that_is_not_ours_is_not_passed_on(proxy, web) -> None:
    """Row 20: HTTP/2.0 in a request line is refused."""
    refused(proxy, web, request("GET", f"{web.url}/bad", version="2.0"), 505)


@pytest.mark.parametrize("status", [b"200 OK", b"304 Not Modified", b"503 Busy"])
def test_row_21_date_is_added_where_it_is_missing(client, origin, status) -> None:
    """Row 21: a response without Date gets the time at which it came."""
    web = origin(OK.replace(b"200 OK", status).replace(b"2\r\n\r\nok", b"0\r\n\r\n"))
    (date,) = client.ask(request("GET", f"{web.url}/")).values("date")
    assert re.fullmatch(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
    assert abs(parsedate_to_datetime(date.decode()).timestamp() - time()) < 5


def test_row_21_a_date_that_is_there_stays(client, origin) -> None:
    """Row 21: the origin's Date is not touched."""
    web = origin(with_fields(b"Date: Sun, 06 Nov 1994 08:49:37 GMT"))
    answer = client.ask(request("GET", f"{web.url}/"))
    assert answer.values("date") == [b"Sun, 06 Nov 1994 08:49:37 GMT"]


def test_row_22_proxy_authorization_is_for_us(daemon, tmp_path, web) -> None:
    """Row 22: a 407 says what is asked for, and the credentials go no further."""
    credentials = tmp_path / "credentials"
    credentials.write_text("user:secret\n")
    credentials.chmod(0o600)
    proxy = daemon(credentials_file=str(credentials))
    for line in ("X: 1", "Proxy-Authorization: Basic dXNlcjp3cm9uZw=="):
        with Client(proxy) as client:
            for method, target in (("GET", f"{web.url}/"), ("CONNECT", web.authority)):
                answer = client.ask(request(method, target, line))
                assert status_of(answer) == 407
                assert answer.values("proxy-authenticate")[0].startswith(b"Basic realm=")
    assert web.connections == []
    right = "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ="
    with Client(proxy) as client:
        answer = client.ask(request("GET", f"{web.url}/", right, "Authorization: Basic YTpi"))
        assert status_of(answer) == 200
    (received,) = web.received
    assert received.values("proxy-authorization") == []
    assert received.values("authorization") == [b"Basic YTpi"]
