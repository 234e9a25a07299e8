"""The bench as a test sees it: the scene, the application's stand-ins, a module loaded as Slicer loads it."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import slicer.util
from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property, Slot

from Testing.slicer.bench import ctk, dialogs, errors, qmrml, qmrml_segments, qt
from Testing.slicer.bench.app import App, Modules
from Testing.slicer.bench.core import Core
from Testing.slicer.bench.qmrml import _OnScene

REPOSITORY = Path(__file__).resolve().parents[3]
WIDGETS = (
    qmrml.qMRMLWidget,
    qmrml.qMRMLNodeComboBox,
    qmrml.qMRMLSliderWidget,
    qmrml_segments.qMRMLCheckableNodeComboBox,
    qmrml_segments.qMRMLSegmentSelectorWidget,
)


class qSlicerScriptedLoadableModuleWidget(_OnScene):
    """The widget that the application makes for a module; the module's own widget class fills it."""

    _stand_in = True

    def __init__(self, loaded: Module) -> None:
        super().__init__()
        self._loaded, self._entered = loaded, False
        QtWidgets.QVBoxLayout(self)

    def _refresh(self) -> None:
        """Nothing of its own to show."""

    @Slot()
    def reload(self) -> None:
        self._loaded._fill()

    isEntered = Property(bool, lambda self: self._entered)


class Module:
    """A scripted module, loaded from its file: `widget` is its widget object, `panel` the Qt widget."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = str(path), path.stem
        self.parent = SimpleNamespace(path=str(path), title="", icon=None)
        self.python = self._execute()
        self.module = getattr(self.python, self.name)(self.parent)
        self.panel: Any = None
        self.widget: Any = None
        setattr(slicer.modules, self.name.lower(), self)
        setattr(slicer.modules, f"{self.name}Instance", self.module)

    def _execute(self) -> Any:
        spec = importlib.util.spec_from_file_location(self.name, self.path)
        python = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = python
        spec.loader.exec_module(python)
        return python

    def widgetRepresentation(self) -> Any:
        """The module's panel, made when first asked for."""
        if self.panel is None:
            self.panel = qSlicerScriptedLoadableModuleWidget(self)
            self.panel.setMRMLScene(slicer.mrmlScene)
            self._fill()
        return self.panel

    def _fill(self) -> None:
        self.python = sys.modules[self.name]
        widget = getattr(self.python, f"{self.name}Widget")(self.panel)
        setattr(slicer.modules, f"{self.name}Widget", widget)
        widget.setup()
        self.widget = widget

    def logic(self) -> None:
        """A scripted module has no C++ logic."""

    def enter(self) -> Any:
        """Show the module, as choosing it in the module menu does; returns its widget object."""
        self.widgetRepresentation()._entered = True
        self.widget.enter()
        self.panel.show()
        return self.widget

    def exit(self) -> None:
        """Leave the module for another one."""
        self.panel._entered = False
        self.widget.exit()
        self.panel.hide()

    def close(self) -> None:
        """The application closes: exit, cleanup, the panel destroyed."""
        if self.widget is not None:
            if self.panel.isEntered:
                self.exit()
            self.widget.cleanup()
            self.panel.setMRMLScene(None)
            self.panel.deleteLater()
            self.panel = self.widget = None


class Bench:
    """What a test needs: `scene`, `app`, `person` (dialogs), `slotErrors`, and ways to wait and to look."""

    def __init__(self, core: Core, folder: Path) -> None:
        self.core, self.scene, self.folder = core, core.scene, folder
        self.person, self.slotErrors, self.qt, self.ctk = dialogs.person, errors.slot_errors, qt, ctk
        self.loaded: list[Module] = []
        self._hook, self._closed = sys.excepthook, False
        self._settings()
        self.person.reset()
        self.slotErrors.clear()
        self.app = App(core, folder)
        slicer.app, slicer.modules = self.app, Modules(core)
        for cls in WIDGETS:
            setattr(slicer, cls.__name__, cls)
        sys.excepthook = self._unheard

    def _settings(self) -> None:
        qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
        for scope in (qt.QSettings.UserScope, qt.QSettings.SystemScope):
            qt.QSettings.setPath(qt.QSettings.IniFormat, scope, str(self.folder / "settings"))

    def _unheard(self, kind: type, error: BaseException, trace: Any) -> None:
        """Exceptions in MRML observers and Qt event handlers end here: VTK and Qt only print them."""
        errors.record_error("observer or event handler", error.with_traceback(trace))

    def load(self, path: Path | str = REPOSITORY / "DiffeoReg" / "DiffeoReg.py") -> Module:
        """Load a scripted module from its file; `enter()` it to see its panel."""
        self.loaded.append(Module(Path(path)))
        return self.loaded[-1]

    def spin(self, seconds: float = 0.0) -> None:
        """Let the event loop run for a while."""
        end = time.monotonic() + seconds
        while True:
            qt.QApplication.processEvents()
            QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
            if time.monotonic() >= end:
                return
            time.sleep(0.002)

    def wait(self, condition: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
        """Let the event loop run until the condition holds; fails after `timeout` seconds, saying why."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {timeout} s: {what or condition}; {self.problems()}")
            self.spin(0.005)
        return value

    def click(self, button: Any) -> None:
        """Press a button as a person can: only if it is enabled and not hidden."""
        assert button.enabled, f"{button.objectName} is disabled: {button.toolTip}"
        assert button.isVisibleTo(button.window()), f"{button.objectName} is hidden"
        button.click()
        self.spin()

    def grab(
        self, widget: Any, path: Path | str, width: int | None = None, height: int | None = None
    ) -> Path:
        """Write a picture of a widget at its natural size, or at the size given."""
        widget.show()
        self.spin(0.02)
        width = width or widget.sizeHint().width()
        layout = widget.layout()
        fits = layout.totalHeightForWidth(width) if layout and layout.hasHeightForWidth() else -1
        widget.resize(width, height or (fits if fits > 0 else widget.sizeHint().height()))
        self.spin(0.02)
        assert widget.grab().save(str(path)), f"cannot write {path}"
        return Path(path)

    def problems(self) -> str:
        """The slot errors in words."""
        return "\n".join(str(error) for error in self.slotErrors) or "no slot errors"

    def close(self) -> None:
        """Close what is open, take the application away; slot errors that nobody looked at are a failure."""
        if self._closed:
            return
        self._closed = True
        try:
            for module in self.loaded:
                module.close()
            self.spin()
        finally:
            sys.excepthook = self._hook
            self._remove()
        assert not self.slotErrors, self.problems()
        assert not self.person.answers, f"answers that nobody asked for: {self.person.answers}"

    def _remove(self) -> None:
        for module in self.loaded:
            sys.modules.pop(module.name, None)
        self.app.close()
        self.loaded.clear()
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
        del slicer.app, slicer.modules
