"""May a request go to this origin, and a dial to this address?

Asked twice: when a request comes, of its host and port, and again of each address that the host's
name resolved to, so that a name cannot lead where its address may not (DNS rebinding). What the
owner configured as an upstream is the owner's word and passes all but the last rule: never to our
own listeners.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from warmproxy.errors import AddressDenied, DialLoop, RequestDenied
from warmproxy.origin import Origin, normalise_host

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Listener:
    """One of our own listening addresses; `host` may be 0.0.0.0 or ::."""

    host: str
    port: int

    @property
    def is_everywhere(self) -> bool:
        return ip_address(self.host).is_unspecified


class Destinations:
    """`connect_ports`: where CONNECT may go, empty for anywhere. `allow`: names, *.names and
    networks, empty for anywhere. `deny`: networks. `configured`: the owner's upstreams."""

    def __init__(
        self,
        *,
        connect_ports: Iterable[int],
        allow: Iterable[str],
        deny: Iterable[str],
        configured: Iterable[Origin],
        listeners: Iterable[Listener] = (),
    ) -> None:
        self._connect_ports = frozenset(connect_ports)
        self._deny = tuple(ip_network(text, strict=False) for text in deny)
        self._configured = frozenset((o.host, o.port) for o in configured)
        self._listeners = tuple(listeners)
        self._names: set[str] = set()
        self._suffixes: list[str] = []
        networks = []
        for text in allow:
            try:
                networks.append(ip_network(text, strict=False))
            except ValueError:
                if text.startswith("*."):
                    self._suffixes.append("." + normalise_host(text[2:]))
                else:
                    self._names.add(normalise_host(text))
        self._networks = tuple(networks)
        self._allows_all = not (self._names or self._suffixes or self._networks)

    def check_origin(self, origin: Origin) -> None:
        """Raises RequestDenied where host or port rule the origin out before any look-up."""
        if (origin.host, origin.port) in self._configured:
            return
        if (
            origin.scheme == "tcp"
            and self._connect_ports
            and origin.port not in self._connect_ports
        ):
            ports = ", ".join(map(str, sorted(self._connect_ports)))
            raise RequestDenied(
                f"CONNECT to port {origin.port} is not allowed, only to {ports} (connect_ports)"
            )
        # where networks are allowed, a name may yet resolve into one of them
        if not self._allows_all and not self._networks and not self._named(origin.host):
            raise RequestDenied(f"{origin.host} is not among allow_upstreams")

    def check_address(self, origin: Origin, address: str) -> None:
        """Raises AddressDenied or DialLoop where a dial to the address is ruled out."""
        ip = reached(address)
        for listener in self._listeners:
            if origin.port == listener.port and (
                ip == ip_address(listener.host) or (listener.is_everywhere and ip.is_loopback)
            ):
                raise DialLoop(f"{origin.authority} is this very proxy")
        if (origin.host, origin.port) in self._configured:
            return
        if any(ip in network for network in self._deny):
            raise AddressDenied(f"{origin.host} is at {ip}, which is among deny_upstreams")
        if self._allows_all or self._named(origin.host):
            return
        if not any(ip in network for network in self._networks):
            raise AddressDenied(f"{origin.host} is at {ip}, which is not among allow_upstreams")

    def check_connected(self, origin: Origin, local: str, peer: str) -> None:
        """Raises DialLoop where a connection that stands has led back to a listener of ours that
        takes connections at every address of this machine."""
        if reached(local) == reached(peer) and any(
            listener.is_everywhere and listener.port == origin.port for listener in self._listeners
        ):
            raise DialLoop(f"{origin.authority} is this very proxy")

    def _named(self, host: str) -> bool:
        return host in self._names or any(host.endswith(suffix) for suffix in self._suffixes)


def reached(address: str) -> Address:
    """The address that a dial reaches: without a zone, IPv4 that is written as IPv6 as itself, and
    loopback for 0.0.0.0 and ::, which the system connects there."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_unspecified:
        return ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return ip
