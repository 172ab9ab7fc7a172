"""Do idle connections keep an origin from answering others?

A server that gives each connection a worker when it accepts it (gunicorn's sync worker, WEBrick),
or shakes hands where it accepts (a Python server whose listening socket speaks TLS), answers
nobody while our idle connections are all that its workers have. The evidence is causal: a request
on a new connection waits, the idle ones that are older are closed, and the answer comes at once.
Twice, after waits that differ: an origin that is only slow takes its own time, whenever we close.
"""

from math import inf

OVERDUE = 1.0
"""Seconds for a first byte before anything is suspected, and at least ..."""
TIMES = 2.0
"""... so many times what this origin takes usually."""
DECAY = 0.9
"""Per answer: how fast a slow one is forgotten."""

AT_ONCE = 0.5
"""Seconds, beside two round trips, in which a worker that has come free answers (gunicorn: 3 ms,
beside what the request itself takes); and by which two waits differ."""

PAUSE = 300.0
"""Seconds after a try that freed nobody; doubled each time, up to LONGEST."""
LONGEST = 6 * 3600.0


class Trial:
    """Of one host and port, whose connections share the same workers. Times are seconds."""

    __slots__ = (
        "_before",
        "_began",
        "_convicted",
        "_ends",
        "_failures",
        "_freed",
        "_held",
        "_is_open",
        "_not_before",
        "_usual",
        "harmless",
    )

    def __init__(self) -> None:
        self.harmless = 0
        """So many idle connections did not keep a newer one from its answer."""
        self._usual = 0.0
        """A first byte takes this long, or less."""
        self._convicted = False
        """Found guilty once: from then on one try is enough."""
        self._is_open = False
        """A try has neither freed a request yet nor failed to."""
        self._held = 0
        """How many were closed for it."""
        self._began = -inf
        self._ends = -inf
        self._freed = 0.0
        """The longest wait of those that the last try freed; 0: it freed nobody."""
        self._before = 0.0
        """The same of the try before it."""
        self._failures = 0
        self._not_before = -inf

    def tries(self, waited: float, older: int, rtt: float, now: float) -> bool:
        """A request has waited for its first byte while `older` idle connections were held that
        are older than its own. True: close them now, and tell what is `answered`."""
        self._conclude(now)
        overdue = max(OVERDUE, TIMES * self._usual, self._freed + AT_ONCE)
        if waited < overdue or older <= self.harmless or now < self._not_before:
            return False
        self._is_open, self._held = True, older
        self._before, self._freed = self._freed, 0.0
        self._began = now
        self._ends = self._not_before = now + AT_ONCE + 2 * rtt
        return True

    def answered(self, waited: float, older: int, now: float) -> bool:
        """A first byte came, `waited` seconds after the request was given a connection that was
        new, while `older` idle ones were held. True: idle connections had kept it from coming."""
        if now <= self._ends and now - waited <= self._began - AT_ONCE:
            return self._was_freed(waited)
        self._conclude(now)
        self._usual = max(waited, self._usual * DECAY)
        if waited < OVERDUE and older > self.harmless:
            self.harmless = older
            if older >= self._held:
                self._freed, self._convicted = 0.0, False
        return False

    def _was_freed(self, waited: float) -> bool:
        """It was waiting when the older ones were closed, and its answer came at once."""
        self._is_open = False
        self._freed = max(self._freed, waited)
        guilty = self._before > 0.0 and abs(waited - self._before) >= AT_ONCE
        if guilty or self._convicted:
            self._convicted, self.harmless = True, 0
            self._freed, self._ends = 0.0, -inf
            return True
        return False

    def _conclude(self, now: float) -> None:
        """A try that has freed nobody in its time has failed: the origin is slow."""
        if self._is_open and now > self._ends:
            self._is_open = False
            self._not_before = now + min(PAUSE * 2**self._failures, LONGEST)
            self._failures += 1
