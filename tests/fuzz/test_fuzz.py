"""The checks of properties.py for a few seconds each; fuzz.py runs them for as long as you like."""

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz import grow, readers
from tests.fuzz.planted import BUGS, ROOT, plant
from tests.fuzz.properties import (
    CHECKS,
    check_exchange,
    check_framing,
    check_heads,
    check_settings,
    check_target,
)
from tests.fuzz.readers import Refused

quick = settings(max_examples=1000, database=None)


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """What grow.py makes up, and bytes of any kind."""
    grown = st.integers(0, 2**64).map(lambda seed: grow.grown(random.Random(seed), target))
    return grown | grown | grown | st.binary(max_size=80)


UPLOAD = b"cPUT http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe"
CHUNKS = b"cPUT http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"
LOOPED = b" http://h/ HTTP/1.1\r\nHost: h\r\nVia: 1.1 us\r\n"
SECOND = b"GET http://h/2 HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 R\r\nContent-Length: 2\r\n\r\nok"


@quick
@given(inputs("heads"))
@example(b"\xffGET http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
def test_heads(data: bytes) -> None:
    """Both lanes, the judge, h11, llhttp and a reader written from the RFCs agree on each head,
    cut or whole (rows 2, 6 to 12, 16, 17, 20, 23 to 27)."""
    check_heads(data)


@quick
@given(inputs("framing"))
@example(b"\xff5;a\r\nhello\r\n0\r\nX: y\r\n\r\nrest")
def test_framing(data: bytes) -> None:
    """Bodies end where other readers see their end, cut or whole, and what goes on is read as what
    came (rows 16, 29 to 31)."""
    check_framing(data)


@quick
@given(
    st.lists(st.binary(min_size=1, max_size=30), max_size=6),
    st.lists(st.tuples(st.sampled_from(grow.WORDS["name"]), st.binary(max_size=5)), max_size=3),
    st.integers(0, 255),
    st.binary(max_size=10),
)
def test_chunks_come_out_as_they_went_in(
    payloads: list[bytes], trailers: list[tuple[bytes, bytes]], cut: int, rest: bytes
) -> None:
    """A round trip: what is encoded as chunks is, to our own reader and to all others, the payload
    and its trailers (rows 29 and 30)."""
    data = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in payloads) + b"0\r\n"
    data += b"".join(b"%b: %b\r\n" % each for each in trailers) + b"\r\n"
    try:
        found = readers.chunks(data + rest)
    except Refused:
        pass  # of the trailers some are none
    else:
        assert found.payload == b"".join(payloads)
    check_framing(bytes([cut]) + data + rest)


@quick
@given(inputs("target"))
@example(b"CONNECT [::1]:443")
def test_targets(data: bytes) -> None:
    """A target leads where another reader says, or is refused by both; other spellings of a place
    lead to the same pool (rows 1, 3, 4, 14 and 52)."""
    check_target(data)


@settings(quick, max_examples=400)
@given(inputs("settings"))
@example(b"\0WARMPROXY_WARM=http://u:s3cret@h=1")
@example("\0WARMPROXY_LISTEN=\udce4".encode("utf-8", "surrogateescape"))
def test_settings_load_or_say_what_is_wrong(data: bytes) -> None:
    """Whatever is in a file, the environment and the flags: settings, which written down and read
    again are the same, or a ConfigError with printable lines and no password in them."""
    check_settings(data)


@settings(quick, max_examples=1500)
@given(inputs("exchange"))
@example(UPLOAD + b"\xfel\xfeuHTTP/1.1 200 R\r\n\r\nsome\xfee")
@example(CHUNKS + b"\xfel\xfeuHTTP/1.1 200 R\r\n\r\nsome\xfecxxxxxx")
@example(b"cGET" + LOOPED + b"\r\n" + SECOND + b"\xfel\xfeu" + OK)
@example(b"cGET" + LOOPED + b"\r\n" + SECOND[:9] + b"\xfec" + SECOND[9:] + b"\xfel\xfeu" + OK)
@example(b"cOPTIONS" + LOOPED[:-13] + b"Max-Forwards: 0\r\n\r\n" + SECOND + b"\xfel\xfeu" + OK)
@example(b"cCONNECT h:443 HTTP/1.1\r\nHost: h\r\nVia: 1.1 us\r\n\r\nGET\xfec " + SECOND + b"\xfel")
def test_exchanges(data: bytes) -> None:
    """Events in any order raise nothing; what reaches an upstream is, to h11 and llhttp too, the
    client's request and nothing else, and what is cut is seen to be cut (rows 1, 3, 14 to 17, 23
    to 33, 39 to 43)."""
    check_exchange(data)


@pytest.mark.parametrize("target", CHECKS)
def test_the_corpus_passes_every_check(target: str) -> None:
    """The seeds of the long runs, the corpus among them, and a thousand grown inputs."""
    source = random.Random(20)
    for data in (*grow.seeds(target), *(grow.grown(source, target) for _ in range(1000))):
        CHECKS[target](data)


def test_planted_bugs_are_up_to_date(tmp_path: Path) -> None:
    """At least ten, and each can still be put into the package as it is now."""
    assert len(BUGS) >= 10
    for number, bug in enumerate(BUGS):
        copy = tmp_path / str(number)
        (copy / bug.module).parent.mkdir(parents=True)
        shutil.copy(ROOT / "warmproxy" / bug.module, copy / bug.module)
        plant(bug, copy)
