"""The README names what exists: its Python, its commands and their flags, its links."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest


def names_in(repository: Path, module: str) -> set[str]:
    """What a module of the README offers; that of Slicer is only read, as it cannot be imported here."""
    if module != "DiffeoReg":
        return set(dir(importlib.import_module(module)))
    source = (repository / "DiffeoReg" / "DiffeoReg.py").read_text(encoding="utf-8")
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_python_of_the_readme_names_what_exists(repository: Path) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert blocks
    for node in ast.walk(ast.parse("\n".join(blocks))):
        if isinstance(node, ast.ImportFrom):
            known = names_in(repository, str(node.module))
            assert {alias.name for alias in node.names} <= known


def shell_lines(repository: Path) -> list[str]:
    """Lines of the README that call the command, without their comments."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    return [line.split("#")[0] for line in text.splitlines() if line.startswith("diffeoreg ")]


def help_of(repository: Path, subcommand: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "DiffeoRegLib", subcommand, "--help"],
        cwd=repository,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "subcommand",
    ["register", "apply", "evaluate", "methods", "train", "import-weights", "batch", "group", "template"],
)
def test_commands_of_the_readme_exist_with_their_flags(repository: Path, subcommand: str) -> None:
    lines = [line for line in shell_lines(repository) if line.split()[1] == subcommand]
    assert lines
    if subcommand == "register":
        lines.append((repository / "Makefile").read_text(encoding="utf-8").split("demo: $(VENV)/.demo")[1])
        lines[-1] = lines[-1].split("@echo")[0]
    flags = set(re.findall(r"(?<=[\s,])--?[a-z][a-z-]*", " ".join(lines))) - {"-m"}
    shown = help_of(repository, subcommand)
    assert {flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", shown)} == set()


def test_the_readme_shows_only_commands_that_are_tested(repository: Path) -> None:
    assert {line.split()[1] for line in shell_lines(repository)} == {
        "register",
        "apply",
        "evaluate",
        "methods",
        "batch",
        "group",
        "template",
        "shoot",
        "train",
        "import-weights",
    }


@pytest.mark.parametrize("page", ["README.md", "Resources/docs/changes.md", "Resources/docs/results.md"])
def test_links_between_pages_lead_somewhere(repository: Path, page: str) -> None:
    text = (repository / page).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if not t.startswith("http")]
    assert [t for t in targets if not ((repository / page).parent / t).exists()] == []


# --- shipped images -----------------------------------------------------------------------------------------
