"""A real MRML scene without the Slicer application: booted once a process, emptied between tests."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
import vtk


@dataclass
class Core:
    """The booted scene with its logics; `observers`: tags that Python added to the scene, not yet removed."""

    scene: Any
    application: Any
    logics: dict[str, Any]
    remote: Any = None
    observers: set[int] = field(default_factory=set)
    first_nodes: frozenset[str] = frozenset()

    def reset(self) -> None:
        """Empty the scene and forget every observer that a test left on it."""
        for tag in list(self.observers):
            self.scene.RemoveObserver(tag)
        self.scene.Clear(0)
        if self._left():
            gc.collect()  # a slice logic that waits for its end would take its nodes away in the next test
        for node in self._left():
            self.scene.RemoveNode(node)  # singletons, as the modules' parameter nodes, outlive Clear
        self.scene.SetURL("")
        self.scene.ClearUndoStack()

    def _left(self) -> list[Any]:
        return [
            node
            for node in self._nodes()
            if node.GetID() not in self.first_nodes and not node.IsA("vtkMRMLSubjectHierarchyNode")
        ]

    def _nodes(self) -> list[Any]:
        return [self.scene.GetNthNode(index) for index in range(self.scene.GetNumberOfNodes())]

    def use_cache(self, folder: Path) -> None:
        """Let ReadFromMRB unpack its archives in `folder`; without it reading an .mrb fails."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.remote is None:
            self.remote = _remote_files(self.scene)
        self.scene.GetCacheManager().SetRemoteCacheDirectory(str(folder.resolve()))


_core: Core | None = None


def boot() -> Core:
    """The process's one scene; set as slicer.mrmlScene."""
    global _core
    if _core is None:
        _core = _boot()
    return _core


def _boot() -> Core:
    _errors_to_stderr()
    scene = slicer.vtkMRMLScene()
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    application = _application(scene)
    core = Core(scene, application, _module_logics(scene, application))
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    _watch_observers(core)
    core.first_nodes = frozenset(node.GetID() for node in core._nodes())
    slicer.mrmlScene = scene
    return core


def _errors_to_stderr() -> None:
    window = vtk.vtkOutputWindow()
    window.SetDisplayModeToAlwaysStdErr()
    vtk.vtkOutputWindow.SetInstance(window)


def _application(scene: Any) -> Any:
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    colours = application.GetColorLogic()
    colours.SetMRMLScene(scene)
    colours.AddDefaultColorNodes()
    application.SetModuleLogic("Colors", colours)  # the volumes logic looks it up
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    for factory in (
        slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
        slicer.vtkMRMLSliceViewDisplayableManagerFactory,
    ):
        factory.GetInstance().SetMRMLApplicationLogic(application)
    return application


def _module_logics(scene: Any, application: Any) -> dict[str, Any]:
    """Logics by module name; segmentation export looks the subject hierarchy's up, so it is among them."""
    classes = {
        "Volumes": slicer.vtkSlicerVolumesLogic,
        "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic,
        "Transforms": slicer.vtkSlicerTransformLogic,
        "Markups": slicer.vtkSlicerMarkupsLogic,
        "Sequences": slicer.vtkSlicerSequencesLogic,
        "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic,
    }
    logics = {}
    for name, cls in classes.items():
        logic = cls()
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        logics[name] = logic
    return logics


def _watch_observers(core: Core) -> None:
    """Keep the tags that Python adds to the scene, so that a test's observers do not outlive it."""
    scene = core.scene
    add: Callable[..., int] = scene.AddObserver
    remove: Callable[[int], None] = scene.RemoveObserver

    def add_observer(*arguments: Any) -> int:
        tag = add(*arguments)
        core.observers.add(tag)
        return tag

    def remove_observer(tag: int) -> None:
        remove(tag)
        core.observers.discard(tag)

    scene.AddObserver = add_observer
    scene.RemoveObserver = remove_observer


def _remote_files(scene: Any) -> tuple[Any, Any]:
    """The data manager that unpacks .mrb archives; both logics must be kept alive."""
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLScene(scene)
    remote.AddDataIOToScene()
    manager = slicer.vtkDataIOManagerLogic()
    manager.SetMRMLScene(scene)
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    return remote, manager
