"""Where connections lead: names that change, several addresses, one of them that fails, and where
connections come from.

Names are the tests' own (a hosts file in a mount namespace of the daemon's), and so are the
addresses: all of 127.0.0.0/8 is this machine.
"""

import pytest

from tests.e2e.daemon import wait_warm
from tests.e2e.harness import always, eventually, free_port

NAME = "several.test"


@pytest.fixture
def several(origin):
    """Origins at 127.0.0.2 and so on, all at one port."""
    port = free_port()
    return lambda *hosts, **settings: [
        origin(host=f"127.0.0.{host}", port=port, **settings) for host in hosts
    ]


def warm(web, count: int, **config):
    """Settings that hold connections to the name open, at the port of that origin."""
    upstream = [{"url": f"http://{NAME}:{web.port}", "warm": count}]
    return {"upstream": upstream, "dns_refresh": 0.3, **config}


def closed(proxy, web, reason: str) -> float:
    return proxy.count("warmproxy_closed_total", origin=f"http://{NAME}:{web.port}", reason=reason)


# -- spread -----------------------------------------------------------------------------------


def test_connections_are_spread_over_the_addresses(warmproxy, several, hosts) -> None:
    """Each of three addresses gets a third of the warm connections, and what is used up is opened
    again where fewest are."""
    webs = several(2, 3, 4)
    hosts.say({NAME: [web.host for web in webs]})
    # tunnels are another pool, which would soon be held warm as well
    proxy = warmproxy(config=warm(webs[0], 6, learn_requests=0), inside=hosts.inside)
    for web in webs:
        web.wait_open(2)
    for connection in webs[1].open_connections():
        connection.fin()
    webs[1].wait_open(2)
    assert [len(web.open_connections()) for web in webs] == [2, 2, 2]
    tunnels = [proxy.tunnel(f"{NAME}:{webs[0].port}") for _ in range(6)]
    try:
        eventually(
            lambda: [len(web.open_connections()) for web in webs] == [4, 4, 4],
            says=lambda: str([len(web.open_connections()) for web in webs]),
        )
    finally:
        for tunnel in tunnels:
            tunnel.close()


def test_an_address_that_refuses_is_passed_over(warmproxy, several, hosts) -> None:
    """Where one of two addresses refuses, all connections lead to the other one, no dial fails;
    once it is back it gets its share of what is opened then."""
    web, refusing = several(2, 3)
    refusing.refuse()
    hosts.say({NAME: [refusing.host, web.host]})
    proxy = warmproxy(config=warm(web, 4), inside=hosts.inside)
    web.wait_open(4)
    assert "dial_failed" not in proxy.log()


# -- names that change ------------------------------------------------------------------------


def test_connections_follow_a_name_that_moves(warmproxy, several, hosts) -> None:
    """The name leads elsewhere: connections to the address that has gone stay until those that
    replace them are up, and are then closed by us; those to an address that stays, stay."""
    gone, stays, new = several(2, 3, 4)
    new.refuse()
    hosts.say({NAME: [gone.host, stays.host]})
    proxy = warmproxy(config=warm(gone, 4), inside=hosts.inside)
    before = gone.wait_open(2)
    kept = stays.wait_open(2)
    wait_warm(proxy, f"http://{NAME}:{gone.port}", 4)
    lacking = proxy.count("warmproxy_below_target_seconds_total")
    stays.refuse()
    hosts.say({NAME: [stays.host, new.host]})
    eventually(lambda: proxy.count("warmproxy_dials_total", result="refused") >= 2)
    always(lambda: all(c.open for c in before + kept), 0.5, "closed before its successor was up")
    stays.up()
    new.up()
    new.wait_open(2)
    gone.wait_open(0)
    assert [c.ended for c in before] == ["fin", "fin"], "closed by us"
    assert stays.open_connections() == kept
    assert closed(proxy, gone, "address_gone") == 2
    assert len(gone.connections) == 2, "nothing was opened there any more"
    assert proxy.count("warmproxy_below_target_seconds_total") == lacking


def test_a_look_up_that_fails_changes_nothing(warmproxy, several, hosts) -> None:
    """The name has no address any more: connections stay, requests are served, and new connections
    are opened where the name led before; the next answer is followed again."""
    web, later = several(2, 3)
    url = f"http://{NAME}:{web.port}/"
    hosts.say({NAME: [web.host]})
    proxy = warmproxy(config=warm(web, 2), inside=hosts.inside)
    before = web.wait_open(2)
    hosts.say({})
    always(lambda: all(c.open for c in before), 0.7)
    assert proxy.fetch(url + "close").status == 200
    opened = web.wait_open(2)
    assert set(opened) != set(before)
    assert "dial_failed" not in proxy.log()
    hosts.say({NAME: [later.host]})
    later.wait_open(2)
    web.wait_open(0)


def test_a_dial_that_fails_asks_for_the_name_again(warmproxy, several, hosts) -> None:
    """However long a look-up holds: where an address refuses, the next dial asks anew."""
    web, later = several(2, 3)
    hosts.say({NAME: [web.host]})
    proxy = warmproxy(config=warm(web, 2, dns_refresh=1000), inside=hosts.inside)
    web.wait_open(2)
    hosts.say({NAME: [later.host]})
    web.down()
    later.wait_open(2)
    assert proxy.fetch(f"http://{NAME}:{web.port}/").text == later.greeting


def test_a_name_that_keeps_changing_is_believed_later(warmproxy, several, hosts) -> None:
    """A name that gives out its addresses in turns costs one replacement, not one per look-up."""
    first, second = several(2, 3)
    hosts.say({NAME: [first.host]})
    proxy = warmproxy(config=warm(first, 2), inside=hosts.inside)
    first.wait_open(2)
    hosts.say({NAME: [second.host]})
    first.wait_open(0)
    moved = second.wait_open(2)
    hosts.say({NAME: [first.host]})
    always(lambda: all(c.open for c in moved), 1.0)
    moved[0].fin()
    first.wait_open(1)  # so the answer was heard
    assert moved[1].open
    assert closed(proxy, first, "address_gone") == 2


# -- suspicion --------------------------------------------------------------------------------


def test_a_reset_makes_siblings_suspect(warmproxy, several, hosts) -> None:
    """One idle connection is reset: those beside it at its address are replaced, those to another
    address are not; a second reset soon after belongs to the same event."""
    web, other = several(2, 3)
    hosts.say({NAME: [web.host, other.host]})
    proxy = warmproxy(config=warm(web, 8), inside=hosts.inside)
    before, beside = web.wait_open(4), other.wait_open(4)
    before[0].reset()
    eventually(lambda: all(not c.open for c in before), says=lambda: before)
    assert [c.ended for c in before[1:]] == ["fin"] * 3, "closed by us"
    assert all(c.open for c in beside)
    wait_warm(proxy, f"http://{NAME}:{web.port}", 8)
    assert closed(proxy, web, "suspect") == 3
    first, *others = web.open_connections()
    assert others
    first.reset()
    eventually(lambda: closed(proxy, web, "upstream_reset") == 2)
    always(lambda: all(c.open for c in others), 0.5)


def test_a_reset_under_a_request_makes_siblings_suspect(warmproxy, origin) -> None:
    """The same where it is a request whose connection is reset."""

    def break_off(connection, request) -> None:
        if request.target == "/reset":
            connection.reset()
        else:
            connection.reply(b"fine")

    web = origin(break_off)
    proxy = warmproxy("--warm", f"{web.url}=3")
    before = web.wait_open(3)
    assert proxy.fetch(f"{web.url}/reset").status == 502
    eventually(lambda: all(not c.open for c in before), says=lambda: before)
    assert proxy.count("warmproxy_closed_total", origin=web.url, reason="suspect") == 2
    web.wait_open(3)


def test_an_orderly_close_makes_nobody_suspect(warmproxy, origin) -> None:
    """A FIN is one connection's end and says nothing of others."""
    web = origin()
    proxy = warmproxy("--warm", f"{web.url}=3")
    before = web.wait_open(3)
    before[0].fin()
    eventually(lambda: len(web.connections) == 4)
    always(lambda: all(c.open for c in before[1:]), 0.5)
    assert proxy.count("warmproxy_closed_total", reason="suspect") == 0


def test_tls_without_close_notify_makes_nobody_suspect(warmproxy, origin, authority) -> None:
    """Many servers leave it out: the request may have been cut, but the address works. (This one
    reads on: who closes at once resets the connection when our own close_notify comes.)"""
    web = origin(lambda connection, request: connection.fin(), tls=authority.server)
    upstream = {"url": web.url, "warm": 0, "tls": 3, "ca_file": str(authority.file)}
    proxy = warmproxy(config={"upstream": [upstream]})
    before = web.wait_open(3)
    assert proxy.fetch(f"{web.url}/").status == 502
    eventually(lambda: len(web.connections) == 4)
    assert proxy.count("warmproxy_closed_total", origin=web.url, reason="upstream_reset") == 1
    used = web.requests[0].connection
    always(lambda: all(c.open for c in before if c is not used), 0.5)


def test_a_dial_that_is_not_answered_makes_siblings_suspect(warmproxy, origin) -> None:
    """An address that lets a dial time out: idle connections there are replaced as soon as it
    answers again, and serve until then."""
    web = origin()
    proxy = warmproxy(
        config={
            "upstream": [
                {"url": web.url, "warm": 3, "dial_timeout": 0.5, "dial_retry_for": 0},
            ]
        }
    )
    before = web.wait_open(3)
    with web.deaf():
        before[0].fin()
        eventually(lambda: proxy.count("warmproxy_dials_total", result="timeout") >= 1)
        assert proxy.fetch(f"{web.url}/").status == 200
        assert [c.open for c in before[1:]] == [True, True]
    eventually(lambda: proxy.count("warmproxy_closed_total", origin=web.url, reason="suspect") >= 1)
    eventually(lambda: sum(c.open for c in before) <= 1, says=lambda: before)
