"""Fields that name the client's or the upstream's idea of the upstream are put right."""

import pytest

from warmproxy.origin import origin
from warmproxy.protocol.upgrade import plain_response, secure_request

API = origin("https", "api.example", 443, "1.2")
ODD = origin("https", "api.example", 8443, "1.2")


@pytest.mark.parametrize("name", [b"Origin", b"referer"])
def test_a_request_names_the_upstream_as_it_is(name):
    fields = [(name, b"http://api.example/a"), (b"X", b"http://api.example/a")]
    assert secure_request(fields, b"api.example", b"api.example") == [
        (name, b"https://api.example/a"),
        (b"X", b"http://api.example/a"),
    ]


def test_what_names_another_place_stays():
    fields = [
        (b"Referer", b"http://api.example.evil/"),
        (b"Referer", b"http://other/"),
        (b"Referer", b"https://api.example/"),
    ]
    assert secure_request(fields, b"api.example", b"api.example") == fields


@pytest.mark.parametrize(
    ("place", "location", "want"),
    [
        (API, b"https://api.example/x", b"http://h/x"),
        (API, b"HTTPS://API.example:443/x", b"http://h/x"),
        (API, b"https://api.example", b"http://h"),
        (API, b"https://api.example?q", b"http://h?q"),
        (API, b"https://api.example.evil/x", b"https://api.example.evil/x"),
        (API, b"https://api.example:444/x", b"https://api.example:444/x"),
        (API, b"http://api.example/x", b"http://api.example/x"),
        (API, b"/x", b"/x"),
        (ODD, b"https://api.example:8443/x", b"http://h/x"),
        (ODD, b"https://api.example/x", b"https://api.example/x"),
        (origin("http", "api.example", 80), b"http://api.example/x", b"http://h/x"),
    ],
)
def test_a_redirect_to_the_same_place_stays_with_us(place, location, want):
    assert plain_response([(b"Location", location)], b"h", place) == [(b"Location", want)]


@pytest.mark.parametrize(
    ("cookie", "want"),
    [
        (b"a=b; Secure; Path=/", b"a=b; Path=/"),
        (b"a=b; path=/;secure", b"a=b; path=/"),
        (b"secure=secure; HttpOnly", b"secure=secure; HttpOnly"),
        (b"a=b; securely", b"a=b; securely"),
    ],
)
def test_secure_cookies_come_back_over_the_plain_hop(cookie, want):
    assert plain_response([(b"Set-Cookie", cookie)], b"h", API) == [(b"Set-Cookie", want)]


def test_cookies_of_a_plain_upstream_are_not_touched():
    fields = [(b"Set-Cookie", b"a=b; Secure")]
    assert plain_response(fields, b"h", origin("http", "api.example", 80)) == fields
