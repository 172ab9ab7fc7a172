"""`run --takeover`: one process's listeners become another's, and nobody notices."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Warmproxy, wait_warm, warmproxy_environ
from tests.e2e.harness import ROOT, accepts, always, eventually, free_port, missing
from warmproxy.control import take
from warmproxy.errors import StartError

Start = Callable[..., Warmproxy]


@pytest.fixture
def start(warmproxy: Any, tmp_path: Path) -> Start:
    """Daemons that find each other; with `after` one takes over from another. Who needs what is
    not there (a warm origin) begins with `ready=False`."""

    def started(
        *urls: str, after: Warmproxy | None = None, args: tuple[str, ...] = (), **more: Any
    ) -> Warmproxy:
        ready = more.pop("ready", True)
        config = {
            "control": str(tmp_path / "control"),
            "upstream": [{"url": url, "warm": 3} for url in urls],
            **more,
        }
        if after is not None:
            args = ("--takeover", *args)
        proxy = warmproxy(*args, config=config, like=after, ready=ready)
        if after is not None and ready:
            proxy.until(lambda: proxy.events("taken_over"))
        return proxy

    return started


def names(web: Any) -> set[int]:
    return {connection.number for connection in web.open_connections()}


def exchange(sock: socket.socket, url: str) -> bytes:
    sock.sendall(f"GET {url} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    answer = b""
    while b"</p>" not in answer:
        data = sock.recv(65536)
        assert data, answer
        answer += data
    return answer


def test_reloads_and_upgrades_under_load_lose_nothing(run, tmp_path: Path) -> None:
    """The benchmark in its smallest form: three of each at 150 requests a second, GET, POST and
    CONNECT in turn, with no second try. None fails, and less than 1 % find nothing warm."""
    told = tmp_path / "upgrade.json"
    script = ROOT / "benchmarks" / "upgrade.py"
    args = [sys.executable, str(script), "--quick", "--json", str(told), "--python", sys.executable]
    ran = run(args, warmproxy_environ(), timeout=55)
    rounds = json.loads(told.read_text())["rounds"]
    assert [r["what"] for r in rounds] == ["reload"] * 3 + ["upgrade"] * 3
    for each in rounds:
        assert each["requests"] >= 400, ran.output
        assert each["failures"] == [], ran.output
        assert each["hit_ratio"] >= 0.99, ran.output


def test_the_old_one_leaves_once_the_new_one_is_warm(start, origin) -> None:
    """The new process dials before the old one lets go; who is connected to the old one is
    answered once more and then asked to come back, and a tunnel goes on to its end."""
    web, far = origin(), origin()
    old = start(web.url, f"https://{far.authority}", takeover_grace=30.0)
    before = names(web)
    idle, tunnel = old.raw(), old.tunnel(far.authority)
    with idle, tunnel:
        assert b"onnection: close" not in exchange(idle, f"{web.url}/")
        wait_warm(old, web.url, 3)
        new = start(web.url, f"https://{far.authority}", after=old)
        assert len(names(web) - before) >= 3, "of the new process"
        assert old.running()
        assert old.events("handed_over")[0]["pid"] == new.pid
        hits = new.count("warmproxy_acquires_total")
        answer = exchange(idle, f"{web.url}/")
        assert b"\r\nConnection: close\r\n" in answer
        assert idle.recv(100) == b""
        assert new.count("warmproxy_acquires_total") == hits, "it was the old one that answered"
        assert new.fetch(f"{web.url}/").text == web.greeting
        assert new.count("warmproxy_acquires_total", outcome="fresh") == 1
        tunnel.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert tunnel.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert old.running()
    assert old.exit_code() == 0
    assert old.events("stopped")[0]["cut_short"] == 0
    assert new.fetch(f"{web.url}/").status == 200
    eventually(lambda: not names(web) & before)


def test_the_old_one_keeps_nothing_warm_for_tunnels_alone(start, origin) -> None:
    """Once idle clients have had grace to come back, only what is in use is left of the old
    pools; the tunnel still works."""
    web, far = origin(), origin()
    old = start(web.url, grace=0.2)
    with old.tunnel(far.authority) as tunnel, old.raw() as idle:
        assert exchange(idle, f"{web.url}/")
        start(web.url, after=old)
        assert idle.recv(100) == b""
        web.wait_open(3)
        tunnel.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert tunnel.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert old.exit_code() == 0


def test_the_old_one_ends_what_outlasts_its_grace(start, origin) -> None:
    """A tunnel that stays open is cut after takeover_grace."""
    far = origin()
    old = start(takeover_grace=0.3)
    with old.tunnel(far.authority) as tunnel:
        start(after=old)
        assert old.exit_code() == 0
        with contextlib.suppress(ConnectionResetError):
            assert tunnel.recv(1) == b""
    assert old.events("stopped")[0]["cut_short"] == 1


def test_a_client_in_the_backlog_is_not_lost(start, origin) -> None:
    """Whoever the old process has not accepted yet, being full, is served by the new one."""
    web = origin()
    old = start(web.url, max_clients=1)
    with old.raw() as first, old.raw() as second:
        assert exchange(first, f"{web.url}/")
        second.sendall(f"GET {web.url}/ HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        eventually(lambda: old.events("accept_paused"))
        start(web.url, after=old)
        assert second.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_the_old_one_goes_on_if_the_new_one_dies_first(start, origin, blackhole) -> None:
    """A new process that is killed before it was ready has changed nothing, and the next one may
    take over."""
    web = origin()
    old = start(web.url)
    before = names(web)
    stuck = start(blackhole.url, after=old, ready=False, ready_timeout=60.0)
    eventually(lambda: old.events("takeover_asked"), says=lambda: stuck.log())
    stuck.signal(signal.SIGKILL)
    stuck.exit_code()
    failed = eventually(lambda: old.events("takeover_failed"))
    assert failed[0]["pid"] == stuck.pid
    assert always(lambda: old.fetch(f"{web.url}/").status == 200, 0.2)
    assert before <= names(web)
    assert old.count("warmproxy_acquires_total", outcome="dialled") == 0
    new = start(web.url, after=old)
    assert old.exit_code() == 0
    assert new.fetch(f"{web.url}/").status == 200


def test_of_two_one_wins_and_the_other_says_so(start, origin, blackhole) -> None:
    """While one process is about to take over, another that tries is refused, with who it is."""
    web = origin()
    old = start(web.url)
    slow = start(blackhole.url, after=old, ready=False, ready_timeout=60.0)
    eventually(lambda: old.events("takeover_asked"), says=lambda: slow.log())
    late = start(web.url, after=old, ready=False)
    assert late.exit_code() == 1
    assert f"process {slow.pid} is taking over already" in late.log().splitlines()[-1]
    assert "Traceback" not in late.log()
    assert old.fetch(f"{web.url}/").status == 200
    assert slow.running()


def test_a_new_one_that_is_stopped_leaves_the_old_one_be(start, origin, blackhole) -> None:
    """SIGTERM before it was ready ends the new process with 0, and the old one goes on."""
    web = origin()
    old = start(web.url)
    slow = start(blackhole.url, after=old, ready=False, ready_timeout=60.0)
    eventually(lambda: old.events("takeover_asked"), says=lambda: slow.log())
    assert slow.terminate() == 0
    eventually(lambda: old.events("takeover_failed"))
    assert old.fetch(f"{web.url}/").status == 200


def test_where_nobody_is_there_it_starts_as_ever(start, origin, tmp_path) -> None:
    """Also beside what a killed process left behind; and in the end its socket is gone."""
    web = origin()
    first = start(web.url, args=("--takeover",))
    assert first.events("takeover_nobody")[0]["path"] == str(tmp_path / "control")
    first.signal(signal.SIGKILL)
    first.exit_code()
    again = start(web.url, after=first, ready=False)
    again.until(lambda: again.admin_status("/readyz") == 200)
    assert again.events("takeover_nobody")
    assert again.fetch(f"{web.url}/").status == 200
    assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o600
    assert again.terminate() == 0
    assert list(tmp_path.glob("control*")) == []


def test_without_a_place_for_the_socket_it_says_what_to_set(warmproxy) -> None:
    """No runtime directory and no `control`: one line, status 1."""
    environ = {"XDG_RUNTIME_DIR": "", "RUNTIME_DIRECTORY": ""}
    proxy = warmproxy("--takeover", config={}, env=environ, ready=False)
    assert proxy.exit_code() == 1
    assert "set 'control'" in proxy.log()
    assert proxy.log().count("\n") == 1


def test_the_usual_place_is_in_the_runtime_directory(warmproxy, origin, tmp_path) -> None:
    """Two daemons of one user do not meet there: each is found by its address."""
    web, environ = origin(), {"XDG_RUNTIME_DIR": str(tmp_path)}
    table = {"upstream": [{"url": web.url, "warm": 2}]}
    one, two = (warmproxy(config=table, env=environ) for _ in range(2))
    sockets = {f"control-127.0.0.1-{proxy.port}" for proxy in (one, two)}
    eventually(lambda: {path.name for path in (tmp_path / "warmproxy").iterdir()} == sockets)
    assert stat.S_IMODE((tmp_path / "warmproxy").stat().st_mode) == 0o700
    warmproxy("--takeover", config=table, env=environ, like=one)
    assert one.exit_code() == 0
    assert two.running()


def test_what_was_learned_is_handed_over(start, origin) -> None:
    """Idle limits are known to the new process at once, with no file between them."""
    web = origin(idle_fresh=0.6)
    old = start(web.url)
    limit = eventually(lambda: old.pool(web.url)["idle_limits"]["fresh"], says=old.pools)
    new = start(web.url, after=old)
    assert old.exit_code() == 0
    assert new.pool(web.url)["idle_limits"]["fresh"] == pytest.approx(limit, abs=0.3)


def test_other_addresses_are_opened_and_what_is_missing_is_closed(start, origin) -> None:
    """The new process has the listeners of its own settings, the rest goes with the old one."""
    web = origin()
    gateways = [
        {"listen": f"127.0.0.1:{port}", "upstream": web.url} for port in (free_port(), free_port())
    ]
    old = start(web.url, gateway=gateways[:1])
    first, second = (int(table["listen"].rpartition(":")[2]) for table in gateways)
    assert accepts(first)
    start(web.url, after=old, gateway=gateways[1:])
    assert old.exit_code() == 0
    assert accepts(second)
    assert not accepts(first)


def test_five_in_a_row(start, origin) -> None:
    """Each takes over from the one before, and a client goes on asking."""
    web = origin()
    chain = [start(web.url)]
    for _ in range(4):
        chain.append(start(web.url, after=chain[-1]))
        assert chain[-1].fetch(f"{web.url}/").status == 200
        assert chain[-2].exit_code() == 0
    wait_warm(chain[-1], web.url, 3)
    pool = chain[-1].pool(web.url)
    web.wait_open(pool["fresh"] + pool["used"])


# -- the conversation -------------------------------------------------------------------------


def ask(path: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(line)
        answer = sock.makefile("rb").readline()
    return json.loads(answer) if answer else {}


def test_another_version_of_the_protocol_is_refused(start, origin, tmp_path) -> None:
    """With what to do instead; what is no conversation at all does no harm either."""
    web = origin()
    old = start(web.url)
    eventually((tmp_path / "control").exists)
    answer = ask(tmp_path / "control", b'{"protocol": 2, "asks": "sockets"}\n')
    assert "speaks protocol 1: restart it instead" in answer["refused"]
    for line in (b"[1]\n", b"\xff\xfe\n", b"{\n"):
        assert ask(tmp_path / "control", line) == {}
    new = start(web.url, after=old)
    assert new.fetch(f"{web.url}/").status == 200


def test_what_a_later_version_says_beside_is_ignored(start, origin, tmp_path) -> None:
    """So that one can take over from, and be taken over by, a version that knows more."""
    old = start(origin().url)
    eventually((tmp_path / "control").exists)
    asked = b'{"protocol": 1, "version": "9.9", "asks": "sockets", "new": {"a": 1}}\n'
    assert ask(tmp_path / "control", asked)["protocol"] == 1
    assert eventually(lambda: old.events("takeover_asked"))[0]["version"] == "9.9"
    eventually(lambda: old.events("takeover_failed"))


def test_sockets_of_another_user_are_not_taken(tmp_path: Path) -> None:
    """Whoever waits at that path with another user's rights is not believed."""
    if os.geteuid() != 0:
        missing("root, to be another user")
    tmp_path.chmod(0o755)
    place = tmp_path / "theirs"
    place.mkdir()
    os.chown(place, 65534, 65534)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('up', flush=True); c, _ = s.accept(); sys.stdin.read()"
    )
    path = str(place / "control")
    with subprocess.Popen(
        ["/usr/bin/env", "python3", "-c", script, path],
        user=65534,
        group=65534,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        with pytest.raises(StartError, match="belongs to another user"):
            take(path)
        other.kill()


# -- a restart --------------------------------------------------------------------------------


def test_after_sigkill_all_is_warm_again_within_two_seconds(warmproxy, origin) -> None:
    """From the start of the next process; the quickest of three, since others use the machine."""
    webs = [origin() for _ in range(5)]
    table = {"upstream": [{"url": web.url, "warm": 4} for web in webs]}
    proxy = warmproxy(config=table)
    took = []
    for _ in range(3):
        proxy.signal(signal.SIGKILL)
        proxy.exit_code()
        for web in webs:
            web.wait_open(0)
        began = time.monotonic()
        proxy = warmproxy(config=table, like=proxy)
        assert all(proxy.pool(web.url)["fresh"] == 4 for web in webs)
        took.append(time.monotonic() - began)
    assert min(took) < 2.0, took
