"""Keeps the way to an upstream in use: sends a request of our own where nobody waits for one.

A new connection that goes to its shelf is primed first, and each idle one again when it has been
idle for `prime_every`: the oldest first, one at a time. While it is primed it is off its shelf, so
that no request gets it; one that waits has a connection dialled. (The pool never holds one idle
beside a request that could take it.) Nothing of this counts as a client's request.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from warmproxy.net.housekeeper import Housekeeper, Lease, Pool
from warmproxy.net.upstream import UpstreamConnection
from warmproxy.observe import Observer
from warmproxy.origin import Origin
from warmproxy.policy.priming import Priming
from warmproxy.protocol.messages import RequestHead
from warmproxy.protocol.prime import PrimeAnswer, write_prime


class Prime:
    """One request and its answer: the sink of a connection until it is over."""

    def __init__(
        self, lease: Lease, request: RequestHead, answer: PrimeAnswer, timeout: float
    ) -> None:
        self.lease = lease
        self.answer = answer
        self._request = request
        self._timeout = timeout
        self._when_over: Callable[[Prime], None]
        self._timer: asyncio.TimerHandle

    def begin(self, loop: asyncio.AbstractEventLoop, when_over: Callable[["Prime"], None]) -> None:
        self._when_over = when_over
        self._timer = loop.call_later(self._timeout, self._time_out)
        self.lease.connection.attach(self)
        self.lease.connection.transport.write(write_prime(self._request))

    def cancel(self) -> None:
        """The daemon stops."""
        self._timer.cancel()
        self.lease.release(reusable=False)

    def upstream_data(self, data: bytes) -> None:
        self.answer.feed(data)
        if self.answer.result:
            self._over()

    def upstream_ended(self, *, reset: bool) -> None:
        self.answer.ended()
        self._over()

    def upstream_writable(self, writable: bool) -> None:
        pass  # there is no more to write

    def _time_out(self) -> None:
        self.answer.timed_out(self._timeout)
        self._over()

    def _over(self) -> None:
        self._timer.cancel()
        self._when_over(self)


@dataclass(slots=True)
class _Primed:
    """One origin."""

    pool: Pool
    request: RequestHead
    every: float
    """Seconds; 0 for new connections only."""
    priming: Priming = field(default_factory=Priming)
    timer: asyncio.TimerHandle | None = None
    told: set[str] = field(default_factory=set)
    """The bad results that the log has."""


class Primer:
    """See the module. `requests`: what is sent, and how often, for each origin that is primed."""

    def __init__(
        self,
        requests: Mapping[Origin, tuple[RequestHead, float]],
        housekeeper: Housekeeper,
        observer: Observer,
        loop: asyncio.AbstractEventLoop,
        max_head: int,
    ) -> None:
        self._housekeeper = housekeeper
        self._observer = observer
        self._loop = loop
        self._under_way: set[Prime] = set()
        self._primed: dict[Origin, _Primed] = {}
        housekeeper.when_shelved = self._new
        self.adopt(requests, max_head)

    def adopt(self, requests: Mapping[Origin, tuple[RequestHead, float]], max_head: int) -> None:
        """From now on this is sent. What was found out about an origin with an earlier request
        is asked anew; a request under way ends as it began."""
        self._max_head = max_head
        self._forget_timers()
        self._primed = {}
        for origin, (request, every) in requests.items():
            pool = self._housekeeper.registry.find(origin)
            if pool is not None:
                self._primed[origin] = primed = _Primed(pool, request, every)
                if every:
                    self._look_at(self._loop.time() + every, primed)

    def stop(self) -> None:
        """What is under way ends here. After the housekeeper's stop, and for good."""
        self._forget_timers()
        for prime in self._under_way:
            prime.cancel()
        self._under_way.clear()

    def _forget_timers(self) -> None:
        for primed in self._primed.values():
            if primed.timer is not None:
                primed.timer.cancel()

    def _new(self, conn: UpstreamConnection) -> None:
        """A connection was dialled that nobody waits for."""
        primed = self._primed.get(conn.origin)
        if primed is not None and primed.priming.wanted(self._loop.time()):
            self._begin(primed, conn, partial(self._over, primed))

    def _look_at(self, moment: float, primed: _Primed) -> None:
        primed.timer = self._loop.call_at(moment, self._look, primed)

    def _look(self, primed: _Primed) -> None:
        """Prime the connection that has been idle for too long, or come back when one will be."""
        now = self._loop.time()
        look_at = now + primed.every
        if primed.priming.wanted(now) and (found := primed.pool.idle_longest()) is not None:
            conn, since = found
            # a millisecond: the loop's clock (uvloop) knows no less
            if since + primed.every <= now + 0.001:
                self._begin(primed, conn, partial(self._over_and_next, primed))
                return
            look_at = since + primed.every
        self._look_at(look_at, primed)

    def _begin(
        self, primed: _Primed, conn: UpstreamConnection, when_over: Callable[[Prime], None]
    ) -> None:
        lease = self._housekeeper.take(primed.pool, conn)
        answer = PrimeAnswer(primed.request.method, self._max_head)
        prime = Prime(lease, primed.request, answer, lease.settings.dial_timeout)
        self._under_way.add(prime)
        prime.begin(self._loop, when_over)

    def _over_and_next(self, primed: _Primed, prime: Prime) -> None:
        self._over(primed, prime)
        if self._primed.get(primed.pool.origin) is primed:  # no reload meanwhile
            self._look_at(self._loop.time(), primed)

    def _over(self, primed: _Primed, prime: Prime) -> None:
        self._under_way.discard(prime)
        answer, lease, pool = prime.answer, prime.lease, primed.pool
        pool.tally.primes[answer.result] += 1
        lease.release(reusable=answer.survived, keep_alive=answer.keep_alive_timeout)
        self._tell(primed, answer)

    def _tell(self, primed: _Primed, answer: PrimeAnswer) -> None:
        """The log has each bad end once; and when it is given up."""
        origin = primed.pool.origin
        if answer.survived:
            primed.priming.survived()
            bad = str(answer.status) if answer.status >= 400 else ""
        else:
            bad = answer.result
        if bad and bad not in primed.told:
            primed.told.add(bad)
            self._observer.prime_failed(
                origin, answer.why or f"the answer is {bad}", answer.survived
            )
        if not answer.survived and primed.priming.lost(now := self._loop.time()):
            self._observer.prime_given_up(origin, answer.why, primed.priming.not_before - now)
