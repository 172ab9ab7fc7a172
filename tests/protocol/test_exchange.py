"""The table of exchange.py, driven by bytes: what each event makes the driver do."""

from dataclasses import replace

import pytest

from warmproxy.errors import DialRefused
from warmproxy.origin import origin
from warmproxy.policy.access import Access
from warmproxy.policy.destinations import Destinations
from warmproxy.policy.interception import AGENT, Interception, Visitor
from warmproxy.policy.retry import Prefer
from warmproxy.protocol.exchange import MOVED_FROM, Exchange, State, Terms, Upgrade
from warmproxy.protocol.messages import (
    Acquire,
    Answered,
    Cancel,
    Close,
    CloseClient,
    Intercept,
    MoveToClient,
    MoveToUpstream,
    Release,
    Retried,
    Splice,
    ToClient,
    ToUpstream,
)
from warmproxy.protocol.replies import CONNECTED
from warmproxy.protocol.target import Forward

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


def test_what_an_upstream_says_of_its_idle_limit_goes_with_the_connection():
    said = OK.replace(b"Date: now", b"Connection: keep-alive\r\nKeep-Alive: timeout=5, max=9")
    assert Release(reusable=True, keep_alive=5.0) in forwarding().upstream_data(said)


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
        Release(reusable=False, unanswered=True),
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
    assert actions[0] == Release(reusable=False, unanswered=True)
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
    assert actions[-1] == CloseClient(Close.LINGER), "the client may have sent ahead"
    assert Release(reusable=False) in actions


def test_bytes_behind_a_response_are_nobodys_and_end_the_connection():
    actions = forwarding().upstream_data(OK + b"HTTP/1.1 200 OK\r\n\r\n")
    assert to_client(actions).endswith(b"\r\n\r\nok")
    assert Release(reusable=False) in actions


def test_after_an_early_response_the_rest_of_the_body_is_thrown_away_and_the_next_request_served():
    exchange = forwarding(POST[:-2])
    actions = exchange.upstream_data(OK)
    assert Release(reusable=False) in actions
    assert b"Connection: close" not in to_client(actions)
    assert exchange.state is State.LINGERING
    assert exchange.client_data(POST[-2:-1]) == []
    assert exchange.client_data(POST[-1:] + GET) == [Acquire(HTTP, Prefer.USED)]


def test_an_early_response_that_closes_ends_both_connections():
    exchange = forwarding(POST[:-2])
    actions = exchange.upstream_data(OK.replace(b"Date", b"Connection: close\r\nDate"))
    assert b"Connection: close" in to_client(actions)
    assert actions[-1] == CloseClient(Close.LINGER)


def test_a_final_answer_to_a_client_that_waits_for_100_says_close():
    exchange = forwarding(POST[:-4].replace(b"Host", b"Expect: 100-continue\r\nHost"))
    assert b"Connection: close" in to_client(exchange.upstream_data(OK))
    exchange = forwarding(POST[:-4].replace(b"Host", b"Expect: 100-continue\r\nHost"))
    exchange.upstream_data(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b"Connection: close" not in to_client(exchange.upstream_data(OK))


def test_no_more_than_a_bound_is_thrown_away():
    exchange = forwarding(b"POST http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n")
    exchange.upstream_data(OK)
    assert exchange.client_data(b"x" * 2**20) == []
    assert exchange.client_data(b"x") == [CloseClient(Close.LINGER)]


def test_lingering_ends_with_the_client_a_drain_or_a_broken_body():
    chunked = b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    exchange = forwarding(chunked)
    exchange.upstream_data(OK)
    assert exchange.client_data(b"zz\r\n") == [CloseClient(Close.FLUSH)]
    exchange = forwarding(POST[:-2])
    exchange.upstream_data(OK)
    assert exchange.client_eof() == [CloseClient(Close.FLUSH)]
    exchange = forwarding(POST[:-2])
    exchange.upstream_data(OK)
    exchange.drain()
    assert exchange.client_data(POST[-2:]) == [CloseClient(Close.FLUSH)]


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
    exchange.leased(was_used=False)
    assert not exchange.wants_data
    busy = forwarding(max_buffer=1024)
    busy.client_data(b"x" * 1023)
    assert busy.wants_data


def test_draining_lets_the_exchange_finish_and_then_closes():
    exchange = forwarding()
    assert exchange.drain() == []
    actions = exchange.upstream_data(OK)
    assert b"Connection: close" in to_client(actions)
    assert actions[-1] == CloseClient(Close.LINGER), "the client may have sent ahead"
    assert make().drain() == [CloseClient(Close.FLUSH)]


def test_a_patient_drain_lets_an_idle_client_ask_once_more():
    """It cannot know yet that it shall go; its answer says so."""
    exchange = forwarding()
    exchange.upstream_data(OK)
    assert exchange.drain(patient=True) == []
    assert exchange.client_data(GET) == [Acquire(HTTP, Prefer.USED)]
    exchange.leased(was_used=True)
    actions = exchange.upstream_data(OK)
    assert b"Connection: close" in to_client(actions)
    assert actions[-1] == CloseClient(Close.LINGER)


def test_other_terms_hold_from_the_next_request_on():
    """Also for requests whose like was judged before, and for who was admitted before; what is
    known of origins stays."""
    exchange = forwarding()
    terms = exchange._terms
    terms.http_10.add(HTTP)
    others = make(max_buffer=7)._terms
    terms.become(replace(others, access=Access(("10.0.0.0/8",), {})))
    assert (terms.max_buffer, terms.http_10) == (7, {HTTP})
    assert to_client(exchange.upstream_data(OK)).endswith(b"\r\n\r\nok")
    denied = exchange.client_data(GET)
    assert to_client(denied).startswith(b"HTTP/1.1 403 ")


def test_who_was_admitted_by_other_terms_is_judged_anew():
    """A request that another client's has been judged for since is no way in."""
    exchange, other = make(), make()
    object.__setattr__(other, "_terms", exchange._terms)
    for client in (exchange, other, exchange):
        client.client_data(GET)
        client.leased(was_used=False)
        client.upstream_data(OK)
    terms = exchange._terms
    terms.become(replace(terms, access=Access(("10.0.0.0/8",), {})))
    other.client_address = "10.0.0.1"
    assert kinds(other.client_data(GET)) == [Acquire]
    assert to_client(exchange.client_data(GET)).startswith(b"HTTP/1.1 403 ")


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


NTLM = (
    b"HTTP/1.1 401 Unauthorized\r\nDate: now\r\nWWW-Authenticate: NTLM abc\r\n"
    b"Content-Length: 0\r\n\r\n"
)


def test_a_connection_that_is_authenticated_as_a_whole_stays_with_its_client():
    exchange = forwarding()
    assert Release(reusable=True, pinned=True) in exchange.upstream_data(NTLM)
    exchange.client_data(GET)
    exchange.leased(was_used=True)
    actions = exchange.upstream_data(OK)
    assert Release(reusable=True, pinned=True) in actions, "the next answers are its client's too"


def test_a_client_that_sends_connection_credentials_gets_a_connection_of_its_own():
    ask = GET.replace(b"Host: h", b"Host: h\r\nAuthorization: Negotiate abc")
    assert Release(reusable=True, pinned=True) in forwarding(ask).upstream_data(OK)


def test_a_pinned_connection_is_discarded_with_its_client():
    last = GET.replace(b"Host: h", b"Host: h\r\nConnection: close")
    assert Release(reusable=False) in forwarding(last).upstream_data(NTLM)


def test_another_origin_ends_the_pin():
    exchange = forwarding()
    exchange.upstream_data(NTLM)
    exchange.client_data(GET.replace(b"//h/", b"//other/"))
    exchange.leased(was_used=False)
    assert Release(reusable=True) in exchange.upstream_data(OK)


def test_another_origin_that_is_remembered_ends_the_pin():
    """Whether a request is judged or remembered, and its own origin keeps it either way."""
    other = GET.replace(b"//h/", b"//other/")
    exchange = forwarding(other)
    exchange.upstream_data(OK)
    exchange.client_data(GET)
    exchange.leased(was_used=False)
    assert Release(reusable=True, pinned=True) in exchange.upstream_data(NTLM)
    exchange.client_data(GET.replace(b"Host: h", b"Host: h\r\nA: new"))
    exchange.leased(was_used=True)
    assert Release(reusable=True, pinned=True) in exchange.upstream_data(OK)
    exchange.client_data(other)
    exchange.leased(was_used=False)
    assert Release(reusable=True) in exchange.upstream_data(OK)


def test_a_client_is_quiet_between_its_requests_only():
    exchange = make()
    assert exchange.is_quiet
    exchange.client_data(GET[:9])
    assert not exchange.is_quiet, "a request has begun"
    exchange.client_data(GET[9:])
    assert not exchange.is_quiet
    exchange.leased(was_used=False)
    exchange.upstream_data(OK)
    assert exchange.is_quiet


def test_what_was_moved_for_an_exchange_that_is_over_counts_for_nothing():
    """Its client may go while the driver still tells of bytes."""
    exchange = forwarding()
    exchange.upstream_data(LONG % (MOVED_FROM + 2))
    exchange.client_lost()
    assert exchange.response_moved(1) == []
    assert exchange.request_moved(1) == []


def test_max_forwards_0_is_answered_here():
    options = b"OPTIONS http://h/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n"
    exchange = make()
    actions = exchange.client_data(options)
    assert b"\r\nAllow: " in to_client(actions)
    assert exchange.state is State.IDLE
    trace = options.replace(b"OPTIONS", b"TRACE").replace(b"\r\n\r\n", b"\r\nCookie: x\r\n\r\n")
    sent = to_client(make().client_data(trace + b""))
    assert b"TRACE http://h/ HTTP/1.1\r\n" in sent
    assert b"Cookie" not in sent


def test_max_forwards_0_with_a_body_outstanding_ends_the_connection():
    options = (
        b"OPTIONS http://h/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\nContent-Length: 4\r\n\r\n"
    )
    assert make().client_data(options)[-1] == CloseClient(Close.LINGER)


def test_no_chunks_go_to_an_upstream_that_last_answered_in_http_10():
    exchange = forwarding()
    exchange.upstream_data(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    )
    chunked = b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    actions = exchange.client_data(chunked)
    assert to_client(actions).startswith(b"HTTP/1.1 411 ")
    other = Exchange(exchange._terms, "127.0.0.1")
    other.client_data(GET)
    other.leased(was_used=False)
    other.upstream_data(OK)
    assert other.client_data(chunked) == [Acquire(HTTP, Prefer.FRESH)], "it speaks 1.1 again"


def test_the_memory_of_old_upstreams_has_a_bound():
    exchange = forwarding()
    exchange._terms.http_10.update(origin("http", f"h{n}", 80) for n in range(1000))
    exchange.upstream_data(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert exchange._terms.http_10 == {HTTP}


def test_an_answer_after_a_second_try_says_so():
    exchange = forwarding(was_used=True)
    exchange.upstream_ended(reset=False)
    exchange.leased(was_used=False)
    assert b"\r\nProxy-Status: warmproxy; retried\r\n" in to_client(exchange.upstream_data(OK))


def test_a_named_post_is_repeated_where_the_upstream_honours_the_name():
    named = POST.replace(b"Host: h", b"Host: h\r\nIdempotency-Key: 1")
    exchange = make()
    exchange.client_data(named)
    exchange.leased(was_used=True, honours_key=True)
    assert Retried() in exchange.upstream_ended(reset=False)
    exchange = make()
    exchange.client_data(named)
    exchange.leased(was_used=True, honours_key=False)
    assert Retried() not in exchange.upstream_ended(reset=False)


def test_the_502_for_a_lost_post_says_that_its_fate_is_not_known():
    said = to_client(forwarding(POST).upstream_ended(reset=True))
    assert b"whether it was applied is not known" in said


def test_a_head_that_takes_too_long_is_a_408():
    exchange = make()
    exchange.client_data(GET[:-2])
    assert exchange.awaits_head
    assert to_client(exchange.head_timed_out()).startswith(b"HTTP/1.1 408 ")
    assert make().head_timed_out() == []


def test_a_request_whose_body_stalls_is_a_408_and_never_looks_whole():
    exchange = forwarding(POST[:-2])
    actions = exchange.stalled()
    assert actions[0] == Release(reusable=False)
    assert to_client(actions).startswith(b"HTTP/1.1 408 ")


def test_a_response_that_stalls_in_its_head_is_a_504_and_in_its_body_a_cut():
    exchange = forwarding()
    exchange.upstream_data(OK[:9])
    assert to_client(exchange.stalled()).startswith(b"HTTP/1.1 504 ")
    exchange = forwarding()
    exchange.upstream_data(OK[:-1])
    assert exchange.stalled() == [Release(reusable=False), CloseClient(Close.FLUSH)]
    exchange = forwarding(GET.replace(b"1.1", b"1.0"))
    exchange.upstream_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert exchange.stalled()[-1] == CloseClient(Close.ABORT), "its end is the connection's end"


def test_events_that_come_too_late_do_nothing():
    exchange = make()
    assert exchange.upstream_data(b"x") == []
    assert exchange.upstream_ended(reset=False) == []
    assert exchange.stalled() == []
    assert exchange.response_timed_out() == []
    exchange.client_lost()
    assert exchange.client_data(GET) == []
    assert exchange.client_lost() == []


def test_a_client_that_goes_while_it_is_served_costs_the_upstream_connection():
    assert forwarding().client_lost() == [Release(reusable=False)]


def test_a_client_that_ends_between_requests_is_closed():
    assert make().client_eof() == [CloseClient(Close.FLUSH)]
    exchange = make()
    exchange.client_data(GET[:5])
    assert exchange.client_eof() == [CloseClient(Close.FLUSH)]


def test_draining_waits_for_a_head_that_has_begun():
    exchange = make()
    exchange.client_data(GET[:5])
    assert exchange.drain() == []


def test_a_client_there_is_no_room_for_is_told_so():
    actions = make().refuse(DialRefused("full"))
    assert actions[-1] == CloseClient(Close.LINGER)


def test_too_many_interim_responses_are_a_broken_upstream():
    flood = b"HTTP/1.1 102 Processing\r\n\r\n" * 101
    actions = forwarding().upstream_data(flood)
    assert b"HTTP/1.1 502 " in to_client(actions)


def test_a_malformed_body_before_the_connection_is_there_forwards_nothing():
    actions = make().client_data(
        b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    )
    assert to_client(actions).startswith(b"HTTP/1.1 400 ")
    assert Acquire not in kinds(actions)


def test_a_malformed_body_while_the_request_waits_cancels_it():
    exchange = make()
    exchange.client_data(
        b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert exchange.client_data(b"zz\r\n")[0] == Cancel()


def test_a_malformed_body_after_the_response_began_cuts_both():
    exchange = forwarding(
        b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    exchange.upstream_data(OK[:-1])
    assert exchange.client_data(b"zz\r\n") == [
        Release(reusable=False),
        CloseClient(Close.FLUSH),
    ]


def test_a_close_delimited_body_that_breaks_its_chunks_for_an_old_client_is_reset():
    exchange = forwarding(GET.replace(b"1.1", b"1.0"))
    exchange.upstream_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert exchange.upstream_data(b"zz\r\n")[-1] == CloseClient(Close.ABORT)


def test_what_an_exchange_is_can_be_read():
    exchange = make()
    assert repr(exchange) == "<Exchange IDLE 127.0.0.1 None>"
    assert not exchange.is_forwarding
    assert not exchange.client_ended
    assert forwarding().is_forwarding


def test_connect_ports_and_hosts_are_asked_before_anything_is_dialled():
    terms = make()._terms
    strict = Terms(
        access=terms.access,
        destinations=Destinations(connect_ports=(8443,), allow=(), deny=(), configured=()),
        max_head=8192,
        max_buffer=64,
        pseudonym=b"us",
        date=terms.date,
    )
    actions = Exchange(strict, "127.0.0.1").client_data(CONNECT)
    assert to_client(actions).startswith(b"HTTP/1.1 403 ")
    assert b"connect_ports" in to_client(actions)


HTTPS = origin("https", "h", 443, "1.2")
TCP = origin("tcp", "h", 443)


def tls_terms(**changes) -> Terms:
    return replace(make()._terms, default_tls="1.2", **changes)


def test_https_in_absolute_form_asks_for_finished_tls_with_the_default_profile():
    exchange = Exchange(tls_terms(), "127.0.0.1")
    assert exchange.client_data(GET.replace(b"http:", b"https:")) == [Acquire(HTTPS, Prefer.USED)]
    assert b"GET /p HTTP/1.1\r\nHost: h\r\n" in to_upstream(exchange.leased(was_used=False))


def test_a_configured_place_has_its_own_profile():
    own = origin("https", "h", 443, "1.3 own")
    exchange = Exchange(tls_terms(places={("h", 443): own}), "127.0.0.1")
    assert exchange.client_data(GET.replace(b"http:", b"https:")) == [Acquire(own, Prefer.USED)]


def upgrading(client="127.0.0.1", remote=False) -> Exchange:
    upgrades = {HTTP: Upgrade(HTTPS, remote)}
    return Exchange(tls_terms(upgrades=upgrades), client)


def test_http_is_upgraded_where_that_is_configured_and_put_right_both_ways():
    exchange = upgrading()
    ask = GET.replace(b"Host: h", b"Host: h\r\nReferer: http://h/r")
    assert exchange.client_data(ask) == [Acquire(HTTPS, Prefer.USED)]
    assert b"\r\nReferer: https://h/r\r\n" in to_upstream(exchange.leased(was_used=False))
    answer = OK.replace(b"Date", b"Location: https://h/l\r\nSet-Cookie: a=b; Secure\r\nDate")
    got = to_client(exchange.upstream_data(answer))
    assert b"\r\nLocation: http://h/l\r\n" in got
    assert b"\r\nSet-Cookie: a=b\r\n" in got


def test_other_origins_are_not_upgraded():
    exchange = upgrading()
    other = GET.replace(b"//h/", b"//other/")
    assert exchange.client_data(other) == [Acquire(origin("http", "other", 80), Prefer.USED)]


def test_a_client_beyond_loopback_is_upgraded_only_where_that_is_allowed():
    access = Access(("10.0.0.0/8",), {})
    for remote, want in ((False, b"HTTP/1.1 403 "), (True, b"")):
        terms = tls_terms(upgrades={HTTP: Upgrade(HTTPS, remote)}, access=access)
        actions = Exchange(terms, "10.0.0.1").client_data(GET)
        assert to_client(actions)[: len(b"HTTP/1.1 403 ")] == want


def test_a_gateway_takes_origin_form_and_rewrites_host():
    terms = tls_terms(gateway=Forward(HTTPS, b"/", b"h"))
    exchange = Exchange(terms, "127.0.0.1")
    ask = b"GET /p HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nOrigin: http://127.0.0.1:9001\r\n\r\n"
    assert exchange.client_data(ask) == [Acquire(HTTPS, Prefer.USED)]
    sent = to_upstream(exchange.leased(was_used=False))
    assert sent.startswith(b"GET /p HTTP/1.1\r\nHost: h\r\nOrigin: https://h\r\n")
    answer = OK.replace(b"Date", b"Location: https://h/l\r\nDate")
    assert b"\r\nLocation: http://127.0.0.1:9001/l\r\n" in to_client(exchange.upstream_data(answer))


def test_a_plain_gateway_changes_no_more_than_host():
    terms = tls_terms(gateway=Forward(HTTP, b"/", b"h"))
    exchange = Exchange(terms, "127.0.0.1")
    ask = b"GET /p HTTP/1.1\r\nHost: g\r\nOrigin: http://g\r\n\r\n"
    assert exchange.client_data(ask) == [Acquire(HTTP, Prefer.USED)]
    assert b"\r\nOrigin: http://g\r\n" in to_upstream(exchange.leased(was_used=False))


@pytest.mark.parametrize("ask", [CONNECT, GET])
def test_a_gateway_is_no_proxy(ask):
    terms = tls_terms(gateway=Forward(HTTPS, b"/", b"h"))
    actions = Exchange(terms, "127.0.0.1").client_data(ask)
    assert to_client(actions).startswith(b"HTTP/1.1 400 ")
    assert Acquire not in kinds(actions)


def test_a_connect_that_is_intercepted_is_answered_by_ourselves():
    """What came with it goes to whoever shakes hands; without interception it waits for a tunnel,
    as for all other origins and for clients that refused before."""
    interception = Interception([TCP], Access((), {}), falls_back=True)
    terms = tls_terms(interception=interception)
    ask = CONNECT.replace(b"\r\n\r\n", b"\r\nUser-Agent: curl/8\r\n\r\n")
    visitor = Visitor("127.0.0.1", b"curl/8", TCP)
    exchange = Exchange(terms, "127.0.0.1")
    assert exchange.client_data(ask + b"hello") == [
        ToClient(CONNECTED),
        Answered(b"CONNECT", TCP, 200, None),
        Intercept(visitor, b"hello"),
    ]
    assert exchange.state is State.TUNNEL
    tunnel = [Acquire(TCP, Prefer.FRESH_ONLY)]
    other = ask.replace(b"h:443", b"g:443")
    assert Exchange(terms, "127.0.0.1").client_data(other) == [
        Acquire(origin("tcp", "g", 443), Prefer.FRESH_ONLY)
    ]
    interception.refused(visitor)
    assert Exchange(terms, "127.0.0.1").client_data(ask) == tunnel
    assert Intercept in kinds(Exchange(terms, "127.0.0.1").client_data(CONNECT))


def test_of_a_user_agent_no_more_is_kept_than_tells_programs_apart():
    """What is remembered of clients has a bound in bytes, too."""
    interception = Interception([TCP], Access((), {}), falls_back=True)
    ask = CONNECT.replace(b"\r\n\r\n", b"\r\nUser-Agent: " + b"x" * 300 + b"\r\n\r\n")
    found = Exchange(tls_terms(interception=interception), "127.0.0.1").client_data(ask)[-1]
    assert found == Intercept(Visitor("127.0.0.1", b"x" * AGENT, TCP), b"")


def inside() -> Exchange:
    return Exchange(tls_terms(gateway=Forward(HTTPS, b"/", b"h"), inside=True), "127.0.0.1")


def test_inside_an_intercepted_connection_nothing_is_rewritten():
    """The client knows the origin by its own name and scheme."""
    exchange = inside()
    ask = b"GET /p HTTP/1.1\r\nHost: H:443\r\nOrigin: http://h\r\n\r\n"
    assert exchange.client_data(ask) == [Acquire(HTTPS, Prefer.USED)]
    sent = to_upstream(exchange.leased(was_used=False))
    assert sent.startswith(b"GET /p HTTP/1.1\r\nHost: h\r\nOrigin: http://h\r\n")
    answer = OK.replace(b"Date", b"Location: https://h/l\r\nSet-Cookie: a=b; Secure\r\nDate")
    got = to_client(exchange.upstream_data(answer))
    assert b"\r\nLocation: https://h/l\r\nSet-Cookie: a=b; Secure\r\n" in got


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        (CONNECT, b"400"),
        (GET, b"421"),
        (b"GET /p HTTP/1.1\r\nHost: g\r\n\r\n", b"421"),
        (b"GET https://g/p HTTP/1.1\r\nHost: h\r\n\r\n", b"421"),
    ],
)
def test_inside_an_intercepted_connection_is_one_origin(ask, status):
    actions = inside().client_data(ask)
    assert to_client(actions).startswith(b"HTTP/1.1 " + status)
    assert Acquire not in kinds(actions)


def test_in_absolute_form_the_received_host_does_not_count():
    """RFC 9112, 3.2.2; and HTTP/1.0 has none."""
    for ask in (
        b"GET https://h/p HTTP/1.1\r\nHost: g\r\n\r\n",
        b"GET /p HTTP/1.0\r\n\r\n",
    ):
        assert Acquire in kinds(inside().client_data(ask))


def test_what_follows_a_body_is_the_next_request():
    exchange = forwarding(POST[:-2])
    assert exchange.client_data(POST[-2:] + GET) == [ToUpstream(b"dy")]
    assert exchange.upstream_data(OK)[-1] == Acquire(HTTP, Prefer.USED)


def test_half_a_chunk_size_is_held_back_on_both_sides():
    exchange = forwarding(
        b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert exchange.client_data(b"5") == []
    assert exchange.client_data(b"\r\nhello\r\n0\r\n\r\n") == [
        ToUpstream(b"5\r\nhello\r\n0\r\n\r\n")
    ]
    exchange.upstream_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert exchange.upstream_data(b"5") == []
    assert to_client(exchange.upstream_data(b"\r\nhello\r\n")) == b"5\r\nhello\r\n"


def test_a_post_that_cannot_be_repeated_is_not_held_while_it_is_sent():
    exchange = forwarding(POST[:-2])
    assert exchange._held is None
    assert exchange.client_data(POST[-2:]) == [ToUpstream(b"dy")]


def test_a_client_that_pipelines_and_then_half_closes_gets_all_its_answers():
    exchange = forwarding(GET + GET.replace(b"/p", b"/q"))
    assert exchange.client_eof() == []
    actions = exchange.upstream_data(OK)
    assert b"Connection: close" not in to_client(actions)
    assert actions[-1] == Acquire(HTTP, Prefer.USED)
    exchange.leased(was_used=True)
    actions = exchange.upstream_data(OK)
    assert b"Connection: close" in to_client(actions)
    assert actions[-1] == CloseClient(Close.FLUSH)


def test_half_a_request_behind_the_last_one_ends_the_connection():
    exchange = forwarding(GET + GET[:9])
    exchange.client_eof()
    assert exchange.upstream_data(OK)[-1] == CloseClient(Close.FLUSH)


def test_a_refused_request_loses_nothing_of_the_next_one():
    exchange = make(credentials={"user": "secret"})
    known = GET.replace(b"Host: h", b"Host: h\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=")
    actions = exchange.client_data(GET + known)
    assert to_client(actions).startswith(b"HTTP/1.1 407 ")
    assert actions[-1] == Acquire(HTTP, Prefer.USED)


def test_what_was_meant_for_a_refused_tunnel_is_never_read_as_a_request():
    exchange = make(credentials={"user": "secret"})
    actions = exchange.client_data(CONNECT + GET)
    assert to_client(actions).count(b"HTTP/1.1 407 ") == 1
    assert actions[-1] == CloseClient(Close.LINGER)


@pytest.mark.parametrize("ending", ["half-close", "malformed body"])
def test_a_response_that_ends_by_close_and_is_given_up_is_reset(ending):
    exchange = forwarding(
        b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    exchange.upstream_data(b"HTTP/1.1 200 OK\r\n\r\nsome")
    actions = exchange.client_eof() if ending == "half-close" else exchange.client_data(b"zz\r\n")
    assert actions[-1] == CloseClient(Close.ABORT)


def test_a_close_inside_a_responses_head_is_no_close_of_an_idle_connection():
    exchange = forwarding(was_used=True)
    exchange.upstream_data(OK[:10])
    assert Release(reusable=False) in exchange.upstream_ended(reset=False)


# ── bytes that pass beside the exchange ──────────────────────────────────────────────────────

LONG = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: %d\r\n\r\nab"


def test_a_long_response_is_offered_to_the_driver_and_ends_as_any_other():
    """From MOVED_FROM bytes still to come; the last of them releases the connection."""
    exchange = forwarding()
    actions = exchange.upstream_data(LONG % (MOVED_FROM + 2))
    assert actions[-1] == MoveToClient(MOVED_FROM)
    assert exchange.response_moved(MOVED_FROM - 1) == []
    assert exchange.response_moved(1) == [
        Release(reusable=True),
        Answered(b"GET", HTTP, 200, None),
    ]
    assert exchange.state is State.IDLE


def test_what_is_moved_may_end_in_bytes_that_are_not():
    """A driver that stops moving passes the rest here."""
    exchange = forwarding()
    exchange.upstream_data(LONG % (MOVED_FROM + 2))
    exchange.response_moved(MOVED_FROM - 2)
    actions = exchange.upstream_data(b"yz")
    assert to_client(actions) == b"yz"
    assert Release(reusable=True) in actions


def test_a_response_that_is_cut_while_it_is_moved_is_cut():
    exchange = forwarding()
    exchange.upstream_data(LONG % (MOVED_FROM + 2))
    exchange.response_moved(MOVED_FROM - 1)
    assert exchange.upstream_ended(reset=False) == [
        Release(reusable=False),
        CloseClient(Close.FLUSH),
    ]


@pytest.mark.parametrize(
    "head",
    [
        LONG % (MOVED_FROM + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n80000\r\nab",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nab",
    ],
    ids=["short", "chunked", "until close"],
)
def test_other_responses_pass_through_the_exchange(head):
    assert MoveToClient not in kinds(forwarding().upstream_data(head))


def test_an_answer_to_head_has_nothing_to_move():
    exchange = forwarding(GET.replace(b"GET", b"HEAD"))
    actions = exchange.upstream_data((LONG % (MOVED_FROM * 2))[:-2])
    assert MoveToClient not in kinds(actions)
    assert Release(reusable=True) in actions


UPLOAD = b"http://h/p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"


def test_a_long_request_is_offered_to_the_driver():
    """The request is done when the last byte has been moved, and what follows is the next one."""
    exchange = make()
    exchange.client_data(b"POST " + UPLOAD % (MOVED_FROM + 2) + b"ab")
    assert exchange.leased(was_used=False)[-1] == MoveToUpstream(MOVED_FROM)
    assert not exchange.awaits_response
    assert exchange.request_moved(MOVED_FROM) == []
    assert exchange.awaits_response
    exchange.upstream_data(OK)
    assert exchange.state is State.IDLE
    assert exchange.client_data(GET) == [Acquire(HTTP, Prefer.USED)]


def test_a_request_that_may_be_sent_again_is_moved_once_it_is_too_long_to_keep():
    """Until then its bytes have to pass here."""
    exchange = forwarding(b"PUT " + UPLOAD % (MOVED_FROM * 2), max_buffer=8)
    assert MoveToUpstream not in kinds(exchange.client_data(b"12345678"))
    actions = exchange.client_data(b"9")
    assert actions == [ToUpstream(b"9"), MoveToUpstream(MOVED_FROM * 2 - 9)]
    exchange.request_moved(1000)
    assert Acquire not in kinds(exchange.upstream_ended(reset=True))


def test_an_answer_before_the_moved_request_is_over():
    """What was moved counts: the rest is thrown away here, then the next request is served."""
    exchange = forwarding(b"POST " + UPLOAD % MOVED_FROM)
    exchange.request_moved(MOVED_FROM - 1)
    assert Release(reusable=False) in exchange.upstream_data(OK)
    assert exchange.state is State.LINGERING
    assert exchange.client_data(b"x" + GET) == [Acquire(HTTP, Prefer.USED)]
