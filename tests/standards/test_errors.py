"""Rows 57 to 59 of docs/standards.md: how errors are told."""

import pytest

from tests.e2e.harness import free_port
from tests.e2e.origins import Blackhole
from tests.standards.wire import OK, error_of, request, status_of

OTHERS = b"Proxy-Status: cdn.example; hit, edge; error=dns_timeout"
WITH_OTHERS = OK.replace(b"OK\r\n", b"OK\r\n" + OTHERS + b"\r\n")


# -- Proxy-Status -----------------------------------------------------------------------------


def test_row_57_members_of_others_stay(client, origin) -> None:
    """Row 57: what proxies behind us say goes on as it came; we add nothing to a plain answer."""
    web = origin(WITH_OTHERS)
    answer = client.ask(request("GET", f"{web.url}/"))
    assert b"\r\n" + OTHERS + b"\r\n" in answer.head
    assert len(answer.values("proxy-status")) == 1


def test_row_57_ours_comes_last_and_once(client, web) -> None:
    """Row 57: what we have to say of a forwarded answer is one more member, in the header."""

    def die_when_used(received) -> bool:
        if received.nth == 1:
            received.send(WITH_OTHERS)
        return received.nth > 1

    client.ask(request("GET", f"{web.url}/1"))
    web.answer = die_when_used
    retried = client.ask(request("GET", f"{web.url}/2"))
    assert retried.body == b"ok"
    assert web.targets == ["/1", "/2", "/2"]
    assert retried.members("proxy-status") == [
        b"cdn.example; hit",
        b"edge; error=dns_timeout",
        b"warmproxy; retried",
    ]


def test_row_57_not_in_a_trailer(client, origin) -> None:
    """Row 57: a body that breaks half-way gets no Proxy-Status behind it."""

    def answer(received) -> None:
        received.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        web.hold()
        received.send(b"zz\r\n")

    web = origin(answer)
    client.send(request("GET", f"{web.url}/"))
    client.head()
    assert client.reader.exactly(8) == b"3\r\nabc\r\n"
    web.gate.set()
    assert client.rest() == b""


def test_row_57_not_towards_the_origin(client, web) -> None:
    """Row 57: it is a response field: no request of ours has one."""
    client.ask(request("GET", f"{web.url}/"))
    assert b"proxy-status" not in web.received[0].names()


# -- error types ------------------------------------------------------------------------------


@pytest.fixture
def nobody() -> str:
    """A URL where nobody listens."""
    return f"http://127.0.0.1:{free_port()}/"


def told(client, target: str, status: int, error: str) -> None:
    """A GET of it ends with that status and error type."""
    answer = client.ask(request("GET", target))
    assert (status_of(answer), error_of(answer)) == (status, error)


def test_row_58_dns_error(client) -> None:
    """Row 58: a name that does not resolve."""
    told(client, "http://nosuch.invalid/", 502, "dns_error")


def test_row_58_connection_refused(client, nobody) -> None:
    """Row 58: a port where nobody listens."""
    told(client, nobody, 502, "connection_refused")


def test_row_58_connection_timeout(strict, connect) -> None:
    """Row 58: an address that does not answer."""
    hole = Blackhole()
    try:
        told(connect(strict), f"{hole.url}/", 504, "connection_timeout")
    finally:
        hole.close()


def test_row_58_connection_terminated(client, origin) -> None:
    """Row 58: an upstream that closes instead of answering."""
    told(client, f"{origin(lambda received: True).url}/", 502, "connection_terminated")


def test_row_58_http_response_timeout(strict, connect, origin) -> None:
    """Row 58: an upstream that takes the request and says nothing."""
    web = origin(lambda received: received.rest())
    told(connect(strict), f"{web.url}/", 504, "http_response_timeout")


def test_row_58_connection_limit_reached(strict, connect, origin) -> None:
    """Row 58: no connection within acquire_timeout, as all are in use."""
    web = origin(lambda received: received.rest())
    busy = connect(strict)
    busy.send(request("GET", f"{web.url}/1"))
    web.wait(1)
    told(connect(strict), f"{web.url}/2", 503, "connection_limit_reached")


def test_row_58_http_request_denied(strict, connect, nobody) -> None:
    """Row 58: what the rules of this proxy forbid."""
    answer = connect(strict).ask(request("CONNECT", nobody.split("/")[2]))
    assert (status_of(answer), error_of(answer)) == (403, "http_request_denied")


def test_row_58_destination_ip_prohibited(client) -> None:
    """Row 58: an address that is denied, as clouds' metadata services are."""
    answer = client.ask(request("GET", "http://169.254.169.254/"))
    assert error_of(answer) == "destination_ip_prohibited"


def test_row_58_http_protocol_error(client, origin) -> None:
    """Row 58: an answer that is no HTTP."""
    told(client, f"{origin(b'SSH-2.0-x').url}/", 502, "http_protocol_error")


def test_row_58_proxy_loop_detected(client, proxy) -> None:
    """Row 58: a request for ourselves."""
    told(client, f"{proxy.url}/", 502, "proxy_loop_detected")


# -- bodies -----------------------------------------------------------------------------------


def test_row_59_errors_explain_themselves(client, nobody) -> None:
    """Row 59: a 5xx has a text for people, of a type and a length."""
    answer = client.ask(request("GET", nobody))
    assert answer.values("content-type") == [b"text/plain; charset=utf-8"]
    assert answer.body.startswith(b"502 Bad Gateway: ")
    assert b"refused the connection" in answer.body


def test_row_59_but_not_to_head(client, nobody, web) -> None:
    """Row 59: the answer to HEAD has no body, and the connection goes on behind its head."""
    answer = client.ask(request("HEAD", nobody))
    assert status_of(answer) == 502
    assert int(answer.values("content-length")[0]) > 0
    assert client.ask(request("GET", f"{web.url}/")).body == b"ok"
