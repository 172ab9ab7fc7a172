"""What every end-to-end test stands on: waiting for conditions, free ports, tools, the kernel's
view of sockets.

No test waits for an amount of time: it waits for a condition (`eventually`) or asserts that
something holds over a stretch (`always`). Both pause in `_tick`, the only sleep of the suite.
"""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

T = TypeVar("T")

TICK = 0.005
ROOT = Path(__file__).resolve().parents[2]


def _tick() -> None:
    time.sleep(TICK)


def eventually(
    predicate: Callable[[], T], timeout: float = 10.0, says: str | Callable[[], object] = ""
) -> T:
    """The first true value of `predicate`; fails after `timeout` seconds with what `says` says."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            message = says() if callable(says) else says
            raise AssertionError(f"not within {timeout} s: {message or predicate}")
        _tick()


def always(
    predicate: Callable[[], object], during: float, says: str | Callable[[], object] = ""
) -> int:
    """Ask `predicate` all the time for `during` seconds; how often it was asked."""
    deadline = time.monotonic() + during
    asked = 0
    while time.monotonic() < deadline:
        asked += 1
        if not predicate():
            message = says() if callable(says) else says
            raise AssertionError(f"did not hold for {during} s: {message or predicate}")
        _tick()
    return asked


def at(moment: float) -> None:
    """Return at `moment` (monotonic): for tests that are about a schedule."""
    while time.monotonic() < moment:
        _tick()


def until_still(progress: Callable[[], int], still: float = 0.2, timeout: float = 20.0) -> int:
    """Wait until `progress` has not moved for `still` seconds: whoever makes it is stuck."""
    last, since = progress(), time.monotonic()

    def unmoved() -> bool:
        nonlocal last, since
        now = progress()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since >= still

    eventually(unmoved, timeout, lambda: f"still moving at {last}")
    return last


# -- tools ------------------------------------------------------------------------------------


def missing(what: str) -> NoReturn:
    """A test cannot run here: a failure in CI (which installs everything), a skip for a person."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and in CI nothing may be")
    pytest.skip(f"needs {what}, which is not installed")


def need(tool: str) -> str:
    """The path of a program that a test cannot do without."""
    path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/local/sbin:/sbin")
    return path if path is not None else missing(tool)


# -- ports ------------------------------------------------------------------------------------

# Below the kernel's ephemeral range, so that no outgoing connection can take one.
_PORTS = range(22000, 30000)
_claims: list[socket.socket] = []
CLAIMS = 200
"""Held at once: many more than one test takes, and few enough for a limit of 1,024 descriptors."""
_claims_lock = threading.Lock()


def free_port() -> int:
    """A loopback port that is ours until CLAIMS more were given, whatever else runs here.

    The claim is an abstract Unix socket of that number: the kernel gives it to one process and
    takes it back when that process is gone, so parallel runs never meet on a port.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0warmproxy-e2e-{port}")
            with contextlib.closing(socket.socket()) as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        with _claims_lock:
            _claims.append(claim)
            if len(_claims) > CLAIMS:
                _claims.pop(0).close()
        return port
    raise AssertionError("no free port")


def release_ports() -> None:
    with _claims_lock:
        while _claims:
            _claims.pop().close()


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


# -- processes --------------------------------------------------------------------------------


def clean_environ(**extra: str) -> dict[str, str]:
    """Our environment without anything that would send a client, or the daemon, elsewhere."""
    dropped = ("_proxy", "_PROXY", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "JAVA_OPTIONS")
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.endswith(dropped) and not k.startswith("WARMPROXY_")
    }
    return kept | extra


class Process:
    """A child process with its output in a file; always gone after `stop`."""

    def __init__(
        self, args: list[str], log: Path, cwd: Path, env: dict[str, str] | None = None
    ) -> None:
        self.args = args
        self.log_path = log
        with log.open("wb") as sink:
            self.popen = subprocess.Popen(
                args,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env if env is not None else clean_environ(),
                start_new_session=True,
            )
        self.pid = self.popen.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log_lines(self, *words: str) -> list[str]:
        return [line for line in self.log().splitlines() if all(w in line for w in words)]

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def running(self) -> bool:
        return self.popen.poll() is None

    def exit_code(self, timeout: float = 15.0) -> int:
        """Wait for it to end by itself."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.args[0]} did not end:\n{self.log()}") from None

    def until(self, predicate: Callable[[], T], timeout: float = 15.0) -> T:
        """`eventually`, but a process that has died ends the wait at once."""

        def ready() -> T:
            if not self.running():
                raise AssertionError(f"{self.args} ended:\n{self.log()}")
            return predicate()

        return eventually(ready, timeout, lambda: f"{self.args} is not ready:\n{self.log()}")

    def stop(self) -> None:
        """End it and what it started, politely and then not."""
        for number in (signal.SIGCONT, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
        try:
            self.popen.wait(8)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(8)


# -- names and networks of the tests' own -----------------------------------------------------

NAMESPACE = ("--user", "--map-root-user", "--mount")
"""What `unshare` needs for a user who is not root to mount."""


class Hosts:
    """/etc/hosts for the commands that run `inside`, and no other source of names."""

    def __init__(self, folder: Path) -> None:
        self._hosts, switch = folder / "hosts", folder / "nsswitch.conf"
        switch.write_text("hosts: files\n")
        self.say({})
        unshare, mount = need("unshare"), need("mount")
        namespace = [unshare, *NAMESPACE]
        if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
            missing("the right to make a mount namespace")
        script = (
            f'{mount} --bind "$0" /etc/hosts && {mount} --bind "$1" /etc/nsswitch.conf'
            ' && shift && exec "$@"'
        )
        self.inside = [*namespace, "sh", "-c", script, str(self._hosts), str(switch)]

    def say(self, names: Mapping[str, Sequence[str]]) -> None:
        """From now on these are the names, beside localhost, and their addresses."""
        lines = [f"{address} {name}\n" for name, found in names.items() for address in found]
        self._hosts.write_text("".join(["127.0.0.1 localhost\n", *lines]))


OWN_NETWORK = "TEST_IN_OWN_NETWORK"
"""The variable by which a command knows that it is."""


def run_in_own_network(args: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end in a network namespace where only loopback is up."""
    unshare, ip = need("unshare"), need("ip")
    inside = [unshare, *NAMESPACE, "--net", "sh", "-c", f'{ip} link set lo up && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        missing("the right to make a network namespace")
    env = {**os.environ, OWN_NETWORK: "yes"}
    return subprocess.run([*inside, *args], capture_output=True, text=True, check=False, env=env)


# -- the kernel's view ------------------------------------------------------------------------

_STATES = {
    "01": "ESTABLISHED",
    "04": "FIN_WAIT1",
    "05": "FIN_WAIT2",
    "06": "TIME_WAIT",
    "08": "CLOSE_WAIT",
}


def sockets_to(port: int) -> Iterator[tuple[str, str]]:
    """(socket, state) of each local socket whose *remote* port is `port`: the proxy's side."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            if wanted not in line:
                continue  # a busy machine has thousands
            fields = line.split()
            if fields[2].endswith(wanted):
                yield f"{fields[1]}/{fields[9]}", _STATES.get(fields[3], fields[3])


def count_sockets_to(port: int, state: str) -> int:
    return sum(s == state for _, s in sockets_to(port))


class CloseWaitWatch:
    """Looks at the sockets to `port` all the time; a CLOSE_WAIT that is there in looks 100 ms
    apart is kept in `lingered`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.looks = 0
        self.seen: set[str] = set()
        self.lingered: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="close-wait-watch")

    def __enter__(self) -> "CloseWaitWatch":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        since: dict[str, float] = {}
        while not self._stop.is_set():
            now = time.monotonic()
            waiting = {name for name, state in sockets_to(self.port) if state == "CLOSE_WAIT"}
            self.looks += 1
            self.seen |= waiting
            since = {name: since.get(name, now) for name in waiting}
            for name, first in since.items():
                if now - first >= 0.1:
                    self.lingered[name] = now - first
            _tick()


class Memory:
    """Resident memory of a process: `growth` is its peak above where `mark` found it."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._start = 0

    def _kib(self, field: str) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise AssertionError(f"no {field} in {self._proc}/status")

    def mark(self) -> None:
        (self._proc / "clear_refs").write_text("5")  # the peak starts again from now
        self._start = self._kib("VmRSS")

    @property
    def growth(self) -> int:
        """Bytes."""
        return (self._kib("VmHWM") - self._start) * 1024


def takes_more(sock: socket.socket, seconds: float) -> bool:
    """Whether the socket can be written to within so many seconds. By poll: select() knows no
    descriptor beyond 1023, and a long run of tests gets there."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
