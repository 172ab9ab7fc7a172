"""An Exchange between a client and upstreams whose events come in any order, and its judge.

A script is events, each ended by the byte FE: a letter, and for `c` and `u` the bytes that the
client or the upstream sends.

| letter  | event                                                                          |
|---------|--------------------------------------------------------------------------------|
| c, u    | bytes of the client, of the upstream                                           |
| l, L, K | a connection: fresh, used, used and the upstream honours Idempotency-Key       |
| x       | no connection                                                                  |
| e, a    | the client half-closes, is gone                                                |
| n, r    | the upstream closes, resets                                                    |
| t, s, h | time is over: for a response, for anything to move, for a head                 |
| d       | the daemon stops                                                               |

Events that could not happen just then are skipped. What was written to each side is read again
by readers that are not warmproxy's (`readers`, h11, llhttp): towards the upstream one request, the
client's, and nothing else; towards the client one response for each request, in order, and what
was cut is seen to be cut.
"""

from dataclasses import dataclass, field

import h11

from tests.fuzz import readers
from tests.fuzz.readers import Incomplete, Message, Refused
from tests.fuzz.terms import terms
from warmproxy.errors import DialRefused
from warmproxy.protocol.exchange import Exchange, State
from warmproxy.protocol.messages import (
    Acquire,
    Action,
    Answered,
    Cancel,
    Close,
    CloseClient,
    Release,
    Splice,
    ToClient,
    ToUpstream,
)

try:
    import httptools
except ImportError:
    httptools = None

END = b"\xfe"
MAX_HEAD = 1024
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


@dataclass
class Lease:
    """A connection while it serves one request."""

    request: int
    """the how manieth of the client's it is"""
    used: bool
    honours_key: bool
    written: bytes = b""
    received: bytes = b""
    ended: str | None = None
    released: bool | None = None
    client_from: int = 0
    """how much the client had got before"""


@dataclass
class Judge:
    """Carries out what the exchange says, and holds it to its rules."""

    exchange: Exchange
    sent: bytes = b""
    """by the client"""
    got: bytes = b""
    """by the client"""
    waits: bool = False
    lease: Lease | None = None
    leases: list[Lease] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    """the status of each answer"""
    ours: list[bool] = field(default_factory=list)
    """whether it was our own"""
    methods: list[bytes] = field(default_factory=list)
    closed: Close | None = None
    tunnel: bool = False

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.closed is None, "something happens after the end"
            assert not self.tunnel, "something happens after the tunnel"
            match action:
                case Acquire():
                    assert self.lease is None
                    assert not self.waits, "a second connection is asked for"
                    self.waits = True
                case Cancel():
                    self.waits = False
                case ToUpstream():
                    assert self.lease is not None, "written to nobody"
                    self.lease.written += action.data
                case Release():
                    assert self.lease is not None, "released what it had not"
                    self.lease.released = action.reusable
                    self.lease = None
                case ToClient():
                    self.got += action.data
                case Answered():
                    self.answered.append(action.status)
                    self.ours.append(action.error is not None)
                    self.methods.append(action.method)
                case Splice():
                    self.tunnel = True
                case CloseClient():
                    assert not self.waits
                    assert self.lease is None
                    self.closed = action.how

    # what the client has asked for, as another reader sees it

    def request(self, number: int) -> Message:
        """The client's request of that number: its head is complete, or the test fails."""
        found, start = [], 0
        while len(found) <= number:
            try:
                message = readers.request(self.sent, start, MAX_HEAD)
            except (Incomplete, Refused) as error:
                raise AssertionError(f"request {number} was never made: {error!r}") from None
            found.append(message)
            if message.end is None and len(found) <= number:
                raise AssertionError(f"request {number} is part of the body before it")
            start = message.end or 0
        return found[number]


def drive(script: bytes) -> Judge:
    """Raises AssertionError where a rule is broken; whatever else is raised is a crash."""
    exchange = Exchange(terms(MAX_HEAD, max_buffer=4096), "127.0.0.1")
    judge = Judge(exchange)
    for event in script.split(END)[:60]:
        if judge.tunnel:
            break
        letter, data = event[:1], event[1:]
        actions = _happen(judge, letter, data)
        if actions is not None:
            judge.carry_out(actions)
    _check_upstream(judge)
    _check_client(judge)
    return judge


def _happen(judge: Judge, letter: bytes, data: bytes) -> list[Action] | None:
    exchange = judge.exchange
    open_ = judge.closed is None and exchange.state is not State.CLOSED
    lease = judge.lease
    if letter == b"c" and data and open_ and not exchange.client_ended:
        if not exchange.wants_data:
            return None
        judge.sent += data
        return exchange.client_data(data)
    if letter == b"u" and data and lease is not None:
        lease.received += data
        return exchange.upstream_data(data)
    if letter in (b"l", b"L", b"K") and judge.waits:
        judge.waits = False
        lease = Lease(len(judge.answered), letter != b"l", letter == b"K")
        lease.client_from = len(judge.got)
        judge.leases.append(lease)
        judge.lease = lease
        return exchange.leased(lease.used, lease.honours_key)
    if letter == b"x" and judge.waits:
        judge.waits = False
        return exchange.lease_failed(DialRefused("h:80 refused the connection"))
    if letter == b"e" and not exchange.client_ended:
        return exchange.client_eof()
    if letter == b"a":
        actions = exchange.client_lost()
        judge.carry_out(actions)
        judge.closed = judge.closed or Close.ABORT
        return None
    if letter in (b"n", b"r") and lease is not None:
        lease.ended = letter.decode()
        return exchange.upstream_ended(reset=letter == b"r")
    if letter == b"t":
        return exchange.response_timed_out()
    if letter == b"s":
        return exchange.stalled()
    if letter == b"h":
        return exchange.head_timed_out()
    if letter == b"d" and open_:
        return exchange.drain()
    return None


# ── what the upstreams got ───────────────────────────────────────────────────────────────────


def _check_upstream(judge: Judge) -> None:
    times: dict[int, list[Lease]] = {}
    for lease in judge.leases:
        earlier = times.setdefault(lease.request, [])
        request = judge.request(lease.request)
        if request.head.first[0] == b"CONNECT":
            assert not lease.written, "a tunnel's bytes are not the exchange's"
            continue
        _check_repeated(request, earlier)
        earlier.append(lease)
        _check_written(lease, request)


def _check_repeated(request: Message, earlier: list[Lease]) -> None:
    """RFC 9110, 9.2.2."""
    if not earlier:
        return
    assert len(earlier) == 1, "a third try"
    before = earlier[0]
    named = before.honours_key and bool(request.head.all(b"idempotency-key"))
    assert request.head.first[0] in IDEMPOTENT or named, "not idempotent, and sent twice"
    assert before.used, "a fresh connection died"
    assert not before.received, "sent again after it was answered"


def _check_written(lease: Lease, request: Message) -> None:
    head = request.head
    method, target = head.first
    place = readers.target(method, target)
    again = readers.request(lease.written, 0, 2 * MAX_HEAD + 200)
    assert again.head.first == (method, place.path), "another request line"
    assert again.head.version == b"1.1"
    assert again.head.all(b"host") == [place.authority], "another Host"
    assert again.framing == request.framing, "another framing"
    assert not again.broken
    whole = again.end is not None
    if whole:
        assert again.end == len(lease.written), "more than one request"
        assert request.end is not None, "a part was made a whole"
        assert again.body == request.body
    else:
        assert request.body.startswith(again.body)
    if lease.released:
        assert whole, "reused after a part of a request"
    also = {b"host", b"content-length", b"via", b"proxy-authorization"}
    hops = {b"max-forwards"} if method in (b"TRACE", b"OPTIONS") else set()
    expected = head.passed_on(also | hops)
    assert again.head.passed_on({b"host", b"content-length", b"via", *hops}) == expected
    assert again.head.members(b"via")[-1:] == [head.version + b" us"]
    extensions = b";" in lease.written.partition(b"\r\n\r\n")[2]
    try:
        _check_h11(lease.written, again)
    except h11.RemoteProtocolError:
        assert extensions, "h11 refuses what was forwarded"
    if httptools is not None:
        _check_llhttp(lease.written, again, extensions)


def _check_h11(written: bytes, message: Message) -> None:
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(written)
    event = reader.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == message.head.first, "h11's request line"
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += bytes(event.data)
    assert body == message.body, "h11's body"
    assert isinstance(event, h11.EndOfMessage) == (message.end is not None), "h11's end"
    assert reader.trailing_data[0] == b"", "h11 sees something behind it"


def _check_llhttp(written: bytes, message: Message, extensions: bool) -> None:
    seen = _Llhttp()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(written)
    except httptools.HttpParserUpgrade:
        return
    except httptools.HttpParserError as error:
        known = message.head.first[0] in IDEMPOTENT | {b"POST"}
        plain = message.head.first[1] in (b"/", b"/a", b"*")
        if known and plain and not extensions:
            raise AssertionError(f"llhttp refuses what was forwarded: {error}") from None
        return
    assert (parser.get_method(), seen.url) == message.head.first
    assert seen.body == message.body, "llhttp's body"
    assert seen.messages == (message.end is not None), "llhttp's end"


class _Llhttp:
    def __init__(self) -> None:
        self.url = b""
        self.body = b""
        self.messages = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.messages += 1


# ── what the client got ──────────────────────────────────────────────────────────────────────


def _check_client(judge: Judge) -> None:
    """One final response for each answer, in order; more only as the beginning of one."""
    at = 0
    number = 0
    got = judge.got
    while at < len(got):
        # a head that answers nothing that was read has no method that matters
        method = _method(judge, number)
        message = readers.response(got, at, 4 * MAX_HEAD, method)
        assert not message.broken, "the client's response breaks its framing"
        status = int(message.head.first[0])
        if status == 101 or (method == b"CONNECT" and status < 300):
            assert judge.tunnel
            assert judge.answered[number:] == [status]
            return
        if status < 200:
            assert message.end is not None
            at = message.end
            continue
        if number < len(judge.answered):
            assert status == judge.answered[number], "answers out of order"
        _check_response(judge, number, message, at)
        number += 1
        if message.end is None:
            break
        at = message.end
    assert number >= len(judge.answered), "an answer was lost"
    assert number <= len(judge.answered) + 1


def _method(judge: Judge, number: int) -> bytes:
    if number < len(judge.methods):
        return judge.methods[number]
    try:
        return judge.request(number).head.first[0]
    except AssertionError:
        return b"GET"


def _check_response(judge: Judge, number: int, message: Message, at: int) -> None:
    own = any(each.startswith(b"warmproxy; error=") for each in message.head.all(b"proxy-status"))
    if number < len(judge.answered) and judge.ours[number]:
        assert own, "our own answer says so"
        assert message.end is not None, "our own answer is whole"
        return
    leases = [each for each in judge.leases if each.request == number]
    if not leases:
        # TRACE and OPTIONS may end here
        assert message.end is not None
        assert judge.request(number).head.all(b"max-forwards")
        return
    lease = leases[-1]
    upstream, whole = _final(lease, _method(judge, number))
    assert upstream is not None, "an answer nobody gave"
    assert upstream.head.first == message.head.first
    assert upstream.body.startswith(message.body), "another body"
    if message.framing == "close" and judge.closed in (Close.FLUSH, Close.LINGER):
        assert whole, "a cut response that looks whole"
        assert message.body == upstream.body
    if message.end is not None:
        assert whole, "a cut response made whole"
        assert message.body == upstream.body
    if lease.released:
        assert whole
        assert upstream.end == len(lease.received), "reused with bytes left over"
        assert b"close" not in upstream.head.members(b"connection")


def _final(lease: Lease, method: bytes) -> tuple[Message | None, bool]:
    """The final response that an upstream gave, and whether it is complete."""
    at = 0
    while True:
        try:
            message = readers.response(lease.received, at, MAX_HEAD, method)
        except (Incomplete, Refused):
            return None, False
        if int(message.head.first[0]) >= 200:
            if message.framing == "close":
                return message, lease.ended == "n"
            return message, message.end is not None
        assert message.end is not None
        at = message.end
