"""All settings: their names, types, defaults, limits and meanings, and how they are read. Frozen;
read once; nothing reads the environment later.

Seconds are float seconds, sizes are bytes. Precedence: flag > environment > file > default. `load`
is pure: whoever calls it has read the file. It reports every problem at once, each on one line.
"""

import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from warmproxy.errors import ConfigError
from warmproxy.origin import Origin, origin_of_url

SETTINGS_ENV_PREFIX = "WARMPROXY_"

# The upper bounds are no policy: they keep what a typing error can make within what the event
# loop's clock and a C integer can hold.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=1e9)]
Rate = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=10**9)]
PositiveCount = Annotated[int, Meta(ge=1, le=10**9)]


def _says(meaning: str) -> Meta:
    return Meta(description=meaning)


class OriginSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set for each origin; the table [defaults] sets it for all of them."""

    max_connections: Annotated[
        PositiveCount,
        _says("Connections to this origin at most: idle, active and being dialled."),
    ] = 100
    max_waiting: Annotated[
        Count,
        _says(
            "Requests that may wait for a connection to this origin; one more gets a 503 at once."
        ),
    ] = 1000
    acquire_timeout: Annotated[
        PositiveSeconds, _says("Seconds a request waits for a connection before its 503.")
    ] = 10.0
    dial_timeout: Annotated[
        PositiveSeconds,
        _says("Seconds for name resolution, and again for connecting, before a 504."),
    ] = 5.0
    dial_budget: Annotated[
        Rate,
        _says(
            "Refill dials a second at most; 0 means 2 x warm. Dials that a client waits for "
            "always go."
        ),
    ] = 0.0
    backoff_max: Annotated[
        PositiveSeconds,
        _says(
            "Longest pause between refill dials while they fail, in seconds (full jitter, "
            "doubling)."
        ),
    ] = 10.0
    idle_timeout: Annotated[
        PositiveSeconds,
        _says("Seconds a used connection is kept idle. The default is below nginx's 75 s."),
    ] = 60.0
    max_age: Annotated[
        Seconds,
        _says(
            "Seconds after which a connection is replaced (each 0-10 % sooner, so that they do "
            "not go together); 0 means never."
        ),
    ] = 3600.0
    response_timeout: Annotated[
        Seconds,
        _says(
            "Seconds until the first byte of a response, counted from the end of the request, "
            "before a 504; 0 means for ever."
        ),
    ] = 300.0


class UpstreamSettings(OriginSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[upstream]] table: an origin that is held warm."""

    url: Annotated[
        str,
        _says("http://host[:port] for plain requests, https://host[:port] for CONNECT tunnels."),
    ]
    warm: Annotated[Count, _says("Connections held open and idle, always.")] = 2

    @property
    def origin(self) -> Origin:
        return origin_of_url(self.url)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The top level of the file."""

    listen: Annotated[
        tuple[str, ...],
        _says(
            "Where the proxy listens. Beyond loopback, allow_clients or credentials_file is needed."
        ),
    ] = ("127.0.0.1:3128", "[::1]:3128")
    admin: Annotated[
        str, _says('Where /metrics, /healthz, /readyz and /pools are; "" for nowhere.')
    ] = "127.0.0.1:3180"
    allow_clients: Annotated[
        tuple[str, ...],
        _says(
            "Networks whose clients may use the proxy; empty means: loopback, or whoever has "
            "credentials."
        ),
    ] = ()
    credentials_file: Annotated[
        str,
        _says("A file of user:password lines; clients then need Proxy-Authorization: Basic."),
    ] = ""
    upstream: Annotated[tuple[UpstreamSettings, ...], _says("The origins to hold warm.")] = ()
    defaults: Annotated[
        OriginSettings, _says("What holds for each origin that does not say otherwise.")
    ] = OriginSettings()
    learn_requests: Annotated[
        Count,
        _says(
            "An origin that is not configured is warmed once it was asked this often in "
            "learn_window; 0 means never."
        ),
    ] = 3
    learn_window: Annotated[
        PositiveSeconds, _says("Seconds in which learn_requests must come.")
    ] = 60.0
    learn_warm: Annotated[PositiveCount, _says("Connections held idle for a learned origin.")] = 2
    learn_quiet: Annotated[
        PositiveSeconds,
        _says("Seconds without a request after which a learned origin is no longer warmed."),
    ] = 300.0
    max_connections: Annotated[
        PositiveCount,
        _says(
            "Connections to all upstreams together; idle ones of the origin that was used least "
            "recently go first."
        ),
    ] = 4096
    max_origins: Annotated[
        PositiveCount,
        _says(
            "Origins remembered; the least recently used one without a connection in use is let "
            "go first. Configured ones always stay."
        ),
    ] = 1000
    client_idle_timeout: Annotated[
        PositiveSeconds, _says("Seconds an idle client connection is kept.")
    ] = 600.0
    max_head: Annotated[
        int,
        Meta(ge=8192, le=10**9),
        _says("Bytes of a request's or response's head at most."),
    ] = 65536
    max_buffer: Annotated[
        int,
        Meta(ge=1024, le=10**9),
        _says(
            "Bytes of a request's body held while it waits for a connection, and for a second try."
        ),
    ] = 65536
    ready_timeout: Annotated[
        Seconds,
        _says("Seconds after which /readyz no longer waits for a pool that is not warm."),
    ] = 10.0
    grace: Annotated[
        Seconds,
        _says("Seconds that exchanges in flight get to finish at SIGTERM or Ctrl-C."),
    ] = 5.0
    access_log: Annotated[bool, _says("One line for each exchange.")] = False
    log_format: Annotated[
        Literal["auto", "text", "json"],
        _says("text, json, or auto: text on a terminal, json elsewhere."),
    ] = "auto"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, and where each value came from."""

    settings: Settings
    sources: Mapping[str, str]
    """Key (`listen`, `defaults.grace`, `upstream[0].warm`) -> `default`, `warmproxy.toml:12`,
    `WARMPROXY_GRACE` or `--warm`. A value that an upstream has from [defaults] has its source."""


# ── what the fields say about themselves ─────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Description:
    """One setting, in words."""

    key: str
    """`grace`, `defaults.dial_timeout`, `upstream.warm`"""
    type: str
    """`a whole number >= 0`"""
    default: str | None
    """as TOML; None where there is none and it must be given"""
    meaning: str
    variable: str
    """of the environment; "" where there is none"""

    @property
    def table(self) -> str:
        """`defaults`, `upstream`, or "" for the top level."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


class _Field(NamedTuple):
    type: Any
    """for msgspec.convert"""
    kind: msgspec.inspect.Type
    """the same, for looking into"""
    words: str
    default: Any
    meaning: str


def _fields(struct: type[msgspec.Struct]) -> dict[str, _Field]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    kinds = {field.name: field.type for field in info.fields}
    found = {}
    for field in msgspec.structs.fields(struct):
        kind = kinds[field.name]
        assert isinstance(kind, msgspec.inspect.Metadata), f"{field.name} has no description"
        meaning = (kind.extra_json_schema or {})["description"]
        found[field.name] = _Field(field.type, kind.type, _words(kind.type), field.default, meaning)
    return found


def _words(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(gt=gt, ge=ge) | msgspec.inspect.FloatType(gt=gt, ge=ge):
            whole = "whole " if isinstance(kind, msgspec.inspect.IntType) else ""
            return f"a {whole}number {'>=' if gt is None else '>'} {ge if gt is None else gt:g}"
        case msgspec.inspect.LiteralType(values=values):
            *most, last = [f'"{value}"' for value in values]
            return f"{', '.join(most)} or {last}"
        case msgspec.inspect.StrType():
            return "a string"
        case msgspec.inspect.VarTupleType(item_type=msgspec.inspect.StrType()):
            return "a list of strings"
        case msgspec.inspect.VarTupleType():
            return "tables, [[upstream]]"
        case _:
            return "a table, [defaults]"


_TOP = _fields(Settings)
_DEFAULTS = _fields(OriginSettings)
_UPSTREAM = _fields(UpstreamSettings)
_TABLES = {"": _TOP, "defaults": _DEFAULTS, "upstream": _UPSTREAM}
_PLACES = {"": "at the top level", "defaults": "in [defaults]", "upstream": "in [[upstream]]"}
_NESTED = ("defaults", "upstream")


def describe() -> list[Description]:
    """Every setting that can be written down: the top level, then [defaults], then what is only
    in [[upstream]] (which may hold everything of [defaults] too)."""
    found = []
    for table, fields in _TABLES.items():
        for name, field in fields.items():
            if name in (_NESTED if table == "" else _DEFAULTS if table == "upstream" else ()):
                continue
            variable = "" if table == "upstream" else _variable(table, name)
            required = field.default is msgspec.NODEFAULT
            default = None if required else toml_value(field.default)
            key = f"{table}.{name}" if table else name
            found.append(Description(key, field.words, default, field.meaning, variable))
    return found


def _variable(table: str, name: str) -> str:
    return SETTINGS_ENV_PREFIX + (f"{table}__{name}" if table else name).upper()


def toml_value(value: object) -> str:
    """A setting's value as TOML would write it."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.12g}"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case tuple() | list():
            return f"[{', '.join(map(toml_value, value))}]"
        case _:
            return str(value)


def _shown(value: object) -> str:
    """A value as a problem quotes it: short, on one line, with no password in it."""
    match value:
        case str():
            text = json.dumps(_without_password(value))
            return text if len(text) <= 60 else f'{text[:56]}..."'
        case bool() | float():
            return toml_value(value)
        case int():
            return str(value) if abs(value) < 10**20 else "a number that large"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return str(value)


def _without_password(text: str) -> str:
    return re.sub(r"//\S*@", "//***@", text)


# ── addresses ────────────────────────────────────────────────────────────────────────────────


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` -> host without brackets, port (0 lets the system choose).

    Raises ValueError, with a sentence for the user, where HOST is neither an IP address nor
    `localhost`, or PORT is not within 0-65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        hint = f"127.0.0.1:{text}" if text.isdigit() else "127.0.0.1:3128"
        raise ValueError(f"{_shown(text)} must be HOST:PORT, for example {hint}")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{_shown(text)} has no valid port (0-65535)")
    if not host:
        raise ValueError(f"{_shown(text)} has no host; for example 127.0.0.1:{port}")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if bare.lower() == "localhost" and not bracketed:
        return "localhost", int(port)
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(
            f"{_shown(text)}: the host must be an IP address or localhost, not {_shown(bare)}"
        ) from None
    if bracketed != (address.version == 6):
        fitting = f"[{bare}]:{port}" if address.version == 6 else f"{bare}:{port}"
        raise ValueError(f"{_shown(text)} must be written {fitting}")
    return str(address), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host that `parse_address` gave."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        return
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{_shown(text)} is not a network; for example 10.0.0.0/8 or 192.168.1.7"
        ) from None
    raise ValueError(f"{_shown(text)} has bits beyond its prefix; did you mean '{meant}'?")


# ── lines: tomllib does not say where a value was ────────────────────────────────────────────

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:""?)?'  # up to two quotes may stand before the closing three
    r"|'''.*?'''(?:''?)?"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)


class _Locator:
    """Walks over TOML that tomllib has accepted, so it need not judge, only keep count."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.last_index: dict[Path, int] = {}  # of each array of tables

    def walk(self) -> None:
        table: Path = ()
        while self.see(_BLANK):
            if self.text.startswith("[[", self.at):
                table = self.header(2)
            elif self.text.startswith("[", self.at):
                table = self.header(1)
            else:
                self.pair(table)

    def see(self, pattern: re.Pattern[str]) -> bool:
        """Step over what matches; False at the end of the text."""
        self.take(pattern)
        return self.at < len(self.text)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None, f"line {self.line}"
        self.line += match[0].count("\n")
        self.at = match.end()
        return match[0]

    def step(self, wanted: str) -> bool:
        if not self.text.startswith(wanted, self.at):
            return False
        self.at += len(wanted)
        return True

    def header(self, brackets: int) -> Path:
        self.at += brackets
        line = self.line
        *parents, name = self.key()
        self.at += brackets
        path = (*self.descend((), parents, line), name)
        if brackets == 1:
            self.lines[path] = line
            return path
        self.lines.setdefault(path, line)
        index = self.last_index[path] = self.last_index.get(path, -1) + 1
        self.lines[*path, index] = line
        return (*path, index)

    def descend(self, path: Path, names: Iterable[str], line: int) -> Path:
        """Follow names from a table; where one is an array of tables, its last one is meant."""
        for name in names:
            path = (*path, name)
            self.lines.setdefault(path, line)
            if path in self.last_index:
                path = (*path, self.last_index[path])
        return path

    def key(self) -> list[str]:
        names = []
        while True:
            self.take(_SPACE)
            if self.text[self.at] in "\"'":
                quoted = self.take(_STRING)
                names.append(tomllib.loads(f"key = {quoted}")["key"])
            else:
                names.append(self.take(_BARE_KEY))
            self.take(_SPACE)
            if not self.step("."):
                return names

    def pair(self, table: Path) -> None:
        line = self.line
        *parents, name = self.key()
        self.step("=")
        self.take(_SPACE)
        path = (*self.descend(table, parents, line), name)
        self.lines[path] = line
        self.value(path)

    def value(self, path: Path) -> None:
        if self.step("["):
            index = 0
            while self.see(_BLANK) and not self.step("]"):
                self.lines[*path, index] = self.line
                self.value((*path, index))
                self.take(_BLANK)
                self.step(",")
                index += 1
        elif self.step("{"):
            while self.see(_BLANK) and not self.step("}"):
                self.pair(path)
                self.take(_BLANK)
                self.step(",")
        elif self.text[self.at] in "\"'":
            self.take(_STRING)
        else:
            self.take(_SCALAR)


def locate(text: str) -> dict[Path, int]:
    """The line, from 1, of each key, table and array element of TOML that tomllib accepts.

    `("upstream", 0, "warm")` is the path of `warm` in the first [[upstream]]. A table is at its
    header, or where it is first implied; a value is where its key begins.
    """
    locator = _Locator(text)
    locator.walk()
    return locator.lines


# ── load ─────────────────────────────────────────────────────────────────────────────────────


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
        self.problems: list[tuple[int, int, str]] = []
        self.values: dict[str, Any] = {}
        """by key, as in Loaded.sources; only what is valid"""
        self.places: dict[str, _Place] = {}
        self.broken: set[str] = set()
        """keys that were given but not valid: no further check may build on them"""
        self.origins: dict[int, Origin] = {}
        """index of the upstream -> its origin"""
        self.upstreams = 0
        self.elements: dict[str, list[_Place]] = {}
        """key of a list in the file -> where each of its elements is"""

    def problem(self, place: _Place, what: str) -> None:
        line = f"{place.prefix}: {what}" if place.prefix else what
        self.problems.append((place.rank, place.line, line))

    # where it may come from

    def read_file(self, text: str) -> None:
        try:
            document = tomllib.loads(text)
            lines = locate(text)
        except RecursionError:
            self.problem(self.in_file(1), "is nested too deeply")
            return
        except ValueError as error:  # tomllib's own, and int() for numbers beyond all measure
            self.problem(*self.syntax_problem(text, str(error)))
            return
        for name, value in document.items():
            place = self.in_file(lines[name,])
            if name == "defaults":
                if isinstance(value, dict):
                    self.read_table("defaults", "defaults", value, lines, ("defaults",))
                else:
                    self.problem(place, "'defaults' must be a table: [defaults]")
            elif name == "upstream":
                if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
                    self.problem(place, "'upstream' must be written [[upstream]], one per origin")
                    continue
                for index, table in enumerate(value):
                    self.read_upstream(table, lines, index)
            else:
                self.read_table("", "", {name: value}, lines, ())

    def in_file(self, line: int) -> _Place:
        where = f"{self.path}:{line}"
        return _Place(0, line, where, where, True)

    def syntax_problem(self, text: str, message: str) -> tuple[_Place, str]:
        found = re.fullmatch(
            r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL
        )
        if found is None:
            return self.in_file(1), "holds a number that is too large"
        what, line = found.groups()
        what = " ".join((what[:1].lower() + what[1:]).split())
        if what.startswith(_UNQUOTED):
            what += "; does a string lack its quotes?"
        if line is None:
            return self.in_file(
                text.rstrip().count("\n") + 1
            ), f"not valid TOML: {what}, at the end"
        return self.in_file(int(line)), f"not valid TOML: {what}"

    def read_table(
        self,
        table: str,
        prefix: str,
        given: Mapping[str, object],
        lines: Mapping[Path, int],
        path: Path,
    ) -> None:
        for name, value in given.items():
            place = self.in_file(lines[*path, name])
            if name in _TABLES[table] and not (table == "" and name in _NESTED):
                key = f"{prefix}.{name}" if prefix else name
                self.take(key, _TABLES[table], value, place)
                if isinstance(value, list) and key in self.values:
                    each = range(len(value))
                    self.elements[key] = [self.in_file(lines[*path, name, i]) for i in each]
            elif table == "" and isinstance(value, dict | list):
                self.problem(place, _unknown_table(name))
            else:
                self.problem(place, _unknown_key(name, table))

    def read_upstream(
        self, given: Mapping[str, object], lines: Mapping[Path, int], index: int
    ) -> None:
        self.upstreams = index + 1
        path: Path = ("upstream", index)
        prefix = f"upstream[{index}]"
        self.read_table("upstream", prefix, given, lines, path)
        if "url" not in given:
            self.problem(self.in_file(lines[path]), "this [[upstream]] has no 'url'")
        if f"{prefix}.url" not in self.values:
            return
        place = self.places[f"{prefix}.url"]
        origin = self.origin_of(self.values[f"{prefix}.url"], place)
        for other, known in self.origins.items():
            if origin is known:
                first = self.places[f"upstream[{other}].url"]
                self.problem(place, f"{_name(known)} is already an upstream at line {first.line}")
                return
        if origin is not None:
            self.origins[index] = origin

    def read_environment(self, environ: Mapping[str, str]) -> None:
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
                    shown = _Place(1, 0, variable, f"{variable} '{_flag_text(text)}'", False)
                    self.read_warm(text, shown)
            elif name.isupper() and table == "" and key in _TOP and key not in _NESTED:
                self.take_text(key, _TOP, environ[variable], place)
            elif name.isupper() and table == "DEFAULTS" and key in _DEFAULTS:
                self.take_text(f"defaults.{key}", _DEFAULTS, environ[variable], place)
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
                    self.read_warm(text, place._replace(prefix=f"{flag} '{_flag_text(text)}'"))
            elif isinstance(value, str):
                self.take_text(name, _TOP, value, place)
            else:
                self.take(name, _TOP, value, place)

    def read_warm(self, text: str, place: _Place) -> None:
        """`URL=N` or `URL`. A URL that is an upstream already gets its `warm` from here."""
        url, equals, count = text.rpartition("=")
        if not equals:
            url = text
        origin = self.origin_of(url, place)
        if equals and not re.fullmatch("[0-9]{1,9}", count):
            self.problem(place, f"must be URL=N, N a whole number >= 0, not {_shown(count)}")
            return
        if origin is None:
            return
        index = next((i for i, known in self.origins.items() if known is origin), self.upstreams)
        if index == self.upstreams:
            self.upstreams += 1
            self.origins[index] = origin
            self.put(f"upstream[{index}].url", url, place)
        if equals:
            self.put(f"upstream[{index}].warm", int(count), place)

    # one value

    def take(self, key: str, fields: Mapping[str, _Field], value: object, place: _Place) -> None:
        """Keep a value if its type and limits are right."""
        name = key.rpartition(".")[2]
        field = fields[name]
        try:
            self.put(key, msgspec.convert(value, field.type), place)
        except msgspec.ValidationError:
            self.refuse(key, place, _must_be(field, value))

    def take_text(self, key: str, fields: Mapping[str, _Field], text: str, place: _Place) -> None:
        """Keep a value that comes as text, from a variable or a flag."""
        field = fields[key.rpartition(".")[2]]
        value = _from_text(field.kind, text)
        if value is None:
            self.refuse(key, place, _must_be(field, text))
        else:
            self.take(key, fields, value, place)

    def put(self, key: str, value: object, place: _Place) -> None:
        self.values[key] = value
        self.elements.pop(key, None)
        self.places[key] = place
        self.broken.discard(key)

    def refuse(self, key: str, place: _Place, what: str) -> None:
        self.broken.add(key)
        self.about(key, place, what)

    def about(self, key: str, place: _Place, what: str) -> None:
        colon = ":" if what.startswith('"') else ""
        name = key.rpartition(".")[2]
        self.problem(place, f"'{name}'{colon} {what}" if place.named else what)

    def origin_of(self, url: str, place: _Place) -> Origin | None:
        try:
            return origin_of_url(url)
        except UnicodeError:
            self.problem(place, f"{_shown(url)} names a host that cannot exist")
        except ValueError as error:
            what = _one_line(_without_password(str(error)))
            self.problem(place, what if "'" in what else f"{_shown(url)}: {what}")
        return None

    # what holds in the end

    def value(self, key: str) -> tuple[Any, _Place]:
        """What holds for a key, and where it was set."""
        table, _, name = key.rpartition(".")
        if key in self.values:
            return self.values[key], self.places[key]
        if table.startswith("upstream") and name in _DEFAULTS:
            return self.value(f"defaults.{name}")
        return _TABLES[table.partition("[")[0]][name].default, _BY_DEFAULT

    def each(self, key: str) -> list[tuple[str, _Place]]:
        """The strings of a list, each with where it was written."""
        values, place = self.value(key)
        places = self.elements.get(key) or [place] * len(values)
        return list(zip(values, places, strict=True))

    def sound(self, *keys: str) -> bool:
        return not self.broken.intersection(keys)

    def check_addresses(self) -> None:
        listen = self.each("listen")
        admin, admin_place = self.value("admin")
        if not listen:
            self.about("listen", self.value("listen")[1], "names no address")
        exposed: tuple[str, _Place] | None = None
        places: dict[tuple[str, int], _Place] = {}
        for text, place in listen:
            try:
                address = parse_address(text)
            except ValueError as error:
                self.about("listen", place, str(error))
                continue
            if address in places and address[1] != 0:
                self.about("listen", place, f"{_shown(text)} is given twice")
            places[address] = place
            if not is_loopback(address[0]) and exposed is None:
                exposed = text, place
        if exposed and self.sound("allow_clients", "credentials_file"):
            allowed = self.value("allow_clients")[0] or self.value("credentials_file")[0]
            if not allowed:
                self.about("listen", exposed[1], _open_proxy(exposed[0]))
        if not admin:
            return
        try:
            address = parse_address(admin)
        except ValueError as error:
            self.about("admin", admin_place, str(error))
            return
        if address in places and address[1] != 0:
            if admin_place is _BY_DEFAULT:
                what = f"{_shown(admin)} is the admin listener's address by default"
                self.about("listen", places[address], f"{what}; give each its own port")
            else:
                what = f"{_shown(admin)} is a listen address too; give each its own port"
                self.about("admin", admin_place, what)

    def check_networks(self) -> None:
        for text, place in self.each("allow_clients"):
            try:
                _check_network(text)
            except ValueError as error:
                self.about("allow_clients", place, str(error))

    def check_counts(self) -> None:
        total = 0
        place = _BY_DEFAULT
        for i in self.origins:
            keys = (f"upstream[{i}].warm", f"upstream[{i}].max_connections")
            if not self.sound(*keys, "defaults.max_connections"):
                return
            (warm, warm_place), (most, most_place) = map(self.value, keys)
            total += warm
            place = (
                warm_place if warm_place is not _BY_DEFAULT else self.value(keys[0][:-4] + "url")[1]
            )
            if warm <= most:
                continue
            if warm_place is not _BY_DEFAULT:
                what = f"is {warm}, more than the {most} of 'max_connections'{_from(most_place)}"
                self.about("warm", warm_place, what)
            else:
                what = (
                    f"is {most}, less than 'warm' ({warm} by default) of {_name(self.origins[i])}"
                )
                self.about("max_connections", most_place, what)
        most, most_place = self.value("max_connections")
        if total > most and self.sound("max_connections"):
            if most_place is not _BY_DEFAULT:
                what = f"is {most}, less than the {total} that all upstreams' 'warm' add up to"
                self.about("max_connections", most_place, what)
            else:
                what = f"all upstreams' 'warm' add up to {total}, more than the {most} of "
                self.problem(place, what + "'max_connections'; set that at the top level")

    def finish(self) -> Loaded:
        self.check_addresses()
        self.check_networks()
        self.check_counts()
        if self.problems:
            self.problems.sort(key=lambda problem: problem[:2])
            raise ConfigError(list(dict.fromkeys(line for _, _, line in self.problems)))
        sources: dict[str, str] = {}

        def table(prefix: str, fields: Iterable[str]) -> dict[str, Any]:
            chosen = {}
            for name in fields:
                key = f"{prefix}.{name}" if prefix else name
                chosen[name], place = self.value(key)
                sources[key] = place.source
            return chosen

        top = table("", [name for name in _TOP if name not in _NESTED])
        defaults = OriginSettings(**table("defaults", _DEFAULTS))
        # url and warm first, as people write them
        order = ["url", "warm", *_DEFAULTS]
        upstream = tuple(
            UpstreamSettings(**table(f"upstream[{i}]", order)) for i in range(self.upstreams)
        )
        return Loaded(Settings(**top, defaults=defaults, upstream=upstream), sources)


# ── words for people ─────────────────────────────────────────────────────────────────────────

# how tomllib's messages about a bare word begin
_UNQUOTED = ("invalid value", "expected newline or end of document after a statement")
_FLAGS = {"allow_clients": "allow_client"}  # the flag is repeated, so it names one
_NOT_SETTINGS = frozenset({f"{SETTINGS_ENV_PREFIX}CONFIG"})
# Kubernetes puts these into every pod once a Service is called "warmproxy": not meant for us, and
# no reason to refuse to start.
_FROM_ORCHESTRATOR = re.compile(
    r"WARMPROXY_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)=.*"
    r"|WARMPROXY_PORT=(tcp|udp|sctp)://.*"
)
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def _from_text(kind: msgspec.inspect.Type, text: str) -> object:
    """A flag's or variable's text as the type it is for; None where it is none."""
    match kind:
        case msgspec.inspect.BoolType():
            word = text.strip().lower()
            return True if word in _TRUE else False if word in _FALSE else None
        case msgspec.inspect.IntType():
            return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text) else None
        case msgspec.inspect.FloatType():
            try:
                return float(text)
            except ValueError:
                return None
        case msgspec.inspect.VarTupleType():
            return [part for part in re.split(r"[\s,]+", text) if part]
        case _:
            return text


def _must_be(field: _Field, value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and isinstance(field.kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        most = field.kind.le
        if most is not None and value > most and value != float("inf"):  # type: ignore[operator]
            return f"must be at most {most:.0f}"
    what = f"must be {field.words}, not {_shown(value)}"
    if isinstance(field.kind, msgspec.inspect.VarTupleType) and isinstance(value, str):
        what += f"; write [{_shown(value)}]"
    if isinstance(field.kind, msgspec.inspect.LiteralType) and isinstance(value, str):
        what += _did_you_mean(value, field.kind.values)
    return what


def _did_you_mean(word: str, known: Iterable[object]) -> str:
    close = _closest(word, map(str, known))
    return f"; did you mean '{close}'?" if close else ""


def _closest(word: str, known: Iterable[str]) -> str | None:
    word = word[:80].lower().replace("-", "_")
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)), None)


def _unknown_key(name: str, table: str) -> str:
    elsewhere = [other for other in _TABLES if other != table and name in _TABLES[other]]
    if elsewhere and name not in _NESTED:
        if "" in elsewhere:
            return f"'{name}' belongs at the top level, above the first [table]"
        where = " or ".join(_PLACES[other].removeprefix("in ") for other in elsewhere)
        return f"'{name}' belongs in {where}, not {_PLACES[table]}"
    what = f"unknown key {_shown(name)}"
    close = _closest(name, _TABLES[table])
    if close is not None:
        return f"{what}; did you mean '{close}'?"
    for other in _TABLES:
        close = _closest(name, _TABLES[other])
        if close is not None:
            return f"{what}; did you mean '{close}' {_PLACES[other]}?"
    return what


def _unknown_table(name: str) -> str:
    if name in _DEFAULTS or name in _UPSTREAM:
        return _unknown_key(name, "")
    headers = {"defaults": "[defaults]", "upstream": "[[upstream]]"}
    close = _closest(name, headers)
    if close is None:
        return _unknown_key(name, "")
    return f"unknown table {_shown(name)}; did you mean {headers[close]}?"


def _unknown_variable(name: str) -> str:
    if name in ("DEFAULTS", "UPSTREAM") or name.startswith("UPSTREAM__"):
        meant = "WARMPROXY_WARM" if name != "DEFAULTS" else "WARMPROXY_DEFAULTS__<KEY>"
        return f"unknown variable; tables are for the file, here use {meant}"
    plain = re.sub("_+", "_", name.lower())
    for table in ("", "defaults"):  # the right key, written in a wrong way
        for key in _TABLES[table]:
            if key not in _NESTED and plain in (key, f"defaults_{key}"):
                return f"unknown variable; did you mean '{_variable(table, key)}'?"
    # without the prefix: what all have in common would make everything look alike
    known = [setting.variable for setting in describe() if setting.variable]
    known += [f"{SETTINGS_ENV_PREFIX}WARM", *_NOT_SETTINGS]
    by_key = {variable.removeprefix(SETTINGS_ENV_PREFIX).lower(): variable for variable in known}
    close = _closest(name, by_key)
    return "unknown variable" + (f"; did you mean '{by_key[close]}'?" if close else "")


def _open_proxy(listen: str) -> str:
    return (
        f"{_shown(listen)} can be reached from other machines, and whoever reaches an open proxy "
        "can use it as you: set allow_clients to the networks of your clients, or credentials_file"
    )


def _name(origin: Origin) -> str:
    """An origin as the user writes it."""
    return f"{'http' if origin.scheme == 'http' else 'https'}://{origin.authority}"


def _from(place: _Place) -> str:
    return " by default" if place is _BY_DEFAULT else f" ({place.source})"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _flag_text(text: str) -> str:
    return _one_line(_without_password(text))[:200]
