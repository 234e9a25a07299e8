"""An image and its copy a known way off: the way is found in world mm, however the two are stored."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from DiffeoRegLib.pipeline import register
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.volumes.files import read_volume
from Testing.robustness.profile import examples
from Testing.robustness.storages import TYPES, Stored, affines, shapes, write_by_hand, write_itk, write_nifti

FILES = (".nii", ".nii.gz", ".nrrd", ".mha", "big .nii", "big .nrrd", "big .mha")
OFF_VOXELS = 0.25
"""Of the largest side of a voxel. Most are found exactly: copies on one grid are one image."""
LONGEST_VOXEL = 10.0
"""Times its shortest side: beyond, reports say that motion across the slices is uncertain, and it is."""


def spots(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Round spots of 0 .. 120 in a field of 0, in shares of the axes: the same picture for any voxel size."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij"), -1)
    thick = [axis for axis, n in enumerate(shape) if n > 1]
    out = np.zeros(shape)
    for centre, size, height in zip(
        rng.uniform(0.35, 0.65, (6, 3)), rng.uniform(0.04, 0.1, 6), range(2, 8), strict=True
    ):
        out += height * np.exp(-((at - centre)[..., thick] ** 2).sum(-1) / (2 * size**2))
    return np.where(out > 0.05, out * 120 / out.max(), 0.0)


def reordered(stored: Stored, order: tuple[int, ...], flips: tuple[bool, ...]) -> Stored:
    """The same image with its axes stored in another order and direction."""
    array = stored.array.transpose(order)
    column = np.zeros((4, 4))
    column[3, 3] = 1
    for new, old in enumerate(order):
        column[old, new] = -1 if flips[new] else 1
        column[old, 3] = array.shape[new] - 1 if flips[new] else 0
    array = np.flip(array, [axis for axis, flip in enumerate(flips) if flip])
    return Stored(np.ascontiguousarray(array), stored.affine @ column)


def written(stored: Stored, folder: Path, name: str, kind: str):
    """The volume of a file of one of FILES."""
    path = folder / f"{name}{kind.split()[-1]}"
    if path.suffix in (".nii", ".gz"):
        write_nifti(stored, path, big=kind.startswith("big"))
    elif kind.startswith("big"):
        write_by_hand(stored, path)
    else:
        write_itk(stored, path, compressed=True)
    return read_volume(path)


@st.composite
def shifted_pairs(draw, largest: int = 32):
    """Two stored images and the way between them, mm, along the image axes: in its plane for a 2D one."""
    shape = draw(shapes(10, largest))
    affine = draw(affines())
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    assume(sides.max() <= LONGEST_VOXEL * sides.min())
    kinds = draw(st.tuples(*[st.sampled_from(TYPES)] * 2))
    picture = spots(shape, draw(st.integers(0, 2**31)))
    fixed = Stored(picture.round().astype(kinds[0]), affine)
    share = np.array(draw(st.tuples(*[st.floats(-2, 2)] * 3)))
    shift = affine[:3, :3] @ (share * np.array(shape) * (np.array(shape) > 1))
    moved = affine.copy()
    moved[:3, 3] += shift
    moving = Stored(picture.round().astype(kinds[1]), moved)
    order = tuple(draw(st.permutations(range(3))))
    moving = reordered(moving, order, draw(st.tuples(*[st.booleans()] * 3)))
    return fixed, moving, shift, draw(st.tuples(*[st.sampled_from(FILES)] * 2))


def assert_found(pair, settings: Settings, voxels: float = OFF_VOXELS) -> None:
    fixed, moving, shift, kinds = pair
    with tempfile.TemporaryDirectory() as folder:
        volumes = [written(one, Path(folder), name, kind)
                   for one, name, kind in zip((fixed, moving), ("f", "m"), kinds, strict=True)]  # fmt: skip
    result = register(*volumes, settings)
    bright = np.argwhere(fixed.array > 20)
    points = fixed.world(bright)
    off = np.linalg.norm(result.transform.map_points(points) - points - shift, axis=1)
    assert off.max() < voxels * max(volumes[0].grid.spacing)
    back = np.linalg.norm(result.inverse.map_points(points + shift) - points, axis=1)
    assert back.max() < voxels * max(volumes[0].grid.spacing)
    assert result.report["folds"]["folded_percent"] == 0


QUICK = Settings(effort="fast", device="cpu", init="mass")


@examples(12)
@given(shifted_pairs())
def test_a_shift_is_found_by_a_deformable_method(pair):
    assert_found(pair, QUICK)


@pytest.mark.parametrize("init", ["rigid", "affine"])
@examples(1, most=100)
@given(pair=shifted_pairs(16))
def test_a_shift_is_found_by_alignment(init, pair):
    """Half a voxel: twelve numbers from a picture of a dozen voxels a side."""
    assert_found(pair, replace(QUICK, method="affine", init=init), voxels=0.5)
