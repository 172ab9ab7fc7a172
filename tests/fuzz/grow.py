"""Inputs that look like what is read: grown from words, and changed where it hurts.

Everything is drawn from a random.Random, so that any engine can drive it.
"""

from collections.abc import Callable
from random import Random

from tests.fuzz.corpus import corpus
from tests.fuzz.driver import END
from warmproxy.settings import TABLES, describe

WORDS: dict[str, tuple[bytes, ...]] = {
    "method": (
        *(b"GET", b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"get"),
        *(b"M-SEARCH", b"A" * 32, b"A" * 33, b"PRI", b"G(T", b""),
    ),
    "target": (
        *(b"http://h/", b"http://h/a", b"http://h", b"/", b"*", b"h:443", b"http://h:81/?q#f"),
        *(b"http://[::1]:80/", b"https://h/", b"http://u@h/", b"ws://h", b'http://h/"<>\\^`{|}'),
        *(b"http://h/\xe4", b"http://h:0/", b"http://H/", b"//h/", b"http://h%2e/"),
    ),
    "version": (
        *((b"HTTP/1.1",) * 12),
        *(
            b"HTTP/1.0",
            b"HTTP/1.0",
            b"HTTP/1.2",
            b"HTTP/2.0",
            b"http/1.1",
            b"HTTP/1.1 ",
            b"HTTP/11",
        ),
    ),
    "status": (
        *(b"200", b"200", b"204", b"304", b"100", b"103", b"101", b"404", b"426", b"500"),
        *(b"099", b"20", b"2000", b"999", b"2x0"),
    ),
    "reason": (b" OK", b" OK", b"", b" ", b" Not Found", b" \xe4\t", b" \x01", b"OK", b" \0"),
    "name": (
        *(b"Content-Length", b"Transfer-Encoding", b"Connection", b"Host", b"X-A", b"X-Mine"),
        *(b"Content-Length", b"Transfer-Encoding", b"Connection", b"Via", b"TE", b"Upgrade"),
        *(b"Expect", b"Keep-Alive", b"Proxy-Connection", b"Max-Forwards", b"Proxy-Authorization"),
        *(b"Idempotency-Key", b"Date", b"Proxy-Status", b"WWW-Authenticate", b"Authorization"),
        *(b"content-length", b"TRANSFER-ENCODING", b"X Y", b"", b"Content_Length", b"Trailer"),
    ),
    "value": (
        *(b"0", b"3", b"5", b"03", b"+3", b"-3", b"3, 3", b"3,4", b"0x3", b"3 3", b"1e1"),
        *(b"chunked", b"Chunked", b"gzip", b"gzip, chunked", b"chunked, identity", b"identity"),
        *(b"close", b"Close", b"keep-alive", b"x-a", b"X-A, close", b"upgrade", b"te, X-Mine"),
        *(
            b"websocket",
            b"h2c",
            b"trailers",
            b"100-continue",
            b"1.1 other",
            b"1.1 us",
            b"Negotiate",
        ),
        *(b"h", b"h:80", b"[::1]", b"h, h", b"u@h", b"a", b"", b"\xe4", b"a\tb", b"b\x01", b"\0"),
        *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551619", b"host", b"7"),
    ),
    "space": (
        *((b" ",) * 20),
        *(b"", b"", b"\t", b"  ", b" \t ", b"\x0b", b"\r\n ", b"\xa0"),
    ),
    "after": (
        *((b"",) * 40),
        *(b" ", b"\t", b"\x0b", b"\r"),
    ),
    "colon": (
        *((b":",) * 50),
        *(b" :", b"\t:", b";", b"", b"::"),
    ),
    "end": (
        *((b"\r\n",) * 70),
        *(b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\r\n ", b"\r\n\t"),
    ),
    "size": (
        *(b"0", b"1", b"5", b"a", b"05", b"10", b"1f", b"+5", b"-5", b"0x5", b" 5", b"5 ", b""),
        *(b"5\t", b"5_", b"g", b"0" * 16, b"0" * 17, b"f" * 16, b"7" + b"f" * 15, b"8" + b"0" * 15),
        *(b"1" + b"0" * 15 + b"5", b"5\0", b"\xb2", b"0" * 15 + b"5"),
    ),
    "extension": (
        *((b"",) * 10),
        *(
            b";a",
            b";a=b",
            b';a="b"',
            b" ; a = b",
            b';a="\\""',
            b";",
            b";a=",
            b';a="',
            b";a b",
            b";;a",
        ),
        *(
            b";\xe4",
            b";a\n",
            b";a\0",
            b';a="\n"',
            b";a\rb",
            b";" + b"a" * 250,
            b" ",
            b"\t;a",
            b";a ",
        ),
        *(b'"', b'=";"'),
    ),
    "harm": (
        *(b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x0c", b"\x7f", b"\x80", b"\xff"),
        *(
            b":",
            b";",
            b",",
            b'"',
            b"\\",
            b"@",
            b"%",
            b"#",
            b"?",
            b"/",
            b"[",
            b"]",
            b"0",
            b"1",
            b"a",
        ),
        *(b"\x01", b"\xa0", b"+", b"-", b".", b"*", b"\r\n\r\n", b"\n\n"),
    ),
    "scheme": (
        *((b"http://",) * 8),
        *(b"HTTP://", b"ws://", b"https://", b"ftp://", b"http:/", b"http:", b"//", b"", b"h2://"),
    ),
    "host": (
        *(b"h", b"example.com", b"127.0.0.1", b"[::1]", b"[0:0::1]", b"[::ffff:1.2.3.4]", b"H"),
        *(
            b"",
            b"[::1",
            b"::1",
            b"[fe80::1%25lo]",
            b"[h]",
            b"[]",
            b"h.",
            b"-",
            b"a" * 253,
            b"a" * 254,
        ),
        *(b"h%2e", b"u@h", b"u:p@h", b"h\\i", b"h,i", b"\xe4", b"h_h", b"[1:2:3:4:5:6:7:8]", b"*"),
        *(b"[::1]x", b"[v1.a]", b"xn--a", b"0x7f.1", b"2130706433"),
    ),
    "port": (
        *((b"",) * 4),
        *(b":80", b":443", b":1", b":65535", b":65536", b":0", b":", b":00080", b":000080", b":x"),
        *(b":+80", b":-1", b":80:80", b":8 0", b":999999", b":\xb2"),
    ),
    "path": (
        *(b"/", b"", b"/a", b"/a?b", b"?q", b"#f", b"/a?b#c", b"/%zz", b"//h/", b"/../a", b"/ "),
        *(b"/\0", b"/\xe4", b'/"<>\\^`{|}', b"/@h", b"\\", b"/\r\n"),
    ),
}

_KEYS = sorted({name for table in TABLES.values() for name in table})
_VARIABLES = sorted({each.variable for each in describe() if each.variable})
_VALUES = (
    *('"auto"', '"1m"', '"* * * * *"', '"CET"', '[{at = "1 2 * * *", count = 1, for = 3}]'),
    *("0", "1", "2", "-1", "1.5", "1e9", "1e400", "nan", "inf", "-inf", "true", "false", "yes"),
    *('""', '"a"', "[]", "[1]", '["a"]', "{}", "{a = 1}", '"127.0.0.1:1"', '["127.0.0.1:1"]'),
    *('"http://h"', '"https://h:1"', '"http://u:s3cret@h"', '"http://[::1]:81/"', "9" * 30),
    *('["0.0.0.0:1"]', '["::1"]', '["10.0.0.0/8"]', '["10.0.0.1/8"]', '"json"', '"jsn"', '"""x"""'),
    *("'''\n'''", "1979-05-27", "07:32:00", "0x10", "1_000", '"\\u0000"', '"\\ud7ff"', "[[]]", "["),
    *(
        '"http://\u00e4"',
        '"http://h:99999"',
        '"//s3cret@"',
        "-0",
        "1_",
        '"[::1]:1"',
        '"localhost:1"',
    ),
)
_TEXTS = (
    *("", "0", "1", "x", "true", "no", "1e3", "-1", "nan", "127.0.0.1:1", "[::1]:2", "a b,c", ","),
    *("10.0.0.0/8", "10.0.0.1/8", "http://h", "http://h=3", "http://u:s3cret@h=1", "https://h:1=x"),
    *("json", "\x01", "\u00e4", "\udce4", "9" * 25, "tcp://10.0.0.1:80", "http://h=1 http://i=2"),
    *("//s3cret@h", "0.0.0.0:1", "=", "http://[::1]=2", "http://h.=1", "\u2028"),
)


def word(random: Random, kind: str) -> bytes:
    return random.choice(WORDS[kind])


def fields(random: Random, most: int = 5) -> bytes:
    out = b""
    for _ in range(random.randrange(most + 1)):
        name, value = random.choice(_FIELDS)
        if random.random() < 0.4:
            name = word(random, "name")
        if random.random() < 0.4:
            value = word(random, "value")
        out += name + word(random, "colon") + word(random, "space")
        out += value + word(random, "after") + word(random, "end")
    return out


_FIELDS = (
    *((b"Content-Length", b"0"), (b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")),
    *((b"content-length", b"5"), (b"transfer-encoding", b"chunked"), (b"Connection", b"X-A")),
    *((b"Connection", b"close"), (b"X-A", b"a"), (b"X-Mine", b"b"), (b"Host", b"h"), (b"A", b"b")),
    *((b"Via", b"1.1 other"), (b"Upgrade", b"websocket"), (b"Max-Forwards", b"7")),
)


def request(random: Random) -> bytes:
    """Mostly one that is read."""
    host = b"" if random.random() < 0.05 else b"Host: h\r\n"
    return (
        b"%b %b %b" % (word(random, "method"), word(random, "target"), word(random, "version"))
        + word(random, "end")
        + host
        + fields(random)
        + b"\r\n"
    )


def response(random: Random) -> bytes:
    version, status = word(random, "version"), word(random, "status")
    first = b"%b %b%b" % (version, status, word(random, "reason"))
    return first + word(random, "end") + fields(random) + b"\r\n"


def chunked(random: Random) -> bytes:
    out = b""
    for _ in range(random.randrange(4)):
        payload = random.randbytes(random.choice((0, 1, 2, 5, 5, 16, 31)))
        size = b"%x" % len(payload) if random.random() < 0.8 else word(random, "size")
        out += size + word(random, "extension") + word(random, "end")
        out += payload + word(random, "end")
    if random.random() < 0.9:
        out += b"0" + word(random, "extension") + b"\r\n" + fields(random, 2) + b"\r\n"
    return out + random.choice((b"", b"", b"GET / HTTP/1.1\r\n", b"\r\n", b"0\r\n\r\n"))


def heads_input(random: Random) -> bytes:
    message = request(random) if random.random() < 0.6 else response(random)
    before = b"\r\n" if random.random() < 0.05 else b""
    rest = random.choice((b"", b"", b"hello", message))
    return random.randbytes(1) + before + message + rest


def framing_input(random: Random) -> bytes:
    return random.randbytes(1) + chunked(random)


def target_input(random: Random) -> bytes:
    method = random.choice((b"GET", b"GET", b"GET", b"CONNECT", b"OPTIONS"))
    if method == b"CONNECT" and random.random() < 0.8:
        return b"CONNECT " + word(random, "host") + word(random, "port")
    place = word(random, "scheme") + word(random, "host") + word(random, "port")
    return method + b" " + place + word(random, "path")


def settings_input(random: Random) -> bytes:
    lines = []
    for _ in range(random.randrange(7)):
        chance = random.random()
        if chance < 0.15:
            lines.append("[[upstream]]")
        elif chance < 0.2:
            lines.append("[[upstream.warm_at]]")
        elif chance < 0.3:
            lines.append(random.choice(("[defaults]", "[upstream]", "[[defaults]]", "[x]", "# x")))
        else:
            lines.append(f"{random.choice(_KEYS)} = {random.choice(_VALUES)}")
    out = "\n".join(lines)
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        out += f"\0{random.choice((*_VARIABLES, 'WARMPROXY_WARM', 'WARMPROXY_X', 'HOME'))}="
        out += random.choice(_TEXTS)
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        out += f"\0-{random.choice((*_KEYS, 'warm', 'warm'))}={random.choice(_TEXTS)}"
    return out.encode("utf-8", "surrogateescape")


_BODY_HEADS = (
    (b"Content-Length: 5\r\n", b"hello"),
    (b"Content-Length: 0\r\n", b""),
    (b"", b""),
    (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked\r\n", b"3;a\r\nabc\r\n0\r\nX: y\r\nX-Mine: z\r\n\r\n"),
    (b"Connection: close\r\nContent-Length: 2\r\n", b"ok"),
    (b"Connection: X-Mine\r\nX-Mine: 1\r\n", b""),
)


_EXTRAS = (
    *(b"", b"", b"Max-Forwards: 0\r\n", b"Max-Forwards: 3\r\n", b"Idempotency-Key: k\r\n"),
    *(b"Via: 1.1 us\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"X-A: b\r\n"),
    *(b"Authorization: Negotiate x\r\n", b"Expect: 100-continue\r\n", b"TE: trailers\r\n"),
)


def _sound_request(random: Random) -> bytes:
    length, body = random.choice(_BODY_HEADS)
    method = random.choice((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"TRACE"))
    extra = random.choice(_EXTRAS)
    version = random.choice((b"1.1", b"1.1", b"1.1", b"1.0"))
    if version == b"1.0" and b"chunked" in length:
        version = b"1.1"
    path = random.choice((b"", b"/", b"/a"))
    first = b"%b http://h%b HTTP/%b\r\nHost: h\r\n" % (method, path, version)
    if random.random() < 0.06:
        return b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\nearly"
    return first + length + extra + b"\r\n" + body


def _sound_response(random: Random) -> bytes:
    length, body = random.choice(_BODY_HEADS)
    status = random.choice((b"200", b"200", b"200", b"204", b"304", b"404", b"101"))
    version = random.choice((b"1.1", b"1.1", b"1.1", b"1.0"))
    extra = random.choice((b"", b"", b"Upgrade: x\r\nConnection: upgrade\r\n", b"X-A: b\r\n"))
    interim = random.choice((b"", b"", b"", b"HTTP/1.1 103 E\r\n\r\n"))
    if not length:
        body = random.choice((b"", b"some"))
    return interim + b"HTTP/%b %b R\r\n" % (version, status) + length + extra + b"\r\n" + body


def _events(random: Random, letter: bytes, data: bytes) -> list[bytes]:
    out = []
    while data and random.random() < 0.5:
        at = random.randrange(len(data) + 1)
        if at:
            out.append(letter + data[:at])
        data = data[at:]
    return [*out, letter + data] if data else out


def exchange_input(random: Random) -> bytes:
    events: list[bytes] = []
    for _ in range(random.choice((1, 1, 2, 2, 3))):
        sent = request(random) if random.random() < 0.15 else _sound_request(random)
        if random.random() < 0.3:
            sent += _sound_request(random)
        got = response(random) if random.random() < 0.15 else _sound_response(random)
        if random.random() < 0.15:
            sent = mutated(random, sent)
        elif random.random() < 0.1:
            sent = sent[: -random.randint(1, 9)]
        if random.random() < 0.15:
            got = mutated(random, got)
        mine = _events(random, b"c", sent)
        mine += random.choice(([b"l"], [b"l"], [b"L"], [b"K"], [b"x"], [b"L", b"n", b"l"]))
        mine += _events(random, b"u", got)
        mine += random.choice(([], [], [], [b"n"], [b"r"]))
        events += mine
    for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
        at = random.randrange(len(events) + 1)
        chance = random.random()
        if chance < 0.5:
            events.insert(at, random.choice((b"e", b"a", b"n", b"r", b"t", b"s", b"h", b"d", b"l")))
        elif chance < 0.75 and events:
            events.insert(at, events.pop(random.randrange(len(events))))
        elif events:
            events.pop(random.randrange(len(events)))
    return END.join(events)


GROW: dict[str, Callable[[Random], bytes]] = {
    "heads": heads_input,
    "framing": framing_input,
    "target": target_input,
    "settings": settings_input,
    "exchange": exchange_input,
}


def mutated(random: Random, data: bytes) -> bytes:
    """The same with a few changes that a parser may trip over."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at = random.randrange(len(data) + 1)
        to = min(len(data), at + random.choice((1, 1, 2, 5)))
        match random.randrange(8):
            case 0:
                data = data[:at] + word(random, "harm") + data[at:]
            case 1:
                data = data[:at] + word(random, "harm") + data[to:]
            case 2:
                data = data[:at] + data[to:]
            case 3:
                data = data[:at] + data[at:to].swapcase() + data[to:]
            case 4:
                data = data[:at] + data[at:to] * 2 + data[to:]
            case 5:
                data = data[:at] + word(random, random.choice(_KINDS)) + data[at:]
            case 6:  # a line twice, or elsewhere
                lines = data.split(b"\r\n")
                lines.insert(random.randrange(len(lines)), random.choice(lines))
                data = b"\r\n".join(lines)
            case 7:  # a line end becomes another one
                ends = [n for n in range(len(data)) if data.startswith(b"\r\n", n)]
                if ends:
                    at = random.choice(ends)
                    data = data[:at] + word(random, "end") + data[at + 2 :]
    return data


_KINDS = sorted(WORDS)


def grown(random: Random, target: str) -> bytes:
    data = GROW[target](random)
    if target in ("exchange", "settings"):
        return mutated(random, data) if random.random() < 0.2 else data
    return mutated(random, data) if random.random() < 0.5 else data


def seeds(target: str) -> list[bytes]:
    """The corpus as inputs of a target, and a few grown ones."""
    random = Random(0)
    found = [GROW[target](random) for _ in range(50)]
    for case in corpus():
        if len(case.sent) > 3000:
            continue
        body = case.sent.partition(b"\r\n\r\n")[2]
        words = case.sent.split(b" ")
        answers = case.side.startswith("response")
        if target == "heads":
            found.append(b"\x05" + case.sent)
        elif target == "framing" and case.side.endswith("body"):
            found.append(b"\x05" + body)
        elif target == "target" and not answers and len(words) > 1:
            found.append(words[0] + b" " + words[1])
        elif target == "exchange" and END not in case.sent + case.request:
            if answers:
                script = [b"c" + case.request, b"l", b"u" + case.sent, b"n"]
            else:
                script = [b"c" + case.sent, b"l", b"uHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
            found.append(END.join(script))
    return found


def dictionary() -> list[bytes]:
    """Every word, once."""
    words = {each for group in WORDS.values() for each in group if each}
    words |= {text.encode("utf-8", "surrogateescape") for text in (*_VALUES, *_TEXTS) if text}
    words |= {each.encode() for each in (*_KEYS, *_VARIABLES, "[[upstream]]\n", "[defaults]\n")}
    return sorted(word for word in words if len(word) <= 60)
