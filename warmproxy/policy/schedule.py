"""When a pool is held above its own size: windows that begin at times of a crontab."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from warmproxy.cron import Cron

AHEAD = timedelta(seconds=3)
"""A window is to begin warm: what name resolution, connecting and handshakes are given for it."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a window says of one moment."""

    until: datetime | None
    """It holds, until then; None: it does not."""
    again: datetime
    """When the answer is another, if nobody sets the clock."""


@dataclass(frozen=True, slots=True)
class Window:
    """`length` seconds from each start on, and the seconds AHEAD of it."""

    cron: Cron
    length: float

    def look(self, now: datetime) -> Look:
        """What holds at `now` (aware, in whatever zone). A window that began before the daemon did
        holds too."""
        now = now.astimezone(UTC)
        length = timedelta(seconds=self.length)
        first = self.cron.after(now - length)
        if first > now + AHEAD:
            return Look(None, first - AHEAD)
        # it may have begun again before it ended
        last = max(first, self.cron.by(now + AHEAD))
        return Look(last + length, min(last + length, self.cron.after(now + AHEAD) - AHEAD))
