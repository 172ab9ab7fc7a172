"""Everything that can go wrong with a request, each under its RFC 9209 name.

The token is the Proxy-Status error type (RFC 9209, 2.3) and the metric label; the status is the
one that section recommends. `reason` is a sentence for the person who reads the answer: it must
hold nothing secret.
"""


class WarmproxyError(Exception):
    """A request that gets an answer of our own making."""

    status = 500
    token = "proxy_internal_error"

    def __init__(self, reason: str, *, status: int | None = None, token: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        if status is not None:
            self.status = status
        if token is not None:
            self.token = token


class BadRequest(WarmproxyError):
    """The client's message breaks HTTP or is none that a forward proxy can serve."""

    status = 400
    token = "http_request_error"


class ClientLeft(BadRequest):
    """The client closed its sending side while its request waited for a connection."""


class LoopDetected(WarmproxyError):
    """The request has been through this very proxy (RFC 9110, 7.6)."""

    status = 502
    token = "proxy_loop_detected"


class RequestDenied(WarmproxyError):
    """The client may not use this proxy, or not for this target."""

    status = 403
    token = "http_request_denied"


class CredentialsRequired(RequestDenied):
    """No valid Proxy-Authorization where one is needed (RFC 9110, 15.5.8)."""

    status = 407


class BadResponse(WarmproxyError):
    """The upstream's message breaks HTTP: 502, and its connection is discarded."""

    status = 502
    token = "http_protocol_error"


class UpstreamGone(WarmproxyError):
    """The upstream closed or reset before its response had begun."""

    status = 502
    token = "connection_terminated"


class ResponseTimeout(WarmproxyError):
    """The upstream took the request and stayed silent for too long."""

    status = 504
    token = "http_response_timeout"


class LimitReached(WarmproxyError):
    """max_connections was in use for the whole of acquire_timeout, or the queue is full."""

    status = 503
    token = "connection_limit_reached"


class ShuttingDown(WarmproxyError):
    """The request came, or was still waiting for a connection, when the daemon stopped."""

    status = 503
    token = "proxy_internal_error"


class DialError(WarmproxyError):
    """No connection could be opened. `result` is the label of the dials metric."""

    status = 502
    token = "connection_refused"
    result = "error"
    silent: tuple[str, ...] = ()
    """Addresses that were tried and gave no answer at all."""


class DialRefused(DialError):
    """The upstream's machine, or a firewall, refused the connection."""

    result = "refused"


class DialUnreachable(DialError):
    """No route to the address, or it is down."""

    status = 503
    token = "destination_unavailable"
    result = "unreachable"


class DialTimeout(DialError):
    """The upstream's machine did not answer the dial."""

    status = 504
    token = "connection_timeout"
    result = "timeout"


class NameNotFound(DialError):
    """The name does not resolve."""

    token = "dns_error"
    result = "dns"


class NameTimeout(DialError):
    """The resolver did not answer."""

    status = 504
    token = "dns_timeout"
    result = "dns"


class DialClosed(DialError):
    """The upstream accepted and closed at once."""

    token = "connection_terminated"
    result = "closed"


class TlsCertificateError(DialError):
    """The upstream's certificate does not prove that it is the one that was asked for."""

    token = "tls_certificate_error"
    result = "tls"


class TlsProtocolError(DialError):
    """The TLS handshake with the upstream failed for another reason."""

    token = "tls_protocol_error"
    result = "tls"


class AddressDenied(DialError):
    """The name led to an address where requests may not go."""

    status = 403
    token = "destination_ip_prohibited"
    result = "denied"


class DialLoop(DialError):
    """The dial would lead, or has led, to this proxy itself."""

    token = "proxy_loop_detected"
    result = "denied"


class ConfigError(Exception):
    """What is wrong with the settings: every problem, each one line for a person."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(Exception):
    """The daemon cannot start (port in use, not permitted): one line for a person."""
