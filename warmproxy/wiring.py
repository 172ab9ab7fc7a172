"""Settings -> the parts that the service puts together."""

import os
import resource
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from warmproxy import log
from warmproxy.errors import StartError
from warmproxy.net.listener import listen
from warmproxy.origin import Origin, origin_of_url, secured
from warmproxy.policy.access import LOOPBACK, Access
from warmproxy.policy.destinations import Destinations, Listener
from warmproxy.protocol.exchange import Terms, Upgrade
from warmproxy.protocol.messages import RequestHead
from warmproxy.protocol.prime import prime_request
from warmproxy.protocol.target import Forward
from warmproxy.settings import Settings, TlsProfile, parse_address


@dataclass(frozen=True, slots=True)
class Sockets:
    """Bound and listening; nothing is accepted yet."""

    proxy: list[socket.socket]
    gateways: list[socket.socket]
    """In the order of settings.gateway."""
    admin: socket.socket | None


def bind(settings: Settings) -> Sockets:
    """All listening sockets. Raises StartError."""
    # who did not ask for [::1] is not stopped by a machine without IPv6
    as_shipped = settings.listen == Settings().listen
    proxy, gateways = [], []
    for text in settings.listen:
        host, port = parse_address(text)
        sock = listen(host, port, purpose="proxy", optional=as_shipped and ":" in host)
        if sock is not None:
            proxy.append(sock)
    for gateway in settings.gateway:
        sock = listen(*parse_address(gateway.listen), purpose=f"gateway to {gateway.upstream}")
        assert sock is not None, "it is not optional"
        gateways.append(sock)
    admin = listen(*parse_address(settings.admin), purpose="admin") if settings.admin else None
    return Sockets(proxy, gateways, admin)


def destinations(
    settings: Settings, configured: frozenset[Origin], sockets: Sockets
) -> Destinations:
    """The rules of where requests may go, with the ports that CONNECT may use by default."""
    ports = settings.connect_ports
    if not ports and not all(ip_address(s.getsockname()[0]).is_loopback for s in sockets.proxy):
        ports = (443,)
    ours = [*sockets.proxy, *sockets.gateways, *filter(None, (sockets.admin,))]
    return Destinations(
        connect_ports=ports,
        allow=settings.allow_upstreams,
        deny=settings.deny_upstreams,
        configured=configured | {origin_of_url(g.upstream) for g in settings.gateway},
        listeners=[Listener(*sock.getsockname()[:2]) for sock in ours],
    )


def default_profile(settings: Settings) -> TlsProfile:
    """How TLS is spoken with upstreams that are not configured."""
    defaults = settings.defaults
    return TlsProfile(
        ca_file=defaults.ca_file, crl_file=defaults.crl_file, minimum=defaults.tls_minimum
    )


def profiles(settings: Settings) -> list[TlsProfile]:
    return [default_profile(settings), *(upstream.tls_profile for upstream in settings.upstream)]


def proxy_terms(settings: Settings, where: Destinations, date: Callable[[], bytes]) -> Terms:
    """What holds for all exchanges at the proxy's own ports. Raises StartError."""
    secure = [o for upstream in settings.upstream if (o := upstream.secure_origin) is not None]
    return Terms(
        access=Access(settings.allow_clients, read_credentials(settings.credentials_file)),
        destinations=where,
        max_head=settings.max_head,
        max_buffer=settings.max_buffer,
        pseudonym=b"warmproxy-" + secrets.token_hex(4).encode(),
        date=date,
        places={(origin.host, origin.port): origin for origin in secure},
        upgrades={
            plain: Upgrade(origin, upstream.upgrade_remote)
            for upstream in settings.upstream
            if (plain := upstream.upgraded_origin) and (origin := upstream.secure_origin)
        },
        default_tls=default_profile(settings).name,
    )


def own_access(settings: Settings) -> Access:
    """Who may use gateways and POST /warm. Their clients send no credentials: networks decide
    alone."""
    return Access(settings.allow_clients or LOOPBACK, {})


def gateway_terms(settings: Settings, proxy: Terms) -> list[Terms]:
    """The same for each gateway."""
    access = own_access(settings)
    found = []
    for gateway in settings.gateway:
        place = origin_of_url(gateway.upstream)
        if place.scheme == "tcp":
            known = proxy.places.get((place.host, place.port))
            place = known or secured(place, proxy.default_tls or "")
        default_port = ":80" if place.scheme == "http" else ":443"
        host = place.authority.removesuffix(default_port).encode()
        found.append(replace(proxy, access=access, gateway=Forward(place, b"/", host)))
    return found


def primes(settings: Settings) -> dict[Origin, tuple[RequestHead, float]]:
    """What is sent to keep connections in use, and how often, by origin."""
    found = {}
    for upstream in settings.upstream:
        if upstream.prime:
            origin = upstream.secure_origin or upstream.origin
            found[origin] = prime_request(upstream.prime, origin), upstream.prime_every
    return found


def raise_descriptor_limit() -> int:
    """Take as many descriptors as the system lets us have without asking; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        return soft  # macOS names a hard limit that it does not grant
    return hard


def read_credentials(path: str) -> Mapping[str, str]:
    """user -> password, from lines `user:password`; empty lines and # comments are left out.

    Raises StartError, which names lines and never their contents.
    """
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"credentials_file {path}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise StartError(f"{path}:{number}: not of the form user:password")
        found[user] = password
    if not found:
        raise StartError(f"credentials_file {path} holds no user:password line")
    if os.stat(path).st_mode & 0o077:
        log.event("credentials_readable_by_others", level="warning", path=path)
    return found
