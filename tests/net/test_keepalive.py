"""Keep-alive probes on idle connections."""

import socket

from warmproxy.net.dialer import tune

SHORTEST_NAT = 240
"""Seconds: Azure's load balancer and NAT gateway, the shortest of the clouds' defaults."""
LONGEST_DEFERRAL = 63
"""Seconds: nginx's `listen ... deferred`, 60 s rounded up to a retransmission of the SYN-ACK."""


def test_probes_come_before_a_nat_forgets_and_after_a_server_has_accepted() -> None:
    """A probe on a connection that a server has yet to accept may cost the request behind it; one
    that comes too late finds no connection. A request to a vanished peer is given up after 20 s."""
    with socket.socket() as sock:
        tune(sock)

        def option(name: int) -> int:
            return sock.getsockopt(socket.IPPROTO_TCP, name)

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, between = option(socket.TCP_KEEPIDLE), option(socket.TCP_KEEPINTVL)
        assert idle > LONGEST_DEFERRAL + 5
        assert idle + between < SHORTEST_NAT / 2
        assert option(socket.TCP_USER_TIMEOUT) == 20_000
