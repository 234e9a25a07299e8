"""Fixtures of the tests of the command."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from DiffeoRegLib.cli import commands
from DiffeoRegLib.methods.base import Progress
from DiffeoRegLib.volumes.files import write_points, write_volume
from DiffeoRegLib.volumes.transform_files import write_transform
from Testing.command import PRINTED
from Testing.fake_run import (
    blobs,
    evaluated_run,
    fake_result,
    hostile_grid,
    labels_of,
    pair_of,
    plane_grid,
    transforms,
)


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory):
    """A folder with a pair of images, segmentations, landmarks and transforms."""
    folder = tmp_path_factory.mktemp("data")
    fixed = blobs(hostile_grid((12, 14, 16)), "fixed")
    transform, inverse, initial = transforms(fixed.grid)
    points = fixed.grid.world_from_index(np.array([[5.0, 6, 7], [4, 5, 8]]))
    write_volume(fixed, folder / "fixed.nii.gz")
    write_volume(pair_of(fixed, transform), folder / "moving.nii.gz")
    write_volume(labels_of(fixed), folder / "fixed_seg.nii.gz")
    write_volume(pair_of(labels_of(fixed), transform), folder / "moving_seg.nii.gz")
    write_points(points, folder / "fixed.csv")
    write_points(transform.map_points(points), folder / "moving.fcsv")
    write_points(points[:1], folder / "one.csv")
    write_transform(transform, folder / "transform.h5")
    write_transform(inverse, folder / "inverse.h5")
    write_transform(initial, folder / "initial.tfm")
    (folder / "cut.nii.gz").write_bytes((folder / "fixed.nii.gz").read_bytes()[:300])
    return folder


@pytest.fixture
def registrations(monkeypatch):
    """Replaces the registration by one with a known answer; holds what it was called with."""
    seen = []

    def register(fixed, moving, settings, **others):
        seen.append({"settings": settings, **others})
        report = others["progress"]
        report(Progress("alignment", 0.0, "starting"))
        sys.stdout.write(PRINTED + "\n")
        report(Progress("level 1", 0.5, "half"))
        report(Progress("level 2", 1.0, "all"))
        return fake_result(fixed, moving, others["evaluation"], settings)

    monkeypatch.setattr(commands.pipeline, "register", register)
    return seen


@pytest.fixture(scope="session")
def fake_registration():
    """A registration with labels and landmarks: fixed, moving, evaluation, result."""
    return evaluated_run(hostile_grid())


@pytest.fixture(scope="session")
def flat_registration():
    """The same in 2D, with nothing to evaluate."""
    return evaluated_run(plane_grid(), evaluated=False)
