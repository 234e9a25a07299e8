"""The shipped GroupMorph on the shipped hippocampi: overlap grows, any number, any order, from the command.

Both persons were trained on; what it does for others is in Resources/docs/results.md.  A group of more than
two has copies of them that were moved by known motions.  Their hippocampi are laid over each other first: the
affine alignment that people use takes more seconds than all the rest.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.groupwise import register_group
from DiffeoRegLib.metrics import mean_dice
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.intensity import intensity_window, normalise, resample_affine
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.transform_files import read_transform
from DiffeoRegLib.volumes.volume import Volume
from Testing.command import run

NAME = "groupmorph-hippocampus"
SAMPLES = Path(__file__).resolve().parents[2] / "Resources" / "SampleData" / "hippocampus"
PERSONS = ("hippocampus_006", "hippocampus_138")
MOTIONS = (None, None, (8.0, 1.0), (-6.0, -1.5), (5.0, 2.0))
"""Turn about the axis of the body, degrees, and shift along it, mm, of the copies."""
ALONE = Settings(method=NAME, effort="fast", init="identity", device="cpu")
STILL = AffineTransform(np.eye(4))


def moved(number):
    """Image and labels of a member of the group, the middle of the labels at 0."""
    person = PERSONS[number % 2]
    image = read_volume(SAMPLES / "images" / f"{person}.nii.gz", name=f"member {number}")
    labels = read_volume(SAMPLES / "labels" / f"{person}.nii.gz", labels=True)
    world = image.grid.world_from_voxel.copy()
    world[:3, 3] -= image.grid.world_from_index(np.argwhere(array_from_tensor(labels.data) > 0)).mean(0)
    image, labels = (dataclasses.replace(one, grid=Grid(one.grid.shape, world)) for one in (image, labels))
    if MOTIONS[number] is None:
        return image, labels
    angle, shift = MOTIONS[number]
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    matrix = np.eye(4)
    matrix[:2, :2] = 1.1 * np.array([[cos, -sin], [sin, cos]])
    matrix[2, 3] = shift
    way = AffineTransform(matrix)
    data = warp_volume(image, way, image.grid, fill=float(image.data.min())).data
    return Volume(data, image.grid, image.name), warp_labels(labels, way, image.grid)


@pytest.fixture(scope="module")
def members():
    return [moved(number) for number in range(len(MOTIONS))]


def overlap(labels, ways, view):
    """Mean Dice of the pairs of two persons: copies of one hardly differ."""
    carried = [array_from_tensor(warp_labels(a, b, view).data) for a, b in zip(labels, ways, strict=True)]
    pairs = itertools.combinations(range(len(carried)), 2)
    return np.mean([mean_dice(carried[a], carried[b]) for a, b in pairs if (a - b) % 2])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_labels_meet_better(members, count):
    images, labels = zip(*members[:count], strict=True)
    result = register_group(images, ALONE)
    before = overlap(labels, [STILL] * count, result.view)
    assert overlap(labels, result.transforms, result.view) > before + 0.1
    assert result.report["similarity"]["after"]["nmi"] > result.report["similarity"]["before"]["nmi"]
    assert max(one["folded_percent"] for one in result.report["folds"]) == 0
    assert all(0.02 < float(one.data.mean()) < 2 for one in result.deviations)
    assert any(NAME in note or CARDS[NAME].title in note for note in result.report["notes"])


def test_another_order_gives_the_same_in_that_order(members):
    """The network itself, which is told no order; `register_group` sorts before it."""
    network, _ = network_for(CARDS[NAME], ALONE)
    grid = members[0][0].grid
    images = torch.cat([
        normalise(resample_affine(image, grid), intensity_window(image)) for image, _ in members
    ])  # fmt: skip
    order = [3, 0, 4, 2, 1]
    for fixed in (None, 2):
        first = network(images, fixed).u_vox
        second = network(images[order], None if fixed is None else order.index(fixed)).u_vox
        assert float(first.abs().max()) > 0.5
        assert float((second - first[order]).abs().max()) < 1e-5


def test_the_command_registers_groups_with_it(members, tmp_path):
    files = []
    for image, _ in members[:3]:
        files.append(tmp_path / f"{image.name.replace(' ', '-')}.nii.gz")
        write_volume(image, files[-1])
    flags = ("--method", NAME, "--effort", "fast", "--fixed-index", "1", "--no-uncertainty", "--no-html")
    assert run("group", *files, "-o", tmp_path / "out", *flags) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["method"] == NAME
    labels = [one for _, one in members[:3]]
    grid = members[1][0].grid
    ways = [read_transform(tmp_path / "out" / f"common_to_{number:03d}.h5") for number in range(3)]
    assert overlap(labels, ways, grid) > overlap(labels, [STILL] * 3, grid) + 0.05
    points = grid.center_mm[None] + np.array([[0.0, 0, 0], [3, -4, 5]])
    assert np.abs(ways[1].map_points(points) - points).max() < 1e-3
