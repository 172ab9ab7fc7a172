"""May the TLS of this client's CONNECT end here? By its address, and by what came of it before."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from warmproxy.errors import RequestDenied
from warmproxy.origin import Origin
from warmproxy.policy.access import Access

_T = TypeVar("_T")

REMEMBERED = 4096
"""Visitors of either kind; who comes beyond that takes the place of the first."""

GIVES_UP = 3.0
"""Seconds after the handshake within which a client that never got through and closes without
having asked for anything is taken to have refused: one that verifies certificates by itself (Node)
or pins them ends its handshake first."""


AGENT = 200
"""Bytes of a User-Agent that tell a program from others."""


class Visitor(NamedTuple):
    """Whose CONNECT to where: as much of a program as tells it from others on the same machine."""

    address: str
    agent: bytes
    """How the User-Agent of its CONNECT begins, b"" where there is none."""
    origin: Origin


class Interception:
    """Decides, and remembers who did not take our certificate or speaks no HTTP/1.1.

    `origins`: the tcp ones whose owner asked for it. `clients`: whose TLS may end here.
    `falls_back`: who refused is left alone from then on.
    """

    def __init__(self, origins: Iterable[Origin], clients: Access, *, falls_back: bool) -> None:
        self.origins = frozenset(origins)
        self.falls_back = falls_back
        self._clients = clients
        self._refused: dict[Visitor, None] = {}
        self._came_in: dict[Visitor, None] = {}
        self._told: dict[tuple[str, Origin], None] = {}

    def takes(self, visitor: Visitor) -> bool:
        """Whether this CONNECT is for us to answer."""
        if visitor.origin not in self.origins or (self.falls_back and visitor in self._refused):
            return False
        try:
            self._clients.check_client(visitor.address)
        except RequestDenied:
            return False
        return True

    def came_in(self, visitor: Visitor) -> None:
        """It took our certificate, and asked for something."""
        _remember(self._came_in, visitor)

    def left(self, visitor: Visitor, seconds: float) -> bool:
        """It closed without a word so long after the handshake: whether that is a refusal."""
        return seconds < GIVES_UP and visitor not in self._came_in

    def refused(self, visitor: Visitor) -> bool:
        """It did not take our certificate, or speaks something else inside. True where nobody was
        told of this client's address and this origin yet."""
        _remember(self._refused, visitor)
        told = (visitor.address, visitor.origin)
        is_news = told not in self._told
        _remember(self._told, told)
        return is_news


def _remember(known: dict[_T, None], key: _T) -> None:
    if len(known) >= REMEMBERED and key not in known:
        del known[next(iter(known))]
    known[key] = None
