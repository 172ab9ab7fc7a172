"""What both sides of the rig know: who plays which trick on which request, and what bytes belong
to which id. Everything follows from the seed; only the interleaving does not.
"""

import math
from dataclasses import dataclass
from random import Random

MAX_BUFFER = 65536
"""The daemon's setting: bodies above it cannot be replayed."""
INTERIM_LIMIT = 100
"""1xx responses that the daemon passes on for one request."""
IDEMPOTENT = frozenset(("GET", "PUT", "DELETE"))
RESTART = (0.2, 0.5)
"""Seconds for which a restarting origin does not listen."""


def body_of(number: int, size: int) -> bytes:
    """The only `size` bytes that may travel as a body, either way, under this id."""
    unit = b"%09d." % number
    return (unit * (size // len(unit) + 1))[:size]


def log_uniform(rng: Random, low: float, high: float) -> float:
    """Small values as likely as large ones, by order of magnitude."""
    return low * math.exp(rng.random() * math.log(high / low))


def _size(rng: Random) -> int:
    if rng.random() < 0.2:
        return 0
    return int(log_uniform(rng, 1, 150_000 if rng.random() < 0.1 else 20_000))


# ── the origin's part ────────────────────────────────────────────────────────────────────────

ENDS = ("fin", "close", "reset")
"""fin: half-close and go on reading; close: as a process that dies; reset: RST."""

TRICKS = {
    "none": 860,
    "swallow": 30,  # read and count the whole request, then end without an answer
    "drop": 10,  # end when the head is there, the body maybe not
    "cut": 25,  # end inside the response, at any byte
    "early": 25,  # answer before the body has ended
    "flood": 8,  # 1xx, sometimes more of them than anybody should take
    "interim": 5,  # 1xx, then the end
    "pause": 8,  # silence before or in the response, then it goes on
    "stall": 1,  # silence for ever
    "leave": 28,  # a complete response that says nothing about the end that follows it
}
CALM_TRICKS = {"none": 1}


@dataclass(frozen=True, slots=True)
class Part:
    """What the origin does with one try of one request."""

    trick: str
    end: str
    status: int
    size: int
    framing: str
    """length, chunked, or close"""
    delay: float
    cut: float
    """Where to end or pause: share of the response's bytes."""
    interims: int
    pieces: int
    after: float
    """Seconds between the last byte and the end."""


def part(seed: int, number: int, attempt: int, tricks: dict[str, int]) -> Part:
    """The part for the origin's `attempt`-th sight (from 0) of request `number`."""
    rng = Random((seed << 40) + number * 8 + attempt)
    trick = rng.choices(list(tricks), list(tricks.values()))[0]
    interims = 0
    if trick == "flood":
        interims = rng.choice((2, 10, INTERIM_LIMIT, INTERIM_LIMIT + 1, 400))
    elif trick == "interim" or rng.random() < 0.01:
        interims = rng.randint(1, 3)
    return Part(
        trick,
        rng.choice(ENDS),
        rng.choice((200, 200, 200, 201, 404)),
        _size(rng),
        rng.choices(("length", "chunked", "close"), (60, 37, 3))[0],
        log_uniform(rng, 0.001, 0.05) if rng.random() < 0.15 else 0.0,
        rng.random(),
        interims,
        rng.randint(2, 5) if rng.random() < 0.1 else 1,
        log_uniform(rng, 0.0005, 0.02) if rng.random() < 0.7 else 0.0005,
    )


def response_of(number: int, method: str, port: int, part: Part) -> bytes:
    """The whole response, as the origin means it."""
    body = body_of(number, part.size)
    lines = [f"HTTP/1.1 {part.status} So", f"X-Id: {number}", f"X-Size: {part.size}"]
    lines.append(f"X-Port: {port}")
    if part.framing == "length":
        lines.append(f"Content-Length: {part.size}")
    elif part.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        step = max(1, part.size // 3)
        chunks = [body[i : i + step] for i in range(0, len(body), step)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    else:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


# ── the clients' part ────────────────────────────────────────────────────────────────────────

MISCHIEF = {
    "none": 940,
    "vanish_body": 8,
    "vanish_sent": 8,
    "vanish_response": 8,
    "stall_body": 8,
    "stall_response": 8,
    "pieces": 14,
    "expect": 14,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as its client sends it."""

    number: int
    method: str
    origin: int
    """Which of the origins."""
    size: int
    chunked: bool
    mischief: str
    rude: bool
    """Who vanishes does so by RST."""
    pause: float

    @property
    def body(self) -> bytes:
        return body_of(self.number, self.size)

    def head(self, port: int, kind: str = "plain") -> bytes:
        """The head for a visit of that kind, in absolute-form outside tunnels."""
        authority = f"127.0.0.1:{port}"
        place = "" if kind == "tunnel" else f"http://{authority}"
        version = "1.0" if kind == "old" else "1.1"
        lines = [f"{self.method} {place}/c/{self.number} HTTP/{version}"]
        lines += [f"X-Id: {self.number}", f"Host: {authority}"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.size or self.method in ("POST", "PUT"):
            lines.append(f"Content-Length: {self.size}")
        if self.mischief == "expect":
            lines.append("Expect: 100-continue")
        return "\r\n".join([*lines, "", ""]).encode()

    def wire_body(self) -> bytes:
        """The body as it is framed."""
        body = self.body
        if not self.chunked:
            return body
        step = max(1, self.size // 2)
        chunks = [body[i : i + step] for i in range(0, len(body), step)]
        return b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Visit:
    """One client connection: `plain` requests in turn, `pipelined` all at once, `old` (one GET in
    HTTP/1.0) or `tunnel` (one request through CONNECT)."""

    kind: str
    asks: list[Ask]


def visit(seed: int, first: int, most: int, origins: int) -> Visit:
    """The visit whose first request is number `first`; it asks `most` times at most."""
    rng = Random((seed << 40) + (1 << 39) + first)
    kind = rng.choices(("plain", "pipelined", "old", "tunnel"), (72, 20, 5, 3))[0]
    count = 1
    if kind == "plain" and rng.random() < 0.8:
        count = rng.randint(2, 40)
    elif kind == "pipelined":
        count = rng.randint(2, 7)
    asks = []
    target = rng.randrange(origins)
    for number in range(first, first + min(count, most)):
        if rng.random() < 0.2:
            target = rng.randrange(origins)
        method = rng.choices(("GET", "PUT", "DELETE", "POST"), (42, 15, 8, 35))[0]
        if kind == "old":
            method = "GET"
        has_body = method in ("POST", "PUT") or (method == "DELETE" and rng.random() < 0.1)
        size = _size(rng) if has_body else 0
        mischief = rng.choices(list(MISCHIEF), list(MISCHIEF.values()))[0]
        if kind != "plain" or (mischief in _NEEDS_BODY and size < 2):
            mischief = "none"
        asks.append(
            Ask(
                number,
                method,
                target,
                size,
                size > 0 and rng.random() < 0.4,
                mischief,
                rng.random() < 0.5,
                log_uniform(rng, 0.005, 0.4),
            )
        )
    return Visit(kind, asks)


_NEEDS_BODY = frozenset(("vanish_body", "stall_body", "pieces", "expect"))
