"""Writes the tables of README.md from the code: `python docs/tables.py`.

Each stands between two markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
"""

from collections.abc import Iterable
from pathlib import Path

from warmproxy import metrics
from warmproxy.settings import describe

README = Path(__file__).parent.parent / "README.md"


def tables() -> dict[str, list[str]]:
    """Marker -> the lines that belong there."""
    names = dict.fromkeys(setting.table for setting in describe())
    settings = {f"settings of {name}" if name else "settings": _settings(name) for name in names}
    return {**settings, "metrics": _metrics()}


def filled(text: str) -> str:
    """The text with every table as the code says it now."""
    for name, lines in tables().items():
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


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head)]
    lines += [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
