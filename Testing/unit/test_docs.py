"""The pages hold together: links lead somewhere, code names what exists, commands can be typed."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from DiffeoRegLib.cli.arguments import build_parser
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.training.config import config_from
from Testing import documents
from tools import write_api

IDS = [documents.name_of(page) for page in documents.PAGES]
every_page = pytest.mark.parametrize("page", documents.PAGES, ids=IDS)


@every_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in documents.links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in documents.anchors(target)):
            broken.append(link)
    assert broken == []


def test_links_and_anchors_are_found_as_they_are_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = (
        "# 1. Setup, once\n## What's `in` it?\n## Twice\n## Twice\n[a](b.md#c) ![p](d.png) `[no](e.md)`\n"
        '[w](https://x.org) <a id="spot"></a>\n```sh\n# no heading\n[no](f.md)\n```\n'
    )
    page.write_text(text, encoding="utf-8")
    assert documents.links(page) == ["b.md#c", "d.png"]
    assert documents.anchors(page) == {"1-setup-once", "whats-in-it", "twice", "twice-1", "spot"}


def test_every_page_is_in_the_index() -> None:
    index = documents.DOCS / "README.md"
    listed = {link.partition("#")[0] for link in documents.links(index)}
    assert {page.name for page in documents.DOCS.glob("*.md")} - {"README.md"} <= listed


def test_pictures_that_pages_show_are_shown_once_they_are_there(repository: Path) -> None:
    pictures = [path for path in (repository / "Resources").rglob("*.png")]
    shown = set()
    for page in documents.PAGES:
        shown |= {(page.parent / link).resolve() for link in documents.links(page) if link.endswith(".png")}
    described = (repository / "Resources" / "Screenshots" / "README.md").read_text(encoding="utf-8")
    assert {p.name for p in pictures if p.resolve() not in shown and f"`{p.name}`" not in described} == set()
    screenshots = [path for path in pictures if path.parent.name == "Screenshots"]
    assert sum(path.stat().st_size for path in screenshots) < 3_000_000
    assert max(path.stat().st_size for path in pictures) < 1_000_000


COMMANDS = [(page, line) for page in documents.PAGES for line in documents.commands(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:70] for _, line in COMMANDS])
def test_a_command_of_the_pages_can_be_typed(page: Path, line: str) -> None:
    words = shlex.split(line)[1:]
    if "--help" in words:
        words.remove("--help")
        assert words[0] in build_parser().format_help()
    else:
        build_parser().parse_args(words)  # raises for a flag that is unknown, missing or without its value


def python_of(page: Path) -> list[ast.Module]:
    return [ast.parse(block.text) for block in documents.blocks(page, "python")]


@every_page
def test_python_of_the_pages_names_what_exists(page: Path, repository: Path) -> None:
    fields = {field.name for field in dataclasses.fields(Settings)}
    signatures = logic_signatures(repository)
    for tree in python_of(page):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = {alias.name for alias in node.names}
                assert wanted <= defined(repository, node.module) | own_names(page), node.module
            elif isinstance(node, ast.Call):
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                called = ast.unparse(node.func)
                if called == "Settings":
                    assert given <= fields
                elif called.startswith("logic."):
                    assert given <= signatures[called.removeprefix("logic.")]


def own_names(page: Path) -> set[str]:
    """What a page's own code defines."""
    return {n.name for tree in python_of(page) for n in tree.body if isinstance(n, ast.ClassDef)}


def defined(repository: Path, module: str) -> set[str]:
    """Names that a module of ours defines or hands on; everything is fine of others'."""
    parts = module.split(".")
    if parts[0] not in ("DiffeoRegLib", "DiffeoReg", "DiffeoRegPanel"):
        return {name for name in ("Tensor", "annotations")}
    path = repository.joinpath(*(["DiffeoReg"] if parts[0] != "DiffeoRegLib" else []), *parts)
    path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not path.is_file():
        return set()
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {ast.unparse(target) for target in targets}
    return names


def logic_signatures(repository: Path) -> dict[str, set[str]]:
    """Parameters of the methods of DiffeoRegLogic, by name."""
    tree = ast.parse((repository / "DiffeoReg" / "DiffeoReg.py").read_text(encoding="utf-8"))
    (logic,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "DiffeoRegLogic"]
    methods = [n for n in logic.body if isinstance(n, ast.FunctionDef)]
    return {m.name: {a.arg for a in [*m.args.args, *m.args.kwonlyargs]} for m in methods}


YAML = [(page, n, b) for page in documents.PAGES for n, b in enumerate(documents.blocks(page, "yaml"))]


@pytest.mark.parametrize(
    ("page", "number", "block"), YAML, ids=[f"{documents.name_of(p)}-{n}" for p, n, _ in YAML]
)
def test_configurations_of_the_pages_are_accepted(page: Path, number: int, block: documents.Block) -> None:
    assert config_from(yaml.safe_load(block.text)).steps > 0


def test_the_readme_has_what_users_and_the_index_look_for() -> None:
    text = documents.README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    order = ["Install", "Tutorial", "From Slicer's Python console", "On the command line", "Methods",
             "How to cite", "Safety and privacy", "Licence", "Support"]  # fmt: skip
    assert heads == order
    first, picture = text.split("\n\n")[1:3]
    assert len(re.findall(r"[a-z*]\.(?:\s|$)", first)) <= 2
    assert re.match(r"!\[.+\]\(.+\.png\)", picture)
    cited = text.split("## How to cite")[1].split("\n## ")[0]
    for name in ("SITReg", "TransMorph-TVF", "RDMM", "MetaRegNet", "GroupMorph", "CITATION.cff"):
        assert name in cited


def test_the_citation_file_names_version_and_papers(repository: Path) -> None:
    from DiffeoRegLib import __version__

    entry = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert entry["cff-version"] == "1.2.0"
    assert entry["version"] == __version__
    assert entry["license"] == "Apache-2.0"
    assert len(entry["references"]) == 5
    for reference in entry["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference)


def test_all_methods_are_in_the_table_of_methods() -> None:
    from DiffeoRegLib.catalog import CARDS

    text = (documents.DOCS / "methods.md").read_text(encoding="utf-8")
    assert {name for name in CARDS if f"`{name}`" not in text} == set()


def test_the_page_of_the_interface_is_up_to_date(repository: Path) -> None:
    page = (repository / write_api.PAGE).read_text(encoding="utf-8")
    assert page == write_api.page(repository), "run `make docs`"


def test_the_interface_needs_docstrings_and_existing_names(repository: Path, tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text(
        'def f(a, *, b: str = "x, y"):\n    """Does.\n\n    a: it.\n    """\n', encoding="utf-8"
    )
    text = write_api.page(tmp_path, [write_api.Part("Part", "m", ("f",))])
    assert "f(a, *, b: str='x, y')" in text
    assert "Does.\n\n```text\na: it.\n```" in text
    with pytest.raises(LookupError, match="no 'g'"):
        write_api.page(tmp_path, [write_api.Part("Part", "m", ("g",))])
    module.write_text("def f(): ...\n", encoding="utf-8")
    with pytest.raises(LookupError, match="no docstring"):
        write_api.page(tmp_path, [write_api.Part("Part", "m", ("f",))])
    long = f"f({', '.join(f'{name}: int=1' for name in 'abcdefghijkl')}) -> dict[str, int]"
    assert write_api.broken(long).splitlines()[-1] == ") -> dict[str, int]"
    assert write_api.broken(long).splitlines()[1] == "    a: int=1,"
