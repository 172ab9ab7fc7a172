"""Who may use the proxy, where requests may go, and what the admin listener tells to whom."""

import asyncio
import base64
import http.client
import json
import os
import socket
from pathlib import Path

import pytest

from tests.e2e.daemon import Reply, fetch_on, toml
from tests.e2e.harness import eventually, free_port
from tests.e2e.test_limits import own_answer
from warmproxy.errors import AddressDenied
from warmproxy.net.dialer import Dialer
from warmproxy.net.resolver import AddrInfo, Resolver
from warmproxy.net.tls import Contexts
from warmproxy.origin import origin as origin_of
from warmproxy.policy.destinations import Destinations
from warmproxy.settings import Settings

USER, PASSWORD = "someone", "open sesame 7d1f"
METADATA = "169.254.169.254"

BEYOND = {"allow_clients": ["127.0.0.0/8"]}
"""What a listener beyond loopback needs to start; its clients here are on loopback still."""


def basic(user: str = USER, password: str = PASSWORD) -> dict[str, str]:
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Proxy-Authorization": f"Basic {token}"}


def connect_to(proxy, authority: str, headers: dict[str, str] | None = None) -> Reply:
    """What a CONNECT is answered with."""
    client = proxy.connect()
    try:
        # http.client's own tunnels hide the answer
        client.putrequest("CONNECT", authority, skip_host=True)
        for name, value in {"Host": authority, **(headers or {})}.items():
            client.putheader(name, value)
        client.endheaders()
        response = client.getresponse()
        body = response.read() if response.status != 200 else b""
        return Reply(response.status, response.headers, body)
    finally:
        client.close()


@pytest.fixture
def credentials(tmp_path) -> Path:
    file = tmp_path / "credentials"
    file.write_text(f"# who may\n\n{USER}:{PASSWORD}\nother:x:y\n")
    file.chmod(0o600)
    return file


# -- clients ----------------------------------------------------------------------------------


def test_loopback_clients_only_where_the_networks_say_so(warmproxy, origin) -> None:
    """allow_clients is the whole list: loopback is not in it unless it is written there."""
    web = origin()
    proxy = warmproxy(config={"allow_clients": ["10.0.0.0/8", "::1"]})
    own_answer(proxy.fetch(f"{web.url}/"), 403, "http_request_denied")
    own_answer(connect_to(proxy, web.authority), 403, "http_request_denied")
    assert web.connections == []


def test_networks_and_credentials_are_asked_for_both(warmproxy, origin, credentials) -> None:
    """A client outside of allow_clients gets its 403 with valid credentials too; one inside still
    needs them."""
    web = origin()
    config = {"allow_clients": ["10.0.0.0/8"], "credentials_file": str(credentials)}
    reply = warmproxy(config=config).fetch(f"{web.url}/", "POST", b"x" * 100, headers=basic())
    own_answer(reply, 403, "http_request_denied")
    assert "allow_clients" in reply.text
    proxy = warmproxy(config={**config, "allow_clients": ["127.0.0.1"]})
    own_answer(proxy.fetch(f"{web.url}/"), 407, "http_request_denied")
    assert web.connections == []
    assert proxy.fetch(f"{web.url}/", headers=basic()).status == 200


# -- credentials ------------------------------------------------------------------------------


def test_what_is_no_credential(warmproxy, origin, credentials) -> None:
    """Anything but a line of the file is a 407 that asks for Basic, and nothing is forwarded."""
    web = origin()
    proxy = warmproxy(config={"credentials_file": str(credentials)})
    values = ["Basic", "Basic ", "Basic !!!!", "Basic c29tZW9uZQ==", "Bearer c29tZW9uZQ==", ""]
    wrong = ((USER.upper(), PASSWORD), (USER, PASSWORD[:-1]), (USER, PASSWORD + "x"), ("# who", ""))
    for value in [*values, *(basic(*pair)["Proxy-Authorization"] for pair in wrong)]:
        headers = {"Proxy-Authorization": value}
        for reply in (
            proxy.fetch(f"{web.url}/", headers=headers),
            connect_to(proxy, web.authority, headers),
        ):
            own_answer(reply, 407, "http_request_denied")
            assert reply.headers["Proxy-Authenticate"].startswith("Basic realm=")
    assert web.connections == []


def test_credentials_are_asked_for_with_each_request(warmproxy, origin, credentials) -> None:
    """One request with credentials does not open its connection to those without; a password may
    hold a colon; the scheme's case does not matter."""
    web = origin()
    proxy = warmproxy(config={"credentials_file": str(credentials)})
    client = proxy.connect()
    assert fetch_on(client, f"{web.url}/1", headers=basic()).status == 200
    own_answer(fetch_on(client, f"{web.url}/2"), 407, "http_request_denied")
    assert fetch_on(client, f"{web.url}/3", headers=basic("other", "x:y")).status == 200
    lower = {"Proxy-Authorization": basic()["Proxy-Authorization"].replace("Basic", "bAsIc")}
    assert fetch_on(client, f"{web.url}/4", headers=lower).status == 200
    assert [r.target for r in web.requests] == ["/1", "/3", "/4"]
    assert all(r.values("proxy-authorization") == [] for r in web.requests)


def test_credentials_are_told_to_nobody(warmproxy, warmproxy_command, origin, credentials) -> None:
    """Neither the log (with an access log), nor a page, an answer or the output of `check` and
    `status` holds a user's password, in clear or in base64."""
    web = origin()
    config = {
        "credentials_file": str(credentials),
        "access_log": True,
        "log_format": "json",
        "upstream": [{"url": web.url, "warm": 1}],
    }
    proxy = warmproxy(config=config)
    answers = [
        proxy.fetch(f"{web.url}/in?secret={PASSWORD[:4]}", headers=basic()),
        proxy.fetch(f"{web.url}/wrong", headers=basic(password=f"{PASSWORD} mistyped")),
        proxy.fetch("http://nosuch.invalid/", headers=basic()),
        connect_to(proxy, web.authority, basic()),
        connect_to(proxy, "127.0.0.1:1", basic()),
        proxy.fetch(
            "http://user:hunter22@127.0.0.1:1/", headers={**basic(), "Authorization": "hunter22"}
        ),
    ]
    assert [a.status for a in answers] == [200, 407, 502, 200, 502, 400]
    assert web.requests[0].values("authorization") == []
    eventually(lambda: len(proxy.log_lines('"answered"')) == len(answers), says=proxy.log)
    pages = ["/", "/pools", "/metrics", "/readyz?verbose", "/healthz", "/nothing"]
    file = credentials.with_name("check.toml")
    file.write_text(toml(config))
    checked = warmproxy_command("check", "--config", str(file))
    asked = warmproxy_command("status", "--admin", proxy.admin)
    assert checked.returncode == asked.returncode == 0, (checked, asked)
    said = [proxy.log(), checked.stdout, checked.stderr, asked.stdout, asked.stderr]
    said += [proxy.admin_get(page).text for page in pages]
    said += [a.headers.as_string() + a.text for a in answers]
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for secret in (PASSWORD, token, token.rstrip("="), "hunter22", "secret="):
        assert [text for text in said if secret in text] == [], secret


def test_a_file_that_others_can_read_is_warned_of(warmproxy, credentials) -> None:
    """A credentials_file with permissions for others is named in the log, without its content."""
    credentials.chmod(0o644)
    proxy = warmproxy(config={"credentials_file": str(credentials)})
    assert len(proxy.log_lines("credentials_readable_by_others")) == 1
    assert PASSWORD not in proxy.log()


def test_a_broken_file_is_named_by_its_line(warmproxy_command, credentials, tmp_path) -> None:
    """A line without a colon stops the start with the line's number and not its text."""
    credentials.write_text(f"{USER}:{PASSWORD}\nhunter22\n")
    config = tmp_path / "config.toml"
    config.write_text(toml({"credentials_file": str(credentials)}))
    ports = ["--listen", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}"]
    ran = warmproxy_command("run", "--config", str(config), *ports)
    assert ran.returncode == 1, ran
    assert "credentials:2:" in ran.stderr
    assert "hunter22" not in ran.stdout + ran.stderr


# -- where CONNECT may go ---------------------------------------------------------------------


def test_connect_goes_anywhere_while_all_listeners_are_on_loopback(warmproxy, origin) -> None:
    """As shipped, a tunnel may go to any port of this machine's own user's choice."""
    far = origin()
    assert connect_to(warmproxy(), far.authority).status == 200


def test_connect_to_port_22_where_a_listener_is_beyond_loopback(warmproxy, origin) -> None:
    """With one listener beyond loopback CONNECT is for 443, and configured origins at their odd
    ports; plain requests are not bound by it."""
    configured, other = origin(), origin()
    config = {**BEYOND, "upstream": [{"url": f"https://{configured.authority}", "warm": 1}]}
    proxy = warmproxy(config=config, listen="0.0.0.0")
    for authority in ("127.0.0.1:22", "[::1]:22", other.authority):
        reply = connect_to(proxy, authority)
        own_answer(reply, 403, "http_request_denied")
        assert "connect_ports" in reply.text
    assert connect_to(proxy, configured.authority).status == 200
    assert proxy.fetch(f"{other.url}/").status == 200
    assert [len(r.requests) for r in other.connections] == [1]


def test_connect_ports_are_what_the_owner_says(warmproxy, origin) -> None:
    """connect_ports holds on loopback too, and replaces 443 beyond it."""
    far, other = origin(), origin()
    proxy = warmproxy(config={"connect_ports": [far.port]})
    assert connect_to(proxy, far.authority).status == 200
    own_answer(connect_to(proxy, other.authority), 403, "http_request_denied")
    own_answer(connect_to(proxy, "127.0.0.1:443"), 403, "http_request_denied")


# -- addresses where nobody may go ------------------------------------------------------------


SPELLINGS = [
    *[METADATA, "169.254.0.1", "100.100.100.200", "192.0.0.192", "[fe80::1]", "[fd00:ec2::254]"],
    # the same once more: as IPv6, and as names that only the system's resolver understands
    *["[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "2852039166", "0xa9fea9fe"],
    *["0251.0376.0251.0376", "169.254.43518"],
]


def test_metadata_services_are_out_of_reach(warmproxy) -> None:
    """Link-local and metadata addresses are a 403 for requests and tunnels in every spelling."""
    proxy = warmproxy(config={"defaults": {"dial_timeout": 1.0}})
    for host in SPELLINGS:
        for reply in (
            proxy.fetch(f"http://{host}/latest/meta-data/"),
            connect_to(proxy, f"{host}:80"),
        ):
            own_answer(reply, 403, "destination_ip_prohibited")
            assert "deny_upstreams" in reply.text
    assert proxy.count("warmproxy_dials_total", result="denied") == 2 * len(SPELLINGS)
    assert proxy.count("warmproxy_dials_total", result="ok") == 0


def test_a_configured_origin_may_be_where_others_may_not(warmproxy, origin) -> None:
    """The owner's upstream passes deny_upstreams; its neighbour does not."""
    mine, other = origin(), origin()
    config = {"deny_upstreams": ["127.0.0.0/8"], "upstream": [{"url": mine.url, "warm": 1}]}
    proxy = warmproxy(config=config)
    assert proxy.fetch(f"{mine.url}/").status == 200
    assert connect_to(proxy, mine.authority).status == 200
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "127.1"):
        reply = proxy.fetch(f"http://{host}:{other.port}/")
        own_answer(reply, 403, "destination_ip_prohibited")
    assert other.connections == []


def test_allow_upstreams(warmproxy, origin) -> None:
    """With allow_upstreams only its names and networks, and what is configured, can be reached."""
    web, mine = origin(), origin()
    upstream = {"url": f"http://localhost:{mine.port}", "warm": 1}
    by_name = warmproxy(config={"allow_upstreams": ["*.test", "127.0.0.1"], "upstream": [upstream]})
    assert by_name.fetch(f"{web.url}/").status == 200
    assert by_name.fetch(f"{upstream['url']}/").status == 200
    own_answer(by_name.fetch("http://127.0.0.2/"), 403, "destination_ip_prohibited")
    own_answer(connect_to(by_name, "127.0.0.2:443"), 403, "destination_ip_prohibited")
    only_names = warmproxy(config={"allow_upstreams": ["localhost"]})
    assert only_names.fetch(f"http://localhost:{web.port}/").status == 200
    for host in (f"127.0.0.1:{web.port}", "localhost.test", "nosuch.invalid"):
        own_answer(only_names.fetch(f"http://{host}/"), 403, "http_request_denied")
    own_answer(connect_to(only_names, web.authority), 403, "http_request_denied")
    assert only_names.count("warmproxy_dials_total", result="dns") == 0


# -- never to ourselves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "hosts"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "0", "[::ffff:127.0.0.1]"]),
        ("0.0.0.0", ["127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0", "[::ffff:127.0.0.9]"]),
    ],
)
def test_own_listeners_are_out_of_reach(warmproxy, listen, hosts) -> None:
    """Neither a request nor a tunnel reaches the proxy or its admin listener through the proxy,
    whatever the address is called."""
    config = {**BEYOND, "connect_ports": list(range(22000, 30000))}
    proxy = warmproxy(config=config, listen=listen)
    for host in hosts:
        # the admin listener is at 127.0.0.1 alone
        ports = (
            [proxy.port]
            if host in ("127.0.0.2", "[::ffff:127.0.0.9]")
            else [*[proxy.port, proxy.admin_port]]
        )
        for port in ports:
            for reply in (
                proxy.fetch(f"http://{host}:{port}/metrics"),
                connect_to(proxy, f"{host}:{port}"),
            ):
                own_answer(reply, 502, "proxy_loop_detected")
    assert proxy.count("warmproxy_dials_total", result="ok") == 0


def test_own_listeners_are_out_of_reach_where_they_are_configured(warmproxy) -> None:
    """Not even the owner can warm the proxy with itself."""
    port = free_port()
    config = {"ready_timeout": 0.5, "upstream": [{"url": f"http://localhost:{port}", "warm": 1}]}
    proxy = warmproxy("--listen", f"127.0.0.1:{port}", config=config)
    own_answer(proxy.fetch(f"http://localhost:{port}/"), 502, "proxy_loop_detected")


# -- names that lead elsewhere the second time ------------------------------------------------


class Rebinding(Resolver):
    """The real resolver, but for one name with an answer of the test's choice."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, answer: list[str]) -> None:
        super().__init__(loop)
        self.name, self.answer = name, answer

    async def resolve(self, host: str, port: int, timeout: float) -> list[AddrInfo]:
        if host != self.name:
            return await super().resolve(host, port, timeout)
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in self.answer]


async def test_each_dial_asks_about_its_own_addresses(origin) -> None:
    """A name whose second answer is a denied address is refused at the second dial; of several
    addresses only those that are allowed are dialled. (The dialer itself, with a resolver whose
    answers the test changes.)"""
    web = origin()
    loop = asyncio.get_running_loop()
    rules = Destinations(connect_ports=(), allow=(), deny=Settings().deny_upstreams, configured=())
    resolver = Rebinding(loop, "rebinds.test", ["127.0.0.1"])
    dialer = Dialer(loop, resolver, rules, Contexts([]))
    place = origin_of("http", "rebinds.test", web.port)
    connections = [(await dialer.dial(place, 5.0)).connection]
    resolver.answer = [METADATA]
    with pytest.raises(AddressDenied):
        await dialer.dial(place, 5.0)
    resolver.answer = [METADATA, "127.0.0.1"]
    connections.append((await dialer.dial(place, 5.0)).connection)
    assert [c.peer for c in connections] == ["127.0.0.1", "127.0.0.1"]
    for connection in connections:
        connection.close()


def test_a_name_that_moves_is_refused_where_it_leads_now(warmproxy, origin, hosts) -> None:
    """DNS rebinding against the whole daemon: the name led to a server of this machine, which
    goes away, and leads to the metadata address when it is dialled again: 403."""
    web = origin()
    hosts.say({"rebinds.test": ["127.0.0.1"]})
    proxy = warmproxy(inside=hosts.inside)
    url = f"http://rebinds.test:{web.port}/"
    assert proxy.fetch(url).status == 200
    hosts.say({"rebinds.test": [METADATA]})
    web.down()
    eventually(lambda: proxy.fetch(url).status == 403, says=proxy.log)
    own_answer(proxy.fetch(url), 403, "destination_ip_prohibited")
    web.up()
    own_answer(proxy.fetch(url), 403, "destination_ip_prohibited")
    assert len(web.requests) == 1


# -- the admin listener -----------------------------------------------------------------------


def ask_admin(proxy, path: str, host: str | None, method: str = "GET", body=None) -> Reply:
    client = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=10)
    try:
        client.putrequest(method, path, skip_host=host is not None)
        if host is not None:
            client.putheader("Host", host)
        if body is not None:
            client.putheader("Content-Length", str(len(body)))
        client.endheaders(body)
        response = client.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        client.close()


FOREIGN = [
    *["evil.test", "evil.test:3180", "127.0.0.1.evil.test", "127.evil.test:3180", "localhost.evil"],
    *["10.0.0.1", "[2001:db8::1]:3180", "[::1].evil.test"],
]


def test_admin_pages_are_for_this_machine_only(warmproxy) -> None:
    """A page of another web site cannot read / and /pools through its visitor's browser: the Host
    field must be ours, or named in admin_hosts; pages for programs take any."""
    proxy = warmproxy(config={"admin_hosts": ["Ops.example"]})
    ours = ["localhost", "LOCALHOST:3180", "127.0.0.1", "127.0.0.9:1", "[::1]", "[::1]:3180"]
    for host in [*ours, "ops.example", "OPS.example:8443"]:
        assert [ask_admin(proxy, page, host).status for page in ("/", "/pools")] == [200] * 2, host
    for host in FOREIGN:
        for page in ("/", "/pools", "/pools?x", "/nothing", "/metrics/../pools", "//metrics"):
            reply = ask_admin(proxy, page, host)
            assert reply.status in (400, 403), (host, page)
            assert "origin" not in reply.text
        for page in ("/metrics", "/healthz", "/readyz", "/readyz?verbose"):
            # a Host that is none is a malformed request for everybody
            expected = (400,) if host.startswith("[::1].") else (200,)
            assert ask_admin(proxy, page, host).status in expected, (host, page)


def test_the_admin_listener_changes_nothing(warmproxy) -> None:
    """Any method but GET and HEAD is a 405 that says what is allowed, with a body or without."""
    proxy = warmproxy()
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "NEW"):
        for body in (None, b"x=1"):
            reply = ask_admin(proxy, "/pools", None, method, body)
            assert reply.status == 405, (method, reply)
            assert reply.headers["Allow"] == "GET, HEAD"
    assert ask_admin(proxy, "/pools", None, "CONNECT").status == 405
    assert proxy.admin_status("/healthz") == 200


def test_no_page_of_another_site_may_read_ours(warmproxy) -> None:
    """No answer allows another origin to read it (CORS), and none is kept by caches."""
    proxy = warmproxy()
    for page in ("/", "/pools", "/metrics"):
        headers = ask_admin(proxy, page, "localhost").headers
        assert headers["Cache-Control"] == "no-store"
        assert not any(name.lower().startswith("access-control") for name in headers)


def test_pages_do_not_show_paths_and_files(warmproxy, origin, credentials) -> None:
    """/pools and the pages hold origins and numbers: no request's path, no file of the owner."""
    web = origin()
    proxy = warmproxy(config={"credentials_file": str(credentials)})
    for _ in range(4):
        assert proxy.fetch(f"{web.url}/private?token=hunter22", headers=basic()).status == 200
    for page in ("/", "/pools", "/metrics", "/readyz?verbose"):
        text = proxy.admin_get(page).text
        for secret in ("private", "hunter22", USER, credentials.name, os.fspath(credentials)):
            assert secret not in text, page
    assert json.loads(proxy.admin_get("/pools").body)["pools"][0]["origin"] == web.url
