"""The daemon under test, as its users start it: `python -m warmproxy run`, a process of its own."""

import http.client
import importlib.util
import json
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.harness import Memory, Process, clean_environ, eventually, free_port


def warmproxy_environ(**extra: str) -> dict[str, str]:
    """An environment in which `python -m warmproxy` is the package that these tests import, and
    keeps nothing of what it learns in anybody's home."""
    spec = importlib.util.find_spec("warmproxy")
    assert spec is not None
    assert spec.origin is not None
    root = str(Path(spec.origin).parents[1])
    ours = {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1", "WARMPROXY_STATE_FILE": ""}
    ours["XDG_RUNTIME_DIR"] = ""  # no control sockets there either
    return clean_environ(**(ours | extra))


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "warmproxy", *args]


def toml(settings: Mapping[str, Any], table: str = "") -> str:
    """TOML of plain values, one [defaults] and [[upstream]] tables with [[upstream.warm_at]]."""
    tables = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            tables.append(f"[{table}{name}]\n" + toml(value, f"{table}{name}."))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables += [f"[[{table}{name}]]\n" + toml(row, f"{table}{name}.") for row in value]
    plain = [
        f"{name} = {json.dumps(value)}\n"
        for name, value in settings.items()
        if not isinstance(value, Mapping)
        and not (isinstance(value, list) and value and isinstance(value[0], Mapping))
    ]
    return "".join(plain + tables)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Warmproxy(Process):
    """A running daemon. `config` is the file's content as a dict; `args` are flags; `inside` is
    a command that runs the one that follows it. `by_file`: its addresses are in the file and not
    in flags, so that a reload can change them. `like`: it has the ports of another one."""

    def __init__(
        self,
        home: Path,
        *args: str,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        listen: str = "127.0.0.1",
        ready: bool = True,
        inside: Sequence[str] = (),
        by_file: bool = False,
        like: "Warmproxy | None" = None,
    ) -> None:
        self.port = free_port() if like is None else like.port
        self.admin_port = free_port() if like is None else like.admin_port
        self.file = home / "warmproxy.toml"
        self._listen = listen
        self._by_file = by_file
        self._clients: list[http.client.HTTPConnection] = []
        flags = ["--listen", f"{listen}:{self.port}", "--admin", f"127.0.0.1:{self.admin_port}"]
        if by_file:
            flags = []
        if config is not None:
            self.write(config)
            flags += ["--config", str(self.file)]
        super().__init__(
            [*inside, *command("run", *flags, *args)],
            home / "warmproxy.log",
            home,
            warmproxy_environ(**(env or {})),
        )
        self.memory = Memory(self.pid)
        if ready:
            try:
                self.until(lambda: self.admin_status("/readyz") == 200)
            except BaseException:
                self.stop()
                raise

    # -- its settings

    def write(self, config: Mapping[str, Any]) -> None:
        """The settings file, from now on."""
        addresses: dict[str, Any] = {}
        if self._by_file:
            addresses["listen"] = [f"{self._listen}:{self.port}"]
            addresses["admin"] = f"127.0.0.1:{self.admin_port}"
        self.file.write_text(toml(addresses | dict(config)))

    def reload(self, config: Mapping[str, Any] | str | None = None) -> dict[str, Any]:
        """SIGHUP, after the file was changed if need be; what the log says of it."""
        if isinstance(config, str):
            self.file.write_text(config)
        elif config is not None:
            self.write(config)
        before = len(self.events("reloaded", "reload_failed"))
        self.signal(signal.SIGHUP)
        return self.until(lambda: self.events("reloaded", "reload_failed")[before:])[0]

    def events(self, *names: str, origin: str | None = None) -> list[dict[str, Any]]:
        """The log's lines of these events (without names: of all), or those of them that are about
        an origin; as far as they are whole."""
        lines = [line for line in self.log().splitlines() if line[:1] == "{" and line[-1:] == "}"]
        return [
            said
            for said in map(json.loads, lines)
            if (said["event"] in names or not names) and (origin in (None, said.get("origin")))
        ]

    # -- the admin listener

    @property
    def admin(self) -> str:
        return f"127.0.0.1:{self.admin_port}"

    def admin_get(self, path: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def admin_status(self, path: str) -> int:
        """The status of an admin page, 0 where nobody listens."""
        try:
            return self.admin_get(path).status
        except OSError:
            return 0

    def pools(self) -> dict[str, dict[str, Any]]:
        """/pools, by origin."""
        reply = self.admin_get("/pools")
        assert reply.status == 200, reply
        return {pool["origin"]: pool for pool in json.loads(reply.body)["pools"]}

    def pool(self, url: str) -> dict[str, Any]:
        """The pool of an http:// origin, or of the tunnels to an https:// one."""
        return self.pools()[origin_name(url)]

    def metrics(self) -> "Metrics":
        reply = self.admin_get("/metrics")
        assert reply.status == 200, reply
        return Metrics(reply.text)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics().sum(name, **labels)

    # -- the proxy

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client_environ(self, **extra: str) -> dict[str, str]:
        """What the README tells people to export, and nothing else that could interfere."""
        return clean_environ(
            http_proxy=self.url,
            HTTP_PROXY=self.url,
            https_proxy=self.url,
            HTTPS_PROXY=self.url,
            **extra,
        )

    def connect(self, timeout: float = 20.0) -> http.client.HTTPConnection:
        """A client connection that is up, for requests in absolute-form; closed at the latest
        with the daemon."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        self._clients.append(connection)
        connection.connect()
        return connection

    def fetch(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20.0,
    ) -> Reply:
        """One request on a client connection of its own."""
        connection = self.connect(timeout)
        try:
            return fetch_on(connection, url, method, body, headers)
        finally:
            connection.close()

    def raw(self, timeout: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def tunnel(self, authority: str, timeout: float = 20.0) -> socket.socket:
        """A CONNECT tunnel, established."""
        sock = self.raw(timeout)
        try:
            sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                data = sock.recv(1)
                assert data, head
                head += data
            assert head.split(b" ")[1] == b"200", head
        except BaseException:
            sock.close()
            raise
        return sock

    def tls_tunnel(self, authority: str, context: ssl.SSLContext) -> ssl.SSLSocket:
        sock = self.tunnel(authority)
        try:
            return context.wrap_socket(sock, server_hostname=authority.partition(":")[0])
        except BaseException:
            sock.close()
            raise

    # -- its end

    def stop(self) -> None:
        for connection in self._clients:
            connection.close()
        super().stop()

    def terminate(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.signal(how)
        return self.exit_code()


def origin_name(url: str) -> str:
    """An origin as /pools and the metrics call it: https:// is raw TCP, for tunnels."""
    parts = urlsplit(url)
    return f"{'http' if parts.scheme == 'http' else 'tcp'}://{parts.netloc}"


def fetch_on(
    connection: http.client.HTTPConnection,
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    connection.request(method, url, body, dict(headers or {}))
    return read_reply(connection)


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    with connection.getresponse() as response:
        return Reply(response.status, response.headers, response.read())


class Metrics:
    """One scrape, parsed by prometheus_client's own parser."""

    def __init__(self, text: str) -> None:
        self.families = {f.name: f for f in text_string_to_metric_families(text)}

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples of that name that have those labels."""
        wanted = labels.items()
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and wanted <= sample.labels.items()
        )


def wait_warm(proxy: Warmproxy, url: str, idle: int, timeout: float = 10.0) -> None:
    """Wait until at least so many connections are idle and nothing is on its way.

    There may be more: what a request has used comes back to a pool that was refilled meanwhile.
    """

    def settled() -> bool:
        pool = proxy.pools().get(origin_name(url))
        return (
            pool is not None
            and pool["fresh"] + pool["used"] >= idle
            and pool["active"] == pool["dialling"] == pool["waiting"] == 0
        )

    eventually(settled, timeout, lambda: f"{idle} idle: {proxy.pools()}\n{proxy.log()}")
