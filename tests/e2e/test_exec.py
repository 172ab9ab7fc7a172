"""`warmproxy exec` and `warmproxy env` with real commands, signals and a real terminal."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.daemon import command, warmproxy_environ
from tests.e2e.harness import Process, accepts, eventually, free_port, need

NAMES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
# says where its proxy is, then does nothing until it is ended
HANGS = ("sh", "-c", "echo proxy=$http_proxy; exec sleep 60")


@pytest.fixture
def start(stack: contextlib.ExitStack, home: Callable[[str], Path]) -> Callable[..., Process]:
    """Start `warmproxy exec` with these arguments."""

    def start_it(*args: str, env: dict[str, str] | None = None) -> Process:
        folder = home("exec")
        process = Process(
            command("exec", *args), folder / "output", folder, warmproxy_environ(**(env or {}))
        )
        stack.callback(process.stop)
        return process

    return start_it


def proxy_port(process: Process) -> int:
    """Where the daemon of a command that has begun listens."""
    [line] = process.until(lambda: process.log_lines("proxy="))
    port = int(line.rpartition(":")[2])
    assert accepts(port)
    return port


# -- the command -------------------------------------------------------------------------------


def test_variables_exit_code_and_end(start) -> None:
    """The command sees the variables in both spellings; its exit code is ours; afterwards
    nothing listens any more."""
    process = start("--", "sh", "-c", "env; echo proxy=$http_proxy; read line; exit 7")
    assert process.exit_code() == 7
    environ = dict(line.partition("=")[::2] for line in process.log().splitlines())
    urls = {environ[name] for name in NAMES[:4]}
    assert urls == {environ["proxy"]}
    assert {environ[name] for name in NAMES[4:]} == {"localhost,127.0.0.1,::1"}
    assert not accepts(int(environ["proxy"].rpartition(":")[2]))


@pytest.mark.parametrize(
    "client",
    [
        ("curl", "-sS", "--fail"),
        ("wget", "-nv", "--tries=1", "-O", "-"),
        (sys.executable, "-c", "import sys, requests; print(requests.get(sys.argv[1]).text)"),
    ],
    ids=["curl", "wget", "requests"],
)
def test_the_command_begins_when_it_is_warm(start, origin, client) -> None:
    """Before the command runs, so many connections are open; its request takes one of them."""
    web = origin()
    program, *options = client
    process = start(
        *("--warm", f"{web.url}=2", "--", need(program), *options, f"{web.url}/page"),
        env={"no_proxy": ""},
    )
    assert process.exit_code(30) == 0, process.log()
    assert web.token in process.log()
    [request] = web.requests
    assert request.values("via") != []
    warm = web.connections[:2]
    assert request.connection in warm
    web.wait_open(0)


def test_all_of_the_options(start, origin, home, authority) -> None:
    """A settings file, TLS, the access log on stderr; arguments after -- are the command's."""
    web = origin(tls=authority.server)
    config = home("config") / "mine.toml"
    config.write_text(f'[defaults]\nca_file = "{authority.file}"\n')
    script = (
        "import os, sys, http.client as h\n"
        "c = h.HTTPConnection(os.environ['http_proxy'].partition('://')[2])\n"
        "c.request('GET', sys.argv[1]); print(c.getresponse().read().decode(), sys.argv[2:])\n"
        "c.close()"
    )
    process = start(
        *("--config", str(config), "--warm", f"{web.url}=0,tls=1", "--access-log"),
        *("--", sys.executable, "-c", script, f"{web.url}/page", "--warm", "--"),
    )
    assert process.exit_code() == 0, process.log()
    assert f"{web.greeting} ['--warm', '--']" in process.log()
    assert len(process.log_lines('"event": "answered"', '"status": 200')) == 1


def test_not_warm_in_time(start) -> None:
    """An upstream that is down is said on stderr, and does not keep the command from running."""
    url = f"http://127.0.0.1:{free_port()}"
    process = start("--warm", f"{url}=1", "--wait", "0.2", "--", "echo", "ran", "all the same")
    assert process.exit_code() == 0
    assert "ran all the same" in process.log()
    assert f"warmproxy exec: not warm: {url} 0 of 1 warm" in process.log()
    assert process.log_lines("dial_failed", "refused")


def test_the_folder_is_not_imported_from(start, home) -> None:
    """A project whose files are named like Python's modules can be worked in."""
    folder = home("project")
    (folder / "json.py").write_text("raise SystemExit('not yours')")
    (folder / "warmproxy.py").write_text("raise SystemExit('not yours')")
    ran = subprocess.run(
        [sys.executable, "-P", *command("exec", "--", "echo", "ran")[1:]],
        cwd=folder,
        env=warmproxy_environ(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ran\n", "")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--", "no-such-command"), 127, "warmproxy exec: no-such-command: not found"),
        (("--", "/etc/passwd"), 126, "warmproxy exec: /etc/passwd: Permission denied"),
        (("--warm", "nonsense", "--", "true"), 2, "--warm 'nonsense'"),
        (("--wram", "x", "--", "true"), 2, "unknown option '--wram'; did you mean '--warm'?"),
        (("true",), 2, "unknown argument 'true'"),
        ((), 2, "what is to be run comes after --"),
        (("--",), 2, "what is to be run comes after --"),
        (("--use-running", "--warm", "http://h=1", "--", "true"), 2, "--use-running changes"),
    ],
)
def test_what_cannot_be_run(warmproxy_command, args, code, says) -> None:
    ran = warmproxy_command("exec", *args)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert says in ran.stderr


# -- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_the_command(start, number) -> None:
    """A signal reaches the command; its death by one is told like a shell does, and the daemon
    goes with it."""
    process = start("--", *HANGS)
    port = proxy_port(process)
    process.signal(number)
    assert process.exit_code() == 128 + number
    assert not accepts(port)


def test_a_command_that_handles_signals(start) -> None:
    """What it makes of the signal is what counts: until it ends, the daemon serves it."""
    script = "trap 'echo caught' TERM; echo proxy=$http_proxy; sleep 60 & wait; kill $!; exit 4"
    process = start("--", "sh", "-c", script)
    proxy_port(process)
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 4
    assert process.log_lines("caught")


def test_a_signal_while_it_waits(start, blackhole) -> None:
    """Ended before the command runs, it does not run."""
    process = start("--warm", f"{blackhole.url}=1", "--wait", "60", "--", "echo", "ran")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    process.until(lambda: children.read_text().split())
    [daemon] = children.read_text().split()
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 128 + signal.SIGTERM
    assert "ran" not in process.log().split()
    assert not Path(f"/proc/{daemon}").exists()


def test_killed(start) -> None:
    """Even where it could do nothing about its end, the daemon does not stay."""
    process = start("--", *HANGS)
    port = proxy_port(process)
    process.signal(signal.SIGKILL)
    eventually(lambda: not accepts(port))


def test_ctrl_c_reaches_the_command_once(home) -> None:
    """The terminal sends it to the command already: a second one would mean 'at once' to many."""
    script = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "print('proxy=' + os.environ['http_proxy'] + ';', flush=True)\n"
        "signal.sigwait([signal.SIGINT])\n"
        "sys.exit(5 if signal.sigtimedwait([signal.SIGINT], 0.5) is None else 6)\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("exec", "--", sys.executable, "-c", script),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=home("exec"),
        env=warmproxy_environ(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        output = b""
        while b";" not in output:
            output += os.read(ours, 1024)
        port = int(output.partition(b";")[0].rpartition(b":")[2])
        os.write(ours, b"\x03")
        assert process.wait(15) == 5
        assert not accepts(port)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# -- a daemon that runs already ----------------------------------------------------------------


def test_the_running_one_is_used(start, warmproxy) -> None:
    """Where http_proxy names a warmproxy, that one serves, and stays."""
    proxy = warmproxy()
    for args, env in (
        ((), {"http_proxy": proxy.url}),
        (("--use-running",), {"HTTP_PROXY": proxy.url}),
        (("--use-running",), {"WARMPROXY_LISTEN": f"127.0.0.1:{proxy.port}"}),
    ):
        process = start(*args, "--", "sh", "-c", "echo proxy=$HTTPS_PROXY", env=env)
        assert process.exit_code() == 0, process.log()
        assert process.log().split() == [f"proxy={proxy.url}"]
    assert proxy.running()


def test_another_proxy_is_not_used(start, origin) -> None:
    """What http_proxy names is not taken for a warmproxy unless it says so."""
    web = origin()
    script = "echo proxy=$http_proxy"
    process = start("--", "sh", "-c", script, env={"http_proxy": web.url})
    assert process.exit_code() == 0
    assert f":{web.port}" not in process.log()
    process = start("--use-running", "--", "sh", "-c", script, env={"http_proxy": web.url})
    assert process.exit_code() == 1
    assert process.log() == f"warmproxy: nothing that is warmproxy answers at {web.url}\n"


# -- env ---------------------------------------------------------------------------------------


def in_shell(script: str, **env: str) -> list[str]:
    ran = subprocess.run(
        ["sh", "-c", script, "sh", *command()],
        env=warmproxy_environ(**env),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return ran.stdout.splitlines()


def test_env_for_a_shell() -> None:
    """`eval` of its lines sets the variables, and of --unset's lines takes them away."""
    show = "echo $http_proxy $HTTP_PROXY $https_proxy $HTTPS_PROXY $no_proxy $NO_PROXY"
    local = "localhost,127.0.0.1,::1"
    assert in_shell(f'eval "$("$@" env)"; {show}; eval "$("$@" env --unset)"; {show}') == [
        " ".join(["http://127.0.0.1:3128"] * 4 + [local] * 2),
        "",
    ]
    kept = in_shell(
        f'eval "$("$@" env)"; {show}', NO_PROXY="*.intern; x", WARMPROXY_LISTEN="[::1]:9"
    )
    assert kept == [" ".join(["http://[::1]:9"] * 4 + ["*.intern; x"] * 2)]


def test_env_knows_where_the_proxy_listens(warmproxy_command, tmp_path) -> None:
    file = tmp_path / "warmproxy.toml"
    file.write_text('listen = ["0.0.0.0:8080"]\nallow_clients = ["10.0.0.0/8"]\n')
    ran = warmproxy_command("env", "--config", str(file))
    assert ran.stdout.splitlines()[0] == "export http_proxy=http://127.0.0.1:8080"
    ran = warmproxy_command("env", "--listen", "127.0.0.1:0")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "has no port yet" in ran.stderr
