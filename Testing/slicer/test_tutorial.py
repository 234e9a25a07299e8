"""The lines of the tutorial for Slicer's Python console, run as written on the bench."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import slicer

from DiffeoRegPanel.samples import HOMEPAGE, SAMPLES
from Testing import documents
from Testing.slicer.panel_pictures import add_launcher
from Testing.slicer.pictures import load_pair

PAGE = documents.DOCS / "tutorial.md"


def test_the_console_lines_do_what_the_tutorial_says(bench, capsys: pytest.CaptureFixture[str]) -> None:
    add_launcher(Path(bench.app.slicerHome))
    bench.load().close()
    pair = load_pair(bench.core)
    loaded = {pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels}
    assert {node.GetName() for node in loaded} == {file.node for file in SAMPLES[0].files}
    (block,) = documents.blocks(PAGE, "python")
    scope = {"__name__": "__console__", "slicer": slicer}
    exec(compile(block.text, str(PAGE), "exec"), scope)
    folded, dice, sentence = capsys.readouterr().out.splitlines()[-3:]
    assert folded == "0.0"
    assert float(dice) == pytest.approx(0.83, abs=0.01)
    assert "moves the image exactly" in sentence
    for name in ("Hippocampus moving -> Hippocampus fixed", "Hippocampus fixed -> Hippocampus moving"):
        assert slicer.mrmlScene.GetFirstNodeByName(name) is not None, name


def test_the_tutorial_names_what_the_module_shows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    form = (documents.REPOSITORY / "DiffeoReg" / "Resources" / "UI" / "DiffeoReg.ui").read_text(
        encoding="utf-8"
    )
    assert f"**{SAMPLES[0].name}**" in text
    for words in ("Install PyTorch...", "Apply", "Restore views", "Copy as Python", "Checkerboard", "Flicker",
                  "Deformed grid", "Masks and segmentations"):  # fmt: skip
        assert words in text
        assert f"<string>{words}</string>" in form


def test_the_help_of_the_module_leads_to_pages_and_headings_that_exist() -> None:
    source = (documents.REPOSITORY / "DiffeoReg" / "DiffeoReg.py").read_text(encoding="utf-8")
    (pages,) = re.findall(r'^PAGES = "(.+)"$', source, re.MULTILINE)
    assert pages == f"{HOMEPAGE}/blob/main/{documents.DOCS.relative_to(documents.REPOSITORY).as_posix()}"
    links = re.findall(r"\{pages\}/([^\"]+)", source)
    assert len(links) == 5
    for link in links:
        name, _, anchor = link.partition("#")
        assert (documents.DOCS / name).is_file()
        assert not anchor or anchor in documents.anchors(documents.DOCS / name)
