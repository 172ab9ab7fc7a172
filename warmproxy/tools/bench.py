"""`warmproxy bench`: what each way to an origin costs, measured side by side.

The ways take turns, so that what changes on the network meanwhile concerns all of them alike.
"""

import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from warmproxy.tools import direct
from warmproxy.tools.child import LOOK_EVERY, Daemon
from warmproxy.tools.direct import FAILURES, TIMEOUT, OriginError, Url, why

REFILL = 3.0
"""Seconds that a pool gets to be full again before the next request."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that the parts of one request took; None where there is no such part."""

    dns: float | None = None
    tcp: float | None = None
    """Connecting; for a tunnel also the proxy's answer to CONNECT."""
    tls: float | None = None
    first_byte: float | None = None
    """From sending the request to the first of the answer."""
    total: float | None = None
    """From the very start to the last byte of the answer."""


PARTS = tuple(field.name for field in fields(Times))


def bench(url: Url, *, count: int, as_json: bool, ca_file: str | None = None) -> int:
    """Ask for `url` `count` times each way and print the medians, in milliseconds.

    `ca_file` (PEM) is trusted instead of the system's authorities. Returns 0, or 1 where a way
    does not work; stderr then says why. Raises StartError where the daemon cannot start, OSError
    for a wrong `ca_file`.
    """
    origin = _Origin(url, ssl.create_default_context(cafile=ca_file))
    try:
        _cold(origin)  # not counted: it fills the caches of names and routes
    except FAILURES as error:
        print(f"warmproxy bench: {url}: {why(error)}", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        daemon = stack.enter_context(_daemon(stack, url, ca_file))
        daemon.wait_ready(TIMEOUT)
        kept = stack.enter_context(_Kept(origin))
        ways: dict[str, Callable[[], Times]] = {
            "cold": lambda: _cold(origin),
            "keep-alive": kept.ask,
        }
        proxied: dict[str, Callable[[], Times]] = {
            "forwarded": lambda: _forwarded(origin, daemon, url.scheme)
        }
        if url.scheme == "https":
            proxied = {
                "tunnel": lambda: _tunnel(origin, daemon),
                **proxied,
                "upgraded": lambda: _forwarded(origin, daemon, "http"),
            }
        ways |= {name: _when_full(daemon, way) for name, way in proxied.items()}
        times, errors = _take_turns(ways, count)
    rows = [_row(name, times[name], errors.get(name)) for name in times]
    for name, said in errors.items():
        print(f"warmproxy bench: {name}: {said}", file=sys.stderr)
    print(_json(url, origin, count, rows) if as_json else _table(url, origin, count, rows))
    return 1 if errors else 0


def _take_turns(
    ways: dict[str, Callable[[], Times]], count: int
) -> tuple[dict[str, list[Times]], dict[str, str]]:
    """What each way took each time; what is wrong with those that do not work."""
    times: dict[str, list[Times]] = {name: [] for name in ways}
    errors: dict[str, str] = {}
    for _ in range(count):
        for name, way in ways.items():
            if name in errors:
                continue
            try:
                times[name].append(way())
            except FAILURES as error:
                errors[name] = why(error)
    return times, errors


# ── the ways ─────────────────────────────────────────────────────────────────────────────────


class _Origin:
    """Where requests go, and what its answers said."""

    def __init__(self, url: Url, context: ssl.SSLContext) -> None:
        self.url = url
        self.context = context
        self.context.set_alpn_protocols(["http/1.1"])
        self.status = 0
        """Of the last answer."""

    def ask(self, sock: socket.socket, target: str) -> tuple[float, bool]:
        """One request and its whole answer; when the first of it came, whether more may follow."""
        answer = direct.ask(sock, self.url, by="bench", target=target)
        by_proxy = answer.headers.get("Proxy-Status", "")
        if by_proxy.startswith("warmproxy; error="):
            raise OriginError(by_proxy)
        self.status = answer.status
        return answer.first_byte, answer.keeps

    def connect(self) -> tuple[socket.socket, float, float, float | None]:
        """A connection, and the seconds for the name, for TCP and for TLS."""
        url, began = self.url, time.perf_counter()
        address = direct.resolve(url)[0]
        named = time.perf_counter()
        sock = direct.connect(address, url.port)
        connected = time.perf_counter()
        if url.scheme == "http":
            return sock, named - began, connected - named, None
        secured = direct.secure(sock, url, self.context)
        return secured, named - began, connected - named, time.perf_counter() - connected


def _cold(origin: _Origin) -> Times:
    """A new connection for the request."""
    began = time.perf_counter()
    sock, dns, tcp, tls = origin.connect()
    with sock:
        asked = time.perf_counter()
        first, _ = origin.ask(sock, origin.url.target)
        return Times(dns, tcp, tls, first - asked, time.perf_counter() - began)


class _Kept:
    """One connection for all requests: what a client has that is never idle for long."""

    def __init__(self, origin: _Origin) -> None:
        self._origin = origin
        self._sock: socket.socket | None = None

    def ask(self) -> Times:
        for again in (True, False):
            sock = self._sock or self._open()
            began = time.perf_counter()
            try:
                first, more = self._origin.ask(sock, self._origin.url.target)
            except ConnectionError:
                self.close()  # it was idle for longer than the origin likes
                if not again:
                    raise
                continue
            ended = time.perf_counter()
            if not more:
                self.close()
            return Times(first_byte=first - began, total=ended - began)
        raise AssertionError("not reached")

    def _open(self) -> socket.socket:
        """A connection that was used once, which is not counted."""
        self._sock = self._origin.connect()[0]
        _, more = self._origin.ask(self._sock, self._origin.url.target)
        if not more:
            raise OriginError("the origin closes its connections after each answer")
        return self._sock

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def __enter__(self) -> "_Kept":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _tunnel(origin: _Origin, daemon: Daemon) -> Times:
    """CONNECT, then the client's own TLS: TCP was there before."""
    url = origin.url
    began = time.perf_counter()
    with _to(daemon) as sock:
        authority = f"[{url.host}]:{url.port}" if ":" in url.host else f"{url.host}:{url.port}"
        sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(4096)
            if not data:
                raise OriginError("the proxy hung up")
            head += data
        if not head.startswith(b"HTTP/1.1 200"):
            raise OriginError(head.partition(b"\r\n")[0].decode("latin-1"))
        connected = time.perf_counter()
        with direct.secure(sock, url, origin.context) as secured:
            asked = time.perf_counter()
            first, _ = origin.ask(secured, url.target)
            ended = time.perf_counter()
    return Times(None, connected - began, asked - connected, first - asked, ended - began)


def _forwarded(origin: _Origin, daemon: Daemon, scheme: str) -> Times:
    """The whole URL to the proxy: for https, TLS was there before. With http for an https origin,
    the proxy upgrades."""
    url = origin.url
    authority = url.authority
    began = time.perf_counter()
    with _to(daemon) as sock:
        connected = time.perf_counter()
        first, _ = origin.ask(sock, f"{scheme}://{authority}{url.target}")
        ended = time.perf_counter()
    return Times(None, connected - began, None, first - connected, ended - began)


def _to(daemon: Daemon) -> socket.socket:
    host, _, port = daemon.proxy.rpartition(":")
    return direct.connect(host, int(port))


# ── the daemon ───────────────────────────────────────────────────────────────────────────────


def _daemon(stack: ExitStack, url: Url, ca_file: str | None) -> Daemon:
    """One that holds two connections of each kind to the origin, and nothing else."""
    # JSON's strings are TOML's
    upstream = [f"url = {json.dumps(f'{url.scheme}://{url.authority}')}", "dial_budget = 100"]
    if url.scheme == "https":
        upstream += ["tls = 2", "upgrade = true"]
        upstream += [f"ca_file = {json.dumps(str(Path(ca_file).absolute()))}"] if ca_file else []
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="warmproxy-bench-")))
    file = folder / "warmproxy.toml"
    file.write_text("\n".join(["[[upstream]]", *upstream, ""]), encoding="utf-8")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WARMPROXY_")}
    return Daemon(["--config", str(file)], environ)


def _when_full(daemon: Daemon, way: Callable[[], Times]) -> Callable[[], Times]:
    """The same way, but after the pools have made good what the last request took."""

    def ask() -> Times:
        deadline = time.monotonic() + REFILL
        while time.monotonic() < deadline:
            if all(pool["fresh"] + pool["used"] >= pool["target_idle"] for pool in daemon.pools()):
                break
            time.sleep(LOOK_EVERY)
        return way()

    return ask


# ── what came out ────────────────────────────────────────────────────────────────────────────

Row = dict[str, Any]


def _row(name: str, times: list[Times], error: str | None) -> Row:
    row: Row = {"way": name, "requests": len(times)}
    for part in PARTS:
        values = [value for one in times if (value := getattr(one, part)) is not None]
        row[f"{part}_ms"] = round(median(values) * 1000, 3) if values else None
    return row if error is None else {**row, "error": error}


def _json(url: Url, origin: _Origin, count: int, rows: list[Row]) -> str:
    head = {"url": str(url), "count": count, "status": origin.status}
    return json.dumps({**head, "ways": rows}, indent=2)


def _table(url: Url, origin: _Origin, count: int, rows: list[Row]) -> str:
    columns = ("", "DNS", "TCP", "TLS", "FIRST BYTE", "TOTAL")
    cells = [columns]
    for row in rows:
        values = [row[f"{part}_ms"] for part in PARTS]
        cells.append((row["way"], *("-" if v is None else f"{v:.2f}" for v in values)))
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [f"{url}: {count} requests each way, status {origin.status}; medians in ms", ""]
    for way, *numbers in cells:
        right = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([way.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)
