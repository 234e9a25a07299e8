"""One image stored in each of the 48 ways axes can be ordered and reversed: all are one image."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.volumes.files import read_volume
from Testing.robustness.profile import EXAMPLES
from Testing.robustness.storages import Stored, turned, write_nifti
from Testing.robustness.test_shifted_copies import reordered, spots

SHARED = os.environ.get("DIFFEOREG_SHARED_DATA", "")
ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
LARGEST_MM = 1e-3
STARTS = ("mass", "affine") if EXAMPLES else ("mass",)
ALIGNED = [ORDERS[n] for n in (5, 26, 47)]
"""Those that also start from an affine alignment, which takes a second each."""


@pytest.fixture(scope="module")
def whole():
    """An oblique image of three different sizes and spacings."""
    affine = np.eye(4)
    affine[:3, :3] = turned((20.0, -35.0, 50.0)) * [1.4, 1.9, 2.3]
    affine[:3, 3] = (12.5, -40.0, 77.0)
    return Stored(spots((18, 15, 13), 7).round().astype(np.int16), affine)


def farthest_mm(transform, volume) -> float:
    """How far any voxel of a volume is moved."""
    points = volume.grid.world_from_index(np.argwhere(np.ones(volume.grid.shape)).astype(float))
    return float(np.linalg.norm(transform.map_points(points) - points, axis=1).max())


def assert_at_rest(first: Path, second: Path, settings: Settings) -> None:
    fixed, moving = read_volume(first), read_volume(second)
    result = register(fixed, moving, settings)
    assert farthest_mm(result.transform, fixed) < LARGEST_MM
    assert farthest_mm(result.inverse, moving) < LARGEST_MM
    assert (result.moved.data - fixed.data).abs().max() < 0.01 * fixed.data.abs().max()


@pytest.mark.parametrize("order", ORDERS)
def test_every_storage_order_is_the_same_image(whole, tmp_path, order):
    write_nifti(whole, tmp_path / "f.nii")
    write_nifti(reordered(whole, *order), tmp_path / "m.nii.gz")
    settings = Settings(effort="fast", device="cpu", init="mass")
    assert_at_rest(tmp_path / "f.nii", tmp_path / "m.nii.gz", settings)
    if EXAMPLES or order in ALIGNED:
        assert_at_rest(tmp_path / "f.nii", tmp_path / "m.nii.gz", replace(settings, init="affine"))


@pytest.mark.skipif(not SHARED, reason="DIFFEOREG_SHARED_DATA names no folder with the real files")
def test_real_files_of_all_orders_are_the_same_image():
    """NIfTI files of one head in eight storage orders, written by another program."""
    files = sorted(path for path in Path(SHARED).glob("niivue_orient48/*.nii*"))
    assert len(files) >= 8
    for other in files[1:]:
        assert_at_rest(files[0], other, Settings(effort="fast", device="cpu", init="mass"))
