"""Pathology of an image: classes, soft edges, other geometries, and what is refused in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.pathology import (
    UNMARKED,
    Pathology,
    carried_marks,
    check_pathology,
    place_pathology,
    softened,
)
from DiffeoRegLib.volumes.prepare import prepare
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import CENTRE_MM, Scene, turned_grid

EYE = np.eye(4)
GRID = turned_grid((20, 24, 22), (1.5, 1.2, 2.0), degrees=15.0, flip=(1,))


def image(grid=GRID, name="brain"):
    volume = Scene(radius_mm=10.0).fixed(grid)
    return Volume(volume.data, grid, name)


def marks(grid=GRID, low=(6, 8, 7), size=(5, 6, 4), label=1, name="lesion"):
    data = torch.zeros(grid.shape, dtype=torch.int32)
    data[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = label
    return Volume(data, grid, name, is_labels=True)


def placed(pathology, grid=GRID):
    return place_pathology(pathology, grid, EYE, EYE)


def test_marks_are_placed_in_the_space_of_their_image():
    """Each side through its own way; only given sides are marked."""
    lesion = marks()
    shift = np.eye(4)
    shift[:3, 3] = GRID.world_from_voxel[:3, 0] * 2  # two voxels along the first axis
    found = place_pathology(Pathology(lesion, lesion, edge_mm=0), GRID, EYE, shift)
    torch.testing.assert_close(found.fixed[0, 0], lesion.data.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.moving[0, 0, :-2], lesion.data.float()[2:], atol=1e-4, rtol=0)
    one = placed(Pathology(moving=lesion))
    assert one.fixed is None
    assert one.moving is not None
    swapped = Pathology(fixed=lesion).exchanged()
    assert swapped.moving is lesion
    assert swapped.fixed is None


def test_empty_marks_are_no_pathology():
    empty = marks(label=0)
    assert placed(Pathology(empty, None)) is None
    assert check_pathology(Pathology(empty), image(), image()) == [
        "The pathology 'lesion' marks nothing: 'brain' was taken for healthy."
    ]
    mixed = placed(Pathology(empty, marks()))
    assert mixed.fixed is None
    assert mixed.moving is not None


@pytest.mark.parametrize("pathology", [None, Pathology()])
def test_no_marks_at_all_are_said(pathology):
    assert check_pathology(pathology, image(), image()) == [UNMARKED]


def test_classes_choose_labels_of_a_tumour_map():
    labels = marks()
    labels.data[8:10, 10:12, 8:10] = 4
    everything = placed(Pathology(labels, edge_mm=0)).fixed
    core = placed(Pathology(labels, classes=(4,), edge_mm=0)).fixed
    torch.testing.assert_close(everything[0, 0], (labels.data > 0).float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(core[0, 0], (labels.data == 4).float(), atol=1e-4, rtol=0)
    assert check_pathology(Pathology(labels), image(), image()) == [
        "All classes of 'lesion' count as pathology: 1, 4."
    ]
    assert check_pathology(Pathology(labels, classes=(4, 2)), image(), image()) == [
        "Classes without a voxel in 'lesion': 2."
    ]
    with pytest.raises(InputError, match=r"none of the chosen classes \(2, 3\); it has 1, 4"):
        check_pathology(Pathology(labels, classes=(2, 3)), image(), image())


def test_a_soft_edge_lies_outside():
    mark = marks().data.float()[None, None]
    soft = softened(mark, GRID.spacing, 4.0)
    assert bool((soft[mark == 1] == 1).all())
    assert float(soft[0, 0, 8, 10, 12]) > 0.1  # a voxel beyond the border
    assert float(soft[0, 0, 8, 10, 16]) < 0.01  # 10 mm beyond it
    assert float(soft.max()) == 1
    assert torch.equal(softened(mark, GRID.spacing, 0.0), mark)


def test_another_geometry_is_resampled_and_said():
    fine = turned_grid((30, 30, 30), (1.0, 1.0, 1.0), centre_mm=CENTRE_MM + 3)
    lesion = marks(fine, (10, 10, 10), (9, 9, 9))
    notes = check_pathology(Pathology(lesion), image(), image())
    assert notes == [
        "The pathology 'lesion' has another geometry than 'brain'; it was resampled in patient space."
    ]
    found = placed(Pathology(lesion, edge_mm=0)).fixed
    volume = float(found.sum()) * np.prod(GRID.spacing)
    assert volume == pytest.approx(9**3, rel=0.15)
    middle = GRID.index_from_world(fine.world_from_index([[14.0, 14.0, 14.0]]))[0]
    assert float(found[(0, 0, *np.rint(middle).astype(int))]) > 0.9


def test_marks_over_all_of_the_object_are_refused():
    """Also where the empty background is not marked: what counts is the object."""
    brain = image()
    whole = Volume((brain.data > 0).int(), GRID, "organ", is_labels=True)
    everything = Volume(torch.ones(GRID.shape, dtype=torch.int32), GRID, "all", is_labels=True)
    for labels in (whole, everything):
        with pytest.raises(InputError, match="covers all of 'brain': no healthy tissue is left"):
            check_pathology(Pathology(labels), brain, brain)
    most = Volume((brain.data > 0).int(), GRID, "most", is_labels=True)
    most.data[:6] = 0
    (note,) = check_pathology(Pathology(most), brain, brain)
    assert "of 'brain': the map rests on the little that is left" in note


def test_marks_beside_the_image_are_refused():
    away = turned_grid((8, 8, 8), (1.0, 1.0, 1.0), centre_mm=CENTRE_MM + 200)
    lesion = marks(away, (2, 2, 2), (3, 3, 3))
    with pytest.raises(InputError, match="does not touch the image 'brain'"):
        check_pathology(Pathology(lesion), image(), image())
    with pytest.raises(InputError, match="lies where the images are compared"):
        placed(Pathology(lesion))


def test_marks_of_another_dimension_are_refused():
    flat = Grid((8, 9), np.eye(4))
    with pytest.raises(InputError, match="is 2D, its image 'brain' 3D"):
        check_pathology(Pathology(marks(flat, (2, 2), (3, 3))), image(), image())


@pytest.mark.parametrize("edge", [-1.0, float("inf"), float("nan")])
def test_impossible_edges_are_refused(edge):
    with pytest.raises(SettingsError, match="soft edge"):
        Pathology(marks(), edge_mm=edge)


def test_no_class_at_all_is_refused():
    with pytest.raises(SettingsError, match="No class"):
        Pathology(marks(), classes=())


def test_marks_of_the_moving_image_are_carried_to_the_fixed_grid():
    """Through fixed -> moving points; those of the fixed image stay."""
    step = np.eye(4)
    step[:3, 3] = GRID.world_from_voxel[:3, 1] * 3
    own, carried = carried_marks(
        Pathology(marks(), marks(low=(6, 11, 7)), edge_mm=0), AffineTransform(step), GRID
    )
    torch.testing.assert_close(own, marks().data.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(carried, marks().data.float(), atol=1e-4, rtol=0)


def test_preparation_places_the_marks_on_the_working_grid():
    """Read through the initial alignment, as the image is; none given, none placed."""
    brain = image()
    step = np.eye(4)
    step[:3, 3] = (4.0, -3.0, 2.0)
    settings = Settings(working_spacing_mm=2.0)
    pathology = Pathology(marks(), marks(), edge_mm=0)
    pair = prepare(brain, brain, None, None, settings, step, pathology=pathology)
    both = pair.pathology.fixed, pair.pathology.moving
    volume = [float(mark.sum()) * np.prod(pair.grid.spacing) for mark in both]
    expected = 5 * 6 * 4 * np.prod(GRID.spacing)
    assert volume == pytest.approx([expected, expected], rel=0.1)
    places = np.indices(pair.grid.shape).reshape(3, -1)
    middles = [np.average(places, axis=1, weights=array_from_tensor(mark).ravel()) for mark in both]
    centres = [pair.grid.world_from_index(middle) for middle in middles]
    np.testing.assert_allclose(centres[0] - centres[1], step[:3, 3], atol=0.3)
    assert prepare(brain, brain, None, None, settings, np.eye(4)).pathology is None
    assert pair.to("cpu").pathology.fixed is not None
