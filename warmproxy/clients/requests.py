"""requests: an adapter that forwards https, and connections opened before they are needed.

    session = requests.Session()
    session.mount("https://", ForwardingAdapter())

`prewarm` is for any session, with this adapter or without:

    session = requests.Session()
    prewarm(session, "https://api.example.com", 4)

The first does without the client's own handshake, the second has it done beforehand.
"""

from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import urldefragauth

from warmproxy.clients import proxy_url
from warmproxy.clients.urllib3 import ForwardingManager, nobody_there, open_connections


class ForwardingAdapter(HTTPAdapter):
    """Sends the requests of the prefix that it is mounted on, in absolute-form, to warmproxy.

    `proxy` and `allow_remote` as in `proxy_url`, which may raise ValueError. With `fallback`,
    requests go straight to their origins while nothing listens there. What else HTTPAdapter takes
    can be given too.

    The session's proxies and the proxy variables do not count here. `verify` and `cert` are for
    the fallback alone: for forwarded requests the daemon's settings hold, and one with a `cert`
    raises ValueError rather than going without it.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "_proxy", "_allow_remote", "_fallback", "_direct"]  # noqa: RUF012

    def __init__(
        self,
        proxy: str | None = None,
        *,
        fallback: bool = False,
        allow_remote: bool = False,
        **settings: Any,
    ) -> None:
        self._proxy = proxy_url(proxy, allow_remote=allow_remote)
        self._allow_remote = allow_remote
        self._direct = HTTPAdapter(**settings) if fallback else None
        super().__init__(**settings)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager = ForwardingManager(
            self._proxy,
            allow_remote=self._allow_remote,
            num_pools=connections,
            maxsize=maxsize,
            block=block,
            **pool_kwargs,
        )

    def request_url(
        self, request: requests.PreparedRequest, proxies: Mapping[str, str] | None
    ) -> str:
        """The whole URL, without what is no part of a request."""
        assert request.url is not None
        return str(urldefragauth(request.url))

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """As HTTPAdapter's."""
        if cert is not None:
            raise ValueError("a client certificate for warmproxy is 'client_cert' of its upstream")
        try:
            return super().send(request, stream, timeout, True, None, None)
        except requests.ConnectionError as error:
            reason = error.args[0] if error.args else None
            if self._direct is None or not isinstance(reason, Exception):
                raise
            if not nobody_there(reason):
                raise
        return self._direct.send(request, stream, timeout, verify, cert, None)

    def close(self) -> None:
        super().close()
        if self._direct is not None:
            self._direct.close()


def session(
    proxy: str | None = None, *, fallback: bool = False, allow_remote: bool = False
) -> requests.Session:
    """A Session whose http and https requests all go to warmproxy. See ForwardingAdapter."""
    made = requests.Session()
    adapter = ForwardingAdapter(proxy, fallback=fallback, allow_remote=allow_remote)
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made


def prewarm(session: requests.Session, url: str, n: int, *, timeout: float = 10.0) -> None:
    """Have `n` connections to `url` open in the session, TLS done; no request is sent.

    They are for requests with the session's own `verify`, `cert` and proxies; those that are idle
    there already count. `timeout` is in seconds, for connecting and for the handshake of each.
    Raises ValueError where the adapter keeps fewer than `n` connections (10, unless HTTPAdapter is
    given another `pool_maxsize`), and what urllib3 or ssl raise where a connection cannot be made;
    those that could stay.
    """
    adapter = session.get_adapter(url)
    if not isinstance(adapter, HTTPAdapter):
        raise ValueError(f"{type(adapter).__name__} has no pool of connections")
    request = session.prepare_request(requests.Request("GET", url))
    assert request.url is not None
    found = session.merge_environment_settings(request.url, {}, None, None, None)
    verify, cert = found["verify"], found["cert"]
    of_pool: Any = adapter  # typed in requests, but not in types-requests
    pool = of_pool.get_connection_with_tls_context(request, verify, found["proxies"], cert)
    of_pool.cert_verify(pool, request.url, verify, cert)
    open_connections(pool, n, timeout)
