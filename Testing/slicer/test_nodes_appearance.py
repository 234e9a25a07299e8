"""A change of appearance as a volume: its values, its colours around nothing, its window."""

from __future__ import annotations

import numpy as np
import pytest

from DiffeoRegPanel.nodes.appearance import CHANGE, COUNT, change_on, strongest
from DiffeoRegPanel.nodes.places import world_from_voxel
from DiffeoRegPanel.nodes.volumes import array_of
from Testing.slicer import region_cases as cases


@pytest.fixture
def fixed(scene):
    return cases.add_volume(cases.FIXED_SHAPE, cases.FIXED_PLACE, "patient")


def some_change(sign=1.0):
    change = np.zeros(cases.FIXED_SHAPE, np.float32)
    change[5:15, 5:15, 5:15] = sign * np.linspace(-20, 80, 1000).reshape(10, 10, 10)
    return change


def test_no_change_is_black_and_the_window_is_as_wide_on_either_side(fixed):
    change = some_change()
    change[20, 20, 20] = 1e6  # one voxel does not make all others black
    node = change_on(fixed, change, "change")
    np.testing.assert_array_equal(array_of(node), change)
    np.testing.assert_allclose(world_from_voxel(node), world_from_voxel(fixed))
    display = node.GetDisplayNode()
    assert display.GetLevel() == pytest.approx(0, abs=1e-6)
    assert 70 < display.GetWindow() / 2 <= 80
    table, colour = display.GetColorNode(), [0.0] * 4
    assert table.GetNumberOfColors() == COUNT
    table.GetColor(COUNT // 2, colour)
    assert colour[:3] == [0.0, 0.0, 0.0]
    ends = []
    for index in (COUNT // 4, 3 * COUNT // 4):
        table.GetColor(index, colour)
        ends.append(list(colour[:3]))
    assert ends[0][2] > 0.8 > ends[0][0]  # less: blue
    assert ends[1][0] > 0.8 > ends[1][2]  # more: red
    assert node.GetAttribute(CHANGE)


def test_the_same_node_and_the_same_colours_serve_again(scene, fixed):
    node = change_on(fixed, some_change(), "change")
    other = change_on(fixed, some_change(-1.0), "another")
    tables = {n.GetDisplayNode().GetColorNodeID() for n in (node, other)}
    assert len(tables) == 1
    assert change_on(fixed, 2 * some_change(), "again", node=node) is node
    assert node.GetDisplayNode().GetWindow() == pytest.approx(2 * other.GetDisplayNode().GetWindow())


def test_nothing_changed_has_a_window_too(fixed):
    blank = np.zeros(cases.FIXED_SHAPE, np.float32)
    assert strongest(blank) == 1.0
    assert change_on(fixed, blank, "none").GetDisplayNode().GetWindow() == 2.0
    blank[0, 0, 0] = np.nan
    assert strongest(blank) == 1.0
