"""The result part of the panel: numbers of the last run, ways to look at it, the 0-100 % slider."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import qt
from slicer.i18n import tr as _

from DiffeoRegPanel.display import Flicker, Views
from DiffeoRegPanel.panel_run import POLL_MS, Status

LESION_VIEWS = {"changeButton": "change", "metamorphicButton": "metamorphic", "healthyButton": "healthy"}
"""Buttons that are there for a result with a change of appearance -> the parameter with the volume."""
VIEWS = ("blendButton", "checkerboardButton", "flickerButton", "jacobianButton", *LESION_VIEWS)
ROWS = (
    "resultFolds", "resultInverse", "resultSimilarity", "resultDice", "resultLandmarks", "resultCheck",
    "resultPathology",
)  # fmt: skip


class ResultSection:
    """Shows the result that the parameters refer to; empty and closed without one."""

    def __init__(self, ui: Any, status: Status, open_path: Callable[[Any], Any]) -> None:
        """open_path: velocity node -> the way along the flow (set, poll, busy, close)."""
        self._ui, self._status, self._open_path = ui, status, open_path
        self._parameters: Any = None
        self._path: Any = None
        self._shown = ""
        self._path_allowed = True
        self.views = Views()
        self.flicker = Flicker(self.views)
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.poll)
        for name in VIEWS:
            getattr(ui, name).connect("clicked()", lambda name=name: self._guarded(lambda: self._view(name)))
        ui.gridButton.connect("clicked()", lambda: self._guarded(self._grid))
        ui.restoreButton.connect("clicked()", self.restore)
        ui.pathSlider.connect("valueChanged(double)", self._moved)

    def bind(self, parameters: Any) -> None:
        """Show these parameters from now on; None disconnects."""
        self._parameters = parameters
        self._ui.resultSection.collapsed = not self._report()
        self.update()

    def update(self) -> None:
        """Show numbers and buttons of the result there is."""
        if self._parameters is None:
            return
        report, p = self._report(), self._parameters
        for name, sentence in zip(ROWS, sentences(report), strict=True):
            getattr(self._ui, name).setText(sentence)
            for widget in (getattr(self._ui, name), getattr(self._ui, f"{name}Label")):
                widget.setVisible(bool(sentence))
        pair = p.resultFixed is not None and p.resultMoving is not None
        self._ui.blendButton.setEnabled(pair)
        self._ui.flickerButton.setEnabled(pair)
        on_fixed = pair and p.resultMoving is not p.resultSource
        self._ui.checkerboardButton.setEnabled(on_fixed)
        self._ui.jacobianButton.setEnabled(pair and p.jacobian is not None)
        self._ui.gridButton.setEnabled(pair and p.resultTransform is not None)
        for button, name in LESION_VIEWS.items():
            getattr(self._ui, button).setVisible(pair and p.getValue(name) is not None)
        self._ui.pathSlider.setEnabled(self._path_allowed and p.velocity is not None)
        for widget in (self._ui.pathSlider, self._ui.pathSliderLabel):
            widget.setVisible(p.velocity is not None)

    def show(self, name: str) -> None:
        """Press one of the view buttons."""
        self._guarded(lambda: self._view(name))

    def enable_path(self, on: bool) -> None:
        """The slider needs the worker, which a run occupies."""
        self._path_allowed = on
        if not on:
            self.close_path()
        there = self._parameters is not None and self._parameters.velocity is not None
        self._ui.pathSlider.setEnabled(on and there)

    def poll(self) -> None:
        """Take in where the slider's transform is; called by a timer."""
        if self._path is None:
            return
        try:
            for event in self._path.poll():
                if event.kind == "error":
                    self._status.say(event.message)
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            self._status.failed(error)
            self.close_path()
            return
        if not self._path.busy:
            self._timer.stop()

    def hold_still(self) -> None:
        """No view changes by itself and no preview stays, while nobody looks at the result."""
        self.flicker.stop()
        if self._shown == "flickerButton":
            self._press("")
        self.close_path()

    def restore(self) -> None:
        """The slice views as they were before any button here was pressed."""
        self.flicker.stop()
        self.close_path()
        self.views.restore()
        self._press("")
        self._ui.gridButton.setChecked(False)

    def close_path(self) -> None:
        """The moving volume where it was; the slider at 100 %."""
        self._timer.stop()
        if self._path is not None:
            self._path.close()
            self._path = None
        was_blocked = self._ui.pathSlider.blockSignals(True)
        self._ui.pathSlider.value = 100.0
        self._ui.pathSlider.blockSignals(was_blocked)

    def scene_closing(self) -> None:
        """Let go of everything in the scene."""
        self.flicker.stop()
        self.close_path()
        self.views.forget()
        self._press("")
        self._ui.gridButton.setChecked(False)

    def _report(self) -> dict[str, Any]:
        if self._parameters is None or not self._parameters.report:
            return {}
        try:
            report = json.loads(self._parameters.report)
        except ValueError:
            return {}  # an edited scene: no numbers to show
        return report if isinstance(report, dict) else {}

    def _view(self, name: str) -> None:
        p = self._parameters
        if name == self._shown:
            self.restore()
            return
        self.flicker.stop()
        show = {
            "blendButton": self.views.show_blend, "checkerboardButton": self.views.show_checkerboard,
            "flickerButton": self.flicker.start,
        }  # fmt: skip
        self._press("")
        if name == "jacobianButton":
            self.views.show_jacobian(p.jacobian, p.resultFixed)
        elif name == "changeButton":
            self.views.show_change(p.change, p.resultMoving)
        elif name == "metamorphicButton":
            self.views.show_blend(p.resultFixed, p.metamorphic)
        elif name == "healthyButton":
            self.views.show_over(p.resultFixed, p.healthy)
        else:
            show[name](p.resultFixed, p.resultMoving)
        self._press(name)

    def _press(self, name: str) -> None:
        self._shown = name
        for button in VIEWS:
            getattr(self._ui, button).setChecked(button == name)

    def _grid(self) -> None:
        p = self._parameters
        on = self._ui.gridButton.checked
        if p.resultTransform is not None and p.resultFixed is not None:
            self.views.show_deformed_grid(p.resultTransform, p.resultFixed, on)

    def _moved(self, percent: float) -> None:
        self._guarded(lambda: self._follow(percent))

    def _follow(self, percent: float) -> None:
        p = self._parameters
        if p is None or p.velocity is None:
            return
        if self._path is None:
            self._path = self._open_path(p.velocity)
            self.flicker.stop()
            self._press("")
            if p.resultSource is not None and p.resultFixed is not None:
                self.views.show_blend(p.resultFixed, p.resultSource)
        self._path.set(percent / 100)
        self._timer.start()

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - shown to the user, with the traceback in the log
            self._press("")
            self._status.failed(error)


def sentences(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What the ROWS say of a report; empty: not in it."""
    return (
        _folds(report.get("folds") or {}),
        _inverse(report.get("inverse_consistency_mm") or {}),
        _before_after(report.get("similarity") or {}, "ncc", "{:.3f}"),
        _before_after((report.get("labels") or {}).get("mean") or {}, "dice", "{:.3f}"),
        _before_after(report.get("landmarks") or {}, "mean", "{:.2f} mm"),
        str(report.get("self_check") or ""),
        _pathology(report.get("pathology") or {}),
    )


def _folds(folds: Mapping[str, Any]) -> str:
    percent = folds.get("folded_percent")
    if percent is None:
        return ""
    text = _("{percent:.3g} %").format(percent=percent)
    lowest, highest = folds.get("minimum_determinant"), folds.get("maximum_determinant")
    if lowest is None or highest is None:
        return text
    return text + _(", volume change {low:.2f} to {high:.2f}").format(low=lowest, high=highest)


def _inverse(error: Mapping[str, Any]) -> str:
    if error.get("mean") is None:
        return ""
    return _("{mean:.3g} mm on average, at most {most:.3g} mm").format(
        mean=error["mean"], most=error.get("max") or error["mean"]
    )


def _pathology(found: Mapping[str, Any]) -> str:
    """`2.3 ml marked, change +41 on average (-3 to 120)`."""
    marked = [found.get(f"{side}_mm3") for side in ("fixed", "moving")]
    words = [_("{ml:.3g} ml marked").format(ml=volume / 1000) for volume in marked if volume is not None]
    change = found.get("change") or {}
    if not words or change.get("mean") is None:
        return _(" and ").join(words)
    return _("{marked}, change {mean:+.3g} on average ({low:.3g} to {high:.3g})").format(
        marked=_(" and ").join(words), mean=change["mean"], low=change["min"], high=change["max"]
    )


def _before_after(stages: Mapping[str, Any], name: str, form: str) -> str:
    """`0.412 before, 0.803 aligned, 0.957 registered`, as far as there are numbers."""
    words = (("given", _("before")), ("initial", _("aligned")), ("final", _("registered")))
    values = [((stages.get(stage) or {}).get(name), word) for stage, word in words]
    return ", ".join(f"{form.format(value)} {word}" for value, word in values if value is not None)


def kept_numbers(report: Mapping[str, Any], self_check: str) -> str:
    """The part of a report that this section shows, as JSON for the scene."""
    names = ("folds", "inverse_consistency_mm", "similarity", "labels", "landmarks", "pathology")
    kept: dict[str, Any] = {name: report.get(name) for name in names}
    if kept["labels"]:
        kept["labels"] = {"mean": kept["labels"].get("mean")}
    return json.dumps(kept | {"self_check": self_check})
