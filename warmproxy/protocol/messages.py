"""The two heads of HTTP/1.1 and what the exchange tells its driver to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from warmproxy.errors import WarmproxyError
from warmproxy.origin import Origin
from warmproxy.policy.interception import Visitor
from warmproxy.policy.retry import Prefer

Field = tuple[bytes, bytes]
"""One field line: the name as received, the value without surrounding white space."""


@dataclass(slots=True)
class RequestHead:
    """A request line and its fields, parsed but not yet judged."""

    method: bytes
    target: bytes
    version: bytes
    """b"1.1" or b"1.0"."""
    fields: Sequence[Field]


@dataclass(slots=True)
class ResponseHead:
    """A status line and its fields, parsed but not yet judged."""

    version: bytes
    status: int
    reason: bytes
    fields: Sequence[Field]


@dataclass(slots=True)
class Acquire:
    """Get a connection to `origin`; tell the exchange by leased() or lease_failed()."""

    origin: Origin
    prefer: Prefer


@dataclass(slots=True)
class ToUpstream:
    data: bytes


@dataclass(slots=True)
class ToClient:
    data: bytes


@dataclass(slots=True)
class MoveToClient:
    """The next `length` bytes of the upstream are the response's body and go to the client as they
    are: the driver may move them by itself and tell the exchange by response_moved()."""

    length: int


@dataclass(slots=True)
class MoveToUpstream:
    """The same with the request's body, and request_moved()."""

    length: int


@dataclass(slots=True)
class Release:
    """The exchange is over for the leased connection.

    `pinned`: it was authenticated as a whole (NTLM, Negotiate), so it stays with this client for
    its next request to the same origin, and is never reused by another (RFC 9110, 3.3).
    `keep_alive`: seconds for which the upstream says it keeps the connection idle, if it does.
    `unanswered`: it closed the connection and no byte of an answer came.
    """

    reusable: bool
    pinned: bool = False
    keep_alive: float | None = None
    unanswered: bool = False


@dataclass(slots=True)
class Splice:
    """Join both sides; `to_upstream` and `to_client` came early and go first."""

    to_upstream: bytes
    to_client: bytes


@dataclass(slots=True)
class Intercept:
    """The client has its 200 and goes on in TLS, which ends here; `early` came before the 200."""

    visitor: Visitor
    early: bytes


@dataclass(slots=True)
class Cancel:
    """The client is gone while its request waited for a connection."""


class Close(Enum):
    """How a client's connection ends."""

    FLUSH = "flush"
    """Send what was written, then close."""
    LINGER = "linger"
    """Send what was written, half-close, and read on for a while: closing on unread input would
    reset the connection and lose what was written."""
    ABORT = "abort"
    """Reset: the response was cut short, and its end is the connection's end."""


@dataclass(slots=True)
class CloseClient:
    how: Close


@dataclass(slots=True)
class Answered:
    """A final response was passed on, or made by us (`error`)."""

    method: bytes
    origin: Origin | None
    status: int
    error: WarmproxyError | None


@dataclass(slots=True)
class Retried:
    """The request is going to be sent a second time: its used connection had died."""


Action = (
    Acquire
    | ToUpstream
    | ToClient
    | MoveToClient
    | MoveToUpstream
    | Release
    | Splice
    | Intercept
    | Cancel
    | CloseClient
    | Answered
    | Retried
)
