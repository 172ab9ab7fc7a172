"""The listening sockets of all processes, which the parent binds and keeps."""

import socket
from collections.abc import Mapping

from warmproxy import wiring
from warmproxy.errors import StartError
from warmproxy.net.listener import Address, listen
from warmproxy.settings import Settings
from warmproxy.wiring import Role, Sockets


class AllDoors:
    """At each address there are as many sockets as processes, and the kernel spreads connections
    over them by a hash of both addresses and ports (SO_REUSEPORT). A socket from systemd, which
    opens one only, is shared by all, and so is the admin listener's, where the parent answers.
    """

    def __init__(self, count: int, inherited: Mapping[Address, socket.socket]) -> None:
        self._shared = frozenset(inherited)
        self._have = dict(inherited)
        """Those of the first process, and all that were not closed yet."""
        self.first = Sockets({}, {}, {})
        """Those of the first process; the admin listener is the parent's."""
        self._further: list[Role] = [{} for _ in range(count - 1)]

    def open(self, settings: Settings) -> bool:
        """Bind what is missing, and close nothing yet; whether these settings have other addresses
        than those before. Raises StartError, and then leaves all as it was."""
        before = self.first.every.keys()
        first = wiring.bind(settings, self._have, in_groups=True)
        new: list[Role] = []
        try:
            for has in self._further:
                new.append({})
                for at, sock in (first.proxy | first.gateways).items():
                    if at not in has and at not in self._shared:
                        new[-1][at] = _join(sock)
        except StartError:
            for at in first.every.keys() - self._have.keys():
                first.every[at].close()
            for sock in (sock for role in new for sock in role.values()):
                sock.close()
            raise
        for has, more in zip(self._further, new, strict=True):
            has |= more
        self.first = first
        self._have |= first.every
        return first.every.keys() != before

    def close_old(self) -> None:
        """Close those that the settings do not have."""
        for role in (self._have, *self._further):
            for at in role.keys() - self.first.every.keys():
                role.pop(at).close()

    def close(self) -> None:
        """All but the admin listener: whoever connects now is refused, once the processes have
        closed theirs."""
        for role in (self.first.proxy, self.first.gateways, *self._further):
            for sock in role.values():
                sock.close()

    def of(self, number: int) -> dict[Address, socket.socket]:
        """The sockets of process `number`, from 0."""
        return self.first.every if number == 0 else self.first.every | self._own(number)

    def _own(self, number: int) -> dict[Address, socket.socket]:
        role = self._further[number - 1]
        return {at: sock for at, sock in role.items() if at in self.first.every}


def _join(first: socket.socket) -> socket.socket:
    host, port = first.getsockname()[:2]
    sock = listen(host, port, purpose="one for each process", group="further")
    assert sock is not None, "it is not optional"
    return sock
