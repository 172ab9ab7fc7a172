"""Answers of our own: what programs, proxies and people read in them."""

import h11
import pytest

from warmproxy.errors import (
    BadRequest,
    CredentialsRequired,
    LimitReached,
    NameNotFound,
    RequestDenied,
    WarmproxyError,
)
from warmproxy.protocol.heads import parse_response_head
from warmproxy.protocol.replies import CONNECTED, STATUS_REASONS, reply

NOW = b"Tue, 01 Jan 2030 00:00:00 GMT"


def split(answer: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    parsed = parse_response_head(head + b"\r\n\r\n")
    return head.split(b"\r\n")[0], dict(parsed.fields), body


def all_errors() -> list[type[WarmproxyError]]:
    found = [WarmproxyError]
    for error in found:
        found += error.__subclasses__()
    return [error for error in found if error.__module__ == "warmproxy.errors"]


def test_reply_in_full() -> None:
    """An answer is a whole response, not to be stored, with its error's name."""
    answer = reply(NameNotFound("no address for nowhere.test"), close=True, date=NOW)
    line, fields, body = split(answer)
    assert line == b"HTTP/1.1 502 Bad Gateway"
    assert fields == {
        b"Date": NOW,
        b"Content-Type": b"text/plain; charset=utf-8",
        b"Content-Length": b"%d" % len(body),
        b"Cache-Control": b"no-store",
        b"Proxy-Status": b'warmproxy; error=dns_error; details="no address for nowhere.test"',
        b"Connection": b"close",
    }
    assert body.startswith(b"502 Bad Gateway: no address for nowhere.test\n")


@pytest.mark.parametrize("error", all_errors())
def test_every_error_can_be_told(error: type[WarmproxyError]) -> None:
    """Rows 58 and 59: each error has a status with a reason phrase, its RFC 9209 name and a body,
    in a response that h11 reads to its end."""
    failure = error("why")
    answer = reply(failure, close=False, date=NOW)
    line, fields, body = split(answer)
    assert line == f"HTTP/1.1 {error.status} {STATUS_REASONS[error.status]}".encode()
    assert f"error={error.token};".encode() in fields[b"Proxy-Status"]
    assert b"why" in body
    assert b"Connection" not in fields
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    assert isinstance(client.next_event(), h11.Response)
    assert isinstance(client.next_event(), h11.Data)
    assert isinstance(client.next_event(), h11.EndOfMessage)
    assert client.trailing_data == (b"", False)


def test_answer_to_head_has_no_body() -> None:
    """Row 59: HEAD gets the same head and nothing behind it."""
    error = BadRequest("why")
    whole = reply(error, close=True, date=NOW)
    head = reply(error, close=True, head_only=True, date=NOW)
    assert head.endswith(b"\r\n\r\n")
    assert whole.startswith(head)
    assert len(whole) > len(head)


def test_407_asks_for_credentials() -> None:
    """Row 22: only a 407 carries Proxy-Authenticate."""
    _, fields, _ = split(reply(CredentialsRequired("who?"), close=False, date=NOW))
    assert fields[b"Proxy-Authenticate"] == b'Basic realm="warmproxy", charset="UTF-8"'
    _, fields, _ = split(reply(RequestDenied("no"), close=False, date=NOW))
    assert b"Proxy-Authenticate" not in fields


def test_503_says_when_to_try_again() -> None:
    """9110 10.2.3: a full pool is a matter of a second."""
    _, fields, _ = split(reply(LimitReached("full"), close=False, date=NOW))
    assert fields[b"Retry-After"] == b"1"
    _, fields, _ = split(reply(NameNotFound("no"), close=False, date=NOW))
    assert b"Retry-After" not in fields


def test_details_are_a_structured_string() -> None:
    """9209 2.1.4: details are ASCII, escaped, bounded, and cannot begin a field of their own."""
    reason = 'a "b" \\ c\r\nX: y \xe4\x7f'
    answer = reply(BadRequest(reason), close=False, date=NOW)
    _, fields, body = split(answer)
    assert fields[b"Proxy-Status"].endswith(rb'details="a \"b\" \\ c??X: y ??"')
    assert b"X" not in fields
    assert body.decode() == '400 Bad Request: a "b" \\ c  X: y \xe4 \n'
    _, fields, _ = split(reply(BadRequest("x" * 5000), close=False, date=NOW))
    assert len(fields[b"Proxy-Status"]) < 400


def test_parameters_of_proxy_status() -> None:
    """9209 2.1.2: the next hop is named where it is known; a second try is said."""
    answer = reply(NameNotFound("x"), close=False, date=NOW, retried=True, next_hop="10.0.0.1:80")
    _, fields, _ = split(answer)
    assert fields[b"Proxy-Status"] == (
        b'warmproxy; error=dns_error; next-hop="10.0.0.1:80"; retried; details="x"'
    )


def test_unknown_status_still_makes_a_reply() -> None:
    """An error with a status that has no phrase here is told all the same."""
    line, _, _ = split(reply(BadRequest("x", status=499), close=False, date=NOW))
    assert line == b"HTTP/1.1 499 Error"


def test_connected_has_no_framing() -> None:
    """Row 53: the answer to CONNECT carries neither length nor coding."""
    head = parse_response_head(CONNECTED)
    assert head.status == 200
    assert head.fields == []
