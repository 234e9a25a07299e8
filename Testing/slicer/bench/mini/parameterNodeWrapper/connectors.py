"""Which widgets a parameter can be bound to, and how each is read, written and heard.

The list is that of Slicer's own connectors: no table, no segment selector, no checkable selector.
"""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .annotations import (
    Choice,
    Decimals,
    FloatRange,
    Maximum,
    Minimum,
    RangeBounds,
    SingleStep,
    WithinRange,
    find,
)
from .kinds import Node
from .packs import Field


@dataclass(frozen=True)
class Way:
    """Property and signal of a widget class, and the types it can show."""

    attribute: str
    signal: str | None
    types: tuple[type, ...]
    ranged: bool = False


NUMBERS = (int, float)
WAYS = {
    "QCheckBox": Way("checked", "toggled(bool)", (bool,)),
    "QAbstractButton": Way("checked", "toggled(bool)", (bool,)),
    "QSlider": Way("value", "valueChanged(int)", (int,), ranged=True),
    "QSpinBox": Way("value", "valueChanged(int)", (int,)),
    "QDoubleSpinBox": Way("value", "valueChanged(double)", NUMBERS),
    "ctkDoubleSpinBox": Way("value", "valueChanged(double)", NUMBERS),
    "ctkSliderWidget": Way("value", "valueChanged(double)", NUMBERS, ranged=True),
    "qMRMLSliderWidget": Way("value", "valueChanged(double)", NUMBERS, ranged=True),
    "QLineEdit": Way("text", "textChanged(QString)", (str,)),
    "QPlainTextEdit": Way("plainText", "textChanged()", (str,)),
    "QTextEdit": Way("plainText", "textChanged()", (str,)),
    "QLabel": Way("text", None, (str,)),
    "ctkPathLineEdit": Way("currentPath", "currentPathChanged(QString)", (pathlib.Path,)),
    "ctkDirectoryButton": Way("directory", "directoryChanged(QString)", (pathlib.Path,)),
}
COMBOS = ("QComboBox", "ctkComboBox")


class Connector:
    """A widget bound to a parameter."""

    def __init__(self, widget: Any, field: Field, signal: str | None) -> None:
        self.widget, self.field, self.signal = widget, field, signal
        self._heard: Callable[..., None] | None = None

    def start(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever the widget changes."""

        def heard(*_: Any) -> None:
            changed()

        if self.signal:
            self._heard = heard
            self.widget.connect(self.signal, heard)

    def stop(self) -> None:
        """Hear nothing any more."""
        if self._heard is not None:
            self.widget.disconnect(self.signal, self._heard)
            self._heard = None


class PropertyConnector(Connector):
    """A widget whose value is one property."""

    def __init__(self, widget: Any, field: Field, way: Way) -> None:
        super().__init__(widget, field, way.signal)
        self.way = way
        if way.attribute == "checked":
            widget.setCheckable(True)
        if hasattr(widget, "maximum"):
            self._limit()

    def _limit(self) -> None:
        limits, notes = find(self.field.annotations, WithinRange), self.field.annotations
        if self.way.ranged and limits is None:
            raise RuntimeError(f"{self.field.name}: a slider needs WithinRange")
        low, high = limits or find(notes, Minimum), limits or find(notes, Maximum)
        number = int if self.widget.className() in ("QSlider", "QSpinBox") else float
        for annotation, target in (
            (find(notes, Decimals), "decimals"),
            (find(notes, SingleStep), "singleStep"),
        ):
            if annotation is not None:
                setattr(
                    self.widget,
                    target,
                    int(annotation.value) if target == "decimals" else number(annotation.value),
                )
        if low is not None:
            self.widget.minimum = number(low.minimum)
        if high is not None:
            self.widget.maximum = number(high.maximum)

    def read(self) -> Any:
        value = getattr(self.widget, self.way.attribute)
        return value if isinstance(value, self.field.type) else self.field.type(value)

    def write(self, value: Any) -> None:
        if pathlib.Path in self.way.types:
            value = str(value)
        elif self.way.types == NUMBERS:
            value = float(value)
        if getattr(self.widget, self.way.attribute) != value:
            setattr(self.widget, self.way.attribute, value)


class ComboConnector(Connector):
    """A combo box; filled with the names of an Enum or a Choice."""

    def __init__(self, widget: Any, field: Field) -> None:
        super().__init__(widget, field, "currentIndexChanged(int)")
        choice = find(field.annotations, Choice)
        if choice is not None:
            self.values = choice.choices
        elif isinstance(field.type, type) and issubclass(field.type, enum.Enum):
            self.values = list(field.type)
        else:
            raise RuntimeError(f"{field.name}: a combo box needs an Enum or a Choice")
        widget.clear()
        widget.addItems([_label(value) for value in self.values])

    def read(self) -> Any:
        return self.values[self.widget.currentIndex]

    def write(self, value: Any) -> None:
        self.widget.currentIndex = self.values.index(value)


def _label(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return value.label() if hasattr(value, "label") else value.name
    return str(value)


class NodeConnector(Connector):
    """A node selector."""

    def __init__(self, widget: Any, field: Field) -> None:
        super().__init__(widget, field, "currentNodeChanged(vtkMRMLNode*)")

    def read(self) -> Any:
        return self.widget.currentNode()

    def write(self, value: Any) -> None:
        if self.widget.currentNode() is not value:
            self.widget.setCurrentNode(value)


class RangeConnector(Connector):
    """Two numbers at once."""

    def __init__(self, widget: Any, field: Field) -> None:
        super().__init__(widget, field, "valuesChanged(double,double)")
        bounds = find(field.annotations, RangeBounds)
        if bounds is None:
            raise RuntimeError(f"{field.name}: a range widget needs RangeBounds")
        widget.setRange(float(bounds.minimum), float(bounds.maximum))

    def read(self) -> Any:
        return FloatRange(self.widget.minimumValue, self.widget.maximumValue)

    def write(self, value: Any) -> None:
        if self.read() != value:
            self.widget.setValues(value.minimum, value.maximum)


class ColourConnector(Connector):
    """A colour, kept as text (#rrggbb)."""

    def __init__(self, widget: Any, field: Field) -> None:
        super().__init__(widget, field, "colorChanged(QColor)")

    def read(self) -> Any:
        return self.widget.color.name()

    def write(self, value: Any) -> None:
        import qt

        if value and value != self.read():
            self.widget.setColor(qt.QColor(value))


def connector_for(widget: Any, field: Field) -> Connector:
    """The way a widget shows a parameter; raises RuntimeError where Slicer has none."""
    name = widget.className()
    if name in COMBOS:
        return ComboConnector(widget, field)
    if name == "qMRMLNodeComboBox" and isinstance(field.kind, Node):
        return NodeConnector(widget, field)
    if name == "ctkRangeWidget" and field.type is FloatRange:
        return RangeConnector(widget, field)
    if name == "ctkColorPickerButton" and field.type is str:
        return ColourConnector(widget, field)
    way = WAYS.get(name)
    if way is None and name in ("QPushButton", "QToolButton", "QRadioButton"):
        way = WAYS["QAbstractButton"]
    if way is None or field.type not in way.types:
        raise RuntimeError(
            f"{field.name}: a {name} cannot show a {getattr(field.type, '__name__', field.type)}"
        )
    return PropertyConnector(widget, field, way)
