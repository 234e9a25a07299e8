"""The initial alignment and the preparation on the shipped hippocampus pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from DiffeoRegLib.methods.affine import initial_alignment
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.files import read_volume
from DiffeoRegLib.volumes.pair import Correspondence
from DiffeoRegLib.volumes.prepare import prepare
from DiffeoRegLib.volumes.volume import Volume


def displaced(volume, turn, flip):
    """The volume moved in the patient by a rigid 4x4, with one storage axis run backwards."""
    back = np.eye(4)
    back[flip, flip], back[flip, 3] = -1, volume.grid.shape[flip] - 1
    grid = Grid(volume.grid.shape, turn @ volume.grid.world_from_voxel @ back)
    return Volume(torch.flip(volume.data, [flip]), grid, volume.name, volume.is_labels)


def dice(pair):
    a, b = pair.fixed_labels > 0, pair.moving_labels > 0
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.fixture(scope="module")
def hippocampus(samples):
    folder = samples / "hippocampus"
    return [
        read_volume(folder / kind / f"hippocampus_{number}.nii.gz", labels=kind == "labels")
        for kind in ("images", "labels")
        for number in ("006", "138")
    ]


def test_affine_brings_the_hippocampi_together_from_anywhere(hippocampus):
    fixed, moving, fixed_seg, moving_seg = hippocampus
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (20, -25, 15), degrees=True).as_matrix()
    turn[:3, 3] = (40.0, -25.0, 30.0)
    scores = []
    for image, labels in (
        (moving, moving_seg),
        (displaced(moving, turn, 1), displaced(moving_seg, turn, 1)),
    ):
        notes: list[str] = []
        matrix = initial_alignment(fixed, image, Settings(), notes=notes)
        assert np.linalg.det(matrix[:3, :3]) > 0
        assert notes
        pair = prepare(fixed, image, None, Correspondence(fixed_seg, labels), Settings(), matrix)
        scores.append(dice(pair))
    assert scores[0] > 0.6
    assert scores[1] > scores[0] - 0.05


def test_preparation_keeps_everything_inside_the_working_grid(hippocampus):
    fixed, moving, fixed_seg, moving_seg = hippocampus
    matrix = initial_alignment(fixed, moving, Settings(init="mass"))
    pair = prepare(fixed, moving, None, Correspondence(fixed_seg, moving_seg), Settings(), matrix)
    assert int((pair.fixed_labels > 0).sum()) == int((fixed_seg.data > 0).sum())
    assert pair.fixed.shape == pair.moving.shape == (1, 1, *pair.grid.shape)
    assert 0.0 <= float(pair.fixed.min()) < float(pair.fixed.max()) <= 1.0
    assert any(note.startswith("Working grid:") for note in pair.notes)
