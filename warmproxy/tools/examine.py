"""What `doctor` does to an origin: a few connections, four requests, and a long look.

It blocks in threads of its own, so that whoever began it can tell what is known, or end it, at any
time. Nothing here prints or judges.
"""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeVar

from warmproxy.tools import direct
from warmproxy.tools.direct import FAILURES, OriginError, Url, why
from warmproxy.tools.watch import Limit, Watch, hang_up

T = TypeVar("T")

DIAL_TIMEOUT = 5.0
"""Seconds for connecting, as the daemon's dial_timeout."""
PATIENCE = 2.0
"""Seconds, or PATIENCE_FACTOR times what the first request took if that is more, after which a
request beside idle connections counts as kept waiting."""
PATIENCE_FACTOR = 5
RELEASED = 1.0
"""Seconds within which it has to be answered once they are closed, to have waited for them."""
_NEW_SESSION_TICKET = 4  # RFC 8446, 4


@dataclass(frozen=True, slots=True)
class Dial:
    """One address: the seconds that TCP took, or why there is no connection."""

    address: str
    seconds: float | None = None
    error: str = ""

    @property
    def family(self) -> str:
        return f"IPv{ip_address(self.address.partition('%')[0]).version}"


@dataclass(slots=True)
class Tls:
    seconds: float
    """Of a whole handshake."""
    version: str
    alpn: str | None
    tickets: int | None = None
    """That came before the end of the first answer; None: not known."""
    resumes: bool | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its answer, or why there is none."""

    method: str
    seconds: float | None = None
    """From sending it to the first byte."""
    status: int | None = None
    version: str = ""
    keeps: bool = False
    error: str = ""


@dataclass(slots=True)
class Findings:
    """All that is known by now; None and empty is what is not."""

    doing: str = ""
    error: str = ""
    """Why it went no further, a sentence."""
    dns: float | None = None
    addresses: list[str] = field(default_factory=list)
    dials: list[Dial] = field(default_factory=list)
    tls: Tls | None = None
    tls_error: str = ""
    asked: list[Asked] = field(default_factory=list)
    server: str = ""
    hint: float | None = None
    """`timeout` of the Keep-Alive field, in seconds."""
    alone: float | None = None
    """A GET with its connection, first byte, while nothing else was open."""
    beside: float | None = None
    """The same beside idle connections."""
    beside_error: str = ""
    held_by: tuple[str, ...] = ()
    """The idle connections that had to be closed before others were served; () also while that is
    not known."""
    held_for: float = 0.0
    """Seconds until then."""
    uneven: bool = False
    """It took long to answer beside idle connections, and without them as well."""
    watches: dict[str, Watch] = field(default_factory=dict)
    """By kind: fresh, used, raw."""
    connections: int = 0
    requests: int = 0

    @property
    def looks_sync(self) -> bool:
        """gunicorn with sync workers, by its looks: it closes after each answer. An idle connection
        holds one of them, which shows only where no other is free."""
        keeps = any(asked.keeps for asked in self.asked)
        return "gunicorn" in self.server.lower() and not keeps

    @property
    def knows_workers(self) -> bool:
        """Whether `held_by` says what idle connections do to others."""
        return self.beside is not None and not self.beside_error and not self.uneven

    def limits(self, now: float) -> dict[str, Limit]:
        """By kind, as of `now` (time.monotonic())."""
        found = {kind: watch.limit(now) for kind, watch in list(self.watches.items())}
        if self.asked and not self.asked[0].keeps:
            found["used"] = Limit(None, "not kept")
        return found


class Examination:
    """Of one origin, from `start` until it is `done` or `stop` is called; `found` grows meanwhile.

    `context` is for https, and from then on its own.
    """

    def __init__(self, url: Url, context: ssl.SSLContext) -> None:
        self.found = Findings()
        self.done = threading.Event()
        self._url = url
        self._context = context
        self._address = ""
        self._socks: list[socket.socket] = []
        self._stopping = False
        self._tickets = _count_tickets(context)

    def start(self) -> None:
        threading.Thread(target=self._run, name="examination", daemon=True).start()

    def stop(self) -> None:
        """Close all connections. What is known stays as it is."""
        self._stopping = True
        self._let_go_all()
        for sock in self._socks:
            hang_up(sock)

    def _run(self) -> None:
        try:
            self._examine()
        except Exception as error:
            if not isinstance(error, FAILURES) and not self._stopping:
                raise
            at = f" ({self.found.doing})" if isinstance(error, TimeoutError) else ""
            self.found.error = why(error) + at
        finally:
            self.done.set()

    def _examine(self) -> None:
        found = self.found
        tcp, sock = self._reach()
        if self._url.scheme == "https":
            sock, found.tls = self._shake_hands(sock)
        first = self._ask("GET", sock)
        found.alone = tcp + (found.tls.seconds if found.tls else 0.0) + (first.seconds or 0.0)
        session = None
        if found.tls is not None and isinstance(sock, ssl.SSLSocket):
            session = sock.session
            found.tls.tickets = len(self._tickets) if self._tickets is not None else None
            found.tls.resumes = None if session else False
        if first.keeps:
            found.watches["used"] = Watch(sock)
        else:
            hang_up(sock)
        self._ask_others(self._ask_beside(session))
        if found.looks_sync:
            self._let_go_all()
        found.doing = "watching idle connections"
        for watch in found.watches.values():
            watch.join()

    # ── a connection ─────────────────────────────────────────────────────────────────────────

    def _reach(self) -> tuple[float, socket.socket]:
        """Look the name up and connect to its first address of either family; the first that
        works is the origin from then on. The seconds that it took, and the connection."""
        found, url = self.found, self._url
        found.doing = f"looking up {url.host}"
        began = time.perf_counter()
        found.addresses = direct.resolve(url)
        if url.host not in found.addresses:
            found.dns = time.perf_counter() - began
        first: dict[str, str] = {}
        for address in found.addresses:
            first.setdefault(Dial(address).family, address)
        reached: tuple[float, socket.socket] | None = None
        for address in first.values():
            found.doing = f"connecting to {address}"
            began = time.perf_counter()
            try:
                sock = self._dial(address)
            except OSError as error:
                found.dials.append(Dial(address, error=why(error)))
                continue
            seconds = time.perf_counter() - began
            found.dials.append(Dial(address, seconds))
            if reached is None:
                self._address = address
                reached = seconds, sock
            else:
                hang_up(sock)
        if reached is None:
            errors = [f"{dial.address}: {dial.error}" for dial in found.dials]
            raise OriginError("; ".join(errors) or "the name has no address")
        return reached

    def _dial(self, address: str = "") -> socket.socket:
        sock = direct.connect(address or self._address, self._url.port, DIAL_TIMEOUT)
        self.found.connections += 1
        self._socks.append(sock)
        return sock

    def _shake_hands(
        self, sock: socket.socket, session: ssl.SSLSession | None = None
    ) -> tuple[ssl.SSLSocket, Tls]:
        self.found.doing = "shaking hands"
        began = time.perf_counter()
        try:
            secured = direct.secure(sock, self._url, self._context, session)
        except OSError as error:
            if self.found.tls is None:
                self.found.tls_error = why(error)
            raise
        seconds = time.perf_counter() - began
        self._socks.append(secured)
        return secured, Tls(seconds, secured.version() or "", secured.selected_alpn_protocol())

    def _open(self, session: ssl.SSLSession | None = None) -> socket.socket:
        """One as requests need it, with TLS done."""
        sock = self._dial()
        return sock if self._url.scheme == "http" else self._shake_hands(sock, session)[0]

    def _ask(self, method: str, sock: socket.socket) -> Asked:
        """One request; its answer is among the findings. Raises one of FAILURES."""
        found = self.found
        found.doing = f"waiting for the answer to {method}"
        found.requests += 1
        began = time.perf_counter()
        answer = direct.ask(sock, self._url, by="doctor", method=method)
        seconds = answer.first_byte - began
        asked = Asked(method, seconds, answer.status, answer.version, answer.keeps)
        if all(method != other.method for other in found.asked):
            found.asked.append(asked)
            found.server = found.server or answer.headers.get("Server", "")
            hint = re.search(r"\btimeout=(\d{1,9})\b", answer.headers.get("Keep-Alive", ""))
            found.hint = float(hint[1]) if hint and found.hint is None else found.hint
        return asked

    def _let_go_all(self) -> None:
        for watch in list(self.found.watches.values()):
            watch.let_go()

    # ── what idle connections do to others ───────────────────────────────────────────────────

    def _ask_beside(self, session: ssl.SSLSession | None) -> socket.socket | None:
        """Open the connections to be watched, and GET on one more, which resumes the session.
        That one, if it can be used again."""
        found = self.found

        def ask() -> tuple[socket.socket, bool]:
            sock = self._open(session)
            if found.tls is not None and isinstance(sock, ssl.SSLSocket) and session is not None:
                found.tls.resumes = sock.session_reused
            return sock, self._ask("GET", sock).keeps

        try:
            fresh = self._beside_idle(self._open)
            if found.held_by:
                hang_up(fresh)
            else:
                found.watches["fresh"] = Watch(fresh)
                if self._url.scheme == "https":
                    found.watches["raw"] = Watch(self._dial())
            began = time.perf_counter()
            try:
                sock, keeps = self._beside_idle(ask)
            finally:
                found.beside = time.perf_counter() - began
        except FAILURES as error:
            found.beside_error = why(error)
            return None
        if keeps:
            return sock
        hang_up(sock)
        return None

    def _beside_idle(self, work: Callable[[], T]) -> T:
        """Do what the origin has to answer to, while other connections are idle.

        Where it does not answer, the idle ones are closed, kind by kind: what is done soon after
        that had to wait for them, so each held a worker. Raises what `work` does.
        """
        found, began = self.found, time.perf_counter()
        working = _begin(work)
        wait([working], max(PATIENCE, PATIENCE_FACTOR * (found.alone or 0.0)))
        closed = []
        for kind in ("raw", "fresh", "used"):
            watch = found.watches.get(kind)
            if watch is not None and not working.done() and watch.let_go():
                closed.append(kind)
                wait([working], RELEASED)
        if closed:
            self._let_go_all()
        if closed and working.done():
            found.held_by, found.held_for = tuple(closed), time.perf_counter() - began
        elif closed:
            found.uneven = True
        return working.result()

    def _ask_others(self, sock: socket.socket | None) -> None:
        """HEAD and OPTIONS, on one connection if the origin keeps it."""
        for method in ("HEAD", "OPTIONS"):
            try:
                sock = sock or self._open()
                keeps = self._ask(method, sock).keeps
            except FAILURES as error:
                self.found.asked.append(Asked(method, error=why(error)))
                keeps = False
            if sock is not None and not keeps:
                hang_up(sock)
                sock = None
        if sock is not None:
            hang_up(sock)


def _begin(work: Callable[[], T]) -> "Future[T]":
    """Do it in a thread that does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return future


def _count_tickets(context: ssl.SSLContext) -> list[int] | None:
    """A list that grows with each session ticket; None where Python's ssl has no such hook (it is
    for debugging and may go)."""
    if not hasattr(ssl.SSLContext, "_msg_callback"):
        return None
    tickets: list[int] = []

    def note(_: object, direction: str, version: int, content: int, message: int, *__: Any) -> None:
        if direction == "read" and content == 22 and message == _NEW_SESSION_TICKET:
            tickets.append(message)

    hooked: Any = context
    hooked._msg_callback = note
    return tickets
