"""Was a measurement disturbed by other work on the machine? The kernel knows.

It counts for each process how long it was ready to run and had to wait for a processor. What the
processes of one measurement take from each other on a shared core belongs to the measurement;
a wait beyond that is somebody else's doing, and no property of what is measured.
"""

from collections.abc import Sequence
from pathlib import Path

Core = Sequence[int]  # the processes of the measurement that share it


class Watch:
    """From its making to `disturbance()`: the longest wait that the processes did not cause."""

    def __init__(self, cores: Sequence[Core]) -> None:
        self.cores = cores
        self.before = self._read()

    def disturbance(self) -> float:
        """In seconds."""
        after = self._read()
        worst = 0.0
        for core in self.cores:
            ran = {pid: after[pid][0] - self.before[pid][0] for pid in core}
            for pid in core:
                waited = after[pid][1] - self.before[pid][1]
                for_us = sum(ran.values()) - ran[pid]
                worst = max(worst, waited - for_us)
        return worst

    def ran(self) -> dict[int, float]:
        """Seconds of processor time that each of the processes took."""
        after = self._read()
        return {pid: after[pid][0] - before[0] for pid, before in self.before.items()}

    def _read(self) -> dict[int, tuple[float, float]]:
        return {pid: _ran_and_waited(pid) for core in self.cores for pid in core}


def _ran_and_waited(pid: int) -> tuple[float, float]:
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except OSError:  # a kernel that does not count, or a process that has ended
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9
