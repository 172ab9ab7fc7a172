"""What the rig has found in the daemon, each in the smallest form that shows it."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from tests.e2e.daemon import Warmproxy
from tests.e2e.harness import eventually
from warmproxy.errors import DialClosed, DialRefused
from warmproxy.net.housekeeper import Housekeeper
from warmproxy.observe import CloseReason, Observer
from warmproxy.origin import origin
from warmproxy.policy.backoff import DialBudget
from warmproxy.policy.retry import Prefer
from warmproxy.policy.sizing import Fixed
from warmproxy.pool.origin_pool import OriginPool, Plan
from warmproxy.pool.registry import Registry
from warmproxy.settings import OriginSettings, Settings

NO_LINGER = struct.pack("ii", 1, 0)


# ── the pool ─────────────────────────────────────────────────────────────────────────────────


def pool_of(**settings: Any) -> OriginPool[int, str]:
    """A pool that holds nothing warm."""
    return OriginPool(
        origin("http", "h", 80),
        OriginSettings(**settings),
        Fixed(0),
        DialBudget(100.0, 100.0),
        Observer(),
        lambda: 1.0,
        0.0,
    )


def alive(conn: int) -> None:
    return None


def test_a_replay_is_not_overtaken_for_ever_by_those_who_take_used_connections() -> None:
    """At max_connections a connection that comes back makes room for the first in line."""
    pool = pool_of(max_connections=1)
    pool.acquire("user", Prefer.USED, 0.0, alive)
    pool.dial_started(0.0)
    assert pool.dial_succeeded(1, 0.01, 0.0) == "user"
    assert not pool.must_yield(), "nobody waits"
    pool.acquire("replay", Prefer.FRESH_ONLY, 1.0, alive)
    pool.acquire("other", Prefer.USED, 1.0, alive)
    assert pool.must_yield()
    pool.closed(1, CloseReason.SURPLUS, 1.0)
    assert pool.plan(1.0).dials == 1
    pool.dial_started(1.0)
    assert not pool.must_yield(), "its dial is on the way"
    assert pool.dial_succeeded(2, 0.01, 1.0) == "replay"
    assert not pool.must_yield(), "who is first now takes any"


@pytest.mark.parametrize("error", [DialRefused("refused"), DialClosed("closed at once")])
def test_patience_with_a_restart_does_not_count_the_time_in_line(error: Any) -> None:
    """Who waited long for a busy origin has dial_retry_for left when it restarts."""
    pool = pool_of(max_connections=1, dial_retry_for=1.0)
    pool.dial_started(0.0)
    pool.dial_succeeded(1, 0.01, 0.0)
    assert pool.acquire("user", Prefer.USED, 0.0, alive) == 1
    pool.acquire("waiter", Prefer.USED, 0.0, alive)
    pool.closed(1, CloseReason.UPSTREAM_RESET, 5.0)
    for now, told in ((5.0, []), (5.9, []), (6.0, ["waiter"])):
        pool.dial_started(now)
        assert pool.dial_failed(error, now) == told, now


# ── the housekeeper ──────────────────────────────────────────────────────────────────────────


def test_a_wake_up_within_half_a_millisecond_is_a_wake_up() -> None:
    """uvloop gives no TimerHandle for a call that is due so soon: it cannot be asked when."""

    async def plan_twice() -> None:
        loop = asyncio.get_running_loop()
        settings = Settings()
        registry: Registry[Any, Any] = Registry(settings, Observer(), lambda: 1.0, loop.time())
        keeper = Housekeeper(settings, registry, cast(Any, None), Observer(), loop)
        pool = registry.use(origin("http", "h", 80), loop.time())
        wakes = iter((loop.time() - 1.0, loop.time() - 2.0))
        soon = SimpleNamespace(plan=lambda now: Plan(0, (), next(wakes)))
        for name in ("origin", "target_idle", "waiting", "dialling", "boosts", "planned_until"):
            setattr(soon, name, getattr(pool, name))
        keeper._carry_out(cast(Any, soon))
        keeper._carry_out(cast(Any, soon))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(plan_twice())


# ── the daemon ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Let a function have each connection to a port, in threads; the port."""
    with contextlib.ExitStack() as stack:

        def start(play: Callable[[socket.socket], None]) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def accept() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        sock, _ = listener.accept()
                        threading.Thread(target=play, args=(sock,), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return int(listener.getsockname()[1])

        yield start


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Warmproxy]:
    """A daemon with nothing warm."""
    proxy = Warmproxy(tmp_path)
    yield proxy
    proxy.stop()


def read_all(sock: socket.socket) -> bytes:
    """Everything up to an orderly end; a reset raises."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def test_a_close_delimited_answer_that_was_reset_is_reset_for_the_client(
    daemon: Warmproxy, serve: Callable[..., int]
) -> None:
    """An orderly end would make the cut answer look whole."""
    told = threading.Event()

    def play(sock: socket.socket) -> None:
        with sock:
            if sock.recv(65536):
                sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome of it")
                told.wait(10)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

    port = serve(play)
    with daemon.raw() as sock:
        sock.sendall(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        data = b""
        while not data.endswith(b"some of it"):
            data += sock.recv(65536)
        told.set()
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_an_answer_that_ends_the_connection_survives_what_the_client_sent_ahead(
    daemon: Warmproxy, serve: Callable[..., int]
) -> None:
    """Closing on unread input resets the connection, which loses an answer on its way (RFC 9112,
    9.6): the daemon half-closes and reads on."""
    body = bytes(200_000)

    def play(sock: socket.socket) -> None:
        with sock:
            if sock.recv(65536):
                sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)

    port = serve(play)
    ask = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    with daemon.raw() as sock:
        sock.sendall(ask)
        head = sock.recv(10)
        # the answer is there and its end too: from here on nobody will read this
        eventually(lambda: not daemon.pool(f"http://127.0.0.1:{port}")["active"])
        sock.sendall(ask * 100)
        assert (head + read_all(sock)).endswith(body)


def test_a_client_that_was_gone_before_it_was_accepted_leaves_no_traceback(
    daemon: Warmproxy,
) -> None:
    """It has no address any more that could be judged."""
    for _ in range(200):
        sock = daemon.raw()
        sock.sendall(b"GET http://127.0.0.1:9/ HTTP/1.1\r\nHost: h\r\n\r\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        sock.close()
    eventually(lambda: daemon.count("warmproxy_clients") == 0)
    lines = [line for line in daemon.log().splitlines() if line.startswith("{")]
    assert not [line for line in lines if "traceback" in json.loads(line)]
