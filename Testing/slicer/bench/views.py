"""Slice views of the MRML scene without a window: what Slicer's own displayable managers draw, as arrays.

The views need a renderer that works without a screen: set VTK_DEFAULT_OPENGL_WINDOW=vtkEGLRenderWindow before
VTK is loaded. Pictures made here are "rendered with slicer-core": they are not screenshots of 3D Slicer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

ORIENTATIONS = ("Axial", "Coronal", "Sagittal")
MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLTransformsDisplayableManager2D",
)

Picture = NDArray[np.uint8]


class SliceView:
    """One slice through the scene; to be used in a `with` block, which takes it out of the scene again.

    application: the vtkSlicerApplicationLogic of the scene.  size: width and height in pixels.
    """

    def __init__(
        self, application: Any, orientation: str = "Axial", size: tuple[int, int] = (400, 400)
    ) -> None:
        if orientation not in ORIENTATIONS:
            raise ValueError(f"'{orientation}' is none of {', '.join(ORIENTATIONS)}.")
        self._application = application
        self._size = size
        self.logic = self._add_logic(orientation)
        self.node = self.logic.GetSliceNode()
        self.composite = self.logic.GetSliceCompositeNode()
        self._window, self._interactor, renderers = _window(size)
        self._image = _image_actor(self.logic)
        renderers[0].AddViewProp(self._image)
        self._group = self._managers(renderers[1])

    def __enter__(self) -> SliceView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the scene as it was before; the view cannot be used after that."""
        logic = self.logic
        made = (
            *(
                logic.GetSliceModelNode(),
                logic.GetSliceModelDisplayNode(),
                logic.GetSliceModelTransformNode(),
            ),
            *(self.composite, self.node),
        )
        self._group.SetMRMLDisplayableNode(None)
        self._application.GetSliceLogics().RemoveItem(logic)
        logic.SetMRMLScene(None)
        for node in made:
            slicer.mrmlScene.RemoveNode(node)
        self._window.Finalize()

    def _add_logic(self, orientation: str) -> Any:
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        logic.SetMRMLApplicationLogic(self._application)
        logic.AddSliceNode(slicer.mrmlScene.GenerateUniqueName(orientation))
        logic.GetSliceNode().SetOrientation(orientation)
        logic.ResizeSliceNode(*self._size)
        self._application.GetSliceLogics().AddItem(logic)
        return logic

    def _managers(self, renderer: Any) -> Any:
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        for name in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        group = slicer.vtkMRMLDisplayableManagerGroup()
        group.Initialize(factory, renderer)
        group.SetMRMLDisplayableNode(self.node)
        return group

    def show(self, background: Any, foreground: Any = None, opacity: float = 0.5) -> None:
        """Show all of one volume, or of two blended; opacity: of the foreground."""
        self.composite.SetBackgroundVolumeID(background.GetID())
        self.composite.SetForegroundVolumeID(None if foreground is None else foreground.GetID())
        self.composite.SetForegroundOpacity(opacity)
        self.logic.FitSliceToBackground(*self._size)

    def look_at(self, point_mm: Sequence[float], width_mm: float) -> None:
        """Put a RAS point into the middle of the view, and so many millimetres between its sides."""
        width, height = self._size
        self.node.JumpSliceByCentering(*point_mm)
        self.node.SetFieldOfView(width_mm, width_mm * height / width, self.node.GetFieldOfView()[2])
        self.node.UpdateMatrices()

    def picture(self) -> Picture:
        """(height, width, 3), red green blue, the top row first."""
        self.logic.GetBlend().Update()
        self._image.GetMapper().SetInputConnection(self.logic.GetImageDataConnection())
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.SetInputBufferTypeToRGB()
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)
        return np.ascontiguousarray(pixels[::-1])


def _window(size: tuple[int, int]) -> tuple[Any, Any, tuple[Any, Any]]:
    """An off-screen window, its interactor, a renderer for the image and one above it for all else."""
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(*size)
    window.SetNumberOfLayers(2)
    renderers = (vtk.vtkRenderer(), vtk.vtkRenderer())
    for layer, renderer in enumerate(renderers):
        renderer.SetLayer(layer)
        renderer.GetActiveCamera().ParallelProjectionOn()
        window.AddRenderer(renderer)
    interactor = vtk.vtkRenderWindowInteractor()  # without one the managers crash
    interactor.SetRenderWindow(window)
    return window, interactor, renderers


def _image_actor(logic: Any) -> Any:
    """The blended image of a slice logic; no displayable manager draws it."""
    mapper = vtk.vtkImageMapper()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    mapper.SetInputConnection(logic.GetImageDataConnection())
    actor = vtk.vtkActor2D()
    actor.SetMapper(mapper)
    actor.GetProperty().SetDisplayLocationToBackground()
    return actor


def outlines(segmentation: Any, width: int = 2) -> None:
    """Show a segmentation as smooth outlines of `width` pixels without filling."""
    if not segmentation.CreateClosedSurfaceRepresentation():
        raise RuntimeError(f"'{segmentation.GetName()}' has no surface to show.")
    segmentation.CreateDefaultDisplayNodes()
    display = segmentation.GetDisplayNode()
    display.SetPreferredDisplayRepresentationName2D("Closed surface")
    display.SetVisibility2D(True)
    display.SetAllSegmentsVisibility2DOutline(True)
    display.SetAllSegmentsVisibility2DFill(False)
    display.SetSliceIntersectionThickness(width)


def deformed_grid(transform: Any, region: Any, spacing_mm: float = 4.0) -> None:
    """Show a transform node as a grid bent by it, over the region of a volume."""
    transform.CreateDefaultDisplayNodes()
    display = transform.GetDisplayNode()
    display.SetAndObserveRegionNode(region)
    display.SetVisualizationMode(slicer.vtkMRMLTransformDisplayNode.VIS_MODE_GRID)
    display.SetGridSpacingMm(spacing_mm)
    display.SetGridShowNonWarped(False)
    display.SetGridLineDiameterMm(spacing_mm / 10)
    display.SetVisibility(True)
    display.SetVisibility2D(True)
