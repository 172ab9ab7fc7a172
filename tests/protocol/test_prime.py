"""A request of our own, and what its answer says of the connection."""

import pytest

from warmproxy import __version__
from warmproxy.origin import origin_of_url, secured
from warmproxy.protocol.prime import PrimeAnswer, prime_request, write_prime


def read(answer: bytes, method: bytes = b"HEAD") -> PrimeAnswer:
    found = PrimeAnswer(method, 8192)
    found.feed(answer)
    return found


def test_what_is_sent_names_host_and_sender_and_nobody_it_is_forwarded_for() -> None:
    head = prime_request("HEAD /healthz?deep=1", origin_of_url("http://Example.com:8080"))
    assert write_prime(head) == (
        b"HEAD /healthz?deep=1 HTTP/1.1\r\n"
        b"Host: example.com:8080\r\n"
        b"User-Agent: warmproxy/" + __version__.encode() + b"\r\n"
        b"Accept: */*\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.test", b"a.test"),
        ("http://a.test:443", b"a.test:443"),
        ("https://a.test", b"a.test"),
        ("https://a.test:80", b"a.test:80"),
        ("http://[::1]:8080", b"[::1]:8080"),
    ],
)
def test_the_default_port_is_left_out_of_host(url: str, host: bytes) -> None:
    place = origin_of_url(url)
    if place.scheme == "tcp":
        place = secured(place, "1.2")
    assert dict(prime_request("OPTIONS *", place).fields)[b"Host"] == host


@pytest.mark.parametrize(
    ("method", "answer", "result"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "2xx"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", "2xx"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", "2xx"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", "3xx"),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "2xx"),
        (
            b"GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
            "2xx",
        ),
        (
            b"GET",
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
            "2xx",
        ),
        (b"GET", b"HTTP/1.1 429 Slow Down\r\nContent-Length: 0\r\n\r\n", "4xx"),
        (b"HEAD", b"HTTP/1.1 503 Busy\r\n\r\n", "5xx"),
        (b"HEAD", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", "2xx"),
    ],
)
def test_a_connection_survives_a_whole_answer_whatever_it_says(
    method: bytes, answer: bytes, result: str
) -> None:
    """Also where it comes byte by byte; before its last byte nothing is decided."""
    found = read(answer, method)
    assert (found.result, found.survived, found.why) == (result, True, "")
    slow = PrimeAnswer(method, 8192)
    for at in range(len(answer)):
        assert slow.result == ""
        slow.feed(answer[at : at + 1])
    assert slow.result == result


@pytest.mark.parametrize(
    ("method", "answer", "result"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "close"),
        (b"HEAD", b"HTTP/1.0 200 OK\r\n\r\n", "close"),
        (b"GET", b"HTTP/1.1 200 OK\r\n\r\n", "close"),
        (b"HEAD", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "close"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\nbody", "invalid"),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "invalid"),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "invalid"),
        (b"HEAD", b"SSH-2.0-OpenSSH\r\n\r\n", "invalid"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nA: " + b"a" * 8192, "invalid"),
    ],
)
def test_what_ends_a_connection_is_told_apart(method: bytes, answer: bytes, result: str) -> None:
    found = read(answer, method)
    assert (found.result, found.survived) == (result, False)
    assert found.why


def test_an_end_and_a_silence_have_their_own_names() -> None:
    cut = read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", b"GET")
    assert cut.result == ""
    cut.ended()
    assert (cut.result, cut.survived) == ("ended", False)
    silent = read(b"HTTP/1.1 200")
    silent.timed_out(5.0)
    assert silent.result == "timeout"
    assert "5 s" in silent.why


def test_how_long_it_is_kept_idle_is_read_from_the_answer() -> None:
    assert read(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\n\r\n").keep_alive_timeout == 5.0
    assert read(b"HTTP/1.1 200 OK\r\n\r\n").keep_alive_timeout is None
