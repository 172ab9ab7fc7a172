"""The daemon's whole log: what it holds, what it never holds, and that its counts add up."""

import base64
import contextlib
import http.client
import json
import socket

import pytest

from tests.e2e.harness import eventually

SECRETS = ("q-secret", "user-secret", "pass-secret", "head-secret", "cookie-secret", "path-secret")


def say(port: int, text: str) -> bytes:
    """Write a request as it is, and read to the end of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(text.encode())
        sock.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                found += data
        return found


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_secret_of_a_request_reaches_the_log(warmproxy, origin, form: str) -> None:
    """Queries, paths, userinfo, credentials and cookies, in requests that work, fail, are refused
    or make no sense, to the proxy and to the admin listener, all with an access log."""
    web, gone = origin(), origin(listening=False)
    config = {"access_log": True, "log_format": form, "upstream": [{"url": web.url, "warm": 1}]}
    proxy = warmproxy(config=config)
    secret = f"user-secret:pass-secret@{web.authority}/path-secret?key=q-secret"
    basic = base64.b64encode(b"user-secret:pass-secret").decode()
    fields = (
        f"Authorization: Bearer head-secret\r\nCookie: id=cookie-secret\r\n"
        f"Proxy-Authorization: Basic {basic}\r\nConnection: close\r\n\r\n"
    )
    for authority in (web.authority, gone.authority, "no-such-host.invalid"):
        url = f"http://{authority}/path-secret?key=q-secret"
        for method in ("GET", "POST"):
            say(proxy.port, f"{method} {url} HTTP/1.1\r\nHost: {authority}\r\n{fields}")
    host = f"Host: {web.authority}\r\n{fields}"
    for line in (
        f"GET http://{secret} HTTP/1.1",
        f"CONNECT {secret} HTTP/1.1",
        f"CONNECT {gone.authority} HTTP/1.1",
        "GET /path-secret?key=q-secret HTTP/1.1",
        f"GET ftp://{secret} HTTP/1.1",
        f"GET http://{secret} HTTP/9.9",
        f"GET http://{secret}",
        "q-secret",
    ):
        say(proxy.port, f"{line}\r\n{host}")
    admin = f"Host: {proxy.admin}\r\n{fields}"
    for line in (
        "GET /?key=q-secret HTTP/1.1",
        f"POST /warm?origin=http://{secret}&count=1 HTTP/1.1",
        f"POST /warm?origin=http://user-secret:pass-secret@{web.authority}&count=1 HTTP/1.1",
        f"POST /warm?origin={web.url}&count=1&for=q-secret HTTP/1.1",
        f"POST /warm?origin={web.url}&count=2 HTTP/1.1",
    ):
        say(proxy.admin_port, f"{line}\r\n{admin}")
    eventually(lambda: "warm_asked" in proxy.log(), says=proxy.log)
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Accept": "text/html"})
        page = connection.getresponse().read().decode()
    pages = [page, *(proxy.admin_get(path).text for path in ("/pools", "/metrics"))]
    proxy.stop()
    said = proxy.log()
    assert said.count("answered") >= 10
    assert "dial_failed" in said
    for word in (*SECRETS, basic, basic.rstrip("=")):
        assert word not in said, word
        assert not [text for text in pages if word in text], word


def test_each_failure_is_told_of_in_the_end(warmproxy, origin) -> None:
    """Of an origin that stays away two lines are written, the second at the end of the daemon; the
    two stand for each failure that there was."""
    gone = origin(listening=False)
    config = {
        "log_format": "json",
        "ready_timeout": 0,
        "upstream": [{"url": gone.url, "warm": 1, "backoff_max": 0.05}],
    }
    proxy = warmproxy(config=config)
    eventually(lambda: proxy.pool(gone.url)["dial_failures"] >= 10)
    assert proxy.log().count('"dial_failed"') == 1
    proxy.stop()
    first, last = (json.loads(line) for line in proxy.log_lines('"dial_failed"'))
    assert "repeated" not in first
    assert 1 + last["repeated"] == last["failures"] >= 10
    assert proxy.log().rstrip().splitlines()[-1].count('"stopped"') == 1
