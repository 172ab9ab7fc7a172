"""Request-targets: where they lead, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmproxy.errors import BadRequest
from warmproxy.origin import origin
from warmproxy.protocol import target as target_module
from warmproxy.protocol.target import (
    Forward,
    Tunnel,
    check_host,
    inside_form,
    origin_form,
    parse_target,
)


def forward(host: str, port: int, path: bytes, field: bytes) -> Forward:
    return Forward(origin("http", host, port), path, field)


def error(target: bytes, method: bytes = b"GET") -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        parse_target(method, target)
    return raised.value


@pytest.mark.parametrize(
    ("target", "route"),
    [
        (b"http://h/", forward("h", 80, b"/", b"h")),
        (b"http://h", forward("h", 80, b"/", b"h")),
        (b"http://h:8080/a/b?c=d", forward("h", 8080, b"/a/b?c=d", b"h:8080")),
        (b"http://H.Example.COM:80/", forward("h.example.com", 80, b"/", b"H.Example.COM:80")),
        (b"HTTP://h/", forward("h", 80, b"/", b"h")),
        (b"http://h?q", forward("h", 80, b"/?q", b"h")),
        (b"http://a_b-c.d/", forward("a_b-c.d", 80, b"/", b"a_b-c.d")),
        (b"http://127.0.0.1:81/", forward("127.0.0.1", 81, b"/", b"127.0.0.1:81")),
        (b"http://[::1]/x", forward("::1", 80, b"/x", b"[::1]")),
        (b"http://[0:0::1]:81", forward("::1", 81, b"/", b"[0:0::1]:81")),
        (b"ws://h/chat", forward("h", 80, b"/chat", b"h")),
        (b"http://h.:80/", forward("h.", 80, b"/", b"h.:80")),
    ],
)
def test_absolute_form(target: bytes, route: Forward) -> None:
    """Rows 1, 3 and 14: scheme and authority lead to the origin, the path becomes origin-form (an
    empty one `/`), and the Host field names what the client named."""
    assert parse_target(b"GET", target) == route


def test_equal_targets_share_their_origin() -> None:
    """Origins are interned: spelling of the host and default port make no second pool."""
    places = [b"http://h/", b"http://H:80/x", b"ws://h", b"http://h/#f"]
    routes = [parse_target(b"GET", place) for place in places]
    assert len({id(route.origin) for route in routes}) == 1


@pytest.mark.parametrize(
    "path",
    [
        b"/a//b/../c/./d",
        b"/%7e%7E%2f?%61=%zz",
        b'/"<>\\^`{|}',
        b"/?a?b=/c",
        b"/a;b=c,d@e:f!$&'()*+",
    ],
)
def test_path_and_query_are_never_altered(path: bytes) -> None:
    """Row 14: no normalising, no decoding, in neither lane."""
    for start in (b"http://h", b"HTTP://h", b"http://[::1]:8080"):
        route = parse_target(b"GET", start + path)
        assert isinstance(route, Forward)
        assert route.target == path


def test_fragment_is_cut_off() -> None:
    """A fragment, which some clients send by mistake, does not reach the upstream."""
    for target, path in [
        (b"http://h/p?q#frag", b"/p?q"),
        (b"http://h#frag", b"/"),
        (b"HTTP://h/p#/a?b#c", b"/p"),
        (b"http://h?q#", b"/?q"),
    ]:
        assert parse_target(b"GET", target) == forward("h", 80, path, b"h")


def test_options_without_a_path_is_for_the_whole_server() -> None:
    """Row 4: the last proxy sends `*` where neither path nor query was named."""
    assert parse_target(b"OPTIONS", b"http://h") == forward("h", 80, b"*", b"h")
    assert parse_target(b"OPTIONS", b"http://h:81#x") == forward("h", 81, b"*", b"h:81")
    assert parse_target(b"OPTIONS", b"http://h/") == forward("h", 80, b"/", b"h")
    assert parse_target(b"OPTIONS", b"http://h?q") == forward("h", 80, b"/?q", b"h")


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        (b"h:443", "h", 443),
        (b"H.Example:1", "h.example", 1),
        (b"127.0.0.1:65535", "127.0.0.1", 65535),
        (b"[::1]:443", "::1", 443),
        (b"[2001:DB8::0]:8443", "2001:db8::", 8443),
    ],
)
def test_connect(target: bytes, host: str, port: int) -> None:
    """CONNECT host:port is a tunnel to a tcp origin (9110 9.3.6)."""
    assert parse_target(b"CONNECT", target) == Tunnel(origin("tcp", host, port))


@pytest.mark.parametrize(
    "target",
    [
        b"h",
        b"h:",
        b"h:0",
        b"h:65536",
        b"h:999999",
        b"h:x",
        b"h:-1",
        b"h: 1",
        b":443",
        b"",
        b"*",
        b"[::1]",
        b"[::1]:",
        b"::1:443",
        b"[::1:443",
        b"[h]:443",
        b"http://h:443",
        b"h:443/",
        b"/",
        b"u@h:443",
        b"h%2e:443",
        b"h\\:443",
        b"h:443#f",
        b"[fe80::1%25eth0]:443",
        b"h\xe4:443",
    ],
)
def test_bad_connect_targets_are_400(target: bytes) -> None:
    """Row 52: a CONNECT without exactly a host and a valid port is refused."""
    assert error(target, b"CONNECT").status == 400


@pytest.mark.parametrize(
    "target",
    [
        b"http://",
        b"http:///p",
        b"http://:80/",
        b"http://h:/",
        b"http://h:0/",
        b"http://h:65536/",
        b"http://h:99999999/",
        b"http://h:x/",
        b"http://h:8 0/",
        b"http://h h/",
        b"http://h/a b",
        b"http://h\\@i/",
        b"http://h\\/",
        b"http://h/\xe4",
        b"http://\xe4/",
        b"http://h/\x00",
        b"http://h/\x7f",
        b"http://h/a\r\nb",
        b"http://h%2ecom/",
        b"http://%68/",
        b"http://[::1/",
        b"http://[h]/",
        b"http://[::1]x/",
        b"http://[fe80::1%25eth0]/",
        b"http://::1/",
        b"http:/h",
        b"http://h*/",
        b"http://" + b"a" * 254 + b"/",
        b"h:443",
        b"example.com",
        b"h/p",
        b"",
        b"?q",
        b"mailto:a@b",
        b"://h/",
    ],
)
def test_bad_absolute_targets_are_400(target: bytes) -> None:
    """Row 6: what names no host, or is no URI, is refused and not mended."""
    assert error(target).status == 400


def test_userinfo_is_refused_without_quoting_it() -> None:
    """9110 4.2.4: a password in a target is refused, and does not show up in the reason."""
    for target in (b"http://u:secret@h/", b"http://u@h:80/", b"HTTP://@h/"):
        refusal = error(target)
        assert refusal.status == 400
        assert "secret" not in refusal.reason


def test_https_in_absolute_form_is_a_request_over_our_tls() -> None:
    """9110 4.2.2: https names another origin than http, with a default port of its own."""
    for target, port in ((b"https://h/", 443), (b"HTTPS://h:444/x", 444), (b"wss://h/", 443)):
        route = parse_target(b"GET", target)
        assert route.origin is origin("https", "h", port)
    assert error(b"ftp://h/").status == 501


def test_a_gateway_takes_origin_form_only() -> None:
    """A port that stands for one upstream is asked like that upstream."""
    place = Forward(origin("https", "h", 443), b"/", b"h")
    assert origin_form(b"/a?b#c", place) == Forward(place.origin, b"/a?b", b"h")
    assert origin_form(b"*", place).target == b"*"
    for target in (b"http://h/", b"h:1", b"/a b", b""):
        with pytest.raises(BadRequest):
            origin_form(target, place)


def test_inside_an_intercepted_connection_the_origin_is_asked_for_itself() -> None:
    """In absolute-form too; and for another origin (421) by neither form."""
    place = Forward(origin("https", "h", 8443, "1.2"), b"/", b"h:8443")
    for target in (b"/a?b#c", b"https://h:8443/a?b", b"HTTPS://H:8443/a?b", b"wss://h:8443/a?b"):
        assert inside_form(b"GET", target, place) == Forward(place.origin, b"/a?b", b"h:8443")
    assert inside_form(b"OPTIONS", b"https://h:8443", place).target == b"*"
    for target in (b"https://h/", b"https://g:8443/", b"http://h:8443/"):
        with pytest.raises(BadRequest) as refusal:
            inside_form(b"GET", target, place)
        assert refusal.value.status == 421
    check_host(b"H:8443", place)
    for host in (b"h", b"g:8443"):
        with pytest.raises(BadRequest) as refusal:
            check_host(host, place)
        assert refusal.value.status == 421


@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS"])
@pytest.mark.parametrize("target", [b"/", b"/index.html?a", b"//h/", b"*"])
def test_requests_for_a_web_server_are_told_what_this_is(method: bytes, target: bytes) -> None:
    """Who takes the proxy for a web server reads how to use it."""
    refusal = error(target, method)
    assert refusal.status == 400
    assert "forward proxy" in refusal.reason
    assert "http_proxy=http://HOST:PORT" in refusal.reason


@settings(max_examples=500)
@given(
    st.text("aZ0.-_:1[]@%\\", max_size=8).map(str.encode),
    st.text("/a?#%\\ \x7f\xe4", max_size=6).map(lambda text: text.encode("latin-1")),
)
def test_fast_lane_and_slow_lane_agree(authority: bytes, path: bytes) -> None:
    """A scheme in capitals takes the slow lane; both say the same of every target."""

    def verdict(target: bytes) -> object:
        try:
            return parse_target(b"GET", target)
        except BadRequest as refusal:
            return refusal.status, refusal.reason

    assert target_module._FAST.fullmatch(b"HTTP://" + authority + path) is None
    assert verdict(b"http://" + authority + path) == verdict(b"HTTP://" + authority + path)


@settings(max_examples=500)
@given(st.sampled_from([b"GET", b"OPTIONS", b"CONNECT"]), st.binary(max_size=20))
def test_any_bytes_give_a_route_or_a_bad_request(method: bytes, target: bytes) -> None:
    """No target makes the parser fail in any other way, and none leads to a bad origin."""
    try:
        route = parse_target(method, target)
    except BadRequest:
        return
    assert route.origin.host
    assert 0 < route.origin.port < 65536
