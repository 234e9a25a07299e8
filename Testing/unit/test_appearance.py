"""Outputs of a metamorphosis: deformed image, change, sum, patient without pathology, in other units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.methods.appearance import appearance, matched
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.pathology import Pathology
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import texture, turned_grid

SHAPE = (26, 30)
GRID = turned_grid(SHAPE, (2.0, 1.5), degrees=20.0)
SAME = AffineTransform(np.eye(4))


def volume(data, name):
    return Volume(data[0, 0], GRID, name)


def scene(scale=3.0, offset=40.0):
    """(healthy image, patient with a textured lesion in other units, marks)."""
    healthy = texture(SHAPE)
    lesion = torch.zeros(1, 1, *SHAPE)
    lesion[..., 8:17, 10:20] = 1
    ill = healthy + lesion * (0.4 + 0.3 * texture(SHAPE, seed=7))
    marks = Volume(lesion[0, 0].int(), GRID, "lesion", is_labels=True)
    return volume(healthy, "atlas"), volume(scale * ill + offset, "patient"), marks


def test_the_sum_looks_like_the_patient_and_the_patient_like_healthy():
    healthy, patient, marks = scene()
    found = appearance(patient, healthy, SAME, Pathology(marks, edge_mm=0))
    inside = marks.data > 0
    torch.testing.assert_close(found.deformed.data, healthy.data)
    torch.testing.assert_close(found.metamorphic.data, found.deformed.data + found.change.data)
    torch.testing.assert_close(found.metamorphic.data, (patient.data - 40) / 3, atol=0.06, rtol=0)
    assert not found.change.data[~inside].any()
    assert float(found.change.data[inside].min()) > 0.3
    torch.testing.assert_close(found.healthy.data, 3 * healthy.data + 40, atol=0.05, rtol=0)
    assert [v.name for v in found.volumes] == [
        "atlas", "patient_appearance_change", "patient_metamorphic", "patient_healthy",
    ]  # fmt: skip
    assert all(v.grid is GRID for v in found.volumes)


def test_a_lesion_of_the_moving_image_is_replaced_by_the_fixed_one():
    """The patient moves: its change makes it healthy, and the healthy image shows the fixed one there."""
    healthy, patient, marks = scene()
    found = appearance(healthy, patient, SAME, Pathology(moving=marks, edge_mm=0))
    inside = marks.data > 0
    torch.testing.assert_close(found.metamorphic.data, 3 * healthy.data + 40, atol=0.2, rtol=0)
    torch.testing.assert_close(found.healthy.data, 3 * healthy.data + 40, atol=0.1, rtol=0)
    assert float(found.change.data[inside].max()) < -0.9
    assert not found.change.data[~inside].any()


def test_without_marks_nothing_changes():
    healthy, patient, _ = scene()
    found = appearance(patient, healthy, SAME, Pathology())
    assert not found.change.data.any()
    torch.testing.assert_close(found.metamorphic.data, healthy.data)
    torch.testing.assert_close(found.healthy.data, patient.data)


def test_a_source_of_a_network_is_taken_as_it_is():
    healthy, patient, marks = scene()
    own = torch.full(SHAPE, 0.25)
    found = appearance(patient, healthy, SAME, Pathology(marks, edge_mm=0), source=own)
    torch.testing.assert_close(found.change.data, 0.25 * marks.data.float(), atol=1e-5, rtol=0)
    with pytest.raises(ShapeError, match="on the grid of the fixed image"):
        appearance(patient, healthy, SAME, Pathology(marks), source=torch.zeros(3, 4))


def test_intensities_are_matched_in_healthy_tissue_only():
    healthy, patient, marks = scene()
    scale, offset = matched(patient, healthy, marks.data.float())
    assert scale == pytest.approx(3.0, rel=1e-4)
    assert offset == pytest.approx(40.0, rel=1e-3)
    spoilt, _ = matched(patient, healthy, torch.zeros(SHAPE))
    assert abs(spoilt - 3.0) > 0.1


def test_flat_tissue_keeps_its_scale():
    flat = Volume(torch.full(SHAPE, 5.0), GRID, "flat")
    assert matched(flat, flat, torch.zeros(SHAPE)) == (1.0, 0.0)


def test_values_that_are_no_numbers_do_not_spread():
    healthy, patient, marks = scene()
    expected = appearance(patient, healthy, SAME, Pathology(marks))
    patient.data[12, 15] = float("nan")
    patient.data[0, 0] = float("inf")
    found = appearance(patient, healthy, SAME, Pathology(marks))
    assert all(bool(torch.isfinite(volume.data).all()) for volume in found.volumes)
    far = marks.data == 0
    far[0, 0] = False
    torch.testing.assert_close(found.healthy.data[far], expected.healthy.data[far], atol=3.0, rtol=0)
