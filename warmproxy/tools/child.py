"""A daemon of a tool's own: started on free ports, asked whether it is warm, stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from warmproxy.errors import StartError
from warmproxy.tools.healthcheck import get

LOOK_EVERY = 0.02
"""Seconds between two looks at whether the daemon is ready."""
START_WITHIN = 30.0
"""Seconds that the daemon gets until it listens."""
STOP_WITHIN = 5.0
"""Seconds that it gets to end before it is killed."""

# The current directory, which may hold anything, is no place to import from (-P).
_PROGRAM = """
import sys
sys.path.append(sys.argv.pop(1))
from warmproxy.cli import main
from warmproxy.tools.child import end_with_parent
end_with_parent()
sys.exit(main())
"""


class Daemon:
    """`warmproxy run` as a child process, from entering the context to leaving it.

    `args` are further flags of `run`, `environ` is its environment. It listens on ports of loopback
    that the system chose. What it logs beyond info, and its access log, goes to our stderr. It is
    in a session of its own, so that Ctrl-C does not reach it, and ends when this process does,
    however that ends. Entering raises StartError where the daemon cannot start; it has said why.
    """

    def __init__(self, args: Sequence[str], environ: Mapping[str, str]) -> None:
        self._args = args
        self._environ = environ
        self._listening = threading.Event()
        self._stopping = False
        self.proxy = ""
        """host:port"""
        self.admin = ("", 0)
        """host, port"""

    def __enter__(self) -> Self:
        root = str(Path(__file__).parents[2])
        ours = ["--listen=127.0.0.1:0", "--admin=127.0.0.1:0", "--log-format=json", "--grace=0"]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, root, "run", *self._args, *ours],
            stdin=subprocess.PIPE,  # which nobody writes to: see end_with_parent
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(self._environ),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, name="daemon log", daemon=True)
        self._reader.start()
        try:
            self._listening.wait(START_WITHIN)
            if not self.proxy:
                raise StartError("the proxy did not start")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://{self.proxy}"

    def wait_ready(self, seconds: float, until: Callable[[], object] = lambda: False) -> list[str]:
        """Wait until the pools are warm, `until` is true or the time is over.

        Returns a line for each pool that is not warm.
        """
        return wait_ready(self.admin, seconds, until)

    def pools(self) -> list[dict[str, Any]]:
        """What /pools says of each pool."""
        found: list[dict[str, Any]] = json.loads(get(self.admin, "/pools")[1])["pools"]
        return found

    def stop(self) -> None:
        """End it now; a second time does nothing."""
        self._stopping = True
        process = self._process
        process.terminate()
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.close()
        process.stderr.close()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                event = json.loads(line)
                level, name = event["level"], event["event"]
            except (ValueError, KeyError, TypeError):
                level, name = "error", ""  # from before it has a log
            if name == "listening":
                host, _, port = event["admin"].rpartition(":")
                self.proxy, self.admin = event["proxy"][0], (host, int(port))
                self._listening.set()
            elif level != "info" or name == "answered":
                sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()
        self._listening.set()


def wait_ready(
    admin: tuple[str, int], seconds: float, until: Callable[[], object] = lambda: False
) -> list[str]:
    """`Daemon.wait_ready`, for any daemon whose admin listener is at (host, port).

    Raises OSError where nothing answers there.
    """
    deadline = time.monotonic() + seconds
    while True:
        status, body = get(admin, "/readyz?verbose")
        if status == 200 or until() or time.monotonic() >= deadline:
            break
        time.sleep(LOOK_EVERY)
    lines = body.decode(errors="replace").splitlines()
    return [line[4:] for line in lines if line.startswith("[-]") or "long enough" in line]


def end_with_parent() -> None:
    """In the child: SIGTERM to ourselves once the other end of stdin is gone, as it is when the
    parent is."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
