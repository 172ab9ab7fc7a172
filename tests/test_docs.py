"""README.md and docs/ say what the code does: a setting, metric, option or error has its line."""

import ast
import inspect
import re
import runpy
import tomllib
from pathlib import Path

import pytest

from warmproxy import cli, hello
from warmproxy.admin import pages
from warmproxy.loading import load
from warmproxy.observe import CloseReason, Outcome

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))

rows = [
    (page, name, line)
    for page, tables in TABLES["tables"]().items()
    for name, lines in tables.items()
    for line in lines[2:]
]


@pytest.mark.parametrize(
    ("page", "table", "line"),
    rows,
    ids=[f"{table}: {(re.findall('`(.+?)`', line) or [line])[0]}" for _, table, line in rows],
)
def test_each_line_of_a_table_is_there(page: str, table: str, line: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    _, _, found = text.partition(f"<!-- {table}: begin -->\n")
    lines = found.partition(f"<!-- {table}: end -->")[0].splitlines()
    assert line in lines, "python docs/tables.py writes it"


@pytest.mark.parametrize("page", TABLES["tables"]())
def test_the_tables_hold_nothing_else(page: str) -> None:
    assert TABLES["filled"](page) == (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", cli.parsers()[1])
def test_each_command_and_option_is_in_its_section(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `--help` says, which argparse writes and not the tables."""
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    _, _, section = COMMANDS.partition(f"\n## {command}\n")
    section = section.partition("\n## ")[0]
    assert {flag for flag in flags if f"| `{flag}" not in section} == set()
    assert f"| [`warmproxy {command}`](#{command.replace(' ', '-')}) |" in COMMANDS


def test_each_admin_page_is_mentioned() -> None:
    paths = set(re.findall(r'case "(/\w+)"', inspect.getsource(pages.respond)))
    assert len(paths) >= 4
    assert {path for path in paths if f"| `{path}` |" not in OPERATIONS} == set()


def logged() -> dict[str, set[str]]:
    """event -> its fields, from each call of `log.event` in the package."""
    found: dict[str, set[str]] = {"log": {"logger", "message", "traceback"}}
    for file in (ROOT / "warmproxy").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(id="event") | ast.Attribute(attr="event", value=ast.Name("log")),
                    args=[ast.Constant(value=str(name))],
                    keywords=given,
                ):
                    fields = {word.arg for word in given} - {"level", "most"}
                    assert None not in fields, f"{file}: {name} is logged with **fields"
                    found.setdefault(name, set()).update(filter(None, fields))
    return found


def test_the_table_of_events_is_what_can_be_logged() -> None:
    """Each event with each of its fields, and no event that is not there any more."""
    _, _, table = OPERATIONS.partition("| Event | Level | Fields | Means |\n")
    rows: dict[str, set[str]] = {}
    name = ""
    for line in table.partition("\n\n")[0].splitlines()[1:]:
        cells = line.split("|")[1:]
        name = cells[0].strip(" `") or name  # a row without a name goes on with the last
        rows.setdefault(name, set()).update(re.findall(r"`(\w+)`", cells[2]))
    assert len(rows) >= 20
    assert rows == logged()


def test_each_outcome_and_close_reason_is_described() -> None:
    assert {word for word in (*Outcome, *CloseReason) if f"`{word}`" not in OPERATIONS} == set()


def test_the_examples_of_settings_are_valid() -> None:
    """Those of all pages; and the file and the variables of settings.md say the same."""
    for page in PAGES:
        for text in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            assert load(path=page.name, text=text, environ={}, flags={})
    [text] = re.findall(r"```toml\n(.*?)```", SETTINGS, re.DOTALL)
    by_file = load(path="settings.md", text=text, environ={}, flags={}).settings
    assert len(by_file.upstream) == len(tomllib.loads(text)["upstream"])
    environ = dict(re.findall(r'^export (WARMPROXY_\w+)="?(.*?)"?$', SETTINGS, re.MULTILINE))
    by_variable = load(path=None, text=None, environ=environ, flags={}).settings
    assert [u.origin for u in by_variable.upstream] == [u.origin for u in by_file.upstream]
    assert by_variable.log_format == by_file.log_format
    assert by_variable.defaults == by_file.defaults


def test_the_lines_to_export_are_those_that_the_daemon_prints() -> None:
    for line in hello.banner("127.0.0.1:3128").splitlines()[1:]:
        assert f"\n{line.strip()}\n" in README


def anchors(page: Path) -> set[str]:
    """What can be linked to in a page: its headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_the_readme_is_read_in_five_minutes() -> None:
    """It has less than 250 lines, and all other pages can be reached from the index."""
    assert len(README.splitlines()) < 250
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / to).resolve() for to in re.findall(r"\]\(([^)#]+)", index)}
    assert set(PAGES) - {ROOT / "README.md", ROOT / "docs" / "README.md"} <= linked
