"""All settings: their names, types, defaults, limits and meanings. Frozen; `loading` reads them.

Seconds are float seconds, sizes are bytes. The only importer of msgspec.
"""

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    StrType,
    UnionType,
    VarTupleType,
)

from warmproxy.origin import Origin, normalise_host, origin_of_url, secured
from warmproxy.origin import origin as make_origin

SETTINGS_ENV_PREFIX = "WARMPROXY_"

# The upper bounds are no policy: they keep what a typing error can make within what the event
# loop's clock and a C integer can hold.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=1e9)]
Rate = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=10**9)]
PositiveCount = Annotated[int, Meta(ge=1, le=10**9)]
Warm = Count | Literal["auto"]
AccessLog = bool | Annotated[float, Meta(ge=0, le=1)]

BOOST_SECONDS = 86400.0
"""For so long at most a pool is held above its own size, at one time."""
Duration = (
    Annotated[float, Meta(gt=0, le=BOOST_SECONDS)]
    | Annotated[str, Meta(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6})?[smh]$", examples=["15m"])]
)


def _says(meaning: str) -> Meta:
    return Meta(description=meaning)


class OriginSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set for each origin; the table [defaults] sets it for all of them."""

    max_connections: Annotated[
        PositiveCount,
        _says("Connections to this origin at most: idle, active and being dialled."),
    ] = 100
    warm_min: Annotated[
        Count, _says('With warm = "auto": held idle at least, however quiet it is.')
    ] = 1
    warm_max: Annotated[
        PositiveCount,
        _says(
            'With warm = "auto": held idle at most, however much is asked; by default no more '
            "than max_connections either."
        ),
    ] = 10
    timezone: Annotated[
        str,
        _says(
            'The time zone that the times of warm_at are in, such as Europe/Berlin; "" for the '
            "machine's own."
        ),
    ] = ""
    max_waiting: Annotated[
        Count,
        _says(
            "Requests that may wait for a connection to this origin; one more gets a 503 at once."
        ),
    ] = 1000
    acquire_timeout: Annotated[
        PositiveSeconds, _says("Seconds a request waits for a connection before its 503.")
    ] = 10.0
    dial_timeout: Annotated[
        PositiveSeconds,
        _says("Seconds for name resolution, and again for connecting, before a 504."),
    ] = 5.0
    source_address: Annotated[
        str,
        _says(
            "The local address that connections come from; only upstream addresses of its family "
            "are dialled then. Empty: the system chooses."
        ),
    ] = ""
    dial_budget: Annotated[
        Rate,
        _says(
            "Refill dials a second at most; 0 means twice what may have to be held (warm, warm_max "
            "or a window's count) and one more for each connection that a client took. Dials that "
            "a client waits for always go."
        ),
    ] = 0.0
    backoff_max: Annotated[
        PositiveSeconds,
        _says(
            "Longest pause between refill dials while they fail, in seconds (full jitter, "
            "doubling)."
        ),
    ] = 10.0
    idle_timeout: Annotated[
        PositiveSeconds,
        _says("Seconds a used connection is kept idle. The default is below nginx's 75 s."),
    ] = 60.0
    max_age: Annotated[
        Seconds,
        _says(
            "Seconds after which a connection is replaced (each 0-10 % sooner, so that they do "
            "not go together); 0 means never."
        ),
    ] = 3600.0
    dial_retry_for: Annotated[
        Seconds,
        _says(
            "Seconds that requests go on waiting while an origin that worked within the last 5 "
            "minutes refuses connections: what a restart takes."
        ),
    ] = 1.0
    idempotency_key: Annotated[
        bool,
        _says(
            "A request with an Idempotency-Key field may be sent a second time like a GET: say "
            "so only of an upstream that honours the field."
        ),
    ] = False
    ca_file: Annotated[
        str,
        _says(
            "A PEM file with the certificates to trust instead of the system's, for requests "
            "with https:// in absolute-form and upgrade."
        ),
    ] = ""
    crl_file: Annotated[
        str,
        _says(
            "A PEM file with certificate revocation lists of the authorities that upstreams have "
            "their certificates from; one that is revoked, or whose list is missing, is refused."
        ),
    ] = ""
    tls_minimum: Annotated[
        Literal["1.2", "1.3"], _says("The lowest version of TLS that is spoken with upstreams.")
    ] = "1.2"
    stall_timeout: Annotated[
        Seconds,
        _says(
            "Seconds without a byte in either direction after which an unfinished body is given "
            "up; 0 means never."
        ),
    ] = 300.0
    response_timeout: Annotated[
        Seconds,
        _says(
            "Seconds until the first byte of a response, counted from the end of the request, "
            "before a 504; 0 means for ever."
        ),
    ] = 300.0

    @property
    def warm_range(self) -> tuple[int, int]:
        """warm_min and warm_max, within max_connections."""
        most = min(self.warm_max, self.max_connections)
        return min(self.warm_min, most), most


@dataclass(frozen=True, slots=True)
class TlsProfile:
    """All of an upstream's settings that make its TLS connections differ from another's."""

    verify: bool = True
    ca_file: str = ""
    crl_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    minimum: str = "1.2"

    @property
    def name(self) -> str:
        """What Origin.tls holds; equal profiles have equal names."""
        trust = (self.minimum, "" if self.verify else "unverified", self.ca_file, self.crl_file)
        return " ".join(p for p in (*trust, self.client_cert, self.client_key) if p)


class WindowSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `warm_at`: from a time on more is held, for a while."""

    at: Annotated[
        str,
        _says(
            "When it begins, as in a crontab: minute, hour, day, month and weekday. "
            '"55 8 * * mon-fri" is 8:55 on workdays; all is warm by then.'
        ),
    ]
    count: Annotated[
        Count, _says("Connections held idle meanwhile; where warm is more, that many.")
    ]
    tls: Annotated[
        Count,
        _says("The same with TLS done, as in tls; with upgrade, 0 means as many as count."),
    ] = 0
    length: Annotated[
        Duration,
        _says("How long it lasts: seconds, or a text such as 90s or 15m; 24h at most."),
    ] = msgspec.field(name="for")

    @property
    def seconds(self) -> float:
        return duration(self.length)


def window_of(values: Mapping[str, Any]) -> WindowSettings:
    """From values that were judged, by the names that the file has for them."""
    return msgspec.convert(values, WindowSettings)


class UpstreamSettings(OriginSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[upstream]] table: an origin that is held warm."""

    url: Annotated[
        str,
        _says("http://host[:port] for plain requests, https://host[:port] for CONNECT and TLS."),
    ]
    warm: Annotated[
        Warm,
        _says(
            'Connections held open and idle, always; "auto" for as many as the requests of late '
            "call for, from warm_min to warm_max."
        ),
    ] = 2
    warm_total: Annotated[
        Count,
        _says(
            "In place of warm: what all replicas together hold. Each holds its share, rounded up; "
            "0 means that warm says it."
        ),
    ] = 0
    tls: Annotated[
        Warm,
        _says(
            "For an https url: connections held with their TLS handshake done, for requests with "
            'https:// in absolute-form, or "auto"; with upgrade or intercept, 0 means as many as '
            "warm."
        ),
    ] = 0
    tls_total: Annotated[Count, _says("In place of tls, likewise.")] = 0
    warm_at: Annotated[
        tuple[WindowSettings, ...], _says("Windows of time in which more is held.")
    ] = ()
    upgrade: Annotated[
        bool,
        _says(
            "Serve requests for http:// at this https url's host over finished TLS; port 80 for "
            "443, else the same port."
        ),
    ] = False
    upgrade_remote: Annotated[
        bool, _says("Upgrade requests of clients beyond loopback too: their way here is plain.")
    ] = False
    verify: Annotated[
        bool,
        _says(
            "Verify the upstream's certificate and name. false lets anybody on the way read and "
            "change everything."
        ),
    ] = True
    prime: Annotated[
        str,
        _says(
            'A request of our own, such as "HEAD /healthz": sent on each new connection that '
            "nobody waits for, and again on idle ones, where HTTP is spoken (http, or tls)."
        ),
    ] = ""
    prime_every: Annotated[
        Seconds,
        _says(
            "Seconds after which an idle connection is primed again, one at a time; 0 means on new "
            "connections only."
        ),
    ] = 30.0
    client_cert: Annotated[
        str, _says("A PEM file with the client certificate that this upstream asks for.")
    ] = ""
    client_key: Annotated[str, _says("Its key, where client_cert does not hold it.")] = ""

    intercept: Annotated[
        bool,
        _says(
            "End the TLS of clients that CONNECT to this https url here, with a certificate of "
            "our own authority (warmproxy ca), and serve their requests over finished TLS."
        ),
    ] = False

    @property
    def origin(self) -> Origin:
        """What `warm` counts: plain sockets for http, raw TCP for https."""
        return origin_of_url(self.url)

    @property
    def secure_origin(self) -> Origin | None:
        """What `tls` counts; None for an http url."""
        return secured(self.origin, self.tls_profile.name) if self.origin.scheme == "tcp" else None

    @property
    def upgraded_origin(self) -> Origin | None:
        """The http origin whose requests `upgrade` serves, if it does."""
        plain = self.origin
        if not self.upgrade or plain.scheme != "tcp":
            return None
        return make_origin("http", plain.host, 80 if plain.port == 443 else plain.port)

    @property
    def tls_profile(self) -> TlsProfile:
        return TlsProfile(
            verify=self.verify,
            ca_file=self.ca_file,
            crl_file=self.crl_file,
            client_cert=self.client_cert,
            client_key=self.client_key,
            minimum=self.tls_minimum,
        )


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[gateway]] table: a port that stands for one upstream."""

    listen: Annotated[
        str, _says("HOST:PORT for programs that have a base URL to set and no proxy.")
    ]
    upstream: Annotated[
        str, _says("http://host[:port] or https://host[:port]: where all its requests go.")
    ]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The top level of the file."""

    processes: Annotated[
        int,
        Meta(ge=1, le=64),
        _says(
            "Processes that serve, for those who outgrow one core: each has its share of what is "
            "held warm, and of every number that says at most."
        ),
    ] = 1
    listen: Annotated[
        tuple[str, ...],
        _says(
            "Where the proxy listens. Beyond loopback, allow_clients or credentials_file is needed."
        ),
    ] = ("127.0.0.1:3128", "[::1]:3128")
    admin: Annotated[
        str, _says('Where /metrics, /healthz, /readyz and /pools are; "" for nowhere.')
    ] = "127.0.0.1:3180"
    allow_clients: Annotated[
        tuple[str, ...],
        _says(
            "Networks whose clients may use the proxy; empty means: loopback, or whoever has "
            "credentials."
        ),
    ] = ()
    credentials_file: Annotated[
        str,
        _says("A file of user:password lines; clients then need Proxy-Authorization: Basic."),
    ] = ""
    upstream: Annotated[tuple[UpstreamSettings, ...], _says("The origins to hold warm.")] = ()
    gateway: Annotated[
        tuple[GatewaySettings, ...], _says("Ports that each stand for one upstream.")
    ] = ()
    defaults: Annotated[
        OriginSettings, _says("What holds for each origin that does not say otherwise.")
    ] = OriginSettings()
    learn_requests: Annotated[
        Count,
        _says(
            "An origin that is not configured is warmed once it was asked this often in "
            "learn_window; 0 means never."
        ),
    ] = 3
    learn_window: Annotated[
        PositiveSeconds, _says("Seconds in which learn_requests must come.")
    ] = 60.0
    learn_warm: Annotated[
        PositiveCount, _says("Connections held idle for a learned origin, at most.")
    ] = 2
    learn_quiet: Annotated[
        PositiveSeconds,
        _says("Seconds without a request after which a learned origin is no longer warmed."),
    ] = 300.0
    max_connections: Annotated[
        PositiveCount,
        _says(
            "Connections to all upstreams together; idle ones of the origin that was used least "
            "recently go first."
        ),
    ] = 4096
    replicas: Annotated[
        PositiveCount,
        _says("Daemons like this one, on other machines or in other pods, that share warm_total."),
    ] = 1
    dns_refresh: Annotated[
        float,
        Meta(ge=0.1, le=1e9),
        _says(
            "Seconds after which, at the latest, a name is looked up again while connections to "
            "it are held. Those to addresses that have gone are replaced."
        ),
    ] = 30.0
    max_clients: Annotated[
        PositiveCount, _says("Client connections at most; more of them wait to be accepted.")
    ] = 10_000
    max_clients_per_address: Annotated[
        Count,
        _says("Connections of one client address at most, not counting loopback; 0 means any."),
    ] = 1000
    max_tunnels: Annotated[
        PositiveCount, _says("Open CONNECT tunnels at most; one more gets a 503.")
    ] = 5000
    tunnel_idle_timeout: Annotated[
        Seconds,
        _says("Seconds without a byte after which a tunnel is closed; 0 means never."),
    ] = 3600.0
    connect_ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65535)], ...],
        _says(
            "Ports that CONNECT may go to; empty means any while all listeners are on loopback, "
            "else 443. Those of configured origins always may."
        ),
    ] = ()
    allow_upstreams: Annotated[
        tuple[str, ...],
        _says(
            "Hosts that requests may go to: names, *.name for all below it, or networks; empty "
            "means any. Configured origins always may."
        ),
    ] = ()
    deny_upstreams: Annotated[
        tuple[str, ...],
        _says(
            "Networks that requests may not go to, whatever name led there; configured origins "
            "may. The default is link-local addresses and clouds' metadata services."
        ),
    ] = ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "100.100.100.200", "192.0.0.192")
    admin_hosts: Annotated[
        tuple[str, ...],
        _says(
            "Names by which browsers may reach the admin listener's pages, beside localhost and "
            "addresses of loopback: what keeps other web sites out."
        ),
    ] = ()
    max_origins: Annotated[
        PositiveCount,
        _says(
            "Origins remembered; the least recently used one without a connection in use is let "
            "go first. Configured ones always stay."
        ),
    ] = 1000
    client_idle_timeout: Annotated[
        PositiveSeconds, _says("Seconds an idle client connection is kept.")
    ] = 600.0
    head_timeout: Annotated[
        PositiveSeconds, _says("Seconds from the first byte of a request's head to its last.")
    ] = 30.0
    max_head: Annotated[
        int,
        Meta(ge=8192, le=10**9),
        _says("Bytes of a request's or response's head at most."),
    ] = 65536
    max_buffer: Annotated[
        int,
        Meta(ge=1024, le=10**9),
        _says(
            "Bytes of a request's body held while it waits for a connection, and for a second try."
        ),
    ] = 65536
    ca_dir: Annotated[
        str,
        _says(
            "The private folder of the authority that intercept needs (warmproxy ca init): a path, "
            "or auto: ca in systemd's $STATE_DIRECTORY, else in warmproxy/ below $XDG_STATE_HOME "
            "or ~/.local/state."
        ),
    ] = "auto"
    intercept_clients: Annotated[
        tuple[str, ...],
        _says(
            "Networks whose clients are intercepted; empty means loopback. All others get a tunnel."
        ),
    ] = ()
    intercept_fallback: Annotated[
        Literal["tunnel", "none"],
        _says(
            "What a client gets at its next CONNECT that did not take our certificate or speaks no "
            "HTTP/1.1: a blind tunnel, or none: the same again."
        ),
    ] = "tunnel"
    ready_timeout: Annotated[
        Seconds,
        _says("Seconds after which /readyz no longer waits for a pool that is not warm."),
    ] = 10.0
    grace: Annotated[
        Seconds,
        _says("Seconds that exchanges in flight get to finish at SIGTERM or Ctrl-C."),
    ] = 5.0
    takeover_grace: Annotated[
        Seconds,
        _says(
            "Seconds that they, and open tunnels, get to finish after another process took over "
            "(run --takeover). Clients that are idle get grace to ask once more."
        ),
    ] = 300.0
    control: Annotated[
        str,
        _says(
            'The private socket by which run --takeover finds a running proxy: a path, "" for '
            "nowhere, or auto: one for each first listen address, in systemd's "
            "$RUNTIME_DIRECTORY, else in warmproxy/ below $XDG_RUNTIME_DIR, else nowhere."
        ),
    ] = "auto"
    state_file: Annotated[
        str,
        _says(
            'Where learned idle limits are kept over a restart: a path, "" for nowhere, or auto: '
            "limits.json in systemd's $STATE_DIRECTORY, else in warmproxy/ below $XDG_STATE_HOME "
            "or ~/.local/state."
        ),
    ] = "auto"
    access_log: Annotated[
        AccessLog,
        _says("One line for each exchange: true, false, or the share of them that is told of."),
    ] = False
    log_format: Annotated[
        Literal["auto", "text", "json"],
        _says("text, json, or auto: text on a terminal, json elsewhere."),
    ] = "auto"

    @property
    def default_profile(self) -> TlsProfile:
        """How TLS is spoken with upstreams that are not configured."""
        own = self.defaults
        return TlsProfile(ca_file=own.ca_file, crl_file=own.crl_file, minimum=own.tls_minimum)

    def at(self, listen: Sequence[str], admin: str) -> "Settings":
        """The same with other listeners."""
        return msgspec.structs.replace(self, listen=tuple(listen), admin=admin)

    def after(self, before: "Settings") -> tuple["Settings", list[str], list[str]]:
        """What holds after a reload that found these: the names of what changed, and of what
        stays as it was until a restart."""
        names = [name for name in TOP if getattr(self, name) != getattr(before, name)]
        fixed = [name for name in names if name in FIXED]
        kept = {name: getattr(before, name) for name in fixed}
        changed = [name for name in names if name not in FIXED]
        return msgspec.structs.replace(self, **kept), changed, fixed

    def needs_tls(self, origin: Origin) -> bool:
        """Whether requests of clients that do no TLS with this tcp origin go there over finished
        TLS: by upgrade, intercept or a gateway. Where nothing else is said, as many of these
        connections are held as raw ones."""
        upgraded = (up.origin for up in self.upstream if up.upgrade or up.intercept)
        gateways = (origin_of_url(gateway.upstream) for gateway in self.gateway)
        return origin.scheme == "tcp" and origin in (*upgraded, *gateways)

    @property
    def intercepted_hosts(self) -> list[str]:
        """What our authority has to speak for."""
        return list(dict.fromkeys(up.origin.host for up in self.upstream if up.intercept))

    def tls_warm(self, upstream: UpstreamSettings) -> Warm:
        """Finished TLS connections to hold for one of the upstreams."""
        if upstream.secure_origin is None or upstream.tls:
            return upstream.tls
        return upstream.warm if self.needs_tls(upstream.origin) else 0


DEALT = ("max_connections", "max_clients", "max_clients_per_address", "max_tunnels")
DEALT_BY_ORIGIN = ("max_connections", "max_waiting")
"""What is dealt to several processes, and each must have one of; 0 is 0 for all of them."""

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def changed(settings: _Struct, **values: object) -> _Struct:
    """The same with other values, which are not judged again."""
    return msgspec.structs.replace(settings, **values)


# ── what the fields say about themselves ─────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a struct: what it may hold, in words, and the judge of values for it."""

    _type: Any
    _kinds: tuple[msgspec.inspect.Type, ...]
    """what it may be, mostly one"""
    words: str
    """`a whole number >= 0`"""
    default: Any
    """`msgspec.NODEFAULT` where it must be given"""
    meaning: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may hold, where it is not free."""
        literals = (kind.values for kind in self._kinds if isinstance(kind, LiteralType))
        return tuple(str(value) for values in literals for value in values)

    def convert(self, value: object) -> Any:
        """A TOML value as the field holds it. Raises ValueError, which says what it must be."""
        try:
            return msgspec.convert(value, self._type)
        except msgspec.ValidationError:
            raise ValueError(self._must_be(value)) from None

    def read(self, text: str) -> Any:
        """The same from the text of a flag or a variable."""
        value: object = text
        match self._kinds[0]:
            case BoolType():
                word = text.strip().lower()
                value = True if word in _TRUE else False if word in _FALSE else text
                if value is text and len(self._kinds) > 1:
                    value = _number(text)
            case IntType() if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
                value = int(text)
            case FloatType():
                value = _number(text)
            case VarTupleType(item_type=item):
                parts = [part for part in re.split(r"[\s,]+", text) if part]
                whole = isinstance(item, IntType)
                value = [int(p) if whole and p.isascii() and p.isdigit() else p for p in parts]
        return self.convert(value)

    def _must_be(self, value: object) -> str:
        kind = self._kinds[0]
        if isinstance(kind, IntType | FloatType) and isinstance(value, int | float):
            most = inf if kind.le is None else kind.le
            if most < value < inf:
                return f"must be at most {most:.0f}"
        what = f"must be {self.words}, not {shown(value)}"
        if isinstance(kind, VarTupleType) and isinstance(value, str):
            what += f"; write [{shown(value)}]"
        return what


_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def _number(text: str) -> float | str:
    """Its number, or the text where it is none: that is what will be said of it."""
    try:
        return float(text)
    except ValueError:
        return text


def _fields(struct: type[msgspec.Struct]) -> dict[str, Field]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    kinds = {field.name: field.type for field in info.fields}
    found = {}
    for field in msgspec.structs.fields(struct):
        kind = kinds[field.name]
        assert isinstance(kind, msgspec.inspect.Metadata), f"{field.name} has no description"
        meaning = (kind.extra_json_schema or {})["description"]
        either = kind.type.types if isinstance(kind.type, UnionType) else (kind.type,)
        words = " or ".join(map(_words, either))
        found[field.encode_name] = Field(field.type, either, words, field.default, meaning)
    return found


def _words(kind: msgspec.inspect.Type) -> str:
    match kind:
        case Metadata(type=StrType(), extra_json_schema={"examples": [example]}):
            return f'a string such as "{example}"'
        case BoolType():
            return "true or false"
        case FloatType(ge=0, le=1):
            return "a number from 0 to 1"
        case IntType(gt=gt, ge=ge) | FloatType(gt=gt, ge=ge):
            whole = "whole " if isinstance(kind, IntType) else ""
            return f"a {whole}number {'>=' if gt is None else '>'} {ge if gt is None else gt:g}"
        case LiteralType(values=values):
            *most, last = [f'"{value}"' for value in values]
            return f"{', '.join(most)} or {last}" if most else last
        case StrType():
            return "a string"
        case VarTupleType(item_type=StrType()):
            return "a list of strings"
        case VarTupleType(item_type=IntType(ge=ge, le=le)):
            return f"a list of whole numbers from {ge} to {le}"
        case VarTupleType():
            return "tables, [[...]]"
        case _:
            return "a table, [defaults]"


TOP = _fields(Settings)
DEFAULTS = _fields(OriginSettings)
UPSTREAM = _fields(UpstreamSettings)
WINDOW = _fields(WindowSettings)
GATEWAY = _fields(GatewaySettings)
TABLES: Mapping[str, Mapping[str, Field]] = {
    "": TOP,
    "defaults": DEFAULTS,
    "upstream": UPSTREAM,
    "upstream.warm_at": WINDOW,
    "gateway": GATEWAY,
}
FIXED = ("processes", "state_file")
"""what only a restart changes"""
NESTED = ("defaults", "upstream", "gateway")
"""the fields of the top level that are tables"""


@dataclass(frozen=True, slots=True)
class Description:
    """One setting, in words."""

    key: str
    """`grace`, `defaults.dial_timeout`, `upstream.warm`"""
    type: str
    """`a whole number >= 0`"""
    default: str | None
    """as TOML; None where there is none and it must be given"""
    meaning: str
    variable: str
    """of the environment; "" where there is none"""

    @property
    def table(self) -> str:
        """`defaults`, `upstream`, `upstream.warm_at`, or "" for the top level."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


def describe() -> list[Description]:
    """Every setting that can be written down: the top level, then [defaults], then what is only
    in [[upstream]] (which may hold everything of [defaults] too) and its warm_at."""
    elsewhere = {"": NESTED, "upstream": (*DEFAULTS, "warm_at")}
    found = []
    for table, fields in TABLES.items():
        for name, field in fields.items():
            if name in elsewhere.get(table, ()):
                continue
            variable = variable_of(table, name) if table in ("", "defaults") else ""
            required = field.default is msgspec.NODEFAULT
            default = None if required else toml_value(field.default)
            key = f"{table}.{name}" if table else name
            found.append(Description(key, field.words, default, field.meaning, variable))
    return found


def variable_of(table: str, name: str) -> str:
    """The environment variable of a setting at the top level or in [defaults]."""
    return SETTINGS_ENV_PREFIX + (f"{table}__{name}" if table else name).upper()


def toml_value(value: object) -> str:
    """A setting's value as TOML would write it."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.12g}"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case tuple() | list():
            return f"[{', '.join(map(toml_value, value))}]"
        case _:
            return str(value)


def shown(value: object) -> str:
    """A value as a problem quotes it: short, on one line, with no password in it."""
    match value:
        case str():
            text = json.dumps(without_password(value))
            return text if len(text) <= 60 else f'{text[:56]}..."'
        case bool() | float():
            return toml_value(value)
        case int():
            return str(value) if abs(value) < 10**20 else "a number that large"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return str(value)


def without_password(text: str) -> str:
    """The text with whatever may be user and password before an @ left out."""
    text = re.sub(r"//\S*@", "//***@", text)
    return re.sub(r"[^\s/*'\"]+@", "***@", text)


def duration(value: float | str) -> float:
    """Seconds of a number, or of a text such as `900`, `90s`, `15m` and `2h`.

    Raises ValueError, with what is to be said of it, where it is neither, 0 or above 24 hours.
    """
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smh]?)", str(value))
    seconds = float(found[1]) * {"m": 60, "h": 3600}.get(found[2], 1) if found else 0.0
    if not 0 < seconds <= BOOST_SECONDS:
        raise ValueError("must be seconds, or like 90s, 15m or 2h; above 0, and 24h at most")
    return seconds


def share_of(total: int, replicas: int) -> int:
    """What each of so many daemons holds of `total`: rounded up, since none knows its number. So
    together they hold `total` or more, by less than one each; and each at least one of any."""
    return -(-total // replicas)


def split_warm(text: str) -> tuple[str, dict[str, str]]:
    """`URL=N,tls=M` -> the URL, and what is said of `warm` and `tls`; either may be missing."""
    counts: dict[str, str] = {}
    for name, before in (("tls", ",tls="), ("warm", "=")):
        rest, found, count = text.rpartition(before)
        if found:
            text, counts[name] = rest, count
    return text, counts


# ── addresses ────────────────────────────────────────────────────────────────────────────────


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` -> host without brackets, port (0 lets the system choose).

    Raises ValueError, with a sentence for the user, where HOST is neither an IP address nor
    `localhost`, or PORT is not within 0-65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        hint = f"127.0.0.1:{text}" if text.isdigit() else "127.0.0.1:3128"
        raise ValueError(f"{shown(text)} must be HOST:PORT, for example {hint}")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{shown(text)} has no valid port (0-65535)")
    if not host:
        raise ValueError(f"{shown(text)} has no host; for example 127.0.0.1:{port}")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if bare.lower() == "localhost" and not bracketed:
        return "localhost", int(port)
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(
            f"{shown(text)}: the host must be an IP address or localhost, not {shown(bare)}"
        ) from None
    if bracketed != (address.version == 6):
        fitting = f"[{bare}]:{port}" if address.version == 6 else f"{bare}:{port}"
        raise ValueError(f"{shown(text)} must be written {fitting}")
    return str(address), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host that `parse_address` gave."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def parse_prime(text: str) -> tuple[str, str]:
    """`HEAD /healthz` -> method, request-target.

    Raises ValueError, with a sentence for the user, where it is not of this form or the method
    might change something at the upstream (RFC 9110, 9.2.1).
    """
    method, _, target = text.partition(" ")
    if method.startswith("/"):
        raise ValueError(f'{shown(text)} has no method; did you mean "HEAD {method}"?')
    if method not in ("GET", "HEAD", "OPTIONS"):
        raise ValueError(
            f"{shown(text)} must begin with GET, HEAD or OPTIONS, which change nothing; for example"
            ' "HEAD /healthz"'
        )
    is_path = re.fullmatch(r"/[!-\"$-~]*", target) is not None
    if not is_path and text != "OPTIONS *":
        raise ValueError(
            f'{shown(text)} must name a path after the method; for example "{method} /healthz"'
        )
    return method, target


def check_host_pattern(text: str) -> None:
    """Raises ValueError, with a sentence for the user, where it is no name, *.name or network."""
    if "/" in text or ":" in text or text.replace(".", "").isdigit():
        check_network(text)
        return
    try:
        normalise_host(text.removeprefix("*."))
    except ValueError:
        raise ValueError(
            f"{shown(text)} is no host; for example api.example.com, *.example.com or 10.0.0.0/8"
        ) from None


def check_source(text: str) -> None:
    """Raises ValueError, with a sentence for the user, where it is neither empty nor an address."""
    try:
        if text:
            ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is no address; for example 192.168.1.7, one that this machine has"
        ) from None


def check_network(text: str) -> None:
    """Raises ValueError, with a sentence for the user, where it is no network."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        return
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not a network; for example 10.0.0.0/8 or 192.168.1.7"
        ) from None
    raise ValueError(f"{shown(text)} has bits beyond its prefix; did you mean '{meant}'?")
