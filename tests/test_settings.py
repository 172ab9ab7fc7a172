"""settings and how they are loaded: what holds, where it came from, what is said when it cannot."""

import tomllib
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from warmproxy.errors import ConfigError
from warmproxy.loading import Loaded, load
from warmproxy.origin import origin
from warmproxy.settings import (
    NESTED,
    TABLES,
    GatewaySettings,
    OriginSettings,
    Settings,
    UpstreamSettings,
    describe,
    duration,
    parse_address,
    share_of,
    toml_value,
)
from warmproxy.toml_lines import Path, locate


def loaded(
    text: str | None = None, environ: Mapping[str, str] | None = None, **flags: object
) -> Loaded:
    return load(path="w.toml", text=text, environ=environ or {}, flags=flags)


def problems(
    text: str | None = None, environ: Mapping[str, str] | None = None, **flags: object
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, environ, **flags)
    return caught.value.problems


DEFAULT = Settings(state_file="", control="", ca_dir="")
"""Where the environment names no home."""


# ── what holds ───────────────────────────────────────────────────────────────────────────────


def test_nothing_given_means_the_defaults() -> None:
    result = loaded()
    assert result.settings == DEFAULT
    assert set(result.sources.values()) == {"default"}


def test_flags_go_before_the_environment_that_before_the_file_that_before_the_default() -> None:
    text = "grace = 1\nready_timeout = 1\nmax_origins = 1\n"
    environ = {"WARMPROXY_GRACE": "2", "WARMPROXY_READY_TIMEOUT": "2", "HOME": "/"}
    result = loaded(text, environ, grace="3", admin=None)
    found = result.settings
    assert (found.grace, found.ready_timeout, found.max_origins) == (3.0, 2.0, 1)
    sources = result.sources
    assert sources["grace"] == "--grace"
    assert sources["ready_timeout"] == "WARMPROXY_READY_TIMEOUT"
    assert sources["max_origins"] == "w.toml:3"
    assert sources["admin"] == "default"


def test_defaults_hold_for_each_upstream_that_does_not_say_otherwise() -> None:
    text = """
    [defaults]
    idle_timeout = 30
    max_age = 100

    [[upstream]]
    url = "https://a.example"
    warm = 4
    max_age = 0

    [[upstream]]
    url = "http://b.example:8080"
    """
    result = loaded(text, {"WARMPROXY_DEFAULTS__DIAL_TIMEOUT": "1.5"})
    a, b = result.settings.upstream
    assert (a.warm, a.idle_timeout, a.max_age, a.dial_timeout) == (4, 30.0, 0.0, 1.5)
    assert (b.warm, b.idle_timeout, b.max_age, b.dial_timeout) == (2, 30.0, 100.0, 1.5)
    assert b.max_connections == OriginSettings().max_connections
    assert result.settings.defaults.idle_timeout == 30.0
    sources = result.sources
    assert sources["upstream[0].max_age"] == "w.toml:9"
    assert sources["upstream[1].max_age"] == sources["defaults.max_age"] == "w.toml:4"
    assert sources["upstream[1].dial_timeout"] == "WARMPROXY_DEFAULTS__DIAL_TIMEOUT"
    assert sources["upstream[1].warm"] == "default"


def test_every_effective_value_has_a_source() -> None:
    text = '[[upstream]]\nurl = "https://a.example"\n[[upstream]]\nurl = "https://b.example"\n'
    text += '[[upstream.warm_at]]\nat = "0 9 * * *"\ncount = 3\nfor = "1h"\n'
    text += '[[gateway]]\nlisten = "127.0.0.1:9001"\nupstream = "https://a.example"\n'
    expected = {n for n in Settings.__struct_fields__ if n not in NESTED}
    expected |= {f"defaults.{n}" for n in OriginSettings.__struct_fields__}
    of_upstream = {n for n in UpstreamSettings.__struct_fields__ if n != "warm_at"}
    expected |= {f"upstream[{i}].{n}" for i in (0, 1) for n in of_upstream}
    expected |= {f"upstream[1].warm_at[0].{n}" for n in ("at", "count", "tls", "for")}
    expected |= {f"gateway[0].{n}" for n in GatewaySettings.__struct_fields__}
    assert set(loaded(text).sources) == expected


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"HOME": "/home/me"}, "/home/me/.local/state/warmproxy/limits.json"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "/var/me"}, "/var/me/warmproxy/limits.json"),
        ({"XDG_STATE_HOME": "/var/me"}, "/var/me/warmproxy/limits.json"),
        ({"HOME": "/me", "XDG_STATE_HOME": "me"}, "/me/.local/state/warmproxy/limits.json"),
        ({"HOME": "/me", "STATE_DIRECTORY": "/var/lib/w:/b"}, "/var/lib/w/limits.json"),
        ({}, ""),
    ],
)
def test_auto_is_where_the_system_keeps_state(environ: Mapping[str, str], path: str) -> None:
    """systemd's folder before XDG's before the home's; without any of them nothing is kept."""
    assert loaded(None, environ).settings.state_file == path
    assert loaded('state_file = "auto"', environ).settings.state_file == path
    assert loaded('state_file = "/else"', environ).settings.state_file == "/else"
    assert loaded('state_file = ""', environ).settings.state_file == ""
    folder = path.removesuffix("limits.json") + "ca" if path else ""
    assert loaded(None, environ).settings.ca_dir == folder
    assert loaded('ca_dir = "/else"', environ).settings.ca_dir == "/else"


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"XDG_RUNTIME_DIR": "/run/me"}, "/run/me/warmproxy/control-127.0.0.1-3128"),
        ({"XDG_RUNTIME_DIR": "run"}, ""),
        (
            {"XDG_RUNTIME_DIR": "/me", "RUNTIME_DIRECTORY": "/run/w:/b"},
            "/run/w/control-127.0.0.1-3128",
        ),
        ({"XDG_RUNTIME_DIR": "/me", "WARMPROXY_LISTEN": "[::1]:5"}, "/me/warmproxy/control-::1-5"),
        ({"XDG_RUNTIME_DIR": "/me", "WARMPROXY_LISTEN": "127.0.0.1:0"}, ""),
        ({"XDG_RUNTIME_DIR": "/me", "WARMPROXY_CONTROL": "/else"}, "/else"),
        ({}, ""),
    ],
)
def test_the_control_socket_is_where_the_system_keeps_such(
    environ: Mapping[str, str], path: str
) -> None:
    """systemd's folder before XDG's, one name for each address; nowhere without them, and where
    nobody knows the port before."""
    assert loaded(None, environ).settings.control == path


def test_a_reload_keeps_what_only_a_restart_changes() -> None:
    """And names it, beside what changed."""
    before = Settings(state_file="a", grace=1.0)
    holds, changed, fixed = Settings(state_file="b", grace=2.0, max_tunnels=3).after(before)
    assert (holds.state_file, holds.grace, holds.max_tunnels) == ("a", 2.0, 3)
    assert (changed, fixed) == (["max_tunnels", "grace"], ["state_file"])
    assert before.after(before) == (before, [], [])


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("WARMPROXY_LISTEN", "127.0.0.1:1 [::1]:2", "listen", ("127.0.0.1:1", "[::1]:2")),
        ("WARMPROXY_LISTEN", "127.0.0.1:1,[::1]:2", "listen", ("127.0.0.1:1", "[::1]:2")),
        ("WARMPROXY_ALLOW_CLIENTS", " 10.0.0.0/8,\n::1 ", "allow_clients", ("10.0.0.0/8", "::1")),
        ("WARMPROXY_ALLOW_CLIENTS", "", "allow_clients", ()),
        ("WARMPROXY_ADMIN", "", "admin", ""),
        ("WARMPROXY_GRACE", "0.25", "grace", 0.25),
        ("WARMPROXY_MAX_ORIGINS", " 7 ", "max_origins", 7),
        ("WARMPROXY_ACCESS_LOG", "Yes", "access_log", True),
        ("WARMPROXY_ACCESS_LOG", "0", "access_log", False),
        ("WARMPROXY_ACCESS_LOG", "0.01", "access_log", 0.01),
        ("WARMPROXY_LOG_FORMAT", "json", "log_format", "json"),
        ("WARMPROXY_CREDENTIALS_FILE", "/run/a b", "credentials_file", "/run/a b"),
    ],
)
def test_a_variable_holds_any_kind_of_setting(
    variable: str, text: str, key: str, value: object
) -> None:
    assert getattr(loaded(None, {variable: text}).settings, key) == value


def test_every_described_variable_is_read() -> None:
    for setting in describe():
        if setting.variable and setting.default is not None:
            value = tomllib.loads(f"value = {setting.default}")["value"]
            text = " ".join(value) if isinstance(value, list) else str(value)
            assert setting.variable in loaded(None, {setting.variable: text}).sources.values()


@pytest.mark.parametrize(
    "variable",
    [
        "WARMPROXY_CONFIG=/etc/warmproxy.toml",
        "WARMPROXY_SERVICE_HOST=10.0.0.1",
        "WARMPROXY_SERVICE_PORT=3128",
        "WARMPROXY_SERVICE_PORT_PROXY=3128",
        "WARMPROXY_PORT=tcp://10.0.0.1:3128",
        "WARMPROXY_PORT_3128_TCP=tcp://10.0.0.1:3128",
        "WARMPROXY_PORT_3128_TCP_ADDR=10.0.0.1",
        "warmproxy_grace=3",
    ],
)
def test_variables_that_are_not_settings_are_let_be(variable: str) -> None:
    """Kubernetes sets most of these in each pod once there is a Service named warmproxy."""
    name, _, value = variable.partition("=")
    assert loaded(None, {name: value}).settings == DEFAULT


def test_warm_flags_add_upstreams_and_override_the_count_of_known_ones() -> None:
    text = '[[upstream]]\nurl = "https://a.example"\nwarm = 1\nmax_connections = 9\n'
    environ = {"WARMPROXY_WARM": "https://b.example=5 http://[::1]:8080=2\n https://c.example"}
    result = loaded(text, environ, warm=["https://A.example:443=3", "https://b.example=6"])
    found = [(u.origin, u.warm) for u in result.settings.upstream]
    assert found == [
        (origin("tcp", "a.example", 443), 3),
        (origin("tcp", "b.example", 443), 6),
        (origin("http", "::1", 8080), 2),
        (origin("tcp", "c.example", 443), 2),
    ]
    assert result.settings.upstream[0].max_connections == 9
    sources = result.sources
    assert (sources["upstream[0].url"], sources["upstream[0].warm"]) == ("w.toml:2", "--warm")
    assert sources["upstream[1].url"] == "WARMPROXY_WARM"
    assert sources["upstream[3].warm"] == "default"


def test_warm_auto_by_file_flag_and_variable() -> None:
    text = """
    [defaults]
    warm_min = 2
    [[upstream]]
    url = "https://a.example"
    warm = "auto"
    tls = "auto"
    max_connections = 7
    [[upstream]]
    url = "https://d.example"
    warm = 3
    """
    environ = {"WARMPROXY_WARM": "https://b.example=auto,tls=4 http://c.example=auto"}
    settings = loaded(text, environ, warm=["https://d.example=auto"]).settings
    found = [(u.warm, settings.tls_warm(u), u.warm_range) for u in settings.upstream]
    assert found == [
        ("auto", "auto", (2, 7)),
        ("auto", 0, (2, 10)),
        ("auto", 4, (2, 10)),
        ("auto", 0, (2, 10)),
    ]


def test_a_flag_may_stand_in_for_auto_without_a_word_about_the_limits_of_that() -> None:
    text = '[[upstream]]\nurl = "https://a.example"\nwarm = "auto"\nwarm_max = 4\n'
    (upstream,) = loaded(text, warm=["https://a.example=2"]).settings.upstream
    assert upstream.warm == 2


def test_windows_in_either_form_of_toml() -> None:
    text = """
    [defaults]
    timezone = "Europe/Berlin"
    [[upstream]]
    url = "https://a.example"
    warm_at = [{ at = "55 8 * * mon-fri", count = 20, for = "15m" },
        { at = "0 0 1 * *", count = 0, tls = 5, for = 2.5 }]
    [[upstream]]
    url = "http://b.example"
    timezone = ""
    [[upstream.warm_at]]
    at = "*/10 * * * * *"
    count = 3
    for = "2h"
    """
    result = loaded(text)
    a, b = result.settings.upstream
    found = [(w.at, w.count, w.tls, w.seconds) for w in (*a.warm_at, *b.warm_at)]
    assert found == [
        ("55 8 * * mon-fri", 20, 0, 900.0),
        ("0 0 1 * *", 0, 5, 2.5),
        ("*/10 * * * * *", 3, 0, 7200.0),
    ]
    assert (a.timezone, b.timezone) == ("Europe/Berlin", "")
    assert result.sources["upstream[0].warm_at[1].tls"] == "w.toml:7"
    assert result.sources["upstream[1].warm_at[0].at"] == "w.toml:12"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("900", 900), ("0.5", 0.5), ("90s", 90), ("1.5m", 90), ("24h", 86400), (3.5, 3.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "-1", "15 m", "15M", "1d", "24.1h", "90000", "1e3", "\u0661m", "9" * 99]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        duration(text)


def test_warm_without_a_count_leaves_the_count_of_a_known_upstream_alone() -> None:
    text = '[[upstream]]\nurl = "https://a.example"\nwarm = 7\n'
    (upstream,) = loaded(text, warm=["https://a.example"]).settings.upstream
    assert upstream.warm == 7


def test_an_address_with_port_zero_may_be_given_twice() -> None:
    text = 'listen = ["127.0.0.1:0", "127.0.0.1:0"]\nadmin = "127.0.0.1:0"\n'
    assert len(loaded(text).settings.listen) == 2


@pytest.mark.parametrize(
    "text",
    [
        'listen = ["0.0.0.0:1"]\nallow_clients = ["10.0.0.0/8"]',
        'listen = ["[::]:1"]\ncredentials_file = "users"',
        'listen = ["localhost:1", "127.9.9.9:1", "[::1]:1"]',
        'admin = "0.0.0.0:1"',
    ],
)
def test_listening_beyond_loopback_is_fine_for_a_guarded_proxy(text: str) -> None:
    assert loaded(text)


@given(st.integers(0, 1000), st.integers(1, 100))
def test_shares_of_a_total_suffice_and_none_is_one_too_many(total: int, replicas: int) -> None:
    """Together they hold the total; one less each would not."""
    share = share_of(total, replicas)
    assert share * replicas >= total
    assert (share - 1) * replicas < total


def test_a_total_is_shared_by_the_replicas() -> None:
    """warm and tls come to the share of one, wherever the number of replicas is said; whoever
    says warm by a flag means this daemon alone."""
    text = """
    replicas = 3
    [[upstream]]
    url = "https://a.example"
    warm_total = 7
    tls_total = 3
    [[upstream]]
    url = "https://b.example"
    """
    a, b = loaded(text).settings.upstream
    assert [(u.warm, u.tls) for u in (a, b)] == [(3, 1), (2, 0)]
    assert loaded(text).sources["upstream[0].warm"] == "w.toml:5"
    result = loaded(text, {"WARMPROXY_REPLICAS": "40"}, warm=["https://b.example=9"])
    assert [u.warm for u in result.settings.upstream] == [1, 9]
    assert loaded(text, warm=["https://a.example=5"]).settings.upstream[0].warm == 5


# ── what cannot hold (texts as a user sees them: tests/data/bad_configs, test_cli.py) ─────────


def test_every_problem_is_reported_at_once_file_first_then_environment_then_flags() -> None:
    found = problems(
        'grac = 1\n[[upstream]]\nurl = "https://a.example"\nwarm = "four"\n',
        {"WARMPROXY_GRACE": "soon", "WARMPROXY_LISTENS": "x"},
        warm=["https://b.example=x"],
        grace="late",
    )
    assert found == [
        "w.toml:1: unknown key \"grac\"; did you mean 'grace'?",
        'w.toml:4: \'warm\' must be a whole number >= 0 or "auto", not "four"',
        'WARMPROXY_GRACE: must be a number >= 0, not "soon"',
        "WARMPROXY_LISTENS: unknown variable; did you mean 'WARMPROXY_LISTEN'?",
        "--warm 'https://b.example=x': must be URL=N or URL=N,tls=M, whole numbers >= 0 or auto, "
        'not "x"',
        '--grace: must be a number >= 0, not "late"',
    ]


def test_a_wrong_value_is_a_problem_even_where_something_else_goes_before_it() -> None:
    assert problems("grace = true", grace="3") == [
        "w.toml:1: 'grace' must be a number >= 0, not true"
    ]


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("MAX_ORIGINS", "0", "must be a whole number >= 1, not 0"),
        ("MAX_ORIGINS", "1.5", 'must be a whole number >= 1, not "1.5"'),
        ("MAX_ORIGINS", "9" * 30, f'must be a whole number >= 1, not "{"9" * 30}"'),
        ("GRACE", "", 'must be a number >= 0, not ""'),
        ("GRACE", "nan", "must be a number >= 0, not nan"),
        ("GRACE", "1e300", "must be at most 1000000000"),
        ("ACCESS_LOG", "maybe", 'must be true or false or a number from 0 to 1, not "maybe"'),
        ("LISTEN", "", "names no address"),
        ("LISTEN", "3128", '"3128" must be HOST:PORT, for example 127.0.0.1:3128'),
        ("DIAL_TIMEOUT", "3", "unknown variable; did you mean 'WARMPROXY_DEFAULTS__DIAL_TIMEOUT'?"),
        ("DEFAULTS_MAX_AGE", "3", "unknown variable; did you mean 'WARMPROXY_DEFAULTS__MAX_AGE'?"),
        ("DEFAULTS__MAX_AG", "3", "unknown variable; did you mean 'WARMPROXY_DEFAULTS__MAX_AGE'?"),
        ("DEFAULTS__GRACE", "3", "unknown variable; did you mean 'WARMPROXY_GRACE'?"),
        ("Grace", "3", "unknown variable; did you mean 'WARMPROXY_GRACE'?"),
        ("CONFI", "x", "unknown variable; did you mean 'WARMPROXY_CONFIG'?"),
        ("WARMS", "x", "unknown variable; did you mean 'WARMPROXY_WARM'?"),
        ("PORT", "3128", "unknown variable"),
        ("QQQQQQ", "x", "unknown variable"),
        ("", "x", "unknown variable"),
        (
            "UPSTREAM__0__URL",
            "x",
            "unknown variable; tables are for the file, here use WARMPROXY_WARM",
        ),
        (
            "DEFAULTS",
            "x",
            "unknown variable; tables are for the file, here use WARMPROXY_DEFAULTS__<KEY>",
        ),
    ],
)
def test_what_is_said_about_a_variable(variable: str, value: str, problem: str) -> None:
    assert problems(None, {f"WARMPROXY_{variable}": value}) == [f"WARMPROXY_{variable}: {problem}"]


A_WARM_FLAG = "must be URL=N or URL=N,tls=M, whole numbers >= 0 or auto"


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("api.example.com=4", "'api.example.com' must begin with http:// or https://"),
        ("https://a.example=-1", f'{A_WARM_FLAG}, not "-1"'),
        ("https://a.example=", f'{A_WARM_FLAG}, not ""'),
        ("https://a.example=4,tls=aut", f'{A_WARM_FLAG}, not "aut"'),
        ("http://a.example=4,tls=2", "'tls' is for https:// urls"),
        ("=4", "'' must begin with http:// or https://"),
    ],
)
def test_what_is_said_about_a_warm_flag(flag: str, problem: str) -> None:
    assert problems(warm=[flag]) == [f"--warm '{flag}': {problem}"]


def test_no_password_gets_into_a_problem() -> None:
    text = '[[upstream]]\nurl = "ftp://ann:secret@h"\n[[upstream]]\nurl = 3\n'
    found = problems(
        text,
        {"WARMPROXY_WARM": "http://ann:secret@h=2", "WARMPROXY_LISTEN": "http://ann:secret@h"},
        warm=["https://ann:secret@h", "ann://a:secret@h=3"],
        admin="https://ann:secret@h/",
    )
    assert len(found) == 7
    assert "secret" not in "\n".join(found)


def test_a_broken_value_makes_no_further_problems() -> None:
    text = """
    listen = ["0.0.0.0:3128"]
    allow_clients = 5
    [[upstream]]
    url = "https://a.example"
    warm = 200
    max_connections = "many"
    """
    assert [line.split(": ")[0] for line in problems(text)] == ["w.toml:3", "w.toml:7"]


def test_a_list_with_a_wrong_element_is_one_problem() -> None:
    assert problems('listen = ["127.0.0.1:1", 5, "x"]') == [
        "w.toml:1: 'listen' must be a list of strings, not a list"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = " + "[" * 100_000, "w.toml:1: is nested too deeply"),
        ("a = " + "9" * 5000, "w.toml:1: holds a number that is too large"),
        ("max_origins = 0x" + "f" * 9000, "w.toml:1: 'max_origins' must be at most 1000000000"),
        ("grac = 0x" + "f" * 9000, "w.toml:1: unknown key \"grac\"; did you mean 'grace'?"),
        ("access_log = 0x" + "f" * 9000, "not a number that large"),
        ("grace = {}\nx", "w.toml:2: not valid TOML: expected '=' after a key"),
        ("\ud800 = 1", "w.toml:1: not valid TOML"),
    ],
)
def test_extremes(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert problem in found


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:3128", ("::1", 3128)),
        ("[0:0::0001]:1", ("::1", 1)),
        ("LocalHost:80", ("localhost", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "1", "1:1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1"),
        *("127.0.0.1:+1", "127.0.0.1:\u0661", "127.0.0.01:1", " 127.0.0.1:1", "[127.0.0.1]:1"),
        *("::1:1", "[::1]", "[::1:1", "[localhost]:1", "example.com:1", "http://127.0.0.1:1"),
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


# ── what the settings say about themselves ───────────────────────────────────────────────────


def test_a_warm_flag_may_ask_for_finished_tls_too() -> None:
    upstreams = load(
        path=None,
        text=None,
        environ={"WARMPROXY_WARM": "https://a=4,tls=2 https://b,tls=3"},
        flags={"warm": ["https://a=5"]},
    ).settings.upstream
    assert [(u.url, u.warm, u.tls) for u in upstreams] == [
        ("https://a", 5, 2),
        ("https://b", 2, 3),
    ]


def test_upgrade_and_gateway_make_warm_count_for_tls_too() -> None:
    text = '[[upstream]]\nurl = "https://a"\nwarm = 4\n'
    for more, count in (("", 0), ("upgrade = true", 4), ("tls = 1\nupgrade = true", 1)):
        settings = loaded(text + more).settings
        assert settings.tls_warm(settings.upstream[0]) == count
    gateway = '[[gateway]]\nlisten = "127.0.0.1:1"\nupstream = "https://a"\n'
    settings = loaded(text + gateway).settings
    assert settings.tls_warm(settings.upstream[0]) == 4


@pytest.mark.parametrize(
    ("url", "more", "problem"),
    [
        (
            "http://a",
            'prime = "/healthz"',
            '\'prime\': "/healthz" has no method; did you mean "HEAD',
        ),
        ("http://a", 'prime = "POST /x"', "'prime': \"POST /x\" must begin with GET, HEAD or"),
        ("http://a", 'prime = "head /x"', "'prime': \"head /x\" must begin with GET, HEAD or"),
        ("http://a", 'prime = "GET"', "'prime': \"GET\" must name a path"),
        ("http://a", 'prime = "GET *"', "'prime': \"GET *\" must name a path"),
        ("http://a", 'prime = "GET /a b"', "'prime': \"GET /a b\" must name a path"),
        ("http://a", 'prime = "GET /a#b"', "'prime': \"GET /a#b\" must name a path"),
        ("http://a", 'prime = "GET /\\r\\nA: b"', "must name a path"),
        ("http://a", "prime_every = -1", "'prime_every' must be a number >= 0, not -1"),
        ("https://a", 'prime = "HEAD /"', "'prime' needs connections that HTTP is spoken on"),
    ],
)
def test_a_prime_that_cannot_be_is_told_with_its_line(url: str, more: str, problem: str) -> None:
    (line,) = problems(f'[[upstream]]\nurl = "{url}"\n{more}\n')
    assert line.startswith("w.toml:3: ")
    assert problem in line


def test_a_prime_is_a_safe_method_and_a_path_where_http_is_spoken() -> None:
    for request in ("", "HEAD /healthz", "GET /a?b=%20c", "OPTIONS *", "OPTIONS /"):
        text = f'[[upstream]]\nurl = "http://a"\nprime = "{request}"\n'
        assert loaded(text).settings.upstream[0].prime == request
    text = '[[upstream]]\nurl = "https://a"\nprime = "HEAD /"\n'
    gateway = '[[gateway]]\nlisten = "127.0.0.1:1"\nupstream = "https://a"\n'
    for more in ("tls = 1", "upgrade = true", gateway):
        assert loaded(text + more).settings.upstream[0].prime == "HEAD /"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gateway = 1", "w.toml:1: 'gateway' must be written [[gateway]], one per port"),
        ("[[gateway]]", "w.toml:1: this [[gateway]] has no 'listen'"),
        ('[[gateway]]\nlisten = "1"', "w.toml:2: 'listen': \"1\" must be HOST:PORT"),
        ('[[gateway]]\nlisten = "0.0.0.0:1"', "is not on loopback: set allow_clients"),
        ('[[gateway]]\nlisten = "127.0.0.1:3180"', "is the admin listener's address"),
        ('[[gateway]]\nupstream = "h"', "w.toml:2: 'h' must begin with http:// or https://"),
        ('[[gatway]]\nlisten = "127.0.0.1:1"', "did you mean [[gateway]]?"),
        ('[[gateway]]\nlisen = "127.0.0.1:1"', "did you mean 'listen'?"),
    ],
)
def test_what_is_said_about_a_gateway(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(text)
    assert any(problem in line for line in raised.value.problems), raised.value.problems


def test_every_setting_is_described_once() -> None:
    described = [setting.key for setting in describe()]
    expected = [n for n in Settings.__struct_fields__ if n not in NESTED]
    expected += [f"defaults.{n}" for n in OriginSettings.__struct_fields__]
    ordered = list(expected)
    of_all = set(OriginSettings.__struct_fields__)
    of_all |= {"warm_at"}
    expected += [f"upstream.{n}" for n in UpstreamSettings.__struct_fields__ if n not in of_all]
    expected += [f"upstream.warm_at.{n}" for n in ("at", "count", "tls", "for")]
    expected += [f"gateway.{n}" for n in GatewaySettings.__struct_fields__]
    assert sorted(described) == sorted(expected)
    assert described[: len(ordered)] == ordered
    for setting in describe():
        assert setting.meaning
        assert setting.type
        required = ("upstream.url", "gateway.listen", "gateway.upstream")
        of_window = [f"upstream.warm_at.{n}" for n in ("at", "count", "for")]
        assert (setting.default is None) == (setting.key in (*required, *of_window))


def test_descriptions_name_types_in_words() -> None:
    words = {setting.key: setting.type for setting in describe()}
    assert words["listen"] == "a list of strings"
    assert words["grace"] == "a number >= 0"
    assert words["learn_window"] == "a number > 0"
    assert words["upstream.warm"] == 'a whole number >= 0 or "auto"'
    assert words["upstream.warm_at.for"] == 'a number > 0 or a string such as "15m"'
    assert words["access_log"] == "true or false or a number from 0 to 1"
    assert words["log_format"] == '"auto", "json" or "text"'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (3, "3"),
        (3.0, "3"),
        (0.25, "0.25"),
        ('a "b"\n', r'"a \"b\"\n"'),
        (("a", "b"), '["a", "b"]'),
        ((), "[]"),
    ],
)
def test_values_as_toml(value: object, text: str) -> None:
    assert toml_value(value) == text
    read = tomllib.loads(f"v = {text}")["v"]
    assert read == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("struct", [Settings(), UpstreamSettings(url="http://a")])
def test_settings_are_frozen(struct: OriginSettings) -> None:
    with pytest.raises(AttributeError):
        struct.max_connections = 1  # type: ignore[misc]


# ── lines ────────────────────────────────────────────────────────────────────────────────────

DOCUMENT = '''\
# listen = 1
listen = [ # [defaults]
    "a = ]", # "b
    'c"#',

    """d
[[upstream]]
""", 5.5,
    [1, {x = 1, y.z = [2,
3]}], 1979-05-27 07:32:00,
]
"quoted # key" = "x = [" # "
'lit.eral' = """""two quotes"""""
dotted . "and quoted" . key = true
multi = \'\'\'
grace = 3
\'\'\'\'
escaped = "\\\\" # \\"
after = "\\""
[ defaults ] # [[upstream]]
a = 1
[defaults.sub]
b.c = 1
b.d = 2

[[upstream]]
url = 1
[upstream.tls]
warm = 2
[[upstream]]

url = 3
  [[upstream.inner]]
  a = {}
  [[upstream.inner]]
  a = { b = "}" , c = [ ] }
[x.y]
[x]
z = 1
'''


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_of_a_difficult_document(newline: str) -> None:
    text = DOCUMENT.replace("\n", newline)
    lines = locate(text)
    assert set(paths(tomllib.loads(text))) <= set(lines)
    rows = DOCUMENT.split("\n")
    for path, row in {
        ("listen",): "listen = [ # [defaults]",
        ("listen", 1): "    'c\"#',",
        ("listen", 2): '    """d',
        ("listen", 3): '""", 5.5,',
        ("listen", 4, 1, "y", "z"): "    [1, {x = 1, y.z = [2,",
        ("listen", 4, 1, "y", "z", 1): "3]}], 1979-05-27 07:32:00,",
        ("listen", 5): "3]}], 1979-05-27 07:32:00,",
        ("quoted # key",): '"quoted # key" = "x = [" # "',
        ("lit.eral",): '\'lit.eral\' = """""two quotes"""""',
        ("dotted", "and quoted", "key"): 'dotted . "and quoted" . key = true',
        ("escaped",): r'escaped = "\\" # \"',
        ("after",): r'after = "\""',
        ("defaults",): "[ defaults ] # [[upstream]]",
        ("defaults", "sub", "b"): "b.c = 1",
        ("defaults", "sub", "b", "d"): "b.d = 2",
        ("upstream", 0, "tls", "warm"): "warm = 2",
        ("upstream", 1, "url"): "url = 3",
        ("upstream", 1, "inner", 1, "a", "c"): '  a = { b = "}" , c = [ ] }',
        ("x",): "[x]",
        ("x", "y"): "[x.y]",
    }.items():
        assert rows[lines[path] - 1] == row


def paths(value: object, path: Path = ()) -> list[Path]:
    """All paths into what tomllib gave."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    here = [path] if path else []
    return here + [found for key, item in inner for found in paths(item, (*path, key))]


words = st.text(alphabet=" =[]{}#,.'ab\\\"é\t", max_size=6)
basic = words.map(toml_value)
literal = words.map(lambda word: f"'{word.replace(chr(39), '')}'")
multi = st.lists(
    words.map(lambda word: word.replace("'", "").replace('"', "")), max_size=3
).flatmap(
    lambda rows: st.sampled_from(["'''{}'''", '"""{}"""']).map(
        lambda form: form.format("\n".join(rows).replace("\\", "\\\\"))
    )
)
blanks = st.sampled_from(["", " ", "\n", ' # ] } = "\n', "\n\n  "])
scalars = st.one_of(st.sampled_from(["1", "-0.5", "true", "1979-05-27", "0xf"]), basic, literal)


def arrays(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    parts = st.lists(st.tuples(blanks, items, blanks), max_size=3)
    return parts.map(lambda found: "[" + ",".join("".join(part) for part in found) + "]")


def inline_tables(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    # a multi-line string or array may stand in an inline table, a bare new line may not
    return st.lists(items, max_size=3).map(
        lambda found: "{" + ", ".join(f"k{i} = {item}" for i, item in enumerate(found)) + "}"
    )


values = st.recursive(
    st.one_of(scalars, multi), lambda items: arrays(items) | inline_tables(items), max_leaves=5
)
keys = st.lists(
    st.one_of(st.sampled_from(["a", "B-1", "_"]), basic, literal), min_size=1, max_size=2
)
comments = st.sampled_from(["", " # [x]", "\t#'''", '\n# """\n'])
pairs = st.lists(st.tuples(keys, values, comments), max_size=4)
tables = st.lists(st.tuples(st.sampled_from(["plain", "array"]), pairs), max_size=4)


@given(pairs, tables)
def test_the_line_found_is_the_line_written(
    top: list[tuple[list[str], str, str]],
    below: list[tuple[str, list[tuple[list[str], str, str]]]],
) -> None:
    text = ""
    written: dict[Path, int] = {}
    count = 0

    def write(table: Path, rows: list[tuple[list[str], str, str]]) -> None:
        nonlocal text
        for i, (names, value, comment) in enumerate(rows):
            names = [f"key{i}", *names]  # so that no key comes twice
            plain = [tomllib.loads(f"k = {n}")["k"] if n[0] in "'\"" else n for n in names]
            written[(*table, *plain)] = text.count("\n") + 1
            text += f"{' . '.join(names)} = {value}{comment}\n"

    write((), top)
    for i, (kind, rows) in enumerate(below):
        table: Path = (f"table{i}",)
        header = f"[table{i}]"
        if kind == "array":
            table, header = ("array", count), "[[ array ]]"
            count += 1
        written[table] = text.count("\n") + 1
        text += f"{header} # [\n"
        write(table, rows)

    document = tomllib.loads(text)
    found = locate(text)
    assert {path: found[path] for path in written} == written
    assert set(paths(document)) <= set(found)


def outcome(
    text: str | None, environ: Mapping[str, str] | None = None, **flags: object
) -> list[str]:
    """Load; the problems, if any, each of them on one line."""
    try:
        loaded(text, environ, **flags)
    except ConfigError as error:
        found = error.problems
    else:
        return []
    assert found
    assert [len(problem.splitlines()) for problem in found] == [1] * len(found)
    return found


@given(st.text())
@example("\x00")
@example("listen = [\r\n")
def test_any_text_loads_or_is_a_config_error(text: str) -> None:
    assert all(problem.startswith("w.toml:") for problem in outcome(text))


known = st.sampled_from([name for table in ("", "defaults", "upstream") for name in TABLES[table]])
lines_of_config = st.one_of(
    st.tuples(known | keys.map(".".join), st.just(" = "), values).map("".join),
    st.sampled_from(["[defaults]", "[[upstream]]", "[upstream]", "[[defaults]]", "[x.y]", "#"]),
    st.tuples(st.sampled_from(["url", "listen"]), st.just(" = "), basic).map("".join),
    words.map(lambda word: f"url = {toml_value('https://' + word)}"),
    words.map(lambda word: f"listen = [{toml_value(word + ':80')}]"),
    st.sampled_from(["[[upstream.warm_at]]", 'at = "* * * * *"', "count = 3", 'for = "1m"']),
    st.sampled_from(['warm = "auto"', "warm_max = 1", 'timezone = "CET"']),
    st.sampled_from(["warm = 3", "max_connections = 2", 'url = "https://a"', 'admin = ""']),
)


@given(st.lists(lines_of_config, max_size=8).map("\n".join))
def test_anything_like_a_config_loads_or_is_a_config_error(text: str) -> None:
    assert all(problem.startswith("w.toml:") for problem in outcome(text))


@given(
    st.dictionaries(
        st.sampled_from(["GRACE", "LISTEN", "WARM", "ADMIN", "DEFAULTS__MAX_AGE"]) | words,
        st.text(),
    ),
    st.lists(st.text()),
)
def test_any_environment_and_flags_load_or_are_a_config_error(
    environ: dict[str, str], warm: list[str]
) -> None:
    outcome(None, {f"WARMPROXY_{name}": value for name, value in environ.items()}, warm=warm)


@pytest.mark.parametrize("url", ["u:s3cret@h", "http:/u:s3cret@h", "http://u:s3/cret@h"])
def test_a_password_in_a_broken_url_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(f'[[upstream]]\nurl = "{url}"')
    assert not any("s3" in line for line in raised.value.problems), raised.value.problems


def test_only_https_that_is_verified_is_intercepted() -> None:
    """Whoever trusts our authority must get what is as good as the upstream's own certificate."""
    where = 'intercept = true\nurl = "{}"\n'.format
    assert problems("[[upstream]]\n" + where("http://a.example")) == [
        "w.toml:2: 'intercept' is for https:// urls"
    ]
    assert problems("[[upstream]]\nverify = false\n" + where("https://a.example")) == [
        "w.toml:3: 'intercept' and 'verify' false: clients would trust a certificate that "
        "nobody verified; for a private authority set 'ca_file'"
    ]
    assert problems('intercept_clients = ["10.0.0.1/8"]') == [
        "w.toml:1: 'intercept_clients': \"10.0.0.1/8\" has bits beyond its prefix; did you mean"
        " '10.0.0.0/8'?"
    ]


def test_what_is_intercepted_is_held_as_finished_tls_too() -> None:
    settings = loaded(
        '[[upstream]]\nurl = "https://a.example"\nintercept = true\nwarm = 3'
    ).settings
    assert [settings.tls_warm(upstream) for upstream in settings.upstream] == [3]
