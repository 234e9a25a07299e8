"""Every format keeps values and place, whatever the image: judged by nibabel and SimpleITK, not by us."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.volume import Volume
from Testing.robustness.profile import examples
from Testing.robustness.storages import (
    Stored,
    as_itk_sees,
    as_nibabel_sees,
    storages,
    write_by_hand,
    write_itk,
    write_nifti,
)

TOLERANCE_MM = 2e-3
"""NIfTI keeps places in single precision: 1e-7 of some hundred mm, and a little more through quaternions."""
BY_NIBABEL = (".nii", ".nii.gz")
BY_ITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".nii", ".nii.gz")
BY_HAND = (".nrrd", ".mha")
WRITTEN = (".nii", ".nii.gz", ".nrrd", ".mha")


def corners(shape: tuple[int, ...]) -> np.ndarray:
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(len(shape), -1).T


def assert_seen_alike(volume: Volume, stored: Stored) -> None:
    """Every voxel has the value, and every corner the place, that another program sees."""
    seen = stored.array.T
    assert volume.grid.shape == tuple(n for n in seen.shape if n > 1)
    np.testing.assert_array_equal(array_from_tensor(volume.data), seen.squeeze())
    index = corners(stored.array.shape)
    ours = np.array([axis for axis, n in enumerate(stored.array.shape) if n > 1][::-1])
    there = volume.grid.world_from_index(index[:, ours].astype(float))
    assert np.abs(there - stored.world(index)).max() < TOLERANCE_MM


def assert_slice_has_its_thickness(volume: Volume, stored: Stored) -> None:
    single = [axis for axis, n in enumerate(stored.array.shape) if n == 1]
    if single:
        step = stored.affine[:3, single[0]]
        assert np.abs(volume.grid.world_from_voxel[:3, 2] - step).max() < 1e-4 * np.linalg.norm(step)


@pytest.mark.parametrize("suffix", BY_NIBABEL)
@examples(6)
@given(storages(), st.booleans(), st.sampled_from([(1, 1), (2, 0), (0, 1), (1, 0), (0, 2)]))
def test_nifti_of_nibabel_is_read(suffix, stored, big, codes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v{suffix}"
        write_nifti(stored, path, big=big, codes=codes)
        volume = read_volume(path)
        assert_seen_alike(volume, as_nibabel_sees(path))
        assert_seen_alike(volume, stored)
        assert_slice_has_its_thickness(volume, stored)
        assert_seen_alike(volume, as_itk_sees(path))


@pytest.mark.parametrize("suffix", BY_ITK)
@examples(4)
@given(storages(), st.booleans())
def test_images_of_itk_are_read(suffix, stored, compressed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v{suffix}"
        write_itk(stored, path, compressed=compressed)
        volume = read_volume(path)
        assert_seen_alike(volume, as_itk_sees(path))
        assert_seen_alike(volume, stored)
        assert_slice_has_its_thickness(volume, stored)


@pytest.mark.parametrize("suffix", BY_HAND)
@examples(5)
@given(storages())
def test_high_bytes_first_are_read(suffix, stored):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v{suffix}"
        write_by_hand(stored, path)
        volume = read_volume(path)
        assert_seen_alike(volume, as_itk_sees(path))
        assert_seen_alike(volume, stored)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("labels", [False, True])
@examples(4)
@given(stored=storages())
def test_what_is_written_is_seen_by_others(suffix, labels, stored):
    single = [axis for axis, n in enumerate(stored.array.shape) if n == 1]
    order = [axis for axis in (2, 1, 0) if axis not in single]
    array = stored.array.T.squeeze().astype(np.int32 if labels else np.float32)
    affine = stored.affine[:, [*order, *single, 3]]
    volume = Volume(tensor_from_array(array), Grid(array.shape, affine), "v", is_labels=labels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v{suffix}"
        write_volume(volume, path)
        seen = as_itk_sees(path)
        assert seen.array.size == array.size
        assert_seen_alike(volume, seen)
        if suffix in BY_NIBABEL:
            assert_seen_alike(volume, as_nibabel_sees(path))
        again = read_volume(path, labels=labels)
        assert np.array_equal(array_from_tensor(again.data), array)
        assert again.grid.same_as(volume.grid, tolerance=TOLERANCE_MM / 0.3)
