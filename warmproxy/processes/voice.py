"""Speaks for all processes on the admin pages: asks each, and says what they say as one."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from warmproxy.admin.pages import TEXT, Page, Said, View, granted, respond
from warmproxy.admin.wish import Wish, parse
from warmproxy.errors import ShuttingDown, WarmproxyError
from warmproxy.metrics import Processes, render
from warmproxy.observe import Tally
from warmproxy.processes.child import Child
from warmproxy.processes.merged import (
    merge_abouts,
    merge_pools,
    merge_samples,
    merge_tallies,
)
from warmproxy.reload import Reloads
from warmproxy.sample import Sample


class Place(Protocol):
    """Where one of the processes serves."""

    number: int
    child: Child | None
    restarts: int


_NEEDS = {
    "/metrics": ("sample",),
    "/pools": ("pools", "about"),
    "/readyz": ("ready",),
    "/healthz": (),
}
"""What is asked for a page; all of it for any other."""


class Voice:
    """`places` are of those that serve, `reloads` the parent's; `pids` gives the ids of all
    processes of the daemon."""

    def __init__(
        self, places: Sequence[Place], reloads: Reloads, pids: Callable[[], list[int]]
    ) -> None:
        self._reloads = reloads
        self.draining = False
        self._places = places
        self._leaving: set[Child] = set()
        self._gone: dict[str, Tally] = {}
        """What those have counted that have ended."""
        self._silent: list[int] = []
        self._processes = Processes(pids)

    def is_leaving(self, child: Child) -> None:
        """It no longer has a place, and what it does until it has ended counts all the same."""
        self._leaving.add(child)

    def has_ended(self, child: Child) -> None:
        """What it has counted stays in the sums: counters do not fall."""
        self._leaving.discard(child)
        if child.last is not None:
            self._gone = merge_tallies([self._gone, child.last.tallies])
            child.last = None

    async def respond(self, target: str, accept: str) -> Page:
        """The page for a GET of `target`."""
        path = target.partition("?")[0]
        told, silent = await self._ask(*_NEEDS.get(path, ("sample", "pools", "ready", "about")))
        if path == "/healthz" and not told:
            return Page(503, TEXT, b"no process answers\n")
        self._silent = silent
        view = View(
            pools=lambda: merge_pools(each["pools"] for each in told.values()),
            ready=lambda: self._ready(told),
            draining=lambda: self.draining,
            metrics=lambda accept: render(self._sample(), accept, self._processes),
            grant=_nothing,
            about=lambda: self._about([each["about"] for each in told.values()]),
            silent=silent,
        )
        return respond(view, target, accept)

    async def submit(self, target: str, client: str) -> Page:
        """The page for a POST to /warm: each process holds its share. Raises WarmproxyError."""
        if self.draining:
            raise ShuttingDown("this proxy is shutting down")
        shares = parse(target.partition("?")[2], client).shares(len(self._places))
        replies = await asyncio.gather(*map(_grant, self._places, shares))
        pools = [reply for reply in replies if isinstance(reply, list)]
        refused = [reply for reply in replies if isinstance(reply, WarmproxyError)]
        if refused:
            first = refused[0]
            if pools:
                first.reason += "; the other processes hold their shares"
            raise first
        return granted(merge_pools(pools))

    async def _ask(self, *names: str) -> tuple[dict[Child, dict[str, Any]], list[int]]:
        """What each tells, and the numbers of those who do not."""
        serving = [place.child for place in self._places if place.child is not None]
        children = [*serving, *self._leaving]
        replies = await asyncio.gather(
            *(child.ask(*names) for child in children), return_exceptions=True
        )
        told = {c: r for c, r in zip(children, replies, strict=True) if isinstance(r, dict)}
        return told, [place.number for place in self._places if place.child not in told]

    def _ready(self, told: dict[Child, dict[str, Any]]) -> list[tuple[str, bool, str]]:
        said = []
        for place in self._places:
            if place.child in told:
                for origin, is_ready, why in told[place.child]["ready"]:
                    said.append((origin, is_ready, f"{why}, process {place.number}"))
            else:
                said.append((f"process {place.number}", False, "does not answer"))
        return said

    def _about(self, abouts: list[Said]) -> Said:
        said = merge_abouts(abouts, self._gone)
        is_good = self._reloads.is_good and said["reload_is_good"]
        return said | {"reload_is_good": is_good, "draining": self.draining}

    def _sample(self) -> Sample:
        children = [place.child for place in self._places if place.child is not None]
        samples = [c.last for c in (*children, *self._leaving) if c.last is not None]
        processes = {
            str(place.number): (place.number not in self._silent, place.restarts)
            for place in self._places
        }
        merged = merge_samples(samples, self._gone, processes)
        is_good = self._reloads.is_good and merged.reload_is_good
        return replace(merged, reload_is_good=is_good, reload_good_at=self._reloads.good_at)


async def _grant(place: Place, share: tuple[Any, ...]) -> list[Said] | WarmproxyError:
    try:
        if place.child is None:
            raise ConnectionResetError
        found: list[Said] = (await place.child.ask("grant", argument=share))["grant"]
        return found
    except WarmproxyError as error:
        return error
    except (TimeoutError, ConnectionError):
        return WarmproxyError(f"process {place.number} does not answer", status=503)


def _nothing(wish: Wish) -> list[Said]:
    raise AssertionError("submit asks the processes")
