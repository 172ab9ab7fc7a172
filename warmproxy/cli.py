"""The command line: arguments and environment -> Settings -> the service, or one of the tools.

Exit status: 0 done, 1 the daemon cannot start or does not answer, 2 wrong usage or settings;
`exec` has that of its command, `doctor` 130 after Ctrl-C.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from warmproxy import __version__
from warmproxy.errors import ConfigError, StartError
from warmproxy.loading import Loaded, load
from warmproxy.net.source import why_not
from warmproxy.settings import (
    SETTINGS_ENV_PREFIX,
    Settings,
    describe,
    duration,
    parse_address,
    toml_value,
)

DEFAULT_CONFIG = "config/warmproxy.toml"
CONFIG_VARIABLE = f"{SETTINGS_ENV_PREFIX}CONFIG"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is without the program's name. Returns the exit status."""
    if sys.platform == "win32":
        print("warmproxy: Windows is not supported; WSL or a container is.", file=sys.stderr)
        return 1
    try:
        try:
            return _command(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"warmproxy: {count} problem{'s' * (count > 1)} in the settings", file=sys.stderr)
        return 2
    except StartError as error:
        print(f"warmproxy: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `warmproxy check | head -1`. The interpreter flushes once more at its end: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 0


def _command(argv: Sequence[str]) -> int:
    """Each command imports what it needs and no more: the daemon is to be there at once, and a
    health check runs every few seconds."""
    args = _parse(argv)
    match args.command:
        case "run":
            return _run(args)
        case "check":
            loaded = _load(args, _missing)
            _prove(loaded.settings)
            print(_listing(loaded, _config_path(args)), end="")
            return 0
        case "status":
            from warmproxy.tools.status import status

            return status(_admin(args), as_json=args.json, every=args.watch)
        case "healthcheck":
            from warmproxy.tools.healthcheck import healthcheck

            try:
                address = _admin(args)
            except ConfigError as error:
                print(f"unhealthy: {error.problems[0]}")
                return 1
            return healthcheck(address)
        case "exec":
            return _exec(args)
        case "env":
            from warmproxy.tools.env import env

            return env(_proxy(args), unset=args.unset)
        case "ca":
            return _ca(args)
        case "bench":
            return _bench(args)
        case "doctor":
            return _doctor(args)
        case "warm":
            from warmproxy.tools.warm import warm

            return warm(_admin(args), args.bursts, length=args.length, wait=args.wait)
        case _:
            return _init(Path(args.path))


def _run(args: argparse.Namespace) -> int:
    # A stop that comes before the service has its own handlers is a stop all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for number in (signal.SIGHUP, signal.SIGUSR2):  # meant for a service that is there
        signal.signal(number, signal.SIG_IGN)

    def read() -> Settings:
        return _load(args, _missing).settings

    settings = read()
    if settings.processes > 1:
        from warmproxy.processes.parent import run_all

        run_all(settings, read, takeover=args.takeover)
        return 0
    from warmproxy.service import run

    run(settings, read, takeover=args.takeover)
    return 0


def _exec(args: argparse.Namespace) -> int:
    from warmproxy.tools.exec import execute, execute_with, is_warmproxy

    own = bool(args.config or args.warm or args.access_log)
    there = os.environ.get("http_proxy") or os.environ.get("HTTP_PROXY")
    if args.use_running:
        proxy = there or _proxy(args)
        try:
            admin = _admin(args)
        except ConfigError:
            admin = None  # so there is nobody to ask whether all is warm
        ca = _ca_to_trust(args)
        return execute_with(args.argv, proxy=proxy, admin=admin, wait=args.wait, ca=ca)
    if there and not own and is_warmproxy(there):
        ca = _ca_to_trust(args)
        return execute_with(args.argv, proxy=there, admin=None, wait=args.wait, ca=ca)
    _load(args, _missing)
    ca = _ca_to_trust(args)
    flags = [f"--warm={warm}" for warm in args.warm or ()]
    if args.config:
        flags += ["--config", args.config]
    if args.access_log:
        flags.append(f"--access-log={args.access_log}")
    return execute(args.argv, daemon_args=flags, wait=args.wait, ca=ca)


def _ca_to_trust(args: argparse.Namespace) -> Path | None:
    """The folder of the authority that a command has to trust, if any."""
    try:
        settings = _load(args).settings
    except ConfigError:
        return None  # of a daemon that runs already: it has other settings
    is_needed = any(upstream.intercept for upstream in settings.upstream)
    return Path(settings.ca_dir) if is_needed and settings.ca_dir else None


def _ca(args: argparse.Namespace) -> int:
    from warmproxy.tools import ca

    settings = _load(args).settings
    match args.action:
        case "init":
            return ca.init(settings, days=args.days)
        case "show":
            return ca.show(settings)
        case "rotate":
            return ca.rotate(settings, days=args.days, prepare=args.prepare, retire=args.retire)
        case "export":
            return ca.export(settings, args.to, args.form or "pem", force=args.force)
        case _:
            return ca.trust_help(settings, args.client)


def _bench(args: argparse.Namespace) -> int:
    from warmproxy.tools.bench import bench

    try:
        return bench(args.url, count=args.count, as_json=args.json, ca_file=args.ca_file)
    except OSError as error:
        raise StartError(f"{args.ca_file}: {error.strerror or error}") from error


def _doctor(args: argparse.Namespace) -> int:
    from warmproxy.tools.doctor import doctor

    return doctor(args.url, wait=args.wait, as_json=args.json, ca_file=args.ca_file)


# ── settings ─────────────────────────────────────────────────────────────────────────────────


def _config_path(args: argparse.Namespace) -> str | None:
    """The file to read: the named one, or the default one if it is there."""
    named: str | None = args.config or os.environ.get(CONFIG_VARIABLE)
    if named:
        return named
    return DEFAULT_CONFIG if os.path.lexists(DEFAULT_CONFIG) else None


def _load(
    args: argparse.Namespace, further: Callable[[Loaded], Iterable[str]] = lambda loaded: ()
) -> Loaded:
    """All settings, or ConfigError with all that is wrong with them, by `further` checks too."""
    path = _config_path(args)
    text = None
    problems = []
    if path is not None:
        try:
            text = _read(path)
        except OSError as error:
            by = "--config" if args.config else CONFIG_VARIABLE
            named = f" (named by {by})" if path != DEFAULT_CONFIG else ""
            problems.append(f"{path}: {error.strerror}{named}")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            problems.append(f"{path}:{line}: not UTF-8")
    flags = {
        name: getattr(args, name, None)
        for name in (
            "processes",
            "listen",
            "admin",
            "warm",
            "allow_clients",
            "log_format",
            "access_log",
            "grace",
        )
    }
    try:
        loaded = load(path=path, text=text, environ=os.environ, flags=flags)
        problems += further(loaded)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return loaded


def _read(path: str) -> str:
    return Path(path).read_bytes().decode("utf-8-sig")


def _missing(loaded: Loaded) -> Iterator[str]:
    """`check` and `run` must agree, so what `run` needs of the machine is looked at here."""
    settings = loaded.settings
    if settings.processes > 1 and not sys.platform.startswith("linux"):
        source, count = loaded.sources["processes"], settings.processes
        yield f"{source}: 'processes' {count}: only Linux spreads connections over several"
    wanted: dict[tuple[str, str, str], None] = {}
    for key, source in loaded.sources.items():
        name = key.rpartition(".")[2]
        if name in _OF_THE_MACHINE and source != "default" and (value := _at(settings, key)):
            wanted[source, name, str(value)] = None
    for source, name, value in sorted(wanted, key=_line_of):
        why = why_not(value) if name == "source_address" else _unreadable(value)
        if why is not None:
            yield f"{source}: '{name}' {toml_value(value)}: {why}"
    if settings.intercepted_hosts:
        try:
            from warmproxy.net.authority import Authority

            Authority.load_for(settings.ca_dir, settings.intercepted_hosts)
        except StartError as error:
            first = next(i for i, upstream in enumerate(settings.upstream) if upstream.intercept)
            yield f"{loaded.sources[f'upstream[{first}].intercept']}: 'intercept': {error}"


_OF_THE_MACHINE = frozenset(
    ("credentials_file", "ca_file", "crl_file", "client_cert", "client_key", "source_address")
)
"""What settings name that must be there."""


def _line_of(wanted: tuple[str, str, str]) -> int:
    """The line in the file, where it was given there."""
    line = wanted[0].rpartition(":")[2]
    return int(line) if line.isdecimal() else sys.maxsize


def _unreadable(path: str) -> str | None:
    """Why a file cannot be read, if so."""
    try:
        open(path, "rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _prove(settings: Settings) -> None:
    """Raise StartError where `run` would, because of what is in the files that settings name."""
    from warmproxy import log
    from warmproxy.wiring import prepare

    log.setup(settings.log_format, sys.stderr)
    prepare(settings)


def _admin(args: argparse.Namespace) -> tuple[str, int]:
    """Where the admin listener can be reached from this machine: host, port."""
    if args.admin is None:
        settings = _load(args).settings
    else:  # whatever is wrong with the rest is no matter here
        settings = load(path=None, text=None, environ={}, flags={"admin": args.admin}).settings
    if not settings.admin:
        raise ConfigError(["'admin' is \"\": there is no admin listener to ask"])
    host, port = parse_address(settings.admin)
    if port == 0:
        raise ConfigError(["'admin' has port 0: say --admin HOST:PORT with the real one"])
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def _proxy(args: argparse.Namespace) -> str:
    """The URL at which programs on this machine reach the proxy."""
    from warmproxy.tools.healthcheck import authority

    address = _load(args).settings.listen[0]
    host, port = parse_address(address)
    if port == 0:
        raise ConfigError([f"'listen' {address} has no port yet: say --listen HOST:PORT"])
    return f"http://{authority(({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host), port))}"


def _listing(loaded: Loaded, path: str | None) -> str:
    """Each effective value and its source, aligned."""
    rows = []
    for key, source in loaded.sources.items():
        rows.append((key, toml_value(_at(loaded.settings, key)), source))
    left = max(len(key) for key, _, _ in rows)
    # one long list must not push all sources out of sight
    right = min(max(len(value) for _, value, _ in rows), 40)
    lines = [f"# valid; {f'file: {path}' if path else f'no file ({DEFAULT_CONFIG} is not there)'}"]
    lines += [f"{key:<{left}} = {value:<{right}}   # {source}" for key, value, source in rows]
    return "\n".join(lines) + "\n"


def _at(settings: Settings, key: str) -> object:
    """The value that a dotted key means."""
    found: object = settings
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", key):
        found = getattr(found, "length" if name == "for" else name)  # a keyword names no attribute
        if index:
            assert isinstance(found, tuple)
            found = found[int(index)]
    return found


# ── init ─────────────────────────────────────────────────────────────────────────────────────


def sample_config() -> str:
    """A file that changes nothing: each setting with its meaning and default, commented out."""
    import textwrap

    lines = [
        "# warmproxy's settings. What is commented out is the default: take away the # to change",
        "# it. Flags go before the environment, and that before this file; `warmproxy check` shows",
        "# what holds. Seconds may have fractions.",
    ]
    table = ""
    for setting in describe():
        if setting.table != table:
            table = setting.table
            lines += ["", "", *_ABOUT_TABLES[table]]
        meaning = f"{setting.meaning} ({setting.type})"
        lines += ["", *(f"# {line}" for line in textwrap.wrap(meaning, 94))]
        default = setting.default or _EXAMPLES[setting.key]
        lines += [f"#{setting.name} = {default}"]
    return "\n".join(lines) + "\n"


_ABOUT_TABLES = {
    "defaults": ("# What holds for each origin that does not say otherwise.", "[defaults]"),
    "upstream": (
        "# One table for each origin that is held warm; what [defaults] holds",
        "# can stand here too.",
        "#[[upstream]]",
    ),
    "upstream.warm_at": (
        "# One table for each window of time in which more is held for the [[upstream]] above; or",
        '# all of them there: warm_at = [{ at = "55 8 * * mon-fri", count = 20, for = "15m" }].',
        "#[[upstream.warm_at]]",
    ),
    "gateway": (
        "# One table for each port that stands for one upstream.",
        "#[[gateway]]",
    ),
}
_EXAMPLES = {
    "upstream.url": '"https://api.example.com"',
    "upstream.warm_at.at": '"55 8 * * mon-fri"',
    "upstream.warm_at.count": "20",
    "upstream.warm_at.for": '"15m"',
    "gateway.listen": '"127.0.0.1:9001"',
    "gateway.upstream": '"https://api.example.com"',
}


def _init(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(sample_config())
    except FileExistsError:
        print(f"warmproxy init: {path} is there already, and stays as it is", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"warmproxy init: {path}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"wrote {path}; 'warmproxy check --config {path}' shows what it sets")
    return 0


# ── arguments ────────────────────────────────────────────────────────────────────────────────


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for an error and a guess at what was meant."""

    def error(self, message: str) -> NoReturn:
        choice = re.match(r"argument ([A-Z]+): invalid choice: '([^']*)' \(.*?from (.*)\)", message)
        if choice is not None:
            known = re.findall("[a-z-]+", choice[3])
            message = f"unknown {choice[1].lower()} '{choice[2]}'{_did_you_mean(choice[2], known)}"
        self.exit(2, f"{self.prog}: {message} (see '{self.prog} --help')\n")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and that of each command."""
    parser = _Parser(
        prog="warmproxy",
        description="A local forward proxy that hands out connections which are already open.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"warmproxy {__version__}")
    # parser_class: each command's own errors in the same form
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=_Parser, required=True
    )

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False
        )

    by_name = {
        "run": command("run", "run the proxy"),
        "check": command("check", "show the settings that hold and where each came from"),
        "status": command("status", "show the pools of the running proxy"),
        "healthcheck": command("healthcheck", "exit 0 if the running proxy answers, else 1"),
        "init": command("init", "write a commented settings file"),
        "exec": command("exec", "run a command whose requests go through a warm proxy"),
        "env": command("env", "print the lines that send a shell's programs to the proxy"),
        "bench": command("bench", "measure what each way to a URL costs"),
        "doctor": command("doctor", "find out how an origin treats idle connections"),
        "warm": command("warm", "have the running proxy hold more connections for a while"),
    }
    by_name |= _ca_parsers(command("ca", "make and show the authority that interception needs"))
    for name in ("run", "check"):
        _add_settings(by_name[name])
    by_name["run"].add_argument(
        "--takeover",
        action="store_true",
        help="take the listeners over from the proxy that runs, once all is warm here",
    )
    for name in ("status", "healthcheck", "warm"):
        add = by_name[name].add_argument
        add("--admin", metavar="HOST:PORT", help="where the proxy's admin listener is")
        add("--config", metavar="FILE", help="the proxy's settings file, for its admin address")
    add = by_name["status"].add_argument
    add("--json", action="store_true", help="as JSON")
    add(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_interval,
        const=2.0,
        help="again every so many seconds (2), until Ctrl-C",
    )
    by_name["init"].add_argument("path", metavar="PATH", nargs="?", default=DEFAULT_CONFIG)
    _add_tools(by_name)
    return parser, by_name


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, by_name = parsers()
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    argv, what = _at_dashes(argv) if argv[0] == "exec" else (argv, [])
    args, rest = parser.parse_known_args(argv)
    if args.command == "exec":
        args.argv = what
        if not what and not rest:
            by_name["exec"].error("what is to be run comes after --")
        if args.use_running and (args.warm or args.access_log):
            by_name["exec"].error("--use-running changes nothing of the proxy that runs")
    if getattr(args, "form", None) == "split" and args.to is None:
        by_name["ca export"].error("--split needs a folder")
    if rest:
        chosen = by_name[f"ca {args.action}" if args.command == "ca" else args.command]
        wrong = next((word for word in rest if word.startswith("-")), rest[0])
        wrong = wrong.partition("=")[0]
        kind = "option" if wrong.startswith("-") else "argument"
        hint = _did_you_mean(wrong, list(chosen._option_string_actions))
        chosen.error(f"unknown {kind} '{wrong}'{hint}")
    return args


def _ca_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of what `ca` can do, by both words."""
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", parser_class=_Parser, required=True
    )

    def action(name: str, help: str) -> argparse.ArgumentParser:
        made = actions.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False
        )
        add = made.add_argument
        add("--config", metavar="FILE", help=f"settings file (default: {DEFAULT_CONFIG}, if there)")
        return made

    by_name = {
        "init": action("init", "make the authority for the upstreams with intercept"),
        "show": action("show", "show whom the authority speaks for, and until when"),
        "export": action("export", "write the certificates that clients are to trust"),
        "rotate": action("rotate", "put another authority in the place of the one that signs"),
        "trust-help": action("trust-help", "say how programs come to trust it, and how to undo it"),
    }
    for name in ("init", "rotate"):
        add = by_name[name].add_argument
        add("--days", metavar="N", type=_days, default=90, help="how long it lives (90)")
    group = by_name["rotate"].add_mutually_exclusive_group()
    group.add_argument(
        "--prepare", action="store_true", help="make the next one, which does not sign yet"
    )
    group.add_argument(
        "--retire", action="store_true", help="the key was stolen: trust nothing that was before"
    )
    add = by_name["export"].add_argument
    add("to", metavar="FILE", nargs="?", help="where to (stdout)")
    group = by_name["export"].add_mutually_exclusive_group()
    for form, help in (
        ("with-system", "together with what the system trusts"),
        ("java", "the same, as a truststore for Java"),
        ("split", "each certificate in a file of its own; FILE is their folder"),
        ("der", "the current certificate alone, and not as PEM"),
    ):
        group.add_argument(f"--{form}", dest="form", action="store_const", const=form, help=help)
    add("--force", action="store_true", help="also over a file that says something else")
    add = by_name["trust-help"].add_argument
    add("client", metavar="CLIENT", nargs="?", choices=TRUST_HELP, help=", ".join(TRUST_HELP))
    return {f"ca {name}": made for name, made in by_name.items()}


TRUST_HELP = ("curl", "python", "node", "java", "go", "git", "system", "chromium", "firefox")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="FILE", help=f"settings file (default: {DEFAULT_CONFIG}, if there)")
    add("--processes", metavar="N", help="how many processes serve (1)")
    add(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        help="where the proxy listens; may be repeated",
    )
    add("--admin", metavar="HOST:PORT", help='where /metrics and /pools are; "" for nowhere')
    add(
        "--warm",
        metavar="URL=N",
        action="append",
        help="hold N connections to URL open, or as many as are called for: auto; may be repeated",
    )
    add(
        "--allow-client",
        metavar="NET",
        dest="allow_clients",
        action="append",
        help="a network whose clients may use the proxy; may be repeated",
    )
    add("--log-format", metavar="FORMAT", help="text, json or auto")
    add(
        "--access-log",
        metavar="SHARE",
        nargs="?",
        const="true",
        help="one line for each exchange, or for this share of them",
    )
    add("--grace", metavar="SECONDS", help="what exchanges in flight get at a stop")


def _add_tools(by_name: dict[str, argparse.ArgumentParser]) -> None:
    parser = by_name["exec"]
    parser.usage = "%(prog)s [OPTION...] -- COMMAND [ARG...]"
    parser.set_defaults(admin=None)
    add = parser.add_argument
    add("--config", metavar="FILE", help=f"settings file (default: {DEFAULT_CONFIG}, if there)")
    add(
        "--warm",
        metavar="URL=N",
        action="append",
        help="hold N connections to URL open (https: N,tls=M with TLS done); may be repeated",
    )
    add(
        "--access-log",
        metavar="SHARE",
        nargs="?",
        const="true",
        help="one line for each exchange, or for this share of them",
    )
    add(
        "--wait",
        metavar="SECONDS",
        type=_interval,
        default=10.0,
        help="start the command after so long (10) even if not all is warm",
    )
    add("--use-running", action="store_true", help="use the proxy that runs, and leave it running")

    add = by_name["env"].add_argument
    add("--config", metavar="FILE", help="the proxy's settings file, for its address")
    add("--listen", metavar="HOST:PORT", action="append", help="where the proxy listens")
    add("--unset", action="store_true", help="print what takes the variables away")

    for name in ("bench", "doctor"):
        add = by_name[name].add_argument
        add(
            "url", metavar="URL", type=_url, help="http://... or https://..., and a path if need be"
        )
        add("--ca-file", metavar="FILE", help="trust these authorities (PEM), not the system's")
        add("--json", action="store_true", help="as JSON")
    add = by_name["bench"].add_argument
    add("--count", metavar="N", type=_count, default=10, help="requests each way (10)")
    add = by_name["doctor"].add_argument
    add(
        "--wait",
        metavar="SECONDS",
        type=_interval,
        default=125.0,
        help="how long to watch idle connections at most (125); Ctrl-C ends it sooner",
    )

    add = by_name["warm"].add_argument
    add("bursts", metavar="URL=N", type=_burst, nargs="+", help="(https: N,tls=M with TLS done)")
    add(
        "--for",
        metavar="TIME",
        dest="length",
        type=_duration,
        default="15m",
        help="for so long: 90s, 15m, 2h (15m)",
    )
    add(
        "--wait",
        metavar="SECONDS",
        nargs="?",
        type=_interval,
        const=10.0,
        help="until all are warm, or so long (10), and then exit with 1",
    )


def _at_dashes(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What comes before and after the first `--`."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _url(text: str) -> object:
    from warmproxy.tools.direct import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _burst(text: str) -> object:
    from warmproxy.tools.warm import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _duration(text: str) -> str:
    try:
        duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"must be from 1 to 100, not '{text}'")
    return int(text)


def _days(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 397:
        raise argparse.ArgumentTypeError(f"must be from 1 to 397, not '{text}'")
    return int(text)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"must be seconds from 0.1 to 86400, not '{text}'")
    return seconds
