"""How settings are read: flag > environment > file > default. Read once; nothing reads the
environment later.

`load` is pure: whoever calls it has read the file. It reports every problem at once, each on one
line. What depends on the environment (`state_file` auto) is settled here too.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from warmproxy.cron import Cron, zone
from warmproxy.errors import ConfigError
from warmproxy.origin import Origin, origin_of_url
from warmproxy.settings import (
    DEALT,
    DEALT_BY_ORIGIN,
    DEFAULTS,
    GATEWAY,
    NESTED,
    SETTINGS_ENV_PREFIX,
    TABLES,
    TOP,
    UPSTREAM,
    WINDOW,
    Field,
    GatewaySettings,
    OriginSettings,
    Settings,
    UpstreamSettings,
    WindowSettings,
    check_host_pattern,
    check_network,
    check_source,
    describe,
    duration,
    is_loopback,
    parse_address,
    parse_prime,
    share_of,
    shown,
    split_warm,
    variable_of,
    window_of,
    without_password,
)
from warmproxy.toml_lines import BadToml, Path, read_toml


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, and where each value came from."""

    settings: Settings
    sources: Mapping[str, str]
    """Key (`listen`, `defaults.grace`, `upstream[0].warm`) -> `default`, `warmproxy.toml:12`,
    `WARMPROXY_GRACE` or `--warm`. A value that an upstream has from [defaults] has its source."""


class _Place(NamedTuple):
    """Where a value was written. Problems are sorted by `rank` and `line`."""

    rank: int
    line: int
    source: str
    """as Loaded.sources says it"""
    prefix: str
    """what a problem's line begins with"""
    named: bool
    """whether the key must still be named in the problem, since the prefix does not"""


_BY_DEFAULT = _Place(0, 0, "default", "", True)


def load(
    *, path: str | None, text: str | None, environ: Mapping[str, str], flags: Mapping[str, object]
) -> Loaded:
    """Settings from a file's text, the environment and the command line.

    `path` is for messages only; `text` None means that there is no file. `flags` are keyed like
    the top level of the file, plus `warm` (`URL=N` strings); values are strings, lists of them,
    or what the setting itself holds; None means not given. WARMPROXY_CONFIG is left to the caller.

    Raises ConfigError with every problem, each on one line, in the order file, environment, flags.
    """
    loader = _Loader(path or "configuration")
    if text is not None:
        loader.read_file(text)
    loader.read_environment(environ)
    loader.read_flags(flags)
    return loader.finish()


class _Loader:
    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[Path, int] = {}
        self.problems: list[tuple[int, int, str]] = []
        self.values: dict[str, Any] = {}
        """by key, as in Loaded.sources; only what is valid"""
        self.places: dict[str, _Place] = {}
        self.broken: set[str] = set()
        """keys that were given but not valid: no further check may build on them"""
        self.origins: dict[int, Origin] = {}
        """index of the upstream -> its origin"""
        self.upstreams = 0
        self.windows: dict[int, int] = {}
        """index of the upstream -> how many its warm_at has"""
        self.gateways = 0
        self.elements: dict[str, list[_Place]] = {}
        """key of a list in the file -> where each of its elements is"""
        self.auto_state_file = ""
        self.auto_ca_dir = ""
        self.auto_control = ""
        """the folder that it is in"""

    def problem(self, place: _Place, what: str) -> None:
        line = f"{place.prefix}: {what}" if place.prefix else what
        self.problems.append((place.rank, place.line, line))

    # where it may come from

    def read_file(self, text: str) -> None:
        try:
            document, self.lines = read_toml(text)
        except BadToml as error:
            self.problem(self.at_line(error.line), error.what)
            return
        for name, value in document.items():
            if name == "defaults":
                if isinstance(value, dict):
                    self.read_table((name,), value)
                else:
                    self.problem(self.in_file(name), "'defaults' must be a table: [defaults]")
            elif name in ("upstream", "gateway"):
                read = self.read_upstream if name == "upstream" else self.read_gateway
                if isinstance(value, list) and all(isinstance(table, dict) for table in value):
                    for index, table in enumerate(value):
                        read(index, table)
                else:
                    each = "origin" if name == "upstream" else "port"
                    what = f"'{name}' must be written [[{name}]], one per {each}"
                    self.problem(self.in_file(name), what)
            else:
                self.read_table((), {name: value})

    def at_line(self, line: int) -> _Place:
        where = f"{self.path}:{line}"
        return _Place(0, line, where, where, True)

    def in_file(self, *path: str | int) -> _Place:
        return self.at_line(self.lines[path])

    def read_table(self, path: Path, given: Mapping[str, object]) -> None:
        """Each key of a table; `path` is (), ("defaults",), ("upstream", index) and so on."""
        table = ".".join(part for part in path if isinstance(part, str))
        for name, value in given.items():
            place = self.in_file(*path, name)
            if name in TABLES[table] and not (table == "" and name in NESTED):
                key = _key(*path, name)
                self.take(key, value, place)
                if isinstance(value, list) and key in self.values:
                    each = range(len(value))
                    self.elements[key] = [self.in_file(*path, name, i) for i in each]
            elif table == "" and isinstance(value, dict | list):
                self.problem(place, _unknown_table(name))
            else:
                self.problem(place, _unknown_key(name, table))

    def read_upstream(self, index: int, given: Mapping[str, object]) -> None:
        self.upstreams = index + 1
        path: Path = ("upstream", index)
        self.read_table(path, {name: given[name] for name in given if name != "warm_at"})
        if "warm_at" in given:
            self.read_windows(index, given["warm_at"])
        key = _key(*path, "url")
        if "url" not in given:
            self.problem(self.in_file(*path), "this [[upstream]] has no 'url'")
        if key not in self.values:
            return
        place = self.places[key]
        origin = self.origin_of(self.values[key], place)
        for other, known in self.origins.items():
            if origin == known:
                first = self.places[f"upstream[{other}].url"]
                self.problem(place, f"{_name(known)} is already an upstream at line {first.line}")
                return
        if origin is not None:
            self.origins[index] = origin

    def read_windows(self, index: int, given: object) -> None:
        path: Path = ("upstream", index, "warm_at")
        if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
            what = "'warm_at' must be a list of windows, each like " + _A_WINDOW
            self.problem(self.in_file(*path), what)
            return
        self.windows[index] = len(given)
        for i, table in enumerate(given):
            self.read_table((*path, i), table)
            missing = [f"'{name}'" for name in ("at", "count", "for") if name not in table]
            if missing:
                what = f"this window has no {', '.join(missing)}; write it like {_A_WINDOW}"
                self.problem(self.in_file(*path, i), what)

    def read_gateway(self, index: int, given: Mapping[str, object]) -> None:
        self.gateways = index + 1
        path: Path = ("gateway", index)
        self.read_table(path, given)
        for name in GATEWAY:
            if name not in given:
                self.problem(self.in_file(*path), f"this [[gateway]] has no '{name}'")
        key = _key(*path, "upstream")
        if key in self.values:
            self.origin_of(self.values[key], self.places[key])

    def read_environment(self, environ: Mapping[str, str]) -> None:
        self.auto_state_file = _in_state_folder("limits.json", environ)
        self.auto_ca_dir = _in_state_folder("ca", environ)
        self.auto_control = _runtime_folder(environ)
        for variable in sorted(environ):
            if not variable.startswith(SETTINGS_ENV_PREFIX) or variable in _NOT_SETTINGS:
                continue
            if _FROM_ORCHESTRATOR.fullmatch(f"{variable}={environ[variable]}"):
                continue
            place = _Place(1, 0, variable, _one_line(variable), False)
            name = variable.removeprefix(SETTINGS_ENV_PREFIX)
            table, _, inner = name.partition("__") if "__" in name else ("", "", name)
            key = inner.lower()
            if name == "WARM":
                for text in environ[variable].split():
                    self.read_warm(text, place)
            elif name.isupper() and table == "" and key in TOP and key not in NESTED:
                self.take(key, environ[variable], place)
            elif name.isupper() and table == "DEFAULTS" and key in DEFAULTS:
                self.take(f"defaults.{key}", environ[variable], place)
            else:
                self.problem(place, _unknown_variable(name))

    def read_flags(self, flags: Mapping[str, object]) -> None:
        for name, value in flags.items():
            if value is None:
                continue
            flag = "--" + _FLAGS.get(name, name).replace("_", "-")
            place = _Place(2, 0, flag, flag, False)
            if name == "warm":
                assert isinstance(value, Sequence)
                for text in value:
                    self.read_warm(text, place)
            else:
                self.take(name, value, place)

    def read_warm(self, text: str, place: _Place) -> None:
        """`URL=N` or `URL`. A URL that is an upstream already gets its `warm` from here."""
        quoted = _one_line(without_password(text))[:200]
        place = place._replace(prefix=f"{place.prefix} '{quoted}'")
        url, counts = split_warm(text)
        origin = self.origin_of(url, place)
        for count in counts.values():
            if not re.fullmatch("[0-9]{1,9}|auto", count):
                what = "must be URL=N or URL=N,tls=M, whole numbers >= 0 or auto, not "
                self.problem(place, what + shown(count))
                return
        if origin is None:
            return
        if "tls" in counts and origin.scheme == "http":
            self.problem(place, "'tls' is for https:// urls")
            return
        index = next((i for i, known in self.origins.items() if known == origin), self.upstreams)
        if index == self.upstreams:
            self.upstreams += 1
            self.origins[index] = origin
            self.put(f"upstream[{index}].url", url, place)
        for name, count in counts.items():
            value = count if count == "auto" else int(count)
            self.put(f"upstream[{index}].{name}", value, place)

    # one value

    def take(self, key: str, value: object, place: _Place) -> None:
        """Keep a value if its type and limits are right; outside a file it may come as text."""
        field = _field(key)
        text = value if isinstance(value, str) else None
        try:
            read = field.convert(value) if text is None or place.rank == 0 else field.read(text)
            self.put(key, read, place)
        except ValueError as error:
            self.broken.add(key)
            close = _closest(text, field.choices) if text else None
            self.about(key, place, f"{error}; did you mean '{close}'?" if close else str(error))

    def put(self, key: str, value: object, place: _Place) -> None:
        self.values[key] = value
        self.elements.pop(key, None)
        self.places[key] = place
        self.broken.discard(key)

    def about(self, key: str, place: _Place, what: str) -> None:
        colon = ":" if what.startswith('"') else ""
        name = key.rpartition(".")[2]
        self.problem(place, f"'{name}'{colon} {what}" if place.named else what)

    def origin_of(self, url: str, place: _Place) -> Origin | None:
        try:
            return origin_of_url(url)
        except UnicodeError:
            self.problem(place, f"{shown(url)} names a host that cannot exist")
        except ValueError as error:
            what = _one_line(without_password(str(error)))
            self.problem(place, what if "'" in what else f"{shown(url)}: {what}")
        return None

    # what holds in the end

    def value(self, key: str) -> tuple[Any, _Place]:
        """What holds for a key, and where it was set."""
        table, _, name = key.rpartition(".")
        if key in self.values:
            return self.values[key], self.places[key]
        if table.startswith("upstream") and name in DEFAULTS:
            return self.value(f"defaults.{name}")
        return _field(key).default, _BY_DEFAULT

    def each(self, key: str) -> list[tuple[str, _Place]]:
        """The strings of a list, each with where it was written."""
        values, place = self.value(key)
        places = self.elements.get(key) or [place] * len(values)
        return list(zip(values, places, strict=True))

    def sound(self, *keys: str) -> bool:
        return not self.broken.intersection(keys)

    def check_addresses(self) -> None:
        listen = self.each("listen")
        if not listen:
            self.about("listen", self.value("listen")[1], "names no address")
        gateways = self.gateway_addresses()
        guards = ("allow_clients", "credentials_file")
        guarded = not self.sound(*guards) or any(self.value(guard)[0] for guard in guards)
        places: dict[tuple[str, int], _Place] = {}
        for text, place in (*listen, *gateways):
            address = self.address_of("listen", text, place)
            if address is None:
                continue
            if address in places and address[1] != 0:
                self.about("listen", place, f"{shown(text)} is given twice")
            places[address] = place
            if not guarded and (text, place) not in gateways and not is_loopback(address[0]):
                self.about("listen", place, _open_proxy(text))
                guarded = True  # it need not be said for each of them
        admin, place = self.value("admin")
        address = self.address_of("admin", admin, place) if admin else None
        if address is None or address not in places or address[1] == 0:
            return
        if place is _BY_DEFAULT:
            what = f"{shown(admin)} is the admin listener's address by default"
            self.about("listen", places[address], f"{what}; give each its own port")
        else:
            what = f"{shown(admin)} is a listen address too; give each its own port"
            self.about("admin", place, what)

    def gateway_addresses(self) -> list[tuple[str, _Place]]:
        """Each with its place. One that others can reach needs allow_clients: a program with a
        base URL cannot send the proxy's credentials."""
        found = []
        for i in range(self.gateways):
            key = _key("gateway", i, "listen")
            if key not in self.values:
                continue
            text, place = self.values[key], self.places[key]
            found.append((text, place))
            try:
                host, _ = parse_address(text)
            except ValueError:
                continue  # said with the other addresses
            if not is_loopback(host) and not self.value("allow_clients")[0]:
                self.about(key, place, f"{shown(text)} is not on loopback: set allow_clients")
        return found

    def address_of(self, key: str, text: str, place: _Place) -> tuple[str, int] | None:
        try:
            return parse_address(text)
        except ValueError as error:
            self.about(key, place, str(error))
        return None

    def check_networks(self) -> None:
        checks = (
            ("allow_clients", check_network),
            ("intercept_clients", check_network),
            ("deny_upstreams", check_network),
            ("allow_upstreams", check_host_pattern),
        )
        for key, check in checks:
            for text, place in self.each(key):
                try:
                    check(text)
                except ValueError as error:
                    self.about(key, place, str(error))

    def check_windows(self) -> None:
        """Time zones, and of each window `at` and `for`."""
        for key in ("defaults", *(f"upstream[{i}]" for i in range(self.upstreams))):
            self.judge(f"{key}.timezone", zone)
        for index, count in self.windows.items():
            for i in range(count):
                self.judge(f"upstream[{index}].warm_at[{i}].at", Cron)
                self.judge(f"upstream[{index}].warm_at[{i}].for", duration)

    def check_secure(self) -> None:
        """What is about TLS means something for https urls only, and a key with its certificate."""
        for i, origin in self.origins.items():
            for name in _FOR_TLS:
                key = _key("upstream", i, name)
                if origin.scheme == "http" and self.values.get(key):
                    self.about(key, self.places[key], "is for https:// urls")
            key = _key("upstream", i, "client_key")
            if self.values.get(key) and not self.value(_key("upstream", i, "client_cert"))[0]:
                self.about(key, self.places[key], "is for 'client_cert', which is not given")

    def judge(self, key: str, check: Callable[[Any], object]) -> None:
        """Say what `check` raises about the value, if it was given and is of the right type."""
        if key in self.values:
            value, place = self.value(key)
            try:
                check(value)
            except ValueError as error:
                self.about(key, place, f"{shown(value)} {error}")

    def check_sources(self) -> None:
        upstreams = [_key("upstream", i) for i in range(self.upstreams)]
        for key in (f"{table}.source_address" for table in ("defaults", *upstreams)):
            if key in self.values:
                try:
                    check_source(self.values[key])
                except ValueError as error:
                    self.about(key, self.places[key], str(error))

    def check_primes(self) -> None:
        gateways = [self.values.get(_key("gateway", i, "upstream")) for i in range(self.gateways)]
        for i, origin in self.origins.items():
            key = f"upstream[{i}].prime"
            text, place = self.value(key)
            if not text:
                continue
            try:
                parse_prime(text)
            except ValueError as error:
                self.about(key, place, str(error))
                continue
            speaks = [f"upstream[{i}].{name}" for name in ("tls", "upgrade", "intercept")]
            if origin.scheme == "http" or not self.sound(*speaks):
                continue
            by_gateway = any(url and _origin(url) == origin for url in gateways)
            if not (by_gateway or any(self.value(name)[0] for name in speaks)):
                what = f"needs connections that HTTP is spoken on, and those to {_name(origin)}"
                self.about(key, place, f"{what} are raw, for tunnels; set 'tls', or 'upgrade'")

    def check_intercepts(self) -> None:
        """Only what is verified: our certificate says that it is."""
        for i in self.origins:
            key, verify = f"upstream[{i}].intercept", f"upstream[{i}].verify"
            if not self.sound(key, verify) or not self.value(key)[0]:
                continue
            place = self.value(key)[1]
            if not self.value(verify)[0]:
                what = "and 'verify' false: clients would trust a certificate that nobody verified"
                self.about(key, place, f"{what}; for a private authority set 'ca_file'")

    def share_totals(self) -> None:
        """Put what warm_total and tls_total come to in the place of warm and tls, for all that
        follows."""
        replicas, _ = self.value("replicas")
        for i in range(self.upstreams):
            for name in ("warm", "tls"):
                key = f"upstream[{i}].{name}"
                total, place = self.value(f"{key}_total")
                own = self.places.get(key, _BY_DEFAULT)
                if not total or own.rank > place.rank:  # a flag or variable said how many
                    continue
                if own is not _BY_DEFAULT:
                    what = f"and '{name}' (line {own.line}) both say how many; keep one of them"
                    self.about(f"{key}_total", place, what)
                else:
                    self.put(key, share_of(total, replicas), place)

    def check_counts(self) -> None:
        total = 0
        last = _BY_DEFAULT
        for i, origin in self.origins.items():
            of_all = {"warm_min", "warm_max", "max_connections"}
            if not self.sound(*(_key("defaults", name) for name in of_all)):
                return
            if not self.sound(*(_key("upstream", i, name) for name in (*of_all, "warm", "tls"))):
                return
            self.check_auto(i, origin)
            for name in ("warm", "tls"):
                if self.value(_key("upstream", i, name))[0] != "auto":
                    self.compare(i, name, "max_connections", origin)
            for j in range(self.windows.get(i, 0)):
                for name in ("count", "tls"):
                    name = _key("warm_at", j, name)
                    if _key("upstream", i, name) in self.values:
                        self.compare(i, name, "max_connections", origin)
            warm, place = self.value(_key("upstream", i, "warm"))
            total += self.value(_key("upstream", i, "warm_min"))[0] if warm == "auto" else warm
            last = self.places[f"upstream[{i}].url"] if place is _BY_DEFAULT else place
        most, place = self.value("max_connections")
        if total <= most or not self.sound("max_connections"):
            return
        if place is not _BY_DEFAULT:
            what = f"is {most}, less than the {total} that all upstreams' 'warm' add up to"
            self.about("max_connections", place, what)
        else:
            what = f"all upstreams' 'warm' add up to {total}, more than the {most} of "
            self.problem(last, what + "'max_connections'; set that at the top level")

    def check_shares(self) -> None:
        """Each process needs one of all that is dealt: else their limits would add up to more."""
        count, _ = self.value("processes")
        keys = list(DEALT)
        for table in ("defaults", *(_key("upstream", i) for i in self.origins)):
            keys += [f"{table}.{name}" for name in DEALT_BY_ORIGIN]
        for key in keys:
            most, place = self.value(key)
            if 0 < most < count and self.sound(key, "processes"):
                what = f"is {most}, less than the {count} of 'processes': each needs one"
                self.about(key, place, what)

    def check_auto(self, i: int, origin: Origin) -> None:
        """warm_min <= warm_max <= max_connections; and both only where they mean something."""
        warm, place = self.value(_key("upstream", i, "warm"))
        if "auto" in (warm, self.value(_key("upstream", i, "tls"))[0]):
            self.compare(i, "warm_min", "warm_max", origin)
            by_default = self.value(_key("upstream", i, "warm_max"))[1] is _BY_DEFAULT
            self.compare(i, "warm_min" if by_default else "warm_max", "max_connections", origin)
            return
        for name in ("warm_min", "warm_max"):
            own = self.places.get(_key("upstream", i, name))
            if own is not None and place.rank == 0:  # a flag may take the place of auto for a while
                where = " by default" if place is _BY_DEFAULT else ""
                self.about(name, own, f"is for warm = \"auto\", and here 'warm' is {warm}{where}")

    def compare(self, i: int, less: str, most: str, origin: Origin) -> None:
        """Say so where one of an upstream's numbers is more than another that bounds it."""
        (count, place), (bound, its_place) = (
            self.value(_key("upstream", i, name)) for name in (less, most)
        )
        if count <= bound:
            return
        if place is not _BY_DEFAULT:
            where = " by default" if its_place is _BY_DEFAULT else f" ({its_place.source})"
            self.about(less, place, f"is {count}, more than the {bound} of '{most}'{where}")
        else:
            what = f"is {bound}, less than '{less}' ({count} by default) of {_name(origin)}"
            self.about(most, its_place, what)

    def finish(self) -> Loaded:
        self.share_totals()
        self.check_addresses()
        self.check_networks()
        self.check_windows()
        self.check_sources()
        self.check_secure()
        self.check_primes()
        self.check_intercepts()
        self.check_counts()
        self.check_shares()
        if self.problems:
            self.problems.sort(key=lambda problem: problem[:2])
            raise ConfigError(list(dict.fromkeys(line for _, _, line in self.problems)))
        sources: dict[str, str] = {}

        def table(path: Path, names: Iterable[str]) -> dict[str, Any]:
            chosen = {}
            for name in names:
                chosen[name], place = self.value(_key(*path, name))
                sources[_key(*path, name)] = place.source
            return chosen

        top = table((), [name for name in TOP if name not in NESTED])
        if top["state_file"] == "auto":
            top["state_file"] = self.auto_state_file
        if top["ca_dir"] == "auto":
            top["ca_dir"] = self.auto_ca_dir
        if top["control"] == "auto":
            top["control"] = _control(self.auto_control, top["listen"][0])
        defaults = OriginSettings(**table(("defaults",), DEFAULTS))
        order = list(dict.fromkeys(["url", "warm", *UPSTREAM]))  # as people write them
        order.remove("warm_at")

        def windows(i: int) -> tuple[WindowSettings, ...]:
            paths = [("upstream", i, "warm_at", j) for j in range(self.windows.get(i, 0))]
            return tuple(window_of(table(path, WINDOW)) for path in paths)

        upstream = [
            UpstreamSettings(**table(("upstream", i), order), warm_at=windows(i))
            for i in range(self.upstreams)
        ]
        gateway = [GatewaySettings(**table(("gateway", i), GATEWAY)) for i in range(self.gateways)]
        settings = Settings(
            **top, defaults=defaults, upstream=tuple(upstream), gateway=tuple(gateway)
        )
        return Loaded(settings, sources)


# ── words for people ─────────────────────────────────────────────────────────────────────────

_A_WINDOW = '{ at = "55 8 * * mon-fri", count = 20, for = "15m" }'
_FLAGS = {"allow_clients": "allow_client"}  # the flag is repeated, so it names one
_FOR_TLS = ("tls", "tls_total", "upgrade", "upgrade_remote", "client_cert", "intercept")
_NOT_SETTINGS = frozenset({f"{SETTINGS_ENV_PREFIX}CONFIG"})
# Kubernetes puts these into every pod once a Service is called "warmproxy": not meant for us, and
# no reason to refuse to start.
_FROM_ORCHESTRATOR = re.compile(
    r"WARMPROXY_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)=.*"
    r"|WARMPROXY_PORT=(tcp|udp|sctp)://.*"
)
_PLACES = {
    "": "at the top level",
    "defaults": "in [defaults]",
    "upstream": "in [[upstream]]",
    "upstream.warm_at": "in warm_at",
    "gateway": "in [[gateway]]",
}


def _closest(word: str, known: Iterable[str]) -> str | None:
    import difflib  # here: 1 ms, for those with a mistake

    word = word[:80].lower().replace("-", "_")
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)), None)


def _unknown_key(name: str, table: str) -> str:
    elsewhere = [other for other in TABLES if other != table and name in TABLES[other]]
    if elsewhere and name not in NESTED:
        if "" in elsewhere:
            return f"'{name}' belongs at the top level, above the first [table]"
        where = " or ".join(_PLACES[other].removeprefix("in ") for other in elsewhere)
        return f"'{name}' belongs in {where}, not {_PLACES[table]}"
    close = _closest(name, {key: None for other in (table, *TABLES) for key in TABLES[other]})
    if close is None:
        return f"unknown key {shown(name)}"
    place = next(other for other in (table, *TABLES) if close in TABLES[other])
    where = "" if place == table else f" {_PLACES[place]}"
    return f"unknown key {shown(name)}; did you mean '{close}'{where}?"


def _unknown_table(name: str) -> str:
    headers = {
        "defaults": "[defaults]",
        "upstream": "[[upstream]]",
        "gateway": "[[gateway]]",
    }
    close = _closest(name, headers)
    if close is None or name in UPSTREAM:
        return _unknown_key(name, "")
    return f"unknown table {shown(name)}; did you mean {headers[close]}?"


def _unknown_variable(name: str) -> str:
    if name in ("DEFAULTS", "UPSTREAM") or name.startswith("UPSTREAM__"):
        meant = "WARMPROXY_WARM" if name != "DEFAULTS" else "WARMPROXY_DEFAULTS__<KEY>"
        return f"unknown variable; tables are for the file, here use {meant}"
    plain = re.sub("_+", "_", name.lower())
    for table in ("", "defaults"):  # the right key, written in a wrong way
        for key in TABLES[table]:
            if key not in NESTED and plain in (key, f"defaults_{key}"):
                return f"unknown variable; did you mean '{variable_of(table, key)}'?"
    # without the prefix: what all have in common would make everything look alike
    known = [setting.variable for setting in describe() if setting.variable]
    known += [f"{SETTINGS_ENV_PREFIX}WARM", *_NOT_SETTINGS]
    by_key = {variable.removeprefix(SETTINGS_ENV_PREFIX).lower(): variable for variable in known}
    close = _closest(name, by_key)
    return "unknown variable" + (f"; did you mean '{by_key[close]}'?" if close else "")


def _open_proxy(listen: str) -> str:
    return (
        f"{shown(listen)} can be reached from other machines, and whoever reaches an open proxy "
        "can use it as you: set allow_clients to the networks of your clients, or credentials_file"
    )


def _in_state_folder(name: str, environ: Mapping[str, str]) -> str:
    """What `auto` means: in the folder that systemd made (StateDirectory=), else where the XDG Base
    Directory Specification says; "" where there is neither that nor a home."""
    first, _, _ = environ.get("STATE_DIRECTORY", "").partition(":")
    if first:
        return f"{first}/{name}"
    home, state = environ.get("HOME", ""), environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):  # relative ones are to be ignored
        state = f"{home}/.local/state" if home else ""
    return f"{state}/warmproxy/{name}" if state else ""


def _runtime_folder(environ: Mapping[str, str]) -> str:
    """Where `control` auto is: the folder that systemd made (RuntimeDirectory=), else by the XDG
    Base Directory Specification, which knows no other place; "" where there is neither."""
    first, _, _ = environ.get("RUNTIME_DIRECTORY", "").partition(":")
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    return first or (f"{runtime}/warmproxy" if runtime.startswith("/") else "")


def _control(folder: str, listen: str) -> str:
    """One name for each daemon of the same user: no two have the same address."""
    host, port = parse_address(listen)
    return f"{folder}/control-{host}-{port}" if folder and port else ""


def _key(*path: str | int) -> str:
    """A setting's key, as in Loaded.sources."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]


def _field(key: str) -> Field:
    table, _, name = key.rpartition(".")
    return TABLES[re.sub(r"\[\d+\]", "", table)][name]


def _origin(url: str) -> Origin | None:
    try:
        return origin_of_url(url)
    except ValueError:
        return None  # said where it stands


def _name(origin: Origin) -> str:
    """An origin as the user writes it."""
    return f"{'http' if origin.scheme == 'http' else 'https'}://{origin.authority}"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
