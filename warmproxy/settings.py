"""All settings: their names, types, defaults and limits. Frozen; read once; nothing reads the
environment later.

Seconds are float seconds, sizes are bytes. Precedence: flag > environment > file > default.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from warmproxy.origin import Origin, origin_of_url

Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]
PositiveCount = Annotated[int, Meta(ge=1)]


class OriginSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set for each origin; the table [defaults] sets it for all of them."""

    max_connections: PositiveCount = 100
    """Connections to this origin at most: idle, active and being dialled."""
    max_waiting: Count = 1000
    """Requests that may wait for a connection to this origin; one more gets a 503 at once."""
    acquire_timeout: PositiveSeconds = 10.0
    """Seconds a request waits for a connection before its 503."""
    dial_timeout: PositiveSeconds = 5.0
    """Seconds for name resolution, and again for connecting, before a 504."""
    dial_budget: Annotated[float, Meta(ge=0)] = 0.0
    """Refill dials a second at most; 0 means 2 x warm. Dials that a client waits for always go."""
    backoff_max: PositiveSeconds = 10.0
    """Longest pause between refill dials while they fail, in seconds (full jitter, doubling)."""
    idle_timeout: PositiveSeconds = 60.0
    """Seconds a used connection is kept idle. The default is below nginx's 75 s."""
    max_age: Seconds = 3600.0
    """Seconds after which a connection is replaced (each 0-10 % sooner, so that they do not go
    together); 0 means never."""
    response_timeout: Seconds = 300.0
    """Seconds until the first byte of a response, counted from the end of the request, before a
    504; 0 means for ever."""


class UpstreamSettings(OriginSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[upstream]] table: an origin that is held warm."""

    url: str
    """http://host[:port] for plain requests, https://host[:port] for CONNECT tunnels."""
    warm: Count = 2
    """Connections held open and idle, always."""

    @property
    def origin(self) -> Origin:
        return origin_of_url(self.url)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The top level of the file."""

    listen: tuple[str, ...] = ("127.0.0.1:3128", "[::1]:3128")
    """Where the proxy listens. Beyond loopback, allow_clients or credentials_file is needed."""
    admin: str = "127.0.0.1:3180"
    """Where /metrics, /healthz, /readyz and /pools are; "" for nowhere."""
    allow_clients: tuple[str, ...] = ()
    """Networks whose clients may use the proxy; empty means: loopback, or whoever has
    credentials."""
    credentials_file: str = ""
    """A file of user:password lines; clients then need Proxy-Authorization: Basic."""
    upstream: tuple[UpstreamSettings, ...] = ()
    """The origins to hold warm."""
    defaults: OriginSettings = OriginSettings()
    """What holds for each origin that does not say otherwise."""
    learn_requests: Count = 3
    """An origin that is not configured is warmed once it was asked this often in learn_window; 0
    means never."""
    learn_window: PositiveSeconds = 60.0
    """Seconds in which learn_requests must come."""
    learn_warm: PositiveCount = 2
    """Connections held idle for a learned origin."""
    learn_quiet: PositiveSeconds = 300.0
    """Seconds without a request after which a learned origin is no longer warmed."""
    max_connections: PositiveCount = 4096
    """Connections to all upstreams together; idle ones of the origin that was used least recently
    go first."""
    max_origins: PositiveCount = 1000
    """Origins remembered; the least recently used one without a connection in use is let go
    first. Configured ones always stay."""
    client_idle_timeout: PositiveSeconds = 600.0
    """Seconds an idle client connection is kept."""
    max_head: Annotated[int, Meta(ge=8192)] = 65536
    """Bytes of a request's or response's head at most."""
    max_buffer: Annotated[int, Meta(ge=1024)] = 65536
    """Bytes of a request's body held while it waits for a connection, and for a second try."""
    ready_timeout: Seconds = 10.0
    """Seconds after which /readyz no longer waits for a pool that is not warm."""
    grace: Seconds = 5.0
    """Seconds that exchanges in flight get to finish at SIGTERM or Ctrl-C."""
    access_log: bool = False
    """One line for each exchange."""
    log_format: Annotated[str, Meta(pattern="^(auto|text|json)$")] = "auto"
    """text, json, or auto: text on a terminal, json elsewhere."""
