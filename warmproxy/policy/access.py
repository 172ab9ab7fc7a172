"""May this client use the proxy? By networks and by Basic credentials, where each is set."""

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from warmproxy.errors import CredentialsRequired, RequestDenied

LOOPBACK = ("127.0.0.0/8", "::1/128")
EVERYWHERE = ("0.0.0.0/0", "::/0")

Network = IPv4Network | IPv6Network


class Access:
    """Decides by the client's address and its Proxy-Authorization.

    `networks`: CIDR texts; empty means loopback only, or everywhere where there are credentials.
    `credentials`: user -> password; empty means that none are asked for.
    """

    def __init__(self, networks: Iterable[str], credentials: Mapping[str, str]) -> None:
        texts = tuple(networks)
        if not texts and not credentials:
            texts = LOOPBACK
        self._networks: tuple[Network, ...] = tuple(ip_network(t, strict=False) for t in texts)
        # compared as whole user:password strings, each in constant time
        self._credentials = tuple(f"{u}:{p}".encode() for u, p in credentials.items())
        self._admits = lru_cache(maxsize=4096)(self._in_networks)

    def check_client(self, address: str) -> None:
        """Raises RequestDenied where the client's address is in none of the networks."""
        if self._networks and not self._admits(address):
            raise RequestDenied(
                f"clients from {address} may not use this proxy: add their network to allow_clients"
            )

    def check_credentials(self, authorization: bytes | None) -> None:
        """Raises CredentialsRequired unless the field's value is one of ours."""
        if not self._credentials:
            return
        given = _basic(authorization)
        valid = False
        for known in self._credentials:
            valid |= hmac.compare_digest(known, given)
        if not valid:
            raise CredentialsRequired("this proxy asks for a user name and password (Basic)")

    def _in_networks(self, address: str) -> bool:
        ip = ip_address(address.partition("%")[0])
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._networks)


def is_loopback(address: str) -> bool:
    """Whether a client's address, as the system writes it, is on this machine's loopback."""
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


def _basic(authorization: bytes | None) -> bytes:
    """user:password of a Basic value (RFC 7617), b"" where there is none."""
    scheme, _, token = (authorization or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(token.strip(), validate=True)
    except binascii.Error:
        return b""
