"""How one process takes the listeners over from another: a private socket, two lines each way.

    new -> old   {"protocol": 1, "version": "0.9.0", "asks": "sockets"}
    old -> new   {"protocol": 1, "version": "0.9.0", "pid": 7, "sockets": [["127.0.0.1", 3128, ""]],
                  "passed": {...}, "limits": {...}}       and the sockets themselves (SCM_RIGHTS)
                 the new one warms its pools, and accepts
    new -> old   {"ready": true}
    old -> new   {"left": true}                            it accepts no more, and drains
    old -> new   {"refused": "why"}                        in place of either answer

A JSON object on a line each; what a version does not know it ignores. Until `ready` nothing has
changed for the old one: if the new one dies or takes too long, it goes on as before.

The socket is a file, not in the abstract namespace: a file has an owner and a mode (0600), and
nobody else can take its name; abstract names are open to every user of a network namespace, and
shared between containers that share one. Each side asks the kernel for the other's user as well.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmproxy import __version__, log
from warmproxy.errors import StartError

PROTOCOL = 1
PATIENCE = 120.0
"""Seconds that the new process may take until it is ready."""
ANSWER_SECONDS = 10.0
"""For the old one to answer."""
LONGEST = 4 * 2**20
"""Bytes of a line at most."""
MOST = 253
"""Descriptors that one message can carry (SCM_MAX_FD)."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What is handed over: listeners by (address, port, role), and what goes with them."""

    sockets: Mapping[tuple[str, int, str], socket.socket]
    passed: Mapping[str, Any] = field(default_factory=dict)
    """What systemd decided about them, see wiring.Passed."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Learned idle limits, as the state file has them."""


class Control:
    """The old process's side. `offer` says what there is to take over; `leave` is called with the
    other's process id when it is ready, and has stopped accepting when it returns."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        offer: Callable[[], Offer],
        leave: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._offer = offer
        self._leave = leave
        self._path = ""
        self._sock: socket.socket | None = None
        self._inode = 0
        self._serving: asyncio.Task[None] | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._taker: int | None = None
        """The process that is taking over."""

    def open(self, path: str) -> None:
        """Be reachable there, "" for nowhere. Without that nobody can take over, and that is all:
        the log says so."""
        if path == self._path:
            return
        self.close()
        self._path = path
        if not path:
            return
        try:
            self._sock = _listen(path)
            self._inode = os.stat(path).st_ino
        except OSError as error:
            reason = error.strerror or str(error)
            log.event("control_failed", level="warning", path=path, reason=reason)
            return
        self._serving = self._loop.create_task(self._serve(self._sock), name="control")

    def close(self) -> None:
        """Be reachable no more; whoever took our path meanwhile keeps it."""
        if self._serving is not None:
            self._serving.cancel()
        if self._sock is not None:
            self._sock.close()
            with suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
        self._serving = self._sock = None
        self._path = ""

    async def _serve(self, listener: socket.socket) -> None:
        while True:
            conn, _ = await self._loop.sock_accept(listener)
            task = self._loop.create_task(self._talk(conn), name="takeover")
            self._talks.add(task)
            task.add_done_callback(self._talks.discard)

    async def _talk(self, conn: socket.socket) -> None:
        with conn:
            pid, uid = _peer(conn)
            if uid != os.geteuid():
                return
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._hand_over(conn, pid)
            except TimeoutError:
                self._failed(pid, f"it was not ready within {PATIENCE:g} s")
                with suppress(OSError):
                    conn.send(_line({"refused": f"not ready within {PATIENCE:g} s"}))
            except (OSError, ValueError) as error:
                self._failed(pid, str(error))
            finally:
                if self._taker == pid:
                    self._taker = None

    async def _hand_over(self, conn: socket.socket, pid: int) -> None:
        lines = _Lines(self._loop, conn)
        asked = await lines.next()
        refusal = ""
        if asked.get("protocol") != PROTOCOL:
            refusal = f"version {__version__} speaks protocol {PROTOCOL}: restart it instead"
        elif self._taker is not None:
            refusal = f"process {self._taker} is taking over already"
        if refusal:
            await self._loop.sock_sendall(conn, _line({"refused": refusal}))
            return
        self._taker = pid
        log.event("takeover_asked", pid=pid, version=str(asked.get("version")))
        offer = self._offer()
        hello = {
            "protocol": PROTOCOL,
            "version": __version__,
            "pid": os.getpid(),
            "sockets": list(offer.sockets),
            "passed": offer.passed,
            "limits": offer.limits,
        }
        data = _line(hello)
        fds = [sock.fileno() for sock in offer.sockets.values()]
        sent = socket.send_fds(conn, [data], fds)
        await self._loop.sock_sendall(conn, data[sent:])
        if not (await lines.next()).get("ready"):
            raise ValueError("it did not say that it is ready")
        self._leave(pid)
        await self._loop.sock_sendall(conn, _line({"left": True}))

    def _failed(self, pid: int, reason: str) -> None:
        if self._taker == pid:
            log.event("takeover_failed", level="warning", pid=pid, reason=reason)


class Taken:
    """The new process's side: what it was given, and the way to say that it is ready."""

    def __init__(self, sock: socket.socket, pid: int, version: str, offer: Offer) -> None:
        self._sock = sock
        self.pid = pid
        self.version = version
        self.offer = offer

    async def ready(self, loop: asyncio.AbstractEventLoop) -> None:
        """We accept: the other one shall leave. If it is gone, so much the better. Raises
        StartError where it has given us up, and goes on itself."""
        with self._sock as sock:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await loop.sock_sendall(sock, _line({"ready": True}))
                    answer = await _Lines(loop, sock).next()
            except (OSError, ValueError, TimeoutError):
                return
        if "refused" in answer:
            raise _refused(self.pid, answer)


def take(path: str) -> Taken | None:
    """Ask the process behind `path` for its listeners; None where nobody is there.

    Blocks for ANSWER_SECONDS at most. Raises StartError where it refuses.
    """
    sock = socket.socket(socket.AF_UNIX)
    fds: list[int] = []
    try:
        sock.settimeout(ANSWER_SECONDS)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        pid, uid = _peer(sock)
        if uid != os.geteuid():
            raise ValueError(f"process {pid} belongs to another user")
        sock.sendall(_line({"protocol": PROTOCOL, "version": __version__, "asks": "sockets"}))
        data = b""
        while not data.endswith(b"\n"):
            got, some, _, _ = socket.recv_fds(sock, 65536, MOST)
            fds += some
            data += got
            if not got or len(data) > LONGEST:
                raise ValueError("it ended the conversation")
        said = _read(data)
        if "refused" in said:
            raise _refused(pid, said)
        places = [(str(host), int(port), str(role)) for host, port, role in said["sockets"]]
        offer = Offer(
            {place: _adopted(fd) for place, fd in zip(places, fds, strict=True)},
            dict(said.get("passed", {})),
            dict(said.get("limits", {})),
        )
        sock.setblocking(False)
        return Taken(sock, pid, str(said.get("version")), offer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        for fd in fds:
            os.close(fd)
        sock.close()
        raise StartError(f"cannot take over through {path}: {error}") from error


class _Lines:
    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock

    async def next(self) -> dict[str, Any]:
        """The next line. (Nobody sends two without an answer to the first.)"""
        data = b""
        while not data.endswith(b"\n"):
            got = await self._loop.sock_recv(self._sock, 65536)
            data += got
            if not got or len(data) > LONGEST:
                raise ValueError("it ended the conversation")
        return _read(data)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _read(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("it does not speak our protocol")
    return message


def _refused(pid: int, said: Mapping[str, Any]) -> StartError:
    return StartError(f"process {pid} does not let us take over: {said['refused']}")


def _adopted(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    sock.setblocking(False)
    return sock


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel says (unix(7), SO_PEERCRED)."""
    form = "3i"
    size = struct.calcsize(form)
    pid, uid, _ = struct.unpack(form, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def _listen(path: str) -> socket.socket:
    """A listening socket at `path`, for its owner alone. Raises OSError, also where somebody
    listens there, or the system does not say who it is that asks."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise OSError("only Linux says who asks there")
    place = Path(path)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # what a process that was killed has left is replaced
        else:
            raise OSError("another warmproxy is reached there")
    sock = socket.socket(socket.AF_UNIX)
    new = f"{path}.{os.getpid()}"
    before = os.umask(0o177)
    try:
        sock.bind(new)
        sock.listen(4)
        sock.setblocking(False)
        os.rename(new, path)
    except BaseException:
        sock.close()
        with suppress(OSError):
            os.unlink(new)
        raise
    finally:
        os.umask(before)
    return sock
