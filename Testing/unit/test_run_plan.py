"""What a run says it will need before it starts, and what it then writes; large images are not run here."""

from __future__ import annotations

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffeoRegLib.cli import commands
from DiffeoRegLib.errors import MemoryLimitError
from DiffeoRegLib.methods.memory import (
    BASE_BYTES,
    FILE_BYTES,
    SHOWN_BYTES,
    finish_bytes,
    finished_grid,
    require_memory,
    run_plan,
    whole_run,
)
from DiffeoRegLib.methods.start import background_of
from DiffeoRegLib.pipeline import PLAN_PHASE, register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.files import write_volume
from DiffeoRegLib.volumes.sizes import voxels_in
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.volumes.working_grid import COARSENED, fit_to_memory, grid_around
from Testing.command import one_sentence, run
from Testing.fake_run import blobs, hostile_grid

CT = Grid((400, 512, 512), np.diag([0.8, 0.7, 0.7, 1.0]))
HUGE = Grid((600, 1024, 1024), np.diag([0.6, 0.4, 0.4, 1.0]))
GIGABYTE = 1e9
SMALL = Settings(levels_mm=(8.0, 4.0), iterations=(3, 3), device="cpu", init="identity")


def fitted(fixed, settings, limit_gb):
    """The working grid of a fixed image that fills its view, within so much memory beside the images."""
    working = grid_around(fixed, None, settings)
    return fit_to_memory(working, int(limit_gb * GIGABYTE), settings, whole_run(settings, fixed))


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_ct_at_the_presets_voxel_size_fits_a_computer_of_24_gb(effort):
    settings = Settings(preset="abdomen", effort=effort)
    grid, notes = fitted(CT, settings, 15)
    assert not notes
    assert min(grid.spacing) >= 1.4
    plan = run_plan(settings, CT, 2 * CT.voxel_count, grid, whole_run(settings, CT)(grid))
    assert 3 * GIGABYTE < plan.memory < 9 * GIGABYTE
    assert plan.transforms < 1.2 * GIGABYTE


def test_a_ct_at_its_own_voxel_size_is_coarsened():
    settings = Settings(working_spacing_mm=0.7)
    grid, notes = fitted(CT, settings, 15)
    assert whole_run(settings, CT)(grid) <= 15 * GIGABYTE
    assert 0.8 < min(grid.spacing) < 1.4
    assert notes[0].startswith(COARSENED)
    assert "15 GB may be used" in notes[0]


@pytest.mark.parametrize(("limit_gb", "fits"), [(16, True), (9, False)])
def test_a_huge_ct_is_coarsened_or_refused(limit_gb, fits):
    if fits:
        grid, notes = fitted(HUGE, Settings(), limit_gb)
        assert grid.voxel_count < HUGE.voxel_count / 8
        assert notes[0].startswith(COARSENED)
        return
    with pytest.raises(MemoryLimitError, match="even a very coarse working grid does not fit"):
        fitted(HUGE, Settings(), limit_gb)


def test_a_small_working_grid_in_a_large_image_is_not_all_that_counts():
    """The map covers the whole fixed image at the working voxel size, however small the masked part is."""
    part = CT.cropped([100, 100, 100], [200, 200, 200])
    settings = Settings(taper_mm=0.0)
    assert whole_run(settings, CT)(part) == finish_bytes(settings, CT, part)
    half = finished_grid(Settings(taper_mm=0.0, effort="fast"), CT, part)
    assert half.voxel_count == pytest.approx(CT.voxel_count / 8, rel=0.05)
    grid, notes = fit_to_memory(part, 10**10, settings, whole_run(settings, CT))
    assert notes
    assert min(grid.spacing) > 0.8


def test_images_that_cannot_fit_are_refused_by_their_sizes():
    voxels = HUGE.voxel_count
    needed = BASE_BYTES + (4 + 4 + SHOWN_BYTES) * voxels
    require_memory(voxels, voxels, needed)
    require_memory(voxels, voxels, None)
    with pytest.raises(MemoryLimitError, match=r"629 and 629 million voxels: .* at least 15 GB .* 14 GB may"):
        require_memory(voxels, voxels, int(14 * GIGABYTE))


def header_only(path, shape):
    """A compressed file whose header speaks of an image that is not there."""
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4))
    image.header.set_data_shape(shape)
    with gzip.open(path, "wb") as file:
        file.write(image.header.binaryblock)
    return path


def test_a_huge_pair_is_refused_before_it_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "main_memory_bytes", lambda: int(8 * GIGABYTE))

    def never(path, **_):
        pytest.fail(f"{path} was read")

    monkeypatch.setattr(commands, "read_volume", never)
    files = [header_only(tmp_path / f"{name}.nii.gz", (1024, 1024, 600)) for name in ("fixed", "moving")]
    assert run("register", *files, "-o", tmp_path / "out", "--quiet") == 4
    assert "629 and 629 million voxels" in one_sentence(capsys)
    assert run("register", *files, "-o", tmp_path / "out", "--quiet", "--memory-limit-gb", 3) == 4
    assert "3 GB may be used" in one_sentence(capsys)


def test_sizes_come_from_headers(tmp_path):
    assert voxels_in(header_only(tmp_path / "a.nii.gz", (1024, 1024, 600))) == 1024 * 1024 * 600
    for name in ("b.nrrd", "b.mha", "b.mhd"):
        sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkInt16), str(tmp_path / name))
        assert voxels_in(tmp_path / name) == 210
    (tmp_path / "c.nii").write_bytes(b"no image")
    assert [voxels_in(tmp_path / name) for name in ("c.nii", "missing.nii", "d.png", ".")] == [None] * 4


@pytest.mark.parametrize("more", [["--taper-mm", "12"], []])
def test_the_files_are_as_large_as_announced(tmp_path, capsys, more):
    """With a ring of a given width to the byte, but for what the file holds beside its field."""
    grid = hostile_grid((16, 18, 20))
    scene = blobs(grid, "fixed")
    write_volume(scene, tmp_path / "fixed.nii.gz")
    rolled = torch.roll(scene.data, (1, 2, 1), (0, 1, 2))  # it moves at the border, too
    write_volume(Volume(rolled, grid, "moving"), tmp_path / "moving.nii.gz")
    words = ["register", tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", "-o", tmp_path / "out"]
    words += ["--levels", "4,2", "--iterations", "8,8", "--dense-iterations", 4, "--device", "cpu"]
    assert run(*words, "--init", "identity", "--no-html", *more) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("This run needs about")]
    assert len(said) == 1
    announced = int(said[0].split("at most ")[1].split(" MB")[0]) * 2**20
    written = sum((tmp_path / "out" / name).stat().st_size for name in ("transform.h5", "inverse.h5"))
    planned = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["planned"]
    exact = planned["transforms_mb"] * 2**20
    assert written <= exact + 10 <= announced + 10  # the report rounds to six digits
    if more:
        assert written > exact - 2 * FILE_BYTES


def test_the_plan_comes_before_the_search_and_stays_in_the_report():
    grid = hostile_grid((16, 18, 20))
    told = []
    result = register(blobs(grid, "fixed"), blobs(grid, "moving"), SMALL, progress=told.append)
    phases = [step.phase for step in told]
    assert phases.index("prepare") < phases.index(PLAN_PHASE) < phases.index("predict")
    planned = result.report["planned"]
    sentence = told[phases.index(PLAN_PHASE)].message
    assert f"{planned['memory_mb'] * 2**20 / 1e9:.2g} GB of memory" in sentence
    assert planned["memory_mb"] > 8 * grid.voxel_count / 2**20
    linear = register(blobs(grid, "fixed"), blobs(grid, "moving"), SMALL.with_changes(method="affine"))
    assert linear.report["planned"] is None


def test_a_limit_counts_the_images_too():
    """The limit is of the whole process: of 0.45 GB nothing is left with images of 20 MB each."""
    grid = Grid((160, 180, 180), np.eye(4))
    image = Volume(torch.rand(grid.shape), grid, "x")
    with pytest.raises(MemoryLimitError, match=r"only 0\.41 GB may be used"):
        register(image, Volume(1 - image.data, grid, "y"), SMALL.with_changes(memory_limit_gb=0.45))


@pytest.mark.parametrize(
    ("values", "lowest"),
    [([3.0, 1.0, 2.0], 1.0), ([3.0, float("nan"), 2.0], 2.0), ([float("-inf"), 4.0, 5.0], 4.0),
     ([float("nan")] * 3, 0.0)],
)  # fmt: skip
def test_what_lies_outside_is_the_least_finite_value(values, lowest):
    data = torch.tensor(values).view(1, 3).expand(2, 3).clone()
    assert background_of(Volume(data, Grid((2, 3), np.eye(4)), "x")) == lowest


def test_whole_numbers_have_a_least_value_too():
    data = torch.tensor([[3, -7], [2, 5]], dtype=torch.int32)
    assert background_of(Volume(data, Grid((2, 2), np.eye(4)), "x", is_labels=True)) == -7
