"""Heads: what is collected, what is refused and with which status, and that readers agree."""

import re

import h11
import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warmproxy.errors import BadRequest, BadResponse, WarmproxyError
from warmproxy.protocol import framing, headers, heads, memo, target
from warmproxy.protocol.headers import judge_request, judge_response
from warmproxy.protocol.heads import (
    HeadBuffer,
    parse_request_head,
    parse_response_head,
    read_status,
)
from warmproxy.protocol.messages import RequestHead, ResponseHead

REQUEST = (
    b"GET http://example.com/a?b=c HTTP/1.1\r\n"
    b"Host: example.com\r\n"
    b"User-Agent: curl/8.5.0\r\n"
    b"Accept: */*\r\n"
    b"X-Empty:\r\n"
    b"Proxy-Connection: Keep-Alive\r\n\r\n"
)
RESPONSE = (
    b'HTTP/1.1 200 OK\r\nServer: any/1.0 (with, words)\r\nContent-Length: 3\r\nETag: "\xe4"\r\n\r\n'
)
TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)) + b"\r\n\r\n\n\n"


def requests(max_head: int = 65536) -> HeadBuffer:
    return HeadBuffer(max_head, BadRequest)


def responses(max_head: int = 65536) -> HeadBuffer:
    return HeadBuffer(max_head, BadResponse)


def feed_all(buffer: HeadBuffer, pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    """The first head found in the pieces, and all that follows it."""
    for n, piece in enumerate(pieces):
        found = buffer.feed(piece)
        if found is not None:
            block, rest = found
            return block, rest + b"".join(pieces[n + 1 :])
    return None


def read_request(pieces: list[bytes]) -> tuple[RequestHead, bytes] | None:
    found = feed_all(requests(), pieces)
    return None if found is None else (parse_request_head(found[0]), found[1])


def request_error(block: bytes) -> WarmproxyError:
    """The error both for the whole parse and for the slow lane alone."""
    assert heads._fast_request(block) is None
    with pytest.raises(BadRequest) as raised:
        parse_request_head(block)
    return raised.value


def response_error(block: bytes) -> WarmproxyError:
    assert heads._fast_response(block) is None
    with pytest.raises(BadResponse) as raised:
        parse_response_head(block)
    return raised.value


# ── HeadBuffer ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stream", "block", "rest"),
    [
        (REQUEST, REQUEST, b""),
        (REQUEST + b"body\r\n\r\n", REQUEST, b"body\r\n\r\n"),
        (REQUEST + REQUEST, REQUEST, REQUEST),
        (b"\r\n" + REQUEST + b"x", REQUEST, b"x"),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b""),
    ],
)
def test_head_and_rest_are_the_same_for_each_split(
    stream: bytes, block: bytes, rest: bytes
) -> None:
    """A request head ends at its empty line wherever the reads cut it (one empty line before it
    is skipped: row 6)."""
    for cut in range(len(stream)):
        assert feed_all(requests(), [stream[:cut], stream[cut:]]) == (block, rest)
    assert feed_all(requests(), [bytes([byte]) for byte in stream]) == (block, rest)


def test_response_head_is_the_same_for_each_split() -> None:
    """A response head ends at its empty line wherever the reads cut it."""
    stream = RESPONSE + b"abc"
    for cut in range(len(stream)):
        assert feed_all(responses(), [stream[:cut], stream[cut:]]) == (RESPONSE, b"abc")


def test_one_buffer_collects_one_head_after_the_other() -> None:
    """A buffer that gave a head away is as new, the skipped empty line included."""
    buffer = requests()
    for cut in (0, 1, 2, 30):
        stream = b"\r\n" + REQUEST
        assert feed_all(buffer, [stream[:cut], stream[cut:]]) == (REQUEST, b"")
        assert not buffer.pending


def test_whole_head_is_not_copied() -> None:
    """A read that is exactly one head comes back as the same object."""
    found = requests().feed(REQUEST)
    assert found is not None
    assert found[0] is REQUEST


def test_pending_tells_a_partial_head_from_none() -> None:
    """`pending` is true only while a part of a head is held: not for a skipped empty line."""
    buffer = requests()
    assert not buffer.pending
    assert buffer.feed(b"\r\n") is None
    assert not buffer.pending
    assert buffer.feed(b"G") is None
    assert buffer.pending


def test_second_empty_line_before_a_request_is_refused() -> None:
    """Only one empty line is ignored before a request (row 6)."""
    for cut in range(5):
        stream = b"\r\n\r\n" + REQUEST
        with pytest.raises(BadRequest):
            feed_all(requests(), [stream[:cut], stream[cut:]])


@pytest.mark.parametrize(
    "stream",
    [
        b"GET http://h/ HTTP/1.1\nHost: h\n\n",
        b"GET http://h/ HTTP/1.1\r\nHost: h\n\r\n",
        b"GET http://h/ HTTP/1.1\nHost: h\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\n",
        b"\nGET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_head_with_other_line_ends_is_refused_and_not_waited_for(stream: bytes) -> None:
    """Line ends other than CRLF end a head too, and it is then refused, for each split."""
    for cut in range(len(stream)):
        with pytest.raises(BadRequest) as raised:
            read_request([stream[:cut], stream[cut:]])
        assert raised.value.status == 400


def test_too_long_a_head_is_431_for_each_split() -> None:
    """One byte over max_head is too much, however it comes (row 11)."""
    assert feed_all(requests(len(REQUEST)), [REQUEST + b"body"]) == (REQUEST, b"body")
    for cut in range(len(REQUEST)):
        with pytest.raises(BadRequest) as raised:
            feed_all(requests(len(REQUEST) - 1), [REQUEST[:cut], REQUEST[cut:]])
        assert raised.value.status == 431
        feed_all(requests(len(REQUEST)), [REQUEST[:cut], REQUEST[cut:]])


def test_endless_head_is_refused_when_the_limit_is_reached() -> None:
    """A head that does not end is not collected beyond max_head (row 11)."""
    pieces = [b"GET / HTTP/1.1\r\n"] + [b"a: b\r\n"] * 9000
    with pytest.raises(BadRequest) as raised:
        feed_all(requests(8192), pieces)
    assert raised.value.status == 431


def test_request_line_of_8000_bytes_is_fine_and_beyond_the_limit_414() -> None:
    """8000 octets of request line are read, and 414 says that the line is what is too long
    (row 5)."""
    line = b"GET http://h/%b HTTP/1.1\r\n" % (b"a" * 7976)
    assert len(line) >= 8000
    stream = line + b"Host: h\r\n\r\n"
    assert feed_all(requests(8192), [stream]) == (stream, b"")
    for pieces in ([b"GET /" + b"a" * 9000], [b"GET /", b"a" * 9000, b"b"]):
        with pytest.raises(BadRequest) as raised:
            feed_all(requests(8192), pieces)
        assert raised.value.status == 414


def test_too_long_a_response_head_is_a_bad_response() -> None:
    """A response head beyond max_head is the upstream's fault: 502."""
    for pieces in ([RESPONSE], [RESPONSE[:20], RESPONSE[20:]]):
        with pytest.raises(BadResponse):
            feed_all(responses(len(RESPONSE) - 1), pieces)


def test_tls_is_told_that_this_is_a_plain_port() -> None:
    """Whoever starts TLS is told how to set the proxy, at the first byte already."""
    for cut in range(1, len(TLS_HELLO)):
        with pytest.raises(BadRequest) as raised:
            requests().feed(TLS_HELLO[:cut])
        assert raised.value.status == 400
        assert "https_proxy=http://" in raised.value.reason
    assert "https_proxy=http://" in request_error(TLS_HELLO).reason


def test_socks_is_told_that_this_is_an_http_proxy() -> None:
    """A SOCKS greeting does not wait for an answer that cannot come."""
    for greeting in (b"\x05\x01\x00", b"\x04\x01\x00\x50"):
        with pytest.raises(BadRequest) as raised:
            requests().feed(greeting)
        assert "SOCKS" in raised.value.reason


def test_what_can_be_no_head_is_refused_before_its_end() -> None:
    """NUL bytes, and answers that are not HTTP/1.x, are not waited for."""
    with pytest.raises(BadRequest):
        requests().feed(b"GET /\0")
    for start in (b"SSH-2.0-x", b"HTTP/2.0 200", b"\r\n", b"HTTPS", b"220 mail ESMTP\r\n"):
        with pytest.raises(BadResponse):
            responses().feed(start)


# ── parse_request_head ───────────────────────────────────────────────────────────────────────


def test_request_head_is_taken_apart() -> None:
    """The fast lane gives names as received, values without surrounding white space, in order."""
    head = heads._fast_request(REQUEST)
    assert head == RequestHead(
        b"GET",
        b"http://example.com/a?b=c",
        b"1.1",
        [
            (b"Host", b"example.com"),
            (b"User-Agent", b"curl/8.5.0"),
            (b"Accept", b"*/*"),
            (b"X-Empty", b""),
            (b"Proxy-Connection", b"Keep-Alive"),
        ],
    )
    assert heads._slow_request(REQUEST) == head


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"a:x :y", (b"a", b"x :y")),
        (b"a:b", (b"a", b"b")),
        (b"a: \t b \t ", (b"a", b"b")),
        (b"a:", (b"a", b"")),
        (b"a: ", (b"a", b"")),
        (b"a:\t", (b"a", b"")),
        (b"A!#$%&'*+.^_`|~-9: b", (b"A!#$%&'*+.^_`|~-9", b"b")),
        (b"a: b\tc  d", (b"a", b"b\tc  d")),
        (b"a: \xff\x80", (b"a", b"\xff\x80")),
        (b"a: b: c", (b"a", b"b: c")),
        (b"a::", (b"a", b":")),
    ],
)
def test_unusual_but_valid_fields_are_read(line: bytes, field: tuple[bytes, bytes]) -> None:
    """Surrounding white space goes, everything else in a value stays (9112 5, obs-text too)."""
    assert parse_request_head(b"GET / HTTP/1.0\r\n%b\r\n\r\n" % line).fields == [field]
    assert parse_response_head(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % line).fields == [field]


@pytest.mark.parametrize("method", [b"get", b"X-ODD!", b"A" * 32, b"0"])
def test_unknown_methods_are_read(method: bytes) -> None:
    """Every token is a method (9110 9.1)."""
    assert parse_request_head(method + b" / HTTP/1.0\r\n\r\n").method == method


@pytest.mark.parametrize(
    ("block", "status", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\n\r\n", 400, "row 7: LF alone ends no line"),
        (b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400, "row 7: LF alone ends no line"),
        (b"GET / HTTP/1.1\r\nHost: h\ra: b\r\n\r\n", 400, "row 7: bare CR"),
        (b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", 400, "row 7: bare CR"),
        (b"GET / HTTP/1.1\r\nHost: h\r\na: \0\r\n\r\n", 400, "row 7: NUL"),
        (b"GET / HTTP/1.1\r\nHost: h\r\na: b\x01c\r\n\r\n", 400, "control character"),
        (b"GET / HTTP/1.1\r\nHost: h\r\na: \x7f\r\n\r\n", 400, "DEL"),
        (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400, "row 8: space before the first field"),
        (b"GET / HTTP/1.1\r\n\tx\r\nHost: h\r\n\r\n", 400, "row 8: tab before the first field"),
        (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, "row 9: space before the colon"),
        (b"GET / HTTP/1.1\r\nHost\t: h\r\n\r\n", 400, "row 9: tab before the colon"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n more\r\n\r\n", 400, "row 10: obs-fold"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n", 400, "empty name"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n", 400, "no colon"),
        (b"GET / HTTP/1.1\r\nHost: h\r\na(b): c\r\n\r\n", 400, "name is no token"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\xe4: c\r\n\r\n", 400, "name is not ASCII"),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "row 6: two spaces"),
        (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400, "row 6: space at the end"),
        (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400, "row 6: space in the target"),
        (b"GET /\xe4 HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target is not ASCII"),
        (b"GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n", 400, "DEL in the target"),
        (b"GET / http/1.1\r\nHost: h\r\n\r\n", 400, "version in lower case"),
        (b"GET / HTTP/1.10\r\nHost: h\r\n\r\n", 400, "version with three digits"),
        (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 400, "no such version"),
        (b"GET /\r\n\r\n", 400, "HTTP/0.9"),
        (b"GET\r\n\r\n", 400, "a method only"),
        (b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "method is no token"),
        (b" GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "space before the method"),
        (b"\r\n\r\n", 400, "nothing"),
        (b"\r\n", 400, "nothing"),
        (b"", 400, "nothing at all"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n", 400, "no empty line"),
        (b"GET / HTTP/1.1\r\n\r\nHost: h\r\n\r\n", 400, "more than one head"),
        (b"PRI * HTTP/2.0\r\n\r\n", 505, "the preface of HTTP/2"),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, "HTTP/2 in the clothes of HTTP/1"),
        (b"GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505, "major version 0"),
        (b"%b / HTTP/1.1\r\nHost: h\r\n\r\n" % (b"A" * 33), 501, "row 12: method too long"),
        (b"%b\r\n\r\n" % (b"A" * 5000), 501, "row 12: method too long"),
    ],
)
def test_bad_request_heads_are_refused(block: bytes, status: int, why: str) -> None:
    """What breaks the grammar, and what h11 would let pass, is refused by its status."""
    assert request_error(block).status == status, why


def test_refusal_does_not_quote_the_request() -> None:
    """A reason is shown and logged, so it holds no bytes of the head."""
    for line in (b"Authorization: secret\x01", b"secret authorization", b"Content-Length: secret"):
        block = b"GET / HTTP/1.1\r\nHost: h\r\nx:  y\r\n%b\r\n\r\n" % line
        assert "secret" not in request_error(block).reason


# ── parse_response_head ──────────────────────────────────────────────────────────────────────


def test_response_head_is_taken_apart() -> None:
    """Both lanes give version, status, reason and fields alike."""
    head = heads._fast_response(RESPONSE)
    assert head == ResponseHead(
        b"1.1",
        200,
        b"OK",
        [
            (b"Server", b"any/1.0 (with, words)"),
            (b"Content-Length", b"3"),
            (b"ETag", b'"\xe4"'),
        ],
    )
    assert heads._slow_response(RESPONSE) == head


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.0 404 Not Found", 404, b"Not Found"),
        (b"HTTP/1.1 999 \xe4\t(odd) ", 999, b"\xe4\t(odd) "),
        (b"HTTP/1.1 100 Continue", 100, b"Continue"),
        (b"HTTP/1.1 101 Switching Protocols", 101, b"Switching Protocols"),
        (b"HTTP/1.1 200  two spaces", 200, b" two spaces"),
    ],
)
def test_status_lines(line: bytes, status: int, reason: bytes) -> None:
    """The reason may be empty or missing; interim and unknown statuses are read, by both lanes."""
    block = line + b"\r\na: b\r\n\r\n"
    head = parse_response_head(block)
    assert (head.status, head.reason) == (status, reason)
    assert heads._slow_response(block) == head


def test_heads_that_a_second_reader_takes_for_others_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where h11 reads another target, status or field, nobody knows what the next reader reads."""
    fields = [("Host", "h"), ("A", "b")]
    heard: list[object] = [
        h11.Request(method="GET", target="/other", headers=fields),
        h11.Request(method="PUT", target="/", headers=fields),
        h11.Request(method="GET", target="/", headers=fields[:1]),
        h11.NEED_DATA,
    ]
    for event in heard:
        monkeypatch.setattr(heads, "_second_opinion", lambda *_, event=event: event)
        with pytest.raises(BadRequest) as refused:
            heads._slow_request(b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n")
        assert refused.value.reason == "ambiguous request head"
    heard = [
        h11.Response(status_code=201, headers=fields[1:]),
        h11.Response(status_code=200, headers=fields),
        h11.NEED_DATA,
    ]
    for event in heard:
        monkeypatch.setattr(heads, "_second_opinion", lambda *_, event=event: event)
        with pytest.raises(BadResponse) as discarded:
            heads._slow_response(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n")
        assert discarded.value.reason == "ambiguous head from the upstream"


def test_space_before_a_colon_is_removed_from_responses() -> None:
    """Row 9: a response keeps its fields, without the white space before the colon."""
    block = b"HTTP/1.1 200 OK\r\nA : b: c\r\nD\t :e\r\n\r\n"
    assert parse_response_head(block).fields == [(b"A", b"b: c"), (b"D", b"e")]


@pytest.mark.parametrize(
    "block",
    [
        b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",  # row 10: obs-fold
        b"HTTP/1.1 200 OK\r\n a: b\r\n\r\n",
        b"HTTP/1.1 200 OK\na: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\n\r\n",
        b"HTTP/1.1 200 OK\r\na: \x02\r\n\r\n",
        b"HTTP/1.1 200 \x02\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"\r\n\r\n",
        b"",
    ],
)
def test_bad_response_heads_are_refused(block: bytes) -> None:
    """What breaks the grammar, and what h11 would let pass, is the upstream's fault: 502."""
    assert response_error(block).status == 502


# ── the lanes against each other, and against other readers ──────────────────────────────────

NAMES = st.sampled_from(
    b"Host|host|Content-Length|Transfer-Encoding|Connection|Upgrade|TE|X-A|accept|Expect|Via|"
    b"Keep-Alive|Proxy-Connection|!|X Y|".split(b"|")
)
VALUES = st.one_of(
    st.sampled_from(
        b"h|example.com:80|3|03|3, 3|+3|chunked|Chunked|gzip|gzip, chunked|close|keep-alive, x-a|"
        b"trailers|100-continue|websocket|upgrade|a, b|http://h/|a\tb|a\r\n b|a :|\xe4\xff|".split(
            b"|"
        )
    ),
    st.text('aZ09 \t:,;="\x01\x7f\x80\xff', max_size=12).map(lambda text: text.encode("latin-1")),
)
SPACES = st.sampled_from([b"", b" ", b" ", b" ", b"\t", b"  "])
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b" \r\n"])
REQUEST_LINES = st.builds(
    lambda *parts: b"%b %b HTTP/%b" % parts,
    st.sampled_from([b"GET", b"POST", b"OPTIONS", b"get", b"M-SEARCH", b"CONNECT", b"G(T"]),
    st.sampled_from([b"/", b"*", b"http://h/", b'http://h/%7e?a="{}|\\^`', b"/\xe4", b"h:1"]),
    st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"1.2", b"2.0"]),
)
STATUS_LINES = st.builds(
    lambda *parts: b"HTTP/%b %b%b" % parts,
    st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"1.2", b"2.0"]),
    st.sampled_from([b"200", b"204", b"304", b"100", b"101", b"103", b"404", b"599", b"099"]),
    st.sampled_from([b" OK", b" ", b"", b" Not Found", b" \xe4\t", b" \x01", b"OK"]),
)
Lines = list[tuple[bytes, bytes, bytes, bytes, bytes]]


def block_of(first: bytes, lines: Lines, hurt: tuple[int, bytes] | None) -> bytes:
    """A head, and maybe some bytes of it overwritten."""
    block = first + b"\r\n"
    for name, before, value, after, end in lines:
        block += name + b":" + before + value + after + end
    block += b"\r\n"
    if hurt is not None:
        at = hurt[0] % len(block)
        block = block[:at] + hurt[1] + block[at + 1 :]
    return block


LINES = st.lists(st.tuples(NAMES, SPACES, VALUES, SPACES, ENDS), max_size=5).map(
    lambda lines: [(b"Host", b" ", b"h", b"", b"\r\n"), *lines] if len(lines) % 2 else lines
)
HURT = st.none() | st.tuples(st.integers(0, 300), st.binary(max_size=2))
REQUESTS = st.builds(block_of, REQUEST_LINES, LINES, HURT)
RESPONSES = st.builds(block_of, STATUS_LINES, LINES, HURT)


@settings(max_examples=400)
@given(REQUESTS)
@example(REQUEST)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n")
def test_fast_lane_accepts_a_subset_of_the_slow_lane(block: bytes) -> None:
    """Requests: both lanes give one head; where h11 alone objects to what fields mean, the judge
    of the fast lane's output objects too."""
    fast = heads._fast_request(block)
    if fast is None:
        return
    try:
        slow = heads._slow_request(block)
    except BadRequest:
        with pytest.raises(BadRequest):
            judge_request(fast)
    else:
        assert fast == slow


@settings(max_examples=400)
@given(RESPONSES)
@example(RESPONSE)
def test_fast_lane_accepts_a_subset_of_the_slow_lane_for_responses(block: bytes) -> None:
    """Responses: both lanes give one head; where h11 alone objects, the judge does too."""
    fast = heads._fast_response(block)
    if fast is None:
        return
    try:
        slow = heads._slow_response(block)
    except BadResponse:
        with pytest.raises(BadResponse):
            judge_response(fast, b"GET")
    else:
        assert fast == slow


class Llhttp:
    """What llhttp reads in a head, with field values stripped."""

    def __init__(self) -> None:
        self.url = b""
        self.reason = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes | None) -> None:
        self.fields.append((name, (value or b"").strip(b" \t")))


@settings(max_examples=400)
@given(REQUESTS)
@example(REQUEST)
def test_llhttp_reads_the_same_request(block: bytes) -> None:
    """Whatever we accept and llhttp accepts too is the same head to both, and ordinary requests
    that we accept llhttp accepts."""
    try:
        head = parse_request_head(block)
        judge_request(head)
    except BadRequest:
        return
    seen = Llhttp()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(block)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        # llhttp knows a list of methods, and characters that it wants in no target
        assert head.method not in (b"GET", b"POST") or not re.fullmatch(rb"http://h/", head.target)
        return
    assert (parser.get_method(), seen.url) == (head.method, head.target)
    assert parser.get_http_version().encode() == head.version
    assert seen.fields == [(name, value) for name, value in head.fields]


@settings(max_examples=400)
@given(RESPONSES)
@example(RESPONSE)
def test_llhttp_reads_the_same_response(block: bytes) -> None:
    """Whatever response we accept and llhttp accepts too is the same head to both."""
    try:
        head = parse_response_head(block)
        judge_response(head, b"GET")
    except BadResponse:
        return
    seen = Llhttp()
    parser = httptools.HttpResponseParser(seen)
    try:
        parser.feed_data(block)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return
    assert parser.get_status_code() == head.status
    assert seen.fields == [(name, value) for name, value in head.fields]


@settings(max_examples=200)
@given(st.binary(max_size=60) | REQUESTS)
def test_any_bytes_give_a_head_or_a_bad_request(block: bytes) -> None:
    """No input makes the reader fail in any other way."""
    try:
        assert isinstance(parse_request_head(block), RequestHead)
    except BadRequest:
        pass
    try:
        assert isinstance(parse_response_head(block), ResponseHead)
    except BadResponse:
        pass


@settings(max_examples=200)
@given(REQUESTS, st.lists(st.integers(1, 40), max_size=20))
def test_splits_do_not_change_the_verdict(stream: bytes, sizes: list[int]) -> None:
    """A head is read the same, or refused, in whatever pieces it arrives."""
    pieces = []
    left = stream
    for size in sizes:
        pieces.append(left[:size])
        left = left[size:]
    pieces.append(left)

    def verdict(pieces: list[bytes]) -> tuple[RequestHead, bytes] | str | None:
        try:
            return read_request(pieces)
        except BadRequest:
            return "refused"

    assert verdict(pieces) == verdict([stream])


def test_near_misses_are_refused_in_linear_time() -> None:
    """Heads made to send a backtracking matcher astray are refused like any other."""
    for line in (b"a" * 60_000, b"a: " + b" \t" * 30_000 + b"\x01", b"a:" + b" b" * 30_000 + b" "):
        block = b"GET / HTTP/1.0\r\n%b\r\n\r\n" % line
        assert heads._fast_request(block) is None
    many = b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 10_000 + b"\x01\r\n\r\n"
    assert heads._fast_request(many) is None


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", 503),
        (b"HTTP/1.0 408 \r\n", 408),
        (b"HTTP/1.1 429\r\n", 429),
        (b"HTTP/1.1 503 Service Unav", None),
        (b"HTTP/1.1 50\r\n", None),
        (b"HTTP/1.1  503 No\r\n", None),
        (b" HTTP/1.1 503 No\r\n", None),
        (b"SSH-2.0-OpenSSH_9\r\n", None),
        (b"", None),
    ],
)
def test_the_status_of_an_unasked_response_is_read_from_a_whole_line_only(said, status):
    assert read_status(said) == status


def _possessive(parsed: re._parser.SubPattern) -> list[re._parser.SubPattern]:
    """What the possessive quantifiers of an expression stand behind, at any depth."""
    found = []
    for operator, argument in parsed:
        parts = argument if isinstance(argument, tuple | list) else (argument,)
        if operator is re._constants.POSSESSIVE_REPEAT:
            found.append(parts[2])
        for part in parts:
            for inner in part if isinstance(part, list) else (part,):
                if isinstance(inner, re._parser.SubPattern):
                    found += _possessive(inner)
    return found


@pytest.mark.parametrize(
    "module", [framing, heads, headers, memo, target], ids=lambda m: m.__name__
)
def test_no_group_is_possessive(module):
    """Python before 3.11.5 does not give back what such a group read before it failed (CPython
    issue 106052): http://h:/ would pass for http://h/, and a broken chunk extension for a whole
    one."""
    patterns = [each for each in vars(module).values() if isinstance(each, re.Pattern)]
    assert patterns
    names = ("LITERAL", "NOT_LITERAL", "IN", "ANY")
    single = {getattr(re._constants, name) for name in names}
    for pattern in patterns:
        for part in _possessive(re._parser.parse(pattern.pattern)):
            assert [operator in single for operator, _ in part] == [True], pattern.pattern
