"""Small stand-ins for the CTK widgets the module may use: properties, slots and signals of their headers."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Slot

from Testing.slicer.bench import dialogs
from Testing.slicer.bench.strict import strict_class
from Testing.slicer.bench.uiloader import register

Emits = QtCore.Signal


def stored(kind: Any, name: str, default: Any) -> Any:
    """A property that only remembers its value."""

    def put(self: Any, value: Any) -> None:
        self.__dict__[f"_{name}"] = value

    return Property(kind, lambda self: self.__dict__.get(f"_{name}", default), put)


def forwarded(kind: Any, child: str, name: str) -> Any:
    """A property that a part of the widget keeps."""
    setter = f"set{name[0].upper()}{name[1:]}"
    return Property(
        kind,
        lambda self: getattr(self.__dict__[child], name)(),
        lambda self, value: getattr(self.__dict__[child], setter)(value),
    )


@register
class ctkCollapsibleButton(strict_class(QtWidgets.QAbstractButton)):
    """A titled section that folds; its contents hide with it."""

    _stand_in = True
    contentsCollapsed = Emits(bool)
    collapsedHeight = stored(int, "collapsedHeight", 10)
    flat = stored(bool, "flat", False)

    def __init__(self, *arguments: Any) -> None:
        title = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        super().__init__(*(a for a in arguments if not isinstance(a, str)))
        widget = QtWidgets.QAbstractButton
        widget.setText(self, title)
        widget.setCheckable(self, True)
        widget.setChecked(self, True)
        widget.setContentsMargins(self, 0, self._header(), 0, 0)
        widget.setSizePolicy(
            self, QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred
        )
        self.connect("toggled(bool)", self._fold)

    def _header(self) -> int:
        return QtGui.QFontMetrics(QtWidgets.QWidget.font(self)).height() + 8

    def _fold(self, is_open: bool) -> None:
        for child in QtCore.QObject.findChildren(
            self, QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly
        ):
            QtWidgets.QWidget.setVisible(child, is_open)
        QtWidgets.QWidget.setMaximumHeight(self, 16777215 if is_open else self._header() + 4)
        self.__dict__["_collapsed"] = not is_open
        self.contentsCollapsed.emit(not is_open)

    def childEvent(self, event: Any) -> None:
        """What is added to a folded section is hidden as well."""
        if event.polished() and self.__dict__.get("_collapsed"):  # when added it is not yet an object
            QtWidgets.QWidget.setVisible(event.child(), False)

    def sizeHint(self) -> QtCore.QSize:
        layout = QtWidgets.QWidget.layout(self)
        if layout is None or self.__dict__.get("_collapsed"):
            return QtCore.QSize(120, self._header())
        return QtWidgets.QLayout.totalSizeHint(layout).expandedTo(QtCore.QSize(120, self._header()))

    minimumSizeHint = sizeHint

    def paintEvent(self, event: Any) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        height = self._header()
        option.rect.setHeight(height)
        style, is_open = QtWidgets.QStyle, not self.__dict__.get("_collapsed")
        painter.drawControl(style.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(8, (height - 10) // 2, 10, 10)
        down, right = (
            style.PrimitiveElement.PE_IndicatorArrowDown,
            style.PrimitiveElement.PE_IndicatorArrowRight,
        )
        painter.drawPrimitive(down if is_open else right, arrow)
        painter.drawText(
            option.rect.adjusted(26, 0, 0, 0),
            QtCore.Qt.AlignmentFlag.AlignVCenter,
            QtWidgets.QAbstractButton.text(self),
        )

    def mousePressEvent(self, event: Any) -> None:
        """Only the header folds the section."""
        if event.position().y() <= self._header():
            QtWidgets.QAbstractButton.mousePressEvent(self, event)

    def _set_collapsed(self, collapsed: bool) -> None:
        QtWidgets.QAbstractButton.setChecked(self, not collapsed)

    collapsed = Property(bool, lambda self: not QtWidgets.QAbstractButton.isChecked(self), _set_collapsed)


@register
class ctkCollapsibleGroupBox(strict_class(QtWidgets.QGroupBox)):
    """A group box whose tick folds it."""

    _stand_in = True
    collapsedHeight = stored(int, "collapsedHeight", 10)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        QtWidgets.QGroupBox.setCheckable(self, True)
        self.connect("toggled(bool)", self._fold)

    def _fold(self, is_open: bool) -> None:
        QtWidgets.QWidget.setMaximumHeight(self, 16777215 if is_open else 26)
        for child in QtCore.QObject.findChildren(self, QtWidgets.QWidget):
            QtWidgets.QWidget.setVisible(child, is_open)

    def _set_collapsed(self, collapsed: bool) -> None:
        QtWidgets.QGroupBox.setChecked(self, not collapsed)

    collapsed = Property(bool, lambda self: not QtWidgets.QGroupBox.isChecked(self), _set_collapsed)


@register
class ctkDoubleSpinBox(strict_class(QtWidgets.QDoubleSpinBox)):
    """A spin box of real numbers."""

    _stand_in = True


class _Composite(strict_class(QtWidgets.QWidget)):
    """A widget made of parts in a row."""

    _stand_in = True

    def _row(self, *parts: QtWidgets.QWidget) -> None:
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for part in parts:
            part.__dict__["_part"] = True  # stays PySide6: the stand-in itself calls it that way
            row.addWidget(part)


@register
class ctkPathLineEdit(_Composite):
    """A path, typed or chosen."""

    _stand_in = True
    _ui_only = ("filters",)
    currentPathChanged = Emits(str)
    validInputChanged = Emits(bool)
    nameFilters = stored("QStringList", "nameFilters", [])
    settingKey = stored(str, "settingKey", "")
    label = stored(str, "label", "")
    filters = stored(int, "filters", 0)
    showHistoryButton = stored(bool, "showHistoryButton", True)
    showBrowseButton = stored(bool, "showBrowseButton", True)
    # ctkPathLineEdit::Filter, for the module to add up.
    Dirs, Drives, Files, Readable, Writable, Executable = 0x001, 0x004, 0x002, 0x010, 0x020, 0x040

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._edit, self._browse = QtWidgets.QLineEdit(), QtWidgets.QToolButton()
        self._browse.setText("...")
        self._row(self._edit, self._browse)
        self._edit.textChanged.connect(lambda text: self.currentPathChanged.emit(text))
        self._browse.clicked.connect(lambda *_: self.browse())

    @Slot(str)
    def setCurrentPath(self, path: str) -> None:
        self._edit.setText(path)

    @Slot()
    def browse(self) -> None:
        self.setCurrentPath(dialogs.person.answer(dialogs.Message("path", "", self._edit.text())))

    @Slot()
    def addCurrentPathToHistory(self) -> None:
        """The bench keeps no history; a path line without a path cannot be added to one."""
        if not self._edit.text():
            raise ValueError("ctkPathLineEdit: no path to remember")

    currentPath = Property(str, lambda self: self._edit.text(), setCurrentPath)


@register
class ctkDirectoryButton(strict_class(QtWidgets.QPushButton)):
    """A button that shows a folder and asks for another."""

    _stand_in = True
    directoryChanged = Emits(str)
    directorySelected = Emits(str)
    caption = stored(str, "caption", "")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connect("clicked()", self.browse)

    @Slot(str)
    def setDirectory(self, path: str) -> None:
        if path != self.__dict__.get("_directory", ""):
            self._directory = path
            QtWidgets.QPushButton.setText(self, path)
            self.directoryChanged.emit(path)

    @Slot()
    def browse(self) -> None:
        path = dialogs.person.answer(dialogs.Message("directory", "", self.directory))
        self.setDirectory(path)
        self.directorySelected.emit(path)

    directory = Property(str, lambda self: self.__dict__.get("_directory", ""), setDirectory)


@register
class ctkComboBox(strict_class(QtWidgets.QComboBox)):
    """A combo box with a text for nothing chosen."""

    _stand_in = True
    defaultText = stored(str, "defaultText", "")
    forceDefault = stored(bool, "forceDefault", False)


@register
class ctkCheckableComboBox(strict_class(QtWidgets.QComboBox)):
    """A combo box whose items are ticked."""

    _stand_in = True
    checkedIndexesChanged = Emits()

    @Slot(QtCore.QModelIndex, QtCore.Qt.CheckState)
    def setCheckState(self, index: QtCore.QModelIndex, state: Any) -> None:
        model = QtWidgets.QComboBox.model(self)
        if model.data(index, QtCore.Qt.ItemDataRole.CheckStateRole) != QtCore.Qt.CheckState(state).value:
            model.setData(index, QtCore.Qt.CheckState(state).value, QtCore.Qt.ItemDataRole.CheckStateRole)
            self.checkedIndexesChanged.emit()

    @Slot(QtCore.QModelIndex)
    def checkState(self, index: QtCore.QModelIndex) -> Any:
        value = QtWidgets.QComboBox.model(self).data(index, QtCore.Qt.ItemDataRole.CheckStateRole)
        return QtCore.Qt.CheckState(value or 0)

    @Slot()
    def checkedIndexes(self) -> list[QtCore.QModelIndex]:
        model = QtWidgets.QComboBox.model(self)
        rows = (model.index(row, 0) for row in range(model.rowCount()))
        return [index for index in rows if self.checkState(index) == QtCore.Qt.CheckState.Checked]


@register
class ctkFittedTextBrowser(strict_class(QtWidgets.QTextBrowser)):
    """A text as high as what it says."""

    _stand_in = True
    collapsed = stored(bool, "collapsed", True)
    collapsibleText = stored(str, "collapsibleText", "")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connect("textChanged()", self._fit)

    def _fit(self) -> None:
        document = QtWidgets.QTextBrowser.document(self)
        QtWidgets.QWidget.setFixedHeight(self, int(document.size().height()) + 4)


@register
class ctkMessageBox(dialogs.QMessageBox):
    """A message box that can be told not to come back."""

    _stand_in = True
    dontShowAgain = stored(bool, "dontShowAgain", False)
    dontShowAgainVisible = stored(bool, "dontShowAgainVisible", False)
    dontShowAgainSettingsKey = stored(str, "dontShowAgainSettingsKey", "")


def __getattr__(name: str) -> Any:
    """The numbers' widgets, which are built on the ones above."""
    from Testing.slicer.bench import ctk_numbers

    if name.startswith("ctk") and hasattr(ctk_numbers, name):
        return getattr(ctk_numbers, name)
    raise AttributeError(f"module 'ctk' has no attribute {name!r}")
