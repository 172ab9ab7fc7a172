"""Fixtures of the end-to-end tests: factories whose processes and sockets are gone afterwards."""

import base64
import contextlib
import functools
import hashlib
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate

from tests.e2e.clients import CLIENTS, Job
from tests.e2e.daemon import Warmproxy, command, warmproxy_environ
from tests.e2e.harness import Hosts, Process, clean_environ, release_ports
from tests.e2e.origins import Answer, Blackhole, Origin
from tests.e2e.servers import (
    ApacheServer,
    GunicornServer,
    HaproxyServer,
    HttpbinServer,
    NginxServer,
    NodeServer,
    Undici,
    UvicornServer,
    find_undici,
)


@pytest.fixture(scope="session", autouse=True)
def _ports() -> Iterator[None]:
    yield
    release_ports()


@pytest.fixture(autouse=True)
def _linux() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc, which only Linux has")


@pytest.fixture
def home(tmp_path: Path) -> Callable[[str], Path]:
    """A new empty folder for each process of a test."""

    def make(name: str) -> Path:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return folder

    return make


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What a test has to close, closed in reverse order."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def hosts(home: Callable[[str], Path]) -> Hosts:
    """Names of the test's own: see `Hosts`."""
    return Hosts(home("hosts"))


@pytest.fixture
def origin(stack: contextlib.ExitStack) -> Callable[..., Origin]:
    """Start a programmable origin: see `Origin`."""

    def start(*args: Answer, **settings: Any) -> Origin:
        made = Origin(*args, **settings)
        stack.callback(made.close)
        return made

    return start


@pytest.fixture
def blackhole(stack: contextlib.ExitStack) -> Blackhole:
    made = Blackhole()
    stack.callback(made.close)
    return made


@pytest.fixture
def warmproxy(stack: contextlib.ExitStack, home: Callable[[str], Path]) -> Callable[..., Warmproxy]:
    """Start a daemon and wait until it is ready: see `Warmproxy`."""

    def start(*args: str, **settings: Any) -> Warmproxy:
        proxy = Warmproxy(home("warmproxy"), *args, **settings)
        stack.callback(proxy.stop)
        return proxy

    return start


def _server(kind: Any) -> Any:
    """A fixture that starts servers of that kind."""

    @pytest.fixture
    def factory(stack: contextlib.ExitStack, home: Callable[[str], Path]) -> Callable[..., Any]:
        def start(settings: Any) -> Any:
            server = kind(home(kind.__name__), settings)
            stack.callback(server.stop)
            return server

        return start

    return factory


node_server = _server(NodeServer)
nginx_server = _server(NginxServer)
httpbin_server = _server(HttpbinServer)
apache_server = _server(ApacheServer)
gunicorn_server = _server(GunicornServer)
uvicorn_server = _server(UvicornServer)
haproxy_server = _server(HaproxyServer)


# -- TLS --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the tests and a certificate of 127.0.0.1 and localhost."""

    file: Path
    spki: str
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca = trustme.CA()
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.set_alpn_protocols(["http/1.1"])
    issued = ca.issue_cert("127.0.0.1", "localhost")
    issued.configure_cert(server)
    client = ssl.create_default_context(cafile=str(file))
    key = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    spki = base64.b64encode(hashlib.sha256(der).digest()).decode()
    return Authority(file, spki, server, client)


# -- clients ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """A client process that came to its end."""

    started_at: float
    code: int
    output: str


@pytest.fixture(scope="session")
def undici(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Undici]:
    return functools.cache(lambda: find_undici(tmp_path_factory.mktemp("undici")))


@pytest.fixture
def run(stack: contextlib.ExitStack, home: Callable[[str], Path]) -> Callable[..., Ran]:
    """Run a program to its end."""

    def run_it(args: list[str], env: Mapping[str, str] | None = None, timeout: float = 40.0) -> Ran:
        folder = home("run")
        started = time.monotonic()
        process = Process(args, folder / "output", folder, dict(env) if env is not None else None)
        stack.callback(process.stop)
        code = process.exit_code(timeout)
        return Ran(started, code, process.log())

    return run_it


@pytest.fixture
def client(
    run: Callable[..., Ran],
    home: Callable[[str], Path],
    authority: Authority,
    undici: Callable[[], Undici],
) -> Callable[..., Ran]:
    """Let a real client fetch URLs, through a proxy if there is one, as a process of its own."""

    def fetch(name: str, *urls: str, proxy: Warmproxy | None = None, of: Any = CLIENTS) -> Ran:
        by = proxy.url if proxy is not None else None
        job = Job(urls, by, authority.file, authority.spki, home("client"), undici)
        invocation = of[name](job)
        environ = proxy.client_environ if proxy is not None else clean_environ
        return run(invocation.args, environ(**invocation.env))

    return fetch


@pytest.fixture
def warmproxy_command(home: Callable[[str], Path]) -> Callable[..., Any]:
    """Run a subcommand to its end, stdout and stderr apart."""

    def run_it(*args: str, timeout: float = 20.0) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*args),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=home("command"),
            env=warmproxy_environ(),
        )

    return run_it
