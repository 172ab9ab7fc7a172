"""Upstreams that are not to be trusted: 502 with their reason, and not a byte of the request.

What an origin heard is judged by the bytes on its socket: `Deaf` records all of them and answers
with TLS or with something else.
"""

import contextlib
import http.client
import json
import re
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.daemon import Warmproxy, fetch_on
from tests.e2e.harness import eventually, free_port, missing
from tests.e2e.origins import Connection, Origin
from tests.e2e.tls_origins import NAMES, VERSIONS, Pki, shaken

CERTIFICATE, PROTOCOL = "tls_certificate_error", "tls_protocol_error"
SECRET = "sent-by-mistake"
BOTH = pytest.mark.parametrize("version", ["1.2", "1.3"])


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def stranger(pki: Pki) -> Any:
    """A certificate with the right names by an authority that nobody trusts."""
    other = pki.folder / "other"
    other.mkdir(exist_ok=True)
    return Pki(other).issue(*NAMES)


# what is wrong -> the origin's context, what else is set, which error and what it says
CERTIFICATES: dict[str, tuple[Callable[[Pki], Any], str]] = {
    "wrong name": (lambda pki: pki.issue("other.example"), "mismatch"),
    "wrong address": (lambda pki: pki.issue("127.0.0.2", "localhost"), "mismatch"),
    "expired": (lambda pki: pki.expired(), "expired"),
    "self-signed": (lambda pki: pki.self_signed(), "self-signed"),
    "unknown authority": (stranger, "issuer"),
    "common name only": (lambda pki: pki.issue(common_name="127.0.0.1"), "mismatch"),
}


def refused(proxy: Warmproxy, url: str, error: str, says: str = "") -> None:
    """A GET and a POST to the proxy are each answered 502 for that reason."""
    refused_at(proxy, proxy.port, url, error, says)


def refused_at(proxy: Warmproxy, port: int, url: str, error: str, says: str) -> None:
    for method, body in (("GET", None), ("POST", SECRET.encode())):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, 20)) as client:
            reply = fetch_on(client, f"{url}/{SECRET}", method, body)
        status = reply.headers["Proxy-Status"]
        assert reply.status == 502, (reply, proxy.log())
        assert f"error={error};" in status, status
        assert says in status, status
    assert proxy.count("warmproxy_dials_total", result="tls") >= 1


class EachWay:
    """A daemon that has one upstream, whose `tls` connections it cannot get: forwarded, upgraded
    and behind a gateway."""

    def __init__(self, warmproxy: Any, web: Origin, **settings: Any) -> None:
        self.web = web
        self.port = free_port()
        upstream = {"url": web.url, "warm": 0, "upgrade": True, **settings}
        gateway = {"listen": f"127.0.0.1:{self.port}", "upstream": web.url}
        config = {"ready_timeout": 0, "upstream": [upstream], "gateway": [gateway]}
        self.proxy: Warmproxy = warmproxy(config=config)

    def refused(self, error: str, says: str) -> None:
        """Each way is refused, no handshake came to its end and so no byte was for the origin."""
        refused(self.proxy, self.web.url, error, says)
        refused(self.proxy, f"http://{self.web.authority}", error, says)
        refused_at(self.proxy, self.port, "", error, says)
        assert self.web.requests == []
        assert self.web.connections
        assert not any(map(shaken, self.web.connections))
        assert self.proxy.log_lines("dial_failed", says)

    def served(self) -> None:
        """Each way leads to the origin."""
        for port, url in (
            (self.proxy.port, self.web.url),
            (self.proxy.port, f"http://{self.web.authority}"),
            (self.port, ""),
        ):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, 20)) as client:
                assert fetch_on(client, f"{url}/").text == self.web.greeting


@BOTH
@pytest.mark.parametrize("what", CERTIFICATES)
def test_row_46_an_untrusted_certificate(warmproxy, origin, pki, what, version) -> None:
    """Row 46: a certificate that does not prove the name is refused each way; the handshake ends
    before anything is sent."""
    make, says = CERTIFICATES[what]
    web = origin(tls=pki.server(make(pki), version=version))
    EachWay(warmproxy, web, tls=0, ca_file=str(pki.file)).refused(CERTIFICATE, says)


def test_a_pool_that_is_to_be_warm(warmproxy, origin, pki) -> None:
    """The same where connections are to be held: there is none, the failures are counted."""
    web = origin(tls=pki.server(pki.issue("other.example")))
    gate = EachWay(warmproxy, web, tls=1, ca_file=str(pki.file))
    gate.refused(CERTIFICATE, "mismatch")
    pool = gate.proxy.pools()[web.url]
    assert (pool["fresh"], pool["dials_failed"] > 0) == (0, True)


@BOTH
def test_a_revoked_certificate(warmproxy, origin, pki, version) -> None:
    """With crl_file a certificate that its authority has revoked is refused each way, and one that
    it has not is served."""
    revoked, good = pki.issue(*NAMES), pki.issue(*NAMES)
    trust = {"ca_file": str(pki.file), "crl_file": str(pki.revoke(revoked))}
    web = origin(tls=pki.server(revoked, version=version))
    EachWay(warmproxy, web, **trust).refused(CERTIFICATE, "revoked")
    EachWay(warmproxy, origin(tls=pki.server(good, version=version)), **trust).served()


def test_the_systems_authorities_do_not_know_ours(warmproxy, origin, pki) -> None:
    """Without a ca_file an upstream that is not configured is verified by the system's trust store;
    SSL_CERT_FILE names another."""
    web = origin(tls=pki.server())
    proxy = warmproxy()
    refused(proxy, web.url, CERTIFICATE)
    assert web.requests == []
    trusting = warmproxy(env={"SSL_CERT_FILE": str(pki.file)})
    assert trusting.fetch(f"{web.url}/").text == web.greeting


# -- versions ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize(("offers", "minimum"), [("1.1", "1.2"), ("1.2", "1.3")])
def test_a_version_that_is_too_old(warmproxy, origin, pki, offers, minimum) -> None:
    """TLS below 1.2, or below tls_minimum, is not spoken, whichever way."""
    context = pki.server(version=offers)
    if offers == "1.1" and not speaks(VERSIONS["1.1"]):
        missing("an OpenSSL that speaks TLS 1.1")
    web = origin(tls=context)
    EachWay(warmproxy, web, tls_minimum=minimum, ca_file=str(pki.file)).refused(PROTOCOL, "version")


def speaks(version: ssl.TLSVersion) -> bool:
    """Whether two ends of this OpenSSL can meet in that version, security level 0."""
    ends = []
    for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(kind)
        context.set_ciphers("aNULL:@SECLEVEL=0")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        ends.append(context)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ends[0].wrap_bio(there, back, server_side=True)
    client = ends[1].wrap_bio(back, there)
    try:
        for _ in range(4):
            for end in (client, server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
    except ssl.SSLError:
        return False
    return client.version() is not None


# -- no TLS at all ----------------------------------------------------------------------------

heard: dict[int, bytearray] = {}


def deaf(answer: bytes) -> Callable[[Connection], None]:
    """Note every byte; say `answer` to the first ones, and end."""

    def serve(connection: Connection) -> None:
        record = heard.setdefault(connection.origin.port, bytearray())
        record += connection.receive()
        if answer:
            connection.send(answer)

    return serve


NO_TLS = {
    "plain HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "an end": b"",
}


@pytest.mark.parametrize("what", NO_TLS)
def test_a_server_that_speaks_no_tls(warmproxy, origin, what) -> None:
    """Whatever else listens on the port gets a ClientHello and nothing more, and the client its
    502."""
    web = origin(raw=deaf(NO_TLS[what]))
    proxy = warmproxy()
    refused(proxy, f"https://{web.authority}", PROTOCOL)
    said = bytes(heard[web.port])
    assert said[:1] == b"\x16"  # a handshake record (RFC 8446, 5.1)
    assert SECRET.encode() not in said
    assert b"HTTP/1.1" not in said


def test_a_server_that_says_nothing(warmproxy, origin) -> None:
    """A handshake that does not come to its end is given up after dial_timeout."""
    web = origin(raw=lambda connection: connection.origin.gate.wait(30))
    proxy = warmproxy(config={"defaults": {"dial_timeout": 0.3}})
    refused(proxy, f"https://{web.authority}", PROTOCOL)


def test_a_reset_inside_the_handshake(warmproxy, origin) -> None:
    """A reset before the handshake's end is a failed dial like the others."""

    def slam(connection: Connection) -> None:
        connection.receive()
        connection.reset()

    web = origin(raw=slam)
    proxy = warmproxy()
    refused(proxy, f"https://{web.authority}", PROTOCOL)


def test_a_warm_tcp_connection_gets_no_request_either(warmproxy, origin, pki) -> None:
    """TLS that fails on a warm TCP connection is refused like any other, and the pool of bare
    connections goes on."""
    web = origin(tls=pki.server(pki.issue("other.example")))
    proxy = warmproxy(config={"upstream": [{"url": web.url, "warm": 2, "ca_file": str(pki.file)}]})
    web.wait_open(2)
    refused(proxy, web.url, CERTIFICATE, "mismatch")
    raw = f"tcp://{web.authority}"
    eventually(lambda: proxy.pools()[raw]["fresh"] == 2, says=proxy.pools)
    assert proxy.pools()[raw]["closed"]["secured"] >= 1
    assert web.requests == []


# -- wrong files stop the start ---------------------------------------------------------------


@pytest.mark.parametrize("setting", ["ca_file", "client_cert", "client_key"])
def test_a_file_that_is_missing(warmproxy, pki, setting) -> None:
    """The daemon does not start: exit code 2, one line that names setting, file and place."""
    file = pki.folder / "missing.pem"
    settings = {setting: str(file)}
    if setting == "client_key":
        settings["client_cert"] = str(pki.files("some")[0])
    proxy = warmproxy(
        "--log-format",
        "json",
        ready=False,
        config={"upstream": [{"url": "https://localhost", "warm": 0, **settings}]},
    )
    assert proxy.exit_code() == 2
    line, count = proxy.log().splitlines()
    assert re.fullmatch(rf"{proxy.file}:\d+: '{setting}' \"{file}\": No such file .*", line)
    assert count == "warmproxy: 1 problem in the settings"


# -- verify = false ---------------------------------------------------------------------------


def test_unverified_works_and_says_so(warmproxy, origin, pki) -> None:
    """verify = false takes any certificate, warns once at the start and shows in /pools; a verified
    upstream beside it stays verified."""
    careless = origin(tls=pki.server(pki.self_signed()))
    careful = origin(tls=pki.server())
    proxy = warmproxy(
        "--log-format",
        "json",
        config={
            "upstream": [
                {"url": careless.url, "warm": 0, "tls": 1, "verify": False},
                {"url": careful.url, "warm": 0, "tls": 1, "ca_file": str(pki.file)},
            ]
        },
    )
    for web in (careless, careful):
        assert proxy.fetch(f"{web.url}/").text == web.greeting
    (warning,) = proxy.log_lines('"unverified"')
    assert json.loads(warning)["level"] == "warning"
    assert json.loads(warning)["origin"] == careless.url
    pools = proxy.pools()
    assert pools[careless.url]["verified"] is False
    assert pools[careful.url]["verified"] is True
    assert pools[f"tcp://{careful.authority}"]["verified"] is None
