"""Rows 1 to 15 of docs/standards.md: what a request may look like and how it goes on."""

import pytest

from tests.standards.wire import OK, broken, error_of, refused, request, status_of

MAX_HEAD = 65536


def bad_get(web, lines: bytes) -> bytes:
    """A GET with these bytes behind its Host line."""
    return f"GET {web.url}/bad HTTP/1.1\r\nHost: h\r\n".encode() + lines + b"\r\n"


# -- the target and Host ----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_row_1_host_comes_from_the_target(client, web, version) -> None:
    """Row 1: absolute-form is accepted and Host made from it, whatever Host the client sent."""
    client.ask(request("GET", f"{web.url}/a", host="evil.example", version=version))
    (received,) = web.received
    assert received.line == b"GET /a HTTP/1.1"
    assert received.values("host") == [web.authority.encode()]


def test_row_1_host_is_made_where_there_is_none(client, web) -> None:
    """Row 1: an HTTP/1.0 request without Host goes on with the one of its target."""
    client.ask(request("GET", f"{web.url}/a", host=None, version="1.0"))
    assert web.received[0].values("host") == [web.authority.encode()]


def test_row_1_every_method_comes_in_absolute_form(client, web) -> None:
    """Row 1: absolute-form is accepted with any method but CONNECT."""
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"):
        assert status_of(client.ask(request(method, f"{web.url}/{method}"))) == 200
    assert [r.line.split(b" ")[0].decode() for r in web.received] == [
        r.target.removeprefix("/") for r in web.received
    ]


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "Host: h\r\nHost: h\r\n",
        "Host: h\r\nhOST: other\r\n",
        "Host: a b\r\n",
        "Host: a, b\r\n",
        "Host: user@h\r\n",
        "Host: http://h\r\n",
        "Host: h/path\r\n",
        "Host: h:8o\r\n",
        "Host: [::1\r\n",
        "Host: h\xe9\r\n",
    ],
)
def test_row_2_host_is_there_once_and_valid(proxy, web, lines) -> None:
    """Row 2: HTTP/1.1 without Host, with two or with a malformed one is a 400."""
    refused(proxy, web, f"GET {web.url}/bad HTTP/1.1\r\n{lines}\r\n".encode("latin-1"), 400)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", "/"),
        ("/", "/"),
        ("?q=1", "/?q=1"),
        ("/p?q", "/p?q"),
        ("#part", "/"),
        ("/p#part", "/p"),
    ],
)
def test_row_3_the_origin_gets_origin_form(client, web, path, sent) -> None:
    """Row 3: path and query go to the origin, an empty path as "/", a fragment not at all."""
    client.ask(request("GET", web.url + path))
    assert web.received[0].line == f"GET {sent} HTTP/1.1".encode()


@pytest.mark.parametrize(("path", "sent"), [("", "*"), ("/", "/"), ("?q", "/?q")])
def test_row_4_options_without_a_path_is_for_the_whole_server(client, web, path, sent) -> None:
    """Row 4: OPTIONS with an empty path and no query goes on as "*", others as they are."""
    client.ask(request("OPTIONS", web.url + path))
    assert web.received[0].line == f"OPTIONS {sent} HTTP/1.1".encode()


def test_row_5_a_target_that_is_too_long_is_a_414(proxy, web) -> None:
    """Row 5: a request line beyond max_head is a 414, whether it ends or goes on for ever."""
    refused(proxy, web, request("GET", f"{web.url}/{'a' * MAX_HEAD}"), 414)
    refused(proxy, web, f"GET {web.url}/".encode() + b"a" * MAX_HEAD, 414)


def test_row_5_a_request_line_of_8000_octets_is_served(client, web) -> None:
    """Row 5: 8000 octets, the least to be supported, are passed on whole."""
    path = "/" + "a" * (8000 - len(f"GET {web.url}/ HTTP/1.1"))
    assert status_of(client.ask(request("GET", web.url + path))) == 200
    assert web.targets == [path]


# -- syntax -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "GET  {url}/ HTTP/1.1",
        "GET\t{url}/ HTTP/1.1",
        "GET {url}/a b HTTP/1.1",
        "GET {url}/ HTTP/1.1 ",
        "GET {url}/ http/1.1",
        "GET {url}/ HTTP/1.12",
        "GET {url}/",
        "G(T {url}/ HTTP/1.1",
        " GET {url}/ HTTP/1.1",
        "GET {url}/\xe9 HTTP/1.1",
        "GET / HTTP/1.1",
        "GET * HTTP/1.1",
        "GET //{url} HTTP/1.1",
    ],
)
def test_row_6_a_malformed_request_line_is_a_400(proxy, web, line) -> None:
    """Row 6: an invalid request line is refused and not mended."""
    line = line.format(url=web.url)
    refused(proxy, web, f"{line}\r\nHost: h\r\n\r\n".encode("latin-1"), 400)


def test_row_6_one_empty_line_before_a_request_is_ignored(client, web) -> None:
    """Row 6: an empty line before each request is skipped."""
    for n in (1, 2):
        assert status_of(client.ask(b"\r\n" + request("GET", f"{web.url}/{n}"))) == 200
    assert web.targets == ["/1", "/2"]


@pytest.mark.parametrize(
    "lines",
    [b"X: a\rb\r\n", b"X: a\nb\r\n", b"X: a\0b\r\n", b"X: a\r\r\n", b"X: a\n", b"X\r: a\r\n"],
)
def test_row_7_no_bare_cr_lf_or_nul_in_a_request(proxy, web, lines) -> None:
    """Row 7: CR, LF or NUL inside a field are a 400."""
    refused(proxy, web, bad_get(web, lines), 400)


@pytest.mark.parametrize("byte", [b"\r", b"\n", b"\0"])
def test_row_7_no_bare_cr_lf_or_nul_in_a_request_line(proxy, web, byte) -> None:
    """Row 7: CR, LF or NUL inside the request line are a 400."""
    line = b"GET " + web.url.encode() + b"/" + byte + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    refused(proxy, web, line, 400)


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b", b"a\r"])
def test_row_7_no_bare_cr_lf_or_nul_in_a_response(proxy, origin, value) -> None:
    """Row 7: CR, LF or NUL inside a response's field are a 502."""
    broken(proxy, origin(OK.replace(b"\r\n\r\n", b"\r\nX: " + value + b"\r\n\r\n")))


@pytest.mark.parametrize("space", [b" ", b"\t", b" X: 1\r\n"])
def test_row_8_no_white_space_before_the_first_field(proxy, web, space) -> None:
    """Row 8: white space behind the request line is a 400."""
    data = b"GET " + web.url.encode() + b"/bad HTTP/1.1\r\n" + space + b"Host: h\r\n\r\n"
    refused(proxy, web, data, 400)


def test_row_8_no_white_space_before_a_responses_first_field(proxy, origin) -> None:
    """Row 8: white space behind the status line is a 502."""
    broken(proxy, origin(OK.replace(b"OK\r\n", b"OK\r\n X: 1\r\n")))


@pytest.mark.parametrize("space", [" ", "\t", " \t "])
def test_row_9_no_white_space_before_the_colon_of_a_request(proxy, web, space) -> None:
    """Row 9: white space between a name and its colon is a 400."""
    refused(proxy, web, bad_get(web, f"Content-Length{space}: 5\r\n".encode()), 400)


def test_row_9_white_space_before_a_responses_colon_is_removed(client, origin) -> None:
    """Row 9: white space between a response's name and colon does not reach the client."""
    web = origin(OK.replace(b"OK\r\n", b"OK\r\nX-Spaced \t: v\r\nX-Next: w\r\n"))
    answer = client.ask(request("GET", f"{web.url}/"))
    assert b"\r\nX-Spaced: v\r\n" in answer.head
    assert answer.values("x-next") == [b"w"]


@pytest.mark.parametrize("fold", [b"X: a\r\n b\r\n", b"X: a\r\n\tb\r\n", b"X:\r\n b\r\n"])
def test_row_10_a_folded_line_in_a_request_is_a_400(proxy, web, fold) -> None:
    """Row 10: obs-fold is refused."""
    refused(proxy, web, bad_get(web, fold), 400)


def test_row_10_a_folded_line_in_a_response_is_a_502(proxy, origin) -> None:
    """Row 10: obs-fold from an origin is refused."""
    broken(proxy, origin(OK.replace(b"OK\r\n", b"OK\r\nX: a\r\n b\r\n")))


@pytest.mark.parametrize(
    "lines",
    [[f"X: {'a' * MAX_HEAD}"], ["X: a"] * 1001, [f"X-{n}: {'a' * 1000}" for n in range(70)]],
    ids=["long line", "many lines", "both"],
)
def test_row_11_too_many_or_too_large_fields_are_a_431(proxy, web, lines) -> None:
    """Row 11: fields beyond max_head, or more than 1000 of them, are a 431."""
    refused(proxy, web, request("GET", f"{web.url}/bad", *lines), 431)


def test_row_12_a_method_that_is_too_long_is_a_501(proxy, web) -> None:
    """Row 12: a method of more than 32 characters is a 501."""
    refused(proxy, web, request("M" * 33, f"{web.url}/bad"), 501)


# -- what goes on as it came ------------------------------------------------------------------

FIELDS = [
    "X-Unknown: one",
    "accept: text/html;q=0.5, */*",
    "x-unknown: two",
    "Authorization: Digest username=\"a\",  realm=\"b , c\"",
    "X-Empty: ",
    "X-Unknown: three, and  four",
    "Cookie: a=b; c=\"d\"",
    "Cookie: e=f",
    "X-Latin: caf\xe9",
]  # fmt: skip


def test_row_13_a_requests_fields_go_on_in_their_order(client, web) -> None:
    """Row 13: unknown and repeated fields and Authorization reach the origin as they came."""
    client.ask(request("GET", f"{web.url}/", *FIELDS))
    lines = web.received[0].head.decode("latin-1").split("\r\n")
    assert [line for line in lines if line in FIELDS] == FIELDS


def test_row_13_a_responses_fields_go_on_in_their_order(client, origin) -> None:
    """Row 13: unknown and repeated fields and WWW-Authenticate reach the client as they came."""
    fields = [
        'WWW-Authenticate: Basic realm="a,  b"',
        "Set-Cookie: a=b; Path=/",
        "X-Unknown: one",
        "WWW-Authenticate: Bearer",
        "Set-Cookie: c=d",
        "x-unknown: two",
        "X-Latin: caf\xe9",
    ]
    head = "\r\n".join(["HTTP/1.1 401 Who are you?", *fields, "Content-Length: 0", "", ""])
    web = origin(head.encode("latin-1"))
    answer = client.ask(request("GET", f"{web.url}/"))
    lines = answer.head.decode("latin-1").split("\r\n")
    assert lines[0] == "HTTP/1.1 401 Who are you?"
    assert [line for line in lines if line in fields] == fields


@pytest.mark.parametrize(
    "path", ["/a//b/../c/./d", "/%7euser/%2F%2f", "/?", "/p?a=%20&&b=+;c", "/'()!$&*,;=:@[]|\\^`{}"]
)
def test_row_14_name_path_and_query_are_not_changed(client, web, path) -> None:
    """Row 14: the host's name, the path and the query reach the origin byte for byte."""
    authority = f"LocalHost:{web.origin.port}"
    assert status_of(client.ask(request("GET", f"http://{authority}{path}"))) == 200
    (received,) = web.received
    assert received.line == f"GET {path} HTTP/1.1".encode()
    assert received.values("host") == [authority.encode()]


# -- Max-Forwards -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS"])
def test_row_15_max_forwards_is_decremented(client, web, method) -> None:
    """Row 15: each TRACE and OPTIONS goes on with one less."""
    for received, sent in (("7", b"6"), ("1", b"0")):
        client.ask(request(method, f"{web.url}/", f"Max-Forwards: {received}"))
        assert web.received[-1].values("max-forwards") == [sent]


def test_row_15_trace_ends_here_at_zero(client, web) -> None:
    """Row 15: TRACE with Max-Forwards 0 is answered by us, with the request and no secrets."""
    lines = ["Max-Forwards: 0", "X-Seen: yes", "Cookie: s=1", "Authorization: Basic c2VjcmV0"]
    answer = client.ask(request("TRACE", f"{web.url}/t", *lines))
    assert status_of(answer) == 200
    assert answer.values("content-type") == [b"message/http"]
    assert answer.body.startswith(f"TRACE {web.url}/t HTTP/1.1\r\n".encode())
    assert b"X-Seen: yes\r\n" in answer.body
    assert b"Cookie" not in answer.body
    assert b"Authorization" not in answer.body
    assert web.connections == []


def test_row_15_options_ends_here_at_zero(client, web) -> None:
    """Row 15: OPTIONS with Max-Forwards 0 is answered by us, and the connection goes on."""
    answer = client.ask(request("OPTIONS", web.url, "Max-Forwards: 0"))
    assert status_of(answer) == 200
    assert b"OPTIONS" in answer.members("allow")
    assert web.connections == []
    assert client.ask(request("GET", f"{web.url}/next")).body == b"ok"


def test_row_15_max_forwards_is_never_added(client, web) -> None:
    """Row 15: no Max-Forwards of our own, and none changed where it does not count."""
    for method in ("TRACE", "OPTIONS", "GET"):
        client.ask(request(method, f"{web.url}/"))
        assert web.received[-1].values("max-forwards") == []
    client.ask(request("GET", f"{web.url}/", "Max-Forwards: 0"))
    assert web.received[-1].values("max-forwards") == [b"0"]


@pytest.mark.parametrize("value", ["x", "-1", "", "1, 2"])
def test_row_15_a_malformed_max_forwards_is_refused(proxy, web, value) -> None:
    """Row 15: what cannot be decremented is a 400."""
    answer = refused(proxy, web, request("TRACE", web.url, f"Max-Forwards: {value}"), 400)
    assert error_of(answer) == "http_request_error"
