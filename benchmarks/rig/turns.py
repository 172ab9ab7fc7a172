"""warmproxy with a timer in its event loop, which notes what kept the loop from it.

    python turns.py FILE run ...    # FILE has a line for each firing, at the end: when, by the
                                    # monotonic clock, and seconds of processor time since the last

Processor time of the loop's thread, so that other work on the machine does not count: on a core of
its own it is how late the loop is for whatever comes.
"""

import asyncio
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PERIOD = 0.001
"""Seconds: the grain of uvloop's timers."""


def late(rows: Sequence[tuple[float, float]], share: float) -> float:
    """What `share` of all that comes waits at most, in seconds, where something comes every PERIOD:
    a stall delays all that comes in it, the first of it by the whole."""
    waits = [held - i * PERIOD for _, held in rows for i in range(max(1, math.ceil(held / PERIOD)))]
    return sorted(waits)[math.ceil(share * len(waits)) - 1]


def read(file: Path, until: float) -> list[tuple[float, float]]:
    """The rows up to a moment of the monotonic clock."""
    rows = [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
    return [(when, held) for when, held in rows if when <= until]


def main(file: Path, arguments: Sequence[str]) -> int:
    from warmproxy import service
    from warmproxy.cli import main

    serve = service.Service.serve
    rows: list[tuple[float, float]] = []

    async def watched(self: service.Service, *, takeover: bool = False) -> None:
        loop = asyncio.get_running_loop()

        def fire(used: float) -> None:
            now = time.thread_time()
            rows.append((time.monotonic(), now - used))
            loop.call_later(PERIOD, fire, now)

        class Opened(asyncio.Event):
            def set(self) -> None:
                super().set()
                loop.call_soon(fire, time.thread_time())

        self.opened = Opened()
        await serve(self, takeover=takeover)

    service.Service.serve = watched  # type: ignore[method-assign]
    try:
        return main(arguments)
    finally:
        file.write_text("".join(f"{when} {held}\n" for when, held in rows))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
