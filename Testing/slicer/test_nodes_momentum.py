"""The start of a geodesic as nodes: the same numbers after saving and loading, and refused once changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
import vtk

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes import momentum
from DiffeoRegPanel.nodes.places import parent_of
from DiffeoRegPanel.nodes.regulariser import regulariser_on, widest_of
from DiffeoRegPanel.nodes.volumes import image_of, velocity_volumes, world_from_voxel
from Testing.slicer import mrml_cases as cases
from Testing.slicer.test_nodes_volumes import reloaded

SHAPE = (7, 8, 9)
DESCRIPTION = {"format": "invented", "links": [{"steps": 5, "unit_mm": [81.25, 1e-7]}], "taper_mm": None,
               "note": "a; b: 'c' <d> \"e\" %20"}  # fmt: skip


@pytest.fixture
def volumes(scene):
    fixed = cases.volume(scene, cases.fixed_image(), "CT")
    moving = cases.volume(scene, cases.moving_image(), "MR")
    cases.under(scene, moving, cases.some_parent(3))
    return fixed, moving


def geodesic(kernels: int = 5, handed: int = -1, links: int = 1):
    """Momentum and pre-weights on an oblique grid, left-handed for -1 (i, j, k)."""
    place = cases.some_parent(2) @ np.diag([1.5, 2.0, 2.5 * handed, 1.0])
    place[:3, 3] = (4, -7, 11)
    world, draw = place[:, [2, 1, 0, 3]], np.random.default_rng(5)
    arrays = {}
    for link in range(links):
        arrays[f"{link}.momentum"] = draw.normal(size=(*SHAPE, 3))
        if kernels:
            arrays[f"{link}.preweights"] = draw.uniform(size=(*SHAPE, kernels))
    images = {name: Image(array.astype(np.float32), world, name) for name, array in arrays.items()}
    return {"description": DESCRIPTION, "arrays": images}


def assert_same(found, given):
    assert found["description"] == given["description"]
    assert list(found["arrays"]) == list(given["arrays"])
    for name, image in given["arrays"].items():
        assert found["arrays"][name].array.dtype == np.float32
        np.testing.assert_array_equal(found["arrays"][name].array, image.array)
        np.testing.assert_array_equal(found["arrays"][name].world_from_voxel, image.world_from_voxel)


@pytest.mark.parametrize("kind", ["mrml", "mrb"])
@pytest.mark.parametrize(("kernels", "handed"), [(0, 1), (4, 1), (5, -1), (7, -1)])
def test_the_numbers_survive_saving_and_loading(scene, volumes, tmp_path, kind, kernels, handed):
    given = geodesic(kernels, handed)
    node = momentum.momentum_node(scene, given, "MR -> CT", *volumes)
    assert_same(momentum.geodesic_of(node), given)
    assert len(momentum.other_nodes(node)) == -(-kernels // 3)
    reloaded(scene, tmp_path, kind)
    node = scene.GetFirstNodeByName("Momentum, MR -> CT")
    assert_same(momentum.geodesic_of(node), given)
    assert [volume.GetName() for volume in velocity_volumes(node)] == ["CT", "MR"]
    assert np.array_equal(parent_of(node), cases.some_parent(3))


def test_the_names_say_what_is_inside(scene, volumes):
    node = momentum.momentum_node(scene, geodesic(5, links=2), "MR -> CT", *volumes)
    names = [part.GetName() for part in (node, *momentum.other_nodes(node))]
    assert names == [
        "Momentum, MR -> CT", "Pre-weights 1-3, MR -> CT", "Pre-weights 4-5, MR -> CT",
        "Momentum of link 2, MR -> CT", "Pre-weights 1-3 of link 2, MR -> CT",
        "Pre-weights 4-5 of link 2, MR -> CT",
    ]  # fmt: skip
    assert momentum.holds_momentum(node)
    assert not momentum.holds_momentum(volumes[0])
    assert not momentum.holds_momentum(None)


def test_slices_are_kept_too(scene, volumes):
    """A momentum of two components, on a grid of one slice."""
    image = Image(np.arange(80, dtype=np.float32).reshape(1, 5, 8, 2), np.eye(4)[[2, 1, 0, 3]], "0.momentum")
    given = {"description": DESCRIPTION, "arrays": {"0.momentum": image}}
    assert_same(momentum.geodesic_of(momentum.momentum_node(scene, given, "a", *volumes)), given)


def test_another_run_fills_the_same_nodes(scene, volumes):
    first = momentum.momentum_node(scene, geodesic(5), "MR -> CT", *volumes)
    former, count = momentum.other_nodes(first), scene.GetNumberOfNodes()
    given = geodesic(7)
    assert momentum.momentum_node(scene, given, "MR -> CT", *volumes, node=first) is first
    assert_same(momentum.geodesic_of(first), given)
    assert scene.GetNumberOfNodes() == count + 1
    assert momentum.spare_nodes(first, former) == []
    former = momentum.other_nodes(first)
    momentum.momentum_node(scene, geodesic(0), "MR -> CT", *volumes, node=first)
    assert momentum.spare_nodes(first, former) == former
    with pytest.raises(InputError, match="'CT' is no vector volume"):
        momentum.momentum_node(scene, given, "x", *volumes, node=volumes[0])


def turned(node):
    inside = slicer.util.arrayFromVolume(node)
    inside[:] *= np.array([-1, -1, 1], dtype=np.float32)


def test_vectors_that_a_reader_took_for_lps_come_back_right(scene, volumes):
    given = geodesic(5)
    node = momentum.momentum_node(scene, given, "a", *volumes)
    for part in (node, *momentum.other_nodes(node)):
        turned(part)
    assert_same(momentum.geodesic_of(node), given)


def changed_value(scene, node):
    slicer.util.arrayFromVolume(momentum.other_nodes(node)[1])[3, 3, 3, 0] += np.float32(1e-6)


def moved(scene, node):
    node.SetOrigin(3, 2, 1)


def part_removed(scene, node):
    scene.RemoveNode(momentum.other_nodes(node)[0])


def broken_text(scene, node):
    node.SetAttribute("DiffeoReg.Geodesic", "{")


def emptied(scene, node):
    momentum.other_nodes(node)[0].SetAndObserveImageData(vtk.vtkImageData())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_value, "its numbers are not the ones that were kept"), (moved, "it was moved"),
        (part_removed, "a part of it was removed"), (broken_text, "was changed"), (emptied, "no image data"),
    ],
)  # fmt: skip
def test_what_was_changed_is_refused(scene, volumes, change, words):
    node = momentum.momentum_node(scene, geodesic(5), "a", *volumes)
    change(scene, node)
    with pytest.raises(InputError, match=words):
        momentum.geodesic_of(node)


def test_the_description_is_plain_json(scene, volumes):
    node = momentum.momentum_node(scene, geodesic(0), "a", *volumes)
    assert json.loads(node.GetAttribute("DiffeoReg.Geodesic")) == DESCRIPTION


@pytest.mark.parametrize("kind", ["mrml", "mrb"])
def test_widths_lie_on_their_volume_and_get_darker(scene, volumes, tmp_path, kind):
    fixed, moving = volumes
    shapes = [image_of(volume).array.shape for volume in (moving, fixed)]
    images = [Image(np.full(shape, 3.0, np.float32), np.eye(4)) for shape in shapes]
    images[1].array[0, 0, 0] = 20.0
    nodes = [
        regulariser_on(volume, image, name, widest_of(images))
        for volume, image, name in zip((moving, fixed), images, ("start", "end"), strict=True)
    ]
    assert nodes[0].GetParentTransformNode() is moving.GetParentTransformNode()
    assert nodes[1].GetParentTransformNode() is None
    assert np.array_equal(world_from_voxel(nodes[0]), world_from_voxel(moving))
    assert nodes[0].GetDisplayNode().GetColorNode() is nodes[1].GetDisplayNode().GetColorNode()
    reloaded(scene, tmp_path, kind)
    display = scene.GetFirstNodeByName("start").GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.0, 20.0)
    table, brightness = display.GetColorNode().GetLookupTable(), []
    for index in range(0, 256, 51):
        colour = [0.0] * 3
        table.GetColor(index, colour)
        brightness.append(sum(colour))
    assert brightness == sorted(brightness, reverse=True)
    assert brightness[0] > 2.5
    assert brightness[-1] < 0.5
