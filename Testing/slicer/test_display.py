"""Looking at a result: layers of the slice views, checkerboard, flicker, grid, and everything put back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from Testing.slicer import panel_cases as cases

pytestmark = pytest.mark.usefixtures("bench")


@pytest.fixture
def view(bench: Any) -> Any:
    """What one slice view shows."""
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", "Red layers")


def layers(view: Any) -> tuple[Any, ...]:
    return (
        view.GetBackgroundVolumeID(), view.GetForegroundVolumeID(), view.GetLabelVolumeID(),
        view.GetForegroundOpacity(), view.GetCompositing(),
    )  # fmt: skip


def test_what_was_shown_before_comes_back(view: Any) -> None:
    from DiffeoRegPanel.display import Views

    fixed, moved, other = (cases.add_volume(name, seed) for seed, name in enumerate(("F", "M", "O")))
    view.SetBackgroundVolumeID(other.GetID())
    view.SetForegroundOpacity(0.3)
    before = layers(view)
    views = Views()
    views.show_blend(fixed, moved, 0.5)
    assert layers(view) == (fixed.GetID(), moved.GetID(), None, 0.5, view.Alpha)
    views.show_jacobian(other, fixed)
    assert layers(view)[:2] == (fixed.GetID(), other.GetID())
    views.restore()
    assert layers(view) == before


def test_a_volume_deleted_meanwhile_is_left_out(view: Any) -> None:
    import slicer

    from DiffeoRegPanel.display import Views

    fixed, moved, other = (cases.add_volume(name, seed) for seed, name in enumerate(("F", "M", "O")))
    view.SetBackgroundVolumeID(other.GetID())
    views = Views()
    views.show_blend(fixed, moved)
    slicer.mrmlScene.RemoveNode(other)
    views.restore()
    assert layers(view)[0] is None


def test_checkerboard_alternates_and_leaves_nothing_behind(view: Any) -> None:
    import slicer

    from DiffeoRegPanel.display import Views

    fixed, moved = cases.add_volume("F", 1, (16, 16, 16)), cases.add_volume("M", 2, (16, 16, 16))
    count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    views = Views()
    views.show_checkerboard(fixed, moved)
    board = slicer.mrmlScene.GetNodeByID(view.GetBackgroundVolumeID())
    shown = slicer.util.arrayFromVolume(board)
    here = slicer.util.arrayFromVolume(fixed)
    np.testing.assert_array_equal(shown[:2, :2, :2], here[:2, :2, :2])
    assert not np.array_equal(shown[2:4, :2, :2], here[2:4, :2, :2])
    assert not board.GetSaveWithScene()
    views.restore()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == count


def test_checkerboard_of_different_voxels_is_refused(view: Any) -> None:
    from DiffeoRegLib.errors import InputError
    from DiffeoRegPanel.display import Views

    with pytest.raises(InputError, match="Tick 'Moved volume'"):
        Views().show_checkerboard(cases.add_volume("F"), cases.add_volume("M", 1, (4, 4, 4)))


def test_fields_are_cubes_in_millimetres(bench: Any) -> None:
    from DiffeoRegPanel.display import checkerboard

    zeros = np.zeros((8, 32, 32), dtype=np.float32)
    board = checkerboard(zeros, zeros + 1, (4.0, 1.0, 1.0))
    along_k, along_i = board[:, 0, 0], board[0, 0, :]
    np.testing.assert_array_equal(along_k, [0, 1, 0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(along_i[:12], [0] * 4 + [1] * 4 + [0] * 4)


def test_brightness_is_matched(bench: Any) -> None:
    from DiffeoRegPanel.display import match_window

    matched = match_window(np.array([0.0, 50.0, 100.0]), (0.0, 100.0), (-1000.0, 1000.0))
    np.testing.assert_allclose(matched, [-1000.0, 0.0, 1000.0])


def test_flicker_shows_and_hides(view: Any) -> None:
    from DiffeoRegPanel.display import Flicker, Views

    flicker = Flicker(Views())
    flicker.start(cases.add_volume("F"), cases.add_volume("M"))
    assert flicker.running
    assert view.GetForegroundOpacity() == 1.0
    flicker.toggle()
    assert view.GetForegroundOpacity() == 0.0
    flicker.toggle()
    assert view.GetForegroundOpacity() == 1.0
    flicker.stop()
    assert not flicker.running


def test_the_grid_is_drawn_and_taken_away(bench: Any) -> None:
    import slicer

    from DiffeoRegPanel.display import Views

    fixed = cases.add_volume("F", 1, (10, 20, 40))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "T")
    views = Views()
    views.show_deformed_grid(node, fixed)
    display = node.GetDisplayNode()
    assert display.GetVisualizationMode() == slicer.vtkMRMLTransformDisplayNode.VIS_MODE_GRID
    assert display.GetVisibility2D()
    assert display.GetGridSpacingMm() == pytest.approx(40 / 20)
    views.show_deformed_grid(node, fixed, on=False)
    assert not display.GetVisibility2D()
    views.show_deformed_grid(node, fixed)
    views.restore()
    assert not display.GetVisibility2D()


def test_the_buttons_press_and_release(bench: Any, view: Any) -> None:
    import qt

    panel = cases.make_panel()
    fixed, moving = cases.choose_pair(panel)
    before = layers(view)
    panel.ui.applyButton.click()
    run = panel.logic.runs[-1]
    run.result = cases.result_nodes(fixed, moving)
    panel.run.poll()
    ui = panel.ui
    assert layers(view)[0] == fixed.GetID()
    for name in ("checkerboardButton", "flickerButton", "jacobianButton", "blendButton"):
        getattr(ui, name).click()
        pressed = [n for n in ("checkerboardButton", "flickerButton", "jacobianButton", "blendButton")
                   if getattr(ui, n).checked]  # fmt: skip
        assert pressed == [name], ui.statusLabel.text
        assert panel.result.flicker.running == (name == "flickerButton")
    ui.gridButton.click()
    assert run.result.outputTransform.GetDisplayNode().GetVisibility2D()
    ui.blendButton.click()
    assert not ui.blendButton.checked
    assert not ui.gridButton.checked
    assert layers(view) == before
    panel.cleanup()
    assert [str(error) for error in qt.slotErrors] == []


def test_a_change_lies_over_the_moved_volume_and_goes_again(view: Any) -> None:
    from DiffeoRegPanel.display import Views

    fixed, moved, change = (cases.add_volume(name, seed) for seed, name in enumerate(("F", "M", "C")))
    view.SetCompositing(view.Subtract)  # as the user may have it
    before = layers(view)
    views = Views()
    views.show_change(change, moved)
    assert layers(view) == (moved.GetID(), change.GetID(), None, 0.6, view.Alpha)
    views.show_over(fixed, moved)
    assert layers(view) == (fixed.GetID(), moved.GetID(), None, 1.0, view.Alpha)
    views.restore()
    assert layers(view) == before
