"""An origin that closes idle connections and says of each answer since when its connection stood.

    origin.py IDLE_SECONDS ONE_WAY_SECONDS CERTIFICATE PORT...

A PORT is 8000 for plain HTTP, or 8000/1.3 or 8000/1.2 for that version of TLS (CERTIFICATE: a PEM
file with the key; may be empty where no port needs it). A connection is closed when it has been
idle for so long, used or not.

Every answer carries X-Connected, and X-Secured where there was a handshake: when the *dialling*
side had its connection, and its handshake, finished. All times are CLOCK_MONOTONIC seconds,
comparable in all namespaces of one machine. `GET /port/N` tells the lives of the latest connections
of port N, as [connected, secured or null, useless since or null]: what reaches the origin after it
has closed a connection was sent half a round trip earlier, so from then on it was useless.

One thread and one epoll, nothing between: what the origin adds to an answer is to be as little as
possible, and the same for each of fifty.
"""

import gc
import json
import select
import socket
import ssl
import sys
import time
from collections import defaultdict, deque

BODY = b"x" * 512
KEPT = 600  # lives of each port
SEND_BUFFER = 1 << 20  # any answer fits: a send never has to wait

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Connection:
    """One accepted connection and its record."""

    __slots__ = ("context", "fileno", "life", "received", "secured", "socket")

    def __init__(
        self,
        accepted: socket.socket,
        life: list[float | None],
        context: ssl.SSLContext | None,
    ) -> None:
        self.socket = accepted
        self.fileno = accepted.fileno()  # a handshake that cannot begin takes it from the socket
        self.life = life
        self.context = context
        self.secured = context is None
        self.received = b""


class Origin:
    def __init__(self, idle: float, one_way: float) -> None:
        self.idle = idle
        self.one_way = one_way
        self.events = select.epoll()
        self.listeners: dict[int, tuple[socket.socket, ssl.SSLContext | None]] = {}
        self.connections: dict[int, Connection] = {}
        self.idle_since: dict[Connection, float] = {}  # in the order of time
        self.lives_on: defaultdict[int, deque[list[float | None]]] = defaultdict(
            lambda: deque(maxlen=KEPT)
        )

    def listen(self, port: int, context: ssl.SSLContext | None) -> None:
        listener = socket.create_server(("0.0.0.0", port), backlog=1024)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # inherited
        listener.setblocking(False)
        self.listeners[listener.fileno()] = (listener, context)
        self.events.register(listener, select.EPOLLIN)

    def serve(self) -> None:
        while True:
            for fileno, _ in self.events.poll(self._close_the_idle()):
                if fileno in self.listeners:
                    self._accept(*self.listeners[fileno])
                elif (connection := self.connections.get(fileno)) is not None:
                    try:
                        self._read(connection)
                    except (ssl.SSLWantReadError, BlockingIOError):
                        pass
                    except OSError:
                        self._end(connection)

    def _close_the_idle(self) -> float | None:
        """Seconds until the next one is due."""
        now = time.monotonic()
        for connection, since in list(self.idle_since.items()):
            if since + self.idle > now:
                return since + self.idle - now
            self._end(connection)
        return None

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """All that wait, and their times, before anything else is done with one of them."""
        accepted = []
        try:
            while True:
                accepted.append((listener.accept()[0], time.monotonic()))
        except BlockingIOError:
            pass
        for plain, now in accepted:
            plain.setblocking(False)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            life = [now - self.one_way, None, None]
            self.lives_on[listener.getsockname()[1]].append(life)
            connection = Connection(plain, life, context)
            self.connections[plain.fileno()] = connection
            self.idle_since[connection] = now
            self.events.register(plain, select.EPOLLIN)

    def _read(self, connection: Connection) -> None:
        if not connection.secured:
            self._shake_hands(connection)
            return
        data = connection.socket.recv(65536)
        if not data:
            self._end(connection)
        connection.received += data
        while b"\r\n\r\n" in connection.received:
            head, _, connection.received = connection.received.partition(b"\r\n\r\n")
            self._answer(connection, head.split(b" ", 2)[1].decode("latin-1"))

    def _shake_hands(self, connection: Connection) -> None:
        tls = connection.socket
        if not isinstance(tls, ssl.SSLSocket):  # not before it is needed: most only stand by
            assert connection.context is not None
            tls = connection.socket = connection.context.wrap_socket(
                tls, server_side=True, do_handshake_on_connect=False
            )
        tls.do_handshake()
        now = time.monotonic()
        # a full handshake of TLS 1.2 ends with our flight, any other with that of the other side
        ours_is_last = tls.version() == "TLSv1.2" and not tls.session_reused
        connection.secured = True
        connection.life[1] = now + self.one_way if ours_is_last else now - self.one_way
        self._is_idle(connection)

    def _answer(self, connection: Connection, target: str) -> None:
        body = BODY
        if target.startswith("/port/"):
            body = json.dumps(list(self.lives_on[int(target[6:])])).encode()
        connected, secured, _ = connection.life
        known = f"X-Connected: {connected:.6f}\r\n"
        if secured is not None:
            known += f"X-Secured: {secured:.6f}\r\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{known}\r\n"
        connection.socket.sendall(head.encode() + body)
        self._is_idle(connection)

    def _is_idle(self, connection: Connection) -> None:
        self.idle_since.pop(connection, None)
        self.idle_since[connection] = time.monotonic()

    def _end(self, connection: Connection) -> None:
        if self.idle_since.pop(connection, None) is None:
            return
        del self.connections[connection.fileno]
        connection.life[2] = time.monotonic() - self.one_way
        try:
            if isinstance(connection.socket, ssl.SSLSocket):
                connection.socket.unwrap()  # says goodbye; who waits for the other's?
        except (OSError, ValueError):
            pass
        connection.socket.close()


def server_context(certificate: str, version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate)
    return context


def main(idle: float, one_way: float, certificate: str, ports: list[str]) -> None:
    origin = Origin(idle, one_way)
    contexts: dict[str, ssl.SSLContext | None] = {"": None}
    for word in ports:
        port, _, version = word.partition("/")
        if version not in contexts:
            contexts[version] = server_context(certificate, version)
        origin.listen(int(port), contexts[version])
    gc.freeze()
    gc.disable()
    origin.serve()


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
