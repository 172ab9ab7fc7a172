"""Writes the tables of README.md and metrics.md from code and rules: `python docs/tables.py`.

Each stands between two markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from warmproxy import metrics
from warmproxy.settings import describe

ROOT = Path(__file__).parent.parent


def tables() -> dict[str, dict[str, list[str]]]:
    """Page -> marker -> the lines that belong there."""
    names = dict.fromkeys(setting.table for setting in describe())
    settings = {f"settings of {name}" if name else "settings": _settings(name) for name in names}
    monitoring = {"metrics": _metrics(), "recorded": _recorded(), "alerts": _alerts()}
    return {"README.md": settings, "docs/metrics.md": monitoring}


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
