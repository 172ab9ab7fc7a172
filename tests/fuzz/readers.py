"""A second reading of HTTP/1.1, to hold against warmproxy's: written from RFC 9110 and RFC 9112
byte by byte, without the regular expressions, lanes and shortcuts that are under test.

What warmproxy refuses beyond the RFCs (its limits, more than one Content-Length, ...) is refused
here too. `Refused` holds every status that would be a right answer, `Incomplete` means that more
has to come.
"""

import ipaddress
from dataclasses import dataclass, field

Field = tuple[bytes, bytes]

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = frozenset(b"0123456789")
HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")
VALUE = frozenset({9, *range(32, 127), *range(128, 256)})
VISIBLE = frozenset(range(33, 127))
HOST = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._~!$&'()*+,;=%")

HOP_BY_HOP = {
    *(b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"),
}
NOT_IN_TRAILERS = HOP_BY_HOP | {
    *(b"content-length", b"host", b"max-forwards", b"trailer", b"via", b"authorization"),
    *(b"proxy-authenticate", b"proxy-authorization", b"set-cookie", b"www-authenticate"),
    *(b"content-encoding", b"content-range", b"content-type"),
}
MAX_INT = 9223372036854775807


class Refused(Exception):
    """`statuses`: each of them would be a right answer."""

    def __init__(self, statuses: set[int], why: str) -> None:
        super().__init__(why, statuses)
        self.statuses = statuses


class Incomplete(Exception):
    """More has to come."""


@dataclass
class Head:
    first: tuple[bytes, ...]
    """method and target, or status and reason"""
    version: bytes
    fields: list[Field]

    def all(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.fields if each.lower() == name]

    def members(self, name: bytes) -> list[bytes]:
        """All members of a list field, in lower case."""
        found = b",".join(self.all(name)).lower().split(b",")
        return [member for each in found if (member := each.strip(b" \t"))]

    def passed_on(self, also: set[bytes]) -> list[Field]:
        """The fields that go further: none that Connection names, no hop-by-hop, none of `also`,
        and from HTTP/1.0 no Expect: 100-continue (RFC 9110, 10.1.1)."""
        gone = HOP_BY_HOP | also | set(self.members(b"connection"))
        old = self.version == b"1.0" and not self.first[0].isdigit()
        return [
            (name, value)
            for name, value in self.fields
            if name.lower() not in gone
            and not (old and name.lower() == b"expect" and value.lower() == b"100-continue")
        ]


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a head without their CRLF, the last empty one left out."""
    lines = block.split(b"\n")
    if lines.pop() or len(lines) < 2:
        raise Refused({400}, "no empty line at the end")
    for line in lines:
        if not line.endswith(b"\r") or line.count(b"\r") != 1:
            raise Refused({400}, "bare CR or LF")
    if lines.pop() != b"\r" or b"\r" in lines:
        raise Refused({400}, "an empty line elsewhere than at the end")
    return [line[:-1] for line in lines]


def field_of(line: bytes, spaces_before_colon: bool = False) -> Field:
    name, colon, value = line.partition(b":")
    if spaces_before_colon:
        name = name.rstrip(b" \t")
    if not colon or not name or not TOKEN.issuperset(name):
        raise Refused({400}, "no name")
    if not VALUE.issuperset(value):
        raise Refused({400}, "control character")
    return name, value.strip(b" \t")


def version_of(word: bytes) -> bytes:
    if len(word) != 8 or word[:5] != b"HTTP/" or word[6:7] != b".":
        raise Refused({400}, "no version")
    if word[5] not in DIGITS or word[7] not in DIGITS:
        raise Refused({400}, "no version")
    if word[5:6] != b"1":
        raise Refused({505, 400}, "major version")
    if word[7:8] not in (b"0", b"1"):
        raise Refused({400}, "minor version")
    return word[5:]


def request_head(block: bytes) -> Head:
    """The head that these bytes are, all of them."""
    method_length = next((n for n, c in enumerate(block) if c not in TOKEN), len(block))
    statuses = {400, 501} if method_length > 32 else {400}
    try:
        lines = lines_of(block)
        words = lines[0].split(b" ")
        if len(words) != 3 or not all(words):
            raise Refused(statuses, "no request line")
        method, target, version = words
        if not TOKEN.issuperset(method) or not VISIBLE.issuperset(target):
            raise Refused(statuses, "no request line")
        if len(method) > 32:
            raise Refused({501}, "long method")
        number = version_of(version)
        return Head((method, target), number, [field_of(line) for line in lines[1:]])
    except Refused as refused:
        raise Refused(refused.statuses | (statuses - {400}), refused.args[0]) from None


def length_of(head: Head, statuses: set[int], several: bool) -> int | None:
    """The value of Content-Length. `several`: equal ones may be collapsed."""
    texts = head.all(b"content-length")
    if several:
        texts = [text.strip(b" \t") for each in texts for text in each.split(b",")]
    for text in texts:
        if not text or not DIGITS.issuperset(text) or len(text) > 19 or int(text) > MAX_INT:
            raise Refused(statuses, "malformed length")
    if len(set(texts)) > 1 or (len(texts) > 1 and not several):
        raise Refused(statuses, "several lengths")
    return int(texts[0]) if texts else None


Framing = int | str
"""a length, `chunked`, or `close`"""


def request_framing(head: Head) -> Framing:
    """How long the body is; refuses, too, what else may not be in a request's fields."""
    if len(head.fields) > 1000:
        raise Refused({431, 400}, "too many fields")
    bad = {400}
    hosts = head.all(b"host")
    if len(hosts) != 1 and (hosts or head.version == b"1.1"):
        raise Refused(bad, "not one Host")
    for host in hosts:
        check_host_field(host, bad)
    if len(head.all(b"proxy-authorization")) > 1:
        raise Refused(bad, "several Proxy-Authorization")
    if head.first[0] in (b"TRACE", b"OPTIONS"):
        hops = head.all(b"max-forwards")
        if len(hops) > 1 or any(
            not hop or not DIGITS.issuperset(hop) or len(hop) > 9 for hop in hops
        ):
            raise Refused(bad, "Max-Forwards")
    length = length_of(head, bad, False)
    coded = bool(head.all(b"transfer-encoding"))
    if coded:
        codings = head.members(b"transfer-encoding")
        if head.version == b"1.0" or length is not None:
            raise Refused(bad, "Transfer-Encoding")
        if codings[-1:] != [b"chunked"] or codings.count(b"chunked") > 1:
            raise Refused(bad, "last coding")
        if codings != [b"chunked"]:
            raise Refused({501}, "another coding")
    if head.first[0] == b"CONNECT" and (coded or length):
        raise Refused(bad, "CONNECT with a body")
    return "chunked" if coded else length or 0


def check_host_field(host: bytes, bad: set[int]) -> None:
    if host.startswith(b"["):
        inner, bracket, port = host[1:].partition(b"]")
        if not bracket or not inner or not (HEXADECIMAL | frozenset(b":.")).issuperset(inner):
            raise Refused(bad, "Host")
        if port and not port.startswith(b":"):
            raise Refused(bad, "Host")
        port = port[1:]
    else:
        name, _, port = host.partition(b":")
        if not HOST.issuperset(name):
            raise Refused(bad, "Host")
    if not DIGITS.issuperset(port):
        raise Refused(bad, "Host")


def response_head(block: bytes) -> Head:
    lines = lines_of(block)
    version, space, rest = lines[0].partition(b" ")
    status, reason = rest[:3], rest[3:]
    number = version_of(version)
    if not space or len(status) != 3 or not DIGITS.issuperset(status) or status[:1] == b"0":
        raise Refused({502}, "no status")
    if reason[:1] not in (b"", b" ") or not VALUE.issuperset(reason):
        raise Refused({502}, "no reason")
    fields = [field_of(line, spaces_before_colon=True) for line in lines[1:]]
    return Head((status, reason[1:]), number, fields)


def response_framing(head: Head, method: bytes) -> Framing:
    if len(head.fields) > 1000:
        raise Refused({502}, "too many fields")
    status = int(head.first[0])
    length = length_of(head, {502}, True)
    chunked = bool(head.all(b"transfer-encoding"))
    if chunked and (
        head.version == b"1.0"
        or length is not None
        or head.members(b"transfer-encoding") != [b"chunked"]
    ):
        raise Refused({502}, "Transfer-Encoding")
    if status == 101 and not head.members(b"upgrade"):
        raise Refused({502}, "101 to nothing")
    if status < 200 or status in (204, 304) or method == b"HEAD":
        return 0
    if method == b"CONNECT" and status < 300:
        return 0
    return "chunked" if chunked else "close" if length is None else length


# ── bodies ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Chunks:
    """What a chunked body holds so far."""

    payload: bytes = b""
    trailers: list[Field] = field(default_factory=list)
    end: int | None = None
    """the offset behind it, None where it is not complete"""


def chunks(data: bytes, start: int = 0) -> Chunks:
    """The chunked body at data[start:]. Raises Refused where it breaks, with what came before as
    `args[-1]`."""
    found = Chunks()
    payload = bytearray()
    at = start
    try:
        while True:
            end = data.find(b"\n", at)
            if (end < 0 and len(data) - at >= 256) or end - at >= 256:
                raise Refused({400}, "long size line")
            if at < len(data) and data[at] not in HEXADECIMAL:
                raise Refused({400}, "no size")
            if end < 0:
                return found
            size = size_of(data[at : end + 1])
            at = end + 1
            if size == 0:
                break
            payload += data[at : at + size]
            found.payload = bytes(payload)
            at += size
            if len(data) < at:
                return found
            if not b"\r\n".startswith(data[at : at + 2]):
                raise Refused({400}, "chunk does not end")
            if len(data) < at + 2:
                return found
            at += 2
        section = at
        lines = []
        while True:
            end = data.find(b"\n", at)
            stop = len(data) + 1 if end < 0 else end + 1
            if stop - section > 8192:
                raise Refused({400}, "long trailers")
            if end < 0:
                return found
            if end == at or data[end - 1] != 13:
                raise Refused({400}, "LF")
            line = data[at : end - 1]
            at = end + 1
            if not line:
                break
            lines.append(line)
        found.trailers = [field_of(line) for line in lines]
        found.end = at
        return found
    except Refused as refused:
        refused.args = (*refused.args, found)
        raise


def size_of(line: bytes) -> int:
    """A chunk-size line with its LF."""
    if line[-2:] != b"\r\n":
        raise Refused({400}, "LF")
    line = line[:-2]
    digits = next((n for n, c in enumerate(line) if c not in HEXADECIMAL), len(line))
    if not 1 <= digits <= 16 or int(line[:digits], 16) > MAX_INT:
        raise Refused({400}, "size")
    at = digits

    def space() -> None:
        nonlocal at
        while line[at : at + 1] in (b" ", b"\t"):
            at += 1

    def token() -> None:
        nonlocal at
        begin = at
        while at < len(line) and line[at] in TOKEN:
            at += 1
        if at == begin:
            raise Refused({400}, "extension")

    while at < len(line):
        space()
        if line[at : at + 1] != b";":
            raise Refused({400}, "extension")
        at += 1
        space()
        token()
        before = at
        space()
        if line[at : at + 1] != b"=":
            at = before
            continue
        at += 1
        space()
        if line[at : at + 1] != b'"':
            token()
            continue
        at += 1
        while line[at : at + 1] != b'"':
            if line[at : at + 1] == b"\\":
                at += 1
            if at >= len(line) or line[at] not in VALUE:
                raise Refused({400}, "quoted string")
            at += 1
        at += 1
    return int(line[:digits], 16)


# ── targets ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class Place:
    host: str
    port: int
    path: bytes | None
    """in origin-form, None for a tunnel"""
    authority: bytes
    scheme: str


def target(method: bytes, text: bytes) -> Place:
    """Where a request-target leads."""
    if method == b"CONNECT":
        host, port = authority(text)
        if port is None:
            raise Refused({400}, "no port")
        return Place(host, port, None, text, "tcp")
    if not VISIBLE.issuperset(text) or text[:1] in (b"/", b"*"):
        raise Refused({400}, "form")
    scheme, colon, rest = text.partition(b"://")
    first = scheme[:1]
    letters = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if not colon or not first or first[0] not in letters:
        raise Refused({400}, "no scheme")
    if not (letters | DIGITS | frozenset(b"+-.")).issuperset(scheme):
        raise Refused({400}, "no scheme")
    secure = scheme.lower() in (b"https", b"wss")
    if not secure and scheme.lower() not in (b"http", b"ws"):
        raise Refused({501}, "scheme")
    rest = rest.partition(b"#")[0]
    end = min((at for mark in b"/?" if (at := rest.find(mark)) >= 0), default=len(rest))
    host, port = authority(rest[:end])
    path = rest[end:]
    if not path and method == b"OPTIONS":
        path = b"*"
    elif not path.startswith(b"/"):
        path = b"/" + path
    port = (443 if secure else 80) if port is None else port
    return Place(host, port, path, rest[:end], "https" if secure else "http")


def authority(text: bytes) -> tuple[str, int | None]:
    if text.startswith(b"["):
        inner, bracket, rest = text[1:].partition(b"]")
        if not bracket or (rest and not rest.startswith(b":")):
            raise Refused({400}, "bracket")
        try:
            host = str(ipaddress.IPv6Address(inner.decode("ascii")))
        except ValueError:
            raise Refused({400}, "IPv6") from None
        if "%" in host:
            raise Refused({400}, "zone")
        digits = rest[1:] if rest else None
    else:
        name, colon, port = text.partition(b":")
        digits = port if colon else None
        if not name or len(name) > 253:
            raise Refused({400}, "host")
        if not (TOKEN - frozenset(b"!#$%&'*+^`|~")).issuperset(name):
            raise Refused({400}, "host")
        host = name.decode("ascii").lower()
    if digits is None:
        return host, None
    if not digits or not DIGITS.issuperset(digits) or not 0 < int(digits) < 65536:
        raise Refused({400}, "port")
    return host, int(digits)


# ── streams ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class Message:
    """A message at the beginning of a stream, or what of it has come."""

    head: Head
    framing: Framing
    body: bytes
    trailers: list[Field]
    end: int | None
    """the offset behind it; None where it is not complete, or ends with the connection"""
    broken: bool = False
    """the body breaks its framing"""


def _head_block(data: bytes, start: int, max_head: int, statuses: set[int]) -> bytes:
    """The bytes of the head at data[start:], by the first end of it that any reader might see."""
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := data.find(mark, start)) >= 0]
    if not ends:
        if len(data) - start >= max_head:
            raise Refused(statuses, "long head")
        if b"\0" in data[start:]:
            raise Refused({400, *statuses}, "NUL")
        raise Incomplete
    block = data[start : min(ends)]
    if len(block) > max_head:
        raise Refused({400, 501, 505, *statuses}, "long head")
    return block


def request(data: bytes, start: int, max_head: int) -> Message:
    """The request at data[start:]. Raises Refused, Incomplete."""
    if data[start:] == b"\r":
        raise Incomplete
    if data.startswith(b"\r\n", start):
        start += 2
    if start == len(data):
        raise Incomplete
    if data[start] not in TOKEN:
        raise Refused({400}, "no method")
    block = _head_block(data, start, max_head, {414, 431, 400})
    head = request_head(block)
    framing = request_framing(head)
    return _body(head, framing, data, start + len(block))


def response(data: bytes, start: int, max_head: int, method: bytes) -> Message:
    """The response, interim or final, at data[start:]. Raises Refused, Incomplete."""
    if not b"HTTP/1.".startswith(data[start : start + 7]):
        raise Refused({502}, "no HTTP")
    block = _head_block(data, start, max_head, {502})
    head = response_head(block)
    framing = response_framing(head, method)
    return _body(head, framing, data, start + len(block))


def _body(head: Head, framing: Framing, data: bytes, at: int) -> Message:
    if isinstance(framing, int):
        end = at + framing
        return Message(head, framing, data[at:end], [], end if end <= len(data) else None)
    if framing == "close":
        return Message(head, framing, data[at:], [], None)
    try:
        found = chunks(data, at)
    except Refused as refused:
        return Message(head, framing, refused.args[-1].payload, [], None, broken=True)
    return Message(head, framing, found.payload, found.trailers, found.end)
