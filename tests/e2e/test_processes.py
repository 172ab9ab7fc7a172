"""`processes = N`: who serves, what the sums say, and what becomes of those that end."""

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import (
    Warmproxy,
    command,
    fetch_on,
    read_reply,
    toml,
    wait_warm,
    warmproxy_environ,
)
from tests.e2e.harness import Process, accepts, always, eventually, free_port


def children(pid: int) -> list[int]:
    """Process ids, in the order in which they were started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append((int(fields[19]), int(stat.parent.name)))
    return [child for _, child in sorted(found)]


def workers(proxy: Process) -> list[int]:
    """The processes that serve: forked by the one that the parent has forked."""
    return [pid for seed in children(proxy.pid) for pid in children(seed)]


def serves(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    return found


def server_of(proxy: Warmproxy, sock: socket.socket) -> int:
    """The process that has the other end of a client's connection."""
    remote = f":{sock.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(remote) and fields[1].endswith(f":{proxy.port:04X}"):
            for pid in workers(proxy):
                if fields[9] in serves(pid):
                    return pid
    raise AssertionError(f"nobody serves {sock}")


def spread(proxy: Warmproxy, url: str) -> dict[int, list[http.client.HTTPConnection]]:
    """Clients that are served by each process, two at least."""
    found: dict[int, list[http.client.HTTPConnection]] = {pid: [] for pid in workers(proxy)}
    for _ in range(200):
        client = proxy.connect()
        assert fetch_on(client, url).status == 200
        found[server_of(proxy, client.sock)].append(client)
        if min(map(len, found.values())) >= 2:
            return found
    raise AssertionError(f"not spread: {found}")


def events(proxy: Process, name: str) -> list[dict]:
    lines = [json.loads(line) for line in proxy.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


class Load:
    """Clients that ask all the time, each request on a connection of its own."""

    def __init__(self, proxy: Warmproxy, url: str, clients: int = 4) -> None:
        self.done = 0
        self.failed: list[str] = []
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._args = (proxy, url)
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait until so many more are done."""
        until = self.done + count
        eventually(lambda: self.done >= until, 20, lambda: f"{self.done} of {until}")

    def _ask(self) -> None:
        proxy, url = self._args
        while not self._ends.is_set():
            client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            try:
                status = fetch_on(client, url).status
                problem = "" if status == 200 else str(status)
            except (OSError, http.client.HTTPException) as error:
                problem = repr(error)
            finally:
                client.close()
            with self._lock:
                self.done += 1
                if problem:
                    self.failed.append(problem)


@pytest.mark.parametrize("count", [2, 3])
def test_all_serve_and_the_sums_are_right(warmproxy, origin, count) -> None:
    """What is warm is divided, each process serves clients, and the admin pages have the sums."""
    web = origin()
    proxy = warmproxy("--processes", str(count), "--warm", f"{web.url}=7")
    web.wait_open(7)
    assert len(workers(proxy)) == count
    clients = [client for its in spread(proxy, f"{web.url}/").values() for client in its]
    for client in clients:
        assert fetch_on(client, f"{web.url}/").status == 200
    asked = len(web.requests)
    metrics = proxy.metrics()
    assert metrics.sum("warmproxy_requests_total", code_class="2xx") == asked
    hits = metrics.sum("warmproxy_acquires_total", outcome="fresh")
    hits += metrics.sum("warmproxy_acquires_total", outcome="used")
    assert hits == asked
    assert metrics.sum("warmproxy_clients") == len(clients)
    assert metrics.sum("warmproxy_target_idle", origin=web.url) == 7
    assert metrics.sum("warmproxy_process_up") == count
    assert metrics.sum("warmproxy_process_restarts_total") == 0
    assert metrics.sum("process_resident_memory_bytes") > count * 20e6
    pool = proxy.pool(web.url)
    assert (pool["target_idle"], pool["hits"], pool["configured"]) == (7, asked, True)
    assert pool["dials"] == len(web.connections)
    verbose = proxy.admin_get("/readyz?verbose").text
    for number in range(1, count + 1):
        assert f", process {number}\n" in verbose
    listening = events(proxy, "listening")
    assert [(line["processes"], line["warm"]) for line in listening] == [(count, [f"{web.url}=7"])]
    assert {line["process"] for line in events(proxy, "ready")} == set(range(1, count + 1))


def test_a_process_that_is_killed_is_replaced(warmproxy, origin) -> None:
    """Only what it had in flight is lost: the others' clients notice nothing, whoever connects
    meanwhile waits, no counter falls, and the pools are whole again."""
    web = origin()
    proxy = warmproxy("--processes", "2", "--warm", f"{web.url}=6")
    web.wait_open(6)
    spread_out = spread(proxy, f"{web.url}/")
    (victim, (held, idle, *_)), (_, (other, *_)) = spread_out.items()
    before = proxy.count("warmproxy_requests_total", code_class="2xx")
    asked = len(web.requests)
    held.request("GET", f"{web.url}/hold")
    web.wait_requests(asked + 1)
    with Load(proxy, f"{web.url}/") as load:
        load.more(50)
        os.kill(victim, signal.SIGKILL)
        load.more(50)
        eventually(lambda: proxy.count("warmproxy_process_restarts_total") == 1)
        load.more(100)
    assert len(load.failed) <= 4  # one for each client at most, in flight at that moment
    assert not [why for why in load.failed if "refused" in why.lower()]
    for client in (held, idle):
        with pytest.raises((OSError, http.client.HTTPException)):
            client.getresponse() if client is held else fetch_on(client, f"{web.url}/")
    assert fetch_on(other, f"{web.url}/").status == 200
    web.gate.set()
    assert victim not in workers(proxy)
    assert len(spread(proxy, f"{web.url}/")) == 2
    eventually(lambda: proxy.admin_status("/readyz") == 200)
    wait_warm(proxy, web.url, 6)
    assert proxy.pool(web.url)["target_idle"] == 6
    after = proxy.count("warmproxy_requests_total", code_class="2xx")
    assert before <= after <= len(web.requests)
    ended = events(proxy, "process_ended")
    assert [(line["pid"], line["cause"]) for line in ended] == [(victim, "SIGKILL")]


def test_a_process_that_is_told_to_end_is_replaced_first(warmproxy, origin) -> None:
    """A SIGTERM for one of them costs nothing: its successor is warm before it drains, and what
    it has in flight is finished."""
    web = origin()
    proxy = warmproxy("--processes", "2", "--warm", f"{web.url}=4", "--grace", "1")
    leaving, (held, *_) = next(iter(spread(proxy, f"{web.url}/").items()))
    asked = len(web.requests)
    held.request("GET", f"{web.url}/hold")
    web.wait_requests(asked + 1)
    with Load(proxy, f"{web.url}/") as load:
        load.more(20)
        os.kill(leaving, signal.SIGTERM)
        eventually(lambda: events(proxy, "process_replaced"))
        load.more(100)
        assert leaving in workers(proxy)
        web.gate.set()
        assert read_reply(held).status == 200
        eventually(lambda: leaving not in workers(proxy))
        load.more(20)
    assert load.failed == []
    metrics = proxy.metrics()
    assert metrics.sum("warmproxy_requests_total", code_class="2xx") == len(web.requests)
    assert metrics.sum("warmproxy_process_restarts_total") == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_finished_at_a_stop(warmproxy, origin, how) -> None:
    """A signal to the parent, or by a terminal to all of them, drains each process: exchanges are
    finished, and who connects then is refused."""
    web = origin()
    proxy = warmproxy("--processes", "2", "--warm", f"{web.url}=4", "--grace", "20")
    clients = [its[0] for its in spread(proxy, f"{web.url}/").values()]
    asked = len(web.requests)
    for client in clients:
        client.request("GET", f"{web.url}/hold")
    web.wait_requests(asked + 2)
    all_of_them = workers(proxy)
    os.killpg(proxy.pid, how)
    eventually(lambda: not accepts(proxy.port))
    assert proxy.admin_status("/readyz") == 503
    always(proxy.running, 0.2)
    web.gate.set()
    for client in clients:
        assert read_reply(client).status == 200
    assert proxy.exit_code() == 0
    assert not [pid for pid in all_of_them if Path(f"/proc/{pid}").exists()]
    assert {line["cut_short"] for line in events(proxy, "stopped")} == {0}


def test_the_second_signal_ends_the_grace_time(warmproxy, origin) -> None:
    """As with one process."""
    web = origin()
    proxy = warmproxy("--processes", "2", "--grace", "1000")
    client = next(iter(spread(proxy, f"{web.url}/").values()))[0]
    client.request("GET", f"{web.url}/hold")
    proxy.signal(signal.SIGTERM)
    eventually(lambda: len(events(proxy, "draining")) == 2)
    always(proxy.running, 0.2)
    assert proxy.terminate() == 0
    assert sum(line["cut_short"] for line in events(proxy, "stopped")) == 1


def test_none_outlives_the_parent(warmproxy, origin, home) -> None:
    """Where the parent is killed the others finish what they have in flight, and give the ports
    up at once: the next daemon can have them."""
    web = origin()
    proxy = warmproxy("--processes", "2", "--warm", f"{web.url}=4", "--grace", "20")
    held = next(iter(spread(proxy, f"{web.url}/").values()))[0]
    asked = len(web.requests)
    held.request("GET", f"{web.url}/hold")
    web.wait_requests(asked + 1)
    seed, its = children(proxy.pid), workers(proxy)
    proxy.signal(signal.SIGKILL)
    eventually(lambda: not accepts(proxy.port) and not accepts(proxy.admin_port))
    with _again(proxy, home("again")) as again:
        again.until(lambda: accepts(proxy.port))
        web.gate.set()
        assert read_reply(held).status == 200
        eventually(lambda: not [p for p in (*seed, *its) if Path(f"/proc/{p}").exists()])
        assert proxy.fetch(f"{web.url}/").status == 200


@contextlib.contextmanager
def _again(proxy: Warmproxy, folder: Path, *args: str) -> Iterator[Process]:
    """The same command line once more."""
    listen = ["--listen", f"127.0.0.1:{proxy.port}", "--admin", f"127.0.0.1:{proxy.admin_port}"]
    full = command("run", *listen, "--processes", "2", *args)
    process = Process(full, folder / "log", folder, warmproxy_environ())
    try:
        yield process
    finally:
        process.stop()


@pytest.mark.parametrize("which", ["--listen", "--admin"])
def test_a_port_in_use_is_one_line_and_exit_1(warmproxy, warmproxy_command, which) -> None:
    """Also where the one who has it spreads its connections too, and would share the port."""
    proxy = warmproxy("--processes", "2")
    ports = {"--listen": free_port(), "--admin": free_port()}
    ports[which] = proxy.port if which == "--listen" else proxy.admin_port
    flags = [f"{flag}=127.0.0.1:{port}" for flag, port in ports.items()]
    ran = warmproxy_command("run", "--processes", "3", *flags)
    assert ran.returncode == 1
    (line,) = ran.stderr.strip().splitlines()
    assert "the port is in use" in line
    assert proxy.admin_status("/readyz") == 200


def test_what_keeps_a_process_from_starting_is_said_once(warmproxy_command, tmp_path) -> None:
    """As with one process: one line, exit status 1, and nobody is left."""
    users = tmp_path / "users"
    users.write_text("nobody\n")
    flags = [f"--listen=127.0.0.1:{free_port()}", f"--admin=127.0.0.1:{free_port()}"]
    config = tmp_path / "warmproxy.toml"
    config.write_text(toml({"credentials_file": str(users), "processes": 3}))
    ran = warmproxy_command("run", *flags, "--config", str(config))
    assert ran.returncode == 1
    assert ran.stderr == f"warmproxy: {users}:1: not of the form user:password\n"


def test_it_is_tried_again_where_a_successor_cannot_start(warmproxy, origin, tmp_path) -> None:
    """With pauses, while the others serve; /readyz and the metrics name the missing one."""
    users = tmp_path / "users"
    users.write_text("someone:secret\n")
    users.chmod(0o600)
    web = origin()
    proxy = warmproxy("--processes", "2", config={"credentials_file": str(users)})
    victim = workers(proxy)[0]
    users.write_text("nobody\n")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(events(proxy, "process_failed")) >= 3)
    assert all("not of the form" in line["reason"] for line in events(proxy, "process_failed"))
    assert "[-] process 1 does not answer" in proxy.admin_get("/readyz?verbose").text
    assert proxy.count("warmproxy_process_up") == 1
    users.write_text("someone:secret\n")
    eventually(lambda: proxy.admin_status("/readyz") == 200, 15)
    assert proxy.count("warmproxy_process_up") == 2
    assert proxy.fetch(f"{web.url}/").status == 407
    assert "secret" not in proxy.log()


def test_who_is_silent_is_named(warmproxy, origin) -> None:
    """A process that does not answer within a second hides in no sum: /metrics, /pools and
    /readyz name it, what it has counted stays, and once it answers all is as before."""
    web = origin()
    proxy = warmproxy("--processes", "2", "--warm", f"{web.url}=4")
    web.wait_open(4)
    spread(proxy, f"{web.url}/")
    asked = proxy.count("warmproxy_requests_total", code_class="2xx")
    assert asked == len(web.requests)
    silent = workers(proxy)[1]
    os.kill(silent, signal.SIGSTOP)
    try:
        metrics = proxy.metrics()
        assert metrics.sum("warmproxy_process_up", process="1") == 1
        assert metrics.sum("warmproxy_process_up", process="2") == 0
        assert metrics.sum("warmproxy_requests_total", code_class="2xx") == asked
        pools = json.loads(proxy.admin_get("/pools").body)
        assert pools["silent"] == [2]
        assert pools["totals"]["fresh"] + pools["totals"]["used"] < 8
        assert proxy.admin_status("/readyz") == 503
        assert proxy.admin_status("/healthz") == 200
        os.kill(workers(proxy)[0], signal.SIGSTOP)
        assert proxy.admin_status("/healthz") == 503
    finally:
        for pid in workers(proxy):
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: proxy.count("warmproxy_process_up") == 2)
    assert "silent" not in json.loads(proxy.admin_get("/pools").body)
    assert proxy.count("warmproxy_requests_total", code_class="2xx") == asked


def test_where_none_can_be_started_any_more_it_ends(warmproxy, origin) -> None:
    """Without the process that they are forked from the others serve on; once one is missing, all
    drain and whoever supervises the daemon is told by its exit status."""
    web = origin()
    proxy = warmproxy("--processes", "2", "--warm", f"{web.url}=2")
    its = workers(proxy)
    (seed,) = children(proxy.pid)
    os.kill(seed, signal.SIGKILL)
    assert proxy.fetch(f"{web.url}/").status == 200
    os.kill(its[0], signal.SIGKILL)
    assert proxy.exit_code() == 1
    assert "no process can be started any more" in proxy.log().splitlines()[-1]
    eventually(lambda: not Path(f"/proc/{its[1]}").exists())


def test_a_wish_is_divided(warmproxy, origin, run) -> None:
    """POST /warm holds so many more in all, whatever the number of processes; and is refused where
    it would be refused by one."""
    web = origin()
    proxy = warmproxy("--processes", "3", "--warm", f"{web.url}=1")
    web.wait_open(1)
    post = ["curl", "-sS", "--noproxy", "", "-X", "POST", "-w", "%{http_code}"]
    ran = run([*post, f"http://{proxy.admin}/warm?origin={web.url}&count=8&for=60s"])
    assert ran.output[-3:] in ("200", "202"), ran.output
    web.wait_open(8)
    pool = proxy.pool(web.url)
    assert pool["target_idle"] == 8
    assert [(boost["count"], boost["why"]) for boost in pool["boosts"]] == [(8, "asked")]
    ran = run([*post, f"http://{proxy.admin}/warm?origin={web.url}&count=101"])
    assert ran.output[-3:] == "409"
    assert "max_connections" in ran.output
    ran = run([*post, f"http://{proxy.admin}/warm?origin={web.url}&count=0"])
    assert ran.output[-3:] == "200"
    assert proxy.pool(web.url)["target_idle"] == 1


def _rewrite(config: dict) -> Callable[[Warmproxy], None]:
    def do(proxy: Warmproxy) -> None:
        (proxy.log_path.parent / "warmproxy.toml").write_text(toml(config))
        proxy.signal(signal.SIGHUP)

    return do


def test_a_reload_is_taken_by_all(warmproxy, origin) -> None:
    """SIGHUP: other counts are divided anew and held by the same processes, connections to
    upstreams stay, and nobody who asks meanwhile notices; another number of processes has to wait
    for a restart."""
    web = origin()

    def config(processes: int, warm: int) -> dict:
        return {"processes": processes, "upstream": [{"url": web.url, "warm": warm}]}

    proxy = warmproxy(config=config(2, 3))
    web.wait_open(3)
    before = workers(proxy)
    fresh = web.idle_connections()
    with Load(proxy, f"{web.url}/") as load:
        load.more(20)
        _rewrite(config(3, 7))(proxy)
        eventually(lambda: proxy.pool(web.url)["target_idle"] == 7, says=proxy.log)
        load.more(50)
    assert load.failed == []
    assert workers(proxy) == before
    assert [c for c in fresh if not c.open] == []
    assert proxy.count("warmproxy_config_last_reload_successful") == 1
    (line,) = [line for line in events(proxy, "reloaded") if "process" not in line]
    assert (line["changed"], line["needs_restart"]) == (["upstream"], ["processes"])


def test_a_reload_with_other_listeners_replaces_one_after_the_other(warmproxy, origin) -> None:
    """What is new is listened on, what is gone is refused, and nobody who asks meanwhile notices;
    what is in flight is finished by those who leave."""
    web = origin()
    gates = [free_port(), free_port()]

    def config(port: int) -> dict:
        listen = {"listen": f"127.0.0.1:{port}", "upstream": web.url}
        return {
            "processes": 2,
            "grace": 0.5,
            "gateway": [listen],
            "upstream": [{"url": web.url, "warm": 4}],
        }

    proxy = warmproxy(config=config(gates[0]))
    before = workers(proxy)
    held = [its[0] for its in spread(proxy, f"{web.url}/").values()]
    for client in held:
        client.request("GET", f"{web.url}/hold")
    with Load(proxy, f"{web.url}/") as load:
        load.more(20)
        for nth, port in enumerate((gates[1], gates[0]), 1):
            _rewrite(config(port))(proxy)
            eventually(lambda nth=nth: len(events(proxy, "reloaded")) == nth, 10, proxy.log)
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            assert fetch_on(client, "/").text == web.greeting
            client.close()
            other = next(gate for gate in gates if gate != port)
            eventually(lambda other=other: not accepts(other))
            load.more(50)
    assert load.failed == []
    web.gate.set()
    for client in held:
        assert read_reply(client).status == 200
    eventually(lambda: len(workers(proxy)) == 2)
    assert not set(before) & set(workers(proxy))
    assert proxy.count("warmproxy_requests_total", code_class="2xx") == len(web.requests)
    assert proxy.count("warmproxy_process_restarts_total") == 0


def test_reload_of_what_is_wrong_changes_nothing(warmproxy, origin, tmp_path) -> None:
    """Settings with mistakes, with a port that is taken, and with a file that holds nothing of
    use: each is said once, and the old ones hold."""
    web = origin()
    bad = tmp_path / "users"
    bad.write_text("nobody\n")
    good = {"processes": 2, "upstream": [{"url": web.url, "warm": 4}]}
    proxy = warmproxy(config=good)
    before = workers(proxy)
    gateway = [{"listen": f"127.0.0.1:{web.port}", "upstream": web.url}]
    wrong = (
        ({**good, "warmth": 3}, "unknown key"),
        ({**good, "gateway": gateway}, "the port is in use"),
        ({**good, "credentials_file": str(bad)}, "not of the form"),
    )
    for nth, (config, problem) in enumerate(wrong, 1):
        _rewrite(config)(proxy)
        eventually(lambda nth=nth: len(events(proxy, "reload_failed")) == nth, 10, proxy.log)
        assert problem in events(proxy, "reload_failed")[-1]["problems"][0]
        assert proxy.count("warmproxy_config_last_reload_successful") == 0
        assert workers(proxy) == before
        assert proxy.fetch(f"{web.url}/").status == 200
    _rewrite(good)(proxy)
    eventually(lambda: proxy.count("warmproxy_config_last_reload_successful") == 1)
    assert proxy.pool(web.url)["target_idle"] == 4


_ACTIVATE = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_from_systemd_is_shared_by_all(warmproxy, origin) -> None:
    """It opens one for an address: all processes accept from it, and the daemon that is started
    next finds who came meanwhile."""
    web = origin()
    port = free_port()
    inside = [sys.executable, "-c", _ACTIVATE, str(port)]
    proxy = warmproxy("--processes", "2", "--warm", f"{web.url}=2", inside=inside)
    proxy.port = port
    with Load(proxy, f"{web.url}/", clients=8) as load:
        load.more(200)
        os.kill(workers(proxy)[0], signal.SIGTERM)
        eventually(lambda: events(proxy, "process_replaced"))
        load.more(100)
    assert load.failed == []
    assert events(proxy, "listening")[0]["proxy"] == [f"127.0.0.1:{port}"]
    for pid in workers(proxy):
        assert len(serves(pid)) > 2


def test_nothing_of_this_is_there_by_default(warmproxy, origin) -> None:
    """With one process there is no parent, and no line of the log has a number."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=1")
    assert children(proxy.pid) == []
    assert '"process"' not in proxy.log()
    assert proxy.count("warmproxy_process_up") == 1
