"""Bytes from one TCP transport to another that never enter the daemon: splice(2) through a pipe.

The transports stay in charge. A Mover takes the place of its source's protocol and lets the
transport read a small head of what is there; where that head comes full, more is waiting: the
head goes into a pipe, the rest follows from the socket, and all of it goes on to the sink's
socket. What the sink's socket does not take stays in the pipe, and a small piece of it is written
to the sink's transport: once the transport has sent that, there is room again. So ends, resets,
closing, back-pressure and timeouts arrive as they would without a Mover, and wherever a pipe cannot
be used the head is simply written to the sink.

CPU of one flow, seconds per GiB (2 cores, Linux 6.18): a transport that reads 256 KiB and writes
them 0.52-0.58, a Mover 0.23-0.37, splice between duplicates of the two sockets, which the loop
watches by add_reader and add_writer, 0.26-0.31. The last needs two more descriptors for each flow
and has to find out by itself what the transports tell a Mover.
"""

import asyncio
import errno
import os
import sys
from collections.abc import Callable

if sys.platform == "linux":
    import fcntl

READ = 64 * 1024
"""Bytes read at once while nothing is moved."""

HEAD = 16 * 1024
"""Bytes that the transport reads before anything is spliced; a smaller read is just written."""

TURN = 1024 * 1024
"""Bytes spliced at once, so that no flow keeps the loop from others."""

PIECE = 4096
"""Bytes that tell, once they are sent, that the sink takes more."""

PIPE_SIZE = 1024 * 1024
"""Bytes asked for; a slot of a pipe holds a page or one packet's part of it."""

SMALLEST_PIPE = 64 * 1024
"""Linux's default. Who has too many gets pipes of two pages (pipe(7)): they are not worth it."""

MOST_PIPES = 256
"""Pipes that may hold bytes at the same time, each for one flow whose sink is slow."""

_REFUSED = (errno.EINVAL, errno.ENOSYS, errno.EPERM)

_BUFFER = memoryview(bytearray(READ))
"""For all: what was read into it is copied or written before anybody reads again."""

_HEAD = _BUFFER[:HEAD]


class Pipe:
    """Two descriptors and how many bytes are between them."""

    __slots__ = ("entry", "exit", "size")

    def __init__(self) -> None:
        """Raises OSError where there is none to be had."""
        self.exit, self.entry = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self.entry, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # beyond pipe-max-size, or the user has too many
            if fcntl.fcntl(self.entry, fcntl.F_GETPIPE_SZ) < SMALLEST_PIPE:
                self.close()
                raise
        self.size = 0

    def close(self) -> None:
        os.close(self.entry)
        os.close(self.exit)


class Pipes:
    """Empty pipes that were used, for whoever moves bytes next."""

    def __init__(self) -> None:
        self._empty: list[Pipe] = []
        self._spare = 0
        """The fewest that were empty since the last sweep."""
        self._in_use = 0
        self._works = sys.platform == "linux" and hasattr(os, "splice")

    @property
    def work(self) -> bool:
        """Whether this system splices from socket to socket."""
        return self._works

    def take(self) -> Pipe | None:
        """An empty pipe; None where there is none to be had just now."""
        if not self._works or self._in_use >= MOST_PIPES:
            return None
        try:
            pipe = self._empty.pop() if self._empty else Pipe()
        except OSError:
            return None
        self._spare = min(self._spare, len(self._empty))
        self._in_use += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Back; what is in it is lost."""
        self._in_use -= 1
        if pipe.size:
            pipe.close()
        else:
            self._empty.append(pipe)

    def sweep(self) -> None:
        """Close those that nobody has needed since the last time."""
        for _ in range(self._spare):
            self._empty.pop().close()
        self._spare = len(self._empty)

    def give_up(self) -> None:
        """This system refuses to splice."""
        self._works = False


PIPES = Pipes()


def can_move(source: asyncio.Transport, sink: asyncio.Transport) -> bool:
    """Whether a Mover is of use between these two: open, plain, on a system that can splice."""
    return (
        PIPES.work
        and not source.is_closing()
        and not sink.is_closing()
        and source.get_extra_info("sslcontext") is None
        and sink.get_extra_info("sslcontext") is None
    )


class Mover(asyncio.BufferedProtocol):
    """Takes the place of `owner`, the protocol of `source`, and can move what is received.

    Between two movements the owner gets all bytes as before, and it hears of everything else at
    any time. It calls `pause` and `resume` instead of the transport's methods.
    """

    __slots__ = (
        "_error",
        "_left",
        "_moved",
        "_owner",
        "_pipe",
        "_sink",
        "_source",
        "_write_buffer",
    )

    def __init__(self, source: asyncio.Transport, owner: asyncio.Protocol) -> None:
        self._source = source
        self._owner = owner
        self._sink: asyncio.Transport | None = None
        self._left = 0
        self._pipe: Pipe | None = None
        """Held while there are bytes in it, and then the source is not read."""
        self._error: OSError | None = None
        self._write_buffer = 0
        self._moved: Callable[[int], None]
        set_protocol(source, self)

    def move(
        self,
        sink: asyncio.Transport,
        moved: Callable[[int], None],
        write_buffer: int,
        length: int = sys.maxsize,
    ) -> None:
        """The next `length` bytes go to `sink`, where nobody else may write meanwhile.

        `moved(n)` is called for each turn's bytes when they have left the source. `pause` and
        `resume` are to be called when the sink's protocol is told to. Afterwards the sink's
        transport queues up to `write_buffer` bytes again.
        """
        self._sink = sink
        self._moved = moved
        self._write_buffer = write_buffer
        self._left = length
        sink.set_write_buffer_limits(high=0)  # to hear of each piece that is sent

    def stop(self) -> None:
        """No more is moved."""
        self.flush()
        sink, self._sink = self._sink, None
        if sink is not None and not sink.is_closing():
            sink.set_write_buffer_limits(high=self._write_buffer)

    @property
    def waiting(self) -> int:
        """Bytes that have left the source and not reached the sink."""
        return self._pipe.size if self._pipe is not None else 0

    def pause(self) -> None:
        if not self._source.is_closing():
            self._source.pause_reading()

    def resume(self) -> None:
        """The sink has room."""
        if self._pipe is not None and self._sink is not None:
            self._push(self._pipe, self._sink)
        if self._pipe is None and not self._source.is_closing():
            self._source.resume_reading()

    def flush(self) -> None:
        """Leave what is in the pipe to the sink's transport, which sends it before it closes."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            if self._sink is not None and not self._sink.is_closing():
                self._sink.write(_take_out(pipe, pipe.size))
            PIPES.give(pipe)

    # ── asyncio.BufferedProtocol ─────────────────────────────────────────────────────────────

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._sink is None:
            return _BUFFER
        return _HEAD if self._left >= HEAD else _HEAD[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        sink = self._sink
        if sink is None:
            self._owner.data_received(bytes(_BUFFER[:nbytes]))
            return
        assert self._pipe is None, "read while bytes wait"
        pipe = None
        if nbytes == HEAD and not sink.get_write_buffer_size() and not sink.is_closing():
            pipe = PIPES.take()
        if pipe is None:
            sink.write(bytes(_HEAD[:nbytes]))
        else:
            self._pipe = pipe
            pipe.size = os.write(pipe.entry, _HEAD)
            self._pull(pipe)
            nbytes = pipe.size
            self._push(pipe, sink)
        self._left -= nbytes
        if not self._left:
            self.stop()
        self._moved(nbytes)

    def eof_received(self) -> bool | None:
        return self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.flush()
        owner = self._owner
        del self._owner, self._moved  # they lead back here, and are to go without the collector
        owner.connection_lost(exc or self._error)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _pull(self, pipe: Pipe) -> None:
        """From the source's socket into the pipe."""
        size = min(TURN, self._left) - pipe.size
        if size <= 0:
            return
        try:
            pipe.size += _splice(_descriptor(self._source), pipe.entry, size)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _REFUSED:
                PIPES.give_up()
            elif error.errno != errno.ENOMEM:
                # a socket tells its error once: the transport would take what follows for an end
                self._error = error
                self._source.abort()

    def _push(self, pipe: Pipe, sink: asyncio.Transport) -> None:
        """From the pipe to the sink. Where that takes no more for now, it is going to say when."""
        while pipe.size:
            if sink.is_closing():  # its descriptor may be another's already
                self.flush()
                return
            try:
                pipe.size -= _splice(pipe.exit, _descriptor(sink), pipe.size)
            except BlockingIOError:
                pass
            except OSError:
                self.flush()  # the transport finds the same error and tells it
                return
            if pipe.size:
                sink.write(_take_out(pipe, PIECE))
                if sink.get_write_buffer_size():
                    return
        self._pipe = None
        PIPES.give(pipe)


def set_protocol(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Loops look at the kind of protocol when reading starts."""
    kinds = [isinstance(p, asyncio.BufferedProtocol) for p in (transport.get_protocol(), protocol)]
    reads = kinds[0] != kinds[1] and transport.is_reading() and not transport.is_closing()
    if reads:
        transport.pause_reading()
    transport.set_protocol(protocol)
    if reads:
        transport.resume_reading()


def _descriptor(transport: asyncio.Transport) -> int:
    descriptor: int = transport.get_extra_info("socket").fileno()
    return descriptor


def _splice(source: int, sink: int, size: int) -> int:
    return os.splice(source, sink, size, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)


def _take_out(pipe: Pipe, most: int) -> bytes:
    data = b""
    while most and pipe.size:
        part = os.read(pipe.exit, min(most, pipe.size))
        data += part
        most -= len(part)
        pipe.size -= len(part)
    return data
