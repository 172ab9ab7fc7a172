"""What test_network.py runs, each in a network namespace of its own, and by that name only.

There veth0 is the way to other machines: what listens at its address is none, but is no loopback
address either.
"""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.daemon import wait_warm
from tests.e2e.harness import OWN_NETWORK, always, eventually, need
from tests.e2e.tls_origins import Pki
from warmproxy.net import authority

HERE = "10.77.0.1"


@pytest.fixture(autouse=True)
def _own_network() -> None:
    assert OWN_NETWORK in os.environ, "this machine's network is not for tests"


@pytest.fixture
def ip(_own_network):
    tool = need("ip")

    def run(command: str) -> str:
        ran = subprocess.run(
            [tool, *command.split()], check=True, stdout=subprocess.PIPE, text=True
        )
        return ran.stdout

    return run


@pytest.fixture
def veth(ip) -> None:
    ip("link add veth0 type veth peer name veth1")
    ip(f"addr add {HERE}/24 dev veth0")
    ip("link set veth0 up")
    ip("link set veth1 up")
    for name in ("veth0", "veth1"):
        eventually(lambda name=name: " UP " in ip(f"-brief link show {name}"))


def changes(proxy) -> list[str]:
    return proxy.log_lines("network_changed")


def test_idle_connections_are_replaced_after_a_change(warmproxy, origin, ip, veth) -> None:
    """Another address, or a way out that is lost: idle connections to other machines are replaced,
    one that is in use and those to loopback stay."""
    web, near = origin(host=HERE), origin()
    proxy = warmproxy("--warm", f"{web.url}=3", "--warm", f"{near.url}=2")
    before, beside = web.wait_open(3), near.wait_open(2)
    with proxy.tunnel(web.authority) as tunnel:
        in_use = set(web.wait_open(4)) - set(before)
        ip("addr add 10.78.0.1/24 dev veth0")
        eventually(lambda: not any(c.open for c in before), says=proxy.log)
        assert [c.ended for c in before] == ["fin"] * 3
        wait_warm(proxy, web.url, 3)
        assert len(changes(proxy)) == 1
        assert '"suspect": 3' in changes(proxy)[0]
        assert proxy.count("warmproxy_closed_total", origin=web.url, reason="suspect") == 3
        assert all(c.open for c in [*beside, *in_use])
        tunnel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tunnel.recv(1000).startswith(b"HTTP/1.1 200")
    for number, command in enumerate(
        (
            "addr del 10.78.0.1/24 dev veth0",
            "route add default via 10.77.0.2",
            "route replace default via 10.77.0.3",
            "addr add fd77::1/64 dev veth0 nodad",
            "link set veth1 down",
        ),
        start=2,
    ):
        ip(command)
        eventually(lambda number=number: len(changes(proxy)) == number, says=proxy.log)


def test_what_is_no_change_to_us_is_none(warmproxy, origin, ip, veth) -> None:
    """Addresses of loopback, link-local ones, lifetimes, interfaces that carry none and what else
    is announced all the time make nobody suspect."""
    web = origin(host=HERE)
    ip("addr add fd77::1/64 dev veth0 nodad")
    proxy = warmproxy("--warm", f"{web.url}=3")
    before = web.wait_open(3)
    Path("/proc/sys/net/ipv6/conf/veth0/dad_transmits").write_text("30")
    ip("addr add fd77::2/64 dev veth0")  # tentative until in 30 s nobody has objected

    def disturb() -> bool:
        ip("addr add 127.0.1.1/8 dev lo")
        ip("addr add 10.99.0.1/32 dev lo")
        ip("addr add 10.98.0.1/24 dev veth0 scope link")
        ip("addr change fd77::1/64 dev veth0 valid_lft 1000 preferred_lft 0")
        ip("link add veth2 type veth peer name veth3")
        ip("link set veth2 up")
        ip("link set veth3 up")
        ip("link set veth1 mtu 1400")
        ip("route add 10.50.0.0/16 via 10.77.0.9")
        ip("route del 10.50.0.0/16")
        ip("link del veth2")
        ip("addr del 10.98.0.1/24 dev veth0")
        ip("addr del 127.0.1.1/8 dev lo")
        ip("addr del 10.99.0.1/32 dev lo")
        return all(c.open for c in before) and not changes(proxy)

    always(disturb, 1.5, proxy.log)
    ip("addr add 10.78.0.1/24 dev veth0")
    eventually(lambda: len(changes(proxy)) == 1)


CLOCK_OF_A_FILE = """
import pathlib, sys
from warmproxy.net import changes
clocks, file = changes.read_clocks, pathlib.Path(sys.argv[1])
def told():
    boot, awake = clocks()
    return changes.Clocks(boot + float(file.read_text()), awake)
changes.read_clocks = told
from warmproxy.cli import main
sys.exit(main(sys.argv[5:]))
"""
"""The daemon, with a clock that goes on while it sleeps as the test says."""


def test_idle_connections_are_replaced_after_sleep(warmproxy, origin, veth, tmp_path) -> None:
    """The machine has slept for an hour: idle connections to other machines are replaced, once;
    1.5 s are no sleep. (A test cannot put the machine to sleep: the clock is the test's.)"""
    web, near = origin(host=HERE), origin()
    clock, new = tmp_path / "clock", tmp_path / "new"

    def tell(ahead: str) -> None:
        new.write_text(ahead)
        new.replace(clock)  # never half written

    tell("0")
    proxy = warmproxy(
        "--warm",
        f"{web.url}=3",
        "--warm",
        f"{near.url}=2",
        inside=[sys.executable, "-c", CLOCK_OF_A_FILE, str(clock)],
    )
    before, beside = web.wait_open(3), near.wait_open(2)
    tell("1.5")
    always(lambda: all(c.open for c in before), 1.5)
    tell("3601.5")
    eventually(lambda: not any(c.open for c in before), says=proxy.log)
    after = web.wait_open(3)
    always(lambda: all(c.open for c in [*after, *beside]), 1.5)
    assert len(proxy.log_lines('"suspended"', '"seconds": 3600', '"suspect": 3')) == 1


IMPATIENT = """
import socket, sys
from warmproxy.net import dialer
dialer._OPTIONS += ((socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 500),)
from warmproxy.cli import main
sys.exit(main(sys.argv[4:]))
"""
"""The daemon, which waits for 0.5 s and not for 20 s for an acknowledgement."""


@contextlib.contextmanager
def cut_off(ip):
    """Nothing reaches HERE meanwhile, nor comes back that it does not."""
    ip("rule add pref 10 lookup local")
    ip("rule del pref 0")
    ip(f"rule add pref 5 to {HERE} unreachable")
    yield
    ip("rule del pref 5")


def test_a_request_that_times_out_makes_siblings_suspect(warmproxy, origin, ip, veth) -> None:
    """What was sent on one connection is never acknowledged: the idle ones to the same address are
    replaced as soon as it can be reached again."""
    web = origin(host=HERE)
    proxy = warmproxy("--warm", f"{web.url}=3", inside=[sys.executable, "-c", IMPATIENT])
    before = web.wait_open(3)
    with cut_off(ip):
        assert proxy.fetch(f"{web.url}/", "POST").status == 502
    # nobody has told the origin of the end of the one that timed out
    eventually(lambda: sum(c.open for c in before) == 1, says=proxy.log)
    assert proxy.count("warmproxy_closed_total", origin=web.url, reason="suspect") == 2
    assert not changes(proxy)


def test_a_tunnel_that_times_out_makes_siblings_suspect(warmproxy, origin, ip, veth) -> None:
    """The same where it is a tunnel; one that is reset says nothing of others."""
    web = origin(host=HERE)
    warm = f"https://{web.authority}=3"
    proxy = warmproxy("--warm", warm, inside=[sys.executable, "-c", IMPATIENT])
    web.wait_open(3)
    with proxy.tunnel(web.authority) as tunnel:
        tunnel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tunnel.recv(1000).startswith(b"HTTP/1.1 200")
        web.requests[0].connection.reset()
        with pytest.raises(ConnectionResetError):
            tunnel.recv(1000)
    siblings = web.wait_open(3)
    always(lambda: all(c.open for c in siblings), 0.5)
    with proxy.tunnel(web.authority) as tunnel:
        before = web.wait_open(4)
        with cut_off(ip):
            tunnel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                tunnel.recv(1000)
    eventually(lambda: sum(c.open for c in before) == 1, says=proxy.log)


def test_many_connections_share_local_ports(warmproxy, origin, ip) -> None:
    """With `source_address` a local port is taken once for each upstream address, not once in
    all: 60 connections fit into 32 ports."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40031")
    webs = [origin(host=f"127.0.0.{host}", port=22000) for host in (2, 3, 4)]
    warmproxy(
        config={
            "defaults": {"source_address": "127.0.0.9"},
            "upstream": [{"url": web.url, "warm": 20} for web in webs],
        }
    )
    for web in webs:
        for connection in web.wait_open(20):
            assert connection.peer[0] == "127.0.0.9"
    ports = [connection.peer[1] for web in webs for connection in web.connections]
    assert len(set(ports)) <= 32 < len(ports)


def test_clients_from_elsewhere_are_not_intercepted_unless_it_is_said(
    warmproxy, origin, tmp_path, veth
) -> None:
    """Beyond loopback the way to us may be listened on: a tunnel, unless intercept_clients has
    the client's network."""
    pki = Pki(tmp_path)
    ca = tmp_path / "ca"
    authority.create(ca, ["localhost"], now=time.time(), days=1)
    theirs = ssl.create_default_context(cafile=pki.file)
    ours = ssl.create_default_context(cafile=ca / authority.TRUST)
    web = origin(tls=pki.server(alpn=("http/1.1",)))
    place = f"localhost:{web.port}"
    upstream = {"url": f"https://{place}", "warm": 1, "intercept": True, "ca_file": str(pki.file)}
    settings = {"allow_clients": ["10.77.0.0/24"], "ca_dir": str(ca), "upstream": [upstream]}
    for more, trusted, refused in (
        ({}, theirs, ours),
        ({"intercept_clients": ["10.77.0.0/24"]}, ours, theirs),
    ):
        proxy = warmproxy(config=settings | more, listen=HERE)
        with connect(HERE, proxy.port, place, trusted) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(HERE, proxy.port, place, refused)


def connect(host: str, port: int, place: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    sock = socket.create_connection((host, port), timeout=20)
    try:
        sock.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        return context.wrap_socket(sock, server_hostname=place.partition(":")[0])
    except BaseException:
        sock.close()
        raise
