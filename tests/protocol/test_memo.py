"""Heads that come again, and the lane for plain answers: what they may not skip."""

import pytest

from tests.fuzz.terms import terms
from warmproxy.policy.access import Access
from warmproxy.protocol.exchange import Exchange, State
from warmproxy.protocol.headers import (
    judge_request,
    read_plain_response,
    request_tail,
    write_request,
)
from warmproxy.protocol.heads import parse_request_head
from warmproxy.protocol.memo import ENTRIES, LONGEST, REST, Answers, Requests
from warmproxy.protocol.messages import Acquire, ToClient, ToUpstream
from warmproxy.protocol.target import Forward, parse_target

HEAD = b"%b http://h/%b HTTP/1.1\r\nHost: h\r\n%b\r\n"


def keep(requests: Requests, block: bytes) -> bool:
    """Keep a request as an exchange does; whether it is found again."""
    head = parse_request_head(block)
    judged = judge_request(head)
    route = parse_target(head.method, head.target)
    assert isinstance(route, Forward)
    out = write_request(head.method, route.target, route.host, request_tail(judged, b"us"))
    requests.keep(block, head, judged, route, out)
    return requests.find(block) is not None


def test_only_the_path_may_differ():
    requests = Requests()
    assert keep(requests, HEAD % (b"GET", b"a", b"A: b\r\n"))
    found = requests.find(HEAD % (b"GET", b"other?x", b"A: b\r\n"))
    assert found is not None
    known, path = found
    assert known.start + path + known.end == (
        b"GET /other?x HTTP/1.1\r\nHost: h\r\nA: b\r\nVia: 1.1 us\r\n\r\n"
    )
    for other in (
        HEAD % (b"GET", b"a", b"A: B\r\n"),
        HEAD % (b"PUT", b"a", b"A: b\r\n"),
        HEAD.replace(b"//h", b"//i") % (b"GET", b"a", b"A: b\r\n"),
        HEAD.replace(b"1.1", b"1.0") % (b"GET", b"a", b"A: b\r\n"),
    ):
        assert requests.find(other) is None


@pytest.mark.parametrize(
    "block",
    [
        HEAD % (b"POST", b"a", b"Content-Length: 3\r\n"),
        HEAD % (b"POST", b"a", b"Content-Length: 0\r\n"),
        HEAD % (b"POST", b"a", b"Transfer-Encoding: chunked\r\n"),
        HEAD % (b"GET", b"a", b"A: %b\r\n" % (b"x" * LONGEST)),
        HEAD % (b"OPTIONS", b"a", b"Max-Forwards: 1\r\n"),
        HEAD % (b"TRACE", b"a", b"Max-Forwards: 1\r\n"),
        b"GET http://h/a HTTP/1.0\r\n\r\n",
        b"GET https://h/a HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_what_is_not_kept(block):
    assert not keep(Requests(), block)


def test_it_holds_no_more_than_its_bound():
    requests = Requests()
    for i in range(3 * ENTRIES):
        assert keep(requests, HEAD % (b"GET", b"a", b"A: %d\r\n" % i))
    assert len(requests._known) <= ENTRIES


def answer(date: bytes, fields: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nA: b\r\nDate: %b\r\n%bContent-Length: 1\r\n\r\n" % (date, fields)


def test_an_answer_that_comes_again_differs_in_its_date_only():
    """Each of them is what reading it alone gives, whatever was read before."""
    answers = Answers(b"us")
    blocks = [
        answer(date, fields)
        for fields in (b"", b"Server: s\r\n", b"Date: two\r\n", b"Keep-Alive: timeout=5\r\n")
        for date in (b"now", b"then", b"now")
    ]
    blocks.append(b"HTTP/1.1 200 OK\r\nDate: now\r\nA: b\r\nContent-Length: 1\r\n\r\n")
    for block in blocks:
        again = answers.read(block)
        assert again == Answers(b"us").read(block)
        assert again is not None
    assert len(answers._known) == 5


@pytest.mark.parametrize("date", [b" now", b"now ", b"n\0w", b"", b"n\nw", b"n\rw"])
def test_a_date_that_is_not_plain_is_not_passed_on(date):
    answers = Answers(b"us")
    assert answers.read(answer(b"now", b"")) is not None
    assert answers.read(answer(date, b"")) is None


def test_answers_that_do_not_come_again_are_not_kept_for_a_while():
    answers = Answers(b"us")
    read = [answers.read(answer(b"now", b"ETag: %d\r\n" % i)) for i in range(ENTRIES + 1)]
    assert all(read)
    assert len(answers._known) == 1
    for i in range(REST):
        assert answers.read(answer(b"now", b"ETag: %d\r\n" % (i % 2))) is not None
    assert len(answers._known) == 1
    answers.read(answer(b"now", b"ETag: x\r\n"))
    assert len(answers._known) == 2, "the time is over"


def test_credentials_that_were_refused_are_refused_again():
    under = terms(access=Access((), {"u": "p"}))
    for _ in range(2):
        exchange = Exchange(under, "127.0.0.1")
        actions = exchange.client_data(
            HEAD % (b"GET", b"a", b"Proxy-Authorization: Basic eA==\r\n")
        )
        assert isinstance(actions[0], ToClient)
        assert actions[0].data.startswith(b"HTTP/1.1 407 ")


def test_who_may_not_use_the_proxy_may_not_after_another_did():
    under = terms(access=Access(("127.0.0.1/32",), {}))
    request = HEAD % (b"GET", b"a", b"")
    assert isinstance(Exchange(under, "127.0.0.1").client_data(request)[0], Acquire)
    refused = Exchange(under, "10.0.0.1").client_data(request)
    assert isinstance(refused[0], ToClient)
    assert refused[0].data.startswith(b"HTTP/1.1 403 ")


def test_what_follows_a_known_head_is_the_next_request():
    under = terms()
    request = HEAD % (b"GET", b"a", b"")
    for _ in range(2):
        exchange = Exchange(under, "127.0.0.1")
        exchange.client_data(request + request)
        assert exchange.leased(False) == [
            ToUpstream(b"GET /a HTTP/1.1\r\nHost: h\r\nVia: 1.1 us\r\n\r\n")
        ]
        exchange.upstream_data(
            b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 0\r\nServer: s\r\n\r\n"
        )
        assert exchange.state is State.CONNECTING, "the second one has begun"


PLAIN = b"HTTP/1.1 200 OK\r\nDate: now\r\nA: b\r\n%b\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 1\r\nContent-Length: 1\r\n",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 1\r\nConnection: close\r\n",
        b"Content-Length: 1\r\nConnection: keep-alive, A\r\n",
        b"Content-Length: 1\r\nVia: 1.1 x\r\n",
        b"Content-Length: 1\r\nUpgrade: x\r\n",
        b"Connection: keep-alive\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 1\r\nWWW-Authenticate: NTLM\r\n",
        b"Content-Length:1\r\n",
        b"Content-Length: 1\r\nB:  c\r\n",
        b"Content-Length: 1\r\nB: c \r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"",
    ],
)
def test_answers_that_are_not_plain_take_the_whole_way(fields):
    assert read_plain_response(PLAIN % fields) is None


def test_answers_whose_body_depends_on_the_status_take_the_whole_way():
    plain = PLAIN % b"Content-Length: 1\r\n"
    assert read_plain_response(plain) is not None
    for start in (b"HTTP/1.1 204 ", b"HTTP/1.1 304 ", b"HTTP/1.1 100 ", b"HTTP/1.0 200 "):
        assert read_plain_response(start + plain[13:]) is None


def test_an_answer_to_head_has_no_body_whatever_came_before():
    """A HEAD after a GET with the same answer does not wait for its body."""
    under = terms()
    exchange = Exchange(under, "127.0.0.1")
    for method, body in ((b"GET", b"x"), (b"HEAD", b""), (b"GET", b"x")):
        exchange.client_data(HEAD % (method, b"a", b""))
        exchange.leased(False)
        exchange.upstream_data(answer(b"now", b"") + body)
        assert exchange.state is State.IDLE, method


def test_a_plain_answer_in_chunks():
    head = PLAIN % b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n"
    plain = read_plain_response(head)
    assert plain is not None
    assert (plain.length, plain.framing) == (None, b"Transfer-Encoding: chunked")
    assert plain.head == b"HTTP/1.1 200 OK\r\nDate: now\r\nA: b"
