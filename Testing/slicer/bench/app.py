"""Stand-ins of `slicer.app` and `slicer.modules`: the services a scripted module asks the application for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
import vtk

from Testing.slicer.bench import qt
from Testing.slicer.bench.core import Core
from Testing.slicer.bench.errors import guarded
from Testing.slicer.bench.files import IOManager

VIEWS = ("Red", "Yellow", "Green")


class Hears:
    """connect and disconnect of known signals, for an application that is no widget."""

    signals: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._links: list[tuple[str, Any, Any]] = []

    def connect(self, signal: str, receiver: Callable[..., Any]) -> bool:
        """Call `receiver` when the signal is emitted; raises ValueError for a signal that does not exist."""
        self._known(signal)
        self._links.append((signal, receiver, guarded(signal, receiver)))
        return True

    def disconnect(self, signal: str, receiver: Callable[..., Any]) -> bool:
        """Undo connect; False when there was nothing to undo."""
        self._known(signal)
        kept = [link for link in self._links if link[:2] != (signal, receiver)]
        changed, self._links = len(kept) < len(self._links), kept
        return changed

    def emit(self, signal: str, *arguments: Any) -> None:
        """For the test: what the application would emit."""
        self._known(signal)
        for name, _, call in list(self._links):
            if name == signal:
                call(*arguments)

    def _known(self, signal: str) -> None:
        if signal not in self.signals:
            raise ValueError(
                f"{type(self).__name__} has no signal {signal!r}; it has {', '.join(self.signals)}"
            )


class SliceWidget:
    """One slice view: its node and its logic."""

    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()


class LayoutManager:
    """Three slice views with real slice logics, nothing drawn."""

    threeDViewCount = tableViewCount = plotViewCount = 0

    def __init__(self, core: Core) -> None:
        self._logics = {name: _slice_logic(core, name) for name in VIEWS}
        self.layout = 3

    def sliceViewNames(self) -> tuple[str, ...]:
        return VIEWS

    def sliceWidget(self, name: str) -> SliceWidget | None:
        return SliceWidget(self._logics[name]) if name in self._logics else None

    def mrmlSliceLogics(self) -> Any:
        logics = vtk.vtkCollection()
        for logic in self._logics.values():
            logics.AddItem(logic)
        return logics

    def setLayout(self, layout: int) -> None:
        self.layout = int(layout)

    def resetSliceViews(self) -> None:
        for logic in self._logics.values():
            logic.FitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There is no 3D view to reset."""


def _slice_logic(core: Core, name: str) -> Any:
    known = core.application.GetSliceLogics()
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLApplicationLogic(core.application)
    logic.SetMRMLScene(core.scene)
    logic.AddSliceNode(name)
    known.AddItem(logic)
    return logic


class ModuleManager(Hears):
    """Which modules there are."""

    signals = ("moduleAboutToBeUnloaded(QString)",)

    def module(self, name: str) -> Any:
        return getattr(slicer.modules, name.lower(), None)

    def modulesNames(self) -> tuple[str, ...]:
        return tuple(vars(slicer.modules))


class App(Hears):
    """`slicer.app`."""

    signals = ("startupCompleted()", "aboutToQuit()", "lastWindowClosed()")
    applicationName = "Slicer"
    applicationVersion, majorVersion, minorVersion, revision = "5.13.0", 5, 13, "0"
    os, arch, platform = "linux", "amd64", "linux-amd64"
    isInstalled = True

    def __init__(self, core: Core, folder: Path) -> None:
        super().__init__()
        self._core, self._testing = core, False
        self.temporaryPath = str(folder / "temporary")
        self.slicerHome = str(folder / "Slicer")
        self.slicerUserSettingsFilePath = str(folder / "settings" / "Slicer.ini")
        for path in (self.temporaryPath, self.slicerHome):
            Path(path).mkdir(parents=True, exist_ok=True)
        self._layout, self._io, self._modules = LayoutManager(core), IOManager(core), ModuleManager()
        self._window = qt.QMainWindow()
        self._window.name = "qSlicerMainWindow"

    def settings(self) -> Any:
        """The application's settings, in the test's own folder."""
        return qt.QSettings()

    userSettings = revisionUserSettings = settings

    def testingEnabled(self) -> bool:
        return self._testing

    def setTestingEnabled(self, enabled: bool) -> None:
        self._testing = enabled

    def processEvents(self) -> None:
        qt.QApplication.processEvents()

    def applicationLogic(self) -> Any:
        return self._core.application

    def mrmlScene(self) -> Any:
        return self._core.scene

    def layoutManager(self) -> LayoutManager:
        return self._layout

    def coreIOManager(self) -> IOManager:
        return self._io

    ioManager = coreIOManager

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def topLevelWidgets(self) -> list[Any]:
        return [self._window]

    def setOverrideCursor(self, cursor: Any) -> None:
        qt.QApplication.setOverrideCursor(qt.QCursor(cursor))

    def restoreOverrideCursor(self) -> None:
        qt.QApplication.restoreOverrideCursor()

    def pauseRender(self) -> None:
        """Nothing is rendered."""

    def resumeRender(self) -> None:
        """Nothing is rendered."""

    def close(self) -> None:
        """For the fixture: the main window goes, and the slice views with it."""
        logics = self._core.application.GetSliceLogics()
        for logic in self._layout._logics.values():
            logics.RemoveItem(logic)
            for node in (logic.GetSliceNode(), logic.GetSliceCompositeNode()):
                self._core.scene.RemoveNode(node)
        self._window.deleteLater()


@dataclass
class CoreModule:
    """A C++ module: its logic."""

    name: str
    _logic: Any
    path: str = ""
    widgets: dict[str, Any] = field(default_factory=dict)

    def logic(self) -> Any:
        return self._logic


class Modules:
    """`slicer.modules`: the core modules with a logic, and what the test loads."""

    def __init__(self, core: Core) -> None:
        for name, logic in core.logics.items():
            setattr(self, name.lower(), CoreModule(name, logic))
        self.colors = CoreModule("Colors", core.application.GetColorLogic())
