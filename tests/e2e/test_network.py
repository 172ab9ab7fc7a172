"""The machine's own network changes, or connections come from one of its addresses: the tests in
own_network.py, each run by a pytest of its own in a network namespace of its own."""

import sys
from pathlib import Path

import pytest

from tests.e2e import own_network
from tests.e2e.harness import missing, run_in_own_network

CASES = [name for name in vars(own_network) if name.startswith("test_")]


@pytest.mark.parametrize("name", CASES)
def test_in_own_network(name: str, tmp_path: Path) -> None:
    """The test of that name passes there."""
    where = f"{own_network.__file__}::{name}"
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inside")]
    ran = run_in_own_network([sys.executable, "-m", "pytest", *options, where])
    if "1 skipped" in ran.stdout:
        missing(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
