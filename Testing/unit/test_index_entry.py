"""The checkout obeys the rules by which Slicer's extensions index accepts an extension.

Written from the rules, not from the index's own scripts: they clone the repository, read its CMake file line
by line, and check the entry against a schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tools import make_icon

SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1"
)
REQUIRED = {"$schema": str, "category": str, "scm_url": str}
OPTIONAL = {
    "build_dependencies": list,
    "build_subdirectory": str,
    "dicom_support_rule": str,
    "enabled": bool,
    "scm_revision": str,
    "scm_type": str,
    "tier": int,
}
LICENCES = ("LICENSE", "LICENCE", "License.txt", "LICENSE.txt", "COPYING", "COPYING.txt")


@pytest.fixture(scope="module")
def file(repository: Path) -> Path:
    return repository / "Resources" / "docs" / "DiffeoReg.json"


@pytest.fixture(scope="module")
def entry(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def top(repository: Path) -> str:
    """The top CMake file."""
    return (repository / "CMakeLists.txt").read_text(encoding="utf-8")


def setting(top: str, name: str) -> str:
    """Value of a variable that is set in a single line, in quotes, without other variables in it."""
    (value,) = re.findall(rf'^set\({name} "([^"$\n]+)"\)', top, re.MULTILINE)
    return value


def problems(entry: Mapping[str, Any]) -> list[str]:
    """What the schema would refuse."""
    kinds = {**REQUIRED, **OPTIONAL}
    found = [f"{key} is missing" for key in REQUIRED if key not in entry]
    found += [f"{key} is unknown" for key in entry if key not in kinds]
    found += [f"{key} is no {k.__name__}" for key, k in kinds.items() if type(entry.get(key, k())) is not k]
    if found:
        return found
    if not entry["$schema"].startswith(SCHEMA):
        found.append("the schema is another one")
    if not re.fullmatch(r"https://\S+\.git", entry["scm_url"]):
        found.append("scm_url must be an https address of a git repository")
    if not 1 <= entry.get("tier", 1) <= 5:
        found.append("tier must be 1 to 5")
    if not all(isinstance(name, str) for name in entry.get("build_dependencies", [])):
        found.append("dependencies are names")
    return found


def test_the_entry_obeys_the_schema(entry: dict[str, Any]) -> None:
    assert problems(entry) == []
    assert entry["category"] == "Registration"


@pytest.mark.parametrize(
    "change",
    [
        {"category": None},
        {"description": "not here: it comes from CMake"},
        {"tier": 6},
        {"tier": "3"},
        {"tier": True},
        {"scm_url": "git://github.com/DiffeoReg/SlicerDiffeoReg.git"},
        {"scm_url": "https://github.com/DiffeoReg/SlicerDiffeoReg"},
        {"build_dependencies": "PyTorch"},
        {"build_dependencies": [1]},
        {"$schema": "https://json-schema.org/draft-07"},
    ],
)
def test_a_broken_entry_would_be_seen(entry: dict[str, Any], change: dict[str, Any]) -> None:
    assert problems({**entry, **change}) != []


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_a_missing_key_would_be_seen(entry: dict[str, Any], key: str) -> None:
    assert problems({k: v for k, v in entry.items() if k != key}) == [f"{key} is missing"]


def test_the_entry_is_laid_out_as_the_index_wants(file: Path, entry: dict[str, Any]) -> None:
    text = file.read_bytes().decode("utf-8")
    assert "\t" not in text
    assert "\r" not in text
    assert text.endswith("}\n")
    assert list(entry) == sorted(entry)


def test_names_agree(file: Path, entry: dict[str, Any], top: str) -> None:
    (name,) = re.findall(r"^project\((\w+)\)$", top, re.MULTILINE)
    assert name == file.stem
    assert not name.startswith("Slicer")
    repository = entry["scm_url"].removesuffix(".git")
    assert repository.rsplit("/", 1)[1] == f"Slicer{name}"
    assert setting(top, "EXTENSION_HOMEPAGE") == repository


def test_dependencies_agree(entry: dict[str, Any], top: str) -> None:
    assert re.search(r'^set\(EXTENSION_DEPENDS "PyTorch"\)', top, re.MULTILINE)
    assert entry["build_dependencies"] == ["PyTorch"]


def test_the_top_file_has_the_form_of_the_template(top: str) -> None:
    assert top.startswith("cmake_minimum_required(VERSION 3.28.0...3.28.0 FATAL_ERROR)\n")
    assert "\n## NEXT_MODULE\n" in top
    order = ("EXTENSION_DEPENDS", "find_package(Slicer REQUIRED)", "Slicer_USE_FILE", "add_subdirectory(")
    order += ("## NEXT_MODULE", "Slicer_EXTENSION_GENERATE_CONFIG", "Slicer_EXTENSION_CPACK")
    places = [top.index(word) for word in order]
    assert places == sorted(places)


def test_each_folder_that_has_something_to_install_is_added(repository: Path, top: str) -> None:
    added = re.findall(r"^add_subdirectory\((\w+)\)", top, re.MULTILINE)
    assert sorted(added) == sorted(path.parent.name for path in repository.glob("[A-Z]*/CMakeLists.txt"))


@pytest.mark.parametrize("name", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_each_picture_is_one_address_of_a_file_that_ships(
    repository: Path, entry: dict[str, Any], top: str, name: str
) -> None:
    (address,) = setting(top, name).split()
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc) == ("https", "raw.githubusercontent.com")
    owner = urlsplit(entry["scm_url"]).path.removesuffix(".git")
    folder = f"{owner}/{entry['scm_revision']}/"
    assert parts.path.startswith(folder)
    assert parts.path.endswith(".png")
    picture = repository / parts.path.removeprefix(folder)
    assert picture.stat().st_size < 1_024_000
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_the_icon_has_the_size_slicer_shows(repository: Path) -> None:
    with Image.open(repository / "DiffeoReg" / "Resources" / "Icons" / "DiffeoReg.png") as icon:
        assert icon.size == (128, 128)
        assert icon.mode == "RGBA"
        assert icon.getpixel((0, 0))[3] == 0  # transparent around the disc


def test_the_icon_is_the_one_its_script_draws(repository: Path, tmp_path: Path) -> None:
    make_icon.draw(tmp_path / "icon.png")
    with Image.open(tmp_path / "icon.png") as drawn, Image.open(make_icon.ICON) as shipped:
        difference = np.abs(np.asarray(drawn, float) - np.asarray(shipped, float))
    assert difference.mean() < 2.0  # of 255: other versions draw edges a little differently


def test_the_licence_is_where_the_index_looks(repository: Path) -> None:
    assert any((repository / name).is_file() for name in LICENCES)


def test_a_clone_is_small(repository: Path) -> None:
    own = [path for path in repository.iterdir() if not path.name.startswith((".", "build", "dist"))]
    files = [path for top in own for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000_000
