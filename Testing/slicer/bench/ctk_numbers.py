"""CTK's sliders and its colour button."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Slot

from Testing.slicer.bench.ctk import Emits, _Composite, forwarded, stored
from Testing.slicer.bench.strict import strict_class
from Testing.slicer.bench.uiloader import register

TICKS = 1000


@register
class ctkSliderWidget(_Composite):
    """A slider with a spin box, for real numbers."""

    _stand_in = True
    valueChanged = Emits(float)
    valueIsChanging = Emits(float)
    rangeChanged = Emits(float, float)
    decimals = forwarded(int, "_box", "decimals")
    singleStep = forwarded(float, "_box", "singleStep")
    suffix = forwarded(str, "_box", "suffix")
    prefix = forwarded(str, "_box", "prefix")
    pageStep = stored(float, "pageStep", 10.0)
    tickInterval = stored(float, "tickInterval", 0.0)
    tracking = stored(bool, "tracking", True)
    invertedAppearance = stored(bool, "invertedAppearance", False)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bar = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._box = QtWidgets.QDoubleSpinBox()
        self._bar.setRange(0, TICKS)
        self._row(self._bar, self._box)
        self._box.valueChanged.connect(self._changed)
        self._bar.sliderMoved.connect(self._moved)
        self.setRange(0.0, 99.0)

    def _changed(self, value: float) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        self._bar.setValue(round(TICKS * (value - low) / (high - low)) if high > low else 0)
        self.valueChanged.emit(value)

    def _moved(self, tick: int) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        step = self._box.singleStep()
        value = low + step * round((high - low) * tick / TICKS / step)
        self.valueIsChanging.emit(value)
        self._box.setValue(value)

    @Slot(float)
    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    @Slot(float, float)
    def setRange(self, low: float, high: float) -> None:
        self._box.setRange(low, high)
        self._bar.setValue(round(TICKS * (self._box.value() - low) / (high - low)) if high > low else 0)
        self.rangeChanged.emit(low, high)

    @Slot(float)
    def setMinimum(self, low: float) -> None:
        self.setRange(low, max(low, self._box.maximum()))

    @Slot(float)
    def setMaximum(self, high: float) -> None:
        self.setRange(min(high, self._box.minimum()), high)

    value = Property(float, lambda self: self._box.value(), setValue)
    minimum = Property(float, lambda self: self._box.minimum(), setMinimum)
    maximum = Property(float, lambda self: self._box.maximum(), setMaximum)
    spinBoxVisible = Property(
        bool, lambda self: not self._box.isHidden(), lambda self, shown: self._box.setVisible(shown)
    )


@register
class ctkRangeWidget(_Composite):
    """Two numbers, the lower and the upper one."""

    _stand_in = True
    valuesChanged = Emits(float, float)
    minimumValueChanged = Emits(float)
    maximumValueChanged = Emits(float)
    rangeChanged = Emits(float, float)
    decimals = forwarded(int, "_low", "decimals")
    singleStep = forwarded(float, "_low", "singleStep")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._low, self._high = QtWidgets.QDoubleSpinBox(), QtWidgets.QDoubleSpinBox()
        self._row(self._low, self._high)
        self._high.setValue(self._high.maximum())
        self._low.valueChanged.connect(lambda value: self._changed(self.minimumValueChanged, value))
        self._high.valueChanged.connect(lambda value: self._changed(self.maximumValueChanged, value))

    def _changed(self, signal: Any, value: float) -> None:
        signal.emit(value)
        self.valuesChanged.emit(self._low.value(), self._high.value())

    @Slot(float, float)
    def setValues(self, low: float, high: float) -> None:
        self._low.setValue(low)
        self._high.setValue(high)

    @Slot(float, float)
    def setRange(self, low: float, high: float) -> None:
        for box in (self._low, self._high):
            box.setRange(low, high)
        self.rangeChanged.emit(low, high)

    def _set_minimum(self, low: float) -> None:
        self.setRange(low, self._high.maximum())

    def _set_maximum(self, high: float) -> None:
        self.setRange(self._low.minimum(), high)

    minimumValue = forwarded(float, "_low", "value")
    maximumValue = forwarded(float, "_high", "value")
    minimum = Property(float, lambda self: self._low.minimum(), _set_minimum)
    maximum = Property(float, lambda self: self._high.maximum(), _set_maximum)


@register
class ctkColorPickerButton(strict_class(QtWidgets.QPushButton)):
    """A button that shows a colour."""

    _stand_in = True
    colorChanged = Emits(QtGui.QColor)
    displayColorName = stored(bool, "displayColorName", True)

    @Slot(QtGui.QColor)
    def setColor(self, color: QtGui.QColor) -> None:
        if color != self.color:
            self._color = QtGui.QColor(color)
            QtWidgets.QPushButton.setText(self, color.name())
            self.colorChanged.emit(color)

    color = Property(QtGui.QColor, lambda self: self.__dict__.get("_color", QtGui.QColor("black")), setColor)
