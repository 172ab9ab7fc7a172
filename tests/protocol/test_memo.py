"""Requests that come again, and the lane for plain answers: what they may not skip."""

import pytest

from tests.fuzz.terms import terms
from warmproxy.policy.access import Access
from warmproxy.protocol.exchange import Exchange, State
from warmproxy.protocol.headers import judge_request, read_plain_response
from warmproxy.protocol.heads import parse_request_head
from warmproxy.protocol.memo import ENTRIES, LONGEST, Memo
from warmproxy.protocol.messages import Acquire, ToClient, ToUpstream

HEAD = b"%b http://h/%b HTTP/1.1\r\nHost: h\r\n%b\r\n"


def keep(memo: Memo, block: bytes) -> bool:
    """Keep a request; whether it is found again."""
    head = parse_request_head(block)
    memo.keep(block, head, judge_request(head))
    return memo.find(block) is not None


def test_only_the_target_and_the_method_may_differ():
    memo = Memo(b"us")
    assert keep(memo, HEAD % (b"GET", b"a", b"A: b\r\n"))
    found = memo.find(HEAD % (b"DELETE", b"other?x", b"A: b\r\n"))
    assert found is not None
    head, route, _, tail = found
    assert (head.method, route.target, tail) == (
        b"DELETE",
        b"/other?x",
        b"A: b\r\nVia: 1.1 us\r\n\r\n",
    )
    assert memo.find(HEAD % (b"GET", b"a", b"A: B\r\n")) is None


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE", b"CONNECT"])
def test_methods_whose_fields_mean_something_else_are_judged_each_time(method):
    memo = Memo(b"us")
    assert keep(memo, HEAD % (b"GET", b"a", b"Max-Forwards: 0\r\n"))
    assert memo.find(HEAD % (method, b"a", b"Max-Forwards: 0\r\n")) is None


@pytest.mark.parametrize(
    "block",
    [
        HEAD % (b"POST", b"a", b"Content-Length: 3\r\n"),
        HEAD % (b"POST", b"a", b"Content-Length: 0\r\n"),
        HEAD % (b"POST", b"a", b"Transfer-Encoding: chunked\r\n"),
        HEAD % (b"GET", b"a", b"A: %b\r\n" % (b"x" * LONGEST)),
        b"GET http://h/a HTTP/1.0\r\n\r\n",
        b"GET https://h/a HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_what_is_not_kept(block):
    assert not keep(Memo(b"us"), block)


def test_it_holds_no_more_than_its_bound():
    memo = Memo(b"us")
    for i in range(3 * ENTRIES):
        assert keep(memo, HEAD % (b"GET", b"a", b"A: %d\r\n" % i))
    assert len(memo._known) <= ENTRIES


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
        b"Content-Length: 1\r\nWWW-Authenticate: NTLM\r\n",
        b"Content-Length:1\r\n",
        b"Content-Length: 1\r\nB:  c\r\n",
        b"Content-Length: 1\r\nB: c \r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"",
    ],
)
def test_answers_that_are_not_plain_take_the_whole_way(fields):
    assert read_plain_response(PLAIN % fields, b"GET") is None


def test_answers_whose_body_depends_on_the_request_or_status_take_the_whole_way():
    plain = PLAIN % b"Content-Length: 1\r\n"
    assert read_plain_response(plain, b"GET") is not None
    assert read_plain_response(plain, b"HEAD") is None
    for start in (b"HTTP/1.1 204 ", b"HTTP/1.1 304 ", b"HTTP/1.1 100 ", b"HTTP/1.0 200 "):
        assert read_plain_response(start + plain[13:], b"GET") is None
