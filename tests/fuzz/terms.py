"""Terms for exchanges under test: nothing is denied, the date stands still, we are called `us`."""

from warmproxy.policy.access import Access
from warmproxy.policy.destinations import Destinations
from warmproxy.protocol.exchange import Terms

_ACCESS = Access((), {})
_ANYWHERE = Destinations(connect_ports=(), allow=(), deny=(), configured=())


def terms(max_head: int = 8192, max_buffer: int = 65536, access: Access = _ACCESS) -> Terms:
    """New ones, as they remember what upstreams did."""
    return Terms(
        access=access,
        destinations=_ANYWHERE,
        max_head=max_head,
        max_buffer=max_buffer,
        pseudonym=b"us",
        date=lambda: b"now",
    )
