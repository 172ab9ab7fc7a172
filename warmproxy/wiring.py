"""Settings -> the parts that the service puts together."""

import os
import resource
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from warmproxy import log
from warmproxy.admin.server import AdminHosts, AdminTerms
from warmproxy.errors import StartError
from warmproxy.net.intercept import Leaves
from warmproxy.net.listener import Address, Group, listen
from warmproxy.net.tls import Contexts
from warmproxy.origin import Origin, origin_of_url, secured, unsecured
from warmproxy.policy.access import EVERYWHERE, LOOPBACK, Access
from warmproxy.policy.destinations import Destinations, Listener
from warmproxy.policy.interception import Interception
from warmproxy.protocol.exchange import Terms, Upgrade
from warmproxy.protocol.messages import RequestHead
from warmproxy.protocol.prime import prime_request
from warmproxy.protocol.target import Forward
from warmproxy.settings import Settings, parse_address

Role = dict[Address, socket.socket]


@dataclass(frozen=True, slots=True)
class Sockets:
    """Bound and listening; nothing is accepted yet."""

    proxy: Role
    gateways: Role
    """In the order of settings.gateway."""
    admin: Role
    """One, or none."""

    @property
    def every(self) -> Role:
        return self.proxy | self.gateways | self.admin


@dataclass(frozen=True, slots=True)
class Prepared:
    """Settings with what the files say that they name."""

    settings: Settings
    contexts: Contexts
    credentials: Mapping[str, str]
    leaves: Leaves | None
    """Where TLS of clients ends here."""


@dataclass(frozen=True, slots=True)
class Rules:
    """All that follows from settings, made whole before any of it is put to use."""

    settings: Settings
    sockets: Sockets
    contexts: Contexts
    leaves: Leaves | None
    destinations: Destinations
    proxy: Terms
    gateways: Mapping[Address, Terms]
    primes: Mapping[Origin, tuple[RequestHead, float]]
    admin: AdminTerms

    def terms(self, address: Address, gateway: Forward | None = None) -> Terms:
        """What holds for those who came in there; where there is no such listener any more, it
        was a `gateway` or the proxy's own."""
        found = self.gateways.get(address)
        if found is None and gateway is not None and address not in self.sockets.proxy:
            return replace(self.proxy, access=self.admin.access, gateway=gateway)
        return found or replace(self.proxy)

    def intercepts(self, origin: Origin) -> bool:
        """Whether clients' TLS to this place ends here."""
        found = self.proxy.interception
        raw = unsecured(origin) if origin.scheme == "https" else origin
        return found is not None and raw in found.origins

    def terms_inside(self, origin: Origin) -> Terms:
        """What holds for those who came in by an intercepted CONNECT to this tcp origin. Its
        client was admitted there, and sends us no credentials inside."""
        place = self.proxy.places[origin.host, origin.port]
        gateway = Forward(place, b"/", place.authority.removesuffix(":443").encode())
        anybody = Access(EVERYWHERE, {})
        return replace(self.proxy, access=anybody, gateway=gateway, inside=True, interception=None)


@dataclass(frozen=True, slots=True)
class Inherited:
    """Listening sockets from outside: systemd's, or those of the process that we take over from.

    `listen` and `admin` are the addresses that systemd decided on, in place of the settings'.
    """

    sockets: Mapping[Address, socket.socket] = field(default_factory=dict)
    listen: Sequence[str] = ()
    admin: str | None = None

    def over(self, settings: Settings) -> Settings:
        """What holds with them."""
        admin = settings.admin if self.admin is None else self.admin
        return settings.at(self.listen or settings.listen, admin)

    def passed(self) -> dict[str, Any]:
        """All but the sockets, to be handed on."""
        return {"listen": list(self.listen), "admin": self.admin}


def inherited(settings: Settings, passed: Iterable[tuple[str, socket.socket]]) -> Inherited:
    """What systemd passed, each socket with its name: `admin` is the admin listener's, one at a
    gateway's address is the gateway's, and all others are the proxy's own."""
    gateways = [parse_address(gateway.listen) for gateway in settings.gateway]
    sockets, listen, admin = {}, [], None
    for name, sock in passed:
        host, port = sock.getsockname()[:2]
        sockets[Address(host, port)] = sock
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if name == "admin":
            admin = text
        elif (host, port) not in gateways:
            listen.append(text)
    return Inherited(sockets, listen, admin)


def prepare(settings: Settings, before: Rules | None = None) -> Prepared:
    """Reads what the settings name: may take its time, in whichever thread. `before`: what held so
    far. Raises StartError."""
    profiles = [settings.default_profile, *(up.tls_profile for up in settings.upstream)]
    contexts = Contexts(profiles, None if before is None else before.contexts)
    for upstream in settings.upstream:
        secure = upstream.secure_origin
        if secure is not None and settings.tls_warm(upstream):
            contexts.make(secure.tls or "")  # now: later the loop would wait 70 ms for it
    credentials = read_credentials(settings.credentials_file)
    known = None if before is None else before.leaves
    return Prepared(settings, contexts, credentials, leaves(settings, known))


def leaves(settings: Settings, before: Leaves | None = None) -> Leaves | None:
    """The certificates that clients of intercepted origins get, if there are such origins. Raises
    StartError."""
    hosts = settings.intercepted_hosts
    if not hosts:
        return None
    from warmproxy.net.authority import Authority  # here: 50 ms and 19 MiB

    found = Leaves(Authority.load_for(settings.ca_dir, hosts), before)
    for host in hosts:
        found.prepare(host)
    return found


def bind(
    settings: Settings, have: Mapping[Address, socket.socket], *, in_groups: bool = False
) -> Sockets:
    """All listening sockets: those that we have, and new ones; with `in_groups` others may join
    them at their addresses, the admin listener apart. Raises StartError, and then there are no new
    ones."""
    # who did not ask for [::1] is not stopped by a machine without IPv6
    as_shipped = settings.listen == Settings().listen
    opened = []

    def role(name: str, listeners: Iterable[tuple[str, str]]) -> Role:
        """`listeners`: the address of each, and what it is for."""
        found: Role = {}
        for i, (text, purpose) in enumerate(listeners):
            host, port = parse_address(text)
            host = "127.0.0.1" if host == "localhost" else host
            address = Address(host, port, "" if port else f"{name} {i}")
            sock = have.get(address)
            if sock is None:
                optional = name == "proxy" and as_shipped and ":" in host
                group: Group = "first" if in_groups and name != "admin" else None
                sock = listen(host, port, purpose=purpose, optional=optional, group=group)
                if sock is not None:
                    opened.append(sock)
            if sock is not None:
                found[address] = sock
        return found

    try:
        return Sockets(
            role("proxy", [(text, "proxy") for text in settings.listen]),
            role("gateway", [(g.listen, f"gateway to {g.upstream}") for g in settings.gateway]),
            role("admin", [(settings.admin, "admin")] if settings.admin else []),
        )
    except StartError:
        for sock in opened:
            sock.close()
        raise


def rules(
    prepared: Prepared, sockets: Sockets, pseudonym: bytes, date: Callable[[], bytes]
) -> Rules:
    """`pseudonym`: our name in Via. `date`: the current Date field value."""
    settings = prepared.settings
    where = destinations(settings, sockets)
    proxy = proxy_terms(prepared, where, pseudonym, date)
    return Rules(
        settings=settings,
        sockets=sockets,
        contexts=prepared.contexts,
        leaves=prepared.leaves,
        destinations=where,
        proxy=proxy,
        gateways=dict(zip(sockets.gateways, gateway_terms(settings, proxy), strict=True)),
        primes=primes(settings),
        admin=AdminTerms(own_access(settings), AdminHosts(settings.admin_hosts, settings.admin)),
    )


def destinations(settings: Settings, sockets: Sockets) -> Destinations:
    """The rules of where requests may go, with the ports that CONNECT may use by default."""
    ports = settings.connect_ports
    proxy = [sock.getsockname()[0] for sock in sockets.proxy.values()]
    if not ports and not all(ip_address(host).is_loopback for host in proxy):
        ports = (443,)
    urls = (*(up.url for up in settings.upstream), *(g.upstream for g in settings.gateway))
    return Destinations(
        connect_ports=ports,
        allow=settings.allow_upstreams,
        deny=settings.deny_upstreams,
        configured=map(origin_of_url, urls),
        listeners=[Listener(*sock.getsockname()[:2]) for sock in sockets.every.values()],
    )


def proxy_terms(
    prepared: Prepared, where: Destinations, pseudonym: bytes, date: Callable[[], bytes]
) -> Terms:
    """What holds for all exchanges at the proxy's own ports."""
    settings = prepared.settings
    secure = [o for upstream in settings.upstream if (o := upstream.secure_origin) is not None]
    return Terms(
        access=Access(settings.allow_clients, prepared.credentials),
        destinations=where,
        max_head=settings.max_head,
        max_buffer=settings.max_buffer,
        pseudonym=pseudonym,
        date=date,
        places={(origin.host, origin.port): origin for origin in secure},
        upgrades={
            plain: Upgrade(origin, upstream.upgrade_remote)
            for upstream in settings.upstream
            if (plain := upstream.upgraded_origin) and (origin := upstream.secure_origin)
        },
        default_tls=settings.default_profile.name,
        interception=interception(settings),
    )


def interception(settings: Settings) -> Interception | None:
    """Whose TLS ends here. What was found out about clients is forgotten by a reload: they may
    have been told of our authority since."""
    origins = [upstream.origin for upstream in settings.upstream if upstream.intercept]
    if not origins:
        return None
    clients = Access(settings.intercept_clients or LOOPBACK, {})
    falls_back = settings.intercept_fallback == "tunnel"
    return Interception(origins, clients, falls_back=falls_back)


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
