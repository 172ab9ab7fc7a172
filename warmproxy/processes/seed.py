"""The seed: a process with everything imported and without an event loop, from which the others
are forked at the parent's word.

An event loop does not survive a fork, and the parent has one. What is forked from the seed turns
its loop within 3 ms and has 2 MiB of its own, where a new interpreter takes 330 ms and 26 MiB
(Python 3.11, `benchmarks/processes.py --start`); and it runs the code that the parent runs,
whatever has been installed since.
"""

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from warmproxy.errors import StartError

AT_ONCE = 200
"""Descriptors in one message; Linux takes 253."""
LOOK_SECONDS = 0.02
"""Between two looks at whether a process has ended that has hung up."""

Work = Callable[[list[socket.socket]], int]
"""What a forked process does with the sockets that it is given; returns its exit status."""


class SeedGone(StartError):
    """There will be no further process."""


class Seed:
    """The parent's hold on it. Make it while there is one thread and no event loop."""

    def __init__(self, work: Work) -> None:
        self._control, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
        gc.freeze()  # what is never collected is never written to, and stays shared
        self._pid = os.fork()
        if self._pid == 0:
            _close_all_but(its_end.fileno())
            _grow(its_end, work)
        gc.unfreeze()
        its_end.close()
        self._control.setblocking(False)
        self._turn = asyncio.Lock()

    async def start(self, sockets: list[socket.socket]) -> int:
        """Fork a process that works with duplicates of these; its id. Raises StartError."""
        fds = [sock.fileno() for sock in sockets]
        batches = [fds[i : i + AT_ONCE] for i in range(0, len(fds), AT_ONCE)]
        async with self._turn:
            try:
                for batch in batches:
                    order = {"start": batch is batches[-1]}
                    socket.send_fds(self._control, [json.dumps(order).encode()], batch)
                return await self._hear()
            except ConnectionError as error:
                raise SeedGone(f"no process can be started any more: {error}") from error
            except OSError as error:
                raise StartError(f"no process can be started now: {error}") from error

    async def end_of(self, pid: int) -> int | None:
        """The exit code of a process that is about to end, below 0 for a signal; None where the
        seed is gone, and nobody knows."""
        while True:
            async with self._turn:
                try:
                    self._control.send(json.dumps({"reap": pid}).encode())
                    status = await self._hear()
                except OSError:
                    return None
            if status >= 0:
                return os.waitstatus_to_exitcode(status)
            await asyncio.sleep(LOOK_SECONDS)

    async def _hear(self) -> int:
        answer = await asyncio.get_running_loop().sock_recv(self._control, 100)
        if not answer:
            raise ConnectionError("the process that starts them is gone")
        if (said := json.loads(answer)) is None:
            raise OSError("the system allows no further process")
        return int(said)

    def close(self) -> None:
        """It ends, once it has started what it was told to."""
        self._control.close()
        os.waitpid(self._pid, 0)


def _close_all_but(kept: int) -> None:
    """Whatever the parent has open, systemd's sockets too; but for standard input and output."""
    most = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, kept)
    os.closerange(kept + 1, most)


def _grow(control: socket.socket, work: Work) -> NoReturn:
    """The seed's life. It ends with the parent, which has the other end, and by no signal that is
    meant for all."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    given: list[socket.socket] = []
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(control, 100, AT_ONCE)
        except OSError:
            os._exit(1)
        if not message:
            os._exit(0)
        given += [socket.socket(fileno=fd) for fd in fds]
        match json.loads(message):
            case {"start": True}:
                try:
                    pid: int | None = os.fork()
                except OSError:
                    pid = None
                if pid == 0:
                    control.close()
                    _work(work, given)
                for sock in given:
                    sock.close()
                given.clear()
                answer = pid
            case {"reap": int(pid)}:
                ended, status = os.waitpid(pid, os.WNOHANG)
                answer = status if ended else -1
            case _:
                continue  # more descriptors follow
        try:
            control.send(json.dumps(answer).encode())
        except OSError:
            os._exit(0)


def _work(work: Work, sockets: list[socket.socket]) -> NoReturn:
    """What a forked process does: nothing of the seed's own ending may happen in it."""
    code = 70
    try:
        code = work(sockets)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
