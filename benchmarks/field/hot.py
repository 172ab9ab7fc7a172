"""What runs for every request, without sockets: each entry makes a function to be called again."""

import re
import sys
from collections.abc import Callable
from itertools import count

from rig.daemon import ROOT

sys.path.insert(0, str(ROOT))

from warmproxy.observe import Observer
from warmproxy.origin import origin
from warmproxy.policy.access import Access
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.destinations import Destinations
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Fixed
from warmproxy.pool.origin_pool import OriginPool
from warmproxy.protocol.exchange import Exchange, Terms
from warmproxy.protocol.framing import Chunked
from warmproxy.protocol.headers import (
    judge_request,
    read_plain_response,
    request_tail,
    write_request,
)
from warmproxy.protocol.heads import parse_request_head
from warmproxy.protocol.memo import Answers
from warmproxy.settings import OriginSettings

Step = Callable[[], object]

VIA = b"warmproxy-abc"

REQUEST = (
    b"GET http://api.example.com:8080/v1/items?page=7 HTTP/1.1\r\n"
    b"Host: api.example.com:8080\r\n"
    b"User-Agent: python-requests/2.32.0\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Accept: */*\r\n"
    b"Connection: keep-alive\r\n"
    b"X-Request-Id: %08d\r\n\r\n"
)
ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx/1.22.1\r\n"
    b"Date: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
    b"Content-Type: application/json\r\n"
)
PLAIN = ANSWER_HEAD + b"Content-Length: 512\r\nConnection: keep-alive\r\n\r\n"
CHUNKS = b"400\r\n" + bytes(1024) + b"\r\n" + b"1000\r\n" + bytes(4096) + b"\r\n0\r\n\r\n"
CHUNKED = ANSWER_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def yardstick() -> Step:
    """Nothing of ours: by it, builds of Python are told apart."""
    pattern = re.compile(rb"([!-9;-~]+): ([^\r\n]*)\r\n")

    def step() -> int:
        fields = {name.lower(): value for name, value in pattern.findall(REQUEST)}
        return sum(len(name) + len(value) for name, value in sorted(fields.items()))

    return step


def _terms() -> Terms:
    destinations = Destinations(connect_ports=(), allow=(), deny=("169.254.0.0/16",), configured=())
    return Terms(
        access=Access((), {}),
        destinations=destinations,
        max_head=65536,
        max_buffer=65536,
        pseudonym=VIA,
        date=lambda: b"Sat, 21 Nov 2026 12:00:00 GMT",
    )


def _exchange(answer: bytes, *, new_fields: bool) -> Step:
    exchange, numbers = Exchange(_terms(), "127.0.0.1"), count()

    def step() -> None:
        exchange.client_data(REQUEST % (next(numbers) if new_fields else 0))
        exchange.leased(True)
        exchange.upstream_data(answer)

    return step


def known_fields() -> Step:
    return _exchange(PLAIN + bytes(512), new_fields=False)


def new_fields() -> Step:
    return _exchange(PLAIN + bytes(512), new_fields=True)


def chunked_answer() -> Step:
    return _exchange(CHUNKED + CHUNKS, new_fields=False)


def request_head() -> Step:
    block = REQUEST % 0

    def step() -> bytes:
        head = parse_request_head(block)
        tail = request_tail(judge_request(head), VIA)
        return write_request(head.method, b"/v1/items?page=7", b"api.example.com:8080", tail)

    return step


def known_request() -> Step:
    """What it means is found in the memory."""
    terms = _terms()
    Exchange(terms, "127.0.0.1").client_data(REQUEST % 0)
    block = REQUEST % 0
    assert terms.requests.find(block) is not None
    return lambda: terms.requests.find(block)


def known_answer() -> Step:
    answers = Answers(VIA)
    return lambda: answers.read(PLAIN)


def plain_response() -> Step:
    return lambda: read_plain_response(PLAIN)


def chunked_framing() -> Step:
    return lambda: Chunked().feed(CHUNKS)


def pool() -> Step:
    """A hit and its end, on a pool of 50."""
    held: OriginPool[int, int] = OriginPool(
        origin("http", "api.example.com", 8080),
        OriginSettings(),
        Fixed(50),
        DialBudget(100.0, 100.0),
        Observer(),
        lambda: 0.5,
        0.0,
    )
    for number in range(50):
        held.dial_started(0.0)
        held.dial_succeeded(number, 0.01, 0.0)
    clock = count()

    def step() -> None:
        now = next(clock) / 1000
        taken = held.acquire(0, Prefer.USED, now, lambda conn: None)
        assert taken is not None
        held.release(taken, now + 0.0005)

    return step


HOT: dict[str, Callable[[], Step]] = {
    "yardstick": yardstick,
    "exchange, fields known": known_fields,
    "exchange, fields new": new_fields,
    "exchange, chunked answer": chunked_answer,
    "request head": request_head,
    "known request": known_request,
    "known answer": known_answer,
    "plain response": plain_response,
    "chunked framing": chunked_framing,
    "pool acquire and release": pool,
}
