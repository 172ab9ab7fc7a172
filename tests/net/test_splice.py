"""Bytes between two transports by way of a pipe, on uvloop and on asyncio's own loop: real sockets,
and a splice(2) that refuses where a system would."""

import asyncio
import errno
import gc
import os
import socket
import struct
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvloop

from tests.e2e.harness import until_still
from tests.e2e.origins import pattern, pattern_crc
from warmproxy.net import splice
from warmproxy.net.splice import Mover, Pipe, Pipes
from warmproxy.net.tunnel import Tunnel, _Side

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="splice(2) is Linux's")
MIB = 1 << 20
SIZE = 12 * MIB


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    def run_it(main) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(main, 30))

    return run_it


@pytest.fixture(autouse=True)
def pipes(monkeypatch: pytest.MonkeyPatch) -> Pipes:
    made = Pipes()
    monkeypatch.setattr(splice, "PIPES", made)
    return made


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each splice that moved bytes."""
    sizes: list[int] = []
    real = splice._splice

    def counting(source: int, sink: int, size: int) -> int:
        sizes.append(moved := real(source, sink, size))
        return moved

    monkeypatch.setattr(splice, "_splice", counting)
    return sizes


@dataclass
class Joined:
    """A tunnel and the two far ends, as blocking sockets."""

    tunnel: Tunnel
    client: socket.socket
    upstream: socket.socket
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def joined() -> AsyncIterator[Joined]:
    loop = asyncio.get_running_loop()
    far_ends, transports = [], []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(2):
            near = socket.create_connection(listener.getsockname())
            near.setblocking(False)
            transports.append((await loop.create_connection(asyncio.Protocol, sock=near))[0])
            far_ends.append(listener.accept()[0])
            far_ends[-1].settimeout(20)
    ended = asyncio.Event()
    tunnel = Tunnel(*transports, lambda: None, lambda _: ended.set())
    try:
        yield Joined(tunnel, *far_ends, ended)
    finally:
        for sock in far_ends:
            sock.close()
        tunnel.close()
        await ended.wait()


def send(sock: socket.socket, size: int = SIZE) -> None:
    for block in pattern(size):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket) -> int:
    value = 0
    while data := sock.recv(1 << 18):
        value = zlib.crc32(data, value)
    return value


async def still(pair: Joined) -> int:
    """Wait until nothing moves any more; how much has."""
    return await asyncio.to_thread(until_still, lambda: pair.tunnel.moved)


async def both_ways(pair: Joined) -> None:
    senders = [asyncio.to_thread(send, sock) for sock in (pair.client, pair.upstream)]
    receivers = [asyncio.to_thread(receive, sock) for sock in (pair.client, pair.upstream)]
    got = await asyncio.gather(*receivers, *senders)
    assert got[:2] == [pattern_crc(SIZE)] * 2
    assert pair.tunnel.up == pair.tunnel.down == SIZE
    await pair.ended.wait()


def test_bytes_go_through_a_pipe(run, spliced, pipes) -> None:
    """Most of what passes both ways at once is spliced, all of it arrives in order, each end too,
    and no pipe stays open for longer than it is needed."""

    async def main() -> None:
        async with joined() as pair:
            await both_ways(pair)
        assert sum(spliced) > SIZE * 2  # into the pipe and out of it: half is enough to tell
        assert pipes._in_use == 0
        assert pipes._empty
        pipes.sweep()
        pipes.sweep()
        assert not pipes._empty

    run(main())


def test_a_tunnel_leaves_nothing_to_the_garbage_collector(run) -> None:
    """What points in a circle would stay for hours: the service has next to no full collections."""
    kinds = (Tunnel, _Side, Mover)

    async def main() -> None:
        async with joined() as pair:
            await both_ways(pair)
            assert sum(type(thing) in kinds for thing in gc.get_objects()) == 5

    gc.collect()
    gc.disable()
    try:
        run(main())
        assert not [thing for thing in gc.get_objects() if type(thing) in kinds]
    finally:
        gc.enable()


def test_small_messages_are_just_written(run, spliced) -> None:
    """An exchange of small messages takes no pipe."""

    async def main() -> None:
        async with joined() as pair:
            for _ in range(100):
                pair.client.sendall(b"question")
                assert await asyncio.to_thread(pair.upstream.recv, 100) == b"question"
                pair.upstream.sendall(b"answer")
                assert await asyncio.to_thread(pair.client.recv, 100) == b"answer"
        assert not spliced

    run(main())


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_a_system_that_refuses_to_splice(run, monkeypatch, pipes, code) -> None:
    """The transports carry on with what the first try has left, and nobody tries again."""
    tries = []

    def refuse(source: int, sink: int, size: int) -> int:
        tries.append(size)
        raise OSError(code, os.strerror(code))

    async def main() -> None:
        monkeypatch.setattr(splice, "_splice", refuse)
        async with joined() as pair:
            await both_ways(pair)
        assert not pipes.work
        assert len(tries) < 10

    run(main())


def test_more_slow_readers_than_pipes(run, monkeypatch, pipes) -> None:
    """Where all pipes are taken by those who do not read the transports move the bytes."""
    monkeypatch.setattr(splice, "MOST_PIPES", 1)

    async def main() -> None:
        async with joined() as one, joined() as other:
            senders = [
                asyncio.ensure_future(asyncio.to_thread(send, pair.upstream, SIZE * 4))
                for pair in (one, other)
            ]
            moved = min(await asyncio.gather(*(still(pair) for pair in (one, other))))
            assert MIB < moved < SIZE * 4
            assert pipes._in_use == 1
            for pair in (other, one):
                assert await asyncio.to_thread(receive, pair.client) == pattern_crc(SIZE * 4)
            await asyncio.gather(*senders)

    run(main())


def test_an_error_that_only_splice_has_seen(run, monkeypatch) -> None:
    """A socket tells its error once. Where splice gets it the other side is reset nevertheless, and
    what came before goes out."""
    real = splice._splice

    def broken(source: int, sink: int, size: int) -> int:
        if size > splice.TURN - splice.HEAD - 1 and tunnel.down > 4 * MIB:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return real(source, sink, size)

    async def main() -> None:
        nonlocal tunnel
        async with joined() as pair:
            tunnel = pair.tunnel
            monkeypatch.setattr(splice, "_splice", broken)
            sender = asyncio.ensure_future(asyncio.to_thread(send, pair.upstream))
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(receive, pair.client)
            with pytest.raises(OSError, match=r"reset|pipe"):
                await sender

    tunnel: Tunnel
    run(main())


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_a_side_that_leaves_bytes_in_a_pipe(run, pipes, who) -> None:
    """When a connection ends while a pipe holds bytes for it or of it, the pipe is never used
    again with those bytes in it."""

    async def main() -> None:
        async with joined() as pair:
            sender = asyncio.ensure_future(asyncio.to_thread(send, pair.upstream, SIZE * 8))
            await still(pair)
            assert pair.tunnel._upstream.waiting
            leaver = getattr(pair, who)
            leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaver.shutdown(socket.SHUT_RD)
            leaver.close() if who == "client" else pair.tunnel.close()
            pair.client.close()
            await pair.ended.wait()
            with pytest.raises(OSError, match=r"reset|pipe"):
                await sender
        assert pipes._in_use == 0
        assert all(pipe.size == 0 for pipe in pipes._empty)
        async with joined() as pair:
            await both_ways(pair)

    run(main())


def test_a_pipe_that_is_too_small_is_not_used(monkeypatch) -> None:
    """A user who has too many pipes gets some of two pages: no descriptor of them is kept."""
    import fcntl

    def small(descriptor: int, command: int, *args: int) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError
        return 8192

    monkeypatch.setattr("warmproxy.net.splice.fcntl.fcntl", small)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PermissionError):
        Pipe()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert Pipes().take() is None
