"""cli and tools, as a user meets them: real processes, their exit status and their words."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from warmproxy import __version__
from warmproxy.cli import main, sample_config
from warmproxy.errors import StartError
from warmproxy.loading import load
from warmproxy.settings import Settings, describe
from warmproxy.tools.status import status, table

ROOT = Path(__file__).parent.parent
BAD = Path(__file__).parent / "data" / "bad_configs"


def environment(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WARMPROXY_")}
    nowhere = {"XDG_STATE_HOME": os.devnull}  # what is learned stays out of everybody's home
    return {**kept, "PYTHONPATH": str(ROOT), **nowhere, **variables}


def warmproxy(*args: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "warmproxy", *args],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


# ── check, and what is wrong with settings ───────────────────────────────────────────────────


def test_there_are_enough_bad_configs_and_each_has_its_text() -> None:
    names = {path.stem for path in BAD.glob("*.toml")}
    assert len(names) >= 20
    assert names == {path.stem for path in BAD.glob("*.txt")}


@pytest.mark.parametrize("name", sorted(path.name for path in BAD.glob("*.toml")))
def test_a_bad_config_is_told_in_full(name: str) -> None:
    """By `check` and by `run` alike: each problem with its line, exit status 2, and no more."""
    expected = (BAD / name).with_suffix(".txt").read_text(encoding="utf-8")
    assert re.fullmatch(
        rf"(?:{name}:\d+: .+\n)+warmproxy: \d+ problems? in the settings\n", expected
    )
    for command in ("check", "run"):
        done = warmproxy(command, "--config", name, cwd=BAD)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.parametrize(
    ("line", "content", "said"),
    [
        ('credentials_file = "given"', "ann\n", "given:1: not of the form user:password"),
        ('credentials_file = "given"', "# nobody\n", "credentials_file given holds no user:pass"),
        ('defaults.ca_file = "given"', "junk", "ca_file given: no PEM that can be used: "),
        ('defaults.crl_file = "given"', "junk", "crl_file given: no PEM that can be used: "),
        ('upstream = [{url = "https://h", client_cert = "given"}]', "junk", "client_cert given: "),
    ],
)
def test_a_file_of_no_use_stops_check_and_run_alike(
    line: str, content: str, said: str, tmp_path: Path
) -> None:
    """In one line each, which is the same."""
    (tmp_path / "w.toml").write_text(line + "\n")
    (tmp_path / "given").write_text(content)
    done = [warmproxy(command, "--config", "w.toml", cwd=tmp_path) for command in ("check", "run")]
    assert done[0].stderr == done[1].stderr
    assert done[0].stderr.startswith(f"warmproxy: {said}")
    assert [(each.returncode, each.stdout, each.stderr.count("\n")) for each in done] == [
        (1, "", 1)
    ] * 2


def test_check_shows_what_holds_and_where_it_is_from(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "warmproxy.toml").write_text(
        'grace = 3\n[[upstream]]\nurl = "https://a.example"\nwarm = 4\n'
    )
    done = warmproxy(
        *("check", "--grace", "0.5", "--warm", "http://b.example=1", "--access-log"),
        *("--listen", "127.0.0.1:1", "--listen", "[::1]:1", "--allow-client", "::1"),
        cwd=tmp_path,
        WARMPROXY_MAX_ORIGINS="7",
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == "# valid; file: config/warmproxy.toml"
    assert len({line.index(" = ") for line in lines}) == 1
    # one list is too long for the column, and stands out alone
    assert len({line.index("   # ") for line in lines if "deny_upstreams" not in line}) == 1
    rows = {re.sub(" +", " ", line) for line in lines}
    assert rows >= {
        'listen = ["127.0.0.1:1", "[::1]:1"] # --listen',
        'allow_clients = ["::1"] # --allow-client',
        "grace = 0.5 # --grace",
        "access_log = true # --access-log",
        "max_origins = 7 # WARMPROXY_MAX_ORIGINS",
        "max_head = 65536 # default",
        'upstream[0].url = "https://a.example" # config/warmproxy.toml:3',
        "upstream[0].warm = 4 # config/warmproxy.toml:4",
        'upstream[1].url = "http://b.example" # --warm',
        "upstream[1].warm = 1 # --warm",
        "upstream[1].dial_timeout = 5 # default",
    }


def test_the_file_is_named_by_flag_before_variable_before_default(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    for i, name in enumerate(["config/warmproxy.toml", "variable.toml", "flag.toml"]):
        (tmp_path / name).write_text(f"grace = {i}\n")

    def grace(*args: str, **variables: str) -> str:
        out = warmproxy("check", *args, cwd=tmp_path, **variables).stdout
        return re.sub(" +", " ", next(line for line in out.splitlines() if "grace" in line))

    assert grace() == "grace = 0 # config/warmproxy.toml:1"
    assert grace(WARMPROXY_CONFIG="variable.toml") == "grace = 1 # variable.toml:1"
    assert grace("--config", "flag.toml", WARMPROXY_CONFIG="x") == "grace = 2 # flag.toml:1"
    assert grace(WARMPROXY_CONFIG="") == "grace = 0 # config/warmproxy.toml:1"


def test_a_named_file_that_is_missing_is_a_problem_among_others(tmp_path: Path) -> None:
    done = warmproxy("check", "--config", "no.toml", "--grace", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "no.toml: No such file or directory (named by --config)",
        '--grace: must be a number >= 0, not "x"',
        "warmproxy: 2 problems in the settings",
    ]
    done = warmproxy("check", cwd=tmp_path, WARMPROXY_CONFIG=".")
    assert done.returncode == 2
    assert done.stderr.startswith(".: Is a directory (named by WARMPROXY_CONFIG)\n")


def test_a_credentials_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('credentials_file = "users"\n')
    done = warmproxy("check", "--config", "w.toml", cwd=tmp_path)
    assert done.returncode == 2
    expected = "w.toml:1: 'credentials_file' \"users\": No such file or directory\n"
    assert done.stderr.startswith(expected)
    (tmp_path / "users").write_text("ann:secret\n")
    done = warmproxy("check", "--config", "w.toml", cwd=tmp_path)
    assert done.returncode == 0
    assert "secret" not in done.stdout


def test_a_source_address_of_another_machine_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(
        '[defaults]\nsource_address = "203.0.113.7"\n'
        '[[upstream]]\nurl = "http://a.example"\n'
        '[[upstream]]\nurl = "http://b.example"\nsource_address = "127.0.0.1"\n'
        '[[upstream]]\nurl = "http://c.example"\nsource_address = "198.51.100.7"\n'
    )
    for command in ("check", "run"):
        done = warmproxy(command, "--config", "w.toml", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            "w.toml:2: 'source_address' \"203.0.113.7\": this machine has no such address",
            "w.toml:10: 'source_address' \"198.51.100.7\": this machine has no such address",
            "warmproxy: 2 problems in the settings",
        ]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m warmproxy check | head -1"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, check=True
    )
    assert done.stdout.startswith(b"# valid; no file")
    assert done.stderr == b""
    # and surely so: the reading end is closed before anything is written
    read, write = os.pipe()
    os.close(read)
    for args in (["check"], ["--help"], ["run", "--help"]):
        closed = subprocess.run(
            [sys.executable, "-m", "warmproxy", *args],
            cwd=tmp_path,
            env=environment(),
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
        # argparse itself may have let an unbuffered write fail
        expected = (128 + signal.SIGPIPE, 0) if "--help" in args else (128 + signal.SIGPIPE,)
        assert closed.returncode in expected
        assert closed.stderr == b""
    os.close(write)


# ── usage ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("rum", "warmproxy: unknown command 'rum'; did you mean 'run'?"),
        ("xyzzy", "warmproxy: unknown command 'xyzzy'"),
        ("run --lisen 127.0.0.1:1", "warmproxy run: unknown option '--lisen'; did you mean"),
        ("run --wram=https://a:s@h=4", "warmproxy run: unknown option '--wram'; did you mean '--w"),
        ("check --allow_clients ::1", "warmproxy check: unknown option '--allow_clients'; did you"),
        ("check --qqq", "warmproxy check: unknown option '--qqq' (see 'warmproxy check --help')"),
        ("run config.toml", "warmproxy run: unknown argument 'config.toml'"),
        ("run --grace", "warmproxy run: argument --grace: expected one argument"),
        ("status --watch 0", "warmproxy status: argument --watch: must be seconds from 0.1 to"),
        ("status --watch x", "warmproxy status: argument --watch: must be seconds from 0.1 to"),
        ("status --wtach", "warmproxy status: unknown option '--wtach'; did you mean '--watch'?"),
        ("init a b", "warmproxy init: unknown argument 'b'"),
        ("warm", "warmproxy warm: the following arguments are required: URL=N"),
        ("warm https://h", "warmproxy warm: argument URL=N: must be URL=N or URL=N,tls=M, for"),
        ("warm https://h=auto", "warmproxy warm: argument URL=N: must be URL=N or URL=N,tls=M"),
        ("warm https://h=4 --for 25h", "warmproxy warm: argument --for: must be seconds, or like"),
        ("--grace 3", "warmproxy: "),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    args: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args.split())
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_no_command_shows_the_help(tmp_path: Path) -> None:
    done = warmproxy(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    for command in ("run", "check", "status", "healthcheck", "init"):
        assert f"\n    {command} " in done.stderr.replace(
            "\n    healthcheck\n", "\n    healthcheck "
        )


def test_version(tmp_path: Path) -> None:
    done = warmproxy("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"warmproxy {__version__}\n")


def test_windows_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["run"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


# ── run ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Runs `warmproxy run` in this process, on a service that is a function of the test."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def serve(service: Callable[[Settings], None], *args: str) -> int:
        module = type(sys)("warmproxy.service")
        module.run = lambda settings, read, *, takeover: service(settings)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "warmproxy.service", module)
        return main(["run", *args])

    yield serve
    signal.signal(signal.SIGTERM, before)
    for number in (signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def test_run_hands_the_settings_to_the_service(serve: Callable[..., int]) -> None:
    seen: list[Settings] = []
    assert serve(seen.append, "--warm", "https://a.example=4", "--admin", "") == 0
    assert [(u.url, u.warm) for u in seen[0].upstream] == [("https://a.example", 4)]
    assert seen[0].admin == ""


def test_a_failed_start_is_one_line_and_1(
    serve: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def service(settings: Settings) -> None:
        raise StartError(f"cannot listen on {settings.listen[0]}: in use")

    assert serve(service) == 1
    assert capsys.readouterr() == ("", "warmproxy: cannot listen on 127.0.0.1:3128: in use\n")


def test_ctrl_c_is_0(serve: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def service(settings: Settings) -> None:
        raise KeyboardInterrupt

    assert serve(service) == 0
    assert capsys.readouterr() == ("", "")


def test_sigterm_before_the_service_listens_for_it_is_0(serve: Callable[..., int]) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(lambda settings: signal.raise_signal(signal.SIGTERM))
    assert caught.value.code == 0


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_daemon_exits_with_0(stop: signal.Signals, tmp_path: Path) -> None:
    args = ["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    with subprocess.Popen(
        [sys.executable, "-m", "warmproxy", *args],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"listening"' in line:
                break
        process.send_signal(stop)
        rest = process.stderr.read()
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"


def test_a_port_in_use_is_one_line_and_1(admin: "Admin", tmp_path: Path) -> None:
    done = warmproxy("run", "--listen", admin.address, "--admin", "", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("warmproxy: ")
    assert admin.address in done.stderr


# ── init ─────────────────────────────────────────────────────────────────────────────────────


def test_init_writes_a_file_that_loads_and_changes_nothing(tmp_path: Path) -> None:
    done = warmproxy("init", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "config" / "warmproxy.toml").read_text()
    nothing = load(path="", text=None, environ={}, flags={}).settings
    assert load(path="", text=text, environ={}, flags={}).settings == nothing
    assert warmproxy("check", cwd=tmp_path).returncode == 0


def test_init_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text("grace = 3\n")
    done = warmproxy("init", "w.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "warmproxy init: w.toml is there already, and stays as it is\n"
    assert path.read_text() == "grace = 3\n"


def test_init_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = warmproxy("init", "file/w.toml", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_the_sample_lists_every_setting_with_meaning_and_default() -> None:
    """Taking all the # away gives a file that says what the defaults say, and one upstream."""
    text = sample_config()
    assert max(map(len, text.splitlines())) <= 100
    prose = " ".join(line.removeprefix("# ") for line in text.splitlines())
    live = tomllib.loads(re.sub(r"(?m)^#(?=[\w\[])", "", text))
    for setting in describe():
        assert setting.meaning in prose
        where = live
        for name in filter(None, setting.table.split(".")):
            found = where[name]
            where = found[0] if isinstance(found, list) else found
        value = where[setting.name]
        if setting.default is not None:
            assert value == tomllib.loads(f"v = {setting.default}")["v"]
    loaded = load(path="", text=re.sub(r"(?m)^#(?=[\w\[])", "", text), environ={}, flags={})
    assert loaded.settings.upstream[0].url == "https://api.example.com"
    assert loaded.settings.defaults == Settings().defaults


# ── status and healthcheck, against an admin listener of the test ────────────────────────────

POOL = {
    "origin": "tcp://api.example.com:443",
    "configured": True,
    "target_idle": 4,
    "fresh": 3,
    "used": 1,
    "active": 2,
    "dialling": 0,
    "waiting": 0,
    "oldest_age": 12.34,
    "last_close": {"reason": "upstream_eof", "ago": 3.2, "age": 5.0},
    "dials": 9,
    "hits": 5,
    "misses": 1,
    "saved_seconds": 0.42,
    "last_error": None,
}
LEARNED = {
    **POOL,
    "origin": "http://b\x1b[2J:80",
    "configured": False,
    "target_idle": 0,
    "fresh": 0,
    "used": 0,
    "oldest_age": None,
    "last_close": None,
    "saved_seconds": 4000.0,
    "last_error": "connection\nrefused",
}
POOLS = {"pools": [POOL, LEARNED], "totals": {"hits": 10, "saved_seconds": 0.42}, "version": "1"}


class Admin(ThreadingHTTPServer):
    daemon_threads = True
    answers: dict[str, tuple[int, bytes]]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Admin)
        status, body = self.server.answers.get(self.path, (404, b""))
        if status == 0:
            self.wfile.write(body)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def admin() -> Iterator[Admin]:
    with Admin(("127.0.0.1", 0), Answer) as server:
        server.answers = {
            "/healthz": (200, b"ok\n"),
            "/pools": (200, json.dumps(POOLS).encode()),
        }
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


TABLE = """\
ORIGIN                     WARM  FRESH  USED  ACTIVE  DIALLING  WAITING  OLDEST  DIALS  HITS  \
MISSES       SAVED  LAST CLOSE
tcp://api.example.com:443   4/4      3     1       2         0        0  12.3 s      9     5  \
     1      0.42 s  upstream_eof, 3.20 s ago, aged 5.00 s
http://b?[2J:80 *           0/0      0     0       2         0        0       -      9     5  \
     1  1 h 06 min  -

http://b?[2J:80: connection?refused

* not configured; totals of warmproxy 1: hits 10, saved_seconds 0.42
"""


def test_status_is_an_aligned_table(admin: Admin, tmp_path: Path) -> None:
    done = warmproxy("status", "--admin", admin.address, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == TABLE


def test_status_without_pools_says_so() -> None:
    assert table({"pools": [], "totals": {}, "version": "1"}).startswith("No pools")


def test_status_as_json(admin: Admin, tmp_path: Path) -> None:
    done = warmproxy("status", "--json", "--admin", admin.address, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, POOLS)


def test_status_watches_until_ctrl_c_whatever_answers(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        admin.answers["/pools"] = (503, b"")
        if len(pauses) == 2:
            raise KeyboardInterrupt

    address = ("127.0.0.1", admin.server_address[1])
    monkeypatch.setattr(
        "warmproxy.tools.status.status",
        lambda _, *, as_json, every: status(address, every=every, pause=pause),
    )
    assert main(["status", "--watch", "7", "--admin", admin.address]) == 0
    out, err = capsys.readouterr()
    first, second = out[: len(TABLE)], out[len(TABLE) :]
    assert (first, err, pauses) == (TABLE, "", [7.0, 7.0])
    assert second == f"/pools on {admin.address} says 503; is that warmproxy?\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, b""), "says 404"),
        ((200, b"<html>"), "is not warmproxy's"),
        ((200, b"[]"), "is not warmproxy's"),
        ((200, b'{"pools": [{}]}'), "is not warmproxy's"),
        ((200, b"\xff"), "is not warmproxy's"),
        ((0, b"220 mail\r\n"), "does not speak HTTP"),
        ((0, b""), "hung up without an answer"),
    ],
)
def test_status_of_something_else_is_one_line_and_1(
    admin: Admin, answer: tuple[int, bytes], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.answers["/pools"] = answer
    assert main(["status", "--admin", admin.address]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_healthcheck_is_0_or_1_and_one_line(admin: Admin, tmp_path: Path) -> None:
    done = warmproxy("healthcheck", "--admin", admin.address, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"healthy: {admin.address}\n")
    admin.answers["/healthz"] = (503, b"")
    done = warmproxy("healthcheck", "--admin", admin.address, cwd=tmp_path)
    expected = f"unhealthy: /healthz on {admin.address} says 503\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, expected, "")


def test_where_nothing_listens(admin: Admin, tmp_path: Path) -> None:
    admin.server_close()
    done = warmproxy("healthcheck", "--admin", admin.address, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, f"unhealthy: nothing listens on {admin.address}\n")
    done = warmproxy("status", "--admin", admin.address, cwd=tmp_path)
    expected = f"nothing listens on {admin.address}; is 'warmproxy run' running?"
    assert (done.returncode, done.stderr) == (1, f"warmproxy status: {expected}\n")


def test_the_admin_address_comes_from_the_settings(admin: Admin, tmp_path: Path) -> None:
    """Variable before file; an address that means everywhere is asked on loopback; no proxy."""
    port = admin.server_address[1]
    (tmp_path / "w.toml").write_text(f'admin = "0.0.0.0:{port}"\n')
    proxies = {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    healthy = f"healthy: {admin.address}\n"
    done = warmproxy("healthcheck", "--config", "w.toml", cwd=tmp_path, **proxies)
    assert done.stdout == healthy
    done = warmproxy("healthcheck", cwd=tmp_path, WARMPROXY_CONFIG="w.toml")
    assert done.stdout == healthy
    done = warmproxy("healthcheck", cwd=tmp_path, WARMPROXY_ADMIN=admin.address)
    assert done.stdout == healthy
    # a flag needs nothing else to be right
    (tmp_path / "w.toml").write_text("admin = [")
    done = warmproxy(
        "healthcheck", "--admin", admin.address, cwd=tmp_path, WARMPROXY_CONFIG="w.toml"
    )
    assert done.stdout == healthy


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("", "there is no admin listener"),
        ("127.0.0.1:0", "port 0"),
        ("x", "must be HOST:PORT"),
    ],
)
def test_no_admin_address_to_ask(
    variable: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARMPROXY_ADMIN", variable)
    assert main(["healthcheck"]) == 1
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert words in out
    assert main(["status"]) == 2
    assert words in capsys.readouterr().err
