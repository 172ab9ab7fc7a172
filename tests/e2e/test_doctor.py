"""`warmproxy doctor` against real servers, and against origins that behave in ways of their own."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import tomllib

import pytest

from tests.e2e.daemon import command, warmproxy_environ
from tests.e2e.harness import ROOT, Process, eventually, free_port, need
from tests.e2e.origins import Connection, Request, usual
from tests.e2e.tls_origins import ALERT_IN_CLEAR, Pki, secure

METHODS = ["GET", "GET", "HEAD", "OPTIONS"]
"""All that an origin is asked."""


@pytest.fixture
def doctor(warmproxy_command):
    """What `warmproxy doctor --json` says; it must find no error and take no longer than `wait`."""

    def run(url: str, *args: str, wait: float = 8.0):
        ran = warmproxy_command("doctor", url, "--json", "--wait", str(wait), *args)
        assert (ran.returncode, ran.stderr) == (0, "")
        said = json.loads(ran.stdout)
        assert said["error"] == ""
        assert said["seconds"] < wait + 0.5
        return said

    return run


@pytest.fixture
def pki(tmp_path) -> Pki:
    return Pki(tmp_path)


@pytest.fixture
def table(warmproxy_command, tmp_path):
    """The recommended [[upstream]] table, which `warmproxy check` has accepted."""

    def read(said):
        file = tmp_path / "recommended.toml"
        file.write_text(said["recommended"])
        checked = warmproxy_command("check", "--config", str(file))
        assert (checked.returncode, checked.stderr) == (0, "")
        (upstream,) = tomllib.loads(said["recommended"])["upstream"]
        for key, value in upstream.items():
            shown = re.search(rf"^upstream\[0\]\.{key} += (.*?) +#", checked.stdout, re.MULTILINE)
            assert shown is not None
            assert tomllib.loads(f"x = {shown[1]}")["x"] == value
        return upstream

    return read


def kept(said, kind: str, seconds: float, slack: float = 0.6) -> None:
    """The limit was measured, and the server's timer may be late."""
    assert seconds - 0.05 <= said["limits"][kind]["seconds"] <= seconds + slack, said["limits"]


# -- real servers -----------------------------------------------------------------------------


def test_nginx(doctor, table, nginx_server) -> None:
    """nginx: both limits at once, no longer than they take, with four requests on two of three
    connections; the recommended idle_timeout is below its keepalive_timeout."""
    web = nginx_server("keepalive_timeout 3s; client_header_timeout 2s;")
    said = doctor(f"{web.url}/hello.txt", wait=20.0)
    kept(said, "fresh", 2)
    kept(said, "used", 3)
    assert [limit["end"] for limit in said["limits"].values()] == ["fin", "fin"]
    assert said["seconds"] < 4.5
    assert said["server"].startswith("nginx/")
    answers = [(a["method"], a["status"], a["keeps"], a["http"]) for a in said["answers"]]
    assert answers == [
        ("GET", 200, True, "1.1"),
        ("HEAD", 200, True, "1.1"),
        ("OPTIONS", 405, True, "1.1"),
    ]
    assert said["workers"]["held_by"] == []
    rows = eventually(lambda: (rows := web.seen()) and len(rows) == 4 and rows)
    assert [(method, uri) for _, _, method, uri, _ in rows] == [(m, "/hello.txt") for m in METHODS]
    assert [nth for _, nth, *_ in rows] == [1, 1, 2, 3]
    assert (said["connections"], said["requests"]) == (3, 4)
    assert table(said) == {"url": web.url, "warm": 1, "idle_timeout": 2.5}


def test_nginx_with_tls(doctor, table, nginx_server, pki) -> None:
    """TLS 1.3 at nginx: three limits, its two tickets, a session that resumes, ALPN."""
    chain, key = pki.files("nginx")
    port = free_port()
    nginx_server(
        "keepalive_timeout 2s; client_header_timeout 1s;"
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; return 200 'over TLS';"
        f"ssl_certificate {chain}; ssl_certificate_key {key}; }}"
    )
    url = f"https://localhost:{port}"
    said = doctor(url, "--ca-file", str(pki.file))
    kept(said, "fresh", 1)
    kept(said, "used", 2)
    kept(said, "raw", 1)
    tls = said["tls"]
    assert (tls["version"], tls["alpn"], tls["tickets"]) == ("TLSv1.3", "http/1.1", 2)
    assert (tls["resumes"], tls["verified"], tls["error"]) == (True, True, "")
    saves = said["saves_ms"]
    assert said["dns_ms"] > 0
    assert saves["tunnel"] == pytest.approx(said["dns_ms"] + said["connect"][0]["ms"], abs=0.01)
    assert saves["forwarded"] == pytest.approx(saves["tunnel"] + tls["ms"], abs=0.01)
    assert table(said) == {
        "url": url,
        "warm": 0,
        "tls": 0,
        "ca_file": str(pki.file),
        "idle_timeout": 1.5,
    }


def test_node(doctor, table, node_server) -> None:
    """Node: the 408 that it writes on a never-used connection, its Keep-Alive hint, and no more
    connections and requests than said."""
    times = {"headersTimeout": 1000, "keepAliveTimeout": 2000, "connectionsCheckingInterval": 100}
    web = node_server(times)
    said = doctor(web.url)
    kept(said, "fresh", 1)
    assert said["limits"]["fresh"]["said"] == "HTTP/1.1 408 Request Timeout"
    assert said["limits"]["fresh"]["end"] == "fin"
    assert said["keep_alive_timeout"] == 2
    kept(said, "used", 2, slack=1.6)  # Node grants a second beyond what it says
    assert any("HTTP/1.1 408" in note for note in said["notes"])
    assert table(said) == {"url": web.url, "warm": 0, "idle_timeout": 1.5}
    assert [event["method"] for event in web.events("request")] == METHODS
    eventually(lambda: len(web.events("close")) == 3)
    assert len(web.events("connect")) == said["connections"] == 3


def test_haproxy(doctor, table, haproxy_server) -> None:
    """HAProxy's 408 after `timeout http-request`, and none on a used connection."""
    web = haproxy_server("1500ms")
    said = doctor(web.url)
    kept(said, "fresh", 1.5)
    assert said["limits"]["fresh"]["said"] == "HTTP/1.1 408 Request Time-out"
    kept(said, "used", 1.5)
    assert (said["limits"]["used"]["end"], said["limits"]["used"]["said"]) == ("fin", "")
    assert table(said)["warm"] == 0


def test_gunicorn_with_a_sync_worker(doctor, table, gunicorn_server) -> None:
    """An idle connection that holds the only worker is noticed, and closed before the arbiter
    kills the worker; not to be warmed."""
    web = gunicorn_server(["--worker-class", "sync"])
    said = doctor(f"{web.url}/get", wait=20.0)
    assert said["workers"]["held_by"] == ["fresh"]
    assert said["workers"]["beside_idle_ms"] > 2000 > 500 > said["workers"]["alone_ms"]
    assert said["limits"]["fresh"] == {"seconds": None, "end": "not measured", "said": ""}
    assert said["limits"]["used"] == {"seconds": None, "end": "not kept", "said": ""}
    assert said["notes"][0].startswith("WARNING: an idle connection holds a worker")
    assert table(said) == {"url": web.url, "warm": 0}
    assert said["seconds"] < 6
    asked = [re.search(r'"(\w+) /get ', line) for line in web.log_lines("warmproxy-doctor")]
    assert [found[1] for found in asked if found] == METHODS
    assert web.log_lines("WORKER TIMEOUT") == []


def test_gunicorn_with_sync_workers_to_spare(doctor, table, gunicorn_server) -> None:
    """With another worker free nothing has to wait; it is known by its looks, and the worker is
    not held for the time of a measurement."""
    web = gunicorn_server(["--worker-class", "sync", "--workers", "3"])
    eventually(lambda: len(web.log_lines("Booting worker")) == 3)
    said = doctor(f"{web.url}/get", wait=20.0)
    assert said["workers"]["held_by"] == []
    assert said["limits"]["fresh"]["end"] == "not measured"
    assert "sync workers" in said["notes"][0]
    assert table(said)["warm"] == 0
    assert said["seconds"] < 3


def test_gunicorn_with_threads(doctor, table, gunicorn_server) -> None:
    """gthread: nobody waits for an idle connection; a used one is kept for `--keep-alive`."""
    web = gunicorn_server(["--worker-class", "gthread", "--threads", "4", "--keep-alive", "1"])
    said = doctor(f"{web.url}/get", wait=4.0)
    assert said["workers"]["held_by"] == []
    kept(said, "used", 1, slack=1.2)
    assert said["limits"]["fresh"]["end"] == "open"
    assert 2 < said["limits"]["fresh"]["seconds"] < 4
    upstream = table(said)
    assert upstream["warm"] == 2
    assert 0.1 <= upstream["idle_timeout"] < 1.9
    assert any("watched for" in note for note in said["notes"])
    assert len(web.log_lines("warmproxy-doctor")) == 4


# -- what else origins do ---------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_what_an_origin_sees(doctor, origin, pki, tls) -> None:
    """Three or four connections, four requests, and at the end all connections are closed. What
    is said of them is described in docs/doctor.md."""
    web = origin(tls=pki.server() if tls else None)
    said = doctor(f"{web.url}/x?y=1", *(["--ca-file", str(pki.file)] if tls else []), wait=1.0)
    assert [(r.method, r.target) for r in web.requests] == [(m, "/x?y=1") for m in METHODS]
    assert all(r.header("host") == web.authority for r in web.requests)
    assert all((r.header("user-agent") or "").startswith("warmproxy-doctor/") for r in web.requests)
    assert len(web.connections) == said["connections"] == 3 + tls
    web.wait_open(0)
    kinds = ["fresh", "used", "raw"] if tls else ["fresh", "used"]
    assert {k: limit["end"] for k, limit in said["limits"].items()} == dict.fromkeys(kinds, "open")
    assert all(0.3 < limit["seconds"] < 1.1 for limit in said["limits"].values())
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    inner = [said["workers"], *said["answers"], said["tls"] or {}, *said["connect"]]
    keys = {key for part in [said, *inner, *said["limits"].values()] for key in part} - {"method"}
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_endings(doctor, origin, pki) -> None:
    """A reset, an alert on raw TCP, bytes after which nothing is closed: each has its name."""
    web = origin(idle_fresh=0.5, idle_used=0.8, idle_ends_in_reset=True)
    said = doctor(web.url)
    assert [limit["end"] for limit in said["limits"].values()] == ["reset", "reset"]
    kept(said, "fresh", 0.5)
    kept(said, "used", 0.8)
    web = origin(tls=pki.server(), idle_fresh=0.5, farewell=ALERT_IN_CLEAR)
    said = doctor(web.url, "--ca-file", str(pki.file), wait=1.2)
    assert said["limits"]["raw"]["end"] == "alert"
    assert said["limits"]["raw"]["said"] == "internal error"

    def talk(connection: Connection, request: Request) -> None:
        usual(connection, request)
        if request.method == "OPTIONS":
            web.connections[1].say(b"hello\r\nanybody?\r\n")

    web = origin(talk)
    said = doctor(web.url, wait=2.0)
    assert (said["limits"]["fresh"]["end"], said["limits"]["fresh"]["said"]) == ("bytes", "hello")
    assert said["limits"]["used"]["end"] == "open"


def test_noise_on_tls(doctor, origin, pki) -> None:
    """What breaks an idle TLS connection is told, and not taken for an answer."""

    def talk(connection: Connection, request: Request) -> None:
        usual(connection, request)
        if request.method == "OPTIONS":
            secure(web.connections[0]).say_in_clear(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    web = origin(talk, tls=pki.server())
    said = doctor(web.url, "--ca-file", str(pki.file), wait=2.0)
    limit = said["limits"]["used"]
    assert limit["end"] == "error"
    assert limit["said"]
    assert limit["seconds"] < 1


def test_connections_that_are_not_kept(doctor, table, origin) -> None:
    """GET keeps, HEAD and OPTIONS close: seen for each, at the price of two connections."""

    def answer(connection: Connection, request: Request) -> None:
        connection.close_after = request.method != "GET"
        connection.reply()

    web = origin(answer)
    said = doctor(web.url, wait=1.0)
    assert [a["keeps"] for a in said["answers"]] == [True, False, False]
    assert [r.nth for r in web.requests] == [1, 1, 2, 1]
    assert len(web.connections) == said["connections"] == 4


def test_http_1_0(doctor, table, origin) -> None:
    """An HTTP/1.0 server keeps nothing: no limit of used connections, and no idle_timeout."""

    def answer(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
        connection.fin()

    said = doctor(origin(answer).url, wait=1.0)
    assert {(a["http"], a["keeps"]) for a in said["answers"]} == {("1.0", False)}
    assert said["limits"]["used"]["end"] == "not kept"
    assert "idle_timeout" not in table(said)


def test_a_limit_on_connections(doctor, origin) -> None:
    """An origin that takes no further connections beside idle ones: said, and no table."""

    def answer(connection: Connection, request: Request) -> None:
        usual(connection, request)
        web.hang_up = True

    web = origin(answer)
    said = doctor(web.url, wait=2.0)
    assert said["workers"]["held_by"] is None
    assert "closed the connection without an answer" in said["workers"]["error"]
    assert said["workers"]["error"] in said["notes"][0]
    assert said["recommended"] is None


def test_slow_for_another_reason(doctor, origin) -> None:
    """An answer that takes long, and does not come when idle connections are closed either, is
    not blamed on them."""

    def answer(connection: Connection, request: Request) -> None:
        usual(connection, request)
        if len(web.requests) == 1:
            web.answer = slow

    def slow(connection: Connection, request: Request) -> None:
        # the fresh connection, then the used one: both were closed, in vain
        eventually(lambda: all(c.eof_at for c in web.connections[:2]))
        assert not connection.origin.gate.wait(1.5)
        web.answer = usual
        usual(connection, request)

    web = origin(answer)
    said = doctor(web.url, wait=15.0)
    assert said["workers"]["held_by"] is None
    assert "too unevenly" in said["notes"][0]
    assert said["recommended"] is None


def test_two_families(hosts, origin, run) -> None:
    """A name with an IPv4 and an IPv6 address, of which one is refused: both are told, and the
    other is examined."""
    web = origin()
    hosts.say({"both.test": ["127.0.0.1", "::1"]})
    doctor = command("doctor", f"http://both.test:{web.port}", "--json", "--wait", "1")
    ran = run([*hosts.inside, *doctor], warmproxy_environ())
    assert ran.code == 0
    said = json.loads(ran.output)
    assert sorted(said["addresses"]) == ["127.0.0.1", "::1"]
    by_family = {dial["family"]: dial for dial in said["connect"]}
    assert by_family["IPv4"]["ms"] > 0
    assert by_family["IPv6"]["ms"] is None
    assert "refused" in by_family["IPv6"]["error"]
    assert said["dns_ms"] > 0
    assert len(web.requests) == 4


# -- what people see --------------------------------------------------------------------------


def test_text(warmproxy_command, origin) -> None:
    """Without --json: lines for 80 columns, and the table as it goes into the file."""
    web = origin(idle_used=0.6)
    ran = warmproxy_command("doctor", web.url, "--wait", "1.5")
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert max(map(len, lines)) < 80
    assert lines[0] == f"{web.url}/: 3 connections, 4 requests, 2 s"
    labels = [line.split()[0] for line in lines[2:6]]
    assert labels == ["DNS", "IPv4", "Keep-alive", "Workers"]
    assert re.search(r"^  fresh \(never used\)  longer than 1\.\d s$", ran.stdout, re.MULTILINE)
    assert re.search(r"^  used \(one request\)  0\.\d s +FIN$", ran.stdout, re.MULTILINE)
    upstream = tomllib.loads(ran.stdout[ran.stdout.index("[[upstream]]") :])["upstream"]
    assert [u["url"] for u in upstream] == [web.url]


def test_ctrl_c_on_a_terminal(origin, home) -> None:
    """One line of progress is rewritten within 80 columns; Ctrl-C ends the wait at once, what is
    known is printed, and the exit status says so."""
    web = origin()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [need("env"), "--default-signal=INT", *command("doctor", web.url)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=home("doctor"),
        env=warmproxy_environ(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown = ""

    def more() -> str:
        nonlocal shown
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            if select.select([ours], [], [], 0)[0]:
                shown += os.read(ours, 1 << 16).decode()
        return shown

    try:
        eventually(lambda: "1 of 125 s: " in more() and "fresh open" in shown)
        pressed = time.monotonic()
        os.write(ours, b"\x03")
        eventually(lambda: "[[upstream]]" in more() and process.poll() is not None)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 130
    assert time.monotonic() - pressed < 3
    progress, _, printed = shown.rpartition("\r\x1b[K")
    assert "\n" not in progress
    assert all(len(line) < 80 for line in progress.split("\r\x1b[K"))
    assert all(len(line) < 80 for line in printed.splitlines())
    assert printed.startswith(f"{web.url}/: 3 connections, 4 requests")
    web.wait_open(0)


def test_ctrl_c_with_json(origin, home, stack) -> None:
    """Interrupted while nothing answers: JSON of what is known, which is little, and 130."""

    def never(connection: Connection, request: Request) -> None:
        connection.origin.gate.wait(30)

    web = origin(never)
    folder = home("doctor")
    args = [need("env"), "--default-signal=INT", *command("doctor", web.url, "--json")]
    process = Process(args, folder / "log", folder, warmproxy_environ())
    stack.callback(process.stop)
    web.wait_requests(1)
    process.signal(signal.SIGINT)
    assert process.exit_code() == 130
    said = json.loads(process.log())
    assert said["connect"][0]["ms"] > 0
    assert said["stopped_while"] == "waiting for the answer to GET"
    assert (said["answers"], said["recommended"], said["error"]) == ([], None, "")


def test_origins_that_cannot_be_asked(warmproxy_command, origin, blackhole, pki) -> None:
    """Each ends with 1 and one line that says why, after what could be found."""
    nobody = f"http://127.0.0.1:{free_port()}/"
    web = origin(tls=pki.server())
    plain = origin(raw=lambda connection: connection.send(b"HTTP/1.1 400 What?\r\n\r\n"))
    alerts = origin(raw=lambda connection: connection.send(ALERT_IN_CLEAR))
    trust = ("--ca-file", str(pki.file))
    for args, says, found in [
        ((nobody,), "127.0.0.1: connection refused: nothing listens there", "IPv4"),
        (("http://nosuch.invalid/",), "the name does not resolve", ""),
        ((web.url,), "the certificate is not to be trusted: ", "TLS"),
        ((f"https://{plain.authority}", *trust), "TLS failed: wrong version number; is it", "TLS"),
        ((alerts.url,), "it speaks TLS: is it https://?", "IPv4"),
        ((blackhole.url, "--wait", "0.5"), "0.5 s were over while connecting to 127.0", "DNS"),
    ]:
        ran = warmproxy_command("doctor", *args)
        assert ran.returncode == 1, args
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
        assert says in ran.stderr
        assert ran.stderr.startswith("warmproxy doctor: http")
        assert found in ran.stdout
        assert bool(found) == bool(ran.stdout)
        assert "[[upstream]]" not in ran.stdout
    assert web.requests == []
    as_json = json.loads(warmproxy_command("doctor", web.url, "--json").stdout)
    assert as_json["tls"]["verified"] is False
    assert as_json["tls"]["error"] == as_json["error"]
    assert as_json["connect"][0]["ms"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("example.com",), "must be http://... or https://..., not 'example.com'"),
        (("http://h/", "--wait", "0"), "must be seconds from 0.1 to 86400, not '0'"),
        (("http://h/", "--wiat", "1"), "unknown option '--wiat'; did you mean '--wait'?"),
        (("http://h:0/",), "there is no port 0"),
        ((), "required: URL"),
    ],
)
def test_wrong_usage(warmproxy_command, args, says) -> None:
    ran = warmproxy_command("doctor", *args)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert says in ran.stderr


def test_wrong_ca_file(warmproxy_command, tmp_path) -> None:
    ran = warmproxy_command("doctor", "https://127.0.0.1:1/", "--ca-file", str(tmp_path / "none"))
    assert ran.returncode == 1
    assert ran.stderr == f"warmproxy: ca_file {tmp_path / 'none'}: No such file or directory\n"
