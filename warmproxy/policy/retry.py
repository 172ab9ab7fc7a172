"""May this request be sent a second time, and which connection should it get?

RFC 9110, 9.2.2: a proxy must not repeat a request that is not idempotent by itself. One that is
may be repeated once, when a *used* connection died before the first byte of its response: that is
the race between the upstream's idle timeout and our write. A fresh connection that dies without
an answer says something about the upstream, not about the race, and is reported.
"""

from enum import Enum

# RFC 9110, 9.2.2
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


class Prefer(Enum):
    """Which shelf an acquire takes from first."""

    USED = "used"
    """Used, else fresh: requests that may be repeated."""
    FRESH = "fresh"
    """Fresh, else used: requests that must not be sent twice."""
    FRESH_ONLY = "fresh-only"
    """Fresh, else a new dial: tunnels, and the second try of a request."""


def preference(method: bytes) -> Prefer:
    """What a request's first try takes."""
    return Prefer.USED if method in IDEMPOTENT else Prefer.FRESH


def is_idempotent(method: bytes, *, named: bool) -> bool:
    """Whether applying the request twice does no more than applying it once. `named`: it has an
    Idempotency-Key, and the upstream's settings say that it honours those."""
    return named or method in IDEMPOTENT


def may_repeat(
    *, idempotent: bool, was_used: bool, answered: bool, replayable: bool, tries: int
) -> bool:
    """Whether a request whose connection died may be sent once more.

    `was_used`: the connection had served a request before. `answered`: a byte of a response
    (1xx included) came. `replayable`: all that was sent is still at hand. `tries`: how often it
    was sent so far.
    """
    return idempotent and was_used and not answered and replayable and tries == 1
