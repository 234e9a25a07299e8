"""The README and the Makefile agree with the command; what all pages share is in test_docs.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from DiffeoRegLib.cli.arguments import build_parser
from Testing import documents


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


def test_the_demo_of_the_makefile_uses_flags_that_exist(repository: Path) -> None:
    recipe = (repository / "Makefile").read_text(encoding="utf-8").split("demo: $(VENV)/.demo")[1]
    flags = set(re.findall(r"(?<=[\s,])--?[a-z][a-z-]*", recipe.split("@echo")[0])) - {"-m"}
    assert "--fixed-seg" in flags
    shown = help_of(repository, "register")
    assert {flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", shown)} == set()


def test_every_subcommand_is_shown_on_a_page() -> None:
    shown = {line.split()[1] for page in documents.PAGES for line in documents.commands(page)}
    assert len(shown) > 8
    assert shown == subcommands()


def subcommands() -> set[str]:
    """Names of the commands, from the lines of the help."""
    text = build_parser().format_help().split("positional arguments:")[1].split("options:")[0]
    return set(re.findall(r"^ {4}([a-z][\w-]+)", text, re.MULTILINE))


def test_the_readme_shows_the_commands_users_need_first() -> None:
    shown = {line.split()[1] for line in documents.commands(documents.README)}
    assert {"register", "apply", "evaluate", "batch", "group", "template", "methods", "device"} <= shown


def test_the_readme_says_where_the_first_command_and_the_panel_are(repository: Path) -> None:
    text = documents.README.read_text(encoding="utf-8")
    assert "make demo" in text
    module = (repository / "DiffeoReg" / "DiffeoReg.py").read_text(encoding="utf-8")
    (title,) = re.findall(r'parent\.title = _\("([^"]+)"\)', module)
    assert title in text
    samples = (repository / "DiffeoReg" / "DiffeoRegPanel" / "samples.py").read_text(encoding="utf-8")
    for name in re.findall(r"\*\*(DiffeoReg\w+)\*\*", text):
        assert f'"{name}"' in samples
