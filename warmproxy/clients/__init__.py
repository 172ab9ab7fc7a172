"""Adapters for Python's HTTP clients: https over connections that warmproxy has ready.

    from warmproxy.clients.requests import ForwardingAdapter, prewarm, session
    from warmproxy.clients.httpx import AsyncForwardingTransport, ForwardingTransport
    from warmproxy.clients.aiohttp import ForwardingRequest, session
    from warmproxy.clients.urllib3 import ForwardingManager, prewarm

A client that is told of a proxy by http_proxy asks it for a tunnel (CONNECT) and shakes hands with
the origin itself, which costs round trips on each new connection. These adapters send the request
itself instead, `GET https://host/path` in absolute-form: warmproxy, which has finished TLS
connections at hand, passes it on.

What that means for trust. The request travels in the clear from the client to warmproxy, so that
way must not leave the machine: a proxy that is not on loopback is refused unless `allow_remote` is
given. It is warmproxy that verifies the origin's certificate and name, by its settings (`ca_file`,
`client_cert`, `verify`), and not by those of the client; an origin that it does not trust comes
back as a 502 with a `Proxy-Status` field, so look at the status (`raise_for_status`).

With `fallback`, a request goes straight to its origin, with the client's own TLS settings, while
nothing listens where warmproxy should be. Only then: once there is a connection to warmproxy, its
answer is what counts.

Nothing here imports the daemon, and each module imports no other client than its own.
"""

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

DEFAULT_PROXY = "http://127.0.0.1:3128"


def proxy_url(proxy: str | None = None, *, allow_remote: bool = False) -> str:
    """Where warmproxy is, as `http://[user:password@]host:port`.

    That is `proxy`, or else what the variable http_proxy (or HTTP_PROXY) names, or else
    DEFAULT_PROXY. Raises ValueError where that is no http:// address, or is not on loopback and
    `allow_remote` is not given.
    """
    where = proxy or _variable() or DEFAULT_PROXY
    if "://" not in where:
        where = f"http://{where}"
    try:
        parts = urlsplit(where)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    if parts.scheme != "http" or not host or parts.path not in ("", "/"):
        raise ValueError("the proxy's address must be of the form http://host:port")
    if not (allow_remote or _on_loopback(host)):
        raise ValueError(
            f"the proxy {host} is not on this machine, and requests would travel to it in the "
            "clear; allow_remote=True permits that"
        )
    credentials, at, _ = parts.netloc.rpartition("@")
    return f"http://{credentials}{at}{f'[{host}]' if ':' in host else host}:{port}"


def _variable() -> str | None:
    # A CGI script's HTTP_PROXY is a field that its client chose.
    upper = None if "REQUEST_METHOD" in os.environ else os.environ.get("HTTP_PROXY")
    return os.environ.get("http_proxy") or upper


def _on_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
