"""One idle connection of `doctor`: how long it is left open, what the origin says at its end."""

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass

LINGER = 1.0
"""Seconds for the rest of what an origin says on an idle connection."""
MOST_SAID = 4096
"""Bytes of that which are read."""

_ALERT = 0x15  # RFC 8446, 5.1


@dataclass(frozen=True, slots=True)
class Limit:
    """How long an idle connection was left open."""

    seconds: float | None
    """None: not measured. With end "open": at least so long."""
    end: str
    """fin, reset, alert, error (of TLS), bytes (and then open all the same), open, not kept, not
    measured"""
    said: str = ""
    """The first line of what the origin wrote, or the name of the alert or error."""


class Watch:
    """A connection that nothing is sent on any more, read until it ends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._since = time.monotonic()
        self._ended: Limit | None = None
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)
        self._thread.start()

    def limit(self, now: float) -> Limit:
        return self._ended or Limit(max(0.0, now - self._since), "open")

    def join(self) -> None:
        self._thread.join()

    def let_go(self) -> bool:
        """Close it, and True, unless that was done before; its limit then stays unknown."""
        if self._ended is not None:
            return False
        self._ended = Limit(None, "not measured")
        hang_up(self._sock)
        return True

    def _read(self) -> None:
        said, spoke_at, end = b"", 0.0, "fin"
        try:
            self._sock.settimeout(None)
            while len(said) < MOST_SAID and (data := self._sock.recv(MOST_SAID)):
                spoke_at = spoke_at or time.monotonic()
                said += data
                self._sock.settimeout(LINGER)
        except TimeoutError:
            end = "bytes"
        except ssl.SSLError as error:
            _, alert, what = (error.reason or "").partition("ALERT_")
            end = "alert" if alert else "error"
            said = (what or error.reason or str(error)).encode()
        except (OSError, ValueError):  # ValueError: let go of, by the other thread
            end = "reset"
        ended = spoke_at or time.monotonic()
        if self._ended is None:
            end, text = _told(end, said)
            self._ended = Limit(ended - self._since, end, text)
        self._sock.close()


def _told(end: str, said: bytes) -> tuple[str, str]:
    """How it ended, and that which was said in one line."""
    if len(said) >= 7 and said[0] == _ALERT:  # in the clear, on raw TCP
        end, said = "alert", _alert_name(said[6]).encode()
    if end in ("alert", "error"):
        return end, said.decode().lower().replace("_", " ")
    return end, said.partition(b"\n")[0][:200].decode("latin-1").strip()


def _alert_name(code: int) -> str:
    try:
        return ssl.AlertDescription(code).name.removeprefix("ALERT_DESCRIPTION_")
    except ValueError:
        return str(code)


def hang_up(sock: socket.socket) -> None:
    """Close a connection that another thread may be reading, which is then at its end."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
