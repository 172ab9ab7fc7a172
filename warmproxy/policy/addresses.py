"""At which addresses of a name connections may stay, by what its look-ups have said.

An address that a look-up no longer names has gone. But many names have more addresses than one
answer holds, or give them out in turns: to follow each answer would replace the whole pool with
each. So a name whose addresses keep going is believed later and later.
"""

from collections.abc import Iterable

PATIENCE = 60.0
"""Seconds that an address is missed after the first one went; doubled each time, up to LONGEST."""
LONGEST = 3600.0
CALM = 600.0
"""Seconds in which the answers were the same, after which the next change is believed at once."""


class Addresses:
    """Of one name; times are seconds of one monotonic clock."""

    __slots__ = ("_patience", "_seen", "_varied_at")

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        """Address -> when a look-up last named it."""
        self._patience = 0.0
        self._varied_at = 0.0

    def answered(self, addresses: Iterable[str], now: float) -> frozenset[str]:
        """A look-up named these; the addresses at which connections may stay."""
        self._seen |= dict.fromkeys(addresses, now)
        missed = [address for address, at in self._seen.items() if at < now]
        gone = [address for address in missed if now - self._seen[address] > self._patience]
        for address in gone:
            del self._seen[address]
        if missed:
            self._varied_at = now
        elif now - self._varied_at >= CALM:
            self._patience = 0.0
        if gone:
            self._patience = min(LONGEST, max(PATIENCE, 2 * self._patience))
        return frozenset(self._seen)
