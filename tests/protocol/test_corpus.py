"""Every case of the corpus through a whole Exchange: in one piece, cut at each offset, in bytes.

What the cases mean is written at the top of tests/fuzz/corpus.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import pytest

from tests.fuzz.corpus import Case, corpus
from tests.fuzz.terms import terms
from warmproxy.protocol.exchange import Exchange, State, Terms
from warmproxy.protocol.messages import (
    Acquire,
    Action,
    Answered,
    Close,
    CloseClient,
    Release,
    Splice,
    ToClient,
    ToUpstream,
)

CASES = corpus()
REQUESTS = [case for case in CASES if case.side.startswith("request")]
RESPONSES = [case for case in CASES if case.side.startswith("response")]
OK = b"HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: 0\r\n\r\n"

MOST_CUTS = 700
"""Longer streams are cut at each offset near both ends, and at some in between."""


@dataclass
class Outcome:
    """What an exchange made its driver do."""

    exchange: Exchange
    asked: list[str] = field(default_factory=list)
    """where connections were wanted to"""
    upstream: list[bytes] = field(default_factory=list)
    """what was written to each of them"""
    client: bytes = b""
    statuses: list[int] = field(default_factory=list)
    released: list[bool] = field(default_factory=list)
    spliced: bytes | None = None
    closed: Close | None = None
    early: int = 0
    """bytes that went to an upstream nobody had leased"""
    leased: bool = False
    actions: int = 0

    def do(self, actions: list[Action]) -> None:
        self.actions += len(actions)
        for action in actions:
            assert self.closed is None, "nothing comes after the end of the connection"
            match action:
                case Acquire():
                    self.asked.append(str(action.origin))
                case ToUpstream():
                    assert self.leased, "written to an upstream without a lease"
                    self.upstream[-1] += action.data
                case ToClient():
                    self.client += action.data
                case Answered():
                    self.statuses.append(action.status)
                case Release():
                    self.leased = False
                    self.released.append(action.reusable)
                case Splice():
                    self.spliced = action.to_upstream
                    self.client += action.to_client
                case CloseClient():
                    self.closed = action.how

    def serve(self) -> None:
        """Give what is waited for: connections, and an answer to each whole request."""
        while self.closed is None:
            if self.exchange.state is State.CONNECTING:
                self.leased = True
                self.upstream.append(b"")
                self.do(self.exchange.leased(was_used=False))
            elif self.exchange.awaits_response:
                self.do(self.exchange.upstream_data(OK))
            else:
                return


def cuts(stream: bytes) -> Iterator[list[bytes]]:
    """The stream in one piece, in two for each offset, and byte by byte."""
    yield [stream]
    size = len(stream)
    middle = range(0)
    ends = range(1, size)
    if size > MOST_CUTS:
        ends = range(1, MOST_CUTS // 2)
        middle = range(MOST_CUTS // 2, size - MOST_CUTS // 2, 397)
    for at in ends:
        yield [stream[:at], stream[at:]]
    for at in middle:
        yield [stream[:at], stream[at:]]
    if size > MOST_CUTS:
        for at in range(size - MOST_CUTS // 2, size):
            yield [stream[:at], stream[at:]]
    yield [stream[at : at + 1] for at in range(size)]


def sent(pieces: list[bytes], at_once: bool, under: Terms | None = None) -> Outcome:
    """What comes of a client's bytes. `at_once`: connections are there as soon as they are asked
    for, and not only when all was sent."""
    outcome = Outcome(Exchange(under or terms(), "127.0.0.1"))
    for piece in pieces:
        outcome.do(outcome.exchange.client_data(piece))
        if at_once:
            outcome.serve()
    outcome.serve()
    return outcome


def whole_request(data: bytes) -> bool:
    """Whether another reader takes what an upstream got for a complete request."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(data)
    while (event := reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        if isinstance(event, h11.EndOfMessage):
            return True
    return False


def check_refused(outcome: Outcome, status: int) -> None:
    """The last answer is ours, says so, and ends the connection."""
    assert outcome.statuses[-1] == status
    head = outcome.client[outcome.client.rindex(b"HTTP/1.1 %d " % status) :]
    assert b"\r\nProxy-Status: warmproxy; error=http_request_error; " in head
    assert b"\r\nConnection: close\r\n" in head
    assert outcome.client.count(b"Proxy-Status: warmproxy;") == 1
    assert outcome.exchange.state is State.CLOSED
    assert outcome.closed is Close.LINGER, "an answer must not be lost to a reset"
    assert outcome.exchange.client_data(b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n") == []


@pytest.mark.parametrize("case", REQUESTS, ids=str)
def test_requests(case: Case) -> None:
    """Refused with the right status, the connection closed and nothing forwarded; or forwarded as
    written, the whole and nothing but; the same for each cut, and whenever the upstream is there
    (rows 1 to 17, 20, 23 to 27, 29, 30, 33, 38, 41, 42, 51 and 52: each case names its own)."""
    for pieces in cuts(case.sent):
        for at_once in (False, True):
            outcome = sent(pieces, at_once)
            if case.waits:
                assert outcome.actions == 0
                assert outcome.exchange.client_eof() == [CloseClient(Close.FLUSH)]
            elif case.tunnel:
                # what comes once the tunnel is there is no more the exchange's to pass on
                origin, early = case.expected
                assert outcome.asked == [origin.decode()]
                assert outcome.upstream == [b""]
                assert outcome.exchange.state is State.TUNNEL
                assert outcome.client.startswith(b"HTTP/1.1 200 ")
                assert outcome.spliced is not None
                assert early.startswith(outcome.spliced)
                assert at_once or outcome.spliced == early
            elif case.status is None:
                assert outcome.upstream == list(case.expected)
                assert outcome.asked == [case.to or "http://h:80"] * len(case.expected)
                assert set(outcome.statuses) <= {200}
            elif case.side == "request-body":
                check_refused(outcome, case.status)
                if at_once:
                    assert not any(map(whole_request, outcome.upstream))
                else:
                    assert outcome.upstream == []
                assert True not in outcome.released
            else:
                check_refused(outcome, case.status)
                assert outcome.upstream == list(case.expected), "nothing of it was forwarded"
                assert len(outcome.asked) == len(case.expected), "not even a connection asked for"


@pytest.mark.parametrize("case", REQUESTS, ids=str)
def test_requests_that_come_again(case: Case) -> None:
    """A request that is remembered has the fate that it had the first time."""
    under = terms()
    first, again = (vars(sent([case.sent], True, under)) for _ in range(2))
    del first["exchange"], again["exchange"]
    assert first == again


def answered(case: Case, pieces: list[bytes]) -> Outcome:
    """What comes of an upstream's bytes."""
    outcome = Outcome(Exchange(terms(), "127.0.0.1"))
    outcome.do(outcome.exchange.client_data(case.request))
    outcome.leased = True
    outcome.upstream.append(b"")
    outcome.do(outcome.exchange.leased(was_used=False))
    for piece in pieces:
        outcome.do(outcome.exchange.upstream_data(piece))
    if case.end is not None:
        outcome.do(outcome.exchange.upstream_ended(reset=case.end == "reset"))
    return outcome


def whole_response(case: Case, data: bytes) -> bool:
    """Whether another reader, that saw the connection end, takes it for a complete response."""
    reader = h11.Connection(h11.CLIENT)
    method = case.request.partition(b" ")[0]
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(data)
    reader.receive_data(b"")
    try:
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA
    except h11.RemoteProtocolError:
        return False
    return True


def own_answer(case: Case, outcome: Outcome, status: int) -> bool:
    """Whether the client got `first` and an answer of ours, and nothing else."""
    if not outcome.client.startswith(case.first + b"HTTP/1.1 %d " % status):
        return False
    answer = outcome.client[len(case.first) :]
    head, _, body = answer.partition(b"\r\n\r\n")
    if case.request.startswith(b"HEAD "):
        assert not body
    else:
        assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert b"\r\nProxy-Status: warmproxy; error=" in head
    assert outcome.statuses == [status]
    return True


@pytest.mark.parametrize("case", RESPONSES, ids=str)
def test_responses(case: Case) -> None:
    """Broken ones are a 502 or are seen to be cut, and their connection is discarded; good ones
    go on as written, and only clean connections are used again; the same for each cut (rows 7 to
    11, 13, 16, 18, 20, 21, 23 to 31, 33, 38, 39, 41, 49 and 51: each case names its own)."""
    for pieces in cuts(case.sent):
        outcome = answered(case, pieces)
        if case.status is not None:
            assert own_answer(case, outcome, case.status), outcome.client
            assert outcome.released == [False]
        elif case.broken:
            assert outcome.released == [False]
            if not own_answer(case, outcome, 502):
                assert outcome.closed in (Close.FLUSH, Close.ABORT)
                assert not whole_response(case, outcome.client)
        elif case.tunnel:
            assert outcome.exchange.state is State.TUNNEL
            assert len(pieces) > 1 or outcome.client == case.expected[0]
            assert case.expected[0].startswith(outcome.client)
        else:
            assert outcome.client == case.expected[0]
            if case.cut:
                assert not whole_response(case, outcome.client)
            close = None if case.close is None else Close(case.close)
            assert outcome.closed is close
            if case.surplus and len(pieces) > 1:
                # who holds idle connections has to notice what comes later (row 34)
                assert len(outcome.released) == 1
            else:
                assert outcome.released == [case.reused]


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    """At least 300 cases (there are more than 900), each with a rule and a name."""
    assert len(CASES) >= 900
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({(case.side, case.request, case.sent, case.end) for case in CASES}) == len(CASES)
    assert all("RFC" in case.why for case in CASES)
