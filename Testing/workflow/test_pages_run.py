"""What the tutorial and the page of conventions tell a reader to type does what they say."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from DiffeoRegLib.cli import main
from Testing import documents

TUTORIAL = documents.DOCS / "tutorial.md"


@pytest.fixture(scope="module")
def walked(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the tutorial were typed, one after the other, as written."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(samples, folder / "Resources" / "SampleData")
    lines = documents.commands(TUTORIAL)
    assert [line.split()[1] for line in lines] == ["register", "apply", "evaluate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines:
            assert main(shlex.split(line)[1:]) == 0, line
    return folder


def test_the_commands_of_the_tutorial_give_what_it_shows(walked: Path) -> None:
    shown = documents.blocks(TUTORIAL, "text")[0].text
    report = json.loads((walked / "build" / "tutorial" / "report.json").read_text(encoding="utf-8"))
    (line,) = [line for line in shown.splitlines() if line.startswith("Dice")]
    told = [float(word) for word in line.split()[-3:]]
    mean = report["labels"]["mean"]
    found = [mean[stage]["dice"] for stage in ("given", "initial", "final")]
    assert found == pytest.approx(told, abs=0.01)
    assert report["folds"]["folded_percent"] == 0
    assert "Folded cells (%)                             0" in shown
    for name in shown.splitlines()[-1].partition(": ")[2].split(", "):
        assert (walked / "build" / "tutorial" / name).is_file()


def test_applying_the_transform_gives_the_moved_image_again(walked: Path) -> None:
    again, moved = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(walked / "build" / "tutorial" / name), sitk.sitkFloat32))
        for name in ("again.nii.gz", "moved.nii.gz")
    )
    assert np.abs(again - moved).max() < 1e-3 * np.ptp(moved)


def test_the_example_of_the_conventions_runs_as_written(
    walked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = documents.blocks(documents.DOCS / "conventions.md", "python")
    monkeypatch.chdir(walked)
    exec(compile(block.text, "conventions.md", "exec"), {"__name__": "page"})
    numbers = [float(next(w for w in line.split()[::-1] if w[0].isdigit())) for line in
               capsys.readouterr().out.splitlines()]  # fmt: skip
    difference_percent, there_and_back_mm, disagreement_mm = numbers
    assert difference_percent < 0.01
    assert there_and_back_mm < 0.3
    assert disagreement_mm < 1e-3
