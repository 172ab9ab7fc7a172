"""The wheel and the sdist: what is in them, what they say of themselves, and that the version is
the same in all places. (.ci/package-check installs and runs them.)"""

import email
import email.message
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from warmproxy import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WHEEL, SDIST = f"warmproxy-{__version__}-py3-none-any.whl", f"warmproxy-{__version__}.tar.gz"


def build(source: Path, to: Path) -> Path:
    """Make both from `source`, by the backend that pyproject.toml names."""
    args = [sys.executable, "-m", "hatchling", "build", "-d", str(to)]
    subprocess.run(args, cwd=source, check=True, capture_output=True, text=True, timeout=50)
    assert {path.name for path in to.iterdir()} == {WHEEL, SDIST}
    return to


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("sdist")
    shutil.unpack_archive(built / SDIST, to)
    return to / SDIST.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterable[zipfile.ZipFile]:
    with zipfile.ZipFile(built / WHEEL) as file:
        yield file


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    return email.message_from_bytes(wheel.read(f"warmproxy-{__version__}.dist-info/METADATA"))


def modules(root: Path) -> set[str]:
    files = (path for path in (root / "warmproxy").rglob("*") if path.is_file())
    return {str(p.relative_to(root)) for p in files if "__pycache__" not in p.parts}


def test_the_wheel_is_the_package_and_no_more(wheel: zipfile.ZipFile) -> None:
    """Each module, `py.typed`, the licence; nothing of the tests, and nothing that lay about."""
    info = f"warmproxy-{__version__}.dist-info"
    about = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert set(wheel.namelist()) == modules(ROOT) | {f"{info}/{name}" for name in about}
    assert "warmproxy/py.typed" in wheel.namelist()
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"Tag: py3-none-any" in wheel.read(f"{info}/WHEEL")


def test_the_sdist_is_the_repository(unpacked: Path) -> None:
    """With all that its tests and its documents ask for, and nothing that git would leave out."""
    wanted = "run LICENSE CHANGELOG.md Dockerfile .ci/run config/compose.yaml tests/test_package.py"
    for name in (*wanted.split(), "requirements.lock", "docs/README.md", "benchmarks/README.md"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert modules(unpacked) == modules(ROOT)
    left_out = {".git", ".venv", ".mypy_cache", "dist"}
    assert left_out.isdisjoint(path.name for path in unpacked.iterdir())
    assert not list(unpacked.rglob("__pycache__"))


def test_the_sdist_makes_the_same_wheel(built: Path, unpacked: Path, tmp_path: Path) -> None:
    """To the byte, so who builds it can compare."""
    again = build(unpacked, tmp_path / "again")
    assert (again / WHEEL).read_bytes() == (built / WHEEL).read_bytes()


def test_the_metadata_has_what_a_bill_of_materials_asks_for(
    metadata: email.message.Message,
) -> None:
    """Who, what, which version, under which licence (SPDX), on what it depends, and for which
    Python; the long description is README.md."""
    assert (metadata["Name"], metadata["Version"]) == ("warmproxy", __version__)
    assert metadata["Author"]
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    needed = metadata.get_all("Requires-Dist", [])
    assert [name for name in needed if ";" not in name] == PROJECT["dependencies"]
    extras = {name.partition(";")[2].strip() for name in needed if ";" in name}
    assert extras == {f"extra == '{name}'" for name in PROJECT["optional-dependencies"]}
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert not [c for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_each_dependency_is_locked_with_its_hash() -> None:
    """What the image and `run` install is one version of each, and a file that is known."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9-]+)==\S+ .*?\\\n +--hash=sha256:[0-9a-f]{64}", text, re.M))
    assert {re.split(r"[>=]", each)[0] for each in PROJECT["dependencies"]} <= pinned


@pytest.mark.parametrize(
    ("name", "pattern", "times"),
    [
        ("CHANGELOG.md", r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", 1),
        ("README.md", r"(?:warmproxy |version=|\"version\": \")(\d+\.\d+\.\d+)", 4),
        ("docs/tutorial.md", r"(?:warmproxy |version=)(\d+\.\d+\.\d+)", 5),
        ("config/compose.yaml", r"warmproxy:(\d+\.\S*)", 2),
        ("config/kubernetes/sidecar.yaml", r"image: warmproxy:(\S+)", 1),
        ("config/kubernetes/daemonset.yaml", r"image: warmproxy:(\S+)", 1),
    ],
)
def test_the_version_is_the_same_in_all_places(name: str, pattern: str, times: int) -> None:
    """The first one of the changelog, and each that somebody would copy."""
    found = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) >= times
    assert set(found if times > 1 else found[:1]) == {__version__}
