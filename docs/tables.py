"""Writes the tables of docs/ from code and rules: `python docs/tables.py`.

Each stands between two markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
"""

import argparse
import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from warmproxy import cli, errors, metrics
from warmproxy.errors import WarmproxyError
from warmproxy.pool import origin_pool
from warmproxy.protocol import exchange
from warmproxy.settings import describe

ROOT = Path(__file__).parent.parent


def tables() -> dict[str, dict[str, list[str]]]:
    """Page -> marker -> the lines that belong there."""
    names = dict.fromkeys(setting.table for setting in describe())
    settings = {f"settings of {name}" if name else "settings": _settings(name) for name in names}
    monitoring = {"metrics": _metrics(), "recorded": _recorded(), "alerts": _alerts()}
    return {
        "docs/reference/settings.md": settings,
        "docs/reference/cli.md": _commands(),
        "docs/reference/errors.md": {"errors": _errors()},
        "docs/how-it-works.md": {"pool": _states(), "exchange": _exchange()},
        "docs/metrics.md": monitoring,
    }


def filled(page: str) -> str:
    """The page's text with every table as the code says it now."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, lines in tables()[page].items():
        before, begin, rest = text.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->\n")
        if not (begin and end):
            raise ValueError(f"there are no markers for the table {name!r}")
        text = "\n".join((before + begin, *lines, "", end + after))
    return text


def _settings(table: str) -> list[str]:
    return _table(
        ("Setting", "Default", "Meaning"),
        (
            (f"`{s.name}`", "(required)" if s.default is None else f"`{s.default}`", s.meaning)
            for s in describe()
            if s.table == table
        ),
    )


def _commands() -> dict[str, list[str]]:
    """Each command's options, as `--help` has them, and all commands."""
    _, parsers = cli.parsers()
    found = {f"options of {name}": _options(parser) for name, parser in parsers.items()}
    rows = (
        (f"[`warmproxy {name}`](#{name.replace(' ', '-')})", parser.description or "")
        for name, parser in parsers.items()
    )
    return {"commands": _table(("Command", "Does"), rows), **found}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    def row(action: argparse.Action) -> tuple[str, str]:
        name = action.option_strings[-1] if action.option_strings else ""
        value = str(action.metavar or "")
        if action.nargs == "?" and name:
            value = f"[{value}]"
        return f"`{f'{name} {value}'.strip()}`", str(action.help or "").replace("%%", "%")

    shown = [action for action in parser._actions if action.dest != "help"]
    return _table(("Option", "Means"), map(row, shown))


TO_DO = {
    (400, "http_request_error"): "Look at the details: they name what breaks HTTP. A request for a "
    "path alone was meant for a web server: the client's proxy setting is not used.",
    (403, "http_request_denied"): "Look at `allow_clients`, `connect_ports` and `allow_upstreams`; "
    "for the admin pages, at `admin_hosts`.",
    (403, "destination_ip_prohibited"): "Look at `deny_upstreams` and `allow_upstreams`, or "
    "configure the origin.",
    (407, "http_request_denied"): "Have the client use `http://user:password@HOST:PORT` as its "
    "proxy, with a line of `credentials_file`.",
    (408, "http_request_error"): "The client was too slow: raise `head_timeout` or "
    "`stall_timeout` if it may be.",
    (409, "http_request_error"): "Of `POST /warm` only: the body says what stands against it.",
    (411, "http_request_error"): "The upstream speaks HTTP/1.0: send a `Content-Length`.",
    (413, "http_request_error"): "Of the admin listener only: requests to it carry no body.",
    (414, "http_request_error"): "The URL is longer than `max_head`.",
    (421, "http_request_error"): "Inside an intercepted connection only: the request names another "
    "host than the `CONNECT`. Open a connection for that host.",
    (431, "http_request_error"): "The head is longer than `max_head`, or has too many fields: look "
    "for cookies that grow.",
    (500, "proxy_configuration_error"): "The machine no longer has the `source_address`.",
    (500, "proxy_internal_error"): "A bug: please tell us, with the line that the log has of it.",
    (501, "http_request_error"): "Another scheme than http, https, ws or wss, another "
    "transfer coding than chunked, or no method that is known.",
    (502, "connection_refused"): "Is the upstream running, at that port?",
    (502, "connection_terminated"): "Look at the upstream's log. Where it says so in the details, "
    "it is not known whether a POST was applied.",
    (502, "dns_error"): "Is the name right? Ask on the proxy's machine: `getent hosts NAME`.",
    (502, "http_protocol_error"): "The upstream has a fault; the details name it.",
    (502, "proxy_loop_detected"): "Does the URL, or the upstream, lead to the proxy itself?",
    (502, "tls_certificate_error"): "Name its authority by `ca_file`; or its certificate has "
    "expired, or is another host's.",
    (502, "tls_protocol_error"): "Look at `tls_minimum` and `client_cert`, and whether the port "
    "speaks TLS.",
    (503, "connection_limit_reached"): "Raise `max_connections`, `max_waiting`, `max_tunnels`, "
    "`max_clients_per_address` or the limit of open files: the details say which.",
    (
        503,
        "destination_unavailable",
    ): "Look at routes and interfaces: `ip route get ADDRESS`.",
    (503, "proxy_internal_error"): "The proxy is stopping: ask again.",
    (504, "connection_timeout"): "A firewall that drops, or a machine that is down: `dial_timeout` "
    "is over.",
    (504, "dns_timeout"): "Look at the resolver in /etc/resolv.conf: `dial_timeout` is over.",
    (504, "http_response_timeout"): "The upstream takes long: raise `response_timeout` if it may.",
    (505, "http_request_error"): "The client speaks another version than HTTP/1.1 and 1.0.",
}
"""(status, Proxy-Status error) -> what whoever reads it can do."""


def _errors() -> list[str]:
    """Each answer that the package's own code can give, once."""
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, WarmproxyError)
    }
    means: dict[tuple[int, str], list[str]] = {}
    for kind in kinds.values():
        if kind.__doc__ and kind not in (WarmproxyError, errors.DialError):
            text = means.setdefault((kind.status, kind.token), [])
            text.append(" ".join(inspect.cleandoc(kind.__doc__).split()))
    for key in _said_otherwise(kinds):
        means.setdefault(key, [])
    if set(means) != set(TO_DO):
        raise ValueError(f"TO_DO and the code differ in {sorted(set(means) ^ set(TO_DO))}")
    return _table(
        ("Status", "error", "Means", "What to do"),
        ((str(s), f"`{t}`", " ".join(means[s, t]), TO_DO[s, t]) for s, t in sorted(means)),
    )


def _said_otherwise(kinds: dict[str, type[WarmproxyError]]) -> Iterator[tuple[int, str]]:
    """(status, error) of each place that makes one with a status or error of its own."""
    for file in (ROOT / "warmproxy").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), keywords=given) if given and name in kinds:
                    own = {w.arg: w.value.value for w in given if isinstance(w.value, ast.Constant)}
                    kind = kinds[name]
                    yield own.get("status", kind.status), own.get("token", kind.token)


def _states() -> list[str]:
    """The drawing in the docstring of the pool: its second paragraph."""
    drawing = (origin_pool.__doc__ or "").split("\n\n")[1]
    return ["```text", *textwrap.dedent(drawing).splitlines(), "```"]


def _exchange() -> list[str]:
    """The table in the docstring of the exchange."""
    rows = [line for line in (exchange.__doc__ or "").splitlines() if line.startswith("|")]
    head, _, *rest = (tuple(c.strip() for c in row.strip("|").split("|")) for row in rows)
    return _table(head, rest)


def _metrics() -> list[str]:
    return _table(
        ("Metric", "Type", "Meaning"),
        ((f"`{name}`", kind, f"{text}.") for name, kind, text in metrics.families()),
    )


def _rules(file: str) -> Iterator[dict[str, Any]]:
    text = (ROOT / "config/prometheus" / file).read_text(encoding="utf-8")
    for group in yaml.safe_load(text)["groups"]:
        yield from group["rules"]


def _recorded() -> list[str]:
    rows = ((f"`{r['record']}`", f"`{' '.join(r['expr'].split())}`") for r in _rules("rules.yml"))
    return _table(("Name", "Is"), rows)


def _alerts() -> list[str]:
    return _table(
        ("Alert", "Severity", "When", "For", "Then"),
        (
            (
                f"`{rule['alert']}`",
                rule["labels"]["severity"],
                f"`{' '.join(rule['expr'].split())}`",
                rule.get("for", ""),
                rule["annotations"]["description"],
            )
            for rule in _rules("alerts.yml")
        ),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head)]
    lines += [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    for page in tables():
        (ROOT / page).write_text(filled(page), encoding="utf-8")
