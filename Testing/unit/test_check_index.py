"""The rules of the extensions index hold, and each of them is seen to catch what it is there for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import check_index as room
from tools.check_index import Checkout, findings

TAKEN = (
    "CMakeLists.txt", "README.md", "LICENSE.txt", "DiffeoReg", "DiffeoRegLib", "Resources/SampleData",
    "Resources/docs/DiffeoReg.json", "Resources/Screenshots/DiffeoReg.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def copy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the rules look at, without the large weights, outside of git."""
    folder = tmp_path_factory.mktemp("extension")
    clean = shutil.ignore_patterns("__pycache__", "*.py[cod]", "*.safetensors")
    for name in TAKEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (repository / name).is_dir():
            shutil.copytree(repository / name, folder / name, ignore=clean)
        else:
            shutil.copy(repository / name, folder / name)
    return folder


@pytest.fixture
def change(copy: Path) -> Iterator[object]:
    """Replaces a text in a file of the copy, or adds one; all is as before afterwards."""
    before: dict[Path, bytes | None] = {}

    def do(name: str, old: str, new: str) -> None:
        path = copy / name
        before.setdefault(path, path.read_bytes() if path.exists() else None)
        text = path.read_bytes().decode("utf-8") if path.exists() else ""
        assert old in text
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((text.replace(old, new, 1) if old else new + text).encode("utf-8"))

    yield do
    for path, content in before.items():
        path.unlink() if content is None else path.write_bytes(content)


def test_the_repository_keeps_every_rule(repository: Path) -> None:
    assert {rule: problems for rule, problems in findings(repository).items() if problems} == {}


JSON, CMAKE, PANEL = "Resources/docs/DiffeoReg.json", "CMakeLists.txt", "DiffeoReg/DiffeoRegPanel"
BROKEN = [
    ("small_files", "Resources/docs/large.bin", "", "x" * 1_100_000, "1.1 MB"),
    ("licence", "LICENSE.txt", "Apache License", "My own words", "neither"),
    ("entry_schema", JSON, '"tier": 3', '"tier": "3"', "tier is no int"),
    ("entry_schema", JSON, '"tier": 3', '"tier": 6', "tier must be"),
    ("entry_schema", JSON, '"category"', '"kind"', "category is missing"),
    ("entry_schema", JSON, '"Registration"', '"Pictures"', "category is not"),
    ("entry_layout", JSON, '  "tier"', '\t"tier"', "anew"),
    ("entry_layout", JSON, "\n}\n", "\n}", "anew"),
    ("names", JSON, "https://github.com", "git://github.com", "no https address"),
    ("names", JSON, "SlicerDiffeoReg.git", "DiffeoReg.git", "no https address"),
    ("names", CMAKE, "project(DiffeoReg)", "project(Diffeo)", "CMake project"),
    ("names", CMAKE, 'EXTENSION_HOMEPAGE "', 'EXTENSION_HOMEPAGE "x', "homepage"),
    ("cmake_texts", CMAKE, 'EXTENSION_DESCRIPTION "', 'EXTENSION_DESCRIPTION "One. Two. ', "one or two"),
    ("cmake_texts", CMAKE, "EXTENSION_CONTRIBUTORS", "EXTENSION_CONTRIB", "no contributors"),
    ("pictures", CMAKE, 'set(EXTENSION_ICONURL "', 'set(EXTENSION_ICONURL\n  "', "not set once"),
    ("pictures", CMAKE, "main/DiffeoReg/Resources/Icons", "main/Icons", "no file of this repository"),
    ("pictures", CMAKE, "Resources/Icons/DiffeoReg.png", "CMakeLists.txt", "no PNG"),
    ("pictures", CMAKE, "DiffeoReg/Resources/Icons/", "Resources/Screenshots/", "not 128 x 128"),
    ("dependencies", CMAKE, 'DEPENDS "PyTorch"', 'DEPENDS "NA"', "CMake says []"),
    ("packaged", "DiffeoReg/Resources/Icons/later.gif", "", "x", "is not packaged"),
    ("packaged", "DiffeoReg/Helper.py", "", "x = 1\n", "take each of these"),
    ("packaged", "DiffeoReg/CMakeLists.txt", "WITH_GENERIC_TESTS", "", "generic tests"),
    ("loads_in_a_new_slicer", f"{PANEL}/job.py", "import dataclasses", "import torch", "imports torch"),
    ("loads_in_a_new_slicer", "DiffeoRegLib/plain.py", "import types", "import yaml", "imports yaml"),
    ("nothing_happens_when_loaded", "DiffeoReg/DiffeoReg.py", "import sys", "print('here')", "runs when"),
    (
        "torch_by_its_extension",
        f"{PANEL}/install.py",
        'WHEELS = ("nib',
        'WHEELS = ("torch", "nib',
        "torch is",
    ),
    ("torch_by_its_extension", f"{PANEL}/job.py", "", "def f():\n    pip_install('torch>=2')\n", "by pip"),
    ("torch_by_its_extension", f"{PANEL}/install.py", '"PyTorchUtils")', '"Another")', "is not used"),
    ("sample_data", f"{PANEL}/samples.py", "f57bc01710", "0000000000", "check sum is registered"),
    ("sample_data", f"{PANEL}/samples.py", "checksums=[", "sums=[", "without check sums"),
    ("downloads_can_be_deleted", "DiffeoReg/Resources/UI/DiffeoReg.ui", "clearWeightsButton", "x", "has no"),
    (
        "downloads_can_be_deleted",
        f"{PANEL}/panel_setup.py",
        "(ui.clearWeightsButton, ",
        "(x, ",
        "does nothing",
    ),
    ("readme", "README.md", "# DiffeoReg\n\n", "# DiffeoReg\n\nOne. Two. Three.\n\n", "one or two sentences"),
    ("readme", "README.md", "Diffeomorphic Registration (DiffeoReg)", "It", ""),
]


@pytest.mark.parametrize(("rule", "name", "old", "new", "words"), BROKEN)
def test_a_broken_rule_is_seen(
    copy: Path, change, rule: str, name: str, old: str, new: str, words: str
) -> None:
    check = getattr(room, rule)
    before = list(check(Checkout(copy)))
    change(name, old, new)
    if not words:  # said more than once
        while old in (copy / name).read_text(encoding="utf-8"):
            change(name, old, new)
    after = [problem for problem in check(Checkout(copy)) if problem not in before]
    assert after
    assert words in " ".join(after)


@pytest.mark.parametrize("heading", room.HEADINGS)
def test_a_missing_section_is_seen(copy: Path, change, heading: str) -> None:
    text = (copy / "README.md").read_text(encoding="utf-8")
    for line in [one for one in text.splitlines() if one.lower().startswith(f"## {heading[:5].lower()}")]:
        change("README.md", f"\n{line}\n", "\n## Something else\n")
    assert f"there is no section '{heading}'" in list(room.readme(Checkout(copy)))


def test_a_large_clone_is_seen(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(room.small_clone(Checkout(copy))) == []
    monkeypatch.setattr(room, "CLONE_BYTES", 10_000)
    assert list(room.small_clone(Checkout(copy)))


def test_history_counts(repository: Path) -> None:
    here = Checkout(repository)
    if not here.git("rev-parse", "HEAD"):
        pytest.skip("not a clone")
    assert here.history_bytes() > 1_000_000
    assert "README.md" in here.files


def test_what_only_people_can_tell_is_never_said_to_hold(
    copy: Path, change, capsys: pytest.CaptureFixture[str]
) -> None:
    change(JSON, '"tier": 3', '"tier": 6')
    assert room.main([str(copy)]) == 1
    lines = capsys.readouterr().out.splitlines()
    for task in room.BY_HAND:
        assert f"by hand {task}" in lines
    assert sum(line.startswith("FAILS") for line in lines) >= 1
    assert json.loads((copy / JSON).read_text(encoding="utf-8"))["tier"] == 6
