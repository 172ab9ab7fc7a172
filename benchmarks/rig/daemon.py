"""The proxy under test, as a process in the near namespace."""

import asyncio
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rig import link
from rig.client import Address, Exchange, burst, get

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN = 30.0

_PORTS = itertools.count(20000, 10)


class NotReady(Exception):
    """The proxy did not start, or not in time; says what it printed."""


class Daemon:
    """`command` with {listen}, {admin} and the names in `places` filled in.

    `settings`, where given, becomes its settings file, {config}. `asks_readiness`: it is
    warmproxy, and says itself when it is ready; else its port has to accept connections. `ports`:
    of loopback, where it has no network namespace to itself.
    """

    def __init__(
        self,
        command: str,
        cpu: int,
        *,
        places: Mapping[str, Address] | None = None,
        settings: str = "",
        asks_readiness: bool = True,
        ports: tuple[int, int] | None = None,
    ) -> None:
        first = next(_PORTS)
        listen, admin = ports or (first, first + 1)
        self.listen: Address = ("127.0.0.1", listen)
        self.admin: Address = ("127.0.0.1", admin)
        self.cpu = cpu
        self.asks_readiness = asks_readiness
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="first-request-")
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        config = Path(self.folder.name) / "warmproxy.toml"
        if settings:
            config.write_text(settings)
        addresses = {"listen": self.listen, "admin": self.admin, **(places or {})}
        names = {name: f"{host}:{number}" for name, (host, number) in addresses.items()}
        self.command = [word.format(config=config, **names) for word in shlex.split(command)]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        """Returns when it is ready. Raises NotReady."""
        # an empty folder, and no WARMPROXY_ variable: nobody's settings but ours, and nothing
        # known from an earlier run
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WARMPROXY_")}
        environment |= {"PYTHONPATH": str(ROOT), "WARMPROXY_STATE_FILE": ""}
        self.process = link.spawn(
            self.command,
            self.cpu,
            link.PROXY,
            cwd=self.folder.name,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        give_up = time.monotonic() + READY_WITHIN
        while time.monotonic() < give_up and self.process.poll() is None:
            if self.asks_readiness:
                if not burst(self.admin, Exchange(get(self.admin, "/readyz")), 1, timeout=1)[
                    0
                ].error:
                    return
            else:
                with socket.socket() as probe:
                    if probe.connect_ex(self.listen) == 0:
                        return
            await asyncio.sleep(0.05)
        raise NotReady(f"{shlex.join(self.command)}\nis not ready; it said:\n{self.said()}")

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-2000:].decode(errors="replace")

    def pools(self) -> object:
        """The daemon's own view of them."""
        answer = burst(self.admin, Exchange(get(self.admin, "/pools")), 1, timeout=1)[0]
        return answer.error or json.loads(answer.body)

    def stop(self) -> None:
        """Not a coroutine: a Ctrl-C that cancels us must not cancel this. May be called again."""
        process, self.process = self.process, None
        if process:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.folder.cleanup()
        self.log.close()
