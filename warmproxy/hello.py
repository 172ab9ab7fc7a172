"""What the daemon says when its doors are open: to the log, and to a person."""

import socket
from collections.abc import Sequence

from warmproxy import __version__, log
from warmproxy.settings import Settings
from warmproxy.wiring import Sockets


def say_hello(settings: Settings, sockets: Sockets, warm: list[str]) -> None:
    """`warm`: URL=N of each pool that is held."""
    addresses = [_address(sock) for sock in sockets.proxy.values()]
    log.event(
        "listening",
        version=__version__,
        proxy=addresses,
        gateways=[_address(sock) for sock in sockets.gateways.values()] or None,
        admin=next(map(_address, sockets.admin.values()), None),
        processes=settings.processes if settings.processes > 1 else None,
        warm=warm,
        intercepted=_intercepted(settings) or None,
    )
    warn_of_unverified(settings)
    if settings.log_format != "json":
        print(banner(addresses[0], _intercepted(settings)), flush=True)


def warn_of_unverified(settings: Settings) -> None:
    for upstream in settings.upstream:
        if not upstream.verify:
            log.event("unverified", level="warning", origin=str(upstream.secure_origin))


def _intercepted(settings: Settings) -> list[str]:
    return [upstream.url for upstream in settings.upstream if upstream.intercept]


def banner(address: str, intercepted: Sequence[str] = ()) -> str:
    """What a person does next: the variables, in both spellings; and whose TLS ends here."""
    url = "http://" + address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
    return (
        f"warmproxy {__version__} listens on {url}. For the programs that are to use it:\n"
        f"  export http_proxy={url} HTTP_PROXY={url}\n"
        f"  export https_proxy={url} HTTPS_PROXY={url}\n"
        "  export no_proxy=localhost,127.0.0.1,::1 NO_PROXY=localhost,127.0.0.1,::1"
    ) + "".join(
        f"\nIntercepted, so clients have to trust our authority (warmproxy ca trust-help): {url}"
        for url in intercepted
    )


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
