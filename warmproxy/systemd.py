"""What systemd asks of a service and gives to it: sd_notify(3), sd_listen_fds(3) and
sd_watchdog_enabled(3), each a few lines. Without systemd there is nothing to say and to take."""

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from math import inf

from warmproxy.errors import StartError

FIRST_PASSED = 3
"""Descriptor of the first socket that is passed."""


class Notifier:
    """Tells systemd how the service fares. `environ` loses what is meant for this process alone:
    the one that takes over from it is to find the rest.

    What cannot be delivered is nobody's harm: systemd acts on what it hears.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._path = environ.get("NOTIFY_SOCKET", "")
        if self._path.startswith("@"):  # of the abstract namespace
            self._path = "\0" + self._path[1:]
        self.watchdog_seconds = _watchdog(environ)
        """Within these it must hear from the loop; inf where it does not watch."""
        self._status = ""
        self._is_ready = False

    @property
    def is_heard(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._path)

    def ready(self) -> None:
        self._is_ready = True
        self._say("READY=1")

    def reloading(self) -> None:
        if self._is_ready:
            self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Well or not."""
        if self._is_ready:
            self.ready()

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def succeeded_by(self, pid: int) -> None:
        """Another process is the service's main one from now on."""
        self._say(f"MAINPID={pid}")
        self._path = ""

    def alive(self) -> None:
        if self.watchdog_seconds < inf:
            self._say("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; said when it changes."""
        if text != self._status:
            self._status = text
            self._say(f"STATUS={text}")

    def _say(self, message: str) -> None:
        if self._path:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), self._path)


def _watchdog(environ: MutableMapping[str, str]) -> float:
    microseconds = environ.get("WATCHDOG_USEC", "")
    pid = environ.pop("WATCHDOG_PID", "") or str(os.getpid())
    is_watched = microseconds.isdecimal() and pid == str(os.getpid())
    return int(microseconds) / 1e6 if is_watched else inf


def passed_sockets(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The listening sockets that systemd opened, each with its FileDescriptorName=.

    Raises StartError where one is not for TCP.
    """
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for i in range(int(count)):
        sock = socket.socket(fileno=FIRST_PASSED + i)
        os.set_inheritable(sock.fileno(), False)
        sock.setblocking(False)
        tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
        if not tcp or sock.type != socket.SOCK_STREAM:
            raise StartError("systemd passed a socket that is not for TCP: use ListenStream=")
        found.append((names[i] if i < len(names) else "", sock))
    return found
