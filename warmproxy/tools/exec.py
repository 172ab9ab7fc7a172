"""`warmproxy exec`: run a command whose requests go through a warm proxy.

Exit status: the command's own, or 128 + n where signal n ended it; 126 where it cannot be
executed and 127 where it is not there; 1 and 2, with a line on stderr, where the proxy cannot
start.
"""

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from warmproxy.errors import StartError
from warmproxy.tools.child import Daemon, wait_ready
from warmproxy.tools.env import variables

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
FROM_KEYS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""What a terminal sends to all of its foreground processes, the command included."""


def execute(
    command: Sequence[str], *, daemon_args: Sequence[str], wait: float, ca: Path | None
) -> int:
    """Run `command` with a daemon of its own; `daemon_args` are flags of `warmproxy run`.

    The command starts when the pools are warm, or `wait` seconds are over, and trusts the authority
    in the folder `ca`. The daemon is gone when this returns. Returns the exit status. Raises
    StartError.
    """
    with ExitStack() as stack:
        relay = stack.enter_context(_Relay())
        trust = stack.enter_context(_trusting(ca))
        daemon = stack.enter_context(Daemon(daemon_args, os.environ))
        _say_cold(daemon.wait_ready(wait, lambda: relay.pending))
        return relay.run(command, daemon.url, trust)


def execute_with(
    command: Sequence[str],
    *,
    proxy: str,
    admin: tuple[str, int] | None,
    wait: float,
    ca: Path | None,
) -> int:
    """Run `command` with the daemon that runs already at the URL `proxy`, which stays.

    Where `admin` (host, port) answers, its pools are waited for. Raises StartError where that
    proxy is no warmproxy.
    """
    if not is_warmproxy(proxy):
        raise StartError(f"nothing that is warmproxy answers at {proxy}")
    with _Relay() as relay, _trusting(ca) as trust:
        if admin is not None:
            try:
                _say_cold(wait_ready(admin, wait, lambda: relay.pending))
            except OSError:
                pass
        return relay.run(command, proxy, trust)


@contextmanager
def _trusting(ca: Path | None) -> Iterator[Mapping[str, str]]:
    """The variables with which a command trusts an authority, where there is one."""
    if ca is None:
        yield {}
        return
    from warmproxy.tools.trust import environment

    with environment(ca, os.environ) as found:
        yield found


def is_warmproxy(proxy: str) -> bool:
    """Whether a warmproxy answers at a URL on loopback: it says who it is when it refuses."""
    try:
        parts = urlsplit(proxy)
        if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            return False
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=3)
    except ValueError:
        return False
    try:
        connection.request("GET", "/")
        said = connection.getresponse().getheader("Proxy-Status") or ""
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return said.partition(";")[0] == "warmproxy"


def _say_cold(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"warmproxy exec: not warm: {line}", file=sys.stderr, flush=True)


class _Relay:
    """From entering to leaving, signals to this process are the command's.

    Those that come before it runs are kept: one that would end it ends the waiting instead. Those
    that come after it ended are nobody's, so that nothing keeps the daemon from being stopped.
    """

    def __init__(self) -> None:
        self.pending: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Relay":
        # what is ignored stays ignored, by the command too: that is how nohup works
        self._before = {
            number: signal.signal(number, self._arrived)
            for number in PASSED_ON
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], proxy: str, trust: Mapping[str, str]) -> int:
        """The command's exit status, as a shell would give it."""
        ends = [number for number in self.pending if number in ENDING]
        if ends:
            return 128 + ends[0]
        environ = {**os.environ, **variables(proxy, os.environ), **trust}
        try:
            process = subprocess.Popen(command, env=environ)
        except FileNotFoundError:
            print(f"warmproxy exec: {command[0]}: not found", file=sys.stderr)
            return 127
        except OSError as error:
            print(f"warmproxy exec: {command[0]}: {error.strerror}", file=sys.stderr)
            return 126
        self._process = process
        while self.pending:
            process.send_signal(self.pending.pop(0))
        code = process.wait()
        return code if code >= 0 else 128 - code

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self.pending.append(number)
        elif not (number in FROM_KEYS and _in_foreground()):
            self._process.send_signal(number)


def _in_foreground() -> bool:
    """Whether our terminal, if we have one, sends what its keys mean to us and to the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
