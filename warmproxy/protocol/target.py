"""Where a request is to go: the four forms of a request-target (RFC 9112, 3.2).

| form                    | method         | answer                                        |
|-------------------------|----------------|-----------------------------------------------|
| http://host/path, ws:// | any but CONNECT| Forward                                       |
| https://, wss://        | any but CONNECT| Forward, over TLS that is ours                |
| host:port               | CONNECT        | Tunnel                                        |
| /path, *                | any            | 400: meant for a web server; how to set us up |

Path and query go on as they came. This is urllib3's door for `parse_url`, which takes apart every
authority that is not a plain name with or without a port.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from warmproxy.errors import BadRequest
from warmproxy.origin import DEFAULT_PORTS, Origin, normalise_host, origin

# ws:// is plain HTTP until its upgrade (RFC 6455, 3)
_PLAIN = frozenset({b"http", b"ws"})
_SECURE = frozenset({b"https", b"wss"})

PLAIN_TARGET = rb"http://([A-Za-z0-9._-]++(?::[0-9]{1,5}+)?)(/[!\"$-~]*+)"
"""The common absolute-form: authority, path and query."""
_FAST = re.compile(PLAIN_TARGET + rb"(?:#[!-~]*+)?")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*+)://([^/?#]*+)([^#]*+)(?:#.*+)?")
_VISIBLE = re.compile(rb"[!-~]++")
_NAME_AND_PORT = re.compile(rb"([A-Za-z0-9._-]++)(?::([0-9]{1,5}+))?")

# What RFC 3986, 3.2 allows in an authority, without userinfo and percent-encoding.
_AUTHORITY = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:\[\]]++")

_NOT_A_SERVER = (
    "This is warmproxy, a forward proxy, and no web server: a client has to be told to use it. "
    "Set http_proxy=http://HOST:PORT, or try curl -x http://HOST:PORT http://example.com/"
)


class Forward(NamedTuple):
    """A request for `origin`."""

    origin: Origin
    target: bytes
    """For the request line to the upstream: origin-form, or `*`."""
    host: bytes
    """For the Host field: the authority as the client wrote it."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A CONNECT to `origin`."""

    origin: Origin


Route = Forward | Tunnel


def parse_target(method: bytes, target: bytes) -> Route:
    """Where the request-target says that the request is to go.

    Raises BadRequest: 400, or 501 for schemes that are not served.
    """
    if method == b"CONNECT":
        return _tunnel(target)
    fast = _FAST.fullmatch(target)
    if fast is not None:
        authority, path = fast.groups()
        place, host = place_of(authority)
        return Forward(place, path, host)
    if not _VISIBLE.fullmatch(target):
        raise BadRequest("space, control character or non-ASCII byte in the request-target")
    if target == b"*" or target.startswith(b"/"):
        raise BadRequest(_NOT_A_SERVER)
    parts = _ABSOLUTE.fullmatch(target)
    if parts is None:
        raise BadRequest("the request-target has to be like http://host/path")
    scheme, authority, path = parts.groups()
    scheme = scheme.lower()
    if scheme in _SECURE:
        place, host = _secure_place(authority)
    elif scheme in _PLAIN:
        place, host = place_of(authority)
    else:
        raise BadRequest("only http:// is served, and CONNECT for all else", status=501)
    if not path and method == b"OPTIONS":
        path = b"*"  # RFC 9112, 3.2.4
    elif not path.startswith(b"/"):
        path = b"/" + path
    return Forward(place, path, host)


def origin_form(target: bytes, to: Forward) -> Forward:
    """The route of a request to a gateway, which stands for one origin: `to` without its target.

    Raises BadRequest for anything but origin-form (or `*`).
    """
    path = target.partition(b"#")[0]
    if not _VISIBLE.fullmatch(target) or not (path.startswith(b"/") or path == b"*"):
        raise BadRequest("this port stands for one upstream and takes targets like /path only")
    return Forward(to.origin, path, to.host)


def inside_form(method: bytes, target: bytes, to: Forward) -> Forward:
    """The same inside an intercepted connection, where absolute-form is valid too: the client
    takes us for the origin (RFC 9112, 3.2.2).

    Raises BadRequest, 421 where it is meant for another origin.
    """
    if target.startswith(b"/") or target == b"*":
        return origin_form(target, to)
    route = parse_target(method, target)
    assert isinstance(route, Forward)
    if route.origin.scheme != "https":
        raise _misdirected(to)
    check_host(route.host, to)
    return Forward(to.origin, route.target, to.host)


def check_host(authority: bytes, to: Forward) -> None:
    """Raises BadRequest, 421 (RFC 9110, 7.4), where https://authority is not the origin of `to`."""
    place, _ = _secure_place(authority)
    if (place.host, place.port) != (to.origin.host, to.origin.port):
        raise _misdirected(to)


def _misdirected(to: Forward) -> BadRequest:
    host = to.host.decode("ascii")
    return BadRequest(f"this connection is for {host}, and the request for another", status=421)


@lru_cache(maxsize=4096)
def place_of(authority: bytes) -> tuple[Origin, bytes]:
    """The origin behind http://authority, and the very authority, to be shared."""
    host, port = _host_and_port(authority)
    return origin("http", host, DEFAULT_PORTS["http"] if port is None else port), authority


@lru_cache(maxsize=4096)
def _secure_place(authority: bytes) -> tuple[Origin, bytes]:
    """The same for https://authority."""
    host, port = _host_and_port(authority)
    return origin("https", host, DEFAULT_PORTS["https"] if port is None else port), authority


@lru_cache(maxsize=4096)
def _tunnel(authority: bytes) -> Tunnel:
    host, port = _host_and_port(authority)
    if port is None:
        raise BadRequest("CONNECT needs host:port (RFC 9110, 9.3.6)")
    return Tunnel(origin("tcp", host, port))


def _host_and_port(authority: bytes) -> tuple[str, int | None]:
    """The host, normalised, and the port if there is one. Raises BadRequest."""
    port: int | None
    plain = _NAME_AND_PORT.fullmatch(authority)
    if plain is not None:
        host = plain[1].decode("ascii")
        port = int(plain[2]) if plain[2] is not None else None
    else:
        host, port = _odd_host_and_port(authority)
    if port is not None and not 0 < port < 65536:
        raise BadRequest("a port is a number from 1 to 65535")
    try:
        return normalise_host(host), port
    except ValueError:
        raise BadRequest("the target's host is no name or address") from None


def _odd_host_and_port(authority: bytes) -> tuple[str, int | None]:
    if b"@" in authority:
        raise BadRequest("user and password do not belong into a target (RFC 9110, 4.2.4)")
    if not _AUTHORITY.fullmatch(authority):
        raise BadRequest("the target's host is missing or malformed")
    if authority.endswith(b":"):
        raise BadRequest("the target's port is empty")
    # here, because it takes 40 ms and 4 MiB, and hardly any client writes such an authority
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        url = parse_url(f"http://{authority.decode('ascii')}/")
    except LocationParseError:
        raise BadRequest("the target's host or port is malformed") from None
    if not url.host:
        raise BadRequest("the target has no host")
    return url.host, url.port
