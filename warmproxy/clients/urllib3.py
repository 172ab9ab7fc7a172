"""urllib3: a manager that forwards https, and connections that are opened before they are needed.

    with ForwardingManager() as http:
        http.request("GET", "https://api.example.com/")

    http = urllib3.PoolManager(maxsize=4)
    prewarm(http, "https://api.example.com", 4)

urllib3 itself forwards https only to proxies that speak TLS: with an http:// proxy it ignores
`use_forwarding_for_https` and asks for a tunnel.
"""

import ssl
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, NewConnectionError
from urllib3.util import Url, make_headers, parse_url
from urllib3.util.proxy import connection_requires_http_tunnel

from warmproxy.clients import proxy_url

THREADS = 16
"""Connections that prewarm opens at a time, at most."""


# ── forwarding ───────────────────────────────────────────────────────────────────────────────


class ForwardingManager(urllib3.ProxyManager):
    """A ProxyManager that sends http and https alike in absolute-form to warmproxy.

    `proxy` and `allow_remote` as in `proxy_url`, which may raise ValueError. With `fallback`,
    requests go straight to their origins while nothing listens there. What else PoolManager takes
    can be given too; TLS settings (`ca_certs`, `ssl_context`, ...) are for the fallback alone.
    """

    def __init__(
        self,
        proxy: str | None = None,
        *,
        fallback: bool = False,
        allow_remote: bool = False,
        **settings: Any,
    ) -> None:
        where = parse_url(proxy_url(proxy, allow_remote=allow_remote))
        basic = make_headers(proxy_basic_auth=unquote(where.auth)) if where.auth else {}
        self.daemon = where._replace(auth=None)
        self._direct = urllib3.PoolManager(**settings) if fallback else None
        # Told that the proxy speaks TLS, urllib3 writes absolute-form; each pool then makes its
        # connections by _PlainConnection, which does not.
        super().__init__(
            self.daemon._replace(scheme="https").url,
            proxy_headers=basic,
            use_forwarding_for_https=True,
            **settings,
        )
        for name in ("_proxy", "_proxy_config"):
            del self.connection_pool_kw[name]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> Any:
        return super().__exit__(exc_type, exc_val, exc_tb)

    def connection_from_host(
        self,
        host: str | None,
        port: int | None = None,
        scheme: str | None = "http",
        pool_kwargs: dict[str, Any] | None = None,
    ) -> HTTPConnectionPool:
        """The pool of one origin, so that urllib3 knows which redirects leave the origin."""
        return urllib3.PoolManager.connection_from_host(self, host, port, scheme, pool_kwargs)

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **kw: Any
    ) -> urllib3.BaseHTTPResponse:
        """As ProxyManager's; a user and password in `url` are left out, as without a proxy."""
        url = parse_url(url)._replace(auth=None).url
        try:
            return super().urlopen(method, url, redirect=redirect, **kw)
        except (MaxRetryError, NewConnectionError) as error:
            if self._direct is None or not nobody_there(error):
                raise
            return self._direct.urlopen(method, url, redirect=redirect, **kw)

    def clear(self) -> None:
        """Close all idle connections."""
        super().clear()
        if self._direct is not None:
            self._direct.clear()

    def _new_pool(
        self,
        scheme: str,
        host: str,
        port: int,
        request_context: dict[str, Any] | None = None,
    ) -> HTTPConnectionPool:
        pool = super()._new_pool("http", host, port, request_context)
        pool.scheme = scheme
        pool.ConnectionCls = _PlainConnection
        pool.conn_kw["daemon"] = self.daemon
        return pool


class _PlainConnection(HTTPConnection):
    """A connection to the daemon, in place of one to the origin that its pool stands for."""

    def __init__(self, host: str, port: int, *, daemon: Url, **settings: Any) -> None:
        assert daemon.host is not None
        super().__init__(daemon.host.strip("[]"), daemon.port, **settings)


def nobody_there(error: Exception) -> bool:
    """Whether a request failed because no connection to the daemon could be made."""
    reason = error.reason if isinstance(error, MaxRetryError) else error
    return isinstance(reason, NewConnectionError) and isinstance(reason.conn, _PlainConnection)


# ── opening connections before they are needed ───────────────────────────────────────────────


def prewarm(manager: urllib3.PoolManager, url: str, n: int, *, timeout: float = 10.0) -> None:
    """Have `n` connections open in the manager's pool for `url`, TLS done; no request is sent.

    Those that are idle there already count. `timeout` is in seconds, for connecting and for the
    handshake of each. Raises ValueError where the pool keeps fewer (give the manager a `maxsize`),
    and what urllib3 or ssl raise where a connection cannot be made; those that could stay.
    """
    open_connections(manager.connection_from_url(url), n, timeout)


def open_connections(pool: HTTPConnectionPool, n: int, timeout: float) -> None:
    """`prewarm`, for the pool itself."""
    if pool.pool is None or n > pool.pool.maxsize:
        keeps = 0 if pool.pool is None else pool.pool.maxsize
        raise ValueError(f"the pool for {pool.host} keeps {keeps} connections, not {n}")
    if isinstance(pool, HTTPSConnectionPool):
        _watch(pool)
    taken = [pool._get_conn(timeout=timeout) for _ in range(n)]

    def open_one(conn: Any) -> None:
        if conn.is_closed:
            conn.timeout = timeout
            proxy, config = pool.proxy, pool.proxy_config
            if connection_requires_http_tunnel(proxy, config, pool.scheme):
                pool._prepare_proxy(conn)
            else:
                conn.connect()

    try:
        with ThreadPoolExecutor(min(max(n, 1), THREADS), "prewarm") as threads:
            results = [threads.submit(open_one, conn) for conn in taken]
        for result, conn in zip(results, taken, strict=True):
            if result.exception() is not None:
                conn.close()
        for result in results:
            result.result()
    finally:
        for conn in taken:
            pool._put_conn(conn)


def _watch(pool: HTTPSConnectionPool) -> None:
    """Let the connections that this pool makes from now on know a session ticket from an end."""
    made = pool.ConnectionCls
    assert isinstance(made, type)
    if not issubclass(made, _Watched):
        pool.ConnectionCls = type(f"Watched{made.__name__}", (_Watched, made), {})


class _Watched(HTTPConnection):
    """Tells more exactly whether it is alive.

    After a TLS 1.3 handshake the server sends session tickets, which nobody reads before the first
    response. urllib3 takes a readable idle socket for one that was closed, and so would drop each
    connection that was opened ahead of its request. This reads the tickets, through TLS.
    """

    @property
    def is_connected(self) -> bool:
        if super().is_connected:
            return True
        sock = self.sock
        if not isinstance(sock, ssl.SSLSocket):
            return False
        before = sock.gettimeout()
        try:
            sock.settimeout(0)
            sock.recv(1)
        except ssl.SSLWantReadError:
            sock.settimeout(before)
            return True
        except OSError:
            pass
        # The end, or bytes that nobody asked for; what was read cannot be put back.
        self.close()
        return False
