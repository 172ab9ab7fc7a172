"""What clients do: as many requests as go, requests at a steady pace, large bodies, and nothing."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from field.running import Failed

Address = tuple[str, int]

PATIENCE = 10.0
"""Seconds until an answer is here, all of it."""


@dataclass(frozen=True)
class Loaded:
    """What wrk tells of one run."""

    requests: int
    seconds: float
    refused: int = 0
    """Answers that are no 2xx or 3xx."""
    broken: int = 0
    """Connections that could not be made, or ended inside an exchange, or took too long."""


def parse_wrk(text: str) -> Loaded:
    """Raises ValueError where it has no result."""
    done = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", text)
    if done is None:
        raise ValueError(f"wrk tells no result: {text.strip()[:60]!r}")
    scale = {"ms": 0.001, "s": 1.0, "m": 60.0}[done[3]]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors:((?: \w+ \d+,?)+)", text)
    return Loaded(
        int(done[1]),
        float(done[2]) * scale,
        int(refused[1]) if refused else 0,
        sum(map(int, re.findall(r"\d+", errors[1]))) if errors else 0,
    )


def wrk(through: Address, url: str, connections: int, seconds: int) -> Loaded:
    """Keep-alive GETs, one at a time on each connection. Raises Failed.

    `through` is a proxy, or the origin itself: it is asked for the whole URL all the same.
    """
    return _wrk(through, connections, seconds, "absolute", TARGET=url, HOST=authority_of(url))


def wrk_spread(
    through: Address, authorities: Sequence[str], connections: int, seconds: int
) -> Loaded:
    """The same, for /small of one origin after the other."""
    return _wrk(through, connections, seconds, "spread", ORIGINS=" ".join(authorities))


def _wrk(
    through: Address, connections: int, seconds: int, script: str, **environment: str
) -> Loaded:
    program = shutil.which("wrk")
    if program is None:
        raise Failed("wrk is needed, and is not installed")
    file = Path(__file__).with_name(f"{script}.lua")
    command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(file), "http://{}:{}".format(*through)]
    asked = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    try:
        loaded = parse_wrk(asked.stdout)
    except ValueError as error:
        raise Failed(f"{error} {asked.stderr.strip()}") from None
    if loaded.requests == 0 or loaded.refused:
        raise Failed(f"{loaded.requests} requests, {loaded.refused} of them refused")
    return loaded


def authority_of(url: str) -> str:
    return url.split("/")[2]


class Client:
    """One connection to a proxy."""

    _buffer = bytearray(2**18)
    """What arrives in it is not looked at."""

    def __init__(self, proxy: Address, patience: float = PATIENCE) -> None:
        self.socket = socket.create_connection(proxy, timeout=patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, target: str, authority: str = "", method: str = "GET") -> None:
        authority = authority or authority_of(target)
        request = f"{method} {target} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
        self.socket.sendall(request.encode())

    def take(self) -> int:
        """The body's size, once all of it is here. Raises Failed, OSError."""
        received = b""
        while b"\r\n\r\n" not in received:
            if not (data := self.socket.recv(2**16)):
                raise Failed("closed without an answer")
            received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        if head[9:12] != b"200":
            raise Failed(head.partition(b"\r\n")[0].decode("latin-1"))
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if length is None:
            if b"chunked" in head.lower():
                raise Failed("the answer came in chunks")
            return 0
        size = left = int(length[1])
        left -= len(rest)
        give_up = time.monotonic() + PATIENCE
        while left > 0:
            if time.monotonic() > give_up:
                raise Failed(f"takes more than {PATIENCE:g} s for {size / 2**20:.0f} MiB")
            if not (got := self.socket.recv_into(self._buffer)):
                raise Failed("closed inside an answer")
            left -= got
        return size

    def get(self, target: str, authority: str = "") -> int:
        self.send(target, authority)
        return self.take()


def paced(through: Address, url: str, rate: float, count: int) -> list[float]:
    """Seconds that each of `count` requests took, `rate` a second on one connection."""
    times = []
    with Client(through) as client:
        client.get(url)
        begin = time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            sent = time.perf_counter()
            client.get(url)
            times.append(time.perf_counter() - sent)
    return times


def download(through: Address, url: str, *, tunnel: bool = False) -> int:
    """One large body on a connection of its own; its bytes."""
    with Client(through) as client:
        if not tunnel:
            return client.get(url)
        authority = authority_of(url)
        client.send(authority, authority, method="CONNECT")
        answer = b""
        while b"\r\n\r\n" not in answer:
            if not (data := client.socket.recv(1)):
                raise Failed("closed instead of a tunnel")
            answer += data
        if answer[9:12] != b"200":
            raise Failed(answer.partition(b"\r\n")[0].decode("latin-1"))
        return client.get("/" + url.split("/", 3)[3], authority)


@contextmanager
def idle_clients(proxy: Address, url: str, count: int) -> Iterator[list[Client]]:
    """Connections that made one request each, one after the other, and now do nothing."""
    clients: list[Client] = []
    try:
        for _ in range(count):
            clients.append(Client(proxy))
            clients[-1].get(url)
        yield clients
    finally:
        for client in clients:
            client.socket.close()


def together(proxy: Address, url: str, count: int) -> None:
    """`count` requests at a time, each on a connection that is closed afterwards."""
    clients: list[Client] = []
    try:
        clients += [Client(proxy) for _ in range(count)]
        for client in clients:
            client.send(url)
        for client in clients:
            client.take()
    finally:
        for client in clients:
            client.socket.close()
