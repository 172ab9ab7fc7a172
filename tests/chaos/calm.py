"""An origin that does nothing wrong but gets killed: the spare one listens when it is told to.

    python -m tests.chaos.calm --port N --hold SECONDS --log FILE [--spare]

It answers each request `hold` seconds after it was read. FILE gets a line `id method nth` for each
request at once, so that nothing is lost with the process. A spare listens from SIGUSR1 on.
"""

import argparse
import asyncio
import os
import signal

import uvloop

from tests.chaos.script import Part, response_of

PART = Part("none", "fin", 200, 40, "length", 0.0, 0.0, 0, 1, 0.0)


class Calm(asyncio.Protocol):
    """One connection; bodies are by length."""

    def __init__(self, port: int, hold: float, log: int) -> None:
        self._port, self._hold, self._log = port, hold, log
        self._buffer = b""
        self._served = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        length = int(fields.get(b"content-length", b"0"))
        if not found or len(rest) < length:
            return
        self._buffer = rest[length:]
        self._served += 1
        method, number = head.split(b" ", 1)[0].decode(), int(fields[b"x-id"])
        os.write(self._log, b"%d %b %d\n" % (number, method.encode(), self._served))
        answer = response_of(number, method, self._port, PART)
        asyncio.get_running_loop().call_later(self._hold, self._transport.write, answer)


async def serve(options: argparse.Namespace) -> None:
    """Listen, at once or when told to, until killed."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, told.set)
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print("ready", flush=True)
    if options.spare:
        await told.wait()
    server = await loop.create_server(
        lambda: Calm(options.port, options.hold, log), "127.0.0.1", options.port, backlog=1024
    )
    print("listening", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hold", type=float, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--spare", action="store_true")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()
