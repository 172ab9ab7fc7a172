"""What systemd hears from the daemon and passes to it, with a socket of the test's in its place.
`.ci/systemd-check` does the same with a real one."""

import contextlib
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import fetch_on
from tests.e2e.harness import accepts, eventually, free_port

PASSES = """
import os, socket, sys
ports = sys.argv[1].split(",")
for i, port in enumerate(ports):
    sock = socket.create_server(("127.0.0.1", int(port)))
    os.dup2(sock.fileno(), 100 + i)
for i in range(len(ports)):
    os.dup2(100 + i, 3 + i)
    os.set_inheritable(3 + i, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(ports))}
os.environ["LISTEN_FDNAMES"] = sys.argv[2]
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Listening:
    """Where sd_notify's datagrams arrive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.setblocking(False)
        self.heard: list[str] = []

    def said(self) -> list[str]:
        """All lines so far, those of one message together."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self.sock.recv(4096).decode())
        return self.heard

    def until(self, *messages: str) -> None:
        """Wait for these, in this order, whatever else is said."""

        def there() -> bool:
            rest = iter(self.said())
            return all(any(re.fullmatch(m, said) for said in rest) for m in messages)

        eventually(there, says=self.said)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Listening]:
    listening = Listening(tmp_path / "notify")
    yield listening
    listening.sock.close()


def passed(*ports: int, names: str) -> list[str]:
    """A command that starts another one as systemd does, with sockets that listen."""
    return [sys.executable, "-c", PASSES, ",".join(map(str, ports)), names]


def test_it_tells_of_its_life(warmproxy, origin, systemd) -> None:
    """Ready once all is warm, reloading with its time and ready again, good or bad, its status,
    and that it stops."""
    web = origin()
    config: dict[str, Any] = {"upstream": [{"url": web.url, "warm": 2}]}
    before = time.monotonic_ns() // 1000
    proxy = warmproxy(config=config, by_file=True, env={"NOTIFY_SOCKET": str(systemd.path)})
    systemd.until("READY=1", "STATUS=2 idle of 2, 0 clients")
    proxy.reload({"upstream": [{"url": web.url, "warm": 3}]})
    again = r"RELOADING=1\nMONOTONIC_USEC=\d+"
    systemd.until("READY=1", again, "READY=1", "STATUS=3 idle of 3, 0 clients")
    proxy.reload("no toml")
    systemd.until("READY=1", again, "READY=1", again, "READY=1")
    stamps = re.findall(r"USEC=(\d+)", "\n".join(systemd.said()))
    assert before < int(stamps[0]) < int(stamps[1]) <= time.monotonic_ns() // 1000
    assert proxy.terminate() == 0
    assert systemd.said()[-1] == "STOPPING=1"
    assert not any("WATCHDOG" in said for said in systemd.said()), "nobody watches"


def test_it_is_not_ready_before_it_is_warm(warmproxy, origin, blackhole, systemd) -> None:
    """A pool that cannot be warm keeps it from being ready until ready_timeout is over."""
    config = {"ready_timeout": 1.5, "upstream": [{"url": blackhole.url}]}
    env = {"NOTIFY_SOCKET": str(systemd.path)}
    proxy = warmproxy(config=config, env=env, ready=False)
    proxy.until(lambda: proxy.admin_status("/healthz") == 200)
    systemd.until("STATUS=0 idle of 2, 0 clients")
    assert "READY=1" not in systemd.said()
    systemd.until("READY=1")


def test_the_loop_feeds_the_watchdog(warmproxy, systemd) -> None:
    """Three times in its interval."""
    env = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "600000"}
    warmproxy(config={}, env=env)
    began = time.monotonic()
    systemd.until(*["WATCHDOG=1"] * 10)
    assert time.monotonic() - began < 10 * 0.6


def test_another_process_is_watched_and_not_this_one(warmproxy, systemd) -> None:
    """WATCHDOG_PID names the one that is."""
    env = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    warmproxy(config={}, env=env)
    systemd.until("READY=1", "STATUS=.*")
    assert "WATCHDOG=1" not in systemd.said()


def test_passed_sockets_take_the_place_of_the_addresses(warmproxy, origin) -> None:
    """Sockets that systemd opened are listened on, by their names, and the addresses of the
    settings are not; a reload keeps them; who connected before the start is served."""
    web = origin()
    one, two, admin = (free_port() for _ in range(3))
    inside = passed(one, admin, two, names="proxy:admin:other")
    config = {"upstream": [{"url": web.url, "warm": 1}]}
    proxy = warmproxy(config=config, by_file=True, inside=inside, ready=False)
    not_ours = proxy.port
    proxy.port, proxy.admin_port = one, admin
    proxy.until(lambda: proxy.admin_status("/readyz") == 200)
    assert not accepts(not_ours)
    client = proxy.connect()
    for _ in range(2):
        assert fetch_on(client, f"{web.url}/").text == web.greeting
        assert accepts(two)
        assert proxy.reload({**config, "max_tunnels": 7})["event"] == "reloaded"
    assert not accepts(not_ours)
    assert proxy.terminate() == 0


def test_a_passed_socket_at_a_gateways_address_is_its(warmproxy, origin) -> None:
    """What is matched by its address serves that, and the proxy has the others."""
    web = origin()
    mine, gateway = free_port(), free_port()
    table = {"listen": f"127.0.0.1:{gateway}", "upstream": web.url}
    inside = passed(gateway, mine, names="a:b")
    proxy = warmproxy(config={"gateway": [table]}, inside=inside, ready=False)
    proxy.port = mine
    proxy.until(lambda: proxy.admin_status("/readyz") == 200)
    with socket.create_connection(("127.0.0.1", gateway), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert proxy.fetch(f"{web.url}/").status == 200


def test_an_upgrade_by_signal_makes_another_process_the_main_one(
    warmproxy, origin, systemd, tmp_path
) -> None:
    """SIGUSR2: the same command starts again and takes over, passed sockets too, and systemd
    hears of it from the process that it knows, before anything from the new one counts."""
    web = origin()
    port = free_port()
    config = {
        "control": str(tmp_path / "control"),
        "upstream": [{"url": web.url, "warm": 2}],
    }
    env = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "3000000"}
    proxy = warmproxy(
        config=config, env=env, by_file=True, inside=passed(port, names="proxy"), ready=False
    )
    proxy.port = port
    proxy.until(lambda: proxy.admin_status("/readyz") == 200)
    proxy.until(lambda: (tmp_path / "control").exists())
    client = proxy.connect()
    assert fetch_on(client, f"{web.url}/").text == web.greeting
    proxy.signal(signal.SIGUSR2)
    assert fetch_on(client, f"{web.url}/").text == web.greeting
    successor = eventually(lambda: proxy.events("upgrading"))[0]["pid"]
    client.close()
    assert proxy.exit_code() == 0
    systemd.until("READY=1", f"MAINPID={successor}")
    taken = eventually(lambda: proxy.events("taken_over"))
    assert taken[0]["pid"] == proxy.pid
    assert proxy.fetch(f"{web.url}/").text == web.greeting
    heard = len(systemd.said())
    eventually(lambda: "WATCHDOG=1" in systemd.said()[heard:], says=systemd.said)


def test_an_upgrade_that_fails_is_told(warmproxy, origin, tmp_path) -> None:
    """Settings that are wrong by now end the new process, and nothing else."""
    web = origin()
    config = {"control": str(tmp_path / "control"), "upstream": [{"url": web.url, "warm": 1}]}
    proxy = warmproxy(config=config, by_file=True)
    proxy.file.write_text("nonsense")
    proxy.signal(signal.SIGUSR2)
    assert "ended with status 2" in eventually(lambda: proxy.events("upgrade_failed"))[0]["reason"]
    assert proxy.fetch(f"{web.url}/").status == 200
