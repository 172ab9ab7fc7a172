"""One run of a benchmark: daemons go through their cycles, in several lanes at a time.

    start, be ready -> quiet for 10-15 s -> burst ("untouched")
                    -> requests -> quiet for 10-15 s -> burst ("after traffic") -> stop

Whatever uses the processor (a start, the requests, a burst) waits for its turn: it never meets
another daemon's burst. A cycle that was disturbed is repeated.
"""

import argparse
import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rig.client import burst
from rig.daemon import Daemon
from rig.rounds import (
    QUIET,
    STATES,
    Cell,
    Round,
    Target,
    measure,
    spread_quiet,
    summarise,
)
from rig.stage import ORIGIN_IDLE, Stage

TRAFFIC, AT_ONCE = 50, 10
REPEATS = 0.3  # of all cycles, because of disturbance


class Bench:
    def __init__(
        self,
        stage: Stage,
        kinds: Iterable[str],
        bursts: Sequence[int],
        options: argparse.Namespace,
        settle: float = 0.0,
    ) -> None:
        self.stage = stage
        self.bursts = bursts
        self.options = options
        self.settle = settle  # seconds after a burst until its pool is full again
        self.turn = asyncio.Lock()
        self.rounds: list[Round] = []

        combinations = list(itertools.product(kinds, bursts))
        self.cycles = [c for _ in range(options.rounds) for c in combinations]
        self.repeats_left = 0 if options.quick else int(REPEATS * len(self.cycles))
        self.quiet_times = {
            (kind, n, state): spread_quiet(options.rounds)
            for (kind, n), state in itertools.product(combinations, STATES)
        }
        random.shuffle(self.cycles)

    # what a benchmark has to say

    def proxy(self, lane: int, kind: str) -> tuple[Daemon, Target]:
        """The proxy of one cycle, not yet started, and what is to be asked of it."""
        raise NotImplementedError

    def measure_direct(self, n: int) -> None:
        """A burst without a proxy, and the RTT."""
        raise NotImplementedError

    async def wait_for_moment(self, quiet: float, target: Target) -> None:
        """Until the burst."""
        await asyncio.sleep(quiet)

    async def ask(
        self, daemon: Daemon, target: Target, state: str, n: int, quiet_since: float
    ) -> list[Round]:
        """The burst."""
        return [measure(self.stage, target, state, n, quiet_since, daemon, self.bursts)]

    # what they share

    async def run(self) -> None:
        direct = asyncio.create_task(self.go_direct())
        lanes = min(self.options.lanes, len(self.cycles))
        await asyncio.gather(*(self.lane(number) for number in range(lanes)))
        direct.cancel()
        await asyncio.gather(direct, return_exceptions=True)

    async def lane(self, number: int) -> None:
        while self.cycles:
            kind, n = self.cycles.pop()
            if not await self.cycle(number, kind, n) and self.repeats_left:
                self.repeats_left -= 1
                self.cycles.insert(0, (kind, n))

    async def cycle(self, lane: int, kind: str, n: int) -> bool:
        """Both of a cycle's rounds; false if something disturbed one of them."""
        undisturbed = True
        daemon, target = self.proxy(lane, kind)
        try:
            async with self.turn:
                await daemon.start()
            for state in STATES:
                if state != STATES[0]:
                    async with self.turn:
                        for _ in range(TRAFFIC // AT_ONCE):
                            burst(target.address, target.exchange, AT_ONCE)
                quiet_since = time.monotonic()
                quiet = self.quiet_times[kind, n, state]
                await self.wait_for_moment(
                    quiet.pop() if quiet else QUIET + ORIGIN_IDLE * random.random(), target
                )
                async with self.turn:
                    done = await self.ask(daemon, target, state, n, quiet_since)
                    await asyncio.sleep(self.settle)
                self.rounds += done
                undisturbed &= not any(each.disturbed for each in done)
            async with self.turn:
                daemon.stop()
        finally:
            daemon.stop()
        return undisturbed

    async def go_direct(self) -> None:
        """All through the run."""
        for n in itertools.cycle(self.bursts):
            async with self.turn:
                self.measure_direct(n)
            await asyncio.sleep(self.options.direct_every)

    def cells(self, lines: Iterable[tuple[str, str]]) -> dict[tuple[str, str, int], Cell]:
        """For each line of the table, (kind, state), and each size of burst."""
        by_cell: defaultdict[tuple[str, str, int], list[Round]] = defaultdict(list)
        for r in self.rounds:
            by_cell[r.kind, r.state, r.n].append(r)
        rtt, enough = self.stage.measured_rtt, self.options.enough
        keys = [(*line, n) for line in lines for n in self.bursts]
        return {key: summarise(key, by_cell[key], rtt, enough) for key in keys}
