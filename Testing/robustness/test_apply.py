"""A transform applied to an image is what SimpleITK makes of the same two files, whatever their geometry."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st

from DiffeoRegLib.cli import OK, main
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.transform_files import read_transform, write_transform
from DiffeoRegLib.volumes.volume import Volume
from Testing.robustness.profile import examples
from Testing.robustness.storages import affines

TOLERANCE = 2e-3
"""Of an intensity range of 1."""


def smooth(shape, rng) -> torch.Tensor:
    """Waves through all axes, some 8 voxels long."""
    index = np.stack(np.meshgrid(*[np.arange(float(n)) for n in shape], indexing="ij"), -1)
    waves = [np.sin(index @ rng.uniform(-0.5, 0.5, len(shape)) + n) for n in range(4)]
    return torch.tensor((sum(waves) / 8 + 0.5).tolist(), dtype=torch.float32)


@st.composite
def cases(draw, dim: int):
    """Two grids that overlap, and a map between them: linear, a field, or both; in its plane for 2D."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    shape, other = (tuple(draw(st.integers(4, 24)) for _ in range(dim)) for _ in range(2))
    world = draw(affines())
    fixed = Grid(shape, world)
    # The other grid: cells of other size, its own axes a little turned, one reversed.
    sizes = np.array([n / m for n, m in zip(shape, other, strict=True)] + [1.0] * (3 - dim)) * rng.uniform(
        0.8, 1.2, 3
    )
    turn = np.eye(4)
    if dim == 3:
        turn[:3, :3] += rng.normal(0, 0.1, (3, 3))
        turn[:3, :3] = np.linalg.qr(turn[:3, :3])[0]
    axes = turn[:3, :3] @ world[:3, :3] / np.linalg.norm(world[:3, :3], axis=0)
    axes = axes * np.linalg.norm(world[:3, :3], axis=0) * sizes
    flip = draw(st.sampled_from([-1, 1]))
    placed = np.eye(4)
    placed[:3, :3] = axes * np.array([flip, 1, 1])
    middle = np.zeros(3)
    middle[:dim] = (np.array(other) - 1) / 2
    placed[:3, 3] = fixed.center_mm - placed[:3, :3] @ middle
    moving = Volume(smooth(other, rng), Grid(other, placed), "moving")
    return fixed, moving, transform(fixed, rng, draw(st.sampled_from(["linear", "field", "both"])))


def transform(fixed: Grid, rng, kind: str):
    """Of up to a voxel or two, around the middle of the grid."""
    inner = np.eye(4)
    inner[: fixed.dim, : fixed.dim] += rng.normal(0, 0.05, (fixed.dim, fixed.dim))
    middle = np.zeros(4)
    middle[: fixed.dim] = (np.array(fixed.shape) - 1) / 2
    inner[: fixed.dim, 3] = (middle - inner @ middle)[: fixed.dim] + rng.uniform(-1, 1, fixed.dim)
    linear = AffineTransform(fixed.world_from_voxel @ inner @ fixed.voxel_from_world)
    u_vox = torch.nn.functional.interpolate(
        torch.tensor(rng.uniform(-1.5, 1.5, (1, fixed.dim, *[4] * fixed.dim)).tolist(), dtype=torch.float64),
        size=fixed.shape, mode="bilinear" if fixed.dim == 2 else "trilinear",
    )  # fmt: skip
    steps = torch.tensor(fixed.world_from_voxel[:3, : fixed.dim].tolist(), dtype=torch.float64)
    field = DisplacementTransform(fixed, torch.einsum("ac,nc...->na...", steps, u_vox).float())
    return {"linear": linear, "field": field, "both": CompositeTransform([field, linear])}[kind]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@examples(4)
@given(data=st.data())
def test_apply_is_itk_s_resample(dim, suffix, data):
    fixed, moving, map_mm = data.draw(cases(dim))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volume(Volume(torch.zeros(fixed.shape), fixed, "fixed"), folder / f"f{suffix}")
        write_volume(moving, folder / f"m{suffix}")
        write_transform(map_mm, folder / "t.h5")
        words = ["apply", "t.h5", f"m{suffix}", "--like", f"f{suffix}", "-o", "o.nii.gz"]
        words = [str(folder / word) if "." in word else word for word in words]
        assert main(words) == OK
        images = [sitk.ReadImage(str(folder / f"{side}{suffix}"), sitk.sitkFloat64) for side in "mf"]
        read = sitk.ReadTransform(str(folder / "t.h5"))
        darkest = float(moving.data.min())
        resampled = sitk.Resample(*images, read, sitk.sitkLinear, darkest)
        theirs = sitk.GetArrayFromImage(resampled).ravel()
        ours = read_volume(folder / "o.nii.gz")
        there = read_transform(folder / "t.h5")
    nodes = fixed.world_from_index(np.argwhere(np.ones(fixed.shape)).astype(float))
    index = moving.grid.index_from_world(there.map_points(nodes))
    size = np.array(moving.grid.shape)
    # On the very edge of the moving image rounding decides who is inside.
    clear = (np.minimum(np.abs(index + 0.5), np.abs(index - size + 0.5)) > 1e-2).all(axis=1)
    seen = ((index > -0.5) & (index < size - 0.5)).all(axis=1)
    off = np.abs(np.array(ours.data.tolist()).ravel() - theirs)[clear]
    assert off.max(initial=0.0) < TOLERANCE
    assert seen.any(), "the images do not overlap: nothing is compared"
