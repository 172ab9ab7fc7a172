"""Where requests may go and dials may lead: ports, names, networks, and never back to us."""

import pytest

from warmproxy import origin as origins
from warmproxy.errors import AddressDenied, DialLoop, RequestDenied
from warmproxy.origin import Origin, normalise_host
from warmproxy.policy.destinations import Destinations, Listener
from warmproxy.settings import Settings


def destinations(**rules) -> Destinations:
    """Rules that allow everything, but for those given."""
    usual = {"connect_ports": (), "allow": (), "deny": (), "configured": ()}
    return Destinations(**{**usual, **rules})


def http(host: str, port: int = 80) -> Origin:
    return origins.origin("http", normalise_host(host), port)


def tcp(host: str, port: int = 443) -> Origin:
    return origins.origin("tcp", normalise_host(host), port)


# -- CONNECT's ports --------------------------------------------------------------------------


def test_connect_goes_to_its_ports_only() -> None:
    """CONNECT to another port is denied, and the reason names the ports and the setting."""
    rules = destinations(connect_ports=(8443, 443))
    rules.check_origin(tcp("example.com", 443))
    rules.check_origin(tcp("example.com", 8443))
    with pytest.raises(RequestDenied) as denied:
        rules.check_origin(tcp("example.com", 22))
    assert (denied.value.status, denied.value.token) == (403, "http_request_denied")
    for part in ("port 22", "443, 8443", "connect_ports"):
        assert part in denied.value.reason


def test_ports_bind_connect_alone() -> None:
    """A plain request may go to any port, as the rule is against tunnels to odd services."""
    destinations(connect_ports=(443,)).check_origin(http("example.com", 22))


def test_no_ports_means_any() -> None:
    """Without the rule CONNECT goes anywhere."""
    destinations().check_origin(tcp("example.com", 22))


# -- allow_upstreams --------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["api.example.com", "a.wide.example", "a.b.wide.example"])
def test_allowed_by_name(host) -> None:
    """A name as it stands and anything below a *.name pass, wherever they lead."""
    rules = destinations(allow=("API.example.com", "*.Wide.example"))
    rules.check_origin(http(host))
    rules.check_origin(tcp(host))
    rules.check_address(http(host), "203.0.113.9")


@pytest.mark.parametrize(
    "host",
    [
        *["example.com", "x.api.example.com", "api.example.com.evil.test", "notapi.example.com"],
        *["wide.example", "notwide.example", "wide.example.evil.test", "10.0.0.1", "::1"],
    ],
)
def test_not_allowed_by_name(host) -> None:
    """What only looks like an allowed name is denied before it is looked up."""
    rules = destinations(allow=("api.example.com", "*.wide.example"))
    for origin in (http(host), tcp(host)):
        with pytest.raises(RequestDenied) as denied:
            rules.check_origin(origin)
        assert "allow_upstreams" in denied.value.reason


def test_an_international_name_is_allowed_as_it_is_written() -> None:
    """A name beyond ASCII in the settings is the name that clients send in its ASCII form."""
    rules = destinations(allow=("b\u00fccher.example", "*.m\u00fcller.example"))
    rules.check_origin(http("xn--bcher-kva.example"))
    rules.check_origin(http("www.xn--mller-kva.example"))


def test_allowed_networks_are_asked_of_the_address() -> None:
    """Where networks are allowed any name may be looked up, and its address decides."""
    rules = destinations(allow=("10.0.0.0/8", "2001:db8::/32", "api.example.com"))
    rules.check_origin(http("unknown.example"))
    for inside in ("10.1.2.3", "2001:db8::7", "::ffff:10.1.2.3"):
        rules.check_address(http("unknown.example"), inside)
    for outside in ("11.1.2.3", "2001:db9::7", "::ffff:11.1.2.3"):
        with pytest.raises(AddressDenied) as denied:
            rules.check_address(http("unknown.example"), outside)
        assert "not among allow_upstreams" in denied.value.reason
    rules.check_address(http("api.example.com"), "11.1.2.3")


# -- deny_upstreams ---------------------------------------------------------------------------

METADATA = [
    *["169.254.169.254", "169.254.0.1", "169.254.170.2", "fe80::1", "fe80::1%eth0"],
    *["fd00:ec2::254", "100.100.100.200", "192.0.0.192"],
    *["::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::ffff:100.100.100.200"],
]


@pytest.mark.parametrize("address", METADATA)
def test_metadata_services_are_denied_as_shipped(address) -> None:
    """The default keeps requests from link-local addresses and metadata services, however the
    address is written and whatever name led there."""
    rules = destinations(deny=Settings().deny_upstreams)
    for host in ("innocent.example", "10.0.0.1"):
        with pytest.raises(AddressDenied) as denied:
            rules.check_address(http(host), address)
        assert (denied.value.status, denied.value.token) == (403, "destination_ip_prohibited")
        assert "deny_upstreams" in denied.value.reason


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.1", "100.100.100.201", "fd00:ec2::253", "8.8.8.8"]
)
def test_everything_else_may_be_dialled_as_shipped(address) -> None:
    """Loopback, private networks and the world stay open by default."""
    destinations(deny=Settings().deny_upstreams).check_address(http("a.example"), address)


def test_denied_wins_over_an_allowed_name() -> None:
    """A name that is allowed may not lead to an address that is denied."""
    rules = destinations(allow=("api.example.com",), deny=("10.0.0.0/8",))
    with pytest.raises(AddressDenied):
        rules.check_address(http("api.example.com"), "10.0.0.1")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_no_address_is_loopback(address) -> None:
    """A dial to 0.0.0.0 or :: reaches this machine: who denies loopback denies those as well."""
    rules = destinations(deny=("127.0.0.0/8", "::1"))
    with pytest.raises(AddressDenied):
        rules.check_address(http("a.example"), address)


# -- the owner's word -------------------------------------------------------------------------


def test_configured_origins_pass() -> None:
    """What is configured passes ports, names and networks, for requests and tunnels, at its own
    port only."""
    rules = destinations(
        connect_ports=(443,),
        allow=("other.example",),
        deny=("169.254.0.0/16",),
        configured=(http("db.example", 5432),),
    )
    for origin in (http("db.example", 5432), tcp("db.example", 5432)):
        rules.check_origin(origin)
        rules.check_address(origin, "169.254.1.1")
    with pytest.raises(RequestDenied):
        rules.check_origin(tcp("db.example", 5433))
    with pytest.raises(AddressDenied):
        rules.check_address(http("db.example", 5433), "169.254.1.1")


# -- never to ourselves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listening", "address"),
    [
        *[("127.0.0.1", a) for a in ("127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0")],
        *[("::1", a) for a in ("::1", "::1%lo", "::")],
        *[("192.0.2.7", a) for a in ("192.0.2.7", "::ffff:192.0.2.7")],
        *[("0.0.0.0", a) for a in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "::ffff:127.0.0.2")],
        *[("::", a) for a in ("::1", "::", "127.0.0.1")],
    ],
)
@pytest.mark.parametrize("configured", [False, True])
def test_own_listeners_are_never_dialled(listening, address, configured) -> None:
    """Whatever leads to a listener of ours is refused, even where the owner has configured it."""
    origin = http("somewhere.example", 3128)
    rules = destinations(
        configured=(origin,) if configured else (), listeners=(Listener(listening, 3128),)
    )
    for asked in (origin, tcp("somewhere.example", 3128)):
        with pytest.raises(DialLoop) as refused:
            rules.check_address(asked, address)
        assert (refused.value.status, refused.value.token) == (502, "proxy_loop_detected")
        assert "somewhere.example:3128" in refused.value.reason
    rules.check_address(http("somewhere.example", 3129), address)


def test_neighbours_of_a_listener_may_be_dialled() -> None:
    """Another address of loopback with the same port is another program's."""
    rules = destinations(listeners=(Listener("127.0.0.1", 3128), Listener("::1", 3128)))
    for address in ("127.0.0.2", "192.0.2.7", "::2"):
        rules.check_address(http("a.example", 3128), address)


def test_a_connection_back_to_a_listener_everywhere() -> None:
    """A listener at every address is met at each of this machine's: known once connected, by both
    ends having one address."""
    everywhere = destinations(listeners=(Listener("0.0.0.0", 3128),))
    for local, peer in (("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7")):
        with pytest.raises(DialLoop):
            everywhere.check_connected(http("me.example", 3128), local, peer)
        everywhere.check_connected(http("me.example", 80), local, peer)
    everywhere.check_connected(http("other.example", 3128), "192.0.2.7", "192.0.2.8")
    here = destinations(listeners=(Listener("127.0.0.1", 3128),))
    here.check_connected(http("me.example", 3128), "192.0.2.7", "192.0.2.7")
