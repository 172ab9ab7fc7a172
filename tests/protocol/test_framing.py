"""Framing: where bodies end, whatever the reads look like, and what is refused."""

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmproxy.protocol.framing import (
    MAX_LENGTH,
    MAX_SIZE_LINE,
    MAX_TRAILERS,
    Chunked,
    Framing,
    FramingError,
    Length,
    NoBody,
    UntilClose,
)


def feed_all(body: Framing, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """All that is passed on, and all that is left."""
    passed = b""
    rest = b""
    for piece in pieces:
        mine, more = body.feed(piece)
        passed += mine
        rest += more
    return passed, rest


def splits(stream: bytes) -> list[list[bytes]]:
    """Whole, cut once at each offset, and byte by byte."""
    once = [[stream[:cut], stream[cut:]] for cut in range(1, len(stream))]
    return [[stream], *once, [bytes([byte]) for byte in stream]]


def assert_chunked(
    stream: bytes,
    passed: bytes,
    rest: bytes = b"",
    *,
    drop: frozenset[bytes] = frozenset(),
    decode: bool = False,
) -> None:
    for pieces in splits(stream + rest):
        body = Chunked(drop, decode)
        assert feed_all(body, pieces) == (passed, rest)
        assert body.done
        assert body.ended()


def chunked_error(stream: bytes) -> str:
    """The reason for which a stream is refused, however it is split."""
    for pieces in splits(stream):
        body = Chunked()
        with pytest.raises(FramingError):
            feed_all(body, pieces)
        assert not body.done
    with pytest.raises(FramingError) as raised:
        Chunked().feed(stream)
    return str(raised.value)


# ── the simple ones ──────────────────────────────────────────────────────────────────────────


def test_no_body_is_done_from_the_start() -> None:
    """Without a body, all bytes belong to what follows."""
    body = NoBody()
    assert body.done
    assert body.ended()
    assert body.feed(b"next") == (b"", b"next")


def test_length_ends_at_its_length_for_each_split() -> None:
    """A body of n bytes is n bytes, and what follows is none of it."""
    for pieces in splits(b"bodynext"):
        body = Length(4)
        assert feed_all(body, pieces) == (b"body", b"next")
        assert body.done


def test_length_zero_is_done_from_the_start() -> None:
    """Content-Length: 0 is a body that is already complete."""
    body = Length(0)
    assert body.done
    assert body.feed(b"next") == (b"", b"next")


def test_short_body_is_incomplete() -> None:
    """Input that ends before the length is reached is a cut body (row 31)."""
    body = Length(4)
    body.feed(b"bod")
    assert not body.ended()
    body.feed(b"y")
    assert body.ended()


def test_until_close_ends_with_the_input() -> None:
    """A body without a length is complete when the input ends, and not before."""
    body = UntilClose()
    assert body.feed(b"a") == (b"a", b"")
    assert body.done is False
    assert body.ended()
    assert body.done
    assert body.feed(b"late") == (b"", b"late")


def test_what_is_left_of_a_body_can_be_read_in_a_log() -> None:
    """Each framing says of itself what it is and how far it is."""
    length = Length(4)
    length.feed(b"b")
    assert [repr(body) for body in (NoBody(), length, UntilClose())] == [
        "NoBody()",
        "Length(3 left)",
        "UntilClose()",
    ]
    body = Chunked()
    seen = [repr(body)]
    for data in (b"3\r\nab", b"c", b"\r\n", b"0\r\n", b"\r\n"):
        body.feed(data)
        seen.append(repr(body))
    assert seen == [
        "Chunked(size, 0 left)",
        "Chunked(payload, 1 left)",
        "Chunked(payload end, 0 left)",
        "Chunked(size, 0 left)",
        "Chunked(trailers, 0 left)",
        "Chunked(done, 0 left)",
    ]


def test_bytes_pass_through_uncopied() -> None:
    """A read that belongs to the body as a whole comes back as the same object."""
    data = b"5\r\nhello\r\n5\r\nhello\r\n"
    end = b"5\r\nhello\r\n0\r\n\r\n"
    assert Length(100).feed(data)[0] is data
    assert Length(len(data)).feed(data)[0] is data
    assert UntilClose().feed(data)[0] is data
    assert Chunked().feed(data)[0] is data
    assert Chunked().feed(end)[0] is end
    for decode in (False, True):
        inside = Chunked(decode=decode)
        inside.feed(b"ff\r\n")
        assert inside.feed(data)[0] is data


# ── chunked ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stream", "payload"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (b"A\r\n0123456789\r\n0a\r\n0123456789\r\n000\r\n\r\n", b"0123456789" * 2),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"0000000000000001\r\nx\r\n0\r\n\r\n", b"x"),
        (b'1;a;b=c ; d = "e\\"\xe4;\\\\" \t;f\r\nx\r\n0;last=1\r\n\r\n', b"x"),
    ],
)
def test_chunks_pass_through_with_their_framing(stream: bytes, payload: bytes) -> None:
    """Row 29: chunked framing goes on as received, unknown extensions too; decoded it is the
    payload alone; what follows is left, for each split."""
    for rest in (b"", b"HTTP/1.1 200 OK", b"\r\n", b"0\r\n\r\n"):
        assert_chunked(stream, stream, rest)
        assert_chunked(stream, payload, rest, decode=True)


def test_cut_chunked_body_is_incomplete_and_has_no_last_chunk() -> None:
    """Row 31: wherever the input ends before the end, the body is not complete, and nothing that
    ends it was passed on."""
    stream = b"5\r\nhello\r\n0\r\nA: b\r\n\r\n"
    for cut in range(len(stream)):
        body = Chunked()
        passed, _ = body.feed(stream[:cut])
        assert not body.ended()
        assert not passed.endswith(b"0\r\n\r\n")
        assert stream.startswith(passed)


SIZE = "malformed chunk size"
LONGER = "a chunk is longer than its size says"
TRAILER = "malformed trailer"
LINE_END = "a trailer line does not end in CRLF"


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"x\r\n", SIZE),
        (b"-3\r\n", SIZE),
        (b"+3\r\n", SIZE),
        (b"0x3\r\nabc", SIZE),
        (b" 3\r\nabc", SIZE),
        (b"3 \r\nabc", SIZE),
        (b"\r\n", SIZE),
        (b";a\r\n", SIZE),
        (b"3\nabc\r\n", SIZE),
        (b"3\rabc", SIZE),
        (b"3;\r\nabc", SIZE),
        (b"3;a=\r\nabc", SIZE),
        (b'3;a="b\r\nabc', SIZE),
        (b'3;a="b\n"\r\nabc', SIZE),
        (b'3;a="\0"\r\nabc', SIZE),
        (b"3;a b\r\nabc", SIZE),
        (b"3;a\n\r\nabc", SIZE),
        (b"3\r\nabcd\r\n", LONGER),
        (b"3\r\nabc\n0\r\n\r\n", LONGER),
        (b"3\r\nabc\rX", LONGER),
        (b"11112222333344445\r\n", SIZE),
        (b"00000000000000001\r\n", SIZE),
        (b"8000000000000000\r\n", "chunk too large"),
        (b"0\r\nA: b\n\r\n", LINE_END),
        (b"0\r\n\n", LINE_END),
        (b"0\r\nA b\r\n\r\n", TRAILER),
        (b"0\r\nA : b\r\n\r\n", TRAILER),
        (b"0\r\nA: b\r\n c\r\n\r\n", TRAILER),
        (b"0\r\nA: \x01\r\n\r\n", TRAILER),
        (b"0\r\n: b\r\n\r\n", TRAILER),
        (b"0\r\nA: b\rC: d\r\n\r\n", TRAILER),
    ],
)
def test_malformed_chunks_are_refused(stream: bytes, reason: str) -> None:
    """Row 29: whatever another reader might take for another size, end or field is refused."""
    assert chunked_error(stream + b"\r\n") == reason


def test_framing_lines_are_bounded() -> None:
    """A size line and a trailer section of the largest length are read, a byte more is refused,
    also where they never end."""
    most = b"1;" + b"a" * (MAX_SIZE_LINE - 4) + b"\r\n"
    assert len(most) == MAX_SIZE_LINE
    assert_chunked(most + b"x\r\n0\r\n\r\n", most + b"x\r\n0\r\n\r\n")
    for too_long in (
        b"1;" + b"a" * (MAX_SIZE_LINE - 3) + b"\r\n",
        b"1;" + b"a" * (MAX_SIZE_LINE - 2),
    ):
        assert chunked_error(too_long) == "chunk-size line too long"
    assert Chunked().feed(b"1;" + b"a" * (MAX_SIZE_LINE - 3)) == (b"", b"")

    trailers = b"A: " + b"b" * (MAX_TRAILERS - 7) + b"\r\n\r\n"
    assert len(trailers) == MAX_TRAILERS
    body = Chunked()
    assert body.feed(b"0\r\n" + trailers) == (b"0\r\n" + trailers, b"")
    for end in (b"b\r\n\r\n", b"", b"\r\n"):
        for cut in (3, 100, 4000):
            stream = b"0\r\nA: " + b"b" * (MAX_TRAILERS - 3) + end
            body = Chunked()
            with pytest.raises(FramingError) as raised:
                feed_all(body, [stream[:cut], stream[cut:]])
            assert str(raised.value) == "trailers too long"
    body = Chunked()
    assert feed_all(body, [b"0\r\n" + trailers[:-1], b"\n"]) == (b"0\r\n" + trailers, b"")


def test_largest_chunk() -> None:
    """A chunk may be as large as a signed 64-bit reader understands, and no larger."""
    line = b"%x\r\n" % MAX_LENGTH
    assert Chunked().feed(line) == (line, b"")
    assert chunked_error(b"%x\r\n" % (MAX_LENGTH + 1)) == "chunk too large"


def test_trailers_are_filtered_and_kept_apart() -> None:
    """Rows 16 and 30: trailers stay trailers; what Connection nominates, what is hop-by-hop and
    what frames or routes goes."""
    stream = (
        b"2\r\nok\r\n0;x\r\nChecksum:  abc \r\nHOST: evil\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Length: 3\r\nX-Secret: 1\r\nConnection: close\r\nAuthorization: x\r\nB:\r\n"
        b"X: X\r\n\r\n"
    )
    drop = frozenset({b"x-secret"})
    kept = b"2\r\nok\r\n0;x\r\nChecksum: abc\r\nB: \r\nX: X\r\n\r\n"
    for rest in (b"next", b"\n", b"A: b\r\n\r\nC: d\r\n\r\n"):
        assert_chunked(stream, kept, rest, drop=drop)
        assert_chunked(stream, b"ok", rest, drop=drop, decode=True)


def test_trailers_may_all_be_dropped() -> None:
    """Where no trailer is left, the body still ends as it should."""
    assert_chunked(b"0\r\nHost: h\r\n\r\n", b"0\r\n\r\n", b"rest")


CHUNKS = st.lists(st.binary(min_size=1, max_size=20), max_size=5)
SIZES = st.lists(st.integers(1, 12), max_size=30)


def encoded(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [*pieces, stream]


@settings(max_examples=300)
@given(CHUNKS, st.binary(max_size=10), SIZES, st.booleans())
def test_any_chunks_in_any_pieces(
    chunks: list[bytes], rest: bytes, sizes: list[int], decode: bool
) -> None:
    """What was encoded comes out, coded or decoded, and not a byte of what follows."""
    stream = encoded(chunks)
    expected = b"".join(chunks) if decode else stream
    body = Chunked(decode=decode)
    assert feed_all(body, cut(stream + rest, sizes)) == (expected, rest)


class Llhttp:
    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


@settings(max_examples=400)
@given(CHUNKS, st.integers(0, 60), st.binary(max_size=2), SIZES)
def test_llhttp_reads_the_same_body(
    chunks: list[bytes], at: int, hurt: bytes, sizes: list[int]
) -> None:
    """A chunked body, maybe hurt, that we take for complete is complete and the same to llhttp."""
    stream = encoded(chunks)
    at %= len(stream)
    stream = stream[:at] + hurt + stream[at + 1 :]
    body = Chunked(decode=True)
    try:
        passed, rest = feed_all(body, cut(stream, sizes))
    except FramingError:
        return
    if not body.done:
        return
    seen = Llhttp()
    parser = httptools.HttpResponseParser(seen)
    parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.feed_data(stream[: len(stream) - len(rest)])
    assert seen.complete
    assert seen.body == passed
