"""Keeps clients waiting before the system refuses descriptors, and lets them in again."""

import asyncio

from warmproxy import log
from warmproxy.net.client import Clients
from warmproxy.net.housekeeper import Housekeeper
from warmproxy.net.listener import Doors

CALM = 1.0
"""Seconds without a pause after which the crowd is over."""


class Crowd:
    """Pauses the doors at max_clients, or where descriptors run out: `descriptors` is how many
    clients and upstreams together may have.

    Where descriptors run out, half of what is idle goes, and is not dialled again before there is
    room for it: clients that wait come first.
    """

    def __init__(
        self,
        doors: Doors,
        clients: Clients,
        housekeeper: Housekeeper,
        loop: asyncio.AbstractEventLoop,
        descriptors: int,
    ) -> None:
        self._doors = doors
        self._clients = clients
        self._housekeeper = housekeeper
        self._loop = loop
        self._descriptors = descriptors
        self._is_told = False
        """accept_paused was said, accept_resumed was not yet."""
        self._moved_at = 0.0
        """When the doors were opened or shut last."""
        self._shed_all = 0
        """Idle connections that were closed since it was said."""
        self._shed = 0
        """The same since descriptors ran out."""
        self._opening: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """Asked whenever a client comes or goes, and about once a second."""
        clients, upstreams = len(self._clients.open), self._housekeeper.open
        scarce = clients + upstreams >= self._descriptors
        full = scarce or clients >= self._clients.settings.max_clients
        if full and not self._doors.paused:
            self._pause(clients, upstreams, scarce=scarce)
        elif self._doors.paused and not self._clients.draining and self._has_room_again():
            self.open_again()
        retires = self._clients.draining
        if self._housekeeper.scarce and not retires and self._has_room_again(for_more=self._shed):
            self._housekeeper.scarce = False
            self._shed = 0
            self._housekeeper.start()
        # At its limit a daemon pauses with every client that comes: two lines tell of all that.
        calm = self._loop.time() - self._moved_at >= CALM
        if self._is_told and calm and not self._doors.paused:
            self._is_told = False
            log.event("accept_resumed", clients=clients, upstreams=upstreams, shed=self._shed_all)
            self._shed_all = 0

    def open_again(self) -> None:
        """Accept; where that does not work the next look tries again."""
        self._doors.paused = False  # opening takes a turn of the loop
        self._moved_at = self._loop.time()
        task = self._loop.create_task(self._doors.open(), name="accept again")
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _pause(self, clients: int, upstreams: int, *, scarce: bool) -> None:
        self._doors.pause()
        shed = self._housekeeper.shed(upstreams // 2) if scarce else 0
        self._housekeeper.scarce |= scarce
        self._shed += shed
        self._shed_all += shed
        self._moved_at = self._loop.time()
        if not self._is_told:
            self._is_told = True
            log.event(
                "accept_paused",
                level="warning",
                clients=clients,
                upstreams=upstreams,
                max_clients=self._clients.settings.max_clients,
                descriptors=self._descriptors,
                shed=shed,
            )

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._doors.pause()
            log.event("accept_failed", level="warning", reason=str(error))

    def _has_room_again(self, *, for_more: int = 0) -> bool:
        """A tenth is free, beside `for_more` connections: nothing flutters at its limit."""
        clients, upstreams = len(self._clients.open), self._housekeeper.open
        return (
            clients <= self._clients.settings.max_clients * 0.9
            and clients + upstreams + for_more <= self._descriptors * 0.9
        )
