"""Fixtures: one daemon for all tests, one with short limits, and origins that keep every byte."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Warmproxy
from tests.e2e.harness import release_ports
from tests.standards.wire import OK, Answer, Client, Web, closing


@pytest.fixture(scope="session", autouse=True)
def _ports() -> Iterator[None]:
    yield
    release_ports()


@pytest.fixture(scope="session", autouse=True)
def _linux() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("uses /proc and loopback addresses that only Linux has")


@pytest.fixture(scope="session")
def _daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Warmproxy]]:
    with contextlib.ExitStack() as stack:

        def start(**config: Any) -> Warmproxy:
            proxy = Warmproxy(tmp_path_factory.mktemp("warmproxy"), config=config)
            stack.callback(proxy.stop)
            return proxy

        yield start


@pytest.fixture(scope="session")
def proxy(_daemons: Callable[..., Warmproxy]) -> Warmproxy:
    """The daemon as it comes, but it warms nothing by itself: each connection has its reason."""
    return _daemons(learn_requests=0)


@pytest.fixture(scope="session")
def strict(_daemons: Callable[..., Warmproxy]) -> Warmproxy:
    """A daemon with short times and narrow limits."""
    return _daemons(
        learn_requests=0,
        connect_ports=[443],
        client_idle_timeout=0.3,
        defaults={
            "max_connections": 1,
            "acquire_timeout": 0.6,
            "dial_timeout": 0.3,
            "response_timeout": 0.3,
            "idle_timeout": 0.3,
        },
    )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Warmproxy]]:
    """Start a daemon of the test's own: keyword arguments are its settings."""
    with contextlib.ExitStack() as stack:

        def start(**config: Any) -> Warmproxy:
            folder = tmp_path / f"warmproxy-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            proxy = Warmproxy(folder, config=config)
            stack.callback(proxy.stop)
            return proxy

        yield start


@pytest.fixture
def origin() -> Iterator[Callable[..., Web]]:
    """Start an origin: see `Web`."""
    with contextlib.ExitStack() as stack:
        yield lambda answer=OK: stack.enter_context(closing(Web(answer)))


@pytest.fixture
def web(origin: Callable[[bytes | Answer], Web]) -> Web:
    """One origin that says ok to everything, until the test sets another answer."""
    return origin(OK)


@pytest.fixture
def connect(proxy: Warmproxy) -> Iterator[Callable[..., Client]]:
    """Open a client connection, to the common daemon unless told otherwise."""
    with contextlib.ExitStack() as stack:
        yield lambda to=proxy: stack.enter_context(Client(to))


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    return connect()
