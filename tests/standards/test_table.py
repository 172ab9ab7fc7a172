"""The table of docs/standards.md against the tests: each MUST has one, and each name is right."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.e2e.harness import ROOT

ROW = re.compile(r"\| (\d+) \| (M|S|m|-) \| (.+) \| (.+) \| (.+) \| (.*) \|")
NAME = re.compile(r"test_row_(\d+)_\w+")
LATER = "Not applicable yet"
NOT_FOLLOWED = "Not followed"


def rows() -> dict[int, re.Match[str]]:
    """The table's rows by number."""
    found = {}
    for line in (ROOT / "docs" / "standards.md").read_text().splitlines():
        if re.match(r"\| \d", line):
            row = ROW.fullmatch(line)
            assert row, f"a row that is none: {line}"
            assert int(row[1]) not in found, f"row {row[1]} is there twice"
            found[int(row[1])] = row
    return found


def named() -> dict[int, set[str]]:
    """Names of the tests by the row that they name."""
    found: dict[int, set[str]] = defaultdict(set)
    of_tls = (ROOT / "tests" / "e2e").glob("test_tls*.py")
    for file in sorted([*Path(__file__).parent.glob("test_*.py"), *of_tls]):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and (name := NAME.fullmatch(node.name)):
                said = ast.get_docstring(node) or ""
                assert said.startswith(f"Row {name[1]}: "), f"{node.name} does not name its row"
                assert node.name not in found[int(name[1])], f"{node.name} is there twice"
                found[int(name[1])].add(node.name)
    return found


def test_every_must_has_a_test_that_names_it() -> None:
    """Each M row has a test, but for those that say why they cannot have one yet."""
    by_row = named()
    for number, row in rows().items():
        if row[2] == "M" and not row[5].startswith(LATER):
            assert by_row[number], f"row {number} is a MUST and has no test"


def test_every_should_has_a_test_or_a_reason() -> None:
    """Each other row has a test too, or says why we do not follow it."""
    by_row = named()
    for number, row in rows().items():
        if not row[5].startswith(LATER):
            assert by_row[number] or row[5].startswith(NOT_FOLLOWED), f"row {number}"


def test_the_table_names_the_tests_that_there_are() -> None:
    """The last column holds the names of exactly the tests that name the row."""
    by_row = named()
    for number, row in rows().items():
        assert {name[0] for name in NAME.finditer(row[6])} == by_row[number], f"row {number}"


def test_the_table_is_whole() -> None:
    """Rows 1 to 63, in order."""
    assert list(rows()) == list(range(1, 64))
