"""Keep-alive probes on idle connections."""

import socket

from warmproxy.net.dialer import tune

SHORTEST_NAT = 240
"""Seconds: Azure's load balancer and NAT gateway, the shortest of the clouds' defaults."""


def test_probes_beat_every_nat_and_one_that_is_lost_ends_nothing() -> None:
    """Linux gives a connection up at the first probe that is due after TCP_USER_TIMEOUT while one
    is unanswered: two more must come before that."""
    with socket.socket() as sock:
        tune(sock)

        def option(name: int) -> int:
            return sock.getsockopt(socket.IPPROTO_TCP, name)

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, between = option(socket.TCP_KEEPIDLE), option(socket.TCP_KEEPINTVL)
        given_up = option(socket.TCP_USER_TIMEOUT) / 1000
    assert idle < SHORTEST_NAT / 2
    assert idle + 2 * between < given_up <= 20
