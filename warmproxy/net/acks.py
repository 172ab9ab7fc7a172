"""Acknowledging at once what is only a part, so that nobody waits for that.

Who has Nagle's algorithm on (RFC 896) holds a small write back while an earlier one is not
acknowledged, and Linux acknowledges up to 40 ms late, hoping to have something to send along. Both
are the rule: requests and http.client send the head of a POST and its body in two writes, and have
Nagle on where they use a proxy; http.server and many a framework answer in two. Measured: 44 ms for
each such POST through a proxy, and as many for each such answer, through one or not; 1 ms this way.
"""

import asyncio
import socket

SMALL = 64 * 1024
"""Bytes; who sends more at once is not held up."""

_QUICK = getattr(socket, "TCP_QUICKACK", None)


def acknowledge(transport: asyncio.Transport, size: int) -> None:
    """Of this connection `size` bytes were read, and more has to come. (The system forgets the wish
    as soon as it can: it is to be said again each time.)"""
    if _QUICK is None or size >= SMALL or transport.is_closing():
        return
    sock: socket.socket = transport.get_extra_info("socket")
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _QUICK, 1)
    except OSError:
        pass  # reset meanwhile, as will be told
