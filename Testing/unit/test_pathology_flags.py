"""Flags of a pathology: what reaches the registration, and what is refused in a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.methods.memory import memory_of
from DiffeoRegLib.methods.unused import unused_settings
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.volumes.working_grid import estimate_memory_bytes
from Testing.command import one_sentence, register_words, run
from Testing.scenes import turned_grid

METHOD = ["--method", "metamorphosis"]


def test_marks_reach_the_registration(pair_files, tmp_path, registrations):
    files = pair_files / "fixed_seg.nii.gz", pair_files / "moving_seg.nii.gz"
    more = ["--pathology-classes", "1,4", "--pathology-edge-mm", "0"]
    words = [
        [*METHOD, "--pathology", files[0], "--pathology-moving", files[1], *more],
        [*METHOD, "--pathology-moving", files[1]],
        [],
    ]
    for number, flags in enumerate(words):
        out = tmp_path / str(number)
        assert run(*register_words(pair_files, out, *flags, "--quiet", "--no-html")) == 0
    both, one, none = (call["pathology"] for call in registrations)
    assert both.fixed.is_labels
    assert both.moving.is_labels
    assert (both.classes, both.edge_mm) == ((1, 4), 0.0)
    assert one.fixed is None
    assert (one.classes, one.edge_mm) == (None, 4.0)
    assert none is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pathology", "fixed_seg.nii.gz"], "'svf' makes no use of a pathology"),
        (["--pathology-classes", "1"], "which is missing"),
        (["--pathology-edge-mm", "2"], "which is missing"),
        (
            [*METHOD, "--pathology", "fixed_seg.nii.gz", "--pathology-classes", "1,a"],
            "whole numbers like 1,4",
        ),
        ([*METHOD, "--pathology", "fixed_seg.nii.gz", "--pathology-edge-mm", "-1"], "0 mm or wider"),
        ([*METHOD, "--pathology", "none.nii.gz"], "none.nii.gz"),
    ],
)
def test_bad_flags(flags, said, pair_files, tmp_path, registrations, capsys):
    words = [pair_files / word if word == "fixed_seg.nii.gz" else word for word in flags]
    assert run(*register_words(pair_files, tmp_path / "out", "--quiet", *words)) == 2
    assert said in one_sentence(capsys)
    assert not (tmp_path / "out").exists()
    assert registrations == []


def test_a_table_of_pairs_may_have_marks_for_it(pair_files, tmp_path, registrations):
    table = pair_files / "ill.csv"
    rows = ["fixed,moving,fixed_pathology", "fixed.nii.gz,moving.nii.gz,fixed_seg.nii.gz"]
    rows += ["moving.nii.gz,fixed.nii.gz,"]
    table.write_text("\n".join(rows), encoding="utf-8")
    assert run("evaluate", "--pairs", table, *METHOD, "-o", tmp_path / "o", "--quiet") == 0
    first, second = (call["pathology"] for call in registrations)
    assert (first.fixed.name, first.fixed.is_labels, first.moving) == ("fixed_seg", True, None)
    assert (second.fixed, second.moving.name) == (None, "fixed_seg")  # what is said of an image in one row


def test_without_marks_it_runs(pair_files, tmp_path, registrations):
    assert run(*register_words(pair_files, tmp_path / "out", *METHOD, "--quiet", "--no-html")) == 0
    assert registrations[0]["pathology"] is None


@pytest.mark.parametrize("shape", [(400, 300), (60, 70, 80)])
def test_its_memory_is_planned_with_room_for_marks(shape):
    grid = turned_grid(shape, (1.0,) * len(shape))
    plain = estimate_memory_bytes(grid)
    needed = memory_of(Settings(method="metamorphosis"))
    assert needed is not None
    assert plain <= needed(grid) < 1.3 * plain


MEASURE = """
import numpy as np, torch
torch.set_num_threads(1)
from DiffeoRegLib.methods.appearance import appearance
from DiffeoRegLib.methods.memory import APPEARANCE_BYTES
from DiffeoRegLib.report.memory import peak_memory_mb
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import turned_grid
grid = turned_grid((120, 120, 120), (1.0, 1.0, 1.0))
fixed, moved = (Volume(torch.rand(grid.shape), grid, name) for name in ("fixed", "moved"))
marks = torch.zeros(grid.shape, dtype=torch.int32)
marks[40:80, 40:80, 40:80] = 1
labels = Volume(marks, grid, "lesion", is_labels=True)
before = peak_memory_mb()
look = appearance(fixed, moved, AffineTransform(np.eye(4)), Pathology(labels, labels))
print((peak_memory_mb() - before) * 2**20 / grid.voxel_count / APPEARANCE_BYTES)
"""


def test_what_it_shows_is_planned_on_a_fine_fixed_image():
    """Against the peak of a process of its own; the coarser the working grid, the more it counts."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, encoding="utf-8", check=True, timeout=120
    )
    assert 0.6 < float(run.stdout) < 1.2
    working = turned_grid((60, 70, 80), (1.0,) * 3)
    settings, voxels = Settings(method="metamorphosis"), working.voxel_count
    alike, finer = (memory_of(settings, times * voxels)(working) for times in (1, 27))
    assert alike == memory_of(settings)(working)
    assert finer - alike > 27 * 40 * voxels


def test_settings_without_use_for_it_are_named():
    card = CARDS["metamorphosis"]
    assert unused_settings(card, Settings(method="metamorphosis", dense_iterations=3, update_sigma=2.0)) == []
    said = unused_settings(card, Settings(method="metamorphosis", kinetic=2.0, integrator="dopri5"))
    assert said == ["'metamorphosis' has no use for these settings: integrator, kinetic."]
