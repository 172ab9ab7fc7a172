"""httpx: transports that forward https.

    with httpx.Client(transport=ForwardingTransport()) as client:
        client.get("https://api.example.com/")

AsyncForwardingTransport is the same for httpx.AsyncClient.
"""

from base64 import b64encode
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import httpx

from warmproxy.clients import proxy_url


class _Way:
    """How a request for an origin becomes one for warmproxy."""

    def __init__(self, proxy: str | None, allow_remote: bool) -> None:
        where = httpx.URL(proxy_url(proxy, allow_remote=allow_remote))
        self._credentials: str | None = None
        if where.userinfo:
            plain = unquote(where.userinfo.decode("ascii")).encode()
            self._credentials = f"Basic {b64encode(plain).decode('ascii')}"
        self._url = where.copy_with(userinfo=b"")

    def forward(self, request: httpx.Request) -> httpx.Request:
        """The same request, its target in absolute-form, for a connection to warmproxy."""
        url = request.url
        target = url.raw_scheme + b"://" + url.netloc + url.raw_path
        headers = request.headers
        if self._credentials is not None:
            headers = headers.copy()
            headers["Proxy-Authorization"] = self._credentials
        return httpx.Request(
            request.method,
            self._url,
            headers=headers,
            stream=request.stream,
            extensions={**request.extensions, "target": target},
        )


class ForwardingTransport(httpx.BaseTransport):
    """Sends requests in absolute-form to warmproxy.

    `proxy` and `allow_remote` as in `proxy_url`, which may raise ValueError. With `fallback`,
    requests go straight to their origins while nothing listens there. `settings` are those of
    httpx.HTTPTransport: `limits` and the like hold for both ways, `verify`, `cert`, `http1` and
    `http2` for the fallback alone.
    """

    def __init__(
        self,
        proxy: str | None = None,
        *,
        fallback: bool = False,
        allow_remote: bool = False,
        **settings: Any,
    ) -> None:
        self._way = _Way(proxy, allow_remote)
        self._plain = httpx.HTTPTransport(**_without_tls(settings))
        self._direct = httpx.HTTPTransport(**settings) if fallback else None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Called by httpx for each request."""
        try:
            return self._plain.handle_request(self._way.forward(request))
        except httpx.ConnectError:  # nobody there, and so nothing was sent
            if self._direct is None:
                raise
        return self._direct.handle_request(request)

    def close(self) -> None:
        """Close all connections."""
        self._plain.close()
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()


class AsyncForwardingTransport(httpx.AsyncBaseTransport):
    """ForwardingTransport for httpx.AsyncClient."""

    def __init__(
        self,
        proxy: str | None = None,
        *,
        fallback: bool = False,
        allow_remote: bool = False,
        **settings: Any,
    ) -> None:
        self._way = _Way(proxy, allow_remote)
        self._plain = httpx.AsyncHTTPTransport(**_without_tls(settings))
        self._direct = httpx.AsyncHTTPTransport(**settings) if fallback else None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Called by httpx for each request."""
        try:
            return await self._plain.handle_async_request(self._way.forward(request))
        except httpx.ConnectError:
            if self._direct is None:
                raise
        return await self._direct.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._plain.aclose()
        if self._direct is not None:
            await self._direct.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


def _without_tls(settings: dict[str, Any]) -> dict[str, Any]:
    """For plain connections: nothing to verify with, so that no trust store is read."""
    ours = {name: value for name, value in settings.items() if name not in _OF_THE_ORIGIN}
    return {**ours, "verify": False, "trust_env": False}


_OF_THE_ORIGIN = ("verify", "cert", "trust_env", "http1", "http2")
