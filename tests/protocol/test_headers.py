"""Fields: what a proxy takes out, what it leaves alone, what it refuses, what it writes."""

import pytest

from warmproxy.errors import BadRequest, BadResponse
from warmproxy.protocol.framing import Chunked, Length, NoBody, UntilClose
from warmproxy.protocol.headers import (
    JudgedRequest,
    JudgedResponse,
    judge_request,
    judge_response,
    loops,
    request_tail,
    write_request,
    write_response,
)
from warmproxy.protocol.heads import parse_request_head, parse_response_head
from warmproxy.protocol.messages import RequestHead, ResponseHead

US = b"warmproxy-1a2b"
NOW = b"Tue, 01 Jan 2030 00:00:00 GMT"


def request(*lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> RequestHead:
    first = b"%b http://h/ HTTP/%b" % (method, version)
    return parse_request_head(b"\r\n".join([first, b"Host: h", *lines, b"", b""]))


def judged_request(*lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> JudgedRequest:
    return judge_request(request(*lines, method=method, version=version))


def bare_request(*fields: tuple[bytes, bytes], version: bytes = b"1.1") -> RequestHead:
    """A head as the fast lane gives it, without the judgement that h11 adds."""
    return RequestHead(b"GET", b"http://h/", version, list(fields))


def request_status(head: RequestHead) -> int:
    with pytest.raises(BadRequest) as raised:
        judge_request(head)
    return raised.value.status


def request_error(*fields: tuple[bytes, bytes], version: bytes = b"1.1") -> tuple[int, str]:
    with pytest.raises(BadRequest) as raised:
        judge_request(bare_request((b"Host", b"h"), *fields, version=version))
    return raised.value.status, raised.value.reason


def response_reason(
    *fields: tuple[bytes, bytes], status: int = 200, version: bytes = b"1.1"
) -> str:
    with pytest.raises(BadResponse) as raised:
        judge_response(ResponseHead(version, status, b"OK", list(fields)), b"GET")
    assert raised.value.status == 502
    return raised.value.reason


def response(*lines: bytes, status: int = 200, version: bytes = b"1.1") -> ResponseHead:
    first = b"HTTP/%b %d Any" % (version, status)
    return parse_response_head(b"\r\n".join([first, *lines, b"", b""]))


def judged_response(
    *lines: bytes,
    status: int = 200,
    version: bytes = b"1.1",
    method: bytes = b"GET",
    decode: bool = False,
) -> JudgedResponse:
    return judge_response(response(*lines, status=status, version=version), method, decode=decode)


def written(judged: JudgedRequest, method: bytes = b"GET") -> list[bytes]:
    """The lines of the head for the upstream, without the first two and the empty one."""
    lines = write_request(method, b"/", b"h", request_tail(judged, US)).split(b"\r\n")
    assert lines[:2] == [method + b" / HTTP/1.1", b"Host: h"]
    assert lines[-2:] == [b"", b""]
    return lines[2:-2]


def rewritten(
    *lines: bytes,
    status: int = 200,
    version: bytes = b"1.1",
    method: bytes = b"GET",
    keep_alive: bool = True,
    client_10: bool = False,
) -> list[bytes]:
    """The lines of the head for the client, without the status line and the empty one."""
    head = response(*lines, status=status, version=version)
    judged = judge_response(head, method, decode=client_10)
    out = write_response(
        head, judged, via=US, date=NOW, keep_alive=keep_alive, client_10=client_10
    ).split(b"\r\n")
    assert out[0] == b"HTTP/1.1 %d Any" % status
    assert out[-2:] == [b"", b""]
    return out[1:-2]


# ── requests: fields ─────────────────────────────────────────────────────────────────────────


def test_end_to_end_fields_stay_as_they_are_and_in_order() -> None:
    """Row 13: unknown fields, order, case, repeated names and Authorization are left alone."""
    lines = (b"X-b: 1", b"x-B: 2", b"Authorization: Basic dTpw", b"Cookie: a=b", b"X-b: 3")
    assert judged_request(*lines).fields == [
        (b"X-b", b"1"),
        (b"x-B", b"2"),
        (b"Authorization", b"Basic dTpw"),
        (b"Cookie", b"a=b"),
        (b"X-b", b"3"),
    ]
    assert written(judged_request(*lines)) == [*lines, b"Via: 1.1 " + US]


def test_hop_by_hop_fields_go() -> None:
    """Row 17: what is between the client and us goes no further, listed in Connection or not."""
    judged = judged_request(
        b"Proxy-Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"TE: gzip",
        b"Upgrade: websocket",
        b"Connection: keep-alive",
        b"A: b",
    )
    assert written(judged) == [b"A: b", b"Via: 1.1 " + US]


def test_fields_that_connection_names_go() -> None:
    """Row 16: what any Connection field names goes, wherever it stands and however it is
    written; trailers of these names too."""
    judged = judged_request(
        b"X-A: 1",
        b"Connection: x-a ,, X-b",
        b"x-B: 2",
        b"X-C: 3",
        b"Connection: X-C",
        b"X-D: 4",
        b"Transfer-Encoding: chunked",
    )
    assert judged.fields == [(b"X-D", b"4")]
    assert judged.body.feed(b"0\r\nX-C: 1\r\nX-D: 2\r\n\r\n") == (b"0\r\nX-D: 2\r\n\r\n", b"")


def test_proxy_authorization_is_consumed() -> None:
    """Row 22: credentials for the proxy end at the proxy."""
    judged = judged_request(b"Proxy-Authorization: Basic dTpw")
    assert judged.proxy_authorization == b"Basic dTpw"
    assert judged.fields == []
    two = (b"Host", b"h"), (b"Proxy-Authorization", b"a"), (b"Proxy-Authorization", b"b")
    assert request_status(bare_request(*two)) == 400


def test_via_names_what_was_received_and_then_us() -> None:
    """Row 18: our entry is last, with the version that the client spoke."""
    assert written(judged_request(b"Via: 1.0 fred", b"Via: 1.1 p (x)")) == [
        b"Via: 1.0 fred, 1.1 p (x), 1.1 " + US
    ]
    assert written(judged_request(version=b"1.0")) == [b"Via: 1.0 " + US]


@pytest.mark.parametrize(
    ("via", "loop"),
    [
        (b"1.1 " + US, True),
        (b"1.0 fred, 1.1 %b (x), 1.1 other" % US, True),
        (b"1.1\t" + US, True),
        (b"1.1 %b (a comment of words)" % US, True),
        (b"1.1 fred", False),
        (b"1.1 x" + US, False),
        (b"1.1 fred (%b)" % US, False),
        (b"", False),
        (US, False),
    ],
)
def test_own_pseudonym_in_via_is_a_loop(via: bytes, loop: bool) -> None:
    """Row 19: a request that was here before is known by our entry in Via."""
    assert loops(judged_request(b"Via: 1.0 a", b"Via: " + via), US) is loop


def test_too_many_fields_are_431() -> None:
    """Row 11: the number of fields is bounded."""
    lines = [(b"Host", b"h")] + [(b"a", b"b")] * 999
    assert len(judge_request(bare_request(*lines)).fields) == 999
    assert request_status(bare_request(*lines, (b"a", b"b"))) == 431


def test_field_that_is_called_close_goes_when_connection_names_it() -> None:
    """9110 7.6.1: every name in Connection is the name of a field too, close is no exception."""
    lines = b"Connection: close", b"Close: 1", b"A: b"
    assert judged_request(*lines).fields == [(b"A", b"b")]
    assert judged_response(*lines).fields == [(b"A", b"b")]


def test_flags_of_a_request_that_asks_for_nothing() -> None:
    """What was not said is False or None, and not something that merely counts as such."""
    for lines in ((), (b"Connection: expect, idempotency-key",)):
        judged = judged_request(*lines)
        flags = (judged.chunked, judged.expect_continue, judged.te_trailers)
        assert flags == (False, False, False)
        assert (judged.connection_auth, judged.idempotency_key) == (False, False)
        said = (judged.upgrade, judged.max_forwards, judged.proxy_authorization)
        assert said == (None, None, None)
        assert judged.content_length is None
        assert list(judged.via) == []


def test_credentials_for_a_connection_are_seen() -> None:
    """Row 48: NTLM and Negotiate, in any case, whatever another Authorization says."""
    assert judged_request(b"Authorization: ntlm TlRM").connection_auth
    assert judged_request(b"Authorization: Negotiate YII=", b"Authorization: a b").connection_auth
    assert not judged_request(b"Authorization: Basic NTLM").connection_auth


def test_idempotency_key_counts_only_if_it_goes_on() -> None:
    """A key that Connection takes out names nothing to the upstream."""
    line = b"Idempotency-Key: 1"
    judged = judged_request(line, b"Connection: x")
    assert judged.idempotency_key
    assert judged.fields == [(b"Idempotency-Key", b"1")]
    assert judged_request(line, b"Connection: idempotency-key").idempotency_key is False


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([(b"Host", b"h")], "more than one Host"),
        ([(b"Content-Length", b"3")] * 2, "more than one Content-Length"),
        ([(b"Content-Length", b"x")], "malformed Content-Length"),
        ([(b"Proxy-Authorization", b"a")] * 2, "more than one Proxy-Authorization"),
        ([(b"A", b"b")] * 1000, "more than 1000 fields"),
        ([(b"Transfer-Encoding", b"gzip")], "the last transfer coding is not chunked"),
        ([(b"Transfer-Encoding", b"chunked, chunked")], "chunked more than once"),
        ([(b"Transfer-Encoding", b"gzip, chunked, chunked")], "chunked more than once"),
        (
            [(b"Transfer-Encoding", b"gzip, chunked")],
            "only chunked is known as a transfer coding",
        ),
        (
            [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")],
            "Transfer-Encoding and Content-Length in one request",
        ),
    ],
)
def test_reason_of_a_refusal(fields: list[tuple[bytes, bytes]], reason: str) -> None:
    """Who reads the answer learns what was wrong."""
    assert request_error(*fields)[1] == reason


def test_reasons_that_depend_on_version_or_method() -> None:
    """Who reads the answer learns what was wrong there too."""
    chunked = (b"Transfer-Encoding", b"chunked")
    assert request_error(chunked, version=b"1.0") == (400, "Transfer-Encoding in HTTP/1.0")
    for head, reason in (
        (bare_request(), "HTTP/1.1 needs a Host"),
        (bare_request((b"Host", b"h h")), "malformed Host"),
        (
            RequestHead(b"CONNECT", b"h:1", b"1.1", [(b"Host", b"h:1"), chunked]),
            "CONNECT has no body",
        ),
        (request(b"Max-Forwards: x", method=b"TRACE"), "malformed Max-Forwards"),
    ):
        with pytest.raises(BadRequest) as raised:
            judge_request(head)
        assert raised.value.reason == reason


# ── requests: Host ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    [b"h", b"H.example:80", b"[::1]", b"[::1]:8080", b"", b"127.0.0.1:1", b"a_b-c", b"h:", b"h,i"],
)
def test_valid_hosts(host: bytes) -> None:
    """Row 2: every uri-host with or without a port is a Host."""
    assert judge_request(bare_request((b"hOST", host))).host == host


@pytest.mark.parametrize(
    "host", [b"h h", b"h/", b"u@h", b"h:80:80", b"h:x", b"[::1", b"h\xe4", b"h?", b'"h"']
)
def test_invalid_host_is_400(host: bytes) -> None:
    """Row 2: a Host that no authority can be is refused, also from HTTP/1.0."""
    assert request_status(bare_request((b"Host", host))) == 400
    assert request_status(bare_request((b"Host", host), version=b"1.0")) == 400


def test_missing_or_second_host_is_400() -> None:
    """Row 2: exactly one Host in HTTP/1.1; HTTP/1.0 may have none."""
    assert request_status(bare_request()) == 400
    assert request_status(bare_request((b"Host", b"h"), (b"host", b"h"))) == 400
    assert judge_request(bare_request(version=b"1.0")).host == b""


def test_host_comes_from_the_target() -> None:
    """Row 1: the received Host is replaced by the target's authority, first of all fields."""
    head = write_request(b"GET", b"/x", b"other:81", request_tail(judged_request(b"A: b"), US))
    assert head == b"GET /x HTTP/1.1\r\nHost: other:81\r\nA: b\r\nVia: 1.1 %b\r\n\r\n" % US


# ── requests: framing ────────────────────────────────────────────────────────────────────────


def test_request_bodies() -> None:
    """A body is what Content-Length or chunked say, else there is none; both are written anew."""
    judged = judged_request()
    assert isinstance(judged.body, NoBody)
    assert written(judged) == [b"Via: 1.1 " + US]

    judged = judged_request(b"Content-length: 3", b"A: b")
    assert isinstance(judged.body, Length)
    assert judged.body.feed(b"abcd") == (b"abc", b"d")
    assert written(judged) == [b"A: b", b"Via: 1.1 " + US, b"Content-Length: 3"]

    judged = judged_request(b"Content-Length: 0")
    assert judged.body.done
    assert written(judged) == [b"Via: 1.1 " + US, b"Content-Length: 0"]

    judged = judged_request(b"transfer-encoding: Chunked")
    assert isinstance(judged.body, Chunked)
    assert judged.chunked
    assert written(judged) == [b"Via: 1.1 " + US, b"Transfer-Encoding: chunked"]


@pytest.mark.parametrize("value", [b"", b"+3", b"-3", b"3,3", b"3, 4", b"0x3", b"3 3", b"\xb2"])
def test_malformed_content_length_is_400(value: bytes) -> None:
    """Row 26: a length is digits."""
    assert request_status(bare_request((b"Host", b"h"), (b"Content-Length", value))) == 400


def test_content_length_is_bounded() -> None:
    """Row 29: a length that overflows 64 bits somewhere is refused here."""
    most = b"%d" % (2**63 - 1)
    assert not judge_request(bare_request((b"Host", b"h"), (b"Content-Length", most))).body.done
    assert judge_request(bare_request((b"Host", b"h"), (b"Content-Length", b"0" * 19))).body.done
    for value in (b"%d" % 2**63, b"9" * 5000, b"0" * 20):
        assert request_status(bare_request((b"Host", b"h"), (b"Content-Length", value))) == 400


def test_second_content_length_is_400() -> None:
    """Row 26: two lengths in a request are refused, equal or not."""
    for second in (b"3", b"4"):
        two = (b"Content-Length", b"3"), (b"content-length", second)
        assert request_status(bare_request((b"Host", b"h"), *two)) == 400


@pytest.mark.parametrize(
    ("codings", "status"),
    [
        ([b"gzip"], 400),
        ([b"identity"], 400),
        ([b"chunked, gzip"], 400),
        ([b"chunked", b"gzip"], 400),
        ([b"xchunked"], 400),
        ([b"chunked;q=1"], 400),
        ([b"\x0bchunked"], 400),
        ([b""], 400),
        ([b","], 400),
        ([b"chunked, chunked"], 400),
        ([b"chunked", b"chunked"], 400),
        ([b"gzip, chunked"], 501),
        ([b"gzip", b"chunked"], 501),
        ([b'a;b="c,d", chunked'], 501),
    ],
)
def test_transfer_codings_besides_chunked_are_refused(codings: list[bytes], status: int) -> None:
    """Rows 25 and 27: not chunked at the end is 400, unknown before it 501."""
    fields = [(b"Transfer-Encoding", coding) for coding in codings]
    assert request_status(bare_request((b"Host", b"h"), *fields)) == status


def test_transfer_encoding_and_content_length_are_400() -> None:
    """Row 23: the two together are refused in either order."""
    two = [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")]
    assert request_status(bare_request((b"Host", b"h"), *two)) == 400
    assert request_status(bare_request(*two[::-1], (b"Host", b"h"))) == 400
    named = (b"Connection", b"content-length, transfer-encoding")
    assert request_status(bare_request(named, *two, (b"Host", b"h"))) == 400


def test_transfer_encoding_in_http_10_is_400() -> None:
    """Row 24: HTTP/1.0 knows no chunks."""
    fields = (b"Host", b"h"), (b"Transfer-Encoding", b"chunked")
    assert request_status(bare_request(*fields, version=b"1.0")) == 400


def test_connection_cannot_nominate_framing_away() -> None:
    """Row 16: a nominated Content-Length or Host still counts, and is written by us."""
    judged = judged_request(b"Connection: content-length, host", b"Content-Length: 3")
    assert isinstance(judged.body, Length)
    assert written(judged) == [b"Via: 1.1 " + US, b"Content-Length: 3"]


def test_connect_has_no_body() -> None:
    """Row 52: what follows a CONNECT is the tunnel's, so a body is refused."""
    for field in ((b"Content-Length", b"3"), (b"Transfer-Encoding", b"chunked")):
        head = RequestHead(b"CONNECT", b"h:1", b"1.1", [(b"Host", b"h:1"), field])
        assert request_status(head) == 400
    zero = [(b"Host", b"h:1"), (b"Content-Length", b"0")]
    assert judge_request(RequestHead(b"CONNECT", b"h:1", b"1.1", zero)).body.done


# ── requests: what is for us ─────────────────────────────────────────────────────────────────


def test_keep_alive_of_requests() -> None:
    """Rows 38 and 41: HTTP/1.1 unless it says close; HTTP/1.0 never."""
    assert judged_request().keep_alive
    assert judged_request(b"Connection: Keep-Alive").keep_alive
    assert not judged_request(b"Connection: a, CLOSE").keep_alive
    assert not judged_request(b"Connection: close", b"Connection: keep-alive").keep_alive
    assert not judged_request(b"Proxy-Connection: close").keep_alive
    assert not judged_request(
        b"Proxy-Connection: close", b"Proxy-Connection: keep-alive"
    ).keep_alive
    assert judged_request(b"Proxy-Connection: keep-alive").keep_alive
    assert not judged_request(version=b"1.0").keep_alive
    assert not judged_request(b"Connection: keep-alive", version=b"1.0").keep_alive


def test_expect_is_forwarded_and_known() -> None:
    """Row 50: 100-continue is known and goes on; from HTTP/1.0 it is ignored."""
    judged = judged_request(b"Expect: 100-Continue", b"Content-Length: 3")
    assert judged.expect_continue
    assert judged.fields == [(b"Expect", b"100-Continue")]
    old = judged_request(b"Expect: 100-continue", b"Expect: other", version=b"1.0")
    assert not old.expect_continue
    assert old.fields == [(b"Expect", b"other")]
    assert not judged_request(b"Expect: other").expect_continue
    assert judged_request(b"Expect: 100-continue", b"Connection: x").expect_continue
    assert not judged_request(b"Expect: 100-continue", b"Connection: expect").expect_continue


def test_upgrade_is_asked_for_in_our_name() -> None:
    """Row 51: Connection: upgrade is re-issued; without it, or from HTTP/1.0, no upgrade."""
    judged = judged_request(b"Upgrade: websocket", b"Connection: keep-alive, Upgrade")
    assert judged.upgrade == b"websocket"
    assert written(judged) == [
        b"Via: 1.1 " + US,
        b"Upgrade: websocket",
        b"Connection: upgrade",
    ]
    several = judged_request(b"Upgrade: X/1,2X", b"Upgrade: c", b"Connection: upgrade")
    assert several.upgrade == b"X/1, 2X, c"
    assert judged_request(b"Upgrade: websocket").upgrade is None
    assert judged_request(b"Connection: upgrade").upgrade is None
    old = judged_request(b"Upgrade: websocket", b"Connection: upgrade", version=b"1.0")
    assert old.upgrade is None


def test_h2c_is_not_asked_for() -> None:
    """An upgrade to h2c, which no proxy can pass on whole, is ignored as 9110 7.8 allows."""
    lines = b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk"
    assert written(judged_request(b"Upgrade: h2c", *lines)) == [b"Via: 1.1 " + US]
    assert judged_request(b"Upgrade: h2c, a/1", *lines).upgrade == b"a/1"


def test_te_trailers_is_asked_for_in_our_name() -> None:
    """9110 10.1.4: of TE only trailers goes on, with Connection: TE of our own."""
    lines = [b"Via: 1.1 " + US, b"TE: trailers", b"Connection: TE"]
    assert written(judged_request(b"TE: gzip;q=0.5, Trailers", b"Connection: TE")) == lines
    assert not judged_request(b"TE: trailers", version=b"1.0").te_trailers
    both = judged_request(b"TE: trailers", b"Connection: TE, upgrade", b"Upgrade: a")
    assert written(both)[-1] == b"Connection: upgrade, TE"


@pytest.mark.parametrize("method", [b"TRACE", b"OPTIONS"])
def test_max_forwards_is_counted_down(method: bytes) -> None:
    """Row 15: TRACE and OPTIONS lose one hop each, and none is ever added."""
    judged = judged_request(b"Max-Forwards: 7", method=method)
    assert judged.max_forwards == 7
    assert written(judged, method) == [b"Via: 1.1 " + US, b"Max-Forwards: 6"]
    assert written(judged_request(b"Max-Forwards: 1", method=method), method)[1:] == [
        b"Max-Forwards: 0"
    ]
    assert judged_request(b"Max-Forwards: 0", method=method).max_forwards == 0
    assert judged_request(b"Max-Forwards: 999999999", method=method).max_forwards == 10**9 - 1
    assert written(judged_request(method=method), method) == [b"Via: 1.1 " + US]
    for value in (b"x", b"-1", b"0" * 10, b"9" * 5000):
        assert request_status(request(b"Max-Forwards: " + value, method=method)) == 400
    assert request_status(request(b"Max-Forwards: 1", b"Max-Forwards: 2", method=method)) == 400


def test_max_forwards_of_other_methods_is_left_alone() -> None:
    """9110 7.6.2: elsewhere the field means nothing and is forwarded."""
    assert written(judged_request(b"Max-Forwards: x")) == [b"Max-Forwards: x", b"Via: 1.1 " + US]


# ── responses: framing ───────────────────────────────────────────────────────────────────────


def test_response_bodies() -> None:
    """Chunked, a length, or all until the connection ends (9112 6.3)."""
    judged = judged_response(b"Content-Length: 3")
    assert isinstance(judged.body, Length)
    assert judged.reusable
    judged = judged_response(b"Transfer-Encoding: CHUNKED")
    assert isinstance(judged.body, Chunked)
    assert judged.chunked
    assert judged.reusable
    judged = judged_response()
    assert isinstance(judged.body, UntilClose)
    assert judged.until_close
    assert not judged.reusable
    assert isinstance(judged_response(status=300, method=b"CONNECT").body, UntilClose)


def test_chunked_responses_keep_their_framing_and_lose_nominated_trailers() -> None:
    """Rows 16 and 30: unless the client speaks HTTP/1.0, chunks and trailers go on."""
    head = response(b"Transfer-Encoding: chunked", b"Connection: x-a", b"Connection: x-b")
    body = judge_response(head, b"GET").body
    stream = b"1\r\na\r\n0\r\nX-A: 1\r\nX-C: 2\r\nX-B: 3\r\n\r\n"
    assert body.feed(stream) == (b"1\r\na\r\n0\r\nX-C: 2\r\n\r\n", b"")


def test_flags_of_a_response_that_says_nothing() -> None:
    """What was not said is False or None, and not something that merely counts as such."""
    for lines in ((), (b"Connection: date",)):
        judged = judged_response(*lines, status=204)
        flags = (judged.chunked, judged.until_close, judged.interim, judged.has_date)
        assert flags == (False, False, False, False)
        assert judged.connection_auth is False
        assert (judged.upgrade, judged.offer, judged.keep_alive_timeout) == (None, None, None)
        assert list(judged.via) == []


def test_number_of_fields_of_a_response_is_bounded() -> None:
    """Row 11: as many as a request may have."""
    fields = [(b"A", b"b")] * 1000
    assert judge_response(ResponseHead(b"1.1", 200, b"OK", fields), b"GET").fields == fields


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([(b"A", b"b")] * 1001, "more than 1000 fields from the upstream"),
        ([(b"Content-Length", b"x")], "malformed Content-Length from the upstream"),
        ([(b"Content-Length", b"X3")], "malformed Content-Length from the upstream"),
        ([(b"Content-Length", b"\x0b3")], "malformed Content-Length from the upstream"),
        ([(b"Content-Length", b"3, 4")], "more than one Content-Length from the upstream"),
        (
            [(b"Transfer-Encoding", b"gzip")],
            "the upstream used a transfer coding other than chunked",
        ),
        (
            [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")],
            "Transfer-Encoding and Content-Length in one response",
        ),
    ],
)
def test_reason_of_a_502(fields: list[tuple[bytes, bytes]], reason: str) -> None:
    """Who reads the answer learns what the upstream did wrong."""
    assert response_reason(*fields) == reason


@pytest.mark.parametrize(
    ("status", "method"),
    [
        (100, b"GET"),
        (103, b"GET"),
        (204, b"GET"),
        (304, b"GET"),
        (200, b"HEAD"),
        (404, b"HEAD"),
        (200, b"CONNECT"),
        (299, b"CONNECT"),
    ],
)
def test_responses_without_a_body(status: int, method: bytes) -> None:
    """9112 6.3: these have no body, whatever their fields say."""
    for lines in ((), (b"Content-Length: 3",), (b"Transfer-Encoding: chunked",)):
        judged = judged_response(*lines, status=status, method=method)
        assert isinstance(judged.body, NoBody)
        assert not judged.chunked
        assert not judged.until_close


def test_content_length_of_head_and_304_is_kept() -> None:
    """9110 8.6: there the length is what a GET would have had."""
    assert judged_response(b"Content-Length: 3", method=b"HEAD").content_length == b"3"
    assert judged_response(b"Content-Length: 3", status=304).content_length == b"3"
    assert judged_response(b"Content-Length: 3", method=b"HEAD").reusable


@pytest.mark.parametrize("status", [100, 103, 204])
def test_no_framing_on_1xx_and_204(status: int) -> None:
    """Row 28: neither Transfer-Encoding nor Content-Length goes on, and an upstream that sent
    them may send a body too: its connection is not used again."""
    for line in (b"Transfer-Encoding: chunked", b"Content-Length: 3"):
        out = rewritten(line, status=status)
        assert not [field for field in out if field.startswith((b"Transfer", b"Content"))]
        assert not judged_response(line, status=status).reusable
    assert judged_response(b"Content-Length: 0", status=204).reusable


def test_no_framing_on_2xx_to_connect() -> None:
    """Row 53: a tunnel has no length."""
    out = rewritten(b"Content-Length: 3", b"Date: x", method=b"CONNECT")
    assert out == [b"Date: x", b"Via: 1.1 " + US]


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Content-Length", b"3"), (b"Content-Length", b"4")],
        [(b"Content-Length", b"3, 4")],
        [(b"Content-Length", b"+3")],
        [(b"Content-Length", b"")],
        [(b"Content-Length", b"3,")],
        [(b"Content-Length", b"9" * 5000)],
        [(b"Content-Length", b"3"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"gzip")],
        [(b"Transfer-Encoding", b"identity")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"chunked, gzip")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"")],
        [(b"a", b"b")] * 1001,
    ],
)
def test_badly_framed_responses_are_refused(fields: list[tuple[bytes, bytes]]) -> None:
    """Row 26 and its like: a response whose end is in doubt is discarded, 502."""
    with pytest.raises(BadResponse):
        judge_response(ResponseHead(b"1.1", 200, b"OK", fields), b"GET")


def test_transfer_encoding_in_an_http_10_response_is_refused() -> None:
    """Row 24: an upstream of HTTP/1.0 knows no chunks."""
    reason = response_reason((b"Transfer-Encoding", b"chunked"), version=b"1.0")
    assert reason == "Transfer-Encoding in an HTTP/1.0 response"


def test_equal_lengths_become_one() -> None:
    """9112 6.3: a response's repeated equal length is written once."""
    head = ResponseHead(
        b"1.1", 200, b"OK", [(b"Content-Length", b"3, 3"), (b"content-length", b"3")]
    )
    assert judge_response(head, b"GET").content_length == b"3"


# ── responses: the connection ────────────────────────────────────────────────────────────────


def test_reusable_upstreams() -> None:
    """Row 39: HTTP/1.1 unless it says close, HTTP/1.0 only if it says keep-alive."""
    length = b"Content-Length: 3"
    assert judged_response(length).reusable
    assert not judged_response(length, b"Connection: a, Close").reusable
    assert not judged_response(length, version=b"1.0").reusable
    assert judged_response(length, b"Connection: Keep-Alive", version=b"1.0").reusable
    assert not judged_response(b"Connection: Keep-Alive", version=b"1.0").reusable
    assert not judged_response(b"Upgrade: a", b"Connection: upgrade", status=101).reusable


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5.0),
        (b"max=100, Timeout = 15", 15.0),
        (b'timeout="7"', 7.0),
        (b"max=100", None),
        (b"timeout=x", None),
        (b"timeout=" + b"9" * 50, None),
        (b"", None),
    ],
)
def test_keep_alive_timeout(value: bytes, seconds: float | None) -> None:
    """What an upstream says about its idle limit is understood, and goes no further."""
    judged = judged_response(b"Keep-Alive: " + value, b"Connection: keep-alive")
    assert judged.keep_alive_timeout == seconds
    assert judged.fields == []


@pytest.mark.parametrize(
    ("line", "bound"),
    [
        (b"WWW-Authenticate: NTLM", True),
        (b"WWW-Authenticate: negotiate YII=", True),
        (b"www-authenticate: Basic realm=x, NTLM TlRM", True),
        (b"Proxy-Authenticate: Negotiate", True),
        (b"WWW-Authenticate: Basic realm=NTLM", False),
        (b"WWW-Authenticate: NTLM2", False),
        (b"X-Auth: NTLM", False),
    ],
)
def test_connection_bound_authentication_is_seen(line: bytes, bound: bool) -> None:
    """Row 48: NTLM and Negotiate belong to a connection; the field goes on unaltered (row 13)."""
    judged = judged_response(line, b"Content-Length: 0", status=401)
    assert judged.connection_auth is bound
    assert b": ".join(judged.fields[0]) == line


def test_interim_and_switching_responses() -> None:
    """Row 49: 1xx is interim, but 101 is the last head on its connection."""
    assert judged_response(status=100).interim
    assert judged_response(status=103).interim
    judged = judged_response(b"Upgrade: websocket", b"Connection: upgrade", status=101)
    assert not judged.interim
    assert judged.upgrade == b"websocket"
    assert judged.offer is None
    assert judged_response(b"Upgrade: a,b", b"Upgrade: c", status=101).upgrade == b"a, b, c"
    judged = judged_response(b"Upgrade: websocket")
    assert (judged.upgrade, judged.offer) == (None, None)
    reason = response_reason(status=101)
    assert reason == "the upstream switches protocols without a name for the new one"


# ── responses: what is written ───────────────────────────────────────────────────────────────


def test_response_is_written_from_what_was_judged() -> None:
    """Rows 13, 16-18, 20 and 57: hop-by-hop fields go, all others stay, in order; our version."""
    out = rewritten(
        b"Server: x",
        b"Connection: keep-alive, X-Hop",
        b"X-Hop: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Date: then",
        b"Via: 1.1 other",
        b"Via: 1.1 another",
        b"content-length: 3",
        b"Set-Cookie: a",
        b"set-cookie: b",
        b"Proxy-Status: other; error=dns_error",
        version=b"1.0",
    )
    assert out == [
        b"Server: x",
        b"Date: then",
        b"Set-Cookie: a",
        b"set-cookie: b",
        b"Proxy-Status: other; error=dns_error",
        b"Via: 1.1 other, 1.1 another, 1.0 " + US,
        b"Content-Length: 3",
    ]


def test_date_is_added_where_it_is_missing() -> None:
    """Row 21: a final response has a Date; interim ones and a switch get none."""
    assert b"Date: " + NOW in rewritten(b"Content-Length: 3")
    assert rewritten(b"Content-Length: 3", b"Date: x").count(b"Date: x") == 1
    assert b"Date: " + NOW in rewritten(b"Content-Length: 3", b"Date: x", b"Connection: date")
    assert rewritten(status=100) == [b"Via: 1.1 " + US]


def test_connection_close_is_said() -> None:
    """Row 41: the last final response says close; interim ones do not."""
    line = b"Connection: close"
    assert line in rewritten(b"Content-Length: 3", keep_alive=False)
    assert line not in rewritten(b"Content-Length: 3")
    assert line not in rewritten(status=100, keep_alive=False)


def test_chunked_goes_to_clients_that_know_it() -> None:
    """Rows 20 and 28: chunked is re-issued, but an HTTP/1.0 client gets payload until close."""
    chunked = b"Transfer-Encoding: chunked"
    assert chunked in rewritten(b"transfer-encoding: Chunked")
    out = rewritten(chunked, client_10=True, keep_alive=False)
    assert chunked not in out
    assert b"Connection: close" in out
    body = judged_response(chunked, decode=True).body
    assert body.feed(b"1\r\na\r\n0\r\n\r\n") == (b"a", b"")


def test_switch_is_re_issued() -> None:
    """Row 51: 101 goes on with Upgrade and a Connection of our own."""
    out = rewritten(b"Upgrade: websocket", b"Connection: Upgrade", b"A: b", status=101)
    assert out == [b"A: b", b"Via: 1.1 " + US, b"Upgrade: websocket", b"Connection: upgrade"]


def test_426_keeps_its_offer() -> None:
    """9110 15.5.22: Upgrade is what a 426 is about, so it is re-issued too."""
    lines = b"Upgrade: a/2", b"Connection: upgrade", b"Content-Length: 0", b"Date: x"
    out = rewritten(*lines, status=426, keep_alive=False)
    assert out[-2:] == [b"Upgrade: a/2", b"Connection: close, upgrade"]
    judged = judged_response(*lines, b"Upgrade: b", status=426)
    assert (judged.upgrade, judged.offer) == (None, b"a/2, b")
    assert judged_response(status=426).offer is None


def test_written_heads_can_be_read_again() -> None:
    """What we write is a head that our own fast lane reads."""
    judged = judged_request(b"A:", b"Content-Length: 3", b"TE: trailers")
    head = parse_request_head(write_request(b"POST", b"/", b"h", request_tail(judged, US)))
    assert (b"A", b"") in head.fields
    answer = response(b"A:", b"Content-Length: 3")
    out = write_response(
        answer,
        judge_response(answer, b"GET"),
        via=US,
        date=NOW,
        keep_alive=False,
        client_10=False,
    )
    assert (b"Connection", b"close") in parse_response_head(out).fields
