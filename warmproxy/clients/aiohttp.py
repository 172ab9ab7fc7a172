"""aiohttp: a session that forwards https.

    async with session() as http:
        async with http.get("https://api.example.com/") as response:
            await response.text()

or, with a ClientSession of your own:

    aiohttp.ClientSession(request_class=ForwardingRequest, proxy=proxy_url())

Needs aiohttp 3.12 or newer.
"""

from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientProxyConnectionError, ClientRequest, ClientResponse

from warmproxy.clients import proxy_url


class ForwardingRequest(ClientRequest):
    """A request that, where it has a proxy, goes there in absolute-form whatever its scheme."""

    def is_ssl(self) -> bool:
        """Whether the connection that this request goes out on is to speak TLS."""
        return self.proxy is None and super().is_ssl()


def session(
    proxy: str | None = None,
    *,
    fallback: bool = False,
    allow_remote: bool = False,
    **settings: Any,
) -> aiohttp.ClientSession:
    """A ClientSession that sends its requests in absolute-form to warmproxy.

    `proxy` and `allow_remote` as in `proxy_url`, which may raise ValueError. With `fallback`,
    requests go straight to their origins, with the session's own TLS settings, while nothing
    listens there. `settings` are those of ClientSession.
    """
    if fallback:
        settings["middlewares"] = (*settings.get("middlewares", ()), _or_directly)
    where = proxy_url(proxy, allow_remote=allow_remote)
    return aiohttp.ClientSession(request_class=ForwardingRequest, proxy=where, **settings)


async def _or_directly(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """A middleware: nobody at the proxy, and so nothing sent, means another try without it."""
    try:
        return await handler(request)
    except ClientProxyConnectionError:
        request.update_proxy(None, None, None)
        request.headers.pop("Proxy-Authorization", None)
        return await handler(request)
