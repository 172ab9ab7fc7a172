"""What sockets are interchangeable by: the key of every pool."""

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Literal, get_args
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

Scheme = Literal["http", "https", "tcp"]
SCHEMES: tuple[str, ...] = get_args(Scheme)

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Origin:
    """One place to connect to, made by `origin()` only: there is one object for each, so that
    pools are found by identity.

    `scheme` says what a warm connection of it is: `http` a plain socket for requests, `https` a
    socket with TLS finished, `tcp` a connected socket for CONNECT. `host` is normalised: lower
    case, an IPv6 address without brackets. `tls` names the TLS profile, None where there is none.
    """

    scheme: Scheme
    host: str
    port: int
    tls: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """host:port, the port always there, IPv6 addresses in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


_ORIGINS: WeakValueDictionary[tuple[str, str, int, str | None], Origin] = WeakValueDictionary()


def origin(scheme: Scheme, host: str, port: int, tls: str | None = None) -> Origin:
    """The Origin for a host that is already normalised (see `normalise_host`)."""
    key = (scheme, host, port, tls)
    found = _ORIGINS.get(key)
    if found is None:
        found = _ORIGINS[key] = Origin(scheme, host, port, tls)
    return found


def secured(tcp: Origin, profile: str) -> Origin:
    """The origin of finished TLS connections to the place of a tcp origin."""
    return origin("https", tcp.host, tcp.port, profile)


def unsecured(https: Origin) -> Origin:
    """The origin of the raw TCP connections that a finished TLS connection begins as."""
    return origin("tcp", https.host, https.port)


def normalise_host(host: str) -> str:
    """A host as pools know it: lower case, IDNA in ASCII, IPv6 compressed and unbracketed.

    Raises ValueError where no such host can exist.
    """
    if host.startswith("["):
        if not host.endswith("]"):
            raise ValueError(f"unclosed bracket in host {host!r}")
        return IPv6Address(host[1:-1]).compressed
    if ":" in host:
        return IPv6Address(host).compressed
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    host = host.lower()
    if not host or len(host) > 253 or not all(c.isalnum() or c in "-._" for c in host):
        raise ValueError(f"not a host name: {host!r}")
    return host


def origin_of_url(url: str) -> Origin:
    """The pool that a configured URL means: `https://h` is raw TCP for tunnels to h:443.

    Raises ValueError, with a sentence for the user, where the URL is not just scheme and host.
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError(f"{url!r} must begin with http:// or https://")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url!r} must be scheme://host[:port] with nothing behind it")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials do not belong into an upstream's url")
    if not parts.hostname:
        raise ValueError(f"{url!r} names no host")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{url!r} has no valid port (1-65535)") from None
    if port == 0:
        raise ValueError(f"{url!r} has no valid port (1-65535)")
    host = normalise_host(parts.hostname)
    scheme: Scheme = "http" if parts.scheme == "http" else "tcp"
    return origin(scheme, host, port or DEFAULT_PORTS[parts.scheme])
