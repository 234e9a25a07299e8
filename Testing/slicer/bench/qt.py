"""`import qt` as PythonQt offers it, over PySide6: every class of QtCore, QtGui and QtWidgets under one roof.

`slotErrors` holds the exceptions of slots, observers and event handlers: a test asserts it is empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtWidgets

from Testing.slicer.bench import dialogs, errors, strict
from Testing.slicer.bench.uiloader import QUiLoader as QUiLoader

slotErrors = errors.slot_errors  # noqa: N816 - the bench's public name

_application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["DiffeoReg"])
_application.setOrganizationName("DiffeoReg-bench")
_application.setApplicationName("Slicer")
_application.setStyle("fusion")


def _single_shot(milliseconds: int, receiver: Callable[[], Any]) -> None:
    if not callable(receiver):
        raise TypeError(f"singleShot needs something to call, not {receiver!r}")
    QtCore.QTimer.singleShot(milliseconds, errors.guarded("QTimer.singleShot", receiver))


QTimer = strict.strict_class(QtCore.QTimer)
QTimer.singleShot = staticmethod(_single_shot)
QMessageBox = dialogs.QMessageBox
QFileDialog = dialogs.QFileDialog
QInputDialog = dialogs.QInputDialog
QDialog = dialogs.QDialog
QDesktopServices = dialogs.QDesktopServices


def __getattr__(name: str) -> Any:
    """The Qt class of this name; strict if it is a QObject."""
    for module in strict.MODULES:
        if hasattr(module, name):
            found = getattr(module, name)
            value = strict.strict_class(found) if strict.is_wrapped(found) else found
            globals()[name] = value
            return value
    raise AttributeError(f"module 'qt' has no attribute {name!r}")
