"""The table of exchange.py, driven by bytes: what each event makes the driver do."""

import pytest

from warmproxy.errors import DialRefused
from warmproxy.origin import origin
from warmproxy.policy.access import Access
from warmproxy.policy.destinations import Destinations
from warmproxy.policy.retry import Prefer
from warmproxy.protocol.exchange import Exchange, State, Terms
from warmproxy.protocol.messages import (
    Acquire,
    Answered,
    Cancel,
    Close,
    CloseClient,
    Release,
    Retried,
    Splice,
    ToClient,
    ToUpstream,
)

HTTP = origin("http", "h", 80)
GET = b"GET http://h/p HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST http://h/p HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
CONNECT = b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 2\r\n\r\nok"


def make(max_buffer=64, credentials=None) -> Exchange:
    terms = Terms(
        access=Access((), credentials or {}),
        destinations=Destinations(connect_ports=(), allow=(), deny=(), configured=()),
        max_head=8192,
        max_buffer=max_buffer,
        pseudonym=b"us",
        date=lambda: b"Sat, 21 Nov 2026 09:00:00 GMT",
    )
    return Exchange(terms, "127.0.0.1")


def kinds(actions) -> list[type]:
    return [type(a) for a in actions]


def to_client(actions) -> bytes:
    return b"".join(a.data for a in actions if isinstance(a, ToClient))


def to_upstream(actions) -> bytes:
    return b"".join(a.data for a in actions if isinstance(a, ToUpstream))


def forwarding(request=GET, *, was_used=False, **terms) -> Exchange:
    exchange = make(**terms)
    exchange.client_data(request)
    exchange.leased(was_used)
    assert exchange.state is State.FORWARDING
    return exchange


def test_a_request_asks_for_a_connection_and_goes_out_in_one_write():
    exchange = make()
    assert exchange.client_data(GET) == [Acquire(HTTP, Prefer.USED)]
    assert exchange.leased(was_used=False) == [
        ToUpstream(b"GET /p HTTP/1.1\r\nHost: h\r\nVia: 1.1 us\r\n\r\n")
    ]


@pytest.mark.parametrize("request_bytes", [GET, POST, CONNECT], ids=["get", "post", "connect"])
def test_a_request_split_at_any_offset_is_the_same_request(request_bytes):
    whole = make()
    want = whole.client_data(request_bytes) + whole.leased(was_used=False)
    for at in range(1, len(request_bytes)):
        exchange = make()
        got = exchange.client_data(request_bytes[:at])
        got += exchange.client_data(request_bytes[at:])
        assert got + exchange.leased(was_used=False) == want, at


def test_a_response_split_at_any_offset_reaches_the_client_whole():
    whole = to_client(forwarding().upstream_data(OK))
    assert whole.endswith(b"\r\n\r\nok")
    for at in range(1, len(OK)):
        exchange = forwarding()
        actions = exchange.upstream_data(OK[:at]) + exchange.upstream_data(OK[at:])
        assert to_client(actions) == whole, at
        assert actions[-2:] == [Release(reusable=True), Answered(b"GET", HTTP, 200, None)]
        assert exchange.state is State.IDLE


def test_unrepeatable_requests_ask_for_fresh_connections_first():
    assert make().client_data(POST) == [Acquire(HTTP, Prefer.FRESH)]


def test_connect_is_answered_when_the_connection_is_there_and_early_bytes_follow():
    exchange = make()
    tcp = origin("tcp", "h", 443)
    assert exchange.client_data(CONNECT + b"hello") == [Acquire(tcp, Prefer.FRESH_ONLY)]
    actions = exchange.leased(was_used=False)
    assert to_client(actions).startswith(b"HTTP/1.1 200 ")
    assert actions[-1] == Splice(b"hello", b"")


def test_pipelined_requests_are_answered_in_order():
    exchange = make()
    second = GET.replace(b"/p", b"/q")
    assert exchange.client_data(GET + second) == [Acquire(HTTP, Prefer.USED)]
    exchange.leased(was_used=False)
    actions = exchange.upstream_data(OK)
    assert actions[-1] == Acquire(HTTP, Prefer.USED)
    assert b"GET /q " in to_upstream(exchange.leased(was_used=True))


def test_thousands_of_pipelined_requests_are_no_deep_recursion():
    exchange = make(max_buffer=10**9)
    bad = b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n"
    exchange.client_data(bad * 5000)
    answered = 0
    while exchange.state is State.CONNECTING:
        actions = exchange.lease_failed(DialRefused("refused"))
        answered += sum(isinstance(a, Answered) for a in actions)
    assert answered == 5000


def test_a_failed_lease_is_answered_and_the_connection_goes_on():
    exchange = make()
    exchange.client_data(GET)
    actions = exchange.lease_failed(DialRefused("h:80 refused the connection"))
    assert to_client(actions).startswith(b"HTTP/1.1 502 ")
    assert b"Proxy-Status: warmproxy; error=connection_refused" in to_client(actions)
    assert exchange.state is State.IDLE


def test_a_failed_lease_with_the_body_outstanding_ends_the_connection_without_a_reset():
    exchange = make()
    exchange.client_data(POST[:-2])
    actions = exchange.lease_failed(DialRefused("refused"))
    assert b"Connection: close" in to_client(actions)
    assert actions[-1] == CloseClient(Close.LINGER)


def test_a_stale_used_connection_costs_a_repeatable_request_one_more_try_on_a_fresh_one():
    exchange = forwarding(was_used=True)
    actions = exchange.upstream_ended(reset=False)
    assert actions == [
        Release(reusable=False),
        Retried(),
        Acquire(HTTP, Prefer.FRESH_ONLY),
    ]
    assert b"GET /p " in to_upstream(exchange.leased(was_used=False))
    actions = exchange.upstream_ended(reset=False)
    assert to_client(actions).startswith(b"HTTP/1.1 502 "), "there is no third try"


def test_a_repeatable_request_with_a_body_is_sent_again_whole():
    put = POST.replace(b"POST", b"PUT")
    exchange = forwarding(put[:-2], was_used=True)
    exchange.client_data(put[-2:])
    exchange.upstream_ended(reset=True)
    assert to_upstream(exchange.leased(was_used=False)).endswith(b"\r\n\r\nbody")


def test_a_body_beyond_the_buffer_cannot_be_sent_again():
    put = b"PUT http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"
    exchange = forwarding(put, was_used=True)
    exchange.client_data(b"x" * 100)
    assert Retried not in kinds(exchange.upstream_ended(reset=False))


@pytest.mark.parametrize("reset", [False, True])
def test_a_post_is_never_sent_twice(reset):
    exchange = forwarding(POST, was_used=True)
    actions = exchange.upstream_ended(reset=reset)
    assert actions[0] == Release(reusable=False)
    assert to_client(actions).startswith(b"HTTP/1.1 502 ")
    assert b"error=connection_terminated" in to_client(actions)
    assert Acquire not in kinds(actions)


def test_nothing_is_repeated_after_one_byte_of_a_response():
    exchange = forwarding(was_used=True)
    exchange.upstream_data(b"H")
    assert Acquire not in kinds(exchange.upstream_ended(reset=False))


def test_a_fresh_connection_that_dies_is_reported_and_not_retried():
    actions = forwarding(was_used=False).upstream_ended(reset=False)
    assert to_client(actions).startswith(b"HTTP/1.1 502 ")


def test_a_cut_response_reaches_the_client_as_cut():
    exchange = forwarding()
    exchange.upstream_data(OK[:-1])
    assert exchange.upstream_ended(reset=False) == [
        Release(reusable=False),
        CloseClient(Close.FLUSH),
    ]


def test_a_cut_response_that_ends_by_close_is_reset():
    exchange = forwarding()
    exchange.upstream_data(b"HTTP/1.1 200 OK\r\n\r\nsome")
    assert exchange.upstream_ended(reset=True)[-1] == CloseClient(Close.ABORT)


def test_a_response_that_ends_by_close_ends_the_clients_connection_too():
    exchange = forwarding()
    head = exchange.upstream_data(b"HTTP/1.1 200 OK\r\n\r\nsome")
    assert b"Connection: close" in to_client(head)
    actions = exchange.upstream_ended(reset=False)
    assert actions[-1] == CloseClient(Close.FLUSH)
    assert Release(reusable=False) in actions


def test_bytes_behind_a_response_are_nobodys_and_end_the_connection():
    actions = forwarding().upstream_data(OK + b"HTTP/1.1 200 OK\r\n\r\n")
    assert to_client(actions).endswith(b"\r\n\r\nok")
    assert Release(reusable=False) in actions


def test_a_response_before_the_request_was_whole_ends_both_connections():
    exchange = forwarding(POST[:-2])
    actions = exchange.upstream_data(OK)
    assert Release(reusable=False) in actions
    assert actions[-1] == CloseClient(Close.LINGER)


def test_interim_responses_are_passed_on_but_not_to_http_10():
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert b"103" in to_client(forwarding().upstream_data(hints))
    old = GET.replace(b"1.1", b"1.0")
    assert forwarding(old).upstream_data(hints) == []


def test_an_http_10_client_gets_its_answer_and_the_end():
    exchange = forwarding(GET.replace(b"1.1", b"1.0"))
    assert exchange.upstream_data(OK)[-1] == CloseClient(Close.FLUSH)


def test_an_upgrade_that_was_asked_for_becomes_a_tunnel():
    ask = GET.replace(b"Host: h", b"Host: h\r\nConnection: upgrade\r\nUpgrade: websocket")
    exchange = forwarding(ask)
    actions = exchange.upstream_data(
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00"
    )
    assert actions[-1] == Splice(b"", b"\x81\x00")
    assert exchange.state is State.TUNNEL


def test_a_switch_that_nobody_asked_for_is_a_broken_response():
    actions = forwarding().upstream_data(
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert to_client(actions).startswith(b"HTTP/1.1 502 ")
    assert actions[0] == Release(reusable=False)


@pytest.mark.parametrize(
    "broken",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_a_broken_response_is_a_502_and_its_connection_is_discarded(broken):
    actions = forwarding().upstream_data(broken)
    assert actions[0] == Release(reusable=False)
    assert to_client(actions).startswith(b"HTTP/1.1 502 ")
    assert b"error=http_protocol_error" in to_client(actions)


def test_a_body_that_breaks_off_in_the_middle_is_cut():
    exchange = forwarding()
    exchange.upstream_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert exchange.upstream_data(b"zz\r\n") == [
        Release(reusable=False),
        CloseClient(Close.FLUSH),
    ]


def test_a_client_that_leaves_while_it_waits_takes_its_waiter_along():
    exchange = make()
    exchange.client_data(GET)
    assert exchange.client_lost() == [Cancel()]


def test_a_client_that_half_closes_while_it_waits_is_told_that_nothing_was_forwarded():
    exchange = make()
    exchange.client_data(GET)
    actions = exchange.client_eof()
    assert actions[0] == Cancel()
    assert b"nothing was forwarded" in to_client(actions)


def test_a_client_that_half_closes_after_its_request_still_gets_the_answer():
    exchange = forwarding()
    assert exchange.client_eof() == []
    actions = exchange.upstream_data(OK)
    assert to_client(actions).endswith(b"ok")
    assert actions[-1] == CloseClient(Close.FLUSH)


def test_a_request_that_is_cut_short_never_looks_whole_to_the_upstream():
    exchange = forwarding(POST[:-2])
    assert exchange.client_eof() == [Release(reusable=False), CloseClient(Close.FLUSH)]


def test_a_malformed_request_body_is_refused_and_its_connection_discarded():
    exchange = forwarding(
        b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    actions = exchange.client_data(b"zz\r\n")
    assert actions[0] == Release(reusable=False)
    assert to_client(actions).startswith(b"HTTP/1.1 400 ")
    assert actions[-1] == CloseClient(Close.LINGER)


def test_a_client_that_sends_ahead_is_not_read_beyond_the_buffer():
    exchange = make(max_buffer=1024)
    exchange.client_data(GET)
    assert exchange.wants_data
    exchange.client_data(b"x" * 1024)
    assert not exchange.wants_data


def test_draining_lets_the_exchange_finish_and_then_closes():
    exchange = forwarding()
    assert exchange.drain() == []
    actions = exchange.upstream_data(OK)
    assert b"Connection: close" in to_client(actions)
    assert actions[-1] == CloseClient(Close.FLUSH)
    assert make().drain() == [CloseClient(Close.FLUSH)]


def test_a_loop_is_detected_by_our_own_name_in_via():
    looped = GET.replace(b"Host: h", b"Host: h\r\nVia: 1.1 other, 1.1 us")
    actions = make().client_data(looped)
    assert b"error=proxy_loop_detected" in to_client(actions)


def test_without_credentials_the_answer_is_407_and_with_them_nothing_of_them_goes_on():
    exchange = make(credentials={"user": "secret"})
    actions = exchange.client_data(GET)
    assert to_client(actions).startswith(b"HTTP/1.1 407 ")
    assert b"Proxy-Authenticate: Basic" in to_client(actions)
    with_them = GET.replace(b"Host: h", b"Host: h\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=")
    assert exchange.client_data(with_them) == [Acquire(HTTP, Prefer.USED)]
    assert b"Proxy-Auth" not in to_upstream(exchange.leased(was_used=False))


def test_a_client_from_elsewhere_is_denied():
    terms = make()._terms
    actions = Exchange(terms, "192.0.2.7").client_data(GET)
    assert to_client(actions).startswith(b"HTTP/1.1 403 ")


def test_an_upstream_that_stays_silent_is_a_504():
    exchange = forwarding()
    assert exchange.awaits_response
    actions = exchange.response_timed_out()
    assert to_client(actions).startswith(b"HTTP/1.1 504 ")
    assert actions[0] == Release(reusable=False)
