"""Looking at a result in the slice views, and putting back what they showed before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from numpy.typing import NDArray
from slicer.i18n import tr as _

from DiffeoRegLib.errors import InputError

FLICKER_MS = 500
FIELDS_ALONG = 8  # fields of the checkerboard along the longest side
GRID_LINES_ALONG = 20
CHECKERBOARD_ATTRIBUTE = "DiffeoReg.checkerboard"
LAYERS = ("Background", "Foreground", "Label")


class Views:
    """The slice views of the scene, as they were before the first `show_...` and as they are now."""

    def __init__(self, scene: Any = None) -> None:
        self._scene = scene
        self._before: dict[str, dict[str, Any]] = {}
        self._grids: dict[str, tuple[int, int, int]] = {}
        self._checkerboard: Any = None

    @property
    def scene(self) -> Any:
        """The scene shown."""
        return self._scene or slicer.mrmlScene

    def show_blend(self, fixed: Any, moved: Any, opacity: float = 0.5) -> None:
        """The fixed volume with the moved one over it."""
        self._show(fixed, moved, opacity)

    def show_checkerboard(self, fixed: Any, moved: Any) -> None:
        """Fixed and moved volume in alternating fields, brightness matched.

        Raises InputError when the two do not have the same voxels.
        """
        fixed_array, moved_array = (slicer.util.arrayFromVolume(node) for node in (fixed, moved))
        if fixed_array.shape != moved_array.shape:
            raise InputError(
                _(
                    "The checkerboard needs the moved volume on the voxels of the fixed one. "
                    "Tick 'Moved volume' and register again."
                )
            )
        matched = match_window(moved_array, _window_of(moved), _window_of(fixed))
        board = checkerboard(fixed_array, matched, fixed.GetSpacing()[::-1])
        node = self._checkerboard_like(fixed)
        slicer.util.updateVolumeFromArray(node, board)
        _show_like(node, fixed)
        self._show(node, None, 0.0)

    def show_jacobian(self, volume: Any, fixed: Any) -> None:
        """The local change of size over the fixed volume."""
        self._show(fixed, volume, 0.6)

    def show_change(self, volume: Any, moved: Any) -> None:
        """What a lesion adds or takes away, over the moved volume, which is dimmed where nothing changes."""
        self._show(moved, volume, 0.6)

    def show_over(self, fixed: Any, volume: Any) -> None:
        """A volume that hides the fixed one, which comes out when the upper layer is faded."""
        self._show(fixed, volume, 1.0)

    def show_deformed_grid(self, transform: Any, fixed: Any, on: bool = True) -> None:
        """Draw a regular grid as the transform bends it, over the slices; `on` False takes it away."""
        if transform.GetDisplayNode() is None:
            transform.CreateDefaultDisplayNodes()
        display = transform.GetDisplayNode()
        before = (display.GetVisibility(), display.GetVisibility2D(), display.GetVisualizationMode())
        self._grids.setdefault(transform.GetID(), before)
        if on:
            bounds = np.zeros(6)
            fixed.GetRASBounds(bounds)
            display.SetVisualizationMode(slicer.vtkMRMLTransformDisplayNode.VIS_MODE_GRID)
            display.SetGridSpacingMm(float(max(bounds[1::2] - bounds[::2]) / GRID_LINES_ALONG))
            display.SetAndObserveRegionNode(fixed)
        display.SetVisibility(bool(on))
        display.SetVisibility2D(bool(on))

    def set_foreground_opacity(self, opacity: float) -> None:
        """Opacity of the upper layer in every slice view."""
        for view in self._composites():
            view.SetForegroundOpacity(opacity)

    def restore(self) -> None:
        """Everything as it was before the first `show_...`; nodes deleted meanwhile are left out."""
        for view in self._composites():
            before = self._before.get(view.GetID())
            if before is not None:
                _write_layers(view, before, self.scene)
        for identifier, (visible, visible_2d, mode) in self._grids.items():
            transform = self.scene.GetNodeByID(identifier)
            if transform is not None and transform.GetDisplayNode() is not None:
                display = transform.GetDisplayNode()
                display.SetVisualizationMode(mode)
                display.SetVisibility2D(visible_2d)
                display.SetVisibility(visible)
        self.forget()

    def forget(self) -> None:
        """Drop what is remembered, and the checkerboard; after this the views are the user's again."""
        self._before, self._grids = {}, {}
        if self._checkerboard is not None and self.scene.IsNodePresent(self._checkerboard):
            self.scene.RemoveNode(self._checkerboard)
        self._checkerboard = None

    def _show(self, background: Any, foreground: Any, opacity: float) -> None:
        for view in self._composites():
            self._before.setdefault(view.GetID(), _read_layers(view))
            view.SetCompositing(slicer.vtkMRMLSliceCompositeNode.Alpha)
            view.SetBackgroundVolumeID(background.GetID())
            view.SetForegroundVolumeID(None if foreground is None else foreground.GetID())
            view.SetForegroundOpacity(opacity)

    def _composites(self) -> list[Any]:
        return list(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", self.scene))

    def _checkerboard_like(self, fixed: Any) -> Any:
        """The node that holds the checkerboard, at the place of the fixed volume; never saved."""
        node = self._checkerboard
        if node is None or not self.scene.IsNodePresent(node):
            name = self.scene.GetUniqueNameByString("DiffeoReg checkerboard")
            node = self._checkerboard = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
            node.SetAttribute(CHECKERBOARD_ATTRIBUTE, "1")
            node.SetHideFromEditors(True)
            node.SetSaveWithScene(False)
        matrix = vtk.vtkMatrix4x4()
        fixed.GetIJKToRASMatrix(matrix)
        node.SetIJKToRASMatrix(matrix)
        node.SetAndObserveTransformNodeID(fixed.GetTransformNodeID())
        return node


class Flicker:
    """Shows and hides the upper layer in turn."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._on = True
        self._timer = qt.QTimer()
        self._timer.setInterval(FLICKER_MS)
        self._timer.connect("timeout()", self.toggle)

    @property
    def running(self) -> bool:
        """Whether the layers alternate."""
        return bool(self._timer.isActive())

    def start(self, fixed: Any, moved: Any) -> None:
        """Begin with the moved volume."""
        self._views.show_blend(fixed, moved, 1.0)
        self._on = True
        self._timer.start()

    def toggle(self) -> None:
        """The other of the two volumes."""
        self._on = not self._on
        self._views.set_foreground_opacity(1.0 if self._on else 0.0)

    def stop(self) -> None:
        """Leave the layers as they are."""
        self._timer.stop()


def checkerboard(
    first: NDArray[Any], second: NDArray[Any], spacing_mm: tuple[float, ...]
) -> NDArray[np.float32]:
    """Two arrays of one shape in alternating fields that are about cubes in millimetres."""
    extents = [count * step for count, step in zip(first.shape, spacing_mm, strict=True)]
    side = max(extents) / FIELDS_ALONG
    fields: NDArray[Any] = np.zeros(first.shape, dtype=np.int64)
    for axis, (count, step) in enumerate(zip(first.shape, spacing_mm, strict=True)):
        number = (np.arange(count) * step // side).astype(np.int64)
        fields += number.reshape([-1 if a == axis else 1 for a in range(first.ndim)])
    return np.where(fields % 2 == 0, first, second).astype(np.float32)


def match_window(
    values: NDArray[Any], own: tuple[float, float], wanted: tuple[float, float]
) -> NDArray[np.float32]:
    """Values shown in the window `own` (low, high), so that they look the same in the window `wanted`."""
    scale = (wanted[1] - wanted[0]) / max(own[1] - own[0], 1e-12)
    matched: NDArray[np.float32] = (values.astype(np.float32) - own[0]) * scale + wanted[0]
    return matched


def _window_of(node: Any) -> tuple[float, float]:
    """Darkest and brightest value as the volume is shown; its range if it has never been shown."""
    display = node.GetDisplayNode()
    if display is not None and display.GetWindow() > 0:
        half = display.GetWindow() / 2
        return display.GetLevel() - half, display.GetLevel() + half
    low, high = node.GetImageData().GetScalarRange()
    return float(low), float(high)


def _show_like(node: Any, other: Any) -> None:
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    low, high = _window_of(other)
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(high - low, (high + low) / 2)


def _read_layers(view: Any) -> dict[str, Any]:
    layers: dict[str, Any] = {name: getattr(view, f"Get{name}VolumeID")() for name in LAYERS}
    return layers | {"opacity": view.GetForegroundOpacity(), "compositing": view.GetCompositing()}


def _write_layers(view: Any, layers: dict[str, Any], scene: Any) -> None:
    for name in LAYERS:
        identifier = layers[name]
        there = identifier is not None and scene.GetNodeByID(identifier) is not None
        set_layer: Callable[[Any], None] = getattr(view, f"Set{name}VolumeID")
        set_layer(identifier if there else None)
    view.SetForegroundOpacity(layers["opacity"])
    view.SetCompositing(layers["compositing"])
