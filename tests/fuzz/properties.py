"""What has to hold for every input. Each check takes bytes and raises AssertionError where
warmproxy and another reader disagree; any other exception is a crash.

The other readers are `readers` (ours, written from the RFCs), h11 and, where it is installed,
llhttp (httptools).
"""

import re
from dataclasses import replace

import h11

from tests.fuzz import readers
from tests.fuzz.driver import drive
from tests.fuzz.readers import Incomplete, Refused
from warmproxy.errors import BadRequest, BadResponse, ConfigError
from warmproxy.loading import load
from warmproxy.origin import origin
from warmproxy.protocol import heads
from warmproxy.protocol.framing import Chunked, FramingError, Length
from warmproxy.protocol.headers import (
    judge_request,
    judge_response,
    read_plain_response,
    request_tail,
    write_request,
    write_response,
)
from warmproxy.protocol.heads import HeadBuffer, parse_request_head, parse_response_head
from warmproxy.protocol.memo import Answers, Requests
from warmproxy.protocol.messages import RequestHead, ResponseHead
from warmproxy.protocol.target import Forward, parse_target
from warmproxy.settings import OriginSettings, Settings, toml_value

try:
    import httptools
except ImportError:  # a fuzzer's environment may lack it
    httptools = None

MAX_HEAD = 1024
METHODS = (b"GET", b"HEAD", b"CONNECT", b"POST")


# ── heads ────────────────────────────────────────────────────────────────────────────────────


def check_heads(data: bytes) -> None:
    """Both lanes, the judge and the reader of streams, for requests and for responses. The first
    byte says where the stream is cut in two, and to which method a response answers."""
    if not data:
        return
    cut, data = data[0], data[1:]
    if data.startswith(b"HTTP"):
        _check_response(data, cut, METHODS[cut % 4])
    else:
        _check_request(data, cut)


def _split(data: bytes, cut: int) -> list[bytes]:
    """Cut somewhere, or into single bytes."""
    if cut == 255:
        return [data[at : at + 1] for at in range(len(data))]
    at = cut % (len(data) + 1)
    return [data[:at], data[at:]]


def _collect(
    pieces: list[bytes], error: type[BadRequest] | type[BadResponse]
) -> tuple[bytes, bytes] | None:
    buffer = HeadBuffer(MAX_HEAD, error)
    for n, piece in enumerate(pieces):
        if piece and (found := buffer.feed(piece)) is not None:
            return found[0], found[1] + b"".join(pieces[n + 1 :])
    return None


def _read_request(pieces: list[bytes]) -> tuple[RequestHead, bytes] | int | None:
    try:
        found = _collect(pieces, BadRequest)
        if found is None:
            return None
        head = parse_request_head(found[0])
        judge_request(head)
    except BadRequest as error:
        return error.status
    return head, found[1]


def _check_request(data: bytes, cut: int) -> None:
    whole = _read_request([data])
    split = _read_request(_split(data, cut))
    if isinstance(whole, int):
        assert isinstance(split, int), ("refused in one piece only", whole, split)
    else:
        assert whole == split, "a cut changes the head"

    try:
        message = readers.request(data, 0, MAX_HEAD)
    except Incomplete:
        assert whole is None, ("not complete, or empty", whole)
        return
    except Refused as refused:
        _refused_too(whole, refused)
        return
    head = message.head
    assert not isinstance(whole, int | None), ("refused without a reason", whole)
    ours, _ = whole
    assert (ours.method, ours.target) == head.first
    assert ours.version == head.version
    assert list(ours.fields) == head.fields

    judged = judge_request(ours)
    also = {b"host", b"content-length", b"via", b"proxy-authorization"}
    if ours.method in (b"TRACE", b"OPTIONS"):
        also.add(b"max-forwards")
    assert list(judged.fields) == head.passed_on(also), "fields that go on"
    assert judged.chunked == (message.framing == "chunked"), "framing"
    if isinstance(message.framing, int):
        assert int(judged.content_length or 0) == message.framing, "framing"
    closes = b"close" in head.members(b"connection")
    if head.version == b"1.0" or closes:
        assert not judged.keep_alive, "a connection that ends is kept"

    start = 2 if data.startswith(b"\r\n") else 0
    block = data[start : data.index(b"\r\n\r\n", start) + 4]
    _check_request_lanes(block)
    _check_llhttp_request(block, ours)
    _check_written(ours, message)


def _refused_too(verdict: object, refused: Refused) -> None:
    assert isinstance(verdict, int), ("not refused", refused, verdict)
    assert verdict in refused.statuses, ("another status", refused, verdict)


def _check_request_lanes(block: bytes) -> None:
    fast = heads._fast_request(block)
    if fast is not None:
        try:
            slow = heads._slow_request(block)
        except BadRequest as error:
            raise AssertionError(
                f"the slow lane refuses what the fast one reads: {error}"
            ) from None
        assert fast == slow, "the lanes differ"
        _check_memo(block, slow)


def _check_memo(block: bytes, head: RequestHead) -> None:
    """What is remembered of a head is what judging it again gives."""
    try:
        judged = judge_request(head)
        route = parse_target(head.method, head.target)
    except BadRequest:
        return  # only what was forwarded is kept
    if not isinstance(route, Forward):
        return
    out = write_request(head.method, route.target, route.host, request_tail(judged, b"us"))
    memory = Requests()
    # kept from a request for another path
    other = block.replace(b"%b HTTP/1.1" % route.target, b"/other HTTP/1.1", 1)
    elsewhere = write_request(head.method, b"/other", route.host, request_tail(judged, b"us"))
    memory.keep(other, head, judged, route, elsewhere)
    if (found := memory.find(block)) is not None:
        known, path = found
        assert (known.request.method, known.request.version) == (head.method, head.version)
        assert known.acquire.origin == known.route.origin == route.origin, "another origin"
        assert known.judged is judged
        assert known.start + path + known.end == out, "another head"
        assert judged.body.done, "a body that nobody would read"


class _Llhttp:
    """What llhttp reads."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.messages = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes | None) -> None:
        self.fields.append((name, (value or b"").strip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.messages += 1


def _check_llhttp_request(block: bytes, head: RequestHead) -> None:
    if httptools is None:
        return
    seen = _Llhttp()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(block)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return  # it knows few methods, and fewer characters of targets
    assert (parser.get_method(), seen.url) == (head.method, head.target), "llhttp's request line"
    assert parser.get_http_version().encode() == head.version
    assert seen.fields == list(head.fields), "llhttp's fields"


def _check_written(ours: RequestHead, message: readers.Message) -> None:
    """The head that we would write is read by h11 and by our reader as one head that says the
    same."""
    judged = judge_request(ours)
    block = write_request(b"PUT", b"/", b"h", request_tail(judged, b"us"))
    again = readers.request_head(block)
    assert readers.request_framing(again) == message.framing, "framing as written"
    assert again.passed_on({b"host", b"content-length", b"via", b"max-forwards"}) == [
        each for each in judged.fields if each[0].lower() != b"max-forwards"
    ]
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(block)
    event = reader.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (b"PUT", b"/")
    assert [value for name, value in event.headers if name == b"host"] == [b"h"]
    lengths = [int(value) for name, value in event.headers if name == b"content-length"]
    assert sum(lengths) == (message.framing if isinstance(message.framing, int) else 0)


def _read_response(pieces: list[bytes], method: bytes) -> tuple[ResponseHead, bytes] | int | None:
    try:
        found = _collect(pieces, BadResponse)
        if found is None:
            return None
        head = parse_response_head(found[0])
        judge_response(head, method)
    except BadResponse as error:
        return error.status
    return head, found[1]


def _check_response(data: bytes, cut: int, method: bytes) -> None:
    whole = _read_response([data], method)
    split = _read_response(_split(data, cut), method)
    if isinstance(whole, int):
        assert isinstance(split, int), ("refused in one piece only", whole, split)
    else:
        assert whole == split, "a cut changes the head"
    try:
        message = readers.response(data, 0, MAX_HEAD, method)
    except Incomplete:
        assert whole is None, ("not complete, or empty", whole)
        return
    except Refused:
        assert whole == 502, ("not refused", whole)
        return
    head = message.head
    odd = [v.lower() for v in head.all(b"transfer-encoding")] not in ([], [b"chunked"])
    if whole == 502 and odd:
        return  # h11 wants one plain `chunked`
    assert not isinstance(whole, int | None), ("refused without a reason", whole)
    ours, _ = whole
    assert (b"%d" % ours.status, ours.reason) == head.first
    assert ours.version == head.version
    assert list(ours.fields) == head.fields

    judged = judge_response(ours, method)
    assert list(judged.fields) == head.passed_on({b"content-length", b"via"}), "fields that go on"
    assert judged.chunked == (message.framing == "chunked")
    assert judged.until_close == (message.framing == "close")
    if isinstance(message.framing, int):
        assert judged.body.done == (message.framing == 0)
        if message.framing:
            assert int(judged.content_length or -1) == message.framing
    members = head.members(b"connection")
    if b"close" in members or message.framing == "close":
        assert not judged.reusable
    if head.version == b"1.0" and b"keep-alive" not in members:
        assert not judged.reusable

    block = data[: data.index(b"\r\n\r\n") + 4]
    fast = heads._fast_response(block)
    if fast is not None:
        try:
            slow = heads._slow_response(block)
        except BadResponse:
            assert odd, "the slow lane refuses what the fast one reads"
        else:
            assert fast == slow, "the lanes differ"
    _check_plain(block, ours)
    if httptools is not None:
        seen = _Llhttp()
        parser = httptools.HttpResponseParser(seen)
        try:
            parser.feed_data(block)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            return
        assert parser.get_status_code() == ours.status
        assert seen.fields == list(ours.fields), "llhttp's fields"


def _check_plain(block: bytes, head: ResponseHead) -> None:
    """The lane for plain answers gives what reading, judging and writing give."""
    plain = read_plain_response(block)
    answers = Answers(b"us")
    answers.read(re.sub(rb"\r\n([Dd]ate): [^\r]*", rb"\r\n\1: before", block, count=1))
    read = answers.read(block)
    assert read == Answers(b"us").read(block), "another answer than without a memory"
    if plain is None:
        assert read is None
        return
    assert read is not None
    assert read[0] == b"%b\r\nVia: 1.1 us\r\n%b\r\n\r\n" % (plain.head, plain.framing)
    assert read[1:] == (plain.status, plain.length, plain.judged)
    judged = judge_response(head, b"GET")
    written = write_response(head, judged, via=b"us", date=b"now", keep_alive=True, client_10=False)
    assert b"%b\r\nVia: 1.1 us\r\n%b\r\n\r\n" % (plain.head, plain.framing) == written
    assert plain.status == head.status
    assert repr(judged.body) == repr(Chunked() if plain.length is None else Length(plain.length))
    assert replace(judged, fields=(), body=plain.judged.body, via=()) == plain.judged


# ── framing ──────────────────────────────────────────────────────────────────────────────────

DROP = frozenset({b"x-mine"})


def check_framing(data: bytes) -> None:
    """A chunked body, and one of a length, against our reader and llhttp. The first byte says
    how it is cut."""
    if not data:
        return
    cut, data = data[0], data[1:]
    _check_length(cut % 40, data, cut)
    try:
        found = readers.chunks(data)
    except Refused:
        found = None
    for decode in (False, True):
        for pieces in ([data], _split(data, cut)):
            passed, rest, done = _feed(Chunked(DROP, decode), pieces)
            if found is None:
                assert done is None, "a broken body is not refused"
            elif done is None:
                # what cannot become a chunk-size line may be refused before it ends
                assert found.end is None, "a good body is refused"
            elif decode:
                assert (done, passed) == (found.end is not None, found.payload), "payload"
            if found is None or not done:
                continue
            assert rest == data[found.end :], "what follows"
            if not decode:
                _check_passed_on(passed, found)
                _check_llhttp_body(passed, found.payload)


def _feed(body: Chunked | Length, pieces: list[bytes]) -> tuple[bytes, bytes, bool | None]:
    """All that was passed on, all that was left, and whether the body is complete; None: broken."""
    passed, rest = b"", b""
    try:
        for piece in pieces:
            mine, more = body.feed(piece)
            passed += mine
            rest += more
    except FramingError:
        return passed, rest, None
    assert body.done == body.ended()
    return passed, rest, body.done


def _check_length(length: int, data: bytes, cut: int) -> None:
    for pieces in ([data], _split(data, cut)):
        passed, rest, done = _feed(Length(length), pieces)
        assert (passed, rest) == (data[:length], data[length:]), "a body of a length"
        assert done == (len(data) >= length), "the end of a body of a length"


def _check_passed_on(passed: bytes, found: readers.Chunks) -> None:
    """What goes on is one chunked body of the same payload, its trailers filtered."""
    again = readers.chunks(passed)
    assert again.end == len(passed)
    assert again.payload == found.payload
    gone = readers.NOT_IN_TRAILERS | DROP
    assert again.trailers == [each for each in found.trailers if each[0].lower() not in gone], (
        "trailers"
    )


def _check_llhttp_body(passed: bytes, payload: bytes) -> None:
    if httptools is None:
        return
    seen = _Llhttp()
    parser = httptools.HttpResponseParser(seen)
    parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        parser.feed_data(passed)
    except httptools.HttpParserError:
        # it reads fewer extensions
        assert b";" in passed, "llhttp refuses it"
        return
    assert (seen.messages, seen.body) == (1, payload), "llhttp's body"


# ── targets ──────────────────────────────────────────────────────────────────────────────────


def check_target(data: bytes) -> None:
    """A target, after a method and a space."""
    method, space, target = data.partition(b" ")
    if not space:
        method, target = b"GET", data
    try:
        route = parse_target(method, target)
        status = None
    except BadRequest as error:
        status = error.status
    try:
        place = readers.target(method, target)
    except Refused as refused:
        _refused_too(status, refused)
        return
    if status is not None:
        digits = place.authority.rpartition(b":")[2]
        assert status == 400
        assert len(digits) > 5, "refused without a reason"
        return  # urllib3 reads five digits of a port at most
    assert (route.origin.host, route.origin.port) == (place.host, place.port), "where it leads"
    assert route.origin.scheme == place.scheme
    assert (place.path is None) == (not isinstance(route, Forward))
    if isinstance(route, Forward):
        assert (route.target, route.host) == (place.path, place.authority), "what is written"
        plain = place.scheme.encode() + b"://" + route.origin.authority.encode("ascii")
        again = parse_target(b"GET", plain + (b"/" if route.target == b"*" else route.target))
        assert again.origin == route.origin, "another spelling is another place"
    else:
        again = parse_target(b"CONNECT", route.origin.authority.encode("ascii"))
        assert again.origin == route.origin
    assert origin(route.origin.scheme, place.host, place.port) == route.origin


# ── settings ─────────────────────────────────────────────────────────────────────────────────


def check_settings(data: bytes) -> None:
    """A file; then, behind NUL bytes, variables as NAME=VALUE and flags as -name=value.

    Loads or says what is wrong, each problem on one printable line; what was loaded, written down
    and loaded again, is the same.
    """
    text, *others = data.split(b"\0")
    environ: dict[str, str] = {}
    flags: dict[str, object] = {}
    for other in others:
        name, equals, value = other.decode("utf-8", "surrogateescape").partition("=")
        if not equals or not name:
            continue
        if not name.startswith("-"):
            environ[name] = value
        elif name == "-warm":
            flags["warm"] = [*flags.get("warm", []), value]  # type: ignore[misc]
        elif name[1:] in FLAGS:
            flags[name[1:]] = value
    plain = _PASSWORD.sub(b"", data)
    hidden = b"s3cret" not in plain and b"\\" not in plain
    try:
        loaded = load(
            path="w.toml",
            text=text.decode("utf-8", "replace") if text else None,
            environ=environ,
            flags=flags,
        )
    except ConfigError as error:
        _check_problems(error.problems, hidden)
        return
    again = load(path=None, text=_written(loaded.settings), environ={}, flags={})
    assert again.settings == loaded.settings, "written down and read again"


def _check_problems(problems: list[str], hidden: bool) -> None:
    assert problems
    for problem in problems:
        assert problem
        assert problem.isprintable(), problem
        assert not hidden or "s3cret" not in problem, problem
        problem.encode("utf-8")


_PASSWORD = re.compile(rb"(?<==)[^=\0]{0,20}?//[\w:.-]*@")
"""where a password is known by its place: in the authority of a URL that is a value"""
FLAGS = frozenset(Settings.__struct_fields__) - {"upstream", "defaults"}


def _written(settings: Settings) -> str:
    lines = [f"{name} = {toml_value(getattr(settings, name))}" for name in sorted(FLAGS)]
    defaults = settings.defaults
    lines.append("[defaults]")
    lines += _lines(defaults, OriginSettings())
    for upstream in settings.upstream:
        lines.append("[[upstream]]")
        lines += _lines(upstream, defaults if "auto" in (upstream.warm, upstream.tls) else upstream)
        for window in upstream.warm_at:
            lines.append("[[upstream.warm_at]]")
            lines += [f"{name} = {toml_value(getattr(window, name))}" for name in ("at", "count")]
            lines += [f"tls = {window.tls}", f"for = {toml_value(window.length)}"]
    return "\n".join(lines) + "\n"


def _lines(settings: OriginSettings, known: OriginSettings) -> list[str]:
    """All of a table's plain values; the limits of auto only where they differ from those that are
    known to hold there without a word: they may be too high for max_connections."""
    return [
        f"{name} = {toml_value(value)}"
        for name in settings.__struct_fields__
        if name != "warm_at"
        and ((value := getattr(settings, name)) != getattr(known, name) or name not in _OF_AUTO)
    ]


_OF_AUTO = ("warm_min", "warm_max")


# ── exchanges ────────────────────────────────────────────────────────────────────────────────


def check_exchange(data: bytes) -> None:
    """See driver."""
    drive(data)


CHECKS = {
    "heads": check_heads,
    "framing": check_framing,
    "target": check_target,
    "settings": check_settings,
    "exchange": check_exchange,
}
